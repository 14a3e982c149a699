// The general path and the path over positions: rows with any options, in double lanes (kernels/general.h). Lanes run
// over columns where these are adjacent, else over positions.
#pragma once

#include <algorithm>
#include <cstdint>

#include "rows/call.h"
#include "rows/general_row.h"
#include "rows/run_rows.h"
#include "rows/statistics.h"

namespace xent::internal {

// Where the labels have to be read in every column.
inline bool IsWeighted(const Call &call) { return !call.HasIndexTargets() || call.shares.other != 0.0; }

// The labels of a row from a piece's first column on.
inline Labels LabelsOf(const Call &call, int64_t row, const Piece &piece) {
  Labels labels = call.labels;
  if (call.args.class_weights != nullptr) {
    labels.class_weights = static_cast<const char *>(call.args.class_weights) + piece.first * (call.IsWide() ? 8 : 4);
  }
  if (!call.HasIndexTargets()) labels.probs = call.BytesAt(call.args.target_probs, row, piece.place);
  return labels;
}
// y_t; 0 where there is no target.
inline Wide LabelOfTarget(const Call &call, int64_t target) {
  if (target < 0) return {};
  return MultiplyAny(call.target_share, Wide{call.TargetWeight(target)});
}

// A row of the general path: its sums, and what follows from them.
template <class T>
struct GeneralRowState {
  using N = Number<T>;

  int64_t target;       // -1: probability targets
  double target_logit;  // as stored
  GeneralRow<T> row;
  T loss, log_probability;
  N nll;
  Fill fill;
  bool exact;           // the target's gradient is the others' sum alone,
  double exact_target;  // times this
  int64_t exact_lift;   // and a power of two
  Factor label_factor;  // u r (1 - epsilon) over the denominator
  GeneralGradient gradient;

  // Merges the parts and writes what forward gives. part_of(i) is the i-th GeneralSums and its piece.
  template <class PartOf>
  XENT_NOINLINE void Finish(const Call &call, int64_t index, int64_t parts, const PartOf &part_of) {
    const double factor = call.transform.Factor();
    row = {};
    for (int64_t i = 0; i < parts; ++i) row.Merge(part_of(i).part, factor);
    loss = std::numeric_limits<T>::quiet_NaN();
    nll = N{kNan};
    T lse = loss;
    log_probability = loss;
    if (!row.IsNan()) {
      const Unbounded<N> wide_lse = row.LogSumExp(factor);
      lse = RoundTo<T>(ValueOf(wide_lse));
      Unbounded<N> of_target;
      double value = target_logit;
      if (target >= 0) {
        call.kernels->general->values(call.transform, &value, 1);
        of_target = row.Gap(factor, value);
        nll = ValueOf(of_target);
        log_probability = T{0} - RoundTo<T>(nll);
      }
      Unbounded<N> wide_loss = IsWeighted(call) ? row.WeightedGap() : Times(of_target, call.TargetWeight(target));
      if (call.options.z_loss != 0.0) wide_loss = WithZLoss(wide_loss, wide_lse, call.options.z_loss);
      loss = RoundTo<T>(ValueOf(Times(wide_loss, call.RowWeight(index))));
    }
    call.WriteRow(index, loss, lse, log_probability);
    if (call.args.records == nullptr) return;
    const Record::State state = row.IsNan() ? Record::kNanRow : Record::kLive;
    Record record = call.NewRecord(state, Record::kGeneral);
    if (!row.IsNan()) {
      const auto others = StoredWide::Of(Wide{row.others}), weight = StoredWide::Of(Wide{row.weight});
      record.general = {row.argmax, row.value, others, weight, row.max};
    }
    *call.RecordOf(index) = record;
  }

  // Takes a row as forward left it, and prepares its gradient.
  void Restore(const Call &call, int64_t index) { RestoreFrom(call, index, *call.RecordOf(index)); }
  void RestoreFrom(const Call &call, int64_t index, const Record &record) {
    row = {};
    if (record.state == Record::kNanRow) {
      row.special = Special::kNan;
    } else if (record.kind == Record::kAcross) {
      row.argmax = AnyArgmax(call, record.across.value);
      row.value = record.across.value;
      row.others = Scale(ToNumber<T>(Wide{record.across.others}), kOthersBias);
      row.weight = ToNumber<T>(Wide{record.across.weight});
    } else {
      row.argmax = record.general.argmax;
      row.value = record.general.value;
      row.max = record.general.max;
      row.others = ToNumber<T>(record.general.others);
      row.weight = ToNumber<T>(record.general.weight);
    }
    PrepareGradient(call, index);
  }

  // The target where it is the largest, else no column at all: more of argmax the gradient does not ask for.
  int64_t AnyArgmax(const Call &call, double largest) const {
    if (target < 0) return INT64_MAX;
    double value = target_logit;
    call.kernels->general->values(call.transform, &value, 1);
    return value == largest ? target : INT64_MAX;
  }

  XENT_NOINLINE void PrepareGradient(const Call &call, int64_t index) {
    Factor g;
    exact = false;
    fill = call.FillOf(index, row.IsNan(), &g);
    if (fill != Fill::kCompute) return;
    const Factor slope = call.transform.Slope();
    const bool weighted = IsWeighted(call);
    const double lambda = call.options.z_loss;
    const N labels_mass = weighted ? row.weight : N{call.TargetWeight(target)};
    int64_t mass_scale = 0;  // of the sum with the z-loss, which may be past the largest double
    N mass = labels_mass;
    if (lambda != 0.0) {
      const Unbounded<N> sum = MassWithZLoss(mass, row.LogSumExp(call.transform.Factor()), lambda);
      mass_scale = std::max<int64_t>(0, ExponentOf(Value(sum.mantissa)) + sum.exponent - 1010);
      mass = ValueOf<N>({sum.mantissa, sum.exponent - mass_scale});
    }
    // Beyond what leaves room for the other factors the exponent goes its own way.
    const int64_t exponent = g.exponent + slope.exponent + mass_scale;
    const int64_t of_mass = ExponentOf(std::max(Magnitude(Value(mass)), Magnitude(Value(labels_mass))));
    const int64_t most = std::min<int64_t>(400, 900 - of_mass);
    gradient.lift = exponent - (mass_scale != 0 ? 0 : std::clamp<int64_t>(exponent, -400, most));
    const auto factor_of = [&](int64_t e) { return Scale(g.mantissa, e - gradient.lift); };
    // Without a cap dz is logit_scale throughout.
    const N dz{call.transform.cap > 0.0 ? 1.0 : slope.mantissa};
    const N y_factor = MultiplyAny(N{factor_of(exponent - mass_scale)}, dz);
    const N p_factor = MultiplyAny(N{factor_of(exponent)}, dz);
    gradient.mass = std::max(Magnitude(Value(y_factor) * Value(labels_mass)), Magnitude(Value(p_factor) * Value(mass)));
    gradient.value = row.value;
    gradient.p_factor = Wide{MultiplyAny(Divide(mass, row.Total()), p_factor)};
    gradient.y_factor = Wide{y_factor};
    gradient.log_total = Value(row.LogTotal());
    gradient.label_factor = factor_of(g.exponent) * (1.0 - call.options.label_smoothing);
    label_factor = Product(g, Decompose(1.0 - call.options.label_smoothing));
    if (!weighted && lambda == 0.0 && target == row.argmax) {
      exact = true;
      const auto share = row.IsTiny() ? Unbounded<N>{row.others, -kOthersBias}
                                      : Unbounded<N>{Divide(Scale(row.others, -kOthersBias), row.Total())};
      const Unbounded<N> weighted_share = Times(share, call.TargetWeight(target));
      exact_target = Value(MultiplyAny(weighted_share.mantissa, y_factor));
      exact_lift = gradient.lift + weighted_share.exponent;
    }
  }
};

template <class In>
struct GeneralJob {
  using Element = In;
  using T = Arithmetic<In>;
  static constexpr int kPasses = 2;
  using Part = GeneralSums;
  using Row = GeneralRowState<T>;

  const Call &call;

  bool Begin(int64_t row, Row &state) const {
    state.target = call.Target(row);
    if (call.IsIgnored(state.target)) {
      state.target = -1;
      state.fill = Fill::kZero;
      WriteIgnoredRow<In>(call, row);
      return false;
    }
    if (state.target >= 0) state.target_logit = call.Logit<In>(row, state.target);
    if (call.mode == Mode::kBackward) state.Restore(call, row);
    return true;
  }

  void Chunk(int pass, int64_t row, const Piece &piece, Row &state, GeneralSums &sums) const {
    Tile(pass, row, 0, piece, &state, &sums);
  }
  // Does one pass over a piece of one row (count 0), or of `count` adjacent positions.
  XENT_NOINLINE void Tile(int pass, int64_t row, int64_t count, const Piece &piece, const Row *states,
                          GeneralSums *sums) const {
    if (pass == 0 ? call.mode == Mode::kBackward : call.mode == Mode::kForward) return;
    const int64_t rows = std::max<int64_t>(count, 1);
    int64_t targets[kTile];
    Wide target_values[kTile];
    bool computes = false;
    for (int64_t i = 0; i < rows; ++i) {
      targets[i] = states[i].target;
      target_values[i] = LabelOfTarget(call, states[i].target);
      computes = computes || states[i].fill == Fill::kCompute;
    }
    GeneralTask task = call.TaskOf(call.args.logits, row, count, piece);
    task.transform = call.transform;
    task.labels = LabelsOf(call, row, piece);
    task.targets = targets;
    task.target_values = target_values;
    task.entropy = call.statistics.entropy != nullptr;
    task.weighted = IsWeighted(call);
    task.rows = &states->gradient;
    task.row_bytes = sizeof(Row);
    task.gradient = call.Grad<In>(row, piece.place);
    task.label_gradient = call.BytesAt(call.args.target_grad, row, piece.place);
    task.stream = call.plan.stream;
    if (pass == 0) return call.kernels->general->sums[kDtypeOf<In>](task, sums);
    if (computes) call.kernels->general->gradient[kDtypeOf<In>](task);
    for (int64_t i = 0; i < rows; ++i) {
      const Row &state = states[i];
      if (state.fill != Fill::kCompute) {
        call.FillGradients(row + i, piece.place, piece.cols, NumberOf(state.fill));
      } else if (state.exact && piece.Has(state.target) && task.gradient != nullptr) {
        WriteExactTarget(state, call.Grad<In>(row + i, piece.place + state.target - piece.first));
      }
      if (task.label_gradient != nullptr && state.row.IsTiny()) WriteExactLabel(state, row + i, piece);
    }
  }

  void Between(int pass, int64_t row, Row &state, const GeneralSums *sums) const {
    if (pass != 0 || call.mode == Mode::kBackward) return;
    state.Finish(call, row, call.shape.chunks, ChunkParts<GeneralSums>{call.shape, sums});
    if (call.plan.statistics) WriteStatistics<In>(call, row, state.row, state.target, state.log_probability);
    if (call.mode == Mode::kForwardBackward) state.PrepareGradient(call, row);
  }

  void End(int64_t row, const Row &state, Totals &totals) const {
    if (call.WritesGradients()) call.FillPadding(row);
    if (call.mode != Mode::kBackward) totals.AddRow(static_cast<double>(state.loss), Wide{state.nll});
  }

 private:
  // The gradient of the largest logit's label where lse - m' may lie below the normal range.
  XENT_NOINLINE void WriteExactLabel(const Row &state, int64_t row, const Piece &piece) const {
    const int64_t col = state.row.argmax;
    if (state.fill != Fill::kCompute || !piece.Has(col)) return;
    const Factor factor = Product(state.label_factor, Decompose(call.TargetWeight(col)));
    const Wide product = MultiplyAny(Wide{state.row.others}, Wide{factor.mantissa});
    const double value = RoundTo<double>(ValueOf<Wide>({product, factor.exponent - kOthersBias}));
    call.FillGradient(call.args.target_grad, row, piece.place + col - piece.first, 1, value);
  }
  // p_t - 1 of the row's largest logit is -(the others' sum) / total: a task of that column alone, with no p in it.
  XENT_NOINLINE void WriteExactTarget(const Row &state, In *grad) const {
    const In logit = Narrow<In>(static_cast<T>(state.target_logit));
    const int64_t target = 0;
    const Wide target_value{1.0};
    GeneralGradient row;
    row.value = state.gradient.value;
    row.y_factor = Wide{state.exact_target};
    row.lift = state.exact_lift;
    GeneralTask task;
    task.logits = &logit;
    task.cols = 1;
    task.transform = call.transform;
    task.targets = &target;
    task.target_values = &target_value;
    task.rows = &row;
    task.gradient = grad;
    call.kernels->general->gradient[kDtypeOf<In>](task);
  }
};
static_assert(TileJob<GeneralJob<float>>);

}  // namespace xent::internal
