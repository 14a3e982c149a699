// A divergence call with its tensors, for tests of kernels and of the public API: inputs of any dtype and layout
// between poison, outputs made anew by each run, and the oracle's verdict on what was written.
#ifndef XENT_TESTS_TESTING_DIVERGENCE_CALL_H_
#define XENT_TESTS_TESTING_DIVERGENCE_CALL_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "reference/divergence.h"
#include "testing/bounds.h"
#include "testing/data.h"
#include "testing/exec.h"
#include "testing/loss_call.h"
#include "testing/tensor.h"
#include "xent/xent.h"

namespace xent::test {

inline constexpr xent_divergence_kind kDivergenceKinds[] = {XENT_DIVERGENCE_FORWARD_KL, XENT_DIVERGENCE_REVERSE_KL,
                                                            XENT_DIVERGENCE_JENSEN_SHANNON,
                                                            XENT_DIVERGENCE_CROSS_ENTROPY};
inline constexpr const char *kDivergenceNames[] = {"forward_kl", "reverse_kl", "jensen_shannon", "cross_entropy"};

struct DivergenceCall {
  using Rows = std::vector<std::vector<double>>;

  DivergenceCall(xent_dtype student_dtype, xent_dtype teacher_dtype, int64_t rows, int64_t cols, int64_t inner = 0,
                 int64_t padding = 0, int64_t misalign = 0);
  DivergenceCall(xent_dtype dtype, const Rows &student, const Rows &teacher, int64_t inner = 0);
  // Bell-shaped logits on both sides.
  void FillNormal(uint64_t seed, double deviation);

  xent_dtype Float() const { return reference::ArithmeticType(student.dtype()); }
  // A vector of the arithmetic type.
  Matrix Vector(const std::vector<double> &values) const;

  // What the call takes; outputs are made anew.
  xent_divergence Args(bool backward);
  xent_status Run(bool backward);
  void MustRun(bool backward);

  reference::Divergence Expected(int64_t row) const;
  // The worst errors, in ULP, of everything that the last run wrote: "row_losses", "reduced_loss", "grad".
  WorstByOutput Judge() const;
  static double BoundOf(const std::string &output);
  void ExpectAccurate() const;
  ::testing::AssertionResult OutputsUntouched() const;
  const Tensor &Grad() const { return in_place ? student : grad; }

  Tensor student, teacher;
  int64_t padding = 0, misalign = 0;
  std::optional<Matrix> row_weights, upstream;
  xent_upstream_kind upstream_kind = XENT_UPSTREAM_SCALAR;
  xent_divergence_options options = XENT_DIVERGENCE_OPTIONS_INIT;
  xent_exec exec = kSerial;
  bool in_place = false;

  Matrix row_losses, reduced_loss;
  Tensor grad;
  xent_error error = XENT_ERROR_INIT;

 private:
  std::vector<double> RowOf(const Tensor &tensor, int64_t row) const;

  bool backward_ = false;
  std::optional<Tensor> original_student_;  // what a gradient in place overwrites
};

// The first output in which two calls of one shape differ, bit by bit, "" if none.
std::string FirstDifference(const DivergenceCall &a, const DivergenceCall &b, bool backward);

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_DIVERGENCE_CALL_H_
