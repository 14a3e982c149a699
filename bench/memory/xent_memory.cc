// Measures what a call takes from the heap and of the stack, at several shapes, and prints it as JSON. The library
// promises that neither grows with the problem: nothing from the heap, a fixed amount of stack a thread.
//
// malloc and its family are replaced by ones that count. Stacks are measured on threads whose stacks were filled with a
// pattern below the frame that calls: the lowest word that lost it is the high water. Each call runs once before it is
// measured, for the dynamic linker resolves names on the caller's stack.
#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "xent/xent.h"

namespace {

std::atomic<bool> g_counting{false};
std::atomic<int64_t> g_heap_calls{0}, g_heap_bytes{0};

void Count(size_t bytes) {
  if (!g_counting.load(std::memory_order_relaxed)) return;
  g_heap_calls.fetch_add(1, std::memory_order_relaxed);
  g_heap_bytes.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
}

}  // namespace

// glibc's own, by its other names. operator new ends here too.
extern "C" {
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

void *malloc(size_t bytes) noexcept {
  Count(bytes);
  return __libc_malloc(bytes);
}
void *calloc(size_t count, size_t bytes) noexcept {
  Count(count * bytes);
  return __libc_calloc(count, bytes);
}
void *realloc(void *p, size_t bytes) noexcept {
  Count(bytes);
  return __libc_realloc(p, bytes);
}
void *memalign(size_t alignment, size_t bytes) noexcept {
  Count(bytes);
  return __libc_memalign(alignment, bytes);
}
void *aligned_alloc(size_t alignment, size_t bytes) noexcept { return memalign(alignment, bytes); }
int posix_memalign(void **p, size_t alignment, size_t bytes) noexcept {
  *p = memalign(alignment, bytes);
  return *p == nullptr ? ENOMEM : 0;
}
}

namespace {

// A stack of our own for a thread, which the thread paints and reads itself.
class PaintedStack {
 public:
  void Start(pthread_t *thread, void *(*run)(void *), void *arg) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstack(&attributes, pages_.data(), pages_.size() * sizeof(Page));
    if (pthread_create(thread, &attributes, run, arg) != 0) {
      std::fputs("xent_memory: no thread\n", stderr);
      std::exit(1);
    }
    pthread_attr_destroy(&attributes);
  }

  // Returns how many bytes below this function's frame body() touched, kGap at least.
  template <class Body>
  [[gnu::noinline]] int64_t HighWater(const Body &body) {
    auto *const frame = static_cast<std::byte *>(__builtin_frame_address(0));
    auto *const low = reinterpret_cast<volatile uint64_t *>(pages_.data());
    auto *const high = reinterpret_cast<volatile uint64_t *>(frame - kGap);
    for (volatile uint64_t *p = low; p < high; ++p) *p = kPaint;
    body();
    volatile uint64_t *p = low;
    while (p < high && *p == kPaint) ++p;
    return frame - reinterpret_cast<volatile std::byte *>(p);
  }

 private:
  static constexpr size_t kPages = 128;
  // Keeps the painter's own frame.
  static constexpr std::ptrdiff_t kGap = 512;
  static constexpr uint64_t kPaint = 0xa5a5a5a55a5a5a5a;
  struct alignas(4096) Page {
    std::byte bytes[4096];
  };
  std::vector<Page> pages_ = std::vector<Page>(kPages);
};

// Two threads for the library's tasks, started beforehand: starting one takes from the heap.
class Workers {
 public:
  Workers() {
    for (Worker &worker : workers_) {
      worker.pool = this;
      worker.stack.Start(&worker.thread, &Workers::Loop, &worker);
    }
  }
  ~Workers() {
    stop_ = true;
    Release();
    for (Worker &worker : workers_) pthread_join(worker.thread, nullptr);
  }

  static void ParallelFor(void *ctx, int64_t n, xent_task task, void *arg) {
    auto *const pool = static_cast<Workers *>(ctx);
    pool->n_ = n;
    pool->task_ = task;
    pool->arg_ = arg;
    pool->next_ = 0;
    pool->working_ = kWorkers;
    pool->Release();
    for (int left = pool->working_; left != 0; left = pool->working_) pool->working_.wait(left);
  }

  // Returns the larger of both workers' stacks since the last call.
  int64_t TakeHighWater() {
    int64_t most = 0;
    for (Worker &worker : workers_) most = std::max(most, std::exchange(worker.high_water, 0));
    return most;
  }

 private:
  static constexpr int kWorkers = 2;
  struct Worker {
    Workers *pool = nullptr;
    PaintedStack stack;
    pthread_t thread = {};
    int64_t high_water = 0;
  };

  void Release() {
    ++generation_;
    generation_.notify_all();
  }

  static void *Loop(void *arg) {
    auto *const worker = static_cast<Worker *>(arg);
    Workers *const pool = worker->pool;
    for (int64_t seen = 0;; ++seen) {
      pool->generation_.wait(seen);
      if (pool->stop_) return nullptr;
      const int64_t used = worker->stack.HighWater([pool] {
        for (int64_t i = pool->next_++; i < pool->n_; i = pool->next_++) pool->task_(pool->arg_, i);
      });
      worker->high_water = std::max(worker->high_water, used);
      if (--pool->working_ == 0) pool->working_.notify_all();
    }
  }

  std::atomic<int64_t> generation_{0}, next_{0};
  std::atomic<int> working_{0};
  std::atomic<bool> stop_{false};
  int64_t n_ = 0;
  xent_task task_ = nullptr;
  void *arg_ = nullptr;
  std::array<Worker, kWorkers> workers_;
};

enum class Op { kForward, kForwardBackward, kForwardBackwardInplace, kForwardBackwardWorkspace, kBackward, kSoftmax };
constexpr std::array kOps = {
    std::pair{Op::kForward, "forward"},
    std::pair{Op::kForwardBackward, "forward_backward"},
    std::pair{Op::kForwardBackwardInplace, "forward_backward_inplace"},
    std::pair{Op::kForwardBackwardWorkspace, "forward_backward_workspace"},
    std::pair{Op::kBackward, "backward"},
    std::pair{Op::kSoftmax, "softmax"},
};

struct Problem {
  Problem(int64_t rows, int64_t cols, xent_dtype dtype) : rows(rows), cols(cols), dtype(dtype) {
    const size_t size = dtype == XENT_F32 ? sizeof(float) : sizeof(uint16_t);
    const auto elements = static_cast<size_t>(rows * cols);
    logits.resize(elements * size);
    for (size_t i = 0; i < elements; ++i) {
      // Small enough for bfloat16, which is the upper half of a float32.
      const float value = static_cast<float>(i * 7 % 23) - 11;
      uint32_t bits = 0;
      std::memcpy(&bits, &value, sizeof bits);
      const auto half = static_cast<uint16_t>(bits >> 16);
      const void *from = dtype == XENT_F32 ? static_cast<const void *>(&value) : &half;
      std::memcpy(&logits[i * size], from, size);
    }
    out.resize(logits.size());
    workspace.resize(xent_workspace_bytes(cols, dtype, 2));
    const auto n = static_cast<size_t>(rows);
    records.resize(n * XENT_RECORD_BYTES / sizeof(uint64_t));
    losses.resize(n);
    targets.assign(n, cols / 2);
  }

  xent_status Run(Op op, const xent_exec &exec) {
    const xent_matrix z = {.data = logits.data(), .stride = 0, .dtype = dtype, .reserved = 0};
    const xent_matrix y = {.data = out.data(), .stride = 0, .dtype = dtype, .reserved = 0};
    if (op == Op::kSoftmax) return xent_softmax(rows, cols, 1, z, y, &exec, nullptr);
    float loss = 0;
    xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
    args.rows = rows;
    args.cols = cols;
    args.logits = z;
    args.targets.data = targets.data();
    args.records = records.data();
    if (op != Op::kForward) args.grad = y;
    if (op == Op::kBackward) return xent_cross_entropy_backward(&args, nullptr, &exec, nullptr);
    args.row_losses = losses.data();
    args.reduced_loss = &loss;
    if (op == Op::kForward) return xent_cross_entropy_forward(&args, nullptr, &exec, nullptr);
    if (op == Op::kForwardBackwardInplace) {
      args.grad = z;
    } else if (op == Op::kForwardBackwardWorkspace) {
      args.workspace = workspace.data();
      args.workspace_bytes = workspace.size();
    }
    return xent_cross_entropy_forward_backward(&args, nullptr, &exec, nullptr);
  }

  const int64_t rows, cols;
  const xent_dtype dtype;
  std::vector<char> logits, out, workspace;
  std::vector<uint64_t> records;
  std::vector<float> losses;
  std::vector<int64_t> targets;
};

struct Usage {
  int64_t heap_calls = 0, heap_bytes = 0, stack_calling = 0, stack_worker = 0;
};

// The work of one measuring thread, and its result.
struct Measurement {
  PaintedStack stack;
  Problem *problem = nullptr;
  Op op = Op::kForward;
  xent_exec exec = XENT_EXEC_INIT;
  xent_status status = XENT_OK;
  int64_t high_water = 0;
};

void *Measure(void *arg) {
  auto *const m = static_cast<Measurement *>(arg);
  // In place the logits become gradients, which are logits as good as any.
  m->status = m->problem->Run(m->op, m->exec);
  g_counting = true;
  m->high_water = m->stack.HighWater([m] { m->status = std::max(m->status, m->problem->Run(m->op, m->exec)); });
  g_counting = false;
  return nullptr;
}

int64_t RunMeasurement(Measurement *m) {
  pthread_t thread;
  m->stack.Start(&thread, &Measure, m);
  pthread_join(thread, nullptr);
  if (m->status != XENT_OK) {
    std::fprintf(stderr, "xent_memory: %s\n", xent_status_string(m->status));
    std::exit(1);
  }
  return m->high_water;
}

Usage UsageOf(Problem *problem, Op op, Workers *workers) {
  Usage usage;
  g_heap_calls = g_heap_bytes = 0;
  Measurement m;
  m.problem = problem;
  m.op = op;
  m.exec.threads = 1;
  usage.stack_calling = RunMeasurement(&m);
  m.exec.threads = 2;
  m.exec.parallel_for = &Workers::ParallelFor;
  m.exec.ctx = workers;
  workers->TakeHighWater();
  usage.stack_calling = std::max(usage.stack_calling, RunMeasurement(&m));
  usage.stack_worker = workers->TakeHighWater();
  usage.heap_calls = g_heap_calls;
  usage.heap_bytes = g_heap_bytes;
  return usage;
}

// Returns by how much the number that grows most is larger in `to`.
int64_t Growth(const Usage &from, const Usage &to) {
  return std::max({int64_t{0}, to.heap_calls - from.heap_calls, to.heap_bytes - from.heap_bytes,
                   to.stack_calling - from.stack_calling, to.stack_worker - from.stack_worker});
}

}  // namespace

int main() {
  constexpr std::array<std::pair<int64_t, int64_t>, 6> kShapes = {
      {{64, 1000}, {1024, 1000}, {16384, 1000}, {64, 16000}, {1024, 16000}, {64, 256000}}};
  // Rows of up to 1024 columns take another path, whose stack is another constant.
  constexpr int64_t kLong = 1025;
  Workers workers;
  std::map<std::pair<Op, xent_dtype>, std::vector<Usage>> all;
  std::printf("{\n  \"target\": \"%s\",\n  \"calls\": [", xent_active_target());
  const char *separator = "";
  for (const xent_dtype dtype : {XENT_F32, XENT_BF16}) {
    for (const auto &[rows, cols] : kShapes) {
      Problem problem(rows, cols, dtype);
      for (const auto &[op, name] : kOps) {
        // On threads the deepest frame may differ from run to run: it depends on the row that a task begins with.
        Usage usage = UsageOf(&problem, op, &workers);
        for (int again = 0; again < 4; ++again) {
          const Usage other = UsageOf(&problem, op, &workers);
          usage.heap_calls = std::max(usage.heap_calls, other.heap_calls);
          usage.heap_bytes = std::max(usage.heap_bytes, other.heap_bytes);
          usage.stack_calling = std::max(usage.stack_calling, other.stack_calling);
          usage.stack_worker = std::max(usage.stack_worker, other.stack_worker);
        }
        all[{op, dtype}].push_back(usage);
        std::printf(
            "%s\n    {\"op\": \"%s\", \"dtype\": \"%s\", \"rows\": %lld, \"cols\": %lld, \"heap_calls\": %lld, "
            "\"heap_bytes\": %lld, \"stack_calling_thread\": %lld, \"stack_worker\": %lld}",
            separator, name, dtype == XENT_F32 ? "f32" : "bf16", static_cast<long long>(rows),
            static_cast<long long>(cols), static_cast<long long>(usage.heap_calls),
            static_cast<long long>(usage.heap_bytes), static_cast<long long>(usage.stack_calling),
            static_cast<long long>(usage.stack_worker));
        separator = ",";
      }
    }
  }
  int64_t with_rows = 0, with_cols = 0;
  for (const auto &[key, usages] : all) {
    for (size_t a = 0; a < kShapes.size(); ++a) {
      for (size_t b = 0; b < kShapes.size(); ++b) {
        const auto [rows, cols] = kShapes[a];
        const auto [more_rows, more_cols] = kShapes[b];
        if (cols == more_cols && rows < more_rows) with_rows = std::max(with_rows, Growth(usages[a], usages[b]));
        if (rows == more_rows && cols < more_cols && cols >= kLong)
          with_cols = std::max(with_cols, Growth(usages[a], usages[b]));
      }
    }
  }
  std::printf("\n  ],\n  \"most_growth_with_rows\": %lld,\n  \"most_growth_with_cols\": %lld\n}\n",
              static_cast<long long>(with_rows), static_cast<long long>(with_cols));
  return 0;
}
