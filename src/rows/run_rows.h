// Cuts the rows of a call into tasks and runs a job over them: rows over threads, or, where rows are fewer than
// threads, the chunks inside rows. A job goes over each row in passes; a pass visits the row's chunks, in any order,
// and is followed by a step for the row as a whole.
//
//   struct Job {
//     static constexpr int kPasses;
//     using Part = ...;                                          // what a pass leaves of a chunk: ChunkSum or another
//     using Sums = Totals or NoTotals;
//     struct Row;                                                // what a row's passes share
//     bool Begin(int64_t row, Row &) const;                      // false: the row is finished
//     void Chunk(int pass, int64_t row, int64_t chunk, Row &, Part &) const;
//     void Between(int pass, int64_t row, Row &, const Part *) const;
//     void End(int64_t row, const Row &, Sums &) const;
//   };
//
// A job may also say how its second pass over one row runs beside the first over the next: RunOverlappingRows.
#ifndef XENT_SRC_ROWS_RUN_ROWS_H_
#define XENT_SRC_ROWS_RUN_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <memory>

#include "hwy/cache_control.h"
#include "kernels/row.h"
#include "numbers/fp_mode.h"
#include "parallel/parallel.h"
#include "rows/workspace.h"
#include "xent/xent.h"

namespace xent::internal {

// Sums over rows, added up in row order within groups and the groups in order. A slot is what is kept of a group's.
struct Totals {
  Wide loss;
  Wide nll;

  [[gnu::always_inline]] void Add(const Totals &other) {
    loss = AddOrOverflow(loss, other.loss);
    if (other.nll.hi != 0.0) nll = AddOrOverflow(nll, other.nll);
  }
  struct Slot {
    double loss, loss_low, nll;

    void Set(const Totals &t) {
      loss = t.loss.hi;
      loss_low = t.loss.lo;
      nll = t.nll.hi;
    }
    Totals Get() const { return {{loss, loss_low}, {nll, 0.0}}; }
  };
};
struct NoTotals {
  void Add(const NoTotals & /*other*/) {}
  struct Slot {
    void Set(const NoTotals & /*t*/) {}
    NoTotals Get() const { return {}; }
  };
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
// Rows whose chunks are worked on at once where rows are split: as many parts as 6 KB of stack take.
template <class Part>
inline constexpr int64_t kSplitRows = 6144 / (kMaxChunks * sizeof(Part));

template <class Job>
XENT_NOINLINE void RunRow(const Job &job, const RowShape &shape, int64_t row, typename Job::Sums &totals) {
  typename Job::Row state{};
  if (!job.Begin(row, state)) return;
  typename Job::Part sums[kMaxChunks];
  for (int pass = 0; pass < Job::kPasses; ++pass) {
    for (int64_t chunk = 0; chunk < shape.chunks; ++chunk) job.Chunk(pass, row, chunk, state, sums[chunk]);
    job.Between(pass, row, state, sums);
  }
  job.End(row, state, totals);
}

// What a call computes.
enum class Mode { kForward, kForwardBackward, kBackward };

// A group's sums are rounded to what a slot holds, wherever they are added.
template <class Sums>
void AddGroup(const Sums &group, Sums *totals) {
  typename Sums::Slot slot;
  slot.Set(group);
  totals->Add(slot.Get());
}

// A row's or several rows' share of the totals, handed to the group that they belong to, in the order of the rows.
template <class Sums>
class Groups {
 public:
  // To `totals` at once, since groups come in order, or, where that is null, to the groups' slots.
  Groups(int64_t rows, Sums *totals, typename Sums::Slot *slots)
      : group_rows_(RowsPerGroup(rows)), totals_(totals), slots_(slots) {}
  ~Groups() { Flush(); }
  Groups(const Groups &) = delete;
  Groups &operator=(const Groups &) = delete;

  // The sums that `row` is added to.
  Sums &Of(int64_t row) {
    Begin(row);
    exact_ = false;
    return current_;
  }

  // Adds what rows [first, last] come to at once; false, and nothing is added, where that might differ from adding them
  // one by one. `sum` is a multiple of 2^-36 below 2^16, and so is whatever was added before of these: all exact.
  bool AddExactly(int64_t first, int64_t last, double sum) {
    Begin(first);
    if (!exact_ || last >= end_row_) return false;
    current_.loss = Add(current_.loss, {sum, 0.0});
    return true;
  }

 private:
  void Begin(int64_t row) {
    if (row < end_row_) return;
    Flush();
    group_ = row / group_rows_;
    end_row_ = (group_ + 1) * group_rows_;
    exact_ = true;
  }
  void Flush() {
    if (group_ < 0) return;
    if (totals_ != nullptr) {
      AddGroup(current_, totals_);
    } else {
      slots_[group_].Set(current_);
    }
    current_ = {};
  }

  int64_t group_rows_;
  Sums *totals_;
  typename Sums::Slot *slots_;
  Sums current_;
  int64_t group_ = -1, end_row_ = 0;
  bool exact_ = true;  // nothing has been added to `current_` but by AddExactly
};

template <class Sums, class RunRange>
XENT_NOINLINE bool RunGroupsInTasks(const RowShape &shape, int64_t task_rows, const xent_exec &exec,
                                    int32_t concurrency, const RunRange &run, Sums *totals) {
  struct Work {
    const RunRange &run;
    int64_t rows, group_rows, groups, task_groups;
    typename Sums::Slot slots[kMaxTasks];
  };
  const int64_t group_rows = RowsPerGroup(shape.rows);
  const int64_t groups = (shape.rows - 1) / group_rows + 1;
  const int64_t group_logits = group_rows > INT64_MAX / shape.cols ? INT64_MAX : group_rows * shape.cols;
  const int64_t task_groups = std::max({int64_t{1}, kTaskLogits / group_logits, (task_rows - 1) / group_rows + 1});
  Work work{run, shape.rows, group_rows, groups, task_groups, {}};
  const bool complete = ParallelFor(
      exec, concurrency, (groups - 1) / task_groups + 1,
      [](void *arg, int64_t task) {
        Work &w = *static_cast<Work *>(arg);
        const int64_t end_group = std::min(w.groups, (task + 1) * w.task_groups);
        Groups<Sums> own(w.rows, nullptr, w.slots);
        w.run(task * w.task_groups * w.group_rows, std::min(w.rows, end_group * w.group_rows), own);
      },
      &work);
  for (int64_t group = 0; group < groups; ++group) totals->Add(work.slots[group].Get());
  return complete;
}

// run(first row, end row, groups): one task's rows, each added to groups.Of(row). A task has at least `task_rows` rows
// where there are as many. On one thread there is one task, and no scratch for the groups' totals.
template <class Sums, class RunRange>
bool RunGroups(const RowShape &shape, int64_t task_rows, const xent_exec &exec, int32_t concurrency,
               const RunRange &run, Sums *totals) {
  if (concurrency != 1) return RunGroupsInTasks(shape, task_rows, exec, concurrency, run, totals);
  struct Whole {
    const RunRange &run;
    int64_t rows;
    Sums *totals;
  } whole{run, shape.rows, totals};
  return ParallelFor(
      exec, 1, 1,
      [](void *arg, int64_t /*task*/) {
        const Whole &w = *static_cast<const Whole *>(arg);
        Groups<Sums> own(w.rows, w.totals, nullptr);
        w.run(0, w.rows, own);
      },
      &whole);
}

// One row's second pass beside the next one's first: what is arithmetic and what is memory fill each other's gaps. Only
// for jobs of two passes that keep a row's exponentials between them, in a slot of the workspace or where the job says.
template <class Job>
XENT_NOINLINE void RunOverlappingRows(const Job &job, const RowShape &shape, int64_t first, int64_t end,
                                      Groups<typename Job::Sums> &groups) {
  typename Job::Row states[2];
  typename Job::Part sums[kMaxChunks];  // the waiting row's; each chunk's is read before the next row's takes its place
  const Workspace &workspace = job.workspace();
  const Workspace::Slot slot(workspace);
  int64_t waiting = -1;  // the row whose second pass is due
  int now = 0;
  for (int64_t row = first; row < end; ++row) {
    typename Job::Row &state = *std::construct_at(&states[now]);
    if (!job.Begin(row, state)) continue;
    job.KeepIn(slot.data(), state);
    for (int64_t chunk = 0; chunk < shape.chunks; ++chunk) {
      ChunkSum *const sum = &sums[chunk];
      if (waiting < 0) {
        job.Sum(row, chunk, state, nullptr, sum);
      } else {
        job.Rewrite(waiting, chunk, states[1 - now], *sum,
                    [&](const ScaleTask &task) { job.Sum(row, chunk, state, task.cols > 0 ? &task : nullptr, sum); });
      }
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

// Outputs from this size on leave the caches before they can be read again: they are streamed past them.
inline constexpr int64_t kStreamBytes = int64_t{32} << 20;

// Streaming stores are seen by other threads only after a fence: one at the end of each task.
template <class Job>
void Fence(const Job &job) {
  if constexpr (requires { job.Streams(); }) {
    if (job.Streams()) hwy::FlushStream();
  }
}

template <class Job>
bool RunWholeRows(const Job &job, const RowShape &shape, const xent_exec &exec, int32_t concurrency,
                  typename Job::Sums *totals) {
  const auto run = [&](int64_t first, int64_t end, Groups<typename Job::Sums> &groups) {
    if constexpr (requires { job.RunSmall(first, end, groups); }) {
      if (job.RunSmall(first, end, groups)) return;
    }
    if constexpr (requires { job.Overlaps(); }) {
      if (end - first > 1 && job.Overlaps()) {
        RunOverlappingRows(job, shape, first, end, groups);
        return Fence(job);
      }
    }
    for (int64_t row = first; row < end; ++row) RunRow(job, shape, row, groups.Of(row));
    Fence(job);
  };
  return RunGroups(shape, 1, exec, concurrency, run, totals);
}

// For at most kMaxTasks rows, of which each is a group of its own.
template <class Job>
XENT_NOINLINE bool RunSplitRows(const Job &job, const RowShape &shape, const xent_exec &exec, int32_t concurrency,
                                typename Job::Sums *totals) {
  constexpr int64_t kSplit = kSplitRows<typename Job::Part>;
  struct Work {
    const Job &job;
    const RowShape &shape;
    int pass;
    int64_t count;
    int64_t rows[kSplit];
    typename Job::Row states[kSplit];
    typename Job::Part sums[kSplit][kMaxChunks];
  };
  Work work{job, shape, 0, 0, {}, {}, {}};
  const auto run_chunk = [](void *arg, int64_t task) {
    Work &w = *static_cast<Work *>(arg);
    const int64_t slot = task / w.shape.chunks;
    const int64_t chunk = task % w.shape.chunks;
    w.job.Chunk(w.pass, w.rows[slot], chunk, w.states[slot], w.sums[slot][chunk]);
    Fence(w.job);
  };
  for (int64_t next = 0; next < shape.rows;) {
    for (work.count = 0; work.count < kSplit && next < shape.rows; ++next) {
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
      AddGroup(row_total, totals);
    }
  }
  return true;
}

inline int32_t ConcurrencyFor(const RowShape &shape, const xent_exec &exec) {
  return shape.rows <= kTaskLogits / shape.cols ? 1 : Concurrency(exec);
}

// Where rows are not cut; `run` as RunGroups takes it, with tiles of rows inside.
template <class Sums, class RunRange>
bool RunTiled(const RowShape &shape, const xent_exec &exec, const RunRange &run, Sums *totals) {
  *totals = {};
  return shape.rows == 0 || RunGroups(shape, kTile, exec, ConcurrencyFor(shape, exec), run, totals);
}

// False: incomplete. The caller has set the floating-point mode.
template <class Job>
XENT_NOINLINE bool RunRows(const Job &job, const RowShape &shape, const xent_exec &exec, typename Job::Sums *totals) {
  *totals = {};
  if (shape.rows == 0) return true;
  const int32_t concurrency = ConcurrencyFor(shape, exec);
  if (shape.rows < concurrency && shape.chunks > 1 && shape.rows <= kMaxTasks) {
    return RunSplitRows(job, shape, exec, concurrency, totals);
  }
  return RunWholeRows(job, shape, exec, concurrency, totals);
}

}  // namespace xent::internal
#endif  // XENT_SRC_ROWS_RUN_ROWS_H_
