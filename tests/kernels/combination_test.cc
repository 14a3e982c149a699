// Every option with every other, in every dtype and layout: thousands of random sets against the naive reference
// (testing/combination.h). A set that fails is named by a line XENT_COMBINATION=SEED:INDEX; with that in the
// environment the test runs that set alone.
#include "testing/combination.h"

#include <gtest/gtest.h>

namespace xent::test {
namespace {

TEST(Combination, EveryOptionWithEveryOther) { RunCombinations(1, 10000); }

}  // namespace
}  // namespace xent::test
