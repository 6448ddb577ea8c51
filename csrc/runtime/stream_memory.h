// The arrays of a stream, which lie in one piece of memory. With a null base they are only measured.
#pragma once

#include "memory.h"
#include "model.h"

namespace sf::runtime {

// Arrays of rows are indexed by the row of the stream. `E` below is the dtype of the model.
struct StreamMemory {
  StreamMemory(const Model& model, int64_t rows, int64_t steps, char* base);

  char* x;                // (rows, steps, inputs) E: input that cannot be read in place
  char* buffers[2];       // (rows, steps, width) E: outputs of layers, which take turns
  char* h;                // (layers, directions, rows, padded(out)) E
  char* h_next;           // (layers, padded(out)) E, which takes turns with h where steps are single
  float* c;               // (layers, directions, rows, padded(hidden))
  int64_t* pooled_steps;  // (rows,)
  float *totals, *parts;  // (rows, width): see pooling.h
  int64_t* taken;         // (rows,): the steps that a row has taken, for a model with max_length
  double* before;         // (rows, 2, features): see series.h
  float* features;        // (rows, steps, inputs): of whole series, where the model reads them as such; else null
  double* column;         // (2, steps): see whole_series.h
  float* space;           // of the convolutions
  char* pooled;           // (rows, width) E, in the order of the call, like the next three
  char* raw_logits;       // (rows, classes) E
  float* logits;
  double* probabilities;
  int64_t *lengths, *left;             // (rows,): the steps of each row in a call, and in a piece of it
  int64_t *all_rows, *chosen, *order;  // rows of the stream: all; those of a call; the same, longest first
  uint8_t* marks;                      // (rows,): zeros between calls
  uint8_t* resets;                     // (rows, steps)
  char *scratch, *shared;              // of the kernels
  int64_t bytes;
};

}  // namespace sf::runtime
