// What the library says of itself, and the functions over arrays.
#include "api/check.h"
#include "dispatch/dispatch.h"
#include "numbers/compiler.h"
#include "numbers/fp_mode.h"
#include "parallel/openmp.h"
#include "rows/workspace.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

template <class T>
xent_status RunArray(void (*ArrayKernels::*function)(const T *, T *, int64_t), const T *x, T *y, int64_t n) {
  if (n < 0 || n > INT64_MAX / static_cast<int64_t>(sizeof(T))) return XENT_INVALID_ARGUMENT;
  XENT_TRY(CheckArray("x", x, n, sizeof(T), nullptr));
  XENT_TRY(CheckArray("y", y, n, sizeof(T), nullptr));
  const FpMode mode(Subnormals::kKeep);
  (ActiveKernels().array->*function)(x, y, n);
  return XENT_OK;
}

}  // namespace
}  // namespace xent::internal

using xent::internal::ActiveKernels, xent::internal::ArrayKernels, xent::internal::RunArray;

extern "C" {

const char *xent_version(void) noexcept {
  return XENT_STRINGIFY(XENT_VERSION_MAJOR) "." XENT_STRINGIFY(XENT_VERSION_MINOR) "." XENT_STRINGIFY(
      XENT_VERSION_PATCH);
}
const char *xent_active_target(void) noexcept { return ActiveKernels().name; }
const char *xent_available_target(int32_t i) noexcept { return xent::internal::AvailableTarget(i); }
const char *xent_compiled_target(int32_t i) noexcept { return xent::internal::CompiledTarget(i); }
const char *xent_unknown_max_target(void) noexcept { return xent::internal::UnknownMaxTarget(); }
int32_t xent_default_threads(void) noexcept { return xent::internal::OpenMpThreads(); }
const char *xent_highway_version(void) noexcept { return xent::internal::HighwayVersion(); }
int64_t xent_chunk_cols(int64_t cols) noexcept { return xent::internal::ChunkCols(cols); }

size_t xent_workspace_bytes(int64_t cols, xent_dtype dtype, int32_t threads) noexcept {
  using xent::internal::Workspace;
  const bool known = dtype == XENT_F32 || dtype == XENT_F64 || dtype == XENT_BF16 || dtype == XENT_F16;
  if (threads == 0) threads = xent_default_threads();
  if (cols < 1 || cols > xent::internal::kMaxCols || !known || threads < 1) return 0;
  return Workspace::Bytes(Workspace::RowBytes(cols, dtype), threads);
}

const char *xent_status_string(xent_status status) noexcept {
  static constexpr const char *kStrings[] = {"ok", "invalid argument", "target out of range", "domain error",
                                             "incomplete"};
  return status >= XENT_OK && status <= XENT_INCOMPLETE ? kStrings[status] : "unknown status";
}

xent_status xent_exp_f32(const float *x, float *y, int64_t n) noexcept {
  return RunArray(&ArrayKernels::exp_f32, x, y, n);
}
xent_status xent_exp_f64(const double *x, double *y, int64_t n) noexcept {
  return RunArray(&ArrayKernels::exp_f64, x, y, n);
}
xent_status xent_log_f32(const float *x, float *y, int64_t n) noexcept {
  return RunArray(&ArrayKernels::log_f32, x, y, n);
}
xent_status xent_log_f64(const double *x, double *y, int64_t n) noexcept {
  return RunArray(&ArrayKernels::log_f64, x, y, n);
}
xent_status xent_log1p_f32(const float *x, float *y, int64_t n) noexcept {
  return RunArray(&ArrayKernels::log1p_f32, x, y, n);
}
xent_status xent_log1p_f64(const double *x, double *y, int64_t n) noexcept {
  return RunArray(&ArrayKernels::log1p_f64, x, y, n);
}

}  // extern "C"
