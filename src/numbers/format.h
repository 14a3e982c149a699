// Per arithmetic type: the limits that the exponentials of rows keep to. They define bits.
#pragma once

#include <cstdint>

namespace xent::internal {

template <class T>
struct Format;
template <>
struct Format<float> {
  static constexpr int kBias = 74;              // stored exponentials carry 2^kBias
  static constexpr double kLimit = 0x1p20;      // beyond it in magnitude a chunk is summed relative to its maximum
  static constexpr double kSumLimit = 0x1p120;  // a lane above it has the block redone
  static constexpr int kMinExponent = -126;
  static constexpr int kMaxExponent = 127;
  static constexpr int kSafeExponent = -100;  // scale factors stay above 2^this, so that they never underflow
  static constexpr double kSpreadScale = 1.0;
  static constexpr uint32_t kNan = 0x7fc00000u;
};
template <>
struct Format<double> {
  static constexpr int kBias = 512;
  static constexpr double kLimit = 0x1p40;
  static constexpr double kSumLimit = 0x1p1000;
  static constexpr int kMinExponent = -1022;
  static constexpr int kMaxExponent = 1023;
  static constexpr int kSafeExponent = -900;
  static constexpr double kSpreadScale = 0x1p-64;  // so that sums of differences of the largest logits do not overflow
  static constexpr uint64_t kNan = 0x7ff8000000000000u;
};

}  // namespace xent::internal
