// Threads for the library's calls. With OpenMP the library has its own. Without, a call starts threads and joins them:
// no pool lives on, so that fork() finds nothing half-copied and an idle process has nothing waiting.
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>
#include <system_error>
#include <thread>

#include "common.h"

namespace xent_python {
namespace {

namespace nb = nanobind;
using nb::literals::operator""_a;

// The most that set_num_threads and a call's `threads` take; the library makes no more tasks.
constexpr int64_t kMaxThreads = 256;

// Set by set_num_threads; 0: the default.
std::atomic<int32_t> g_threads{0};

int64_t CheckThreads(int64_t threads) {
  if (threads >= 0 && threads <= kMaxThreads) return threads;
  const std::string message =
      "threads is " + std::to_string(threads) + ", expected 0 to " + std::to_string(kMaxThreads) + " (0: the default)";
  PyErr_SetString(PyExc_ValueError, message.c_str());
  throw nb::python_error();
}

// The tasks of one call. Whoever has time takes the next.
struct Tasks {
  xent_task task;
  void *arg;
  int64_t n;
  std::atomic<int64_t> next{0};

  void Run() {
    for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) task(arg, i);
  }
  bool Left() const { return next.load(std::memory_order_relaxed) < n; }
};

#if !XENT_PYTHON_OPENMP
// Calls on fewer bytes run on the calling thread. Starting and joining a thread takes as long as about this many bytes
// of logits.
constexpr int64_t kBytesPerThread = int64_t{1} << 19;

// Starts a thread that starts the next, until there are `others` of them or no task is left, and runs tasks meanwhile.
// So the calling thread waits for the start of one thread, however many there are. The system may refuse any of them.
void RunWithOthers(Tasks *tasks, int64_t others) {
  std::thread next;
  if (others > 0 && tasks->Left()) {
    try {
      next = std::thread(RunWithOthers, tasks, others - 1);
    } catch (const std::system_error &) {
    }
  }
  tasks->Run();
  if (next.joinable()) next.join();
}

// The parallel_for of xent_exec; ctx is the number of threads.
void ParallelForThreads(void *ctx, int64_t n, xent_task task, void *arg) {
  Tasks tasks{task, arg, n};
  RunWithOthers(&tasks, std::min<int64_t>(reinterpret_cast<intptr_t>(ctx), n) - 1);
}

// As OpenMP counts: OMP_NUM_THREADS, else the processors that this process may run on.
int32_t DefaultThreads() {
  static const int32_t count = [] {
    const char *variable = std::getenv("OMP_NUM_THREADS");
    const long wanted = variable == nullptr ? 0 : std::strtol(variable, nullptr, 10);
    if (wanted > 0) return static_cast<int32_t>(std::min<long>(wanted, kMaxThreads));
    cpu_set_t processors;
    const bool known = sched_getaffinity(0, sizeof processors, &processors) == 0;
    const int64_t found = known ? CPU_COUNT(&processors) : std::thread::hardware_concurrency();
    return static_cast<int32_t>(std::clamp<int64_t>(found, 1, kMaxThreads));
  }();
  return count;
}
#else
int32_t DefaultThreads() { return xent_default_threads(); }
#endif

xent_exec OwnExec(int64_t threads, [[maybe_unused]] int64_t bytes) {
  xent_exec exec = XENT_EXEC_INIT;
  if (threads == 0) threads = g_threads.load(std::memory_order_relaxed);
#if XENT_PYTHON_OPENMP
  exec.threads = static_cast<int32_t>(threads);
#else
  if (threads == 0) threads = DefaultThreads();
  threads = std::clamp<int64_t>(bytes / kBytesPerThread, 1, threads);
  exec.threads = static_cast<int32_t>(threads);
  if (threads > 1) {
    exec.parallel_for = &ParallelForThreads;
    exec.ctx = reinterpret_cast<void *>(static_cast<intptr_t>(threads));
  }
#endif
  return exec;
}

// ---------------------------------------------------------------- PyTorch's pool

// torch/csrc/stable/c/shim.h, exported since 2.10. They return 0 where all went well.
using TorchTask = void (*)(int64_t begin, int64_t end, void *ctx);
using TorchParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, TorchTask task, void *ctx);
using TorchNumThreads = int32_t (*)(uint32_t *threads);

std::atomic<TorchParallelFor> g_torch_parallel_for{nullptr};
std::atomic<TorchNumThreads> g_torch_num_threads{nullptr};

// PyTorch's team does not survive fork(), and waiting for it would take for ever.
std::atomic<bool> g_forked{false};

// The parallel_for of xent_exec; ctx is the number of threads. Ranges of PyTorch's are not looked at: each of its
// threads takes tasks while there are some, and what an error of PyTorch's has left is done here.
void ParallelForTorch(void *ctx, int64_t n, xent_task task, void *arg) {
  Tasks tasks{task, arg, n};
  const int64_t threads = std::min<int64_t>(reinterpret_cast<intptr_t>(ctx), n);
  g_torch_parallel_for.load(std::memory_order_relaxed)(
      0, threads, 1, [](int64_t, int64_t, void *shared) { static_cast<Tasks *>(shared)->Run(); }, &tasks);
  tasks.Run();
}

xent_exec TorchExec(int64_t threads) {
  xent_exec exec = XENT_EXEC_INIT;
  uint32_t available = 1;
  if (g_forked.load(std::memory_order_relaxed) ||
      g_torch_num_threads.load(std::memory_order_relaxed)(&available) != 0) {
    available = 1;
  }
  if (threads == 0 || threads > available) threads = available;
  exec.threads = static_cast<int32_t>(std::clamp<int64_t>(threads, 1, kMaxThreads));
  if (exec.threads > 1) {
    exec.parallel_for = &ParallelForTorch;
    exec.ctx = reinterpret_cast<void *>(static_cast<intptr_t>(exec.threads));
  }
  return exec;
}

void UseTorch(uintptr_t parallel_for, uintptr_t num_threads) {
  if (parallel_for == 0 || num_threads == 0) {
    PyErr_SetString(PyExc_ValueError, "use_torch: an address is 0");
    throw nb::python_error();
  }
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { g_forked.store(true, std::memory_order_relaxed); });
  if (registered != 0) return;
  g_torch_num_threads.store(reinterpret_cast<TorchNumThreads>(num_threads));
  g_torch_parallel_for.store(reinterpret_cast<TorchParallelFor>(parallel_for));
}

}  // namespace

xent_exec ExecOf(Pool pool, int64_t threads, int64_t bytes) {
  if (threads < 0 || threads > kMaxThreads) CheckThreads(threads);
  if (pool == Pool::kTorch && g_torch_parallel_for.load(std::memory_order_acquire) != nullptr) {
    return TorchExec(threads);
  }
  return OwnExec(threads, bytes);
}

int32_t NumThreads() {
  const int32_t set = g_threads.load(std::memory_order_relaxed);
  return set != 0 ? set : DefaultThreads();
}

void DefineThreads(nb::module_ &m) {
  m.def(
      "set_num_threads",
      [](int64_t threads) { g_threads.store(static_cast<int32_t>(CheckThreads(threads)), std::memory_order_relaxed); },
      "threads"_a,
      "Sets how many threads a call uses that has no ``threads`` of its own.\n\n"
      "0 is the default: ``OMP_NUM_THREADS``, or as many as the process has processors. Results never depend on it.\n"
      "Functions of :mod:`xent.torch` follow :func:`torch.set_num_threads` instead.\n\n"
      "Raises:\n    ValueError: threads is not in [0, 256].\n\n"
      "Example:\n    >>> xent.set_num_threads(1)\n    >>> xent.get_num_threads()\n    1\n"
      "    >>> xent.set_num_threads(0)\n");
  m.def("get_num_threads", &NumThreads,
        "Returns how many threads a large call uses that has no ``threads`` of its own.\n\n"
        "Example:\n    >>> xent.get_num_threads() >= 1\n    True\n");
  m.def("use_torch", &UseTorch, "parallel_for"_a, "num_threads"_a,
        "Takes the addresses of torch_parallel_for and torch_get_num_threads; xent.torch calls it.");
}

}  // namespace xent_python
