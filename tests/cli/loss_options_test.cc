// `xent loss`: weights, what is done to the logits, probability targets, and arrays of other shapes than [N, V].
#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "numbers.h"
#include "program.h"

namespace xent_cli_test {
namespace {

constexpr size_t kRows = 7, kCols = 5;
const std::vector<double> kTargets = {0, 3, -100, 2, 1, 1, 3};  // below the four valid columns of one of the tests
const std::vector<double> kClassWeights = {0.5, 2, 0, 1.25, 3};
const std::vector<double> kRowWeights = {1, 0.25, 7, 0, 2, -0.5, 1.5};

class LossOptionsTest : public DirectoryTest {
 protected:
  void SetUp() override {
    DirectoryTest::SetUp();
    logits_ = Write("logits.npy", NpyOf("<f8", {kRows, kCols}, numbers_));
    targets_ = Write("targets.npy", NpyOf("<i8", {kRows}, kTargets));
    class_weights_ = Write("class.npy", NpyOf("<f8", {kCols}, kClassWeights));
    row_weights_ = Write("row.npy", NpyOf("<f8", {kRows}, kRowWeights));
  }

  Result Loss(const std::vector<std::string> &options) {
    std::vector<std::string> arguments = {"loss", logits_, targets_, "--json"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    return Xent(arguments);
  }

  // Everything that the program says of the index targets, with and without a gradient in place.
  void ExpectLoss(const std::vector<std::string> &flags, const RowOptions &options, bool weigh_rows = false) {
    SCOPED_TRACE(::testing::PrintToString(flags));
    std::vector<long double> losses, lse, gradient;
    long double sum = 0, weight = 0, nll = 0;
    for (size_t i = 0; i < kRows; ++i) {
      const auto target = static_cast<int64_t>(kTargets[i]);
      Row row;
      row.gradient.resize(kCols);
      if (target >= 0) {
        RowOptions of_row = options;
        if (weigh_rows) of_row.weight = kRowWeights[i];
        row = RowOf(RowIn(numbers_, kCols, i), target, of_row);
        weight +=
            of_row.weight * (options.class_weights.empty() ? 1 : options.class_weights[static_cast<size_t>(target)]);
      }
      sum += row.loss;
      nll += row.nll;
      losses.push_back(row.loss);
      lse.push_back(row.lse);
      gradient.insert(gradient.end(), row.gradient.begin(), row.gradient.end());
    }
    std::vector<std::string> with_outputs = flags;
    with_outputs.insert(with_outputs.end(), {"--per-row", Path("losses.npy"), "--lse", Path("lse.npy"), "--grad",
                                             Path("grad.npy"), "--reduction", "sum"});
    const Result result = Loss(with_outputs);
    ExpectSuccess(result);
    ExpectClose(JsonNumber(result.out, "loss"), sum);
    ExpectClose(NumbersIn(Path("losses.npy"), "<f8", "(7,)"), losses);
    ExpectClose(NumbersIn(Path("lse.npy"), "<f8", "(7,)"), lse);
    ExpectClose(NumbersIn(Path("grad.npy"), "<f8", "(7, 5)"), gradient);

    with_outputs.back() = "mean";
    const Result mean = Loss(with_outputs);
    ExpectSuccess(mean);
    ExpectClose(JsonNumber(mean.out, "loss"), sum / weight);
    ExpectClose(JsonNumber(mean.out, "perplexity"), std::exp(nll / 6));
    EXPECT_EQ(JsonText(mean.out, "ignored"), "1");
    for (long double &number : gradient) number /= weight;
    ExpectClose(NumbersIn(Path("grad.npy"), "<f8", "(7, 5)"), gradient);

    std::vector<std::string> in_place = flags;
    in_place.insert(in_place.end(), {"--grad", "/dev/stdout"});
    EXPECT_TRUE(Loss(in_place).out == ReadFile(Path("grad.npy")));
  }

  std::vector<double> numbers_ = RandomNumbers(21, kRows *kCols);
  std::string class_weights_, row_weights_;
};

TEST_F(LossOptionsTest, EachAlone) {
  ExpectLoss({}, {});
  ExpectLoss({"--logit-scale", "0.7"}, {.scale = 0.7});
  ExpectLoss({"--softcap", "3"}, {.cap = 3});
  ExpectLoss({"--softcap", "0"}, {});
  ExpectLoss({"--z-loss", "0.125"}, {.z_loss = 0.125});
  ExpectLoss({"--class-weights", class_weights_}, {.class_weights = kClassWeights});
  ExpectLoss({"--row-weights", row_weights_}, {}, true);
}

TEST_F(LossOptionsTest, AllTogether) {
  ExpectLoss({"--logit-scale", "0.5", "--softcap", "4", "--z-loss", "0.0625", "--class-weights", class_weights_,
              "--row-weights", row_weights_, "--label-smoothing", "0.125"},
             {.scale = 0.5, .cap = 4, .z_loss = 0.0625, .smoothing = 0.125, .class_weights = kClassWeights}, true);
  ExpectLoss({"--class-weights", class_weights_, "--label-smoothing", "0.125", "--smoothing", "exclusive"},
             {.smoothing = 0.125, .exclusive = true, .class_weights = kClassWeights});
}

TEST_F(LossOptionsTest, PaddingIsNotRead) {
  for (size_t i = 0; i < kRows; ++i) numbers_[i * kCols + 4] = kNan;
  logits_ = Write("logits.npy", NpyOf("<f8", {kRows, kCols}, numbers_));
  ExpectLoss({"--valid-cols", "4"}, {.valid_cols = 4});
  ExpectLoss({"--valid-cols", "4", "--label-smoothing", "0.5"}, {.smoothing = 0.5, .valid_cols = 4});
  ExpectLoss({"--valid-cols", "4", "--class-weights", class_weights_},
             {.valid_cols = 4, .class_weights = kClassWeights});
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
  failure("--class-weights", NpyOf("<f8", {5, 1}, {1, 1, 1, 1, 1}), "the shape is (5, 1), expected (5,)");
  failure("--row-weights", NpyOf("<f8", {5}, {1, 1, 1, 1, 1}), "the shape is (5,), expected (7,): " + logits_);
  failure("--class-weights", NpyOf("<i8", {5}, {1, 1, 1, 1, 1}),
          "the dtype is '<i8', expected weights of '<f4' or '<f8'");
  failure("--row-weights", NpyOf("<f2", {7}, kRowWeights), "the dtype is '<f2', expected weights of");
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
  const RowOptions options = {.scale = 0.5, .z_loss = 0.25, .smoothing = 0.125, .class_weights = kClassWeights};
  long double sum = 0;
  std::vector<long double> gradient;
  for (size_t i = 0; i < kRows; ++i) {
    RowOptions of_row = options;
    of_row.weight = kRowWeights[i];
    const Row row = RowOf(RowIn(numbers_, kCols, i), RowIn(q_, kCols, i), of_row);
    sum += row.loss;
    for (const long double number : row.gradient) gradient.push_back(number / kRows);
  }
  for (const char *descr : {"<f8", "<f4", "<f2", "<V2"}) {
    SCOPED_TRACE(descr);
    targets_ = Write("targets.npy", NpyOf(descr, {kRows, kCols}, q_));
    const std::vector<std::string> flags = {"--logit-scale",     "0.5",       "--z-loss",        "0.25",
                                            "--label-smoothing", "0.125",     "--class-weights", class_weights_,
                                            "--row-weights",     row_weights_};
    std::vector<std::string> with_file = flags;
    with_file.insert(with_file.end(), {"--grad", Path("grad.npy")});
    const Result result = Loss(with_file);
    ExpectSuccess(result);
    ExpectClose(JsonNumber(result.out, "loss"), sum / kRows);
    EXPECT_EQ(JsonText(result.out, "perplexity"), "null");
    EXPECT_EQ(JsonText(result.out, "rows"), "7");
    EXPECT_EQ(JsonText(result.out, "ignored"), "0");
    ExpectClose(NumbersIn(Path("grad.npy"), "<f8", "(7, 5)"), gradient);
    with_file.back() = "/dev/stdout";
    EXPECT_TRUE(Loss(with_file).out == ReadFile(Path("grad.npy")));
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
      targets_ + ": the dtype is '<f4', expected targets of '<i4' or '<i8', or probabilities of the shape (7, 5)");
  targets_ = Write("targets.npy", NpyOf("<f8", {kRows}, kTargets));
  ExpectFailure(Loss({}), 1, "not (7,)");
}

// Rows along a class axis, beside the same rows brought into a matrix.
class ClassAxisTest : public DirectoryTest {
 protected:
  // logits of `shape` whose classes are dimension `axis`, and targets, against the naive rows.
  void ExpectAxis(const std::vector<int64_t> &shape, size_t axis, const std::vector<std::string> &flags) {
    SCOPED_TRACE(::testing::PrintToString(shape) + " " + ::testing::PrintToString(flags));
    size_t outer = 1, inner = 1;
    std::vector<int64_t> row_shape;
    std::string row_text, text;
    for (size_t i = 0; i < shape.size(); ++i) {
      text += std::to_string(shape[i]) + ", ";
      if (i == axis) continue;
      (i < axis ? outer : inner) *= static_cast<size_t>(shape[i]);
      row_shape.push_back(shape[i]);
      row_text += std::to_string(shape[i]) + ", ";
    }
    const auto tuple = [](std::string numbers, size_t dimensions) {
      if (dimensions > 0) numbers.resize(numbers.size() - (dimensions == 1 ? 1 : 2));
      return "(" + numbers + ")";
    };
    const auto cols = static_cast<size_t>(shape[axis]), rows = outer * inner;
    const std::vector<double> logits = RandomNumbers(33, rows * cols);
    std::vector<double> targets(rows);
    for (size_t i = 0; i < rows; ++i) targets[i] = i == 1 ? -100 : static_cast<double>(i * 7 % cols);
    std::vector<double> weights(rows);
    for (size_t i = 0; i < rows; ++i) weights[i] = 0.5 + static_cast<double>(i % 3);
    std::vector<long double> losses(rows), gradient(rows * cols);
    long double sum = 0, weight = 0;
    for (size_t i = 0; i < rows; ++i) {
      if (targets[i] < 0) continue;
      const size_t first = i / inner * cols * inner + i % inner;
      std::vector<double> row(cols);
      for (size_t c = 0; c < cols; ++c) row[c] = logits[first + c * inner];
      RowOptions options;
      options.weight = weights[i];
      const Row expected = RowOf(row, static_cast<int64_t>(targets[i]), options);
      losses[i] = expected.loss;
      sum += expected.loss;
      weight += weights[i];
      for (size_t c = 0; c < cols; ++c) gradient[first + c * inner] = expected.gradient[c];
    }
    for (long double &number : gradient) number /= weight;
    logits_ = Write("logits.npy", NpyOf("<f8", shape, logits));
    targets_ = Write("targets.npy", NpyOf("<i8", row_shape, targets));
    // Row weights as a vector, and as the rows lie.
    for (const std::vector<int64_t> &weights_shape : {row_shape, std::vector<int64_t>{static_cast<int64_t>(rows)}}) {
      if (weights_shape.empty()) continue;
      const std::string weights_path = Write("row.npy", NpyOf("<f8", weights_shape, weights));
      const auto loss = [&](const std::vector<std::string> &outputs) {
        std::vector<std::string> arguments = {"loss", logits_, targets_, "--json", "--row-weights", weights_path};
        arguments.insert(arguments.end(), flags.begin(), flags.end());
        arguments.insert(arguments.end(), outputs.begin(), outputs.end());
        return Xent(arguments);
      };
      const Result result = loss({"--per-row", Path("losses.npy"), "--grad", Path("grad.npy")});
      ExpectSuccess(result);
      ExpectClose(JsonNumber(result.out, "loss"), sum / weight);
      EXPECT_EQ(JsonNumber(result.out, "rows"), static_cast<double>(rows));
      ExpectClose(NumbersIn(Path("losses.npy"), "<f8", tuple(row_text, row_shape.size())), losses);
      ExpectClose(NumbersIn(Path("grad.npy"), "<f8", tuple(text, shape.size())), gradient);
      EXPECT_TRUE(loss({"--per-row", "/dev/stdout"}).out == ReadFile(Path("losses.npy")));
      EXPECT_TRUE(loss({"--grad", "/dev/stdout"}).out == ReadFile(Path("grad.npy")));
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
  for (const std::vector<std::string> &options : std::vector<std::vector<std::string>>{
           {}, {"--row-weights", Path("weights.npy")}, {"--row-weights", Path("weights.npy"), "--divisor", "7"}}) {
    for (const char *output : {"--per-row", "--grad"}) {
      std::vector<std::string> arguments = {"loss", Path("logits.npy"), Path("targets.npy")};
      arguments.insert(arguments.end(), options.begin(), options.end());
      arguments.insert(arguments.end(), {output, Path("file.npy")});
      ExpectSuccess(Xent(arguments));
      arguments.back() = "/dev/stdout";
      EXPECT_TRUE(Xent(arguments).out == ReadFile(Path("file.npy"))) << ::testing::PrintToString(arguments);
    }
  }
}

TEST_F(ClassAxisTest, OneRow) {
  const std::vector<double> logits = RandomNumbers(3, 6);
  const Row row = RowOf(logits, 4);
  for (const std::vector<int64_t> &shape : {std::vector<int64_t>{}, {1}}) {
    const Result result =
        Xent({"loss", Write("logits.npy", NpyOf("<f8", {6}, logits)), Write("targets.npy", NpyOf("<i8", shape, {4})),
              "--json", "--per-row", Path("losses.npy"), "--grad", Path("grad.npy")});
    ExpectSuccess(result);
    ExpectClose(JsonNumber(result.out, "loss"), row.loss);
    ExpectClose(NumbersIn(Path("losses.npy"), "<f8", "()"), {row.loss});
    ExpectClose(NumbersIn(Path("grad.npy"), "<f8", "(6,)"), row.gradient);
  }
  ExpectFailure(Xent({"loss", Path("logits.npy"), Write("targets.npy", NpyOf("<i8", {2}, {4, 4}))}), 1,
                "the shape is (2,), expected ()");
}

TEST_F(ClassAxisTest, ProbabilitiesAlongIt) {
  const std::vector<double> logits = RandomNumbers(3, 12);
  std::vector<double> q(12);
  for (size_t i = 0; i < 12; ++i) q[i] = static_cast<double>(i % 5) / 8;
  long double sum = 0;
  for (size_t s = 0; s < 4; ++s) {
    sum += RowOf({logits[s], logits[4 + s], logits[8 + s]}, std::vector<double>{q[s], q[4 + s], q[8 + s]}).loss;
  }
  const Result result = Xent({"loss", Write("logits.npy", NpyOf("<f8", {3, 4}, logits)),
                              Write("targets.npy", NpyOf("<f8", {3, 4}, q)), "--json", "--class-axis", "0"});
  ExpectSuccess(result);
  ExpectClose(JsonNumber(result.out, "loss"), sum / 4);
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
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
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
    std::vector<std::string> arguments = options;
    arguments.insert(arguments.begin(), {"--per-row", Path("losses.npy")});
    SCOPED_TRACE(::testing::PrintToString(options));
    ExpectFailure(Loss(arguments), 2, part);
    EXPECT_EQ(Names(), names);
  }
}

}  // namespace
}  // namespace xent_cli_test
