// Hashed n-grams of a text: the ids of its words, pairs of words, and n-grams of 2 to 5 characters within words.
// Needs neither torch nor Python. docs/classifiers.md describes the rule; seqcls_fast/toolkit/data/ngrams.py has the
// same in numpy, and the tests hold the two to the same ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sf::texts {

constexpr int kMostBits = 30;

struct Ngram {
  uint32_t id;     // below 2^bits
  uint32_t count;  // how often it occurs in the text
};

// Appends the n-grams of a text in UTF-8 to `found`, by rising id. Words and pairs have ids below 2^(bits - 1), n-grams
// of characters the others. The text is taken as it is: whoever wants cases or
// Unicode forms to be alike changes it before. A byte that belongs to no character counts as U+FFFD; `bits` is 1 to 30.
void hashed_ngrams(const char* text, size_t bytes, int bits, std::vector<Ngram>& found);

}  // namespace sf::texts
