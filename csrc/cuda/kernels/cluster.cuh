// The cluster regime: the blocks of a cluster share R and write their slices of the next operand into each other's
// shared memory. The mbarrier of the receiving block counts the bytes that arrive. The time loop therefore needs no
// barrier of the block, and no barrier of the cluster either, which would wait for the stores of the output.
//
// A tile has two operand halves, used in turn, and an mbarrier for each that says when it is full. No barrier has to
// say when a half may be overwritten. The operand of step s + 2 overwrites that of step s. A block sends its slice
// of s + 2 only when it has the whole operand of s + 1. By then every group of every block has sent its slice of s + 1,
// and a group does that only after it has read all of s.
//
// A wait that takes seconds has no chance to end, so it ends with an error, and from then on this thread neither waits
// nor announces nor sends: an mbarrier must not count more than one phase expects.
#pragma once

#include "exchange.cuh"

namespace sf::cuda {

template <class S>
struct Cluster {
  static constexpr bool kHoldsEveryTile = true;
  Operand<S> operand;
  Slice<S> slice;
  Barriers full;  // (tiles, 2)
  uint32_t* error;
  int max_polls, blocks, bytes;

  SF_DEVICE Cluster(SharedAllocator& allocator, const LaunchArgs& a, const Lane<S>& at)
      : operand(allocator, a),
        slice(allocator, at),
        full(allocator.take<uint64_t>(2 * a.tiles)),
        error(a.error),
        max_polls(a.max_polls),
        blocks(a.blocks),
        bytes(a.groups * S::kOperands * S::kPlanes * kTileRows * kGroupUnits *
              static_cast<int>(sizeof(typename S::Element))) {
    if (thread_id() == 0)
      for (int i = 0; i < 2 * a.tiles; ++i) barrier_init(full, i);
  }
  SF_DEVICE void begin() const { cluster_sync(); }  // no block sends before all barriers and first operands are ready
  SF_DEVICE void wait(const Lane<S>&, int step, int steps, int tile) {
    const int now = step & 1;
    if (thread_id() == 0 && step + 1 < steps && !gave_up) barrier_expect(full, 2 * tile + 1 - now, bytes);
    if (step > 0 && !gave_up && !barrier_wait(full, 2 * tile + now, (step - 1) / 2 & 1, max_polls)) {
      gave_up = true;
      raise(error, kWaitRanOut);
    }
    warp_sync();  // lanes may have found the end of the phase at different tries, and the product needs them together
  }
  SF_DEVICE void put(const Lane<S>& at, int, int, int column, int unit, const float (&v)[S::kOperands]) const {
    slice.store(at, column, unit, v);
  }
  SF_DEVICE void send(const Lane<S>& at, int step, int tile) const {
    warp_sync();
    if (at.owns() && !gave_up) {
      for (int i = at.lane; i < Slice<S>::kPackets * blocks; i += 32) {
        const auto packet = slice.packet(at, i % Slice<S>::kPackets);
        const int to = operand.row(step, tile, packet.plane, packet.column) + packet.in_operand;
        send_packet(to, packet.from, 2 * tile + (step & 1), i / Slice<S>::kPackets);
      }
    }
    warp_sync();  // after this the slice may be overwritten
  }
  SF_DEVICE void end() const { cluster_sync(); }  // a block must not end while another may still write to it

 private:
  bool gave_up = false;

  SF_DEVICE void send_packet(int to, int from, int barrier, int block) const {
    cuda::send(operand.region, to, slice.region.template load_as<uint4>(from), full, barrier, block);
  }
};

}  // namespace sf::cuda
