// What one launch of a recurrent kernel is told: plain data, the same for every cell, pass and regime.
#pragma once

#include "../core/args.h"
#include "plan.h"

namespace sf::cuda {

// Rows whose values lie side by side: that of (t, b) starts t_bytes * (t, or t_row[t] if packed) + b_bytes * b after
// data. 32 bits, so that an address is two multiply-adds; rows further apart go stepwise.
struct Track {
  char* data = nullptr;  // null: absent
  uint32_t t_bytes = 0, b_bytes = 0;

  SF_FN char* row(int64_t offset, uint32_t t_row, uint32_t b) const {
    return data + offset + static_cast<uint64_t>(t_row) * t_bytes + static_cast<uint64_t>(b) * b_bytes;
  }
};

struct SweepDirection {
  const void* weights;  // (blocks, warps, m-tiles, k-tiles, planes, 32 lanes)
                        // fragments of 16 bytes
  const float* bias;    // (slots, H)
  int begin, end;       // steps of this launch
  Track h0, c0;         // absent: zeros
  Track output, saved;  // saved: see saved_at
  // forward
  Track projected;  // (T, B, gates * padded) float32
  Rows h_n, c_n;
  // backward
  Track d_output, d_gates;
  Rows d_h_n, d_c_n, d_h0, d_c0;
};

struct Sweep {
  SweepDirection direction[kMaxDirections];
  int T, B, H;
  bool first, last;  // of the launches a pass is cut into: states come from and
                     // go to the layer's tensors
  bool write_output;
  const int64_t* t_row;    // of packed sequences
  const int64_t* lengths;  // (B,), clamped to 0 .. T; null: all T
  const int64_t* order;    // (B,): batch rows by descending length; null: as they are
  // (directions, 2, B, H): states between launches. Not one buffer: a block may be done before another has begun.
  const float* carried_in;
  float* carried_out;
  uint64_t* words;  // grid.cuh: operands on their way, tagged; zeroed before
                    // each launch
  uint32_t* error;
  int most_peeks;                                       // as in Limits
  int directions, blocks, block_groups, groups, tiles;  // as in Plan
};

// Where a step's saved values of one unit are: the first four side by side, a fifth after all of those.
constexpr int64_t saved_at(int slot, int64_t unit, int64_t padded_units) {
  return slot < 4 ? 4 * unit + slot : 4 * padded_units + unit;
}

}  // namespace sf::cuda
