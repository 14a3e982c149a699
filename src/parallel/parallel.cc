#include "parallel/parallel.h"

#include <atomic>

#include "numbers/fp_mode.h"
#include "parallel/openmp.h"

namespace xent::internal {
namespace {

// One call's tasks; those of a caller's pool are ticked off.
struct Job {
  xent_task task;
  void *arg;
  int64_t n;
  std::atomic<uint64_t> done[kMaxTasks / 64];
};

void RunTask(void *arg, int64_t i) {
  const Job &job = *static_cast<const Job *>(arg);
  const FpMode mode(Subnormals::kFlush);
  job.task(job.arg, i);
}

void RunTaskOnce(void *arg, int64_t i) {
  Job &job = *static_cast<Job *>(arg);
  if (i < 0 || i >= job.n) return;
  const uint64_t bit = uint64_t{1} << (i % 64);
  if ((job.done[i / 64].fetch_or(bit, std::memory_order_acq_rel) & bit) == 0) RunTask(arg, i);
}

}  // namespace

int32_t Concurrency(const xent_exec &exec) {
  switch (exec.mode) {
    case XENT_EXEC_SERIAL:
      return 1;
    case XENT_EXEC_CALLER:
      return exec.threads > 0 ? exec.threads : 64;
    default:
      if (exec.threads == 0) return OpenMpThreads();
      return OpenMpUsable() ? exec.threads : 1;
  }
}

bool ParallelFor(const xent_exec &exec, int32_t concurrency, int64_t n, xent_task task, void *arg) {
  if (n <= 1 || (exec.mode != XENT_EXEC_CALLER && concurrency <= 1)) {
    for (int64_t i = 0; i < n; ++i) task(arg, i);  // in the mode that the caller has set
    return true;
  }
  Job job{task, arg, n, {}};
  if (exec.mode == XENT_EXEC_CALLER) {
    exec.parallel_for(exec.ctx, n, RunTaskOnce, &job);
    int64_t done = 0;
    for (const auto &word : job.done) done += __builtin_popcountll(word.load(std::memory_order_acquire));
    return done == n;
  }
  OpenMpFor(concurrency < n ? concurrency : static_cast<int32_t>(n), n, RunTask, &job);
  return true;
}

}  // namespace xent::internal
