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

struct RowFunctionCall : RowCall {
  RowFunctionArgs args;

  // `keeps`: exponentials are kept in the output.
  RowFunctionCall(const RowFunctionArgs &given, bool keeps) : args(given) {
    exec = args.exec;
    shape = RowShape(args.rows, args.cols, args.inner);
    kernels = &ActiveKernels();
    plan = MakePlan(shape, args.inner, exec, keeps);
  }

  template <class In>
  const In *Input(int64_t row, int64_t col = 0) const {
    return At<const In>(args.in, row, col);
  }
  template <class In>
  In *Output(int64_t row, int64_t col = 0) const {
    return At<In>(args.out, row, col);
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

// Whether all rows are near what is expected of them; the first that is not ends the search.
struct Verdict {
  double tolerance;
  std::atomic<bool> all{true};

  bool Stands() const { return all.load(std::memory_order_relaxed); }
  void Expect(bool good) {
    if (!good) all.store(false, std::memory_order_relaxed);
  }
  void ExpectNearZero(double value) { Expect(Magnitude(value) <= tolerance); }
};

// Where logsumexps go: to the caller, or, where there is one, to the verdict of whether all are near 0.
struct LseSink {
  void *lse;
  Verdict *verdict;

  bool Wants() const { return verdict == nullptr || verdict->Stands(); }
  template <class T>
  void Take(int64_t row, T value) const {
    if (verdict != nullptr) return verdict->ExpectNearZero(static_cast<double>(value));
    static_cast<T *>(lse)[row] = value;
  }
};

// What all jobs have in common. Unless a job says otherwise, no row is finished when it begins.
struct RowFunctionJob {
  using Part = ChunkSum;

  const RowFunctionCall &call;

  bool Begin(int64_t /*row*/, auto & /*state*/) const { return true; }
  void End(int64_t /*row*/, const auto & /*state*/, Totals & /*totals*/) const {}

  // Sums a chunk whose columns all count.
  template <class In>
  void SumChunk(int64_t row, const Piece &chunk, Arithmetic<In> *exponentials, const ScaleTask *meanwhile,
                ChunkSum *sum) const {
    call.kernels->sum->exp_sum[kDtypeOf<In>]({.logits = call.Input<In>(row, chunk.first),
                                              .cols = chunk.cols,
                                              .target = -1,
                                              .first_reference = kNan,
                                              .exponentials = exponentials,
                                              .spread = false,
                                              .meanwhile = meanwhile},
                                             sum);
  }
};

template <class In>
struct LogSumExpJob : RowFunctionJob {
  using T = Arithmetic<In>;
  static constexpr int kPasses = 1;
  struct Row {};

  const LseSink &sink;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return sink.Wants(); }
  void Chunk(int /*pass*/, int64_t row, const Piece &chunk, Row & /*state*/, ChunkSum &sum) const {
    SumChunk<In>(row, chunk, nullptr, nullptr, &sum);
  }
  void Between(int /*pass*/, int64_t row, Row & /*state*/, const ChunkSum *sums) const {
    const UntargetedSum<T> sum(sums, call.shape.chunks);
    if (sum.nan) return sink.Take(row, static_cast<T>(kNan));
    if (sum.infinity) return sink.Take(row, static_cast<T>(kInfinity));
    if (sum.total.IsZero()) return sink.Take(row, static_cast<T>(-kInfinity));
    // With one column log V is 0: no slack beside |z|.
    using N = Number<T>;
    const bool one = call.shape.cols == 1;
    sink.Take(row, RoundTo<T>(one ? N{static_cast<double>(Widen(*call.Input<In>(row)))} : sum.total.LogOfSum()));
  }
};
static_assert(RowJob<LogSumExpJob<float>>);

template <class In>
struct SoftmaxJob : RowFunctionJob {
  using T = Arithmetic<In>;
  static constexpr int kPasses = 2;
  struct Row {
    bool nan;
    RowGradient<T> gradient;
  };

  void Chunk(int pass, int64_t row, const Piece &chunk, Row &state, ChunkSum &sum) const {
    if (pass == 0) return Sum(row, chunk, state, nullptr, &sum);
    const ScaleTask task = Rewrite(row, chunk, state, sum);
    if (task.cols > 0) call.kernels->write->scale[kDtypeOf<In>](task);
  }
  void Sum(int64_t row, const Piece &chunk, const Row & /*state*/, const ScaleTask *meanwhile, ChunkSum *sum) const {
    T *exponentials = nullptr;
    if constexpr (kKeepsExponentials<In>) exponentials = call.Output<In>(row, chunk.first);
    SumChunk<In>(row, chunk, exponentials, meanwhile, sum);
  }
  ScaleTask Rewrite(int64_t row, const Piece &chunk, const Row &state, const ChunkSum &sum) const {
    In *const out = call.Output<In>(row, chunk.first);
    if (state.nan) {
      FillColumns(out, chunk.cols, kNan);
      return {};
    }
    if constexpr (kKeepsExponentials<In>) {
      return GradientFromExponentials(state.gradient, sum, out, out, chunk.cols);
    } else {
      GradientTask task{};
      task.logits = call.Input<In>(row, chunk.first);
      task.gradient = out;
      task.cols = chunk.cols;
      task.kind = sum.kind;
      task.origin = sum.reference;
      GradientFromLogits<In>(*call.kernels->write, state.gradient, task);
      return {};
    }
  }
  void Rewritten(int64_t /*row*/, const Piece & /*chunk*/, const Row & /*state*/) const {}
  void KeepIn(void * /*slot*/, Row & /*state*/) const {}
  void Between(int pass, int64_t /*row*/, Row &state, const ChunkSum *sums) const {
    if (pass != 0) return;
    const UntargetedSum<T> sum(sums, call.shape.chunks);
    state.nan = sum.nan || sum.infinity || sum.total.IsZero();
    if (!state.nan) state.gradient = MakeRowGradient<T>(sum.total, {1.0, 0}, 0.0);
  }
};
static_assert(OverlappingJob<SoftmaxJob<float>>);

// The row's maximum stands where cross-entropy has its target: its own log-probability is -log1p of the others' sum.
template <class In>
struct LogSoftmaxJob : RowFunctionJob {
  using T = Arithmetic<In>;
  static constexpr int kPasses = 3;
  struct Row {
    bool nan;
    double max, delta;
    int64_t argmax;
  };

  void Chunk(int pass, int64_t row, const Piece &chunk, Row &state, ChunkSum &sum) const {
    const In *const in = call.Input<In>(row, chunk.first);
    In *const out = call.Output<In>(row, chunk.first);
    if (pass == 0) {
      const Extreme seen = call.kernels->sum->maximum[kDtypeOf<In>](in, chunk.cols, -1);
      sum.reference = seen.max;
      sum.special = seen.nan ? Special::kNan : Special::kNone;
    } else if (pass == 1) {
      if (state.nan) return;
      const bool usable = Magnitude(state.max) <= Format<T>::kLimit;
      call.kernels->sum->exp_sum[kDtypeOf<In>]({.logits = in,
                                                .cols = chunk.cols,
                                                .target = state.argmax - chunk.first,
                                                .first_reference = usable ? RoundedLog2(state.max) : kNan,
                                                .exponentials = nullptr,
                                                .spread = false,
                                                .meanwhile = nullptr},
                                               &sum);
    } else if (state.nan) {
      FillColumns(out, chunk.cols, kNan);
    } else {
      call.kernels->write->log_softmax[kDtypeOf<In>](in, out, chunk.cols, state.max, state.delta);
    }
  }
  void Between(int pass, int64_t row, Row &state, const ChunkSum *sums) const {
    if (pass == 0) {
      state.max = -kInfinity;
      for (int64_t i = 0; i < call.shape.chunks; ++i) {
        if (sums[i].special == Special::kNan) state.nan = true;
        if (!(sums[i].reference > state.max)) continue;
        state.max = sums[i].reference;
        state.argmax = call.shape.Chunk(i).first;
      }
      state.nan = state.nan || !IsFinite(state.max);
      if (state.nan) return;
      const In *const in = call.Input<In>(row);
      while (static_cast<double>(Widen(in[state.argmax])) != state.max) ++state.argmax;
    } else if (pass == 1 && !state.nan) {
      const UntargetedSum<T> others(sums, call.shape.chunks);
      state.delta = RoundTo<T>(RowSum<T>::OfLogit(state.max).NegativeLogLikelihood(others.total));
    }
  }
};
static_assert(RowJob<LogSoftmaxJob<float>>);

template <class In, bool kLog>
struct BackwardJob : RowFunctionJob {
  static constexpr int kPasses = 2;
  struct Row {
    double sum;
  };

  void Chunk(int pass, int64_t row, const Piece &chunk, Row &state, ChunkSum &sum) const {
    const In *const g = call.At<const In>(call.args.g, row, chunk.first), *const y = call.Input<In>(row, chunk.first);
    const RowWriteKernels &kernels = *call.kernels->write;
    if (pass == 0) {
      sum.sum = kernels.dot[kDtypeOf<In>](g, kLog ? nullptr : y, chunk.cols);
    } else {
      const auto &backward = kLog ? kernels.log_softmax_backward : kernels.softmax_backward;
      backward[kDtypeOf<In>]({g, y, call.Output<In>(row, chunk.first), chunk.cols, state.sum});
    }
  }
  void Between(int pass, int64_t /*row*/, Row &state, const ChunkSum *sums) const {
    if (pass != 0) return;
    Wide total;
    for (int64_t i = 0; i < call.shape.chunks; ++i) total = AddOrOverflow(total, sums[i].sum);
    state.sum = total.hi;
  }
};
template <class In>
using SoftmaxBackwardJob = BackwardJob<In, false>;
template <class In>
using LogSoftmaxBackwardJob = BackwardJob<In, true>;
static_assert(RowJob<SoftmaxBackwardJob<float>> && RowJob<LogSoftmaxBackwardJob<float>>);

// Finds a value outside of [0, 1] or a row whose sum is not near 1; NaN is found too.
template <class In>
struct ProbabilitiesJob : RowFunctionJob {
  static constexpr int kPasses = 1;
  struct Row {};

  Verdict &verdict;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return verdict.Stands(); }
  void Chunk(int /*pass*/, int64_t row, const Piece &chunk, Row & /*state*/, ChunkSum &sum) const {
    bool good = true;
    sum.sum = {};
    for (int64_t col = chunk.first; col < chunk.first + chunk.cols; ++col) {
      const double p = static_cast<double>(Widen(*call.Input<In>(row, col)));
      good &= p >= 0.0 && p <= 1.0;
      sum.sum.hi += p;
    }
    verdict.Expect(good);
  }
  void Between(int /*pass*/, int64_t /*row*/, Row & /*state*/, const ChunkSum *sums) const {
    double total = 0.0;
    for (int64_t i = 0; i < call.shape.chunks; ++i) total += sums[i].sum.hi;
    verdict.ExpectNearZero(total - 1.0);
  }
};
static_assert(RowJob<ProbabilitiesJob<float>>);

// Up to kTile rows whose positions are adjacent: lanes over positions, in double, each row relative to its maximum. Its
// functions are not inline, so that the scratch of one is gone before that of the next.
template <class In>
struct Tile {
  using T = Arithmetic<In>;
  using N = Number<T>;

  const RowFunctionCall &call;
  int64_t row, count;
  GeneralTask task{};
  GeneralRow<T> sums[kTile]{};

  XENT_NOINLINE void Sum() {
    task = call.TaskOf(call.args.in, row, count, call.shape.Chunk(0));
    task.transform.wide = sizeof(In) == sizeof(double);
    GeneralSums parts[kTile];
    call.kernels->general->sums[kDtypeOf<In>](task, parts);
    for (int64_t i = 0; i < count; ++i) sums[i].Merge(parts[i], 1.0);
  }
  const In *Input() const { return call.Input<In>(row); }
  In *Output() const { return call.Output<In>(row); }

  XENT_NOINLINE void LogSumExpTo(const LseSink &sink) {
    if (!sink.Wants()) return;
    Sum();
    for (int64_t i = 0; i < count; ++i) {
      T lse = static_cast<T>(kNan);
      if (sums[i].special == Special::kInfinity) lse = static_cast<T>(kInfinity);
      if (sums[i].special == Special::kNone) {
        lse = sums[i].argmax < 0 ? static_cast<T>(-kInfinity) : RoundTo<T>(sums[i].LogSumExp(1.0));
      }
      sink.Take(row + i, lse);
    }
  }

  // A row's softmax is its gradient without a target.
  XENT_NOINLINE void Softmax() {
    Sum();
    GeneralGradient gradients[kTile];
    for (int64_t i = 0; i < count; ++i) {
      if (sums[i].IsNan()) continue;
      gradients[i].value = sums[i].value;
      gradients[i].p_factor = Wide{Divide(N{1.0}, Add(sums[i].others, N{1.0}))};
    }
    task.rows = gradients;
    task.row_bytes = sizeof(GeneralGradient);
    task.gradient = Output();
    call.kernels->general->gradient[kDtypeOf<In>](task);
    for (int64_t i = 0; i < count; ++i) {
      if (sums[i].IsNan()) FillColumns(Output() + i, call.shape.cols, kNan, call.shape.inner);
    }
  }

  XENT_NOINLINE void LogSoftmax() {
    Sum();
    ForEachElement([&](int64_t i, int64_t at) {
      T value = static_cast<T>(kNan);
      if (!sums[i].IsNan()) value = T{0} - RoundTo<T>(sums[i].Gap(1.0, static_cast<double>(Widen(Input()[at]))));
      Output()[at] = Narrow<In>(value);
    });
  }

  // dx = y (g - sum g y), or g - e^y sum g. Sums carry their rounding errors along where float64 asks for it.
  template <bool kLog>
  XENT_NOINLINE void Backward() {
    const In *const g = call.At<const In>(call.args.g, row), *const y = Input();
    N totals[kTile] = {};
    ForEachElement([&](int64_t i, int64_t at) {
      N term{static_cast<double>(Widen(g[at]))};
      if (!kLog) term = MultiplyAny(term, N{static_cast<double>(Widen(y[at]))});
      totals[i] = AddOrOverflow(totals[i], term);
    });
    ForEachElement([&](int64_t i, int64_t at) {
      const double upstream = static_cast<double>(Widen(g[at])), total = Value(totals[i]);
      T output = Widen(y[at]);
      if constexpr (kLog && sizeof(T) == 8) call.kernels->array->exp_f64(&output, &output, 1);
      if constexpr (kLog && sizeof(T) == 4) call.kernels->array->exp_f32(&output, &output, 1);
      const double factor = static_cast<double>(output);
      Output()[at] = Narrow<In>(RoundTo<T>(N{kLog ? upstream - factor * total : factor * (upstream - total)}));
    });
  }

  // Calls function(position, element), columns in order.
  template <class Function>
  void ForEachElement(const Function &function) const {
    for (int64_t col = 0; col < call.shape.cols; ++col) {
      for (int64_t i = 0; i < count; ++i) function(i, col * call.shape.inner + i);
    }
  }
};

// Calls run_tile(tile) for all tiles of rows [first, end). Not inline: its frame is not to lie below those of jobs.
template <class In, class RunTile>
XENT_NOINLINE void RunTilesOf(const RowFunctionCall &call, int64_t first, int64_t end, const RunTile &run_tile) {
  for (int64_t row = first, count; row < end; row += count) {
    count = TileRows(call.shape, row, end);
    Tile<In> tile{call, row, count};
    run_tile(tile);
  }
}

// Runs make_job(call, In{}) over rows, or, where lanes run over positions, run_tile(tile) over tiles.
template <class MakeJob, class RunTile>
bool Run(const RowFunctionArgs &args, bool keeps, const MakeJob &make_job, const RunTile &run_tile) {
  const RowFunctionCall call(args, keeps);
  const FpMode mode(call.plan.subnormals);
  return DispatchDtype(args.in.dtype, [&](auto storage) {
    if (call.plan.path != Path::kPositions) return RunRows(make_job(call, storage), nullptr);
    const auto run = [&](int64_t first, int64_t end, Groups & /*groups*/) {
      RunTilesOf<decltype(storage)>(call, first, end, run_tile);
    };
    return RunGroups(call, run, nullptr);
  });
}

template <template <class> class Job, class RunTile>
bool Run(const RowFunctionArgs &args, bool keeps, const RunTile &run_tile) {
  const auto make_job = [](const RowFunctionCall &call, auto storage) { return Job<decltype(storage)>{{call}}; };
  return Run(args, keeps, make_job, run_tile);
}

bool RunLogSumExpInto(const RowFunctionArgs &args, const LseSink &sink) {
  const auto make_job = [&](const RowFunctionCall &call, auto storage) {
    return LogSumExpJob<decltype(storage)>{{call}, sink};
  };
  return Run(args, false, make_job, [&](auto &tile) { tile.LogSumExpTo(sink); });
}

// Runs over row-major and class-major matrices alike: its job steps over the positions between columns.
bool JudgeProbabilities(const RowFunctionArgs &args, Verdict *verdict) {
  RowFunctionCall call(args, false);
  call.plan = MakePlan(call.shape, 1, call.exec, false);
  const FpMode mode(call.plan.subnormals);
  return DispatchDtype(args.in.dtype, [&](auto storage) {
    return RunRows(ProbabilitiesJob<decltype(storage)>{{call}, *verdict}, nullptr);
  });
}

}  // namespace

bool RunLogSumExp(const RowFunctionArgs &args) { return RunLogSumExpInto(args, {args.lse, nullptr}); }

bool RunSoftmax(const RowFunctionArgs &args) {
  return Run<SoftmaxJob>(args, ElementSize(args.in.dtype) != 2, [](auto &tile) { tile.Softmax(); });
}
bool RunLogSoftmax(const RowFunctionArgs &args) {
  return Run<LogSoftmaxJob>(args, false, [](auto &tile) { tile.LogSoftmax(); });
}
bool RunSoftmaxBackward(const RowFunctionArgs &args) {
  return Run<SoftmaxBackwardJob>(args, false, [](auto &tile) { tile.template Backward<false>(); });
}
bool RunLogSoftmaxBackward(const RowFunctionArgs &args) {
  return Run<LogSoftmaxBackwardJob>(args, false, [](auto &tile) { tile.template Backward<true>(); });
}

bool Diagnose(const RowFunctionArgs &args, xent_diagnosis *diagnosis) {
  *diagnosis = XENT_DIAGNOSIS_LOGITS;
  if (args.cols == 1) return true;
  const double tolerance = args.in.dtype == XENT_BF16 ? 0x1p-7 : 1e-3;
  Verdict probabilities{tolerance}, log_probabilities{tolerance};
  if (!JudgeProbabilities(args, &probabilities)) return false;
  if (probabilities.Stands()) {
    *diagnosis = XENT_DIAGNOSIS_PROBABILITIES;
    return true;
  }
  if (!RunLogSumExpInto(args, {nullptr, &log_probabilities})) return false;
  if (log_probabilities.Stands()) *diagnosis = XENT_DIAGNOSIS_LOG_PROBABILITIES;
  return true;
}

}  // namespace xent::internal
