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

// Returns a x + b y. More than 8 parameters: vectors may be sizeless (SVE), and those cannot stand in a struct.
template <class T>
HWY_INLINE Doubles PairOfProducts(Doubles a, Doubles a_lo, Doubles x, Doubles x_lo, Doubles b, Doubles b_lo, Doubles y,
                                  Doubles y_lo, Doubles *lo) {
  Doubles ax_lo = hn::Zero(DoubleTag()), by_lo = ax_lo;
  const Doubles ax = PairProduct<T>(a, a_lo, x, x_lo, &ax_lo), by = PairProduct<T>(b, b_lo, y, y_lo, &by_lo);
  return PairSum<T>(ax, ax_lo, by, by_lo, lo);
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
    factor_lo = ScaledBy(d, factor_lo, hn::Neg(exponent));
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

// Stores the loss s 2^k w, the gradient g 2^k w u / denominator and the target's gradient h 2^h_k w u / denominator,
// w being the product of the weights and u the upstream gradient. The exponents count for float64 only.
// More than 8 parameters: see PairOfProducts.
template <class T>
HWY_INLINE void StoreElements(const BinaryTask &task, BinaryStep &step, int64_t i, Doubles s, Doubles s_lo, Doubles g,
                              Doubles g_lo, Doubles k, Doubles h, Doubles h_lo, Doubles h_k) {
  const DoubleTag d;
  const auto given = [&](int input) HWY_ATTR { return hn::Load(d, step.in[input] + i); };
  auto is_nan = hn::Or(hn::IsNaN(given(kInput)), hn::IsNaN(given(kTarget)));
  Doubles w = hn::Set(d, 1.0), w_lo = hn::Zero(d), w_k = hn::Zero(d);
  const auto store = [&](BinaryOutput output, Doubles value, Doubles value_lo, Doubles value_k) XENT_INLINE_LAMBDA {
    Doubles v = w, v_lo = w_lo, v_k = w_k;
    MultiplyBy<T>(value, value_lo, &v, &v_lo, &v_k);
    if constexpr (kKeepsLow<T>) {
      v = ScaledBy(d, hn::Add(v, v_lo), hn::Add(v_k, value_k));
    } else if (output != kLoss) {
      v = hn::Mul(hn::Mul(v, hn::Set(d, task.power[0])), hn::Set(d, task.power[1]));
    }
    hn::Store(hn::IfThenElse(is_nan, hn::Set(d, kNan), v), d, step.out[output] + i);
  };
  for (int weight = kElementWeight; weight <= kClassWeight; ++weight) {
    if (task.inputs[weight].data != nullptr) MultiplyBy<T>(given(weight), hn::Zero(d), &w, &w_lo, &w_k);
  }
  if (task.Wants(kLoss) || task.sum) store(kLoss, s, s_lo, k);
  if (!task.Wants(kGrad) && !task.Wants(kTargetGrad)) return;
  if (task.Has(kUpstream)) {
    const Doubles u = given(kUpstream);
    is_nan = hn::Or(is_nan, hn::IsNaN(u));
    MultiplyBy<T>(u, hn::Zero(d), &w, &w_lo, &w_k);
  }
  w = PairProduct<T>(w, w_lo, hn::Set(d, task.inverse.hi), hn::Set(d, task.inverse.lo), &w_lo);
  w_k = hn::Sub(w_k, hn::Set(d, static_cast<double>(task.denominator.exponent)));
  if (task.Wants(kGrad)) store(kGrad, g, g_lo, k);
  if (task.Wants(kTargetGrad)) store(kTargetGrad, h, h_lo, h_k);
}

// Replaces s, g and h of the binary cross-entropy by those of the focal loss, the factor being (1 - p_y)^gamma; in
// double, for float32.
//
// q = 1 - p_y = y sigma(-z) + (1-y) sigma(z). Its logarithm comes from p_y where q is near 1 and is minus a softplus
// where y is 0 or 1, so that gamma log q keeps its digits. q is 0 for infinite z only, where bce is 0, and so are the
// quotients by q.
// More than 8 parameters: see PairOfProducts.
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
  power = hn::IfThenElse(hn::Lt(q, zero), hn::Mul(power, hn::Set(d, SignOfPower(task.gamma))), power);
  power = hn::IfThenElse(hn::IsNaN(q), q, power);

  Doubles alpha = one, alpha_slope = zero;
  if (task.alpha >= 0.0) {
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

// Makes the results of a step whose inputs are logits.
template <class T>
void LogitsStep(const BinaryTask &task, BinaryStep &step) {
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Doubles zero = hn::Zero(d), one = hn::Set(d, 1.0);
  LogisticParts parts;  // float32 lanes make them for all elements but far ones, double lanes for those
  const bool has_parts = HWY_NATIVE_FMA && !kKeepsLow<T> && !task.focal;
  const bool has_far = !has_parts || !MakeParts(step.in[kInput], step.padded, parts);
  for (int64_t i = 0; i < step.padded; i += lanes) {
    const Doubles z = hn::Load(d, step.in[kInput] + i);
    const Doubles y = hn::Load(d, step.in[kTarget] + i);
    const Doubles pos_weight = task.Has(kPosWeight) ? hn::Load(d, step.in[kPosWeight] + i) : one;
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
    if (has_far) {
      lifted = LiftedExp(hn::Max(hn::Neg(magnitude), hn::Set(d, kLowest)), kLift);
      e = lifted;
      if constexpr (kKeepsLow<T>) {
        e = hn::IfThenElseZero(hn::Le(magnitude, hn::Set(d, 708.0)), hn::Mul(lifted, hn::Set(d, 0x1p-512)));
      } else {
        e = hn::IfThenZeroElse(hn::Eq(magnitude, hn::Set(d, kInfinity)), e);
      }
      const Doubles total = PairSum<T>(one, zero, e, zero, &total_lo);
      big = PairQuotient<T>(one, zero, total, total_lo, &big_lo);
      log1p = Log1pOfSum(d, e, total, hn::Mul(hn::Sub(e, hn::Sub(total, one)), big));
    }
    if constexpr (!kKeepsLow<T>) {
      if (has_parts) {
        const auto near = hn::Le(magnitude, hn::Set(d, static_cast<double>(kFarthestPart)));
        const hn::Rebind<float, DoubleTag> df;
        const Doubles exponential = hn::Mul(hn::PromoteTo(d, hn::Load(df, parts.exponential + i)),
                                            hn::Set(d, PowerOfTwo(-Format<float>::kBias)));
        // One step of Newton's method from the quotient of float32.
        const Doubles inverse = hn::PromoteTo(d, hn::Load(df, parts.inverse + i));
        const Doubles rest = hn::NegMulAdd(hn::Add(one, exponential), inverse, one);
        e = hn::IfThenElse(near, exponential, e);
        big = hn::IfThenElse(near, hn::MulAdd(inverse, rest, inverse), big);
        const Doubles ratio = hn::PromoteTo(d, hn::Load(df, parts.ratio + i));
        log1p = hn::IfThenElse(near, hn::Mul(exponential, ratio), log1p);
      }
    }
    // Of the smaller side the sigmoid, of the larger side the softplus.
    const Doubles small = PairProduct<T>(e, zero, big, big_lo, &small_lo);
    const Doubles longer = PairSum<T>(magnitude, zero, log1p, zero, &long_lo);

    // In the far tail softplus and sigmoid of the smaller side are e. Where the larger side's coefficient c is small
    // too, all is computed times 2^512. Returns where that is.
    const auto lift_tail = [&](Doubles &c, Doubles &c_lo, Doubles &k) XENT_INLINE_LAMBDA {
      const auto tail = hn::And(far, hn::Lt(hn::Abs(c), hn::Set(d, kAlone)));
      const Doubles lift = hn::IfThenElse(tail, hn::Set(d, 0x1p512), one);
      c = hn::Mul(c, lift);
      c_lo = hn::Mul(c_lo, lift);
      k = hn::IfThenElseZero(tail, hn::Set(d, -kLift));
      return tail;
    };

    // The coefficients of softplus(z) and softplus(-z), then of the larger and of the smaller side.
    Doubles a_lo = zero, b_lo = zero;
    const Doubles a = PairSum<T>(one, zero, hn::Neg(y), zero, &a_lo);
    const Doubles b = PairProduct<T>(pos_weight, zero, y, zero, &b_lo);
    Doubles c = hn::IfThenElse(positive, a, b), c_lo = hn::IfThenElse(positive, a_lo, b_lo);
    Doubles c_small = hn::IfThenElse(positive, b, a), c_small_lo = hn::IfThenElse(positive, b_lo, a_lo);
    Doubles softplus_small = log1p, sigma_small = small, s_k = zero;
    if constexpr (kKeepsLow<T>) {
      const auto tail = lift_tail(c, c_lo, s_k);
      softplus_small = hn::IfThenElse(tail, lifted, log1p);
      sigma_small = hn::IfThenElse(tail, lifted, small);
      small_lo = hn::IfThenZeroElse(tail, small_lo);
    }
    // The sums of both sides: the loss, the gradient for positive z, the gradient for the target.
    Doubles s_lo = zero, g_lo = zero, h_lo = zero, h = zero, h_k = zero;
    Doubles s = PairOfProducts<T>(c, c_lo, longer, long_lo, c_small, c_small_lo, softplus_small, zero, &s_lo);
    Doubles g =
        PairOfProducts<T>(c, c_lo, big, big_lo, hn::Neg(c_small), hn::Neg(c_small_lo), sigma_small, small_lo, &g_lo);
    if (task.Wants(kTargetGrad)) {
      const Doubles minus_one = hn::Set(d, -1.0);
      c = hn::IfThenElse(positive, minus_one, pos_weight);
      c_small = hn::IfThenElse(positive, pos_weight, minus_one);
      softplus_small = log1p;
      c_lo = zero;
      if constexpr (kKeepsLow<T>) softplus_small = hn::IfThenElse(lift_tail(c, c_lo, h_k), lifted, log1p);
      h = PairOfProducts<T>(c, zero, longer, long_lo, c_small, zero, softplus_small, zero, &h_lo);
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
    StoreElements<T>(task, step, i, s, s_lo, g, g_lo, s_k, h, h_lo, h_k);
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
    const Doubles p = hn::Load(d, step.in[kInput] + i);
    const Doubles y = hn::Load(d, step.in[kTarget] + i);
    const Doubles minus_p = hn::Neg(p), minus_y = hn::Neg(y);
    const Doubles log_p = hn::Max(LogDouble(d, p), lowest);
    const Doubles log_other = hn::Max(Log1pDouble(d, minus_p), lowest);
    Doubles a_lo = zero, s_lo = zero, g_lo = zero, h_lo = zero, other_lo = zero, product_lo = zero;
    const Doubles a = PairSum<T>(one, zero, minus_y, zero, &a_lo);
    const Doubles s = PairOfProducts<T>(minus_y, zero, log_p, zero, hn::Neg(a), hn::Neg(a_lo), log_other, zero, &s_lo);
    const Doubles h = PairSum<T>(log_other, zero, hn::Neg(log_p), zero, &h_lo);
    const Doubles difference = PairSum<T>(p, zero, minus_y, zero, &g_lo);
    const Doubles other = PairSum<T>(one, zero, minus_p, zero, &other_lo);
    const Doubles product = PairProduct<T>(p, zero, other, other_lo, &product_lo);
    const auto small = hn::Lt(product, smallest);
    const Doubles g = PairQuotient<T>(difference, g_lo, hn::IfThenElse(small, smallest, product),
                                      hn::IfThenZeroElse(small, product_lo), &g_lo);
    StoreElements<T>(task, step, i, s, s_lo, g, g_lo, zero, h, h_lo, zero);
  }
}

// ---- from memory to steps and back ----

// Calls piece(at, count, offset) for the parts of a step that an operand has side by side: `at` counts from the step's
// first element, `offset` from the operand's.
template <class Piece>
HWY_INLINE void ForEachPiece(const BinaryTask &task, const BinaryStep &step, const BinaryOperand &operand,
                             Piece piece) {
  const BinaryLayout &layout = task.layout;
  if (operand.IsEven(layout)) return piece(0, step.count, step.index * operand.position);
  int64_t block = step.index / layout.length / layout.lines;
  int64_t line = step.index / layout.length % layout.lines, position = step.index % layout.length;
  for (int64_t at = 0, n; at < step.count; at += n, position = 0) {
    n = HWY_MIN(step.count - at, layout.length - position);
    piece(at, n, block * operand.block + line * operand.line + position * operand.position);
    if (++line == layout.lines) {
      line = 0;
      ++block;
    }
  }
}

inline void ReadOperand(const BinaryTask &task, BinaryStep &step, int input) {
  const BinaryOperand &operand = task.inputs[input];
  double *const to = step.in[input];
  DispatchElements(operand.dtype, [&](auto in) XENT_INLINE_LAMBDA {
    ForEachPiece(task, step, operand, [&](int64_t at, int64_t n, int64_t offset) XENT_INLINE_LAMBDA {
      const auto *const from = static_cast<const decltype(in) *>(operand.data) + offset;
      if (operand.position == 1) return Stage(from, n, n, 0.0, to + at);
      std::fill_n(to + at, n, static_cast<double>(Widen(*from)));
    });
  });
  std::fill(to + step.count, to + kBinaryStep, 0.0);
}

// Returns results rounded to the arithmetic type.
template <class D>
HWY_INLINE hn::Vec<D> LoadResults(D d, const double *from) {
  return FinishWithNan(d, LoadDoubles(d, from));
}

// Stores them as Out, rounded from that type. float64 has no digits left over for half precision: there the double is
// rounded once.
template <class Out, class D, class V = hn::Vec<D>>
HWY_INLINE void StoreResults(D d, V v, Out *to) {
  if constexpr (sizeof(Out) == sizeof(double)) {
    StoreDoubles(d, v, to);
  } else if constexpr (sizeof(hn::TFromD<D>) == sizeof(float)) {
    StoreAs(d, v, to);
  } else {
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
}

template <class T>
void WriteOperand(const BinaryTask &task, const BinaryStep &step, int output) {
  const BinaryOperand &operand = task.outputs[output];
  const Tag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  DispatchElements(operand.dtype, [&](auto out) XENT_INLINE_LAMBDA {
    using Out = decltype(out);
    HWY_ALIGN Out copy[kBinaryStep];
    Out *const data = static_cast<Out *>(operand.data);
    Out *const to = operand.IsEven(task.layout) && step.count == step.padded ? data + step.index : copy;
    for (int64_t i = 0; i < step.padded; i += lanes) StoreResults(d, LoadResults(d, step.out[output] + i), to + i);
    if (to != copy) return;
    ForEachPiece(task, step, operand, [&](int64_t at, int64_t n, int64_t offset) {
      std::memcpy(static_cast<void *>(data + offset), copy + at, static_cast<size_t>(n) * sizeof(Out));
    });
  });
}

// ---- plain losses in float32 lanes ----

// How much of a task float32 lanes do.
struct PlainTask {
  bool losses = false, grad = false;
  PlainScale scale;

  explicit PlainTask(const BinaryTask &task) {
    if (!HWY_NATIVE_FMA || task.probabilities || task.focal || task.inputs[kTarget].dtype == kF64) return;
    if (task.inputs[kInput].dtype == kF64) return;
    for (int factor = kPosWeight; factor < kUpstream; ++factor) {
      if (task.inputs[factor].data != nullptr) return;
    }
    losses = true;
    double factor = task.inverse.hi;
    if (task.Has(kUpstream)) {
      if (task.inputs[kUpstream].position != 0 || !task.inputs[kUpstream].IsEven(task.layout)) return;
      factor *= static_cast<double>(*static_cast<const float *>(task.inputs[kUpstream].data));
    }
    factor = Scale(factor, -task.denominator.exponent);
    // A larger factor would bring back into the normal range what exponentials below it are worth.
    grad = Magnitude(factor) >= 0x1p-100 && Magnitude(factor) <= 1.0;
    if (!grad) return;
    scale.hi = static_cast<float>(factor);
    scale.lo = static_cast<float>(factor - static_cast<double>(scale.hi));
  }

  // Whether what float32 lanes do is all, and elements are adjacent in memory.
  bool InMemory(const BinaryTask &task) const {
    const auto even = [&](const BinaryOperand &o) { return o.data == nullptr || o.IsEven(task.layout); };
    return losses && (grad || !task.Wants(kGrad)) && !task.Wants(kTargetGrad) && even(task.inputs[kInput]) &&
           even(task.inputs[kTarget]) && even(task.outputs[kLoss]) && even(task.outputs[kGrad]);
  }
};

// Makes the results of a step in which float32 lanes take the usual elements and LogitsStep the others.
inline void PlainStep(const BinaryTask &task, const PlainTask &plain, BinaryStep &step) {
  const Tag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  HWY_ALIGN float x[kBinaryStep] = {}, y[kBinaryStep] = {}, losses[kBinaryStep], grad[kBinaryStep];
  bool all = (plain.grad || !task.Wants(kGrad)) && !task.Wants(kTargetGrad);
  const auto given = [&](int input, int64_t i) HWY_ATTR { return LoadDoubles(d, step.in[input] + i); };
  const auto unusual = [&](int64_t i) HWY_ATTR { return hn::IsNaN(Unusual(given(kInput, i), given(kTarget, i))); };
  for (int64_t i = 0; i < step.padded; i += lanes) {
    all = all && hn::AllFalse(d, unusual(i));
    hn::Store(hn::IfThenZeroElse(unusual(i), given(kInput, i)), d, x + i);
    hn::Store(hn::IfThenZeroElse(unusual(i), given(kTarget, i)), d, y + i);
  }
  if (!all) LogitsStep<float>(task, step);
  const bool has_grad = plain.grad && task.Wants(kGrad);
  const PlainOutputs<float> out{.scale = plain.scale, .losses = losses, .grad = has_grad ? grad : nullptr};
  PlainElements(out, x, y, (step.padded + 4 * lanes - 1) / (4 * lanes) * (4 * lanes));
  for (int64_t i = 0; i < step.padded; i += lanes) {
    const auto keep = [&](const float *from, double *to) HWY_ATTR {
      const auto v = hn::Load(d, from + i);
      StoreDoubles(d, all ? v : hn::IfThenElse(unusual(i), LoadDoubles(d, to + i), v), to + i);
    };
    if (task.Wants(kLoss) || task.sum) keep(losses, step.out[kLoss]);
    if (has_grad) keep(grad, step.out[kGrad]);
  }
}

// Writes the results of elements from `index` on, which are adjacent in memory, up to one that is not usual. Returns
// how many that were.
template <class In, class Y>
int64_t PlainInMemory(const BinaryTask &task, const PlainTask &plain, int64_t index, int64_t end,
                      LaneSums<float> &sum) {
  float *const losses = task.Wants(kLoss) ? static_cast<float *>(task.outputs[kLoss].data) + index : nullptr;
  In *const grad = task.Wants(kGrad) ? static_cast<In *>(task.outputs[kGrad].data) + index : nullptr;
  // Streaming stores need aligned vectors. Gradients of half precision keep the arithmetic busier than the memory.
  const auto streams = [&](const void *p) {
    return p != nullptr && task.large && reinterpret_cast<uintptr_t>(p) % (kLanes * sizeof(float)) == 0;
  };
  const PlainOutputs<In> out{.scale = plain.scale,
                             .losses = losses,
                             .grad = grad,
                             .sum = task.sum ? &sum : nullptr,
                             .stream_losses = streams(losses),
                             .stream_grad = task.outputs[kGrad].data != task.inputs[kInput].data && streams(grad)};
  return PlainElements(out, static_cast<const In *>(task.inputs[kInput].data) + index,
                       static_cast<const Y *>(task.inputs[kTarget].data) + index, end - index);
}

// ---- a task ----

template <class T>
void RunStep(const BinaryTask &task, const PlainTask &plain, BinaryStep &step, LaneSums<T> &sum) {
  for (int i = 0; i < kBinaryInputs; ++i) {
    if (task.inputs[i].data != nullptr) ReadOperand(task, step, i);
  }
  if (task.probabilities) {
    ProbabilitiesStep<T>(task, step);
  } else if (kKeepsLow<T> && task.focal) {
    WideFocalStep(task, step);
  } else if (plain.losses) {
    PlainStep(task, plain, step);
  } else {
    LogitsStep<T>(task, step);
  }
  if (task.sum) {
    const Tag<T> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    double *const losses = step.out[kLoss];
    std::fill(losses + step.count, losses + step.padded, 0.0);
    for (int64_t i = 0; i < step.padded; i += lanes) AddToLanes(d, LoadResults(d, losses + i), i % kLanes, sum);
  }
  for (int i = 0; i < kBinaryOutputs; ++i) {
    if (task.outputs[i].data != nullptr) WriteOperand<T>(task, step, i);
  }
}

template <class In, class T = Arithmetic<In>>
Wide BinaryElements(const BinaryTask &task, int64_t begin, int64_t end) {
  LaneSums<T> sum;
  BinaryStep step;
  const PlainTask plain(task);
  const bool same_type = task.inputs[kTarget].dtype == kDtypeOf<In>;
  const bool in_memory = plain.InMemory(task) && (same_type || task.inputs[kTarget].dtype == kF32);
  for (int64_t index = begin; index < end; index += kBinaryStep) {
    if constexpr (!kKeepsLow<T>) {
      // What the float32 lanes leave, an unusual element or the end, goes through a step; then they go on.
      if (in_memory && same_type) index += PlainInMemory<In, In>(task, plain, index, end, sum);
      if (in_memory && !same_type) index += PlainInMemory<In, float>(task, plain, index, end, sum);
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
