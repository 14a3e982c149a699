// The arrays in .npy files, as the library takes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dtype.h"
#include "npy.h"
#include "output.h"
#include "xent/xent.h"

namespace xent_cli {

// The arrays that a command accepts.
struct ArrayRule {
  bool floats = false;    // '<f4', '<f8', '<f2', or bfloat16 as '<V2' or '|V2'
  bool integers = false;  // of 1 to 8 bytes, signed or not, and '|b1'
  std::string_view dtypes_text = {};
  size_t min_dimensions = 0;
  std::string_view shape_text = {};
};

inline constexpr ArrayRule kLogits = {
    .floats = true,
    .dtypes_text = "logits of '<f4', '<f8', '<f2', or bfloat16 as '<V2' or '|V2'",
    .min_dimensions = 1,
    .shape_text = "logits [rows, columns], [columns], or of more dimensions (--class-axis)"};

// Returns a matrix without gaps between its rows; an absent one where `data` is null.
xent_matrix MatrixAt(void *data, int32_t dtype);

// An array in a mapped file. Its data are used where they lie, if the library can. It cannot where they are not aligned
// to their type, nor where they are integers of a type that it does not know: then each request copies its elements
// into a buffer that lasts until the next one.
class NpyArray {
 public:
  // Throws Error where the file is not what `rule` says.
  NpyArray(const std::string &path, const ArrayRule &rule);
  const MappedFile &file() const { return file_; }
  const std::string &path() const { return file_.path(); }
  const std::string &descr() const { return descr_; }
  const std::vector<int64_t> &shape() const { return shape_; }
  bool fortran_order() const { return fortran_order_; }  // false where both orders are the same
  int64_t elements() const { return elements_; }
  bool is_floating() const { return dtype_->is_floating; }
  xent_dtype dtype() const { return dtype_->number_type; }  // of Matrix
  double Number(int64_t element) const { return dtype_->number(At(element)); }
  int64_t Index(int64_t element) const { return dtype_->index(At(element)); }  // where it is not floating

  // Returns the `count` elements from `first` on.
  xent_matrix Matrix(int64_t first, int64_t count) const;
  // Returns them as classes, where the array is not floating. Throws Error where one is past 2^63 - 1.
  xent_targets Targets(int64_t first, int64_t count) const;
  // Returns the bytes of the buffer that Matrix takes for an element, 0 where it takes none.
  size_t copied_bytes() const;

 private:
  const char *At(int64_t element) const { return data_ + static_cast<size_t>(element) * dtype_->size; }
  bool IsAligned() const;
  // Returns the buffer, of at least this size.
  char *Buffer(size_t size) const;

  MappedFile file_;
  std::string descr_;
  std::vector<int64_t> shape_;
  bool fortran_order_ = false;
  int64_t elements_ = 0;
  const FileDtype *dtype_ = nullptr;
  const char *data_ = nullptr;
  mutable std::optional<Scratch> buffer_;
  mutable size_t buffer_size_ = 0;
};

}  // namespace xent_cli
