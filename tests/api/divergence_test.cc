// Divergences through the public functions: every field and option shows, edges as semantics.md has them, golden
// numbers, finite differences, and refusals that name what they refuse and write nothing.
// tests/kernels/divergence_test.cc does the digits.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "testing/assertions.h"
#include "testing/divergence_call.h"

namespace xent::test {
namespace {

using Rows = DivergenceCall::Rows;

uint64_t Bits(xent_dtype dtype, double value) { return reference::Encode(dtype, value); }

// Whether the loss of a row has exactly the bits of `value`.
::testing::AssertionResult LossIs(const DivergenceCall &call, int64_t row, double value) {
  if (call.row_losses.GetBits(0, row) == Bits(call.Float(), value)) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << kDivergenceNames[call.options.kind] << ": loss of row " << row << " is "
                                       << call.row_losses.Get(0, row) << ", expected " << value;
}
// Whether every column of a gradient row has.
::testing::AssertionResult GradIs(const DivergenceCall &call, int64_t row, double value) {
  for (int64_t j = 0; j < call.student.cols(); ++j) {
    if (call.Grad().GetBits(row, j) == Bits(call.student.dtype(), value)) continue;
    return ::testing::AssertionFailure() << kDivergenceNames[call.options.kind] << ": gradient [" << row << "," << j
                                         << "] is " << call.Grad().Get(row, j) << ", expected " << value;
  }
  return ::testing::AssertionSuccess();
}

class DivergenceApi : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }
  DivergenceCall Normal(int64_t rows = 6, int64_t cols = 21, int64_t inner = 0, int64_t padding = 0) const {
    DivergenceCall call(dtype(), dtype(), rows, cols, inner, padding);
    call.FillNormal(3, 2);
    return call;
  }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, DivergenceApi, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return std::string(reference::NameOf(info.param)); });

// ---- golden numbers ----

TEST(DivergenceGolden, TwoColumns) {
  // p = (3/4, 1/4), q = (1/2, 1/2), m = (5/8, 3/8).
  DivergenceCall call(XENT_F64, {{0, 0}}, {{std::log(3.0), 0}});
  const double kl = 0.75 * std::log(1.5) + 0.25 * std::log(0.5), reverse = -0.5 * std::log(1.5) - 0.5 * std::log(0.5);
  const double of_q = 0.5 * std::log(0.8) + 0.5 * std::log(4.0 / 3);
  const double js = 0.5 * (0.75 * std::log(1.2) + 0.25 * std::log(2.0 / 3)) + 0.5 * of_q;
  const double want[] = {kl, reverse, js, std::log(2.0)};
  const double gradient[] = {-0.25, 0.5 * (std::log(2.0 / 3) - reverse), 0.25 * (std::log(0.8) - of_q), -0.25};
  for (const xent_divergence_kind kind : kDivergenceKinds) {
    call.options.kind = kind;
    call.MustRun(true);
    EXPECT_NEAR(call.row_losses.Get(0, 0), want[kind], 1e-15) << kDivergenceNames[kind];
    EXPECT_NEAR(call.grad.Get(0, 0), gradient[kind], 1e-15) << kDivergenceNames[kind];
    EXPECT_NEAR(call.grad.Get(0, 1), -gradient[kind], 1e-15) << kDivergenceNames[kind];
  }
}

// ---- every field and option shows ----

TEST_P(DivergenceApi, EachFieldAndOptionCounts) {
  // The oracle knows of each: a result that ignores one is not accurate.
  const std::vector<std::function<void(DivergenceCall &)>> changes = {
      [](DivergenceCall &c) { c.options.temperature = 2.5; },
      [](DivergenceCall &c) { c.row_weights = c.Vector({0.5, 2, -1, 0, 3, 1}); },
      [](DivergenceCall &c) { c.options.valid_cols = 13; },
      [](DivergenceCall &c) { c.options.reduction.kind = XENT_REDUCTION_SUM; },
      [](DivergenceCall &c) { c.options.reduction.kind = XENT_REDUCTION_NONE; },
      [](DivergenceCall &c) { c.options.reduction.divisor = 11; },
      [](DivergenceCall &c) { c.options.reduction.kind = XENT_REDUCTION_SUM, c.options.reduction.divisor = 11; },
      [](DivergenceCall &c) { c.upstream_kind = XENT_UPSTREAM_SCALAR, c.upstream = c.Vector({-3}); },
      [](DivergenceCall &c) { c.upstream_kind = XENT_UPSTREAM_ROWS, c.upstream = c.Vector({1, -2, 3, 0.5, 7, 0}); },
      [](DivergenceCall &c) { c.in_place = true; },
      [](DivergenceCall &c) { c.exec = TeamOf(0); },
      [](DivergenceCall &c) { c.in_place = true, c.options.valid_cols = 20, c.options.temperature = 0.25; },
  };
  for (const int64_t inner : {0, 2, 3}) {
    for (const int64_t padding : {0, 4}) {
      for (const xent_divergence_kind kind : kDivergenceKinds) {
        for (const auto &change : changes) {
          DivergenceCall call = Normal(6, 21, inner, padding);
          call.options.kind = kind;
          if (kind == XENT_DIVERGENCE_JENSEN_SHANNON) call.options.beta = 0.2;
          change(call);
          call.MustRun(true);
          call.ExpectAccurate();
          if (call.in_place) continue;
          const DivergenceCall both = call;
          call.MustRun(false);
          EXPECT_EQ(FirstDifference(both, call, false), "");
        }
      }
    }
  }
}

TEST_P(DivergenceApi, OutputsThatAreNotWantedMayBeNull) {
  for (const bool backward : {false, true}) {
    for (const int which : {0, 1, 2}) {
      DivergenceCall call = Normal();
      call.MustRun(backward);
      const DivergenceCall want = call;
      xent_divergence args = call.Args(backward);
      if (which != 1) args.row_losses = nullptr;
      if (which != 0) args.reduced_loss = nullptr;
      ASSERT_EQ(backward ? xent_divergence_forward_backward(&args, nullptr, nullptr, nullptr)
                         : xent_divergence_forward(&args, nullptr, nullptr, nullptr),
                XENT_OK);
      if (which == 1) {
        EXPECT_EQ(FirstDifference(call.row_losses, want.row_losses), "");
      }
      if (which == 0) {
        EXPECT_EQ(FirstDifference(call.reduced_loss, want.reduced_loss), "");
      }
      if (backward) {
        EXPECT_EQ(FirstDifference(call.grad.matrix(), want.grad.matrix()), "");
      }
    }
  }
}

TEST_P(DivergenceApi, PaddingColumnsAreNeitherReadNorLeft) {
  for (const int64_t inner : {0, 3}) {
    for (const xent_divergence_kind kind : kDivergenceKinds) {
      DivergenceCall call = Normal(6, 21, inner);
      call.options.kind = kind;
      call.options.valid_cols = 17;
      for (int64_t i = 0; i < 6; ++i) {
        for (int64_t j = 17; j < 21; ++j) {
          call.student.Set(i, j, kNan);
          call.teacher.Set(i, j, kInf);
        }
      }
      call.MustRun(true);
      call.ExpectAccurate();
      for (int64_t j = 17; j < 21; ++j) EXPECT_EQ(call.grad.GetBits(5, j), 0u);
    }
  }
}

// ---- edges ----

TEST_P(DivergenceApi, RowsThatAgreeGiveZero) {
  for (const int64_t inner : {0, 2}) {
    for (const xent_divergence_kind kind :
         {XENT_DIVERGENCE_FORWARD_KL, XENT_DIVERGENCE_REVERSE_KL, XENT_DIVERGENCE_JENSEN_SHANNON}) {
      for (const double temperature : {1.0, 0.3, 7.0}) {
        DivergenceCall call = Normal(6, 300, inner);
        for (int64_t i = 0; i < 6; ++i) {
          for (int64_t j = 0; j < 300; ++j) call.teacher.Set(i, j, call.student.Get(i, j));
        }
        call.options.kind = kind;
        call.options.temperature = temperature;
        call.MustRun(true);
        for (int64_t i = 0; i < 6; ++i) {
          EXPECT_TRUE(LossIs(call, i, 0));
          EXPECT_TRUE(GradIs(call, i, 0));
        }
      }
    }
  }
}

TEST_P(DivergenceApi, OneColumn) {
  for (const xent_divergence_kind kind : kDivergenceKinds) {
    DivergenceCall call(dtype(), Rows{{3}, {-3}}, Rows{{-8}, {2}});
    call.options.kind = kind;
    call.MustRun(true);
    for (int64_t i = 0; i < 2; ++i) {
      EXPECT_TRUE(LossIs(call, i, 0));
      EXPECT_TRUE(GradIs(call, i, 0));
    }
  }
}

TEST_P(DivergenceApi, NanAndInfinityMakeTheirRowNanAndNoOther) {
  for (const int64_t inner : {0, 4}) {
    for (const xent_divergence_kind kind : kDivergenceKinds) {
      for (const double bad : {kNan, kInf}) {
        for (const bool in_teacher : {false, true}) {
          DivergenceCall call = Normal(8, 21, inner);
          call.options.kind = kind;
          call.options.reduction.kind = XENT_REDUCTION_NONE;
          call.row_weights = call.Vector({1, 0.5, 1, 1, 1, 1, 1, 1});
          for (const int64_t i : {1, 4}) (in_teacher ? call.teacher : call.student).Set(i, 3 * (i - 1), bad);
          call.MustRun(true);
          for (const int64_t i : {1, 4}) {
            EXPECT_TRUE(LossIs(call, i, kNan));
            EXPECT_TRUE(GradIs(call, i, kNan));
          }
          call.ExpectAccurate();
        }
      }
      // A row of -inf on either side.
      DivergenceCall call = Normal(8, 5, inner);
      call.options.kind = kind;
      for (int64_t j = 0; j < 5; ++j) {
        call.student.Set(2, j, -kInf);
        call.teacher.Set(5, j, -kInf);
      }
      call.MustRun(true);
      for (const int64_t i : {2, 5}) {
        EXPECT_TRUE(LossIs(call, i, kNan));
        EXPECT_TRUE(GradIs(call, i, kNan));
      }
      EXPECT_EQ(call.reduced_loss.GetBits(0, 0), reference::CanonicalNanBits(call.Float()));
      call.ExpectAccurate();
    }
  }
}

TEST_P(DivergenceApi, MaskedColumns) {
  // Both masked: as if the column were not there. The teacher's alone: p = 0. The student's alone: q = 0.
  const double m = -kInf;
  const Rows student = {{1, m, 0}, {1, 2, 0}, {1, m, 0}}, teacher = {{0, m, 2}, {0, m, 2}, {0, 3, 2}};
  for (const int64_t inner : {0, 3}) {
    for (const xent_divergence_kind kind : kDivergenceKinds) {
      DivergenceCall call(dtype(), student, teacher, inner);
      call.options.kind = kind;
      call.options.reduction.kind = XENT_REDUCTION_NONE;
      call.MustRun(true);
      call.ExpectAccurate();
      const bool forward = kind == XENT_DIVERGENCE_FORWARD_KL || kind == XENT_DIVERGENCE_CROSS_ENTROPY;
      const bool reverse = kind == XENT_DIVERGENCE_REVERSE_KL;
      EXPECT_TRUE(std::isfinite(call.row_losses.Get(0, 0)));
      EXPECT_EQ(call.row_losses.Get(0, 1) == kInf, reverse);
      EXPECT_EQ(call.row_losses.Get(0, 2) == kInf, forward);
      if (reverse) {
        EXPECT_TRUE(GradIs(call, 1, kNan));
      }
      // An infinite forward divergence has a gradient all the same.
      for (int64_t j = 0; j < 3; ++j) EXPECT_TRUE(std::isfinite(call.grad.Get(2, j)));
      EXPECT_EQ(call.grad.GetBits(0, 1), 0u);
      DivergenceCall without(dtype(), Rows{{1, 0}}, Rows{{0, 2}});
      without.options.kind = kind;
      without.options.reduction.kind = XENT_REDUCTION_NONE;
      without.MustRun(true);
      if (inner == 0) {
        EXPECT_EQ(without.row_losses.GetBits(0, 0), call.row_losses.GetBits(0, 0));
      }
    }
  }
}

TEST(DivergenceEdges, InfinityComesFromMasksNeverFromUnderflow) {
  for (const xent_dtype dtype : {XENT_F32, XENT_F64}) {
    for (const int64_t inner : {0, 2}) {
      // p of the masked column is e^-5000: not 0. And q of e^-5000 is not 0 either.
      DivergenceCall masked(dtype, Rows{{0, -kInf}, {0, 1}}, Rows{{0, -5000}, {0, 1}}, inner);
      masked.options.reduction.kind = XENT_REDUCTION_NONE;
      masked.MustRun(true);
      EXPECT_TRUE(LossIs(masked, 0, kInf));
      DivergenceCall finite(dtype, Rows{{0, -5000}, {0, 1}}, Rows{{-2, 0}, {0, 1}}, inner);
      finite.options.reduction.kind = XENT_REDUCTION_NONE;
      for (const xent_divergence_kind kind : kDivergenceKinds) {
        finite.options.kind = kind;
        finite.MustRun(true);
        EXPECT_TRUE(std::isfinite(finite.row_losses.Get(0, 0)));
        finite.ExpectAccurate();
      }
      DivergenceCall reverse(dtype, Rows{{0, -5000}, {0, 1}}, Rows{{0, -kInf}, {0, 1}}, inner);
      reverse.options.kind = XENT_DIVERGENCE_REVERSE_KL;
      reverse.options.reduction.kind = XENT_REDUCTION_NONE;
      reverse.MustRun(true);
      EXPECT_TRUE(LossIs(reverse, 0, kInf));
      EXPECT_TRUE(GradIs(reverse, 0, kNan));
      // A row weight of 0 beats infinity.
      reverse.row_weights = reverse.Vector({0, 1});
      reverse.MustRun(true);
      EXPECT_TRUE(LossIs(reverse, 0, 0));
      EXPECT_TRUE(GradIs(reverse, 0, 0));
      masked.row_weights = masked.Vector({0, 1});
      masked.MustRun(true);
      EXPECT_TRUE(LossIs(masked, 0, 0));
      EXPECT_TRUE(GradIs(masked, 0, 0));
      masked.row_weights = masked.Vector({-1, 1});
      masked.MustRun(true);
      EXPECT_TRUE(LossIs(masked, 0, -kInf));
    }
  }
}

TEST(DivergenceEdges, LargestLogits) {
  for (const xent_dtype dtype : {XENT_F32, XENT_F64, XENT_BF16}) {
    const double large = dtype == XENT_F64 ? 1.7e308 : 3e38;
    for (const xent_divergence_kind kind : kDivergenceKinds) {
      for (const double temperature : {1.0, 16.0, 1e-30, 1e30, large}) {
        DivergenceCall call(dtype, Rows{{large, -large, 0}, {-large, large, 1}, {large, large, -large}},
                            Rows{{large, 0, -large}, {large, -large, 1}, {1, 2, 3}});
        call.options.kind = kind;
        call.options.temperature = temperature;
        call.options.reduction.kind = XENT_REDUCTION_NONE;
        call.MustRun(true);
        for (int64_t i = 0; i < 3; ++i) {
          EXPECT_FALSE(std::isnan(call.row_losses.Get(0, i))) << "T " << temperature;
          EXPECT_GE(call.row_losses.Get(0, i), 0);
        }
        if (temperature >= 1 && kind != XENT_DIVERGENCE_REVERSE_KL) call.ExpectAccurate();
      }
    }
  }
}

TEST(DivergenceEdges, ConfidentRowsKeepTheirDigits) {
  // Two columns, p and q of the second e^-a and e^-b nearly: KL is e^-a (b - a) - e^-a + e^-b to first order, 1e-9 to
  // 1e-35.
  for (const xent_dtype dtype : {XENT_F32, XENT_F64}) {
    for (double margin = 20; margin <= 80; margin += 20) {
      for (const xent_divergence_kind kind : kDivergenceKinds) {
        DivergenceCall call(dtype, Rows{{margin + 2, 0}, {0, margin}}, Rows{{margin, 0}, {0, margin}});
        call.options.kind = kind;
        call.MustRun(true);
        call.ExpectAccurate();
        if (kind == XENT_DIVERGENCE_FORWARD_KL) {
          EXPECT_NEAR(call.row_losses.Get(0, 0), std::exp(-margin) + std::exp(-margin - 2), 1e-5 * std::exp(-margin));
        }
        EXPECT_GT(call.row_losses.Get(0, 0), 0);
      }
    }
  }
}

TEST_P(DivergenceApi, UpstreamGradientsThatAreNoNumbers) {
  for (const xent_divergence_kind kind : kDivergenceKinds) {
    for (const int64_t inner : {0, 4}) {
      DivergenceCall call(dtype(), Rows{{1, 0, -kInf}, {1, 0, 2}, {1, 0, 2}, {1, 0, 2}},
                          Rows{{0, 1, -kInf}, {2, 0, 1}, {2, 0, 1}, {2, 0, 1}}, inner);
      call.options.kind = kind;
      call.MustRun(true);
      const DivergenceCall plain = call;
      call.upstream_kind = XENT_UPSTREAM_ROWS;
      call.upstream = call.Vector({kInf, kNan, 0, -kInf});
      call.row_weights = call.Vector({1, 1, 1, 1});
      call.MustRun(true);
      for (int64_t j = 0; j < 3; ++j) {
        const double u = plain.grad.Get(0, j), v = plain.grad.Get(3, j);
        EXPECT_EQ(call.grad.Get(0, j), u == 0 ? 0 : std::copysign(kInf, u));
        EXPECT_EQ(call.grad.Get(3, j), v == 0 ? 0 : std::copysign(kInf, -v));
      }
      EXPECT_TRUE(GradIs(call, 1, kNan));
      EXPECT_TRUE(GradIs(call, 2, 0));
      call.row_weights = call.Vector({0, 0, 1, 0});
      call.MustRun(true);
      for (const int64_t row : {0, 1, 3}) EXPECT_TRUE(GradIs(call, row, 0));
    }
  }
}

TEST(DivergenceEdges, FactorsBeyondTheRangeOfDouble) {
  // u r is 1e400; the divisor brings it back, or a p near 1e-250 does.
  DivergenceCall call(XENT_F64, Rows{{0, -1, -kInf}, {0, -580, -kInf}}, Rows{{-1, 0, -kInf}, {0, -590, -kInf}});
  call.row_weights = call.Vector({1e200, 1e200});
  call.upstream_kind = XENT_UPSTREAM_ROWS;
  call.upstream = call.Vector({1e200, 1e200});
  for (const xent_divergence_kind kind : kDivergenceKinds) {
    call.options.kind = kind;
    for (const double divisor : {1e300, 1.0}) {
      call.options.reduction.divisor = divisor;
      call.MustRun(true);
      if (divisor != 1) {
        call.ExpectAccurate();
        EXPECT_TRUE(std::isfinite(call.grad.Get(0, 0)));
        EXPECT_NE(call.grad.Get(0, 0), 0);
      } else {
        EXPECT_EQ(std::fabs(call.grad.Get(0, 0)), kInf);
        EXPECT_TRUE(std::isfinite(call.grad.Get(1, 1))) << kDivergenceNames[kind];
        EXPECT_NE(call.grad.Get(1, 1), 0);
      }
      EXPECT_EQ(call.grad.GetBits(0, 2), 0u);
      EXPECT_EQ(call.grad.GetBits(1, 2), 0u);
    }
  }
}

TEST_P(DivergenceApi, EmptyBatches) {
  for (const bool backward : {false, true}) {
    for (const int64_t inner : {0, 3}) {
      DivergenceCall call(dtype(), dtype(), 0, 7, inner);
      call.MustRun(backward);
      EXPECT_EQ(call.reduced_loss.GetBits(0, 0), reference::CanonicalNanBits(call.Float()));
      call.options.reduction.empty_mean = XENT_EMPTY_MEAN_ZERO;
      call.MustRun(backward);
      EXPECT_EQ(call.reduced_loss.GetBits(0, 0), 0u);
      call.options = XENT_DIVERGENCE_OPTIONS_INIT;
      call.options.reduction.divisor = 3;
      call.MustRun(backward);
      EXPECT_EQ(call.reduced_loss.GetBits(0, 0), 0u);
      call.options = XENT_DIVERGENCE_OPTIONS_INIT;
      call.options.reduction.kind = XENT_REDUCTION_SUM;
      call.MustRun(backward);
      EXPECT_EQ(call.reduced_loss.GetBits(0, 0), 0u);
      call.options.reduction.kind = XENT_REDUCTION_NONE;
      call.MustRun(backward);
    }
  }
  // Null pointers are fine for nothing.
  xent_divergence args = XENT_DIVERGENCE_INIT;
  args.cols = 4;
  EXPECT_EQ(xent_divergence_forward(&args, nullptr, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(xent_divergence_forward_backward(&args, nullptr, nullptr, nullptr), XENT_OK);
}

// ---- finite differences ----

TEST(DivergenceDifferences, GradientsAreTheLossesSlopes) {
  // Central differences of float64 losses: their error is about h^2 and 1e-16 / h.
  constexpr double kStep = 1e-5;
  for (const xent_divergence_kind kind : kDivergenceKinds) {
    for (const double temperature : {1.0, 2.5}) {
      for (const int64_t inner : {0, 2}) {
        DivergenceCall call(XENT_F64, XENT_F32, 4, 6, inner);
        call.FillNormal(static_cast<uint64_t>(kind) + 17, 2);
        call.options.kind = kind;
        call.options.temperature = temperature;
        if (kind == XENT_DIVERGENCE_JENSEN_SHANNON) call.options.beta = temperature == 1 ? 0.5 : 0.15;
        call.row_weights = call.Vector({1, 0.5, -2, 3});
        call.MustRun(true);
        const DivergenceCall at = call;
        for (int64_t i = 0; i < 4; ++i) {
          for (int64_t j = 0; j < 6; ++j) {
            double loss[2];
            for (const int side : {0, 1}) {
              call.student.Set(i, j, at.student.Get(i, j) + (side == 0 ? -kStep : kStep));
              call.MustRun(false);
              loss[side] = call.reduced_loss.Get(0, 0);
            }
            call.student.Set(i, j, at.student.Get(i, j));
            EXPECT_NEAR(at.grad.Get(i, j), (loss[1] - loss[0]) / (2 * kStep), 2e-9) << kDivergenceNames[kind];
          }
        }
      }
    }
  }
}

// ---- refusals ----

struct Refusal {
  std::vector<std::string> words;  // of the message; "a|b" is one or the other
  std::vector<bool> backward;
  std::function<void(xent_divergence &, xent_divergence_options &, xent_exec &)> spoil;
};

TEST_P(DivergenceApi, RefusedCallsNameTheReasonAndChangeNothing) {
  using A = xent_divergence &;
  using O = xent_divergence_options &;
  using E = xent_exec &;
  static double some[8] = {};
  const std::vector<bool> both = {false, true};
  const std::vector<bool> forward = {false};
  const std::vector<bool> backward = {true};
  const xent_matrix none = XENT_NO_MATRIX;
  const auto bend = [](const void *pointer) -> void * {
    return const_cast<char *>(static_cast<const char *>(pointer) + 1);
  };
  const xent_dtype other = dtype() == XENT_F64 ? XENT_F16 : XENT_F64;
  const std::vector<Refusal> refusals = {
      {{"struct_size", "8"}, both, [](A a, O, E) { a.struct_size = 8; }},
      {{"options.struct_size|struct_size", "8"}, both, [](A, O o, E) { o.struct_size = 8; }},
      {{"rows", "-1"}, both, [](A a, O, E) { a.rows = -1; }},
      {{"cols", "0"}, both, [](A a, O, E) { a.cols = 0; }},
      {{"inner", "-2"}, both, [](A a, O, E) { a.inner = -2; }},
      {{"rows", "6", "inner", "4"}, both, [](A a, O, E) { a.inner = 4; }},
      {{"student|student.data"}, both, [=](A a, O, E) { a.student = none; }},
      {{"student|student.data", "aligned"}, both, [=](A a, O, E) { a.student.data = bend(a.student.data); }},
      {{"student.stride", "20", "21"}, both, [](A a, O, E) { a.student.stride = 20; }},
      {{"student|student.stride"}, both, [](A a, O, E) { a.student.stride = INT64_MAX / 4; }},
      {{"student.reserved"}, both, [](A a, O, E) { a.student.reserved = 1; }},
      {{"teacher|teacher.data"}, both, [=](A a, O, E) { a.teacher = none; }},
      {{"teacher|teacher.data", "aligned"}, both, [=](A a, O, E) { a.teacher.data = bend(a.teacher.data); }},
      {{"teacher.stride", "-1"}, both, [](A a, O, E) { a.teacher.stride = -1; }},
      {{"teacher.reserved"}, both, [](A a, O, E) { a.teacher.reserved = 1; }},
      {{"student.dtype", "9"}, both, [](A a, O, E) { a.student.dtype = 9; }},
      {{"teacher.dtype", "-1"}, both, [](A a, O, E) { a.teacher.dtype = -1; }},
      {{"kind", "4"}, both, [](A, O o, E) { o.kind = 4; }},
      {{"kind", "-1"}, both, [](A, O o, E) { o.kind = -1; }},
      {{"temperature", "0"}, both, [](A, O o, E) { o.temperature = 0; }},
      {{"temperature", "-1"}, both, [](A, O o, E) { o.temperature = -1; }},
      {{"temperature", "inf"}, both, [](A, O o, E) { o.temperature = kInf; }},
      {{"temperature", "nan|-nan"}, both, [](A, O o, E) { o.temperature = kNan; }},
      {{"beta", "0"}, both, [](A, O o, E) { o.kind = XENT_DIVERGENCE_JENSEN_SHANNON, o.beta = 0; }},
      {{"beta", "1"}, both, [](A, O o, E) { o.kind = XENT_DIVERGENCE_JENSEN_SHANNON, o.beta = 1; }},
      {{"beta", "nan|-nan"}, both, [](A, O o, E) { o.kind = XENT_DIVERGENCE_JENSEN_SHANNON, o.beta = kNan; }},
      {{"beta", "0.25", "kind"}, both, [](A, O o, E) { o.beta = 0.25; }},
      {{"options.reserved", "1"}, both, [](A, O o, E) { o.reserved = 1; }},
      {{"row_losses", "aligned"}, both, [=](A a, O, E) { a.row_losses = bend(a.row_losses); }},
      {{"reduced_loss", "aligned"}, both, [=](A a, O, E) { a.reduced_loss = bend(a.reduced_loss); }},
      {{"reduced_loss", "reduction.kind", "XENT_REDUCTION_NONE"},
       both,
       [](A, O o, E) { o.reduction.kind = XENT_REDUCTION_NONE; }},
      {{"row_weights", "aligned"}, both, [=](A a, O, E) { a.row_weights = bend(some); }},
      {{"upstream.kind", "2"},
       backward,
       [](A a, O, E) { a.upstream.data = some, a.upstream.kind = XENT_UPSTREAM_ELEMENTS; }},
      {{"upstream.kind", "3"}, backward, [](A a, O, E) { a.upstream.data = some, a.upstream.kind = 3; }},
      {{"upstream|upstream.data", "aligned"}, backward, [=](A a, O, E) { a.upstream.data = bend(some); }},
      {{"upstream.stride"}, backward, [](A a, O, E) { a.upstream.data = some, a.upstream.stride = 5; }},
      {{"upstream.stride"}, backward, [](A a, O, E) { a.upstream.stride = 5; }},
      {{"upstream|upstream.data|upstream.kind"}, backward, [](A a, O, E) { a.upstream.kind = XENT_UPSTREAM_ROWS; }},
      {{"upstream.reserved"}, backward, [](A a, O, E) { a.upstream.reserved = 1; }},
      {{"grad|grad.data"}, backward, [=](A a, O, E) { a.grad = none; }},
      {{"grad|grad.data", "aligned"}, backward, [=](A a, O, E) { a.grad.data = bend(a.grad.data); }},
      {{"grad.stride", "3"}, backward, [](A a, O, E) { a.grad.stride = 3; }},
      {{"grad.dtype"}, backward, [=](A a, O, E) { a.grad.dtype = other; }},
      {{"student", "grad", "strides", "21", "22"},
       backward,
       [](A a, O, E) { a.grad.data = a.student.data, a.grad.stride = 22; }},
      {{"grad|grad.data", "teacher|teacher.data"}, backward, [](A a, O, E) { a.grad.data = a.teacher.data; }},
      {{"grad|grad.data"}, forward, [this](A a, O, E) { a.grad = {some, 0, dtype(), 0}; }},
      {{"grad.stride"}, forward, [](A a, O, E) { a.grad.stride = 30; }},
      {{"upstream|upstream.data"}, forward, [](A a, O, E) { a.upstream.data = some; }},
      {{"upstream|upstream.kind"}, forward, [](A a, O, E) { a.upstream.kind = XENT_UPSTREAM_ROWS; }},
      {{"valid_cols", "22"}, both, [](A, O o, E) { o.valid_cols = 22; }},
      {{"valid_cols", "-1"}, both, [](A, O o, E) { o.valid_cols = -1; }},
      {{"reduction.divisor", "-1"}, both, [](A, O o, E) { o.reduction.divisor = -1; }},
      {{"reduction.divisor", "nan|-nan"}, both, [](A, O o, E) { o.reduction.divisor = kNan; }},
      {{"reduction.divisor", "XENT_REDUCTION_NONE"},
       both,
       [](A a, O o, E) {
         a.reduced_loss = nullptr;
         o.reduction = {.kind = XENT_REDUCTION_NONE, .empty_mean = XENT_EMPTY_MEAN_NAN, .divisor = 2};
       }},
      {{"reduction.kind", "7"}, both, [](A, O o, E) { o.reduction.kind = 7; }},
      {{"reduction.empty_mean", "2"}, both, [](A, O o, E) { o.reduction.empty_mean = 2; }},
      {{"threads|exec.threads", "-1"}, both, [](A, O, E e) { e.threads = -1; }},
  };
  for (const Refusal &refusal : refusals) {
    for (const bool is_backward : refusal.backward) {
      DivergenceCall call = Normal();
      ASSERT_EQ(call.Run(is_backward), XENT_OK);
      xent_divergence args = call.Args(is_backward);
      xent_divergence_options options = call.options;
      xent_exec exec = call.exec;
      refusal.spoil(args, options, exec);
      const std::string what = refusal.words[0] + (is_backward ? ", forward_backward" : ", forward");
      xent_error error = XENT_ERROR_INIT;
      const auto run = is_backward ? &xent_divergence_forward_backward : &xent_divergence_forward;
      EXPECT_EQ(run(&args, &options, &exec, &error), XENT_INVALID_ARGUMENT) << what;
      EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, refusal.words)) << what;
      EXPECT_TRUE(call.OutputsUntouched()) << what;
      EXPECT_EQ(run(&args, &options, &exec, nullptr), XENT_INVALID_ARGUMENT) << what;
    }
  }
  for (const auto run : {&xent_divergence_forward, &xent_divergence_forward_backward}) {
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(run(nullptr, nullptr, nullptr, &error), XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, {"args"}));
  }
}

TEST_P(DivergenceApi, RowWeightsMustBeFinite) {
  for (const double bad : {kNan, kInf, -kInf}) {
    for (const bool backward : {false, true}) {
      DivergenceCall call = Normal();
      call.row_weights = call.Vector({1, 1, 1, 1, bad, 1});
      ASSERT_EQ(call.Run(backward), XENT_INVALID_ARGUMENT);
      EXPECT_TRUE(
          Tells(call.error, XENT_INVALID_ARGUMENT, {.row = 4, .column = -1, .value = bad}, {"row_weights", "4"}));
      EXPECT_TRUE(call.OutputsUntouched());
    }
  }
}

// A row of weight 0 is padding: nothing in it counts, and it gets zeros.
TEST_P(DivergenceApi, RowsOfWeightZeroAreNotRead) {
  for (const xent_divergence_kind kind : kDivergenceKinds) {
    for (const int64_t cols : {2, 10, 70, 1000, 3000}) {
      for (const int64_t inner : {0, 4}) {
        for (const bool in_place : {false, true}) {
          DivergenceCall call(dtype(), dtype(), 20, cols, inner);
          call.FillNormal(static_cast<uint64_t>(cols), 2);
          std::vector<double> weights(20, 1.5);
          DivergenceCall clean = call;
          for (const int64_t row : {0, 3, 4, 9, 19}) {
            weights[static_cast<size_t>(row)] = 0;
            for (int64_t j = 0; j < cols; ++j) {
              call.student.Set(row, j, row % 2 == 0 ? -kInf : kNan);
              call.teacher.Set(row, j, row % 3 == 0 ? kNan : -kInf);
            }
          }
          for (DivergenceCall *const c : {&call, &clean}) {
            c->row_weights = c->Vector(weights);
            c->options.kind = kind;
            c->in_place = in_place;
            c->upstream = c->Vector({2.0});
            c->MustRun(true);
          }
          EXPECT_EQ(FirstDifference(call, clean, true), "") << kind << ", " << cols << " columns, inner " << inner;
          EXPECT_TRUE(Is(call.row_losses, 0, 3, 0));
          EXPECT_TRUE(RowIs(call.Grad(), 19, 0));
          clean.ExpectAccurate();
        }
      }
    }
  }
}

// Not a byte of it: behind the last row's first logit memory ends.
TEST_P(DivergenceApi, ARowOfWeightZeroMayLieInMemoryThatEnds) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (const int64_t cols : {4, 100, 3000}) {
    const int64_t bytes = cols * (dtype() == XENT_F64 ? 8 : dtype() == XENT_F32 ? 4 : 2);
    const size_t pages = (static_cast<size_t>(bytes) / page + 1) * page;
    char *const memory =
        static_cast<char *>(mmap(nullptr, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(memory, MAP_FAILED);
    ASSERT_EQ(mprotect(memory + pages, page, PROT_NONE), 0);
    DivergenceCall call(dtype(), dtype(), 2, cols);
    call.row_weights = call.Vector({1, 0});
    xent_divergence args = call.Args(false);
    args.student.data = args.teacher.data = memory + pages - bytes;
    args.student.stride = args.teacher.stride = 0;
    EXPECT_EQ(xent_divergence_forward(&args, &call.options, &call.exec, &call.error), XENT_OK) << call.error.message;
    EXPECT_TRUE(Is(call.row_losses, 0, 0, 0) && Is(call.row_losses, 0, 1, 0));
    munmap(memory, pages + page);
  }
}

TEST_P(DivergenceApi, ATaskThatTheCallersPoolLeavesOutIsIncomplete) {
  DivergenceCall call(dtype(), dtype(), 600, 300);
  call.FillNormal(1, 2);
  call.exec = PoolOf(
      [](void *, int64_t n, xent_task task, void *arg) {
        for (int64_t i = 1; i < n; ++i) task(arg, i);
      },
      nullptr, 4);
  EXPECT_EQ(call.Run(true), XENT_INCOMPLETE);
}

}  // namespace
}  // namespace xent::test
