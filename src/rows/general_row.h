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
  // L = lse - m'.
  N LogTotal() const { return Log1p(others); }
  N LogSumExp(double factor) const { return Gap(factor, 0.0); }
  // lse - z'_c of a column's value: exact digits however small; +inf where it is masked.
  N Gap(double factor, double of_value) const;
  N Entropy() const { return Add(LogTotal(), Divide(entropy, Add(others, N{1.0}))); }
  // 2^*scale sum_c y_c (lse - z'_c); *scale is 0 unless the sum may be past the largest double.
  N WeightedGap(int64_t *scale) const;
};

}  // namespace xent::internal
