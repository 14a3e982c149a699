// Looks for rows that break the bounds of semantics.md ("Accuracy") instead of waiting for chance to bring them: hill
// climbing from random rows, one output at a time, on every target. Prints the worst that was found.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "reference/losses.h"
#include "reference/rows.h"
#include "testing/binary.h"
#include "testing/bounds.h"
#include "testing/data.h"
#include "testing/divergence_call.h"
#include "testing/exec.h"
#include "testing/loss_call.h"
#include "testing/target.h"

namespace xent::test {
namespace {

using reference::Value;

// What climbs: logits and, for outputs that take one, a second matrix of the same shape.
struct Inputs {
  Tensor logits, other;
};

enum class Other {
  kNone,
  kNumbers,  // of the logits' sizes: a teacher's logits, an upstream gradient
  kShares    // in [0, 1]: probabilities, binary targets
};

struct Objective {
  std::string name;
  double bound;
  Other other;
  std::function<std::vector<double>(const Inputs &)> errors;  // of each row its worst element
  bool of_elements = false;                                   // which know nothing of the rest of their row
};

// The error of element (i, j). Where `want` has a slack most errors would be 0, and from a plateau nothing climbs:
// there the error is told as its share of all that is allowed, times the bound. Both exceed the bound in the same
// cases.
double ErrorOf(const Matrix &got, int64_t i, int64_t j, Value want, double bound) {
  if (want.slack == 0 || !std::isfinite(want.slack + want.scale)) {
    return reference::ErrorInUlp(got.dtype(), got.row(i), j, want);
  }
  const double allowed = bound + static_cast<double>(want.slack / reference::UlpAt(got.dtype(), want.scale));
  want.slack = 0;
  return reference::ErrorInUlp(got.dtype(), got.row(i), j, want) / allowed * bound;
}

// One error a row: the worst of error_of(row, column).
template <typename ColumnErrorOf>
std::vector<double> WorstOfRows(const Tensor &like, ColumnErrorOf error_of) {
  std::vector<double> errors;
  for (int64_t i = 0; i < like.rows(); ++i) {
    double worst = -1;
    for (int64_t j = 0; j < like.cols(); ++j) worst = std::max(worst, error_of(i, j));
    errors.push_back(worst);
  }
  return errors;
}

// One error a row: that of a number a row, `got` having one row of them.
template <typename WantOf>
std::vector<double> ErrorsOfNumbers(const Matrix &got, double bound, WantOf want_of) {
  std::vector<double> errors;
  for (int64_t i = 0; i < got.cols(); ++i) errors.push_back(ErrorOf(got, 0, i, want_of(i), bound));
  return errors;
}

std::vector<double> RowOf(const Tensor &tensor, int64_t i) {
  return reference::DecodeRows(tensor.dtype(), tensor.matrix().row(i), 1, tensor.cols(), 0);
}

// Weights of the columns. They stay, for all rows share them.
std::vector<double> Weights(int64_t cols) {
  Random random(static_cast<uint64_t>(cols));
  std::vector<double> weights;
  for (int64_t j = 0; j < cols; ++j) weights.push_back(0.25 + 2 * random.Uniform());
  return weights;
}

// ---- softmax, log_softmax and their backward functions ----

using RowMap = xent_status (*)(int64_t, int64_t, int64_t, xent_matrix, xent_matrix, const xent_exec *, xent_error *);
using RowBackward = xent_status (*)(int64_t, int64_t, int64_t, xent_matrix, xent_matrix, xent_matrix, const xent_exec *,
                                    xent_error *);
using BackwardOracle = std::vector<Value> (*)(std::span<const double>, std::span<const double>);

Tensor Apply(RowMap function, const Tensor &logits) {
  Tensor result(logits.dtype(), logits.rows(), logits.cols());
  EXPECT_EQ(function(logits.rows(), logits.cols(), 0, View(logits), View(result), &kSerial, nullptr), XENT_OK);
  return result;
}

Objective MapObjective(std::string name, double bound, RowMap function,
                       Value (reference::Row::*value_of)(int64_t) const) {
  return {std::move(name), bound, Other::kNone, [=](const Inputs &inputs) {
            const Tensor result = Apply(function, inputs.logits);
            std::vector<reference::Row> rows;
            for (int64_t i = 0; i < result.rows(); ++i) rows.emplace_back(RowOf(inputs.logits, i));
            return WorstOfRows(result, [&](int64_t i, int64_t j) {
              return ErrorOf(result.matrix(), i, j, (rows[static_cast<size_t>(i)].*value_of)(j), bound);
            });
          }};
}

// From the output that `function` stores, so that it is one that occurs.
Objective BackwardObjective(std::string name, RowMap function, RowBackward backward, BackwardOracle oracle) {
  return {std::move(name), kBackwardUlp, Other::kNumbers, [=](const Inputs &inputs) {
            const Tensor output = Apply(function, inputs.logits);
            Tensor grad(output.dtype(), output.rows(), output.cols());
            EXPECT_EQ(backward(output.rows(), output.cols(), 0, View(inputs.other), View(output), View(grad), &kSerial,
                               nullptr),
                      XENT_OK);
            std::vector<std::vector<Value>> want;
            for (int64_t i = 0; i < output.rows(); ++i)
              want.push_back(oracle(RowOf(inputs.other, i), RowOf(output, i)));
            return WorstOfRows(grad, [&](int64_t i, int64_t j) {
              return ErrorOf(grad.matrix(), i, j, want[static_cast<size_t>(i)][static_cast<size_t>(j)], kBackwardUlp);
            });
          }};
}

// ---- cross-entropy, with target 0 where targets are indices ----

enum class Output { kLoss, kGradient, kLse, kEntropy };

Objective LossObjective(std::string name, Output output, Other other, void (*set)(const Inputs &, LossCall &)) {
  const double bound = output == Output::kGradient  ? kGradientUlp
                       : output == Output::kLse     ? kLseUlp
                       : output == Output::kEntropy ? kEntropyUlp
                                                    : kLossUlp;
  return {std::move(name), bound, other, [=](const Inputs &inputs) {
            LossCall call(inputs.logits.dtype(), inputs.logits.rows(), inputs.logits.cols());
            call.logits = inputs.logits;
            call.exec = kSerial;
            call.options.reduction.kind = XENT_REDUCTION_NONE;
            call.wants_entropy = output == Output::kEntropy;
            set(inputs, call);
            EXPECT_EQ(output == Output::kGradient ? call.ForwardBackward() : call.Forward(), XENT_OK);
            const reference::LossInputs decoded = call.Inputs();
            const reference::Losses want = reference::EvaluateLosses(decoded);
            switch (output) {
              case Output::kGradient:
                return WorstOfRows(call.grad, [&](int64_t i, int64_t j) {
                  return ErrorOf(call.grad.matrix(), i, j, reference::GradientOf(decoded, want, i, j), bound);
                });
              case Output::kLse:
                return ErrorsOfNumbers(call.lse, bound, [&](int64_t i) { return want.lse[static_cast<size_t>(i)]; });
              case Output::kEntropy:
                return ErrorsOfNumbers(call.entropy, bound,
                                       [&](int64_t i) { return want.rows[static_cast<size_t>(i)].Entropy(); });
              default:
                return ErrorsOfNumbers(call.row_losses, bound,
                                       [&](int64_t i) { return want.losses[static_cast<size_t>(i)]; });
            }
          }};
}

// ---- divergences and binary cross-entropy ----

Objective DivergenceObjective(xent_divergence_kind kind, bool gradient) {
  const double bound = gradient ? kDivergenceGradientUlp : kDivergenceUlp;
  return {std::string(gradient ? "gradient" : "loss") + " of " + kDivergenceNames[kind], bound, Other::kNumbers,
          [=](const Inputs &inputs) {
            const Tensor &student = inputs.logits;
            DivergenceCall call(student.dtype(), student.dtype(), student.rows(), student.cols());
            call.student = student;
            call.teacher = inputs.other;
            call.options.kind = kind;
            call.options.reduction.kind = XENT_REDUCTION_NONE;
            call.MustRun(gradient);
            std::vector<reference::Divergence> want;
            for (int64_t i = 0; i < student.rows(); ++i) want.push_back(call.Expected(i));
            if (!gradient) {
              return ErrorsOfNumbers(call.row_losses, bound,
                                     [&](int64_t i) { return want[static_cast<size_t>(i)].loss; });
            }
            return WorstOfRows(call.grad, [&](int64_t i, int64_t j) {
              return ErrorOf(call.grad.matrix(), i, j, want[static_cast<size_t>(i)].gradient[static_cast<size_t>(j)],
                             bound);
            });
          }};
}

// With pos_weight, or focal where gamma is not 0.
Objective BinaryObjective(double gamma, bool gradient) {
  const double bound = gamma != 0 ? kFocalUlp : gradient ? kBinaryGradientUlp : kBinaryUlp;
  return {
      std::string(gradient ? "gradient" : "loss") + (gamma != 0 ? " of binary focal" : " of binary with pos_weight"),
      bound, Other::kShares,
      [=](const Inputs &inputs) {
        const Tensor &logits = inputs.logits;
        Binary call(logits.dtype(), logits.dtype(), logits.rows(), logits.cols());
        call.x = logits.matrix();
        call.y = inputs.other.matrix();
        call.want_target_grad = false;
        call.options.reduction.kind = XENT_REDUCTION_NONE;
        call.options.focal_gamma = gamma;
        if (gamma == 0) call.pos_weight = call.Vector(Weights(logits.cols()));
        call.MustRun(gradient ? Pass::kForwardBackward : Pass::kForward);
        return WorstOfRows(logits, [&](int64_t i, int64_t j) {
          const reference::BinaryResult want = reference::EvaluateBinary(call.Element(i, j));
          return gradient ? ErrorOf(call.grad, i, j, want.grad, bound)
                          : ErrorOf(call.element_losses, i, j, want.loss, bound);
        });
      },
      true};
}

std::vector<Objective> Objectives() {
  const struct {
    const char *with;
    Other other;
    void (*set)(const Inputs &, LossCall &);
  } kForms[] = {
      {"", Other::kNone, [](const Inputs &, LossCall &) {}},
      {" with smoothing", Other::kNone, [](const Inputs &, LossCall &call) { call.options.label_smoothing = 0.1; }},
      {" with class weights and smoothing", Other::kNone,
       [](const Inputs &, LossCall &call) {
         call.options.label_smoothing = 0.1;
         call.SetClassWeights(Weights(call.cols));
       }},
      {" with z_loss", Other::kNone, [](const Inputs &, LossCall &call) { call.options.z_loss = 0.1; }},
      {" under softcap", Other::kNone, [](const Inputs &, LossCall &call) { call.options.softcap = 30; }},
      {" of probability targets", Other::kShares,
       [](const Inputs &inputs, LossCall &call) { call.target_probs = inputs.other; }},
  };
  std::vector<Objective> objectives;
  for (const auto &form : kForms) {
    objectives.push_back(LossObjective(std::string("loss") + form.with, Output::kLoss, form.other, form.set));
    objectives.push_back(LossObjective(std::string("gradient") + form.with, Output::kGradient, form.other, form.set));
  }
  objectives.push_back(LossObjective("lse", Output::kLse, Other::kNone, kForms[0].set));
  objectives.push_back(LossObjective("entropy", Output::kEntropy, Other::kNone, kForms[0].set));
  objectives.push_back(MapObjective("softmax", kSoftmaxUlp, xent_softmax, &reference::Row::Softmax));
  objectives.push_back(MapObjective("log_softmax", kLogSoftmaxUlp, xent_log_softmax, &reference::Row::LogSoftmax));
  objectives.push_back(
      BackwardObjective("softmax_backward", xent_softmax, xent_softmax_backward, reference::SoftmaxBackward));
  objectives.push_back(BackwardObjective("log_softmax_backward", xent_log_softmax, xent_log_softmax_backward,
                                         reference::LogSoftmaxBackward));
  for (const bool gradient : {false, true}) {
    for (const xent_divergence_kind kind :
         {XENT_DIVERGENCE_FORWARD_KL, XENT_DIVERGENCE_REVERSE_KL, XENT_DIVERGENCE_JENSEN_SHANNON}) {
      objectives.push_back(DivergenceObjective(kind, gradient));
    }
    for (const double gamma : {0.0, 2.0}) objectives.push_back(BinaryObjective(gamma, gradient));
  }
  return objectives;
}

// ---- the climb ----

// A number anew.
double Draw(Other kind, double deviation, Random &random) {
  if (kind != Other::kShares) return random.Normal(deviation);
  const int64_t hard = random.Below(6);
  return hard < 2 ? static_cast<double>(hard) : std::ldexp(random.Uniform(), -static_cast<int>(random.Below(20)));
}

// One number of row i moves: by a relative amount between 1 and 2^-precision, or to another's value, or anew; or all of
// the row do.
void Move(Other kind, int64_t i, Random &random, Tensor *numbers) {
  const int64_t cols = numbers->cols();
  const int64_t j = random.Below(cols);
  const double z = numbers->Get(i, j);
  const auto set = [&](int64_t column, double value) {
    numbers->Set(i, column, kind == Other::kShares ? std::fmin(std::fabs(value), 1) : value);
  };
  switch (random.Below(8)) {
    case 0:
      set(j, Draw(kind, 8, random));
      break;
    case 1:
      set(j, numbers->Get(i, random.Below(cols)));
      break;
    case 2: {
      const double shift = random.Normal(1);
      for (int64_t k = 0; k < cols; ++k) set(k, numbers->Get(i, k) + shift);
      break;
    }
    default: {
      const int precision = reference::FormatOf(numbers->dtype()).precision;
      set(j, z + z * random.Normal(1) * std::ldexp(1.0, static_cast<int>(-random.Below(precision))));
    }
  }
}

void CopyRow(const Tensor &from, int64_t i, Tensor *to) {
  for (int64_t j = 0; j < from.cols(); ++j) to->SetBits(i, j, from.GetBits(i, j));
}

std::string TextOf(const char *name, const Tensor &numbers, int64_t i) {
  std::string text = name;
  char number[40];
  for (int64_t j = 0; j < numbers.cols(); ++j) {
    std::snprintf(number, sizeof(number), " %a", numbers.Get(i, j));
    text += number;
  }
  return text;
}

class Climb : public TargetTest {
 protected:
  static void ExpectNoRowBreaksTheBounds(xent_dtype dtype) {
    for (const Objective &objective : Objectives()) {
      double worst = -1;
      std::string where;
      if (objective.of_elements) {
        ClimbFrom(dtype, kElements, objective, &worst, &where);
      } else {
        for (const Shape &shape : kShapes) ClimbFrom(dtype, shape, objective, &worst, &where);
      }
      std::printf("climbed to %.4f ULP of %g: %s %s, target %s, %s\n", worst, objective.bound, objective.name.c_str(),
                  reference::NameOf(dtype), GetParam().c_str(), where.c_str());
      EXPECT_LE(worst, objective.bound) << objective.name << ", target " << GetParam() << ", " << where;
    }
  }

 private:
  struct Shape {
    int64_t cols, rows;
    int steps;
  };
  // Lanes of float32 lie over the rows of up to 40 columns, and over the columns of those of 300. Few rows that climb
  // for long get higher than many for a short time.
  static constexpr Shape kShapes[] = {{2, 100, 2250}, {3, 100, 2250}, {10, 100, 2250}, {40, 100, 2250}, {300, 30, 600}};
  static constexpr Shape kElements = {1, 2000, 4000};

  static void ClimbFrom(xent_dtype dtype, const Shape &shape, const Objective &objective, double *worst,
                        std::string *where) {
    const auto [cols, rows, steps] = shape;
    const bool has_other = objective.other != Other::kNone;
    Random random(static_cast<uint64_t>(cols));
    Inputs best{Tensor(dtype, rows, cols), has_other ? Tensor(dtype, rows, cols) : Tensor()};
    for (int64_t i = 0; i < rows; ++i) {
      const double deviation = i % 3 == 0 ? 1 : i % 3 == 1 ? 8 : 40;
      for (int64_t j = 0; j < cols; ++j) best.logits.Set(i, j, random.Normal(deviation));
      for (int64_t j = 0; has_other && j < cols; ++j) best.other.Set(i, j, Draw(objective.other, deviation, random));
    }
    std::vector<double> errors = objective.errors(best);
    for (int step = 0; step < steps; ++step) {
      Inputs tried = best;
      for (int64_t i = 0; i < rows; ++i) {
        if (has_other && random.Below(2) == 0) {
          Move(objective.other, i, random, &tried.other);
        } else {
          Move(Other::kNumbers, i, random, &tried.logits);
        }
      }
      const std::vector<double> now = objective.errors(tried);
      for (int64_t i = 0; i < rows; ++i) {
        if (now[static_cast<size_t>(i)] < errors[static_cast<size_t>(i)]) continue;
        errors[static_cast<size_t>(i)] = now[static_cast<size_t>(i)];
        CopyRow(tried.logits, i, &best.logits);
        if (has_other) CopyRow(tried.other, i, &best.other);
      }
    }
    const int64_t i = std::max_element(errors.begin(), errors.end()) - errors.begin();
    if (errors[static_cast<size_t>(i)] <= *worst) return;
    *worst = errors[static_cast<size_t>(i)];
    *where = TextOf("row", best.logits, i);
    if (has_other) *where += TextOf(", beside it", best.other, i);
  }
};
XENT_INSTANTIATE_TARGETS(Climb);

TEST_P(Climb, NoFloat32RowBreaksTheBounds) { ExpectNoRowBreaksTheBounds(XENT_F32); }
TEST_P(Climb, NoFloat64RowBreaksTheBounds) { ExpectNoRowBreaksTheBounds(XENT_F64); }

}  // namespace
}  // namespace xent::test
