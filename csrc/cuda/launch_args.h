// The arguments of one launch of a recurrent kernel: plain data, the same struct for every cell, pass and regime.
// Addresses are made from 32-bit strides; a layer that is too large for them runs stepwise.
#pragma once

#include "../core/args.h"
#include "plan.h"

namespace sf::cuda {

// Where the row of step t and batch row b starts: data + t_bytes * t_row + b_bytes * b, where t_row is t for padded
// input and LaunchArgs::t_row[t] for packed input. The values of a row lie side by side. Strides have 32 bits, so that
// an address is two multiply-adds; layers whose strides are larger run stepwise.
struct RowAddress {
  char* data = nullptr;  // null: absent
  uint32_t t_bytes = 0, b_bytes = 0;

  SF_FN char* row(int64_t offset, uint32_t t_row, uint32_t b) const {
    return data + offset + static_cast<uint64_t>(t_row) * t_bytes + static_cast<uint64_t>(b) * b_bytes;
  }
};

struct DirectionArgs {
  const void* weights;          // (blocks, warps, m-tiles, k-tiles, planes, 32 lanes) fragments of 16 bytes
  const float* bias;            // (slots, H)
  int begin, end;               // this launch runs the steps begin .. end - 1
  RowAddress h0, c0;            // zeros where absent
  RowAddress resets;            // bytes, see Layer; null: nowhere
  RowAddress h_reset, c_reset;  // zeros where absent
  RowAddress output, saved;     // the order of the saved values: saved_at
  // The forward alone has these.
  RowAddress projected;  // (T, B, gates * padded) float32: x times W_ih^T
  Rows h_n, c_n;
  // The backward alone has these.
  RowAddress d_output, d_gates;
  Rows d_h_n, d_c_n, d_h0, d_c0;
  float* reset_carry;  // (B, H): the sum of the carries that come to the reset state; null where it is not wanted
};

// What the options of a layer add, where its kernel is the variant with options.
struct OptionArgs {
  const int64_t* seed;  // of the masks; null where nothing is drawn
  Mask<float> masks[kMaskedKinds];
  const void* seen[kMaxDirections];  // (3, H): the weights of peepholes; null where there are none
  // The backward alone has these.
  Rows d_seen[kMaxDirections];     // (B, 3 H): their gradients, each row's sum over the steps
  float* reset_h[kMaxDirections];  // (B, H): the sum of what zoneout hands to the reset state; null: not wanted
  bool saves_fresh_h;              // see Layer. The saved values are then the h that the cells gave
};

// What layer normalisation adds.
struct NormArgs {
  const void* gains[kMaxDirections];    // (gates, H), of the sums of h; those of x are normalised before
  const void* of_c[2][kMaxDirections];  // (H,): the gain and the bias of c
  uint64_t* words;  // the grid regime exchanges sums over rows through these; zeroed before each launch
  // A warp's slice of the units has 16 or 8 units, the last one of a row those that are left. They are arguments since
  // registers are few.
  int slices, last_units;
  float inverse_H, inverse_last;  // 1 / H, 1 / last_units
  // The backward alone has these.
  RowAddress c_statistics[kMaxDirections];  // float32: the mean and the inverse deviation of c
  RowAddress d_aside[kMaxDirections];       // gradients for norm_sums, see NormRow::d_slot
};

struct LaunchArgs {
  DirectionArgs direction[kMaxDirections];
  int T, B, H;
  // A forward is cut into launches. The first reads its states from the layer's tensors, the last writes them there.
  bool first, last;
  bool write_output;
  const int64_t* t_row;    // packed sequences: the first row of each step; else null
  const int64_t* lengths;  // (B,), within 0 .. T; null if every row has T steps
  const int64_t* order;    // (B,): batch rows by descending length; null to take them as they are
  // (directions, 2, B, H): the states between launches. Reading and writing one buffer would be a race, since a block
  // may have ended before another has begun.
  const float* carried_in;
  float* carried_out;
  uint64_t* words;  // the grid regime sends operands through these; zeroed before each launch
  uint32_t* error;  // the host's error word, which holds a Fault
  int max_polls;    // see Limits
  int directions;
  int blocks, block_groups, groups, tiles;  // see Plan
  OptionArgs options;
  NormArgs norm;
};

// The position of a saved value within a row of `saved`: the first four values of a unit lie side by side, and the
// fifth values of all units follow them.
constexpr int64_t saved_at(int slot, int64_t unit, int64_t padded_units) {
  return slot < 4 ? 4 * unit + slot : 4 * padded_units + unit;
}

}  // namespace sf::cuda
