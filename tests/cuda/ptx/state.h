// What a launch consists of while it runs: warps with a place in the program for each lane, blocks with shared memory,
// barriers and mbarriers, and bytes on their way from one block to another.
#pragma once

#include "clocks.h"

namespace sf::ptx {

struct Group {  // lanes at one place of the program
  int at;
  Mask lanes;
  bool held = false;  // waits at an instruction that needs the other lanes too
};

struct Warp {
  int block, index;  // its block among those that run together, and its number there
  uint16_t id;       // in the cluster
  uint32_t clock = 1;
  Knowledge known, pending;   // pending: learnt by a relaxed wait, and known once a fence follows
  std::vector<Group> groups;  // by their place; the first one runs
  std::vector<unsigned char> registers;
  uint64_t barrier_turn = 0, cluster_turn = 0;  // see Barrier
  bool at_barrier = false, arrived = false;
  const Instruction* waits = nullptr;

  bool ended() const { return groups.empty(); }
  // Orders the accesses of all its lanes before this before those after it, as a barrier does.
  void tick() { ++clock; }
};

struct Barrier {
  int warps = 0, threads = 0;
  uint64_t turn = 0;  // how often it has ended
  Clocks gathered;
  Knowledge released;
};

struct Mbarrier {
  uint64_t at = 0;
  uint16_t id = 0;
  int arrivals = 0, pending = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;
  Clocks gathered;
  Knowledge latest, released;  // what was joined into `gathered` last; what a wait for the last phase teaches
};
constexpr int kMostMbarriers = 32, kMostBarriers = 16;

struct Send {  // bytes on their way to another block
  int block;
  uint64_t to, mbarrier;
  std::array<unsigned char, 16> bytes;
  Access stamp;  // of the sender
  Knowledge known;
  const Instruction* in;
};

struct Block {
  SharedMemory shared;
  std::vector<Mbarrier> mbarriers;
  Barrier barriers[kMostBarriers];
  int ended = 0;  // warps
};

struct Launch {
  int blocks = 1, threads = 32, shared = 0, cluster = 1;
  bool cooperative = false;
};

}  // namespace sf::ptx
