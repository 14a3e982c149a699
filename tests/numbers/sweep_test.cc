// exp, log and log1p of float32 within their bound on every target: a strided sweep over all bit patterns (NaN,
// subnormal and infinite ones among them), and every number near the places where the functions change their nature.
// The complete sweep is sweep_long_test.cc.
#include "testing/sweep.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <string>

#include "reference/functions.h"
#include "testing/bounds.h"
#include "testing/target.h"

namespace xent::test {
namespace {

using reference::Function;

class Sweep32 : public TargetTest {
 protected:
  static void ExpectWithinBound(Function function, uint64_t first, uint64_t end, uint64_t stride) {
    const SweepResult result = Sweep(function, first, end, stride);
    EXPECT_GT(result.visited, 0);
    EXPECT_LE(result.worst, kSweepBound) << result.Describe(function) << ", target " << GetParam();
    EXPECT_LE(result.exact, kArrayUlp) << result.Describe(function) << ", target " << GetParam();
    if (stride > 1) std::printf("%s, target %s\n", result.Describe(function).c_str(), GetParam().c_str());
  }

  // All floats within `radius` steps of x.
  static void Around(Function function, float x, uint64_t radius) {
    const uint64_t bits = std::bit_cast<uint32_t>(x);
    const uint64_t magnitude = bits & 0x7fffffff;
    ExpectWithinBound(function, bits - std::min(radius, magnitude), bits + radius, 1);
  }

  static void AroundPowersOfTwo(Function function) {
    for (int exponent = -149; exponent <= 127; ++exponent) {
      Around(function, std::ldexp(1.0f, exponent), 40);
      Around(function, -std::ldexp(1.0f, exponent), 40);
    }
  }
};
XENT_INSTANTIATE_TARGETS(Sweep32);

// A prime, so that the visited patterns meet all residues of the low bits.
constexpr uint64_t kStride = 251;
constexpr uint64_t kAll = uint64_t{1} << 32;

TEST_P(Sweep32, ExpStrided) { ExpectWithinBound(Function::kExp, 0, kAll, kStride); }
TEST_P(Sweep32, LogStrided) { ExpectWithinBound(Function::kLog, 0, kAll, kStride); }
TEST_P(Sweep32, Log1pStrided) { ExpectWithinBound(Function::kLog1p, 0, kAll, kStride); }

TEST_P(Sweep32, ExpAroundItsLimits) {
  AroundPowersOfTwo(Function::kExp);
  // Overflow, the smallest normal result, the last result that is not zero.
  for (const float x : {88.722839f, -87.336548f, -103.972084f, -103.278929f}) Around(Function::kExp, x, 20000);
  // The reduction's switches from one power of two to the next: odd multiples of ln(2)/2.
  for (int n = -207; n <= 257; n += 2) Around(Function::kExp, static_cast<float>(n * 0.34657359027997264), 30);
}

TEST_P(Sweep32, WhereTheCompleteSweepFoundMost) {
  // The strided sweep misses them. The row kernels' exponential is off by 1.0012 to 1.0115 ULP at the last four, and
  // nowhere else beyond 1.
  for (const uint32_t bits : {0xc0bb2813u, 0x407558d2u, 0xc10a3684u, 0x424925efu, 0xc27ad03au}) {
    Around(Function::kExp, std::bit_cast<float>(bits), 1000);
  }
  Around(Function::kLog, std::bit_cast<float>(0x3f3fe304u), 1000);
  Around(Function::kLog1p, std::bit_cast<float>(0xbe8019f3u), 1000);
}

TEST_P(Sweep32, LogAroundItsLimits) {
  AroundPowersOfTwo(Function::kLog);
  Around(Function::kLog, 1, 60000);
  // Where mantissas are folded: sqrt(2) and its half, at several scales.
  for (const float x : {1.41421356f, 0.70710678f, 1.3333333f, 0.6666667f, 0.75f, 1.5f}) {
    for (const int exponent : {-140, -126, -20, 0, 20, 126}) Around(Function::kLog, std::ldexp(x, exponent), 2000);
  }
}

TEST_P(Sweep32, Log1pAroundItsLimits) {
  AroundPowersOfTwo(Function::kLog1p);
  Around(Function::kLog1p, -1, 60000);
  Around(Function::kLog1p, 0, 20000);
  Around(Function::kLog1p, -0.0f, 20000);
  for (const float x : {0.41421356f, -0.29289322f, -0.5f, 0.5f, 1.0f, -0.25f, 16777216.0f, 33554432.0f}) {
    Around(Function::kLog1p, x, 5000);
  }
}

}  // namespace
}  // namespace xent::test
