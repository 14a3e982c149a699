// Encoding of numbers, and the formulas.
#include "numbers.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace xent_cli_test {
namespace {

uint32_t BitsOfFloat(float value) { return std::bit_cast<uint32_t>(value); }

// The inputs are chosen to be representable, so cutting is exact.
uint16_t Bfloat16(double value) { return static_cast<uint16_t>(BitsOfFloat(static_cast<float>(value)) >> 16); }

double FromBfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

double FromFloat16(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return fraction != 0 ? kNan : sign * kInf;
  if (exponent == 0) return sign * std::ldexp(fraction, -24);
  return sign * std::ldexp(1024 + fraction, exponent - 25);
}

uint16_t Float16(double value) {
  if (value == 0) return 0;
  int exponent = 0;
  const double significand = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
  const auto fraction = static_cast<uint16_t>(std::ldexp(significand, 11) - 1024);
  return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | fraction);
}

}  // namespace

std::string Encode(const std::string &descr, const std::vector<double> &values) {
  std::string bytes;
  for (const double value : values) {
    if (descr == "<f8") {
      bytes += Bytes<double>({value});
    } else if (descr == "<f4") {
      bytes += Bytes<float>({static_cast<float>(value)});
    } else if (descr == "<i8") {
      bytes += Bytes<int64_t>({static_cast<int64_t>(value)});
    } else {
      bytes += Bytes<uint16_t>({descr == "<f2" ? Float16(value) : Bfloat16(value)});
    }
  }
  return bytes;
}

std::vector<double> Decode(const std::string &descr, const std::string &data) {
  std::vector<double> values;
  if (descr == "<f8") return Values<double>(data);
  if (descr == "<f4") {
    for (const float value : Values<float>(data)) values.push_back(value);
  } else if (descr == "<i8") {
    for (const int64_t value : Values<int64_t>(data)) values.push_back(static_cast<double>(value));
  } else {
    for (const uint16_t bits : Values<uint16_t>(data)) {
      values.push_back(descr == "<f2" ? FromFloat16(bits) : FromBfloat16(bits));
    }
  }
  return values;
}

std::string NpyOf(const std::string &descr, const std::vector<int64_t> &shape, const std::vector<double> &values) {
  return Npy(descr, shape, Encode(descr, values));
}

std::vector<double> NumbersIn(const std::string &path, const std::string &descr, const std::string &shape) {
  const ReadNpy npy = SplitNpy(ReadFile(path));
  EXPECT_EQ(npy.descr, descr) << path;
  EXPECT_EQ(npy.shape, shape) << path;
  return Decode(npy.descr, npy.data);
}

double ErrorInUlp(double got, long double want, int digits, int minimum_exponent) {
  const int exponent = want == 0 ? minimum_exponent : std::max(std::ilogb(want), minimum_exponent);
  const double error = static_cast<double>(std::fabs(got - want) / std::ldexp(1.0L, exponent - digits + 1));
  return std::isnan(error) ? kInf : error;
}

void ExpectClose(double got, long double want) {
  EXPECT_LE(std::fabs(got - want), 0x1p-40L * std::max(std::fabs(want), 1.0L)) << got << ", expected " << want;
}

void ExpectClose(const std::vector<double> &got, const std::vector<long double> &want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectClose(got[i], want[i]);
  }
}

std::vector<double> RandomNumbers(uint64_t seed, size_t count) {
  Random random(seed);
  std::vector<double> numbers(count);
  for (double &number : numbers) number = std::round(random.Uniform(-7.9, 7.9) * 16) / 16;
  return numbers;
}

Row RowOf(const std::vector<double> &logits, int64_t target, const RowOptions &options) {
  std::vector<double> onehot(logits.size());
  onehot[static_cast<size_t>(target)] = 1;
  Row row = RowOf(logits, onehot, options);
  row.nll = -row.log_p[static_cast<size_t>(target)];
  row.rank = std::find(row.order.begin(), row.order.end(), target) - row.order.begin();
  return row;
}

Row RowOf(const std::vector<double> &logits, const std::vector<double> &target, const RowOptions &options) {
  const size_t cols = options.valid_cols > 0 ? options.valid_cols : logits.size();
  Row row;
  row.gradient.resize(logits.size());
  std::vector<long double> z(cols), slope(cols);
  for (size_t c = 0; c < cols; ++c) {
    z[c] = options.scale * logits[c];
    slope[c] = options.scale;
    if (options.cap > 0) {
      const long double t = std::tanh(z[c] / options.cap);
      z[c] = options.cap * t;
      slope[c] *= 1 - t * t;
    }
  }
  const long double maximum = *std::max_element(z.begin(), z.end());
  long double sum = 0;
  for (const long double value : z) sum += std::exp(value - maximum);
  row.lse = maximum + std::log(sum);
  long double total = 0;
  std::vector<long double> y(cols);
  for (size_t c = 0; c < cols; ++c) {
    const long double weight = options.class_weights.empty() ? 1 : options.class_weights[c];
    const long double others = options.exclusive
                                   ? (1 - static_cast<long double>(target[c])) / static_cast<long double>(cols - 1)
                                   : 1 / static_cast<long double>(cols);
    y[c] = weight * ((1 - options.smoothing) * target[c] + options.smoothing * others);
    total += y[c];
    row.log_p.push_back(z[c] - row.lse);
    row.loss -= y[c] * row.log_p[c];
    row.entropy -= std::exp(row.log_p[c]) * row.log_p[c];
  }
  row.loss = options.weight * (row.loss + options.z_loss * row.lse * row.lse);
  for (size_t c = 0; c < cols; ++c) {
    row.gradient[c] =
        options.weight * ((total + 2 * options.z_loss * row.lse) * std::exp(row.log_p[c]) - y[c]) * slope[c];
  }
  row.order.resize(cols);
  std::iota(row.order.begin(), row.order.end(), 0);
  std::stable_sort(row.order.begin(), row.order.end(), [&](int64_t a, int64_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  return row;
}

std::vector<double> RowIn(const std::vector<double> &matrix, size_t cols, size_t row) {
  const auto begin = matrix.begin() + static_cast<ptrdiff_t>(row * cols);
  return {begin, begin + static_cast<ptrdiff_t>(cols)};
}

}  // namespace xent_cli_test
