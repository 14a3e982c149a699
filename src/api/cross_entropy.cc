// Cross-entropy: forward, forward with backward, backward from forward's records, and the reduction of stored losses.
#include "api/check.h"
#include "api/check_call.h"
#include "api/read_struct.h"
#include "numbers/fp_mode.h"
#include "rows/call.h"
#include "rows/reduction.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

xent_status CrossEntropy(const Given &given, Mode mode, xent_error *error) {
  Call call;
  XENT_TRY(CheckCall(given, Step::kWhole, mode, &call, nullptr, error));
  return Ended(RunCrossEntropy(&call), error);
}

xent_status Reduce(const xent_stored_losses *given, const xent_cross_entropy_options *given_options,
                   xent_error *error) {
  const FpMode mode(Subnormals::kKeep);  // comparisons neither trap nor flush, whatever the caller's mode
  XENT_TRY(CheckError(error));
  xent_stored_losses args;
  xent_cross_entropy_options options;
  Shape shape;
  XENT_TRY(ReadStruct(given, "args", &args, error));
  // Options that concern the columns have been applied to the losses.
  XENT_TRY(CheckOptions(given_options, kMaxCols, args.reduced_loss, &options, error));
  if (options.reduction.kind == XENT_REDUCTION_NONE) {
    return Invalid(error, "reduction.kind is XENT_REDUCTION_NONE, expected XENT_REDUCTION_MEAN or XENT_REDUCTION_SUM");
  }
  XENT_TRY(CheckEnum("dtype", args.dtype, XENT_F64, "XENT_F32 or XENT_F64", error));
  XENT_TRY(CheckShape(args.rows, 1, 1, &shape, error));
  const bool wide = args.dtype == XENT_F64;
  XENT_TRY(CheckArray("row_losses", args.row_losses, args.rows, ElementSize(args.dtype), error));
  XENT_TRY(CheckArray("reduced_loss", args.reduced_loss, 1, ElementSize(args.dtype), error));
  if (args.targets.data != nullptr) XENT_TRY(CheckTargets(args.targets, args.rows, error));
  if (args.class_weights != nullptr) {
    XENT_TRY(CheckArray("targets", args.targets.data, args.rows, 1, error));
    XENT_TRY(CheckShape(args.rows, args.cols, 1, &shape, error));
  }
  XENT_TRY(CheckWeights("row_weights", args.row_weights, args.rows, wide, WeightOf::kRow, error));
  if (args.class_weights != nullptr) {
    XENT_TRY(CheckWeights("class_weights", args.class_weights, args.cols, wide, WeightOf::kColumn, error));
    XENT_TRY(CheckTargetRange(args.targets, args.rows, args.cols, options.ignore_index, error));
  }
  ReduceStored(args, options);
  return XENT_OK;
}

}  // namespace
}  // namespace xent::internal

using xent::internal::CrossEntropy, xent::internal::Mode;

extern "C" {

xent_status xent_cross_entropy_forward(const xent_cross_entropy *args, const xent_cross_entropy_options *options,
                                       const xent_exec *exec, xent_error *error) noexcept {
  return CrossEntropy({args, options, exec}, Mode::kForward, error);
}

xent_status xent_cross_entropy_forward_backward(const xent_cross_entropy *args,
                                                const xent_cross_entropy_options *options, const xent_exec *exec,
                                                xent_error *error) noexcept {
  return CrossEntropy({args, options, exec}, Mode::kForwardBackward, error);
}

xent_status xent_cross_entropy_backward(const xent_cross_entropy *args, const xent_cross_entropy_options *options,
                                        const xent_exec *exec, xent_error *error) noexcept {
  return CrossEntropy({args, options, exec}, Mode::kBackward, error);
}

xent_status xent_reduce(const xent_stored_losses *args, const xent_cross_entropy_options *options,
                        xent_error *error) noexcept {
  return xent::internal::Reduce(args, options, error);
}

}  // extern "C"
