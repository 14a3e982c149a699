// The naive oracle of the cross-entropy with every option, written line by line from semantics.md: transformed logits,
// smoothed and weighted label distributions, row weights, z-loss, probability targets, the reductions' denominators,
// and the row statistics. Long double throughout, on the row arithmetic of rows.h; no difference of large terms stands
// for a small result, so that each value is right to about 2^-58 however small it is (losses_reference_test.cc holds
// this against MPFR). Shares no code with the library.
//
// With softcap the bounds hold for transformed logits that are each off by 2 of their ULP, and the derivative is within
// 4 + 4 |scale z / cap| of its own (testing/bounds.h). What that is worth in an output f is its slack, an absolute
// error beside the counted one. With h_j = 2 ulp(z'_j) (0 without softcap) and to first order |df| <= sum_j |df/dz'_j|
// h_j:
//   lse          H = sum_j p_j h_j
//   lse - z'_c   G_c = sum_{j != c} p_j h_j + (1 - p_c) h_c, which is small beside a small lse - z'_c
//   p_c          p_c G_c, and (1 - p_c) likewise, for d log p_c = -d(lse - z'_c)
//   loss         |r| sum_j |(Q + 2 l lse) p_j - y_j| h_j, the derivative being the gradient by z'
//   gradient     |F| (dz + d(dz)) ( |Q + 2 l lse| p_j G_j + 2 l p_j H ) + |F [...]| d(dz), F = u r / denominator,
//                d(dz) = (4 + 4 |scale z / cap|) ulp(dz); all of dz where it, or exp(-2 |scale z / cap|) from which any
//                way to it starts, is below the smallest normal double
//   entropy      sum_j p_j |(lse - z'_j) - entropy| h_j
//   d loss/d q_c |F w_c (1 - e)| G_c
// Second-order terms multiply this by at most exp(4 max h), which every slack includes.
#ifndef XENT_TESTS_REFERENCE_LOSSES_H_
#define XENT_TESTS_REFERENCE_LOSSES_H_

#include <cstdint>
#include <span>
#include <vector>

#include "reference/number.h"
#include "reference/rows.h"
#include "xent/xent.h"

namespace xent::reference {

// Everything that a cross-entropy call takes, decoded: matrices row after row without padding, whatever the layout was.
struct LossInputs {
  xent_dtype dtype = XENT_F32;  // of the logits
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t inner = 1;  // of the call's layout; it counts where xent.h says what computes in double lanes
  std::vector<double> logits;
  std::vector<int64_t> targets;       // empty where the targets are probabilities
  std::vector<double> target_probs;   // [rows, cols], or empty
  std::vector<double> class_weights;  // [cols]; empty: 1
  std::vector<double> row_weights;    // [rows]; empty: 1
  std::vector<double> upstream;       // empty: 1; otherwise one value, or one a row
  bool upstream_per_row = false;
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  bool of_ignored = false;  // ignored rows have what needs no target

  bool has_probs() const { return targets.empty() && !target_probs.empty(); }
  int64_t valid_cols() const { return options.valid_cols == 0 ? cols : options.valid_cols; }
  bool IsIgnored(int64_t i) const {
    return !targets.empty() && targets[static_cast<size_t>(i)] == options.ignore_index;
  }
  // xent.h, xent_cross_entropy_forward, "Memory".
  bool in_double_lanes() const {
    const bool smooth = options.label_smoothing != 0;
    return options.softcap != 0 || options.logit_scale != 1 || (!class_weights.empty() && smooth) ||
           (options.z_loss != 0 && smooth) || has_probs() || inner > 1;
  }
};

// One row that is not ignored, or that is read for its statistics alone (no target then).
class LossRow {
 public:
  LossRow(const LossInputs &inputs, int64_t row);

  // The softmax of the transformed logits.
  const Row &row() const { return row_; }
  // NaN or +inf in it, or -inf throughout: NaN for every number and -1 for every index.
  bool is_nan() const { return row_.is_nan(); }

  Value Lse() const;
  Value NegativeLogLikelihood() const;  // of an index target
  Value Loss() const;
  // `factor` is the upstream gradient over the reduction's denominator.
  Value Gradient(int64_t column, long double factor) const;
  Value TargetGradient(int64_t column, long double factor) const;

  Value LogProbability(int64_t column) const;
  Value Entropy() const;
  int64_t Argmax() const;
  int64_t Rank(int64_t column) const;
  std::vector<int64_t> TopK(int64_t k) const;

 private:
  long double Probability(int64_t column) const { return row_.Probability(column); }
  long double GapSlack(int64_t column) const;  // G
  // What lse may be off by in the z-loss, beside softcap's part: its own bound, since lse may cross 0.
  long double LseRounding() const;
  // (Q + 2 l lse) p_j - y_j and the magnitude of its largest term.
  struct Bracket {
    long double value;
    long double largest;
  };
  Bracket BracketOf(int64_t column) const;

  int64_t cols_;  // the valid ones
  int64_t target_;
  const double *logits_;
  xent_dtype arithmetic_;
  long double scale_, cap_, z_loss_, epsilon_, row_weight_;
  bool is_plain_;  // index target, no smoothing, no z-loss
  bool in_double_lanes_;
  Row row_;                           // of the transformed logits
  std::vector<long double> h_;        // what each of them may be off by
  std::vector<long double> y_;        // w q'
  std::vector<long double> weights_;  // w
  long double label_sum_ = 0;         // Q
  long double lse_slack_ = 0;         // H / exp(4 max h)
  long double others_slack_ = 0;      // the same sum without the maximum's column
  long double growth_ = 1;            // exp(4 max h)
};

// What a call should give.
struct Losses {
  std::vector<LossRow> rows;  // those of ignored rows hold no target
  std::vector<Value> losses;
  std::vector<Value> lse;
  Value loss;                             // of reduction sum and mean
  long double perplexity;                 // NaN where it is not defined
  long double perplexity_relative_error;  // allowed
  int64_t live_rows;
  long double denominator;  // of the gradient; 1 for reduction none
  bool gradients_are_zero;  // the mean's denominator is 0
};

Losses EvaluateLosses(const LossInputs &inputs);

// Upstream gradient of a row over the denominator.
long double FactorOf(const LossInputs &inputs, const Losses &losses, int64_t row);
// The gradients for the logits and for probability targets, with the rows and columns that are zero by rule.
Value GradientOf(const LossInputs &inputs, const Losses &losses, int64_t row, int64_t column);
Value TargetGradientOf(const LossInputs &inputs, const Losses &losses, int64_t row, int64_t column);

// The statistics of a row, as xent_cross_entropy stores them.
struct RowStatistics {
  Value logprob;
  Value entropy;
  int64_t argmax;
  int64_t rank;
  bool hit;
  std::vector<int64_t> topk_indices;
  std::vector<Value> topk_logprobs;
  std::vector<Value> gathered;
};
RowStatistics StatisticsOf(const LossInputs &inputs, const Losses &losses, int64_t row, int64_t top_k,
                           const std::vector<int64_t> &gather_cols);

// A sum of losses divided as the options say, `weight` being the mean's denominator.
struct Reduced {
  Value loss;
  long double denominator;  // 1 for reduction none
  bool is_empty;            // a mean whose denominator is 0
};
Reduced Reduce(Value sum, long double weight, const xent_reduction &reduction);
// The same of losses that were stored earlier; `targets` is empty where no row is ignored.
Value Reduce(std::span<const double> losses, std::span<const int64_t> targets, const xent_reduction &reduction,
             int64_t ignore_index = -100);

}  // namespace xent::reference

#endif  // XENT_TESTS_REFERENCE_LOSSES_H_
