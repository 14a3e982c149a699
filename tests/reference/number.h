// Numbers of the four dtypes, decoded, encoded and judged bit by bit. Shares no code with the library.
#ifndef XENT_TESTS_REFERENCE_NUMBER_H_
#define XENT_TESTS_REFERENCE_NUMBER_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "xent/xent.h"

namespace xent::reference {

// A binary format: bits of the significand with the hidden one, exponents of the smallest and the largest normal
// number, bytes.
struct Format {
  int precision;
  int min_exponent;
  int max_exponent;
  int bytes;
};

// Indexed by xent_dtype.
inline constexpr Format kFormats[] = {{24, -126, 127, 4}, {53, -1022, 1023, 8}, {8, -126, 127, 2}, {11, -14, 15, 2}};
constexpr const Format &FormatOf(xent_dtype dtype) { return kFormats[dtype]; }

constexpr const char *NameOf(xent_dtype dtype) {
  switch (dtype) {
    case XENT_F64:
      return "f64";
    case XENT_BF16:
      return "bf16";
    case XENT_F16:
      return "f16";
    default:
      return "f32";
  }
}

// The type of losses and lse, and of all arithmetic: float64 for float64, else float32.
constexpr xent_dtype ArithmeticType(xent_dtype dtype) { return dtype == XENT_F64 ? XENT_F64 : XENT_F32; }

constexpr uint64_t SignBit(xent_dtype dtype) { return uint64_t{1} << (FormatOf(dtype).bytes * 8 - 1); }
constexpr uint64_t InfinityBits(xent_dtype dtype) {
  const Format f = FormatOf(dtype);
  return (SignBit(dtype) - 1) & ~((uint64_t{1} << (f.precision - 1)) - 1);
}
constexpr uint64_t CanonicalNanBits(xent_dtype dtype) {
  return InfinityBits(dtype) | (uint64_t{1} << (FormatOf(dtype).precision - 2));
}

inline uint64_t LoadBits(xent_dtype dtype, const void *base, int64_t index) {
  const int bytes = FormatOf(dtype).bytes;
  const char *p = static_cast<const char *>(base) + index * bytes;
  if (bytes == 8) {
    uint64_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    return bits;
  }
  if (bytes == 4) {
    uint32_t bits;
    std::memcpy(&bits, p, sizeof(bits));
    return bits;
  }
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return bits;
}

inline void StoreBits(xent_dtype dtype, void *base, int64_t index, uint64_t bits) {
  const int bytes = FormatOf(dtype).bytes;
  char *p = static_cast<char *>(base) + index * bytes;
  if (bytes == 8) {
    std::memcpy(p, &bits, sizeof(bits));
  } else if (bytes == 4) {
    const uint32_t narrow = static_cast<uint32_t>(bits);
    std::memcpy(p, &narrow, sizeof(narrow));
  } else {
    const uint16_t narrow = static_cast<uint16_t>(bits);
    std::memcpy(p, &narrow, sizeof(narrow));
  }
}

// The value of a bit pattern, exactly. The payload of a NaN is lost.
inline double Decode(xent_dtype dtype, uint64_t bits) {
  const Format f = FormatOf(dtype);
  const uint64_t magnitude = bits & (SignBit(dtype) - 1);
  if (magnitude > InfinityBits(dtype)) return std::numeric_limits<double>::quiet_NaN();
  if (dtype == XENT_F64) return std::bit_cast<double>(bits);
  if (dtype == XENT_F32) return std::bit_cast<float>(static_cast<uint32_t>(bits));
  double value;
  if (magnitude == InfinityBits(dtype)) {
    value = std::numeric_limits<double>::infinity();
  } else {
    const uint64_t hidden = uint64_t{1} << (f.precision - 1);
    const int field = static_cast<int>(magnitude >> (f.precision - 1));
    const uint64_t fraction = magnitude & (hidden - 1);
    const int exponent = f.min_exponent + std::max(field, 1) - 1;
    value = std::ldexp(static_cast<double>(field == 0 ? fraction : fraction | hidden), exponent - f.precision + 1);
  }
  return (bits & SignBit(dtype)) != 0 ? -value : value;
}

// The bit pattern nearest to value, ties to even; a NaN becomes the canonical one.
inline uint64_t Encode(xent_dtype dtype, double value) {
  const Format f = FormatOf(dtype);
  if (std::isnan(value)) return CanonicalNanBits(dtype);
  const uint64_t sign = std::signbit(value) ? SignBit(dtype) : 0;
  const double magnitude = std::fabs(value);
  if (std::isinf(magnitude)) return sign | InfinityBits(dtype);
  if (magnitude == 0) return sign;
  const int exponent = std::max(std::ilogb(magnitude), f.min_exponent);
  // An integer of at most `precision` bits, or the next power of two: its carry runs into the exponent field.
  const double steps = std::nearbyint(std::ldexp(magnitude, f.precision - 1 - exponent));
  const uint64_t bits =
      (static_cast<uint64_t>(exponent - f.min_exponent) << (f.precision - 1)) + static_cast<uint64_t>(steps);
  return sign | std::min(bits, InfinityBits(dtype));
}

inline double Load(xent_dtype dtype, const void *base, int64_t index) {
  return Decode(dtype, LoadBits(dtype, base, index));
}
inline void Store(xent_dtype dtype, void *base, int64_t index, double value) {
  StoreBits(dtype, base, index, Encode(dtype, value));
}

inline double LargestFinite(xent_dtype dtype) { return Decode(dtype, InfinityBits(dtype) - 1); }
constexpr long double SmallestNormal(xent_dtype dtype) {
  return dtype == XENT_F64 ? 0x1p-1022L : dtype == XENT_F16 ? 0x1p-14L : 0x1p-126L;
}
// The power of two past the largest number.
constexpr long double PastLargest(xent_dtype dtype) {
  return dtype == XENT_F64 ? 0x1p1024L : dtype == XENT_F16 ? 0x1p16L : 0x1p128L;
}

// Spacing of the dtype's numbers at |value|; below the smallest normal number, the spacing there.
inline long double UlpAt(xent_dtype dtype, long double value) {
  const Format f = FormatOf(dtype);
  if (dtype != XENT_F32) {
    const int exponent = value == 0 ? f.min_exponent : std::max(std::ilogb(value), f.min_exponent);
    return std::ldexp(1.0L, exponent - f.precision + 1);
  }
  // The same by bits of a double, five times as fast: the judge spends its time here. Values just below a power of two
  // become it, so the exponent is taken back.
  const long double magnitude = std::fabs(value);
  const double rounded = static_cast<double>(magnitude);
  int exponent = static_cast<int>(std::bit_cast<uint64_t>(rounded) >> 52) - 1023;
  if (rounded > magnitude && (std::bit_cast<uint64_t>(rounded) << 12) == 0) --exponent;
  return std::bit_cast<double>(static_cast<uint64_t>(std::max(exponent, f.min_exponent) - f.precision + 1 + 1023)
                               << 52);
}

// What an output should be.
struct Value {
  long double exact;
  long double scale;         // the magnitude at which its error is counted (semantics.md, "Accuracy")
  long double slack = 0;     // an absolute error that is not counted: what inexact inputs of a formula are worth
  bool may_be_zero = false;  // 0 is as good
};

enum class Tiny {
  kZero,  // results below the smallest normal number of the arithmetic type are stored as zero
  kKept   // subnormal results are kept
};

// Error of a stored element against `want`, in ULP of the arithmetic type at want.scale. NaN must be met by the
// canonical NaN, infinity by infinity; anything else in their place, or they in place of a number, counts as infinitely
// wrong. A half-precision element stands for all reals that round to it, so that its own rounding is not counted.
// Under Tiny::kZero a zero stands for everything up to the smallest normal number (design.md has outputs up to
// and including it stored as zero), and a subnormal number of the arithmetic type's range is wrong. The arithmetic type
// may be the narrower or the wider of the two (gradients of targets whose type is not the logits').
inline double ErrorInUlp(xent_dtype stored, xent_dtype arithmetic, const void *base, int64_t index, Value want,
                         Tiny tiny = Tiny::kZero) {
  constexpr double kWrong = std::numeric_limits<double>::infinity();
  const uint64_t bits = LoadBits(stored, base, index);
  const double got = Decode(stored, bits);
  if (std::isnan(want.exact)) return bits == CanonicalNanBits(stored) ? 0 : kWrong;
  if (std::isnan(got) || !std::isfinite(want.slack)) return kWrong;
  if (std::isinf(want.exact)) return got == want.exact ? 0 : kWrong;
  if (got == 0 && want.may_be_zero) return 0;

  // The interval of reals that the element stands for.
  const uint64_t magnitude_bits = bits & (SignBit(stored) - 1);
  const long double past_largest = PastLargest(stored);
  const bool is_infinite = magnitude_bits == InfinityBits(stored);
  const long double magnitude = is_infinite ? past_largest : std::fabs(static_cast<long double>(got));
  long double low = magnitude;
  long double high = magnitude;
  if (stored != arithmetic || is_infinite) {
    const auto at = [&](uint64_t b) {
      return b == InfinityBits(stored) ? past_largest : static_cast<long double>(Decode(stored, b));
    };
    low = magnitude_bits == 0 ? -at(1) / 2 : (at(magnitude_bits - 1) + magnitude) / 2;
    high = is_infinite ? std::numeric_limits<long double>::infinity() : (magnitude + at(magnitude_bits + 1)) / 2;
  }
  // A narrow output of float64 arithmetic has no more than its own type's numbers (xent.h, target_grad).
  const long double smallest = std::max(SmallestNormal(arithmetic), SmallestNormal(ArithmeticType(stored)));
  if (tiny == Tiny::kZero) {
    if (magnitude_bits == 0) {
      high = std::max(high, smallest);
      low = std::min(low, -smallest);
    } else if (magnitude < smallest && FormatOf(stored).min_exponent >= FormatOf(arithmetic).min_exponent) {
      return kWrong;
    }
  }
  const long double exact = std::signbit(got) ? -want.exact : want.exact;
  const long double distance = std::max({0.0L, low - exact - want.slack, exact - high - want.slack});
  // An infinite magnitude (of an infinite factor times 0, say) must not forgive everything.
  if (!std::isfinite(want.scale)) return distance == 0 ? 0 : kWrong;
  const double ulp = static_cast<double>(distance / UlpAt(arithmetic, want.scale));
  return std::isnan(ulp) ? kWrong : ulp;
}

inline double ErrorInUlp(xent_dtype stored, const void *base, int64_t index, Value want, Tiny tiny = Tiny::kZero) {
  return ErrorInUlp(stored, ArithmeticType(stored), base, index, want, tiny);
}

}  // namespace xent::reference

#endif  // XENT_TESTS_REFERENCE_NUMBER_H_
