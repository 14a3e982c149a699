// logsumexp, softmax, log_softmax and their backward functions: the reference within the bounds of semantics.md,
// special rows as PyTorch has them, padding, in place, and that no row is touched by another's trouble.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

using reference::ArithmeticType;
using reference::LargestFinite;

class RowFunctions : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  Matrix Normal(int64_t rows, int64_t cols, int64_t stride, double deviation, uint64_t seed) {
    Random random(seed);
    Matrix x(dtype(), rows, cols, stride);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) x.SetInRange(i, j, random.Normal(deviation));
    }
    return x;
  }

  static Matrix LogSumExp(const Matrix &x) {
    Matrix lse(ArithmeticType(x.dtype()), 1, x.rows(), std::max<int64_t>(x.rows(), 1));
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(xent_logsumexp(x.rows(), x.cols(), 0, View(x), lse.data(), nullptr, &error), XENT_OK) << error.message;
    EXPECT_TRUE(lse.PaddingIntact());
    return lse;
  }

  using Forward = decltype(&xent_softmax);
  static Matrix Run(Forward function, const Matrix &x, int64_t y_stride = 0) {
    Matrix y(x.dtype(), x.rows(), x.cols(), y_stride);
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(function(x.rows(), x.cols(), 0, View(x), View(y), nullptr, &error), XENT_OK) << error.message;
    EXPECT_TRUE(y.PaddingIntact());
    return y;
  }

  using Backward = decltype(&xent_softmax_backward);
  static Matrix Run(Backward function, const Matrix &g, const Matrix &y, int64_t dx_stride = 0) {
    Matrix dx(y.dtype(), y.rows(), y.cols(), dx_stride);
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(function(y.rows(), y.cols(), 0, View(g), View(y), View(dx), nullptr, &error), XENT_OK) << error.message;
    EXPECT_TRUE(dx.PaddingIntact());
    return dx;
  }

  static ::testing::AssertionResult AllThreeMatchReference(const Matrix &x) {
    const Matrix lse = LogSumExp(x);
    const Matrix softmax = Run(xent_softmax, x, x.cols() + 5);
    const Matrix log_softmax = Run(xent_log_softmax, x, x.cols() + 1);
    for (int64_t i = 0; i < x.rows(); ++i) {
      const std::vector<double> values = DecodeRow(x, i);
      const reference::Row row(values);
      auto result = Within(lse, 0, i, row.LogSumExp(), kLseUlp);
      if (!result) return ::testing::AssertionFailure() << "lse " << result.message();
      for (int64_t j = 0; j < x.cols(); ++j) {
        result = Within(softmax, i, j, row.Softmax(j), kSoftmaxUlp);
        if (!result) return ::testing::AssertionFailure() << "softmax " << result.message();
        result = Within(log_softmax, i, j, row.LogSoftmax(j), kLogSoftmaxUlp);
        if (!result) return ::testing::AssertionFailure() << "log_softmax " << result.message();
      }
    }
    return ::testing::AssertionSuccess();
  }
};

TEST_P(RowFunctions, OrdinaryRows) {
  for (const int64_t cols : {1, 2, 3, 7, 15, 16, 17, 31, 33, 100, 1023, 1024, 1025, 5000, 20001}) {
    for (const double deviation : {1.0, 8.0, 64.0}) {
      ASSERT_TRUE(AllThreeMatchReference(Normal(2, cols, cols + 3, deviation, static_cast<uint64_t>(cols))))
          << "deviation " << deviation;
    }
  }
}

TEST_P(RowFunctions, RowsOfLargeNumbers) {
  // Where a plain float32 difference to the maximum has lost digits, and where exp overflows.
  Matrix x = Normal(4, 300, 0, 2, 9);
  for (int64_t j = 0; j < 300; ++j) {
    x.SetInRange(0, j, x.Get(0, j) + 1e4);
    x.SetInRange(1, j, x.Get(1, j) - 1e4);
    x.SetInRange(2, j, x.Get(2, j) * 2e4);
    x.SetInRange(3, j, x.Get(3, j) * 1e37);
  }
  EXPECT_TRUE(AllThreeMatchReference(x));
}

TEST_P(RowFunctions, TheFarTail) {
  // Softmax of one row from 0 down to where it underflows; zero is as good below the smallest normal number.
  const double depth = dtype() == XENT_F64 ? 720 : 100;
  Matrix x(dtype(), 1, 1500);
  for (int64_t j = 0; j < 1500; ++j) x.Set(0, j, -depth * static_cast<double>(j) / 1500);
  EXPECT_TRUE(AllThreeMatchReference(x));
}

TEST_P(RowFunctions, NineLogitsAndOne) {
  Matrix x(dtype(), 1, 10);
  for (int64_t j = 0; j < 9; ++j) x.Set(0, j, 0.15302414);
  x.Set(0, 9, -1.0866737);
  EXPECT_TRUE(AllThreeMatchReference(x));
}

TEST_P(RowFunctions, EqualLogits) {
  for (const int64_t cols : {1, 5, 1000, 32000}) {
    for (const double value : {0.0, -0.0, 1.0, -77.5, 1e4, -1e30}) {
      Matrix x(dtype(), 1, cols);
      for (int64_t j = 0; j < cols; ++j) x.SetInRange(0, j, value);
      EXPECT_TRUE(AllThreeMatchReference(x)) << value;
    }
  }
}

TEST_P(RowFunctions, TheMaximumsLogSoftmaxKeepsItsDigits) {
  // It is -log1p of the others, 4e-18 and 1.8e-35, where x - lse would give 0.
  EXPECT_TRUE(AllThreeMatchReference(MatrixOf(dtype(), {{40, 0, -1}, {0, 80, 1}, {-3, 0.5, 20}})));
}

TEST_P(RowFunctions, LogitsUpTo3e38) {
  for (const double size : {3e38, LargestFinite(dtype())}) {
    const double big = std::fmin(size, LargestFinite(dtype()));
    Matrix x = MatrixOf(dtype(), {{big, 0, -big}, {big, big, big}, {-big, -big, -big}, {-big, -1, -big}});
    const Matrix lse = LogSumExp(x);
    const Matrix softmax = Run(xent_softmax, x);
    const Matrix log_softmax = Run(xent_log_softmax, x);
    EXPECT_TRUE(Is(softmax, 0, 0, 1));
    EXPECT_TRUE(Is(softmax, 0, 1, 0));
    EXPECT_TRUE(Is(softmax, 0, 2, 0));
    EXPECT_EQ(log_softmax.Get(0, 0), 0);
    EXPECT_TRUE(Is(log_softmax, 0, 1, -x.Get(0, 0)));
    // Twice the largest number is infinite in the type; twice 3e38 is so in all but float64.
    EXPECT_TRUE(Is(log_softmax, 0, 2, -2 * x.Get(0, 0)));
    EXPECT_TRUE(Is(lse, 0, 0, x.Get(0, 0)));
    for (const int64_t i : {1, 2}) {
      for (int64_t j = 0; j < 3; ++j) {
        EXPECT_TRUE(Within(softmax, i, j, {1.0L / 3, 1.0L / 3}, kSoftmaxUlp));
        const long double log3 = std::log(3.0L);
        EXPECT_TRUE(Within(log_softmax, i, j, {-log3, log3}, kLogSoftmaxUlp));
      }
    }
    EXPECT_TRUE(Is(softmax, 3, 1, 1));
    EXPECT_TRUE(Is(lse, 0, 3, -1));
  }
}

TEST_P(RowFunctions, MinusInfLogits) {
  const Matrix x = MatrixOf(dtype(), {{-kInf, 0, 1}, {2, -kInf, -kInf}});
  EXPECT_TRUE(AllThreeMatchReference(x));
  const Matrix softmax = Run(xent_softmax, x);
  const Matrix log_softmax = Run(xent_log_softmax, x);
  EXPECT_TRUE(Is(softmax, 0, 0, 0));
  EXPECT_TRUE(Is(log_softmax, 0, 0, -kInf));
  EXPECT_TRUE(Is(softmax, 1, 0, 1));
  EXPECT_TRUE(Is(log_softmax, 1, 1, -kInf));
  EXPECT_EQ(log_softmax.Get(1, 0), 0);
}

TEST_P(RowFunctions, RowsOfMinusInf) {
  for (const int64_t cols : {1, 3, 17, 20000}) {
    Matrix x(dtype(), 1, cols);
    for (int64_t j = 0; j < cols; ++j) x.Set(0, j, -kInf);
    EXPECT_TRUE(Is(LogSumExp(x), 0, 0, -kInf));
    EXPECT_TRUE(RowIs(Run(xent_softmax, x), 0, kNan));
    EXPECT_TRUE(RowIs(Run(xent_log_softmax, x), 0, kNan));
  }
}

TEST_P(RowFunctions, RowsWithPlusInf) {
  for (const std::vector<double> &row :
       {std::vector<double>{kInf, 0, 1}, {0, 1, kInf}, {kInf, kInf, kInf}, {-kInf, kInf, -kInf}}) {
    const Matrix x = MatrixOf(dtype(), {row});
    EXPECT_TRUE(Is(LogSumExp(x), 0, 0, kInf));
    EXPECT_TRUE(RowIs(Run(xent_softmax, x), 0, kNan));
    EXPECT_TRUE(RowIs(Run(xent_log_softmax, x), 0, kNan));
  }
}

TEST_P(RowFunctions, RowsWithNan) {
  for (const std::vector<double> &row :
       {std::vector<double>{kNan, 0, 1}, {0, 1, -kNan}, {kInf, kNan, 0}, {-kInf, kNan, -kInf}}) {
    const Matrix x = MatrixOf(dtype(), {row});
    EXPECT_TRUE(Is(LogSumExp(x), 0, 0, kNan));
    EXPECT_TRUE(RowIs(Run(xent_softmax, x), 0, kNan));
    EXPECT_TRUE(RowIs(Run(xent_log_softmax, x), 0, kNan));
  }
  // Signalling, with a payload and a sign: the poison that fresh matrices hold.
  const Matrix poison(dtype(), 1, 3);
  EXPECT_TRUE(Is(LogSumExp(poison), 0, 0, kNan));
  EXPECT_TRUE(RowIs(Run(xent_softmax, poison), 0, kNan));
  EXPECT_TRUE(RowIs(Run(xent_log_softmax, poison), 0, kNan));
}

TEST_P(RowFunctions, OneColumn) {
  for (const double value : {0.0, 5.0, -1e4}) {
    const Matrix x = MatrixOf(dtype(), {{value}});
    EXPECT_EQ(LogSumExp(x).Get(0, 0), x.Get(0, 0));
    EXPECT_TRUE(Is(Run(xent_softmax, x), 0, 0, 1));
    EXPECT_EQ(Run(xent_log_softmax, x).Get(0, 0), 0);
  }
}

TEST_P(RowFunctions, NoRowTouchesAnother) {
  Matrix x = Normal(5, 100, 0, 4, 1);
  const Matrix lse = LogSumExp(x);
  const Matrix softmax = Run(xent_softmax, x);
  const Matrix log_softmax = Run(xent_log_softmax, x);
  for (const double bad : {kNan, kInf}) {
    x.Set(1, 50, bad);
    for (int64_t j = 0; j < 100; ++j) x.Set(3, j, -kInf);
    const Matrix lse2 = LogSumExp(x);
    const Matrix softmax2 = Run(xent_softmax, x);
    const Matrix log_softmax2 = Run(xent_log_softmax, x);
    for (const int64_t i : {0, 2, 4}) {
      EXPECT_TRUE(Is(lse2, 0, i, lse.Get(0, i)));
      for (int64_t j = 0; j < 100; ++j) {
        EXPECT_TRUE(Is(softmax2, i, j, softmax.Get(i, j)));
        EXPECT_TRUE(Is(log_softmax2, i, j, log_softmax.Get(i, j)));
      }
    }
    EXPECT_TRUE(RowIs(softmax2, 1, kNan));
    EXPECT_TRUE(RowIs(softmax2, 3, kNan));
  }
}

TEST_P(RowFunctions, InPlaceAndStridesGiveTheSameBits) {
  for (const int64_t cols : {5, 16, 1000, 20000}) {
    const Matrix tight = Normal(3, cols, 0, 4, 2);
    const Matrix wide = Normal(3, cols, cols + 9, 4, 2);
    EXPECT_EQ(FirstDifference(LogSumExp(tight), LogSumExp(wide)), "");
    for (const Forward function : {&xent_softmax, &xent_log_softmax}) {
      const Matrix want = Run(function, tight);
      EXPECT_EQ(FirstDifference(want, Run(function, wide, cols + 2)), "");
      for (const Matrix *source : {&tight, &wide}) {
        Matrix x = *source;
        ASSERT_EQ(function(3, cols, 0, View(x), View(x), nullptr, nullptr), XENT_OK);
        EXPECT_EQ(FirstDifference(want, x), "");
        EXPECT_TRUE(x.PaddingIntact());
      }
    }
  }
}

TEST_P(RowFunctions, StrideZeroMeansV) {
  const auto tight = [](const Matrix &matrix) {
    xent_matrix view = View(matrix);
    view.stride = 0;
    return view;
  };
  Matrix x = Normal(3, 21, 0, 4, 2);
  Matrix lse(ArithmeticType(dtype()), 1, 3);
  ASSERT_EQ(xent_logsumexp(3, 21, 0, tight(x), lse.data(), nullptr, nullptr), XENT_OK);
  EXPECT_EQ(FirstDifference(lse, LogSumExp(x)), "");
  const Matrix g = Normal(3, 21, 0, 1, 3);
  for (const Forward function : {&xent_softmax, &xent_log_softmax}) {
    Matrix y(dtype(), 3, 21);
    ASSERT_EQ(function(3, 21, 0, tight(x), tight(y), nullptr, nullptr), XENT_OK);
    EXPECT_EQ(FirstDifference(y, Run(function, x)), "");
  }
  for (const Backward function : {&xent_softmax_backward, &xent_log_softmax_backward}) {
    const Matrix y = Run(xent_softmax, x);
    Matrix dx(dtype(), 3, 21);
    ASSERT_EQ(function(3, 21, 0, tight(g), tight(y), tight(dx), nullptr, nullptr), XENT_OK);
    EXPECT_EQ(FirstDifference(dx, Run(function, g, y)), "");
  }
}

TEST_P(RowFunctions, NoRows) {
  const xent_matrix none = {nullptr, 0, dtype(), 0};
  EXPECT_EQ(xent_logsumexp(0, 3, 0, none, nullptr, nullptr, nullptr), XENT_OK);
  for (const Forward function : {&xent_softmax, &xent_log_softmax}) {
    EXPECT_EQ(function(0, 3, 0, none, none, nullptr, nullptr), XENT_OK);
  }
  for (const Backward function : {&xent_softmax_backward, &xent_log_softmax_backward}) {
    EXPECT_EQ(function(0, 3, 0, none, none, none, nullptr, nullptr), XENT_OK);
  }
}

TEST_P(RowFunctions, SoftmaxBackwardFollowsTheFormula) {
  for (const int64_t cols : {1, 2, 3, 16, 17, 100, 1025, 20001}) {
    const Matrix y = Run(xent_softmax, Normal(3, cols, 0, 3, 4), cols + 2);
    const Matrix g = Normal(3, cols, cols + 7, 2, 5);
    const Matrix dx = Run(xent_softmax_backward, g, y, cols + 1);
    for (int64_t i = 0; i < 3; ++i) {
      const std::vector<reference::Value> want = reference::SoftmaxBackward(DecodeRow(g, i), DecodeRow(y, i));
      for (int64_t j = 0; j < cols; ++j) {
        ASSERT_TRUE(Within(dx, i, j, want[static_cast<size_t>(j)], kBackwardUlp)) << "softmax_backward";
      }
    }
  }
}

TEST_P(RowFunctions, LogSoftmaxBackwardFollowsTheFormula) {
  // The reference starts from the stored y, so that its rounding is worth nothing here.
  for (const int64_t cols : {1, 2, 3, 16, 17, 100, 1025, 20001}) {
    const Matrix y = Run(xent_log_softmax, Normal(3, cols, 0, 3, 4), cols + 2);
    const Matrix g = Normal(3, cols, cols + 7, 2, 5);
    const Matrix dx = Run(xent_log_softmax_backward, g, y, cols + 1);
    for (int64_t i = 0; i < 3; ++i) {
      const std::vector<reference::Value> want = reference::LogSoftmaxBackward(DecodeRow(g, i), DecodeRow(y, i));
      for (int64_t j = 0; j < cols; ++j) {
        ASSERT_TRUE(Within(dx, i, j, want[static_cast<size_t>(j)], kBackwardUlp)) << "log_softmax_backward";
      }
    }
  }
}

TEST_P(RowFunctions, BackwardOfOneHotUpstreamIsCrossEntropysGradient) {
  // -onehot through log_softmax: exp(y) at the others, exp(y) - 1 at the target.
  const Matrix y = MatrixOf(dtype(), {{-1, -0.5, -3}});
  const Matrix g = MatrixOf(dtype(), {{0, -1, 0}});
  const Matrix dx = Run(xent_log_softmax_backward, g, y);
  for (int64_t j = 0; j < 3; ++j) {
    const long double p = std::exp(static_cast<long double>(y.Get(0, j)));
    EXPECT_TRUE(Within(dx, 0, j, {j == 1 ? p - 1 : p, j == 1 ? p + 1 : p}, kBackwardUlp));
  }
}

TEST_P(RowFunctions, BackwardOfMaskedColumns) {
  // y is 0 for softmax and -inf for log_softmax there: no gradient beyond g itself.
  const Matrix x = MatrixOf(dtype(), {{1, -kInf, 0.5}});
  const Matrix g = MatrixOf(dtype(), {{0.5, 2, -1}});
  EXPECT_EQ(Run(xent_softmax_backward, g, Run(xent_softmax, x)).Get(0, 1), 0);
  EXPECT_TRUE(Is(Run(xent_log_softmax_backward, g, Run(xent_log_softmax, x)), 0, 1, 2));
}

TEST_P(RowFunctions, BackwardSendsNanThroughTheFormula) {
  const Matrix y = MatrixOf(dtype(), {{0.25, 0.75, 0}, {0.5, 0.25, 0.25}});
  Matrix g = MatrixOf(dtype(), {{1, kNan, 0}, {1, 2, 3}});
  const Matrix dx = Run(xent_softmax_backward, g, y);
  EXPECT_TRUE(RowIs(dx, 0, kNan));
  EXPECT_TRUE(Is(dx, 1, 0, 0.5 * (1 - 1.75)));
  const Matrix log_y = MatrixOf(dtype(), {{-1, -1, -1}, {kNan, 0, -1}});
  const Matrix log_dx = Run(xent_log_softmax_backward, g, log_y);
  EXPECT_TRUE(RowIs(log_dx, 0, kNan));
  EXPECT_TRUE(Is(log_dx, 1, 0, kNan));
  EXPECT_TRUE(Is(log_dx, 1, 1, 2 - 6));
}

TEST_P(RowFunctions, BackwardInPlaceGivesTheSameBits) {
  for (const int64_t cols : {5, 16, 1000, 20000}) {
    const Matrix x = Normal(3, cols, cols + 3, 3, 6);
    const Matrix g = Normal(3, cols, cols + 3, 2, 7);
    for (const auto &[backward, forward] :
         {std::pair<Backward, Forward>{&xent_softmax_backward, &xent_softmax},
          std::pair<Backward, Forward>{&xent_log_softmax_backward, &xent_log_softmax}}) {
      const Matrix y = Run(forward, x, cols + 3);
      const Matrix want = Run(backward, g, y);
      Matrix over_g = g;
      ASSERT_EQ(backward(3, cols, 0, View(over_g), View(y), View(over_g), nullptr, nullptr), XENT_OK);
      EXPECT_EQ(FirstDifference(want, over_g), "");
      EXPECT_TRUE(over_g.PaddingIntact());
      Matrix over_y = y;
      ASSERT_EQ(backward(3, cols, 0, View(g), View(over_y), View(over_y), nullptr, nullptr), XENT_OK);
      EXPECT_EQ(FirstDifference(want, over_y), "");
      EXPECT_TRUE(over_y.PaddingIntact());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, RowFunctions, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

}  // namespace
}  // namespace xent::test
