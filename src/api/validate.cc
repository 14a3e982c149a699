#include "api/validate.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <limits>

namespace xent::internal {
namespace {

// "%.17g" in the caller's locale is good enough for a message.
bool IsNan(double x) { return x != x; }

xent_status FillError(xent_error *error, xent_status status, int64_t row, int64_t value, const char *format,
                      va_list arguments) {
  if (error != nullptr) {
    error->status = status;
    error->row = row;
    error->value = value;
    std::vsnprintf(error->message, sizeof(error->message), format, arguments);
  }
  return status;
}

}  // namespace

xent_status FailAt(xent_error *error, xent_status status, int64_t row, int64_t value, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  FillError(error, status, row, value, format, arguments);
  va_end(arguments);
  return status;
}

xent_status Invalid(xent_error *error, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  FillError(error, XENT_INVALID_ARGUMENT, -1, 0, format, arguments);
  va_end(arguments);
  return XENT_INVALID_ARGUMENT;
}

xent_status CheckError(xent_error *error) {
  if (error != nullptr && error->struct_size < sizeof(xent_error)) return XENT_INVALID_ARGUMENT;
  return XENT_OK;
}

xent_status CheckStruct(const void *object, size_t struct_size, size_t known, size_t oldest, const char *name,
                        xent_error *error) {
  if (struct_size == oldest) return XENT_OK;
  if (struct_size < known) {
    return Invalid(error, "%s: struct_size is %zu, expected at least %zu (initialise it with its _INIT macro)", name,
                   struct_size, known);
  }
  if (struct_size > (size_t{1} << 16)) {
    return Invalid(error, "%s: struct_size is %zu, expected %zu", name, struct_size, known);
  }
  const unsigned char *const bytes = static_cast<const unsigned char *>(object);
  for (size_t i = known; i < struct_size; ++i) {
    if (bytes[i] != 0) {
      return Invalid(error, "%s: byte %zu is set, but this library knows only the first %zu", name, i, known);
    }
  }
  return XENT_OK;
}

xent_status CheckOptions(const xent_options *given, int64_t cols, xent_options *options, xent_error *error) {
  static constexpr xent_options kPlain = XENT_OPTIONS_INIT;
  if (given == nullptr) {
    *options = kPlain;
    return XENT_OK;
  }
  XENT_RETURN_IF_ERROR(ReadStruct(given, offsetof(xent_options, logit_scale), kPlain, "options", options, error));
  given = options;
  if (!IsFinite(given->logit_scale) || given->logit_scale <= 0.0) {
    return Invalid(error, "logit_scale is %.17g, expected a finite number > 0", given->logit_scale);
  }
  if (!IsFinite(given->softcap) || given->softcap < 0.0) {
    return Invalid(error, "softcap is %.17g, expected a finite number >= 0 (0: off)", given->softcap);
  }
  // A subnormal cap would count as none where these are flushed; beside the smallest normal one it makes no difference.
  if (given->softcap > 0.0) options->softcap = std::max(given->softcap, std::numeric_limits<double>::min());
  if (!IsFinite(given->z_loss) || given->z_loss < 0.0) {
    return Invalid(error, "z_loss is %.17g, expected a finite number >= 0", given->z_loss);
  }
  if (given->valid_cols < 0 || given->valid_cols > cols) {
    return Invalid(error, "valid_cols is %lld, expected 0 (all) or 1 to cols, which is %lld",
                   static_cast<long long>(given->valid_cols), static_cast<long long>(cols));
  }
  if (given->valid_cols != 0) cols = given->valid_cols;
  if (given->stats_of_ignored != 0 && given->stats_of_ignored != 1) {
    return Invalid(error, "stats_of_ignored is %d, expected 0 or 1", given->stats_of_ignored);
  }
  if (given->reserved != 0) return Invalid(error, "options: reserved is %d, expected 0", given->reserved);
  const double epsilon = given->label_smoothing;
  if (IsNan(epsilon) || epsilon < 0.0 || epsilon > 1.0) {
    return Invalid(error, "label_smoothing is %.17g, expected a number in [0, 1]", epsilon);
  }
  if (given->smoothing != XENT_SMOOTHING_UNIFORM && given->smoothing != XENT_SMOOTHING_EXCLUSIVE) {
    return Invalid(error, "smoothing is %d, expected XENT_SMOOTHING_UNIFORM or XENT_SMOOTHING_EXCLUSIVE",
                   given->smoothing);
  }
  if (given->smoothing == XENT_SMOOTHING_EXCLUSIVE && epsilon > 0.0 && cols == 1) {
    return Invalid(error, "smoothing exclusive with label_smoothing %.17g needs cols >= 2, but cols is 1", epsilon);
  }
  if (given->reduction < XENT_REDUCTION_NONE || given->reduction > XENT_REDUCTION_MEAN) {
    return Invalid(error, "reduction is %d, expected XENT_REDUCTION_NONE, XENT_REDUCTION_SUM or XENT_REDUCTION_MEAN",
                   given->reduction);
  }
  if (given->empty_mean != XENT_EMPTY_MEAN_NAN && given->empty_mean != XENT_EMPTY_MEAN_ZERO) {
    return Invalid(error, "empty_mean is %d, expected XENT_EMPTY_MEAN_NAN or XENT_EMPTY_MEAN_ZERO", given->empty_mean);
  }
  if (given->has_divisor != 0 && given->has_divisor != 1) {
    return Invalid(error, "has_divisor is %d, expected 0 or 1", given->has_divisor);
  }
  if (given->has_divisor == 0) {
    if (given->divisor == 0.0) return XENT_OK;
    return Invalid(error, "divisor is %.17g, but has_divisor is 0: expected 1, or divisor 0", given->divisor);
  }
  if (!IsFinite(given->divisor) || given->divisor <= 0.0) {
    return Invalid(error, "divisor is %.17g, expected a finite number > 0", given->divisor);
  }
  if (given->reduction == XENT_REDUCTION_NONE) {
    return Invalid(error, "divisor and reduction none do not go together: expected reduction sum or mean");
  }
  return XENT_OK;
}

xent_status RefuseOptions(const xent_options &options, unsigned used, const char *function, xent_error *error) {
  const xent_options plain = XENT_OPTIONS_INIT;
  const char *name = nullptr;
  if (options.ignore_index != plain.ignore_index) name = "ignore_index";
  if (options.label_smoothing != 0.0) name = "label_smoothing";
  if (options.smoothing != plain.smoothing) name = "smoothing";
  if (options.logit_scale != 1.0) name = "logit_scale";
  if (options.softcap != 0.0) name = "softcap";
  if (options.z_loss != 0.0) name = "z_loss";
  if ((used & kUsesValidCols) == 0 && options.valid_cols != 0) name = "valid_cols";
  if (options.stats_of_ignored != 0) name = "stats_of_ignored";
  if (name == nullptr) return XENT_OK;
  return Invalid(error, "%s and %s do not go together: expected its default", name, function);
}

xent_status CheckExec(const xent_exec *given, xent_exec *exec, xent_error *error) {
  *exec = XENT_EXEC_INIT;
  if (given == nullptr) return XENT_OK;
  XENT_RETURN_IF_ERROR(ReadStruct(given, "exec", exec, error));
  if (exec->mode < XENT_EXEC_OPENMP || exec->mode > XENT_EXEC_CALLER) {
    return Invalid(error, "exec mode is %d, expected XENT_EXEC_OPENMP, XENT_EXEC_SERIAL or XENT_EXEC_CALLER",
                   exec->mode);
  }
  if (exec->threads < 0) {
    return Invalid(error, "exec threads is %d, expected 0 or more", exec->threads);
  }
  if ((exec->mode == XENT_EXEC_CALLER) != (exec->parallel_for != nullptr)) {
    return Invalid(error, exec->mode == XENT_EXEC_CALLER
                              ? "exec parallel_for is NULL, expected a function with XENT_EXEC_CALLER"
                              : "exec parallel_for is set, expected XENT_EXEC_CALLER as the mode");
  }
  return XENT_OK;
}

xent_status CheckDtype(int32_t dtype, const char *name, xent_error *error) {
  if (dtype >= XENT_F32 && dtype <= XENT_F16) return XENT_OK;
  return Invalid(error, "%s is %d, expected XENT_F32, XENT_F64, XENT_BF16 or XENT_F16", name, dtype);
}

xent_status CheckShape(int64_t rows, int64_t cols, int32_t dtype, xent_error *error) {
  XENT_RETURN_IF_ERROR(CheckDtype(dtype, "dtype", error));
  if (rows < 0) {
    return Invalid(error, "rows is %lld, expected 0 or more", static_cast<long long>(rows));
  }
  if (cols < 1) {
    return Invalid(error, "cols is %lld, expected 1 or more", static_cast<long long>(cols));
  }
  return XENT_OK;
}

xent_status CheckMatrix(int64_t rows, int64_t cols, int32_t dtype, Matrix *matrix, xent_error *error) {
  const int64_t size = static_cast<int64_t>(ElementSize(dtype));
  if (matrix->stride == 0) matrix->stride = cols;
  if (matrix->stride < cols) {
    return Invalid(error, "%s is %lld, expected 0 or at least cols, which is %lld", matrix->stride_name,
                   static_cast<long long>(matrix->stride), static_cast<long long>(cols));
  }
  if (matrix->stride > INT64_MAX / size || (rows > 0 && matrix->stride * size > INT64_MAX / rows)) {
    return Invalid(error, "%s: %lld rows of %lld elements exceed 2^63 - 1 bytes", matrix->name,
                   static_cast<long long>(rows), static_cast<long long>(matrix->stride));
  }
  return CheckArray(matrix->data, rows, static_cast<size_t>(size), matrix->name, error);
}

xent_status CheckInner(int64_t rows, int64_t inner, xent_error *error) {
  if (inner < 0) return Invalid(error, "inner is %lld, expected 0 or more", static_cast<long long>(inner));
  if (inner <= 1 || rows % inner == 0) return XENT_OK;
  return Invalid(error, "rows is %lld, expected a multiple of inner, which is %lld", static_cast<long long>(rows),
                 static_cast<long long>(inner));
}

xent_status CheckLayout(int64_t rows, int64_t cols, int64_t inner, int32_t dtype, Matrix *matrix, xent_error *error) {
  if (inner <= 1) return CheckMatrix(rows, cols, dtype, matrix, error);
  if (cols > INT64_MAX / inner) {
    return Invalid(error, "%s: %lld columns of %lld positions exceed 2^63 - 1 elements", matrix->name,
                   static_cast<long long>(cols), static_cast<long long>(inner));
  }
  if (matrix->stride != 0 && matrix->stride < cols * inner) {
    return Invalid(error, "%s is %lld, expected 0 or at least cols times inner, which is %lld", matrix->stride_name,
                   static_cast<long long>(matrix->stride), static_cast<long long>(cols * inner));
  }
  return CheckMatrix(rows / inner, cols * inner, dtype, matrix, error);
}

xent_status CheckUpstream(const void *upstream, int32_t kind, int64_t rows, int32_t dtype, xent_error *error) {
  if (kind < XENT_UPSTREAM_ONE || kind > XENT_UPSTREAM_ROWS) {
    return Invalid(error, "upstream_kind is %d, expected XENT_UPSTREAM_ONE, XENT_UPSTREAM_SCALAR or XENT_UPSTREAM_ROWS",
                   kind);
  }
  if (kind == XENT_UPSTREAM_ONE) {
    if (upstream == nullptr) return XENT_OK;
    return Invalid(error, "upstream is set, expected XENT_UPSTREAM_SCALAR or XENT_UPSTREAM_ROWS as upstream_kind");
  }
  const int64_t count = kind == XENT_UPSTREAM_ROWS ? rows : rows > 0;
  return CheckArray(upstream, count, dtype == XENT_F64 ? 8 : 4, "upstream", error);
}

xent_status TargetOutOfRange(int64_t row, int64_t target, int64_t cols, const xent_options &options,
                             xent_error *error) {
  return FailAt(error, XENT_TARGET_OUT_OF_RANGE, row, target,
                "targets: row %lld is %lld, expected 0 <= target < %lld or ignore_index, which is %lld",
                static_cast<long long>(row), static_cast<long long>(target), static_cast<long long>(cols),
                static_cast<long long>(options.ignore_index));
}

xent_status CheckLossWanted(const void *loss, const xent_options &options, xent_error *error) {
  if (loss == nullptr || options.reduction != XENT_REDUCTION_NONE) return XENT_OK;
  return Invalid(error, "loss is set, but reduction is none: expected NULL, or reduction sum or mean");
}

xent_status CheckTargets(const void *targets, int32_t type, int64_t rows, xent_error *error) {
  if (type != XENT_I32 && type != XENT_I64) {
    return Invalid(error, "targets_type is %d, expected XENT_I32 or XENT_I64", type);
  }
  return CheckArray(targets, rows, type == XENT_I32 ? 4 : 8, "targets", error);
}

xent_status CheckInPlace(const Matrix &in, const Matrix &out, int64_t rows, int32_t in_place, xent_error *error) {
  if (in_place != 0 && in_place != 1) return Invalid(error, "in_place is %d, expected 0 or 1", in_place);
  if (rows > 0 && out.data == in.data && in_place == 0) {
    return Invalid(error, "%s is %s, expected in_place to be 1 then", out.name, in.name);
  }
  return CheckSameStride(in, out, rows, error);
}

xent_status CheckSameStride(const Matrix &in, const Matrix &out, int64_t rows, xent_error *error) {
  if (rows == 0 || in.data != out.data || in.stride == out.stride) return XENT_OK;
  return Invalid(error, "%s is %s, expected %s and %s to be equal, got %lld and %lld", out.name, in.name,
                 in.stride_name, out.stride_name, static_cast<long long>(in.stride),
                 static_cast<long long>(out.stride));
}

xent_status FailIncomplete(xent_error *error) {
  return FailAt(error, XENT_INCOMPLETE, -1, 0,
                "parallel_for returned before every task had run; the outputs are unspecified");
}

xent_status CheckArray(const void *data, int64_t count, size_t size, const char *name, xent_error *error) {
  if (data == nullptr) {
    if (count <= 0) return XENT_OK;
    return Invalid(error, "%s is NULL, expected a pointer", name);
  }
  if (reinterpret_cast<uintptr_t>(data) % size != 0) {
    return Invalid(error, "%s is not aligned to its elements of %zu bytes", name, size);
  }
  return XENT_OK;
}

}  // namespace xent::internal
