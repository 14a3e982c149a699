// xent_check_logits: does a batch of logits look like probabilities, or like log-probabilities? Most batches are
// neither, and the first row says so.
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "api/validate.h"
#include "numbers/fp_mode.h"
#include "rows/row_gradient.h"
#include "rows/run_rows.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

// Every value in [0, 1], every row's sum near 1; NaN fails.
template <class In>
struct ProbabilitiesJob {
  static constexpr int kPasses = 1;
  using Part = ChunkSum;
  using Sums = NoTotals;
  struct Row {};

  const RowShape &shape;
  const Matrix &x;
  const double tolerance;
  std::atomic<bool> &all;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return all.load(std::memory_order_relaxed); }
  void Chunk(int /*pass*/, int64_t row, int64_t chunk, Row & /*state*/, ChunkSum &sum) const {
    const In *const p = static_cast<const In *>(x.data) + row * x.stride + chunk * shape.chunk_cols;
    const int64_t cols = shape.ColsOf(chunk);
    constexpr int kSums = 8;  // independent, for the compiler to put into vectors
    double sums[kSums] = {};
    int bad[kSums] = {};
    int64_t i = 0;
    for (; i + kSums <= cols; i += kSums) {
      for (int k = 0; k < kSums; ++k) {
        const Arithmetic<In> v = Widen(p[i + k]);
        bad[k] |= !(v >= 0 && v <= 1);
        sums[k] += static_cast<double>(v);
      }
    }
    for (; i < cols; ++i) {
      const Arithmetic<In> v = Widen(p[i]);
      bad[0] |= !(v >= 0 && v <= 1);
      sums[0] += static_cast<double>(v);
    }
    int any_bad = 0;
    sum.sum = {};
    for (int k = 0; k < kSums; ++k) {
      any_bad |= bad[k];
      sum.sum.hi += sums[k];
    }
    if (any_bad != 0) all.store(false, std::memory_order_relaxed);
  }
  void Between(int /*pass*/, int64_t /*row*/, Row & /*state*/, const ChunkSum *sums) const {
    double total = 0.0;
    for (int64_t i = 0; i < shape.chunks; ++i) total += sums[i].sum.hi;
    if (!(total >= 1.0 - tolerance && total <= 1.0 + tolerance)) all.store(false, std::memory_order_relaxed);
  }
  void End(int64_t /*row*/, const Row & /*state*/, NoTotals & /*totals*/) const {}
};

template <class In>
xent_status AllProbabilities(const Matrix &x, int64_t rows, int64_t cols, double tolerance, const xent_exec &exec,
                             bool *all, xent_error *error) {
  const FpMode mode(Subnormals::kFlush);
  std::atomic<bool> still{true};
  const RowShape shape(rows, cols);
  NoTotals unused;
  if (!RunRows(ProbabilitiesJob<In>{shape, x, tolerance, still}, shape, exec, &unused)) return FailIncomplete(error);
  *all = still.load();
  return XENT_OK;
}

// Every row's logsumexp near 0, a batch of rows after the other.
template <class In>
xent_status AllLogProbabilities(const Matrix &x, int64_t rows, int64_t cols, xent_dtype dtype, double tolerance,
                                const xent_exec &exec, bool *all, xent_error *error) {
  constexpr int64_t kBatch = 64;
  Arithmetic<In> lse[kBatch];
  *all = true;
  const In *batch = static_cast<const In *>(x.data);
  // The first row alone decides for nearly everything that is not log-probabilities.
  for (int64_t done = 0, count = 1; done < rows; done += count, count = std::min(kBatch, rows - done)) {
    XENT_RETURN_IF_ERROR(xent_logsumexp(count, cols, batch + done * x.stride, dtype, x.stride, lse, &exec, error));
    for (int64_t i = 0; i < count; ++i) {
      if (!(lse[i] >= -tolerance && lse[i] <= tolerance)) *all = false;
    }
    if (!*all) return XENT_OK;
  }
  return XENT_OK;
}

}  // namespace
}  // namespace xent::internal

extern "C" xent_status xent_check_logits(int64_t rows, int64_t cols, const void *x, xent_dtype dtype, int64_t stride,
                                         xent_diagnosis *diagnosis, const xent_exec *given_exec,
                                         xent_error *error) noexcept {
  using namespace xent::internal;
  XENT_RETURN_IF_ERROR(CheckError(error));
  xent_exec exec;
  XENT_RETURN_IF_ERROR(CheckExec(given_exec, &exec, error));
  XENT_RETURN_IF_ERROR(CheckShape(rows, cols, dtype, error));
  Matrix in{"x", "stride", x, stride};
  XENT_RETURN_IF_ERROR(CheckMatrix(rows, cols, dtype, &in, error));
  XENT_RETURN_IF_ERROR(CheckArray(diagnosis, 1, alignof(xent_diagnosis), "diagnosis", error));
  xent_diagnosis found = XENT_DIAGNOSIS_LOGITS;
  if (rows > 0 && cols > 1) {
    const double tolerance = dtype == XENT_BF16 ? 0x1p-7 : 1e-3;
    const xent_status status = DispatchDtype(dtype, [&](auto storage) {
      using In = decltype(storage);
      bool all = false;
      XENT_RETURN_IF_ERROR(AllProbabilities<In>(in, rows, cols, tolerance, exec, &all, error));
      if (all) {
        found = XENT_DIAGNOSIS_PROBABILITIES;
        return XENT_OK;
      }
      XENT_RETURN_IF_ERROR(AllLogProbabilities<In>(in, rows, cols, dtype, tolerance, exec, &all, error));
      if (all) found = XENT_DIAGNOSIS_LOG_PROBABILITIES;
      return XENT_OK;
    });
    if (status != XENT_OK) return status;
  }
  *diagnosis = found;
  return XENT_OK;
}
