// The index path: rows with an index target and adjacent columns, in the arithmetic type. The exponentials are summed
// in one sweep, and kept for the gradient where the plan has a place for them.
#pragma once

#include <cstdint>

#include "rows/call.h"
#include "rows/row_gradient.h"
#include "rows/run_rows.h"
#include "rows/short_rows.h"
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

// A chunk of a row or, in a slice of a vocabulary, a part of one.
struct Piece {
  int64_t chunk;
  int64_t first;  // column in the row
  int64_t cols;
};
struct IndexPiece {
  const ChunkSum *sum;
  Piece piece;
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
    const auto [sum_of_piece, piece] = piece_of(i);
    const bool has_target = state.target >= piece.first && state.target < piece.first + piece.cols;
    const double others = static_cast<double>(piece.cols - has_target);
    const N below = Scale(Add(Subtract(near, N{sum_of_piece->pivot}), rest), scale);
    total = AddOrOverflow(total, AddOrOverflow(ToNumber<T>(sum_of_piece->spread), Multiply(below, N{others})));
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
      state.logit_chunks = static_cast<uint16_t>(state.logit_chunks | 1u << piece.piece.chunk);
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
    if (call.statistics.logprobs != nullptr) log_probability = T{0} - RoundTo<T>(nll);
    const double lambda = call.options.z_loss;
    const bool smoothed = call.shares.other != 0.0;
    N wide_lse{};
    if (call.statistics.lse != nullptr || lambda != 0.0) {
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
  call.WriteRow(row, state.loss, lse, log_probability);
  if (call.args.records != nullptr) {
    Record record = Record::Make(call.args.logits.dtype, state.nan ? Record::kNanRow : Record::kLive, Record::kIndex);
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

// Writes the gradient of a piece but for the target's column; `sum` is null in backward. What is merely scaling kept
// exponentials is not done, but returned.
template <class In>
ScaleTask WriteIndexGradient(const Call &call, const IndexRow<Arithmetic<In>> &state, const ChunkSum *sum,
                             const Piece &piece, const In *logits, In *grad) {
  if (state.fill != Fill::kCompute) {
    FillRow(grad, piece.cols, state.fill == Fill::kNan ? kNan : 0.0);
    return {};
  }
  if (state.exponentials != nullptr) {
    ScaleTask task = GradientFromExponentials(state.gradient, *sum, state.exponentials + piece.first, grad, piece.cols);
    task.stream = call.plan.stream && task.exponentials != task.out;
    return task;
  }
  Reference kind = Reference::kExponent;
  double origin = 0.0;
  if ((state.logit_chunks >> piece.chunk & 1) != 0) {
    kind = Reference::kLogit;
    const int64_t target = state.target - piece.first;
    origin = sum != nullptr ? sum->reference : call.kernels->sum->maximum[kDtypeOf<In>](logits, piece.cols, target).max;
  }
  GradientFromLogits(*call.kernels->write, state.gradient, {kind, origin, call.plan.stream}, logits, grad, piece.cols);
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
  call.kernels->sum->exp_sum[kDtypeOf<In>]({.logits = logits,
                                            .cols = cols,
                                            .target = target,
                                            .first_reference = usable ? RoundedLog2(z) : kNan,
                                            .exponentials = exponentials,
                                            .spread = call.shares.other != 0.0,
                                            .meanwhile = meanwhile},
                                           sum);
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
      if (call.plan.keep != Keep::kNowhere) state.exponentials = call.Grad<In>(row);
    }
    if (call.mode == Mode::kBackward) {
      RestoreIndexRow(call, row, state);
      PrepareIndexGradient(call, row, state);
    } else {
      state.nan = !(state.target_logit < kInfinity);
      if (call.plan.statistics) Look(row, state.target);
    }
    return true;
  }
  // Asks for the next row's target logit, which is needed first and lies anywhere. Of an ignored row the address may be
  // anything, hence an integer.
  void PrefetchTarget(int64_t row) const {
    const auto column = static_cast<uintptr_t>(call.Target(row));
    __builtin_prefetch(
        reinterpret_cast<const void *>(reinterpret_cast<uintptr_t>(call.Logits<In>(row)) + column * sizeof(In)));
  }
  // Statistics keep subnormal logits apart, which the sums of this path flush: the one place where a task changes its
  // mode. Not inline: the frames of these two are not to lie below those of the kernels.
  XENT_NOINLINE void Ignore(int64_t row) const {
    const auto sum_row = [&] { return SumRow<In>(call, row, call.statistics.lse != nullptr); };
    if (call.statistics.of_ignored == 0) return WriteIgnoredRow<In>(call, row, sum_row);
    const FpMode mode(Subnormals::kKeep);
    WriteIgnoredRow<In>(call, row, sum_row);
  }
  XENT_NOINLINE void Look(int64_t row, int64_t target) const {
    const FpMode mode(Subnormals::kKeep);
    WriteStatistics<In>(call, row, SumRow<In>(call, row, false), target);
  }

  XENT_NOINLINE void Chunk(int pass, int64_t row, int64_t chunk, Row &state, ChunkSum &sum) const {
    if (pass == 0) return Sum(row, chunk, state, nullptr, &sum);
    const ScaleTask task = Rewrite(row, chunk, state, sum);
    if (task.cols > 0) call.kernels->write->scale[kDtypeOf<In>](task);
    Rewritten(row, chunk, state);
  }

  void Sum(int64_t row, int64_t chunk, const Row &state, const ScaleTask *meanwhile, ChunkSum *sum) const {
    const RowShape &shape = call.shape;
    const int64_t first = chunk * shape.chunk_cols;
    if (call.mode == Mode::kBackward || state.nan) {
      if (meanwhile != nullptr) call.kernels->write->scale[kDtypeOf<In>](*meanwhile);
      return;
    }
    T *const exponentials = state.exponentials == nullptr ? nullptr : state.exponentials + first;
    SumIndexChunk(call, state.target_logit, state.target - first, call.Logits<In>(row) + first, shape.ColsOf(chunk),
                  exponentials, sum, meanwhile);
  }
  ScaleTask Rewrite(int64_t row, int64_t chunk, const Row &state, const ChunkSum &sum) const {
    if (call.args.grad.data == nullptr) return {};
    const int64_t first = chunk * call.shape.chunk_cols;
    const ChunkSum *const known = call.mode == Mode::kForwardBackward ? &sum : nullptr;
    return WriteIndexGradient(call, state, known, {chunk, first, call.shape.ColsOf(chunk)},
                              call.Logits<In>(row) + first, call.Grad<In>(row) + first);
  }
  void Rewritten(int64_t row, int64_t chunk, const Row &state) const {
    if (call.args.grad.data == nullptr) return;
    const int64_t first = chunk * call.shape.chunk_cols;
    WriteTargetGradient(state, first, call.shape.ColsOf(chunk), call.Grad<In>(row) + first);
  }
  void RunShortRows(int64_t first, int64_t end, Groups<Totals> &groups) const {
    RunShortRowsOf<In>(*this, first, end, groups);
  }
  // Without a slot the place that Begin has found remains.
  void KeepIn(void *slot, Row &state) const {
    if (slot != nullptr) state.exponentials = static_cast<T *>(slot);
  }

  // Not inline, for the same reason.
  XENT_NOINLINE void Between(int pass, int64_t row, Row &state, const ChunkSum *sums) const {
    if (pass != 0 || call.mode == Mode::kBackward) return;
    const RowShape &shape = call.shape;
    FinishIndexRow(
        call, row, shape.chunks,
        [&](int64_t i) -> IndexPiece { return {&sums[i], {i, i * shape.chunk_cols, shape.ColsOf(i)}}; }, state);
    if (call.mode == Mode::kForwardBackward) PrepareIndexGradient(call, row, state);
  }

  XENT_NOINLINE void End(int64_t row, const Row &state, Totals &totals) const {
    if (call.WritesGradients()) call.FillPadding<In>(row);
    if (call.mode != Mode::kBackward) {
      const bool wants_nll = call.statistics.perplexity != nullptr;
      totals.Add({{static_cast<double>(state.loss), 0.0}, wants_nll ? Wide{state.nll} : Wide{}});
    }
  }
};
static_assert(OverlappingJob<IndexJob<float>> && ShortRowsJob<IndexJob<float>>);

}  // namespace xent::internal
