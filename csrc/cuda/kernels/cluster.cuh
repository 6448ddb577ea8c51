// Regime 2: the blocks of a cluster share R and push their slices into one another's shared memory. A slice's bytes
// are counted on the receiver's mbarrier, so there is no barrier in the loop, and none of clusters, whose release
// would wait for the output's stores.
//
// Two halves and "full" barriers are enough: a block can be sent step s + 2 only by one that has all of step s + 1,
// so after every group of every block has sent its part of s + 1, that is after it has read s, whose place s + 2
// takes.
#pragma once

#include "exchange.cuh"

namespace sf::cuda {

template <class S>
struct Cluster {
  Operand<S> operand;
  Slice<S> slice;
  Barriers full;  // (tiles, 2)
  int blocks, bytes;

  SF_DEVICE Cluster(Carve& carve, const Sweep& a, const Lane<S>& at)
      : operand(carve, a),
        slice(carve, at),
        full(carve.take<uint64_t>(2 * a.tiles)),
        blocks(a.blocks),
        bytes(a.groups * S::kOperands * S::kPlanes * kTileRows * kGroupUnits *
              static_cast<int>(sizeof(typename S::Element))) {
    if (thread_id() == 0)
      for (int i = 0; i < 2 * a.tiles; ++i) barrier_init(full, i);
  }
  SF_DEVICE void begin() const { cluster_sync(); }  // every block has its barriers and its first operand
  SF_DEVICE void wait(const Lane<S>&, int step, int steps, int tile) const {
    const int now = step & 1;
    if (thread_id() == 0 && step + 1 < steps) barrier_expect(full, 2 * tile + 1 - now, bytes);
    if (step > 0) barrier_wait(full, 2 * tile + now, (step - 1) / 2 & 1);
  }
  SF_DEVICE void put(const Lane<S>& at, int, int, int column, int unit, const float (&v)[S::kOperands]) const {
    slice.store(at, column, unit, v);
  }
  SF_DEVICE void send(const Lane<S>& at, int step, int tile) const {
    warp_sync();
    if (at.owns()) {
      for (int i = at.lane; i < Slice<S>::kPieces * blocks; i += 32) {
        const auto piece = slice.piece(at, i % Slice<S>::kPieces);
        const int to = operand.row(step, tile, piece.plane, piece.column) + piece.in_operand;
        send_piece(to, piece.from, 2 * tile + (step & 1), i / Slice<S>::kPieces);
      }
    }
    warp_sync();  // the slice may be written again
  }
  SF_DEVICE void end() const { cluster_sync(); }  // nobody leaves while another may still write to it

 private:
  SF_DEVICE void send_piece(int to, int from, int barrier, int block) const {
    cuda::send(operand.region, to, slice.region.template load_as<uint4>(from), full, barrier, block);
  }
};

}  // namespace sf::cuda
