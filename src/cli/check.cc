// `xent check`: do these logits look like probabilities, which a second softmax would flatten?
#include <unistd.h>

#include <algorithm>

#include "commands.h"
#include "error.h"
#include "npy.h"
#include "pool.h"
#include "progress.h"
#include "report.h"

namespace xent_cli {
namespace {

// A diagnosis other than logits is about every row, so that of all rows is that of the parts where they agree, and
// logits where they do not. Parts are there for the progress bar.
xent_diagnosis Diagnose(const NpyLogits& logits) {
  Progress progress;
  ThreadPool pool(0, progress);
  const xent_exec exec = pool.exec();
  constexpr size_t kPartBytes = size_t{64} << 20;
  const size_t row_bytes = static_cast<size_t>(logits.cols()) * SizeOf(logits.dtype());
  const int64_t part = std::max<int64_t>(static_cast<int64_t>(kPartBytes / row_bytes), 1);
  xent_diagnosis all = XENT_DIAGNOSIS_LOGITS;
  progress.Begin("check");
  for (int64_t first = 0; first < logits.rows(); first += std::min(part, logits.rows() - first)) {
    const char* const data = static_cast<const char*>(logits.data()) + static_cast<size_t>(first) * row_bytes;
    const int64_t rows = std::min(part, logits.rows() - first);
    const auto total = static_cast<double>(logits.rows());
    progress.SetPart(static_cast<double>(first) / total, static_cast<double>(first + rows) / total);
    xent_error error = XENT_ERROR_INIT;
    xent_diagnosis diagnosis;
    if (xent_check_logits(rows, logits.cols(), data, logits.dtype(), 0, &diagnosis, &exec, &error) != XENT_OK) {
      throw Error(logits.file().path() + ": " + error.message);
    }
    if (first == 0) all = diagnosis;
    if (diagnosis == XENT_DIAGNOSIS_LOGITS || diagnosis != all) return XENT_DIAGNOSIS_LOGITS;
    progress.Update(1);
  }
  return all;
}

}  // namespace

int RunCheck(const std::string& logits_path, bool json) {
  const NpyLogits logits(logits_path);
  const xent_diagnosis diagnosis = Diagnose(logits);
  const char* name = "logits";
  const char* advice = "nothing speaks against these being logits";
  if (diagnosis == XENT_DIAGNOSIS_PROBABILITIES) {
    name = "probabilities";
    advice =
        "every row sums to 1 already: the loss would apply softmax twice; pass the logits, or log p in their place";
  } else if (diagnosis == XENT_DIAGNOSIS_LOG_PROBABILITIES) {
    name = "log-probabilities";
    advice = "harmless: the softmax of log p is p";
  }
  if (json) {
    JsonObject report;
    report.Add("diagnosis", name);
    report.Add("rows", logits.rows());
    report.Add("columns", logits.cols());
    Print(STDOUT_FILENO, report.Line());
  } else {
    Print(STDOUT_FILENO, TextLine("diagnosis", name) + TextLine("meaning", advice));
  }
  return diagnosis == XENT_DIAGNOSIS_PROBABILITIES ? kExitProbabilities : kExitOk;
}

}  // namespace xent_cli
