// The naive oracle of the row functions, and the arithmetic of one row on which that of the losses stands (losses.h):
// three loops over long double (64 bits of significand on x86, 113 on AArch64), on the logits as stored. Differences of
// logits are formed to twice that length, sums carry their rounding errors along, and no subtraction cancels, so that
// each result is right to about 2^-60 however small it is; reference_test.cc holds this against MPFR. Shares no code
// with the library.
#ifndef XENT_TESTS_REFERENCE_ROWS_H_
#define XENT_TESTS_REFERENCE_ROWS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "reference/number.h"
#include "reference/sum.h"
#include "xent/xent.h"

namespace xent::reference {

// The softmax of one row of logits.
class Row {
 public:
  // `apart` is the column whose complement 1 - p is wanted beside the maximum's (a target), or -1.
  explicit Row(std::span<const double> logits, int64_t apart = -1);
  explicit Row(std::vector<Wide> logits, int64_t apart = -1);

  // The functions of PyTorch's names: logsumexp is -inf for a row of -inf, +inf for one with +inf.
  Value LogSumExp() const;
  Value Softmax(int64_t column) const;
  Value LogSoftmax(int64_t column) const;

  // Whether NaN or +inf is in the row, or -inf throughout. What follows is of other rows.
  bool is_nan() const { return is_nan_; }
  int64_t cols() const { return static_cast<int64_t>(logits_.size()); }
  const Wide &logit(int64_t column) const { return logits_[static_cast<size_t>(column)]; }
  // A column of the maximum: `apart`, if it is one.
  int64_t top() const { return top_; }
  long double Probability(int64_t column) const { return exp_[static_cast<size_t>(column)] / total_; }
  // 1 - p, which does not cancel at the maximum and at `apart`; elsewhere p is at most 1/2, or nearly.
  long double Complement(int64_t column) const;
  // lse - z_column, >= 0.
  long double Gap(int64_t column) const;
  // z_top - z_column, >= 0.
  long double BelowTop(int64_t column) const;
  // lse - z_top.
  long double log_total() const { return log_total_; }

 private:
  std::vector<Wide> logits_;
  int64_t apart_;
  bool is_nan_ = false;
  long double maximum_ = 0;  // NaN where a NaN is in the row
  int64_t top_ = 0;
  std::vector<long double> exp_;  // exp(z_j - z_top)
  long double others_ = 0;        // sum of exp_ without top's
  long double not_apart_ = 0;     // sum of exp_ without apart's
  long double total_ = 1;
  long double log_total_ = 0;  // log(total), from `others`
};

// Logits of a matrix as stored, decoded: row after row without padding. A stride of 0 means cols.
std::vector<double> DecodeRows(xent_dtype dtype, const void *data, int64_t rows, int64_t cols, int64_t stride);

// Backward of softmax and log_softmax from the upstream gradient and the stored output, one row.
std::vector<Value> SoftmaxBackward(std::span<const double> upstream, std::span<const double> output);
std::vector<Value> LogSoftmaxBackward(std::span<const double> upstream, std::span<const double> output);

}  // namespace xent::reference

#endif  // XENT_TESTS_REFERENCE_ROWS_H_
