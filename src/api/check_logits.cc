// xent_check_logits: does a batch of logits look like probabilities? A diagnosis, not a hot path: the rows' sums are
// plain loops that stop at the first row which speaks against them.
#include <algorithm>
#include <cstdint>

#include "api/row_gradient.h"
#include "api/validate.h"
#include "math/fp_mode.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

// Every value in [0, 1], the sum near 1. NaN fails.
template <class In>
bool RowIsProbabilities(const In *row, int64_t cols, double tolerance) {
  double sum = 0.0;
  for (int64_t i = 0; i < cols; ++i) {
    const double p = static_cast<double>(Widen(row[i]));
    if (!(p >= 0.0 && p <= 1.0)) return false;
    sum += p;
  }
  return sum >= 1.0 - tolerance && sum <= 1.0 + tolerance;
}

template <class In>
XENT_NOINLINE bool AllProbabilities(const Matrix &x, int64_t rows, int64_t cols, double tolerance) {
  const FpMode mode(Subnormals::kKeep);
  const In *row = static_cast<const In *>(x.data);
  for (int64_t i = 0; i < rows; ++i, row += x.stride) {
    if (!RowIsProbabilities(row, cols, tolerance)) return false;
  }
  return true;
}

// Every row's logsumexp near 0, a batch of rows after the other.
template <class In>
xent_status AllLogProbabilities(const Matrix &x, int64_t rows, int64_t cols, xent_dtype dtype, double tolerance,
                                const xent_exec &exec, bool *all, xent_error *error) {
  constexpr int64_t kBatch = 256;
  Arithmetic<In> lse[kBatch];
  *all = true;
  const In *batch = static_cast<const In *>(x.data);
  // The first row alone decides for nearly everything that is not log-probabilities.
  for (int64_t done = 0, count = 1; done < rows; done += count, count = std::min(kBatch, rows - done)) {
    XENT_RETURN_IF_ERROR(xent_logsumexp(count, cols, batch + done * x.stride, dtype, x.stride, lse, &exec, error));
    for (int64_t i = 0; i < count; ++i) {
      if (!(lse[i] >= -tolerance && lse[i] <= tolerance)) *all = false;
    }
    if (!*all) return XENT_OK;
  }
  return XENT_OK;
}

}  // namespace
}  // namespace xent::internal

extern "C" xent_status xent_check_logits(int64_t rows, int64_t cols, const void *x, xent_dtype dtype, int64_t stride,
                                         xent_diagnosis *diagnosis, const xent_exec *given_exec,
                                         xent_error *error) noexcept {
  using namespace xent::internal;
  XENT_RETURN_IF_ERROR(CheckError(error));
  xent_exec exec;
  XENT_RETURN_IF_ERROR(CheckExec(given_exec, &exec, error));
  XENT_RETURN_IF_ERROR(CheckShape(rows, cols, dtype, error));
  Matrix in{"x", "stride", x, stride};
  XENT_RETURN_IF_ERROR(CheckMatrix(rows, cols, dtype, &in, error));
  XENT_RETURN_IF_ERROR(CheckArray(diagnosis, 1, alignof(xent_diagnosis), "diagnosis", error));
  xent_diagnosis found = XENT_DIAGNOSIS_LOGITS;
  if (rows > 0 && cols > 1) {
    const double tolerance = dtype == XENT_BF16 ? 0x1p-7 : 1e-3;
    const xent_status status = DispatchDtype(KernelDtype(dtype), [&](auto storage) {
      using In = decltype(storage);
      if (AllProbabilities<In>(in, rows, cols, tolerance)) {
        found = XENT_DIAGNOSIS_PROBABILITIES;
        return XENT_OK;
      }
      bool all = false;
      XENT_RETURN_IF_ERROR(AllLogProbabilities<In>(in, rows, cols, dtype, tolerance, exec, &all, error));
      if (all) found = XENT_DIAGNOSIS_LOG_PROBABILITIES;
      return XENT_OK;
    });
    if (status != XENT_OK) return status;
  }
  *diagnosis = found;
  return XENT_OK;
}
