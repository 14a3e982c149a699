// All checks of a cross-entropy call, whole or of a slice of the columns, before its first write.
#pragma once

#include "rows/call.h"
#include "xent/xent.h"

namespace xent::internal {

// What a call is a part of: kWhole is a call over all columns, the others are the steps of a sharded one.
enum class Step { kWhole, kShardForward, kShardCombine, kShardBackward };

// What the caller passed.
struct Given {
  const xent_cross_entropy *args;
  const xent_cross_entropy_options *options;
  const xent_exec *exec;
  const xent_shard *shard = nullptr;  // of kShardForward and kShardBackward
};

// Reads and checks a call; fills the first half of *call, and *shard where it is one's.
xent_status CheckCall(const Given &given, Step step, Mode mode, Call *call, xent_shard *shard, xent_error *error);

// The options that any function over cross-entropies takes; `cols`: of the whole vocabulary.
xent_status CheckOptions(const xent_cross_entropy_options *given, int64_t cols, const void *reduced_loss,
                         xent_cross_entropy_options *options, xent_error *error);

}  // namespace xent::internal
