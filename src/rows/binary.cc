// Elements in memory order are cut into at most 256 groups, wherever that falls in a row. A group's losses are summed
// on fixed lanes, the groups in order, so that the sum depends on the number of elements and the layout alone.
#include "rows/binary.h"

#include <algorithm>

#include "rows/run_rows.h"

namespace xent::internal {
namespace {

// Groups of whole steps, not so short that the calls count.
int64_t ElementsPerGroup(int64_t elements) {
  constexpr int64_t kAlign = 128, kShortest = 2048;
  return std::max(kShortest, (RowsPerGroup(elements) + kAlign - 1) / kAlign * kAlign);
}

XENT_NOINLINE bool RunElements(const BinaryCall &call, const Plan &plan, const BinaryTask &task, Wide *sum) {
  struct {
    double hi, lo;
  } sums[kMaxTasks];  // not filled: a small call has one
  const BinaryFunction function = ActiveKernels().binary->run[call.IsWide() ? 1 : 0];
  const int64_t group_elements = ElementsPerGroup(call.elements);
  const int64_t groups = (call.elements - 1) / group_elements + 1;
  const int64_t task_groups = plan.threads == 1 ? groups : std::max<int64_t>(1, kTaskLogits / group_elements);
  const bool complete = RunTasks(plan, call.exec, (groups - 1) / task_groups + 1, [&](int64_t i) {
    for (int64_t group = i * task_groups; group < std::min(groups, (i + 1) * task_groups); ++group) {
      const int64_t first = group * group_elements;
      const Wide part = function(task, first, std::min(call.elements, first + group_elements));
      sums[group] = {part.hi, part.lo};
    }
  });
  *sum = {};
  for (int64_t group = 0; complete && group < groups; ++group) {
    *sum = AddOrOverflow(*sum, {sums[group].hi, sums[group].lo});
  }
  return complete;
}

BinaryUpstream UpstreamKind(const xent_upstream &upstream) {
  if (upstream.data == nullptr) return BinaryUpstream::kOne;
  return upstream.kind == XENT_UPSTREAM_SCALAR ? BinaryUpstream::kScalar
         : upstream.kind == XENT_UPSTREAM_ROWS ? BinaryUpstream::kRows
                                               : BinaryUpstream::kElements;
}

}  // namespace

bool RunBinary(const BinaryCall &call) {
  const Plan plan = MakePlan(call);
  const FpMode mode(plan.subnormals);
  const xent_binary_cross_entropy &args = call.args;
  const xent_binary_cross_entropy_options &options = call.options;
  const Factor denominator = Denominator(options.reduction, static_cast<double>(call.elements));
  const bool inner = args.inner > 1, has_alpha = options.focal_alpha >= 0.0;
  Wide sum;
  if (call.elements > 0) {
    const BinaryTask task{
        .layout = inner ? BinaryLayout{args.inner, args.cols, true} : BinaryLayout{args.cols, 1, false},
        .dtype = static_cast<Dtype>(args.input.dtype),
        .targets_dtype = static_cast<Dtype>(args.targets.dtype),
        .input = {args.input.data, args.input.stride},
        .targets = {args.targets.data, args.targets.stride},
        .pos_weight = args.pos_weight,
        .class_weights = args.class_weights,
        .row_weights = args.row_weights,
        .element_weights = {args.element_weights.data, args.element_weights.stride},
        .upstream = {args.upstream.data, args.upstream.stride},
        .upstream_kind = UpstreamKind(args.upstream),
        .losses = {args.element_losses.data, args.element_losses.stride},
        .grad = {args.grad.data, args.grad.stride},
        .target_grad = {args.target_grad.data, args.target_grad.stride},
        .sum = args.reduced_loss != nullptr,
        .probabilities = options.input == XENT_BINARY_PROBABILITIES,
        .focal = options.focal_gamma != 0.0 || has_alpha,
        .has_alpha = has_alpha,
        .gamma = options.focal_gamma,
        .alpha = has_alpha ? options.focal_alpha : 0.0,
        .denominator = denominator,
        .large = plan.stream};
    if (!RunElements(call, plan, task, &sum)) return false;
  }
  if (args.reduced_loss != nullptr) {
    WriteReduced(args.reduced_loss, call.IsWide(), sum, options.reduction, denominator);
  }
  return true;
}

}  // namespace xent::internal
