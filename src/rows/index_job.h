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

// A row of the index path: its sums, and what follows from them.
template <class T>
struct IndexRow {
  using N = Number<T>;

  int64_t target;
  double target_logit;
  RowSum<T> others, target_term;
  N nll;  // unrounded, for the perplexity
  T loss;
  uint16_t logit_chunks;
  bool nan;
  Fill fill;
  RowGradient<T> gradient;
  T target_gradient;
  T *exponentials;  // of the row, kept by the pass that sums them; null: they are computed again

  RowSum<T> Total() const { return others.Merge(target_term); }

  // Merges the parts and writes what forward gives. part_of(i) is the i-th ChunkSum and its piece.
  template <class PartOf>
  void Finish(const Call &call, int64_t row, int64_t parts, const PartOf &part_of) {
    MergeParts(parts, part_of);
    loss = std::numeric_limits<T>::quiet_NaN();
    nll = N{kNan};
    T lse = loss, log_probability = loss;
    if (!nan) {
      const Unbounded<N> of_target =
          target_term.IsZero() ? Unbounded<N>{N{kInfinity}} : target_term.NegativeLogLikelihood(others);
      nll = ValueOf(of_target);
      if (call.statistics.logprobs != nullptr || NeedLogProbabilities(call.statistics)) {
        log_probability = T{0} - RoundTo<T>(nll);
      }
      const double lambda = call.options.z_loss;
      N wide_lse{};
      if (call.statistics.lse != nullptr || lambda != 0.0) {
        wide_lse = others.IsZero() ? N{target_logit} : Total().LogOfSum();
        lse = RoundTo<T>(wide_lse);
      }
      Unbounded<N> wide_loss =
          Times(of_target, call.shares.other != 0.0 ? call.shares.target : call.TargetWeight(target));
      if (call.shares.other != 0.0) {
        wide_loss = Sum(wide_loss, Times(OthersLoss(call.shape.cols, parts, part_of), call.shares.other));
      } else if (lambda != 0.0) {
        wide_loss = WithZLoss(wide_loss, {wide_lse}, lambda);
      }
      loss = RoundTo<T>(ValueOf(Times(wide_loss, call.RowWeight(row))));
    }
    call.WriteRow(row, loss, lse, log_probability);
    if (call.plan.statistics) FillLogProbabilities(call, row, log_probability);
    if (call.args.records == nullptr) return;
    Record record = call.NewRecord(nan ? Record::kNanRow : Record::kLive, Record::kIndex);
    if (!nan) {
      record.index.logit_chunks = logit_chunks;
      record.Set(0, others);
      record.Set(1, target_term);
    }
    *call.RecordOf(row) = record;
  }

  // Takes a row as forward left it, and prepares its gradient.
  void Restore(const Call &call, int64_t row) {
    const Record &record = *call.RecordOf(row);
    nan = record.state == Record::kNanRow;
    others = record.template Get<T>(0);
    target_term = record.template Get<T>(1);
    logit_chunks = record.index.logit_chunks;
    PrepareGradient(call, row);
  }

  // Prepares the factors of the gradient: u r over the denominator, times (w_t + 2 lambda lse) p - w_t y.
  void PrepareGradient(const Call &call, int64_t row) {
    Factor g;
    fill = call.FillOf(row, nan, &g);
    if (fill != Fill::kCompute) return;
    const RowSum<T> total = Total();
    const double weight = call.TargetWeight(target), lambda = call.options.z_loss;
    Factor mass = Decompose(weight);
    if (lambda != 0.0) {
      const Unbounded<N> sum = MassWithZLoss<N>(N{weight}, {total.LogOfSum()}, lambda);
      mass = Decompose(Value(sum.mantissa));
      mass.exponent += sum.exponent;
    }
    if (mass.mantissa == 0.0 && weight == 0.0) {
      fill = Fill::kZero;
      return;
    }
    gradient = MakeRowGradient<T>(total, lambda == 0.0 && weight == 1.0 ? g : Product(g, mass), call.shares.other);
    if (call.shares.other != 0.0) {
      target_gradient = total.ScaledRatio(g, target_term, {1.0, 0}, call.shares.target);
    } else if (lambda != 0.0) {
      target_gradient = total.ScaledRatio(g, target_term, mass, weight);
    } else {  // p_t - 1 is -(the others' sum) / total
      if (weight != 1.0) g = Product(g, Decompose(weight));
      target_gradient = total.ScaledRatio({-g.mantissa, g.exponent}, others, {1.0, 0}, 0.0);
    }
  }

 private:
  template <class PartOf>
  void MergeParts(int64_t parts, const PartOf &part_of) {
    nan = !(target_logit < kInfinity);
    logit_chunks = 0;
    for (int64_t i = 0; !nan && i < parts; ++i) {
      const auto &[sum, piece] = part_of(i);
      if (sum.special != Special::kNone) nan = true;
      if (sum.kind == Reference::kLogit) logit_chunks = static_cast<uint16_t>(logit_chunks | 1u << piece.chunk);
    }
    if (nan) return;
    others = MergeChunks<T>(parts, [&](int64_t i) -> const ChunkSum & { return part_of(i).part; });
    target_term = RowSum<T>::OfLogit(target_logit);
    nan = others.IsZero() && target_term.IsZero();  // a row of -inf
  }

  // The sum over c != t of lse - z_c: per chunk the differences to its pivot, and the pivot's own.
  template <class PartOf>
  Unbounded<N> OthersLoss(int64_t cols, int64_t parts, const PartOf &part_of) const {
    if (cols == 2 && !others.IsZero()) {
      // The one other column may be the confident one, where lse - z cancels. (Where its exponential has vanished, be
      // it masked or far below, the difference to the pivot says which.)
      return others.NegativeLogLikelihood(target_term);
    }
    // lse as the part that a pivot is near to and the rest: beyond 2^20 nothing of log sum is left in lse itself.
    const RowSum<T> sum = Total();
    N near{target_logit}, rest{};
    if (!others.IsZero()) {
      near = sum.logit ? N{sum.reference} : sum.LogOfSum();
      if (sum.logit) rest = Log(sum.sum);
    }
    const int64_t scale = ExponentOf(Format<T>::kSpreadScale);
    N total{};
    for (int64_t i = 0; i < parts; ++i) {
      const auto &[part, piece] = part_of(i);
      const double count = static_cast<double>(piece.cols - piece.Has(target));
      const N below = Add(Subtract(Scale(near, scale), Scale(N{part.pivot}, scale)), Scale(rest, scale));
      total = AddOrOverflow(total, AddOrOverflow(ToNumber<T>(part.spread), Multiply(below, N{count})));
    }
    return {total, -scale};
  }
};

template <class In>
struct IndexJob {
  using Element = In;
  using T = Arithmetic<In>;
  static constexpr int kPasses = 2;
  using Part = ChunkSum;
  using Row = IndexRow<T>;

  const Call &call;

  bool Begin(int64_t row, Row &state) const {
    state.target = call.Target(row);
    if (call.IsIgnored(state.target)) {
      Ignore(row);
      return false;
    }
    state.target_logit = call.Logit<In>(row, state.target);
    if (row + 1 < call.shape.rows) PrefetchTarget(row + 1);
    if constexpr (kKeepsExponentials<In>) {
      if (call.plan.keep != Keep::kNowhere) state.exponentials = call.Grad<In>(row);
    }
    if (call.mode == Mode::kBackward) {
      state.Restore(call, row);
    } else if (call.plan.statistics) {
      Look(row, state.target);
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
  // mode. The target's log-probability comes with the loss. Not inline: the scratch of these two is gone when the
  // kernels run.
  XENT_NOINLINE void Ignore(int64_t row) const {
    if (call.statistics.of_ignored == 0) return WriteIgnoredRow<In>(call, row);
    const FpMode mode(Subnormals::kKeep);
    WriteIgnoredRow<In>(call, row);
  }
  XENT_NOINLINE void Look(int64_t row, int64_t target) const {
    const FpMode mode(Subnormals::kKeep);
    WriteStatistics<In>(call, row, SumRow<In>(call, row, false), target, static_cast<T>(kNan));
  }

  XENT_NOINLINE void Chunk(int pass, int64_t row, const Piece &piece, Row &state, ChunkSum &sum) const {
    if (pass == 0) return Sum(row, piece, state, nullptr, &sum);
    const ScaleTask task = Rewrite(row, piece, state, sum);
    if (task.cols > 0) call.kernels->row->scale[kDtypeOf<In>](task);
    Rewritten(row, piece, state);
  }

  void Sum(int64_t row, const Piece &piece, const Row &state, const ScaleTask *meanwhile, ChunkSum *sum) const {
    if (call.mode == Mode::kBackward) return;
    const double z = state.target_logit;
    // The target's logit is a good guess for its own chunk; for another one it may be far off, and shards of the
    // vocabulary would not know it there.
    const bool usable = piece.Has(state.target) && Magnitude(z) <= Format<T>::kLimit;
    call.kernels->row->exp_sum[kDtypeOf<In>](
        {.logits = call.Logits<In>(row, piece.place),
         .cols = piece.cols,
         .target = state.target - piece.first,
         .first_reference = usable ? RoundedLog2(z) : kNan,
         .exponentials = state.exponentials == nullptr ? nullptr : state.exponentials + piece.first,
         .spread = call.shares.other != 0.0,
         .meanwhile = meanwhile},
        sum);
  }
  // Writes the gradient of a piece but for the target's column; `sum` is not read in backward. What is merely scaling
  // kept exponentials is not done, but returned.
  ScaleTask Rewrite(int64_t row, const Piece &piece, const Row &state, const ChunkSum &sum) const {
    In *const grad = call.Grad<In>(row, piece.place);
    if (grad == nullptr) return {};
    if (state.fill != Fill::kCompute) {
      FillColumns(grad, piece.cols, NumberOf(state.fill));
      return {};
    }
    if (state.exponentials != nullptr) {
      ScaleTask task =
          GradientFromExponentials(state.gradient, sum, state.exponentials + piece.first, grad, piece.cols);
      task.stream = call.plan.stream && task.exponentials != task.out;
      return task;
    }
    const In *const logits = call.Logits<In>(row, piece.place);
    GradientTask task{.logits = logits, .gradient = grad, .cols = piece.cols, .stream = call.plan.stream};
    if ((state.logit_chunks >> piece.chunk & 1) != 0) {
      task.kind = Reference::kLogit;
      const auto &maximum = call.kernels->row->maximum[kDtypeOf<In>];
      const bool known = call.mode != Mode::kBackward;
      task.origin = known ? sum.reference : maximum(task.logits, task.cols, state.target - piece.first).max;
    }
    GradientFromLogits<In>(*call.kernels->row, state.gradient, task);
    return {};
  }
  void Rewritten(int64_t row, const Piece &piece, const Row &state) const {
    if (call.args.grad.data == nullptr || state.fill != Fill::kCompute || !piece.Has(state.target)) return;
    *call.Grad<In>(row, piece.place + state.target - piece.first) = Narrow<In>(state.target_gradient);
  }
  void RunShortRows(int64_t first, int64_t end, Groups &groups) const { RunShortRowsOf<In>(*this, first, end, groups); }
  // Without a slot the place that Begin has found remains.
  void KeepIn(void *slot, Row &state) const {
    if (slot != nullptr) state.exponentials = static_cast<T *>(slot);
  }

  // Not inline: as Ignore.
  XENT_NOINLINE void Between(int pass, int64_t row, Row &state, const ChunkSum *sums) const {
    if (pass != 0 || call.mode == Mode::kBackward) return;
    state.Finish(call, row, call.shape.chunks, ChunkParts<ChunkSum>{call.shape, sums});
    if (call.mode == Mode::kForwardBackward) state.PrepareGradient(call, row);
  }

  XENT_NOINLINE void End(int64_t row, const Row &state, Totals &totals) const {
    if (call.WritesGradients()) call.FillPadding(row);
    if (call.mode == Mode::kBackward) return;
    totals.AddRow(static_cast<double>(state.loss), call.statistics.perplexity != nullptr ? Wide{state.nll} : Wide{});
  }
};
static_assert(OverlappingJob<IndexJob<float>> && ShortRowsJob<IndexJob<float>>);

}  // namespace xent::internal
