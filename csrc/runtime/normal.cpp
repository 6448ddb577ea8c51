// The tables lie packed in the library (unicode_tables.py), and are unpacked when the first text needs them. A text is
// decomposed, its marks are put in order, and for the composed forms pairs are then joined from left to right.
#include "normal.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../text/utf8.h"
#include "unicode_tables.h"

namespace sf::texts {
namespace {

constexpr uint32_t kHangul = 0xAC00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11A7;  // composed by a formula
constexpr uint32_t kVowels = 21, kTails = 28, kSyllables = 11172;
constexpr uint32_t kDottedI = 0x130, kDot = 0x307;  // the one letter that becomes two in lower case
constexpr uint32_t kSigma = 0x3A3, kLowerSigma = 0x3C3, kFinalSigma = 0x3C2;

using Codes = std::vector<uint32_t>;

// Reads the numbers of a packed table.
template <size_t N>
class Unpack {
 public:
  explicit Unpack(const unsigned char (&bytes)[N]) : at_(bytes), end_(bytes + N) {}
  bool more() const { return at_ != end_; }
  uint32_t number() {
    uint32_t found = 0;
    for (int shift = 0;; shift += 7) {
      found |= (*at_ & 0x7Fu) << shift;
      if (*at_++ < 0x80) return found;
    }
  }

 private:
  const unsigned char *at_, *end_;
};

struct Run {
  uint32_t begin, end, value;
};
struct Decomposition {
  uint32_t code, begin, size;
  bool compatible;
};
struct Pair {
  uint32_t first, second, composed;
};
struct Lower {
  uint32_t code, lower;
};

// The last entry of a sorted list whose `member` is at most `code`; null if there is none.
template <class Entry>
const Entry* at_or_before(const std::vector<Entry>& entries, uint32_t Entry::* member, uint32_t code) {
  const auto next = std::upper_bound(entries.begin(), entries.end(), code,
                                     [&](uint32_t value, const Entry& entry) { return value < entry.*member; });
  return next == entries.begin() ? nullptr : &*std::prev(next);
}

uint32_t value_of(const std::vector<Run>& runs, uint32_t code) {
  const Run* const run = at_or_before(runs, &Run::begin, code);
  return run && code < run->end ? run->value : 0;
}

struct Tables {
  std::vector<Run> classes, sigma_neighbours;
  std::vector<Decomposition> decompositions;
  std::vector<uint32_t> parts;  // of the decompositions
  std::vector<Pair> pairs;      // by first, then by second
  std::vector<Lower> lower;

  Tables() {
    uint32_t code = 0;
    for (Unpack from(kDecompositions); from.more();) {
      code += from.number();
      const uint32_t tag = from.number(), size = tag >> 2;
      decompositions.push_back({code, static_cast<uint32_t>(parts.size()), size, (tag & 1) != 0});
      for (uint32_t i = 0; i < size; ++i) parts.push_back(from.number());
      if (tag & 2) pairs.push_back({parts[parts.size() - 2], parts.back(), code});
    }
    std::sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) {
      return a.first != b.first ? a.first < b.first : a.second < b.second;
    });
    code = 0;
    for (Unpack from(kLowerCase); from.more();) {
      code += from.number();
      const uint32_t distance = from.number();
      lower.push_back({code, distance & 1 ? code - distance / 2 - 1 : code + distance / 2});
    }
    unpack_runs(Unpack(kClasses), classes);
    unpack_runs(Unpack(kSigmaNeighbours), sigma_neighbours);
  }
  template <class From>
  static void unpack_runs(From from, std::vector<Run>& to) {
    for (uint32_t end = 0; from.more();) {
      const uint32_t begin = end + from.number();
      end = begin + from.number();
      to.push_back({begin, end, from.number()});
    }
  }
};

const Tables& tables() {
  static const Tables kTables;
  return kTables;
}

void decompose(uint32_t code, bool compatible, Codes& to) {
  if (code - kHangul < kSyllables) {
    const uint32_t index = code - kHangul, tail = index % kTails;
    to.push_back(kLead + index / (kVowels * kTails));
    to.push_back(kVowel + index / kTails % kVowels);
    if (tail) to.push_back(kTail + tail);
    return;
  }
  const Decomposition* const found = at_or_before(tables().decompositions, &Decomposition::code, code);
  if (!found || found->code != code || (found->compatible && !compatible)) return to.push_back(code);
  for (uint32_t i = 0; i < found->size; ++i) decompose(tables().parts[found->begin + i], compatible, to);
}

// Sorts the marks behind each character by their classes; those of one class stay in order.
void order_marks(Codes& codes) {
  const auto class_of = [](uint32_t code) { return code < 0x300 ? 0 : value_of(tables().classes, code); };
  for (size_t begin = 0; begin < codes.size();) {
    size_t end = begin;
    while (end < codes.size() && class_of(codes[end])) ++end;
    std::stable_sort(codes.begin() + static_cast<std::ptrdiff_t>(begin),
                     codes.begin() + static_cast<std::ptrdiff_t>(end),
                     [&](uint32_t a, uint32_t b) { return class_of(a) < class_of(b); });
    begin = end + 1;
  }
}

// What two characters are joined to, or 0.
uint32_t joined(uint32_t first, uint32_t second) {
  if (first - kLead < 19 && second - kVowel < kVowels)
    return kHangul + ((first - kLead) * kVowels + second - kVowel) * kTails;
  if (first - kHangul < kSyllables && (first - kHangul) % kTails == 0 && second - kTail - 1 < kTails - 1)
    return first + second - kTail;
  const auto& pairs = tables().pairs;
  const auto found = std::lower_bound(pairs.begin(), pairs.end(), 0, [&](const Pair& pair, int) {
    return pair.first != first ? pair.first < first : pair.second < second;
  });
  return found != pairs.end() && found->first == first && found->second == second ? found->composed : 0;
}

// Joins characters with the marks behind them, where no mark of the same or a higher class is between.
void compose(Codes& codes) {
  constexpr size_t kNone = SIZE_MAX;
  size_t size = 0, starter = kNone;
  uint32_t last_class = 0;  // of the character that was kept last
  for (const uint32_t code : codes) {
    const uint32_t its = code < 0x300 ? 0 : value_of(tables().classes, code);
    const bool reaches = starter != kNone && (starter + 1 == size || (last_class && last_class < its));
    if (const uint32_t one = reaches ? joined(codes[starter], code) : 0) {
      codes[starter] = one;
      continue;
    }
    if (!its) starter = size;
    last_class = its;
    codes[size++] = code;
  }
  codes.resize(size);
}

// Whether a capital sigma at this place ends a word: a letter is before it and none after it.
bool is_final(const Codes& codes, size_t at) {
  const auto says = [&](size_t i) { return value_of(tables().sigma_neighbours, codes[i]); };
  size_t before = at, after = at + 1;
  while (before > 0 && says(before - 1) == 2) --before;
  while (after < codes.size() && says(after) == 2) ++after;
  return before > 0 && says(before - 1) == 1 && !(after < codes.size() && says(after) == 1);
}

Codes lower(const Codes& codes) {
  Codes found;
  found.reserve(codes.size());
  for (size_t i = 0; i < codes.size(); ++i) {
    const uint32_t code = codes[i];
    const Lower* const other = at_or_before(tables().lower, &Lower::code, code);
    if (code == kSigma)
      found.push_back(is_final(codes, i) ? kFinalSigma : kLowerSigma);
    else
      found.push_back(code == kDottedI ? 'i' : other && other->code == code ? other->lower : code);
    if (code == kDottedI) found.push_back(kDot);
  }
  return found;
}

}  // namespace

std::string normal(std::string_view text, Form form, bool lowercase) {
  const bool is_ascii =
      std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  std::string found;
  if (is_ascii) {
    for (const char c : text) found += lowercase && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    return found;
  }
  Codes codes;
  const bool compatible = form == Form::kNFKC || form == Form::kNFKD;
  for (const char *at = text.data(), *const end = at + text.size(); at < end;) {
    const uint32_t code = next_character(at, end);
    form == Form::kNone ? codes.push_back(code) : decompose(code, compatible, codes);
  }
  if (form != Form::kNone) order_marks(codes);
  if (form == Form::kNFC || form == Form::kNFKC) compose(codes);
  if (lowercase) codes = lower(codes);
  for (const uint32_t code : codes) append_utf8(found, code);
  return found;
}

}  // namespace sf::texts
