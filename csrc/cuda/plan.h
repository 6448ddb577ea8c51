// Which regime runs a pass, and how the pass is divided among blocks and warps: arithmetic over sizes and device
// limits, without CUDA. The host code and the kernels both take their constants from here.
//
// R is W_hh, and K the dimension that the product with R sums over. A warp keeps the rows of R of 16 units, all gates
// of them, in registers: one m-tile of 16 rows per gate in the forward, one m-tile of R^T in the backward. Where that
// is too much for one warp, `splits` warps share the 16 units and each takes a part of K; these warps are a group. The
// blocks that together hold all groups are a team. A team works through `tiles` batch tiles of 8 rows, one after
// another in every step, and R stays in its registers.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace sf::cuda {

enum class Pass : int { kForward, kBackward };
enum class Regime : int { kOnchip, kCluster, kGrid, kStepwise };
// How products are formed. kTf32x3 takes three TF32 products for one, which is as exact as float32.
enum class Precision : int { kBf16, kFp16, kTf32, kTf32x3 };

// What the options of a layer ask of a kernel. kMasks: zoneout or a dropout.
enum class Options : int { kNone, kMasks, kPeephole, kNorm, kResetsFirst };

constexpr const char* kRegimes[] = {"onchip", "cluster", "grid", "stepwise"};
constexpr int kTileRows = 8, kGroupUnits = 16;
constexpr int64_t kAddressLimit = int64_t{1} << 32;  // strides of a RowAddress (launch_args.h) are smaller, in bytes

constexpr int element_size(Precision p) { return p == Precision::kBf16 || p == Precision::kFp16 ? 2 : 4; }
constexpr int planes(Precision p) { return p == Precision::kTf32x3 ? 2 : 1; }  // numbers whose sum is one operand value
constexpr int products(Precision p) { return p == Precision::kTf32x3 ? 3 : 1; }
constexpr int k_tile_units(Precision p) { return 32 / element_size(p); }  // a k-tile is 32 bytes of a row

// How K is divided: among `splits` warps, each of which has `k_tiles` k-tiles of H (in the backward, of H for every
// gate). Only the tilings listed here have kernels.
struct Tiling {
  int splits, k_tiles;
};
constexpr Tiling kGated[] = {{1, 4}, {1, 8}, {2, 6}, {2, 8}, {4, 6}, {4, 8}, {8, 6}, {8, 8}};
constexpr Tiling kGatedX3[] = {{1, 2}, {2, 2}, {2, 4}, {4, 4}, {8, 4}};
constexpr Tiling kElman[] = {{1, 4}, {1, 8}, {1, 16}, {1, 32}, {2, 32}};
constexpr Tiling kElmanX3[] = {{1, 4}, {1, 8}, {1, 16}, {2, 16}};

struct Tilings {
  const Tiling* first;
  int count;
};
constexpr Tilings tilings(int gates, Precision p) {
  if (gates == 1) return p == Precision::kTf32x3 ? Tilings{kElmanX3, 4} : Tilings{kElman, 5};
  return p == Precision::kTf32x3 ? Tilings{kGatedX3, 5} : Tilings{kGated, 8};
}

constexpr int padded_hidden(Tiling t, Precision p) { return t.splits * t.k_tiles * k_tile_units(p); }
constexpr int weight_registers(Tiling t, int gates, Precision p) { return 4 * gates * t.k_tiles * planes(p); }
// A thread may have 255 registers in a block of 8 warps, 128 in a block of 16.
// Layer normalisation takes so many that 8 warps are all, and no tiling of 16 has more than 8 groups.
constexpr int max_warps(Tiling t, int gates, Precision p, Options options = Options::kNone) {
  return weight_registers(t, gates, p) <= 32 && options != Options::kNorm ? 16 : 8;
}
constexpr int owners(int splits) { return splits < 4 ? splits : 4; }  // warps of a group that hold cells
constexpr int cells_per_lane(int splits) { return splits ? 4 / owners(splits) : 0; }
// Values that a cell passes to the next step's product: h in the forward, the gradients of all gates in the backward.
constexpr int operands(Pass pass, int gates) { return pass == Pass::kForward ? 1 : gates; }
constexpr int m_tiles(Pass pass, int gates) { return pass == Pass::kForward ? gates : 1; }

struct Limits {
  int architecture = 90;  // 10 * major + minor
  int multiprocessors = 132;
  int shared_bytes = 232448;                     // shared memory that one block may have
  int cluster = 16;                              // most blocks of a cluster; 1 where there are no clusters
  int warps = 16;                                // most warps of a block
  int64_t projected_bytes = int64_t{256} << 20;  // most memory that the projected input may take at a time
  int64_t max_ordered = 65536;                   // largest batch that is ordered by length, in time B * B
  int max_polls = 1 << 24;                       // failed polls before a kernel stops waiting, after some seconds
  // The clusters of each size that the device can hold at once, as the driver says; 0 where it was not asked.
  int active_clusters[17] = {};
};

struct Device {
  const char* name;
  Limits limits;
};
// The limits of some devices, for plans that are made without one. Their clusters are those of clusters_at_once.
constexpr Device kDevices[] = {{"h200", {90, 132, 232448, 16, 16}},
                               {"h100", {90, 132, 232448, 16, 16}},
                               {"a100", {80, 108, 166912, 1, 16}},
                               {"l40s", {89, 142, 101376, 1, 16}}};

struct Request {
  int gates;
  Pass pass;
  Precision precision;
  int64_t hidden, batch;
  int directions;
  Options options = Options::kNone;
};

constexpr Options options_of(bool norm, bool resets_first, bool peephole, bool noisy) {
  if (norm) return Options::kNorm;
  if (resets_first) return Options::kResetsFirst;
  return peephole ? Options::kPeephole : noisy ? Options::kMasks : Options::kNone;
}

// Whether the units of a row wait for each other within a step too, and not only between steps.
constexpr bool meets_within_a_step(Options options) {
  return options == Options::kNorm || options == Options::kResetsFirst;
}

struct Plan {
  Regime regime = Regime::kStepwise;
  const char* why = "";  // why this regime does not fit; if it does, why the one tried before it does not
  Tiling tiling{};
  int padded = 0;        // H rounded up to what the tiling covers
  int groups = 0;        // groups of a team, at most padded / 16
  int block_groups = 0;  // groups of a block
  int blocks = 0;        // blocks of a team
  int tiles = 0;         // batch tiles of a team; 0 if the regime does not fit
  int teams = 0;         // teams of a direction
  int threads = 0;       // threads of a block
  int registers = 0;     // most registers of a thread
  int shared_bytes = 0;  // shared memory of a block
};

// The most registers that a thread of a block may have. A multiprocessor has four parts that share out the warps, so
// their number counts as if rounded up to a multiple of four.
constexpr int register_cap(int warps) {
  const int cap = 16384 / (32 * ((warps + 3) / 4)) / 8 * 8;
  return cap < 255 ? cap : 255;
}

// Bytes from one row of a batch tile's operand to the next: an odd multiple of 16, so that 8 rows that are read at once
// lie in different banks.
constexpr int operand_pitch(const Request& r, int padded) {
  return operands(r.pass, r.gates) * padded * element_size(r.precision) + 16;
}

// Layer normalisation: the blocks of gates that are normalised apart, and the words that the parts of the sums over the
// 8 rows of a tile take, of which each slice of units has two for each row and block.
constexpr int norm_blocks(int gates) { return gates == 3 ? 2 : 1; }
constexpr int slice_units(int splits) { return splits == 1 ? 16 : 8; }
constexpr int row_part_words(int gates, int slices) { return 2 * norm_blocks(gates) * kTileRows * slices; }
constexpr int norm_bytes(const Request& r, const Plan& p) {
  const int gains = (r.gates == 1 ? 1 : 4) + (r.gates == 4 ? 2 : 0);  // of h, of a unit; of c there are two numbers
  const int totals = norm_blocks(r.gates) * kTileRows * 8;
  const int units = slice_units(p.tiling.splits), slices = (static_cast<int>(r.hidden) + units - 1) / units;
  return 4 * gains * p.block_groups * kGroupUnits + totals + 4 * row_part_words(r.gates, slices);
}

// The regions that options.cuh takes: keys of four masks for each row, and of peepholes the weights and their
// gradients.
constexpr int option_bytes(const Request& r, const Plan& p) {
  if (r.options == Options::kNone) return 0;
  const int keys = p.tiles * kTileRows * 4 * 8;
  if (r.options == Options::kNorm) return keys + norm_bytes(r, p);
  if (r.options != Options::kPeephole) return keys;
  const int weights = 4 * p.block_groups * kGroupUnits * 4;
  const int sums = p.tiles * 3 * cells_per_lane(p.tiling.splits) * p.block_groups * p.tiling.splits * 32 * 4;
  return keys + weights + (r.pass == Pass::kBackward ? sums : 0);
}

// The sum of the regions that recurrence.cuh takes from shared memory, all multiples of 16 bytes.
constexpr int shared_bytes(const Request& r, const Plan& p) {
  const int warps = p.block_groups * p.tiling.splits, values = planes(r.precision) * operands(r.pass, r.gates);
  const int rows = p.tiles * kTileRows * 8;
  const int held = 2 * (p.regime == Regime::kGrid ? 1 : p.tiles);  // grid holds the tile at hand and the one before
  const int operand = held * planes(r.precision) * kTileRows * operand_pitch(r, p.padded);
  const int state = p.tiles * 2 * cells_per_lane(p.tiling.splits) * warps * 32 * 4;
  const int partial = p.tiling.splits == 1 ? 0 : 2 * warps * m_tiles(r.pass, r.gates) * 4 * 32 * 4;
  const int units = p.tiling.splits == 1 ? 16 : 8;
  const int stage = p.regime == Regime::kOnchip ? 0 : warps * values * kTileRows * units * element_size(r.precision);
  const int barriers = p.regime == Regime::kCluster ? p.tiles * 2 * 8 : 0;
  return rows + operand + state + partial + stage + barriers + option_bytes(r, p);
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The clusters of a size that run at once, with one block on a multiprocessor. A cluster lies within one GPC, a part of
// the device with 16 or 18 multiprocessors that work, so that clusters of 9 to 16 blocks fit each GPC once.
constexpr int64_t clusters_at_once(const Limits& limits, int blocks) {
  constexpr int kGpc = 16;
  if (blocks <= 16 && limits.active_clusters[blocks] > 0) return limits.active_clusters[blocks];
  const int64_t by_count = limits.multiprocessors / blocks;
  const int64_t by_gpc = int64_t{limits.multiprocessors / kGpc} * (kGpc / blocks);
  return limits.multiprocessors < kGpc || by_count < by_gpc ? by_count : by_gpc;
}

// The plan for one regime. If the regime cannot run the layer, the plan has no tiles and `why` says the reason.
constexpr Plan fit(const Request& r, const Limits& limits, Regime regime) {
  Plan p{};
  p.regime = regime;
  if (regime == Regime::kStepwise) return p;
  if (regime == Regime::kCluster && meets_within_a_step(r.options)) {
    p.why = r.options == Options::kNorm ? "layer normalisation has no kernel for clusters"
                                        : "a GRU that resets before the product has no kernel for clusters";
    return p;
  }
  const Tilings all = tilings(r.gates, r.precision);
  int chosen = 0;
  while (chosen < all.count && padded_hidden(all.first[chosen], r.precision) < r.hidden) ++chosen;
  if (chosen == all.count) {
    p.why = "the recurrent weights do not fit the registers of any kernel";
    return p;
  }
  p.tiling = all.first[chosen];
  p.padded = padded_hidden(p.tiling, r.precision);
  p.groups = static_cast<int>(ceil_div(r.hidden, kGroupUnits));
  const int max_block_warps = max_warps(p.tiling, r.gates, r.precision, r.options);
  const int max_groups = (max_block_warps < limits.warps ? max_block_warps : limits.warps) / p.tiling.splits;
  if (max_groups == 0) {
    p.why = "a block has too few warps for the parts K is cut into";
    return p;
  }
  p.blocks = static_cast<int>(ceil_div(p.groups, max_groups));
  p.block_groups = static_cast<int>(ceil_div(p.groups, p.blocks));
  p.groups = p.blocks * p.block_groups;  // every warp has a group, even one of padding only: cluster.cuh needs that
  p.threads = 32 * p.block_groups * p.tiling.splits;
  p.registers = register_cap(max_block_warps);
  if (regime == Regime::kOnchip && p.blocks > 1) {
    p.why = "the recurrent weights do not fit one multiprocessor";
    return p;
  }
  if (4 * r.batch * r.gates * p.padded >= kAddressLimit) {  // the bytes of a step of the projected input
    p.why = "the layer is too large for addresses of 32 bits";
    return p;
  }
  if (regime != Regime::kOnchip && p.blocks == 1) {
    p.why = "one multiprocessor holds the recurrent weights, so there are no blocks to share them";
    return p;
  }
  if (regime == Regime::kCluster && p.blocks > limits.cluster) {
    p.why = limits.cluster > 1 ? "the recurrent weights do not fit one cluster" : "the device has no clusters";
    return p;
  }
  const int64_t teams_at_once =
      regime == Regime::kCluster ? clusters_at_once(limits, p.blocks) : limits.multiprocessors / p.blocks;
  const int64_t resident = teams_at_once / r.directions;
  if (regime == Regime::kGrid && resident == 0) {
    p.why = "the recurrent weights do not fit all multiprocessors at once";
    return p;
  }
  const int64_t batch_tiles = ceil_div(r.batch > 0 ? r.batch : 1, kTileRows);
  const int64_t wanted = ceil_div(batch_tiles, resident > 0 ? resident : 1);
  // onchip: a block has at most two tiles, since while one waits the other can compute. Blocks beyond the number of
  // multiprocessors start when others have ended.
  const int64_t most = regime == Regime::kOnchip ? (wanted < 2 ? wanted : 2) : wanted;
  for (p.tiles = static_cast<int>(most < 16 ? most : 16); p.tiles > 0; --p.tiles) {
    p.shared_bytes = shared_bytes(r, p);
    if (p.shared_bytes <= limits.shared_bytes) break;
  }
  if (p.tiles == 0) {
    p.why = "one batch tile does not fit shared memory";
    return p;
  }
  // That number of tiles decides how many rounds of teams are needed. Divide the tiles evenly among these rounds.
  const int64_t at_once = resident > 0 ? resident : 1, rounds = ceil_div(batch_tiles, at_once * p.tiles);
  p.tiles = static_cast<int>(ceil_div(batch_tiles, at_once * rounds));
  p.shared_bytes = shared_bytes(r, p);
  p.teams = static_cast<int>(ceil_div(batch_tiles, p.tiles));
  if (regime == Regime::kGrid && p.teams > resident) {
    p.why = "so many rows do not fit all multiprocessors at once";
    p.tiles = 0;
  }
  return p;
}

// Whether a plan for a real device can choose this tiling under this regime. Only such kernels are compiled.
constexpr bool reachable(int gates, Precision precision, Tiling t, Regime regime) {
  const Tilings all = tilings(gates, precision);
  int smallest = 1;  // the smallest H that takes this tiling
  for (int i = 0; i < all.count; ++i) {
    const int padded = padded_hidden(all.first[i], precision);
    if (padded < padded_hidden(t, precision) && padded >= smallest) smallest = padded + 1;
  }
  const int max_groups = max_warps(t, gates, precision) / t.splits;
  const auto blocks = [&](int hidden) { return ceil_div(ceil_div(hidden, kGroupUnits), max_groups); };
  const int64_t low = blocks(smallest), high = blocks(padded_hidden(t, precision));
  if (regime == Regime::kOnchip) return low == 1;
  return high > 1 && (regime == Regime::kGrid || low <= 16);
}

constexpr bool fits(const Plan& p) { return p.regime == Regime::kStepwise || p.tiles > 0; }

constexpr Plan make_plan(const Request& r, const Limits& limits) {
  const char* why = "";
  for (const Regime regime : {Regime::kOnchip, Regime::kCluster, Regime::kGrid}) {
    Plan p = fit(r, limits, regime);
    if (fits(p)) {
      p.why = why;  // why the regime before this one did not fit
      return p;
    }
    why = p.why;
  }
  Plan p = fit(r, limits, Regime::kStepwise);
  p.why = why;
  return p;
}

// The least cycles of a team's step on the tensor cores, at 6.4 cycles for one m16n8k16 product, and on the special
// function units, at 8 cycles for one instruction of a warp. mufu: special function instructions of one cell.
constexpr double mma_cycles(const Request& r, const Plan& p) {
  const int warps = p.block_groups * p.tiling.splits;
  return 6.4 * static_cast<double>(ceil_div(warps, 4)) * r.gates * p.tiling.k_tiles * products(r.precision) * p.tiles;
}
constexpr double mufu_cycles(const Request&, const Plan& p, int mufu) {
  const int busy = static_cast<int>(ceil_div(p.block_groups * owners(p.tiling.splits), 4));
  return 8.0 * busy * cells_per_lane(p.tiling.splits) * mufu * p.tiles;
}

}  // namespace sf::cuda
