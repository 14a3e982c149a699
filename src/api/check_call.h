// All checks of a cross-entropy call, whole or of a slice of the columns, before its first write.
#ifndef XENT_SRC_API_CHECK_CALL_H_
#define XENT_SRC_API_CHECK_CALL_H_

#include <cstdint>

#include "rows/call.h"
#include "xent/xent.h"

namespace xent::internal {

// Whether rows go the way of general_job.h rather than that of index_job.h. A function of layout and options alone:
// what is asked for beside the loss does not change its bits.
inline bool IsGeneral(const xent_cross_entropy &args, const xent_options &options) {
  const bool smoothed = options.label_smoothing > 0.0;
  return args.targets == nullptr || args.inner > 1 || options.softcap > 0.0 || options.logit_scale != 1.0 ||
         (smoothed && (args.class_weights != nullptr || options.z_loss > 0.0));
}

struct CheckedCall {
  xent_cross_entropy args;
  xent_options options;
  xent_exec exec;
  int64_t total_cols = 0;  // valid columns of the whole vocabulary
  int64_t live_rows = 0;
  Wide weight;  // the mean's denominator
  int64_t logits_stride = 0, grad_stride = 0, probs_stride = 0, target_grad_stride = 0;

  Call MakeCall(Mode mode) const {
    const int64_t row_bytes = total_cols * static_cast<int64_t>(ElementSize(args.dtype));
    return {{args, options},
            ActiveKernels(),
            mode,
            RowShape(args.rows, total_cols),
            logits_stride,
            grad_stride,
            probs_stride,
            target_grad_stride,
            Denominator(options, weight.hi),
            Shares<double>(options, total_cols),
            {options.logit_scale, options.softcap, args.dtype == XENT_F64},
            FirstStatistic(args) != nullptr,
            args.grad != args.logits && args.rows > kStreamBytes / row_bytes,
            Workspace(args.workspace, args.workspace_bytes, Workspace::RowBytes(args.cols, args.dtype))};
  }
  // The reduced outputs that are wanted.
  void WriteTotals(const Totals &totals) const {
    if (args.loss != nullptr) {
      WriteReduced(args.loss, args.dtype == XENT_F64, totals.loss, options, Denominator(options, weight.hi));
    }
    if (args.perplexity != nullptr)
      *args.perplexity = args.targets == nullptr ? kNan : Perplexity(totals.nll, live_rows);
    if (args.live_rows != nullptr) *args.live_rows = live_rows;
  }
};

// The steps of a sharded call; kWhole is a call over all columns.
enum class ShardStep { kWhole, kForward, kCombine, kBackward };
struct ShardCall {
  ShardStep step = ShardStep::kWhole;
  xent_shard shard = XENT_SHARD_INIT;
};

// `shard` is null for a call over all columns.
xent_status CheckCall(const xent_cross_entropy *given, const xent_options *given_options, const xent_exec *given_exec,
                      Mode mode, const ShardCall *shard, CheckedCall *checked, xent_error *error);

// Weights are finite numbers; `what` names their index in the message.
xent_status CheckWeights(const void *weights, int64_t count, bool wide, const char *name, xent_error *error);

}  // namespace xent::internal
#endif  // XENT_SRC_API_CHECK_CALL_H_
