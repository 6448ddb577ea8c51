// The words of a text: tokens as TextEncoder in seqcls_fast/toolkit/data/text.py has them. Needs neither torch nor
// Python.
#pragma once

#include <string_view>
#include <vector>

namespace sf::texts {

// Appends the first `most` words of a normalised text in UTF-8 to `found`: words, numbers, and every other character
// with its marks; in Chinese, Japanese and Thai, which have no spaces, characters.
void split_words(std::string_view text, size_t most, std::vector<std::string_view>& found);

// The same for its characters.
void split_characters(std::string_view text, size_t most, std::vector<std::string_view>& found);

}  // namespace sf::texts
