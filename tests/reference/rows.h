// The naive oracle of every row function: three loops over long double (64 bits of significand on x86, 113 on
// AArch64), on the logits as stored. Differences of logits are formed exactly, sums carry their rounding errors along,
// and no subtraction cancels, so that each result is right to about 2^-60 however small it is; reference_test.cc holds
// this against MPFR. Shares no code with the library.
#ifndef XENT_TESTS_REFERENCE_ROWS_H_
#define XENT_TESTS_REFERENCE_ROWS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "reference/number.h"
#include "xent/xent.h"

namespace xent::reference {

// A sum that carries its rounding errors along (Neumaier 1974); infinities and NaN come out as they would naively.
class Sum {
 public:
  void Add(long double term);
  long double Total() const;

 private:
  long double sum_ = 0;
  long double lost_ = 0;
};

// One row of logits, which must outlive it, with a target or without (-1).
class Row {
 public:
  explicit Row(std::span<const double> logits, int64_t target = -1);

  // The functions of PyTorch's names: logsumexp is -inf for a row of -inf, +inf for one with +inf.
  Value LogSumExp() const;
  Value Softmax(int64_t column) const;
  Value LogSoftmax(int64_t column) const;

  // The loss of a live row, its lse and its negative log-likelihood: NaN where the row has NaN or +inf or is -inf
  // throughout.
  Value Lse() const;
  long double NegativeLogLikelihood() const;
  Value Loss(const xent_options &options) const;
  // factor * (p_j - y_j), factor being the upstream gradient over the reduction's denominator.
  Value Gradient(int64_t column, const xent_options &options, long double factor) const;

  bool IsNan() const { return is_nan_; }

 private:
  long double Gap(int64_t column) const;  // lse - z_column, >= 0

  std::span<const double> logits_;
  int64_t target_;
  bool is_nan_ = false;  // NaN or +inf in the row, or -inf throughout
  long double maximum_;
  std::vector<long double> exp_;  // exp(z_j - maximum)
  long double others_ = 0;        // sum of exp_ without one column of the maximum (the target, if it is one)
  long double not_target_ = 0;    // sum of exp_ without the target
  long double total_ = 0;
  long double log_total_ = 0;  // log(total), from `others`
};

// What a call of the cross-entropy should give.
struct CrossEntropy {
  std::vector<Value> losses;
  std::vector<Value> lse;
  Value loss;  // of reduction sum and mean
  long double perplexity;
  int64_t live_rows;
  long double denominator;  // of the gradient: 1, live rows or the divisor
  bool gradients_are_zero;  // a mean without live rows
};

// Logits of a matrix as stored, decoded: row after row without padding.
std::vector<double> DecodeRows(xent_dtype dtype, const void *data, int64_t rows, int64_t cols, int64_t stride);

// `logits` is rows * cols values of `dtype`; targets has one per row. Losses are summed as they
// are stored: infinity past the largest number of their type, zero below the smallest normal one.
CrossEntropy EvaluateCrossEntropy(xent_dtype dtype, std::span<const double> logits, int64_t cols,
                                  std::span<const int64_t> targets, const xent_options &options);

// The reduction of losses stored earlier; `targets` is empty when no row is ignored.
Value Reduce(std::span<const double> losses, std::span<const int64_t> targets, const xent_options &options);

// Backward of softmax and log_softmax from the upstream gradient and the stored output, one row.
std::vector<Value> SoftmaxBackward(std::span<const double> upstream, std::span<const double> output);
std::vector<Value> LogSoftmaxBackward(std::span<const double> upstream, std::span<const double> output);

}  // namespace xent::reference

#endif  // XENT_TESTS_REFERENCE_ROWS_H_
