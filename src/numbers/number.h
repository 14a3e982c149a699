// The numbers that rows are finished in, double for float32 and Wide for float64, and Factor, a number whose exponent
// never leaves its range.
#pragma once

#include <algorithm>
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

template <class N>
N ValueOf(Unbounded<N> x) {
  return Scale(x.mantissa, std::clamp<int64_t>(x.exponent, -8192, 8192));
}
// a b, of numbers of any size; 0 where the coefficient b is exactly 0.
template <class N>
Unbounded<N> Times(Unbounded<N> a, double b) {
  if (b == 1.0) return a;
  if (b == 0.0) return {};
  const Factor factor = Decompose(b);
  const int64_t own = ExponentOf(Value(a.mantissa));
  return {MultiplyAny(Scale(a.mantissa, -own), N{factor.mantissa}), own + a.exponent + factor.exponent};
}
// a + b, rounded as Add rounds. Infinite where one of them is.
template <class N>
Unbounded<N> Sum(Unbounded<N> a, Unbounded<N> b) {
  if (Value(b.mantissa) == 0.0) return a;
  if (Value(a.mantissa) == 0.0) return b;
  const int64_t of_a = ExponentOf(Value(a.mantissa)), of_b = ExponentOf(Value(b.mantissa));
  const int64_t top = std::max(of_a + a.exponent, of_b + b.exponent);
  return {AddOrOverflow(ValueOf<N>({a.mantissa, a.exponent - top}), ValueOf<N>({b.mantissa, b.exponent - top})), top};
}
// a - b of finite numbers.
template <class N>
Unbounded<N> DifferenceOf(N a, N b) {
  if (IsFinite(Value(a) - Value(b))) return {Subtract(a, b)};
  return {Subtract(Scale(a, -2), Scale(b, -2)), 2};
}

}  // namespace xent::internal
