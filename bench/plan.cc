#include "bench/plan.h"

#include <stdexcept>

#include "api/check_call.h"
#include "rows/binary.h"
#include "rows/call.h"
#include "rows/plan.h"
#include "testing/plan_words.h"

namespace xent_bench {
namespace {

using xent::internal::Mode;
using xent::internal::Plan;
using xent::test::Words;

Plan CrossEntropyPlan(Op op, const Problem &problem, const xent_exec &exec) {
  CrossEntropyCall call;
  FillCall(op, problem, exec.threads, 0, &call);
  const Mode mode = op == Op::kBackward     ? Mode::kBackward
                    : IsForwardBackward(op) ? Mode::kForwardBackward
                                            : Mode::kForward;
  xent::internal::Call checked;
  xent_error error = XENT_ERROR_INIT;
  const xent_status status =
      xent::internal::CheckCall({.args = &call.args, .options = call.given_options(), .exec = &exec},
                                xent::internal::Step::kWhole, mode, &checked, nullptr, &error);
  if (status != XENT_OK) throw std::runtime_error(std::string("planning a call: ") + error.message);
  checked.Prepare();
  return checked.plan;
}

// `overlap` is what src/rows/row_functions.cc passes: softmax keeps exponentials in its output, where that is not of
// half precision.
Plan RowFunctionPlan(Op op, const Problem &problem, const xent_exec &exec) {
  const bool overlap = op == Op::kSoftmax && ElementBytes(problem.dtype) != 2;
  return xent::internal::MakePlan({problem.shape.rows, problem.shape.cols}, exec, overlap);
}

Plan BinaryPlan(const Problem &problem, const xent_exec &exec) {
  xent::internal::BinaryCall call = {};
  call.exec = exec;
  call.elements = problem.elements();
  return xent::internal::MakePlan(call);
}

}  // namespace

std::string PlanOf(Op op, const Problem &problem, int threads) {
  xent_exec exec = XENT_EXEC_INIT;
  exec.threads = threads;
  if (op <= Op::kBackward) return Words(CrossEntropyPlan(op, problem, exec));
  switch (op) {
    case Op::kSoftmax:
    case Op::kLogSoftmax:
    case Op::kLogSumExp:
    case Op::kExpSum:
    case Op::kSoftmaxBackward:
    case Op::kLogSoftmaxBackward:
      return Words(RowFunctionPlan(op, problem, exec));
    case Op::kBceForward:
    case Op::kBceForwardBackward:
      return Words(BinaryPlan(problem, exec));
    default:
      return "";
  }
}

}  // namespace xent_bench
