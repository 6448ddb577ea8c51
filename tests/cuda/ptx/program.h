// A kernel's PTX, translated once into a list of instructions. Each operand becomes a place in a warp's register file:
// 32 lanes side by side, of 4 bytes where a register has 16 or 32 bits, of 8 bytes where it has 64. A predicate is one
// word with a bit per lane. Constants and special registers such as %tid.x are registers that are set beforehand.
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace sf::ptx {

constexpr int kLanes = 32;
using Mask = uint32_t;
constexpr Mask kEvery = ~Mask{0};

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Divergence : Fault {  // only some lanes have come to an instruction that needs all of them
  using Fault::Fault;
};

struct Operand {
  uint32_t at = 0;      // byte in the register file
  uint32_t narrow = 0;  // constants: how much further their lanes of 4 bytes lie than those of 8
  uint8_t size = 0;     // bytes of a lane; 0 for a predicate
  bool is_constant = false;
  int64_t plus = 0;  // an address: what is added to the register
};

enum class Next { kGo, kJumped, kAgain, kYield };  // kAgain: the warp waits, kYield: it goes on after the others
enum class Braces { kNone, kLeft, kRight };
enum class Space { kNone, kParam, kShared, kGlobal };
enum class Scope { kNone, kBlock, kCluster, kDevice };  // kNone: a weak access

class Machine;
struct Warp;
struct Instruction;
using Run = Next (*)(Machine&, Warp&, const Instruction&, Mask);

struct Instruction {
  Run run = nullptr;
  std::vector<Operand> o;
  int guard = -1;  // the place of the predicate under which lanes run it; -1: always
  bool guard_negated = false;
  int target = -1;  // of a branch
  Space space = Space::kNone;
  Scope scope = Scope::kNone;
  int bytes = 0, count = 1;  // of a load or store: the size of a value, and how many
  bool is_signed = false, acquires = false, releases = false, negates = false;
  Braces braces = Braces::kNone;  // of a mov
  std::string text;
};

// How an operation is carried out; see instructions.h.
void decode(Instruction&, const std::vector<std::string>& words);

struct Program {
  std::vector<Instruction> code;
  uint32_t register_bytes = 0;
  struct Preset {
    uint32_t at;
    uint64_t value;
  };
  std::vector<Preset> constants;            // lanes of 8 bytes, followed by lanes of 4
  std::map<std::string, uint32_t> special;  // lanes of 4 bytes
  int param_bytes = 0, max_threads = 0;
};

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Program parse() {
    const size_t param = text_.find("_param_0[");
    if (param == std::string::npos) throw Fault("ptx: expected a kernel with one parameter");
    program_.param_bytes = atoi(text_.c_str() + param + 9);
    if (const size_t bound = text_.find(".maxntid"); bound != std::string::npos)
      program_.max_threads = atoi(text_.c_str() + bound + 8);
    at_ = text_.find('{', param) + 1;
    scopes_.emplace_back();
    while (!scopes_.empty()) statement();
    for (auto& [index, label] : jumps_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) throw Fault("ptx: no label " + label);
      program_.code[index].target = found->second;
    }
    return std::move(program_);
  }

 private:
  void skip_space() {
    while (at_ < text_.size()) {
      if (isspace(static_cast<unsigned char>(text_[at_]))) {
        ++at_;
      } else if (text_.compare(at_, 2, "//") == 0) {
        at_ = text_.find('\n', at_);
      } else {
        return;
      }
    }
    throw Fault("ptx: the text ends within a kernel");
  }

  void statement() {
    skip_space();
    if (text_[at_] == '{') {
      scopes_.emplace_back();
      ++at_;
      return;
    }
    if (text_[at_] == '}') {
      scopes_.pop_back();
      ++at_;
      return;
    }
    const size_t end = text_.find_first_of(";:", at_);
    if (text_[end] == ':' && text_.compare(at_, 1, "$") == 0) {
      labels_[text_.substr(at_, end - at_)] = static_cast<int>(program_.code.size());
      at_ = end + 1;
      return;
    }
    const size_t stop = text_.find(';', at_);
    std::string words = text_.substr(at_, stop - at_);
    at_ = stop + 1;
    if (words.compare(0, 4, ".reg") == 0) return declare(words);
    if (words[0] == '.') return;  // .pragma
    instruction(words);
  }

  void declare(const std::string& words) {  // .reg .b32 %r<100>, or .reg .pred p, q
    const size_t type = words.find('.', 4), name = words.find_first_not_of(" \t", words.find_first_of(" \t", type));
    const std::string kind = words.substr(type, words.find_first_of(" \t", type) - type);
    const int size = kind == ".pred" ? 0 : kind.find("64") != std::string::npos ? 8 : 4;
    std::string names = words.substr(name) + ",";
    for (size_t end; (end = names.find(',')) != std::string::npos; names.erase(0, end + 1)) {
      std::string one = names.substr(0, end);
      one.erase(std::remove_if(one.begin(), one.end(), [](unsigned char c) { return isspace(c); }), one.end());
      const size_t many = one.find('<');
      const int count = many == std::string::npos ? 0 : atoi(one.c_str() + many + 1);
      if (count == 0) scopes_.back()[one] = place(size);
      for (int i = 0; i < count; ++i) scopes_.back()[one.substr(0, many) + std::to_string(i)] = place(size);
    }
  }

  Operand place(int size) {
    Operand o;
    o.at = program_.register_bytes, o.size = static_cast<uint8_t>(size);
    program_.register_bytes += size ? size * kLanes : 4;
    program_.register_bytes = (program_.register_bytes + 15) / 16 * 16;
    return o;
  }

  void instruction(const std::string& words) {
    Instruction in;
    in.text = words;
    for (char& c : in.text)
      if (c == '\t' || c == '\n') c = ' ';
    size_t i = 0;
    if (words[0] == '@') {
      in.guard_negated = words[1] == '!';
      const size_t from = in.guard_negated ? 2 : 1;
      i = words.find_first_of(" \t", from);
      in.guard = static_cast<int>(named(words.substr(from, i - from)).at);
      i = words.find_first_not_of(" \t", i);
    }
    const size_t end = std::min(words.find_first_of(" \t\n", i), words.size());
    std::vector<std::string> parts;  // the name of the operation, split at its dots
    for (size_t from = i; from <= end;) {
      const size_t dot = std::min(words.find('.', from), end);
      parts.push_back(words.substr(from, dot - from));
      from = dot + 1;
    }
    operands(in, parts, words.substr(end));
    decode(in, parts);
    program_.code.push_back(std::move(in));
  }

  // Splits at commas. What lies in braces counts as that many operands.
  void operands(Instruction& in, const std::vector<std::string>& parts, const std::string& list) {
    std::string word;
    const auto finish = [&] {
      const size_t from = word.find_first_not_of(" \t\n");
      if (from == std::string::npos) return;
      word = word.substr(from, word.find_last_not_of(" \t\n") + 1 - from);
      if (parts[0] == "bra")
        jumps_.emplace_back(program_.code.size(), word);
      else
        in.o.push_back(operand(word));
      word.clear();
    };
    for (const char c : list) {
      if (c == '{' && parts[0] == "mov") in.braces = in.o.empty() ? Braces::kLeft : Braces::kRight;
      if (c == ',' || c == '{' || c == '}')
        finish();
      else
        word += c;
    }
    finish();
  }

  Operand operand(std::string word) {
    int64_t plus = 0;
    if (word[0] == '[') {
      word = word.substr(1, word.size() - 2);
      if (const size_t sign = word.find('+'); sign != std::string::npos) {
        plus = strtoll(word.c_str() + sign + 1, nullptr, 0);
        word = word.substr(0, sign);
      }
    }
    Operand o = isdigit(static_cast<unsigned char>(word[0])) || word[0] == '-' ? constant(number(word)) : named(word);
    o.plus = plus;
    return o;
  }

  static uint64_t number(const std::string& word) {
    if (word[0] == '0' && (word[1] == 'f' || word[1] == 'd')) return strtoull(word.c_str() + 2, nullptr, 16);
    return word[0] == '-' ? static_cast<uint64_t>(strtoll(word.c_str(), nullptr, 0))
                          : strtoull(word.c_str(), nullptr, 0);
  }

  Operand constant(uint64_t value) {
    const auto [found, is_new] = constants_.try_emplace(value);
    if (is_new) {
      found->second = place(8);
      place(4);
      found->second.narrow = 8 * kLanes;
      found->second.is_constant = true;
      program_.constants.push_back({found->second.at, value});
    }
    return found->second;
  }

  Operand named(const std::string& name) {
    if (name == "_") return discarded();
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const auto found = scope->find(name); found != scope->end()) return found->second;
    if (name == "%tid.x" || name == "%ntid.x" || name == "%ctaid.x" || name == "%nctaid.x") {
      const auto [found, is_new] = specials_.try_emplace(name);
      if (is_new) {
        found->second = place(4);
        program_.special[name] = found->second.at;
      }
      return found->second;
    }
    if (name == "%clock64") return constant(1);  // time stands still, so that a wait in vain is found as one
    if (name.find("_param_0") != std::string::npos) return constant(0);  // its offset in the space of parameters
    if (name.find("shared_memory") != std::string::npos) return constant(0);
    throw Fault("ptx: unknown name " + name);
  }

  Operand discarded() {
    if (!discarded_.size) discarded_ = place(8);
    return discarded_;
  }

  const std::string& text_;
  size_t at_ = 0;
  Program program_;
  std::vector<std::map<std::string, Operand>> scopes_;
  std::map<uint64_t, Operand> constants_;
  std::map<std::string, Operand> specials_;
  Operand discarded_;
  std::map<std::string, int> labels_;
  std::vector<std::pair<size_t, std::string>> jumps_;
};

}  // namespace sf::ptx
