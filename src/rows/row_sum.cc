#include "rows/row_sum.h"

#include <algorithm>

namespace xent::internal {
namespace {

// A logit reference of at most this magnitude becomes an exponent reference. Beside a larger one every logit within
// kLimit either vanishes or prevails, so that the two kinds never have to be compared more closely.
template <class T>
inline constexpr double kFoldLimit = 2.0 * Format<T>::kLimit;

constexpr double kVast = 0x1p41;  // differences of logits beyond which e to their power is 0 or prevails

template <class T>
RowSum<T> Normalised(RowSum<T> s) {
  if (!s.logit && !s.IsZero()) {
    const int64_t exponent = ExponentOf(Value(s.sum));
    s.sum = Scale(s.sum, -exponent);
    s.reference += static_cast<double>(exponent);
  }
  return s;
}

template <class T>
RowSum<T> Folded(RowSum<T> s) {
  if (s.logit && Magnitude(s.reference) <= kFoldLimit<T>) {
    const auto e = Exp(Number<T>{s.reference});
    s.sum = Multiply(s.sum, e.mantissa);
    s.reference = static_cast<double>(e.exponent);
    s.logit = false;
  }
  return Normalised(s);
}

template <class N>
N Difference(double a, double b) {
  if constexpr (sizeof(N) == sizeof(double)) {
    return a - b;
  } else {
    const double s = a - b;
    return IsFinite(s) ? TwoSum(a, -b) : Wide{s};
  }
}

// Returns a's unit over b's: 2^(a - b) of exponent references, e^(a - b) of logits, 0 of different kinds, where a's
// vanishes. Of logits a is at most about b.
template <class T, class N = Number<T>>
Unbounded<N> ReferenceRatio(const RowSum<T> &a, const RowSum<T> &b) {
  const double apart = std::clamp(a.reference - b.reference, -0x1p60, 0x1p60);  // a record may be damaged
  if (!a.logit && !b.logit) return {N{1.0}, static_cast<int64_t>(apart)};
  if (a.logit != b.logit) return {};
  const N d = Difference<N>(a.reference, b.reference);
  return Value(d) < -kVast ? Unbounded<N>{} : Exp(Value(d) > kVast ? N{kVast} : d);
}

// part / total, the mantissa not normalised; 0 for zero.
template <class T, class N = Number<T>>
Unbounded<N> Ratio(const RowSum<T> &part, const RowSum<T> &total) {
  Unbounded<N> r = ReferenceRatio(part, total);
  const N quotient = Divide(part.sum, total.sum);
  r.mantissa = part.logit ? Multiply(quotient, r.mantissa) : Value(r.mantissa) == 0.0 ? r.mantissa : quotient;
  return r;
}

}  // namespace

template <class T>
RowSum<T> RowSum<T>::OfLogit(double z) {
  if (z == -kInfinity) return {};
  return Folded<T>({N{1.0}, z, true});
}

template <class T>
RowSum<T> RowSum<T>::OfChunk(const ChunkSum &chunk) {
  if (chunk.sum.hi == 0.0) return {};
  const N sum = ToNumber<T>(chunk.sum);
  const int64_t bias = Format<T>::kBias;
  // A logit reference is the chunk's maximum: its sum lies between 1 and the number of columns.
  if (chunk.kind == Reference::kLogit) return Folded<T>({Scale(sum, -bias), chunk.reference, true});
  return Normalised<T>({sum, chunk.reference - static_cast<double>(bias), false});
}

template <class T>
RowSum<T> RowSum<T>::Merge(const RowSum &other) const {
  if (other.IsZero()) return *this;
  if (IsZero()) return other;
  if (logit != other.logit) {
    // The logit reference is beyond kFoldLimit, above or below everything the other counts.
    const RowSum &of_logit = logit ? *this : other, &of_exponent = logit ? other : *this;
    return of_logit.reference > 0 ? of_logit : of_exponent;
  }
  const bool other_above = other.reference > reference;
  const RowSum &low = other_above ? *this : other, &high = other_above ? other : *this;
  const Unbounded<N> f = ReferenceRatio(low, high);
  const N part = logit ? Multiply(low.sum, f.mantissa) : low.sum;
  return Normalised<T>({Add(high.sum, ValueOf<N>({part, f.exponent})), high.reference, logit});
}

template <class T>
Number<T> RowSum<T>::LogOfSum() const {
  return Add(logit ? N{reference} : MultiplyLn2<N>(reference), Log(sum));
}

template <class T>
Unbounded<Number<T>> RowSum<T>::NegativeLogLikelihood(const RowSum &others) const {
  if (others.IsZero()) return {};
  if (others.logit != logit) {
    const bool others_prevail = others.logit ? others.reference > 0 : reference < 0;
    return others_prevail ? DifferenceOf(others.LogOfSum(), LogOfSum()) : Unbounded<N>{};
  }
  if (logit) {
    const double d = others.reference - reference;
    if (!IsFinite(d)) return d > 0 ? DifferenceOf(N{others.reference}, N{reference}) : Unbounded<N>{};
    if (d > kVast) return {Add(Difference<N>(others.reference, reference), Log(Divide(others.sum, sum)))};
  }
  const Unbounded<N> ratio = Ratio(others, *this);
  if (Value(ratio.mantissa) == 0.0) return {};
  if (ratio.exponent < -1000) return ratio;  // log(1 + r) = r
  if (ratio.exponent > 500) return {Add(MultiplyLn2<N>(static_cast<double>(ratio.exponent)), Log(ratio.mantissa))};
  return {Log1p(Scale(ratio.mantissa, ratio.exponent))};
}

template <class T>
T RowSum<T>::ScaledRatio(Factor g, const RowSum &part, Factor times, double minus) const {
  Unbounded<N> x{};
  if (!part.IsZero()) {
    const Unbounded<N> r = Ratio(part, *this);
    x = {MultiplyAny(r.mantissa, N{times.mantissa}), r.exponent + times.exponent};
  }
  x = Sum<N>(x, {N{-minus}});
  return RoundTo<T>(ValueOf<N>({MultiplyAny(x.mantissa, N{g.mantissa}), x.exponent + g.exponent}));
}

template <class T>
Factor RowSum<T>::FactorOf(Factor g, Reference kind, double of_reference) const {
  const RowSum unit = Folded<T>({N{1.0}, of_reference, kind == Reference::kLogit});
  const Unbounded<N> ratio = Ratio(unit, *this);
  if (Value(ratio.mantissa) == 0.0 || ratio.exponent < -100000) return {};
  const double product = Value(Multiply(ratio.mantissa, N{g.mantissa}));
  const int64_t exponent = ExponentOf(product);
  const double mantissa = static_cast<double>(static_cast<T>(Scale(product, -exponent)));
  return {mantissa, ratio.exponent + exponent + g.exponent};
}

template struct RowSum<float>;
template struct RowSum<double>;

}  // namespace xent::internal
