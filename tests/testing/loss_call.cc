// A cross-entropy call with every option; see loss_call.h.
#include "testing/loss_call.h"

#include <cmath>
#include <cstdio>
#include <cstring>
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

constexpr int64_t kUnwritten = -77777;

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

LossCall::LossCall(xent_dtype dtype_in, int64_t rows_in, int64_t cols_in, int64_t inner_in, int64_t padding_in,
                   int64_t misalign)
    : dtype(dtype_in),
      rows(rows_in),
      cols(cols_in),
      inner(inner_in),
      padding(padding_in),
      logits(dtype, rows, cols, inner, padding, misalign),
      targets(Size(rows), 0) {}

LossCall::LossCall(xent_dtype dtype_in, const std::vector<std::vector<double>> &values, std::vector<int64_t> targets_in)
    : LossCall(dtype_in, static_cast<int64_t>(values.size()), static_cast<int64_t>(values.at(0).size())) {
  targets = std::move(targets_in);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) logits.Set(i, c, values[Size(i)].at(Size(c)));
  }
}

void LossCall::SetClassWeights(const std::vector<double> &values) {
  class_weights = Vector(ArithmeticType(dtype), values);
}
void LossCall::SetRowWeights(const std::vector<double> &values) { row_weights = Vector(ArithmeticType(dtype), values); }
void LossCall::SetUpstream(const std::vector<double> &values, xent_upstream kind) {
  upstream = Vector(ArithmeticType(dtype), values);
  upstream_kind = kind;
}
void LossCall::SetProbs(xent_dtype probs_dtype, const std::vector<std::vector<double>> &values) {
  target_probs = Tensor(probs_dtype, rows, cols, inner, padding);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) target_probs->Set(i, c, values[Size(i)].at(Size(c)));
  }
}
void LossCall::WantEveryStatistic() {
  const int64_t valid = options.valid_cols == 0 ? cols : options.valid_cols;
  wants_logprobs = wants_argmax = wants_entropy = wants_rank = true;
  top_k = static_cast<int32_t>(std::min<int64_t>(valid, 3));
  gather_count = 2;
  gather_cols.clear();
  for (int64_t i = 0; i < rows; ++i) gather_cols.insert(gather_cols.end(), {0, valid - 1});
}
void LossCall::WantNoStatistic() {
  wants_logprobs = wants_argmax = wants_entropy = wants_rank = false;
  top_k = 0;
  gather_count = 0;
}

xent_cross_entropy LossCall::Args(bool forward, bool backward) {
  const xent_dtype arithmetic = ArithmeticType(dtype);
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.inner = inner;
  args.logits = logits.data();
  args.logits_stride = logits.stride();
  args.dtype = dtype;
  args.targets_type = targets_type;
  if (target_probs) {
    args.target_probs = target_probs->data();
    args.target_probs_stride = target_probs->stride();
    args.target_probs_dtype = target_probs->dtype();
  } else if (targets_type == XENT_I64) {
    args.targets = targets.data();
  }
  if (class_weights) args.class_weights = class_weights->data();
  if (row_weights) args.row_weights = row_weights->data();
  if (records.size() != Size(rows) * XENT_RECORD_BYTES / sizeof(uint64_t)) {
    records.assign(Size(rows) * XENT_RECORD_BYTES / sizeof(uint64_t), 0x5555555555555555u);
  }
  args.records = records.data();
  if (forward) {
    losses = Matrix(arithmetic, 1, rows);
    lse = Matrix(arithmetic, 1, rows);
    loss = Matrix(arithmetic, 1, 1);
    args.losses = losses.data();
    args.lse = lse.data();
    args.loss = options.reduction == XENT_REDUCTION_NONE ? nullptr : loss.data();
    args.perplexity = &perplexity;
    args.live_rows = &live_rows;
    perplexity = static_cast<double>(kUnwritten);
    live_rows = kUnwritten;
    if (wants_logprobs && !target_probs) {
      logprobs = Matrix(arithmetic, 1, rows);
      args.logprobs = logprobs.data();
    }
    if (wants_argmax) {
      argmax.assign(Size(rows), kUnwritten);
      args.argmax = argmax.data();
      if (!target_probs) {
        hits.assign(Size(rows), 77);
        args.hits = hits.data();
      }
    }
    if (wants_entropy) {
      entropy = Matrix(arithmetic, 1, rows);
      args.entropy = entropy.data();
    }
    if (wants_rank && !target_probs) {
      rank.assign(Size(rows), kUnwritten);
      args.rank = rank.data();
    }
    if (top_k > 0) {
      topk_logprobs = Matrix(arithmetic, 1, rows * top_k);
      topk_indices.assign(Size(rows * top_k), kUnwritten);
      args.top_k = top_k;
      args.topk_logprobs = topk_logprobs.data();
      args.topk_indices = topk_indices.data();
    }
    if (gather_count > 0) {
      gathered = Matrix(arithmetic, 1, rows * gather_count);
      args.gathered = gathered.data();
      args.gather_cols = gather_cols.data();
      args.gather_count = gather_count;
    }
  }
  if (backward) {
    if (in_place) {
      grad = logits;
      args.logits = grad.data();
      args.in_place = 1;
    } else {
      const int64_t misalign =
          static_cast<int64_t>((reinterpret_cast<uintptr_t>(logits.data()) & 63)) / reference::FormatOf(dtype).bytes;
      grad = Tensor(dtype, rows, cols, inner, padding, misalign);
    }
    args.grad = grad.data();
    args.grad_stride = grad.stride();
    if (wants_target_grad && target_probs) {
      target_grad = Tensor(target_probs->dtype(), rows, cols, inner, padding);
      args.target_grad = target_grad.data();
      args.target_grad_stride = target_grad.stride();
    }
    args.upstream_kind = upstream_kind;
    args.upstream = upstream_kind == XENT_UPSTREAM_ONE ? nullptr : upstream.data();
  }
  return args;
}

namespace {

using Function = xent_status (*)(const xent_cross_entropy *, const xent_options *, const xent_exec *, xent_error *);

xent_status Run(LossCall &call, bool forward, bool backward, Function function) {
  call.error = XENT_ERROR_INIT;
  xent_cross_entropy args = call.Args(forward, backward);
  std::vector<int32_t> narrow;
  if (!call.target_probs && call.targets_type == XENT_I32) {
    narrow.assign(call.targets.begin(), call.targets.end());
    args.targets = narrow.data();
  }
  return function(&args, &call.options, &call.exec, &call.error);
}

}  // namespace

xent_status LossCall::Forward() { return Run(*this, true, false, xent_cross_entropy_forward); }
xent_status LossCall::ForwardBackward() { return Run(*this, true, true, xent_cross_entropy_forward_backward); }
xent_status LossCall::Backward() { return Run(*this, false, true, xent_cross_entropy_backward); }

reference::LossInputs LossCall::Inputs() const {
  reference::LossInputs inputs;
  inputs.dtype = dtype;
  inputs.rows = rows;
  inputs.cols = cols;
  inputs.logits = Decode(logits);
  if (target_probs) {
    inputs.target_probs = Decode(*target_probs);
  } else {
    inputs.targets = targets;
  }
  if (class_weights) inputs.class_weights = Decode(*class_weights);
  if (row_weights) inputs.row_weights = Decode(*row_weights);
  if (upstream_kind != XENT_UPSTREAM_ONE) {
    inputs.upstream = Decode(upstream);
    inputs.upstream_per_row = upstream_kind == XENT_UPSTREAM_ROWS;
  }
  inputs.options = options;
  return inputs;
}

std::string LossCall::ForwardDifference(const LossCall &other) const {
  const std::pair<const char *, Matrix LossCall::*> kParts[] = {
      {"losses ", &LossCall::losses}, {"lse ", &LossCall::lse}, {"loss ", &LossCall::loss}};
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

std::string LossCall::PaddingTrouble() const {
  const std::pair<const char *, const Matrix *> kAll[] = {{"losses", &losses},
                                                          {"lse", &lse},
                                                          {"loss", &loss},
                                                          {"logits", &logits.matrix()},
                                                          {"grad", &grad.matrix()},
                                                          {"target_grad", &target_grad.matrix()},
                                                          {"logprobs", &logprobs},
                                                          {"entropy", &entropy},
                                                          {"topk_logprobs", &topk_logprobs},
                                                          {"gathered", &gathered}};
  for (const auto &[name, matrix] : kAll) {
    if (!matrix->PaddingIntact()) return std::string("memory around ") + name + " was written";
  }
  return "";
}

std::string LossCall::Judge(bool has_gradient) const {
  const reference::LossInputs inputs = Inputs();
  return Judge(inputs, reference::EvaluateLosses(inputs), has_gradient);
}

std::string LossCall::Judge(const reference::LossInputs &inputs, const reference::Losses &want, bool has_gradient,
                            WorstByOutput *worst) const {
  const xent_dtype arithmetic = ArithmeticType(dtype);
  Judgement judge(worst);
  const bool has_target_grad = has_gradient && wants_target_grad && target_probs;
  for (int64_t i = 0; i < rows; ++i) {
    judge.Number("loss", losses, i, want.losses[Size(i)], kLossBound);
    judge.Number("lse", lse, i, want.lse[Size(i)], kLseBound);
    for (int64_t c = 0; has_gradient && c < cols; ++c) {
      judge.Number("grad", arithmetic, grad, i, c, reference::GradientOf(inputs, want, i, c), kGradientBound);
    }
    for (int64_t c = 0; has_target_grad && c < cols; ++c) {
      judge.Number("target_grad", arithmetic, target_grad, i, c, reference::TargetGradientOf(inputs, want, i, c),
                   kGradientBound);
    }
    std::vector<int64_t> columns;
    if (gather_count > 0) {
      columns.assign(gather_cols.begin() + i * gather_count, gather_cols.begin() + (i + 1) * gather_count);
    }
    if (!wants_logprobs && !wants_argmax && !wants_entropy && !wants_rank && top_k == 0 && columns.empty()) continue;
    const reference::RowStatistics statistics = reference::StatisticsOf(inputs, want, i, top_k, columns);
    if (wants_logprobs && !target_probs) {
      judge.Number("logprobs", logprobs, i, statistics.logprob, kLogProbabilityBound);
    }
    if (wants_argmax) judge.Index("argmax", i, argmax[Size(i)], statistics.argmax);
    if (wants_argmax && !target_probs) judge.Index("hits", i, hits[Size(i)], statistics.hit ? 1 : 0);
    if (wants_entropy) judge.Number("entropy", entropy, i, statistics.entropy, kEntropyBound);
    if (wants_rank && !target_probs) judge.Index("rank", i, rank[Size(i)], statistics.rank);
    for (int64_t k = 0; k < top_k; ++k) {
      judge.Index("topk_indices", i * top_k + k, topk_indices[Size(i * top_k + k)], statistics.topk_indices[Size(k)]);
      judge.Number("topk_logprobs", topk_logprobs, i * top_k + k, statistics.topk_logprobs[Size(k)],
                   kLogProbabilityBound);
    }
    for (int64_t k = 0; k < gather_count; ++k) {
      judge.Number("gathered", gathered, i * gather_count + k, statistics.gathered[Size(k)], kLogProbabilityBound);
    }
  }
  if (options.reduction != XENT_REDUCTION_NONE) judge.Number("reduced loss", loss, 0, want.loss, kLossBound);
  judge.Index("live_rows", 0, live_rows, want.live_rows);

  const long double difference = std::fabs(perplexity - want.perplexity);
  bool perplexity_is_right = difference <= want.perplexity_relative_error * want.perplexity;
  if (std::isnan(want.perplexity)) perplexity_is_right = std::isnan(perplexity);
  if (want.perplexity > 1e300L) perplexity_is_right = perplexity > 1e299;
  if (!perplexity_is_right) {
    char text[120];
    std::snprintf(text, sizeof(text), "perplexity got %.17g want %.21Lg, relative error at most %.3Lg", perplexity,
                  want.perplexity, want.perplexity_relative_error);
    judge.Complain(text);
  }
  return judge.complaint();
}

}  // namespace xent::test
