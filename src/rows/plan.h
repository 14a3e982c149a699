// How a call is computed. MakePlan is the only place that chooses; everything else reads the plan. A plan depends on
// the call's shape, dtypes, layout, options and outputs, on the threads at hand, and on nothing that a row holds.
#pragma once

#include <cstdint>

#include "numbers/fp_mode.h"
#include "numbers/number.h"
#include "xent/xent.h"

namespace xent::internal {

struct Call;
struct RowFunctionArgs;
struct RowShape;
struct DivergenceCall;
struct BinaryCall;

// Paths are algorithms of their own: which one a row takes defines its bits, so that it follows from layout, dtype and
// options alone, never from outputs, rows or threads.
enum class Path : uint8_t {
  kIndex,      // in the arithmetic type, lanes over the columns of a row
  kGeneral,    // any option, in double lanes, lanes over the columns of a row
  kPositions,  // any option, in double lanes, lanes over adjacent positions of a class-major layout
  kAcross,     // any option, but not float64: lanes over short rows, or over adjacent positions
  kElements,   // binary cross-entropy: elements in memory order
};

// What tasks are made of.
enum class Split : uint8_t { kNone, kRows, kChunks };

// Where a row's exponentials wait for the row's sum.
enum class Keep : uint8_t {
  kNowhere,    // they are computed again
  kOutput,     // in the gradient's (or softmax's) own row
  kWorkspace,  // in the caller's workspace; a task that finds no room there does as without a workspace
};

struct Plan {
  Path path = Path::kIndex;
  Split split = Split::kNone;
  Keep keep = Keep::kNowhere;
  Subnormals subnormals = Subnormals::kFlush;  // the floating-point mode of every task
  bool short_rows = false;                     // kIndex: rows of one block, tiles at once, by kernels/small_rows.h
  bool overlap = false;                        // a row's gradient is written beside the next row's sums
  bool stream = false;                         // gradients (element losses too) are stored past the caches
  bool statistics = false;                     // rows are looked at for their statistics
  int32_t threads = 1;
  int64_t group_rows = 1;  // whose losses are added before the groups are; a function of the number of rows alone
  int64_t task_rows = 1;   // at least so many rows a task, where there are as many
  Factor row_factor{};     // short_rows: u over the denominator, the same for all rows
};

// Below this many logits a call stays on its thread, and no task is smaller.
inline constexpr int64_t kTaskLogits = 32768;
// Outputs from this size on leave the caches before they can be read again.
inline constexpr int64_t kStreamBytes = int64_t{32} << 20;

// The path of a cross-entropy call. It is known before the call is checked to the end: records belong to a path.
Path PathOf(const xent_cross_entropy &args, const xent_cross_entropy_options &options);
// The same of a row in slices, whose columns are not all at hand.
Path ShardPathOf(const xent_cross_entropy &args, const xent_cross_entropy_options &options);
// Whether a record's kind is one that a path leaves.
bool LeavesRecord(Path path, uint8_t kind);

Plan MakePlan(const Call &call);
// Softmax and its like; `overlap`: whether the function keeps exponentials in its output; `across_cols`: the most
// columns of rows that kernels/across.h takes, 0 where it does not take the function or the dtype at all.
Plan MakePlan(const RowShape &shape, const xent_exec &exec, bool overlap, int64_t across_cols = 0);
// The same of a call, whose dtype that kernel may not take, and which may stream.
Plan MakePlan(const RowFunctionArgs &args, bool overlap, int64_t across_cols);
Plan MakePlan(const DivergenceCall &call);
Plan MakePlan(const BinaryCall &call);
// A slice of a vocabulary, in pieces of chunks.
Plan MakeShardPlan(const Call &call, int64_t slice_cols);

}  // namespace xent::internal
