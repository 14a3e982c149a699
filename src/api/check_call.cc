#include "api/check_call.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "api/check.h"
#include "api/read_struct.h"
#include "numbers/fp_mode.h"
#include "rows/statistics.h"

namespace xent::internal {
namespace {

// The arrays of the statistics that the call writes, and the sizes of their elements.
struct NamedArray {
  const char *name;
  const void *data;
  size_t size;
};
std::array<NamedArray, 11> StatisticsOf(const Call &call) {
  const xent_statistics &s = call.statistics;
  const size_t size = ArithmeticSize(call.args.logits.dtype);
  return {{{"statistics.lse", s.lse, size},
           {"statistics.logprobs", s.logprobs, size},
           {"statistics.argmax", s.argmax, 8},
           {"statistics.hits", s.hits, 1},
           {"statistics.rank", s.rank, 8},
           {"statistics.entropy", s.entropy, size},
           {"statistics.topk_logprobs", s.topk_logprobs, size},
           {"statistics.topk_indices", s.topk_indices, 8},
           {"statistics.gathered", s.gathered, size},
           {"statistics.perplexity", s.perplexity, alignof(double)},
           {"statistics.live_rows", s.live_rows, alignof(int64_t)}}};
}

// Checks that the inputs and outputs are those of the step and the mode.
xent_status CheckOutputs(const Call &call, Step step, xent_error *error) {
  const xent_cross_entropy &args = call.args;
  if (call.mode == Mode::kForward) {
    XENT_TRY(CheckNoGradient(args.grad, args.target_grad, args.upstream, error));
  }
  if (call.mode == Mode::kBackward || step == Step::kShardForward) {
    const char *const why = call.mode == Mode::kBackward ? "backward writes gradients alone"
                                                         : "a shard's forward writes chunk records alone";
    XENT_TRY(CheckUnset("row_losses", args.row_losses != nullptr, why, error));
    XENT_TRY(CheckUnset("reduced_loss", args.reduced_loss != nullptr, why, error));
    XENT_TRY(CheckUnset("records", step == Step::kShardForward && args.records != nullptr, why, error));
    if (args.statistics != nullptr) {
      for (const auto &array : StatisticsOf(call)) {
        XENT_TRY(CheckUnset(array.name, array.data != nullptr, why, error));
      }
    }
  }
  if (step != Step::kShardCombine) return XENT_OK;
  constexpr const char *kWhy = "combine reads chunk records alone";
  XENT_TRY(CheckUnset("logits", args.logits.data != nullptr, kWhy, error));
  XENT_TRY(CheckUnset("target_probs", args.target_probs.data != nullptr, kWhy, error));
  return CheckUnset("a statistic but lse, logprobs, perplexity and live_rows", NeedLook(call.statistics),
                    "the chunk records do not hold it", error);
}

// Index targets or target_probs, and what goes with which.
xent_status CheckLabels(const Shape &shape, Step step, Call *call, xent_error *error) {
  xent_cross_entropy &args = call->args;
  const xent_cross_entropy_options &options = call->options;
  const bool has_targets = args.targets.data != nullptr;
  if (args.target_probs.data != nullptr && has_targets) return NotTogether("targets", "target_probs", error);
  if (args.target_probs.data == nullptr && (has_targets || step != Step::kShardCombine)) {
    XENT_TRY(CheckTargets(args.targets, shape.rows, error));
    constexpr const char *kWhy = "target_probs is NULL";
    XENT_TRY(CheckNoMatrix("target_grad", args.target_grad, kWhy, error));
    return CheckNoMatrix("target_probs", args.target_probs, kWhy, error);
  }
  if (step != Step::kShardCombine) {
    XENT_TRY(CheckMatrix("target_probs", shape, kAnyDtype, Need::kRequired, &args.target_probs, error));
  }
  const void *const target_grad = args.target_grad.data;
  if (target_grad != nullptr && shape.rows > 0) {
    const char *const name = target_grad == args.target_probs.data ? "target_probs"
                             : target_grad == args.grad.data       ? "grad"
                             : target_grad == args.logits.data     ? "logits"
                                                                   : nullptr;
    if (name != nullptr) return Invalid(error, "target_grad is %s, expected memory of its own", name);
  }
  const char *name = nullptr;
  if (options.ignore_index != -100) name = "ignore_index";
  if (options.smoothing == XENT_SMOOTHING_EXCLUSIVE && options.label_smoothing > 0.0) name = "exclusive smoothing";
  if (call->statistics.logprobs != nullptr) name = "statistics.logprobs";
  if (call->statistics.hits != nullptr) name = "statistics.hits";
  if (call->statistics.rank != nullptr) name = "statistics.rank";
  if (name == nullptr) return XENT_OK;
  return Invalid(error, "%s and target_probs do not go together: it needs index targets", name);
}

xent_status CheckStatistics(const Call &call, xent_error *error) {
  const xent_statistics &s = call.statistics;
  const int64_t rows = call.args.rows;
  if (s.top_k < 0 || s.top_k > kMaxTopK || s.top_k > call.valid_cols) {
    return Invalid(error, "statistics.top_k is %lld, expected 0 to %lld and at most the columns, which are %lld",
                   Long(s.top_k), Long(kMaxTopK), Long(call.valid_cols));
  }
  if (s.top_k == 0 && (s.topk_logprobs != nullptr || s.topk_indices != nullptr)) {
    return Invalid(error, "statistics.top_k is 0, expected 1 or more with %s",
                   s.topk_logprobs != nullptr ? "topk_logprobs" : "topk_indices");
  }
  if (s.gather_count < 0 || s.gather_count > INT64_MAX / 8 / std::max<int64_t>(rows, 1)) {
    return Invalid(error, "statistics.gather_count is %lld, expected 0 or more, and 8 rows gather_count below 2^63",
                   Long(s.gather_count));
  }
  if (s.of_ignored != 0 && s.of_ignored != 1) {
    return Invalid(error, "statistics.of_ignored is %lld, expected 0 or 1", Long(s.of_ignored));
  }
  for (const auto &array : StatisticsOf(call)) {
    XENT_TRY(CheckArray(array.name, array.data, 0, array.size, error));
  }
  const int64_t gathered = rows * s.gather_count;
  XENT_TRY(CheckArray("statistics.gathered", s.gathered, s.gather_cols != nullptr ? gathered : 0, 1, error));
  XENT_TRY(CheckArray("statistics.gather_cols", s.gather_cols, s.gathered != nullptr ? gathered : 0, 8, error));
  for (int64_t i = 0; s.gathered != nullptr && i < gathered; ++i) {
    const int64_t col = s.gather_cols[i];
    if (col >= 0 && col < call.valid_cols) continue;
    const int64_t row = i / s.gather_count, place = i % s.gather_count;
    return FailAt(error, XENT_INVALID_ARGUMENT, {row, place, static_cast<double>(col)},
                  "statistics.gather_cols: row %lld, place %lld is %lld, expected 0 <= column < %lld", Long(row),
                  Long(place), Long(col), Long(call.valid_cols));
  }
  return XENT_OK;
}

xent_status CheckGradients(const Shape &shape, Call *call, xent_error *error) {
  xent_cross_entropy &args = call->args;
  const Need need = args.target_grad.data != nullptr ? Need::kOptional : Need::kRequired;
  XENT_TRY(CheckMatrix("grad", shape, args.logits.dtype, need, &args.grad, error));
  XENT_TRY(CheckSameStride("grad", args.grad, "logits", args.logits, shape.rows, error));
  if (args.target_probs.data != nullptr) {
    XENT_TRY(CheckMatrix("target_grad", shape, args.target_probs.dtype, Need::kOptional, &args.target_grad, error));
  }
  return CheckUpstream(shape, call->IsWide(), false, &args.upstream, error);
}

xent_status CheckShard(const Given &given, const xent_cross_entropy &args, xent_shard *shard, xent_error *error) {
  XENT_TRY(ReadStruct(given.shard, "shard", shard, error));
  const int64_t total = shard->total_cols;
  if (total < 1 || total > kMaxCols) {
    return Invalid(error, "shard.total_cols is %lld, expected 1 to %lld", Long(total), Long(kMaxCols));
  }
  if (shard->first_col < 0 || shard->first_col > total - args.cols) {
    return Invalid(error, "shard.first_col is %lld with %lld columns, expected a slice of total_cols, which is %lld",
                   Long(shard->first_col), Long(args.cols), Long(total));
  }
  return XENT_OK;
}

// The sum of r w_t over the rows that are not ignored. Of one kind of float32 weights a block is added at once where
// that is exact: multiples of 2^-35 up to 2^12, sixteen of them.
Wide SumOfWeights(const Call &call) {
  constexpr int64_t kBlock = 16;
  const xent_cross_entropy &args = call.args;
  const bool by_target = args.row_weights == nullptr;
  const float *const weights = static_cast<const float *>(by_target ? args.class_weights : args.row_weights);
  const bool one_kind = !call.IsWide() && (by_target || args.class_weights == nullptr);
  Wide total;
  for (int64_t first = 0; first < args.rows; first += kBlock) {
    const int64_t end = std::min(args.rows, first + kBlock);
    double sum = 0.0;
    bool exact = one_kind;
    for (int64_t row = first; one_kind && row < end; ++row) {
      const int64_t target = call.Target(row);
      if (call.IsIgnored(target)) continue;
      const float weight = weights[by_target ? target : row];
      exact = exact && weight >= 0x1p-12f && weight <= 0x1p12f;
      sum += static_cast<double>(weight);
    }
    if (exact) total = AddOrOverflow(total, Wide{sum});
    for (int64_t row = first; !exact && row < end; ++row) {
      const int64_t target = call.Target(row);
      if (call.IsIgnored(target)) continue;
      total = AddOrOverflow(total, MultiplyAny(Wide{call.RowWeight(row)}, Wide{call.TargetWeight(target)}));
    }
  }
  return total;
}

// Targets in range; counts the rows that are not ignored, and sums their weights.
xent_status CheckTargetValues(Call *call, xent_error *error) {
  const xent_cross_entropy &args = call->args;
  const int64_t ignore_index = call->options.ignore_index, cols = call->valid_cols;
  const TargetScan scan =
      ActiveKernels().row->scan_targets[args.targets.type](args.targets.data, args.rows, ignore_index, cols);
  if (!scan.good) return CheckTargetRange(args.targets, args.rows, cols, ignore_index, error);
  call->live_rows = args.rows - scan.ignored;
  call->weight = {static_cast<double>(call->live_rows), 0.0};
  if (args.row_weights != nullptr || args.class_weights != nullptr) call->weight = SumOfWeights(*call);
  return XENT_OK;
}

xent_status CheckRecords(const Call &call, Step step, xent_error *error) {
  const xent_cross_entropy &args = call.args;
  const Record *const records = static_cast<const Record *>(args.records);
  const Path path = step == Step::kWhole ? PathOf(args, call.options) : ShardPathOf(args, call.options);
  const uint32_t options_tag = call.OptionsTag();
  for (int64_t row = 0; row < args.rows; ++row) {
    const Record &record = records[row];
    const bool known = record.tag == Record::kTag && record.dtype == Record::DtypeTag(args.logits.dtype) &&
                       record.state >= Record::kLive && record.state <= Record::kNanRow;
    const bool was_ignored = record.state == Record::kIgnored;
    const bool suits = record.options == options_tag && (was_ignored || LeavesRecord(path, record.kind));
    if (known && suits && (!was_ignored || call.IsIgnored(call.Target(row)))) continue;
    const char *const message =
        !known   ? "records: row %lld was not written by a forward call with logits of this dtype (target %lld)"
        : !suits ? "records: row %lld was written by a forward call with other options or layout (target %lld)"
                 : "records: row %lld was ignored by forward, but its target is %lld now";
    return FailAt(error, XENT_INVALID_ARGUMENT, {.row = row}, message, Long(row), Long(call.Target(row)));
  }
  return XENT_OK;
}

}  // namespace

xent_status CheckOptions(const xent_cross_entropy_options *given, int64_t cols, const void *reduced_loss,
                         xent_cross_entropy_options *options, xent_error *error) {
  XENT_TRY(ReadStructOrDefaults(given, "options", options, error));
  if (given == nullptr) {
    options->valid_cols = cols;
    return XENT_OK;
  }
  constexpr double kSmallest = std::numeric_limits<double>::min();
  const double scale = options->logit_scale, epsilon = options->label_smoothing;
  XENT_TRY(CheckNumber("logit_scale", scale, IsFinite(scale) && scale > 0.0, "a finite number > 0", error));
  XENT_TRY(CheckNumber("softcap", options->softcap, IsFinite(options->softcap) && options->softcap >= 0.0,
                       "a finite number >= 0 (0: off)", error));
  XENT_TRY(CheckNumber("z_loss", options->z_loss, IsFinite(options->z_loss) && options->z_loss >= 0.0,
                       "a finite number >= 0", error));
  XENT_TRY(CheckValidCols(cols, &options->valid_cols, error));
  XENT_TRY(CheckNumber("label_smoothing", epsilon, epsilon >= 0.0 && epsilon <= 1.0, "a number in [0, 1]", error));
  XENT_TRY(CheckEnum("smoothing", options->smoothing, XENT_SMOOTHING_EXCLUSIVE,
                     "XENT_SMOOTHING_UNIFORM or XENT_SMOOTHING_EXCLUSIVE", error));
  if (options->smoothing == XENT_SMOOTHING_EXCLUSIVE && epsilon > 0.0 && options->valid_cols == 1) {
    return Invalid(error, "smoothing exclusive with label_smoothing %.17g needs cols >= 2, but cols is 1", epsilon);
  }
  // A subnormal cap or epsilon would count as none where these are flushed; beside the smallest normal number it makes
  // no difference.
  if (options->softcap > 0.0) options->softcap = std::max(options->softcap, kSmallest);
  if (epsilon > 0.0) options->label_smoothing = std::max(epsilon, kSmallest);
  return CheckReduction(options->reduction, reduced_loss, error);
}

xent_status CheckCall(const Given &given, Step step, Mode mode, Call *call, xent_shard *shard, xent_error *error) {
  // Comparisons neither trap nor flush, whatever the caller's mode. A call without options or weights compares none,
  // and changing the mode is a good part of what a call of one small row takes.
  std::optional<FpMode> fp_mode;
  xent_cross_entropy &args = call->args;
  Shape shape;
  call->mode = mode;
  XENT_TRY(ReadArgs(given.args, &args, &shape, error));
  const bool weighted = args.class_weights != nullptr || args.row_weights != nullptr;
  if (given.options != nullptr || weighted) fp_mode.emplace(Subnormals::kKeep);
  XENT_TRY(CheckEnum("logits.dtype", args.logits.dtype, XENT_F16, "XENT_F32, XENT_F64, XENT_BF16 or XENT_F16", error));
  XENT_TRY(ReadStructOrDefaults(args.statistics, "statistics", &call->statistics, error));
  int64_t total_cols = args.cols;
  if (step == Step::kShardForward || step == Step::kShardBackward) {
    XENT_TRY(CheckShard(given, args, shard, error));
    total_cols = shard->total_cols;
  }
  XENT_TRY(CheckOptions(given.options, total_cols, args.reduced_loss, &call->options, error));
  call->valid_cols = call->options.valid_cols;
  XENT_TRY(CheckExec(given.exec, &call->exec, error));
  if (step != Step::kWhole && shape.inner > 1) return NotTogether("inner", "shards", error);
  if (step != Step::kWhole && call->statistics.of_ignored != 0) {
    return NotTogether("statistics.of_ignored", "shards", error);
  }
  XENT_TRY(CheckOutputs(*call, step, error));
  if (step != Step::kShardCombine) {
    XENT_TRY(CheckMatrix("logits", shape, args.logits.dtype, Need::kRequired, &args.logits, error));
  }
  XENT_TRY(CheckLabels(shape, step, call, error));
  const bool wide = call->IsWide();
  const size_t size = wide ? 8 : 4;
  XENT_TRY(CheckArray("row_losses", args.row_losses, 0, size, error));
  XENT_TRY(CheckArray("reduced_loss", args.reduced_loss, 0, size, error));
  XENT_TRY(CheckArray("records", args.records, mode == Mode::kBackward ? args.rows : 0, alignof(Record), error));
  if (mode != Mode::kForward) XENT_TRY(CheckGradients(shape, call, error));
  if (args.workspace == nullptr && args.workspace_bytes > 0) {
    return Invalid(error, "workspace is NULL, expected memory of workspace_bytes, which is %zu", args.workspace_bytes);
  }
  if (args.statistics != nullptr) XENT_TRY(CheckStatistics(*call, error));
  if (weighted) {
    XENT_TRY(CheckWeights("class_weights", args.class_weights, total_cols, wide, WeightOf::kColumn, error));
    XENT_TRY(CheckWeights("row_weights", args.row_weights, args.rows, wide, WeightOf::kRow, error));
  }
  if (call->HasIndexTargets()) {
    XENT_TRY(CheckTargetValues(call, error));
  } else {
    call->live_rows = args.rows;
    call->weight = {static_cast<double>(args.rows), 0.0};
  }
  return mode == Mode::kBackward ? CheckRecords(*call, step, error) : XENT_OK;
}

}  // namespace xent::internal
