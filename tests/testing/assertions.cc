// Assertions on elements and rows; see assertions.h.
#include "testing/assertions.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <sstream>

#include "reference/rows.h"

namespace xent::test {
namespace {

std::string Place(xent_dtype dtype, int64_t row, int64_t col, int64_t rows, int64_t cols) {
  return std::string(reference::NameOf(dtype)) + " [" + std::to_string(row) + "," + std::to_string(col) + "] of " +
         std::to_string(rows) + "x" + std::to_string(cols);
}

template <typename M>
::testing::AssertionResult ElementIs(const M &matrix, int64_t row, int64_t col, double value) {
  const uint64_t want = reference::Encode(matrix.dtype(), value);
  const uint64_t got = matrix.GetBits(row, col);
  if (got == want) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << Place(matrix.dtype(), row, col, matrix.rows(), matrix.cols()) << ": got "
                                       << matrix.Get(row, col) << " (0x" << std::hex << got << "), want " << value
                                       << " (0x" << want << ")";
}

template <typename M>
::testing::AssertionResult EachIs(const M &matrix, int64_t row, double value) {
  for (int64_t j = 0; j < matrix.cols(); ++j) {
    const auto result = ElementIs(matrix, row, j, value);
    if (!result) return result;
  }
  return ::testing::AssertionSuccess();
}

template <typename M>
::testing::AssertionResult ErrorIsWithin(const M &matrix, int64_t row, int64_t col, reference::Value want, double error,
                                         double ulp) {
  if (error <= ulp) return ::testing::AssertionSuccess();
  char text[200];
  std::snprintf(text, sizeof(text), "got %.17g, want %.21Lg, error %.3f ULP at %.6Lg; at most %.0f",
                matrix.Get(row, col), want.exact, error, want.scale, ulp);
  return ::testing::AssertionFailure() << Place(matrix.dtype(), row, col, matrix.rows(), matrix.cols()) << ": " << text;
}

template <typename M>
::testing::AssertionResult AllUntouched(const M &matrix, uint64_t poison) {
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    for (int64_t j = 0; j < matrix.cols(); ++j) {
      if (matrix.GetBits(i, j) == poison) continue;
      return ::testing::AssertionFailure()
             << Place(matrix.dtype(), i, j, matrix.rows(), matrix.cols()) << " is " << matrix.Get(i, j);
    }
  }
  return ::testing::AssertionSuccess();
}

bool HasWord(const std::string &text, const std::string &word) {
  const std::string inner = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_";
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    const size_t end = at + word.size();
    const bool starts = at == 0 || (inner + ".-").find(text[at - 1]) == std::string::npos;
    const bool ends = end == text.size() || inner.find(text[end]) == std::string::npos;
    if (starts && ends) return true;
  }
  return false;
}

}  // namespace

::testing::AssertionResult Is(const Matrix &matrix, int64_t row, int64_t col, double value) {
  return ElementIs(matrix, row, col, value);
}
::testing::AssertionResult Is(const Tensor &tensor, int64_t row, int64_t col, double value) {
  return ElementIs(tensor, row, col, value);
}
::testing::AssertionResult RowIs(const Matrix &matrix, int64_t row, double value) { return EachIs(matrix, row, value); }
::testing::AssertionResult RowIs(const Tensor &tensor, int64_t row, double value) { return EachIs(tensor, row, value); }

::testing::AssertionResult Within(const Matrix &matrix, int64_t row, int64_t col, reference::Value want, double ulp) {
  return ErrorIsWithin(matrix, row, col, want, reference::ErrorInUlp(matrix.dtype(), matrix.row(row), col, want), ulp);
}
::testing::AssertionResult Within(const Tensor &tensor, int64_t row, int64_t col, reference::Value want, double ulp) {
  const double error = tensor.ErrorInUlp(reference::ArithmeticType(tensor.dtype()), row, col, want);
  return ErrorIsWithin(tensor, row, col, want, error, ulp);
}

::testing::AssertionResult Untouched(const Matrix &matrix) { return AllUntouched(matrix, matrix.PoisonBits()); }
::testing::AssertionResult Untouched(const Tensor &tensor) {
  return AllUntouched(tensor, tensor.matrix().PoisonBits());
}

::testing::AssertionResult Tells(const xent_error &error, xent_status status, const Position &position,
                                 const std::vector<std::string> &words) {
  const std::string message(error.message, strnlen(error.message, sizeof(error.message)));
  if (message.size() == sizeof(error.message)) return ::testing::AssertionFailure() << "the message has no end";
  const auto wrong = [&](const char *what, auto got, auto want) {
    return ::testing::AssertionFailure() << what << " is " << got << ", want " << want << "; message: " << message;
  };
  if (error.status != status) return wrong("error.status", error.status, status);
  if (message.empty()) return ::testing::AssertionFailure() << "the message is empty";
  if (error.row != position.row) return wrong("error.row", error.row, position.row);
  if (error.column != position.column) return wrong("error.column", error.column, position.column);
  const bool same_value = std::isnan(position.value) ? std::isnan(error.value) : error.value == position.value;
  if (!same_value) return wrong("error.value", error.value, position.value);
  for (const std::string &alternatives : words) {
    std::istringstream in(alternatives);
    bool found = false;
    for (std::string word; std::getline(in, word, '|');) found = found || HasWord(message, word);
    if (!found) return ::testing::AssertionFailure() << "no '" << alternatives << "' in: " << message;
  }
  return ::testing::AssertionSuccess();
}

std::vector<double> DecodeRow(const Matrix &matrix, int64_t row) {
  return reference::DecodeRows(matrix.dtype(), matrix.row(row), 1, matrix.cols(), 0);
}
std::vector<double> DecodeRow(const Tensor &tensor, int64_t row) {
  std::vector<double> values;
  for (int64_t c = 0; c < tensor.cols(); ++c) values.push_back(tensor.Get(row, c));
  return values;
}

Matrix MatrixOf(xent_dtype dtype, const std::vector<std::vector<double>> &values, int64_t stride) {
  const int64_t cols = values.empty() ? 0 : static_cast<int64_t>(values[0].size());
  Matrix matrix(dtype, static_cast<int64_t>(values.size()), cols, stride);
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    for (int64_t j = 0; j < cols; ++j) matrix.Set(i, j, values[static_cast<size_t>(i)].at(static_cast<size_t>(j)));
  }
  return matrix;
}

}  // namespace xent::test
