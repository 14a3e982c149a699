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
  }

  Result Divergence(const Words &options) {
    return Xent(Joined({"divergence", student_path_, teacher_path_, "--json"}, options));
  }

  void ExpectDivergence(xent_divergence_kind kind, const Words &flags, double beta = 0.5, double temperature = 1) {
    SCOPED_TRACE(::testing::PrintToString(flags));
    std::vector<long double> losses, gradient;
    long double sum = 0;
    for (size_t i = 0; i < kRows; ++i) {
      const reference::Divergence row =
          reference::EvaluateDivergence(RowIn(student_, kCols, i), RowIn(teacher_, kCols, i), kind, temperature, beta);
      losses.push_back(row.loss.exact);
      sum += row.loss.exact;
      for (const reference::Value &number : row.gradient) gradient.push_back(number.exact / kRows);
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

  std::vector<double> student_ = RandomNumbers(1, kRows *kCols), teacher_ = RandomNumbers(2, kRows *kCols);
  std::string student_path_, teacher_path_;
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

// Rows of more than one batch of 8 MB.
TEST_F(DivergenceTest, InPlaceGivesTheSameBytes) {
  constexpr int64_t kManyRows = 300'000, kNarrow = 9;
  Random random(5);
  for (std::string *path : {&student_path_, &teacher_path_}) {
    std::vector<float> logits(kManyRows * kNarrow);
    for (float &logit : logits) logit = static_cast<float>(random.Uniform(-6, 6));
    WriteFile(*path, Npy("<f4", {kManyRows, kNarrow}, Bytes(logits)));
  }
  for (const Words &options : {Words{}, {"--reduction", "sum"}, {"--divisor", "7"}}) {
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
  const std::string vector = Write("vector.npy", NpyOf("<f8", {kCols}, {1, 2, 3, 4, 5}));
  ExpectFailure(Xent({"divergence", vector, vector}), 1, "expected logits [rows, columns]");
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
