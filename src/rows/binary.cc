// Elements in memory order are cut into at most 256 groups, wherever that falls in a row. A group's losses are summed
// on fixed lanes, the groups in order, so that the sum depends on the number of elements and the layout alone.
#include "rows/binary.h"

#include <algorithm>

#include "rows/run_rows.h"

namespace xent::internal {
namespace {

// Not inline: it divides, in the mode that its caller has set.
XENT_NOINLINE BinaryTask TaskOf(const BinaryCall &call) {
  const xent_binary_cross_entropy &args = call.args;
  const xent_upstream &u = args.upstream;
  // One class whose elements are adjacent is one line of positions: else each element would be a line.
  bool adjacent = args.cols == 1 && args.inner <= 1 && (u.kind != XENT_UPSTREAM_ELEMENTS || u.stride == 1);
  for (const xent_matrix *m :
       {&args.input, &args.targets, &args.element_weights, &args.element_losses, &args.grad, &args.target_grad}) {
    adjacent = adjacent && (m->data == nullptr || m->stride == 1);
  }
  const int64_t positions = args.inner > 1 ? args.inner : adjacent ? args.rows : 1;
  const bool inner = positions > 1;
  const BinaryLayout layout = inner ? BinaryLayout{positions, args.cols} : BinaryLayout{args.cols, 1};
  const Dtype arithmetic = call.IsWide() ? kF64 : kF32;
  const auto matrix = [&](const xent_matrix &m) {
    return BinaryOperand{m.data, static_cast<Dtype>(m.dtype), adjacent ? args.rows : m.stride, layout.length, 1};
  };
  const auto factor = [&](const void *data, int64_t block, int64_t line, int64_t position) {
    return BinaryOperand{const_cast<void *>(data), arithmetic, block, line, position};
  };
  const auto columns = [&](const void *data) { return factor(data, 0, inner ? 1 : 0, inner ? 0 : 1); };
  const auto rows = [&](const void *data) { return factor(data, inner ? positions : 1, 0, inner ? 1 : 0); };
  return {
      .layout = layout,
      .inputs = {matrix(args.input), matrix(args.targets), columns(args.pos_weight), matrix(args.element_weights),
                 rows(args.row_weights), columns(args.class_weights),
                 u.kind == XENT_UPSTREAM_SCALAR ? factor(u.data, 0, 0, 0)
                 : u.kind == XENT_UPSTREAM_ROWS ? rows(u.data)
                                                : factor(u.data, adjacent ? args.rows : u.stride, layout.length, 1)},
      .outputs = {matrix(args.element_losses), matrix(args.grad), matrix(args.target_grad)},
      .sum = args.reduced_loss != nullptr,
      .probabilities = call.options.input == XENT_BINARY_PROBABILITIES,
      .focal = call.options.focal_gamma != 0.0 || call.options.focal_alpha >= 0.0,
      .gamma = call.options.focal_gamma,
      .alpha = call.options.focal_alpha,
      .denominator = call.denominator,
      .inverse = Divide(Wide{1.0}, Wide{call.denominator.mantissa}),
      .large = call.plan.stream};
}

}  // namespace

bool RunBinary(BinaryCall *call) {
  call->plan = MakePlan(*call);
  const FpMode mode(call->plan.subnormals);
  call->shape = RowShape(call->elements, 1);
  call->denominator = Denominator(call->options.reduction, static_cast<double>(call->elements));
  const BinaryTask task = TaskOf(*call);
  const BinaryFunction function = ActiveKernels().binary->run[task.inputs[kInput].dtype];
  const auto run = [&](int64_t first, int64_t end, Groups &groups) {
    for (const int64_t step = call->plan.group_rows; first < end; first += step) {
      groups.Of(first).Add({function(task, first, std::min(end, first + step)), {}});
    }
  };
  Totals totals;
  if (!RunGroups(*call, run, &totals)) return false;
  call->WriteReducedLoss(totals.loss);
  return true;
}

}  // namespace xent::internal
