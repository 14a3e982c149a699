// Cross-entropy over whole rows.
#include <bit>

#include "rows/across.h"
#include "rows/call.h"
#include "rows/general_job.h"
#include "rows/index_job.h"

namespace xent::internal {
namespace {

XENT_NOINLINE bool Run(const Call &call, Totals *totals) {
  return DispatchDtype(call.args.logits.dtype, [&](auto storage) {
    using In = decltype(storage);
    if constexpr (!std::is_same_v<In, double>) {
      if (call.plan.path == Path::kAcross) return RunAcrossRows<In>(call, totals);
    }
    return call.plan.path == Path::kIndex ? RunRows(IndexJob<In>{call}, totals) : RunRows(GeneralJob<In>{call}, totals);
  });
}

XENT_NOINLINE bool RunKeepingSubnormals(const Call &call, Totals *totals) {
  const FpMode mode(Subnormals::kKeep);
  return Run(call, totals);
}

}  // namespace

void Call::Prepare() {
  kernels = &ActiveKernels();
  shape = RowShape(args.rows, valid_cols, args.inner);
  denominator = Denominator(options.reduction, weight.hi);
  shares = Shares<double>(options, valid_cols);
  transform = {options.logit_scale, options.softcap, IsWide(), false};
  workspace = Workspace(args.workspace, args.workspace_bytes, Workspace::RowBytes(args.cols, args.logits.dtype));
  plan = MakePlan(*this);
  transform.float_lanes = TakesFloatLanes(transform);
  const bool weighted = !HasIndexTargets() || options.label_smoothing != 0.0;
  if (plan.path != Path::kIndex && weighted) PrepareLabels();
  if (args.records != nullptr && mode != Mode::kBackward) options_tag = OptionsTag();
}

void Call::PrepareLabels() {
  const FpMode mode(Subnormals::kKeep);  // a smoothing below the normal range is one all the same
  if (HasIndexTargets()) {
    const Shares<Wide> wide(options, valid_cols);
    target_share = wide.target;
    labels.share = wide.other;
  } else {
    labels.probs_factor = TwoSum(1.0, -options.label_smoothing);
    labels.share = Divide(Wide{options.label_smoothing}, Wide{static_cast<double>(valid_cols)});
    labels.probs_dtype = static_cast<Dtype>(args.target_probs.dtype);
    labels.probs_stride = shape.inner;
  }
  for (int64_t col = 0; args.class_weights != nullptr && col < valid_cols; ++col) {
    const double size = Magnitude(WeightAt(args.class_weights, IsWide(), col));
    labels.moderate = labels.moderate && (size == 0.0 || (size >= 0x1p-20 && size <= 0x1p20));
  }
}

uint32_t Call::OptionsTag() const {
  // Without the sign, since -0 is 0 and none is below; without arithmetic, which flushes subnormals here and not there.
  const auto bits_of = [](double x) { return std::bit_cast<uint64_t>(x) << 1; };
  const uint64_t words[] = {bits_of(options.logit_scale),
                            bits_of(options.softcap),
                            bits_of(options.label_smoothing),
                            bits_of(options.z_loss),
                            static_cast<uint64_t>(options.label_smoothing > 0.0 ? options.smoothing : 0),
                            static_cast<uint64_t>(options.valid_cols),
                            static_cast<uint64_t>(HasIndexTargets()),
                            static_cast<uint64_t>(args.class_weights != nullptr)};
  // A polynomial in an odd number: whatever bit of one word differs, some of the upper half do.
  uint64_t tag = 0;
  for (const uint64_t word : words) tag = (tag + word) * 0x9e3779b97f4a7c15u;
  return static_cast<uint32_t>(tag >> 32);
}

void Call::WriteTotals(const Totals &totals) const {
  WriteReducedLoss(totals.loss);
  if (statistics.perplexity != nullptr) {
    *statistics.perplexity = HasIndexTargets() ? Perplexity(totals.nll, live_rows) : kNan;
  }
  if (statistics.live_rows != nullptr) *statistics.live_rows = live_rows;
}

bool RunCrossEntropy(Call *call) {
  const FpMode mode(Subnormals::kFlush);
  call->Prepare();
  Totals totals;
  const bool keeps = call->plan.subnormals == Subnormals::kKeep;
  const bool complete = keeps ? RunKeepingSubnormals(*call, &totals) : Run(*call, &totals);
  if (complete) call->WriteTotals(totals);
  return complete;
}

}  // namespace xent::internal
