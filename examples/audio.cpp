// An effect for audio: blocks of samples through a recurrent layer and a linear layer, as a host's audio callback calls
// it. Everything is allocated when the effect is made; process() allocates nothing, takes no lock and makes no system
// call. `make examples` builds build/runtime/audio, which reads and writes samples as raw float32:
//
//     build/runtime/audio model.sfm head.bin < in.raw > out.raw
//
// model.sfm is an LSTM or GRU of one feature by to_runtime(); head.bin the weights of the linear layer, then its bias.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <vector>

#include "seqcls.h"

class Effect {
 public:
  Effect(const char* model_path, const char* head_path, int64_t largest_block) : largest_block_(largest_block) {
    seqcls_model* model = nullptr;
    check(seqcls_open(model_path, nullptr, &model));
    const std::unique_ptr<seqcls_model, decltype(&seqcls_close)> opened(model, seqcls_close);
    seqcls_info info;
    check(seqcls_describe(model, &info));
    if (info.features != 1 || info.is_classifier || !info.is_streamable)
      throw std::runtime_error("model: expected layers in one direction that take one sample a step");
    head_.resize(static_cast<size_t>(info.outputs) + 1);
    std::ifstream file(head_path, std::ios::binary);
    const auto bytes = static_cast<std::streamsize>(head_.size() * sizeof(float));
    if (!file.read(reinterpret_cast<char*>(head_.data()), bytes))
      throw std::runtime_error("head: expected a weight for each output of the layers, and a bias");
    outputs_.resize(static_cast<size_t>(info.outputs * largest_block));
    seqcls_stream* stream = nullptr;
    check(seqcls_stream_new(model, 1, largest_block, &stream));
    stream_.reset(stream);
  }

  // The callback, for any number of samples. `out` may be `in`. It is silent where the library refuses the samples.
  void process(const float* in, float* out, int64_t count) noexcept {
    for (int64_t begin = 0; begin < count; begin += largest_block_)
      process_block(in + begin, out + begin, std::min(largest_block_, count - begin));
  }

  void reset() noexcept { seqcls_reset(stream_.get(), -1); }

 private:
  void process_block(const float* in, float* out, int64_t count) noexcept {
    seqcls_call call = {};
    call.steps = count;
    call.x = in;
    call.out = outputs_.data();
    if (seqcls_run(stream_.get(), &call)) {
      std::fill_n(out, count, 0.0f);
      return;
    }
    const size_t width = head_.size() - 1;
    for (int64_t t = 0; t < count; ++t) {
      const float* const h = outputs_.data() + static_cast<size_t>(t) * width;
      float sum = head_[width];
      for (size_t i = 0; i < width; ++i) sum += head_[i] * h[i];
      out[t] = sum;
    }
  }

  static void check(seqcls_status status) {
    if (status) throw std::runtime_error(seqcls_error());
  }

  struct Close {
    void operator()(seqcls_stream* stream) const { seqcls_stream_close(stream); }
  };
  std::unique_ptr<seqcls_stream, Close> stream_;
  std::vector<float> head_, outputs_;
  const int64_t largest_block_;
};

int main(int count, char** arguments) try {
  constexpr int64_t kBlock = 64;
  if (count != 3) {
    std::fprintf(stderr, "usage: %s MODEL.sfm HEAD.bin < IN > OUT\n", arguments[0]);
    return 2;
  }
  Effect effect(arguments[1], arguments[2], kBlock);
  float block[kBlock];
  while (const size_t read = std::fread(block, sizeof *block, kBlock, stdin)) {
    effect.process(block, block, static_cast<int64_t>(read));
    std::fwrite(block, sizeof *block, read, stdout);
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
