// Doubles on the stack from every storage type, and back: kernels in double lanes do not know the type.
#if defined(XENT_SRC_KERNELS_STAGE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_STAGE_INL_H_
#undef XENT_SRC_KERNELS_STAGE_INL_H_
#else
#define XENT_SRC_KERNELS_STAGE_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/step-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Writes `count` numbers to `out`, which is aligned and takes `total`, a multiple of kLanes; `pad` in the others.
template <class In>
HWY_INLINE void Stage(const In *values, int64_t count, int64_t total, double pad, double *out) {
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) StoreDoubles(d, LoadAs(d, values + i), out + i);
  for (; i < count; ++i) out[i] = static_cast<double>(Widen(values[i]));
  for (; i < total; ++i) out[i] = pad;
}

// Stages values[first, first + count) of the type that `dtype` says, 0 past them.
HWY_INLINE void StageAny(Dtype dtype, const void *values, int64_t first, int64_t count, int64_t total, double *out) {
  DispatchDtype(dtype, [&](auto in) HWY_ATTR {
    Stage(static_cast<const decltype(in) *>(values) + first, count, total, 0.0, out);
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
  DispatchDtype(dtype, [&](auto type) HWY_ATTR { Unstage(values, count, static_cast<decltype(type) *>(out) + first); });
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
