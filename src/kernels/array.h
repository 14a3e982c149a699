// Array functions of every target. In a floating-point mode that flushes, subnormal numbers count as 0.
#pragma once

#include <cstdint>

namespace xent::internal {

struct ArrayKernels {
  void (*exp_f32)(const float *x, float *y, int64_t n);
  void (*exp_f64)(const double *x, double *y, int64_t n);
  void (*log_f32)(const float *x, float *y, int64_t n);
  void (*log_f64)(const double *x, double *y, int64_t n);
  void (*log1p_f32)(const float *x, float *y, int64_t n);
  void (*log1p_f64)(const double *x, double *y, int64_t n);
};

const ArrayKernels *ArrayKernelsOf(int64_t target);

}  // namespace xent::internal
