// Streaming stores are seen by other threads only after a fence; a task that has streamed ends with one.
#pragma once

#include "hwy/cache_control.h"

namespace xent::internal {

inline void FenceStreams() { hwy::FlushStream(); }

}  // namespace xent::internal
