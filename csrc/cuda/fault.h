// Error codes, and their sentences. A kernel cannot raise an error itself, and the host does not wait for it. It writes
// a code to host memory instead, and a later call raises it.
#pragma once

#include <cstdint>

namespace sf::cuda {

enum Fault : uint32_t { kNoSuchId = 1, kWaitRanOut = 2 };  // a larger code is more serious and replaces a smaller one

inline const char* sentence_of(uint32_t fault) {
  return fault == kNoSuchId
             ? "x: expected every id of this or an earlier call to be the index of a column of w_ih, but one was "
               "not; it counted as zeros"
             : "a recurrent kernel of this or an earlier call gave up waiting for the other blocks of its team: "
               "its results and those computed from them are wrong";
}

}  // namespace sf::cuda
