// The outputs of fixed inputs have fixed bits: on every target with fused multiply-add and with 1, 2, 3 and 8 threads
// their hashes are those of golden_hashes.txt; golden.h says how that file is written anew. There is no tolerance,
// since xent.h promises bits. The inputs come from an integer generator and exact arithmetic, no libm, so that they are
// the same on every machine. Divergences, binary cross-entropy and shards have sections of the same file in their own
// tests.
#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <string>
#include <vector>

#include "testing/check.h"
#include "testing/data.h"
#include "testing/golden.h"
#include "testing/hash.h"
#include "testing/loss_call.h"
#include "testing/target.h"

namespace xent::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

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
        if (cols >= 32000 && form != (SeedOf(dtype) + cols) % 3) continue;
        const char *const kForms[] = {"plain", "uniform", "exclusive"};
        if (cols == 1 && form == kExclusive) continue;
        Random random(static_cast<uint64_t>(cols * 16 + SeedOf(dtype)));
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
          problem.options.reduction.kind = XENT_REDUCTION_SUM;
        }
        problem.SetUpstream({0.75}, XENT_UPSTREAM_SCALAR);
        problems.push_back(std::move(problem));
      }
    }
  }
  return problems;
}

std::string HashOf(const Matrix &m) { return Hash(m).Text(); }

std::string LineOf(const Problem &problem, const xent_exec &exec) {
  const Outputs out = RunAll(problem, exec);
  const int64_t rows = problem.rows;
  const int64_t cols = problem.cols;
  std::string line = problem.name;
  for (const Matrix *m : {&out.row_losses, &out.lse, &out.reduced_loss, &out.grad.matrix(), &out.logsumexp,
                          &out.softmax.matrix(), &out.log_softmax.matrix()}) {
    line += " " + HashOf(*m);
  }
  // The gradient serves as an upstream one.
  Matrix dx(problem.dtype, rows, cols);
  EXPECT_EQ(xent_softmax_backward(rows, cols, 0, View(out.grad), View(out.softmax), View(dx), &exec, nullptr), XENT_OK);
  line += " " + HashOf(dx);
  EXPECT_EQ(xent_log_softmax_backward(rows, cols, 0, View(out.grad), View(out.log_softmax), View(dx), &exec, nullptr),
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

// ---- cross-entropy with options ----

Matrix UniformRow(xent_dtype dtype, int64_t cols, uint64_t seed) {
  Matrix row(dtype, 1, cols);
  Random random(seed);
  for (int64_t c = 0; c < cols; ++c) row.Set(0, c, random.Uniform() + 0x1p-4);
  return row;
}

// Rows of all kinds but NaN and, with `finite_masks`, without -inf, so that the reduced loss is a number.
LossCall MakeRows(xent_dtype dtype, int64_t rows, int64_t cols, int64_t inner, bool finite_masks) {
  LossCall call(dtype, rows, cols, inner);
  Random random(static_cast<uint64_t>(rows * 1000003 + cols * 16 + SeedOf(dtype)));
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t target = random.Below(cols);
    for (int64_t c = 0; c < cols; ++c) {
      double z = random.Normal(4);
      const bool special = random.Below(cols) < 2;
      switch (i % 8) {
        case 1:
          z = random.Below(10) < 3 && c != target ? (finite_masks ? -60 : -kInfinity) : z;
          break;
        case 2:
          z = special ? z + 70 : z;
          break;
        case 3:
          z -= 3000;
          break;
        case 4:
          z = static_cast<double>(c % 3);
          break;
        case 5:
          z -= static_cast<double>(c % 512) / 4;
          break;
        case 6:
          z = special ? 0x1p20 + 3 : 0x1p20 - 6 + z;
          break;
        default:
          break;
      }
      call.logits.Set(i, c, z);
    }
    call.targets[static_cast<size_t>(i)] = i % 8 == 7 ? -100 : target;
  }
  call.row_weights = UniformRow(reference::ArithmeticType(dtype), rows, 3);
  call.upstream = UniformRow(reference::ArithmeticType(dtype), rows, 4);
  call.upstream_kind = XENT_UPSTREAM_ROWS;
  return call;
}

void AddClassWeights(LossCall &call) {
  call.class_weights = UniformRow(reference::ArithmeticType(call.dtype), call.cols, 5);
}

void AddProbs(LossCall &call, xent_dtype dtype) {
  call.target_probs = Tensor(dtype, call.rows, call.cols, call.inner);
  call.wants_target_grad = true;
  Random random(6);
  for (int64_t i = 0; i < call.rows; ++i) {
    for (int64_t c = 0; c < call.cols; ++c) call.target_probs->Set(i, c, c % 3 == 0 ? 0 : random.Uniform() * 0x1p-6);
  }
}

void AskForStatistics(LossCall &call) {
  call.WantEveryStatistic();
  call.top_k = std::min<int64_t>(call.cols / 2, 20);
}

struct Option {
  const char *name;
  bool finite_masks;
  void (*apply)(LossCall &);
};
constexpr Option kOptions[] = {
    {"weights", false, [](LossCall &call) { AddClassWeights(call); }},
    {"weights_smoothing", true,
     [](LossCall &call) {
       AddClassWeights(call);
       call.options.label_smoothing = 0.1;
     }},
    {"weights_exclusive", true,
     [](LossCall &call) {
       AddClassWeights(call);
       call.options.label_smoothing = 0.3;
       call.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
     }},
    {"softcap", false, [](LossCall &call) { call.options.softcap = 30; }},
    {"logit_scale", false, [](LossCall &call) { call.options.logit_scale = 0.7; }},
    {"z_loss", false, [](LossCall &call) { call.options.z_loss = 1e-4; }},
    {"everything", true,
     [](LossCall &call) {
       AddClassWeights(call);
       AskForStatistics(call);
       call.options.label_smoothing = 0.1;
       call.options.softcap = 50;
       call.options.logit_scale = 1.5;
       call.options.z_loss = 1e-3;
       call.options.reduction.divisor = 7;
     }},
    {"probs", true, [](LossCall &call) { AddProbs(call, call.dtype); }},
    {"probs_weights_smoothing", true,
     [](LossCall &call) {
       AddProbs(call, kDtypes[SeedOf(call.dtype) % 4]);
       AddClassWeights(call);
       AskForStatistics(call);
       call.options.label_smoothing = 0.2;
       call.options.softcap = 40;
     }},
    {"valid_cols", false,
     [](LossCall &call) {
       call.options.valid_cols = (call.cols * 3 + 3) / 4;
       for (int64_t &target : call.targets) target = std::min(target, call.options.valid_cols - 1);
       AskForStatistics(call);
     }},
    {"statistics", false,
     [](LossCall &call) {
       AskForStatistics(call);
       call.of_ignored = 1;
       call.options.reduction.kind = XENT_REDUCTION_NONE;
       call.logits.Set(0, call.cols / 2, std::numeric_limits<double>::quiet_NaN());
       for (int64_t c = 0; c < call.cols; ++c) call.logits.Set(1, c, -kInfinity);
     }},
};

struct NamedCall {
  std::string name;
  LossCall call;
};

std::vector<NamedCall> OptionCalls() {
  constexpr int64_t kShapes[][3] = {{24, 2, 0},   {24, 45, 0},   {24, 45, 3},  {2112, 17, 33},
                                    {7, 5000, 0}, {3, 17000, 0}, {12, 4100, 3}};
  std::vector<NamedCall> calls;
  for (const xent_dtype dtype : kDtypes) {
    for (const auto &[rows, cols, inner] : kShapes) {
      for (const Option &option : kOptions) {
        NamedCall named = {std::string(reference::NameOf(dtype)) + "/" + std::to_string(rows) + "x" +
                               std::to_string(cols) + "/inner" + std::to_string(inner) + "/" + option.name,
                           MakeRows(dtype, rows, cols, inner, option.finite_masks)};
        option.apply(named.call);
        calls.push_back(std::move(named));
      }
    }
  }
  return calls;
}

// Outputs that the call has not are "-".
std::string LineOf(NamedCall &named, const xent_exec &exec) {
  LossCall &call = named.call;
  call.exec = exec;
  EXPECT_EQ(call.ForwardBackward(), XENT_OK) << named.name << ": " << call.error.message;
  const auto text = [](bool has, const auto &output) { return has ? " " + Hash(output).Text() : std::string(" -"); };
  const bool has_target = !call.target_probs;
  Hash perplexity;
  perplexity.Add(std::bit_cast<uint64_t>(call.perplexity), 8);
  std::string line = named.name + text(true, call.row_losses) + text(true, call.lse) +
                     text(call.options.reduction.kind != XENT_REDUCTION_NONE, call.reduced_loss) + " " +
                     perplexity.Text() + text(true, call.grad.matrix()) +
                     text(call.wants_target_grad, call.target_grad.matrix());
  line += text(call.wants_logprobs && has_target, call.logprobs) + text(call.wants_argmax, call.argmax) +
          text(call.wants_entropy, call.entropy) + text(call.wants_rank && has_target, call.rank) +
          text(call.top_k > 0, call.topk_indices) + text(call.top_k > 0, call.topk_logprobs) +
          text(call.gather_count > 0, call.gathered);
  return line;
}

class GoldenHashes : public TargetTest {};
XENT_INSTANTIATE_TARGETS(GoldenHashes);

TEST_P(GoldenHashes, AreReproducedByAnyNumberOfThreads) {
  const std::vector<Problem> problems = Problems();
  ExpectGolden(GetParam(), "rows",
               "problem losses lse loss grad logsumexp softmax log_softmax softmax_backward log_softmax_backward",
               [&](const xent_exec &exec) {
                 std::vector<std::string> lines;
                 for (const Problem &problem : problems) lines.push_back(LineOf(problem, exec));
                 return lines;
               });
}

TEST_P(GoldenHashes, OfArrayFunctionsAreReproduced) {
  ExpectGolden(GetParam(), "array", "exp_f32 log_f32 log1p_f32 exp_f64 log_f64 log1p_f64",
               [](const xent_exec &) { return std::vector<std::string>{ArrayLine()}; });
}

TEST_P(GoldenHashes, OfEveryOptionAreReproducedByAnyNumberOfThreads) {
  std::vector<NamedCall> calls = OptionCalls();
  ExpectGolden(GetParam(), "options",
               "dtype/shape/layout/option losses lse loss perplexity grad target_grad logprobs argmax entropy rank "
               "topk_indices topk_logprobs gathered",
               [&](const xent_exec &exec) {
                 std::vector<std::string> lines;
                 for (NamedCall &named : calls) lines.push_back(LineOf(named, exec));
                 return lines;
               });
}

}  // namespace
}  // namespace xent::test
