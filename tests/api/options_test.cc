// Every option of semantics.md, one by one and at its edges, in every dtype. For each row of the options table there is
// a test that fails when that option is ignored: the results are judged against the reference with the option, and must
// be refused by the reference without it. Then what each option does to -inf, +inf, NaN, ignored rows, zero
// coefficients and denominators; the statistics; what does not go together; and the layouts.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "reference/losses.h"
#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

using reference::ArithmeticType;
using reference::LossInputs;

using Values = std::vector<std::vector<double>>;

// Exact in every dtype.
const std::vector<double> kCalm = {2.0, 1.25, 0.25, -0.5, -3.0};
const Values kThree = {{2.0, 1.25, 0.25, -0.5, -3.0}, {-1.0, 0.5, 4.0, 0.125, 1.5}, {0.75, -2.0, 1.0, 1.0, 0.5}};

class LossOptions : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  LossCall Make(const Values &logits, std::vector<int64_t> targets,
                xent_reduction_kind reduction = XENT_REDUCTION_NONE) {
    LossCall call(dtype(), logits, std::move(targets));
    call.options.reduction.kind = reduction;
    return call;
  }
  LossCall Three(xent_reduction_kind reduction = XENT_REDUCTION_MEAN) { return Make(kThree, {0, 3, 1}, reduction); }

  // Runs the three functions with the statistics; all that they write must agree with the reference.
  void ExpectRight(LossCall &call) {
    ASSERT_EQ(call.ForwardBackward(), XENT_OK) << call.error.message;
    EXPECT_EQ(call.Judge(), "");
    EXPECT_EQ(call.PaddingTrouble(), "");
    LossCall apart = call;
    ASSERT_EQ(apart.Forward(), XENT_OK) << apart.error.message;
    EXPECT_EQ(apart.ForwardDifference(call), "");
    EXPECT_EQ(apart.StatisticsDifference(call), "");
    ASSERT_EQ(apart.Backward(), XENT_OK) << apart.error.message;
    EXPECT_EQ(apart.GradientDifference(call), "");
  }

  // The same, and the results must not pass for those of the inputs that `forget` changes.
  void ExpectObeyed(LossCall &call, const std::function<void(LossInputs &)> &forget) {
    ExpectRight(call);
    LossInputs inputs = call.Inputs();
    forget(inputs);
    EXPECT_NE(call.Judge(inputs, reference::EvaluateLosses(inputs), true), "") << "the option makes no difference";
  }

  // Both forward functions refuse the call, name all of the words and the position, and write nothing. `spoil` is given
  // the arguments, which point to the call's statistics.
  void ExpectRefused(LossCall call, const std::vector<std::string> &words,
                     const std::function<void(LossCall &, xent_cross_entropy &)> &spoil = {},
                     const Position &position = {}) {
    for (const Function function : kForwards) {
      xent_cross_entropy args = call.Args(function);
      if (spoil) spoil(call, args);
      xent_error error = XENT_ERROR_INIT;
      EXPECT_EQ(EntryPoint(function)(&args, &call.options, &call.exec, &error), XENT_INVALID_ARGUMENT) << words[0];
      EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, position, words));
      EXPECT_TRUE(call.OutputsUntouched()) << words[0];
    }
  }
};

// ------------------------------------------------------------------ the options table, row by row

TEST_P(LossOptions, LogitScaleIsObeyed) {
  for (const double scale : {0.5, 3.0, 1 / 0.7, 0x1p-20, 40.0}) {
    LossCall call = Three();
    call.options.logit_scale = scale;
    call.WantEveryStatistic();
    ExpectObeyed(call, [](LossInputs &in) { in.options.logit_scale = 1; });
  }
}

TEST_P(LossOptions, SoftcapIsObeyed) {
  for (const double cap : {0.5, 2.0, 30.0}) {
    LossCall call = Three();
    call.options.softcap = cap;
    call.WantEveryStatistic();
    ExpectObeyed(call, [](LossInputs &in) { in.options.softcap = 0; });
    // The scale stands inside of the tanh: swapped, cap tanh(z / cap) scale, it is another number.
    call.options.logit_scale = 2.5;
    ExpectObeyed(call, [](LossInputs &in) {
      in.options.logit_scale = 1;
      in.options.softcap *= 2.5;
    });
  }
}

TEST_P(LossOptions, ZLossIsObeyed) {
  for (const double lambda : {1e-2, 1.0, 50.0}) {
    LossCall call = Three();
    call.options.z_loss = lambda;
    ExpectObeyed(call, [](LossInputs &in) { in.options.z_loss = 0; });
  }
}

TEST_P(LossOptions, ClassWeightsAreObeyed) {
  for (const xent_reduction_kind reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
    for (const double epsilon : {0.0, 0.25}) {
      for (const xent_smoothing form : {XENT_SMOOTHING_UNIFORM, XENT_SMOOTHING_EXCLUSIVE}) {
        LossCall call = Three(reduction);
        call.options.label_smoothing = epsilon;
        call.options.smoothing = form;
        call.SetClassWeights({0.5, 2, 1, 3, 0.25});
        ExpectObeyed(call, [](LossInputs &in) { in.class_weights.clear(); });
        call.SetClassWeights({0.5, 2, -1, 3, 0});
        ExpectObeyed(call, [](LossInputs &in) { in.class_weights.clear(); });
      }
    }
  }
}

TEST_P(LossOptions, RowWeightsAreObeyed) {
  for (const xent_reduction_kind reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
    LossCall call = Three(reduction);
    for (const std::vector<double> &weights : {std::vector<double>{0.5, 2, 0}, {3, -1, 0.25}, {0, 0, 7}}) {
      call.SetRowWeights(weights);
      ExpectObeyed(call, [](LossInputs &in) { in.row_weights.clear(); });
    }
  }
}

TEST_P(LossOptions, SmoothingIsObeyed) {
  for (const xent_smoothing form : {XENT_SMOOTHING_UNIFORM, XENT_SMOOTHING_EXCLUSIVE}) {
    LossCall call = Three();
    call.options.label_smoothing = 0.3;
    call.options.smoothing = form;
    ExpectObeyed(call, [](LossInputs &in) { in.options.label_smoothing = 0; });
    ExpectObeyed(call, [](LossInputs &in) { in.options.smoothing = XENT_SMOOTHING_EXCLUSIVE - in.options.smoothing; });
  }
}

TEST_P(LossOptions, ValidColsIsObeyed) {
  for (const int64_t valid : {1, 2, 4}) {
    // Past them the poison of a fresh tensor: signalling NaN, which would make the row NaN.
    LossCall call(dtype(), 3, 5);
    call.options.valid_cols = valid;
    call.targets = {0, valid - 1, 0};
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t c = 0; c < valid; ++c) call.logits.Set(i, c, kThree[static_cast<size_t>(i)][static_cast<size_t>(c)]);
    }
    call.options.label_smoothing = 0.25;  // epsilon / V counts valid columns
    call.WantEveryStatistic();
    ExpectRight(call);
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t c = valid; c < 5; ++c) EXPECT_EQ(call.grad.GetBits(i, c), 0u);
    }
    // Other padding, the same bits.
    LossCall infinite = call;
    for (int64_t c = valid; c < 5; ++c) infinite.logits.Set(1, c, kInf);
    ASSERT_EQ(infinite.ForwardBackward(), XENT_OK);
    EXPECT_EQ(infinite.ForwardDifference(call), "");
    EXPECT_EQ(infinite.GradientDifference(call), "");
    EXPECT_EQ(infinite.StatisticsDifference(call), "");
  }
  LossCall call = Three();
  call.targets = {0, 2, 1};
  call.options.valid_cols = 3;
  ExpectObeyed(call, [](LossInputs &in) { in.options.valid_cols = 0; });
}

TEST_P(LossOptions, ReductionAndDivisorAreObeyed) {
  LossCall call = Three(XENT_REDUCTION_SUM);
  call.SetClassWeights({0.5, 2, 1, 3, 0.25});
  ExpectObeyed(call, [](LossInputs &in) { in.options.reduction.kind = XENT_REDUCTION_MEAN; });
  for (const xent_reduction_kind reduction : {XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
    call.options.reduction.kind = reduction;
    call.options.reduction.divisor = 13;
    ExpectObeyed(call, [](LossInputs &in) { in.options.reduction.divisor = 0; });
  }
}

TEST_P(LossOptions, IgnoreIndexIsObeyed) {
  for (const int64_t ignore : {int64_t{3}, int64_t{-1}, int64_t{5}}) {
    LossCall call = Three();
    call.targets[1] = ignore;
    call.options.ignore_index = ignore;
    ExpectObeyed(call, [&](LossInputs &in) {
      in.options.ignore_index = -100;
      in.targets[1] = 3;
    });
  }
}

TEST_P(LossOptions, UpstreamIsObeyed) {
  LossCall call = Three();
  call.SetUpstream({-2.5}, XENT_UPSTREAM_SCALAR);
  ExpectObeyed(call, [](LossInputs &in) { in.upstream.clear(); });
  call.SetUpstream({-2.5, 0, 4}, XENT_UPSTREAM_ROWS);
  ExpectObeyed(call, [](LossInputs &in) { in.upstream_per_row = false; });
}

TEST_P(LossOptions, OfIgnoredIsObeyed) {
  LossCall call = Three();
  call.targets[1] = -100;
  call.of_ignored = 1;
  call.WantEveryStatistic();
  ExpectObeyed(call, [](LossInputs &in) { in.of_ignored = false; });
  // What needs a target stays what it is without the option.
  EXPECT_TRUE(Is(call.row_losses, 0, 1, 0));
  EXPECT_TRUE(Is(call.logprobs, 0, 1, 0));
  EXPECT_EQ(call.rank[1], -1);
  EXPECT_EQ(call.hits[1], 0);
  EXPECT_EQ(call.argmax[1], 2);
  EXPECT_EQ(call.live_rows, 2);
}

TEST_P(LossOptions, ProbabilityTargetsAreObeyed) {
  for (const xent_dtype probs_dtype : kDtypes) {
    LossCall call = Three();
    // Not normalised, and one row normalised.
    call.SetProbs(probs_dtype, {{0.5, 0.25, 0.125, 0, 0.125}, {2, 0, 0.5, 1, 0}, {0, 0.25, 0, 0, 0}});
    call.wants_target_grad = true;
    call.WantEveryStatistic();
    ExpectObeyed(call, [](LossInputs &in) {
      in.target_probs.clear();
      in.targets = {0, 0, 1};
    });
    EXPECT_TRUE(std::isnan(call.perplexity));
    EXPECT_EQ(call.live_rows, 3);
    call.options.label_smoothing = 0.25;
    ExpectObeyed(call, [](LossInputs &in) { in.options.label_smoothing = 0; });
    call.SetClassWeights({0.5, 2, 1, 3, 0.25});
    ExpectObeyed(call, [](LossInputs &in) { in.class_weights.clear(); });
    call.SetRowWeights({2, 0.5, -1});
    ExpectObeyed(call, [](LossInputs &in) { in.row_weights.clear(); });
  }
}

TEST_P(LossOptions, EmptyMeanIsObeyed) {
  LossCall call = Three();
  call.SetRowWeights({1, -1, 0});
  call.options.reduction.empty_mean = XENT_EMPTY_MEAN_ZERO;
  ExpectObeyed(call, [](LossInputs &in) { in.options.reduction.empty_mean = XENT_EMPTY_MEAN_NAN; });
}

TEST_P(LossOptions, ClassMajorIsObeyed) {
  for (const int64_t inner : {2, 3, 17, 64}) {
    for (const int64_t padding : {0, 3}) {
      const int64_t rows = 2 * inner;
      LossCall call(dtype(), rows, 7, inner, padding, 1);
      LossCall flat(dtype(), rows, 7);
      Random random(static_cast<uint64_t>(inner));
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t c = 0; c < 7; ++c) {
          const double z = random.Normal(2);
          call.logits.Set(i, c, z);
          flat.logits.Set(i, c, z);
        }
        call.targets[static_cast<size_t>(i)] = flat.targets[static_cast<size_t>(i)] = random.Below(7);
      }
      call.WantEveryStatistic();
      flat.WantEveryStatistic();
      ExpectRight(call);
      ExpectRight(flat);
      EXPECT_EQ(call.argmax, flat.argmax);
      EXPECT_EQ(call.rank, flat.rank);
      EXPECT_EQ(call.topk_indices, flat.topk_indices);
    }
  }
}

// ------------------------------------------------------------------ neutral values

TEST_P(LossOptions, NeutralValuesChangeNoBit) {
  LossCall plain = Three();
  ASSERT_EQ(plain.ForwardBackward(), XENT_OK);
  const std::function<void(LossCall &)> kNeutral[] = {
      [](LossCall &call) { call.options.logit_scale = 1; },
      [](LossCall &call) { call.options.softcap = -0.0; },
      [](LossCall &call) { call.options.z_loss = -0.0; },
      [](LossCall &call) { call.options.valid_cols = 5; },
      [](LossCall &call) { call.inner = 1; },
      [](LossCall &call) { call.of_ignored = 1; },
      [](LossCall &call) { call.WantEveryStatistic(); },
  };
  for (const auto &neutral : kNeutral) {
    LossCall call = Three();
    neutral(call);
    ASSERT_EQ(call.ForwardBackward(), XENT_OK) << call.error.message;
    EXPECT_EQ(call.ForwardDifference(plain), "");
    EXPECT_EQ(call.GradientDifference(plain), "");
  }
}

TEST_P(LossOptions, NeutralWeightsAreTheSameNumbers) {
  LossCall call = Three();
  call.SetClassWeights({1, 1, 1, 1, 1});
  call.SetRowWeights({1, 1, 1});
  ExpectRight(call);
  LossInputs inputs = call.Inputs();
  inputs.class_weights.clear();
  inputs.row_weights.clear();
  EXPECT_EQ(call.Judge(inputs, reference::EvaluateLosses(inputs), true), "");
}

// ------------------------------------------------------------------ coefficients of zero

TEST_P(LossOptions, ClassWeightOfZeroOverAMask) {
  for (const xent_smoothing form : {XENT_SMOOTHING_UNIFORM, XENT_SMOOTHING_EXCLUSIVE}) {
    LossCall call = Make({{1, -kInf, 0.5, 2, -kInf}, kCalm}, {0, 2});
    call.options.label_smoothing = 0.25;
    call.options.smoothing = form;
    call.SetClassWeights({1, 0, 2, 0.5, 0});
    ExpectRight(call);
    EXPECT_TRUE(std::isfinite(call.row_losses.Get(0, 0)));
    // One that is not zero is enough.
    call.SetClassWeights({1, 0, 2, 0.5, 0x1p-100});
    ExpectRight(call);
    EXPECT_TRUE(Is(call.row_losses, 0, 0, kInf));
  }
}

TEST_P(LossOptions, ClassWeightOfZeroAtAMaskedTarget) {
  LossCall call = Make({{1, -kInf, 0.5, 2, 0}}, {1});
  call.SetClassWeights({1, 0, 2, 0.5, 3});
  ExpectRight(call);
  EXPECT_EQ(call.row_losses.Get(0, 0), 0);
  for (int64_t c = 0; c < 5; ++c) EXPECT_EQ(call.grad.Get(0, c), 0);
}

TEST_P(LossOptions, InfinitiesOfBothSignsGiveTheCanonicalNan) {
  // Weights of both signs over two masked columns: +inf - inf.
  LossCall call = Make({{1, -kInf, 0.5, -kInf}, {1, 0, 0.5, -kInf}, {1, 0, 0.5, -kInf}}, {0, 0, 3});
  call.options.label_smoothing = 0.25;
  call.SetClassWeights({1, 2, 0.5, -1});
  ExpectRight(call);
  EXPECT_TRUE(Is(call.row_losses, 0, 0, kNan));
  EXPECT_TRUE(Is(call.row_losses, 0, 1, -kInf));
  EXPECT_TRUE(Is(call.row_losses, 0, 2, -kInf));
  call.options.reduction.kind = XENT_REDUCTION_SUM;
  call.targets = {-100, 0, 0};
  call.SetRowWeights({1, 1, -1});
  ExpectRight(call);
  EXPECT_TRUE(Is(call.reduced_loss, 0, 0, kNan));
}

TEST_P(LossOptions, RowWeightOfZero) {
  // 0 * inf = 0, but a row of NaN comes before that rule.
  LossCall call =
      Make({{1, -kInf, 0.5}, {1, kNan, 0.5}, {1, kInf, 0.5}, {-kInf, -kInf, -kInf}, {1, 2, 3}}, {1, 0, 0, 0, 0});
  call.SetRowWeights({0, 0, 0, 0, 0});
  ExpectRight(call);
  EXPECT_EQ(call.row_losses.Get(0, 0), 0);
  for (const int64_t i : {1, 2, 3}) {
    EXPECT_TRUE(Is(call.row_losses, 0, i, kNan));
    for (int64_t c = 0; c < 3; ++c) EXPECT_TRUE(std::isnan(call.grad.Get(i, c)));
  }
  EXPECT_EQ(call.row_losses.Get(0, 4), 0);
  // With an infinite upstream gradient too: the other factor is 0.
  call = Make({{1, -kInf, 0.5}, {1, 2, 3}}, {1, 0});
  call.SetRowWeights({0, 0});
  call.SetUpstream({kInf}, XENT_UPSTREAM_SCALAR);
  ExpectRight(call);
}

TEST_P(LossOptions, EpsilonOfOne) {
  // The target's own -inf is forgotten by exclusive smoothing, whatever its weight; uniform keeps epsilon / V there.
  LossCall call = Make({{-kInf, 0.5, -1}}, {0});
  call.options.label_smoothing = 1;
  call.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
  call.SetClassWeights({3, 2, 0.5});
  ExpectRight(call);
  EXPECT_TRUE(std::isfinite(call.row_losses.Get(0, 0)));
  call.options.smoothing = XENT_SMOOTHING_UNIFORM;
  ExpectRight(call);
  EXPECT_TRUE(Is(call.row_losses, 0, 0, kInf));
  call.SetClassWeights({0, 2, 0.5});
  ExpectRight(call);
  EXPECT_TRUE(std::isfinite(call.row_losses.Get(0, 0)));
}

TEST_P(LossOptions, ProbabilityOfZeroOverAMask) {
  LossCall call = Make({{1, -kInf, 0.5}, {1, -kInf, 0.5}, {1, 0, -kInf}}, {});
  call.SetProbs(XENT_F32, {{0.5, 0, 0.5}, {0.5, 0.25, 0.25}, {0, 0, 0}});
  call.wants_target_grad = true;
  ExpectRight(call);
  EXPECT_TRUE(std::isfinite(call.row_losses.Get(0, 0)));
  EXPECT_TRUE(Is(call.row_losses, 0, 1, kInf));
  EXPECT_EQ(call.row_losses.Get(0, 2), 0);
  // The loss grows without bound in q there.
  EXPECT_EQ(call.target_grad.Get(0, 1), kInf);
  EXPECT_EQ(call.target_grad.Get(2, 2), kInf);
  // 0 * inf in it too: weight 0, 1 - epsilon = 0.
  call.SetClassWeights({1, 0, 0});
  ExpectRight(call);
  EXPECT_EQ(call.target_grad.Get(0, 1), 0);
  call.class_weights.reset();
  call.options.label_smoothing = 1;
  ExpectRight(call);
  EXPECT_EQ(call.target_grad.Get(0, 1), 0);
  EXPECT_TRUE(Is(call.row_losses, 0, 0, kInf));
}

// ------------------------------------------------------------------ the order of the rules

TEST_P(LossOptions, IgnoredComesBeforeNanAndNanBeforeTheRest) {
  for (const bool every_option : {false, true}) {
    LossCall call = Make({{kNan, 0, 1}, {kNan, 0, 1}, {kInf, 0, 1}, {-kInf, -kInf, -kInf}, {0, 1, 2}},
                         {-100, 1, 1, 1, 1}, XENT_REDUCTION_SUM);
    if (every_option) {
      call.options.logit_scale = 0.5;
      call.options.softcap = 2;
      call.options.z_loss = 0.5;
      call.options.label_smoothing = 0.5;
      call.SetClassWeights({0, 0, 0});
      call.SetRowWeights({1, 0, 0, 0, 1});
    }
    call.WantEveryStatistic();
    ExpectRight(call);
    EXPECT_TRUE(Is(call.row_losses, 0, 0, 0));
    for (int64_t c = 0; c < 3; ++c) EXPECT_EQ(call.grad.GetBits(0, c), 0u);
    for (const int64_t i : {1, 2, 3}) {
      EXPECT_TRUE(Is(call.row_losses, 0, i, kNan));
      EXPECT_TRUE(Is(call.lse, 0, i, kNan));
      EXPECT_TRUE(Is(call.entropy, 0, i, kNan));
      EXPECT_TRUE(Is(call.logprobs, 0, i, kNan));
      EXPECT_EQ(call.argmax[static_cast<size_t>(i)], -1);
      EXPECT_EQ(call.rank[static_cast<size_t>(i)], -1);
    }
    EXPECT_TRUE(std::isfinite(call.row_losses.Get(0, 4)));
    EXPECT_EQ(call.live_rows, 4);
  }
}

TEST_P(LossOptions, NanRowsKeepTheColumnsPastValidColsAtZero) {
  LossCall call = Make({{kNan, 0, 1, 7}}, {1});
  call.options.valid_cols = 3;
  ExpectRight(call);
  for (int64_t c = 0; c < 3; ++c) EXPECT_TRUE(std::isnan(call.grad.Get(0, c)));
  EXPECT_EQ(call.grad.GetBits(0, 3), 0u);
}

TEST_P(LossOptions, NanRowsOfOneColumn) {
  LossCall call = Make({{kNan}, {kInf}, {-kInf}, {7}}, {0, 0, 0, 0});
  call.options.z_loss = 0.5;
  call.options.logit_scale = 2;
  ExpectRight(call);
  for (const int64_t i : {0, 1, 2}) EXPECT_TRUE(Is(call.row_losses, 0, i, kNan));
  EXPECT_TRUE(Is(call.row_losses, 0, 3, 0.5 * 14 * 14));
}

TEST_P(LossOptions, IgnoredRowsHaveNoWeight) {
  LossCall call = Make({kCalm, kCalm, {kNan, 0, 0, 0, 0}}, {1, -100, -100}, XENT_REDUCTION_MEAN);
  call.SetRowWeights({2, 5, 1e30});
  call.SetClassWeights({0.5, 2, 1, 3, 0.25});
  call.SetUpstream({kNan, kNan, kNan}, XENT_UPSTREAM_ROWS);
  ExpectRight(call);
  for (const int64_t i : {1, 2}) {
    for (int64_t c = 0; c < 5; ++c) EXPECT_EQ(call.grad.GetBits(i, c), 0u);
  }
  for (int64_t c = 0; c < 5; ++c) EXPECT_TRUE(std::isnan(call.grad.Get(0, c)));
}

// ------------------------------------------------------------------ denominators

TEST_P(LossOptions, WeightsThatAddUpToZero) {
  const std::function<void(LossCall &)> kWays[] = {
      [](LossCall &call) { call.SetRowWeights({1.5, -0.5, -1}); },
      [](LossCall &call) { call.SetRowWeights({0, 0, 0}); },
      [](LossCall &call) { call.SetClassWeights({0, 0, 5, 0, 5}); },
      [](LossCall &call) { call.SetClassWeights({2, -0.5, 9, -1.5, 9}); },
      [](LossCall &call) {
        call.SetClassWeights({2, 4, 9, -1, 9});
        call.SetRowWeights({1, 4, 0.5});
      },
  };
  for (const auto &way : kWays) {
    for (const xent_empty_mean empty : {XENT_EMPTY_MEAN_NAN, XENT_EMPTY_MEAN_ZERO}) {
      LossCall call = Three();
      call.options.reduction.empty_mean = empty;
      call.SetUpstream({kNan}, XENT_UPSTREAM_SCALAR);
      way(call);
      ExpectRight(call);
      EXPECT_TRUE(Is(call.reduced_loss, 0, 0, empty == XENT_EMPTY_MEAN_ZERO ? 0 : kNan));
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t c = 0; c < 5; ++c) EXPECT_EQ(call.grad.GetBits(i, c), 0u);
      }
      EXPECT_TRUE(std::isfinite(call.perplexity));
      // Neither the sum nor a divisor minds.
      call.upstream.reset();
      call.options.reduction.kind = XENT_REDUCTION_SUM;
      ExpectRight(call);
      EXPECT_TRUE(std::isfinite(call.reduced_loss.Get(0, 0)));
      call.options.reduction.kind = XENT_REDUCTION_MEAN;
      call.options.reduction.divisor = 3;
      ExpectRight(call);
      EXPECT_TRUE(std::isfinite(call.reduced_loss.Get(0, 0)));
    }
  }
}

TEST_P(LossOptions, WeightsThatAddUpToZeroOverANanRow) {
  LossCall call = Make({kCalm, {kNan, 0, 0, 0, 0}}, {1, 1}, XENT_REDUCTION_MEAN);
  call.SetRowWeights({1, -1});
  ExpectRight(call);
  EXPECT_TRUE(Is(call.reduced_loss, 0, 0, kNan));
  for (int64_t c = 0; c < 5; ++c) EXPECT_EQ(call.grad.GetBits(1, c), 0u);
}

TEST_P(LossOptions, NegativeDenominator) {
  LossCall call = Three();
  call.SetRowWeights({1, -4, 0.5});
  ExpectRight(call);
}

TEST_P(LossOptions, ProbabilityTargetsDivideByTheRows) {
  LossCall call = Three();
  call.SetProbs(XENT_F32, {{1, 0, 0, 0, 0}, {0, 0, 0, 1, 0}, {0, 1, 0, 0, 0}});
  call.SetRowWeights({1, -1, 0});
  call.SetClassWeights({2, 2, 1, 2, 1});
  ExpectRight(call);
  EXPECT_TRUE(std::isfinite(call.reduced_loss.Get(0, 0)));
  LossCall none(dtype(), 0, 5);
  none.SetProbs(XENT_F32, {});
  ASSERT_EQ(none.ForwardBackward(), XENT_OK) << none.error.message;
  EXPECT_TRUE(Is(none.reduced_loss, 0, 0, kNan));
  none.options.reduction.empty_mean = XENT_EMPTY_MEAN_ZERO;
  ASSERT_EQ(none.ForwardBackward(), XENT_OK) << none.error.message;
  EXPECT_TRUE(Is(none.reduced_loss, 0, 0, 0));
}

TEST_P(LossOptions, PerplexityIsOfTheBareLikelihoods) {
  LossCall plain = Three();
  ASSERT_EQ(plain.Forward(), XENT_OK);
  LossCall call = Three(XENT_REDUCTION_SUM);
  call.SetRowWeights({0, 7, -2});
  call.SetClassWeights({0.5, 2, 1, 3, 0.25});
  call.options.z_loss = 3;
  call.options.label_smoothing = 0.5;
  ExpectRight(call);
  EXPECT_NEAR(call.perplexity / plain.perplexity, 1, 1e-6);
  // It is of the transformed logits, though.
  call.options.logit_scale = 2;
  ExpectRight(call);
  EXPECT_GT(std::fabs(call.perplexity / plain.perplexity - 1), 1e-2);
}

TEST_P(LossOptions, ReduceWithWeightsGivesTheBitsOfTheCall) {
  LossCall call = Make({kCalm, kThree[1], kThree[2], kCalm}, {0, 3, 1, -100}, XENT_REDUCTION_MEAN);
  call.SetRowWeights({1, 0.3, 2, 9});
  call.SetClassWeights({0.5, 2, 1, 3, 0.25});
  ExpectRight(call);
  Matrix loss(ArithmeticType(dtype()), 1, 1);
  xent_stored_losses args = XENT_STORED_LOSSES_INIT;
  args.rows = 4;
  args.cols = 5;
  args.row_losses = call.row_losses.data();
  args.targets.data = call.targets.data();
  args.reduced_loss = loss.data();
  args.dtype = loss.dtype();
  const auto reduce = [&](const void *rows, const void *classes) {
    args.row_weights = rows;
    args.class_weights = classes;
    return xent_reduce(&args, nullptr, nullptr);
  };
  ASSERT_EQ(reduce(call.row_weights->data(), call.class_weights->data()), XENT_OK);
  EXPECT_EQ(FirstDifference(loss, call.reduced_loss), "");
  ASSERT_EQ(reduce(call.row_weights->data(), nullptr), XENT_OK);
  EXPECT_NE(FirstDifference(loss, call.reduced_loss), "");
  ASSERT_EQ(reduce(nullptr, call.class_weights->data()), XENT_OK);
  EXPECT_NE(FirstDifference(loss, call.reduced_loss), "");
  // Weights of 1 are none.
  ASSERT_EQ(reduce(nullptr, nullptr), XENT_OK);
  const Matrix unweighted = loss;
  const Matrix ones = MatrixOf(loss.dtype(), {{1, 1, 1, 1, 1}});
  ASSERT_EQ(reduce(ones.data(), ones.data()), XENT_OK);
  EXPECT_EQ(FirstDifference(loss, unweighted), "");
  // Targets are looked up in the class weights, so they are checked.
  call.targets[1] = 5;
  args.class_weights = call.class_weights->data();
  xent_error error = XENT_ERROR_INIT;
  EXPECT_EQ(xent_reduce(&args, nullptr, &error), XENT_TARGET_OUT_OF_RANGE);
  EXPECT_TRUE(Tells(error, XENT_TARGET_OUT_OF_RANGE, {.row = 1, .column = -1, .value = 5}, {"targets", "row 1", "5"}));
  args.targets = XENT_NO_TARGETS;
  error = XENT_ERROR_INIT;
  EXPECT_EQ(xent_reduce(&args, nullptr, &error), XENT_INVALID_ARGUMENT);
  EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, {"targets|targets.data"}));
}

// ------------------------------------------------------------------ softcap and scale at their edges

TEST_P(LossOptions, MinusInfStaysMinusInfUnderSoftcap) {
  // Not -cap: the column has no probability. Where the target's own logit is, the derivative is 0 with the column's
  // sech^2.
  LossCall call = Make({{1, -kInf, 0.5}, {1, -kInf, 0.5}}, {0, 1});
  call.options.softcap = 2;
  call.WantEveryStatistic();
  ExpectRight(call);
  EXPECT_TRUE(std::isfinite(call.row_losses.Get(0, 0)));
  EXPECT_TRUE(Is(call.row_losses, 0, 1, kInf));
  EXPECT_EQ(call.grad.Get(0, 1), 0);
  EXPECT_EQ(call.grad.Get(1, 1), 0);
  EXPECT_GT(call.grad.Get(1, 0), 0);
}

TEST_P(LossOptions, PlusInfAndNanStayThatUnderSoftcap) {
  LossCall call = Make({{1, kInf, 0.5}, {1, kNan, 0.5}, {-kInf, -kInf, -kInf}}, {0, 0, 0});
  call.options.softcap = 2;
  ExpectRight(call);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(Is(call.row_losses, 0, i, kNan));
    for (int64_t c = 0; c < 3; ++c) EXPECT_TRUE(std::isnan(call.grad.Get(i, c)));
  }
}

TEST_P(LossOptions, HugeLogitsUnderSoftcap) {
  // All at +-cap; the gradient is below the smallest normal number, and nothing is NaN.
  const double huge = dtype() == XENT_F16 ? 6e4 : dtype() == XENT_F64 ? 1e300 : 3e38;
  LossCall call = Make({{huge, -huge, huge, 0}, {-huge, -huge, -huge, -huge / 2}}, {1, 3});
  for (const double scale : {1.0, 100.0}) {
    call.options.softcap = 5;
    call.options.logit_scale = scale;
    call.WantEveryStatistic();
    ExpectRight(call);
    for (const int64_t c : {0, 1, 2}) EXPECT_EQ(call.grad.Get(0, c), 0);
    // The transformed logits tie, the stored ones are compared.
    EXPECT_EQ(call.argmax[1], 3);
    EXPECT_EQ(call.rank[1], 0);
  }
}

TEST_P(LossOptions, SechIsNotOneMinusTanhSquared) {
  // scale z / cap = 10: 1 - tanh^2 would be 0 in float32, sech^2 is 8.2e-9.
  LossCall call = Make({{20, 19, 18}, {-20, -19, -18}}, {0, 0});
  call.options.softcap = 2;
  call.SetUpstream({1e6}, XENT_UPSTREAM_SCALAR);
  ExpectRight(call);
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t c = 0; c < 3; ++c) EXPECT_NE(call.grad.Get(i, c), 0);
  }
}

TEST_P(LossOptions, LargeAndSmallCaps) {
  for (const double cap : {1e-3, 0.1, 1e3, 1e30}) {
    LossCall call = Three();
    call.options.softcap = cap;
    ExpectRight(call);
  }
}

TEST_P(LossOptions, ScaleCostsNoAccuracy) {
  // Rows around 1e4, confident rows, hopeless rows, at scales that are no powers of two.
  for (const double scale : {0.1, 1 / 0.7, 3.3, 10.0}) {
    LossCall call(dtype(), 4, 300);
    Random random(5);
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t c = 0; c < 300; ++c) {
        call.logits.Set(
            i, c, (i == 0 ? 1e4 : 0) + random.Normal(2) + (c == 7 && i == 1 ? 60 : 0) - (c == 7 && i == 2 ? 60 : 0));
      }
    }
    call.targets = {0, 7, 7, 299};
    call.options.logit_scale = scale;
    call.WantEveryStatistic();
    ExpectRight(call);
  }
}

TEST_P(LossOptions, ExtremeScales) {
  for (const double scale : {1e-300, 1e-30, 1e3}) {
    LossCall call = Three();
    call.options.logit_scale = scale;
    ExpectRight(call);
  }
}

TEST_P(LossOptions, ScaledLogitsUpTo3e38DoNotOverflow) {
  const double huge = dtype() == XENT_F16 ? 6e4 : 3e38;
  LossCall call = Make({{huge, -huge, 0}, {-huge, -huge, -huge}, {huge, huge, huge}}, {0, 1, 2});
  for (const double scale : {0.5, 1.0, 1.1, 64.0}) {
    call.options.logit_scale = scale;
    ExpectRight(call);
    for (int64_t i = 0; i < 3; ++i) EXPECT_FALSE(std::isnan(call.row_losses.Get(0, i)));
  }
}

TEST_P(LossOptions, ConfidentRowsKeepTheirDigitsUnderWeightsAndScale) {
  // The target's gradient is -w_t sum_{j != t} p_j whatever the path: 1e-9 to 1e-152 of w_t here, and exactly 0 where
  // every other column is masked.
  for (const int64_t inner : {0, 4}) {
    for (const double margin : {20.0, 40.0, 80.0, 350.0, kInf}) {
      for (const double weight : {2.0224590897560120, 0.30000000000000004, -1.7}) {
        for (const double scale : {1.0, 0.48535073829943942, 1.7346435696950719}) {
          if (margin == 350 && dtype() != XENT_F64) continue;
          LossCall call(dtype(), 4, 6, inner);
          for (int64_t i = 0; i < 4; ++i) {
            for (int64_t c = 0; c < 6; ++c) {
              call.logits.Set(i, c, c == i ? 40.25 : 40.25 - margin / scale - static_cast<double>(c) / 8);
            }
            call.targets[static_cast<size_t>(i)] = i;
          }
          call.options.logit_scale = scale;
          call.options.reduction.kind = XENT_REDUCTION_SUM;
          call.SetClassWeights({weight, 1.3 * weight, 0.7 * weight, weight / 3, 1, 1});
          call.SetRowWeights({0.823711841, 1, 3.3, -0.1});
          call.SetUpstream({19.758703}, XENT_UPSTREAM_SCALAR);
          ExpectRight(call);
        }
      }
    }
  }
}

// ------------------------------------------------------------------ z-loss

TEST_P(LossOptions, ZLossIsNotWeightedByClassButByRow) {
  LossCall call = Make({{1, 1}, {1, 1}}, {0, 1});
  call.SetClassWeights({0, 0});
  call.SetRowWeights({1, 3});
  call.options.z_loss = 0.5;
  ExpectRight(call);
  const long double lse = 1 + std::log(2.0L);
  EXPECT_TRUE(Within(call.row_losses, 0, 0, {lse * lse / 2, lse * lse / 2}, kLossUlp));
  EXPECT_TRUE(Within(call.row_losses, 0, 1, {3 * lse * lse / 2, 3 * lse * lse / 2}, kLossUlp));
}

TEST_P(LossOptions, ZLossOfNegativeLse) {
  LossCall call = Make({{-10, -12, -9}, {-0.75, -1.5, -1}}, {0, 1});
  call.options.z_loss = 0.25;
  ExpectRight(call);
  EXPECT_GT(call.row_losses.Get(0, 0), 0);
}

TEST_P(LossOptions, ZLossOfLseNearZeroKeepsItsDigits) {
  // The loss is lambda lse^2 alone, or nearly, and lse the small difference of log V and the maximum: every term of the
  // formula is positive, so the bound is 4 ULP of the loss all the same.
  Random random(3);
  for (const int64_t cols : {2, 3, 10, 100}) {
    for (int attempt = 0; attempt < 50; ++attempt) {
      LossCall call(dtype(), 1, cols);
      const double lse = std::ldexp(random.Normal(1), -6);
      for (int64_t c = 0; c < cols; ++c) {
        call.logits.Set(0, c, lse - std::log(static_cast<double>(cols)) + random.Normal(0.0078125));
      }
      call.options.reduction.kind = XENT_REDUCTION_NONE;
      call.options.z_loss = 0.5;
      call.SetClassWeights(std::vector<double>(static_cast<size_t>(cols), attempt % 2 == 0 ? 0 : 0x1p-10));
      ExpectRight(call);
    }
  }
}

TEST_P(LossOptions, ZLossOfHugeLseIsInfNotNan) {
  // lambda lse^2 is formed in double: 9e76 is past float32's largest number.
  if (dtype() == XENT_F16) return;
  LossCall call = Make({{3e38, -3e38, 0}}, {0});
  call.options.z_loss = 1;
  ExpectRight(call);
  if (dtype() != XENT_F64) {
    EXPECT_TRUE(Is(call.row_losses, 0, 0, kInf));
  }
}

// ------------------------------------------------------------------ valid_cols and targets

TEST_P(LossOptions, TargetPastValidCols) {
  LossCall call = Three();
  call.targets = {0, -100, 3};
  call.options.valid_cols = 3;
  EXPECT_EQ(call.ForwardBackward(), XENT_TARGET_OUT_OF_RANGE);
  EXPECT_TRUE(
      Tells(call.error, XENT_TARGET_OUT_OF_RANGE, {.row = 2, .column = -1, .value = 3}, {"targets", "row 2", "3"}));
  EXPECT_TRUE(call.OutputsUntouched());
  // As ignore_index it is none.
  call.options.ignore_index = 3;
  call.targets[1] = 1;
  ExpectRight(call);
}

TEST_P(LossOptions, ProbabilitiesPastValidColsAreNotRead) {
  LossCall call(dtype(), 2, 4);
  call.target_probs = Tensor(XENT_F16, 2, 4);
  call.options.valid_cols = 2;
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t c = 0; c < 2; ++c) {
      call.logits.Set(i, c, static_cast<double>(c - i));
      call.target_probs->Set(i, c, 0.25);
    }
  }
  call.wants_target_grad = true;
  call.options.label_smoothing = 0.5;
  ExpectRight(call);
  for (int64_t i = 0; i < 2; ++i) {
    for (const int64_t c : {2, 3}) {
      EXPECT_EQ(call.grad.GetBits(i, c), 0u);
      EXPECT_EQ(call.target_grad.GetBits(i, c), 0u);
    }
  }
}

// Memory whose end is followed by pages that cannot be read.
class Guarded {
 public:
  Guarded(const void *bytes, size_t size) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t readable = (size + page - 1) / page * page;
    size_ = readable + 16 * page;
    base_ = static_cast<char *>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(base_, MAP_FAILED);
    data_ = base_ + readable - size;
    std::memcpy(data_, bytes, size);
    EXPECT_EQ(mprotect(base_ + readable, 16 * page, PROT_NONE), 0);
  }
  ~Guarded() { munmap(base_, size_); }
  Guarded(const Guarded &) = delete;
  Guarded &operator=(const Guarded &) = delete;
  void *data() const { return data_; }

 private:
  char *base_;
  char *data_;
  size_t size_;
};

TEST_P(LossOptions, NothingIsReadPastValidColsNorOfIgnoredRows) {
  // The live row (in class-major layout: the rows) ends with its last valid column at the end of readable memory. What
  // follows, its other columns and the ignored rows, would end the process.
  const std::function<void(LossCall &)> kOptions[] = {
      [](LossCall &) {},
      [](LossCall &call) { call.options.softcap = 2; },
      [](LossCall &call) { call.options.label_smoothing = 0.5; },
      [](LossCall &call) { call.options.z_loss = 0.5; },
      [](LossCall &call) {
        call.target_probs = Tensor(XENT_F32, call.rows, call.cols, call.inner);
        for (int64_t c = 0; c < call.options.valid_cols; ++c) {
          for (int64_t i = 0; i < call.rows; ++i) call.target_probs->Set(i, c, 0.125);
        }
      },
  };
  for (const auto &option : kOptions) {
    for (const int64_t valid : {1, 3, 8, 16, 17, 1000, 1025, 2047}) {
      for (const int64_t inner : {0, 2, 5}) {
        const int64_t rows = inner == 0 ? 3 : inner;
        LossCall call(dtype(), rows, valid + 40, inner);
        call.options.valid_cols = valid;
        call.options.reduction.kind = XENT_REDUCTION_NONE;
        for (int64_t i = 0; i < (inner == 0 ? 1 : rows); ++i) {
          for (int64_t c = 0; c < valid; ++c)
            call.logits.Set(i, c, static_cast<double>(c % 7) - static_cast<double>(i) / 4);
        }
        if (inner == 0) call.targets = {valid - 1, -100, -100};
        option(call);
        if (call.target_probs && inner == 0) continue;  // no row is ignored
        call.WantEveryStatistic();
        ASSERT_EQ(call.Forward(), XENT_OK) << call.error.message;
        LossCall guarded = call;
        xent_cross_entropy args = guarded.Args(Function::kForward);
        const size_t elements = static_cast<size_t>(valid * (inner == 0 ? 1 : inner));
        const Guarded logits(call.logits.data(), elements * static_cast<size_t>(reference::FormatOf(dtype()).bytes));
        const Guarded probs(call.target_probs ? call.target_probs->data() : call.logits.data(),
                            call.target_probs ? elements * 4 : 8);
        args.logits.data = logits.data();
        if (call.target_probs) args.target_probs.data = probs.data();
        ASSERT_EQ(xent_cross_entropy_forward(&args, &call.options, &call.exec, nullptr), XENT_OK);
        EXPECT_EQ(guarded.ForwardDifference(call), "");
        EXPECT_EQ(guarded.StatisticsDifference(call), "");
      }
    }
  }
}

TEST_P(LossOptions, ClassWeightsHaveVEntriesUnderValidColsToo) {
  LossCall call = Three();
  call.targets = {0, 2, 1};
  call.options.valid_cols = 3;
  call.options.label_smoothing = 0.5;
  call.SetClassWeights({1, 2, 0.5, 1e6, -1e6});  // the last two are of no row
  ExpectRight(call);
}

// ------------------------------------------------------------------ probability targets

TEST_P(LossOptions, OneHotProbabilitiesAreIndexTargets) {
  LossCall call = Three(XENT_REDUCTION_MEAN);
  call.SetProbs(dtype(), {{1, 0, 0, 0, 0}, {0, 0, 0, 1, 0}, {0, 1, 0, 0, 0}});
  ExpectRight(call);
  LossInputs inputs = call.Inputs();
  inputs.target_probs.clear();
  inputs.targets = {0, 3, 1};
  const reference::Losses want = reference::EvaluateLosses(inputs);
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(Within(call.row_losses, 0, i, want.losses[static_cast<size_t>(i)], kLossUlp));
  }
  EXPECT_TRUE(Within(call.reduced_loss, 0, 0, want.loss, kLossUlp));
}

TEST_P(LossOptions, GradientIsNotPMinusQUnlessQSumsToOne) {
  LossCall call = Make({{0, 0}}, {});
  call.SetProbs(XENT_F64, {{1, 1}});
  ExpectRight(call);
  for (int64_t c = 0; c < 2; ++c) EXPECT_EQ(call.grad.Get(0, c), 0);  // p - q would be -1/2
  call.SetProbs(XENT_F64, {{0, 0}});
  ExpectRight(call);
  for (int64_t c = 0; c < 2; ++c) EXPECT_EQ(call.grad.Get(0, c), 0);  // p - q would be 1/2
  EXPECT_EQ(call.row_losses.Get(0, 0), 0);
}

TEST_P(LossOptions, ConfidentProbabilitiesKeepTheirDigits) {
  for (const double margin : {20.0, 40.0, 80.0}) {
    LossCall call = Make({{margin, 0, -1, 0.5}}, {});
    call.SetProbs(XENT_F32, {{1, 0, 0, 0}});
    call.wants_target_grad = true;
    ExpectRight(call);
    EXPECT_GT(call.row_losses.Get(0, 0), 0);
    EXPECT_GT(call.target_grad.Get(0, 0), 0);
  }
}

TEST_P(LossOptions, TargetGradientIsRoundedOnce) {
  // Twenty thousand gradients of half-precision targets, close to the midpoints of their type often enough that going
  // by way of float32 would round some to the wrong neighbour.
  for (const xent_dtype probs_dtype : {XENT_BF16, XENT_F16, XENT_F32}) {
    LossCall call(dtype(), 4, 5000);
    call.target_probs = Tensor(probs_dtype, 4, 5000);
    Random random(11);
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t c = 0; c < 5000; ++c) {
        call.logits.Set(i, c, random.Normal(2));
        call.target_probs->Set(i, c, random.Uniform() / 4096);
      }
    }
    call.wants_target_grad = true;
    call.options.reduction.kind = XENT_REDUCTION_NONE;
    ExpectRight(call);
  }
}

TEST_P(LossOptions, ProbabilitiesOfNanRows) {
  LossCall call = Make({{kNan, 0}, {0, kInf}, {-kInf, -kInf}, {0, 1}}, {});
  call.SetProbs(XENT_BF16, {{0, 0}, {0.5, 0.5}, {1, 0}, {0.5, 0.25}});
  call.wants_target_grad = true;
  call.WantEveryStatistic();
  ExpectRight(call);
  EXPECT_TRUE(Is(call.row_losses, 0, 0, kNan));
  EXPECT_TRUE(std::isnan(call.target_grad.Get(1, 1)));
}

// ------------------------------------------------------------------ statistics

TEST_P(LossOptions, StatisticsOfTies) {
  LossCall call =
      Make({{1, 3, 3, -2, 3}, {0, -0.0, 0, -0.0, 0}, {-kInf, 5, -kInf, 5, -kInf}, {4, 4, 4, 4, 4}}, {4, 3, 4, 0});
  call.WantEveryStatistic();
  call.top_k = 5;
  ExpectRight(call);
  EXPECT_EQ(call.argmax, (std::vector<int64_t>{1, 0, 1, 0}));
  EXPECT_EQ(call.rank, (std::vector<int64_t>{2, 3, 4, 0}));
  EXPECT_EQ(call.hits, (std::vector<uint8_t>{0, 0, 0, 1}));
  EXPECT_EQ(call.topk_indices, (std::vector<int64_t>{1, 2, 4, 0, 3, 0, 1, 2, 3, 4, 1, 3, 0, 2, 4, 0, 1, 2, 3, 4}));
  EXPECT_EQ(call.topk_logprobs.Get(0, 12), -kInf);
}

TEST_P(LossOptions, StatisticsOfNanRowsAndIgnoredRows) {
  for (const int32_t also_ignored : {0, 1}) {
    LossCall call =
        Make({{kNan, 1, 2}, {1, kInf, 2}, {-kInf, -kInf, -kInf}, {kNan, 1, 2}, {1, 5, 2}}, {0, 1, 2, -100, -100});
    call.of_ignored = also_ignored;
    call.WantEveryStatistic();
    ExpectRight(call);
    for (int64_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(Is(call.logprobs, 0, i, kNan));
      EXPECT_TRUE(Is(call.entropy, 0, i, kNan));
      EXPECT_EQ(call.argmax[static_cast<size_t>(i)], -1);
      EXPECT_EQ(call.rank[static_cast<size_t>(i)], -1);
      EXPECT_EQ(call.hits[static_cast<size_t>(i)], 0);
      for (int64_t k = 0; k < 3; ++k) {
        EXPECT_TRUE(Is(call.topk_logprobs, 0, 3 * i + k, kNan));
        EXPECT_EQ(call.topk_indices[static_cast<size_t>(3 * i + k)], -1);
      }
      EXPECT_TRUE(Is(call.gathered, 0, 2 * i, kNan));
    }
    EXPECT_TRUE(Is(call.lse, 0, 3, also_ignored == 1 ? kNan : 0));
    EXPECT_TRUE(Is(call.entropy, 0, 3, also_ignored == 1 ? kNan : 0));
    EXPECT_EQ(call.argmax[4], also_ignored == 1 ? 1 : -1);
    EXPECT_TRUE(Is(call.logprobs, 0, 4, 0));
    EXPECT_EQ(call.rank[4], -1);
    EXPECT_TRUE(Is(call.row_losses, 0, 4, 0));
    EXPECT_EQ(call.live_rows, 3);
    for (int64_t c = 0; c < 3; ++c) EXPECT_EQ(call.grad.GetBits(3, c), 0u);
  }
}

TEST_P(LossOptions, EntropyFromOneCornerToTheOther) {
  LossCall call = Make({{80, 0, 0, 0}, {0, 0, 0, 0}, {5, -kInf, 5, -kInf}, {-kInf, 3, -kInf, -kInf}, {40, 0.5, 39, -2}},
                       {0, 0, 0, 1, 0});
  call.WantEveryStatistic();
  ExpectRight(call);
  EXPECT_GT(call.entropy.Get(0, 0), 0);
  EXPECT_TRUE(Is(call.entropy, 0, 3, 0));
}

TEST_P(LossOptions, StatisticsOfLongRows) {
  // The best columns lie far apart, equal ones at the ends of chunks.
  LossCall call(dtype(), 2, 30000);
  Random random(9);
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t c = 0; c < 30000; ++c) call.logits.Set(i, c, random.Normal(1));
  }
  for (const int64_t c : {0, 1023, 1024, 2047, 2048, 29999}) call.logits.Set(0, c, 8);
  call.logits.Set(1, 12345, 9);
  call.targets = {2048, 12346};
  call.WantEveryStatistic();
  call.top_k = 64;
  ExpectRight(call);
  EXPECT_EQ(call.argmax, (std::vector<int64_t>{0, 12345}));
  EXPECT_EQ(call.rank[0], 4);
}

TEST_P(LossOptions, TopKOfEveryColumnAndRepeatedGathers) {
  LossCall call = Three();
  call.WantEveryStatistic();
  call.top_k = 5;
  call.gather_count = 4;
  call.gather_cols = {0, 0, 4, 0, 2, 1, 1, 2, 3, 3, 3, 3};
  ExpectRight(call);
  EXPECT_TRUE(Is(call.gathered, 0, 1, call.gathered.Get(0, 0)));
}

TEST_P(LossOptions, EachStatisticAloneHasTheSameBits) {
  LossCall all = Three();
  all.WantEveryStatistic();
  ASSERT_EQ(all.Forward(), XENT_OK) << all.error.message;
  for (int which = 0; which < 6; ++which) {
    LossCall one = Three();
    one.wants_logprobs = which == 0;
    one.wants_argmax = which == 1;
    one.wants_entropy = which == 2;
    one.wants_rank = which == 3;
    if (which == 4) one.top_k = all.top_k;
    if (which == 5) {
      one.gather_count = all.gather_count;
      one.gather_cols = all.gather_cols;
    }
    ASSERT_EQ(one.Forward(), XENT_OK) << one.error.message;
    EXPECT_EQ(one.ForwardDifference(all), "");
    if (which == 0) {
      EXPECT_EQ(FirstDifference(one.logprobs, all.logprobs), "");
    }
    if (which == 1) {
      EXPECT_EQ(one.argmax, all.argmax);
      EXPECT_EQ(one.hits, all.hits);
    }
    if (which == 2) {
      EXPECT_EQ(FirstDifference(one.entropy, all.entropy), "");
    }
    if (which == 3) {
      EXPECT_EQ(one.rank, all.rank);
    }
    if (which == 4) {
      EXPECT_EQ(FirstDifference(one.topk_logprobs, all.topk_logprobs), "");
      EXPECT_EQ(one.topk_indices, all.topk_indices);
    }
    if (which == 5) {
      EXPECT_EQ(FirstDifference(one.gathered, all.gathered), "");
    }
  }
}

// ------------------------------------------------------------------ refusals

TEST_P(LossOptions, OptionsOutOfRange) {
  const auto refuse = [&](const std::function<void(xent_cross_entropy_options &)> &spoil,
                          const std::vector<std::string> &words) {
    LossCall call = Three();
    spoil(call.options);
    ExpectRefused(call, words);
  };
  const std::pair<double, const char *> scales[] = {{0.0, "0"},    {-0.0, "0|-0"},  {-1.0, "-1"},
                                                    {kInf, "inf"}, {-kInf, "-inf"}, {kNan, "nan|-nan"}};
  for (const auto &[scale, text] : scales) {
    refuse([scale = scale](xent_cross_entropy_options &o) { o.logit_scale = scale; }, {"logit_scale", text});
  }
  for (const double cap : {-1.0, -0x1p-1074, kInf, -kInf, kNan}) {
    refuse([=](xent_cross_entropy_options &o) { o.softcap = cap; }, {"softcap"});
  }
  for (const double lambda : {-1e-9, kInf, -kInf, kNan}) {
    refuse([=](xent_cross_entropy_options &o) { o.z_loss = lambda; }, {"z_loss"});
  }
  for (const int64_t valid : {int64_t{-1}, int64_t{6}, std::numeric_limits<int64_t>::min()}) {
    refuse([=](xent_cross_entropy_options &o) { o.valid_cols = valid; }, {"valid_cols", std::to_string(valid)});
  }
  refuse([](xent_cross_entropy_options &o) { o.reserved = 1; }, {"options.reserved", "1"});
  for (const int64_t flag : {int64_t{-1}, int64_t{2}, int64_t{1} << 32}) {
    ExpectRefused(Three(), {"statistics.of_ignored", std::to_string(flag)},
                  [=](LossCall &c, xent_cross_entropy &) { c.statistics.of_ignored = flag; });
  }
}

TEST_P(LossOptions, WeightsThatAreNotFinite) {
  for (const double bad : {kNan, kInf, -kInf}) {
    LossCall call = Three();
    call.SetClassWeights({1, 1, 1, 1, bad});
    ExpectRefused(call, {"class_weights", "4"}, {}, {.row = -1, .column = 4, .value = bad});
    call = Three();
    call.SetRowWeights({1, bad, 1});
    ExpectRefused(call, {"row_weights", "1"}, {}, {.row = 1, .column = -1, .value = bad});
    // The columns past valid_cols and the ignored rows have their weights all the same.
    call = Three();
    call.targets = {0, 1, -100};
    call.SetRowWeights({1, 1, bad});
    ExpectRefused(call, {"row_weights", "2"}, {}, {.row = 2, .column = -1, .value = bad});
    call = Three();
    call.targets = {0, 1, 1};
    call.options.valid_cols = 2;
    call.SetClassWeights({1, 1, 1, bad, 1});
    ExpectRefused(call, {"class_weights", "3"}, {}, {.row = -1, .column = 3, .value = bad});
  }
}

TEST_P(LossOptions, WhatDoesNotGoTogether) {
  const Values probs = {{1, 0, 0, 0, 0}, {0, 1, 0, 0, 0}, {0, 0, 1, 0, 0}};
  const auto with_probs = [&] {
    LossCall call = Three();
    call.SetProbs(XENT_F32, probs);
    return call;
  };
  LossCall call = with_probs();
  call.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
  call.options.label_smoothing = 0.5;
  ExpectRefused(call, {"exclusive", "target_probs"});
  call = with_probs();
  call.options.ignore_index = 3;
  ExpectRefused(call, {"ignore_index", "target_probs"});
  static int64_t integers[3];
  static double numbers[16];
  static uint8_t bytes[3];
  ExpectRefused(with_probs(), {"targets", "target_probs"},
                [](LossCall &, xent_cross_entropy &a) { a.targets.data = integers; });
  ExpectRefused(with_probs(), {"statistics.logprobs", "target_probs"},
                [](LossCall &c, xent_cross_entropy &) { c.statistics.logprobs = numbers; });
  ExpectRefused(with_probs(), {"statistics.hits", "target_probs"},
                [](LossCall &c, xent_cross_entropy &) { c.statistics.hits = bytes; });
  ExpectRefused(with_probs(), {"statistics.rank", "target_probs"},
                [](LossCall &c, xent_cross_entropy &) { c.statistics.rank = integers; });
  ExpectRefused(with_probs(), {"target_probs.dtype", "9"},
                [](LossCall &, xent_cross_entropy &a) { a.target_probs.dtype = 9; });
  ExpectRefused(with_probs(), {"target_probs.stride", "4"},
                [](LossCall &, xent_cross_entropy &a) { a.target_probs.stride = 4; });
  ExpectRefused(with_probs(), {"target_probs|target_probs.data", "aligned"}, [](LossCall &, xent_cross_entropy &a) {
    a.target_probs.data = static_cast<char *>(a.target_probs.data) + 1;
  });
  // A stride without a matrix.
  ExpectRefused(Three(), {"target_probs.stride"}, [](LossCall &, xent_cross_entropy &a) { a.target_probs.stride = 5; });

  call = Three();
  call.options.valid_cols = 1;
  call.targets = {0, 0, 0};
  call.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
  call.options.label_smoothing = 0.5;
  ExpectRefused(call, {"exclusive"});
  call = Three();
  call.options.reduction.kind = XENT_REDUCTION_NONE;
  call.options.reduction.divisor = 2;
  ExpectRefused(call, {"reduction.divisor", "XENT_REDUCTION_NONE"});

  // A gradient of targets that are indices; in either function, since forward writes no gradient at all.
  ExpectRefused(Three(), {"target_grad|target_grad.data"},
                [](LossCall &, xent_cross_entropy &a) { a.target_grad = {numbers, 0, XENT_F64, 0}; });
}

TEST_P(LossOptions, TargetGradientHasTheTypeOfTheTargets) {
  LossCall call = Three();
  call.SetProbs(XENT_F32, {{1, 0, 0, 0, 0}, {0, 1, 0, 0, 0}, {0, 0, 1, 0, 0}});
  call.wants_target_grad = true;
  xent_cross_entropy args = call.Args(Function::kForwardBackward);
  for (const xent_dtype other : {XENT_F64, XENT_BF16, XENT_F16}) {
    args.target_grad.dtype = other;
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(xent_cross_entropy_forward_backward(&args, &call.options, nullptr, &error), XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, {"target_grad.dtype"}));
    EXPECT_TRUE(call.OutputsUntouched());
  }
}

TEST_P(LossOptions, StatisticsOutOfRange) {
  static double numbers[256];
  static int64_t integers[256];
  using A = xent_cross_entropy;
  for (const int64_t k :
       {int64_t{-1}, int64_t{6}, int64_t{65}, int64_t{1} << 32, std::numeric_limits<int64_t>::max()}) {
    ExpectRefused(Three(), {"statistics.top_k", std::to_string(k)}, [=](LossCall &c, A &) {
      c.statistics.top_k = k;
      c.statistics.topk_logprobs = numbers;
      c.statistics.topk_indices = integers;
    });
  }
  LossCall call = Three();
  call.options.valid_cols = 4;
  ExpectRefused(call, {"statistics.top_k", "5"}, [](LossCall &c, A &) {
    c.statistics.top_k = 5;
    c.statistics.topk_indices = integers;
  });
  ExpectRefused(Three(), {"statistics.top_k"}, [](LossCall &c, A &) { c.statistics.topk_indices = integers; });
  ExpectRefused(Three(), {"statistics.top_k"}, [](LossCall &c, A &) { c.statistics.topk_logprobs = numbers; });
  ExpectRefused(Three(), {"statistics.gather_count", "-1"}, [](LossCall &c, A &) { c.statistics.gather_count = -1; });
  ExpectRefused(Three(), {"statistics.gather_cols"}, [](LossCall &c, A &) {
    c.statistics.gather_count = 1;
    c.statistics.gathered = numbers;
  });
  for (const int64_t bad : {int64_t{-1}, int64_t{4}, int64_t{5}, std::numeric_limits<int64_t>::min()}) {
    // Two places a row: the sixth value is row 2's place 1.
    static int64_t columns[6];
    columns[5] = bad;
    ExpectRefused(call, {"statistics.gather_cols|gather_cols", "row 2", std::to_string(bad)},
                  [](LossCall &c, A &) {
                    c.statistics.gather_count = 2;
                    c.statistics.gather_cols = columns;
                    c.statistics.gathered = numbers;
                  },
                  {.row = 2, .column = 1, .value = static_cast<double>(bad)});
  }
}

TEST_P(LossOptions, MisalignedStatistics) {
  static unsigned char bytes[1024];
  const auto bent = [](auto member) {
    return [=](LossCall &c, xent_cross_entropy &) {
      using Pointer = std::remove_reference_t<decltype(c.statistics.*member)>;
      c.statistics.*member = reinterpret_cast<Pointer>(bytes + 1);
    };
  };
  using S = xent_statistics;
  LossCall call = Three();
  call.WantEveryStatistic();
  ExpectRefused(call, {"statistics.lse", "aligned"}, bent(&S::lse));
  ExpectRefused(call, {"statistics.logprobs", "aligned"}, bent(&S::logprobs));
  ExpectRefused(call, {"statistics.argmax", "aligned"}, bent(&S::argmax));
  ExpectRefused(call, {"statistics.rank", "aligned"}, bent(&S::rank));
  ExpectRefused(call, {"statistics.entropy", "aligned"}, bent(&S::entropy));
  ExpectRefused(call, {"statistics.topk_logprobs", "aligned"}, bent(&S::topk_logprobs));
  ExpectRefused(call, {"statistics.topk_indices", "aligned"}, bent(&S::topk_indices));
  ExpectRefused(call, {"statistics.gather_cols", "aligned"}, bent(&S::gather_cols));
  ExpectRefused(call, {"statistics.gathered", "aligned"}, bent(&S::gathered));
  ExpectRefused(call, {"statistics.perplexity", "aligned"}, bent(&S::perplexity));
  ExpectRefused(call, {"statistics.live_rows", "aligned"}, bent(&S::live_rows));
}

TEST_P(LossOptions, LayoutsThatAreRefused) {
  ExpectRefused(Three(), {"inner", "-1"}, [](LossCall &, xent_cross_entropy &a) { a.inner = -1; });
  ExpectRefused(Three(), {"inner", "2", "rows", "3"}, [](LossCall &, xent_cross_entropy &a) { a.inner = 2; });
  LossCall call(dtype(), 4, 5, 2);
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t c = 0; c < 5; ++c) call.logits.Set(i, c, static_cast<double>(c));
  }
  ExpectRight(call);
  // The stride counts whole [cols, inner] blocks.
  ExpectRefused(call, {"logits.stride", "9", "10"}, [](LossCall &, xent_cross_entropy &a) { a.logits.stride = 9; });
}

TEST_P(LossOptions, UpstreamPerElementIsForBinaryCrossEntropyAlone) {
  LossCall call = Three();
  ASSERT_EQ(call.ForwardBackward(), XENT_OK);
  static double numbers[64];
  xent_cross_entropy args = call.Args(Function::kForwardBackward);
  args.upstream = {numbers, 0, XENT_UPSTREAM_ELEMENTS, 0};
  xent_error error = XENT_ERROR_INIT;
  EXPECT_EQ(xent_cross_entropy_forward_backward(&args, &call.options, nullptr, &error), XENT_INVALID_ARGUMENT);
  EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, {"upstream.kind"}));
  EXPECT_TRUE(call.OutputsUntouched());
}

TEST_P(LossOptions, BackwardRefusesRecordsOfAnotherKind) {
  // Records of a plain call do not hold what weights under smoothing or class-major rows need.
  LossCall plain = Three();
  ASSERT_EQ(plain.Forward(), XENT_OK);
  LossCall call = Three();
  call.options.softcap = 2;
  call.records = plain.records;
  const xent_status status = call.Backward();
  if (status == XENT_OK) {
    // Where one kind of record serves both, the gradient must be that of the options given now.
    LossCall whole = Three();
    whole.options.softcap = 2;
    ASSERT_EQ(whole.ForwardBackward(), XENT_OK);
    EXPECT_EQ(call.GradientDifference(whole), "");
  } else {
    EXPECT_EQ(status, XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(Tells(call.error, XENT_INVALID_ARGUMENT, {.row = 0}, {"records"}));
    EXPECT_TRUE(call.OutputsUntouched());
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, LossOptions, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

}  // namespace
}  // namespace xent::test
