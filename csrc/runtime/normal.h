// Texts in a form of Unicode and in lower case, as unicodedata.normalize() and str.lower() of the Python that built the
// library have them.
#pragma once

#include <string>
#include <string_view>

namespace sf::texts {

enum class Form { kNone, kNFC, kNFD, kNFKC, kNFKD };

// A text in valid UTF-8 in this form, and then in lower case if that is wanted.
std::string normal(std::string_view text, Form form, bool lowercase);

}  // namespace sf::texts
