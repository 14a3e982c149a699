// Runs and judges the row functions; see check.h.
#include "testing/check.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <span>

#include "reference/number.h"
#include "reference/rows.h"

namespace xent::test {
namespace {

using reference::ArithmeticType;
using reference::NameOf;
using reference::Value;

// Bounds in ULP of the arithmetic type: semantics.md, "Accuracy".
constexpr double kLossBound = 4;
constexpr double kLseBound = 4;
constexpr double kReducedBound = 4;
constexpr double kGradientBound = 6;
constexpr double kSoftmaxBound = 6;
constexpr double kLogSoftmaxBound = 4;

// A gradient may be zero where p_j (at the target 1 - p_t) is smaller than the biased exponentials keep, even if a huge
// upstream gradient would bring it back: docs/numerics.md, "Exact exponents". float64 keeps more than its upstream
// gradients can bring back.
constexpr long double kSmallestKeptF32 = 0x1p-198L;

struct Record {
  double ulp = -1;
  std::string where;
};

std::map<std::string, Record> &AllWorst() {
  static std::map<std::string, Record> worst;
  return worst;
}

std::string Number(double value) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.17g (%a)", value, value);
  return text;
}

// The worst element of one output, with what reproduces it.
class Worst {
 public:
  Worst(const Problem &problem, const char *output, double bound) : problem_(problem), output_(output), bound_(bound) {}

  void Add(const Matrix &got, int64_t i, int64_t j, Value want) {
    const double ulp = reference::ErrorInUlp(got.dtype(), got.row(i), j, want);
    // NaN cannot come out of ErrorInUlp, but would be the worst if it did.
    if (ulp <= ulp_) return;
    ulp_ = ulp;
    char text[256];
    std::snprintf(text, sizeof(text), "[%lld,%lld] got %s 0x%llx want %.21Lg counted at %.6Lg: %.4f ULP",
                  static_cast<long long>(i), static_cast<long long>(j), Number(got.Get(i, j)).c_str(),
                  static_cast<unsigned long long>(got.GetBits(i, j)), want.exact, want.scale, ulp);
    where_ = text;
  }

  ~Worst() {
    const std::string where = std::string(output_) + where_ + ", target " + xent_active_target() + ", " +
                              NameOf(problem_.dtype()) + ", " + std::to_string(problem_.rows()) + "x" +
                              std::to_string(problem_.cols()) + ", " + problem_.name;
    EXPECT_LE(ulp_, bound_) << where;
    Record &record = AllWorst()[std::string(output_) + " " + NameOf(ArithmeticType(problem_.dtype()))];
    if (ulp_ > record.ulp) record = {ulp_, where};
  }
  Worst(const Worst &) = delete;
  Worst &operator=(const Worst &) = delete;

 private:
  const Problem &problem_;
  const char *output_;
  double bound_;
  double ulp_ = -1;
  std::string where_;
};

// An empty matrix of the shape, stride and misalignment of `like`.
Matrix Like(const Matrix &like, xent_dtype dtype) {
  const int64_t misalign = static_cast<int64_t>((reinterpret_cast<uintptr_t>(like.data()) & 63)) / like.Bytes();
  return Matrix(dtype, like.rows(), like.cols(), like.stride(), misalign);
}

// A call's tensors, bound to the problem's inputs.
xent_cross_entropy Bind(const Problem &problem) {
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = problem.rows();
  args.cols = problem.cols();
  args.logits = problem.logits.data();
  args.logits_stride = problem.logits.stride();
  args.targets = problem.targets.data();
  args.dtype = problem.dtype();
  args.targets_type = XENT_I64;
  return args;
}

void BindForwardOutputs(xent_cross_entropy &args, const xent_options &options, Outputs &out) {
  args.losses = out.losses.data();
  args.lse = out.lse.data();
  args.loss = options.reduction == XENT_REDUCTION_NONE ? nullptr : out.loss.data();
  args.perplexity = &out.perplexity;
  args.live_rows = &out.live_rows;
}

void ExpectSameForward(const Problem &problem, const Outputs &a, const Outputs &b, const char *way) {
  EXPECT_EQ(FirstDifference(a.losses, b.losses), "") << "losses of forward and " << way << ", " << problem.name;
  EXPECT_EQ(FirstDifference(a.lse, b.lse), "") << "lse of forward and " << way << ", " << problem.name;
  EXPECT_EQ(FirstDifference(a.loss, b.loss), "") << "loss of forward and " << way << ", " << problem.name;
  EXPECT_EQ(std::memcmp(&a.perplexity, &b.perplexity, sizeof(double)), 0) << way << ", " << problem.name;
  EXPECT_EQ(a.live_rows, b.live_rows) << way << ", " << problem.name;
}

void ExpectOk(xent_status status, const xent_error &error, const char *call, const Problem &problem) {
  EXPECT_EQ(status, XENT_OK) << call << ": " << error.message << ", " << problem.name;
}

}  // namespace

std::string FirstDifference(const Outputs &a, const Outputs &b) {
  const std::pair<const char *, Matrix Outputs::*> kParts[] = {
      {"losses", &Outputs::losses},       {"lse", &Outputs::lse},         {"loss", &Outputs::loss},
      {"grad", &Outputs::grad},           {"softmax", &Outputs::softmax}, {"log_softmax", &Outputs::log_softmax},
      {"logsumexp", &Outputs::logsumexp},
  };
  for (const auto &[name, part] : kParts) {
    const std::string difference = FirstDifference(a.*part, b.*part);
    if (!difference.empty()) return std::string(name) + " " + difference;
  }
  if (std::memcmp(&a.perplexity, &b.perplexity, sizeof(double)) != 0) {
    return "perplexity " + Number(a.perplexity) + " and " + Number(b.perplexity);
  }
  return a.live_rows == b.live_rows ? "" : "live_rows";
}

Outputs RunAll(const Problem &problem, const xent_exec *exec) {
  const int64_t rows = problem.rows();
  const int64_t cols = problem.cols();
  const xent_dtype dtype = problem.dtype();
  const xent_dtype arithmetic = ArithmeticType(dtype);
  const xent_options &options = problem.options;

  Outputs empty;
  empty.losses = Matrix(arithmetic, 1, rows);
  empty.lse = Matrix(arithmetic, 1, rows);
  empty.loss = Matrix(arithmetic, 1, 1);
  empty.grad = Like(problem.logits, dtype);

  Matrix upstream(arithmetic, 1, std::max<int64_t>(1, static_cast<int64_t>(problem.upstream.size())));
  for (size_t i = 0; i < problem.upstream.size(); ++i) {
    upstream.Set(0, static_cast<int64_t>(i), problem.upstream[i]);
  }
  const auto bind_backward = [&](xent_cross_entropy &args, Matrix &grad) {
    args.grad = grad.data();
    args.grad_stride = grad.stride();
    if (!problem.upstream.empty()) {
      args.upstream = upstream.data();
      args.upstream_kind = problem.upstream_per_row ? XENT_UPSTREAM_ROWS : XENT_UPSTREAM_SCALAR;
    }
  };

  std::vector<uint64_t> records(static_cast<size_t>(rows) * XENT_RECORD_BYTES / sizeof(uint64_t), 0x5555555555555555u);

  Outputs out = empty;
  {
    xent_cross_entropy args = Bind(problem);
    BindForwardOutputs(args, options, out);
    args.records = records.data();
    xent_error error = XENT_ERROR_INIT;
    ExpectOk(xent_cross_entropy_forward(&args, &options, exec, &error), error, "forward", problem);
  }
  {
    Outputs both = empty;
    xent_cross_entropy args = Bind(problem);
    BindForwardOutputs(args, options, both);
    bind_backward(args, out.grad);
    xent_error error = XENT_ERROR_INIT;
    ExpectOk(xent_cross_entropy_forward_backward(&args, &options, exec, &error), error, "forward_backward", problem);
    ExpectSameForward(problem, out, both, "forward+backward");
    EXPECT_TRUE(out.grad.PaddingIntact()) << "forward+backward wrote outside its rows, " << problem.name;
  }
  {
    Outputs both = empty;
    both.grad = problem.logits;
    xent_cross_entropy args = Bind(problem);
    BindForwardOutputs(args, options, both);
    bind_backward(args, both.grad);
    args.logits = both.grad.data();
    args.in_place = 1;
    xent_error error = XENT_ERROR_INIT;
    ExpectOk(xent_cross_entropy_forward_backward(&args, &options, exec, &error), error, "in place", problem);
    ExpectSameForward(problem, out, both, "forward+backward in place");
    EXPECT_EQ(FirstDifference(out.grad, both.grad), "") << "gradient out of place and in place, " << problem.name;
    EXPECT_TRUE(both.grad.PaddingIntact()) << "in place wrote outside its rows, " << problem.name;
  }
  for (const bool in_place : {false, true}) {
    Matrix grad = in_place ? problem.logits : empty.grad;
    xent_cross_entropy args = Bind(problem);
    bind_backward(args, grad);
    args.records = records.data();
    if (in_place) args.logits = grad.data();
    args.in_place = in_place ? 1 : 0;
    xent_error error = XENT_ERROR_INIT;
    ExpectOk(xent_cross_entropy_backward(&args, &options, exec, &error), error, "backward", problem);
    EXPECT_EQ(FirstDifference(out.grad, grad), "")
        << "gradient of forward+backward and of backward" << (in_place ? " in place, " : ", ") << problem.name;
    EXPECT_TRUE(grad.PaddingIntact()) << "backward wrote outside its rows, " << problem.name;
  }
  if (options.reduction != XENT_REDUCTION_NONE) {
    Matrix reduced(arithmetic, 1, 1);
    xent_error error = XENT_ERROR_INIT;
    ExpectOk(xent_reduce(rows, out.losses.data(), arithmetic, problem.targets.data(), XENT_I64, &options,
                         reduced.data(), &error),
             error, "reduce", problem);
    EXPECT_EQ(FirstDifference(out.loss, reduced), "") << "loss of forward and of xent_reduce, " << problem.name;
  }

  out.logsumexp = Matrix(arithmetic, 1, rows);
  {
    xent_error error = XENT_ERROR_INIT;
    ExpectOk(xent_logsumexp(rows, cols, problem.logits.data(), dtype, problem.logits.stride(), out.logsumexp.data(),
                            exec, &error),
             error, "logsumexp", problem);
  }
  const auto run_map = [&](auto function, const char *name, Matrix &y) {
    y = Like(problem.logits, dtype);
    xent_error error = XENT_ERROR_INIT;
    ExpectOk(
        function(rows, cols, problem.logits.data(), dtype, problem.logits.stride(), y.data(), y.stride(), exec, &error),
        error, name, problem);
    EXPECT_TRUE(y.PaddingIntact()) << name << " wrote outside its rows, " << problem.name;
    Matrix in_place = problem.logits;
    ExpectOk(function(rows, cols, in_place.data(), dtype, in_place.stride(), in_place.data(), in_place.stride(), exec,
                      &error),
             error, name, problem);
    EXPECT_EQ(FirstDifference(y, in_place), "") << name << " out of place and in place, " << problem.name;
    EXPECT_TRUE(in_place.PaddingIntact()) << name << " in place wrote outside its rows, " << problem.name;
  };
  run_map(xent_softmax, "softmax", out.softmax);
  run_map(xent_log_softmax, "log_softmax", out.log_softmax);
  for (const Matrix *guarded : {&out.losses, &out.lse, &out.loss, &out.logsumexp}) {
    EXPECT_TRUE(guarded->PaddingIntact()) << "written outside an array of row results, " << problem.name;
  }
  return out;
}

void ExpectAccurate(const Problem &problem, const Outputs &outputs) {
  const int64_t rows = problem.rows();
  const int64_t cols = problem.cols();
  const xent_options &options = problem.options;
  const std::vector<double> logits =
      reference::DecodeRows(problem.dtype(), problem.logits.data(), rows, cols, problem.logits.stride());
  const reference::CrossEntropy want =
      reference::EvaluateCrossEntropy(problem.dtype(), logits, cols, problem.targets, options);

  Worst losses(problem, "loss", kLossBound);
  Worst lse(problem, "lse", kLseBound);
  Worst reduced(problem, "reduced loss", kReducedBound);
  Worst gradient(problem, "gradient", kGradientBound);
  Worst logsumexp(problem, "logsumexp", kLseBound);
  Worst softmax(problem, "softmax", kSoftmaxBound);
  Worst log_softmax(problem, "log_softmax", kLogSoftmaxBound);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t target = problem.targets[static_cast<size_t>(i)];
    losses.Add(outputs.losses, 0, i, want.losses[static_cast<size_t>(i)]);
    lse.Add(outputs.lse, 0, i, want.lse[static_cast<size_t>(i)]);

    const bool ignored = target == options.ignore_index;
    const std::span<const double> row_logits =
        std::span(logits).subspan(static_cast<size_t>(i * cols), static_cast<size_t>(cols));
    const reference::Row row(row_logits, ignored ? -1 : target);
    logsumexp.Add(outputs.logsumexp, 0, i, row.LogSumExp());
    // The upstream gradient as stored in the arithmetic type.
    long double upstream = 1;
    if (!problem.upstream.empty()) {
      const double u = problem.upstream[problem.upstream_per_row ? static_cast<size_t>(i) : 0];
      const xent_dtype arithmetic = ArithmeticType(problem.dtype());
      upstream = reference::Decode(arithmetic, reference::Encode(arithmetic, u));
    }
    for (int64_t j = 0; j < cols; ++j) {
      softmax.Add(outputs.softmax, i, j, row.Softmax(j));
      log_softmax.Add(outputs.log_softmax, i, j, row.LogSoftmax(j));
      const bool may_vanish = ArithmeticType(problem.dtype()) == XENT_F32 && std::isfinite(upstream) &&
                              row.Gradient(j, options, 1).scale < kSmallestKeptF32;
      if (may_vanish && outputs.grad.Get(i, j) == 0) continue;
      gradient.Add(
          outputs.grad, i, j,
          ignored || want.gradients_are_zero ? Value{0, 0} : row.Gradient(j, options, upstream / want.denominator));
    }
  }
  if (options.reduction != XENT_REDUCTION_NONE) reduced.Add(outputs.loss, 0, 0, want.loss);
  EXPECT_EQ(outputs.live_rows, want.live_rows) << problem.name;

  // Each nll is within 4 ULP of the arithmetic type, so their mean is within 4 ULP-widths eps * mean, and exp turns
  // that absolute error into a relative one; 2^-50 is for the double arithmetic around it, where the exponent's own
  // rounding weighs |mean| * 2^-53.
  const double eps = ArithmeticType(problem.dtype()) == XENT_F64 ? 0x1p-52 : 0x1p-23;
  const double mean = static_cast<double>(std::log(want.perplexity));
  const double tolerance = std::expm1(std::fmin(4 * eps * mean, 700)) + 0x1p-50 * (1 + mean);
  if (std::isfinite(mean) && want.perplexity < 1e300L) {
    EXPECT_LE(std::fabs(outputs.perplexity - static_cast<double>(want.perplexity)),
              tolerance * static_cast<double>(want.perplexity))
        << "perplexity " << Number(outputs.perplexity) << " want " << Number(static_cast<double>(want.perplexity))
        << ", " << problem.name;
  } else if (std::isnan(want.perplexity)) {
    EXPECT_TRUE(std::isnan(outputs.perplexity)) << problem.name;
  } else {
    EXPECT_GT(outputs.perplexity, 1e299) << problem.name;
  }
}

void RunAndExpectAccurate(const Problem &problem) { ExpectAccurate(problem, RunAll(problem)); }

std::string WorstErrors() {
  std::string text;
  for (const auto &[output, record] : AllWorst()) text += "worst " + output + ": " + record.where + "\n";
  return text;
}

}  // namespace xent::test
