// Characters of UTF-8, one after another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace sf::texts {

constexpr uint32_t kReplacement = 0xFFFD, kNoCharacter = 0xFFFFFFFF;

// The next character, after which `at` points behind it; at < end. A byte that belongs to no character counts as
// U+FFFD. Surrogates and forms that are longer than they need be are taken as they are.
inline uint32_t next_character(const char*& at, const char* end) {
  const auto byte = [&](int k) { return static_cast<uint32_t>(static_cast<unsigned char>(at[k])); };
  const uint32_t first = byte(0);
  const int more = first < 0xC0 ? 0 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF8 ? 3 : 0;
  uint32_t code = first < 0x80 ? first : more ? first & (0x3Fu >> more) : kReplacement;
  if (end - at <= more) return ++at, kReplacement;
  for (int k = 1; k <= more; ++k) {
    if ((byte(k) & 0xC0) != 0x80) return ++at, kReplacement;
    code = code << 6 | (byte(k) & 0x3F);
  }
  at += more + 1;
  return code;
}

// Whether the next character is valid: of the shortest form, no surrogate, and at most U+10FFFF. `at` moves behind it.
inline bool next_is_valid(const char*& at, const char* end) {
  const char* const begin = at;
  const uint32_t code = next_character(at, end);
  const auto bytes = at - begin;
  if (code == kReplacement) return bytes == 3;
  return bytes == (code < 0x80      ? 1
                   : code < 0x800   ? 2
                   : code < 0x10000 ? 3
                                    : 4) &&
         code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF);
}

inline void append_utf8(std::string& to, uint32_t code) {
  const auto byte = [&](uint32_t bits) { to += static_cast<char>(bits); };
  const auto rest = [&](int bits) { byte(0x80 | (code >> bits & 0x3F)); };
  if (code < 0x80) {
    byte(code);
  } else if (code < 0x800) {
    byte(0xC0 | code >> 6), rest(0);
  } else if (code < 0x10000) {
    byte(0xE0 | code >> 12), rest(6), rest(0);
  } else {
    byte(0xF0 | code >> 18), rest(12), rest(6), rest(0);
  }
}

}  // namespace sf::texts
