// Up to kTile short rows with index targets at once: what a row costs beside its columns (the target's exponential, the
// logarithm, the factors of its gradient) is done with lanes over rows, and so are the columns where they are few.
// Same bits as one row after the other.
#ifndef XENT_SRC_KERNELS_SMALL_ROWS_H_
#define XENT_SRC_KERNELS_SMALL_ROWS_H_

#include <cstdint>

#include "kernels/row.h"
#include "numbers/number.h"

namespace xent::internal {

// One chunk and one block.
inline constexpr int64_t kMaxSmallCols = kBlock;
// Up to here lanes run over rows throughout.
inline constexpr int64_t kMaxTransposedCols = 32;

// Rows that follow each other.
struct SmallRowsTask {
  int64_t cols;
  int64_t count;
  uint32_t live;  // bit i: row i counts; the others' logits are not read, their targets are 0
  const void *logits;
  int64_t logits_stride;
  void *gradient;  // may be the logits; null: not wanted
  int64_t gradient_stride;
  int64_t targets[kTile];
  bool wants_lse;
  Factor g;  // of the gradient g (p - y), as PrepareIndexGradient has it
};

struct SmallRows {
  // Bit i: row i is done. The memory of the other live rows is as it was; they have to be computed row by row.
  uint32_t done;
  // log sum of the others relative to the target; both of these rounded to float32.
  double nll[kTile];
  float loss[kTile], lse[kTile];
  // mantissa in [1, 2) (0: none) and exponent, of the others' sum and of the target's exponential
  double others[kTile], others_reference[kTile], target[kTile], target_reference[kTile];
};

// What leaves room for the other factors of a gradient.
inline bool IsTame(const Factor &g) {
  return g.mantissa != 0.0 && g.exponent >= -200 && g.exponent <= Format<float>::kBias - 2;
}

struct SmallRowsKernels {
  // By dtype; null: float64, which finishes its rows in wider numbers.
  void (*run[kDtypes])(const SmallRowsTask &, SmallRows *);
};
const SmallRowsKernels *SmallRowsKernelsOf(int64_t target);

}  // namespace xent::internal
#endif  // XENT_SRC_KERNELS_SMALL_ROWS_H_
