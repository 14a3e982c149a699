// `xent bce`: binary cross-entropy, or focal loss, of each element.
#include <optional>

#include "batches.h"
#include "commands.h"
#include "corpus.h"
#include "error.h"
#include "layout.h"
#include "npy.h"
#include "pool.h"
#include "reduce.h"
#include "report.h"
#include "results.h"
#include "weights.h"

namespace xent_cli {
namespace {

enum Result { kPerElement, kGrad };

constexpr ArrayRule kElements = {.floats = true,
                                 .dtypes_text = "elements of '<f4', '<f8', '<f2', or bfloat16 as '<V2' or '|V2'",
                                 .min_dimensions = 1,
                                 .max_dimensions = 64,
                                 .shape_text = "elements [rows, columns], [rows], or of more dimensions"};

// Two arrays of one shape.
struct Pair {
  Pair(const std::string &input_path, const std::string &targets_path)
      : input(input_path, kElements), layout(LayoutOfElements(input)), targets(targets_path, kElements) {
    ExpectShape(targets, input.shape(), ", that of " + input_path);
  }

  const NpyArray input;
  const Layout layout;
  const NpyArray targets;

  xent_dtype arithmetic() const { return ArithmeticType(input.dtype()); }
};

class BceCommand {
 public:
  explicit BceCommand(const BceArguments &arguments)
      : arguments_(arguments), options_(arguments.options), pool_(arguments.inputs.threads, progress_) {
    if (const auto &path = arguments_.pos_weight) pos_weight_.emplace(*path, "positive weight");
    if (const auto &path = arguments_.element_weights) element_weights_.emplace(*path, "element weight");
    if (const auto &path = arguments_.row_weights) row_weights_.emplace(*path, "row weight");
    if (const auto &path = arguments_.class_weights) class_weights_.emplace(*path, "class weight");
  }

  int RunFile() {
    const Pair pair(arguments_.inputs.first, arguments_.inputs.second);
    Results results(Wanted(pair), pair.layout.blocks, InputFiles(pair));
    xent_binary_cross_entropy call = Call(pair, 0, pair.layout.blocks);
    for (const Result result : {kPerElement, kGrad}) SetResult(call, result, results.data(result));
    ReducedLoss loss(options_, pair.arithmetic());
    call.loss = loss.data();
    progress_.Begin("loss");
    Run(pair, call, 0, options_);

    xent_options options = options_;
    DivideByWhole(options, pair.input.elements());
    const auto fill = [&](int result, int64_t first, int64_t blocks, char *data) {
      xent_binary_cross_entropy part = Call(pair, first, blocks);
      SetResult(part, static_cast<Result>(result), data);
      Run(pair, part, first, options);
    };
    Report report(arguments_.inputs.json);
    Add(report, loss.value(), loss.is_float32(), pair.layout.rows(), pair.input.elements());
    AddExecution(report, pool_.threads());
    results.Complete(fill, progress_, report.Text());
    return kExitOk;
  }

  int RunManifest() {
    Corpus corpus;
    CorpusLoss losses;
    int64_t rows = 0, elements = 0;
    corpus.ForEachPair(arguments_.inputs, progress_, [&](const std::string &input, const std::string &targets) {
      const Pair pair(input, targets);
      corpus.ExpectColumns(input, pair.layout.cols);
      losses.Add(LossOf(pair));
      rows += pair.layout.rows();
      elements += pair.input.elements();
    });
    Report report(arguments_.inputs.json);
    Add(report, losses.Reduced(options_), losses.is_float32(), rows, elements);
    return corpus.Finish(report, pool_.threads());
  }

 private:
  std::vector<const MappedFile *> InputFiles(const Pair &pair) const {
    std::vector<const MappedFile *> files = {&pair.input.file(), &pair.targets.file()};
    for (const auto *weights : {&pos_weight_, &element_weights_, &row_weights_, &class_weights_}) {
      if (*weights) files.push_back(&(*weights)->file());
    }
    return files;
  }

  std::vector<ArrayResult> Wanted(const Pair &pair) const {
    const auto elements = static_cast<size_t>(pair.layout.block_elements());
    std::vector<ArrayResult> wanted;
    if (const auto &path = arguments_.per_element) {
      wanted.push_back({kPerElement, "--per-element", "element", *path, DescrOf(pair.arithmetic()), pair.layout.shape,
                        SizeOf(pair.arithmetic()) * elements});
    }
    if (const auto &path = arguments_.grad) {
      wanted.push_back({kGrad, "--grad", "grad", *path, DescrOf(pair.input.dtype()), pair.layout.shape,
                        pair.input.element_bytes() * elements});
    }
    return wanted;
  }

  xent_binary_cross_entropy Call(const Pair &pair, int64_t first, int64_t blocks) {
    const Layout &layout = pair.layout;
    const xent_dtype type = pair.arithmetic();
    const std::string &model = pair.input.path();
    const int64_t first_element = first * layout.block_elements();
    xent_binary_cross_entropy call = XENT_BINARY_CROSS_ENTROPY_INIT;
    call.rows = blocks * layout.inner;
    call.cols = layout.cols;
    call.inner = layout.inner;
    call.input = pair.input.data(first_element);
    call.targets = pair.targets.data(first_element);
    call.dtype = pair.input.dtype();
    call.targets_dtype = pair.targets.dtype();
    call.input_kind = arguments_.input_kind;
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
      call.element_weights = element_weights_->From(first_element, type);
    }
    call.focal_gamma = arguments_.focal_gamma;
    call.has_focal_alpha = arguments_.focal_alpha.has_value();
    call.focal_alpha = arguments_.focal_alpha.value_or(0);
    return call;
  }

  static void SetResult(xent_binary_cross_entropy &call, Result result, void *data) {
    (result == kPerElement ? call.losses : call.grad) = data;
  }

  void Run(const Pair &pair, const xent_binary_cross_entropy &call, int64_t first, const xent_options &options) {
    const xent_exec exec = pool_.exec();
    xent_error error = XENT_ERROR_INIT;
    const auto function =
        call.grad != nullptr ? &xent_binary_cross_entropy_forward_backward : &xent_binary_cross_entropy_forward;
    switch (function(&call, &options, &exec, &error)) {
      case XENT_OK:
        return;
      case XENT_DOMAIN_ERROR: {
        const Layout &layout = pair.layout;
        const int64_t row = first * layout.inner + error.row;
        const int64_t element = (row / layout.inner * layout.cols + error.value) * layout.inner + row % layout.inner;
        throw Error(pair.input.path() + ": the probability of row " + std::to_string(row) + ", column " +
                    std::to_string(error.value) + " is " + NumberText(pair.input.Number(element)) +
                    ", expected 0 to 1");
      }
      default:
        throw Error(pair.input.path() + ": " + error.message);
    }
  }

  CorpusLoss LossOf(const Pair &pair) {
    const Layout &layout = pair.layout;
    const xent_dtype type = pair.arithmetic();
    const size_t block_bytes = SizeOf(type) * static_cast<size_t>(layout.block_elements());
    const Batches batches(layout.blocks, block_bytes);
    const Scratch scratch(block_bytes * static_cast<size_t>(batches.size()));
    const xent_options options = Unreduced(options_);
    CorpusLoss loss;
    loss.SetType(type);
    progress_.Begin("loss");
    batches.ForEach(progress_, [&](int64_t first, int64_t blocks) {
      xent_binary_cross_entropy call = Call(pair, first, blocks);
      call.losses = scratch.data();
      Run(pair, call, first, options);
      for (int64_t i = 0; i < blocks * layout.block_elements(); ++i) loss.Add(NumberAt(scratch.data(), type, i), 1);
      return true;
    });
    return loss;
  }

  static void Add(Report &report, const std::optional<double> &loss, bool is_float32, int64_t rows, int64_t elements) {
    report.AddNumber("loss", loss, is_float32);
    report.Add("rows", rows);
    report.Add("elements", elements);
  }

  const BceArguments &arguments_;
  const xent_options &options_;
  Progress progress_;
  ThreadPool pool_;
  std::optional<NpyWeights> pos_weight_, element_weights_, row_weights_, class_weights_;
};

}  // namespace

int RunBce(const BceArguments &arguments) {
  BceCommand command(arguments);
  return arguments.inputs.manifest ? command.RunManifest() : command.RunFile();
}

}  // namespace xent_cli
