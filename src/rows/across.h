// The path over rows side by side (kernels/across.h): short rows, and positions of a class-major layout. A row that the
// kernel is not made for is computed by GeneralJob, in the same order of rows.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/across.h"
#include "rows/call.h"
#include "rows/general_job.h"
#include "rows/run_rows.h"
#include "rows/short_rows.h"
#include "rows/statistics.h"

namespace xent::internal {

// The rows from `row` on, of those before `end`, that make a tile. Where lanes run over positions and the output is
// streamed, a first tile ends where `out`, of `size` bytes an element, reaches a cache line.
inline int64_t AcrossRowsOf(const RowShape &shape, int64_t row, int64_t end, const void *out, int64_t size) {
  if (shape.inner == 1) return std::min(kTile, end - row);
  const int64_t rows = TileRows(shape, row, end);
  const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % 64) / size;
  return out == nullptr || past == 0 ? rows : std::min(rows, kTile - past % kTile);
}

// A matrix from a tile's first row on.
inline TileMatrix MatrixAt(const RowCall &call, const xent_matrix &matrix, int64_t row) {
  const bool positions = call.shape.inner > 1;
  return {call.BytesAt(matrix, row, 0), positions ? 1 : matrix.stride, positions ? call.shape.inner : 1};
}

// One row of a tile as what statistics ask for.
struct AcrossSums {
  int64_t argmax;
  double value, log_total;
  float entropy;

  bool IsNan() const { return false; }
  double Entropy() const { return static_cast<double>(entropy); }
  // lse - z'_c, as the kernel computes it.
  double Gap(double factor, double of_value) const { return (value - of_value) * factor + log_total; }
};

template <class In>
class AcrossRunner {
 public:
  static_assert(sizeof(Arithmetic<In>) == sizeof(float));

  explicit AcrossRunner(const Call &call)
      : call_(call), options_tag_(call.args.records == nullptr ? 0 : call.OptionsTag()) {
    const double factor = call.transform.Factor();
    tame_ = call.transform.float_lanes && factor >= 0x1p-20 && factor <= 0x1p20;
    // A share below the normal range would be none here; a comparison of doubles would not see it.
    const uint64_t share = std::bit_cast<uint64_t>(call.labels.share.hi);
    tame_ = tame_ && call.labels.moderate && (share == 0 || share >= std::bit_cast<uint64_t>(0x1p-1000));
    if (call.args.class_weights == nullptr) class_weight_sum_ = Wide{static_cast<double>(call.shape.cols)};
    for (int64_t i = 0; IsWeighted(call) && call.args.class_weights != nullptr && i < call.shape.cols; ++i) {
      class_weight_sum_ = Add(class_weight_sum_, Wide{call.TargetWeight(i)});
    }
    denominator_ = Scale(call.denominator.mantissa, call.denominator.exponent);
    const bool denominator_is_tame = call.denominator.exponent >= -400 && call.denominator.exponent <= 400;
    if (call.denominator.mantissa != 0.0 && !denominator_is_tame) denominator_ = kNan;
    one_upstream_ = call.args.upstream.kind != XENT_UPSTREAM_ROWS && call.args.row_weights == nullptr;
    if (call.WritesGradients()) upstream_ = one_upstream_ ? Upstream(0) : 0.0;
  }

  XENT_NOINLINE void Run(int64_t first, int64_t end, Groups &groups) const {
    double row_weights[kTile];
    AcrossTask task = Describe(row_weights);
    AcrossRows rows;
    const bool wants_nll = call_.statistics.perplexity != nullptr;
    for (int64_t row = first; row < end; row += task.count) {
      task.count = AcrossRowsOf(call_.shape, row, end, call_.plan.stream ? call_.Grad<In>(row) : nullptr, sizeof(In));
      const uint32_t finished = RunTile(row, &task, row_weights, &rows);
      const bool all = finished == (1u << task.count) - 1;
      if (all && call_.mode == Mode::kBackward) continue;
      if (all && task.count == kTile && !wants_nll && rows.adds_exactly &&
          groups.AddExactly(row, row + kTile - 1, rows.loss_sum)) {
        continue;
      }
      for (int64_t i = 0; i < task.count; ++i) {
        if (!Has(task.live, i)) continue;
        if (!Has(rows.done, i)) {
          RunAlone(row + i, groups);
          continue;
        }
        if (!Has(finished, i)) WriteGradientAlone(row + i, rows, i);
        if (call_.mode == Mode::kBackward) continue;
        const Wide nll = wants_nll ? Wide{rows.nll[i]} : Wide{};
        groups.AddRow(row + i, {{static_cast<double>(rows.loss[i]), 0.0}, nll});
      }
    }
  }

 private:
  static bool Has(uint32_t bits, int64_t i) { return (bits >> i & 1) != 0; }

  // u r over the denominator; what is not a number of float32's size the kernel leaves.
  double Upstream(int64_t row) const {
    if (call_.denominator.mantissa == 0.0) return 0.0;
    return call_.Upstream(row) * call_.RowWeight(row) / denominator_;
  }
  bool WritesGradients() const {
    return call_.WritesGradients() && (call_.args.grad.data != nullptr || call_.args.target_grad.data != nullptr);
  }

  // Fills in what all tiles have in common.
  AcrossTask Describe(double *row_weights) const {
    const xent_cross_entropy &args = call_.args;
    AcrossTask task;
    task.cols = call_.shape.cols;
    task.positions = call_.shape.inner > 1;
    task.transform = call_.transform;
    task.has_targets = call_.HasIndexTargets();
    task.weighted = IsWeighted(call_);
    task.class_weights = static_cast<const float *>(args.class_weights);
    task.class_weight_sum = class_weight_sum_;
    task.share = call_.labels.share.hi;
    task.probs_factor = call_.labels.probs_factor.hi;
    task.probs_dtype = static_cast<Dtype>(args.target_probs.dtype);
    task.z_loss = call_.options.z_loss;
    if (args.row_weights != nullptr) task.row_weights = row_weights;
    task.lse = call_.statistics.lse != nullptr;
    task.label_factor = 1.0 - call_.options.label_smoothing;
    std::fill(task.targets, task.targets + kTile, 0);
    std::fill(task.target_label, task.target_label + kTile, call_.target_share.hi);
    std::fill(task.g, task.g + kTile, upstream_);
    return task;
  }
  // Reads the tile's targets and says which rows are live.
  template <class Index>
  void ReadTargets(int64_t row, AcrossTask *task) const {
    const Index *const targets = static_cast<const Index *>(call_.args.targets.data) + row;
    for (int64_t i = 0; i < task->count; ++i) {
      const int64_t target = targets[i];
      const bool live = target != call_.options.ignore_index;
      task->live |= static_cast<uint32_t>(live) << i;
      task->targets[i] = static_cast<int32_t>(live ? target : 0);
    }
  }
  void DescribeRows(int64_t row, AcrossTask *task, double *row_weights) const {
    const xent_cross_entropy &args = call_.args;
    const uint32_t all = (1u << task->count) - 1, before = task->live;
    task->live = 0;
    if (!task->has_targets) {
      task->live = all;
    } else if (args.targets.type == XENT_I32) {
      ReadTargets<int32_t>(row, task);
    } else {
      ReadTargets<int64_t>(row, task);
    }
    task->logits = MatrixAt(call_, args.logits, row);
    if (args.target_probs.data != nullptr) task->probs = MatrixAt(call_, args.target_probs, row);
    if (task->has_targets && args.class_weights != nullptr) {
      for (int64_t i = 0; i < kTile; ++i) {
        task->target_label[i] = Has(task->live, i) ? call_.target_share.hi * call_.TargetWeight(task->targets[i]) : 0.0;
      }
    }
    if (args.row_weights != nullptr) {
      for (int64_t i = 0; i < kTile; ++i) row_weights[i] = Has(task->live, i) ? call_.RowWeight(row + i) : 0.0;
    }
    if (!call_.WritesGradients() || (one_upstream_ && task->live == kAll && before == kAll)) return;
    for (int64_t i = 0; i < kTile; ++i) {
      task->g[i] = !Has(task->live, i) ? 0.0 : one_upstream_ ? upstream_ : Upstream(row + i);
    }
  }
  void SetOutput(int64_t row, AcrossTask *task) const {
    task->output = TileOutput::kGradient;
    task->out = MatrixAt(call_, call_.args.grad, row);
    if (call_.args.target_grad.data != nullptr) task->label_gradient = MatrixAt(call_, call_.args.target_grad, row);
    task->stream = call_.plan.stream && task->count == kTile;
  }

  // Returns the rows of which nothing is left to do.
  XENT_NOINLINE uint32_t RunTile(int64_t row, AcrossTask *task, double *row_weights, AcrossRows *rows) const {
    const bool writes = WritesGradients(), forward = call_.mode != Mode::kBackward;
    const bool looks = call_.plan.statistics && forward;
    const auto run = call_.kernels->across->run[kDtypeOf<In>];
    DescribeRows(row, task, row_weights);
    const uint32_t ignored = ((1u << task->count) - 1) & ~task->live;
    if (ignored != 0 && forward) WriteIgnored(row, ignored);
    task->sums = forward;
    task->entropy = forward && call_.statistics.entropy != nullptr;
    task->argmax = forward && (call_.statistics.argmax != nullptr || call_.statistics.hits != nullptr);
    task->output = TileOutput::kNone;
    if (!forward) task->ready = ReadRecords(row, *task, rows);
    rows->written = rows->done = 0;
    if (!tame_) {
      if (writes) FillIgnored(row, ignored);
    } else if (looks && writes) {
      run(*task, rows);
      WriteStatisticsOf(row, *rows);  // in place the logits end with the gradient
      task->sums = task->entropy = task->argmax = false;
      task->ready = rows->done;
      SetOutput(row, task);
      run(*task, rows);
    } else {
      if (writes) SetOutput(row, task);
      run(*task, rows);
      if (looks) WriteStatisticsOf(row, *rows);
    }
    if (forward) WriteRows(row, task->count, *rows);
    if (call_.WritesGradients() && call_.shape.cols < call_.args.cols) {
      for (int64_t i = 0; i < task->count; ++i) call_.FillPadding(row + i);
    }
    return writes ? rows->written : rows->done;
  }

  void WriteRows(int64_t row, int64_t count, const AcrossRows &rows) const {
    float *const losses = static_cast<float *>(call_.args.row_losses);
    float *const lse = static_cast<float *>(call_.statistics.lse);
    float *const logprobs = static_cast<float *>(call_.statistics.logprobs);
    const auto write = [&](int64_t i, int64_t n) {
      if (losses != nullptr) std::copy_n(rows.loss + i, n, losses + row + i);
      if (lse != nullptr) std::copy_n(rows.lse + i, n, lse + row + i);
      if (logprobs != nullptr) std::copy_n(rows.log_probability + i, n, logprobs + row + i);
    };
    if (rows.done == kAll) {
      write(0, kTile);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        if (Has(rows.done, i)) write(i, 1);
      }
    }
    for (int64_t i = 0; call_.args.records != nullptr && i < count; ++i) {
      if (Has(rows.done, i)) *call_.RecordOf(row + i) = RecordFrom(rows, i);
    }
  }
  Record RecordFrom(const AcrossRows &rows, int64_t i) const {
    Record record = Record::Make(call_.args.logits.dtype, Record::kLive, Record::kAcross);
    record.across = {options_tag_, rows.value[i], rows.others[i], rows.weight[i], {}};
    return record;
  }
  uint32_t ReadRecords(int64_t row, const AcrossTask &task, AcrossRows *rows) const {
    uint32_t ready = 0;
    for (int64_t i = 0; i < kTile; ++i) {
      rows->value[i] = rows->others[i] = rows->weight[i] = 0.0;
      if (!Has(task.live, i)) continue;
      const Record &record = *call_.RecordOf(row + i);
      if (record.kind != Record::kAcross || record.state != Record::kLive) continue;
      ready |= 1u << i;
      rows->value[i] = record.across.value;
      rows->others[i] = record.across.others;
      rows->weight[i] = record.across.weight;
    }
    return ready;
  }

  // Not inline, as all of these: their frames are gone when the kernels run.
  XENT_NOINLINE void WriteStatisticsOf(int64_t row, const AcrossRows &rows) const {
    const FpMode mode(Subnormals::kKeep);
    for (int64_t i = 0; i < kTile; ++i) {
      if (!Has(rows.done, i)) continue;
      const AcrossSums sums{rows.argmax[i], rows.value[i], rows.log_total[i], rows.entropy[i]};
      WriteStatistics<In>(call_, row + i, sums, call_.Target(row + i));
    }
  }
  XENT_NOINLINE void WriteIgnored(int64_t row, uint32_t ignored) const {
    const FpMode mode(Subnormals::kKeep);
    for (int64_t i = 0; i < kTile; ++i) {
      if (Has(ignored, i)) WriteIgnoredStatistics<In>(call_, row + i);
    }
  }
  XENT_NOINLINE void FillIgnored(int64_t row, uint32_t ignored) const {
    for (int64_t i = 0; i < kTile; ++i) {
      if (Has(ignored, i)) call_.FillGradients(row + i, 0, call_.shape.cols, 0.0);
    }
  }
  // A tile of one row in every layout, so that all have the same bits.
  XENT_NOINLINE void RunAlone(int64_t row, Groups &groups) const {
    const FpMode mode(Subnormals::kKeep);
    RunTiles(GeneralJob<In>{call_}, row, row + 1, groups);
  }
  // Where the factors of the gradient are beyond what the kernel takes.
  XENT_NOINLINE void WriteGradientAlone(int64_t row, const AcrossRows &rows, int64_t i) const {
    const FpMode mode(Subnormals::kKeep);
    const GeneralJob<In> job{call_};
    typename GeneralJob<In>::Row state{};
    state.target = call_.Target(row);
    if (state.target >= 0) state.target_logit = call_.Logit<In>(row, state.target);
    state.RestoreFrom(call_, row, RecordFrom(rows, i));
    job.Tile(1, row, 1, call_.shape.Chunk(0), &state, nullptr);
  }

  static constexpr uint32_t kAll = (1u << kTile) - 1;

  const Call &call_;
  bool tame_;  // scale and class weights leave float32's range room
  bool one_upstream_;
  Wide class_weight_sum_;
  double denominator_, upstream_ = 0.0;
  uint64_t options_tag_;
};

template <class In>
bool RunAcrossRows(const Call &call, Totals *totals) {
  const AcrossRunner<In> runner(call);
  const auto run = [&](int64_t first, int64_t end, Groups &groups) { runner.Run(first, end, groups); };
  return RunGroups(call, run, totals);
}

}  // namespace xent::internal
