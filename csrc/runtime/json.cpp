// A recursive reader: one function for each kind of value. Errors tell the byte at which the text stops being JSON.
#include "json.h"

#include <algorithm>
#include <cmath>
#include <locale>
#include <sstream>

#include "../text/utf8.h"
#include "refusal.h"

namespace sf::runtime {
namespace {

constexpr int kMostDepth = 16;
constexpr int64_t kMostValues = 200'000;

class Reader {
 public:
  Reader(const char* text, size_t size, const char* what) : begin_(text), at_(text), end_(text + size), what_(what) {}

  Json whole_text() {
    Json found = value(0);
    skip_space();
    if (at_ != end_) wrong("the end of the text");
    return found;
  }

 private:
  [[noreturn]] void wrong(const char* expected) const {
    const std::string got = at_ == end_ ? "its end" : quoted(std::string(at_, std::min<ptrdiff_t>(end_ - at_, 8)));
    fail(what_, ": expected ", expected, " at byte ", at_ - begin_, " of the JSON but got ", got);
  }
  void skip_space() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
  }
  bool take(char c) {
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }
  bool take(const std::string& word) {
    if (static_cast<size_t>(end_ - at_) < word.size() || std::string(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json value(int depth) {
    skip_space();
    if (depth > kMostDepth) wrong("fewer levels");
    if (++values_ > kMostValues) wrong("fewer values");
    Json found;
    if (at_ == end_) wrong("a value");
    if (*at_ == '{') {
      object(found, depth);
    } else if (*at_ == '[') {
      list(found, depth);
    } else if (*at_ == '"') {
      found.kind = Json::Kind::kText;
      found.text = string();
    } else if (take("true")) {
      found.kind = Json::Kind::kBool;
      found.flag = true;
    } else if (take("false")) {
      found.kind = Json::Kind::kBool;
    } else if (!take("null")) {
      number(found);
    }
    return found;
  }

  void list(Json& to, int depth) {
    to.kind = Json::Kind::kList;
    take('[');
    skip_space();
    if (take(']')) return;
    do {
      to.items.push_back(value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) wrong("a comma or ]");
  }

  void object(Json& to, int depth) {
    to.kind = Json::Kind::kObject;
    take('{');
    skip_space();
    if (take('}')) return;
    do {
      skip_space();
      if (at_ == end_ || *at_ != '"') wrong("a name");
      std::string name = string();
      skip_space();
      if (!take(':')) wrong("a colon");
      to.members.emplace_back(std::move(name), value(depth + 1));
      skip_space();
    } while (take(','));
    if (!take('}')) wrong("a comma or }");
    std::vector<std::string> names;
    for (const auto& member : to.members) names.push_back(member.first);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end()) fail(what_, ": expected each name once but got ", quoted(*twice), " twice");
  }

  void digits() {
    if (at_ == end_ || *at_ < '0' || *at_ > '9') wrong("a digit");
    while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
  }
  void number(Json& to) {
    const char* const first = at_;
    take('-');
    if (at_ == end_ || *at_ < '0' || *at_ > '9') wrong("a value");
    if (!take('0')) digits();
    if (take('.')) digits();
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      digits();
    }
    to.kind = Json::Kind::kNumber;
    to.text.assign(first, at_);
    std::istringstream read(to.text);
    read.imbue(std::locale::classic());  // a comma of another locale must not end the number
    if (!(read >> to.number) || !std::isfinite(to.number)) {
      at_ = first;
      wrong("a number that float64 holds");
    }
  }

  uint32_t four_digits() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = at_ == end_ ? ' ' : *at_;
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) wrong("four hexadecimal digits");
      code = code * 16 + static_cast<uint32_t>(digit);
      ++at_;
    }
    return code;
  }
  uint32_t escaped_code() {
    const uint32_t high = four_digits();
    if (high < 0xd800 || high > 0xdfff) return high;
    if (high > 0xdbff || !take("\\u")) wrong("both halves of a surrogate pair");
    const uint32_t low = four_digits();
    if (low < 0xdc00 || low > 0xdfff) wrong("both halves of a surrogate pair");
    return 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
  }

  std::string string() {
    take('"');
    std::string found;
    while (true) {
      if (at_ == end_) wrong("a closing quote");
      const unsigned char c = static_cast<unsigned char>(*at_);
      if (take('"')) return found;
      if (c < 0x20) wrong("no control character in a string");
      if (take('\\')) {
        const char escape = at_ == end_ ? ' ' : *at_++;
        const char* const known = "\"\\/bfnrt";
        const char* const place = std::char_traits<char>::find(known, 8, escape);
        if (place) {
          found += "\"\\/\b\f\n\r\t"[place - known];
        } else if (escape == 'u') {
          texts::append_utf8(found, escaped_code());
        } else {
          wrong("an escape of JSON");
        }
      } else if (c < 0x80) {
        found += *at_++;
      } else {
        multibyte(found);
      }
    }
  }

  void multibyte(std::string& to) {
    const char* next = at_;
    if (!texts::next_is_valid(next, end_)) wrong("UTF-8");
    to.append(at_, next);
    at_ = next;
  }

  const char *begin_, *at_, *end_, *what_;
  int64_t values_ = 0;
};

std::string shown(const Json& value) {
  switch (value.kind) {
    case Json::Kind::kNull:
      return "null";
    case Json::Kind::kBool:
      return value.flag ? "true" : "false";
    case Json::Kind::kNumber:
      return value.text.substr(0, 40);
    case Json::Kind::kText:
      return quoted(value.text);
    case Json::Kind::kList:
      return "a list";
    default:
      return "an object";
  }
}

}  // namespace

const Json* Json::find(const std::string& name) const {
  for (const auto& [each, value] : members)
    if (each == name) return &value;
  return nullptr;
}

Json parse_json(const char* text, size_t size, const char* what) { return Reader(text, size, what).whole_text(); }

int64_t whole(const Json& value, int64_t low, int64_t high, const std::string& what) {
  const bool is_whole = value.kind == Json::Kind::kNumber && std::floor(value.number) == value.number;
  if (!is_whole || value.number < static_cast<double>(low) || value.number > static_cast<double>(high))
    fail(what, ": expected a whole number from ", low, " to ", high, " but got ", shown(value));
  return static_cast<int64_t>(value.number);
}

double real(const Json& value, double low, double high, const std::string& what) {
  if (value.kind != Json::Kind::kNumber || !(value.number >= low && value.number <= high))
    fail(what, ": expected a number from ", low, " to ", high, " but got ", shown(value));
  return value.number;
}

bool flag(const Json& value, const std::string& what) {
  if (value.kind != Json::Kind::kBool) fail(what, ": expected true or false but got ", shown(value));
  return value.flag;
}

const std::string& words(const Json& value, const std::string& what) {
  if (value.kind != Json::Kind::kText) fail(what, ": expected a string but got ", shown(value));
  return value.text;
}

}  // namespace sf::runtime
