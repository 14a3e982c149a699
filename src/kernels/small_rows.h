// Up to kTile rows of one block with index targets at once, with the bits of one row after the other. Lanes run over
// rows for what a row costs beside its columns: the target's exponential, the logarithm, the factors of its gradient.
#pragma once

#include <cstdint>

#include "kernels/row.h"
#include "numbers/number.h"

namespace xent::internal {

// Longer rows would have more than one block.
inline constexpr int64_t kMaxSmallCols = kBlock;
// `count` <= kTile rows that follow each other.
struct SmallRowsTask {
  int64_t cols;
  int64_t count;
  uint32_t live;  // bit i: row i counts; of the other rows no logit is read, and their targets are 0
  const void *logits;
  int64_t logits_stride;
  void *gradient;  // may be the logits; null: none is wanted
  int64_t gradient_stride;
  int64_t targets[kTile];
  bool wants_lse;
  Factor g;  // the gradient is g (p - y)
};

struct SmallRows {
  // Bit i: row i is done. The memory of other live rows is as it was; the caller runs them one by one.
  uint32_t done;
  double nll[kTile];              // log1p of the others' sum relative to the target's exponential
  float loss[kTile], lse[kTile];  // rounded; lse only where it is wanted
  // The others' sum and the target's exponential, each a mantissa in [1, 2), 0 if there are none, and an exponent of 2.
  double others[kTile], others_reference[kTile], target[kTile], target_reference[kTile];
};

// Whether g leaves the other factors of a gradient room in float32's range.
inline bool IsTame(const Factor &g) {
  return g.mantissa != 0.0 && g.exponent >= -200 && g.exponent <= Format<float>::kBias - 2;
}

struct SmallRowsKernels {
  // By dtype. Null for float64, which finishes its rows in pairs of doubles.
  void (*run[kDtypes])(const SmallRowsTask &, SmallRows *);
};
const SmallRowsKernels *SmallRowsKernelsOf(int64_t target);

}  // namespace xent::internal
