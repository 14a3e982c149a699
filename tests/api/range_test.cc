// Options, weights and logits at the ends of their types' ranges: results stay those of the formulas where a
// straightforward product or quotient on the way would overflow, be flushed, or trap. Expected values are closed forms,
// in double; the tolerance of 1e-6 (1e-14 for float64) is far below what any of these defects did.
#include <gtest/gtest.h>

#include <cfenv>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

double Tolerance(xent_dtype dtype) { return dtype == XENT_F64 ? 1e-14 : 1e-6; }

// One row, target 0, reduction sum.
LossCall OneRow(xent_dtype dtype, const std::vector<double> &logits) {
  LossCall call(dtype, {logits}, {0});
  call.options.reduction.kind = XENT_REDUCTION_SUM;
  return call;
}

class Range : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }
  double tolerance() const { return Tolerance(dtype()); }
};

TEST_P(Range, SoftcapSoLargeThatItDoesNothing) {
  for (const double cap : {1e30, 1e299, 1e301, DBL_MAX}) {
    LossCall row = OneRow(dtype(), {1, 2, 3});
    row.options.softcap = cap;
    ASSERT_EQ(row.ForwardBackward(), XENT_OK) << row.error.message;
    const double lse = std::log(std::exp(1.0) + std::exp(2.0) + std::exp(3.0));
    EXPECT_NEAR(row.reduced_loss.Get(0, 0), lse - 1, 4 * tolerance()) << cap;
    EXPECT_NEAR(row.lse.Get(0, 0), lse, 4 * tolerance()) << cap;
    EXPECT_NEAR(row.grad.Get(0, 1), std::exp(2 - lse), tolerance()) << cap;
  }
}

TEST_P(Range, SubnormalSoftcapIsACapAllTheSame) {
  LossCall row = OneRow(dtype(), {0, 2, 3});
  row.options.softcap = 1e-310;
  ASSERT_EQ(row.ForwardBackward(), XENT_OK) << row.error.message;
  EXPECT_NEAR(row.reduced_loss.Get(0, 0), std::log(3.0), 2 * tolerance());
}

TEST_P(Range, ScaleOverCapPastTheLargestDouble) {
  LossCall row = OneRow(dtype(), {0, 2, 3});
  row.options.logit_scale = 1e308;
  row.options.softcap = 30;
  ASSERT_EQ(row.ForwardBackward(), XENT_OK) << row.error.message;
  EXPECT_NEAR(row.reduced_loss.Get(0, 0), 30 + std::log(2.0), 40 * tolerance());
  EXPECT_EQ(row.grad.Get(0, 1), 0);
  EXPECT_FALSE(std::isnan(row.grad.Get(0, 0)));
}

TEST_P(Range, SubnormalLogitsHaveAnOrder) {
  const double unit = reference::Decode(dtype(), 1);
  constexpr double kSteps[] = {0, 5, 3, 4};
  for (const int64_t inner : {1, 2}) {
    LossCall call(dtype(), inner, 4, inner);
    for (int64_t i = 0; i < inner; ++i) {
      for (int64_t c = 0; c < 4; ++c) call.logits.Set(i, c, kSteps[c] * unit);
      call.targets[static_cast<size_t>(i)] = 2;
    }
    call.WantEveryStatistic();
    call.top_k = 4;
    ASSERT_EQ(call.Forward(), XENT_OK) << call.error.message;
    EXPECT_EQ(call.argmax[0], 1);
    EXPECT_EQ(call.rank[0], 2);
    EXPECT_EQ(std::vector<int64_t>(call.topk_indices.begin(), call.topk_indices.begin() + 4),
              (std::vector<int64_t>{1, 3, 2, 0}));
  }
}

TEST_P(Range, UpstreamAndDivisorPastTheRangeTogether) {
  LossCall row = OneRow(dtype(), {0, 1, -kInf});
  row.options.softcap = 30;
  row.options.reduction.divisor = 1e-310;
  ASSERT_EQ(row.ForwardBackward(), XENT_OK) << row.error.message;
  EXPECT_EQ(row.grad.Get(0, 0), -kInf);
  EXPECT_EQ(row.grad.Get(0, 1), kInf);
  EXPECT_EQ(row.grad.Get(0, 2), 0);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Range, ::testing::Values(XENT_F32, XENT_F64),
                         [](const auto &info) { return reference::NameOf(info.param); });

TEST(RangeOfFloat64, FactorsWhoseProductsPartsOverflow) {
  for (const bool smoothed : {false, true}) {
    LossCall row = OneRow(XENT_F64, {0, 0});
    row.SetRowWeights({1e301});
    if (smoothed) {
      row.options.label_smoothing = 0.5;
      row.SetClassWeights({1, 1});
    }
    ASSERT_EQ(row.ForwardBackward(), XENT_OK) << row.error.message;
    EXPECT_NEAR(row.reduced_loss.Get(0, 0) / 1e301, std::log(2.0), 1e-14);
    EXPECT_NEAR(row.grad.Get(0, 1) / 1e301, smoothed ? 0.25 : 0.5, 1e-14);
  }
  LossCall row = OneRow(XENT_F64, {0, 0});
  row.options.z_loss = 1e300;
  ASSERT_EQ(row.ForwardBackward(), XENT_OK) << row.error.message;
  EXPECT_NEAR(row.reduced_loss.Get(0, 0) / 1e300, std::log(2.0) * std::log(2.0), 1e-14);
  EXPECT_NEAR(row.grad.Get(0, 0) / 1e300, std::log(2.0), 1e-14);
}

TEST(RangeOfFloat64, TinyLossesWithOptions) {
  LossCall row = OneRow(XENT_F64, {680, 0});
  row.options.softcap = 1e5;
  ASSERT_EQ(row.ForwardBackward(), XENT_OK) << row.error.message;
  const double z = 1e5 * std::tanh(680 / 1e5);
  EXPECT_NEAR(row.reduced_loss.Get(0, 0) / std::exp(-z), 1, 1e-10);  // z' within 2 ULP moves e^-z' by 680 of them
}

TEST(RangeOfArguments, GatherCountWithoutArrays) {
  LossCall row = OneRow(XENT_F32, {1, 3, 2});
  row.wants_argmax = true;
  const xent_cross_entropy args = row.Args(Function::kForwardBackward);
  row.statistics.gather_count = 5;
  ASSERT_EQ(xent_cross_entropy_forward_backward(&args, &row.options, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(row.argmax[0], 1);
}

#if defined(__GLIBC__) && defined(__x86_64__)
TEST(RangeOfArguments, ChecksDoNotTrap) {
  LossCall row = OneRow(XENT_F32, {1, 2});
  row.options.logit_scale = kInf;
  const xent_cross_entropy args = row.Args(Function::kForwardBackward);
  std::feclearexcept(FE_ALL_EXCEPT);
  feenableexcept(FE_INVALID | FE_OVERFLOW | FE_DIVBYZERO);
  const xent_status status = xent_cross_entropy_forward_backward(&args, &row.options, nullptr, nullptr);
  fedisableexcept(FE_ALL_EXCEPT);
  EXPECT_EQ(status, XENT_INVALID_ARGUMENT);
  EXPECT_EQ(std::fetestexcept(FE_ALL_EXCEPT), 0);
}
#endif

}  // namespace
}  // namespace xent::test
