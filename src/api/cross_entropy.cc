// Cross-entropy: forward, forward with backward, and backward from forward's records.
#include "api/check_call.h"
#include "api/validate.h"
#include "numbers/fp_mode.h"
#include "rows/general_job.h"
#include "rows/index_job.h"

namespace xent::internal {
namespace {

template <class In>
XENT_NOINLINE bool Run(const Call &call, const xent_exec &exec, Totals *totals) {
  if (call.Inner() > 1) return RunTiledRows<In>(call, exec, totals);
  if (IsGeneral(call.args, call.options)) return RunRows(GeneralJob<In>{call}, call.shape, exec, totals);
  return RunRows(IndexJob<In>{call}, call.shape, exec, totals);
}

xent_status CrossEntropy(const xent_cross_entropy *given, const xent_options *given_options,
                         const xent_exec *given_exec, Mode mode, xent_error *error) {
  CheckedCall checked;
  XENT_RETURN_IF_ERROR(CheckCall(given, given_options, given_exec, mode, nullptr, &checked, error));
  const xent_cross_entropy &args = checked.args;
  const FpMode fp_mode(Subnormals::kFlush);
  const Call call = checked.MakeCall(mode);
  Totals totals;
  const bool complete =
      DispatchDtype(args.dtype, [&](auto storage) { return Run<decltype(storage)>(call, checked.exec, &totals); });
  if (!complete) return FailIncomplete(error);
  checked.WriteTotals(totals);
  return XENT_OK;
}

}  // namespace
}  // namespace xent::internal

extern "C" {

xent_status xent_cross_entropy_forward(const xent_cross_entropy *args, const xent_options *options,
                                       const xent_exec *exec, xent_error *error) noexcept {
  return xent::internal::CrossEntropy(args, options, exec, xent::internal::Mode::kForward, error);
}

xent_status xent_cross_entropy_forward_backward(const xent_cross_entropy *args, const xent_options *options,
                                                const xent_exec *exec, xent_error *error) noexcept {
  return xent::internal::CrossEntropy(args, options, exec, xent::internal::Mode::kForwardBackward, error);
}

xent_status xent_cross_entropy_backward(const xent_cross_entropy *args, const xent_options *options,
                                        const xent_exec *exec, xent_error *error) noexcept {
  return xent::internal::CrossEntropy(args, options, exec, xent::internal::Mode::kBackward, error);
}

}  // extern "C"
