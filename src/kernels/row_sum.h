// From chunk sums to a row's numbers: merging, loss, lse, and the factors that turn exponentials into a gradient.
// Scalar, in Wide arithmetic, the same for every target; T is the arithmetic type (float or double).
#ifndef XENT_SRC_KERNELS_ROW_SUM_H_
#define XENT_SRC_KERNELS_ROW_SUM_H_

#include <cstdint>

#include "kernels/row.h"

namespace xent::internal {

// sum 2^reference, or sum e^reference where `logit`. Exponent references are normalised (sum in [1, 2)), so that what
// reference a chunk happened to be summed with leaves no trace.
struct RowSum {
  Wide sum;
  double reference = 0.0;
  bool logit = false;

  bool IsZero() const { return sum.hi == 0.0; }
};

// e^z; zero for -inf.
template <class T>
RowSum SumOfLogit(double z);
template <class T>
RowSum SumOfChunk(const ChunkSum &chunk);
template <class T>
RowSum Merge(RowSum a, RowSum b);
// log of the sum, which is not zero.
Wide LogOfSum(const RowSum &sum);
// log(1 + others / target), exact digits however small; target not zero.
Wide NegativeLogLikelihood(const RowSum &others, const RowSum &target);

// A number mantissa 2^exponent, the mantissa rounded to T, or zero.
struct Factor {
  double mantissa = 0.0;
  int64_t exponent = 0;
};

// Exact for every finite x, subnormal too, whatever the floating-point mode; mantissa magnitude in [1, 2).
Factor Decompose(double x);
Factor Quotient(Factor a, Factor b);

// g (part / total - minus), rounded to T once; zero where it is no larger than T's smallest normal number.
template <class T>
T ScaledRatio(Factor g, const RowSum &part, const RowSum &total, double minus);
// What e^z relative to the reference is multiplied by to give g e^z / total.
template <class T>
Factor FactorOf(Factor g, const RowSum &total, Reference kind, double reference);

// To T: to nearest even, zero where the magnitude is at most its smallest normal number.
template <class T>
T RoundTo(Wide x);

}  // namespace xent::internal
#endif  // XENT_SRC_KERNELS_ROW_SUM_H_
