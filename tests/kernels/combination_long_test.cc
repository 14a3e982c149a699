// The sets of combination_test.cc, thirty times as many, of another seed.
#include <gtest/gtest.h>

#include "testing/combination.h"

namespace xent::test {
namespace {

TEST(Combination, ManySets) { RunCombinations(2, 240000); }

}  // namespace
}  // namespace xent::test
