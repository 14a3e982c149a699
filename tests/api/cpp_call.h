// For tests of xent.hpp: its views and spans over the matrices of the tests, and what a refused call must look like.
#ifndef XENT_TESTS_API_CPP_CALL_H_
#define XENT_TESTS_API_CPP_CALL_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "testing/assertions.h"
#include "testing/data.h"
#include "testing/loss_call.h"
#include "testing/tensor.h"
#include "xent/xent.hpp"

namespace xent::test {

template <class T>
constexpr xent_dtype kDtypeOf = std::is_same_v<T, float>              ? XENT_F32
                                : std::is_same_v<T, double>           ? XENT_F64
                                : std::is_same_v<T, ::xent::bfloat16> ? XENT_BF16
                                                                      : XENT_F16;

template <class T>
MatrixView<T> View(Matrix &matrix) {
  EXPECT_EQ(matrix.dtype(), kDtypeOf<T>);
  return {static_cast<T *>(matrix.data()), matrix.rows(), matrix.cols(), matrix.stride()};
}

// The first row.
template <class T>
std::span<T> Span(Matrix &matrix) {
  EXPECT_EQ(matrix.dtype(), kDtypeOf<T>);
  return {static_cast<T *>(matrix.data()), static_cast<size_t>(matrix.cols())};
}

template <class T>
T *Scalar(Matrix &matrix) {
  return Span<T>(matrix).data();
}

// A matrix of bell-shaped numbers, or of numbers in [0, 1).
inline Matrix Normal(xent_dtype dtype, int64_t rows, int64_t cols, int64_t stride, uint64_t seed,
                     double deviation = 4) {
  Matrix matrix(dtype, rows, cols, stride);
  Random random(seed);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) matrix.SetInRange(i, j, random.Normal(deviation));
  }
  return matrix;
}
inline Matrix Uniform(xent_dtype dtype, int64_t rows, int64_t cols, int64_t stride, uint64_t seed) {
  Matrix matrix(dtype, rows, cols, stride);
  Random random(seed);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) matrix.Set(i, j, random.Uniform());
  }
  return matrix;
}

inline ::testing::AssertionResult Refused(const Status &status, const char *word) {
  if (status.ok() || status.code() != Code::kInvalidArgument) {
    return ::testing::AssertionFailure() << "code " << static_cast<int>(status.code()) << " " << status.message();
  }
  if (std::string(status.message()).find(word) == std::string::npos) {
    return ::testing::AssertionFailure() << "no '" << word << "' in: " << status.message();
  }
  return ::testing::AssertionSuccess();
}

// Outputs by name, to be compared bit by bit.
class Snapshot {
 public:
  void Add(std::string name, const Matrix &matrix) {
    std::string bytes;
    for (int64_t i = 0; i < matrix.rows(); ++i) {
      bytes.append(static_cast<const char *>(matrix.row(i)), static_cast<size_t>(matrix.cols() * matrix.Bytes()));
    }
    EXPECT_TRUE(matrix.PaddingIntact()) << name;
    parts_.emplace_back(std::move(name), std::move(bytes));
  }
  template <class T>
  void Add(std::string name, std::span<T> values) {
    const auto bytes = std::as_bytes(values);
    parts_.emplace_back(std::move(name), std::string(reinterpret_cast<const char *>(bytes.data()), bytes.size()));
  }

  // The names of those that differ, each followed by a space.
  std::string Differences(const Snapshot &other) const {
    if (parts_.size() != other.parts_.size()) return "number of outputs";
    std::string names;
    for (size_t i = 0; i < parts_.size(); ++i) {
      if (parts_[i] != other.parts_[i]) names += parts_[i].first + " ";
    }
    return names;
  }

 private:
  std::vector<std::pair<std::string, std::string>> parts_;
};

// One thing to say in C and in C++, which must change some output. The tensors are those of the call.
template <class Tensors, class CArgs, class COptions, class CppArgs, class CppOptions>
struct Case {
  const char *name;
  std::function<void(Tensors &, CArgs &, COptions &)> c;
  std::function<void(Tensors &, CppArgs &, CppOptions &)> cpp;
};

}  // namespace xent::test

#endif  // XENT_TESTS_API_CPP_CALL_H_
