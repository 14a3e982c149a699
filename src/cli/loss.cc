// `xent loss`: the loss of a file of logits, its row losses, lse and gradient, in one call over the mapped files; or
// the loss of many files as if they were one.
#include <optional>

#include "commands.h"
#include "corpus.h"
#include "cross_entropy.h"
#include "error.h"
#include "file_command.h"
#include "reduce.h"
#include "results.h"
#include "weights.h"

namespace xent_cli {
namespace {

enum Result { kPerRow, kLse, kGrad };

class LossCommand : public FileCommand {
 public:
  explicit LossCommand(const LossArguments &arguments)
      : FileCommand(arguments.inputs), arguments_(arguments), options_(arguments.options) {
    if (arguments_.class_weights) class_weights_.emplace(*arguments_.class_weights, "class weight");
    if (arguments_.row_weights) row_weights_.emplace(*arguments_.row_weights, "row weight");
  }

 private:
  int RunFile() override {
    const CrossEntropyInputs inputs = Open(inputs_.first, inputs_.second);
    if (row_weights_) row_weights_->ExpectRows(inputs.layout(), inputs.logits().path());
    Results results(Arrays(inputs), inputs.layout().blocks, InputFiles(inputs), inputs.copied_bytes());
    const bool in_one_call = inputs.copied_bytes() == 0;
    std::optional<double> loss;
    double perplexity = 0;
    int64_t live_rows = 0;
    if (in_one_call) {
      CrossEntropyCall call = Call(inputs, 0, inputs.layout().blocks);
      for (const Result result : {kPerRow, kLse, kGrad}) SetResult(call, result, results.data(result));
      ReducedLoss reduced(options_.reduction, inputs.arithmetic());
      call.args.reduced_loss = reduced.data();
      call.statistics.perplexity = &perplexity;
      call.statistics.live_rows = &live_rows;
      progress_.Begin("loss");
      inputs.Run(call, 0, options_, pool_);
      loss = reduced.value();
    } else {
      RowCounts counts;
      loss = LossOf(inputs, counts).Reduced(options_.reduction);
      perplexity = counts.perplexity();
      live_rows = counts.live_rows();
    }

    // The targets are checked and the live rows counted (all where targets are probabilities).
    xent_cross_entropy_options part_options = options_;
    if (!IsWeightedMean(inputs)) part_options.reduction = ReductionOfPart(options_.reduction, live_rows);
    const auto fill = [&](int result, int64_t first, int64_t blocks, char *data) {
      CrossEntropyCall part = Call(inputs, first, blocks);
      SetResult(part, static_cast<Result>(result), data);
      inputs.Run(part, first, part_options, pool_);
    };
    if (!in_one_call) results.Compute(fill, progress_);
    Report report(inputs_.json);
    report.AddNumber("loss", loss, inputs.arithmetic() != XENT_F64);
    AddRowCounts(report, inputs.has_probabilities(), perplexity, inputs.layout().rows(), live_rows);
    return Finish(results, fill, report);
  }

  int RunManifest() override {
    Corpus corpus;
    CorpusLoss losses;
    RowCounts counts;
    std::optional<std::string> index_targets, probability_targets;  // a file that has them
    corpus.ForEachPair(inputs_, progress_, [&](const std::string &logits, const std::string &targets) {
      const CrossEntropyInputs inputs = Open(logits, targets);
      corpus.ExpectColumns(logits, inputs.layout().cols);
      if (const auto &others = inputs.has_probabilities() ? index_targets : probability_targets) {
        throw Error(targets + ": targets of '" + inputs.targets().descr() + "' cannot be one corpus with those of " +
                    *others);
      }
      RowCounts file_counts;
      losses.Add(LossOf(inputs, file_counts));
      counts.Add(file_counts);
      (inputs.has_probabilities() ? probability_targets : index_targets) = targets;
    });
    Report report(inputs_.json);
    report.AddNumber("loss", losses.Reduced(options_.reduction), losses.is_float32());
    AddRowCounts(report, probability_targets.has_value(), counts.perplexity(), counts.rows(), counts.live_rows());
    return corpus.Finish(report, pool_.threads());
  }

  CrossEntropyInputs Open(const std::string &logits, const std::string &targets) const {
    return {logits, targets, arguments_.class_axis, true};
  }

  std::vector<const MappedFile *> InputFiles(const CrossEntropyInputs &inputs) const {
    std::vector<const MappedFile *> files = {&inputs.logits().file(), &inputs.targets().file()};
    for (const auto *weights : {&class_weights_, &row_weights_}) {
      if (*weights) files.push_back(&(*weights)->file());
    }
    return files;
  }

  std::vector<ArrayResult> Arrays(const CrossEntropyInputs &inputs) const {
    const Layout &layout = inputs.layout();
    const size_t row_bytes = inputs.number_bytes() * static_cast<size_t>(layout.inner);
    const size_t grad_bytes = SizeOf(inputs.logits().dtype()) * static_cast<size_t>(layout.block_elements());
    const char *const descr = DescrOf(inputs.arithmetic());
    return {{.id = kPerRow,
             .option = "--per-row",
             .label = "per-row",
             .path = arguments_.per_row,
             .descr = descr,
             .shape = layout.row_shape,
             .fortran_order = layout.fortran_order,
             .block_bytes = row_bytes},
            {.id = kLse,
             .option = "--lse",
             .label = "lse",
             .path = arguments_.lse,
             .descr = descr,
             .shape = layout.row_shape,
             .fortran_order = layout.fortran_order,
             .block_bytes = row_bytes},
            {.id = kGrad,
             .option = "--grad",
             .label = "grad",
             .path = arguments_.grad,
             .descr = DescrOf(inputs.logits().dtype()),
             .shape = layout.shape,
             .fortran_order = layout.fortran_order,
             .block_bytes = grad_bytes,
             .in_one_batch = IsWeightedMean(inputs)}};
  }

  // Returns whether the denominator is a sum of weights, which may be negative and then is no divisor.
  bool IsWeightedMean(const CrossEntropyInputs &inputs) const {
    return IsMean(options_.reduction) && !inputs.has_probabilities() && (class_weights_ || row_weights_);
  }

  CrossEntropyCall Call(const CrossEntropyInputs &inputs, int64_t first, int64_t blocks) {
    CrossEntropyCall call = inputs.Call(first, blocks);
    if (class_weights_) {
      class_weights_->ExpectClasses(inputs.layout(), inputs.logits().path());
      call.args.class_weights = class_weights_->As(inputs.arithmetic());
    }
    if (row_weights_) call.args.row_weights = row_weights_->From(first * inputs.layout().inner, inputs.arithmetic());
    return call;
  }

  static void SetResult(CrossEntropyCall &call, Result result, void *data) {
    switch (result) {
      case kPerRow:
        call.args.row_losses = data;
        return;
      case kLse:
        call.statistics.lse = data;
        return;
      case kGrad:
        call.args.grad = MatrixAt(data, call.args.logits.dtype);
        return;
    }
  }

  // Returns the losses of a file, computed batch by batch, and counts its rows.
  CorpusLoss LossOf(const CrossEntropyInputs &inputs, RowCounts &counts) {
    const Layout &layout = inputs.layout();
    xent_cross_entropy_options options = options_;
    options.reduction = NoReduction();
    const auto compute = [&](int64_t first, int64_t blocks, char *data) {
      CrossEntropyCall call = Call(inputs, first, blocks);
      call.args.row_losses = data;
      inputs.RunAndCount(call, first, options, pool_, counts);
    };
    const auto weight_of = [&](int64_t row) -> double {
      if (inputs.has_probabilities()) return 1;
      const int64_t target = inputs.targets().Index(row);
      if (target == options.ignore_index) return 0;
      return (class_weights_ ? class_weights_->At(target, inputs.arithmetic()) : 1) *
             (row_weights_ ? row_weights_->At(row, inputs.arithmetic()) : 1);
    };
    const LossBlocks file = {.blocks = layout.blocks,
                             .losses = layout.inner,
                             .type = inputs.arithmetic(),
                             .copied_bytes = inputs.copied_bytes()};
    return LossOfBlocks(file, progress_, compute, weight_of);
  }

  static void AddRowCounts(Report &report, bool has_probabilities, double perplexity, int64_t rows, int64_t live_rows) {
    report.AddNumber("perplexity", has_probabilities ? std::nullopt : std::optional(perplexity), false);
    report.Add("rows", rows);
    report.Add("ignored", rows - live_rows);
  }

  const LossArguments &arguments_;
  const xent_cross_entropy_options &options_;
  std::optional<NpyWeights> class_weights_, row_weights_;
};

}  // namespace

int RunLoss(const LossArguments &arguments) { return LossCommand(arguments).Run(); }

}  // namespace xent_cli
