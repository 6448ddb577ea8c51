// A pool of large buffers. The system hands out fresh pages zeroed one fault at a time, which dominates a large
// training step; blocks given back are kept, on huge pages where the system allows it, up to kMostHeld bytes.
#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#include "backend.h"
#include "fork.h"

namespace sf {
namespace {

constexpr int64_t kHeader = 64;  // holds the block's size, keeps the data aligned
constexpr int64_t kSmallest = 1 << 16;
constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int64_t kMostHeld = int64_t{1} << 30;
constexpr int64_t kMostAsked = int64_t{1} << 60;  // beyond it the arithmetic of sizes would overflow

struct Block {
  int64_t size;  // with the header
};

struct Pool {
  std::mutex mutex;
  std::vector<Block*> free;  // the most recently used last
  int64_t held = 0;
};

// Never destroyed: tensors may give blocks back while the process ends. A forked child starts an empty one, as the
// parent's mutex may have been held.
Pool& pool() {
  static ForkSafe<Pool> instance;
  return instance.get();
}

// Sizes come in eighths of a power of two, so that slightly different shapes share blocks.
int64_t size_class(int64_t bytes) {
  int64_t step = kSmallest / 8;
  while (step * 16 < bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

Block* allocate(int64_t size) {
  const bool huge = size >= kHugePage;
  void* p = nullptr;
  if (posix_memalign(&p, huge ? kHugePage : 64, static_cast<size_t>(size)) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (huge) madvise(p, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
  auto* block = static_cast<Block*>(p);
  block->size = size;
  return block;
}

}  // namespace

void* pool_take(int64_t bytes) {
  if (bytes < 0 || bytes > kMostAsked) throw std::bad_alloc();
  const int64_t size = size_class((bytes > kSmallest ? bytes : kSmallest) + kHeader);
  Block* block = nullptr;
  {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    for (size_t i = p.free.size(); i-- > 0;) {
      if (p.free[i]->size == size) {
        block = p.free[i];
        p.free.erase(p.free.begin() + static_cast<std::ptrdiff_t>(i));
        p.held -= size;
        break;
      }
    }
  }
  if (!block) block = allocate(size);
  return reinterpret_cast<char*>(block) + kHeader;
}

void pool_give(void* data) {
  if (!data) return;
  auto* block = reinterpret_cast<Block*>(static_cast<char*>(data) - kHeader);
  std::vector<Block*> dropped;
  {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    p.free.push_back(block);
    p.held += block->size;
    while (p.held > kMostHeld) {  // the least recently used goes first
      dropped.push_back(p.free.front());
      p.held -= p.free.front()->size;
      p.free.erase(p.free.begin());
    }
  }
  for (Block* b : dropped) std::free(b);
}

void pool_trim() {
  std::vector<Block*> dropped;
  {
    Pool& p = pool();
    std::lock_guard<std::mutex> lock(p.mutex);
    dropped.swap(p.free);
    p.held = 0;
  }
  for (Block* b : dropped) std::free(b);
}

int64_t pool_held() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  return p.held;
}

}  // namespace sf
