// Global memory: the tensors and buffers that a launch may touch, each with its bounds, and the accesses that no rule
// of the memory model orders. Blocks of one launch may share bytes only through accesses that are strong at the scope
// of the device.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "program.h"

namespace sf::ptx {

struct Touch {
  uint32_t launch = 0;
  uint16_t block = 0;
  bool strong = false;
};
struct Touches {
  Touch write, read;
};

struct Region {
  uint64_t end = 0;
  bool writable = false;
  std::string name;
  std::vector<Touches> touches;  // one for every two bytes; made at the first access
};

class GlobalMemory {
 public:
  // Regions that overlap become one.
  void add(const void* data, int64_t bytes, bool writable, const std::string& name) {
    if (!data || bytes <= 0) return;
    uint64_t begin = reinterpret_cast<uint64_t>(data);
    Region region{begin + static_cast<uint64_t>(bytes), writable, name, {}};
    for (auto found = first_beyond(begin); found != regions_.end() && found->first < region.end;) {
      begin = std::min(begin, found->first);
      region.end = std::max(region.end, found->second.end);
      region.writable |= found->second.writable;
      if (region.name.find(found->second.name) == std::string::npos) region.name += " and " + found->second.name;
      found = regions_.erase(found);
    }
    regions_[begin] = std::move(region);
    last_ = regions_.end();
  }
  void remove(const void* data) {
    regions_.erase(reinterpret_cast<uint64_t>(data));
    last_ = regions_.end();
  }
  void next_launch() { ++launch_; }

  void* access(uint64_t at, int bytes, int alignment, bool writes, int block, bool strong) {
    if (last_ == regions_.end() || at < last_->first || at >= last_->second.end) {
      last_ = first_beyond(at);
      if (last_ == regions_.end() || at < last_->first) throw Fault("bounds: " + where(at, bytes, writes));
    }
    Region& region = last_->second;
    if (at + bytes > region.end) throw Fault("bounds: " + where(at, bytes, writes));
    if (at % alignment) throw Fault("alignment: " + where(at, bytes, writes));
    if (!region.writable) {
      if (writes) throw Fault("bounds: " + where(at, bytes, writes) + ", which is an input");
      return reinterpret_cast<void*>(at);
    }
    const uint64_t base = last_->first / 2;
    if (region.touches.empty()) region.touches.resize(region.end / 2 - base + 1);
    const Touch touch{launch_, static_cast<uint16_t>(block), strong};
    const auto conflicts = [&](const Touch& t) {
      return t.launch == launch_ && t.block != touch.block && !(t.strong && strong);
    };
    for (uint64_t i = at / 2 - base; i < (at + bytes + 1) / 2 - base; ++i) {
      Touches& t = region.touches[i];
      if (conflicts(t.write) || (writes && conflicts(t.read)))
        throw Fault("race: " + where(at, bytes, writes) + ", which block " +
                    std::to_string(conflicts(t.write) ? t.write.block : t.read.block) + " touches in the same launch");
      (writes ? t.write : t.read) = touch;
    }
    return reinterpret_cast<void*>(at);
  }

 private:
  using Regions = std::map<uint64_t, Region>;

  Regions::iterator first_beyond(uint64_t at) {  // the first region that ends beyond `at`
    auto found = regions_.upper_bound(at);
    if (found != regions_.begin() && std::prev(found)->second.end > at) --found;
    return found;
  }
  std::string where(uint64_t at, int bytes, bool writes) {
    std::string text = std::string(writes ? "a store" : "a load") + " of " + std::to_string(bytes) + " bytes ";
    auto beyond = regions_.upper_bound(at);
    if (beyond == regions_.begin()) return text + "in no region of global memory";
    const auto& [begin, region] = *std::prev(beyond);
    return text + "at byte " + std::to_string(at - begin) + " of " + region.name + ", which has " +
           std::to_string(region.end - begin);
  }

  Regions regions_;
  Regions::iterator last_ = regions_.end();
  uint32_t launch_ = 0;
};

}  // namespace sf::ptx
