// The fixture of per-target tests and their closing summary; see target.h.
#include "testing/target.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

#include "dispatch/dispatch.h"
#include "testing/check.h"
#include "xent/xent.h"

namespace xent::test {
namespace {

std::vector<std::string> Names(const char *(*name_of)(int32_t)) {
  std::vector<std::string> names;
  for (int32_t i = 0; name_of(i) != nullptr; ++i) names.emplace_back(name_of(i));
  return names;
}

const char *Compiled(int32_t i) { return xent_compiled_target(i); }
const char *Available(int32_t i) { return xent_available_target(i); }

// Tests begun on each target.
std::map<std::string, int> &Runs() {
  static std::map<std::string, int> runs;
  return runs;
}

}  // namespace

std::vector<std::string> CompiledTargets() { return Names(Compiled); }
std::vector<std::string> AvailableTargets() { return Names(Available); }

bool HasFusedMultiplyAdd(const std::string &target) {
  static const std::set<std::string> kWithout = {"SSE2", "SSSE3", "SSE4", "EMU128", "SCALAR"};
  return kWithout.count(target) == 0;
}

ScopedTarget::ScopedTarget(const std::string &target) : before_(xent_active_target()) {
  EXPECT_TRUE(internal::ForceTarget(target.c_str())) << target;
  EXPECT_STREQ(xent_active_target(), target.c_str());
}
ScopedTarget::~ScopedTarget() { EXPECT_TRUE(internal::ForceTarget(before_.c_str())) << before_; }

void TargetTest::SetUp() {
  const std::string target = GetParam();
  const std::vector<std::string> available = AvailableTargets();
  if (std::find(available.begin(), available.end(), target) == available.end()) {
    GTEST_SKIP() << "CPU lacks " << target;
  }
  ASSERT_TRUE(internal::ForceTarget(target.c_str())) << target << " is available but cannot be chosen";
  ASSERT_STREQ(xent_active_target(), target.c_str());
  ++Runs()[target];
}

void TargetTest::TearDown() {
  // Whatever the test did, it has not slipped onto another target.
  if (!IsSkipped()) {
    EXPECT_STREQ(xent_active_target(), GetParam().c_str());
  }
  internal::ForceTarget(nullptr);
}

void Summary::OnTestProgramEnd(const ::testing::UnitTest &) {
  const std::vector<std::string> available = AvailableTargets();
  std::string run;
  std::string not_run;
  for (const std::string &target : CompiledTargets()) {
    const int tests = Runs()[target];
    if (tests > 0) {
      run += " " + target + " (" + std::to_string(tests) + " tests)";
    } else {
      const bool lacking = std::find(available.begin(), available.end(), target) == available.end();
      not_run += " " + target + (lacking ? " (CPU lacks it)" : " (no test asked for it)");
    }
  }
  std::printf("targets run:%s\ntargets not run:%s\n", run.empty() ? " none" : run.c_str(),
              not_run.empty() ? " none" : not_run.c_str());
  std::printf("%s", WorstErrors().c_str());
}

}  // namespace xent::test
