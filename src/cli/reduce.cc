// Reduction over a corpus.
#include "reduce.h"

#include <algorithm>
#include <limits>

namespace xent_cli {

bool IsMean(const xent_reduction &reduction) { return reduction.kind == XENT_REDUCTION_MEAN && reduction.divisor == 0; }

void CorpusLoss::Add(double loss, double weight) {
  losses_.Add(loss);
  weights_.Add(weight);
}

void CorpusLoss::Add(const CorpusLoss &other) {
  losses_.Add(other.losses_);
  weights_.Add(other.weights_);
  is_float32_ = is_float32_ && other.is_float32_;
}

std::optional<double> CorpusLoss::Reduced(const xent_reduction &reduction) const {
  if (reduction.kind == XENT_REDUCTION_NONE) return std::nullopt;
  double denominator = reduction.divisor != 0 ? reduction.divisor : 1;
  if (IsMean(reduction)) denominator = weights_.value();
  if (denominator == 0) {
    return reduction.empty_mean == XENT_EMPTY_MEAN_ZERO ? 0 : std::numeric_limits<double>::quiet_NaN();
  }
  const double loss = losses_.value() / denominator;
  return is_float32_ ? static_cast<double>(static_cast<float>(loss)) : loss;
}

xent_reduction NoReduction() {
  xent_reduction reduction = XENT_MEAN;
  reduction.kind = XENT_REDUCTION_NONE;
  return reduction;
}

xent_reduction ReductionOfPart(const xent_reduction &reduction, int64_t count) {
  xent_reduction of_part = reduction;
  if (IsMean(reduction)) of_part.divisor = static_cast<double>(std::max<int64_t>(count, 1));
  return of_part;
}

}  // namespace xent_cli
