// Cuts the rows of a call into tasks and runs a job over them: rows over threads, or, where rows are fewer than
// threads, the chunks inside rows. A job goes over each row in passes; a pass visits the row's chunks, in any order,
// and is followed by a step for the row as a whole.
//
//   struct Job {
//     static constexpr int kPasses;
//     using Sums = Totals or NoTotals;
//     struct Row;                                                // what a row's passes share
//     bool Begin(int64_t row, Row &) const;                      // false: the row is finished
//     void Chunk(int pass, int64_t row, int64_t chunk, Row &, ChunkSum &) const;
//     void Between(int pass, int64_t row, Row &, const ChunkSum *) const;
//     void End(int64_t row, const Row &, Sums &) const;
//   };
#ifndef XENT_SRC_API_RUN_ROWS_H_
#define XENT_SRC_API_RUN_ROWS_H_

#include <algorithm>
#include <cstdint>

#include "kernels/row.h"
#include "math/fp_mode.h"
#include "parallel/parallel.h"
#include "xent/xent.h"

namespace xent::internal {

// Sums over rows, added up in row order within groups and the groups in order.
struct Totals {
  Wide loss;
  double nll = 0.0;

  void Add(const Totals &other) {
    loss = AddOrOverflow(loss, other.loss);
    nll += other.nll;
  }
};
struct NoTotals {
  void Add(const NoTotals & /*other*/) {}
};

// At most kMaxTasks groups, their size a function of the number of rows alone.
inline int64_t RowsPerGroup(int64_t rows) { return rows / kMaxTasks + (rows % kMaxTasks != 0); }

struct RowShape {
  int64_t rows, cols, chunk_cols, chunks;

  RowShape(int64_t row_count, int64_t col_count)
      : rows(row_count), cols(col_count), chunk_cols(ChunkCols(col_count)), chunks((col_count - 1) / chunk_cols + 1) {}
  int64_t ColsOf(int64_t chunk) const { return std::min(chunk_cols, cols - chunk * chunk_cols); }
};

// Below this many logits a call stays on its thread, and no task is smaller.
inline constexpr int64_t kTaskLogits = 32768;
inline constexpr int64_t kSplitRows = 6;

template <class Job>
XENT_NOINLINE void RunRow(const Job &job, const RowShape &shape, int64_t row, typename Job::Sums &totals) {
  typename Job::Row state{};
  if (!job.Begin(row, state)) return;
  ChunkSum sums[kMaxChunks];
  for (int pass = 0; pass < Job::kPasses; ++pass) {
    for (int64_t chunk = 0; chunk < shape.chunks; ++chunk) job.Chunk(pass, row, chunk, state, sums[chunk]);
    job.Between(pass, row, state, sums);
  }
  job.End(row, state, totals);
}

template <class Job>
XENT_NOINLINE bool RunWholeRows(const Job &job, const RowShape &shape, const xent_exec &exec, int32_t concurrency,
                                typename Job::Sums *totals) {
  struct Work {
    const Job &job;
    const RowShape &shape;
    int64_t group_rows, groups, task_groups;
    typename Job::Sums group_totals[kMaxTasks];
  };
  const int64_t group_rows = RowsPerGroup(shape.rows);
  const int64_t groups = (shape.rows - 1) / group_rows + 1;
  const int64_t group_logits = group_rows > INT64_MAX / shape.cols ? INT64_MAX : group_rows * shape.cols;
  const int64_t task_groups = concurrency == 1 ? groups : std::max<int64_t>(1, kTaskLogits / group_logits);
  Work work{job, shape, group_rows, groups, task_groups, {}};
  const bool complete = ParallelFor(
      exec, concurrency, (groups - 1) / task_groups + 1,
      [](void *arg, int64_t task) {
        Work &w = *static_cast<Work *>(arg);
        const int64_t end_group = std::min(w.groups, (task + 1) * w.task_groups);
        for (int64_t group = task * w.task_groups; group < end_group; ++group) {
          const int64_t end_row = std::min(w.shape.rows, (group + 1) * w.group_rows);
          for (int64_t row = group * w.group_rows; row < end_row; ++row) {
            RunRow(w.job, w.shape, row, w.group_totals[group]);
          }
        }
      },
      &work);
  for (int64_t group = 0; group < groups; ++group) totals->Add(work.group_totals[group]);
  return complete;
}

// For at most kMaxTasks rows, of which each is a group of its own.
template <class Job>
XENT_NOINLINE bool RunSplitRows(const Job &job, const RowShape &shape, const xent_exec &exec, int32_t concurrency,
                                typename Job::Sums *totals) {
  struct Work {
    const Job &job;
    const RowShape &shape;
    int pass;
    int64_t count;
    int64_t rows[kSplitRows];
    typename Job::Row states[kSplitRows];
    ChunkSum sums[kSplitRows][kMaxChunks];
  };
  Work work{job, shape, 0, 0, {}, {}, {}};
  const auto run_chunk = [](void *arg, int64_t task) {
    Work &w = *static_cast<Work *>(arg);
    const int64_t slot = task / w.shape.chunks;
    const int64_t chunk = task % w.shape.chunks;
    w.job.Chunk(w.pass, w.rows[slot], chunk, w.states[slot], w.sums[slot][chunk]);
  };
  for (int64_t next = 0; next < shape.rows;) {
    for (work.count = 0; work.count < kSplitRows && next < shape.rows; ++next) {
      typename Job::Row &state = work.states[work.count];
      state = {};
      if (job.Begin(next, state)) work.rows[work.count++] = next;
    }
    if (work.count == 0) continue;
    for (work.pass = 0; work.pass < Job::kPasses; ++work.pass) {
      if (!ParallelFor(exec, concurrency, work.count * shape.chunks, run_chunk, &work)) return false;
      for (int64_t i = 0; i < work.count; ++i) job.Between(work.pass, work.rows[i], work.states[i], work.sums[i]);
    }
    for (int64_t i = 0; i < work.count; ++i) {
      typename Job::Sums row_total;
      job.End(work.rows[i], work.states[i], row_total);
      totals->Add(row_total);
    }
  }
  return true;
}

// False: incomplete. The caller has set the floating-point mode.
template <class Job>
XENT_NOINLINE bool RunRows(const Job &job, const RowShape &shape, const xent_exec &exec, typename Job::Sums *totals) {
  *totals = {};
  if (shape.rows == 0) return true;
  const bool small = shape.rows <= kTaskLogits / shape.cols;
  const int32_t concurrency = small ? 1 : Concurrency(exec);
  if (shape.rows < concurrency && shape.chunks > 1 && shape.rows <= kMaxTasks) {
    return RunSplitRows(job, shape, exec, concurrency, totals);
  }
  return RunWholeRows(job, shape, exec, concurrency, totals);
}

}  // namespace xent::internal
#endif  // XENT_SRC_API_RUN_ROWS_H_
