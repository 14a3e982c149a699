// The OpenMP runtime, known to openmp.cc alone.
#pragma once

#include <cstdint>

#include "xent/xent.h"

namespace xent::internal {

// Threads that a region would have by default; 1 inside a parallel region, in a forked child, and without OpenMP.
int32_t OpenMpThreads();
// A region of `threads` may be started here.
bool OpenMpUsable();
void OpenMpFor(int32_t threads, int64_t n, xent_task task, void *arg);

}  // namespace xent::internal
