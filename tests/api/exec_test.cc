// Execution policies: the same bits from OpenMP with any number of threads, serially and from pools of the caller that
// run tasks in any order on any thread; pools that break the contract; calls from inside a parallel region, from a
// forked child, from several threads at once and where the system has no threads for a team. The shapes are large
// enough to be cut up: many rows, and few rows longer than a chunk.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "api/own_process.h"
#include "testing/assertions.h"
#include "testing/loss_call.h"
#include "testing/sanitized.h"

namespace xent::test {
namespace {

// Runs one operation of the API on its own tensors under a policy, and holds what it wrote.
struct Operation {
  std::string name;
  std::function<xent_status(const xent_exec *, xent_error *)> run;
  std::function<std::string()> outputs;  // all bytes written
};

std::string Bytes(const Matrix &matrix) {
  std::string bytes;
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    bytes.append(static_cast<const char *>(matrix.row(i)), static_cast<size_t>(matrix.cols() * matrix.Bytes()));
  }
  return bytes;
}

// The whole API that takes a policy, on fresh tensors.
std::vector<Operation> Operations(xent_dtype dtype, int64_t rows, int64_t cols) {
  std::vector<Operation> operations;
  const auto make = [=] {
    auto call = std::make_shared<LossCall>(dtype, rows, cols, 0, 3);
    call->FillNormal(static_cast<uint64_t>(cols), 4);
    if (rows > 2) call->targets[static_cast<size_t>(rows / 2)] = call->options.ignore_index;
    call->options.label_smoothing = 0.1;
    return call;
  };
  for (const Function function : kFunctions) {
    const auto call = make();
    if (function == Function::kBackward) call->MustRun(Function::kForward);
    operations.push_back({NameOf(function),
                          [=](const xent_exec *exec, xent_error *error) {
                            const xent_cross_entropy args = call->Args(function);
                            return EntryPoint(function)(&args, &call->options, exec, error);
                          },
                          [=] {
                            std::string bytes = function == Function::kForward ? "" : Bytes(call->grad.matrix());
                            if (function == Function::kBackward) return bytes;
                            bytes += Bytes(call->row_losses) + Bytes(call->lse) + Bytes(call->reduced_loss);
                            bytes.append(reinterpret_cast<const char *>(&call->perplexity), sizeof(double));
                            bytes.append(reinterpret_cast<const char *>(&call->live_rows), sizeof(int64_t));
                            bytes.append(reinterpret_cast<const char *>(call->records.data()),
                                         call->records.size() * sizeof(uint64_t));
                            return bytes;
                          }});
  }
  // The row functions, row-major and, where there are rows enough to be cut up, with the class dimension in the middle.
  for (const int64_t inner : {int64_t{0}, rows}) {
    if (inner > 0 && rows < 32) continue;
    const std::string layout = inner > 1 ? " class-major" : "";
    const auto tensor = [=] { return std::make_shared<Tensor>(dtype, rows, cols, inner, 3); };
    const auto normal = [=] {
      const auto x = tensor();
      Random random(static_cast<uint64_t>(cols));
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < cols; ++j) x->Set(i, j, random.Normal(4));
      }
      return x;
    };
    const auto x = normal();
    {
      const auto lse = std::make_shared<Matrix>(reference::ArithmeticType(dtype), 1, rows);
      operations.push_back({"logsumexp" + layout,
                            [=](const xent_exec *exec, xent_error *error) {
                              return xent_logsumexp(rows, cols, inner, View(*x), lse->data(), exec, error);
                            },
                            [=] { return Bytes(*lse); }});
    }
    for (const bool log : {false, true}) {
      const auto function = log ? xent_log_softmax : xent_softmax;
      const auto y = tensor();
      operations.push_back({(log ? "log_softmax" : "softmax") + layout,
                            [=](const xent_exec *exec, xent_error *error) {
                              return function(rows, cols, inner, View(*x), View(*y), exec, error);
                            },
                            [=] { return Bytes(y->matrix()); }});
      const auto output = tensor();
      EXPECT_EQ(function(rows, cols, inner, View(*x), View(*output), nullptr, nullptr), XENT_OK);
      const auto dx = tensor();
      operations.push_back({(log ? "log_softmax_backward" : "softmax_backward") + layout,
                            [=](const xent_exec *exec, xent_error *error) {
                              return (log ? xent_log_softmax_backward : xent_softmax_backward)(
                                  rows, cols, inner, View(*x), View(*output), View(*dx), exec, error);
                            },
                            [=] { return Bytes(dx->matrix()); }});
      const auto diagnosis = std::make_shared<xent_diagnosis>(XENT_DIAGNOSIS_LOGITS);
      operations.push_back({(log ? "check_logits of log-probabilities" : "check_logits of probabilities") + layout,
                            [=](const xent_exec *exec, xent_error *error) {
                              return xent_check_logits(rows, cols, inner, View(*output), diagnosis.get(), exec, error);
                            },
                            [=] { return std::to_string(*diagnosis); }});
    }
  }
  return operations;
}

struct Shape {
  xent_dtype dtype;
  int64_t rows, cols;

  std::string Name() const {
    return std::string(reference::NameOf(dtype)) + "_" + std::to_string(rows) + "x" + std::to_string(cols);
  }
};
void PrintTo(const Shape &shape, std::ostream *out) { *out << shape.Name(); }

// Many rows; fewer rows than threads, of several chunks each (40000 columns have chunks of 3072, 150001 of 10240).
const Shape kShapes[] = {{XENT_F32, 67, 5000},  {XENT_F32, 3, 40000},  {XENT_F32, 1, 150001}, {XENT_F64, 2, 40000},
                         {XENT_BF16, 2, 40000}, {XENT_F16, 1, 150001}, {XENT_F16, 40, 6000}};

class Exec : public ::testing::TestWithParam<Shape> {
 protected:
  std::vector<Operation> Operations() const {
    return test::Operations(GetParam().dtype, GetParam().rows, GetParam().cols);
  }
};

std::string Serially(const Operation &operation) {
  xent_error error = XENT_ERROR_INIT;
  EXPECT_EQ(operation.run(&kSerial, &error), XENT_OK) << operation.name << ": " << error.message;
  return operation.outputs();
}

TEST_P(Exec, OpenMpThreadsDoNotChangeABit) {
  for (const Operation &operation : Operations()) {
    const std::string want = Serially(operation);
    for (const int32_t threads : {0, 1, 2, 3, 5, 8, 16}) {
      const xent_exec exec = TeamOf(threads);
      xent_error error = XENT_ERROR_INIT;
      ASSERT_EQ(operation.run(&exec, &error), XENT_OK) << error.message;
      EXPECT_TRUE(operation.outputs() == want) << operation.name << " with " << threads << " threads";
    }
    ASSERT_EQ(operation.run(nullptr, nullptr), XENT_OK);
    EXPECT_TRUE(operation.outputs() == want) << operation.name << " with the default policy";
  }
}

// A pool of the caller's. Counts what it was asked for; `order` says how it runs the tasks of a call.
class Pool {
 public:
  using Order = std::function<void(int64_t n, const std::function<void(int64_t)> &task)>;
  explicit Pool(Order order) : order_(std::move(order)) {}

  xent_exec Policy(int32_t threads = 0) {
    return PoolOf([](void *ctx, int64_t n, xent_task task, void *arg) { static_cast<Pool *>(ctx)->Run(n, task, arg); },
                  this, threads);
  }
  int64_t calls() const { return calls_; }
  int64_t largest() const { return largest_; }

 private:
  void Run(int64_t n, xent_task task, void *arg) {
    ++calls_;
    largest_ = std::max(largest_, n);
    order_(n, [=](int64_t i) { task(arg, i); });
  }

  Order order_;
  int64_t calls_ = 0;
  int64_t largest_ = 0;
};

using Task = std::function<void(int64_t)>;

std::vector<int64_t> Shuffled(int64_t n, uint64_t seed) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  Random random(seed);
  for (size_t i = order.size(); i > 1; --i)
    std::swap(order[i - 1], order[static_cast<size_t>(random.Below(static_cast<int64_t>(i)))]);
  return order;
}

TEST_P(Exec, CallersPoolInAnyOrder) {
  const std::pair<const char *, Pool::Order> orders[] = {{"forwards",
                                                          [](int64_t n, const Task &task) {
                                                            for (int64_t i = 0; i < n; ++i) task(i);
                                                          }},
                                                         {"backwards",
                                                          [](int64_t n, const Task &task) {
                                                            for (int64_t i = n - 1; i >= 0; --i) task(i);
                                                          }},
                                                         {"odd before even",
                                                          [](int64_t n, const Task &task) {
                                                            for (int64_t i = 1; i < n; i += 2) task(i);
                                                            for (int64_t i = 0; i < n; i += 2) task(i);
                                                          }},
                                                         {"shuffled",
                                                          [](int64_t n, const Task &task) {
                                                            for (const int64_t i : Shuffled(n, 42)) task(i);
                                                          }},
                                                         {"on another thread",
                                                          [](int64_t n, const Task &task) {
                                                            std::thread([&] {
                                                              for (int64_t i = n - 1; i >= 0; --i) task(i);
                                                            }).join();
                                                          }},
                                                         {"on four threads", [](int64_t n, const Task &task) {
                                                            std::atomic<int64_t> next = 0;
                                                            std::vector<std::thread> threads;
                                                            for (int t = 0; t < 4; ++t) {
                                                              threads.emplace_back([&] {
                                                                for (int64_t i = next++; i < n; i = next++) task(i);
                                                              });
                                                            }
                                                            for (std::thread &thread : threads) thread.join();
                                                          }}};
  for (const Operation &operation : Operations()) {
    const std::string want = Serially(operation);
    for (const auto &[name, order] : orders) {
      for (const int32_t threads : {0, 1, 2, 7, 64}) {
        Pool pool(order);
        const xent_exec exec = pool.Policy(threads);
        xent_error error = XENT_ERROR_INIT;
        ASSERT_EQ(operation.run(&exec, &error), XENT_OK) << operation.name << " " << name << ": " << error.message;
        EXPECT_TRUE(operation.outputs() == want) << operation.name << " " << name << ", " << threads << " threads";
        if (threads > 1) {
          EXPECT_GT(pool.largest(), 1) << operation.name << " was not cut up for " << threads << " threads";
        }
      }
    }
  }
}

TEST_P(Exec, CallersPoolThatSkipsATaskIsIncomplete) {
  // Each of the calls to the pool in turn leaves out its first, its last or a middle task, or all.
  for (const Operation &operation : Operations()) {
    Pool whole([](int64_t n, const Task &task) {
      for (int64_t i = 0; i < n; ++i) task(i);
    });
    xent_exec exec = whole.Policy(4);
    ASSERT_EQ(operation.run(&exec, nullptr), XENT_OK);
    ASSERT_GE(whole.calls(), 1) << operation.name;
    for (int64_t at = 0; at < whole.calls(); ++at) {
      for (const char *what : {"first", "middle", "last", "all"}) {
        int64_t call = 0;
        Pool pool([&](int64_t n, const Task &task) {
          const std::string which = call++ == at ? what : "none";
          for (int64_t i = 0; i < n; ++i) {
            const bool skipped = which == "all" || (which == "first" && i == 0) || (which == "middle" && i == n / 2) ||
                                 (which == "last" && i == n - 1);
            if (!skipped) task(i);
          }
        });
        exec = pool.Policy(4);
        xent_error error = XENT_ERROR_INIT;
        EXPECT_EQ(operation.run(&exec, &error), XENT_INCOMPLETE) << operation.name << " call " << at << " " << what;
        EXPECT_EQ(error.status, XENT_INCOMPLETE);
        EXPECT_NE(std::string(error.message).find("parallel_for"), std::string::npos) << error.message;
      }
    }
    // And it recovers.
    const std::string want = Serially(operation);
    exec = whole.Policy(4);
    ASSERT_EQ(operation.run(&exec, nullptr), XENT_OK);
    EXPECT_TRUE(operation.outputs() == want) << operation.name;
  }
}

TEST_P(Exec, CallersPoolThatRunsOneTaskTwiceAndAnotherNeverIsIncomplete) {
  // As many tasks as asked for, so a mere count is deceived.
  for (const Operation &operation : Operations()) {
    Pool pool([](int64_t n, const Task &task) {
      for (int64_t i = 0; i < n; ++i) task(i == n - 1 ? 0 : i);
    });
    const xent_exec exec = pool.Policy(4);
    xent_error error = XENT_ERROR_INIT;
    const xent_status status = operation.run(&exec, &error);
    ASSERT_GT(pool.largest(), 1) << operation.name;
    EXPECT_EQ(status, XENT_INCOMPLETE) << operation.name;
  }
}

TEST_P(Exec, CallersPoolThatRunsATaskTwiceDoesNoHarm) {
  // It breaks its contract. Out of place, what a task writes is the same the second time.
  for (const Operation &operation : Operations()) {
    const std::string want = Serially(operation);
    Pool pool([](int64_t n, const Task &task) {
      for (int64_t i = 0; i < n; ++i) task(i);
      task(n / 2);
    });
    const xent_exec exec = pool.Policy(4);
    xent_error error = XENT_ERROR_INIT;
    ASSERT_EQ(operation.run(&exec, &error), XENT_OK) << operation.name << ": " << error.message;
    EXPECT_TRUE(operation.outputs() == want) << operation.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, Exec, ::testing::ValuesIn(kShapes),
                         [](const auto &info) { return info.param.Name(); });

TEST(ExecPolicy, SmallWorkDoesNotAskThePool) {
  Pool pool([](int64_t n, const Task &task) {
    for (int64_t i = 0; i < n; ++i) task(i);
  });
  LossCall call(XENT_F32, {{0, 1, 2}}, {0});
  call.exec = pool.Policy(8);
  call.MustRun(Function::kForwardBackward);
  EXPECT_LE(pool.largest(), 1);
}

TEST(ExecPolicy, OneThreadIsTheCallingThread) {
  // Serially, even a large call; the same bits from a pool.
  LossCall call(XENT_F32, 16, 20000);
  call.FillNormal(1, 4);
  call.exec = kSerial;
  call.MustRun(Function::kForwardBackward);
  LossCall pooled(XENT_F32, 16, 20000);
  pooled.FillNormal(1, 4);
  Pool pool([](int64_t n, const Task &task) {
    for (int64_t i = 0; i < n; ++i) task(i);
  });
  pooled.exec = pool.Policy(8);
  pooled.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.Difference(pooled, Function::kForwardBackward), "");
}

TEST(ExecPolicy, TasksOfThePoolMayCallTheLibrary) {
  // An engine's worker that runs a task of one call makes a call of its own, serially.
  LossCall inner(XENT_F32, 2, 3000);
  inner.FillNormal(2, 4);
  inner.MustRun(Function::kForward);
  bool same = true;
  Pool pool([&](int64_t n, const Task &task) {
    for (int64_t i = 0; i < n; ++i) {
      LossCall nested(XENT_F32, 2, 3000);
      nested.FillNormal(2, 4);
      nested.exec = kSerial;
      nested.MustRun(Function::kForward);
      same = same && inner.Difference(nested, Function::kForward).empty();
      task(i);
    }
  });
  LossCall outer(XENT_F32, 40, 5000);
  outer.FillNormal(1, 4);
  outer.exec = pool.Policy(4);
  outer.MustRun(Function::kForwardBackward);
  EXPECT_GE(pool.calls(), 1);
  EXPECT_TRUE(same);
  EXPECT_EQ(outer.Judge(), "");
}

TEST(ExecPolicy, WorkersOfAnEngineShareTheRows) {
  // design.md, "Threads": n workers run already, each calls serially on its own rows, and xent_reduce finishes the job.
  LossCall whole(XENT_F32, 45, 3000);
  whole.FillNormal(3, 4);
  whole.targets[7] = whole.options.ignore_index;
  whole.MustRun(Function::kForwardBackward);
  LossCall shared = LossCall(XENT_F32, 45, 3000);
  shared.FillNormal(3, 4);
  shared.targets[7] = shared.options.ignore_index;
  shared.options.reduction.divisor = 44;
  const xent_cross_entropy all = shared.Args(Function::kForwardBackward);
  std::vector<std::thread> workers;
  std::atomic<int> failures = 0;
  for (int64_t w = 0; w < 4; ++w) {
    workers.emplace_back([&, w] {
      const int64_t first = 45 * w / 4;
      const int64_t last = 45 * (w + 1) / 4;
      xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
      args.rows = last - first;
      args.cols = 3000;
      const auto from_first = [=](xent_matrix matrix) {
        matrix.data = static_cast<float *>(matrix.data) + first * 3000;
        return matrix;
      };
      args.logits = from_first(all.logits);
      args.grad = from_first(all.grad);
      args.targets.data = shared.targets.data() + first;
      args.row_losses = static_cast<float *>(all.row_losses) + first;
      xent_statistics statistics = XENT_STATISTICS_INIT;
      statistics.lse = static_cast<float *>(shared.statistics.lse) + first;
      args.statistics = &statistics;
      if (xent_cross_entropy_forward_backward(&args, &shared.options, &kSerial, nullptr) != XENT_OK) ++failures;
    });
  }
  for (std::thread &worker : workers) worker.join();
  EXPECT_EQ(failures, 0);
  xent_stored_losses stored = XENT_STORED_LOSSES_INIT;
  stored.rows = 45;
  stored.row_losses = all.row_losses;
  stored.targets = all.targets;
  stored.reduced_loss = all.reduced_loss;
  ASSERT_EQ(xent_reduce(&stored, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(FirstDifference(whole.row_losses, shared.row_losses), "");
  EXPECT_EQ(FirstDifference(whole.lse, shared.lse), "");
  EXPECT_EQ(FirstDifference(whole.grad, shared.grad), "");
  EXPECT_EQ(FirstDifference(whole.reduced_loss, shared.reduced_loss), "");
}

TEST(ExecPolicy, FourThreadsAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  LossCall want(XENT_F32, 12, 20000);
  want.FillNormal(5, 4);
  want.MustRun(Function::kForwardBackward);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int round = 0; round < 6; ++round) {
        LossCall call(XENT_F32, 12, 20000);
        call.FillNormal(5, 4);
        call.exec = (t + round) % 2 == 0 ? TeamOf(t) : kSerial;
        if (call.Run(Function::kForwardBackward) != XENT_OK) ++wrong;
        if (!want.Difference(call, Function::kForwardBackward).empty()) ++wrong;
      }
    });
  }
  for (std::thread &thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(ExecPolicy, InsideAParallelRegionOfTheCaller) {
#if defined(_OPENMP)
  LossCall want(XENT_F32, 12, 20000);
  want.FillNormal(6, 4);
  want.MustRun(Function::kForwardBackward);
  std::atomic<int> wrong = 0;
  std::atomic<int> threads_seen = 0;
#pragma omp parallel num_threads(3)
  {
    LossCall call(XENT_F32, 12, 20000);
    call.FillNormal(6, 4);
    if (call.Run(Function::kForwardBackward) != XENT_OK) ++wrong;
    if (!want.Difference(call, Function::kForwardBackward).empty()) ++wrong;
    // Serially: no team of its own within the caller's.
    if (xent_default_threads() != 1) ++wrong;
    ++threads_seen;
  }
  EXPECT_EQ(wrong, 0);
  EXPECT_GE(threads_seen, 1);
#else
  GTEST_SKIP() << "this build has no OpenMP";
#endif
}

// Runs `body` in a forked child; its result, or -1 if the child died or did not end within two minutes.
int InChild(const std::function<int()> &body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  for (int tick = 0; tick < 12000; ++tick) {
    int status = 0;
    if (waitpid(child, &status, WNOHANG) == child) return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  return -1;
}

TEST(ExecPolicy, InAForkedChild) {
  // The parent's team exists by then, and the child has none of its threads.
  LossCall want(XENT_F32, 12, 20000);
  want.FillNormal(7, 4);
  want.exec.threads = 4;
  want.MustRun(Function::kForwardBackward);
  EXPECT_EQ(InChild([&] {
              for (const int32_t threads : {0, 4}) {
                LossCall call(XENT_F32, 12, 20000);
                call.FillNormal(7, 4);
                call.exec.threads = threads;
                if (call.Run(Function::kForwardBackward) != XENT_OK) return 1;
                if (!want.Difference(call, Function::kForwardBackward).empty()) return 2;
              }
              return xent_default_threads() == 1 ? 0 : 3;
            }),
            0);
  // The parent goes on as before.
  LossCall after(XENT_F32, 12, 20000);
  after.FillNormal(7, 4);
  after.exec.threads = 4;
  after.MustRun(Function::kForwardBackward);
  EXPECT_EQ(want.Difference(after, Function::kForwardBackward), "");
}

TEST(ExecPolicy, InAForkedChildOfAFreshProcessToo) {
  // Forked before the parent made any call of several threads.
  EXPECT_EQ(InChild([] {
              LossCall call(XENT_F32, 12, 20000);
              call.FillNormal(7, 4);
              return call.Run(Function::kForwardBackward) == XENT_OK && call.Judge().empty() ? 0 : 1;
            }),
            0);
}

#if defined(__linux__)
// Three tests of a program that is started anew: a forked child computes on one thread anyway.
constexpr int kNotPermitted = 77;

LossCall Serial() {
  LossCall call(XENT_F32, 12, 20000);
  call.FillNormal(7, 4);
  call.exec = kSerial;
  call.MustRun(Function::kForwardBackward);
  return call;
}
// Whether a call with `threads` gives the same.
bool AgreesWith(const LossCall &want, int32_t threads) {
  LossCall call(XENT_F32, 12, 20000);
  call.FillNormal(7, 4);
  call.exec = TeamOf(threads);
  return call.Run(Function::kForwardBackward) == XENT_OK && want.Difference(call, Function::kForwardBackward).empty();
}

void ExpectQuietSuccess(const Outcome &outcome) {
  if (!outcome.started || outcome.status == kNotPermitted) GTEST_SKIP() << "not permitted here";
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.output, "");
}

// A process that is the first of its namespace, and so is its child: both have the number 1.
const Part kForkOfTheFirst("fork-of-the-first", [] {
  const LossCall want = Serial();
  if (getpid() != 1 || !AgreesWith(want, 4)) return 1;
  if (unshare(CLONE_NEWPID) != 0) return kNotPermitted;
  return InChild([&] { return getpid() == 1 && AgreesWith(want, 4) && AgreesWith(want, 0) ? 0 : 2; });
});

TEST(ExecPolicy, InAForkedChildThatHasItsParentsNumber) {
  ExpectQuietSuccess(RunInOwnProcess("fork-of-the-first", {}, CLONE_NEWPID));
}

// Whether seven more threads are too many, so that these tests show something.
bool SevenThreadsAreTooMany() {
  std::atomic<bool> go = false;
  std::vector<std::thread> threads;
  bool refused = false;
  try {
    for (int i = 0; i < 7; ++i) {
      threads.emplace_back([&] {
        while (!go) std::this_thread::yield();
      });
    }
  } catch (const std::system_error &) {
    refused = true;
  }
  go = true;
  for (std::thread &thread : threads) thread.join();
  return refused;
}

int CallPastTheLimit(int resource, rlim_t most) {
  const LossCall want = Serial();
  const rlimit limit = {most, most};
  if (setrlimit(resource, &limit) != 0) return kNotPermitted;
  const bool agrees = AgreesWith(want, 8) && AgreesWith(want, 8);
  if (!SevenThreadsAreTooMany()) return kNotPermitted;
  return agrees ? 0 : 1;
}

const Part kPastTheAddressSpace("past-the-address-space", [] {
  long pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  // Room for the calls' own tensors, and for no eight stacks of 2 MB or more.
  return CallPastTheLimit(RLIMIT_AS, static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE)) + (rlim_t{10} << 20));
});

const Part kPastTheNumberOfThreads("past-the-number-of-threads", [] {
  constexpr uid_t kNobody = 65534;
  if (geteuid() == 0 && setuid(kNobody) != 0) return kNotPermitted;  // no limit holds for root
  return CallPastTheLimit(RLIMIT_NPROC, 1);
});

TEST(ExecPolicy, WhereTheAddressSpaceHasNoRoomForATeam) {
#if defined(XENT_TEST_SANITIZED)
  GTEST_SKIP() << "a sanitizer needs more address space than any limit leaves";
#endif
  ExpectQuietSuccess(RunInOwnProcess("past-the-address-space"));
}

TEST(ExecPolicy, WhereThereMayBeNoMoreThreads) { ExpectQuietSuccess(RunInOwnProcess("past-the-number-of-threads")); }
#endif

TEST(ExecPolicy, DefaultThreadsAreAtLeastOne) { EXPECT_GE(xent_default_threads(), 1); }

}  // namespace
}  // namespace xent::test
