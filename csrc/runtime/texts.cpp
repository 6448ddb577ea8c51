// The vocabulary is read in place from the file, and found in a sorted list: a file that was made to have collisions
// in a table of hashes would take hours to open. The sum over n-grams has the order and the fused multiply-adds of
// torch's embedding_bag(), and so its bits.
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

// The first eight bytes as a number whose order is that of the bytes.
uint64_t start_of(std::string_view token) {
  uint64_t start = 0;
  for (size_t i = 0; i < 8; ++i) start = start << 8 | (i < token.size() ? static_cast<unsigned char>(token[i]) : 0u);
  return start;
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
  tokens_.reserve(static_cast<size_t>(count));
  for (const char* next = at; at < end; at = next + 1) {
    next = static_cast<const char*>(std::memchr(at, kEnd, static_cast<size_t>(end - at)));
    const std::string_view token(at, static_cast<size_t>(next - at));
    for (const char* byte = at; byte < next;)
      if (!texts::next_is_valid(byte, next)) fail("text.tokens: expected tokens in UTF-8 but got other bytes");
    tokens_.push_back({start_of(token), token, kFirst + static_cast<int64_t>(tokens_.size())});
  }
  std::sort(tokens_.begin(), tokens_.end());
  for (size_t i = 0; i < tokens_.size(); ++i)
    if (tokens_[i].text.empty() || (i && tokens_[i].text == tokens_[i - 1].text))
      fail("text.tokens: expected each token once, and none that is empty");
}

int64_t Texts::id_of(std::string_view token) const {
  const auto found = std::lower_bound(tokens_.begin(), tokens_.end(), Token{start_of(token), token, 0});
  return found != tokens_.end() && found->text == token ? found->id : kUnknown;
}

void Texts::add_ids(std::string_view normal, std::vector<int64_t>& ids) const {
  std::vector<std::string_view> found;
  const size_t most = part_.max_length ? static_cast<size_t>(part_.max_length) : SIZE_MAX;
  if (part_.unit == TextPart::Unit::kWord)
    texts::split_words(normal, most, found);
  else
    texts::split_characters(normal, most, found);
  for (const std::string_view token : found) ids.push_back(id_of(token));
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
