// The oracle itself (reference/rows.h, and what losses.h makes of it without options), against MPFR with 600 bits on
// rows where long double might not be enough: it must be right to 2^-55, far below the bounds that it judges. And the
// judge (reference/number.h) on numbers whose error is known.
#include <gtest/gtest.h>
#include <mpfr.h>

#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "reference/losses.h"
#include "reference/number.h"
#include "reference/rows.h"
#include "testing/data.h"

namespace xent::test {
namespace {

using reference::ErrorInUlp;
using reference::Row;
using reference::Value;

class Real {
 public:
  Real() { mpfr_init2(value_, 600); }
  ~Real() { mpfr_clear(value_); }
  Real(const Real &) = delete;
  Real &operator=(const Real &) = delete;
  operator mpfr_ptr() { return value_; }

 private:
  mpfr_t value_;
};

void ExpectNear(long double got, mpfr_ptr want, const std::string &what) {
  Real error;
  mpfr_set_ld(error, got, MPFR_RNDN);
  mpfr_sub(error, error, want, MPFR_RNDN);
  mpfr_div(error, error, want, MPFR_RNDN);
  const double relative = mpfr_zero_p(want) != 0 ? static_cast<double>(got) : mpfr_get_d(error, MPFR_RNDA);
  EXPECT_LE(std::fabs(relative), 0x1p-55)
      << what << " is " << static_cast<double>(got) << " instead of " << mpfr_get_d(want, MPFR_RNDN);
}

// One row with its target and these options, reduction none.
reference::LossInputs InputsOf(const std::vector<double> &logits, int64_t target, double smoothing = 0,
                               xent_smoothing kind = XENT_SMOOTHING_UNIFORM) {
  reference::LossInputs inputs;
  inputs.dtype = XENT_F64;
  inputs.rows = 1;
  inputs.cols = static_cast<int64_t>(logits.size());
  inputs.logits = logits;
  inputs.targets = {target};
  inputs.options.label_smoothing = smoothing;
  inputs.options.smoothing = kind;
  inputs.options.reduction.kind = XENT_REDUCTION_NONE;
  return inputs;
}

// Every output of one row, formed with 600 bits from the definitions: nothing here needs to avoid cancellation.
void ExpectRowRight(const std::vector<double> &logits, int64_t target, const std::string &name) {
  const int64_t cols = static_cast<int64_t>(logits.size());
  const Row row(logits, target);
  std::vector<std::unique_ptr<Real>> exponentials;
  Real total, others, term, want, lse;
  mpfr_set_ui(total, 0, MPFR_RNDN);
  mpfr_set_ui(others, 0, MPFR_RNDN);
  for (int64_t j = 0; j < cols; ++j) {
    exponentials.push_back(std::make_unique<Real>());
    mpfr_set_d(term, logits[static_cast<size_t>(j)], MPFR_RNDN);
    mpfr_exp(*exponentials.back(), term, MPFR_RNDN);
    mpfr_add(total, total, *exponentials.back(), MPFR_RNDN);
    if (j != target) mpfr_add(others, others, *exponentials.back(), MPFR_RNDN);
  }
  mpfr_log(lse, total, MPFR_RNDN);
  // lse may cross 0, so it is compared at its own scale.
  mpfr_set_ld(want, row.LogSumExp().exact, MPFR_RNDN);
  mpfr_sub(want, want, lse, MPFR_RNDN);
  EXPECT_LE(std::fabs(mpfr_get_d(want, MPFR_RNDN)), 0x1p-60 * static_cast<double>(row.LogSumExp().scale)) << name;

  const reference::LossInputs plain_inputs = InputsOf(logits, target);
  const reference::LossRow plain(plain_inputs, 0);
  const reference::LossInputs uniform_inputs = InputsOf(logits, target, 0.25);
  const reference::LossRow uniform(uniform_inputs, 0);
  const reference::LossInputs exclusive_inputs = InputsOf(logits, target, 0.25, XENT_SMOOTHING_EXCLUSIVE);
  const reference::LossRow exclusive(exclusive_inputs, 0);

  mpfr_sub_d(want, lse, logits[static_cast<size_t>(target)], MPFR_RNDN);
  ExpectNear(plain.NegativeLogLikelihood().exact, want, name + " nll");
  ExpectNear(plain.Loss().exact, want, name + " loss");
  for (const bool is_exclusive : {false, true}) {
    Real sum, loss;
    mpfr_set_ui(sum, 0, MPFR_RNDN);
    for (int64_t c = 0; c < cols; ++c) {
      if (is_exclusive && c == target) continue;
      mpfr_sub_d(term, lse, logits[static_cast<size_t>(c)], MPFR_RNDN);
      mpfr_add(sum, sum, term, MPFR_RNDN);
    }
    mpfr_mul_d(sum, sum, 0.25, MPFR_RNDN);
    mpfr_div_ui(sum, sum, static_cast<unsigned long>(is_exclusive ? cols - 1 : cols), MPFR_RNDN);
    mpfr_mul_d(loss, want, 0.75, MPFR_RNDN);
    mpfr_add(loss, loss, sum, MPFR_RNDN);
    ExpectNear((is_exclusive ? exclusive : uniform).Loss().exact, loss, name + " smoothed loss");
  }
  for (int64_t j = 0; j < cols; ++j) {
    Real p;
    mpfr_div(p, *exponentials[static_cast<size_t>(j)], total, MPFR_RNDN);
    ExpectNear(row.Softmax(j).exact, p, name + " softmax");
    mpfr_sub_d(term, lse, logits[static_cast<size_t>(j)], MPFR_RNDN);
    mpfr_neg(term, term, MPFR_RNDN);
    ExpectNear(row.LogSoftmax(j).exact, term, name + " log_softmax");
    if (j == target) {
      mpfr_div(term, others, total, MPFR_RNDN);
      mpfr_neg(term, term, MPFR_RNDN);
    } else {
      mpfr_set(term, p, MPFR_RNDN);
    }
    mpfr_mul_d(term, term, -0.375, MPFR_RNDN);
    ExpectNear(plain.Gradient(j, -0.375L).exact, term, name + " gradient");
    // With smoothing the terms may cancel: compared at the larger of them.
    for (const bool is_exclusive : {false, true}) {
      const Value got = (is_exclusive ? exclusive : uniform).Gradient(j, 1);
      Real y;
      mpfr_set_d(y, 0.25, MPFR_RNDN);
      mpfr_div_ui(y, y, static_cast<unsigned long>(is_exclusive ? cols - 1 : cols), MPFR_RNDN);
      if (j == target && is_exclusive) mpfr_set_ui(y, 0, MPFR_RNDN);
      if (j == target) mpfr_add_d(y, y, 0.75, MPFR_RNDN);
      mpfr_sub(term, p, y, MPFR_RNDN);
      mpfr_set_ld(want, got.exact, MPFR_RNDN);
      mpfr_sub(want, want, term, MPFR_RNDN);
      EXPECT_LE(std::fabs(mpfr_get_d(want, MPFR_RNDN)), 0x1p-60 * static_cast<double>(got.scale)) << name;
      EXPECT_GE(static_cast<double>(got.scale), mpfr_get_d(y, MPFR_RNDN) * (1 - 0x1p-50)) << name;
    }
  }
}

TEST(Reference, RowsAgreeWithMpfr) {
  Random random(1);
  for (const int64_t cols : {2, 3, 10, 200}) {
    for (const double margin : {0.0, 3.0, 40.0, 88.0, 350.0, -5.0, -350.0}) {
      for (const double center : {0.0, 300.0, -1e4, 0x1p20}) {
        std::vector<double> logits;
        for (int64_t j = 0; j < cols; ++j) logits.push_back(center + random.Normal(2));
        const int64_t target = cols / 2;
        logits[static_cast<size_t>(target)] += margin;
        ExpectRowRight(
            logits, target,
            std::to_string(cols) + " columns, margin " + std::to_string(margin) + ", center " + std::to_string(center));
      }
    }
  }
  ExpectRowRight({0.5, 0.5, 0.5}, 1, "ties");
  ExpectRowRight({-1e308, 0, 700}, 1, "far apart");
}

TEST(Reference, ConfidentRowOfSemantics) {
  // A target 88 above 262143 equal others: 262143 * exp(-88) = 1.587e-33.
  std::vector<double> logits(262144, 0);
  logits[77] = 88;
  const reference::LossInputs inputs = InputsOf(logits, 77);
  const long double loss = reference::LossRow(inputs, 0).Loss().exact;
  EXPECT_NEAR(static_cast<double>(loss / (262143 * std::exp(-88.0L))), 1, 1e-15);
  EXPECT_NEAR(static_cast<double>(loss), 1.6e-33, 0.05e-33);
}

TEST(Reference, MinusInfinityAndZeroCoefficients) {
  const double kInfinity = std::numeric_limits<double>::infinity();
  const auto loss = [](const reference::LossInputs &inputs) {
    return static_cast<double>(reference::LossRow(inputs, 0).Loss().exact);
  };
  EXPECT_EQ(loss(InputsOf({0, -kInfinity}, 0)), 0);
  EXPECT_EQ(loss(InputsOf({0, -kInfinity}, 0, 0.1)), kInfinity);
  EXPECT_EQ(loss(InputsOf({-kInfinity, 1, 1}, 0)), kInfinity);
  // All of the mass on the others: the target's term has the coefficient 0 and is 0, not 0 * infinity.
  EXPECT_NEAR(loss(InputsOf({-kInfinity, 1, 1}, 0, 1, XENT_SMOOTHING_EXCLUSIVE)), std::log(2.0), 1e-15);
}

TEST(Reference, RowsOfInfinitiesAndNan) {
  const double kInfinity = std::numeric_limits<double>::infinity();
  const double kNan = std::numeric_limits<double>::quiet_NaN();
  const auto lse = [](const std::vector<double> &logits) { return Row(logits).LogSumExp().exact; };
  EXPECT_EQ(lse({1, kInfinity}), kInfinity);
  EXPECT_EQ(lse({-kInfinity, -kInfinity}), -kInfinity);
  EXPECT_TRUE(std::isnan(lse({kInfinity, kNan})));
  EXPECT_TRUE(std::isnan(lse({kNan, -kInfinity, 0})));
  EXPECT_TRUE(std::isnan(Row(std::vector<double>{1, kInfinity}).Softmax(0).exact));
  // The loss of such a row is NaN, whatever a softcap makes of the infinity.
  for (const double cap : {0.0, 3.0}) {
    for (const std::vector<double> &logits : {std::vector<double>{1, kInfinity}, {kNan, 1}, {-kInfinity, -kInfinity}}) {
      reference::LossInputs inputs = InputsOf(logits, 0);
      inputs.options.softcap = cap;
      EXPECT_TRUE(std::isnan(reference::LossRow(inputs, 0).Loss().exact));
      EXPECT_TRUE(std::isnan(reference::LossRow(inputs, 0).Lse().exact));
    }
  }
}

// xent.h: p below 2^-198, in float64 2^-1532, counts as 0 in lanes of the arithmetic type, below 2^-1022 in double
// lanes.
TEST(Reference, SmallProbabilitiesMayBeZero) {
  for (const xent_dtype dtype : {XENT_F32, XENT_F64}) {
    const long double border = dtype == XENT_F32 ? 198 : 1532;
    for (const bool beyond : {false, true}) {
      const double margin = static_cast<double>((border + (beyond ? 0.01L : -0.01L)) * std::log(2.0L));
      reference::LossInputs inputs = InputsOf({0, -margin}, 0);
      inputs.dtype = dtype;
      EXPECT_EQ(reference::LossRow(inputs, 0).Gradient(1, 1e30L).may_be_zero, beyond);
      // 1 - p of the target is as small.
      EXPECT_EQ(reference::LossRow(inputs, 0).Gradient(0, 1e30L).may_be_zero, beyond);
      EXPECT_EQ(reference::LossRow(inputs, 0).Gradient(1, 1e30L).slack, 0);
      inputs.inner = 2;  // double lanes, for the reference: they keep as much as those of float64
      EXPECT_EQ(reference::LossRow(inputs, 0).Gradient(1, 1e30L).may_be_zero, beyond && dtype == XENT_F64);
      // A label's share is no probability: it must not vanish.
      inputs.inner = 1;
      inputs.options.label_smoothing = 0.1;
      EXPECT_FALSE(reference::LossRow(inputs, 0).Gradient(1, 1e30L).may_be_zero);
    }
  }
}

TEST(Judge, CountsUlpOfTheArithmeticType) {
  float value = 1.0f + 0x1p-22f;
  EXPECT_EQ(ErrorInUlp(XENT_F32, &value, 0, {1, 1}), 2);
  // Counted at another magnitude.
  EXPECT_EQ(ErrorInUlp(XENT_F32, &value, 0, {1, 4}), 0.5);
  double wide = 1.0 - 0x1p-53;
  EXPECT_EQ(ErrorInUlp(XENT_F64, &wide, 0, {1, 1}), 0.5);
  // A bfloat16 stands for all that rounds to it: 1 is right for 1 + 2^-9, and one ULP of float32 further is one ULP
  // off.
  uint16_t half = 0x3f80;
  EXPECT_EQ(ErrorInUlp(XENT_BF16, &half, 0, {1 + 0x1p-9L, 1}), 0);
  EXPECT_EQ(ErrorInUlp(XENT_BF16, &half, 0, {1 + 0x1p-8L + 0x1p-23L, 1}), 1);
  half = 0x3c00;
  EXPECT_EQ(ErrorInUlp(XENT_F16, &half, 0, {1 + 0x1p-11L + 0x1p-22L, 1}), 2);
}

TEST(Judge, KnowsTheSpacingOfFloats) {
  const std::pair<long double, long double> kPairs[] = {{1, 0x1p-23L},
                                                        {0x1p-64L * -3, 0x1p-86L},
                                                        {2 - 0x1p-60L, 0x1p-23L},
                                                        {2, 0x1p-22L},
                                                        {0, 0x1p-149L},
                                                        {0x1p-127L, 0x1p-149L},
                                                        {0x1p-126L, 0x1p-149L},
                                                        {1e-4000L, 0x1p-149L},
                                                        {0x1.9p-125L, 0x1p-148L},
                                                        {3e38L, 0x1p104L},
                                                        {0x1p128L - 0x1p70L, 0x1p104L},
                                                        {6e38L, 0x1p105L}};
  for (const auto &[value, ulp] : kPairs) {
    EXPECT_EQ(reference::UlpAt(XENT_F32, value), ulp) << static_cast<double>(value);
  }
  EXPECT_EQ(reference::UlpAt(XENT_F64, 1 - 0x1p-60L), 0x1p-53L);
  EXPECT_EQ(reference::UlpAt(XENT_F64, 0), 0x1p-1074L);
}

TEST(Numbers, EndsOfTheRangesAreThoseOfTheFormats) {
  for (const xent_dtype dtype : kDtypes) {
    EXPECT_EQ(reference::SmallestNormal(dtype), std::ldexp(1.0L, reference::FormatOf(dtype).min_exponent));
    EXPECT_EQ(reference::PastLargest(dtype), std::ldexp(1.0L, reference::FormatOf(dtype).max_exponent + 1));
  }
}

TEST(Judge, NeverLetsNanOrInfinityPass) {
  const double kInfinity = std::numeric_limits<double>::infinity();
  const long double kNan = std::numeric_limits<long double>::quiet_NaN();
  const auto error = [](uint32_t bits, long double want) { return ErrorInUlp(XENT_F32, &bits, 0, {want, want}); };
  EXPECT_EQ(error(0x7fc00000, kNan), 0);
  EXPECT_EQ(error(0xffc00000, kNan), kInfinity);
  EXPECT_EQ(error(0x7fc00001, kNan), kInfinity);
  EXPECT_EQ(error(0x3f800000, kNan), kInfinity);
  EXPECT_EQ(error(0x7fc00000, 1), kInfinity);
  EXPECT_EQ(error(0x7f800000, kInfinity), 0);
  EXPECT_EQ(error(0xff800000, kInfinity), kInfinity);
  EXPECT_GT(error(0x7f800000, 1), 1e6);
  EXPECT_EQ(error(0x7f800000, 6e38L), 0);
  EXPECT_GT(error(0x7f7fffff, 6e38L), 1e6);
}

TEST(Judge, ForgivesZeroWhereItMayBeAndInfiniteMagnitudesNothing) {
  const auto error = [](float got, Value want) { return ErrorInUlp(XENT_F32, &got, 0, want); };
  const long double infinity = std::numeric_limits<long double>::infinity();
  EXPECT_EQ(error(0, {1, 1, 0, true}), 0);
  EXPECT_GT(error(0, {1, 1}), 1e6);
  EXPECT_GT(error(1e-30f, {1, 1, 0, true}), 1e6);
  EXPECT_TRUE(std::isinf(error(1, {0, infinity})));
  EXPECT_EQ(error(0, {0, infinity}), 0);
  EXPECT_TRUE(std::isinf(error(1, {0, std::numeric_limits<long double>::quiet_NaN()})));
}

TEST(Judge, TakesZeroForWhatIsTooSmallAndNothingElse) {
  const auto error = [](uint32_t bits, long double want) { return ErrorInUlp(XENT_F32, &bits, 0, {want, want}); };
  EXPECT_EQ(error(0, 1e-40L), 0);
  EXPECT_EQ(error(0, 0x1p-126L), 0);
  EXPECT_EQ(error(0, 0x1p-126L * (1 + 0x1p-23L)), 1);
  // Subnormal numbers are not stored, however near.
  EXPECT_TRUE(std::isinf(error(0x00400000, 0x1p-127L)));
  EXPECT_GT(error(0, 1e-30L), 1e6);
}

TEST(Numbers, HalfPrecisionCodesRoundTripAndRoundToEven) {
  for (const xent_dtype dtype : {XENT_BF16, XENT_F16}) {
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
      const double value = reference::Decode(dtype, bits);
      if (std::isnan(value)) continue;
      ASSERT_EQ(reference::Encode(dtype, value), bits) << reference::NameOf(dtype);
    }
  }
  EXPECT_EQ(reference::Encode(XENT_BF16, 1 + 0x1p-8), 0x3f80u);
  EXPECT_EQ(reference::Encode(XENT_BF16, 1 + 3 * 0x1p-8), 0x3f82u);
  EXPECT_EQ(reference::Encode(XENT_F16, 65519.0), 0x7bffu);
  EXPECT_EQ(reference::Encode(XENT_F16, 65520.0), 0x7c00u);
  EXPECT_EQ(reference::Encode(XENT_F16, 0x1p-25), 0u);
  EXPECT_EQ(reference::Encode(XENT_F16, 0x1.000001p-25), 1u);
  EXPECT_EQ(reference::Encode(XENT_BF16, 1e300), 0x7f80u);
  EXPECT_EQ(std::bit_cast<float>(static_cast<uint32_t>(reference::Encode(XENT_F32, -1.7))), -1.7f);
}

}  // namespace
}  // namespace xent::test
