// Binary cross-entropy, its gradients and the focal loss, element by element in double lanes.
//
// Plain float32, without weights, takes the float32 lanes of binary_plain-inl.h; with weights float32 takes their
// exponentials, logarithms and quotients. The formulas here are for the rest of float32 and for float64.
//
// With e = exp(-|z|), the larger side of z has softplus |z| + log1p(e) and sigmoid 1/(1+e), the smaller log1p(e) and
// e/(1+e): nothing cancels. float32 is computed in double. float64 is computed in pairs: every rounding but those of
// exp (0.79 ULP) and log1p (0.78 ULP) is carried along in a second double, and the factors' exponents are kept apart.
// On the inputs of tests/kernels/binary_test.cc losses are within 2.2 ULP, gradients 1.6, target gradients 3.0 (z near
// 0 with a pos_weight near -1, where the errors of both softplus add up).
//
// float64 takes for 0: sigmoid and softplus below 2^-1532, and pos_weight times target below the normal range.
//
// Subnormal inputs count for what they are: the caller has set the floating-point mode that keeps them.
#if defined(XENT_SRC_KERNELS_BINARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_BINARY_INL_H_
#undef XENT_SRC_KERNELS_BINARY_INL_H_
#else
#define XENT_SRC_KERNELS_BINARY_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/binary.h"
#include "kernels/binary_plain-inl.h"
#include "kernels/double_lanes-inl.h"
#include "kernels/lanes-inl.h"
#include "numbers/exp-inl.h"
#include "numbers/log-inl.h"
#include "numbers/pairs-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Elements [index, index + count) of a call as doubles, and their results. A factor that is absent is not read.
struct BinaryStep {
  int64_t index, count, padded;  // `padded` is `count` rounded up to a multiple of kLanes
  bool has_pos_weight, has_weight[3], has_upstream;
  Wide inverse;     // of the denominator's mantissa
  double power[2];  // their product is 2^-exponent, the denominator's
  HWY_ALIGN double x[kBinaryStep], y[kBinaryStep], pos_weight[kBinaryStep], weight[3][kBinaryStep],
      upstream[kBinaryStep];
  HWY_ALIGN double loss[kBinaryStep], grad[kBinaryStep], target_grad[kBinaryStep];
  bool has_parts, has_far;  // parts are there for all elements but far ones, whose parts double lanes make
  LogisticParts parts;
};

// ---- pairs: a high part, and, for results of type float64, in a second number what its roundings lost ----
// A result that is not finite has the low part 0.

template <class T>
HWY_INLINE Doubles PairSum(Doubles a, Doubles a_lo, Doubles b, Doubles b_lo, Doubles *lo) {
  const DoubleTag d;
  if constexpr (!kKeepsLow<T>) return hn::Add(a, b);
  Doubles lost = hn::Zero(d);
  const Doubles sum = ExactSum(d, a, b, &lost);
  *lo = hn::IfThenElseZero(hn::IsFinite(sum), hn::Add(lost, hn::Add(a_lo, b_lo)));
  return sum;
}

// Returns a b, 0 where a factor is 0, whatever the other.
HWY_INLINE Doubles ProductOrZero(Doubles a, Doubles b) {
  const DoubleTag d;
  return hn::IfThenZeroElse(hn::Or(hn::Eq(a, hn::Zero(d)), hn::Eq(b, hn::Zero(d))), hn::Mul(a, b));
}

template <class T>
HWY_INLINE Doubles PairProduct(Doubles a, Doubles a_lo, Doubles b, Doubles b_lo, Doubles *lo) {
  if constexpr (kKeepsLow<T>) {
    const DoubleTag d;
    const Doubles product = hn::Mul(a, b);
    const Doubles lost = hn::Add(ProductError(d, a, b, product), hn::Add(hn::Mul(a, b_lo), hn::Mul(a_lo, b)));
    *lo = hn::IfThenElseZero(hn::IsFinite(product), lost);
  }
  return ProductOrZero(a, b);
}

template <class T>
HWY_INLINE Doubles PairQuotient(Doubles a, Doubles a_lo, Doubles b, Doubles b_lo, Doubles *lo) {
  const DoubleTag d;
  const Doubles q = hn::Div(a, b);
  if constexpr (kKeepsLow<T>) {
    const Doubles product = hn::Mul(q, b);
    const Doubles rest =
        hn::Sub(hn::Sub(hn::Sub(a, product), ProductError(d, q, b, product)), hn::Sub(hn::Mul(q, b_lo), a_lo));
    *lo = hn::IfThenElseZero(hn::IsFinite(q), hn::Div(rest, b));
  }
  return q;
}

// Returns x 2^k for any integers k: infinite or (nearly) zero past the range.
HWY_INLINE Doubles ScaledByAny(Doubles x, Doubles k) {
  const DoubleTag d;
  const Doubles limit = hn::Set(d, 2040.0);
  return ScaledBy(d, x, hn::Max(hn::Min(k, limit), hn::Neg(limit)));
}

// Returns m of x = m 2^k with 1 <= |m| < 2; k = 0 for zero, infinity and NaN.
HWY_INLINE Doubles MantissaOf(Doubles x, Doubles *k) {
  const DoubleTag d;
  const hn::RebindToUnsigned<DoubleTag> du;
  const auto tiny = hn::Lt(hn::Abs(x), hn::Set(d, 0x1p-1022));
  const Doubles normal = hn::IfThenElse(tiny, hn::Mul(x, hn::Set(d, 0x1p54)), x);
  const auto splits = hn::AndNot(hn::Eq(x, hn::Zero(d)), hn::IsFinite(x));
  *k = hn::IfThenElseZero(splits, hn::Sub(ExponentsOf(d, normal), hn::IfThenElseZero(tiny, hn::Set(d, 54.0))));
  const auto fraction = hn::And(hn::BitCast(du, normal), hn::Set(du, ~(uint64_t{0x7ff} << 52)));
  const auto mantissa = hn::Or(fraction, hn::Set(du, uint64_t{1023} << 52));
  return hn::IfThenElse(splits, hn::BitCast(d, mantissa), x);
}

// Multiplies (hi + lo) 2^k by a factor. k counts for float64 only.
template <class T>
HWY_INLINE void MultiplyBy(Doubles factor, Doubles factor_lo, Doubles *hi, Doubles *lo, Doubles *k) {
  if constexpr (kKeepsLow<T>) {
    const DoubleTag d;
    Doubles exponent = hn::Zero(d);
    factor = MantissaOf(factor, &exponent);
    factor_lo = ScaledByAny(factor_lo, hn::Neg(exponent));
    *k = hn::Add(*k, exponent);
  }
  *hi = PairProduct<T>(*hi, *lo, factor, factor_lo, lo);
}

// Returns e^t 2^lift where that is a normal number.
HWY_INLINE Doubles LiftedExp(Doubles t, double lift) {
  const DoubleTag d;
  using F = ExpFormat<double>;
  Doubles m = hn::Zero(d);
  const Doubles p = ReducedExp(d, F::kRound + F::kExponentBias + lift, t, hn::Zero(d), &m);
  return ScaleByExponent(d, p, m);
}

// ---- from the parts of an element to its outputs ----

// Stores the loss s 2^k w, the gradient g 2^k w u / denominator and the target's gradient h 2^h_k w u / denominator, w
// being the product of the weights and u the upstream gradient. The exponents count for float64 only.
// More than 8 parameters: vectors may be sizeless (SVE), and those cannot stand in a struct.
template <class T>
HWY_INLINE void StoreElements(const BinaryTask &task, BinaryStep &step, int64_t i, Doubles s, Doubles s_lo, Doubles g,
                              Doubles g_lo, Doubles k, Doubles h, Doubles h_lo, Doubles h_k) {
  const DoubleTag d;
  const Doubles nan = hn::Set(d, kNan);
  const auto is_nan = hn::Or(hn::IsNaN(hn::Load(d, step.x + i)), hn::IsNaN(hn::Load(d, step.y + i)));
  Doubles w = hn::Set(d, 1.0), w_lo = hn::Zero(d), w_k = hn::Zero(d);
  for (int part = 0; part < 3; ++part) {
    if (step.has_weight[part]) {
      MultiplyBy<T>(hn::Load(d, step.weight[part] + i), hn::Zero(d), &w, &w_lo, &w_k);
    }
  }
  if (task.losses.data != nullptr || task.sum) {
    Doubles v = w, v_lo = w_lo, v_k = w_k;
    MultiplyBy<T>(s, s_lo, &v, &v_lo, &v_k);
    if constexpr (kKeepsLow<T>) v = ScaledByAny(hn::Add(v, v_lo), hn::Add(v_k, k));
    hn::Store(hn::IfThenElse(is_nan, nan, v), d, step.loss + i);
  }
  if (task.grad.data == nullptr && task.target_grad.data == nullptr) return;
  auto grad_is_nan = is_nan;
  if (step.has_upstream) {
    const Doubles u = hn::Load(d, step.upstream + i);
    grad_is_nan = hn::Or(grad_is_nan, hn::IsNaN(u));
    MultiplyBy<T>(u, hn::Zero(d), &w, &w_lo, &w_k);
  }
  w = PairProduct<T>(w, w_lo, hn::Set(d, step.inverse.hi), hn::Set(d, step.inverse.lo), &w_lo);
  const auto store_gradient = [&](Doubles value, Doubles value_lo, Doubles value_k, double *out) HWY_ATTR {
    Doubles v = w, v_lo = w_lo, v_k = w_k;
    MultiplyBy<T>(value, value_lo, &v, &v_lo, &v_k);
    if constexpr (kKeepsLow<T>) {
      const Doubles exponent = hn::Set(d, static_cast<double>(-task.denominator.exponent));
      v = ScaledByAny(hn::Add(v, v_lo), hn::Add(hn::Add(v_k, value_k), exponent));
    } else {
      v = hn::Mul(hn::Mul(v, hn::Set(d, step.power[0])), hn::Set(d, step.power[1]));
    }
    hn::Store(hn::IfThenElse(grad_is_nan, nan, v), d, out + i);
  };
  if (task.grad.data != nullptr) store_gradient(g, g_lo, k, step.grad);
  if (task.target_grad.data != nullptr) store_gradient(h, h_lo, h_k, step.target_grad);
}

// Replaces s, g and h of the binary cross-entropy by those of the focal loss, the factor being (1 - p_y)^gamma; in
// double, for float32.
//
// q = 1 - p_y = y sigma(-z) + (1-y) sigma(z). Its logarithm comes from p_y where q is near 1 and is minus a softplus
// where y is 0 or 1, so that gamma log q keeps its digits. q is 0 for infinite z only, where bce is 0, and so are the
// quotients by q.
// More than 8 parameters: see StoreElements.
HWY_INLINE void MakeFocal(const BinaryTask &task, Doubles y, Doubles sigma, Doubles sigma_minus, Doubles softplus,
                          Doubles softplus_minus, Doubles *s, Doubles *g, Doubles *h) {
  const DoubleTag d;
  const Doubles zero = hn::Zero(d), one = hn::Set(d, 1.0);
  const Doubles infinity = hn::Set(d, kInfinity);
  const Doubles gamma = hn::Set(d, task.gamma);
  const Doubles other = hn::Sub(one, y);
  const Doubles q = hn::Add(ProductOrZero(y, sigma_minus), ProductOrZero(other, sigma));
  const Doubles p = hn::Add(ProductOrZero(y, sigma), ProductOrZero(other, sigma_minus));
  const auto is_one = hn::Eq(y, one), is_zero = hn::Eq(y, zero);

  Doubles k = zero;
  Doubles r = SplitExponent(d, hn::Abs(q), &k);
  r = hn::IfThenElse(hn::And(hn::Eq(k, zero), hn::Gt(q, zero)), hn::Neg(p), r);
  Doubles log_q = LogOfParts(d, k, r, zero);
  log_q = hn::IfThenElse(hn::Eq(q, zero), hn::Neg(infinity), log_q);
  log_q = hn::IfThenElse(is_one, hn::Neg(softplus), hn::IfThenElse(is_zero, hn::Neg(softplus_minus), log_q));

  const Doubles t = ProductOrZero(gamma, log_q);
  Doubles power = LiftedExp(hn::Max(hn::Min(t, hn::Set(d, 709.0)), hn::Set(d, -708.0)), 0.0);
  power = hn::IfThenElse(hn::Gt(t, hn::Set(d, 709.0)), infinity, power);
  power = hn::IfThenZeroElse(hn::Eq(t, hn::Neg(infinity)), power);
  // y outside [0, 1] may make q negative.
  const bool integer = task.gamma >= 0x1p53 || task.gamma == static_cast<double>(static_cast<int64_t>(task.gamma));
  const bool odd = task.gamma < 0x1p53 && static_cast<int64_t>(task.gamma) % 2 != 0;
  const Doubles negative = integer ? (odd ? hn::Neg(power) : power) : hn::Set(d, kNan);
  power = hn::IfThenElse(hn::Lt(q, zero), negative, power);
  power = hn::IfThenElse(hn::IsNaN(q), q, power);

  Doubles alpha = one, alpha_slope = zero;
  if (task.has_alpha) {
    alpha = hn::Add(hn::Mul(hn::Set(d, task.alpha), y), hn::Mul(hn::Set(d, 1.0 - task.alpha), other));
    alpha_slope = hn::Set(d, 2.0 * task.alpha - 1.0);
  }
  const Doubles weight = ProductOrZero(alpha, power);
  const Doubles ratio = hn::Div(hn::Mul(sigma, sigma_minus), q);
  const Doubles slope = hn::Mul(gamma, hn::Mul(hn::Sub(other, y), ratio));
  const Doubles loss_ratio = hn::IfThenZeroElse(hn::Eq(*s, zero), hn::Div(*s, q));
  const Doubles target_slope = ProductOrZero(hn::Mul(gamma, hn::Sub(sigma_minus, sigma)), loss_ratio);
  *h = hn::Add(ProductOrZero(ProductOrZero(alpha_slope, power), *s), ProductOrZero(weight, hn::Add(*h, target_slope)));
  *g = ProductOrZero(weight, hn::Add(*g, ProductOrZero(slope, *s)));
  *s = ProductOrZero(weight, *s);
}

// Returns log(1 + e) for 0 <= e <= 1 from u = 1 + e as rounded and 1 / u: Log1pDouble without its division and special
// values.
HWY_INLINE Doubles Log1pFromSum(Doubles e, Doubles u, Doubles inverse) {
  const DoubleTag d;
  Doubles k = hn::Zero(d);
  Doubles r = SplitExponent(d, u, &k);
  const auto near_one = hn::Eq(k, hn::Zero(d));
  r = hn::IfThenElse(near_one, e, r);
  const Doubles lost = hn::Mul(hn::Sub(e, hn::Sub(u, hn::Set(d, 1.0))), inverse);
  const Doubles v = LogOfParts(d, k, r, hn::IfThenZeroElse(near_one, lost));
  return hn::IfThenElse(hn::Lt(e, hn::Set(d, 0x1p-54)), e, v);
}

// Makes the results of a step whose inputs are logits.
template <class T>
void LogitsStep(const BinaryTask &task, BinaryStep &step) {
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Doubles zero = hn::Zero(d), one = hn::Set(d, 1.0);
  step.has_parts = HWY_NATIVE_FMA && !kKeepsLow<T> && !task.focal;
  if constexpr (!kKeepsLow<T>) {
    if (step.has_parts) {
      for (int64_t i = step.padded; i < kBinaryStep; ++i) step.x[i] = 0.0;
      step.has_far = !MakeParts(step.x, step.padded, step.parts);
    }
  }
  for (int64_t i = 0; i < step.padded; i += lanes) {
    const Doubles z = hn::Load(d, step.x + i);
    const Doubles y = hn::Load(d, step.y + i);
    const Doubles pos_weight = step.has_pos_weight ? hn::Load(d, step.pos_weight + i) : one;
    const Doubles magnitude = hn::Abs(z);
    const auto positive = hn::Gt(z, zero);

    // e, 1 / (1 + e) (big), log(1 + e) and, for float64, e 2^512 (lifted). float32 needs no exponential below 2^-1021,
    // but one that is not 0. For float64 smaller ones, down to 2^-1532, count where the larger side's coefficient is as
    // small and a weight or an upstream gradient is huge.
    constexpr double kLift = kKeepsLow<T> ? 512.0 : 0.0;
    constexpr double kLowest = kKeepsLow<T> ? -1062.0 : -708.0;
    constexpr double kAlone = 0x1p-256;
    const auto far = hn::And(hn::Gt(magnitude, hn::Set(d, 350.0)), hn::Le(magnitude, hn::Set(d, -kLowest)));
    Doubles lifted = zero, big_lo = zero, small_lo = zero, total_lo = zero, long_lo = zero;
    Doubles e = zero, big = zero, log1p = zero;
    if (kKeepsLow<T> || !step.has_parts || step.has_far) {
      lifted = LiftedExp(hn::Max(hn::Neg(magnitude), hn::Set(d, kLowest)), kLift);
      e = lifted;
      if constexpr (kKeepsLow<T>) {
        e = hn::IfThenElseZero(hn::Le(magnitude, hn::Set(d, 708.0)), hn::Mul(lifted, hn::Set(d, 0x1p-512)));
      } else {
        e = hn::IfThenZeroElse(hn::Eq(magnitude, hn::Set(d, kInfinity)), e);
      }
      const Doubles total = PairSum<T>(one, zero, e, zero, &total_lo);
      big = PairQuotient<T>(one, zero, total, total_lo, &big_lo);
      log1p = Log1pFromSum(e, total, big);
    }
    if constexpr (!kKeepsLow<T>) {
      if (step.has_parts) {
        const auto near = hn::Le(magnitude, hn::Set(d, static_cast<double>(kFarthestPart)));
        const hn::Rebind<float, DoubleTag> df;
        const Doubles exponential = hn::Mul(hn::PromoteTo(d, hn::Load(df, step.parts.exponential + i)),
                                            hn::Set(d, PowerOfTwo(-Format<float>::kBias)));
        // One step of Newton's method from the quotient of float32.
        const Doubles inverse = hn::PromoteTo(d, hn::Load(df, step.parts.inverse + i));
        const Doubles rest = hn::NegMulAdd(hn::Add(one, exponential), inverse, one);
        e = hn::IfThenElse(near, exponential, e);
        big = hn::IfThenElse(near, hn::MulAdd(inverse, rest, inverse), big);
        const Doubles ratio = hn::PromoteTo(d, hn::Load(df, step.parts.ratio + i));
        log1p = hn::IfThenElse(near, hn::Mul(exponential, ratio), log1p);
      }
    }
    // Of the smaller side the sigmoid, of the larger side the softplus.
    const Doubles small = PairProduct<T>(e, zero, big, big_lo, &small_lo);
    const Doubles longer = PairSum<T>(magnitude, zero, log1p, zero, &long_lo);

    // The coefficients of softplus(z) and softplus(-z), then of the larger and of the smaller side.
    Doubles a_lo = zero, b_lo = zero;
    const Doubles a = PairSum<T>(one, zero, hn::Neg(y), zero, &a_lo);
    const Doubles b = PairProduct<T>(pos_weight, zero, y, zero, &b_lo);
    Doubles c = hn::IfThenElse(positive, a, b), c_lo = hn::IfThenElse(positive, a_lo, b_lo);
    const Doubles c_small = hn::IfThenElse(positive, b, a), c_small_lo = hn::IfThenElse(positive, b_lo, a_lo);
    Doubles softplus_small = log1p, sigma_small = small, k = zero;
    if constexpr (kKeepsLow<T>) {
      // In the far tail both are e; where the larger side's coefficient is small too, all is computed times 2^512.
      const auto tail = hn::And(far, hn::Lt(hn::Abs(c), hn::Set(d, kAlone)));
      const Doubles scale = hn::IfThenElse(tail, hn::Set(d, 0x1p512), one);
      c = hn::Mul(c, scale);
      c_lo = hn::Mul(c_lo, scale);
      softplus_small = hn::IfThenElse(tail, lifted, log1p);
      sigma_small = hn::IfThenElse(tail, lifted, small);
      small_lo = hn::IfThenZeroElse(tail, small_lo);
      k = hn::IfThenElseZero(tail, hn::Set(d, -kLift));
    }

    // The sums of both sides: the loss, the gradient for positive z, the gradient for the target.
    Doubles t_lo = zero, t_small_lo = zero, s_lo = zero, g_lo = zero, h_lo = zero;
    Doubles t = PairProduct<T>(c, c_lo, longer, long_lo, &t_lo);
    Doubles t_small = PairProduct<T>(c_small, c_small_lo, softplus_small, zero, &t_small_lo);
    Doubles s = PairSum<T>(t, t_lo, t_small, t_small_lo, &s_lo);
    t = PairProduct<T>(c, c_lo, big, big_lo, &t_lo);
    t_small = PairProduct<T>(c_small, c_small_lo, sigma_small, small_lo, &t_small_lo);
    Doubles g = PairSum<T>(t, t_lo, hn::Neg(t_small), hn::Neg(t_small_lo), &g_lo);
    Doubles h = zero, h_k = zero;
    if (task.target_grad.data != nullptr) {
      const Doubles minus_one = hn::Set(d, -1.0);
      c = hn::IfThenElse(positive, minus_one, pos_weight);
      softplus_small = log1p;
      if constexpr (kKeepsLow<T>) {
        const auto tail = hn::And(far, hn::Lt(hn::Abs(c), hn::Set(d, kAlone)));
        c = hn::IfThenElse(tail, hn::Mul(c, hn::Set(d, 0x1p512)), c);
        softplus_small = hn::IfThenElse(tail, lifted, log1p);
        h_k = hn::IfThenElseZero(tail, hn::Set(d, -kLift));
      }
      t = PairProduct<T>(c, zero, longer, long_lo, &t_lo);
      t_small =
          PairProduct<T>(hn::IfThenElse(positive, pos_weight, minus_one), zero, softplus_small, zero, &t_small_lo);
      h = PairSum<T>(t, t_lo, t_small, t_small_lo, &h_lo);
      // Without a pos_weight softplus(-z) - softplus(z) is -z, however small.
      const auto equal = hn::Eq(pos_weight, one);
      h = hn::IfThenElse(equal, hn::Neg(z), h);
      h_lo = hn::IfThenZeroElse(equal, h_lo);
      h_k = hn::IfThenZeroElse(equal, h_k);
    }
    g = hn::IfThenElse(positive, g, hn::Neg(g));
    g_lo = hn::IfThenElse(positive, g_lo, hn::Neg(g_lo));
    if constexpr (!kKeepsLow<T>) {
      if (task.focal) {
        MakeFocal(task, y, hn::IfThenElse(positive, big, small), hn::IfThenElse(positive, small, big),
                  hn::IfThenElse(positive, longer, log1p), hn::IfThenElse(positive, log1p, longer), &s, &g, &h);
      }
    }
    StoreElements<T>(task, step, i, s, s_lo, g, g_lo, k, h, h_lo, h_k);
  }
}

// Makes the results of a step whose inputs are probabilities. Logarithms are at least -100, the gradient's p (1-p) at
// least 1e-12.
template <class T>
void ProbabilitiesStep(const BinaryTask &task, BinaryStep &step) {
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Doubles zero = hn::Zero(d), one = hn::Set(d, 1.0);
  const Doubles lowest = hn::Set(d, -100.0), smallest = hn::Set(d, 1e-12);
  for (int64_t i = 0; i < step.padded; i += lanes) {
    const Doubles p = hn::Load(d, step.x + i);
    const Doubles y = hn::Load(d, step.y + i);
    const Doubles minus_p = hn::Neg(p), minus_y = hn::Neg(y);
    const Doubles log_p = hn::Max(LogDouble(d, p), lowest);
    const Doubles log_other = hn::Max(Log1pDouble(d, minus_p), lowest);
    Doubles a_lo = zero, s_lo = zero, t_lo = zero, t_other_lo = zero, g_lo = zero, h_lo = zero, other_lo = zero;
    const Doubles a = PairSum<T>(one, zero, minus_y, zero, &a_lo);
    const Doubles t = PairProduct<T>(minus_y, zero, log_p, zero, &t_lo);
    const Doubles t_other = PairProduct<T>(hn::Neg(a), hn::Neg(a_lo), log_other, zero, &t_other_lo);
    const Doubles s = PairSum<T>(t, t_lo, t_other, t_other_lo, &s_lo);
    const Doubles h = PairSum<T>(log_other, zero, hn::Neg(log_p), zero, &h_lo);
    const Doubles difference = PairSum<T>(p, zero, minus_y, zero, &g_lo);
    const Doubles other = PairSum<T>(one, zero, minus_p, zero, &other_lo);
    Doubles product_lo = zero;
    const Doubles product = PairProduct<T>(p, zero, other, other_lo, &product_lo);
    const auto small = hn::Lt(product, smallest);
    const Doubles g = PairQuotient<T>(difference, g_lo, hn::IfThenElse(small, smallest, product),
                                      hn::IfThenZeroElse(small, product_lo), &g_lo);
    StoreElements<T>(task, step, i, s, s_lo, g, g_lo, zero, h, h_lo, zero);
  }
}

// Makes the results of a step of the focal loss for float64, element by element.
inline void WideFocalStep(const BinaryTask &task, BinaryStep &step) {
  for (int64_t i = 0; i < step.padded; ++i) {
    FocalElement element{.z = step.x[i],
                         .y = step.y[i],
                         .pos_weight = step.has_pos_weight ? step.pos_weight[i] : 1.0,
                         .weights = {},
                         .upstream = step.has_upstream ? step.upstream[i] : 1.0};
    for (int part = 0; part < 3; ++part) element.weights[part] = step.has_weight[part] ? step.weight[part][i] : 1.0;
    const FocalResult result = WideFocal(element, task);
    step.loss[i] = result.loss;
    step.grad[i] = result.grad;
    step.target_grad[i] = result.target_grad;
  }
}

// ---- from memory to steps and back ----

// Calls piece(at, count, block, line, position) for the parts of lines that a step is made of. `at` counts from the
// step's first element, `position` is the first element's in its line.
template <class Piece>
HWY_INLINE void ForEachPiece(const BinaryLayout &layout, const BinaryStep &step, Piece piece) {
  int64_t block = step.index / layout.length / layout.lines;
  int64_t line = step.index / layout.length % layout.lines;
  int64_t position = step.index % layout.length;
  for (int64_t at = 0; at < step.count;) {
    const int64_t n = HWY_MIN(step.count - at, layout.length - position);
    piece(at, n, block, line, position);
    at += n;
    position += n;
    if (position < layout.length) break;  // the last piece
    position = 0;
    if (++line == layout.lines) {
      line = 0;
      ++block;
    }
  }
}

// Where an operand has the value of an element: so many elements apart for the next block, line and position.
struct BinaryStrides {
  int64_t block, line, position;

  static BinaryStrides OfMatrix(const BinaryLayout &layout, int64_t stride) { return {stride, layout.length, 1}; }
  static BinaryStrides OfColumns(const BinaryLayout &layout) { return {0, layout.inner, !layout.inner}; }
  static BinaryStrides OfRows(const BinaryLayout &layout) {
    return {layout.inner ? layout.length : 1, 0, layout.inner};
  }
};

// Whether the elements of a step lie next to each other and fill whole vectors.
inline bool IsAdjacent(const BinaryLayout &layout, const BinaryStep &step, const BinaryStrides &strides) {
  return strides.position == 1 && strides.block == layout.length * layout.lines && step.count == step.padded;
}

template <class In>
void ReadOperand(const BinaryLayout &layout, const BinaryStep &step, const void *operand, const BinaryStrides &strides,
                 double *to) {
  const In *const data = static_cast<const In *>(operand);
  if (IsAdjacent(layout, step, strides)) return StageVectors(data + step.index, step.padded, to);
  HWY_ALIGN In copy[kBinaryStep] = {};
  ForEachPiece(layout, step, [&](int64_t at, int64_t n, int64_t block, int64_t line, int64_t position) {
    const In *const from = data + block * strides.block + line * strides.line + position * strides.position;
    if (strides.position == 1) {
      std::memcpy(static_cast<void *>(copy + at), from, static_cast<size_t>(n) * sizeof(In));
    } else {
      std::fill_n(copy + at, n, *from);
    }
  });
  StageVectors(copy, step.padded, to);
}

inline void ReadMatrix(const BinaryLayout &layout, const BinaryStep &step, Dtype dtype,
                       const BinaryMatrix<const void *> &matrix, double *to) {
  const BinaryStrides strides = BinaryStrides::OfMatrix(layout, matrix.stride);
  DispatchElements(
      dtype, [&](auto in) XENT_INLINE_LAMBDA { ReadOperand<decltype(in)>(layout, step, matrix.data, strides, to); });
}

// Stores doubles as Out, a type of half precision or float32, each rounded once.
template <class Out, class D, class V = hn::Vec<D>>
HWY_INLINE void StoreOnce(D d, V v, Out *to) {
  if constexpr (sizeof(Out) == 2) {
    // Below float32's normal range, where it does not keep all digits that StickyFloat needs, v becomes a multiple of
    // 2^-133, as bfloat16's numbers are there; float16 has only 0.
    const auto tiny = hn::Lt(hn::Abs(v), hn::Set(d, 0x1p-126));
    const V round = hn::Set(d, 0x1.8p-81);
    v = hn::IfThenElse(tiny, hn::CopySign(hn::Sub(hn::Add(v, round), round), v), StickyFloat(d, v));
  }
  const hn::Rebind<float, D> df;
  StoreAs(df, hn::DemoteTo(df, v), to);
}

// Rounds results to the arithmetic type T and stores them as Out, rounded from T. float64 has no digits left over for
// half precision: there the double is rounded once.
template <class T, class Out>
void StoreResults(const double *from, int64_t padded, Out *to) {
  const Tag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < padded; i += lanes) {
    const auto v = FinishWithNan(d, LoadDoubles(d, from + i));
    if constexpr (sizeof(Out) == sizeof(double)) {
      StoreDoubles(d, v, to + i);
    } else if constexpr (sizeof(T) == sizeof(double)) {
      StoreOnce(d, v, to + i);
    } else {
      StoreAs(d, v, to + i);
    }
  }
}

// Writes results to a matrix, or, without data, nowhere; adds them as stored to the sum, unless that is null.
template <class T, class Out>
void WriteResults(const BinaryTask &task, const BinaryMatrix<void *> &matrix, const BinaryStep &step,
                  const double *from, LaneSums<T> *sum) {
  const BinaryLayout &layout = task.layout;
  const BinaryStrides strides = BinaryStrides::OfMatrix(layout, matrix.stride);
  Out *const data = static_cast<Out *>(matrix.data);
  HWY_ALIGN Out copy[kBinaryStep];
  const bool direct = sum == nullptr && IsAdjacent(layout, step, strides);
  StoreResults<T>(from, step.padded, direct ? data + step.index : copy);
  if constexpr (sizeof(Out) == sizeof(T)) {
    const Tag<T> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t i = 0; sum != nullptr && i < step.padded; i += lanes) {
      AddToLanes(d, hn::Load(d, copy + i), i % kLanes, *sum);
    }
  }
  if (direct || data == nullptr) return;
  ForEachPiece(layout, step, [&](int64_t at, int64_t n, int64_t block, int64_t line, int64_t position) {
    Out *const to = data + block * strides.block + line * strides.line + position;
    std::memcpy(static_cast<void *>(to), copy + at, static_cast<size_t>(n) * sizeof(Out));
  });
}

template <class T>
void WriteMatrix(const BinaryTask &task, Dtype dtype, const BinaryMatrix<void *> &matrix, const BinaryStep &step,
                 const double *from) {
  DispatchElements(
      dtype, [&](auto out) XENT_INLINE_LAMBDA { WriteResults<T, decltype(out)>(task, matrix, step, from, nullptr); });
}

template <class T>
void ReadFactors(const BinaryTask &task, BinaryStep &step) {
  const BinaryLayout &layout = task.layout;
  const BinaryStrides columns = BinaryStrides::OfColumns(layout), rows = BinaryStrides::OfRows(layout);
  step.has_pos_weight = task.pos_weight != nullptr;
  step.has_weight[0] = task.element_weights.data != nullptr;
  step.has_weight[1] = task.row_weights != nullptr;
  step.has_weight[2] = task.class_weights != nullptr;
  step.has_upstream = task.upstream_kind != BinaryUpstream::kOne;
  if (step.has_pos_weight) ReadOperand<T>(layout, step, task.pos_weight, columns, step.pos_weight);
  if (step.has_weight[0]) ReadMatrix(layout, step, kDtypeOf<T>, task.element_weights, step.weight[0]);
  if (step.has_weight[1]) ReadOperand<T>(layout, step, task.row_weights, rows, step.weight[1]);
  if (step.has_weight[2]) ReadOperand<T>(layout, step, task.class_weights, columns, step.weight[2]);
  if (task.upstream_kind == BinaryUpstream::kElements) {
    ReadMatrix(layout, step, kDtypeOf<T>, task.upstream, step.upstream);
  } else if (task.upstream_kind == BinaryUpstream::kRows) {
    ReadOperand<T>(layout, step, task.upstream.data, rows, step.upstream);
  } else if (step.has_upstream) {
    std::fill_n(step.upstream, step.padded, static_cast<double>(*static_cast<const T *>(task.upstream.data)));
  }
}

// ---- plain losses in float32 lanes ----

// How much of a task float32 lanes do.
struct PlainTask {
  bool losses = false, grad = false;
  float scale = 0.0f, scale_lo = 0.0f;  // the gradient's, see PlainOutputs

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
    // A larger factor would bring back into the normal range what exponentials below it are worth.
    grad = Magnitude(factor) >= 0x1p-100 && Magnitude(factor) <= 1.0;
    if (!grad) return;
    scale = static_cast<float>(factor);
    scale_lo = static_cast<float>(factor - static_cast<double>(scale));
  }
};

// Makes the results of a step in which float32 lanes take the usual elements and LogitsStep the others.
inline void PlainStep(const BinaryTask &task, const PlainTask &plain, BinaryStep &step) {
  HWY_ALIGN float x[kBinaryStep] = {}, y[kBinaryStep] = {}, losses[kBinaryStep], grad[kBinaryStep];
  bool usual[kBinaryStep];
  bool all = plain.grad || task.grad.data == nullptr;
  for (int64_t i = 0; i < step.padded; ++i) {
    usual[i] = step.x[i] == step.x[i] && IsFinite(step.y[i]);
    all = all && usual[i];
    x[i] = usual[i] ? static_cast<float>(step.x[i]) : 0.0f;
    y[i] = usual[i] ? static_cast<float>(step.y[i]) : 0.0f;
  }
  if (!all || task.target_grad.data != nullptr) LogitsStep<float>(task, step);
  const bool has_grad = plain.grad && task.grad.data != nullptr;
  const int64_t four = 4 * static_cast<int64_t>(hn::Lanes(Tag<float>()));
  const PlainOutputs<float> out{
      .scale = plain.scale, .scale_lo = plain.scale_lo, .losses = losses, .grad = has_grad ? grad : nullptr};
  PlainElements(out, x, y, (step.padded + four - 1) / four * four);
  for (int64_t i = 0; i < step.padded; ++i) {
    if (!usual[i]) continue;
    step.loss[i] = static_cast<double>(losses[i]);
    if (has_grad) step.grad[i] = static_cast<double>(grad[i]);
  }
}

// Writes the results of elements from `index` on, which are adjacent in memory, up to one that is not usual. Returns
// how many that were.
template <class In, class Y>
int64_t PlainInMemory(const BinaryTask &task, const PlainTask &plain, int64_t index, int64_t end,
                      LaneSums<float> &sum) {
  float *const losses = task.losses.data == nullptr ? nullptr : static_cast<float *>(task.losses.data) + index;
  In *const grad = task.grad.data == nullptr ? nullptr : static_cast<In *>(task.grad.data) + index;
  // Streaming stores need aligned vectors. Gradients of half precision keep the arithmetic busier than the memory.
  const auto streams = [&](const void *p) {
    return p != nullptr && task.large && reinterpret_cast<uintptr_t>(p) % (kLanes * sizeof(float)) == 0;
  };
  const PlainOutputs<In> out{.scale = plain.scale,
                             .scale_lo = plain.scale_lo,
                             .losses = losses,
                             .grad = grad,
                             .sum = task.sum ? &sum : nullptr,
                             .stream_losses = streams(losses),
                             .stream_grad = task.grad.data != task.input.data && streams(grad)};
  return PlainElements(out, static_cast<const In *>(task.input.data) + index,
                       static_cast<const Y *>(task.targets.data) + index, end - index);
}

using PlainInMemoryFunction = int64_t (*)(const BinaryTask &, const PlainTask &, int64_t, int64_t, LaneSums<float> &);

// Returns the instance of PlainInMemory for a task, null where elements have to go step by step.
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

// ---- a task ----

template <class T>
void RunStep(const BinaryTask &task, [[maybe_unused]] const PlainTask &plain, BinaryStep &step, LaneSums<T> &sum) {
  ReadMatrix(task.layout, step, task.dtype, task.input, step.x);
  ReadMatrix(task.layout, step, task.targets_dtype, task.targets, step.y);
  ReadFactors<T>(task, step);
  if (task.probabilities) {
    ProbabilitiesStep<T>(task, step);
  } else if (kKeepsLow<T> && task.focal) {
    WideFocalStep(task, step);
  } else if (!kKeepsLow<T> && plain.losses) {
    PlainStep(task, plain, step);
  } else {
    LogitsStep<T>(task, step);
  }
  if (task.losses.data != nullptr || task.sum) {
    for (int64_t i = step.count; i < step.padded; ++i) step.loss[i] = 0.0;
    WriteResults<T, T>(task, task.losses, step, step.loss, &sum);
  }
  if (task.grad.data != nullptr) WriteMatrix<T>(task, task.dtype, task.grad, step, step.grad);
  if (task.target_grad.data != nullptr) {
    WriteMatrix<T>(task, task.targets_dtype, task.target_grad, step, step.target_grad);
  }
}

template <class T>
Wide BinaryElements(const BinaryTask &task, int64_t begin, int64_t end) {
  LaneSums<T> sum;
  BinaryStep step;
  step.inverse = Divide(Wide{1.0, 0.0}, Wide{task.denominator.mantissa, 0.0});
  const int64_t power = HWY_MAX(int64_t{-2040}, HWY_MIN(-task.denominator.exponent, int64_t{2040}));
  step.power[0] = PowerOfTwo(power / 2);
  step.power[1] = PowerOfTwo(power - power / 2);
  const PlainTask plain(task, step.inverse);
  PlainInMemoryFunction in_memory = nullptr;
  if constexpr (!kKeepsLow<T>) in_memory = PlainInMemoryOf(task, plain);
  for (int64_t index = begin; index < end; index += kBinaryStep) {
    if constexpr (!kKeepsLow<T>) {
      // What the float32 lanes leave, an unusual element or the end, goes through a step; then they go on.
      if (in_memory != nullptr) index += in_memory(task, plain, index, end, sum);
      if (index == end) break;
    }
    step.index = index;
    step.count = HWY_MIN(end - index, kBinaryStep);
    step.padded = (step.count + kLanes - 1) / kLanes * kLanes;
    RunStep<T>(task, plain, step, sum);
  }
  return sum.Total();
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
