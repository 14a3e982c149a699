// `xent check`: do these logits look like probabilities, which a second softmax would flatten?
#include <unistd.h>

#include "batches.h"
#include "commands.h"
#include "corpus.h"
#include "error.h"
#include "layout.h"
#include "npy.h"
#include "pool.h"
#include "progress.h"
#include "report.h"

namespace xent_cli {
namespace {

// A diagnosis other than logits is about every row, so that of all rows is that of the parts where they agree, and
// logits where they do not. Parts are there for the progress bar.
xent_diagnosis Diagnose(const NpyArray &logits, ThreadPool &pool, Progress &progress) {
  const Layout layout = LayoutOf(logits, 1);
  const xent_exec exec = pool.exec();
  xent_diagnosis all = XENT_DIAGNOSIS_LOGITS;
  progress.Begin("check");
  const Batches batches(layout.blocks, static_cast<size_t>(layout.cols) * logits.element_bytes(), size_t{64} << 20);
  batches.ForEach(progress, [&](int64_t first, int64_t rows) {
    xent_error error = XENT_ERROR_INIT;
    xent_diagnosis diagnosis;
    if (xent_check_logits(rows, layout.cols, logits.data(first * layout.cols), logits.dtype(), 0, &diagnosis, &exec,
                          &error) != XENT_OK) {
      throw Error(logits.path() + ": " + error.message);
    }
    if (first == 0) all = diagnosis;
    if (diagnosis != all) all = XENT_DIAGNOSIS_LOGITS;
    return all != XENT_DIAGNOSIS_LOGITS;
  });
  progress.Wipe();
  return all;
}

constexpr const char *kNames[] = {"logits", "probabilities", "log-probabilities"};
constexpr const char *kKeys[] = {"logits", "probabilities", "log_probabilities"};
constexpr const char *kAdvice[] = {
    "nothing speaks against these being logits",
    "every row sums to 1 already: the loss would apply softmax twice; pass the logits, or log p in their place",
    "harmless: the softmax of log p is p"};

int CheckFile(const InputArguments &inputs, ThreadPool &pool, Progress &progress) {
  const NpyArray logits(inputs.first, kLogitsMatrix);
  const xent_diagnosis diagnosis = Diagnose(logits, pool, progress);
  if (inputs.json) {
    JsonObject report;
    report.Add("diagnosis", kNames[diagnosis]);
    report.Add("rows", logits.shape()[0]);
    report.Add("columns", logits.shape()[1]);
    Print(STDOUT_FILENO, report.Line());
  } else {
    Print(STDOUT_FILENO, TextLine("diagnosis", kNames[diagnosis]) + TextLine("meaning", kAdvice[diagnosis]));
  }
  return diagnosis == XENT_DIAGNOSIS_PROBABILITIES ? kExitProbabilities : kExitOk;
}

// How many files are what.
int CheckManifest(const InputArguments &inputs, ThreadPool &pool, Progress &progress) {
  Corpus corpus;
  int64_t files[3] = {0, 0, 0}, rows = 0;
  corpus.ForEachFile(inputs, progress, [&](const std::string &path) {
    const NpyArray logits(path, kLogitsMatrix);
    corpus.ExpectColumns(path, logits.shape()[1]);
    ++files[Diagnose(logits, pool, progress)];
    rows += logits.shape()[0];
  });
  Report report(inputs.json);
  for (int i = 0; i < 3; ++i) report.Add(kKeys[i], files[i], kNames[i]);
  report.Add("rows", rows);
  const int exit_code = corpus.Finish(report, pool.threads());
  return exit_code == kExitOk && files[XENT_DIAGNOSIS_PROBABILITIES] > 0 ? kExitProbabilities : exit_code;
}

}  // namespace

int RunCheck(const InputArguments &inputs) {
  Progress progress;
  ThreadPool pool(inputs.threads, progress);
  return inputs.manifest ? CheckManifest(inputs, pool, progress) : CheckFile(inputs, pool, progress);
}

}  // namespace xent_cli
