// The general path and the path over positions: rows with any options, in double lanes (kernels/general.h). Lanes run
// over columns where these are adjacent, else over positions.
#ifndef XENT_SRC_ROWS_GENERAL_JOB_H_
#define XENT_SRC_ROWS_GENERAL_JOB_H_

#include <algorithm>
#include <cstdint>

#include "rows/call.h"
#include "rows/general_row.h"
#include "rows/run_rows.h"
#include "rows/statistics.h"

namespace xent::internal {

// Where the labels have to be read in every column.
inline bool IsWeighted(const Call &call) { return !call.HasIndexTargets() || call.shares.other != 0.0; }

// The labels of a row from column `first` on; target_probs begin with column `probs_first`.
inline Labels LabelsOf(const Call &call, int64_t row, int64_t first, int64_t probs_first = 0) {
  Labels labels;
  if (call.args.class_weights != nullptr) {
    labels.class_weights = static_cast<const char *>(call.args.class_weights) + first * (call.IsWide() ? 8 : 4);
  }
  if (call.HasIndexTargets()) {
    labels.share = Shares<Wide>(call.options, call.shape.cols).other;
  } else {
    const double epsilon = call.options.label_smoothing;
    labels.probs_factor = TwoSum(1.0, -epsilon);
    labels.share = Divide(Wide{epsilon}, Wide{static_cast<double>(call.shape.cols)});
    labels.probs_dtype = static_cast<Dtype>(call.args.target_probs.dtype);
    labels.probs_stride = call.Inner();
    labels.probs = call.LabelsAt(call.args.target_probs, row, first - probs_first);
  }
  return labels;
}

template <class T>
struct GeneralRowState {
  int64_t target;       // -1: probability targets
  double target_logit;  // as stored
  Wide target_value;    // y_t
  GeneralRow<T> row;
  T loss;
  Number<T> nll;
  Fill fill;
  GeneralGradient gradient;
  bool exact;           // the target's gradient is the others' sum alone,
  double exact_target;  // times this
};

inline Wide LabelOfTarget(const Call &call, int64_t target) {
  if (target < 0) return {};
  return MultiplyAny(Shares<Wide>(call.options, call.shape.cols).target, Wide{call.TargetWeight(target)});
}

// Writes what forward gives of a live row.
template <class T>
XENT_NOINLINE void FinishGeneralRow(const Call &call, int64_t row, GeneralRowState<T> &state) {
  using N = Number<T>;
  const double factor = call.transform.Factor();
  T lse = std::numeric_limits<T>::quiet_NaN();
  T log_probability = lse;
  state.loss = lse;
  state.nll = Number<T>{kNan};
  if (!state.row.IsNan()) {
    const N wide_lse = LogSumExp(state.row, factor);
    lse = RoundTo<T>(wide_lse);
    N gap{};
    if (state.target >= 0) {
      double value = state.target_logit;
      call.kernels->general->values(call.transform, &value, 1);
      gap = Gap(state.row, factor, value);
      state.nll = gap;
      log_probability = T{0} - RoundTo<T>(gap);
    }
    int64_t scale = 0;
    N loss = IsWeighted(call) ? WeightedGap(state.row, &scale) : Weighted(gap, call.TargetWeight(state.target));
    if (call.options.z_loss != 0.0) loss = AddOrOverflow(loss, Scale(ZLoss(wide_lse, call.options.z_loss), scale));
    state.loss = RoundTo<T>(Scale(Weighted(loss, call.RowWeight(row)), -scale));
  }
  call.WriteRow(row, state.loss, lse, log_probability);
  if (call.args.records != nullptr) {
    Record record =
        Record::Make(call.args.logits.dtype, state.row.IsNan() ? Record::kNanRow : Record::kLive, Record::kGeneral);
    if (!state.row.IsNan()) {
      const Wide others{state.row.others}, weight{state.row.weight};
      record.general = {
          state.row.argmax, state.row.value, {others.hi, others.lo}, {weight.hi, weight.lo}, state.row.max};
    }
    *call.RecordOf(row) = record;
  }
}

template <class T>
void RestoreGeneralRow(const Call &call, int64_t row, GeneralRow<T> &sums) {
  const Record &record = *call.RecordOf(row);
  sums = {};
  if (record.state == Record::kNanRow) {
    sums.special = Special::kNan;
    return;
  }
  sums.argmax = record.general.argmax;
  sums.value = record.general.value;
  sums.max = record.general.max;
  sums.others = ToNumber<T>({record.general.others[0], record.general.others[1]});
  sums.weight = ToNumber<T>({record.general.weight[0], record.general.weight[1]});
}

template <class T>
XENT_NOINLINE void PrepareGeneralGradient(const Call &call, int64_t row, GeneralRowState<T> &state) {
  using N = Number<T>;
  Factor g;
  state.exact = false;
  state.fill = call.FillOf(row, state.row.IsNan(), &g);
  if (state.fill != Fill::kCompute) return;
  GeneralGradient &gradient = state.gradient;
  // Beyond what leaves room for the other factors the exponent goes its own way.
  const bool tame = g.exponent >= -400 && g.exponent <= 400;
  const double u = tame ? Scale(g.mantissa, g.exponent) : g.mantissa;
  gradient.lift[0] = PowerOfTwo(tame ? 0 : g.exponent / 2);
  gradient.lift[1] = PowerOfTwo(tame ? 0 : g.exponent - g.exponent / 2);
  const bool weighted = IsWeighted(call);
  const double lambda = call.options.z_loss;
  N mass = weighted ? state.row.weight : N{call.TargetWeight(state.target)};
  if (lambda != 0.0) {
    mass = AddOrOverflow(mass, Scale(MultiplyAny(LogSumExp(state.row, call.transform.Factor()), N{lambda}), 1));
  }
  const N total = Add(state.row.others, N{1.0});
  // Without a cap dz is logit_scale throughout.
  const N with_dz = MultiplyAny(N{u}, N{call.transform.cap > 0.0 ? 1.0 : call.transform.scale});
  gradient.value = state.row.value;
  gradient.p_factor = Wide{MultiplyAny(Divide(mass, total), with_dz)};
  gradient.y_factor = Wide{with_dz};
  gradient.log_total = Value(LogTotal(state.row));
  gradient.label_factor = u * (1.0 - call.options.label_smoothing);
  if (!weighted && lambda == 0.0 && state.target == state.row.argmax) {
    state.exact = true;
    const N share = MultiplyAny(Divide(state.row.others, total), N{call.TargetWeight(state.target)});
    state.exact_target = Value(MultiplyAny(share, with_dz));
  }
}

// p_t - 1 of the row's largest logit is -(the others' sum) / total: a task of that column alone, with no p in it.
template <class In>
XENT_NOINLINE void WriteExactTarget(const Call &call, const GeneralRowState<Arithmetic<In>> &state, In *grad) {
  const In logit = Narrow<In>(static_cast<Arithmetic<In>>(state.target_logit));
  GeneralGradientTask task{};
  task.logits = &logit;
  task.cols = 1;
  task.transform = call.transform;
  task.target = 0;
  task.target_value = Wide{1.0};
  task.row.value = state.gradient.value;
  task.row.y_factor = Wide{state.exact_target};
  std::copy(state.gradient.lift, state.gradient.lift + 2, task.row.lift);
  task.gradient = grad;
  call.kernels->general->gradient[kDtypeOf<In>](task);
}

// Adjacent columns: `cols` from `first` on, a chunk or a part of one.
template <class In>
void SumGeneralChunk(const Call &call, const In *logits, int64_t first, int64_t cols, int64_t target, Wide target_value,
                     const Labels &labels, GeneralSums *sums) {
  call.kernels->general->sums[kDtypeOf<In>]({logits, cols, first, call.transform, labels, target - first, target_value,
                                             true, call.statistics.entropy != nullptr, IsWeighted(call)},
                                            sums);
}

template <class In>
void WriteGeneralGradient(const Call &call, const GeneralRowState<Arithmetic<In>> &state, int64_t first, int64_t cols,
                          const In *logits, const Labels &labels, In *grad, void *label_grad) {
  const int64_t target = state.target < 0 ? -1 : state.target - first;
  call.kernels->general->gradient[kDtypeOf<In>]({logits, cols, call.transform, labels, target, state.target_value,
                                                 IsWeighted(call), state.gradient, grad, label_grad});
  if (state.exact && grad != nullptr && target >= 0 && target < cols) {
    WriteExactTarget(call, state, grad + target);
  }
}

template <class In>
struct GeneralJob {
  using T = Arithmetic<In>;
  static constexpr int kPasses = 2;
  using Part = GeneralSums;
  using Sums = Totals;
  using Row = GeneralRowState<T>;

  const Call &call;

  bool Begin(int64_t row, Row &state) const {
    state.target = call.Target(row);
    if (call.IsIgnored(state.target)) {
      WriteIgnoredRow<In>(call, row, [&] { return SumRow<In>(call, row, call.statistics.lse != nullptr); });
      return false;
    }
    state.target_logit = state.target < 0 ? 0.0 : static_cast<double>(Widen(call.Logits<In>(row)[state.target]));
    state.target_value = LabelOfTarget(call, state.target);
    if (call.mode == Mode::kBackward) {
      RestoreGeneralRow(call, row, state.row);
      PrepareGeneralGradient(call, row, state);
    }
    return true;
  }

  void Chunk(int pass, int64_t row, int64_t chunk, Row &state, GeneralSums &sums) const {
    const int64_t first = chunk * call.shape.chunk_cols;
    const int64_t cols = call.shape.ColsOf(chunk);
    const In *const logits = call.Logits<In>(row) + first;
    if (pass == 0) {
      if (call.mode == Mode::kBackward) return;
      const int64_t target = state.target < 0 ? first - 1 : state.target;
      SumGeneralChunk(call, logits, first, cols, target, state.target_value, LabelsOf(call, row, first), &sums);
    } else if (call.WritesGradients() && state.fill == Fill::kCompute) {
      In *const grad = call.args.grad.data == nullptr ? nullptr : call.Grad<In>(row) + first;
      void *const label_grad = call.LabelsAt(call.args.target_grad, row, first);
      WriteGeneralGradient(call, state, first, cols, logits, LabelsOf(call, row, first), grad, label_grad);
    }
  }

  void Between(int pass, int64_t row, Row &state, const GeneralSums *sums) const {
    if (pass != 0 || call.mode == Mode::kBackward) return;
    state.row = {};
    for (int64_t i = 0; i < call.shape.chunks; ++i) Merge<T>(sums[i], call.transform.Factor(), &state.row);
    FinishGeneralRow(call, row, state);
    if (call.plan.statistics) WriteStatistics<In>(call, row, state.row, state.target);
    if (call.mode == Mode::kForwardBackward) PrepareGeneralGradient(call, row, state);
  }

  void End(int64_t row, const Row &state, Totals &totals) const {
    if (call.WritesGradients()) {
      if (state.fill != Fill::kCompute) {
        call.FillGradients<In>(row, 0, call.shape.cols, state.fill == Fill::kNan ? kNan : 0.0);
      }
      call.FillPadding<In>(row);
    }
    if (call.mode != Mode::kBackward) totals.Add({{static_cast<double>(state.loss), 0.0}, Wide{state.nll}});
  }
};

static_assert(RowJob<GeneralJob<float>>);

// Runs rows [first, end) with lanes over positions, tile after tile; each row is added to its group's totals in order.
template <class In>
XENT_NOINLINE void RunPositions(const Call &call, int64_t first_row, int64_t end_row, Groups<Totals> &groups) {
  using T = Arithmetic<In>;
  const int64_t inner = call.Inner();
  const GeneralKernels &kernels = *call.kernels->general;
  GeneralSums sums[kTile];
  GeneralGradient gradients[kTile];
  int64_t targets[kTile];
  Wide target_values[kTile];
  double target_logits[kTile], exact_targets[kTile];
  bool exact[kTile];
  Fill fills[kTile];
  for (int64_t first = first_row, count; first < end_row; first += count) {
    count = std::min({kTile, end_row - first, inner - first % inner});
    bool any = false;
    for (int64_t i = 0; i < count; ++i) {
      targets[i] = call.Target(first + i);
      const bool ignored = call.IsIgnored(targets[i]);
      any = any || !ignored || call.statistics.of_ignored != 0;
      if (ignored) targets[i] = -1;
      target_values[i] = LabelOfTarget(call, targets[i]);
      target_logits[i] =
          targets[i] < 0 ? 0.0 : static_cast<double>(Widen(call.Logits<In>(first + i)[targets[i] * inner]));
    }
    const TileTask tile{call.Logits<In>(first),
                        call.shape.cols,
                        inner,
                        count,
                        call.transform,
                        LabelsOf(call, first, 0),
                        targets,
                        target_values,
                        IsWeighted(call),
                        call.statistics.entropy != nullptr};
    if (call.mode != Mode::kBackward && any) kernels.tile_sums[kDtypeOf<In>](tile, sums);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = first + i;
      gradients[i] = {};
      fills[i] = Fill::kZero;
      exact[i] = false;
      GeneralRowState<T> state{};
      if (call.mode != Mode::kBackward && any) Merge<T>(sums[i], call.transform.Factor(), &state.row);
      if (call.IsIgnored(call.Target(row))) continue;
      state.target = targets[i];
      state.target_logit = target_logits[i];
      if (call.mode == Mode::kBackward) {
        RestoreGeneralRow(call, row, state.row);
      } else {
        FinishGeneralRow(call, row, state);
        if (call.plan.statistics) WriteStatistics<In>(call, row, state.row, state.target);
        groups.Of(row).Add({{static_cast<double>(state.loss), 0.0}, Wide{state.nll}});
      }
      if (call.WritesGradients()) {
        PrepareGeneralGradient(call, row, state);
        fills[i] = state.fill;
        if (state.fill == Fill::kCompute) {
          gradients[i] = state.gradient;
          exact[i] = state.exact;
          exact_targets[i] = state.exact_target;
        }
      }
    }
    // Ignored rows' statistics, before gradients take the logits' place.
    for (int64_t i = 0; i < count; ++i) {
      if (!call.IsIgnored(call.Target(first + i))) continue;
      WriteIgnoredRow<In>(call, first + i, [&] {
        GeneralRow<T> row;
        Merge<T>(sums[i], call.transform.Factor(), &row);
        return row;
      });
    }
    if (!call.WritesGradients()) continue;
    kernels.tile_gradient[kDtypeOf<In>](
        {tile, gradients, call.Grad<In>(first), inner, call.LabelsAt(call.args.target_grad, first, 0), inner});
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = first + i;
      if (fills[i] != Fill::kCompute) {
        call.FillGradients<In>(row, 0, call.shape.cols, fills[i] == Fill::kNan ? kNan : 0.0);
      } else if (exact[i] && call.args.grad.data != nullptr) {
        GeneralRowState<T> state{};
        state.target_logit = target_logits[i];
        state.gradient = gradients[i];
        state.exact_target = exact_targets[i];
        WriteExactTarget(call, state, call.Grad<In>(row) + targets[i] * inner);
      }
      call.FillPadding<In>(row);
    }
  }
}

}  // namespace xent::internal
#endif  // XENT_SRC_ROWS_GENERAL_JOB_H_
