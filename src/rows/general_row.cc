#include "rows/general_row.h"

namespace xent::internal {
namespace {

// factor (a - b), a >= b; infinite where b is masked.
template <class N>
Unbounded<N> Distance(double a, double b, double factor) {
  if (!IsFinite(a) || !IsFinite(b)) return {N{(a - b) * factor}};
  if constexpr (sizeof(N) == sizeof(double)) {
    return Times(DifferenceOf(a, b), factor);
  } else {
    if (!IsFinite(a - b)) return Times(DifferenceOf(N{a}, N{b}), factor);
    return Times<N>({TwoSum(a, -b)}, factor);
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
  const Unbounded<N> apart = Distance<N>(high.value, low.value, factor);
  const N distance = ValueOf(apart);
  if (Value(low.weight) != 0.0) {
    const N scaled = ValueOf<N>({apart.mantissa, apart.exponent + ExponentOf(Format<T>::kSpreadScale)});
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
Unbounded<Number<T>> GeneralRow<T>::Gap(double factor, double of_value) const {
  if (of_value == value && IsTiny()) return {others, -kOthersBias};
  return Sum<N>(Distance<N>(value, of_value, factor), {LogTotal()});
}

template <class T>
Unbounded<Number<T>> GeneralRow<T>::WeightedGap() const {
  const Unbounded<N> log_total = IsTiny() ? Unbounded<N>{others, -kOthersBias} : Unbounded<N>{LogTotal()};
  const int64_t exponent = ExponentOf(Value(weight));
  const N product = MultiplyAny(Scale(weight, -exponent), log_total.mantissa);
  return Sum<N>({weighted, -ExponentOf(Format<T>::kSpreadScale)}, {product, log_total.exponent + exponent});
}

template struct GeneralRow<float>;
template struct GeneralRow<double>;

}  // namespace xent::internal
