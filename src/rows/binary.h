// Binary cross-entropy and the focal loss: elements in memory order.
#pragma once

#include <cstdint>

#include "kernels/binary.h"
#include "rows/call.h"

namespace xent::internal {

struct BinaryCall : LossCall<xent_binary_cross_entropy, xent_binary_cross_entropy_options> {
  int64_t elements;  // given: rows times cols
};

// Prepares the call and runs it. False: the caller's parallel_for left a task out.
bool RunBinary(BinaryCall *call);

}  // namespace xent::internal
