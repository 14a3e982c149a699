// Encoding and comparison of numbers.
#include "numbers.h"

#include <algorithm>
#include <cmath>

namespace xent_cli_test {
namespace {

xent_dtype TypeOf(const std::string &descr) {
  for (const Dtype &dtype : kDtypes) {
    if (descr == dtype.descr) return dtype.type;
  }
  ADD_FAILURE() << "no dtype " << descr;
  return XENT_F32;
}

template <typename T>
std::string BytesAs(const std::vector<double> &values) {
  return Bytes(std::vector<T>(values.begin(), values.end()));
}

}  // namespace

std::string Encode(const std::string &descr, const std::vector<double> &values) {
  if (descr == "|i1") return BytesAs<int8_t>(values);
  if (descr == "|u1" || descr == "|b1") return BytesAs<uint8_t>(values);
  if (descr == "<i2") return BytesAs<int16_t>(values);
  if (descr == "<u2") return BytesAs<uint16_t>(values);
  if (descr == "<i4") return BytesAs<int32_t>(values);
  if (descr == "<u4") return BytesAs<uint32_t>(values);
  if (descr == "<i8") return BytesAs<int64_t>(values);
  if (descr == "<u8") return BytesAs<uint64_t>(values);
  const xent_dtype type = TypeOf(descr);
  std::string bytes(values.size() * static_cast<size_t>(reference::FormatOf(type).bytes), '\0');
  for (size_t i = 0; i < values.size(); ++i) {
    reference::Store(type, bytes.data(), static_cast<int64_t>(i), values[i]);
  }
  return bytes;
}

std::vector<double> Decode(const std::string &descr, const std::string &data) {
  if (descr == "<i8") {
    const std::vector<int64_t> values = Values<int64_t>(data);
    return {values.begin(), values.end()};
  }
  const xent_dtype type = TypeOf(descr);
  std::vector<double> values(data.size() / static_cast<size_t>(reference::FormatOf(type).bytes));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = reference::Load(type, data.data(), static_cast<int64_t>(i));
  }
  return values;
}

std::string NpyOf(const std::string &descr, const std::vector<int64_t> &shape, const std::vector<double> &values) {
  return Npy(descr, shape, Encode(descr, values));
}

std::string DataIn(const std::string &path, const std::string &descr, const std::string &shape) {
  const ReadNpy npy = SplitNpy(ReadFile(path));
  EXPECT_EQ(npy.descr, descr) << path;
  EXPECT_EQ(npy.shape, shape) << path;
  EXPECT_FALSE(npy.fortran_order) << path;
  return npy.data;
}

std::vector<double> NumbersIn(const std::string &path, const std::string &descr, const std::string &shape) {
  return Decode(descr, DataIn(path, descr, shape));
}

double ErrorInUlp(xent_dtype type, double got, long double want) {
  const double error = static_cast<double>(std::fabs(got - want) / reference::UlpAt(type, want));
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

void ExpectClose(const std::vector<double> &got, const std::vector<reference::Value> &want) {
  std::vector<long double> exact;
  for (const reference::Value &value : want) exact.push_back(value.exact);
  ExpectClose(got, exact);
}

std::vector<double> RandomNumbers(uint64_t seed, size_t count) {
  Random random(seed);
  std::vector<double> numbers(count);
  for (double &number : numbers) number = std::round(random.Uniform(-7.9, 7.9) * 16) / 16;
  return numbers;
}

reference::LossInputs LossInputsOf(size_t rows, size_t cols, const std::vector<double> &logits) {
  reference::LossInputs inputs;
  inputs.dtype = XENT_F64;
  inputs.rows = static_cast<int64_t>(rows);
  inputs.cols = static_cast<int64_t>(cols);
  inputs.logits = logits;
  return inputs;
}

std::vector<double> RowIn(const std::vector<double> &matrix, size_t cols, size_t row) {
  const auto begin = matrix.begin() + static_cast<ptrdiff_t>(row * cols);
  return {begin, begin + static_cast<ptrdiff_t>(cols)};
}

}  // namespace xent_cli_test
