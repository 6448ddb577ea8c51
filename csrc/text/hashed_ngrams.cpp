// The sums are those of hashed_ngrams.h's numpy twin, in 64 bits that wrap around.
#include "hashed_ngrams.h"

#include <algorithm>

#include "characters.h"
#include "utf8.h"

namespace sf::texts {
namespace {

constexpr int kLongest = 5;  // characters of an n-gram
constexpr uint32_t kSpace = ' ';

// Characters that separate words, beside all of ASCII but letters and digits. Few and fixed, so that a hash does not
// depend on a version of Unicode: controls, punctuation, symbols and emoji. Everything else is part of a word.
constexpr Range kBetweenWords[] = {
    {0x80, 0xA9},       {0xAB, 0xB1},     {0xB4, 0xB4},     {0xB6, 0xB8},     {0xBB, 0xBB},     {0xBF, 0xBF},
    {0xD7, 0xD7},       {0xF7, 0xF7},     {0x55A, 0x55F},   {0x589, 0x58A},   {0x5BE, 0x5BE},   {0x5C0, 0x5C0},
    {0x5C3, 0x5C3},     {0x5F3, 0x5F4},   {0x60C, 0x60D},   {0x61B, 0x61F},   {0x66A, 0x66D},   {0x6D4, 0x6D4},
    {0x700, 0x70D},     {0x964, 0x965},   {0xE3F, 0xE3F},   {0x104A, 0x104F}, {0x1361, 0x1368}, {0x1680, 0x1680},
    {0x17D4, 0x17DB},   {0x1800, 0x180A}, {0x2000, 0x206F}, {0x20A0, 0x20CF}, {0x2100, 0x2BFF}, {0x2E00, 0x2E7F},
    {0x3000, 0x3004},   {0x3008, 0x3020}, {0x3030, 0x3030}, {0xD800, 0xF8FF}, {0xFE10, 0xFE19}, {0xFE30, 0xFE6F},
    {0xFF01, 0xFF0F},   {0xFF1A, 0xFF20}, {0xFF3B, 0xFF40}, {0xFF5B, 0xFF65}, {0xFFE0, 0xFFFF}, {0x1F000, 0x1FAFF},
    {0xE0000, 0xE007F},
};

bool in_word(uint32_t code) {
  if (code < 0x80) return (code >= '0' && code <= '9') || (code >= 'A' && code <= 'Z') || (code >= 'a' && code <= 'z');
  return !is_in(kBetweenWords, code);
}

// The finaliser of splitmix64, after which each bit depends on all bits of the value.
uint64_t mixed(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}

// The characters, with a space before and after them, and a space for every kind of space.
void decode(const char* text, size_t bytes, std::vector<uint32_t>& codes) {
  codes.clear();
  codes.push_back(kSpace);
  for (const char *at = text, *const end = text + bytes; at < end;) {
    const uint32_t code = next_character(at, end);
    codes.push_back(is_space(code) ? kSpace : code);
  }
  codes.push_back(kSpace);
}

}  // namespace

void hashed_ngrams(const char* text, size_t bytes, int bits, std::vector<Ngram>& found) {
  thread_local std::vector<uint32_t> codes, ids;
  decode(text, bytes, codes);
  ids.clear();
  const uint32_t half = 1u << (bits - 1);
  const auto add = [&](uint64_t value, uint64_t kind) {
    const uint64_t id = bits > 1 ? mixed(value + (kind << 40)) >> (65 - bits) : 0;
    ids.push_back(static_cast<uint32_t>(id) + (kind < 2 ? 0 : half));
  };
  const size_t count = codes.size();

  uint64_t before = 0, word = 0, position = 0;
  bool follows = false;                 // whether there is a word before this one
  for (size_t i = 1; i < count; ++i) {  // the last one, a space, ends the last word
    if (in_word(codes[i])) {
      word += mixed(codes[i] | position++ << 32);
    } else if (position) {
      add(word, 0);
      if (follows) add(before * 0x9E3779B97F4A7C15u + word, 1);
      before = word;
      follows = true;
      word = position = 0;
    }
  }
  for (size_t i = 0; i + 1 < count; ++i) {
    if (codes[i] == kSpace && codes[i + 1] == kSpace) continue;
    uint64_t hash = codes[i];
    for (size_t n = 2; n <= kLongest && i + n <= count; ++n) {
      const uint32_t last = codes[i + n - 1];
      hash = hash * 0xD1342543DE82EF95u + last;
      add(hash, n);
      if (last == kSpace) break;  // an n-gram has no space but at its ends
    }
  }

  std::sort(ids.begin(), ids.end());
  for (size_t i = 0; i < ids.size();) {
    size_t end = i + 1;
    while (end < ids.size() && ids[end] == ids[i]) ++end;
    found.push_back({ids[i], static_cast<uint32_t>(end - i)});
    i = end;
  }
}

}  // namespace sf::texts
