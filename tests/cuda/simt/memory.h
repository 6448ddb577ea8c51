// Shared memory and mbarriers with checks of bounds, alignment, reads of bytes that were never written, and races. An
// access is a race unless the thread's clocks say that the access before it has happened. Bytes sent by another block
// count as written by the mbarrier that counts them, which has a clock like a thread. So only a thread that has waited
// for the phase of the mbarrier may read them.
#pragma once

#include "machine.h"

namespace sf::cuda::simt {

inline bool knows(const Thread& t, const Access& a) {
  return a.id == kNobody || a.id == t.id || (*t.known)[a.id] >= a.clock;
}
inline void race(const char* kind, int block, size_t byte, const Access& other, Site at) {
  const int first = block / world.size.cluster * world.size.cluster;  // of the cluster
  std::string who = "a send";
  if (other.id < world.cluster_threads()) who = name_of(block_threads(first)[other.id]);
  report("race", at,
         std::string(kind) + " of byte " + std::to_string(byte) + " of block " +
             std::to_string(world.first_block + block) + " is not ordered after that of " + who + " in line " +
             std::to_string(other.line));
}
inline void note_read(int block, size_t byte, size_t size, Site at) {
  const Thread& t = me();
  Shadow* shadow = world.blocks[block].shadow.data();
  const Access stamp{t.clock, t.id, static_cast<uint16_t>(at.line)};
  for (size_t i = byte / 2; i < (byte + size + 1) / 2; ++i) {
    Shadow& s = shadow[i];
    if (s.write.id == kNobody)
      report("poison", at, "byte " + std::to_string(2 * i) + " is read but was never written");
    else if (!knows(t, s.write))
      race("read after a write", block, 2 * i, s.write, at);
    if (s.read.id != t.id) s.read_before = s.read;
    s.read = stamp;
  }
}
inline void note_write(int block, size_t byte, size_t size, Site at, uint32_t clock, uint16_t id) {
  const Thread& t = me();
  Shadow* shadow = world.blocks[block].shadow.data();
  for (size_t i = byte / 2; i < (byte + size + 1) / 2; ++i) {
    Shadow& s = shadow[i];
    if (!knows(t, s.write)) race("write after a write", block, 2 * i, s.write, at);
    if (!knows(t, s.read)) race("write after a read", block, 2 * i, s.read, at);
    if (!knows(t, s.read_before)) race("write after a read", block, 2 * i, s.read_before, at);
    s.write = {clock, id, static_cast<uint16_t>(at.line)};
  }
}

// The position in a block's memory of `size` bytes at an offset of a region. If they are not all in the region, or not
// aligned, adds a finding and returns -1.
inline int64_t locate(int64_t begin, int64_t bytes, int64_t offset, int64_t size, int64_t alignment, Site at) {
  if (offset < 0 || offset + size > bytes || begin + offset + size > world.size.shared) {
    report("bounds", at,
           std::to_string(size) + " bytes at " + std::to_string(offset) + " of a region of " + std::to_string(bytes) +
               " in " + std::to_string(world.size.shared));
    return -1;
  }
  if ((begin + offset) % alignment) {
    report("alignment", at, std::to_string(size) + " bytes at byte " + std::to_string(begin + offset));
    return -1;
  }
  return begin + offset;
}

inline Mbarrier* barrier_at(int block, int64_t byte, Site at) {
  for (Mbarrier& b : world.blocks[block].barriers)
    if (b.byte == byte) return &b;
  report("barrier", at, "the mbarrier at byte " + std::to_string(byte) + " was never initialised");
  return nullptr;
}
inline void init_barrier(int64_t byte, Site at) {
  note_write(me().block, byte, 8, at, me().clock, me().id);
  std::vector<Mbarrier>& barriers = my_block().barriers;
  if (barriers.size() == kMostBarriers) return report("barrier", at, "more mbarriers than the simulator keeps");
  Mbarrier b;
  b.byte = byte;
  const int rank = me().block % world.size.cluster;
  b.id = static_cast<uint16_t>(world.cluster_threads() + rank * kMostBarriers + barriers.size());
  b.gathered.resize(me().known->size());
  barriers.push_back(b);
}
// Ends the phase if no arrival and no bytes are missing any more. Called whenever `bytes` or `pending` has changed.
inline void arrive(int block, Mbarrier& b) {
  Thread& t = me();
  if (b.latest != t.known) join(b.gathered, *(b.latest = t.known));
  b.gathered[t.id] = t.clock++;
  if (b.pending || b.bytes) return;
  b.pending = 1;
  b.gathered[b.id] = ++b.phase;
  b.released = std::make_shared<Clocks>(b.gathered);
  b.before = nullptr;
  for (int i = 0; i < world.size.threads; ++i) {
    Thread& waiting = block_threads(block)[i];
    if (waiting.wait == Wait::kPhase && waiting.place == &b) waiting.wait = Wait::kNothing;
  }
}
inline void expect(int64_t byte, int bytes, Site at) {
  note_read(me().block, byte, 8, at);
  Mbarrier* b = barrier_at(me().block, byte, at);
  if (!b) return;
  if (b->pending == 0) return report("barrier", at, "a second arrival in one phase of an mbarrier");
  b->pending = 0;
  b->bytes += bytes;
  arrive(me().block, *b);
}
// Gives up at once if one failed poll is all that is allowed, else never: a wait without end is reported as stuck.
inline bool wait_phase(int64_t byte, int parity, int max_polls, Site at) {
  note_read(me().block, byte, 8, at);
  Mbarrier* b = barrier_at(me().block, byte, at);
  if (!b) return true;
  while (static_cast<int>(b->phase & 1) == parity) {
    if (max_polls == 1) return false;
    pause(Wait::kPhase, "barrier_wait", at, b);
  }
  Thread& t = me();
  if (!b->released) return true;  // no phase has ended yet, so there are no clocks to take over
  if (b->before != t.known) {
    auto both = std::make_shared<Clocks>(*t.known);
    join(*both, *b->released);
    b->before = t.known, b->learnt = both;
  }
  t.known = b->learnt;
  return true;
}
inline void send_bytes(int64_t to, const void* data, int size, int64_t barrier, int rank, Site at) {
  if (rank < 0 || rank >= world.size.cluster)
    return report("bounds", at,
                  "a send to block " + std::to_string(rank) + " of a cluster of " + std::to_string(world.size.cluster));
  const int block = me().block / world.size.cluster * world.size.cluster + rank;
  if (world.blocks[block].ended == world.size.threads)
    report("ended", at, "a send to block " + std::to_string(world.first_block + block) + ", which has ended");
  note_read(block, barrier, 8, at);
  Mbarrier* b = barrier_at(block, barrier, at);
  if (!b) return;
  note_write(block, to, size, at, b->phase + 1, b->id);
  memcpy(&world.blocks[block].memory[to], data, size);
  b->bytes -= size;
  arrive(block, *b);
}

}  // namespace sf::cuda::simt
