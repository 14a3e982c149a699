#include "rows/call.h"

namespace xent::internal {

void Call::Prepare() {
  kernels = &ActiveKernels();
  shape = RowShape(args.rows, valid_cols);
  denominator = Denominator(options.reduction, weight.hi);
  shares = Shares<double>(options, valid_cols);
  transform = {options.logit_scale, options.softcap, IsWide()};
  workspace = Workspace(args.workspace, args.workspace_bytes, Workspace::RowBytes(args.cols, args.logits.dtype));
  plan = MakePlan(*this);
}

void Call::WriteTotals(const Totals &totals) const {
  if (args.reduced_loss != nullptr) {
    WriteReduced(args.reduced_loss, IsWide(), totals.loss, options.reduction, denominator);
  }
  if (statistics.perplexity != nullptr) {
    *statistics.perplexity = HasIndexTargets() ? Perplexity(totals.nll, live_rows) : kNan;
  }
  if (statistics.live_rows != nullptr) *statistics.live_rows = live_rows;
}

}  // namespace xent::internal
