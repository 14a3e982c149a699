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
#include <utility>
#include <vector>

#include "testing/assertions.h"

namespace xent::test {
namespace {

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
  call.options.reduction.kind = XENT_REDUCTION_SUM;
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
      p.options.input = XENT_BINARY_PROBABILITIES;
      p.MustRun(Pass::kForwardBackward);
      EXPECT_NEAR(p.element_losses.Get(0, 0), row.loss, row.half_unit);
      EXPECT_NEAR(p.grad.Get(0, 0), -1 / row.p, 1e-4 / row.p);
      Binary z = Row(dtype, {std::log(row.p / (1 - row.p))}, {1});
      z.MustRun(Pass::kForwardBackward);
      EXPECT_NEAR(z.element_losses.Get(0, 0), row.loss, row.half_unit);
      EXPECT_NEAR(z.grad.Get(0, 0), row.p - 1, 1e-6);
    }
  }
}

TEST(BinaryGolden, LogitZeroIsLog2) {
  Binary call = Row(XENT_F64, {0, 0}, {0, 1});
  call.MustRun(Pass::kForwardBackward);
  for (int64_t c = 0; c < 2; ++c) EXPECT_EQ(call.element_losses.Get(0, c), std::log(2.0));
  EXPECT_EQ(call.grad.Get(0, 0), 0.5);
  EXPECT_EQ(call.grad.Get(0, 1), -0.5);
}

TEST(BinaryGolden, Focal) {
  // Lin et al. 2017: p_t 0.9 with gamma 2 has a loss 100 times smaller than bce's; alpha 0.25 is the positives' weight.
  Binary call = Row(XENT_F64, {std::log(9.0), -std::log(9.0)}, {1, 0});
  call.options.focal_gamma = 2;
  call.MustRun(Pass::kForward);
  EXPECT_NEAR(call.element_losses.Get(0, 0), -std::log(0.9) / 100, 1e-15);
  EXPECT_NEAR(call.element_losses.Get(0, 1), -std::log(0.9) / 100, 1e-15);
  call.options.focal_alpha = 0.25;
  call.MustRun(Pass::kForward);
  EXPECT_NEAR(call.element_losses.Get(0, 0), -0.25 * std::log(0.9) / 100, 1e-15);
  EXPECT_NEAR(call.element_losses.Get(0, 1), -0.75 * std::log(0.9) / 100, 1e-15);
}

// ---- options, layouts, dtypes: an ignored one is far from the oracle ----

TEST_P(BinaryApi, EveryTargetTypeAndLayout) {
  for (const xent_dtype targets_dtype : kDtypes) {
    for (const int64_t inner : {0, 1, 2, 7, 70}) {
      for (const int64_t pad : {0, 3}) {
        for (const bool probabilities : {false, true}) {
          Binary call(dtype(), targets_dtype, 140, 9, inner, pad, pad);
          call.options.input = probabilities ? XENT_BINARY_PROBABILITIES : XENT_BINARY_LOGITS;
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
      if (factor == 4) call.options.focal_gamma = 2;
      if (factor == 5) call.options.focal_alpha = 0.25;
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
    for (const xent_reduction_kind reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
      if (reduction == XENT_REDUCTION_NONE && divisor != 0) continue;
      Binary call(dtype(), dtype(), 37, 11);
      call.FillNormal(4, 3);
      call.FillWeights(5);
      call.options.reduction.kind = reduction;
      call.options.reduction.divisor = divisor;
      call.MustRun(Pass::kForwardBackward);
      call.ExpectAccurate();
      if (reduction == XENT_REDUCTION_NONE) {
        EXPECT_EQ(call.reduced_loss.GetBits(0, 0), call.reduced_loss.PoisonBits());
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
      both.options.focal_gamma = gamma;
      Binary forward = both, backward = both, in_place = both, grad_alone = both, target_alone = both;
      both.MustRun(Pass::kForwardBackward);
      forward.MustRun(Pass::kForward);
      EXPECT_EQ(FirstDifference(both.element_losses, forward.element_losses), "");
      EXPECT_EQ(FirstDifference(both.reduced_loss, forward.reduced_loss), "");
      backward.MustRun(Pass::kBackward);
      EXPECT_EQ(FirstDifference(both.grad, backward.grad), "");
      EXPECT_EQ(FirstDifference(both.target_grad, backward.target_grad), "");
      EXPECT_EQ(backward.element_losses.GetBits(0, 0), backward.element_losses.PoisonBits());
      in_place.in_place = true;
      in_place.MustRun(Pass::kForwardBackward);
      EXPECT_EQ(FirstDifference(both.grad, in_place.x), "");
      EXPECT_EQ(FirstDifference(both.target_grad, in_place.target_grad), "");
      EXPECT_EQ(FirstDifference(both.element_losses, in_place.element_losses), "");
      EXPECT_TRUE(in_place.PaddingIntact());
      grad_alone.want_target_grad = grad_alone.want_element_losses = false;
      grad_alone.MustRun(Pass::kForwardBackward);
      EXPECT_EQ(FirstDifference(both.grad, grad_alone.grad), "");
      EXPECT_EQ(FirstDifference(both.reduced_loss, grad_alone.reduced_loss), "");
      target_alone.want_grad = target_alone.want_reduced_loss = false;
      target_alone.MustRun(Pass::kForwardBackward);
      EXPECT_EQ(FirstDifference(both.target_grad, target_alone.target_grad), "");
      EXPECT_EQ(FirstDifference(both.element_losses, target_alone.element_losses), "");
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
    call.exec = TeamOf(threads);
    call.MustRun(Pass::kForwardBackward);
    EXPECT_EQ(FirstDifference(serial, call), "") << threads << " threads";
  }
  Binary pool = make(5, 1);
  pool.exec = PoolOf(
      [](void *, int64_t n, xent_task task, void *arg) {
        for (int64_t i = n - 1; i >= 0; --i) task(arg, i);
      },
      nullptr, 4);
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
    call.want_grad = call.want_target_grad = call.want_element_losses = false;
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
    EXPECT_NE(serial.reduced_loss.Get(0, 0), 0);
  }
  for (const int32_t threads : {2, 3, 7}) {
    Binary call = make();
    call.exec = TeamOf(threads);
    call.MustRun(Pass::kForward);
    EXPECT_EQ(FirstDifference(serial.reduced_loss, call.reduced_loss), "") << threads << " threads";
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
    call->options.reduction.kind = XENT_REDUCTION_SUM;
    call->element_weights.reset();
    call->upstream_kind = XENT_UPSTREAM_ROWS;
    call->upstream = *flat.row_weights;
    call->MustRun(Pass::kForwardBackward);
  }
  for (int64_t i = 0; i < rows; ++i) {
    Binary alone(dtype(), dtype(), 1, cols);
    alone.options.reduction.kind = XENT_REDUCTION_SUM;
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
      for (const auto member : {&Binary::element_losses, &Binary::grad, &Binary::target_grad}) {
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
  focal.options.focal_gamma = 0;
  plain.MustRun(Pass::kForwardBackward);
  focal.MustRun(Pass::kForwardBackward);
  EXPECT_EQ(FirstDifference(plain, focal), "");
}

// ---- edges ----

TEST_P(BinaryApi, InfiniteLogits) {
  for (const double gamma : {0.0, 0.5, 2.0}) {
    Binary call = Row(dtype(), {kInf, kInf, -kInf, -kInf, kInf, -kInf}, {1, 0, 0, 1, 0.5, 0.5});
    call.options.focal_gamma = gamma;
    call.MustRun(Pass::kForwardBackward);
    const double losses[] = {0, kInf, 0, kInf, kInf, kInf};
    for (int64_t c = 0; c < 6; ++c) EXPECT_TRUE(Is(call, call.element_losses, 0, c, losses[c])) << gamma;
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

// 1 - p_y is -infinity there, of which only whole powers are numbers.
TEST_P(BinaryApi, FocalOfAnInfiniteLogitWithThatTargetIsNan) {
  Binary call = Row(dtype(), {kInf, -kInf}, {kInf, -kInf});
  call.options.focal_gamma = 1.5;
  call.MustRun(Pass::kForwardBackward);
  for (int64_t c = 0; c < 2; ++c) {
    EXPECT_TRUE(std::isnan(call.element_losses.Get(0, c))) << c;
    EXPECT_TRUE(std::isnan(call.grad.Get(0, c))) << c;
    EXPECT_TRUE(std::isnan(call.target_grad.Get(0, c))) << c;
  }
}

TEST_P(BinaryApi, FocalGradientIsFiniteWhereTheProbabilityIsOne) {
  for (const double gamma : {1e-3, 0.5, 0.999}) {
    Binary call = Row(dtype(), {kInf, -kInf, 3000, -3000, 60, -60, 20, -20}, {1, 0, 1, 0, 1, 0, 1, 0});
    call.options.focal_gamma = gamma;
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
    call.options.focal_gamma = gamma;
    // A weight of 0 does not hide it.
    call.class_weights = call.Vector({1, 0, 0, 1, 1});
    call.upstream_kind = XENT_UPSTREAM_ELEMENTS;
    call.upstream = call.Vector({1, 1, 1, kNan, 1});
    call.MustRun(Pass::kForwardBackward);
    call.ExpectAccurate();
    const bool nan_loss[] = {false, true, true, false, true}, nan_grad[] = {false, true, true, true, true};
    for (int64_t c = 0; c < 5; ++c) {
      if (nan_loss[c]) {
        EXPECT_TRUE(Is(call, call.element_losses, 0, c, kNan));
      } else {
        EXPECT_TRUE(std::isfinite(call.element_losses.Get(0, c)));
      }
      for (const Matrix *m : {&call.grad, &call.target_grad}) {
        if (nan_grad[c]) {
          EXPECT_TRUE(Is(call, *m, 0, c, kNan));
        } else {
          EXPECT_TRUE(std::isfinite(m->Get(0, c)));
        }
      }
    }
    EXPECT_TRUE(Is(call, call.reduced_loss, 0, 0, kNan));
  }
}

TEST_P(BinaryApi, ZeroWeightBeatsInfinity) {
  for (const double gamma : {0.0, 2.0}) {
    Binary call = Row(dtype(), {-kInf, kInf, -kInf, 2}, {1, 0, 1, 1});
    call.options.focal_gamma = gamma;
    call.class_weights = call.Vector({0, 0, 1, 0});
    call.pos_weight = call.Vector({1, 1, 0, 1});
    call.upstream_kind = XENT_UPSTREAM_ELEMENTS;
    call.upstream = call.Vector({kInf, 1, 1, kInf});
    call.MustRun(Pass::kForwardBackward);
    for (int64_t c = 0; c < 4; ++c) {
      EXPECT_TRUE(Is(call, call.element_losses, 0, c, 0));
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
  EXPECT_TRUE(Is(call, call.element_losses, 0, 0, 0));
  EXPECT_GT(call.element_losses.Get(0, 1), 0);
  EXPECT_TRUE(Is(call, call.element_losses, 0, 3, 0));
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
    call.options.reduction.kind = XENT_REDUCTION_NONE;
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
  EXPECT_NEAR(call.element_losses.Get(0, 0) / (largest * subnormal), 1, 1e-6);
}

TEST_P(BinaryApi, ProbabilitiesAtBothEnds) {
  // PyTorch's clamps: logarithms at -100, the gradient's divisor at 1e-12.
  Binary call = Row(dtype(), {0, 1, 0, 1}, {0, 1, 1, 0});
  call.options.input = XENT_BINARY_PROBABILITIES;
  call.MustRun(Pass::kForwardBackward);
  const double losses[] = {0, 0, 100, 100};
  for (int64_t c = 0; c < 4; ++c) EXPECT_TRUE(Is(call, call.element_losses, 0, c, losses[c]));
  const double grad[] = {0, 0, -1e12, 1e12};
  for (int64_t c = 0; c < 4; ++c) EXPECT_TRUE(Is(call, call.grad, 0, c, grad[c])) << c;
  const double target_grad[] = {100, -100, 100, -100};
  for (int64_t c = 0; c < 4; ++c) EXPECT_TRUE(Is(call, call.target_grad, 0, c, target_grad[c])) << c;
}

TEST_P(BinaryApi, EmptyBatches) {
  for (const xent_reduction_kind reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
    for (const bool zero : {false, true}) {
      for (const bool divisor : {false, true}) {
        if (divisor && reduction == XENT_REDUCTION_NONE) continue;
        xent_binary_cross_entropy_options options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
        options.reduction.kind = reduction;
        options.reduction.empty_mean = zero ? XENT_EMPTY_MEAN_ZERO : XENT_EMPTY_MEAN_NAN;
        options.reduction.divisor = divisor ? 3 : 0;
        xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
        args.cols = 5;
        args.input.dtype = args.targets.dtype = args.grad.dtype = dtype();
        Matrix loss(reference::ArithmeticType(dtype()), 1, 1);
        if (reduction != XENT_REDUCTION_NONE) args.reduced_loss = loss.data();
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
  std::vector<std::string> words;  // of the message; "a|b" is one or the other
  std::vector<Pass> passes;
  std::function<void(Binary &, xent_binary_cross_entropy &, xent_binary_cross_entropy_options &)> spoil;
};

xent_status Call(Pass pass, const xent_binary_cross_entropy *args, const xent_binary_cross_entropy_options *options,
                 xent_error *error) {
  const auto function = pass == Pass::kForward           ? xent_binary_cross_entropy_forward
                        : pass == Pass::kForwardBackward ? xent_binary_cross_entropy_forward_backward
                                                         : xent_binary_cross_entropy_backward;
  return function(args, options, nullptr, error);
}

TEST_P(BinaryApi, RefusedCallsChangeNothing) {
  using A = xent_binary_cross_entropy &;
  using O = xent_binary_cross_entropy_options &;
  using B = Binary &;
  const std::vector<Pass> all(std::begin(kPasses), std::end(kPasses));
  const std::vector<Pass> forward = {Pass::kForward};
  const std::vector<Pass> forwards = {Pass::kForward, Pass::kForwardBackward};
  const std::vector<Pass> backward = {Pass::kBackward};
  const std::vector<Pass> backwards = {Pass::kForwardBackward, Pass::kBackward};
  static double unaligned[16];
  const auto bend = [](const void *pointer) -> void * {
    return const_cast<char *>(static_cast<const char *>(pointer) + 1);
  };
  const xent_dtype other = dtype() == XENT_F64 ? XENT_F16 : XENT_F64;
  const int32_t not_float = dtype() == XENT_F64 ? XENT_F32 : XENT_F64;
  const xent_matrix none = XENT_NO_MATRIX;
  const BadCall calls[] = {
      {{"struct_size", "0"}, all, [](B, A a, O) { a.struct_size = 0; }},
      {{"options.struct_size|struct_size", "0"}, all, [](B, A, O o) { o.struct_size = 0; }},
      {{"rows", "-1"}, all, [](B, A a, O) { a.rows = -1; }},
      {{"cols", "0"}, all, [](B, A a, O) { a.cols = 0; }},
      {{"inner", "-2"}, all, [](B, A a, O) { a.inner = -2; }},
      {{"rows", "6", "inner", "4"}, all, [](B, A a, O) { a.inner = 4; }},
      {{"input.dtype", "9"}, all, [](B, A a, O) { a.input.dtype = 9; }},
      {{"targets.dtype", "-1"}, all, [](B, A a, O) { a.targets.dtype = -1; }},
      {{"element_losses.dtype"}, forwards, [=](B, A a, O) { a.element_losses.dtype = not_float; }},
      {{"element_weights.dtype"},
       all,
       [=](B b, A a, O) {
         b.element_weights = b.Make(b.Float());
         a.element_weights = View(*b.element_weights);
         a.element_weights.dtype = not_float;
       }},
      {{"grad.dtype"}, backwards, [=](B, A a, O) { a.grad.dtype = other; }},
      {{"target_grad.dtype"}, backwards, [=](B, A a, O) { a.target_grad.dtype = other; }},
      {{"input.reserved"}, all, [](B, A a, O) { a.input.reserved = 1; }},
      {{"targets.reserved"}, all, [](B, A a, O) { a.targets.reserved = 1; }},
      {{"grad.reserved"}, backwards, [](B, A a, O) { a.grad.reserved = 1; }},
      {{"upstream.reserved"}, backwards, [](B, A a, O) { a.upstream.reserved = 1; }},
      {{"options.reserved", "1"}, all, [](B, A, O o) { o.reserved = 1; }},
      {{"input.stride", "4"}, all, [](B, A a, O) { a.input.stride = 4; }},
      {{"targets.stride", "14", "15"}, all, [](B, A a, O) { a.inner = 3, a.input.stride = 15, a.targets.stride = 14; }},
      {{"element_losses.stride", "4"}, forwards, [](B, A a, O) { a.element_losses.stride = 4; }},
      {{"grad.stride", "4"}, backwards, [](B, A a, O) { a.grad.stride = 4; }},
      {{"target_grad.stride", "4"}, backwards, [](B, A a, O) { a.target_grad.stride = 4; }},
      {{"input|input.stride"}, all, [](B, A a, O) { a.input.stride = INT64_MAX / 2; }},
      {{"cols", "4611686018427387904"}, all, [](B, A a, O) { a.cols = int64_t{1} << 62; }},
      {{"cols", "288230376151711744", "inner", "6"}, all, [](B, A a, O) { a.cols = int64_t{1} << 58, a.inner = 6; }},
      {{"input|input.data"}, all, [=](B, A a, O) { a.input = none; }},
      {{"targets|targets.data"}, all, [=](B, A a, O) { a.targets = none; }},
      {{"input|input.data", "aligned"}, all, [=](B, A a, O) { a.input.data = bend(a.input.data); }},
      {{"targets|targets.data", "aligned"}, all, [=](B, A a, O) { a.targets.data = bend(a.targets.data); }},
      {{"grad|grad.data", "aligned"}, backwards, [=](B, A a, O) { a.grad.data = bend(a.grad.data); }},
      {{"target_grad|target_grad.data", "aligned"},
       backwards,
       [=](B, A a, O) { a.target_grad.data = bend(a.target_grad.data); }},
      {{"element_losses|element_losses.data", "aligned"},
       forwards,
       [=](B, A a, O) { a.element_losses.data = bend(a.element_losses.data); }},
      {{"reduced_loss", "aligned"}, forwards, [=](B, A a, O) { a.reduced_loss = bend(a.reduced_loss); }},
      {{"pos_weight", "aligned"}, all, [=](B, A a, O) { a.pos_weight = bend(unaligned); }},
      {{"class_weights", "aligned"}, all, [=](B, A a, O) { a.class_weights = bend(unaligned); }},
      {{"row_weights", "aligned"}, all, [=](B, A a, O) { a.row_weights = bend(unaligned); }},
      {{"element_weights|element_weights.data", "aligned"},
       all,
       [=](B b, A a, O) { a.element_weights = {bend(unaligned), 0, b.Float(), 0}; }},
      {{"upstream|upstream.data", "aligned"}, backwards, [=](B, A a, O) { a.upstream.data = bend(unaligned); }},
      {{"element_weights.stride"}, all, [](B, A a, O) { a.element_weights.stride = 9; }},
      {{"input|options.input", "2"}, all, [](B, A, O o) { o.input = 2; }},
      {{"input|options.input", "-1"}, all, [](B, A, O o) { o.input = -1; }},
      {{"focal_gamma", "-1"}, all, [](B, A, O o) { o.focal_gamma = -1; }},
      {{"focal_gamma", "nan|-nan"}, all, [](B, A, O o) { o.focal_gamma = kNan; }},
      {{"focal_gamma", "inf"}, all, [](B, A, O o) { o.focal_gamma = kInf; }},
      {{"focal_alpha", "1.5"}, all, [](B, A, O o) { o.focal_alpha = 1.5; }},
      {{"focal_alpha", "-0.5"}, all, [](B, A, O o) { o.focal_alpha = -0.5; }},
      {{"focal_alpha", "-2"}, all, [](B, A, O o) { o.focal_alpha = -2; }},
      {{"focal_alpha", "nan|-nan"}, all, [](B, A, O o) { o.focal_alpha = kNan; }},
      {{"focal_alpha", "-inf"}, all, [](B, A, O o) { o.focal_alpha = -kInf; }},
      {{"pos_weight", "XENT_BINARY_PROBABILITIES"},
       all,
       [](B b, A a, O o) {
         b.pos_weight = b.Vector(std::vector<double>(5, 1.0));
         a.pos_weight = b.pos_weight->data();
         o.input = XENT_BINARY_PROBABILITIES;
       }},
      {{"focal_gamma", "XENT_BINARY_PROBABILITIES"},
       all,
       [](B, A, O o) { o.focal_gamma = 1, o.input = XENT_BINARY_PROBABILITIES; }},
      {{"focal_alpha", "XENT_BINARY_PROBABILITIES"},
       all,
       [](B, A, O o) { o.focal_alpha = 0, o.input = XENT_BINARY_PROBABILITIES; }},
      {{"upstream.kind", "3"},
       backwards,
       [](B b, A a, O) { a.upstream.data = b.reduced_loss.data(), a.upstream.kind = 3; }},
      {{"upstream.kind", "-1"},
       backwards,
       [](B b, A a, O) { a.upstream.data = b.reduced_loss.data(), a.upstream.kind = -1; }},
      {{"upstream|upstream.data|upstream.kind"},
       backwards,
       [](B, A a, O) { a.upstream.kind = XENT_UPSTREAM_ELEMENTS; }},
      {{"upstream|upstream.data|upstream.kind"}, backwards, [](B, A a, O) { a.upstream.kind = XENT_UPSTREAM_ROWS; }},
      {{"upstream.stride"}, backwards, [](B, A a, O) { a.upstream.stride = 5; }},
      {{"upstream.stride"},
       backwards,
       [](B b, A a, O) { a.upstream.data = b.reduced_loss.data(), a.upstream.stride = 5; }},
      {{"upstream.stride", "4"},
       backwards,
       [](B b, A a, O) {
         b.upstream = b.Make(b.Float());
         a.upstream = {b.upstream->data(), 4, XENT_UPSTREAM_ELEMENTS, 0};
       }},
      {{"grad", "input", "strides", "5", "6"},
       backwards,
       [](B, A a, O) { a.grad.data = a.input.data, a.input.stride = 5, a.grad.stride = 6; }},
      {{"grad", "target_grad"}, backwards, [=](B, A a, O) { a.grad = a.target_grad = none; }},
      {{"grad|grad.data"}, forward, [](B b, A a, O) { a.grad = View(b.grad); }},
      {{"grad.stride"}, forward, [](B, A a, O) { a.grad.stride = 5; }},
      {{"target_grad|target_grad.data"}, forward, [](B b, A a, O) { a.target_grad = View(b.target_grad); }},
      {{"upstream|upstream.data"}, forward, [](B b, A a, O) { a.upstream.data = b.reduced_loss.data(); }},
      {{"upstream|upstream.kind"}, forward, [](B, A a, O) { a.upstream.kind = XENT_UPSTREAM_ROWS; }},
      {{"element_losses|element_losses.data"},
       backward,
       [](B b, A a, O) { a.element_losses = View(b.element_losses); }},
      {{"reduced_loss"}, backward, [](B b, A a, O) { a.reduced_loss = b.reduced_loss.data(); }},
      {{"reduced_loss", "reduction.kind", "XENT_REDUCTION_NONE"},
       forwards,
       [](B, A, O o) { o.reduction.kind = XENT_REDUCTION_NONE; }},
      {{"reduction.kind", "3"}, all, [](B, A, O o) { o.reduction.kind = 3; }},
      {{"reduction.empty_mean", "2"}, all, [](B, A, O o) { o.reduction.empty_mean = 2; }},
      {{"reduction.divisor", "-1"}, all, [](B, A, O o) { o.reduction.divisor = -1; }},
      {{"reduction.divisor", "inf"}, all, [](B, A, O o) { o.reduction.divisor = kInf; }},
      {{"reduction.divisor", "nan|-nan"}, all, [](B, A, O o) { o.reduction.divisor = kNan; }},
      {{"reduction.divisor", "XENT_REDUCTION_NONE"},
       all,
       [](B, A a, O o) {
         o.reduction = {.kind = XENT_REDUCTION_NONE, .empty_mean = XENT_EMPTY_MEAN_NAN, .divisor = 2};
         a.reduced_loss = nullptr;
       }},
  };
  for (const BadCall &bad : calls) {
    for (const Pass pass : bad.passes) {
      Binary call(dtype(), dtype(), 6, 5);
      call.FillNormal(1, 1);
      for (int64_t i = 0; i < 6; ++i) {
        for (int64_t c = 0; c < 5; ++c) call.x.Set(i, c, 0.5);  // a probability too
      }
      xent_binary_cross_entropy args = call.Args(pass);
      xent_binary_cross_entropy_options options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
      bad.spoil(call, args, options);
      const std::string what = bad.words[0] + ", pass " + std::to_string(static_cast<int>(pass));
      xent_error error = XENT_ERROR_INIT;
      EXPECT_EQ(Call(pass, &args, &options, &error), XENT_INVALID_ARGUMENT) << what;
      EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, bad.words)) << what;
      EXPECT_EQ(Call(pass, &args, &options, nullptr), XENT_INVALID_ARGUMENT) << what;
      EXPECT_TRUE(call.OutputsUntouched()) << what;
    }
  }
  for (const Pass pass : kPasses) {
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(Call(pass, nullptr, nullptr, &error), XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, {"args"}));
  }
}

TEST_P(BinaryApi, WeightsMustBeFinite) {
  for (const double bad : {kNan, kInf, -kInf}) {
    for (const int64_t inner : {0, 3}) {
      for (int which = 0; which < 4; ++which) {
        Binary call(dtype(), dtype(), 6, 5, inner);
        call.FillNormal(1, 1);
        call.FillWeights(2);
        std::vector<std::string> words;
        Position position;
        if (which == 0) {
          call.pos_weight->Set(0, 3, bad);
          words = {"pos_weight", "3"};
          position = {.row = -1, .column = 3, .value = bad};
        } else if (which == 1) {
          call.class_weights->Set(0, 4, bad);
          words = {"class_weights", "4"};
          position = {.row = -1, .column = 4, .value = bad};
        } else if (which == 2) {
          call.row_weights->Set(0, 5, bad);
          words = {"row_weights", "5"};
          position = {.row = 5, .column = -1, .value = bad};
        } else {
          call.Set(*call.element_weights, 4, 2, bad);
          words = {"element_weights", "row 4", "column 2"};
          position = {.row = 4, .column = 2, .value = bad};
        }
        words.push_back(std::isnan(bad) ? "nan|-nan" : bad > 0 ? "inf" : "-inf");
        ASSERT_EQ(call.Run(Pass::kForwardBackward), XENT_INVALID_ARGUMENT) << words[0] << " " << bad;
        EXPECT_TRUE(Tells(call.error, XENT_INVALID_ARGUMENT, position, words));
        EXPECT_TRUE(call.OutputsUntouched());
      }
    }
  }
}

TEST_P(BinaryApi, ProbabilitiesOutsideTheirDomain) {
  const std::pair<double, const char *> bads[] = {{kNan, "nan|-nan"}, {-0.25, "-0.25"}, {1.5, "1.5"}, {kInf, "inf"}};
  for (const auto &[bad, text] : bads) {
    for (const int64_t inner : {0, 3}) {
      for (const Pass pass : kPasses) {
        Binary call(dtype(), dtype(), 6, 5, inner, 2);
        call.options.input = XENT_BINARY_PROBABILITIES;
        call.FillNormal(1, 1);
        call.Set(call.x, 4, 3, bad);
        ASSERT_EQ(call.Run(pass), XENT_DOMAIN_ERROR);
        EXPECT_TRUE(Tells(call.error, XENT_DOMAIN_ERROR, {.row = 4, .column = 3, .value = bad},
                          {"input", "row 4", "column 3", text}));
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
    call.options.input = variant == 7 ? XENT_BINARY_PROBABILITIES : XENT_BINARY_LOGITS;
    call.FillNormal(static_cast<uint64_t>(variant), 2);
    if (variant % 2 == 1) call.FillWeights(3);
    if (variant >= 2 && variant < 7) call.options.focal_gamma = 0.5 * variant;
    if (variant >= 4 && variant < 7) call.options.focal_alpha = 0.3;
    call.upstream.reset();
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t c = 0; c < 6; ++c) {
        call.y.Set(i, c, 0.1 + 0.8 * call.y.Get(i, c));
        if (call.TakesProbabilities()) call.x.Set(i, c, 0.1 + 0.8 * call.x.Get(i, c));
      }
    }
    call.MustRun(Pass::kForwardBackward);
    Binary moved = call;
    const auto loss_at = [&](Matrix &m, int64_t i, int64_t c, double value) {
      const double before = m.Get(i, c);
      m.Set(i, c, value);
      moved.MustRun(Pass::kForward);
      m.Set(i, c, before);
      return moved.reduced_loss.Get(0, 0);
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
  xent_binary_cross_entropy_options options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
  options.reduction.kind = XENT_REDUCTION_NONE;
  for (const size_t misaligned : {0, 3}) {
    xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
    args.rows = rows;
    args.cols = cols;
    const auto matrix = [](float *data) { return xent_matrix{data, 0, XENT_F32, 0}; };
    args.input = matrix(x.data());
    args.targets = matrix(y.data());
    args.element_losses = matrix(losses);
    float *const grad = aligned(more_grad) + misaligned;
    args.grad = matrix(grad);
    ASSERT_EQ(xent_binary_cross_entropy_forward_backward(&args, &options, nullptr, nullptr), XENT_OK);
    std::vector<float> part_losses(static_cast<size_t>(cols)), part_grad(static_cast<size_t>(cols));
    for (int64_t row = 0; row < rows; ++row) {
      args.rows = 1;
      args.input = matrix(x.data() + row * cols);
      args.targets = matrix(y.data() + row * cols);
      args.element_losses = matrix(part_losses.data());
      args.grad = matrix(part_grad.data());
      ASSERT_EQ(xent_binary_cross_entropy_forward_backward(&args, &options, nullptr, nullptr), XENT_OK);
      const size_t bytes = static_cast<size_t>(cols) * sizeof(float);
      EXPECT_EQ(std::memcmp(part_losses.data(), losses + row * cols, bytes), 0) << row;
      EXPECT_EQ(std::memcmp(part_grad.data(), grad + row * cols, bytes), 0) << row;
    }
  }
}

}  // namespace
}  // namespace xent::test
