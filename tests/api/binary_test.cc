// Binary cross-entropy through the public functions: every option and layout against the oracle (so that an ignored one
// shows), the passes against each other bit by bit, edges and errors as semantics.md has them, golden numbers, and
// finite differences. tests/kernels/binary_test.cc does the digits.
#include "testing/binary.h"

#include <gtest/gtest.h>

#include <cfenv>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace xent::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Whether an element has exactly the bits of `value` in its dtype.
::testing::AssertionResult Is(const Binary &call, const Matrix &matrix, int64_t row, int64_t col, double value) {
  const uint64_t want = reference::Encode(matrix.dtype(), value), got = call.GetBits(matrix, row, col);
  if (got == want) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "[" << row << "," << col << "] is " << call.Get(matrix, row, col)
                                       << ", expected " << value;
}

// One row of float32 or float64 from values.
Binary Row(xent_dtype dtype, const std::vector<double> &x, const std::vector<double> &y) {
  Binary call(dtype, dtype, 1, static_cast<int64_t>(x.size()));
  for (size_t c = 0; c < x.size(); ++c) {
    call.x.Set(0, static_cast<int64_t>(c), x[c]);
    call.y.Set(0, static_cast<int64_t>(c), y[c]);
  }
  call.options.reduction = XENT_REDUCTION_SUM;
  return call;
}

class BinaryApi : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, BinaryApi, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return std::string(reference::NameOf(info.param)); });

// ---- golden numbers ----

TEST(BinaryGolden, Probabilities) {
  const struct {
    double p, loss, half_unit;
  } rows[] = {{0.7, 0.3567, 5e-5}, {0.99, 0.01005, 5e-6}, {0.01, 4.6052, 5e-5}};
  for (const xent_dtype dtype : {XENT_F32, XENT_F64}) {
    for (const auto &row : rows) {
      Binary p = Row(dtype, {row.p}, {1});
      p.probabilities = true;
      p.MustRun(Pass::kForwardBackward);
      EXPECT_NEAR(p.losses.Get(0, 0), row.loss, row.half_unit);
      EXPECT_NEAR(p.grad.Get(0, 0), -1 / row.p, 1e-4 / row.p);
      Binary z = Row(dtype, {std::log(row.p / (1 - row.p))}, {1});
      z.MustRun(Pass::kForwardBackward);
      EXPECT_NEAR(z.losses.Get(0, 0), row.loss, row.half_unit);
      EXPECT_NEAR(z.grad.Get(0, 0), row.p - 1, 1e-6);
    }
  }
}

TEST(BinaryGolden, LogitZeroIsLog2) {
  Binary call = Row(XENT_F64, {0, 0}, {0, 1});
  call.MustRun(Pass::kForwardBackward);
  for (int64_t c = 0; c < 2; ++c) EXPECT_EQ(call.losses.Get(0, c), std::log(2.0));
  EXPECT_EQ(call.grad.Get(0, 0), 0.5);
  EXPECT_EQ(call.grad.Get(0, 1), -0.5);
}

TEST(BinaryGolden, Focal) {
  // Lin et al. 2017: p_t 0.9 with gamma 2 has a loss 100 times smaller than bce's; alpha 0.25 is the positives' weight.
  Binary call = Row(XENT_F64, {std::log(9.0), -std::log(9.0)}, {1, 0});
  call.gamma = 2;
  call.MustRun(Pass::kForward);
  EXPECT_NEAR(call.losses.Get(0, 0), -std::log(0.9) / 100, 1e-15);
  EXPECT_NEAR(call.losses.Get(0, 1), -std::log(0.9) / 100, 1e-15);
  call.has_alpha = true;
  call.alpha = 0.25;
  call.MustRun(Pass::kForward);
  EXPECT_NEAR(call.losses.Get(0, 0), -0.25 * std::log(0.9) / 100, 1e-15);
  EXPECT_NEAR(call.losses.Get(0, 1), -0.75 * std::log(0.9) / 100, 1e-15);
}

// ---- options, layouts, dtypes: an ignored one is far from the oracle ----

TEST_P(BinaryApi, EveryTargetTypeAndLayout) {
  for (const xent_dtype targets_dtype : kDtypes) {
    for (const int64_t inner : {0, 1, 2, 7, 70}) {
      for (const int64_t pad : {0, 3}) {
        for (const bool probabilities : {false, true}) {
          Binary call(dtype(), targets_dtype, 140, 9, inner, pad, pad);
          call.probabilities = probabilities;
          call.FillNormal(static_cast<uint64_t>(inner), 3);
          call.FillWeights(3);
          call.MustRun(Pass::kForwardBackward);
          call.ExpectAccurate();
          EXPECT_TRUE(call.PaddingIntact()) << "inner " << inner << ", pad " << pad;
        }
      }
    }
  }
}

TEST_P(BinaryApi, EachFactorCountsByItself) {
  for (const int64_t inner : {0, 5}) {
    for (int factor = 0; factor < 10; ++factor) {
      Binary all(dtype(), dtype(), 20, 33, inner);
      all.FillNormal(1, 3);
      Binary call = all;
      all.FillWeights(2);
      if (factor == 0) call.pos_weight = all.pos_weight;
      if (factor == 1) call.class_weights = all.class_weights;
      if (factor == 2) call.row_weights = all.row_weights;
      if (factor == 3) call.element_weights = all.element_weights;
      if (factor == 4) call.gamma = 2;
      if (factor == 5) call.has_alpha = true, call.alpha = 0.25;
      if (factor == 6) {
        call.upstream_kind = XENT_UPSTREAM_SCALAR;
        call.upstream = call.Vector({-1.75});
      }
      if (factor == 7) {
        call.upstream_kind = XENT_UPSTREAM_ROWS;
        call.upstream = *all.row_weights;
      }
      if (factor == 8) {
        call.upstream_kind = XENT_UPSTREAM_ELEMENTS;
        call.upstream = all.upstream;
      }
      call.MustRun(Pass::kForwardBackward);
      call.ExpectAccurate();
    }
  }
}

TEST_P(BinaryApi, Reductions) {
  for (const double divisor : {0.0, 12.5, 1e-3}) {
    for (const xent_reduction reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
      if (reduction == XENT_REDUCTION_NONE && divisor != 0) continue;
      Binary call(dtype(), dtype(), 37, 11);
      call.FillNormal(4, 3);
      call.FillWeights(5);
      call.options.reduction = reduction;
      call.options.divisor = divisor;
      call.options.has_divisor = divisor != 0 ? 1 : 0;
      call.MustRun(Pass::kForwardBackward);
      call.ExpectAccurate();
      if (reduction == XENT_REDUCTION_NONE) {
        EXPECT_EQ(call.loss.GetBits(0, 0), call.loss.PoisonBits());
      }
    }
  }
}

TEST_P(BinaryApi, ManyElementsAreSummedExactlyEnough) {
  // 0.69... a million times: a chain of float32 would be off by thousands of ULP.
  Binary call(dtype(), dtype(), 1000, 1000);
  for (int64_t i = 0; i < 1000; ++i) {
    for (int64_t c = 0; c < 1000; ++c) {
      call.x.Set(i, c, 0.125 * static_cast<double>((i + c) % 3));
      call.y.Set(i, c, static_cast<double>(c % 2));
    }
  }
  call.want_grad = call.want_target_grad = false;
  call.MustRun(Pass::kForward);
  call.ExpectAccurate();
}

// ---- the passes, and what must not change bits ----

TEST_P(BinaryApi, PassesAgreeBitByBit) {
  for (const int64_t inner : {0, 6}) {
    for (const double gamma : {0.0, 1.5}) {
      Binary both(dtype(), XENT_F32, 60, 29, inner, 2);
      both.FillNormal(8, 4);
      both.FillWeights(9);
      both.gamma = gamma;
      Binary forward = both, backward = both, in_place = both, grad_alone = both, target_alone = both;
      both.MustRun(Pass::kForwardBackward);
      forward.MustRun(Pass::kForward);
      EXPECT_EQ(FirstDifference(both.losses, forward.losses), "");
      EXPECT_EQ(FirstDifference(both.loss, forward.loss), "");
      backward.MustRun(Pass::kBackward);
      EXPECT_EQ(FirstDifference(both.grad, backward.grad), "");
      EXPECT_EQ(FirstDifference(both.target_grad, backward.target_grad), "");
      EXPECT_EQ(backward.losses.GetBits(0, 0), backward.losses.PoisonBits());
      in_place.in_place = true;
      in_place.MustRun(Pass::kForwardBackward);
      EXPECT_EQ(FirstDifference(both.grad, in_place.x), "");
      EXPECT_EQ(FirstDifference(both.target_grad, in_place.target_grad), "");
      EXPECT_EQ(FirstDifference(both.losses, in_place.losses), "");
      EXPECT_TRUE(in_place.PaddingIntact());
      grad_alone.want_target_grad = grad_alone.want_losses = false;
      grad_alone.MustRun(Pass::kForwardBackward);
      EXPECT_EQ(FirstDifference(both.grad, grad_alone.grad), "");
      EXPECT_EQ(FirstDifference(both.loss, grad_alone.loss), "");
      target_alone.want_grad = target_alone.want_loss = false;
      target_alone.MustRun(Pass::kForwardBackward);
      EXPECT_EQ(FirstDifference(both.target_grad, target_alone.target_grad), "");
      EXPECT_EQ(FirstDifference(both.losses, target_alone.losses), "");
    }
  }
}

TEST_P(BinaryApi, ThreadsStridesAndAlignmentChangeNothing) {
  const auto make = [&](int64_t pad, int64_t misalign) {
    Binary call(dtype(), dtype(), 301, 613, 0, pad, misalign);
    call.FillNormal(10, 3);
    call.FillWeights(11);
    return call;
  };
  Binary serial = make(0, 0);
  serial.MustRun(Pass::kForwardBackward);
  for (const int32_t threads : {0, 2, 3, 7}) {
    Binary call = make(threads, threads);
    call.exec = {sizeof(xent_exec), XENT_EXEC_OPENMP, threads, nullptr, nullptr};
    call.MustRun(Pass::kForwardBackward);
    EXPECT_EQ(FirstDifference(serial, call), "") << threads << " threads";
  }
  Binary pool = make(5, 1);
  pool.exec = {sizeof(xent_exec), XENT_EXEC_CALLER, 4,
               [](void *, int64_t n, xent_task task, void *arg) {
                 for (int64_t i = n - 1; i >= 0; --i) task(arg, i);
               },
               nullptr};
  pool.MustRun(Pass::kForwardBackward);
  EXPECT_EQ(FirstDifference(serial, pool), "");
  pool.exec.parallel_for = [](void *, int64_t n, xent_task task, void *arg) {
    for (int64_t i = 1; i < n; ++i) task(arg, i);
  };
  EXPECT_EQ(pool.Run(Pass::kForwardBackward), XENT_INCOMPLETE);
}

TEST_P(BinaryApi, OrderOfTheSumDoesNotDependOnThreads) {
  // Losses that cancel in pairs, the partner elsewhere and the magnitudes 2^60 apart: what remains is the sum's
  // rounding errors, which every other order changes.
  const int64_t rows = 200, cols = 701;
  const auto make = [&] {
    Binary call(dtype(), dtype(), rows, cols);
    call.want_grad = call.want_target_grad = call.want_losses = false;
    call.element_weights = call.Make(call.Float());
    Random random(20);
    for (int64_t k = 0; k < rows * cols / 2; ++k) {
      const int exponent = static_cast<int>(random.Below(60));
      const double weight = std::ldexp(1 + random.Uniform(), exponent);
      const int64_t pair[] = {k, rows * cols - 1 - k};
      for (const int64_t f : pair) {
        call.x.Set(f / cols, f % cols, 1);
        call.y.Set(f / cols, f % cols, 1);
        call.element_weights->Set(f / cols, f % cols, f == k ? weight : -weight);
      }
    }
    return call;
  };
  Binary serial = make();
  serial.MustRun(Pass::kForward);
  if (dtype() != XENT_F64) {
    EXPECT_NE(serial.loss.Get(0, 0), 0);
  }
  for (const int32_t threads : {2, 3, 7}) {
    Binary call = make();
    call.exec = {sizeof(xent_exec), XENT_EXEC_OPENMP, threads, nullptr, nullptr};
    call.MustRun(Pass::kForward);
    EXPECT_EQ(FirstDifference(serial.loss, call.loss), "") << threads << " threads";
  }
}

TEST_P(BinaryApi, ElementsAreIndependentOfTheirPlace) {
  // The classes in the middle, one row alone, and a batch: the same bits, weights of the same rows and columns.
  const int64_t rows = 42, cols = 13, d = 7;
  Binary flat(dtype(), dtype(), rows, cols), middle(dtype(), dtype(), rows, cols, d);
  flat.FillNormal(12, 3);
  flat.FillWeights(13);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) {
      middle.Set(middle.x, i, c, flat.Get(flat.x, i, c));
      middle.Set(middle.y, i, c, flat.Get(flat.y, i, c));
    }
  }
  middle.pos_weight = flat.pos_weight;
  middle.class_weights = flat.class_weights;
  middle.row_weights = flat.row_weights;
  for (Binary *call : {&flat, &middle}) {
    call->options.reduction = XENT_REDUCTION_SUM;
    call->element_weights.reset();
    call->upstream_kind = XENT_UPSTREAM_ROWS;
    call->upstream = *flat.row_weights;
    call->MustRun(Pass::kForwardBackward);
  }
  for (int64_t i = 0; i < rows; ++i) {
    Binary alone(dtype(), dtype(), 1, cols);
    alone.options.reduction = XENT_REDUCTION_SUM;
    alone.pos_weight = flat.pos_weight;
    alone.class_weights = flat.class_weights;
    alone.row_weights = alone.Vector({flat.row_weights->Get(0, i)});
    alone.upstream_kind = XENT_UPSTREAM_SCALAR;
    alone.upstream = *alone.row_weights;
    for (int64_t c = 0; c < cols; ++c) {
      alone.x.Set(0, c, flat.x.Get(i, c));
      alone.y.Set(0, c, flat.y.Get(i, c));
    }
    alone.MustRun(Pass::kForwardBackward);
    for (int64_t c = 0; c < cols; ++c) {
      for (const auto member : {&Binary::losses, &Binary::grad, &Binary::target_grad}) {
        const uint64_t want = flat.GetBits(flat.*member, i, c);
        EXPECT_EQ(middle.GetBits(middle.*member, i, c), want) << i << "," << c;
        EXPECT_EQ(alone.GetBits(alone.*member, 0, c), want) << i << "," << c;
      }
    }
  }
}

TEST_P(BinaryApi, FloatingPointModeOfTheCallerDoesNotMatter) {
  Binary plain(dtype(), dtype(), 11, 17);
  plain.FillNormal(14, 30);
  plain.FillWeights(15);
  Binary upward = plain;
  plain.MustRun(Pass::kForwardBackward);
  std::fesetround(FE_UPWARD);
  const xent_status status = upward.Run(Pass::kForwardBackward);
  EXPECT_EQ(std::fegetround(), FE_UPWARD);
  std::fesetround(FE_TONEAREST);
  EXPECT_EQ(status, XENT_OK);
  EXPECT_EQ(FirstDifference(plain, upward), "");
}

TEST_P(BinaryApi, FocalWithoutGammaAndAlphaIsPlain) {
  Binary plain(dtype(), dtype(), 11, 17);
  plain.FillNormal(14, 3);
  Binary focal = plain;
  focal.gamma = 0;
  plain.MustRun(Pass::kForwardBackward);
  focal.MustRun(Pass::kForwardBackward);
  EXPECT_EQ(FirstDifference(plain, focal), "");
}

// ---- edges ----

TEST_P(BinaryApi, InfiniteLogits) {
  for (const double gamma : {0.0, 0.5, 2.0}) {
    Binary call = Row(dtype(), {kInf, kInf, -kInf, -kInf, kInf, -kInf}, {1, 0, 0, 1, 0.5, 0.5});
    call.gamma = gamma;
    call.MustRun(Pass::kForwardBackward);
    const double losses[] = {0, kInf, 0, kInf, kInf, kInf};
    for (int64_t c = 0; c < 6; ++c) EXPECT_TRUE(Is(call, call.losses, 0, c, losses[c])) << gamma;
    EXPECT_TRUE(Is(call, call.grad, 0, 0, 0));
    EXPECT_TRUE(Is(call, call.grad, 0, 1, 1));
    EXPECT_TRUE(Is(call, call.grad, 0, 2, 0));
    EXPECT_TRUE(Is(call, call.grad, 0, 3, -1));
    if (gamma == 0) {
      EXPECT_TRUE(Is(call, call.grad, 0, 4, 0.5));
      EXPECT_TRUE(Is(call, call.grad, 0, 5, -0.5));
      const double target_grad[] = {-kInf, -kInf, kInf, kInf, -kInf, kInf};
      for (int64_t c = 0; c < 6; ++c) EXPECT_TRUE(Is(call, call.target_grad, 0, c, target_grad[c]));
    }
  }
}

TEST_P(BinaryApi, FocalGradientIsFiniteWhereTheProbabilityIsOne) {
  for (const double gamma : {1e-3, 0.5, 0.999}) {
    Binary call = Row(dtype(), {kInf, -kInf, 3000, -3000, 60, -60, 20, -20}, {1, 0, 1, 0, 1, 0, 1, 0});
    call.gamma = gamma;
    call.MustRun(Pass::kForwardBackward);
    call.ExpectAccurate();
    for (int64_t c = 0; c < 8; ++c) {
      EXPECT_TRUE(std::isfinite(call.grad.Get(0, c))) << c;
      EXPECT_TRUE(std::isfinite(call.target_grad.Get(0, c))) << c;
    }
  }
}

TEST_P(BinaryApi, NanStaysInItsElement) {
  for (const double gamma : {0.0, 2.0}) {
    Binary call = Row(dtype(), {0.5, kNan, 1, -2, kNan}, {1, 0, kNan, 1, kNan});
    call.gamma = gamma;
    // A weight of 0 does not hide it.
    call.class_weights = call.Vector({1, 0, 0, 1, 1});
    call.upstream_kind = XENT_UPSTREAM_ELEMENTS;
    call.upstream = call.Vector({1, 1, 1, kNan, 1});
    call.MustRun(Pass::kForwardBackward);
    call.ExpectAccurate();
    const bool nan_loss[] = {false, true, true, false, true}, nan_grad[] = {false, true, true, true, true};
    for (int64_t c = 0; c < 5; ++c) {
      if (nan_loss[c]) {
        EXPECT_TRUE(Is(call, call.losses, 0, c, kNan));
      } else {
        EXPECT_TRUE(std::isfinite(call.losses.Get(0, c)));
      }
      for (const Matrix *m : {&call.grad, &call.target_grad}) {
        if (nan_grad[c]) {
          EXPECT_TRUE(Is(call, *m, 0, c, kNan));
        } else {
          EXPECT_TRUE(std::isfinite(m->Get(0, c)));
        }
      }
    }
    EXPECT_TRUE(Is(call, call.loss, 0, 0, kNan));
  }
}

TEST_P(BinaryApi, ZeroWeightBeatsInfinity) {
  for (const double gamma : {0.0, 2.0}) {
    Binary call = Row(dtype(), {-kInf, kInf, -kInf, 2}, {1, 0, 1, 1});
    call.gamma = gamma;
    call.class_weights = call.Vector({0, 0, 1, 0});
    call.pos_weight = call.Vector({1, 1, 0, 1});
    call.upstream_kind = XENT_UPSTREAM_ELEMENTS;
    call.upstream = call.Vector({kInf, 1, 1, kInf});
    call.MustRun(Pass::kForwardBackward);
    for (int64_t c = 0; c < 4; ++c) {
      EXPECT_TRUE(Is(call, call.losses, 0, c, 0));
      EXPECT_TRUE(Is(call, call.grad, 0, c, 0));
    }
  }
}

TEST_P(BinaryApi, TargetGradientOfATinyLogitIsExact) {
  // softplus(-z) - softplus(z) = -z, of which the two terms' digits hold nothing.
  const double z = dtype() == XENT_F16 ? 0x1p-14 : 0x1p-73;
  Binary call = Row(dtype(), {z, -z}, {0.5, 1});
  call.MustRun(Pass::kForwardBackward);
  EXPECT_TRUE(Is(call, call.target_grad, 0, 0, -z));
  EXPECT_TRUE(Is(call, call.target_grad, 0, 1, z));
  call.upstream_kind = XENT_UPSTREAM_SCALAR;
  call.upstream = call.Vector({kInf});
  call.MustRun(Pass::kBackward);
  EXPECT_TRUE(Is(call, call.target_grad, 0, 0, -kInf));
}

TEST_P(BinaryApi, TinyResultsAreZeroAndHugeOnesInfinite) {
  const xent_dtype type = reference::ArithmeticType(dtype());
  const double smallest = static_cast<double>(reference::SmallestNormal(type));
  const double largest = reference::LargestFinite(type);
  // z = 0, y = 0: the loss is w log 2, the gradient w / 2 and -w log 2.
  Binary call = Row(dtype(), {0, 0, 0, 0}, {0, 0, 0, 1});
  call.class_weights = call.Vector({smallest, 2 * smallest, 0.95 * largest, -smallest});
  call.row_weights = call.Vector({1});
  call.upstream_kind = XENT_UPSTREAM_ELEMENTS;
  call.upstream = call.Vector({1, 1, 4, 1});
  call.MustRun(Pass::kForwardBackward);
  call.ExpectAccurate();
  EXPECT_TRUE(Is(call, call.losses, 0, 0, 0));
  EXPECT_GT(call.losses.Get(0, 1), 0);
  EXPECT_TRUE(Is(call, call.losses, 0, 3, 0));
  EXPECT_TRUE(Is(call, call.grad, 0, 0, 0));
  EXPECT_TRUE(Is(call, call.grad, 0, 1, 0)) << "exactly the smallest normal number";
  EXPECT_TRUE(Is(call, call.grad, 0, 2, kInf));
  EXPECT_TRUE(Is(call, call.target_grad, 0, 0, 0));
}

TEST(BinaryRounding, HalfPrecisionGradientsOfFloat64AreRoundedOnce) {
  // The gradient for the target is -z. These lie just beside a tie of the half-precision type; through float32 they
  // would be taken for it, and go to the even neighbour.
  for (const xent_dtype half : {XENT_BF16, XENT_F16}) {
    const double ulp = half == XENT_BF16 ? 0x1p-7 : 0x1p-10;
    Binary call(XENT_F64, half, 1, 4);
    const double z[] = {1 + ulp / 2 + 0x1p-40, 1 + ulp / 2, 1 + 3 * ulp / 2 - 0x1p-40, -(1 + ulp / 2 + 0x1p-40)};
    const double want[] = {-(1 + ulp), -1, -(1 + ulp), 1 + ulp};
    for (int64_t c = 0; c < 4; ++c) {
      call.x.Set(0, c, z[c]);
      call.y.Set(0, c, 0.5);
    }
    call.options.reduction = XENT_REDUCTION_NONE;
    call.MustRun(Pass::kForwardBackward);
    for (int64_t c = 0; c < 4; ++c) EXPECT_TRUE(Is(call, call.target_grad, 0, c, want[c])) << c;
  }
}

TEST_P(BinaryApi, SubnormalInputsCountForWhatTheyAre) {
  // A subnormal target beside the largest logit: 1e-40 times 3e38.
  const double largest = reference::LargestFinite(dtype());
  const double subnormal = reference::Decode(dtype(), 3);
  Binary call = Row(dtype(), {-largest, -largest}, {subnormal, 0});
  call.MustRun(Pass::kForward);
  call.ExpectAccurate();
  EXPECT_NEAR(call.losses.Get(0, 0) / (largest * subnormal), 1, 1e-6);
}

TEST_P(BinaryApi, ProbabilitiesAtBothEnds) {
  // PyTorch's clamps: logarithms at -100, the gradient's divisor at 1e-12.
  Binary call = Row(dtype(), {0, 1, 0, 1}, {0, 1, 1, 0});
  call.probabilities = true;
  call.MustRun(Pass::kForwardBackward);
  const double losses[] = {0, 0, 100, 100};
  for (int64_t c = 0; c < 4; ++c) EXPECT_TRUE(Is(call, call.losses, 0, c, losses[c]));
  const double grad[] = {0, 0, -1e12, 1e12};
  for (int64_t c = 0; c < 4; ++c) EXPECT_TRUE(Is(call, call.grad, 0, c, grad[c])) << c;
  const double target_grad[] = {100, -100, 100, -100};
  for (int64_t c = 0; c < 4; ++c) EXPECT_TRUE(Is(call, call.target_grad, 0, c, target_grad[c])) << c;
}

TEST_P(BinaryApi, EmptyBatches) {
  for (const xent_reduction reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
    for (const bool zero : {false, true}) {
      for (const bool divisor : {false, true}) {
        if (divisor && reduction == XENT_REDUCTION_NONE) continue;
        xent_options options = XENT_OPTIONS_INIT;
        options.reduction = reduction;
        options.empty_mean = zero ? XENT_EMPTY_MEAN_ZERO : XENT_EMPTY_MEAN_NAN;
        options.has_divisor = divisor ? 1 : 0;
        options.divisor = divisor ? 3 : 0;
        xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
        args.cols = 5;
        args.dtype = dtype();
        Matrix loss(reference::ArithmeticType(dtype()), 1, 1);
        if (reduction != XENT_REDUCTION_NONE) args.loss = loss.data();
        xent_error error = XENT_ERROR_INIT;
        ASSERT_EQ(xent_binary_cross_entropy_forward_backward(&args, &options, nullptr, &error), XENT_OK)
            << error.message;
        if (reduction == XENT_REDUCTION_NONE) continue;
        const bool is_nan = reduction == XENT_REDUCTION_MEAN && !zero && !divisor;
        EXPECT_EQ(loss.GetBits(0, 0), reference::Encode(loss.dtype(), is_nan ? kNan : 0));
      }
    }
  }
}

// ---- errors ----

struct BadCall {
  const char *what;  // must be part of the message
  Pass pass;
  std::function<void(Binary &, xent_binary_cross_entropy &, xent_options &)> change;
};

TEST_P(BinaryApi, RefusedCallsChangeNothing) {
  using Args = xent_binary_cross_entropy;
  using Options = xent_options;
  const Pass kAny = Pass::kForwardBackward;
  static float unaligned[16];
  const BadCall calls[] = {
      {"struct_size", kAny, [](Binary &, Args &a, Options &) { a.struct_size = 0; }},
      {"rows is -1", kAny, [](Binary &, Args &a, Options &) { a.rows = -1; }},
      {"cols is 0", kAny, [](Binary &, Args &a, Options &) { a.cols = 0; }},
      {"dtype is 9", kAny, [](Binary &, Args &a, Options &) { a.dtype = 9; }},
      {"targets_dtype is 0", kAny, [](Binary &, Args &a, Options &) { a.targets_dtype = 0; }},
      {"inner is -2", kAny, [](Binary &, Args &a, Options &) { a.inner = -2; }},
      {"multiple of inner, which is 4", kAny, [](Binary &, Args &a, Options &) { a.inner = 4; }},
      {"input_stride is 4", kAny, [](Binary &, Args &a, Options &) { a.input_stride = 4; }},
      {"cols times inner, which is 15", kAny,
       [](Binary &, Args &a, Options &) { a.inner = 3, a.rows = 6, a.targets_stride = 14; }},
      {"losses_stride is 4", kAny, [](Binary &, Args &a, Options &) { a.losses_stride = 4; }},
      {"grad_stride is 4", kAny, [](Binary &, Args &a, Options &) { a.grad_stride = 4; }},
      {"target_grad_stride is 4", kAny, [](Binary &, Args &a, Options &) { a.target_grad_stride = 4; }},
      {"exceed 2^63", kAny, [](Binary &, Args &a, Options &) { a.input_stride = INT64_MAX / 2; }},
      {"cols 4611686018427387904 times inner", kAny,
       [](Binary &, Args &a, Options &) { a.cols = int64_t{1} << 62, a.inner = 6; }},
      {"input is NULL", kAny, [](Binary &, Args &a, Options &) { a.input = nullptr; }},
      {"targets is NULL", kAny, [](Binary &, Args &a, Options &) { a.targets = nullptr; }},
      {"row_weights is not aligned", kAny,
       [](Binary &, Args &a, Options &) { a.row_weights = reinterpret_cast<const char *>(unaligned) + 1; }},
      {"element_weights_stride is set", kAny, [](Binary &, Args &a, Options &) { a.element_weights_stride = 9; }},
      {"input_kind is 2", kAny, [](Binary &, Args &a, Options &) { a.input_kind = 2; }},
      {"focal_gamma is -1", kAny, [](Binary &, Args &a, Options &) { a.focal_gamma = -1; }},
      {"focal_gamma is nan", kAny, [](Binary &, Args &a, Options &) { a.focal_gamma = kNan; }},
      {"focal_gamma is inf", kAny, [](Binary &, Args &a, Options &) { a.focal_gamma = kInf; }},
      {"focal_alpha is 1.5", kAny, [](Binary &, Args &a, Options &) { a.has_focal_alpha = 1, a.focal_alpha = 1.5; }},
      {"focal_alpha is nan", kAny, [](Binary &, Args &a, Options &) { a.has_focal_alpha = 1, a.focal_alpha = kNan; }},
      {"has_focal_alpha is 0", kAny, [](Binary &, Args &a, Options &) { a.focal_alpha = 0.5; }},
      {"has_focal_alpha is 2", kAny, [](Binary &, Args &a, Options &) { a.has_focal_alpha = 2; }},
      {"pos_weight and input_kind probabilities", kAny,
       [](Binary &b, Args &a, Options &) {
         b.pos_weight = b.Vector(std::vector<double>(5, 1.0));
         a.pos_weight = b.pos_weight->data();
         a.input_kind = XENT_BCE_PROBABILITIES;
       }},
      {"focal_gamma and input_kind probabilities", kAny,
       [](Binary &, Args &a, Options &) { a.focal_gamma = 1, a.input_kind = XENT_BCE_PROBABILITIES; }},
      {"focal_alpha and input_kind probabilities", kAny,
       [](Binary &, Args &a, Options &) { a.has_focal_alpha = 1, a.input_kind = XENT_BCE_PROBABILITIES; }},
      {"upstream_kind is 4", kAny, [](Binary &, Args &a, Options &) { a.upstream_kind = 4; }},
      {"upstream is NULL", kAny, [](Binary &, Args &a, Options &) { a.upstream_kind = XENT_UPSTREAM_ELEMENTS; }},
      {"upstream is NULL", kAny, [](Binary &, Args &a, Options &) { a.upstream_kind = XENT_UPSTREAM_ROWS; }},
      {"upstream is set", kAny, [](Binary &b, Args &a, Options &) { a.upstream = b.loss.data(); }},
      {"upstream_stride is set", kAny, [](Binary &, Args &a, Options &) { a.upstream_stride = 5; }},
      {"in_place is 2", kAny, [](Binary &, Args &a, Options &) { a.in_place = 2; }},
      {"expected in_place to be 1", kAny,
       [](Binary &, Args &a, Options &) { a.grad = const_cast<void *>(a.input), a.grad_stride = a.input_stride; }},
      {"input_stride and grad_stride to be equal", kAny,
       [](Binary &, Args &a, Options &) {
         a.grad = const_cast<void *>(a.input), a.in_place = 1, a.input_stride = 5, a.grad_stride = 6;
       }},
      {"grad is NULL, and so is target_grad", Pass::kBackward,
       [](Binary &, Args &a, Options &) {
         a.grad = a.target_grad = nullptr;
         a.grad_stride = a.target_grad_stride = 0;
       }},
      {"grad is set", Pass::kForward, [](Binary &b, Args &a, Options &) { a.grad = b.grad.data(); }},
      {"target_grad is set", Pass::kForward,
       [](Binary &b, Args &a, Options &) { a.target_grad = b.target_grad.data(); }},
      {"upstream_kind is set", Pass::kForward,
       [](Binary &, Args &a, Options &) { a.upstream_kind = XENT_UPSTREAM_SCALAR; }},
      {"in_place is set", Pass::kForward, [](Binary &, Args &a, Options &) { a.in_place = 1; }},
      {"losses is set", Pass::kBackward, [](Binary &b, Args &a, Options &) { a.losses = b.losses.data(); }},
      {"loss is set", Pass::kBackward, [](Binary &b, Args &a, Options &) { a.loss = b.loss.data(); }},
      {"reduction is none", kAny, [](Binary &, Args &, Options &o) { o.reduction = XENT_REDUCTION_NONE; }},
      {"divisor is", kAny, [](Binary &, Args &, Options &o) { o.has_divisor = 1, o.divisor = -1; }},
      {"label_smoothing and binary cross-entropy", kAny, [](Binary &, Args &, Options &o) { o.label_smoothing = 0.1; }},
      {"ignore_index and binary cross-entropy", kAny, [](Binary &, Args &, Options &o) { o.ignore_index = 0; }},
      {"z_loss and binary cross-entropy", kAny, [](Binary &, Args &, Options &o) { o.z_loss = 1e-4; }},
      {"softcap and binary cross-entropy", kAny, [](Binary &, Args &, Options &o) { o.softcap = 30; }},
      {"logit_scale and binary cross-entropy", kAny, [](Binary &, Args &, Options &o) { o.logit_scale = 2; }},
      {"valid_cols and binary cross-entropy", kAny, [](Binary &, Args &, Options &o) { o.valid_cols = 3; }},
  };
  for (const BadCall &bad : calls) {
    Binary call(dtype(), dtype(), 6, 5);
    call.FillNormal(1, 1);
    for (int64_t i = 0; i < 6; ++i) {
      for (int64_t c = 0; c < 5; ++c) call.x.Set(i, c, 0.5);  // a probability too
    }
    xent_binary_cross_entropy args = call.Args(bad.pass);
    xent_options options = XENT_OPTIONS_INIT;
    bad.change(call, args, options);
    xent_error error = XENT_ERROR_INIT;
    const auto function = bad.pass == Pass::kForward           ? xent_binary_cross_entropy_forward
                          : bad.pass == Pass::kForwardBackward ? xent_binary_cross_entropy_forward_backward
                                                               : xent_binary_cross_entropy_backward;
    EXPECT_EQ(function(&args, &options, nullptr, &error), XENT_INVALID_ARGUMENT) << bad.what;
    EXPECT_EQ(error.status, XENT_INVALID_ARGUMENT) << bad.what;
    EXPECT_NE(std::strstr(error.message, bad.what), nullptr) << error.message << ", expected " << bad.what;
    EXPECT_TRUE(call.OutputsUntouched()) << bad.what;
  }
  xent_error error = XENT_ERROR_INIT;
  EXPECT_EQ(xent_binary_cross_entropy_forward(nullptr, nullptr, nullptr, &error), XENT_INVALID_ARGUMENT);
}

TEST_P(BinaryApi, WeightsMustBeFinite) {
  for (const double bad : {kNan, kInf, -kInf}) {
    for (const int64_t inner : {0, 3}) {
      for (int which = 0; which < 4; ++which) {
        Binary call(dtype(), dtype(), 6, 5, inner);
        call.FillNormal(1, 1);
        call.FillWeights(2);
        std::string text;
        if (which == 0) call.pos_weight->Set(0, 3, bad), text = "pos_weight: element 3 is ";
        if (which == 1) call.class_weights->Set(0, 4, bad), text = "class_weights: element 4 is ";
        if (which == 2) call.row_weights->Set(0, 5, bad), text = "row_weights: element 5 is ";
        if (which == 3) {
          call.Set(*call.element_weights, 4, 2, bad);
          text = "element_weights: row 4, column 2 is ";
        }
        ASSERT_EQ(call.Run(Pass::kForwardBackward), XENT_INVALID_ARGUMENT) << text << bad;
        EXPECT_NE(std::string(call.error.message).find(text), std::string::npos) << call.error.message;
        EXPECT_EQ(call.error.row, which == 3 ? 4 : which == 2 ? 5 : -1);
        EXPECT_EQ(call.error.value, which == 0 ? 3 : which == 1 ? 4 : which == 2 ? 0 : 2);
        EXPECT_TRUE(call.OutputsUntouched());
      }
    }
  }
}

TEST_P(BinaryApi, ProbabilitiesOutsideTheirDomain) {
  for (const double bad : {kNan, -0.25, 1.5, kInf}) {
    for (const int64_t inner : {0, 3}) {
      for (const Pass pass : kPasses) {
        Binary call(dtype(), dtype(), 6, 5, inner, 2);
        call.probabilities = true;
        call.FillNormal(1, 1);
        call.Set(call.x, 4, 3, bad);
        ASSERT_EQ(call.Run(pass), XENT_DOMAIN_ERROR);
        EXPECT_EQ(call.error.status, XENT_DOMAIN_ERROR);
        EXPECT_EQ(call.error.row, 4);
        EXPECT_EQ(call.error.value, 3);
        EXPECT_NE(std::strstr(call.error.message, "row 4, column 3 is "), nullptr) << call.error.message;
        EXPECT_TRUE(call.OutputsUntouched());
      }
    }
  }
  // Logits have no such domain.
  Binary call(dtype(), dtype(), 1, 1);
  call.x.Set(0, 0, 1.5);
  call.y.Set(0, 0, 1);
  call.MustRun(Pass::kForward);
}

// ---- finite differences ----

TEST(BinaryDifferences, GradientsAreTheLossesSlopes) {
  // Central differences of float64 losses: their error is about h^2 and 1e-16 / h.
  constexpr double kStep = 1e-5;
  for (int variant = 0; variant < 8; ++variant) {
    Binary call(XENT_F64, XENT_F64, 4, 6);
    call.probabilities = variant == 7;
    call.FillNormal(static_cast<uint64_t>(variant), 2);
    if (variant % 2 == 1) call.FillWeights(3);
    if (variant >= 2 && variant < 7) call.gamma = 0.5 * variant;
    if (variant >= 4 && variant < 7) call.has_alpha = true, call.alpha = 0.3;
    call.upstream_kind = XENT_UPSTREAM_ONE;
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t c = 0; c < 6; ++c) {
        call.y.Set(i, c, 0.1 + 0.8 * call.y.Get(i, c));
        if (call.probabilities) call.x.Set(i, c, 0.1 + 0.8 * call.x.Get(i, c));
      }
    }
    call.MustRun(Pass::kForwardBackward);
    Binary moved = call;
    const auto loss_at = [&](Matrix &m, int64_t i, int64_t c, double value) {
      const double before = m.Get(i, c);
      m.Set(i, c, value);
      moved.MustRun(Pass::kForward);
      m.Set(i, c, before);
      return moved.loss.Get(0, 0);
    };
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t c = 0; c < 6; ++c) {
        const double x = call.x.Get(i, c), y = call.y.Get(i, c);
        const double dx = (loss_at(moved.x, i, c, x + kStep) - loss_at(moved.x, i, c, x - kStep)) / (2 * kStep);
        const double dy = (loss_at(moved.y, i, c, y + kStep) - loss_at(moved.y, i, c, y - kStep)) / (2 * kStep);
        EXPECT_NEAR(call.grad.Get(i, c), dx, 2e-9) << "variant " << variant;
        EXPECT_NEAR(call.target_grad.Get(i, c), dy, 2e-9) << "variant " << variant;
      }
    }
  }
}

// Outputs too large for the caches are stored past them: the same bits as those of calls of parts.
TEST(BinaryLarge, OutputsHaveTheBitsOfSmallCalls) {
  const int64_t rows = 8, cols = (int64_t{1} << 20) + 5;
  const size_t count = static_cast<size_t>(rows * cols);
  std::vector<float> x(count), y(count), more_losses(count + 16), more_grad(count + 32);
  const auto aligned = [](std::vector<float> &v) {
    return v.data() + (64 - reinterpret_cast<uintptr_t>(v.data()) % 64) / sizeof(float);
  };
  float *const losses = aligned(more_losses);
  Random random(21);
  for (size_t i = 0; i < count; ++i) {
    x[i] = static_cast<float>(random.Uniform() * 20 - 10);
    y[i] = static_cast<float>(i % 3 == 0);
  }
  xent_options options = XENT_OPTIONS_INIT;
  options.reduction = XENT_REDUCTION_NONE;
  for (const size_t misaligned : {0, 3}) {
    xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
    args.rows = rows;
    args.cols = cols;
    args.dtype = args.targets_dtype = XENT_F32;
    args.input = x.data();
    args.targets = y.data();
    args.losses = losses;
    float *const grad = aligned(more_grad) + misaligned;
    args.grad = grad;
    ASSERT_EQ(xent_binary_cross_entropy_forward_backward(&args, &options, nullptr, nullptr), XENT_OK);
    std::vector<float> part_losses(static_cast<size_t>(cols)), part_grad(static_cast<size_t>(cols));
    for (int64_t row = 0; row < rows; ++row) {
      args.rows = 1;
      args.input = x.data() + row * cols;
      args.targets = y.data() + row * cols;
      args.losses = part_losses.data();
      args.grad = part_grad.data();
      ASSERT_EQ(xent_binary_cross_entropy_forward_backward(&args, &options, nullptr, nullptr), XENT_OK);
      const size_t bytes = static_cast<size_t>(cols) * sizeof(float);
      EXPECT_EQ(std::memcmp(part_losses.data(), losses + row * cols, bytes), 0) << row;
      EXPECT_EQ(std::memcmp(part_grad.data(), grad + row * cols, bytes), 0) << row;
    }
  }
}

}  // namespace
}  // namespace xent::test
