// A cross-entropy call with every option, in every layout, and the judgement of what it wrote. Uses the public API
// only.
#ifndef XENT_TESTS_TESTING_LOSS_CALL_H_
#define XENT_TESTS_TESTING_LOSS_CALL_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "reference/losses.h"
#include "testing/data.h"
#include "xent/xent.h"

namespace xent::test {

// A matrix [rows, cols] in one of the layouts of xent.h: inner <= 1 is row-major, else the class dimension lies in the
// middle of [rows / inner, cols, inner]. `padding` elements follow each row (each group of `inner` rows).
class Tensor {
 public:
  Tensor() = default;
  Tensor(xent_dtype dtype, int64_t rows, int64_t cols, int64_t inner = 0, int64_t padding = 0, int64_t misalign = 0)
      : rows_(rows), cols_(cols), inner_(std::max<int64_t>(inner, 1)), padding_(padding) {
    matrix_ = Matrix(dtype, rows / inner_, cols * inner_, cols * inner_ + padding, misalign);
  }

  xent_dtype dtype() const { return matrix_.dtype(); }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t inner() const { return inner_; }
  void *data() { return matrix_.data(); }
  const void *data() const { return matrix_.data(); }
  // As the calls take it: 0 where there is no padding.
  int64_t stride() const { return padding_ == 0 ? 0 : matrix_.stride(); }
  double Get(int64_t i, int64_t c) const { return matrix_.Get(i / inner_, At(i, c)); }
  uint64_t GetBits(int64_t i, int64_t c) const { return matrix_.GetBits(i / inner_, At(i, c)); }
  void Set(int64_t i, int64_t c, double value) { matrix_.SetInRange(i / inner_, At(i, c), value); }
  double ErrorInUlp(xent_dtype arithmetic, int64_t i, int64_t c, reference::Value want) const {
    return reference::ErrorInUlp(matrix_.dtype(), arithmetic, matrix_.row(i / inner_), At(i, c), want);
  }
  const Matrix &matrix() const { return matrix_; }

 private:
  int64_t At(int64_t i, int64_t c) const { return c * inner_ + i % inner_; }

  int64_t rows_ = 0;
  int64_t cols_ = 0;
  int64_t inner_ = 1;
  int64_t padding_ = 0;
  Matrix matrix_;
};

// The worst error of each output that was judged, with where it was.
struct WorstError {
  double ulp = -1;
  std::string where;
};
using WorstByOutput = std::map<std::string, WorstError>;

// Inputs are set by the test, outputs are made anew by each run.
struct LossCall {
  LossCall() = default;
  LossCall(xent_dtype dtype, int64_t rows, int64_t cols, int64_t inner = 0, int64_t padding = 0, int64_t misalign = 0);

  // Logits row after row, and index targets.
  LossCall(xent_dtype dtype, const std::vector<std::vector<double>> &logits, std::vector<int64_t> targets);

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
  xent_options options = XENT_OPTIONS_INIT;
  xent_upstream upstream_kind = XENT_UPSTREAM_ONE;
  Matrix upstream;  // [1, 1 or rows], arithmetic type
  xent_exec exec = {sizeof(xent_exec), XENT_EXEC_SERIAL, 0, nullptr, nullptr};
  bool in_place = false;

  // Which statistics to ask for; those of the target are not asked for with target_probs.
  bool wants_logprobs = false;
  bool wants_argmax = false;  // and the hits
  bool wants_entropy = false;
  bool wants_rank = false;
  int32_t top_k = 0;
  int64_t gather_count = 0;
  std::vector<int64_t> gather_cols;  // [rows, gather_count]

  Matrix losses, lse, loss;
  double perplexity = 0;
  int64_t live_rows = 0;
  std::vector<uint64_t> records;
  Tensor grad, target_grad;
  Matrix logprobs, entropy, topk_logprobs, gathered;
  std::vector<int64_t> argmax, rank, topk_indices;
  std::vector<uint8_t> hits;
  xent_error error = XENT_ERROR_INIT;

  void SetClassWeights(const std::vector<double> &values);
  void SetRowWeights(const std::vector<double> &values);
  void SetUpstream(const std::vector<double> &values, xent_upstream kind);
  void SetProbs(xent_dtype probs_dtype, const std::vector<std::vector<double>> &values);
  void WantEveryStatistic();  // top-k up to 3 and gathers the first and the last column
  void WantNoStatistic();

  // The call's arguments, outputs wired to fresh members.
  xent_cross_entropy Args(bool forward, bool backward);
  xent_status Forward();
  xent_status ForwardBackward();
  xent_status Backward();  // from `records`

  // What the reference takes.
  reference::LossInputs Inputs() const;

  // What differs first, bit by bit, "" if nothing does: what forward writes, without and with the statistics, and the
  // gradients.
  std::string ForwardDifference(const LossCall &other) const;
  std::string StatisticsDifference(const LossCall &other) const;
  std::string GradientDifference(const LossCall &other) const;
  // "" unless something outside of the elements was written.
  std::string PaddingTrouble() const;

  // The first output that is outside of the bounds of semantics.md, in words, or "". `worst` may be null.
  std::string Judge(const reference::LossInputs &inputs, const reference::Losses &want, bool has_gradient,
                    WorstByOutput *worst = nullptr) const;
  std::string Judge(bool has_gradient = true) const;
};

// The bounds of semantics.md, "Accuracy".
inline constexpr double kLossBound = 4;
inline constexpr double kLseBound = 4;
inline constexpr double kLogProbabilityBound = 4;
inline constexpr double kGradientBound = 6;
inline constexpr double kEntropyBound = 8;

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_LOSS_CALL_H_
