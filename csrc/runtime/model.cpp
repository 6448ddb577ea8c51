// Takes the weights of a model out of its file, under the names that the module's state_dict() has, and packs them.
#include "model.h"

#include "../core/cells.h"
#include "refusal.h"

namespace sf::runtime {
namespace {

// The kernels for a model. Those of an instruction set for bfloat16 are compiled for it alone (see kInferenceAlone);
// for float32 they would be the same as those of the set before it.
const Kernels& choose(const std::string& isa, Dtype dtype) {
  const auto is_for_bfloat16 = [](const std::string& name) {
    const std::string end = "_bf16";
    return name.size() > end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
  };
  std::vector<std::string> choices = impl_names();
  choices.insert(choices.begin(), "auto");
  index_or_refuse(SEQCLS_BAD_ARGUMENT, "isa", choices, isa);
  const Kernels* found = &kernels_for(isa);
  if (dtype == Dtype::kBFloat16 || !is_for_bfloat16(found->name)) return *found;
  for (const std::string& name : impl_names())
    if (!is_for_bfloat16(name)) found = &kernels_for(name);
  return *found;
}

Matrix matrix(const char* data, int64_t rows, int64_t columns) { return {data, rows, columns, columns, 1}; }

Rows row(const char* data, Dtype dtype) {
  Rows rows;
  rows.data = const_cast<char*>(data);
  rows.dtype = dtype;
  return rows;
}

}  // namespace

Model::Model(std::unique_ptr<TensorFile> given, const std::string& isa)
    : file(std::move(given)), description(read_description(file->model())), kernels(choose(isa, description.dtype)) {
  const Description& d = description;
  if (d.vocabulary) embedding = weight("embedding.weight", {d.vocabulary, d.inputs});
  layers.reserve(static_cast<size_t>(d.layers));
  for (int k = 0; k < d.layers; ++k) layers.push_back(read_layer(k));
  if (d.is_classifier()) read_head();
  if (d.convolutions.there())
    convolutions = std::make_unique<const ConvolutionScores>(d, *file, choose(isa, Dtype::kFloat32));
  if (d.text.there) texts = std::make_unique<const Texts>(d, *file);
  file->check_all_taken();
  for (const Layer& layer : layers) pack(layer);
}

const char* Model::weight(const std::string& name, const std::vector<int64_t>& shape) {
  const bool narrow = description.dtype == Dtype::kBFloat16;
  return file->take(name, narrow ? FileTensor::Kind::kBFloat16 : FileTensor::Kind::kFloat32, shape).data;
}

Layer Model::read_layer(int k) {
  const Description& d = description;
  const CellInfo& cell = kCells[d.cell];
  Layer layer{};
  layer.cell = d.cell;
  layer.dtype = d.dtype;
  layer.directions = d.directions;
  layer.I = k ? d.width() : d.inputs;
  layer.H = d.hidden;
  layer.P = d.projection;
  layer.gates = cell.gates;
  layer.noise.zoneout_h = d.zoneout_h;
  layer.noise.zoneout_c = d.zoneout_c;
  layer.row_wise = cell.is_option || layer.noise.any();
  const int64_t rows = cell.gates * d.hidden;
  const std::string number = std::to_string(k);
  for (int direction = 0; direction < d.directions; ++direction) {
    const auto name = [&](const char* kind) {
      return std::string("encoder.") + kind + "_l" + number + (direction ? "_reverse" : "");
    };
    layer.w_ih[direction] = matrix(weight(name("weight_ih"), {rows, layer.I}), rows, layer.I);
    layer.w_hh[direction] = matrix(weight(name("weight_hh"), {rows, d.out()}), rows, d.out());
    if (d.bias) {
      layer.b_ih[direction] = matrix(weight(name("bias_ih"), {rows}), rows, 1);
      layer.b_hh[direction] = matrix(weight(name("bias_hh"), {rows}), rows, 1);
    }
    if (d.projection)
      layer.w_hr[direction] = matrix(weight(name("weight_hr"), {d.projection, d.hidden}), d.projection, d.hidden);
    for (int i = 0; i < cell.further_count; ++i) {
      const Further& kind = cell.further[i];
      const std::vector<int64_t> shape =
          kind.is_matrix ? std::vector<int64_t>{kind.rows, d.hidden} : std::vector<int64_t>{kind.rows * d.hidden};
      layer.further[i][direction] = matrix(weight(name(kind.name), shape), kind.rows, d.hidden);
    }
  }
  if (!d.learnt_states) return layer;
  const char* const h = weight("encoder.h_reset_l" + number, {d.directions, d.out()});
  const char* const c = cell.has_c ? weight("encoder.c_reset_l" + number, {d.directions, d.hidden}) : nullptr;
  for (int direction = 0; direction < d.directions; ++direction) {
    layer.h_reset[direction] = row(h + direction * d.out() * size_of(d.dtype), d.dtype);
    if (c) layer.c_reset[direction] = row(c + direction * d.hidden * size_of(d.dtype), d.dtype);
  }
  return layer;
}

void Model::pack(const Layer& layer) {
  const int64_t each = kernels.packed_forward_size(layer);
  packed_.emplace_back(each * layer.directions);
  for (int d = 0; d < layer.directions; ++d) {
    char* const to = packed_.back().data() + d * each;
    kernels.pack_forward(layer, d, to);
    packed.push_back(kernels.packed_forward(layer, to));
  }
}

void Model::read_head() {
  const Description& d = description;
  head.dtype = attention.dtype = d.dtype;
  head.weight = matrix(weight("head.weight", {d.classes, d.width()}), d.classes, d.width());
  head.bias = matrix(weight("head.bias", {d.classes}), d.classes, 1);
  head.x.dtype = head.result.dtype = d.dtype;
  packed_head = AlignedMemory(kernels.packed_linear_size(head));
  kernels.pack_linear(head, packed_head.data());
  if (d.pooling != PoolKind::kAttention) return;
  attention.pooling = Pooling::kAttention;
  attention.W = d.width();
  attention.weight = matrix(weight("attention.weight", {1, d.width()}), 1, d.width());
  attention.bias = matrix(weight("attention.bias", {1}), 1, 1);
  packed_attention = AlignedMemory(kernels.packed_pool_steps_size(attention));
  kernels.pack_pool_steps(attention, packed_attention.data());
}

}  // namespace sf::runtime
