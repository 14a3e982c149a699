// A vocabulary in slices gives what the whole call gives, on every target. The oracle is the unsharded call on the same
// target. Cut at chunk borders the merger adds the same numbers in the same order, so that every output, records
// included but for their words for zero, has the same bits. Cut elsewhere a chunk's sum is rounded in other places:
// what xent.h allows for that stands in bounds.h, for gradients at the larger of their terms and, where logits lie far
// apart, twice as much. In half precision the last rounding comes on top.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "testing/bounds.h"
#include "testing/exec.h"
#include "testing/golden.h"
#include "testing/hash.h"
#include "testing/loss_call.h"
#include "testing/target.h"

namespace xent::test {
namespace {

using reference::ArithmeticType;
using reference::UlpAt;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kWords = XENT_CHUNK_RECORD_BYTES / 8;

size_t Size(int64_t n) { return static_cast<size_t>(n); }

int64_t Counted(const LossCall &call) { return call.options.valid_cols == 0 ? call.cols : call.options.valid_cols; }

// ---- a sharded call ----

using Cuts = std::vector<int64_t>;

// One slice with memory of its own (every other slice lies within the whole matrices instead).
struct Slice {
  Slice(const LossCall &call, int64_t number, int64_t first_in, int64_t cols_in)
      : first(first_in), cols(cols_in), own(number % 2 == 0) {
    chunks = xent_shard_chunks(Counted(call), first, cols);
    const int64_t padding = number % 5;
    const int64_t misalign = number * 3 % 7 + 1;
    if (own) {
      logits = Copy(call.logits.matrix(), padding, misalign);
      grad = Matrix(call.dtype, call.rows, cols, cols + padding, misalign + 1);
      if (call.target_probs) {
        probs = Copy(call.target_probs->matrix(), padding, misalign);
        target_grad = Matrix(probs.dtype(), call.rows, cols, cols + padding, misalign + 1);
      }
    }
    // Lists begin at all multiples of 8 bytes, and words follow that nobody may write.
    list.assign(Size(call.rows * chunks * kWords + 2 * kGuard), kPoison);
    list_offset = number % kGuard;
  }
  Matrix Copy(const Matrix &whole, int64_t padding, int64_t misalign) const {
    Matrix copy(whole.dtype(), whole.rows(), cols, cols + padding, misalign);
    for (int64_t i = 0; i < whole.rows(); ++i) {
      std::memcpy(copy.row(i), Element(whole, i), Size(cols * whole.Bytes()));
    }
    return copy;
  }
  const void *Element(const Matrix &whole, int64_t i) const {
    return static_cast<const char *>(whole.row(i)) + first * whole.Bytes();
  }
  // The slice's own matrix, or its part of the whole one.
  xent_matrix ViewOf(const Matrix &part, const Matrix &whole) const {
    if (own) return View(part);
    return {const_cast<void *>(Element(whole, 0)), whole.stride(), whole.dtype(), 0};
  }
  void CopyBack(const Matrix &from, Matrix &whole) const {
    for (int64_t i = 0; i < whole.rows(); ++i) {
      std::memcpy(static_cast<char *>(whole.row(i)) + first * whole.Bytes(), from.row(i), Size(cols * whole.Bytes()));
    }
  }
  uint64_t *List() { return list.data() + list_offset; }
  bool GuardIntact(int64_t rows) const {
    bool intact = true;
    const int64_t begin = list_offset, end = list_offset + rows * chunks * kWords;
    for (int64_t k = 0; k < static_cast<int64_t>(list.size()); ++k) {
      intact = intact && ((k >= begin && k < end) || list[Size(k)] == kPoison);
    }
    return intact;
  }
  xent_shard Shard(const LossCall &call) const { return {sizeof(xent_shard), call.cols, first}; }

  static constexpr int64_t kGuard = 8;
  static constexpr uint64_t kPoison = 0x5555555555555555u;
  int64_t first, cols, chunks = 0;
  bool own;
  Matrix logits, probs, grad, target_grad;
  std::vector<uint64_t> list;
  int64_t list_offset = 0;
};

class Sharded {
 public:
  Sharded(const LossCall &call, const Cuts &cuts) : call_(call) {
    Cuts ends = cuts;
    ends.push_back(call.cols);
    int64_t first = 0;
    for (const int64_t end : ends) {
      slices.emplace_back(call, static_cast<int64_t>(slices.size()), first, end - first);
      first = end;
    }
    const xent_dtype arithmetic = ArithmeticType(call.dtype);
    out.row_losses = out.lse = out.logprobs = Matrix(arithmetic, 1, call.rows);
    out.reduced_loss = Matrix(arithmetic, 1, 1);
    out.records.assign(Size(call.rows) * XENT_RECORD_BYTES / 8, Slice::kPoison);
    out.grad = Tensor(call.dtype, call.rows, call.cols);
    out.wants_target_grad = call.wants_target_grad;
    out.dtype = call.dtype;
    out.targets = call.targets;
    if (call.wants_target_grad) out.target_grad = Tensor(call.target_probs->dtype(), call.rows, call.cols);
  }

  // What slices and the combined call have in common.
  xent_cross_entropy Common() const {
    xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
    args.rows = call_.rows;
    if (!call_.target_probs) args.targets = {.data = call_.targets.data(), .type = XENT_I64, .reserved = 0};
    if (call_.class_weights) args.class_weights = call_.class_weights->data();
    return args;
  }
  xent_cross_entropy SliceArgs(const Slice &slice) const {
    xent_cross_entropy args = Common();
    args.cols = slice.cols;
    args.logits = slice.ViewOf(slice.logits, call_.logits.matrix());
    if (call_.target_probs) args.target_probs = slice.ViewOf(slice.probs, call_.target_probs->matrix());
    return args;
  }
  xent_cross_entropy CombineArgs() {
    xent_cross_entropy args = Common();
    args.cols = call_.cols;
    args.logits.dtype = call_.dtype;
    if (call_.row_weights) args.row_weights = call_.row_weights->data();
    args.row_losses = out.row_losses.data();
    args.reduced_loss = call_.options.reduction.kind == XENT_REDUCTION_NONE ? nullptr : out.reduced_loss.data();
    out.statistics = XENT_STATISTICS_INIT;
    out.statistics.lse = out.lse.data();
    out.statistics.perplexity = &out.perplexity;
    out.statistics.live_rows = &out.live_rows;
    if (!call_.target_probs) out.statistics.logprobs = out.logprobs.data();
    args.statistics = &out.statistics;
    args.records = out.records.data();
    return args;
  }
  xent_cross_entropy BackwardArgs(Slice &slice) {
    xent_cross_entropy args = SliceArgs(slice);
    if (call_.row_weights) args.row_weights = call_.row_weights->data();
    args.records = out.records.data();
    args.grad = slice.ViewOf(slice.grad, out.grad.matrix());
    if (call_.upstream) {
      args.upstream = {.data = call_.upstream->data(), .stride = 0, .kind = call_.upstream_kind, .reserved = 0};
    }
    if (call_.wants_target_grad) args.target_grad = slice.ViewOf(slice.target_grad, out.target_grad.matrix());
    return args;
  }

  xent_status Forward(Slice &slice, const xent_exec &exec) {
    const xent_cross_entropy args = SliceArgs(slice);
    const xent_shard shard = slice.Shard(call_);
    return xent_shard_forward(&args, &call_.options, &shard, slice.List(), &exec, &error);
  }
  // Of the lists in this order.
  xent_status Combine(const std::vector<const void *> &lists, const std::vector<int64_t> &chunks) {
    const xent_cross_entropy args = CombineArgs();
    return xent_shard_combine(&args, &call_.options, lists.data(), chunks.data(), static_cast<int64_t>(lists.size()),
                              &error);
  }
  xent_status Combine() {
    std::vector<const void *> lists;
    std::vector<int64_t> chunks;
    for (Slice &slice : slices) {
      lists.push_back(slice.chunks == 0 ? nullptr : slice.List());
      chunks.push_back(slice.chunks);
    }
    return Combine(lists, chunks);
  }
  xent_status Backward(Slice &slice, const xent_exec &exec) {
    const xent_cross_entropy args = BackwardArgs(slice);
    const xent_shard shard = slice.Shard(call_);
    return xent_shard_backward(&args, &call_.options, &shard, &exec, &error);
  }

  void MustRun(const xent_exec &exec) {
    // Slices last to first: no slice needs another.
    for (auto slice = slices.rbegin(); slice != slices.rend(); ++slice) {
      ASSERT_EQ(Forward(*slice, exec), XENT_OK) << error.message;
      EXPECT_TRUE(slice->GuardIntact(call_.rows)) << "memory beside the list of a slice was written";
    }
    ASSERT_EQ(Combine(), XENT_OK) << error.message;
    for (Slice &slice : slices) {
      ASSERT_EQ(Backward(slice, exec), XENT_OK) << error.message;
      if (!slice.own) continue;
      EXPECT_TRUE(slice.grad.PaddingIntact());
      slice.CopyBack(slice.grad, const_cast<Matrix &>(out.grad.matrix()));
      if (!call_.wants_target_grad) continue;
      EXPECT_TRUE(slice.target_grad.PaddingIntact());
      slice.CopyBack(slice.target_grad, const_cast<Matrix &>(out.target_grad.matrix()));
    }
  }

  std::vector<Slice> slices;
  LossCall out;  // outputs only
  xent_error error = XENT_ERROR_INIT;

 private:
  const LossCall &call_;
};

// ---- comparison ----

// Where all other columns vanish beside the target their sum is zero if the target's logit is at hand, and e to a vast
// negative power if it lies in another slice: the records differ, nothing that comes of them does.
bool SaysZeroInOtherWords(const LossCall &call, int64_t row) {
  return !call.target_probs && call.logprobs.Get(0, row) == 0 && call.targets[Size(row)] != call.options.ignore_index;
}

// Everything, bit by bit.
std::string BitDifference(const LossCall &want, const LossCall &got) {
  std::string difference = want.ForwardDifference(got);
  if (difference.empty() && !want.target_probs) {
    difference = FirstDifference(want.logprobs, got.logprobs);
    if (!difference.empty()) difference = "logprobs " + difference;
  }
  for (size_t k = 0; k < want.records.size() && difference.empty(); ++k) {
    if (SaysZeroInOtherWords(want, static_cast<int64_t>(k) * 8 / XENT_RECORD_BYTES)) continue;
    if (want.records[k] != got.records[k]) difference = "record of row " + std::to_string(k * 8 / XENT_RECORD_BYTES);
  }
  return difference.empty() ? want.GradientDifference(got) : difference;
}

// One element within `ulp` ULP at `scale` or at itself, whichever is larger.
bool IsNear(const Matrix &want, const Matrix &got, int64_t i, int64_t j, xent_dtype arithmetic, long double scale,
            double ulp) {
  if (want.GetBits(i, j) == got.GetBits(i, j)) return true;
  const long double w = want.Get(i, j), g = got.Get(i, j);
  if (!std::isfinite(w) || !std::isfinite(g)) return false;
  long double allowed = ulp * UlpAt(arithmetic, std::max(std::fabs(w), scale));
  if (want.dtype() != arithmetic) allowed += UlpAt(want.dtype(), std::max(std::fabs(w), std::fabs(g)));
  // What lies below the smallest normal number is stored as zero.
  if (w == 0 || g == 0) allowed += reference::SmallestNormal(arithmetic);
  return std::fabs(w - g) <= allowed;
}

std::string NearDifference(const Matrix &want, const Matrix &got, xent_dtype arithmetic,
                           const std::function<long double(int64_t, int64_t)> &scale,
                           const std::function<double(int64_t)> &ulp_of_row) {
  for (int64_t i = 0; i < want.rows(); ++i) {
    if (std::memcmp(want.row(i), got.row(i), Size(want.cols() * want.Bytes())) == 0) continue;
    for (int64_t j = 0; j < want.cols(); ++j) {
      if (!IsNear(want, got, i, j, arithmetic, scale(i, j), ulp_of_row(i))) {
        char text[120];
        std::snprintf(text, sizeof(text), "[%lld,%lld] whole %.17g, sharded %.17g", static_cast<long long>(i),
                      static_cast<long long>(j), want.Get(i, j), got.Get(i, j));
        return text;
      }
    }
  }
  return "";
}

// The larger of a gradient's terms: the label's, u r w q' dz over the denominator, and the probability's two, which
// together with the label's make the gradient. With an index target alone the exact value counts.
class LargerTerm {
 public:
  explicit LargerTerm(const LossCall &call) : call_(call) {
    const bool mean = call.options.reduction.kind == XENT_REDUCTION_MEAN;
    if (call.options.reduction.divisor != 0) {
      denominator_ = call.options.reduction.divisor;
    } else if (mean && call.target_probs) {
      denominator_ = static_cast<double>(call.rows);
    } else if (mean) {
      denominator_ = 0;
      for (int64_t i = 0; i < call.rows; ++i) {
        const int64_t target = call.targets[Size(i)];
        if (target != call.options.ignore_index) denominator_ += RowWeight(i) * ClassWeight(target);
      }
    }
  }
  double operator()(int64_t i, int64_t c) const {
    const xent_cross_entropy_options &options = call_.options;
    const int64_t valid = Counted(call_);
    if (c >= valid || (!call_.target_probs && options.label_smoothing == 0 && options.z_loss == 0)) return 0;
    double label = 0;
    if (call_.target_probs) {
      label = (1 - options.label_smoothing) * std::fabs(call_.target_probs->Get(i, c));
    } else if (c == call_.targets[Size(i)]) {
      label = 1 - options.label_smoothing;
    }
    label += options.label_smoothing / static_cast<double>(valid);
    double upstream = 1;
    if (call_.upstream) upstream = call_.upstream->Get(0, call_.upstream_kind == XENT_UPSTREAM_ROWS ? i : 0);
    double slope = options.logit_scale;
    if (options.softcap > 0) {
      const double cosh = std::cosh(options.logit_scale * call_.logits.Get(i, c) / options.softcap);
      slope /= cosh * cosh;
    }
    const double term = std::fabs(upstream * RowWeight(i) * ClassWeight(c) / denominator_) * label * slope;
    // (Q + 2 lambda lse) p; the z-loss is met with Q = 1 alone.
    double others = std::fabs(call_.grad.Get(i, c) + term);
    if (options.z_loss > 0) {
      const double twice = 2 * options.z_loss * call_.lse.Get(0, i);
      others *= std::fmax(1, std::fabs(twice)) / std::fabs(1 + twice);
    }
    return std::isfinite(term) && std::isfinite(others) ? std::fmax(term, others) : 0;
  }

 private:
  double RowWeight(int64_t i) const { return call_.row_weights ? call_.row_weights->Get(0, i) : 1; }
  double ClassWeight(int64_t c) const { return call_.class_weights ? call_.class_weights->Get(0, c) : 1; }

  const LossCall &call_;
  double denominator_ = 1;
};

// What gradients of a row may be apart: more where logits lie beyond 2^20 or hundreds apart (xent.h).
std::vector<double> GradientUlps(const LossCall &call) {
  std::vector<double> ulps;
  for (int64_t i = 0; i < call.rows; ++i) {
    double least = kInfinity, most = -kInfinity;
    for (int64_t c = 0; c < Counted(call); ++c) {
      const double z = call.options.logit_scale * call.logits.Get(i, c);
      if (!std::isfinite(z)) continue;
      least = std::fmin(least, z);
      most = std::fmax(most, z);
    }
    const bool far = std::fmax(std::fabs(least), std::fabs(most)) >= 0x1p20 || most - least >= 200;
    ulps.push_back(far ? kShardFarGradientUlp : kShardGradientUlp);
  }
  return ulps;
}

// lse may cross 0: it is counted at the larger of its largest logit's magnitude and log V.
std::vector<double> LseScales(const LossCall &call) {
  std::vector<double> scales;
  for (int64_t i = 0; i < call.rows; ++i) {
    double max = -kInfinity;
    for (int64_t c = 0; c < Counted(call); ++c) max = std::fmax(max, call.logits.Get(i, c));
    double value = call.options.logit_scale * max;
    if (call.options.softcap > 0) value = call.options.softcap * std::tanh(value / call.options.softcap);
    const double scale = std::fmax(std::fabs(value), std::log(static_cast<double>(Counted(call))));
    scales.push_back(std::isfinite(scale) ? scale : 0);
  }
  return scales;
}

// What counts where calls cut elsewhere are compared.
struct Tolerances {
  explicit Tolerances(const LossCall &call) : lse_scales(LseScales(call)), gradient_ulps(GradientUlps(call)) {}
  std::vector<double> lse_scales, gradient_ulps;
};

std::string NearDifference(const LossCall &want, const LossCall &got, const Tolerances &tolerances) {
  const xent_dtype arithmetic = ArithmeticType(want.dtype);
  const auto at_value = [](int64_t, int64_t) { return 0.0L; };
  const auto lse_scale = [&](int64_t, int64_t i) { return tolerances.lse_scales[Size(i)]; };
  const auto in_general = [](int64_t) { return kShardUlp; };
  const auto of_gradients = [&](int64_t i) { return tolerances.gradient_ulps[Size(i)]; };
  const auto prefixed = [](const char *name, const std::string &difference) {
    return difference.empty() ? "" : name + difference;
  };
  std::string all =
      prefixed("row_losses ", NearDifference(want.row_losses, got.row_losses, arithmetic, at_value, in_general));
  all += prefixed(" lse ", NearDifference(want.lse, got.lse, arithmetic, lse_scale, in_general));
  all +=
      prefixed(" reduced_loss ", NearDifference(want.reduced_loss, got.reduced_loss, arithmetic, at_value, in_general));
  if (!want.target_probs) {
    all += prefixed(" logprobs ", NearDifference(want.logprobs, got.logprobs, arithmetic, at_value, in_general));
  }
  all += prefixed(" grad ",
                  NearDifference(want.grad.matrix(), got.grad.matrix(), arithmetic, LargerTerm(want), of_gradients));
  if (want.wants_target_grad) {
    // Of the narrower arithmetic type: its numbers below the smallest normal one are zeros.
    const xent_dtype narrow = want.target_grad.dtype() == XENT_F64 ? arithmetic : XENT_F32;
    all += prefixed(" target_grad ", NearDifference(want.target_grad.matrix(), got.target_grad.matrix(), narrow,
                                                    at_value, of_gradients));
  }
  if (want.live_rows != got.live_rows) all += " live_rows";
  // exp of a mean that is off by 2 ULP.
  const double exponent = std::fmax(1, std::log(want.perplexity));
  const double allowed = kShardUlp * static_cast<double>(UlpAt(arithmetic, exponent)) * want.perplexity;
  const bool is_near = std::isfinite(want.perplexity) ? std::fabs(want.perplexity - got.perplexity) <= allowed
                       : std::isnan(want.perplexity)  ? std::isnan(got.perplexity)
                                                      : got.perplexity == want.perplexity;
  if (!is_near) {
    all += " perplexity " + std::to_string(want.perplexity) + " and " + std::to_string(got.perplexity);
  }
  return all;
}

// ---- inputs ----

// Rows of every habit. With kFinite only those whose losses are numbers whatever the options are, so that the reduced
// loss and the perplexity mean something.
enum class Rows { kAll, kFinite };

LossCall MakeRows(xent_dtype dtype, int64_t cols, Rows which, uint64_t seed = 1) {
  constexpr int64_t kAllRows = 22, kFiniteRows = 8;
  LossCall call(dtype, which == Rows::kAll ? kAllRows : kFiniteRows, cols);
  Random random(seed * 1000003 + static_cast<uint64_t>(cols));
  const int64_t eighth = std::max<int64_t>(1, cols / 8);
  for (int64_t i = 0; i < call.rows; ++i) {
    int64_t target = random.Below(cols);
    if (i == 1) target = cols - 1;
    if (i == 2) target = 0;
    if (i == 3) target = cols / 5;
    for (int64_t c = 0; c < cols; ++c) {
      double z = random.Normal(4);
      switch (i) {
        case 1:  // the target is sure, in the last slice; the runner-up in the first
          z = c == target ? 60 : c == 0 ? 30 : z;
          break;
        case 2:  // the target is far below a maximum in the last slice
          z = c == cols - 1 ? 80 : z;
          break;
        case 3:  // ties
          z = static_cast<double>(c % 3);
          break;
        case 4:
          z -= 5000;
          break;
        case 5:  // a slice far above the rest
          z = c >= cols - eighth ? z + 300 : z;
          break;
        case 6:  // a far tail
          z -= static_cast<double>(c % 512) / 4;
          break;
        case 7:
          z = c / 100 % 2 == 0 ? 2000 : z;
          break;
        case 8:  // 30 % masked
          z = c != target && random.Below(10) < 3 ? -kInfinity : z;
          break;
        case 9:
          z = c == cols / 3 ? kNan : z;
          break;
        case 10:
          z = c == cols - 1 - cols / 3 ? kInfinity : z;
          break;
        case 11:
          z = -kInfinity;
          break;
        case 12:
          z = c == target ? -kInfinity : z;
          break;
        case 13:  // whole slices masked
          z = c != target && c >= eighth && c < cols / 2 ? -kInfinity : z;
          break;
        case 14:  // all but one column
          z = c == cols / 7 ? z : -kInfinity;
          break;
        case 15:  // beyond 2^20 in one slice
          z = c >= 2 * eighth && c < 3 * eighth ? 3e38 - 1e36 * z : z;
          break;
        case 16:
          z = c < eighth ? 0x1p20 + 4 + z : c >= cols - eighth ? 0x1p20 - 4 + z : z;
          break;
        case 17:
          z = c == target ? z : (c < cols / 2 ? -3e38 : -3.1e38);
          break;
        case 18:  // ignored
          z = kNan;
          break;
        case 19:  // 3e38 somewhere, -3e38 elsewhere
          z = c % 1000 == 7 ? 3e38 : -3e38;
          break;
        case 20:  // others from just seen beside the target to not at all
          z = (c == target ? 0 : -75) - static_cast<double>(c % 300) / 4;
          break;
        case 21:  // the same in float64
          z = (c == target ? 0 : -600) - static_cast<double>(c % 300 * 2);
          break;
        default:
          break;
      }
      call.logits.Set(i, c, z);
    }
    call.targets[Size(i)] = i == 18 ? -100 : i == 14 ? cols / 7 : target;
  }
  call.wants_logprobs = true;
  call.options.reduction.kind = which == Rows::kAll ? XENT_REDUCTION_SUM : XENT_REDUCTION_MEAN;
  return call;
}

Matrix UniformRow(xent_dtype dtype, int64_t cols, uint64_t seed) {
  Matrix row(dtype, 1, cols);
  Random random(seed);
  for (int64_t c = 0; c < cols; ++c) row.Set(0, c, random.Uniform() + 0x1p-4);
  return row;
}

void AddRowWeights(LossCall &call) {
  call.row_weights = UniformRow(ArithmeticType(call.dtype), call.rows, 4);
  call.row_weights->Set(0, 0, 0);
  call.upstream = UniformRow(ArithmeticType(call.dtype), call.rows, 5);
  call.upstream_kind = XENT_UPSTREAM_ROWS;
}
void AddClassWeights(LossCall &call) {
  call.class_weights = UniformRow(ArithmeticType(call.dtype), call.cols, 6);
  call.class_weights->Set(0, call.cols / 2, 0);
}
void AddProbs(LossCall &call, xent_dtype dtype) {
  call.target_probs = Tensor(dtype, call.rows, call.cols);
  call.wants_target_grad = true;
  Random random(7);
  for (int64_t i = 0; i < call.rows; ++i) {
    for (int64_t c = 0; c < call.cols; ++c) {
      const double q = random.Uniform() * 2 / static_cast<double>(call.cols);
      call.target_probs->Set(i, c, c % 3 == 0 ? 0 : q);
    }
  }
}

struct Variant {
  const char *name;
  void (*apply)(LossCall &);
};
constexpr Variant kVariants[] = {
    {"plain", [](LossCall &) {}},
    {"row weights", [](LossCall &call) { AddRowWeights(call); }},
    {"uniform smoothing", [](LossCall &call) { call.options.label_smoothing = 0.1; }},
    {"exclusive smoothing",
     [](LossCall &call) {
       if (call.cols == 1) return;
       call.options.label_smoothing = 0.3;
       call.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
       call.upstream = UniformRow(ArithmeticType(call.dtype), 1, 5);
       call.upstream_kind = XENT_UPSTREAM_SCALAR;
     }},
    {"z-loss",
     [](LossCall &call) {
       call.options.z_loss = 1e-3;
       call.options.reduction.divisor = 3;
     }},
    // Shows probabilities far below the smallest number.
    {"a vast upstream gradient",
     [](LossCall &call) { call.SetUpstream({call.dtype == XENT_F64 ? 0x1p900 : 0x1p100}, XENT_UPSTREAM_SCALAR); }},
    {"class weights", [](LossCall &call) { AddClassWeights(call); }},
    {"class weights, smoothing, row weights",
     [](LossCall &call) {
       AddClassWeights(call);
       AddRowWeights(call);
       call.options.label_smoothing = 0.1;
     }},
    {"softcap",
     [](LossCall &call) {
       call.options.softcap = 30;
       call.options.label_smoothing = 0.1;
     }},
    {"logit scale",
     [](LossCall &call) {
       call.options.logit_scale = 1 / 0.7;
       call.options.reduction.kind = XENT_REDUCTION_NONE;
     }},
    {"probability targets",
     [](LossCall &call) {
       AddProbs(call, call.dtype == XENT_F64 ? XENT_F64 : XENT_F32);
       AddRowWeights(call);
     }},
    {"probability targets, smoothing, class weights",
     [](LossCall &call) {
       AddProbs(call, call.dtype == XENT_BF16 ? XENT_F16 : call.dtype);
       AddClassWeights(call);
       call.options.label_smoothing = 0.2;
     }},
    {"valid columns",
     [](LossCall &call) {
       call.options.valid_cols = std::max<int64_t>(1, call.cols * 3 / 4);
       for (int64_t &target : call.targets) target = std::min(target, call.options.valid_cols - 1);
       for (int64_t i = 0; i < call.rows; ++i) {
         for (int64_t c = call.options.valid_cols; c < call.cols; ++c) call.logits.Set(i, c, kNan);
       }
     }},
};

// 2, 3 and 8 slices: cut at borders of chunks, or not.
std::vector<Cuts> AtBorders(const LossCall &call) {
  const int64_t chunk = xent_chunk_cols(Counted(call));
  const int64_t chunks = (call.cols - 1) / chunk + 1;
  std::vector<Cuts> all = {{chunks / 2 * chunk}, {chunk, (chunks - 2) * chunk}, {}};
  for (int64_t s = 1; s < 8; ++s) all.back().push_back(s * chunks / 8 * chunk);
  return all;
}
std::vector<Cuts> Elsewhere(const LossCall &call) {
  const int64_t v = call.cols, chunk = xent_chunk_cols(Counted(call));
  return {{v / 2 + 1}, {1, v - 1}, {7, 8, chunk - 1, chunk + 1, 2 * chunk + 5, v - 300, v - 1}};
}

class Shards : public TargetTest {
 protected:
  void Check(const LossCall &whole, const Cuts &cuts, bool at_borders, const Tolerances &tolerances,
             const std::string &where) {
    Sharded sharded(whole, cuts);
    sharded.MustRun(kSerial);
    const std::string difference =
        at_borders ? BitDifference(whole, sharded.out) : NearDifference(whole, sharded.out, tolerances);
    EXPECT_EQ(difference, "") << where << ", " << cuts.size() + 1 << " slices "
                              << (at_borders ? "at borders" : "cut elsewhere");
  }
  void CheckAll(const LossCall &rows, const Variant &variant) {
    LossCall call = rows;
    variant.apply(call);
    ASSERT_EQ(call.ForwardBackward(), XENT_OK) << call.error.message;
    const std::string where = std::string(reference::NameOf(call.dtype)) + ", " + variant.name;
    const Tolerances tolerances(call);
    for (const Cuts &cuts : AtBorders(call)) Check(call, cuts, true, tolerances, where);
    for (const Cuts &cuts : Elsewhere(call)) Check(call, cuts, false, tolerances, where);
  }
};
XENT_INSTANTIATE_TARGETS(Shards);

TEST_P(Shards, OfALargeVocabularyGiveTheUnshardedResult) {
  const LossCall all = MakeRows(XENT_F32, 128256, Rows::kAll);
  for (const Variant &variant : kVariants) CheckAll(all, variant);
}

TEST_P(Shards, OfALargeVocabularyGiveTheUnshardedSums) {
  const LossCall finite = MakeRows(XENT_F32, 128256, Rows::kFinite);
  for (const Variant &variant : kVariants) CheckAll(finite, variant);
}

TEST_P(Shards, OfEveryTypeGiveTheUnshardedResult) {
  for (const xent_dtype dtype : {XENT_F64, XENT_BF16, XENT_F16}) {
    for (const Rows which : {Rows::kAll, Rows::kFinite}) {
      const LossCall rows = MakeRows(dtype, 20000, which);
      for (const Variant &variant : kVariants) CheckAll(rows, variant);
    }
  }
}

// Anywhere at all: up to 40 slices, some cuts at borders and some not, of any size down to one column.
TEST_P(Shards, CutAtRandomAreNearTheUnshardedResult) {
  Random random(12);
  for (const int64_t cols : {1, 2, 5, 40, 1024, 1025, 3000, 17000}) {
    for (const xent_dtype dtype : kDtypes) {
      const LossCall rows = MakeRows(dtype, cols, random.Below(2) == 0 ? Rows::kAll : Rows::kFinite, 2);
      for (const Variant &variant : kVariants) {
        LossCall call = rows;
        variant.apply(call);
        ASSERT_EQ(call.ForwardBackward(), XENT_OK) << call.error.message;
        const int64_t chunk = xent_chunk_cols(Counted(call));
        Cuts cuts;
        // Unsharded rows of up to 256 columns may be computed side by side, with bits of their own.
        bool at_borders = dtype == XENT_F64 || Counted(call) > 256;
        for (int64_t k = random.Below(40); k > 0 && cols > 1; --k) {
          int64_t cut = 1 + random.Below(cols - 1);
          if (random.Below(3) == 0 && cut > chunk) cut -= cut % chunk;
          cuts.push_back(cut);
          at_borders = at_borders && (cut % chunk == 0 || cut >= Counted(call));
        }
        std::sort(cuts.begin(), cuts.end());
        cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
        Check(call, cuts, at_borders, Tolerances(call),
              std::string(reference::NameOf(dtype)) + ", " + std::to_string(cols) + " columns, " + variant.name);
      }
    }
  }
}

TEST_P(Shards, HaveTheSameBitsByAnyNumberOfThreads) {
  for (const xent_dtype dtype : kDtypes) {
    const LossCall rows = MakeRows(dtype, 50000, Rows::kFinite);
    for (const Variant &variant : kVariants) {
      LossCall call = rows;
      variant.apply(call);
      const Cuts cuts = {5000, 5001, 30011};
      Sharded serial(call, cuts);
      serial.MustRun(kSerial);
      for (const int32_t threads : {1, 2, 3, 8}) {
        Sharded parallel(call, cuts);
        parallel.MustRun(TeamOf(threads));
        EXPECT_EQ(BitDifference(serial.out, parallel.out), "")
            << reference::NameOf(dtype) << ", " << variant.name << ", " << threads << " threads";
        for (size_t s = 0; s < serial.slices.size(); ++s) {
          EXPECT_TRUE(serial.slices[s].list == parallel.slices[s].list) << "chunk records of slice " << s;
        }
      }
    }
  }
}

// Chunk records may come from another machine, so their bits are held too.
class ShardHashes : public TargetTest {};
XENT_INSTANTIATE_TARGETS(ShardHashes);

TEST_P(ShardHashes, AreReproducedByAnyNumberOfThreads) {
  std::vector<std::pair<std::string, LossCall>> calls;
  for (const xent_dtype dtype : kDtypes) {
    for (size_t v = 0; v < std::size(kVariants); ++v) {
      LossCall call = MakeRows(dtype, 5000, v % 2 == 0 ? Rows::kAll : Rows::kFinite);
      kVariants[v].apply(call);
      std::string name = kVariants[v].name;
      std::replace(name.begin(), name.end(), ' ', '_');
      name.erase(std::remove(name.begin(), name.end(), ','), name.end());
      calls.emplace_back(std::string(reference::NameOf(dtype)) + "/" + name, std::move(call));
    }
  }
  ExpectGolden(GetParam(), "shards", "dtype/options chunk_records losses lse loss logprobs records grad target_grad",
               [&](const xent_exec &exec) {
                 std::vector<std::string> lines;
                 for (const auto &[name, call] : calls) {
                   Sharded sharded(call, {1000, 1001, 3072});
                   sharded.MustRun(exec);
                   std::vector<uint64_t> lists;
                   for (Slice &slice : sharded.slices) {
                     lists.insert(lists.end(), slice.List(), slice.List() + call.rows * slice.chunks * kWords);
                   }
                   const LossCall &out = sharded.out;
                   std::string line = name + " " + Hash(lists).Text();
                   for (const Matrix *m : {&out.row_losses, &out.lse, &out.reduced_loss, &out.logprobs}) {
                     line += " " + Hash(*m).Text();
                   }
                   line += " " + Hash(out.records).Text() + " " + Hash(out.grad.matrix()).Text();
                   line += call.wants_target_grad ? " " + Hash(out.target_grad.matrix()).Text() : " -";
                   lines.push_back(line);
                 }
                 return lines;
               });
}

// ---- what combine and backward refuse ----

class RefusedShards : public ::testing::Test {
 protected:
  using Lists = std::vector<const void *>;
  using Chunks = std::vector<int64_t>;

  // Slices of 1000, 1500 and 500 columns; chunks have 1024, so that the lists have 1, 3 and 1 records a row.
  RefusedShards() { Forward(lists_); }

  static LossCall MakeCall(xent_dtype dtype) {
    LossCall call(dtype, 4, 3000);
    Random random(3);
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t c = 0; c < 3000; ++c) call.logits.Set(i, c, random.Normal(4));
    }
    call.targets = {5, 2999, -100, 1500};
    return call;
  }
  static void Forward(Sharded &sharded) {
    for (Slice &slice : sharded.slices) ASSERT_EQ(sharded.Forward(slice, kSerial), XENT_OK) << sharded.error.message;
  }
  // Combines the lists in this order; expects to be refused with the row, and nothing written.
  static void ExpectRefused(const LossCall &call, const Lists &lists, const Chunks &chunks, const std::string &word,
                            int64_t row) {
    Sharded combined(call, {});
    const LossCall before = combined.out;
    EXPECT_EQ(combined.Combine(lists, chunks), XENT_INVALID_ARGUMENT) << word;
    EXPECT_NE(std::string(combined.error.message).find(word), std::string::npos) << combined.error.message;
    EXPECT_EQ(combined.error.row, row) << combined.error.message;
    EXPECT_EQ(BitDifference(before, combined.out), "") << "outputs were written";
  }
  void ExpectRefused(const Lists &lists, const Chunks &chunks, const std::string &word, int64_t row) {
    ExpectRefused(call_, lists, chunks, word, row);
  }
  const void *List(size_t slice) { return lists_.slices[slice].List(); }
  Lists All() { return {List(0), List(1), List(2)}; }

  LossCall call_ = MakeCall(XENT_F32);
  Sharded lists_{call_, {1000, 2500}};
  const Chunks chunks_ = {1, 3, 1};
};

TEST_F(RefusedShards, NotIfTheyAreInOrder) { EXPECT_EQ(lists_.Combine(All(), chunks_), XENT_OK); }

TEST_F(RefusedShards, GapOverlapAndOrder) {
  ExpectRefused({List(0), List(2)}, {1, 1}, "does not begin where", 0);
  ExpectRefused({List(1), List(2)}, {3, 1}, "does not begin where", 0);
  ExpectRefused({List(0), List(1)}, {1, 3}, "ends at column 2500", 0);
  ExpectRefused({List(0), List(1), List(1), List(2)}, {1, 3, 3, 1}, "does not begin where", 0);
  ExpectRefused({List(1), List(0), List(2)}, {3, 1, 1}, "does not begin where", 0);
  ExpectRefused({List(0), List(2), List(1)}, {1, 1, 3}, "does not begin where", 0);
  // Slices that overlap in part.
  Sharded other(call_, {1200, 2500});
  Forward(other);
  ExpectRefused({List(0), other.slices[1].List(), List(2)}, {1, 2, 1}, "does not begin where", 0);
  ExpectRefused({other.slices[0].List(), List(1), List(2)}, {2, 3, 1}, "does not begin where", 0);
  // Fewer records than the list has, and more than all.
  ExpectRefused(All(), {1, 2, 1}, "does not begin where", 0);
  ExpectRefused(All(), {1, 3, 0}, "ends at column 2500", 0);
  ExpectRefused(All(), {1, -1, 1}, "list_chunks[1] is -1", -1);
  ExpectRefused({}, {}, "shards is 0", -1);
  ExpectRefused({List(0), nullptr, List(2)}, chunks_, "lists", -1);
}

// One row alone, after others that are right.
TEST_F(RefusedShards, OneRowOutOfOrder) {
  uint64_t *const row3 = lists_.slices[1].List() + 3 * 3 * kWords;
  std::swap_ranges(row3, row3 + kWords, row3 + kWords);
  ExpectRefused(All(), chunks_, "does not begin where", 3);
}

TEST_F(RefusedShards, AnotherDtype) {
  for (const xent_dtype dtype : {XENT_F64, XENT_BF16, XENT_F16}) {
    ExpectRefused(MakeCall(dtype), All(), chunks_, "dtype", 0);
  }
  // One list alone.
  const LossCall half = MakeCall(XENT_BF16);
  Sharded other(half, {1000, 2500});
  Forward(other);
  ExpectRefused({List(0), other.slices[1].List(), List(2)}, chunks_, "dtype", 0);
}

TEST_F(RefusedShards, AnotherTarget) {
  LossCall other = call_;
  other.targets[3] = 500;  // in another slice
  ExpectRefused(other, All(), chunks_, "target", 3);
  other.targets = {5, 2999, 7, 1500};  // not ignored
  ExpectRefused(other, All(), chunks_, "target", 2);
  other.targets = {-100, 2999, -100, 1500};
  ExpectRefused(other, All(), chunks_, "target", 0);
  // A slice that was given another one than the rest: two records have it, or none.
  other.targets = {1100, 2999, -100, 1500};
  Sharded wrong(other, {1000, 2500});
  Forward(wrong);
  ExpectRefused({List(0), wrong.slices[1].List(), List(2)}, chunks_, "target", 0);
  ExpectRefused({wrong.slices[0].List(), List(1), List(2)}, chunks_, "target", 0);
}

// Every option that concerns a row, from its default and between two values that are none.
TEST_F(RefusedShards, OtherOptions) {
  const Variant kinds[] = {
      {"smoothing", [](LossCall &call) { call.options.label_smoothing = 0.1; }},
      {"more smoothing", [](LossCall &call) { call.options.label_smoothing = 0.2; }},
      {"exclusive smoothing",
       [](LossCall &call) {
         call.options.label_smoothing = 0.1;
         call.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
       }},
      {"softcap", [](LossCall &call) { call.options.softcap = 30; }},
      {"a wider softcap", [](LossCall &call) { call.options.softcap = 31; }},
      {"scale", [](LossCall &call) { call.options.logit_scale = 2; }},
      {"z-loss", [](LossCall &call) { call.options.z_loss = 1e-4; }},
      {"a z-loss that is subnormal", [](LossCall &call) { call.options.z_loss = 0x1p-1060; }},
      {"class weights", [](LossCall &call) { AddClassWeights(call); }},
      {"valid columns",
       [](LossCall &call) {
         call.options.valid_cols = 2999;
         call.targets[1] = 2998;
       }},
      {"nothing", [](LossCall &) {}},
  };
  for (const Variant &written : kinds) {
    LossCall writer = call_;
    written.apply(writer);
    Sharded slices(writer, {1000, 2500});
    Forward(slices);
    for (const Variant &read : kinds) {
      SCOPED_TRACE(std::string(written.name) + ", read with " + read.name);
      LossCall reader = call_;
      read.apply(reader);
      const Lists lists = {slices.slices[0].List(), slices.slices[1].List(), slices.slices[2].List()};
      if (&read != &written) {
        ExpectRefused(reader, lists, chunks_, "options", 0);
        continue;
      }
      // The reduction is not of a row.
      reader.options.reduction.kind = XENT_REDUCTION_SUM;
      Sharded combined(reader, {1000, 2500});
      EXPECT_EQ(combined.Combine(lists, chunks_), XENT_OK) << combined.error.message;
      reader.options.reduction.divisor = 2;
      EXPECT_EQ(combined.Backward(combined.slices[0], kSerial), XENT_OK) << combined.error.message;
    }
  }
}

// One slice that was computed with other options than the rest, though of the same path.
TEST_F(RefusedShards, OtherOptionsOfOneSlice) {
  LossCall smoothed = call_;
  smoothed.options.label_smoothing = 0.1;
  Sharded other(smoothed, {1000, 2500});
  Forward(other);
  ExpectRefused({List(0), other.slices[1].List(), List(2)}, chunks_, "record 1 was written with other options", 0);
}

TEST_F(RefusedShards, WhatIsNoRecord) {
  Random random(8);
  for (int64_t row = 0; row < 4; ++row) {
    for (const int64_t record : {0, 1, 2}) {
      Slice &slice = lists_.slices[1];
      const std::vector<uint64_t> before = slice.list;
      uint64_t *const words = slice.List() + (row * 3 + record) * kWords;
      for (const int how : {0, 1, 2}) {
        for (int64_t k = 0; k < kWords; ++k) words[k] = how == 0 ? 0 : how == 1 ? ~uint64_t{0} : random.Next();
        ExpectRefused(All(), chunks_, "was not written by xent_shard_forward", row);
      }
      slice.list = before;
    }
  }
  EXPECT_EQ(lists_.Combine(All(), chunks_), XENT_OK);
}

TEST_F(RefusedShards, BackwardFromWhatCombineDidNotWrite) {
  ASSERT_EQ(lists_.Combine(All(), chunks_), XENT_OK);
  for (const uint64_t word : {uint64_t{0}, ~uint64_t{0}, lists_.slices[0].List()[0]}) {
    Sharded other(call_, {1000, 2500});
    other.out.records = lists_.out.records;
    std::fill_n(other.out.records.begin() + 3 * XENT_RECORD_BYTES / 8, XENT_RECORD_BYTES / 8, word);
    const Matrix before = other.slices[2].grad;
    EXPECT_EQ(other.Backward(other.slices[2], kSerial), XENT_INVALID_ARGUMENT);
    EXPECT_EQ(other.error.row, 3) << other.error.message;
    EXPECT_EQ(FirstDifference(before, other.slices[2].grad), "") << "the gradient was written";
  }
  // Records of another dtype.
  const LossCall wide = MakeCall(XENT_F64);
  Sharded other(wide, {1000, 2500});
  other.out.records = lists_.out.records;
  EXPECT_EQ(other.Backward(other.slices[0], kSerial), XENT_INVALID_ARGUMENT);
}

// The slice itself.
TEST_F(RefusedShards, SlicesThatDoNotLieWithin) {
  for (const auto &[total, first] : {std::pair<int64_t, int64_t>{3000, 2001},
                                     {999, 0},
                                     {0, 0},
                                     {-1, 0},
                                     {3000, -1},
                                     {3000, std::numeric_limits<int64_t>::max()}}) {
    Slice &slice = lists_.slices[0];
    const xent_cross_entropy args = lists_.SliceArgs(slice);
    const xent_shard shard = {sizeof(xent_shard), total, first};
    const std::vector<uint64_t> before = slice.list;
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(xent_shard_forward(&args, &call_.options, &shard, slice.List(), &kSerial, &error), XENT_INVALID_ARGUMENT)
        << total << ", " << first;
    EXPECT_TRUE(before == slice.list);
  }
}

TEST(ShardChunks, CountsThePiecesOfChunks) {
  EXPECT_EQ(xent_shard_chunks(128256, 0, 128256), 16);
  EXPECT_EQ(xent_shard_chunks(128256, 8192, 8192), 1);
  EXPECT_EQ(xent_shard_chunks(128256, 8191, 8192), 2);
  EXPECT_EQ(xent_shard_chunks(128256, 8191, 1), 1);
  EXPECT_EQ(xent_shard_chunks(128256, 8191, 2), 2);
  EXPECT_EQ(xent_shard_chunks(128256, 128255, 1000), 1);  // reaches past the end
  EXPECT_EQ(xent_shard_chunks(128256, 128256, 1), 0);
  EXPECT_EQ(xent_shard_chunks(128256, 0, std::numeric_limits<int64_t>::max()), 16);
  EXPECT_EQ(xent_shard_chunks(1, 0, 1), 1);
  EXPECT_EQ(xent_shard_chunks(0, 0, 1), 0);
  EXPECT_EQ(xent_shard_chunks(5, -1, 1), 0);
  EXPECT_EQ(xent_shard_chunks(5, 1, 0), 0);
  // A row of float64 takes at most 2^63 - 1 bytes.
  const int64_t most = std::numeric_limits<int64_t>::max() / 8;
  EXPECT_EQ(xent_shard_chunks(most, most - 1, std::numeric_limits<int64_t>::max()), 1);
  EXPECT_EQ(xent_shard_chunks(most + 1, 0, 1), 0);
}

}  // namespace
}  // namespace xent::test
