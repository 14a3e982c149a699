// The naive oracle of the cross-entropy with every option; see losses.h.
#include "reference/losses.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "testing/bounds.h"

namespace xent::reference {
namespace {

constexpr long double kNan = std::numeric_limits<long double>::quiet_NaN();
constexpr long double kInfinity = std::numeric_limits<long double>::infinity();

// 0 * infinity is 0 where the coefficient is exactly 0.
long double Weighted(long double coefficient, long double value) { return coefficient == 0 ? 0 : coefficient * value; }

// sech^2 below this counts as 0 (xent.h), even where an upstream gradient or a weight brings the product back.
const long double kVanishingSlope = std::ldexp(1.0L, test::kKeptSlopeExponent);
// So does p, at the target 1 - p, below these; the second one holds in double lanes too.
const long double kVanishingF32 = std::ldexp(1.0L, test::kKeptExponentFloat32);
const long double kVanishingF64 = std::ldexp(1.0L, test::kKeptExponentFloat64);

size_t At(int64_t i) { return static_cast<size_t>(i); }

// z'. Infinities and NaN stay what they are, whatever scale and cap are.
std::vector<Wide> Transformed(std::span<const double> logits, long double scale, long double cap) {
  std::vector<Wide> transformed;
  transformed.reserve(logits.size());
  for (const long double z : logits) {
    if (!std::isfinite(z)) {
      transformed.push_back({z, 0});
    } else if (cap > 0) {
      transformed.push_back({cap * std::tanh(scale * z / cap), 0});
    } else {
      transformed.push_back(Multiply(scale, z));
    }
  }
  return transformed;
}

}  // namespace

LossRow::LossRow(const LossInputs &inputs, int64_t row)
    : cols_(inputs.valid_cols()),
      target_(inputs.targets.empty() || inputs.IsIgnored(row) ? -1 : inputs.targets[At(row)]),
      logits_(inputs.logits.data() + row * inputs.cols),
      arithmetic_(ArithmeticType(inputs.dtype)),
      scale_(inputs.options.logit_scale),
      cap_(inputs.options.softcap),
      z_loss_(inputs.options.z_loss),
      epsilon_(inputs.options.label_smoothing),
      row_weight_(inputs.row_weights.empty() ? 1 : inputs.row_weights[At(row)]),
      is_plain_(!inputs.has_probs() && epsilon_ == 0 && z_loss_ == 0),
      in_double_lanes_(inputs.in_double_lanes()),
      row_(Transformed(std::span(logits_, At(cols_)), scale_, cap_), target_) {
  if (is_nan()) return;
  h_.assign(At(cols_), 0);
  long double largest_h = 0;
  for (int64_t j = 0; cap_ > 0 && j < cols_; ++j) {
    if (std::isinf(row_.logit(j).high)) continue;
    h_[At(j)] = test::kSoftcapUlp * UlpAt(arithmetic_, row_.logit(j).high);
    largest_h = std::max(largest_h, h_[At(j)]);
  }
  growth_ = std::exp(4 * largest_h);

  Sum label_sum;
  Sum others_slack;
  const long double v = static_cast<long double>(cols_);
  const bool exclusive = inputs.options.smoothing == XENT_SMOOTHING_EXCLUSIVE;
  for (int64_t c = 0; c < cols_; ++c) {
    const long double q = inputs.has_probs() ? static_cast<long double>(inputs.target_probs[At(row * inputs.cols + c)])
                          : c == target_     ? 1.0L
                                             : 0.0L;
    long double smoothed = q;
    if (epsilon_ != 0 && exclusive) {
      smoothed = c == target_ ? 1 - epsilon_ : epsilon_ / (v - 1);
    } else if (epsilon_ != 0) {
      smoothed = (1 - epsilon_) * q + epsilon_ / v;
    }
    weights_.push_back(inputs.class_weights.empty() ? 1 : inputs.class_weights[At(c)]);
    y_.push_back(weights_.back() * smoothed);
    label_sum.Add(y_.back());
    if (c != row_.top()) others_slack.Add(Probability(c) * h_[At(c)]);
  }
  label_sum_ = label_sum.Total();
  others_slack_ = others_slack.Total();
  lse_slack_ = others_slack_ + Probability(row_.top()) * h_[At(row_.top())];
}

long double LossRow::GapSlack(int64_t column) const {
  if (cap_ == 0) return 0;
  // Where the column is not the maximum's, its complement is about 1/2 at least: the difference may cancel beside it.
  const long double own = Probability(column) * h_[At(column)];
  const long double rest = column == row_.top() ? others_slack_ : std::max(0.0L, lse_slack_ - own);
  return (rest + row_.Complement(column) * h_[At(column)]) * growth_;
}

long double LossRow::LseRounding() const {
  if (z_loss_ == 0) return 0;
  return test::kLseUlp * UlpAt(arithmetic_, Lse().scale);
}

Value LossRow::Lse() const {
  if (is_nan()) return {kNan, 0};
  const Value lse = row_.LogSumExp();
  return {lse.exact, lse.scale, lse_slack_ * growth_};
}

Value LossRow::NegativeLogLikelihood() const {
  if (is_nan()) return {kNan, 0};
  const long double gap = row_.Gap(target_);
  return {gap, gap, GapSlack(target_)};
}

LossRow::Bracket LossRow::BracketOf(int64_t column) const {
  const long double p = Probability(column);
  const long double w = is_plain_ ? y_[At(target_)] : 0;
  if (is_plain_) {
    const long double value = column == target_ ? -w * row_.Complement(target_) : w * p;
    return {value, std::fabs(value)};
  }
  const long double z_term = z_loss_ == 0 ? 0 : 2 * z_loss_ * row_.LogSumExp().exact;
  return {(label_sum_ + z_term) * p - y_[At(column)],
          std::max({std::fabs(label_sum_) * p, std::fabs(z_term) * p, std::fabs(y_[At(column)])})};
}

Value LossRow::Loss() const {
  if (is_nan()) return {kNan, 0};
  Sum sum;
  Sum magnitudes;
  Sum slack;
  for (int64_t c = 0; c < cols_; ++c) {
    if (y_[At(c)] != 0) {
      sum.Add(y_[At(c)] * row_.Gap(c));
      magnitudes.Add(std::fabs(y_[At(c)]) * row_.Gap(c));
    }
    if (cap_ > 0) slack.Add(std::fabs(BracketOf(c).value) * h_[At(c)]);
  }
  if (z_loss_ != 0) {
    const long double lse = row_.LogSumExp().exact;
    sum.Add(z_loss_ * lse * lse);
    magnitudes.Add(z_loss_ * lse * lse);
  }
  const long double z_loss_slack = 2 * z_loss_ * std::fabs(row_.LogSumExp().exact) * LseRounding();
  return {Weighted(row_weight_, sum.Total()), Weighted(std::fabs(row_weight_), magnitudes.Total()),
          std::fabs(row_weight_) * (slack.Total() * growth_ + z_loss_slack)};
}

Value LossRow::Gradient(int64_t column, long double factor) const {
  if (column >= cols_) return {0, 0};
  if (is_nan() || std::isnan(factor)) return {kNan, 0};
  const Bracket bracket = BracketOf(column);
  long double dz = scale_;
  long double dz_error = 0;
  if (cap_ > 0) {
    const long double x = std::fabs(scale_ * logits_[column] / cap_);
    const long double cosh = std::cosh(x);
    dz = scale_ / (cosh * cosh);
    const long double ulp = test::kSoftcapSlopeUlp + test::kSoftcapSlopeUlpPerArgument * x;
    dz_error = std::isinf(x) ? 0 : ulp * UlpAt(arithmetic_, dz);
    if (std::min(dz / scale_, std::exp(-2 * x)) < kVanishingSlope) dz_error = std::max(dz_error, dz);
  }
  // An infinite upstream gradient gives 0 where the formula's other factor is 0.
  const long double f = row_weight_ == 0 ? 0 : factor * row_weight_;
  const auto times = [&](long double value) { return Weighted(value * dz, f); };
  Value result = {times(bracket.value), std::fabs(times(bracket.largest))};
  if (cap_ > 0 && std::isfinite(f)) {
    const long double p = Probability(column);
    const long double z_term = z_loss_ == 0 ? 0 : 2 * z_loss_ * row_.LogSumExp().exact;
    const long double a = std::fabs((is_plain_ ? y_[At(target_)] : label_sum_) + z_term);
    result.slack =
        std::fabs(f) * growth_ *
        ((dz + dz_error) * p * (a * GapSlack(column) + 2 * z_loss_ * lse_slack_) + std::fabs(bracket.value) * dz_error);
  }
  if (std::isfinite(f)) result.slack += std::fabs(f) * dz * 2 * z_loss_ * Probability(column) * LseRounding();
  if (!std::isfinite(f)) return result;
  const long double kept = is_plain_ && column == target_ ? row_.Complement(column) : Probability(column);
  const long double vanishing = arithmetic_ == XENT_F64 || in_double_lanes_ ? kVanishingF64 : kVanishingF32;
  result.may_be_zero = kept < vanishing && (is_plain_ || y_[At(column)] == 0);
  return result;
}

Value LossRow::TargetGradient(int64_t column, long double factor) const {
  if (column >= cols_) return {0, 0};
  if (is_nan() || std::isnan(factor)) return {kNan, 0};
  const long double coefficient = row_weight_ * weights_[At(column)] * (1 - epsilon_);
  const long double f = coefficient == 0 ? 0 : factor * coefficient;
  const long double exact = Weighted(f, row_.Gap(column));
  return {exact, std::fabs(exact), std::isfinite(f) ? std::fabs(f) * GapSlack(column) : 0};
}

Value LossRow::LogProbability(int64_t column) const {
  if (is_nan()) return {kNan, 0};
  const long double gap = row_.Gap(column);
  return {-gap, gap, std::isinf(gap) ? 0 : GapSlack(column)};
}

Value LossRow::Entropy() const {
  if (is_nan()) return {kNan, 0};
  Sum sum;
  for (int64_t j = 0; j < cols_; ++j) {
    if (Probability(j) != 0) sum.Add(Probability(j) * row_.BelowTop(j));
  }
  const long double entropy = row_.log_total() + sum.Total();
  Sum slack;
  for (int64_t j = 0; cap_ > 0 && j < cols_; ++j) {
    if (Probability(j) != 0) slack.Add(Probability(j) * std::fabs(row_.Gap(j) - entropy) * h_[At(j)]);
  }
  return {entropy, entropy, slack.Total() * growth_};
}

int64_t LossRow::Argmax() const { return is_nan() ? -1 : TopK(1)[0]; }

int64_t LossRow::Rank(int64_t column) const {
  if (is_nan()) return -1;
  int64_t rank = 0;
  for (int64_t j = 0; j < cols_; ++j) {
    if (logits_[j] > logits_[column] || (logits_[j] == logits_[column] && j < column)) ++rank;
  }
  return rank;
}

std::vector<int64_t> LossRow::TopK(int64_t k) const {
  if (is_nan()) return std::vector<int64_t>(At(k), -1);
  std::vector<int64_t> order(At(cols_));
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int64_t a, int64_t b) {
    return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
  });
  order.resize(At(k));
  return order;
}

Losses EvaluateLosses(const LossInputs &inputs) {
  const xent_cross_entropy_options &options = inputs.options;
  const long double largest = LargestFinite(ArithmeticType(inputs.dtype));
  const long double smallest = SmallestNormal(ArithmeticType(inputs.dtype));
  Losses result{};
  Sum nll;
  Sum nll_slack;
  Sum weight;
  Sum sum;
  Sum magnitudes;
  Sum slack;
  for (int64_t i = 0; i < inputs.rows; ++i) {
    result.rows.emplace_back(inputs, i);
    const LossRow &row = result.rows.back();
    if (inputs.IsIgnored(i)) {
      result.losses.push_back({0, 0});
      result.lse.push_back(inputs.of_ignored ? row.Lse() : Value{0, 0});
      continue;
    }
    ++result.live_rows;
    const Value loss = row.Loss();
    result.losses.push_back(loss);
    result.lse.push_back(row.Lse());
    // The reduction takes losses as they are stored.
    const long double magnitude = std::fabs(loss.exact);
    sum.Add(magnitude > largest ? std::copysign(kInfinity, loss.exact) : magnitude < smallest ? 0 : loss.exact);
    magnitudes.Add(std::isfinite(loss.scale) ? loss.scale : magnitude);
    slack.Add(loss.slack);
    if (inputs.has_probs()) {
      weight.Add(1);
      continue;
    }
    const int64_t target = inputs.targets[At(i)];
    const long double r = inputs.row_weights.empty() ? 1 : inputs.row_weights[At(i)];
    weight.Add(r * (inputs.class_weights.empty() ? 1 : static_cast<long double>(inputs.class_weights[At(target)])));
    nll.Add(row.NegativeLogLikelihood().exact);
    nll_slack.Add(row.NegativeLogLikelihood().slack);
  }

  const Reduced reduced = Reduce({sum.Total(), magnitudes.Total(), slack.Total()}, weight.Total(), options.reduction);
  result.loss = reduced.loss;
  result.denominator = reduced.denominator;
  result.gradients_are_zero = reduced.is_empty;

  result.perplexity = kNan;
  if (!inputs.has_probs() && result.live_rows > 0) {
    // Each nll is within 4 ULP, at most 4 eps of itself, and what softcap is worth; so is their mean, and exp turns
    // that absolute error into a relative one. The last term is for the double arithmetic around it, where the
    // exponent's own rounding weighs |mean| 2^-53.
    const long double n = static_cast<long double>(result.live_rows);
    const long double mean = nll.Total() / n;
    result.perplexity = std::exp(mean);
    result.perplexity_relative_error =
        std::expm1(test::kLossUlp * UlpAt(ArithmeticType(inputs.dtype), 1) * mean + nll_slack.Total() / n) +
        0x1p-50L * (1 + mean);
  }
  return result;
}

long double FactorOf(const LossInputs &inputs, const Losses &losses, int64_t row) {
  long double upstream = 1;
  if (!inputs.upstream.empty()) upstream = inputs.upstream[inputs.upstream_per_row ? At(row) : 0];
  return upstream / losses.denominator;
}

Value GradientOf(const LossInputs &inputs, const Losses &losses, int64_t row, int64_t column) {
  if (inputs.IsIgnored(row) || losses.gradients_are_zero) return {0, 0};
  return losses.rows[At(row)].Gradient(column, FactorOf(inputs, losses, row));
}

Value TargetGradientOf(const LossInputs &inputs, const Losses &losses, int64_t row, int64_t column) {
  if (losses.gradients_are_zero) return {0, 0};
  return losses.rows[At(row)].TargetGradient(column, FactorOf(inputs, losses, row));
}

RowStatistics StatisticsOf(const LossInputs &inputs, const Losses &losses, int64_t i, int64_t top_k,
                           const std::vector<int64_t> &gather_cols) {
  const LossRow &row = losses.rows[At(i)];
  const bool ignored = inputs.IsIgnored(i);
  RowStatistics result{{0, 0}, {0, 0}, -1, -1, false, {}, {}, {}};
  if (ignored && !inputs.of_ignored) {
    result.topk_indices.assign(At(top_k), -1);
    result.topk_logprobs.assign(At(top_k), {0, 0});
    result.gathered.assign(gather_cols.size(), {0, 0});
    return result;
  }
  if (!ignored && !inputs.has_probs()) {
    const int64_t target = inputs.targets[At(i)];
    result.logprob = row.LogProbability(target);
    result.rank = row.Rank(target);
    result.hit = row.Argmax() == target;
  }
  result.entropy = row.Entropy();
  result.argmax = row.Argmax();
  if (top_k > 0) result.topk_indices = row.TopK(top_k);
  for (const int64_t c : result.topk_indices) {
    result.topk_logprobs.push_back(c < 0 ? Value{kNan, 0} : row.LogProbability(c));
  }
  for (const int64_t c : gather_cols) result.gathered.push_back(row.LogProbability(c));
  return result;
}

Reduced Reduce(Value sum, long double weight, const xent_reduction &reduction) {
  long double d = 1;
  if (reduction.divisor != 0) {
    d = reduction.divisor;
  } else if (reduction.kind == XENT_REDUCTION_MEAN) {
    d = weight;
  }
  if (d == 0) return {{reduction.empty_mean == XENT_EMPTY_MEAN_ZERO ? 0 : kNan, 0}, d, true};
  return {{sum.exact / d, sum.scale / std::fabs(d), sum.slack / std::fabs(d)}, d, false};
}

Value Reduce(std::span<const double> losses, std::span<const int64_t> targets, const xent_reduction &reduction,
             int64_t ignore_index) {
  Sum sum;
  Sum magnitudes;
  int64_t live = 0;
  for (size_t i = 0; i < losses.size(); ++i) {
    if (!targets.empty() && targets[i] == ignore_index) continue;
    ++live;
    sum.Add(losses[i]);
    magnitudes.Add(std::fabs(losses[i]));
  }
  return Reduce({sum.Total(), magnitudes.Total()}, static_cast<long double>(live), reduction).loss;
}

}  // namespace xent::reference
