// Fibers: a stack for each simulated thread, and the switch from one to another. On x86-64 the switch saves only the
// registers that the calling convention asks for. Other CPUs use ucontext, which makes two system calls per switch.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <stdexcept>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

namespace sf::cuda::simt {

constexpr size_t kStack = 64 << 10, kPage = 4096;

#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)
struct Fiber {
  void* stack_pointer = nullptr;

  void prepare(char* stack_end, void (*entry)()) {  // room for six registers, then the address the switch returns to
    void** top = reinterpret_cast<void**>(stack_end);
    top[-2] = reinterpret_cast<void*>(entry);
    stack_pointer = top - 8;
  }
};

// noipa: the compiler must not draw conclusions from the body, such as which registers a call leaves unchanged.
[[gnu::naked, gnu::noinline, gnu::noipa]] inline void switch_stacks(void** /*save*/, void* /*load*/) {
  asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
      "movq %rsp, (%rdi); movq %rsi, %rsp\n"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
inline void switch_fibers(Fiber& from, const Fiber& to) { switch_stacks(&from.stack_pointer, to.stack_pointer); }
#else
struct Fiber {
  ucontext_t context;

  void prepare(char* stack_end, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack_end - kStack / 2;
    context.uc_stack.ss_size = kStack / 2;
    makecontext(&context, entry, 0);
  }
};
inline void switch_fibers(Fiber& from, const Fiber& to) { swapcontext(&from.context, &to.context); }
#endif

// Allocates the i-th stack, with a guard page below it, and returns its end. The ends are staggered, since stacks at
// distances of a power of two would all use the same few sets of the caches.
inline char* new_stack(size_t i) {
  void* base =
      mmap(nullptr, kPage + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) throw std::runtime_error("simt: no memory for the stacks of the threads");
  mprotect(base, kPage, PROT_NONE);
  return static_cast<char*>(base) + kPage + kStack - i * 576 % (kStack / 4);
}

}  // namespace sf::cuda::simt
