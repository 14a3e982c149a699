#include "rows/row_functions.h"

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "dispatch/dispatch.h"
#include "kernels/array.h"
#include "rows/across.h"
#include "rows/call.h"
#include "rows/general_row.h"
#include "rows/row_gradient.h"
#include "rows/run_rows.h"

namespace xent::internal {
namespace {

struct RowFunctionCall : RowCall {
  RowFunctionArgs args;

  // `keeps`: exponentials are kept in the output; `across_cols`: as MakePlan's.
  RowFunctionCall(const RowFunctionArgs &given, bool keeps, int64_t across_cols) : args(given) {
    exec = args.exec;
    shape = RowShape(args.rows, args.cols, args.inner);
    kernels = &ActiveKernels();
    plan = MakePlan(args, keeps, across_cols);
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
  Special special = Special::kNone;  // a NaN counts before an infinity

  UntargetedSum(const ChunkSum *sums, int64_t chunks) {
    for (int64_t i = 0; i < chunks; ++i) special = std::max(special, sums[i].special);
    if (special == Special::kNone) {
      total = MergeChunks<T>(chunks, [&](int64_t i) -> const ChunkSum & { return sums[i]; });
    }
  }
  // As GeneralRow's.
  bool IsNan() const { return special != Special::kNone || total.IsZero(); }
};

// The logsumexp of a row that IsNan: of a NaN, of +inf, and of -inf alone.
double LogSumExpByRule(Special special) {
  return special == Special::kNan ? kNan : special == Special::kInfinity ? kInfinity : -kInfinity;
}

// Sums `count` rows whose positions are adjacent. Not inline: the parts are gone before what a job does with the sums.
template <class In>
XENT_NOINLINE void SumPositions(const RowFunctionCall &call, int64_t row, int64_t count,
                                GeneralRow<Arithmetic<In>> *sums) {
  GeneralSums parts[kTile];
  call.kernels->general->sums[kDtypeOf<In>](call.TaskOf(call.args.in, row, count, call.shape.Chunk(0)), parts);
  for (int64_t i = 0; i < count; ++i) sums[i].Merge(parts[i], 1.0);
}

// What all jobs have in common. Unless a job says otherwise, no row is finished when it begins. A job also has
// Positions(row, count): up to kTile rows whose positions are adjacent, lanes over positions, in double, each row
// relative to its maximum. It is not inline, so that its scratch does not lie below the kernels' of other layouts.
struct RowFunctionJob {
  using Part = ChunkSum;

  const RowFunctionCall &call;

  bool Begin(int64_t /*row*/, auto & /*state*/) const { return true; }
  void End(int64_t /*row*/, const auto & /*state*/, Totals & /*totals*/) const {}

  // Sums a chunk; `task` is complete but for the logits.
  template <class In>
  void SumChunk(int64_t row, const Piece &chunk, ExpSumTask task, ChunkSum *sum) const {
    task.logits = call.Input<In>(row, chunk.first);
    task.cols = chunk.cols;
    call.kernels->row->exp_sum[kDtypeOf<In>](task, sum);
  }
  void Exponentials(float *x, int64_t n) const { call.kernels->array->exp_f32(x, x, n); }
  void Exponentials(double *x, int64_t n) const { call.kernels->array->exp_f64(x, x, n); }
  // Calls function(i, element) for the elements of `count` adjacent positions, columns in order.
  template <class Function>
  void ForEachElement(int64_t count, const Function &function) const {
    for (int64_t col = 0; col < call.shape.cols; ++col) {
      for (int64_t i = 0; i < count; ++i) function(i, col * call.shape.inner + i);
    }
  }
};

template <class In>
struct LogSumExpJob : RowFunctionJob {
  using T = Arithmetic<In>;
  static constexpr TileOutput kAcross = TileOutput::kNone;
  static constexpr int64_t kAcrossCols = kMaxAcrossGeneralCols;
  static constexpr int kPasses = 1;
  struct Row {};

  void Chunk(int /*pass*/, int64_t row, const Piece &chunk, Row & /*state*/, ChunkSum &sum) const {
    SumChunk<In>(row, chunk, {}, &sum);
  }
  void Between(int /*pass*/, int64_t row, Row & /*state*/, const ChunkSum *sums) const {
    using N = Number<T>;
    T *const lse = static_cast<T *>(call.args.lse) + row;
    const UntargetedSum<T> sum(sums, call.shape.chunks);
    *lse = static_cast<T>(LogSumExpByRule(sum.special));
    if (sum.IsNan()) return;
    // With one column log V is 0: no slack beside |z|.
    const bool one = call.shape.cols == 1;
    *lse = RoundTo<T>(one ? N{static_cast<double>(Widen(*call.Input<In>(row)))} : sum.total.LogOfSum());
  }
  XENT_NOINLINE void Positions(int64_t row, int64_t count) const {
    GeneralRow<T> sums[kTile];
    SumPositions<In>(call, row, count, sums);
    for (int64_t i = 0; i < count; ++i) {
      static_cast<T *>(call.args.lse)[row + i] = sums[i].IsNan() ? static_cast<T>(LogSumExpByRule(sums[i].special))
                                                                 : RoundTo<T>(ValueOf(sums[i].LogSumExp(1.0)));
    }
  }
};
static_assert(RowJob<LogSumExpJob<float>>);

template <class In>
struct SoftmaxJob : RowFunctionJob {
  using T = Arithmetic<In>;
  static constexpr TileOutput kAcross = TileOutput::kSoftmax;
  static constexpr int64_t kAcrossCols = kMaxAcrossCols;
  static constexpr int kPasses = 2;
  struct Row {
    bool nan;
    RowGradient<T> gradient;
  };

  void Chunk(int pass, int64_t row, const Piece &chunk, Row &state, ChunkSum &sum) const {
    if (pass == 0) return Sum(row, chunk, state, nullptr, &sum);
    const ScaleTask task = Rewrite(row, chunk, state, sum);
    if (task.cols > 0) call.kernels->row->scale[kDtypeOf<In>](task);
  }
  void Sum(int64_t row, const Piece &chunk, const Row & /*state*/, const ScaleTask *meanwhile, ChunkSum *sum) const {
    T *exponentials = nullptr;
    if constexpr (kKeepsExponentials<In>) exponentials = call.Output<In>(row, chunk.first);
    SumChunk<In>(row, chunk, {.exponentials = exponentials, .meanwhile = meanwhile}, sum);
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
      const In *const in = call.Input<In>(row, chunk.first);
      GradientTask task{.logits = in,
                        .gradient = out,
                        .cols = chunk.cols,
                        .kind = sum.kind,
                        .origin = sum.reference,
                        .stream = call.plan.stream};
      GradientFromLogits<In>(*call.kernels->row, state.gradient, task);
      return {};
    }
  }
  void Rewritten(int64_t /*row*/, const Piece & /*chunk*/, const Row & /*state*/) const {}
  void KeepIn(void * /*slot*/, Row & /*state*/) const {}
  void Between(int pass, int64_t /*row*/, Row &state, const ChunkSum *sums) const {
    if (pass != 0) return;
    const UntargetedSum<T> sum(sums, call.shape.chunks);
    state.nan = sum.IsNan();
    if (!state.nan) state.gradient = MakeRowGradient<T>(sum.total, {1.0, 0}, 0.0);
  }

  // A row's softmax is its gradient without a target.
  XENT_NOINLINE void Positions(int64_t row, int64_t count) const {
    using N = Number<T>;
    GeneralRow<T> sums[kTile];
    SumPositions<In>(call, row, count, sums);
    GeneralGradient gradients[kTile];
    for (int64_t i = 0; i < count; ++i) {
      if (sums[i].IsNan()) continue;
      gradients[i].value = sums[i].value;
      gradients[i].p_factor = Wide{Divide(N{1.0}, sums[i].Total())};
    }
    GeneralTask task = call.TaskOf(call.args.in, row, count, call.shape.Chunk(0));
    task.rows = gradients;
    task.row_bytes = sizeof(GeneralGradient);
    task.gradient = call.Output<In>(row);
    call.kernels->general->gradient[kDtypeOf<In>](task);
    for (int64_t i = 0; i < count; ++i) {
      if (sums[i].IsNan()) call.FillGradient(call.args.out, row + i, 0, call.shape.cols, kNan);
    }
  }
};
static_assert(OverlappingJob<SoftmaxJob<float>>);

// The row's maximum stands where cross-entropy has its target: its own log-probability is -log1p of the others' sum.
template <class In>
struct LogSoftmaxJob : RowFunctionJob {
  using T = Arithmetic<In>;
  static constexpr TileOutput kAcross = TileOutput::kLogSoftmax;
  static constexpr int64_t kAcrossCols = kMaxAcrossGeneralCols;
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
      const Extreme seen = call.kernels->row->maximum[kDtypeOf<In>](in, chunk.cols, -1);
      sum.reference = seen.max;
      sum.special = seen.nan ? Special::kNan : Special::kNone;
    } else if (pass == 1) {
      if (state.nan) return;
      const double reference = Magnitude(state.max) <= Format<T>::kLimit ? RoundedLog2(state.max) : kNan;
      SumChunk<In>(row, chunk, {.target = state.argmax - chunk.first, .first_reference = reference}, &sum);
    } else if (state.nan) {
      FillColumns(out, chunk.cols, kNan);
    } else {
      call.kernels->row->log_softmax[kDtypeOf<In>]({in, out, chunk.cols, state.max, state.delta, call.plan.stream});
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
      state.delta = RoundTo<T>(ValueOf(RowSum<T>::OfLogit(state.max).NegativeLogLikelihood(others.total)));
    }
  }

  XENT_NOINLINE void Positions(int64_t row, int64_t count) const {
    const In *const in = call.Input<In>(row);
    In *const out = call.Output<In>(row);
    GeneralRow<T> sums[kTile];
    SumPositions<In>(call, row, count, sums);
    ForEachElement(count, [&](int64_t i, int64_t at) {
      T value = static_cast<T>(kNan);
      if (!sums[i].IsNan()) value = T{0} - RoundTo<T>(ValueOf(sums[i].Gap(1.0, static_cast<double>(Widen(in[at])))));
      out[at] = Narrow<In>(value);
    });
  }
};
static_assert(RowJob<LogSoftmaxJob<float>>);

// dx = y (g - sum g y), or, with kLog, g - e^y sum g.
template <class In, bool kLog>
struct BackwardJob : RowFunctionJob {
  static constexpr int kPasses = 2;
  static constexpr bool kThroughLog = kLog;
  static constexpr int64_t kAcrossCols = kMaxAcrossCols;
  struct Row {
    double sum;
  };

  void Chunk(int pass, int64_t row, const Piece &chunk, Row &state, ChunkSum &sum) const {
    const In *const g = call.At<const In>(call.args.g, row, chunk.first), *const y = call.Input<In>(row, chunk.first);
    if (pass == 0) {
      sum.sum = call.kernels->row->dot[kDtypeOf<In>](g, kLog ? nullptr : y, chunk.cols);
    } else {
      In *const out = call.Output<In>(row, chunk.first);
      call.kernels->row->backward[kLog][kDtypeOf<In>]({g, y, out, chunk.cols, state.sum, call.plan.stream});
    }
  }
  void Between(int pass, int64_t /*row*/, Row &state, const ChunkSum *sums) const {
    if (pass != 0) return;
    Wide total;
    for (int64_t i = 0; i < call.shape.chunks; ++i) total = AddOrOverflow(total, sums[i].sum);
    state.sum = total.hi;
  }

  // Sums carry their rounding errors along where float64 asks for it.
  XENT_NOINLINE void Positions(int64_t row, int64_t count) const {
    using T = Arithmetic<In>;
    using N = Number<T>;
    const In *const g = call.At<const In>(call.args.g, row), *const y = call.Input<In>(row);
    In *const out = call.Output<In>(row);
    N totals[kTile] = {};
    ForEachElement(count, [&](int64_t i, int64_t at) {
      N term{static_cast<double>(Widen(g[at]))};
      if (!kLog) term = MultiplyAny(term, N{static_cast<double>(Widen(y[at]))});
      totals[i] = AddOrOverflow(totals[i], term);
    });
    ForEachElement(count, [&](int64_t i, int64_t at) {
      const double upstream = static_cast<double>(Widen(g[at])), total = Value(totals[i]);
      T output = Widen(y[at]);
      if (kLog) Exponentials(&output, 1);
      const double factor = static_cast<double>(output);
      out[at] = Narrow<In>(RoundTo<T>(N{kLog ? upstream - factor * total : factor * (upstream - total)}));
    });
  }
};
template <class In>
using SoftmaxBackwardJob = BackwardJob<In, false>;
template <class In>
using LogSoftmaxBackwardJob = BackwardJob<In, true>;
static_assert(RowJob<SoftmaxBackwardJob<float>> && RowJob<LogSoftmaxBackwardJob<float>>);

// Runs a row that the kernel over rows side by side leaves, in every layout as a position.
template <class Job>
XENT_NOINLINE void RunAlone(const Job &job, int64_t row) {
  const FpMode mode(Subnormals::kKeep);
  job.Positions(row, 1);
}

// Rows side by side (kernels/across.h), tile after tile. Not inline, as Positions.
template <class In, class Job>
XENT_NOINLINE void RunTilesAcross(const Job &job, int64_t first, int64_t end) {
  const RowFunctionCall &call = job.call;
  constexpr bool kBackward = requires { Job::kThroughLog; };
  std::conditional_t<kBackward, AcrossBackwardTask, AcrossTask> task;
  task.cols = call.shape.cols;
  task.positions = call.shape.inner > 1;
  if constexpr (kBackward) {
    task.log = Job::kThroughLog;
  } else {
    task.output = Job::kAcross;
    task.lse = call.args.lse != nullptr;
  }
  for (TilePlace place(call.shape, first); place.row < end; place.Advance(call.shape, task.count)) {
    const int64_t row = place.row;
    task.out = place.In(call.shape, call.args.out, sizeof(In));
    task.count = place.Rows(call.shape, end, call.plan.stream ? task.out.data : nullptr, sizeof(In));
    task.live = (1u << task.count) - 1;
    task.stream = call.plan.stream && task.count == kTile;
    if constexpr (kBackward) {
      task.g = place.In(call.shape, call.args.g, sizeof(In));
      task.y = place.In(call.shape, call.args.in, sizeof(In));
      call.kernels->across->backward[kDtypeOf<In>](task);
    } else {
      task.logits = place.In(call.shape, call.args.in, sizeof(In));
      AcrossRows rows;
      call.kernels->across->run[kDtypeOf<In>](task, &rows);
      if (rows.done == task.live) {
        if (task.lse) std::copy_n(rows.lse, task.count, static_cast<float *>(call.args.lse) + row);
        continue;
      }
      for (int64_t i = 0; i < task.count; ++i) {
        if ((rows.done >> i & 1) == 0) {
          RunAlone(job, row + i);
        } else if (task.lse) {
          static_cast<float *>(call.args.lse)[row + i] = rows.lse[i];
        }
      }
    }
  }
}

// Runs a job over rows, or, where lanes run over rows or positions, over tiles of these.
template <template <class> class Job>
bool Run(const RowFunctionArgs &args, bool keeps) {
  const RowFunctionCall call(args, keeps, Job<float>::kAcrossCols);
  const FpMode mode(call.plan.subnormals);
  return DispatchDtype(args.in.dtype, [&](auto storage) {
    using In = decltype(storage);
    const Job<In> job{{call}};
    if (call.plan.path == Path::kIndex) return RunRows(job, nullptr);
    const auto run = [&](int64_t first, int64_t end, Groups & /*groups*/) {
      if constexpr (std::is_same_v<In, double>) {
        for (int64_t row = first, count; row < end; row += count) {
          count = TileRows(call.shape, row, end);
          job.Positions(row, count);
        }
      } else {
        RunTilesAcross<In>(job, first, end);
      }
    };
    return RunGroups(call, run, nullptr);
  });
}

// What all rows seen so far may be.
struct Verdict {
  double tolerance;
  std::atomic<bool> probabilities{true}, log_probabilities{true};

  bool IsOpen() const { return probabilities || log_probabilities; }
  bool IsNearZero(double x) const { return Magnitude(x) <= tolerance; }
};

// Judges rows, of any layout one by one, until they can be neither.
template <class In>
struct JudgeJob : RowFunctionJob {
  static constexpr int kPasses = 1;
  struct Row {};

  Verdict &verdict;

  bool Begin(int64_t /*row*/, Row & /*state*/) const { return verdict.IsOpen(); }
  // Sums the values, and as the spread their exponentials. A value outside of [0, 1], or NaN, is no probability.
  void Chunk(int /*pass*/, int64_t row, const Piece &chunk, Row & /*state*/, ChunkSum &sum) const {
    constexpr int64_t kBlockCols = 64;
    Arithmetic<In> block[kBlockCols];
    sum.sum = sum.spread = {};
    for (int64_t done = 0; done < chunk.cols && verdict.IsOpen(); done += kBlockCols) {
      const int64_t cols = std::min(kBlockCols, chunk.cols - done);
      bool good = true;
      for (int64_t i = 0; i < cols; ++i) {
        block[i] = Widen(*call.Input<In>(row, chunk.first + done + i));
        const double p = static_cast<double>(block[i]);
        good &= p >= 0.0 && p <= 1.0;
        sum.sum.hi += p;
      }
      if (!good) verdict.probabilities = false;
      if (!verdict.log_probabilities) continue;
      Exponentials(block, cols);
      for (int64_t i = 0; i < cols; ++i) sum.spread.hi += static_cast<double>(block[i]);
    }
  }
  void Between(int /*pass*/, int64_t /*row*/, Row & /*state*/, const ChunkSum *sums) const {
    double total = 0.0, exponentials = 0.0;
    for (int64_t i = 0; i < call.shape.chunks; ++i) {
      total += sums[i].sum.hi;
      exponentials += sums[i].spread.hi;
    }
    if (!verdict.IsNearZero(total - 1.0)) verdict.probabilities = false;
    const bool near_one = exponentials > 0.5 && exponentials < 2.0;
    if (!near_one || !verdict.IsNearZero(Log(exponentials))) verdict.log_probabilities = false;
  }
};
static_assert(RowJob<JudgeJob<float>>);

}  // namespace

bool RunLogSumExp(const RowFunctionArgs &args) { return Run<LogSumExpJob>(args, false); }
bool RunSoftmax(const RowFunctionArgs &args) { return Run<SoftmaxJob>(args, ElementSize(args.in.dtype) != 2); }
bool RunLogSoftmax(const RowFunctionArgs &args) { return Run<LogSoftmaxJob>(args, false); }
bool RunSoftmaxBackward(const RowFunctionArgs &args) { return Run<SoftmaxBackwardJob>(args, false); }
bool RunLogSoftmaxBackward(const RowFunctionArgs &args) { return Run<LogSoftmaxBackwardJob>(args, false); }

bool Diagnose(const RowFunctionArgs &args, xent_diagnosis *diagnosis) {
  *diagnosis = XENT_DIAGNOSIS_LOGITS;
  if (args.rows == 0 || args.cols == 1) return true;
  RowFunctionCall call(args, false, 0);
  call.plan = MakePlan(RowShape(args.rows, args.cols), call.exec, false);  // row by row in every layout
  const FpMode mode(call.plan.subnormals);
  Verdict verdict{args.in.dtype == XENT_BF16 ? 0x1p-7 : 1e-3};
  const auto judge = [&](auto storage) { return RunRows(JudgeJob<decltype(storage)>{{call}, verdict}, nullptr); };
  if (!DispatchDtype(args.in.dtype, judge)) return false;
  if (verdict.log_probabilities) *diagnosis = XENT_DIAGNOSIS_LOG_PROBABILITIES;
  if (verdict.probabilities) *diagnosis = XENT_DIAGNOSIS_PROBABILITIES;
  return true;
}

}  // namespace xent::internal
