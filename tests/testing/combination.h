// Random combinations of every option of the cross-entropy, dtype, layout, shape, thread count and SIMD target, judged
// against the naive reference; see combination.cc for what a set is and what is required of it.
#ifndef XENT_TESTS_TESTING_COMBINATION_H_
#define XENT_TESTS_TESTING_COMBINATION_H_

#include <cstdint>

namespace xent::test {

// Runs the sets [0, count) of a seed, fails the test for each that is wrong (with the line that reproduces it) and
// prints how many ran, on which targets, and the least covered pair of options x dtype x layout, which must have been
// in at least 20 sets. With XENT_COMBINATION=SEED:INDEX in the environment that one set runs alone and is told in full.
void RunCombinations(uint64_t seed, int64_t count);

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_COMBINATION_H_
