// Short rows through the kernel that takes many at once; what it does not take goes row by row. Same bits either way.
#ifndef XENT_SRC_API_SMALL_ROWS_H_
#define XENT_SRC_API_SMALL_ROWS_H_

#include <cstdint>

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

inline void WriteSmallRows(const Call &call, const SmallRowsTask &task, const SmallRows &rows, const int64_t *row_of) {
  for (int64_t i = 0; i < task.count; ++i) {
    if ((rows.done >> i & 1) == 0) continue;
    const int64_t row = row_of[i];
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
  const Call &call = job.call;
  const auto run = call.kernels.small_rows->run[kDtypeOf<In>];
  SmallRowsTask task;
  SmallRows rows;
  int64_t row_of[kTile];
  task.cols = call.shape.cols;
  task.wants_gradient = call.args.grad != nullptr;
  task.wants_lse = call.args.lse != nullptr;
  task.g = g;
  for (int64_t row = first; row < end;) {
    task.count = 0;
    for (; row < end && task.count < kTile; ++row) {
      const int64_t target = call.Target(row);
      if (call.IsIgnored(target)) {
        job.Ignore(row);
        continue;
      }
      task.logits[task.count] = call.Logits<In>(row);
      task.gradients[task.count] = call.Grad<In>(row);
      task.targets[task.count] = target;
      row_of[task.count++] = row;
    }
    if (task.count == 0) break;
    run(task, &rows);
    WriteSmallRows(call, task, rows, row_of);
    if (task.wants_gradient && call.shape.cols < call.args.cols) {
      for (int64_t i = 0; i < task.count; ++i) call.FillPadding<In>(row_of[i]);
    }
    double sum;
    if (rows.done == (1u << task.count) - 1 && call.args.perplexity == nullptr &&
        SumExactly(rows.loss, task.count, &sum) && groups.AddExactly(row_of[0], row_of[task.count - 1], sum)) {
      continue;
    }
    for (int64_t i = 0; i < task.count; ++i) {
      Totals &totals = groups.Of(row_of[i]);
      if ((rows.done >> i & 1) == 0) {
        RunRow(job, call.shape, row_of[i], totals);
      } else {
        totals.Add({{static_cast<double>(rows.loss[i]), 0.0},
                    call.args.perplexity != nullptr ? Wide{rows.nll[i]} : Wide{}});
      }
    }
  }
}

}  // namespace xent::internal
#endif  // XENT_SRC_API_SMALL_ROWS_H_
