// The harness of the cross-entropy: a call with every option, in every layout, the judgement of what it wrote, and the
// comparison of two calls bit by bit. Uses the public API only.
#ifndef XENT_TESTS_TESTING_LOSS_CALL_H_
#define XENT_TESTS_TESTING_LOSS_CALL_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "reference/losses.h"
#include "testing/bounds.h"
#include "testing/data.h"
#include "testing/exec.h"
#include "testing/tensor.h"
#include "xent/xent.h"

namespace xent::test {

// The worst error of each output that was judged, with where it was.
struct WorstError {
  double ulp = -1;
  std::string where;
};
using WorstByOutput = std::map<std::string, WorstError>;

enum class Function { kForward, kForwardBackward, kBackward };
inline constexpr Function kFunctions[] = {Function::kForward, Function::kForwardBackward, Function::kBackward};
inline constexpr Function kForwards[] = {Function::kForward, Function::kForwardBackward};
inline constexpr Function kBackwards[] = {Function::kForwardBackward, Function::kBackward};
const char *NameOf(Function function);
// Of the C API.
using LossFunction = xent_status (*)(const xent_cross_entropy *, const xent_cross_entropy_options *, const xent_exec *,
                                     xent_error *);
LossFunction EntryPoint(Function function);

// Default options with a reduction.
xent_cross_entropy_options WithReduction(xent_reduction_kind kind);

// Inputs are set by the test, outputs are made anew by each run.
struct LossCall {
  using Rows = std::vector<std::vector<double>>;

  LossCall() = default;
  // Logits are poison until they are set; targets are 0.
  LossCall(xent_dtype dtype, int64_t rows, int64_t cols, int64_t inner = 0, int64_t padding = 0, int64_t misalign = 0);
  // Logits row after row, and index targets.
  LossCall(xent_dtype dtype, const Rows &logits, std::vector<int64_t> targets);

  xent_dtype dtype = XENT_F32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t inner = 0;
  int64_t padding = 0;
  Tensor logits;
  std::vector<int64_t> targets;
  xent_index_type targets_type = XENT_I64;
  std::optional<Tensor> target_probs;  // in place of the targets
  bool wants_target_grad = false;
  std::optional<Matrix> class_weights;  // [1, cols], arithmetic type
  std::optional<Matrix> row_weights;    // [1, rows], arithmetic type
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  bool pass_null_options = false;  // in place of `options`
  std::optional<Matrix> upstream;  // [1, 1 or rows], arithmetic type
  xent_upstream_kind upstream_kind = XENT_UPSTREAM_SCALAR;
  xent_exec exec = XENT_EXEC_INIT;
  bool in_place = false;                // over a copy of the logits, which becomes `grad`
  std::optional<int64_t> grad_padding;  // where the gradient's is not that of the logits
  std::optional<int64_t> grad_misalign;
  std::vector<unsigned char> workspace;  // none where empty

  // Which statistics to ask for beside lse, perplexity and live_rows; those of the target are not asked for with
  // target_probs.
  bool wants_logprobs = false;
  bool wants_argmax = false;  // and the hits
  bool wants_entropy = false;
  bool wants_rank = false;
  int64_t top_k = 0;
  int64_t gather_count = 0;
  std::vector<int64_t> gather_cols;  // [rows, gather_count]
  int64_t of_ignored = 0;

  Matrix row_losses, lse, reduced_loss;
  double perplexity = 0;
  int64_t live_rows = 0;
  std::vector<uint64_t> records;
  Tensor grad, target_grad;
  Matrix logprobs, entropy, topk_logprobs, gathered;
  std::vector<int64_t> argmax, rank, topk_indices;
  std::vector<uint8_t> hits;
  xent_error error = XENT_ERROR_INIT;

  xent_statistics statistics = XENT_STATISTICS_INIT;  // as Args passes it

  // Bell-shaped logits and uniform targets.
  void FillNormal(uint64_t seed, double deviation);
  void SetClassWeights(const std::vector<double> &values);
  void SetRowWeights(const std::vector<double> &values);
  // One value for all rows, or one a row.
  void SetUpstream(const std::vector<double> &values, xent_upstream_kind kind);
  void SetProbs(xent_dtype probs_dtype, const Rows &values);
  void WantEveryStatistic();  // top-k up to 3 and gathers the first and the last column
  void WantNoStatistic();

  bool IsIgnored(int64_t row) const { return !target_probs && targets.at(Index(row)) == options.ignore_index; }
  // XENT_RECORD_BYTES of a row.
  unsigned char *Record(int64_t row) {
    return reinterpret_cast<unsigned char *>(records.data()) + row * XENT_RECORD_BYTES;
  }

  // The call's arguments, outputs wired to fresh members. They point into this object. Records stay what they are where
  // there are any, for backward.
  xent_cross_entropy Args(Function function);
  xent_status Run(Function function);
  xent_status Forward() { return Run(Function::kForward); }
  xent_status ForwardBackward() { return Run(Function::kForwardBackward); }
  xent_status Backward() { return Run(Function::kBackward); }  // from `records`
  // Fails the test unless the status is XENT_OK.
  void MustRun(Function function);
  // Forward for the records, then backward.
  void MustRunForwardThenBackward();

  // What the reference takes.
  reference::LossInputs Inputs() const;

  // What differs first, bit by bit, "" if nothing does: what forward writes without the statistics that may be asked
  // for, those, and the gradients.
  std::string ForwardDifference(const LossCall &other) const;
  std::string StatisticsDifference(const LossCall &other) const;
  std::string GradientDifference(const LossCall &other) const;
  // All of it that the function writes, and the records.
  std::string Difference(const LossCall &other, Function function) const;
  // "" unless something outside of the elements was written.
  std::string PaddingTrouble() const;
  // Whether the call with the last arguments wrote nothing at all.
  ::testing::AssertionResult OutputsUntouched() const;

  // The first output that is outside of the bounds of semantics.md, in words, or "". `worst` may be null.
  std::string Judge(const reference::LossInputs &inputs, const reference::Losses &want, bool has_gradient,
                    WorstByOutput *worst = nullptr) const;
  // Everything that was written by the runs so far.
  std::string Judge() const;

 private:
  static size_t Index(int64_t n) { return static_cast<size_t>(n); }

  Function last_ = Function::kForward;  // of Args
  bool has_gradient_ = false;           // the last run wrote one
  std::vector<uint64_t> records_before_;
  std::vector<int32_t> narrow_targets_;
};

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_LOSS_CALL_H_
