// Elements in memory order are cut into at most 256 groups, wherever that falls in a row. A group's losses are summed
// on fixed lanes, the groups in order, so that the sum depends on the number of elements and the layout alone.
#include "rows/binary.h"

#include <algorithm>

#include "rows/run_rows.h"

namespace xent::internal {
namespace {

BinaryUpstream KindOf(const xent_upstream &upstream) {
  if (upstream.data == nullptr) return BinaryUpstream::kOne;
  return upstream.kind == XENT_UPSTREAM_SCALAR ? BinaryUpstream::kScalar
         : upstream.kind == XENT_UPSTREAM_ROWS ? BinaryUpstream::kRows
                                               : BinaryUpstream::kElements;
}

BinaryTask TaskOf(const BinaryCall &call) {
  const xent_binary_cross_entropy &args = call.args;
  const bool inner = args.inner > 1, has_alpha = call.options.focal_alpha >= 0.0;
  return {.layout = inner ? BinaryLayout{args.inner, args.cols, true} : BinaryLayout{args.cols, 1, false},
          .dtype = static_cast<Dtype>(args.input.dtype),
          .targets_dtype = static_cast<Dtype>(args.targets.dtype),
          .input = {args.input.data, args.input.stride},
          .targets = {args.targets.data, args.targets.stride},
          .pos_weight = args.pos_weight,
          .class_weights = args.class_weights,
          .row_weights = args.row_weights,
          .element_weights = {args.element_weights.data, args.element_weights.stride},
          .upstream = {args.upstream.data, args.upstream.stride},
          .upstream_kind = KindOf(args.upstream),
          .losses = {args.element_losses.data, args.element_losses.stride},
          .grad = {args.grad.data, args.grad.stride},
          .target_grad = {args.target_grad.data, args.target_grad.stride},
          .sum = args.reduced_loss != nullptr,
          .probabilities = call.options.input == XENT_BINARY_PROBABILITIES,
          .focal = call.options.focal_gamma != 0.0 || has_alpha,
          .has_alpha = has_alpha,
          .gamma = call.options.focal_gamma,
          .alpha = has_alpha ? call.options.focal_alpha : 0.0,
          .denominator = call.denominator,
          .large = call.plan.stream};
}

}  // namespace

bool RunBinary(BinaryCall *call) {
  call->plan = MakePlan(*call);
  const FpMode mode(call->plan.subnormals);
  call->shape = RowShape(call->elements, 1);
  call->denominator = Denominator(call->options.reduction, static_cast<double>(call->elements));
  const BinaryTask task = TaskOf(*call);
  const BinaryFunction function = ActiveKernels().binary->run[call->IsWide()];
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
