// --manifest: the totals of many files are those of one matrix of all their rows.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "numbers.h"
#include "program.h"

namespace xent_cli_test {
namespace {

namespace fs = std::filesystem;

constexpr size_t kRows = 60, kCols = 7;
const std::vector<size_t> kCuts = {0, 1, 1, 20, 59, 60};  // a file of one row, one of none

class ManifestTest : public DirectoryTest {
 protected:
  void SetUp() override {
    DirectoryTest::SetUp();
    for (double &number : first_) number += 0.1;  // no multiple of anything
    for (size_t i = 0; i < kRows; ++i) classes_.push_back(i % 9 == 4 ? -100 : static_cast<double>(i * 3 % kCols));
    for (double &number : second_) number = std::fabs(number) / 8;
  }

  // The first `count` rows of a matrix from row `begin` on.
  static std::vector<double> Rows(const std::vector<double> &numbers, size_t cols, size_t begin, size_t end) {
    return {numbers.begin() + static_cast<ptrdiff_t>(begin * cols),
            numbers.begin() + static_cast<ptrdiff_t>(end * cols)};
  }

  std::string FirstNpy(const std::string &descr, size_t begin, size_t end) const {
    return NpyOf(descr, {static_cast<int64_t>(end - begin), kCols}, Rows(first_, kCols, begin, end));
  }
  std::string SecondNpy(const std::string &descr, size_t begin, size_t end) const {
    const auto rows = static_cast<int64_t>(end - begin);
    return descr == "<i8" ? NpyOf(descr, {rows}, Rows(classes_, 1, begin, end))
                          : NpyOf(descr, {rows, kCols}, Rows(second_, kCols, begin, end));
  }

  // One pair of files, and a manifest of several with the same rows, in a directory of their own.
  void WriteCorpus(const std::string &first_descr, const std::string &second_descr) {
    fs::create_directories(Path("data/sub"));
    logits_ = Write("logits.npy", FirstNpy(first_descr, 0, kRows));
    targets_ = Write("targets.npy", SecondNpy(second_descr, 0, kRows));
    std::string lines = "# a comment\n\n";
    for (size_t i = 0; i + 1 < kCuts.size(); ++i) {
      const std::string name = std::to_string(i);
      Write("data/a" + name, FirstNpy(first_descr, kCuts[i], kCuts[i + 1]));
      Write("data/sub/b" + name, SecondNpy(second_descr, kCuts[i], kCuts[i + 1]));
      lines += (i == 2 ? Path("data/a2") : "a" + name) + "\tsub/b" + name + (i == 1 ? "\r\n" : i == 4 ? "" : "\n");
    }
    manifest_ = Write("data/list.tsv", lines);
  }

  Result Run(const std::string &command, const Words &options, const RunOptions &run = {}) {
    return Xent(Joined({command, "--json"}, options), run);
  }

  // Expects the same numbers, within 4 ULP of the loss's type. Perplexity is a double from a sum of at most 60 nll in
  // plain double. Each partial sum is off by 2^-53 of itself, together 30 * 2^-53 of the sum, and exp multiplies that
  // by the mean, which is below 8: at most 256 ULP.
  void ExpectAsOneMatrix(const std::string &command, const Words &flags, const std::vector<std::string> &keys,
                         bool wide) {
    SCOPED_TRACE(command + ::testing::PrintToString(flags));
    const Result expected = Run(command, Joined(flags, {logits_, targets_}));
    const Result got = Run(command, Joined(flags, {"--manifest", manifest_}));
    ExpectSuccess(expected);
    ExpectSuccess(got);
    EXPECT_EQ(JsonText(got.out, "files"), "5");
    EXPECT_EQ(JsonText(got.out, "failed"), "0");
    EXPECT_EQ(JsonText(expected.out, "files"), "");
    for (const std::string &key : {std::string("rows"), std::string("ignored"), std::string("target")}) {
      EXPECT_EQ(JsonText(got.out, key), JsonText(expected.out, key));
    }
    for (const std::string &key : keys) {
      SCOPED_TRACE(key);
      const std::string text = JsonText(expected.out, key);
      if (text == "null" || text[0] == '"') {
        EXPECT_EQ(JsonText(got.out, key), text);
      } else {
        const xent_dtype type = wide ? XENT_F64 : XENT_F32;
        EXPECT_LE(ErrorInUlp(type, JsonNumber(got.out, key), JsonNumber(expected.out, key)),
                  wide && key == "perplexity" ? 256 : 4)
            << got.out << expected.out;
      }
    }
  }

  std::vector<double> first_ = RandomNumbers(13, kRows *kCols), second_ = RandomNumbers(14, kRows *kCols);
  std::vector<double> classes_;
  std::string manifest_;
};

TEST_F(ManifestTest, Loss) {
  for (const char *descr : {"<f4", "<f8"}) {
    const bool wide = descr[2] == '8';
    WriteCorpus(descr, "<i8");
    const std::string weights = Write("weights.npy", NpyOf("<f8", {kCols}, {1, 2, 0.5, 0, 3.1, 1, 0.7}));
    const std::vector<std::string> keys = {"loss", "perplexity"};
    ExpectAsOneMatrix("loss", {}, keys, wide);
    for (const Words &flags :
         std::vector<Words>{{"--reduction", "sum"},
                            {"--reduction", "none"},
                            {"--divisor", "3.7"},
                            {"--class-weights", weights},
                            {"--class-weights", weights, "--reduction", "sum", "--label-smoothing", "0.1"},
                            {"--class-axis=-1", "--logit-scale", "0.5", "--softcap", "3", "--z-loss", "0.01"}}) {
      ExpectAsOneMatrix("loss", flags, keys, wide);
    }
    WriteCorpus(descr, "<f4");  // probabilities
    ExpectAsOneMatrix("loss", {}, keys, wide);
    ExpectAsOneMatrix("loss", {"--class-weights", weights, "--label-smoothing", "0.1"}, keys, wide);
  }
}

TEST_F(ManifestTest, LossOfNoLiveRows) {
  classes_.assign(kRows, -100);
  WriteCorpus("<f4", "<i8");
  for (const Words &flags :
       std::vector<Words>{{}, {"--empty-mean", "zero"}, {"--divisor", "2"}, {"--reduction", "sum"}}) {
    ExpectAsOneMatrix("loss", flags, {"loss", "perplexity"}, false);
  }
}

TEST_F(ManifestTest, LossThatIsNoNumber) {
  first_[kCols * 30] = kInf;
  WriteCorpus("<f4", "<i8");
  ExpectAsOneMatrix("loss", {}, {"loss", "perplexity"}, false);
  ExpectAsOneMatrix("score", {}, {"accuracy", "perplexity", "mean_entropy", "mean_rank"}, false);
  first_[kCols * 30] = -kInf;  // the logit of the target
  WriteCorpus("<f4", "<i8");
  classes_[30] = 0;
  WriteCorpus("<f4", "<i8");
  ExpectAsOneMatrix("loss", {}, {"loss", "perplexity"}, false);
  EXPECT_EQ(JsonText(Run("loss", {"--manifest", manifest_}).out, "loss"), "\"inf\"");
}

TEST_F(ManifestTest, Score) {
  for (const char *descr : {"<f4", "<f8"}) {
    WriteCorpus(descr, "<i8");
    const std::vector<std::string> keys = {"accuracy", "perplexity", "mean_entropy", "mean_rank", "topk_accuracy"};
    ExpectAsOneMatrix("score", {}, keys, descr[2] == '8');
    ExpectAsOneMatrix("score", {"--top-k", "2", "--logit-scale", "0.5"}, keys, descr[2] == '8');
  }
}

TEST_F(ManifestTest, Divergence) {
  for (const char *descr : {"<f4", "<f8"}) {
    WriteCorpus(descr, descr);
    ExpectAsOneMatrix("divergence", {}, {"loss"}, descr[2] == '8');
    ExpectAsOneMatrix("divergence", {"--kind", "js", "--beta", "0.25", "--temperature", "2", "--reduction", "sum"},
                      {"loss"}, descr[2] == '8');
    ExpectAsOneMatrix("divergence", {"--divisor", "7"}, {"loss"}, descr[2] == '8');
  }
}

TEST_F(ManifestTest, Bce) {
  for (const char *descr : {"<f4", "<f8"}) {
    WriteCorpus(descr, descr);
    const std::string weights = Write("weights.npy", NpyOf("<f8", {kCols}, {1, 2, 0.5, 0, 3.1, 1, 0.7}));
    ExpectAsOneMatrix("bce", {}, {"loss", "elements"}, descr[2] == '8');
    ExpectAsOneMatrix("bce", {"--pos-weight", weights, "--class-weights", weights, "--reduction", "sum"}, {"loss"},
                      descr[2] == '8');
    ExpectAsOneMatrix("bce", {"--focal-gamma", "2", "--focal-alpha", "0.25"}, {"loss"}, descr[2] == '8');
  }
}

// Sums that a float32, or a plain double, would lose.
TEST_F(ManifestTest, SumsAreCompensated) {
  std::string lines;
  const auto add = [&](const std::string &name, double loss, double rows) {
    std::vector<double> logits;
    for (double i = 0; i < rows; ++i) logits.insert(logits.end(), {0, loss});
    Write(name, NpyOf("<f8", {static_cast<int64_t>(rows), 2}, logits));
    Write(name + ".t", NpyOf("<i8", {static_cast<int64_t>(rows)}, std::vector<double>(static_cast<size_t>(rows))));
    lines += name + "\t" + name + ".t\n";
  };
  add("huge", 0x1p60, 1);
  add("small", 50, 1000);  // each lost in a double beside 2^60, whose spacing is 256
  const Result result = Run("loss", {"--manifest", Write("list.tsv", lines), "--reduction", "sum"});
  ExpectSuccess(result);
  EXPECT_EQ(JsonNumber(result.out, "loss"), 0x1p60 + 50 * 1000);
}

TEST_F(ManifestTest, Dtypes) {
  WriteCorpus("<f8", "<i8");
  const double wide = JsonNumber(Run("loss", {"--manifest", manifest_}).out, "loss");
  // One file of float32 among them: still a float64.
  Write("data/a3", FirstNpy("<f4", kCuts[3], kCuts[4]));
  const Result mixed = Run("loss", {"--manifest", manifest_});
  ExpectSuccess(mixed);
  EXPECT_NEAR(JsonNumber(mixed.out, "loss"), wide, 1e-6 * wide);
  EXPECT_NE(JsonNumber(mixed.out, "loss"), static_cast<float>(JsonNumber(mixed.out, "loss")));
  WriteCorpus("<f4", "<i8");
  const double narrow = JsonNumber(Run("loss", {"--manifest", manifest_}).out, "loss");
  EXPECT_EQ(narrow, static_cast<float>(narrow));
}

TEST_F(ManifestTest, BadFileEndsIt) {
  WriteCorpus("<f4", "<i8");
  fs::remove(Path("data/a1"));
  ExpectFailure(Run("loss", {"--manifest", manifest_}), 1,
                manifest_ + ":4: cannot read " + Path("data/a1") + ": No such file or directory");
  WriteCorpus("<f4", "<i8");
  Write("data/sub/b3", NpyOf("<i8", {39}, std::vector<double>(39, kCols)));
  ExpectFailure(Run("loss", {"--manifest", manifest_}), 1,
                manifest_ + ":6: " + Path("data/sub/b3") + ": the target of row 0 is 7, expected 0 to 6");
  ExpectFailure(Run("score", {"--manifest", manifest_}), 1, manifest_ + ":6: ");
}

TEST_F(ManifestTest, KeepGoing) {
  WriteCorpus("<f4", "<i8");
  // What is left: files 0, 3 and 4 but for one that goes wrong in its last row.
  Write("data/a1", "no array");
  std::vector<double> targets = Rows(classes_, 1, kCuts[2], kCuts[3]);
  targets.back() = kCols;
  Write("data/sub/b2", NpyOf("<i8", {19}, targets));
  std::vector<double> logits = Rows(first_, kCols, 0, 1), rest = Rows(first_, kCols, 20, kRows);
  logits.insert(logits.end(), rest.begin(), rest.end());
  targets = Rows(classes_, 1, 0, 1);
  rest = Rows(classes_, 1, 20, kRows);
  targets.insert(targets.end(), rest.begin(), rest.end());
  Write("logits.npy", NpyOf("<f4", {41, kCols}, logits));
  Write("targets.npy", NpyOf("<i8", {41}, targets));
  for (const auto &[command, key] : {std::pair("loss", "loss"), {"score", "accuracy"}}) {
    const Result expected = Run(command, {logits_, targets_});
    const Result result = Run(command, {"--manifest", manifest_, "--keep-going"});
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_EQ(result.err, "xent: " + manifest_ + ":4: " + Path("data/a1") + ": not a .npy file\nxent: " + manifest_ +
                              ":5: " + Path("data/sub/b2") +
                              ": the target of row 18 is 7, expected 0 to 6 or the ignored -100\n");
    EXPECT_EQ(JsonText(result.out, "files"), "3");
    EXPECT_EQ(JsonText(result.out, "failed"), "2");
    EXPECT_EQ(JsonText(result.out, "rows"), "41");
    EXPECT_LE(ErrorInUlp(XENT_F32, JsonNumber(result.out, key), JsonNumber(expected.out, key)), 4);
  }
  // Nothing is left, or nothing is wrong.
  const std::string bad = Write("bad.tsv", "none\tnone\n");
  const Result none = Run("loss", {"--manifest", bad, "--keep-going"});
  EXPECT_EQ(none.exit_code, 1);
  EXPECT_EQ(JsonText(none.out, "files") + JsonText(none.out, "failed") + JsonText(none.out, "rows"), "010");
  EXPECT_EQ(JsonText(none.out, "loss"), "\"nan\"");
  WriteCorpus("<f4", "<i8");
  ExpectSuccess(Run("loss", {"--manifest", manifest_, "--keep-going"}));
}

TEST_F(ManifestTest, FilesThatDoNotAgree) {
  WriteCorpus("<f8", "<f8");
  Write("data/a2", NpyOf("<f8", {2, 3}, {1, 2, 3, 4, 5, 6}));
  Write("data/sub/b2", NpyOf("<f8", {2, 3}, {1, 0, 0, 0, 1, 0}));
  const std::string part =
      manifest_ + ":5: " + Path("data/a2") + ": the number of columns is 3, expected 7, that of " + Path("data/a0");
  for (const char *command : {"loss", "divergence", "bce"})
    ExpectFailure(Run(command, {"--manifest", manifest_}), 1, part);
  Write("data/sub/b2", NpyOf("<i8", {2}, {0, 1}));
  WriteCorpus("<f8", "<i8");
  Write("data/a2", NpyOf("<f8", {2, 3}, {1, 2, 3, 4, 5, 6}));
  Write("data/sub/b2", NpyOf("<i8", {2}, {0, 1}));
  ExpectFailure(Run("score", {"--manifest", manifest_}), 1, part);
  // A bad file is no model for the others.
  const std::string list = Write("data/other.tsv", "a2\tnone\na0\tsub/b0\n");
  const Result result = Run("loss", {"--manifest", list, "--keep-going"});
  EXPECT_EQ(JsonText(result.out, "files"), "1") << result.err;
  // Classes in one file, probabilities in the next.
  WriteCorpus("<f8", "<i8");
  Write("data/sub/b3", SecondNpy("<f8", kCuts[3], kCuts[4]));
  ExpectFailure(Run("loss", {"--manifest", manifest_}), 1,
                Path("data/sub/b3") + ": targets of '<f8' cannot be one corpus with those of " + Path("data/sub/b2"));
}

TEST_F(ManifestTest, BadLines) {
  WriteCorpus("<f4", "<i8");
  for (const char *line : {"a0", "a0\t", "\tsub/b0", "a0\tsub/b0\t", "a0\t\tsub/b0", "a0 sub/b0"}) {
    SCOPED_TRACE(line);
    ExpectFailure(Run("loss", {"--manifest", Write("data/list.tsv", std::string("a0\tsub/b0\n") + line + "\n")}), 1,
                  manifest_ + ":2: expected two paths with one TAB between them");
  }
  ExpectFailure(Run("loss", {"--manifest", Write("data/list.tsv", std::string("a0\tsub/b\0\n", 10))}), 1, "NUL");
  ExpectFailure(Run("loss", {"--manifest", Write("data/list.tsv", "# nothing\n\n \n")}), 1,
                manifest_ + ": names no file");
  ExpectFailure(Run("loss", {"--manifest", Path("none.tsv")}), 1, "cannot read " + Path("none.tsv") + ": No such file");
  ExpectFailure(Run("loss", {"--manifest", directory_}), 1, "cannot read " + directory_ + ": Is a directory");
  ExpectFailure(Run("check", {"--manifest", Write("data/list.tsv", "a0\tsub/b0\n")}), 1, "expected one path");
}

TEST_F(ManifestTest, Check) {
  const std::string logits = NpyOf("<f4", {1, 2}, {1, 2}), probabilities = NpyOf("<f4", {2, 2}, {0.25, 0.75, 1, 0});
  Write("l", logits);
  Write("p", probabilities);
  Write("log", NpyOf("<f8", {1, 2}, {std::log(0.25), std::log(0.75)}));
  const Result mixed = Run("check", {"--manifest", Write("list", "l\np\n#p\nlog\nl\n")});
  EXPECT_EQ(mixed.exit_code, 3);
  EXPECT_EQ(mixed.err, "");
  EXPECT_EQ(JsonText(mixed.out, "logits"), "2");
  EXPECT_EQ(JsonText(mixed.out, "probabilities"), "1");
  EXPECT_EQ(JsonText(mixed.out, "log_probabilities"), "1");
  EXPECT_EQ(JsonText(mixed.out, "rows"), "5");
  EXPECT_EQ(JsonText(mixed.out, "files"), "4");
  ExpectSuccess(Run("check", {"--manifest", Write("list", "l\nlog\n")}));
  ExpectFailure(Run("check", {"--manifest", Write("list", "p\nnone\n")}), 1,
                Path("list") + ":2: cannot read " + Path("none"));
  const Result kept = Run("check", {"--manifest", Path("list"), "--keep-going"});
  EXPECT_EQ(kept.exit_code, 1);
  EXPECT_EQ(JsonText(kept.out, "probabilities"), "1");
  EXPECT_EQ(JsonText(kept.out, "failed"), "1");
}

// As some editors begin their files.
TEST_F(ManifestTest, ByteOrderMark) {
  WriteCorpus("<f4", "<i8");
  const Result plain = Run("loss", {"--manifest", manifest_});
  ExpectSuccess(plain);
  const std::string text = ReadFile(manifest_);
  for (const std::string &rest : {text, "a0\tsub/b0\r\n" + text.substr(text.find("a1"))}) {
    WriteFile(manifest_, "\xef\xbb\xbf" + rest);
    EXPECT_EQ(Run("loss", {"--manifest", manifest_}).out, plain.out);
  }
}

TEST_F(ManifestTest, FromAPipe) {
  WriteCorpus("<f4", "<i8");
  const std::string text = ReadFile(manifest_);
  const auto in_child = [&] {
    int ends[2];
    if (pipe(ends) != 0 || write(ends[1], text.data(), text.size()) < 0 || chdir(Path("data").c_str()) != 0) _exit(125);
    dup2(ends[0], STDIN_FILENO);
    close(ends[0]);
    close(ends[1]);
  };
  // Relative to the manifest is relative to /dev there.
  const Result result = Run("loss", {"--manifest", "/dev/stdin", "--keep-going"}, {{}, in_child});
  EXPECT_EQ(JsonText(result.out, "failed"), "5") << result.err;
  EXPECT_NE(result.err.find("/dev/stdin:3: cannot read /dev/a0"), std::string::npos) << result.err;
}

TEST_F(ManifestTest, InTheCurrentDirectory) {
  WriteCorpus("<f4", "<i8");
  const Result result = Run("loss", {"--manifest", "list.tsv"}, {{}, [&] {
                                                                   if (chdir(Path("data").c_str()) != 0) _exit(125);
                                                                 }});
  ExpectSuccess(result);
}

TEST_F(ManifestTest, Text) {
  WriteCorpus("<f4", "<i8");
  const Result result = Xent({"loss", "--manifest", manifest_, "--threads", "2"});
  ExpectSuccess(result);
  EXPECT_NE(result.out.find("\nrows        60\nignored     7\nfiles       5\nfailed      0\ntarget "),
            std::string::npos)
      << result.out;
}

TEST_F(ManifestTest, WrongUsage) {
  WriteCorpus("<f4", "<i8");
  const std::string names = Names();
  const std::vector<std::pair<std::string, Words>> refused = {
      {"loss", {"--per-row", "--lse", "--grad", "--row-weights"}},
      {"score", {"--out"}},
      {"divergence", {"--per-row", "--grad", "--row-weights"}},
      {"bce", {"--per-element", "--grad", "--row-weights", "--element-weights"}}};
  for (const auto &[command, options] : refused) {
    for (const std::string &option : options) {
      ExpectFailure(Run(command, {"--manifest", manifest_, option, Path("out")}), 2,
                    option + ": not together with --manifest");
    }
    ExpectFailure(Run(command, {"--manifest", manifest_, logits_}), 2, "--manifest: not together with ");
    ExpectFailure(Run(command, {"--manifest", manifest_, logits_, targets_}), 2, "--manifest: not together with ");
    ExpectFailure(Run(command, {"--manifest"}), 2, "--manifest");
    ExpectFailure(Run(command, {logits_, targets_, "--keep-going"}), 2, "--keep-going: only with --manifest");
    EXPECT_EQ(Names(), names);
  }
  ExpectFailure(Run("check", {"--manifest", manifest_, logits_}), 2, "--manifest: not together with LOGITS.npy");
}

// Files that are worked on in several batches of 8 MB of results, each where it belongs.
TEST_F(ManifestTest, LongerThanABatch) {
  constexpr int64_t kManyRows = 2'500'000;
  Random random(17);
  std::vector<float> logits(2 * kManyRows), probabilities(2 * kManyRows);
  std::vector<int32_t> targets(kManyRows);
  // The numbers grow along the file, so that no row can stand for another.
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(random.Uniform(0, 1) * (1 + 4e-6 * static_cast<double>(i)));
    probabilities[i] = static_cast<float>(random.Uniform(0, 1));
  }
  for (size_t i = 0; i < targets.size(); ++i) targets[i] = i % 5 == 0 ? -100 : static_cast<int32_t>(random.Next() % 2);
  logits_ = Write("logits.npy", Npy("<f4", {kManyRows, 2}, Bytes(logits)));
  targets_ = Write("targets.npy", Npy("<i4", {kManyRows}, Bytes(targets)));
  manifest_ = Write("list", "logits.npy\ttargets.npy\n");
  const std::string weights = Write("weights.npy", NpyOf("<f4", {2}, {1, 3}));
  const auto expect = [&](const std::string &command, const Words &flags, const std::string &key) {
    const double want = JsonNumber(Run(command, Joined(flags, {logits_, targets_})).out, key);
    const double got = JsonNumber(Run(command, Joined(flags, {"--manifest", manifest_})).out, key);
    EXPECT_LE(ErrorInUlp(XENT_F32, got, want), 4) << command << " " << got << " " << want;
  };
  expect("loss", {"--class-weights", weights}, "loss");
  expect("loss", {}, "perplexity");
  // The loss's own numbers of each row say the same as the statistics.
  const double perplexity = JsonNumber(Run("loss", {logits_, targets_}).out, "perplexity");
  const Result score = Run("score", {logits_, targets_, "--out", Path("out")});
  ExpectSuccess(score);
  EXPECT_NEAR(JsonNumber(score.out, "perplexity"), perplexity, 1e-12 * perplexity);
  ExpectSuccess(Run("loss", {logits_, targets_, "--per-row", Path("losses.npy")}));
  const std::vector<double> losses = NumbersIn(Path("losses.npy"), "<f4", "(2500000,)");
  const std::vector<double> logprobs = NumbersIn(Path("out/logprob.npy"), "<f4", "(2500000,)");
  const std::vector<double> ranks = NumbersIn(Path("out/rank.npy"), "<i8", "(2500000,)");
  ASSERT_EQ(losses.size(), logprobs.size());
  ASSERT_EQ(losses.size(), ranks.size());
  double worst = 0, hits = 0;
  for (size_t i = 0; i < losses.size(); ++i) {
    worst = std::max(worst, std::fabs(losses[i] + logprobs[i]) / (losses[i] + 1e-30));
    hits += ranks[i] == 0;
  }
  EXPECT_LE(worst, 8 * 0x1p-23);
  EXPECT_NEAR(JsonNumber(score.out, "accuracy"), hits / 2'000'000, 1e-12);

  targets[2'300'001] = 2;
  Write("targets.npy", Npy("<i4", {kManyRows}, Bytes(targets)));
  for (const char *command : {"loss", "score"}) {
    ExpectFailure(Run(command, {"--manifest", manifest_}), 1, "the target of row 2300001 is 2, expected 0 to 1");
  }
  targets_ = Write("targets.npy", Npy("<f4", {kManyRows, 2}, Bytes(probabilities)));
  expect("loss", {"--class-weights", weights}, "loss");
  expect("bce", {"--pos-weight", weights}, "loss");
  expect("divergence", {"--reduction", "sum"}, "loss");
  fs::rename(targets_, Path("swap"));
  fs::rename(logits_, targets_);
  fs::rename(Path("swap"), logits_);
  expect("bce", {"--from", "probabilities"}, "loss");
  probabilities[4'600'003] = 1.5f;
  Write("logits.npy", Npy("<f4", {kManyRows, 2}, Bytes(probabilities)));
  ExpectFailure(Run("bce", {"--manifest", manifest_, "--from", "probabilities"}), 1,
                "the probability of row 2300001, column 1 is 1.5, expected 0 to 1");
}

// 32 MB of logits and 16 MB of targets a file, under a limit of 28 MB for what is not a file's, of which stacks are
// half.
TEST_F(ManifestTest, MemoryIsBounded) {
  if (kAddressSanitizer) GTEST_SKIP() << "the sanitizer's own memory is beyond the limit";
  constexpr int64_t kManyRows = 4'000'000;
  WriteZeros(kManyRows, 2);
  const std::string list = Write("list", "logits.npy\ttargets.npy\n");
  const RunOptions limited = {{}, [] {
                                const rlimit stack = {8 << 20, 8 << 20};
                                const rlimit data = {28 << 20, 28 << 20};
                                if (setrlimit(RLIMIT_STACK, &stack) != 0 || setrlimit(RLIMIT_DATA, &data) != 0)
                                  _exit(125);
                              }};
  for (const auto &[command, key] : {std::pair("loss", "loss"), {"score", "mean_entropy"}}) {
    const Result result = Run(command, {"--manifest", list, "--threads", "2"}, limited);
    ExpectSuccess(result);
    EXPECT_EQ(JsonNumber(result.out, "rows"), kManyRows);
    EXPECT_NEAR(JsonNumber(result.out, key), 0.69314718055994529, 4 * 0x1p-24) << result.out;
  }
}

}  // namespace
}  // namespace xent_cli_test
