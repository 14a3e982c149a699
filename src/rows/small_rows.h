// Short rows through the kernel that takes many at once; what it does not take goes row by row. Same bits either way.
#ifndef XENT_SRC_ROWS_SMALL_ROWS_H_
#define XENT_SRC_ROWS_SMALL_ROWS_H_

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

// Whether a call's rows may go through the kernel, and the factor of their gradients.
template <class In>
bool TakesSmallRows(const Call &call, Factor *g) {
  if (call.kernels.small_rows->run[kDtypeOf<In>] == nullptr || call.shape.cols < 2 || call.shape.cols > kMaxSmallCols ||
      call.mode == Mode::kBackward || call.shares.other != 0.0 || call.options.z_loss != 0.0 ||
      call.args.class_weights != nullptr || call.args.row_weights != nullptr || call.wants_statistics) {
    return false;
  }
  if (call.args.grad == nullptr) return true;
  return call.args.upstream_kind != XENT_UPSTREAM_ROWS &&
         (kKeepsExponentials<In> || call.shape.cols <= kMaxTransposedCols) &&
         call.FillOf(0, false, g) == Fill::kCompute && IsTame(*g);
}

// What is left of a tile of rows when the kernel has been over it.
struct SmallTile {
  int64_t first, count;
  uint32_t live, done;  // bit i: row first + i
  float loss[kTile];
  double nll[kTile];
};

inline void WriteSmallRows(const Call &call, const SmallTile &tile, const SmallRows &rows) {
  float *const losses = static_cast<float *>(call.args.losses);
  float *const lse = static_cast<float *>(call.args.lse);
  if (tile.done == (1u << kTile) - 1) {
    if (losses != nullptr) std::memcpy(losses + tile.first, rows.loss, sizeof(rows.loss));
    if (lse != nullptr) std::memcpy(lse + tile.first, rows.lse, sizeof(rows.lse));
    if (call.args.logprobs == nullptr && call.args.records == nullptr) return;
  }
  for (int64_t i = 0; i < tile.count; ++i) {
    if ((tile.done >> i & 1) == 0) continue;
    const int64_t row = tile.first + i;
    Call::Write(losses, row, rows.loss[i]);
    if (lse != nullptr) lse[row] = rows.lse[i];
    Call::Write(call.args.logprobs, row, 0.0f - rows.loss[i]);
    if (call.args.records == nullptr) continue;
    Record record = Record::Make(call.args.dtype, Record::kLive);
    if (rows.others[i] != 0.0) record.Set(0, RowSum<float>{rows.others[i], rows.others_reference[i]});
    record.Set(1, RowSum<float>{rows.target[i], rows.target_reference[i]});
    *call.RecordOf(row) = record;
  }
}

// The rows of a tile that begins with `first`; ignored ones are finished on the way. Not inline, so that its frame is
// gone where a row goes the long way.
template <class In, class Job>
XENT_NOINLINE void RunSmallTile(const Job &job, const Factor &g, int64_t first, int64_t count, SmallTile *tile) {
  const Call &call = job.call;
  SmallRowsTask task;
  SmallRows rows;
  task.cols = call.shape.cols;
  task.count = tile->count = count;
  task.live = 0;
  task.logits = call.Logits<In>(first);
  task.logits_stride = call.logits_stride;
  task.gradient = call.Grad<In>(first);
  task.gradient_stride = call.grad_stride;
  task.wants_lse = call.args.lse != nullptr;
  task.g = g;
  const Targets targets{call.args.targets, call.args.targets_type};
  for (int64_t i = 0; i < count; ++i) {
    const int64_t target = targets[first + i];
    const bool live = target != call.options.ignore_index;
    task.live |= static_cast<uint32_t>(live) << i;
    task.targets[i] = live ? target : 0;
  }
  tile->first = first;
  tile->live = task.live;
  call.kernels.small_rows->run[kDtypeOf<In>](task, &rows);
  tile->done = rows.done;
  std::memcpy(tile->loss, rows.loss, sizeof(rows.loss));
  std::memcpy(tile->nll, rows.nll, sizeof(rows.nll));
  WriteSmallRows(call, *tile, rows);
  const bool pads = task.gradient != nullptr && call.shape.cols < call.args.cols;
  if (!pads && task.live == (1u << count) - 1) return;
  for (int64_t i = 0; i < count; ++i) {
    if ((task.live >> i & 1) == 0) {
      job.Ignore(first + i);
    } else if (pads) {
      call.FillPadding<In>(first + i);
    }
  }
}

// Rows [first, end) of a job (IndexJob) whose call TakesSmallRows.
template <class In, class Job>
XENT_NOINLINE void RunSmallRows(const Job &job, const Factor &g, int64_t first, int64_t end, Groups<Totals> &groups) {
  const bool wants_nll = job.call.args.perplexity != nullptr;
  SmallTile tile;
  for (; first < end; first += tile.count) {
    RunSmallTile<In>(job, g, first, std::min(kTile, end - first), &tile);
    double sum;
    if (tile.done == (1u << tile.count) - 1 && !wants_nll && SumExactly(tile.loss, tile.count, &sum) &&
        groups.AddExactly(first, first + tile.count - 1, sum)) {
      continue;
    }
    for (int64_t i = 0; i < tile.count; ++i) {
      if ((tile.live >> i & 1) == 0) continue;
      Totals &totals = groups.Of(first + i);
      if ((tile.done >> i & 1) == 0) {
        RunRow(job, job.call.shape, first + i, totals);
      } else {
        totals.Add({{static_cast<double>(tile.loss[i]), 0.0}, wants_nll ? Wide{tile.nll[i]} : Wide{}});
      }
    }
  }
}

}  // namespace xent::internal
#endif  // XENT_SRC_ROWS_SMALL_ROWS_H_
