// Median and minimum of a benchmark's repetitions.
#include "bench/reporter.h"

#include <algorithm>

namespace xent_bench {

bool MedianAndMinimum::ReportContext(const Context &context) {
  shown_->SetOutputStream(&GetOutputStream());
  shown_->SetErrorStream(&GetErrorStream());
  return shown_->ReportContext(context);
}

void MedianAndMinimum::ReportRuns(const std::vector<Run> &runs) {
  if (runs.empty()) return;
  if (runs.front().run_type != Run::RT_Aggregate) {
    ShowRepetitions();
    repetitions_ = runs;
    return;
  }
  std::vector<Run> chosen;
  for (const Run &run : runs) {
    if (run.aggregate_name == "median") chosen.push_back(run);
  }
  if (!repetitions_.empty()) {
    Run fastest = *std::min_element(repetitions_.begin(), repetitions_.end(), [](const Run &a, const Run &b) {
      return a.GetAdjustedRealTime() < b.GetAdjustedRealTime();
    });
    fastest.run_type = Run::RT_Aggregate;
    fastest.aggregate_name = "min";
    chosen.push_back(fastest);
    repetitions_.clear();
  }
  shown_->ReportRuns(chosen);
}

void MedianAndMinimum::Finalize() {
  ShowRepetitions();
  shown_->Finalize();
}

void MedianAndMinimum::ShowRepetitions() {
  if (!repetitions_.empty()) shown_->ReportRuns(repetitions_);
  repetitions_.clear();
}

}  // namespace xent_bench
