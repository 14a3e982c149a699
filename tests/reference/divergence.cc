// The naive oracle of the divergences; see divergence.h.
#include "reference/divergence.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/sum.h"

namespace xent::reference {
namespace {

constexpr long double kNan = std::numeric_limits<long double>::quiet_NaN();
constexpr long double kInfinity = std::numeric_limits<long double>::infinity();

// Probabilities and their logarithms.
struct Softmax {
  std::vector<long double> probability, log;
  bool is_nan = false;

  Softmax(std::span<const double> logits, long double temperature) {
    size_t top = 0;
    for (size_t j = 0; j < logits.size(); ++j) {
      is_nan = is_nan || std::isnan(logits[j]) || logits[j] == std::numeric_limits<double>::infinity();
      if (logits[j] > logits[top]) top = j;
    }
    is_nan = is_nan || std::isinf(logits[top]);
    if (is_nan) return;
    // Differences of doubles have few enough digits for a long double unless one is tiny beside the other.
    std::vector<long double> below;
    Sum others;
    for (size_t j = 0; j < logits.size(); ++j) {
      below.push_back((static_cast<long double>(logits[top]) - logits[j]) / temperature);
      if (j != top) others.Add(std::exp(-below[j]));
    }
    const long double log_total = std::log1p(others.Total());
    for (size_t j = 0; j < logits.size(); ++j) {
      log.push_back(-(below[j] + log_total));
      probability.push_back(std::exp(-below[j]) / (1 + others.Total()));
    }
  }
};

// -log(rest + share e^d), rest + share = 1: by a change of 1 that is small or > 0, else by terms of one sign.
long double LogOverMixture(long double rest, long double share, long double d) {
  if (d > 10000) return -(d + std::log(share));
  const long double change = share * std::expm1(d);
  return change > -0.5L ? -std::log1p(change) : -std::log(rest + share * std::exp(d));
}

// 0 where the weight's logit is -inf.
struct Terms {
  Sum sum;
  long double magnitude = 0;

  void Add(long double weight, long double log_weight, long double a, long double b) {
    if (log_weight == -kInfinity) return;
    if (std::isinf(a - b)) {  // by its logit, whatever the weight has underflowed to
      sum.Add(a - b);
      return;
    }
    sum.Add(weight * (a - b));
    magnitude += weight * (std::fabs(a) + std::fabs(b));
  }
};

}  // namespace

Divergence EvaluateDivergence(std::span<const double> student, std::span<const double> teacher,
                              xent_divergence_kind kind, double temperature, double beta_in) {
  const Softmax q(student, temperature), p(teacher, temperature);
  const size_t cols = student.size();
  const long double t = temperature, beta = beta_in;
  Divergence result{{kNan, 0}, std::vector<Value>(cols, {kNan, 0})};
  if (q.is_nan || p.is_nan) return result;

  if (kind == XENT_DIVERGENCE_FORWARD_KL || kind == XENT_DIVERGENCE_CROSS_ENTROPY) {
    Terms terms;
    for (size_t j = 0; j < cols; ++j) {
      terms.Add(p.probability[j], p.log[j], kind == XENT_DIVERGENCE_FORWARD_KL ? p.log[j] : 0.0L, q.log[j]);
      result.gradient[j] = {(q.probability[j] - p.probability[j]) / t,
                            std::max(q.probability[j], p.probability[j]) / t};
    }
    result.loss = {terms.sum.Total(), terms.magnitude};
  } else if (kind == XENT_DIVERGENCE_REVERSE_KL) {
    Terms terms;
    for (size_t j = 0; j < cols; ++j) terms.Add(q.probability[j], q.log[j], q.log[j], p.log[j]);
    result.loss = {terms.sum.Total(), terms.magnitude};
    if (std::isinf(result.loss.exact)) return result;
    for (size_t j = 0; j < cols; ++j) {
      if (q.probability[j] == 0) {
        result.gradient[j] = {0, 0};
        continue;
      }
      const long double largest = std::max({std::fabs(q.log[j]), std::fabs(p.log[j]), std::fabs(result.loss.exact)});
      result.gradient[j] = {q.probability[j] * (q.log[j] - p.log[j] - result.loss.exact) / t,
                            q.probability[j] * largest / t};
    }
  } else {
    std::vector<long double> of_p(cols), of_q(cols);
    Terms p_terms, q_terms;
    for (size_t j = 0; j < cols; ++j) {
      if (p.log[j] == -kInfinity && q.log[j] == -kInfinity) continue;
      of_p[j] = LogOverMixture(beta, 1 - beta, q.log[j] - p.log[j]);
      of_q[j] = LogOverMixture(1 - beta, beta, p.log[j] - q.log[j]);
      const long double log_m = q.log[j] > p.log[j] ? q.log[j] - of_q[j] : p.log[j] - of_p[j];
      if (p.log[j] > -kInfinity) {
        p_terms.sum.Add(p.probability[j] * of_p[j]);
        p_terms.magnitude += p.probability[j] * (std::fabs(p.log[j]) + std::fabs(log_m));
      }
      if (q.log[j] > -kInfinity) {
        q_terms.sum.Add(q.probability[j] * of_q[j]);
        q_terms.magnitude += q.probability[j] * (std::fabs(q.log[j]) + std::fabs(log_m));
      }
    }
    const long double mean = q_terms.sum.Total();
    result.loss = {beta * p_terms.sum.Total() + (1 - beta) * mean,
                   beta * p_terms.magnitude + (1 - beta) * q_terms.magnitude};
    for (size_t j = 0; j < cols; ++j) {
      const long double weight = (1 - beta) * q.probability[j] / t;
      if (weight == 0) {
        result.gradient[j] = {0, 0};
        continue;
      }
      const long double log_m = std::fabs(q.log[j] - of_q[j]);
      result.gradient[j] = {weight * (of_q[j] - mean),
                            weight * std::max({std::fabs(q.log[j]), log_m, std::fabs(mean)})};
    }
  }
  return result;
}

}  // namespace xent::reference
