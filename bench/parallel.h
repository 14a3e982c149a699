// Threads for the yardsticks and for filling buffers. They come from OpenMP, hence from the same team that the library
// uses: a second pool would fight with it for the cores.
#ifndef XENT_BENCH_PARALLEL_H_
#define XENT_BENCH_PARALLEL_H_

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "bench/shapes.h"
#include "xent/xent.h"

namespace xent_bench {

// Returns as many threads as a call of the library takes by default. Without OpenMP that is 1, for the yardsticks could
// not keep up with more.
inline int MaxThreads() {
#ifdef _OPENMP
  return xent_default_threads();
#else
  return 1;
#endif
}

// Returns kManyThreads; 1 without OpenMP.
inline int ManyThreads() {
#ifdef _OPENMP
  return kManyThreads;
#else
  return 1;
#endif
}

// Returns the number of cores that this process may run on.
inline int Cores() {
#ifdef _OPENMP
  return omp_get_num_procs();
#else
  return 1;
#endif
}

// Calls body(begin, end) for consecutive parts of [0, n), one a thread; cuts are multiples of `grain`.
template <class Body>
void ParallelRanges(int threads, int64_t n, int64_t grain, const Body &body) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int64_t team = omp_get_num_threads();
      const int64_t me = omp_get_thread_num();
      const int64_t grains = (n + grain - 1) / grain;
      const int64_t begin = grains * me / team * grain;
      const int64_t end = me + 1 == team ? n : grains * (me + 1) / team * grain;
      if (begin < end) body(begin, end);
    }
    return;
  }
#else
  static_cast<void>(threads);
  static_cast<void>(grain);
#endif
  if (n > 0) body(int64_t{0}, n);
}

}  // namespace xent_bench

#endif  // XENT_BENCH_PARALLEL_H_
