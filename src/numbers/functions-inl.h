// exp, log and log1p of float32 and float64 vectors over their whole range, subnormal numbers included, within 1 ULP.
//
// With fused multiply-add lanes keep their type. Each function has two forms: Ordinary, without a rule for special
// values, for the arguments that IsOrdinary names, nearly all; and Full, for all, with the bits of Ordinary where both
// hold. Over all float32 exp is at most 0.892 ULP off (at -0x1.765026p+2), log 0.960 (at 0x1.7fc608p-1), log1p 0.960
// (at -0x1.0033e6p-2); of float64 tests/numbers prints the worst of its arguments. Without fused multiply-add there is
// Full of doubles alone.
#if defined(XENT_SRC_NUMBERS_FUNCTIONS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_NUMBERS_FUNCTIONS_INL_H_
#undef XENT_SRC_NUMBERS_FUNCTIONS_INL_H_
#else
#define XENT_SRC_NUMBERS_FUNCTIONS_INL_H_
#endif

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "numbers/coefficients.h"
#include "numbers/exp-inl.h"
#include "numbers/log-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// e^x is normal for |x| <= kOrdinary, rounds to 0 below kLowest and to infinity above kHighest.
template <class T>
struct FunctionFormat;
template <>
struct FunctionFormat<float> : ExpFormat<float> {
  static constexpr float kOrdinary = 87.0f, kLowest = -104.0f, kHighest = 89.0f;
  static constexpr float kLn2Hi = kLn2_F32_Hi, kLn2Lo = kLn2_F32_Lo;
  static constexpr auto &kExp = kExpF32;
  static constexpr auto &kLogRest = kLogRestF32;
};
template <>
struct FunctionFormat<double> : ExpFormat<double> {
  static constexpr double kOrdinary = 708.0, kLowest = -747.0, kHighest = 710.0;
  static constexpr double kLn2Hi = kLn2_F64_Hi, kLn2Lo = kLn2_F64_Lo;
  static constexpr auto &kExp = kExpF64;
  static constexpr auto &kLogRest = kLogRestF64;
};
template <class D>
using FormatOf = FunctionFormat<hn::TFromD<D>>;

// Returns e^x from reduce(z, &m), which gives e^z as a number p in [0.7, 1.5], 2^n being left, with n in the low bits
// of m. 2^n comes in two factors: the first product is exact, the second rounds once where the result is subnormal.
template <class D, class Reduce, class V = hn::Vec<D>>
HWY_INLINE V ExpOfWholeRange(D d, V x, Reduce reduce) {
  using T = hn::TFromD<D>;
  using F = FormatOf<D>;
  const hn::RebindToSigned<D> di;
  // Not by a product: one that leaves the normal range takes processors 150 cycles, and -inf is common.
  const auto vanishes = hn::Lt(x, hn::Set(d, F::kLowest));
  V m = hn::Zero(d);
  const V p = reduce(hn::IfThenZeroElse(vanishes, hn::Min(x, hn::Set(d, F::kHighest))), &m);
  const auto n = hn::Sub(hn::BitCast(di, m), hn::BitCast(di, hn::Set(d, static_cast<T>(F::kRound))));
  const auto half = hn::ShiftRight<1>(n);
  const auto bias = hn::Set(di, hn::TFromD<decltype(di)>{F::kExponentBias});
  const V first = hn::BitCast(d, hn::ShiftLeft<F::kMantissaBits>(hn::Add(half, bias)));
  const V second = hn::BitCast(d, hn::ShiftLeft<F::kMantissaBits>(hn::Add(hn::Sub(n, half), bias)));
  return hn::IfThenElse(hn::IsNaN(x), x, hn::IfThenZeroElse(vanishes, hn::Mul(hn::Mul(p, first), second)));
}

#if HWY_NATIVE_FMA

constexpr uint32_t BitsOf(float x) { return std::bit_cast<uint32_t>(x); }
constexpr uint64_t BitsOf(double x) { return std::bit_cast<uint64_t>(x); }

template <class D, class T, size_t kTerms, class V = hn::Vec<D>>
HWY_INLINE V Polynomial(D d, const T (&coefficients)[kTerms], V x) {
  V p = hn::Set(d, coefficients[kTerms - 1]);
  HWY_UNROLL(16)
  for (size_t i = kTerms - 1; i > 0; --i) p = hn::MulAdd(p, x, hn::Set(d, coefficients[i - 1]));
  return p;
}

// Returns the same, all but the lowest four terms as four polynomials in x^4: a chain of 20 dependent operations fills
// the scheduler and takes 2.4 times as long (Xeon with AMX, AVX2). The lowest terms are those whose rounding counts.
template <class D, class T, size_t kTerms, class V = hn::Vec<D>>
HWY_INLINE V PolynomialByFour(D d, const T (&coefficients)[kTerms], V x, V x2) {
  static_assert(kTerms % 4 == 0);
  const V x4 = hn::Mul(x2, x2);
  const auto part = [&](size_t first) HWY_ATTR {
    V p = hn::Set(d, coefficients[kTerms - 4 + first]);
    HWY_UNROLL(8)
    for (size_t i = kTerms - 8; i >= 4; i -= 4) p = hn::MulAdd(p, x4, hn::Set(d, coefficients[i + first]));
    return p;
  };
  V p = hn::MulAdd(hn::MulAdd(part(3), x, part(2)), x2, hn::MulAdd(part(1), x, part(0)));
  HWY_UNROLL(4)
  for (size_t i = 4; i > 0; --i) p = hn::MulAdd(p, x, hn::Set(d, coefficients[i - 1]));
  return p;
}

// e^x = 2^n e^r with n = round(x log2 e), r = x - n ln 2. x - n kLn2Hi is exact: a multiple of half an ULP of 1/2, or
// of x's own ULP. The roundings of r, of the polynomial's last two steps and of all others together come to less than
// 0.19, 0.5 + 0.17 and 0.1 ULP.
struct ExpFunction {
  template <class D>
  static HWY_INLINE hn::Mask<D> IsOrdinary(D d, hn::Vec<D> x) {
    return hn::Le(hn::Abs(x), hn::Set(d, FormatOf<D>::kOrdinary));
  }
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Ordinary(D d, V x) {
    const hn::RebindToSigned<D> di;
    V m = hn::Zero(d);
    const V p = Reduced(d, x, &m);
    const auto exponent = hn::ShiftLeft<FormatOf<D>::kMantissaBits>(hn::BitCast(di, m));
    return hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  }
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Full(D d, V x) {
    return ExpOfWholeRange(d, x, [&](V z, V *m) HWY_ATTR { return Reduced(d, z, m); });
  }

 private:
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Reduced(D d, V x, V *m) {
    using F = FormatOf<D>;
    const V round = hn::Set(d, static_cast<hn::TFromD<D>>(F::kRound));
    *m = hn::MulAdd(x, hn::Set(d, F::kLog2EHi), round);
    const V n = hn::Sub(*m, round);
    const V r = hn::NegMulAdd(n, hn::Set(d, F::kLn2Hi), x);
    return Polynomial(d, F::kExp, hn::NegMulAdd(n, hn::Set(d, F::kLn2Lo), r));
  }
};

// Whether 2^kFirst <= x < 2^kEnd.
template <int kFirst, int kEnd, class D>
HWY_INLINE hn::Mask<D> IsBetweenPowers(D d, hn::Vec<D> x) {
  using F = FormatOf<D>;
  const hn::RebindToSigned<D> di;
  using TI = hn::TFromD<decltype(di)>;
  // The bits of 2^kFirst become the smallest integer, so that one signed comparison will do.
  constexpr TI kLowest = hwy::LimitsMin<TI>();
  constexpr TI kOffset = (TI{F::kExponentBias + kFirst} << F::kMantissaBits) + kLowest;
  constexpr TI kLimit = (TI{kEnd - kFirst} << F::kMantissaBits) + kLowest;
  return hn::RebindMask(d, hn::Lt(hn::Sub(hn::BitCast(di, x), hn::Set(di, kOffset)), hn::Set(di, kLimit)));
}

// Returns the bits of w, less those of 3/4, with k + bias in the exponent's place, where u = 2^k w, w in [3/4, 3/2),
// for normal u > 0.
template <class D, class DU = hn::RebindToUnsigned<D>>
HWY_INLINE hn::Vec<DU> SplitAtThreeQuarters(D d, hn::Vec<D> u, hn::Vec<D> *k) {
  using T = hn::TFromD<D>;
  using F = FormatOf<D>;
  const DU du;
  const auto bits = hn::Add(hn::BitCast(du, u), hn::Set(du, BitsOf(T{1}) - BitsOf(T{0.75})));
  // An integer in the low bits of 2^23 or 2^52.
  constexpr T kUnit = static_cast<T>(int64_t{1} << F::kMantissaBits);
  const auto biased = hn::Or(hn::ShiftRight<F::kMantissaBits>(bits), hn::Set(du, BitsOf(kUnit)));
  *k = hn::Sub(hn::BitCast(d, biased), hn::Set(d, kUnit + F::kExponentBias));
  return bits;
}
template <class T>
inline constexpr auto kMantissaMask = BitsOf(std::numeric_limits<T>::min()) - 1;

// Returns 2^-k from what SplitAtThreeQuarters returns.
template <class D, class DU = hn::RebindToUnsigned<D>>
HWY_INLINE hn::Vec<D> InversePowerOfSplit(D d, hn::Vec<DU> bits) {
  using T = hn::TFromD<D>;
  const DU du;
  const auto exponent = hn::AndNot(hn::Set(du, kMantissaMask<T>), bits);
  return hn::BitCast(d, hn::Sub(hn::Set(du, 2 * BitsOf(T{1})), exponent));
}

// Returns k ln 2 + log(1 + r) for 1 + r in [3/4, 3/2], as (k ln 2 + r) + (r^2 P(r) + lost), whose second part is *low
// and not added where `low` is given. `lost` is what the rounding of the first sum loses, nothing for |k| = 1, where
// the result may be as small as 0.29. r^2 P is below 0.1. What float32's ln 2 lacks is 1/16 ULP at most.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V SumOfLogs(D d, V k, V r, V *low = nullptr) {
  using F = FormatOf<D>;
  const V ln2 = hn::Set(d, F::kLn2Hi);
  const V sum = hn::MulAdd(k, ln2, r);
  V lost = hn::Add(hn::MulSub(k, ln2, sum), r);
  const V r2 = hn::Mul(r, r);
  V p;
  if constexpr (sizeof(hn::TFromD<D>) == sizeof(double)) {
    lost = hn::MulAdd(k, hn::Set(d, F::kLn2Lo), lost);
    p = PolynomialByFour(d, F::kLogRest, r, r2);
  } else {
    p = Polynomial(d, F::kLogRest, r);
  }
  const V rest = hn::MulAdd(r2, p, lost);
  if (low == nullptr) return hn::Add(sum, rest);
  *low = rest;
  return sum;
}

struct LogFunction {
  template <class D>
  static HWY_INLINE hn::Mask<D> IsOrdinary(D d, hn::Vec<D> x) {
    constexpr int kBias = FormatOf<D>::kExponentBias;
    return IsBetweenPowers<1 - kBias, kBias + 1>(d, x);
  }
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Ordinary(D d, V x) {
    V k = hn::Zero(d);
    const V r = Split(d, x, &k);
    return SumOfLogs(d, k, r);
  }
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Full(D d, V x) {
    using T = hn::TFromD<D>;
    // Subnormals: 2^54 x is exact and normal.
    const auto tiny = hn::Lt(x, hn::Set(d, std::numeric_limits<T>::min()));
    V k = hn::Zero(d);
    const V r = Split(d, hn::IfThenElse(tiny, hn::Mul(x, hn::Set(d, T{0x1p54})), x), &k);
    k = hn::Sub(k, hn::IfThenElseZero(tiny, hn::Set(d, T{54})));
    return SpecialLog(d, x, SumOfLogs(d, k, r));
  }

 private:
  // x = 2^k (1 + r); r is exact.
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Split(D d, V x, V *k) {
    using T = hn::TFromD<D>;
    const hn::RebindToUnsigned<D> du;
    const auto above = hn::And(SplitAtThreeQuarters(d, x, k), hn::Set(du, kMantissaMask<T>));
    return hn::Sub(hn::BitCast(d, hn::Add(above, hn::Set(du, BitsOf(T{0.75})))), hn::Set(d, T{1}));
  }
};

// 1 + x = 2^k (1 + r) with r = 2^-k x + (2^-k - 1). It is exact, but for large x, where it need not be: k = 1 begins no
// lower than x = 1/2, k = -1 no higher than x = -1/4, for k is that of 1 + x with x drawn towards 0 by an ULP.
struct Log1pFunction {
  // Below, what x was drawn by would show; above, 2^-k would be subnormal.
  template <class D>
  static HWY_INLINE hn::Mask<D> IsOrdinary(D d, hn::Vec<D> x) {
    return IsBetweenPowers<-12, FormatOf<D>::kExponentBias - 1>(d, Sum(d, x));
  }
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Ordinary(D d, V x) {
    using T = hn::TFromD<D>;
    V k = hn::Zero(d);
    const V scale = InversePowerOfSplit(d, SplitAtThreeQuarters(d, Sum(d, x), &k));
    const V r = hn::MulAdd(x, scale, hn::Sub(scale, hn::Set(d, T{1})));
    // The sums lose the sign of -0.
    return hn::Or(SumOfLogs(d, k, r), hn::And(x, hn::SignBit(d)));
  }
  // Where x is not ordinary, 1 + x is exact or of no other logarithm.
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Full(D d, V x) {
    const V sum = hn::Add(x, hn::Set(d, hn::TFromD<D>{1}));
    return SpecialLog(d, sum, hn::IfThenElse(IsOrdinary(d, x), Ordinary(d, x), LogFunction::Ordinary(d, sum)));
  }

 private:
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Sum(D d, V x) {
    using T = hn::TFromD<D>;
    return hn::MulAdd(x, hn::Set(d, T{1} - std::numeric_limits<T>::epsilon()), hn::Set(d, T{1}));
  }
};

#else  // without fused multiply-add

struct ExpFunction {
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Full(D d, V x) {
    constexpr double kRound = ExpFormat<double>::kRound;
    return ExpOfWholeRange(d, x,
                           [&](V z, V *m) HWY_ATTR { return ReducedExp(d, hn::Set(d, kRound), z, hn::Zero(d), m); });
  }
};
struct LogFunction {
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Full(D d, V x) {
    return LogDouble(d, x);
  }
};
struct Log1pFunction {
  template <class D, class V = hn::Vec<D>>
  static HWY_INLINE V Full(D d, V x) {
    return Log1pDouble(d, x);
  }
};

#endif  // HWY_NATIVE_FMA

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
