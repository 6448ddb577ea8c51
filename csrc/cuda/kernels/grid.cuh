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

// Fetches words. A lane has kAtOnce loads in flight.
template <int kAtOnce>
struct Fetch {
  uint32_t* error;
  int max_polls;
  int failed_polls = 0;  // since the last poll that found its word

  SF_DEVICE explicit Fetch(const LaunchArgs& a) : error(a.error), max_polls(a.max_polls) {}
  // Waits for the words first, first + stride, ... of `count` to have the tag, and calls store(i, data) with each.
  template <class Store>
  SF_DEVICE void all(const uint64_t* from, int count, int first, int stride, uint32_t tag, Store&& store) {
    for (; first < count; first += kAtOnce * stride) {
      uint64_t found[kAtOnce];
      SF_UNROLL
      for (int j = 0; j < kAtOnce; ++j)
        found[j] = poll(from + (first + stride * j < count ? first + stride * j : first));
      SF_UNROLL
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = first + stride * j;
        if (i >= count) break;
        while (static_cast<uint32_t>(found[j] >> 32) != tag && failed_polls < max_polls) {
          found[j] = poll(from + i);
          if (++failed_polls == max_polls) raise(error, kWaitRanOut);
        }
        if (failed_polls < max_polls) failed_polls = 0;  // otherwise stop waiting until the launch ends
        store(i, static_cast<uint32_t>(found[j]));
      }
    }
  }
};

template <class S>
struct Grid {
  static constexpr bool kHoldsEveryTile = false;
  static constexpr int kPacketWords = 4;
  static constexpr int kElements = 4 / sizeof(typename S::Element);  // elements in a word
  Operand<S, kHoldsEveryTile> operand;
  Slice<S> slice;
  uint64_t* words;  // (2 steps, tiles, planes, 8 rows, row_words) of this team
  Fetch<4> fetch;
  int row_words;  // words that all groups of the team together send for one row

  SF_DEVICE Grid(SharedAllocator& allocator, const LaunchArgs& a, const Lane<S>& at)
      : operand(allocator, a),
        slice(allocator, at),
        fetch(a),
        row_words(S::kOperands * a.groups * kGroupUnits / kElements) {
    words = a.words + static_cast<int64_t>(block_id() / a.blocks) * 2 * a.tiles * S::kPlanes * kTileRows * row_words;
  }
  SF_DEVICE uint64_t* tile_words(int step, int tile) const {
    return words + ((step & 1) * operand.tiles + tile) * S::kPlanes * kTileRows * row_words;
  }
  SF_DEVICE void begin() const { cta_sync(); }
  // Each warp fetches whole rows.
  SF_DEVICE void wait(const Lane<S>& at, int step, int, int tile) {
    // The operand of step 0 is in shared memory already; no words say it.
    for (int row = at.warp; step > 0 && row < S::kPlanes * kTileRows; row += block_threads() / 32) {
      const uint64_t* from = tile_words(step, tile) + row * row_words;
      const int to = operand.row(step, tile, row / kTileRows, row % kTileRows);
      fetch.all(from, row_words, at.lane, 32, static_cast<uint32_t>(step),
                [&](int i, uint32_t data) { operand.region.store_as(to + i * kElements, data); });
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

  // Sends the parts of sums over rows to all blocks of the team, in words (2 meetings, blocks of gates, 8 rows, slices,
  // 2), and fetches them into the region; see row_totals.cuh.
  struct RowParts {
    Shared<float> region;
    Fetch<4> fetch;
    uint64_t* words;
    int count;        // words of a meeting
    int meeting = 0;  // number of the next one

    SF_DEVICE RowParts(Shared<float> parts, const LaunchArgs& a)
        : region(parts), fetch(a), words(a.norm.words), count(row_part_words(S::kGates, a.norm.slices)) {
      words += static_cast<int64_t>(block_id() / a.blocks) * 2 * count;
    }
    SF_DEVICE uint64_t* of_meeting() const { return words + (meeting & 1) * count; }
    SF_DEVICE uint32_t tag() const { return static_cast<uint32_t>(meeting) + 1; }
    SF_DEVICE void put(int at, float2 v) const {
      post(of_meeting() + at, bits_of(v.x), tag());
      post(of_meeting() + at + 1, bits_of(v.y), tag());
    }
    SF_DEVICE void wait() {
      fetch.all(of_meeting(), count, thread_id(), block_threads(), tag(),
                [&](int i, uint32_t data) { region.store(i, float_of(data)); });
      ++meeting;
      cta_sync();
    }
  };
};

}  // namespace sf::cuda
