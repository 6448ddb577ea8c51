// What a kernel finds wrong and cannot say itself: it raises a word in memory that the host sees, and the next look at
// it becomes an exception.
#pragma once

#include <cstdint>

namespace sf::cuda {

enum Fault : uint32_t { kNoSuchId = 1, kWaitRanOut = 2 };  // the worse the larger

inline const char* sentence_of(uint32_t fault) {
  return fault == kNoSuchId
             ? "x: expected every id of this or an earlier call to be the index of a column of w_ih, but one was "
               "not; it counted as zeros"
             : "a recurrent kernel of this or an earlier call gave up waiting for the other blocks of its grid: "
               "its results and those computed from them are wrong";
}

}  // namespace sf::cuda
