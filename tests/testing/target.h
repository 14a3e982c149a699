// Tests that run once per SIMD target, each on that target and on no other. A test of a fixture derived from TargetTest
// and instantiated with XENT_INSTANTIATE_TARGETS is called `Targets/Fixture.Name/AVX2`; it is skipped, and counted as
// skipped, where the processor lacks the target.
#ifndef XENT_TESTS_TESTING_TARGET_H_
#define XENT_TESTS_TESTING_TARGET_H_

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace xent::test {

// The targets that the build holds, best first, and those of them that this processor can run.
std::vector<std::string> CompiledTargets();
std::vector<std::string> AvailableTargets();

// Whether results on the target are promised to have the bits of every other such target.
bool HasFusedMultiplyAdd(const std::string &target);

// Runs what follows on `target` until the end of the scope, then again on the target before.
class ScopedTarget {
 public:
  explicit ScopedTarget(const std::string &target);
  ~ScopedTarget();
  ScopedTarget(const ScopedTarget &) = delete;
  ScopedTarget &operator=(const ScopedTarget &) = delete;

 private:
  std::string before_;
};

class TargetTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override;
  void TearDown() override;
};

#define XENT_INSTANTIATE_TARGETS(fixture)                                                          \
  INSTANTIATE_TEST_SUITE_P(Targets, fixture, ::testing::ValuesIn(::xent::test::CompiledTargets()), \
                           [](const ::testing::TestParamInfo<std::string> &info) { return info.param; })

// Prints, when the test program ends, which targets ran and which did not, and the worst errors seen.
class Summary : public ::testing::EmptyTestEventListener {
 public:
  void OnTestProgramEnd(const ::testing::UnitTest &unit_test) override;
};

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_TARGET_H_
