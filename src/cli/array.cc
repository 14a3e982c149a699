// Checks of an array, and copies of what the library does not take as it lies.
#include "array.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "error.h"

namespace xent_cli {
namespace {

std::string DtypeText(const std::string &descr) {
  if (descr.empty()) return "is structured";
  std::string text = "is '" + descr + "'";
  if (descr.front() == '>') text += " (big-endian)";
  return text;
}

// Returns how an array that may hold bfloat16 under another name becomes one that is read.
std::string AdviceOn(const std::string &descr) {
  if (descr != "<u2" && descr != "<i2" && descr != "bfloat16") return "";
  return " (where it holds the bits of bfloat16, save its .view('V2'))";
}

// Returns the product of the extents and `element_size`, nothing where an int64_t does not hold it.
std::optional<int64_t> DataBytes(const std::vector<int64_t> &shape, size_t element_size) {
  // An empty array has no data however large its other extent is.
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  int64_t bytes = static_cast<int64_t>(element_size);
  for (const int64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  }
  return bytes;
}

// Stores convert(i) for each of `count` elements.
template <typename T, typename Convert>
void Fill(char *buffer, int64_t count, Convert convert) {
  for (int64_t i = 0; i < count; ++i) reinterpret_cast<T *>(buffer)[i] = static_cast<T>(convert(i));
}

}  // namespace

xent_matrix MatrixAt(void *data, int32_t dtype) {
  xent_matrix matrix = XENT_NO_MATRIX;
  matrix.data = data;
  matrix.dtype = dtype;
  return matrix;
}

// Checks the dtype, the shape and the length, in this order.
NpyArray::NpyArray(const std::string &path, const ArrayRule &rule) : file_(path) {
  NpyHeader header = ParseNpyHeader(path, file_.bytes());
  dtype_ = FileDtypeOf(header.descr);
  if (dtype_ == nullptr || !(dtype_->is_floating ? rule.floats : rule.integers)) {
    throw Error(path + ": the dtype " + DtypeText(header.descr) + ", expected " + std::string(rule.dtypes_text) +
                AdviceOn(header.descr));
  }
  if (header.shape.size() < rule.min_dimensions) {
    throw Error(path + ": the shape is " + ShapeText(header.shape) + ", expected " + std::string(rule.shape_text));
  }
  const std::optional<int64_t> needed = DataBytes(header.shape, dtype_->size);
  const size_t available = file_.bytes().size() - header.data_offset;
  if (!needed || static_cast<size_t>(*needed) > available) {
    throw Error(path + ": truncated: shape " + ShapeText(header.shape) + " of '" + header.descr + "' needs " +
                (needed ? std::to_string(*needed) : "more than 2^63") + " bytes of data, found " +
                std::to_string(available));
  }
  descr_ = std::move(header.descr);
  shape_ = std::move(header.shape);
  fortran_order_ = header.fortran_order && HasTwoOrders(shape_);
  elements_ = *needed / static_cast<int64_t>(dtype_->size);
  data_ = file_.bytes().data() + header.data_offset;
}

bool NpyArray::IsAligned() const { return reinterpret_cast<uintptr_t>(data_) % dtype_->size == 0; }

size_t NpyArray::copied_bytes() const { return is_floating() && IsAligned() ? 0 : SizeOf(dtype()); }

char *NpyArray::Buffer(size_t size) const {
  if (!buffer_ || buffer_size_ < size) {
    buffer_.reset();
    buffer_.emplace(size);
    buffer_size_ = size;
  }
  return buffer_->data();
}

xent_matrix NpyArray::Matrix(int64_t first, int64_t count) const {
  // The library does not write to its inputs.
  if (copied_bytes() == 0) return MatrixAt(const_cast<char *>(At(first)), dtype());
  const size_t size = static_cast<size_t>(count) * copied_bytes();
  char *const buffer = Buffer(size);
  const auto number = [&](int64_t i) { return Number(first + i); };
  if (is_floating()) {
    if (size > 0) std::memcpy(buffer, At(first), size);
  } else if (dtype() == XENT_F64) {
    Fill<double>(buffer, count, number);
  } else {
    Fill<float>(buffer, count, number);
  }
  return MatrixAt(buffer, dtype());
}

xent_targets NpyArray::Targets(int64_t first, int64_t count) const {
  xent_targets targets = XENT_NO_TARGETS;
  const bool is_signed = descr_ == "<i4" || descr_ == "<i8";
  const bool is_wide = dtype_->size == 8 || descr_ == "<u4";  // else int32 holds its numbers
  targets.type = is_wide ? XENT_I64 : XENT_I32;
  targets.data = At(first);
  if (is_signed && IsAligned()) return targets;
  char *const buffer = Buffer(static_cast<size_t>(count) * (is_wide ? sizeof(int64_t) : sizeof(int32_t)));
  targets.data = buffer;
  if (!is_wide) {
    Fill<int32_t>(buffer, count, [&](int64_t i) { return Index(first + i); });
    return targets;
  }
  Fill<int64_t>(buffer, count, [&](int64_t i) {
    const int64_t index = Index(first + i);
    if (index < 0 && descr_ == "<u8") {
      throw Error(path() + ": the target of row " + std::to_string(first + i) + " is " +
                  std::to_string(static_cast<uint64_t>(index)) + ", expected at most 2^63 - 1");
    }
    return index;
  });
  return targets;
}

}  // namespace xent_cli
