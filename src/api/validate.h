// Checks of arguments and their messages. Each returns XENT_OK or has filled the caller's error.
#ifndef XENT_SRC_API_VALIDATE_H_
#define XENT_SRC_API_VALIDATE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/row.h"
#include "xent/xent.h"

namespace xent::internal {

#if defined(__GNUC__)
#define XENT_PRINTF(string, first) __attribute__((format(printf, string, first)))
#else
#define XENT_PRINTF(string, first)
#endif

// Fill *error (may be null) and return the status, XENT_INVALID_ARGUMENT for Invalid, which knows of no position.
XENT_PRINTF(5, 6)
xent_status FailAt(xent_error *error, xent_status status, int64_t row, int64_t value, const char *format, ...);
XENT_PRINTF(2, 3) xent_status Invalid(xent_error *error, const char *format, ...);

// struct_size of a caller's struct whose first `known` bytes this library understands; `oldest` is the size that its
// first version had, where there was one.
xent_status CheckStruct(const void *object, size_t struct_size, size_t known, size_t oldest, const char *name,
                        xent_error *error);
// A caller's struct as this version has it: what an older one lacks has the value that it has in `plain`. Nothing is
// cleared that is then overwritten: in a call of one small row that shows.
template <class S>
xent_status ReadStruct(const S *given, size_t oldest, const S &plain, const char *name, S *copy, xent_error *error);
// The same of a struct that has had one version only.
template <class S>
xent_status ReadStruct(const S *given, const char *name, S *copy, xent_error *error) {
  if (given == nullptr) return Invalid(error, "%s is NULL", name);
  return ReadStruct(given, sizeof(S), *given, name, copy, error);
}
xent_status CheckError(xent_error *error);

// Options and execution as given, or the defaults for null.
xent_status CheckOptions(const xent_options *given, int64_t cols, xent_options *options, xent_error *error);
// Refuses options that only cross-entropy knows, for the functions beside it.
enum : unsigned { kUsesValidCols = 1 };
xent_status RefuseOptions(const xent_options &options, unsigned used, const char *function, xent_error *error);
xent_status CheckExec(const xent_exec *given, xent_exec *exec, xent_error *error);

struct Matrix {
  const char *name, *stride_name;
  const void *data;
  int64_t stride;  // 0 means cols; CheckMatrix replaces it
};
xent_status CheckDtype(int32_t dtype, const char *name, xent_error *error);
xent_status CheckShape(int64_t rows, int64_t cols, int32_t dtype, xent_error *error);
xent_status CheckMatrix(int64_t rows, int64_t cols, int32_t dtype, Matrix *matrix, xent_error *error);
// inner as xent.h describes it, and a matrix in that layout.
xent_status CheckInner(int64_t rows, int64_t inner, xent_error *error);
xent_status CheckLayout(int64_t rows, int64_t cols, int64_t inner, int32_t dtype, Matrix *matrix, xent_error *error);
// The upstream gradient of a number a call or a row, of the arithmetic type that belongs to dtype.
xent_status CheckUpstream(const void *upstream, int32_t kind, int64_t rows, int32_t dtype, xent_error *error);
// Null or misaligned. `count` elements of `size` bytes; null is fine for none.
xent_status CheckArray(const void *data, int64_t count, size_t size, const char *name, xent_error *error);
xent_status CheckTargets(const void *targets, int32_t type, int64_t rows, xent_error *error);
xent_status TargetOutOfRange(int64_t row, int64_t target, int64_t cols, const xent_options &options, xent_error *error);
// A reduced loss is wanted only where there is a reduction.
xent_status CheckLossWanted(const void *loss, const xent_options &options, xent_error *error);
// A gradient in the place of its input needs the caller's consent.
xent_status CheckInPlace(const Matrix &in, const Matrix &out, int64_t rows, int32_t in_place, xent_error *error);
// An output in the place of an input needs its stride.
xent_status CheckSameStride(const Matrix &in, const Matrix &out, int64_t rows, xent_error *error);
xent_status FailIncomplete(xent_error *error);

template <class S>
xent_status ReadStruct(const S *given, size_t oldest, const S &plain, const char *name, S *copy, xent_error *error) {
  if (given == nullptr) return Invalid(error, "%s is NULL", name);
  const xent_status status = CheckStruct(given, given->struct_size, sizeof(S), oldest, name, error);
  if (status != XENT_OK) return status;
  if (given->struct_size >= sizeof(S)) {
    std::memcpy(static_cast<void *>(copy), given, sizeof(S));
  } else {
    std::memcpy(static_cast<void *>(copy), &plain, sizeof(S));
    std::memcpy(static_cast<void *>(copy), given, oldest);
  }
  copy->struct_size = sizeof(S);
  return XENT_OK;
}

}  // namespace xent::internal

// Returns from the calling function when a check fails.
#define XENT_RETURN_IF_ERROR(expression)              \
  do {                                                \
    const xent_status xent_status_ = (expression);    \
    if (xent_status_ != XENT_OK) return xent_status_; \
  } while (false)

#endif  // XENT_SRC_API_VALIDATE_H_
