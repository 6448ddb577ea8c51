// The only file that sees torch tensors: op schemas, every argument check, allocation and registration.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.h"
#include "../core/cells.h"
#include "../cpu/host/backend.h"
#include "runner.h"
#include "stable_abi.h"
#if defined(SF_WITH_CUDA)
#include "../cuda/host/runner.h"
// absent from a torch without CUDA, where nothing calls them
#pragma weak torch_get_current_cuda_blas_handle
#pragma weak aoti_torch_get_current_cuda_stream
#endif

namespace sf {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;
using Shape = std::vector<int64_t>;
using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

// A str argument. torch's own conversion to std::string leaks the string it makes (2.13).
struct Name {
  std::string value;
};

}  // namespace sf

namespace torch::stable::detail {
template <>
struct ToImpl<sf::Name> {
  static sf::Name call(StableIValue value, uint64_t, bool) {
    StringHandle handle = to<StringHandle>(value);
    const char* data = nullptr;
    size_t length = 0;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    sf::Name name{std::string(data, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return name;
  }
};
}  // namespace torch::stable::detail

namespace sf {
namespace {

// ---- Checks: each a sentence that names the argument, what was expected and what came

using Dims = std::initializer_list<int64_t>;

using sf::text;

const char* text(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    default:
      return "another dtype";
  }
}

std::string text(const torch::stable::Device& device) {
  if (device.type() == DeviceType::CPU) return "the CPU";
  if (device.type() == DeviceType::CUDA) return "cuda:" + std::to_string(device.index());
  return "another device";
}

// No machine has memory for so many elements. Sizes that a call computes are products of a few of these, and sums of
// such products, so none of them overflows 64 bits.
constexpr int64_t kMostElements = int64_t{1} << 48;

// A dimension of size 0 counts as 1, as the other sizes are used all the same.
template <class Sizes>
void check_elements(const char* name, const Sizes& sizes) {
  int64_t count = 1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int64_t size = std::max<int64_t>(sizes.begin()[i], 1);
    if (size > kMostElements / count)
      fail(name, ": expected at most ", kMostElements, " elements but got shape ", text(sizes));
    count *= size;
  }
}

// Kernels read wherever sizes and strides lead. But the storage of a tensor may have been freed or made smaller since
// the tensor was made (untyped_storage().resize_), and an expanded tensor may claim any size.
void check_memory(const char* name, const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  check_elements(name, sizes);
  if (t.numel() == 0) return;
  int64_t storage = 0, last = t.storage_offset();  // bytes; the element at the end of every dimension
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &storage));
  bool inside = true;
  for (size_t i = 0; inside && i < sizes.size(); ++i) {
    int64_t reach = 0;
    inside = !__builtin_mul_overflow(sizes[i] - 1, strides[i], &reach) && !__builtin_add_overflow(last, reach, &last);
  }
  const auto element = static_cast<int64_t>(t.element_size());
  if (!inside || last >= storage / element)
    fail(name, ": expected memory for shape ", text(sizes), " with strides ", text(strides), " from element ",
         t.storage_offset(), " on, but its storage holds ", storage / element, " elements");
}

// The dispatcher hands None on as a tensor without anything.
void check_given(const char* name, const Tensor& t) {
  if (!t.defined()) fail(name, ": expected a tensor but got None");
}

template <class Expected>
void check_tensor(const char* name, const Tensor& t, const torch::stable::Device& device, ScalarType type,
                  const Expected& shape) {
  if (t.device() != device)
    fail(name, ": expected a tensor on ", text(device), ", like the input, but got one on ", text(t.device()));
  if (t.scalar_type() != type) fail(name, ": expected dtype ", text(type), " but got ", text(t.scalar_type()));
  const auto sizes = t.sizes();
  bool same = sizes.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = sizes[i] == shape.begin()[i];
  if (!same) fail(name, ": expected shape ", text(shape), " but got ", text(sizes));
  check_memory(name, t);
}

Dtype dtype_of(const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      fail(name, ": expected dtype float32, float64, bfloat16 or float16 but got ", text(t.scalar_type()));
  }
  return Dtype::kFloat32;
}

ScalarType scalar_of(Dtype d) {
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half};
  return kTypes[static_cast<int>(d)];
}

// ---- Implementations

class CpuRunner : public Runner {
 public:
  explicit CpuRunner(const std::string& impl) : kernels_(kernels_for(impl)) {}
  Dtype buffer_dtype(Dtype storage) const override {  // the compute type
    return storage == Dtype::kFloat64 ? storage : Dtype::kFloat32;
  }
  void forward(const Forward& f) override { run_forward(kernels_, f); }
  void backward(const Backward& b) override { run_backward(kernels_, b); }
  void weight_grad(const WeightGrad& g) override { run_weight_grad(kernels_, g); }

 private:
  const Kernels& kernels_;
};

#if defined(SF_WITH_CUDA)
bool sync_check() {
  const char* value = std::getenv("SEQCLS_SYNC_CHECK");
  return value && std::string(value) == "1";
}

// A word that kernels raise and the next call reads, in memory both see. It lives as long as the process.
uint32_t* error_word() {
  static uint32_t* const word = [] {
    AtenTensorHandle handle;
    const int64_t size = 1, stride = 1;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided_pinned(
        1, &size, &stride, torch::stable::detail::to<int32_t>(torch::stable::detail::from(ScalarType::Int)),
        aoti_torch_device_type_cpu(), -1, &handle));
    auto* kept = new Tensor(handle);
    auto* data = static_cast<uint32_t*>(kept->data_ptr());
    *data = 0;
    return data;
  }();
  return word;
}

// Ascending, equal ones as they come, and where each was.
std::pair<Tensor, Tensor> sort_stably(const Tensor& keys) {
  using torch::stable::detail::from, torch::stable::detail::to;
  StableIValue stack[] = {from(keys), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}
#endif

// The runner of a call, and what must live until its work is queued.
struct Call {
  std::unique_ptr<Runner> runner;
  Tensors kept;  // scratch

  Call(const Tensor& x, const Name& impl) {
    if (x.device().type() == DeviceType::CPU) {
      for (const Plugin* plugin : plugins())
        if (std::count(plugin->names.begin(), plugin->names.end(), impl.value)) runner = plugin->make(impl.value);
      // a program traced on a GPU may say so
      const std::string tf32 = "-tf32", &name = impl.value;
      const bool said = name.size() > tf32.size() && name.compare(name.size() - tf32.size(), tf32.size(), tf32) == 0;
      if (!runner) runner = std::make_unique<CpuRunner>(said ? name.substr(0, name.size() - tf32.size()) : name);
      return;
    }
#if defined(SF_WITH_CUDA)
    uint32_t* const error = error_word();
    if (*error) fail(cuda::sentence_of(std::exchange(*error, 0)));  // (a store each time could lose a fault)
    device = x.device();
    guard.emplace(device.index());
    cuda::TorchDevice found{};
    found.index = device.index();
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(found.index, &found.stream));
    TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&found.cublas));
    found.keep = this;
    found.allocate = [](void* keep, int64_t bytes) {
      auto& call = *static_cast<Call*>(keep);
      call.kept.push_back(
          torch::stable::empty({std::max<int64_t>(bytes, 1)}, ScalarType::Byte, std::nullopt, call.device));
      return call.kept.back().data_ptr();
    };
    found.sort = [](void* keep, const int64_t* keys, int64_t count) {
      auto& call = *static_cast<Call*>(keep);
      const auto [sorted, order] = sort_stably(
          torch::stable::from_blob(const_cast<int64_t*>(keys), Shape{count}, Shape{1}, call.device, ScalarType::Long));
      call.kept.insert(call.kept.end(), {sorted, order});
      return cuda::Sorted{static_cast<const int64_t*>(sorted.data_ptr()),
                          static_cast<const int64_t*>(order.data_ptr())};
    };
    found.error_word = error;
    found.check_launches = sync_check();
    runner = cuda::make_runner(found, impl.value);
#else
    fail("x: expected a tensor on the CPU, as this build has no CUDA, but got one on ", text(x.device()));
#endif
  }
  Call(const Call&) = delete;  // the runner points to it

 private:
  torch::stable::Device device{DeviceType::CPU, -1};
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
};

// ---- Tensors

constexpr int64_t kPooledBytes = 1 << 20;  // from here on a fresh buffer's page faults cost more than the pool

Tensor empty(const Shape& shape, Dtype dtype, const torch::stable::Device& device) {
  check_elements("results", shape);
  if (device.type() != DeviceType::CPU) return torch::stable::empty(shape, scalar_of(dtype), std::nullopt, device);
  int64_t count = 1;
  Shape strides(shape.size());
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = count;
    count *= shape[i] ? shape[i] : 1;
  }
  int64_t elements = 1;
  for (int64_t n : shape) elements *= n;
  if (elements * size_of(dtype) >= kPooledBytes) {
    return torch::stable::from_blob(pool_take(elements * size_of(dtype)), shape, strides, device, scalar_of(dtype),
                                    pool_give);
  }
  AtenTensorHandle handle;
  const auto type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(scalar_of(dtype)));
  if (aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(), type,
                               aoti_torch_device_type_cpu(), -1, &handle) != TORCH_SUCCESS)
    throw std::bad_alloc();
  return Tensor(handle);
}

char* data_of(const Tensor& t) { return static_cast<char*>(t.data_ptr()); }

// A state (D, B, width), gradient of one, or None: rows of direction d.
Rows state_rows(const Tensor& state, Dtype dtype, int d) {
  Rows rows;
  const auto strides = state.strides();
  rows.data = data_of(state) + d * strides[0] * size_of(dtype);
  rows.dtype = dtype;
  rows.b_stride = strides[1];
  rows.stride = strides[2];
  return rows;
}

Rows state_rows(const Maybe& state, Dtype dtype, int d) { return state ? state_rows(*state, dtype, d) : Rows{}; }

// The tensors of one kind, one per direction, in the flat list that holds all of a layer's weights.
struct Kind {
  const Tensor* first = nullptr;
  int64_t count = 0;
  const Tensor& operator[](int64_t d) const { return first[d]; }
};

struct Weights {
  Kind w_ih, w_hh, b_ih, b_hh, w_hr;
};

// Per direction there are w_ih and w_hh, then both biases or none, then w_hr or none.
Weights by_kind(const Tensors& all, int64_t directions) {
  if (directions < 1 || directions > kMaxDirections) fail("directions: expected 1 or 2 but got ", directions);
  const auto n = static_cast<int64_t>(all.size()), each = n / directions;
  if (each < 2 || each > 5 || n % directions) fail("weights: expected 2 to 5 tensors per direction but got ", n);
  const Tensor* next = all.data();
  const auto take = [&](bool present) {
    if (!present) return Kind{};
    next += directions;
    return Kind{next - directions, directions};
  };
  Weights w;
  w.w_ih = take(true);
  w.w_hh = take(true);
  w.b_ih = take(each >= 4);
  w.b_hh = take(each >= 4);
  w.w_hr = take(each == 3 || each == 5);
  return w;
}

Matrix matrix_of(const Kind& kind, int d) {
  if (!kind.count) return {};
  const Tensor& w = kind[d];
  const auto sizes = w.sizes(), strides = w.strides();
  if (sizes.size() == 1) return {data_of(w), sizes[0], 1, strides[0], 1};
  return {data_of(w), sizes[0], sizes[1], strides[0], strides[1]};
}

// A checked layer with what its plain struct points to.
struct LayerCall {
  Layer layer{};
  const CellInfo* info = nullptr;
  bool batch_first = false;
  Dtype buffer_dtype = Dtype::kFloat32;
  torch::stable::Device device{DeviceType::CPU, -1};
  std::vector<int64_t> lengths, t_row;
  Tensors kept;  // what the layer points to, where that is not memory of the arguments

  Tensor empty(const Shape& shape, Dtype dtype) const { return sf::empty(shape, dtype, device); }
  template <class Expected>
  void check(const char* name, const Tensor& t, const Expected& shape) const {
    check_tensor(name, t, device, scalar_of(layer.dtype), shape);
  }

  const int64_t* packed_offsets = nullptr;  // t_row where the kernels read it

  bool packed() const { return !t_row.empty(); }
  // shape of a tensor of rows, in the input's order or (time-major buffers) in ours
  Shape outer(bool time_major = false) const {
    if (packed()) return {t_row.back()};
    if (batch_first && !time_major) return {layer.B, layer.T};
    return {layer.T, layer.B};
  }
  Shape shape(int64_t width) const {
    Shape s = outer();
    s.push_back(width);
    return s;
  }
  Shape buffer_shape(int64_t width) const {
    Shape s = outer(true);
    s.insert(s.begin(), layer.directions);
    s.push_back(width);
    return s;
  }
  // rows of an input-like tensor; column: first of the direction's columns
  Rows rows(const Tensor& t, int64_t column = 0) const {
    Rows r;
    r.dtype = layer.dtype;
    const auto strides = t.strides();
    r.stride = strides[strides.size() - 1];
    r.data = data_of(t) + column * r.stride * size_of(layer.dtype);
    if (packed()) {
      r.t_stride = r.b_stride = strides[0];
      r.t_row = packed_offsets;
    } else {
      r.t_stride = strides[batch_first ? 1 : 0];
      r.b_stride = strides[batch_first ? 0 : 1];
    }
    return r;
  }
  // rows of a contiguous time-major buffer
  Rows buffer_rows(const Tensor& t, int d) const {
    Rows r;
    r.dtype = buffer_dtype;
    const auto sizes = t.sizes();
    const int64_t width = sizes[sizes.size() - 1], per_step = packed() ? 1 : layer.B;
    r.data = data_of(t) + d * (t.numel() / layer.directions) * size_of(r.dtype);
    r.b_stride = width;
    r.t_stride = per_step * width;
    r.t_row = packed_offsets;
    return r;
  }
  int64_t saved_width() const { return info->saved * padded(layer.H); }
  int64_t gates_width() const { return info->slots * layer.H + (layer.P ? layer.P + layer.H : 0); }
};

void read_lengths(LayerCall& call, const Tensor& lengths) {
  const int64_t B = call.layer.B, T = call.layer.T;
  check_tensor("lengths", lengths, call.device, ScalarType::Long, Dims{B});
  if (call.device.type() != DeviceType::CPU) {  // values out of range are clamped where they are
    call.kept.push_back(torch::stable::contiguous(lengths));
    call.layer.lengths = static_cast<const int64_t*>(call.kept.back().data_ptr());
    return;
  }
  // (volatile: another thread may write to them, and each is read once)
  const auto* values = static_cast<const volatile int64_t*>(lengths.data_ptr());
  const int64_t stride = lengths.strides()[0];
  call.lengths.resize(static_cast<size_t>(B));
  int64_t low = 0, high = 0;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t value = values[b * stride];
    low = b ? std::min(low, value) : value;
    high = b ? std::max(high, value) : value;
    call.lengths[static_cast<size_t>(b)] = value;
  }
  if (low < 0 || high > T) fail("lengths: expected values from 0 to T = ", T, " but got ", low, " to ", high);
}

// Row offsets and lengths of a packed sequence.
void read_batch_sizes(LayerCall& call, const Tensor& batch_sizes, int64_t rows) {
  if (batch_sizes.dim() != 1 || batch_sizes.scalar_type() != ScalarType::Long ||
      batch_sizes.device().type() != DeviceType::CPU) {
    fail("batch_sizes: expected a one-dimensional int64 CPU tensor");
  }
  check_memory("batch_sizes", batch_sizes);
  const int64_t T = batch_sizes.numel(), stride = T ? batch_sizes.strides()[0] : 1;
  // (volatile: another thread may write to them, and each is read once)
  const auto* values = static_cast<const volatile int64_t*>(batch_sizes.data_ptr());
  if (T <= 0) fail("batch_sizes: expected at least one step");
  if (T > rows) fail("batch_sizes: expected at most ", rows, " steps, as x has so many rows, but got ", T);
  call.layer.T = T;
  call.t_row.reserve(static_cast<size_t>(T) + 1);
  int64_t row = 0, before = rows;
  for (int64_t t = 0; t < T; ++t) {
    const int64_t n = values[t * stride];
    if (n < 1 || (t && n > before))
      fail("batch_sizes: expected positive values that never grow but got ", n, " at step ", t);
    if (n > rows - row) fail("batch_sizes: expected a sum of ", rows, ", the rows of x, but they sum to more");
    before = n;
    if (!t) {
      call.layer.B = n;
      call.lengths.assign(static_cast<size_t>(n), 0);
    }
    call.t_row.push_back(row);
    row += n;
    for (int64_t b = 0; b < n; ++b) ++call.lengths[static_cast<size_t>(b)];
  }
  if (row != rows) fail("batch_sizes: expected a sum of ", rows, ", the rows of x, but they sum to ", row);
  call.t_row.push_back(row);
}

// What every op is told about the input's side of the layer. x holds features, or ids of columns of w_ih: then the
// layer's dtype is that of the weights.
LayerCall describe_input(const Tensor& x, const Tensors& weights, const Maybe& lengths, const Maybe& batch_sizes,
                         const Name& cell, bool batch_first, const Runner& runner) {
  LayerCall call;
  call.device = x.device();
  call.info = &kCells[index_in("cell", kCellNames, cell.value)];
  call.batch_first = batch_first;
  Layer& l = call.layer;
  l.cell = static_cast<int>(call.info - kCells);
  l.gates = call.info->gates;
  const bool ids = x.scalar_type() == ScalarType::Long;
  l.dtype = ids && !weights.empty() ? dtype_of("weights", weights.back()) : dtype_of("x", x);
  call.buffer_dtype = runner.buffer_dtype(l.dtype);
  const auto sizes = x.sizes();
  const size_t outer = batch_sizes ? 1 : 2;
  if (sizes.size() != outer + !ids)
    fail("x: expected ", batch_sizes ? "packed rows (N" : "(T, B", ids ? ") of ids" : ", I)", " but got shape ",
         text(sizes));
  check_memory("x", x);
  if (batch_sizes) {
    if (lengths) fail("lengths: expected None with batch_sizes, which already say where rows end");
    read_batch_sizes(call, *batch_sizes, sizes[0]);
    l.packed_rows = sizes[0];
  } else {
    l.T = sizes[batch_first ? 1 : 0];
    l.B = sizes[batch_first ? 0 : 1];
    if (l.T <= 0) fail("x: expected at least one step but got ", text(sizes));
    if (lengths) read_lengths(call, *lengths);
  }
  l.x = call.rows(x);
  if (ids) {
    static const int64_t none = 0;  // an empty tensor has no address
    l.ids = l.x.data ? reinterpret_cast<const int64_t*>(l.x.data) : &none;
    l.x.data = nullptr;
    return call;
  }
  l.I = sizes[outer];
  if (l.I <= 0) fail("x: expected at least one feature but got ", text(sizes));
  return call;
}

// The struct's pointers into the vectors, once the call has its final place; copies of them where the device is
// another.
void link(LayerCall& call) {
  const auto place = [&](const std::vector<int64_t>& values) -> const int64_t* {
    if (call.device.type() == DeviceType::CPU) return values.data();
    const Shape shape{static_cast<int64_t>(values.size())}, stride{1};
    const Tensor here = torch::stable::from_blob(const_cast<int64_t*>(values.data()), shape, stride,
                                                 torch::stable::Device(DeviceType::CPU, -1), ScalarType::Long);
    Tensor there = torch::stable::empty(shape, ScalarType::Long, std::nullopt, call.device);
    torch::stable::copy_(there, here, true);  // from pageable memory: read before this returns
    call.kept.push_back(there);
    return static_cast<const int64_t*>(there.data_ptr());
  };
  if (!call.lengths.empty()) call.layer.lengths = place(call.lengths);
  if (call.packed()) {
    call.layer.host_t_row = call.t_row.data();
    call.layer.x.t_row = call.packed_offsets = place(call.t_row);
  }
}

void describe_weights(LayerCall& call, Tensors& weights, int64_t directions, const Maybe& h0, const Maybe& c0) {
  Layer& l = call.layer;
  if (call.device.type() != DeviceType::CPU)  // cuBLAS reads them
    for (size_t i = l.ids ? static_cast<size_t>(directions) : 0; i < weights.size(); ++i)
      weights[i] = torch::stable::contiguous(weights[i]);
  const auto [w_ih, w_hh, b_ih, b_hh, w_hr] = by_kind(weights, directions);
  l.directions = static_cast<int>(directions);
  const int64_t rows = w_ih[0].dim() == 2 ? w_ih[0].sizes()[0] : 0;
  if (rows <= 0 || rows % l.gates != 0)
    fail("w_ih: expected ", l.gates, " * hidden_size rows but got ", text(w_ih[0].sizes()));
  l.H = rows / l.gates;
  if (l.ids) l.I = w_ih[0].sizes()[1];
  if (l.I <= 0) fail("w_ih: expected at least one column but got ", text(w_ih[0].sizes()));
  if (w_hr.count) {
    if (!call.info->has_c) fail("w_hr: expected none for cell ", call.info->name);
    if (w_hr[0].dim() != 2 || w_hr[0].sizes()[0] <= 0)
      fail("w_hr: expected (proj_size, ", l.H, ") but got ", text(w_hr[0].sizes()));
    l.P = w_hr[0].sizes()[0];
  }
  const auto check_kind = [&](const char* name, const Kind& kind, Dims shape) {
    for (int64_t d = 0; d < kind.count; ++d) call.check(name, kind[d], shape);
  };
  check_kind("w_ih", w_ih, {rows, l.I});
  check_kind("w_hh", w_hh, {rows, l.out()});
  check_kind("b_ih", b_ih, {rows});
  check_kind("b_hh", b_hh, {rows});
  check_kind("w_hr", w_hr, {l.P, l.H});
  if (h0) call.check("h0", *h0, Dims{l.directions, l.B, l.out()});
  if (c0 && !call.info->has_c) fail("c0: expected None for cell ", call.info->name);
  if (c0) call.check("c0", *c0, Dims{l.directions, l.B, l.H});
  for (int d = 0; d < l.directions; ++d) {
    l.w_ih[d] = matrix_of(w_ih, d);
    l.w_hh[d] = matrix_of(w_hh, d);
    l.b_ih[d] = matrix_of(b_ih, d);
    l.b_hh[d] = matrix_of(b_hh, d);
    l.w_hr[d] = matrix_of(w_hr, d);
    l.h0[d] = state_rows(h0, l.dtype, d);
    l.c0[d] = state_rows(c0, l.dtype, d);
  }
}

void check_buffer(const char* name, const Tensor& t, const LayerCall& call, int64_t width) {
  check_tensor(name, t, call.device, scalar_of(call.buffer_dtype), call.buffer_shape(width));
  if (!t.is_contiguous()) fail(name, ": expected a contiguous tensor");
}

[[noreturn]] void out_of_memory(const Tensor& x, const Tensors& weights) {
  std::string shapes;
  for (size_t i = 0; i < std::min<size_t>(weights.size(), 10); ++i) shapes += " " + text(weights[i].sizes());
  fail("x: expected a layer that fits into memory, but there is too little for x of shape ", text(x.sizes()),
       " and weights of shapes", shapes);
}

// ---- The ops

// Returns h_n, then c_n of an LSTM, output if wanted or saved, and saved if wanted: an absent tensor would cost as much
// as a present one on its way through the dispatcher.
Tensors rnn_forward(Tensor x, Tensors weights, Maybe h0, Maybe c0, Maybe lengths, Maybe batch_sizes, Name cell,
                    int64_t directions, bool batch_first, bool want_output, bool want_saved, Name impl) try {
  check_given("x", x);
  const Call implementation(x, impl);
  Runner& runner = *implementation.runner;
  LayerCall call = describe_input(x, weights, lengths, batch_sizes, cell, batch_first, runner);
  link(call);
  describe_weights(call, weights, directions, h0, c0);
  const Layer& l = call.layer;
  // nothing has a place for each step, and what lies beyond the longest row does nothing
  if (!want_output && !want_saved && !call.lengths.empty())
    call.layer.T = std::max<int64_t>(1, *std::max_element(call.lengths.begin(), call.lengths.end()));
  Forward forward{};
  forward.layer = l;
  Tensors results;
  results.reserve(4);
  results.push_back(call.empty({l.directions, l.B, l.out()}, l.dtype));
  for (int d = 0; d < l.directions; ++d) forward.h_n[d] = state_rows(results.back(), l.dtype, d);
  if (call.info->has_c) {
    results.push_back(call.empty({l.directions, l.B, l.H}, l.dtype));
    for (int d = 0; d < l.directions; ++d) forward.c_n[d] = state_rows(results.back(), l.dtype, d);
  }
  if (want_output || want_saved) {
    results.push_back(call.empty(call.shape(l.directions * l.out()), l.dtype));
    for (int d = 0; d < l.directions; ++d) forward.output[d] = call.rows(results.back(), d * l.out());
  }
  if (want_saved) {
    results.push_back(call.empty(call.buffer_shape(call.saved_width()), call.buffer_dtype));
    for (int d = 0; d < l.directions; ++d) forward.saved[d] = call.buffer_rows(results.back(), d);
  }
  if (l.B > 0) runner.forward(forward);
  return results;
} catch (const std::bad_alloc&) {
  out_of_memory(x, weights);
}

// What exported and traced programs hold: forward alone, its autograd registered with the dispatcher (_exported.py).
Tensors rnn_layer(Tensor x, Tensors weights, Maybe h0, Maybe c0, Maybe lengths, Maybe batch_sizes, Name cell,
                  int64_t directions, bool batch_first, bool want_output, Name impl) {
  return rnn_forward(x, std::move(weights), h0, c0, lengths, batch_sizes, std::move(cell), directions, batch_first,
                     want_output, false, std::move(impl));
}

// Gradients of all weights in their order, from those of the gates. With samples, the batch is that many equal
// stretches, and each gets gradients of its own: (samples, ...).
Tensors weight_gradients(const LayerCall& call, const Backward& backward, const Tensors& weights, int64_t samples,
                         Runner& runner) {
  const Layer& l = call.layer;
  const int64_t directions = l.directions;
  Tensors grads;
  grads.reserve(weights.size());
  for (size_t k = 0; k < weights.size(); ++k) {
    const auto sizes = weights[k].sizes();
    Shape shape(sizes.begin(), sizes.end());
    if (l.ids && k < static_cast<size_t>(directions)) std::swap(shape[0], shape[1]);  // column by column
    if (samples) shape.insert(shape.begin(), samples);
    grads.push_back(call.empty(shape, l.dtype));
  }
  WeightGrad grad{};
  grad.layer = l;
  grad.samples = std::max<int64_t>(samples, 1);
  const auto [w_ih, w_hh, b_ih, b_hh, w_hr] = by_kind(grads, directions);
  for (int d = 0; d < l.directions; ++d) {
    grad.output[d] = backward.output[d];
    grad.d_gates[d] = backward.d_gates[d];
    grad.d_w_ih[d] = data_of(w_ih[d]);
    grad.d_w_hh[d] = data_of(w_hh[d]);
    if (b_ih.count) grad.d_b_ih[d] = data_of(b_ih[d]);
    if (b_hh.count) grad.d_b_hh[d] = data_of(b_hh[d]);
    if (w_hr.count) grad.d_w_hr[d] = data_of(w_hr[d]);
  }
  if (l.B > 0) {
    runner.weight_grad(grad);
  } else {
    for (Tensor& g : grads) torch::stable::zero_(g);
  }
  if (l.ids)
    for (int d = 0; d < l.directions; ++d)
      grads[static_cast<size_t>(d)] = torch::stable::transpose(grads[static_cast<size_t>(d)], -1, -2);
  return grads;
}

// Returns the gradients of x if wanted, of h0 and c0 where there are any, and of the weights if wanted.
Tensors rnn_backward(Maybe d_output, Maybe d_h_n, Maybe d_c_n, Tensor x, Tensors weights, Maybe h0, Maybe c0,
                     Maybe lengths, Maybe batch_sizes, Tensor output, Tensor saved, Name cell, int64_t directions,
                     bool batch_first, bool want_d_x, bool want_d_weights, int64_t samples, Name impl) try {
  check_given("x", x);
  const Call implementation(x, impl);
  Runner& runner = *implementation.runner;
  LayerCall call = describe_input(x, weights, lengths, batch_sizes, cell, batch_first, runner);
  link(call);
  describe_weights(call, weights, directions, h0, c0);
  const Layer& l = call.layer;
  const Shape state{l.directions, l.B, l.out()}, c_state{l.directions, l.B, l.H};
  check_given("output", output);
  check_given("saved", saved);
  call.check("output", output, call.shape(l.directions * l.out()));
  check_buffer("saved", saved, call, call.saved_width());
  if (d_output) call.check("d_output", *d_output, call.shape(l.directions * l.out()));
  if (d_h_n) call.check("d_h_n", *d_h_n, state);
  if (d_c_n) call.check("d_c_n", *d_c_n, c_state);
  if (want_d_x && l.ids) fail("want_d_x: expected False, as x holds ids, which have no gradient");
  if (samples < 0 || (samples && l.B % samples))
    fail("samples: expected a divisor of the batch ", l.B, " but got ", samples);
  if (samples && batch_sizes) fail("samples: expected 0 with batch_sizes but got ", samples);
  Tensors results;
  results.reserve(3 + weights.size());
  const auto add = [&](const Shape& shape) -> const Tensor& {
    results.push_back(call.empty(shape, l.dtype));
    return results.back();
  };
  const Tensor d_gates = call.empty(call.buffer_shape(call.gates_width()), call.buffer_dtype);
  Backward backward{};
  backward.layer = l;
  if (want_d_x) backward.d_x = call.rows(add(call.shape(l.I)));
  const Tensor* d_h0 = h0 ? &add(state) : nullptr;
  const Tensor* d_c0 = c0 ? &add(c_state) : nullptr;
  for (int d = 0; d < l.directions; ++d) {
    backward.output[d] = call.rows(output, d * l.out());
    backward.saved[d] = call.buffer_rows(saved, d);
    if (d_output) backward.d_output[d] = call.rows(*d_output, d * l.out());
    backward.d_h_n[d] = state_rows(d_h_n, l.dtype, d);
    backward.d_c_n[d] = state_rows(d_c_n, l.dtype, d);
    backward.d_gates[d] = call.buffer_rows(d_gates, d);
    if (d_h0) backward.d_h0[d] = state_rows(*d_h0, l.dtype, d);
    if (d_c0) backward.d_c0[d] = state_rows(*d_c0, l.dtype, d);
  }
  if (l.B > 0) runner.backward(backward);
  if (want_d_weights)
    for (Tensor& grad : weight_gradients(call, backward, weights, samples, runner)) results.push_back(std::move(grad));
  return results;
} catch (const std::bad_alloc&) {
  out_of_memory(x, weights);
}

}  // namespace
}  // namespace sf

STABLE_TORCH_LIBRARY(seqcls_fast, m) {
  m.def(
      "rnn_forward(Tensor x, Tensor[] weights, Tensor? h0, Tensor? c0, Tensor? lengths, Tensor? batch_sizes, str cell, "
      "int directions, bool batch_first, bool want_output, bool want_saved, str impl) -> Tensor[]");
  m.def(
      "rnn_layer(Tensor x, Tensor[] weights, Tensor? h0, Tensor? c0, Tensor? lengths, Tensor? batch_sizes, str cell, "
      "int directions, bool batch_first, bool want_output, str impl) -> Tensor[]");
  m.def(
      "rnn_backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor x, Tensor[] weights, Tensor? h0, Tensor? "
      "c0, Tensor? lengths, Tensor? batch_sizes, Tensor output, Tensor saved, str cell, int directions, bool "
      "batch_first, bool want_d_x, bool want_d_weights, int samples, str impl) -> Tensor[]");
}

#define SF_IMPLEMENT(m)                               \
  m.impl("rnn_forward", TORCH_BOX(&sf::rnn_forward)); \
  m.impl("rnn_layer", TORCH_BOX(&sf::rnn_layer));     \
  m.impl("rnn_backward", TORCH_BOX(&sf::rnn_backward));

STABLE_TORCH_LIBRARY_IMPL(seqcls_fast, CPU, m){SF_IMPLEMENT(m)}
#if defined(SF_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(seqcls_fast, CUDA, m) {
  SF_IMPLEMENT(m)
}
#endif
#undef SF_IMPLEMENT
