// The vocabulary is read in place from the file, and found by a hash table with linear probing. The sum over n-grams
// has the order and the fused multiply-adds of torch's embedding_bag(), and so its bits.
#include "texts.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "../text/hashed_ngrams.h"
#include "../text/utf8.h"
#include "refusal.h"
#include "words.h"

namespace sf::runtime {
namespace {

constexpr int64_t kUnknown = 1, kFirst = 2;  // ids: of an unknown token, and of the first known one
constexpr char kEnd = '\xFF';                // behind each token in the file; no byte of UTF-8
constexpr int64_t kMostCharacters = 10'000;  // of a text whose n-grams are read, as ngrams.py has it

uint64_t hash_of(std::string_view token) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : token) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return hash ^ hash >> 32;
}

std::string_view first_characters(std::string_view text, int64_t most) {
  const char *at = text.data(), *const end = at + text.size();
  for (int64_t i = 0; i < most && at < end; ++i) texts::next_character(at, end);
  return text.substr(0, static_cast<size_t>(at - text.data()));
}

}  // namespace

Texts::Texts(const Description& d, TensorFile& file) : part_(d.text), classes_(d.classes) {
  if (has_tokenizer())
    read_tokens(file.take_bytes("text.tokens"), d.vocabulary - kFirst);
  else
    file.take_bytes("text.encoder");
  if (!part_.bits) return;
  const auto take = [&](const char* name, const std::vector<int64_t>& shape) {
    return reinterpret_cast<const float*>(file.take(name, FileTensor::Kind::kFloat32, shape).data);
  };
  const int64_t count = int64_t{1} << part_.bits;
  weight_ = take("wide.weight", {count, classes_});
  scale_ = take("wide.scale", {count});
}

void Texts::read_tokens(const FileTensor& tensor, int64_t count) {
  const char *at = tensor.data, *const end = at + tensor.count();
  const auto found = std::count(at, end, kEnd);
  if (found != count || (at != end && end[-1] != kEnd))
    fail("text.tokens: expected ", count, " tokens, as the vocabulary says, but got ", found);
  size_t size = 4;
  while (size < 2 * static_cast<size_t>(count)) size *= 2;
  table_.assign(size, 0);
  tokens_.reserve(static_cast<size_t>(count));
  for (const char* next = at; at < end; at = next + 1) {
    next = static_cast<const char*>(std::memchr(at, kEnd, static_cast<size_t>(end - at)));
    const std::string_view token(at, static_cast<size_t>(next - at));
    for (const char* byte = at; byte < next;)
      if (!texts::next_is_valid(byte, next)) fail("text.tokens: expected tokens in UTF-8 but got other bytes");
    uint32_t& place = table_[place_of(token)];
    if (place || token.empty()) fail("text.tokens: expected each token once, and none that is empty");
    tokens_.push_back(token);
    place = static_cast<uint32_t>(tokens_.size());
  }
}

// The place in the table where the index of a token is, or would be: the table has empty places.
size_t Texts::place_of(std::string_view token) const {
  size_t at = hash_of(token) & (table_.size() - 1);
  while (table_[at] && tokens_[table_[at] - 1] != token) at = (at + 1) & (table_.size() - 1);
  return at;
}

void Texts::add_ids(std::string_view normal, std::vector<int64_t>& ids) const {
  std::vector<std::string_view> found;
  const size_t most = part_.max_length ? static_cast<size_t>(part_.max_length) : SIZE_MAX;
  if (part_.unit == TextPart::Unit::kWord)
    texts::split_words(normal, most, found);
  else
    texts::split_characters(normal, most, found);
  for (const std::string_view token : found) {
    const uint32_t index = table_[place_of(token)];
    ids.push_back(index ? kFirst + index - 1 : kUnknown);
  }
}

void Texts::ngrams(std::string_view normal, float* logits) const {
  std::fill_n(logits, classes_, 0.0f);
  if (!part_.bits) return;
  const std::string_view text = first_characters(normal, kMostCharacters);
  std::vector<texts::Ngram> found;
  texts::hashed_ngrams(text.data(), text.size(), part_.bits, found);
  std::vector<float> weights;
  double squares = 0;
  for (const texts::Ngram& each : found) {
    weights.push_back(static_cast<float>(1 + std::log(static_cast<double>(each.count))) * scale_[each.id]);
    squares += weights.back() * weights.back();
  }
  const float size = std::max(static_cast<float>(std::sqrt(squares)), FLT_MIN);
  for (size_t i = 0; i < found.size(); ++i) {
    const float* const row = weight_ + found[i].id * classes_;
    for (int64_t k = 0; k < classes_; ++k) logits[k] = std::fma(weights[i] / size, row[k], logits[k]);
  }
  for (int64_t k = 0; k < classes_; ++k) logits[k] *= static_cast<float>(part_.factor);
}

}  // namespace sf::runtime
