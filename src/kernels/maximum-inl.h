// The largest logit of a span, and whether one of them is NaN.
#if defined(XENT_SRC_KERNELS_MAXIMUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_MAXIMUM_INL_H_
#undef XENT_SRC_KERNELS_MAXIMUM_INL_H_
#else
#define XENT_SRC_KERNELS_MAXIMUM_INL_H_
#endif

#include <limits>

#include "hwy/highway.h"
#include "kernels/load-inl.h"
#include "kernels/row.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class In>
struct MaximumStep {
  using T = Arithmetic<In>;
  HWY_ALIGN T max[kLanes];
  HWY_ALIGN T nan[kLanes];  // not 0 where a NaN was seen

  template <class Z>
  HWY_INLINE void operator()(const Z *z, int64_t /*col*/, int64_t /*count*/) {
    const hn::CappedTag<T, kLanes> d;
    const auto zero = hn::Zero(d);
    const auto one = hn::Set(d, T{1});
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t part = 0; part < kLanes; part += lanes) {
      auto m = hn::Load(d, max + part);
      auto bad = hn::Load(d, nan + part);
      for (int64_t group = 0; group < kStep; group += kLanes) {
        const auto v = LoadAs(d, z + group + part);
        m = hn::IfThenElse(hn::Gt(v, m), v, m);
        bad = hn::Or(bad, hn::IfThenElse(hn::IsNaN(v), one, zero));
      }
      hn::Store(m, d, max + part);
      hn::Store(bad, d, nan + part);
    }
  }
};

template <class In>
HWY_NOINLINE Extreme Maximum(const In *logits, int64_t cols, int64_t target) {
  using T = Arithmetic<In>;
  const T lowest = -std::numeric_limits<T>::infinity();
  MaximumStep<In> step;
  for (int64_t i = 0; i < kLanes; ++i) {
    step.max[i] = lowest;
    step.nan[i] = 0;
  }
  ForEachStep(logits, cols, target, lowest, step);
  Extreme result{lowest, false};
  for (int64_t i = 0; i < kLanes; ++i) {
    if (step.max[i] > result.max) result.max = step.max[i];
    if (step.nan[i] != 0) result.nan = true;
  }
  return result;
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
