// Options, weights and logits at the ends of their types' ranges: results stay those of the formulas where a
// straightforward product or quotient on the way would overflow, be flushed, or trap. Expected values are closed forms,
// in double; the tolerance of 1e-6 (1e-14 for float64) is far below what any of these defects did.
#include <gtest/gtest.h>

#include <cfenv>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "xent/xent.h"

namespace xent::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
constexpr xent_dtype kDtype = sizeof(T) == 8 ? XENT_F64 : XENT_F32;
template <class T>
constexpr double kTolerance = sizeof(T) == 8 ? 1e-14 : 1e-6;

// One row, target 0, reduction sum.
template <class T>
struct OneRow {
  explicit OneRow(std::vector<T> z) : logits(std::move(z)), grad(logits.size()) {
    options.reduction.kind = XENT_REDUCTION_SUM;
    args.rows = 1;
    args.cols = static_cast<int64_t>(logits.size());
    args.logits = {.data = logits.data(), .stride = 0, .dtype = kDtype<T>, .reserved = 0};
    args.targets.data = &target;
    args.reduced_loss = &loss;
    statistics.lse = &lse;
    args.statistics = &statistics;
    args.grad = {.data = grad.data(), .stride = 0, .dtype = kDtype<T>, .reserved = 0};
  }
  OneRow(const OneRow &) = delete;
  OneRow &operator=(const OneRow &) = delete;
  xent_status Run() { return xent_cross_entropy_forward_backward(&args, &options, nullptr, &error); }

  std::vector<T> logits, grad;
  int64_t target = 0;
  T loss = -1, lse = -1;
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  xent_statistics statistics = XENT_STATISTICS_INIT;
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  xent_error error = XENT_ERROR_INIT;
};

template <class T>
class Range : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Range, Types);

TYPED_TEST(Range, SoftcapSoLargeThatItDoesNothing) {
  for (const double cap : {1e30, 1e299, 1e301, DBL_MAX}) {
    OneRow<TypeParam> row({1, 2, 3});
    row.options.softcap = cap;
    ASSERT_EQ(row.Run(), XENT_OK);
    const double lse = std::log(std::exp(1.0) + std::exp(2.0) + std::exp(3.0));
    EXPECT_NEAR(row.loss, lse - 1, 4 * kTolerance<TypeParam>) << cap;
    EXPECT_NEAR(row.lse, lse, 4 * kTolerance<TypeParam>) << cap;
    EXPECT_NEAR(row.grad[1], std::exp(2 - lse), kTolerance<TypeParam>) << cap;
  }
}

TYPED_TEST(Range, SubnormalSoftcapIsACapAllTheSame) {
  OneRow<TypeParam> row({0, 2, 3});
  row.options.softcap = 1e-310;
  ASSERT_EQ(row.Run(), XENT_OK);
  EXPECT_NEAR(row.loss, std::log(3.0), 2 * kTolerance<TypeParam>);
}

TYPED_TEST(Range, ScaleOverCapPastTheLargestDouble) {
  OneRow<TypeParam> row({0, 2, 3});
  row.options.logit_scale = 1e308;
  row.options.softcap = 30;
  ASSERT_EQ(row.Run(), XENT_OK);
  EXPECT_NEAR(row.loss, 30 + std::log(2.0), 40 * kTolerance<TypeParam>);
  EXPECT_EQ(row.grad[1], 0);
  EXPECT_FALSE(std::isnan(row.grad[0]));
}

TYPED_TEST(Range, SubnormalLogitsHaveAnOrder) {
  const TypeParam unit = std::numeric_limits<TypeParam>::denorm_min();
  for (const int64_t inner : {1, 2}) {
    std::vector<TypeParam> z = {0, 5 * unit, 3 * unit, 4 * unit};
    if (inner == 2) z = {0, 0, 5 * unit, 5 * unit, 3 * unit, 3 * unit, 4 * unit, 4 * unit};
    const std::vector<int64_t> targets(static_cast<size_t>(inner), 2);
    std::vector<int64_t> argmax(static_cast<size_t>(inner)), rank(argmax), top(static_cast<size_t>(4 * inner));
    xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
    args.rows = args.inner = inner;
    args.cols = 4;
    args.logits = {.data = z.data(), .stride = 0, .dtype = kDtype<TypeParam>, .reserved = 0};
    args.targets.data = targets.data();
    xent_statistics statistics = XENT_STATISTICS_INIT;
    statistics.argmax = argmax.data();
    statistics.rank = rank.data();
    statistics.top_k = 4;
    statistics.topk_indices = top.data();
    args.statistics = &statistics;
    ASSERT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, nullptr), XENT_OK);
    EXPECT_EQ(argmax[0], 1);
    EXPECT_EQ(rank[0], 2);
    EXPECT_EQ(std::vector<int64_t>(top.begin(), top.begin() + 4), (std::vector<int64_t>{1, 3, 2, 0}));
  }
}

TYPED_TEST(Range, UpstreamAndDivisorPastTheRangeTogether) {
  OneRow<TypeParam> row({0, 1, static_cast<TypeParam>(-kInfinity)});
  row.options.softcap = 30;
  row.options.reduction.divisor = 1e-310;
  ASSERT_EQ(row.Run(), XENT_OK);
  EXPECT_EQ(row.grad[0], -kInfinity);
  EXPECT_EQ(row.grad[1], kInfinity);
  EXPECT_EQ(row.grad[2], 0);
}

TEST(RangeOfFloat64, FactorsWhoseProductsPartsOverflow) {
  const double weight = 1e301;
  for (const bool smoothed : {false, true}) {
    OneRow<double> row({0, 0});
    std::vector<double> class_weights = {1, 1};
    row.args.row_weights = &weight;
    if (smoothed) {
      row.options.label_smoothing = 0.5;
      row.args.class_weights = class_weights.data();
    }
    ASSERT_EQ(row.Run(), XENT_OK);
    EXPECT_NEAR(row.loss / 1e301, std::log(2.0), 1e-14);
    EXPECT_NEAR(row.grad[1] / 1e301, smoothed ? 0.25 : 0.5, 1e-14);
  }
  OneRow<double> row({0, 0});
  row.options.z_loss = 1e300;
  ASSERT_EQ(row.Run(), XENT_OK);
  EXPECT_NEAR(row.loss / 1e300, std::log(2.0) * std::log(2.0), 1e-14);
  EXPECT_NEAR(row.grad[0] / 1e300, std::log(2.0), 1e-14);
}

TEST(RangeOfFloat64, TinyLossesWithOptions) {
  OneRow<double> row({680, 0});
  row.options.softcap = 1e5;
  ASSERT_EQ(row.Run(), XENT_OK);
  const double z = 1e5 * std::tanh(680 / 1e5);
  EXPECT_NEAR(row.loss / std::exp(-z), 1, 1e-10);  // z' within 2 ULP moves e^-z' by 680 of them
}

TEST(RangeOfArguments, GatherCountWithoutArrays) {
  OneRow<float> row({1, 3, 2});
  int64_t argmax = -7;
  row.statistics.argmax = &argmax;
  row.statistics.gather_count = 5;
  ASSERT_EQ(row.Run(), XENT_OK);
  EXPECT_EQ(argmax, 1);
}

#if defined(__GLIBC__) && defined(__x86_64__)
TEST(RangeOfArguments, ChecksDoNotTrap) {
  OneRow<float> row({1, 2});
  row.options.logit_scale = kInfinity;
  std::feclearexcept(FE_ALL_EXCEPT);
  feenableexcept(FE_INVALID | FE_OVERFLOW | FE_DIVBYZERO);
  const xent_status status = row.Run();
  fedisableexcept(FE_ALL_EXCEPT);
  EXPECT_EQ(status, XENT_INVALID_ARGUMENT);
  EXPECT_EQ(std::fetestexcept(FE_ALL_EXCEPT), 0);
}
#endif

}  // namespace
}  // namespace xent::test
