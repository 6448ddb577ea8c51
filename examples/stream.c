/* Follows a stream of numbers with a classifier, without torch and Python: reads the features of one step from each
 * line of the standard input, and prints the probabilities of the classes so far. `make example-stream` builds it as
 * build/runtime/stream; to_runtime() in Python writes the model. */
#include <stdio.h>
#include <stdlib.h>

#include "seqcls.h"

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, seqcls_error());
  return 1;
}

int main(int count, char** arguments) {
  seqcls_model* model;
  seqcls_stream* stream;
  seqcls_info info;
  if (count != 2) {
    fprintf(stderr, "usage: %s MODEL.sfm < NUMBERS\n", arguments[0]);
    return 2;
  }
  if (seqcls_open(arguments[1], NULL, &model)) return failed("seqcls_open");
  if (seqcls_describe(model, &info)) return failed("seqcls_describe");
  if (!info.features) {
    fprintf(stderr, "model: expected one that takes numbers but got one of ids, whose steps seqcls_run() takes\n");
    return 1;
  }
  if (seqcls_stream_new(model, 1, 1, &stream)) return failed("seqcls_stream_new"); /* one sequence, step by step */
  float* x = calloc((size_t)info.features + 1, sizeof *x);
  float* out = calloc((size_t)info.outputs, sizeof *out);
  if (!x || !out) return 1;
  for (;;) {
    int64_t read = 0;
    while (read < info.features && scanf("%f", &x[read]) == 1) ++read;
    if (read < info.features || !read) break; /* the end of the input */
    if (seqcls_step(stream, x, out)) return failed("seqcls_step");
    for (int64_t i = 0; i < info.outputs; ++i) printf("%s%.6f", i ? " " : "", out[i]);
    printf("\n");
  }
  free(x);
  free(out);
  seqcls_stream_close(stream);
  seqcls_close(model); /* the last to use it frees it */
  return 0;
}
