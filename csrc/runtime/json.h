// A strict reader of JSON for the header of a file, which may come from a stranger. Depth and number of values are
// limited, names within an object are unique, and text is valid UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace sf::runtime {

struct Json {
  enum class Kind { kNull, kBool, kNumber, kText, kList, kObject };
  Kind kind = Kind::kNull;
  bool flag = false;
  double number = 0;
  std::string text;                                   // of a string; of a number, as it was written
  std::vector<Json> items;                            // of a list
  std::vector<std::pair<std::string, Json>> members;  // of an object, in the order of the file

  const Json* find(const std::string& name) const;  // null where the object has no such member
};

// The value of a whole text. An error begins with `what`.
Json parse_json(const char* text, size_t size, const char* what);

// The value as a whole number from `low` to `high`, both below 2^53 in size, as the others below: an error begins with
// `what` and says what came.
int64_t whole(const Json& value, int64_t low, int64_t high, const std::string& what);
double real(const Json& value, double low, double high, const std::string& what);
bool flag(const Json& value, const std::string& what);
const std::string& words(const Json& value, const std::string& what);

}  // namespace sf::runtime
