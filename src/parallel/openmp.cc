#include "parallel/openmp.h"

#if defined(XENT_HAVE_OPENMP)
#include <omp.h>
#include <unistd.h>
#endif

namespace xent::internal {

#if defined(XENT_HAVE_OPENMP)
// After fork() the child has none of the team's threads, and libgomp would wait for them for ever.
const pid_t g_loaded_in = getpid();
bool OpenMpUsable() { return omp_in_parallel() == 0 && getpid() == g_loaded_in; }
int32_t OpenMpThreads() { return OpenMpUsable() ? omp_get_max_threads() : 1; }
void OpenMpFor(int32_t threads, int64_t n, xent_task task, void *arg) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < n; ++i) task(arg, i);
}
#else
bool OpenMpUsable() { return false; }
int32_t OpenMpThreads() { return 1; }
void OpenMpFor(int32_t /*threads*/, int64_t n, xent_task task, void *arg) {
  for (int64_t i = 0; i < n; ++i) task(arg, i);
}
#endif

}  // namespace xent::internal
