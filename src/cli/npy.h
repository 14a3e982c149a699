// The .npy files that the program reads and writes: NumPy's format, versions 1.0, 2.0 and 3.0.
//
// Own code, because Debian packages no library for the format, and because of what is needed beside the format: the
// file mapped instead of read (memory must not grow with it), bfloat16 as ml_dtypes saves it, and errors that say what
// was found and what was expected.
// Source of the format: NumPy Enhancement Proposal 1 and the documentation of numpy.lib.format.
#ifndef XENT_CLI_NPY_H_
#define XENT_CLI_NPY_H_

#include <sys/types.h>
#include <xent/xent.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "signals.h"

namespace xent_cli {

// A regular file mapped for reading. An access past its end, should somebody cut it short meanwhile, prints a line
// that names it and ends the program.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  dev_t device() const { return device_; }
  ino_t inode() const { return inode_; }

 private:
  std::string path_;
  const char* data_ = nullptr;
  size_t size_ = 0;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  std::optional<ScopedMappingName> mapping_name_;
};

// What the header of a .npy file says.
struct NpyHeader {
  std::string descr;  // "<f4"; empty where the dtype is structured
  bool fortran_order = false;
  std::vector<int64_t> shape;
  size_t data_offset = 0;  // bytes from the start of the file
};

// Reads the header at the start of `bytes`; throws Error with `path` in its message.
NpyHeader ParseNpyHeader(const std::string& path, std::string_view bytes);

// Logits [rows, cols]: '<f4', '<f8', '<f2', or bfloat16 as '<V2' or '|V2'.
class NpyLogits {
 public:
  explicit NpyLogits(const std::string& path);
  const MappedFile& file() const { return file_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  const void* data() const { return data_; }
  xent_dtype dtype() const { return dtype_; }

 private:
  MappedFile file_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  const void* data_ = nullptr;
  xent_dtype dtype_ = XENT_F32;
};

// Targets [rows]: '<i4' or '<i8'.
class NpyTargets {
 public:
  explicit NpyTargets(const std::string& path);
  const MappedFile& file() const { return file_; }
  int64_t rows() const { return rows_; }
  const void* data() const { return data_; }
  xent_index_type type() const { return type_; }

 private:
  MappedFile file_;
  int64_t rows_ = 0;
  const void* data_ = nullptr;
  xent_index_type type_ = XENT_I64;
};

// Bytes of one element.
size_t SizeOf(xent_dtype dtype);
// The type of losses and lse that belongs to logits of `dtype`.
xent_dtype ArithmeticType(xent_dtype dtype);

// Everything in front of the data: magic, version 1.0, and the header padded so that the data begin at a multiple
// of 64.
std::string FormatNpyHeader(xent_dtype dtype, const std::vector<int64_t>& shape);

}  // namespace xent_cli

#endif  // XENT_CLI_NPY_H_
