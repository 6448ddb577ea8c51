// Divides one piece of memory into aligned arrays. With a null base it only adds up their sizes, so that the code that
// takes the arrays also measures how much memory they need.
#pragma once

#include "../../core/types.h"

namespace sf {
namespace {

class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <class T>
  T* take(int64_t n) {
    char* p = base_ + used_;
    used_ += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(p);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace sf
