#include "parallel/openmp.h"

#if defined(XENT_HAVE_OPENMP)
#include <omp.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>

#include "parallel/parallel.h"
#endif

namespace xent::internal {

#if defined(XENT_HAVE_OPENMP)
namespace {

// After fork() the child has none of the team's threads, and libgomp would wait for them for ever. Process numbers do
// not tell: in a namespace of its own the child may have its parent's. The C library forgets the handler when the
// object that holds this file is unloaded.
std::atomic<bool> g_forked{false};
const int g_not_told = pthread_atfork(nullptr, nullptr, [] { g_forked.store(true, std::memory_order_relaxed); });

void *PassGate(void *gate) {
  pthread_mutex_lock(static_cast<pthread_mutex_t *>(gate));
  pthread_mutex_unlock(static_cast<pthread_mutex_t *>(gate));
  return nullptr;
}

// Whether the system lets the calling thread have a team of `threads`, itself included. libgomp prints and ends the
// process where it does not, so that this tries the same beforehand: so many threads, all there at once. A calling
// thread has a team of its own, and one that it has had is not tried again.
bool HasTeam(int32_t threads) {
  thread_local int32_t had = 1;
  if (threads <= had) return true;
  const int caller_errno = errno;
  pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
  pthread_t others[kMaxTasks];
  int32_t created = 0;
  pthread_mutex_lock(&gate);
  while (created < threads - 1 && pthread_create(&others[created], nullptr, PassGate, &gate) == 0) ++created;
  pthread_mutex_unlock(&gate);
  for (int32_t i = 0; i < created; ++i) pthread_join(others[i], nullptr);
  errno = caller_errno;
  if (created == threads - 1) had = threads;
  return had == threads;
}

}  // namespace

bool OpenMpUsable() { return omp_in_parallel() == 0 && g_not_told == 0 && !g_forked.load(std::memory_order_relaxed); }
int32_t OpenMpThreads() { return OpenMpUsable() ? omp_get_max_threads() : 1; }
bool OpenMpFor(int32_t threads, int64_t n, xent_task task, void *arg) {
  if (!HasTeam(threads)) return false;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < n; ++i) task(arg, i);
  return true;
}
#else
bool OpenMpUsable() { return false; }
int32_t OpenMpThreads() { return 1; }
bool OpenMpFor(int32_t /*threads*/, int64_t /*n*/, xent_task /*task*/, void * /*arg*/) { return false; }
#endif

}  // namespace xent::internal
