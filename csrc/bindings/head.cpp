// The ops for what follows the layers of a classifier, in inference on the CPU: linear, pool_steps and softmax. In each
// a row's result has the same bits in every batch. Their autograd, which runs torch's own operators, is in Python
// (seqcls_fast/_head.py).
#include <cmath>
#include <cstdint>
#include <new>
#include <string>

#include "arguments.h"
#include "tensors.h"

namespace sf {
namespace {

// Rows of a matrix; row i is at offset(0, i).
Rows rows_of(const Tensor& t, Dtype dtype) {
  const auto strides = t.strides();
  Rows rows;
  rows.data = data_of(t);
  rows.dtype = dtype;
  rows.b_stride = strides[0];
  rows.stride = strides[1];
  return rows;
}

// A tensor of one or two dimensions as a matrix; of one as a column.
Matrix matrix_from(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  if (sizes.size() == 1) return {data_of(t), sizes[0], 1, strides[0], 1};
  return {data_of(t), sizes[0], sizes[1], strides[0], strides[1]};
}

void check_rank(const char* name, const Tensor& t, size_t rank, const char* shape) {
  check_given(name, t);
  if (t.sizes().size() != rank) fail(name, ": expected ", shape, " but got shape ", text(t.sizes()));
}

// The weight and bias of a product over K columns.
void describe_product(const Tensor& x, Dtype dtype, const Tensor& weight, const Maybe& bias, int64_t columns, int64_t K,
                      Matrix& weight_of, Matrix& bias_of) {
  check_tensor("weight", weight, x.device(), scalar_of(dtype), Dims{columns, K});
  weight_of = matrix_from(weight);
  if (!bias) return;
  check_tensor("bias", *bias, x.device(), scalar_of(dtype), Dims{columns});
  bias_of = matrix_from(*bias);
}

[[noreturn]] void out_of_memory(const char* name, const Tensor& t) {
  fail(name, ": expected a result that fits into memory, but there is too little for shape ", text(t.sizes()));
}

Tensor linear(Tensor x, Tensor weight, Maybe bias, Name impl) try {
  check_rank("x", x, 2, "(N, K)");
  check_rank("weight", weight, 2, "(columns, K)");
  const Kernels& kernels = kernels_for(impl.value);
  Linear call{};
  call.dtype = dtype_of("x", x);
  check_memory("x", x);
  call.count = x.sizes()[0];
  const int64_t columns = weight.sizes()[0];
  describe_product(x, call.dtype, weight, bias, columns, x.sizes()[1], call.weight, call.bias);
  call.x = rows_of(x, call.dtype);
  const Tensor result = empty({call.count, columns}, call.dtype, x.device());
  call.result = rows_of(result, call.dtype);
  run_linear(kernels, call);
  return result;
} catch (const std::bad_alloc&) {
  out_of_memory("x", x);
}

Tensor pool_steps(Tensor output, Maybe lengths, Name pooling, Maybe weight, Maybe bias, Name impl) try {
  constexpr const char* kPoolings[] = {"mean", "max", "attention"};
  check_rank("output", output, 3, "(B, T, W)");
  const Kernels& kernels = kernels_for(impl.value);
  PoolSteps call{};
  call.pooling = static_cast<Pooling>(index_in("pooling", kPoolings, pooling.value));
  call.dtype = dtype_of("output", output);
  check_memory("output", output);
  const auto sizes = output.sizes(), strides = output.strides();
  call.B = sizes[0], call.T = sizes[1], call.W = sizes[2];
  call.output.data = data_of(output);
  call.output.dtype = call.dtype;
  call.output.b_stride = strides[0], call.output.t_stride = strides[1], call.output.stride = strides[2];
  LayerCall rows;  // holds a copy of the lengths
  rows.layer.B = call.B, rows.layer.T = call.T;
  if (lengths) {
    read_lengths(rows, *lengths);
    call.lengths = rows.lengths.data();
  }
  if (call.pooling == Pooling::kAttention) {
    if (!weight) fail("weight: expected a tensor for pooling attention but got None");
    describe_product(output, call.dtype, *weight, bias, 1, call.W, call.weight, call.bias);
  } else if (weight || bias) {
    fail(weight ? "weight" : "bias", ": expected None for pooling ", pooling.value);
  }
  const Tensor pooled = empty({call.B, call.W}, call.dtype, output.device());
  call.pooled = rows_of(pooled, call.dtype);
  run_pool_steps(kernels, call);
  return pooled;
} catch (const std::bad_alloc&) {
  out_of_memory("output", output);
}

Tensor softmax(Tensor logits, double temperature, Name impl) try {
  check_rank("logits", logits, 2, "(N, classes)");
  const Kernels& kernels = kernels_for(impl.value);
  if (!(temperature > 0) || std::isinf(temperature))
    fail("temperature: expected a finite number above 0 but got ", temperature);
  Softmax call{};
  call.dtype = dtype_of("logits", logits);
  check_memory("logits", logits);
  call.count = logits.sizes()[0];
  call.classes = logits.sizes()[1];
  call.temperature = temperature;
  call.logits = rows_of(logits, call.dtype);
  const Tensor result = empty({call.count, call.classes}, call.dtype, logits.device());
  call.probabilities = rows_of(result, call.dtype);
  run_softmax(kernels, call);
  return result;
} catch (const std::bad_alloc&) {
  out_of_memory("logits", logits);
}

}  // namespace
}  // namespace sf

STABLE_TORCH_LIBRARY_FRAGMENT(seqcls_fast, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, str impl) -> Tensor");
  m.def("pool_steps(Tensor output, Tensor? lengths, str pooling, Tensor? weight, Tensor? bias, str impl) -> Tensor");
  m.def("softmax(Tensor logits, float temperature, str impl) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(seqcls_fast, CPU, m) {
  m.impl("linear", TORCH_BOX(&sf::linear));
  m.impl("pool_steps", TORCH_BOX(&sf::pool_steps));
  m.impl("softmax", TORCH_BOX(&sf::softmax));
}
