// Finds the function of instructions.h that carries out an operation, by the words of its name: add.s32 is {add, s32}.
#include <algorithm>
#include <functional>
#include <unordered_map>

#include "instructions.h"

namespace sf::ptx {
namespace {

using Words = std::vector<std::string>;

bool has(const Words& words, const char* word) { return std::find(words.begin(), words.end(), word) != words.end(); }
[[noreturn]] void unknown(const Instruction& in) { throw Fault("ptx: the interpreter has no " + in.text); }
int bytes_of(const std::string& type) { return atoi(type.c_str() + type.find_first_of("0123456789")) / 8; }

template <class T>
bool matches(const std::string& type) {
  if (bytes_of(type) != static_cast<int>(sizeof(T))) return false;
  if (std::is_floating_point_v<T>) return type[0] == 'f';
  return type[0] != 'f' && (type[0] == 's') == std::is_signed_v<T>;
}
// The function that `make` gives for the type of that name: make(T{}) for a T among u16 to s64, f32 and f64.
template <class Make>
Run for_integer(const std::string& type, Make make) {
  if (matches<uint16_t>(type)) return make(uint16_t{});
  if (matches<int16_t>(type)) return make(int16_t{});
  if (matches<uint32_t>(type)) return make(uint32_t{});
  if (matches<int32_t>(type)) return make(int32_t{});
  if (matches<uint64_t>(type)) return make(uint64_t{});
  if (matches<int64_t>(type)) return make(int64_t{});
  return nullptr;
}
template <class Make>
Run for_float(const std::string& type, Make make) {
  if (type == "f32") return make(float{});
  if (type == "f64") return make(double{});
  return nullptr;
}
template <class Make>
Run for_number(const std::string& type, Make make) {
  const Run found = for_float(type, make);
  return found ? found : for_integer(type, make);
}
template <class Make>
Run for_bits(std::string type, Make make) {  // the sign makes no difference, so that sums may wrap around
  if (type[0] == 's' || type[0] == 'f') type[0] = 'u';
  return for_integer(type, make);
}

template <class Op>
Run binary_bits(const std::string& type) {
  return for_bits(type, [](auto t) -> Run {
    using T = decltype(t);
    return Map<Op, T, T, T>::run;
  });
}
template <class Op>
Run binary_int(const std::string& type) {
  return for_integer(type, [](auto t) -> Run {
    using T = decltype(t);
    return Map<Op, T, T, T>::run;
  });
}
template <class Op>
Run binary_float(const std::string& type) {
  return for_float(type, [](auto t) -> Run {
    using T = decltype(t);
    return Map<Op, T, T, T>::run;
  });
}
template <class Op>
Run unary_float(const std::string& type) {
  return for_float(type, [](auto t) -> Run {
    using T = decltype(t);
    return Map<Op, T, T>::run;
  });
}
template <class Op>
Run unary_bits(const std::string& type) {
  return for_bits(type, [](auto t) -> Run {
    using T = decltype(t);
    return Map<Op, T, T>::run;
  });
}
template <class Op>
Run logic(const std::string& type) {
  return type == "pred" ? combine<Op> : binary_bits<Op>(type);
}
template <class Op>
Run shift(const std::string& type) {
  return for_integer(type, [](auto t) -> Run {
    using T = decltype(t);
    return Map<Op, T, T, uint32_t>::run;
  });
}
template <class Op>
Run comparison(std::string type) {
  return for_number(type, [](auto t) -> Run { return compare<Op, decltype(t)>; });
}

template <class T>
struct Doubled;
template <>
struct Doubled<uint16_t> {
  using Type = uint32_t;
};
template <>
struct Doubled<int16_t> {
  using Type = int32_t;
};
template <>
struct Doubled<uint32_t> {
  using Type = uint64_t;
};
template <>
struct Doubled<int32_t> {
  using Type = int64_t;
};

Run product(const Words& words, const std::string& type) {
  const bool adds = words[0] == "mad";
  if (has(words, "wide"))
    return for_integer(type, [&](auto t) -> Run {
      using T = decltype(t);
      if constexpr (sizeof(T) < 8) {
        using D = typename Doubled<T>::Type;
        return adds ? static_cast<Run>(Map<Widened<D>, D, T, T, D>::run) : Map<Widened<D>, D, T, T>::run;
      }
      return nullptr;
    });
  if (type[0] == 'f') return adds || has(words, "wide") ? nullptr : binary_float<Mul>(type);
  if (has(words, "hi") && !adds && type == "s64") return Map<HighHalf, int64_t, int64_t, int64_t>::run;
  if (has(words, "hi") && !adds && type == "s32") return Map<HighHalf, int32_t, int32_t, int32_t>::run;
  if (!has(words, "lo")) return nullptr;
  return for_bits(type, [&](auto t) -> Run {
    using T = decltype(t);
    return adds ? static_cast<Run>(Map<MulAdd, T, T, T, T>::run) : Map<Mul, T, T, T>::run;
  });
}

Run conversion(Instruction& in, const Words& words) {
  const std::string &from = words.back(), &to = words[words.size() - 2], &rounding = words[1];
  if (to == "bf16" && from == "f32" && rounding == "rn") return Map<ToBf16, uint16_t, float>::run;
  if (to == "f16" && from == "f32" && rounding == "rn") return Map<ToFp16, uint16_t, float>::run;
  if (to == "bf16x2" && from == "f32" && rounding == "rn") return Map<ToBf16Pair, uint32_t, float, float>::run;
  if (to == "f16x2" && from == "f32" && rounding == "rn") return Map<ToFp16Pair, uint32_t, float, float>::run;
  if (to == "tf32" && from == "f32" && rounding == "rna") return Map<RoundTf32, float, float>::run;
  if (to == "f32" && from == "f16" && words.size() == 3) return Map<FromFp16, float, uint16_t>::run;
  if (to == "f32" && from == "f64" && rounding == "rn") return Map<Narrow, float, double>::run;
  if (to == "u32" && from == "f64" && rounding == "rzi") return Map<Truncated, uint32_t, double>::run;
  if (to == "f32" && from == "s32" && rounding == "rn") return Map<FromInteger<float>, float, int32_t>::run;
  if (to == "f32" && from == "s64" && rounding == "rn") return Map<FromInteger<float>, float, int64_t>::run;
  if (to == "f64" && from == "s64" && rounding == "rn") return Map<FromInteger<double>, double, int64_t>::run;
  if (to == "f64" && from == "f32" && words.size() == 3) return Map<Widen, double, float>::run;
  if (to == "f32" && from == "f32" && rounding == "rni") return Map<Nearest, float, float>::run;
  if (words.size() != 3 || from.find('f') != std::string::npos || to.find('f') != std::string::npos) return nullptr;
  in.is_signed = from[0] == 's';
  in.bytes = bytes_of(from);
  in.count = bytes_of(to);
  return convert_integer;
}

// The words of a load or store after the first: an order, a scope, a space, a vector, a type.
Run memory_access(Instruction& in, const Words& words) {
  bool is_strong = false;
  Scope scope = Scope::kNone;
  for (size_t i = 1; i + 1 < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "param")
      in.space = Space::kParam;
    else if (word == "shared")
      in.space = Space::kShared;
    else if (word == "global")
      in.space = Space::kGlobal;
    else if (word == "v2" || word == "v4")
      in.count = word[1] - '0';
    else if (word == "relaxed" || word == "acquire" || word == "release")
      is_strong = true;
    else if (word == "volatile")
      is_strong = true, scope = Scope::kDevice;
    else if (word == "cta")
      scope = Scope::kBlock;
    else if (word == "cluster")
      scope = Scope::kCluster;
    else if (word == "gpu" || word == "sys")
      scope = Scope::kDevice;
    else
      unknown(in);
  }
  if (in.space == Space::kNone || is_strong != (scope != Scope::kNone)) unknown(in);
  in.scope = scope;
  in.bytes = bytes_of(words.back());
  in.is_signed = words.back()[0] == 's';
  return words[0] == "ld" ? load : in.space == Space::kParam ? nullptr : store;
}

Scope scope_in(const Words& words) {
  return has(words, "cluster")                    ? Scope::kCluster
         : has(words, "gpu") || has(words, "sys") ? Scope::kDevice
                                                  : Scope::kBlock;
}

Run of_mbarrier(Instruction& in, const Words& words) {
  in.scope = scope_in(words);
  in.acquires = !has(words, "relaxed");
  if (words[1] == "init") return mbarrier_init;
  if (words[1] == "arrive" && words[2] == "expect_tx") return mbarrier_expect;
  if (words[1] == "try_wait" && words[2] == "parity") return mbarrier_wait;
  return nullptr;
}

Run of_cluster_barrier(Instruction& in, const Words& words) {
  if (words[1] != "cluster" || !has(words, "aligned")) return nullptr;
  in.acquires = in.releases = !has(words, "relaxed");
  return words[2] == "arrive" ? cluster_arrive : words[2] == "wait" ? cluster_wait : nullptr;
}

Run tensor_product(const Words& words) {
  const std::string shape = words[3] + "." + words[6] + "." + words[7] + "." + words[8] + "." + words[9];
  if (shape == "m16n8k16.f32.bf16.bf16.f32") return multiply<Bf16Words>;
  if (shape == "m16n8k16.f32.f16.f16.f32") return multiply<Fp16Words>;
  if (shape == "m16n8k8.f32.tf32.tf32.f32") return multiply<Tf32Words>;
  return nullptr;
}

Run comparison_named(const std::string& name, std::string type) {
  static const std::unordered_map<std::string, Run (*)(std::string)> kAll{{"lt", comparison<Less>},
                                                                          {"le", comparison<LessOrEqual>},
                                                                          {"gt", comparison<Greater>},
                                                                          {"ge", comparison<GreaterOrEqual>},
                                                                          {"eq", comparison<Equal>},
                                                                          {"ne", comparison<NotEqual>},
                                                                          {"ltu", comparison<NotGreaterOrEqual>},
                                                                          {"leu", comparison<NotGreater>},
                                                                          {"gtu", comparison<NotLessOrEqual>},
                                                                          {"geu", comparison<NotLess>},
                                                                          {"neu", comparison<NotEqualOrNaN>}};
  if (type[0] == 'b') type[0] = 'u';
  const auto found = kAll.find(name);
  return found == kAll.end() ? nullptr : found->second(type);
}

Run find(Instruction& in, const Words& words) {
  const std::string &name = words[0], &type = words.back();
  const bool is_float = type[0] == 'f';
  if (name == "add") return is_float ? binary_float<Add>(type) : binary_bits<Add>(type);
  if (name == "sub") return is_float ? binary_float<Sub>(type) : binary_bits<Sub>(type);
  if (name == "mul" || name == "mad") return product(words, type);
  if (name == "div")
    return is_float ? (has(words, "rn") ? binary_float<Quotient>(type) : nullptr) : binary_int<Div>(type);
  if (name == "rem") return binary_int<Rem>(type);
  if (name == "min") return binary_int<Min>(type);
  if (name == "max") return binary_int<Max>(type);
  if (name == "and") return logic<And>(type);
  if (name == "or") return logic<Or>(type);
  if (name == "xor") return logic<Xor>(type);
  if (name == "not") return type == "pred" ? combine<Not> : unary_bits<Not>(type);
  if (name == "neg") return is_float ? unary_float<Negative>(type) : unary_bits<Negative>(type);
  if (name == "abs") return unary_float<Absolute>(type);
  if (name == "copysign") return binary_float<CopySign>(type);
  if (name == "fma" && has(words, "rn"))
    return for_float(type, [](auto t) -> Run {
      using T = decltype(t);
      return Map<Fma, T, T, T, T>::run;
    });
  if (name == "ex2" && words.size() == 4) return type == "f32" ? Map<Exp2Approx, float, float>::run : nullptr;
  if (name == "rsqrt" && words.size() == 4) return type == "f32" ? Map<InverseRootApprox, float, float>::run : nullptr;
  if (name == "sqrt" && words[1] == "rn") return unary_float<Root>(type);
  if (name == "rcp" && words[1] == "rn") return unary_float<Reciprocal>(type);
  if (name == "rcp" && words[1] == "approx" && words[2] == "ftz")
    return type == "f32" ? Map<ReciprocalApprox, float, float>::run : Map<ReciprocalApprox64, double, double>::run;
  if (name == "shl") return shift<ShiftLeft>(type);
  if (name == "shr") return shift<ShiftRight>(type);
  if (name == "bfi")
    return for_bits(type, [](auto t) -> Run {
      using T = decltype(t);
      if constexpr (sizeof(T) >= 4) return Map<InsertBits, T, T, T, uint32_t, uint32_t>::run;
      return nullptr;
    });
  if (name == "prmt") return Map<Permute, uint32_t, uint32_t, uint32_t, uint32_t>::run;
  if (name == "setp") return words.size() == 3 ? comparison_named(words[1], type) : nullptr;
  if (name == "selp") return for_bits(type, [](auto t) -> Run { return select<decltype(t)>; });
  if (name == "mov" && in.braces != Braces::kNone) {
    const auto parts = static_cast<int>(in.o.size()) - 1;
    in.bytes = bytes_of(type) / parts;
    return join_or_split;
  }
  if (name == "mov") return type == "pred" ? combine<Copy> : unary_bits<Copy>(type);
  if (name == "cvta") return Map<Copy, uint64_t, uint64_t>::run;  // addresses of global memory are the same everywhere
  if (name == "cvt") return conversion(in, words);
  if (name == "bra") return branch;
  if (name == "ret") return leave;
  if (name == "ld" || (name == "st" && words[1] != "async")) return memory_access(in, words);
  if (name == "st" && words.size() == 6 && words[4] == "v4") return send;
  if (name == "mapa") return map_address;
  if (name == "mbarrier") return of_mbarrier(in, words);
  if (name == "fence") {
    in.scope = type == "cluster" ? Scope::kCluster : type == "cta" ? Scope::kBlock : Scope::kDevice;
    return has(words, "acquire") || has(words, "acq_rel") || has(words, "sc") ? fence : nullptr;
  }
  if (name == "bar" && words[1] == "sync") return block_barrier;
  if (name == "bar" && words[1] == "warp" && words[2] == "sync") return warp_barrier;
  if (name == "barrier") return of_cluster_barrier(in, words);
  if (name == "ldmatrix" && has(words, "x4") && !has(words, "trans")) return load_matrices;
  if (name == "shfl" && words[2] == "bfly") return shuffle;
  if (name == "mma" && words.size() == 10) return tensor_product(words);
  return nullptr;
}

}  // namespace

void decode(Instruction& in, const Words& words) {
  in.run = find(in, words);
  if (!in.run) unknown(in);
}

}  // namespace sf::ptx
