// Label smoothing, both forms, against semantics.md: the formulas by the reference within the documented bounds, exact
// values where the semantics give them, and the coefficients that are exactly 0, which beat infinity.
#include <gtest/gtest.h>

#include <cmath>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

xent_cross_entropy_options Smooth(xent_smoothing form, double epsilon,
                                  xent_reduction_kind reduction = XENT_REDUCTION_NONE) {
  xent_cross_entropy_options options = WithReduction(reduction);
  options.smoothing = form;
  options.label_smoothing = epsilon;
  return options;
}

constexpr xent_smoothing kForms[] = {XENT_SMOOTHING_UNIFORM, XENT_SMOOTHING_EXCLUSIVE};

class Smoothing : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  LossCall Run(const LossCall::Rows &logits, std::vector<int64_t> targets, const xent_cross_entropy_options &options) {
    LossCall call(dtype(), logits, std::move(targets));
    call.options = options;
    call.MustRun(Function::kForwardBackward);
    return call;
  }
};

TEST_P(Smoothing, FollowsTheFormula) {
  for (const xent_smoothing form : kForms) {
    for (const double epsilon : {1e-6, 0.1, 0.5, 0.9, 1.0}) {
      for (const int64_t cols : {2, 3, 15, 16, 17, 100, 1023, 1024, 1025, 5000}) {
        for (const xent_reduction_kind reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
          LossCall call(dtype(), 4, cols, 0, 3);
          call.FillNormal(static_cast<uint64_t>(cols), 4);
          call.targets[2] = call.options.ignore_index;
          call.targets[1] = 0;
          call.targets[3] = cols - 1;
          call.options = Smooth(form, epsilon, reduction);
          call.MustRun(Function::kForwardBackward);
          ASSERT_EQ(call.Judge(), "") << "form " << form << " epsilon " << epsilon;
        }
      }
    }
  }
}

TEST_P(Smoothing, ZeroIsNoSmoothing) {
  LossCall plain(dtype(), 3, 40);
  plain.FillNormal(1, 4);
  plain.MustRun(Function::kForwardBackward);
  for (const xent_smoothing form : kForms) {
    for (const double zero : {0.0, -0.0}) {
      LossCall call(dtype(), 3, 40);
      call.FillNormal(1, 4);
      call.options = Smooth(form, zero, XENT_REDUCTION_MEAN);
      call.MustRun(Function::kForwardBackward);
      EXPECT_EQ(plain.Difference(call, Function::kForwardBackward), "");
    }
  }
}

TEST_P(Smoothing, EqualLogitsGiveLogV) {
  // Every term is log V, whatever the weights.
  for (const xent_smoothing form : kForms) {
    for (const double epsilon : {0.1, 0.5, 1.0}) {
      const LossCall call = Run({{3, 3, 3, 3, 3}}, {2}, Smooth(form, epsilon));
      const long double log5 = std::log(5.0L);
      EXPECT_TRUE(Within(call.row_losses, 0, 0, {log5, log5}, kLossUlp));
    }
  }
}

TEST_P(Smoothing, OverMinusInfGivesInf) {
  for (const xent_smoothing form : kForms) {
    const LossCall call = Run({{1, -kInf, 0}, {0.5, 0.25, 0.125}}, {0, 1}, Smooth(form, 0.25, XENT_REDUCTION_MEAN));
    EXPECT_TRUE(Is(call.row_losses, 0, 0, kInf));
    EXPECT_TRUE(Is(call.reduced_loss, 0, 0, kInf));
    // p is 0 there, what is left of the gradient is the label's share.
    EXPECT_EQ(call.Judge(), "");
    EXPECT_LT(call.grad.Get(0, 1), 0);
    EXPECT_EQ(call.Judge(), "");
  }
}

TEST_P(Smoothing, OverMinusInfAtTheTargetGivesInf) {
  for (const xent_smoothing form : kForms) {
    const LossCall call = Run({{1, -kInf, 0}}, {1}, Smooth(form, 0.25));
    EXPECT_TRUE(Is(call.row_losses, 0, 0, kInf));
    EXPECT_EQ(call.Judge(), "");
  }
}

TEST_P(Smoothing, OverMinusInfInALongRow) {
  // One masked column in the second chunk, far from the target.
  for (const xent_smoothing form : kForms) {
    LossCall call(dtype(), 1, 20000);
    call.FillNormal(5, 4);
    call.targets[0] = 19000;
    call.logits.Set(0, 2500, -kInf);
    call.options = Smooth(form, 0.1);
    call.MustRun(Function::kForwardBackward);
    EXPECT_TRUE(Is(call.row_losses, 0, 0, kInf));
    EXPECT_EQ(call.Judge(), "");
  }
}

TEST_P(Smoothing, NanPlusInfAndWholeRowMinusInfStayNan) {
  for (const xent_smoothing form : kForms) {
    for (const std::vector<double> &row :
         {std::vector<double>{kNan, 0, 1}, {kInf, 0, 1}, {-kInf, -kInf, -kInf}, {-kInf, kInf, 0}, {-kInf, kNan, 0}}) {
      const LossCall call = Run({row}, {0}, Smooth(form, 0.25));
      EXPECT_TRUE(Is(call.row_losses, 0, 0, kNan));
      EXPECT_TRUE(RowIs(call.grad, 0, kNan));
    }
  }
}

TEST_P(Smoothing, IgnoredRowsAreZero) {
  for (const xent_smoothing form : kForms) {
    const LossCall call = Run({{kNan, -kInf, 1}, {0, 1, 2}}, {-100, 1}, Smooth(form, 0.5, XENT_REDUCTION_SUM));
    EXPECT_TRUE(Is(call.row_losses, 0, 0, 0));
    EXPECT_TRUE(RowIs(call.grad, 0, 0));
    EXPECT_EQ(call.Judge(), "");
  }
}

TEST_P(Smoothing, ExclusiveWithOneColumnIsRefused) {
  for (const int64_t rows : {0, 1, 3}) {
    for (const Function function : kFunctions) {
      LossCall call(dtype(), rows, 1);
      for (int64_t i = 0; i < rows; ++i) call.logits.Set(i, 0, 1);
      call.options = Smooth(XENT_SMOOTHING_EXCLUSIVE, 0.1, XENT_REDUCTION_MEAN);
      EXPECT_EQ(call.Run(function), XENT_INVALID_ARGUMENT);
      EXPECT_TRUE(call.OutputsUntouched());
      EXPECT_TRUE(Tells(call.error, XENT_INVALID_ARGUMENT, {}, {"exclusive", "cols", "1"}));
    }
  }
}

TEST_P(Smoothing, ExclusiveWithOneColumnAndNoSmoothingIsNot) {
  const LossCall call = Run({{2.5}}, {0}, Smooth(XENT_SMOOTHING_EXCLUSIVE, 0));
  EXPECT_TRUE(Is(call.row_losses, 0, 0, 0));
}

TEST_P(Smoothing, UniformWithOneColumnIsZero) {
  for (const double epsilon : {0.5, 1.0}) {
    const LossCall call = Run({{2.5}}, {0}, Smooth(XENT_SMOOTHING_UNIFORM, epsilon, XENT_REDUCTION_SUM));
    EXPECT_TRUE(Is(call.row_losses, 0, 0, 0));
    EXPECT_EQ(call.grad.Get(0, 0), 0);
  }
}

TEST_P(Smoothing, TwoColumns) {
  // Where the one other column is the confident one, lse minus its logit cancels.
  for (const xent_smoothing form : kForms) {
    for (const double epsilon : {1e-300, 1e-12, 0.25, 1.0}) {
      for (const double other : {-80.0, -1.0, 0.0, 0.001, 20.0, 80.0, -kInf}) {
        for (const int64_t target : {0, 1}) {
          const LossCall call = Run({{0, other}}, {target}, Smooth(form, epsilon));
          EXPECT_EQ(call.Judge(), "") << form << " " << epsilon << " " << other << " " << target;
        }
      }
    }
  }
}

TEST_P(Smoothing, TinyEpsilonOverMinusInfGivesInf) {
  // The coefficient is not 0, however small.
  for (const xent_smoothing form : kForms) {
    const LossCall call = Run({{1, -kInf, 0, 2}}, {0}, Smooth(form, 1e-300));
    EXPECT_TRUE(Is(call.row_losses, 0, 0, kInf));
  }
}

TEST_P(Smoothing, OverAConfidentRow) {
  // (1-e)*nll is tiny beside the others' share, yet counts; the differences to the pivot are not rounded away.
  for (const double margin : {20.0, 40.0, 80.0}) {
    for (const xent_smoothing form : kForms) {
      for (const double epsilon : {1e-12, 0.1}) {
        const LossCall call = Run({{margin, 0, -1, 0.5}, {0, margin, margin, 0}}, {0, 1}, Smooth(form, epsilon));
        EXPECT_EQ(call.Judge(), "");
      }
    }
  }
}

TEST_P(Smoothing, OverRowsAroundTenThousand) {
  // Rows around 1e4 (where a float32 has 2^-10 left): lse - z_c are small differences of large numbers.
  for (const xent_smoothing form : kForms) {
    LossCall call(dtype(), 3, 300);
    Random random(77);
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t j = 0; j < 300; ++j) call.logits.Set(i, j, (i == 1 ? -1e4 : 1e4) + random.Normal(2));
    }
    call.targets = {0, 150, 299};
    call.options = Smooth(form, 0.3);
    call.MustRun(Function::kForwardBackward);
    EXPECT_EQ(call.Judge(), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Smoothing, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

// "Coefficients that are exactly 0: 0 * infinity = 0 everywhere."
class ZeroCoefficients : public Smoothing {};

TEST_P(ZeroCoefficients, ExclusiveSmoothingOneForgetsTheTargetsMinusInf) {
  // epsilon 1 leaves (1 - epsilon) * nll = 0 * inf = 0 and the sum over the others, which is finite.
  LossCall call = Run({{-kInf, 0.5, -1}}, {0}, Smooth(XENT_SMOOTHING_EXCLUSIVE, 1));
  EXPECT_EQ(call.Judge(), "");
  EXPECT_TRUE(std::isfinite(call.row_losses.Get(0, 0)));
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(ZeroCoefficients, ExclusiveSmoothingOneOverATargetThatOutweighsAll) {
  LossCall call = Run({{50, 0.5, -1, 2}}, {0}, Smooth(XENT_SMOOTHING_EXCLUSIVE, 1));
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(ZeroCoefficients, ExclusiveSmoothingOneOfTwoColumnsKeepsTheDigitsOfAConfidentRow) {
  // The loss is lse - z_other = log1p(exp(z_t - z_other)): 4e-18 and 1.8e-35, far below an ULP of lse.
  for (const double margin : {20.0, 40.0, 80.0}) {
    for (const int64_t target : {0, 1}) {
      std::vector<double> row = {margin, margin};
      row[static_cast<size_t>(target)] = 0;
      LossCall call = Run({row}, {target}, Smooth(XENT_SMOOTHING_EXCLUSIVE, 1));
      const long double want = std::log1p(std::exp(-static_cast<long double>(margin)));
      EXPECT_TRUE(Within(call.row_losses, 0, 0, {want, want}, kLossUlp)) << margin;
      EXPECT_EQ(call.Judge(), "") << margin;
    }
  }
}

TEST_P(ZeroCoefficients, ExclusiveSmoothingOneOfTwoColumnsIsTheOtherColumnsLoss) {
  // Where the other column is -inf too there is no row left; where only it is, its loss is infinite.
  LossCall call = Run({{1, -kInf}}, {0}, Smooth(XENT_SMOOTHING_EXCLUSIVE, 1));
  EXPECT_TRUE(Is(call.row_losses, 0, 0, kInf));
  call = Run({{-kInf, 1}}, {0}, Smooth(XENT_SMOOTHING_EXCLUSIVE, 1));
  EXPECT_TRUE(Is(call.row_losses, 0, 0, 0));
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(ZeroCoefficients, UniformSmoothingOneCountsTheTargetLikeAnyOther) {
  LossCall masked = Run({{-kInf, 0.5, -1}}, {0}, Smooth(XENT_SMOOTHING_UNIFORM, 1));
  EXPECT_TRUE(Is(masked.row_losses, 0, 0, kInf));
  LossCall a = Run({{3, 0.5, -1}}, {0}, Smooth(XENT_SMOOTHING_UNIFORM, 1));
  EXPECT_EQ(a.Judge(), "");
  LossCall b = Run({{3, 0.5, -1}}, {2}, Smooth(XENT_SMOOTHING_UNIFORM, 1));
  EXPECT_EQ(b.Judge(), "");
}

TEST_P(ZeroCoefficients, NoSmoothingOverMinusInfIsFinite) {
  for (const xent_smoothing form : kForms) {
    const LossCall call = Run({{1, -kInf, 0}}, {0}, Smooth(form, 0));
    EXPECT_TRUE(std::isfinite(call.row_losses.Get(0, 0)));
    EXPECT_EQ(call.Judge(), "");
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ZeroCoefficients, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

}  // namespace
}  // namespace xent::test
