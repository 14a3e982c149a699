// The OpenMP runtime, known to openmp.cc alone.
#pragma once

#include <cstdint>

#include "xent/xent.h"

namespace xent::internal {

// Threads that a region would have by default; 1 inside a parallel region, in a forked child, and without OpenMP.
int32_t OpenMpThreads();
// A region of `threads` may be started here.
bool OpenMpUsable();
// Calls task(arg, i) for each i in [0, n) in a region of at most kMaxTasks threads. False: nothing was called, since
// the system has no threads for it.
bool OpenMpFor(int32_t threads, int64_t n, xent_task task, void *arg);

}  // namespace xent::internal
