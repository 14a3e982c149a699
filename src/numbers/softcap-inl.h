// cap tanh(x), x = scale z / cap, and sech^2 x, of float32 vectors. docs/semantics.md allows the first 2 ULP, and the
// second 4 + 4 |x|.
//
// |x| < 1: with a = scale z, its rounding error a_lo, and u = x^2,
//   cap tanh x = a + (a u P(u) + a_lo),   sech^2 x = 1 - u (1 + u P(u))^2,
// P of coefficients.h: neither exponential nor division. Beyond, with e = e^(-2|x|) and q = e / (1 + e) <= 0.12,
//   cap tanh|x| = cap - 2 cap q,   sech^2 x = 4 q (1 - q),
// where an error of q counts a quarter at most. e carries 2^kLift: sech^2 goes down to 2^-149, then it is 0. The lane's
// own z chooses, whatever stands beside it.
#if defined(XENT_SRC_NUMBERS_SOFTCAP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_NUMBERS_SOFTCAP_INL_H_
#undef XENT_SRC_NUMBERS_SOFTCAP_INL_H_
#else
#define XENT_SRC_NUMBERS_SOFTCAP_INL_H_
#endif

#include <limits>

#include "hwy/highway.h"
#include "numbers/coefficients.h"
#include "numbers/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// For scale, cap and their quotient between 2^-40 and 2^40.
class FloatSoftCap {
  static constexpr int kLift = 40;
  static constexpr double kFar = 53.0;  // sech^2 of it is below 2^-150

 public:
  FloatSoftCap(double scale, double cap)
      : scale_(static_cast<float>(scale)),
        scale_lo_(static_cast<float>(scale - static_cast<double>(scale_))),
        square_(static_cast<float>(scale / cap * (scale / cap))),
        largest_(static_cast<float>(kFar * cap / scale)),
        exponent_(static_cast<float>(-2.0 * scale / cap * kLog2E_F64_Hi)),
        exponent_lo_(static_cast<float>(-2.0 * scale / cap * kLog2E_F64_Hi - static_cast<double>(exponent_))),
        cap_(static_cast<float>(cap)),
        cap_lo_(static_cast<float>(cap - static_cast<double>(cap_))) {}

  // Returns the same of one vector of any length.
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V Value(D d, V z) const {
    V slope = hn::Zero(d);
    return One<false>(d, z, slope);
  }

  // Transforms `count` logits to `values`, which may be the logits, and with kSlopes writes sech^2. -inf stays, NaN
  // too.
  template <bool kSlopes>
  HWY_NOINLINE void Transform(const float *logits, int64_t count, float *values, float *slopes) const {
    const Tag d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    int64_t i = 0;
    for (; i + 4 * lanes <= count; i += 4 * lanes) Four<kSlopes>(logits + i, values + i, slopes + i);
    for (; i < count; i += lanes) {
      const size_t rest = static_cast<size_t>(HWY_MIN(lanes, count - i));
      Vector slope = hn::Zero(d);
      hn::StoreN(One<kSlopes>(d, hn::LoadN(d, logits + i, rest), slope), d, values + i, rest);
      if constexpr (kSlopes) hn::StoreN(slope, d, slopes + i, rest);
    }
  }

 private:
  using Tag = hn::CappedTag<float, 16>;
  using Vector = hn::Vec<Tag>;

  // ---- |x| < 1 ----

  template <class D, class V>
  HWY_INLINE V Square(D d, V z) const {
    return hn::Mul(hn::Mul(z, z), hn::Set(d, square_));
  }
  template <class D, class V>
  HWY_INLINE V Inside(D d, V z, V u, V p) const {
    const V scale = hn::Set(d, scale_);
    const V a = hn::Mul(z, scale);
    const V lo = hn::MulAdd(z, hn::Set(d, scale_lo_), hn::MulSub(z, scale, a));
    return hn::Add(a, hn::MulAdd(hn::Mul(a, u), p, lo));
  }
  template <class D, class V>
  HWY_INLINE V SlopeInside(D d, V u, V p) const {
    const V one = hn::Set(d, 1.0f);
    const V ratio = hn::MulAdd(u, p, one);  // tanh x / x
    return hn::NegMulAdd(hn::Mul(u, ratio), ratio, one);
  }

  // Four vectors in lockstep.
  template <bool kSlopes>
  HWY_INLINE void Four(const float *logits, float *values, float *slopes) const {
    const Tag d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    const Vector z0 = hn::LoadU(d, logits), z1 = hn::LoadU(d, logits + lanes), z2 = hn::LoadU(d, logits + 2 * lanes),
                 z3 = hn::LoadU(d, logits + 3 * lanes);
    const Vector u0 = Square(d, z0), u1 = Square(d, z1), u2 = Square(d, z2), u3 = Square(d, z3);
    // No maximum: it might lose one beside a NaN.
    const Vector one = hn::Set(d, 1.0f);
    const auto inside = hn::And(hn::And(hn::Lt(u0, one), hn::Lt(u1, one)), hn::And(hn::Lt(u2, one), hn::Lt(u3, one)));
    if (HWY_UNLIKELY(!hn::AllTrue(d, inside))) return Rest<kSlopes>(logits, values, slopes);
    Vector p0, p1, p2, p3;
    PolynomialFour<kTanhF32>(u0, u1, u2, u3, p0, p1, p2, p3);
    hn::StoreU(Inside(d, z0, u0, p0), d, values);
    hn::StoreU(Inside(d, z1, u1, p1), d, values + lanes);
    hn::StoreU(Inside(d, z2, u2, p2), d, values + 2 * lanes);
    hn::StoreU(Inside(d, z3, u3, p3), d, values + 3 * lanes);
    if constexpr (kSlopes) {
      hn::StoreU(SlopeInside(d, u0, p0), d, slopes);
      hn::StoreU(SlopeInside(d, u1, p1), d, slopes + lanes);
      hn::StoreU(SlopeInside(d, u2, p2), d, slopes + 2 * lanes);
      hn::StoreU(SlopeInside(d, u3, p3), d, slopes + 3 * lanes);
    }
  }

  // ---- any x ----

  template <bool kSlopes>
  HWY_NOINLINE void Rest(const float *logits, float *values, float *slopes) const {
    const Tag d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t i = 0; i < 4 * lanes; i += lanes) {
      Vector slope = hn::Zero(d);
      hn::StoreU(One<kSlopes>(d, hn::LoadU(d, logits + i), slope), d, values + i);
      if constexpr (kSlopes) hn::StoreU(slope, d, slopes + i);
    }
  }

  template <bool kSlopes, class D, class V>
  HWY_INLINE V One(D d, V z, V &slope) const {
    const V one = hn::Set(d, 1.0f), minus_infinity = hn::Set(d, -std::numeric_limits<float>::infinity());
    const V square = Square(d, z);
    const auto inside = hn::Lt(square, one);
    const auto far = hn::Gt(square, hn::Set(d, static_cast<float>(kFar * kFar)));
    const V u = hn::IfThenElseZero(inside, square);
    V p = hn::Set(d, kTanhF32[6]);
    HWY_UNROLL(8)
    for (int i = 5; i >= 0; --i) p = hn::MulAdd(p, u, hn::Set(d, kTanhF32[i]));
    V beyond = hn::Set(d, cap_), slope_beyond = hn::Zero(d);
    if (!hn::AllTrue(d, hn::Or(inside, far))) {
      const V q = Quotient(d, hn::Abs(z));
      const V below = hn::MulAdd(hn::Set(d, cap_ * -0x1p-39f), q, hn::Set(d, cap_lo_));
      beyond = hn::IfThenElse(far, beyond, hn::Add(beyond, below));
      const V rest = hn::NegMulAdd(q, hn::Set(d, 0x1p-40f), one);
      if constexpr (kSlopes) slope_beyond = hn::IfThenZeroElse(far, hn::Mul(hn::Mul(q, hn::Set(d, 0x1p-38f)), rest));
    }
    if constexpr (kSlopes) slope = hn::IfThenElse(inside, SlopeInside(d, u, p), slope_beyond);
    beyond = hn::IfThenElse(hn::Eq(z, minus_infinity), z, hn::CopySign(beyond, z));
    const V value = hn::IfThenElse(inside, Inside(d, z, u, p), beyond);
    return hn::IfThenElse(hn::IsNaN(z), z, value);
  }

  // Returns q 2^kLift.
  template <class D, class V>
  HWY_INLINE V Quotient(D d, V magnitude) const {
    const hn::RebindToUnsigned<D> du;
    const V round = hn::Set(d, static_cast<float>(ExpFormat<float>::kRound + kLift)), factor = hn::Set(d, exponent_);
    magnitude = hn::Min(magnitude, hn::Set(d, largest_));
    const V m = hn::MulAdd(magnitude, factor, round);
    V f = hn::MulSub(magnitude, factor, hn::Sub(m, round));
    f = hn::MulAdd(magnitude, hn::Set(d, exponent_lo_), f);
    V e = hn::Set(d, kExp2F32[6]);
    HWY_UNROLL(8)
    for (int i = 5; i >= 0; --i) e = hn::MulAdd(e, f, hn::Set(d, kExp2F32[i]));
    const auto exponent = hn::ShiftLeft<ExpFormat<float>::kMantissaBits>(hn::BitCast(du, m));
    e = hn::BitCast(d, hn::Add(hn::BitCast(du, e), exponent));
    return hn::Div(e, hn::MulAdd(e, hn::Set(d, 0x1p-40f), hn::Set(d, 1.0f)));
  }

  float scale_, scale_lo_, square_, largest_, exponent_, exponent_lo_, cap_, cap_lo_;
};

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
