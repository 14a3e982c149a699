#include "api/check_call.h"

#include <optional>

#include "api/validate.h"
#include "numbers/elements.h"
#include "numbers/fp_mode.h"
#include "rows/statistics.h"

namespace xent::internal {
namespace {

long long Long(int64_t x) { return static_cast<long long>(x); }

xent_status NotTogether(const char *a, const char *b, xent_error *error) {
  return Invalid(error, "%s and %s do not go together: expected one of them", a, b);
}

// Targets in range; counts the rows that are not ignored, and sums their weights.
xent_status CheckTargetValues(CheckedCall *checked, const CallInputs &call, xent_error *error) {
  const xent_cross_entropy &args = checked->args;
  const xent_options &options = checked->options;
  const auto count = [&](const auto *targets) {
    // No branch a row, so that the compiler makes vectors of it.
    int64_t ignored = 0, bad = 0;
    for (int64_t row = 0; row < args.rows; ++row) {
      const int64_t target = targets[row];
      const bool is_ignored = target == options.ignore_index;
      ignored += is_ignored;
      bad += !is_ignored & (static_cast<uint64_t>(target) >= static_cast<uint64_t>(checked->total_cols));
    }
    checked->live_rows = args.rows - ignored;
    return bad == 0;
  };
  const bool all_good = args.targets_type == XENT_I32 ? count(static_cast<const int32_t *>(args.targets))
                                                      : count(static_cast<const int64_t *>(args.targets));
  for (int64_t row = 0; !all_good && row < args.rows; ++row) {
    const int64_t target = call.Target(row);
    if (call.IsIgnored(target) || (target >= 0 && target < checked->total_cols)) continue;
    return TargetOutOfRange(row, target, checked->total_cols, options, error);
  }
  checked->weight = {static_cast<double>(checked->live_rows), 0.0};
  if (args.row_weights == nullptr && args.class_weights == nullptr) return XENT_OK;
  checked->weight = {};
  for (int64_t row = 0; row < args.rows; ++row) {
    const int64_t target = call.Target(row);
    if (call.IsIgnored(target)) continue;
    checked->weight =
        AddOrOverflow(checked->weight, MultiplyAny(Wide{call.RowWeight(row)}, Wide{call.TargetWeight(target)}));
  }
  return XENT_OK;
}

xent_status CheckGradient(const xent_cross_entropy &args, const Matrix &logits, Matrix *grad, xent_error *error) {
  const int64_t inner = args.inner > 1 ? args.inner : 1;
  if (args.target_grad == nullptr || args.grad != nullptr) {
    XENT_RETURN_IF_ERROR(CheckLayout(args.rows, args.cols, inner, args.dtype, grad, error));
  }
  XENT_RETURN_IF_ERROR(CheckInPlace(logits, *grad, args.rows, args.in_place, error));
  return CheckUpstream(args.upstream, args.upstream_kind, args.rows, args.dtype, error);
}

xent_status CheckRecords(const CheckedCall &checked, const CallInputs &call, xent_error *error) {
  const xent_cross_entropy &args = checked.args;
  const Record *const records = static_cast<const Record *>(args.records);
  const uint8_t kind = IsGeneral(args, checked.options) ? Record::kGeneral : Record::kIndex;
  for (int64_t row = 0; row < args.rows; ++row) {
    const Record &record = records[row];
    const bool known = record.tag == Record::kTag && record.dtype == args.dtype && record.state >= Record::kLive &&
                       record.state <= Record::kNanRow;
    const bool ignored = call.IsIgnored(call.Target(row));
    const bool same_way = record.state == Record::kIgnored || record.kind == kind;
    if (known && (ignored || (record.state != Record::kIgnored && same_way))) continue;
    const char *const message =
        !known      ? "records: row %lld was not written by a forward call with logits of this dtype (target %lld)"
        : !same_way ? "records: row %lld was written by a forward call with other options or layout (target %lld)"
                    : "records: row %lld was ignored by forward, but its target is %lld now";
    return FailAt(error, XENT_INVALID_ARGUMENT, row, record.state, message, Long(row), Long(call.Target(row)));
  }
  return XENT_OK;
}

const char *FirstOutput(const xent_cross_entropy &args) {
  if (args.losses != nullptr) return "losses";
  if (args.lse != nullptr) return "lse";
  if (args.loss != nullptr) return "loss";
  if (args.perplexity != nullptr) return "perplexity";
  if (args.live_rows != nullptr) return "live_rows";
  if (args.logprobs != nullptr) return "logprobs";
  return FirstStatistic(args);
}

const char *FirstOfGradient(const xent_cross_entropy &args) {
  if (args.grad != nullptr) return "grad";
  if (args.grad_stride != 0) return "grad_stride";
  if (args.upstream != nullptr) return "upstream";
  if (args.upstream_kind != XENT_UPSTREAM_ONE) return "upstream_kind";
  if (args.in_place != 0) return "in_place";
  if (args.target_grad != nullptr) return "target_grad";
  if (args.target_grad_stride != 0) return "target_grad_stride";
  return nullptr;
}

// Outputs and inputs that the mode has no use for must be unset: nothing is silently left undone.
xent_status CheckUnused(const xent_cross_entropy &args, const xent_options &options, Mode mode, ShardStep step,
                        xent_error *error) {
  const char *name = nullptr;
  if (mode == Mode::kForward && (name = FirstOfGradient(args)) != nullptr) {
    return Invalid(error, "%s is set, but forward writes no gradient", name);
  }
  if (mode == Mode::kBackward && (name = FirstOutput(args)) != nullptr) {
    return Invalid(error, "%s is set, but backward writes the gradient alone", name);
  }
  if (step == ShardStep::kForward && ((name = FirstOutput(args)) != nullptr || args.records != nullptr)) {
    return Invalid(error, "%s is set, but a shard's forward writes chunk records alone",
                   name != nullptr ? name : "records");
  }
  if (step == ShardStep::kCombine && (name = FirstStatistic(args)) != nullptr) {
    return Invalid(error, "%s and shards do not go together: the chunk records do not hold it", name);
  }
  if (step == ShardStep::kCombine && (args.logits != nullptr || args.target_probs != nullptr)) {
    return Invalid(error, "%s is set, but combine reads chunk records alone",
                   args.logits != nullptr ? "logits" : "target_probs");
  }
  return CheckLossWanted(args.loss, options, error);
}

xent_status CheckLabels(const CheckedCall &checked, ShardStep step, Matrix *probs, Matrix *target_grad,
                        xent_error *error) {
  const xent_cross_entropy &args = checked.args;
  const xent_options &options = checked.options;
  const int64_t inner = args.inner > 1 ? args.inner : 1;
  const bool probabilities = args.target_probs != nullptr || (step == ShardStep::kCombine && args.targets == nullptr);
  if (args.target_probs != nullptr && args.targets != nullptr) return NotTogether("targets", "target_probs", error);
  if (!probabilities) {
    XENT_RETURN_IF_ERROR(CheckTargets(args.targets, args.targets_type, args.rows, error));
    if (args.target_grad != nullptr) return Invalid(error, "target_grad is set, expected target_probs then");
    if (args.target_grad_stride != 0) return Invalid(error, "target_grad_stride is set, expected target_probs then");
    if (args.target_probs_stride != 0) return Invalid(error, "target_probs_stride is set, expected target_probs then");
    return XENT_OK;
  }
  XENT_RETURN_IF_ERROR(CheckDtype(args.target_probs_dtype, "target_probs_dtype", error));
  if (step != ShardStep::kCombine) {
    XENT_RETURN_IF_ERROR(CheckLayout(args.rows, args.cols, inner, args.target_probs_dtype, probs, error));
  }
  if (args.target_grad != nullptr) {
    XENT_RETURN_IF_ERROR(CheckLayout(args.rows, args.cols, inner, args.target_probs_dtype, target_grad, error));
    if (args.rows > 0 &&
        (args.target_grad == args.target_probs || args.target_grad == args.logits || args.target_grad == args.grad)) {
      return Invalid(error, "target_grad is %s, expected memory of its own",
                     args.target_grad == args.target_probs ? "target_probs"
                     : args.target_grad == args.grad       ? "grad"
                                                           : "logits");
    }
  }
  const char *name = nullptr;
  if (options.ignore_index != -100) name = "ignore_index";
  if (options.smoothing == XENT_SMOOTHING_EXCLUSIVE && options.label_smoothing > 0.0) name = "exclusive smoothing";
  if (args.logprobs != nullptr) name = "logprobs";
  if (args.hits != nullptr) name = "hits";
  if (args.rank != nullptr) name = "rank";
  if (name != nullptr) return Invalid(error, "%s and target_probs do not go together: it needs index targets", name);
  return XENT_OK;
}

xent_status CheckStatistics(const CheckedCall &checked, xent_error *error) {
  const xent_cross_entropy &args = checked.args;
  if (args.top_k == 0 && args.gather_count == 0 && args.logprobs == nullptr && FirstStatistic(args) == nullptr) {
    return XENT_OK;
  }
  const size_t size = args.dtype == XENT_F64 ? 8 : 4;
  if (args.top_k < 0 || args.top_k > kMaxTopK || args.top_k > checked.total_cols) {
    return Invalid(error, "top_k is %d, expected 0 to %d and at most the columns, which are %lld", args.top_k, kMaxTopK,
                   Long(checked.total_cols));
  }
  if (args.top_k == 0 && (args.topk_logprobs != nullptr || args.topk_indices != nullptr)) {
    return Invalid(error, "top_k is 0, expected 1 or more with %s",
                   args.topk_logprobs != nullptr ? "topk_logprobs" : "topk_indices");
  }
  if (args.gather_count < 0 || (args.rows > 0 && args.gather_count > INT64_MAX / 8 / args.rows)) {
    return Invalid(error, "gather_count is %lld, expected 0 or more, and 8 rows gather_count below 2^63",
                   Long(args.gather_count));
  }
  XENT_RETURN_IF_ERROR(CheckArray(args.logprobs, 0, size, "logprobs", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.argmax, 0, 8, "argmax", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.entropy, 0, size, "entropy", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.rank, 0, 8, "rank", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.topk_logprobs, 0, size, "topk_logprobs", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.topk_indices, 0, 8, "topk_indices", error));
  const int64_t gathered = args.gathered != nullptr ? args.rows * args.gather_count : 0;
  XENT_RETURN_IF_ERROR(CheckArray(args.gathered, args.gather_cols != nullptr ? args.rows * args.gather_count : 0, size,
                                  "gathered", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.gather_cols, gathered, 8, "gather_cols", error));
  for (int64_t i = 0; i < gathered; ++i) {
    const int64_t col = args.gather_cols[i];
    if (col >= 0 && col < checked.total_cols) continue;
    const int64_t row = i / args.gather_count;
    return FailAt(error, XENT_INVALID_ARGUMENT, row, col, "gather_cols: row %lld has %lld, expected 0 <= column < %lld",
                  Long(row), Long(col), Long(checked.total_cols));
  }
  return XENT_OK;
}

// The slice, and how many columns of the vocabulary count.
xent_status CheckShard(const ShardCall &call, const xent_options *given_options, CheckedCall *checked,
                       xent_error *error) {
  const xent_cross_entropy &args = checked->args;
  int64_t total = args.cols;
  if (call.step == ShardStep::kForward || call.step == ShardStep::kBackward) {
    total = call.shard.total_cols;
    if (total < 1) return Invalid(error, "total_cols is %lld, expected 1 or more", Long(total));
    if (call.shard.first_col < 0 || call.shard.first_col > total - args.cols) {
      return Invalid(error, "first_col is %lld with %lld columns, expected a slice of total_cols, which is %lld",
                     Long(call.shard.first_col), Long(args.cols), Long(total));
    }
  }
  XENT_RETURN_IF_ERROR(CheckOptions(given_options, total, &checked->options, error));
  checked->total_cols = checked->options.valid_cols != 0 ? checked->options.valid_cols : total;
  if (call.step == ShardStep::kWhole) return XENT_OK;
  if (args.inner > 1) return NotTogether("inner", "shards", error);
  if (checked->options.stats_of_ignored != 0) return NotTogether("stats_of_ignored", "shards", error);
  return XENT_OK;
}

bool HasWeights(const xent_cross_entropy *given) {
  return given != nullptr && given->struct_size >= sizeof(xent_cross_entropy) &&
         (given->class_weights != nullptr || given->row_weights != nullptr);
}

}  // namespace

const char *FirstStatistic(const xent_cross_entropy &args) {
  if (args.argmax != nullptr) return "argmax";
  if (args.hits != nullptr) return "hits";
  if (args.entropy != nullptr) return "entropy";
  if (args.rank != nullptr) return "rank";
  if (args.topk_logprobs != nullptr) return "topk_logprobs";
  if (args.topk_indices != nullptr) return "topk_indices";
  if (args.gathered != nullptr) return "gathered";
  return nullptr;
}

xent_status CheckWeights(const void *weights, int64_t count, bool wide, const char *name, xent_error *error) {
  XENT_RETURN_IF_ERROR(CheckArray(weights, 0, wide ? 8 : 4, name, error));
  for (int64_t i = 0; weights != nullptr && i < count; ++i) {
    const double w =
        wide ? static_cast<const double *>(weights)[i] : static_cast<double>(static_cast<const float *>(weights)[i]);
    if (w - w == 0.0) continue;
    return FailAt(error, XENT_INVALID_ARGUMENT, i, 0, "%s: element %lld is %g, expected a finite number", name, Long(i),
                  w);
  }
  return XENT_OK;
}

xent_status CheckCall(const xent_cross_entropy *given, const xent_options *given_options, const xent_exec *given_exec,
                      Mode mode, const ShardCall *shard, CheckedCall *checked, xent_error *error) {
  // Comparisons neither trap nor flush, whatever the caller's mode. A call without options or weights compares none,
  // and changing the mode is a good part of what a call of one small row takes.
  std::optional<FpMode> fp_mode;
  if (given_options != nullptr || HasWeights(given)) fp_mode.emplace(Subnormals::kKeep);
  XENT_RETURN_IF_ERROR(CheckError(error));
  xent_cross_entropy &args = checked->args;
  static constexpr xent_cross_entropy kPlain = XENT_CROSS_ENTROPY_INIT;
  XENT_RETURN_IF_ERROR(ReadStruct(given, offsetof(xent_cross_entropy, inner), kPlain, "args", &args, error));
  const ShardCall sharding = shard != nullptr ? *shard : ShardCall{};
  const ShardStep step = sharding.step;
  XENT_RETURN_IF_ERROR(CheckShape(args.rows, args.cols, args.dtype, error));
  XENT_RETURN_IF_ERROR(CheckShard(sharding, given_options, checked, error));
  XENT_RETURN_IF_ERROR(CheckExec(given_exec, &checked->exec, error));
  XENT_RETURN_IF_ERROR(CheckInner(args.rows, args.inner, error));
  const int64_t inner = args.inner > 1 ? args.inner : 1;
  Matrix logits{"logits", "logits_stride", args.logits, args.logits_stride};
  Matrix grad{"grad", "grad_stride", args.grad, args.grad_stride};
  Matrix probs{"target_probs", "target_probs_stride", args.target_probs, args.target_probs_stride};
  Matrix target_grad{"target_grad", "target_grad_stride", args.target_grad, args.target_grad_stride};
  if (step != ShardStep::kCombine) {
    XENT_RETURN_IF_ERROR(CheckLayout(args.rows, args.cols, inner, args.dtype, &logits, error));
  }
  XENT_RETURN_IF_ERROR(CheckLabels(*checked, step, &probs, &target_grad, error));
  XENT_RETURN_IF_ERROR(CheckUnused(args, checked->options, mode, step, error));
  const bool wide = args.dtype == XENT_F64;
  const size_t size = wide ? 8 : 4;
  XENT_RETURN_IF_ERROR(CheckArray(args.losses, 0, size, "losses", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.lse, 0, size, "lse", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.loss, 0, size, "loss", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.perplexity, 0, alignof(double), "perplexity", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.live_rows, 0, alignof(int64_t), "live_rows", error));
  XENT_RETURN_IF_ERROR(
      CheckArray(args.records, mode == Mode::kBackward ? args.rows : 0, alignof(Record), "records", error));
  if (mode != Mode::kForward) XENT_RETURN_IF_ERROR(CheckGradient(args, logits, &grad, error));
  if (args.workspace == nullptr && args.workspace_bytes > 0) {
    return Invalid(error, "workspace is NULL, expected memory of workspace_bytes, which is %zu", args.workspace_bytes);
  }
  XENT_RETURN_IF_ERROR(CheckStatistics(*checked, error));
  const int64_t class_count =
      step == ShardStep::kForward || step == ShardStep::kBackward ? sharding.shard.total_cols : args.cols;
  XENT_RETURN_IF_ERROR(CheckWeights(args.class_weights, class_count, wide, "class_weights", error));
  XENT_RETURN_IF_ERROR(CheckWeights(args.row_weights, args.rows, wide, "row_weights", error));
  checked->logits_stride = logits.stride;
  checked->grad_stride = grad.stride;
  checked->probs_stride = probs.stride;
  checked->target_grad_stride = target_grad.stride;
  const CallInputs call{args, checked->options};
  if (call.HasIndexTargets()) {
    XENT_RETURN_IF_ERROR(CheckTargetValues(checked, call, error));
  } else {
    checked->live_rows = args.rows;
    checked->weight = {static_cast<double>(args.rows), 0.0};
  }
  return mode == Mode::kBackward ? CheckRecords(*checked, call, error) : XENT_OK;
}

}  // namespace xent::internal
