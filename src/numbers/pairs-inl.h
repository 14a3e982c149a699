// What wide.h has for one double, on vectors of doubles: the rounding errors of sums and products, and powers of two.
// A pair is a number as the unevaluated sum of two doubles. Sources: Knuth TAOCP 2 (TwoSum), Dekker 1971.
#if defined(XENT_SRC_NUMBERS_PAIRS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_NUMBERS_PAIRS_INL_H_
#undef XENT_SRC_NUMBERS_PAIRS_INL_H_
#else
#define XENT_SRC_NUMBERS_PAIRS_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Whether results of type T are computed from pairs. Double alone is exact enough for float32.
template <class T>
inline constexpr bool kKeepsLow = sizeof(T) == sizeof(double);

// Returns a + b rounded, *error being exactly what the rounding lost. Where the sum is not finite, *error is NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExactSum(D /*d*/, V a, V b, V *error) {
  const V sum = hn::Add(a, b);
  const V of_b = hn::Sub(sum, a);
  *error = hn::Add(hn::Sub(a, hn::Sub(sum, of_b)), hn::Sub(b, of_b));
  return sum;
}

// Returns a - b rounded, otherwise as ExactSum.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExactDifference(D d, V a, V b, V *error) {
  return ExactSum(d, a, hn::Neg(b), error);
}

// Returns exactly what the product a b lost by its rounding to `product`.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ProductError([[maybe_unused]] D d, V a, V b, V product) {
#if HWY_NATIVE_FMA
  return hn::MulSub(a, b, product);
#else
  // Dekker's product: factors in halves of at most 27 bits.
  const hn::RebindToUnsigned<D> du;
  const auto mask = hn::Set(du, ~((uint64_t{1} << 27) - 1));
  const V a_head = hn::BitCast(d, hn::And(hn::BitCast(du, a), mask)), a_tail = hn::Sub(a, a_head);
  const V b_head = hn::BitCast(d, hn::And(hn::BitCast(du, b), mask)), b_tail = hn::Sub(b, b_head);
  V error = hn::Sub(hn::Mul(a_head, b_head), product);
  error = hn::Add(error, hn::Mul(a_head, b_tail));
  error = hn::Add(error, hn::Mul(a_tail, b_head));
  error = hn::Add(error, hn::Mul(a_tail, b_tail));
  // Where products of the halves fall below the normal range they would leave an error larger than the true one.
  return hn::IfThenElseZero(hn::Ge(hn::Abs(product), hn::Set(d, 0x1p-900)), error);
#endif
}

// Returns 2^k for integers k in [-1022, 1023].
template <class D, class V = hn::Vec<D>>
HWY_INLINE V PowersOfTwo(D d, V k) {
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(d, hn::ShiftLeft<52>(hn::BitCast(du, hn::Add(k, hn::Set(d, 0x1p52 + 1023.0)))));
}

// Returns the floor of log2 |x| for normal x, -1023 for zero and subnormals.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExponentsOf(D d, V x) {
  const hn::RebindToUnsigned<D> du;
  const auto field = hn::And(hn::ShiftRight<52>(hn::BitCast(du, x)), hn::Set(du, uint64_t{0x7ff}));
  const auto biased = hn::BitCast(d, hn::Or(field, hn::BitCast(du, hn::Set(d, 0x1p52))));
  return hn::Sub(biased, hn::Set(d, 0x1p52 + 1023.0));
}

// Returns k of at most 2^51 in magnitude rounded to the nearest integer, to even where two are as near.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V RoundToInteger(D d, V k) {
  const V round = hn::Set(d, 0x1.8p52);
  return hn::Sub(hn::Add(k, round), round);
}

// Returns x 2^k for any integers k; past the range infinite or (nearly) 0, below it rounded once.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ScaledBy(D d, V x, V k) {
  const V limit = hn::Set(d, 2040.0);
  k = hn::Max(hn::Min(k, limit), hn::Neg(limit));
  const V half = RoundToInteger(d, hn::Mul(k, hn::Set(d, 0.5)));
  return hn::Mul(hn::Mul(x, PowersOfTwo(d, half)), PowersOfTwo(d, hn::Sub(k, half)));
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
