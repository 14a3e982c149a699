// What kernels in double lanes have in common: doubles on the stack from every storage type, and back, so that the rest
// does not know the type; how far a logit lies below its row's maximum, its exponential, and sums.
#if defined(XENT_SRC_KERNELS_DOUBLE_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_DOUBLE_LANES_INL_H_
#undef XENT_SRC_KERNELS_DOUBLE_LANES_INL_H_
#else
#define XENT_SRC_KERNELS_DOUBLE_LANES_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/lanes-inl.h"
#include "kernels/step-inl.h"
#include "numbers/double-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

using DoubleTag = hn::CappedTag<double, kLanes>;
using Doubles = hn::Vec<DoubleTag>;

inline constexpr double kMasked = -kInfinity;

// ---- from memory and back ----

// Writes `count` numbers to `out`, then `pad` up to `total`.
template <class In>
HWY_INLINE void Stage(const In *values, int64_t count, int64_t total, double pad, double *out) {
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) StoreDoubles(d, LoadAs(d, values + i), out + i);
  for (; i < count; ++i) out[i] = static_cast<double>(Widen(values[i]));
  for (; i < total; ++i) out[i] = pad;
}

// Stages values[first, first + count) of the type that `dtype` says.
HWY_INLINE void StageAny(Dtype dtype, const void *values, int64_t first, int64_t count, int64_t total, double pad,
                         double *out) {
  DispatchElements(dtype, [&](auto in) XENT_INLINE_LAMBDA {
    Stage(static_cast<const decltype(in) *>(values) + first, count, total, pad, out);
  });
}

// Loads a vector of the arithmetic type from aligned doubles, rounded once on the way to Out. Magnitudes up to the
// arithmetic type's smallest normal number become 0 before they are rounded: processors differ on which results count
// as below the normal range. NaN becomes the canonical NaN.
template <class Out, class D = Tag<Out>>
HWY_INLINE hn::Vec<D> LoadRounded(D d, const double *values) {
  using T = hn::TFromD<D>;
  const auto finish = [](auto dd, auto v) HWY_ATTR {
    if constexpr (sizeof(Out) == 2) v = hn::IfThenElse(hn::IsNaN(v), v, StickyFloat(dd, v));
    return ZeroBelowNormal<T>(dd, v);
  };
  hn::Vec<D> v;
  if constexpr (sizeof(T) == sizeof(double)) {
    v = finish(d, hn::Load(d, values));
  } else {
    const hn::RepartitionToWide<D> dd;
    v = RoundDoubles(d, finish(dd, hn::Load(dd, values)), finish(dd, hn::Load(dd, values + hn::Lanes(dd))));
  }
  return hn::IfThenElse(hn::IsNaN(v), CanonicalNan(d), v);
}

// Writes the first `count` <= kStep of `values` (aligned, readable up to the next multiple of kLanes) to `out`.
template <class Out>
HWY_INLINE void Unstage(const double *values, int64_t count, Out *out) {
  const Tag<Out> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) StoreAs(d, LoadRounded<Out>(d, values + i), out + i);
  if (i < count) {
    HWY_ALIGN Out last[kLanes];
    StoreAs(d, LoadRounded<Out>(d, values + i), last);
    std::memcpy(static_cast<void *>(out + i), last, static_cast<size_t>(count - i) * sizeof(Out));
  }
}
HWY_INLINE void UnstageAny(Dtype dtype, const double *values, int64_t first, int64_t count, void *out) {
  DispatchElements(
      dtype, [&](auto type) XENT_INLINE_LAMBDA { Unstage(values, count, static_cast<decltype(type) *>(out) + first); });
}

// ---- differences, exponentials, sums ----

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

// Returns e^-(factor (difference + lost)) 2^bias, 0 for an infinite difference, whatever `lost` is then.
template <class T>
HWY_INLINE Doubles ExpOfNegative(Doubles difference, Doubles lost, Doubles factor, Doubles bias) {
  const DoubleTag d;
  const Doubles product = hn::Mul(difference, factor);
  Doubles low = hn::Zero(d);
  if constexpr (kKeepsLow<T>) low = hn::MulAdd(lost, factor, ProductError(d, difference, factor, product));
  return ExpFor<T>(d, hn::Neg(product), hn::Neg(low), bias);
}

HWY_INLINE void AddDoubles(Doubles v, int64_t first, LaneSums<float> &sum) {
  const DoubleTag d;
  hn::Store(hn::Add(hn::Load(d, sum.lanes + first), v), d, sum.lanes + first);
}
HWY_INLINE void AddDoubles(Doubles v, int64_t first, LaneSums<double> &sum) { AddToLanes(DoubleTag(), v, first, sum); }

// Returns the sum of position i, or, where lanes run over columns (no positions), of all lanes.
template <class T>
HWY_INLINE Wide TotalOf(const LaneSums<T> &sum, int64_t positions, int64_t i) {
  return positions > 0 ? sum.Lane(i) : sum.Total();
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
