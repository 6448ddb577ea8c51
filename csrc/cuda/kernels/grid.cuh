// Regime 3: blocks anywhere on the device share R; operands travel through L2 as 64-bit words of 32 bits of data and
// the step as a tag. A word is its own flag: no fence, no counter, and a block waits for those of its team alone. The
// launch is cooperative, so all blocks run; should one not, the wait is bounded, raises the error word and goes on.
//
// Two halves are enough for the reason given in cluster.cuh.
#pragma once

#include "exchange.cuh"

namespace sf::cuda {

template <class S>
struct Grid {
  static constexpr int kPieceWords = 4, kAtOnce = 4;
  static constexpr int kElements = 4 / sizeof(typename S::Element);  // of a word
  Operand<S> operand;
  Slice<S> slice;
  uint64_t* words;  // (2 steps, tiles, planes, 8 rows, row_words) of this team
  uint32_t* error;
  int most_peeks;
  int row_words;  // what the groups of all blocks give to a row

  SF_DEVICE Grid(Carve& carve, const Sweep& a, const Lane<S>& at)
      : operand(carve, a),
        slice(carve, at),
        error(a.error),
        most_peeks(a.most_peeks),
        row_words(S::kOperands * a.groups * kGroupUnits / kElements) {
    words = a.words + static_cast<int64_t>(block_id() / a.blocks) * 2 * a.tiles * S::kPlanes * kTileRows * row_words;
  }
  SF_DEVICE uint64_t* tile_words(int step, int tile) const {
    return words + ((step & 1) * operand.tiles + tile) * S::kPlanes * kTileRows * row_words;
  }
  SF_DEVICE void begin() const { cta_sync(); }
  // A warp brings whole rows, several words of each in flight.
  SF_DEVICE void wait(const Lane<S>& at, int step, int, int tile) {
    if (step == 0) return;
    for (int row = at.warp; row < S::kPlanes * kTileRows; row += block_threads() / 32) {
      const uint64_t* from = tile_words(step, tile) + row * row_words;
      const int to = operand.row(step, tile, row / kTileRows, row % kTileRows);
      for (int first = at.lane; first < row_words; first += kAtOnce * 32) {
        uint64_t found[kAtOnce];
        SF_UNROLL
        for (int j = 0; j < kAtOnce; ++j) found[j] = peek(from + (first + 32 * j < row_words ? first + 32 * j : first));
        SF_UNROLL
        for (int j = 0; j < kAtOnce; ++j) {
          const int i = first + 32 * j;
          if (i >= row_words) break;
          while (static_cast<uint32_t>(found[j] >> 32) != static_cast<uint32_t>(step) && peeks < most_peeks) {
            found[j] = peek(from + i);
            if (++peeks == most_peeks) raise(error, kWaitRanOut);
          }
          if (peeks < most_peeks) peeks = 0;  // else the launch is given up for good
          operand.region.store_as(to + i * kElements, static_cast<uint32_t>(found[j]));
        }
      }
    }
    cta_sync();
  }
  SF_DEVICE void put(const Lane<S>& at, int, int, int column, int unit, const float (&v)[S::kOperands]) const {
    slice.store(at, column, unit, v);
  }
  SF_DEVICE void send(const Lane<S>& at, int step, int tile) const {
    warp_sync();
    if (at.owns()) {
      uint64_t* to = tile_words(step, tile);
      for (int i = at.lane; i < Slice<S>::kPieces * kPieceWords; i += 32) {
        const auto piece = slice.piece(at, i / kPieceWords);
        const int row = piece.plane * kTileRows + piece.column, word = i % kPieceWords;
        post(to + row * row_words + piece.in_operand / kElements + word,
             slice.region.template load_as<uint32_t>(piece.from + word * kElements), static_cast<uint32_t>(step));
      }
    }
    warp_sync();
  }
  SF_DEVICE void end() const {}

 private:
  int peeks = 0;  // in vain, at a stretch
};

}  // namespace sf::cuda
