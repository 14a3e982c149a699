// Runs tasks by the caller's execution policy. Each runs in the floating-point mode that flushes subnormals; who calls
// has set it for the calling thread.
#ifndef XENT_SRC_PARALLEL_PARALLEL_H_
#define XENT_SRC_PARALLEL_PARALLEL_H_

#include <cstdint>

#include "xent/xent.h"

namespace xent::internal {

inline constexpr int64_t kMaxTasks = 256;

// Threads that a call with this policy would use now: 1 inside an OpenMP region of the caller's and in a forked child.
// Of a caller's pool of unknown size it is assumed that more tasks do no harm.
int32_t Concurrency(const xent_exec &exec);

// task(arg, i) for each i in [0, n), n <= kMaxTasks; returns when all are done. False: the caller's parallel_for left
// one out. A task that it calls twice runs once.
bool ParallelFor(const xent_exec &exec, int32_t concurrency, int64_t n, xent_task task, void *arg);

}  // namespace xent::internal
#endif  // XENT_SRC_PARALLEL_PARALLEL_H_
