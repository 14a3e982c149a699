// Sums over a corpus.
#pragma once

#include <cmath>

namespace xent_cli {

// A sum that carries its rounding error along (Neumaier 1974), so that it hardly depends on how a corpus is cut into
// files.
class Sum {
 public:
  void Add(double value) {
    const double sum = sum_ + value;
    // An infinite sum, or NaN, is the result; its error is no number.
    error_ += !std::isfinite(sum) ? 0 : std::fabs(sum_) >= std::fabs(value) ? sum_ - sum + value : value - sum + sum_;
    sum_ = sum;
  }
  void Add(const Sum &other) {
    Add(other.sum_);
    Add(other.error_);
  }
  double value() const { return sum_ + error_; }

 private:
  double sum_ = 0, error_ = 0;
};

}  // namespace xent_cli
