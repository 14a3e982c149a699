// Binary cross-entropy, its gradients and the focal loss, element by element in double lanes.
//
// Without weights float32 takes the lanes of binary_plain-inl.h, with weights their exponentials, logarithms and
// quotients; what stands here is for the rest of it and for float64.
//
// With e = exp(-|z|), the larger side of z has softplus |z| + log1p(e) and sigmoid 1/(1+e), the smaller log1p(e) and
// e/(1+e): nothing cancels. For float32 all of it is plain double. For float64 every rounding but those of exp (0.79
// ULP) and log1p (0.78 ULP) is carried along in a second double and the factors' exponents are kept apart: on the
// inputs of tests/kernels/binary_test.cc losses are within 2.2 ULP, gradients 1.6, target gradients 3.0 (z near 0 with
// a pos_weight near -1, where the errors of both softplus add up).
//
// What float64 takes for 0: sigmoid and softplus below 2^-1532, and pos_weight times target below the normal range.
//
// Subnormal inputs count for what they are: the caller has set the floating-point mode that keeps them.
#if defined(XENT_SRC_KERNELS_BINARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_BINARY_INL_H_
#undef XENT_SRC_KERNELS_BINARY_INL_H_
#else
#define XENT_SRC_KERNELS_BINARY_INL_H_
#endif

#include <cstring>
#include <limits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/binary.h"
#include "kernels/binary_plain-inl.h"
#include "kernels/lanes-inl.h"
#include "kernels/load-inl.h"
#include "numbers/exp-inl.h"
#include "numbers/log-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Adjacent elements of a call as doubles, and what comes of them. Factors that are absent are not read.
struct BinaryStep {
  int64_t count, padded;  // `padded` is a multiple of kLanes
  bool has_pos_weight, has_weight[3], has_upstream;
  Wide inverse;     // of the denominator's mantissa
  double power[2];  // the product is 2^-exponent, the denominator's
  HWY_ALIGN double x[kBinaryStep], y[kBinaryStep], pos_weight[kBinaryStep], weight[3][kBinaryStep],
      upstream[kBinaryStep];
  HWY_ALIGN double loss[kBinaryStep], grad[kBinaryStep], target_grad[kBinaryStep];
  bool has_parts, has_far;  // of float32 lanes; far ones are left to double lanes
  LogisticParts parts;
};

// ---- numbers: hi, and for float64 (kWide) what its roundings lost in lo ----

template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Mask<D> IsFinite(D d, V x) {
  return hn::Eq(hn::Sub(x, x), hn::Zero(d));
}

template <bool kWide, class D, class V = hn::Vec<D>>
HWY_INLINE V SumOf(D d, V a, V a_lo, V b, V b_lo, V *lo) {
  const V s = hn::Add(a, b);
  if constexpr (kWide) {
    const V bb = hn::Sub(s, a);
    const V lost = hn::Add(hn::Sub(a, hn::Sub(s, bb)), hn::Sub(b, bb));
    *lo = hn::IfThenElseZero(IsFinite(d, s), hn::Add(lost, hn::Add(a_lo, b_lo)));
  }
  return s;
}

// 0 inf = 0.
template <bool kWide, class D, class V = hn::Vec<D>>
HWY_INLINE V ProductOf(D d, V a, V a_lo, V b, V b_lo, V *lo) {
  const V zero = hn::Zero(d);
  const V raw = hn::Mul(a, b);
  if constexpr (kWide) {
    const V lost = hn::Add(ProductError(d, a, b, raw), hn::Add(hn::Mul(a, b_lo), hn::Mul(a_lo, b)));
    *lo = hn::IfThenElseZero(IsFinite(d, raw), lost);
  }
  return hn::IfThenZeroElse(hn::Or(hn::Eq(a, zero), hn::Eq(b, zero)), raw);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Times(D d, V a, V b) {
  V unused = hn::Zero(d);
  return ProductOf<false>(d, a, unused, b, unused, &unused);
}

template <bool kWide, class D, class V = hn::Vec<D>>
HWY_INLINE V QuotientOf(D d, V a, V a_lo, V b, V b_lo, V *lo) {
  const V q = hn::Div(a, b);
  if constexpr (kWide) {
    const V product = hn::Mul(q, b);
    const V rest =
        hn::Sub(hn::Sub(hn::Sub(a, product), ProductError(d, q, b, product)), hn::Sub(hn::Mul(q, b_lo), a_lo));
    *lo = hn::IfThenElseZero(IsFinite(d, q), hn::Div(rest, b));
  }
  return q;
}

// 2^k for integers |k| <= 1021.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V PowerOf(D d, V k) {
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(d, hn::ShiftLeft<52>(hn::BitCast(du, hn::Add(k, hn::Set(d, 0x1p52 + 1023.0)))));
}

// x 2^k for integers k: infinite or (nearly) zero past the range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ScaledBy(D d, V x, V k) {
  const V limit = hn::Set(d, 2040.0);
  k = hn::Max(hn::Min(k, limit), hn::Neg(limit));
  const V round = hn::Set(d, 0x1.8p52);
  const V half = hn::Sub(hn::Add(hn::Mul(k, hn::Set(d, 0.5)), round), round);
  return hn::Mul(hn::Mul(x, PowerOf(d, half)), PowerOf(d, hn::Sub(k, half)));
}

// x = m 2^k with 1 <= |m| < 2; k = 0 for zero, infinity and NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V MantissaOf(D d, V x, V *k) {
  const hn::RebindToUnsigned<D> du;
  const auto tiny = hn::Lt(hn::Abs(x), hn::Set(d, 0x1p-1022));
  const auto bits = hn::BitCast(du, hn::IfThenElse(tiny, hn::Mul(x, hn::Set(d, 0x1p54)), x));
  const auto field = hn::And(hn::ShiftRight<52>(bits), hn::Set(du, uint64_t{0x7ff}));
  const auto plain = hn::AndNot(hn::Eq(x, hn::Zero(d)), IsFinite(d, x));
  const V biased =
      hn::Sub(hn::BitCast(d, hn::Or(field, hn::BitCast(du, hn::Set(d, 0x1p52)))), hn::Set(d, 0x1p52 + 1023.0));
  *k = hn::IfThenElseZero(plain, hn::Sub(biased, hn::IfThenElseZero(tiny, hn::Set(d, 54.0))));
  const auto mantissa = hn::Or(hn::And(bits, hn::Set(du, ~(uint64_t{0x7ff} << 52))), hn::Set(du, uint64_t{1023} << 52));
  return hn::IfThenElse(plain, hn::BitCast(d, mantissa), x);
}

// (hi + lo) 2^k times a factor.
template <bool kWide, class D, class V = hn::Vec<D>>
HWY_INLINE void MultiplyBy(D d, V factor, V factor_lo, V *hi, V *lo, V *k) {
  if constexpr (kWide) {
    V exponent = hn::Zero(d);
    factor = MantissaOf(d, factor, &exponent);
    factor_lo = ScaledBy(d, factor_lo, hn::Neg(exponent));
    *k = hn::Add(*k, exponent);
  }
  *hi = ProductOf<kWide>(d, *hi, *lo, factor, factor_lo, lo);
}

// e^t for -708 <= t <= 709; `lift` is added to the exponent of 2 (t may then be so much smaller).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpOf(D d, V t, double lift) {
  using F = ExpFormat<double>;
  V m = hn::Zero(d);
  const V p = ReducedExp(d, F::kRound + F::kExponentBias + lift, t, &m);
  return ScaleByExponent(d, p, m);
}

// ---- from the parts of an element to its outputs ----

// S 2^k w, G 2^k w u / denominator, H 2^h_k w u / denominator: loss and gradients of weight and upstream gradient 1 are
// S 2^k, G 2^k and H 2^h_k. The exponents count for float64 only.
template <bool kWide, class D, class V = hn::Vec<D>>
HWY_INLINE void StoreElements(D d, const BinaryTask &task, BinaryStep &step, int64_t i, V s, V s_lo, V g, V g_lo, V k,
                              V h, V h_lo, V h_k) {
  const V nan = hn::Set(d, std::numeric_limits<double>::quiet_NaN());
  const auto is_nan = hn::Or(hn::IsNaN(hn::Load(d, step.x + i)), hn::IsNaN(hn::Load(d, step.y + i)));
  V w = hn::Set(d, 1.0), w_lo = hn::Zero(d), w_k = hn::Zero(d);
  for (int part = 0; part < 3; ++part) {
    if (step.has_weight[part]) {
      MultiplyBy<kWide>(d, hn::Load(d, step.weight[part] + i), hn::Zero(d), &w, &w_lo, &w_k);
    }
  }
  if (task.losses.data != nullptr || task.sum) {
    V v = w, v_lo = w_lo, v_k = kWide ? hn::Add(w_k, k) : w_k;
    MultiplyBy<kWide>(d, s, s_lo, &v, &v_lo, &v_k);
    if constexpr (kWide) v = ScaledBy(d, hn::Add(v, v_lo), v_k);
    hn::Store(hn::IfThenElse(is_nan, nan, v), d, step.loss + i);
  }
  if (task.grad.data == nullptr && task.target_grad.data == nullptr) return;
  auto grad_is_nan = is_nan;
  if (step.has_upstream) {
    const V u = hn::Load(d, step.upstream + i);
    grad_is_nan = hn::Or(grad_is_nan, hn::IsNaN(u));
    MultiplyBy<kWide>(d, u, hn::Zero(d), &w, &w_lo, &w_k);
  }
  w = ProductOf<kWide>(d, w, w_lo, hn::Set(d, step.inverse.hi), hn::Set(d, step.inverse.lo), &w_lo);
  const auto scaled = [&](V v, V v_lo, V v_k) HWY_ATTR {
    if constexpr (!kWide) return hn::Mul(hn::Mul(v, hn::Set(d, step.power[0])), hn::Set(d, step.power[1]));
    const V exponent = hn::Set(d, static_cast<double>(-task.denominator.exponent));
    return ScaledBy(d, hn::Add(v, v_lo), hn::Add(v_k, exponent));
  };
  if (task.grad.data != nullptr) {
    V v = w, v_lo = w_lo, v_k = kWide ? hn::Add(w_k, k) : w_k;
    MultiplyBy<kWide>(d, g, g_lo, &v, &v_lo, &v_k);
    v = scaled(v, v_lo, v_k);
    hn::Store(hn::IfThenElse(grad_is_nan, nan, v), d, step.grad + i);
  }
  if (task.target_grad.data != nullptr) {
    V v = w, v_lo = w_lo, v_k = kWide ? hn::Add(w_k, h_k) : w_k;
    MultiplyBy<kWide>(d, h, h_lo, &v, &v_lo, &v_k);
    v = scaled(v, v_lo, v_k);
    hn::Store(hn::IfThenElse(grad_is_nan, nan, v), d, step.target_grad + i);
  }
}

// (1 - p_y)^gamma and what the focal loss makes of S, G and H; in double, for float32.
//
// q = 1 - p_y = y sigma(-z) + (1-y) sigma(z); its logarithm comes from p_y where q is near 1 and is a softplus where y
// is 0 or 1, so that gamma log q keeps its digits. q is 0 for infinite z only, where bce is 0 and takes the quotients
// along.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void MakeFocal(D d, const BinaryTask &task, V y, V sigma, V sigma_minus, V softplus, V softplus_minus, V *s,
                          V *g, V *h) {
  const V zero = hn::Zero(d), one = hn::Set(d, 1.0);
  const V infinity = hn::Set(d, std::numeric_limits<double>::infinity());
  const V gamma = hn::Set(d, task.gamma);
  const V other = hn::Sub(one, y);
  const V q = hn::Add(Times(d, y, sigma_minus), Times(d, other, sigma));
  const V p = hn::Add(Times(d, y, sigma), Times(d, other, sigma_minus));
  const auto is_one = hn::Eq(y, one), is_zero = hn::Eq(y, zero);

  V k = zero;
  V r = SplitExponent(d, hn::Abs(q), &k);
  r = hn::IfThenElse(hn::And(hn::Eq(k, zero), hn::Gt(q, zero)), hn::Neg(p), r);
  V log_q = LogOfParts(d, k, r, zero);
  log_q = hn::IfThenElse(hn::Eq(q, zero), hn::Neg(infinity), log_q);
  log_q = hn::IfThenElse(is_one, hn::Neg(softplus), hn::IfThenElse(is_zero, hn::Neg(softplus_minus), log_q));

  const V t = Times(d, gamma, log_q);
  V power = ExpOf(d, hn::Max(hn::Min(t, hn::Set(d, 709.0)), hn::Set(d, -708.0)), 0.0);
  power = hn::IfThenElse(hn::Gt(t, hn::Set(d, 709.0)), infinity, power);
  power = hn::IfThenZeroElse(hn::Eq(t, hn::Neg(infinity)), power);
  // y outside [0, 1] may make q negative.
  const bool integer = task.gamma >= 0x1p53 || task.gamma == static_cast<double>(static_cast<int64_t>(task.gamma));
  const bool odd = task.gamma < 0x1p53 && static_cast<int64_t>(task.gamma) % 2 != 0;
  const V negative = integer ? (odd ? hn::Neg(power) : power) : hn::Set(d, std::numeric_limits<double>::quiet_NaN());
  power = hn::IfThenElse(hn::Lt(q, zero), negative, power);
  power = hn::IfThenElse(hn::IsNaN(q), q, power);

  V alpha = one, alpha_slope = zero;
  if (task.has_alpha) {
    alpha = hn::Add(hn::Mul(hn::Set(d, task.alpha), y), hn::Mul(hn::Set(d, 1.0 - task.alpha), other));
    alpha_slope = hn::Set(d, 2.0 * task.alpha - 1.0);
  }
  const V weight = Times(d, alpha, power);
  const V ratio = hn::Div(hn::Mul(sigma, sigma_minus), q);
  const V slope = hn::Mul(gamma, hn::Mul(hn::Sub(other, y), ratio));
  const V loss_ratio = hn::IfThenZeroElse(hn::Eq(*s, zero), hn::Div(*s, q));
  const V target_slope = Times(d, hn::Mul(gamma, hn::Sub(sigma_minus, sigma)), loss_ratio);
  *h = hn::Add(Times(d, Times(d, alpha_slope, power), *s), Times(d, weight, hn::Add(*h, target_slope)));
  *g = Times(d, weight, hn::Add(*g, Times(d, slope, *s)));
  *s = Times(d, weight, *s);
}

// log(1 + e) for 0 <= e <= 1 from u = 1 + e as rounded and 1 / u: Log1pDouble without its division and special values.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Log1pOf(D d, V e, V u, V inverse) {
  V k = hn::Zero(d);
  V r = SplitExponent(d, u, &k);
  const auto near_one = hn::Eq(k, hn::Zero(d));
  r = hn::IfThenElse(near_one, e, r);
  const V lost = hn::Mul(hn::Sub(e, hn::Sub(u, hn::Set(d, 1.0))), inverse);
  const V v = LogOfParts(d, k, r, hn::IfThenZeroElse(near_one, lost));
  return hn::IfThenElse(hn::Lt(e, hn::Set(d, 0x1p-54)), e, v);
}

template <bool kWide>
void LogitsStep(const BinaryTask &task, BinaryStep &step) {
  const hn::CappedTag<double, kLanes> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const V zero = hn::Zero(d), one = hn::Set(d, 1.0);
  step.has_parts = HWY_NATIVE_FMA && !kWide && !task.focal;
  if constexpr (!kWide) {
    if (step.has_parts) {
      for (int64_t i = step.padded; i < kBinaryStep; ++i) step.x[i] = 0.0;
      step.has_far = !MakeParts(step.x, step.padded, step.parts);
    }
  }
  for (int64_t i = 0; i < step.padded; i += lanes) {
    const V z = hn::Load(d, step.x + i);
    const V y = hn::Load(d, step.y + i);
    const V pos_weight = step.has_pos_weight ? hn::Load(d, step.pos_weight + i) : one;
    const V magnitude = hn::Abs(z);
    const auto positive = hn::Gt(z, zero);

    // Float32 needs no exponential below 2^-1021, but one that is not 0. For float64 smaller ones, down to 2^-1532,
    // matter where the larger side's coefficient is as small and a huge weight or upstream gradient comes.
    constexpr double kLift = kWide ? 512.0 : 0.0;
    constexpr double kLowest = kWide ? -1062.0 : -708.0;
    constexpr double kAlone = 0x1p-256;
    const auto far = hn::And(hn::Gt(magnitude, hn::Set(d, 350.0)), hn::Le(magnitude, hn::Set(d, -kLowest)));
    V lifted = zero, big_lo = zero, small_lo = zero, total_lo = zero, long_lo = zero;
    V e = zero, big = zero, log1p = zero;
    if (kWide || !step.has_parts || step.has_far) {
      lifted = ExpOf(d, hn::Max(hn::Neg(magnitude), hn::Set(d, kLowest)), kLift);
      e = lifted;
      if constexpr (kWide) {
        e = hn::IfThenElseZero(hn::Le(magnitude, hn::Set(d, 708.0)), hn::Mul(lifted, hn::Set(d, 0x1p-512)));
      } else {
        e = hn::IfThenZeroElse(hn::Eq(magnitude, hn::Set(d, std::numeric_limits<double>::infinity())), e);
      }
      const V total = SumOf<kWide>(d, one, zero, e, zero, &total_lo);
      big = QuotientOf<kWide>(d, one, zero, total, total_lo, &big_lo);
      log1p = Log1pOf(d, e, total, big);
    }
    if constexpr (!kWide) {
      if (step.has_parts) {
        const auto near = hn::Le(magnitude, hn::Set(d, static_cast<double>(kFarthestPart)));
        const hn::Rebind<float, decltype(d)> df;
        const V exponential = hn::Mul(hn::PromoteTo(d, hn::Load(df, step.parts.exponential + i)),
                                      hn::Set(d, PowerOfTwo(-Format<float>::kBias)));
        // One step of Newton's from the quotient of float32.
        const V inverse = hn::PromoteTo(d, hn::Load(df, step.parts.inverse + i));
        const V rest = hn::NegMulAdd(hn::Add(one, exponential), inverse, one);
        e = hn::IfThenElse(near, exponential, e);
        big = hn::IfThenElse(near, hn::MulAdd(inverse, rest, inverse), big);
        const V ratio = hn::PromoteTo(d, hn::Load(df, step.parts.ratio + i));
        log1p = hn::IfThenElse(near, hn::Mul(exponential, ratio), log1p);
      }
    }
    const V small = ProductOf<kWide>(d, e, zero, big, big_lo, &small_lo);
    const V longer = SumOf<kWide>(d, magnitude, zero, log1p, zero, &long_lo);

    // Coefficients of softplus(z) and softplus(-z), then of the larger and the smaller one.
    V a_lo = zero, b_lo = zero;
    const V a = SumOf<kWide>(d, one, zero, hn::Neg(y), zero, &a_lo);
    const V b = ProductOf<kWide>(d, pos_weight, zero, y, zero, &b_lo);
    V c = hn::IfThenElse(positive, a, b), c_lo = hn::IfThenElse(positive, a_lo, b_lo);
    const V c_small = hn::IfThenElse(positive, b, a), c_small_lo = hn::IfThenElse(positive, b_lo, a_lo);
    V softplus_small = log1p, sigma_small = small, k = zero;
    if constexpr (kWide) {
      const auto tail = hn::And(far, hn::Lt(hn::Abs(c), hn::Set(d, kAlone)));
      const V scale = hn::IfThenElse(tail, hn::Set(d, 0x1p512), one);
      c = hn::Mul(c, scale);
      c_lo = hn::Mul(c_lo, scale);
      softplus_small = hn::IfThenElse(tail, lifted, log1p);
      sigma_small = hn::IfThenElse(tail, lifted, small);
      small_lo = hn::IfThenZeroElse(tail, small_lo);
      k = hn::IfThenElseZero(tail, hn::Set(d, -kLift));
    }

    V t_lo = zero, t_small_lo = zero, s_lo = zero, g_lo = zero, h_lo = zero;
    V t = ProductOf<kWide>(d, c, c_lo, longer, long_lo, &t_lo);
    V t_small = ProductOf<kWide>(d, c_small, c_small_lo, softplus_small, zero, &t_small_lo);
    V s = SumOf<kWide>(d, t, t_lo, t_small, t_small_lo, &s_lo);
    t = ProductOf<kWide>(d, c, c_lo, big, big_lo, &t_lo);
    t_small = ProductOf<kWide>(d, c_small, c_small_lo, sigma_small, small_lo, &t_small_lo);
    V g = SumOf<kWide>(d, t, t_lo, hn::Neg(t_small), hn::Neg(t_small_lo), &g_lo);
    V h = zero, h_k = zero;
    if (task.target_grad.data != nullptr) {
      const V minus_one = hn::Set(d, -1.0);
      c = hn::IfThenElse(positive, minus_one, pos_weight);
      softplus_small = log1p;
      if constexpr (kWide) {
        const auto tail = hn::And(far, hn::Lt(hn::Abs(c), hn::Set(d, kAlone)));
        c = hn::IfThenElse(tail, hn::Mul(c, hn::Set(d, 0x1p512)), c);
        softplus_small = hn::IfThenElse(tail, lifted, log1p);
        h_k = hn::IfThenElseZero(tail, hn::Set(d, -kLift));
      }
      t = ProductOf<kWide>(d, c, zero, longer, long_lo, &t_lo);
      t_small =
          ProductOf<kWide>(d, hn::IfThenElse(positive, pos_weight, minus_one), zero, softplus_small, zero, &t_small_lo);
      h = SumOf<kWide>(d, t, t_lo, t_small, t_small_lo, &h_lo);
      // softplus(-z) - softplus(z) is -z, however small.
      const auto equal = hn::Eq(pos_weight, one);
      h = hn::IfThenElse(equal, hn::Neg(z), h);
      h_lo = hn::IfThenZeroElse(equal, h_lo);
      h_k = hn::IfThenZeroElse(equal, h_k);
    }
    g = hn::IfThenElse(positive, g, hn::Neg(g));
    g_lo = hn::IfThenElse(positive, g_lo, hn::Neg(g_lo));
    if constexpr (!kWide) {
      if (task.focal) {
        MakeFocal(d, task, y, hn::IfThenElse(positive, big, small), hn::IfThenElse(positive, small, big),
                  hn::IfThenElse(positive, longer, log1p), hn::IfThenElse(positive, log1p, longer), &s, &g, &h);
      }
    }
    StoreElements<kWide>(d, task, step, i, s, s_lo, g, g_lo, k, h, h_lo, h_k);
  }
}

template <bool kWide>
void ProbabilitiesStep(const BinaryTask &task, BinaryStep &step) {
  const hn::CappedTag<double, kLanes> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const V zero = hn::Zero(d), one = hn::Set(d, 1.0);
  const V lowest = hn::Set(d, -100.0), smallest = hn::Set(d, 1e-12);
  for (int64_t i = 0; i < step.padded; i += lanes) {
    const V p = hn::Load(d, step.x + i);
    const V y = hn::Load(d, step.y + i);
    const V minus_p = hn::Neg(p), minus_y = hn::Neg(y);
    const V log_p = hn::Max(LogDouble(d, p), lowest);
    const V log_other = hn::Max(Log1pDouble(d, minus_p), lowest);
    V a_lo = zero, s_lo = zero, t_lo = zero, t_other_lo = zero, g_lo = zero, h_lo = zero, other_lo = zero;
    const V a = SumOf<kWide>(d, one, zero, minus_y, zero, &a_lo);
    const V t = ProductOf<kWide>(d, minus_y, zero, log_p, zero, &t_lo);
    const V t_other = ProductOf<kWide>(d, hn::Neg(a), hn::Neg(a_lo), log_other, zero, &t_other_lo);
    const V s = SumOf<kWide>(d, t, t_lo, t_other, t_other_lo, &s_lo);
    const V h = SumOf<kWide>(d, log_other, zero, hn::Neg(log_p), zero, &h_lo);
    const V difference = SumOf<kWide>(d, p, zero, minus_y, zero, &g_lo);
    const V other = SumOf<kWide>(d, one, zero, minus_p, zero, &other_lo);
    V product_lo = zero;
    const V product = ProductOf<kWide>(d, p, zero, other, other_lo, &product_lo);
    const auto small = hn::Lt(product, smallest);
    const V g = QuotientOf<kWide>(d, difference, g_lo, hn::IfThenElse(small, smallest, product),
                                  hn::IfThenZeroElse(small, product_lo), &g_lo);
    StoreElements<kWide>(d, task, step, i, s, s_lo, g, g_lo, zero, h, h_lo, zero);
  }
}

inline void WideFocalStep(const BinaryTask &task, BinaryStep &step) {
  for (int64_t i = 0; i < step.padded; ++i) {
    FocalElement element{step.x[i], step.y[i], step.has_pos_weight ? step.pos_weight[i] : 1.0, {}, 1.0};
    for (int part = 0; part < 3; ++part) element.weights[part] = step.has_weight[part] ? step.weight[part][i] : 1.0;
    if (step.has_upstream) element.upstream = step.upstream[i];
    const FocalResult result = WideFocal(element, task);
    step.loss[i] = result.loss;
    step.grad[i] = result.grad;
    step.target_grad[i] = result.target_grad;
  }
}

// ---- from memory to steps and back ----

// Where an element lies: its block, its line in the block, its position in the line.
struct BinaryCursor {
  int64_t block, line, position;

  BinaryCursor(const BinaryLayout &layout, int64_t index)
      : block(index / layout.length / layout.lines),
        line(index / layout.length % layout.lines),
        position(index % layout.length) {}
};

// Calls piece(at, count, cursor) for the parts of lines that `count` elements from the cursor on are made of.
template <class Piece>
HWY_INLINE void ForEachPiece(const BinaryLayout &layout, BinaryCursor cursor, int64_t count, Piece piece) {
  for (int64_t at = 0; at < count;) {
    const int64_t n = HWY_MIN(count - at, layout.length - cursor.position);
    piece(at, n, cursor);
    at += n;
    cursor.position += n;
    if (cursor.position < layout.length) break;  // the last piece
    cursor.position = 0;
    if (++cursor.line == layout.lines) {
      cursor.line = 0;
      ++cursor.block;
    }
  }
}

// A step of kLanes-padded elements of one type in one piece.
template <class In>
void ToDoubles(const In *from, int64_t padded, double *to) {
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < padded; i += lanes) {
    const auto v = LoadAs(d, from + i);
    if constexpr (sizeof(In) == 8) {
      hn::Store(v, d, to + i);
    } else {
      const hn::RepartitionToWide<decltype(d)> dd;
      hn::Store(hn::PromoteLowerTo(dd, v), dd, to + i);
      hn::Store(hn::PromoteUpperTo(dd, v), dd, to + i + static_cast<int64_t>(hn::Lanes(dd)));
    }
  }
}

template <class In>
void ReadMatrix(const BinaryTask &task, const BinaryMatrix<const void *> &matrix, int64_t index, int64_t count,
                int64_t padded, double *to) {
  const BinaryLayout &layout = task.layout;
  const In *const data = static_cast<const In *>(matrix.data);
  if (matrix.stride == layout.length * layout.lines && count == padded) return ToDoubles(data + index, padded, to);
  HWY_ALIGN In copy[kBinaryStep] = {};
  ForEachPiece(layout, BinaryCursor(layout, index), count, [&](int64_t at, int64_t n, const BinaryCursor &c) {
    const In *const from = data + c.block * matrix.stride + c.line * layout.length + c.position;
    std::memcpy(static_cast<void *>(copy + at), from, static_cast<size_t>(n) * sizeof(In));
  });
  ToDoubles(copy, padded, to);
}

inline void ReadMatrix(const BinaryTask &task, Dtype dtype, const BinaryMatrix<const void *> &matrix, int64_t index,
                       int64_t count, int64_t padded, double *to) {
  switch (dtype) {
    case kF64:
      return ReadMatrix<double>(task, matrix, index, count, padded, to);
    case kBf16:
      return ReadMatrix<Bf16>(task, matrix, index, count, padded, to);
    case kF16:
      return ReadMatrix<F16>(task, matrix, index, count, padded, to);
    default:
      return ReadMatrix<float>(task, matrix, index, count, padded, to);
  }
}

// One value a column or a row.
template <class T, bool kColumns>
void ReadVector(const BinaryTask &task, const void *vector, int64_t index, int64_t count, int64_t padded, double *to) {
  const BinaryLayout &layout = task.layout;
  const T *const data = static_cast<const T *>(vector);
  HWY_ALIGN T copy[kBinaryStep] = {};
  ForEachPiece(layout, BinaryCursor(layout, index), count, [&](int64_t at, int64_t n, const BinaryCursor &c) {
    if (kColumns != layout.inner) {
      const T *const from = data + (kColumns ? c.position : c.block * layout.length + c.position);
      std::memcpy(copy + at, from, static_cast<size_t>(n) * sizeof(T));
    } else {
      const T value = data[kColumns ? c.line : c.block];
      for (int64_t i = 0; i < n; ++i) copy[at + i] = value;
    }
  });
  ToDoubles(copy, padded, to);
}

// To nearest even in one rounding: float rounded to odd, so that the rounding to half precision after it is the only
// one.
template <class In>
In NarrowDouble(double x) {
  float nearest = static_cast<float>(x);
  if constexpr (sizeof(In) == 2) {
    const double back = static_cast<double>(nearest);
    uint32_t bits = std::bit_cast<uint32_t>(nearest);
    if (back != x && x == x) {
      const bool away = (back < 0.0 ? -back : back) > (x < 0.0 ? -x : x);
      if (away) --bits;
      bits |= 1;
    }
    nearest = std::bit_cast<float>(bits);
  }
  return Narrow<In>(nearest);
}

// Rounds to the arithmetic type T, then to the storage type.
template <class T, class In>
void FromDoubles(const double *from, int64_t padded, In *to) {
  const Tag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < padded; i += lanes) {
    if constexpr (sizeof(T) == 8) {
      const auto v = FinishWithNan(d, hn::Load(d, from + i));
      if constexpr (sizeof(In) == 8) {
        StoreAs(d, v, to + i);
      } else {
        HWY_ALIGN double values[kLanes];
        hn::Store(v, d, values);
        for (int64_t k = 0; k < lanes; ++k) to[i + k] = NarrowDouble<In>(values[k]);
      }
    } else {
      const hn::RepartitionToWide<decltype(d)> dd;
      const hn::Half<decltype(d)> dh;
      const int64_t half = static_cast<int64_t>(hn::Lanes(dd));
      const auto lower = hn::DemoteTo(dh, hn::Load(dd, from + i));
      const auto upper = hn::DemoteTo(dh, hn::Load(dd, from + i + half));
      const auto v = FinishWithNan(d, hn::Combine(d, upper, lower));
      if constexpr (sizeof(In) == 8) {
        hn::StoreU(hn::PromoteLowerTo(dd, v), dd, to + i);
        hn::StoreU(hn::PromoteUpperTo(dd, v), dd, to + i + half);
      } else {
        StoreAs(d, v, to + i);
      }
    }
  }
}

template <class T, class In>
void WriteMatrix(const BinaryTask &task, const BinaryMatrix<void *> &matrix, int64_t index, int64_t count,
                 int64_t padded, const double *from, WideLanes<T> *sum) {
  const BinaryLayout &layout = task.layout;
  In *const data = static_cast<In *>(matrix.data);
  HWY_ALIGN In copy[kBinaryStep];
  const bool direct = sum == nullptr && matrix.stride == layout.length * layout.lines && count == padded;
  FromDoubles<T>(from, padded, direct ? data + index : copy);
  if constexpr (sizeof(In) == sizeof(T)) {
    const Tag<T> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t i = 0; sum != nullptr && i < padded; i += lanes) {
      AddToLanes(d, hn::Load(d, copy + i), i % kLanes, *sum);
    }
  }
  if (direct || data == nullptr) return;
  ForEachPiece(layout, BinaryCursor(layout, index), count, [&](int64_t at, int64_t n, const BinaryCursor &c) {
    In *const to = data + c.block * matrix.stride + c.line * layout.length + c.position;
    std::memcpy(static_cast<void *>(to), copy + at, static_cast<size_t>(n) * sizeof(In));
  });
}

template <class T>
void WriteMatrix(const BinaryTask &task, Dtype dtype, const BinaryMatrix<void *> &matrix, int64_t index, int64_t count,
                 int64_t padded, const double *from) {
  switch (dtype) {
    case kF64:
      return WriteMatrix<T, double>(task, matrix, index, count, padded, from, nullptr);
    case kBf16:
      return WriteMatrix<T, Bf16>(task, matrix, index, count, padded, from, nullptr);
    case kF16:
      return WriteMatrix<T, F16>(task, matrix, index, count, padded, from, nullptr);
    default:
      return WriteMatrix<T, float>(task, matrix, index, count, padded, from, nullptr);
  }
}

template <class T>
void ReadFactors(const BinaryTask &task, int64_t index, BinaryStep &step) {
  const int64_t count = step.count, padded = step.padded;
  constexpr Dtype kDtype = sizeof(T) == 8 ? kF64 : kF32;
  step.has_pos_weight = task.pos_weight != nullptr;
  step.has_weight[0] = task.element_weights.data != nullptr;
  step.has_weight[1] = task.row_weights != nullptr;
  step.has_weight[2] = task.class_weights != nullptr;
  step.has_upstream = task.upstream_kind != BinaryUpstream::kOne;
  if (step.has_pos_weight) ReadVector<T, true>(task, task.pos_weight, index, count, padded, step.pos_weight);
  if (step.has_weight[0]) ReadMatrix(task, kDtype, task.element_weights, index, count, padded, step.weight[0]);
  if (step.has_weight[1]) ReadVector<T, false>(task, task.row_weights, index, count, padded, step.weight[1]);
  if (step.has_weight[2]) ReadVector<T, true>(task, task.class_weights, index, count, padded, step.weight[2]);
  if (task.upstream_kind == BinaryUpstream::kElements) {
    ReadMatrix(task, kDtype, task.upstream, index, count, padded, step.upstream);
  } else if (task.upstream_kind == BinaryUpstream::kRows) {
    ReadVector<T, false>(task, task.upstream.data, index, count, padded, step.upstream);
  } else if (step.has_upstream) {
    const double value = static_cast<double>(*static_cast<const T *>(task.upstream.data));
    for (int64_t i = 0; i < padded; ++i) step.upstream[i] = value;
  }
}

// How much of a task float32 lanes do.
struct PlainTask {
  bool losses = false, grad = false;
  float scale = 0.0f, scale_lo = 0.0f;  // of the gradient

  PlainTask(const BinaryTask &task, Wide inverse) {
    if (!HWY_NATIVE_FMA || task.probabilities || task.focal || task.targets_dtype == kF64) return;
    if (task.pos_weight != nullptr || task.class_weights != nullptr || task.row_weights != nullptr) return;
    if (task.element_weights.data != nullptr) return;
    losses = true;
    if (task.upstream_kind != BinaryUpstream::kOne && task.upstream_kind != BinaryUpstream::kScalar) return;
    double factor = inverse.hi;
    if (task.upstream_kind == BinaryUpstream::kScalar) {
      factor *= static_cast<double>(*static_cast<const float *>(task.upstream.data));
    }
    factor = Scale(factor, -task.denominator.exponent);
    // A larger one would bring back what exponentials below the normal range are worth.
    const double magnitude = factor < 0.0 ? -factor : factor;
    grad = magnitude >= 0x1p-100 && magnitude <= 1.0;
    if (!grad) return;
    scale = static_cast<float>(factor);
    scale_lo = static_cast<float>(factor - static_cast<double>(scale));
  }
};

// A step in which the float32 lanes do what they can, LogitsStep the rest.
inline void PlainStep(const BinaryTask &task, const PlainTask &plain, BinaryStep &step) {
  HWY_ALIGN float x[kBinaryStep] = {}, y[kBinaryStep] = {}, losses[kBinaryStep], grad[kBinaryStep];
  bool usual[kBinaryStep];
  bool all = plain.grad || task.grad.data == nullptr;
  for (int64_t i = 0; i < step.padded; ++i) {
    usual[i] = step.x[i] == step.x[i] && step.y[i] - step.y[i] == 0.0;
    all = all && usual[i];
    x[i] = usual[i] ? static_cast<float>(step.x[i]) : 0.0f;
    y[i] = usual[i] ? static_cast<float>(step.y[i]) : 0.0f;
  }
  if (!all || task.target_grad.data != nullptr) LogitsStep<false>(task, step);
  const bool has_grad = plain.grad && task.grad.data != nullptr;
  const int64_t four = 4 * static_cast<int64_t>(hn::Lanes(Tag<float>()));
  const PlainOutputs<float> out{plain.scale, plain.scale_lo, losses, has_grad ? grad : nullptr, nullptr, false, false};
  PlainElements(out, x, y, (step.padded + four - 1) / four * four);
  for (int64_t i = 0; i < step.padded; ++i) {
    if (!usual[i]) continue;
    step.loss[i] = static_cast<double>(losses[i]);
    if (has_grad) step.grad[i] = static_cast<double>(grad[i]);
  }
}

// The elements from `index` on, where they are adjacent in memory; the number done.
template <class In, class Y>
int64_t PlainInMemory(const BinaryTask &task, const PlainTask &plain, int64_t index, int64_t end,
                      WideLanes<float> &sum) {
  float *const losses = task.losses.data == nullptr ? nullptr : static_cast<float *>(task.losses.data) + index;
  In *const grad = task.grad.data == nullptr ? nullptr : static_cast<In *>(task.grad.data) + index;
  // Streaming stores want aligned vectors. Gradients of half precision keep the arithmetic busier than the memory.
  const auto streams = [&](const void *p) {
    return p != nullptr && task.large && reinterpret_cast<uintptr_t>(p) % (kLanes * sizeof(float)) == 0;
  };
  const PlainOutputs<In> out{plain.scale,
                             plain.scale_lo,
                             losses,
                             grad,
                             task.sum ? &sum : nullptr,
                             streams(losses),
                             task.grad.data != task.input.data && streams(grad)};
  return PlainElements(out, static_cast<const In *>(task.input.data) + index,
                       static_cast<const Y *>(task.targets.data) + index, end - index);
}

using PlainInMemoryFunction = int64_t (*)(const BinaryTask &, const PlainTask &, int64_t, int64_t, WideLanes<float> &);

// Null: step by step.
inline PlainInMemoryFunction PlainInMemoryOf(const BinaryTask &task, const PlainTask &plain) {
  const int64_t block = task.layout.length * task.layout.lines;
  const auto adjacent = [&](const auto &matrix) { return matrix.data == nullptr || matrix.stride == block; };
  if (!plain.losses || (task.grad.data != nullptr && !plain.grad) || task.target_grad.data != nullptr) return nullptr;
  if (!adjacent(task.input) || !adjacent(task.targets) || !adjacent(task.losses) || !adjacent(task.grad)) {
    return nullptr;
  }
  const bool same = task.targets_dtype == task.dtype;
  if (!same && task.targets_dtype != kF32) return nullptr;
  switch (task.dtype) {
    case kBf16:
      return same ? PlainInMemory<Bf16, Bf16> : PlainInMemory<Bf16, float>;
    case kF16:
      return same ? PlainInMemory<F16, F16> : PlainInMemory<F16, float>;
    default:
      return PlainInMemory<float, float>;
  }
}

template <class T>
void BinaryElementsStep(const BinaryTask &task, [[maybe_unused]] const PlainTask &plain, int64_t index,
                        BinaryStep &step, WideLanes<T> &sum) {
  constexpr bool kWide = sizeof(T) == 8;
  const int64_t count = step.count, padded = step.padded;
  ReadMatrix(task, task.dtype, task.input, index, count, padded, step.x);
  ReadMatrix(task, task.targets_dtype, task.targets, index, count, padded, step.y);
  ReadFactors<T>(task, index, step);
  if (task.probabilities) {
    ProbabilitiesStep<kWide>(task, step);
  } else if (kWide && task.focal) {
    WideFocalStep(task, step);
  } else if (!kWide && plain.losses) {
    PlainStep(task, plain, step);
  } else {
    LogitsStep<kWide>(task, step);
  }
  if (task.losses.data != nullptr || task.sum) {
    for (int64_t i = count; i < padded; ++i) step.loss[i] = 0.0;
    WriteMatrix<T, T>(task, task.losses, index, count, padded, step.loss, &sum);
  }
  if (task.grad.data != nullptr) WriteMatrix<T>(task, task.dtype, task.grad, index, count, padded, step.grad);
  if (task.target_grad.data != nullptr) {
    WriteMatrix<T>(task, task.targets_dtype, task.target_grad, index, count, padded, step.target_grad);
  }
}

template <class T>
Wide BinaryElements(const BinaryTask &task, int64_t begin, int64_t end) {
  WideLanes<T> sum;
  BinaryStep step;
  step.inverse = Divide(Wide{1.0, 0.0}, Wide{task.denominator.mantissa, 0.0});
  const int64_t power = HWY_MAX(int64_t{-2040}, HWY_MIN(-task.denominator.exponent, int64_t{2040}));
  step.power[0] = PowerOfTwo(power / 2);
  step.power[1] = PowerOfTwo(power - power / 2);
  const PlainTask plain(task, step.inverse);
  PlainInMemoryFunction in_memory = nullptr;
  if constexpr (sizeof(T) == 4) in_memory = PlainInMemoryOf(task, plain);
  for (int64_t index = begin; index < end; index += kBinaryStep) {
    if constexpr (sizeof(T) == 4) {
      if (in_memory != nullptr) index += in_memory(task, plain, index, end, sum);
      if (index == end) break;
    }
    step.count = HWY_MIN(end - index, kBinaryStep);
    step.padded = (step.count + kLanes - 1) / kLanes * kLanes;
    BinaryElementsStep<T>(task, plain, index, step, sum);
  }
  if (task.large) hwy::FlushStream();
  return sum.Total();
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
