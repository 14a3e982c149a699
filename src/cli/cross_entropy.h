// A file of logits with its targets, which `xent loss` and `xent score` hand to the library.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "array.h"
#include "layout.h"
#include "pool.h"
#include "sum.h"
#include "xent/xent.h"

namespace xent_cli {

// Rows that were counted, call by call.
class RowCounts {
 public:
  // Adds the rows of one call. `nll` is the sum over its live rows, `perplexity` the library's number for them.
  void Add(int64_t rows, int64_t live_rows, double nll, double perplexity);
  void Add(const RowCounts &other);
  int64_t rows() const { return rows_; }
  int64_t live_rows() const { return live_rows_; }
  double perplexity() const;

 private:
  int64_t rows_ = 0, live_rows_ = 0;
  int64_t parts_ = 0;           // calls that had live rows
  double part_perplexity_ = 0;  // of the last such call
  Sum nll_;
};

// The arguments of a call. `args.statistics` is set by CrossEntropyInputs::Run, so that a copy points at its own.
struct CrossEntropyCall {
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  xent_statistics statistics = XENT_STATISTICS_INIT;
};

class CrossEntropyInputs {
 public:
  // Targets of the logits' shape and a floating dtype are probabilities, where those are allowed. Throws Error.
  CrossEntropyInputs(const std::string &logits, const std::string &targets, std::optional<int64_t> class_axis,
                     bool allow_probabilities);

  const NpyArray &logits() const { return logits_; }
  const NpyArray &targets() const { return targets_; }
  const Layout &layout() const { return layout_; }
  bool has_probabilities() const { return targets_.is_floating(); }
  xent_dtype arithmetic() const { return ArithmeticType(logits_.dtype()); }
  size_t number_bytes() const { return SizeOf(arithmetic()); }  // of a loss, or another number of a row
  // Returns the bytes that a call copies of a block.
  size_t copied_bytes() const;

  // Returns the arguments of a call on `blocks` blocks from `first_block` on, without outputs.
  CrossEntropyCall Call(int64_t first_block, int64_t blocks) const;
  // Calls the forward function, or that with gradient where `call` has a place for it. Throws Error.
  void Run(const CrossEntropyCall &call, int64_t first_block, const xent_cross_entropy_options &options,
           ThreadPool &pool) const;
  // Calls Run and adds the rows to `counts`.
  void RunAndCount(CrossEntropyCall call, int64_t first_block, const xent_cross_entropy_options &options,
                   ThreadPool &pool, RowCounts &counts) const;

 private:
  // Throws Error where options do not suit the files, in the words of the command line.
  void CheckOptions(const xent_cross_entropy_options &options) const;

  const NpyArray logits_;
  const Layout layout_;
  const NpyArray targets_;
};

}  // namespace xent_cli
