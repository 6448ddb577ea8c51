// The grid regime: blocks anywhere on the device share R. They send operands through the L2 cache in words of 64 bits:
// 32 bits of data, and the step as a tag. The tag says whether a word has come, so there are no fences and no counters,
// and a block waits for the blocks of its team alone. The launch is cooperative, so that all blocks run at once. If a
// word still does not come, the wait ends after max_polls failed polls, and an error is raised.
//
// Two halves of the words are enough for the reason that cluster.cuh gives. In shared memory a block holds two operands
// alone, whatever its number of tiles, since it copies one from the words when it needs it: the barrier behind the copy
// of a tile says that every warp has done with the tile before.
//
// The words are relaxed, though their reader and the thread that answers it are ordered by a barrier of the block
// alone. That is enough because a reader leaves its loop with the tag of its own step and no other. A thread that saw
// the tag of a later step could not see its own any more, as each word has one order of values; it would not come to
// the barrier, and so its block's answer, without which no later word is posted, would be missing.
// tests/cuda/test_memory_model.py tries all executions. Release and acquire would cost a MEMBAR.ALL.GPU for each post,
// which waits for the output's stores, and a CCTL.IVALL for each poll.
#pragma once

#include "exchange.cuh"

namespace sf::cuda {

template <class S>
struct Grid {
  static constexpr bool kHoldsEveryTile = false;
  static constexpr int kPacketWords = 4, kAtOnce = 4;
  static constexpr int kElements = 4 / sizeof(typename S::Element);  // elements in a word
  Operand<S, kHoldsEveryTile> operand;
  Slice<S> slice;
  uint64_t* words;  // (2 steps, tiles, planes, 8 rows, row_words) of this team
  uint32_t* error;
  int max_polls;
  int row_words;  // words that all groups of the team together send for one row

  SF_DEVICE Grid(SharedAllocator& allocator, const LaunchArgs& a, const Lane<S>& at)
      : operand(allocator, a),
        slice(allocator, at),
        error(a.error),
        max_polls(a.max_polls),
        row_words(S::kOperands * a.groups * kGroupUnits / kElements) {
    words = a.words + static_cast<int64_t>(block_id() / a.blocks) * 2 * a.tiles * S::kPlanes * kTileRows * row_words;
  }
  SF_DEVICE uint64_t* tile_words(int step, int tile) const {
    return words + ((step & 1) * operand.tiles + tile) * S::kPlanes * kTileRows * row_words;
  }
  SF_DEVICE void begin() const { cta_sync(); }
  // Each warp fetches whole rows. Its lanes have kAtOnce loads in flight.
  SF_DEVICE void wait(const Lane<S>& at, int step, int, int tile) {
    // The operand of step 0 is in shared memory already; no words say it.
    for (int row = at.warp; step > 0 && row < S::kPlanes * kTileRows; row += block_threads() / 32) {
      const uint64_t* from = tile_words(step, tile) + row * row_words;
      const int to = operand.row(step, tile, row / kTileRows, row % kTileRows);
      for (int first = at.lane; first < row_words; first += kAtOnce * 32) {
        uint64_t found[kAtOnce];
        SF_UNROLL
        for (int j = 0; j < kAtOnce; ++j) found[j] = poll(from + (first + 32 * j < row_words ? first + 32 * j : first));
        SF_UNROLL
        for (int j = 0; j < kAtOnce; ++j) {
          const int i = first + 32 * j;
          if (i >= row_words) break;
          while (static_cast<uint32_t>(found[j] >> 32) != static_cast<uint32_t>(step) && failed_polls < max_polls) {
            found[j] = poll(from + i);
            if (++failed_polls == max_polls) raise(error, kWaitRanOut);
          }
          if (failed_polls < max_polls) failed_polls = 0;  // otherwise stop waiting until the launch ends
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
      for (int i = at.lane; i < Slice<S>::kPackets * kPacketWords; i += 32) {
        const auto packet = slice.packet(at, i / kPacketWords);
        const int row = packet.plane * kTileRows + packet.column, word = i % kPacketWords;
        post(to + row * row_words + packet.in_operand / kElements + word,
             slice.region.template load_as<uint32_t>(packet.from + word * kElements), static_cast<uint32_t>(step));
      }
    }
    warp_sync();
  }
  SF_DEVICE void end() const {}

  // The parts of sums over rows, see row_totals.cuh: (2 meetings, places, slices, 2) words of this team.
  struct RowParts {
    const LaunchArgs& a;
    uint64_t* words;
    int failed_polls = 0;

    SF_DEVICE RowParts(SharedAllocator&, const LaunchArgs& args, const Lane<S>&)
        : a(args), words(args.norm.words + static_cast<int64_t>(block_id() / args.blocks) * 2 * words_of(args)) {}
    static SF_DEVICE int words_of(const LaunchArgs& a) { return row_part_words(S::kGates, a.norm.slices); }
    SF_DEVICE uint64_t* part(int meeting, int place, int slice) const {
      return words + (meeting & 1) * words_of(a) + 2 * (place * a.norm.slices + slice);
    }
    SF_DEVICE void put(int meeting, int place, int slice, float2 v) const {
      uint64_t* to = part(meeting, place, slice);
      post(to, bits_of(v.x), static_cast<uint32_t>(meeting) + 1);
      post(to + 1, bits_of(v.y), static_cast<uint32_t>(meeting) + 1);
    }
    SF_DEVICE void begin_reading() const {}
    template <int kCount>
    SF_DEVICE void get(int meeting, int place, int lane, float2 (&found)[kCount]) {
      uint64_t got[kCount][2];
      SF_UNROLL
      for (int i = 0; i < kCount; ++i) SF_UNROLL
      for (int j = 0; j < 2; ++j)
        got[i][j] = lane + 32 * i < a.norm.slices ? poll(part(meeting, place, lane + 32 * i) + j) : 0;
      SF_UNROLL
      for (int i = 0; i < kCount; ++i) {
        SF_UNROLL
        for (int j = 0; j < 2 && lane + 32 * i < a.norm.slices; ++j) {
          while (static_cast<uint32_t>(got[i][j] >> 32) != static_cast<uint32_t>(meeting) + 1 &&
                 failed_polls < a.max_polls) {
            got[i][j] = poll(part(meeting, place, lane + 32 * i) + j);
            if (++failed_polls == a.max_polls) raise(a.error, kWaitRanOut);
          }
          if (failed_polls < a.max_polls) failed_polls = 0;
        }
        found[i] = {float_of(static_cast<uint32_t>(got[i][0])), float_of(static_cast<uint32_t>(got[i][1]))};
      }
      warp_sync();  // the lanes of a warp see their words at different polls, and add up together
    }
  };

 private:
  int failed_polls = 0;  // since the last poll that found its word
};

}  // namespace sf::cuda
