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
  using N = Number<T>;

  N sum{};
  double reference = 0.0;
  bool logit = false;

  // e^z; zero for -inf.
  static RowSum OfLogit(double z);
  static RowSum OfChunk(const ChunkSum &chunk);

  bool IsZero() const { return Value(sum) == 0.0; }
  RowSum Merge(const RowSum &other) const;
  // log of the sum, which is not zero.
  N LogOfSum() const;
  // log(1 + others / target) of a target's term that is not zero, exact digits however small.
  Unbounded<N> NegativeLogLikelihood(const RowSum &others) const;
  // Returns g (times part / total - minus) of a row's total, rounded to T once; zero where it is no larger than T's
  // smallest normal number.
  T ScaledRatio(Factor g, const RowSum &part, Factor times, double minus) const;
  // Returns what e^z relative to the reference is multiplied by to give g e^z / total, of a row's total.
  Factor FactorOf(Factor g, Reference kind, double of_reference) const;
};

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
    total = RowSum<T>::OfChunk({reference, {sum, 0.0}, {}, 0.0, Reference::kExponent, Special::kNone});
  }
  for (; i < count; ++i) total = total.Merge(RowSum<T>::OfChunk(sum_of(i)));
  return total;
}

}  // namespace xent::internal
