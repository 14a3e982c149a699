// xent_bench: every public operation at real shapes, beside two scalar baselines and what the machine can do with the
// same bytes at best. README.md in this directory says how to run it and how to read it.
//
// Names read operation/dtype/ROWSxCOLS[xPOSITIONS]/threads:N and carry none of the suffixes that Google Benchmark's own
// options (UseRealTime, Iterations, Repetitions) append; so the number of iterations follows from the CPU time of the
// thread that calls, and the rates and ratios below come from a clock of our own.
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "bench/operations.h"
#include "bench/parallel.h"
#include "bench/plan.h"
#include "bench/problem.h"
#include "bench/reporter.h"
#include "bench/shapes.h"
#include "bench/yardsticks.h"
#include "xent/xent.h"

namespace xent_bench {
namespace {

struct Case {
  Op op;
  Source source = Source::kLibrary;
  xent_dtype dtype = XENT_F32;
  Shape shape = {};
  int threads = 1;
  Option option = Option::kNone;
  std::optional<std::string> verdict = {};  // of Check, which is called once

  std::string name() const {
    const std::string positions = shape.inner > 1 ? 'x' + std::to_string(shape.inner) : "";
    return Name(op, source, option) + '/' + Name(dtype) + '/' + std::to_string(shape.rows / shape.inner) + 'x' +
           std::to_string(shape.cols) + positions + "/threads:" + std::to_string(threads);
  }
};

Data g_data = Data::kNormal;
bool g_failed = false;

// The problem of the case that runs; cases are registered such that those of one problem follow each other.
Problem *ProblemOf(const Case &c) {
  static std::unique_ptr<Problem> problem;
  if (problem == nullptr || problem->dtype != c.dtype || problem->shape != c.shape) {
    problem.reset();  // before the next takes its memory
    problem = std::make_unique<Problem>(c.dtype, c.shape, g_data);
  }
  problem->option = c.option;
  return problem.get();
}

// A point in time. Work of one thread is timed by that thread's CPU clock, which stands still while other processes
// have the core: a wall clock would charge them to the long calls more than to the short ones, and ratios would be
// wrong. Work of several threads has the wall clock only, and needs an idle machine.
double Now([[maybe_unused]] int threads) {
#ifdef CLOCK_THREAD_CPUTIME_ID
  if (threads == 1) {
    timespec now = {};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
#endif
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of one call, the mean of `slots` calls.
double SecondsPerCall(Op op, Source source, Problem *problem, int threads) {
  const double start = Now(threads);
  for (int64_t slot = 0; slot < problem->slots; ++slot) Run(op, source, problem, threads, slot);
  return (Now(threads) - start) / static_cast<double>(problem->slots);
}

void RestoreAllSlots(const Problem &problem) {
  for (int64_t slot = 0; slot < problem.slots; ++slot) problem.RestoreSlot(slot);
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The time of a baseline, measured once: the least of the calls that 50 ms have room for.
double BaselineSeconds(Op op, Source source, Problem *problem) {
  static std::map<std::tuple<Op, Source, int64_t, int64_t>, double> known;
  double &best = known[{op, source, problem->shape.rows, problem->shape.cols}];
  if (best == 0) {
    double spent = 0;
    do {
      if (IsInPlace(op)) RestoreAllSlots(*problem);
      const double seconds = SecondsPerCall(op, source, problem, 1);
      best = best == 0 ? seconds : std::min(best, seconds);
      spent += seconds * static_cast<double>(problem->slots);
    } while (spent < 0.05);
  }
  return best;
}

bool IsYardstick(Op op) { return op == Op::kReadSweep || op == Op::kCopy || op == Op::kInPlaceScale; }

void Measure(benchmark::State &state, Case *c) {
  Problem *problem = ProblemOf(*c);
  if (!c->verdict) c->verdict = Check(c->op, c->source, problem, c->threads);
  if (!c->verdict->empty()) {
    g_failed = true;
    state.SkipWithError(c->verdict->c_str());
    return;
  }
  Prepare(c->op, problem);

  struct Yardstick {
    Op op;
    Source source;
    const char *counter;
    std::vector<double> seconds = {};
  };
  std::vector<Yardstick> yardsticks = {{.op = Op::kReadSweep, .source = Source::kLibrary, .counter = "x_sweep"},
                                       {.op = Op::kCopy, .source = Source::kLibrary, .counter = "x_copy"}};
  if (IsInPlace(c->op)) {
    yardsticks.push_back({.op = Op::kInPlaceScale, .source = Source::kLibrary, .counter = "x_scale"});
  }
  if (c->source == Source::kLibrary && c->dtype == XENT_F32 && c->threads == 1) {
    for (const auto &[source, counter] :
         {std::pair{Source::kContrib, "x_contrib"}, std::pair{Source::kSleef, "x_sleef"},
          std::pair{Source::kOneDnn, "x_onednn"}}) {
      if (Does(source, c->op, c->shape, c->option))
        yardsticks.push_back({.op = c->op, .source = source, .counter = counter});
    }
  }
  // The machine's speed changes from second to second, so yardsticks are read at several moments among the iterations.
  constexpr int64_t kReadings = 6;
  const int64_t batches = (state.max_iterations + problem->slots - 1) / problem->slots;
  const int64_t every = std::max<int64_t>(batches / kReadings, 1);

  std::vector<double> seconds;
  seconds.reserve(static_cast<size_t>(batches));
  for (int64_t batch = 0; state.KeepRunningBatch(problem->slots); ++batch) {
    const bool read_yardsticks = batch % every == 0;
    if (read_yardsticks || IsInPlace(c->op)) {
      state.PauseTiming();
      if (read_yardsticks) {
        for (Yardstick &y : yardsticks) {
          y.seconds.push_back(SecondsPerCall(y.op, y.source, problem, c->threads));
        }
      }
      if (IsInPlace(c->op)) RestoreAllSlots(*problem);
      state.ResumeTiming();
    }
    seconds.push_back(SecondsPerCall(c->op, c->source, problem, c->threads));
  }

  const double median = Median(seconds);
  state.counters["bytes_per_second"] = static_cast<double>(BytesMoved(c->op, *problem)) / median;
  state.counters["logits_per_second"] = static_cast<double>(problem->elements()) / median;
  for (const Yardstick &y : yardsticks) state.counters[y.counter] = median / Median(y.seconds);
  if (c->dtype == XENT_F32 && c->threads == 1 && !IsYardstick(c->op)) {
    for (const auto &[source, counter] :
         {std::pair{Source::kNaive, "speedup_over_naive"}, std::pair{Source::kScalar, "speedup_over_scalar"}}) {
      if (c->source != source && Does(source, c->op, c->shape, c->option)) {
        state.counters[counter] = BaselineSeconds(c->op, source, problem) / median;
      }
    }
  }
  const bool scalar = c->source == Source::kNaive || c->source == Source::kScalar;
  std::string label = IsYardstick(c->op) ? YardstickTarget()
                      : scalar           ? "compiler's default target"
                                         : xent_active_target();
  if (c->threads > Cores()) label += ", oversubscribed";
  const std::string plan = c->source == Source::kLibrary ? PlanOf(c->op, *problem, c->threads) : "";
  if (!plan.empty()) label += "; " + plan;
  state.SetLabel(label);
}

// All cases, those of one problem together.
class Registry {
 public:
  void AddAll() {
    const int all = MaxThreads();
    std::vector<int> thread_counts = {1};
    if (all > 1) thread_counts.push_back(all);

    // First, so that the matrix of the same shape finds its problem there.
    for (const Shape &shape : kOptionShapes) AddOptions(shape, thread_counts);
    for (const Shape &shape : kVocabularyShapes) AddMatrix(XENT_F32, shape, thread_counts);
    for (const Shape &shape : kClassifierShapes) AddMatrix(XENT_F32, shape, thread_counts);
    for (const Shape &shape : kSingleRowShapes) AddMatrix(XENT_F32, shape, thread_counts);
    AddMatrix(XENT_F32, kFewRowsShape, {1, all, ManyThreads()});
    AddMatrix(XENT_F64, kVocabularyShape, thread_counts);
    for (const xent_dtype dtype : {XENT_BF16, XENT_F16}) AddMatrix(dtype, kHalfVocabularyShape, thread_counts);
    for (const xent_dtype dtype : {XENT_F32, XENT_F64, XENT_BF16, XENT_F16}) {
      for (const Shape &shape : {kL2Shape, kL1Shape}) AddMatrix(dtype, shape, {1});
    }
    for (const Shape &shape : kClassMajorShapes) AddMatrix(XENT_F32, shape, thread_counts);
    AddBinary(kBinaryShape, thread_counts);
    AddBinary(kL1Shape, {1});
    for (const Shape &shape : kExpSumShapes) AddSerial({Op::kExpSum}, XENT_F32, shape);
    for (const xent_dtype dtype : {XENT_F32, XENT_F64}) {
      for (const Shape &shape : kArrayShapes) AddSerial({Op::kExp, Op::kLog, Op::kLog1p}, dtype, shape);
      for (const Shape &shape : kReduceShapes) AddSerial({Op::kReduce}, dtype, shape);
    }
  }

 private:
  // Operations that run on one thread, beside float32 baselines and peers.
  void AddSerial(const std::vector<Op> &ops, xent_dtype dtype, const Shape &shape) {
    for (const Op op : ops) {
      Add({.op = op, .dtype = dtype, .shape = shape});
      AddOthers(op, dtype, shape);
    }
    for (const Op op : {Op::kReadSweep, Op::kCopy, Op::kInPlaceScale}) {
      Add({.op = op, .dtype = dtype, .shape = shape});
    }
  }

  // Calls of xent alone, float32, with each of the options.
  void AddWith(const std::vector<Op> &ops, const std::vector<Option> &options, const Shape &shape,
               const std::vector<int> &thread_counts) {
    for (const int threads : thread_counts) {
      for (const Option option : options) {
        for (const Op op : ops) Add({.op = op, .shape = shape, .threads = threads, .option = option});
      }
    }
  }

  void AddOptions(const Shape &shape, const std::vector<int> &thread_counts) {
    AddWith({Op::kForward, Op::kForwardBackward},
            {Option::kSmoothing, Option::kExclusive, Option::kWeights, Option::kRowWeights, Option::kProbs,
             Option::kSoftcap, Option::kLogitScale, Option::kZLoss, Option::kSmoothingZLoss, Option::kValidCols},
            shape, thread_counts);
    AddWith({Op::kForward}, {Option::kArgmax, Option::kEntropy, Option::kRank, Option::kTopK}, shape, thread_counts);
    AddWith({Op::kKlForward, Op::kKlForwardBackward, Op::kJensenShannonForward, Op::kJensenShannonForwardBackward,
             Op::kBceForward, Op::kBceForwardBackward},
            {Option::kNone}, shape, thread_counts);
  }

  void AddBinary(const Shape &shape, const std::vector<int> &thread_counts) {
    AddWith({Op::kBceForward, Op::kBceForwardBackward},
            {Option::kNone, Option::kPosWeight, Option::kFocal, Option::kProbabilities}, shape, thread_counts);
  }

  void AddMatrix(xent_dtype dtype, const Shape &shape, const std::vector<int> &thread_counts) {
    constexpr std::array kOps = {Op::kForward,         Op::kForwardBackwardInplace,
                                 Op::kForwardBackward, Op::kForwardBackwardWorkspace,
                                 Op::kBackward,        Op::kLogSumExp,
                                 Op::kSoftmax,         Op::kLogSoftmax,
                                 Op::kSoftmaxBackward, Op::kLogSoftmaxBackward,
                                 Op::kCheckLogits};
    constexpr std::array kYardsticks = {Op::kReadSweep, Op::kCopy, Op::kInPlaceScale};
    for (const int threads : thread_counts) {
      for (const Op op : kYardsticks) Add({.op = op, .dtype = dtype, .shape = shape, .threads = threads});
      for (const Op op : kOps) Add({.op = op, .dtype = dtype, .shape = shape, .threads = threads});
    }
    for (const Op op : kOps) {
      // The baselines know no workspace: theirs would be forward_backward once more.
      if (op != Op::kForwardBackwardWorkspace) AddOthers(op, dtype, shape);
    }
  }

  // Baselines and peers.
  void AddOthers(Op op, xent_dtype dtype, const Shape &shape) {
    if (dtype != XENT_F32) return;
    for (const Source source : {Source::kNaive, Source::kScalar, Source::kContrib, Source::kSleef, Source::kOneDnn}) {
      if (Does(source, op, shape, Option::kNone)) Add({.op = op, .source = source, .dtype = dtype, .shape = shape});
    }
  }

  void Add(const Case &c) {
    if (!names_.insert(c.name()).second) return;
    const auto shared = std::make_shared<Case>(c);
    const int64_t elements = c.shape.rows * c.shape.cols;
    benchmark::RegisterBenchmark(c.name().c_str(), [shared](benchmark::State &state) {
      Measure(state, shared.get());
    })->Unit(elements >= 1000000 ? benchmark::kMillisecond : benchmark::kMicrosecond);
  }

  std::set<std::string> names_;
};

std::string CpuModel() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(std::min(line.find(':') + 2, line.size()));
  }
  return "unknown";
}

std::string Compiler() {
#if defined(__clang__)
  return __VERSION__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#else
  return "unknown";
#endif
}

// Clock of the core, at best, in GHz: additions that wait for one another take a cycle each. The addend is in a
// register, for some processors add a constant without spending any.
std::string Ghz() {
#if defined(__GNUC__)
  constexpr int64_t kRounds = 100000, kUnrolled = 16;
  double best = 0;
  for (int reading = 0; reading < 100; ++reading) {
    uint64_t sum = 0, one = 1;
    const double start = Now(1);
    for (int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 16
      for (int64_t k = 0; k < kUnrolled; ++k) {
        sum += one;
        // Hides both values from the compiler, which would multiply instead.
        asm volatile("" : "+r"(sum), "+r"(one));
      }
    }
    best = std::max(best, static_cast<double>(kRounds * kUnrolled) / (Now(1) - start) * 1e-9);
  }
  std::ostringstream text;
  text.precision(3);
  text << best;
  return text.str();
#else
  return "unknown";
#endif
}

void AddContext() {
  benchmark::AddCustomContext("cpu", CpuModel());
  benchmark::AddCustomContext("ghz", Ghz());
  benchmark::AddCustomContext("compiler", Compiler());
  benchmark::AddCustomContext("xent", std::string(xent_version()) + ", Highway " + xent_highway_version());
  benchmark::AddCustomContext("target", xent_active_target());
  benchmark::AddCustomContext("yardstick_target", YardstickTarget());
  benchmark::AddCustomContext("threads", std::to_string(MaxThreads()));
  benchmark::AddCustomContext("data", Name(g_data));
}

void PrintHelp() {
  std::cout << "xent_bench: the operations of xent, timed beside what memory allows.\n\n"
               "usage: xent_bench [--data=normal|margin|ascending|masked] [--benchmark_filter=REGEX] ...\n"
               "  --data=KIND                       the logits' values (default: normal)\n"
               "  --benchmark_filter=REGEX          what to run; names read operation/dtype/ROWSxCOLS/threads:N\n"
               "  --benchmark_list_tests            the names\n"
               "  --benchmark_repetitions=N         default here: 5, of which the median and the fastest are shown\n"
               "  --benchmark_min_time=SECONDS      of one repetition; default here: 0.2\n"
               "  --benchmark_format=console|json   what is printed\n"
               "  --benchmark_out=FILE              every repetition, as JSON\n"
               "and the other options of Google Benchmark.\n";
}

int Main(int argc, char **argv) {
  // Google Benchmark takes the last of several values, so defaults of our own stand before the user's.
  std::string repetitions = "--benchmark_repetitions=5";
  std::string min_time = "--benchmark_min_time=0.2";
  std::vector<char *> arguments = {argv[0], repetitions.data(), min_time.data()};
  constexpr std::string_view kData = "--data=";
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument.substr(0, kData.size()) != kData) {
      arguments.push_back(argv[i]);
    } else if (!ParseData(argument.substr(kData.size()), &g_data)) {
      std::cerr << "xent_bench: " << argument << ": the kinds of data are normal, margin, ascending and masked\n";
      return 2;
    }
  }
  int count = static_cast<int>(arguments.size());
  arguments.push_back(nullptr);
  benchmark::Initialize(&count, arguments.data(), PrintHelp);
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 2;

  AddContext();
  Registry registry;
  registry.AddAll();
  MedianAndMinimum reporter(benchmark::CreateDefaultDisplayReporter());
  const size_t matched = benchmark::RunSpecifiedBenchmarks(&reporter);
  benchmark::Shutdown();
  if (matched == 0) return 2;
  if (g_failed) std::cerr << "xent_bench: at least one result was wrong, see above\n";
  return g_failed ? 1 : 0;
}

}  // namespace
}  // namespace xent_bench

int main(int argc, char **argv) {
  try {
    return xent_bench::Main(argc, argv);
  } catch (const std::exception &e) {
    std::cerr << "xent_bench: " << e.what() << '\n';
    return 1;
  }
}
