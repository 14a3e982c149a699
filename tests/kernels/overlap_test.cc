// Rows that overlap: one row's gradient is finished while the next one's exponentials are summed, in a workspace where
// there is one, past the caches where the gradient is large. Whatever the memory, each row must come out as it does in
// a call of its own, where nothing overlaps, and nothing beside it may be touched.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "reference/number.h"
#include "testing/data.h"
#include "testing/exec.h"
#include "testing/target.h"
#include "xent/xent.h"

namespace xent::test {
namespace {

class Overlap : public TargetTest {};
XENT_INSTANTIATE_TARGETS(Overlap);

struct Case {
  Matrix logits;
  std::vector<int64_t> targets;
};

// Normal rows, and among them, next to each other too: ignored ones, some with NaN, masks, a redone block, logits
// beyond 2^20, a whole row of -inf, a confident one.
Case MakeCase(xent_dtype dtype, int64_t rows, int64_t cols) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Random random(static_cast<uint64_t>(rows * 1000 + cols));
  Case c{Matrix(dtype, rows, cols, cols + 3, 1), std::vector<int64_t>(static_cast<size_t>(rows))};
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t kind = i % 4 == 0 ? 0 : random.Below(9);
    int64_t &target = c.targets[static_cast<size_t>(i)];
    target = kind == 1 ? -100 : random.Below(cols);
    for (int64_t j = 0; j < cols; ++j) {
      double z = random.Normal(2);
      if (kind == 2 && j == cols / 2) z = std::numeric_limits<double>::quiet_NaN();
      if (kind == 3 && random.Below(3) == 0) z = -kInfinity;
      if (kind == 4 && j == cols - 1) z = 300;
      if (kind == 5) z += 0x1p21;
      if (kind == 6) z = -kInfinity;
      if (kind == 7 && j == target) z = 60;
      c.logits.SetInRange(i, j, z);
    }
  }
  return c;
}

struct Result {
  std::vector<double> losses;  // of any arithmetic type: room for the larger
  Matrix grad;
};

struct Memory {
  int32_t threads;
  bool in_place;
  int64_t bytes, skip;  // of the workspace, and where it begins in a buffer aligned to 64
};

// Rows [first, first + rows) of the case in one call.
void Run(const Case &c, int64_t first, int64_t rows, const Memory &memory, Result *result) {
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = c.logits.cols();
  const xent_dtype dtype = c.logits.dtype();
  args.logits = {const_cast<void *>(c.logits.row(first)), c.logits.stride(), dtype, 0};
  args.targets = {.data = c.targets.data() + first, .type = XENT_I64, .reserved = 0};
  args.row_losses = reinterpret_cast<char *>(result->losses.data()) + first * (dtype == XENT_F64 ? 8 : 4);
  args.grad = {result->grad.row(first), result->grad.stride(), dtype, 0};
  if (memory.in_place) args.logits = args.grad;
  constexpr unsigned char kPaint = 0xa5;
  std::vector<unsigned char> storage(static_cast<size_t>(memory.bytes + memory.skip) + 256, kPaint);
  const size_t aligned = (~reinterpret_cast<uintptr_t>(storage.data()) + 1) % 64;
  unsigned char *const workspace = storage.data() + aligned + memory.skip;
  if (memory.bytes > 0) {
    args.workspace = workspace;
    args.workspace_bytes = static_cast<size_t>(memory.bytes);
  }
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  options.reduction.kind = XENT_REDUCTION_NONE;
  const xent_exec exec = TeamOf(memory.threads);
  ASSERT_EQ(xent_cross_entropy_forward_backward(&args, &options, &exec, nullptr), XENT_OK);
  for (const unsigned char *p = storage.data(); p < storage.data() + storage.size(); ++p) {
    if (p < workspace || p >= workspace + memory.bytes) {
      ASSERT_EQ(*p, kPaint) << "byte " << p - workspace << " of a workspace of " << memory.bytes;
    }
  }
}

Result MakeResult(const Case &c, bool in_place, int64_t misalign) {
  const int64_t rows = c.logits.rows(), cols = c.logits.cols();
  Result result{std::vector<double>(static_cast<size_t>(rows)), {}};
  result.grad = in_place ? c.logits : Matrix(c.logits.dtype(), rows, cols, cols + 5, misalign);
  return result;
}

Result RowByRow(const Case &c) {
  Result result = MakeResult(c, false, 0);
  for (int64_t i = 0; i < c.logits.rows(); ++i) Run(c, i, 1, {1, false, 0, 0}, &result);
  return result;
}

void ExpectSame(const Result &want, const Result &got, const std::string &where) {
  ASSERT_EQ(std::memcmp(want.losses.data(), got.losses.data(), want.losses.size() * sizeof(double)), 0) << where;
  ASSERT_EQ(FirstDifference(want.grad, got.grad), "") << where;
  ASSERT_TRUE(got.grad.PaddingIntact()) << where;
}

void ExpectRowsAsAlone(const Case &c, bool in_place, const std::vector<int64_t> &misalignments) {
  const Result want = RowByRow(c);
  const xent_dtype dtype = c.logits.dtype();
  const int64_t row = static_cast<int64_t>(xent_workspace_bytes(c.logits.cols(), dtype, 1));
  const int64_t four = static_cast<int64_t>(xent_workspace_bytes(c.logits.cols(), dtype, 4));
  for (const Memory &memory : {Memory{1, in_place, 0, 0}, Memory{3, in_place, 0, 0}, Memory{1, in_place, row, 0},
                               Memory{1, in_place, row - 64, 1}, Memory{3, in_place, row, 63},
                               Memory{4, in_place, four, 5}, Memory{2, in_place, 64, 0}}) {
    for (const int64_t misalign : misalignments) {
      Result got = MakeResult(c, in_place, misalign);
      Run(c, 0, c.logits.rows(), memory, &got);
      ExpectSame(want, got,
                 std::string(reference::NameOf(dtype)) + ", " + std::to_string(c.logits.rows()) + "x" +
                     std::to_string(c.logits.cols()) + (in_place ? ", in place" : "") + ", " +
                     std::to_string(memory.threads) + " threads, workspace " + std::to_string(memory.bytes) + " at " +
                     std::to_string(memory.skip) + ", misaligned by " + std::to_string(misalign));
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST_P(Overlap, LeavesEveryRowAsItIsAlone) {
  for (const xent_dtype dtype : kDtypes) {
    for (const auto &[rows, cols] : {std::pair<int64_t, int64_t>{40, 7}, {40, 1100}, {24, 5000}, {12, 40000}}) {
      const Case c = MakeCase(dtype, rows, cols);
      for (const bool in_place : {false, true}) ExpectRowsAsAlone(c, in_place, {0});
    }
  }
}

// More than 32 MB of gradient, which go past the caches, from every alignment of a row.
TEST_P(Overlap, OfALargeGradientToo) {
  ExpectRowsAsAlone(MakeCase(XENT_F32, 300, 30000), false, {0, 1, 15});
  ExpectRowsAsAlone(MakeCase(XENT_F64, 150, 30000), false, {0, 3});
}

TEST(Workspace, SizesAreThatOfARowAThread) {
  EXPECT_GE(xent_workspace_bytes(1000, XENT_F32, 1), 4000u);
  EXPECT_GE(xent_workspace_bytes(1000, XENT_BF16, 3), 12000u);
  EXPECT_GE(xent_workspace_bytes(1000, XENT_F64, 2), 16000u);
  EXPECT_LE(xent_workspace_bytes(1000, XENT_F64, 2), 16000u + 3 * 64);
  EXPECT_EQ(xent_workspace_bytes(1000, XENT_F32, 0), xent_workspace_bytes(1000, XENT_F32, xent_default_threads()));
  EXPECT_EQ(xent_workspace_bytes(0, XENT_F32, 1), 0u);
  EXPECT_EQ(xent_workspace_bytes(-1, XENT_F32, 1), 0u);
  EXPECT_EQ(xent_workspace_bytes(1000, XENT_F32, -1), 0u);
  EXPECT_EQ(xent_workspace_bytes(1000, static_cast<xent_dtype>(XENT_F16 + 1), 1), 0u);
  EXPECT_EQ(xent_workspace_bytes(std::numeric_limits<int64_t>::max(), XENT_F32, 1), 0u);
}

}  // namespace
}  // namespace xent::test
