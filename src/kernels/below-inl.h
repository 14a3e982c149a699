// What kernels in double lanes have in common: how far a logit lies below its row's maximum, its exponential, and sums.
#if defined(XENT_SRC_KERNELS_BELOW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_BELOW_INL_H_
#undef XENT_SRC_KERNELS_BELOW_INL_H_
#else
#define XENT_SRC_KERNELS_BELOW_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/lanes-inl.h"
#include "numbers/double-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DoubleTag = hn::CappedTag<double, kLanes>;
using Doubles = hn::Vec<DoubleTag>;

inline constexpr double kMasked = -kInfinity;

// Returns a - b, *lost being exactly what the rounding lost; float32 does not need it, there *lost is 0.
template <class T>
HWY_INLINE Doubles DifferenceFor(Doubles a, Doubles b, Doubles *lost) {
  const DoubleTag d;
  if constexpr (kKeepsLow<T>) {
    return ExactDifference(d, a, b, lost);
  } else {
    *lost = hn::Zero(d);
    return hn::Sub(a, b);
  }
}

// Returns e^-(factor (difference + lost)), 0 for an infinite difference, whatever `lost` is then.
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

HWY_INLINE void AddDoubles(Doubles v, int64_t first, LaneSums<float> &sum) {
  const DoubleTag d;
  hn::Store(hn::Add(hn::Load(d, sum.lanes + first), v), d, sum.lanes + first);
}
HWY_INLINE void AddDoubles(Doubles v, int64_t first, LaneSums<double> &sum) { AddToLanes(DoubleTag(), v, first, sum); }

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
