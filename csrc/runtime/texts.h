// Texts as the models of them read them: ids of tokens, and weighted n-grams that go straight to the logits.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "description.h"
#include "tensor_file.h"

namespace sf::runtime {

class Texts {
 public:
  // The description must stay where it is.
  Texts(const Description& description, TensorFile& file);

  // Whether ids() can be called: else programs that have the tokenizer make them.
  bool has_tokenizer() const { return part_.unit != TextPart::Unit::kOther; }
  // Appends the ids of a text that is normal() already.
  void add_ids(std::string_view normal, std::vector<int64_t>& ids) const;
  // The share of the logits (classes,) that the n-grams of such a text have; zeros where the model has none.
  void ngrams(std::string_view normal, float* logits) const;

 private:
  void read_tokens(const FileTensor& tensor, int64_t count);
  int64_t id_of(std::string_view token) const;

  struct Token {
    uint64_t start;         // of the text, so that most pairs of tokens are told apart at once
    std::string_view text;  // in the file
    int64_t id;
    bool operator<(const Token& other) const { return start != other.start ? start < other.start : text < other.text; }
  };
  const TextPart& part_;
  const int64_t classes_;
  const float *weight_ = nullptr, *scale_ = nullptr;  // of the n-grams: (2^bits, classes) and (2^bits,)
  std::vector<Token> tokens_;                         // sorted
};

}  // namespace sf::runtime
