// Arithmetic of the instructions, lane by lane: sums, products, shifts, conversions, comparisons.
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
SF_OP(InverseRootApprox, (T a), cuda::inverse_root_approx(a))
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
struct Root {
  template <class T>
  static T of(T a) {
    return std::sqrt(a);
  }
};
struct Truncated {  // towards zero; what does not fit becomes the nearest number that does, and NaN zero
  static uint32_t of(double a) { return a > 0 ? a < 4294967295.0 ? static_cast<uint32_t>(a) : 4294967295u : 0; }
};
template <class To>
struct FromInteger {
  static To of(int64_t a) { return static_cast<To>(a); }
};
struct HighHalf {  // of the product
  static int64_t of(int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<__int128>(a) * b >> 64); }
  static int32_t of(int32_t a, int32_t b) { return static_cast<int32_t>(int64_t{a} * b >> 32); }
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

#define SF_COMPARE(name, result) \
  struct name {                  \
    template <class T>           \
    static bool of(T a, T b) {   \
      return result;             \
    }                            \
  };
SF_COMPARE(Less, a < b)
SF_COMPARE(LessOrEqual, a <= b)
SF_COMPARE(Greater, a > b)
SF_COMPARE(GreaterOrEqual, a >= b)
SF_COMPARE(Equal, a == b)
SF_COMPARE(NotEqual, a<b || a> b)
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
    if (in.bytes < 8)
      v = in.is_signed ? static_cast<uint64_t>(extended(v, in.bytes)) : v & ((uint64_t{1} << 8 * in.bytes) - 1);
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

}  // namespace sf::ptx
