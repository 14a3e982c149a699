// Reduction of the rows' losses (semantics.md, "Reduction"): denominators of loss and gradient, divisor, perplexity,
// counts. Exact where all numbers are; else the reference within the documented bounds.
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

class Reduction : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  // 23 rows of which five are ignored.
  LossCall Make(const xent_cross_entropy_options &options, int64_t rows = 23) {
    LossCall call(dtype(), rows, 50);
    call.FillNormal(4, 4);
    for (int64_t i = 2; i < rows; i += 5) call.targets[static_cast<size_t>(i)] = options.ignore_index;
    call.options = options;
    return call;
  }
};

TEST_P(Reduction, None) {
  LossCall call = Make(WithReduction(XENT_REDUCTION_NONE));
  call.MustRun(Function::kForwardBackward);
  EXPECT_TRUE(Untouched(call.reduced_loss));
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Reduction, Sum) {
  LossCall call = Make(WithReduction(XENT_REDUCTION_SUM));
  call.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Reduction, MeanCountsLiveRowsOnly) {
  LossCall call = Make(WithReduction(XENT_REDUCTION_MEAN));
  call.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.live_rows, 18);
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Reduction, DivisorReplacesTheDenominatorOfMeanAndDividesSum) {
  for (const double divisor : {0.125, 1.0, 7.0, 4096.0}) {
    xent_cross_entropy_options options = WithReduction(XENT_REDUCTION_MEAN);
    options.reduction.divisor = divisor;
    LossCall mean = Make(options);
    mean.MustRun(Function::kForwardBackward);
    EXPECT_EQ(mean.Judge(), "");
    options.reduction.kind = XENT_REDUCTION_SUM;
    LossCall sum = Make(options);
    sum.MustRun(Function::kForwardBackward);
    EXPECT_EQ(mean.Difference(sum, Function::kForwardBackward), "");
  }
}

TEST_P(Reduction, DivisorsOfAllSizes) {
  // Loss and gradient go past the ends of the type and no further than the formula.
  for (const double divisor : {1e-300, 1e-30, 1e30, 1e300, 4.9e-324, 1.7e308}) {
    xent_cross_entropy_options options = WithReduction(XENT_REDUCTION_SUM);
    options.reduction.divisor = divisor;
    LossCall call = Make(options);
    call.MustRun(Function::kForwardBackward);
    EXPECT_EQ(call.Judge(), "") << divisor;
  }
}

TEST_P(Reduction, AccumulatedOverMicroBatchesWithDivisorIsTheWholeBatchsGradient) {
  // Three shares of one batch, each divided by the rows of the whole: what divisor is for. The gradients are the same
  // numbers.
  LossCall whole = Make(WithReduction(XENT_REDUCTION_MEAN), 24);
  whole.MustRun(Function::kForwardBackward);
  for (int64_t part = 0; part < 3; ++part) {
    LossCall share(dtype(), 8, 50);
    for (int64_t i = 0; i < 8; ++i) {
      share.targets[static_cast<size_t>(i)] = whole.targets[static_cast<size_t>(part * 8 + i)];
      for (int64_t j = 0; j < 50; ++j) share.logits.SetBits(i, j, whole.logits.GetBits(part * 8 + i, j));
    }
    share.options.reduction.divisor = static_cast<double>(whole.live_rows);
    share.MustRun(Function::kForwardBackward);
    for (int64_t i = 0; i < 8; ++i) {
      for (int64_t j = 0; j < 50; ++j) EXPECT_TRUE(Is(share.grad, i, j, whole.grad.Get(part * 8 + i, j)));
    }
  }
}

TEST_P(Reduction, EmptyMeanChangesNothingWhereRowsAreLive) {
  xent_cross_entropy_options options = WithReduction(XENT_REDUCTION_MEAN);
  LossCall nan = Make(options);
  nan.MustRun(Function::kForwardBackward);
  options.reduction.empty_mean = XENT_EMPTY_MEAN_ZERO;
  LossCall zero = Make(options);
  zero.MustRun(Function::kForwardBackward);
  EXPECT_EQ(nan.Difference(zero, Function::kForwardBackward), "");
}

TEST_P(Reduction, EqualsXentReduceOverItsLosses) {
  for (const int64_t rows : {1, 2, 255, 256, 257, 700, 3000}) {
    for (const xent_reduction_kind reduction : {XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
      for (const double divisor : {0.0, 3.0}) {
        xent_cross_entropy_options options = WithReduction(reduction);
        options.reduction.divisor = divisor;
        LossCall call = Make(options, rows);
        call.MustRun(Function::kForward);
        Matrix again(reference::ArithmeticType(dtype()), 1, 1);
        xent_error error = XENT_ERROR_INIT;
        xent_stored_losses args = XENT_STORED_LOSSES_INIT;
        args.rows = rows;
        args.row_losses = call.row_losses.data();
        args.targets.data = call.targets.data();
        args.reduced_loss = again.data();
        args.dtype = again.dtype();
        ASSERT_EQ(xent_reduce(&args, &options, &error), XENT_OK) << error.message;
        EXPECT_EQ(FirstDifference(call.reduced_loss, again), "") << rows << " rows";
      }
    }
  }
}

TEST_P(Reduction, InfiniteAndNanLosses) {
  LossCall call(dtype(), {{-kInf, 0}, {1, 0}, {-kInf, 2}}, {0, 0, 0});
  call.MustRun(Function::kForward);
  EXPECT_TRUE(Is(call.reduced_loss, 0, 0, kInf));
  EXPECT_EQ(call.perplexity, kInf);
  call.logits.Set(1, 0, kNan);
  call.MustRun(Function::kForward);
  EXPECT_TRUE(Is(call.reduced_loss, 0, 0, kNan));
  EXPECT_TRUE(std::isnan(call.perplexity));
}

TEST_P(Reduction, PerplexityIsThatOfTheNegativeLogLikelihood) {
  // Whatever reduction, divisor and smoothing.
  LossCall plain = Make(WithReduction(XENT_REDUCTION_MEAN));
  plain.MustRun(Function::kForward);
  EXPECT_EQ(plain.Judge(), "");
  for (const xent_reduction_kind reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
    for (const double epsilon : {0.0, 0.1, 1.0}) {
      xent_cross_entropy_options options = WithReduction(reduction);
      options.label_smoothing = epsilon;
      options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
      if (reduction == XENT_REDUCTION_SUM) {
        options.reduction.divisor = 1000;
      }
      LossCall call = Make(options);
      call.MustRun(Function::kForwardBackward);
      EXPECT_EQ(call.Judge(), "") << reduction << " " << epsilon;
    }
  }
}

TEST_P(Reduction, PerplexityOfEqualLogitsIsV) {
  // exp(log 8); the row's log 8 is right to 4 ULP, as in LossCall::Judge.
  LossCall call(dtype(), {{1, 1, 1, 1, 1, 1, 1, 1}, {0, 0, 0, 0, 0, 0, 0, 0}}, {3, 5});
  call.MustRun(Function::kForward);
  const double ulp = dtype() == XENT_F64 ? 0x1p-52 : 0x1p-23;
  EXPECT_NEAR(call.perplexity, 8, 8 * (4 * ulp * std::log(8) + 4 * 0x1p-52));
}

TEST_P(Reduction, PerplexityOverflowsToInf) {
  LossCall call(dtype(), {{0, 1000}, {0, 1500}}, {0, 0});
  call.MustRun(Function::kForward);
  EXPECT_TRUE(std::isfinite(call.reduced_loss.Get(0, 0)));
  EXPECT_EQ(call.perplexity, kInf);
}

TEST_P(Reduction, LiveRowsAreThoseNotIgnored) {
  // A row of NaN is live, an ignored row is not.
  LossCall call(dtype(), {{kNan, 0}, {0, 1}, {1, 0}, {-kInf, -kInf}}, {0, -100, 1, 1});
  call.MustRun(Function::kForward);
  EXPECT_EQ(call.live_rows, 3);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Reduction, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

// No float16 logits have losses near the largest float32.
TEST(ReductionOfLargeLosses, SumOverflowsToInf) {
  // Each loss is finite, their sum is past the largest number of its type.
  for (const xent_dtype dtype : {XENT_F32, XENT_BF16, XENT_F64}) {
    const double big = dtype == XENT_F64 ? 1.5e308 : 3e38;
    LossCall call(dtype, {{big, 0}, {big, 0}, {big, 0}}, {1, 1, 1});
    call.options.reduction.kind = XENT_REDUCTION_SUM;
    call.MustRun(Function::kForwardBackward);
    EXPECT_TRUE(std::isfinite(call.row_losses.Get(0, 0)));
    EXPECT_TRUE(Is(call.reduced_loss, 0, 0, kInf));
    EXPECT_EQ(call.Judge(), "");
  }
}

TEST(ReductionOfLargeLosses, MeanInFloat32DoesNotOverflow) {
  // The sum runs in double: past the largest float32 it is still a number, and so is the mean.
  for (const xent_dtype dtype : {XENT_F32, XENT_BF16}) {
    LossCall call(dtype, {{3e38, 0}, {3e38, 0}, {3e38, 0}, {3e38, 0}}, {1, 1, 1, 1});
    call.MustRun(Function::kForward);
    EXPECT_TRUE(Is(call.reduced_loss, 0, 0, call.row_losses.Get(0, 0)));
    EXPECT_TRUE(std::isfinite(call.reduced_loss.Get(0, 0)));
  }
}

}  // namespace
}  // namespace xent::test
