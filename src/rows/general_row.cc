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
void GeneralRow<T>::Merge(const GeneralSums &chunk, double factor) {
  GeneralRow next;
  next.max = chunk.max;
  next.value = chunk.value;
  next.argmax = chunk.argmax;
  next.others = ToNumber<T>(chunk.others);
  next.entropy = ToNumber<T>(chunk.entropy);
  next.weight = ToNumber<T>(chunk.weight);
  next.weighted = ToNumber<T>(chunk.weighted);
  next.special = chunk.special;
  next.empty = false;
  if (empty) {
    *this = next;
    return;
  }
  const Special merged = special == Special::kNan || chunk.special == Special::kNone ? special : chunk.special;
  // Among equals the earlier chunk has the maximum.
  const bool keeps = next.argmax < 0 || (argmax >= 0 && max >= next.max);
  const GeneralRow high = keeps ? *this : next, low = keeps ? next : *this;
  *this = high;
  special = merged;
  weight = AddOrOverflow(high.weight, low.weight);
  weighted = AddOrOverflow(high.weighted, low.weighted);
  if (low.argmax < 0 || special != Special::kNone) return;  // masked: what is weighted there is infinite already
  const N distance = Distance<N>(high.value, low.value, factor);
  if (Value(low.weight) != 0.0) {
    constexpr double kScale = Format<T>::kSpreadScale;
    const N scaled = kScale == 1.0 ? distance : Distance<N>(high.value * kScale, low.value * kScale, factor);
    weighted = AddOrOverflow(weighted, MultiplyAny(scaled, low.weight));
  }
  if (!(Value(distance) < 1000.0)) return;  // e^-distance counts as 0
  const auto e = Exp(Subtract(N{}, distance));
  const N part = Scale(e.mantissa, e.exponent), low_total = Add(low.others, N{1.0});
  others = Add(high.others, Multiply(part, low_total));
  entropy = Add(high.entropy, Multiply(part, Add(low.entropy, Multiply(low_total, distance))));
}

template <class T>
Number<T> GeneralRow<T>::Gap(double factor, double of_value) const {
  return AddOrOverflow(Distance<N>(value, of_value, factor), LogTotal());
}

template <class T>
Number<T> GeneralRow<T>::WeightedGap(int64_t *scale) const {
  const int64_t spread = ExponentOf(Format<T>::kSpreadScale);
  *scale = Magnitude(Value(weighted)) < 0x1p900 ? 0 : spread;
  const N sum = *scale == 0 ? Scale(weighted, -spread) : weighted;
  return AddOrOverflow(sum, MultiplyAny(weight, Scale(LogTotal(), *scale)));
}

template struct GeneralRow<float>;
template struct GeneralRow<double>;

}  // namespace xent::internal
