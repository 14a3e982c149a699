// Results are compared before they are timed: the first, the middle and the last row with the reference of the tests
// (tests/reference/), reduced losses with the sum of the stored ones.
//
// The library is held to the bounds of its header, in ULP of the arithmetic type. The baselines promise nothing; they
// are held to what their loops must keep: a sum of n positive float32 terms in any order is within n units of
// 2^-24, the argument of an exponential is rounded once, each function is good to a few ULP.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "bench/operations.h"
#include "reference/binary.h"
#include "reference/divergence.h"
#include "reference/losses.h"
#include "reference/number.h"
#include "reference/rows.h"
#include "reference/sum.h"
#include "testing/bounds.h"

namespace xent_bench {
namespace {

using xent::reference::LossInputs;
using xent::reference::LossRow;
using xent::reference::Row;
using xent::reference::Sum;
using xent::reference::Value;
using Real = long double;

// One number of a result: where it is stored, and its names for a message.
struct Place {
  const char *what;
  int64_t row = -1, column = -1;  // -1: none
  const void *data = nullptr;
  xent_dtype dtype = XENT_F32;  // of the stored number
  int64_t index = 0;            // in `data`
};

// Gathers the first value that is out of bounds.
class Verdict {
 public:
  Verdict(Op op, Source source, const Problem &problem)
      : library_(source == Source::kLibrary),
        name_(Name(op, source, problem.option)),
        chain_((static_cast<Real>(problem.shape.cols) + 16) * 0x1p-24L) {}

  // The library: `want` within `ulps`, before one rounding to a half-precision dtype; below the smallest normal number
  // zero will do. A baseline: within `slack` in place of the ULPs, and within four of the smallest normal numbers.
  void Expect(const Place &place, Value want, double ulps, Real slack) {
    if (!message_.empty()) return;
    if (!library_) {
      want.slack = slack + 4 * xent::reference::SmallestNormal(place.dtype);
      ulps = 0;
    }
    Judge(place, want, ulps, library_ ? xent::reference::Tiny::kZero : xent::reference::Tiny::kKept);
  }
  // Array functions keep subnormal numbers.
  void ExpectElement(const Place &place, Value want, double ulps) {
    if (message_.empty()) Judge(place, want, ulps, xent::reference::Tiny::kKept);
  }
  void Fail(const std::string &message) {
    if (message_.empty()) message_ = name_ + ": " + message;
  }
  // Relative error that a baseline's sum over a row may have.
  Real chain() const { return chain_; }
  bool library() const { return library_; }
  const std::string &message() const { return message_; }

 private:
  void Judge(const Place &place, Value want, double ulps, xent::reference::Tiny tiny) {
    const double error = xent::reference::ErrorInUlp(place.dtype, place.data, place.index, want, tiny);
    if (error <= ulps) return;
    std::ostringstream text;
    text.precision(17);
    text << name_ << ": wrong result, " << place.what;
    if (place.row >= 0) text << " of row " << place.row;
    if (place.column >= 0) text << ", column " << place.column;
    text << " is " << Load(place.dtype, place.data, place.index) << ", expected " << want.exact << ": " << error
         << " ULP, " << ulps << " allowed beside " << want.slack;
    message_ = text.str();
  }

  const bool library_;
  const std::string name_;
  const Real chain_;
  std::string message_;
};

constexpr Real kUnit = 0x1p-24L;

std::vector<double> DecodeRow(const Problem &problem, const Buffer &buffer, int64_t index) {
  std::vector<double> row(static_cast<size_t>(problem.shape.cols));
  for (int64_t j = 0; j < problem.shape.cols; ++j) {
    row[static_cast<size_t>(j)] = Load(problem.dtype, buffer.data(), problem.Offset(index, j));
  }
  return row;
}

// max - the smallest finite logit.
Real RangeOf(const Row &row) {
  Real range = 0;
  for (int64_t j = 0; j < row.cols(); ++j) {
    if (std::isfinite(row.logit(j).high)) range = std::max(range, row.BelowTop(j));
  }
  return range;
}

// What a baseline's lse - z may be off by.
Real BaselineLogError(const Verdict &verdict, const Row &row, Real z) {
  return verdict.chain() + RangeOf(row) * kUnit +
         4 * kUnit * (std::fabs(row.logit(row.top()).high) + row.log_total() + std::fabs(z));
}
// The same relative to an exponential.
Real BaselineExpError(const Verdict &verdict, const Row &row) { return verdict.chain() + 2 * RangeOf(row) * kUnit; }

// Whether the operation stores row losses and their mean, or takes the mean of stored ones.
bool HasMean(Op op) { return op < Op::kBackward || op == Op::kReduce || IsDivergence(op); }

// What the reference needs to know of one row of a cross-entropy call.
LossInputs InputsOf(const Problem &problem, int64_t index) {
  const xent_dtype arithmetic = ArithmeticType(problem.dtype);
  LossInputs inputs;
  inputs.dtype = problem.dtype;
  inputs.rows = 1;
  inputs.cols = problem.shape.cols;
  inputs.inner = problem.shape.inner;
  inputs.logits = DecodeRow(problem, problem.logits, index);
  if (problem.option == Option::kProbs) {
    inputs.target_probs = DecodeRow(problem, problem.aux, index);
  } else {
    inputs.targets = {problem.targets[static_cast<size_t>(index)]};
  }
  if (problem.option == Option::kWeights) {
    inputs.class_weights =
        xent::reference::DecodeRows(arithmetic, problem.class_weights.data(), 1, problem.shape.cols, 0);
  } else if (problem.option == Option::kRowWeights) {
    inputs.row_weights = {Load(arithmetic, problem.row_weights.data(), index)};
  }
  inputs.options = OptionsOf(problem);
  return inputs;
}

// The mean's denominator.
Real DenominatorOf(const Problem &problem) {
  const xent_dtype arithmetic = ArithmeticType(problem.dtype);
  Sum sum;
  for (int64_t i = 0; i < problem.shape.rows; ++i) {
    if (problem.option == Option::kWeights) {
      sum.Add(Load(arithmetic, problem.class_weights.data(), problem.targets[static_cast<size_t>(i)]));
    } else {
      sum.Add(problem.option == Option::kRowWeights ? Load(arithmetic, problem.row_weights.data(), i) : 1);
    }
  }
  return sum.Total();
}

void CheckLoss(const Problem &problem, int64_t index, const LossRow &row, Verdict *verdict) {
  const xent_dtype dtype = ArithmeticType(problem.dtype);
  const Real z = row.row().logit(problem.targets[static_cast<size_t>(index)]).high;
  const Real slack = BaselineLogError(*verdict, row.row(), z);
  verdict->Expect({.what = "loss", .row = index, .data = problem.losses.data(), .dtype = dtype, .index = index},
                  row.Loss(), xent::test::kLossUlp, slack);
  if (!verdict->library()) return;  // a baseline stores no lse
  verdict->Expect({.what = "lse", .row = index, .data = problem.lse.data(), .dtype = dtype, .index = index}, row.Lse(),
                  xent::test::kLseUlp, slack);
}

// The mean of n stored losses over the denominator.
void CheckMean(const Problem &problem, const void *losses, int64_t n, Real denominator, Verdict *verdict) {
  const xent_dtype dtype = ArithmeticType(problem.dtype);
  Sum sum, magnitudes;
  for (int64_t i = 0; i < n; ++i) {
    const double loss = Load(dtype, losses, i);
    sum.Add(loss);
    magnitudes.Add(std::fabs(loss));
  }
  const Value mean = {.exact = sum.Total() / denominator, .scale = magnitudes.Total() / denominator};
  verdict->Expect({.what = "the mean", .data = problem.loss.data(), .dtype = dtype}, mean, xent::test::kReducedLossUlp,
                  4 * kUnit * mean.scale);
}

void CheckGradient(const Problem &problem, int64_t index, const LossRow &row, Verdict *verdict) {
  const Real factor = 1 / DenominatorOf(problem);
  const Real exp_error = BaselineExpError(*verdict, row.row());
  for (int64_t j = 0; j < problem.shape.cols; ++j) {
    const bool at_target = j == problem.targets[static_cast<size_t>(index)];
    const Real slack = factor * (exp_error * row.row().Probability(j) + (at_target ? 8 * kUnit : 0));
    verdict->Expect({.what = "gradient",
                     .row = index,
                     .column = j,
                     .data = problem.slot(0),
                     .dtype = problem.dtype,
                     .index = problem.Offset(index, j)},
                    row.Gradient(j, factor), xent::test::kGradientUlp, slack);
  }
}

void CheckStatistics(const Problem &problem, int64_t index, const LossRow &row, Verdict *verdict) {
  const xent_dtype dtype = ArithmeticType(problem.dtype);
  const int64_t target = problem.targets[static_cast<size_t>(index)];
  const auto expect = [&](const char *what, const Buffer &got, int64_t at, int64_t want) {
    const int64_t is = static_cast<const int64_t *>(got.data())[at];
    if (is != want) verdict->Fail(what + (" of row " + std::to_string(index)) + " is " + std::to_string(is));
  };
  const Option option = problem.option;
  if (option == Option::kArgmax || option == Option::kEntropy) expect("argmax", problem.argmax, index, row.Argmax());
  if (option == Option::kRank) expect("rank", problem.rank, index, row.Rank(target));
  if (option == Option::kEntropy) {
    verdict->Expect({.what = "entropy", .row = index, .data = problem.entropy.data(), .dtype = dtype, .index = index},
                    row.Entropy(), xent::test::kEntropyUlp, 0);
    verdict->Expect({.what = "logprob", .row = index, .data = problem.logprobs.data(), .dtype = dtype, .index = index},
                    row.LogProbability(target), xent::test::kLogProbabilityUlp, 0);
  }
  if (option == Option::kTopK) {
    const std::vector<int64_t> top = row.TopK(std::min(kTop, problem.shape.cols));
    const auto k = static_cast<int64_t>(top.size());
    for (int64_t i = 0; i < k; ++i) expect("top k", problem.top, index * k + i, top[static_cast<size_t>(i)]);
  }
}

// Row `index` of a matrix in slot 0 against one value a column.
template <class WantOf, class SlackOf>
void CheckRow(const char *what, const Problem &problem, int64_t index, double ulps, const WantOf &want_of,
              const SlackOf &slack_of, Verdict *verdict) {
  for (int64_t j = 0; j < problem.shape.cols; ++j) {
    const Value want = want_of(j);
    verdict->Expect({.what = what,
                     .row = index,
                     .column = j,
                     .data = problem.slot(0),
                     .dtype = problem.dtype,
                     .index = problem.Offset(index, j)},
                    want, ulps, slack_of(j, want));
  }
}

void CheckSoftmax(const Problem &problem, int64_t index, Verdict *verdict) {
  const Row row(DecodeRow(problem, problem.logits, index));
  const Real error = BaselineExpError(*verdict, row);
  CheckRow(
      "softmax", problem, index, xent::test::kSoftmaxUlp, [&](int64_t j) { return row.Softmax(j); },
      [&](int64_t, const Value &want) { return error * want.exact; }, verdict);
}

void CheckLogSoftmax(const Problem &problem, int64_t index, Verdict *verdict) {
  const Row row(DecodeRow(problem, problem.logits, index));
  const Real error = BaselineLogError(*verdict, row, 0);
  CheckRow(
      "log_softmax", problem, index, xent::test::kLogSoftmaxUlp, [&](int64_t j) { return row.LogSoftmax(j); },
      [&](int64_t j, const Value &want) {
        return std::isfinite(want.exact) ? error + 4 * kUnit * std::fabs(row.logit(j).high) : 0;
      },
      verdict);
}

// The formula on the y that was given, which is what the bound speaks of.
void CheckBackward(const Problem &problem, int64_t index, bool of_softmax, Verdict *verdict) {
  const std::vector<double> g = DecodeRow(problem, problem.upstream, index);
  const std::vector<double> y = DecodeRow(problem, problem.aux, index);
  const std::vector<Value> want =
      of_softmax ? xent::reference::SoftmaxBackward(g, y) : xent::reference::LogSoftmaxBackward(g, y);
  // A baseline rounds the argument of exp(y), by which the rest of the terms' magnitudes is multiplied.
  const auto exp_error = [&](size_t j, Real scale) {
    return of_softmax || std::isinf(y[j]) ? 0 : std::fabs(y[j]) * kUnit * scale;
  };
  CheckRow(
      "dx", problem, index, xent::test::kBackwardUlp, [&](int64_t j) { return want[static_cast<size_t>(j)]; },
      [&](int64_t j, const Value &value) {
        return verdict->chain() * value.scale + exp_error(static_cast<size_t>(j), value.scale);
      },
      verdict);
}

void CheckLogSumExp(const Problem &problem, int64_t index, Verdict *verdict) {
  const Row row(DecodeRow(problem, problem.logits, index));
  verdict->Expect(
      {.what = "lse", .row = index, .data = problem.lse.data(), .dtype = ArithmeticType(problem.dtype), .index = index},
      row.LogSumExp(), xent::test::kLseUlp, BaselineLogError(*verdict, row, 0));
}

// A peer's sum of exp(x - max).
void CheckExpSum(const Problem &problem, int64_t index, Verdict *verdict) {
  const Row row(DecodeRow(problem, problem.logits, index));
  const Real sum = 1 / row.Probability(row.top());
  verdict->Expect({.what = "sum", .row = index, .data = problem.lse.data(), .index = index},
                  {.exact = sum, .scale = sum}, 0, BaselineExpError(*verdict, row) * sum);
}

xent::reference::BinaryResult BinaryAt(const Problem &problem, int64_t i, int64_t j, Real upstream) {
  const bool probabilities = problem.option == Option::kProbabilities;
  const xent_binary_cross_entropy_options options = BinaryOptionsOf(problem.option);
  const Buffer &input = probabilities ? problem.aux : problem.logits;
  return xent::reference::EvaluateBinary(
      {.x = Load(problem.dtype, input.data(), problem.Offset(i, j)),
       .y = Load(problem.dtype, problem.aux.data(), problem.Offset(i, j)),
       .probabilities = probabilities,
       .pos_weight = problem.option == Option::kPosWeight
                         ? Load(ArithmeticType(problem.dtype), problem.class_weights.data(), j)
                         : 1,
       .upstream = upstream,
       .gamma = options.focal_gamma,
       .alpha = options.focal_alpha});
}

void CheckBinaryGradient(const Problem &problem, int64_t index, Verdict *verdict) {
  const Real upstream = 1 / static_cast<Real>(problem.elements());
  CheckRow(
      "gradient", problem, index,
      problem.option == Option::kFocal ? xent::test::kFocalUlp : xent::test::kBinaryGradientUlp,
      [&](int64_t j) { return BinaryAt(problem, index, j, upstream).grad; },
      [](int64_t, const Value &) { return Real{0}; }, verdict);
}

// A second call stores the losses over slot 0. Three rows of them are compared with the reference, and the mean with
// all. Slot 0 has the room, for only float32 and float64 are timed.
void CheckBinaryLosses(Problem *problem, std::span<const int64_t> rows, Verdict *verdict) {
  xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
  FillBinary(*problem, &args);
  args.element_losses = problem->matrix(problem->slot(0));
  const xent_binary_cross_entropy_options options = BinaryOptionsOf(problem->option);
  const xent_status status = xent_binary_cross_entropy_forward(&args, &options, nullptr, nullptr);
  if (status != XENT_OK) verdict->Fail(xent_status_string(status));
  for (const int64_t i : rows) {
    CheckRow(
        "loss", *problem, i, problem->option == Option::kFocal ? xent::test::kFocalUlp : xent::test::kBinaryUlp,
        [&](int64_t j) { return BinaryAt(*problem, i, j, 1).loss; }, [](int64_t, const Value &) { return Real{0}; },
        verdict);
  }
  CheckMean(*problem, problem->slot(0), problem->elements(), static_cast<Real>(problem->elements()), verdict);
}

void CheckDivergence(Op op, const Problem &problem, int64_t index, Verdict *verdict) {
  const xent_divergence_options options = DivergenceOptionsOf(op);
  const xent::reference::Divergence want = xent::reference::EvaluateDivergence(
      DecodeRow(problem, problem.logits, index), DecodeRow(problem, problem.upstream, index),
      static_cast<xent_divergence_kind>(options.kind), options.temperature, options.beta);
  verdict->Expect({.what = "loss",
                   .row = index,
                   .data = problem.losses.data(),
                   .dtype = ArithmeticType(problem.dtype),
                   .index = index},
                  want.loss, xent::test::kDivergenceUlp, 0);
  if (!IsForwardBackward(op)) return;
  const Real factor = 1 / static_cast<Real>(problem.shape.rows);
  CheckRow(
      "gradient", problem, index, xent::test::kDivergenceGradientUlp,
      [&](int64_t j) {
        Value value = want.gradient[static_cast<size_t>(j)];
        value.exact *= factor;
        value.scale *= factor;
        value.slack *= factor;
        return value;
      },
      [](int64_t, const Value &) { return Real{0}; }, verdict);
}

void CheckArray(Op op, const Problem &problem, Verdict *verdict) {
  const void *x = op == Op::kExp ? problem.logits.data() : problem.aux.data();
  const char *const name = op == Op::kExp ? "exp" : op == Op::kLog ? "log" : "log1p";
  // A baseline may be 4 ULP off.
  const double ulps = verdict->library() ? xent::test::kArrayUlp : 4;
  // Odd, so that every lane of a vector has its turn.
  constexpr int64_t kStride = 17;
  for (int64_t i = 0; i < problem.elements(); i += kStride) {
    const Real v = Load(problem.dtype, x, i);
    const Real want = op == Op::kExp ? std::exp(v) : op == Op::kLog ? std::log(v) : std::log1p(v);
    verdict->ExpectElement(
        {.what = name, .row = 0, .column = i, .data = problem.slot(0), .dtype = problem.dtype, .index = i},
        {.exact = want, .scale = want}, ulps);
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

// Overwrites every result, so that one of an earlier operation cannot pass.
void Poison(Op op, Problem *problem) {
  const xent_dtype dtype = ArithmeticType(problem->dtype);
  for (int64_t i = 0; i < problem->shape.rows; ++i) {
    if (op != Op::kReduce) Store(dtype, problem->losses.data(), i, NAN);
    for (const Buffer *result : {&problem->lse, &problem->entropy, &problem->logprobs}) {
      Store(dtype, result->data(), i, NAN);
    }
  }
  Store(dtype, problem->loss.data(), 0, NAN);
  std::fill_n(static_cast<int64_t *>(problem->argmax.data()), problem->shape.rows, -1);
  std::fill_n(static_cast<int64_t *>(problem->rank.data()), problem->shape.rows, -1);
  std::fill_n(static_cast<int64_t *>(problem->top.data()), problem->shape.rows * kTop, -1);
  std::fill(problem->maxima.begin(), problem->maxima.end(), NAN);
  problem->diagnosis = XENT_DIAGNOSIS_LOGITS;
  // The logits are no result of any operation but the copy.
  problem->RestoreSlot(0);
  if (op == Op::kCopy) Store(problem->dtype, problem->slot(0), problem->elements() - 1, NAN);
}

void CheckResultRow(Op op, const Problem &problem, int64_t i, Verdict *verdict) {
  switch (op) {
    case Op::kForward:
    case Op::kForwardBackwardInplace:
    case Op::kForwardBackward:
    case Op::kForwardBackwardWorkspace:
    case Op::kBackward: {
      const LossInputs inputs = InputsOf(problem, i);
      const LossRow row(inputs, 0);
      if (op != Op::kBackward) CheckLoss(problem, i, row, verdict);
      if (op == Op::kForward) CheckStatistics(problem, i, row, verdict);
      if (op == Op::kBackward || IsForwardBackward(op)) CheckGradient(problem, i, row, verdict);
      break;
    }
    case Op::kKlForward:
    case Op::kKlForwardBackward:
    case Op::kJensenShannonForward:
    case Op::kJensenShannonForwardBackward:
      CheckDivergence(op, problem, i, verdict);
      break;
    case Op::kBceForwardBackward:
      CheckBinaryGradient(problem, i, verdict);
      break;
    case Op::kSoftmax:
      CheckSoftmax(problem, i, verdict);
      break;
    case Op::kLogSoftmax:
      CheckLogSoftmax(problem, i, verdict);
      break;
    case Op::kExpSum:
      verdict->library() ? CheckLogSumExp(problem, i, verdict) : CheckExpSum(problem, i, verdict);
      break;
    case Op::kLogSumExp:
      CheckLogSumExp(problem, i, verdict);
      break;
    case Op::kSoftmaxBackward:
      CheckBackward(problem, i, true, verdict);
      break;
    case Op::kLogSoftmaxBackward:
      CheckBackward(problem, i, false, verdict);
      break;
    default:  // checked as a whole
      break;
  }
}

// Everything but single rows.
void CheckWhole(Op op, Problem *problem, int threads, std::span<const int64_t> rows, Verdict *verdict) {
  switch (op) {
    case Op::kBceForward:
    case Op::kBceForwardBackward:
      CheckBinaryLosses(problem, rows, verdict);
      break;
    case Op::kCheckLogits:
      if (problem->diagnosis != XENT_DIAGNOSIS_PROBABILITIES) verdict->Fail("probabilities were not recognised");
      break;
    case Op::kExp:
    case Op::kLog:
    case Op::kLog1p:
      CheckArray(op, *problem, verdict);
      break;
    case Op::kReadSweep:
      CheckSweep(*problem, threads, verdict);
      break;
    case Op::kCopy:
      CheckMoved(*problem, 1, verdict);
      break;
    case Op::kInPlaceScale:
      CheckMoved(*problem, -1, verdict);
      break;
    default:
      if (HasMean(op)) {
        CheckMean(*problem, problem->losses.data(), problem->shape.rows, DenominatorOf(*problem), verdict);
      }
      break;
  }
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
  for (const int64_t i : rows) CheckResultRow(op, *problem, i, &verdict);
  CheckWhole(op, problem, threads, rows, &verdict);
  return verdict.message();
}

}  // namespace xent_bench
