// Doubles on the stack from every storage type, and back: what is computed in double lanes does not know the type.
#if defined(XENT_SRC_KERNELS_STAGE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_STAGE_INL_H_
#undef XENT_SRC_KERNELS_STAGE_INL_H_
#else
#define XENT_SRC_KERNELS_STAGE_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/load-inl.h"
#include "kernels/row.h"
#include "numbers/elements.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A vector of the arithmetic type as doubles.
template <class D>
HWY_INLINE void StoreDoubles(D /*d*/, hn::Vec<D> v, double *out) {
  if constexpr (sizeof(hn::TFromD<D>) == 8) {
    hn::Store(v, D(), out);
  } else {
    const hn::RepartitionToWide<D> dd;
    hn::Store(hn::PromoteLowerTo(dd, v), dd, out);
    hn::Store(hn::PromoteUpperTo(dd, v), dd, out + hn::Lanes(dd));
  }
}

// `count` numbers to `out`, which is aligned and takes `total`, a multiple of kLanes; `pad` in the others.
template <class In>
HWY_INLINE void Stage(const In *values, int64_t count, int64_t total, double pad, double *out) {
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) StoreDoubles(d, LoadAs(d, values + i), out + i);
  for (; i < count; ++i) out[i] = static_cast<double>(Widen(values[i]));
  for (; i < total; ++i) out[i] = pad;
}

// values[first, first + count) of the type that `dtype` says; 0 past them.
HWY_INLINE void StageAny(Dtype dtype, const void *values, int64_t first, int64_t count, int64_t total, double *out) {
  switch (dtype) {
    case kF64:
      return Stage(static_cast<const double *>(values) + first, count, total, 0.0, out);
    case kBf16:
      return Stage(static_cast<const Bf16 *>(values) + first, count, total, 0.0, out);
    case kF16:
      return Stage(static_cast<const F16 *>(values) + first, count, total, 0.0, out);
    default:
      return Stage(static_cast<const float *>(values) + first, count, total, 0.0, out);
  }
}

// What rounds to every type of at most 22 significant bits as v does, and is a float32 number: the digits past
// float32's become one sticky digit, so that a half-precision result is rounded once. In float32's normal range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V StickyFloat(D d, V v) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto past = hn::Set(du, (uint64_t{1} << 29) - 1);
  // Adding 2^29 - 1 to the digits past carries into the last digit kept unless they are all 0.
  const auto sticky = hn::And(hn::Add(hn::And(bits, past), past), hn::Set(du, uint64_t{1} << 29));
  return hn::BitCast(d, hn::Or(hn::AndNot(past, bits), sticky));
}

// A vector of the arithmetic type from doubles: rounded once, zero up to its smallest normal number (decided before the
// rounding: processors differ on which results count as below the normal range), the canonical NaN.
template <bool kHalf, class D>
HWY_INLINE hn::Vec<D> LoadRounded(D d, const double *values) {
  using T = hn::TFromD<D>;
  const hn::RebindToUnsigned<D> du;
  const auto finish = [](auto dd, auto v) {
    if constexpr (kHalf) v = hn::IfThenElse(hn::IsNaN(v), v, StickyFloat(dd, v));
    return hn::IfThenZeroElse(hn::Le(hn::Abs(v), hn::Set(dd, PowerOfTwo(Format<T>::kMinExponent))), v);
  };
  const auto canonical = [&](hn::Vec<D> v) {
    return hn::IfThenElse(hn::IsNaN(v), hn::BitCast(d, hn::Set(du, Format<T>::kNan)), v);
  };
  if constexpr (sizeof(T) == 8) {
    return canonical(finish(d, hn::Load(d, values)));
  } else {
    const hn::RepartitionToWide<D> dd;
    const hn::Half<D> dh;
    const auto lower = hn::DemoteTo(dh, finish(dd, hn::Load(dd, values)));
    const auto upper = hn::DemoteTo(dh, finish(dd, hn::Load(dd, values + hn::Lanes(dd))));
    return canonical(hn::Combine(d, upper, lower));
  }
}

// The first `count` <= kStep of `values` (aligned, readable up to the next multiple of kLanes) to `out`.
template <class Out>
HWY_INLINE void Unstage(const double *values, int64_t count, Out *out) {
  constexpr bool kHalf = sizeof(Out) == 2;
  const Tag<Out> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) StoreAs(d, LoadRounded<kHalf>(d, values + i), out + i);
  if (i < count) {
    HWY_ALIGN Out last[kLanes];
    StoreAs(d, LoadRounded<kHalf>(d, values + i), last);
    std::memcpy(static_cast<void *>(out + i), last, static_cast<size_t>(count - i) * sizeof(Out));
  }
}
HWY_INLINE void UnstageAny(Dtype dtype, const double *values, int64_t first, int64_t count, void *out) {
  switch (dtype) {
    case kF64:
      return Unstage(values, count, static_cast<double *>(out) + first);
    case kBf16:
      return Unstage(values, count, static_cast<Bf16 *>(out) + first);
    case kF16:
      return Unstage(values, count, static_cast<F16 *>(out) + first);
    default:
      return Unstage(values, count, static_cast<float *>(out) + first);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
