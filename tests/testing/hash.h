// A hash of elements, bit by bit (FNV-1a, 64 bits, lowest byte first), for files that hold the bits of results.
#ifndef XENT_TESTS_TESTING_HASH_H_
#define XENT_TESTS_TESTING_HASH_H_

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "testing/data.h"

namespace xent::test {

class Hash {
 public:
  Hash() = default;
  explicit Hash(const Matrix &m) { Add(m); }
  template <typename T>
  explicit Hash(const std::vector<T> &integers) {
    for (const T k : integers) Add(static_cast<uint64_t>(k), sizeof(T));
  }

  void Add(const Matrix &m) {
    for (int64_t i = 0; i < m.rows(); ++i) {
      for (int64_t j = 0; j < m.cols(); ++j) Add(m.GetBits(i, j), m.Bytes());
    }
  }
  void Add(uint64_t bits, int64_t bytes) {
    for (int64_t k = 0; k < bytes; ++k) state_ = (state_ ^ ((bits >> (8 * k)) & 0xff)) * 0x100000001b3u;
  }
  std::string Text() const {
    char text[20];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(state_));
    return text;
  }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_HASH_H_
