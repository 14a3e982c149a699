// What double lanes have in common: how far a logit lies below its row's maximum, its exponential, and sums.
#if defined(XENT_SRC_KERNELS_BELOW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_BELOW_INL_H_
#undef XENT_SRC_KERNELS_BELOW_INL_H_
#else
#define XENT_SRC_KERNELS_BELOW_INL_H_
#endif

#include <limits>

#include "hwy/highway.h"
#include "kernels/lanes-inl.h"
#include "numbers/double-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DoubleTag = hn::CappedTag<double, kLanes>;
using Doubles = hn::Vec<DoubleTag>;

inline constexpr double kMasked = -std::numeric_limits<double>::infinity();

// Whether labels, factors and differences carry their rounding errors along.
template <class T>
inline constexpr bool kKeepsLow = sizeof(T) == sizeof(double);

// a - b, and exactly what its rounding lost; float32 needs none of that.
template <class T>
HWY_INLINE Doubles Difference(Doubles a, Doubles b, Doubles *lost) {
  const Doubles difference = hn::Sub(a, b);
  *lost = hn::Zero(DoubleTag());
  if constexpr (kKeepsLow<T>) {
    const Doubles bb = hn::Sub(difference, a);
    *lost = hn::Sub(hn::Sub(a, hn::Sub(difference, bb)), hn::Add(b, bb));
  }
  return difference;
}

// e^-(factor (difference + lost)); 0 for an infinite difference, whatever `lost` is then.
template <class T>
HWY_INLINE Doubles ExpOfNegative(Doubles difference, Doubles lost, Doubles factor) {
  const DoubleTag d;
  const Doubles product = hn::Mul(difference, factor);
  if constexpr (kKeepsLow<T>) {
    const Doubles low = hn::MulAdd(lost, factor, ProductError(d, difference, factor, product));
    return ExpForDouble(d, hn::Neg(product), hn::Neg(low));
  } else {
    return ExpForFloat(d, hn::Neg(product));
  }
}

HWY_INLINE void AddDoubles(Doubles v, int64_t first, WideLanes<float> &sum) {
  const DoubleTag d;
  hn::Store(hn::Add(hn::Load(d, sum.lanes + first), v), d, sum.lanes + first);
}
HWY_INLINE void AddDoubles(Doubles v, int64_t first, WideLanes<double> &sum) { AddToLanes(DoubleTag(), v, first, sum); }

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
