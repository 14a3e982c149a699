#include "parallel/parallel.h"

#include <algorithm>
#include <atomic>

#include "parallel/openmp.h"

namespace xent::internal {
namespace {

// The tasks of a caller's pool, which are ticked off.
struct Ticked {
  xent_task task;
  void *arg;
  int64_t n;
  std::atomic<uint64_t> done[kMaxTasks / 64];
};

void RunTaskOnce(void *arg, int64_t i) {
  Ticked &tasks = *static_cast<Ticked *>(arg);
  if (i < 0 || i >= tasks.n) return;
  const uint64_t bit = uint64_t{1} << (i % 64);
  if ((tasks.done[i / 64].fetch_or(bit, std::memory_order_acq_rel) & bit) == 0) tasks.task(tasks.arg, i);
}

}  // namespace

int32_t Concurrency(const xent_exec &exec) {
  if (exec.parallel_for != nullptr) return exec.threads > 0 ? exec.threads : 64;
  if (exec.threads == 0) return OpenMpThreads();
  return exec.threads > 1 && OpenMpUsable() ? exec.threads : 1;
}

bool ParallelFor(const xent_exec &exec, int32_t concurrency, int64_t n, xent_task task, void *arg) {
  if (n <= 1 || exec.parallel_for == nullptr) {
    const int32_t threads = static_cast<int32_t>(std::min<int64_t>(concurrency, n));
    if (threads > 1 && OpenMpFor(threads, n, task, arg)) return true;
    for (int64_t i = 0; i < n; ++i) task(arg, i);
    return true;
  }
  Ticked tasks{task, arg, n, {}};
  exec.parallel_for(exec.ctx, n, RunTaskOnce, &tasks);
  int64_t done = 0;
  for (const auto &word : tasks.done) done += __builtin_popcountll(word.load(std::memory_order_acquire));
  return done == n;
}

}  // namespace xent::internal
