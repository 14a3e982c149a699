// Work cut into parts, so that memory does not grow with the files and the progress bar moves.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "progress.h"

namespace xent_cli {

// `blocks` blocks of `block_bytes` each, in batches of at most `batch_bytes` (or of one block).
class Batches {
 public:
  Batches(int64_t blocks, size_t block_bytes, size_t batch_bytes = size_t{8} << 20)
      : blocks_(blocks),
        batch_(std::clamp<int64_t>(static_cast<int64_t>(batch_bytes / std::max<size_t>(block_bytes, 1)), 1,
                                   std::max<int64_t>(blocks, 1))) {}

  // Returns the blocks of the largest batch, 0 where there are no blocks.
  int64_t size() const { return std::min(batch_, blocks_); }

  // Calls visit(first, count) for each batch, front to back, until it returns false. Without blocks there is one
  // visit(0, 0), so that the arguments of its call are checked too.
  template <typename Visit>
  void ForEach(Progress &progress, Visit visit) const {
    const auto total = static_cast<double>(std::max<int64_t>(blocks_, 1));
    int64_t first = 0;
    do {
      const int64_t count = std::min(batch_, blocks_ - first);
      progress.SetPart(static_cast<double>(first) / total, static_cast<double>(first + count) / total);
      if (!visit(first, count)) return;
      progress.Update(1);
      first += count;
    } while (first < blocks_);
  }

 private:
  int64_t blocks_, batch_;
};

}  // namespace xent_cli
