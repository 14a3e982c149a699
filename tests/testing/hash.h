// A hash of a matrix's elements, bit by bit (FNV-1a, 64 bits), for files that hold the bits of results.
#ifndef XENT_TESTS_TESTING_HASH_H_
#define XENT_TESTS_TESTING_HASH_H_

#include <cstdint>
#include <cstdio>
#include <string>

#include "testing/data.h"

namespace xent::test {

class Hash {
 public:
  explicit Hash(const Matrix &m) {
    for (int64_t i = 0; i < m.rows(); ++i) {
      for (int64_t j = 0; j < m.cols(); ++j) {
        const uint64_t bits = m.GetBits(i, j);
        for (int64_t k = 0; k < m.Bytes(); ++k) state_ = (state_ ^ ((bits >> (8 * k)) & 0xff)) * 0x100000001b3u;
      }
    }
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
