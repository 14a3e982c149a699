// What the binary cross-entropy kernels of every SIMD target have in common: the work they are given. No SIMD type
// here.
//
// Elements are independent of each other, so neither lanes nor steps define their bits; only the sum of the losses has
// an order. The elements of a call are counted through in memory order: lines of adjacent ones, one after the other.
#pragma once

#include <cstdint>

#include "kernels/row.h"
#include "numbers/number.h"

namespace xent::internal {

// Row-major, a line is a row: `length` columns. With the class dimension in the middle it is one class of one block:
// `length` positions, and a block has `lines` of them; row-major 1.
struct BinaryLayout {
  int64_t length, lines;
};

// What an element is given, and its results. Factors are of the arithmetic type.
enum BinaryInput { kInput, kTarget, kPosWeight, kElementWeight, kRowWeight, kClassWeight, kUpstream, kBinaryInputs };
enum BinaryOutput { kLoss, kGrad, kTargetGrad, kBinaryOutputs };

// Where an element has one of them: so many numbers apart for the next block, line and position.
struct BinaryOperand {
  void *data;  // null: absent; a factor is 1 then
  Dtype dtype;
  int64_t block, line, position;  // `position`: 0 or 1

  // Whether all elements have it at one distance, `position`, wherever lines end.
  bool IsEven(const BinaryLayout &layout) const {
    return line == layout.length * position && block == layout.lines * line;
  }
  bool IsSame(const BinaryLayout &layout) const { return position == 0 && IsEven(layout); }
};

struct BinaryTask {
  BinaryLayout layout;
  BinaryOperand inputs[kBinaryInputs], outputs[kBinaryOutputs];
  bool sum;            // whether the losses are to be summed
  bool probabilities;  // the input is p, not z
  bool focal;
  double gamma, alpha;  // alpha -1: none
  Factor denominator;   // of the gradients
  Wide inverse;         // of its mantissa
  bool large;           // outputs are too large for the caches

  bool Has(BinaryInput input) const { return inputs[input].data != nullptr; }
  bool Wants(BinaryOutput output) const { return outputs[output].data != nullptr; }
};

// Elements [begin, end); the sum of their losses as stored.
using BinaryFunction = Wide (*)(const BinaryTask &, int64_t begin, int64_t end);
struct BinaryKernels {
  BinaryFunction run[kDtypes];  // by the dtype of the input
};

const BinaryKernels *BinaryKernelsOf(int64_t target);

// Some elements of a task as doubles: what they are given, any numbers past them, and their results. An input that is
// absent is not read.
inline constexpr int64_t kBinaryStep = kLanes;
struct BinaryStep {
  int64_t count = 0;
  // Results stand first: of the last ones that lie side by side in memory a whole vector is read.
  alignas(64) double out[kBinaryOutputs][kBinaryStep], in[kBinaryInputs][kBinaryStep] = {};
};

// Returns the sign of q^gamma for the negative q that y outside [0, 1] may give; NaN where gamma is no integer.
inline double SignOfPower(double gamma) {
  if (gamma >= 0x1p53) return 1.0;
  const int64_t integer = static_cast<int64_t>(gamma);
  return static_cast<double>(integer) != gamma ? kNan : integer % 2 != 0 ? -1.0 : 1.0;
}

// Makes the results of a step of the focal loss in double-double: gamma log q needs more digits than a double has.
void WideFocalStep(const BinaryTask &task, BinaryStep &step);

}  // namespace xent::internal
