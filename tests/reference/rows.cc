// The naive oracle of the row functions; see rows.h.
#include "reference/rows.h"

#include <cmath>
#include <limits>

namespace xent::reference {
namespace {

constexpr long double kNan = std::numeric_limits<long double>::quiet_NaN();
constexpr long double kInfinity = std::numeric_limits<long double>::infinity();

// a - b = high + low exactly (Knuth's TwoSum), for finite a and b.
struct Difference {
  long double high;
  long double low;
};
Difference Subtract(long double a, long double b) {
  const long double high = a - b;
  const long double a_part = high + b;
  const long double b_part = a_part - high;
  return {high, (a - a_part) - (b - b_part)};
}

// exp(a - b), with a <= b and b finite. The low part is below 2^-50 wherever the result is not zero, so 1 + low is its
// exponential to 2^-100.
long double ExpOfDifference(double a, long double b) {
  if (std::isinf(a)) return 0;
  const Difference d = Subtract(a, b);
  return std::exp(d.high) * (1 + d.low);
}

// 0 * infinity is 0 where the coefficient is exactly 0.
long double Weighted(long double coefficient, long double value) { return coefficient == 0 ? 0 : coefficient * value; }

// Where the mass of the label goes: y_t and y_j elsewhere.
struct Label {
  long double target;
  long double other;
};
Label LabelOf(const xent_options &options, int64_t cols) {
  const long double e = options.label_smoothing;
  if (e == 0) return {1, 0};
  if (options.smoothing == XENT_SMOOTHING_EXCLUSIVE) return {1 - e, e / static_cast<long double>(cols - 1)};
  const long double share = e / static_cast<long double>(cols);
  return {(1 - e) + share, share};
}

}  // namespace

void Sum::Add(long double term) {
  const long double next = sum_ + term;
  if (std::isfinite(next)) {
    lost_ += std::fabs(sum_) >= std::fabs(term) ? (sum_ - next) + term : (term - next) + sum_;
  }
  sum_ = next;
}

long double Sum::Total() const { return std::isfinite(sum_) ? sum_ + lost_ : sum_; }

Row::Row(std::span<const double> logits, int64_t target) : logits_(logits), target_(target), maximum_(-kInfinity) {
  const int64_t cols = static_cast<int64_t>(logits.size());
  int64_t top = -1;
  for (int64_t j = 0; j < cols; ++j) {
    if (std::isnan(logits[j])) maximum_ = kNan;
    if (std::isnan(maximum_)) break;
    // Among equals the target is preferred: the sum that is kept apart then is the one without the target.
    if (top < 0 || logits[j] > maximum_ || (j == target && logits[j] == maximum_)) {
      maximum_ = logits[j];
      top = j;
    }
  }
  is_nan_ = !std::isfinite(maximum_);
  if (is_nan_) return;
  exp_.resize(logits.size());
  Sum others;
  Sum not_target;
  for (int64_t j = 0; j < cols; ++j) {
    exp_[j] = ExpOfDifference(logits[j], maximum_);
    if (j != top) others.Add(exp_[j]);
    if (j != target) not_target.Add(exp_[j]);
  }
  others_ = others.Total();
  not_target_ = not_target.Total();
  total_ = 1 + others_;
  log_total_ = std::log1p(others_);
}

long double Row::Gap(int64_t column) const {
  if (std::isinf(logits_[column])) return kInfinity;
  const Difference d = Subtract(maximum_, logits_[column]);
  return d.high + (d.low + log_total_);
}

Value Row::LogSumExp() const {
  if (is_nan_) return {maximum_, 0};
  const long double exact = maximum_ + log_total_;
  return {exact, std::max(std::fabs(maximum_), std::log(static_cast<long double>(logits_.size())))};
}

Value Row::Softmax(int64_t column) const {
  if (is_nan_) return {kNan, 0};
  const long double p = exp_[column] / total_;
  return {p, p};
}

Value Row::LogSoftmax(int64_t column) const {
  if (is_nan_) return {kNan, 0};
  const long double gap = Gap(column);
  return {-gap, gap};
}

Value Row::Lse() const { return is_nan_ ? Value{kNan, 0} : LogSumExp(); }

long double Row::NegativeLogLikelihood() const { return is_nan_ ? kNan : Gap(target_); }

Value Row::Loss(const xent_options &options) const {
  if (is_nan_) return {kNan, 0};
  const long double e = options.label_smoothing;
  long double loss = Weighted(1 - e, Gap(target_));
  if (e != 0) {
    const bool exclusive = options.smoothing == XENT_SMOOTHING_EXCLUSIVE;
    Sum gaps;
    for (int64_t j = 0; j < static_cast<int64_t>(logits_.size()); ++j) {
      if (!exclusive || j != target_) gaps.Add(Gap(j));
    }
    loss += LabelOf(options, static_cast<int64_t>(logits_.size())).other * gaps.Total();
  }
  return {loss, loss};
}

Value Row::Gradient(int64_t column, const xent_options &options, long double factor) const {
  if (is_nan_ || std::isnan(factor)) return {kNan, 0};
  const Label label = LabelOf(options, static_cast<int64_t>(logits_.size()));
  const long double p = exp_[column] / total_;
  if (options.label_smoothing == 0) {
    const long double exact = factor * (column == target_ ? -not_target_ / total_ : p);
    return {exact, exact};
  }
  const long double y = column == target_ ? label.target : label.other;
  return {factor * (p - y), std::fabs(factor) * std::max(p, y)};
}

std::vector<double> DecodeRows(xent_dtype dtype, const void *data, int64_t rows, int64_t cols, int64_t stride) {
  std::vector<double> values;
  values.reserve(static_cast<size_t>(rows * cols));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) values.push_back(Load(dtype, data, i * (stride == 0 ? cols : stride) + j));
  }
  return values;
}

namespace {

// Sum and count over the live rows, divided as the options say.
struct Reduction {
  Value loss;
  long double denominator;
  int64_t live_rows;
};

template <typename LossOf>
Reduction ReduceRows(int64_t rows, std::span<const int64_t> targets, const xent_options &options, LossOf &&loss_of) {
  Sum sum;
  Sum magnitudes;
  int64_t live = 0;
  for (int64_t i = 0; i < rows; ++i) {
    if (!targets.empty() && targets[i] == options.ignore_index) continue;
    ++live;
    sum.Add(loss_of(i));
    magnitudes.Add(std::fabs(loss_of(i)));
  }
  if (options.has_divisor) {
    const long double d = options.divisor;
    return {{sum.Total() / d, magnitudes.Total() / d}, d, live};
  }
  if (options.reduction != XENT_REDUCTION_MEAN) return {{sum.Total(), magnitudes.Total()}, 1, live};
  if (live == 0) return {{options.empty_mean == XENT_EMPTY_MEAN_ZERO ? 0 : kNan, 0}, 1, 0};
  const long double n = static_cast<long double>(live);
  return {{sum.Total() / n, magnitudes.Total() / n}, n, live};
}

}  // namespace

CrossEntropy EvaluateCrossEntropy(xent_dtype dtype, std::span<const double> logits, int64_t cols,
                                  std::span<const int64_t> targets, const xent_options &options) {
  const int64_t rows = static_cast<int64_t>(targets.size());
  CrossEntropy result{};
  Sum nll;
  for (int64_t i = 0; i < rows; ++i) {
    if (targets[i] == options.ignore_index) {
      result.losses.push_back({0, 0});
      result.lse.push_back({0, 0});
      continue;
    }
    const Row row(logits.subspan(static_cast<size_t>(i * cols), static_cast<size_t>(cols)), targets[i]);
    result.losses.push_back(row.Loss(options));
    result.lse.push_back(row.Lse());
    nll.Add(row.NegativeLogLikelihood());
  }
  const long double largest = LargestFinite(ArithmeticType(dtype));
  const long double smallest = SmallestNormal(ArithmeticType(dtype));
  const Reduction reduction = ReduceRows(rows, targets, options, [&](int64_t i) {
    const long double loss = result.losses[static_cast<size_t>(i)].exact;
    return loss > largest ? kInfinity : loss < smallest ? 0 : loss;
  });
  result.loss = reduction.loss;
  result.live_rows = reduction.live_rows;
  result.denominator = options.reduction == XENT_REDUCTION_NONE ? 1 : reduction.denominator;
  result.perplexity = result.live_rows == 0 ? kNan : std::exp(nll.Total() / static_cast<long double>(result.live_rows));
  result.gradients_are_zero = options.reduction == XENT_REDUCTION_MEAN && !options.has_divisor && result.live_rows == 0;
  return result;
}

Value Reduce(std::span<const double> losses, std::span<const int64_t> targets, const xent_options &options) {
  return ReduceRows(static_cast<int64_t>(losses.size()), targets, options,
                    [&](int64_t i) { return static_cast<long double>(losses[static_cast<size_t>(i)]); })
      .loss;
}

std::vector<Value> SoftmaxBackward(std::span<const double> upstream, std::span<const double> output) {
  Sum dot;
  Sum magnitudes;
  for (size_t k = 0; k < output.size(); ++k) {
    // The product exactly, as the sum of two long doubles.
    const long double product = static_cast<long double>(upstream[k]) * output[k];
    dot.Add(product);
    if (std::isfinite(product)) {
      dot.Add(std::fma(static_cast<long double>(upstream[k]), static_cast<long double>(output[k]), -product));
    }
    magnitudes.Add(std::fabs(product));
  }
  std::vector<Value> result;
  for (size_t j = 0; j < output.size(); ++j) {
    const long double y = output[j];
    result.push_back({y * (upstream[j] - dot.Total()), std::fabs(y) * (std::fabs(upstream[j]) + magnitudes.Total())});
  }
  return result;
}

std::vector<Value> LogSoftmaxBackward(std::span<const double> upstream, std::span<const double> output) {
  Sum sum;
  Sum magnitudes;
  for (const double g : upstream) {
    sum.Add(g);
    magnitudes.Add(std::fabs(g));
  }
  std::vector<Value> result;
  for (size_t j = 0; j < output.size(); ++j) {
    const long double p = std::exp(static_cast<long double>(output[j]));
    result.push_back({upstream[j] - p * sum.Total(), std::fabs(upstream[j]) + p * magnitudes.Total()});
  }
  return result;
}

}  // namespace xent::reference
