// `xent divergence`: how far a student's logits are from a teacher's.
#include "commands.h"
#include "corpus.h"
#include "error.h"
#include "file_command.h"
#include "layout.h"
#include "npy.h"
#include "reduce.h"
#include "report.h"
#include "results.h"

namespace xent_cli {
namespace {

enum Result { kPerRow, kGrad };

class DivergenceCommand : public FileCommand {
 public:
  explicit DivergenceCommand(const DivergenceArguments &arguments)
      : FileCommand(arguments.inputs), arguments_(arguments), options_(arguments.options) {}

 private:
  int RunFile() override {
    const ArrayPair pair(inputs_.first, inputs_.second, kLogitsMatrix);
    const int64_t rows = pair.layout.rows();
    Results results(Arrays(pair), rows, {&pair.first.file(), &pair.second.file()});
    xent_divergence call = Call(pair, 0, rows);
    for (const Result result : {kPerRow, kGrad}) SetResult(call, result, results.data(result));
    ReducedLoss loss(options_.reduction, pair.arithmetic());
    call.reduced_loss = loss.data();
    progress_.Begin("loss");
    Compute(pair, call, options_.reduction);

    const auto fill = [&](int result, int64_t first, int64_t count, char *data) {
      xent_divergence part = Call(pair, first, count);
      SetResult(part, static_cast<Result>(result), data);
      Compute(pair, part, ReductionOfPart(options_.reduction, rows));
    };
    Report report(inputs_.json);
    report.AddNumber("loss", loss.value(), loss.is_float32());
    report.Add("rows", rows);
    return Finish(results, fill, report);
  }

  int RunManifest() override {
    Corpus corpus;
    CorpusLoss losses;
    int64_t rows = 0;
    corpus.ForEachPair(inputs_, progress_, [&](const std::string &student, const std::string &teacher) {
      const ArrayPair pair(student, teacher, kLogitsMatrix);
      corpus.ExpectColumns(student, pair.layout.cols);
      losses.Add(LossOf(pair));
      rows += pair.layout.rows();
    });
    Report report(inputs_.json);
    report.AddNumber("loss", losses.Reduced(options_.reduction), losses.is_float32());
    report.Add("rows", rows);
    return corpus.Finish(report, pool_.threads());
  }

  std::vector<ArrayResult> Arrays(const ArrayPair &pair) const {
    return {{.id = kPerRow,
             .option = "--per-row",
             .label = "per-row",
             .path = arguments_.per_row,
             .descr = DescrOf(pair.arithmetic()),
             .shape = pair.layout.row_shape,
             .block_bytes = SizeOf(pair.arithmetic())},
            {.id = kGrad,
             .option = "--grad",
             .label = "grad",
             .path = arguments_.grad,
             .descr = DescrOf(pair.first.dtype()),
             .shape = pair.layout.shape,
             .block_bytes = pair.first.element_bytes() * static_cast<size_t>(pair.layout.cols)}};
  }

  static xent_divergence Call(const ArrayPair &pair, int64_t first, int64_t rows) {
    xent_divergence call = XENT_DIVERGENCE_INIT;
    call.rows = rows;
    call.cols = pair.layout.cols;
    call.student = pair.first.Matrix(first * call.cols);
    call.teacher = pair.second.Matrix(first * call.cols);
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
    const auto compute = [&](int64_t first, int64_t rows, char *data) {
      xent_divergence call = Call(pair, first, rows);
      call.row_losses = data;
      Compute(pair, call, NoReduction());
    };
    const LossBlocks file = {.blocks = pair.layout.rows(), .losses = 1, .type = pair.arithmetic()};
    return LossOfBlocks(file, progress_, compute, [](int64_t) { return 1.0; });
  }

  const DivergenceArguments &arguments_;
  const xent_divergence_options &options_;
};

}  // namespace

int RunDivergence(const DivergenceArguments &arguments) { return DivergenceCommand(arguments).Run(); }

}  // namespace xent_cli
