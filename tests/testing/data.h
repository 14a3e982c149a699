// Inputs of the tests: an integer random generator, matrices of any dtype between guard words, and bit comparison.
// Header only, without the library's internals, so that API tests can use it too.
#ifndef XENT_TESTS_TESTING_DATA_H_
#define XENT_TESTS_TESTING_DATA_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "reference/number.h"
#include "xent/xent.h"

namespace xent::test {

inline constexpr xent_dtype kDtypes[] = {XENT_F32, XENT_F64, XENT_BF16, XENT_F16};

// A number of each dtype for seeds. Golden hashes depend on it.
constexpr int64_t SeedOf(xent_dtype dtype) {
  switch (dtype) {
    case XENT_F32:
      return 1;
    case XENT_F64:
      return 2;
    case XENT_BF16:
      return 3;
    default:
      return 4;
  }
}

// splitmix64 (Steele, Lea & Flood 2014): the same numbers everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // In [0, n).
  int64_t Below(int64_t n) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(n)); }
  // A multiple of 2^-40 in [0, 1).
  double Uniform() { return static_cast<double>(Next() >> 24) * 0x1p-40; }
  // Bell-shaped around 0 (the sum of eight uniform integers), standard deviation 0.82 * deviation. The product is exact
  // for a `deviation` that is a small integer or a power of two, so that no compiler's contraction changes a bit of it.
  double Normal(double deviation) {
    int64_t sum = -(int64_t{4} << 44);
    for (int k = 0; k < 8; ++k) sum += static_cast<int64_t>(Next() >> 20);
    return static_cast<double>(sum) * 0x1p-44 * deviation;
  }

 private:
  uint64_t state_;
};

// A matrix of one dtype whose every byte outside the rows (before, between and after them) is poison, and whose
// elements are poison too until they are set: signalling NaN of a payload that no kernel makes. `misalign` shifts the
// first element by so many elements from a 64-byte boundary.
class Matrix {
 public:
  Matrix() = default;
  Matrix(xent_dtype dtype, int64_t rows, int64_t cols, int64_t stride = 0, int64_t misalign = 0)
      : dtype_(dtype), rows_(rows), cols_(cols), stride_(stride == 0 ? std::max<int64_t>(cols, 1) : stride) {
    const int64_t span = rows == 0 ? 0 : (rows - 1) * stride_ + cols;
    elements_ = 2 * kGuard + misalign + span + 64;
    storage_.resize(static_cast<size_t>(elements_ * Bytes() + 64));
    first_ = kGuard + misalign;
    reference::StoreBits(dtype_, base(), 0, PoisonBits());
    const int64_t bytes = elements_ * Bytes();
    for (int64_t done = Bytes(); done < bytes; done *= 2) {
      std::memcpy(base() + done, base(), static_cast<size_t>(std::min(done, bytes - done)));
    }
  }
  // The alignment of a copy's storage may differ from its source's, so copying copies the elements.
  Matrix(const Matrix &other) { *this = other; }
  Matrix &operator=(const Matrix &other) {
    if (this == &other) return *this;
    dtype_ = other.dtype_;
    rows_ = other.rows_;
    cols_ = other.cols_;
    stride_ = other.stride_;
    first_ = other.first_;
    elements_ = other.elements_;
    storage_.resize(other.storage_.size());
    if (elements_ > 0) std::memcpy(base(), other.base(), static_cast<size_t>(elements_ * Bytes()));
    return *this;
  }

  xent_dtype dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  int64_t stride() const { return stride_; }
  int64_t Bytes() const { return reference::FormatOf(dtype_).bytes; }
  void *data() { return base() + first_ * Bytes(); }
  const void *data() const { return base() + first_ * Bytes(); }
  void *row(int64_t i) { return base() + (first_ + i * stride_) * Bytes(); }
  const void *row(int64_t i) const { return base() + (first_ + i * stride_) * Bytes(); }

  uint64_t GetBits(int64_t i, int64_t j) const { return reference::LoadBits(dtype_, row(i), j); }
  void SetBits(int64_t i, int64_t j, uint64_t bits) { reference::StoreBits(dtype_, row(i), j, bits); }
  double Get(int64_t i, int64_t j) const { return reference::Load(dtype_, row(i), j); }
  void Set(int64_t i, int64_t j, double value) { reference::Store(dtype_, row(i), j, value); }
  // Set, with finite values beyond the dtype's range pulled to its largest number.
  void SetInRange(int64_t i, int64_t j, double value) {
    const double largest = reference::LargestFinite(dtype_);
    if (std::isfinite(value)) value = std::fmax(-largest, std::fmin(largest, value));
    Set(i, j, value);
  }

  bool PaddingIntact() const {
    if (rows_ == 0) return IsPoison(0, elements_);
    bool intact = IsPoison(0, first_);
    for (int64_t i = 0; i + 1 < rows_; ++i) {
      intact = intact && IsPoison(first_ + i * stride_ + cols_, first_ + (i + 1) * stride_);
    }
    return intact && IsPoison(first_ + (rows_ - 1) * stride_ + cols_, elements_);
  }

  uint64_t PoisonBits() const { return reference::InfinityBits(dtype_) | reference::SignBit(dtype_) | 0x35; }

 private:
  static constexpr int64_t kGuard = 64;

  bool IsPoison(int64_t begin, int64_t end) const {
    for (int64_t k = begin; k < end; ++k) {
      if (reference::LoadBits(dtype_, base(), k) != PoisonBits()) return false;
    }
    return true;
  }

  char *base() { return storage_.data() + ((64 - (reinterpret_cast<uintptr_t>(storage_.data()) & 63)) & 63); }
  const char *base() const { return const_cast<Matrix *>(this)->base(); }

  xent_dtype dtype_ = XENT_F32;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  int64_t stride_ = 1;
  int64_t first_ = 0;
  int64_t elements_ = 0;
  std::vector<char> storage_;
};

// The first element in which two matrices of one shape and dtype differ bit by bit, told with both values; "" if none.
inline std::string FirstDifference(const Matrix &a, const Matrix &b) {
  if (a.rows() != b.rows() || a.cols() != b.cols() || a.dtype() != b.dtype()) return "shapes differ";
  for (int64_t i = 0; i < a.rows(); ++i) {
    if (std::memcmp(a.row(i), b.row(i), static_cast<size_t>(a.cols() * a.Bytes())) == 0) continue;
    for (int64_t j = 0; j < a.cols(); ++j) {
      if (a.GetBits(i, j) == b.GetBits(i, j)) continue;
      char text[160];
      std::snprintf(text, sizeof(text), "[%lld,%lld] %.17g (0x%llx) and %.17g (0x%llx)", static_cast<long long>(i),
                    static_cast<long long>(j), a.Get(i, j), static_cast<unsigned long long>(a.GetBits(i, j)),
                    b.Get(i, j), static_cast<unsigned long long>(b.GetBits(i, j)));
      return text;
    }
  }
  return "";
}

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_DATA_H_
