#include "api/check.h"

#include <cstdarg>
#include <cstdio>

#include "api/read_struct.h"
#include "rows/call.h"

namespace xent::internal {
namespace {

xent_status FillError(xent_error *error, xent_status status, const Place &place, const char *format,
                      va_list arguments) {
  if (error == nullptr) return status;
  error->status = status;
  error->row = place.row;
  error->column = place.column;
  error->value = place.value;
  // An error of an older release has a shorter message.
  const size_t known = error->struct_size < sizeof(xent_error) ? error->struct_size : sizeof(xent_error);
  std::vsnprintf(error->message, known - offsetof(xent_error, message), format, arguments);
  return status;
}

}  // namespace

xent_status FailAt(xent_error *error, xent_status status, const Place &place, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  FillError(error, status, place, format, arguments);
  va_end(arguments);
  return status;
}

xent_status Invalid(xent_error *error, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  FillError(error, XENT_INVALID_ARGUMENT, Place{}, format, arguments);
  va_end(arguments);
  return XENT_INVALID_ARGUMENT;
}

xent_status CheckStructSize(const void *given, const size_t *sizes, size_t count, const char *name, xent_error *error) {
  const size_t size = *static_cast<const size_t *>(given), today = sizes[count - 1];
  for (size_t i = 0; i < count; ++i) {
    if (size == sizes[i]) return XENT_OK;
  }
  if (size < today) {
    return Invalid(error, "%s: struct_size is %zu, expected at least %zu (initialise it with its _INIT macro)", name,
                   size, today);
  }
  if (size > (size_t{1} << 16)) return Invalid(error, "%s: struct_size is %zu, expected %zu", name, size, today);
  const unsigned char *const bytes = static_cast<const unsigned char *>(given);
  for (size_t i = today; i < size; ++i) {
    if (bytes[i] != 0) {
      return Invalid(error, "%s: byte %zu is set, but this library knows only the first %zu", name, i, today);
    }
  }
  return XENT_OK;
}

xent_status CheckError(const xent_error *error) {
  if (error == nullptr || error->struct_size == sizeof(xent_error)) return XENT_OK;
  return CheckStructSize(error, Border<xent_error>::kSizes, std::size(Border<xent_error>::kSizes), "error", nullptr);
}

xent_status NotTogether(const char *a, const char *b, xent_error *error) {
  return Invalid(error, "%s and %s do not go together: expected one of them", a, b);
}

xent_status CheckEnum(const char *name, int32_t value, int32_t last, const char *expected, xent_error *error) {
  if (value >= 0 && value <= last) return XENT_OK;
  return Invalid(error, "%s is %d, expected %s", name, value, expected);
}

xent_status CheckShape(int64_t rows, int64_t cols, int64_t inner, Shape *shape, xent_error *error) {
  constexpr int64_t kMaxRows = INT64_MAX / XENT_RECORD_BYTES;
  if (rows < 0 || rows > kMaxRows) {
    return Invalid(error, "rows is %lld, expected 0 to %lld", Long(rows), Long(kMaxRows));
  }
  if (cols < 1 || cols > kMaxCols) {
    return Invalid(error, "cols is %lld, expected 1 to %lld", Long(cols), Long(kMaxCols));
  }
  *shape = {rows, cols, inner > 1 ? inner : 1};
  if (inner >= 0 && inner <= 1) return XENT_OK;
  if (inner < 0) return Invalid(error, "inner is %lld, expected 0 or more", Long(inner));
  if (rows % inner != 0) {
    return Invalid(error, "rows is %lld, expected a multiple of inner, which is %lld", Long(rows), Long(inner));
  }
  if (cols > kMaxCols / inner) {
    return Invalid(error, "cols %lld times inner %lld exceeds %lld", Long(cols), Long(inner), Long(kMaxCols));
  }
  return XENT_OK;
}

xent_status CheckMatrix(const char *name, const Shape &shape, int32_t dtype, Need need, xent_matrix *matrix,
                        xent_error *error) {
  if (matrix->data == nullptr && shape.rows > 0) {
    if (need == Need::kRequired) return Invalid(error, "%s is NULL, expected a pointer", name);
    if (matrix->stride != 0) return Invalid(error, "%s.stride is set, but %s is NULL", name, name);
    return XENT_OK;
  }
  if (dtype == kAnyDtype && (matrix->dtype < XENT_F32 || matrix->dtype > XENT_F16)) {
    return Invalid(error, "%s.dtype is %d, expected XENT_F32, XENT_F64, XENT_BF16 or XENT_F16", name, matrix->dtype);
  }
  if (dtype != kAnyDtype && matrix->dtype != dtype && matrix->data != nullptr) {
    static constexpr const char *kNames[] = {"XENT_F32", "XENT_F64", "XENT_BF16", "XENT_F16"};
    return Invalid(error, "%s.dtype is %d, expected %s as the call's other matrices have it", name, matrix->dtype,
                   kNames[dtype]);
  }
  XENT_TRY(CheckReserved(name, matrix->reserved, error));
  const int64_t block = shape.cols * shape.inner;
  const int64_t blocks = shape.inner == 1 ? shape.rows : shape.rows / shape.inner;  // a division shows in a small call
  if (matrix->stride == 0) matrix->stride = block;
  if (matrix->stride < block) {
    return Invalid(error, "%s.stride is %lld, expected 0 or at least %s, which is %lld", name, Long(matrix->stride),
                   shape.inner > 1 ? "cols times inner" : "cols", Long(block));
  }
  const int64_t size = static_cast<int64_t>(ElementSize(dtype == kAnyDtype ? matrix->dtype : dtype));
  int64_t bytes;
  if (__builtin_mul_overflow(matrix->stride, size, &bytes) || __builtin_mul_overflow(bytes, blocks, &bytes)) {
    return Invalid(error, "%s: %lld rows of %lld elements exceed 2^63 - 1 bytes", name, Long(blocks),
                   Long(matrix->stride));
  }
  return CheckArray(name, matrix->data, 0, static_cast<size_t>(size), error);
}

xent_status CheckSameStride(const char *out_name, const xent_matrix &out, const char *in_name, const xent_matrix &in,
                            int64_t rows, xent_error *error) {
  if (rows == 0 || in.data != out.data || in.stride == out.stride) return XENT_OK;
  return Invalid(error, "%s is %s: expected equal strides, got %lld and %lld", out_name, in_name, Long(out.stride),
                 Long(in.stride));
}

xent_status CheckArray(const char *name, const void *data, int64_t count, size_t size, xent_error *error) {
  if (data == nullptr) return count <= 0 ? XENT_OK : Invalid(error, "%s is NULL, expected a pointer", name);
  if ((reinterpret_cast<uintptr_t>(data) & (size - 1)) == 0) return XENT_OK;  // sizes are powers of two
  return Invalid(error, "%s is not aligned to its elements of %zu bytes", name, size);
}

xent_status CheckExec(const xent_exec *given, xent_exec *exec, xent_error *error) {
  XENT_TRY(ReadStructOrDefaults(given, "exec", exec, error));
  if (exec->threads < 0) return Invalid(error, "exec.threads is %d, expected 0 or more", exec->threads);
  const bool has_ctx = exec->parallel_for == nullptr && exec->ctx != nullptr;
  return CheckUnset("exec.ctx", has_ctx, "exec.parallel_for is NULL", error);
}

xent_status CheckReduction(const xent_reduction &reduction, const void *reduced_loss, xent_error *error) {
  XENT_TRY(CheckEnum("reduction.kind", reduction.kind, XENT_REDUCTION_NONE,
                     "XENT_REDUCTION_MEAN, XENT_REDUCTION_SUM or XENT_REDUCTION_NONE", error));
  XENT_TRY(CheckEnum("reduction.empty_mean", reduction.empty_mean, XENT_EMPTY_MEAN_ZERO,
                     "XENT_EMPTY_MEAN_NAN or XENT_EMPTY_MEAN_ZERO", error));
  XENT_TRY(CheckNumber("reduction.divisor", reduction.divisor, IsFinite(reduction.divisor) && reduction.divisor >= 0.0,
                       "a finite number > 0, or 0 (none)", error));
  if (reduction.kind != XENT_REDUCTION_NONE) return XENT_OK;
  if (reduction.divisor != 0.0) {
    return Invalid(error, "reduction.divisor and XENT_REDUCTION_NONE do not go together: expected a sum or a mean");
  }
  const char *const why = "reduction.kind is XENT_REDUCTION_NONE: expected NULL";
  return CheckUnset("reduced_loss", reduced_loss != nullptr, why, error);
}

xent_status CheckValidCols(int64_t cols, int64_t *valid_cols, xent_error *error) {
  if (*valid_cols < 0 || *valid_cols > cols) {
    return Invalid(error, "valid_cols is %lld, expected 0 (all) or 1 to cols, which is %lld", Long(*valid_cols),
                   Long(cols));
  }
  if (*valid_cols == 0) *valid_cols = cols;
  return XENT_OK;
}

xent_status CheckUpstream(const Shape &shape, bool wide, bool elements, xent_upstream *upstream, xent_error *error) {
  XENT_TRY(CheckEnum("upstream.kind", upstream->kind, elements ? XENT_UPSTREAM_ELEMENTS : XENT_UPSTREAM_ROWS,
                     elements ? "XENT_UPSTREAM_SCALAR, XENT_UPSTREAM_ROWS or XENT_UPSTREAM_ELEMENTS"
                              : "XENT_UPSTREAM_SCALAR or XENT_UPSTREAM_ROWS",
                     error));
  XENT_TRY(CheckReserved("upstream", upstream->reserved, error));
  const int32_t dtype = wide ? XENT_F64 : XENT_F32;
  if (upstream->kind == XENT_UPSTREAM_ELEMENTS) {
    xent_matrix matrix = {const_cast<void *>(upstream->data), upstream->stride, dtype, 0};
    XENT_TRY(CheckMatrix("upstream", shape, dtype, Need::kRequired, &matrix, error));
    upstream->stride = matrix.stride;
    return XENT_OK;
  }
  constexpr const char *kWhy = "upstream.kind is not XENT_UPSTREAM_ELEMENTS";
  XENT_TRY(CheckUnset("upstream.stride", upstream->stride != 0, kWhy, error));
  const int64_t count = upstream->kind == XENT_UPSTREAM_ROWS ? shape.rows : 0;
  return CheckArray("upstream", upstream->data, count, ElementSize(dtype), error);
}

xent_status CheckTargets(const xent_targets &targets, int64_t rows, xent_error *error) {
  XENT_TRY(CheckEnum("targets.type", targets.type, XENT_I32, "XENT_I64 or XENT_I32", error));
  XENT_TRY(CheckReserved("targets", targets.reserved, error));
  return CheckArray("targets", targets.data, rows, targets.type == XENT_I32 ? 4 : 8, error);
}

xent_status CheckTargetRange(const xent_targets &targets, int64_t rows, int64_t cols, int64_t ignore_index,
                             xent_error *error) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t target = TargetAt(targets, row);
    if (target == ignore_index || (target >= 0 && target < cols)) continue;
    return FailAt(error, XENT_TARGET_OUT_OF_RANGE, {.row = row, .value = static_cast<double>(target)},
                  "targets: row %lld is %lld, expected 0 <= target < %lld or ignore_index, which is %lld", Long(row),
                  Long(target), Long(cols), Long(ignore_index));
  }
  return XENT_OK;
}

xent_status CheckWeights(const char *name, const void *weights, int64_t count, bool wide, WeightOf of,
                         xent_error *error) {
  if (weights == nullptr) return XENT_OK;
  XENT_TRY(CheckArray(name, weights, 0, wide ? 8 : 4, error));
  const int64_t i = wide ? FirstNotFinite(static_cast<const double *>(weights), count)
                         : FirstNotFinite(static_cast<const float *>(weights), count);
  if (i == count) return XENT_OK;
  const double value = NumberAt(weights, wide, i);
  const bool of_row = of == WeightOf::kRow;
  return FailAt(error, XENT_INVALID_ARGUMENT, {of_row ? i : -1, of_row ? -1 : i, value},
                "%s: %s %lld is %.17g, expected a finite number", name, of_row ? "row" : "column", Long(i), value);
}

xent_status CheckNumber(const char *name, double value, bool good, const char *expected, xent_error *error) {
  return good ? XENT_OK : Invalid(error, "%s is %.17g, expected %s", name, value, expected);
}

xent_status FailIncomplete(xent_error *error) {
  return FailAt(error, XENT_INCOMPLETE, Place{},
                "parallel_for returned before every task had run; the outputs are unspecified");
}

}  // namespace xent::internal
