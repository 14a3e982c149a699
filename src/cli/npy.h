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

// Returns whether C and Fortran order differ for arrays of this shape: not where they are empty, and not where at most
// one dimension is larger than 1.
bool HasTwoOrders(const std::vector<int64_t> &shape);

// Returns "(7, 5)", as Python writes a tuple.
std::string ShapeText(const std::vector<int64_t> &shape);

// Returns all bytes before the data: magic, version 1.0, and the header, padded so that the data begin at a multiple
// of 64. `fortran_order` does not matter where both orders are the same.
std::string FormatNpyHeader(const std::string &descr, const std::vector<int64_t> &shape, bool fortran_order);

}  // namespace xent_cli
