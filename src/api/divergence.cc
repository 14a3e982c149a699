// Divergences between student and teacher logits: forward, and forward with backward.
#include "rows/divergence.h"

#include "api/check.h"
#include "api/read_struct.h"
#include "numbers/fp_mode.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

xent_status CheckOptions(const xent_divergence_options *given, const xent_divergence &args,
                         xent_divergence_options *options, xent_error *error) {
  XENT_TRY(ReadStructOrDefaults(given, "options", options, error));
  XENT_TRY(CheckEnum("kind", options->kind, XENT_DIVERGENCE_CROSS_ENTROPY,
                     "XENT_DIVERGENCE_FORWARD_KL, XENT_DIVERGENCE_REVERSE_KL, "
                     "XENT_DIVERGENCE_JENSEN_SHANNON or XENT_DIVERGENCE_CROSS_ENTROPY",
                     error));
  const double temperature = options->temperature, beta = options->beta;
  XENT_TRY(CheckNumber("temperature", temperature, IsFinite(temperature) && temperature > 0.0, "a finite number > 0",
                       error));
  XENT_TRY(CheckNumber("beta", beta, beta > 0.0 && beta < 1.0, "a number between 0 and 1, both excluded", error));
  if (beta != 0.5 && options->kind != XENT_DIVERGENCE_JENSEN_SHANNON) {
    return Invalid(error, "beta %.17g and kind %d do not go together: expected XENT_DIVERGENCE_JENSEN_SHANNON, or 0.5",
                   beta, options->kind);
  }
  XENT_TRY(CheckValidCols(args.cols, &options->valid_cols, error));
  return CheckReduction(options->reduction, args.reduced_loss, error);
}

xent_status CheckGradient(const Shape &shape, DivergenceCall *call, xent_error *error) {
  xent_divergence &args = call->args;
  if (call->mode == Mode::kForward) return CheckNoGradient(args.grad, xent_matrix{}, args.upstream, error);
  XENT_TRY(CheckMatrix("grad", shape, args.student.dtype, Need::kRequired, &args.grad, error));
  XENT_TRY(CheckSameStride("grad", args.grad, "student", args.student, shape.rows, error));
  if (shape.rows > 0 && args.grad.data == args.teacher.data) {
    return Invalid(error, "grad is teacher, expected memory of its own");
  }
  return CheckUpstream(shape, call->IsWide(), false, &args.upstream, error);
}

xent_status CheckCall(const xent_divergence *given, const xent_divergence_options *given_options,
                      const xent_exec *given_exec, DivergenceCall *call, xent_error *error) {
  const FpMode fp_mode(Subnormals::kKeep);  // comparisons neither trap nor flush, whatever the caller's mode
  xent_divergence &args = call->args;
  Shape shape;
  XENT_TRY(ReadArgs(given, &args, &shape, error));
  XENT_TRY(CheckOptions(given_options, args, &call->options, error));
  XENT_TRY(CheckExec(given_exec, &call->exec, error));
  XENT_TRY(CheckMatrix("student", shape, kAnyDtype, Need::kRequired, &args.student, error));
  XENT_TRY(CheckMatrix("teacher", shape, kAnyDtype, Need::kRequired, &args.teacher, error));
  const size_t size = ArithmeticSize(args.student.dtype);
  XENT_TRY(CheckArray("row_losses", args.row_losses, 0, size, error));
  XENT_TRY(CheckArray("reduced_loss", args.reduced_loss, 0, size, error));
  XENT_TRY(CheckGradient(shape, call, error));
  return CheckWeights("row_weights", args.row_weights, args.rows, call->IsWide(), WeightOf::kRow, error);
}

xent_status Divergence(const xent_divergence *args, const xent_divergence_options *options, const xent_exec *exec,
                       Mode mode, xent_error *error) {
  DivergenceCall call;
  call.mode = mode;
  XENT_TRY(CheckCall(args, options, exec, &call, error));
  return Ended(RunDivergence(&call), error);
}

}  // namespace
}  // namespace xent::internal

extern "C" {

xent_status xent_divergence_forward(const xent_divergence *args, const xent_divergence_options *options,
                                    const xent_exec *exec, xent_error *error) noexcept {
  return xent::internal::Divergence(args, options, exec, xent::internal::Mode::kForward, error);
}

xent_status xent_divergence_forward_backward(const xent_divergence *args, const xent_divergence_options *options,
                                             const xent_exec *exec, xent_error *error) noexcept {
  return xent::internal::Divergence(args, options, exec, xent::internal::Mode::kForwardBackward, error);
}

}  // extern "C"
