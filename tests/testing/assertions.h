// Assertions on elements and rows of matrices and tensors, which tell what was expected where.
#ifndef XENT_TESTS_TESTING_ASSERTIONS_H_
#define XENT_TESTS_TESTING_ASSERTIONS_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "testing/data.h"
#include "testing/tensor.h"
#include "xent/xent.h"

namespace xent::test {

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Whether the element has exactly the bits of `value` in its dtype: sign of zero and canonical NaN included.
::testing::AssertionResult Is(const Matrix &matrix, int64_t row, int64_t col, double value);
::testing::AssertionResult Is(const Tensor &tensor, int64_t row, int64_t col, double value);
// Whether every element of the row is so.
::testing::AssertionResult RowIs(const Matrix &matrix, int64_t row, double value);
::testing::AssertionResult RowIs(const Tensor &tensor, int64_t row, double value);
// Whether the element is within `ulp` of the reference, counted as semantics.md does.
::testing::AssertionResult Within(const Matrix &matrix, int64_t row, int64_t col, reference::Value want, double ulp);
::testing::AssertionResult Within(const Tensor &tensor, int64_t row, int64_t col, reference::Value want, double ulp);
// Whether no element has been written since the matrix was made.
::testing::AssertionResult Untouched(const Matrix &matrix);
::testing::AssertionResult Untouched(const Tensor &tensor);

// Whether `error` has the status, row, column (each -1: none) and value (0: none) given, and its message ends inside of
// its array and holds each of the words with nothing of a longer name or number around it; "a|b" is one or the other.
struct Position {
  int64_t row = -1;
  int64_t column = -1;
  double value = 0;
};
::testing::AssertionResult Tells(const xent_error &error, xent_status status, const Position &position,
                                 const std::vector<std::string> &words);

// A row, decoded.
std::vector<double> DecodeRow(const Matrix &matrix, int64_t row);
std::vector<double> DecodeRow(const Tensor &tensor, int64_t row);
Matrix MatrixOf(xent_dtype dtype, const std::vector<std::vector<double>> &values, int64_t stride = 0);

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_ASSERTIONS_H_
