// The largest logit of a span, and whether one of them is NaN.
#if defined(XENT_SRC_KERNELS_MAXIMUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_MAXIMUM_INL_H_
#undef XENT_SRC_KERNELS_MAXIMUM_INL_H_
#else
#define XENT_SRC_KERNELS_MAXIMUM_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/row.h"
#include "kernels/step-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Returns the largest logit of columns other than the target, -infinity if there is none; NaN is never the largest.
template <class In>
HWY_NOINLINE Extreme Maximum(const void *logits, int64_t cols, int64_t target) {
  using T = Arithmetic<In>;
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const T lowest = static_cast<T>(-kInfinity);
  HWY_ALIGN T max[kLanes];
  HWY_ALIGN T nan[kLanes] = {};  // not 0 where a NaN was seen
  for (T &m : max) m = lowest;
  ForEachStep(static_cast<const In *>(logits), cols, target, lowest,
              [&](const auto *z, int64_t, int64_t) XENT_INLINE_LAMBDA {
                for (int64_t part = 0; part < kLanes; part += lanes) {
                  auto m = hn::Load(d, max + part);
                  auto bad = hn::Load(d, nan + part);
                  for (int64_t group = 0; group < kStep; group += kLanes) {
                    const auto v = LoadAs(d, z + group + part);
                    m = hn::IfThenElse(hn::Gt(v, m), v, m);
                    bad = hn::Or(bad, hn::IfThenElseZero(hn::IsNaN(v), hn::Set(d, T{1})));
                  }
                  hn::Store(m, d, max + part);
                  hn::Store(bad, d, nan + part);
                }
              });
  Extreme result{lowest, false};
  for (int64_t i = 0; i < kLanes; ++i) {
    if (max[i] > result.max) result.max = max[i];
    if (nan[i] != 0) result.nan = true;
  }
  return result;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
