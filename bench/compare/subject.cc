// The subject of a checkout whose header is like this one's. scripts/compare.sh compiles it against that header.
#include "bench/compare/subject.h"

#include "bench/compare/subject_calls.h"
#include "xent/xent.h"

namespace {

using xent_compare::Arrays;
using xent_compare::Call;
using xent_compare::Dtype;
using xent_compare::Operation;

static_assert(XENT_RECORD_BYTES == xent_compare::kRecordBytes);

xent_compare::Functions<decltype(&xent_cross_entropy_forward), decltype(&xent_cross_entropy_forward_backward),
                        decltype(&xent_cross_entropy_backward)>
    g_functions;

xent_dtype DtypeOf(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return XENT_F32;
    case Dtype::kF64:
      return XENT_F64;
    case Dtype::kBf16:
      return XENT_BF16;
    case Dtype::kF16:
      break;
  }
  return XENT_F16;
}

}  // namespace

XENT_SUBJECT_EXPORT const char *xent_subject_open(const char *library) { return g_functions.Load(library); }

XENT_SUBJECT_EXPORT int32_t xent_subject_run(const Call *call, int64_t calls) {
  xent_exec exec = XENT_EXEC_INIT;
  exec.threads = call->threads;
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  if (call->operation == Operation::kSmoothing) options.label_smoothing = xent_compare::kLabelSmoothing;
  if (call->operation == Operation::kSoftcap) options.softcap = xent_compare::kSoftcap;
  const xent_cross_entropy_options *const given = xent_compare::HasOptions(*call) ? &options : nullptr;
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = call->rows;
  args.cols = call->cols;
  args.logits.dtype = args.grad.dtype = DtypeOf(call->dtype);
  args.workspace = call->workspace;
  args.workspace_bytes = call->workspace_bytes;
  const auto function = g_functions.Of(call->operation);
  return xent_compare::ForEachCall(*call, calls, [&](const Arrays &arrays) -> int32_t {
    args.logits.data = arrays.logits;
    args.targets.data = arrays.targets;
    args.row_losses = arrays.row_losses;
    args.reduced_loss = arrays.reduced_loss;
    args.records = arrays.records;
    args.grad.data = arrays.grad;
    return function(&args, given, &exec, nullptr);
  });
}
