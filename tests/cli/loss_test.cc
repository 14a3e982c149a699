// `xent loss`: the numbers. The oracle is tests/reference/losses.h on the values as the file stores them, the bounds
// are those of include/xent/xent.h, counted as they are for the library itself.
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "numbers.h"
#include "program.h"
#include "reference/losses.h"
#include "testing/bounds.h"

namespace xent_cli_test {
namespace {

class LossTest : public DirectoryTest {
 protected:
  // One row of float32 with target 0.
  std::string JsonOfRow(const std::vector<float> &row, const Words &options = {}) {
    return JsonOf(Npy("<f4", {1, static_cast<int64_t>(row.size())}, Bytes(row)), Npy("<i4", {1}, Bytes<int32_t>({0})),
                  options);
  }

  std::string JsonOf(const std::string &logits, const std::string &targets, const Words &options = {}) {
    const Result result =
        Xent(Joined({"loss", Write("logits.npy", logits), Write("targets.npy", targets), "--json"}, options));
    ExpectSuccess(result);
    return result.out;
  }
};

TEST_F(LossTest, EveryDtype) {
  constexpr size_t kRows = 23, kCols = 300;
  for (const Dtype &dtype : kDtypes) {
    for (const bool wide_targets : {false, true}) {
      SCOPED_TRACE(std::string(dtype.descr) + (wide_targets ? ", int64" : ", int32") + ", seed 7");
      reference::LossInputs inputs = LossInputsOf(kRows, kCols, RandomNumbers(7, kRows * kCols));
      inputs.dtype = dtype.type;
      inputs.options.reduction.kind = XENT_REDUCTION_SUM;
      Random random(8);
      for (size_t i = 0; i < kRows; ++i) inputs.targets.push_back(static_cast<int64_t>(random.Next() % kCols));
      inputs.targets[5] = -100;
      const std::vector<int32_t> narrow(inputs.targets.begin(), inputs.targets.end());
      const Result result = Xent({"loss", Write("logits.npy", NpyOf(dtype.descr, {kRows, kCols}, inputs.logits)),
                                  Write("targets.npy", wide_targets ? Npy("<i8", {kRows}, Bytes(inputs.targets))
                                                                    : Npy("<i4", {kRows}, Bytes(narrow))),
                                  "--reduction", "sum", "--per-row", Path("losses.npy"), "--lse", Path("lse.npy"),
                                  "--grad", Path("grad.npy"), "--json"});
      ExpectSuccess(result);
      const std::string losses = DataIn(Path("losses.npy"), dtype.arithmetic, "(23,)");
      const std::string lse = DataIn(Path("lse.npy"), dtype.arithmetic, "(23,)");
      const std::string gradient = DataIn(Path("grad.npy"), dtype.descr, "(23, 300)");
      const xent_dtype arithmetic = reference::ArithmeticType(dtype.type);
      const auto number_bytes = static_cast<size_t>(reference::FormatOf(arithmetic).bytes);
      ASSERT_EQ(losses.size(), kRows * number_bytes);
      ASSERT_EQ(lse.size(), kRows * number_bytes);
      ASSERT_EQ(gradient.size(), kRows * kCols * static_cast<size_t>(reference::FormatOf(dtype.type).bytes));

      const reference::Losses want = reference::EvaluateLosses(inputs);
      double worst_loss = 0, worst_lse = 0, worst_gradient = 0;
      for (int64_t i = 0; i < inputs.rows; ++i) {
        const auto at = static_cast<size_t>(i);
        worst_loss = std::max(worst_loss, reference::ErrorInUlp(arithmetic, losses.data(), i, want.losses[at]));
        worst_lse = std::max(worst_lse, reference::ErrorInUlp(arithmetic, lse.data(), i, want.lse[at]));
        for (int64_t c = 0; c < inputs.cols; ++c) {
          worst_gradient =
              std::max(worst_gradient, reference::ErrorInUlp(dtype.type, gradient.data(), i * inputs.cols + c,
                                                             reference::GradientOf(inputs, want, i, c)));
        }
      }
      EXPECT_LE(worst_loss, xent::test::kLossUlp);
      EXPECT_LE(worst_lse, xent::test::kLseUlp);
      EXPECT_LE(worst_gradient, xent::test::kGradientUlp);
      // No loss is negative, so that the sum of their magnitudes is the loss.
      EXPECT_LE(ErrorInUlp(arithmetic, JsonNumber(result.out, "loss"), want.loss.exact), xent::test::kReducedLossUlp);
      EXPECT_EQ(JsonText(result.out, "rows"), "23");
      EXPECT_EQ(JsonText(result.out, "ignored"), "1");
    }
  }
}

TEST_F(LossTest, GoldenNumbers) {
  const std::vector<float> row = {2.0f, 1.2f, 0.3f, -0.8f, -2.0f};
  const auto loss = [&](const Words &options) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.5f", JsonNumber(JsonOfRow(row, options), "loss"));
    return std::string(text);
  };
  EXPECT_EQ(loss({}), "0.53716");  // 0.5372 in four places
  EXPECT_EQ(loss({"--label-smoothing", "0.1"}), "0.72316");
  EXPECT_EQ(loss({"--label-smoothing", "0.1", "--smoothing", "uniform"}), "0.72316");
  EXPECT_EQ(loss({"--label-smoothing", "0.1", "--smoothing", "exclusive"}), "0.76966");
}

// 5 equal logits: perplexity 5. Its exponent is log 5 with an error of less than 4 ULP of float32 (2^-22 each), so it
// is off by at most 5 * 4 * 2^-22.
TEST_F(LossTest, PerplexityOfEqualLogits) {
  EXPECT_NEAR(JsonNumber(JsonOfRow({3, 3, 3, 3, 3}), "perplexity"), 5, 5 * 4 * 0x1p-22);
}

TEST_F(LossTest, JsonGivesNumbersBackExactly) {
  Random random(3);
  for (int i = 0; i < 20; ++i) {
    std::vector<float> row(9);
    for (float &logit : row) logit = static_cast<float>(random.Uniform(-20, 20));
    const std::string json = JsonOfRow(row, {"--per-row", Path("losses.npy")});
    const std::vector<float> losses = Values<float>(SplitNpy(ReadFile(Path("losses.npy"))).data);
    ASSERT_EQ(losses.size(), 1u);
    // As a double, and read straight as a float.
    EXPECT_EQ(JsonNumber(json, "loss"), losses[0]) << json;
    EXPECT_EQ(std::strtof(JsonText(json, "loss").c_str(), nullptr), losses[0]) << json;

    std::vector<double> wide_row(row.begin(), row.end());
    for (double &logit : wide_row) logit += random.Uniform(0, 1e-9);
    const std::string wide_json = JsonOf(Npy("<f8", {1, 9}, Bytes(wide_row)), Npy("<i8", {1}, Bytes<int64_t>({0})),
                                         {"--per-row", Path("losses.npy")});
    EXPECT_EQ(JsonNumber(wide_json, "loss"), Values<double>(SplitNpy(ReadFile(Path("losses.npy"))).data)[0])
        << wide_json;
  }
}

TEST_F(LossTest, JsonHasEveryKey) {
  const std::string json = JsonOfRow({1, 2});
  for (const char *key : {"loss", "perplexity", "rows", "ignored", "target", "threads"}) {
    EXPECT_NE(JsonText(json, key), "") << key;
  }
}

TEST_F(LossTest, JsonNanAndInfinityAreStrings) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(JsonText(JsonOfRow({1, nan, 2}), "loss"), "\"nan\"");
  EXPECT_EQ(JsonText(JsonOfRow({1, nan, 2}), "perplexity"), "\"nan\"");
  EXPECT_EQ(JsonText(JsonOfRow({-inf, 1, 2}), "loss"), "\"inf\"");
  EXPECT_EQ(JsonText(JsonOfRow({-inf, 1, 2}), "perplexity"), "\"inf\"");
}

TEST_F(LossTest, TextForm) {
  WriteSmallInputs();
  const Result result = Xent({"loss", logits_, targets_, "--threads", "3"});
  ExpectSuccess(result);
  EXPECT_EQ(result.out.substr(0, 12), "loss        ");
  EXPECT_NE(result.out.find("\nrows        7\nignored     1\n"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("\nthreads     3\n"), std::string::npos) << result.out;
  const Result none = Xent({"loss", logits_, targets_, "--reduction", "none"});
  ExpectSuccess(none);
  EXPECT_EQ(none.out.find("loss"), std::string::npos) << none.out;
  EXPECT_EQ(none.out.substr(0, 12), "perplexity  ");
}

TEST_F(LossTest, Reductions) {
  WriteSmallInputs();
  const auto json = [&](const Words &options) {
    const Result result = Xent(Joined({"loss", logits_, targets_, "--json"}, options));
    ExpectSuccess(result);
    return result.out;
  };
  const double sum = JsonNumber(json({"--reduction", "sum"}), "loss");
  // Six live rows. Both numbers are rounded once more than the sum in double: half an ULP of float32 each.
  const double tolerance = std::ldexp(std::fabs(sum), -23);
  EXPECT_NEAR(JsonNumber(json({}), "loss"), sum / 6, tolerance);
  EXPECT_EQ(json({}), json({"--reduction", "mean"}));
  EXPECT_NEAR(JsonNumber(json({"--divisor", "2.5"}), "loss"), sum / 2.5, tolerance);
  EXPECT_EQ(JsonText(json({"--divisor", "2.5"}), "loss"), JsonText(json({"--divisor=2.5", "--reduction=sum"}), "loss"));
  EXPECT_EQ(JsonText(json({"--reduction", "none"}), "loss"), "null");
  EXPECT_EQ(JsonText(json({"--reduction", "none"}), "perplexity"), JsonText(json({}), "perplexity"));
}

TEST_F(LossTest, IgnoreIndexMayBeAnyInteger) {
  WriteSmallInputs();
  const std::string targets = Write("targets.npy", Npy("<i8", {7}, Bytes<int64_t>({0, 4, 4, 3, 2, 1, 0})));
  for (const auto &[index, ignored] :
       {std::pair("4", "2"), {"0", "2"}, {"-1", "0"}, {"3", "1"}, {"-9223372036854775808", "0"}}) {
    const Result result = Xent({"loss", logits_, targets, "--json", "--ignore-index", index});
    ExpectSuccess(result);
    EXPECT_EQ(JsonText(result.out, "ignored"), ignored) << index;
  }
}

TEST_F(LossTest, NoLiveRows) {
  WriteSmallInputs();
  const std::string targets = Npy("<i4", {7}, Bytes(std::vector<int32_t>(7, -100)));
  const std::string logits = ReadFile(logits_);
  EXPECT_EQ(JsonText(JsonOf(logits, targets), "loss"), "\"nan\"");
  EXPECT_EQ(JsonText(JsonOf(logits, targets), "ignored"), "7");
  EXPECT_EQ(JsonText(JsonOf(logits, targets, {"--empty-mean", "nan"}), "loss"), "\"nan\"");
  EXPECT_EQ(JsonText(JsonOf(logits, targets, {"--empty-mean", "zero"}), "loss"), "0");
  EXPECT_EQ(JsonText(JsonOf(logits, targets, {"--divisor", "3"}), "loss"), "0");
  EXPECT_EQ(JsonText(JsonOf(logits, targets), "perplexity"), "\"nan\"");
}

TEST_F(LossTest, NoRows) {
  const std::string logits = Npy("<f4", {0, 5}, ""), targets = Npy("<i8", {0}, "");
  const std::string json = JsonOf(logits, targets, {"--per-row", Path("losses.npy"), "--grad", Path("grad.npy")});
  EXPECT_EQ(JsonText(json, "loss"), "\"nan\"");
  EXPECT_EQ(JsonText(json, "rows"), "0");
  EXPECT_EQ(JsonText(JsonOf(logits, targets, {"--reduction", "sum"}), "loss"), "0");
  const ReadNpy losses = SplitNpy(ReadFile(Path("losses.npy"))), gradient = SplitNpy(ReadFile(Path("grad.npy")));
  EXPECT_EQ(losses.shape, "(0,)");
  EXPECT_EQ(losses.data, "");
  EXPECT_EQ(gradient.shape, "(0, 5)");
  EXPECT_EQ(gradient.data, "");
}

TEST_F(LossTest, ThreadsAreReportedAndChangeNothing) {
  constexpr int64_t kRows = 50, kCols = 5000;  // enough work for the library to split
  Random random(11);
  std::vector<float> logits(kRows * kCols);
  for (float &logit : logits) logit = static_cast<float>(random.Uniform(-8, 8));
  std::vector<int32_t> targets(kRows);
  for (int32_t &target : targets) target = static_cast<int32_t>(random.Next() % kCols);
  Write("logits.npy", Npy("<f4", {kRows, kCols}, Bytes(logits)));
  Write("targets.npy", Npy("<i4", {kRows}, Bytes(targets)));
  std::string first;
  for (const char *threads : {"1", "2", "3", "8"}) {
    const Result result = Xent({"loss", Path("logits.npy"), Path("targets.npy"), "--threads", threads, "--json",
                                "--per-row", Path("losses.npy"), "--lse", Path("lse.npy"), "--grad", Path("grad.npy")});
    ExpectSuccess(result);
    EXPECT_EQ(JsonText(result.out, "threads"), threads);
    const std::string all = JsonText(result.out, "loss") + JsonText(result.out, "perplexity") +
                            ReadFile(Path("losses.npy")) + ReadFile(Path("lse.npy")) + ReadFile(Path("grad.npy"));
    if (first.empty()) first = all;
    EXPECT_TRUE(all == first) << threads << " threads";
  }
}

TEST_F(LossTest, DefaultThreadsAreTheLibrarysDefault) {
  const RunOptions three = {{"OMP_NUM_THREADS=3"}, {}};
  WriteSmallInputs();
  const Result info = Xent({"info", "--json"}, three);
  for (const Words &options : {Words{}, {"--threads", "0"}}) {
    EXPECT_EQ(JsonText(Xent(Joined({"loss", logits_, targets_, "--json"}, options), three).out, "threads"),
              JsonText(info.out, "threads"));
  }
}

TEST_F(LossTest, TargetOutOfRange) {
  WriteSmallInputs();
  const std::string wide = Write("wide.npy", Npy("<i8", {7}, Bytes<int64_t>({0, 4, -100, 3, 5, 1, 9})));
  ExpectFailure(Xent({"loss", logits_, wide}), 1,
                wide + ": the target of row 4 is 5, expected 0 to 4 or the ignored -100");
  const std::string narrow = Write("narrow.npy", Npy("<i4", {7}, Bytes<int32_t>({0, -1, 0, 0, 0, 0, 0})));
  ExpectFailure(Xent({"loss", logits_, narrow, "--json"}), 1, "the target of row 1 is -1, ");
  ExpectFailure(Xent({"loss", logits_, targets_, "--ignore-index", "3"}), 1,
                "the target of row 2 is -100, expected 0 to 4 or the ignored 3");
}

TEST_F(LossTest, ExclusiveSmoothingNeedsTwoClasses) {
  Write("logits.npy", Npy("<f4", {1, 1}, Bytes<float>({1})));
  Write("targets.npy", Npy("<i4", {1}, Bytes<int32_t>({0})));
  const Words arguments = {
      "loss", Path("logits.npy"), Path("targets.npy"), "--smoothing", "exclusive", "--label-smoothing", "0.1"};
  const Result result = Xent(arguments);
  ExpectFailure(result, 1, "cols");
}

TEST_F(LossTest, MismatchedShapes) {
  WriteSmallInputs();
  const std::string targets = Write("six.npy", Npy("<i8", {6}, Bytes(std::vector<int64_t>(6))));
  ExpectFailure(Xent({"loss", logits_, targets}), 1, targets + ": the shape is (6,), expected (7,)");
}

TEST_F(LossTest, WrongUsage) {
  WriteSmallInputs();
  const std::vector<std::pair<Words, std::string>> cases = {
      {{"--reduction", "avg"}, "--reduction"},
      {{"--reduction"}, "--reduction"},
      {{"--reduction", "none", "--divisor", "2"}, "--divisor"},
      {{"--smoothing", "both"}, "--smoothing"},
      {{"--empty-mean", "one"}, "--empty-mean"},
      {{"--label-smoothing", "-0.1"}, "--label-smoothing"},
      {{"--label-smoothing", "1.0000001"}, "--label-smoothing"},
      {{"--label-smoothing", "nan"}, "--label-smoothing"},
      {{"--label-smoothing", "0.1x"}, "--label-smoothing"},
      {{"--label-smoothing", ""}, "--label-smoothing"},
      {{"--divisor", "0"}, "--divisor"},
      {{"--divisor", "-1"}, "--divisor"},
      {{"--divisor", "nan"}, "--divisor"},
      {{"--divisor", "inf"}, "--divisor"},
      {{"--divisor", "1e999"}, "--divisor"},
      {{"--ignore-index", "1.5"}, "--ignore-index"},
      {{"--ignore-index", "9223372036854775808"}, "--ignore-index"},
      {{"--ignore-index", "0x10"}, "--ignore-index"},
      {{"--threads", "-1"}, "--threads"},
      {{"--threads", "1025"}, "--threads"},
      {{"--threads", "two"}, "--threads"},
      {{"--threads", "99999999999"}, "--threads"},
      {{"--threads", "1", "--threads", "2"}, "--threads"},
      {{"--grad"}, "--grad"},
      {{"--gradient", "x.npy"}, "--gradient"},
      {{"third.npy"}, "third.npy"},
      {{"a line\nfeed"}, "a line\\x0afeed"},
  };
  for (const auto &[options, part] : cases) {
    SCOPED_TRACE(::testing::PrintToString(options));
    ExpectFailure(Xent(Joined({"loss", logits_, targets_, "--per-row", Path("losses.npy")}, options)), 2, part);
    EXPECT_EQ(Names(), "logits.npy targets.npy");
  }
  ExpectFailure(Xent({"loss", logits_}), 2, "TARGETS.npy");
  ExpectFailure(Xent({"loss"}), 2, "LOGITS.npy");
}

TEST_F(LossTest, BordersOfOptions) {
  for (const Words &options : std::vector<Words>{
           {"--label-smoothing", "0"}, {"--label-smoothing", "1"}, {"--divisor", "1e-300"}, {"--threads", "64"}}) {
    JsonOfRow({1, 2}, options);
  }
}

// Words that are commands, or look like options, are file names where a file name belongs.
TEST_F(LossTest, AwkwardFileNames) {
  WriteSmallInputs();
  const auto in_directory = [&](const Words &arguments) {
    return Xent(arguments, {{}, [&] {
                              if (chdir(directory_.c_str()) != 0) _exit(125);
                            }});
  };
  for (const char *name : {"check", "info", "-x.npy", "a b'\"[1,2]{}", "[a,b]", "caf\xc3\xa9.npy"}) {
    SCOPED_TRACE(name);
    Write(name, ReadFile(logits_));
    ExpectSuccess(in_directory({"loss", "--per-row=out", "--", name, "targets.npy"}));
    ExpectFailure(in_directory({"loss", "--", name, "no.npy"}), 1, "no.npy");
  }
}

}  // namespace
}  // namespace xent_cli_test
