// For AddressSanitizer (`make fuzz`): its operator new ends the process where memory cannot be had. This one throws, as
// it does everywhere else, so that the fuzzer sees what becomes of the exception.
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
