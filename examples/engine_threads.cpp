// Three ways to run one loss, and the same bits from each: the library's own threads, an engine whose workers already
// run (worker ith of nth calls on its own thread, for its own rows), and the engine's pool lent to the library.
// Prints OK, or what differs with exit code 1.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <thread>
#include <vector>
#include <xent/xent.hpp>

namespace {

constexpr std::int64_t kRows = 301;
constexpr std::int64_t kCols = 5003;
constexpr int kWorkers = 3;

// The inputs, and what a run fills in.
std::vector<float> logits(static_cast<std::size_t>(kRows *kCols));
std::vector<std::int64_t> targets(kRows);

struct Result {
  std::vector<float> row_losses = std::vector<float>(kRows);
  std::vector<float> grad = std::vector<float>(static_cast<std::size_t>(kRows * kCols));
  float loss = 0.0f;

  // memcmp, not ==: bits are promised.
  bool operator==(const Result &other) const {
    return std::memcmp(&loss, &other.loss, sizeof(loss)) == 0 &&
           std::memcmp(row_losses.data(), other.row_losses.data(), row_losses.size() * sizeof(float)) == 0 &&
           std::memcmp(grad.data(), other.grad.data(), grad.size() * sizeof(float)) == 0;
  }
};

void Check(const xent::Status &status) {
  if (status.ok()) return;
  std::fprintf(stderr, "engine_threads: %s\n", status.message());
  std::exit(1);
}

// One call for the whole batch, under any policy.
Result WholeBatch(const xent::Exec &exec) {
  Result result;
  Check(xent::CrossEntropyForwardBackward(xent::CrossEntropy<float>{.logits = {logits.data(), kRows, kCols},
                                                                    .targets = targets,
                                                                    .row_losses = result.row_losses,
                                                                    .reduced_loss = &result.loss,
                                                                    .grad = {result.grad.data(), kRows, kCols}},
                                          {}, exec));
  return result;
}

// What worker ith of nth does in an engine that has cut the batch itself. A share's own mean would divide by its own
// rows, so the share sums, and the divisor is what the whole batch counts.
void WorkerShare(int ith, int nth, std::int64_t live_rows, Result &result) {
  const std::int64_t first = kRows * ith / nth;
  const std::int64_t rows = kRows * (ith + 1) / nth - first;
  const auto share = [&](auto &values) {
    return std::span(values).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(rows));
  };
  Check(xent::CrossEntropyForwardBackward(
      xent::CrossEntropy<float>{.logits = {logits.data() + first * kCols, rows, kCols},
                                .targets = share(targets),
                                .row_losses = share(result.row_losses),
                                .grad = {result.grad.data() + first * kCols, rows, kCols}},
      {.reduction = {.kind = xent::ReductionKind::kSum, .divisor = static_cast<double>(live_rows)}},
      xent::Exec::Serial()));
}

Result EngineWorkers() {
  const xent::CrossEntropyOptions options;
  std::int64_t live_rows = 0;
  for (const std::int64_t target : targets) live_rows += target != options.ignore_index ? 1 : 0;
  Result result;
  std::vector<std::thread> workers;
  for (int ith = 0; ith < kWorkers; ++ith) {
    workers.emplace_back([&, ith] { WorkerShare(ith, kWorkers, live_rows, result); });
  }
  for (std::thread &worker : workers) worker.join();
  Check(xent::Reduce(
      xent::StoredLosses<float>{.row_losses = result.row_losses, .targets = targets, .reduced_loss = &result.loss},
      options));
  return result;
}

// A pool as small as can be: its threads take the next piece until none is left. It returns when all are done.
Result EnginePool() {
  const auto parallel_for = [](std::int64_t n, xent::Task task) {
    std::atomic<std::int64_t> next{0};
    const auto work = [&] {
      for (std::int64_t i = next++; i < n; i = next++) task(i);
    };
    std::vector<std::thread> workers;
    for (int i = 1; i < kWorkers; ++i) workers.emplace_back(work);
    work();
    for (std::thread &worker : workers) worker.join();
  };
  return WholeBatch(xent::Exec::ParallelFor(parallel_for, kWorkers));
}

}  // namespace

int main() {
  std::uint32_t state = 1;  // a linear congruential generator will do here
  for (float &z : logits) {
    state = 1664525u * state + 1013904223u;
    z = std::ldexp(static_cast<float>(state >> 8), -20) - 8.0f;  // [-8, 8)
  }
  for (std::size_t i = 0; i < targets.size(); ++i) {
    targets[i] = i % 7 == 3 ? -100 : static_cast<std::int64_t>(i * 997 % kCols);
  }

  const Result whole = WholeBatch({});
  const Result workers = EngineWorkers();
  const Result pool = EnginePool();
  if (!(std::isfinite(whole.loss) && whole.loss > 0.0f)) {
    std::fprintf(stderr, "engine_threads: the loss is %g\n", static_cast<double>(whole.loss));
    return 1;
  }
  if (!(workers == whole) || !(pool == whole)) {
    std::fprintf(stderr, "engine_threads: %s gave other bits than the library's own threads\n",
                 workers == whole ? "the engine's pool" : "the engine's workers");
    return 1;
  }
  std::printf("OK: loss %.6f, the same bits from the library's threads, %d running workers and a lent pool\n",
              static_cast<double>(whole.loss), kWorkers);
  return 0;
}
