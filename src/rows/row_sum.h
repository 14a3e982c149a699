// From chunk sums to a row's numbers: merging, loss, lse, and the factors that turn exponentials into a gradient.
// Scalar, in Number<T> arithmetic, the same for every target; T is the arithmetic type (float or double).
#pragma once

#include <cstdint>

#include "kernels/row.h"
#include "numbers/number.h"

namespace xent::internal {

// sum 2^reference, or sum e^reference where `logit`. Exponent references are normalised (sum in [1, 2)), so that what
// reference a chunk happened to be summed with leaves no trace.
template <class T>
struct RowSum {
  Number<T> sum{};
  double reference = 0.0;
  bool logit = false;

  bool IsZero() const { return Value(sum) == 0.0; }
};

// e^z; zero for -inf.
template <class T>
RowSum<T> SumOfLogit(double z);
template <class T>
RowSum<T> SumOfChunk(const ChunkSum &chunk);
template <class T>
RowSum<T> Merge(const RowSum<T> &a, const RowSum<T> &b);
// Merge in order of `count` chunks, sum_of(i) the i-th; none is special.
template <class T, class SumOf>
RowSum<T> MergeChunks(int64_t count, const SumOf &sum_of) {
  RowSum<T> total;
  int64_t i = 0;
  if constexpr (sizeof(Number<T>) == sizeof(double)) {
    // The same additions relative to one reference, where no scaling leaves the range: a multiplication by a power of
    // two commutes with their roundings.
    double sum = 0.0, reference = 0.0;
    for (; i < count; ++i) {
      const ChunkSum &chunk = sum_of(i);
      if (chunk.sum.hi == 0.0) continue;
      if (sum == 0.0) reference = chunk.reference;
      const double above = chunk.reference - reference;
      if (chunk.kind == Reference::kLogit || !(above > -400.0 && above < 400.0)) break;
      sum += chunk.sum.hi * PowerOfTwo(static_cast<int64_t>(above));
    }
    total = SumOfChunk<T>({reference, {sum, 0.0}, {}, 0.0, Reference::kExponent, Special::kNone});
  }
  for (; i < count; ++i) total = Merge<T>(total, SumOfChunk<T>(sum_of(i)));
  return total;
}
// log of the sum, which is not zero.
template <class T>
Number<T> LogOfSum(const RowSum<T> &sum);
// log(1 + others / target), exact digits however small; target not zero.
template <class T>
Number<T> NegativeLogLikelihood(const RowSum<T> &others, const RowSum<T> &target);

// g (times part / total - minus), rounded to T once; zero where it is no larger than T's smallest normal number.
template <class T>
T ScaledRatio(Factor g, const RowSum<T> &part, const RowSum<T> &total, double times, double minus);
// What e^z relative to the reference is multiplied by to give g e^z / total.
template <class T>
Factor FactorOf(Factor g, const RowSum<T> &total, Reference kind, double reference);

}  // namespace xent::internal
