#include "rows/general_row.h"

namespace xent::internal {
namespace {

// factor (a - b), a >= b; infinite where b is masked or the difference is too large for a double.
template <class N>
N Distance(double a, double b, double factor) {
  const double plain = a - b;
  if (!IsFinite(a) || !IsFinite(b)) return N{plain * factor};
  if (!IsFinite(plain)) return MultiplyAny(MultiplyAny(Subtract(N{0.5 * a}, N{0.5 * b}), N{factor}), N{2.0});
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
  if (!(Value(distance) < 1400.0)) return;  // e^-distance counts as 0
  const auto e = Exp(Subtract(N{}, distance));
  const N low_total = Add(low.others, N{PowerOfTwo(kOthersBias)});
  others = Add(high.others, Scale(Multiply(e.mantissa, low_total), e.exponent));
  const N low_entropy = Add(low.entropy, Multiply(low_total, distance));
  entropy = Add(high.entropy, Scale(Multiply(e.mantissa, low_entropy), e.exponent));
}

template <class T>
Number<T> GeneralRow<T>::Gap(double factor, double of_value) const {
  return AddOrOverflow(Distance<N>(value, of_value, factor), LogTotal());
}

template <class T>
Number<T> GeneralRow<T>::ScaledGap(double factor, double of_value, bool lifts, int64_t *scale) const {
  *scale = lifts && IsTiny() && of_value == value ? kOthersBias : 0;
  return *scale != 0 ? others : Gap(factor, of_value);
}

template <class T>
Number<T> GeneralRow<T>::WeightedGap(bool lifts, int64_t *scale) const {
  const int64_t spread = ExponentOf(Format<T>::kSpreadScale);
  const double size = Magnitude(Value(weighted));
  *scale = !(size < 0x1p900) ? spread : lifts && IsTiny() && size < 0x1p-900 ? kOthersBias : 0;
  const N sum = Scale(weighted, *scale - spread);
  return AddOrOverflow(sum, MultiplyAny(weight, *scale > 0 ? others : Scale(LogTotal(), *scale)));
}

template struct GeneralRow<float>;
template struct GeneralRow<double>;

}  // namespace xent::internal
