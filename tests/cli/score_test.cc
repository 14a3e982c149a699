// `xent score`: totals and the numbers of each row, against the oracle of tests/reference/losses.h.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "numbers.h"
#include "program.h"
#include "reference/losses.h"

namespace xent_cli_test {
namespace {

namespace fs = std::filesystem;

constexpr size_t kRows = 40, kCols = 9;

class ScoreTest : public DirectoryTest {
 protected:
  void SetUp() override {
    DirectoryTest::SetUp();
    // Few values, so that rows have ties.
    for (double &number : numbers_) number = std::round(number / 4) * 4;
    for (size_t i = 0; i < kRows; ++i) class_.push_back(i % 11 == 3 ? -100 : static_cast<double>(i * 5 % 7));
    WriteInputs();
  }

  void WriteInputs() {
    logits_ = Write("logits.npy", NpyOf("<f8", {kRows, kCols}, numbers_));
    targets_ = Write("targets.npy", NpyOf("<i8", {kRows}, class_));
  }

  Result Score(const Words &options) { return Xent(Joined({"score", logits_, targets_, "--json"}, options)); }

  // `change` gives the oracle what `flags` give the program.
  void ExpectScore(
      const Words &flags, int64_t top_k = 0,
      const std::function<void(xent_cross_entropy_options &)> &change = [](xent_cross_entropy_options &) {}) {
    SCOPED_TRACE(::testing::PrintToString(flags));
    const std::string directory = Path("out");
    Words with_outputs = Joined(flags, {"--out", directory});
    if (top_k > 0) with_outputs = Joined(with_outputs, {"--top-k", std::to_string(top_k)});
    const Result result = Score(with_outputs);
    ExpectSuccess(result);
    reference::LossInputs inputs = LossInputsOf(kRows, kCols, numbers_);
    inputs.targets.assign(class_.begin(), class_.end());
    change(inputs.options);
    const reference::Losses want = reference::EvaluateLosses(inputs);
    std::vector<reference::Value> logprob, entropy, topk_logprobs;
    std::vector<long double> argmax, rank, topk_indices;
    const auto live = static_cast<long double>(want.live_rows);
    long double hits = 0, entropies = 0, ranks = 0, topk_hits = 0;
    for (int64_t i = 0; i < inputs.rows; ++i) {
      const reference::RowStatistics row = reference::StatisticsOf(inputs, want, i, top_k, {});
      logprob.push_back(row.logprob);
      entropy.push_back(row.entropy);
      argmax.push_back(row.argmax);
      rank.push_back(row.rank);
      topk_indices.insert(topk_indices.end(), row.topk_indices.begin(), row.topk_indices.end());
      topk_logprobs.insert(topk_logprobs.end(), row.topk_logprobs.begin(), row.topk_logprobs.end());
      if (inputs.IsIgnored(i)) continue;
      hits += row.hit;
      entropies += row.entropy.exact;
      ranks += row.rank;
      topk_hits += row.rank < top_k;
    }
    ASSERT_TRUE(0 < hits && hits < live && live < kRows) << "a weak test";
    ExpectClose(JsonNumber(result.out, "accuracy"), hits / live);
    ExpectClose(JsonNumber(result.out, "perplexity"), want.perplexity);
    ExpectClose(JsonNumber(result.out, "mean_entropy"), entropies / live);
    ExpectClose(JsonNumber(result.out, "mean_rank"), ranks / live);
    if (top_k > 0) {
      ExpectClose(JsonNumber(result.out, "topk_accuracy"), topk_hits / live);
    } else {
      EXPECT_EQ(JsonText(result.out, "topk_accuracy"), "null");
    }
    EXPECT_EQ(JsonNumber(result.out, "rows"), kRows);
    EXPECT_EQ(JsonNumber(result.out, "ignored"), static_cast<double>(kRows - live));
    ExpectClose(NumbersIn(directory + "/lse.npy", "<f8", "(40,)"), want.lse);
    ExpectClose(NumbersIn(directory + "/logprob.npy", "<f8", "(40,)"), logprob);
    ExpectClose(NumbersIn(directory + "/argmax.npy", "<i8", "(40,)"), argmax);
    ExpectClose(NumbersIn(directory + "/entropy.npy", "<f8", "(40,)"), entropy);
    ExpectClose(NumbersIn(directory + "/rank.npy", "<i8", "(40,)"), rank);
    EXPECT_EQ(fs::exists(directory + "/topk_indices.npy"), top_k > 0);
    EXPECT_EQ(fs::exists(directory + "/topk_logprobs.npy"), top_k > 0);
    if (top_k > 0) {
      const std::string shape = "(40, " + std::to_string(top_k) + ")";
      ExpectClose(NumbersIn(directory + "/topk_indices.npy", "<i8", shape), topk_indices);
      ExpectClose(NumbersIn(directory + "/topk_logprobs.npy", "<f8", shape), topk_logprobs);
    }
    fs::remove_all(directory);
  }

  std::vector<double> numbers_ = RandomNumbers(8, kRows *kCols), class_;
};

TEST_F(ScoreTest, EachOption) {
  ExpectScore({});
  ExpectScore({}, 1);
  ExpectScore({}, 3);
  ExpectScore({}, kCols);
  ExpectScore({"--logit-scale", "0.25"}, 2, [](auto &options) { options.logit_scale = 0.25; });
  ExpectScore({"--softcap", "5"}, 2, [](auto &options) { options.softcap = 5; });
  ExpectScore({"--valid-cols", "8"}, 2, [](auto &options) { options.valid_cols = 8; });
  for (double &target : class_) target = target == -100 ? 8 : target;
  WriteInputs();
  ExpectScore({"--ignore-index", "8"}, 2, [](auto &options) { options.ignore_index = 8; });
}

TEST_F(ScoreTest, Float32) {
  logits_ = Write("logits.npy", NpyOf("<V2", {kRows, kCols}, numbers_));
  const Result result = Score({"--out", Path("out"), "--top-k", "2"});
  ExpectSuccess(result);
  for (const char *name : {"lse", "logprob", "entropy"}) NumbersIn(Path("out/") + name + ".npy", "<f4", "(40,)");
  NumbersIn(Path("out/topk_logprobs.npy"), "<f4", "(40, 2)");
}

TEST_F(ScoreTest, PerplexityIsThatOfLoss) {
  const Result loss = Xent({"loss", logits_, targets_, "--json"});
  EXPECT_EQ(JsonText(Score({}).out, "perplexity"), JsonText(loss.out, "perplexity"));
}

// Where the mean is beyond what exp takes, but not by much.
TEST_F(ScoreTest, PerplexityBeyondEveryNumber) {
  logits_ = Write("logits.npy", NpyOf("<f8", {2, 2}, {0, 1400, 0, 1420}));
  targets_ = Write("targets.npy", NpyOf("<i8", {2}, {0, 1}));
  ExpectClose(std::log(JsonNumber(Score({}).out, "perplexity")), 700.0L);
  targets_ = Write("targets.npy", NpyOf("<i8", {2}, {0, 0}));
  EXPECT_EQ(JsonText(Score({}).out, "perplexity"), "\"inf\"");
}

TEST_F(ScoreTest, ClassAxis) {
  // The same rows, classes first.
  std::vector<double> transposed(kRows * kCols);
  for (size_t i = 0; i < kRows; ++i) {
    for (size_t c = 0; c < kCols; ++c) transposed[c * kRows + i] = numbers_[i * kCols + c];
  }
  const Result rows = Score({"--top-k", "2", "--out", Path("rows")});
  logits_ = Write("logits.npy", NpyOf("<f8", {kCols, kRows}, transposed));
  const Result columns = Score({"--top-k", "2", "--out", Path("columns"), "--class-axis", "0"});
  ExpectSuccess(columns);
  for (const char *key : {"accuracy", "perplexity", "mean_entropy", "mean_rank", "topk_accuracy"}) {
    ExpectClose(JsonNumber(columns.out, key), JsonNumber(rows.out, key));
  }
  EXPECT_EQ(ReadFile(Path("columns/topk_indices.npy")), ReadFile(Path("rows/topk_indices.npy")));
  EXPECT_EQ(ReadFile(Path("columns/rank.npy")), ReadFile(Path("rows/rank.npy")));
}

TEST_F(ScoreTest, RowsWithoutNumbers) {
  numbers_[0] = kNan;
  WriteInputs();
  const Result result = Score({"--top-k", "9", "--out", Path("out")});
  ExpectSuccess(result);
  for (const char *key : {"perplexity", "mean_entropy", "mean_rank"}) EXPECT_EQ(JsonText(result.out, key), "\"nan\"");
  // Among the nine best of nine are all targets but that of the row of NaN.
  ExpectClose(JsonNumber(result.out, "topk_accuracy"), 35.0L / 36);
  const std::vector<double> ranks = NumbersIn(Path("out/rank.npy"), "<i8", "(40,)");
  ASSERT_EQ(ranks.size(), kRows);
  EXPECT_EQ(ranks[0], -1);
  class_.assign(kRows, -100);
  WriteInputs();
  const Result none = Score({"--top-k", "2"});
  ExpectSuccess(none);
  for (const char *key : {"accuracy", "perplexity", "mean_entropy", "mean_rank", "topk_accuracy"}) {
    EXPECT_EQ(JsonText(none.out, key), "\"nan\"") << key;
  }
  logits_ = Write("logits.npy", NpyOf("<f8", {0, 3}, {}));
  targets_ = Write("targets.npy", NpyOf("<i8", {0}, {}));
  EXPECT_EQ(JsonText(Score({"--out", Path("out")}).out, "rows"), "0");
  EXPECT_EQ(NumbersIn(Path("out/lse.npy"), "<f8", "(0,)").size(), 0u);
}

TEST_F(ScoreTest, Text) {
  const Result result = Xent({"score", logits_, targets_, "--top-k", "2", "--threads", "3"});
  ExpectSuccess(result);
  for (const char *label : {"accuracy  ", "\nperplexity  ", "\nentropy  ", "\nrank  ", "\ntop-2  ", "\nrows  ",
                            "\nignored  ", "\ntarget  ", "\nthreads     3\n"}) {
    EXPECT_NE(result.out.find(label), std::string::npos) << label << " in " << result.out;
  }
}

TEST_F(ScoreTest, Directory) {
  fs::create_directory(Path("old"));
  Write("old/other", "kept");
  Write("old/lse.npy", "replaced");
  ASSERT_EQ(mkfifo(Path("old/rank.npy").c_str(), 0600), 0);
  const int reader = open(Path("old/rank.npy").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  ExpectSuccess(Score({"--out", Path("old")}));
  EXPECT_EQ(ReadFile(Path("old/other")), "kept");
  std::string streamed(4096, '\0');
  const ssize_t length = read(reader, streamed.data(), streamed.size());
  close(reader);
  ASSERT_GT(length, 0);
  streamed.resize(static_cast<size_t>(length));
  ExpectSuccess(Score({"--out", Path("new")}));
  EXPECT_TRUE(ReadFile(Path("old/lse.npy")) == ReadFile(Path("new/lse.npy")));
  EXPECT_TRUE(streamed == ReadFile(Path("new/rank.npy")));
  // What fails leaves none behind.
  class_[7] = kCols;
  WriteInputs();
  fs::remove_all(Path("new"));
  const std::string names = Names();
  ExpectFailure(Score({"--out", Path("new")}), 1, targets_ + ": the target of row 7 is 9, expected 0 to 8");
  EXPECT_EQ(Names(), names);
  ExpectFailure(Score({"--out", targets_}), 1, "cannot create " + targets_ + ": File exists");
  ExpectFailure(Score({"--out", Path("no/new")}), 1, "cannot create " + Path("no/new") + ": No such file");
  ExpectFailure(Score({"--out", ""}), 1, "cannot create : No such file");
  // An input that lies where a result belongs.
  fs::create_directory(Path("in"));
  fs::copy_file(logits_, Path("in/lse.npy"));
  logits_ = Path("in/lse.npy");
  ExpectFailure(Score({"--out", Path("in")}), 1, "--out " + Path("in/lse.npy") + " is the same file as the input");
}

TEST_F(ScoreTest, WrongUsage) {
  for (const Words &options :
       std::vector<Words>{{"--top-k", "0"}, {"--top-k", "65"}, {"--top-k", "two"}, {"--grad", "x"}}) {
    ExpectFailure(Score(options), 2, options[0]);
  }
  ExpectFailure(Xent({"score", logits_}), 2, "TARGETS.npy");
  ExpectFailure(Score({"--top-k", "10"}), 1, logits_ + ": --top-k is 10, expected at most 9");
  ExpectFailure(Score({"--top-k", "9", "--valid-cols", "8"}), 1, logits_ + ": --top-k is 9, expected at most 8");
  ExpectFailure(Score({"--valid-cols", "10"}), 1, logits_ + ": --valid-cols is 10, expected at most 9");
  targets_ = Write("targets.npy", NpyOf("<f8", {kRows, kCols}, numbers_));
  ExpectFailure(Score({}), 1, targets_ + ": the dtype is '<f8', expected targets of an integer dtype or '|b1'");
}

}  // namespace
}  // namespace xent_cli_test
