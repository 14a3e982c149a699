// From summed row losses to the reduced loss, and perplexity.
#pragma once

#include <cstdint>

#include "numbers/number.h"
#include "rows/groups.h"
#include "xent/xent.h"

namespace xent::internal {

inline int64_t TargetAt(const xent_targets &targets, int64_t row) {
  return targets.type == XENT_I32 ? static_cast<const int32_t *>(targets.data)[row]
                                  : static_cast<const int64_t *>(targets.data)[row];
}

// What sums, and gradients, are divided by; `weight` is the mean's. Zero: the mean over nothing.
Factor Denominator(const xent_reduction &reduction, double weight);

// Writes sum over denominator to `loss`, of float64 where `wide`, else of float32.
void WriteReduced(void *loss, bool wide, Wide sum, const xent_reduction &reduction, Factor denominator);

// exp(sum of nll / live rows); NaN without live rows.
double Perplexity(Wide nll, int64_t live_rows);

// Reduces losses stored earlier; weights are those of the mean's denominator.
void ReduceStored(const xent_stored_losses &args, const xent_cross_entropy_options &options);

}  // namespace xent::internal
