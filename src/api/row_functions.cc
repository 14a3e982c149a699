// logsumexp, softmax, log_softmax, the gradients through the last two, and check_logits.
#include "rows/row_functions.h"

#include "api/check.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

// A matrix of a call and its name in the header.
struct Named {
  const char *name;
  xent_matrix *matrix;
};

// Checks what all row functions have in common, and resolves strides and layout; the first matrix says the dtype, the
// last is the output, which may take the place of any other.
template <size_t kCount>
xent_status Check(const Named (&matrices)[kCount], const xent_exec *exec, RowFunctionArgs *call, xent_error *error) {
  XENT_TRY(CheckError(error));
  Shape shape;
  XENT_TRY(CheckShape(call->rows, call->cols, call->inner, &shape, error));
  call->inner = shape.inner;
  XENT_TRY(CheckExec(exec, &call->exec, error));
  const int32_t dtype = matrices[0].matrix->dtype;
  for (const auto &[name, matrix] : matrices) {
    const int32_t wanted = matrix == matrices[0].matrix ? kAnyDtype : dtype;
    XENT_TRY(CheckMatrix(name, shape, wanted, Need::kRequired, matrix, error));
  }
  const Named &out = matrices[kCount - 1];
  for (const auto &[name, matrix] : matrices) {
    XENT_TRY(CheckSameStride(out.name, *out.matrix, name, *matrix, call->rows, error));
  }
  return XENT_OK;
}

xent_status Forward(bool (*run)(const RowFunctionArgs &), RowFunctionArgs call, const xent_exec *exec,
                    xent_error *error) {
  XENT_TRY(Check({{"x", &call.in}, {"y", &call.out}}, exec, &call, error));
  return Ended(run(call), error);
}

xent_status Backward(bool (*run)(const RowFunctionArgs &), RowFunctionArgs call, const xent_exec *exec,
                     xent_error *error) {
  XENT_TRY(Check({{"g", &call.g}, {"y", &call.in}, {"dx", &call.out}}, exec, &call, error));
  return Ended(run(call), error);
}

}  // namespace
}  // namespace xent::internal

extern "C" {

xent_status xent_logsumexp(int64_t rows, int64_t cols, int64_t inner, xent_matrix x, void *lse, const xent_exec *exec,
                           xent_error *error) noexcept {
  using namespace xent::internal;
  RowFunctionArgs call{.rows = rows, .cols = cols, .inner = inner, .in = x, .lse = lse};
  XENT_TRY(Check({{"x", &call.in}}, exec, &call, error));
  XENT_TRY(CheckArray("lse", lse, rows, ArithmeticSize(x.dtype), error));
  return Ended(RunLogSumExp(call), error);
}

xent_status xent_softmax(int64_t rows, int64_t cols, int64_t inner, xent_matrix x, xent_matrix y, const xent_exec *exec,
                         xent_error *error) noexcept {
  using namespace xent::internal;
  return Forward(RunSoftmax, {.rows = rows, .cols = cols, .inner = inner, .in = x, .out = y}, exec, error);
}

xent_status xent_log_softmax(int64_t rows, int64_t cols, int64_t inner, xent_matrix x, xent_matrix y,
                             const xent_exec *exec, xent_error *error) noexcept {
  using namespace xent::internal;
  return Forward(RunLogSoftmax, {.rows = rows, .cols = cols, .inner = inner, .in = x, .out = y}, exec, error);
}

xent_status xent_softmax_backward(int64_t rows, int64_t cols, int64_t inner, xent_matrix g, xent_matrix y,
                                  xent_matrix dx, const xent_exec *exec, xent_error *error) noexcept {
  using namespace xent::internal;
  return Backward(RunSoftmaxBackward, {.rows = rows, .cols = cols, .inner = inner, .in = y, .out = dx, .g = g}, exec,
                  error);
}

xent_status xent_log_softmax_backward(int64_t rows, int64_t cols, int64_t inner, xent_matrix g, xent_matrix y,
                                      xent_matrix dx, const xent_exec *exec, xent_error *error) noexcept {
  using namespace xent::internal;
  return Backward(RunLogSoftmaxBackward, {.rows = rows, .cols = cols, .inner = inner, .in = y, .out = dx, .g = g}, exec,
                  error);
}

xent_status xent_check_logits(int64_t rows, int64_t cols, int64_t inner, xent_matrix x, xent_diagnosis *diagnosis,
                              const xent_exec *exec, xent_error *error) noexcept {
  using namespace xent::internal;
  RowFunctionArgs call{.rows = rows, .cols = cols, .inner = inner, .in = x};
  XENT_TRY(Check({{"x", &call.in}}, exec, &call, error));
  XENT_TRY(CheckArray("diagnosis", diagnosis, 1, alignof(xent_diagnosis), error));
  return Ended(Diagnose(call, diagnosis), error);
}

}  // extern "C"
