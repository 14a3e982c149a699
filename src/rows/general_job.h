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
  const int64_t target = 0;
  const Wide target_value{1.0};
  GeneralGradient row;
  row.value = state.gradient.value;
  row.y_factor = Wide{state.exact_target};
  std::copy(state.gradient.lift, state.gradient.lift + 2, row.lift);
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

// The task of `cols` columns from `first` on, whose matrices begin with column `memory_first`: of one row, or of
// `count` positions.
template <class In>
GeneralTask TaskOf(const Call &call, int64_t row, int64_t count, int64_t first, int64_t cols,
                   int64_t memory_first = 0) {
  const int64_t place = first - memory_first, step = call.Inner();
  GeneralTask task;
  task.logits = call.Logits<In>(row) + place * step;
  task.cols = cols;
  task.first = first;
  task.count = count;
  task.stride = step;
  task.transform = call.transform;
  task.labels = LabelsOf(call, row, first, memory_first);
  task.entropy = call.statistics.entropy != nullptr;
  task.weighted = IsWeighted(call);
  if (call.args.grad.data != nullptr) task.gradient = call.Grad<In>(row) + place * step;
  task.label_gradient = call.LabelsAt(call.args.target_grad, row, place);
  return task;
}

// The labels of the targets of a task's rows, and what turns these into gradients.
template <class T>
struct GeneralTaskRows {
  int64_t targets[kTile];
  Wide target_values[kTile];
  GeneralGradient gradients[kTile];

  GeneralTaskRows(const GeneralRowState<T> *states, GeneralTask *task) {
    for (int64_t i = 0; i < std::max<int64_t>(task->count, 1); ++i) {
      targets[i] = states[i].target;
      target_values[i] = states[i].target_value;
      gradients[i] = states[i].fill == Fill::kCompute ? states[i].gradient : GeneralGradient{};
    }
    task->targets = targets;
    task->target_values = target_values;
    task->rows = gradients;
  }
};

template <class In>
XENT_NOINLINE void SumGeneral(const Call &call, GeneralTask task, const GeneralRowState<Arithmetic<In>> *states,
                              GeneralSums *sums) {
  const GeneralTaskRows<Arithmetic<In>> rows(states, &task);
  call.kernels->general->sums[kDtypeOf<In>](task, sums);
}

template <class In>
XENT_NOINLINE void WriteGeneral(const Call &call, GeneralTask task, const GeneralRowState<Arithmetic<In>> *states) {
  const GeneralTaskRows<Arithmetic<In>> rows(states, &task);
  call.kernels->general->gradient[kDtypeOf<In>](task);
  for (int64_t i = 0; task.gradient != nullptr && i < std::max<int64_t>(task.count, 1); ++i) {
    const int64_t place = states[i].target - task.first;
    if (states[i].fill != Fill::kCompute || !states[i].exact || place < 0 || place >= task.cols) continue;
    WriteExactTarget(call, states[i], static_cast<In *>(task.gradient) + place * task.stride + i);
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
    state.target_value = {};
    if (call.IsIgnored(state.target)) {
      state.target = -1;
      state.fill = Fill::kZero;
      WriteIgnoredRow<In>(call, row, [&] { return SumRow<In>(call, row, call.statistics.lse != nullptr); });
      return false;
    }
    state.target_logit =
        state.target < 0 ? 0.0 : static_cast<double>(Widen(call.Logits<In>(row)[state.target * call.Inner()]));
    state.target_value = LabelOfTarget(call, state.target);
    if (call.mode == Mode::kBackward) {
      RestoreGeneralRow(call, row, state.row);
      PrepareGeneralGradient(call, row, state);
    }
    return true;
  }

  void Chunk(int pass, int64_t row, int64_t chunk, Row &state, GeneralSums &sums) const {
    if (pass == 1 && state.fill != Fill::kCompute) return;
    const int64_t first = chunk * call.shape.chunk_cols;
    Pass(pass, TaskOf<In>(call, row, 0, first, call.shape.ColsOf(chunk)), &state, &sums);
  }
  void Tile(int pass, int64_t row, int64_t count, const Row *states, GeneralSums *sums) const {
    Pass(pass, TaskOf<In>(call, row, count, 0, call.shape.cols), states, sums);
  }
  void Pass(int pass, const GeneralTask &task, const Row *states, GeneralSums *sums) const {
    if (pass == 0 && call.mode != Mode::kBackward) SumGeneral<In>(call, task, states, sums);
    if (pass == 1 && call.WritesGradients()) WriteGeneral<In>(call, task, states);
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
      if (state.fill != Fill::kCompute) FillAgain(row, state);
      call.FillPadding<In>(row);
    }
    if (call.mode != Mode::kBackward) totals.Add({{static_cast<double>(state.loss), 0.0}, Wide{state.nll}});
  }
  void FillAgain(int64_t row, const Row &state) const {
    if (!call.WritesGradients()) return;
    call.FillGradients<In>(row, 0, call.shape.cols, state.fill == Fill::kNan ? kNan : 0.0);
  }
};
static_assert(TileJob<GeneralJob<float>>);

}  // namespace xent::internal
