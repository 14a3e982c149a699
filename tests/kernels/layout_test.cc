// Shapes and layouts: every length around the lane counts, the step of 128, the block and the chunk borders; misaligned
// rows, strides over poisoned padding, and rows that end where readable memory ends.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "testing/check.h"
#include "testing/data.h"
#include "testing/target.h"

namespace xent::test {
namespace {

class Layout : public TargetTest {};
XENT_INSTANTIATE_TARGETS(Layout);

Problem NormalProblem(const std::string &name, xent_dtype dtype, int64_t rows, int64_t cols, int64_t padding = 0,
                      int64_t misalign = 0) {
  Random random(static_cast<uint64_t>(cols) * 31 + 7);
  return MakeProblem(
      name + ", seed 31 V + 7", dtype, rows, cols, [&](int64_t, int64_t) { return random.Normal(2); },
      [&](int64_t i) { return (cols - 1) * (i % 3) / 2; }, padding, misalign);
}

TEST_P(Layout, EveryShortLength) {
  for (const xent_dtype dtype : kDtypes) {
    for (int64_t cols = 1; cols <= 40; ++cols) {
      Problem problem = NormalProblem("short rows", dtype, 7, cols);
      RunAndExpectAccurate(problem);
      problem.options.label_smoothing = 0.2;
      problem.options.smoothing = cols % 2 == 0 ? XENT_SMOOTHING_EXCLUSIVE : XENT_SMOOTHING_UNIFORM;
      RunAndExpectAccurate(problem);
    }
  }
}

TEST_P(Layout, LengthsAroundBorders) {
  // Steps of 128, blocks of 1024 and more, the length where chunks grow from 1024 to 2048 columns (16 * 1024), and the
  // next.
  const int64_t kLengths[] = {63,   64,   65,   127,  128,  129,   130,   255,   256,   257,   383,  1023,
                              1024, 1025, 1151, 1152, 1153, 2047,  2048,  2049,  3071,  3072,  3073, 4095,
                              4096, 4097, 8191, 8192, 8193, 16383, 16384, 16385, 32767, 32768, 32769};
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t cols : kLengths) {
      Problem problem = NormalProblem("rows around a border", dtype, cols < 4000 ? 3 : 1, cols);
      problem.targets[0] = cols - 1;
      if (cols % 3 == 0) problem.options.label_smoothing = 0.1;
      RunAndExpectAccurate(problem);
    }
  }
}

TEST_P(Layout, LargestLogitAtEveryPlaceOfStepAndTail) {
  // A column that is lost or counted twice shows where it holds nearly all of the sum.
  for (const xent_dtype dtype : kDtypes) {
    const int64_t cols = 300;
    Random random(9);
    RunAndExpectAccurate(MakeProblem(
        "one logit 9 above, row i at column i", dtype, cols, cols,
        [&](int64_t i, int64_t j) { return random.Normal(1) + (i == j ? 9 : 0); },
        [&](int64_t i) { return (i + 150) % cols; }));
    RunAndExpectAccurate(MakeProblem(
        "the target 9 above, row i at column i", dtype, cols, cols,
        [&](int64_t i, int64_t j) { return random.Normal(1) + (i == j ? 9 : 0); }, [](int64_t i) { return i; }));
  }
}

TEST_P(Layout, MisalignmentAndStrideDoNotChangeBits) {
  // Padding and guards are signalling NaN; RunAll sees to it that they are neither read into a result nor written.
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t cols : {1, 3, 15, 16, 17, 33, 127, 128, 129, 300, 1025, 2500}) {
      const Problem plain = NormalProblem("aligned", dtype, 5, cols);
      const Outputs want = RunAll(plain);
      for (const int64_t extra : {0, 1, 2, 7, 64}) {
        for (const int64_t misalign : {1, 3, 8, 31}) {
          const Problem moved =
              NormalProblem("stride " + std::to_string(cols + extra) + ", shifted by " + std::to_string(misalign),
                            dtype, 5, cols, extra, misalign);
          EXPECT_EQ(FirstDifference(want, RunAll(moved)), "") << moved.name << ", " << GetParam();
          EXPECT_TRUE(moved.logits.matrix().PaddingIntact()) << moved.name;
        }
      }
    }
  }
}

TEST_P(Layout, InputsStayAsTheyWere) {
  for (const xent_dtype dtype : kDtypes) {
    const Problem problem = NormalProblem("inputs", dtype, 4, 777, 23, 1);
    const Problem before = problem;
    RunAll(problem);
    EXPECT_EQ(FirstDifference(before.logits, problem.logits), "");
    EXPECT_EQ(before.targets, problem.targets);
  }
}

// `bytes` of memory between two pages that may not be touched, at the end or at the beginning of what may be.
class FencedMemory {
 public:
  FencedMemory(size_t bytes, bool at_end) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inner = (bytes + page - 1) / page * page;
    size_ = inner + 2 * page;
    pages_ = static_cast<char *>(mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (pages_ == MAP_FAILED || mprotect(pages_ + page, inner, PROT_READ | PROT_WRITE) != 0) {
      ADD_FAILURE() << "no fenced memory";
      return;
    }
    data_ = pages_ + page + (at_end ? inner - bytes : 0);
  }
  ~FencedMemory() { munmap(pages_, size_); }
  FencedMemory(const FencedMemory &) = delete;
  FencedMemory &operator=(const FencedMemory &) = delete;
  void *data() { return data_; }

 private:
  char *pages_ = nullptr;
  char *data_ = nullptr;
  size_t size_ = 0;
};

TEST_P(Layout, NothingIsReadOrWrittenBeyondTheRows) {
  // A masked or padded load that reaches past the last element ends here in a segmentation fault.
  std::vector<int64_t> lengths;
  for (int64_t cols = 1; cols <= 70; ++cols) lengths.push_back(cols);
  for (const int64_t cols : {127, 128, 129, 200, 255, 256, 257, 1023, 1024, 1025, 2049, 16385}) lengths.push_back(cols);
  for (const xent_dtype dtype : kDtypes) {
    const xent_dtype arithmetic = reference::ArithmeticType(dtype);
    for (const int64_t cols : lengths) {
      for (const bool at_end : {true, false}) {
        const int64_t kRows = 2;
        const Problem problem = NormalProblem("fenced", dtype, kRows, cols);
        const Outputs want = RunAll(problem);
        const size_t bytes = static_cast<size_t>(kRows * cols * problem.logits.matrix().Bytes());
        const size_t row_bytes = static_cast<size_t>(kRows * reference::FormatOf(arithmetic).bytes);
        FencedMemory logits(bytes, at_end);
        FencedMemory result(bytes, at_end);
        FencedMemory losses(row_bytes, at_end);
        FencedMemory lse(row_bytes, at_end);
        FencedMemory targets(kRows * sizeof(int64_t), at_end);
        FencedMemory records(kRows * XENT_RECORD_BYTES, at_end);
        std::memcpy(logits.data(), problem.logits.data(), bytes);
        std::memcpy(targets.data(), problem.targets.data(), kRows * sizeof(int64_t));
        const auto expect_result = [&](const Tensor &wanted, const char *what) {
          ASSERT_EQ(std::memcmp(result.data(), wanted.data(), bytes), 0) << what << ", " << cols;
        };
        const xent_matrix x = {logits.data(), 0, dtype, 0};
        const xent_matrix y = {result.data(), 0, dtype, 0};

        xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
        args.rows = kRows;
        args.cols = cols;
        args.logits = x;
        args.targets = {.data = targets.data(), .type = XENT_I64, .reserved = 0};
        args.row_losses = losses.data();
        xent_statistics statistics = XENT_STATISTICS_INIT;
        statistics.lse = lse.data();
        args.statistics = &statistics;
        args.records = records.data();
        ASSERT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, nullptr), XENT_OK);
        ASSERT_EQ(std::memcmp(losses.data(), want.row_losses.data(), row_bytes), 0) << cols;
        ASSERT_EQ(std::memcmp(lse.data(), want.lse.data(), row_bytes), 0) << cols;
        args.row_losses = nullptr;
        args.statistics = nullptr;
        args.grad = y;
        ASSERT_EQ(xent_cross_entropy_backward(&args, nullptr, nullptr, nullptr), XENT_OK);
        expect_result(want.grad, "backward");
        args.records = nullptr;
        args.row_losses = losses.data();
        ASSERT_EQ(xent_cross_entropy_forward_backward(&args, nullptr, nullptr, nullptr), XENT_OK);
        expect_result(want.grad, "forward_backward");
        ASSERT_EQ(xent_logsumexp(kRows, cols, 0, x, lse.data(), nullptr, nullptr), XENT_OK);
        ASSERT_EQ(std::memcmp(lse.data(), want.logsumexp.data(), row_bytes), 0) << cols;
        ASSERT_EQ(xent_softmax(kRows, cols, 0, x, y, nullptr, nullptr), XENT_OK);
        expect_result(want.softmax, "softmax");
        ASSERT_EQ(xent_softmax_backward(kRows, cols, 0, x, y, y, nullptr, nullptr), XENT_OK);
        ASSERT_EQ(xent_log_softmax(kRows, cols, 0, x, y, nullptr, nullptr), XENT_OK);
        expect_result(want.log_softmax, "log_softmax");
        ASSERT_EQ(xent_log_softmax_backward(kRows, cols, 0, x, y, y, nullptr, nullptr), XENT_OK);
        xent_diagnosis diagnosis;
        ASSERT_EQ(xent_check_logits(kRows, cols, 0, x, &diagnosis, nullptr, nullptr), XENT_OK);
        // In place, between the same fences.
        args.grad = x;
        ASSERT_EQ(xent_cross_entropy_forward_backward(&args, nullptr, nullptr, nullptr), XENT_OK);
        ASSERT_EQ(std::memcmp(logits.data(), want.grad.data(), bytes), 0) << "in place, " << cols;
      }
    }
  }
}

TEST_P(Layout, Labels32And64) {
  for (const xent_dtype dtype : kDtypes) {
    const Problem problem = NormalProblem("labels", dtype, 9, 50);
    const Outputs want = RunAll(problem);
    LossCall narrow = problem;
    narrow.targets_type = XENT_I32;
    ASSERT_EQ(narrow.Forward(), XENT_OK);
    EXPECT_EQ(narrow.ForwardDifference(want), "");
  }
}

}  // namespace
}  // namespace xent::test
