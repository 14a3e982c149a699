// The table of dtypes, and loads of their elements.
#include "dtype.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace xent_cli {
namespace {

static_assert(std::endian::native == std::endian::little, "the files' little-endian numbers are used as they lie");

template <typename T>
T Load(const char *element) {
  T value;
  std::memcpy(&value, element, sizeof(T));
  return value;
}

template <typename T>
double NumberOf(const char *element) {
  return static_cast<double>(Load<T>(element));
}

double NumberOfBfloat16(const char *element) {
  return std::bit_cast<float>(static_cast<uint32_t>(Load<uint16_t>(element)) << 16);
}

double NumberOfFloat16(const char *element) {
  const auto bits = Load<uint16_t>(element);
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return sign * (fraction != 0 ? std::nan("") : HUGE_VAL);
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

template <typename T>
int64_t IndexOf(const char *element) {
  return static_cast<int64_t>(Load<T>(element));
}

// Every byte but 0 is true.
int64_t IndexOfBool(const char *element) { return *element != 0 ? 1 : 0; }
double NumberOfBool(const char *element) { return *element != 0 ? 1 : 0; }

// The library's dtypes stand first, each at its number. float32 holds the integers of up to two bytes.
constexpr FileDtype kFileDtypes[] = {
    {"<f4", 4, true, XENT_F32, &NumberOf<float>, nullptr},
    {"<f8", 8, true, XENT_F64, &NumberOf<double>, nullptr},
    {"<V2", 2, true, XENT_BF16, &NumberOfBfloat16, nullptr},
    {"<f2", 2, true, XENT_F16, &NumberOfFloat16, nullptr},
    {"|V2", 2, true, XENT_BF16, &NumberOfBfloat16, nullptr},
    {"|b1", 1, false, XENT_F32, &NumberOfBool, &IndexOfBool},
    {"|i1", 1, false, XENT_F32, &NumberOf<int8_t>, &IndexOf<int8_t>},
    {"|u1", 1, false, XENT_F32, &NumberOf<uint8_t>, &IndexOf<uint8_t>},
    {"<i2", 2, false, XENT_F32, &NumberOf<int16_t>, &IndexOf<int16_t>},
    {"<u2", 2, false, XENT_F32, &NumberOf<uint16_t>, &IndexOf<uint16_t>},
    {"<i4", 4, false, XENT_F64, &NumberOf<int32_t>, &IndexOf<int32_t>},
    {"<u4", 4, false, XENT_F64, &NumberOf<uint32_t>, &IndexOf<uint32_t>},
    {"<i8", 8, false, XENT_F64, &NumberOf<int64_t>, &IndexOf<int64_t>},
    {"<u8", 8, false, XENT_F64, &NumberOf<uint64_t>, &IndexOf<uint64_t>},
};
static_assert(kFileDtypes[XENT_F32].number_type == XENT_F32 && kFileDtypes[XENT_F64].number_type == XENT_F64 &&
              kFileDtypes[XENT_BF16].number_type == XENT_BF16 && kFileDtypes[XENT_F16].number_type == XENT_F16);

}  // namespace

const FileDtype *FileDtypeOf(std::string_view descr) {
  for (const FileDtype &dtype : kFileDtypes) {
    if (descr == dtype.descr) return &dtype;
  }
  return nullptr;
}

double NumberAt(const void *data, xent_dtype dtype, int64_t i) {
  return kFileDtypes[dtype].number(static_cast<const char *>(data) + static_cast<size_t>(i) * SizeOf(dtype));
}

size_t SizeOf(xent_dtype dtype) { return kFileDtypes[dtype].size; }

xent_dtype ArithmeticType(xent_dtype dtype) { return dtype == XENT_F64 ? XENT_F64 : XENT_F32; }

const char *DescrOf(xent_dtype dtype) { return kFileDtypes[dtype].descr; }

}  // namespace xent_cli
