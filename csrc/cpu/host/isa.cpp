// Finds the instruction sets that this CPU has, and chooses a table of kernels by the name of an implementation.
// "auto" is the last in the list, which is in ascending order of speed. This file is compiled for the oldest CPU.
#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "../../bindings/checks.h"
#include "backend.h"

namespace sf {

extern const Kernels kernels_base;
#if defined(SF_WITH_AVX2)
extern const Kernels kernels_avx2;
#endif
#if defined(SF_WITH_AVX512)
extern const Kernels kernels_avx512;
#endif
#if defined(SF_WITH_AVX512_BF16)
extern const Kernels kernels_avx512_bf16;
#endif
#if defined(SF_WITH_NEON)
extern const Kernels kernels_neon;
#endif
#if defined(SF_WITH_NEON_BF16)
extern const Kernels kernels_neon_bf16;
#endif

namespace {

#if defined(__x86_64__)
// The AVX2 build also uses F16C. It is not tested here: every CPU with AVX2 has it, and Clang cannot test for it.
#define SF_FEATURES(X) X(avx2) X(fma) X(avx512f) X(avx512dq) X(avx512bw) X(avx512vl) X(avx512bf16)
#else
#define SF_FEATURES(X)
#endif

std::vector<std::string> detect_features() {
  std::vector<std::string> found;
#define SF_TEST(name) \
  if (__builtin_cpu_supports(#name)) found.emplace_back(#name);
  SF_FEATURES(SF_TEST)
#undef SF_TEST
#if defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kBfloat16 = 1UL << 14;  // HWCAP2_BF16, which older headers lack
  if (getauxval(AT_HWCAP2) & kBfloat16) found.emplace_back("bf16");
#elif defined(__aarch64__) && defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  if (!sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) && has) found.emplace_back("bf16");
#endif
  return found;
}

std::vector<const Kernels*> usable_kernels() {
  const std::vector<std::string> present = detect_features();
  [[maybe_unused]] const auto have = [&](std::initializer_list<const char*> wanted) {
    return std::all_of(wanted.begin(), wanted.end(), [&](const char* name) {
      return std::find(present.begin(), present.end(), name) != present.end();
    });
  };
  std::vector<const Kernels*> found{&kernels_base};
#if defined(SF_WITH_AVX2)
  if (have({"avx2", "fma"})) found.push_back(&kernels_avx2);
#endif
#if defined(SF_WITH_AVX512)
  if (have({"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"})) found.push_back(&kernels_avx512);
#endif
#if defined(SF_WITH_AVX512_BF16)
  if (have({"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma", "avx512bf16"})) {
    found.push_back(&kernels_avx512_bf16);
  }
#endif
#if defined(SF_WITH_NEON)
  found.push_back(&kernels_neon);  // every 64-bit ARM has it
#endif
#if defined(SF_WITH_NEON_BF16)
  if (have({"bf16"})) found.push_back(&kernels_neon_bf16);
#endif
  return found;
}

const std::vector<const Kernels*>& impls() {
  static const std::vector<const Kernels*> found = usable_kernels();
  return found;
}

}  // namespace

const Kernels& kernels_for(const std::string& impl) {
  if (impl == "auto") return *impls().back();
  std::string choices = "auto";
  for (const Kernels* k : impls()) {
    if (impl == k->name) return *k;
    choices += std::string(", ") + k->name;
  }
  fail("impl: expected one of ", choices, " but got ", quoted(impl));
}

std::vector<std::string> impl_names() {
  std::vector<std::string> names;
  for (const Kernels* k : impls()) names.emplace_back(k->name);
  return names;
}

std::vector<std::string> cpu_features() { return detect_features(); }

}  // namespace sf
