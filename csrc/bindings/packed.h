// The weights of a layer, packed once for many calls in inference: the op pack_weights and the argument `packed`.
// They are a tensor of bytes: a header, which says what they were packed for, and what the kernels read. The sizes of a
// call come from its weights, never from a header, so a tensor of other bytes can give wrong numbers but no crash.
#pragma once

#include <cstdint>
#include <cstring>
#include <iterator>
#include <string>

#include "arguments.h"
#include "runner.h"
#include "tensors.h"

namespace sf {

constexpr int64_t kPackedAlign = 64;  // of the tensor, as the kernels' vectors need it

struct PackedHeader {
  char build[16] = SF_CSRC_HASH;  // another build may pack in another way
  char impl[16] = {};
  int16_t cell, dtype;
  int32_t directions;
  int64_t features, H, P;  // no features where x holds ids: w_ih is not packed then

  PackedHeader(const Layer& l, const char* name)
      : cell(static_cast<int16_t>(l.cell)),
        dtype(static_cast<int16_t>(l.dtype)),
        directions(l.directions),
        features(l.features()),
        H(l.H),
        P(l.P) {
    std::strncpy(impl, name, sizeof impl - 1);
  }
};
static_assert(sizeof(PackedHeader) == kPackedAlign, "the weights follow the header, aligned as the tensor is");

inline std::string text(const PackedHeader& h) {
  constexpr int kDtypes = 4;
  const int cells = static_cast<int>(std::size(kCells));
  if (std::memcmp(h.build, PackedHeader({}, "").build, sizeof h.build) != 0)
    return "bytes that this build did not pack";
  if (h.cell < 0 || h.cell >= cells || h.dtype < 0 || h.dtype >= kDtypes) return "other bytes";
  return std::string(kCells[h.cell].name) + " with " + (h.features ? std::to_string(h.features) + " features" : "ids") +
         ", hidden_size " + std::to_string(h.H) + ", proj_size " + std::to_string(h.P) + ", " +
         std::to_string(h.directions) + " direction" + (h.directions == 1 ? "" : "s") + ", " +
         text(scalar_of(static_cast<Dtype>(h.dtype))) + ", by " +
         quoted(std::string(h.impl, strnlen(h.impl, sizeof h.impl)));
}

// Packs the weights of a layer. ids: of one whose x holds ids.
inline Tensor pack_layer(Tensors& weights, const Name& cell, int64_t directions, bool ids, const Runner& runner) {
  static const int64_t any_ids = 0;
  LayerCall call;
  call.set_cell(cell);
  const Tensor& last = by_kind(weights, directions, *call.info).w_hh[0];
  call.device = last.device();
  call.layer.dtype = dtype_of("weights", last);
  call.layer.ids = ids ? &any_ids : nullptr;
  const Maybe none;
  describe_weights(call, {last, weights, none, none, none, none, cell, directions, false});
  const PackedHeader header(call.layer, runner.packs_for());
  const Tensor packed = empty_bytes(kPackedAlign + runner.packed_size(call.layer));
  std::memcpy(data_of(packed), &header, sizeof header);
  runner.pack(call.layer, data_of(packed) + sizeof header);
  return packed;
}

// Lets the layer of a call read weights that were packed before, after a check that they were packed for such a layer.
inline void use_packed(LayerCall& call, const Tensor& packed, const Runner& runner) {
  Layer& l = call.layer;
  if (!runner.packs_for()) fail("packed: expected None, as the implementation of this call packs no weights");
  if (packed.device().type() != DeviceType::CPU || packed.scalar_type() != ScalarType::Byte || packed.dim() != 1 ||
      !packed.is_contiguous())
    fail("packed: expected a contiguous one-dimensional uint8 tensor on the CPU, as pack_weights returns");
  check_memory("packed", packed);
  const PackedHeader wanted(l, runner.packs_for());
  const int64_t bytes = kPackedAlign + runner.packed_size(l), given = packed.numel();
  PackedHeader header = wanted;
  const bool whole = given >= static_cast<int64_t>(sizeof header);
  if (whole) std::memcpy(&header, packed.data_ptr(), sizeof header);
  if (!whole || std::memcmp(&header, &wanted, sizeof header) != 0)
    fail("packed: expected weights packed for ", text(wanted), ", but got ",
         whole ? text(header) : std::to_string(given) + " bytes");
  if (given != bytes) fail("packed: expected ", bytes, " bytes but got ", given);
  if (reinterpret_cast<uintptr_t>(packed.data_ptr()) % kPackedAlign)
    fail("packed: expected memory aligned to ", kPackedAlign, " bytes, as that of pack_weights is");
  l.packed = data_of(packed) + sizeof header;
}

}  // namespace sf
