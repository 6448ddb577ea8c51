// The ops of torch.ops.seqcls_fast: their schemas, the choice of the implementation of a call, their registration. What
// they do is in layer_calls.h; the kernels are behind runner.h.
#include <algorithm>
#include <cstdint>
#include <new>
#include <string>
#include <utility>

#include "layer_calls.h"
#include "runners.h"
#include "tensors.h"

namespace sf {
namespace {

std::string shapes_of(const Tensors& weights) {
  std::string shapes = "weights of shapes";
  for (size_t i = 0; i < std::min<size_t>(weights.size(), 10); ++i) shapes += " " + text(weights[i].sizes());
  return shapes;
}

[[noreturn]] void out_of_memory(const Tensor& x, const Tensors& weights) {
  fail("x: expected a layer that fits into memory, but there is too little for x of shape ", text(x.sizes()), " and ",
       shapes_of(weights));
}

Tensors rnn_forward(Tensor x, Tensors weights, Maybe h0, Maybe c0, Maybe lengths, Maybe batch_sizes, Name cell,
                    int64_t directions, bool batch_first, bool want_output, bool want_saved, Name impl, bool allow_tf32,
                    Maybe packed, Maybe resets, Maybe h_reset, Maybe c_reset, Maybe seed, double zoneout_h,
                    double zoneout_c, double state_dropout, double candidate_dropout) try {
  check_given("x", x);
  const ScopedRunner runner(x, impl, allow_tf32);
  const LayerOptions options{resets, h_reset, c_reset, seed, zoneout_h, zoneout_c, state_dropout, candidate_dropout};
  return layer_forward({x, weights, h0, c0, lengths, batch_sizes, cell, directions, batch_first, false,
                        packed ? &*packed : nullptr, &options},
                       want_output, want_saved, *runner);
} catch (const std::bad_alloc&) {
  out_of_memory(x, weights);
}

// The op of exported and traced programs: the forward alone. Its autograd, vmap and autocast are registered with the
// dispatcher (_exported.py), since such a program runs none of our Python around the op.
Tensors rnn_layer(Tensor x, Tensors weights, Maybe h0, Maybe c0, Maybe lengths, Maybe batch_sizes, Name cell,
                  int64_t directions, bool batch_first, bool want_output, Name impl, bool allow_tf32, Maybe resets,
                  Maybe h_reset, Maybe c_reset, Maybe seed, double zoneout_h, double zoneout_c, double state_dropout,
                  double candidate_dropout) {
  return rnn_forward(x, std::move(weights), h0, c0, lengths, batch_sizes, std::move(cell), directions, batch_first,
                     want_output, false, std::move(impl), allow_tf32, std::nullopt, resets, h_reset, c_reset, seed,
                     zoneout_h, zoneout_c, state_dropout, candidate_dropout);
}

// The weights of a layer, packed for the inference of many calls: `packed` of rnn_forward.
Tensor pack_weights(Tensors weights, Name cell, int64_t directions, Name impl, bool ids) try {
  return pack_layer(weights, cell, directions, ids, CpuRunner(impl.value));
} catch (const std::bad_alloc&) {
  fail("weights: expected a layer that fits into memory, but there is too little for ", shapes_of(weights));
}

Tensors rnn_backward(Maybe d_output, Maybe d_h_n, Maybe d_c_n, Tensor x, Tensors weights, Maybe h0, Maybe c0,
                     Maybe lengths, Maybe batch_sizes, Tensor output, Tensor saved, Name cell, int64_t directions,
                     bool batch_first, bool want_d_x, bool want_d_weights, int64_t samples, Name impl, bool allow_tf32,
                     Maybe resets, Maybe h_reset, Maybe c_reset, Maybe seed, double zoneout_h, double zoneout_c,
                     double state_dropout, double candidate_dropout) try {
  check_given("x", x);
  const ScopedRunner runner(x, impl, allow_tf32);
  const LayerOptions options{resets, h_reset, c_reset, seed, zoneout_h, zoneout_c, state_dropout, candidate_dropout};
  return layer_backward(
      {x, weights, h0, c0, lengths, batch_sizes, cell, directions, batch_first, false, nullptr, &options}, d_output,
      d_h_n, d_c_n, output, saved, want_d_x, want_d_weights, samples, *runner);
} catch (const std::bad_alloc&) {
  out_of_memory(x, weights);
}

}  // namespace
}  // namespace sf

// What has a default was added later: programs that were exported without it still load.
#define SF_OPTIONS                                                                                                \
  "Tensor? resets=None, Tensor? h_reset=None, Tensor? c_reset=None, Tensor? seed=None, float zoneout_h=0, float " \
  "zoneout_c=0, float state_dropout=0, float candidate_dropout=0) -> Tensor[]"
STABLE_TORCH_LIBRARY(seqcls_fast, m) {
  m.def(
      "rnn_forward(Tensor x, Tensor[] weights, Tensor? h0, Tensor? c0, Tensor? lengths, Tensor? batch_sizes, str cell, "
      "int directions, bool batch_first, bool want_output, bool want_saved, str impl, bool allow_tf32=False, "
      "Tensor? packed=None, " SF_OPTIONS);
  m.def("pack_weights(Tensor[] weights, str cell, int directions, str impl, bool ids=False) -> Tensor");
  m.def(
      "rnn_layer(Tensor x, Tensor[] weights, Tensor? h0, Tensor? c0, Tensor? lengths, Tensor? batch_sizes, str cell, "
      "int directions, bool batch_first, bool want_output, str impl, bool allow_tf32=False, " SF_OPTIONS);
  m.def(
      "rnn_backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor x, Tensor[] weights, Tensor? h0, Tensor? "
      "c0, Tensor? lengths, Tensor? batch_sizes, Tensor output, Tensor saved, str cell, int directions, bool "
      "batch_first, bool want_d_x, bool want_d_weights, int samples, str impl, bool allow_tf32=False, " SF_OPTIONS);
}
#undef SF_OPTIONS

#define SF_IMPLEMENT(m)                               \
  m.impl("rnn_forward", TORCH_BOX(&sf::rnn_forward)); \
  m.impl("rnn_layer", TORCH_BOX(&sf::rnn_layer));     \
  m.impl("rnn_backward", TORCH_BOX(&sf::rnn_backward));

STABLE_TORCH_LIBRARY_IMPL(seqcls_fast, CPU, m) {
  SF_IMPLEMENT(m)
  m.impl("pack_weights", TORCH_BOX(&sf::pack_weights));
}
#if defined(SF_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(seqcls_fast, CUDA, m) { SF_IMPLEMENT(m) }
#endif
#undef SF_IMPLEMENT
