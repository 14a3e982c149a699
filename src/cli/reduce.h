// The reduced loss: of one call, and of a corpus.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "batches.h"
#include "dtype.h"
#include "output.h"
#include "progress.h"
#include "sum.h"
#include "xent/xent.h"

namespace xent_cli {

// Returns whether the denominator comes from the rows or elements themselves: a mean without a divisor.
bool IsMean(const xent_reduction &reduction);

// The place in which a call stores its reduced loss.
class ReducedLoss {
 public:
  ReducedLoss(const xent_reduction &reduction, xent_dtype type)
      : wanted_(reduction.kind != XENT_REDUCTION_NONE), type_(type) {}

  // Returns the place, null where the reduction is none.
  void *data() { return !wanted_ ? nullptr : is_float32() ? static_cast<void *>(&float_) : &double_; }
  std::optional<double> value() const {
    if (!wanted_) return std::nullopt;
    return is_float32() ? static_cast<double>(float_) : double_;
  }

 private:
  bool is_float32() const { return type_ != XENT_F64; }

  bool wanted_;
  xent_dtype type_;
  float float_ = 0;
  double double_ = 0;
};

// Losses of rows or elements from many calls, each with its part of the mean's denominator.
class CorpusLoss {
 public:
  // Sets the type of the losses that follow. The corpus's loss is a float64 where one of its parts is.
  void SetType(xent_dtype type) { is_float32_ = is_float32_ && type != XENT_F64; }
  void Add(double loss, double weight);
  void Add(const CorpusLoss &other);
  bool is_float32() const { return is_float32_; }
  // Returns the loss of everything as if it were one matrix, nothing where the reduction is none.
  std::optional<double> Reduced(const xent_reduction &reduction) const;

 private:
  Sum losses_, weights_;
  bool is_float32_ = true;
};

// Returns the reduction of a call whose losses are reduced later.
xent_reduction NoReduction();

// Returns the reduction for a part of a whole of `count` rows or elements: a mean becomes the mean over the whole. The
// gradient of a whole of none is 0 whatever the divisor is.
xent_reduction ReductionOfPart(const xent_reduction &reduction, int64_t count);

// A file whose losses are computed block by block.
struct LossBlocks {
  int64_t blocks;
  int64_t losses;       // in one block
  xent_dtype type;      // of a loss
  size_t copied_bytes;  // of the inputs of a block
};

// Returns the losses of a file, computed batch by batch. compute(first, count, data) stores those of `count` blocks
// from block `first` on; weight_of(i) is what loss i of the file adds to the mean's denominator.
template <typename Compute, typename WeightOf>
CorpusLoss LossOfBlocks(const LossBlocks &file, Progress &progress, Compute compute, WeightOf weight_of) {
  const size_t block_bytes = SizeOf(file.type) * static_cast<size_t>(file.losses);
  const Batches batches(file.blocks, std::max(block_bytes, file.copied_bytes));
  const Scratch scratch(block_bytes * static_cast<size_t>(batches.size()));
  CorpusLoss loss;
  loss.SetType(file.type);
  progress.Begin("loss");
  batches.ForEach(progress, [&](int64_t first, int64_t count) {
    compute(first, count, scratch.data());
    for (int64_t i = 0; i < count * file.losses; ++i) {
      loss.Add(NumberAt(scratch.data(), file.type, i), weight_of(first * file.losses + i));
    }
    return true;
  });
  return loss;
}

}  // namespace xent_cli
