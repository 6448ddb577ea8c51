// A text is cut into chunks first, at spaces and around each character of Chinese and Japanese, then each chunk into
// words. Both rules are regular expressions in text.py; here they are written out.
#include "words.h"

#include <algorithm>

#include "../text/characters.h"
#include "../text/utf8.h"
#include "character_classes.h"

namespace sf::texts {
namespace {

constexpr size_t kLongest = 1024;  // characters of a chunk; longer ones are cut
constexpr uint32_t kNonJoiner = 0x200C, kJoiner = 0x200D;

constexpr Range kWithoutSpaces[] = {
    // _CJK of text.py
    {0x3041, 0x3096}, {0x30A1, 0x30FA}, {0x3400, 0x4DBF}, {0x4E00, 0x9FFF}, {0xF900, 0xFAFF}, {0x20000, 0x3FFFF},
};
constexpr Range kTheirMarks[] = {
    // _MARKS of text.py
    {0x300, 0x36F},
    {0x3099, 0x309A},
    {0xFE00, 0xFE0F},
    {0xE0100, 0xE01EF},
};

uint32_t class_of(uint32_t code) {
  const auto* const next = std::upper_bound(std::begin(kCharacterClasses), std::end(kCharacterClasses), 8 * code + 7);
  return *std::prev(next) & 7;
}
bool is_letter(uint32_t code) { return (class_of(code) & 3) == 1; }
bool is_mark(uint32_t code) { return (class_of(code) & 3) == 2; }
bool is_digit(uint32_t code) { return (class_of(code) & 3) == 3; }
bool has_no_spaces(uint32_t code) { return class_of(code) & 4; }
bool is_flag(uint32_t code) { return code >= 0x1F1E6 && code <= 0x1F1FF; }
bool is_skin_tone(uint32_t code) { return code >= 0x1F3FB && code <= 0x1F3FF; }

class Cutter {
 public:
  Cutter(std::string_view text, size_t most, std::vector<std::string_view>& found)
      : text_(text), most_(most), found_(found) {
    const char* const begin = text.data();
    for (const char *at = begin, *const end = begin + text.size(); at < end;) {
      starts_.push_back(static_cast<size_t>(at - begin));
      codes_.push_back(next_character(at, end));
    }
    starts_.push_back(text.size());
  }

  void cut() {
    const size_t size = codes_.size();
    for (size_t begin = 0; begin < size && !full();) {
      const uint32_t code = codes_[begin];
      size_t end = begin + 1;
      if (is_space(code)) {
        begin = end;
        continue;
      }
      if (is_in(kWithoutSpaces, code))
        while (end < size && is_in(kTheirMarks, codes_[end])) ++end;
      else
        while (end < size && !is_space(codes_[end]) && !is_in(kWithoutSpaces, codes_[end])) ++end;
      for (; begin < end; begin = std::min(end, begin + kLongest)) cut_chunk(begin, std::min(end, begin + kLongest));
    }
  }

 private:
  bool full() const { return found_.size() >= most_; }

  void cut_chunk(size_t begin, const size_t end) {
    while (begin < end && !full()) {
      const size_t next = end_of_word(begin, end);
      found_.push_back(text_.substr(starts_[begin], starts_[next] - starts_[begin]));
      begin = next;
    }
  }

  size_t end_of_word(size_t at, size_t end) const {
    const auto take = [&](auto&& wanted) {
      while (at < end && wanted(codes_[at])) ++at;
    };
    const uint32_t first = codes_[at++];
    if (has_no_spaces(first)) {
      take(is_mark);
    } else if (is_letter(first)) {
      take([](uint32_t code) { return is_letter(code) || is_mark(code) || code == kNonJoiner || code == kJoiner; });
    } else if (is_digit(first)) {
      take(is_digit);
      take(is_mark);
    } else if (is_flag(first) && at < end && is_flag(codes_[at])) {
      ++at;
    } else {
      while (at < end && (is_mark(codes_[at]) || is_skin_tone(codes_[at]) || codes_[at] == kJoiner)) {
        const bool joins = codes_[at++] == kJoiner;  // what it joins may be anything but a letter or digit
        if (joins && at < end && !is_letter(codes_[at]) && !is_digit(codes_[at])) ++at;
      }
    }
    return at;
  }

  const std::string_view text_;
  const size_t most_;
  std::vector<std::string_view>& found_;
  std::vector<uint32_t> codes_;
  std::vector<size_t> starts_;  // of each character in the text, and its end
};

}  // namespace

void split_words(std::string_view text, size_t most, std::vector<std::string_view>& found) {
  Cutter(text, most, found).cut();
}

void split_characters(std::string_view text, size_t most, std::vector<std::string_view>& found) {
  for (const char *at = text.data(), *const end = at + text.size(); at < end && found.size() < most;) {
    const char* const begin = at;
    next_character(at, end);
    found.emplace_back(begin, static_cast<size_t>(at - begin));
  }
}

}  // namespace sf::texts
