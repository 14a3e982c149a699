// Times two builds of the library against each other, call by call in one process, and compares their bits.
//
// Machines are noisy, so a time alone says little. Each sample is the ratio of times of one short slice of calls, taken
// in the order before, after, after, before, and in the next sample in the reverse order: a machine whose speed drifts
// slows both sides alike. Both sides work on the same buffers.
//
// Where code and stack lie in memory changes a time by several percent (Mytkowicz et al. 2009): one library against a
// copy of itself, 16x1000, gives ratios from 0.99 to 1.03, each stable while the process lives. So both libraries are
// loaded many times, each time from a copy of the file, to another address and with another depth of the stack. The
// result is the median over these layouts of the median of each layout's samples, and its confidence interval, which
// assumes nothing but that layouts are independent.
#include <alloca.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <filesystem>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "bench/compare/subject.h"
#include "hwy/base.h"

namespace xent_compare {
namespace {

constexpr std::array kOperations = {
    std::pair{"forward", Operation::kForward},
    std::pair{"forward_backward", Operation::kForwardBackward},
    std::pair{"forward_backward_inplace", Operation::kInPlace},
    std::pair{"backward", Operation::kBackward},
    std::pair{"forward_backward_workspace", Operation::kWorkspace},
    std::pair{"forward_backward_smoothing", Operation::kSmoothing},
    std::pair{"forward_backward_softcap", Operation::kSoftcap},
};
constexpr std::array kDtypes = {
    std::pair{"f32", Dtype::kF32},
    std::pair{"f64", Dtype::kF64},
    std::pair{"bf16", Dtype::kBf16},
    std::pair{"f16", Dtype::kF16},
};

struct Shape {
  int64_t rows, cols;
};

struct Settings {
  std::vector<Operation> operations = {Operation::kForward, Operation::kForwardBackward, Operation::kInPlace,
                                       Operation::kBackward};
  std::vector<Dtype> dtypes = {Dtype::kF32};
  std::vector<Shape> shapes = {{1, 10}, {16, 1000}, {65536, 10}, {1024, 32000}};
  int32_t threads = 1;
  bool passes_options = false;
  int layouts = 15;
  double seconds = 8;   // of one case
  double limit = 1.02;  // the largest median that is not called slower
  std::vector<std::string> paths;
};

template <class Pairs, class Value>
const char *NameIn(const Pairs &pairs, Value value) {
  for (const auto &[name, candidate] : pairs) {
    if (candidate == value) return name;
  }
  return "";
}

int64_t ElementBytes(Dtype dtype) { return dtype == Dtype::kF64 ? 8 : dtype == Dtype::kF32 ? 4 : 2; }
int64_t ValueBytes(Dtype dtype) { return dtype == Dtype::kF64 ? 8 : 4; }

template <typename T>
void Put(char *to, T value) {
  std::memcpy(to, &value, sizeof value);
}

// Stores the value at `to`, rounded to the dtype.
void Store(Dtype dtype, char *to, float value) {
  switch (dtype) {
    case Dtype::kF32:
      return Put(to, value);
    case Dtype::kF64:
      return Put(to, static_cast<double>(value));
    case Dtype::kBf16:
      return Put(to, hwy::BF16FromF32(value));
    case Dtype::kF16:
      return Put(to, hwy::F16FromF32(value));
  }
}

// Bytes on a page boundary.
class Buffer {
 public:
  explicit Buffer(int64_t bytes)
      : bytes_(static_cast<size_t>(bytes)), data_(static_cast<char *>(::operator new(bytes_, kPage))) {
    Fill(kPoison);
  }
  char *data() const { return data_.get(); }
  int64_t bytes() const { return static_cast<int64_t>(bytes_); }
  void Fill(int byte) const { std::memset(data(), byte, bytes_); }
  void CopyFrom(const Buffer &other) const { std::memcpy(data(), other.data(), bytes_); }
  bool IsAll(int byte) const {
    return std::all_of(data(), data() + bytes_, [byte](char c) { return c == static_cast<char>(byte); });
  }
  bool operator==(const Buffer &other) const {
    return bytes_ == other.bytes_ && std::memcmp(data(), other.data(), bytes_) == 0;
  }

  static constexpr int kPoison = 0xa5;

 private:
  static constexpr std::align_val_t kPage{4096};
  struct Free {
    void operator()(char *p) const { ::operator delete(p, kPage); }
  };
  size_t bytes_;
  std::unique_ptr<char, Free> data_;
};

// One build of the library, behind its subject.
class Subject {
 public:
  Subject(const std::string &module, const std::string &library) {
    void *const handle = dlopen(module.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) throw std::runtime_error(dlerror());
    const auto open = reinterpret_cast<OpenFunction>(dlsym(handle, kOpenName));
    run_ = reinterpret_cast<RunFunction>(dlsym(handle, kRunName));
    if (open == nullptr || run_ == nullptr) throw std::runtime_error(module + " is no subject");
    if (const char *const wrong = open(library.c_str())) throw std::runtime_error(library + ": " + wrong);
  }

  void Run(const Call &call, int64_t calls) const {
    const int32_t status = run_(&call, calls);
    if (status != 0) throw std::runtime_error("a call failed with status " + std::to_string(status));
  }

 private:
  RunFunction run_;
};

// Both sides, loaded to addresses of their own.
struct Layout {
  std::array<Subject, 2> sides;
  size_t stack_bytes;  // below which the calls' frames begin
};

// A folder for copies of modules and libraries, which is removed once they are loaded.
class Copies {
 public:
  Copies() {
    std::string name = (std::filesystem::temp_directory_path() / "xent_compare_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    folder_ = name;
  }
  ~Copies() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::string Copy(const std::string &path) {
    const std::filesystem::path copy = folder_ / (std::to_string(count_++) + ".so");
    std::filesystem::copy_file(path, copy);
    return copy.string();
  }

 private:
  std::filesystem::path folder_;
  int count_ = 0;
};

std::vector<Layout> LoadLayouts(const Settings &settings) {
  Copies copies;
  std::mt19937_64 random(1);
  // Pages that stay unused keep the distance of one module to the next from being always the same.
  const auto load = [&](size_t first) {
    constexpr size_t kPage = 4096;
    mmap(nullptr, (1 + random() % 1024) * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return Subject(copies.Copy(settings.paths[first]), copies.Copy(settings.paths[first + 1]));
  };
  std::vector<Layout> layouts;
  for (int i = 0; i < settings.layouts; ++i) {
    layouts.push_back({.sides = {load(0), load(2)}, .stack_bytes = 16 * (random() % 256)});
  }
  return layouts;
}

// The buffers of one shape and dtype. There are so many problems that their logits fill half a megabyte, where one
// problem is smaller: calls that follow each other then see other values, and no branch knows them by heart.
class Problems {
 public:
  Problems(Dtype dtype, Shape shape)
      : dtype(dtype),
        shape(shape),
        count(std::clamp<int64_t>((int64_t{1} << 17) / (shape.rows * shape.cols), 1, 4096)),
        logits(count * shape.rows * shape.cols * ElementBytes(dtype)),
        grad(logits.bytes()),
        row_losses(count * shape.rows * ValueBytes(dtype)),
        reduced_losses(count * ValueBytes(dtype)),
        records(count * shape.rows * kRecordBytes),
        targets(static_cast<size_t>(count * shape.rows)) {
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal(0, 2);
    const int64_t bytes = ElementBytes(dtype);
    for (int64_t at = 0; at < logits.bytes(); at += bytes) Store(dtype, logits.data() + at, normal(random));
    for (int64_t &t : targets) t = static_cast<int64_t>(random() % static_cast<uint64_t>(shape.cols));
  }

  const Dtype dtype;
  const Shape shape;
  const int64_t count;
  const Buffer logits, grad, row_losses, reduced_losses, records;
  std::vector<int64_t> targets;
};

// A point in time, in seconds. One thread is timed by its CPU clock, which other processes do not count in.
double Now(int32_t threads) {
  if (threads != 1) return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  timespec t = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double MedianOfSorted(const std::vector<double> &values) {
  return (values[(values.size() - 1) / 2] + values[values.size() / 2]) / 2;
}

// Returns the largest k such that the values with k smaller ones and with k larger ones enclose the median of their
// distribution with a probability of 95 % at least. Of n values i lie below the median as often as i of n coins show
// heads. With fewer than six values no such k exists, and 0 is returned.
size_t RankOfInterval(size_t n) {
  const auto count = static_cast<double>(n);
  double below = 0;
  size_t k = 0;
  for (; k < n / 2; ++k) {
    const auto i = static_cast<double>(k);
    below += std::exp(std::lgamma(count + 1) - std::lgamma(i + 1) - std::lgamma(count - i + 1) - count * std::log(2.0));
    if (below > 0.025) break;
  }
  return k == 0 ? 0 : k - 1;
}

struct Result {
  double median = 0, low = 0, high = 0;      // over layouts, of after / before, with the interval's ends
  double least = 0;                          // of all samples
  size_t samples = 0;                        // of all layouts
  std::array<double, 2> least_seconds = {};  // of one call, before and after
  bool bits_equal = false;
};

// One operation on one set of problems.
class Comparison {
 public:
  Comparison(const std::vector<Layout> &layouts, Problems *problems, Operation operation, const Settings &settings)
      : layouts_(layouts),
        problems_(problems),
        settings_(settings),
        workspace_(problems->shape.cols * 8 * std::max(1, static_cast<int>(std::thread::hardware_concurrency()))),
        saved_records_{Buffer(problems->records.bytes()), Buffer(problems->records.bytes())} {
    const bool keeps_losses = operation != Operation::kBackward;
    call_ = {.operation = operation,
             .dtype = problems->dtype,
             .threads = settings.threads,
             .passes_options = settings.passes_options ? 1 : 0,
             .rows = problems->shape.rows,
             .cols = problems->shape.cols,
             .problems = problems->count,
             .matrix_bytes = problems->logits.bytes() / problems->count,
             .value_bytes = ValueBytes(problems->dtype),
             .logits = operation == Operation::kInPlace ? problems->grad.data() : problems->logits.data(),
             .targets = problems->targets.data(),
             .row_losses = keeps_losses ? problems->row_losses.data() : nullptr,
             .reduced_losses = keeps_losses ? problems->reduced_losses.data() : nullptr,
             .records = operation == Operation::kBackward ? problems->records.data() : nullptr,
             .grad = operation == Operation::kForward ? nullptr : problems->grad.data(),
             .workspace = operation == Operation::kWorkspace ? workspace_.data() : nullptr,
             .workspace_bytes = operation == Operation::kWorkspace ? static_cast<size_t>(workspace_.bytes()) : 0};
  }

  Result Run() {
    if (call_.operation == Operation::kBackward) SaveRecords();
    Result result;
    result.bits_equal = HaveEqualBits();
    ChooseCounts();
    for (const Layout &layout : layouts_) Sample(layout, 0);  // warms its code up
    least_seconds_.fill(std::numeric_limits<double>::infinity());
    std::vector<std::vector<double>> ratios(layouts_.size());
    constexpr size_t kFewest = 3;
    const double end = Now(0) + settings_.seconds;
    for (size_t round = 0; round < kFewest || Now(0) < end; ++round) {
      for (size_t i = 0; i < layouts_.size(); ++i) ratios[i].push_back(Sample(layouts_[i], round % 2));
    }
    std::vector<double> medians;
    result.least = std::numeric_limits<double>::infinity();
    for (std::vector<double> &of_layout : ratios) {
      std::sort(of_layout.begin(), of_layout.end());
      medians.push_back(MedianOfSorted(of_layout));
      result.least = std::min(result.least, of_layout.front());
      result.samples += of_layout.size();
    }
    std::sort(medians.begin(), medians.end());
    const size_t rank = RankOfInterval(medians.size());
    result.median = MedianOfSorted(medians);
    result.low = medians[rank];
    result.high = medians[medians.size() - 1 - rank];
    for (size_t side = 0; side < 2; ++side) {
      result.least_seconds[side] = least_seconds_[side] / static_cast<double>(calls_ * timings_);
    }
    return result;
  }

 private:
  // A record belongs to the build that wrote it.
  void SaveRecords() {
    Call forward = call_;
    forward.operation = Operation::kForward;
    forward.grad = nullptr;
    for (size_t side = 0; side < 2; ++side) {
      layouts_[0].sides[side].Run(forward, problems_->count);
      saved_records_[side].CopyFrom(problems_->records);
    }
  }

  // Brings back what the last call has overwritten, and the side's own records.
  void Prepare(size_t side) {
    if (call_.operation == Operation::kInPlace) problems_->grad.CopyFrom(problems_->logits);
    if (call_.operation == Operation::kBackward) problems_->records.CopyFrom(saved_records_[side]);
  }

  // Runs every problem once on both sides. A result that is zero or was not written is an error: such a call would time
  // nothing.
  bool HaveEqualBits() {
    const std::array<const Buffer *, 3> outputs = {&problems_->row_losses, &problems_->reduced_losses,
                                                   &problems_->grad};
    const std::array<bool, 3> has = {call_.row_losses != nullptr, call_.reduced_losses != nullptr,
                                     call_.grad != nullptr};
    std::vector<Buffer> before;
    bool equal = true;
    for (size_t side = 0; side < 2; ++side) {
      for (const Buffer *output : outputs) output->Fill(Buffer::kPoison);
      Prepare(side);
      layouts_[0].sides[side].Run(call_, problems_->count);
      for (size_t i = 0; i < outputs.size(); ++i) {
        if (has[i] &&
            (outputs[i]->IsAll(0) || outputs[i]->IsAll(Buffer::kPoison) || *outputs[i] == problems_->logits)) {
          throw std::runtime_error("a call has written no result");
        }
        if (side == 0) {
          before.emplace_back(outputs[i]->bytes());
          before.back().CopyFrom(*outputs[i]);
        } else {
          equal = equal && *outputs[i] == before[i];
        }
      }
    }
    return equal;
  }

  // A slice takes about kSlice seconds: long beside the reading of a clock, short beside the machine's moods. In place
  // each problem can be called once, then its logits must be restored.
  void ChooseCounts() {
    constexpr double kSlice = 2e-3;
    calls_ = problems_->count;
    timings_ = 1;
    TimeSlice(layouts_[0], 0);
    const double times = std::ceil(kSlice / std::max(TimeSlice(layouts_[0], 0), 1e-9));
    (call_.operation == Operation::kInPlace ? timings_ : calls_) *= static_cast<int64_t>(std::max(times, 1.0));
  }

  // Returns the ratio after / before of one sample, in which side `first` comes first and last.
  double Sample(const Layout &layout, size_t first) {
    std::array<double, 2> seconds = {};
    for (const size_t side : {first, 1 - first, 1 - first, first}) {
      const double slice = TimeSlice(layout, side);
      seconds[side] += slice;
      least_seconds_[side] = std::min(least_seconds_[side], slice);
    }
    return seconds[1] / seconds[0];
  }

  double TimeSlice(const Layout &layout, size_t side) {
    auto *const pad = static_cast<volatile char *>(alloca(layout.stack_bytes + 1));
    *pad = 0;
    double seconds = 0;
    for (int64_t timing = 0; timing < timings_; ++timing) {
      Prepare(side);
      const double start = Now(settings_.threads);
      layout.sides[side].Run(call_, calls_);
      seconds += Now(settings_.threads) - start;
    }
    return seconds;
  }

  const std::vector<Layout> &layouts_;
  Problems *const problems_;
  const Settings &settings_;
  const Buffer workspace_;
  const std::array<Buffer, 2> saved_records_;
  Call call_ = {};
  std::array<double, 2> least_seconds_ = {};  // of a slice
  int64_t calls_ = 1;                         // that one reading of the clock covers
  int64_t timings_ = 1;                       // of a slice
};

// Prints a line and returns whether the result passes.
bool Report(const std::string &name, const Result &result, double limit) {
  const char *const verdict = result.median <= limit ? (result.high <= limit ? "ok" : "ok, unclear")
                              : result.low > limit   ? "SLOWER"
                                                     : "SLOWER, unclear";
  std::printf("%-44s %11.3f %11.3f   %6.4f [%6.4f, %6.4f] %6.4f %6.4f %6zu  %-6s %s\n", name.c_str(),
              result.least_seconds[0] * 1e6, result.least_seconds[1] * 1e6, result.median, result.low, result.high,
              result.least, result.least_seconds[1] / result.least_seconds[0], result.samples,
              result.bits_equal ? "equal" : "DIFFER", verdict);
  std::fflush(stdout);
  return result.bits_equal && result.median <= limit;
}

std::vector<std::string> Split(const std::string &list, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : list) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

template <class Pairs>
auto Named(const Pairs &pairs, const std::string &list) {
  std::vector<decltype(pairs[0].second)> values;
  for (const std::string &name : Split(list, ',')) {
    const auto found = std::find_if(pairs.begin(), pairs.end(), [&](const auto &pair) { return pair.first == name; });
    if (found == pairs.end()) throw std::invalid_argument("unknown name: " + name);
    values.push_back(found->second);
  }
  return values;
}

std::vector<Shape> Shapes(const std::string &list) {
  std::vector<Shape> shapes;
  for (const std::string &shape : Split(list, ',')) {
    const std::vector<std::string> sizes = Split(shape, 'x');
    if (sizes.size() != 2) throw std::invalid_argument("a shape reads ROWSxCOLS: " + shape);
    shapes.push_back({.rows = std::stoll(sizes[0]), .cols = std::stoll(sizes[1])});
    if (shapes.back().rows < 1 || shapes.back().cols < 1) throw std::invalid_argument("an empty shape: " + shape);
  }
  return shapes;
}

constexpr const char *kUsage =
    "usage: xent_compare [OPTION]... SUBJECT LIBRARY SUBJECT LIBRARY\n"
    "The first subject and its library are before, the others after. scripts/compare.sh builds all four.\n"
    "  --operations=NAME,...  forward, forward_backward, forward_backward_inplace, backward (the default: these "
    "four),\n"
    "                         forward_backward_workspace, forward_backward_smoothing, forward_backward_softcap\n"
    "  --dtypes=NAME,...      f32 (default), f64, bf16, f16\n"
    "  --shapes=ROWSxCOLS,... default: 1x10,16x1000,65536x10,1024x32000\n"
    "  --threads=N            1 (default): the calling thread alone, by its CPU clock; else the wall clock\n"
    "  --options              calls get a struct of default options in place of null\n"
    "  --layouts=N            how many times both libraries are loaded; default 15\n"
    "  --seconds=S            of each case; default 8\n"
    "  --limit=R              the largest median of after / before that is not slower; default 1.02\n"
    "Exit status: 0; 1 where a median is beyond the limit or bits differ; 2 where the comparison did not run.\n";

Settings Parse(int argc, char **argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    if (name.substr(0, 2) != "--") {
      settings.paths.push_back(argument);
    } else if (name == "--operations") {
      settings.operations = Named(kOperations, value);
    } else if (name == "--dtypes") {
      settings.dtypes = Named(kDtypes, value);
    } else if (name == "--shapes") {
      settings.shapes = Shapes(value);
    } else if (name == "--threads") {
      settings.threads = std::stoi(value);
    } else if (argument == "--options") {
      settings.passes_options = true;
    } else if (name == "--layouts") {
      settings.layouts = std::stoi(value);
    } else if (name == "--seconds") {
      settings.seconds = std::stod(value);
    } else if (name == "--limit") {
      settings.limit = std::stod(value);
    } else {
      throw std::invalid_argument("unknown option: " + argument);
    }
  }
  if (settings.layouts < 1) throw std::invalid_argument("at least one layout is needed");
  if (settings.paths.size() != 4) throw std::invalid_argument("two subjects and two libraries are needed");
  return settings;
}

bool CompareAll(const Settings &settings) {
  const std::vector<Layout> layouts = LoadLayouts(settings);
  std::printf("%-44s %11s %11s   %-23s %6s %6s %6s  %-6s\n", "", "before, us", "after, us", "median ratio [95 %]",
              "least", "of min", "number", "bits");
  bool all_pass = true;
  for (const Dtype dtype : settings.dtypes) {
    for (const Shape &shape : settings.shapes) {
      Problems problems(dtype, shape);
      for (const Operation operation : settings.operations) {
        const std::string name = std::string(NameIn(kOperations, operation)) + '/' + NameIn(kDtypes, dtype) + '/' +
                                 std::to_string(shape.rows) + 'x' + std::to_string(shape.cols);
        const Result result = Comparison(layouts, &problems, operation, settings).Run();
        all_pass = Report(name, result, settings.limit) && all_pass;
      }
    }
  }
  return all_pass;
}

}  // namespace
}  // namespace xent_compare

int main(int argc, char **argv) {
  xent_compare::Settings settings;
  try {
    settings = xent_compare::Parse(argc, argv);
  } catch (const std::exception &e) {
    std::fprintf(stderr, "xent_compare: %s\n%s", e.what(), xent_compare::kUsage);
    return 2;
  }
  try {
    return xent_compare::CompareAll(settings) ? 0 : 1;
  } catch (const std::exception &e) {
    std::fprintf(stderr, "xent_compare: %s\n", e.what());
    return 2;
  }
}
