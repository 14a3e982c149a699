// `xent loss`: weights, what is done to the logits, probability targets, and arrays of other shapes than [N, V].
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "numbers.h"
#include "program.h"
#include "reference/losses.h"

namespace xent_cli_test {
namespace {

constexpr size_t kRows = 7, kCols = 5;
const std::vector<double> kTargets = {0, 3, -100, 2, 1, 1, 3};  // below the four valid columns of one of the tests
const std::vector<double> kClassWeights = {0.5, 2, 0, 1.25, 3};
const std::vector<double> kRowWeights = {1, 0.25, 7, 0, 2, -0.5, 1.5};

// Returns the gradient of every element, row by row.
std::vector<reference::Value> GradientOf(const reference::LossInputs &inputs, const reference::Losses &losses) {
  std::vector<reference::Value> gradient;
  for (int64_t i = 0; i < inputs.rows; ++i) {
    for (int64_t c = 0; c < inputs.cols; ++c) gradient.push_back(reference::GradientOf(inputs, losses, i, c));
  }
  return gradient;
}

class LossOptionsTest : public DirectoryTest {
 protected:
  void SetUp() override {
    DirectoryTest::SetUp();
    logits_ = Write("logits.npy", NpyOf("<f8", {kRows, kCols}, numbers_));
    targets_ = Write("targets.npy", NpyOf("<i8", {kRows}, kTargets));
    class_weights_ = Write("class.npy", NpyOf("<f8", {kCols}, kClassWeights));
    row_weights_ = Write("row.npy", NpyOf("<f8", {kRows}, kRowWeights));
  }

  Result Loss(const Words &options) { return Xent(Joined({"loss", logits_, targets_, "--json"}, options)); }

  // Expects the oracle's numbers everywhere: index targets, sum and mean, with and without a gradient in place.
  // `change` gives the oracle what `flags` give the program.
  void ExpectLoss(const Words &flags, const std::function<void(reference::LossInputs &)> &change) {
    SCOPED_TRACE(::testing::PrintToString(flags));
    reference::LossInputs inputs = LossInputsOf(kRows, kCols, numbers_);
    inputs.targets.assign(kTargets.begin(), kTargets.end());
    change(inputs);
    const Words outputs = {"--per-row", Path("losses.npy"), "--lse", Path("lse.npy"), "--grad", Path("grad.npy")};
    for (const auto &[word, reduction] : {std::pair("sum", XENT_REDUCTION_SUM), {"mean", XENT_REDUCTION_MEAN}}) {
      SCOPED_TRACE(word);
      inputs.options.reduction.kind = reduction;
      const reference::Losses want = reference::EvaluateLosses(inputs);
      const Result result = Loss(Joined(Joined(flags, outputs), {"--reduction", word}));
      ExpectSuccess(result);
      ExpectClose(JsonNumber(result.out, "loss"), want.loss.exact);
      ExpectClose(JsonNumber(result.out, "perplexity"), want.perplexity);
      EXPECT_EQ(JsonText(result.out, "ignored"), "1");
      ExpectClose(NumbersIn(Path("losses.npy"), "<f8", "(7,)"), want.losses);
      ExpectClose(NumbersIn(Path("lse.npy"), "<f8", "(7,)"), want.lse);
      ExpectClose(NumbersIn(Path("grad.npy"), "<f8", "(7, 5)"), GradientOf(inputs, want));
    }
    EXPECT_TRUE(Loss(Joined(flags, {"--grad", "/dev/stdout"})).out == ReadFile(Path("grad.npy")));
  }

  std::vector<double> numbers_ = RandomNumbers(21, kRows *kCols);
  std::string class_weights_, row_weights_;
};

TEST_F(LossOptionsTest, EachAlone) {
  ExpectLoss({}, [](auto &) {});
  ExpectLoss({"--logit-scale", "0.7"}, [](auto &inputs) { inputs.options.logit_scale = 0.7; });
  ExpectLoss({"--softcap", "3"}, [](auto &inputs) { inputs.options.softcap = 3; });
  ExpectLoss({"--softcap", "0"}, [](auto &) {});
  ExpectLoss({"--z-loss", "0.125"}, [](auto &inputs) { inputs.options.z_loss = 0.125; });
  ExpectLoss({"--class-weights", class_weights_}, [](auto &inputs) { inputs.class_weights = kClassWeights; });
  ExpectLoss({"--row-weights", row_weights_}, [](auto &inputs) { inputs.row_weights = kRowWeights; });
}

TEST_F(LossOptionsTest, AllTogether) {
  ExpectLoss({"--logit-scale", "0.5", "--softcap", "4", "--z-loss", "0.0625", "--class-weights", class_weights_,
              "--row-weights", row_weights_, "--label-smoothing", "0.125"},
             [](auto &inputs) {
               inputs.options.logit_scale = 0.5;
               inputs.options.softcap = 4;
               inputs.options.z_loss = 0.0625;
               inputs.options.label_smoothing = 0.125;
               inputs.class_weights = kClassWeights;
               inputs.row_weights = kRowWeights;
             });
  ExpectLoss({"--class-weights", class_weights_, "--label-smoothing", "0.125", "--smoothing", "exclusive"},
             [](auto &inputs) {
               inputs.options.label_smoothing = 0.125;
               inputs.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
               inputs.class_weights = kClassWeights;
             });
}

TEST_F(LossOptionsTest, PaddingIsNotRead) {
  for (size_t i = 0; i < kRows; ++i) numbers_[i * kCols + 4] = kNan;
  logits_ = Write("logits.npy", NpyOf("<f8", {kRows, kCols}, numbers_));
  ExpectLoss({"--valid-cols", "4"}, [](auto &inputs) { inputs.options.valid_cols = 4; });
  ExpectLoss({"--valid-cols", "4", "--label-smoothing", "0.5"}, [](auto &inputs) {
    inputs.options.valid_cols = 4;
    inputs.options.label_smoothing = 0.5;
  });
  ExpectLoss({"--valid-cols", "4", "--class-weights", class_weights_}, [](auto &inputs) {
    inputs.options.valid_cols = 4;
    inputs.class_weights = kClassWeights;
  });
  ExpectFailure(Loss({"--valid-cols", "3"}), 1, "the target of row 1 is 3, expected 0 to 2 or the ignored -100");
  ExpectFailure(Loss({"--valid-cols", "6"}), 1, logits_ + ": --valid-cols is 6, expected at most 5, the number");
}

// Weights of either type are those of the arithmetic type.
TEST_F(LossOptionsTest, TypesOfWeights) {
  for (const Dtype &dtype : kDtypes) {
    std::string first;
    for (const char *descr : {"<f4", "<f8"}) {
      SCOPED_TRACE(std::string(dtype.descr) + " with weights of " + descr);
      logits_ = Write("logits.npy", NpyOf(dtype.descr, {kRows, kCols}, numbers_));
      const Result result = Loss({"--class-weights", Write("class.npy", NpyOf(descr, {kCols}, kClassWeights)),
                                  "--row-weights", Write("row.npy", NpyOf(descr, {kRows}, kRowWeights))});
      ExpectSuccess(result);
      if (first.empty()) first = result.out;
      EXPECT_EQ(result.out, first);
    }
  }
}

TEST_F(LossOptionsTest, WrongWeights) {
  const std::string names = Names();
  const auto failure = [&](const char *option, const std::string &file, const std::string &part) {
    SCOPED_TRACE(option + part);
    ExpectFailure(Loss({option, Write("row.npy", file), "--per-row", Path("losses.npy")}), 1,
                  Path("row.npy") + ": " + part);
    EXPECT_EQ(Names(), names);
  };
  failure("--class-weights", NpyOf("<f8", {4}, {1, 1, 1, 1}), "the shape is (4,), expected (5,): " + logits_);
  failure("--class-weights", NpyOf("<f8", {5, 2}, std::vector<double>(10, 1)), "the shape is (5, 2), expected (5,)");
  failure("--row-weights", NpyOf("<f8", {5}, {1, 1, 1, 1, 1}), "the shape is (5,), expected (7,): " + logits_);
  failure("--class-weights", Npy(">f8", {5}, std::string(40, '\0')),
          "the dtype is '>f8' (big-endian), expected weights of '<f4', '<f8', '<f2', bfloat16 as '<V2' or '|V2', an "
          "integer dtype or '|b1'");
  failure("--row-weights", Npy("<c8", {7}, std::string(56, '\0')), "the dtype is '<c8', expected weights of");
  failure("--row-weights", NpyOf("<f2", {7}, {1, 1, 1, kInf, 1, 1, 1}), "row weight 3 is inf");
  failure("--class-weights", NpyOf("<f4", {5}, {1, 1, kNan, 1, kInf}),
          "class weight 2 is nan, expected a number that is finite");
  failure("--class-weights", NpyOf("<f8", {5}, {1, 1, 1, 1, -kInf}), "class weight 4 is -inf");
  failure("--row-weights", NpyOf("<f8", {7}, {1, 1, 1, kInf, 1, 1, 1}), "row weight 3 is inf");
  // Finite in float64 alone.
  const std::string large = NpyOf("<f8", {5}, {1, -1e39, 1, 1, 1});
  ExpectSuccess(Loss({"--class-weights", Write("row.npy", large)}));
  logits_ = Write("logits.npy", NpyOf("<f4", {kRows, kCols}, numbers_));
  failure("--class-weights", large, "class weight 1 is -1e+39, expected a number that is finite in float32");
  ExpectFailure(Loss({"--class-weights", Path("none.npy")}), 1, "cannot read " + Path("none.npy"));
}

TEST_F(LossOptionsTest, NoOutputIsAWeight) {
  const std::string bytes = ReadFile(row_weights_);
  for (const char *option : {"--row-weights", "--class-weights"}) {
    const std::string &weights = option == std::string("--row-weights") ? row_weights_ : class_weights_;
    ExpectFailure(Loss({option, weights, "--lse", weights}), 1, "is the same file as the input " + weights);
  }
  EXPECT_TRUE(ReadFile(row_weights_) == bytes);
}

TEST_F(LossOptionsTest, WeightsThatAddUpToNothing) {
  const std::string zero = Write("zero.npy", NpyOf("<f4", {kRows}, std::vector<double>(kRows)));
  EXPECT_EQ(JsonText(Loss({"--row-weights", zero}).out, "loss"), "\"nan\"");
  EXPECT_EQ(JsonText(Loss({"--row-weights", zero, "--empty-mean", "zero"}).out, "loss"), "0");
  EXPECT_EQ(JsonText(Loss({"--row-weights", zero, "--divisor", "3"}).out, "loss"), "0");
}

class ProbabilitiesTest : public LossOptionsTest {
 protected:
  void SetUp() override {
    LossOptionsTest::SetUp();
    Random random(5);
    for (size_t i = 0; i < kRows * kCols; ++i) q_.push_back(std::floor(random.Uniform(0, 9)) / 16);  // no sums of 1
    targets_ = Write("targets.npy", NpyOf("<f8", {kRows, kCols}, q_));
  }

  std::vector<double> q_;
};

TEST_F(ProbabilitiesTest, AgainstTheFormula) {
  reference::LossInputs inputs = LossInputsOf(kRows, kCols, numbers_);
  inputs.target_probs = q_;
  inputs.class_weights = kClassWeights;
  inputs.row_weights = kRowWeights;
  inputs.options.logit_scale = 0.5;
  inputs.options.z_loss = 0.25;
  inputs.options.label_smoothing = 0.125;
  const reference::Losses want = reference::EvaluateLosses(inputs);
  const Words flags = {"--logit-scale",   "0.5",          "--z-loss",      "0.25",      "--label-smoothing", "0.125",
                       "--class-weights", class_weights_, "--row-weights", row_weights_};
  for (const char *descr : {"<f8", "<f4", "<f2", "<V2"}) {
    SCOPED_TRACE(descr);
    targets_ = Write("targets.npy", NpyOf(descr, {kRows, kCols}, q_));
    const Result result = Loss(Joined(flags, {"--grad", Path("grad.npy")}));
    ExpectSuccess(result);
    ExpectClose(JsonNumber(result.out, "loss"), want.loss.exact);
    EXPECT_EQ(JsonText(result.out, "perplexity"), "null");
    EXPECT_EQ(JsonText(result.out, "rows"), "7");
    EXPECT_EQ(JsonText(result.out, "ignored"), "0");
    ExpectClose(NumbersIn(Path("grad.npy"), "<f8", "(7, 5)"), GradientOf(inputs, want));
    EXPECT_TRUE(Loss(Joined(flags, {"--grad", "/dev/stdout"})).out == ReadFile(Path("grad.npy")));
  }
  const Result text = Xent({"loss", logits_, targets_});
  ExpectSuccess(text);
  EXPECT_EQ(text.out.find("perplexity"), std::string::npos) << text.out;
}

TEST_F(ProbabilitiesTest, OptionsForClassesAlone) {
  ExpectFailure(Loss({"--ignore-index", "3"}), 1,
                targets_ + ": --ignore-index does not go together with targets that are probabilities");
  ExpectFailure(Loss({"--smoothing", "exclusive", "--label-smoothing", "0.5"}), 1,
                targets_ + ": --smoothing exclusive does not go together with targets that are probabilities");
  ExpectSuccess(Loss({"--smoothing", "exclusive"}));
}

TEST_F(ProbabilitiesTest, OfAnotherShape) {
  targets_ = Write("targets.npy", NpyOf("<f4", {kCols, kRows}, q_));
  ExpectFailure(
      Loss({}), 1,
      targets_ +
          ": the dtype is '<f4', expected targets of an integer dtype or '|b1', or probabilities of the shape (7, 5)");
  targets_ = Write("targets.npy", NpyOf("<f8", {kRows}, kTargets));
  ExpectFailure(Loss({}), 1, "not (7,)");
}

// Rows along a class axis, beside the same rows brought into a matrix.
class ClassAxisTest : public DirectoryTest {
 protected:
  // Expects the oracle's numbers of logits of `shape` whose classes are dimension `axis`.
  void ExpectAxis(const std::vector<int64_t> &shape, size_t axis, const Words &flags) {
    SCOPED_TRACE(::testing::PrintToString(shape) + " " + ::testing::PrintToString(flags));
    size_t outer = 1, inner = 1;
    std::vector<int64_t> row_shape;
    for (size_t i = 0; i < shape.size(); ++i) {
      if (i == axis) continue;
      (i < axis ? outer : inner) *= static_cast<size_t>(shape[i]);
      row_shape.push_back(shape[i]);
    }
    const auto cols = static_cast<size_t>(shape[axis]), rows = outer * inner;
    const std::vector<double> logits = RandomNumbers(33, rows * cols);
    // The place of an element of the matrix of rows in the file.
    const auto place = [&](size_t row, size_t c) { return row / inner * cols * inner + c * inner + row % inner; };
    reference::LossInputs inputs = LossInputsOf(rows, cols, {});
    inputs.inner = static_cast<int64_t>(inner);
    for (size_t i = 0; i < rows; ++i) {
      inputs.targets.push_back(i == 1 ? -100 : static_cast<int64_t>(i * 7 % cols));
      inputs.row_weights.push_back(0.5 + static_cast<double>(i % 3));
      for (size_t c = 0; c < cols; ++c) inputs.logits.push_back(logits[place(i, c)]);
    }
    const reference::Losses want = reference::EvaluateLosses(inputs);
    const std::vector<reference::Value> by_row = GradientOf(inputs, want);
    std::vector<reference::Value> gradient(by_row.size());
    for (size_t i = 0; i < rows; ++i) {
      for (size_t c = 0; c < cols; ++c) gradient[place(i, c)] = by_row[i * cols + c];
    }
    logits_ = Write("logits.npy", NpyOf("<f8", shape, logits));
    targets_ = Write("targets.npy", Npy("<i8", row_shape, Bytes(inputs.targets)));
    // Row weights as a vector, and as the rows lie.
    for (const std::vector<int64_t> &weights_shape : {row_shape, std::vector<int64_t>{inputs.rows}}) {
      const Words arguments = Joined({"loss", logits_, targets_, "--json", "--row-weights",
                                      Write("row.npy", NpyOf("<f8", weights_shape, inputs.row_weights))},
                                     flags);
      const Result result = Xent(Joined(arguments, {"--per-row", Path("losses.npy"), "--grad", Path("grad.npy")}));
      ExpectSuccess(result);
      ExpectClose(JsonNumber(result.out, "loss"), want.loss.exact);
      EXPECT_EQ(JsonText(result.out, "rows"), std::to_string(rows));
      ExpectClose(NumbersIn(Path("losses.npy"), "<f8", Tuple(row_shape)), want.losses);
      ExpectClose(NumbersIn(Path("grad.npy"), "<f8", Tuple(shape)), gradient);
      EXPECT_TRUE(Xent(Joined(arguments, {"--per-row", "/dev/stdout"})).out == ReadFile(Path("losses.npy")));
      EXPECT_TRUE(Xent(Joined(arguments, {"--grad", "/dev/stdout"})).out == ReadFile(Path("grad.npy")));
    }
  }
};

TEST_F(ClassAxisTest, AnyDimension) {
  ExpectAxis({2, 3, 4}, 1, {});
  ExpectAxis({2, 3, 4}, 1, {"--class-axis", "1"});
  ExpectAxis({2, 3, 4}, 2, {"--class-axis", "2"});
  ExpectAxis({2, 3, 4}, 2, {"--class-axis=-1"});
  ExpectAxis({2, 3, 4}, 0, {"--class-axis", "-3"});
  ExpectAxis({2, 3, 2, 5}, 1, {});
  ExpectAxis({5, 9}, 1, {});
  ExpectAxis({5, 9}, 0, {"--class-axis", "0"});
}

// Blocks of more than one batch of 8 MB.
TEST_F(ClassAxisTest, InPlaceGivesTheSameBytes) {
  constexpr int64_t kBlocks = 45, kClasses = 6, kPositions = 10000;
  Random random(5);
  std::vector<float> logits(kBlocks * kClasses * kPositions), weights(kBlocks * kPositions);
  for (float &logit : logits) logit = static_cast<float>(random.Uniform(-6, 6));
  for (float &weight : weights) weight = static_cast<float>(random.Uniform(0, 2));
  std::vector<int32_t> targets(kBlocks * kPositions);
  for (int32_t &target : targets) target = static_cast<int32_t>(random.Next() % kClasses);
  Write("logits.npy", Npy("<f4", {kBlocks, kClasses, kPositions}, Bytes(logits)));
  Write("targets.npy", Npy("<i4", {kBlocks, kPositions}, Bytes(targets)));
  Write("weights.npy", Npy("<f4", {kBlocks, kPositions}, Bytes(weights)));
  for (const Words &options : std::vector<Words>{
           {}, {"--row-weights", Path("weights.npy")}, {"--row-weights", Path("weights.npy"), "--divisor", "7"}}) {
    for (const char *output : {"--per-row", "--grad"}) {
      const Words arguments = Joined({"loss", Path("logits.npy"), Path("targets.npy")}, options);
      ExpectSuccess(Xent(Joined(arguments, {output, Path("file.npy")})));
      EXPECT_TRUE(Xent(Joined(arguments, {output, "/dev/stdout"})).out == ReadFile(Path("file.npy")))
          << output << ::testing::PrintToString(arguments);
    }
  }
}

TEST_F(ClassAxisTest, OneRow) {
  reference::LossInputs inputs = LossInputsOf(1, 6, RandomNumbers(3, 6));
  inputs.targets = {4};
  const reference::Losses want = reference::EvaluateLosses(inputs);
  for (const std::vector<int64_t> &shape : {std::vector<int64_t>{}, {1}}) {
    const Result result = Xent({"loss", Write("logits.npy", NpyOf("<f8", {6}, inputs.logits)),
                                Write("targets.npy", NpyOf("<i8", shape, {4})), "--json", "--per-row",
                                Path("losses.npy"), "--grad", Path("grad.npy")});
    ExpectSuccess(result);
    ExpectClose(JsonNumber(result.out, "loss"), want.loss.exact);
    ExpectClose(NumbersIn(Path("losses.npy"), "<f8", "()"), want.losses);
    ExpectClose(NumbersIn(Path("grad.npy"), "<f8", "(6,)"), GradientOf(inputs, want));
  }
  ExpectFailure(Xent({"loss", Path("logits.npy"), Write("targets.npy", NpyOf("<i8", {2}, {4, 4}))}), 1,
                "the shape is (2,), expected ()");
}

TEST_F(ClassAxisTest, ProbabilitiesAlongIt) {
  const std::vector<double> logits = RandomNumbers(3, 12);
  std::vector<double> q(12);
  for (size_t i = 0; i < 12; ++i) q[i] = static_cast<double>(i % 5) / 8;
  reference::LossInputs inputs = LossInputsOf(4, 3, {});
  for (size_t s = 0; s < 4; ++s) {
    for (size_t c = 0; c < 3; ++c) {
      inputs.logits.push_back(logits[4 * c + s]);
      inputs.target_probs.push_back(q[4 * c + s]);
    }
  }
  const Result result = Xent({"loss", Write("logits.npy", NpyOf("<f8", {3, 4}, logits)),
                              Write("targets.npy", NpyOf("<f8", {3, 4}, q)), "--json", "--class-axis", "0"});
  ExpectSuccess(result);
  ExpectClose(JsonNumber(result.out, "loss"), reference::EvaluateLosses(inputs).loss.exact);
}

TEST_F(ClassAxisTest, NoSuchThing) {
  const std::string logits = Write("logits.npy", NpyOf("<f8", {2, 3, 4}, RandomNumbers(3, 24)));
  const std::string targets = Write("targets.npy", NpyOf("<i8", {2, 4}, std::vector<double>(8)));
  for (const char *axis : {"3", "-4", "9223372036854775807"}) {
    ExpectFailure(
        Xent({"loss", logits, targets, "--class-axis", axis}), 1,
        logits + ": the shape is (2, 3, 4), which has no dimension " + axis + ": expected --class-axis from -3 to 2");
  }
  ExpectFailure(Xent({"loss", logits, targets, "--class-axis", "2"}), 1,
                targets + ": the shape is (2, 4), expected (2, 3), that of " + logits);
  ExpectFailure(Xent({"loss", Write("empty.npy", NpyOf("<f8", {2, 0, 4}, {})), targets}), 1, "at least one column");
}

// Extents beyond every integer where another one is 0.
TEST_F(ClassAxisTest, NoRows) {
  constexpr int64_t kHuge = int64_t{1} << 40;
  for (const std::vector<int64_t> &row_shape :
       {std::vector<int64_t>{0, kHuge, kHuge}, {kHuge, kHuge, 0}, {kHuge, 0, kHuge}}) {
    std::vector<int64_t> shape = row_shape;
    shape.insert(shape.begin() + 1, 3);
    const Result result =
        Xent({"loss", Write("logits.npy", Npy("<f4", shape, "")), Write("targets.npy", Npy("<i4", row_shape, "")),
              "--json", "--reduction", "sum", "--grad", Path("grad.npy")});
    ExpectSuccess(result);
    EXPECT_EQ(JsonText(result.out, "loss"), "0");
    EXPECT_EQ(JsonText(result.out, "rows"), "0");
  }
}

TEST_F(LossOptionsTest, WrongUsage) {
  const std::vector<std::pair<Words, std::string>> cases = {
      {{"--logit-scale", "0"}, "--logit-scale"},
      {{"--logit-scale", "inf"}, "--logit-scale"},
      {{"--softcap", "-1"}, "--softcap"},
      {{"--softcap", "nan"}, "--softcap"},
      {{"--z-loss", "-0.1"}, "--z-loss"},
      {{"--z-loss", "inf"}, "--z-loss"},
      {{"--valid-cols", "0"}, "--valid-cols"},
      {{"--valid-cols", "1.5"}, "--valid-cols"},
      {{"--class-axis", "last"}, "--class-axis"},
      {{"--class-weights"}, "--class-weights"},
      {{"--keep-going"}, "--keep-going: only with --manifest"},
  };
  const std::string names = Names();
  for (const auto &[options, part] : cases) {
    SCOPED_TRACE(::testing::PrintToString(options));
    ExpectFailure(Loss(Joined({"--per-row", Path("losses.npy")}, options)), 2, part);
    EXPECT_EQ(Names(), names);
  }
}

}  // namespace
}  // namespace xent_cli_test
