// `xent divergence`: how far a student's logits are from a teacher's.
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

namespace xent_cli {
namespace {

enum Result { kPerRow, kGrad };

// Two matrices of one shape.
struct Pair {
  Pair(const std::string &student_path, const std::string &teacher_path)
      : student(student_path, kLogitsMatrix), layout(LayoutOf(student, 1)), teacher(teacher_path, kLogitsMatrix) {
    ExpectShape(teacher, student.shape(), ", that of " + student_path);
  }

  const NpyArray student;
  const Layout layout;
  const NpyArray teacher;

  xent_dtype arithmetic() const { return ArithmeticType(student.dtype()); }
};

class DivergenceCommand {
 public:
  explicit DivergenceCommand(const DivergenceArguments &arguments)
      : arguments_(arguments), options_(arguments.options), pool_(arguments.inputs.threads, progress_) {}

  int RunFile() {
    const Pair pair(arguments_.inputs.first, arguments_.inputs.second);
    const Layout &layout = pair.layout;
    Results results(Wanted(pair), layout.blocks, {&pair.student.file(), &pair.teacher.file()});
    xent_divergence call = Call(pair, 0, layout.rows());
    for (const Result result : {kPerRow, kGrad}) SetResult(call, result, results.data(result));
    ReducedLoss loss(options_, pair.arithmetic());
    call.loss = loss.data();
    progress_.Begin("loss");
    Run(pair, call, options_);

    xent_options options = options_;
    DivideByWhole(options, layout.rows());
    const auto fill = [&](int result, int64_t first, int64_t rows, char *data) {
      xent_divergence part = Call(pair, first, rows);
      SetResult(part, static_cast<Result>(result), data);
      Run(pair, part, options);
    };
    Report report(arguments_.inputs.json);
    report.AddNumber("loss", loss.value(), loss.is_float32());
    report.Add("rows", layout.rows());
    AddExecution(report, pool_.threads());
    results.Complete(fill, progress_, report.Text());
    return kExitOk;
  }

  int RunManifest() {
    Corpus corpus;
    CorpusLoss losses;
    int64_t rows = 0;
    corpus.ForEachPair(arguments_.inputs, progress_, [&](const std::string &student, const std::string &teacher) {
      const Pair pair(student, teacher);
      corpus.ExpectColumns(student, pair.layout.cols);
      losses.Add(LossOf(pair));
      rows += pair.layout.rows();
    });
    Report report(arguments_.inputs.json);
    report.AddNumber("loss", losses.Reduced(options_), losses.is_float32());
    report.Add("rows", rows);
    return corpus.Finish(report, pool_.threads());
  }

 private:
  std::vector<ArrayResult> Wanted(const Pair &pair) const {
    std::vector<ArrayResult> wanted;
    if (const auto &path = arguments_.per_row) {
      wanted.push_back({kPerRow, "--per-row", "per-row", *path, DescrOf(pair.arithmetic()), pair.layout.row_shape,
                        SizeOf(pair.arithmetic())});
    }
    if (const auto &path = arguments_.grad) {
      wanted.push_back({kGrad, "--grad", "grad", *path, DescrOf(pair.student.dtype()), pair.layout.shape,
                        pair.student.element_bytes() * static_cast<size_t>(pair.layout.cols)});
    }
    return wanted;
  }

  xent_divergence Call(const Pair &pair, int64_t first, int64_t rows) const {
    xent_divergence call = XENT_DIVERGENCE_INIT;
    call.rows = rows;
    call.cols = pair.layout.cols;
    call.student = pair.student.data(first * call.cols);
    call.teacher = pair.teacher.data(first * call.cols);
    call.student_dtype = pair.student.dtype();
    call.teacher_dtype = pair.teacher.dtype();
    call.kind = arguments_.kind;
    call.temperature = arguments_.temperature;
    call.beta = arguments_.beta;
    return call;
  }

  static void SetResult(xent_divergence &call, Result result, void *data) {
    (result == kPerRow ? call.losses : call.grad) = data;
  }

  void Run(const Pair &pair, const xent_divergence &call, const xent_options &options) {
    const xent_exec exec = pool_.exec();
    xent_error error = XENT_ERROR_INIT;
    const auto function = call.grad != nullptr ? &xent_divergence_forward_backward : &xent_divergence_forward;
    if (function(&call, &options, &exec, &error) != XENT_OK) throw Error(pair.student.path() + ": " + error.message);
  }

  CorpusLoss LossOf(const Pair &pair) {
    const xent_dtype type = pair.arithmetic();
    const Batches batches(pair.layout.rows(), SizeOf(type));
    const Scratch scratch(SizeOf(type) * static_cast<size_t>(batches.size()));
    const xent_options options = Unreduced(options_);
    CorpusLoss loss;
    loss.SetType(type);
    progress_.Begin("loss");
    batches.ForEach(progress_, [&](int64_t first, int64_t rows) {
      xent_divergence call = Call(pair, first, rows);
      call.losses = scratch.data();
      Run(pair, call, options);
      for (int64_t i = 0; i < rows; ++i) loss.Add(NumberAt(scratch.data(), type, i), 1);
      return true;
    });
    return loss;
  }

  const DivergenceArguments &arguments_;
  const xent_options &options_;
  Progress progress_;
  ThreadPool pool_;
};

}  // namespace

int RunDivergence(const DivergenceArguments &arguments) {
  DivergenceCommand command(arguments);
  return arguments.inputs.manifest ? command.RunManifest() : command.RunFile();
}

}  // namespace xent_cli
