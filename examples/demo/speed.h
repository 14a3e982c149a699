// The fused kernels beside plain loops (maximum; sum of std::exp; gradient), at vocabulary sizes of language models,
// checked first.
// A demonstration in a few seconds; xent_bench measures.
#ifndef XENT_EXAMPLES_DEMO_SPEED_H_
#define XENT_EXAMPLES_DEMO_SPEED_H_

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "common.h"
#include "xent/xent.hpp"

namespace demo {

// ---- The naive code, as one writes it down. T is float where it is timed, double where it is the reference.

template <class T>
T NaiveLoss(const T *z, std::int64_t cols, std::int64_t target) {
  T max = z[0];
  for (std::int64_t j = 1; j < cols; ++j) max = std::max(max, z[j]);
  T sum = 0;
  for (std::int64_t j = 0; j < cols; ++j) sum += std::exp(z[j] - max);
  return max + std::log(sum) - z[target];
}

// The gradient, times `scale`, over the logits.
template <class T>
T NaiveLossGradient(T *z, std::int64_t cols, std::int64_t target, T scale) {
  T max = z[0];
  for (std::int64_t j = 1; j < cols; ++j) max = std::max(max, z[j]);
  T sum = 0;
  const T of_target = z[target];
  for (std::int64_t j = 0; j < cols; ++j) {
    z[j] = std::exp(z[j] - max);
    sum += z[j];
  }
  for (std::int64_t j = 0; j < cols; ++j) z[j] = z[j] / sum * scale;
  z[target] -= scale;
  return max + std::log(sum) - of_target;
}

// ---- What is measured.

struct Batch {
  std::int64_t rows;
  std::int64_t cols;
  std::span<const float> logits;  // [rows, cols], kept
  std::vector<std::int64_t> targets;
};

// function(first, last) for even shares of [0, rows), one on each of `threads` threads.
template <class F>
void OverRows(std::int64_t rows, int threads, F function) {
  std::vector<std::thread> workers;
  for (int i = 1; i < threads; ++i) {
    workers.emplace_back(function, rows * i / threads, rows * (i + 1) / threads);
  }
  function(std::int64_t{0}, rows / threads);
  for (std::thread &worker : workers) worker.join();
}

inline float NaiveForward(const Batch &batch, int threads) {
  std::vector<float> losses(static_cast<std::size_t>(batch.rows));
  OverRows(batch.rows, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const auto row = static_cast<std::size_t>(i);
      losses[row] =
          NaiveLoss(&batch.logits[row * static_cast<std::size_t>(batch.cols)], batch.cols, batch.targets[row]);
    }
  });
  double sum = 0.0;
  for (const float loss : losses) sum += static_cast<double>(loss);
  return static_cast<float>(sum / static_cast<double>(batch.rows));
}

inline float NaiveForwardBackward(const Batch &batch, int threads, float *work) {
  std::vector<float> losses(static_cast<std::size_t>(batch.rows));
  const float scale = 1.0f / static_cast<float>(batch.rows);
  OverRows(batch.rows, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const auto row = static_cast<std::size_t>(i);
      losses[row] = NaiveLossGradient(work + i * batch.cols, batch.cols, batch.targets[row], scale);
    }
  });
  double sum = 0.0;
  for (const float loss : losses) sum += static_cast<double>(loss);
  return static_cast<float>(sum / static_cast<double>(batch.rows));
}

inline float FusedForward(const Batch &batch, int threads) {
  float loss = 0.0f;
  Check(xent::CrossEntropyForward(
      xent::CrossEntropy<float>{
          .logits = {batch.logits.data(), batch.rows, batch.cols}, .targets = batch.targets, .reduced_loss = &loss},
      {}, xent::Exec::OpenMp(threads)));
  return loss;
}

inline float FusedForwardBackward(const Batch &batch, int threads, float *work) {
  float loss = 0.0f;
  const xent::MatrixView<float> view{work, batch.rows, batch.cols};
  Check(xent::CrossEntropyForwardBackward(
      xent::CrossEntropy<float>{.logits = view, .targets = batch.targets, .reduced_loss = &loss, .grad = view}, {},
      xent::Exec::OpenMp(threads)));
  return loss;
}

// ---- Checks against the naive code in double.

// |got - want| in units of the spacing of float32 at |want|.
inline double ErrorUlp(float got, double want) {
  if (want == 0.0) return got == 0.0f ? 0.0 : HUGE_VAL;
  const int exponent = std::max(std::ilogb(want), -126);
  return std::abs(static_cast<double>(got) - want) / std::ldexp(1.0, exponent - 23);
}

struct Checked {
  double loss_ulp = 0.0;
  double grad_ulp = 0.0;  // the worst element
};

// Compares the mean loss and the gradient with the naive code in double precision, row by row, and leaves with exit
// code 1 past the bounds that xent.h states: 4 ULP for the loss, 6 for the gradient. The naive sum in double is off by
// at most cols * 2^-53, below 1e-6 of such an ULP at 128256 columns.
inline Checked CheckAgainstNaive(const Batch &batch, float loss, std::span<const float> grad) {
  const auto cols = static_cast<std::size_t>(batch.cols);
  std::vector<double> row(cols);
  double sum = 0.0;
  Checked checked;
  for (std::size_t i = 0; i < static_cast<std::size_t>(batch.rows); ++i) {
    const auto logits = batch.logits.subspan(i * cols, cols);
    std::copy(logits.begin(), logits.end(), row.begin());
    sum += NaiveLossGradient(row.data(), batch.cols, batch.targets[i], 1.0 / static_cast<double>(batch.rows));
    for (std::size_t j = 0; j < cols; ++j) {
      const double ulp = ErrorUlp(grad[i * cols + j], row[j]);
      if (!(ulp <= checked.grad_ulp)) checked.grad_ulp = ulp;
    }
  }
  checked.loss_ulp = ErrorUlp(loss, sum / static_cast<double>(batch.rows));
  if (!(checked.loss_ulp <= 4.0 && checked.grad_ulp <= 6.0)) {
    Fail("V = " + std::to_string(batch.cols) + ": the loss is off by " + std::to_string(checked.loss_ulp) +
         " ULP, the gradient by " + std::to_string(checked.grad_ulp) + "; expected at most 4 and 6");
  }
  return checked;
}

// FNV-1a over the bit patterns.
inline std::uint64_t Hash(std::span<const float> values) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const float value : values) hash = (hash ^ std::bit_cast<std::uint32_t>(value)) * 0x100000001B3u;
  return hash;
}

// ---- Timing.

struct Times {
  double median = 0.0;  // milliseconds
  double minimum = 0.0;
};

// Runs prepare(), untimed, then function(), timed, `repetitions` times.
template <class P, class F>
Times Measure(int repetitions, P prepare, F function, Progress &progress) {
  std::vector<double> times;
  for (int i = 0; i < repetitions; ++i) {
    prepare();
    const auto begin = std::chrono::steady_clock::now();
    function();
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  }
  progress.Step();
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[0]};
}

inline std::string CpuName() {
  std::ifstream stream("/proc/cpuinfo");
  for (std::string line; std::getline(stream, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

inline void SpeedTable() {
  struct Shape {
    std::int64_t rows;
    std::int64_t cols;
  };
  // 82 MB of logits each, past the last-level cache of most machines: Llama 2, GPT-2 and Llama 3 by their vocabularies.
  constexpr Shape kShapes[] = {{640, 32000}, {407, 50257}, {160, 128256}};
  constexpr int kNaiveRepetitions = 3;
  constexpr int kFusedRepetitions = 9;
  std::vector<int> thread_counts = {1};
  if (xent::DefaultThreads() > 1) thread_counts.push_back(xent::DefaultThreads());

  std::printf("3. Speed: fused kernels (%s) beside plain loops (maximum; sum of std::exp; gradient)\n",
              xent::ActiveTarget());
  std::printf(
      "  %s; float32, random normal logits, mean loss; milliseconds, median (minimum) of %d naive and %d fused runs;\n"
      "  the naive loops get as many threads, rows shared out evenly\n",
      CpuName().c_str(), kNaiveRepetitions, kFusedRepetitions);

  std::vector<float> normal;
  std::vector<float> work;
  std::vector<std::string> lines;
  std::vector<std::string> checks;
  {
    constexpr int kTables = static_cast<int>(std::size(kShapes));
    Progress progress("  measuring", kTables * (1 + 4 * static_cast<int>(thread_counts.size())));
    std::int64_t most = 0;
    for (const Shape &shape : kShapes) most = std::max(most, shape.rows * shape.cols);
    Random random(7);
    normal.resize(static_cast<std::size_t>(most));
    for (float &z : normal) z = random.Normal();
    work.resize(normal.size());

    for (const Shape &shape : kShapes) {
      const auto size = static_cast<std::size_t>(shape.rows * shape.cols);
      Batch batch = {.rows = shape.rows, .cols = shape.cols, .logits = std::span(normal).first(size), .targets = {}};
      for (std::int64_t i = 0; i < shape.rows; ++i) batch.targets.push_back(random.Below(shape.cols));
      const auto restore = [&] { std::copy_n(normal.begin(), size, work.begin()); };
      const auto nothing = [] {};

      // First that the answers are right, and that threads do not change them.
      restore();
      const float loss = FusedForwardBackward(batch, 1, work.data());
      const Checked checked = CheckAgainstNaive(batch, loss, std::span(work).first(size));
      const std::uint64_t hash = Hash(std::span(work).first(size));
      for (const int threads : thread_counts) {
        restore();
        if (FusedForwardBackward(batch, threads, work.data()) != loss || FusedForward(batch, threads) != loss ||
            Hash(std::span(work).first(size)) != hash) {
          Fail("V = " + std::to_string(shape.cols) + ": other bits with " + std::to_string(threads) + " threads");
        }
      }
      char line[160];
      std::snprintf(line, sizeof(line), "V = %lld: loss %.6f, off by %.2f ULP; worst gradient off by %.2f ULP",
                    static_cast<long long>(shape.cols), static_cast<double>(loss), checked.loss_ulp, checked.grad_ulp);
      checks.push_back(line);
      progress.Step();

      float sink = 0.0f;  // keeps the compiler from dropping a loop whose result nobody reads
      for (const int threads : thread_counts) {
        const Times naive[] = {Measure(
                                   kNaiveRepetitions, nothing, [&] { sink += NaiveForward(batch, threads); }, progress),
                               Measure(
                                   kNaiveRepetitions, restore,
                                   [&] { sink += NaiveForwardBackward(batch, threads, work.data()); }, progress)};
        const Times fused[] = {Measure(
                                   kFusedRepetitions, nothing, [&] { sink += FusedForward(batch, threads); }, progress),
                               Measure(
                                   kFusedRepetitions, restore,
                                   [&] { sink += FusedForwardBackward(batch, threads, work.data()); }, progress)};
        for (std::size_t k = 0; k < 2; ++k) {
          char naive_text[32];
          char fused_text[32];
          std::snprintf(naive_text, sizeof(naive_text), "%.1f (%.1f)", naive[k].median, naive[k].minimum);
          std::snprintf(fused_text, sizeof(fused_text), "%.1f (%.1f)", fused[k].median, fused[k].minimum);
          std::snprintf(line, sizeof(line), "%7lld %6lld %8d  %-26s %16s %14s %7.1f x",
                        static_cast<long long>(shape.cols), static_cast<long long>(shape.rows), threads,
                        k == 0 ? "forward" : "forward+backward in place", naive_text, fused_text,
                        naive[k].median / fused[k].median);
          lines.push_back(line);
        }
      }
      if (!std::isfinite(sink)) Fail("a timed run gave a loss that is not finite");
    }
  }
  std::printf("  %7s %6s %8s  %-26s %16s %14s %9s\n", "V", "rows", "threads", "", "naive ms", "fused ms", "faster");
  for (const std::string &line : lines) std::printf("  %s\n", line.c_str());
  std::printf(
      "  Checked first, against the same loops in double (bounds: 4 and 6 ULP), and the same bits with any\n"
      "  number of threads above:\n");
  for (const std::string &check : checks) std::printf("    %s\n", check.c_str());
  std::printf("\n");
}

}  // namespace demo

#endif  // XENT_EXAMPLES_DEMO_SPEED_H_
