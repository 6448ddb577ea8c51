// The same steps with RTNeural's models, whose shapes are known when they are compiled: SHAPES(X) lists X(I, H). Its
// rows of input are copied to aligned memory first, as its forward() demands.
#include <RTNeural/RTNeural.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace {

class Steps {
 public:
  virtual ~Steps() = default;
  virtual void reset() = 0;
  virtual void run(float* out, int64_t steps) = 0;
};

struct Weights {                           // torch's, the gates in RTNeural's order
  const float *w_ih, *w_hh, *b_ih, *b_hh;  // (G * H, I), (G * H, H), (G * H,) twice
};

std::vector<std::vector<float>> transposed(const float* from, int rows, int columns) {
  std::vector<std::vector<float>> to(static_cast<size_t>(columns), std::vector<float>(static_cast<size_t>(rows)));
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < columns; ++k) to[static_cast<size_t>(k)][static_cast<size_t>(i)] = from[i * columns + k];
  return to;
}

template <class Layer, int I, int H, int G>
class Model : public Steps {
  static constexpr int kRow = (I + 15) / 16 * 16;

 public:
  Model(const Weights& w, const float* x, int64_t count) : count_(count), x_(new Row[static_cast<size_t>(count)]) {
    Layer& layer = model_.template get<0>();
    layer.setWVals(transposed(w.w_ih, G * H, I));
    layer.setUVals(transposed(w.w_hh, G * H, H));
    std::vector<std::vector<float>> biases{{w.b_ih, w.b_ih + G * H}, {w.b_hh, w.b_hh + G * H}};
    if constexpr (G == 4) {
      for (size_t i = 0; i < biases[0].size(); ++i) biases[0][i] += biases[1][i];
      layer.setBVals(biases[0]);
    } else {
      layer.setBVals(biases);
    }
    for (int64_t i = 0; i < count; ++i) std::memcpy(x_[i].values, x + i * I, sizeof(float) * I);
    model_.reset();
  }
  void reset() override { model_.reset(); }
  void run(float* out, int64_t steps) override {
    for (int64_t i = 0; i < steps; ++i) {
      model_.forward(x_[i % count_].values);
      std::memcpy(out, model_.getOutputs(), sizeof(float) * H);
    }
  }

 private:
  struct alignas(64) Row {
    float values[kRow] = {};
  };
  int64_t count_;
  std::unique_ptr<Row[]> x_;
  RTNeural::ModelT<float, I, H, Layer> model_;
};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Null for a shape that was not compiled.
EXPORTED Steps* rtneural_open(int is_lstm, int64_t I, int64_t H, const float* w_ih, const float* w_hh,
                              const float* b_ih, const float* b_hh, const float* x, int64_t count) {
  const Weights w{w_ih, w_hh, b_ih, b_hh};
#define SHAPE(i, h)                                                                                           \
  if (I == i && H == h && is_lstm) return new Model<RTNeural::LSTMLayerT<float, i, h>, i, h, 4>(w, x, count); \
  if (I == i && H == h) return new Model<RTNeural::GRULayerT<float, i, h>, i, h, 3>(w, x, count);
  SHAPES(SHAPE)
  return nullptr;
}
EXPORTED void rtneural_close(Steps* steps) { delete steps; }
EXPORTED void rtneural_reset(Steps* steps) { steps->reset(); }
EXPORTED void rtneural_run(Steps* steps, float* out, int64_t steps_to_run) { steps->run(out, steps_to_run); }
