// exp, expm1, and tanh with a cap, of double vectors, for the rows that are computed in double lanes.
#if defined(XENT_SRC_NUMBERS_DOUBLE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_NUMBERS_DOUBLE_INL_H_
#undef XENT_SRC_NUMBERS_DOUBLE_INL_H_
#else
#define XENT_SRC_NUMBERS_DOUBLE_INL_H_
#endif

#include <limits>

#include "hwy/highway.h"
#include "numbers/exp-inl.h"
#include "numbers/pairs-inl.h"
#include "numbers/wide.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// The logarithm of 2^-1022, 2^-28 above it: results of larger numbers are normal, so that no processor's rule for
// subnormal ones matters.
inline constexpr double kLowestExponent = -708.39641853;

// Returns e^(x + x_lo) 2^bias for an integer bias and results below 2^1023, for float64 within 0.8 ULP, for float32
// exact enough, without x_lo; 0 where the result is below the normal range, and for NaN.
template <class T, class D, class V = hn::Vec<D>>
HWY_INLINE V ExpFor(D d, V x, V x_lo, V bias) {
  const V lowest = hn::NegMulAdd(bias, hn::Set(d, kLn2_F64_Hi), hn::Set(d, kLowestExponent)), z = hn::Max(x, lowest);
  const V origin = hn::Add(bias, hn::Set(d, ExpFormat<double>::kRound + 1023.0));
  V m = hn::Zero(d), p;
  if constexpr (kKeepsLow<T>) {
    p = ReducedExp(d, origin, z, x_lo, &m);
  } else {
    p = ReducedExpForFloat(d, origin, z, &m);
  }
  return hn::IfThenElseZero(hn::Ge(x, lowest), ScaleByExponent(d, p, m));
}
template <class T, class D, class V = hn::Vec<D>>
HWY_INLINE V ExpFor(D d, V x, V x_lo) {
  return ExpFor<T>(d, x, x_lo, hn::Zero(d));
}

// e^(x + x_lo) - 1 for |x| <= 709, and the exponential itself: with x = k ln 2 + r the first is 2^k (e^r - 1) + (2^k -
// 1), which cancels nowhere since |r| <= ln(2)/2, the second 2^k (1 + (e^r - 1)). e^r - 1 by the terms of its series:
// up to r^14, which leave 2^-58 of it, about 1 ULP in all; for float32 results up to r^9, 2^-35.
template <class T, class D, class V = hn::Vec<D>>
HWY_INLINE V Expm1(D d, V x, V x_lo, V *exponential = nullptr) {
  constexpr int kTerms = kKeepsLow<T> ? 14 : 9;
  const V origin = hn::Set(d, ExpFormat<double>::kRound + 1023.0);
  const V m = hn::MulAdd(x, hn::Set(d, kLog2E_F64_Hi), origin);
  const V k = hn::Sub(m, origin);
  V r = hn::NegMulAdd(k, hn::Set(d, kLn2HiShort), x);  // exact
  r = hn::Add(r, hn::NegMulAdd(k, hn::Set(d, kLn2LoShort), x_lo));
  V q = hn::Set(d, kInverseFactorial[kTerms]);
  HWY_UNROLL(16)
  for (int i = kTerms - 1; i >= 2; --i) q = hn::MulAdd(q, r, hn::Set(d, kInverseFactorial[i]));
  const V p = hn::MulAdd(hn::Mul(r, r), q, r);
  const V one = hn::Set(d, 1.0);
  const V power = ScaleByExponent(d, one, m);
  if (exponential != nullptr) *exponential = hn::MulAdd(power, p, power);
  return hn::MulAdd(power, p, hn::Sub(power, one));
}

// z' = cap tanh(scale z / cap) and its derivative by z, scale sech^2(scale z / cap), for results of type T. z' is
// within 2 ULP, the derivative within 4 + 4 |scale z / cap|. With e = e^(-2|x|), x = scale z / cap: tanh|x| = (1 - e) /
// (1 + e), sech^2 x = 4 e / (1 + e)^2. For float64 x is formed with its rounding error, and what the denominator and
// the quotient lose is added before the one rounding by cap.
template <class T>
class SoftCap {
 public:
  // The derivative is `slope` over scale of what it should be. Where the quotient leaves the range its low part is of
  // no use.
  SoftCap(double scale, double cap, double slope)
      : scale_(scale), cap_(cap), slope_(slope), ratio_(scale / cap), ratio_lo_(0.0) {
    const bool tame = cap < 0x1p900 && cap > 0x1p-900 && ratio_ < 0x1p900 && ratio_ > 0x1p-900;
    if (tame) ratio_lo_ = Divide(Wide{scale}, Wide{cap}).lo;
    if (tame) ratio_ = Divide(Wide{scale}, Wide{cap}).hi;
    if (ratio_ > 0x1p1000) ratio_ = 0x1p1000;
  }

  // -inf stays -inf; +inf gives cap, NaN anything. The derivative only where it is asked for.
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V Value(D d, V z, V *derivative = nullptr) const {
    // -2|x|, at least -709, where tanh is 1 and e counts as 0.
    const V lowest = hn::Set(d, -709.0);
    const V magnitude = hn::Abs(z);
    const V ratio = hn::Set(d, -2.0 * ratio_);
    const V product = hn::Mul(magnitude, ratio);
    const auto inside = hn::Gt(product, lowest);
    const V x = hn::IfThenElse(inside, product, lowest);
    V x_lo = hn::Zero(d);
    if constexpr (kKeepsLow<T>) {
      const V lost = hn::MulAdd(magnitude, hn::Set(d, -2.0 * ratio_lo_), ProductError(d, magnitude, ratio, product));
      x_lo = hn::IfThenElseZero(inside, lost);
    }
    V e = hn::Zero(d);
    const V t = Expm1<T>(d, x, x_lo, &e);  // e - 1, in [-1, 0]
    const V two = hn::Set(d, 2.0);
    const V w = hn::Add(t, two);
    const V cap = hn::Set(d, cap_);
    const V slope = hn::Set(d, slope_);
    V result;
    if constexpr (kKeepsLow<T>) {
      const V w_lo = hn::Sub(t, hn::Sub(w, two));
      const V q = hn::Neg(hn::Div(t, w));
      // -t = q w + rest, so that tanh = q + (rest - q w_lo) / w.
      const V qw = hn::Mul(q, w);
      const V rest = hn::Sub(hn::Neg(hn::Add(t, qw)), ProductError(d, q, w, qw));
      const V more = hn::Div(hn::NegMulAdd(q, w_lo, rest), w);
      const V capped = hn::Mul(cap, q);
      result = hn::Add(capped, hn::MulAdd(cap, more, ProductError(d, cap, q, capped)));
      if (derivative != nullptr) {
        *derivative = hn::Mul(hn::Div(hn::Div(hn::Mul(hn::Set(d, 4.0), e), w), w), slope);
      }
    } else {
      const V inverse = hn::Div(hn::Set(d, 1.0), w);
      result = hn::Mul(hn::Mul(cap, hn::Neg(t)), inverse);
      if (derivative != nullptr) {
        *derivative = hn::Mul(hn::Mul(hn::Mul(hn::Set(d, 4.0), e), hn::Mul(inverse, inverse)), slope);
      }
    }
    // tanh x is x to 2^-55 of itself; a cap of 1e300 would leave x below the normal range.
    const auto linear = hn::Gt(product, hn::Set(d, -0x1p-26));
    result = hn::IfThenElse(linear, hn::Mul(magnitude, hn::Set(d, scale_)), result);
    if (derivative != nullptr) *derivative = hn::IfThenElse(linear, slope, *derivative);
    return hn::IfThenElse(hn::Eq(z, hn::Set(d, -std::numeric_limits<double>::infinity())), z, hn::CopySign(result, z));
  }

 private:
  double scale_, cap_, slope_, ratio_, ratio_lo_;
};

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
