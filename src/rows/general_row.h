// From the sums of general.h to a row's numbers, in Number<T> arithmetic, the same for every target.
#pragma once

#include <cstdint>

#include "kernels/general.h"
#include "numbers/number.h"

namespace xent::internal {

template <class T>
struct GeneralRow {
  using N = Number<T>;
  double max = 0.0, value = 0.0;
  int64_t argmax = -1;
  N others{}, entropy{}, weight{}, weighted{};
  Special special = Special::kNone;
  bool empty = true;  // nothing merged yet

  // NaN by rule: NaN or +inf in the row, or nothing but masked columns.
  bool IsNan() const { return special != Special::kNone || argmax < 0; }

  // Merges chunks in the order of their columns.
  void Merge(const GeneralSums &chunk, double factor);
  // The exponentials' sum relative to that of the maximum, which it has with it.
  N Total() const { return Add(Scale(others, -kOthersBias), N{1.0}); }
  // The others' sum is so small that the total is 1, and that unbiased it might leave the normal range.
  bool IsTiny() const { return Value(others) < 0x1p-390; }
  // L = lse - m'.
  N LogTotal() const { return Log1p(Scale(others, -kOthersBias)); }
  Unbounded<N> LogSumExp(double factor) const { return Gap(factor, 0.0); }
  // lse - z'_c of a column's value: exact digits however small; +inf where it is masked.
  Unbounded<N> Gap(double factor, double of_value) const;
  // sum_c y_c (lse - z'_c).
  Unbounded<N> WeightedGap() const;
  N Entropy() const { return Add(LogTotal(), Divide(entropy, Add(others, N{PowerOfTwo(kOthersBias)}))); }
};

}  // namespace xent::internal
