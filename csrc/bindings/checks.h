// Errors about arguments: each is a sentence of the form "name: expected one thing but got another".
// Nothing of torch or pybind11 is included here, so that files that may include only one of them can both use it.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace sf {

template <class... Parts>
[[noreturn]] __attribute__((cold)) void fail(const Parts&... parts) {
  std::ostringstream message(std::ios_base::out);  // without the argument it needs a libstdc++ of 2019
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// The first ten of some sizes, written as Python writes a tuple.
template <class Sizes>
std::string text(const Sizes& sizes) {
  constexpr size_t kMost = 10;
  std::string result = "(";
  for (size_t i = 0; i < sizes.size() && i < kMost; ++i) {
    result += (i ? ", " : "") + std::to_string(sizes.begin()[i]);
  }
  return result + (sizes.size() > kMost ? ", ...)" : sizes.size() == 1 ? ",)" : ")");
}

// A name that a caller gave, in quotes: cut to 60 bytes, with a question mark for each that is not printable ASCII.
inline std::string quoted(const std::string& name) {
  constexpr size_t kMost = 60;
  std::string result = "'";
  for (const char c : name.substr(0, kMost)) result += c >= ' ' && c <= '~' ? c : '?';
  return result + (name.size() > kMost ? "...'" : "'");
}

// The index of `name` in a list of names. If it is not in the list, the error begins with `what` and lists all names.
template <class Names>
int index_in(const char* what, const Names& names, const std::string& name) {
  std::string choices;
  int index = 0;
  for (const auto& choice : names) {
    if (name == choice) return index;
    choices += (index++ ? ", " : "") + std::string(choice);
  }
  fail(what, ": expected one of ", choices, " but got ", quoted(name));
}

}  // namespace sf
