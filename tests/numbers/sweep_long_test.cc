// exp, log and log1p of every float32 on every target, within their bound; prints the worst input of each. Reference
// and its own error: testing/sweep.h.
#include <gtest/gtest.h>

#include <cstdio>

#include "reference/functions.h"
#include "testing/bounds.h"
#include "testing/sweep.h"
#include "testing/target.h"

namespace xent::test {
namespace {

using reference::Function;

class EveryFloat32 : public TargetTest {
 protected:
  static void ExpectWithinBound(Function function) {
    const SweepResult result = Sweep(function, 0, uint64_t{1} << 32, 1);
    std::printf("%s, target %s\n", result.Describe(function).c_str(), GetParam().c_str());
    EXPECT_EQ(result.visited, int64_t{1} << 32);
    EXPECT_LE(result.worst, kSweepBound) << result.Describe(function) << ", target " << GetParam();
    EXPECT_LE(result.exact, kArrayUlp) << result.Describe(function) << ", target " << GetParam();
  }
};
XENT_INSTANTIATE_TARGETS(EveryFloat32);

TEST_P(EveryFloat32, Exp) { ExpectWithinBound(Function::kExp); }
TEST_P(EveryFloat32, Log) { ExpectWithinBound(Function::kLog); }
TEST_P(EveryFloat32, Log1p) { ExpectWithinBound(Function::kLog1p); }

}  // namespace
}  // namespace xent::test
