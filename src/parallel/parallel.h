// Runs tasks by the caller's execution policy. Of floating-point modes it knows nothing: each task sets its own.
#pragma once

#include <cstdint>

#include "xent/xent.h"

namespace xent::internal {

inline constexpr int64_t kMaxTasks = 256;

// Returns the threads that a call with this policy would use now: 1 inside an OpenMP region of the caller's and in a
// forked child. Of a caller's pool of unknown size it is assumed that more tasks do no harm.
int32_t Concurrency(const xent_exec &exec);

// Calls task(arg, i) for each i in [0, n), n <= kMaxTasks, and returns when all are done. A task that the caller's
// parallel_for calls twice runs once; false: it left one out.
bool ParallelFor(const xent_exec &exec, int32_t concurrency, int64_t n, xent_task task, void *arg);

}  // namespace xent::internal
