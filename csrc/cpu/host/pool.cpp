// A pool of large buffers, up to kMostHeld bytes of which are kept when they are given back. The system zeroes each new
// page at its first use, which takes longer than the kernels of a large training step. The buffers are on huge pages
// where the system allows it.
#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "backend.h"
#include "fork.h"

namespace sf {
namespace {

constexpr int64_t kHeader = 64;  // bytes in front of the data, which hold the size and keep the data aligned
constexpr int64_t kSmallest = 1 << 16;
constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kMostHeld = int64_t{1} << 30;
constexpr int64_t kMostAsked = int64_t{1} << 60;  // for larger sizes the arithmetic below would overflow

struct Header {
  int64_t size;  // of the buffer, with its header
};

struct Pool {
  std::mutex mutex;
  std::vector<Header*> free;  // the buffer used last comes last
  int64_t held = 0;
};

// Never destroyed, because tensors may give buffers back while the process ends. A forked child starts with an empty
// pool, because the parent's mutex may have been locked.
Pool& pool() {
  static ForkSafe<Pool> instance;
  return instance.get();
}

// Sizes are rounded up to eighths of a power of two, so that buffers fit slightly different shapes.
int64_t size_class(int64_t bytes) {
  int64_t step = kSmallest / 8;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

Header* allocate(int64_t size) {
  const bool huge = size >= kHugePage;
  void* p = nullptr;
  if (posix_memalign(&p, huge ? kHugePage : 64, static_cast<size_t>(size)) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (huge) madvise(p, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
  auto* buffer = static_cast<Header*>(p);
  buffer->size = size;
  return buffer;
}

}  // namespace

void* pool_take(int64_t bytes) {
  if (bytes < 0 || bytes > kMostAsked) throw std::bad_alloc();
  const int64_t size = size_class((bytes > kSmallest ? bytes : kSmallest) + kHeader);
  Header* buffer = nullptr;
  {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    for (size_t i = p.free.size(); i-- > 0;) {
      if (p.free[i]->size == size) {
        buffer = p.free[i];
        p.free.erase(p.free.begin() + static_cast<std::ptrdiff_t>(i));
        p.held -= size;
        break;
      }
    }
  }
  if (!buffer) buffer = allocate(size);
  return reinterpret_cast<char*>(buffer) + kHeader;
}

void pool_give(void* data) {
  if (!data) return;
  auto* buffer = reinterpret_cast<Header*>(static_cast<char*>(data) - kHeader);
  std::vector<Header*> dropped;
  {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    p.free.push_back(buffer);
    p.held += buffer->size;
    while (p.held > kMostHeld) {  // the least recently used goes first
      dropped.push_back(p.free.front());
      p.held -= p.free.front()->size;
      p.free.erase(p.free.begin());
    }
  }
  for (Header* buffer : dropped) std::free(buffer);
}

void pool_trim() {
  std::vector<Header*> dropped;
  {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    dropped.swap(p.free);
    p.held = 0;
  }
  for (Header* buffer : dropped) std::free(buffer);
}

int64_t pool_held() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  return p.held;
}

}  // namespace sf
