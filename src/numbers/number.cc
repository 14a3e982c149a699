#include "numbers/number.h"

#include <bit>
#include <limits>

namespace xent::internal {

template <class T>
T RoundTo(Number<T> x) {
  // Zero is decided on the unrounded number: processors differ on which results count as below the normal range.
  const double value = Value(x);
  if (value != value) return std::numeric_limits<T>::quiet_NaN();  // the canonical one, whatever made it
  return Magnitude(value) <= PowerOfTwo(Format<T>::kMinExponent) ? T{0} : static_cast<T>(value);
}

Factor Decompose(double x) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  const uint64_t sign = bits >> 63 << 63;
  uint64_t fraction = bits << 12 >> 12;
  int64_t exponent = ExponentOf(x);
  if (exponent == -1023) {  // subnormal: its leading bit becomes the hidden one
    if (fraction == 0) return {};
    const int shift = std::countl_zero(fraction) - 11;
    fraction = fraction << shift << 12 >> 12;
    exponent = -1022 - shift;
  } else if (exponent == 1024) {
    exponent = int64_t{1} << 20;
  }
  return {std::bit_cast<double>(sign | (uint64_t{1023} << 52) | fraction), exponent};
}

// Returns x 2^exponent; x is not zero.
static Factor Normalised(double x, int64_t exponent) {
  const int64_t own = ExponentOf(x);
  return {Scale(x, -own), exponent + own};
}
Factor Quotient(Factor a, Factor b) {
  if (a.mantissa == 0.0) return {};
  return Normalised(a.mantissa / b.mantissa, a.exponent - b.exponent);
}

Factor Product(Factor a, Factor b) {
  if (a.mantissa == 0.0 || b.mantissa == 0.0) return {};
  return Normalised(a.mantissa * b.mantissa, a.exponent + b.exponent);
}

template float RoundTo<float>(double);
template double RoundTo<double>(Wide);

}  // namespace xent::internal
