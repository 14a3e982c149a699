// xent_reduce: the reduction of cross-entropy over row losses stored earlier.
#include <algorithm>

#include "api/check_call.h"
#include "api/validate.h"
#include "numbers/fp_mode.h"
#include "rows/reduction.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

template <class T>
XENT_NOINLINE void ReduceLosses(int64_t rows, const T *losses, const Targets &targets, const void *row_weights,
                                const void *class_weights, const xent_options &options, T *loss) {
  constexpr bool kWide = sizeof(T) == sizeof(double);
  Totals totals;
  Wide weight;
  const int64_t group_rows = RowsPerGroup(rows);
  for (int64_t begin = 0; begin < rows; begin += group_rows) {
    Totals group;
    for (int64_t row = begin; row < std::min(rows, begin + group_rows); ++row) {
      const int64_t target = targets.data == nullptr ? 0 : targets[row];
      if (targets.data != nullptr && target == options.ignore_index) continue;
      weight = AddOrOverflow(
          weight, MultiplyAny(Wide{WeightAt(row_weights, kWide, row)}, Wide{WeightAt(class_weights, kWide, target)}));
      group.Add({{static_cast<double>(losses[row]), 0.0}, {}});
    }
    totals.Add(group);
  }
  *loss = Reduced<T>(totals.loss, options, Denominator(options, weight.hi));
}

xent_status Reduce(int64_t rows, const void *losses, int32_t dtype, const void *targets, int32_t targets_type,
                   const void *row_weights, const void *class_weights, int64_t cols, const xent_options *given_options,
                   void *loss, xent_error *error) {
  const FpMode keep(Subnormals::kKeep);  // comparisons neither trap nor flush, whatever the caller's mode
  XENT_RETURN_IF_ERROR(CheckError(error));
  xent_options options;
  // What concerns the columns has been applied to the losses.
  XENT_RETURN_IF_ERROR(CheckOptions(given_options, INT64_MAX, &options, error));
  if (options.reduction == XENT_REDUCTION_NONE) {
    return Invalid(error, "reduction is none, expected XENT_REDUCTION_SUM or XENT_REDUCTION_MEAN");
  }
  if (dtype != XENT_F32 && dtype != XENT_F64) {
    return Invalid(error, "dtype is %d, expected XENT_F32 or XENT_F64", dtype);
  }
  XENT_RETURN_IF_ERROR(CheckShape(rows, 1, dtype, error));
  XENT_RETURN_IF_ERROR(CheckArray(losses, rows, ElementSize(dtype), "losses", error));
  XENT_RETURN_IF_ERROR(CheckArray(loss, 1, ElementSize(dtype), "loss", error));
  if (targets != nullptr) XENT_RETURN_IF_ERROR(CheckTargets(targets, targets_type, rows, error));
  const Targets view{targets, targets_type};
  XENT_RETURN_IF_ERROR(CheckWeights(row_weights, rows, dtype == XENT_F64, "row_weights", error));
  if (class_weights != nullptr) {
    if (targets == nullptr && rows > 0) return Invalid(error, "targets is NULL, expected a pointer with class_weights");
    if (cols < 1) return Invalid(error, "cols is %lld, expected 1 or more", static_cast<long long>(cols));
    XENT_RETURN_IF_ERROR(CheckWeights(class_weights, cols, dtype == XENT_F64, "class_weights", error));
    for (int64_t row = 0; row < rows; ++row) {
      if (view[row] == options.ignore_index || (view[row] >= 0 && view[row] < cols)) continue;
      return TargetOutOfRange(row, view[row], cols, options, error);
    }
  }
  const FpMode mode(Subnormals::kFlush);
  if (dtype == XENT_F64) {
    ReduceLosses(rows, static_cast<const double *>(losses), view, row_weights, class_weights, options,
                 static_cast<double *>(loss));
  } else {
    ReduceLosses(rows, static_cast<const float *>(losses), view, row_weights, class_weights, options,
                 static_cast<float *>(loss));
  }
  return XENT_OK;
}

}  // namespace
}  // namespace xent::internal

extern "C" {

xent_status xent_reduce(int64_t rows, const void *losses, xent_dtype dtype, const void *targets,
                        xent_index_type targets_type, const xent_options *options, void *loss,
                        xent_error *error) noexcept {
  return xent::internal::Reduce(rows, losses, dtype, targets, targets_type, nullptr, nullptr, 0, options, loss, error);
}

xent_status xent_reduce_weighted(int64_t rows, const void *losses, xent_dtype dtype, const void *targets,
                                 xent_index_type targets_type, const void *row_weights, const void *class_weights,
                                 int64_t cols, const xent_options *options, void *loss, xent_error *error) noexcept {
  return xent::internal::Reduce(rows, losses, dtype, targets, targets_type, row_weights, class_weights, cols, options,
                                loss, error);
}

}  // extern "C"
