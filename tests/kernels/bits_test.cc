// The same bits, whatever should not matter: the target (among those with fused multiply-add), the number of threads
// and whose they are, the rows beside a row, and the caller's floating-point mode, which is also left as it was.
#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "testing/check.h"
#include "testing/data.h"
#include "testing/target.h"

namespace xent::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class SameBits : public TargetTest {};
XENT_INSTANTIATE_TARGETS(SameBits);

// Rows of all kinds: normal, masked, with a far outlier (a redone block), beyond 2^20, NaN, ignored, ties, far tails.
// With Losses::kFinite masks are finite and there is no NaN, so that the reduced loss and the perplexity are numbers.
enum class Losses { kAny, kFinite };
Problem MixedProblem(xent_dtype dtype, int64_t rows, int64_t cols, int64_t option, Losses losses = Losses::kAny) {
  const bool finite = losses == Losses::kFinite;
  Random random(static_cast<uint64_t>(rows * 1000003 + cols));
  Problem problem = MakeProblem(
      "mixed rows", dtype, rows, cols,
      [&](int64_t i, int64_t j) {
        const double z = random.Normal(4);
        const bool special = random.Below(cols) == 0 || j == cols / 2;
        switch (i % 9) {
          case 1:
            return random.Below(10) < 3 ? (finite ? -60 : -kInfinity) : z;
          case 2:
            return special ? z + (finite ? 70 : 200) : z;
          case 3:
            return special ? 0x1p20 + 3 : (j % 3 == 0 || finite ? 0x1p20 - 4 : z);
          case 4:
            return special && !finite ? std::numeric_limits<double>::quiet_NaN() : z;
          case 5:
            return static_cast<double>(j % 2);
          case 6:
            return -static_cast<double>(j % 97);
          case 7:
            return special && !finite ? -1e9 : z - 3000;
          default:
            return z;
        }
      },
      [&](int64_t i) { return i % 9 == 8 ? -100 : random.Below(cols); });
  if (option % 3 == 1) problem.options.label_smoothing = 0.1;
  if (option % 3 == 2 && cols > 1) {
    problem.options.label_smoothing = 0.3;
    problem.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
    problem.options.reduction.kind = XENT_REDUCTION_SUM;
  }
  problem.SetUpstream({0.75}, XENT_UPSTREAM_SCALAR);
  return problem;
}

std::vector<Problem> Battery() {
  std::vector<Problem> problems;
  int64_t option = 0;
  for (const xent_dtype dtype : kDtypes) {
    const int64_t kShapes[][2] = {{40, 1},   {50, 2},    {45, 5},   {40, 10},   {30, 31},  {30, 100},
                                  {18, 130}, {18, 1000}, {9, 3000}, {9, 16385}, {3, 40000}};
    for (const auto &[rows, cols] : kShapes) {
      problems.push_back(MixedProblem(dtype, rows, cols, option, option % 2 == 0 ? Losses::kAny : Losses::kFinite));
      ++option;
    }
  }
  return problems;
}

TEST_P(SameBits, OnEveryTargetWithFusedMultiplyAdd) {
  if (!HasFusedMultiplyAdd(GetParam())) GTEST_SKIP() << GetParam() << " has no fused multiply-add";
  for (const Problem &problem : Battery()) {
    const Outputs here = RunAll(problem);
    for (const std::string &other : AvailableTargets()) {
      if (!HasFusedMultiplyAdd(other) || other == GetParam()) continue;
      const ScopedTarget scope(other);
      EXPECT_EQ(FirstDifference(here, RunAll(problem)), "")
          << GetParam() << " and " << other << ", " << reference::NameOf(problem.dtype) << ", " << problem.rows << "x"
          << problem.cols;
    }
  }
}

// z log2 e half way between two integers, which logit_scale makes possible: all round to the same one.
TEST_P(SameBits, OfExponentsHalfWay) {
  if (!HasFusedMultiplyAdd(GetParam())) GTEST_SKIP() << GetParam() << " has no fused multiply-add";
  for (const int64_t inner : {0, 16}) {
    LossCall here(XENT_F32, 16, 2, inner);
    for (int64_t i = 0; i < here.rows; ++i) {
      here.logits.Set(i, 0, -0x1p20 + static_cast<double>(i));
      here.logits.Set(i, 1, -0x1.fffff8p19);
      here.targets[static_cast<size_t>(i)] = 1;
    }
    here.options.logit_scale = 0x1.839d868c4143ap-1;
    here.MustRun(Function::kForward);
    for (const std::string &other : AvailableTargets()) {
      if (!HasFusedMultiplyAdd(other)) continue;
      const ScopedTarget scope(other);
      LossCall there = here;
      there.MustRun(Function::kForward);
      for (int64_t i = 0; i < here.rows; ++i) {
        EXPECT_EQ(here.row_losses.GetBits(0, i), there.row_losses.GetBits(0, i)) << GetParam() << " and " << other;
      }
    }
  }
}

// A caller's pool that does its tasks last to first on the calling thread.
void BackToFront(void *, int64_t n, xent_task task, void *arg) {
  for (int64_t i = n - 1; i >= 0; --i) task(arg, i);
}

// One that runs three tasks at once, each on a thread of its own; *ctx becomes the most tasks that it was given at a
// time.
void ThreadsOfOurOwn(void *ctx, int64_t n, xent_task task, void *arg) {
  int64_t &most = *static_cast<int64_t *>(ctx);
  most = std::max(most, n);
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 3; ++t) {
    threads.emplace_back([=] {
      for (int64_t i = t; i < n; i += 3) task(arg, i);
    });
  }
  for (std::thread &thread : threads) thread.join();
}

// The problem serially, by 1, 2, 3 and 8 threads of the library's team, and by two pools of the caller's.
void ExpectSameByAnyThreads(const Problem &problem, const std::string &target, bool expect_split) {
  const Outputs want = RunAll(problem);
  const std::string where = std::string(", ") + reference::NameOf(problem.dtype) + ", " + std::to_string(problem.rows) +
                            "x" + std::to_string(problem.cols) + ", " + target;
  EXPECT_EQ(FirstDifference(want, RunAll(problem, XENT_EXEC_INIT)), "") << "default policy" << where;
  for (const int32_t threads : {1, 2, 3, 8}) {
    EXPECT_EQ(FirstDifference(want, RunAll(problem, TeamOf(threads))), "") << threads << " threads" << where;
    EXPECT_EQ(FirstDifference(want, RunAll(problem, PoolOf(BackToFront, nullptr, threads))), "")
        << threads << " tasks back to front" << where;
    int64_t most = 0;
    EXPECT_EQ(FirstDifference(want, RunAll(problem, PoolOf(ThreadsOfOurOwn, &most, threads))), "")
        << threads << " own threads" << where;
    if (expect_split && threads > 1) {
      EXPECT_GT(most, 1) << "a row of " << problem.cols << " was not split" << where;
    }
  }
}

TEST_P(SameBits, ByAnyNumberOfThreads) {
  // Rows over threads; large enough that the library does cut the work. Numbers that the rows' order or grouping
  // changes are the perplexity and the reduced loss.
  int64_t option = 0;
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t cols : {10, 130, 5000}) {
      const int64_t rows = 100000 / cols;
      ExpectSameByAnyThreads(MixedProblem(dtype, rows, cols, option, option % 3 == 0 ? Losses::kAny : Losses::kFinite),
                             GetParam(), false);
      ++option;
    }
  }
}

TEST_P(SameBits, OfOneLongRowSplitAtItsChunks) {
  for (const xent_dtype dtype : kDtypes) {
    // Fewer rows than threads: 1, 2 and 5 rows, the last of which are masked, redone and beyond 2^20.
    ExpectSameByAnyThreads(MixedProblem(dtype, 1, 262144 + 5, 0), GetParam(), true);
    ExpectSameByAnyThreads(MixedProblem(dtype, 2, 65536 + 1, 1), GetParam(), false);
    ExpectSameByAnyThreads(MixedProblem(dtype, 5, 40001, 2, Losses::kFinite), GetParam(), false);
  }
}

TEST_P(SameBits, OfALongRowWhoseChunksDiffer) {
  // One row: chunks beyond 2^20, chunks that redo, chunks without any live column, NaN nowhere.
  for (const xent_dtype dtype : kDtypes) {
    const int64_t cols = 131072 + 77;
    const int64_t chunk = xent_chunk_cols(cols);
    Random random(8);
    for (const double center : {0.0, 0x1p20}) {
      ExpectSameByAnyThreads(MakeProblem(
                                 "chunks of all kinds", dtype, 1, cols,
                                 [&](int64_t, int64_t j) {
                                   const double z = random.Normal(2);
                                   switch (j / chunk % 4) {
                                     case 1:
                                       return center + 5 + z;
                                     case 2:
                                       return -kInfinity;
                                     case 3:
                                       return center + (j % 1000 == 7 ? 150 : 0) - 140 + z;
                                     default:
                                       return center + z;
                                   }
                                 },
                                 [&](int64_t) { return 5 * chunk + 3; }),
                             GetParam(), false);
    }
  }
}

TEST_P(SameBits, OfARowAloneAndInABatch) {
  for (const Problem &problem : Battery()) {
    if (problem.cols > 4000) continue;
    Problem batch = problem;
    // A sum, so that the denominator does not depend on the batch.
    batch.options.reduction.kind = XENT_REDUCTION_SUM;
    const Outputs all = RunAll(batch);
    for (int64_t i = 0; i < problem.rows; ++i) {
      Problem row(problem.dtype, 1, problem.cols, 0, 0, i % 5);
      row.name = problem.name + ", row " + std::to_string(i);
      for (int64_t j = 0; j < problem.cols; ++j) row.logits.SetBits(0, j, problem.logits.GetBits(i, j));
      row.targets = {problem.targets[static_cast<size_t>(i)]};
      row.options = batch.options;
      row.upstream = batch.upstream;
      const Outputs one = RunAll(row);
      ASSERT_EQ(one.row_losses.GetBits(0, 0), all.row_losses.GetBits(0, i)) << i << " of " << problem.rows;
      ASSERT_EQ(one.lse.GetBits(0, 0), all.lse.GetBits(0, i)) << i;
      ASSERT_EQ(one.logsumexp.GetBits(0, 0), all.logsumexp.GetBits(0, i)) << i;
      for (int64_t j = 0; j < problem.cols; ++j) {
        ASSERT_EQ(one.grad.GetBits(0, j), all.grad.GetBits(i, j))
            << i << "," << j << " of " << problem.cols << " " << reference::NameOf(problem.dtype);
        ASSERT_EQ(one.softmax.GetBits(0, j), all.softmax.GetBits(i, j)) << i << "," << j;
        ASSERT_EQ(one.log_softmax.GetBits(0, j), all.log_softmax.GetBits(i, j)) << i << "," << j;
      }
    }
  }
}

// What the processor's floating-point control says: rounding, flush to zero, denormals are zero, unmasked exceptions;
// without the sticky flags.
uint64_t Mode() {
#if defined(__x86_64__)
  return _mm_getcsr() & ~uint32_t{0x3f};
#elif defined(__aarch64__)
  uint64_t fpcr;
  asm volatile("mrs %0, fpcr" : "=r"(fpcr));
  return fpcr;
#else
  return static_cast<uint64_t>(std::fegetround());
#endif
}

void SetMode(uint64_t mode) {
#if defined(__x86_64__)
  _mm_setcsr(static_cast<uint32_t>(mode));
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" ::"r"(mode));
#else
  std::fesetround(static_cast<int>(mode));
#endif
}

struct NamedMode {
  std::string name;
  uint64_t bits;  // of the control register
};

// Each rounding mode with and without flushing, and the default rounding with every exception unmasked.
std::vector<NamedMode> Modes() {
  std::vector<NamedMode> modes;
  const uint64_t plain = Mode();
#if defined(__x86_64__)
  const uint64_t flush = 0x8040;            // FTZ, DAZ
  const uint64_t trap = ~uint64_t{0x1f80};  // exception masks, all cleared
  const std::pair<const char *, uint64_t> kRounding[] = {
      {"to nearest", 0}, {"down", 0x2000}, {"up", 0x4000}, {"to zero", 0x6000}};
  modes.push_back({"exceptions unmasked", plain & trap});
  modes.push_back({"exceptions unmasked, flushing", (plain & trap) | flush});
#elif defined(__aarch64__)
  const uint64_t flush = uint64_t{1} << 24;
  const std::pair<const char *, uint64_t> kRounding[] = {
      {"to nearest", 0}, {"up", uint64_t{1} << 22}, {"down", uint64_t{2} << 22}, {"to zero", uint64_t{3} << 22}};
  // Default NaN, and the trap enables, which processors without traps ignore.
  modes.push_back({"default NaN", plain | uint64_t{1} << 25});
  modes.push_back({"exceptions unmasked", plain | uint64_t{0x9f00}});
#else
  const uint64_t flush = 0;
  const std::pair<const char *, uint64_t> kRounding[] = {
      {"to nearest", FE_TONEAREST}, {"down", FE_DOWNWARD}, {"up", FE_UPWARD}, {"to zero", FE_TOWARDZERO}};
#endif
  for (const auto &[name, rounding] : kRounding) {
    modes.push_back({std::string("rounding ") + name, plain | rounding});
    modes.push_back({std::string("rounding ") + name + ", flushing", plain | rounding | flush});
  }
  return modes;
}

// Calls `call` under the mode; the mode must be there still when it returns.
void CallUnder(const NamedMode &mode, const std::function<void()> &call) {
  const uint64_t before = Mode();
  SetMode(mode.bits);
  // What was really set: hardware may ignore some bits.
  const uint64_t set = Mode();
  call();
  const uint64_t after = Mode();
  SetMode(before);
  EXPECT_EQ(after, set) << mode.name << " was not restored";
}

// The outputs of the library's calls alone, so that no other code runs under a strange mode.
struct Raw {
  std::vector<unsigned char> bytes;
};

Raw CallEverything(const Problem &problem, const NamedMode &mode, const xent_exec &exec) {
  const int64_t rows = problem.rows;
  const int64_t cols = problem.cols;
  const xent_dtype dtype = problem.dtype;
  const size_t row_bytes = static_cast<size_t>(rows) * sizeof(double);
  const size_t matrix_bytes = static_cast<size_t>(rows * cols * problem.logits.matrix().Bytes());
  std::vector<unsigned char> losses(row_bytes), lse(row_bytes), logsumexp(row_bytes), loss(sizeof(double));
  std::vector<unsigned char> grad(matrix_bytes), grad_again(matrix_bytes), softmax(matrix_bytes),
      log_softmax(matrix_bytes);
  std::vector<unsigned char> softmax_backward(matrix_bytes), log_softmax_backward(matrix_bytes),
      reduced(sizeof(double));
  std::vector<uint64_t> records(static_cast<size_t>(rows) * XENT_RECORD_BYTES / sizeof(uint64_t));
  double perplexity = 0;
  xent_diagnosis diagnosis = XENT_DIAGNOSIS_LOGITS;
  const double upstream64 = 0.7;
  const float upstream32 = 0.7f;

  const auto view = [&](void *data) { return xent_matrix{data, 0, dtype, 0}; };
  const xent_matrix logits = View(problem.logits);
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.logits = logits;
  args.targets = {.data = problem.targets.data(), .type = XENT_I64, .reserved = 0};
  xent_statistics statistics = XENT_STATISTICS_INIT;
  statistics.lse = lse.data();
  statistics.perplexity = &perplexity;
  xent_cross_entropy forward = args;
  forward.row_losses = losses.data();
  forward.reduced_loss = loss.data();
  forward.statistics = &statistics;
  forward.records = records.data();
  xent_cross_entropy backward = args;
  backward.upstream.data = dtype == XENT_F64 ? static_cast<const void *>(&upstream64) : &upstream32;
  backward.records = records.data();
  backward.grad = view(grad_again.data());
  xent_cross_entropy both = backward;
  both.records = nullptr;
  both.grad = view(grad.data());
  xent_stored_losses stored = XENT_STORED_LOSSES_INIT;
  stored.rows = rows;
  stored.row_losses = losses.data();
  stored.targets = args.targets;
  stored.reduced_loss = reduced.data();
  stored.dtype = reference::ArithmeticType(dtype);

  int failures = 0;
  CallUnder(mode, [&] {
    const auto count = [&](xent_status status) { failures += status != XENT_OK; };
    count(xent_cross_entropy_forward(&forward, &problem.options, &exec, nullptr));
    count(xent_cross_entropy_backward(&backward, &problem.options, &exec, nullptr));
    count(xent_cross_entropy_forward_backward(&both, &problem.options, &exec, nullptr));
    count(xent_logsumexp(rows, cols, 0, logits, logsumexp.data(), &exec, nullptr));
    count(xent_softmax(rows, cols, 0, logits, view(softmax.data()), &exec, nullptr));
    count(xent_log_softmax(rows, cols, 0, logits, view(log_softmax.data()), &exec, nullptr));
    count(xent_softmax_backward(rows, cols, 0, logits, view(softmax.data()), view(softmax_backward.data()), &exec,
                                nullptr));
    count(xent_log_softmax_backward(rows, cols, 0, logits, view(log_softmax.data()), view(log_softmax_backward.data()),
                                    &exec, nullptr));
    count(xent_reduce(&stored, &problem.options, nullptr));
    count(xent_check_logits(rows, cols, 0, logits, &diagnosis, &exec, nullptr));
  });
  EXPECT_EQ(failures, 0) << mode.name;

  Raw raw;
  for (const auto *part : {&losses, &lse, &logsumexp, &loss, &grad, &grad_again, &softmax, &log_softmax,
                           &softmax_backward, &log_softmax_backward, &reduced}) {
    raw.bytes.insert(raw.bytes.end(), part->begin(), part->end());
  }
  const unsigned char *p = reinterpret_cast<const unsigned char *>(&perplexity);
  raw.bytes.insert(raw.bytes.end(), p, p + sizeof(perplexity));
  raw.bytes.push_back(static_cast<unsigned char>(diagnosis));
  return raw;
}

TEST_P(SameBits, UnderAnyFloatingPointMode) {
  const NamedMode plain = {"default", Mode()};
  const std::pair<const char *, xent_exec> kPolicies[] = {
      {"serial", kSerial}, {"team of 3", TeamOf(3)}, {"pool of 3", PoolOf(BackToFront, nullptr, 3)}};
  int64_t option = 0;
  for (const xent_dtype dtype : kDtypes) {
    const int64_t kShapes[][2] = {{18, 7}, {18, 300}, {9, 3000}, {1, 100003}};
    for (const auto &[rows, cols] : kShapes) {
      Problem problem = MixedProblem(dtype, rows, cols, option, option % 2 == 0 ? Losses::kAny : Losses::kFinite);
      ++option;
      // Subnormal logits, which denormals-are-zero would change.
      problem.logits.SetBits(0, cols - 1, 1);
      for (const auto &[policy, exec] : kPolicies) {
        const Raw want = CallEverything(problem, plain, exec);
        for (const NamedMode &mode : Modes()) {
          const Raw got = CallEverything(problem, mode, exec);
          EXPECT_TRUE(got.bytes == want.bytes) << mode.name << ", " << policy << ", " << reference::NameOf(dtype)
                                               << ", " << rows << "x" << cols << ", " << GetParam();
        }
      }
    }
  }
}

TEST_P(SameBits, OfArrayFunctionsUnderAnyFloatingPointMode) {
  constexpr int64_t kCount = 1000;
  Random random(1);
  for (const xent_dtype type : {XENT_F32, XENT_F64}) {
    Matrix x(type, 1, kCount);
    for (int64_t k = 0; k < kCount; ++k) {
      // All bit patterns, then subnormal ones and those whose exponential is subnormal.
      x.SetBits(0, k, random.Next());
      if (k % 4 == 1) x.SetBits(0, k, static_cast<uint64_t>(k) * 4097);
      if (k % 4 == 2) x.Set(0, k, (type == XENT_F32 ? -87.3 : -708.4) - random.Uniform() * 17);
    }
    const auto call_all = [&](const NamedMode &mode) {
      std::vector<Matrix> results(3, Matrix(type, 1, kCount));
      CallUnder(mode, [&] {
        if (type == XENT_F32) {
          const float *in = static_cast<const float *>(x.data());
          xent_exp_f32(in, static_cast<float *>(results[0].data()), kCount);
          xent_log_f32(in, static_cast<float *>(results[1].data()), kCount);
          xent_log1p_f32(in, static_cast<float *>(results[2].data()), kCount);
        } else {
          const double *in = static_cast<const double *>(x.data());
          xent_exp_f64(in, static_cast<double *>(results[0].data()), kCount);
          xent_log_f64(in, static_cast<double *>(results[1].data()), kCount);
          xent_log1p_f64(in, static_cast<double *>(results[2].data()), kCount);
        }
      });
      return results;
    };
    const std::vector<Matrix> want = call_all({"default", Mode()});
    for (const NamedMode &mode : Modes()) {
      const std::vector<Matrix> got = call_all(mode);
      for (size_t f = 0; f < got.size(); ++f) {
        EXPECT_EQ(FirstDifference(want[f], got[f]), "") << mode.name << ", function " << f << ", " << GetParam();
      }
    }
  }
}

}  // namespace
}  // namespace xent::test
