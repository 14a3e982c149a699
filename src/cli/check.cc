// `xent check`: do these logits look like probabilities, which a second softmax would flatten?
#include <unistd.h>

#include "array.h"
#include "batches.h"
#include "commands.h"
#include "corpus.h"
#include "error.h"
#include "file_command.h"
#include "layout.h"
#include "report.h"

namespace xent_cli {
namespace {

// Indexed by xent_diagnosis.
constexpr const char *kNames[] = {"logits", "probabilities", "log-probabilities"};
constexpr const char *kKeys[] = {"logits", "probabilities", "log_probabilities"};
constexpr const char *kAdvice[] = {
    "nothing speaks against these being logits",
    "every row sums to 1 already: the loss would apply softmax twice; pass the logits, or log p in their place",
    "harmless: the softmax of log p is p"};

class CheckCommand : public FileCommand {
 public:
  explicit CheckCommand(const CheckArguments &arguments) : FileCommand(arguments.inputs), arguments_(arguments) {}

 private:
  int RunFile() override {
    const NpyArray logits(inputs_.first, kLogits);
    const Layout layout = LayoutOf(logits, arguments_.class_axis);
    const xent_diagnosis diagnosis = Diagnose(logits, layout);
    if (inputs_.json) {
      JsonObject report;
      report.Add("diagnosis", kNames[diagnosis]);
      report.Add("rows", layout.rows());
      report.Add("columns", layout.cols);
      Print(STDOUT_FILENO, report.Line());
    } else {
      Print(STDOUT_FILENO, TextLine("diagnosis", kNames[diagnosis]) + TextLine("meaning", kAdvice[diagnosis]));
    }
    return diagnosis == XENT_DIAGNOSIS_PROBABILITIES ? kExitProbabilities : kExitOk;
  }

  // Reports how many files have each diagnosis.
  int RunManifest() override {
    Corpus corpus;
    int64_t files[3] = {0, 0, 0}, rows = 0;
    corpus.ForEachFile(inputs_, progress_, [&](const std::string &path) {
      const NpyArray logits(path, kLogits);
      const Layout layout = LayoutOf(logits, arguments_.class_axis);
      corpus.ExpectColumns(path, layout.cols);
      ++files[Diagnose(logits, layout)];
      rows += layout.rows();
    });
    Report report(inputs_.json);
    for (int i = 0; i < 3; ++i) report.Add(kKeys[i], files[i], kNames[i]);
    report.Add("rows", rows);
    const int exit_code = corpus.Finish(report, pool_.threads());
    return exit_code == kExitOk && files[XENT_DIAGNOSIS_PROBABILITIES] > 0 ? kExitProbabilities : exit_code;
  }

  // Returns the diagnosis of all rows. A diagnosis other than logits is about every row: all rows have that of their
  // parts where those agree, and logits where they do not. Parts are there for the progress bar.
  xent_diagnosis Diagnose(const NpyArray &logits, const Layout &layout) {
    ExpectValidCols(layout, arguments_.valid_cols, logits.path());
    const int64_t cols = arguments_.valid_cols > 0 ? arguments_.valid_cols : layout.cols;
    const int64_t block = layout.block_elements();
    const xent_exec exec = pool_.exec();
    xent_diagnosis all = XENT_DIAGNOSIS_LOGITS;
    progress_.Begin("check");
    const Batches batches(layout.blocks, static_cast<size_t>(block) * SizeOf(logits.dtype()), size_t{64} << 20);
    batches.ForEach(progress_, [&](int64_t first, int64_t blocks) {
      xent_matrix matrix = logits.Matrix(first * block, blocks * block);
      matrix.stride = block;  // past the valid columns
      xent_error error = XENT_ERROR_INIT;
      xent_diagnosis diagnosis;
      if (xent_check_logits(blocks * layout.inner, cols, layout.inner, matrix, &diagnosis, &exec, &error) != XENT_OK) {
        throw Error(logits.path() + ": " + error.message);
      }
      if (first == 0) all = diagnosis;
      if (diagnosis != all) all = XENT_DIAGNOSIS_LOGITS;
      return all != XENT_DIAGNOSIS_LOGITS;
    });
    progress_.Wipe();
    return all;
  }

  const CheckArguments &arguments_;
};

}  // namespace

int RunCheck(const CheckArguments &arguments) { return CheckCommand(arguments).Run(); }

}  // namespace xent_cli
