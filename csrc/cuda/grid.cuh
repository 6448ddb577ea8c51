// Regime 3: blocks anywhere on the device share R; operands travel through L2 as 64-bit words of 32 bits of data and
// the step as a tag. A word is its own flag: no fence, no counter, and a block waits for those of its team alone. The
// launch is cooperative, so all blocks run; should one not, the wait is bounded, raises the error word and goes on.
//
// Two halves are enough for the reason given in cluster.cuh.
#pragma once

#include "exchange.cuh"

namespace sf::cuda {

constexpr int kMostPeeks = 1 << 24;  // seconds

template <class S>
struct Grid {
  static constexpr int kPieceWords = 4;
  static constexpr int kUnitsOfWord = 4 / sizeof(typename S::Element);
  Operand<S> operand;
  Slice<S> slice;
  uint64_t* words;  // (2 steps, tiles, planes, 8 rows, operands, units of all groups) of this team, 4 bytes to a word
  uint32_t* error;
  int row_words, groups;

  SF_DEVICE Grid(Carve& carve, const Sweep& a, const Lane<S>& at)
      : operand(carve, a),
        slice(carve, at),
        error(a.error),
        row_words(S::kOperands * a.groups * kGroupUnits / kUnitsOfWord),
        groups(a.groups) {
    words = a.words + static_cast<int64_t>(block_id() / a.blocks) * 2 * a.tiles * S::kPlanes * kTileRows * row_words;
  }
  SF_DEVICE uint64_t* tile_words(int64_t step, int tile) const {
    return words + ((step & 1) * operand.tiles + tile) * S::kPlanes * kTileRows * row_words;
  }
  SF_DEVICE void begin() const { cta_sync(); }
  SF_DEVICE void wait(const Lane<S>&, int64_t step, int64_t, int tile) {
    if (step > 0) {
      const uint64_t* from = tile_words(step, tile);
      const int gate_words = row_words / S::kOperands;
      for (int i = thread_id(); i < S::kPlanes * kTileRows * row_words; i += block_threads()) {
        uint64_t word = peek(from + i);
        while (static_cast<uint32_t>(word >> 32) != static_cast<uint32_t>(step) && peeks < kMostPeeks) {
          word = peek(from + i);
          if (++peeks == kMostPeeks) raise(error);
        }
        const int at_row = i % row_words, row = i / row_words;
        const int to = operand.row(step, tile, row / kTileRows, row % kTileRows) + at_row / gate_words * S::kPadded +
                       at_row % gate_words * kUnitsOfWord;
        operand.region.template store_as<uint32_t>(to, static_cast<uint32_t>(word));
      }
      cta_sync();
    }
  }
  SF_DEVICE void put(const Lane<S>& at, int64_t, int, int column, int index, int unit, float value) const {
    slice.store(at, column, index, unit, value);
  }
  SF_DEVICE void send(const Lane<S>& at, int64_t step, int tile) const {
    warp_sync();
    if (at.owns()) {
      uint64_t* to = tile_words(step, tile);
      for (int i = at.lane; i < Slice<S>::kPieces * kPieceWords; i += 32) {
        const auto piece = slice.piece(at, i / kPieceWords);
        const int units = i % kPieceWords * kUnitsOfWord;
        const int row = piece.plane * kTileRows + piece.column;
        const int unit = piece.operand * groups * kGroupUnits + piece.unit + units;
        post(to + row * row_words + unit / kUnitsOfWord, slice.region.template load_as<uint32_t>(piece.from + units),
             static_cast<uint32_t>(step));
      }
    }
    warp_sync();
  }
  SF_DEVICE void end() const {}

 private:
  int peeks = 0;  // in vain, in the whole launch
};

}  // namespace sf::cuda
