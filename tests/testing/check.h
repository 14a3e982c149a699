// Runs a cross-entropy call (loss_call.h) and the row functions over one problem, in every way that must give the same
// bits, and judges the results against the reference within the bounds of semantics.md ("Accuracy").
#ifndef XENT_TESTS_TESTING_CHECK_H_
#define XENT_TESTS_TESTING_CHECK_H_

#include <cstdint>
#include <string>
#include <utility>

#include "testing/data.h"
#include "testing/exec.h"
#include "testing/loss_call.h"
#include "testing/tensor.h"
#include "xent/xent.h"

namespace xent::test {

// A call without options that transform its logits, and a name that finds its inputs again.
struct Problem : LossCall {
  using LossCall::LossCall;

  std::string name;
};

// What came out of everything: a call that has run, and the row functions' results.
struct Outputs : LossCall {
  Matrix logsumexp;
  Tensor softmax, log_softmax;
};

// A problem from its logits, element by element (finite values beyond the dtype's range become its largest number),
// and its targets. `padding` elements follow each row.
template <typename LogitOf, typename TargetOf>
Problem MakeProblem(std::string name, xent_dtype dtype, int64_t rows, int64_t cols, LogitOf &&logit_of,
                    TargetOf &&target_of, int64_t padding = 0, int64_t misalign = 0) {
  Problem problem(dtype, rows, cols, 0, padding, misalign);
  problem.name = std::move(name);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) problem.logits.Set(i, j, logit_of(i, j));
    problem.targets[static_cast<size_t>(i)] = target_of(i);
  }
  return problem;
}

// What differs first, bit by bit, "" if nothing does.
std::string FirstDifference(const Outputs &a, const Outputs &b);

// Calls forward, forward+backward (out of place, in place), backward from the record (both), xent_reduce, logsumexp,
// softmax and log_softmax (both also in place). Expects success everywhere, the same bits from all ways that lead to
// one output, and every byte around the outputs untouched. Matrices of outputs get the stride and the misalignment
// that the problem's logits have.
Outputs RunAll(const Problem &problem, const xent_exec &exec = kSerial);

// Judges everything against the reference.
void ExpectAccurate(const Problem &problem, const Outputs &outputs);

// RunAll on the calling thread, then ExpectAccurate.
void RunAndExpectAccurate(const Problem &problem);

// The worst errors that ExpectAccurate has seen in this process, one line per output; "" if it has seen none.
std::string WorstErrors();

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_CHECK_H_
