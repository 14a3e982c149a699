// The naive oracle of binary cross-entropy: one element in long double, straight from the formulas of semantics.md,
// with the terms at whose magnitude errors are counted. Shares no code with the library.
#ifndef XENT_TESTS_REFERENCE_BINARY_H_
#define XENT_TESTS_REFERENCE_BINARY_H_

#include "reference/number.h"

namespace xent::reference {

struct BinaryElement {
  double x = 0;  // z or p
  double y = 0;
  bool probabilities = false;
  double pos_weight = 1;
  long double weight = 1;    // product of the element's, its row's and its class's
  long double upstream = 1;  // over the denominator; NaN and infinite ones count
  double gamma = 0;
  double alpha = -1;  // -1: none
};

struct BinaryResult {
  Value loss, grad, target_grad;
};

BinaryResult EvaluateBinary(const BinaryElement &element);

}  // namespace xent::reference

#endif  // XENT_TESTS_REFERENCE_BINARY_H_
