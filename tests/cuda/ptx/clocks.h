// What a warp knows to have happened, as vector clocks, and the races in shared memory that follow from it. The clocks
// are those of warps; the lanes of one warp are ordered by what synchronises a warp alone. Bytes that st.async writes
// belong to the mbarrier that counts them, which has a clock of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "program.h"

namespace sf::ptx {

using Clocks = std::vector<uint32_t>;  // one entry per warp and per mbarrier of a cluster
using Knowledge = std::shared_ptr<const Clocks>;

inline void join(Clocks& into, const Clocks& from) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], from[i]);
}

constexpr uint16_t kNobody = 0xFFFF;
constexpr uint8_t kSeveral = 0xFF;  // in the place of a lane
struct Access {
  uint32_t clock = 0;
  uint16_t id = kNobody;
  uint8_t lane = 0;
};
struct Shadow {  // the last write of two bytes, and the last reads by two warps
  Access write, read, read_before;
};

// Who makes an access, and what it knows.
struct Actor {
  Access stamp;
  const Clocks* known;
  bool knows(const Access& a) const {
    if (a.id == kNobody) return true;
    if (a.id == stamp.id) return a.clock < stamp.clock || (a.lane == stamp.lane && a.lane != kSeveral);
    return (*known)[a.id] >= a.clock;
  }
};

inline std::string describe(const Access& a) {
  return a.lane == kSeveral ? "some lanes of warp " + std::to_string(a.id)
                            : "lane " + std::to_string(a.lane) + " of warp " + std::to_string(a.id);
}

// The shared memory of a block: its bytes, which of them were written, and who touched them last.
struct SharedMemory {
  std::vector<unsigned char> bytes;
  std::vector<Shadow> shadow;

  explicit SharedMemory(size_t size) : bytes(size, 0xFF), shadow(size / 2 + 1) {}  // NaN in every type

  void check(uint64_t at, int size, int alignment) const {
    if (at + size > bytes.size())
      throw Fault("bounds: " + std::to_string(size) + " bytes at byte " + std::to_string(at) +
                  " of shared memory, which has " + std::to_string(bytes.size()));
    if (at % alignment)
      throw Fault("alignment: " + std::to_string(size) + " bytes at byte " + std::to_string(at) + " of shared memory");
  }
  void note_read(uint64_t at, int size, const Actor& actor) {
    for (uint64_t i = at / 2; i < (at + size + 1) / 2; ++i) {
      Shadow& s = shadow[i];
      if (s.write.id == kNobody)
        throw Fault("poison: byte " + std::to_string(2 * i) + " of shared memory is read but was never written");
      if (!actor.knows(s.write)) race("read after a write", i, s.write);
      if (s.read.id != actor.stamp.id) s.read_before = s.read;
      const bool another =
          s.read.id == actor.stamp.id && s.read.clock == actor.stamp.clock && s.read.lane != actor.stamp.lane;
      s.read = actor.stamp;
      if (another) s.read.lane = kSeveral;
    }
  }
  void note_write(uint64_t at, int size, const Actor& actor, Access stamp) {
    for (uint64_t i = at / 2; i < (at + size + 1) / 2; ++i) {
      Shadow& s = shadow[i];
      if (!actor.knows(s.write)) race("write after a write", i, s.write);
      if (!actor.knows(s.read)) race("write after a read", i, s.read);
      if (!actor.knows(s.read_before)) race("write after a read", i, s.read_before);
      s.write = stamp;
    }
  }

 private:
  [[noreturn]] static void race(const char* kind, uint64_t i, const Access& other) {
    throw Fault(std::string("race: ") + kind + " of byte " + std::to_string(2 * i) +
                " of shared memory is not ordered after that of " + describe(other));
  }
};

}  // namespace sf::ptx
