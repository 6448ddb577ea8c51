// What one launch of a recurrent kernel is told: plain data, the same for every cell, pass and regime.
#pragma once

#include "../core/args.h"
#include "plan.h"

namespace sf::cuda {

struct SweepDirection {
  const void* weights;  // (blocks, warps, m-tiles, k-tiles, planes, 32 lanes) fragments of 16 bytes
  const float* bias;    // (slots, H)
  int64_t begin, end;   // steps of this launch
  Rows h0, c0;          // absent: zeros
  Rows saved, output;   // saved: see SavedLayout
  // forward
  Rows projected;  // (end - begin, B, gates * H) float32
  Rows h_n, c_n;
  // backward
  Rows d_output, d_h_n, d_c_n, d_gates, d_h0, d_c0;
};

struct Sweep {
  SweepDirection direction[kMaxDirections];
  int64_t T, B, H;
  bool first, last;        // of the launches a pass is cut into: states come from and go to the layer's tensors
  const int64_t* lengths;  // (B,), clamped to 0 .. T; null: all T
  const int64_t* order;    // (B,): batch rows by descending length; null: as they are
  // (directions, 2, B, H): states between launches. Not one buffer: a block may be done before another has begun.
  const float* carried_in;
  float* carried_out;
  uint64_t* words;  // grid.cuh: operands on their way, tagged; zeroed before each launch
  uint32_t* error;
  bool write_output;
  int directions, blocks, block_groups, groups, tiles;  // as in Plan
};

// Where a step's saved values of one unit are: the first four side by side, a fifth after all of those.
constexpr int64_t saved_at(int slot, int64_t unit, int64_t padded_units) {
  return slot < 4 ? 4 * unit + slot : 4 * padded_units + unit;
}

}  // namespace sf::cuda
