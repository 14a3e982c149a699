// g (p_j - y_j) for the columns of a chunk, from stored exponentials or from the logits again, with the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/row.h"
#include "numbers/compiler.h"
#include "rows/row_sum.h"

namespace xent::internal {

// Fills `cols` columns, which lie `step` apart.
template <class In>
XENT_NOINLINE void FillColumns(In *columns, int64_t cols, double value, int64_t step = 1) {
  const In number = Narrow<In>(static_cast<Arithmetic<In>>(value));
  if (step == 1) return std::fill(columns, columns + cols, number);
  for (int64_t i = 0; i < cols; ++i) columns[i * step] = number;
}

// Float32 and float64 can keep the exponentials in the output; half precision would round them twice.
template <class In>
inline constexpr bool kKeepsExponentials = sizeof(In) == sizeof(Arithmetic<In>);

// out = (g p - shift) 2^lift, the map's scale being each chunk's own.
//
// g is the upstream gradient over the denominator without the lift, a power of two. With a shift (smoothing) a small g
// is lifted, lest one of the products fall below the normal range before they are subtracted. A huge g is brought down
// to 2^(kBias - 2): there the smallest normal number stands for the smallest p that the biased exponentials keep.
template <class T>
struct RowGradient {
  RowSum<T> total;
  Factor g;
  AffineMap map;
};

template <class T>
RowGradient<T> MakeRowGradient(const RowSum<T> &total, Factor g, double others_weight) {
  using F = Format<T>;
  constexpr int64_t kLargest = F::kBias - 2, kSmallest = -F::kBias / 2;
  int64_t lift = 0;
  if (g.exponent > kLargest) lift = g.exponent - kLargest;
  if (others_weight != 0.0 && g.exponent < kSmallest) lift = g.exponent;
  g.exponent -= lift;
  const double shift = Scale(g.mantissa, g.exponent) * others_weight;
  const double threshold = PowerOfTwo(F::kMinExponent - std::min<int64_t>(lift, 0));
  // Beyond twice the range everything is zero or infinite.
  const int64_t reach = 2 * F::kMaxExponent;
  return {total, g, {0.0, shift, threshold, static_cast<int>(std::clamp<int64_t>(lift, -reach, reach))}};
}

template <class In>
void FillWithoutProbability(const AffineMap &map, In *out, int64_t cols) {
  FillColumns(out, cols, Magnitude(map.shift) <= map.threshold ? 0.0 : Scale(-map.shift, map.lift));
}

// Returns what turns a chunk's exponentials into its gradient. Where none of them counts and all columns get one number
// other than 0, it writes that number and returns an empty task. (Zeros are the exponentials times 0: they are written
// as everything is, streamed or beside other work.)
template <class In>
ScaleTask GradientFromExponentials(const RowGradient<Arithmetic<In>> &row, const ChunkSum &chunk,
                                   Arithmetic<In> *exponentials, In *out, int64_t cols) {
  using F = Format<Arithmetic<In>>;
  // Nothing but zeros, whose reference may be far above the row's.
  const Factor factor = chunk.sum.hi == 0.0 ? Factor{} : row.total.FactorOf(row.g, chunk.kind, chunk.reference);
  const int64_t exponent = factor.exponent - F::kBias;
  const bool counts = factor.mantissa != 0.0 && exponent >= F::kSafeExponent - 2 * F::kMaxExponent;
  if (!counts && row.map.shift != 0.0) {
    FillWithoutProbability(row.map, out, cols);
    return {};
  }
  ScaleTask task{exponentials, out, cols, row.map, 0, false};
  if (!counts) return task;
  task.prescale = static_cast<int>(std::min<int64_t>(0, exponent - F::kSafeExponent));
  task.map.scale = Scale(factor.mantissa, exponent - task.prescale);
  return task;
}

// Writes the gradient of a chunk from its logits. The task is complete but for `reference` and `map`, which it gets.
template <class In>
void GradientFromLogits(const RowKernels &kernels, const RowGradient<Arithmetic<In>> &row, GradientTask &task) {
  using F = Format<Arithmetic<In>>;
  const auto fill = [&] { FillWithoutProbability(row.map, static_cast<In *>(task.gradient), task.cols); };
  const bool of_exponent = task.kind == Reference::kExponent;
  if (of_exponent && row.total.logit) return fill();
  // Relative to the row's own reference; it is raised where the factor would come too near the smallest normal number.
  task.reference = of_exponent ? row.total.reference : 0.0;
  const Factor factor = row.total.FactorOf(row.g, task.kind, of_exponent ? task.reference : task.origin);
  const int64_t exponent = factor.exponent - F::kBias;
  const int64_t raise = std::clamp<int64_t>(F::kSafeExponent - exponent, 0, F::kBias);
  if (factor.mantissa == 0.0 || exponent + raise < F::kMinExponent) return fill();
  task.reference += static_cast<double>(raise);
  task.map = {Scale(factor.mantissa, exponent + raise), row.map.shift, row.map.threshold, row.map.lift};
  kernels.gradient[kDtypeOf<In>](task);
}

}  // namespace xent::internal
