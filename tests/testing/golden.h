// The file of golden hashes, tests/kernels/golden_hashes.txt: the bits of fixed inputs' results, the same on every
// target with fused multiply-add and by any number of threads. Each family of tests has a section of it.
//
// After a change that is meant to change results one run of all tests called *Hashes in one process, with
// XENT_UPDATE_HASHES=tests/kernels/golden_hashes.txt, writes the sections anew: the first target's lines, which the
// other targets of the same run are then held against.
#ifndef XENT_TESTS_TESTING_GOLDEN_H_
#define XENT_TESTS_TESTING_GOLDEN_H_

#include <functional>
#include <string>
#include <vector>

#include "xent/xent.h"

namespace xent::test {

// Expects the lines that `lines_of` gives, for 1, 2, 3 and 8 threads, to be those of the section. A line is a name
// without blanks and hashes; `columns` says in words what they are of. Skips the test on a target without fused
// multiply-add.
void ExpectGolden(const std::string &target, const std::string &section, const std::string &columns,
                  const std::function<std::vector<std::string>(const xent_exec &)> &lines_of);

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_GOLDEN_H_
