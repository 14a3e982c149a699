// Looks for rows that break the bounds of semantics.md ("Accuracy") instead of waiting for chance to bring them: hill
// climbing from random short rows, one output at a time, on every target. Prints the worst that was found.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "reference/losses.h"
#include "reference/rows.h"
#include "testing/bounds.h"
#include "testing/data.h"
#include "testing/exec.h"
#include "testing/loss_call.h"
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
      return kGradientUlp;
    case Objective::kSoftmax:
      return kSoftmaxUlp;
    case Objective::kLogSoftmax:
      return kLogSoftmaxUlp;
    default:
      return kLossUlp;
  }
}

class Climb : public TargetTest {
 protected:
  // Errors of the rows, the worst element each, with target 0.
  static std::vector<double> Errors(Objective objective, const Tensor &logits) {
    switch (objective) {
      case Objective::kSoftmax:
        return MapErrors(logits, xent_softmax, &reference::Row::Softmax);
      case Objective::kLogSoftmax:
        return MapErrors(logits, xent_log_softmax, &reference::Row::LogSoftmax);
      default:
        return LossErrors(objective, logits);
    }
  }

  using RowMap = xent_status (*)(int64_t, int64_t, int64_t, xent_matrix, xent_matrix, const xent_exec *, xent_error *);
  static std::vector<double> MapErrors(const Tensor &logits, RowMap function,
                                       Value (reference::Row::*value_of)(int64_t) const) {
    const int64_t rows = logits.rows();
    const int64_t cols = logits.cols();
    Tensor result(logits.dtype(), rows, cols);
    EXPECT_EQ(function(rows, cols, 0, View(logits), View(result), &kSerial, nullptr), XENT_OK);
    const std::vector<double> stored = reference::DecodeRows(logits.dtype(), logits.data(), rows, cols, 0);
    std::vector<double> errors(static_cast<size_t>(rows), -1);
    for (int64_t i = 0; i < rows; ++i) {
      const reference::Row row(
          std::span<const double>(stored).subspan(static_cast<size_t>(i * cols), static_cast<size_t>(cols)));
      double &worst = errors[static_cast<size_t>(i)];
      for (int64_t j = 0; j < cols; ++j) {
        worst = std::max(worst, result.ErrorInUlp(logits.dtype(), i, j, (row.*value_of)(j)));
      }
    }
    return errors;
  }

  static std::vector<double> LossErrors(Objective objective, const Tensor &logits) {
    LossCall call(logits.dtype(), logits.rows(), logits.cols());
    call.logits = logits;
    call.exec = kSerial;
    call.options.reduction.kind = XENT_REDUCTION_NONE;
    if (objective == Objective::kSmoothedLoss || objective == Objective::kSmoothedGradient) {
      call.options.label_smoothing = 0.1;
    }
    const bool is_loss = objective == Objective::kLoss || objective == Objective::kSmoothedLoss;
    EXPECT_EQ(is_loss ? call.Forward() : call.ForwardBackward(), XENT_OK);
    const reference::LossInputs inputs = call.Inputs();
    const reference::Losses want = reference::EvaluateLosses(inputs);
    std::vector<double> errors(static_cast<size_t>(call.rows), -1);
    for (int64_t i = 0; i < call.rows; ++i) {
      double &worst = errors[static_cast<size_t>(i)];
      if (is_loss) {
        worst = reference::ErrorInUlp(call.dtype, call.row_losses.row(0), i, want.losses[static_cast<size_t>(i)]);
        continue;
      }
      for (int64_t j = 0; j < call.cols; ++j) {
        worst = std::max(worst, call.grad.ErrorInUlp(call.dtype, i, j, reference::GradientOf(inputs, want, i, j)));
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
        Tensor best(dtype, kRows, cols);
        for (int64_t i = 0; i < kRows; ++i) {
          for (int64_t j = 0; j < cols; ++j) best.Set(i, j, random.Normal(i % 3 == 0 ? 1 : i % 3 == 1 ? 8 : 40));
        }
        std::vector<double> errors = Errors(objective, best);
        for (int step = 0; step < kSteps; ++step) {
          Tensor tried = best;
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
