// Cross-entropy over whole rows.
#ifndef XENT_SRC_ROWS_CROSS_ENTROPY_H_
#define XENT_SRC_ROWS_CROSS_ENTROPY_H_

#include "rows/call.h"

namespace xent::internal {

// Prepares the call and runs it. False: the caller's parallel_for left a task out.
bool RunCrossEntropy(Call *call);

}  // namespace xent::internal
#endif  // XENT_SRC_ROWS_CROSS_ENTROPY_H_
