// The naive oracle of the row functions; see rows.h.
#include "reference/rows.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace xent::reference {
namespace {

constexpr long double kNan = std::numeric_limits<long double>::quiet_NaN();
constexpr long double kInfinity = std::numeric_limits<long double>::infinity();

size_t At(int64_t i) { return static_cast<size_t>(i); }

std::vector<Wide> Widen(std::span<const double> values) {
  std::vector<Wide> wide;
  wide.reserve(values.size());
  for (const double value : values) wide.push_back({value, 0});
  return wide;
}

bool IsLess(Wide a, Wide b) { return a.high < b.high || (a.high == b.high && a.low < b.low); }

}  // namespace

Row::Row(std::span<const double> logits, int64_t apart) : Row(Widen(logits), apart) {}

Row::Row(std::vector<Wide> logits, int64_t apart) : logits_(std::move(logits)), apart_(apart) {
  bool has_nan = false;
  for (int64_t j = 0; j < cols(); ++j) {
    has_nan = has_nan || std::isnan(logit(j).high);
    // Among equals `apart` is preferred: `others` then is the sum without it.
    if (IsLess(logit(top_), logit(j)) || (j == apart && !IsLess(logit(j), logit(top_)))) top_ = j;
  }
  maximum_ = has_nan ? kNan : logit(top_).high;
  is_nan_ = !std::isfinite(maximum_);
  if (is_nan_) return;
  exp_.reserve(logits_.size());
  Sum others;
  Sum not_apart;
  for (int64_t j = 0; j < cols(); ++j) {
    if (std::isinf(logit(j).high)) {
      exp_.push_back(0);
    } else {
      // The low part is below 2^-50 wherever the result is not zero, so 1 + low is its exponential to 2^-100.
      const Wide d = Subtract(logit(j), logit(top_));
      exp_.push_back(std::exp(d.high) * (1 + d.low));
    }
    if (j != top_) others.Add(exp_.back());
    if (j != apart) not_apart.Add(exp_.back());
  }
  others_ = others.Total();
  not_apart_ = not_apart.Total();
  total_ = 1 + others_;
  log_total_ = std::log1p(others_);
}

long double Row::Complement(int64_t column) const {
  if (column == top_) return others_ / total_;
  if (column == apart_) return not_apart_ / total_;
  return 1 - Probability(column);
}

long double Row::Gap(int64_t column) const {
  if (std::isinf(logit(column).high)) return kInfinity;
  const Wide d = Subtract(logit(top_), logit(column));
  return d.high + (d.low + log_total_);
}

long double Row::BelowTop(int64_t column) const {
  if (std::isinf(logit(column).high)) return kInfinity;
  const Wide d = Subtract(logit(top_), logit(column));
  return d.high + d.low;
}

Value Row::LogSumExp() const {
  if (is_nan_) return {maximum_, 0};
  const Wide sum = Add(maximum_, log_total_);
  return {sum.high + (sum.low + logit(top_).low),
          std::max(std::fabs(maximum_), std::log(static_cast<long double>(cols())))};
}

Value Row::Softmax(int64_t column) const {
  if (is_nan_) return {kNan, 0};
  const long double p = Probability(column);
  return {p, p};
}

Value Row::LogSoftmax(int64_t column) const {
  if (is_nan_) return {kNan, 0};
  const long double gap = Gap(column);
  return {-gap, gap};
}

std::vector<double> DecodeRows(xent_dtype dtype, const void *data, int64_t rows, int64_t cols, int64_t stride) {
  std::vector<double> values;
  values.reserve(At(rows * cols));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) values.push_back(Load(dtype, data, i * (stride == 0 ? cols : stride) + j));
  }
  return values;
}

std::vector<Value> SoftmaxBackward(std::span<const double> upstream, std::span<const double> output) {
  Sum dot;
  Sum magnitudes;
  for (size_t k = 0; k < output.size(); ++k) {
    const Wide product = Multiply(upstream[k], output[k]);
    dot.Add(product.high);
    if (std::isfinite(product.high)) dot.Add(product.low);
    magnitudes.Add(std::fabs(product.high));
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
