// The edges of semantics.md's table, for index targets: what each special input does to losses, lse, the reduced loss
// and the gradient, in every dtype. Exact values where the semantics give them, else the reference within the bounds of
// semantics.md, "Accuracy". Every row that must not be touched by another's trouble is compared bit by bit.
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

using reference::ArithmeticType;
using reference::LargestFinite;

// The ordinary row beside which trouble is put; exact in every dtype.
const std::vector<double> kCalm = {2.0, 1.25, 0.25};

class Edges : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  // Rows 0 and 2 are calm and the trouble is row 1. Its neighbours must have the bits that they have alone.
  LossCall RunBetweenCalmRows(std::vector<double> trouble, int64_t target, xent_cross_entropy_options options) {
    LossCall call(dtype(), {kCalm, std::move(trouble), kCalm}, {1, target, 0});
    call.options = options;
    call.MustRun(Function::kForwardBackward);
    EXPECT_EQ(call.PaddingTrouble(), "");
    for (const int64_t i : {0, 2}) {
      LossCall alone(dtype(), {kCalm}, {i == 0 ? 1 : 0});
      alone.options = options;
      alone.MustRun(Function::kForwardBackward);
      EXPECT_TRUE(Is(call.row_losses, 0, i, alone.row_losses.Get(0, 0)));
      EXPECT_TRUE(Is(call.lse, 0, i, alone.lse.Get(0, 0)));
      if (options.reduction.kind == XENT_REDUCTION_MEAN) continue;  // another denominator
      for (int64_t j = 0; j < 3; ++j) EXPECT_TRUE(Is(call.grad, i, j, alone.grad.Get(0, j)));
    }
    return call;
  }
};

const xent_cross_entropy_options kNone = WithReduction(XENT_REDUCTION_NONE);
const xent_cross_entropy_options kSum = WithReduction(XENT_REDUCTION_SUM);
const xent_cross_entropy_options kMean = WithReduction(XENT_REDUCTION_MEAN);

TEST_P(Edges, OptionsDefaultToPyTorchs) {
  LossCall with(dtype(), {kCalm, kCalm, kCalm}, {0, -100, 2});
  with.MustRun(Function::kForwardBackward);
  LossCall without = LossCall(dtype(), {kCalm, kCalm, kCalm}, {0, -100, 2});
  without.pass_null_options = true;
  without.MustRun(Function::kForwardBackward);
  EXPECT_EQ(with.Difference(without, Function::kForwardBackward), "");
  EXPECT_EQ(with.live_rows, 2);
  EXPECT_EQ(with.Judge(), "");
}

TEST_P(Edges, TargetEqualsIgnoreIndexGivesZeros) {
  const LossCall call = RunBetweenCalmRows({3.0, -1.0, 7.0}, -100, kNone);
  EXPECT_TRUE(Is(call.row_losses, 0, 1, 0));
  EXPECT_TRUE(Is(call.lse, 0, 1, 0));
  EXPECT_TRUE(RowIs(call.grad, 1, 0));
  EXPECT_EQ(call.live_rows, 2);
}

TEST_P(Edges, TargetEqualsIgnoreIndexNeverReadsItsLogits) {
  // The poison that a fresh matrix is filled with is signalling NaN; the others are what a mask or an overflow leaves
  // behind.
  LossCall call(dtype(), 5, 3);
  const int64_t ignore = call.options.ignore_index;
  call.targets = {1, ignore, ignore, ignore, 0};
  for (const int64_t i : {0, 4}) {
    for (int64_t j = 0; j < 3; ++j) call.logits.Set(i, j, kCalm[static_cast<size_t>(j)]);
  }
  for (int64_t j = 0; j < 3; ++j) {
    call.logits.Set(2, j, -kInf);
    call.logits.Set(3, j, j == 1 ? kInf : kNan);
  }
  const Tensor before = call.logits;
  call.MustRun(Function::kForwardBackward);
  for (const int64_t i : {1, 2, 3}) {
    EXPECT_TRUE(Is(call.row_losses, 0, i, 0));
    EXPECT_TRUE(Is(call.lse, 0, i, 0));
    EXPECT_TRUE(RowIs(call.grad, i, 0));
  }
  EXPECT_EQ(FirstDifference(before, call.logits), "");
  EXPECT_EQ(call.live_rows, 2);
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Edges, IgnoredRowsMayLieInMemoryThatHoldsFewerLogits) {
  // Only the live first row has memory behind it: a row that is never read needs none. The address sanitizer sees a
  // read.
  const Matrix one = MatrixOf(dtype(), {kCalm});
  const int64_t targets[] = {1, -100, -100};
  Matrix losses(ArithmeticType(dtype()), 1, 3);
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = 3;
  args.cols = 3;
  args.logits = View(one);
  args.logits.stride = int64_t{1} << 40;
  args.targets.data = targets;
  args.row_losses = losses.data();
  ASSERT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, nullptr), XENT_OK);
  LossCall alone(dtype(), {kCalm}, {1});
  alone.MustRun(Function::kForward);
  EXPECT_TRUE(Is(losses, 0, 0, alone.row_losses.Get(0, 0)));
  EXPECT_TRUE(Is(losses, 0, 1, 0));
  EXPECT_TRUE(Is(losses, 0, 2, 0));
}

TEST_P(Edges, IgnoreIndexMayBeAClass) {
  LossCall call(dtype(), {kCalm, kCalm, kCalm}, {0, 2, 1});
  call.options.ignore_index = 2;
  call.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.live_rows, 2);
  EXPECT_TRUE(Is(call.row_losses, 0, 1, 0));
  EXPECT_TRUE(RowIs(call.grad, 1, 0));
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Edges, IgnoreIndexBeyondInt32MatchesNoInt32Target) {
  // 2^32 + 2 has the low half of 2, and -100 means nothing here.
  LossCall call(dtype(), {kCalm, kCalm}, {2, 0});
  call.options.ignore_index = (int64_t{1} << 32) + 2;
  for (const xent_index_type type : {XENT_I32, XENT_I64}) {
    call.targets_type = type;
    call.MustRun(Function::kForwardBackward);
    EXPECT_EQ(call.live_rows, 2);
    EXPECT_EQ(call.Judge(), "");
  }
  call.targets = {-100, 0};
  EXPECT_EQ(call.Run(Function::kForward), XENT_TARGET_OUT_OF_RANGE);
}

TEST_P(Edges, IgnoreIndexAtTheEndsOfInt64) {
  for (const int64_t ignore : {std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()}) {
    LossCall call(dtype(), {kCalm, kCalm}, {ignore, 0});
    call.options.ignore_index = ignore;
    call.MustRun(Function::kForwardBackward);
    EXPECT_EQ(call.live_rows, 1);
    EXPECT_TRUE(RowIs(call.grad, 0, 0));
    EXPECT_EQ(call.Judge(), "");
  }
}

TEST_P(Edges, EveryRowIgnoredWithMean) {
  LossCall call(dtype(), {{kNan, 0, 0}, {1, kInf, 0}}, {-100, -100});
  call.MustRun(Function::kForwardBackward);
  EXPECT_TRUE(Is(call.reduced_loss, 0, 0, kNan));
  EXPECT_TRUE(std::isnan(call.perplexity));
  EXPECT_EQ(call.live_rows, 0);
  EXPECT_TRUE(RowIs(call.grad, 0, 0));
  EXPECT_TRUE(RowIs(call.grad, 1, 0));

  call.options.reduction.empty_mean = XENT_EMPTY_MEAN_ZERO;
  call.MustRun(Function::kForwardBackward);
  EXPECT_TRUE(Is(call.reduced_loss, 0, 0, 0));
  EXPECT_TRUE(std::isnan(call.perplexity));
  EXPECT_TRUE(RowIs(call.grad, 0, 0));
  EXPECT_TRUE(RowIs(call.grad, 1, 0));
}

TEST_P(Edges, EveryRowIgnoredWithSum) {
  LossCall call(dtype(), {{kNan, 0, 0}, {1, kInf, 0}}, {-100, -100});
  call.options.reduction.kind = XENT_REDUCTION_SUM;
  call.MustRun(Function::kForwardBackward);
  EXPECT_TRUE(Is(call.reduced_loss, 0, 0, 0));
  EXPECT_TRUE(RowIs(call.grad, 0, 0));
  EXPECT_TRUE(RowIs(call.grad, 1, 0));
}

TEST_P(Edges, EveryRowIgnoredWithDivisor) {
  for (const xent_reduction_kind reduction : {XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
    for (const xent_empty_mean empty : {XENT_EMPTY_MEAN_NAN, XENT_EMPTY_MEAN_ZERO}) {
      LossCall call(dtype(), {{kNan, 0, 0}}, {-100});
      call.options.reduction.kind = reduction;
      call.options.reduction.empty_mean = empty;
      call.options.reduction.divisor = 7;
      call.MustRun(Function::kForwardBackward);
      EXPECT_TRUE(Is(call.reduced_loss, 0, 0, 0));
      EXPECT_TRUE(RowIs(call.grad, 0, 0));
    }
  }
}

TEST_P(Edges, NoRows) {
  for (const Function function : kFunctions) {
    for (const xent_cross_entropy_options &options : {kNone, kSum, kMean}) {
      LossCall call(dtype(), 0, 3);
      call.options = options;
      xent_cross_entropy args = call.Args(function);
      // Null is fine for every empty array.
      args.logits.data = nullptr;
      args.targets.data = nullptr;
      args.row_losses = nullptr;
      args.records = nullptr;
      args.grad.data = nullptr;
      call.statistics.lse = nullptr;
      xent_error error = XENT_ERROR_INIT;
      const LossFunction run = EntryPoint(function);
      ASSERT_EQ(run(&args, &options, nullptr, &error), XENT_OK) << NameOf(function) << ": " << error.message;
      EXPECT_EQ(call.PaddingTrouble(), "");
      if (function == Function::kBackward) continue;
      EXPECT_EQ(call.live_rows, 0);
      EXPECT_TRUE(std::isnan(call.perplexity));
      if (options.reduction.kind == XENT_REDUCTION_SUM) {
        EXPECT_TRUE(Is(call.reduced_loss, 0, 0, 0));
      }
      if (options.reduction.kind == XENT_REDUCTION_MEAN) {
        EXPECT_TRUE(Is(call.reduced_loss, 0, 0, kNan));
      }
      if (options.reduction.kind == XENT_REDUCTION_NONE) {
        EXPECT_TRUE(Untouched(call.reduced_loss));
      }
    }
  }
}

TEST_P(Edges, NoRowsWithEmptyMeanZeroOrDivisor) {
  LossCall call(dtype(), 0, 3);
  call.options.reduction.empty_mean = XENT_EMPTY_MEAN_ZERO;
  call.MustRun(Function::kForward);
  EXPECT_TRUE(Is(call.reduced_loss, 0, 0, 0));
  call.options.reduction.empty_mean = XENT_EMPTY_MEAN_NAN;
  call.options.reduction.divisor = 3;
  call.MustRun(Function::kForward);
  EXPECT_TRUE(Is(call.reduced_loss, 0, 0, 0));
}

TEST_P(Edges, ZeroColumnsAreRefused) {
  for (const int64_t rows : {0, 1}) {
    LossCall call(dtype(), rows, 1);
    for (const Function function : kFunctions) {
      xent_cross_entropy args = call.Args(function);
      args.cols = 0;
      const LossFunction run = EntryPoint(function);
      EXPECT_EQ(run(&args, nullptr, nullptr, nullptr), XENT_INVALID_ARGUMENT);
      EXPECT_TRUE(call.OutputsUntouched());
    }
  }
}

TEST_P(Edges, MinusInfLogitHasNoProbability) {
  const LossCall call = RunBetweenCalmRows({0.5, -kInf, -1.0}, 0, kNone);
  EXPECT_TRUE(Is(call.grad, 1, 1, 0));
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Edges, EverythingButTheTargetMasked) {
  const LossCall call = RunBetweenCalmRows({-kInf, 3.0, -kInf}, 1, kNone);
  EXPECT_TRUE(Is(call.row_losses, 0, 1, 0));
  EXPECT_TRUE(Is(call.lse, 0, 1, 3.0));
  for (int64_t j = 0; j < 3; ++j) EXPECT_EQ(call.grad.Get(1, j), 0);
}

TEST_P(Edges, MaskedBlocksAndChunks) {
  // 40000 columns are chunks of 3072: the first chunks are masked throughout, later ones in part, and what is left is a
  // hundred numbers.
  LossCall call(dtype(), 2, 40000);
  for (int64_t j = 0; j < 40000; ++j) {
    call.logits.Set(0, j, j >= 35000 && j % 50 == 7 ? -2.0 + 0.015625 * static_cast<double>(j % 64) : -kInf);
    call.logits.Set(1, j, j < 100 ? -2.0 + 0.015625 * static_cast<double>(j % 64) : -kInf);
  }
  call.targets = {35007, 99};
  call.options = kNone;
  call.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Edges, TargetsOwnLogitMinusInf) {
  const LossCall call = RunBetweenCalmRows({-kInf, 0.5, -1.0}, 0, kNone);
  EXPECT_TRUE(Is(call.row_losses, 0, 1, kInf));
  EXPECT_TRUE(Is(call.grad, 1, 0, -1));
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Edges, TargetsOwnLogitMinusInfMakesTheReducedLossInf) {
  for (const xent_cross_entropy_options &options : {kSum, kMean}) {
    const LossCall call = RunBetweenCalmRows({-kInf, 0.5, -1.0}, 0, options);
    EXPECT_TRUE(Is(call.reduced_loss, 0, 0, kInf));
    EXPECT_EQ(call.perplexity, kInf);
    EXPECT_EQ(call.Judge(), "");
  }
}

TEST_P(Edges, WholeRowMinusInf) {
  for (const int64_t target : {0, 2}) {
    const LossCall call = RunBetweenCalmRows({-kInf, -kInf, -kInf}, target, kNone);
    EXPECT_TRUE(Is(call.row_losses, 0, 1, kNan));
    EXPECT_TRUE(Is(call.lse, 0, 1, kNan));
    EXPECT_TRUE(RowIs(call.grad, 1, kNan));
    EXPECT_TRUE(std::isnan(call.perplexity));
  }
}

TEST_P(Edges, PlusInfOrNan) {
  const std::vector<double> troubles[] = {{kInf, 0, 0},     {0, kInf, 0},    {kInf, kInf, kInf}, {kInf, -kInf, -kInf},
                                          {-kInf, kInf, 0}, {kNan, 0, 0},    {0, kNan, 1},       {0, 1, -kNan},
                                          {kNan, kInf, 0},  {kInf, 0, kNan}, {-kInf, kNan, 0}};
  for (const auto &trouble : troubles) {
    for (const int64_t target : {0, 1, 2}) {
      for (const xent_cross_entropy_options &options : {kNone, kSum, kMean}) {
        const LossCall call = RunBetweenCalmRows(trouble, target, options);
        EXPECT_TRUE(Is(call.row_losses, 0, 1, kNan));
        EXPECT_TRUE(Is(call.lse, 0, 1, kNan));
        EXPECT_TRUE(RowIs(call.grad, 1, kNan));
        if (options.reduction.kind != XENT_REDUCTION_NONE) {
          EXPECT_TRUE(Is(call.reduced_loss, 0, 0, kNan));
        }
        EXPECT_TRUE(std::isnan(call.perplexity));
        EXPECT_EQ(call.live_rows, 3);
      }
    }
  }
}

TEST_P(Edges, EveryKindOfNanIsANan) {
  // Quiet, signalling, negative, smallest and largest payload.
  const uint64_t infinity = reference::InfinityBits(dtype());
  const uint64_t sign = reference::SignBit(dtype());
  for (const uint64_t bits : {infinity | 1, infinity | 1 | sign, sign - 1, (sign - 1) | sign,
                              reference::CanonicalNanBits(dtype()), reference::CanonicalNanBits(dtype()) | sign}) {
    LossCall call(dtype(), {kCalm}, {0});
    call.options = kNone;
    call.logits.SetBits(0, 1, bits);
    call.MustRun(Function::kForwardBackward);
    EXPECT_TRUE(Is(call.row_losses, 0, 0, kNan)) << std::hex << bits;
    EXPECT_TRUE(Is(call.lse, 0, 0, kNan));
    EXPECT_TRUE(RowIs(call.grad, 0, kNan));
  }
}

TEST_P(Edges, OneBadElementAnywhereInALongRow) {
  // Around the ends of vectors, blocks of 1024 and chunks (2048 columns at V = 20000); the target stands elsewhere.
  LossCall call(dtype(), 3, 20000);
  call.FillNormal(11, 4);
  call.options = kNone;
  call.MustRun(Function::kForwardBackward);
  const LossCall before = call;
  for (const int64_t at : {0, 1, 15, 16, 1023, 1024, 2047, 2048, 16383, 16384, 19998, 19999}) {
    for (const double bad : {kNan, kInf}) {
      call.logits = before.logits;
      call.logits.Set(1, at, bad);
      call.targets[1] = (at + 7000) % 20000;
      call.MustRun(Function::kForwardBackward);
      ASSERT_TRUE(Is(call.row_losses, 0, 1, kNan)) << at;
      ASSERT_TRUE(Is(call.lse, 0, 1, kNan)) << at;
      ASSERT_TRUE(RowIs(call.grad, 1, kNan)) << at;
      for (const int64_t i : {0, 2}) {
        ASSERT_TRUE(Is(call.row_losses, 0, i, before.row_losses.Get(0, i)));
        for (int64_t j = 0; j < 20000; j += 999) ASSERT_TRUE(Is(call.grad, i, j, before.grad.Get(i, j)));
      }
    }
  }
}

TEST_P(Edges, IgnoreIndexComesBeforeNan) {
  const LossCall call = RunBetweenCalmRows({kNan, kInf, -kInf}, -100, kMean);
  EXPECT_TRUE(Is(call.row_losses, 0, 1, 0));
  EXPECT_TRUE(RowIs(call.grad, 1, 0));
  EXPECT_EQ(call.live_rows, 2);
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Edges, NanComesBeforeTheTargetsMinusInf) {
  const LossCall call = RunBetweenCalmRows({-kInf, kNan, 0}, 0, kNone);
  EXPECT_TRUE(Is(call.row_losses, 0, 1, kNan));
  EXPECT_TRUE(RowIs(call.grad, 1, kNan));
}

TEST_P(Edges, LogitsUpTo3e38) {
  for (const double size : {3e38, LargestFinite(dtype())}) {
    const double big = std::fmin(size, LargestFinite(dtype()));
    const std::vector<double> troubles[] = {{big, 0, -big},    {big, big, big},   {-big, -big, -big},
                                            {-big, -big, big}, {0, -big, -big},   {big, big, -kInf},
                                            {1, -big, 0},      {-kInf, -big, -1}, {-big, -kInf, -big}};
    for (const auto &trouble : troubles) {
      for (const int64_t target : {0, 1, 2}) {
        const LossCall call = RunBetweenCalmRows(trouble, target, kNone);
        EXPECT_EQ(call.Judge(), "");
      }
    }
  }
}

TEST_P(Edges, LossPastTheLargestNumberIsInf) {
  // The loss is twice the largest number of the logits' type: past it for float32 and float64. bfloat16's losses are
  // float32, of nearly the same range; float16's stay finite.
  const double big = LargestFinite(dtype());
  const LossCall call = RunBetweenCalmRows({big, -big, 0}, 1, kMean);
  EXPECT_TRUE(Is(call.row_losses, 0, 1, dtype() == XENT_F16 ? 2 * big : kInf));
  EXPECT_TRUE(Is(call.lse, 0, 1, big));
  EXPECT_EQ(call.Judge(), "");
  if (dtype() != XENT_F16) {
    EXPECT_TRUE(Is(call.reduced_loss, 0, 0, kInf));
  }
}

TEST_P(Edges, SmoothedLossPastTheLargestNumberIsInf) {
  const double big = LargestFinite(dtype());
  for (const xent_smoothing smoothing : {XENT_SMOOTHING_UNIFORM, XENT_SMOOTHING_EXCLUSIVE}) {
    xent_cross_entropy_options options = kNone;
    options.smoothing = smoothing;
    options.label_smoothing = 0.5;
    // Of the largest number the losses are 5/3, 4/3 and 5/6 (uniform), 3/2, 1 and 3/4 (exclusive).
    for (const std::vector<double> &row : {std::vector<double>{big, -big, -big}, {big, big, -big}, {big, 0, 0}}) {
      const LossCall call = RunBetweenCalmRows(row, 2, options);
      EXPECT_EQ(call.Judge(), "");
      const reference::Losses want = reference::EvaluateLosses(call.Inputs());
      if (want.losses[1].exact > LargestFinite(ArithmeticType(dtype()))) {
        EXPECT_TRUE(Is(call.row_losses, 0, 1, kInf));
      } else {
        EXPECT_TRUE(Within(call.row_losses, 0, 1, want.losses[1], kLossUlp));
      }
    }
  }
}

TEST_P(Edges, OneColumn) {
  for (const double z : {0.0, -3.5, 1e4, LargestFinite(dtype()), -LargestFinite(dtype())}) {
    LossCall call(dtype(), {{z}}, {0});
    call.options = kSum;
    call.MustRun(Function::kForwardBackward);
    EXPECT_TRUE(Is(call.row_losses, 0, 0, 0));
    EXPECT_EQ(call.lse.Get(0, 0), call.logits.Get(0, 0));
    EXPECT_TRUE(Is(call.reduced_loss, 0, 0, 0));
    EXPECT_EQ(call.grad.Get(0, 0), 0);
    EXPECT_EQ(call.perplexity, 1);
  }
}

TEST_P(Edges, OneColumnWithTrouble) {
  for (const double z : {-kInf, kInf, kNan}) {
    LossCall call(dtype(), {{z}}, {0});
    call.options = kSum;
    call.MustRun(Function::kForwardBackward);
    EXPECT_TRUE(Is(call.row_losses, 0, 0, kNan));
    EXPECT_TRUE(Is(call.lse, 0, 0, kNan));
    EXPECT_TRUE(Is(call.grad, 0, 0, kNan));
  }
  LossCall ignored(dtype(), {{kNan}}, {-100});
  ignored.options = kSum;
  ignored.MustRun(Function::kForwardBackward);
  EXPECT_TRUE(Is(ignored.reduced_loss, 0, 0, 0));
  EXPECT_TRUE(Is(ignored.grad, 0, 0, 0));
}

TEST_P(Edges, StrideLargerThanV) {
  // Padding is neither read (it is signalling NaN) nor written (it is compared).
  for (const int64_t cols : {1, 3, 16, 17, 1000, 1024, 1025, 20000}) {
    for (const int64_t extra : {1, 5, 64}) {
      LossCall wide(dtype(), 3, cols, 0, extra);
      wide.FillNormal(3, 4);
      LossCall tight(dtype(), 3, cols);
      tight.FillNormal(3, 4);
      wide.MustRun(Function::kForwardBackward);
      tight.MustRun(Function::kForwardBackward);
      EXPECT_EQ(wide.PaddingTrouble(), "");
      ASSERT_EQ(wide.Difference(tight, Function::kForwardBackward), "") << cols << "+" << extra;
    }
  }
}

TEST_P(Edges, StrideZeroMeansV) {
  LossCall call(dtype(), {kCalm, {1, 5, 2}}, {0, 1});
  call.MustRun(Function::kForwardBackward);
  LossCall stated(dtype(), {kCalm, {1, 5, 2}}, {0, 1});
  xent_cross_entropy args = stated.Args(Function::kForwardBackward);
  args.logits.stride = call.cols;
  args.grad.stride = call.cols;
  ASSERT_EQ(xent_cross_entropy_forward_backward(&args, nullptr, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(call.Difference(stated, Function::kForwardBackward), "");
}

TEST_P(Edges, StridesOfLogitsAndGradientMayDiffer) {
  LossCall call(dtype(), 4, 37, 0, 3);
  call.FillNormal(5, 4);
  call.grad_padding = 16;
  call.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.PaddingTrouble(), "");
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Edges, LabelsInt32AndInt64) {
  LossCall call(dtype(), 9, 70);
  call.FillNormal(8, 4);
  call.targets[4] = -100;
  call.targets[5] = 69;
  call.targets[6] = 0;
  call.MustRun(Function::kForwardBackward);
  LossCall narrow = call;
  narrow.targets_type = XENT_I32;
  narrow.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.Difference(narrow, Function::kForwardBackward), "");
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Edges, DtypeOfOutputs) {
  // Guards lie right behind each output: what is too wide breaks them, what is too narrow leaves poison. log 3 has
  // digits that tell float32 from float64.
  LossCall call(dtype(), {{0, 0, 0}}, {0});
  call.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.PaddingTrouble(), "");
  const xent_dtype arithmetic = ArithmeticType(dtype());
  const double log3 = 1.0986122886681098;
  EXPECT_TRUE(Within(call.row_losses, 0, 0, {log3, log3}, 1));
  EXPECT_TRUE(Within(call.lse, 0, 0, {log3, log3}, 1));
  EXPECT_TRUE(Within(call.reduced_loss, 0, 0, {log3, log3}, 1));
  EXPECT_EQ(call.row_losses.dtype(), arithmetic);
  EXPECT_TRUE(Within(call.grad, 0, 1, {1.0L / 3, 1.0L / 3}, kGradientUlp));
}

TEST_P(Edges, InPlaceGradientOnly) {
  for (const int64_t padding : {0, 3}) {
    LossCall apart(dtype(), 5, 37, 0, padding);
    apart.FillNormal(9, 4);
    apart.targets[2] = -100;
    LossCall in_place = apart;
    in_place.in_place = true;
    apart.MustRun(Function::kForwardBackward);
    in_place.MustRun(Function::kForwardBackward);
    EXPECT_EQ(apart.Difference(in_place, Function::kForwardBackward), "");
    EXPECT_EQ(in_place.PaddingTrouble(), "");
  }
}

TEST_P(Edges, WhatIsNotWantedIsNotComputedNorNeeded) {
  // Each output alone, and none at all.
  LossCall all(dtype(), 4, 50);
  all.FillNormal(21, 4);
  all.targets[1] = -100;
  all.MustRun(Function::kForward);
  for (int which = 0; which < 8; ++which) {  // 6: none; 7: not even the struct of the statistics
    LossCall one(dtype(), 4, 50);
    one.FillNormal(21, 4);
    one.targets[1] = -100;
    xent_cross_entropy args = one.Args(Function::kForward);
    if (which != 0) args.row_losses = nullptr;
    if (which != 1) one.statistics.lse = nullptr;
    if (which != 2) args.reduced_loss = nullptr;
    if (which != 3) one.statistics.perplexity = nullptr;
    if (which != 4) one.statistics.live_rows = nullptr;
    if (which != 5) args.records = nullptr;
    if (which == 7) args.statistics = nullptr;
    ASSERT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, nullptr), XENT_OK) << which;
    if (which == 0) {
      EXPECT_EQ(FirstDifference(one.row_losses, all.row_losses), "");
    }
    if (which == 1) {
      EXPECT_EQ(FirstDifference(one.lse, all.lse), "");
    }
    if (which == 2) {
      EXPECT_EQ(FirstDifference(one.reduced_loss, all.reduced_loss), "");
    }
    if (which == 3) {
      EXPECT_EQ(one.perplexity, all.perplexity);
    }
    if (which == 4) {
      EXPECT_EQ(one.live_rows, all.live_rows);
    }
    if (which == 5) {
      EXPECT_TRUE(one.records == all.records);
    }
    if (which != 0) {
      EXPECT_TRUE(Untouched(one.row_losses));
    }
    if (which != 1) {
      EXPECT_TRUE(Untouched(one.lse));
    }
    if (which != 2) {
      EXPECT_TRUE(Untouched(one.reduced_loss));
    }
    EXPECT_TRUE(Untouched(one.grad));
  }
}

TEST_P(Edges, ConfidentRowKeepsItsDigits) {
  // 1 - p_t is far below one ULP of 1, yet loss and gradient keep theirs; float16 holds margins of 88 as well.
  for (const double margin : {20.0, 40.0, 80.0, 86.0}) {
    LossCall call(dtype(), {{margin, 0, -1, 0.5}, {-1, margin / 2, 0, -margin / 2}}, {0, 1});
    call.options = kNone;
    call.MustRun(Function::kForwardBackward);
    EXPECT_EQ(call.Judge(), "") << margin;
    EXPECT_GT(call.row_losses.Get(0, 0), 0);
  }
}

TEST_P(Edges, HopelessRowKeepsItsDigits) {
  LossCall call(dtype(), {{0, 80, 79, 3}, {-60, 20, 0, 1}}, {0, 0});
  call.options = kNone;
  call.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.Judge(), "");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Edges, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

}  // namespace
}  // namespace xent::test
