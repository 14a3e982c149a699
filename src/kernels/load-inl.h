// Loads and stores of every storage type as vectors of its arithmetic type, and the walk over a span in steps.
#if defined(XENT_SRC_KERNELS_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_LOAD_INL_H_
#undef XENT_SRC_KERNELS_LOAD_INL_H_
#else
#define XENT_SRC_KERNELS_LOAD_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/row.h"
#include "numbers/elements.h"

// Highway 1.2.0's float16 conversions are wrong for infinities and NaN without F16C; there the bits are moved here.
#undef XENT_HAVE_F16
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2
#define XENT_HAVE_F16 0
#else
#define XENT_HAVE_F16 1
#endif

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class In>
using Tag = hn::CappedTag<Arithmetic<In>, kLanes>;

template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const float *p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> LoadAs(D d, const double *p) {
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
  const hn::Rebind<uint16_t, D> d16;
  const auto half = hn::LoadU(d16, reinterpret_cast<const uint16_t *>(p));
#if XENT_HAVE_F16
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), half));
#else
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto bits = hn::PromoteTo(du, half);
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffu));
  const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(du, 0x8000u)));
  const auto shifted = hn::ShiftLeft<13>(magnitude);
  const auto normal = hn::Add(shifted, hn::Set(du, 112u << 23));
  const auto special = hn::Add(shifted, hn::Set(du, 224u << 23));
  const auto signed_magnitude = hn::BitCast(di, magnitude);
  const auto subnormal = hn::BitCast(du, hn::Mul(hn::ConvertTo(d, signed_magnitude), hn::Set(d, 0x1p-24f)));
  auto result = hn::IfThenElse(hn::RebindMask(du, hn::Gt(signed_magnitude, hn::Set(di, 0x7bff))), special, normal);
  result = hn::IfThenElse(hn::RebindMask(du, hn::Lt(signed_magnitude, hn::Set(di, 0x0400))), subnormal, result);
  return hn::BitCast(d, hn::Or(result, sign));
#endif
}

// What an output is stored as: zero where its magnitude is at most the smallest normal number, the canonical NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V FinishWithNan(D d, V v) {
  using T = hn::TFromD<D>;
  const hn::RebindToUnsigned<D> du;
  const V smallest = hn::Set(d, static_cast<T>(PowerOfTwo(Format<T>::kMinExponent)));
  const V nan = hn::BitCast(d, hn::Set(du, Format<T>::kNan));
  return hn::IfThenElse(hn::IsNaN(v), nan, hn::IfThenZeroElse(hn::Le(hn::Abs(v), smallest), v));
}

template <class D>
HWY_INLINE void StoreAs(D d, hn::Vec<D> v, float *p) {
  hn::StoreU(v, d, p);
}
template <class D>
HWY_INLINE void StoreAs(D d, hn::Vec<D> v, double *p) {
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
  const hn::Rebind<uint16_t, D> d16;
#if XENT_HAVE_F16
  const auto half = hn::BitCast(d16, hn::DemoteTo(hn::Rebind<hwy::float16_t, D>(), v));
  hn::StoreU(half, d16, reinterpret_cast<uint16_t *>(p));
#else
  // As Narrow<F16>.
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto bits = hn::BitCast(du, v);
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffffffu));
  const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 0x8000u));
  const auto subnormal =
      hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(d, magnitude), hn::Set(d, 0.5f))), hn::Set(du, 0x3f000000u));
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1u));
  auto half = hn::ShiftRight<13>(hn::Add(hn::Sub(magnitude, hn::Set(du, (112u << 23) - 0xfffu)), odd));
  const auto m = hn::BitCast(di, magnitude);
  half = hn::IfThenElse(hn::RebindMask(du, hn::Gt(hn::BitCast(di, half), hn::Set(di, 0x7c00))), hn::Set(du, 0x7c00u),
                        half);
  half = hn::IfThenElse(hn::RebindMask(du, hn::Lt(m, hn::Set(di, 0x38800000))), subnormal, half);
  half = hn::Or(half, sign);
  half = hn::IfThenElse(hn::RebindMask(du, hn::Gt(m, hn::Set(di, 0x7f800000))), hn::Set(du, 0x7e00u), half);
  hn::StoreU(hn::TruncateTo(d16, half), d16, reinterpret_cast<uint16_t *>(p));
#endif
}

// Bytes ahead at which memory is asked for: into the second-level cache and from there into the first, or for writing.
// docs/tuning.md has what that is worth.
inline constexpr int64_t kFarBytes = 16 * 1024;
inline constexpr int64_t kNearBytes = 1024;

// Integer addresses: they may lie outside of any object, which a prefetch does not mind.
template <int64_t kBytes>
HWY_INLINE void PrefetchForRead(const void *p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  for (int64_t byte = 0; byte < kBytes; byte += 64) {
    __builtin_prefetch(reinterpret_cast<const void *>(address + kFarBytes + byte), 0, 2);
    __builtin_prefetch(reinterpret_cast<const void *>(address + kNearBytes + byte), 0, 3);
  }
}
template <int64_t kBytes>
HWY_INLINE void PrefetchForWrite(const void *p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p) + kNearBytes;
  for (int64_t byte = 0; byte < kBytes; byte += 64) {
#if HWY_ARCH_X86
    // The compiler would take the instruction only with a flag that no target here has; processors without it ignore
    // it.
    asm volatile("prefetchw (%0)" : : "r"(address + byte));
#else
    __builtin_prefetch(reinterpret_cast<const void *>(address + byte), 1, 3);
#endif
  }
}

// Copies the first `count` <= kStep logits to `step`, with `pad` past the end and at the target.
template <class In, class T = Arithmetic<In>>
HWY_INLINE void CopyStep(const In *logits, int64_t count, int64_t target, T pad, T *step) {
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto vpad = hn::Set(d, pad);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::Store(LoadAs(d, logits + i), d, step + i);
  for (; i < kStep; i += lanes) {
    hn::Store(vpad, d, step + i);
    for (int64_t k = i; k < count; ++k) step[k] = Widen(logits[k]);
  }
  if (target >= 0 && target < kStep) step[target] = pad;
}

// Calls step(pointer, column, count) for each step of [0, cols): on the data itself where a step is whole and without
// the target, else on a copy with `pad` in the other lanes. No scalar twin, and but one place that the body is inlined
// at (two where the copy is of another type).
template <class In, class Step>
HWY_INLINE void ForEachStep(const In *logits, int64_t cols, int64_t target, Arithmetic<In> pad, Step &step) {
  HWY_ALIGN Arithmetic<In> copy[kStep];
  for (int64_t col = 0; col < cols; col += kStep) {
    const int64_t count = HWY_MIN(cols - col, kStep);
    PrefetchForRead<kStep * sizeof(In)>(logits + col);
    const bool whole = count == kStep && static_cast<uint64_t>(target - col) >= static_cast<uint64_t>(kStep);
    if (HWY_UNLIKELY(!whole)) CopyStep(logits + col, count, target - col, pad, copy);
    if constexpr (sizeof(In) == sizeof(Arithmetic<In>)) {
      step(whole ? logits + col : copy, col, count);
    } else if (HWY_LIKELY(whole)) {
      step(logits + col, col, count);
    } else {
      step(static_cast<const Arithmetic<In> *>(copy), col, count);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
