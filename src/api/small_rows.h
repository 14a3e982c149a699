// Short rows through the kernel that takes many at once; what it does not take goes row by row. Same bits either way.
#ifndef XENT_SRC_API_SMALL_ROWS_H_
#define XENT_SRC_API_SMALL_ROWS_H_

#include <cstdint>
#include <cstring>

#include "api/cross_entropy_call.h"
#include "api/run_rows.h"
#include "kernels/small_rows.h"

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
  if (call.kernels.small_rows->run[kDtypeOf<In>] == nullptr || call.shape.cols < 2 ||
      call.shape.cols > kMaxSmallCols || call.mode == Mode::kBackward || call.shares.other != 0.0 ||
      call.options.z_loss != 0.0 || call.args.class_weights != nullptr || call.args.row_weights != nullptr ||
      call.wants_statistics) {
    return false;
  }
  if (call.args.grad == nullptr) return true;
  return call.args.upstream_kind != XENT_UPSTREAM_ROWS && (kKeepsExponentials<In> || call.shape.cols <= kMaxTransposedCols) &&
         call.FillOf(0, false, g) == Fill::kCompute && IsTame(*g);
}

// What is left of a tile of rows when the kernel has been over it.
struct SmallTile {
  int64_t count;
  int64_t row[kTile];
  uint32_t done;  // bit i: row[i]
  float loss[kTile];
  double nll[kTile];
};

// The next rows of [*next, end) that are not ignored, as many as go together; ignored ones are finished on the way.
// Not inline, so that its frame is gone where a row goes the long way.
template <class In, class Job>
XENT_NOINLINE void RunSmallTile(const Job &job, const Factor &g, int64_t end, int64_t *next, SmallTile *tile) {
  const Call &call = job.call;
  SmallRowsTask task;
  SmallRows rows;
  task.cols = call.shape.cols;
  task.count = 0;
  task.wants_gradient = call.args.grad != nullptr;
  task.wants_lse = call.args.lse != nullptr;
  task.g = g;
  for (; *next < end && task.count < kTile; ++*next) {
    const int64_t target = call.Target(*next);
    if (call.IsIgnored(target)) {
      job.Ignore(*next);
      continue;
    }
    task.logits[task.count] = call.Logits<In>(*next);
    task.gradients[task.count] = call.Grad<In>(*next);
    task.targets[task.count] = target;
    tile->row[task.count++] = *next;
  }
  tile->count = task.count;
  if (task.count == 0) return;
  call.kernels.small_rows->run[kDtypeOf<In>](task, &rows);
  tile->done = rows.done;
  std::memcpy(tile->loss, rows.loss, sizeof(rows.loss));
  std::memcpy(tile->nll, rows.nll, sizeof(rows.nll));
  for (int64_t i = 0; i < task.count; ++i) {
    const int64_t row = tile->row[i];
    if (task.wants_gradient) call.FillPadding<In>(row);
    if ((rows.done >> i & 1) == 0) continue;
    Call::Write(call.args.losses, row, rows.loss[i]);
    if (task.wants_lse) Call::Write(call.args.lse, row, rows.lse[i]);
    Call::Write(call.args.logprobs, row, 0.0f - rows.loss[i]);
    if (call.args.records != nullptr) {
      Record record = Record::Make(call.args.dtype, Record::kLive);
      if (rows.others[i] != 0.0) record.Set(0, RowSum<float>{rows.others[i], rows.others_reference[i]});
      record.Set(1, RowSum<float>{rows.target[i], rows.target_reference[i]});
      *call.RecordOf(row) = record;
    }
  }
}

// Rows [first, end) of a job (IndexJob) whose call TakesSmallRows.
template <class In, class Job>
XENT_NOINLINE void RunSmallRows(const Job &job, const Factor &g, int64_t first, int64_t end, Groups<Totals> &groups) {
  const bool wants_nll = job.call.args.perplexity != nullptr;
  SmallTile tile;
  for (int64_t next = first; next < end;) {
    RunSmallTile<In>(job, g, end, &next, &tile);
    double sum;
    if (tile.count > 0 && tile.done == (1u << tile.count) - 1 && !wants_nll &&
        SumExactly(tile.loss, tile.count, &sum) && groups.AddExactly(tile.row[0], tile.row[tile.count - 1], sum)) {
      continue;
    }
    for (int64_t i = 0; i < tile.count; ++i) {
      Totals &totals = groups.Of(tile.row[i]);
      if ((tile.done >> i & 1) == 0) {
        RunRow(job, job.call.shape, tile.row[i], totals);
      } else {
        totals.Add({{static_cast<double>(tile.loss[i]), 0.0}, wants_nll ? Wide{tile.nll[i]} : Wide{}});
      }
    }
  }
}

}  // namespace xent::internal
#endif  // XENT_SRC_API_SMALL_ROWS_H_
