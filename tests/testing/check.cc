// Runs and judges the cross-entropy and the row functions; see check.h.
#include "testing/check.h"

#include <gtest/gtest.h>

#include <cstdio>

#include "reference/losses.h"
#include "reference/rows.h"
#include "testing/bounds.h"

namespace xent::test {
namespace {

using reference::ArithmeticType;
using reference::NameOf;
using reference::Value;

WorstByOutput &AllWorst() {
  static WorstByOutput worst;
  return worst;
}

std::string Describe(const Problem &problem) {
  return std::string(", target ") + xent_active_target() + ", " + NameOf(problem.dtype) + ", " +
         std::to_string(problem.rows) + "x" + std::to_string(problem.cols) + ", " + problem.name;
}

// The worst element of a row function's output, with what reproduces it.
class Worst {
 public:
  void Add(double ulp, double got, uint64_t bits, int64_t i, int64_t j, Value want) {
    if (ulp <= worst_.ulp) return;
    char text[256];
    std::snprintf(text, sizeof(text), "[%lld,%lld] got %.17g 0x%llx want %.21Lg counted at %.6Lg: %.4f ULP",
                  static_cast<long long>(i), static_cast<long long>(j), got, static_cast<unsigned long long>(bits),
                  want.exact, want.scale, ulp);
    worst_ = {ulp, text};
  }
  void Add(const Tensor &got, int64_t i, int64_t j, Value want) {
    Add(got.ErrorInUlp(ArithmeticType(got.dtype()), i, j, want), got.Get(i, j), got.GetBits(i, j), i, j, want);
  }
  const WorstError &error() const { return worst_; }

 private:
  WorstError worst_;
};

void ExpectRan(xent_status status, const LossCall &call, const char *way, const Problem &problem) {
  EXPECT_EQ(status, XENT_OK) << way << ": " << call.error.message << Describe(problem);
  EXPECT_EQ(call.PaddingTrouble(), "") << way << Describe(problem);
}

// The call without records; its gradient goes over the logits where `in_place` says so.
LossCall RunForwardBackward(const Problem &problem, const xent_exec &exec, bool in_place) {
  LossCall call = problem;
  call.exec = exec;
  call.in_place = in_place;
  xent_cross_entropy args = call.Args(Function::kForwardBackward);
  args.records = nullptr;
  ExpectRan(xent_cross_entropy_forward_backward(&args, &call.options, &call.exec, &call.error), call,
            in_place ? "forward_backward in place" : "forward_backward", problem);
  return call;
}

void ExpectReduces(const Problem &problem, const LossCall &forward) {
  if (forward.options.reduction.kind == XENT_REDUCTION_NONE) return;
  Matrix reduced(ArithmeticType(problem.dtype), 1, 1);
  xent_stored_losses args = XENT_STORED_LOSSES_INIT;
  args.rows = problem.rows;
  args.row_losses = forward.row_losses.data();
  args.targets = {.data = problem.targets.data(), .type = XENT_I64, .reserved = 0};
  args.reduced_loss = reduced.data();
  args.dtype = reduced.dtype();
  xent_error error = XENT_ERROR_INIT;
  EXPECT_EQ(xent_reduce(&args, &problem.options, &error), XENT_OK) << error.message << Describe(problem);
  EXPECT_EQ(FirstDifference(forward.reduced_loss, reduced), "")
      << "reduced loss of forward and of xent_reduce" << Describe(problem);
}

using RowMap = xent_status (*)(int64_t, int64_t, int64_t, xent_matrix, xent_matrix, const xent_exec *, xent_error *);

Tensor RunMap(const Problem &problem, const xent_exec &exec, RowMap function, const char *name, const Tensor &like) {
  Tensor y = like;
  xent_error error = XENT_ERROR_INIT;
  EXPECT_EQ(function(problem.rows, problem.cols, 0, View(problem.logits), View(y), &exec, &error), XENT_OK)
      << name << ": " << error.message << Describe(problem);
  EXPECT_TRUE(y.matrix().PaddingIntact()) << name << " wrote outside its rows" << Describe(problem);
  Tensor in_place = problem.logits;
  EXPECT_EQ(function(problem.rows, problem.cols, 0, View(in_place), View(in_place), &exec, &error), XENT_OK)
      << name << ": " << error.message << Describe(problem);
  EXPECT_EQ(FirstDifference(y, in_place), "") << name << " out of place and in place" << Describe(problem);
  EXPECT_TRUE(in_place.matrix().PaddingIntact()) << name << " in place wrote outside its rows" << Describe(problem);
  return y;
}

}  // namespace

std::string FirstDifference(const Outputs &a, const Outputs &b) {
  std::string difference = a.ForwardDifference(b);
  if (difference.empty()) difference = a.GradientDifference(b);
  if (!difference.empty()) return difference;
  difference = FirstDifference(a.softmax, b.softmax);
  if (!difference.empty()) return "softmax " + difference;
  difference = FirstDifference(a.log_softmax, b.log_softmax);
  if (!difference.empty()) return "log_softmax " + difference;
  difference = FirstDifference(a.logsumexp, b.logsumexp);
  return difference.empty() ? "" : "logsumexp " + difference;
}

Outputs RunAll(const Problem &problem, const xent_exec &exec) {
  const LossCall both = RunForwardBackward(problem, exec, false);
  Outputs out;
  static_cast<LossCall &>(out) = problem;
  out.exec = exec;
  ExpectRan(out.Forward(), out, "forward", problem);
  EXPECT_EQ(out.ForwardDifference(both), "") << "forward and forward_backward" << Describe(problem);

  const LossCall in_place = RunForwardBackward(problem, exec, true);
  EXPECT_EQ(both.ForwardDifference(in_place), "") << "forward_backward out of place and in place" << Describe(problem);
  EXPECT_EQ(both.GradientDifference(in_place), "") << "forward_backward out of place and in place" << Describe(problem);

  for (const bool over_logits : {true, false}) {
    out.in_place = over_logits;
    ExpectRan(out.Backward(), out, over_logits ? "backward in place" : "backward", problem);
    EXPECT_EQ(both.GradientDifference(out), "")
        << "forward_backward and backward" << (over_logits ? " in place" : "") << Describe(problem);
  }
  ExpectReduces(problem, out);

  out.logsumexp = Matrix(ArithmeticType(problem.dtype), 1, problem.rows);
  xent_error error = XENT_ERROR_INIT;
  EXPECT_EQ(xent_logsumexp(problem.rows, problem.cols, 0, View(problem.logits), out.logsumexp.data(), &exec, &error),
            XENT_OK)
      << "logsumexp: " << error.message << Describe(problem);
  EXPECT_TRUE(out.logsumexp.PaddingIntact()) << "logsumexp wrote outside its array" << Describe(problem);
  const int64_t misalign =
      static_cast<int64_t>(reinterpret_cast<uintptr_t>(problem.logits.data()) & 63) / problem.logits.matrix().Bytes();
  const Tensor empty(problem.dtype, problem.rows, problem.cols, 0, problem.padding, misalign);
  out.softmax = RunMap(problem, exec, xent_softmax, "softmax", empty);
  out.log_softmax = RunMap(problem, exec, xent_log_softmax, "log_softmax", empty);
  return out;
}

void ExpectAccurate(const Problem &problem, const Outputs &outputs) {
  const reference::LossInputs inputs = problem.Inputs();
  const reference::Losses want = reference::EvaluateLosses(inputs);
  WorstByOutput worst;
  EXPECT_EQ(outputs.Judge(inputs, want, true, &worst), "") << Describe(problem);

  Worst logsumexp, softmax, log_softmax;
  for (int64_t i = 0; i < problem.rows; ++i) {
    const reference::Row &row = want.rows[static_cast<size_t>(i)].row();
    const Value lse = row.LogSumExp();
    logsumexp.Add(reference::ErrorInUlp(outputs.logsumexp.dtype(), outputs.logsumexp.row(0), i, lse),
                  outputs.logsumexp.Get(0, i), outputs.logsumexp.GetBits(0, i), 0, i, lse);
    for (int64_t j = 0; j < problem.cols; ++j) {
      softmax.Add(outputs.softmax, i, j, row.Softmax(j));
      log_softmax.Add(outputs.log_softmax, i, j, row.LogSoftmax(j));
    }
  }
  EXPECT_LE(logsumexp.error().ulp, kLseUlp) << "logsumexp" << logsumexp.error().where << Describe(problem);
  EXPECT_LE(softmax.error().ulp, kSoftmaxUlp) << "softmax" << softmax.error().where << Describe(problem);
  EXPECT_LE(log_softmax.error().ulp, kLogSoftmaxUlp) << "log_softmax" << log_softmax.error().where << Describe(problem);

  const std::string arithmetic = NameOf(ArithmeticType(problem.dtype));
  worst["logsumexp " + arithmetic] = logsumexp.error();
  worst["softmax " + arithmetic] = softmax.error();
  worst["log_softmax " + arithmetic] = log_softmax.error();
  for (const auto &[output, error] : worst) {
    WorstError &record = AllWorst()[output];
    if (error.ulp > record.ulp) record = {error.ulp, error.where + Describe(problem)};
  }
}

void RunAndExpectAccurate(const Problem &problem) { ExpectAccurate(problem, RunAll(problem)); }

std::string WorstErrors() {
  std::string text;
  for (const auto &[output, error] : AllWorst()) text += "worst " + output + ": " + error.where + "\n";
  return text;
}

}  // namespace xent::test
