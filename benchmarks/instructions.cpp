// Calls one kernel once inside measured(), so that callgrind can count its instructions. The arguments are CELL PASS,
// for instance "gru backward". It is linked with the AVX2 objects of the extension's own build: valgrind knows no
// AVX-512.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "../csrc/core/cells.h"
#include "../csrc/cpu/kernels/kernel_table.h"

namespace sf {
extern const Kernels kernels_avx2;
}

namespace {

using namespace sf;

// Chosen so that full tiles run as well as tiles with fewer rows or blocks.
constexpr int64_t T = 12, B = 20, I = 24, H = 48;

// Memory that lives as long as the process, aligned as the kernels ask for it.
char* memory(int64_t bytes) {
  const auto size = static_cast<size_t>((bytes + 128) / 64 * 64);
  char* p = static_cast<char*>(std::aligned_alloc(64, size));
  std::memset(p, 0, size);
  return p;
}
char* values(int64_t count) {
  float* p = reinterpret_cast<float*>(memory(4 * count));
  for (int64_t i = 0; i < count; ++i) p[i] = static_cast<float>((i * 37 % 101 - 50) / 300.0);
  return reinterpret_cast<char*>(p);
}
Rows rows(int64_t width) { return {values(T * B * width), Dtype::kFloat32, B * width, width}; }
Rows states() { return {values(B * H), Dtype::kFloat32, 0, H}; }
Matrix matrix(int64_t height, int64_t width) { return {values(height * width), height, width, width, 1}; }

}  // namespace

extern "C" __attribute__((noinline)) void measured(const std::function<void()>& run) { run(); }

int main(int, char** arguments) {
  int cell = 0;
  while (std::strcmp(kCellNames[cell], arguments[1]) != 0) ++cell;
  const Kernels& kernels = kernels_avx2;

  Layer layer{};
  layer.cell = cell;
  layer.directions = 1;
  layer.T = T, layer.B = B, layer.I = I, layer.H = H;
  layer.gates = kCells[cell].gates;
  const int64_t gate_rows = layer.gates * H;
  layer.w_ih[0] = matrix(gate_rows, I), layer.w_hh[0] = matrix(gate_rows, H);
  layer.b_ih[0] = matrix(gate_rows, 1), layer.b_hh[0] = matrix(gate_rows, 1);
  layer.x = rows(I);

  const Rows output = rows(H), saved = rows(kCells[cell].saved * padded(H)), d_gates = rows(kCells[cell].slots * H);
  std::vector<int64_t> order(B);
  for (int64_t b = 0; b < B; ++b) order[static_cast<size_t>(b)] = b;
  const auto task = [&](int64_t scratch, int64_t shared) {
    return Task{0, order.data(), B, 0, H, nullptr, nullptr, memory(scratch), memory(shared)};
  };

  const char* pass = arguments[2];
  if (std::strcmp(pass, "pack") == 0) {
    char* to = memory(kernels.packed_forward_size(layer));
    measured([&] { kernels.pack_forward(layer, 0, to); });
  } else if (std::strncmp(pass, "forward", 7) == 0) {
    Forward call{};
    call.layer = layer;
    call.output[0] = output, call.h_n[0] = states(), call.c_n[0] = states();
    if (std::strcmp(pass, "forward-saving") == 0) call.saved[0] = saved, call.training = true;
    char* packed = memory(kernels.packed_forward_size(layer));
    kernels.pack_forward(layer, 0, packed);
    const Task all = task(kernels.forward_scratch(call, B, false), kernels.forward_shared(call, B));
    measured([&] { kernels.forward({&call, kernels.packed_forward(layer, packed), all}); });
  } else if (std::strcmp(pass, "backward") == 0) {
    Backward call{};
    call.layer = layer;
    call.output[0] = output, call.saved[0] = saved, call.d_gates[0] = d_gates;
    call.d_output[0] = rows(H), call.d_h_n[0] = states();
    char* packed = memory(kernels.packed_backward_size(layer));
    kernels.pack_backward(layer, 0, packed, true, true);
    const Task all = task(kernels.backward_scratch(call, B), 0);
    measured([&] { kernels.backward({&call, kernels.packed_backward(layer, packed), all}); });
  } else if (std::strcmp(pass, "weight-grad") == 0) {
    WeightGrad call{};
    call.layer = layer;
    call.output[0] = output, call.d_gates[0] = d_gates, call.samples = 1;
    call.d_w_ih[0] = values(gate_rows * I), call.d_w_hh[0] = values(gate_rows * H);
    call.d_b_ih[0] = values(gate_rows), call.d_b_hh[0] = values(gate_rows);
    char* scratch = memory(kernels.weight_grad_scratch(call, 1));
    measured([&] { kernels.weight_grad({&call, 0, 0, 1, 0, order.data(), B, scratch}); });
  } else {
    std::fprintf(stderr, "expected a pass but got %s\n", pass);
    return 1;
  }
  return 0;
}
