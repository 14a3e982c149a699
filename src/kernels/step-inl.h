// The walk over a row in steps, four vectors at a time, the prefetches that run ahead of it, the largest logit, which
// it finds, and where a logit stands.
#if defined(XENT_SRC_KERNELS_STEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_STEP_INL_H_
#undef XENT_SRC_KERNELS_STEP_INL_H_
#else
#define XENT_SRC_KERNELS_STEP_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/row.h"
#include "numbers/compiler.h"
#include "numbers/elements-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

template <class In>
using Tag = hn::CappedTag<Arithmetic<In>, kLanes>;

// Loads four vectors that begin `apart` elements from each other.
template <class D, class In, class V = hn::Vec<D>>
HWY_INLINE void LoadFour(D d, const In *p, int64_t apart, V &v0, V &v1, V &v2, V &v3) {
  v0 = LoadAs(d, p);
  v1 = LoadAs(d, p + apart);
  v2 = LoadAs(d, p + 2 * apart);
  v3 = LoadAs(d, p + 3 * apart);
}

// Stores four vectors likewise, with kStream past the caches.
template <bool kStream = false, class D, class Out, class V = hn::Vec<D>>
HWY_INLINE void StoreFour(D d, V v0, V v1, V v2, V v3, Out *p, int64_t apart) {
  StoreOrStream<kStream>(d, v0, p);
  StoreOrStream<kStream>(d, v1, p + apart);
  StoreOrStream<kStream>(d, v2, p + 2 * apart);
  StoreOrStream<kStream>(d, v3, p + 3 * apart);
}

template <class V>
HWY_INLINE void SubtractFour(V origin, V &v0, V &v1, V &v2, V &v3) {
  v0 = hn::Sub(v0, origin);
  v1 = hn::Sub(v1, origin);
  v2 = hn::Sub(v2, origin);
  v3 = hn::Sub(v3, origin);
}

// Bytes ahead at which memory is asked for: into the second-level cache and from there into the first, or for writing.
// docs/tuning.md has what that is worth.
inline constexpr int64_t kFarBytes = 16 * 1024;
inline constexpr int64_t kNearBytes = 1024;

// Addresses are integers here: they may lie outside of any object, which a prefetch does not mind.
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
    // The compiler emits the instruction only under a flag that no target here sets; processors without it ignore it.
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

// Calls step(pointer, column, count) for each step of [0, cols). The pointer is that of the logits where a step is
// whole and without the target, else that of a copy, of the arithmetic type, with `pad` in the other lanes. So a loop
// has no scalar twin for its end, and its body is compiled in one place (two where the copy's type is not that of the
// logits).
template <class In, class Step>
HWY_INLINE void ForEachStep(const In *logits, int64_t cols, int64_t target, Arithmetic<In> pad, Step &&step) {
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
                  for (int64_t i = part; i < kStep; i += kLanes) {
                    const auto v = LoadAs(d, z + i);
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

// Returns the first column that holds `value`, `cols` if none does.
template <class In>
HWY_INLINE int64_t FindFirst(const In *logits, int64_t cols, Arithmetic<In> value) {
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto wanted = hn::Set(d, value);
  int64_t i = 0;
  for (; i + 4 * lanes <= cols; i += 4 * lanes) {
    hn::Vec<Tag<In>> v0, v1, v2, v3;
    LoadFour(d, logits + i, lanes, v0, v1, v2, v3);
    const auto first = hn::Or(hn::Eq(v0, wanted), hn::Eq(v1, wanted));
    const auto second = hn::Or(hn::Eq(v2, wanted), hn::Eq(v3, wanted));
    if (!hn::AllFalse(d, hn::Or(first, second))) break;
  }
  while (i + lanes <= cols && hn::AllFalse(d, hn::Eq(LoadAs(d, logits + i), wanted))) i += lanes;
  while (i < cols && Widen(logits[i]) != value) ++i;
  return i;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
