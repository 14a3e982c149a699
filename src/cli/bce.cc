// `xent bce`: binary cross-entropy, or focal loss, of each element.
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

enum Result { kPerElement, kGrad };

constexpr ArrayRule kInput = {.floats = true,
                              .dtypes_text = "elements of '<f4', '<f8', '<f2', or bfloat16 as '<V2' or '|V2'",
                              .min_dimensions = 1,
                              .shape_text = "elements [rows, columns], [rows], or of more dimensions"};
constexpr ArrayRule kTargets = {
    .floats = true,
    .integers = true,
    .dtypes_text = "targets of '<f4', '<f8', '<f2', bfloat16 as '<V2' or '|V2', an integer dtype or '|b1'"};

class BceCommand : public FileCommand {
 public:
  explicit BceCommand(const BceArguments &arguments)
      : FileCommand(arguments.inputs), arguments_(arguments), options_(arguments.options) {
    if (const auto &path = arguments_.pos_weight) pos_weight_.emplace(*path, "positive weight");
    if (const auto &path = arguments_.element_weights) element_weights_.emplace(*path, "element weight");
    if (const auto &path = arguments_.row_weights) row_weights_.emplace(*path, "row weight");
    if (const auto &path = arguments_.class_weights) class_weights_.emplace(*path, "class weight");
  }

 private:
  int RunFile() override {
    const ArrayPair pair(inputs_.first, kInput, inputs_.second, kTargets, LayoutOfElements);
    Results results(Arrays(pair), pair.layout.blocks, InputFiles(pair), pair.copied_bytes());
    const auto fill = [&](int result, int64_t first, int64_t blocks, char *data) {
      xent_binary_cross_entropy part = Call(pair, first, blocks);
      SetResult(part, static_cast<Result>(result), data, pair);
      Compute(pair, part, first, ReductionOfPart(options_.reduction, pair.first.elements()));
    };
    std::optional<double> loss;
    if (pair.copied_bytes() == 0) {
      xent_binary_cross_entropy call = Call(pair, 0, pair.layout.blocks);
      for (const Result result : {kPerElement, kGrad}) SetResult(call, result, results.data(result), pair);
      ReducedLoss reduced(options_.reduction, pair.arithmetic());
      call.reduced_loss = reduced.data();
      progress_.Begin("loss");
      Compute(pair, call, 0, options_.reduction);
      loss = reduced.value();
    } else {
      loss = LossOf(pair).Reduced(options_.reduction);
      results.Compute(fill, progress_);
    }
    Report report(inputs_.json);
    Add(report, loss, pair.arithmetic() != XENT_F64, pair.layout.rows(), pair.first.elements());
    return Finish(results, fill, report);
  }

  int RunManifest() override {
    Corpus corpus;
    CorpusLoss losses;
    int64_t rows = 0, elements = 0;
    corpus.ForEachPair(inputs_, progress_, [&](const std::string &input, const std::string &targets) {
      const ArrayPair pair(input, kInput, targets, kTargets, LayoutOfElements);
      corpus.ExpectColumns(input, pair.layout.cols);
      losses.Add(LossOf(pair));
      rows += pair.layout.rows();
      elements += pair.first.elements();
    });
    Report report(inputs_.json);
    Add(report, losses.Reduced(options_.reduction), losses.is_float32(), rows, elements);
    return corpus.Finish(report, pool_.threads());
  }

  std::vector<const MappedFile *> InputFiles(const ArrayPair &pair) const {
    std::vector<const MappedFile *> files = {&pair.first.file(), &pair.second.file()};
    for (const auto *weights : {&pos_weight_, &element_weights_, &row_weights_, &class_weights_}) {
      if (*weights) files.push_back(&(*weights)->file());
    }
    return files;
  }

  std::vector<ArrayResult> Arrays(const ArrayPair &pair) const {
    const auto elements = static_cast<size_t>(pair.layout.block_elements());
    return {{.id = kPerElement,
             .option = "--per-element",
             .label = "element",
             .path = arguments_.per_element,
             .descr = DescrOf(pair.arithmetic()),
             .shape = pair.layout.shape,
             .fortran_order = pair.layout.fortran_order,
             .block_bytes = SizeOf(pair.arithmetic()) * elements},
            {.id = kGrad,
             .option = "--grad",
             .label = "grad",
             .path = arguments_.grad,
             .descr = DescrOf(pair.first.dtype()),
             .shape = pair.layout.shape,
             .fortran_order = pair.layout.fortran_order,
             .block_bytes = SizeOf(pair.first.dtype()) * elements}};
  }

  xent_binary_cross_entropy Call(const ArrayPair &pair, int64_t first, int64_t blocks) {
    const Layout &layout = pair.layout;
    const xent_dtype type = pair.arithmetic();
    const std::string &model = pair.first.path();
    const int64_t first_element = first * layout.block_elements();
    xent_binary_cross_entropy call = XENT_BINARY_CROSS_ENTROPY_INIT;
    call.rows = blocks * layout.inner;
    call.cols = layout.cols;
    call.inner = layout.inner;
    call.input = pair.first.Matrix(first_element, blocks * layout.block_elements());
    call.targets = pair.second.Matrix(first_element, blocks * layout.block_elements());
    if (pos_weight_) {
      pos_weight_->ExpectClasses(layout, model);
      call.pos_weight = pos_weight_->As(type);
    }
    if (class_weights_) {
      class_weights_->ExpectClasses(layout, model);
      call.class_weights = class_weights_->As(type);
    }
    if (row_weights_) {
      row_weights_->ExpectRows(layout, model);
      call.row_weights = row_weights_->From(first * layout.inner, type);
    }
    if (element_weights_) {
      element_weights_->ExpectElements(layout, model);
      // The library does not write to its inputs.
      call.element_weights = MatrixAt(const_cast<void *>(element_weights_->From(first_element, type)), type);
    }
    return call;
  }

  static void SetResult(xent_binary_cross_entropy &call, Result result, void *data, const ArrayPair &pair) {
    if (result == kPerElement) {
      call.element_losses = MatrixAt(data, pair.arithmetic());
    } else {
      call.grad = MatrixAt(data, pair.first.dtype());
    }
  }

  // Calls the forward function, or that with gradient where `call` has a place for it. Throws Error.
  void Compute(const ArrayPair &pair, const xent_binary_cross_entropy &call, int64_t first,
               const xent_reduction &reduction) {
    xent_binary_cross_entropy_options options = options_;
    options.reduction = reduction;
    const xent_exec exec = pool_.exec();
    xent_error error = XENT_ERROR_INIT;
    const auto function =
        call.grad.data != nullptr ? &xent_binary_cross_entropy_forward_backward : &xent_binary_cross_entropy_forward;
    switch (function(&call, &options, &exec, &error)) {
      case XENT_OK:
        return;
      case XENT_DOMAIN_ERROR:
        throw Error(pair.first.path() + ": the probability of row " +
                    std::to_string(first * pair.layout.inner + error.row) + ", column " + std::to_string(error.column) +
                    " is " + NumberText(error.value) + ", expected 0 to 1");
      default:
        throw Error(pair.first.path() + ": " + error.message);
    }
  }

  CorpusLoss LossOf(const ArrayPair &pair) {
    const auto compute = [&](int64_t first, int64_t blocks, char *data) {
      xent_binary_cross_entropy call = Call(pair, first, blocks);
      SetResult(call, kPerElement, data, pair);
      Compute(pair, call, first, NoReduction());
    };
    const LossBlocks file = {.blocks = pair.layout.blocks,
                             .losses = pair.layout.block_elements(),
                             .type = pair.arithmetic(),
                             .copied_bytes = pair.copied_bytes()};
    return LossOfBlocks(file, progress_, compute, [](int64_t) { return 1.0; });
  }

  static void Add(Report &report, const std::optional<double> &loss, bool is_float32, int64_t rows, int64_t elements) {
    report.AddNumber("loss", loss, is_float32);
    report.Add("rows", rows);
    report.Add("elements", elements);
  }

  const BceArguments &arguments_;
  const xent_binary_cross_entropy_options &options_;
  std::optional<NpyWeights> pos_weight_, element_weights_, row_weights_, class_weights_;
};

}  // namespace

int RunBce(const BceArguments &arguments) { return BceCommand(arguments).Run(); }

}  // namespace xent_cli
