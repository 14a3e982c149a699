#include "rows/plan.h"

#include <algorithm>
#include <bit>

#include "kernels/across.h"
#include "kernels/small_rows.h"
#include "numbers/elements.h"
#include "parallel/parallel.h"
#include "rows/binary.h"
#include "rows/call.h"
#include "rows/divergence.h"
#include "rows/record.h"
#include "rows/row_functions.h"
#include "rows/statistics.h"

namespace xent::internal {
namespace {

// Small work stays on the calling thread.
int32_t ThreadsFor(int64_t rows, int64_t cols, const xent_exec &exec) {
  return rows <= kTaskLogits / cols ? 1 : Concurrency(exec);
}

// Rows over threads; chunks where the path can and rows are fewer than threads.
void SetSplit(const RowShape &shape, const xent_exec &exec, Plan *plan) {
  const bool positions = plan->path == Path::kPositions || plan->path == Path::kAcross;
  plan->threads = ThreadsFor(shape.rows, shape.cols, exec);
  plan->group_rows = RowsPerGroup(shape.rows);
  if (positions) plan->task_rows = kTile;  // whole tiles
  if (plan->threads == 1) return;
  const bool few = shape.rows < plan->threads && shape.chunks > 1 && shape.rows <= kMaxTasks;
  plan->split = few && !positions ? Split::kChunks : Split::kRows;
}

// Elements in groups of whole steps, not so short that the calls of a kernel count.
int64_t ElementsPerGroup(int64_t elements) {
  constexpr int64_t kShortest = 2048;
  return std::max(kShortest, (RowsPerGroup(elements) + kStep - 1) / kStep * kStep);
}

// Whether the rows of the index path are so short and the call so simple that kernels/small_rows.h takes them.
bool TakesShortRows(const Call &call, bool statistics, Factor *g) {
  const int32_t dtype = call.args.logits.dtype;
  const int64_t cols = call.shape.cols;
  if (dtype == XENT_F64 || cols > kMaxSmallCols || call.mode == Mode::kBackward || statistics ||
      call.shares.other != 0.0 || call.options.z_loss != 0.0 || call.args.class_weights != nullptr ||
      call.args.row_weights != nullptr) {
    return false;
  }
  if (call.args.grad.data == nullptr) return true;
  const xent_upstream &upstream = call.args.upstream;
  const bool one_upstream = upstream.data == nullptr || upstream.kind == XENT_UPSTREAM_SCALAR;
  return one_upstream && dtype == XENT_F32 && call.FillOf(0, false, g) == Fill::kCompute && IsTame(*g);
}

// Whether outputs are stored past the caches. Rows side by side do so class-major alone, and as whole cache lines, if
// those of all columns are aligned alike.
bool Streams(const xent_matrix &in, const xent_matrix &out, const RowShape &shape, Path path) {
  if (path == Path::kPositions || out.data == nullptr || out.data == in.data) return false;
  const bool lines = shape.inner > 1 && out.dtype == XENT_F32 && shape.inner % kTile == 0 && out.stride % kTile == 0;
  const int64_t row_bytes = shape.cols * static_cast<int64_t>(ElementSize(out.dtype));
  if (path == Path::kAcross) return lines && shape.rows > kStreamBytes / 8 / row_bytes;
  return shape.rows > kStreamBytes / row_bytes;
}

// What follows from the path of a call.
Plan StartPlan(const Call &call, Path path) {
  Plan plan;
  plan.path = path;
  plan.stream = Streams(call.args.logits, call.args.grad, call.shape, path);
  if (path == Path::kGeneral || path == Path::kPositions) plan.subnormals = Subnormals::kKeep;
  return plan;
}

// By its bits: a subnormal lambda is one in every floating-point mode, since a path is asked for in two.
bool HasZLoss(const xent_cross_entropy_options &options) { return std::bit_cast<uint64_t>(options.z_loss) << 1 != 0; }

// Where the exponentials of the index path wait. Half precision would be rounded twice in its own output.
Keep KeepFor(const Call &call, bool overlap) {
  if (call.mode != Mode::kForwardBackward || call.args.grad.data == nullptr) return Keep::kNowhere;
  const bool half = ElementSize(call.args.logits.dtype) == 2;
  if (overlap && call.workspace.HasRoom() && (half || !call.InPlace())) return Keep::kWorkspace;
  return half ? Keep::kNowhere : Keep::kOutput;
}

}  // namespace

Path PathOf(const xent_cross_entropy &args, const xent_cross_entropy_options &options) {
  const bool wide =
      args.logits.dtype == XENT_F64 || (args.target_probs.data != nullptr && args.target_probs.dtype == XENT_F64);
  const int64_t cols = options.valid_cols != 0 ? options.valid_cols : args.cols;
  // Lanes count columns in 32 bits.
  if (args.inner > 1) return wide || cols > INT32_MAX ? Path::kPositions : Path::kAcross;
  const Path along = ShardPathOf(args, options);
  const bool plain = options.label_smoothing == 0.0 && !HasZLoss(options) && args.class_weights == nullptr;
  const int64_t most = along == Path::kGeneral ? kMaxAcrossGeneralCols : plain ? kMaxAcrossCols : kMaxAcrossIndexCols;
  return !wide && cols <= most ? Path::kAcross : along;
}

Path ShardPathOf(const xent_cross_entropy &args, const xent_cross_entropy_options &options) {
  const bool smoothed = options.label_smoothing > 0.0;
  const bool general = args.targets.data == nullptr || options.softcap > 0.0 || options.logit_scale != 1.0 ||
                       (smoothed && (args.class_weights != nullptr || HasZLoss(options)));
  return general ? Path::kGeneral : Path::kIndex;
}

bool LeavesRecord(Path path, uint8_t kind) {
  if (path == Path::kIndex) return kind == Record::kIndex;
  return kind == Record::kGeneral || (path == Path::kAcross && kind == Record::kAcross);
}

Plan MakePlan(const Call &call) {
  Plan plan = StartPlan(call, PathOf(call.args, call.options));
  plan.statistics = NeedLook(call.statistics);
  SetSplit(call.shape, call.exec, &plan);
  if (plan.path != Path::kIndex) return plan;
  if (plan.split != Split::kChunks) {
    plan.short_rows = TakesShortRows(call, plan.statistics, &plan.row_factor);
    plan.overlap = !plan.short_rows && call.mode == Mode::kForwardBackward && call.args.grad.data != nullptr &&
                   call.shape.rows > 1;
  }
  plan.keep = KeepFor(call, plan.overlap);
  return plan;
}

Plan MakePlan(const RowShape &shape, const xent_exec &exec, bool overlap, int64_t across_cols) {
  Plan plan;
  plan.path = shape.inner > 1 ? Path::kPositions : Path::kIndex;
  if (across_cols > 0 && (shape.inner > 1 || shape.cols <= across_cols)) plan.path = Path::kAcross;
  SetSplit(shape, exec, &plan);
  if (plan.path == Path::kAcross) return plan;
  if (plan.path == Path::kPositions) {
    plan.subnormals = Subnormals::kKeep;
    return plan;
  }
  plan.overlap = overlap && plan.split != Split::kChunks && shape.rows > 1;
  plan.keep = overlap ? Keep::kOutput : Keep::kNowhere;
  return plan;
}

Plan MakePlan(const RowFunctionArgs &args, bool overlap, int64_t across_cols) {
  const RowShape shape(args.rows, args.cols, args.inner);
  Plan plan = MakePlan(shape, args.exec, overlap, args.in.dtype == XENT_F64 ? 0 : across_cols);
  plan.stream = args.out.data != args.g.data && Streams(args.in, args.out, shape, plan.path);
  return plan;
}

Plan MakePlan(const DivergenceCall &call) {
  Plan plan;
  const bool positions = call.args.inner > 1, across = positions || call.shape.cols <= kMaxAcrossGeneralCols;
  plan.path = call.float_lanes && across ? Path::kAcross : positions ? Path::kPositions : Path::kGeneral;
  plan.stream = call.float_lanes && Streams(call.args.student, call.args.grad, call.shape, plan.path);
  SetSplit(call.shape, call.exec, &plan);
  return plan;
}

Plan MakePlan(const BinaryCall &call) {
  Plan plan;
  plan.path = Path::kElements;
  plan.subnormals = Subnormals::kKeep;  // subnormal inputs may meet huge factors
  plan.threads = ThreadsFor(call.elements, 1, call.exec);
  plan.group_rows = ElementsPerGroup(call.elements);
  if (plan.threads != 1) plan.split = Split::kRows;
  plan.stream = call.elements >= kStreamBytes / static_cast<int64_t>(sizeof(float));
  return plan;
}

Plan MakeShardPlan(const Call &call, int64_t slice_cols) {
  Plan plan = StartPlan(call, ShardPathOf(call.args, call.options));
  plan.group_rows = RowsPerGroup(call.shape.rows);
  plan.threads = ThreadsFor(call.args.rows, std::max<int64_t>(1, slice_cols), call.exec);
  plan.split = plan.threads == 1 ? Split::kNone : Split::kChunks;
  return plan;
}

}  // namespace xent::internal
