// A file of logits with its targets, as `xent loss` and `xent score` hand it to the library.
#ifndef XENT_SRC_CLI_CROSS_ENTROPY_H_
#define XENT_SRC_CLI_CROSS_ENTROPY_H_

#include <xent/xent.h>

#include <optional>
#include <string>
#include <vector>

#include "layout.h"
#include "npy.h"
#include "pool.h"
#include "sum.h"

namespace xent_cli {

// Rows that were counted, call by call.
class RowCounts {
 public:
  void Add(int64_t rows, int64_t live_rows, double nll, double perplexity);
  void Add(const RowCounts &other);
  int64_t rows() const { return rows_; }
  int64_t live_rows() const { return live_rows_; }
  double perplexity() const;

 private:
  int64_t rows_ = 0, live_rows_ = 0;
  int64_t parts_ = 0;           // that have live rows
  double part_perplexity_ = 0;  // of the only such part
  Sum nll_;
};

class CrossEntropyInputs {
 public:
  // Targets of the logits' shape and a floating dtype are probabilities, where those are allowed.
  CrossEntropyInputs(const std::string &logits, const std::string &targets, std::optional<int64_t> class_axis,
                     bool allow_probabilities);

  const NpyArray &logits() const { return logits_; }
  const NpyArray &targets() const { return targets_; }
  const Layout &layout() const { return layout_; }
  bool has_probabilities() const { return targets_.is_floating(); }
  xent_dtype arithmetic() const { return ArithmeticType(logits_.dtype()); }
  size_t number_bytes() const { return SizeOf(arithmetic()); }  // of a loss, or another number of a row

  // A call's arguments for blocks of rows.
  xent_cross_entropy Call(int64_t first_block, int64_t blocks) const;
  // The forward function, or that with gradient where `call` has a place for it. Throws Error.
  void Run(const xent_cross_entropy &call, int64_t first_block, const xent_options &options, ThreadPool &pool) const;
  // The same, and adds the rows to `counts`.
  void RunAndCount(xent_cross_entropy call, int64_t first_block, const xent_options &options, ThreadPool &pool,
                   RowCounts &counts) const;

 private:
  // What the library would refuse in its own words.
  void CheckOptions(const xent_options &options) const;

  const NpyArray logits_;
  const Layout layout_;
  const NpyArray targets_;
};

}  // namespace xent_cli

#endif  // XENT_SRC_CLI_CROSS_ENTROPY_H_
