// What each instruction does: arithmetic lane by lane, and the operations on memory, barriers and tensor cores. Only
// what nvcc makes of our kernels is here; anything else is a fault that names it.
#pragma once

#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "../../../csrc/cuda/kernels/device.cuh"
#include "machine.h"

namespace sf::ptx {

template <class T>
using Slot = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;  // a lane of a register

template <class T>
Slot<T>* lanes_of(Warp& w, const Operand& o) {
  return reinterpret_cast<Slot<T>*>(&w.registers[o.at + (sizeof(T) < 8 ? o.narrow : 0)]);
}
template <class T>
T from_slot(Slot<T> slot) {
  T v;
  memcpy(&v, &slot, sizeof(T));
  return v;
}
template <class T>
Slot<T> to_slot(T v) {
  Slot<T> slot = 0;
  memcpy(&slot, &v, sizeof(T));
  return slot;
}
template <class F>
void each(Mask lanes, F f) {
  if (lanes == kEvery) {
    for (int l = 0; l < kLanes; ++l) f(l);
  } else {
    for (; lanes; lanes &= lanes - 1) f(__builtin_ctz(lanes));
  }
}
// Registers of any size. A constant has lanes of 8 bytes.
inline uint64_t wide(const Warp& w, const Operand& o, int lane) {
  uint64_t v = 0;
  memcpy(&v, &w.registers[o.at + lane * o.size], o.size);
  return v;
}
inline void set_wide(Warp& w, const Operand& o, int lane, uint64_t v) {
  memcpy(&w.registers[o.at + lane * o.size], &v, o.size);
}
inline Mask predicate(const Warp& w, const Operand& o) {
  Mask m;
  memcpy(&m, &w.registers[o.at], 4);
  if (o.is_constant) m = m ? kEvery : 0;
  return m;
}
inline void set_predicate(Warp& w, const Operand& o, Mask lanes, Mask value) {
  value = (predicate(w, o) & ~lanes) | (value & lanes);
  memcpy(&w.registers[o.at], &value, 4);
}
inline int64_t extended(uint64_t v, int bytes) {  // from a signed number of so many bytes
  const int unused = 64 - 8 * bytes;
  return static_cast<int64_t>(v << unused) >> unused;
}

// -- arithmetic -------------------------------------------------------------------------------------------------------

template <class Op, class D, class... S>
struct Map {
  template <size_t... I>
  static void go(Warp& w, const Instruction& in, Mask lanes, std::index_sequence<I...>) {
    Slot<D>* to = lanes_of<D>(w, in.o[0]);
    const std::tuple<const Slot<S>*...> from{lanes_of<S>(w, in.o[1 + I])...};
    each(lanes, [&](int l) { to[l] = to_slot<D>(Op::of(from_slot<S>(std::get<I>(from)[l])...)); });
  }
  static Next run(Machine&, Warp& w, const Instruction& in, Mask lanes) {
    go(w, in, lanes, std::index_sequence_for<S...>{});
    return Next::kGo;
  }
};

#define SF_OP(name, parameters, result) \
  struct name {                         \
    template <class T>                  \
    static T of parameters {            \
      return static_cast<T>(result);    \
    }                                   \
  };
SF_OP(Add, (T a, T b), a + b)
SF_OP(Sub, (T a, T b), a - b)
SF_OP(Mul, (T a, T b), a* b)
SF_OP(MulAdd, (T a, T b, T c), a* b + c)
SF_OP(Div, (T a, T b), b ? a / b : ~T{0})
SF_OP(Rem, (T a, T b), b ? a % b : a)
SF_OP(Quotient, (T a, T b), a / b)
SF_OP(Fma, (T a, T b, T c), std::fma(a, b, c))
SF_OP(Min, (T a, T b), b < a ? b : a)
SF_OP(Max, (T a, T b), a < b ? b : a)
SF_OP(And, (T a, T b), a& b)
SF_OP(Or, (T a, T b), a | b)
SF_OP(Xor, (T a, T b), a ^ b)
SF_OP(Not, (T a), ~a)
SF_OP(Negative, (T a), -a)
SF_OP(Absolute, (T a), std::fabs(a))
SF_OP(CopySign, (T a, T b), std::copysign(b, a))
SF_OP(Copy, (T a), a)
SF_OP(Reciprocal, (T a), T{1} / a)
SF_OP(ReciprocalApprox, (T a), cuda::reciprocal_approx(a))
SF_OP(Exp2Approx, (T a), cuda::exp2_approx(a))
SF_OP(Nearest, (T a), std::nearbyint(a))
SF_OP(RoundTf32, (T a), cuda::round_tf32(a))
#undef SF_OP
struct ShiftLeft {
  template <class T>
  static T of(T a, uint32_t n) {
    return n >= 8 * sizeof(T) ? T{0} : static_cast<T>(a << n);
  }
};
struct ShiftRight {  // of a signed number: copies of the sign come in
  template <class T>
  static T of(T a, uint32_t n) {
    const uint32_t last = 8 * sizeof(T) - 1;
    return n > last ? (std::is_signed_v<T> ? static_cast<T>(a >> last) : T{0}) : static_cast<T>(a >> n);
  }
};
template <class D>
struct Widened {  // the product, or the sum with it, in twice the bits
  template <class T>
  static D of(T a, T b) {
    return static_cast<D>(a) * static_cast<D>(b);
  }
  template <class T>
  static D of(T a, T b, D c) {
    return static_cast<D>(a) * static_cast<D>(b) + c;
  }
};
struct InsertBits {
  template <class T>
  static T of(T a, T b, uint32_t at, uint32_t length) {
    const T ones = length >= 8 * sizeof(T) ? ~T{0} : (T{1} << length) - 1;
    return at >= 8 * sizeof(T) ? b : (b & ~(ones << at)) | ((a & ones) << at);
  }
};
struct Permute {
  template <class T>
  static T of(T a, T b, T selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    T result = 0;
    for (int i = 0; i < 4; ++i) {
      const uint32_t which = selector >> 4 * i & 15;
      uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (which & 7)) & 0xFF;
      if (which & 8) byte = byte & 0x80 ? 0xFF : 0;
      result |= byte << 8 * i;
    }
    return result;
  }
};
struct ToBf16 {
  static uint16_t of(float a) { return cuda::to_bf16(a); }
};
struct ToFp16 {
  static uint16_t of(float a) { return cuda::to_fp16(a); }
};
struct ToBf16Pair {
  static uint32_t of(float high, float low) { return cuda::pack_bf16(low, high); }
};
struct ToFp16Pair {
  static uint32_t of(float high, float low) { return cuda::pack_fp16(low, high); }
};
struct FromFp16 {
  static float of(uint16_t a) { return cuda::from_fp16(a); }
};
struct Narrow {
  static float of(double a) { return static_cast<float>(a); }
};
struct Widen {
  static double of(float a) { return a; }
};
struct ReciprocalApprox64 {  // the 20 leading bits of the fraction
  static double of(double a) { return from_slot<double>(to_slot<double>(1 / a) & 0xFFFFFFFF00000000u); }
};

#define SF_COMPARE(name, result)  \
  struct name {                   \
    template <class T>            \
    static bool of(T a, T b) {    \
      return result;              \
    }                             \
  };
SF_COMPARE(Less, a < b)
SF_COMPARE(LessOrEqual, a <= b)
SF_COMPARE(Greater, a > b)
SF_COMPARE(GreaterOrEqual, a >= b)
SF_COMPARE(Equal, a == b)
SF_COMPARE(NotEqual, a < b || a > b)
SF_COMPARE(NotGreaterOrEqual, !(a >= b))  // ltu: less, or unordered
SF_COMPARE(NotGreater, !(a > b))
SF_COMPARE(NotLessOrEqual, !(a <= b))
SF_COMPARE(NotLess, !(a < b))
SF_COMPARE(NotEqualOrNaN, !(a == b))
#undef SF_COMPARE

template <class Op, class T>
Next compare(Machine&, Warp& w, const Instruction& in, Mask lanes) {
  const Slot<T>*a = lanes_of<T>(w, in.o[1]), *b = lanes_of<T>(w, in.o[2]);
  Mask found = 0;
  each(lanes, [&](int l) { found |= Mask{Op::of(from_slot<T>(a[l]), from_slot<T>(b[l]))} << l; });
  set_predicate(w, in.o[0], lanes, found);
  return Next::kGo;
}
template <class T>
Next select(Machine&, Warp& w, const Instruction& in, Mask lanes) {
  Slot<T>* to = lanes_of<T>(w, in.o[0]);
  const Slot<T>*a = lanes_of<T>(w, in.o[1]), *b = lanes_of<T>(w, in.o[2]);
  const Mask which = predicate(w, in.o[3]);
  each(lanes, [&](int l) { to[l] = which >> l & 1 ? a[l] : b[l]; });
  return Next::kGo;
}
template <class Op>
Next combine(Machine&, Warp& w, const Instruction& in, Mask lanes) {  // predicates
  const Mask a = predicate(w, in.o[1]);
  if constexpr (std::is_same_v<Op, Not>)
    set_predicate(w, in.o[0], lanes, ~a);
  else if constexpr (std::is_same_v<Op, Copy>)
    set_predicate(w, in.o[0], lanes, a);
  else
    set_predicate(w, in.o[0], lanes, Op::of(a, predicate(w, in.o[2])));
  return Next::kGo;
}
inline Next convert_integer(Machine&, Warp& w, const Instruction& in, Mask lanes) {  // bytes: of the source
  each(lanes, [&](int l) {
    uint64_t v = wide(w, in.o[1], l);
    if (in.bytes < 8) v = in.is_signed ? static_cast<uint64_t>(extended(v, in.bytes)) : v & ((uint64_t{1} << 8 * in.bytes) - 1);
    if (in.count < 8) v &= (uint64_t{1} << 8 * in.count) - 1;  // count: bytes of the result
    set_wide(w, in.o[0], l, v);
  });
  return Next::kGo;
}
inline Next join_or_split(Machine&, Warp& w, const Instruction& in, Mask lanes) {  // mov with braces; bytes: of a part
  const bool joins = in.braces == Braces::kRight;
  const size_t parts = in.o.size() - 1;
  each(lanes, [&](int l) {
    uint64_t whole = joins ? 0 : wide(w, in.o.back(), l);
    for (size_t i = 0; i < parts; ++i) {
      const uint64_t ones = (uint64_t{1} << 8 * in.bytes) - 1;
      if (joins)
        whole |= (wide(w, in.o[1 + i], l) & ones) << 8 * in.bytes * i;
      else
        set_wide(w, in.o[i], l, whole >> 8 * in.bytes * i & ones);
    }
    if (joins) set_wide(w, in.o[0], l, whole);
  });
  return Next::kGo;
}

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
  if (lanes != kEvery) throw Fault("divergence: only some lanes of the warp carry it out");
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
  return Next::kGo;
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
  each(lanes, [&](int l) {
    m.expect(w, wide(w, in.o[1], l) + in.o[1].plus, extended(wide(w, in.o[2], l), 4), l);
  });
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
