// Sums of the fixed virtual lanes, in double.
#if defined(XENT_SRC_KERNELS_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_LANES_INL_H_
#undef XENT_SRC_KERNELS_LANES_INL_H_
#else
#define XENT_SRC_KERNELS_LANES_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/row.h"
#include "numbers/pairs-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// kLanes running sums of numbers of type T: doubles, and for float64 kLanes more for what their roundings lost.
template <class T>
struct LaneSums {
  HWY_ALIGN double lanes[(kKeepsLow<T> ? 2 : 1) * kLanes] = {};

  // Returns the sum of all lanes, added in a fixed order; infinities and NaN as addition of doubles gives them.
  Wide Total() const {
    if constexpr (kKeepsLow<T>) {
      Wide total;
      double sum = 0.0;
      for (int64_t i = 0; i < kLanes; ++i) sum += lanes[i];
      if (!IsFinite(sum)) return {sum, 0.0};
      for (int64_t i = 0; i < kLanes; ++i) total = Add(total, FastTwoSum(lanes[i], lanes[kLanes + i]));
      return total;
    } else {
      // Halves added to halves, 16 to 8 to 4 to 2 to 1; the last three in registers, not through memory.
      const hn::CappedTag<double, kLanes / 2> d;
      HWY_ALIGN double s[kLanes / 2];
      for (int64_t i = 0; i < kLanes / 2; i += static_cast<int64_t>(hn::Lanes(d))) {
        hn::Store(hn::Add(hn::Load(d, lanes + i), hn::Load(d, lanes + kLanes / 2 + i)), d, s + i);
      }
      return {((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7])), 0.0};
    }
  }

  // Returns the sum of one lane, infinities and NaN likewise.
  Wide Lane(int64_t lane) const {
    if constexpr (kKeepsLow<T>) {
      if (IsFinite(lanes[lane])) return FastTwoSum(lanes[lane], lanes[kLanes + lane]);
    }
    return {lanes[lane], 0.0};
  }

  void Scale(int64_t exponent) {
    for (double &lane : lanes) lane = internal::Scale(lane, exponent);
  }
};

// Adds two vectors of doubles to lanes [first, first + 2 Lanes(dd)).
template <class DD, class V = hn::Vec<DD>>
HWY_INLINE void AddHalves(DD dd, V lower, V upper, int64_t first, LaneSums<float> &sum) {
  double *const to_lower = sum.lanes + first, *const to_upper = to_lower + hn::Lanes(dd);
  lower = hn::Add(hn::Load(dd, to_lower), lower);
  upper = hn::Add(hn::Load(dd, to_upper), upper);
  hn::Store(lower, dd, to_lower);
  hn::Store(upper, dd, to_upper);
}

// Adds the trees of so many steps, which have kTrees each, `apart` floats from each other, and kLanes floats a step.
template <int kTrees>
HWY_INLINE void AddTrees(const float *trees, int64_t apart, int64_t steps, LaneSums<float> &sum) {
  const hn::CappedTag<double, kLanes> dd;
  const hn::Rebind<float, decltype(dd)> d;
  for (int64_t lane = 0; lane < kLanes; lane += static_cast<int64_t>(hn::Lanes(dd))) {
    auto total = hn::Load(dd, sum.lanes + lane);
    for (int64_t i = lane; i < steps * kLanes; i += kLanes) {
      for (int tree = 0; tree < kTrees; ++tree) {
        total = hn::Add(total, hn::PromoteTo(dd, hn::Load(d, trees + tree * apart + i)));
      }
    }
    hn::Store(total, dd, sum.lanes + lane);
  }
}

// Adds a vector of the arithmetic type to lanes [first, first + Lanes(d)).
template <class D>
HWY_INLINE void AddToLanes(D /*d*/, hn::VFromD<D> v, int64_t first, LaneSums<float> &sum) {
  const hn::RepartitionToWide<D> dd;
  AddHalves(dd, hn::PromoteLowerTo(dd, v), hn::PromoteUpperTo(dd, v), first, sum);
}
template <class D>
HWY_INLINE void AddToLanes(D d, hn::VFromD<D> v, int64_t first, LaneSums<double> &sum) {
  double *high = sum.lanes + first;
  double *low = high + kLanes;
  auto error = hn::Zero(d);
  hn::Store(ExactSum(d, hn::Load(d, high), v, &error), d, high);
  hn::Store(hn::Add(hn::Load(d, low), error), d, low);
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
