/* Runs a stream where nothing but computing is allowed: malloc and its relatives end the program, and so does every
 * system call (seccomp, in strict mode but for the exit). Usage: alone MODEL THREADS. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "seqcls.h"

/* The allocator of the C library, under the names that it has for programs which replace malloc. */
extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);
extern void* __libc_memalign(size_t, size_t);
extern void __libc_free(void*);

static __thread volatile int forbidden; /* whether this thread may not allocate */

static void check(void) {
  if (forbidden) __builtin_trap();
}
void* malloc(size_t size) { return check(), __libc_malloc(size); }
void* calloc(size_t count, size_t size) { return check(), __libc_calloc(count, size); }
void* realloc(void* old, size_t size) { return check(), __libc_realloc(old, size); }
void* aligned_alloc(size_t align, size_t size) { return check(), __libc_memalign(align, size); }
int posix_memalign(void** to, size_t align, size_t size) {
  check();
  *to = __libc_memalign(align, size);
  return *to ? 0 : ENOMEM;
}
void free(void* old) {
  check();
  __libc_free(old);
}

/* From now on every system call of this thread but the end of a thread or of the program kills the process. */
static void forbid_system_calls(void) {
  struct sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_exit, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_exit_group, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
    perror("seccomp");
    exit(3);
  }
}

enum { kRows = 3, kSteps = 40 };

enum { kWell, kWrong, kRunning };

struct work {
  const seqcls_model* model;
  pthread_barrier_t* ready;
  volatile int status; /* one of the following */
  const char* break_it;
};

static void* follow(void* given) {
  struct work* work = given;
  seqcls_info info;
  seqcls_stream* stream;
  if (seqcls_describe(work->model, &info) || seqcls_stream_new(work->model, kRows, 7, &stream)) {
    work->status = kWrong;
    return NULL;
  }
  const size_t inputs = (size_t)(info.features ? info.features : 1), outputs = (size_t)info.outputs;
  float* x = calloc(kRows * kSteps * inputs, sizeof *x);
  float* out = calloc(kRows * kSteps * outputs, sizeof *out);
  int64_t* ids = calloc(kRows * kSteps, sizeof *ids);
  uint8_t* resets = calloc(kRows * kSteps, 1);
  for (size_t i = 0; i < kRows * kSteps * inputs; ++i) x[i] = (float)(i % 7) / 7;
  resets[5] = resets[60] = 1;
  const int64_t lengths[kRows] = {3, kSteps, 11}, rows[2] = {2, 0}, wrong[1] = {9};
  pthread_barrier_wait(work->ready);
  forbid_system_calls();
  forbidden = 1;
  if (work->break_it && !strcmp(work->break_it, "malloc")) free(malloc(8));
  if (work->break_it && !strcmp(work->break_it, "call")) getppid();
  int bad = 0;
  for (int round = 0; round < 50; ++round) {
    seqcls_call call = {.steps = kSteps, .lengths = lengths, .out = out};
    if (info.vocabulary) call.ids = ids;
    else call.x = x;
    if (!info.is_classifier) call.resets = resets;
    if (info.is_streamable) bad |= seqcls_run(stream, &call);
    call.steps = 6, call.lengths = NULL;
    bad |= seqcls_run(stream, &call);
    call.rows = rows, call.count = 2;
    bad |= seqcls_run(stream, &call);
    call.rows = wrong, call.count = 1; /* an error and its sentence allocate nothing either */
    bad |= seqcls_run(stream, &call) != SEQCLS_BAD_ARGUMENT || !strstr(seqcls_error(), "rows: expected");
    if (info.is_streamable && info.features) bad |= seqcls_step(stream, x, out);
    bad |= seqcls_reset(stream, round % kRows);
  }
  work->status = bad ? kWrong : kWell;
  syscall(__NR_exit, 0); /* the thread alone; a return would free its stack */
  return NULL;
}

int main(int count, char** arguments) {
  seqcls_model* model;
  pthread_barrier_t ready;
  enum { kThreads = 3 };
  struct work works[kThreads];
  if (count < 2) return 4;
  if (seqcls_open(arguments[1], NULL, &model)) {
    fprintf(stderr, "%s\n", seqcls_error());
    return 5;
  }
  pthread_barrier_init(&ready, NULL, kThreads);
  for (int k = 0; k < kThreads; ++k) {
    pthread_t thread;
    works[k] = (struct work){model, &ready, kRunning, count > 2 ? arguments[2] : NULL};
    if (pthread_create(&thread, NULL, follow, &works[k])) return 6;
    pthread_detach(thread);
  }
  for (int waited = 0; waited < 6000; ++waited) { /* a minute */
    int left = 0, bad = 0;
    for (int k = 0; k < kThreads; ++k) left += works[k].status == kRunning, bad |= works[k].status == kWrong;
    if (bad) return 1;
    if (!left) return 0;
    usleep(10000);
  }
  return 7;
}
