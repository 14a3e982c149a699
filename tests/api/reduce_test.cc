// xent_reduce over losses stored earlier: exact sums where they exist, the reference within 4 ULP of the sum of
// magnitudes elsewhere, and every special value.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

class Reduce : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  // The reduced loss, a 1x1 matrix, of losses and targets (empty: null).
  Matrix Run(const std::vector<double> &losses, const std::vector<int64_t> &targets,
             const xent_cross_entropy_options &options) {
    const int64_t rows = static_cast<int64_t>(losses.size());
    Matrix stored(dtype(), 1, rows, std::max<int64_t>(rows, 1));
    for (int64_t i = 0; i < rows; ++i) stored.Set(0, i, losses[static_cast<size_t>(i)]);
    Matrix loss(dtype(), 1, 1);
    xent_error error = XENT_ERROR_INIT;
    const xent_stored_losses args = Args(stored, targets.empty() ? nullptr : targets.data(), XENT_I64, loss);
    EXPECT_EQ(xent_reduce(&args, &options, &error), XENT_OK) << error.message;
    EXPECT_TRUE(loss.PaddingIntact());
    return loss;
  }

  static xent_stored_losses Args(const Matrix &losses, const void *targets, xent_index_type type, Matrix &loss) {
    xent_stored_losses args = XENT_STORED_LOSSES_INIT;
    args.rows = losses.cols();
    args.row_losses = losses.data();
    args.targets = {.data = targets, .type = type, .reserved = 0};
    args.reduced_loss = loss.data();
    args.dtype = losses.dtype();
    return args;
  }
};

const xent_cross_entropy_options kSum = WithReduction(XENT_REDUCTION_SUM);
const xent_cross_entropy_options kMean = WithReduction(XENT_REDUCTION_MEAN);

xent_cross_entropy_options Divided(xent_reduction_kind reduction, double divisor) {
  xent_cross_entropy_options options = WithReduction(reduction);
  options.reduction.divisor = divisor;
  return options;
}

TEST_P(Reduce, IntegersSumExactly) {
  // 1 + 2 + ... + n, through every size of the groups that the sum is cut into.
  for (const int64_t n : {1, 2, 3, 8, 9, 16, 255, 256, 257, 511, 512, 513, 1000, 4096, 5000}) {
    std::vector<double> losses;
    for (int64_t i = 1; i <= n; ++i) losses.push_back(static_cast<double>(i));
    const double total = static_cast<double>(n * (n + 1) / 2);
    EXPECT_TRUE(Is(Run(losses, {}, kSum), 0, 0, total)) << n;
    EXPECT_TRUE(Is(Run(losses, {}, kMean), 0, 0, total / static_cast<double>(n))) << n;
    EXPECT_TRUE(Is(Run(losses, {}, Divided(XENT_REDUCTION_SUM, 4)), 0, 0, total / 4)) << n;
    EXPECT_TRUE(Is(Run(losses, {}, Divided(XENT_REDUCTION_MEAN, 4)), 0, 0, total / 4)) << n;
  }
}

TEST_P(Reduce, TheSumDoesNotRoundAlongTheWay) {
  // One loss at which the type's spacing is 2, then a thousand ones that would vanish one by one.
  const double big = dtype() == XENT_F64 ? 0x1p53 : 0x1p24;
  for (const bool first : {true, false}) {
    std::vector<double> losses(1000, 1.0);
    losses.insert(first ? losses.begin() : losses.end(), big);
    EXPECT_TRUE(Is(Run(losses, {}, kSum), 0, 0, big + 1000)) << first;
  }
}

TEST_P(Reduce, RandomLossesStayWithinTheBound) {
  Random random(5);
  for (const int64_t n : {1, 7, 256, 1000, 20000}) {
    std::vector<double> losses;
    std::vector<int64_t> targets;
    for (int64_t i = 0; i < n; ++i) {
      // Of many sizes and both signs, as stored.
      const double value = random.Normal(1) * std::ldexp(1.0, static_cast<int>(random.Below(40)) - 20);
      losses.push_back(reference::Decode(dtype(), reference::Encode(dtype(), value)));
      targets.push_back(random.Below(4) == 0 ? -100 : 3);
    }
    for (const xent_cross_entropy_options &options : {kSum, kMean, Divided(XENT_REDUCTION_MEAN, 17)}) {
      EXPECT_TRUE(Within(Run(losses, {}, options), 0, 0, reference::Reduce(losses, {}, options.reduction), kLossUlp))
          << n;
      EXPECT_TRUE(
          Within(Run(losses, targets, options), 0, 0, reference::Reduce(losses, targets, options.reduction), kLossUlp))
          << n;
    }
  }
}

TEST_P(Reduce, IgnoredRowsDoNotCount) {
  EXPECT_TRUE(Is(Run({1, 2, 0, 3}, {0, 1, -100, 7}, kMean), 0, 0, 2));
  EXPECT_TRUE(Is(Run({1, 2, 0, 3}, {0, 1, -100, 7}, kSum), 0, 0, 6));
  xent_cross_entropy_options options = kMean;
  options.ignore_index = 7;
  EXPECT_TRUE(Is(Run({1, 2, 3, 9}, {0, 1, -100, 7}, options), 0, 0, 2));
}

TEST_P(Reduce, LossesOfIgnoredRowsAreNotLookedAt) {
  EXPECT_TRUE(Is(Run({1, kNan, kInf, 3}, {0, -100, -100, 1}, kMean), 0, 0, 2));
  EXPECT_TRUE(Is(Run({1, 1000, 500, 3}, {0, -100, -100, 1}, kSum), 0, 0, 4));
}

TEST_P(Reduce, TargetsAreNotRangeChecked) { EXPECT_TRUE(Is(Run({1, 2, 3}, {-5, int64_t{1} << 50, 0}, kSum), 0, 0, 6)); }

TEST_P(Reduce, TargetsInt32) {
  const int32_t targets[] = {0, -100, 5};
  Matrix loss(dtype(), 1, 1);
  const Matrix losses = MatrixOf(dtype(), {{1, 2, 4}});
  const xent_stored_losses args = Args(losses, targets, XENT_I32, loss);
  ASSERT_EQ(xent_reduce(&args, &kSum, nullptr), XENT_OK);
  EXPECT_TRUE(Is(loss, 0, 0, 5));
}

TEST_P(Reduce, NullOptionsAreTheMean) {
  Matrix loss(dtype(), 1, 1);
  const Matrix losses = MatrixOf(dtype(), {{1, 2, 6}});
  const xent_stored_losses args = Args(losses, nullptr, XENT_I64, loss);
  ASSERT_EQ(xent_reduce(&args, nullptr, nullptr), XENT_OK);
  EXPECT_TRUE(Is(loss, 0, 0, 3));
}

TEST_P(Reduce, NoRows) {
  xent_cross_entropy_options zero = kMean;
  zero.reduction.empty_mean = XENT_EMPTY_MEAN_ZERO;
  EXPECT_TRUE(Is(Run({}, {}, kSum), 0, 0, 0));
  EXPECT_TRUE(Is(Run({}, {}, kMean), 0, 0, kNan));
  EXPECT_TRUE(Is(Run({}, {}, zero), 0, 0, 0));
  EXPECT_TRUE(Is(Run({}, {}, Divided(XENT_REDUCTION_MEAN, 3)), 0, 0, 0));
  Matrix loss(dtype(), 1, 1);
  xent_stored_losses args = XENT_STORED_LOSSES_INIT;
  args.reduced_loss = loss.data();
  args.dtype = dtype();
  EXPECT_EQ(xent_reduce(&args, &kSum, nullptr), XENT_OK);
  EXPECT_TRUE(Is(loss, 0, 0, 0));
}

TEST_P(Reduce, EveryRowIgnored) {
  xent_cross_entropy_options zero = kMean;
  zero.reduction.empty_mean = XENT_EMPTY_MEAN_ZERO;
  EXPECT_TRUE(Is(Run({0, 0}, {-100, -100}, kSum), 0, 0, 0));
  EXPECT_TRUE(Is(Run({0, 0}, {-100, -100}, kMean), 0, 0, kNan));
  EXPECT_TRUE(Is(Run({0, 0}, {-100, -100}, zero), 0, 0, 0));
  EXPECT_TRUE(Is(Run({0, 0}, {-100, -100}, Divided(XENT_REDUCTION_SUM, 3)), 0, 0, 0));
}

TEST_P(Reduce, InfinityAndNan) {
  // Where a sum carries its rounding error along, inf - inf must not make a NaN of an infinite sum.
  for (const xent_cross_entropy_options &options : {kSum, kMean, Divided(XENT_REDUCTION_SUM, 2)}) {
    EXPECT_TRUE(Is(Run({kInf, 1, 2}, {}, options), 0, 0, kInf));
    EXPECT_TRUE(Is(Run({1, 2, kInf}, {}, options), 0, 0, kInf));
    EXPECT_TRUE(Is(Run({kInf, kInf, 1}, {}, options), 0, 0, kInf));
    EXPECT_TRUE(Is(Run({-kInf, 1, 2}, {}, options), 0, 0, -kInf));
    EXPECT_TRUE(Is(Run({kInf, -kInf, 2}, {}, options), 0, 0, kNan));
    EXPECT_TRUE(Is(Run({1, kNan, 2}, {}, options), 0, 0, kNan));
    EXPECT_TRUE(Is(Run({1, -kNan, kInf}, {}, options), 0, 0, kNan));
  }
  // In different groups of the sum.
  std::vector<double> many(2000, 0.5);
  many[3] = kInf;
  EXPECT_TRUE(Is(Run(many, {}, kSum), 0, 0, kInf));
  many[1999] = kNan;
  EXPECT_TRUE(Is(Run(many, {}, kSum), 0, 0, kNan));
}

TEST_P(Reduce, EveryNanBecomesTheCanonicalOne) {
  Matrix losses(dtype(), 1, 2);
  losses.Set(0, 0, 1);
  losses.SetBits(0, 1, losses.PoisonBits());
  Matrix loss(dtype(), 1, 1);
  const xent_stored_losses args = Args(losses, nullptr, XENT_I64, loss);
  ASSERT_EQ(xent_reduce(&args, &kSum, nullptr), XENT_OK);
  EXPECT_TRUE(Is(loss, 0, 0, kNan));
}

TEST_P(Reduce, OverflowsToInf) {
  const double big = reference::LargestFinite(dtype());
  EXPECT_TRUE(Is(Run({big, big, 1}, {}, kSum), 0, 0, kInf));
  EXPECT_TRUE(Is(Run({-big, -big, 1}, {}, kSum), 0, 0, -kInf));
  EXPECT_TRUE(Is(Run({big}, {}, Divided(XENT_REDUCTION_SUM, 0.5)), 0, 0, kInf));
}

TEST_P(Reduce, LossOfZerosIsPlusZero) {
  EXPECT_TRUE(Is(Run({0, 0}, {}, kSum), 0, 0, 0));
  EXPECT_TRUE(Is(Run({0}, {}, kMean), 0, 0, 0));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Reduce, ::testing::Values(XENT_F32, XENT_F64),
                         [](const auto &info) { return reference::NameOf(info.param); });

TEST(ReduceFloat32, MeanOfLargestNumbersIsTheLargestNumber) {
  // The sum runs in double.
  const float big = std::numeric_limits<float>::max();
  const float losses[] = {big, big, big, big};
  float loss = 0;
  xent_stored_losses args = XENT_STORED_LOSSES_INIT;
  args.rows = 4;
  args.row_losses = losses;
  args.reduced_loss = &loss;
  ASSERT_EQ(xent_reduce(&args, &kMean, nullptr), XENT_OK);
  EXPECT_EQ(loss, big);
}

}  // namespace
}  // namespace xent::test
