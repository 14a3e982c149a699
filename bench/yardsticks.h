// What this machine can do at best with a buffer: read it, copy it, overwrite it. Every benchmark is reported as a
// multiple of these, measured in the same run on the same bytes with as many threads. They are built on Highway for
// every SIMD target and run on the best one that the processor has, whatever XENT_MAX_TARGET says.
#ifndef XENT_BENCH_YARDSTICKS_H_
#define XENT_BENCH_YARDSTICKS_H_

#include <cstdint>

#include "xent/xent.h"

namespace xent_bench {

// Returns Highway's name of the target that the yardsticks run on.
const char *YardstickTarget();

// Returns max x[i] over i in [0, n), n > 0; no x is a NaN. Beyond the read it costs one maximum a vector.
double Maximum(xent_dtype dtype, const void *x, int64_t n);

// Copies with streaming stores, which do not read the line they write (on Arm: ordinary ones). `to` is aligned to 64
// bytes. Ends with the fence that streaming stores need.
void StreamCopy(const void *from, void *to, int64_t bytes);

// Computes x[i] = -x[i]: reads and writes the same bytes, as a gradient over its logits does. A benchmark can apply the
// factor -1 any number of times.
void ScaleInPlace(xent_dtype dtype, void *x, int64_t n);

}  // namespace xent_bench

#endif  // XENT_BENCH_YARDSTICKS_H_
