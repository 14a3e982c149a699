// The scalar baselines, float32, one thread. `Naive()` has the textbook's loops with std::exp. `Scalar()` is the best
// that plain C++ gave: no intrinsics, no -ffast-math, blocks that stay in L1, many independent sums, and polynomials
// that the compiler turns into the vectors of its default target.
#ifndef XENT_BENCH_BASELINES_H_
#define XENT_BENCH_BASELINES_H_

#include <cstdint>

namespace xent_bench {

// Functions of one row, or of one array.
struct Baseline {
  // Returns lse - z[target].
  float (*loss)(const float *z, int64_t cols, int64_t target);
  // Returns the same and writes grad[j] = scale * (p_j - [j is target]). grad may be z.
  float (*loss_and_gradient)(const float *z, int64_t cols, int64_t target, float scale, float *grad);
  // Writes the gradient alone, from the lse that a forward pass has kept.
  void (*gradient)(const float *z, int64_t cols, int64_t target, float lse, float scale, float *grad);
  float (*log_sum_exp)(const float *z, int64_t cols);
  void (*softmax)(const float *z, int64_t cols, float *y);
  void (*log_softmax)(const float *z, int64_t cols, float *y);
  void (*softmax_backward)(const float *g, const float *y, int64_t cols, float *dx);
  void (*log_softmax_backward)(const float *g, const float *y, int64_t cols, float *dx);
  // Returns whether every value is in [0, 1] and their sum within 1e-3 of 1.
  bool (*is_probabilities)(const float *x, int64_t cols);
  float (*mean)(const float *x, int64_t n);
  void (*exp)(const float *x, float *y, int64_t n);
  void (*log)(const float *x, float *y, int64_t n);
  void (*log1p)(const float *x, float *y, int64_t n);
};

const Baseline &Naive();
const Baseline &Scalar();

}  // namespace xent_bench

#endif  // XENT_BENCH_BASELINES_H_
