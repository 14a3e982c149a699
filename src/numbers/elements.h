// The types that matrices are stored in, the types that are computed with, and the scalar conversions between the two,
// bit by bit: exact towards float, to nearest even from it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace xent::internal {

// The values of xent_dtype.
enum Dtype : int { kF32 = 0, kF64 = 1, kBf16 = 2, kF16 = 3, kDtypes = 4 };

// Storage of half-precision numbers; arithmetic on them is float32.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

// The type that elements of type In are computed with.
template <class In>
using Arithmetic = std::conditional_t<std::is_same_v<In, double>, double, float>;

template <class In>
inline constexpr Dtype kDtypeOf = std::is_same_v<In, double> ? kF64
                                  : std::is_same_v<In, Bf16> ? kBf16
                                  : std::is_same_v<In, F16>  ? kF16
                                                             : kF32;

// Calls function(In{}) for the storage type of a dtype.
template <class Function>
auto DispatchDtype(int32_t dtype, Function function) {
  switch (dtype) {
    case kF64:
      return function(double{});
    case kBf16:
      return function(Bf16{});
    case kF16:
      return function(F16{});
    default:
      return function(float{});
  }
}

inline size_t ElementSize(int32_t dtype) { return dtype == kF64 ? 8 : dtype == kF32 ? 4 : 2; }
// The size of the arithmetic type that belongs to a dtype.
inline size_t ArithmeticSize(int32_t dtype) { return dtype == kF64 ? 8 : 4; }

inline float Widen(float x) { return x; }
inline double Widen(double x) { return x; }
inline float Widen(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float Widen(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t magnitude = x.bits & 0x7fff;
  uint32_t bits;
  if (magnitude >= 0x7c00) {
    bits = (magnitude << 13) + (224u << 23);
  } else if (magnitude >= 0x0400) {
    bits = (magnitude << 13) + (112u << 23);
  } else {  // subnormal: an integer times 2^-24
    bits = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  }
  return std::bit_cast<float>(bits | sign);
}

// Exact even where the floating-point mode takes subnormals for zero.
inline double WidenSubnormal(double x) { return x; }
inline double WidenSubnormal(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7f800000) != 0) return static_cast<double>(x);
  const double magnitude = static_cast<double>(static_cast<int32_t>(bits & 0x007fffff)) * 0x1p-149;
  return (bits >> 31) != 0 ? -magnitude : magnitude;
}

// Rounds a number of the arithmetic type to Out; NaN becomes the canonical NaN of half precision.
template <class Out>
Out Narrow(Arithmetic<Out> x) {
  if constexpr (std::is_same_v<Out, Arithmetic<Out>>) {
    return x;
  } else {
    const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffff;
    if constexpr (std::is_same_v<Out, Bf16>) {
      if (magnitude > 0x7f800000) return {0x7fc0};
      return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
    } else {
      if (magnitude > 0x7f800000) return {0x7e00};
      uint32_t half;
      if (magnitude < 0x38800000) {  // below 2^-14: adding 1/2, whose ULP is 2^-24, rounds to subnormals
        half = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
      } else {
        half = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        if (half > 0x7c00) half = 0x7c00;
      }
      return {static_cast<uint16_t>(half | ((bits >> 16) & 0x8000))};
    }
  }
}

}  // namespace xent::internal
