// Finds the instruction sets that this CPU has, and chooses a table of kernels by the name of an implementation.
// "auto" is the last in the list, which is in ascending order of speed. This file is compiled for the oldest CPU.
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
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
#if defined(SF_WITH_AMX_BF16)
extern const Kernels kernels_amx_bf16;
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

// Whether a CPU has tiles of bfloat16, by EDX of leaf 7 of its identification, and whether the system saves their two
// parts of a thread's state, by the register XCR0.
constexpr bool has_tiles(uint32_t edx, uint64_t saved) {
  constexpr uint32_t kProducts = 1U << 22, kTiles = 1U << 24;
  constexpr uint64_t kConfiguration = 1U << 17, kData = 1U << 18;
  return (edx & kProducts) && (edx & kTiles) && (saved & kConfiguration) && (saved & kData);
}
static_assert(has_tiles(0x01400000, 0x60000) && has_tiles(~0U, ~uint64_t{0}));
static_assert(!has_tiles(0x01000000, 0x60000) && !has_tiles(0x00400000, 0x60000));
static_assert(!has_tiles(0x01400000, 0x20000) && !has_tiles(0x01400000, 0x40000) && !has_tiles(0x01400000, 0xe7));

// Whether this process may use tiles. Linux reserves the 8 KiB that a thread's tiles take, and refuses the instructions
// to a process that did not ask for them once; then all its threads, and its children, may use them.
bool may_use_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr uint32_t kSavesStates = 1U << 27;
  constexpr long kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, which older headers lack
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & kSavesStates)) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  uint32_t low = 0, high = 0;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return has_tiles(edx, uint64_t{high} << 32 | low) && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
  return false;
#endif
}

std::vector<std::string> detect_features() {
  std::vector<std::string> found;
#define SF_TEST(name) \
  if (__builtin_cpu_supports(#name)) found.emplace_back(#name);
  SF_FEATURES(SF_TEST)
#undef SF_TEST
  if (may_use_tiles()) found.emplace_back("amx_bf16");
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
#if defined(SF_WITH_AMX_BF16)
  if (found.back() == &kernels_avx512_bf16 && have({"amx_bf16"})) found.push_back(&kernels_amx_bf16);
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
