// xent_reduce: the reduction of cross-entropy over row losses stored earlier.
#include <algorithm>

#include "api/reduction.h"
#include "api/validate.h"
#include "math/fp_mode.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

template <class T>
XENT_NOINLINE void ReduceLosses(int64_t rows, const T *losses, const Targets &targets, const xent_options &options,
                                T *loss) {
  Totals totals;
  int64_t live_rows = 0;
  const int64_t group_rows = RowsPerGroup(rows);
  for (int64_t begin = 0; begin < rows; begin += group_rows) {
    Totals group;
    for (int64_t row = begin; row < std::min(rows, begin + group_rows); ++row) {
      if (targets.data != nullptr && targets[row] == options.ignore_index) continue;
      ++live_rows;
      group.Add({{static_cast<double>(losses[row]), 0.0}, 0.0});
    }
    totals.Add(group);
  }
  *loss = Reduced<T>(totals.loss, options, live_rows);
}

}  // namespace
}  // namespace xent::internal

extern "C" xent_status xent_reduce(int64_t rows, const void *losses, xent_dtype dtype, const void *targets,
                                   xent_index_type targets_type, const xent_options *given_options, void *loss,
                                   xent_error *error) noexcept {
  using namespace xent::internal;
  XENT_RETURN_IF_ERROR(CheckError(error));
  xent_options options;
  // Smoothing has been applied to the losses: the number of columns does not matter here.
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
  const FpMode mode(Subnormals::kFlush);
  if (dtype == XENT_F64) {
    ReduceLosses(rows, static_cast<const double *>(losses), view, options, static_cast<double *>(loss));
  } else {
    ReduceLosses(rows, static_cast<const float *>(losses), view, options, static_cast<float *>(loss));
  }
  return XENT_OK;
}
