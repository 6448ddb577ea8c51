// Used with AddressSanitizer (`make fuzz`), whose operator new ends the process when memory cannot be allocated. This
// one throws std::bad_alloc, as without AddressSanitizer, so that the fuzzer tests how the exception is handled.
#include <cstdlib>
#include <new>

void* operator new(std::size_t bytes) {
  if (void* p = std::malloc(bytes ? bytes : 1)) return p;
  throw std::bad_alloc();
}
void* operator new[](std::size_t bytes) { return operator new(bytes); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
