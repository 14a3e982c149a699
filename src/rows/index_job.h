// Rows with an index target and adjacent columns, in the arithmetic type: the exponentials are summed in one sweep, and
// kept for the gradient where they can be.
#ifndef XENT_SRC_ROWS_INDEX_JOB_H_
#define XENT_SRC_ROWS_INDEX_JOB_H_

#include <cstdint>

#include "rows/call.h"
#include "rows/small_rows.h"
#include "rows/statistics.h"

namespace xent::internal {

template <class T>
struct IndexRow {
  int64_t target;
  double target_logit;
  RowSum<T> others, target_term;
  Number<T> nll;  // unrounded, for the perplexity
  T loss;
  uint16_t logit_chunks;
  bool nan;
  Fill fill;
  RowGradient<T> gradient;
  T target_gradient;
  T *exponentials;  // of the row, kept by the pass that sums them; null: they are computed again
};

// A chunk's sum, which chunk of the row it is of (two shards may share one), and its columns.
struct IndexPiece {
  const ChunkSum *sum;
  int64_t chunk;
  int64_t first, cols;
};

// kSpreadScale times the sum over c != t of lse - z_c: per chunk the differences to its pivot, and the pivot's own.
template <class T, class PieceOf>
Number<T> OthersLoss(const IndexRow<T> &state, int64_t cols, int64_t pieces, const PieceOf &piece_of) {
  using N = Number<T>;
  const int64_t scale = ExponentOf(Format<T>::kSpreadScale);
  if (cols == 2 && !state.others.IsZero()) {
    // The one other column may be the confident one, where lse - z cancels. (Where its exponential has vanished, be
    // it masked or far below, the difference to the pivot says which.)
    return Scale(NegativeLogLikelihood(state.target_term, state.others), scale);
  }
  // lse as the part that a pivot is near to and the rest: beyond 2^20 nothing of log sum is left in lse itself.
  const RowSum<T> sum = Merge<T>(state.others, state.target_term);
  N near{state.target_logit}, rest{};
  if (!state.others.IsZero()) {
    near = sum.logit ? N{sum.reference} : LogOfSum(sum);
    if (sum.logit) rest = Log(sum.sum);
  }
  N total{};
  for (int64_t i = 0; i < pieces; ++i) {
    const IndexPiece piece = piece_of(i);
    const bool has_target = state.target >= piece.first && state.target < piece.first + piece.cols;
    const double others = static_cast<double>(piece.cols - has_target);
    const N below = Scale(Add(Subtract(near, N{piece.sum->pivot}), rest), scale);
    total = AddOrOverflow(total, AddOrOverflow(ToNumber<T>(piece.sum->spread), Multiply(below, N{others})));
  }
  return total;
}

// Merges a live row's chunks and writes what forward gives.
template <class T, class PieceOf>
void FinishIndexRow(const Call &call, int64_t row, int64_t pieces, const PieceOf &piece_of, IndexRow<T> &state) {
  using N = Number<T>;
  state.logit_chunks = 0;
  for (int64_t i = 0; !state.nan && i < pieces; ++i) {
    const IndexPiece piece = piece_of(i);
    if (piece.sum->special != Special::kNone) state.nan = true;
    if (piece.sum->kind == Reference::kLogit) {
      state.logit_chunks = static_cast<uint16_t>(state.logit_chunks | 1u << piece.chunk);
    }
  }
  if (!state.nan) {
    state.others = MergeChunks<T>(pieces, [&](int64_t i) -> const ChunkSum & { return *piece_of(i).sum; });
    state.target_term = SumOfLogit<T>(state.target_logit);
    if (state.others.IsZero() && state.target_term.IsZero()) state.nan = true;  // a row of -inf
  }
  T lse = std::numeric_limits<T>::quiet_NaN();
  state.loss = lse;
  state.nll = Number<T>{kNan};
  T log_probability = lse;
  if (!state.nan) {
    const N nll = state.target_term.IsZero() ? N{kInfinity} : NegativeLogLikelihood(state.others, state.target_term);
    state.nll = nll;
    if (call.args.logprobs != nullptr) log_probability = T{0} - RoundTo<T>(nll);
    const double lambda = call.options.z_loss;
    const bool smoothed = call.shares.other != 0.0;
    N wide_lse{};
    if (call.args.lse != nullptr || lambda != 0.0) {
      wide_lse = state.others.IsZero() ? N{state.target_logit} : LogOfSum(Merge<T>(state.others, state.target_term));
      lse = RoundTo<T>(wide_lse);
    }
    N loss = Weighted(nll, call.TargetWeight(state.target));
    int64_t scale = 0;
    if (smoothed) {
      scale = ExponentOf(Format<T>::kSpreadScale);
      loss = Weighted(Scale(nll, scale), call.shares.target);
      const N others = OthersLoss(state, call.shape.cols, pieces, piece_of);
      loss = AddOrOverflow(loss, MultiplyAny(others, N{call.shares.other}));
    } else if (lambda != 0.0) {
      loss = AddOrOverflow(loss, ZLoss(wide_lse, lambda));
    }
    state.loss = RoundTo<T>(Scale(Weighted(loss, call.RowWeight(row)), -scale));
  }
  Call::Write(call.args.losses, row, state.loss);
  Call::Write(call.args.lse, row, lse);
  Call::Write(call.args.logprobs, row, log_probability);
  if (call.args.records != nullptr) {
    Record record = Record::Make(call.args.dtype, state.nan ? Record::kNanRow : Record::kLive);
    if (!state.nan) {
      record.index.logit_chunks = state.logit_chunks;
      record.Set(0, state.others);
      record.Set(1, state.target_term);
    }
    *call.RecordOf(row) = record;
  }
}

// A row as forward left it.
template <class T>
void RestoreIndexRow(const Call &call, int64_t row, IndexRow<T> &state) {
  const Record &record = *call.RecordOf(row);
  state.nan = record.state == Record::kNanRow;
  state.others = record.template Get<T>(0);
  state.target_term = record.template Get<T>(1);
  state.logit_chunks = record.index.logit_chunks;
}

// u r over the denominator, times (w_t + 2 lambda lse) p - w_t y.
template <class T>
void PrepareIndexGradient(const Call &call, int64_t row, IndexRow<T> &state) {
  Factor g;
  state.fill = call.FillOf(row, state.nan, &g);
  if (state.fill != Fill::kCompute) return;
  const RowSum<T> total = Merge<T>(state.others, state.target_term);
  const double weight = call.TargetWeight(state.target);
  const double lambda = call.options.z_loss;
  const double mass =
      lambda == 0.0
          ? weight
          : Value(AddOrOverflow(Scale(MultiplyAny(LogOfSum(total), Number<T>{lambda}), 1), Number<T>{weight}));
  if (mass == 0.0 && weight == 0.0) {
    state.fill = Fill::kZero;
    return;
  }
  state.gradient = MakeRowGradient<T>(total, mass == 1.0 ? g : Product(g, Decompose(mass)), call.shares.other);
  if (call.shares.other != 0.0) {
    state.target_gradient = ScaledRatio<T>(g, state.target_term, total, 1.0, call.shares.target);
  } else if (lambda != 0.0) {
    state.target_gradient = ScaledRatio<T>(g, state.target_term, total, mass, weight);
  } else {  // p_t - 1 is -(the others' sum) / total
    if (weight != 1.0) g = Product(g, Decompose(weight));
    state.target_gradient = ScaledRatio<T>({-g.mantissa, g.exponent}, state.others, total, 1.0, 0.0);
  }
}

// The gradient of `cols` columns, a chunk or a part of one, but for the target's: `first` is the first one's column in
// the row. What is left to do is scaling kept exponentials.
template <class In>
ScaleTask WriteIndexGradient(const Call &call, const IndexRow<Arithmetic<In>> &state, const ChunkSum *sum,
                             int64_t chunk, int64_t first, int64_t cols, const In *logits, In *grad) {
  if (state.fill != Fill::kCompute) {
    FillRow(grad, cols, state.fill == Fill::kNan ? kNan : 0.0);
    return {};
  }
  if (state.exponentials != nullptr) {
    return GradientFromExponentials(state.gradient, *sum, state.exponentials + first, grad, cols);
  }
  Reference kind = Reference::kExponent;
  double origin = 0.0;
  if ((state.logit_chunks >> chunk & 1) != 0) {
    kind = Reference::kLogit;
    origin = sum != nullptr ? sum->reference
                            : call.kernels.sum->maximum[kDtypeOf<In>](logits, cols, state.target - first).max;
  }
  GradientFromLogits(*call.kernels.write, state.gradient, kind, origin, logits, grad, cols, call.streams);
  return {};
}
template <class In>
void WriteTargetGradient(const IndexRow<Arithmetic<In>> &state, int64_t first, int64_t cols, In *grad) {
  const int64_t target = state.target - first;
  if (state.fill == Fill::kCompute && target >= 0 && target < cols) grad[target] = Narrow<In>(state.target_gradient);
}

// Sums `cols` columns; their exponentials are kept in `exponentials` where that is not null.
template <class In>
void SumIndexChunk(const Call &call, double target_logit, int64_t target, const In *logits, int64_t cols,
                   Arithmetic<In> *exponentials, ChunkSum *sum, const ScaleTask *meanwhile = nullptr) {
  using T = Arithmetic<In>;
  const double z = target_logit;
  // The target's logit is a good guess for its own chunk; for another one it may be far off, and shards of the
  // vocabulary would not know it there.
  const bool usable = target >= 0 && target < cols && z >= -Format<T>::kLimit && z <= Format<T>::kLimit;
  call.kernels.sum->exp_sum[kDtypeOf<In>](
      {logits, cols, target, usable ? RoundedLog2(z) : kNan, exponentials, call.shares.other != 0.0, meanwhile}, sum);
}

template <class In>
struct IndexJob {
  using T = Arithmetic<In>;
  static constexpr int kPasses = 2;
  using Part = ChunkSum;
  using Sums = Totals;
  using Row = IndexRow<T>;

  const Call &call;

  bool Begin(int64_t row, Row &state) const {
    state.target = call.Target(row);
    if (call.IsIgnored(state.target)) {
      Ignore(row);
      return false;
    }
    state.target_logit = static_cast<double>(Widen(call.Logits<In>(row)[state.target]));
    if (row + 1 < call.shape.rows) PrefetchTarget(row + 1);
    if constexpr (kKeepsExponentials<In>) {
      if (call.mode == Mode::kForwardBackward) state.exponentials = call.Grad<In>(row);
    }
    if (call.mode == Mode::kBackward) {
      RestoreIndexRow(call, row, state);
      PrepareIndexGradient(call, row, state);
    } else {
      state.nan = !(state.target_logit < kInfinity);
      if (call.wants_statistics) Describe(row, state.target);
    }
    return true;
  }
  // Its logit is needed first, and lies anywhere; of an ignored row the address may be anything, hence an integer.
  void PrefetchTarget(int64_t row) const {
    const auto column = static_cast<uintptr_t>(call.Target(row));
    __builtin_prefetch(
        reinterpret_cast<const void *>(reinterpret_cast<uintptr_t>(call.Logits<In>(row)) + column * sizeof(In)));
  }
  // Not inline: their frames are not to lie below those of the kernels.
  XENT_NOINLINE void Ignore(int64_t row) const {
    WriteIgnoredRow<In>(call, row, [&] { return SumRow<In>(call, row, call.args.lse != nullptr); });
  }
  XENT_NOINLINE void Describe(int64_t row, int64_t target) const {
    WriteStatistics<In>(call, row, SumRow<In>(call, row), target);
  }

  XENT_NOINLINE void Chunk(int pass, int64_t row, int64_t chunk, Row &state, ChunkSum &sum) const {
    if (pass == 0) return Sum(row, chunk, state, nullptr, &sum);
    Rewrite(row, chunk, state, sum, [&](const ScaleTask &task) { call.kernels.write->scale[kDtypeOf<In>](task); });
  }

  // The first pass over a chunk, and meanwhile the last part of another row's second one.
  void Sum(int64_t row, int64_t chunk, const Row &state, const ScaleTask *meanwhile, ChunkSum *sum) const {
    const RowShape &shape = call.shape;
    const int64_t first = chunk * shape.chunk_cols;
    if (call.mode == Mode::kBackward || state.nan) {
      if (meanwhile != nullptr) call.kernels.write->scale[kDtypeOf<In>](*meanwhile);
      return;
    }
    T *const exponentials = state.exponentials == nullptr ? nullptr : state.exponentials + first;
    SumIndexChunk(call, state.target_logit, state.target - first, call.Logits<In>(row) + first, shape.ColsOf(chunk),
                  exponentials, sum, meanwhile);
  }
  // The second pass; scale(task) does its last part, where there is one.
  template <class ScaleOne>
  void Rewrite(int64_t row, int64_t chunk, const Row &state, const ChunkSum &sum, const ScaleOne &scale) const {
    if (call.args.grad == nullptr) return scale(ScaleTask{});
    const RowShape &shape = call.shape;
    const int64_t first = chunk * shape.chunk_cols;
    const int64_t cols = shape.ColsOf(chunk);
    In *const grad = call.Grad<In>(row) + first;
    ScaleTask task = WriteIndexGradient(call, state, call.mode == Mode::kForwardBackward ? &sum : nullptr, chunk, first,
                                        cols, call.Logits<In>(row) + first, grad);
    task.stream = call.streams && task.exponentials != task.out;
    scale(task);
    WriteTargetGradient(state, first, cols, grad);
  }

  // Rows so short that many are done at once; false: these are not.
  bool RunSmall(int64_t first, int64_t end, Groups<Totals> &groups) const {
    Factor g{};
    if (!TakesSmallRows<In>(call, &g)) return false;
    RunSmallRows<In>(*this, g, first, end, groups);
    return true;
  }
  bool Streams() const { return call.streams; }
  // Whether rows are worked on such that one's second pass runs beside the next one's first.
  bool Overlaps() const { return call.mode == Mode::kForwardBackward && call.args.grad != nullptr; }
  const Workspace &workspace() const { return call.workspace; }
  // Another place for a row's exponentials, if it is one. In place they need none.
  void KeepIn(void *slot, Row &state) const {
    if (slot != nullptr && (!kKeepsExponentials<In> || !call.InPlace())) state.exponentials = static_cast<T *>(slot);
  }

  // Neither is inline, for the same reason.
  XENT_NOINLINE void Between(int pass, int64_t row, Row &state, const ChunkSum *sums) const {
    if (pass != 0 || call.mode == Mode::kBackward) return;
    const RowShape &shape = call.shape;
    FinishIndexRow(
        call, row, shape.chunks,
        [&](int64_t i) -> IndexPiece { return {&sums[i], i, i * shape.chunk_cols, shape.ColsOf(i)}; }, state);
    if (call.mode == Mode::kForwardBackward) PrepareIndexGradient(call, row, state);
  }

  XENT_NOINLINE void End(int64_t row, const Row &state, Totals &totals) const {
    if (call.WritesGradients()) call.FillPadding<In>(row);
    if (call.mode != Mode::kBackward)
      totals.Add({{static_cast<double>(state.loss), 0.0}, call.args.perplexity != nullptr ? Wide{state.nll} : Wide{}});
  }
};

}  // namespace xent::internal
#endif  // XENT_SRC_ROWS_INDEX_JOB_H_
