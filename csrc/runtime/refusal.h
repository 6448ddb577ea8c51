// An error of the runtime: a status for programs and a sentence for people. It never leaves the library: api.cpp turns
// every exception into a status.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "../bindings/checks.h"
#include "seqcls.h"

namespace sf::runtime {

struct Refusal : std::runtime_error {
  seqcls_status status;
  Refusal(seqcls_status given, const std::string& sentence) : std::runtime_error(sentence), status(given) {}
};

template <class... Parts>
[[noreturn]] __attribute__((cold)) void refuse(seqcls_status status, const Parts&... parts) {
  std::ostringstream sentence(std::ios_base::out);  // without the argument it needs a libstdc++ of 2019
  (sentence << ... << parts);
  throw Refusal(status, sentence.str());
}

// index_in() of ../bindings/checks.h with a status.
template <class Names>
int index_or_refuse(seqcls_status status, const std::string& what, const Names& names, const std::string& name) {
  try {
    return index_in(what.c_str(), names, name);
  } catch (const std::runtime_error& error) {
    refuse(status, error.what());
  }
}

}  // namespace sf::runtime
