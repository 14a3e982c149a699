// The numbers that rows are finished in, double for float32 and Wide for float64, and Factor, a number whose exponent
// never leaves its range.
#pragma once

#include <cstdint>
#include <type_traits>

#include "numbers/format.h"
#include "numbers/wide.h"

namespace xent::internal {

template <class T>
using Number = std::conditional_t<sizeof(T) == sizeof(double), Wide, double>;
template <class T>
Number<T> ToNumber(Wide x) {
  if constexpr (sizeof(T) == sizeof(double)) {
    return x;
  } else {
    return x.hi;
  }
}

// To T: to nearest even, zero where the magnitude is at most its smallest normal number, the canonical NaN.
template <class T>
T RoundTo(Number<T> x);

// A number mantissa 2^exponent, the mantissa rounded to T, or zero.
struct Factor {
  double mantissa = 0.0;
  int64_t exponent = 0;
};

// Exact for every finite x, subnormal too, whatever the floating-point mode; mantissa magnitude in [1, 2). An infinity
// is a power beyond all ranges.
Factor Decompose(double x);
Factor Quotient(Factor a, Factor b);
Factor Product(Factor a, Factor b);

}  // namespace xent::internal
