// `xent bce` against the oracle of tests/reference/binary.h.
#include <cmath>
#include <string>
#include <vector>

#include "numbers.h"
#include "program.h"
#include "reference/binary.h"

namespace xent_cli_test {
namespace {

// [2, 3, 4]: classes in the middle, eight rows.
constexpr size_t kBlocks = 2, kCols = 3, kInner = 4, kRows = kBlocks * kInner, kElements = kRows * kCols;

struct BceOptions {
  std::vector<double> pos_weight = {}, element_weights = {}, row_weights = {}, class_weights = {};  // empty: 1
  double gamma = 0;
  double alpha = -1;  // -1: none
  bool from_probabilities = false;
};

class BceTest : public DirectoryTest {
 protected:
  void SetUp() override {
    DirectoryTest::SetUp();
    Random random(9);
    for (size_t i = 0; i < kElements; ++i) {
      targets_numbers_.push_back(std::floor(random.Uniform(0, 9)) / 8);
      probabilities_.push_back((1 + std::floor(random.Uniform(0, 31))) / 32);
      element_weights_.push_back(std::floor(random.Uniform(-2, 9)) / 4);
    }
    WriteInputs("<f8", {kBlocks, kCols, kInner});
    element_ = Write("element.npy", NpyOf("<f8", {kBlocks, kCols, kInner}, element_weights_));
    row_ = Write("row.npy", NpyOf("<f4", {kRows}, row_weights_));
    class_ = Write("class.npy", NpyOf("<f8", {kCols}, class_weights_));
    pos_ = Write("pos.npy", NpyOf("<f4", {kCols}, pos_weight_));
  }

  void WriteInputs(const std::string &descr, const std::vector<int64_t> &shape) {
    logits_ = Write("logits.npy", NpyOf(descr, shape, numbers_));
    targets_ = Write("targets.npy", NpyOf(descr, shape, targets_numbers_));
  }

  Result Bce(const Words &options) { return Xent(Joined({"bce", logits_, targets_, "--json"}, options)); }

  void ExpectBce(const Words &flags, const BceOptions &options) {
    SCOPED_TRACE(::testing::PrintToString(flags));
    const auto weight = [](const std::vector<double> &weights, size_t at) { return weights.empty() ? 1 : weights[at]; };
    std::vector<reference::Value> losses, gradient;
    long double sum = 0;
    for (size_t i = 0; i < kElements; ++i) {
      const size_t c = i / kInner % kCols, row = i / (kCols * kInner) * kInner + i % kInner;
      reference::BinaryElement element;
      element.x = options.from_probabilities ? probabilities_[i] : numbers_[i];
      element.y = targets_numbers_[i];
      element.probabilities = options.from_probabilities;
      element.pos_weight = weight(options.pos_weight, c);
      element.weight = static_cast<long double>(weight(options.element_weights, i)) * weight(options.row_weights, row) *
                       weight(options.class_weights, c);
      element.upstream = 1.0L / kElements;
      element.gamma = options.gamma;
      element.alpha = options.alpha;
      const reference::BinaryResult result = reference::EvaluateBinary(element);
      losses.push_back(result.loss);
      gradient.push_back(result.grad);
      sum += result.loss.exact;
    }
    const Result result = Bce(Joined(flags, {"--per-element", Path("losses.npy"), "--grad", Path("grad.npy")}));
    ExpectSuccess(result);
    ExpectClose(JsonNumber(result.out, "loss"), sum / kElements);
    EXPECT_EQ(JsonText(result.out, "rows"), "8");
    EXPECT_EQ(JsonText(result.out, "elements"), "24");
    ExpectClose(NumbersIn(Path("losses.npy"), "<f8", "(2, 3, 4)"), losses);
    ExpectClose(NumbersIn(Path("grad.npy"), "<f8", "(2, 3, 4)"), gradient);
    for (const auto &[option, file] : {std::pair("--per-element", "losses.npy"), {"--grad", "grad.npy"}}) {
      EXPECT_TRUE(Bce(Joined(flags, {option, "/dev/stdout"})).out == ReadFile(Path(file))) << option;
    }
    ExpectClose(JsonNumber(Bce(Joined(flags, {"--reduction", "sum"})).out, "loss"), sum);
    ExpectClose(JsonNumber(Bce(Joined(flags, {"--divisor", "2.5"})).out, "loss"), sum / 2.5L);
    EXPECT_EQ(JsonText(Bce(Joined(flags, {"--reduction", "none"})).out, "loss"), "null");
  }

  std::vector<double> numbers_ = RandomNumbers(4, kElements);
  std::vector<double> targets_numbers_, probabilities_, element_weights_;
  const std::vector<double> row_weights_ = {1, 0.5, 0, 2, 3, -1, 0.25, 1}, class_weights_ = {0.5, 2, 1.25},
                            pos_weight_ = {3, 0.5, 0.75};
  std::string element_, row_, class_, pos_;
};

TEST_F(BceTest, EachOption) {
  ExpectBce({}, {});
  ExpectBce({"--from", "logits"}, {});
  ExpectBce({"--pos-weight", pos_}, {.pos_weight = pos_weight_});
  ExpectBce({"--element-weights", element_}, {.element_weights = element_weights_});
  ExpectBce({"--row-weights", row_}, {.row_weights = row_weights_});
  ExpectBce({"--class-weights", class_}, {.class_weights = class_weights_});
  ExpectBce({"--focal-gamma", "2"}, {.gamma = 2});
  ExpectBce({"--focal-gamma", "1.5", "--focal-alpha", "0.25"}, {.gamma = 1.5, .alpha = 0.25});
  ExpectBce({"--focal-alpha", "0"}, {.alpha = 0});
  ExpectBce({"--pos-weight", pos_, "--element-weights", element_, "--row-weights", row_, "--class-weights", class_,
             "--focal-gamma", "2", "--focal-alpha", "0.75"},
            {.pos_weight = pos_weight_,
             .element_weights = element_weights_,
             .row_weights = row_weights_,
             .class_weights = class_weights_,
             .gamma = 2,
             .alpha = 0.75});
}

TEST_F(BceTest, Probabilities) {
  logits_ = Write("logits.npy", NpyOf("<f8", {kBlocks, kCols, kInner}, probabilities_));
  ExpectBce({"--from", "probabilities"}, {.from_probabilities = true});
  ExpectBce(
      {"--from", "probabilities", "--class-weights", class_, "--row-weights", row_, "--element-weights", element_},
      {.element_weights = element_weights_,
       .row_weights = row_weights_,
       .class_weights = class_weights_,
       .from_probabilities = true});
}

// Blocks of more than one batch of 8 MB, each with its own weights.
TEST_F(BceTest, InPlaceGivesTheSameBytes) {
  constexpr int64_t kManyBlocks = 45, kClasses = 6, kPositions = 10000;
  Random random(5);
  const auto numbers = [&random](int64_t count, double low, double high) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float &value : values) value = static_cast<float>(random.Uniform(low, high));
    return Bytes(values);
  };
  const std::vector<int64_t> shape = {kManyBlocks, kClasses, kPositions};
  constexpr int64_t kCount = kManyBlocks * kClasses * kPositions;
  logits_ = Write("logits.npy", Npy("<f4", shape, numbers(kCount, -6, 6)));
  targets_ = Write("targets.npy", Npy("<f4", shape, numbers(kCount, 0, 1)));
  const std::string elements = Write("element.npy", Npy("<f4", shape, numbers(kCount, 0, 2)));
  const std::string rows =
      Write("row.npy", Npy("<f4", {kManyBlocks * kPositions}, numbers(kManyBlocks * kPositions, 0, 2)));
  for (const Words &options : {Words{"--element-weights", elements}, {"--row-weights", rows}}) {
    for (const char *output : {"--per-element", "--grad"}) {
      ExpectSuccess(Bce(Joined(options, {output, Path("file.npy")})));
      EXPECT_TRUE(Bce(Joined(options, {output, "/dev/stdout"})).out == ReadFile(Path("file.npy")))
          << output << ::testing::PrintToString(options);
    }
  }
}

TEST_F(BceTest, OutsideTheDomain) {
  const std::string names = Names();
  for (const auto &[value, text] : {std::pair(1.25, "1.25"), {-0.0625, "-0.0625"}, {kNan, "nan"}}) {
    for (const char *descr : {"<f8", "<f4", "<f2", "<V2"}) {
      std::vector<double> numbers = probabilities_;
      numbers[17] = value;  // block 1, class 1, position 1
      if (std::isnan(value) && descr[2] == '2') continue;
      logits_ = Write("logits.npy", NpyOf(descr, {kBlocks, kCols, kInner}, numbers));
      ExpectFailure(Bce({"--from", "probabilities", "--grad", Path("grad.npy")}), 1,
                    logits_ + ": the probability of row 5, column 1 is " + text + ", expected 0 to 1");
      EXPECT_EQ(Names(), names);
    }
  }
}

TEST_F(BceTest, Shapes) {
  const double loss = JsonNumber(Bce({}).out, "loss");
  // Without weights the shape does not matter; a vector is one class.
  for (const std::vector<int64_t> &shape : {std::vector<int64_t>{24}, {6, 4}, {24, 1}, {1, 24}, {2, 3, 2, 2}}) {
    SCOPED_TRACE(::testing::PrintToString(shape));
    WriteInputs("<f8", shape);
    const Result result = Bce({"--grad", Path("grad.npy")});
    ExpectSuccess(result);
    ExpectClose(JsonNumber(result.out, "loss"), loss);
    EXPECT_EQ(JsonNumber(result.out, "rows"),
              static_cast<double>(kElements) / (shape.size() == 1 ? 1.0 : static_cast<double>(shape[1])));
  }
  WriteInputs("<f8", {24});
  const std::string two = Write("two.npy", NpyOf("<f8", {1}, {2}));
  ExpectClose(JsonNumber(Bce({"--class-weights", two}).out, "loss"), 2 * loss);
  std::vector<double> twos(24, 2);
  const std::string rows = Write("rows.npy", NpyOf("<f8", {24}, twos));
  ExpectClose(JsonNumber(Bce({"--row-weights", rows, "--element-weights", rows}).out, "loss"), 4 * loss);
  // Row weights as the rows lie.
  WriteInputs("<f8", {kBlocks, kCols, kInner});
  EXPECT_EQ(Bce({"--row-weights", Write("rows.npy", NpyOf("<f4", {kBlocks, kInner}, row_weights_))}).out,
            Bce({"--row-weights", row_}).out);
  WriteInputs("<f8", {0, 3});
  EXPECT_EQ(JsonText(Bce({}).out, "loss"), "\"nan\"");
  EXPECT_EQ(JsonText(Bce({"--empty-mean", "zero"}).out, "loss"), "0");
}

TEST_F(BceTest, Dtypes) {
  const double wanted = JsonNumber(Bce({}).out, "loss");
  for (const Dtype &dtype : kDtypes) {
    SCOPED_TRACE(dtype.descr);
    WriteInputs(dtype.descr, {kBlocks, kCols, kInner});
    const Result result = Bce({"--per-element", Path("losses.npy"), "--grad", Path("grad.npy"), "--threads", "2"});
    ExpectSuccess(result);
    EXPECT_NEAR(JsonNumber(result.out, "loss"), wanted, 1e-6 * wanted);
    EXPECT_EQ(JsonText(result.out, "threads"), "2");
    NumbersIn(Path("losses.npy"), dtype.arithmetic, "(2, 3, 4)");
    NumbersIn(Path("grad.npy"), dtype.descr, "(2, 3, 4)");
  }
}

TEST_F(BceTest, WrongInputs) {
  const std::string wrong = Write("wrong.npy", NpyOf("<f8", {4, 3, 2}, targets_numbers_));
  ExpectFailure(Xent({"bce", logits_, wrong}), 1,
                wrong + ": the shape is (4, 3, 2), expected (2, 3, 4), that of " + logits_);
  ExpectFailure(Bce({"--element-weights", wrong}), 1, wrong + ": the shape is (4, 3, 2), expected (2, 3, 4)");
  ExpectFailure(Bce({"--class-weights", row_}), 1, row_ + ": the shape is (8,), expected (3,)");
  ExpectFailure(Bce({"--pos-weight", row_}), 1, row_ + ": the shape is (8,), expected (3,)");
  ExpectFailure(Bce({"--row-weights", class_}), 1, class_ + ": the shape is (3,), expected (8,)");
  std::vector<double> weights = element_weights_;
  weights[17] = kInf;
  const std::string infinite = Write("wrong.npy", NpyOf("<f8", {kBlocks, kCols, kInner}, weights));
  ExpectFailure(Bce({"--element-weights", infinite}), 1, infinite + ": element weight (1, 1, 1) is inf, expected");
  ExpectFailure(Bce({"--element-weights", element_, "--grad", element_}), 1,
                "is the same file as the input " + element_);
  const std::string scalar = Write("wrong.npy", NpyOf("<f8", {}, {1}));
  ExpectFailure(Xent({"bce", scalar, scalar}), 1, "the shape is (), expected elements");
  const std::string empty = Write("wrong.npy", NpyOf("<f8", {3, 0}, {}));
  ExpectFailure(Xent({"bce", empty, empty}), 1, "expected at least one column");
}

TEST_F(BceTest, WrongUsage) {
  const std::vector<std::pair<Words, std::string>> cases = {
      {{"--from", "p"}, "--from"},
      {{"--focal-gamma", "-1"}, "--focal-gamma"},
      {{"--focal-gamma", "inf"}, "--focal-gamma"},
      {{"--focal-alpha", "1.5"}, "--focal-alpha"},
      {{"--from", "probabilities", "--pos-weight", pos_}, "--pos-weight: not together with --from probabilities"},
      {{"--from", "probabilities", "--focal-gamma", "1"}, "--focal-gamma: not together"},
      {{"--from", "probabilities", "--focal-alpha", "0.5"}, "--focal-alpha: not together"},
      {{"--reduction", "none", "--divisor", "2"}, "--divisor"},
  };
  for (const auto &[options, part] : cases) {
    SCOPED_TRACE(::testing::PrintToString(options));
    ExpectFailure(Bce(options), 2, part);
  }
  ExpectFailure(Xent({"bce", logits_}), 2, "TARGETS.npy");
  ExpectFailure(Xent({"bce"}), 2, "INPUT.npy");
}

}  // namespace
}  // namespace xent_cli_test
