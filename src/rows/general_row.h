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
};

// Chunks are merged in the order of their columns.
template <class T>
void Merge(const GeneralSums &chunk, double factor, GeneralRow<T> *row);

// L = lse - m'.
template <class T>
Number<T> LogTotal(const GeneralRow<T> &row);
template <class T>
Number<T> LogSumExp(const GeneralRow<T> &row, double factor);
// lse - z'_c of a column's value: exact digits however small; +inf where it is masked.
template <class T>
Number<T> Gap(const GeneralRow<T> &row, double factor, double value);
template <class T>
Number<T> Entropy(const GeneralRow<T> &row);
// 2^*scale sum_c y_c (lse - z'_c); *scale is 0 unless the sum may be past the largest double.
template <class T>
Number<T> WeightedGap(const GeneralRow<T> &row, int64_t *scale);

}  // namespace xent::internal
