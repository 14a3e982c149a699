// The naive oracle of the divergences: loops over long double on the logits as stored; logarithms of probabilities come
// from log1p of the other columns' sums, and what is added up carries its rounding errors along. Shares no code with the
// library.
#ifndef XENT_TESTS_REFERENCE_DIVERGENCE_H_
#define XENT_TESTS_REFERENCE_DIVERGENCE_H_

#include <span>
#include <vector>

#include "reference/number.h"
#include "xent/xent.h"

namespace xent::reference {

struct Divergence {
  Value loss;  // scale: sum of p (|log p| + |log q|), Jensen-Shannon: of the magnitudes of its four logarithms' terms
  std::vector<Value> gradient;  // of `loss`; scale: the larger of a column's terms
};

// One row without padding. The gradient is NaN throughout where the loss is, and where a reverse KL is infinite.
Divergence EvaluateDivergence(std::span<const double> student, std::span<const double> teacher,
                              xent_divergence_kind kind, double temperature, double beta);

}  // namespace xent::reference

#endif  // XENT_TESTS_REFERENCE_DIVERGENCE_H_
