// A matrix in the layouts that the calls take: row-major, or the class dimension in the middle.
#ifndef XENT_TESTS_TESTING_TENSOR_H_
#define XENT_TESTS_TESTING_TENSOR_H_

#include <algorithm>
#include <cstdint>
#include <string>

#include "testing/data.h"
#include "xent/xent.h"

namespace xent::test {

// A matrix as the calls take it, with its stride. Inputs are never written.
inline xent_matrix View(const Matrix &matrix) {
  return {const_cast<void *>(matrix.data()), matrix.stride(), matrix.dtype(), 0};
}

// A matrix [rows, cols] in one of the layouts of xent.h: inner <= 1 is row-major, else the class dimension lies in the
// middle of [rows / inner, cols, inner]. `padding` elements follow each row (each group of `inner` rows).
class Tensor {
 public:
  Tensor() = default;
  Tensor(xent_dtype dtype, int64_t rows, int64_t cols, int64_t inner = 0, int64_t padding = 0, int64_t misalign = 0)
      : rows_(rows), cols_(cols), inner_(std::max<int64_t>(inner, 1)), padding_(padding) {
    matrix_ = Matrix(dtype, rows / inner_, cols * inner_, cols * inner_ + padding, misalign);
  }

  xent_dtype dtype() const { return matrix_.dtype(); }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t inner() const { return inner_; }
  void *data() { return matrix_.data(); }
  const void *data() const { return matrix_.data(); }
  // As the calls take it: 0 where there is no padding.
  int64_t stride() const { return padding_ == 0 ? 0 : matrix_.stride(); }
  double Get(int64_t i, int64_t c) const { return matrix_.Get(i / inner_, At(i, c)); }
  uint64_t GetBits(int64_t i, int64_t c) const { return matrix_.GetBits(i / inner_, At(i, c)); }
  void Set(int64_t i, int64_t c, double value) { matrix_.SetInRange(i / inner_, At(i, c), value); }
  void SetBits(int64_t i, int64_t c, uint64_t bits) { matrix_.SetBits(i / inner_, At(i, c), bits); }
  // `arithmetic` is the type whose ULP count.
  double ErrorInUlp(xent_dtype arithmetic, int64_t i, int64_t c, reference::Value want) const {
    return reference::ErrorInUlp(matrix_.dtype(), arithmetic, matrix_.row(i / inner_), At(i, c), want);
  }
  const Matrix &matrix() const { return matrix_; }

 private:
  int64_t At(int64_t i, int64_t c) const { return c * inner_ + i % inner_; }

  int64_t rows_ = 0;
  int64_t cols_ = 0;
  int64_t inner_ = 1;
  int64_t padding_ = 0;
  Matrix matrix_;
};

// A tensor as the calls take it; one that holds nothing is absent.
inline xent_matrix View(const Tensor &tensor) {
  return {const_cast<void *>(tensor.data()), tensor.stride(), tensor.dtype(), 0};
}

// The first element in which two tensors of one shape and layout differ bit by bit; "" if none.
inline std::string FirstDifference(const Tensor &a, const Tensor &b) {
  if (a.inner() != b.inner()) return "layouts differ";
  return FirstDifference(a.matrix(), b.matrix());
}

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_TENSOR_H_
