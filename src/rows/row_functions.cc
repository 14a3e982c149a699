#include "rows/row_functions.h"

#include <atomic>

#include "dispatch/dispatch.h"
#include "kernels/array.h"
#include "rows/call.h"
#include "rows/general_row.h"
#include "rows/row_gradient.h"
#include "rows/run_rows.h"

namespace xent::internal {
namespace {

// What all jobs know.
struct Context {
  const RowFunctionCall &call;
  const Kernels &kernels;
  RowShape shape;

  explicit Context(const RowFunctionCall &c) : call(c), kernels(ActiveKernels()), shape(c.rows, c.cols) {}

  // Element (row, 0) of a matrix; its columns lie `inner` apart.
  template <class In>
  In *Row(const xent_matrix &matrix, int64_t row) const {
    return static_cast<In *>(matrix.data) + RowOffset(row, matrix.stride, call.inner);
  }
  // The first column of a chunk; only where columns are adjacent.
  template <class In>
  In *At(const xent_matrix &matrix, int64_t row, int64_t chunk) const {
    return Row<In>(matrix, row) + chunk * shape.chunk_cols;
  }
};

// What the chunks of a row without a target come to.
template <class T>
struct UntargetedSum {
  RowSum<T> total;
  bool nan = false, infinity = false;

  UntargetedSum(const ChunkSum *sums, int64_t chunks) {
    for (int64_t i = 0; i < chunks; ++i) {
      if (sums[i].special == Special::kNan) nan = true;
      if (sums[i].special == Special::kInfinity) infinity = true;
    }
    if (!nan && !infinity) total = MergeChunks<T>(chunks, [&](int64_t i) -> const ChunkSum & { return sums[i]; });
  }
};

// Sums a chunk whose columns all count.
template <class In>
void SumChunk(const Context &context, int64_t row, int64_t chunk, Arithmetic<In> *exponentials,
              const ScaleTask *meanwhile, ChunkSum *sum) {
  context.kernels.sum->exp_sum[kDtypeOf<In>]({.logits = context.At<const In>(context.call.in, row, chunk),
                                              .cols = context.shape.ColsOf(chunk),
                                              .target = -1,
                                              .first_reference = kNan,
                                              .exponentials = exponentials,
                                              .spread = false,
                                              .meanwhile = meanwhile},
                                             sum);
}

// Where logsumexps go: to the caller, or, where `all` is set, to the judgement of whether all are near 0.
struct LseSink {
  void *lse;
  double tolerance;
  std::atomic<bool> *all;

  bool Wants() const { return all == nullptr || all->load(std::memory_order_relaxed); }
  template <class T>
  void Take(int64_t row, T value) const {
    if (all == nullptr) {
      static_cast<T *>(lse)[row] = value;
    } else if (!(Magnitude(static_cast<double>(value)) <= tolerance)) {
      all->store(false, std::memory_order_relaxed);
    }
  }
};

template <class In>
struct LogSumExpJob {
  using T = Arithmetic<In>;
  static constexpr int kPasses = 1;
  using Part = ChunkSum;
  using Sums = NoTotals;
  struct Row {};

  const Context &context;
  const LseSink &sink;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return sink.Wants(); }
  void Chunk(int /*pass*/, int64_t row, int64_t chunk, Row & /*state*/, ChunkSum &sum) const {
    SumChunk<In>(context, row, chunk, nullptr, nullptr, &sum);
  }
  void Between(int /*pass*/, int64_t row, Row & /*state*/, const ChunkSum *sums) const {
    const UntargetedSum<T> sum(sums, context.shape.chunks);
    if (sum.nan) return sink.Take(row, static_cast<T>(kNan));
    if (sum.infinity) return sink.Take(row, static_cast<T>(kInfinity));
    if (sum.total.IsZero()) return sink.Take(row, static_cast<T>(-kInfinity));
    // With one column log V is 0: no slack beside |z|.
    const Number<T> lse = context.shape.cols == 1
                              ? Number<T>{static_cast<double>(Widen(*context.Row<const In>(context.call.in, row)))}
                              : LogOfSum(sum.total);
    sink.Take(row, RoundTo<T>(lse));
  }
  void End(int64_t /*row*/, const Row & /*state*/, NoTotals & /*totals*/) const {}
};

static_assert(RowJob<LogSumExpJob<float>>);

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

  const Context &context;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return true; }
  void Chunk(int pass, int64_t row, int64_t chunk, Row &state, ChunkSum &sum) const {
    if (pass == 0) return Sum(row, chunk, state, nullptr, &sum);
    const ScaleTask task = Rewrite(row, chunk, state, sum);
    if (task.cols > 0) context.kernels.write->scale[kDtypeOf<In>](task);
  }
  void Sum(int64_t row, int64_t chunk, const Row & /*state*/, const ScaleTask *meanwhile, ChunkSum *sum) const {
    T *exponentials = nullptr;
    if constexpr (kKeepsExponentials<In>) exponentials = context.At<In>(context.call.out, row, chunk);
    SumChunk<In>(context, row, chunk, exponentials, meanwhile, sum);
  }
  ScaleTask Rewrite(int64_t row, int64_t chunk, const Row &state, const ChunkSum &sum) const {
    const int64_t cols = context.shape.ColsOf(chunk);
    In *const out = context.At<In>(context.call.out, row, chunk);
    if (state.nan) {
      FillRow(out, cols, kNan);
      return {};
    }
    if constexpr (kKeepsExponentials<In>) {
      return GradientFromExponentials(state.gradient, sum, out, out, cols);
    } else {
      GradientFromLogits(*context.kernels.write, state.gradient, {sum.kind, sum.reference, false},
                         context.At<const In>(context.call.in, row, chunk), out, cols);
      return {};
    }
  }
  void Rewritten(int64_t /*row*/, int64_t /*chunk*/, const Row & /*state*/) const {}
  void KeepIn(void * /*slot*/, Row & /*state*/) const {}
  void Between(int pass, int64_t /*row*/, Row &state, const ChunkSum *sums) const {
    if (pass != 0) return;
    const UntargetedSum<T> sum(sums, context.shape.chunks);
    state.nan = sum.nan || sum.infinity || sum.total.IsZero();
    if (!state.nan) state.gradient = MakeRowGradient<T>(sum.total, {1.0, 0}, 0.0);
  }
  void End(int64_t /*row*/, const Row & /*state*/, NoTotals & /*totals*/) const {}
};
static_assert(OverlappingJob<SoftmaxJob<float>>);

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

  const Context &context;

  bool Begin(int64_t /*row*/, Row &state) const {
    state.nan = false;
    return true;
  }
  void Chunk(int pass, int64_t row, int64_t chunk, Row &state, ChunkSum &sum) const {
    const In *const in = context.At<const In>(context.call.in, row, chunk);
    In *const out = context.At<In>(context.call.out, row, chunk);
    const int64_t cols = context.shape.ColsOf(chunk);
    if (pass == 0) {
      const Extreme seen = context.kernels.sum->maximum[kDtypeOf<In>](in, cols, -1);
      sum.reference = seen.max;
      sum.special = seen.nan ? Special::kNan : Special::kNone;
    } else if (pass == 1) {
      if (state.nan) return;
      const bool usable = Magnitude(state.max) <= Format<T>::kLimit;
      context.kernels.sum->exp_sum[kDtypeOf<In>]({.logits = in,
                                                  .cols = cols,
                                                  .target = state.argmax - chunk * context.shape.chunk_cols,
                                                  .first_reference = usable ? RoundedLog2(state.max) : kNan,
                                                  .exponentials = nullptr,
                                                  .spread = false,
                                                  .meanwhile = nullptr},
                                                 &sum);
    } else if (state.nan) {
      FillRow(out, cols, kNan);
    } else {
      context.kernels.write->log_softmax[kDtypeOf<In>](in, out, cols, state.max, state.delta);
    }
  }
  void Between(int pass, int64_t row, Row &state, const ChunkSum *sums) const {
    if (pass == 0) {
      state.max = -kInfinity;
      int64_t max_chunk = 0;
      for (int64_t i = 0; i < context.shape.chunks; ++i) {
        if (sums[i].special == Special::kNan) state.nan = true;
        if (sums[i].reference > state.max) {
          state.max = sums[i].reference;
          max_chunk = i;
        }
      }
      if (!IsFinite(state.max)) state.nan = true;
      if (state.nan) return;
      const In *const in = context.Row<const In>(context.call.in, row);
      state.argmax = max_chunk * context.shape.chunk_cols;
      while (static_cast<double>(Widen(in[state.argmax])) != state.max) ++state.argmax;
    } else if (pass == 1 && !state.nan) {
      const UntargetedSum<T> others(sums, context.shape.chunks);
      state.delta = RoundTo<T>(NegativeLogLikelihood(others.total, SumOfLogit<T>(state.max)));
    }
  }
  void End(int64_t /*row*/, const Row & /*state*/, NoTotals & /*totals*/) const {}
};
static_assert(RowJob<LogSoftmaxJob<float>>);

template <class In, bool kLog>
struct BackwardJob {
  static constexpr int kPasses = 2;
  using Part = ChunkSum;
  using Sums = NoTotals;
  struct Row {
    double sum;
  };

  const Context &context;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return true; }
  void Chunk(int pass, int64_t row, int64_t chunk, Row &state, ChunkSum &sum) const {
    const int64_t cols = context.shape.ColsOf(chunk);
    const In *const g = context.At<const In>(context.call.g, row, chunk);
    const In *const y = context.At<const In>(context.call.in, row, chunk);
    const RowWriteKernels &kernels = *context.kernels.write;
    if (pass == 0) {
      sum.sum = kernels.dot[kDtypeOf<In>](g, kLog ? nullptr : y, cols);
      return;
    }
    const auto &backward = kLog ? kernels.log_softmax_backward : kernels.softmax_backward;
    backward[kDtypeOf<In>]({g, y, context.At<In>(context.call.out, row, chunk), cols, state.sum});
  }
  void Between(int pass, int64_t /*row*/, Row &state, const ChunkSum *sums) const {
    if (pass != 0) return;
    Wide total;
    for (int64_t i = 0; i < context.shape.chunks; ++i) total = AddOrOverflow(total, sums[i].sum);
    state.sum = total.hi;
  }
  void End(int64_t /*row*/, const Row & /*state*/, NoTotals & /*totals*/) const {}
};
template <class In>
using SoftmaxBackwardJob = BackwardJob<In, false>;
template <class In>
using LogSoftmaxBackwardJob = BackwardJob<In, true>;
static_assert(RowJob<SoftmaxBackwardJob<float>> && RowJob<LogSoftmaxBackwardJob<float>>);

// Finds a value outside of [0, 1] or a row whose sum is not near 1; NaN is found too.
template <class In>
struct ProbabilitiesJob {
  static constexpr int kPasses = 1;
  using Part = ChunkSum;
  using Sums = NoTotals;
  struct Row {};

  const Context &context;
  const double tolerance;
  std::atomic<bool> &all;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return all.load(std::memory_order_relaxed); }
  void Chunk(int /*pass*/, int64_t row, int64_t chunk, Row & /*state*/, ChunkSum &sum) const {
    const int64_t step = context.call.inner, cols = context.shape.ColsOf(chunk);
    const In *const p = context.Row<const In>(context.call.in, row) + chunk * context.shape.chunk_cols * step;
    bool good = true;
    sum.sum = {};
    for (int64_t i = 0; i < cols; ++i) {
      const double v = static_cast<double>(Widen(p[i * step]));
      good &= v >= 0.0 && v <= 1.0;
      sum.sum.hi += v;
    }
    if (!good) all.store(false, std::memory_order_relaxed);
  }
  void Between(int /*pass*/, int64_t /*row*/, Row & /*state*/, const ChunkSum *sums) const {
    double total = 0.0;
    for (int64_t i = 0; i < context.shape.chunks; ++i) total += sums[i].sum.hi;
    if (!(Magnitude(total - 1.0) <= tolerance)) all.store(false, std::memory_order_relaxed);
  }
  void End(int64_t /*row*/, const Row & /*state*/, NoTotals & /*totals*/) const {}
};
static_assert(RowJob<ProbabilitiesJob<float>>);

// Up to kTile rows whose positions are adjacent: lanes over positions, in double, each row relative to its maximum.
template <class In>
struct Tile {
  using T = Arithmetic<In>;

  const Context &context;
  int64_t row, count;
  GeneralTask task{};
  GeneralRow<T> sums[kTile]{};

  void Sum() {
    task.logits = Input();
    task.cols = context.shape.cols;
    task.stride = context.call.inner;
    task.count = count;
    task.transform.wide = sizeof(In) == sizeof(double);
    GeneralSums parts[kTile];
    context.kernels.general->sums[kDtypeOf<In>](task, parts);
    for (int64_t i = 0; i < count; ++i) Merge<T>(parts[i], 1.0, &sums[i]);
  }
  const In *Input() const { return context.Row<const In>(context.call.in, row); }
  In *Output() const { return context.Row<In>(context.call.out, row); }

  void LogSumExpTo(const LseSink &sink) {
    if (!sink.Wants()) return;
    Sum();
    for (int64_t i = 0; i < count; ++i) {
      T lse = static_cast<T>(kNan);
      if (sums[i].special == Special::kInfinity) lse = static_cast<T>(kInfinity);
      if (sums[i].special == Special::kNone) {
        lse = sums[i].argmax < 0 ? static_cast<T>(-kInfinity) : RoundTo<T>(LogSumExp(sums[i], 1.0));
      }
      sink.Take(row + i, lse);
    }
  }

  // A row's softmax is its gradient without a target.
  void Softmax() {
    using N = Number<T>;
    Sum();
    GeneralGradient gradients[kTile];
    for (int64_t i = 0; i < count; ++i) {
      if (sums[i].IsNan()) continue;
      gradients[i].value = sums[i].value;
      gradients[i].p_factor = Wide{Divide(N{1.0}, Add(sums[i].others, N{1.0}))};
    }
    const int64_t step = context.call.inner;
    task.rows = gradients;
    task.gradient = Output();
    context.kernels.general->gradient[kDtypeOf<In>](task);
    for (int64_t i = 0; i < count; ++i) {
      if (sums[i].IsNan()) FillColumns(Output() + i, step, 0, context.shape.cols, kNan);
    }
  }

  void LogSoftmax() {
    Sum();
    ForEachElement([&](int64_t i, int64_t at) {
      T value = static_cast<T>(kNan);
      if (!sums[i].IsNan()) value = T{0} - RoundTo<T>(Gap(sums[i], 1.0, static_cast<double>(Widen(Input()[at]))));
      Output()[at] = Narrow<In>(value);
    });
  }

  // dx = y (g - sum g y), or g - e^y sum g. Sums carry their rounding errors along where float64 asks for it.
  template <bool kLog>
  void Backward() {
    using N = Number<T>;
    const In *const g = context.Row<const In>(context.call.g, row), *const y = Input();
    N totals[kTile] = {};
    ForEachElement([&](int64_t i, int64_t at) {
      N term{static_cast<double>(Widen(g[at]))};
      if (!kLog) term = MultiplyAny(term, N{static_cast<double>(Widen(y[at]))});
      totals[i] = AddOrOverflow(totals[i], term);
    });
    ForEachElement([&](int64_t i, int64_t at) {
      const double upstream = static_cast<double>(Widen(g[at])), total = Value(totals[i]);
      T output = Widen(y[at]);
      if constexpr (kLog && sizeof(T) == 8) context.kernels.array->exp_f64(&output, &output, 1);
      if constexpr (kLog && sizeof(T) == 4) context.kernels.array->exp_f32(&output, &output, 1);
      const double factor = static_cast<double>(output);
      Output()[at] = Narrow<In>(RoundTo<T>(N{kLog ? upstream - factor * total : factor * (upstream - total)}));
    });
  }

  // Calls function(position, element), columns in order.
  template <class Function>
  void ForEachElement(const Function &function) const {
    for (int64_t col = 0; col < context.shape.cols; ++col) {
      for (int64_t i = 0; i < count; ++i) function(i, col * context.call.inner + i);
    }
  }
};

template <class Job>
bool RunJob(const Context &context, const Plan &plan, const Job &job) {
  NoTotals unused;
  return RunRows(job, plan, context.shape, Workspace(), context.call.exec, &unused);
}

// Calls row_major(context, plan, In{}), or, where lanes run over positions, run_tile(tile) for all tiles.
template <class RunRowMajor, class RunTile>
bool Run(const RowFunctionCall &call, bool overlap, const RunRowMajor &row_major, const RunTile &run_tile) {
  const FpMode mode(call.inner > 1 ? Subnormals::kKeep : Subnormals::kFlush);
  const Context context(call);
  const Plan plan = MakePlan(context.shape, call.inner, call.exec, overlap);
  return DispatchDtype(call.in.dtype, [&](auto storage) {
    if (plan.path != Path::kPositions) return row_major(context, plan, storage);
    NoTotals unused;
    const auto run = [&](int64_t first, int64_t end, Groups<NoTotals> & /*groups*/) {
      for (int64_t row = first, count; row < end; row += count) {
        count = std::min({kTile, end - row, call.inner - row % call.inner});
        Tile<decltype(storage)> tile{context, row, count};
        run_tile(tile);
      }
    };
    return RunGroups<NoTotals>(plan, context.shape, call.exec, run, &unused);
  });
}

template <template <class> class Job, class RunTile>
bool RunJobOrTiles(const RowFunctionCall &call, bool overlap, const RunTile &run_tile) {
  const auto row_major = [](const Context &context, const Plan &plan, auto storage) {
    return RunJob(context, plan, Job<decltype(storage)>{context});
  };
  return Run(call, overlap, row_major, run_tile);
}

bool RunLogSumExpInto(const RowFunctionCall &call, const LseSink &sink) {
  const auto row_major = [&](const Context &context, const Plan &plan, auto storage) {
    return RunJob(context, plan, LogSumExpJob<decltype(storage)>{context, sink});
  };
  return Run(call, false, row_major, [&](auto &tile) { tile.LogSumExpTo(sink); });
}

// Runs over row-major and class-major matrices alike: its job steps over the positions between columns.
bool AllProbabilities(const RowFunctionCall &call, double tolerance, bool *all) {
  const FpMode mode(Subnormals::kFlush);
  const Context context(call);
  const Plan plan = MakePlan(context.shape, 1, call.exec, false);
  std::atomic<bool> still{true};
  const bool complete = DispatchDtype(call.in.dtype, [&](auto storage) {
    return RunJob(context, plan, ProbabilitiesJob<decltype(storage)>{context, tolerance, still});
  });
  *all = still.load();
  return complete;
}

}  // namespace

bool RunLogSumExp(const RowFunctionCall &call) { return RunLogSumExpInto(call, {call.lse, 0.0, nullptr}); }

bool RunSoftmax(const RowFunctionCall &call) {
  const bool keeps = ElementSize(call.in.dtype) != 2;
  return RunJobOrTiles<SoftmaxJob>(call, keeps, [](auto &tile) { tile.Softmax(); });
}
bool RunLogSoftmax(const RowFunctionCall &call) {
  return RunJobOrTiles<LogSoftmaxJob>(call, false, [](auto &tile) { tile.LogSoftmax(); });
}
bool RunSoftmaxBackward(const RowFunctionCall &call) {
  return RunJobOrTiles<SoftmaxBackwardJob>(call, false, [](auto &tile) { tile.template Backward<false>(); });
}
bool RunLogSoftmaxBackward(const RowFunctionCall &call) {
  return RunJobOrTiles<LogSoftmaxBackwardJob>(call, false, [](auto &tile) { tile.template Backward<true>(); });
}

bool Diagnose(const RowFunctionCall &call, xent_diagnosis *diagnosis) {
  *diagnosis = XENT_DIAGNOSIS_LOGITS;
  if (call.cols == 1) return true;
  const double tolerance = call.in.dtype == XENT_BF16 ? 0x1p-7 : 1e-3;
  bool all = false;
  if (!AllProbabilities(call, tolerance, &all)) return false;
  if (all) *diagnosis = XENT_DIAGNOSIS_PROBABILITIES;
  if (all) return true;
  std::atomic<bool> near_zero{true};
  if (!RunLogSumExpInto(call, {nullptr, tolerance, &near_zero})) return false;
  if (near_zero.load()) *diagnosis = XENT_DIAGNOSIS_LOG_PROBABILITIES;
  return true;
}

}  // namespace xent::internal
