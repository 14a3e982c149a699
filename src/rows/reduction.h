// From summed row losses to the reduced loss, and perplexity.
#ifndef XENT_SRC_ROWS_REDUCTION_H_
#define XENT_SRC_ROWS_REDUCTION_H_

#include <cstdint>
#include <limits>

#include "rows/row_sum.h"
#include "rows/run_rows.h"
#include "xent/xent.h"

namespace xent::internal {

struct Targets {
  const void *data;
  int32_t type;
  int64_t operator[](int64_t row) const {
    return type == XENT_I32 ? static_cast<const int32_t *>(data)[row] : static_cast<const int64_t *>(data)[row];
  }
};

// What sums, and gradients, are divided by; `weight` is the mean's. Zero: the mean over nothing.
inline Factor Denominator(const xent_options &options, double weight) {
  if (options.has_divisor) return Decompose(options.divisor);
  return Decompose(options.reduction == XENT_REDUCTION_MEAN ? weight : 1.0);
}

template <class T>
T Reduced(Wide sum, const xent_options &options, Factor denominator) {
  if (denominator.mantissa == 0.0) return options.empty_mean == XENT_EMPTY_MEAN_ZERO ? T{0} : static_cast<T>(kNan);
  if (sum.hi != sum.hi) return static_cast<T>(kNan);
  if (sum.hi - sum.hi != 0.0) return static_cast<T>(sum.hi * denominator.mantissa);
  if (sum.hi == 0.0) return T{0};
  // Exponents apart, so that huge sums and tiny or huge divisors cost no digits.
  const int64_t exponent = ExponentOf(sum.hi);
  const Wide quotient = Divide(Scale(sum, -exponent), {denominator.mantissa, 0.0});
  return RoundTo<T>(Number<T>{Scale(quotient.hi, exponent - denominator.exponent)});
}

inline void WriteReduced(void *loss, bool wide, Wide sum, const xent_options &options, Factor denominator) {
  if (wide) {
    *static_cast<double *>(loss) = Reduced<double>(sum, options, denominator);
  } else {
    *static_cast<float *>(loss) = Reduced<float>(sum, options, denominator);
  }
}

// exp(sum of nll / live rows).
inline double Perplexity(Wide nll, int64_t live_rows) {
  if (live_rows == 0 || nll.hi != nll.hi) return std::numeric_limits<double>::quiet_NaN();
  if (nll.hi > 1e300) return kInfinity;
  const Wide mean = Divide(nll, {static_cast<double>(live_rows), 0.0});
  if (mean.hi > 1e6) return kInfinity;
  const auto e = Exp(mean);
  return Scale(e.mantissa.hi, e.exponent);
}

}  // namespace xent::internal
#endif  // XENT_SRC_ROWS_REDUCTION_H_
