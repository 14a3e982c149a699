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
#include "testing/divergence_call.h"
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

// Logits 0 and -distance/scale in some rows of one layout, between rows of ordinary ones, judged by the reference.
void JudgeFarRows(double distance, double scale, double divisor, bool probabilities, int64_t inner) {
  constexpr int64_t kRows = 6, kCols = 3;
  LossCall call(XENT_F64, kRows, kCols, inner);
  call.FillNormal(1, 1);
  call.targets = {0, 1, 0, 2, 0, 1};
  for (const int64_t row : {0, 2, 3}) {
    call.logits.Set(row, 0, 0);
    call.logits.Set(row, 1, -distance / scale);
    call.logits.Set(row, 2, -(distance + 1) / scale);
  }
  call.options.logit_scale = scale;
  call.options.reduction.kind = XENT_REDUCTION_SUM;
  call.options.reduction.divisor = divisor;
  call.wants_entropy = true;
  if (probabilities) {
    call.SetProbs(XENT_F64, LossCall::Rows(kRows, {1, 0, 0}));
    call.targets.clear();
  } else {
    call.wants_logprobs = true;
  }
  for (const bool separately : {false, true}) {
    separately ? call.MustRunForwardThenBackward() : call.MustRun(Function::kForwardBackward);
    EXPECT_EQ(call.Judge(), "") << "distance " << distance << " scale " << scale << " divisor " << divisor
                                << " probabilities " << probabilities << " inner " << inner;
  }
}

TEST(RangeOfFloat64, ExponentialsAtTheEndOfTheNormalRangeAndBelow) {
  for (const double distance : {700.0, 707.9, 708.1, 708.39, 709.0, 710.0, 715.0, 745.0, 800.0, 1000.0, 1060.0}) {
    for (const double scale : {1.0, 100.0, 1e-3, 1e150, 1e300}) {
      for (const double divisor : {1.0, 1e-10, 1e-150, 1e-300, 1e10}) {
        for (const bool probabilities : {false, true}) {
          for (const int64_t inner : {0, 3}) JudgeFarRows(distance, scale, divisor, probabilities, inner);
        }
      }
    }
  }
}

TEST(RangeOfFloat64, RowWeightsBringTinyLossesBack) {
  for (const bool probabilities : {false, true}) {
    LossCall row = OneRow(XENT_F64, {0, -900});
    row.options.logit_scale = 1.125;
    row.SetRowWeights({1e300});
    if (probabilities) {
      row.SetProbs(XENT_F64, {{1, 0}});
      row.targets.clear();
    }
    row.MustRun(Function::kForwardBackward);
    EXPECT_EQ(row.Judge(), "");
    EXPECT_NEAR(row.row_losses.Get(0, 0) / (std::exp(-1012.5 + std::log(1e300))), 1, 1e-12);
  }
}

TEST(RangeOfFloat64, DivergencesBelowTheNormalRange) {
  for (const xent_divergence_kind kind : kDivergenceKinds) {
    for (const double temperature : {1.0, 0.01, 1e-30}) {
      for (const double distance : {707.9, 708.1, 709.5, 712.0, 720.0, 740.0}) {
        for (const int64_t inner : {0, 2}) {
          const double far = -distance * temperature;
          DivergenceCall call(XENT_F64, {{0, far, far * 0.5}, {0, far, -1}}, {{0, far * 1.001, far}, {far, 0, far}},
                              inner);
          call.options.kind = kind;
          call.options.temperature = temperature;
          call.MustRun(true);
          call.ExpectAccurate();
          ASSERT_FALSE(::testing::Test::HasFailure()) << kind << " T " << temperature << " at " << distance;
        }
      }
    }
  }
}

TEST(RangeOfFloat64, DivergencesOfTheLargestLogits) {
  const DivergenceCall::Rows far = {{1.2e308, -1.2e308, 0}, {1e308, -1e308, 1e308}}, near = {{0, 0, -1}, {0, 0.5, 0}};
  for (const xent_divergence_kind kind : kDivergenceKinds) {
    for (const bool mirrored : {false, true}) {
      for (const double temperature : {1.0, 4.0, 1e300}) {
        for (const int64_t inner : {0, 2}) {
          DivergenceCall call(XENT_F64, mirrored ? near : far, mirrored ? far : near, inner);
          call.options.kind = kind;
          call.options.temperature = temperature;
          call.row_weights = call.Vector({1, 1e-3});
          call.MustRun(true);
          call.ExpectAccurate();
          ASSERT_FALSE(::testing::Test::HasFailure()) << kind << " T " << temperature << " mirrored " << mirrored;
        }
      }
    }
  }
}

TEST(RangeOfFloat64, DifferencesPastTheLargestDouble) {
  const std::vector<double> logits = {1.2e308, -1.2e308, 1.1e308};
  for (const double scale : {0.5, 0.25, 1e-3, 1e-306, 3e-307}) {
    for (const int64_t target : {0, 1, 2}) {
      for (const bool probabilities : {false, true}) {
        LossCall row(XENT_F64, {logits}, {target});
        row.options.logit_scale = scale;
        row.wants_entropy = true;
        if (probabilities) {
          row.SetProbs(XENT_F64, {{0.5, 0.25, 0.25}});
          row.targets.clear();
          row.wants_target_grad = true;
        }
        row.MustRun(Function::kForwardBackward);
        EXPECT_EQ(row.Judge(), "") << scale << " target " << target << " probabilities " << probabilities;
      }
    }
  }
}

// What a weight, an upstream gradient or a scale brings back from beyond either end of the range, judged by the
// reference.
struct Extreme {
  std::vector<double> logits;
  int64_t target = 0;
  std::vector<double> probs = {};  // in place of the target
  double row_weight = 1, upstream = 1, z_loss = 0, scale = 1, smoothing = 0;
  std::vector<double> class_weights = {};
};

void JudgeExtreme(const Extreme &c, xent_dtype dtype, int64_t inner) {
  LossCall row(dtype, 2, static_cast<int64_t>(c.logits.size()), inner);
  for (size_t i = 0; i < c.logits.size(); ++i) {
    row.logits.Set(0, static_cast<int64_t>(i), c.logits[i]);
    row.logits.Set(1, static_cast<int64_t>(i), c.logits[i]);
  }
  row.targets = {c.target, c.target};
  if (!c.probs.empty()) {
    row.SetProbs(dtype, {c.probs, c.probs});
    row.targets.clear();
    row.wants_target_grad = true;
  }
  row.SetRowWeights({c.row_weight, c.row_weight});
  row.SetUpstream({c.upstream}, XENT_UPSTREAM_SCALAR);
  if (!c.class_weights.empty()) row.SetClassWeights(c.class_weights);
  row.options.z_loss = c.z_loss;
  row.options.logit_scale = c.scale;
  row.options.label_smoothing = c.smoothing;
  row.options.reduction.kind = XENT_REDUCTION_NONE;
  for (const bool separately : {false, true}) {
    separately ? row.MustRunForwardThenBackward() : row.MustRun(Function::kForwardBackward);
    EXPECT_EQ(row.Judge(), "") << "of [" << c.logits[0] << ", " << c.logits.back() << "], row weight " << c.row_weight
                               << ", upstream " << c.upstream << ", z_loss " << c.z_loss << ", scale " << c.scale
                               << ", smoothing " << c.smoothing << ", inner " << inner;
  }
}

TEST(RangeOfFloat64, FactorsBringBackWhatIsOutOfRange) {
  const Extreme kCases[] = {
      // Losses below the normal range.
      {.logits = {0, -723.7156}, .row_weight = 3.05e21},
      {.logits = {0, -708.5}, .row_weight = 1e10},
      {.logits = {0, -708.5}, .row_weight = -1e10, .z_loss = 1e-300},
      {.logits = {0, -723.7156}, .class_weights = {3.05e21, 1}},
      {.logits = {0, -723.7156}, .row_weight = 1e12, .class_weights = {3.05e21, 1}},
      {.logits = {0, -800}, .row_weight = 1e300, .class_weights = {1e-200, 1}},
      // Losses past the largest double.
      {.logits = {1.2e308, -1.2e308}, .target = 1, .row_weight = 1e-10},
      {.logits = {1.2e308, -1.2e308}, .target = 1, .class_weights = {1, 0.25}},
      {.logits = {1.2e308, -1.2e308}, .target = 1, .smoothing = 0.7},
      {.logits = {1.2e308, -1.2e308, -1.1e308}, .target = 1, .smoothing = 0.7},
      {.logits = {1.2e308, -1.2e308}, .target = 1, .row_weight = 0.5, .scale = 1.5},
      {.logits = {1.2e308, -1.2e308}, .probs = {0.5, 0.5}, .row_weight = 0.25, .scale = 2},
      {.logits = {1e160, 0}, .z_loss = 1e-100},
      {.logits = {1e160, 0}, .row_weight = 1e-200, .z_loss = 1},
      {.logits = {1e300, -1e300}, .target = 1, .row_weight = 1e-20, .class_weights = {1, 1e15}},
      // Gradients of z_loss.
      {.logits = {1.79e308}, .probs = {1}, .z_loss = 5.47e-66},
      {.logits = {1.79e308}, .z_loss = 2.7e187},
      {.logits = {1.79e308, 1.79e308}, .z_loss = 1e-10},
      // Gradients between the smallest normal number and twice that, off the target.
      {.logits = {0, -7.084}, .scale = 100},
      {.logits = {0, -7.13}, .scale = 100},
      {.logits = {0, -7.13}, .upstream = kInf, .scale = 100},
      {.logits = {0, -7.084}, .probs = {1, 0}, .scale = 100},
      // Gradients of labels.
      {.logits = {0, -745}, .probs = {0.2, 0.3}, .upstream = 1e50},
      {.logits = {0, -761.335}, .probs = {0, 0}, .row_weight = 5.28e99},
      {.logits = {-745, 0}, .probs = {0.5, 0.5}, .upstream = -1e50, .class_weights = {1, 2}},
      // Class weights and upstream gradients whose products are past the largest double.
      {.logits = {-1, 0}, .probs = {1, 0}, .upstream = 1e280, .class_weights = {1e284, 1}},
      {.logits = {-1, 0}, .probs = {1, 0}, .upstream = -1.1e57, .class_weights = {6.2e276, 10}},
      {.logits = {-1, 0}, .probs = {0.5, 0.5}, .upstream = 1e120, .class_weights = {1e200, 1}},
      {.logits = {-1, 0}, .upstream = 1e120, .smoothing = 0.1, .class_weights = {1e200, 1}},
      {.logits = {1, 0}, .target = 1, .row_weight = -7.95e154, .smoothing = 0.5, .class_weights = {4.5e195, 1}},
      {.logits = {-0.5, 1.2}, .scale = 1.3e257, .class_weights = {1e304, 1}},
      {.logits = {-1}, .probs = {0.5}, .upstream = 1e120, .class_weights = {1e200}},
  };
  for (const Extreme &c : kCases) {
    for (const int64_t inner : {0, 2}) JudgeExtreme(c, XENT_F64, inner);
  }
}

TEST(RangeOfZLoss, GradientsPastTheLargestNumber) {
  struct Case {
    xent_dtype dtype;
    std::vector<double> logits;
    int64_t target;
    double z_loss, first, second;
  };
  const Case kCases[] = {{XENT_F64, {1.2e308, -1.2e308}, 1, 1, kInf, -1},
                         {XENT_F64, {-1.2e308, 1.2e308}, 0, 1e300, -1, kInf},
                         {XENT_F32, {-3e38, 3e38}, 0, 1e270, -1, kInf},
                         {XENT_F32, {-3e38, 3e38}, 0, 1e300, -1, kInf}};
  for (const Case &c : kCases) {
    for (const int option : {0, 1, 2}) {  // the paths of rows without and with options, and probabilities
      LossCall row = OneRow(c.dtype, c.logits);
      row.targets = {c.target};
      row.options.z_loss = c.z_loss;
      if (option == 1) row.options.logit_scale = 1 + 0x1p-20;
      if (option == 2) {
        row.SetProbs(c.dtype, {{c.target == 0 ? 1.0 : 0.0, c.target == 1 ? 1.0 : 0.0}});
        row.targets.clear();
      }
      row.MustRun(Function::kForwardBackward);
      EXPECT_EQ(row.row_losses.Get(0, 0), kInf);
      const double scale = option == 1 ? 1 + 0x1p-20 : 1;
      EXPECT_EQ(row.grad.Get(0, 0), c.first * scale) << c.z_loss << ", option " << option;
      EXPECT_EQ(row.grad.Get(0, 1), c.second * scale) << c.z_loss << ", option " << option;
    }
  }
}

TEST(RangeOfFloat64, SumsPastTheLargestDouble) {
  for (const xent_reduction_kind kind : {XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
    LossCall call(XENT_F64, {{0, 1.2e308}, {0, 1.2e308}, {0, -1}}, {0, 0, 0});
    call.options.reduction.kind = kind;
    call.MustRun(Function::kForward);
    EXPECT_EQ(call.row_losses.Get(0, 0), 1.2e308);
    EXPECT_EQ(call.reduced_loss.Get(0, 0), kInf);
    xent_stored_losses stored = XENT_STORED_LOSSES_INIT;
    double reduced = 0;
    stored.rows = call.rows;
    stored.dtype = XENT_F64;
    stored.row_losses = call.row_losses.data();
    stored.reduced_loss = &reduced;
    ASSERT_EQ(xent_reduce(&stored, &call.options, nullptr), XENT_OK);
    EXPECT_EQ(reduced, kInf);
  }
}

TEST_P(Range, TargetOfMinusInfinityUnderACapHasNoGradient) {
  for (const bool probabilities : {false, true}) {
    LossCall row = OneRow(dtype(), {1, -kInf, 2});
    row.options.softcap = 30;
    row.targets = {1};
    if (probabilities) {
      row.SetProbs(dtype(), {{0, 1, 0}});
      row.targets.clear();
    }
    row.MustRun(Function::kForwardBackward);
    EXPECT_EQ(row.row_losses.Get(0, 0), kInf);
    EXPECT_EQ(row.grad.Get(0, 1), 0);
    EXPECT_EQ(row.Judge(), "");
  }
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
