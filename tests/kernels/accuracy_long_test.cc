// Looks for rows that break the bounds of semantics.md ("Accuracy") instead of waiting for chance to bring them: hill
// climbing from random short rows, one output at a time, on every target. Prints the worst that was found.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "reference/rows.h"
#include "testing/check.h"
#include "testing/data.h"
#include "testing/target.h"

namespace xent::test {
namespace {

using reference::Value;

enum class Objective { kLoss, kGradient, kSmoothedLoss, kSmoothedGradient, kSoftmax, kLogSoftmax };
constexpr Objective kObjectives[] = {Objective::kLoss,         Objective::kGradient,
                                     Objective::kSmoothedLoss, Objective::kSmoothedGradient,
                                     Objective::kSoftmax,      Objective::kLogSoftmax};

const char *NameOf(Objective objective) {
  constexpr const char *kNames[] = {"loss",    "gradient",   "loss with smoothing", "gradient with smoothing",
                                    "softmax", "log_softmax"};
  return kNames[static_cast<int>(objective)];
}

double BoundOf(Objective objective) {
  switch (objective) {
    case Objective::kGradient:
    case Objective::kSmoothedGradient:
    case Objective::kSoftmax:
      return 6;
    default:
      return 4;
  }
}

class Climb : public TargetTest {
 protected:
  // Errors of the rows, the worst element each, with target 0.
  static std::vector<double> Errors(Objective objective, const Matrix &logits) {
    const int64_t rows = logits.rows();
    const int64_t cols = logits.cols();
    const xent_dtype dtype = logits.dtype();
    xent_options options = XENT_OPTIONS_INIT;
    options.reduction = XENT_REDUCTION_NONE;
    if (objective == Objective::kSmoothedLoss || objective == Objective::kSmoothedGradient)
      options.label_smoothing = 0.1;
    const bool is_loss = objective == Objective::kLoss || objective == Objective::kSmoothedLoss;
    Matrix result(dtype, is_loss ? 1 : rows, is_loss ? rows : cols);
    if (objective == Objective::kSoftmax || objective == Objective::kLogSoftmax) {
      const auto function = objective == Objective::kSoftmax ? xent_softmax : xent_log_softmax;
      EXPECT_EQ(function(rows, cols, logits.data(), dtype, 0, result.data(), 0, &kSerial, nullptr), XENT_OK);
    } else {
      const std::vector<int64_t> targets(static_cast<size_t>(rows), 0);
      xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
      args.rows = rows;
      args.cols = cols;
      args.logits = logits.data();
      args.targets = targets.data();
      args.dtype = dtype;
      if (is_loss) {
        args.losses = result.data();
        EXPECT_EQ(xent_cross_entropy_forward(&args, &options, &kSerial, nullptr), XENT_OK);
      } else {
        args.grad = result.data();
        EXPECT_EQ(xent_cross_entropy_forward_backward(&args, &options, &kSerial, nullptr), XENT_OK);
      }
    }
    const std::vector<double> stored = reference::DecodeRows(dtype, logits.data(), rows, cols, 0);
    const std::span<const double> values(stored);
    std::vector<double> errors(static_cast<size_t>(rows), -1);
    for (int64_t i = 0; i < rows; ++i) {
      const reference::Row row(values.subspan(static_cast<size_t>(i * cols), static_cast<size_t>(cols)), 0);
      double &worst = errors[static_cast<size_t>(i)];
      if (is_loss) {
        worst = reference::ErrorInUlp(dtype, result.data(), i, row.Loss(options));
        continue;
      }
      for (int64_t j = 0; j < cols; ++j) {
        const Value want = objective == Objective::kSoftmax      ? row.Softmax(j)
                           : objective == Objective::kLogSoftmax ? row.LogSoftmax(j)
                                                                 : row.Gradient(j, options, 1);
        worst = std::max(worst, reference::ErrorInUlp(dtype, result.row(i), j, want));
      }
    }
    return errors;
  }

  static void ExpectNoRowBreaksTheBounds(xent_dtype dtype) {
    constexpr int64_t kRows = 1500;
    constexpr int kSteps = 150;
    const int precision = reference::FormatOf(dtype).precision;
    for (const Objective objective : kObjectives) {
      double worst = -1;
      std::string where;
      for (const int64_t cols : {2, 3, 10, 40}) {
        Random random(static_cast<uint64_t>(cols));
        Matrix best(dtype, kRows, cols);
        for (int64_t i = 0; i < kRows; ++i) {
          for (int64_t j = 0; j < cols; ++j) best.Set(i, j, random.Normal(i % 3 == 0 ? 1 : i % 3 == 1 ? 8 : 40));
        }
        std::vector<double> errors = Errors(objective, best);
        for (int step = 0; step < kSteps; ++step) {
          Matrix tried = best;
          for (int64_t i = 0; i < kRows; ++i) {
            // One logit moves: by a relative amount between 1 and 2^-precision, or to another's value, or anew; or all
            // do.
            const int64_t j = random.Below(cols);
            const double z = best.Get(i, j);
            switch (random.Below(8)) {
              case 0:
                tried.Set(i, j, random.Normal(8));
                break;
              case 1:
                tried.Set(i, j, best.Get(i, random.Below(cols)));
                break;
              case 2: {
                const double shift = random.Normal(1);
                for (int64_t k = 0; k < cols; ++k) tried.Set(i, k, best.Get(i, k) + shift);
                break;
              }
              default:
                tried.Set(i, j, z + z * random.Normal(1) * std::ldexp(1.0, static_cast<int>(-random.Below(precision))));
            }
          }
          const std::vector<double> now = Errors(objective, tried);
          for (int64_t i = 0; i < kRows; ++i) {
            if (now[static_cast<size_t>(i)] < errors[static_cast<size_t>(i)]) continue;
            errors[static_cast<size_t>(i)] = now[static_cast<size_t>(i)];
            for (int64_t j = 0; j < cols; ++j) best.SetBits(i, j, tried.GetBits(i, j));
          }
        }
        for (int64_t i = 0; i < kRows; ++i) {
          if (errors[static_cast<size_t>(i)] <= worst) continue;
          worst = errors[static_cast<size_t>(i)];
          where = "row";
          char text[40];
          for (int64_t j = 0; j < cols; ++j) {
            std::snprintf(text, sizeof(text), " %a", best.Get(i, j));
            where += text;
          }
        }
      }
      std::printf("climbed to %.4f ULP of %g: %s %s, target %s, %s\n", worst, BoundOf(objective), NameOf(objective),
                  reference::NameOf(dtype), GetParam().c_str(), where.c_str());
      EXPECT_LE(worst, BoundOf(objective)) << NameOf(objective) << ", target " << GetParam() << ", " << where;
    }
  }
};
XENT_INSTANTIATE_TARGETS(Climb);

TEST_P(Climb, NoFloat32RowBreaksTheBounds) { ExpectNoRowBreaksTheBounds(XENT_F32); }
TEST_P(Climb, NoFloat64RowBreaksTheBounds) { ExpectNoRowBreaksTheBounds(XENT_F64); }

}  // namespace
}  // namespace xent::test
