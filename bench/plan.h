// The plan by which the library computes an operation.
#ifndef XENT_BENCH_PLAN_H_
#define XENT_BENCH_PLAN_H_

#include <string>

#include "bench/operations.h"
#include "bench/problem.h"

namespace xent_bench {

// Returns the plan of the library's call in words (src/rows/plan.h). Empty where no plan is made: of array functions,
// reductions of stored losses, check_logits and yardsticks.
std::string PlanOf(Op op, const Problem &problem, int threads);

}  // namespace xent_bench

#endif  // XENT_BENCH_PLAN_H_
