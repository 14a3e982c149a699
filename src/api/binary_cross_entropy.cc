// Binary cross-entropy of logits or probabilities and the sigmoid focal loss: forward, forward with backward, backward.
//
// Elements in memory order are cut into at most 256 groups, wherever that falls in a row. A group's losses are summed
// on fixed lanes, the groups in order, so that the sum depends on the number of elements and the layout alone.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "api/validate.h"
#include "dispatch/dispatch.h"
#include "numbers/elements.h"
#include "numbers/fp_mode.h"
#include "parallel/parallel.h"
#include "rows/reduction.h"
#include "rows/row_gradient.h"
#include "rows/run_rows.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

// Groups of whole steps, not so short that the calls count.
int64_t ElementsPerGroup(int64_t elements) {
  constexpr int64_t kAlign = 128, kShortest = 2048;
  return std::max(kShortest, (RowsPerGroup(elements) + kAlign - 1) / kAlign * kAlign);
}

// [N, V] matrices as blocks of rows: N of them row-major, else N / inner.
struct Shape {
  int64_t blocks, block_elements, elements;
  BinaryLayout layout;
};

xent_status CheckLayout(const xent_binary_cross_entropy &args, Shape *shape, xent_error *error) {
  const long long inner = args.inner;
  if (inner < 0) return Invalid(error, "inner is %lld, expected 0 or more", inner);
  const int64_t d = std::max<int64_t>(args.inner, 1);
  if (args.rows % d != 0) {
    return Invalid(error, "rows is %lld, expected a multiple of inner, which is %lld",
                   static_cast<long long>(args.rows), inner);
  }
  if (args.cols > INT64_MAX / d) {
    return Invalid(error, "cols %lld times inner %lld exceeds 2^63 - 1", static_cast<long long>(args.cols), inner);
  }
  const int64_t block = args.cols * d;
  *shape = {args.rows / d, block, 0, d > 1 ? BinaryLayout{d, args.cols, true} : BinaryLayout{args.cols, 1, false}};
  return XENT_OK;
}

// A matrix of the layout; one that is absent has no stride.
xent_status CheckLayoutMatrix(const Shape &shape, bool required, int32_t dtype, Matrix *matrix, xent_error *error) {
  if (matrix->data == nullptr && shape.blocks > 0 && !required) {
    if (matrix->stride == 0) return XENT_OK;
    return Invalid(error, "%s is set, but %s is NULL", matrix->stride_name, matrix->name);
  }
  if (shape.layout.inner && matrix->stride != 0 && matrix->stride < shape.block_elements) {
    return Invalid(error, "%s is %lld, expected 0 or at least cols times inner, which is %lld", matrix->stride_name,
                   static_cast<long long>(matrix->stride), static_cast<long long>(shape.block_elements));
  }
  return CheckMatrix(shape.blocks, shape.block_elements, dtype, matrix, error);
}

// One weight a row or a column.
template <class T>
xent_status CheckFiniteVector(const void *vector, int64_t count, bool of_rows, const char *name, xent_error *error) {
  const T *const values = static_cast<const T *>(vector);
  for (int64_t i = 0; values != nullptr && i < count; ++i) {
    if (values[i] - values[i] == T{0}) continue;
    return FailAt(error, XENT_INVALID_ARGUMENT, of_rows ? i : -1, of_rows ? 0 : i,
                  "%s: element %lld is %.17g, expected a finite number", name, static_cast<long long>(i),
                  static_cast<double>(values[i]));
  }
  return XENT_OK;
}

// The first element, in memory order, that is not good.
template <class In, class Good>
bool FindBad(const Shape &shape, const Matrix &matrix, Good good, int64_t *row, int64_t *column, double *value) {
  const BinaryLayout &layout = shape.layout;
  for (int64_t block = 0; block < shape.blocks; ++block) {
    const In *const from = static_cast<const In *>(matrix.data) + block * matrix.stride;
    for (int64_t k = 0; k < shape.block_elements; ++k) {
      const double x = static_cast<double>(Widen(from[k]));
      if (good(x)) continue;
      *row = layout.inner ? block * layout.length + k % layout.length : block;
      *column = layout.inner ? k / layout.length : k;
      *value = x;
      return true;
    }
  }
  return false;
}

template <class T>
xent_status CheckWeights(const xent_binary_cross_entropy &args, const Shape &shape, const Matrix &element_weights,
                         xent_error *error) {
  XENT_RETURN_IF_ERROR(CheckFiniteVector<T>(args.pos_weight, args.cols, false, "pos_weight", error));
  XENT_RETURN_IF_ERROR(CheckFiniteVector<T>(args.class_weights, args.cols, false, "class_weights", error));
  XENT_RETURN_IF_ERROR(CheckFiniteVector<T>(args.row_weights, args.rows, true, "row_weights", error));
  int64_t row, column;
  double value;
  const auto good = [](double x) { return x - x == 0.0; };
  if (element_weights.data == nullptr || !FindBad<T>(shape, element_weights, good, &row, &column, &value)) {
    return XENT_OK;
  }
  return FailAt(error, XENT_INVALID_ARGUMENT, row, column,
                "element_weights: row %lld, column %lld is %.17g, expected a finite number",
                static_cast<long long>(row), static_cast<long long>(column), value);
}

xent_status CheckProbabilities(const xent_binary_cross_entropy &args, const Shape &shape, const Matrix &input,
                               xent_error *error) {
  int64_t row, column;
  double value;
  const auto good = [](double p) { return p >= 0.0 && p <= 1.0; };
  const bool bad = DispatchDtype(
      args.dtype, [&](auto storage) { return FindBad<decltype(storage)>(shape, input, good, &row, &column, &value); });
  if (!bad) return XENT_OK;
  return FailAt(error, XENT_DOMAIN_ERROR, row, column,
                "input: row %lld, column %lld is %.17g, expected a probability in [0, 1]", static_cast<long long>(row),
                static_cast<long long>(column), value);
}

xent_status CheckKind(const xent_binary_cross_entropy &args, xent_error *error) {
  if (args.input_kind != XENT_BCE_LOGITS && args.input_kind != XENT_BCE_PROBABILITIES) {
    return Invalid(error, "input_kind is %d, expected XENT_BCE_LOGITS or XENT_BCE_PROBABILITIES", args.input_kind);
  }
  const double gamma = args.focal_gamma;
  if (gamma - gamma != 0.0 || gamma < 0.0) {
    return Invalid(error, "focal_gamma is %.17g, expected a finite number >= 0", gamma);
  }
  if (args.has_focal_alpha != 0 && args.has_focal_alpha != 1) {
    return Invalid(error, "has_focal_alpha is %d, expected 0 or 1", args.has_focal_alpha);
  }
  if (args.has_focal_alpha == 0 && args.focal_alpha != 0.0) {
    return Invalid(error, "focal_alpha is %.17g, but has_focal_alpha is 0: expected 1, or focal_alpha 0",
                   args.focal_alpha);
  }
  if (!(args.focal_alpha >= 0.0 && args.focal_alpha <= 1.0)) {
    return Invalid(error, "focal_alpha is %.17g, expected a number in [0, 1]", args.focal_alpha);
  }
  if (args.input_kind == XENT_BCE_LOGITS) return XENT_OK;
  const char *name = nullptr;
  if (args.pos_weight != nullptr) name = "pos_weight";
  if (gamma != 0.0) name = "focal_gamma";
  if (args.has_focal_alpha != 0) name = "focal_alpha";
  if (name == nullptr) return XENT_OK;
  return Invalid(error, "%s and input_kind probabilities do not go together: expected logits", name);
}

// Outputs and inputs that the mode has no use for must be unset: nothing is silently left undone.
xent_status CheckUnused(const xent_binary_cross_entropy &args, const xent_options &options, Mode mode,
                        xent_error *error) {
  const char *name = nullptr;
  if (mode == Mode::kForward) {
    if (args.grad != nullptr) name = "grad";
    if (args.grad_stride != 0) name = "grad_stride";
    if (args.target_grad != nullptr) name = "target_grad";
    if (args.target_grad_stride != 0) name = "target_grad_stride";
    if (args.upstream != nullptr) name = "upstream";
    if (args.upstream_stride != 0) name = "upstream_stride";
    if (args.upstream_kind != XENT_UPSTREAM_ONE) name = "upstream_kind";
    if (args.in_place != 0) name = "in_place";
    if (name != nullptr) return Invalid(error, "%s is set, but forward writes no gradient", name);
  } else if (mode == Mode::kBackward) {
    if (args.losses != nullptr) name = "losses";
    if (args.losses_stride != 0) name = "losses_stride";
    if (args.loss != nullptr) name = "loss";
    if (name != nullptr) return Invalid(error, "%s is set, but backward writes gradients alone", name);
  }
  if (mode != Mode::kForward && args.rows > 0 && args.grad == nullptr && args.target_grad == nullptr) {
    return Invalid(error, "grad is NULL, and so is target_grad: expected a pointer");
  }
  return CheckLossWanted(args.loss, options, error);
}

xent_status CheckUpstream(const xent_binary_cross_entropy &args, const Shape &shape, int32_t float_dtype,
                          Matrix *upstream, xent_error *error) {
  if (args.upstream_kind < XENT_UPSTREAM_ONE || args.upstream_kind > XENT_UPSTREAM_ELEMENTS) {
    return Invalid(error,
                   "upstream_kind is %d, expected XENT_UPSTREAM_ONE, XENT_UPSTREAM_SCALAR, XENT_UPSTREAM_ROWS or "
                   "XENT_UPSTREAM_ELEMENTS",
                   args.upstream_kind);
  }
  if (args.upstream_kind == XENT_UPSTREAM_ELEMENTS) return CheckLayoutMatrix(shape, true, float_dtype, upstream, error);
  if (args.upstream_stride != 0) {
    return Invalid(error, "upstream_stride is set, expected XENT_UPSTREAM_ELEMENTS as upstream_kind");
  }
  if (args.upstream_kind == XENT_UPSTREAM_ONE) {
    if (args.upstream == nullptr) return XENT_OK;
    return Invalid(error, "upstream is set, but upstream_kind is XENT_UPSTREAM_ONE: expected another, or NULL");
  }
  const int64_t count = args.upstream_kind == XENT_UPSTREAM_ROWS ? args.rows : args.rows > 0;
  return CheckArray(args.upstream, count, ElementSize(float_dtype), "upstream", error);
}

// False: incomplete. The floating-point mode is that which keeps subnormals: subnormal inputs may meet huge factors.
XENT_NOINLINE bool RunElements(const BinaryTask &task, bool wide, int64_t elements, const xent_exec &exec, Wide *sum) {
  struct GroupSum {
    double hi, lo;
  };
  struct Work {
    const BinaryTask &task;
    BinaryFunction run;
    int64_t elements, group_elements, groups, task_groups;
    GroupSum *sums;

    void Run(int64_t i) const {
      const int64_t end = std::min(groups, (i + 1) * task_groups);
      for (int64_t group = i * task_groups; group < end; ++group) {
        const int64_t first = group * group_elements;
        const Wide group_sum = run(task, first, std::min(elements, first + group_elements));
        sums[group] = {group_sum.hi, group_sum.lo};
      }
    }
  };
  GroupSum sums[kMaxTasks];  // not filled: a small call has one
  const int64_t group_elements = ElementsPerGroup(elements);
  const int64_t groups = (elements - 1) / group_elements + 1;
  const int32_t concurrency = elements <= kTaskLogits ? 1 : Concurrency(exec);
  const int64_t task_groups = concurrency == 1 ? groups : std::max<int64_t>(1, kTaskLogits / group_elements);
  Work work{task, ActiveKernels().binary->run[wide ? 1 : 0], elements, group_elements, groups, task_groups, sums};
  if (elements <= kTaskLogits) {
    work.Run(0);
  } else {
    const auto run = [](void *arg, int64_t i) {
      const FpMode mode(Subnormals::kKeep);
      static_cast<Work *>(arg)->Run(i);
    };
    if (!ParallelFor(exec, concurrency, (groups - 1) / task_groups + 1, run, &work)) return false;
  }
  *sum = {};
  for (int64_t group = 0; group < groups; ++group) *sum = AddOrOverflow(*sum, {sums[group].hi, sums[group].lo});
  return true;
}

xent_status BinaryCrossEntropy(const xent_binary_cross_entropy *given, const xent_options *given_options,
                               const xent_exec *given_exec, Mode mode, xent_error *error) {
  const FpMode keep(Subnormals::kKeep);  // nothing traps or flushes, whatever the caller's mode
  XENT_RETURN_IF_ERROR(CheckError(error));
  xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
  XENT_RETURN_IF_ERROR(ReadStruct(given, "args", &args, error));
  xent_options options;
  xent_exec exec;
  Shape shape;
  XENT_RETURN_IF_ERROR(CheckShape(args.rows, args.cols, args.dtype, error));
  XENT_RETURN_IF_ERROR(CheckOptions(given_options, args.cols, &options, error));
  XENT_RETURN_IF_ERROR(RefuseOptions(options, 0, "binary cross-entropy", error));
  XENT_RETURN_IF_ERROR(CheckExec(given_exec, &exec, error));
  XENT_RETURN_IF_ERROR(CheckLayout(args, &shape, error));
  XENT_RETURN_IF_ERROR(CheckDtype(args.targets_dtype, "targets_dtype", error));
  XENT_RETURN_IF_ERROR(CheckKind(args, error));
  XENT_RETURN_IF_ERROR(CheckUnused(args, options, mode, error));

  const bool wide = args.dtype == XENT_F64;
  const int32_t float_dtype = wide ? XENT_F64 : XENT_F32;
  const size_t size = ElementSize(float_dtype);
  Matrix input{"input", "input_stride", args.input, args.input_stride};
  Matrix targets{"targets", "targets_stride", args.targets, args.targets_stride};
  Matrix element_weights{"element_weights", "element_weights_stride", args.element_weights,
                         args.element_weights_stride};
  Matrix upstream{"upstream", "upstream_stride", args.upstream, args.upstream_stride};
  Matrix losses{"losses", "losses_stride", args.losses, args.losses_stride};
  Matrix grad{"grad", "grad_stride", args.grad, args.grad_stride};
  Matrix target_grad{"target_grad", "target_grad_stride", args.target_grad, args.target_grad_stride};
  XENT_RETURN_IF_ERROR(CheckLayoutMatrix(shape, true, args.dtype, &input, error));
  XENT_RETURN_IF_ERROR(CheckLayoutMatrix(shape, true, args.targets_dtype, &targets, error));
  XENT_RETURN_IF_ERROR(CheckLayoutMatrix(shape, false, float_dtype, &element_weights, error));
  XENT_RETURN_IF_ERROR(CheckLayoutMatrix(shape, false, float_dtype, &losses, error));
  XENT_RETURN_IF_ERROR(CheckLayoutMatrix(shape, false, args.dtype, &grad, error));
  XENT_RETURN_IF_ERROR(CheckLayoutMatrix(shape, false, args.targets_dtype, &target_grad, error));
  XENT_RETURN_IF_ERROR(CheckArray(args.pos_weight, 0, size, "pos_weight", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.class_weights, 0, size, "class_weights", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.row_weights, 0, size, "row_weights", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.loss, 0, size, "loss", error));
  if (mode != Mode::kForward) {
    XENT_RETURN_IF_ERROR(CheckUpstream(args, shape, float_dtype, &upstream, error));
    XENT_RETURN_IF_ERROR(CheckInPlace(input, grad, shape.blocks, args.in_place, error));
  }
  shape.elements = shape.blocks * shape.block_elements;
  XENT_RETURN_IF_ERROR(wide ? CheckWeights<double>(args, shape, element_weights, error)
                            : CheckWeights<float>(args, shape, element_weights, error));
  if (args.input_kind == XENT_BCE_PROBABILITIES) {
    XENT_RETURN_IF_ERROR(CheckProbabilities(args, shape, input, error));
  }

  const Factor denominator = Denominator(options, static_cast<double>(shape.elements));
  Wide sum;
  if (shape.elements > 0) {
    const BinaryTask task{shape.layout,
                          static_cast<Dtype>(args.dtype),
                          static_cast<Dtype>(args.targets_dtype),
                          {input.data, input.stride},
                          {targets.data, targets.stride},
                          args.pos_weight,
                          args.class_weights,
                          args.row_weights,
                          {element_weights.data, element_weights.stride},
                          {upstream.data, upstream.stride},
                          static_cast<BinaryUpstream>(args.upstream_kind),
                          {args.losses, losses.stride},
                          {args.grad, grad.stride},
                          {args.target_grad, target_grad.stride},
                          args.loss != nullptr,
                          args.input_kind == XENT_BCE_PROBABILITIES,
                          args.focal_gamma != 0.0 || args.has_focal_alpha != 0,
                          args.has_focal_alpha != 0,
                          args.focal_gamma,
                          args.focal_alpha,
                          denominator,
                          shape.elements >= kStreamBytes / static_cast<int64_t>(sizeof(float))};
    if (!RunElements(task, wide, shape.elements, exec, &sum)) return FailIncomplete(error);
  }
  if (args.loss != nullptr) WriteReduced(args.loss, wide, sum, options, denominator);
  return XENT_OK;
}

}  // namespace
}  // namespace xent::internal

extern "C" {

xent_status xent_binary_cross_entropy_forward(const xent_binary_cross_entropy *args, const xent_options *options,
                                              const xent_exec *exec, xent_error *error) noexcept {
  return xent::internal::BinaryCrossEntropy(args, options, exec, xent::internal::Mode::kForward, error);
}

xent_status xent_binary_cross_entropy_forward_backward(const xent_binary_cross_entropy *args,
                                                       const xent_options *options, const xent_exec *exec,
                                                       xent_error *error) noexcept {
  return xent::internal::BinaryCrossEntropy(args, options, exec, xent::internal::Mode::kForwardBackward, error);
}

xent_status xent_binary_cross_entropy_backward(const xent_binary_cross_entropy *args, const xent_options *options,
                                               const xent_exec *exec, xent_error *error) noexcept {
  return xent::internal::BinaryCrossEntropy(args, options, exec, xent::internal::Mode::kBackward, error);
}

}  // extern "C"
