// Sweeps of exp, log and log1p over float32 bit patterns, for the everyday (strided) and the long (complete) run.
#ifndef XENT_TESTS_TESTING_SWEEP_H_
#define XENT_TESTS_TESTING_SWEEP_H_

#include <cstdint>
#include <string>

#include "reference/functions.h"
#include "testing/bounds.h"

namespace xent::test {

struct SweepResult {
  int64_t visited = 0;
  // The worst error against libm in double, and the exact error (MPFR) of that input.
  double worst = -1;
  double exact = -1;
  uint32_t input = 0;
  uint32_t got = 0;

  std::string Describe(reference::Function function) const;
};

// Visits the bit patterns first, first + stride, ... below `end` (at most 2^32), on two threads, in place.
//
// The reference is libm in double. glibc documents exp, log and log1p as wrong by at most 1 ULP of double on x86-64 and
// AArch64, which with the final rounding is below 2^-28 ULP of a float: an error that is found to be at most the bound
// less 2^-27 is within the bound. NaN, infinities and zeros are compared bit by bit.
SweepResult Sweep(reference::Function function, uint64_t first, uint64_t end, uint64_t stride);

// What Sweep may find: the bound less the reference's own error.
inline constexpr double kSweepBound = kArrayUlp - 0x1p-27;

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_SWEEP_H_
