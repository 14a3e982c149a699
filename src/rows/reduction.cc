#include "rows/reduction.h"

#include <bit>

#include "numbers/elements.h"
#include "rows/call.h"

namespace xent::internal {
namespace {

template <class T>
T Reduced(Wide sum, const xent_reduction &reduction, Factor denominator) {
  if (denominator.mantissa == 0.0) {
    return reduction.empty_mean == XENT_EMPTY_MEAN_ZERO ? T{0} : static_cast<T>(kNan);
  }
  if (sum.hi != sum.hi) return static_cast<T>(kNan);
  if (!IsFinite(sum.hi)) return static_cast<T>(sum.hi * denominator.mantissa);
  if (sum.hi == 0.0) return T{0};
  // Exponents apart, so that huge sums and tiny or huge divisors cost no digits.
  const int64_t exponent = ExponentOf(sum.hi);
  const Wide quotient = Divide(Scale(sum, -exponent), {denominator.mantissa, 0.0});
  return RoundTo<T>(Number<T>{Scale(quotient.hi, exponent - denominator.exponent)});
}

}  // namespace

Factor Denominator(const xent_reduction &reduction, double weight) {
  // Bits without the sign: a comparison may take a subnormal divisor for 0.
  const bool has_divisor = std::bit_cast<uint64_t>(reduction.divisor) << 1 != 0;
  return Decompose(has_divisor ? reduction.divisor : reduction.kind == XENT_REDUCTION_MEAN ? weight : 1.0);
}

void WriteReduced(void *loss, bool wide, Wide sum, const xent_reduction &reduction, Factor denominator) {
  if (wide) {
    *static_cast<double *>(loss) = Reduced<double>(sum, reduction, denominator);
  } else {
    *static_cast<float *>(loss) = Reduced<float>(sum, reduction, denominator);
  }
}

double Perplexity(Wide nll, int64_t live_rows) {
  if (live_rows == 0 || nll.hi != nll.hi) return kNan;
  if (nll.hi > 1e300) return kInfinity;
  const Wide mean = Divide(nll, {static_cast<double>(live_rows), 0.0});
  if (mean.hi > 1e6) return kInfinity;
  const auto e = Exp(mean);
  return Scale(e.mantissa.hi, e.exponent);
}

void ReduceStored(const xent_stored_losses &args, const xent_cross_entropy_options &options) {
  const bool wide = args.dtype == XENT_F64;
  Totals totals;
  Wide weight;
  {
    Groups groups(RowsPerGroup(args.rows), &totals, nullptr);
    for (int64_t row = 0; row < args.rows; ++row) {
      const int64_t target = args.targets.data == nullptr ? 0 : TargetAt(args.targets, row);
      if (args.targets.data != nullptr && target == options.ignore_index) continue;
      weight = AddOrOverflow(weight, MultiplyAny(Wide{WeightAt(args.row_weights, wide, row)},
                                                 Wide{WeightAt(args.class_weights, wide, target)}));
      groups.Of(row).AddRow(NumberAt(args.row_losses, wide, row));
    }
  }
  WriteReduced(args.reduced_loss, wide, totals.loss, options.reduction, Denominator(options.reduction, weight.hi));
}

}  // namespace xent::internal
