// `xent score`: statistics of logits over their targets, row by row and over all rows. Totals are sums over batches
// of rows, so that one file and many are the same work.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <optional>
#include <system_error>

#include "batches.h"
#include "commands.h"
#include "corpus.h"
#include "cross_entropy.h"
#include "error.h"
#include "file_command.h"
#include "results.h"
#include "signals.h"

namespace xent_cli {
namespace {

enum Statistic { kLse, kLogprob, kArgmax, kEntropy, kRank, kTopkIndices, kTopkLogprobs };
constexpr Statistic kStatistics[] = {kLse, kLogprob, kArgmax, kEntropy, kRank, kTopkIndices, kTopkLogprobs};
// Indexed by Statistic.
constexpr const char *kNames[] = {"lse", "logprob", "argmax", "entropy", "rank", "topk_indices", "topk_logprobs"};

bool IsIndex(Statistic statistic) { return statistic == kArgmax || statistic == kRank || statistic == kTopkIndices; }
bool IsTopk(Statistic statistic) { return statistic == kTopkIndices || statistic == kTopkLogprobs; }

void SetStatistic(xent_statistics &statistics, Statistic statistic, int32_t top_k, void *data) {
  switch (statistic) {
    case kLse:
      statistics.lse = data;
      return;
    case kLogprob:
      statistics.logprobs = data;
      return;
    case kArgmax:
      statistics.argmax = static_cast<int64_t *>(data);
      return;
    case kEntropy:
      statistics.entropy = data;
      return;
    case kRank:
      statistics.rank = static_cast<int64_t *>(data);
      return;
    case kTopkIndices:
      statistics.topk_indices = static_cast<int64_t *>(data);
      break;
    case kTopkLogprobs:
      statistics.topk_logprobs = data;
      break;
  }
  statistics.top_k = top_k;
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

// The directory of the results. One that was made for them is removed again unless Keep is called.
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

class ScoreCommand : public FileCommand {
 public:
  explicit ScoreCommand(const ScoreArguments &arguments)
      : FileCommand(arguments.inputs), arguments_(arguments), options_(arguments.options) {}

 private:
  int RunFile() override {
    const CrossEntropyInputs inputs = Open(inputs_.first, inputs_.second);
    OutputDirectory directory(arguments_.out);
    Results results(Arrays(inputs), inputs.layout().blocks, {&inputs.logits().file(), &inputs.targets().file()},
                    inputs.copied_bytes());
    const Totals totals = Score(inputs, &results);
    const auto fill = [&](int statistic, int64_t first, int64_t blocks, char *data) {
      CrossEntropyCall call = inputs.Call(first, blocks);
      SetStatistic(call.statistics, static_cast<Statistic>(statistic), arguments_.top_k, data);
      inputs.Run(call, first, options_, pool_);
    };
    Report report(inputs_.json);
    Add(report, totals);
    const int exit_code = Finish(results, fill, report);
    directory.Keep();
    return exit_code;
  }

  int RunManifest() override {
    Corpus corpus;
    Totals totals;
    corpus.ForEachPair(inputs_, progress_, [&](const std::string &logits, const std::string &targets) {
      const CrossEntropyInputs inputs = Open(logits, targets);
      corpus.ExpectColumns(logits, inputs.layout().cols);
      totals.Add(Score(inputs, nullptr));
    });
    Report report(inputs_.json);
    Add(report, totals);
    return corpus.Finish(report, pool_.threads());
  }

  CrossEntropyInputs Open(const std::string &logits, const std::string &targets) const {
    return {logits, targets, arguments_.class_axis, false};
  }

  std::vector<ArrayResult> Arrays(const CrossEntropyInputs &inputs) const {
    std::vector<ArrayResult> wanted;
    if (!arguments_.out) return wanted;
    const Layout &layout = inputs.layout();
    if (arguments_.top_k > 0 && layout.fortran_order && HasTwoOrders(layout.row_shape)) {
      // The K numbers of a row lie together, and the rows in Fortran order.
      throw Error(inputs.logits().path() +
                  ": the array is in Fortran order, expected C order for the --top-k of rows of more than one "
                  "dimension (numpy.ascontiguousarray gives it)");
    }
    for (const Statistic statistic : kStatistics) {
      if (IsTopk(statistic) && arguments_.top_k == 0) continue;
      std::vector<int64_t> shape = layout.row_shape;
      if (IsTopk(statistic)) shape.push_back(arguments_.top_k);
      const size_t bytes = IsIndex(statistic) ? sizeof(int64_t) : inputs.number_bytes();
      const auto numbers = static_cast<size_t>(layout.inner * (IsTopk(statistic) ? arguments_.top_k : 1));
      wanted.push_back({.id = statistic,
                        .option = "--out",
                        .label = kNames[statistic],
                        .path = *arguments_.out + "/" + kNames[statistic] + ".npy",
                        .descr = IsIndex(statistic) ? "<i8" : DescrOf(inputs.arithmetic()),
                        .shape = shape,
                        .fortran_order = layout.fortran_order && !IsTopk(statistic),
                        .block_bytes = bytes * numbers});
    }
    return wanted;
  }

  // Returns the totals of a file, and stores in `results` those that have a place there; null: no results are wanted.
  Totals Score(const CrossEntropyInputs &inputs, const Results *results) {
    const Layout &layout = inputs.layout();
    const int64_t cols = options_.valid_cols > 0 ? options_.valid_cols : layout.cols;
    if (arguments_.top_k > cols) {
      throw Error(inputs.logits().path() + ": --top-k is " + std::to_string(arguments_.top_k) + ", expected at most " +
                  std::to_string(cols) + ", the number of columns");
    }
    constexpr size_t kRowBytes = sizeof(int64_t) + sizeof(double) + 1;  // rank, entropy, hit
    const Batches batches(layout.blocks,
                          std::max(kRowBytes * static_cast<size_t>(layout.inner), inputs.copied_bytes()));
    const auto rows = static_cast<size_t>(batches.size() * layout.inner);
    const Scratch ranks(rows * sizeof(int64_t)), entropies(rows * sizeof(double)), hits(rows);
    Totals totals;
    progress_.Begin("score");
    batches.ForEach(progress_, [&](int64_t first, int64_t blocks) {
      CrossEntropyCall call = inputs.Call(first, blocks);
      xent_statistics &of_rows = call.statistics;
      of_rows.rank = reinterpret_cast<int64_t *>(ranks.data());
      of_rows.entropy = entropies.data();
      of_rows.hits = reinterpret_cast<uint8_t *>(hits.data());
      if (results != nullptr) {
        for (const Statistic statistic : kStatistics) {
          void *const place = results->data(statistic, first);
          if (place != nullptr) SetStatistic(of_rows, statistic, arguments_.top_k, place);
        }
      }
      inputs.RunAndCount(call, first, options_, pool_, totals.counts);
      for (int64_t i = 0; i < call.args.rows; ++i) {
        if (inputs.targets().Index(first * layout.inner + i) == options_.ignore_index) continue;
        const int64_t rank = of_rows.rank[i];
        totals.hits += of_rows.hits[i];
        totals.topk_hits += rank >= 0 && rank < arguments_.top_k;
        totals.entropy.Add(NumberAt(of_rows.entropy, inputs.arithmetic(), i));
        // A row of NaN has no rank, and so the rows have no mean of it.
        totals.rank.Add(rank >= 0 ? static_cast<double>(rank) : std::nan(""));
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
  const xent_cross_entropy_options &options_;
};

}  // namespace

int RunScore(const ScoreArguments &arguments) { return ScoreCommand(arguments).Run(); }

}  // namespace xent_cli
