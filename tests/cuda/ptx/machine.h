// Runs a kernel's instructions, in an order that is drawn at random, and looks for faults; the first one ends a launch.
//
// Lanes that part at a branch meet again as soon as possible, since the lanes that are furthest behind run first. What
// st.async sends is kept as a thread of its own would keep it: it arrives at some later time, in any order.
#pragma once

#include <cstring>
#include <random>

#include "global.h"
#include "state.h"

namespace sf::ptx {

class Machine {
 public:
  Machine(const std::string& name, const Program& program, const Launch& launch, const void* param,
          GlobalMemory& global, unsigned seed)
      : program_(program), launch_(launch), global_(global), name_(name), random_(seed) {
    const auto* bytes = static_cast<const unsigned char*>(param);
    param_.assign(bytes, bytes + program.param_bytes);
    if (launch.threads % kLanes || launch.threads <= 0 || (program.max_threads && launch.threads > program.max_threads))
      throw Fault("launch: " + std::to_string(launch.threads) + " threads in a block");
    if (launch.cluster < 1 || launch.blocks % launch.cluster)
      throw Fault("launch: " + std::to_string(launch.blocks) + " blocks in clusters of " +
                  std::to_string(launch.cluster));
  }

  void run() {
    global_.next_launch();
    const int together = launch_.cooperative ? launch_.blocks : launch_.cluster;
    std::vector<int> firsts;
    for (int first = 0; first < launch_.blocks; first += together) firsts.push_back(first);
    std::shuffle(firsts.begin(), firsts.end(), random_);
    for (const int first : firsts) {
      first_block_ = first;
      set_up(together);
      run_together();
    }
  }
  int64_t instructions() const { return instructions_; }

  // -- for the instructions
  // ---------------------------------------------------------------------------------------------

  const Launch& launch() const { return launch_; }
  Block& block_of(const Warp& w) { return blocks_[w.block]; }
  int random(int n) { return static_cast<int>(random_() % n); }
  Actor actor(const Warp& w, int lane) const { return {{w.clock, w.id, static_cast<uint8_t>(lane)}, w.known.get()}; }
  void progress() { progressed_ = true; }

  // The bytes at an address, of which a lane is about to read or write some.
  unsigned char* access(const Warp& w, const Instruction& in, uint64_t at, int lane, bool writes) {
    const int bytes = in.bytes * in.count;
    if (in.space == Space::kGlobal) {
      const bool strong = in.scope == Scope::kDevice;
      if (in.scope != Scope::kNone && writes) progress();
      return static_cast<unsigned char*>(global_.access(at, bytes, bytes, writes, first_block_ + w.block, strong));
    }
    if (in.space == Space::kParam) {
      if (at + bytes > param_.size() || at % bytes)
        throw Fault("bounds: byte " + std::to_string(at) + " of the parameter");
      return &param_[at];
    }
    SharedMemory& shared = blocks_[w.block].shared;
    shared.check(at, bytes, bytes);
    const Actor who = actor(w, lane);
    if (writes)
      shared.note_write(at, bytes, who, who.stamp);
    else
      shared.note_read(at, bytes, who);
    return &shared.bytes[at];
  }

  // Comes to a barrier of the block. Returns true once all of its threads have come.
  bool meet(Warp& w, uint64_t id, int threads) {
    if (id >= kMostBarriers || threads <= 0 || threads % kLanes || threads > launch_.threads)
      throw Fault("barrier: " + std::to_string(id) + " of " + std::to_string(threads) + " threads");
    Barrier& b = blocks_[w.block].barriers[id];
    if (!w.at_barrier) {
      if (b.warps && b.threads != threads)
        throw Fault("barrier: warps come to it as " + std::to_string(b.threads) + " and as " + std::to_string(threads) +
                    " threads");
      b.threads = threads;
      w.at_barrier = true, w.barrier_turn = b.turn;
      gather(b.gathered, w);
      if (++b.warps * kLanes == threads) end_turn(b);
    }
    if (b.turn == w.barrier_turn) return false;
    w.at_barrier = false;
    learn(w, *b.released);
    w.tick();
    return true;
  }
  void arrive_at_cluster(Warp& w, bool releases) {
    if (w.arrived) throw Fault("barrier: a warp arrives twice at the barrier of its cluster");
    Barrier& b = clusters_[w.block / launch_.cluster];
    w.arrived = true, w.cluster_turn = b.turn;
    if (b.gathered.empty()) b.gathered.resize(w.known->size());
    if (releases) gather(b.gathered, w);
    if (++b.warps == launch_.cluster * launch_.threads / kLanes) end_turn(b);
  }
  bool cluster_has_met(Warp& w, bool acquires) {
    if (!w.arrived) throw Fault("barrier: a warp waits for its cluster without having arrived");
    Barrier& b = clusters_[w.block / launch_.cluster];
    if (b.turn == w.cluster_turn) return false;
    w.arrived = false;
    if (acquires) learn(w, *b.released);
    w.tick();
    return true;
  }

  Mbarrier& mbarrier_at(int block, uint64_t at) {
    for (Mbarrier& b : blocks_[block].mbarriers)
      if (b.at == at) return b;
    throw Fault("mbarrier: the one at byte " + std::to_string(at) + " was never initialised");
  }
  void init_mbarrier(Warp& w, uint64_t at, int arrivals, int lane) {
    Block& block = blocks_[w.block];
    block.shared.check(at, 8, 8);
    const Actor who = actor(w, lane);
    block.shared.note_write(at, 8, who, who.stamp);
    if (block.mbarriers.size() == kMostMbarriers) throw Fault("mbarrier: more than the interpreter keeps");
    Mbarrier b;
    b.at = at, b.arrivals = b.pending = arrivals;
    b.id =
        static_cast<uint16_t>(cluster_warps() + (w.block % launch_.cluster) * kMostMbarriers + block.mbarriers.size());
    b.gathered.resize(w.known->size());
    block.mbarriers.push_back(std::move(b));
    progress();
  }
  void expect(Warp& w, uint64_t at, int64_t bytes, int lane) {
    blocks_[w.block].shared.check(at, 8, 8);
    blocks_[w.block].shared.note_read(at, 8, actor(w, lane));
    Mbarrier& b = mbarrier_at(w.block, at);
    if (b.pending == 0) throw Fault("mbarrier: more arrivals in one phase than it was initialised for");
    --b.pending;
    b.bytes += bytes;
    gather(b.gathered, w);
    end_phase(b);
  }
  // Whether the phase of a parity has ended. What its arrivals knew is pending until a fence, if the wait is relaxed.
  bool phase_ended(Warp& w, uint64_t at, uint64_t parity, Scope scope, bool acquires, int lane) {
    blocks_[w.block].shared.check(at, 8, 8);
    blocks_[w.block].shared.note_read(at, 8, actor(w, lane));
    if (parity > 1) throw Fault("mbarrier: a parity of " + std::to_string(parity));
    Mbarrier& b = mbarrier_at(w.block, at);
    if ((b.phase & 1) == parity || !b.released) return (b.phase & 1) != parity;
    if (w.pending != b.released) {
      Clocks all = w.pending ? *w.pending : Clocks(w.known->size());
      join(all, within(*b.released, w, scope));
      w.pending =
          scope >= Scope::kCluster && all == *b.released ? b.released : std::make_shared<Clocks>(std::move(all));
    }
    if (acquires) learn(w, *w.pending);
    return true;
  }
  void fence(Warp& w, Scope scope) {
    if (w.pending) learn(w, within(*w.pending, w, scope));
  }
  void send(Warp& w, const Instruction& in, int lane, uint64_t to, uint64_t mbarrier,
            const std::array<unsigned char, 16>& bytes) {
    if (launch_.cluster < 2) throw Fault("st.async: undefined in a cluster of one block");
    const int block = block_at(w, to);
    if (block != block_at(w, mbarrier)) throw Fault("st.async: the bytes and the mbarrier are in different blocks");
    to &= kOffsetBits, mbarrier &= kOffsetBits;
    blocks_[block].shared.check(to, 16, 16);
    blocks_[block].shared.check(mbarrier, 8, 8);
    sends_.push_back({block, to, mbarrier, bytes, {w.clock, w.id, static_cast<uint8_t>(lane)}, w.known, &in});
    progress();
  }
  uint64_t in_block(uint64_t at, uint64_t rank) const {  // the address of mapa
    if (rank >= static_cast<uint64_t>(launch_.cluster))
      throw Fault("bounds: block " + std::to_string(rank) + " of a cluster of " + std::to_string(launch_.cluster));
    return ((rank + 1) << kRankBits) | at;
  }

 private:
  static constexpr int kRankBits = 24;
  static constexpr uint64_t kOffsetBits = (1 << kRankBits) - 1;
  static constexpr int kMostIdleRounds = 2000;
  static constexpr int64_t kMostIdleInstructions = 20'000'000;

  // The block that an address of the cluster's shared memory lies in. One without a rank is the warp's own.
  int block_at(const Warp& w, uint64_t at) const {
    const auto rank = static_cast<int>(at >> kRankBits);
    return rank == 0 ? w.block : w.block / launch_.cluster * launch_.cluster + rank - 1;
  }
  int cluster_warps() const { return launch_.cluster * launch_.threads / kLanes; }

  void gather(Clocks& into, Warp& w) {
    if (into.empty()) into.resize(w.known->size());
    join(into, *w.known);
    into[w.id] = std::max(into[w.id], w.clock);
    w.tick();
  }
  void learn(Warp& w, const Clocks& more) {
    Clocks all = *w.known;
    join(all, more);
    if (all != *w.known) w.known = std::make_shared<Clocks>(std::move(all));
  }
  // What an acquire at a scope takes over: at that of the block, only what warps of the block have done.
  Clocks within(const Clocks& c, const Warp& w, Scope scope) const {
    if (scope >= Scope::kCluster) return c;
    Clocks own(c.size());
    const int warps = launch_.threads / kLanes, first = w.block % launch_.cluster * warps;
    for (int i = first; i < first + warps; ++i) own[i] = c[i];
    return own;
  }
  void end_turn(Barrier& b) {
    b.released = std::make_shared<Clocks>(std::move(b.gathered));
    b.gathered.clear();
    b.warps = 0;
    ++b.turn;
    progress();
  }
  void end_phase(Mbarrier& b) {
    progress();
    if (b.pending || b.bytes) return;
    b.pending = b.arrivals;
    b.gathered[b.id] = ++b.phase;
    b.released = std::make_shared<Clocks>(b.gathered);
  }
  void arrive(const Send& s) {
    Block& block = blocks_[s.block];
    if (block.ended * kLanes == launch_.threads)
      throw Fault("st.async: its bytes come to a block that has ended, " + s.in->text);
    const Actor who{s.stamp, s.known.get()};
    block.shared.note_read(s.mbarrier, 8, who);
    Mbarrier& b = mbarrier_at(s.block, s.mbarrier);
    block.shared.note_write(s.to, 16, who, {b.phase + 1, b.id, kSeveral});
    memcpy(&block.shared.bytes[s.to], s.bytes.data(), 16);
    b.bytes -= 16;
    if (b.latest != s.known) join(b.gathered, *(b.latest = s.known));
    b.gathered[s.stamp.id] = std::max(b.gathered[s.stamp.id], s.stamp.clock);
    end_phase(b);
  }
  void deliver(int one_in) {
    size_t kept = 0;
    for (size_t i = 0; i < sends_.size(); ++i) {
      if (random_() % one_in)
        sends_[kept++] = sends_[i];
      else
        arrive(sends_[i]);
    }
    sends_.resize(kept);
  }

  void set_up(int blocks) {
    blocks_.clear();
    blocks_.reserve(blocks);
    for (int i = 0; i < blocks; ++i) blocks_.push_back({SharedMemory(launch_.shared), {}, {}, 0});
    clusters_.assign(blocks / launch_.cluster, {});
    sends_.clear();
    const int warps = launch_.threads / kLanes;
    warps_.assign(static_cast<size_t>(blocks) * warps, {});
    const auto nothing = std::make_shared<Clocks>(cluster_warps() + launch_.cluster * kMostMbarriers);
    for (size_t i = 0; i < warps_.size(); ++i) {
      Warp& w = warps_[i];
      w.block = static_cast<int>(i) / warps, w.index = static_cast<int>(i) % warps;
      w.id = static_cast<uint16_t>(i % cluster_warps());
      w.known = nothing;
      w.groups = {{0, kEvery}};
      w.registers.assign(program_.register_bytes, 0xFF);
      for (const auto& [at, value] : program_.constants)
        for (int l = 0; l < kLanes; ++l) {
          memcpy(&w.registers[at + 8 * l], &value, 8);
          memcpy(&w.registers[at + 8 * kLanes + 4 * l], &value, 4);
        }
      for (const auto& [name, at] : program_.special)
        for (int l = 0; l < kLanes; ++l) {
          const int value = name == "%tid.x"     ? w.index * kLanes + l
                            : name == "%ctaid.x" ? first_block_ + w.block
                            : name == "%ntid.x"  ? launch_.threads
                                                 : launch_.blocks;
          memcpy(&w.registers[at + 4 * l], &value, 4);
        }
    }
  }

  void run_together() {
    std::vector<Warp*> order;
    for (Warp& w : warps_) order.push_back(&w);
    int idle = 0;
    while (!order.empty()) {
      std::shuffle(order.begin(), order.end(), random_);
      bool ran_on = false;
      progressed_ = false;
      for (Warp* w : order) {
        ran_on |= run_warp(*w, 1 + random(4000));
        if (!sends_.empty()) deliver(3);
      }
      order.erase(std::remove_if(order.begin(), order.end(), [](Warp* w) { return w->ended(); }), order.end());
      idle = progressed_ || ran_on ? 0 : idle + 1;
      if (progressed_) last_progress_ = instructions_;
      if (idle == kMostIdleRounds || instructions_ - last_progress_ > kMostIdleInstructions)
        throw Fault(name_ + ": stuck: nothing can go on: " + who_waits_where());
    }
    while (!sends_.empty()) deliver(1);  // finds that the blocks have ended
  }
  // Runs a warp until it waits or has used up its turn; the latter returns true.
  bool run_warp(Warp& w, int turn) {
    const Instruction* in = nullptr;
    try {
      while (turn-- > 0) {
        if (w.groups.empty()) return true;
        Group& group = w.groups.front();
        if (group.at >= static_cast<int>(program_.code.size())) throw Fault("the program ends without ret");
        in = &program_.code[group.at];
        Mask lanes = group.lanes;
        if (in->guard >= 0) {
          Mask guard;
          memcpy(&guard, &w.registers[in->guard], 4);
          lanes &= in->guard_negated ? ~guard : guard;
        }
        ++instructions_;
        Next next = Next::kGo;
        try {
          if (lanes) next = in->run(*this, w, *in, lanes);
        } catch (const Divergence&) {  // lanes that took a longer way may still come
          group.held = true;
          settle(w);
          if (w.groups.front().held) throw;
          continue;
        }
        if (next == Next::kAgain) {
          w.waits = in;
          return false;
        }
        if (next != Next::kJumped) {
          ++w.groups.front().at;
          if (w.groups.size() > 1) settle(w);
        }
        if (next == Next::kYield) {
          w.waits = in;
          return false;
        }
      }
    } catch (const Fault& fault) {
      std::string others;
      for (size_t i = 1; i < w.groups.size(); ++i)
        others += "; other lanes are at " + program_.code[w.groups[i].at].text;
      throw Fault(name_ + ": " + fault.what() + " (warp " + std::to_string(w.index) + " of block " +
                  std::to_string(first_block_ + w.block) + (in ? ", " + in->text : "") + others + ")");
    }
    return true;
  }
  std::string who_waits_where() const {
    std::map<std::string, int> waiting;
    int ended = 0;
    for (const Warp& w : warps_)
      if (w.ended())
        ++ended;
      else
        ++waiting[w.waits ? w.waits->text : ""];
    std::string text;
    for (const auto& [where, count] : waiting) text += std::to_string(count) + " warps wait at " + where + "; ";
    return text + std::to_string(ended) + " have ended";
  }

 public:
  // Joins the groups of a warp that are at one place, and brings those that wait for other lanes behind the others.
  static void settle(Warp& w) {
    auto& groups = w.groups;
    std::sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.at < b.at; });
    size_t last = 0;
    for (size_t i = 1; i < groups.size(); ++i)
      if (groups[i].at == groups[last].at)
        groups[last].lanes |= groups[i].lanes, groups[last].held = false;
      else
        groups[++last] = groups[i];
    groups.resize(last + 1);
    std::stable_partition(groups.begin(), groups.end(), [](const Group& g) { return !g.held; });
  }
  void leave(Warp& w, Mask lanes) {  // these lanes have ended
    w.groups.front().lanes &= ~lanes;
    if (w.groups.front().lanes) return;
    w.groups.erase(w.groups.begin());
    if (w.groups.empty()) ++blocks_[w.block].ended;
    progress();
  }

 private:
  const Program& program_;
  const Launch launch_;
  GlobalMemory& global_;
  const std::string name_;
  std::mt19937 random_;
  std::vector<unsigned char> param_;
  int first_block_ = 0;
  std::vector<Block> blocks_;
  std::vector<Barrier> clusters_;
  std::vector<Warp> warps_;
  std::vector<Send> sends_;
  bool progressed_ = false;
  int64_t instructions_ = 0, last_progress_ = 0;
};

}  // namespace sf::ptx
