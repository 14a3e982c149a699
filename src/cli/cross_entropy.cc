// Checks of the two files, and the calls.
#include "cross_entropy.h"

#include <cmath>
#include <limits>

#include "error.h"
#include "output.h"

namespace xent_cli {
namespace {

constexpr ArrayRule kIndices = {.integers = true, .dtypes_text = "targets of an integer dtype or '|b1'"};
constexpr ArrayRule kIndicesOrProbabilities = {
    .floats = true,
    .integers = true,
    .dtypes_text = "targets of an integer dtype or '|b1', or probabilities of the logits' dtypes"};

}  // namespace

void RowCounts::Add(int64_t rows, int64_t live_rows, double nll, double perplexity) {
  rows_ += rows;
  if (live_rows == 0) return;
  live_rows_ += live_rows;
  ++parts_;
  part_perplexity_ = perplexity;
  nll_.Add(nll);
}

void RowCounts::Add(const RowCounts &other) {
  rows_ += other.rows_;
  live_rows_ += other.live_rows_;
  parts_ += other.parts_;
  if (other.parts_ > 0) part_perplexity_ = other.part_perplexity_;
  nll_.Add(other.nll_);
}

double RowCounts::perplexity() const {
  if (parts_ == 0) return std::numeric_limits<double>::quiet_NaN();
  if (parts_ == 1) return part_perplexity_;  // the library's, to the last bit
  return std::exp(nll_.value() / static_cast<double>(live_rows_));
}

CrossEntropyInputs::CrossEntropyInputs(const std::string &logits, const std::string &targets,
                                       std::optional<int64_t> class_axis, bool allow_probabilities)
    : logits_(logits, kLogits),
      layout_(LayoutOf(logits_, class_axis)),
      targets_(targets, allow_probabilities ? kIndicesOrProbabilities : kIndices) {
  const std::vector<int64_t> &shape = targets_.shape();
  if (!has_probabilities()) {
    if (HasRows(targets_, layout_, logits)) return;
    const bool names_rows = layout_.shape.size() == 2 && shape.size() != 1;
    throw Error(targets + ": the shape is " + ShapeText(shape) + ", expected " +
                (names_rows ? "targets [rows] of " : "") + ShapeText(layout_.row_shape) + ", that of " + logits +
                " without its classes");
  }
  if (shape != layout_.shape) {
    throw Error(targets + ": the dtype is '" + targets_.descr() + "', expected " + std::string(kIndices.dtypes_text) +
                ", or probabilities of the shape " + ShapeText(layout_.shape) + ", that of " + logits + ", not " +
                ShapeText(shape));
  }
  ExpectElements(targets_, layout_, logits);
}

size_t CrossEntropyInputs::copied_bytes() const {
  const size_t of_targets = has_probabilities() ? targets_.copied_bytes() : 0;
  return (logits_.copied_bytes() + of_targets) * static_cast<size_t>(layout_.block_elements());
}

CrossEntropyCall CrossEntropyInputs::Call(int64_t first_block, int64_t blocks) const {
  CrossEntropyCall call;
  call.args.rows = blocks * layout_.inner;
  call.args.cols = layout_.cols;
  call.args.inner = layout_.inner;
  const int64_t first = first_block * layout_.block_elements(), count = blocks * layout_.block_elements();
  call.args.logits = logits_.Matrix(first, count);
  if (has_probabilities()) {
    call.args.target_probs = targets_.Matrix(first, count);
  } else {
    call.args.targets = targets_.Targets(first_block * layout_.inner, call.args.rows);
  }
  return call;
}

void CrossEntropyInputs::CheckOptions(const xent_cross_entropy_options &options) const {
  ExpectValidCols(layout_, options.valid_cols, logits_.path());
  const bool is_exclusive = options.smoothing == XENT_SMOOTHING_EXCLUSIVE && options.label_smoothing > 0;
  const xent_cross_entropy_options defaults = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  if (has_probabilities() && (is_exclusive || options.ignore_index != defaults.ignore_index)) {
    throw Error(targets_.path() + ": " + (is_exclusive ? "--smoothing exclusive" : "--ignore-index") +
                " does not go together with targets that are probabilities");
  }
}

void CrossEntropyInputs::Run(const CrossEntropyCall &call, int64_t first_block,
                             const xent_cross_entropy_options &options, ThreadPool &pool) const {
  CheckOptions(options);
  xent_cross_entropy args = call.args;
  args.statistics = &call.statistics;
  const xent_exec exec = pool.exec();
  xent_error error = XENT_ERROR_INIT;
  const auto function = args.grad.data != nullptr ? &xent_cross_entropy_forward_backward : &xent_cross_entropy_forward;
  switch (function(&args, &options, &exec, &error)) {
    case XENT_OK:
      return;
    case XENT_TARGET_OUT_OF_RANGE: {
      const int64_t row = first_block * layout_.inner + error.row;
      throw Error(targets_.path() + ": the target of row " + std::to_string(row) + " is " +
                  std::to_string(targets_.Index(row)) + ", expected 0 to " +
                  std::to_string((options.valid_cols > 0 ? options.valid_cols : layout_.cols) - 1) +
                  " or the ignored " + std::to_string(options.ignore_index));
    }
    default:
      throw Error(logits_.path() + ": " + error.message);
  }
}

void CrossEntropyInputs::RunAndCount(CrossEntropyCall call, int64_t first_block,
                                     const xent_cross_entropy_options &options, ThreadPool &pool,
                                     RowCounts &counts) const {
  const int64_t rows = call.args.rows;
  double perplexity = 0;
  int64_t live_rows = 0;
  call.statistics.perplexity = &perplexity;
  call.statistics.live_rows = &live_rows;
  Run(call, first_block, options, pool);
  if (!std::isinf(perplexity)) {
    // The library's perplexity comes from a sum in double, and so does its logarithm.
    counts.Add(rows, live_rows, static_cast<double>(live_rows) * std::log(perplexity), perplexity);
    return;
  }
  // An infinite perplexity hides the sum: the mean of these rows may lie just above the largest argument of exp.
  const Scratch scratch(static_cast<size_t>(rows) * number_bytes());
  CrossEntropyCall logprobs_call = Call(first_block, rows / layout_.inner);
  logprobs_call.statistics.logprobs = scratch.data();
  Run(logprobs_call, first_block, options, pool);
  Sum nll;
  for (int64_t i = 0; i < rows; ++i) nll.Add(-NumberAt(scratch.data(), arithmetic(), i));
  counts.Add(rows, live_rows, nll.value(), perplexity);
}

}  // namespace xent_cli
