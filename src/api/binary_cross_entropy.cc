// Binary cross-entropy of logits or probabilities and the sigmoid focal loss: forward, forward with backward, backward.
#include "api/check.h"
#include "api/read_struct.h"
#include "numbers/fp_mode.h"
#include "rows/binary.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

xent_status CheckOptions(const xent_binary_cross_entropy_options *given, const xent_binary_cross_entropy &args,
                         xent_binary_cross_entropy_options *options, xent_error *error) {
  XENT_TRY(ReadStructOrDefaults(given, "options", options, error));
  XENT_TRY(CheckEnum("input", options->input, XENT_BINARY_PROBABILITIES,
                     "XENT_BINARY_LOGITS or XENT_BINARY_PROBABILITIES", error));
  const double gamma = options->focal_gamma, alpha = options->focal_alpha;
  XENT_TRY(CheckNumber("focal_gamma", gamma, IsFinite(gamma) && gamma >= 0.0, "a finite number >= 0", error));
  XENT_TRY(CheckNumber("focal_alpha", alpha, alpha == -1.0 || (alpha >= 0.0 && alpha <= 1.0),
                       "a number in [0, 1], or -1 (none)", error));
  if (options->input == XENT_BINARY_PROBABILITIES) {
    const char *name = nullptr;
    if (args.pos_weight != nullptr) name = "pos_weight";
    if (gamma != 0.0) name = "focal_gamma";
    if (alpha != -1.0) name = "focal_alpha";
    if (name != nullptr) {
      return Invalid(error, "%s and XENT_BINARY_PROBABILITIES do not go together: expected logits", name);
    }
  }
  return CheckReduction(options->reduction, args.reduced_loss, error);
}

// Checks that the outputs are those of the mode.
xent_status CheckOutputs(const xent_binary_cross_entropy &args, Mode mode, xent_error *error) {
  if (mode == Mode::kForward) return CheckNoGradient(args.grad, args.target_grad, args.upstream, error);
  if (mode == Mode::kBackward) {
    constexpr const char *kWhy = "backward writes gradients alone";
    XENT_TRY(CheckNoMatrix("element_losses", args.element_losses, kWhy, error));
    XENT_TRY(CheckUnset("reduced_loss", args.reduced_loss != nullptr, kWhy, error));
  }
  if (args.rows == 0 || args.grad.data != nullptr || args.target_grad.data != nullptr) return XENT_OK;
  return Invalid(error, "grad is NULL, and so is target_grad: expected a pointer");
}

// Refuses the first element, in memory order, that `first_bad` finds.
template <class Find>
xent_status CheckElements(const char *name, const Shape &shape, const xent_matrix &matrix, xent_status status,
                          const char *expected, const Find &first_bad, xent_error *error) {
  return DispatchDtype(matrix.dtype, [&](auto storage) {
    const int64_t length = shape.cols * shape.inner, blocks = shape.rows / shape.inner;
    const int64_t lines = matrix.stride == length ? 1 : blocks;  // of adjacent elements
    for (int64_t line = 0; line < lines; ++line) {
      const auto *const from = static_cast<const decltype(storage) *>(matrix.data) + line * matrix.stride;
      const int64_t k = first_bad(from, length * (blocks / lines));
      if (k == length * (blocks / lines)) continue;
      const int64_t block = line + k / length;
      const double x = static_cast<double>(Widen(from[k]));
      const int64_t row = block * shape.inner + k % shape.inner, column = k % length / shape.inner;
      return FailAt(error, status, {row, column, x}, "%s: row %lld, column %lld is %.17g, expected %s", name, Long(row),
                    Long(column), x, expected);
    }
    return XENT_OK;
  });
}

xent_status CheckValues(const Shape &shape, const BinaryCall &call, xent_error *error) {
  const xent_binary_cross_entropy &args = call.args;
  const bool wide = call.IsWide();
  XENT_TRY(CheckWeights("pos_weight", args.pos_weight, args.cols, wide, WeightOf::kColumn, error));
  XENT_TRY(CheckWeights("class_weights", args.class_weights, args.cols, wide, WeightOf::kColumn, error));
  XENT_TRY(CheckWeights("row_weights", args.row_weights, args.rows, wide, WeightOf::kRow, error));
  if (args.element_weights.data != nullptr) {
    const auto first_bad = [](const auto *from, int64_t count) { return FirstNotFinite(from, count); };
    XENT_TRY(CheckElements("element_weights", shape, args.element_weights, XENT_INVALID_ARGUMENT, "a finite number",
                           first_bad, error));
  }
  if (call.options.input == XENT_BINARY_LOGITS) return XENT_OK;
  const auto first_bad = [](const auto *from, int64_t count) {
    // Above the bits of 1 are those of larger numbers, NaN and negative ones, of which -0 is good.
    const auto look = [](auto bits) {
      constexpr int kMantissa = sizeof(bits) == 8 ? 52 : 23;
      return bits | ((decltype(bits){sizeof(bits) == 8 ? 1023 : 127} << kMantissa) - bits);
    };
    return FirstBad(from, count, look, [](double p) { return p >= 0.0 && p <= 1.0; });
  };
  return CheckElements("input", shape, args.input, XENT_DOMAIN_ERROR, "a probability in [0, 1]", first_bad, error);
}

xent_status CheckCall(const xent_binary_cross_entropy *given, const xent_binary_cross_entropy_options *given_options,
                      const xent_exec *given_exec, Mode mode, BinaryCall *call, xent_error *error) {
  const FpMode fp_mode(Subnormals::kKeep);  // comparisons neither trap nor flush, whatever the caller's mode
  xent_binary_cross_entropy &args = call->args;
  Shape shape;
  XENT_TRY(ReadArgs(given, &args, &shape, error));
  XENT_TRY(CheckOptions(given_options, args, &call->options, error));
  XENT_TRY(CheckExec(given_exec, &call->exec, error));
  XENT_TRY(CheckOutputs(args, mode, error));
  XENT_TRY(CheckMatrix("input", shape, kAnyDtype, Need::kRequired, &args.input, error));
  XENT_TRY(CheckMatrix("targets", shape, kAnyDtype, Need::kRequired, &args.targets, error));
  const int32_t dtype = args.input.dtype, arithmetic = call->IsWide() ? XENT_F64 : XENT_F32;
  XENT_TRY(CheckMatrix("element_weights", shape, arithmetic, Need::kOptional, &args.element_weights, error));
  XENT_TRY(CheckMatrix("element_losses", shape, arithmetic, Need::kOptional, &args.element_losses, error));
  XENT_TRY(CheckMatrix("grad", shape, dtype, Need::kOptional, &args.grad, error));
  XENT_TRY(CheckMatrix("target_grad", shape, args.targets.dtype, Need::kOptional, &args.target_grad, error));
  XENT_TRY(CheckArray("reduced_loss", args.reduced_loss, 0, ElementSize(arithmetic), error));
  if (mode != Mode::kForward) {
    XENT_TRY(CheckUpstream(shape, call->IsWide(), true, &args.upstream, error));
    XENT_TRY(CheckSameStride("grad", args.grad, "input", args.input, shape.rows, error));
  }
  call->elements = args.rows * args.cols;
  return CheckValues(shape, *call, error);
}

xent_status BinaryCrossEntropy(const xent_binary_cross_entropy *args, const xent_binary_cross_entropy_options *options,
                               const xent_exec *exec, Mode mode, xent_error *error) {
  BinaryCall call;
  XENT_TRY(CheckCall(args, options, exec, mode, &call, error));
  return Ended(RunBinary(&call), error);
}

}  // namespace
}  // namespace xent::internal

using xent::internal::BinaryCrossEntropy, xent::internal::Mode;

extern "C" {

xent_status xent_binary_cross_entropy_forward(const xent_binary_cross_entropy *args,
                                              const xent_binary_cross_entropy_options *options, const xent_exec *exec,
                                              xent_error *error) noexcept {
  return BinaryCrossEntropy(args, options, exec, Mode::kForward, error);
}

xent_status xent_binary_cross_entropy_forward_backward(const xent_binary_cross_entropy *args,
                                                       const xent_binary_cross_entropy_options *options,
                                                       const xent_exec *exec, xent_error *error) noexcept {
  return BinaryCrossEntropy(args, options, exec, Mode::kForwardBackward, error);
}

xent_status xent_binary_cross_entropy_backward(const xent_binary_cross_entropy *args,
                                               const xent_binary_cross_entropy_options *options, const xent_exec *exec,
                                               xent_error *error) noexcept {
  return BinaryCrossEntropy(args, options, exec, Mode::kBackward, error);
}

}  // extern "C"
