// The row functions with the class dimension in the middle ([N/d, V, d]): the reference within the same bounds as the
// row-major layout, on the same rows; special rows as there; and one set of bits, whatever the stride, the number of
// threads, the positions beside a row, and whether the output lies over an input. Lengths around the block of 1024, and
// positions around the 16 lanes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "reference/rows.h"
#include "testing/assertions.h"
#include "testing/bounds.h"
#include "testing/exec.h"
#include "testing/tensor.h"
#include "xent/xent.h"

namespace xent::test {
namespace {

using reference::ArithmeticType;
using reference::Value;

struct Layout {
  int64_t rows, cols, inner;

  std::string Text() const {
    return std::to_string(rows) + "x" + std::to_string(cols) + ", inner " + std::to_string(inner);
  }
};

// At least ten rows, so that each kind of row is among them.
std::vector<Layout> Layouts() {
  std::vector<Layout> layouts;
  for (const int64_t cols : {1, 2, 1023, 1024, 1025, 20000}) {
    for (const int64_t inner : {2, 3, 17}) layouts.push_back({(10 + inner - 1) / inner * inner, cols, inner});
  }
  return layouts;
}

enum RowKind {
  kOrdinary,
  kFlat,
  kHigh,
  kMasked,
  kOneLeft,
  kDeep,
  kLargest,
  kAllMasked,
  kInfinite,
  kNotANumber,
  kKinds
};

double LogitOf(xent_dtype dtype, int64_t row, int64_t col, int64_t cols, Random &random) {
  const double z = random.Normal(4);
  const int64_t special = (row * 7919 + cols / 2) % cols;
  switch (row % kKinds) {
    case kFlat:
      return 0.7;
    case kHigh:
      return z + 1e4;
    case kMasked:
      return random.Below(2) == 0 && col != special ? -kInf : z;
    case kOneLeft:
      return col == special ? z : -kInf;
    case kDeep:
      return -(dtype == XENT_F64 ? 720.0 : 100.0) * static_cast<double>(col) / static_cast<double>(cols);
    case kLargest:
      return (col % 2 == 0 ? 1 : -1) * reference::LargestFinite(dtype);
    case kAllMasked:
      return -kInf;
    case kInfinite:
      return col == special ? kInf : z;
    case kNotANumber:
      return col == special ? kNan : z;
    default:
      return z;
  }
}

class ClassMajorRows : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  Tensor Empty(const Layout &layout, int64_t padding = 0, int64_t misalign = 0) const {
    return Tensor(dtype(), layout.rows, layout.cols, layout.inner, padding, misalign);
  }
  Tensor Logits(const Layout &layout, int64_t padding = 0) const {
    Tensor x = Empty(layout, padding, padding);
    Random random(static_cast<uint64_t>(layout.cols));
    for (int64_t i = 0; i < layout.rows; ++i) {
      for (int64_t c = 0; c < layout.cols; ++c) x.Set(i, c, LogitOf(dtype(), i, c, layout.cols, random));
    }
    return x;
  }
  // An upstream gradient; with `special`, rows 1 and 3 hold an infinity and a NaN.
  Tensor Upstream(const Layout &layout, int64_t padding = 0, bool special = false) const {
    Tensor g = Empty(layout, padding);
    Random random(static_cast<uint64_t>(layout.cols) + 1);
    for (int64_t i = 0; i < layout.rows; ++i) {
      for (int64_t c = 0; c < layout.cols; ++c) g.Set(i, c, random.Normal(2));
    }
    if (special) {
      g.Set(1, layout.cols / 2, kInf);
      g.Set(3, layout.cols - 1, kNan);
    }
    return g;
  }
  // The same numbers in another layout.
  static Tensor Relaid(const Tensor &tensor, int64_t inner, int64_t padding = 0) {
    Tensor copy(tensor.dtype(), tensor.rows(), tensor.cols(), inner, padding);
    for (int64_t i = 0; i < tensor.rows(); ++i) {
      for (int64_t c = 0; c < tensor.cols(); ++c) copy.SetBits(i, c, tensor.GetBits(i, c));
    }
    return copy;
  }

  using Forward = decltype(&xent_softmax);
  using Backward = decltype(&xent_softmax_backward);

  static Tensor Run(Forward function, const Tensor &x, int64_t padding = 0, const xent_exec &exec = kSerial) {
    Tensor y(x.dtype(), x.rows(), x.cols(), x.inner(), padding);
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(function(x.rows(), x.cols(), x.inner(), View(x), View(y), &exec, &error), XENT_OK) << error.message;
    EXPECT_TRUE(y.matrix().PaddingIntact());
    return y;
  }
  static Tensor Run(Backward function, const Tensor &g, const Tensor &y, int64_t padding = 0,
                    const xent_exec &exec = kSerial) {
    Tensor dx(y.dtype(), y.rows(), y.cols(), y.inner(), padding);
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(function(y.rows(), y.cols(), y.inner(), View(g), View(y), View(dx), &exec, &error), XENT_OK)
        << error.message;
    EXPECT_TRUE(dx.matrix().PaddingIntact());
    return dx;
  }
  static Matrix LogSumExp(const Tensor &x, const xent_exec &exec = kSerial) {
    Matrix lse(ArithmeticType(x.dtype()), 1, x.rows());
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(xent_logsumexp(x.rows(), x.cols(), x.inner(), View(x), lse.data(), &exec, &error), XENT_OK)
        << error.message;
    EXPECT_TRUE(lse.PaddingIntact());
    return lse;
  }
  static xent_diagnosis Diagnosis(const Tensor &x, const xent_exec &exec = kSerial) {
    xent_diagnosis diagnosis = static_cast<xent_diagnosis>(3);
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(xent_check_logits(x.rows(), x.cols(), x.inner(), View(x), &diagnosis, &exec, &error), XENT_OK)
        << error.message;
    return diagnosis;
  }

  // Whether each element differs bit by bit in no row and column; the strides may.
  static ::testing::AssertionResult SameElements(const Tensor &a, const Tensor &b) {
    for (int64_t i = 0; i < a.rows(); ++i) {
      for (int64_t c = 0; c < a.cols(); ++c) {
        if (a.GetBits(i, c) == b.GetBits(i, c)) continue;
        return ::testing::AssertionFailure() << "[" << i << "," << c << "] " << a.Get(i, c) << " and " << b.Get(i, c);
      }
    }
    return ::testing::AssertionSuccess();
  }
};

TEST_P(ClassMajorRows, ForwardFunctionsMatchTheReferenceAsTheRowMajorOnesDo) {
  for (const Layout &layout : Layouts()) {
    const Tensor class_major = Logits(layout, 3);
    const Tensor row_major = Relaid(class_major, 1);
    std::vector<std::vector<double>> logits;
    for (int64_t i = 0; i < layout.rows; ++i) logits.push_back(DecodeRow(class_major, i));
    for (const Tensor *x : {&class_major, &row_major}) {
      SCOPED_TRACE(layout.Text() + (x == &row_major ? ", row-major" : ""));
      const Matrix lse = LogSumExp(*x);
      const Tensor softmax = Run(xent_softmax, *x, 5);
      const Tensor log_softmax = Run(xent_log_softmax, *x, 1);
      for (int64_t i = 0; i < layout.rows; ++i) {
        const reference::Row row(logits[static_cast<size_t>(i)]);
        ASSERT_TRUE(Within(lse, 0, i, row.LogSumExp(), kLseUlp)) << "lse";
        for (int64_t c = 0; c < layout.cols; ++c) {
          ASSERT_TRUE(Within(softmax, i, c, row.Softmax(c), kSoftmaxUlp)) << "softmax";
          ASSERT_TRUE(Within(log_softmax, i, c, row.LogSoftmax(c), kLogSoftmaxUlp)) << "log_softmax";
        }
      }
      EXPECT_TRUE(x->matrix().PaddingIntact());
    }
  }
}

TEST_P(ClassMajorRows, SpecialRowsAreAsXentHSays) {
  for (const int64_t inner : {2, 3, 17}) {
    const Layout layout = {(10 + inner - 1) / inner * inner, 40, inner};
    const Tensor x = Logits(layout);
    const Matrix lse = LogSumExp(x);
    const Tensor softmax = Run(xent_softmax, x);
    const Tensor log_softmax = Run(xent_log_softmax, x);
    EXPECT_TRUE(Is(lse, 0, kAllMasked, -kInf));
    EXPECT_TRUE(Is(lse, 0, kInfinite, kInf));
    EXPECT_TRUE(Is(lse, 0, kNotANumber, kNan));
    for (const int64_t i : {int64_t{kAllMasked}, int64_t{kInfinite}, int64_t{kNotANumber}}) {
      EXPECT_TRUE(RowIs(softmax, i, kNan)) << i;
      EXPECT_TRUE(RowIs(log_softmax, i, kNan)) << i;
    }
    for (int64_t c = 0; c < layout.cols; ++c) {
      if (x.Get(kOneLeft, c) == -kInf) {
        EXPECT_TRUE(Is(softmax, kOneLeft, c, 0));
        EXPECT_TRUE(Is(log_softmax, kOneLeft, c, -kInf));
      } else {
        EXPECT_TRUE(Is(softmax, kOneLeft, c, 1));
        EXPECT_EQ(log_softmax.Get(kOneLeft, c), 0);
      }
    }
  }
}

TEST_P(ClassMajorRows, BackwardFunctionsMatchTheReferenceAsTheRowMajorOnesDo) {
  // The reference starts from the stored y, so that its rounding is worth nothing here.
  for (const Layout &layout : Layouts()) {
    for (const bool log : {false, true}) {
      const Tensor y = Run(log ? xent_log_softmax : xent_softmax, Logits(layout), 2);
      const Tensor g = Upstream(layout, 7);
      const auto expected = log ? reference::LogSoftmaxBackward : reference::SoftmaxBackward;
      const Tensor class_major = Run(log ? xent_log_softmax_backward : xent_softmax_backward, g, y, 1);
      const Tensor row_major = Run(log ? xent_log_softmax_backward : xent_softmax_backward, Relaid(g, 1), Relaid(y, 1));
      for (int64_t i = 0; i < layout.rows; ++i) {
        const std::vector<Value> want = expected(DecodeRow(g, i), DecodeRow(y, i));
        for (int64_t c = 0; c < layout.cols; ++c) {
          const Value value = want[static_cast<size_t>(c)];
          ASSERT_TRUE(Within(class_major, i, c, value, kBackwardUlp)) << layout.Text() << " log " << log;
          ASSERT_TRUE(Within(row_major, i, c, value, kBackwardUlp)) << layout.Text() << " log " << log << ", row-major";
        }
      }
    }
  }
}

TEST_P(ClassMajorRows, InfinitiesAndNansGoThroughTheBackwardFormulasAsInTheRowMajorLayout) {
  for (const Layout &layout : Layouts()) {
    for (const bool log : {false, true}) {
      const Tensor y = Run(log ? xent_log_softmax : xent_softmax, Logits(layout));
      const Tensor g = Upstream(layout, 0, true);
      const Backward function = log ? xent_log_softmax_backward : xent_softmax_backward;
      const Tensor class_major = Run(function, g, y);
      const Tensor row_major = Run(function, Relaid(g, 1), Relaid(y, 1));
      for (const int64_t i : {1, 3, 7, 8, 9}) {
        for (int64_t c = 0; c < layout.cols; ++c) {
          const double a = class_major.Get(i, c);
          const double b = row_major.Get(i, c);
          if (std::isfinite(a) && std::isfinite(b)) continue;
          ASSERT_EQ(class_major.GetBits(i, c), row_major.GetBits(i, c))
              << layout.Text() << " log " << log << " [" << i << "," << c << "] " << a << " and " << b;
        }
      }
    }
  }
}

TEST_P(ClassMajorRows, StridesThreadsAndPlacesChangeNoBit) {
  for (const Layout &layout : Layouts()) {
    SCOPED_TRACE(layout.Text());
    const Tensor tight = Logits(layout);
    const Tensor padded = Relaid(tight, layout.inner, 9);
    const Matrix lse = LogSumExp(tight);
    EXPECT_EQ(FirstDifference(lse, LogSumExp(padded)), "");
    EXPECT_EQ(FirstDifference(lse, LogSumExp(tight, TeamOf(3))), "");
    for (const bool log : {false, true}) {
      const Forward forward = log ? xent_log_softmax : xent_softmax;
      const Tensor y = Run(forward, tight);
      EXPECT_TRUE(SameElements(y, Run(forward, padded, 4))) << log;
      EXPECT_TRUE(SameElements(y, Run(forward, tight, 0, TeamOf(3)))) << log;
      for (const Tensor *source : {&tight, &padded}) {
        Tensor over = *source;
        ASSERT_EQ(forward(layout.rows, layout.cols, layout.inner, View(over), View(over), &kSerial, nullptr), XENT_OK);
        EXPECT_TRUE(SameElements(y, over)) << log;
        EXPECT_TRUE(over.matrix().PaddingIntact());
      }

      const Backward backward = log ? xent_log_softmax_backward : xent_softmax_backward;
      const Tensor g = Upstream(layout);
      const Tensor dx = Run(backward, g, y);
      EXPECT_TRUE(SameElements(dx, Run(backward, Relaid(g, layout.inner, 6), Relaid(y, layout.inner, 3), 2))) << log;
      EXPECT_TRUE(SameElements(dx, Run(backward, g, y, 0, TeamOf(3)))) << log;
      Tensor over_g = g;
      ASSERT_EQ(
          backward(layout.rows, layout.cols, layout.inner, View(over_g), View(y), View(over_g), &kSerial, nullptr),
          XENT_OK);
      EXPECT_TRUE(SameElements(dx, over_g)) << log;
      Tensor over_y = y;
      ASSERT_EQ(
          backward(layout.rows, layout.cols, layout.inner, View(g), View(over_y), View(over_y), &kSerial, nullptr),
          XENT_OK);
      EXPECT_TRUE(SameElements(dx, over_y)) << log;
    }
  }
}

TEST_P(ClassMajorRows, ARowHasTheBitsThatItHasBesideOtherPositions) {
  // Two positions out of seventeen, and all seventeen of another group.
  for (const int64_t cols : {1, 2, 1023, 1025, 20000}) {
    const Layout all = {34, cols, 17};
    const Layout two = {2, cols, 2};
    const Tensor x = Logits(all);
    const Tensor g = Upstream(all);
    const auto part = [&](const Tensor &whole, int64_t first) {
      Tensor some = Empty(two);
      for (int64_t i = 0; i < 2; ++i) {
        for (int64_t c = 0; c < cols; ++c) some.SetBits(i, c, whole.GetBits(first + i, c));
      }
      return some;
    };
    constexpr int64_t kFirst[] = {0, 5, 15, 22};
    const Matrix lse = LogSumExp(x);
    for (const int64_t first : kFirst) {
      const Matrix alone = LogSumExp(part(x, first));
      for (int64_t i = 0; i < 2; ++i) EXPECT_EQ(alone.GetBits(0, i), lse.GetBits(0, first + i)) << cols;
    }
    for (const bool log : {false, true}) {
      const Forward forward = log ? xent_log_softmax : xent_softmax;
      const Backward backward = log ? xent_log_softmax_backward : xent_softmax_backward;
      const Tensor y = Run(forward, x);
      const Tensor dx = Run(backward, g, y);
      for (const int64_t first : kFirst) {
        EXPECT_TRUE(SameElements(Run(forward, part(x, first)), part(y, first))) << cols << " log " << log;
        EXPECT_TRUE(SameElements(Run(backward, part(g, first), part(y, first)), part(dx, first)))
            << cols << " log " << log;
      }
    }
  }
}

TEST_P(ClassMajorRows, CheckLogitsSeesWhatItSeesInTheRowMajorLayout) {
  for (const int64_t cols : {1, 2, 1023, 1024, 1025, 20000}) {
    for (const int64_t inner : {2, 3, 17}) {
      const Layout layout = {2 * inner, cols, inner};
      SCOPED_TRACE(layout.Text());
      Tensor x = Empty(layout, 3);
      Random random(static_cast<uint64_t>(cols));
      for (int64_t i = 0; i < layout.rows; ++i) {
        for (int64_t c = 0; c < cols; ++c) x.Set(i, c, random.Normal(1));
      }
      // Each row's probability of a sixteenth in sixteen columns (or all of it in one) sums exactly, in every dtype.
      Tensor p = Empty(layout, 1);
      Tensor log_p = Empty(layout, 2);
      for (int64_t i = 0; i < layout.rows; ++i) {
        for (int64_t c = 0; c < cols; ++c) {
          const int64_t count = cols < 16 ? 1 : 16;
          const bool has = (c + cols - i % cols) % cols < count;
          p.Set(i, c, has ? 1.0 / static_cast<double>(count) : 0);
          log_p.Set(i, c, has && i % cols == c ? 0 : -kInf);
        }
      }
      const xent_diagnosis probabilities = cols == 1 ? XENT_DIAGNOSIS_LOGITS : XENT_DIAGNOSIS_PROBABILITIES;
      const xent_diagnosis log_probabilities = cols == 1 ? XENT_DIAGNOSIS_LOGITS : XENT_DIAGNOSIS_LOG_PROBABILITIES;
      for (const xent_exec &exec : {kSerial, TeamOf(3)}) {
        EXPECT_EQ(Diagnosis(x, exec), XENT_DIAGNOSIS_LOGITS);
        EXPECT_EQ(Diagnosis(p, exec), probabilities);
        EXPECT_EQ(Diagnosis(log_p, exec), log_probabilities);
        EXPECT_EQ(Diagnosis(Relaid(p, 1), exec), probabilities);
        EXPECT_EQ(Diagnosis(Relaid(log_p, 1), exec), log_probabilities);
      }
      // One odd value anywhere.
      for (const int64_t row : {int64_t{0}, layout.rows / 2, layout.rows - 1}) {
        for (const int64_t col : {int64_t{0}, cols / 2, cols - 1}) {
          for (const double odd : {-0.5, 1.5, kNan, kInf}) {
            for (Tensor *tensor : {&p, &log_p}) {
              const uint64_t before = tensor->GetBits(row, col);
              tensor->Set(row, col, odd);
              EXPECT_EQ(Diagnosis(*tensor), XENT_DIAGNOSIS_LOGITS) << row << "," << col << " is " << odd;
              tensor->SetBits(row, col, before);
            }
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ClassMajorRows, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

}  // namespace
}  // namespace xent::test
