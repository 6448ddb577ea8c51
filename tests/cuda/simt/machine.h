// The simulator behind simt.h. Every CUDA thread is a fiber, and the blocks of a cluster, or of a cooperative launch,
// are simulated together. Threads run in a random order, which is the same in every run of a program, each until it has
// to wait. Threads that would wait for ever are reported.
//
// Races are found with vector clocks. Each thread counts its own time. A thread's list of clocks has a time for every
// other thread: that thread's accesses up to then are certain to have happened before. The list changes at barriers
// alone, so threads that met at a barrier share one list.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

namespace sf::cuda::simt {

struct Site {  // a line of the kernel
  const char* file;
  int line;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};
inline std::string text_of(Site at) {
  const char* slash = strrchr(at.file, '/');
  return std::string(slash ? slash + 1 : at.file) + ":" + std::to_string(at.line);
}

constexpr int64_t kEnoughFindings = 1000;  // a launch with more ends early

struct Findings {
  std::vector<std::string> texts;  // the first five, one per kind and line
  std::set<std::string> seen;
  int64_t count = 0;

  void add(const std::string& kind, Site at, const std::string& text) {
    ++count;
    if (texts.size() < 5 && seen.insert(kind + text_of(at)).second) texts.push_back(kind + ": " + text);
  }
};

using Clocks = std::vector<uint32_t>;  // one entry per thread of the cluster and per mbarrier, by id
using Knowledge = std::shared_ptr<const Clocks>;

inline void join(Clocks& into, const Clocks& from) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], from[i]);
}

constexpr uint16_t kNobody = 0xFFFF;
struct Access {
  uint32_t clock = 0;
  uint16_t id = kNobody, line = 0;
};
// The last accesses to two bytes: the last write, and the last reads by two threads. Two readers are kept, because the
// next writer may be one of them, and a thread does not race with itself. A race with an earlier reader is found in
// another launch, where the warps run in another order.
struct Shadow {
  Access write, read, read_before;
};

enum class Wait : uint8_t { kNothing, kMeeting, kPhase, kPoll, kEnded };
struct Thread;
using Meeting = std::vector<Thread*>;        // the threads that have come to a barrier
using Collective = void (*)(Thread* lanes);  // runs once all lanes of a warp have called it

struct Thread {
  Fiber fiber;
  Wait wait = Wait::kNothing;
  bool was_polling = false;
  uint16_t id = 0;  // in the cluster
  int index = 0;    // in its block
  int block = 0;    // among the blocks simulated together
  uint32_t clock = 1;
  Knowledge known;
  const char* what = "";  // the function in which it waits
  Site at{"", 0};         // and the line of the kernel that called it
  const void* place = nullptr;
  Collective collective = nullptr;
  void* operands = nullptr;  // arguments of the collective
};

struct Mbarrier {
  int64_t byte = 0;
  uint16_t id = 0;
  int pending = 1;
  int64_t bytes = 0;  // still to come; negative if they came before barrier_expect announced them
  uint32_t phase = 0;
  Clocks gathered;     // the clocks of all threads that arrived
  Knowledge latest;    // the list that was joined into `gathered` last
  Knowledge released;  // the clocks that a thread gets by waiting for the last phase
  // The result of joining `before` and `released` is kept, since many threads wait with the same list.
  Knowledge before, learnt;
};
constexpr int kMostBarriers = 64, kMostGroups = 15;

struct Block {
  std::vector<unsigned char> memory;
  std::vector<Shadow> shadow;
  std::vector<Mbarrier> barriers;
  Meeting all, groups[kMostGroups];
  int group_threads[kMostGroups] = {};
  int ended = 0;
};

struct LaunchSize {
  int blocks, threads, shared = 0, cluster = 1;
  bool cooperative = false;  // all blocks are simulated together
};

inline struct World {
  LaunchSize size{};
  int first_block = 0;  // number of the first of the blocks simulated together
  std::vector<Thread> threads;
  std::vector<Block> blocks;
  std::vector<Meeting> warps, clusters;
  std::vector<char*> stacks;  // the ends of the stacks
  std::function<void()> body;
  Fiber scheduler;
  Thread* running = nullptr;
  int ended = 0;
  uint64_t changes = 0;    // how often a word in global memory changed
  int patience = 1 << 23;  // after this many failed polls and nothing else a launch is stuck (half a second)
  uint32_t launches = 0;
  Findings findings;

  int cluster_threads() const { return size.cluster * size.threads; }
} world;

inline Thread& me() { return *world.running; }
inline Block& my_block() { return world.blocks[me().block]; }
inline Thread* block_threads(int block) { return &world.threads[block * world.size.threads]; }
inline std::string name_of(const Thread& t) {
  return "thread " + std::to_string(world.first_block + t.block) + "." + std::to_string(t.index);
}
inline void report(const char* kind, Site at, const std::string& text) {
  world.findings.add(kind, at, text + " (" + name_of(me()) + ", " + text_of(at) + ")");
}

inline void pause(Wait wait, const char* what, Site at, const void* place) {
  Thread& t = me();
  t.wait = wait, t.what = what, t.at = at, t.place = place;
  switch_fibers(t.fiber, world.scheduler);
}

// Ends a barrier: every thread gets the joined clocks of all, and goes on.
inline void rendezvous(Meeting& meeting) {
  auto all = std::make_shared<Clocks>(*meeting[0]->known);
  const Clocks* joined = meeting[0]->known.get();
  for (const Thread* t : meeting)
    if (t->known.get() != joined) join(*all, *(joined = t->known.get()));
  for (Thread* t : meeting) (*all)[t->id] = t->clock++;
  for (Thread* t : meeting) {
    t->known = all;
    t->wait = Wait::kNothing;
  }
  meeting.clear();
}
// Adds this thread to a barrier. Returns true for the last thread; all others wait first.
inline bool come_last(Meeting& meeting, int threads, const char* what, Site at) {
  Thread& t = me();
  t.what = what, t.at = at, t.place = &meeting;
  meeting.push_back(&t);
  if (static_cast<int>(meeting.size()) >= threads) return true;
  pause(Wait::kMeeting, what, at, &meeting);
  return false;
}
inline void sync_block(Site at) {
  Meeting& meeting = my_block().all;
  if (!come_last(meeting, world.size.threads, "cta_sync", at)) return;
  for (const Thread* t : meeting)
    if (t->at.line != at.line || strcmp(t->at.file, at.file) != 0) {
      report("barrier", at, "threads meet at different lines, " + name_of(*t) + " in " + text_of(t->at));
      break;
    }
  rendezvous(meeting);
}
inline void sync_group(int id, int threads, Site at) {
  if (id < 0 || id >= kMostGroups || threads <= 0 || threads % 32 || threads > world.size.threads)
    return report("barrier", at, "group " + std::to_string(id) + " of " + std::to_string(threads) + " threads");
  Meeting& meeting = my_block().groups[id];
  int& agreed = my_block().group_threads[id];
  if (meeting.empty()) agreed = threads;
  if (agreed != threads)
    report("barrier", at,
           "threads come to group " + std::to_string(id) + " as " + std::to_string(threads) + " and as " +
               std::to_string(agreed));
  if (!come_last(meeting, agreed, "group_sync", at)) return;
  size_t in_whole_warps = 0;
  for (const Thread* t : meeting)
    if (t->index % 32 == 0)
      in_whole_warps += 32 * std::all_of(t, t + 32, [&](const Thread& lane) { return lane.place == &meeting; });
  if (in_whole_warps != meeting.size())
    report("barrier", at, "group " + std::to_string(id) + " is met by parts of warps");
  for (Thread* t : meeting) t->place = nullptr;
  rendezvous(meeting);
}
inline void sync_cluster(Site at) {
  Meeting& meeting = world.clusters[me().block / world.size.cluster];
  if (come_last(meeting, world.cluster_threads(), "cluster_sync", at)) rendezvous(meeting);
}
// The last lane of the warp to come does the work of all lanes. If lanes call different functions, all wait for ever,
// and the launch is reported as stuck.
inline void sync_warp(Collective collective, void* operands, const char* what, Site at) {
  Thread& t = me();
  t.collective = collective, t.operands = operands;
  Thread* lanes = &t - t.index % 32;
  Meeting& meeting = world.warps[(lanes - world.threads.data()) / 32];
  if (!come_last(meeting, 32, what, at)) return;
  for (const Thread* lane : meeting)
    if (lane->collective != collective || lane->at.line != at.line) return pause(Wait::kMeeting, what, at, &meeting);
  if (collective) {
    collective(lanes);
    for (Thread* lane : meeting) lane->wait = Wait::kNothing;
    meeting.clear();
  } else {
    rendezvous(meeting);
  }
}

inline void run_fiber() {
  try {
    world.body();
  } catch (const std::exception& error) {
    world.findings.add("thrown", {"", 0}, error.what() + (" (" + name_of(me()) + ")"));
  }
  ++my_block().ended;
  ++world.ended;
  pause(Wait::kEnded, "", {"", 0}, nullptr);
}
// Prepares the fibers and the memory of blocks that are simulated together.
inline void set_up(int first_block, int blocks) {
  const LaunchSize& size = world.size;
  world.first_block = first_block;
  world.ended = 0;
  const size_t threads = static_cast<size_t>(blocks) * size.threads;
  world.blocks.resize(blocks);
  for (Block& b : world.blocks) {
    b.memory.assign(size.shared, 0xFF);  // NaN in every type
    b.shadow.assign(size.shared / 2 + 1, {});
    b.barriers.clear();
    b.barriers.reserve(kMostBarriers);
    b.all.clear();
    for (Meeting& group : b.groups) group.clear();
    b.ended = 0;
  }
  world.warps.assign(threads / 32, {});
  world.clusters.assign(blocks / size.cluster, {});
  world.threads.assign(threads, {});
  const auto nothing = std::make_shared<Clocks>(world.cluster_threads() + size.cluster * kMostBarriers);
  for (size_t i = 0; i < threads; ++i) {
    Thread& t = world.threads[i];
    t.id = static_cast<uint16_t>(i % world.cluster_threads());
    t.index = static_cast<int>(i % size.threads);
    t.block = static_cast<int>(i / size.threads);
    t.known = nothing;
    if (world.stacks.size() == i) world.stacks.push_back(new_stack(i));
    t.fiber.prepare(world.stacks[i], run_fiber);
  }
}
inline std::string who_waits_where() {
  std::map<std::string, int> waiting;
  for (const Thread& t : world.threads)
    if (t.wait != Wait::kEnded) ++waiting[std::string(t.what) + " in " + text_of(t.at)];
  std::string text;
  for (const auto& [where, count] : waiting) text += std::to_string(count) + " threads wait at " + where + ", ";
  return text + std::to_string(world.ended) + " have ended";
}
// Runs the threads in an order that depends on `seed`, until all have ended or none can go on. In four of eight rounds
// one block stands still, so that the others get ahead of it as far as they may.
inline void run_blocks(unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Thread*> warps(world.threads.size() / 32);
  for (size_t w = 0; w < warps.size(); ++w) warps[w] = &world.threads[32 * w];
  const int blocks = static_cast<int>(world.threads.size()) / world.size.threads;
  for (int idle = 0, round = 0, held = -1; idle < world.patience; ++round) {
    if (round % 4 == 0) held = blocks > 1 && round % 8 ? static_cast<int>(random() % blocks) : -1;
    bool progress = false;
    int runs = 0;
    const uint64_t changes = world.changes;
    std::shuffle(warps.begin(), warps.end(), random);
    for (Thread* lanes : warps) {
      if (lanes->block == held) continue;
      for (Thread* t = lanes; t < lanes + 32; ++t) {
        t->was_polling = t->wait == Wait::kPoll;
        if (t->was_polling) t->wait = Wait::kNothing;
      }
      for (bool ran = true; ran;) {
        ran = false;
        const int order = random() & 31;
        for (int l = 0; l < 32; ++l) {
          Thread& t = lanes[l ^ order];
          if (t.wait != Wait::kNothing) continue;
          world.running = &t;
          switch_fibers(world.scheduler, t.fiber);
          ran = true;
          ++runs;
          progress |= !(t.was_polling && t.wait == Wait::kPoll);
        }
      }
    }
    if (world.ended == static_cast<int>(world.threads.size()) || world.findings.count > kEnoughFindings) return;
    if (runs == 0 && held < 0) break;
    idle = progress || changes != world.changes ? 0 : idle + (held < 0 ? runs : 0);
  }
  world.findings.add("stuck", {"", 0}, "nothing can go on: " + who_waits_where());
}

// Runs `body` once per thread. If the detectors found anything, throws their findings.
inline void launch(const LaunchSize& size, std::function<void()> body) {
  if (size.threads <= 0 || size.threads > 1024 || size.threads % 32)
    throw std::runtime_error("simt: a block has 32 to 1024 threads in whole warps, got " +
                             std::to_string(size.threads));
  if (size.cluster <= 0 || size.cluster > 16 || size.blocks <= 0 || size.blocks % size.cluster)
    throw std::runtime_error("simt: " + std::to_string(size.blocks) + " blocks do not divide into clusters of " +
                             std::to_string(size.cluster) + " (1 to 16)");
  world.size = size;
  world.body = std::move(body);
  world.findings = {};
  const int together = size.cooperative ? size.blocks : size.cluster;
  for (int first = 0; first < size.blocks && !world.findings.count; first += together) {
    set_up(first, together);
    run_blocks(++world.launches);
  }
  if (!world.findings.count) return;
  std::string text = "simt: " + std::to_string(world.findings.count) + " findings";
  for (const std::string& finding : world.findings.texts) text += "\n  " + finding;
  throw std::runtime_error(text);
}

}  // namespace sf::cuda::simt
