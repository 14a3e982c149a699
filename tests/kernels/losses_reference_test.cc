// The oracle of the options (reference/losses.h): against the same formulas evaluated with MPFR at 1500 bits, where
// nothing needs to avoid cancellation; against values worked out by hand; and the slack that it gives softcap, which
// must cover every way of moving the transformed logits by 2 ULP, and must not be much more than the worst of them
// needs.
#include <gtest/gtest.h>
#include <mpfr.h>

#include <cmath>
#include <string>
#include <vector>

#include "reference/losses.h"
#include "reference/number.h"
#include "testing/bounds.h"
#include "testing/data.h"

namespace xent::test {
namespace {

using reference::ArithmeticType;
using reference::Losses;
using reference::LossInputs;
using reference::UlpAt;
using reference::Value;

class Big {
 public:
  Big(long double value = 0) {  // NOLINT: a number is a number
    mpfr_init2(value_, 1500);
    mpfr_set_ld(value_, value, MPFR_RNDN);
  }
  Big(const Big &other) {
    mpfr_init2(value_, 1500);
    mpfr_set(value_, other.value_, MPFR_RNDN);
  }
  Big &operator=(const Big &other) {
    mpfr_set(value_, other.value_, MPFR_RNDN);
    return *this;
  }
  ~Big() { mpfr_clear(value_); }
  friend Big operator+(const Big &a, const Big &b) { return Apply(mpfr_add, a, b); }
  friend Big operator-(const Big &a, const Big &b) { return Apply(mpfr_sub, a, b); }
  friend Big operator*(const Big &a, const Big &b) { return Apply(mpfr_mul, a, b); }
  friend Big operator/(const Big &a, const Big &b) { return Apply(mpfr_div, a, b); }
  friend Big Exp(const Big &a) { return Apply(mpfr_exp, a); }
  friend Big Log(const Big &a) { return Apply(mpfr_log, a); }
  friend Big Tanh(const Big &a) { return Apply(mpfr_tanh, a); }
  friend Big Cosh(const Big &a) { return Apply(mpfr_cosh, a); }
  long double Get() const { return mpfr_get_ld(value_, MPFR_RNDN); }

 private:
  template <typename F>
  static Big Apply(F f, const Big &a, const Big &b) {
    Big result;
    f(result.value_, a.value_, b.value_, MPFR_RNDN);
    return result;
  }
  template <typename F>
  static Big Apply(F f, const Big &a) {
    Big result;
    f(result.value_, a.value_, MPFR_RNDN);
    return result;
  }
  mpfr_t value_;
};

struct Exact {
  Big lse, loss, entropy;
  std::vector<Big> logprobs, gradient, target_gradient;
};

// The formulas of semantics.md for one row without masks, the transformed logits moved by `moves` and the derivative
// of softcap multiplied by `stretch` (both empty: as they are).
Exact Formulas(const LossInputs &inputs, const std::vector<long double> &moves = {},
               const std::vector<long double> &stretch = {}) {
  const xent_cross_entropy_options &o = inputs.options;
  const int64_t v = inputs.valid_cols();
  std::vector<Big> z, dz, y, w;
  Big total, q_sum;
  for (int64_t c = 0; c < v; ++c) {
    const size_t k = static_cast<size_t>(c);
    Big x = Big(o.logit_scale) * Big(inputs.logits[k]);
    Big slope = o.logit_scale;
    if (o.softcap > 0) {
      const Big t = x / Big(o.softcap);
      x = Big(o.softcap) * Tanh(t);
      slope = slope / (Cosh(t) * Cosh(t));
    }
    z.push_back(moves.empty() ? x : x + Big(moves[k]));
    dz.push_back(stretch.empty() ? slope : slope * Big(stretch[k]));
    total = total + Exp(z.back());
    const Big e = o.label_smoothing;
    Big q = inputs.has_probs() ? Big(inputs.target_probs[k]) : Big(c == inputs.targets[0] ? 1 : 0);
    if (o.label_smoothing != 0 && o.smoothing == XENT_SMOOTHING_EXCLUSIVE) {
      q = c == inputs.targets[0] ? Big(1) - e : e / Big(static_cast<long double>(v - 1));
    } else if (o.label_smoothing != 0) {
      q = (Big(1) - e) * q + e / Big(static_cast<long double>(v));
    }
    w.push_back(inputs.class_weights.empty() ? Big(1) : Big(inputs.class_weights[k]));
    y.push_back(w.back() * q);
    q_sum = q_sum + y.back();
  }
  Exact exact;
  exact.lse = Log(total);
  const Big r = inputs.row_weights.empty() ? Big(1) : Big(inputs.row_weights[0]);
  const Big u = inputs.upstream.empty() ? Big(1) : Big(inputs.upstream[0]);
  const Big lambda = o.z_loss;
  Big sum = lambda * exact.lse * exact.lse;
  exact.entropy = exact.lse;
  for (size_t c = 0; c < z.size(); ++c) {
    const Big p = Exp(z[c] - exact.lse);
    const Big gap = exact.lse - z[c];
    sum = sum + y[c] * gap;
    exact.entropy = exact.entropy - p * z[c];
    exact.logprobs.push_back(z[c] - exact.lse);
    exact.gradient.push_back(u * r * ((q_sum + Big(2) * lambda * exact.lse) * p - y[c]) * dz[c]);
    exact.target_gradient.push_back(u * r * w[c] * (Big(1) - Big(o.label_smoothing)) * gap);
  }
  exact.loss = r * sum;
  return exact;
}

// One row with a random choice of everything; reduction none.
LossInputs RandomRow(uint64_t seed, xent_dtype dtype, bool capped) {
  Random random(seed);
  LossInputs inputs;
  inputs.dtype = dtype;
  inputs.rows = 1;
  inputs.cols = 2 + random.Below(12);
  const double center = random.Below(3) == 0 ? 300 : 0;
  for (int64_t c = 0; c < inputs.cols; ++c) {
    const double z = center + random.Normal(2);
    inputs.logits.push_back(reference::Decode(dtype, reference::Encode(dtype, z)));
  }
  const auto any = [&] { return std::ldexp(random.Normal(1), static_cast<int>(random.Below(6)) - 2); };
  xent_cross_entropy_options &o = inputs.options;
  o.reduction.kind = XENT_REDUCTION_NONE;
  if (random.Below(2) == 0) o.valid_cols = 2 + random.Below(inputs.cols - 1);
  const int64_t valid = inputs.valid_cols();
  const bool probs = random.Below(3) == 0;
  if (probs) {
    for (int64_t c = 0; c < inputs.cols; ++c) inputs.target_probs.push_back(random.Uniform());
  } else {
    inputs.targets.push_back(random.Below(valid));
    if (random.Below(3) == 0) inputs.logits[static_cast<size_t>(inputs.targets[0])] += random.Below(2) == 0 ? 90 : 350;
  }
  if (random.Below(2) == 0) {
    for (int64_t c = 0; c < inputs.cols; ++c) {
      inputs.class_weights.push_back(random.Below(5) == 0 ? 0 : seed % 4 == 0 ? any() : std::fabs(any()));
    }
  }
  if (random.Below(2) == 0) inputs.row_weights.push_back(any());
  if (random.Below(2) == 0) inputs.upstream.push_back(any());
  if (random.Below(2) == 0) o.logit_scale = 0.25 + random.Uniform();
  if (capped) o.softcap = 1 + 30 * random.Uniform();
  if (random.Below(2) == 0) o.z_loss = random.Uniform();
  if (random.Below(2) == 0) o.label_smoothing = random.Below(5) == 0 ? 1 : random.Uniform();
  if (!probs && random.Below(2) == 0) o.smoothing = XENT_SMOOTHING_EXCLUSIVE;
  return inputs;
}

// Calls f(name, reference's value, exact) for each output of the row.
template <typename F>
void ForEachOutput(const LossInputs &inputs, const Losses &losses, const Exact &exact, F &&f) {
  f("loss", losses.losses[0], exact.loss);
  f("lse", losses.lse[0], exact.lse);
  f("entropy", losses.rows[0].Entropy(), exact.entropy);
  for (int64_t c = 0; c < inputs.valid_cols(); ++c) {
    const size_t k = static_cast<size_t>(c);
    f("log-probability", losses.rows[0].LogProbability(c), exact.logprobs[k]);
    f("gradient", reference::GradientOf(inputs, losses, 0, c), exact.gradient[k]);
    f("target gradient", reference::TargetGradientOf(inputs, losses, 0, c), exact.target_gradient[k]);
  }
}

TEST(LossReference, AgreesWithMpfr) {
  for (uint64_t seed = 1; seed <= 1500; ++seed) {
    const LossInputs inputs = RandomRow(seed, XENT_F64, false);
    const Losses losses = reference::EvaluateLosses(inputs);
    ForEachOutput(inputs, losses, Formulas(inputs), [&](const char *name, Value got, const Big &want) {
      if (inputs.options.z_loss == 0) {  // with it lse has its own bound
        EXPECT_EQ(got.slack, 0);
      }
      const long double distance = std::fabs((Big(got.exact) - want).Get());
      EXPECT_LE(distance, 0x1p-58L * got.scale) << name << ", seed " << seed << ": " << static_cast<double>(got.exact)
                                                << " instead of " << static_cast<double>(want.Get());
    });
    if (HasFailure()) FAIL() << "stopped";
  }
}

TEST(LossReference, AgreesWithMpfrUnderSoftcap) {
  // Its own transformed logits are a few 2^-63 off, which the tolerance of two ULP of a double, 2^-52, dwarfs.
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    const LossInputs inputs = RandomRow(seed, XENT_F64, true);
    const Losses losses = reference::EvaluateLosses(inputs);
    ForEachOutput(inputs, losses, Formulas(inputs), [&](const char *name, Value got, const Big &want) {
      const long double distance = std::fabs((Big(got.exact) - want).Get());
      EXPECT_LE(distance, 0x1p-58L * got.scale + got.slack / 256)
          << name << ", seed " << seed << ": " << static_cast<double>(got.exact) << " instead of "
          << static_cast<double>(want.Get());
    });
    if (HasFailure()) FAIL() << "stopped";
  }
}

TEST(LossReference, SlackOfSoftcapCoversEveryMoveAndNotMuchMore) {
  // float32, where the moves are visible. For the loss the worst signs are known: those of the gradient; with them the
  // slack must be used up but for the rounding of the largest allowance, exp(4 h).
  // A hundredth of an ULP (1e-9 of the scale) is left for second-order terms where the first order vanishes.
  Random random(5);
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    const LossInputs inputs = RandomRow(seed, XENT_F32, true);
    const xent_cross_entropy_options &o = inputs.options;
    const Losses losses = reference::EvaluateLosses(inputs);
    const Exact exact = Formulas(inputs);
    for (int way = 0; way < 6; ++way) {
      std::vector<long double> moves;
      std::vector<long double> stretch;
      for (int64_t c = 0; c < inputs.valid_cols(); ++c) {
        const size_t k = static_cast<size_t>(c);
        const long double x = o.logit_scale * static_cast<long double>(inputs.logits[k]) / o.softcap;
        const long double h = kSoftcapUlp * UlpAt(XENT_F32, o.softcap * std::tanh(x));
        const long double slope = o.logit_scale / (std::cosh(x) * std::cosh(x));
        const bool up = way == 0 ? (exact.gradient[k].Get() > 0) : random.Below(2) == 0;
        moves.push_back(up ? h : -h);
        const long double relative =
            (kSoftcapSlopeUlp + kSoftcapSlopeUlpPerArgument * std::fabs(x)) * UlpAt(XENT_F32, slope) / slope;
        const long double most = std::min(1.0L, relative);  // of subnormal numbers an ULP is more than they are
        stretch.push_back(random.Below(2) == 0 ? 1 + most : 1 - most);
      }
      const Exact moved = Formulas(inputs, moves, stretch);
      ForEachOutput(inputs, losses, moved, [&](const char *name, Value got, const Big &want) {
        const long double distance = std::fabs((Big(got.exact) - want).Get());
        EXPECT_LE(distance, got.slack * (1 + 1e-5L) + 1e-9L * got.scale)
            << name << ", seed " << seed << ": slack " << static_cast<double>(got.slack);
      });
      if (way == 0 && o.z_loss == 0 && inputs.row_weights.empty() && inputs.upstream.empty()) {
        const long double distance = std::fabs((moved.loss - exact.loss).Get());
        EXPECT_GE(distance, 0.99L * losses.losses[0].slack - 1e-9L * losses.losses[0].scale) << "seed " << seed;
      }
    }
    if (HasFailure()) FAIL() << "stopped";
  }
}

// ------------------------------------------------------------------ by hand

LossInputs Flat(int64_t rows) {
  // Every p is 1/2, every lse - z is log 2.
  LossInputs inputs;
  inputs.dtype = XENT_F64;
  inputs.rows = rows;
  inputs.cols = 2;
  inputs.logits.assign(static_cast<size_t>(2 * rows), 0);
  inputs.targets.assign(static_cast<size_t>(rows), 1);
  return inputs;
}

void ExpectNear(long double got, long double want) {
  EXPECT_LE(std::fabs(got - want), 0x1p-60L * std::fabs(want))
      << static_cast<double>(got) << " instead of " << static_cast<double>(want);
}

const long double kLog2 = std::log(2.0L);

TEST(LossReference, WeightsByHand) {
  LossInputs inputs = Flat(3);
  inputs.class_weights = {2, 3};
  inputs.row_weights = {1, 0.5, 4};
  inputs.targets = {1, 0, -100};
  Losses losses = reference::EvaluateLosses(inputs);
  ExpectNear(losses.losses[0].exact, 3 * kLog2);
  ExpectNear(losses.losses[1].exact, kLog2);
  EXPECT_EQ(losses.losses[2].exact, 0);
  ExpectNear(losses.denominator, 4);  // 1 * 3 + 0.5 * 2
  ExpectNear(losses.loss.exact, kLog2);
  ExpectNear(losses.perplexity, 2);
  EXPECT_EQ(losses.live_rows, 2);
  ExpectNear(reference::GradientOf(inputs, losses, 0, 1).exact, 3 * -0.5L / 4);
  ExpectNear(reference::GradientOf(inputs, losses, 1, 1).exact, 0.5L * 2 * 0.5L / 4);
  EXPECT_EQ(reference::GradientOf(inputs, losses, 2, 1).exact, 0);
  inputs.options.label_smoothing = 0.5;
  losses = reference::EvaluateLosses(inputs);
  ExpectNear(losses.losses[0].exact, (0.5L * 3 + 0.25L * 5) * kLog2);
  // Q p - y at the target: (1.5 + 0.75 + 0.5) / 2 - (1.5 + 0.75).
  ExpectNear(reference::GradientOf(inputs, losses, 0, 1).exact, -0.875L / 4);
  inputs.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
  losses = reference::EvaluateLosses(inputs);
  ExpectNear(losses.losses[0].exact, (0.5L * 3 + 0.5L * 2) * kLog2);
  inputs.options.reduction.divisor = 5;
  losses = reference::EvaluateLosses(inputs);
  ExpectNear(losses.loss.exact, (2.5L + 0.5L * 2.5L) * kLog2 / 5);
}

TEST(LossReference, WeightsThatAddUpToNothing) {
  LossInputs inputs = Flat(2);
  inputs.row_weights = {1, -1};
  Losses losses = reference::EvaluateLosses(inputs);
  EXPECT_TRUE(std::isnan(losses.loss.exact));
  EXPECT_TRUE(losses.gradients_are_zero);
  EXPECT_EQ(reference::GradientOf(inputs, losses, 0, 1).exact, 0);
  ExpectNear(losses.losses[1].exact, -kLog2);
  inputs.options.reduction.empty_mean = XENT_EMPTY_MEAN_ZERO;
  EXPECT_EQ(reference::EvaluateLosses(inputs).loss.exact, 0);
}

TEST(LossReference, ZLossAndScaleByHand) {
  LossInputs inputs = Flat(1);
  inputs.logits = {3, 3};
  inputs.options.logit_scale = 0.5;
  inputs.options.z_loss = 0.25;
  const Losses losses = reference::EvaluateLosses(inputs);
  const long double lse = 1.5L + kLog2;
  ExpectNear(losses.lse[0].exact, lse);
  ExpectNear(losses.losses[0].exact, kLog2 + 0.25L * lse * lse);
  ExpectNear(reference::GradientOf(inputs, losses, 0, 0).exact, (1 + 0.5L * lse) * 0.5L * 0.5L);
  ExpectNear(reference::GradientOf(inputs, losses, 0, 1).exact, ((1 + 0.5L * lse) * 0.5L - 1) * 0.5L);
}

TEST(LossReference, SoftcapByHand) {
  // 2 tanh(z / 2) = +-1 at z = +-2 atanh(1/2) = +-log 3, where sech^2 is 3/4.
  LossInputs inputs = Flat(1);
  inputs.logits = {std::log(3.0), -std::log(3.0)};
  inputs.targets = {0};
  inputs.options.softcap = 2;
  const Losses losses = reference::EvaluateLosses(inputs);
  const long double want = std::log1p(std::exp(-2.0L));
  EXPECT_NEAR(static_cast<double>(losses.losses[0].exact), static_cast<double>(want), 1e-15);
  const long double p = 1 / (1 + std::exp(2.0L));
  EXPECT_NEAR(static_cast<double>(reference::GradientOf(inputs, losses, 0, 1).exact), static_cast<double>(p * 0.75L),
              1e-15);
}

TEST(LossReference, ProbabilityTargetsByHand) {
  LossInputs inputs = Flat(2);
  inputs.targets.clear();
  inputs.target_probs = {0.25, 0.5, 1, 0};
  inputs.class_weights = {2, 1};
  Losses losses = reference::EvaluateLosses(inputs);
  ExpectNear(losses.losses[0].exact, kLog2);
  ExpectNear(losses.losses[1].exact, 2 * kLog2);
  ExpectNear(losses.loss.exact, 1.5L * kLog2);  // over the rows, not the weights
  EXPECT_TRUE(std::isnan(losses.perplexity));
  EXPECT_EQ(reference::GradientOf(inputs, losses, 0, 0).exact, 0);  // Q = 1
  ExpectNear(reference::GradientOf(inputs, losses, 1, 0).exact, (2 * 0.5L - 2) / 2);
  ExpectNear(reference::TargetGradientOf(inputs, losses, 0, 0).exact, kLog2);
  inputs.options.label_smoothing = 0.5;
  losses = reference::EvaluateLosses(inputs);
  ExpectNear(losses.losses[0].exact, (2 * 0.375L + 0.5L) * kLog2);
  ExpectNear(reference::TargetGradientOf(inputs, losses, 0, 0).exact, 0.5L * kLog2);
}

TEST(LossReference, StatisticsByHand) {
  LossInputs inputs;
  inputs.dtype = XENT_F64;
  inputs.rows = 3;
  inputs.cols = 5;
  const double inf = std::numeric_limits<double>::infinity();
  inputs.logits = {1, 2, 2, -inf, 99, 0, 0, 0, 0, 99, -inf, -inf, -inf, -inf, 99};
  inputs.targets = {2, -100, 0};
  inputs.options.valid_cols = 4;
  const Losses losses = reference::EvaluateLosses(inputs);
  const auto of = [&](int64_t i, const LossInputs &in) {
    return reference::StatisticsOf(in, reference::EvaluateLosses(in), i, 3, {3, 1});
  };
  reference::RowStatistics s = of(0, inputs);
  EXPECT_EQ(s.argmax, 1);
  EXPECT_EQ(s.rank, 1);
  EXPECT_FALSE(s.hit);
  EXPECT_EQ(s.topk_indices, (std::vector<int64_t>{1, 2, 0}));
  const long double lse = std::log(std::exp(1.0L) + 2 * std::exp(2.0L));
  EXPECT_NEAR(static_cast<double>(s.logprob.exact), static_cast<double>(2 - lse), 1e-15);
  EXPECT_NEAR(static_cast<double>(s.topk_logprobs[2].exact), static_cast<double>(1 - lse), 1e-15);
  EXPECT_EQ(s.gathered[0].exact, -inf);
  const long double p = std::exp(2 - lse);
  EXPECT_NEAR(static_cast<double>(s.entropy.exact), static_cast<double>(lse - 4 * p - (1 - 2 * p)), 1e-14);
  s = of(1, inputs);  // ignored
  EXPECT_EQ(s.argmax, -1);
  EXPECT_EQ(s.rank, -1);
  EXPECT_EQ(s.entropy.exact, 0);
  EXPECT_EQ(s.topk_indices, (std::vector<int64_t>{-1, -1, -1}));
  LossInputs all = inputs;
  all.of_ignored = true;
  s = of(1, all);
  EXPECT_EQ(s.argmax, 0);
  EXPECT_EQ(s.rank, -1);
  EXPECT_EQ(s.logprob.exact, 0);
  ExpectNear(s.entropy.exact, std::log(4.0L));
  ExpectNear(reference::EvaluateLosses(all).lse[1].exact, std::log(4.0L));
  s = of(2, inputs);  // -inf throughout
  EXPECT_EQ(s.argmax, -1);
  EXPECT_EQ(s.rank, -1);
  EXPECT_TRUE(std::isnan(s.entropy.exact));
  EXPECT_TRUE(std::isnan(s.logprob.exact));
  EXPECT_TRUE(std::isnan(s.gathered[1].exact));
}

TEST(LossReference, GoldenNumbersOfSemantics) {
  LossInputs inputs;
  inputs.dtype = XENT_F64;
  inputs.rows = 1;
  inputs.cols = 5;
  inputs.logits = {2.0, 1.2, 0.3, -0.8, -2.0};
  inputs.targets = {0};
  EXPECT_NEAR(static_cast<double>(reference::EvaluateLosses(inputs).loss.exact), 0.5372, 5e-5);
  inputs.options.label_smoothing = 0.1;
  EXPECT_NEAR(static_cast<double>(reference::EvaluateLosses(inputs).loss.exact), 0.72316, 5e-6);
  inputs.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
  EXPECT_NEAR(static_cast<double>(reference::EvaluateLosses(inputs).loss.exact), 0.76966, 5e-6);
}

TEST(LossReference, CoefficientsOfZeroBeatInfinity) {
  const double inf = std::numeric_limits<double>::infinity();
  LossInputs inputs = Flat(1);
  inputs.logits = {0, -inf};
  EXPECT_EQ(reference::EvaluateLosses(inputs).losses[0].exact, inf);
  inputs.class_weights = {1, 0};
  EXPECT_EQ(reference::EvaluateLosses(inputs).losses[0].exact, 0);
  inputs.class_weights.clear();
  inputs.row_weights = {0};
  EXPECT_EQ(reference::EvaluateLosses(inputs).losses[0].exact, 0);
  inputs.logits = {0, inf};
  EXPECT_TRUE(std::isnan(reference::EvaluateLosses(inputs).losses[0].exact));
}

}  // namespace
}  // namespace xent::test
