// The reduced loss: of one call, and of a corpus.
#ifndef XENT_SRC_CLI_REDUCE_H_
#define XENT_SRC_CLI_REDUCE_H_

#include <xent/xent.h>

#include <cstdint>
#include <optional>

#include "sum.h"

namespace xent_cli {

// Where a call puts its reduced loss.
class ReducedLoss {
 public:
  ReducedLoss(const xent_options &options, xent_dtype type)
      : wanted_(options.reduction != XENT_REDUCTION_NONE), type_(type) {}
  void *data() { return !wanted_ ? nullptr : is_float32() ? static_cast<void *>(&float_) : &double_; }
  bool is_float32() const { return type_ != XENT_F64; }
  std::optional<double> value() const {
    if (!wanted_) return std::nullopt;
    return is_float32() ? static_cast<double>(float_) : double_;
  }

 private:
  bool wanted_;
  xent_dtype type_;
  float float_ = 0;
  double double_ = 0;
};

// Losses of rows or elements from many calls, each with its part of the mean's denominator.
class CorpusLoss {
 public:
  // Of the losses that follow; the corpus's loss is a float64 when any was.
  void SetType(xent_dtype type) { is_float32_ = is_float32_ && type != XENT_F64; }
  void Add(double loss, double weight);
  void Add(const CorpusLoss &other);
  bool is_float32() const { return is_float32_; }
  // The loss of everything as if it were one matrix; nothing where the reduction is none.
  std::optional<double> Reduced(const xent_options &options) const;

 private:
  Sum losses_, weights_;
  bool is_float32_ = true;
};

// The options for losses that are reduced later.
xent_options Unreduced(xent_options options);
// Makes the mean over a part one over the whole, which has `count` rows or elements. The gradient of a whole of none is
// 0 whatever it is divided by.
void DivideByWhole(xent_options &options, int64_t count);

}  // namespace xent_cli

#endif  // XENT_SRC_CLI_REDUCE_H_
