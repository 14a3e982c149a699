#include "rows/general_row.h"

namespace xent::internal {
namespace {

// factor (a - b), a >= b; infinite where b is masked or the difference is too large for a double.
template <class N>
N Distance(double a, double b, double factor) {
  const double plain = a - b;
  if (!IsFinite(plain)) return N{plain * factor};
  if constexpr (sizeof(N) == sizeof(double)) {
    return plain * factor;
  } else {
    return MultiplyAny(TwoSum(a, -b), Wide{factor});
  }
}

}  // namespace

template <class T>
void Merge(const GeneralSums &chunk, double factor, GeneralRow<T> *row) {
  using N = Number<T>;
  GeneralRow<T> next;
  next.max = chunk.max;
  next.value = chunk.value;
  next.argmax = chunk.argmax;
  next.others = ToNumber<T>(chunk.others);
  next.entropy = ToNumber<T>(chunk.entropy);
  next.weight = ToNumber<T>(chunk.weight);
  next.weighted = ToNumber<T>(chunk.weighted);
  next.special = chunk.special;
  next.empty = false;
  if (row->empty) {
    *row = next;
    return;
  }
  const Special special =
      row->special == Special::kNan || chunk.special == Special::kNone ? row->special : chunk.special;
  // Among equals the earlier chunk has the maximum.
  const bool keeps = next.argmax < 0 || (row->argmax >= 0 && row->max >= next.max);
  const GeneralRow<T> high = keeps ? *row : next, low = keeps ? next : *row;
  *row = high;
  row->special = special;
  row->weight = AddOrOverflow(high.weight, low.weight);
  row->weighted = AddOrOverflow(high.weighted, low.weighted);
  if (low.argmax < 0 || special != Special::kNone) return;  // masked: what is weighted there is infinite already
  const N distance = Distance<N>(high.value, low.value, factor);
  if (Value(low.weight) != 0.0) {
    constexpr double kScale = Format<T>::kSpreadScale;
    const N scaled = kScale == 1.0 ? distance : Distance<N>(high.value * kScale, low.value * kScale, factor);
    const N moved = MultiplyAny(scaled, low.weight);
    row->weighted = AddOrOverflow(row->weighted, moved);
  }
  if (!(Value(distance) < 1000.0)) return;  // e^-distance counts as 0
  const auto e = Exp(Subtract(N{}, distance));
  const N part = Scale(e.mantissa, e.exponent);
  const N low_total = Add(low.others, N{1.0});
  row->others = Add(high.others, Multiply(part, low_total));
  row->entropy = Add(high.entropy, Multiply(part, Add(low.entropy, Multiply(low_total, distance))));
}

template <class T>
Number<T> LogTotal(const GeneralRow<T> &row) {
  return Log1p(row.others);
}

template <class T>
Number<T> LogSumExp(const GeneralRow<T> &row, double factor) {
  return AddOrOverflow(Distance<Number<T>>(row.value, 0.0, factor), LogTotal(row));
}

template <class T>
Number<T> Gap(const GeneralRow<T> &row, double factor, double value) {
  return AddOrOverflow(Distance<Number<T>>(row.value, value, factor), LogTotal(row));
}

template <class T>
Number<T> Entropy(const GeneralRow<T> &row) {
  using N = Number<T>;
  return Add(LogTotal(row), Divide(row.entropy, Add(row.others, N{1.0})));
}

template <class T>
Number<T> WeightedGap(const GeneralRow<T> &row, int64_t *scale) {
  using N = Number<T>;
  const double magnitude = Value(row.weighted) < 0.0 ? -Value(row.weighted) : Value(row.weighted);
  const int64_t spread = ExponentOf(Format<T>::kSpreadScale);
  *scale = magnitude < 0x1p900 ? 0 : spread;
  const N weighted = *scale == 0 ? Scale(row.weighted, -spread) : row.weighted;
  return AddOrOverflow(weighted, MultiplyAny(row.weight, Scale(LogTotal(row), *scale)));
}

#define XENT_INSTANTIATE(T)                                             \
  template void Merge<T>(const GeneralSums &, double, GeneralRow<T> *); \
  template Number<T> LogTotal<T>(const GeneralRow<T> &);                \
  template Number<T> LogSumExp<T>(const GeneralRow<T> &, double);       \
  template Number<T> Gap<T>(const GeneralRow<T> &, double, double);     \
  template Number<T> Entropy<T>(const GeneralRow<T> &);                 \
  template Number<T> WeightedGap<T>(const GeneralRow<T> &, int64_t *);
XENT_INSTANTIATE(float)
XENT_INSTANTIATE(double)
#undef XENT_INSTANTIATE

}  // namespace xent::internal
