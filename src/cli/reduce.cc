// Reduction over a corpus.
#include "reduce.h"

#include <algorithm>
#include <limits>

namespace xent_cli {

void CorpusLoss::Add(double loss, double weight) {
  losses_.Add(loss);
  weights_.Add(weight);
}

void CorpusLoss::Add(const CorpusLoss &other) {
  losses_.Add(other.losses_);
  weights_.Add(other.weights_);
  is_float32_ = is_float32_ && other.is_float32_;
}

std::optional<double> CorpusLoss::Reduced(const xent_options &options) const {
  if (options.reduction == XENT_REDUCTION_NONE) return std::nullopt;
  const bool is_mean = options.reduction == XENT_REDUCTION_MEAN && !options.has_divisor;
  const double denominator = options.has_divisor ? options.divisor : is_mean ? weights_.value() : 1;
  if (denominator == 0)
    return options.empty_mean == XENT_EMPTY_MEAN_ZERO ? 0 : std::numeric_limits<double>::quiet_NaN();
  const double loss = losses_.value() / denominator;
  return is_float32_ ? static_cast<double>(static_cast<float>(loss)) : loss;
}

xent_options Unreduced(xent_options options) {
  options.reduction = XENT_REDUCTION_NONE;
  options.has_divisor = 0;
  options.divisor = 0;
  return options;
}

void DivideByWhole(xent_options &options, int64_t count) {
  if (options.reduction != XENT_REDUCTION_MEAN || options.has_divisor) return;
  options.has_divisor = 1;
  options.divisor = static_cast<double>(std::max<int64_t>(count, 1));
}

}  // namespace xent_cli
