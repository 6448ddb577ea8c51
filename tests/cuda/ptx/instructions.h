// The instructions that do more than arithmetic: branches, barriers, memory, tensor cores. Only what nvcc makes of our
// kernels is here and in arithmetic.h; anything else is a fault that names it.
#pragma once

#include "arithmetic.h"

namespace sf::ptx {

// -- control ----------------------------------------------------------------------------------------------------------

inline Next branch(Machine&, Warp& w, const Instruction& in, Mask lanes) {
  Group& first = w.groups.front();
  const bool parts = first.lanes != lanes;
  if (parts) {
    first.lanes &= ~lanes;
    ++first.at;
    w.groups.push_back({in.target, lanes});
  } else {
    first.at = in.target;
  }
  if (w.groups.size() > 1) Machine::settle(w);
  return Next::kJumped;
}
inline Next leave(Machine& m, Warp& w, const Instruction&, Mask lanes) {
  if (w.groups.front().lanes == lanes) {
    m.leave(w, lanes);
    return Next::kJumped;
  }
  m.leave(w, lanes);
  return Next::kGo;
}
// Instructions that all lanes of a warp must carry out together.
inline void need_every_lane(Mask lanes) {
  if (lanes != kEvery) throw Divergence("divergence: only some lanes of the warp carry it out");
}
inline uint64_t of_every_lane(const Warp& w, const Operand& o) {
  for (int l = 1; l < kLanes; ++l)
    if (wide(w, o, l) != wide(w, o, 0)) throw Fault("divergence: its operand differs from lane to lane");
  return wide(w, o, 0);
}
inline Next block_barrier(Machine& m, Warp& w, const Instruction& in, Mask lanes) {
  need_every_lane(lanes);
  const uint64_t id = of_every_lane(w, in.o[0]);
  const auto threads = in.o.size() > 1 ? static_cast<int>(of_every_lane(w, in.o[1])) : m.launch().threads;
  return m.meet(w, id, threads) ? Next::kGo : Next::kAgain;
}
inline Next warp_barrier(Machine&, Warp& w, const Instruction& in, Mask lanes) {
  if (static_cast<Mask>(of_every_lane(w, in.o[0])) != kEvery) throw Fault("divergence: it names only some lanes");
  need_every_lane(lanes);
  w.tick();
  return Next::kGo;
}
inline Next cluster_arrive(Machine& m, Warp& w, const Instruction& in, Mask lanes) {
  need_every_lane(lanes);
  m.arrive_at_cluster(w, in.releases);
  return Next::kGo;
}
inline Next cluster_wait(Machine& m, Warp& w, const Instruction& in, Mask lanes) {
  need_every_lane(lanes);
  return m.cluster_has_met(w, in.acquires) ? Next::kGo : Next::kAgain;
}

// -- memory -----------------------------------------------------------------------------------------------------------

inline Next load(Machine& m, Warp& w, const Instruction& in, Mask lanes) {
  const Operand& address = in.o[in.count];
  each(lanes, [&](int l) {
    const unsigned char* from = m.access(w, in, wide(w, address, l) + address.plus, l, false);
    for (int i = 0; i < in.count; ++i) {
      uint64_t v = 0;
      memcpy(&v, from + i * in.bytes, in.bytes);
      if (in.is_signed) v = static_cast<uint64_t>(extended(v, in.bytes));
      set_wide(w, in.o[i], l, v);
    }
  });
  return in.scope == Scope::kNone ? Next::kGo : Next::kYield;
}
inline Next store(Machine& m, Warp& w, const Instruction& in, Mask lanes) {
  each(lanes, [&](int l) {
    unsigned char* to = m.access(w, in, wide(w, in.o[0], l) + in.o[0].plus, l, true);
    for (int i = 0; i < in.count; ++i) {
      const uint64_t v = wide(w, in.o[1 + i], l);
      memcpy(to + i * in.bytes, &v, in.bytes);
    }
  });
  return in.scope == Scope::kNone || m.random(4) ? Next::kGo : Next::kYield;  // so that others run between two of them
}
inline Next send(Machine& m, Warp& w, const Instruction& in, Mask lanes) {
  each(lanes, [&](int l) {
    std::array<unsigned char, 16> bytes;
    for (int i = 0; i < 4; ++i) {
      const uint64_t v = wide(w, in.o[1 + i], l);
      memcpy(&bytes[4 * i], &v, 4);
    }
    m.send(w, in, l, wide(w, in.o[0], l) + in.o[0].plus, wide(w, in.o[5], l) + in.o[5].plus, bytes);
  });
  return Next::kGo;
}
inline Next map_address(Machine& m, Warp& w, const Instruction& in, Mask lanes) {
  each(lanes, [&](int l) { set_wide(w, in.o[0], l, m.in_block(wide(w, in.o[1], l), wide(w, in.o[2], l))); });
  return Next::kGo;
}
inline Next mbarrier_init(Machine& m, Warp& w, const Instruction& in, Mask lanes) {
  each(lanes, [&](int l) {
    m.init_mbarrier(w, wide(w, in.o[0], l) + in.o[0].plus, static_cast<int>(wide(w, in.o[1], l)), l);
  });
  return Next::kGo;
}
inline Next mbarrier_expect(Machine& m, Warp& w, const Instruction& in, Mask lanes) {
  each(lanes, [&](int l) { m.expect(w, wide(w, in.o[1], l) + in.o[1].plus, extended(wide(w, in.o[2], l), 4), l); });
  return Next::kGo;
}
// Now and then a lane is told that the phase has not ended, as the device may after a while. Lanes then part.
inline Next mbarrier_wait(Machine& m, Warp& w, const Instruction& in, Mask lanes) {
  Mask done = 0;
  each(lanes, [&](int l) {
    if (m.random(64) &&
        m.phase_ended(w, wide(w, in.o[1], l) + in.o[1].plus, wide(w, in.o[2], l), in.scope, in.acquires, l))
      done |= Mask{1} << l;
  });
  set_predicate(w, in.o[0], lanes, done);
  return done == lanes ? Next::kGo : Next::kYield;
}
inline Next fence(Machine& m, Warp& w, const Instruction& in, Mask) {
  m.fence(w, in.scope);
  return Next::kGo;
}

// -- tensor cores -----------------------------------------------------------------------------------------------------

inline Next load_matrices(Machine& m, Warp& w, const Instruction& in, Mask lanes) {
  need_every_lane(lanes);
  SharedMemory& shared = m.block_of(w).shared;
  for (int i = 0; i < 4; ++i)
    for (int l = 0; l < kLanes; ++l) {
      const uint64_t row = wide(w, in.o[4], 8 * i + l / 4) + in.o[4].plus;
      shared.check(row, 16, 16);
      const uint64_t at = row + 4 * (l % 4);
      shared.note_read(at, 4, m.actor(w, l));
      uint32_t v;
      memcpy(&v, &shared.bytes[at], 4);
      set_wide(w, in.o[i], l, v);
    }
  return Next::kGo;
}

inline Next shuffle(Machine&, Warp& w, const Instruction& in, Mask lanes) {
  need_every_lane(lanes);
  if (of_every_lane(w, in.o[3]) != 31 || static_cast<uint32_t>(of_every_lane(w, in.o[4])) != kEvery)
    throw Fault("shfl: expected all lanes of the warp");
  uint64_t values[kLanes];
  for (int l = 0; l < kLanes; ++l) values[l] = wide(w, in.o[1], l);
  for (int l = 0; l < kLanes; ++l) set_wide(w, in.o[0], l, values[l ^ (wide(w, in.o[2], l) & 31)]);
  return Next::kGo;
}

struct Bf16Words {
  static constexpr int kPerWord = 2;
  static float value(uint32_t word, int i) { return cuda::from_bf16(static_cast<uint16_t>(word >> 16 * i)); }
};
struct Fp16Words {
  static constexpr int kPerWord = 2;
  static float value(uint32_t word, int i) { return cuda::from_fp16(static_cast<uint16_t>(word >> 16 * i)); }
};
struct Tf32Words {
  static constexpr int kPerWord = 1;
  static float value(uint32_t word, int) { return cuda::float_of(word & ~0x1FFFu); }
};
// D = A B + C. Where each element lies is in the PTX manual: A is 16 x depth in four registers, B depth x 8 in two.
template <class Words>
Next multiply(Machine&, Warp& w, const Instruction& in, Mask lanes) {
  need_every_lane(lanes);
  constexpr int kWide = Words::kPerWord, kDepth = 8 * kWide;
  float a[16][kDepth], b[kDepth][8];
  double d[16][8];
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, q = l % 4;
    for (int r = 0; r < 4; ++r)
      for (int i = 0; i < kWide; ++i)
        a[g + 8 * (r % 2)][kWide * (q + 4 * (r / 2)) + i] =
            Words::value(static_cast<uint32_t>(wide(w, in.o[4 + r], l)), i);
    for (int r = 0; r < 2; ++r)
      for (int i = 0; i < kWide; ++i)
        b[kWide * (q + 4 * r) + i][g] = Words::value(static_cast<uint32_t>(wide(w, in.o[8 + r], l)), i);
    for (int r = 0; r < 4; ++r)
      d[g + 8 * (r / 2)][2 * q + r % 2] = cuda::float_of(static_cast<uint32_t>(wide(w, in.o[10 + r], l)));
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < kDepth; ++k)
      for (int n = 0; n < 8; ++n) d[m][n] += static_cast<double>(a[m][k]) * b[k][n];
  for (int l = 0; l < kLanes; ++l)
    for (int r = 0; r < 4; ++r)
      set_wide(w, in.o[r], l, cuda::bits_of(static_cast<float>(d[l / 4 + 8 * (r / 2)][2 * (l % 4) + r % 2])));
  return Next::kGo;
}

}  // namespace sf::ptx
