// Hands out aligned pieces of one block. With a null base it only measures: the same code says how much it needs.
#pragma once

#include <cstdint>

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
