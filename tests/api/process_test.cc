// The library as a guest in somebody else's process: nothing from the heap, at most 16 KB of stack, errno as it was.
// Heap and stack are measured without the OpenMP runtime, which takes its own; sanitizers replace
// both, so with them these two are skipped.
#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <ostream>
#include <vector>

#include "testing/assertions.h"
#include "testing/loss_call.h"
#include "testing/sanitized.h"

#if defined(__GLIBC__) && !defined(XENT_TEST_SANITIZED)
#define XENT_TEST_COUNTS_ALLOCATIONS 1

namespace {
std::atomic<int64_t> g_allocations{0};
}  // namespace

// glibc lets a program put its own functions in place of malloc and its kin, and serves these names beside.
extern "C" {
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *block);

void *malloc(size_t size) {
  ++g_allocations;
  return __libc_malloc(size);
}
void *calloc(size_t count, size_t size) {
  ++g_allocations;
  return __libc_calloc(count, size);
}
void *realloc(void *block, size_t size) {
  ++g_allocations;
  return __libc_realloc(block, size);
}
void *memalign(size_t alignment, size_t size) {
  ++g_allocations;
  return __libc_memalign(alignment, size);
}
void *aligned_alloc(size_t alignment, size_t size) {
  ++g_allocations;
  return __libc_memalign(alignment, size);
}
int posix_memalign(void **block, size_t alignment, size_t size) {
  ++g_allocations;
  *block = __libc_memalign(alignment, size);
  return *block == nullptr ? ENOMEM : 0;
}
void free(void *block) { __libc_free(block); }
}
#endif

namespace xent::test {
namespace {

// A pool that does everything on the calling thread.
void InOrder(void *, int64_t n, xent_task task, void *arg) {
  for (int64_t i = 0; i < n; ++i) task(arg, i);
}

// Every function of the API, on tensors made beforehand: its parts do nothing else. Serially, or with the rows and
// what is inside them cut up for eight threads, of which the calling one does all the work.
class Everything {
 public:
  Everything(xent_dtype dtype, int64_t rows, int64_t cols, bool cut_up)
      : call_(dtype, rows, cols), backward_(dtype, rows, cols), x_(XENT_F64, 1, cols) {
    call_.FillNormal(1, 4);
    backward_.FillNormal(1, 4);
    backward_.MustRun(Function::kForward);
    both_args_ = call_.Args(Function::kForwardBackward);
    backward_args_ = backward_.Args(Function::kBackward);
    forward_args_ = both_args_;
    forward_args_.grad = XENT_NO_MATRIX;
    options_[1].label_smoothing = 0.1;
    exec_ = cut_up ? PoolOf(InOrder, nullptr, 8) : kSerial;
    for (int64_t j = 0; j < cols; ++j) x_.Set(0, j, static_cast<double>(j % 7));
    const xent_dtype arithmetic = reference::ArithmeticType(dtype);
    weights_ = Matrix(arithmetic, 1, cols);
    for (int64_t j = 0; j < cols; ++j) weights_.Set(0, j, static_cast<double>(j % 3));
    numbers_ = Matrix(arithmetic, 3, 64 * rows);
    indices_.resize(static_cast<size_t>(66 * rows));
    chunk_records_.resize(static_cast<size_t>(rows * xent_shard_chunks(cols, 0, cols)) * XENT_CHUNK_RECORD_BYTES /
                          sizeof(uint64_t));
    general_options_.label_smoothing = 0.1;
    general_options_.softcap = 30;
    general_options_.z_loss = 1e-4;
  }

  // Runs one of kParts, in a function of its own so that it has a small frame of its own. Returns the number of calls
  // that did not end as they should.
  static constexpr const char *kParts[] = {"cross-entropy", "every option of the cross-entropy",
                                           "divergence",    "binary cross-entropy",
                                           "row functions", "shards",
                                           "arrays",        "refusals"};
  int RunPart(size_t part) {
    switch (part) {
      case 0:
        return RunLosses();
      case 1:
        return RunEveryOption();
      case 2:
        return RunDivergence();
      case 3:
        return RunBinary();
      case 4:
        return RunRowFunctions();
      case 5:
        return RunShards();
      case 6:
        return RunArrays();
      default:
        return RunRefusals();
    }
  }
  int Run() {
    int failures = 0;
    for (size_t part = 0; part < std::size(kParts); ++part) failures += RunPart(part);
    return failures;
  }

 private:
  [[gnu::noinline]] int RunLosses() {
    int failures = 0;
    const auto count = [&](xent_status got, xent_status want = XENT_OK) { failures += got != want; };
    for (const xent_cross_entropy_options &options : options_) {
      count(xent_cross_entropy_forward(&forward_args_, &options, &exec_, &error_));
      count(xent_cross_entropy_forward_backward(&both_args_, &options, &exec_, &error_));
    }
    count(xent_cross_entropy_backward(&backward_args_, options_, &exec_, &error_));
    return failures;
  }
  [[gnu::noinline]] int RunEveryOption() {
    int failures = 0;
    const auto count = [&](xent_status got, xent_status want = XENT_OK) { failures += got != want; };
    const int64_t rows = call_.rows, cols = call_.cols;
    for (const int64_t inner : {int64_t{1}, rows}) {
      xent_cross_entropy args = both_args_;
      args.inner = inner;
      args.class_weights = weights_.data();
      xent_statistics statistics = *args.statistics;
      statistics.logprobs = numbers_.data();
      statistics.entropy = numbers_.row(1);
      statistics.argmax = indices_.data();
      statistics.rank = indices_.data() + rows;
      statistics.top_k = std::min<int64_t>(64, cols);
      statistics.topk_logprobs = numbers_.row(2);
      statistics.topk_indices = indices_.data() + 2 * rows;
      args.statistics = &statistics;
      count(xent_cross_entropy_forward_backward(&args, &general_options_, &exec_, &error_));
      args.targets = XENT_NO_TARGETS;
      args.target_probs = View(call_.logits);
      args.target_grad = View(backward_.grad);
      statistics.logprobs = nullptr;
      statistics.rank = nullptr;
      statistics.perplexity = nullptr;
      count(xent_cross_entropy_forward_backward(&args, &general_options_, &exec_, &error_));
    }
    return failures;
  }
  [[gnu::noinline]] int RunDivergence() {
    int failures = 0;
    const auto count = [&](xent_status got, xent_status want = XENT_OK) { failures += got != want; };
    const int64_t rows = call_.rows, cols = call_.cols;
    for (const int64_t inner : {int64_t{1}, rows}) {
      xent_divergence divergence = XENT_DIVERGENCE_INIT;
      divergence.rows = rows;
      divergence.cols = cols;
      divergence.inner = inner;
      divergence.student = View(call_.logits);
      divergence.teacher = View(backward_.logits);
      divergence.grad = View(call_.grad);
      xent_divergence_options options = XENT_DIVERGENCE_OPTIONS_INIT;
      options.kind = XENT_DIVERGENCE_JENSEN_SHANNON;
      count(xent_divergence_forward_backward(&divergence, &options, &exec_, &error_));
    }
    return failures;
  }
  [[gnu::noinline]] int RunBinary() {
    int failures = 0;
    const auto count = [&](xent_status got, xent_status want = XENT_OK) { failures += got != want; };
    const int64_t rows = call_.rows, cols = call_.cols;
    for (const int64_t inner : {int64_t{1}, rows}) {
      xent_binary_cross_entropy binary = XENT_BINARY_CROSS_ENTROPY_INIT;
      binary.rows = rows;
      binary.cols = cols;
      binary.inner = inner;
      binary.input = binary.targets = View(call_.logits);
      binary.reduced_loss = call_.reduced_loss.data();
      binary.grad = View(call_.grad);
      binary.target_grad = View(backward_.grad);
      xent_binary_cross_entropy_options options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
      options.focal_gamma = 2;
      count(xent_binary_cross_entropy_forward_backward(&binary, &options, &exec_, &error_));
      binary.target_grad = XENT_NO_MATRIX;
      count(xent_binary_cross_entropy_forward_backward(&binary, nullptr, &exec_, &error_));
    }
    return failures;
  }
  [[gnu::noinline]] int RunRowFunctions() {
    int failures = 0;
    const auto count = [&](xent_status got, xent_status want = XENT_OK) { failures += got != want; };
    const int64_t rows = call_.rows, cols = call_.cols;
    for (const int64_t inner : {int64_t{1}, rows}) {
      const xent_matrix x = View(call_.logits);
      const xent_matrix y = View(call_.grad);
      const xent_matrix dx = View(backward_.grad);
      count(xent_logsumexp(rows, cols, inner, x, call_.lse.data(), &exec_, &error_));
      count(xent_softmax(rows, cols, inner, x, y, &exec_, &error_));
      count(xent_softmax_backward(rows, cols, inner, x, y, dx, &exec_, &error_));
      count(xent_log_softmax(rows, cols, inner, x, y, &exec_, &error_));
      xent_diagnosis diagnosis;
      count(xent_check_logits(rows, cols, inner, y, &diagnosis, &exec_, &error_));
      count(xent_log_softmax_backward(rows, cols, inner, x, y, dx, &exec_, &error_));
    }
    return failures;
  }
  [[gnu::noinline]] int RunShards() {
    int failures = 0;
    const auto count = [&](xent_status got, xent_status want = XENT_OK) { failures += got != want; };
    const int64_t rows = call_.rows, cols = call_.cols;
    xent_shard shard = XENT_SHARD_INIT;
    shard.total_cols = cols;
    xent_cross_entropy slice = XENT_CROSS_ENTROPY_INIT;
    slice.rows = rows;
    slice.cols = cols;
    slice.logits = View(call_.logits);
    slice.targets = forward_args_.targets;
    count(xent_shard_forward(&slice, options_, &shard, chunk_records_.data(), &exec_, &error_));
    xent_cross_entropy whole = forward_args_;
    whole.logits = XENT_NO_MATRIX;
    whole.logits.dtype = call_.dtype;
    const void *const lists[] = {chunk_records_.data()};
    const int64_t chunks[] = {xent_shard_chunks(cols, 0, cols)};
    count(xent_shard_combine(&whole, options_, lists, chunks, 1, &error_));
    slice.records = whole.records;
    slice.grad = View(call_.grad);
    count(xent_shard_backward(&slice, options_, &shard, &exec_, &error_));
    return failures;
  }
  [[gnu::noinline]] int RunArrays() {
    int failures = 0;
    const auto count = [&](xent_status got, xent_status want = XENT_OK) { failures += got != want; };
    const int64_t rows = call_.rows, cols = call_.cols;
    xent_stored_losses stored = XENT_STORED_LOSSES_INIT;
    stored.rows = rows;
    stored.row_losses = call_.row_losses.data();
    stored.targets.data = call_.targets.data();
    stored.reduced_loss = call_.reduced_loss.data();
    stored.dtype = call_.row_losses.dtype();
    count(xent_reduce(&stored, options_, &error_));
    double *x = static_cast<double *>(x_.data());
    float *narrow = static_cast<float *>(x_.data());
    for (const auto function : {xent_exp_f64, xent_log1p_f64, xent_log_f64}) count(function(x, x, cols));
    for (const auto function : {xent_exp_f32, xent_log1p_f32, xent_log_f32}) count(function(narrow, narrow, cols));
    return failures;
  }
  // Refusals write messages.
  [[gnu::noinline]] int RunRefusals() {
    int failures = 0;
    const auto count = [&](xent_status got, xent_status want = XENT_OK) { failures += got != want; };
    xent_cross_entropy wrong = forward_args_;
    wrong.cols = -1;
    count(xent_cross_entropy_forward(&wrong, options_, &exec_, &error_), XENT_INVALID_ARGUMENT);
    xent_cross_entropy_options bad_options = options_[0];
    bad_options.label_smoothing = 1.0 / 3 + 1;
    count(xent_cross_entropy_forward(&forward_args_, &bad_options, &exec_, &error_), XENT_INVALID_ARGUMENT);
    wrong = forward_args_;
    const int64_t target[] = {-7};
    wrong.rows = 1;
    wrong.targets.data = target;
    count(xent_cross_entropy_forward(&wrong, options_, &exec_, &error_), XENT_TARGET_OUT_OF_RANGE);
    count(xent_active_target() != nullptr && xent_version() != nullptr ? XENT_OK : XENT_INCOMPLETE);
    return failures;
  }

  Matrix weights_, numbers_;
  std::vector<int64_t> indices_;
  std::vector<uint64_t> chunk_records_;
  xent_cross_entropy_options general_options_ = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  LossCall call_;
  LossCall backward_;
  Matrix x_;
  xent_cross_entropy forward_args_;
  xent_cross_entropy both_args_;
  xent_cross_entropy backward_args_;
  xent_cross_entropy_options options_[2] = {XENT_CROSS_ENTROPY_OPTIONS_INIT, XENT_CROSS_ENTROPY_OPTIONS_INIT};
  xent_exec exec_ = XENT_EXEC_INIT;
  xent_error error_ = XENT_ERROR_INIT;
};

struct Case {
  int64_t rows, cols;
  bool cut_up;

  [[maybe_unused]] friend std::ostream &operator<<(std::ostream &out, const Case &c) {
    return out << c.rows << "x" << c.cols << (c.cut_up ? " cut up" : " serially");
  }
};
[[maybe_unused]] constexpr Case kCases[] = {{1, 3, false},    {400, 100, false}, {3, 40000, false},
                                            {400, 100, true}, {3, 40000, true},  {12, 20000, true}};

class Process : public ::testing::TestWithParam<xent_dtype> {};

TEST_P(Process, NothingIsTakenFromTheHeap) {
#if defined(XENT_TEST_COUNTS_ALLOCATIONS)
  for (const Case &c : kCases) {
    Everything everything(GetParam(), c.rows, c.cols, c.cut_up);
    const int64_t before = g_allocations;
    const int failures = everything.Run();
    const int64_t after = g_allocations;
    EXPECT_EQ(failures, 0);
    EXPECT_EQ(after - before, 0) << c;
    // The counter counts.
    std::free(std::malloc(1));
    EXPECT_GT(g_allocations, after);
  }
#else
  GTEST_SKIP() << "allocations cannot be counted here";
#endif
}

#if defined(NDEBUG) && !defined(XENT_TEST_SANITIZED)
#define XENT_TEST_MEASURES_STACK 1

// The stack that `body` uses on a thread of its own, in bytes: the thread's stack is painted, and what lost its paint
// counts.
int64_t StackUse(const std::function<void()> &body) {
  constexpr size_t kSize = size_t{1} << 20;
  constexpr unsigned char kPaint = 0x5e;
  void *memory = nullptr;
  if (posix_memalign(&memory, 4096, kSize) != 0) return -1;
  unsigned char *stack = static_cast<unsigned char *>(memory);
  std::fill(stack, stack + kSize, kPaint);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stack, kSize);
  pthread_t thread;
  const auto run = [](void *arg) -> void * {
    (*static_cast<const std::function<void()> *>(arg))();
    return nullptr;
  };
  const bool started = pthread_create(&thread, &attributes, run, const_cast<std::function<void()> *>(&body)) == 0;
  if (started) pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  size_t low = 0;
  while (low < kSize && stack[low] == kPaint) ++low;
  std::free(memory);
  return started ? static_cast<int64_t>(kSize - low) : -1;
}
#endif

TEST_P(Process, SixteenKilobytesOfStackAreEnough) {
#if defined(XENT_TEST_MEASURES_STACK)
  for (const Case &c : kCases) {
    Everything everything(GetParam(), c.rows, c.cols, c.cut_up);
    everything.Run();  // so that the dynamic linker has bound every name
    const int64_t nothing = StackUse([] {});
    ASSERT_GT(nothing, 0);
    for (size_t part = 0; part < std::size(Everything::kParts); ++part) {
      int failures = -1;
      const int64_t used = StackUse([&] { failures = everything.RunPart(part); });
      EXPECT_EQ(failures, 0) << Everything::kParts[part] << ", " << c;
      // What the thread itself uses lies in `nothing`; this test's own frames are below 1 KB.
      EXPECT_LE(used - nothing, 16 * 1024 + 1024) << Everything::kParts[part] << ", " << c;
    }
  }
#else
  GTEST_SKIP() << "the promise is about release builds without instrumentation";
#endif
}

TEST_P(Process, ErrnoStaysAsItWas) {
  Everything everything(GetParam(), 5, 300, false);
  errno = 4711;
  const int failures = everything.Run();
  const int after = errno;
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(after, 4711);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Process, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

}  // namespace
}  // namespace xent::test
