// log and log1p of double vectors, below 1 ULP (0.78 on the arguments of tests/numbers).
//
// With s = r/(2+r): log(1+r) = r - (r^2/2 - s (r^2/2 + R)), R = s^2 P(s^2), so that the exact r carries the leading
// digits (the arrangement of W. Kahan's and K. C. Ng's log in FDLIBM 5.3, 1995; P by scripts/coefficients.py). The
// arrays have their own where there is fused multiply-add, functions-inl.h.
#if defined(XENT_SRC_NUMBERS_LOG_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_NUMBERS_LOG_INL_H_
#undef XENT_SRC_NUMBERS_LOG_INL_H_
#else
#define XENT_SRC_NUMBERS_LOG_INL_H_
#endif

#include <iterator>

#include "hwy/highway.h"
#include "numbers/coefficients.h"
#include "numbers/wide.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// u = 2^k (1 + r) with 1 + r in [sqrt(1/2), sqrt(2)], for normal u > 0; r is exact.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V SplitExponent(D d, V u, V *k) {
  const hn::RebindToSigned<D> di;
  constexpr int64_t kSqrtHalf = 0x3fe6a09e667f3bcd;  // bits of sqrt(1/2)
  const auto bits = hn::BitCast(di, u);
  const auto above = hn::Sub(bits, hn::Set(di, kSqrtHalf));
  const auto exponent = hn::And(above, hn::Set(di, static_cast<int64_t>(0xfff0000000000000u)));
  // The exponent's integer, as a double, from the low bits of 1.5 * 2^52 + k.
  const V round = hn::Set(d, 0x1.8p52);
  *k = hn::Sub(hn::BitCast(d, hn::Add(hn::BitCast(di, round), hn::ShiftRight<52>(above))), round);
  return hn::Sub(hn::BitCast(d, hn::Sub(bits, exponent)), hn::Set(d, 1.0));
}

// k ln 2 + log(1 + r) + correction.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogOfParts(D d, V k, V r, V correction) {
  const V half_square = hn::Mul(hn::Mul(r, hn::Set(d, 0.5)), r);
  const V s = hn::Div(r, hn::Add(r, hn::Set(d, 2.0)));
  const V w = hn::Mul(s, s);
  constexpr int kTerms = std::size(kLogF64);
  V p = hn::Set(d, kLogF64[kTerms - 1]);
  HWY_UNROLL(8)
  for (int i = kTerms - 2; i >= 0; --i) p = hn::MulAdd(p, w, hn::Set(d, kLogF64[i]));
  const V low = hn::MulAdd(k, hn::Set(d, kLn2LoShort), correction);
  const V rest = hn::MulAdd(s, hn::MulAdd(p, w, half_square), low);
  return hn::MulAdd(k, hn::Set(d, kLn2HiShort), hn::Sub(r, hn::Sub(half_square, rest)));
}

// Returns a / b for a float32 result, off by 2^-46 and four times as fast as a division of doubles (Xeon with AMX): b
// and its inverse are in float32's normal range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V QuotientForFloat(D d, V a, V b) {
  const hn::Rebind<float, D> df;
  const V inverse = hn::PromoteTo(d, hn::Div(hn::Set(df, 1.0f), hn::DemoteTo(df, b)));
  const V q = hn::Mul(a, inverse);
  return hn::MulAdd(hn::NegMulAdd(q, b, a), inverse, q);
}

// Returns log(1 + x) of 0 <= x < 2^100 for a float32 result: off by 2^-34. What 1 + x loses where it is not near 1 is
// nothing beside that, and so are the last terms of the polynomial.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Log1pForFloat(D d, V x) {
  V k = hn::Zero(d);
  const V split = SplitExponent(d, hn::Add(x, hn::Set(d, 1.0)), &k);
  const V r = hn::IfThenElse(hn::Eq(k, hn::Zero(d)), x, split);
  const V s = QuotientForFloat(d, r, hn::Add(r, hn::Set(d, 2.0)));
  const V w = hn::Mul(s, s);
  V p = hn::Set(d, kLogF64[4]);
  HWY_UNROLL(4)
  for (int i = 3; i >= 0; --i) p = hn::MulAdd(p, w, hn::Set(d, kLogF64[i]));
  const V log = hn::MulAdd(hn::Mul(s, w), p, hn::Add(s, s));
  return hn::MulAdd(k, hn::Set(d, kLn2_F64_Hi), log);
}

// Results for arguments that no formula covers: v where x > 0 is finite, else log(x)'s special value.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V SpecialLog(D d, V x, V v) {
  using T = hn::TFromD<D>;
  const V infinity = hn::Set(d, static_cast<T>(kInfinity));
  v = hn::IfThenElse(hn::Eq(x, infinity), infinity, v);
  v = hn::IfThenElse(hn::Eq(x, hn::Zero(d)), hn::Neg(infinity), v);
  return hn::IfThenElse(hn::Ge(x, hn::Zero(d)), v, hn::Set(d, static_cast<T>(kNan)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogDouble(D d, V x) {
  // Subnormals: 2^54 x is exact and normal.
  const auto tiny = hn::Lt(x, hn::Set(d, 0x1p-1022));
  V k = hn::Zero(d);
  const V r = SplitExponent(d, hn::IfThenElse(tiny, hn::Mul(x, hn::Set(d, 0x1p54)), x), &k);
  k = hn::Sub(k, hn::IfThenElseZero(tiny, hn::Set(d, 54.0)));
  return SpecialLog(d, x, LogOfParts(d, k, r, hn::Zero(d)));
}

// Returns log(1 + x) from u = 1 + x as rounded, which is normal and positive, and what u lost of it, relative to u.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Log1pOfSum(D d, V x, V u, V lost) {
  V k = hn::Zero(d);
  const V r = SplitExponent(d, u, &k);
  // With k = 0 x itself is r.
  const auto near_one = hn::Eq(k, hn::Zero(d));
  const V v = LogOfParts(d, k, hn::IfThenElse(near_one, x, r), hn::IfThenZeroElse(near_one, lost));
  // Below 2^-54 the result is x, its sign and, for subnormals, its digits kept.
  return hn::IfThenElse(hn::Lt(hn::Abs(x), hn::Set(d, 0x1p-54)), x, v);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Log1pDouble(D d, V x) {
  const V one = hn::Set(d, 1.0);
  const V u = hn::Add(one, x);
  const V lost = hn::IfThenElse(hn::Gt(x, one), hn::Sub(one, hn::Sub(u, x)), hn::Sub(x, hn::Sub(u, one)));
  return SpecialLog(d, u, Log1pOfSum(d, x, u, hn::Div(lost, u)));
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
