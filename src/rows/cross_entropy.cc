#include "rows/cross_entropy.h"

#include "rows/general_job.h"
#include "rows/index_job.h"

namespace xent::internal {
namespace {

template <class In>
XENT_NOINLINE bool Run(const Call &call, Totals *totals) {
  switch (call.plan.path) {
    case Path::kPositions:
      return RunGroups<Totals>(
          call.plan, call.shape, call.exec,
          [&](int64_t first, int64_t end, Groups<Totals> &groups) { RunPositions<In>(call, first, end, groups); },
          totals);
    case Path::kGeneral:
      return RunRows(GeneralJob<In>{call}, call.plan, call.shape, call.workspace, call.exec, totals);
    default:
      return RunRows(IndexJob<In>{call}, call.plan, call.shape, call.workspace, call.exec, totals);
  }
}

XENT_NOINLINE bool RunKeepingSubnormals(const Call &call, Totals *totals) {
  const FpMode mode(Subnormals::kKeep);
  return DispatchDtype(call.args.logits.dtype, [&](auto storage) { return Run<decltype(storage)>(call, totals); });
}

}  // namespace

bool RunCrossEntropy(Call *call) {
  const FpMode mode(Subnormals::kFlush);
  call->Prepare();
  Totals totals;
  const bool complete = call->plan.subnormals == Subnormals::kKeep
                            ? RunKeepingSubnormals(*call, &totals)
                            : DispatchDtype(call->args.logits.dtype,
                                            [&](auto storage) { return Run<decltype(storage)>(*call, &totals); });
  if (complete) call->WriteTotals(totals);
  return complete;
}

}  // namespace xent::internal
