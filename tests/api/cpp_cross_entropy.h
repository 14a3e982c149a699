// The tensors of a cross-entropy call, wired for C and for xent.hpp, and the three functions of each.
#ifndef XENT_TESTS_API_CPP_CROSS_ENTROPY_H_
#define XENT_TESTS_API_CPP_CROSS_ENTROPY_H_

#include <cstdint>
#include <span>
#include <vector>

#include "api/cpp_call.h"

namespace xent::test {

// Inputs and outputs of one call; the outputs poisoned.
template <class T, class Q>
struct CrossEntropyTensors {
  using A = Arithmetic<T>;
  using Args = CrossEntropy<T, int64_t, Q>;
  static constexpr xent_dtype kDtype = kDtypeOf<T>;
  static constexpr xent_dtype kArithmetic = kDtypeOf<A>;
  static constexpr int64_t kRows = 6;
  static constexpr int64_t kCols = 40;
  static constexpr int64_t kTopK = 3;
  static constexpr int64_t kGather = 2;

  explicit CrossEntropyTensors(int64_t stride = kCols + 3)
      : logits(Normal(kDtype, kRows, kCols, stride, 1)),
        probs(Uniform(kDtypeOf<Q>, kRows, kCols, stride == kCols ? stride : stride + 1, 2)),
        class_weights(Uniform(kArithmetic, 1, kCols, 0, 3)),
        row_weights(Uniform(kArithmetic, 1, kRows, 0, 4)),
        upstream(Uniform(kArithmetic, 1, kRows, 0, 5)),
        grad(kDtype, kRows, kCols, stride == kCols ? stride : stride + 2),
        target_grad(kDtypeOf<Q>, kRows, kCols, stride == kCols ? stride : stride + 3) {}

  xent_cross_entropy C(Function function) {
    xent_cross_entropy c = XENT_CROSS_ENTROPY_INIT;
    c.rows = kRows;
    c.cols = kCols;
    c.logits = View(logits);
    c.targets = {targets.data(), XENT_I64, 0};
    c.records = records.data();
    if (function != Function::kBackward) {
      c.row_losses = row_losses.data();
      c.reduced_loss = reduced_loss.data();
      statistics.lse = lse.data();
      statistics.logprobs = logprobs.data();
      statistics.argmax = argmax.data();
      statistics.hits = hits.data();
      statistics.rank = rank.data();
      statistics.entropy = entropy.data();
      statistics.top_k = kTopK;
      statistics.topk_logprobs = topk_logprobs.data();
      statistics.topk_indices = topk_indices.data();
      statistics.gather_count = kGather;
      statistics.gather_cols = gather_cols.data();
      statistics.gathered = gathered.data();
      statistics.perplexity = &perplexity;
      statistics.live_rows = &live_rows;
      c.statistics = &statistics;
    }
    if (function != Function::kForward) c.grad = View(grad);
    return c;
  }

  Args Cpp(Function function) {
    Args args = {.logits = View<T>(logits), .targets = targets, .records = records};
    if (function != Function::kBackward) {
      args.row_losses = Span<A>(row_losses);
      args.reduced_loss = Scalar<A>(reduced_loss);
      args.statistics = {.lse = Span<A>(lse),
                         .logprobs = Span<A>(logprobs),
                         .argmax = argmax,
                         .hits = hits,
                         .rank = rank,
                         .entropy = Span<A>(entropy),
                         .top_k = kTopK,
                         .topk_logprobs = Span<A>(topk_logprobs),
                         .topk_indices = topk_indices,
                         .gather_cols = gather_cols,
                         .gathered = Span<A>(gathered),
                         .perplexity = &perplexity,
                         .live_rows = &live_rows};
    }
    if (function != Function::kForward) args.grad = View<T>(grad);
    return args;
  }

  // Probability targets have no target column, so no statistics of it.
  void UseProbs(xent_cross_entropy &c) {
    c.targets = {};
    c.target_probs = View(probs);
    statistics.logprobs = nullptr;
    statistics.hits = nullptr;
    statistics.rank = nullptr;
  }
  void UseProbs(Args &args) {
    args.targets = {};
    args.target_probs = View<Q>(probs);
    args.statistics.logprobs = {};
    args.statistics.hits = {};
    args.statistics.rank = {};
  }

  Snapshot Outputs() const {
    Snapshot out;
    out.Add("row_losses", row_losses);
    out.Add("reduced_loss", reduced_loss);
    out.Add("lse", lse);
    out.Add("logprobs", logprobs);
    out.Add("entropy", entropy);
    out.Add("topk_logprobs", topk_logprobs);
    out.Add("gathered", gathered);
    out.Add("grad", grad);
    out.Add("target_grad", target_grad);
    out.Add("logits", logits);
    out.Add("perplexity", std::span(&perplexity, 1));
    out.Add("live_rows", std::span(&live_rows, 1));
    out.Add("argmax", std::span(argmax));
    out.Add("hits", std::span(hits));
    out.Add("rank", std::span(rank));
    out.Add("topk_indices", std::span(topk_indices));
    out.Add("records", std::span(records));
    return out;
  }

  Matrix logits, probs, class_weights, row_weights, upstream;
  std::vector<int64_t> targets = {7, 0, -100, 33, 12, 12};
  std::vector<int64_t> gather_cols = {0, 1, 2, 3, 35, 34, 33, 32, 31, 30, 29, 28};
  Matrix row_losses{kArithmetic, 1, kRows}, lse = row_losses, logprobs = row_losses, entropy = row_losses;
  Matrix reduced_loss{kArithmetic, 1, 1};
  Matrix topk_logprobs{kArithmetic, 1, kRows *kTopK}, gathered{kArithmetic, 1, kRows *kGather};
  Matrix grad, target_grad;
  double perplexity = -77;
  int64_t live_rows = -77;
  std::vector<int64_t> argmax = std::vector<int64_t>(kRows, -77), rank = argmax;
  std::vector<uint8_t> hits = std::vector<uint8_t>(kRows, 77);
  std::vector<int64_t> topk_indices = std::vector<int64_t>(kRows * kTopK, -77);
  std::vector<::xent::Record> records = std::vector<::xent::Record>(kRows);
  xent_statistics statistics = XENT_STATISTICS_INIT;  // as C passes it
};

inline xent_status RunC(Function function, const xent_cross_entropy &args, const xent_cross_entropy_options &options) {
  return EntryPoint(function)(&args, &options, nullptr, nullptr);
}

template <class T, class Q>
Status RunCpp(Function function, const CrossEntropy<T, int64_t, Q> &args, const CrossEntropyOptions &options = {}) {
  switch (function) {
    case Function::kForward:
      return CrossEntropyForward(args, options);
    case Function::kForwardBackward:
      return CrossEntropyForwardBackward(args, options);
    default:
      return CrossEntropyBackward(args, options);
  }
}

}  // namespace xent::test

#endif  // XENT_TESTS_API_CPP_CROSS_ENTROPY_H_
