// Double accumulators of the fixed virtual lanes, and scaling of stored exponentials by powers of two.
#if defined(XENT_SRC_KERNELS_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_LANES_INL_H_
#undef XENT_SRC_KERNELS_LANES_INL_H_
#else
#define XENT_SRC_KERNELS_LANES_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/row.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// kLanes running sums: double, and for float64 a second row for what rounding lost.
template <class T>
struct WideLanes {
  static constexpr int kRows = sizeof(T) == 8 ? 2 : 1;
  HWY_ALIGN double lanes[kRows * kLanes] = {};

  // Sum in a fixed order; infinities and NaN as plain addition gives them.
  Wide Total() const {
    if constexpr (kRows == 2) {
      Wide total;
      double plain = 0.0;
      for (int64_t i = 0; i < kLanes; ++i) plain += lanes[i];
      if (!(plain - plain == 0.0)) return {plain, 0.0};
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

  // One lane's sum, infinities and NaN likewise.
  Wide Lane(int64_t lane) const {
    const double plain = lanes[lane];
    if constexpr (kRows == 2) {
      if (plain - plain == 0.0) return FastTwoSum(plain, lanes[kLanes + lane]);
    }
    return {plain, 0.0};
  }

  void Scale(int64_t exponent) {
    for (double &lane : lanes) lane = internal::Scale(lane, exponent);
  }
};

// Adds a vector to lanes [first, first + Lanes(d)).
template <class D>
HWY_INLINE void AddToLanes(D /*d*/, hn::VFromD<D> v, int64_t first, WideLanes<float> &sum) {
  const hn::RepartitionToWide<D> dd;
  double *lower = sum.lanes + first;
  double *upper = lower + hn::Lanes(dd);
  hn::Store(hn::Add(hn::Load(dd, lower), hn::PromoteLowerTo(dd, v)), dd, lower);
  hn::Store(hn::Add(hn::Load(dd, upper), hn::PromoteUpperTo(dd, v)), dd, upper);
}
template <class D>
HWY_INLINE void AddToLanes(D d, hn::VFromD<D> v, int64_t first, WideLanes<double> &sum) {
  double *high = sum.lanes + first;
  double *low = high + kLanes;
  const auto a = hn::Load(d, high);
  const auto s = hn::Add(a, v);
  const auto bb = hn::Sub(s, a);
  const auto error = hn::Add(hn::Sub(a, hn::Sub(s, bb)), hn::Sub(v, bb));
  hn::Store(s, d, high);
  hn::Store(hn::Add(hn::Load(d, low), error), d, low);
}

// values = values 2^exponent; what falls below the normal range becomes 0, what goes past it infinite.
template <class T>
void ScaleByPower(T *values, int64_t cols, int64_t exponent) {
  const hn::CappedTag<T, kLanes> d;
  const size_t lanes = hn::Lanes(d);
  constexpr int64_t kLargest = 2 * Format<T>::kMaxExponent;
  if (exponent < -kLargest) {
    std::memset(values, 0, static_cast<size_t>(cols) * sizeof(T));
    return;
  }
  const int64_t first = exponent / 2;
  const int64_t second = HWY_MIN(exponent - first, int64_t{Format<T>::kMaxExponent});
  const auto a = hn::Set(d, static_cast<T>(PowerOfTwo(first)));
  const auto b = hn::Set(d, static_cast<T>(PowerOfTwo(second)));
  for (size_t i = 0; i < static_cast<size_t>(cols); i += lanes) {
    const size_t rest = HWY_MIN(lanes, static_cast<size_t>(cols) - i);
    hn::StoreN(hn::Mul(hn::Mul(hn::LoadN(d, values + i, rest), a), b), d, values + i, rest);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
