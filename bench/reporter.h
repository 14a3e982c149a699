// How results are shown: of the repetitions of a benchmark, the median and the fastest.
#ifndef XENT_BENCH_REPORTER_H_
#define XENT_BENCH_REPORTER_H_

#include <benchmark/benchmark.h>

#include <vector>

namespace xent_bench {

// Stands before another reporter (console, JSON). Of Google Benchmark's mean, median, deviation and coefficient of
// variation it passes on the median alone, and adds a row `_min`: the repetition with the least time, with its own
// counters. The least value of each counter alone would be the slowest rate.
class MedianAndMinimum : public benchmark::BenchmarkReporter {
 public:
  // `shown` outlives this object.
  explicit MedianAndMinimum(benchmark::BenchmarkReporter *shown) : shown_(shown) {}

  bool ReportContext(const Context &context) override;
  void ReportRuns(const std::vector<Run> &runs) override;
  void Finalize() override;

 private:
  // Shows repetitions that no aggregates have followed: there was one alone, or there were errors.
  void ShowRepetitions();

  benchmark::BenchmarkReporter *const shown_;
  std::vector<Run> repetitions_;
};

}  // namespace xent_bench

#endif  // XENT_BENCH_REPORTER_H_
