// Every storage type of elements.h as vectors: loads, stores, and the roundings that an output goes through. Half
// precision comes as float32, or, for what is computed in double lanes, as doubles; the roundings are those of Narrow.
#if defined(XENT_SRC_NUMBERS_ELEMENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_NUMBERS_ELEMENTS_INL_H_
#undef XENT_SRC_NUMBERS_ELEMENTS_INL_H_
#else
#define XENT_SRC_NUMBERS_ELEMENTS_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "numbers/elements.h"
#include "numbers/format.h"
#include "numbers/wide.h"

// Highway 1.2.0's float16 conversions are wrong for infinities and NaN without F16C; there each lane goes through
// Widen and Narrow.
#undef XENT_HAVE_F16
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2
#define XENT_HAVE_F16 0
#else
#define XENT_HAVE_F16 1
#endif

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Calls function(In{}) for the storage type of a dtype: DispatchDtype for a function of the target, which is compiled
// into the caller where it is an XENT_INLINE_LAMBDA.
template <class Function>
HWY_INLINE void DispatchElements(Dtype dtype, Function function) {
  switch (dtype) {
    case kF64:
      return function(double{});
    case kBf16:
      return function(Bf16{});
    case kF16:
      return function(F16{});
    default:
      return function(float{});
  }
}

// ---- the arithmetic type and memory ----

template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const hn::TFromD<D> *p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const Bf16 *p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  const auto bits = hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t *>(p)));
  return hn::BitCast(d, hn::ShiftLeft<16>(bits));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const F16 *p) {
#if XENT_HAVE_F16
  const hn::Rebind<uint16_t, D> d16;
  const auto half = hn::LoadU(d16, reinterpret_cast<const uint16_t *>(p));
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), half));
#else
  HWY_ALIGN float lanes[hn::MaxLanes(d)];
  for (size_t i = 0; i < hn::Lanes(d); ++i) lanes[i] = Widen(p[i]);
  return hn::Load(d, lanes);
#endif
}

template <class D>
HWY_INLINE void StoreAs(D d, hn::Vec<D> v, hn::TFromD<D> *p) {
  hn::StoreU(v, d, p);
}
// To nearest even; NaN becomes the canonical NaN.
template <class D>
HWY_INLINE void StoreAs(D /*d*/, hn::Vec<D> v, Bf16 *p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fffu)), odd));
  rounded = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), hn::Set(du, 0x7fc0u), rounded);
  hn::StoreU(hn::TruncateTo(d16, rounded), d16, reinterpret_cast<uint16_t *>(p));
}
template <class D>
HWY_INLINE void StoreAs([[maybe_unused]] D d, hn::Vec<D> v, F16 *p) {
#if XENT_HAVE_F16
  const hn::Rebind<uint16_t, D> d16;
  const auto half = hn::BitCast(d16, hn::DemoteTo(hn::Rebind<hwy::float16_t, D>(), v));
  hn::StoreU(half, d16, reinterpret_cast<uint16_t *>(p));
#else
  HWY_ALIGN float lanes[hn::MaxLanes(d)];
  hn::Store(v, d, lanes);
  for (size_t i = 0; i < hn::Lanes(d); ++i) p[i] = Narrow<F16>(lanes[i]);
#endif
}

// Stores as StoreAs, with kStream past the caches where the type allows it: vectors of half precision are half as long
// as what streams well.
template <bool kStream, class D, class Out>
HWY_INLINE void StoreOrStream(D d, hn::Vec<D> v, Out *out) {
  if constexpr (kStream && sizeof(Out) == sizeof(hn::TFromD<D>)) {
    hn::Stream(v, d, out);
  } else {
    StoreAs(d, v, out);
  }
}

// Streaming stores need whole vectors of memory.
HWY_INLINE bool CanStream(const void *memory) { return reinterpret_cast<uintptr_t>(memory) % 64 == 0; }

// ---- what an output is stored as ----

template <class D>
HWY_INLINE hn::Vec<D> CanonicalNan(D d) {
  return hn::BitCast(d, hn::Set(hn::RebindToUnsigned<D>(), Format<hn::TFromD<D>>::kNan));
}

// Returns v, or 0 where its magnitude is at most T's smallest normal number.
template <class T, class D, class V = hn::Vec<D>>
HWY_INLINE V ZeroBelowNormal(D d, V v) {
  const V smallest = hn::Set(d, static_cast<hn::TFromD<D>>(PowerOfTwo(Format<T>::kMinExponent)));
  return hn::IfThenZeroElse(hn::Le(hn::Abs(v), smallest), v);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V FinishWithNan(D d, V v) {
  return hn::IfThenElse(hn::IsNaN(v), CanonicalNan(d), ZeroBelowNormal<hn::TFromD<D>>(d, v));
}

// ---- masks ----

// Bit i: lane i.
template <class D, class M = hn::Mask<D>>
HWY_INLINE uint32_t BitsOf(D d, M mask) {
  uint8_t bytes[8] = {};
  hn::StoreMaskBits(d, mask, bytes);
  uint32_t bits = 0;
  std::memcpy(&bits, bytes, sizeof(bits));
  return bits & ((uint32_t{1} << hn::Lanes(d)) - 1);
}

// ---- doubles ----

// Returns the float32 vector whose lower half is `lower` and whose upper half is `upper`, rounded.
template <class D, class DD = hn::RepartitionToWide<D>>
HWY_INLINE hn::Vec<D> RoundDoubles(D d, hn::Vec<DD> lower, hn::Vec<DD> upper) {
  const hn::Half<D> dh;
  return hn::Combine(d, hn::DemoteTo(dh, upper), hn::DemoteTo(dh, lower));
}

// Loads a vector of the arithmetic type from aligned doubles.
template <class D>
HWY_INLINE hn::Vec<D> LoadDoubles(D d, const double *p) {
  if constexpr (sizeof(hn::TFromD<D>) == sizeof(double)) {
    return hn::Load(d, p);
  } else {
    const hn::RepartitionToWide<D> dd;
    return RoundDoubles(d, hn::Load(dd, p), hn::Load(dd, p + hn::Lanes(dd)));
  }
}

// Stores a vector of the arithmetic type as doubles.
template <class D>
HWY_INLINE void StoreDoubles(D d, hn::Vec<D> v, double *p) {
  if constexpr (sizeof(hn::TFromD<D>) == sizeof(double)) {
    hn::StoreU(v, d, p);
  } else {
    const hn::RepartitionToWide<D> dd;
    hn::StoreU(hn::PromoteLowerTo(dd, v), dd, p);
    hn::StoreU(hn::PromoteUpperTo(dd, v), dd, p + hn::Lanes(dd));
  }
}

// Returns the float32 number that rounds to bfloat16 and to float16 as the double v does, which keeps the two roundings
// from becoming one too many: the digits past float32's become one sticky digit. For v in float32's normal range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V StickyFloat(D d, V v) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto past = hn::Set(du, (uint64_t{1} << 29) - 1);
  // Adding 2^29 - 1 to the digits past carries into the last digit kept unless they are all 0.
  const auto sticky = hn::And(hn::Add(hn::And(bits, past), past), hn::Set(du, uint64_t{1} << 29));
  return hn::BitCast(d, hn::Or(hn::AndNot(past, bits), sticky));
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
