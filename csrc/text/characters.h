// What kind of character a code point is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>

namespace sf::texts {

struct Range {
  uint32_t first, last;
};

template <size_t N>
bool is_in(const Range (&ranges)[N], uint32_t code) {
  const Range* const found = std::upper_bound(std::begin(ranges), std::end(ranges), code,
                                              [](uint32_t value, const Range& range) { return value < range.first; });
  return found != std::begin(ranges) && code <= std::prev(found)->last;
}

inline bool is_space(uint32_t code) {
  constexpr Range kSpaces[] = {
      {0x85, 0x85},     {0xA0, 0xA0},     {0x1680, 0x1680}, {0x2000, 0x200A},
      {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000},
  };
  return code <= ' ' ? code == ' ' || (code >= 0x9 && code <= 0xD) || code >= 0x1C
                     : code >= 0x85 && is_in(kSpaces, code);
}

}  // namespace sf::texts
