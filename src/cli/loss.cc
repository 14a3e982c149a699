// `xent loss`: the loss of a file of logits, and what belongs to it, in one call over the mapped files; or that of many
// files as if they were one.
#include <optional>

#include "batches.h"
#include "commands.h"
#include "corpus.h"
#include "cross_entropy.h"
#include "error.h"
#include "reduce.h"
#include "results.h"
#include "weights.h"

namespace xent_cli {
namespace {

enum Result { kPerRow, kLse, kGrad };

class LossCommand {
 public:
  explicit LossCommand(const LossArguments &arguments)
      : arguments_(arguments), options_(arguments.options), pool_(arguments.inputs.threads, progress_) {
    if (arguments_.class_weights) class_weights_.emplace(*arguments_.class_weights, "class weight");
    if (arguments_.row_weights) row_weights_.emplace(*arguments_.row_weights, "row weight");
  }

  int RunFile() {
    const CrossEntropyInputs inputs = Open(arguments_.inputs.first, arguments_.inputs.second);
    if (row_weights_) row_weights_->ExpectRows(inputs.layout(), inputs.logits().path());
    Results results(Wanted(inputs), inputs.layout().blocks, InputFiles(inputs));
    xent_cross_entropy call = Call(inputs, 0, inputs.layout().blocks);
    for (const Result result : {kPerRow, kLse, kGrad}) SetResult(call, result, results.data(result));
    ReducedLoss loss(options_, inputs.arithmetic());
    call.loss = loss.data();
    double perplexity = 0;
    int64_t live_rows = 0;
    call.perplexity = &perplexity;
    call.live_rows = &live_rows;
    progress_.Begin("loss");
    inputs.Run(call, 0, options_, pool_);

    // A result that is written in place. Targets have been checked, and live rows counted, by the call above.
    xent_options options = options_;
    DivideByWhole(options, live_rows);  // all rows where targets are probabilities
    const auto fill = [&](int result, int64_t first, int64_t blocks, char *data) {
      xent_cross_entropy part = Call(inputs, first, blocks);
      SetResult(part, static_cast<Result>(result), data);
      inputs.Run(part, first, IsWeightedMean(inputs) ? options_ : options, pool_);
    };
    Report report(arguments_.inputs.json);
    report.AddNumber("loss", loss.value(), loss.is_float32());
    AddRowCounts(report, inputs.has_probabilities(), perplexity, call.rows, live_rows);
    AddExecution(report, pool_.threads());
    results.Complete(fill, progress_, report.Text());
    return kExitOk;
  }

  int RunManifest() {
    Corpus corpus;
    CorpusLoss losses;
    RowCounts counts;
    std::optional<std::string> index_targets, probability_targets;  // a file that has them
    corpus.ForEachPair(arguments_.inputs, progress_, [&](const std::string &logits, const std::string &targets) {
      const CrossEntropyInputs inputs = Open(logits, targets);
      corpus.ExpectColumns(logits, inputs.layout().cols);
      if (const auto &others = inputs.has_probabilities() ? index_targets : probability_targets) {
        throw Error(targets + ": targets of '" + inputs.targets().descr() + "' cannot be one corpus with those of " +
                    *others);
      }
      CorpusLoss file_losses;
      RowCounts file_counts;
      AddRows(inputs, file_losses, file_counts);
      losses.Add(file_losses);
      counts.Add(file_counts);
      (inputs.has_probabilities() ? probability_targets : index_targets) = targets;
    });
    Report report(arguments_.inputs.json);
    report.AddNumber("loss", losses.Reduced(options_), losses.is_float32());
    AddRowCounts(report, probability_targets.has_value(), counts.perplexity(), counts.rows(), counts.live_rows());
    return corpus.Finish(report, pool_.threads());
  }

 private:
  CrossEntropyInputs Open(const std::string &logits, const std::string &targets) {
    return {logits, targets, arguments_.class_axis, true};
  }

  std::vector<const MappedFile *> InputFiles(const CrossEntropyInputs &inputs) const {
    std::vector<const MappedFile *> files = {&inputs.logits().file(), &inputs.targets().file()};
    for (const auto *weights : {&class_weights_, &row_weights_}) {
      if (*weights) files.push_back(&(*weights)->file());
    }
    return files;
  }

  std::vector<ArrayResult> Wanted(const CrossEntropyInputs &inputs) const {
    const Layout &layout = inputs.layout();
    const size_t row_bytes = inputs.number_bytes() * static_cast<size_t>(layout.inner);
    const size_t grad_bytes = inputs.logits().element_bytes() * static_cast<size_t>(layout.block_elements());
    const char *const descr = DescrOf(inputs.arithmetic());
    std::vector<ArrayResult> wanted;
    if (const auto &path = arguments_.per_row) {
      wanted.push_back({kPerRow, "--per-row", "per-row", *path, descr, layout.row_shape, row_bytes});
    }
    if (const auto &path = arguments_.lse) {
      wanted.push_back({kLse, "--lse", "lse", *path, descr, layout.row_shape, row_bytes});
    }
    if (const auto &path = arguments_.grad) {
      wanted.push_back({kGrad, "--grad", "grad", *path, DescrOf(inputs.logits().dtype()), layout.shape, grad_bytes,
                        IsWeightedMean(inputs)});
    }
    return wanted;
  }

  // The denominator is a sum of weights, which may be negative and is no divisor then.
  bool IsWeightedMean(const CrossEntropyInputs &inputs) const {
    return options_.reduction == XENT_REDUCTION_MEAN && !options_.has_divisor && !inputs.has_probabilities() &&
           (class_weights_ || row_weights_);
  }

  xent_cross_entropy Call(const CrossEntropyInputs &inputs, int64_t first, int64_t blocks) {
    xent_cross_entropy call = inputs.Call(first, blocks);
    if (class_weights_) {
      class_weights_->ExpectClasses(inputs.layout(), inputs.logits().path());
      call.class_weights = class_weights_->As(inputs.arithmetic());
    }
    if (row_weights_) call.row_weights = row_weights_->From(first * inputs.layout().inner, inputs.arithmetic());
    return call;
  }

  static void SetResult(xent_cross_entropy &call, Result result, void *data) {
    (result == kPerRow ? call.losses : result == kLse ? call.lse : call.grad) = data;
  }

  void AddRows(const CrossEntropyInputs &inputs, CorpusLoss &losses, RowCounts &counts) {
    const Layout &layout = inputs.layout();
    const xent_dtype type = inputs.arithmetic();
    const Batches batches(layout.blocks, inputs.number_bytes() * static_cast<size_t>(layout.inner));
    const Scratch scratch(inputs.number_bytes() * static_cast<size_t>(batches.size() * layout.inner));
    const xent_options options = Unreduced(options_);
    progress_.Begin("loss");
    losses.SetType(type);
    batches.ForEach(progress_, [&](int64_t first, int64_t blocks) {
      xent_cross_entropy call = Call(inputs, first, blocks);
      call.losses = scratch.data();
      inputs.RunAndCount(call, first, options, pool_, counts);
      for (int64_t i = 0; i < call.rows; ++i) {
        const int64_t target = inputs.has_probabilities() ? 0 : inputs.targets().Index(first * layout.inner + i);
        const bool live = inputs.has_probabilities() || target != options.ignore_index;
        const bool weighted = class_weights_ && !inputs.has_probabilities();
        losses.Add(NumberAt(scratch.data(), type, i), !live      ? 0
                                                      : weighted ? NumberAt(call.class_weights, type, target)
                                                                 : 1);
      }
      return true;
    });
  }

  static void AddRowCounts(Report &report, bool has_probabilities, double perplexity, int64_t rows, int64_t live_rows) {
    report.AddNumber("perplexity", has_probabilities ? std::nullopt : std::optional(perplexity), false);
    report.Add("rows", rows);
    report.Add("ignored", rows - live_rows);
  }

  const LossArguments &arguments_;
  const xent_options &options_;
  Progress progress_;
  ThreadPool pool_;
  std::optional<NpyWeights> class_weights_, row_weights_;
};

}  // namespace

int RunLoss(const LossArguments &arguments) {
  LossCommand command(arguments);
  return arguments.inputs.manifest ? command.RunManifest() : command.RunFile();
}

}  // namespace xent_cli
