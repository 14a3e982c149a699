// Runs a job over the rows of a call as its plan says: rows over threads, or, where rows are fewer than threads, the
// chunks inside rows. A job goes over each row in passes. A pass visits the row's chunks, in any order, and is followed
// by a step for the row as a whole.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <memory>

#include "kernels/fence.h"
#include "kernels/row.h"
#include "numbers/fp_mode.h"
#include "parallel/parallel.h"
#include "rows/call.h"
#include "rows/groups.h"
#include "rows/plan.h"
#include "rows/workspace.h"

namespace xent::internal {

// What every job offers. Job::Row is what a row's passes share, Job::Part what a pass leaves of a chunk. Each job
// stands beside a static_assert of its concept, so that a misspelt hook does not compile.
template <class Job>
concept RowJob = requires(const Job &job, int64_t row, const Piece &chunk, int pass, typename Job::Row &state,
                          typename Job::Part &part, Totals &totals) {
  requires std::same_as<decltype(Job::kPasses), const int>;
  { job.call } -> std::convertible_to<const RowCall &>;
  // Begins a row; false: the row is finished already.
  { job.Begin(row, state) } -> std::same_as<bool>;
  // Does one pass over one chunk.
  { job.Chunk(pass, row, chunk, state, part) } -> std::same_as<void>;
  // Follows a pass over all chunks, whose parts are an array.
  { job.Between(pass, row, state, &part) } -> std::same_as<void>;
  // Ends a row and adds it to the totals.
  { job.End(row, state, totals) } -> std::same_as<void>;
};

// A job of two passes whose second pass over one row can run beside the first over the next row: RunOverlappingRows.
template <class Job>
concept OverlappingJob =
    RowJob<Job> && std::same_as<typename Job::Part, ChunkSum> &&
    requires(const Job &job, int64_t row, const Piece &chunk, typename Job::Row &state, ChunkSum *sum, void *slot) {
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
concept ShortRowsJob = RowJob<Job> && requires(const Job &job, int64_t row, Groups &groups) {
  { job.RunShortRows(row, row, groups) } -> std::same_as<void>;
};

// A job whose passes can also run over tiles of adjacent positions, each a row of one part.
template <class Job>
concept TileJob = RowJob<Job> && requires(const Job &job, int pass, int64_t row, int64_t count, const Piece &piece,
                                          typename Job::Row *states, typename Job::Part *parts) {
  // Does one pass over `count` rows from `row` on; those that Begin has finished are among them, and their gradients
  // are filled again.
  { job.Tile(pass, row, count, piece, states, parts) } -> std::same_as<void>;
};

// The rows from `row` on, of those before `end`, that make a tile: positions of one class-major block.
inline int64_t TileRows(const RowShape &shape, int64_t row, int64_t end) {
  return std::min({kTile, end - row, shape.inner - row % shape.inner});
}

// Rows whose chunks are worked on at once where rows are split: as many parts as 4 KB of stack take.
template <class Part>
inline constexpr int64_t kSplitRows = 4096 / (kMaxChunks * sizeof(Part));

// Rows of a tile: as many as 4800 bytes of stack take with their parts, at most one a lane.
template <class Job>
inline constexpr int64_t kTileRows =
    std::min<int64_t>(kTile, 4800 / (sizeof(typename Job::Row) + sizeof(typename Job::Part)));

template <RowJob Job>
XENT_NOINLINE void RunRow(const Job &job, int64_t row, Totals &totals) {
  const RowShape &shape = job.call.shape;
  typename Job::Row state{};
  if (!job.Begin(row, state)) return;
  typename Job::Part parts[kMaxChunks];
  for (int pass = 0; pass < Job::kPasses; ++pass) {
    for (int64_t i = 0; i < shape.chunks; ++i) job.Chunk(pass, row, shape.Chunk(i), state, parts[i]);
    job.Between(pass, row, state, parts);
  }
  job.End(row, state, totals);
}

// Runs rows such that row i's sums and row i-1's gradient go on side by side, chunk by chunk, and inside of a chunk
// step by step (kernels/exp_sum-inl.h): summing exponentials is arithmetic, writing a gradient is memory, and each
// fills the other's gaps. Drawn in docs/architecture.md.
template <OverlappingJob Job>
XENT_NOINLINE void RunOverlappingRows(const Job &job, int64_t first, int64_t end, Groups &groups) {
  const RowShape &shape = job.call.shape;
  typename Job::Row states[2];
  // Of the row that waits for its gradient; a chunk's sum is read before the next row's takes its place.
  ChunkSum sums[kMaxChunks];
  const Workspace::Slot slot(job.call.workspace, job.call.plan.keep == Keep::kWorkspace);
  int64_t waiting = -1;  // row i-1; -1: none
  int now = 0;           // row i's state
  for (int64_t row = first; row < end; ++row) {
    typename Job::Row &state = *std::construct_at(&states[now]), &before = states[1 - now];
    if (!job.Begin(row, state)) continue;
    job.KeepIn(slot.data(), state);
    for (int64_t i = 0; i < shape.chunks; ++i) {
      const Piece chunk = shape.Chunk(i);
      if (waiting < 0) {
        job.Sum(row, chunk, state, nullptr, &sums[i]);
        continue;
      }
      const ScaleTask meanwhile = job.Rewrite(waiting, chunk, before, sums[i]);
      job.Sum(row, chunk, state, meanwhile.cols > 0 ? &meanwhile : nullptr, &sums[i]);
      job.Rewritten(waiting, chunk, before);
    }
    job.Between(0, row, state, sums);
    job.End(row, state, groups.Of(row));
    waiting = row;
    now = 1 - now;
  }
  for (int64_t i = 0; waiting >= 0 && i < shape.chunks; ++i) {
    job.Chunk(1, waiting, shape.Chunk(i), states[1 - now], sums[i]);
  }
}

// Runs a pass whose parts are needed no longer when it is over: its frame is gone before that of the last pass.
template <int64_t kRows, TileJob Job>
XENT_NOINLINE void RunTilePass(const Job &job, int pass, int64_t row, int64_t count, uint32_t live,
                               typename Job::Row *states) {
  typename Job::Part parts[kRows];
  job.Tile(pass, row, count, job.call.shape.Chunk(0), states, parts);
  for (int64_t i = 0; i < count; ++i) {
    if ((live >> i & 1) != 0) job.Between(pass, row + i, states[i], &parts[i]);
  }
}

// Runs rows [first, end) of a class-major layout, tile after tile of at most kRows rows. The last pass leaves no parts.
template <TileJob Job, int64_t kRows = kTileRows<Job>>
XENT_NOINLINE void RunTiles(const Job &job, int64_t first, int64_t end, Groups &groups) {
  constexpr int kLast = Job::kPasses - 1;
  typename Job::Row states[kRows];
  for (int64_t row = first, count; row < end; row += count) {
    count = std::min(TileRows(job.call.shape, row, end), kRows);
    uint32_t live = 0;
    for (int64_t i = 0; i < count; ++i) {
      states[i] = {};
      live |= static_cast<uint32_t>(job.Begin(row + i, states[i])) << i;
    }
    if (live == 0) continue;
    for (int pass = 0; pass < kLast; ++pass) RunTilePass<kRows>(job, pass, row, count, live, states);
    job.Tile(kLast, row, count, job.call.shape.Chunk(0), states, nullptr);
    for (int64_t i = 0; i < count; ++i) {
      if ((live >> i & 1) != 0) job.End(row + i, states[i], groups.Of(row + i));
    }
  }
}

// Runs task(i) for each i in [0, n), n <= kMaxTasks, in the plan's floating-point mode. False: the caller's
// parallel_for left one out.
template <class Task>
bool RunTasks(const RowCall &call, int64_t n, const Task &task) {
  struct Shared {
    const Plan &plan;
    const Task &task;
  } shared{call.plan, task};
  return ParallelFor(
      call.exec, call.plan.threads, n,
      [](void *arg, int64_t i) {
        const Shared &s = *static_cast<const Shared *>(arg);
        const FpMode mode(s.plan.subnormals);
        s.task(i);
        if (s.plan.stream) FenceStreams();
      },
      &shared);
}

// Returns the number of groups that the rows of a call make, of which there is at least one.
inline int64_t GroupsOf(const RowCall &call) { return (call.shape.rows - 1) / call.plan.group_rows + 1; }

// Cuts groups of rows into tasks. `slots` is null where no sums are wanted.
template <class RunRange>
bool RunGroupsInTasks(const RowCall &call, const RunRange &run, Totals::Slot *slots) {
  const int64_t rows = call.shape.rows, group_rows = call.plan.group_rows, groups = GroupsOf(call);
  const int64_t group_logits = group_rows > INT64_MAX / call.shape.cols ? INT64_MAX : group_rows * call.shape.cols;
  const int64_t tile_groups = (call.plan.task_rows - 1) / group_rows + 1;
  const int64_t task_groups = std::max({int64_t{1}, kTaskLogits / group_logits, tile_groups});
  return RunTasks(call, (groups - 1) / task_groups + 1, [&](int64_t task) {
    const int64_t end_group = std::min(groups, (task + 1) * task_groups);
    Groups own(group_rows, nullptr, slots);
    run(task * task_groups * group_rows, std::min(rows, end_group * group_rows), own);
  });
}

// The same with the groups' sums, whose memory is a good part of what a thread's stack may take.
template <class RunRange>
XENT_NOINLINE bool SumGroupsInTasks(const RowCall &call, const RunRange &run, Totals *totals) {
  Totals::Slot slots[kMaxTasks] = {};
  const bool complete = RunGroupsInTasks(call, run, slots);
  totals->AddSlots(slots, GroupsOf(call));
  return complete;
}

// Runs run(first row, end row, groups) for one task's rows after the other, each of which is added to groups.Of(row);
// `totals` is null where no sums are wanted. On one thread there is one task, and no scratch for the groups' sums. The
// calling thread has the plan's floating-point mode already. False: the caller's parallel_for left a task out.
template <class RunRange>
bool RunGroups(const RowCall &call, const RunRange &run, Totals *totals) {
  if (totals != nullptr) *totals = {};
  if (call.shape.rows == 0) return true;
  if (call.plan.threads != 1) {
    return totals != nullptr ? SumGroupsInTasks(call, run, totals) : RunGroupsInTasks(call, run, nullptr);
  }
  Groups own(call.plan.group_rows, totals, nullptr);
  run(0, call.shape.rows, own);
  if (call.plan.stream) FenceStreams();
  return true;
}

// Runs at most kMaxTasks rows, each a group of its own, chunk by chunk over the threads.
template <RowJob Job>
XENT_NOINLINE bool RunSplitRows(const Job &job, Totals *totals) {
  constexpr int64_t kSplit = kSplitRows<typename Job::Part>;
  const RowShape &shape = job.call.shape;
  int64_t rows[kSplit];
  typename Job::Row states[kSplit];
  typename Job::Part parts[kSplit][kMaxChunks];
  if (totals != nullptr) *totals = {};
  Groups groups(job.call.plan.group_rows, totals, nullptr);
  for (int64_t next = 0; next < shape.rows;) {
    int64_t count = 0;
    for (; count < kSplit && next < shape.rows; ++next) {
      states[count] = {};
      if (job.Begin(next, states[count])) rows[count++] = next;
    }
    for (int pass = 0; count > 0 && pass < Job::kPasses; ++pass) {
      const auto run_chunk = [&](int64_t task) {
        const int64_t slot = task / shape.chunks, chunk = task % shape.chunks;
        job.Chunk(pass, rows[slot], shape.Chunk(chunk), states[slot], parts[slot][chunk]);
      };
      if (!RunTasks(job.call, count * shape.chunks, run_chunk)) return false;
      for (int64_t i = 0; i < count; ++i) job.Between(pass, rows[i], states[i], parts[i]);
    }
    for (int64_t i = 0; i < count; ++i) job.End(rows[i], states[i], groups.Of(rows[i]));
  }
  return true;
}

// Runs a job. False: the caller's parallel_for left a task out.
template <RowJob Job>
XENT_NOINLINE bool RunRows(const Job &job, Totals *totals) {
  const Plan &plan = job.call.plan;
  if (plan.split == Split::kChunks) return RunSplitRows(job, totals);
  const auto run = [&](int64_t first, int64_t end, Groups &groups) {
    if constexpr (ShortRowsJob<Job>) {
      if (plan.short_rows) return job.RunShortRows(first, end, groups);
    }
    if constexpr (TileJob<Job>) {
      if (plan.path == Path::kPositions) return RunTiles(job, first, end, groups);
    }
    if constexpr (OverlappingJob<Job>) {
      if (plan.overlap) return RunOverlappingRows(job, first, end, groups);
    }
    for (int64_t row = first; row < end; ++row) RunRow(job, row, groups.Of(row));
  };
  return RunGroups(job.call, run, totals);
}

}  // namespace xent::internal
