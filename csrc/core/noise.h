// The random masks of a layer: a generator that computes each word from its place, so that every pass, thread and
// device draws the same masks and none is kept. Also the numbers that say how often a mask is zero.
#pragma once

#include "math.h"
#include "types.h"

namespace sf {

// What is drawn. The state is masked once for a sequence, the others at each step.
enum class Masked : int { kZoneoutH, kZoneoutC, kState, kCandidate };
constexpr int kMaskedKinds = 4;

struct Noise {
  double zoneout_h = 0, zoneout_c = 0;  // the share of units that keep their previous h, or c
  double state = 0, candidate = 0;  // the share of units that are dropped: of h before the product with W_hh; of g or n
  // The seed of a call in training; null in evaluation, where zoneout uses the expectation and nothing is dropped.
  const int64_t* seed = nullptr;

  SF_FN bool any() const { return zoneout_h > 0 || zoneout_c > 0 || masks_state() || masks_candidate(); }
  // Whether masks of dropout are drawn: of the state that W_hh multiplies, and of the candidate.
  SF_FN bool masks_state() const { return seed && state > 0; }
  SF_FN bool masks_candidate() const { return seed && candidate > 0; }
  SF_FN double rate(Masked masked) const {
    return masked == Masked::kZoneoutH   ? zoneout_h
           : masked == Masked::kZoneoutC ? zoneout_c
           : masked == Masked::kState    ? state
                                         : candidate;
  }
};

// Changes 32 bits so that each bit of the result depends on all of them. U: uint32_t, or a vector of them.
template <class U>
SF_FN U mixed_bits(U x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

// The units of one row and step draw from one key. What is the same at every step of the row is mixed first.
struct NoiseKey {
  uint32_t low, high;

  SF_FN NoiseKey with(uint32_t part) const { return {mixed_bits(low + part), mixed_bits(high + part)}; }
  SF_FN NoiseKey at_step(int64_t t) const { return with(static_cast<uint32_t>(t)); }
};

SF_FN NoiseKey noise_row_key(int64_t seed, Masked masked, int direction, int64_t row) {
  return NoiseKey{0x243f6a88u, 0x85a308d3u}
      .with(static_cast<uint32_t>(seed))
      .with(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32))
      .with(static_cast<uint32_t>(static_cast<int>(masked) * 2 + direction))
      .with(static_cast<uint32_t>(row));
}
SF_FN NoiseKey noise_key(int64_t seed, Masked masked, int direction, int64_t row, int64_t t) {
  return noise_row_key(seed, masked, direction, row).at_step(t);
}

template <class U>
SF_FN U noise_word(const NoiseKey& key, U unit) {
  return mixed_bits(mixed_bits(unit + key.low) ^ key.high);
}

// A unit is dropped, or kept by zoneout, where its word is less than this.
SF_FN uint32_t noise_threshold(double rate) {
  const double words = rate * 4294967296.0 + 0.5;
  return words >= 4294967295.0 ? 4294967295u : static_cast<uint32_t>(words);
}

// What becomes of a unit: it is multiplied by `kept`, or by 0 where its word is less than the threshold. For zoneout
// this is the share of its new state that the unit takes. Nothing is drawn where the threshold is 0.
template <class A>
struct Mask {
  uint32_t threshold = 0;
  A kept = 1;

  SF_FN bool changes() const { return threshold > 0 || kept != 1; }
};

template <class A>
SF_FN Mask<A> mask_of(const Noise& noise, Masked masked) {
  const double rate = noise.rate(masked);
  const bool is_zoneout = masked == Masked::kZoneoutH || masked == Masked::kZoneoutC;
  if (!(rate > 0)) return {};
  if (!noise.seed) return {0, is_zoneout ? static_cast<A>(1 - rate) : 1};
  return {noise_threshold(rate), is_zoneout ? 1 : static_cast<A>(1 / (1 - rate))};
}

}  // namespace sf
