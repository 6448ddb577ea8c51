// A stream: the states of some rows of a model, and the memory of every call. It is made once; afterwards nothing is
// allocated. Its functions throw nothing: they return a status, and put a sentence where seqcls_error() finds it.
#pragma once

#include <memory>
#include <vector>

#include "pooling.h"
#include "seqcls.h"
#include "stream_memory.h"

namespace sf::runtime {

// Sets the sentence of the calling thread, as printf writes it, and returns the status. It allocates nothing.
[[gnu::format(printf, 2, 3)]] seqcls_status refused(seqcls_status status, const char* format, ...);

constexpr int64_t kMostSteps = int64_t{1} << 31;  // of a call

class Stream {
 public:
  Stream(std::shared_ptr<const Model> model, int64_t rows, int64_t steps);
  // The bytes that a stream takes. Refuses sizes that no memory holds.
  static int64_t bytes(const Model& model, int64_t rows, int64_t steps);

  // `beside`: numbers (rows of the call, classes) that are added to the logits; null for a model without n-grams.
  seqcls_status run(const seqcls_call& call, const float* beside = nullptr);
  // One step of each row.
  seqcls_status step(const float* x, float* out);
  seqcls_status reset(int64_t row);
  size_t state_bytes();  // of a row; 0 where the model needs whole sequences
  seqcls_status get_state(int64_t row, void* state, size_t bytes);
  seqcls_status set_state(int64_t row, const void* state, size_t bytes);
  const Description& about() const { return model_->description; }

 private:
  seqcls_status check(const seqcls_call& call, const float* beside);
  seqcls_status check_input(const seqcls_call& call) const;
  seqcls_status check_rows(const seqcls_call& call);
  seqcls_status check_lengths(const seqcls_call& call);
  seqcls_status check_values(const seqcls_call& call) const;
  void sort_by_length();
  void begin_row(int64_t row);
  void run_piece(const seqcls_call& call, int64_t begin, int64_t steps);
  void run_layers(Rows x, const Rows& resets, int64_t steps, const Rows& output);
  void step_layers(const char* x, char* output);
  Rows input(const seqcls_call& call, int64_t begin, int64_t steps);
  Rows resets(const seqcls_call& call, int64_t begin, int64_t steps);
  void take_features(const seqcls_call& call, int64_t begin, int64_t i, int64_t steps, char* to) const;
  void take_embeddings(const seqcls_call& call, int64_t begin, int64_t i, int64_t steps, char* to) const;
  void copy_output(const seqcls_call& call, const char* from, int64_t begin, int64_t steps) const;
  void pool(const char* output, int64_t steps);
  void finish(const seqcls_call& call, const float* beside);
  void pool_row(int64_t row, char* to) const;
  void run_head(const seqcls_call& call, const float* beside);
  const float* float_features(const seqcls_call& call, int64_t i) const;

  seqcls_status check_state(int64_t row, const void* state, size_t bytes);
  size_t copy_state(int64_t row, char* state, bool writes);
  char* state_h(int64_t layer, int64_t direction, int64_t row) const;
  float* state_c(int64_t layer, int64_t direction, int64_t row) const;
  PooledRow pooled_row(int64_t row) const;
  int64_t size() const { return size_of(about().dtype); }
  // The steps of a row of the call in the piece from `begin` on.
  int64_t steps_in_piece(int64_t i, int64_t begin, int64_t steps) const;

  std::shared_ptr<const Model> model_;
  const int64_t rows_, steps_;
  const AlignedMemory memory_;
  const StreamMemory at_;
  std::vector<Forward> forwards_;  // one for each layer; a call changes its input, output and sizes
  // For a stream of one row: runs one step of a layer; null for more rows, and where the layers have no such function.
  const StepFunction step_layer_;
  std::vector<StepTask> tasks_;  // one for each layer, all of whose pointers but x and output are set
  bool steps_in_place_ = false;  // whether seqcls_step() reads and writes the memory of the caller
  // Of the call at hand: its rows, and the same in descending order of length.
  const int64_t *of_call_ = nullptr, *longest_first_ = nullptr;
  int64_t count_ = 0;
  bool has_lengths_ = false;  // whether rows may have fewer steps than the call, which at_.lengths tells
};

}  // namespace sf::runtime
