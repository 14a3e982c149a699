// Results are compared with a reference before they are timed: naive sums in long double, on the first, the middle and
// the last row.
//
// The library is held to the bounds of its header, in ULP of the arithmetic type. The baselines promise nothing; they
// are held to what their loops must keep: a sum of n positive float32 terms in any order is within n units of
// 2^-24, the argument of an exponential is rounded once, each function is good to a few ULP.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <sstream>
#include <string>
#include <vector>

#include "bench/operations.h"
#include "bench/parallel.h"

namespace xent_bench {
namespace {

using Real = long double;

// Distance of neighbouring numbers of dtype at |v|.
Real Spacing(Real v, xent_dtype dtype) {
  const int digits = dtype == XENT_F64 ? 53 : dtype == XENT_F32 ? 24 : dtype == XENT_F16 ? 11 : 8;
  const int smallest = dtype == XENT_F64 ? -1022 : dtype == XENT_F16 ? -14 : -126;
  const int exponent = v == 0 ? smallest : std::max(std::ilogb(v), smallest);
  return std::ldexp(Real{1}, exponent - digits + 1);
}

// A sum that carries its rounding errors along (Neumaier 1974), so that the reference's own error stays far below an
// ULP of float64.
class Sum {
 public:
  void Add(Real x) {
    const Real t = sum_ + x;
    lost_ += std::fabs(sum_) >= std::fabs(x) ? (sum_ - t) + x : (x - t) + sum_;
    sum_ = t;
  }
  Real value() const { return std::isfinite(sum_) ? sum_ + lost_ : sum_; }

 private:
  Real sum_ = 0, lost_ = 0;
};

// Softmax of one row.
struct Row {
  Row(const Problem &problem, int64_t index)
      : index(index), target(problem.targets[static_cast<size_t>(index)]), z(static_cast<size_t>(problem.shape.cols)) {
    for (size_t j = 0; j < z.size(); ++j) {
      z[j] = Load(problem.dtype, problem.logits.data(), index * problem.shape.cols + static_cast<int64_t>(j));
    }
    const auto t = static_cast<size_t>(target);
    const auto largest = static_cast<size_t>(std::max_element(z.begin(), z.end()) - z.begin());
    max = z[largest];
    exponentials.resize(z.size());
    Sum all, not_target, not_largest;
    for (size_t j = 0; j < z.size(); ++j) {
      exponentials[j] = std::exp(z[j] - max);
      if (std::isfinite(z[j])) range = std::max(range, max - z[j]);
      all.Add(exponentials[j]);
      if (j != t) not_target.Add(exponentials[j]);
      if (j != largest) not_largest.Add(exponentials[j]);
    }
    sum = all.value();
    others = not_target.value();
    log_sum = std::log1p(not_largest.value());
    lse = max + log_sum;
    // A difference of lse and z_t would cancel where the row is confident.
    loss = std::log1p(others / exponentials[t]);
  }

  const int64_t index, target;
  std::vector<Real> z, exponentials;
  Real max = 0, sum = 0, others = 0, lse = 0, loss = 0;
  Real log_sum = 0;  // lse - max
  Real range = 0;    // max - the smallest finite logit
};

// Gathers the first value that is out of bounds.
class Verdict {
 public:
  Verdict(Op op, Source source, const Problem &problem)
      : library_(source == Source::kLibrary),
        arithmetic_(ArithmeticType(problem.dtype)),
        name_(Name(op, source)),
        chain_((static_cast<Real>(problem.shape.cols) + 16) * std::ldexp(Real{1}, -24)) {}

  // `got` was stored in dtype. The library: within `ulps` at `terms`, the exact value or the magnitude that its bound
  // speaks of, before one rounding to dtype; what lies below the smallest normal number may be 0. A baseline: within
  // `slack` in place of the ULPs.
  void Expect(const char *what, int64_t row, int64_t column, double got, Real want, xent_dtype dtype, Real ulps,
              Real terms, Real slack) {
    if (!message_.empty() || got == want) return;
    Real tolerance = library_ ? ulps * Spacing(terms, arithmetic_) : slack;
    if (dtype != arithmetic_) tolerance += Spacing(std::fabs(want) + tolerance, dtype) / 2;
    const Real smallest = arithmetic_ == XENT_F64 ? Real{DBL_MIN} : Real{FLT_MIN};
    if (std::fabs(want) < smallest * (library_ ? 1 : 4)) tolerance += std::fabs(want);
    if (std::isfinite(want) && std::fabs(got - want) <= tolerance) return;
    std::ostringstream text;
    text.precision(17);
    text << name_ << ": wrong result, " << what;
    if (row >= 0) text << " of row " << row;
    if (column >= 0) text << ", column " << column;
    text << " is " << got << ", expected " << want << " within " << tolerance;
    message_ = text.str();
  }
  void Fail(const std::string &message) {
    if (message_.empty()) message_ = name_ + ": " + message;
  }
  // Relative error that a baseline's sum over a row may have.
  Real chain() const { return chain_; }
  bool library() const { return library_; }
  const std::string &message() const { return message_; }

 private:
  const bool library_;
  const xent_dtype arithmetic_;
  const std::string name_;
  const Real chain_;
  std::string message_;
};

constexpr Real kUnit = 0x1p-24L;

Real BaselineLogError(const Verdict &verdict, const Row &row, Real z) {
  return verdict.chain() + row.range * kUnit + 4 * kUnit * (std::fabs(row.max) + row.log_sum + std::fabs(z));
}

Real BaselineExpError(const Verdict &verdict, const Row &row) { return verdict.chain() + 2 * row.range * kUnit; }

// The loss of index targets, smoothed where the operation does so.
Real LossOf(Op op, const Row &row) {
  if (op != Op::kForwardBackwardSmoothing) return row.loss;
  Sum all;
  for (const Real z : row.z) all.Add(row.log_sum + (row.max - z));
  return (1 - Real{kLabelSmoothing}) * row.loss + kLabelSmoothing / static_cast<Real>(row.z.size()) * all.value();
}

void CheckLoss(Op op, const Problem &problem, const Row &row, bool lse_too, Verdict *verdict) {
  const xent_dtype dtype = ArithmeticType(problem.dtype);
  const Real loss = LossOf(op, row);
  const Real slack = BaselineLogError(*verdict, row, row.z[static_cast<size_t>(row.target)]);
  verdict->Expect("loss", row.index, -1, Load(dtype, problem.losses.data(), row.index), loss, dtype, 4, loss, slack);
  if (lse_too) {
    const Real terms = std::max(std::fabs(row.max), std::log(static_cast<Real>(problem.shape.cols)));
    verdict->Expect("lse", row.index, -1, Load(dtype, problem.lse.data(), row.index), row.lse, dtype, 4, terms, slack);
  }
}

void CheckMean(const Problem &problem, Verdict *verdict) {
  const xent_dtype dtype = ArithmeticType(problem.dtype);
  Sum sum;
  for (int64_t i = 0; i < problem.shape.rows; ++i) sum.Add(Load(dtype, problem.losses.data(), i));
  const Real mean = sum.value() / static_cast<Real>(problem.shape.rows);
  verdict->Expect("the mean", -1, -1, Load(dtype, problem.loss.data(), 0), mean, dtype, 4, mean, 4 * kUnit * mean);
}

void CheckGradient(Op op, const Problem &problem, const Row &row, Verdict *verdict) {
  const Real scale = 1 / static_cast<Real>(problem.shape.rows);
  const Real epsilon = op == Op::kForwardBackwardSmoothing ? kLabelSmoothing : 0;
  for (int64_t j = 0; j < problem.shape.cols; ++j) {
    const Real p = row.exponentials[static_cast<size_t>(j)] / row.sum;
    // Where nothing is smoothed p - 1 is written such that it keeps its digits, and the bound speaks of the whole.
    const Real share = epsilon / static_cast<Real>(problem.shape.cols);
    const Real y = share + (j == row.target ? 1 - epsilon : 0);
    const Real want = scale * (epsilon > 0 ? p - y : j == row.target ? -row.others / row.sum : p);
    const Real terms = epsilon > 0 ? scale * std::max(p, y) : want;
    const Real slack = scale * (BaselineExpError(*verdict, row) * p + (j == row.target ? 8 * kUnit : 0));
    verdict->Expect("gradient", row.index, j,
                    Load(problem.dtype, problem.slot(0), GradientOffset(op, problem, row.index, j)), want,
                    problem.dtype, 6, terms, slack);
  }
}

void CheckArgmax(const Problem &problem, const Row &row, Verdict *verdict) {
  const auto want = std::max_element(row.z.begin(), row.z.end()) - row.z.begin();
  const int64_t got = problem.argmax[static_cast<size_t>(row.index)];
  if (got != want) verdict->Fail("argmax of row " + std::to_string(row.index) + " is " + std::to_string(got));
}

// log(1 + exp(x)).
double Softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

// Every loss counts, so double must do: its errors are nothing to a float32. 4 ULP of each loss are at most 8 of the
// mean, which has a rounding of its own.
void CheckBinaryMean(const Problem &problem, Verdict *verdict) {
  std::vector<double> sums(static_cast<size_t>(problem.shape.rows));
  ParallelRanges(MaxThreads(), problem.shape.rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = i * problem.shape.cols; j < (i + 1) * problem.shape.cols; ++j) {
        const double z = Load(problem.dtype, problem.logits.data(), j);
        const double y = Load(problem.dtype, problem.aux.data(), j);
        sums[static_cast<size_t>(i)] += (y == 1 ? 0 : (1 - y) * Softplus(z)) + (y == 0 ? 0 : y * Softplus(-z));
      }
    }
  });
  Sum sum;
  for (const double s : sums) sum.Add(s);
  const xent_dtype dtype = ArithmeticType(problem.dtype);
  const Real mean = sum.value() / static_cast<Real>(problem.elements());
  verdict->Expect("the mean", -1, -1, Load(dtype, problem.loss.data(), 0), mean, dtype, 9, mean, 0);
}

void CheckBinaryGradient(const Problem &problem, int64_t index, Verdict *verdict) {
  const Real scale = 1 / static_cast<Real>(problem.elements());
  for (int64_t j = 0; j < problem.shape.cols; ++j) {
    const int64_t at = index * problem.shape.cols + j;
    const Real z = Load(problem.dtype, problem.logits.data(), at);
    const Real y = Load(problem.dtype, problem.aux.data(), at);
    const Real down = (1 - y) / (1 + std::exp(-z));
    const Real up = y / (1 + std::exp(z));
    verdict->Expect("gradient", index, j, Load(problem.dtype, problem.slot(0), at), scale * (down - up), problem.dtype,
                    4, scale * std::max(down, up), 0);
  }
}

void CheckSoftmax(const Problem &problem, const Row &row, Verdict *verdict) {
  const int64_t first = row.index * problem.shape.cols;
  for (int64_t j = 0; j < problem.shape.cols; ++j) {
    const Real want = row.exponentials[static_cast<size_t>(j)] / row.sum;
    verdict->Expect("softmax", row.index, j, Load(problem.dtype, problem.slot(0), first + j), want, problem.dtype, 6,
                    want, BaselineExpError(*verdict, row) * want);
  }
}

void CheckLogSoftmax(const Problem &problem, const Row &row, Verdict *verdict) {
  const int64_t first = row.index * problem.shape.cols;
  for (int64_t j = 0; j < problem.shape.cols; ++j) {
    const Real z = row.z[static_cast<size_t>(j)];
    const Real want = (z - row.max) - row.log_sum;
    const Real terms = std::isfinite(want) ? want : 0;
    verdict->Expect("log_softmax", row.index, j, Load(problem.dtype, problem.slot(0), first + j), want, problem.dtype,
                    4, terms, std::isfinite(want) ? BaselineLogError(*verdict, row, z) : 0);
  }
}

// The formula on the y that was given, which is what the bound speaks of.
void CheckBackward(const Problem &problem, int64_t index, bool of_softmax, Verdict *verdict) {
  const int64_t first = index * problem.shape.cols;
  const auto g = [&](int64_t j) { return Real{Load(problem.dtype, problem.upstream.data(), first + j)}; };
  const auto y = [&](int64_t j) { return Real{Load(problem.dtype, problem.aux.data(), first + j)}; };
  Sum sum, magnitudes;
  for (int64_t j = 0; j < problem.shape.cols; ++j) {
    const Real term = of_softmax ? g(j) * y(j) : g(j);
    sum.Add(term);
    magnitudes.Add(std::fabs(term));
  }
  for (int64_t j = 0; j < problem.shape.cols; ++j) {
    const Real factor = of_softmax ? y(j) : std::exp(y(j));
    const Real want = of_softmax ? factor * (g(j) - sum.value()) : g(j) - factor * sum.value();
    const Real terms = (of_softmax ? factor : 1) * std::fabs(g(j)) + factor * magnitudes.value();
    const Real exp_error = of_softmax || factor == 0 ? 0 : factor * std::fabs(y(j)) * kUnit * magnitudes.value();
    verdict->Expect("dx", index, j, Load(problem.dtype, problem.slot(0), first + j), want, problem.dtype, 4, terms,
                    verdict->chain() * terms + exp_error);
  }
}

void CheckArray(Op op, const Problem &problem, Verdict *verdict) {
  const void *x = op == Op::kExp ? problem.logits.data() : problem.aux.data();
  // Odd, so that every lane of a vector has its turn.
  constexpr int64_t kStride = 17;
  for (int64_t i = 0; i < problem.elements(); i += kStride) {
    const Real v = Load(problem.dtype, x, i);
    const Real want = op == Op::kExp ? std::exp(v) : op == Op::kLog ? std::log(v) : std::log1p(v);
    const double got = Load(problem.dtype, problem.slot(0), i);
    const Real largest = problem.dtype == XENT_F64 ? Real{DBL_MAX} : Real{FLT_MAX};
    if (want > largest) {
      if (!(std::isinf(got) && got > 0)) verdict->Fail("no overflow at element " + std::to_string(i));
      continue;
    }
    verdict->Expect(op == Op::kExp   ? "exp"
                    : op == Op::kLog ? "log"
                                     : "log1p",
                    0, i, got, want, problem.dtype, 1, want, 4 * Spacing(want, problem.dtype));
  }
}

void CheckSweep(const Problem &problem, int threads, Verdict *verdict) {
  const SweepSegments segments(problem.shape, threads);
  for (const int64_t s : {int64_t{0}, segments.count / 2, segments.count - 1}) {
    double largest = -INFINITY;
    for (int64_t i = 0; i < segments.Length(s); ++i) {
      largest = std::max(largest, Load(problem.dtype, problem.logits.data(), segments.Begin(s) + i));
    }
    if (problem.maxima[static_cast<size_t>(s)] != largest) {
      verdict->Fail("wrong maximum of segment " + std::to_string(s));
    }
  }
}

// The copy is exact; the scale, applied to it, changes the sign of every element.
void CheckMoved(const Problem &problem, double factor, Verdict *verdict) {
  for (int64_t i = 0; i < problem.elements(); ++i) {
    if (Load(problem.dtype, problem.slot(0), i) != factor * Load(problem.dtype, problem.logits.data(), i)) {
      verdict->Fail("wrong element " + std::to_string(i));
      return;
    }
  }
}

// What an earlier operation has left must not pass for a result.
void Poison(Op op, Problem *problem) {
  const xent_dtype dtype = ArithmeticType(problem->dtype);
  for (int64_t i = 0; i < problem->shape.rows; ++i) {
    if (op != Op::kReduce) Store(dtype, problem->losses.data(), i, NAN);
    Store(dtype, problem->lse.data(), i, NAN);
  }
  Store(dtype, problem->loss.data(), 0, NAN);
  std::fill(problem->argmax.begin(), problem->argmax.end(), -1);
  std::fill(problem->maxima.begin(), problem->maxima.end(), NAN);
  problem->diagnosis = XENT_DIAGNOSIS_LOGITS;
  // The logits are no result of any operation but the copy.
  problem->RestoreSlot(0);
  if (op == Op::kCopy) Store(problem->dtype, problem->slot(0), problem->elements() - 1, NAN);
}

}  // namespace

std::string Check(Op op, Source source, Problem *problem, int threads) {
  Verdict verdict(op, source, *problem);
  Poison(op, problem);
  Prepare(op, problem);
  const xent_status status = Run(op, source, problem, threads, 0);
  if (status != XENT_OK) {
    verdict.Fail(xent_status_string(status));
    return verdict.message();
  }
  std::vector<int64_t> rows = {0, problem->shape.rows / 2, problem->shape.rows - 1};
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  for (const int64_t i : rows) {
    switch (op) {
      case Op::kForward:
      case Op::kForwardArgmax:
      case Op::kForwardClassMajor: {
        const Row row(*problem, i);
        CheckLoss(op, *problem, row, verdict.library(), &verdict);
        if (op == Op::kForwardArgmax) CheckArgmax(*problem, row, &verdict);
        break;
      }
      case Op::kBceForwardBackward:
        CheckBinaryGradient(*problem, i, &verdict);
        break;
      case Op::kForwardBackwardInplace:
      case Op::kForwardBackward:
      case Op::kForwardBackwardWorkspace:
      case Op::kForwardBackwardSmoothing:
      case Op::kForwardBackwardClassMajor: {
        const Row row(*problem, i);
        CheckLoss(op, *problem, row, verdict.library(), &verdict);
        CheckGradient(op, *problem, row, &verdict);
        break;
      }
      case Op::kBackward:
        CheckGradient(op, *problem, Row(*problem, i), &verdict);
        break;
      case Op::kSoftmax:
        CheckSoftmax(*problem, Row(*problem, i), &verdict);
        break;
      case Op::kLogSoftmax:
        CheckLogSoftmax(*problem, Row(*problem, i), &verdict);
        break;
      case Op::kExpSum:
        if (!verdict.library()) {
          const Row row(*problem, i);
          verdict.Expect("sum", i, -1, Load(XENT_F32, problem->lse.data(), i), row.sum, XENT_F32, 0, 0,
                         BaselineExpError(verdict, row) * row.sum);
          break;
        }
        [[fallthrough]];
      case Op::kLogSumExp: {
        const Row row(*problem, i);
        const xent_dtype dtype = ArithmeticType(problem->dtype);
        verdict.Expect("lse", i, -1, Load(dtype, problem->lse.data(), i), row.lse, dtype, 4,
                       std::max(std::fabs(row.max), std::log(static_cast<Real>(problem->shape.cols))),
                       BaselineLogError(verdict, row, 0));
        break;
      }
      case Op::kSoftmaxBackward:
        CheckBackward(*problem, i, true, &verdict);
        break;
      case Op::kLogSoftmaxBackward:
        CheckBackward(*problem, i, false, &verdict);
        break;
      default:
        break;
    }
  }
  switch (op) {
    case Op::kForward:
    case Op::kForwardArgmax:
    case Op::kForwardClassMajor:
    case Op::kForwardBackwardInplace:
    case Op::kForwardBackward:
    case Op::kForwardBackwardWorkspace:
    case Op::kForwardBackwardSmoothing:
    case Op::kForwardBackwardClassMajor:
    case Op::kReduce:
      CheckMean(*problem, &verdict);
      break;
    case Op::kBceForward:
    case Op::kBceForwardBackward:
      CheckBinaryMean(*problem, &verdict);
      break;
    case Op::kCheckLogits:
      if (problem->diagnosis != XENT_DIAGNOSIS_PROBABILITIES) verdict.Fail("probabilities were not recognised");
      break;
    case Op::kExp:
    case Op::kLog:
    case Op::kLog1p:
      CheckArray(op, *problem, &verdict);
      break;
    case Op::kReadSweep:
      CheckSweep(*problem, threads, &verdict);
      break;
    case Op::kCopy:
      CheckMoved(*problem, 1, &verdict);
      break;
    case Op::kInPlaceScale:
      CheckMoved(*problem, -1, &verdict);
      break;
    default:
      break;
  }
  return verdict.message();
}

}  // namespace xent_bench
