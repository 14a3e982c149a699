// What others offer for the same work, where they are installed: the exponentials of Highway's contrib and of SLEEF,
// and oneDNN's softmax. float32, one thread.
#ifndef XENT_BENCH_PEERS_H_
#define XENT_BENCH_PEERS_H_

#include <cstdint>

#include "bench/operations.h"
#include "bench/problem.h"

namespace xent_bench {

// Returns sum exp(x[j] - max) over j in [0, n), n a multiple of 4 vectors, in four chains: what an exponential costs
// where nothing else is done.
using ExpSum = float (*)(const float *x, int64_t n, float max);
struct ExpSums {
  ExpSum contrib, sleef;
};

// Returns the sum by the exponential of `source`, kContrib or kSleef, on the target that xent runs on; null where the
// source has none.
ExpSum PeerExpSum(Source source);

// oneDNN runs on one thread, with vectors no wider than those of xent.
bool HasOneDnn(Op op);
void RunOneDnn(Op op, const Problem &problem);

}  // namespace xent_bench

#endif  // XENT_BENCH_PEERS_H_
