// The array functions exp, log and log1p of both types on every target: float64 against MPFR, special values, lengths
// around the lane counts at odd addresses, in place, and the refusals.
#include "reference/functions.h"

#include <gtest/gtest.h>

#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "reference/number.h"
#include "testing/bounds.h"
#include "testing/data.h"
#include "testing/target.h"
#include "xent/xent.h"

namespace xent::test {
namespace {

using reference::Function;

constexpr Function kFunctions[] = {Function::kExp, Function::kLog, Function::kLog1p};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

xent_status Call(Function function, xent_dtype type, const void *x, void *y, int64_t n) {
  const auto call = [&](auto f32, auto f64) {
    return type == XENT_F32 ? f32(static_cast<const float *>(x), static_cast<float *>(y), n)
                            : f64(static_cast<const double *>(x), static_cast<double *>(y), n);
  };
  switch (function) {
    case Function::kExp:
      return call(xent_exp_f32, xent_exp_f64);
    case Function::kLog:
      return call(xent_log_f32, xent_log_f64);
    case Function::kLog1p:
      return call(xent_log1p_f32, xent_log1p_f64);
  }
  return XENT_INVALID_ARGUMENT;
}

long double LibmLong(Function function, double x) {
  switch (function) {
    case Function::kExp:
      return std::exp(static_cast<long double>(x));
    case Function::kLog:
      return std::log(static_cast<long double>(x));
    case Function::kLog1p:
      return std::log1p(static_cast<long double>(x));
  }
  return 0;
}

// One argument of float64: over the whole range of bit patterns, over the range where results are ordinary, and near
// the function's own difficult places.
double Argument(Function function, Random &random) {
  const double u = random.Uniform();
  switch (random.Below(4)) {
    case 0:
      return std::bit_cast<double>(random.Next());
    case 1:
      return function == Function::kExp ? -745.2 + u * (745.2 + 709.8)
                                        : std::ldexp(1 + u, static_cast<int>(random.Below(2098)) - 1074);
    case 2:
      // Around exp(0) = 1, log(1) = 0, log1p(0) = 0.
      return (function == Function::kLog ? 1 : 0) + (u - 0.5) * std::ldexp(1.0, static_cast<int>(-random.Below(60)));
    default:
      // The middle: single-digit results.
      return function == Function::kExp ? (u - 0.5) * 4 : (function == Function::kLog ? 0.4 + 2 * u : 2 * u - 0.99);
  }
}

class Float64 : public TargetTest {
 protected:
  // Judges against libm's long double, and against MPFR what comes near the worst. Where long double has 113 bits it is
  // computed in software, so fewer arguments must do.
  void ExpectWithinBound(Function function, uint64_t seed) {
    constexpr int64_t kCount = LDBL_MANT_DIG > 64 ? 40000 : 400000;
    Random random(seed);
    std::vector<double> x(kCount);
    for (double &value : x) value = Argument(function, random);
    std::vector<double> y(kCount);
    ASSERT_EQ(Call(function, XENT_F64, x.data(), y.data(), kCount), XENT_OK);
    double worst = -1;
    int64_t at = 0;
    for (int64_t k = 0; k < kCount; ++k) {
      const long double want = LibmLong(function, x[k]);
      const double rough = reference::ErrorInUlp(XENT_F64, &y[k], 0, {want, want}, reference::Tiny::kKept);
      // Long double's own error (1 ULP of 64 bits) is 2^-11 ULP of a double.
      if (rough < worst - 0x1p-9) continue;
      const double error = reference::ErrorInUlp(function, XENT_F64, x[k], std::bit_cast<uint64_t>(y[k]));
      if (error <= worst) continue;
      worst = error;
      at = k;
    }
    char text[200];
    std::snprintf(text, sizeof(text),
                  "%s float64: worst of %lld arguments %a got %a want %s: %.5f ULP, seed %llu, target %s",
                  reference::NameOf(function), static_cast<long long>(kCount), x[at], y[at],
                  reference::ExactDigits(function, x[at]).c_str(), worst, static_cast<unsigned long long>(seed),
                  GetParam().c_str());
    std::printf("%s\n", text);
    EXPECT_LE(worst, kArrayUlp) << text;
  }
};
XENT_INSTANTIATE_TARGETS(Float64);

TEST_P(Float64, Exp) { ExpectWithinBound(Function::kExp, 101); }
TEST_P(Float64, Log) { ExpectWithinBound(Function::kLog, 102); }
TEST_P(Float64, Log1p) { ExpectWithinBound(Function::kLog1p, 103); }

TEST_P(Float64, EveryPowerOfTwoAndItsNeighbours) {
  for (const Function function : kFunctions) {
    std::vector<double> x;
    for (int exponent = -1074; exponent <= 1023; ++exponent) {
      for (const double sign : {1.0, -1.0}) {
        const double power = std::ldexp(sign, exponent);
        for (const double value : {std::nextafter(power, 0.0), power, std::nextafter(power, sign * kInfinity)}) {
          x.push_back(value);
        }
      }
    }
    // The last arguments of exp before overflow, subnormal results and zero; of log1p near -1.
    for (const double center : {709.782712893384, -708.3964185322641, -745.1332191019412, -1.0, 1.0}) {
      double value = center;
      for (int k = 0; k < 50; ++k) x.push_back(value = std::nextafter(value, -kInfinity));
      value = center;
      for (int k = 0; k < 50; ++k) x.push_back(value = std::nextafter(value, kInfinity));
    }
    std::vector<double> y(x.size());
    ASSERT_EQ(Call(function, XENT_F64, x.data(), y.data(), static_cast<int64_t>(x.size())), XENT_OK);
    double worst = -1;
    size_t at = 0;
    for (size_t k = 0; k < x.size(); ++k) {
      const double error = reference::ErrorInUlp(function, XENT_F64, x[k], std::bit_cast<uint64_t>(y[k]));
      if (error > worst) {
        worst = error;
        at = k;
      }
    }
    EXPECT_LE(worst, kArrayUlp) << reference::NameOf(function) << "(" << x[at] << ") got " << y[at] << " want "
                                << reference::ExactDigits(function, x[at]) << ", target " << GetParam();
  }
}

class ArrayFunctions : public TargetTest {};
XENT_INSTANTIATE_TARGETS(ArrayFunctions);

// Bits of arguments and results that are decided by rule.
struct Special {
  double argument;
  double want;
};

TEST_P(ArrayFunctions, SpecialValues) {
  const double kNan = std::numeric_limits<double>::quiet_NaN();
  const struct {
    Function function;
    std::vector<Special> cases;
  } kTables[] = {
      {Function::kExp, {{-kInfinity, 0}, {kInfinity, kInfinity}, {0.0, 1}, {-0.0, 1}, {1e4, kInfinity}, {-1e4, 0}}},
      {Function::kLog,
       {{0.0, -kInfinity},
        {-0.0, -kInfinity},
        {1, 0.0},
        {-1, kNan},
        {-1e-40, kNan},
        {-kInfinity, kNan},
        {kInfinity, kInfinity}}},
      {Function::kLog1p,
       {{0.0, 0.0},
        {-0.0, -0.0},
        {-1, -kInfinity},
        {-1.5, kNan},
        {-1e30, kNan},
        {-kInfinity, kNan},
        {kInfinity, kInfinity}}},
  };
  for (const xent_dtype type : {XENT_F32, XENT_F64}) {
    for (const auto &[function, cases] : kTables) {
      for (const Special &special : cases) {
        // At every position of a short array, so that full vectors and tails meet it; the neighbours are ordinary.
        constexpr int64_t kLength = 37;
        for (int64_t place = 0; place < kLength; ++place) {
          Matrix x(type, 1, kLength);
          Matrix y(type, 1, kLength);
          for (int64_t k = 0; k < kLength; ++k) x.Set(0, k, 0.5);
          x.Set(0, place, special.argument);
          ASSERT_EQ(Call(function, type, x.data(), y.data(), kLength), XENT_OK);
          ASSERT_EQ(y.GetBits(0, place), reference::Encode(type, special.want))
              << reference::NameOf(function) << "(" << special.argument << ") " << reference::NameOf(type) << " at "
              << place << " is " << y.Get(0, place) << ", target " << GetParam();
          const int64_t neighbour = place == 0 ? 1 : place - 1;
          ASSERT_LE(reference::ErrorInUlp(function, type, 0.5, y.GetBits(0, neighbour)), kArrayUlp) << place;
        }
      }
    }
  }
}

TEST_P(ArrayFunctions, EveryNanBecomesTheCanonicalOne) {
  for (const xent_dtype type : {XENT_F32, XENT_F64}) {
    const uint64_t infinity = reference::InfinityBits(type);
    std::vector<uint64_t> nans;
    for (const uint64_t sign : {uint64_t{0}, reference::SignBit(type)}) {
      for (const uint64_t payload : {0x1, 0x101, 0x3fffff}) {
        nans.push_back(sign | infinity | payload);
        nans.push_back(sign | reference::CanonicalNanBits(type) | payload);
      }
      nans.push_back(sign | reference::CanonicalNanBits(type));
      nans.push_back(sign | (reference::SignBit(type) - 1));
    }
    for (const Function function : kFunctions) {
      for (const int64_t length : {1, 5, 16, 33}) {
        for (const uint64_t bits : nans) {
          Matrix x(type, 1, length);
          Matrix y(type, 1, length);
          for (int64_t k = 0; k < length; ++k) x.SetBits(0, k, bits);
          ASSERT_EQ(Call(function, type, x.data(), y.data(), length), XENT_OK);
          for (int64_t k = 0; k < length; ++k) {
            ASSERT_EQ(y.GetBits(0, k), reference::CanonicalNanBits(type))
                << reference::NameOf(function) << " of NaN 0x" << std::hex << bits << ", target " << GetParam();
          }
        }
      }
    }
  }
}

TEST_P(ArrayFunctions, LengthsAndMisalignment) {
  // Each element must have the bits that it has alone: neither the length, nor the address, nor being in place counts.
  for (const xent_dtype type : {XENT_F32, XENT_F64}) {
    for (const Function function : kFunctions) {
      constexpr int64_t kMost = 130;
      Random random(5);
      Matrix inputs(type, 1, kMost);
      Matrix alone(type, 1, kMost);
      for (int64_t k = 0; k < kMost; ++k) {
        inputs.Set(0, k, k % 11 == 3 ? -kInfinity : 3 * random.Uniform() - (function == Function::kExp ? 1.5 : 0));
        ASSERT_EQ(Call(function, type, static_cast<char *>(inputs.data()) + k * inputs.Bytes(),
                       static_cast<char *>(alone.data()) + k * alone.Bytes(), 1),
                  XENT_OK);
      }
      for (int64_t length = 0; length <= kMost; ++length) {
        for (const int64_t misalign_x : {0, 1, 3}) {
          for (const int64_t misalign_y : {0, 1}) {
            Matrix x(type, 1, length, 0, misalign_x);
            Matrix y(type, 1, length, 0, misalign_y);
            for (int64_t k = 0; k < length; ++k) x.SetBits(0, k, inputs.GetBits(0, k));
            const Matrix before = x;
            ASSERT_EQ(Call(function, type, x.data(), y.data(), length), XENT_OK);
            ASSERT_TRUE(x.PaddingIntact() && y.PaddingIntact()) << length;
            ASSERT_EQ(FirstDifference(before, x), "") << "input changed";
            ASSERT_EQ(Call(function, type, x.data(), x.data(), length), XENT_OK);
            ASSERT_TRUE(x.PaddingIntact()) << length;
            for (int64_t k = 0; k < length; ++k) {
              ASSERT_EQ(y.GetBits(0, k), alone.GetBits(0, k))
                  << reference::NameOf(function) << " " << reference::NameOf(type) << " of " << inputs.Get(0, k)
                  << ", element " << k << " of " << length << ", target " << GetParam();
              ASSERT_EQ(x.GetBits(0, k), y.GetBits(0, k)) << "in place, element " << k << " of " << length;
            }
          }
        }
      }
    }
  }
}

TEST_P(ArrayFunctions, Refusals) {
  for (const xent_dtype type : {XENT_F32, XENT_F64}) {
    for (const Function function : kFunctions) {
      Matrix x(type, 1, 4);
      Matrix y(type, 1, 4);
      const Matrix before = y;
      EXPECT_EQ(Call(function, type, x.data(), y.data(), -1), XENT_INVALID_ARGUMENT);
      EXPECT_EQ(Call(function, type, nullptr, y.data(), 4), XENT_INVALID_ARGUMENT);
      EXPECT_EQ(Call(function, type, x.data(), nullptr, 4), XENT_INVALID_ARGUMENT);
      EXPECT_EQ(Call(function, type, nullptr, nullptr, 0), XENT_OK);
      EXPECT_EQ(FirstDifference(before, y), "");
    }
  }
}

TEST_P(ArrayFunctions, SameBitsOnEveryTargetWithFusedMultiplyAdd) {
  if (!HasFusedMultiplyAdd(GetParam())) GTEST_SKIP() << GetParam() << " has no fused multiply-add";
  constexpr int64_t kCount = 100000;
  for (const xent_dtype type : {XENT_F32, XENT_F64}) {
    for (const Function function : kFunctions) {
      Random random(77);
      Matrix x(type, 1, kCount);
      for (int64_t k = 0; k < kCount; ++k) {
        x.SetBits(0, k, k % 2 == 0 ? random.Next() : reference::Encode(type, Argument(function, random)));
      }
      Matrix here(type, 1, kCount);
      ASSERT_EQ(Call(function, type, x.data(), here.data(), kCount), XENT_OK);
      for (const std::string &other : AvailableTargets()) {
        if (!HasFusedMultiplyAdd(other) || other == GetParam()) continue;
        Matrix there(type, 1, kCount);
        {
          const ScopedTarget scope(other);
          ASSERT_EQ(Call(function, type, x.data(), there.data(), kCount), XENT_OK);
        }
        EXPECT_EQ(FirstDifference(here, there), "") << reference::NameOf(function) << " " << reference::NameOf(type)
                                                    << " on " << GetParam() << " and " << other;
      }
    }
  }
}

}  // namespace
}  // namespace xent::test
