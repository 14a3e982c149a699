// The best scalar baseline that plain C++ gave, written so that a compiler without -ffast-math can vectorise it: inner
// loops of independent lanes, no calls, no branches, a row's exponentials computed once.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "bench/baselines.h"

namespace xent_bench {
namespace {

// With 16, g++ unrolls the inner loop and keeps the lanes in memory: maxima take four times as long on a Zen 5.
constexpr int64_t kLanes = 32;
// Logits that are read twice in a row, 8 KB, so that the second time they come from L1.
constexpr int64_t kBlock = 2048;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline int32_t Bits(float x) { return std::bit_cast<int32_t>(x); }
inline float FromBits(int32_t bits) { return std::bit_cast<float>(bits); }

// c ? a : b by masks. From a conditional expression g++ makes a branch, and then no vectors: 3 ns a logit instead of
// 0.8 on a Zen 5.
inline float Select(bool c, float a, float b) {
  const int32_t mask = -static_cast<int32_t>(c);
  return FromBits((Bits(a) & mask) | (Bits(b) & ~mask));
}

// The magic number 1.5 * 2^23: added to a small number, it leaves the nearest integer in the low bits.
constexpr float kMagic = 12582912.0f;

// exp(x) = 2^n * p for n = shifted - kMagic: ln 2 in two parts (Cody and Waite), Cephes' polynomial for expf
// (Moshier 1992).
inline float ExpMantissa(float x, float shifted) {
  const float n = shifted - kMagic;
  const float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  return p * (f * f) + f + 1.0f;
}

// exp(x) for x <= 0, about 2 ULP; 0 below -87.
inline float FastExpOfNegative(float x) {
  const bool tiny = x < -87.0f;
  const float clamped = Select(tiny, -87.0f, x);
  const float shifted = clamped * 1.44269504f + kMagic;
  const float scale = FromBits((Bits(shifted) - Bits(kMagic) + 127) << 23);
  return Select(tiny, 0.0f, ExpMantissa(clamped, shifted) * scale);
}

// exp(x), about 2 ULP; 0 below -87.33, +inf above 88.72. Half of the exponent goes into each of two factors, for 2^128
// is no float32.
inline float FastExp(float x) {
  const bool tiny = x < -87.33f;
  const bool huge = x > 88.72f;
  const float clamped = Select(tiny, -87.33f, Select(huge, 88.72f, x));
  const float shifted = clamped * 1.44269504f + kMagic;
  const int32_t n = Bits(shifted) - Bits(kMagic);
  const int32_t half = n >> 1;
  const float y = ExpMantissa(clamped, shifted) * FromBits((half + 127) << 23) * FromBits((n - half + 127) << 23);
  return Select(tiny, 0.0f, Select(huge, kInfinity, y));
}

// log(x) of a normal x > 0, about 2 ULP: x = 2^n * (1 + f) with 1 + f from sqrt(1/2) to sqrt(2); Cephes' polynomial
// for logf.
inline float FastLog(float x) {
  const int32_t n = (Bits(x) - 0x3f3504f3) >> 23;
  const float f = FromBits(Bits(x) - (n << 23)) - 1.0f;
  const float e = static_cast<float>(n);
  const float square = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float y = p * f * square + e * -2.12194440e-4f - 0.5f * square;
  return f + y + e * 0.693359375f;
}

// log(1 + x): log(u), u = 1 + x rounded, and what the rounding lost divided by u.
inline float FastLog1p(float x) {
  const float u = 1.0f + x;
  const float lost = x - (u - 1.0f);
  return FastLog(u) + lost / u;
}

float Max(const float *z, int64_t n) {
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, -kInfinity);
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] = lanes[k] < z[j + k] ? z[j + k] : lanes[k];
  }
  float m = *std::max_element(lanes, lanes + kLanes);
  for (; j < n; ++j) m = m < z[j] ? z[j] : m;
  return m;
}

float Total(const float *lanes) {
  float sum = 0;
  for (int64_t k = 0; k < kLanes; ++k) sum += lanes[k];
  return sum;
}

float SumExp(const float *z, int64_t n, float m) {
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] += FastExpOfNegative(z[j + k] - m);
  }
  float sum = Total(lanes);
  for (; j < n; ++j) sum += FastExpOfNegative(z[j] - m);
  return sum;
}

float StoreExp(const float *z, int64_t n, float m, float *y) {
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) {
      const float e = FastExpOfNegative(z[j + k] - m);
      y[j + k] = e;
      lanes[k] += e;
    }
  }
  float sum = Total(lanes);
  for (; j < n; ++j) {
    y[j] = FastExpOfNegative(z[j] - m);
    sum += y[j];
  }
  return sum;
}

// The running maximum m of a row and sum = sum_j exp(z_j - m) (Milakov and Gimelshein 2018), a block at a time.
struct Normalizer {
  float m = -kInfinity;
  float sum = 0;

  // Takes in a block's maximum; false where there is still no finite logit, and nothing to sum.
  bool Raise(float block_max) {
    if (block_max > m) {
      sum *= m == -kInfinity ? 0.0f : FastExpOfNegative(m - block_max);
      m = block_max;
    }
    return m != -kInfinity;
  }
  float Lse() const { return m + std::log(sum); }
};

float LogSumExp(const float *z, int64_t cols) {
  Normalizer row;
  for (int64_t begin = 0; begin < cols; begin += kBlock) {
    const int64_t n = std::min(kBlock, cols - begin);
    if (row.Raise(Max(z + begin, n))) row.sum += SumExp(z + begin, n, row.m);
  }
  return row.Lse();
}

// y[j] = factor * exp(z[j] - lse), lse the value returned: exponentials relative to the maximum so far are stored,
// then each block is scaled to the last maximum and the sum, while the row is in L2.
float ScaledSoftmax(const float *z, int64_t cols, float factor, float *y) {
  constexpr int64_t kMaxBlocks = 512;
  float references[kMaxBlocks];
  const int64_t block = std::max(kBlock, (cols + kMaxBlocks - 1) / kMaxBlocks);
  Normalizer row;
  for (int64_t begin = 0; begin < cols; begin += block) {
    const int64_t n = std::min(block, cols - begin);
    if (row.Raise(Max(z + begin, n))) {
      row.sum += StoreExp(z + begin, n, row.m, y + begin);
    } else {
      std::fill_n(y + begin, n, 0.0f);
    }
    references[begin / block] = row.m;
  }
  const float inverse = factor / row.sum;
  for (int64_t begin = 0; begin < cols; begin += block) {
    const int64_t end = std::min(begin + block, cols);
    const float scale = inverse * FastExpOfNegative(references[begin / block] - row.m);
    for (int64_t j = begin; j < end; ++j) y[j] *= scale;
  }
  return row.Lse();
}

float Loss(const float *z, int64_t cols, int64_t target) { return LogSumExp(z, cols) - z[target]; }

float LossAndGradient(const float *z, int64_t cols, int64_t target, float scale, float *grad) {
  const float of_target = z[target];
  const float lse = ScaledSoftmax(z, cols, scale, grad);
  grad[target] -= scale;
  return lse - of_target;
}

void Gradient(const float *z, int64_t cols, int64_t target, float lse, float scale, float *grad) {
  for (int64_t j = 0; j < cols; ++j) grad[j] = scale * FastExpOfNegative(z[j] - lse);
  grad[target] -= scale;
}

void Softmax(const float *z, int64_t cols, float *y) { ScaledSoftmax(z, cols, 1, y); }

void LogSoftmax(const float *z, int64_t cols, float *y) {
  const float lse = LogSumExp(z, cols);
  for (int64_t j = 0; j < cols; ++j) y[j] = z[j] - lse;
}

void SoftmaxBackward(const float *g, const float *y, int64_t cols, float *dx) {
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] += g[j + k] * y[j + k];
  }
  float dot = Total(lanes);
  for (; j < cols; ++j) dot += g[j] * y[j];
  for (j = 0; j < cols; ++j) dx[j] = y[j] * (g[j] - dot);
}

void LogSoftmaxBackward(const float *g, const float *y, int64_t cols, float *dx) {
  float lanes[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] += g[j + k];
  }
  float sum = Total(lanes);
  for (; j < cols; ++j) sum += g[j];
  for (j = 0; j < cols; ++j) dx[j] = g[j] - FastExpOfNegative(y[j]) * sum;
}

bool IsProbabilities(const float *x, int64_t cols) {
  float sums[kLanes] = {};
  int32_t outside[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) {
      sums[k] += x[j + k];
      outside[k] |= !(x[j + k] >= 0) | !(x[j + k] <= 1);
    }
  }
  float sum = Total(sums);
  int32_t any = 0;
  for (int64_t k = 0; k < kLanes; ++k) any |= outside[k];
  for (; j < cols; ++j) {
    sum += x[j];
    any |= !(x[j] >= 0) | !(x[j] <= 1);
  }
  return any == 0 && std::fabs(sum - 1) <= 1e-3f;
}

float Mean(const float *x, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] += static_cast<double>(x[i + k]);
  }
  double sum = 0;
  for (int64_t k = 0; k < kLanes; ++k) sum += lanes[k];
  for (; i < n; ++i) sum += x[i];
  return static_cast<float>(sum / static_cast<double>(n));
}

void Exp(const float *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = FastExp(x[i]);
}
void Log(const float *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = FastLog(x[i]);
}
void Log1p(const float *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = FastLog1p(x[i]);
}

}  // namespace

const Baseline &Scalar() {
  static constexpr Baseline kScalar = {.loss = Loss,
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
  return kScalar;
}

}  // namespace xent_bench
