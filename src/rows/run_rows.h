// Runs a job over the rows of a call as its plan says: rows over threads, or, where rows are fewer than threads, the
// chunks inside rows. A job goes over each row in passes. A pass visits the row's chunks, in any order, and is followed
// by a step for the row as a whole.
#ifndef XENT_SRC_ROWS_RUN_ROWS_H_
#define XENT_SRC_ROWS_RUN_ROWS_H_

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <memory>

#include "hwy/cache_control.h"
#include "kernels/row.h"
#include "numbers/fp_mode.h"
#include "parallel/parallel.h"
#include "rows/call.h"
#include "rows/groups.h"
#include "rows/plan.h"
#include "rows/workspace.h"

namespace xent::internal {

// What every job offers. Job::Row is what a row's passes share, Job::Part what a pass leaves of a chunk, Job::Sums the
// Totals or NoTotals that rows are added to. Each job stands beside a static_assert of its concept, so that a misspelt
// hook does not compile.
template <class Job>
concept RowJob = requires(const Job &job, int64_t row, int64_t chunk, int pass, typename Job::Row &state,
                          typename Job::Part &part, typename Job::Sums &sums) {
  requires std::same_as<decltype(Job::kPasses), const int>;
  // Begins a row; false: the row is finished already.
  { job.Begin(row, state) } -> std::same_as<bool>;
  // Does one pass over one chunk.
  { job.Chunk(pass, row, chunk, state, part) } -> std::same_as<void>;
  // Follows a pass over all chunks, whose parts are an array.
  { job.Between(pass, row, state, &part) } -> std::same_as<void>;
  // Ends a row and adds it to the sums.
  { job.End(row, state, sums) } -> std::same_as<void>;
};

// A job of two passes whose second pass over one row can run beside the first over the next row: RunOverlappingRows.
template <class Job>
concept OverlappingJob =
    RowJob<Job> && std::same_as<typename Job::Part, ChunkSum> &&
    requires(const Job &job, int64_t row, int64_t chunk, typename Job::Row &state, ChunkSum *sum, void *slot) {
      requires Job::kPasses == 2;
      // Takes a slot of the workspace, or null, as the place of the row's exponentials.
      { job.KeepIn(slot, state) } -> std::same_as<void>;
      // Does the first pass over a chunk, and meanwhile a ScaleTask (may be null) of another row.
      { job.Sum(row, chunk, state, static_cast<const ScaleTask *>(nullptr), sum) } -> std::same_as<void>;
      // Does the second pass but for the scaling of kept exponentials, which it returns.
      { job.Rewrite(row, chunk, state, *sum) } -> std::same_as<ScaleTask>;
      // Follows that scaling.
      { job.Rewritten(row, chunk, state) } -> std::same_as<void>;
    };

// A job that can take tiles of short rows at once.
template <class Job>
concept ShortRowsJob = RowJob<Job> && requires(const Job &job, int64_t row, Groups<typename Job::Sums> &groups) {
  { job.RunShortRows(row, row, groups) } -> std::same_as<void>;
};

// Rows whose chunks are worked on at once where rows are split: as many parts as 6 KB of stack take.
template <class Part>
inline constexpr int64_t kSplitRows = 6144 / (kMaxChunks * sizeof(Part));

template <RowJob Job>
XENT_NOINLINE void RunRow(const Job &job, const RowShape &shape, int64_t row, typename Job::Sums &totals) {
  typename Job::Row state{};
  if (!job.Begin(row, state)) return;
  typename Job::Part parts[kMaxChunks];
  for (int pass = 0; pass < Job::kPasses; ++pass) {
    for (int64_t chunk = 0; chunk < shape.chunks; ++chunk) job.Chunk(pass, row, chunk, state, parts[chunk]);
    job.Between(pass, row, state, parts);
  }
  job.End(row, state, totals);
}

// Runs rows such that row i's sums and row i-1's gradient go on side by side, chunk by chunk, and inside of a chunk
// step by step (kernels/exp_sum-inl.h): summing exponentials is arithmetic, writing a gradient is memory, and each
// fills the other's gaps. Drawn in docs/architecture.md.
template <OverlappingJob Job>
XENT_NOINLINE void RunOverlappingRows(const Job &job, const Plan &plan, const RowShape &shape,
                                      const Workspace &workspace, int64_t first, int64_t end,
                                      Groups<typename Job::Sums> &groups) {
  typename Job::Row states[2];
  // Of the row that waits for its gradient; a chunk's sum is read before the next row's takes its place.
  ChunkSum sums[kMaxChunks];
  const Workspace::Slot slot(workspace, plan.keep == Keep::kWorkspace);
  int64_t waiting = -1;  // row i-1; -1: none
  int now = 0;           // row i's state
  for (int64_t row = first; row < end; ++row) {
    typename Job::Row &state = *std::construct_at(&states[now]);
    if (!job.Begin(row, state)) continue;
    job.KeepIn(slot.data(), state);
    for (int64_t chunk = 0; chunk < shape.chunks; ++chunk) {
      if (waiting < 0) {
        job.Sum(row, chunk, state, nullptr, &sums[chunk]);
        continue;
      }
      const ScaleTask meanwhile = job.Rewrite(waiting, chunk, states[1 - now], sums[chunk]);
      job.Sum(row, chunk, state, meanwhile.cols > 0 ? &meanwhile : nullptr, &sums[chunk]);
      job.Rewritten(waiting, chunk, states[1 - now]);
    }
    job.Between(0, row, state, sums);
    job.End(row, state, groups.Of(row));
    waiting = row;
    now = 1 - now;
  }
  for (int64_t chunk = 0; waiting >= 0 && chunk < shape.chunks; ++chunk) {
    job.Chunk(1, waiting, chunk, states[1 - now], sums[chunk]);
  }
}

// Streaming stores are seen by other threads only after a fence: one at the end of each task.
inline void EndTask(const Plan &plan) {
  if (plan.stream) hwy::FlushStream();
}

// Cuts groups of rows into tasks.
template <class Sums, class RunRange>
XENT_NOINLINE bool RunGroupsInTasks(const Plan &plan, const RowShape &shape, const xent_exec &exec, const RunRange &run,
                                    Sums *totals) {
  struct Work {
    const Plan &plan;
    const RunRange &run;
    int64_t rows, group_rows, groups, task_groups;
    typename Sums::Slot slots[kMaxTasks];
  };
  const int64_t group_rows = RowsPerGroup(shape.rows);
  const int64_t groups = (shape.rows - 1) / group_rows + 1;
  const int64_t group_logits = group_rows > INT64_MAX / shape.cols ? INT64_MAX : group_rows * shape.cols;
  const int64_t task_groups = std::max({int64_t{1}, kTaskLogits / group_logits, (plan.task_rows - 1) / group_rows + 1});
  Work work{plan, run, shape.rows, group_rows, groups, task_groups, {}};
  const bool complete = ParallelFor(
      exec, plan.threads, (groups - 1) / task_groups + 1,
      [](void *arg, int64_t task) {
        Work &w = *static_cast<Work *>(arg);
        const FpMode mode(w.plan.subnormals);
        const int64_t end_group = std::min(w.groups, (task + 1) * w.task_groups);
        Groups<Sums> own(w.rows, nullptr, w.slots);
        w.run(task * w.task_groups * w.group_rows, std::min(w.rows, end_group * w.group_rows), own);
        EndTask(w.plan);
      },
      &work);
  for (int64_t group = 0; group < groups; ++group) totals->Add(work.slots[group].Get());
  return complete;
}

// Runs run(first row, end row, groups) for one task's rows after the other, each of which is added to groups.Of(row).
// On one thread there is one task, and no scratch for the groups' sums. The calling thread has the plan's
// floating-point mode already.
template <class Sums, class RunRange>
bool RunGroups(const Plan &plan, const RowShape &shape, const xent_exec &exec, const RunRange &run, Sums *totals) {
  *totals = {};
  if (shape.rows == 0) return true;
  if (plan.threads != 1) return RunGroupsInTasks(plan, shape, exec, run, totals);
  Groups<Sums> own(shape.rows, totals, nullptr);
  run(0, shape.rows, own);
  EndTask(plan);
  return true;
}

// Runs at most kMaxTasks rows, each a group of its own, chunk by chunk over the threads.
template <RowJob Job>
XENT_NOINLINE bool RunSplitRows(const Job &job, const Plan &plan, const RowShape &shape, const xent_exec &exec,
                                typename Job::Sums *totals) {
  constexpr int64_t kSplit = kSplitRows<typename Job::Part>;
  struct Work {
    const Job &job;
    const Plan &plan;
    const RowShape &shape;
    int pass;
    int64_t count;
    int64_t rows[kSplit];
    typename Job::Row states[kSplit];
    typename Job::Part parts[kSplit][kMaxChunks];
  };
  Work work{job, plan, shape, 0, 0, {}, {}, {}};
  Groups<typename Job::Sums> groups(shape.rows, totals, nullptr);
  const auto run_chunk = [](void *arg, int64_t task) {
    Work &w = *static_cast<Work *>(arg);
    const FpMode mode(w.plan.subnormals);
    const int64_t slot = task / w.shape.chunks;
    const int64_t chunk = task % w.shape.chunks;
    w.job.Chunk(w.pass, w.rows[slot], chunk, w.states[slot], w.parts[slot][chunk]);
    EndTask(w.plan);
  };
  for (int64_t next = 0; next < shape.rows;) {
    for (work.count = 0; work.count < kSplit && next < shape.rows; ++next) {
      typename Job::Row &state = work.states[work.count];
      state = {};
      if (job.Begin(next, state)) work.rows[work.count++] = next;
    }
    if (work.count == 0) continue;
    for (work.pass = 0; work.pass < Job::kPasses; ++work.pass) {
      if (!ParallelFor(exec, plan.threads, work.count * shape.chunks, run_chunk, &work)) return false;
      for (int64_t i = 0; i < work.count; ++i) job.Between(work.pass, work.rows[i], work.states[i], work.parts[i]);
    }
    for (int64_t i = 0; i < work.count; ++i) job.End(work.rows[i], work.states[i], groups.Of(work.rows[i]));
  }
  return true;
}

// Runs a job. False: the caller's parallel_for left a task out.
template <RowJob Job>
XENT_NOINLINE bool RunRows(const Job &job, const Plan &plan, const RowShape &shape, const Workspace &workspace,
                           const xent_exec &exec, typename Job::Sums *totals) {
  if (plan.split == Split::kChunks) {
    *totals = {};
    return RunSplitRows(job, plan, shape, exec, totals);
  }
  const auto run = [&](int64_t first, int64_t end, Groups<typename Job::Sums> &groups) {
    if constexpr (ShortRowsJob<Job>) {
      if (plan.short_rows) return job.RunShortRows(first, end, groups);
    }
    if constexpr (OverlappingJob<Job>) {
      if (plan.overlap) return RunOverlappingRows(job, plan, shape, workspace, first, end, groups);
    }
    for (int64_t row = first; row < end; ++row) RunRow(job, shape, row, groups.Of(row));
  };
  return RunGroups(plan, shape, exec, run, totals);
}

}  // namespace xent::internal
#endif  // XENT_SRC_ROWS_RUN_ROWS_H_
