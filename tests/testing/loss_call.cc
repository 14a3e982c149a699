// A cross-entropy call with every option; see loss_call.h.
#include "testing/loss_call.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

namespace xent::test {
namespace {

using reference::ArithmeticType;
using reference::Value;

size_t Size(int64_t n) { return static_cast<size_t>(n); }

Matrix Vector(xent_dtype dtype, const std::vector<double> &values) {
  Matrix matrix(dtype, 1, static_cast<int64_t>(values.size()));
  for (size_t k = 0; k < values.size(); ++k) matrix.Set(0, static_cast<int64_t>(k), values[k]);
  return matrix;
}

std::vector<double> Decode(const Matrix &matrix) {
  std::vector<double> values;
  for (int64_t k = 0; k < matrix.cols(); ++k) values.push_back(matrix.Get(0, k));
  return values;
}

std::vector<double> Decode(const Tensor &tensor) {
  std::vector<double> values;
  values.reserve(Size(tensor.rows() * tensor.cols()));
  for (int64_t i = 0; i < tensor.rows(); ++i) {
    for (int64_t c = 0; c < tensor.cols(); ++c) values.push_back(tensor.Get(i, c));
  }
  return values;
}

template <typename T>
std::string FirstDifferent(const std::vector<T> &a, const std::vector<T> &b) {
  if (a.size() != b.size()) return "sizes differ";
  for (size_t k = 0; k < a.size(); ++k) {
    if (a[k] != b[k]) return "[" + std::to_string(k) + "] " + std::to_string(a[k]) + " and " + std::to_string(b[k]);
  }
  return "";
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kUnwritten = -77777;
constexpr uint8_t kUnwrittenHit = 77;

// Keeps the first complaint and the worst errors.
class Judgement {
 public:
  explicit Judgement(WorstByOutput *worst) : worst_(worst) {}

  void Number(const std::string &output, xent_dtype arithmetic, double ulp, double bound, double got, Value want,
              int64_t i, int64_t j) {
    const bool fine = ulp <= bound;  // not for NaN
    WorstError *record = worst_ == nullptr ? nullptr : &(*worst_)[output + " " + reference::NameOf(arithmetic)];
    const bool is_worst = record != nullptr && ulp > record->ulp;
    if (fine && !is_worst) return;
    char text[300];
    std::snprintf(text, sizeof(text),
                  "%s[%lld,%lld] got %.17g want %.21Lg counted at %.6Lg, slack %.3Lg: %.3f ULP, at most %g",
                  output.c_str(), static_cast<long long>(i), static_cast<long long>(j), got, want.exact, want.scale,
                  want.slack, ulp, bound);
    if (is_worst) *record = {ulp, text};
    if (!fine && complaint_.empty()) complaint_ = text;
  }

  void Number(const std::string &output, const Matrix &got, int64_t k, Value want, double bound) {
    Number(output, got.dtype(), reference::ErrorInUlp(got.dtype(), got.row(0), k, want), bound, got.Get(0, k), want, 0,
           k);
  }
  void Number(const std::string &output, xent_dtype arithmetic, const Tensor &got, int64_t i, int64_t c, Value want,
              double bound) {
    Number(output, arithmetic, got.ErrorInUlp(arithmetic, i, c, want), bound, got.Get(i, c), want, i, c);
  }
  void Index(const std::string &output, int64_t k, int64_t got, int64_t want) {
    if (got == want || !complaint_.empty()) return;
    complaint_ = output + "[" + std::to_string(k) + "] got " + std::to_string(got) + " want " + std::to_string(want);
  }
  void Complain(std::string text) {
    if (complaint_.empty()) complaint_ = std::move(text);
  }

  const std::string &complaint() const { return complaint_; }

 private:
  WorstByOutput *worst_;
  std::string complaint_;
};

}  // namespace

const char *NameOf(Function function) {
  switch (function) {
    case Function::kForward:
      return "forward";
    case Function::kForwardBackward:
      return "forward_backward";
    default:
      return "backward";
  }
}

LossFunction EntryPoint(Function function) {
  switch (function) {
    case Function::kForward:
      return xent_cross_entropy_forward;
    case Function::kForwardBackward:
      return xent_cross_entropy_forward_backward;
    default:
      return xent_cross_entropy_backward;
  }
}

xent_cross_entropy_options WithReduction(xent_reduction_kind kind) {
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  options.reduction.kind = kind;
  return options;
}

LossCall::LossCall(xent_dtype dtype_in, int64_t rows_in, int64_t cols_in, int64_t inner_in, int64_t padding_in,
                   int64_t misalign)
    : dtype(dtype_in),
      rows(rows_in),
      cols(cols_in),
      inner(inner_in),
      padding(padding_in),
      logits(dtype, rows, cols, inner, padding, misalign),
      targets(Size(rows), 0) {}

LossCall::LossCall(xent_dtype dtype_in, const Rows &values, std::vector<int64_t> targets_in)
    : LossCall(dtype_in, static_cast<int64_t>(values.size()), static_cast<int64_t>(values.at(0).size())) {
  targets = std::move(targets_in);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) logits.Set(i, c, values[Size(i)].at(Size(c)));
  }
}

void LossCall::FillNormal(uint64_t seed, double deviation) {
  Random random(seed);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) logits.Set(i, c, random.Normal(deviation));
    targets[Size(i)] = random.Below(cols);
  }
}
void LossCall::SetClassWeights(const std::vector<double> &values) {
  class_weights = Vector(ArithmeticType(dtype), values);
}
void LossCall::SetRowWeights(const std::vector<double> &values) { row_weights = Vector(ArithmeticType(dtype), values); }
void LossCall::SetUpstream(const std::vector<double> &values, xent_upstream_kind kind) {
  upstream = Vector(ArithmeticType(dtype), values);
  upstream_kind = kind;
}
void LossCall::SetProbs(xent_dtype probs_dtype, const Rows &values) {
  target_probs = Tensor(probs_dtype, rows, cols, inner, padding);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) target_probs->Set(i, c, values[Size(i)].at(Size(c)));
  }
}
void LossCall::WantEveryStatistic() {
  const int64_t valid = options.valid_cols == 0 ? cols : options.valid_cols;
  wants_logprobs = wants_argmax = wants_entropy = wants_rank = true;
  top_k = std::min<int64_t>(valid, 3);
  gather_count = 2;
  gather_cols.clear();
  for (int64_t i = 0; i < rows; ++i) gather_cols.insert(gather_cols.end(), {0, valid - 1});
}
void LossCall::WantNoStatistic() {
  wants_logprobs = wants_argmax = wants_entropy = wants_rank = false;
  top_k = 0;
  gather_count = 0;
}

xent_cross_entropy LossCall::Args(Function function) {
  last_ = function;
  const xent_dtype arithmetic = ArithmeticType(dtype);
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.inner = inner;
  args.logits = View(logits);
  if (target_probs) {
    args.target_probs = View(*target_probs);
  } else {
    if (targets_type == XENT_I32) narrow_targets_.assign(targets.begin(), targets.end());
    const void *const data = targets_type == XENT_I32 ? static_cast<const void *>(narrow_targets_.data())
                                                      : static_cast<const void *>(targets.data());
    args.targets = {.data = data, .type = targets_type, .reserved = 0};
  }
  if (class_weights) args.class_weights = class_weights->data();
  if (row_weights) args.row_weights = row_weights->data();
  if (records.size() != Size(rows) * XENT_RECORD_BYTES / sizeof(uint64_t)) {
    records.assign(Size(rows) * XENT_RECORD_BYTES / sizeof(uint64_t), 0x5555555555555555u);
  }
  records_before_ = records;
  args.records = records.data();
  if (!workspace.empty()) {
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
  }
  if (function != Function::kBackward) {
    const auto row_numbers = [&](int64_t count) {
      return Matrix(arithmetic, 1, rows * count, std::max<int64_t>(rows * count, 1));
    };
    const auto row_indices = [&](int64_t count) { return std::vector<int64_t>(Size(rows * count), kUnwritten); };
    row_losses = row_numbers(1);
    args.row_losses = row_losses.data();
    reduced_loss = Matrix(arithmetic, 1, 1);
    if (options.reduction.kind != XENT_REDUCTION_NONE) args.reduced_loss = reduced_loss.data();
    logprobs = entropy = topk_logprobs = gathered = Matrix();
    argmax.clear();
    hits.clear();
    rank.clear();
    topk_indices.clear();
    statistics = XENT_STATISTICS_INIT;
    args.statistics = &statistics;
    statistics.of_ignored = of_ignored;
    lse = row_numbers(1);
    statistics.lse = lse.data();
    perplexity = static_cast<double>(kUnwritten);
    statistics.perplexity = &perplexity;
    live_rows = kUnwritten;
    statistics.live_rows = &live_rows;
    if (wants_logprobs && !target_probs) {
      logprobs = row_numbers(1);
      statistics.logprobs = logprobs.data();
    }
    if (wants_argmax) {
      argmax = row_indices(1);
      statistics.argmax = argmax.data();
      if (!target_probs) {
        hits.assign(Size(rows), kUnwrittenHit);
        statistics.hits = hits.data();
      }
    }
    if (wants_entropy) {
      entropy = row_numbers(1);
      statistics.entropy = entropy.data();
    }
    if (wants_rank && !target_probs) {
      rank = row_indices(1);
      statistics.rank = rank.data();
    }
    if (top_k > 0) {
      topk_logprobs = row_numbers(top_k);
      topk_indices = row_indices(top_k);
      statistics.top_k = top_k;
      statistics.topk_logprobs = topk_logprobs.data();
      statistics.topk_indices = topk_indices.data();
    }
    if (gather_count > 0) {
      gathered = row_numbers(gather_count);
      statistics.gathered = gathered.data();
      statistics.gather_cols = gather_cols.data();
      statistics.gather_count = gather_count;
    }
  }
  if (function != Function::kForward) {
    if (in_place) {
      grad = logits;
      args.logits = View(grad);
    } else {
      const int64_t misalign =
          static_cast<int64_t>(reinterpret_cast<uintptr_t>(logits.data()) & 63) / reference::FormatOf(dtype).bytes;
      grad = Tensor(dtype, rows, cols, inner, grad_padding.value_or(padding), grad_misalign.value_or(misalign));
    }
    args.grad = View(grad);
    if (wants_target_grad && target_probs) {
      target_grad = Tensor(target_probs->dtype(), rows, cols, inner, padding);
      args.target_grad = View(target_grad);
    }
    if (upstream) args.upstream = {.data = upstream->data(), .stride = 0, .kind = upstream_kind, .reserved = 0};
  }
  return args;
}

xent_status LossCall::Run(Function function) {
  error = XENT_ERROR_INIT;
  const xent_cross_entropy args = Args(function);
  const xent_status status = EntryPoint(function)(&args, pass_null_options ? nullptr : &options, &exec, &error);
  has_gradient_ = status == XENT_OK && function != Function::kForward;
  return status;
}

void LossCall::MustRun(Function function) {
  ASSERT_EQ(Run(function), XENT_OK) << NameOf(function) << " " << reference::NameOf(dtype) << " " << rows << "x" << cols
                                    << ", inner " << inner << ": " << error.message;
}

void LossCall::MustRunForwardThenBackward() {
  MustRun(Function::kForward);
  MustRun(Function::kBackward);
}

reference::LossInputs LossCall::Inputs() const {
  reference::LossInputs inputs;
  inputs.dtype = dtype;
  inputs.rows = rows;
  inputs.cols = cols;
  inputs.inner = inner;
  inputs.logits = Decode(logits);
  if (target_probs) {
    inputs.target_probs = Decode(*target_probs);
  } else {
    inputs.targets = targets;
  }
  if (class_weights) inputs.class_weights = Decode(*class_weights);
  if (row_weights) inputs.row_weights = Decode(*row_weights);
  if (upstream) {
    inputs.upstream = Decode(*upstream);
    inputs.upstream_per_row = upstream_kind == XENT_UPSTREAM_ROWS;
  }
  if (!pass_null_options) inputs.options = options;
  inputs.of_ignored = of_ignored != 0;
  return inputs;
}

std::string LossCall::ForwardDifference(const LossCall &other) const {
  const std::pair<const char *, Matrix LossCall::*> kParts[] = {
      {"row_losses ", &LossCall::row_losses}, {"lse ", &LossCall::lse}, {"reduced_loss ", &LossCall::reduced_loss}};
  for (const auto &[name, part] : kParts) {
    const std::string difference = FirstDifference(this->*part, other.*part);
    if (!difference.empty()) return name + difference;
  }
  if (std::memcmp(&perplexity, &other.perplexity, sizeof(perplexity)) != 0) {
    return "perplexity " + std::to_string(perplexity) + " and " + std::to_string(other.perplexity);
  }
  return live_rows == other.live_rows ? "" : "live_rows";
}

std::string LossCall::StatisticsDifference(const LossCall &other) const {
  const std::pair<const char *, Matrix LossCall::*> kNumbers[] = {{"logprobs ", &LossCall::logprobs},
                                                                  {"entropy ", &LossCall::entropy},
                                                                  {"topk_logprobs ", &LossCall::topk_logprobs},
                                                                  {"gathered ", &LossCall::gathered}};
  for (const auto &[name, part] : kNumbers) {
    const std::string difference = FirstDifference(this->*part, other.*part);
    if (!difference.empty()) return name + difference;
  }
  const std::pair<const char *, std::vector<int64_t> LossCall::*> kIndices[] = {
      {"argmax ", &LossCall::argmax}, {"rank ", &LossCall::rank}, {"topk_indices ", &LossCall::topk_indices}};
  for (const auto &[name, part] : kIndices) {
    const std::string difference = FirstDifferent(this->*part, other.*part);
    if (!difference.empty()) return name + difference;
  }
  return hits == other.hits ? "" : "hits";
}

std::string LossCall::GradientDifference(const LossCall &other) const {
  std::string difference = FirstDifference(grad.matrix(), other.grad.matrix());
  if (!difference.empty()) return "grad " + difference;
  if (!wants_target_grad) return "";
  difference = FirstDifference(target_grad.matrix(), other.target_grad.matrix());
  return difference.empty() ? "" : "target_grad " + difference;
}

std::string LossCall::Difference(const LossCall &other, Function function) const {
  if (function != Function::kBackward) {
    std::string difference = ForwardDifference(other);
    if (difference.empty()) difference = StatisticsDifference(other);
    if (!difference.empty()) return difference;
    for (size_t k = 0; k < std::max(records.size(), other.records.size()); ++k) {
      if (k < records.size() && k < other.records.size() && records[k] == other.records[k]) continue;
      return "record of row " + std::to_string(k * sizeof(uint64_t) / XENT_RECORD_BYTES);
    }
  }
  return function == Function::kForward ? "" : GradientDifference(other);
}

std::string LossCall::PaddingTrouble() const {
  const std::pair<const char *, const Matrix *> kAll[] = {
      {"row_losses", &row_losses},       {"lse", &lse},
      {"reduced_loss", &reduced_loss},   {"logits", &logits.matrix()},
      {"grad", &grad.matrix()},          {"target_grad", &target_grad.matrix()},
      {"logprobs", &logprobs},           {"entropy", &entropy},
      {"topk_logprobs", &topk_logprobs}, {"gathered", &gathered}};
  for (const auto &[name, matrix] : kAll) {
    if (!matrix->PaddingIntact()) return std::string("memory around ") + name + " was written";
  }
  if (target_probs && !target_probs->matrix().PaddingIntact()) return "memory around target_probs was written";
  return "";
}

::testing::AssertionResult LossCall::OutputsUntouched() const {
  const auto written = [](const Matrix &matrix) {
    for (int64_t i = 0; i < matrix.rows(); ++i) {
      for (int64_t j = 0; j < matrix.cols(); ++j) {
        if (matrix.GetBits(i, j) != matrix.PoisonBits()) return true;
      }
    }
    return false;
  };
  const auto failure = [](const std::string &name) { return ::testing::AssertionFailure() << name << " was written"; };
  if (records != records_before_) return failure("records");
  if (last_ != Function::kBackward) {
    const std::pair<const char *, const Matrix *> kNumbers[] = {
        {"row_losses", &row_losses}, {"lse", &lse},         {"reduced_loss", &reduced_loss},
        {"logprobs", &logprobs},     {"entropy", &entropy}, {"topk_logprobs", &topk_logprobs},
        {"gathered", &gathered}};
    for (const auto &[name, matrix] : kNumbers) {
      if (written(*matrix)) return failure(name);
    }
    const std::pair<const char *, const std::vector<int64_t> *> kIndices[] = {
        {"argmax", &argmax}, {"rank", &rank}, {"topk_indices", &topk_indices}};
    for (const auto &[name, indices] : kIndices) {
      for (const int64_t index : *indices) {
        if (index != kUnwritten) return failure(name);
      }
    }
    for (const uint8_t hit : hits) {
      if (hit != kUnwrittenHit) return failure("hits");
    }
    if (perplexity != static_cast<double>(kUnwritten)) return failure("perplexity");
    if (live_rows != kUnwritten) return failure("live_rows");
  }
  if (last_ != Function::kForward) {
    if (in_place ? !FirstDifference(grad, logits).empty() : written(grad.matrix())) return failure("grad");
    if (wants_target_grad && target_probs && written(target_grad.matrix())) return failure("target_grad");
  }
  const std::string trouble = PaddingTrouble();
  if (!trouble.empty()) return ::testing::AssertionFailure() << trouble;
  return ::testing::AssertionSuccess();
}

std::string LossCall::Judge() const {
  const reference::LossInputs inputs = Inputs();
  return Judge(inputs, reference::EvaluateLosses(inputs), has_gradient_);
}

std::string LossCall::Judge(const reference::LossInputs &inputs, const reference::Losses &want, bool has_gradient,
                            WorstByOutput *worst) const {
  const xent_dtype arithmetic = ArithmeticType(dtype);
  Judgement judge(worst);
  const bool has_target_grad = has_gradient && wants_target_grad && target_probs;
  for (int64_t i = 0; i < rows; ++i) {
    judge.Number("row_losses", row_losses, i, want.losses[Size(i)], kLossUlp);
    judge.Number("lse", lse, i, want.lse[Size(i)], kLseUlp);
    for (int64_t c = 0; has_gradient && c < cols; ++c) {
      judge.Number("grad", arithmetic, grad, i, c, reference::GradientOf(inputs, want, i, c), kGradientUlp);
    }
    for (int64_t c = 0; has_target_grad && c < cols; ++c) {
      judge.Number("target_grad", arithmetic, target_grad, i, c, reference::TargetGradientOf(inputs, want, i, c),
                   kGradientUlp);
    }
    std::vector<int64_t> columns;
    if (gather_count > 0) {
      columns.assign(gather_cols.begin() + i * gather_count, gather_cols.begin() + (i + 1) * gather_count);
    }
    if (!wants_logprobs && !wants_argmax && !wants_entropy && !wants_rank && top_k == 0 && columns.empty()) continue;
    const reference::RowStatistics statistics = reference::StatisticsOf(inputs, want, i, top_k, columns);
    if (wants_logprobs && !target_probs) {
      judge.Number("logprobs", logprobs, i, statistics.logprob, kLogProbabilityUlp);
    }
    if (wants_argmax) judge.Index("argmax", i, argmax[Size(i)], statistics.argmax);
    if (wants_argmax && !target_probs) judge.Index("hits", i, hits[Size(i)], statistics.hit ? 1 : 0);
    if (wants_entropy) judge.Number("entropy", entropy, i, statistics.entropy, kEntropyUlp);
    if (wants_rank && !target_probs) judge.Index("rank", i, rank[Size(i)], statistics.rank);
    for (int64_t k = 0; k < top_k; ++k) {
      judge.Index("topk_indices", i * top_k + k, topk_indices[Size(i * top_k + k)], statistics.topk_indices[Size(k)]);
      judge.Number("topk_logprobs", topk_logprobs, i * top_k + k, statistics.topk_logprobs[Size(k)],
                   kLogProbabilityUlp);
    }
    for (int64_t k = 0; k < gather_count; ++k) {
      judge.Number("gathered", gathered, i * gather_count + k, statistics.gathered[Size(k)], kLogProbabilityUlp);
    }
  }
  if (options.reduction.kind != XENT_REDUCTION_NONE)
    judge.Number("reduced_loss", reduced_loss, 0, want.loss, kReducedLossUlp);
  judge.Index("live_rows", 0, live_rows, want.live_rows);

  // A double, infinite past the largest.
  const long double low = want.perplexity * (1 - want.perplexity_relative_error);
  const long double high = want.perplexity * (1 + want.perplexity_relative_error);
  bool perplexity_is_right = perplexity >= low && perplexity <= high;
  if (perplexity == kInfinity) perplexity_is_right = high > std::numeric_limits<double>::max();
  if (std::isinf(want.perplexity)) perplexity_is_right = perplexity == kInfinity;
  if (std::isnan(want.perplexity)) perplexity_is_right = std::isnan(perplexity);
  if (!perplexity_is_right) {
    char text[120];
    std::snprintf(text, sizeof(text), "perplexity got %.17g want %.21Lg, relative error at most %.3Lg", perplexity,
                  want.perplexity, want.perplexity_relative_error);
    judge.Complain(text);
  }
  return judge.complaint();
}

}  // namespace xent::test
