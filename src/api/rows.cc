// logsumexp, softmax, log_softmax and the way back through the last two.
#include <cstdint>
#include <limits>

#include "api/validate.h"
#include "dispatch/dispatch.h"
#include "numbers/fp_mode.h"
#include "rows/row_gradient.h"
#include "rows/row_sum.h"
#include "rows/run_rows.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

// A matrix of the storage type, row by row.
template <class In>
struct Rows {
  In *data;
  int64_t stride;
  In *Row(int64_t row) const { return data + row * stride; }
};
template <class In>
Rows<const In> InputRows(const Matrix &m) {
  return {static_cast<const In *>(m.data), m.stride};
}
template <class In>
Rows<In> OutputRows(const Matrix &m) {
  return {static_cast<In *>(const_cast<void *>(m.data)), m.stride};
}

// What the chunks of a row without a target come to.
template <class T>
struct PlainSum {
  RowSum<T> total;
  bool nan = false, infinity = false;
};
template <class T>
PlainSum<T> SumChunks(const ChunkSum *sums, int64_t chunks) {
  PlainSum<T> result;
  for (int64_t i = 0; i < chunks; ++i) {
    if (sums[i].special == Special::kNan) result.nan = true;
    if (sums[i].special == Special::kInfinity) result.infinity = true;
  }
  if (result.nan || result.infinity) return result;
  result.total = MergeChunks<T>(chunks, [&](int64_t i) -> const ChunkSum & { return sums[i]; });
  return result;
}

template <class In>
struct LogSumExpJob {
  using T = Arithmetic<In>;
  static constexpr int kPasses = 1;
  using Part = ChunkSum;
  using Sums = NoTotals;
  struct Row {};

  const Kernels &kernels;
  const RowShape &shape;
  Rows<const In> x;
  T *lse;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return true; }
  void Chunk(int /*pass*/, int64_t row, int64_t chunk, Row & /*state*/, ChunkSum &sum) const {
    kernels.sum->exp_sum[kDtypeOf<In>](
        {x.Row(row) + chunk * shape.chunk_cols, shape.ColsOf(chunk), -1, kNan, nullptr, false, nullptr}, &sum);
  }
  void Between(int /*pass*/, int64_t row, Row & /*state*/, const ChunkSum *sums) const {
    const PlainSum<T> sum = SumChunks<T>(sums, shape.chunks);
    T &out = lse[row];
    if (sum.nan) {
      out = static_cast<T>(kNan);
    } else if (sum.infinity) {
      out = static_cast<T>(kInfinity);
    } else if (sum.total.IsZero()) {
      out = static_cast<T>(-kInfinity);
    } else if (shape.cols == 1) {
      out = RoundTo<T>(Number<T>{static_cast<double>(Widen(*x.Row(row)))});  // log V is 0: no slack beside |z|
    } else {
      out = RoundTo<T>(LogOfSum(sum.total));
    }
  }
  void End(int64_t /*row*/, const Row & /*state*/, NoTotals & /*totals*/) const {}
};

template <class In>
struct SoftmaxJob {
  using T = Arithmetic<In>;
  static constexpr int kPasses = 2;
  using Part = ChunkSum;
  using Sums = NoTotals;
  struct Row {
    bool nan;
    RowGradient<T> gradient;
  };

  const Kernels &kernels;
  const RowShape &shape;
  Rows<const In> x;
  Rows<In> y;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return true; }
  void Chunk(int pass, int64_t row, int64_t chunk, Row &state, ChunkSum &sum) const {
    if (pass == 0) return Sum(row, chunk, state, nullptr, &sum);
    Rewrite(row, chunk, state, sum, [&](const ScaleTask &task) { kernels.write->scale[kDtypeOf<In>](task); });
  }
  void Sum(int64_t row, int64_t chunk, const Row & /*state*/, const ScaleTask *meanwhile, ChunkSum *sum) const {
    const int64_t first = chunk * shape.chunk_cols;
    T *exponentials = nullptr;
    if constexpr (kKeepsExponentials<In>) exponentials = y.Row(row) + first;
    kernels.sum->exp_sum[kDtypeOf<In>](
        {x.Row(row) + first, shape.ColsOf(chunk), -1, kNan, exponentials, false, meanwhile}, sum);
  }
  template <class ScaleOne>
  void Rewrite(int64_t row, int64_t chunk, const Row &state, const ChunkSum &sum, const ScaleOne &scale) const {
    const int64_t first = chunk * shape.chunk_cols;
    const int64_t cols = shape.ColsOf(chunk);
    In *const out = y.Row(row) + first;
    ScaleTask task{};
    if (state.nan) {
      FillRow(out, cols, kNan);
    } else if constexpr (kKeepsExponentials<In>) {
      task = GradientFromExponentials(state.gradient, sum, out, out, cols);
    } else {
      GradientFromLogits(*kernels.write, state.gradient, sum.kind, sum.reference, x.Row(row) + first, out, cols);
    }
    scale(task);
  }
  void Between(int pass, int64_t /*row*/, Row &state, const ChunkSum *sums) const {
    if (pass != 0) return;
    const PlainSum<T> sum = SumChunks<T>(sums, shape.chunks);
    state.nan = sum.nan || sum.infinity || sum.total.IsZero();
    if (!state.nan) state.gradient = MakeRowGradient<T>(sum.total, {1.0, 0}, 0.0);
  }
  void End(int64_t /*row*/, const Row & /*state*/, NoTotals & /*totals*/) const {}

  bool Overlaps() const { return kKeepsExponentials<In>; }
  static Workspace workspace() { return {nullptr, 0, 1}; }
  static void KeepIn(void * /*slot*/, Row & /*state*/) {}
};

// The row's maximum stands where cross-entropy has its target: its own log-probability is -log1p of the others' sum.
template <class In>
struct LogSoftmaxJob {
  using T = Arithmetic<In>;
  static constexpr int kPasses = 3;
  using Part = ChunkSum;
  using Sums = NoTotals;
  struct Row {
    bool nan;
    double max, delta;
    int64_t argmax;
  };

  const Kernels &kernels;
  const RowShape &shape;
  Rows<const In> x;
  Rows<In> y;

  bool Begin(int64_t /*row*/, Row &state) const {
    state.nan = false;
    return true;
  }
  void Chunk(int pass, int64_t row, int64_t chunk, Row &state, ChunkSum &sum) const {
    const int64_t first = chunk * shape.chunk_cols;
    const In *const in = x.Row(row) + first;
    In *const out = y.Row(row) + first;
    const int64_t cols = shape.ColsOf(chunk);
    if (pass == 0) {
      const Extreme seen = kernels.sum->maximum[kDtypeOf<In>](in, cols, -1);
      sum.reference = seen.max;
      sum.special = seen.nan ? Special::kNan : Special::kNone;
    } else if (pass == 1) {
      if (state.nan) return;
      const bool usable = state.max >= -Format<T>::kLimit && state.max <= Format<T>::kLimit;
      kernels.sum->exp_sum[kDtypeOf<In>](
          {in, cols, state.argmax - first, usable ? RoundedLog2(state.max) : kNan, nullptr, false, nullptr}, &sum);
    } else if (state.nan) {
      FillRow(out, cols, kNan);
    } else {
      kernels.write->log_softmax[kDtypeOf<In>](in, out, cols, state.max, state.delta);
    }
  }
  void Between(int pass, int64_t row, Row &state, const ChunkSum *sums) const {
    if (pass == 0) {
      state.max = -kInfinity;
      int64_t max_chunk = 0;
      for (int64_t i = 0; i < shape.chunks; ++i) {
        if (sums[i].special == Special::kNan) state.nan = true;
        if (sums[i].reference > state.max) {
          state.max = sums[i].reference;
          max_chunk = i;
        }
      }
      if (state.max == kInfinity || state.max == -kInfinity) state.nan = true;
      if (state.nan) return;
      const In *const in = x.Row(row);
      state.argmax = max_chunk * shape.chunk_cols;
      while (static_cast<double>(Widen(in[state.argmax])) != state.max) ++state.argmax;
    } else if (pass == 1 && !state.nan) {
      const PlainSum<T> others = SumChunks<T>(sums, shape.chunks);
      state.delta = RoundTo<T>(NegativeLogLikelihood(others.total, SumOfLogit<T>(state.max)));
    }
  }
  void End(int64_t /*row*/, const Row & /*state*/, NoTotals & /*totals*/) const {}
};

template <class In, bool kLog>
struct BackwardJob {
  using T = Arithmetic<In>;
  static constexpr int kPasses = 2;
  using Part = ChunkSum;
  using Sums = NoTotals;
  struct Row {
    double sum;
  };

  const Kernels &kernels;
  const RowShape &shape;
  Rows<const In> g, y;
  Rows<In> dx;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return true; }
  void Chunk(int pass, int64_t row, int64_t chunk, Row &state, ChunkSum &sum) const {
    const int64_t first = chunk * shape.chunk_cols;
    const int64_t cols = shape.ColsOf(chunk);
    const In *const upstream = g.Row(row) + first;
    const In *const output = y.Row(row) + first;
    if (pass == 0) {
      sum.sum = kernels.write->dot[kDtypeOf<In>](upstream, kLog ? nullptr : output, cols);
      return;
    }
    const auto &backward = kLog ? kernels.write->log_softmax_backward : kernels.write->softmax_backward;
    backward[kDtypeOf<In>]({upstream, output, dx.Row(row) + first, cols, state.sum});
  }
  void Between(int pass, int64_t /*row*/, Row &state, const ChunkSum *sums) const {
    if (pass != 0) return;
    Wide total;
    for (int64_t i = 0; i < shape.chunks; ++i) total = AddOrOverflow(total, sums[i].sum);
    state.sum = total.hi;
  }
  void End(int64_t /*row*/, const Row & /*state*/, NoTotals & /*totals*/) const {}
};

template <template <class> class Job, class In, class... Arguments>
xent_status Run(const RowShape &shape, const xent_exec &exec, xent_error *error, Arguments... arguments) {
  const FpMode mode(Subnormals::kFlush);
  NoTotals unused;
  if (RunRows(Job<In>{ActiveKernels(), shape, arguments...}, shape, exec, &unused)) return XENT_OK;
  return FailIncomplete(error);
}

template <class In>
using SoftmaxBackwardJob = BackwardJob<In, false>;
template <class In>
using LogSoftmaxBackwardJob = BackwardJob<In, true>;

// x -> y of the same shape, in place where the strides are equal.
template <template <class> class Job>
xent_status RunUnary(int64_t rows, int64_t cols, const void *x, int32_t dtype, int64_t x_stride, void *y,
                     int64_t y_stride, const xent_exec *given_exec, xent_error *error) {
  XENT_RETURN_IF_ERROR(CheckError(error));
  xent_exec exec;
  XENT_RETURN_IF_ERROR(CheckExec(given_exec, &exec, error));
  XENT_RETURN_IF_ERROR(CheckShape(rows, cols, dtype, error));
  Matrix in{"x", "x_stride", x, x_stride};
  Matrix out{"y", "y_stride", y, y_stride};
  XENT_RETURN_IF_ERROR(CheckMatrix(rows, cols, dtype, &in, error));
  XENT_RETURN_IF_ERROR(CheckMatrix(rows, cols, dtype, &out, error));
  XENT_RETURN_IF_ERROR(CheckSameStride(in, out, rows, error));
  if (rows == 0) return XENT_OK;
  return DispatchDtype(dtype, [&](auto storage) {
    using In = decltype(storage);
    return Run<Job, In>(RowShape(rows, cols), exec, error, InputRows<In>(in), OutputRows<In>(out));
  });
}

template <template <class> class Job>
xent_status RunBackward(int64_t rows, int64_t cols, const void *g, int64_t g_stride, const void *y, int64_t y_stride,
                        int32_t dtype, void *dx, int64_t dx_stride, const xent_exec *given_exec, xent_error *error) {
  XENT_RETURN_IF_ERROR(CheckError(error));
  xent_exec exec;
  XENT_RETURN_IF_ERROR(CheckExec(given_exec, &exec, error));
  XENT_RETURN_IF_ERROR(CheckShape(rows, cols, dtype, error));
  Matrix upstream{"g", "g_stride", g, g_stride};
  Matrix output{"y", "y_stride", y, y_stride};
  Matrix gradient{"dx", "dx_stride", dx, dx_stride};
  XENT_RETURN_IF_ERROR(CheckMatrix(rows, cols, dtype, &upstream, error));
  XENT_RETURN_IF_ERROR(CheckMatrix(rows, cols, dtype, &output, error));
  XENT_RETURN_IF_ERROR(CheckMatrix(rows, cols, dtype, &gradient, error));
  XENT_RETURN_IF_ERROR(CheckSameStride(upstream, gradient, rows, error));
  XENT_RETURN_IF_ERROR(CheckSameStride(output, gradient, rows, error));
  if (rows == 0) return XENT_OK;
  return DispatchDtype(dtype, [&](auto storage) {
    using In = decltype(storage);
    return Run<Job, In>(RowShape(rows, cols), exec, error, InputRows<In>(upstream), InputRows<In>(output),
                        OutputRows<In>(gradient));
  });
}

}  // namespace
}  // namespace xent::internal

extern "C" {

xent_status xent_logsumexp(int64_t rows, int64_t cols, const void *x, xent_dtype dtype, int64_t stride, void *lse,
                           const xent_exec *given_exec, xent_error *error) noexcept {
  using namespace xent::internal;
  XENT_RETURN_IF_ERROR(CheckError(error));
  xent_exec exec;
  XENT_RETURN_IF_ERROR(CheckExec(given_exec, &exec, error));
  XENT_RETURN_IF_ERROR(CheckShape(rows, cols, dtype, error));
  Matrix in{"x", "stride", x, stride};
  XENT_RETURN_IF_ERROR(CheckMatrix(rows, cols, dtype, &in, error));
  XENT_RETURN_IF_ERROR(CheckArray(lse, rows, dtype == XENT_F64 ? 8 : 4, "lse", error));
  if (rows == 0) return XENT_OK;
  return DispatchDtype(dtype, [&](auto storage) {
    using In = decltype(storage);
    return Run<LogSumExpJob, In>(RowShape(rows, cols), exec, error, InputRows<In>(in),
                                 static_cast<Arithmetic<In> *>(lse));
  });
}

xent_status xent_softmax(int64_t rows, int64_t cols, const void *x, xent_dtype dtype, int64_t x_stride, void *y,
                         int64_t y_stride, const xent_exec *exec, xent_error *error) noexcept {
  using namespace xent::internal;
  return RunUnary<SoftmaxJob>(rows, cols, x, dtype, x_stride, y, y_stride, exec, error);
}

xent_status xent_log_softmax(int64_t rows, int64_t cols, const void *x, xent_dtype dtype, int64_t x_stride, void *y,
                             int64_t y_stride, const xent_exec *exec, xent_error *error) noexcept {
  using namespace xent::internal;
  return RunUnary<LogSoftmaxJob>(rows, cols, x, dtype, x_stride, y, y_stride, exec, error);
}

xent_status xent_softmax_backward(int64_t rows, int64_t cols, const void *g, int64_t g_stride, const void *y,
                                  int64_t y_stride, xent_dtype dtype, void *dx, int64_t dx_stride,
                                  const xent_exec *exec, xent_error *error) noexcept {
  using namespace xent::internal;
  return RunBackward<SoftmaxBackwardJob>(rows, cols, g, g_stride, y, y_stride, dtype, dx, dx_stride, exec, error);
}

xent_status xent_log_softmax_backward(int64_t rows, int64_t cols, const void *g, int64_t g_stride, const void *y,
                                      int64_t y_stride, xent_dtype dtype, void *dx, int64_t dx_stride,
                                      const xent_exec *exec, xent_error *error) noexcept {
  using namespace xent::internal;
  return RunBackward<LogSoftmaxBackwardJob>(rows, cols, g, g_stride, y, y_stride, dtype, dx, dx_stride, exec, error);
}

}  // extern "C"
