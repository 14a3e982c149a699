// The oracle of binary cross-entropy; see binary.h.
#include "reference/binary.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace xent::reference {
namespace {

using Real = long double;

// 0 inf = 0.
Real Times(Real a, Real b) { return a == 0 || b == 0 ? 0 : a * b; }
// An exponential of a finite number is not 0, however small.
Real Exp(Real x) { return std::isinf(x) ? std::exp(x) : std::fmax(std::exp(x), std::numeric_limits<Real>::min()); }
Real Softplus(Real x) { return std::fmax(x, Real{0}) + std::log1p(Exp(-std::fabs(x))); }
Real Sigmoid(Real x) { return x > 0 ? 1 / (1 + Exp(-x)) : Exp(x) / (1 + Exp(x)); }
Real ClampedLog(Real x) { return std::fmax(x, Real{-100}); }

// A sum of terms: its value, the sum of the terms' magnitudes and the largest of them.
struct Terms {
  Real sum = 0, magnitudes = 0, largest = 0;
  void Add(Real term) {
    sum += term;
    magnitudes += std::fabs(term);
    largest = std::fmax(largest, std::fabs(term));
  }
};

Value NanValue() {
  const Real nan = std::numeric_limits<Real>::quiet_NaN();
  return {nan, nan};
}

}  // namespace

BinaryResult EvaluateBinary(const BinaryElement &element) {
  const Real x = element.x, y = element.y, other = 1 - y, w = element.weight;
  if (std::isnan(x) || std::isnan(y)) return {NanValue(), NanValue(), NanValue()};
  const bool focal = element.gamma != 0 || element.alpha >= 0;

  // softplus(z) and softplus(-z), or what stands for them: -log(1-p) and -log p.
  const Real b = Times(element.pos_weight, y);
  const Real plus = element.probabilities ? -ClampedLog(std::log1p(-x)) : Softplus(x);
  const Real minus = element.probabilities ? -ClampedLog(std::log(x)) : Softplus(-x);
  Terms bce, grad, target_grad;
  bce.Add(Times(other, plus));
  bce.Add(Times(b, minus));

  Real factor = 1;
  if (element.probabilities) {
    const Real slope = 1 / std::fmax(x * (1 - x), Real{1e-12});
    grad.Add(x * slope);
    grad.Add(-y * slope);
  } else {
    grad.Add(Times(other, Sigmoid(x)));
    grad.Add(-Times(b, Sigmoid(-x)));
  }
  target_grad.Add(Times(element.pos_weight, minus));
  target_grad.Add(-plus);
  // softplus(-z) - softplus(z) is -z, without the cancellation that an infinite upstream gradient would show.
  if (!element.probabilities && element.pos_weight == 1 && std::isfinite(x)) target_grad.sum = -x;

  if (focal) {
    const Real q = Times(y, Sigmoid(-x)) + Times(other, Sigmoid(x));
    const Real p = Times(y, Sigmoid(x)) + Times(other, Sigmoid(-x));
    Real log_q = std::fabs(p) < 0.5L ? std::log1p(-p) : std::log(std::fabs(q));
    if (y == 1) log_q = -plus;
    if (y == 0) log_q = -minus;
    Real power = Exp(Times(element.gamma, log_q));
    if (q < 0) power = std::pow(q, static_cast<Real>(element.gamma));
    const bool has_alpha = element.alpha >= 0;
    const Real alpha = has_alpha ? element.alpha * y + (1 - static_cast<Real>(element.alpha)) * other : 1;
    const Real alpha_slope = has_alpha ? 2 * static_cast<Real>(element.alpha) - 1 : 0;
    factor = Times(alpha, power);
    // The derivative of (1-p_y)^gamma is gamma (1-p_y)^gamma (1-p_y)' / (1-p_y); the quotient by its limit where q is
    // 0.
    const Real ratio = y == 1 ? Sigmoid(x) : y == 0 ? Sigmoid(-x) : Sigmoid(x) * Sigmoid(-x) / q;
    grad.Add(Times(element.gamma * (1 - 2 * y) * ratio, bce.sum));
    const Real quotient = bce.sum == 0 ? 0 : bce.sum / q;
    target_grad.Add(Times(element.gamma * (Sigmoid(-x) - Sigmoid(x)), quotient));
    Terms weighted;
    for (const Real term : {Times(factor, target_grad.sum), Times(Times(alpha_slope, power), bce.sum)}) {
      weighted.Add(term);
    }
    weighted.largest = std::fmax(Times(std::fabs(factor), target_grad.largest), weighted.largest);
    target_grad = weighted;
    grad.sum = Times(factor, grad.sum);
    grad.largest = Times(std::fabs(factor), grad.largest);
  }

  BinaryResult result;
  result.loss = {Times(w, Times(factor, bce.sum)), std::fabs(Times(w, Times(factor, bce.magnitudes)))};
  const Real u = element.upstream;
  if (std::isnan(u)) {
    result.grad = result.target_grad = NanValue();
  } else {
    const Real wu = Times(w, u);
    result.grad = {Times(wu, grad.sum), std::fabs(Times(wu, grad.largest))};
    result.target_grad = {Times(wu, target_grad.sum), std::fabs(Times(wu, target_grad.largest))};
  }
  return result;
}

}  // namespace xent::reference
