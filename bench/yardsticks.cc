// The yardsticks' loops, once for every SIMD target.
#include "bench/yardsticks.h"

#include <cstddef>
#include <cstring>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/yardsticks.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.h.
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace xent_bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

const char *ThisTarget() { return hwy::TargetName(HWY_TARGET); }

// Half precision is ordered as integers are once the magnitude bits of negative numbers are flipped; the same
// operation turns a key back.
template <class D, HWY_IF_FLOAT_D(D)>
HWY_INLINE hn::Vec<D> Key(D, hn::Vec<D> v) {
  return v;
}
template <class D, HWY_IF_I16_D(D)>
HWY_INLINE hn::Vec<D> Key(D d, hn::Vec<D> v) {
  return hn::Xor(v, hn::And(hn::ShiftRight<15>(v), hn::Set(d, 0x7fff)));
}

// Four chains of maxima hide the latency of the maximum. The prefetch is worth 5 % on a Zen 5 that streams from memory:
// the hardware's own stops at the end of every page.
template <typename T>
HWY_INLINE T MaximumOfKeys(const T *HWY_RESTRICT x, size_t n) {
  constexpr size_t kAhead = 4096;
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  const V lowest = hn::Set(d, std::numeric_limits<T>::lowest());
  V m0 = lowest, m1 = lowest, m2 = lowest, m3 = lowest;
  size_t i = 0;
  for (; i + 8 * lanes <= n; i += 8 * lanes) {
    for (size_t line = 0; line < 8 * lanes * sizeof(T); line += 64) {
      hwy::Prefetch(reinterpret_cast<const uint8_t *>(x + i) + kAhead + line);
    }
    m0 = hn::Max(m0, hn::Max(Key(d, hn::LoadU(d, x + i)), Key(d, hn::LoadU(d, x + i + lanes))));
    m1 = hn::Max(m1, hn::Max(Key(d, hn::LoadU(d, x + i + 2 * lanes)), Key(d, hn::LoadU(d, x + i + 3 * lanes))));
    m2 = hn::Max(m2, hn::Max(Key(d, hn::LoadU(d, x + i + 4 * lanes)), Key(d, hn::LoadU(d, x + i + 5 * lanes))));
    m3 = hn::Max(m3, hn::Max(Key(d, hn::LoadU(d, x + i + 6 * lanes)), Key(d, hn::LoadU(d, x + i + 7 * lanes))));
  }
  for (; i + lanes <= n; i += lanes) m0 = hn::Max(m0, Key(d, hn::LoadU(d, x + i)));
  if (i < n) {
    const V rest = Key(d, hn::LoadN(d, x + i, n - i));
    m1 = hn::Max(m1, hn::IfThenElse(hn::FirstN(d, n - i), rest, lowest));
  }
  return hn::ReduceMax(d, hn::Max(hn::Max(m0, m1), hn::Max(m2, m3)));
}

float MaximumF32(const float *HWY_RESTRICT x, size_t n) { return MaximumOfKeys(x, n); }
double MaximumF64(const double *HWY_RESTRICT x, size_t n) {
#if HWY_HAVE_FLOAT64
  return MaximumOfKeys(x, n);
#else
  double m = x[0];
  for (size_t i = 1; i < n; ++i) m = m < x[i] ? x[i] : m;
  return m;
#endif
}
int16_t MaximumKey16(const int16_t *HWY_RESTRICT x, size_t n) { return MaximumOfKeys(x, n); }

void StreamBytes(const uint8_t *HWY_RESTRICT from, uint8_t *HWY_RESTRICT to, size_t n) {
  const hn::ScalableTag<uint8_t> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto v0 = hn::LoadU(d, from + i);
    const auto v1 = hn::LoadU(d, from + i + lanes);
    const auto v2 = hn::LoadU(d, from + i + 2 * lanes);
    const auto v3 = hn::LoadU(d, from + i + 3 * lanes);
    hn::Stream(v0, d, to + i);
    hn::Stream(v1, d, to + i + lanes);
    hn::Stream(v2, d, to + i + 2 * lanes);
    hn::Stream(v3, d, to + i + 3 * lanes);
  }
  hwy::FlushStream();
  std::memcpy(to + i, from + i, n - i);
}

// Both forms of the scale: a multiplication, and for half precision the sign bit alone, so that conversions do not
// count.
template <class D, HWY_IF_FLOAT_D(D)>
HWY_INLINE hn::Vec<D> Scaled(D d, hn::Vec<D> v) {
  return hn::Mul(v, hn::Set(d, hwy::ConvertScalarTo<hn::TFromD<D>>(-1.0)));
}
template <class D, HWY_IF_I16_D(D)>
HWY_INLINE hn::Vec<D> Scaled(D d, hn::Vec<D> v) {
  return hn::Xor(v, hn::Set(d, hwy::LimitsMin<int16_t>()));
}

template <typename T>
HWY_INLINE void ScaleAll(T *HWY_RESTRICT x, size_t n) {
  const hn::ScalableTag<T> d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto v0 = hn::LoadU(d, x + i);
    const auto v1 = hn::LoadU(d, x + i + lanes);
    const auto v2 = hn::LoadU(d, x + i + 2 * lanes);
    const auto v3 = hn::LoadU(d, x + i + 3 * lanes);
    hn::StoreU(Scaled(d, v0), d, x + i);
    hn::StoreU(Scaled(d, v1), d, x + i + lanes);
    hn::StoreU(Scaled(d, v2), d, x + i + 2 * lanes);
    hn::StoreU(Scaled(d, v3), d, x + i + 3 * lanes);
  }
  for (; i < n; i += lanes) {
    const size_t left = n - i < lanes ? n - i : lanes;
    hn::StoreN(Scaled(d, hn::LoadN(d, x + i, left)), d, x + i, left);
  }
}

void ScaleF32(float *HWY_RESTRICT x, size_t n) { ScaleAll(x, n); }
void ScaleF64(double *HWY_RESTRICT x, size_t n) {
#if HWY_HAVE_FLOAT64
  ScaleAll(x, n);
#else
  for (size_t i = 0; i < n; ++i) x[i] = -x[i];
#endif
}
void ScaleI16(int16_t *HWY_RESTRICT x, size_t n) { ScaleAll(x, n); }

}  // namespace HWY_NAMESPACE
}  // namespace xent_bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xent_bench {
namespace {

HWY_EXPORT(ThisTarget);
HWY_EXPORT(MaximumF32);
HWY_EXPORT(MaximumF64);
HWY_EXPORT(MaximumKey16);
HWY_EXPORT(StreamBytes);
HWY_EXPORT(ScaleF32);
HWY_EXPORT(ScaleF64);
HWY_EXPORT(ScaleI16);

}  // namespace

const char *YardstickTarget() { return HWY_DYNAMIC_DISPATCH(ThisTarget)(); }

double Maximum(xent_dtype dtype, const void *x, int64_t n) {
  const auto count = static_cast<size_t>(n);
  if (dtype == XENT_F32) return HWY_DYNAMIC_DISPATCH(MaximumF32)(static_cast<const float *>(x), count);
  if (dtype == XENT_F64) return HWY_DYNAMIC_DISPATCH(MaximumF64)(static_cast<const double *>(x), count);
  const int16_t key = HWY_DYNAMIC_DISPATCH(MaximumKey16)(static_cast<const int16_t *>(x), count);
  const auto bits = static_cast<uint16_t>(key ^ ((key >> 15) & 0x7fff));
  return dtype == XENT_BF16 ? hwy::F32FromBF16(hwy::BitCastScalar<hwy::bfloat16_t>(bits))
                            : hwy::F32FromF16(hwy::BitCastScalar<hwy::float16_t>(bits));
}

void StreamCopy(const void *from, void *to, int64_t bytes) {
  HWY_DYNAMIC_DISPATCH(StreamBytes)
  (static_cast<const uint8_t *>(from), static_cast<uint8_t *>(to), static_cast<size_t>(bytes));
}

void ScaleInPlace(xent_dtype dtype, void *x, int64_t n) {
  const auto count = static_cast<size_t>(n);
  if (dtype == XENT_F32) {
    HWY_DYNAMIC_DISPATCH(ScaleF32)(static_cast<float *>(x), count);
  } else if (dtype == XENT_F64) {
    HWY_DYNAMIC_DISPATCH(ScaleF64)(static_cast<double *>(x), count);
  } else {
    HWY_DYNAMIC_DISPATCH(ScaleI16)(static_cast<int16_t *>(x), count);
  }
}

}  // namespace xent_bench
#endif  // HWY_ONCE
