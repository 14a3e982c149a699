// Sweeps over float32 bit patterns; see sweep.h.
#include "testing/sweep.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "reference/number.h"
#include "xent/xent.h"

namespace xent::test {
namespace {

using reference::Function;

constexpr double kWrong = std::numeric_limits<double>::infinity();

template <Function kFunction>
double Libm(double x) {
  switch (kFunction) {
    case Function::kExp:
      return std::exp(x);
    case Function::kLog:
      return std::log(x);
    case Function::kLog1p:
      return std::log1p(x);
  }
}

template <Function kFunction>
xent_status Call(const float *x, float *y, int64_t n) {
  switch (kFunction) {
    case Function::kExp:
      return xent_exp_f32(x, y, n);
    case Function::kLog:
      return xent_log_f32(x, y, n);
    case Function::kLog1p:
      return xent_log1p_f32(x, y, n);
  }
}

// One over the ULP of a float at |value|: subnormal numbers have that of the smallest normal one.
double OneOverUlp(double value) {
  const int field = static_cast<int>(std::bit_cast<uint64_t>(value) >> 52) & 0x7ff;
  const int exponent = std::max(field - 1023, -126);
  return std::bit_cast<double>(static_cast<uint64_t>(1023 + 23 - exponent) << 52);
}

double Error(double want, uint32_t got_bits) {
  if (std::isnan(want)) return got_bits == reference::CanonicalNanBits(XENT_F32) ? 0 : kWrong;
  const float got = std::bit_cast<float>(got_bits);
  const double magnitude = std::fabs(want);
  if (magnitude == 0 && want == 0) {
    // log(1), log1p(+-0) and exp's deepest underflow: the very bits, sign included.
    return got_bits == std::bit_cast<uint32_t>(static_cast<float>(want)) ? 0 : kWrong;
  }
  if (std::isinf(want)) return got == want ? 0 : kWrong;
  if (std::isnan(got)) return kWrong;
  if (std::isinf(got)) {
    // Infinity stands for everything from half a step past the largest float on.
    if (std::signbit(got) != std::signbit(want)) return kWrong;
    return std::max(0.0, 0x1.ffffffp+127 - magnitude) * OneOverUlp(want);
  }
  return std::fabs(static_cast<double>(got) - want) * OneOverUlp(want);
}

template <Function kFunction>
SweepResult SweepPart(uint64_t first, uint64_t end, uint64_t stride) {
  constexpr size_t kBatch = 4096;
  std::vector<uint32_t> inputs(kBatch);
  std::vector<float> values(kBatch);
  SweepResult result;
  for (uint64_t bits = first; bits < end;) {
    size_t n = 0;
    for (; n < kBatch && bits < end; ++n, bits += stride) inputs[n] = static_cast<uint32_t>(bits);
    std::memcpy(values.data(), inputs.data(), n * sizeof(float));
    if (Call<kFunction>(values.data(), values.data(), static_cast<int64_t>(n)) != XENT_OK) {
      result.worst = kWrong;
      return result;
    }
    for (size_t k = 0; k < n; ++k) {
      const uint32_t got = std::bit_cast<uint32_t>(values[k]);
      const double error = Error(Libm<kFunction>(static_cast<double>(std::bit_cast<float>(inputs[k]))), got);
      if (error > result.worst) {
        result.worst = error;
        result.input = inputs[k];
        result.got = got;
      }
    }
    result.visited += static_cast<int64_t>(n);
  }
  return result;
}

template <Function kFunction>
SweepResult SweepOnThreads(uint64_t first, uint64_t end, uint64_t stride) {
  // Half of the steps each: for the complete sweep one sign.
  const uint64_t steps = (end - first + stride - 1) / stride;
  const uint64_t middle = first + steps / 2 * stride;
  SweepResult upper;
  std::thread helper([&] { upper = SweepPart<kFunction>(middle, end, stride); });
  SweepResult result = SweepPart<kFunction>(first, middle, stride);
  helper.join();
  const int64_t visited = result.visited + upper.visited;
  if (upper.worst > result.worst) result = upper;
  result.visited = visited;
  result.exact = reference::ErrorInUlp(kFunction, XENT_F32, std::bit_cast<float>(result.input), result.got);
  return result;
}

}  // namespace

std::string SweepResult::Describe(Function function) const {
  char text[320];
  const double x = std::bit_cast<float>(input);
  std::snprintf(
      text, sizeof(text), "%s: %lld floats, worst input %.9g (%a, 0x%08x) got %.9g (0x%08x) want %s: %.7f ULP",
      reference::NameOf(function), static_cast<long long>(visited), x, x, input,
      static_cast<double>(std::bit_cast<float>(got)), got, reference::ExactDigits(function, x).c_str(), exact);
  return text;
}

SweepResult Sweep(Function function, uint64_t first, uint64_t end, uint64_t stride) {
  switch (function) {
    case Function::kExp:
      return SweepOnThreads<Function::kExp>(first, end, stride);
    case Function::kLog:
      return SweepOnThreads<Function::kLog>(first, end, stride);
    case Function::kLog1p:
      return SweepOnThreads<Function::kLog1p>(first, end, stride);
  }
  return {};
}

}  // namespace xent::test
