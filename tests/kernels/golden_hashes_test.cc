// The outputs of fixed inputs have fixed bits: on every target with fused multiply-add and with 1, 2, 3 and 8 threads
// their hashes are those of golden_hashes.txt. The inputs come from an integer generator and exact arithmetic, no libm,
// so that they are the same on every machine.
//
// After a change that is meant to change results: XENT_UPDATE_HASHES=tests/kernels/golden_hashes.txt and one run
// of these tests writes the file anew.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "testing/check.h"
#include "testing/data.h"
#include "testing/target.h"

namespace xent::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr const char *kFile = XENT_SOURCE_DIR "/tests/kernels/golden_hashes.txt";

// FNV-1a, 64 bits, over the elements' bytes, lowest first.
class Hash {
 public:
  void Add(const Matrix &m) {
    for (int64_t i = 0; i < m.rows(); ++i) {
      for (int64_t j = 0; j < m.cols(); ++j) Add(m.GetBits(i, j), m.Bytes());
    }
  }
  void Add(uint64_t bits, int64_t bytes) {
    for (int64_t k = 0; k < bytes; ++k) {
      state_ ^= (bits >> (8 * k)) & 0xff;
      state_ *= 0x100000001b3u;
    }
  }
  std::string Text() const {
    char text[20];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(state_));
    return text;
  }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

enum Form { kPlain, kUniform, kExclusive };

// One logit of a row of each kind. NaN rows appear under uniform smoothing only, and under exclusive smoothing masks
// are finite, so that the reduced losses of the other two forms are numbers.
double Logit(int64_t kind, int64_t i, int64_t j, int64_t cols, bool is_target, Form form, Random &random) {
  const double z = random.Normal(2);
  const bool rare = random.Below(cols) < 3 || j == (i * 37 + 11) % cols;
  switch (kind) {
    case 1:  // 30 % masked
      return random.Below(10) < 3 && !is_target ? (form == kExclusive ? -70000 : -kInfinity) : z;
    case 2:  // far above the first reference: redone blocks
      return rare ? z + 300 : z;
    case 3:  // a far tail
      return z - static_cast<double>(j % 512) / 4;
    case 4:  // beyond 2^20 and just not
      return rare ? 0x1p20 + 4 : (j % 2 == 0 ? 0x1p20 - 6 + z : z);
    case 5:  // NaN
      return rare && form == kUniform ? std::numeric_limits<double>::quiet_NaN() : z;
    case 6:  // ties
      return static_cast<double>(j % 3);
    case 7:  // masks of two habits
      return rare && !is_target ? (j % 2 == 0 ? -1e9 : -3.4e38) : z;
    case 8:  // far from 0
      return z - 5000;
    default:
      return z;
  }
}

struct Shape {
  int64_t rows;
  int64_t cols;
};

std::vector<Problem> Problems() {
  constexpr Shape kShapes[] = {{10, 1},    {10, 2},    {20, 10},   {20, 100},  {10, 1000},
                               {10, 2048}, {10, 5000}, {2, 32000}, {2, 50257}, {1, 128256}};
  std::vector<Problem> problems;
  for (const xent_dtype dtype : kDtypes) {
    for (const Shape &shape : kShapes) {
      const int64_t rows = shape.rows;
      const int64_t cols = shape.cols;
      for (const Form form : {kPlain, kUniform, kExclusive}) {
        // The large shapes in one form each: another one for another dtype.
        if (cols >= 32000 && form != (dtype + cols) % 3) continue;
        const char *const kForms[] = {"plain", "uniform", "exclusive"};
        if (cols == 1 && form == kExclusive) continue;
        Random random(static_cast<uint64_t>(cols * 16 + dtype));
        const auto target_of = [&](int64_t i) { return i % 10 == 9 ? -100 : (i * 7919 + 5) % cols; };
        Problem problem = MakeProblem(
            std::string(reference::NameOf(dtype)) + "/" + std::to_string(rows) + "x" + std::to_string(cols) + "/" +
                kForms[form],
            dtype, rows, cols,
            [&](int64_t i, int64_t j) {
              // Long rows change their kind on the way; NaN has its rows to itself.
              const int64_t kind = cols < 32000 ? i % 10 : (i + j / 5000) % 4;
              return Logit(kind, i, j, cols, j == target_of(i), form, random);
            },
            target_of);
        if (form != kPlain) problem.options.label_smoothing = 0.1;
        if (form == kExclusive) {
          problem.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
          problem.options.reduction = XENT_REDUCTION_SUM;
        }
        problem.upstream = {0.75};
        problems.push_back(std::move(problem));
      }
    }
  }
  return problems;
}

std::string HashOf(const Matrix &m) {
  Hash hash;
  hash.Add(m);
  return hash.Text();
}

std::string LineOf(const Problem &problem, const xent_exec &exec) {
  const Outputs out = RunAll(problem, &exec);
  const xent_dtype dtype = problem.dtype();
  const int64_t rows = problem.rows();
  const int64_t cols = problem.cols();
  std::string line = problem.name;
  for (const Matrix *m :
       {&out.losses, &out.lse, &out.loss, &out.grad, &out.logsumexp, &out.softmax, &out.log_softmax}) {
    line += " " + HashOf(*m);
  }
  // The gradient serves as an upstream one.
  Matrix dx(dtype, rows, cols);
  EXPECT_EQ(
      xent_softmax_backward(rows, cols, out.grad.data(), 0, out.softmax.data(), 0, dtype, dx.data(), 0, &exec, nullptr),
      XENT_OK);
  line += " " + HashOf(dx);
  EXPECT_EQ(xent_log_softmax_backward(rows, cols, out.grad.data(), 0, out.log_softmax.data(), 0, dtype, dx.data(), 0,
                                      &exec, nullptr),
            XENT_OK);
  return line + " " + HashOf(dx);
}

// exp, log and log1p over bit patterns of all kinds and over ordinary numbers.
std::string ArrayLine() {
  constexpr int64_t kCount = 200000;
  Random random(2024);
  std::string line = "array";
  for (const xent_dtype type : {XENT_F32, XENT_F64}) {
    Matrix x(type, 1, kCount);
    Matrix y(type, 1, kCount);
    for (int64_t k = 0; k < kCount; ++k) {
      if (k % 2 == 0) {
        x.SetBits(0, k, random.Next());
      } else {
        x.Set(0, k, random.Normal(8));
      }
    }
    const auto add = [&](auto function, auto *in, auto *out) {
      EXPECT_EQ(function(in, out, kCount), XENT_OK);
      line += " " + HashOf(y);
    };
    if (type == XENT_F32) {
      const float *in = static_cast<const float *>(x.data());
      float *out = static_cast<float *>(y.data());
      add(xent_exp_f32, in, out);
      add(xent_log_f32, in, out);
      add(xent_log1p_f32, in, out);
    } else {
      const double *in = static_cast<const double *>(x.data());
      double *out = static_cast<double *>(y.data());
      add(xent_exp_f64, in, out);
      add(xent_log_f64, in, out);
      add(xent_log1p_f64, in, out);
    }
  }
  return line;
}

std::vector<std::string> ReadFile() {
  std::ifstream in(kFile);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) {
    if (!line.empty() && line[0] != '#') lines.push_back(line);
  }
  return lines;
}

void WriteFile(const std::string &path, const std::vector<std::string> &lines) {
  std::ofstream out(path);
  out << "# Hashes (FNV-1a, 64 bits) of what fixed inputs give on every target with fused multiply-add, by any number "
         "of "
         "threads.\n"
         "# Written by golden_hashes_test.cc, which says how.\n"
         "# problem losses lse loss grad logsumexp softmax log_softmax softmax_backward log_softmax_backward\n"
         "# array exp_f32 log_f32 log1p_f32 exp_f64 log_f64 log1p_f64\n";
  for (const std::string &line : lines) out << line << "\n";
  ASSERT_TRUE(out.good()) << path;
}

class GoldenHashes : public TargetTest {};
XENT_INSTANTIATE_TARGETS(GoldenHashes);

TEST_P(GoldenHashes, AreReproducedByAnyNumberOfThreads) {
  if (!HasFusedMultiplyAdd(GetParam())) GTEST_SKIP() << GetParam() << " has no fused multiply-add";
  const char *update = std::getenv("XENT_UPDATE_HASHES");
  const std::vector<Problem> problems = Problems();
  std::vector<std::string> want = ReadFile();
  if (update == nullptr) {
    ASSERT_EQ(want.size(), problems.size() + 1) << kFile << " is missing or not of these problems";
  }
  for (const int32_t threads : {1, 2, 3, 8}) {
    const xent_exec exec = {sizeof(xent_exec), XENT_EXEC_OPENMP, threads, nullptr, nullptr};
    std::vector<std::string> lines;
    for (const Problem &problem : problems) lines.push_back(LineOf(problem, exec));
    lines.push_back(ArrayLine());
    if (update != nullptr && threads == 1) {
      WriteFile(update, lines);
      want = lines;
    }
    for (size_t k = 0; k < lines.size(); ++k) {
      EXPECT_EQ(lines[k], want[k]) << GetParam() << ", " << threads << " threads";
    }
  }
}

}  // namespace
}  // namespace xent::test
