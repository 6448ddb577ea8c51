// An opened model: its description, the kernels that run it, and its weights, packed once. It never changes, so that
// any number of threads may use it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../cpu/host/backend.h"
#include "convolution_scores.h"
#include "description.h"
#include "memory.h"
#include "tensor_file.h"
#include "texts.h"

namespace sf::runtime {

class Model {
 public:
  Model(std::unique_ptr<TensorFile> file, const std::string& isa);

  const std::string& about() const { return file->model(); }

  const std::unique_ptr<TensorFile> file;
  const Description description;
  const Kernels& kernels;
  // One for each layer of the network, with all that does not depend on a call, and its packed weights.
  std::vector<Layer> layers;
  std::vector<PackedForward> packed;  // those of all directions of a layer one after another
  const char* embedding = nullptr;    // (vocabulary, inputs), in the file
  Linear head{};
  PoolSteps attention{};
  AlignedMemory packed_head, packed_attention;
  std::unique_ptr<const ConvolutionScores> convolutions;  // null where the model has none
  std::unique_ptr<const Texts> texts;                     // null where the library turns no texts into ids

 private:
  const char* weight(const std::string& name, const std::vector<int64_t>& shape);
  Layer read_layer(int k);
  void pack(const Layer& layer);
  void read_head();

  std::vector<AlignedMemory> packed_;
};

}  // namespace sf::runtime
