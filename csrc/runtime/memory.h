// Memory aligned for vectors, and its division into arrays. With a null base the arrays are only counted, so that the
// code that takes them also measures them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace sf::runtime {

constexpr int64_t kAlign = 64;

class AlignedMemory {
 public:
  AlignedMemory() = default;
  // Zeros, which also makes the system provide the memory now and not at the first use.
  explicit AlignedMemory(int64_t bytes) {
    const auto size = static_cast<size_t>((bytes + kAlign) / kAlign * kAlign);
    data_ = static_cast<char*>(std::aligned_alloc(kAlign, size));
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, size);
  }
  AlignedMemory(AlignedMemory&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  AlignedMemory& operator=(AlignedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~AlignedMemory() { std::free(data_); }
  char* data() const { return data_; }

 private:
  char* data_ = nullptr;
};

class Division {
 public:
  explicit Division(char* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    char* const found = base_ ? base_ + used_ : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlign - 1) / kAlign * kAlign;
    return reinterpret_cast<T*>(found);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace sf::runtime
