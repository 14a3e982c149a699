// Scalar arithmetic in the types that rows are finished in, and log, log1p and exp there: double for float32 rows,
// Wide, an unevaluated sum of two doubles, for float64 rows.
//
// Merging chunk sums, the loss, lse, scale factors: these few operations a row decide the last bits of everything, so
// they are made of double operations alone (no libm, no contraction: -ffp-contract=off), equal on every target.
// Relative error about 2^-50 in double, 2^-60 in Wide: under 0.01 ULP of the result either way. Sources: Dekker 1971,
// Knuth TAOCP 2 (TwoSum), Shewchuk 1997; coefficients by scripts/coefficients.py.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <iterator>
#include <limits>

#include "numbers/coefficients.h"

namespace xent::internal {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Without libm: neither NaN nor an infinity.
inline constexpr bool IsFinite(double x) { return x - x == 0.0; }
inline constexpr double Magnitude(double x) { return x < 0.0 ? -x : x; }

struct Wide {
  double hi = 0.0;
  double lo = 0.0;
};

inline Wide TwoSum(double a, double b) {
  const double s = a + b;
  const double bb = s - a;
  return {s, (a - (s - bb)) + (b - bb)};
}

// |a| >= |b| or a = 0.
inline Wide FastTwoSum(double a, double b) {
  const double s = a + b;
  return {s, b - (s - a)};
}

// Exact for products whose parts neither overflow nor underflow: within a few 2^±900. Outside, and for 0, the product
// alone: parts that are flushed would leave a rounding error that is none.
inline Wide TwoProduct(double a, double b) {
  const double p = a * b;
  if (!(Magnitude(p) > 0x1p-900 && Magnitude(p) < 0x1p900)) return {p, 0.0};
#if defined(__FMA__) || defined(__aarch64__)
  return {p, __builtin_fma(a, b, -p)};
#else
  constexpr double kSplit = 0x1p27 + 1.0;
  const double ta = kSplit * a, tb = kSplit * b;
  const double ah = ta - (ta - a), bh = tb - (tb - b);
  const double al = a - ah, bl = b - bh;
  return {p, ((ah * bh - p) + ah * bl + al * bh) + al * bl};
#endif
}

inline Wide Add(Wide a, Wide b) {
  const Wide s = TwoSum(a.hi, b.hi);
  return FastTwoSum(s.hi, s.lo + (a.lo + b.lo));
}
// The same where infinity, NaN or overflow may come: as one addition of doubles gives them.
inline Wide AddOrOverflow(Wide a, Wide b) {
  const double sum = a.hi + b.hi;
  return IsFinite(sum) ? Add(a, b) : Wide{sum, 0.0};
}
inline Wide Negate(Wide a) { return {-a.hi, -a.lo}; }
inline Wide Subtract(Wide a, Wide b) { return Add(a, Negate(b)); }

inline Wide Multiply(Wide a, Wide b) {
  const Wide p = TwoProduct(a.hi, b.hi);
  return FastTwoSum(p.hi, p.lo + (a.hi * b.lo + a.lo * b.hi));
}

inline Wide Divide(Wide a, Wide b) {
  const double q = a.hi / b.hi;
  const Wide p = TwoProduct(q, b.hi);
  const double rest = ((a.hi - p.hi) - p.lo) + (a.lo - q * b.lo);
  return FastTwoSum(q, rest / b.hi);
}

// The same names for double.
inline double Add(double a, double b) { return a + b; }
inline double AddOrOverflow(double a, double b) { return a + b; }
inline double Subtract(double a, double b) { return a - b; }
inline double Multiply(double a, double b) { return a * b; }
inline double Divide(double a, double b) { return a / b; }

inline double Value(double x) { return x; }
inline double Value(Wide x) { return x.hi; }

// 2^k, zero below and infinity above the normal range.
inline double PowerOfTwo(int64_t k) {
  if (k < -1022) return 0.0;
  if (k > 1023) return kInfinity;
  return std::bit_cast<double>(static_cast<uint64_t>(k + 1023) << 52);
}

// x 2^k, exact unless the result leaves the normal range.
inline double Scale(double x, int64_t k) {
  if (k >= -1022 && k <= 1023) return x * PowerOfTwo(k);
  const int64_t half = k < -2044 ? -1022 : k > 2046 ? 1023 : k / 2;
  const int64_t rest = k - half < -1022 ? -1022 : k - half > 1023 ? 1023 : k - half;
  return (x * PowerOfTwo(half)) * PowerOfTwo(rest);
}
inline Wide Scale(Wide x, int64_t k) { return {Scale(x.hi, k), Scale(x.lo, k)}; }

// Floor of log2 |x| for normal x; -1023 for zero and subnormals.
inline int64_t ExponentOf(double x) { return static_cast<int64_t>((std::bit_cast<uint64_t>(x) >> 52) & 0x7ff) - 1023; }

// a b of any size, infinite or NaN too: what Multiply cannot take since products of parts leave the range.
inline Wide MultiplyAny(Wide a, Wide b) {
  const double product = a.hi * b.hi;
  const auto tame = [](double x) { return (x >= 0x1p-900 && x <= 0x1p900) || (x <= -0x1p-900 && x >= -0x1p900); };
  if (tame(product) && tame(a.hi) && tame(b.hi)) return Multiply(a, b);
  if (!IsFinite(a.hi) || !IsFinite(b.hi) || a.hi == 0.0 || b.hi == 0.0) return {product, 0.0};
  const int64_t ea = ExponentOf(a.hi), eb = ExponentOf(b.hi);
  return Scale(Multiply(Scale(a, -ea), Scale(b, -eb)), ea + eb);
}
inline double MultiplyAny(double a, double b) { return a * b; }

// log(1 + r) for -0.293 <= r <= 0.415, without forming 1 + r: 2 atanh(s), s = r / (2 + r).
template <class N>
N LogNearOne(N r) {
  const N s = Divide(r, Add(N{2.0}, r));
  const double w = Value(s) * Value(s);
  constexpr int kTerms = std::size(kLogF64);
  double p = kLogF64[kTerms - 1];
  for (int i = kTerms - 2; i >= 0; --i) p = p * w + kLogF64[i];
  return Add(Scale(s, 1), N{Value(s) * w * p});
}

// k ln 2 for |k| < 2^42, to about 2^-105 of itself in Wide.
template <class N>
N MultiplyLn2(double k) {
  if constexpr (sizeof(N) == sizeof(double)) {
    return k * kLn2_F64_Hi;
  } else {
    return Add(Add(TwoProduct(k, kLn2_F64_Hi), TwoProduct(k, kLn2_F64_Lo)), {k * kLn2_F64_LoLo, 0.0});
  }
}

// log x for normal x > 0.
template <class N>
N Log(N x) {
  constexpr double kSqrt2 = 0x1.6a09e667f3bcdp+0;
  const int64_t floor = ExponentOf(Value(x));
  const int64_t k = floor + (Scale(Value(x), -floor) > kSqrt2);
  const N log_m = LogNearOne(Add(Scale(x, -k), N{-1.0}));
  return k == 0 ? log_m : Add(MultiplyLn2<N>(static_cast<double>(k)), log_m);
}

// log(1 + r) for r >= 0, relative error kept as r goes to 0.
template <class N>
N Log1p(N r) {
  if (Value(r) < 0x1p-64) return r;  // to 2^-65 of itself; parts of the quotient below would leave the normal range
  if (Value(r) <= 0.41421356237309503) return LogNearOne(r);
  return Log(Add(N{1.0}, r));
}

// mantissa 2^exponent, of any size.
template <class N>
struct Unbounded {
  N mantissa{};
  int64_t exponent = 0;
};
// 1 / i!
inline constexpr auto kInverseFactorial = [] {
  std::array<double, 18> c{1.0};
  double factorial = 1.0;
  for (int i = 1; i < 18; ++i) c[static_cast<size_t>(i)] = 1.0 / (factorial *= i);
  return c;
}();
// Terms of the series of exp r, |r| <= 0.35: the last left out is below 2^-55, in Wide below 2^-70.
template <class N>
inline constexpr int kExpTerms = sizeof(N) == sizeof(double) ? 14 : 18;
// e^x with the mantissa in about [0.70, 1.42], for |x| < 2^42.
template <class N>
Unbounded<N> Exp(N x) {
  // Adding and subtracting 1.5 * 2^52 rounds to the nearest integer.
  const double k = (Value(x) * kLog2E_F64_Hi + 0x1.8p52) - 0x1.8p52;
  const N r = Subtract(x, MultiplyLn2<N>(k));
  // The first three terms in N, the rest, below 2^-7, in double.
  double p = 0.0;
  for (int i = kExpTerms<N> - 1; i >= 3; --i) p = p * Value(r) + kInverseFactorial[i];
  const N square = Multiply(r, r);
  const N head = Add(Add(N{1.0}, r), Scale(square, -1));
  return {Add(head, N{Value(r) * Value(square) * p}), static_cast<int64_t>(k)};
}

}  // namespace xent::internal
