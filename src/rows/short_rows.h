// Short rows of the index path, a tile of them at once (kernels/small_rows.h). A row that the kernel leaves goes the
// way of a long one, with the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/small_rows.h"
#include "rows/call.h"
#include "rows/run_rows.h"

namespace xent::internal {

// The losses' sum, where every sum of some of them is exact in double: then their order does not matter.
inline bool SumExactly(const float *losses, int64_t count, double *sum) {
  // Multiples of 2^-36 below 2^12, at most 16.
  bool exact = true;
  double total = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const float x = losses[i];
    exact &= (x == 0.0f) | ((x >= 0x1p-13f) & (x <= 0x1p12f));
    total += static_cast<double>(x);
  }
  *sum = total;
  return exact;
}

// A tile of rows, and what the kernel has made of it.
struct ShortTile {
  int64_t first, count;
  uint32_t live;  // bit i: row first + i
  alignas(64) SmallRows rows;

  bool IsLive(int64_t i) const { return (live >> i & 1) != 0; }
  bool IsDone(int64_t i) const { return (rows.done >> i & 1) != 0; }
  bool AreAllDone() const { return rows.done == (1u << count) - 1; }
};

inline void WriteShortRows(const Call &call, const ShortTile &tile) {
  const SmallRows &rows = tile.rows;
  float *const losses = static_cast<float *>(call.args.row_losses);
  float *const lse = static_cast<float *>(call.statistics.lse);
  if (tile.count == kTile && tile.AreAllDone()) {
    if (losses != nullptr) std::memcpy(losses + tile.first, rows.loss, sizeof(rows.loss));
    if (lse != nullptr) std::memcpy(lse + tile.first, rows.lse, sizeof(rows.lse));
    if (call.statistics.logprobs == nullptr && call.args.records == nullptr) return;
  }
  for (int64_t i = 0; i < tile.count; ++i) {
    if (!tile.IsDone(i)) continue;
    const int64_t row = tile.first + i;
    call.WriteRow(row, rows.loss[i], rows.lse[i], 0.0f - rows.loss[i]);
    if (call.args.records == nullptr) continue;
    Record record = call.NewRecord(Record::kLive, Record::kIndex);
    if (rows.others[i] != 0.0) record.Set(0, RowSum<float>{rows.others[i], rows.others_reference[i]});
    record.Set(1, RowSum<float>{rows.target[i], rows.target_reference[i]});
    *call.RecordOf(row) = record;
  }
}

// Runs the kernel over a tile, and finishes those rows that are ignored. Not inline, so that its frame is gone where a
// row is computed alone.
template <class In, class Job>
XENT_NOINLINE void RunShortTile(const Job &job, ShortTile *tile) {
  const Call &call = job.call;
  const int64_t first = tile->first, count = tile->count;
  SmallRowsTask task;
  task.cols = call.shape.cols;
  task.count = count;
  task.live = 0;
  task.logits = call.Logits<In>(first);
  task.logits_stride = call.args.logits.stride;
  task.gradient = call.Grad<In>(first);
  task.gradient_stride = call.args.grad.stride;
  task.wants_lse = call.statistics.lse != nullptr;
  task.g = call.plan.row_factor;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t target = TargetAt(call.args.targets, first + i);
    const bool live = target != call.options.ignore_index;
    task.live |= static_cast<uint32_t>(live) << i;
    task.targets[i] = live ? target : 0;
  }
  tile->live = task.live;
  call.kernels->small_rows->run[kDtypeOf<In>](task, &tile->rows);
  WriteShortRows(call, *tile);
  const bool pads = task.gradient != nullptr && call.shape.cols < call.args.cols;
  if (!pads && task.live == (1u << count) - 1) return;
  for (int64_t i = 0; i < count; ++i) {
    if (!tile->IsLive(i)) {
      job.Ignore(first + i);
    } else if (pads) {
      call.FillPadding(first + i);
    }
  }
}

// Runs rows [first, end) of an IndexJob.
template <class In, class Job>
XENT_NOINLINE void RunShortRowsOf(const Job &job, int64_t first, int64_t end, Groups &groups) {
  const bool wants_nll = job.call.statistics.perplexity != nullptr;
  ShortTile tile;
  for (; first < end; first += tile.count) {
    tile.first = first;
    tile.count = std::min(kTile, end - first);
    RunShortTile<In>(job, &tile);
    const SmallRows &rows = tile.rows;
    double sum;
    if (tile.AreAllDone() && !wants_nll && SumExactly(rows.loss, tile.count, &sum) &&
        groups.AddExactly(first, first + tile.count - 1, sum)) {
      continue;
    }
    for (int64_t i = 0; i < tile.count; ++i) {
      if (!tile.IsLive(i)) continue;
      if (tile.IsDone(i)) {
        const Wide nll = wants_nll ? Wide{rows.nll[i]} : Wide{};
        groups.AddRow(first + i, {{static_cast<double>(rows.loss[i]), 0.0}, nll});
      } else {
        RunRow(job, first + i, groups.Of(first + i));
      }
    }
  }
}

}  // namespace xent::internal
