// Runs every kernel of the row functions over one problem, in every way that must give the same bits, and judges the
// results against the reference within the bounds of semantics.md ("Accuracy").
#ifndef XENT_TESTS_TESTING_CHECK_H_
#define XENT_TESTS_TESTING_CHECK_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "testing/data.h"
#include "xent/xent.h"

namespace xent::test {

// Everything that a cross-entropy call takes. `upstream` is empty (ONE), one value (SCALAR) or one a row (ROWS).
struct Problem {
  std::string name;  // enough to find the inputs again
  Matrix logits;
  std::vector<int64_t> targets;
  xent_options options = XENT_OPTIONS_INIT;
  bool upstream_per_row = false;
  std::vector<double> upstream = {};

  int64_t rows() const { return logits.rows(); }
  int64_t cols() const { return logits.cols(); }
  xent_dtype dtype() const { return logits.dtype(); }
};

// Everything that comes out. One-dimensional outputs are matrices of one row.
struct Outputs {
  Matrix losses, lse, loss, grad;
  double perplexity = 0;
  int64_t live_rows = 0;
  Matrix logsumexp, softmax, log_softmax;
};

// A problem from its logits, element by element (finite values beyond the dtype's range become its largest number),
// and its targets. `stride` 0 means cols.
template <typename LogitOf, typename TargetOf>
Problem MakeProblem(std::string name, xent_dtype dtype, int64_t rows, int64_t cols, LogitOf &&logit_of,
                    TargetOf &&target_of, int64_t stride = 0, int64_t misalign = 0) {
  Problem problem;
  problem.name = std::move(name);
  problem.logits = Matrix(dtype, rows, cols, stride, misalign);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) problem.logits.SetInRange(i, j, logit_of(i, j));
    problem.targets.push_back(target_of(i));
  }
  return problem;
}

// What differs first, bit by bit, "" if nothing does.
std::string FirstDifference(const Outputs &a, const Outputs &b);

inline constexpr xent_exec kSerial = {sizeof(xent_exec), XENT_EXEC_SERIAL, 0, nullptr, nullptr};

// Calls forward, forward+backward (out of place, in place), backward from the record, logsumexp, softmax and
// log_softmax (both also in place), and xent_reduce. Expects success everywhere, the same bits from all ways that lead
// to one output, and every byte around the outputs untouched. A null `exec` is the library's default. Matrices of
// outputs get the stride and the misalignment that the problem's logits have.
Outputs RunAll(const Problem &problem, const xent_exec *exec = &kSerial);

// Judges everything against the reference.
void ExpectAccurate(const Problem &problem, const Outputs &outputs);

// RunAll on the calling thread, then ExpectAccurate.
void RunAndExpectAccurate(const Problem &problem);

// The worst errors that ExpectAccurate has seen in this process, one line per output; "" if it has seen none.
std::string WorstErrors();

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_CHECK_H_
