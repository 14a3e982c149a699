// xent_check_logits, the diagnosis of a softmax too many: each rule of semantics.md, "Double softmax", and both sides
// of its tolerance. All values are chosen exact, or close enough that a rounding to the dtype does not move them across
// a border.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

class CheckLogits : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  template <typename M>
  static xent_diagnosis Check(const M &x, int64_t inner = 0) {
    xent_diagnosis diagnosis = static_cast<xent_diagnosis>(3);
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(xent_check_logits(x.rows(), x.cols(), inner, View(x), &diagnosis, nullptr, &error), XENT_OK)
        << error.message;
    return diagnosis;
  }
  xent_diagnosis Check(const LossCall::Rows &rows) { return Check(MatrixOf(dtype(), rows)); }
};

TEST_P(CheckLogits, OrdinaryLogits) {
  LossCall call(dtype(), 20, 300);
  call.FillNormal(1, 4);
  EXPECT_EQ(Check(call.logits), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{2, 1, 0.125}, {0.5, 0.25, 0.25}}), XENT_DIAGNOSIS_LOGITS);
}

TEST_P(CheckLogits, OutputOfSoftmax) {
  for (const int64_t cols : {2, 10, 1000}) {
    LossCall call(dtype(), 20, cols);
    call.FillNormal(2, 2);
    Matrix y(dtype(), 20, cols);
    ASSERT_EQ(xent_softmax(20, cols, 0, View(call.logits), View(y), nullptr, nullptr), XENT_OK);
    EXPECT_EQ(Check(y), XENT_DIAGNOSIS_PROBABILITIES) << cols;
    EXPECT_EQ(Check(call.logits), XENT_DIAGNOSIS_LOGITS) << cols;
  }
}

// In every layout a subnormal number counts as 0, whatever its sign. (Those of float16 are normal ones of float32.)
TEST_P(CheckLogits, SubnormalsCountAsZeroInEveryLayout) {
  const double tiny = dtype() == XENT_F64 ? 0x1p-1040 : dtype() == XENT_F16 ? 0.0 : 0x1p-130;
  EXPECT_EQ(Check({{1, -tiny}, {1, -tiny}}), XENT_DIAGNOSIS_PROBABILITIES);
  const Matrix classes = MatrixOf(dtype(), {{1, 1, -tiny, -tiny}});
  xent_diagnosis diagnosis = static_cast<xent_diagnosis>(3);
  EXPECT_EQ(xent_check_logits(2, 2, 2, View(classes), &diagnosis, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(diagnosis, XENT_DIAGNOSIS_PROBABILITIES);
}

// A pool that runs nothing leaves the matrix unread, and the diagnosis as it is for no rows.
TEST_P(CheckLogits, IncompleteCallsSayNothing) {
  const Matrix x = MatrixOf(dtype(), std::vector<std::vector<double>>(2000, std::vector<double>(64, 1.0 / 64)));
  xent_exec exec = XENT_EXEC_INIT;
  exec.threads = 2;
  exec.parallel_for = [](void *, int64_t, xent_task, void *) {};
  xent_diagnosis diagnosis = static_cast<xent_diagnosis>(3);
  EXPECT_EQ(xent_check_logits(2000, 64, 0, View(x), &diagnosis, &exec, nullptr), XENT_INCOMPLETE);
  EXPECT_EQ(diagnosis, XENT_DIAGNOSIS_LOGITS);
}

TEST_P(CheckLogits, OutputOfLogSoftmax) {
  for (const int64_t cols : {2, 10, 1000}) {
    LossCall call(dtype(), 20, cols);
    call.FillNormal(3, 1);
    Matrix y(dtype(), 20, cols);
    ASSERT_EQ(xent_log_softmax(20, cols, 0, View(call.logits), View(y), nullptr, nullptr), XENT_OK);
    // In half precision each of the log-probabilities is off by up to half an ULP, so the row's lse by up to as much:
    // at 8 that is 2^-9 for float16, more than 1e-3, so narrow rows only.
    if (reference::FormatOf(dtype()).bytes == 2 && cols > 2) continue;
    EXPECT_EQ(Check(y), XENT_DIAGNOSIS_LOG_PROBABILITIES) << cols;
  }
}

TEST_P(CheckLogits, OneHotRowsAreProbabilities) {
  EXPECT_EQ(Check({{0, 1, 0}, {1, 0, 0}}), XENT_DIAGNOSIS_PROBABILITIES);
  EXPECT_EQ(Check({{-0.0, 1, -0.0}}), XENT_DIAGNOSIS_PROBABILITIES);
}

TEST_P(CheckLogits, LogsOfOneHotRowsAreLogProbabilities) {
  EXPECT_EQ(Check({{-kInf, 0, -kInf}, {0, -kInf, -kInf}}), XENT_DIAGNOSIS_LOG_PROBABILITIES);
}

TEST_P(CheckLogits, SumsWithinTheTolerance) {
  // 2^-7 for bfloat16, 1e-3 for the others: a half plus the next numbers below and above a half plus the tolerance.
  if (dtype() == XENT_BF16) {
    EXPECT_EQ(Check({{0.5, 0.50390625}}), XENT_DIAGNOSIS_PROBABILITIES);   // 1 + 2^-8
    EXPECT_EQ(Check({{0.5, 0.494140625}}), XENT_DIAGNOSIS_PROBABILITIES);  // 1 - 3/512
    EXPECT_EQ(Check({{0.5, 0.51171875}}), XENT_DIAGNOSIS_LOGITS);          // 1 + 3/256
    EXPECT_EQ(Check({{0.5, 0.490234375}}), XENT_DIAGNOSIS_LOGITS);         // 1 - 5/512
  } else {
    EXPECT_EQ(Check({{0.5, 0.50048828125}}), XENT_DIAGNOSIS_PROBABILITIES);   // 1 + 2^-11
    EXPECT_EQ(Check({{0.5, 0.499267578125}}), XENT_DIAGNOSIS_PROBABILITIES);  // 1 - 3/4096
    EXPECT_EQ(Check({{0.5, 0.50146484375}}), XENT_DIAGNOSIS_LOGITS);          // 1 + 3/2048
    EXPECT_EQ(Check({{0.5, 0.498779296875}}), XENT_DIAGNOSIS_LOGITS);         // 1 - 5/4096
  }
  if (dtype() == XENT_F32 || dtype() == XENT_F64) {
    EXPECT_EQ(Check({{0.5, 0.5009990}}), XENT_DIAGNOSIS_PROBABILITIES);
    EXPECT_EQ(Check({{0.5, 0.4990010}}), XENT_DIAGNOSIS_PROBABILITIES);
    EXPECT_EQ(Check({{0.5, 0.5010010}}), XENT_DIAGNOSIS_LOGITS);
    EXPECT_EQ(Check({{0.5, 0.4989990}}), XENT_DIAGNOSIS_LOGITS);
  }
}

TEST_P(CheckLogits, LogSumExpsWithinTheTolerance) {
  // A row {x, -inf} has lse x.
  const double inside = dtype() == XENT_BF16 ? 0.0077 : 0.000999;
  const double outside = dtype() == XENT_BF16 ? 0.0079 : 0.001001;
  for (const double sign : {1.0, -1.0}) {
    EXPECT_EQ(Check({{sign * inside, -kInf}}), XENT_DIAGNOSIS_LOG_PROBABILITIES) << sign;
    EXPECT_EQ(Check({{sign * outside, -kInf}}), XENT_DIAGNOSIS_LOGITS) << sign;
  }
}

TEST_P(CheckLogits, EveryValueMustBeInZeroToOne) {
  // The sums are 1 in each row.
  EXPECT_EQ(Check({{0.5, 0.5, 0}, {1.25, -0.25, 0}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{0.5, 0.5, 0}, {-0.0625, 1, 0.0625}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{0.5, 0.5, 0}, {1, 0, 0}}), XENT_DIAGNOSIS_PROBABILITIES);
}

TEST_P(CheckLogits, EveryRowMustSumToOne) {
  EXPECT_EQ(Check({{0.5, 0.5}, {0.25, 0.5}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{0.25, 0.5}, {0.5, 0.5}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{0, 0}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{1, 1}}), XENT_DIAGNOSIS_LOGITS);
}

TEST_P(CheckLogits, EveryRowsLogSumExpMustBeNearZero) {
  EXPECT_EQ(Check({{0, -kInf}, {1, -kInf}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{-1, -kInf}, {0, -kInf}}), XENT_DIAGNOSIS_LOGITS);
}

TEST_P(CheckLogits, RowsOfBothKindsAreNeither) {
  EXPECT_EQ(Check({{0.5, 0.5}, {-kInf, 0}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{-kInf, 0}, {0.5, 0.5}}), XENT_DIAGNOSIS_LOGITS);
}

TEST_P(CheckLogits, OneOddRowOrValueAmongMany) {
  Matrix x(dtype(), 300, 2000);
  for (int64_t i = 0; i < 300; ++i) {
    for (int64_t j = 0; j < 2000; ++j) x.Set(i, j, j % 125 == 7 ? 0.0625 : 0);
  }
  EXPECT_EQ(Check(x), XENT_DIAGNOSIS_PROBABILITIES);
  for (const int64_t i : {0, 150, 299}) {
    for (const int64_t j : {0, 1023, 1999}) {
      for (const double odd : {-0.5, 1.5, kNan, kInf, -kInf}) {
        const double before = x.Get(i, j);
        x.Set(i, j, odd);
        EXPECT_EQ(Check(x), XENT_DIAGNOSIS_LOGITS) << i << " " << j << " " << odd;
        x.Set(i, j, before);
      }
      // Below 0, with the sum made good beside it.
      x.Set(i, j, -0.0625);
      x.Set(i, (j + 1) % 2000, 0.0625);
      EXPECT_EQ(Check(x), XENT_DIAGNOSIS_LOGITS) << i << " " << j;
      x.Set(i, j, 0);
      x.Set(i, (j + 1) % 2000, 0);
    }
  }
}

TEST_P(CheckLogits, LongRowsSumWithoutDrift) {
  // 100000 times 2^-17 and the rest in one place: added up in float32 or narrower this would drift past the tolerance.
  Matrix x(dtype(), 1, 100001);
  for (int64_t j = 0; j < 100000; ++j) x.Set(0, j, 0x1p-17);
  x.Set(0, 100000, 0.236328125);  // sum 0.99926
  EXPECT_EQ(Check(x), XENT_DIAGNOSIS_PROBABILITIES);
}

TEST_P(CheckLogits, NoRows) {
  EXPECT_EQ(Check(Matrix(dtype(), 0, 5)), XENT_DIAGNOSIS_LOGITS);
  xent_diagnosis diagnosis = XENT_DIAGNOSIS_PROBABILITIES;
  EXPECT_EQ(xent_check_logits(0, 5, 0, {nullptr, 0, dtype(), 0}, &diagnosis, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(diagnosis, XENT_DIAGNOSIS_LOGITS);
}

TEST_P(CheckLogits, OneColumn) {
  EXPECT_EQ(Check({{1}, {1}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{0}, {0}}), XENT_DIAGNOSIS_LOGITS);
}

TEST_P(CheckLogits, NanAndInfinity) {
  EXPECT_EQ(Check({{0.5, 0.5}, {kNan, 1}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{kNan, 1}, {0.5, 0.5}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{0, -kInf}, {0, kNan}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{kInf, 0}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{-kInf, -kInf}}), XENT_DIAGNOSIS_LOGITS);
  EXPECT_EQ(Check({{-kInf, 1}}), XENT_DIAGNOSIS_LOGITS);
}

TEST_P(CheckLogits, PaddingIsNotRead) {
  // It is signalling NaN.
  const Matrix x = MatrixOf(dtype(), {{0.5, 0.5}, {0.25, 0.75}}, 5);
  EXPECT_EQ(Check(x), XENT_DIAGNOSIS_PROBABILITIES);
  EXPECT_TRUE(x.PaddingIntact());
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CheckLogits, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

}  // namespace
}  // namespace xent::test
