// Execution policies by name.
#ifndef XENT_TESTS_TESTING_EXEC_H_
#define XENT_TESTS_TESTING_EXEC_H_

#include <cstddef>
#include <cstdint>

#include "xent/xent.h"

namespace xent::test {

// The calling thread alone.
inline constexpr xent_exec kSerial = {
    .struct_size = sizeof(xent_exec), .parallel_for = nullptr, .ctx = nullptr, .threads = 1, .reserved = 0};

// The library's own team, of `threads`.
constexpr xent_exec TeamOf(int32_t threads) {
  return {.struct_size = sizeof(xent_exec), .parallel_for = nullptr, .ctx = nullptr, .threads = threads, .reserved = 0};
}

// The caller's pool, called with `ctx`.
constexpr xent_exec PoolOf(xent_parallel_for parallel_for, void *ctx, int32_t threads) {
  return {
      .struct_size = sizeof(xent_exec), .parallel_for = parallel_for, .ctx = ctx, .threads = threads, .reserved = 0};
}

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_EXEC_H_
