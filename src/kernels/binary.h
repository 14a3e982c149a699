// What the binary cross-entropy kernels of every SIMD target have in common: the work they are given. No SIMD type
// here.
//
// Elements are independent of each other, so neither lanes nor steps define their bits; only the sum of the losses has
// an order. The elements of a call are counted through in memory order: lines of adjacent ones, one after the other.
#ifndef XENT_SRC_KERNELS_BINARY_H_
#define XENT_SRC_KERNELS_BINARY_H_

#include <cstdint>

#include "kernels/row.h"
#include "numbers/number.h"

namespace xent::internal {

// Row-major, a line is a row: `length` columns. With the class dimension in the middle it is one class of one block:
// `length` positions, and a block has `lines` of them.
struct BinaryLayout {
  int64_t length;
  int64_t lines;  // of a block, `stride` apart from the next; row-major 1
  bool inner;

  int64_t Offset(int64_t line, int64_t stride) const { return line / lines * stride + line % lines * length; }
};

template <class Pointer>
struct BinaryMatrix {
  Pointer data;  // null: absent
  int64_t stride;
};

enum class BinaryUpstream { kOne, kScalar, kRows, kElements };

struct BinaryTask {
  BinaryLayout layout;
  Dtype dtype, targets_dtype;
  BinaryMatrix<const void *> input, targets;
  const void *pos_weight, *class_weights, *row_weights;  // of the arithmetic type, as what follows; null: 1
  BinaryMatrix<const void *> element_weights, upstream;
  BinaryUpstream upstream_kind;
  BinaryMatrix<void *> losses, grad, target_grad;
  bool sum;            // whether the losses are to be summed
  bool probabilities;  // the input is p, not z
  bool focal, has_alpha;
  double gamma, alpha;
  Factor denominator;  // of the gradients
  bool large;          // outputs are too large for the caches
};

// Elements [begin, end); the sum of their losses as stored.
using BinaryFunction = Wide (*)(const BinaryTask &, int64_t begin, int64_t end);
struct BinaryKernels {
  BinaryFunction run[2];  // float32 and float64 arithmetic
};

const BinaryKernels *BinaryKernelsOf(int64_t target);

// One element of the focal loss in double-double, for float64: gamma log q needs more digits than a double has.
struct FocalElement {
  double z, y, pos_weight;
  double weights[3];
  double upstream;
};
struct FocalResult {
  double loss, grad, target_grad;
};
FocalResult WideFocal(const FocalElement &element, const BinaryTask &task);

}  // namespace xent::internal
#endif  // XENT_SRC_KERNELS_BINARY_H_
