// NaN, infinities and ignored rows at every place of a row: the row concerned is NaN (or what the function's own rule
// says), canonical in every bit, and no other row is touched.
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "testing/check.h"
#include "testing/data.h"
#include "testing/target.h"

namespace xent::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class Special : public TargetTest {};
XENT_INSTANTIATE_TARGETS(Special);

// NaN of several payloads, both signs, signalling and quiet. Small payloads are what an exponent computed in integers
// can turn into a harmless number.
std::vector<uint64_t> NanPatterns(xent_dtype dtype) {
  const uint64_t quiet = reference::CanonicalNanBits(dtype);
  const uint64_t fraction = quiet ^ reference::InfinityBits(dtype);  // the quiet bit; all below it is payload
  std::vector<uint64_t> patterns;
  for (const uint64_t sign : {uint64_t{0}, reference::SignBit(dtype)}) {
    for (const uint64_t payload : {uint64_t{0x1}, uint64_t{0x101}, uint64_t{0x3fffff}}) {
      const uint64_t kept = payload & (fraction - 1);
      patterns.push_back(sign | reference::InfinityBits(dtype) | kept);
      patterns.push_back(sign | quiet | kept);
    }
  }
  return patterns;
}

// Rows of normal logits; in row 2k stands `bits` at column place(k), and the odd rows are clean.
Problem PoisonedRows(const std::string &name, xent_dtype dtype, int64_t cols, const std::vector<int64_t> &places,
                     uint64_t bits) {
  Random random(3);
  Problem problem = MakeProblem(
      name, dtype, static_cast<int64_t>(places.size()) * 2, cols, [&](int64_t, int64_t) { return random.Normal(2); },
      [&](int64_t i) { return (i * 13) % cols; });
  for (size_t k = 0; k < places.size(); ++k) {
    problem.logits.SetBits(static_cast<int64_t>(2 * k), places[k], bits);
    // Now and then the target itself.
    if (k % 3 == 1) problem.targets[2 * k] = places[k];
  }
  problem.options.reduction.kind = XENT_REDUCTION_NONE;
  return problem;
}

std::vector<int64_t> EveryColumn(int64_t cols) {
  std::vector<int64_t> places;
  for (int64_t j = 0; j < cols; ++j) places.push_back(j);
  return places;
}

void ExpectAllNan(const Matrix &m, int64_t i, int64_t first, int64_t count, const char *what, const Problem &problem) {
  for (int64_t j = first; j < first + count; ++j) {
    ASSERT_EQ(m.GetBits(i, j), reference::CanonicalNanBits(m.dtype()))
        << what << " [" << i << "," << j << "] is " << m.Get(i, j) << " on " << xent_active_target() << ", "
        << reference::NameOf(problem.dtype) << ", " << problem.cols << " columns, " << problem.name;
  }
}

// Even rows are NaN throughout, odd rows have the bits that they have when no row is.
void ExpectOnlyEvenRowsNan(const Problem &problem) {
  const Outputs out = RunAll(problem);
  Problem clean = problem;
  for (int64_t i = 0; i < problem.rows; i += 2) {
    for (int64_t j = 0; j < problem.cols; ++j) clean.logits.Set(i, j, 0.25);
  }
  const Outputs want = RunAll(clean);
  for (int64_t i = 0; i < problem.rows; ++i) {
    if (i % 2 == 0) {
      ExpectAllNan(out.row_losses, 0, i, 1, "loss", problem);
      ExpectAllNan(out.lse, 0, i, 1, "lse", problem);
      ExpectAllNan(out.grad.matrix(), i, 0, problem.cols, "gradient", problem);
      ExpectAllNan(out.softmax.matrix(), i, 0, problem.cols, "softmax", problem);
      ExpectAllNan(out.log_softmax.matrix(), i, 0, problem.cols, "log_softmax", problem);
    } else {
      ASSERT_EQ(out.row_losses.GetBits(0, i), want.row_losses.GetBits(0, i)) << i << ", " << problem.name;
      ASSERT_EQ(out.lse.GetBits(0, i), want.lse.GetBits(0, i)) << i << ", " << problem.name;
      ASSERT_EQ(out.logsumexp.GetBits(0, i), want.logsumexp.GetBits(0, i)) << i << ", " << problem.name;
      for (int64_t j = 0; j < problem.cols; ++j) {
        ASSERT_EQ(out.grad.GetBits(i, j), want.grad.GetBits(i, j)) << i << "," << j << ", " << problem.name;
        ASSERT_EQ(out.softmax.GetBits(i, j), want.softmax.GetBits(i, j)) << i << "," << j << ", " << problem.name;
        ASSERT_EQ(out.log_softmax.GetBits(i, j), want.log_softmax.GetBits(i, j))
            << i << "," << j << ", " << problem.name;
      }
    }
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST_P(Special, NanAtEveryLaneAndInTheTail) {
  for (const xent_dtype dtype : kDtypes) {
    for (const uint64_t bits : NanPatterns(dtype)) {
      // Full steps of 128, a tail, and rows too short for either.
      for (const int64_t cols : {1, 7, 19, 128, 211}) {
        const Problem problem = PoisonedRows("NaN 0x" + std::to_string(bits), dtype, cols, EveryColumn(cols), bits);
        ExpectOnlyEvenRowsNan(problem);
        const Outputs out = RunAll(problem);
        for (int64_t i = 0; i < problem.rows; i += 2) ExpectAllNan(out.logsumexp, 0, i, 1, "logsumexp", problem);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Special, NanInEveryBlockAndChunk) {
  for (const xent_dtype dtype : kDtypes) {
    for (const uint64_t bits : NanPatterns(dtype)) {
      const Problem problem = PoisonedRows("NaN 0x" + std::to_string(bits), dtype, 20011,
                                           {0, 1030, 2047, 2048, 9999, 16383, 16384, 20010}, bits);
      ExpectOnlyEvenRowsNan(problem);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Special, NanBesideLogitsThatForceARedo) {
  // The redo must look at every logit; the NaN stands before, among and after those that are 100 to 600 above.
  for (const xent_dtype dtype : kDtypes) {
    for (const uint64_t bits : NanPatterns(dtype)) {
      for (const double above : {100.0, 300.0, 600.0, -1e9, -3.4e38}) {
        const std::vector<int64_t> places = {0, 5, 127, 128, 640, 1999};
        Problem problem = PoisonedRows("NaN among logits of " + std::to_string(above), dtype, 2000, places, bits);
        for (int64_t i = 0; i < problem.rows; ++i) {
          for (const int64_t j : {3, 64, 641, 1100, 1998}) problem.logits.Set(i, j, above);
        }
        ExpectOnlyEvenRowsNan(problem);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(Special, PlusInfinityAtEveryLane) {
  // The loss is NaN; logsumexp is +inf; softmax and log_softmax are NaN.
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t cols : {1, 7, 128, 211}) {
      const Problem problem = PoisonedRows("+inf", dtype, cols, EveryColumn(cols), reference::InfinityBits(dtype));
      ExpectOnlyEvenRowsNan(problem);
      const Outputs out = RunAll(problem);
      for (int64_t i = 0; i < problem.rows; i += 2) EXPECT_EQ(out.logsumexp.Get(0, i), kInfinity) << i;
      if (HasFatalFailure()) return;
    }
    const Problem problem =
        PoisonedRows("+inf", dtype, 20011, {0, 1030, 9999, 16384, 20010}, reference::InfinityBits(dtype));
    ExpectOnlyEvenRowsNan(problem);
  }
}

TEST_P(Special, NanBeatsPlusInfinityInLogSumExp) {
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t cols : {2, 40, 5000}) {
      for (const bool nan_first : {false, true}) {
        Problem problem = PoisonedRows("NaN and +inf", dtype, cols, {nan_first ? 0 : cols - 1},
                                       reference::CanonicalNanBits(dtype) | 1);
        problem.logits.Set(0, nan_first ? cols - 1 : 0, kInfinity);
        ExpectOnlyEvenRowsNan(problem);
        ExpectAllNan(RunAll(problem).logsumexp, 0, 0, 1, "logsumexp", problem);
      }
    }
  }
}

TEST_P(Special, WholeRowMinusInfinity) {
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t cols : {1, 2, 17, 128, 1500, 20011}) {
      Problem problem = PoisonedRows("row of -inf", dtype, cols, {0, 0}, 0);
      for (int64_t i = 0; i < problem.rows; i += 2) {
        for (int64_t j = 0; j < cols; ++j) problem.logits.Set(i, j, -kInfinity);
      }
      ExpectOnlyEvenRowsNan(problem);
      const Outputs out = RunAll(problem);
      for (int64_t i = 0; i < problem.rows; i += 2) EXPECT_EQ(out.logsumexp.Get(0, i), -kInfinity) << i;
    }
  }
}

TEST_P(Special, IgnoredRowsAreNeverRead) {
  // Ignored rows hold NaN, +inf or nothing but -inf: loss 0, lse 0, gradient +0 throughout, and not counted. The
  // upstream gradient of such a row may be NaN.
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t cols : {1, 5, 130, 5000}) {
      for (const int64_t ignore_index : {int64_t{-100}, int64_t{0}, int64_t{-1}}) {
        Random random(12);
        Problem problem = MakeProblem(
            "rows ignored by " + std::to_string(ignore_index), dtype, 7, cols,
            [&](int64_t i, int64_t) {
              const double z = random.Normal(2);
              const double kPoison[] = {std::numeric_limits<double>::quiet_NaN(), kInfinity, -kInfinity};
              return i % 2 == 0 ? kPoison[i / 2 % 3] : z;
            },
            [&](int64_t i) { return i % 2 == 0 ? ignore_index : cols - 1; });
        problem.options.ignore_index = ignore_index;
        // With one class and index 0 ignored every row is: a mean without rows, and all gradients zero.
        problem.SetUpstream({std::numeric_limits<double>::quiet_NaN(), 1, kInfinity, 2, std::nan(""), -3, std::nan("")},
                            XENT_UPSTREAM_ROWS);
        const Outputs out = RunAll(problem);
        int64_t live = 0;
        for (int64_t i = 0; i < problem.rows; ++i) {
          if (problem.targets[static_cast<size_t>(i)] != ignore_index) {
            ++live;
            continue;
          }
          EXPECT_EQ(out.row_losses.GetBits(0, i), 0u) << i;
          EXPECT_EQ(out.lse.GetBits(0, i), 0u) << i;
          for (int64_t j = 0; j < cols; ++j) ASSERT_EQ(out.grad.GetBits(i, j), 0u) << i << "," << j;
        }
        EXPECT_EQ(out.live_rows, live);
        ExpectAccurate(problem, out);
      }
    }
  }
}

TEST_P(Special, NanUpstreamMakesLiveRowsNanOnly) {
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t cols : {3, 200, 3000}) {
      Random random(13);
      Problem problem = MakeProblem(
          "NaN upstream", dtype, 6, cols, [&](int64_t, int64_t) { return random.Normal(2); },
          [&](int64_t i) { return i == 2 ? -100 : i % cols; });
      problem.SetUpstream({std::numeric_limits<double>::quiet_NaN()}, XENT_UPSTREAM_SCALAR);
      const Outputs out = RunAll(problem);
      ExpectAccurate(problem, out);
      for (int64_t i = 0; i < problem.rows; ++i) {
        if (i != 2) ExpectAllNan(out.grad.matrix(), i, 0, cols, "gradient", problem);
      }
    }
  }
}

TEST_P(Special, NanInTheReducedLoss) {
  // One NaN row makes the reduced loss NaN, canonical, under every reduction; the gradients of the others stay.
  for (const xent_dtype dtype : kDtypes) {
    for (const xent_reduction_kind reduction : {XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
      Problem problem = PoisonedRows("NaN in the reduced loss", dtype, 50, {4}, NanPatterns(dtype)[0]);
      problem.options.reduction.kind = reduction;
      const Outputs out = RunAll(problem);
      EXPECT_EQ(out.reduced_loss.GetBits(0, 0), reference::CanonicalNanBits(out.reduced_loss.dtype()));
      ExpectAccurate(problem, out);
    }
  }
}

}  // namespace
}  // namespace xent::test
