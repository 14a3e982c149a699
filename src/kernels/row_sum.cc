#include "kernels/row_sum.h"

namespace xent::internal {
namespace {

// Logit references up to this are turned into exponent references, so that only those remain beside which any logit
// within kLimit either vanishes or prevails.
template <class T>
inline constexpr double kFoldLimit = 2.0 * Format<T>::kLimit;

constexpr double kVast = 0x1p41;  // differences of logits beyond which e to their power is 0 or prevails

bool IsFinite(double x) { return x - x == 0.0; }
double Magnitude(double x) { return x < 0.0 ? -x : x; }

RowSum Normalised(RowSum s) {
  if (!s.logit && !s.IsZero()) {
    const int64_t exponent = ExponentOf(s.sum.hi);
    s.sum = Scale(s.sum, -exponent);
    s.reference += static_cast<double>(exponent);
  }
  return s;
}

template <class T>
RowSum Folded(RowSum s) {
  if (s.logit && Magnitude(s.reference) <= kFoldLimit<T>) {
    const Exponential e = Exp({s.reference, 0.0});
    s.sum = Multiply(s.sum, e.mantissa);
    s.reference = static_cast<double>(e.exponent);
    s.logit = false;
  }
  return Normalised(s);
}

Wide Difference(double a, double b) {
  const double s = a - b;
  return IsFinite(s) ? TwoSum(a, -b) : Wide{s, 0.0};
}

struct WideFactor {
  Wide mantissa;  // not normalised; 0 for zero
  double exponent = 0.0;
};

// 2^(a - b) or e^(a - b) of two references; a kind that vanishes beside the other gives 0. Only asked where a is at
// most about b, or both are exponents.
WideFactor ReferenceRatio(const RowSum &a, const RowSum &b) {
  if (!a.logit && !b.logit) return {{1.0, 0.0}, a.reference - b.reference};
  if (a.logit && b.logit) {
    const Wide d = Difference(a.reference, b.reference);
    if (d.hi < -kVast) return {};
    const Exponential e = Exp(d.hi > kVast ? Wide{kVast, 0.0} : d);
    return {e.mantissa, static_cast<double>(e.exponent)};
  }
  return {};
}

WideFactor Ratio(const RowSum &part, const RowSum &total) {
  WideFactor r = ReferenceRatio(part, total);
  r.mantissa = Multiply(Divide(part.sum, total.sum), r.mantissa);
  return r;
}

}  // namespace

template <class T>
RowSum SumOfLogit(double z) {
  if (z == -std::numeric_limits<double>::infinity()) return {};
  return Folded<T>({{1.0, 0.0}, z, true});
}

template <class T>
RowSum SumOfChunk(const ChunkSum &chunk) {
  if (chunk.sum.hi == 0.0) return {};
  const bool logit = chunk.kind == Reference::kLogit;
  const int64_t bias = Format<T>::kBias;
  // A logit reference is the chunk's maximum: its sum lies between 1 and the number of columns.
  if (logit) return Folded<T>({Scale(chunk.sum, -bias), chunk.reference, true});
  return Normalised({chunk.sum, chunk.reference - static_cast<double>(bias), false});
}

template <class T>
RowSum Merge(RowSum a, RowSum b) {
  if (b.IsZero()) return a;
  if (a.IsZero()) return b;
  if (a.logit != b.logit) {
    // The logit reference is beyond kFoldLimit, above or below everything the other counts.
    const RowSum &logit = a.logit ? a : b;
    const RowSum &exponent = a.logit ? b : a;
    return logit.reference > 0 ? logit : exponent;
  }
  const bool b_above = b.reference > a.reference;
  const RowSum &low = b_above ? a : b;
  const RowSum &high = b_above ? b : a;
  const WideFactor f = ReferenceRatio(low, high);
  // Clamped far below double's range, where the scaled sum is 0 anyway.
  const int64_t shift = f.exponent < -4000.0 ? -4000 : static_cast<int64_t>(f.exponent);
  const Wide scaled = Scale(Multiply(low.sum, f.mantissa), shift);
  return Normalised({b_above ? Add(scaled, high.sum) : Add(high.sum, scaled), high.reference, high.logit});
}

Wide LogOfSum(const RowSum &s) {
  const Wide log_sum = Log(s.sum);
  if (!s.logit) return Add(MultiplyLn2(s.reference), log_sum);
  return Add({s.reference, 0.0}, log_sum);
}

Wide NegativeLogLikelihood(const RowSum &others, const RowSum &target) {
  if (others.IsZero()) return {};
  if (others.logit != target.logit) {
    const bool others_prevail = others.logit ? others.reference > 0 : target.reference < 0;
    if (!others_prevail) return {};
    const Wide a = LogOfSum(others), b = LogOfSum(target);
    return IsFinite(a.hi - b.hi) ? Subtract(a, b) : Wide{a.hi - b.hi, 0.0};
  }
  if (others.logit) {
    const Wide d = Difference(others.reference, target.reference);
    if (!IsFinite(d.hi)) return d.hi > 0 ? d : Wide{};
    if (d.hi > kVast) return Add(d, Log(Divide(others.sum, target.sum)));
  }
  const WideFactor ratio = Ratio(others, target);
  if (ratio.mantissa.hi == 0.0) return {};
  if (ratio.exponent < -1100.0) return {};
  if (ratio.exponent > 500.0) return Add(MultiplyLn2(ratio.exponent), Log(ratio.mantissa));
  return Log1p(Scale(ratio.mantissa, static_cast<int64_t>(ratio.exponent)));
}

template <class T>
T RoundTo(Wide x) {
  // Decided on the unrounded number: processors differ on which results count as below the normal range.
  if (Magnitude(x.hi) <= PowerOfTwo(Format<T>::kMinExponent)) return T{0};
  return static_cast<T>(x.hi);
}

Factor Decompose(double x) {
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  const uint64_t sign = bits >> 63 << 63;
  uint64_t fraction = bits << 12 >> 12;
  int64_t exponent = ExponentOf(x);
  if (exponent == -1023) {  // subnormal: its leading bit becomes the hidden one
    if (fraction == 0) return {};
    const int shift = std::countl_zero(fraction) - 11;
    fraction = fraction << shift << 12 >> 12;
    exponent = -1022 - shift;
  }
  return {std::bit_cast<double>(sign | (uint64_t{1023} << 52) | fraction), exponent};
}

Factor Quotient(Factor a, Factor b) {
  if (a.mantissa == 0.0) return {};
  const double q = a.mantissa / b.mantissa;
  const int64_t exponent = ExponentOf(q);
  return {Scale(q, -exponent), a.exponent - b.exponent + exponent};
}

template <class T>
T ScaledRatio(Factor g, const RowSum &part, const RowSum &total, double minus) {
  Wide x;
  if (!part.IsZero()) {
    const WideFactor r = Ratio(part, total);
    // part <= total: only small exponents matter.
    x = Scale(r.mantissa, r.exponent < -3000.0 ? -3000 : static_cast<int64_t>(r.exponent));
  }
  x = Add(x, {-minus, 0.0});
  if (x.hi == 0.0) return T{0};
  const int64_t exponent = ExponentOf(x.hi);
  const Wide product = Multiply(Scale(x, -exponent), {g.mantissa, 0.0});
  return RoundTo<T>({Scale(product.hi, exponent + g.exponent), 0.0});
}

template <class T>
Factor FactorOf(Factor g, const RowSum &total, Reference kind, double reference) {
  const RowSum unit = Folded<T>({{1.0, 0.0}, reference, kind == Reference::kLogit});
  const WideFactor ratio = Ratio(unit, total);
  if (ratio.mantissa.hi == 0.0 || ratio.exponent < -100000.0) return {};
  const Wide product = Multiply(ratio.mantissa, {g.mantissa, 0.0});
  const int64_t exponent = ExponentOf(product.hi);
  const double mantissa = static_cast<double>(static_cast<T>(Scale(product.hi, -exponent)));
  return {mantissa, static_cast<int64_t>(ratio.exponent) + exponent + g.exponent};
}

#define XENT_INSTANTIATE(T)                                                  \
  template RowSum SumOfLogit<T>(double);                                     \
  template RowSum SumOfChunk<T>(const ChunkSum &);                           \
  template RowSum Merge<T>(RowSum, RowSum);                                  \
  template T ScaledRatio<T>(Factor, const RowSum &, const RowSum &, double); \
  template Factor FactorOf<T>(Factor, const RowSum &, Reference, double);    \
  template T RoundTo<T>(Wide);
XENT_INSTANTIATE(float)
XENT_INSTANTIATE(double)
#undef XENT_INSTANTIATE

}  // namespace xent::internal
