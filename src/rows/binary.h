// Binary cross-entropy and the focal loss: elements in memory order.
#pragma once

#include <cstdint>

#include "kernels/binary.h"
#include "rows/call.h"

namespace xent::internal {

struct BinaryCall {
  // Given, and checked: strides are resolved and inner is at least 1.
  xent_binary_cross_entropy args;
  xent_binary_cross_entropy_options options;
  xent_exec exec;
  int64_t elements;

  bool IsWide() const { return args.input.dtype == XENT_F64; }
};

// Runs the call. False: the caller's parallel_for left a task out.
bool RunBinary(const BinaryCall &call);

}  // namespace xent::internal
