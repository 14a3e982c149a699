// e^z on Highway vectors, as 2^(z log2 e - reference) with an integer reference, carrying the bias of its format.
//
// z itself is reduced, n = round(z log2 e) and f = z log2 e - n by two fused multiply-adds, so that the result depends
// on the reference by an exact power of two only. Largest error: float32 1.0115 ULP over all floats (degree 6; at
// 0x1.924bdep+5), float64 0.997 on 80 million arguments (degree 11); tests/kernels hold what becomes of it. Results
// below the smallest normal number are 0 (the caller has set flush-to-zero), so that scaling by an instruction
// (AVX-512), by an exponent's bits, and Arm's rules agree. NaN and what lies too far above the reference give a result
// beyond Format::kSumLimit or NaN, never a plausible number; -inf gives 0.
//
// Targets without fused multiply-add form z log2 e exactly, float32 in double, float64 by Dekker's split: the same
// bound, not the same bits. ReducedExp is more exact.
#if defined(XENT_SRC_NUMBERS_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_NUMBERS_EXP_INL_H_
#undef XENT_SRC_NUMBERS_EXP_INL_H_
#else
#define XENT_SRC_NUMBERS_EXP_INL_H_
#endif

#include <cstddef>
#include <iterator>

#include "hwy/highway.h"
#include "numbers/coefficients.h"
#include "numbers/elements-inl.h"
#include "numbers/format.h"
#include "numbers/pairs-inl.h"

// AVX-512 scales by its own instruction; Highway has no wrapper for it.
#undef XENT_SCALEF
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
#define XENT_SCALEF 1
#else
#define XENT_SCALEF 0
#endif

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

template <class T>
struct ExpFormat;
template <>
struct ExpFormat<float> {
  static constexpr int kMantissaBits = 23;
  static constexpr double kRound = 0x1.8p23;  // adding it rounds to an integer
  static constexpr int kExponentBias = 127;
  static constexpr int kDegree = 6;
  static constexpr const float *kPolynomial = kExp2F32;
  static constexpr float kLog2EHi = kLog2E_F32_Hi, kLog2ELo = kLog2E_F32_Lo;
};
template <>
struct ExpFormat<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr double kRound = 0x1.8p52;
  static constexpr int kExponentBias = 1023;
  static constexpr int kDegree = 11;
  static constexpr const double *kPolynomial = kExp2F64;
  static constexpr double kLog2EHi = kLog2E_F64_Hi, kLog2ELo = kLog2E_F64_Lo;
};

// The factor between a logit and a power of two, log2 e, as ExpFour asks its range for it. A range may have another
// one: then it is the exponential of a multiple of the logits, and nothing is rounded on the way there.
template <class T>
struct NaturalScale {
  template <class D>
  HWY_INLINE hn::Vec<D> Log2EHi(D d) const {
    return hn::Set(d, ExpFormat<T>::kLog2EHi);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Log2ELo(D d) const {
    return hn::Set(d, ExpFormat<T>::kLog2ELo);
  }
  double Log2E() const { return kLog2E_F64_Hi; }
};

// What an exponential needs to know of its reference. Without an instruction that scales, the exponent field of the
// factor is taken from the low bits of z log2 e + origin: 0 makes the result exactly 0, all ones infinite, and clamping
// z to [lo, hi] keeps the field between the two.
template <class T>
struct ExpRange : NaturalScale<T> {
  using F = ExpFormat<T>;
  static constexpr bool kScalef = XENT_SCALEF && sizeof(T) == 4;

  explicit ExpRange(double reference) {
    const double zero_field = reference - Format<T>::kBias - F::kExponentBias;
    lo = kScalef ? static_cast<T>(-0x1p21) : static_cast<T>(zero_field * kLn2_F64_Hi);
    hi = static_cast<T>((zero_field + 2.0 * F::kExponentBias + 1.0) * kLn2_F64_Hi);
    origin = static_cast<T>(F::kRound - (kScalef ? reference - Format<T>::kBias : zero_field));
  }

  // A range may also have values of its own in each lane: whatever has these three.
  template <class D>
  HWY_INLINE hn::Vec<D> Lo(D d) const {
    return hn::Set(d, lo);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Hi(D d) const {
    return hn::Set(d, hi);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Origin(D d) const {
    return hn::Set(d, origin);
  }

  T lo, hi, origin;
};

// Both clamps let NaN through to a result that no later test can take for a sum: on x86 min and max return their second
// operand where one is NaN, elsewhere comparisons are used.
template <class D, class Range, class V = hn::Vec<D>>
HWY_INLINE V ClampArgument(D d, const Range &range, V z) {
  const V lo = range.Lo(d);
  if constexpr (Range::kScalef) {
    return hn::Max(lo, z);
  } else {
    const V hi = range.Hi(d);
#if HWY_ARCH_X86
    return hn::Max(hn::Min(z, hi), lo);
#else
    z = hn::IfThenElse(hn::Lt(z, hi), z, hi);
    return hn::IfThenElse(hn::Gt(z, lo), z, lo);
#endif
  }
}

// p times 2^(m's integer).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ScaleByExponent(D d, V p, V m) {
  using T = hn::TFromD<D>;
#if XENT_SCALEF
  if constexpr (sizeof(T) == 4) {
    return V{_mm512_scalef_ps(p.raw, hn::Sub(m, hn::Set(d, static_cast<T>(ExpFormat<T>::kRound))).raw)};
  }
#endif
  const hn::RebindToUnsigned<D> du;
  return hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<ExpFormat<T>::kMantissaBits>(hn::BitCast(du, m))));
}

// What becomes of the reduced argument.
template <class D, class Range, class V = hn::Vec<D>>
HWY_INLINE V FinishExponential(D d, const Range & /*range*/, V p, V m) {
  return ScaleByExponent(d, p, m);
}

#if HWY_NATIVE_FMA

// The range of e^(scale z) for float32 logits z no larger than about the reference says. scale is folded into log2 e,
// so that it costs neither accuracy nor time. Needs no flush-to-zero: what lies kReach binades below the reference is 0
// by a comparison, -inf too, and everything else is a normal number. NaN stays NaN.
struct ScaledRange {
  using F = ExpFormat<float>;
  static constexpr bool kScalef = ExpRange<float>::kScalef;
  // With the instruction that scales, one more than without: m has the same parity either way, so that z log2 e half
  // way between two integers is rounded to the same one.
  static constexpr int kBias = Format<float>::kBias + (kScalef ? 1 : 0);
  static constexpr int kReach = 199;

  float log2e_hi, log2e_lo, origin, lowest;

  ScaledRange(double reference, double scale) {
    const double log2e = scale * kLog2E_F64_Hi;
    log2e_hi = static_cast<float>(log2e);
    log2e_lo = static_cast<float>(log2e - static_cast<double>(log2e_hi));
    const double none = reference - kBias - (kScalef ? 0 : F::kExponentBias);
    origin = static_cast<float>(F::kRound - none);
    lowest = static_cast<float>(F::kRound - none + reference - kReach);
  }

  template <class D>
  HWY_INLINE hn::Vec<D> Log2EHi(D d) const {
    return hn::Set(d, log2e_hi);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Log2ELo(D d) const {
    return hn::Set(d, log2e_lo);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Origin(D d) const {
    return hn::Set(d, origin);
  }
};

template <class D, class V = hn::Vec<D>>
HWY_INLINE V ClampArgument(D /*d*/, const ScaledRange & /*range*/, V z) {
  return z;
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V FinishExponential(D d, const ScaledRange &range, V p, V m) {
  const V lowest = hn::Set(d, range.lowest);
#if XENT_SCALEF
  const V integer = hn::Sub(m, hn::Set(d, static_cast<float>(ScaledRange::F::kRound)));
  return V{_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(m.raw, lowest.raw, _CMP_NLT_UQ), p.raw, integer.raw)};
#else
  return hn::IfThenZeroElse(hn::Lt(m, lowest), ScaleByExponent(d, p, m));
#endif
}

#endif  // HWY_NATIVE_FMA

// 2^f of the reduction of a double z + z_lo within range; *m is its integer plus `origin`. What the roundings of f, of
// f q and of 1 + f q lose is added at the end: 0.79 ULP on the arguments of tests/numbers, with and without fused
// multiply-add.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ReducedExp(D d, V origin, V z, V z_lo, V *m) {
  using F = ExpFormat<double>;
  const V log2e = hn::Set(d, F::kLog2EHi);
  const V product = hn::Mul(z, log2e);
  const V low = hn::MulAdd(z_lo, log2e, ProductError(d, z, log2e, product));
  const V rest = hn::MulAdd(z, hn::Set(d, F::kLog2ELo), low);
  *m = hn::Add(product, origin);
  const V f_hi = hn::Sub(product, hn::Sub(*m, origin));
  const V f = hn::Add(f_hi, rest);
  const V f_lost = hn::Add(hn::Sub(f_hi, f), rest);
  V q = hn::Set(d, kExp2F64[F::kDegree]);
  HWY_UNROLL(16)
  for (int i = F::kDegree - 1; i >= 1; --i) q = hn::MulAdd(q, f, hn::Set(d, kExp2F64[i]));
  const V one = hn::Set(d, 1.0);
  const V fq = hn::Mul(f, q);
  const V p = hn::Add(one, fq);
  const V lost = hn::MulAdd(f_lost, q, ProductError(d, f, q, fq));
  return hn::Add(p, hn::Add(hn::Sub(fq, hn::Sub(p, one)), lost));
}
// Makes four polynomials in lockstep, of the coefficients from kFirst on: one chain of dependent operations after the
// other would starve the scheduler. More than 8 parameters with a tag: vectors may be sizeless (SVE).
template <const auto &kCoefficients, size_t kFirst = 0, class V>
HWY_INLINE void PolynomialFour(V x0, V x1, V x2, V x3, V &p0, V &p1, V &p2, V &p3) {
  const hn::DFromV<V> d;
  constexpr size_t kTerms = std::size(kCoefficients);
  const auto coefficient = [&](size_t i) HWY_ATTR { return hn::Set(d, static_cast<hn::TFromV<V>>(kCoefficients[i])); };
  p0 = p1 = p2 = p3 = coefficient(kTerms - 1);
  HWY_UNROLL(16)
  for (size_t i = kTerms - 1; i > kFirst; --i) {
    const V next = coefficient(i - 1);
    p0 = hn::MulAdd(p0, x0, next);
    p1 = hn::MulAdd(p1, x1, next);
    p2 = hn::MulAdd(p2, x2, next);
    p3 = hn::MulAdd(p3, x3, next);
  }
}

// Returns 2^f of |f| <= 0.521 by the polynomial of float32: off by 2^-27, 0.12 ULP of a float32 result.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2ForFloat(D d, V f) {
  V p = hn::Set(d, static_cast<double>(kExp2F32[6]));
  HWY_UNROLL(8)
  for (int i = 5; i >= 0; --i) p = hn::MulAdd(p, f, hn::Set(d, static_cast<double>(kExp2F32[i])));
  return p;
}
// Returns 2^f of the reduction of a double z, for float32. *m is its integer plus `origin`. The product of z, 24 bits,
// and log2 e, 53, is rounded, by 2^-53 of at most 2^22.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ReducedExpForFloat(D d, V origin, V z, V *m, double log2e = kLog2E_F64_Hi) {
  const V product = hn::Mul(z, hn::Set(d, log2e));
  *m = hn::Add(product, origin);
  return Exp2ForFloat(d, hn::Sub(product, hn::Sub(*m, origin)));
}

#if HWY_NATIVE_FMA

// Four vectors in lockstep: one chain of dependent operations after the other would starve the scheduler.
template <class D, class Range, class V = hn::Vec<D>>
HWY_INLINE void ExpFour(D d, const Range &range, V &z0, V &z1, V &z2, V &z3) {
  using T = hn::TFromD<D>;
  using F = ExpFormat<T>;
  const V log2e_hi = range.Log2EHi(d);
  const V log2e_lo = range.Log2ELo(d);
  const V origin = range.Origin(d);
  z0 = ClampArgument(d, range, z0);
  z1 = ClampArgument(d, range, z1);
  z2 = ClampArgument(d, range, z2);
  z3 = ClampArgument(d, range, z3);
  const V m0 = hn::MulAdd(z0, log2e_hi, origin);
  const V m1 = hn::MulAdd(z1, log2e_hi, origin);
  const V m2 = hn::MulAdd(z2, log2e_hi, origin);
  const V m3 = hn::MulAdd(z3, log2e_hi, origin);
  V f0 = hn::MulSub(z0, log2e_hi, hn::Sub(m0, origin));
  V f1 = hn::MulSub(z1, log2e_hi, hn::Sub(m1, origin));
  V f2 = hn::MulSub(z2, log2e_hi, hn::Sub(m2, origin));
  V f3 = hn::MulSub(z3, log2e_hi, hn::Sub(m3, origin));
  f0 = hn::MulAdd(z0, log2e_lo, f0);
  f1 = hn::MulAdd(z1, log2e_lo, f1);
  f2 = hn::MulAdd(z2, log2e_lo, f2);
  f3 = hn::MulAdd(z3, log2e_lo, f3);
  const V top = hn::Set(d, F::kPolynomial[F::kDegree]);
  const V next = hn::Set(d, F::kPolynomial[F::kDegree - 1]);
  V p0 = hn::MulAdd(top, f0, next);
  V p1 = hn::MulAdd(top, f1, next);
  V p2 = hn::MulAdd(top, f2, next);
  V p3 = hn::MulAdd(top, f3, next);
  HWY_UNROLL(16)
  for (int i = F::kDegree - 2; i >= 0; --i) {
    const V coefficient = hn::Set(d, F::kPolynomial[i]);
    p0 = hn::MulAdd(p0, f0, coefficient);
    p1 = hn::MulAdd(p1, f1, coefficient);
    p2 = hn::MulAdd(p2, f2, coefficient);
    p3 = hn::MulAdd(p3, f3, coefficient);
  }
  z0 = FinishExponential(d, range, p0, m0);
  z1 = FinishExponential(d, range, p1, m1);
  z2 = FinishExponential(d, range, p2, m2);
  z3 = FinishExponential(d, range, p3, m3);
}

#else  // without fused multiply-add

template <class D, class Range, class V = hn::Vec<D>>
HWY_INLINE V ExpOne(D d, const Range &range, V z) {
  z = ClampArgument(d, range, z);
  if constexpr (sizeof(hn::TFromD<D>) == sizeof(double)) {
    V m = hn::Zero(d);
    const V p = ReducedExp(d, range.Origin(d), z, hn::Zero(d), &m);
    return ScaleByExponent(d, p, m);
  } else {
    const hn::RepartitionToWide<D> dd;
    const auto round = hn::Set(dd, ExpFormat<double>::kRound);
    auto lower = hn::Zero(dd), upper = hn::Zero(dd);
    const auto p_lower = ReducedExpForFloat(dd, round, hn::PromoteLowerTo(dd, z), &lower, range.Log2E());
    const auto p_upper = ReducedExpForFloat(dd, round, hn::PromoteUpperTo(dd, z), &upper, range.Log2E());
    const V n = RoundDoubles(d, hn::Sub(lower, round), hn::Sub(upper, round));
    return ScaleByExponent(d, RoundDoubles(d, p_lower, p_upper), hn::Add(n, range.Origin(d)));
  }
}

template <class D, class Range, class V = hn::Vec<D>>
HWY_INLINE void ExpFour(D d, const Range &range, V &z0, V &z1, V &z2, V &z3) {
  z0 = ExpOne(d, range, z0);
  z1 = ExpOne(d, range, z1);
  z2 = ExpOne(d, range, z2);
  z3 = ExpOne(d, range, z3);
}

#endif  // HWY_NATIVE_FMA

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
