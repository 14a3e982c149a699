// `xent score`: what a model's logits say about the targets, row by row and over all rows. Totals are sums over batches
// of rows, so that one file and many are the same work.
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <filesystem>
#include <limits>
#include <optional>
#include <system_error>

#include "batches.h"
#include "commands.h"
#include "corpus.h"
#include "cross_entropy.h"
#include "error.h"
#include "results.h"
#include "signals.h"

namespace xent_cli {
namespace {

enum Statistic { kLse, kLogprob, kArgmax, kEntropy, kRank, kTopkIndices, kTopkLogprobs };
constexpr const char *kNames[] = {"lse", "logprob", "argmax", "entropy", "rank", "topk_indices", "topk_logprobs"};

bool IsIndex(Statistic statistic) { return statistic == kArgmax || statistic == kRank || statistic == kTopkIndices; }
bool IsTopk(Statistic statistic) { return statistic == kTopkIndices || statistic == kTopkLogprobs; }

void SetStatistic(xent_cross_entropy &call, Statistic statistic, int32_t top_k, void *data) {
  switch (statistic) {
    case kLse:
      call.lse = data;
      return;
    case kLogprob:
      call.logprobs = data;
      return;
    case kArgmax:
      call.argmax = static_cast<int64_t *>(data);
      return;
    case kEntropy:
      call.entropy = data;
      return;
    case kRank:
      call.rank = static_cast<int64_t *>(data);
      return;
    case kTopkIndices:
      call.topk_indices = static_cast<int64_t *>(data);
      break;
    case kTopkLogprobs:
      call.topk_logprobs = data;
      break;
  }
  if (data != nullptr) call.top_k = top_k;
}

// Sums over live rows.
struct Totals {
  RowCounts counts;
  int64_t hits = 0, topk_hits = 0;
  Sum entropy, rank;

  void Add(const Totals &other) {
    counts.Add(other.counts);
    hits += other.hits;
    topk_hits += other.topk_hits;
    entropy.Add(other.entropy);
    rank.Add(other.rank);
  }
};

// A directory for the results, which goes again if nothing comes of them.
class OutputDirectory {
 public:
  explicit OutputDirectory(const std::optional<std::string> &path) {
    std::error_code error;
    if (!path || std::filesystem::is_directory(*path, error)) return;
    name_guard_.emplace(*path);
    if (!std::filesystem::create_directory(*path, error)) {
      throw SystemError("cannot create", *path, error ? error.value() : EEXIST);
    }
    created_ = *path;
  }
  ~OutputDirectory() {
    if (created_) rmdir(created_->c_str());
  }
  OutputDirectory(const OutputDirectory &) = delete;
  OutputDirectory &operator=(const OutputDirectory &) = delete;
  void Keep() {
    name_guard_.reset();
    created_.reset();
  }

 private:
  std::optional<std::string> created_;
  std::optional<ScopedTemporaryName> name_guard_;
};

class ScoreCommand {
 public:
  explicit ScoreCommand(const ScoreArguments &arguments)
      : arguments_(arguments), options_(arguments.options), pool_(arguments.inputs.threads, progress_) {}

  int RunFile() {
    const CrossEntropyInputs inputs = Open(arguments_.inputs.first, arguments_.inputs.second);
    OutputDirectory directory(arguments_.out);
    Results results(Wanted(inputs), inputs.layout().blocks, {&inputs.logits().file(), &inputs.targets().file()});
    const Totals totals = Score(inputs, &results);
    const auto fill = [&](int statistic, int64_t first, int64_t blocks, char *data) {
      xent_cross_entropy call = inputs.Call(first, blocks);
      SetStatistic(call, static_cast<Statistic>(statistic), arguments_.top_k, data);
      inputs.Run(call, first, options_, pool_);
    };
    Report report(arguments_.inputs.json);
    Add(report, totals);
    AddExecution(report, pool_.threads());
    results.Complete(fill, progress_, report.Text());
    directory.Keep();
    return kExitOk;
  }

  int RunManifest() {
    Corpus corpus;
    Totals totals;
    corpus.ForEachPair(arguments_.inputs, progress_, [&](const std::string &logits, const std::string &targets) {
      const CrossEntropyInputs inputs = Open(logits, targets);
      corpus.ExpectColumns(logits, inputs.layout().cols);
      totals.Add(Score(inputs, nullptr));
    });
    Report report(arguments_.inputs.json);
    Add(report, totals);
    return corpus.Finish(report, pool_.threads());
  }

 private:
  CrossEntropyInputs Open(const std::string &logits, const std::string &targets) {
    return {logits, targets, arguments_.class_axis, false};
  }

  std::vector<ArrayResult> Wanted(const CrossEntropyInputs &inputs) const {
    std::vector<ArrayResult> wanted;
    if (!arguments_.out) return wanted;
    for (const Statistic statistic : {kLse, kLogprob, kArgmax, kEntropy, kRank, kTopkIndices, kTopkLogprobs}) {
      if (IsTopk(statistic) && arguments_.top_k == 0) continue;
      std::vector<int64_t> shape = inputs.layout().row_shape;
      if (IsTopk(statistic)) shape.push_back(arguments_.top_k);
      const size_t bytes = IsIndex(statistic) ? sizeof(int64_t) : inputs.number_bytes();
      const auto numbers = static_cast<size_t>(inputs.layout().inner * (IsTopk(statistic) ? arguments_.top_k : 1));
      wanted.push_back({statistic, "--out", kNames[statistic], *arguments_.out + "/" + kNames[statistic] + ".npy",
                        IsIndex(statistic) ? "<i8" : DescrOf(inputs.arithmetic()), shape, bytes * numbers});
    }
    return wanted;
  }

  // `results` are filled on the way where there are any.
  Totals Score(const CrossEntropyInputs &inputs, const Results *results) {
    const Layout &layout = inputs.layout();
    const int64_t cols = options_.valid_cols > 0 ? options_.valid_cols : layout.cols;
    if (arguments_.top_k > cols) {
      throw Error(inputs.logits().path() + ": --top-k is " + std::to_string(arguments_.top_k) + ", expected at most " +
                  std::to_string(cols) + ", the number of columns");
    }
    constexpr size_t kRowBytes = sizeof(int64_t) + sizeof(double) + 1;  // rank, entropy, hit
    const Batches batches(layout.blocks, kRowBytes * static_cast<size_t>(layout.inner));
    const auto rows = static_cast<size_t>(batches.size() * layout.inner);
    const Scratch ranks(rows * sizeof(int64_t)), entropies(rows * sizeof(double)), hits(rows);
    Totals totals;
    progress_.Begin("score");
    batches.ForEach(progress_, [&](int64_t first, int64_t blocks) {
      xent_cross_entropy call = inputs.Call(first, blocks);
      call.rank = reinterpret_cast<int64_t *>(ranks.data());
      call.entropy = entropies.data();
      call.hits = reinterpret_cast<uint8_t *>(hits.data());
      if (results != nullptr) {
        for (const Statistic statistic : {kLse, kLogprob, kArgmax, kEntropy, kRank, kTopkIndices, kTopkLogprobs}) {
          void *const place = results->data(statistic, first);
          if (place != nullptr) SetStatistic(call, statistic, arguments_.top_k, place);
        }
      }
      inputs.RunAndCount(call, first, options_, pool_, totals.counts);
      for (int64_t i = 0; i < call.rows; ++i) {
        if (inputs.targets().Index(first * layout.inner + i) == options_.ignore_index) continue;
        totals.hits += call.hits[i];
        totals.topk_hits += call.rank[i] >= 0 && call.rank[i] < arguments_.top_k;
        totals.entropy.Add(NumberAt(call.entropy, inputs.arithmetic(), i));
        // A row of NaN has no rank, and so the rows have no mean of it.
        totals.rank.Add(call.rank[i] >= 0 ? static_cast<double>(call.rank[i]) : std::nan(""));
      }
      return true;
    });
    return totals;
  }

  void Add(Report &report, const Totals &totals) const {
    const auto live_rows = static_cast<double>(totals.counts.live_rows());  // 0 / 0 is the mean over none
    std::optional<double> topk_accuracy;
    if (arguments_.top_k > 0) topk_accuracy = static_cast<double>(totals.topk_hits) / live_rows;
    report.AddNumber("accuracy", static_cast<double>(totals.hits) / live_rows, false);
    report.AddNumber("perplexity", totals.counts.perplexity(), false);
    report.AddNumber("mean_entropy", totals.entropy.value() / live_rows, false, "entropy");
    report.AddNumber("mean_rank", totals.rank.value() / live_rows, false, "rank");
    report.AddNumber("topk_accuracy", topk_accuracy, false, "top-" + std::to_string(arguments_.top_k));
    report.Add("rows", totals.counts.rows());
    report.Add("ignored", totals.counts.rows() - totals.counts.live_rows());
  }

  const ScoreArguments &arguments_;
  const xent_options &options_;
  Progress progress_;
  ThreadPool pool_;
};

}  // namespace

int RunScore(const ScoreArguments &arguments) {
  ScoreCommand command(arguments);
  return arguments.inputs.manifest ? command.RunManifest() : command.RunFile();
}

}  // namespace xent_cli
