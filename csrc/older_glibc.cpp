// Lets the extensions load on systems with glibc 2.28 (2018), whichever later one they are linked on. They are compiled
// as anywhere; this file alone takes the place of what their linker would look for in a later glibc. It is linked into
// each extension and hidden there. libseqcls does not have it, since a program would take these functions for its own.
#include <cstddef>  // defines __GLIBC__ where that is the C library
#include <new>

#if defined(__GLIBC__) && defined(__x86_64__)

#define SF_HIDDEN extern "C" __attribute__((visibility("hidden")))

struct stat;

// Under the versions that they have had on x86-64 since glibc 2.2.5.
extern "C" int sf_pthread_once(int* once, void (*function)());
extern "C" int sf_fxstat(int version, int file, struct stat* about);
extern "C" double sf_log(double x);
__asm__(".symver sf_pthread_once, pthread_once@GLIBC_2.2.5");
__asm__(".symver sf_fxstat, __fxstat@GLIBC_2.2.5");
__asm__(".symver sf_log, log@GLIBC_2.2.5");

// glibc 2.32 has it. Where it is false, std::shared_ptr counts with atomic operations.
SF_HIDDEN char __libc_single_threaded;
char __libc_single_threaded = false;

// glibc 2.34 has moved it here from libpthread, with a new version.
SF_HIDDEN int pthread_once(int* once, void (*function)()) { return sf_pthread_once(once, function); }

// A macro for __fxstat() until glibc 2.33. 1 is the layout of struct stat on x86-64.
SF_HIDDEN int fstat(int file, struct stat* about) { return sf_fxstat(1, file, about); }

// glibc 2.29 has a version of it that does not set errno. The numbers are the same.
SF_HIDDEN double log(double x) { return sf_log(x); }

// GCC 11 calls it where an array is too large; its own library has it since then.
namespace std {
[[noreturn]] __attribute__((visibility("hidden"))) void __throw_bad_array_new_length();
void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

#endif
