// What the library says of itself: version, targets, the cap on targets, threads, chunks, names of statuses. The
// environment is read once per process, so what depends on it is asked of this program started anew.
#include <gtest/gtest.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "api/own_process.h"
#include "xent/xent.h"

namespace xent::test {
namespace {

std::vector<std::string> Names(const char *(*name)(int32_t)) {
  std::vector<std::string> names;
  for (int32_t i = 0; name(i) != nullptr; ++i) names.push_back(name(i));
  return names;
}
std::vector<std::string> Compiled() { return Names(xent_compiled_target); }
std::vector<std::string> Available() { return Names(xent_available_target); }

TEST(Version, IsTheHeaders) {
  std::ostringstream want;
  want << XENT_VERSION_MAJOR << '.' << XENT_VERSION_MINOR << '.' << XENT_VERSION_PATCH;
  EXPECT_EQ(want.str(), xent_version());
}

TEST(Version, OfHighway) {
  int major = 0, minor = 0, patch = 0;
  ASSERT_EQ(std::sscanf(xent_highway_version(), "%d.%d.%d", &major, &minor, &patch), 3) << xent_highway_version();
  EXPECT_GE(std::pair(major, minor), std::pair(1, 2));
}

TEST(StatusString, NamesEveryStatus) {
  EXPECT_STREQ(xent_status_string(XENT_INVALID_ARGUMENT), "invalid argument");
  EXPECT_STREQ(xent_status_string(XENT_TARGET_OUT_OF_RANGE), "target out of range");
  EXPECT_STREQ(xent_status_string(XENT_DOMAIN_ERROR), "domain error");
  std::vector<std::string> names;
  for (const int status :
       {XENT_OK, XENT_INVALID_ARGUMENT, XENT_TARGET_OUT_OF_RANGE, XENT_DOMAIN_ERROR, XENT_INCOMPLETE}) {
    names.push_back(xent_status_string(static_cast<xent_status>(status)));
    EXPECT_FALSE(names.back().empty());
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

TEST(StatusString, IsNeverNull) {
  // 5 to 7 are values that the enumeration's type can hold.
  for (const int status : {5, 6, 7}) EXPECT_NE(xent_status_string(static_cast<xent_status>(status)), nullptr);
}

TEST(Record, IsSixtyFourBytesForEver) { EXPECT_EQ(XENT_RECORD_BYTES, 64); }

TEST(ChunkCols, IsASixteenthInWholeBlocks) {
  const std::pair<int64_t, int64_t> cases[] = {{1, 1024},       {1024, 1024},    {1025, 1024},    {16383, 1024},
                                               {16384, 1024},   {16385, 2048},   {32000, 2048},   {32768, 2048},
                                               {32769, 3072},   {40000, 3072},   {50257, 4096},   {128256, 8192},
                                               {150001, 10240}, {262144, 16384}, {262145, 17408}, {1 << 30, 1 << 26}};
  for (const auto &[cols, want] : cases) EXPECT_EQ(xent_chunk_cols(cols), want) << cols;
}

TEST(ChunkCols, OfNoColumnsIsZero) {
  EXPECT_EQ(xent_chunk_cols(0), 0);
  EXPECT_EQ(xent_chunk_cols(-1), 0);
  EXPECT_EQ(xent_chunk_cols(std::numeric_limits<int64_t>::min()), 0);
}

TEST(ChunkCols, DoesNotOverflow) {
  const int64_t most = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(xent_chunk_cols(most), int64_t{1} << 59);
}

TEST(ChunkCols, LeavesAtMostSixteenChunks) {
  for (int64_t cols = 1; cols < 2000000; cols += cols < 40000 ? 1 : 997) {
    const int64_t chunk = xent_chunk_cols(cols);
    ASSERT_EQ(chunk % 1024, 0) << cols;
    ASSERT_LE((cols + chunk - 1) / chunk, 16) << cols;
  }
}

TEST(Target, AvailableOnesAreCompiledOnesInTheirOrder) {
  const std::vector<std::string> compiled = Compiled();
  const std::vector<std::string> available = Available();
  ASSERT_FALSE(available.empty());
  auto at = compiled.begin();
  for (const std::string &name : available) {
    at = std::find(at, compiled.end(), name);
    ASSERT_NE(at, compiled.end()) << name << " is not compiled, or out of order";
    ++at;
  }
  EXPECT_NE(std::find(available.begin(), available.end(), xent_active_target()), available.end());
}

TEST(Target, NullPastTheLast) {
  EXPECT_EQ(xent_available_target(static_cast<int32_t>(Available().size())), nullptr);
  for (const int32_t i : {1000, INT32_MAX, -1, INT32_MIN}) {
    EXPECT_EQ(xent_available_target(i), nullptr) << i;
    EXPECT_EQ(xent_compiled_target(i), nullptr) << i;
  }
}

struct Report {
  bool started = false;
  std::string target;
  std::string unknown;
  std::string threads;
};

const Part kReport("report", [] {
  const char *unknown = xent_unknown_max_target();
  std::printf("%s\n%s\n%d\n", xent_active_target(), unknown == nullptr ? "(understood)" : unknown,
              static_cast<int>(xent_default_threads()));
  return 0;
});

// What this program, started anew, says of itself.
Report StartWith(const Variables &variables) {
  Report report;
  const Outcome outcome = RunInOwnProcess("report", variables);
  if (!outcome.started) return report;
  EXPECT_EQ(outcome.status, 0) << "the program started anew failed";
  std::istringstream lines(outcome.output);
  report.started = static_cast<bool>(std::getline(lines, report.target) && std::getline(lines, report.unknown) &&
                                     std::getline(lines, report.threads));
  EXPECT_TRUE(report.started) << outcome.output;
  return report;
}

class MaxTarget : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!StartWith({}).started) GTEST_SKIP() << "a program cannot start itself here";
  }
};

TEST_F(MaxTarget, UnsetMeansTheBest) {
  const Report report = StartWith({{"XENT_MAX_TARGET", nullptr}});
  EXPECT_EQ(report.target, Available()[0]);
  EXPECT_EQ(report.unknown, "(understood)");
}

TEST_F(MaxTarget, CapsAtEachTargetThatIsCompiled) {
  const std::vector<std::string> compiled = Compiled();
  const std::vector<std::string> available = Available();
  for (auto cap = compiled.begin(); cap != compiled.end(); ++cap) {
    // The best that is available and no better than the cap; the cap itself where the processor has it.
    auto want = std::find_first_of(cap, compiled.end(), available.begin(), available.end());
    ASSERT_NE(want, compiled.end());
    const Report report = StartWith({{"XENT_MAX_TARGET", cap->c_str()}});
    EXPECT_EQ(report.target, *want) << "capped at " << *cap;
    EXPECT_EQ(report.unknown, "(understood)") << *cap;
  }
}

TEST_F(MaxTarget, UnknownNameCapsNothingAndIsReported) {
  for (const char *name : {"AVX9", "fastest", "AVX2 ", "2"}) {
    const Report report = StartWith({{"XENT_MAX_TARGET", name}});
    EXPECT_EQ(report.target, Available()[0]);
    EXPECT_EQ(report.unknown, name);
  }
}

TEST_F(MaxTarget, DefaultThreadsHonourOmpNumThreads) {
#if defined(_OPENMP)
  EXPECT_EQ(StartWith({{"OMP_NUM_THREADS", "3"}, {"OMP_DYNAMIC", nullptr}, {"OMP_THREAD_LIMIT", nullptr}}).threads,
            "3");
  EXPECT_EQ(StartWith({{"OMP_NUM_THREADS", "1"}}).threads, "1");
#else
  EXPECT_EQ(StartWith({{"OMP_NUM_THREADS", "3"}}).threads, "1");
#endif
}

}  // namespace
}  // namespace xent::test
