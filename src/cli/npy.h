// The .npy files that the program reads and writes: NumPy's format, versions 1.0, 2.0 and 3.0.
//
// This is own code because Debian packages no library for the format, and because the program needs more than the
// format: the file mapped instead of read (memory must not grow with it), bfloat16 as ml_dtypes saves it, and errors
// that say what was found and what was expected.
// Source of the format: NumPy Enhancement Proposal 1 and the documentation of numpy.lib.format.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "signals.h"
#include "xent/xent.h"

namespace xent_cli {

// A regular file mapped for reading. Where the file is cut short meanwhile, an access past its end prints a line that
// names the file, and ends the program.
class MappedFile {
 public:
  explicit MappedFile(const std::string &path);
  ~MappedFile();
  MappedFile(const MappedFile &) = delete;
  MappedFile &operator=(const MappedFile &) = delete;

  std::string_view bytes() const { return {data_, size_}; }
  const std::string &path() const { return path_; }
  dev_t device() const { return device_; }
  ino_t inode() const { return inode_; }

 private:
  std::string path_;
  const char *data_ = nullptr;
  size_t size_ = 0;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  std::optional<ScopedMappingName> mapping_name_;
};

// The contents of the header of a .npy file.
struct NpyHeader {
  std::string descr;  // "<f4"; empty where the dtype is structured
  bool fortran_order = false;
  std::vector<int64_t> shape;
  size_t data_offset = 0;  // bytes from the start of the file
};

// Returns the header at the start of `bytes`. Throws Error with `path` in its message.
NpyHeader ParseNpyHeader(const std::string &path, std::string_view bytes);

// The arrays that a command accepts.
struct ArrayRule {
  bool floats = false;   // '<f4', '<f8', '<f2', or bfloat16 as '<V2' or '|V2'
  bool weights = false;  // '<f4' or '<f8'
  bool indices = false;  // '<i4' or '<i8'
  std::string_view dtypes_text = {};
  size_t min_dimensions = 1, max_dimensions = 1;
  std::string_view shape_text = {};
};

inline constexpr ArrayRule kLogitsMatrix = {
    .floats = true,
    .dtypes_text = "logits of '<f4', '<f8', '<f2', or bfloat16 as '<V2' or '|V2'",
    .min_dimensions = 2,
    .max_dimensions = 2,
    .shape_text = "logits [rows, columns]"};

// Returns number `i` of an array.
double NumberAt(const void *data, xent_dtype dtype, int64_t i);

// Returns a matrix without gaps between its rows; an absent one where `data` is null.
xent_matrix MatrixAt(void *data, int32_t dtype);

// An array in a mapped file. Its data are used where they lie.
class NpyArray {
 public:
  // Throws Error where the file is not what `rule` says.
  NpyArray(const std::string &path, const ArrayRule &rule);
  const MappedFile &file() const { return file_; }
  const std::string &path() const { return file_.path(); }
  const std::string &descr() const { return descr_; }
  const std::vector<int64_t> &shape() const { return shape_; }
  int64_t elements() const { return elements_; }
  size_t element_bytes() const { return element_bytes_; }
  bool is_floating() const { return is_floating_; }
  xent_dtype dtype() const { return static_cast<xent_dtype>(type_); }                 // where it is floating
  xent_index_type index_type() const { return static_cast<xent_index_type>(type_); }  // where it is not
  // Returns the data from `element` on.
  const char *data(int64_t element = 0) const { return data_ + static_cast<size_t>(element) * element_bytes_; }
  // Returns the data from `element` on as an input of the library, which does not write to its inputs.
  xent_matrix Matrix(int64_t element) const { return MatrixAt(const_cast<char *>(data(element)), dtype()); }
  double Number(int64_t element) const { return NumberAt(data_, dtype(), element); }  // of a floating array
  int64_t Index(int64_t element) const;                                               // of the others

 private:
  MappedFile file_;
  std::string descr_;
  std::vector<int64_t> shape_;
  int64_t elements_ = 0;
  size_t element_bytes_ = 0;
  bool is_floating_ = false;
  int type_ = 0;
  const char *data_ = nullptr;
};

// Returns "(7, 5)", as Python writes a tuple.
std::string ShapeText(const std::vector<int64_t> &shape);

// Returns the bytes of one element.
size_t SizeOf(xent_dtype dtype);
// Returns the type of losses and lse for logits of `dtype`.
xent_dtype ArithmeticType(xent_dtype dtype);
// Returns the dtype as NumPy writes it, "<f4".
const char *DescrOf(xent_dtype dtype);

// Returns all bytes before the data: magic, version 1.0, and the header, padded so that the data begin at a multiple
// of 64.
std::string FormatNpyHeader(const std::string &descr, const std::vector<int64_t> &shape);

}  // namespace xent_cli
