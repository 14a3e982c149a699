// `xent divergence` against the oracle of tests/reference/divergence.h.
#include <cmath>
#include <string>
#include <vector>

#include "numbers.h"
#include "program.h"
#include "reference/divergence.h"

namespace xent_cli_test {
namespace {

constexpr size_t kRows = 6, kCols = 5;

class DivergenceTest : public DirectoryTest {
 protected:
  void SetUp() override {
    DirectoryTest::SetUp();
    student_path_ = Write("student.npy", NpyOf("<f8", {kRows, kCols}, student_));
    teacher_path_ = Write("teacher.npy", NpyOf("<f8", {kRows, kCols}, teacher_));
    row_weights_path_ = Write("row.npy", NpyOf("<f4", {kRows}, row_weights_));
  }

  Result Divergence(const Words &options) {
    return Xent(Joined({"divergence", student_path_, teacher_path_, "--json"}, options));
  }

  // The rows have `cols` columns, and the weights of `row_weights`.
  void ExpectDivergence(xent_divergence_kind kind, const Words &flags, double beta = 0.5, double temperature = 1,
                        size_t cols = kCols, const std::vector<double> &row_weights = std::vector<double>(kRows, 1)) {
    SCOPED_TRACE(::testing::PrintToString(flags));
    std::vector<long double> losses, gradient;
    long double sum = 0;
    for (size_t i = 0; i < kRows; ++i) {
      const reference::Divergence row = reference::EvaluateDivergence(
          FirstIn(student_, cols, i), FirstIn(teacher_, cols, i), kind, temperature, beta);
      losses.push_back(row.loss.exact * row_weights[i]);
      sum += losses.back();
      for (size_t c = 0; c < kCols; ++c) {
        gradient.push_back(c < cols ? row.gradient[c].exact * row_weights[i] / kRows : 0);
      }
    }
    const Result result = Divergence(Joined(flags, {"--per-row", Path("losses.npy"), "--grad", Path("grad.npy")}));
    ExpectSuccess(result);
    ExpectClose(JsonNumber(result.out, "loss"), sum / kRows);
    EXPECT_EQ(JsonText(result.out, "rows"), "6");
    ExpectClose(NumbersIn(Path("losses.npy"), "<f8", "(6,)"), losses);
    ExpectClose(NumbersIn(Path("grad.npy"), "<f8", "(6, 5)"), gradient);
    for (const auto &[option, file] : {std::pair("--per-row", "losses.npy"), {"--grad", "grad.npy"}}) {
      EXPECT_TRUE(Divergence(Joined(flags, {option, "/dev/stdout"})).out == ReadFile(Path(file))) << option;
    }
  }

  // Returns the first `cols` columns of a row.
  static std::vector<double> FirstIn(const std::vector<double> &matrix, size_t cols, size_t row) {
    std::vector<double> numbers = RowIn(matrix, kCols, row);
    numbers.resize(cols);
    return numbers;
  }

  const std::vector<double> row_weights_ = {1, 0.25, 7, 0, 2, -0.5};
  std::vector<double> student_ = RandomNumbers(1, kRows *kCols), teacher_ = RandomNumbers(2, kRows *kCols);
  std::string student_path_, teacher_path_, row_weights_path_;
};

TEST_F(DivergenceTest, Kinds) {
  ExpectDivergence(XENT_DIVERGENCE_FORWARD_KL, {});
  for (const auto &[word, kind] : {std::pair("forward-kl", XENT_DIVERGENCE_FORWARD_KL),
                                   {"reverse-kl", XENT_DIVERGENCE_REVERSE_KL},
                                   {"js", XENT_DIVERGENCE_JENSEN_SHANNON},
                                   {"cross-entropy", XENT_DIVERGENCE_CROSS_ENTROPY}}) {
    ExpectDivergence(kind, {"--kind", word});
    ExpectDivergence(kind, {"--kind", word, "--temperature", "2.5"}, 0.5, 2.5);
  }
  ExpectDivergence(XENT_DIVERGENCE_JENSEN_SHANNON, {"--kind", "js", "--beta", "0.125"}, 0.125);
}

TEST_F(DivergenceTest, RowWeights) {
  for (const auto &[word, kind] : {std::pair("forward-kl", XENT_DIVERGENCE_FORWARD_KL),
                                   {"reverse-kl", XENT_DIVERGENCE_REVERSE_KL},
                                   {"js", XENT_DIVERGENCE_JENSEN_SHANNON}}) {
    ExpectDivergence(kind, {"--kind", word, "--row-weights", row_weights_path_}, 0.5, 1, kCols, row_weights_);
  }
}

TEST_F(DivergenceTest, PaddingIsNotRead) {
  for (std::vector<double> *matrix : {&student_, &teacher_}) {
    for (size_t i = 0; i < kRows; ++i) (*matrix)[i * kCols + 4] = kNan;
  }
  student_path_ = Write("student.npy", NpyOf("<f8", {kRows, kCols}, student_));
  teacher_path_ = Write("teacher.npy", NpyOf("<f8", {kRows, kCols}, teacher_));
  ExpectDivergence(XENT_DIVERGENCE_FORWARD_KL, {"--valid-cols", "4"}, 0.5, 1, 4);
}

// The same rows in other shapes.
TEST_F(DivergenceTest, ClassAxis) {
  const Words outputs = {"--per-row", Path("losses.npy"), "--grad", Path("grad.npy"), "--row-weights"};
  const Result want = Divergence(Joined(outputs, {row_weights_path_}));
  const std::vector<double> losses = NumbersIn(Path("losses.npy"), "<f8", "(6,)");
  const std::vector<double> gradient = NumbersIn(Path("grad.npy"), "<f8", "(6, 5)");
  const auto expect = [&](const std::vector<int64_t> &shape, const std::vector<int64_t> &rows, const Words &flags) {
    SCOPED_TRACE(Tuple(shape));
    size_t axis = 0;
    while (shape[axis] != kCols) ++axis;
    size_t inner = 1;
    for (size_t i = axis + 1; i < shape.size(); ++i) inner *= static_cast<size_t>(shape[i]);
    const auto place = [inner](size_t row, size_t c) { return row / inner * kCols * inner + c * inner + row % inner; };
    const auto in_shape = [&](const std::vector<double> &matrix) {
      std::vector<double> numbers(matrix.size());
      for (size_t i = 0; i < matrix.size(); ++i) numbers[place(i / kCols, i % kCols)] = matrix[i];
      return numbers;
    };
    student_path_ = Write("student.npy", NpyOf("<f8", shape, in_shape(student_)));
    teacher_path_ = Write("teacher.npy", NpyOf("<f8", shape, in_shape(teacher_)));
    const std::string weights = Write("row.npy", NpyOf("<f8", rows, row_weights_));
    const Result got = Divergence(Joined(Joined(outputs, {weights}), flags));
    ExpectSuccess(got);
    ExpectClose(JsonNumber(got.out, "loss"), JsonNumber(want.out, "loss"));
    ExpectClose(NumbersIn(Path("losses.npy"), "<f8", Tuple(rows)),
                std::vector<long double>(losses.begin(), losses.end()));
    const std::vector<double> moved = in_shape(gradient);
    ExpectClose(NumbersIn(Path("grad.npy"), "<f8", Tuple(shape)), std::vector<long double>(moved.begin(), moved.end()));
    const std::string file = ReadFile(Path("grad.npy"));
    EXPECT_TRUE(Divergence(Joined({"--grad", "/dev/stdout", "--row-weights", weights}, flags)).out == file);
  };
  expect({kCols, kRows}, {kRows}, {"--class-axis", "0"});
  expect({2, kCols, 3}, {2, 3}, {});
  expect({2, 3, kCols}, {2, 3}, {"--class-axis=-1"});
}

TEST_F(DivergenceTest, OneRow) {
  const double want = JsonNumber(Divergence({"--per-row", Path("losses.npy")}).out, "rows");
  ASSERT_EQ(want, 6);
  const std::vector<double> losses = NumbersIn(Path("losses.npy"), "<f8", "(6,)");
  student_path_ = Write("student.npy", NpyOf("<f8", {kCols}, RowIn(student_, kCols, 0)));
  teacher_path_ = Write("teacher.npy", NpyOf("<f8", {kCols}, RowIn(teacher_, kCols, 0)));
  ExpectClose(JsonNumber(Divergence({}).out, "loss"), losses[0]);
}

// Rows of more than one batch of 8 MB.
TEST_F(DivergenceTest, InPlaceGivesTheSameBytes) {
  constexpr int64_t kManyRows = 300'000, kNarrow = 9;
  Random random(5);
  for (std::string *path : {&student_path_, &teacher_path_}) {
    std::vector<float> logits(kManyRows * kNarrow);
    for (float &logit : logits) logit = static_cast<float>(random.Uniform(-6, 6));
    WriteFile(*path, Npy("<f4", {kManyRows, kNarrow}, Bytes(logits)));
  }
  std::vector<float> weights(kManyRows);
  for (float &weight : weights) weight = static_cast<float>(random.Uniform(0, 2));
  const std::string rows = Write("row.npy", Npy("<f4", {kManyRows}, Bytes(weights)));
  for (const Words &options : {Words{}, {"--reduction", "sum"}, {"--divisor", "7"}, {"--row-weights", rows}}) {
    ExpectSuccess(Divergence(Joined(options, {"--grad", Path("file.npy")})));
    EXPECT_TRUE(Divergence(Joined(options, {"--grad", "/dev/stdout"})).out == ReadFile(Path("file.npy")))
        << ::testing::PrintToString(options);
  }
}

TEST_F(DivergenceTest, Reductions) {
  const double mean = JsonNumber(Divergence({}).out, "loss");
  ExpectClose(JsonNumber(Divergence({"--reduction", "sum"}).out, "loss"), mean * 6);
  ExpectClose(JsonNumber(Divergence({"--divisor", "2.5"}).out, "loss"), mean * 6 / 2.5L);
  EXPECT_EQ(JsonText(Divergence({"--reduction", "none"}).out, "loss"), "null");
  student_path_ = Write("student.npy", NpyOf("<f8", {0, kCols}, {}));
  teacher_path_ = Write("teacher.npy", NpyOf("<f8", {0, kCols}, {}));
  EXPECT_EQ(JsonText(Divergence({}).out, "loss"), "\"nan\"");
  EXPECT_EQ(JsonText(Divergence({"--empty-mean", "zero"}).out, "loss"), "0");
}

// Any dtype beside any other; the student's decides.
TEST_F(DivergenceTest, Dtypes) {
  const double wanted = JsonNumber(Divergence({}).out, "loss");
  for (const Dtype &student : kDtypes) {
    for (const Dtype &teacher : kDtypes) {
      SCOPED_TRACE(std::string(student.descr) + " and " + teacher.descr);
      student_path_ = Write("student.npy", NpyOf(student.descr, {kRows, kCols}, student_));
      teacher_path_ = Write("teacher.npy", NpyOf(teacher.descr, {kRows, kCols}, teacher_));
      const Result result = Divergence({"--per-row", Path("losses.npy"), "--grad", Path("grad.npy"), "--threads", "3"});
      ExpectSuccess(result);
      EXPECT_NEAR(JsonNumber(result.out, "loss"), wanted, 1e-6 * wanted);
      NumbersIn(Path("losses.npy"), student.arithmetic, "(6,)");
      NumbersIn(Path("grad.npy"), student.descr, "(6, 5)");
      EXPECT_EQ(JsonText(result.out, "threads"), "3");
    }
  }
}

TEST_F(DivergenceTest, WrongInputs) {
  const std::string wrong = Write("wrong.npy", NpyOf("<f8", {kCols, kRows}, teacher_));
  ExpectFailure(Xent({"divergence", student_path_, wrong}), 1,
                wrong + ": the shape is (5, 6), expected (6, 5), that of " + student_path_);
  const std::string scalar = Write("scalar.npy", NpyOf("<f8", {}, {1}));
  ExpectFailure(Xent({"divergence", scalar, scalar}), 1, "expected logits [rows, columns]");
  ExpectFailure(Divergence({"--valid-cols", "6"}), 1, student_path_ + ": --valid-cols is 6, expected at most 5");
  ExpectFailure(Divergence({"--class-axis", "2"}), 1,
                student_path_ + ": the shape is (6, 5), which has no dimension 2");
  const std::string weights = Write("weights.npy", NpyOf("<f8", {kCols}, {1, 2, 3, 4, 5}));
  ExpectFailure(Divergence({"--row-weights", weights}), 1,
                weights + ": the shape is (5,), expected (6,): " + student_path_ + " has that many rows");
  const std::string infinite = Write("weights.npy", NpyOf("<f8", {kRows}, {1, 2, 3, 4, 5, kInf}));
  ExpectFailure(Divergence({"--row-weights", infinite}), 1, infinite + ": row weight 5 is inf, expected");
  ExpectFailure(Divergence({"--row-weights", row_weights_path_, "--grad", row_weights_path_}), 1,
                "is the same file as the input " + row_weights_path_);
  ExpectFailure(Divergence({"--grad", teacher_path_}), 1, "is the same file as the input " + teacher_path_);
  ExpectFailure(Xent({"divergence", student_path_, Path("none.npy")}), 1, "cannot read " + Path("none.npy"));
}

TEST_F(DivergenceTest, WrongUsage) {
  const std::vector<std::pair<Words, std::string>> cases = {
      {{"--beta", "0.25"}, "--beta: only with --kind js"},
      {{"--kind", "forward-kl", "--beta", "0.5"}, "--beta: only with --kind js"},
      {{"--kind", "js", "--beta", "0"}, "--beta"},
      {{"--kind", "js", "--beta", "1"}, "--beta"},
      {{"--kind", "js", "--beta", "nan"}, "--beta"},
      {{"--kind", "kl"}, "--kind"},
      {{"--temperature", "0"}, "--temperature"},
      {{"--temperature", "inf"}, "--temperature"},
      {{"--reduction", "none", "--divisor", "2"}, "--divisor"},
      {{"--lse", "x.npy"}, "--lse"},
  };
  for (const auto &[options, part] : cases) {
    SCOPED_TRACE(::testing::PrintToString(options));
    ExpectFailure(Divergence(options), 2, part);
  }
  ExpectFailure(Xent({"divergence", student_path_}), 2, "TEACHER.npy");
  ExpectFailure(Xent({"divergence"}), 2, "STUDENT.npy");
}

}  // namespace
}  // namespace xent_cli_test
