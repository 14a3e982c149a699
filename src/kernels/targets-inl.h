// Index targets, int64 or int32: what of them is wanted before a row is computed.
#if defined(XENT_SRC_KERNELS_TARGETS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_TARGETS_INL_H_
#undef XENT_SRC_KERNELS_TARGETS_INL_H_
#else
#define XENT_SRC_KERNELS_TARGETS_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/row.h"
#include "numbers/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D>
HWY_INLINE hn::Vec<D> LoadTargets(D d, const int64_t *p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> LoadTargets(D d, const int32_t *p) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<int32_t, D>(), p));
}

template <class Index>
TargetScan ScanTargets(const void *targets, int64_t count, int64_t ignore_index, int64_t cols) {
  const hn::ScalableTag<int64_t> d;
  const Index *const from = static_cast<const Index *>(targets);
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), whole = count - count % lanes;
  // A target is out of range where itself or cols - 1 - target is negative.
  const auto last = hn::Set(d, cols - 1), ignored_value = hn::Set(d, ignore_index);
  auto ignored = hn::Zero(d), signs = hn::Zero(d);
  for (int64_t i = 0; i < whole; i += lanes) {
    const auto target = LoadTargets(d, from + i);
    const auto is_ignored = hn::Eq(target, ignored_value);
    ignored = hn::Add(ignored, hn::VecFromMask(d, is_ignored));  // -1 each
    signs = hn::Or(signs, hn::IfThenZeroElse(is_ignored, hn::Or(target, hn::Sub(last, target))));
  }
  TargetScan scan{-hn::ReduceSum(d, ignored), hn::AllFalse(d, hn::Lt(signs, hn::Zero(d)))};
  for (int64_t i = whole; i < count; ++i) {
    const int64_t target = from[i];
    scan.ignored += static_cast<int64_t>(target == ignore_index);
    scan.good = scan.good && (target == ignore_index || (target >= 0 && target < cols));
  }
  return scan;
}

// As many targets as a vector of float32 has lanes, as those rows take them: what is stored in parts would have to
// reach the cache before it could be loaded whole.
template <class Index>
uint32_t ReadTargets(const void *targets, int64_t count, int64_t ignore_index, int32_t *out) {
  const hn::CappedTag<int32_t, kTile> di;
  const hn::RepartitionToWide<decltype(di)> d;
  const hn::Half<decltype(di)> dh;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Index *from = static_cast<const Index *>(targets);
  Index copy[kTile];
  for (int64_t i = 0; count < kTile && i < kTile; ++i) copy[i] = i < count ? from[i] : Index{0};
  if (count < kTile) from = copy;
  uint32_t live = 0;
  const auto read = [&](int64_t i) HWY_ATTR {
    const auto target = LoadTargets(d, from + i);
    const auto is_ignored = hn::Eq(target, hn::Set(d, ignore_index));
    live |= BitsOf(d, hn::Not(is_ignored)) << i;
    return hn::DemoteTo(dh, hn::IfThenZeroElse(is_ignored, target));
  };
  for (int64_t i = 0; i < kTile; i += 2 * lanes) {
    const auto lower = read(i), upper = read(i + lanes);
    hn::StoreU(hn::Combine(di, upper, lower), di, out + i);
  }
  return live & ((uint32_t{1} << count) - 1);
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
