// `xent divergence` against the formulas in long double.
#include <cmath>
#include <string>
#include <vector>

#include "numbers.h"
#include "program.h"

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

  Result Divergence(const std::vector<std::string> &options) {
    std::vector<std::string> arguments = {"divergence", student_path_, teacher_path_, "--json"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    return Xent(arguments);
  }

  void ExpectDivergence(const std::string &kind, const std::vector<std::string> &flags, long double beta = 0.5,
                        long double temperature = 1) {
    SCOPED_TRACE(kind + ::testing::PrintToString(flags));
    std::vector<long double> losses, gradient;
    long double sum = 0;
    for (size_t i = 0; i < kRows; ++i) {
      const RowOptions options = {.scale = 1 / temperature};
      const auto log_q = RowOf(RowIn(student_, kCols, i), 0, options).log_p;
      const auto log_p = RowOf(RowIn(teacher_, kCols, i), 0, options).log_p;
      long double loss = 0, student_part = 0;
      std::vector<long double> log_m(kCols);
      for (size_t c = 0; c < kCols; ++c) {
        const long double p = std::exp(log_p[c]), q = std::exp(log_q[c]);
        log_m[c] = std::log(beta * p + (1 - beta) * q);
        student_part += q * (log_q[c] - log_m[c]);
        loss += kind == "forward-kl"   ? p * (log_p[c] - log_q[c])
                : kind == "reverse-kl" ? q * (log_q[c] - log_p[c])
                : kind == "js"         ? beta * p * (log_p[c] - log_m[c]) + (1 - beta) * q * (log_q[c] - log_m[c])
                                       : -p * log_q[c];
      }
      for (size_t c = 0; c < kCols; ++c) {
        const long double p = std::exp(log_p[c]), q = std::exp(log_q[c]);
        const long double by_logit = kind == "reverse-kl" ? q * (log_q[c] - log_p[c] - loss)
                                     : kind == "js"       ? (1 - beta) * q * (log_q[c] - log_m[c] - student_part)
                                                          : q - p;
        gradient.push_back(by_logit / temperature / kRows);
      }
      losses.push_back(loss);
      sum += loss;
    }
    std::vector<std::string> with_outputs = flags;
    with_outputs.insert(with_outputs.end(), {"--per-row", Path("losses.npy"), "--grad", Path("grad.npy")});
    const Result result = Divergence(with_outputs);
    ExpectSuccess(result);
    ExpectClose(JsonNumber(result.out, "loss"), sum / kRows);
    EXPECT_EQ(JsonText(result.out, "rows"), "6");
    ExpectClose(NumbersIn(Path("losses.npy"), "<f8", "(6,)"), losses);
    ExpectClose(NumbersIn(Path("grad.npy"), "<f8", "(6, 5)"), gradient);
    std::vector<std::string> in_place = flags;
    in_place.insert(in_place.end(), {"--grad", "/dev/stdout"});
    EXPECT_TRUE(Divergence(in_place).out == ReadFile(Path("grad.npy")));
    in_place[in_place.size() - 2] = "--per-row";
    EXPECT_TRUE(Divergence(in_place).out == ReadFile(Path("losses.npy")));
  }

  std::vector<double> student_ = RandomNumbers(1, kRows *kCols), teacher_ = RandomNumbers(2, kRows *kCols);
  std::string student_path_, teacher_path_;
};

TEST_F(DivergenceTest, Kinds) {
  ExpectDivergence("forward-kl", {});
  for (const char *kind : {"forward-kl", "reverse-kl", "js", "cross-entropy"}) {
    ExpectDivergence(kind, {"--kind", kind});
    ExpectDivergence(kind, {"--kind", kind, "--temperature", "2.5"}, 0.5, 2.5);
  }
  ExpectDivergence("js", {"--kind", "js", "--beta", "0.125"}, 0.125);
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
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
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
