// Random combinations of every option; see combination.h.
//
// A set is drawn from its seed and index alone: which options are on, the dtype, the layout, the shape, the values, how
// it is executed. Whatever it asks for is in valid form (semantics.md, "What does not go together"). Values are drawn
// anew, a bounded number of times, until each option that is on matters: with that option alone at its neutral value,
// the reference's losses, lse, reduced loss or gradients differ by more than a thousand times what the library may be
// off by, so that an implementation that forgets the option, or applies it in the wrong place, cannot pass. A set that
// never gets there is dropped and counted. Then each set
//   - runs forward with the statistics asked for, forward_backward, and backward from forward's records, and the three
//     must agree bit by bit, as must the call without statistics on the calling thread, the in-place call (where that
//     is on), xent_reduce and, where it has fused multiply-add too, another SIMD target;
//   - is judged against the reference within the bounds of semantics.md;
//   - leaves every byte of padding alone;
//   - in float64, has its gradients compared with central differences of the library's own losses.
#include "testing/combination.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "reference/losses.h"
#include "testing/loss_call.h"
#include "testing/target.h"

namespace xent::test {
namespace {

using reference::ArithmeticType;
using reference::Losses;
using reference::LossInputs;
using reference::UlpAt;
using reference::Value;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// ------------------------------------------------------------------ the options, and what excludes what

enum Option {
  kClassWeights,
  kRowWeights,
  kLogitScale,
  kSoftcap,
  kZLoss,
  kUniform,
  kExclusive,
  kDivisor,
  kValidCols,
  kMasks,
  kIgnored,
  kProbs,
  kTargetGrad,
  kUpstreamScalar,
  kUpstreamRows,
  kNone,
  kSum,
  kMean,
  kEmptyMean,
  kOfIgnored,
  kLogprobs,
  kArgmax,
  kEntropy,
  kRank,
  kTopK,
  kGather,
  kInPlace,
  kOptions
};
constexpr const char *kNames[kOptions] = {
    "class_weights", "row_weights", "logit_scale", "softcap", "z_loss",     "uniform",     "exclusive",
    "divisor",       "valid_cols",  "masks",       "ignored", "probs",      "target_grad", "upstream_scalar",
    "upstream_rows", "none",        "sum",         "mean",    "empty_mean", "of_ignored",  "logprobs",
    "argmax",        "entropy",     "rank",        "top_k",   "gather",     "in_place"};

constexpr int kLayouts = 4;
constexpr const char *kLayoutNames[kLayouts] = {"rows", "padded rows", "classes", "padded classes"};

// Pairs that no valid set has. `empty_mean` shows only under the mean without a divisor, of index targets whose weights
// add up to 0, and then no upstream gradient shows: the gradients are zeros.
constexpr std::pair<Option, Option> kExclusions[] = {{kUniform, kExclusive},
                                                     {kUpstreamScalar, kUpstreamRows},
                                                     {kNone, kSum},
                                                     {kNone, kMean},
                                                     {kSum, kMean},
                                                     {kNone, kDivisor},
                                                     {kProbs, kExclusive},
                                                     {kProbs, kIgnored},
                                                     {kProbs, kOfIgnored},
                                                     {kProbs, kLogprobs},
                                                     {kProbs, kRank},
                                                     {kProbs, kEmptyMean},
                                                     {kTargetGrad, kExclusive},
                                                     {kTargetGrad, kIgnored},
                                                     {kTargetGrad, kOfIgnored},
                                                     {kTargetGrad, kLogprobs},
                                                     {kTargetGrad, kRank},
                                                     {kTargetGrad, kEmptyMean},
                                                     {kEmptyMean, kNone},
                                                     {kEmptyMean, kSum},
                                                     {kEmptyMean, kDivisor},
                                                     {kEmptyMean, kUpstreamScalar},
                                                     {kEmptyMean, kUpstreamRows}};

bool Exclude(int a, int b) {
  for (const auto &[x, y] : kExclusions) {
    if ((a == x && b == y) || (a == y && b == x)) return true;
  }
  return false;
}

struct Options {
  bool on[kOptions] = {};
  bool &operator[](int o) { return on[o]; }
  bool operator[](int o) const { return on[o]; }
  std::string Text() const {
    std::string text;
    for (int o = 0; o < kOptions; ++o) {
      if (on[o]) text += std::string(text.empty() ? "" : " ") + kNames[o];
    }
    return text;
  }
};

// Two options that go together are forced on, the others follow by chance; what does not go with an earlier one is off.
Options DrawOptions(Random &random) {
  Options options;
  const auto turn_on = [&](int o) {
    for (int other = 0; other < kOptions; ++other) {
      if (options[other] && Exclude(o, other)) return false;
    }
    options[o] = true;
    return true;
  };
  // Rare company is forced more often, so that its pairs are covered too.
  constexpr int kRare[] = {kTargetGrad, kEmptyMean, kOfIgnored, kEmptyMean, kTargetGrad, kExclusive};
  const auto draw = [&] {
    return random.Below(3) == 0 ? kRare[random.Below(std::size(kRare))] : static_cast<int>(random.Below(kOptions));
  };
  turn_on(draw());
  // Its company must be able to stand beside what the first one needs.
  if (options[kTargetGrad]) options[kProbs] = true;
  if (options[kOfIgnored]) options[kIgnored] = true;
  if (options[kEmptyMean]) options[kMean] = options[random.Below(2) == 0 ? kRowWeights : kClassWeights] = true;
  turn_on(draw());
  int order[kOptions];
  for (int o = 0; o < kOptions; ++o) {
    const int64_t at = random.Below(o + 1);
    order[o] = order[at];
    order[at] = o;
  }
  for (const int o : order) {
    if (options[o] || o == kEmptyMean) continue;
    const int64_t chance = random.Below(100);
    if (chance < (o == kProbs ? 20 : o == kOfIgnored ? 25 : 40)) turn_on(o);
  }
  if (options[kTargetGrad]) {
    for (int other = 0; other < kOptions; ++other) {
      if (other != kTargetGrad && Exclude(kProbs, other)) options[other] = false;
    }
    options[kProbs] = true;
  }
  if (options[kOfIgnored]) options[kIgnored] = true;
  if (options[kEmptyMean]) {
    options[kNone] = options[kSum] = options[kDivisor] = false;
    options[kMean] = true;
    if (!options[kRowWeights] && !options[kClassWeights]) options[kRowWeights] = true;
  }
  if (!options[kNone] && !options[kSum] && !options[kMean]) {
    options[options[kDivisor] ? kSum : static_cast<int>(kNone + random.Below(3))] = true;
  }
  return options;
}

// ------------------------------------------------------------------ drawing a set

struct Set {
  uint64_t seed = 0;
  int64_t index = 0;
  Options options;
  int layout = 0;
  LossCall call;
  LossInputs inputs;
  Losses want;
  std::string exec_name;
  std::string target;

  std::string Line() const {
    char text[200];
    std::snprintf(text, sizeof(text), "XENT_COMBINATION=%llu:%lld (%s, %s, %lldx%lld, inner %lld, %s, %s; ",
                  static_cast<unsigned long long>(seed), static_cast<long long>(index), reference::NameOf(call.dtype),
                  kLayoutNames[layout], static_cast<long long>(call.rows), static_cast<long long>(call.cols),
                  static_cast<long long>(call.inner), exec_name.c_str(), target.c_str());
    // Negative weights or probabilities, whose sums may cancel, are worth knowing about.
    bool negative = false;
    for (const auto *values : {&inputs.class_weights, &inputs.target_probs}) {
      for (const double value : *values) negative = negative || value < 0;
    }
    return text + options.Text() + (negative ? "; negative labels)" : ")");
  }
};

// A multiple of 2^-10 in (0, 3].
double Quantum(Random &random) { return static_cast<double>(1 + random.Below(3 << 10)) * 0x1p-10; }

double LogUniform(Random &random, double low, double high) {
  return low * std::exp(random.Uniform() * std::log(high / low));
}

std::vector<double> DrawWeights(Random &random, int64_t n, bool negative) {
  std::vector<double> weights;
  for (int64_t k = 0; k < n; ++k) {
    double w = random.Below(6) == 0 ? 0 : LogUniform(random, 0.1, 4);
    if (negative && random.Below(4) == 0) w = -w;
    weights.push_back(w);
  }
  return weights;
}

double DrawUpstream(Random &random) {
  const double u = random.Below(2) == 0 ? LogUniform(random, 0.05, 0.7) : LogUniform(random, 1.5, 20);
  return random.Below(2) == 0 ? u : -u;
}

// The shape: V of a list, mostly small; few rows, an even number where weights must add up to 0 in pairs.
void DrawShape(Random &random, Set &set, int64_t &rows, int64_t &cols, int64_t &inner, int64_t &padding) {
  const Options &on = set.options;
  constexpr int64_t kSmall[] = {2, 3, 5, 8, 16, 17, 33, 2, 3, 5, 8, 16, 17, 33, 100, 129};
  constexpr int64_t kLong[] = {1000, 1025, 3000};
  const int64_t kind = random.Below(1000);
  cols = kind < 2 ? 20000 + random.Below(30000) : kind < 40 ? kLong[random.Below(3)] : kSmall[random.Below(16)];
  if (kind >= 950 && !on[kExclusive] && !on[kValidCols]) cols = 1;
  const bool class_major = set.layout >= 2;
  inner = class_major ? 2 + random.Below(cols > 129 ? 3 : 8) : random.Below(2);
  if (class_major && cols < 40 && random.Below(4) == 0) inner = 15 + random.Below(20);
  rows = class_major ? inner * (1 + random.Below(2)) : 2 + random.Below(cols > 129 ? 2 : 5);
  if (kind >= 2 && kind < 8) {  // many rows: enough work to be shared out
    cols = 2 + random.Below(30);
    inner = class_major ? 100 + random.Below(300) : inner;
    rows = class_major ? inner * 2 : 300 + random.Below(700);
  }
  if (on[kEmptyMean] && rows % 2 == 1) {
    rows += class_major ? inner : 1;  // an odd multiple of an odd number becomes even
  }
  padding = set.layout % 2 == 1 ? 1 + random.Below(5) : 0;
}

constexpr double kPossibleScales[] = {0.25, 3, 1.7, 0.4};

// The values of everything, for the shape; false where they do not suit each other.
bool DrawValues(Random &random, Set &set) {
  const Options &on = set.options;
  LossCall &call = set.call;
  const int64_t rows = call.rows;
  const int64_t cols = call.cols;
  xent_cross_entropy_options &options = call.options;

  if (on[kLogitScale]) options.logit_scale = kPossibleScales[random.Below(4)] * (1 + random.Uniform() / 4);
  if (on[kSoftcap]) options.softcap = LogUniform(random, 1, 30);
  if (on[kZLoss]) options.z_loss = LogUniform(random, 0.02, 2);
  if (on[kUniform] || on[kExclusive]) {
    options.label_smoothing = random.Below(12) == 0 ? 1 : 0.05 + 0.9 * random.Uniform();
    options.smoothing = on[kExclusive] ? XENT_SMOOTHING_EXCLUSIVE : XENT_SMOOTHING_UNIFORM;
  }
  options.reduction.kind = on[kNone] ? XENT_REDUCTION_NONE : on[kSum] ? XENT_REDUCTION_SUM : XENT_REDUCTION_MEAN;
  if (on[kDivisor]) options.reduction.divisor = LogUniform(random, 0.1, 50);
  options.reduction.empty_mean = on[kEmptyMean] ? XENT_EMPTY_MEAN_ZERO : XENT_EMPTY_MEAN_NAN;
  const int64_t least = on[kExclusive] ? 2 : 1;
  if (on[kValidCols]) {
    if (cols <= least) return false;
    options.valid_cols = least + random.Below(cols - least);
  }
  const int64_t valid = on[kValidCols] ? options.valid_cols : cols;

  // Index targets, some of them ignored.
  call.targets_type = random.Below(2) == 0 ? XENT_I32 : XENT_I64;
  for (int64_t &target : call.targets) target = random.Below(valid);
  if (on[kEmptyMean] && !on[kRowWeights]) {
    if (valid < 2) return false;  // classes 0 and 1 have opposite weights
    for (int64_t i = 0; i < rows; ++i) call.targets[static_cast<size_t>(i)] = i % 2;
  } else if (on[kEmptyMean]) {
    for (int64_t i = 1; i < rows; i += 2)
      call.targets[static_cast<size_t>(i)] = call.targets[static_cast<size_t>(i - 1)];
  }
  if (on[kIgnored]) {
    const int64_t candidates[] = {-100, -1, 1 << 30, cols};
    options.ignore_index = candidates[random.Below(4)];
    // Pairs are ignored together, so that weights still add up to 0. The first pair lives.
    int64_t ignored = 0;
    for (int64_t i = 2; i < rows; i += 2) {
      if (random.Below(3) != 0) continue;
      for (int64_t k = i; k < std::min(rows, i + 2); ++k) {
        call.targets[static_cast<size_t>(k)] = options.ignore_index;
        ++ignored;
      }
    }
    if (ignored == 0) {
      if (on[kEmptyMean] && rows < 4) return false;
      for (int64_t k = on[kEmptyMean] ? rows - 2 : rows - 1; k < rows; ++k) {
        call.targets[static_cast<size_t>(k)] = options.ignore_index;
      }
    }
  }

  // Logits: bell-shaped around a centre, some rows confident.
  std::vector<double> hidden;  // what is drawn, the columns past valid_cols included
  const double deviation = random.Below(2) == 0 ? 1 : 2;
  const double centers[] = {0, 0, 3, -5, 40, 1000};
  const double center = centers[random.Below(6)];
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t target = call.targets[static_cast<size_t>(i)];
    const bool confident = random.Below(8) == 0;
    const bool masked_row = on[kMasks] && (i == 0 || random.Below(2) == 0);
    for (int64_t c = 0; c < cols; ++c) {
      double z = center + random.Normal(deviation);
      if (confident && c == target) z += 15 + random.Normal(4);
      if (on[kArgmax] && random.Below(8) == 0) z = std::floor(z);  // ties
      if (masked_row && c < valid && random.Below(3) == 0) z = -kInfinity;
      // The target's own logit is masked only now and then: its row's loss is infinite.
      if (std::isinf(z) && c == target && random.Below(20) != 0) z = center;
      if (c == valid - 1 && masked_row) {
        bool any = std::isfinite(z);
        for (int64_t k = 0; k < c; ++k) any = any || std::isfinite(hidden[static_cast<size_t>(i * cols + k)]);
        if (!any) z = center;
      }
      call.logits.Set(i, c, z);
      hidden.push_back(call.logits.Get(i, c));
    }
  }

  // Weights. Without empty_mean the mean's denominator must not cancel; with it they add up to exactly 0, being small
  // multiples of 2^-10 that appear with both signs.
  const bool negative = random.Below(6) == 0;
  if (on[kClassWeights]) {
    std::vector<double> weights = DrawWeights(random, cols, negative);
    if (on[kEmptyMean]) {
      for (double &w : weights) w = Quantum(random);
      if (!on[kRowWeights]) weights[1] = -weights[0];
    }
    call.SetClassWeights(weights);
  }
  if (on[kRowWeights]) {
    std::vector<double> weights = DrawWeights(random, rows, negative);
    for (int64_t i = 0; on[kEmptyMean] && i < rows; ++i) {
      weights[static_cast<size_t>(i)] = i % 2 == 0 ? Quantum(random) : -weights[static_cast<size_t>(i - 1)];
    }
    call.SetRowWeights(weights);
  }

  if (on[kProbs]) {
    // Normalised or not; zeros and, now and then, a negative one.
    call.target_probs = Tensor(kDtypes[random.Below(4)], rows, cols, call.inner, call.padding, random.Below(5));
    const bool negative_probs = random.Below(10) == 0;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < valid; ++c) {
        double q = random.Below(4) == 0 ? 0 : random.Uniform() * 2 / static_cast<double>(valid);
        if (std::isinf(hidden[static_cast<size_t>(i * cols + c)]) && random.Below(20) != 0) q = 0;
        if (negative_probs && random.Below(6) == 0) q = -q;
        call.target_probs->Set(i, c, q);
      }
    }
    call.targets.clear();
  }
  call.wants_target_grad = on[kTargetGrad];

  if (on[kUpstreamScalar]) call.SetUpstream({DrawUpstream(random)}, XENT_UPSTREAM_SCALAR);
  if (on[kUpstreamRows]) {
    std::vector<double> upstream;
    for (int64_t i = 0; i < rows; ++i) upstream.push_back(DrawUpstream(random));
    call.SetUpstream(upstream, XENT_UPSTREAM_ROWS);
  }

  call.of_ignored = on[kOfIgnored] ? 1 : 0;
  call.wants_logprobs = on[kLogprobs];
  call.wants_argmax = on[kArgmax];
  call.wants_entropy = on[kEntropy];
  call.wants_rank = on[kRank];
  if (on[kTopK]) {
    call.top_k = 1 + random.Below(std::min<int64_t>(valid, random.Below(8) == 0 ? 64 : 5));
  }
  if (on[kGather]) {
    call.gather_count = 1 + random.Below(4);
    for (int64_t k = 0; k < rows * call.gather_count; ++k) call.gather_cols.push_back(random.Below(valid));
  }
  call.in_place = on[kInPlace];

  // The reference may look past valid_cols, where the variant without it does; the library gets poison there, and in
  // the targets beside it.
  set.inputs = call.Inputs();
  set.inputs.logits = hidden;
  if (on[kValidCols]) {
    Tensor poisoned(call.dtype, rows, cols, call.inner, call.padding, random.Below(5));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < valid; ++c) poisoned.Set(i, c, call.logits.Get(i, c));
    }
    call.logits = poisoned;
    for (int64_t i = 0; on[kProbs] && i < rows; ++i) {
      for (int64_t c = valid; c < cols; ++c) set.inputs.target_probs[static_cast<size_t>(i * cols + c)] = 0;
    }
  }
  set.want = reference::EvaluateLosses(set.inputs);
  if (on[kMean] && !on[kDivisor] && !on[kEmptyMean]) {
    long double magnitude = 0;
    for (int64_t i = 0; i < rows; ++i) {
      if (set.inputs.IsIgnored(i) || on[kProbs]) continue;
      const int64_t target = set.inputs.targets[static_cast<size_t>(i)];
      magnitude += std::fabs((on[kRowWeights] ? set.inputs.row_weights[static_cast<size_t>(i)] : 1) *
                             (on[kClassWeights] ? set.inputs.class_weights[static_cast<size_t>(target)] : 1));
    }
    if (!(std::fabs(set.want.denominator) >= 0.05L * magnitude) || set.want.denominator == 0) return false;
  }
  return set.want.gradients_are_zero == on[kEmptyMean];
}

// ------------------------------------------------------------------ whether each option matters

// A thousand times what an output may be off by, and eight steps of the type that it is stored in.
bool FarApart(Value a, Value b, double bound, xent_dtype arithmetic, xent_dtype stored) {
  if (std::isnan(a.exact) || std::isnan(b.exact)) return std::isnan(a.exact) != std::isnan(b.exact);
  if (std::isinf(a.exact) || std::isinf(b.exact)) return a.exact != b.exact;
  const long double tolerance =
      bound * std::max(UlpAt(arithmetic, a.scale), UlpAt(arithmetic, b.scale)) + a.slack + b.slack;
  return std::fabs(a.exact - b.exact) > 1000 * tolerance + 8 * UlpAt(stored, a.exact);
}

bool Differ(const Set &set, const LossInputs &inputs) {
  const Losses other = reference::EvaluateLosses(inputs);
  const LossCall &call = set.call;
  const xent_dtype arithmetic = ArithmeticType(call.dtype);
  const auto far = [&](Value a, Value b) { return FarApart(a, b, kLossUlp, arithmetic, arithmetic); };
  for (size_t i = 0; i < set.want.losses.size(); ++i) {
    if (far(set.want.losses[i], other.losses[i]) || far(set.want.lse[i], other.lse[i])) return true;
  }
  if (set.inputs.options.reduction.kind != XENT_REDUCTION_NONE &&
      inputs.options.reduction.kind != XENT_REDUCTION_NONE && far(set.want.loss, other.loss)) {
    return true;
  }
  for (int64_t i = 0; i < call.rows; ++i) {
    for (int64_t c = 0; c < call.cols; ++c) {
      if (FarApart(reference::GradientOf(set.inputs, set.want, i, c), reference::GradientOf(inputs, other, i, c),
                   kGradientUlp, arithmetic, call.dtype)) {
        return true;
      }
      if (call.wants_target_grad && inputs.has_probs() &&
          FarApart(reference::TargetGradientOf(set.inputs, set.want, i, c),
                   reference::TargetGradientOf(inputs, other, i, c), kGradientUlp, arithmetic,
                   call.target_probs->dtype())) {
        return true;
      }
    }
  }
  return false;
}

// The inputs with one option at its neutral value; false where it has none (outputs that are asked for, in_place).
bool Without(const Set &set, int option, LossInputs &inputs) {
  inputs = set.inputs;
  switch (option) {
    case kClassWeights:
      inputs.class_weights.clear();
      return true;
    case kRowWeights:
      inputs.row_weights.clear();
      return true;
    case kLogitScale:
      inputs.options.logit_scale = 1;
      return true;
    case kSoftcap:
      inputs.options.softcap = 0;
      return true;
    case kZLoss:
      inputs.options.z_loss = 0;
      return true;
    case kUniform:
    case kExclusive:
      inputs.options.label_smoothing = 0;
      return true;
    case kDivisor:
      inputs.options.reduction.divisor = 0;
      return true;
    case kValidCols:
      inputs.options.valid_cols = 0;
      return true;
    case kMasks:
      for (double &z : inputs.logits) z = std::isinf(z) ? 0 : z;
      return true;
    case kIgnored:
      for (int64_t &target : inputs.targets) target = target == inputs.options.ignore_index ? 0 : target;
      return true;
    case kProbs:
      for (int64_t i = 0; i < inputs.rows; ++i) {
        const auto begin = inputs.target_probs.begin() + i * inputs.cols;
        inputs.targets.push_back(std::max_element(begin, begin + inputs.valid_cols()) - begin);
      }
      inputs.target_probs.clear();
      return true;
    case kUpstreamScalar:
    case kUpstreamRows:
      inputs.upstream.clear();
      return true;
    case kNone:
    case kSum:
    case kMean:
      // With a divisor sum and mean are the same.
      if (inputs.options.reduction.divisor != 0) return false;
      inputs.options.reduction.kind = option == kMean ? XENT_REDUCTION_SUM : XENT_REDUCTION_MEAN;
      return true;
    case kEmptyMean:
      inputs.options.reduction.empty_mean = XENT_EMPTY_MEAN_NAN;
      return true;
    case kOfIgnored:
      inputs.of_ignored = false;
      return true;
    default:
      return false;
  }
}

// The first option that is on and does not matter; kOptions if every one does.
int Idle(const Set &set) {
  for (int o = 0; o < kOptions; ++o) {
    LossInputs inputs;
    if (set.options[o] && Without(set, o, inputs) && !Differ(set, inputs)) return o;
  }
  return kOptions;
}

// ------------------------------------------------------------------ execution

void ReversedPool(void *, int64_t n, xent_task task, void *arg) {
  for (int64_t i = n - 1; i >= 0; --i) task(arg, i);
}

void ThreadPool(void *ctx, int64_t n, xent_task task, void *arg) {
  const int64_t threads = *static_cast<const int *>(ctx);
  std::vector<std::thread> team;
  for (int64_t t = 0; t < threads; ++t) {
    team.emplace_back([=] {
      for (int64_t i = t; i < n; i += threads) task(arg, i);
    });
  }
  for (std::thread &thread : team) thread.join();
}

void DrawExec(Random &random, Set &set) {
  static int threads_of[] = {1, 2, 3, 8};
  int &threads = threads_of[random.Below(4)];
  switch (random.Below(4)) {
    case 0:
      set.call.exec = kSerial;
      set.exec_name = "serial";
      return;
    case 1:
      set.call.exec = TeamOf(threads);
      set.exec_name = "OpenMP";
      break;
    case 2:
      set.call.exec = PoolOf(ReversedPool, &threads, threads);
      set.exec_name = "reversed pool";
      break;
    default:
      set.call.exec = PoolOf(ThreadPool, &threads, threads);
      set.exec_name = "thread pool";
      break;
  }
  set.exec_name += " " + std::to_string(threads);
}

// Draws the set; false if no values were found with which every option matters.
bool Draw(Set &set, int *idle, int64_t &redrawn) {
  Random random(set.seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(set.index));
  const xent_dtype dtype = kDtypes[random.Below(4)];
  set.layout = static_cast<int>(random.Below(kLayouts));
  set.options = DrawOptions(random);
  const std::vector<std::string> targets = AvailableTargets();
  set.target = targets[static_cast<size_t>(random.Below(static_cast<int64_t>(targets.size())))];
  *idle = -1;
  for (int attempt = 0; attempt < 12; ++attempt) {
    int64_t rows, cols, inner, padding;
    DrawShape(random, set, rows, cols, inner, padding);
    set.call = LossCall(dtype, rows, cols, inner, padding, random.Below(5));
    DrawExec(random, set);
    if (!DrawValues(random, set)) continue;
    *idle = Idle(set);
    if (*idle == kOptions) return true;
    ++redrawn;
  }
  return false;
}

// ------------------------------------------------------------------ running a set

// Central differences of the library's own losses by `value`, which is put back.
//   With L(x) = factor * loss of the row, (L(x + h) - L(x - h)) / 2h is off by h^2/6 |L'''| and by the losses' errors
//   over h.
// A third derivative of the row's loss by a logit is at most scale^3 (|Q| + 2 l (|lse| + 3) + |y|) times a small
// constant (that of softmax is below 1/8, softcap's sech^2 adds (scale/cap)^2 with cap >= 1 here), so with h = 1e-5 /
// scale the first part is below 1e-9 of scale * (|Q| + ...), and the second is 8 ulp of the loss's terms over h. Both
// are far below the 1e-6 of the terms that a wrong formula is held against.
template <typename Put>
double CentralDifference(LossCall &call, int64_t row, double at, double h, long double factor, Put &&put) {
  double sides[2];
  double used[2];
  for (const int side : {0, 1}) {
    put(side == 0 ? at - h : at + h);
    used[side] = side == 0 ? at - h : at + h;
    if (call.Forward() != XENT_OK) return kNan;
    sides[side] = call.row_losses.Get(0, row);
  }
  put(at);
  return static_cast<double>(factor * (static_cast<long double>(sides[1]) - sides[0]) /
                             (static_cast<long double>(used[1]) - used[0]));
}

std::string CheckDifferences(const Set &set, const LossCall &result, int64_t &checked) {
  if (set.call.dtype != XENT_F64 || set.call.rows * set.call.cols > 5000) return "";
  LossCall call = set.call;
  call.exec = kSerial;
  call.in_place = false;
  call.WantNoStatistic();
  Random random(set.seed + static_cast<uint64_t>(set.index) * 31);
  const double scale = call.options.logit_scale;
  const int64_t valid = set.inputs.valid_cols();
  for (int k = 0; k < 4; ++k) {
    const int64_t i = random.Below(call.rows);
    const bool at_target = k == 0 && !call.target_probs;
    const int64_t c = at_target ? call.targets[static_cast<size_t>(i)] : random.Below(valid);
    if (set.inputs.IsIgnored(i) || set.want.gradients_are_zero) continue;
    const Value loss = set.want.losses[static_cast<size_t>(i)];
    if (!std::isfinite(loss.exact) || std::isinf(call.logits.Get(i, c))) continue;
    const long double factor = reference::FactorOf(set.inputs, set.want, i);
    // The terms of the row's gradient, the largest of all columns.
    long double terms = 0;
    for (int64_t j = 0; j < valid; ++j) {
      terms = std::max(terms, reference::GradientOf(set.inputs, set.want, i, j).scale);
    }
    const double h = 1e-5 / scale;
    const long double noise = std::fabs(factor) * (16 * UlpAt(XENT_F64, loss.scale) + 2 * loss.slack) / h;
    const double got = result.grad.Get(i, c);
    const double z = call.logits.Get(i, c);
    const double difference =
        CentralDifference(call, i, z, h, factor, [&](double value) { call.logits.Set(i, c, value); });
    // z_loss and confident rows: the largest term of the row may be tiny where the curvature is not; r (|Q| + ...) is
    // not.
    const long double tolerance = 1e-6L * terms + noise + 1e-9L * std::fabs(factor) * scale * (1 + call.options.z_loss);
    char text[240];
    if (!(std::fabs(difference - got) <= tolerance)) {
      std::snprintf(text, sizeof(text),
                    "grad[%lld,%lld] %.17g, central difference of the losses %.17g, tolerance %.3Lg",
                    static_cast<long long>(i), static_cast<long long>(c), got, difference, tolerance);
      return text;
    }
    ++checked;
    if (!call.wants_target_grad || call.target_probs->dtype() != XENT_F64) continue;
    // Linear in the targets, so that h may be large.
    const double q = call.target_probs->Get(i, c);
    const double got_q = result.target_grad.Get(i, c);
    const double difference_q =
        CentralDifference(call, i, q, 0.25, factor, [&](double value) { call.target_probs->Set(i, c, value); });
    const long double gap = std::fabs(reference::TargetGradientOf(set.inputs, set.want, i, c).exact);
    const long double tolerance_q =
        1e-12L * (gap + std::fabs(factor) * (loss.scale + 1)) + std::fabs(factor) * 8 * loss.slack;
    if (!(std::fabs(difference_q - got_q) <= tolerance_q)) {
      std::snprintf(text, sizeof(text),
                    "target_grad[%lld,%lld] %.17g, central difference of the losses %.17g, tolerance %.3Lg",
                    static_cast<long long>(i), static_cast<long long>(c), got_q, difference_q, tolerance_q);
      return text;
    }
    ++checked;
  }
  return "";
}

std::string ReduceDifference(const LossCall &call) {
  if (call.target_probs || call.options.reduction.kind == XENT_REDUCTION_NONE) return "";
  Matrix reduced(call.reduced_loss.dtype(), 1, 1);
  xent_stored_losses args = XENT_STORED_LOSSES_INIT;
  args.rows = call.rows;
  args.cols = call.cols;
  args.row_losses = call.row_losses.data();
  args.targets = {.data = call.targets.data(), .type = XENT_I64, .reserved = 0};
  if (call.class_weights) args.class_weights = call.class_weights->data();
  if (call.row_weights) args.row_weights = call.row_weights->data();
  args.reduced_loss = reduced.data();
  args.dtype = reduced.dtype();
  // xent_reduce looks at the reduction and at ignore_index.
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  options.reduction = call.options.reduction;
  options.ignore_index = call.options.ignore_index;
  xent_error error = XENT_ERROR_INIT;
  if (xent_reduce(&args, &options, &error) != XENT_OK) return std::string("xent_reduce: ") + error.message;
  const std::string difference = FirstDifference(call.reduced_loss, reduced);
  return difference.empty() ? "" : "reduced_loss and xent_reduce: " + difference;
}

// Runs and judges the set; "" or what is wrong.
std::string Run(const Set &set, WorstByOutput &worst, int64_t &differences) {
  const ScopedTarget scope(set.target);
  LossCall both = set.call;
  both.in_place = false;
  if (both.ForwardBackward() != XENT_OK) return std::string("forward_backward: ") + both.error.message;
  std::string trouble = both.PaddingTrouble();
  if (!trouble.empty()) return trouble;
  trouble = both.Judge(set.inputs, set.want, true, &worst);
  if (!trouble.empty()) return trouble;

  LossCall forward = set.call;
  forward.in_place = false;
  if (forward.Forward() != XENT_OK) return std::string("forward: ") + forward.error.message;
  trouble = forward.ForwardDifference(both);
  if (trouble.empty()) trouble = forward.StatisticsDifference(both);
  if (!trouble.empty()) return "forward and forward_backward: " + trouble;

  if (forward.Backward() != XENT_OK) return std::string("backward: ") + forward.error.message;
  trouble = forward.GradientDifference(both);
  if (!trouble.empty()) return "backward from records and forward_backward: " + trouble;
  trouble = forward.PaddingTrouble();
  if (!trouble.empty()) return trouble;

  if (set.call.in_place) {
    LossCall in_place = set.call;
    if (in_place.ForwardBackward() != XENT_OK) return std::string("in place: ") + in_place.error.message;
    trouble = in_place.ForwardDifference(both);
    if (trouble.empty()) trouble = in_place.StatisticsDifference(both);
    if (trouble.empty()) trouble = in_place.GradientDifference(both);
    if (trouble.empty()) trouble = in_place.PaddingTrouble();
    if (!trouble.empty()) return "in place and not: " + trouble;
    in_place.records = forward.records;
    if (in_place.Backward() != XENT_OK) return std::string("backward in place: ") + in_place.error.message;
    trouble = in_place.GradientDifference(both);
    if (!trouble.empty()) return "backward in place and not: " + trouble;
  }

  LossCall plain = set.call;
  plain.in_place = false;
  plain.exec = kSerial;
  plain.WantNoStatistic();
  if (plain.ForwardBackward() != XENT_OK) return std::string("without statistics: ") + plain.error.message;
  trouble = plain.ForwardDifference(both);
  if (trouble.empty()) trouble = plain.GradientDifference(both);
  if (!trouble.empty()) return "on one thread without statistics and as drawn: " + trouble;

  trouble = ReduceDifference(both);
  if (trouble.empty()) trouble = CheckDifferences(set, both, differences);
  if (!trouble.empty()) return trouble;

  if (HasFusedMultiplyAdd(set.target)) {
    for (const std::string &other : AvailableTargets()) {
      if (other == set.target || !HasFusedMultiplyAdd(other)) continue;
      const ScopedTarget other_scope(other);
      LossCall there = set.call;
      there.in_place = false;
      if (there.ForwardBackward() != XENT_OK) return "on " + other + ": " + there.error.message;
      trouble = there.ForwardDifference(both);
      if (trouble.empty()) trouble = there.StatisticsDifference(both);
      if (trouble.empty()) trouble = there.GradientDifference(both);
      if (!trouble.empty()) return "on " + other + " and " + set.target + ": " + trouble;
      break;
    }
  }
  return "";
}

void PrintFull(const Set &set) {
  const xent_cross_entropy_options &o = set.call.options;
  std::printf(
      "ignore_index %lld, label_smoothing %.17g, smoothing %d, reduction %d, divisor %.17g, empty_mean %d, logit_scale "
      "%.17g, softcap %.17g, z_loss %.17g, valid_cols %lld, of_ignored %lld, denominator %.17Lg\n",
      static_cast<long long>(o.ignore_index), o.label_smoothing, o.smoothing, o.reduction.kind, o.reduction.divisor,
      o.reduction.empty_mean, o.logit_scale, o.softcap, o.z_loss, static_cast<long long>(o.valid_cols),
      static_cast<long long>(set.call.of_ignored), set.want.denominator);
  const auto print = [](const char *name, const std::vector<double> &values) {
    if (values.empty()) return;
    std::printf("%s", name);
    for (size_t k = 0; k < std::min<size_t>(values.size(), 400); ++k) std::printf(" %.9g", values[k]);
    std::printf("\n");
  };
  print("logits", set.inputs.logits);
  print("target_probs", set.inputs.target_probs);
  print("targets", std::vector<double>(set.inputs.targets.begin(), set.inputs.targets.end()));
  print("class_weights", set.inputs.class_weights);
  print("row_weights", set.inputs.row_weights);
  print("upstream", set.inputs.upstream);
}

// How many sets had a pair of options on, per dtype and layout.
class Coverage {
 public:
  void Add(const Set &set) {
    for (int a = 0; a < kOptions; ++a) {
      for (int b = a + 1; b < kOptions; ++b) {
        if (set.options[a] && set.options[b]) ++counts_[{set.call.dtype, set.layout, a, b}];
      }
    }
  }
  // The least covered pair that is possible.
  int64_t Least(std::string &where, int64_t &pairs) {
    int64_t least = std::numeric_limits<int64_t>::max();
    for (const xent_dtype dtype : kDtypes) {
      for (int layout = 0; layout < kLayouts; ++layout) {
        for (int a = 0; a < kOptions; ++a) {
          for (int b = a + 1; b < kOptions; ++b) {
            if (Exclude(a, b)) continue;
            ++pairs;
            const int64_t count = counts_[{dtype, layout, a, b}];
            if (count >= least) continue;
            least = count;
            where = std::string(kNames[a]) + " with " + kNames[b] + ", " + reference::NameOf(dtype) + ", " +
                    kLayoutNames[layout];
          }
        }
      }
    }
    return least;
  }

 private:
  std::map<std::array<int, 4>, int64_t> counts_;
};

}  // namespace

void RunCombinations(uint64_t seed, int64_t count) {
  int64_t first = 0;
  bool alone = false;
  if (const char *wanted = std::getenv("XENT_COMBINATION"); wanted != nullptr) {
    unsigned long long wanted_seed = 0;
    long long wanted_index = 0;
    ASSERT_EQ(std::sscanf(wanted, "%llu:%lld", &wanted_seed, &wanted_index), 2) << "XENT_COMBINATION=SEED:INDEX";
    seed = wanted_seed;
    first = wanted_index;
    count = first + 1;
    alone = true;
  }
  Coverage coverage;
  WorstByOutput worst;
  std::map<std::string, int64_t> by_target;
  std::map<std::string, int64_t> dropped_by;
  int64_t ran = 0;
  int64_t dropped = 0;
  int64_t redrawn = 0;
  int64_t differences = 0;
  int failures = 0;
  for (int64_t index = first; index < count; ++index) {
    Set set;
    set.seed = seed;
    set.index = index;
    int idle = -1;
    if (!Draw(set, &idle, redrawn)) {
      ++dropped;
      ++dropped_by[idle < 0 ? "no values" : kNames[idle]];
      if (alone) std::printf("%s was dropped\n", set.Line().c_str());
      continue;
    }
    if (alone) {
      std::printf("%s\n", set.Line().c_str());
      PrintFull(set);
    }
    const std::string trouble = Run(set, worst, differences);
    ++ran;
    ++by_target[set.target];
    coverage.Add(set);
    if (trouble.empty()) continue;
    ADD_FAILURE() << set.Line() << ": " << trouble;
    if (++failures == 20) {
      ADD_FAILURE() << "stopped after 20 failing sets";
      return;
    }
  }
  for (const auto &[output, error] : worst) std::printf("worst %s: %s\n", output.c_str(), error.where.c_str());
  if (alone) return;
  std::string where;
  int64_t pairs = 0;
  const int64_t least = coverage.Least(where, pairs);
  std::printf("combinations: %lld sets ran (values drawn anew %lld times), %lld dropped, %lld central differences;",
              static_cast<long long>(ran), static_cast<long long>(redrawn), static_cast<long long>(dropped),
              static_cast<long long>(differences));
  for (const auto &[target, n] : by_target) std::printf(" %s %lld", target.c_str(), static_cast<long long>(n));
  std::printf("\n%lld pairs of options x dtype x layout, the least covered in %lld sets: %s\n",
              static_cast<long long>(pairs), static_cast<long long>(least), where.c_str());
  for (const auto &[name, n] : dropped_by) {
    std::printf("dropped since %s did not matter: %lld\n", name.c_str(), static_cast<long long>(n));
  }
  EXPECT_GE(least, 20) << where;
  EXPECT_LE(dropped, count / 5) << "too many sets have options that do not matter";
  EXPECT_GT(differences, count / 8);
}

}  // namespace xent::test
