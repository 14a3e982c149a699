// Plans: what MakePlan decides for a call, a table of calls and plans. The oracle is the table itself, written by hand
// from docs/architecture.md ("Paths") and the limits in rows/plan.h; calls on either side of each limit are in it. Two
// more properties: the path follows from layout, dtype and options alone, and a plan never depends on the logits.
#include "rows/plan.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "api/check_call.h"
#include "rows/binary.h"
#include "rows/divergence.h"
#include "testing/plan_words.h"

namespace xent::internal {
namespace {

void NoPool(void * /*ctx*/, int64_t /*n*/, xent_task /*task*/, void * /*arg*/) {}

// A call whose matrices have no memory behind them: a plan must not read any of it.
struct PlannedCall {
  int64_t rows = 1, cols = 10, inner = 1;
  int32_t dtype = XENT_F32, threads = 1;
  Mode mode = Mode::kForward;
  bool in_place = false;
  std::function<void(Call &)> change = nullptr;

  std::string Plan() const {
    static double memory[4];  // an address; nothing is read there but u and weights of one row
    Call call{};
    call.args = XENT_CROSS_ENTROPY_INIT;
    call.options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    call.statistics = XENT_STATISTICS_INIT;
    call.exec = XENT_EXEC_INIT;
    call.exec.parallel_for = threads > 1 ? NoPool : nullptr;
    call.exec.threads = threads;
    call.mode = mode;
    call.args.rows = rows;
    call.args.cols = cols;
    call.args.inner = inner;
    call.args.logits = {memory, cols * inner, dtype, 0};
    call.args.targets.data = memory;
    if (mode != Mode::kForward) call.args.grad = {in_place ? memory : memory + 1, cols * inner, dtype, 0};
    call.valid_cols = cols;
    call.live_rows = rows;
    call.weight = {static_cast<double>(rows), 0.0};
    if (change != nullptr) change(call);
    call.Prepare();
    return test::Words(call.plan);
  }
};

struct Case {
  const char *name;
  PlannedCall call;
  const char *plan;
};

constexpr Mode kBoth = Mode::kForwardBackward;
constexpr int64_t kStreamed = kStreamBytes / 4 / 32000;  // rows of 32000 that just do not stream

double workspace[2048];
void GiveWorkspace(Call &call) {
  call.args.workspace = workspace;
  call.args.workspace_bytes = sizeof(workspace);
}

const std::vector<Case> &Cases() {
  static const std::vector<Case> cases = {
      // Rows side by side.
      {"one row", {}, "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      {"its gradient", {.mode = kBoth}, "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      {"one column", {.cols = 1}, "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      {"the longest", {.cols = 64}, "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      {"float64 has none", {.dtype = XENT_F64}, "path=index split=none threads=1 keep=nowhere subnormals=flush"},
      {"statistics",
       {.change = [](Call &call) { call.statistics.argmax = reinterpret_cast<int64_t *>(workspace); }},
       "path=across split=none threads=1 keep=nowhere subnormals=flush statistics"},
      {"softcap",
       {.change = [](Call &call) { call.options.softcap = 30.0; }},
       "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      {"probability targets",
       {.change = [](Call &call) { call.args.targets.data = nullptr; }},
       "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      {"probability targets of float64",
       {.change =
            [](Call &call) {
              call.args.targets.data = nullptr;
              call.args.target_probs = {workspace, 10, XENT_F64, 0};
            }},
       "path=general split=none threads=1 keep=nowhere subnormals=keep"},
      {"class-major", {.rows = 4, .inner = 2}, "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      {"class-major is cut over positions only",
       {.rows = 2, .cols = 32000, .inner = 2, .threads = 4},
       "path=across split=rows threads=4 keep=nowhere subnormals=flush"},
      {"class-major of float64",
       {.rows = 4, .inner = 2, .dtype = XENT_F64},
       "path=positions split=none threads=1 keep=nowhere subnormals=keep"},
      {"class-major whose gradient just does not stream",
       {.rows = kStreamed / 8, .cols = 32000, .inner = 16, .mode = kBoth},
       "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      {"one position more",
       {.rows = kStreamed / 8 + 1, .cols = 32000, .inner = 16, .mode = kBoth},
       "path=across split=none threads=1 keep=nowhere subnormals=flush stream"},
      {"positions that are no whole cache lines",
       {.rows = kStreamed / 8 + 1, .cols = 32000, .inner = 17, .mode = kBoth},
       "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      // Rows of one block.
      {"the shortest", {.cols = 65}, "path=index split=none threads=1 keep=nowhere subnormals=flush short_rows"},
      {"its gradient",
       {.cols = 65, .mode = kBoth},
       "path=index split=none threads=1 keep=output subnormals=flush short_rows"},
      {"the longest short row",
       {.cols = 1024},
       "path=index split=none threads=1 keep=nowhere subnormals=flush short_rows"},
      {"one column more", {.cols = 1025}, "path=index split=none threads=1 keep=nowhere subnormals=flush"},
      {"half precision",
       {.cols = 100, .dtype = XENT_BF16},
       "path=index split=none threads=1 keep=nowhere subnormals=flush short_rows"},
      {"half precision, gradient",
       {.rows = 2, .cols = 100, .dtype = XENT_F16, .mode = kBoth},
       "path=index split=none threads=1 keep=nowhere subnormals=flush overlap"},
      {"backward",
       {.cols = 100, .mode = Mode::kBackward},
       "path=index split=none threads=1 keep=nowhere subnormals=flush"},
      {"row weights",
       {.cols = 100, .change = [](Call &call) { call.args.row_weights = workspace; }},
       "path=index split=none threads=1 keep=nowhere subnormals=flush"},
      {"smoothing",
       {.cols = 129, .change = [](Call &call) { call.options.label_smoothing = 0.1; }},
       "path=index split=none threads=1 keep=nowhere subnormals=flush"},
      {"z-loss",
       {.cols = 129, .change = [](Call &call) { call.options.z_loss = 1e-4; }},
       "path=index split=none threads=1 keep=nowhere subnormals=flush"},
      {"a huge divisor leaves the factor no room",
       {.cols = 100, .mode = kBoth, .change = [](Call &call) { call.options.reduction.divisor = 1e300; }},
       "path=index split=none threads=1 keep=output subnormals=flush"},
      {"statistics of a longer row",
       {.cols = 100, .change = [](Call &call) { call.statistics.argmax = reinterpret_cast<int64_t *>(workspace); }},
       "path=index split=none threads=1 keep=nowhere subnormals=flush statistics"},
      {"lse is no statistic that needs a look",
       {.cols = 100, .change = [](Call &call) { call.statistics.lse = workspace; }},
       "path=index split=none threads=1 keep=nowhere subnormals=flush short_rows"},
      // Long rows.
      {"a long row alone overlaps nothing",
       {.cols = 32000, .mode = kBoth},
       "path=index split=none threads=1 keep=output subnormals=flush"},
      {"two of them do",
       {.rows = 2, .cols = 32000, .mode = kBoth},
       "path=index split=none threads=1 keep=output subnormals=flush overlap"},
      {"half precision keeps nothing",
       {.rows = 2, .cols = 32000, .dtype = XENT_BF16, .mode = kBoth},
       "path=index split=none threads=1 keep=nowhere subnormals=flush overlap"},
      {"a workspace, out of place",
       {.rows = 2, .cols = 2000, .mode = kBoth, .change = GiveWorkspace},
       "path=index split=none threads=1 keep=workspace subnormals=flush overlap"},
      {"a workspace that is too small",
       {.rows = 2, .cols = 32000, .mode = kBoth, .change = GiveWorkspace},
       "path=index split=none threads=1 keep=output subnormals=flush overlap"},
      {"a workspace, in place",
       {.rows = 2, .cols = 2000, .mode = kBoth, .in_place = true, .change = GiveWorkspace},
       "path=index split=none threads=1 keep=output subnormals=flush overlap"},
      {"a workspace, half precision in place",
       {.rows = 2, .cols = 2000, .dtype = XENT_F16, .mode = kBoth, .in_place = true, .change = GiveWorkspace},
       "path=index split=none threads=1 keep=workspace subnormals=flush overlap"},
      {"the largest gradient that stays in the caches",
       {.rows = kStreamed, .cols = 32000, .mode = kBoth},
       "path=index split=none threads=1 keep=output subnormals=flush overlap"},
      {"one row more",
       {.rows = kStreamed + 1, .cols = 32000, .mode = kBoth},
       "path=index split=none threads=1 keep=output subnormals=flush overlap stream"},
      {"in place nothing streams",
       {.rows = kStreamed + 1, .cols = 32000, .mode = kBoth, .in_place = true},
       "path=index split=none threads=1 keep=output subnormals=flush overlap"},
      // Threads.
      {"small work stays on its thread",
       {.rows = 3276, .threads = 4},
       "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      {"rows over threads",
       {.rows = 3277, .threads = 4},
       "path=across split=rows threads=4 keep=nowhere subnormals=flush"},
      {"as many rows as threads",
       {.rows = 4, .cols = 32000, .threads = 4, .mode = kBoth},
       "path=index split=rows threads=4 keep=output subnormals=flush overlap"},
      {"fewer rows than threads",
       {.rows = 3, .cols = 32000, .threads = 4, .mode = kBoth},
       "path=index split=chunks threads=4 keep=output subnormals=flush"},
      {"fewer rows than threads, but of one chunk",
       {.rows = 40, .cols = 1000, .threads = 64},
       "path=index split=rows threads=64 keep=nowhere subnormals=flush short_rows"},
      // Paths.
      {"the longest softcap side by side",
       {.cols = 256, .change = [](Call &call) { call.options.softcap = 30.0; }},
       "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      {"the longest smoothing side by side",
       {.cols = 128, .change = [](Call &call) { call.options.label_smoothing = 0.1; }},
       "path=across split=none threads=1 keep=nowhere subnormals=flush"},
      {"softcap",
       {.cols = 257, .change = [](Call &call) { call.options.softcap = 30.0; }},
       "path=general split=none threads=1 keep=nowhere subnormals=keep"},
      {"logit_scale",
       {.cols = 257, .change = [](Call &call) { call.options.logit_scale = 2.0; }},
       "path=general split=none threads=1 keep=nowhere subnormals=keep"},
      {"class weights",
       {.cols = 257, .change = [](Call &call) { call.args.class_weights = workspace; }},
       "path=index split=none threads=1 keep=nowhere subnormals=flush"},
      {"class weights under smoothing",
       {.cols = 257,
        .change =
            [](Call &call) {
              call.args.class_weights = workspace;
              call.options.label_smoothing = 0.1;
            }},
       "path=general split=none threads=1 keep=nowhere subnormals=keep"},
      {"z-loss under smoothing",
       {.cols = 257,
        .change =
            [](Call &call) {
              call.options.z_loss = 1e-4;
              call.options.label_smoothing = 0.1;
            }},
       "path=general split=none threads=1 keep=nowhere subnormals=keep"},
      {"probability targets",
       {.cols = 257, .change = [](Call &call) { call.args.targets.data = nullptr; }},
       "path=general split=none threads=1 keep=nowhere subnormals=keep"},
      {"the general path streams, but does not overlap",
       {.rows = kStreamed + 1, .cols = 32000, .mode = kBoth, .change = [](Call &call) { call.options.softcap = 30.0; }},
       "path=general split=none threads=1 keep=nowhere subnormals=keep stream"},
  };
  return cases;
}

TEST(Plan, IsWhatTheTableSays) {
  for (const Case &c : Cases()) EXPECT_EQ(c.call.Plan(), c.plan) << c.name;
}

// Which path a row takes defines its bits: it follows from layout, dtype and options, not from what else is asked for.
TEST(Plan, PathDoesNotDependOnOutputsRowsOrThreads) {
  const auto path_of = [](const std::string &plan) { return plan.substr(0, plan.find(' ')); };
  for (const Case &c : Cases()) {
    if (c.call.inner > 1) continue;
    const std::string path = path_of(c.plan);
    for (const int64_t rows : {1, 5, 5000}) {
      for (const int32_t threads : {1, 16}) {
        for (const Mode mode : {Mode::kForward, Mode::kForwardBackward, Mode::kBackward}) {
          PlannedCall call = c.call;
          call.rows = rows;
          call.threads = threads;
          call.mode = mode;
          EXPECT_EQ(path_of(call.Plan()), path) << c.name << ", rows " << rows << ", threads " << threads;
        }
      }
    }
  }
}

TEST(Plan, OfRowFunctions) {
  xent_exec serial = XENT_EXEC_INIT, pool = XENT_EXEC_INIT;
  serial.threads = 1;
  pool.parallel_for = NoPool;
  pool.threads = 8;
  EXPECT_EQ(test::Words(MakePlan(RowShape(100, 32000), serial, true)),
            "path=index split=none threads=1 keep=output subnormals=flush overlap");
  EXPECT_EQ(test::Words(MakePlan(RowShape(100, 32000), serial, false)),
            "path=index split=none threads=1 keep=nowhere subnormals=flush");
  EXPECT_EQ(test::Words(MakePlan(RowShape(7, 32000), pool, true)),
            "path=index split=chunks threads=8 keep=output subnormals=flush");
  EXPECT_EQ(test::Words(MakePlan(RowShape(100, 32000, 50), pool, true)),
            "path=positions split=rows threads=8 keep=nowhere subnormals=keep");
  EXPECT_EQ(test::Words(MakePlan(RowShape(100, 32000, 50), pool, true, 64)),
            "path=across split=rows threads=8 keep=nowhere subnormals=flush");
  EXPECT_EQ(test::Words(MakePlan(RowShape(100, 64), serial, true, 64)),
            "path=across split=none threads=1 keep=nowhere subnormals=flush");
  EXPECT_EQ(test::Words(MakePlan(RowShape(100, 65), serial, true, 64)),
            "path=index split=none threads=1 keep=output subnormals=flush overlap");
}

TEST(Plan, OfDivergencesAndBinary) {
  DivergenceCall divergence{};
  divergence.args = XENT_DIVERGENCE_INIT;
  divergence.exec = XENT_EXEC_INIT;
  divergence.exec.threads = 1;
  divergence.args.inner = 1;
  divergence.shape = RowShape(100, 32000);
  EXPECT_EQ(test::Words(MakePlan(divergence)), "path=general split=none threads=1 keep=nowhere subnormals=flush");
  divergence.args.inner = 10;
  EXPECT_EQ(test::Words(MakePlan(divergence)), "path=positions split=none threads=1 keep=nowhere subnormals=flush");
  divergence.float_lanes = true;
  EXPECT_EQ(test::Words(MakePlan(divergence)), "path=across split=none threads=1 keep=nowhere subnormals=flush");
  divergence.args.inner = 1;
  EXPECT_EQ(test::Words(MakePlan(divergence)), "path=general split=none threads=1 keep=nowhere subnormals=flush");
  divergence.shape = RowShape(100, 256);
  EXPECT_EQ(test::Words(MakePlan(divergence)), "path=across split=none threads=1 keep=nowhere subnormals=flush");
  divergence.shape = RowShape(100, 257);
  EXPECT_EQ(test::Words(MakePlan(divergence)), "path=general split=none threads=1 keep=nowhere subnormals=flush");
  BinaryCall binary{};
  binary.exec = XENT_EXEC_INIT;
  binary.exec.threads = 1;
  binary.elements = kStreamBytes / 4 - 1;
  EXPECT_EQ(test::Words(MakePlan(binary)), "path=elements split=none threads=1 keep=nowhere subnormals=keep");
  binary.elements += 1;
  EXPECT_EQ(test::Words(MakePlan(binary)), "path=elements split=none threads=1 keep=nowhere subnormals=keep stream");
}

}  // namespace
}  // namespace xent::internal
