// The path over rows side by side (kernels/across.h): short rows, and positions of a class-major layout. A row that the
// kernel is not made for is computed by GeneralJob, in the same order of rows.
#pragma once

#include <algorithm>
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

// One row of a tile as what statistics ask for.
struct AcrossSums {
  int64_t argmax;
  double value, log_total;
  float entropy;
  bool capped;

  bool IsNan() const { return false; }
  double Entropy() const { return static_cast<double>(entropy); }
  // lse - z'_c, as the kernel computes it, of a value as that of general.h gives it.
  double Gap(double factor, double of_value) const {
    if (capped) of_value = static_cast<double>(static_cast<float>(of_value));
    return (value - of_value) * factor + log_total;
  }
};

template <class In>
class AcrossRunner {
 public:
  static_assert(sizeof(Arithmetic<In>) == sizeof(float));

  explicit AcrossRunner(const Call &call) : call_(call) {
    const xent_cross_entropy_options &options = call.options;
    tame_ = options.logit_scale >= 0x1p-20 && options.logit_scale <= 0x1p20;
    const float *const weights = static_cast<const float *>(call.args.class_weights);
    for (int64_t i = 0; weights != nullptr && i < call.shape.cols; ++i) {
      const double weight = WidenSubnormal(weights[i]), size = Magnitude(weight);
      class_weight_sum_ = Add(class_weight_sum_, Wide{weight});
      tame_ = tame_ && (size == 0.0 || (size >= 0x1p-20 && size <= 0x1p20));
    }
    if (weights == nullptr) class_weight_sum_ = Wide{static_cast<double>(call.shape.cols)};
    denominator_ = Scale(call.denominator.mantissa, call.denominator.exponent);
    const bool denominator_is_tame = call.denominator.exponent >= -400 && call.denominator.exponent <= 400;
    if (call.denominator.mantissa != 0.0 && !denominator_is_tame) denominator_ = kNan;
    one_upstream_ = call.args.upstream.kind != XENT_UPSTREAM_ROWS && call.args.row_weights == nullptr;
    if (call.WritesGradients()) upstream_ = one_upstream_ ? Upstream(0) : 0.0;
  }

  XENT_NOINLINE void Run(int64_t first, int64_t end, Groups &groups) const {
    const bool wants_nll = call_.statistics.perplexity != nullptr;
    for (int64_t row = first, count; row < end; row += count) {
      count = AcrossRowsOf(call_.shape, row, end, call_.plan.stream ? call_.Grad<In>(row) : nullptr, sizeof(In));
      Tile tile{row, count};
      RunTile(&tile);
      double sum;
      if (tile.written == (1u << count) - 1 && call_.mode == Mode::kBackward) continue;
      if (tile.written == (1u << count) - 1 && !wants_nll && SumExactly(tile.rows.loss, count, &sum) &&
          groups.AddExactly(row, row + count - 1, sum)) {
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        if ((tile.live >> i & 1) == 0) continue;
        if ((tile.rows.done >> i & 1) == 0) {
          RunAlone(row + i, groups);
          continue;
        }
        if ((tile.written >> i & 1) == 0) WriteGradientAlone(row + i, tile, i);
        if (call_.mode == Mode::kBackward) continue;
        const Wide nll = wants_nll ? Wide{tile.rows.nll[i]} : Wide{};
        groups.AddRow(row + i, {{static_cast<double>(tile.rows.loss[i]), 0.0}, nll});
      }
    }
  }

 private:
  struct Tile {
    int64_t first, count;
    uint32_t live, written;  // bit i: row first + i; written: it is live, and nothing of it is left to do
    AcrossRows rows;

    Tile(int64_t first_row, int64_t row_count) : first(first_row), count(row_count), live(0), written(0) {}
  };

  // u r over the denominator; NaN where the kernel cannot take it.
  double Upstream(int64_t row) const {
    if (call_.denominator.mantissa == 0.0) return 0.0;
    return call_.Upstream(row) * call_.RowWeight(row) / denominator_;
  }

  void DescribeRows(const Tile &tile, AcrossTask *task, double *row_weights) const {
    const xent_cross_entropy &args = call_.args;
    for (int64_t i = 0; i < kTile; ++i) {
      task->targets[i] = 0;
      task->target_label[i] = task->g[i] = row_weights[i] = 0.0;
    }
    for (int64_t i = 0; i < tile.count; ++i) {
      const int64_t row = tile.first + i, target = call_.Target(row);
      const bool live = !call_.IsIgnored(target);
      task->live |= static_cast<uint32_t>(live) << i;
      if (!live) continue;
      if (target >= 0) {
        task->targets[i] = static_cast<int32_t>(target);
        task->target_label[i] = args.class_weights == nullptr ? call_.shares.target
                                                              : call_.shares.target * call_.TargetWeight(target);
      }
      if (args.row_weights != nullptr) row_weights[i] = call_.RowWeight(row);
      if (call_.WritesGradients()) task->g[i] = one_upstream_ ? upstream_ : Upstream(row);
    }
  }
  TileMatrix MatrixOf(const xent_matrix &matrix, int64_t row) const {
    const bool positions = call_.shape.inner > 1;
    return {call_.BytesAt(matrix, row, 0), positions ? 1 : matrix.stride, positions ? call_.shape.inner : 1};
  }
  AcrossTask Describe(const Tile &tile, double *row_weights) const {
    const xent_cross_entropy &args = call_.args;
    AcrossTask task;
    task.cols = call_.shape.cols;
    task.count = tile.count;
    task.positions = call_.shape.inner > 1;
    task.logits = MatrixOf(args.logits, tile.first);
    task.transform = call_.transform;
    task.has_targets = call_.HasIndexTargets();
    task.weighted = IsWeighted(call_);
    task.class_weights = static_cast<const float *>(args.class_weights);
    task.class_weight_sum = class_weight_sum_;
    task.share = call_.shares.other;
    if (!task.has_targets) {
      task.probs = MatrixOf(args.target_probs, tile.first);
      task.probs_dtype = static_cast<Dtype>(args.target_probs.dtype);
      task.probs_factor = 1.0 - call_.options.label_smoothing;
      task.share = call_.options.label_smoothing / static_cast<double>(call_.shape.cols);
    }
    task.z_loss = call_.options.z_loss;
    DescribeRows(tile, &task, row_weights);
    if (args.row_weights != nullptr) task.row_weights = row_weights;
    task.entropy = call_.statistics.entropy != nullptr;
    task.argmax = call_.statistics.argmax != nullptr || call_.statistics.hits != nullptr;
    task.lse = call_.statistics.lse != nullptr;
    return task;
  }
  void AddOutput(const Tile &tile, AcrossTask *task) const {
    task->output = TileOutput::kGradient;
    task->out = MatrixOf(call_.args.grad, tile.first);
    task->label_gradient = MatrixOf(call_.args.target_grad, tile.first);
    task->label_factor = 1.0 - call_.options.label_smoothing;
    task->stream = call_.plan.stream;
    if (task->stream && tile.count < kTile) task->stream = false;
  }

  XENT_NOINLINE void RunTile(Tile *tile) const {
    double row_weights[kTile];
    AcrossTask task = Describe(*tile, row_weights);
    AcrossRows &rows = tile->rows;
    const bool writes = call_.WritesGradients() && (call_.args.grad.data != nullptr || call_.args.target_grad.data != nullptr);
    const auto run = call_.kernels->across->run[kDtypeOf<In>];
    tile->live = task.live;
    if (task.live != (1u << tile->count) - 1) WriteIgnored(*tile);
    if (call_.mode == Mode::kBackward) {
      task.sums = false;
      task.ready = ReadRecords(*tile, &rows);
    }
    const bool looks = call_.plan.statistics && call_.mode != Mode::kBackward;
    if (!tame_) {
      rows.done = rows.written = 0;
    } else if (task.sums && looks && writes) {
      // In place the logits end with the gradient.
      run(task, &rows);
      WriteStatisticsOf(*tile);
      task.sums = task.entropy = task.argmax = false;
      task.ready = rows.done;
      AddOutput(*tile, &task);
      run(task, &rows);
    } else {
      if (writes) AddOutput(*tile, &task);
      run(task, &rows);
      if (looks) WriteStatisticsOf(*tile);
    }
    if (!tame_ && writes) FillIgnored(*tile);
    tile->written = writes ? rows.written : rows.done;
    if (call_.mode != Mode::kBackward) WriteRows(*tile);
    if (call_.WritesGradients() && call_.shape.cols < call_.args.cols) {
      for (int64_t i = 0; i < tile->count; ++i) call_.FillPadding(tile->first + i);
    }
  }

  void WriteRows(const Tile &tile) const {
    const AcrossRows &rows = tile.rows;
    const xent_cross_entropy &args = call_.args;
    float *const losses = static_cast<float *>(args.row_losses);
    float *const lse = static_cast<float *>(call_.statistics.lse);
    float *const logprobs = static_cast<float *>(call_.statistics.logprobs);
    for (int64_t i = 0; i < tile.count; ++i) {
      if ((rows.done >> i & 1) == 0) continue;
      const int64_t row = tile.first + i;
      if (losses != nullptr) losses[row] = rows.loss[i];
      if (lse != nullptr) lse[row] = rows.lse[i];
      if (logprobs != nullptr) logprobs[row] = rows.log_probability[i];
      if (args.records != nullptr) *call_.RecordOf(row) = RecordFrom(rows, i);
    }
  }
  Record RecordFrom(const AcrossRows &rows, int64_t i) const {
    Record record = Record::Make(call_.args.logits.dtype, Record::kLive, Record::kAcross);
    record.general = {0, rows.value[i], StoredWide{rows.others[i], 0.0}, StoredWide{rows.weight[i], 0.0}, 0.0};
    return record;
  }
  uint32_t ReadRecords(const Tile &tile, AcrossRows *rows) const {
    uint32_t ready = 0;
    for (int64_t i = 0; i < kTile; ++i) {
      rows->value[i] = rows->others[i] = rows->weight[i] = 0.0;
      if ((tile.live >> i & 1) == 0) continue;
      const Record &record = *call_.RecordOf(tile.first + i);
      if (record.kind != Record::kAcross || record.state != Record::kLive) continue;
      ready |= 1u << i;
      rows->value[i] = record.general.value;
      rows->others[i] = record.general.others.hi;
      rows->weight[i] = record.general.weight.hi;
    }
    return ready;
  }

  // Not inline, as all of these: their frames are gone when the kernels run.
  XENT_NOINLINE void WriteStatisticsOf(const Tile &tile) const {
    const FpMode mode(Subnormals::kKeep);
    for (int64_t i = 0; i < tile.count; ++i) {
      if ((tile.rows.done >> i & 1) == 0) continue;
      const int64_t row = tile.first + i;
      const AcrossRows &rows = tile.rows;
      const AcrossSums sums{rows.argmax[i], rows.value[i], rows.log_total[i], rows.entropy[i], call_.transform.cap > 0.0};
      WriteStatistics<In>(call_, row, sums, call_.Target(row));
    }
  }
  XENT_NOINLINE void WriteIgnored(const Tile &tile) const {
    if (call_.mode == Mode::kBackward) return;
    const FpMode mode(Subnormals::kKeep);
    for (int64_t i = 0; i < tile.count; ++i) {
      if ((tile.live >> i & 1) == 0) WriteIgnoredStatistics<In>(call_, tile.first + i);
    }
  }
  XENT_NOINLINE void FillIgnored(const Tile &tile) const {
    for (int64_t i = 0; i < tile.count; ++i) {
      if ((tile.live >> i & 1) == 0) call_.FillGradients(tile.first + i, 0, call_.shape.cols, 0.0);
    }
  }
  XENT_NOINLINE void RunAlone(int64_t row, Groups &groups) const {
    const FpMode mode(Subnormals::kKeep);
    const GeneralJob<In> job{call_};
    if (call_.shape.inner > 1) {
      RunTiles(job, row, row + 1, groups);
    } else {
      RunRow(job, row, groups.Of(row));
    }
  }
  // Where the factors of the gradient are beyond what the kernel takes.
  XENT_NOINLINE void WriteGradientAlone(int64_t row, const Tile &tile, int64_t i) const {
    const FpMode mode(Subnormals::kKeep);
    const GeneralJob<In> job{call_};
    typename GeneralJob<In>::Row state{};
    state.target = call_.Target(row);
    if (state.target >= 0) state.target_logit = call_.Logit<In>(row, state.target);
    state.RestoreFrom(call_, row, RecordFrom(tile.rows, i));
    job.Tile(1, row, call_.shape.inner > 1 ? 1 : 0, call_.shape.Chunk(0), &state, nullptr);
  }

  const Call &call_;
  bool tame_;  // scale and class weights leave float32's range room
  bool one_upstream_;
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
