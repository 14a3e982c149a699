// Random mixtures of everything at once: logits from a few scales that hardly ever meet in real rows, every option, any
// upstream gradient, short rows and some that have several chunks, all dtypes. Judged like any other row
// (testing/check.h); what these find is given a name and a test of its own.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "reference/rows.h"
#include "testing/bounds.h"
#include "testing/check.h"
#include "testing/data.h"
#include "testing/target.h"

namespace xent::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class Mixture : public TargetTest {};
XENT_INSTANTIATE_TARGETS(Mixture);

// One logit; `kind` selects a scale, of which a row uses two or three.
double Logit(int64_t kind, xent_dtype dtype, Random &random) {
  const double z = random.Normal(2);
  const double sign = random.Below(2) == 0 ? 1 : -1;
  const double limit = dtype == XENT_F64 ? 0x1p40 : 0x1p20;  // of exact exponents
  switch (kind) {
    case 0:
      return -kInfinity;
    case 1:
      return random.Below(4) * 1.0;  // ties
    case 2:
      return z * 20;
    case 3:
      return z * 200;
    case 4:
      return sign * (limit + z);
    case 5:
      return limit + z * 4;
    case 6:
      return -limit - z * 4;
    case 7:
      return sign * 1e9;
    case 8:
      return sign * 3e38;
    case 9:
      return sign * 1e-40;
    case 10:
      return -0.0;
    case 11:
      return z * limit;
    case 12:
      // Past 3e38, the largest that semantics.md speaks of, float64 has room for sums of such.
      return sign * (dtype == XENT_F64 ? 1e300 : 3.4e38);
    case 13:
      return z * 1000 + 60;
    default:
      return z;
  }
}

Problem RandomProblem(uint64_t seed, bool long_rows) {
  Random random(seed);
  const xent_dtype dtype = kDtypes[random.Below(4)];
  const int64_t rows = 1 + random.Below(long_rows ? 2 : 5);
  const int64_t cols = long_rows ? 1000 + random.Below(40000) : 1 + random.Below(random.Below(2) == 0 ? 5 : 300);
  const int64_t padding = random.Below(3);
  Problem problem(dtype, rows, cols, 0, padding, random.Below(5));
  problem.name = "mixture, seed " + std::to_string(seed);
  const int64_t stretch = 1 + random.Below(cols);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t kinds[] = {random.Below(20), random.Below(20), random.Below(20)};
    for (int64_t j = 0; j < cols; ++j) {
      const int64_t kind = long_rows ? kinds[(j / stretch) % 3] : kinds[random.Below(3)];
      problem.logits.Set(i, j, Logit(kind, dtype, random));
    }
    if (random.Below(40) == 0) problem.logits.SetBits(i, random.Below(cols), reference::InfinityBits(dtype) | 1);
    if (random.Below(40) == 0) problem.logits.SetBits(i, random.Below(cols), reference::InfinityBits(dtype));
    problem.targets[static_cast<size_t>(i)] = random.Below(15) == 0 ? -100 : random.Below(cols);
  }

  xent_cross_entropy_options &options = problem.options;
  const double kSmoothing[] = {0, 0, 0.1, 0.5, 1};
  options.label_smoothing = kSmoothing[random.Below(5)];
  if (cols > 1 && random.Below(2) == 0) options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
  constexpr xent_reduction_kind kReductions[] = {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN};
  options.reduction.kind = kReductions[random.Below(3)];
  if (options.reduction.kind != XENT_REDUCTION_NONE && random.Below(4) == 0) {
    options.reduction.divisor = std::ldexp(1 + random.Uniform(), static_cast<int>(random.Below(120)) - 60);
  }
  options.reduction.empty_mean = static_cast<int32_t>(random.Below(2));
  // None, one value, or one a row.
  const bool per_row = random.Below(2) == 0;
  std::vector<double> upstream;
  for (int64_t i = 0; i < (per_row ? rows : random.Below(2)); ++i) {
    upstream.push_back(random.Normal(1) * std::ldexp(1.0, static_cast<int>(random.Below(60)) - 30));
  }
  if (!upstream.empty()) problem.SetUpstream(upstream, per_row ? XENT_UPSTREAM_ROWS : XENT_UPSTREAM_SCALAR);
  return problem;
}

TEST_P(Mixture, OfShortRows) {
  for (uint64_t seed = 1; seed <= 12000; ++seed) {
    RunAndExpectAccurate(RandomProblem(seed, false));
    if (HasFailure()) FAIL() << "stopped at seed " << seed;
  }
}

TEST_P(Mixture, OfLongRows) {
  for (uint64_t seed = 10001; seed <= 10060; ++seed) {
    RunAndExpectAccurate(RandomProblem(seed, true));
    if (HasFailure()) FAIL() << "stopped at seed " << seed;
  }
}

// Stored outputs of softmax or log_softmax, of scales that hardly meet: what those functions store, so that p is a
// normal number or 0. (A log-probability below -87, or -708 for float64, has a p below that; no upstream gradient of
// ordinary size makes it count.)
double StoredOutput(bool log, int64_t kind, Random &random) {
  const double depth = std::fabs(random.Normal(1));
  switch (kind) {
    case 0:
      return log ? -kInfinity : 0;
    case 1:
      return log ? 0 : 1;
    case 2:
      return log ? -80 - 2 * depth : std::ldexp(1 + random.Uniform(), -120);
    case 3:
      return log ? -1e-6 * depth : 1 - 1e-6 * random.Uniform();
    default:
      return log ? -8 * depth : (1 + random.Uniform()) / 16;
  }
}

// Upstream gradients whose sum stays far inside the arithmetic type's range.
double Upstream(int64_t kind, Random &random) {
  const double z = random.Normal(1);
  switch (kind) {
    case 0:
      return 0;
    case 1:
      return z * 1e30;
    case 2:
      return z * 1e-30;
    case 3:
      return z * 1e9;
    case 4:
      return -0.0;
    default:
      return z;
  }
}

TEST_P(Mixture, OfBackwardRows) {
  for (uint64_t seed = 1; seed <= 20000; ++seed) {
    Random random(seed);
    const xent_dtype dtype = kDtypes[random.Below(4)];
    const bool log = random.Below(2) == 0;
    const int64_t cols = 1 + random.Below(random.Below(2) == 0 ? 5 : 300);
    const int64_t stored_kind = random.Below(6);
    const int64_t upstream_kind = random.Below(10);
    Matrix output(dtype, 1, cols, 0, random.Below(5));
    Matrix upstream(dtype, 1, cols, 0, random.Below(5));
    Matrix dx(dtype, 1, cols, 0, random.Below(5));
    for (int64_t j = 0; j < cols; ++j) {
      output.SetInRange(0, j, StoredOutput(log, random.Below(2) == 0 ? stored_kind : 9, random));
      upstream.SetInRange(0, j, Upstream(random.Below(2) == 0 ? upstream_kind : 9, random));
    }
    if (random.Below(20) == 0) upstream.Set(0, random.Below(cols), random.Below(2) == 0 ? kInfinity : -kInfinity);
    if (random.Below(20) == 0) output.SetBits(0, random.Below(cols), reference::InfinityBits(dtype) | 1);
    if (random.Below(20) == 0) upstream.SetBits(0, random.Below(cols), reference::InfinityBits(dtype) | 1);

    const auto backward = log ? xent_log_softmax_backward : xent_softmax_backward;
    ASSERT_EQ(backward(1, cols, 0, View(upstream), View(output), View(dx), &kSerial, nullptr), XENT_OK);
    ASSERT_TRUE(dx.PaddingIntact());
    const std::vector<double> g = reference::DecodeRows(dtype, upstream.data(), 1, cols, 0);
    const std::vector<double> y = reference::DecodeRows(dtype, output.data(), 1, cols, 0);
    const std::vector<reference::Value> want =
        log ? reference::LogSoftmaxBackward(g, y) : reference::SoftmaxBackward(g, y);
    for (int64_t j = 0; j < cols; ++j) {
      const reference::Value &value = want[static_cast<size_t>(j)];
      ASSERT_LE(reference::ErrorInUlp(dtype, dx.row(0), j, value), kBackwardUlp)
          << (log ? "log_softmax" : "softmax") << "_backward " << reference::NameOf(dtype) << " [" << j << "] of "
          << cols << " got " << dx.Get(0, j) << " want " << static_cast<double>(value.exact) << " counted at "
          << static_cast<double>(value.scale) << ", g " << g[static_cast<size_t>(j)] << ", y "
          << y[static_cast<size_t>(j)] << ", seed " << seed << ", target " << GetParam();
    }
  }
}

}  // namespace
}  // namespace xent::test
