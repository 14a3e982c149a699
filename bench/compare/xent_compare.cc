// Two builds of the shared library against each other in one process: before and after a change.
//   xent_compare BEFORE/libxent.so AFTER/libxent.so [repetitions]
// Each repetition times a call of one and of the other, taking turns at who goes first, on the same buffers; what is
// printed is the median and the least of the times' ratios after/before. Calls use the structs of version 0.1, which
// every later one understands. Thread CPU time, one thread.
#include <dlfcn.h>
#include <xent/xent.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <vector>

namespace {

using Function = xent_status (*)(const xent_cross_entropy *, const xent_options *, const xent_exec *, xent_error *);

struct Library {
  Function forward, forward_backward, backward;

  explicit Library(const char *path) {
    void *const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      std::fprintf(stderr, "xent_compare: %s\n", dlerror());
      std::exit(1);
    }
    const auto find = [&](const char *name) { return reinterpret_cast<Function>(dlsym(handle, name)); };
    forward = find("xent_cross_entropy_forward");
    forward_backward = find("xent_cross_entropy_forward_backward");
    backward = find("xent_cross_entropy_backward");
  }
};

double Now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

enum class Op { kForward, kSmoothed, kForwardBackward, kInPlace, kBackward };
constexpr const char *kNames[] = {"forward", "forward, smoothing", "forward_backward", "forward_backward_inplace",
                                  "backward"};

struct Case {
  Op op;
  int64_t rows, cols;
};

class Comparison {
 public:
  Comparison(const Library &before, const Library &after) : libraries_{&before, &after} {}

  void Run(const Case &c, int repetitions) {
    const auto count = static_cast<size_t>(c.rows * c.cols);
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal(0, 2);
    std::vector<float> logits(count), work(count);
    for (float &z : logits) z = normal(random);
    std::vector<int64_t> targets(static_cast<size_t>(c.rows));
    for (int64_t &t : targets) t = static_cast<int64_t>(random() % static_cast<uint64_t>(c.cols));
    std::vector<uint64_t> records(static_cast<size_t>(c.rows) * XENT_RECORD_BYTES / 8);
    std::vector<float> results[2];
    // Small calls are timed many at a time.
    const int64_t calls = c.op == Op::kInPlace ? 1 : std::max<int64_t>(1, 2000000 / (c.rows * c.cols));
    std::vector<double> ratios, seconds[2];
    for (int repetition = -1; repetition < repetitions; ++repetition) {
      double time[2];
      for (int turn = 0; turn < 2; ++turn) {
        const int which = (turn + repetition) & 1;
        const Library &library = *libraries_[which];
        float loss = 0;
        xent_options options = XENT_OPTIONS_INIT;
        options.struct_size = offsetof(xent_options, logit_scale);
        if (c.op == Op::kSmoothed) options.label_smoothing = 0.1;
        xent_exec exec = XENT_EXEC_INIT;
        exec.mode = XENT_EXEC_SERIAL;
        xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
        args.struct_size = offsetof(xent_cross_entropy, inner);
        args.rows = c.rows;
        args.cols = c.cols;
        args.logits = logits.data();
        args.targets = targets.data();
        args.loss = &loss;
        Function function = library.forward;
        if (c.op == Op::kInPlace) {
          std::copy(logits.begin(), logits.end(), work.begin());
          args.logits = args.grad = work.data();
          args.in_place = 1;
          function = library.forward_backward;
        } else if (c.op == Op::kForwardBackward) {
          args.grad = work.data();
          function = library.forward_backward;
        } else if (c.op == Op::kBackward) {
          args.records = records.data();
          Check(library.forward(&args, &options, &exec, nullptr));
          args.loss = nullptr;
          args.grad = work.data();
          function = library.backward;
        }
        const double start = Now();
        for (int64_t i = 0; i < calls; ++i) Check(function(&args, &options, &exec, nullptr));
        time[which] = Now() - start;
        if (repetition < 0) {  // the warm-up shows that both compute the same
          results[which].assign(1, loss);
          if (args.grad != nullptr) results[which].insert(results[which].end(), work.begin(), work.end());
        } else {
          seconds[which].push_back(time[which] / static_cast<double>(calls));
        }
      }
      if (repetition >= 0) ratios.push_back(time[1] / time[0]);
    }
    const bool same = std::memcmp(results[0].data(), results[1].data(), results[0].size() * sizeof(float)) == 0;
    std::sort(ratios.begin(), ratios.end());
    const auto least = [](const std::vector<double> &v) { return *std::min_element(v.begin(), v.end()); };
    std::printf("%-26s %6lld x %-7lld before %9.1f us  after/before: median %.3f  of the minima %.3f  bits %s\n",
                kNames[static_cast<int>(c.op)], static_cast<long long>(c.rows), static_cast<long long>(c.cols),
                least(seconds[0]) * 1e6, ratios[ratios.size() / 2], least(seconds[1]) / least(seconds[0]),
                same ? "equal" : "DIFFER");
    std::fflush(stdout);
  }

 private:
  static void Check(xent_status status) {
    if (status == XENT_OK) return;
    std::fprintf(stderr, "xent_compare: a call failed with status %d\n", static_cast<int>(status));
    std::exit(1);
  }

  const Library *libraries_[2];
};

}  // namespace

int main(int argc, char **argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: xent_compare BEFORE/libxent.so AFTER/libxent.so [repetitions]\n");
    return 2;
  }
  const Library before(argv[1]), after(argv[2]);
  Comparison comparison(before, after);
  const int repetitions = argc > 3 ? std::atoi(argv[3]) : 21;
  const Case cases[] = {
      {Op::kForward, 1024, 32000},      {Op::kForwardBackward, 1024, 32000},
      {Op::kInPlace, 1024, 32000},      {Op::kBackward, 1024, 32000},
      {Op::kSmoothed, 1024, 32000},     {Op::kForward, 16, 1000},
      {Op::kForwardBackward, 16, 1000}, {Op::kForward, 1, 10},
      {Op::kForwardBackward, 1, 10},    {Op::kForwardBackward, 65536, 10},
      {Op::kForward, 65536, 10},        {Op::kForward, 65536, 100},
  };
  for (const Case &c : cases) comparison.Run(c, repetitions);
  return 0;
}
