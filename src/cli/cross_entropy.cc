// Checks of the two files, and the calls.
#include "cross_entropy.h"

#include <cmath>
#include <limits>

#include "error.h"
#include "output.h"

namespace xent_cli {
namespace {

constexpr ArrayRule kLogits = {.floats = true,
                               .dtypes_text = kLogitsMatrix.dtypes_text,
                               .min_dimensions = 1,
                               .max_dimensions = 64,
                               .shape_text = "logits [rows, columns], [columns], or of more dimensions (--class-axis)"};
constexpr ArrayRule kIndices = {
    .indices = true, .dtypes_text = "targets of '<i4' or '<i8'", .min_dimensions = 0, .max_dimensions = 64};
constexpr ArrayRule kIndicesOrProbabilities = {
    .floats = true,
    .indices = true,
    .dtypes_text = "targets of '<i4' or '<i8', or probabilities of the logits' dtypes",
    .min_dimensions = 0,
    .max_dimensions = 64};

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
  if (parts_ == 1) return part_perplexity_;  // to the last bit what the library says
  return std::exp(nll_.value() / static_cast<double>(live_rows_));
}

CrossEntropyInputs::CrossEntropyInputs(const std::string &logits, const std::string &targets,
                                       std::optional<int64_t> class_axis, bool allow_probabilities)
    : logits_(logits, kLogits),
      layout_(LayoutOf(logits_, class_axis)),
      targets_(targets, allow_probabilities ? kIndicesOrProbabilities : kIndices) {
  const std::vector<int64_t> &shape = targets_.shape();
  if (has_probabilities()) {
    if (shape == layout_.shape) return;
    throw Error(targets + ": the dtype is '" + targets_.descr() + "', expected " + std::string(kIndices.dtypes_text) +
                ", or probabilities of the shape " + ShapeText(layout_.shape) + ", that of " + logits + ", not " +
                ShapeText(shape));
  }
  const bool is_only_row = layout_.row_shape.empty() && shape == std::vector<int64_t>{1};
  if (shape == layout_.row_shape || is_only_row) return;
  const bool names_rows = layout_.shape.size() == 2 && shape.size() != 1;
  throw Error(targets + ": the shape is " + ShapeText(shape) + ", expected " +
              (names_rows ? "targets [rows] of " : "") + ShapeText(layout_.row_shape) + ", that of " + logits +
              " without its classes");
}

xent_cross_entropy CrossEntropyInputs::Call(int64_t first_block, int64_t blocks) const {
  xent_cross_entropy call = XENT_CROSS_ENTROPY_INIT;
  call.rows = blocks * layout_.inner;
  call.cols = layout_.cols;
  call.inner = layout_.inner;
  call.logits = logits_.data(first_block * layout_.block_elements());
  call.dtype = logits_.dtype();
  if (has_probabilities()) {
    call.target_probs = targets_.data(first_block * layout_.block_elements());
    call.target_probs_dtype = targets_.dtype();
  } else {
    call.targets = targets_.data(first_block * layout_.inner);
    call.targets_type = targets_.index_type();
  }
  return call;
}

void CrossEntropyInputs::CheckOptions(const xent_options &options) const {
  if (options.valid_cols > layout_.cols) {
    throw Error(logits_.path() + ": --valid-cols is " + std::to_string(options.valid_cols) + ", expected at most " +
                std::to_string(layout_.cols) + ", the number of columns");
  }
  const bool is_exclusive = options.smoothing == XENT_SMOOTHING_EXCLUSIVE && options.label_smoothing > 0;
  const xent_options defaults = XENT_OPTIONS_INIT;
  if (has_probabilities() && (is_exclusive || options.ignore_index != defaults.ignore_index)) {
    throw Error(targets_.path() + ": " + (is_exclusive ? "--smoothing exclusive" : "--ignore-index") +
                " does not go together with targets that are probabilities");
  }
}

void CrossEntropyInputs::Run(const xent_cross_entropy &call, int64_t first_block, const xent_options &options,
                             ThreadPool &pool) const {
  CheckOptions(options);
  const xent_exec exec = pool.exec();
  xent_error error = XENT_ERROR_INIT;
  const auto function = call.grad != nullptr ? &xent_cross_entropy_forward_backward : &xent_cross_entropy_forward;
  switch (function(&call, &options, &exec, &error)) {
    case XENT_OK:
      return;
    case XENT_TARGET_OUT_OF_RANGE:
      throw Error(targets_.path() + ": the target of row " + std::to_string(first_block * layout_.inner + error.row) +
                  " is " + std::to_string(error.value) + ", expected 0 to " +
                  std::to_string((options.valid_cols > 0 ? options.valid_cols : layout_.cols) - 1) +
                  " or the ignored " + std::to_string(options.ignore_index));
    default:
      throw Error(logits_.path() + ": " + error.message);
  }
}

void CrossEntropyInputs::RunAndCount(xent_cross_entropy call, int64_t first_block, const xent_options &options,
                                     ThreadPool &pool, RowCounts &counts) const {
  double perplexity = 0;
  int64_t live_rows = 0;
  call.perplexity = &perplexity;
  call.live_rows = &live_rows;
  Run(call, first_block, options, pool);
  if (!std::isinf(perplexity)) {
    // The library's perplexity comes from sums that were not rounded, and so does its logarithm.
    counts.Add(call.rows, live_rows, static_cast<double>(live_rows) * std::log(perplexity), perplexity);
    return;
  }
  // The logarithm of infinity says too little: the mean of these rows may be just above what exp takes.
  const Scratch scratch(static_cast<size_t>(call.rows) * number_bytes());
  xent_cross_entropy logprobs_call = Call(first_block, call.rows / layout_.inner);
  logprobs_call.logprobs = scratch.data();
  Run(logprobs_call, first_block, options, pool);
  Sum nll;
  for (int64_t i = 0; i < call.rows; ++i) nll.Add(-NumberAt(scratch.data(), arithmetic(), i));
  counts.Add(call.rows, live_rows, nll.value(), perplexity);
}

}  // namespace xent_cli
