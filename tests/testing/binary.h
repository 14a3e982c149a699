// A binary cross-entropy call with its tensors, for tests of kernels and of the public API: inputs of any dtype and
// layout between poison, outputs that show what was written, and the oracle's verdict on all of it.
#ifndef XENT_TESTS_TESTING_BINARY_H_
#define XENT_TESTS_TESTING_BINARY_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "reference/binary.h"
#include "testing/bounds.h"
#include "testing/data.h"
#include "testing/exec.h"
#include "xent/xent.h"

namespace xent::test {

enum class Pass { kForward, kForwardBackward, kBackward };
inline constexpr Pass kPasses[] = {Pass::kForward, Pass::kForwardBackward, Pass::kBackward};

// The worst errors, in ULP.
struct WorstBinary {
  double loss = 0, grad = 0, target_grad = 0;
  std::string where;  // what comes nearest to its bound, or is furthest beyond it
};

class Binary {
 public:
  // `pad` more elements than needed between rows (or blocks), of each matrix another number of them.
  Binary(xent_dtype dtype, xent_dtype targets_dtype, int64_t rows, int64_t cols, int64_t inner = 0, int64_t pad = 0,
         int64_t misalign = 0);

  // Element (row, column) of a matrix in the call's layout.
  double Get(const Matrix &matrix, int64_t row, int64_t col) const;
  void Set(Matrix &matrix, int64_t row, int64_t col, double value) const;
  uint64_t GetBits(const Matrix &matrix, int64_t row, int64_t col) const;
  // A matrix of the call's layout.
  Matrix Make(xent_dtype type, int64_t pad = 0) const;
  // One of the arithmetic type with the values given.
  Matrix Vector(const std::vector<double> &values) const;

  // Bell-shaped logits (or probabilities) and targets, a third of them hard.
  void FillNormal(uint64_t seed, double deviation);
  // Weights of all four kinds, and upstream gradients of the elements.
  void FillWeights(uint64_t seed, bool negative = false);

  xent_binary_cross_entropy Args(Pass pass);
  xent_status Run(Pass pass);
  void MustRun(Pass pass);

  xent_dtype Float() const { return reference::ArithmeticType(dtype); }
  long double Denominator() const;
  reference::BinaryElement Element(int64_t row, int64_t col) const;
  // Everything that the last pass wrote against the oracle.
  WorstBinary Judge() const;
  void ExpectAccurate() const;
  ::testing::AssertionResult PaddingIntact() const;
  // Whether no output holds anything but poison.
  ::testing::AssertionResult OutputsUntouched() const;

  bool TakesProbabilities() const { return options.input == XENT_BINARY_PROBABILITIES; }
  bool IsFocal() const { return options.focal_gamma != 0 || options.focal_alpha >= 0; }

  xent_dtype dtype, targets_dtype;
  int64_t rows, cols, inner;
  Matrix x, y;
  std::optional<Matrix> pos_weight, class_weights, row_weights, element_weights, upstream;
  xent_upstream_kind upstream_kind = XENT_UPSTREAM_SCALAR;
  xent_binary_cross_entropy_options options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
  xent_exec exec = kSerial;
  bool in_place = false;
  bool want_grad = true, want_target_grad = true, want_element_losses = true, want_reduced_loss = true;

  Matrix element_losses, reduced_loss, grad, target_grad;
  xent_error error = XENT_ERROR_INIT;

 private:
  int64_t d() const { return inner > 1 ? inner : 1; }
  const Matrix &Grad() const { return in_place ? x : grad; }

  Pass last_ = Pass::kForward;
  std::vector<double> original_x_;  // what a gradient in place overwrites
};

// The first output in which two calls of one shape differ, bit by bit, "" if none.
std::string FirstDifference(const Binary &a, const Binary &b);

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_BINARY_H_
