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

// Where a tile begins. Places are counted on, not computed anew: a division of integers takes as long as ten rows.
struct TilePlace {
  int64_t row, block, position;  // row-major, a block is a row and the position 0

  TilePlace(const RowShape &shape, int64_t first)
      : row(first), block(first / shape.inner), position(first % shape.inner) {}
  void Advance(const RowShape &shape, int64_t count) {
    row += count;
    position += count;
    if (position < shape.inner) return;
    block += shape.inner == 1 ? count : 1;
    position = 0;
  }
  // The rows from here on, of those before `end`, that make a tile. Where lanes run over positions and the output is
  // streamed, a first tile ends where `out`, of `size` bytes an element, reaches a cache line.
  int64_t Rows(const RowShape &shape, int64_t end, const void *out, int64_t size) const {
    if (shape.inner == 1) return std::min(kTile, end - row);
    const int64_t rows = std::min({kTile, end - row, shape.inner - position});
    const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % 64) / size;
    return out == nullptr || past == 0 ? rows : std::min(rows, kTile - past % kTile);
  }
  // A matrix from here on; its elements have `size` bytes.
  TileMatrix In(const RowShape &shape, const xent_matrix &matrix, int64_t size) const {
    if (matrix.data == nullptr) return {};
    const bool positions = shape.inner > 1;
    return {static_cast<char *>(matrix.data) + (block * matrix.stride + position) * size, positions ? 1 : matrix.stride,
            positions ? shape.inner : 1};
  }
};

// One row of a tile as what statistics ask for.
struct AcrossSums {
  int64_t argmax;
  double value, log_total;
  float entropy;

  bool IsNan() const { return false; }
  double Entropy() const { return static_cast<double>(entropy); }
  // lse - z'_c, as the kernel computes it.
  Unbounded<double> Gap(double factor, double of_value) const { return {(value - of_value) * factor + log_total}; }
};

template <class In>
class AcrossRunner {
 public:
  static_assert(sizeof(Arithmetic<In>) == sizeof(float));

  explicit AcrossRunner(const Call &call) : call_(call) {
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
    writes_ = call.WritesGradients() && (call.args.grad.data != nullptr || call.args.target_grad.data != nullptr);
    looks_ = call.plan.statistics && call.mode != Mode::kBackward;
    wants_nll_ = call.statistics.perplexity != nullptr;
  }

  XENT_NOINLINE void Run(int64_t first, int64_t end, Groups &groups) const {
    double row_weights[kTile];
    AcrossTask task = Describe(row_weights);
    AcrossRows rows;
    for (TilePlace place(call_.shape, first); place.row < end; place.Advance(call_.shape, task.count)) {
      const int64_t row = place.row;
      task.count =
          place.Rows(call_.shape, end, call_.plan.stream ? MatrixAt(place, call_.args.grad).data : nullptr, sizeof(In));
      const uint32_t finished = RunTile(place, &task, row_weights, &rows);
      const bool all = finished == (1u << task.count) - 1;
      if (all && call_.mode == Mode::kBackward) continue;
      if (all && task.count == kTile && !wants_nll_ && rows.adds_exactly &&
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
        const Wide nll = wants_nll_ ? Wide{rows.nll[i]} : Wide{};
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

  // Fills in what all tiles have in common.
  AcrossTask Describe(double *row_weights) const {
    const xent_cross_entropy &args = call_.args;
    AcrossTask task;
    task.cols = call_.shape.cols;
    task.positions = call_.shape.inner > 1;
    task.transform = call_.transform;
    task.scale = TileScale(task.transform.Factor());
    task.has_targets = call_.HasIndexTargets();
    task.weighted = IsWeighted(call_);
    task.class_weights = static_cast<const float *>(args.class_weights);
    task.class_weight_sum = class_weight_sum_;
    task.share = call_.labels.share.hi;
    task.probs_factor = call_.labels.probs_factor.hi;
    task.probs_dtype = static_cast<Dtype>(args.target_probs.dtype);
    task.z_loss = call_.options.z_loss;
    if (args.row_weights != nullptr) task.row_weights = row_weights;
    task.sums = call_.mode != Mode::kBackward;
    task.state = looks_ || (task.sums && args.records != nullptr);
    task.lse = call_.statistics.lse != nullptr;
    task.nll = call_.statistics.logprobs != nullptr || NeedLogProbabilities(call_.statistics) || wants_nll_;
    task.label_factor = 1.0 - call_.options.label_smoothing;
    if (looks_) SetLook(true, &task);
    std::fill(task.targets, task.targets + kTile, 0);
    std::fill(task.target_label, task.target_label + kTile, call_.target_share.hi);
    std::fill(task.g, task.g + kTile, upstream_);
    return task;
  }
  // A matrix of the logits' dtype.
  TileMatrix MatrixAt(const TilePlace &place, const xent_matrix &matrix) const {
    return place.In(call_.shape, matrix, sizeof(In));
  }
  TileMatrix LabelsAt(const TilePlace &place, const xent_matrix &matrix) const {
    return place.In(call_.shape, matrix, static_cast<int64_t>(ElementSize(matrix.dtype)));
  }
  void DescribeRows(const TilePlace &place, AcrossTask *task, double *row_weights) const {
    const xent_cross_entropy &args = call_.args;
    const int64_t row = place.row;
    const uint32_t all = (1u << task->count) - 1, before = task->live;
    task->live = all;
    if (task->has_targets) {
      const char *const targets =
          static_cast<const char *>(args.targets.data) + row * (args.targets.type == XENT_I32 ? 4 : 8);
      task->live = call_.kernels->row->read_targets[args.targets.type](targets, task->count, call_.options.ignore_index,
                                                                       task->targets);
    }
    task->logits = MatrixAt(place, args.logits);
    if (args.target_probs.data != nullptr) task->probs = LabelsAt(place, args.target_probs);
    for (int64_t i = 0; task->has_targets && task->class_weights != nullptr && i < kTile; ++i) {
      task->target_label[i] = call_.target_share.hi * static_cast<double>(task->class_weights[task->targets[i]]);
    }
    if (args.row_weights != nullptr) {
      for (int64_t i = 0; i < kTile; ++i) row_weights[i] = Has(task->live, i) ? call_.RowWeight(row + i) : 0.0;
    }
    if (!call_.WritesGradients() || (one_upstream_ && task->live == kAll && before == kAll)) return;
    for (int64_t i = 0; i < kTile; ++i) {
      task->g[i] = !Has(task->live, i) ? 0.0 : one_upstream_ ? upstream_ : Upstream(row + i);
    }
  }
  void SetLook(bool looks, AcrossTask *task) const {
    task->sums = looks;
    task->entropy = looks && call_.statistics.entropy != nullptr;
    task->argmax = looks && (call_.statistics.argmax != nullptr || call_.statistics.hits != nullptr);
  }
  void SetOutput(const TilePlace &place, AcrossTask *task) const {
    task->output = TileOutput::kGradient;
    task->out = MatrixAt(place, call_.args.grad);
    task->label_gradient = LabelsAt(place, call_.args.target_grad);
    task->stream = call_.plan.stream && task->count == kTile;
  }

  // Returns the rows of which nothing is left to do.
  uint32_t RunTile(const TilePlace &place, AcrossTask *task, double *row_weights, AcrossRows *rows) const {
    const int64_t row = place.row;
    const bool forward = call_.mode != Mode::kBackward;
    const auto run = call_.kernels->across->run[kDtypeOf<In>];
    DescribeRows(place, task, row_weights);
    const uint32_t ignored = ((1u << task->count) - 1) & ~task->live;
    if (ignored != 0 && forward) WriteIgnored(row, ignored);
    if (!forward) task->ready = ReadRecords(row, *task, rows);
    rows->written = rows->done = 0;
    if (writes_) SetOutput(place, task);
    if (!tame_) {
      if (writes_) FillIgnored(row, ignored);
    } else if (looks_ && writes_) {
      task->output = TileOutput::kNone;
      SetLook(true, task);
      run(*task, rows);
      WriteStatisticsOf(row, *rows);  // in place the logits end with the gradient
      SetLook(false, task);
      task->ready = rows->done;
      task->output = TileOutput::kGradient;
      run(*task, rows);
    } else {
      run(*task, rows);
      if (looks_) WriteStatisticsOf(row, *rows);
    }
    if (forward) WriteRows(row, task->count, *rows);
    if (call_.WritesGradients() && call_.shape.cols < call_.args.cols) {
      for (int64_t i = 0; i < task->count; ++i) call_.FillPadding(row + i);
    }
    return writes_ ? rows->written : rows->done;
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
    Record record = call_.NewRecord(Record::kLive, Record::kAcross);
    record.across = {rows.value[i], rows.others[i], rows.weight[i], rows.log_total[i], {}};
    return record;
  }
  uint32_t ReadRecords(int64_t row, const AcrossTask &task, AcrossRows *rows) const {
    uint32_t ready = 0;
    for (int64_t i = 0; i < kTile; ++i) {
      rows->value[i] = rows->others[i] = rows->weight[i] = rows->log_total[i] = 0.0;
      if (!Has(task.live, i)) continue;
      const Record &record = *call_.RecordOf(row + i);
      if (record.kind != Record::kAcross || record.state != Record::kLive) continue;
      ready |= 1u << i;
      rows->value[i] = record.across.value;
      rows->others[i] = record.across.others;
      rows->weight[i] = record.across.weight;
      rows->log_total[i] = record.across.log_total;
    }
    return ready;
  }

  static AcrossSums SumsOf(const AcrossRows &rows, int64_t i) {
    return {rows.argmax[i], rows.value[i], rows.log_total[i], rows.entropy[i]};
  }
  // Not inline, as all of these: their frames are gone when the kernels run.
  XENT_NOINLINE void WriteStatisticsOf(int64_t row, const AcrossRows &rows) const {
    if (NeedColumns(call_.statistics)) return LookAtColumns(row, rows);
    for (int64_t i = 0; i < kTile; ++i) {
      if (Has(rows.done, i)) WriteStatisticsOfSums<In>(call_, row + i, SumsOf(rows, i), call_.Target(row + i));
    }
  }
  XENT_NOINLINE void LookAtColumns(int64_t row, const AcrossRows &rows) const {
    const FpMode mode(Subnormals::kKeep);
    for (int64_t i = 0; i < kTile; ++i) {
      if (!Has(rows.done, i)) continue;
      WriteStatistics<In>(call_, row + i, SumsOf(rows, i), call_.Target(row + i), rows.log_probability[i]);
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
    RunTiles<GeneralJob<In>, 1>(GeneralJob<In>{call_}, row, row + 1, groups);
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
  bool one_upstream_, writes_, looks_, wants_nll_;
  Wide class_weight_sum_;
  double denominator_, upstream_ = 0.0;
};

template <class In>
bool RunAcrossRows(const Call &call, Totals *totals) {
  const AcrossRunner<In> runner(call);
  const auto run = [&](int64_t first, int64_t end, Groups &groups) { runner.Run(first, end, groups); };
  return RunGroups(call, run, totals);
}

}  // namespace xent::internal
