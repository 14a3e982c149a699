// The naive baseline: maximum, exponentials and their sum, division; three loops over the row, std::exp in the middle.
#include <cmath>

#include "bench/baselines.h"

namespace xent_bench {
namespace {

float Max(const float *z, int64_t cols) {
  float m = z[0];
  for (int64_t j = 1; j < cols; ++j) {
    if (z[j] > m) m = z[j];
  }
  return m;
}

float LogSumExp(const float *z, int64_t cols) {
  const float m = Max(z, cols);
  float sum = 0;
  for (int64_t j = 0; j < cols; ++j) sum += std::exp(z[j] - m);
  return m + std::log(sum);
}

float Loss(const float *z, int64_t cols, int64_t target) { return LogSumExp(z, cols) - z[target]; }

float LossAndGradient(const float *z, int64_t cols, int64_t target, float scale, float *grad) {
  const float m = Max(z, cols);
  const float of_target = z[target];
  float sum = 0;
  for (int64_t j = 0; j < cols; ++j) {
    grad[j] = std::exp(z[j] - m);
    sum += grad[j];
  }
  for (int64_t j = 0; j < cols; ++j) grad[j] = scale * (grad[j] / sum - (j == target ? 1.0f : 0.0f));
  return m + std::log(sum) - of_target;
}

void Gradient(const float *z, int64_t cols, int64_t target, float lse, float scale, float *grad) {
  for (int64_t j = 0; j < cols; ++j) grad[j] = scale * (std::exp(z[j] - lse) - (j == target ? 1.0f : 0.0f));
}

void Softmax(const float *z, int64_t cols, float *y) {
  const float m = Max(z, cols);
  float sum = 0;
  for (int64_t j = 0; j < cols; ++j) {
    y[j] = std::exp(z[j] - m);
    sum += y[j];
  }
  for (int64_t j = 0; j < cols; ++j) y[j] /= sum;
}

void LogSoftmax(const float *z, int64_t cols, float *y) {
  const float lse = LogSumExp(z, cols);
  for (int64_t j = 0; j < cols; ++j) y[j] = z[j] - lse;
}

void SoftmaxBackward(const float *g, const float *y, int64_t cols, float *dx) {
  float dot = 0;
  for (int64_t j = 0; j < cols; ++j) dot += g[j] * y[j];
  for (int64_t j = 0; j < cols; ++j) dx[j] = y[j] * (g[j] - dot);
}

void LogSoftmaxBackward(const float *g, const float *y, int64_t cols, float *dx) {
  float sum = 0;
  for (int64_t j = 0; j < cols; ++j) sum += g[j];
  for (int64_t j = 0; j < cols; ++j) dx[j] = g[j] - std::exp(y[j]) * sum;
}

bool IsProbabilities(const float *x, int64_t cols) {
  float sum = 0;
  for (int64_t j = 0; j < cols; ++j) {
    if (!(x[j] >= 0 && x[j] <= 1)) return false;
    sum += x[j];
  }
  return std::fabs(sum - 1) <= 1e-3f;
}

float Mean(const float *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return static_cast<float>(sum / static_cast<double>(n));
}

void Exp(const float *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = std::exp(x[i]);
}
void Log(const float *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = std::log(x[i]);
}
void Log1p(const float *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = std::log1p(x[i]);
}

}  // namespace

const Baseline &Naive() {
  static constexpr Baseline kNaive = {.loss = Loss,
                                      .loss_and_gradient = LossAndGradient,
                                      .gradient = Gradient,
                                      .log_sum_exp = LogSumExp,
                                      .softmax = Softmax,
                                      .log_softmax = LogSoftmax,
                                      .softmax_backward = SoftmaxBackward,
                                      .log_softmax_backward = LogSoftmaxBackward,
                                      .is_probabilities = IsProbabilities,
                                      .mean = Mean,
                                      .exp = Exp,
                                      .log = Log,
                                      .log1p = Log1p};
  return kNaive;
}

}  // namespace xent_bench
