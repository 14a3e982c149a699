// The focal loss of an element in double-double with the exponents of 2 kept apart: neither range nor
// digits give out before the one rounding at the end. Scalar, the same for every target; about 0.4 us an element.
#include <cstdint>

#include "kernels/binary.h"
#include "numbers/wide.h"

namespace xent::internal {
namespace {

// v 2^k with 1 <= |v.hi| < 2; k = 0 and no low part for zero, infinity and NaN.
struct Scaled {
  Wide v;
  int64_t k = 0;

  Scaled() = default;
  Scaled(double x) {
    const Factor factor = IsFinite(x) ? Decompose(x) : Factor{x, 0};
    v.hi = factor.mantissa;
    k = factor.exponent;
  }
  Scaled(Wide value, int64_t exponent) : v{value.hi, 0.0} {
    if (IsZero() || !IsFinite(v.hi)) return;
    const int64_t own = ExponentOf(v.hi);
    v = Scale(value, -own);
    k = exponent + own;
  }

  bool IsZero() const { return v.hi == 0.0; }
  double ToDouble() const { return Scale(v.hi, k); }
};

Scaled operator-(const Scaled &a) { return {Negate(a.v), a.k}; }
// 0 inf = 0.
Scaled operator*(const Scaled &a, const Scaled &b) {
  if (a.IsZero() || b.IsZero()) return {};
  if (!IsFinite(a.v.hi) || !IsFinite(b.v.hi)) return a.v.hi * b.v.hi;
  return {Multiply(a.v, b.v), a.k + b.k};
}
// b finite and not zero.
Scaled operator/(const Scaled &a, const Scaled &b) {
  if (a.IsZero() || !IsFinite(a.v.hi)) return a;
  return {Divide(a.v, b.v), a.k - b.k};
}
Scaled operator+(const Scaled &a, const Scaled &b) {
  if (a.IsZero()) return b;
  if (b.IsZero()) return a;
  if (!IsFinite(a.v.hi) || !IsFinite(b.v.hi)) return a.v.hi + b.v.hi;
  if (a.k < b.k) return b + a;
  if (a.k - b.k > 200) return a;
  return {Add(a.v, Scale(b.v, b.k - a.k)), a.k};
}
Scaled operator-(const Scaled &a, const Scaled &b) { return a + -b; }

// Returns e^x. Past 2^40 the exponent only needs to be beyond what any factor brings back.
Scaled ScaledExp(const Scaled &x) {
  constexpr int64_t kBeyond = int64_t{1} << 40;
  if (x.v.hi == kInfinity) return kInfinity;
  if (x.v.hi == -kInfinity) return {};
  if (x.v.hi != x.v.hi) return x;
  if (x.k >= 40) return {Wide{1.0, 0.0}, x.v.hi > 0.0 ? kBeyond : -kBeyond};
  if (x.k < -200) return 1.0;
  const Unbounded<Wide> e = Exp(Scale(x.v, x.k));
  return {e.mantissa, e.exponent};
}

// Returns log(1 + x) for 0 <= x <= 1.
Scaled ScaledLog1p(const Scaled &x) {
  if (x.IsZero() || x.k < -120) return x;  // to 2^-121 of itself
  return {Log1p(Scale(x.v, x.k)), 0};
}

// Returns log |q| from q and p = 1 - q.
Scaled ScaledLog(const Scaled &q, const Scaled &p) {
  if (q.IsZero()) return -kInfinity;
  if (!IsFinite(q.v.hi)) return q;
  if (q.v.hi > 0.0 && q.k >= -1 && q.k <= 0) {
    const double near = p.ToDouble();
    if (near >= -0.4 && near <= 0.29) return p.k < -120 ? -p : Scaled(LogNearOne(Negate(Scale(p.v, p.k))), 0);
  }
  const Wide magnitude = q.v.hi < 0.0 ? Negate(q.v) : q.v;
  return {Add(Log(magnitude), MultiplyLn2<Wide>(static_cast<double>(q.k))), 0};
}

// Returns |q|^gamma with the sign of q^gamma.
Scaled SignedPower(const Scaled &q, const Scaled &log_q, double gamma) {
  const double sign = q.v.hi < 0.0 ? SignOfPower(gamma) : q.v.hi;
  if (sign != sign) return sign;  // as a factor it would leave nothing of a power of 0
  return sign < 0.0 ? -ScaledExp(gamma * log_q) : ScaledExp(gamma * log_q);
}

void FocalElement(const BinaryTask &task, BinaryStep &step, int64_t i) {
  const auto given = [&](BinaryInput input) { return task.Has(input) ? step.in[input][i] : 1.0; };
  double &loss = step.out[kLoss][i], &grad = step.out[kGrad][i], &target_grad = step.out[kTargetGrad][i];
  loss = grad = target_grad = kNan;
  const double z = given(kInput);
  if (z != z || given(kTarget) != given(kTarget)) return;
  const Scaled one = 1.0, y = given(kTarget), pos_weight = given(kPosWeight), gamma = task.gamma;
  const Scaled other = one - y;
  const bool positive = z > 0.0;
  const Scaled magnitude = positive ? z : -z;

  const Scaled e = ScaledExp(-magnitude);
  const Scaled log1p = ScaledLog1p(e);
  const Scaled longer = magnitude + log1p;
  const Scaled big = one / (one + e);
  const Scaled small = e * big;
  const Scaled softplus = positive ? longer : log1p, softplus_minus = positive ? log1p : longer;
  const Scaled sigma = positive ? big : small, sigma_minus = positive ? small : big;

  const Scaled bce = other * softplus + pos_weight * y * softplus_minus;
  const Scaled bce_z = other * sigma - pos_weight * y * sigma_minus;
  const Scaled bce_y = given(kPosWeight) == 1.0 ? Scaled(-z) : pos_weight * softplus_minus - softplus;

  const Scaled q = y * sigma_minus + other * sigma;
  const bool is_one = given(kTarget) == 1.0, is_zero = given(kTarget) == 0.0;
  const Scaled log_q = is_one ? -softplus : is_zero ? -softplus_minus : ScaledLog(q, y * sigma + other * sigma_minus);
  const Scaled power = SignedPower(q, log_q, task.gamma);
  // q is 0 for infinite z only, where bce is 0 too.
  const Scaled ratio = q.IsZero() ? Scaled() : sigma * sigma_minus / q;
  const Scaled bce_ratio = q.IsZero() ? Scaled() : bce / q;

  Scaled alpha = one, alpha_slope;
  if (task.alpha >= 0.0) {
    const Scaled rest = one - task.alpha;
    alpha = task.alpha * y + rest * other;
    alpha_slope = task.alpha - rest;
  }
  Scaled weight = Scaled(given(kElementWeight)) * given(kRowWeight) * given(kClassWeight);
  loss = (weight * alpha * power * bce).ToDouble();
  if (given(kUpstream) != given(kUpstream)) return;
  weight = weight * given(kUpstream) / Scaled(Wide{task.denominator.mantissa, 0.0}, task.denominator.exponent);
  grad = (weight * (alpha * power * (bce_z + gamma * (other - y) * ratio * bce))).ToDouble();
  target_grad =
      (weight * (alpha_slope * power * bce + alpha * power * (bce_y + gamma * (sigma_minus - sigma) * bce_ratio)))
          .ToDouble();
}

}  // namespace

void WideFocalStep(const BinaryTask &task, BinaryStep &step) {
  for (int64_t i = 0; i < step.count; ++i) FocalElement(task, step, i);
}

}  // namespace xent::internal
