// `xent divergence`: how far a student's logits are from a teacher's.
#include <optional>

#include "array.h"
#include "commands.h"
#include "corpus.h"
#include "error.h"
#include "file_command.h"
#include "layout.h"
#include "reduce.h"
#include "report.h"
#include "results.h"
#include "weights.h"

namespace xent_cli {
namespace {

enum Result { kPerRow, kGrad };

class DivergenceCommand : public FileCommand {
 public:
  explicit DivergenceCommand(const DivergenceArguments &arguments)
      : FileCommand(arguments.inputs), arguments_(arguments), options_(arguments.options) {
    if (const auto &path = arguments_.row_weights) row_weights_.emplace(*path, "row weight");
  }

 private:
  int RunFile() override {
    const ArrayPair pair = Open(inputs_.first, inputs_.second);
    const int64_t rows = pair.layout.rows();
    Results results(Arrays(pair), pair.layout.blocks, InputFiles(pair), pair.copied_bytes());
    const auto fill = [&](int result, int64_t first, int64_t blocks, char *data) {
      xent_divergence part = Call(pair, first, blocks);
      SetResult(part, static_cast<Result>(result), data);
      Compute(pair, part, ReductionOfPart(options_.reduction, rows));
    };
    std::optional<double> loss;
    if (pair.copied_bytes() == 0) {
      xent_divergence call = Call(pair, 0, pair.layout.blocks);
      for (const Result result : {kPerRow, kGrad}) SetResult(call, result, results.data(result));
      ReducedLoss reduced(options_.reduction, pair.arithmetic());
      call.reduced_loss = reduced.data();
      progress_.Begin("loss");
      Compute(pair, call, options_.reduction);
      loss = reduced.value();
    } else {
      loss = LossOf(pair).Reduced(options_.reduction);
      results.Compute(fill, progress_);
    }
    Report report(inputs_.json);
    report.AddNumber("loss", loss, pair.arithmetic() != XENT_F64);
    report.Add("rows", rows);
    return Finish(results, fill, report);
  }

  int RunManifest() override {
    Corpus corpus;
    CorpusLoss losses;
    int64_t rows = 0;
    corpus.ForEachPair(inputs_, progress_, [&](const std::string &student, const std::string &teacher) {
      const ArrayPair pair = Open(student, teacher);
      corpus.ExpectColumns(student, pair.layout.cols);
      losses.Add(LossOf(pair));
      rows += pair.layout.rows();
    });
    Report report(inputs_.json);
    report.AddNumber("loss", losses.Reduced(options_.reduction), losses.is_float32());
    report.Add("rows", rows);
    return corpus.Finish(report, pool_.threads());
  }

  // Throws Error where the files do not go together, or the options with them.
  ArrayPair Open(const std::string &student, const std::string &teacher) const {
    return {student, kLogits, teacher, kLogits, [this](const NpyArray &logits) {
              const Layout layout = LayoutOf(logits, arguments_.class_axis);
              ExpectValidCols(layout, options_.valid_cols, logits.path());
              return layout;
            }};
  }

  std::vector<const MappedFile *> InputFiles(const ArrayPair &pair) const {
    std::vector<const MappedFile *> files = {&pair.first.file(), &pair.second.file()};
    if (row_weights_) files.push_back(&row_weights_->file());
    return files;
  }

  std::vector<ArrayResult> Arrays(const ArrayPair &pair) const {
    const Layout &layout = pair.layout;
    return {{.id = kPerRow,
             .option = "--per-row",
             .label = "per-row",
             .path = arguments_.per_row,
             .descr = DescrOf(pair.arithmetic()),
             .shape = layout.row_shape,
             .fortran_order = layout.fortran_order,
             .block_bytes = SizeOf(pair.arithmetic()) * static_cast<size_t>(layout.inner)},
            {.id = kGrad,
             .option = "--grad",
             .label = "grad",
             .path = arguments_.grad,
             .descr = DescrOf(pair.first.dtype()),
             .shape = layout.shape,
             .fortran_order = layout.fortran_order,
             .block_bytes = SizeOf(pair.first.dtype()) * static_cast<size_t>(layout.block_elements())}};
  }

  xent_divergence Call(const ArrayPair &pair, int64_t first, int64_t blocks) {
    const Layout &layout = pair.layout;
    const int64_t first_element = first * layout.block_elements(), count = blocks * layout.block_elements();
    xent_divergence call = XENT_DIVERGENCE_INIT;
    call.rows = blocks * layout.inner;
    call.cols = layout.cols;
    call.inner = layout.inner;
    call.student = pair.first.Matrix(first_element, count);
    call.teacher = pair.second.Matrix(first_element, count);
    if (row_weights_) {
      row_weights_->ExpectRows(layout, pair.first.path());
      call.row_weights = row_weights_->From(first * layout.inner, pair.arithmetic());
    }
    return call;
  }

  static void SetResult(xent_divergence &call, Result result, void *data) {
    if (result == kPerRow) {
      call.row_losses = data;
    } else {
      call.grad = MatrixAt(data, call.student.dtype);
    }
  }

  // Calls the forward function, or that with gradient where `call` has a place for it. Throws Error.
  void Compute(const ArrayPair &pair, const xent_divergence &call, const xent_reduction &reduction) {
    xent_divergence_options options = options_;
    options.reduction = reduction;
    const xent_exec exec = pool_.exec();
    xent_error error = XENT_ERROR_INIT;
    const auto function = call.grad.data != nullptr ? &xent_divergence_forward_backward : &xent_divergence_forward;
    if (function(&call, &options, &exec, &error) != XENT_OK) throw Error(pair.first.path() + ": " + error.message);
  }

  CorpusLoss LossOf(const ArrayPair &pair) {
    const auto compute = [&](int64_t first, int64_t blocks, char *data) {
      xent_divergence call = Call(pair, first, blocks);
      call.row_losses = data;
      Compute(pair, call, NoReduction());
    };
    const LossBlocks file = {.blocks = pair.layout.blocks,
                             .losses = pair.layout.inner,
                             .type = pair.arithmetic(),
                             .copied_bytes = pair.copied_bytes()};
    return LossOfBlocks(file, progress_, compute, [](int64_t) { return 1.0; });
  }

  const DivergenceArguments &arguments_;
  const xent_divergence_options &options_;
  std::optional<NpyWeights> row_weights_;
};

}  // namespace

int RunDivergence(const DivergenceArguments &arguments) { return DivergenceCommand(arguments).Run(); }

}  // namespace xent_cli
