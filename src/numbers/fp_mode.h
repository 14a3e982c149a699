// The floating-point mode that a task needs, for as long as the object lives; then the caller's again, with the
// caller's exception flags. On processors other than x86-64 and AArch64 nothing is done.
//
// The compiler may move arithmetic across the change of mode: put what depends on it into an XENT_NOINLINE function.
#pragma once

#include <cstdint>

#include "numbers/compiler.h"  // IWYU pragma: export

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace xent::internal {

// Round to nearest even, all exceptions masked.
enum class Subnormals { kFlush, kKeep };

class FpMode {
 public:
  explicit FpMode(Subnormals subnormals) {
#if defined(__x86_64__)
    // Writing the register waits for what is under way, and so does reading its flags.
    saved_ = _mm_getcsr();
    const unsigned wanted = subnormals == Subnormals::kFlush ? 0x1f80u | 0x8000u | 0x0040u : 0x1f80u;
    constexpr unsigned kFlags = 0x3f;
    changed_ = (saved_ & ~kFlags) != wanted;
    if (changed_) _mm_setcsr(wanted);
#elif defined(__aarch64__)
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("mrs %0, fpsr" : "=r"(saved_flags_));
    const uint64_t mode = subnormals == Subnormals::kFlush ? uint64_t{1} << 24 : 0;
    asm volatile("msr fpcr, %0" : : "r"(mode));
#else
    (void)subnormals;
#endif
  }
  ~FpMode() {
#if defined(__x86_64__)
    if (changed_ || _mm_getcsr() != saved_) _mm_setcsr(saved_);
#elif defined(__aarch64__)
    asm volatile("msr fpcr, %0" : : "r"(saved_));
    asm volatile("msr fpsr, %0" : : "r"(saved_flags_));
#endif
  }
  FpMode(const FpMode &) = delete;
  FpMode &operator=(const FpMode &) = delete;

 private:
#if defined(__x86_64__)
  unsigned saved_;
  bool changed_;
#elif defined(__aarch64__)
  uint64_t saved_, saved_flags_;
#endif
};

}  // namespace xent::internal
