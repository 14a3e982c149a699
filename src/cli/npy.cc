// Reading and writing of .npy files.
#include "npy.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <utility>

#include "error.h"

namespace xent_cli {
namespace {

static_assert(std::endian::native == std::endian::little, "the files' little-endian numbers are used as they lie");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kMaxDimensions = 64;  // NumPy's own limit

// Parses the header, the text of a Python dictionary with the keys descr, fortran_order and shape. It takes any white
// space, either quote, any order of the keys, and a comma after the last item.
class HeaderParser {
 public:
  HeaderParser(const std::string &path, std::string_view text) : path_(path), text_(text) {}

  void Parse(NpyHeader &header) {
    bool seen_descr = false, seen_order = false, seen_shape = false;
    Expect('{');
    while (!Accept('}')) {
      const std::string_view key = String();
      Expect(':');
      if (key == "descr" && !std::exchange(seen_descr, true)) {
        const char next = Peek();
        if (next == '\'' || next == '"') {
          header.descr = String();
          if (header.descr.empty()) Fail("has an empty 'descr'");
        } else {
          SkipBrackets();
        }
      } else if (key == "fortran_order" && !std::exchange(seen_order, true)) {
        header.fortran_order = Boolean();
      } else if (key == "shape" && !std::exchange(seen_shape, true)) {
        header.shape = Shape();
      } else {
        Fail("has the key '" + std::string(key) +
             "' where only 'descr', 'fortran_order' and 'shape', once each, belong");
      }
      if (!Accept(',')) {
        Expect('}');
        break;
      }
    }
    if (!seen_descr || !seen_order || !seen_shape) Fail("lacks one of the keys 'descr', 'fortran_order' and 'shape'");
    SkipSpace();
    if (!text_.empty()) Fail("goes on after its closing brace");
  }

 private:
  [[noreturn]] void Fail(const std::string &what) const { throw Error(path_ + ": the .npy header " + what); }

  void SkipSpace() {
    const size_t start = text_.find_first_not_of(std::string_view(" \t\r\n\f\v", 6));
    text_.remove_prefix(start == std::string_view::npos ? text_.size() : start);
  }

  char Peek() {
    SkipSpace();
    if (text_.empty()) Fail("ends too early");
    return text_.front();
  }

  bool Accept(char wanted) {
    if (Peek() != wanted) return false;
    text_.remove_prefix(1);
    return true;
  }

  void Expect(char wanted) {
    if (!Accept(wanted)) Fail(std::string("has '") + text_.front() + "' where '" + wanted + "' belongs");
  }

  // Reads a quoted string without escapes. No valid key or dtype has one.
  std::string_view String() {
    const char quote = Peek();
    if (quote != '\'' && quote != '"') Fail(std::string("has '") + quote + "' where a string belongs");
    const size_t end = text_.find(quote, 1);
    if (end == std::string_view::npos) Fail("has a string without an end");
    const std::string_view content = text_.substr(1, end - 1);
    text_.remove_prefix(end + 1);
    return content;
  }

  bool Boolean() {
    SkipSpace();
    for (const auto &[word, value] : {std::pair<std::string_view, bool>{"True", true}, {"False", false}}) {
      if (text_.substr(0, word.size()) == word) {
        text_.remove_prefix(word.size());
        return value;
      }
    }
    Fail("has a 'fortran_order' that is neither True nor False");
  }

  std::vector<int64_t> Shape() {
    std::vector<int64_t> shape;
    Expect('(');
    bool comma = false;
    while (!Accept(')')) {
      if (!shape.empty() && !comma) Fail("has a 'shape' that is not a tuple of sizes");
      int64_t size = 0;
      SkipSpace();
      const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), size);
      if (error != std::errc() || size < 0) Fail("has a 'shape' that is not a tuple of sizes below 2^63");
      text_.remove_prefix(end - text_.data());
      if (!text_.empty() && text_.front() == 'L') text_.remove_prefix(1);  // a long integer of Python 2
      shape.push_back(size);
      if (shape.size() > kMaxDimensions) Fail("has a 'shape' of more than 64 dimensions");
      comma = Accept(',');
    }
    if (shape.size() == 1 && !comma) Fail("has a 'shape' that is not a tuple of sizes");  // (3) is a number in Python
    return shape;
  }

  // Skips the list of a structured dtype, or the tuple of a subarray's. Their contents do not matter.
  void SkipBrackets() {
    int64_t depth = 0;
    do {
      const char c = Peek();
      if (c == '\'' || c == '"') {
        String();
        continue;
      }
      if (c == '[' || c == '(' || c == '{') ++depth;
      if (c == ']' || c == ')' || c == '}') --depth;
      if (depth == 0 && c != ']' && c != ')' && c != '}') Fail("has a 'descr' that is no dtype");
      text_.remove_prefix(1);
    } while (depth > 0);
    if (depth < 0) Fail("has a 'descr' that is no dtype");
  }

  const std::string &path_;
  std::string_view text_;
};

std::string DtypeText(const std::string &descr) {
  if (descr.empty()) return "is structured";
  std::string text = "is '" + descr + "'";
  if (descr.front() == '>') text += " (big-endian)";
  return text;
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

struct NamedDtype {
  std::string_view descr;
  int value;
  size_t size;
  bool ArrayRule::*allowed;
};

constexpr NamedDtype kDtypes[] = {
    {"<f4", XENT_F32, 4, &ArrayRule::floats},  {"<f8", XENT_F64, 8, &ArrayRule::floats},
    {"<f2", XENT_F16, 2, &ArrayRule::floats},  {"<V2", XENT_BF16, 2, &ArrayRule::floats},
    {"|V2", XENT_BF16, 2, &ArrayRule::floats}, {"<f4", XENT_F32, 4, &ArrayRule::weights},
    {"<f8", XENT_F64, 8, &ArrayRule::weights}, {"<i4", XENT_I32, 4, &ArrayRule::indices},
    {"<i8", XENT_I64, 8, &ArrayRule::indices},
};

template <typename T>
T Load(const char *data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

double NumberOfFloat16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return sign * (fraction != 0 ? std::nan("") : HUGE_VAL);
  return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
}

}  // namespace

std::string ShapeText(const std::vector<int64_t> &shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  if (shape.size() == 1) text += ",";
  return text + ")";
}

MappedFile::MappedFile(const std::string &path) : path_(path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer before it can be refused.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd < 0) throw SystemError("cannot read", path, errno);
  struct stat status;
  int error_number = fstat(fd, &status) != 0 ? errno : 0;
  const char *reason = nullptr;
  if (error_number == 0 && S_ISDIR(status.st_mode)) {
    error_number = EISDIR;
  } else if (error_number == 0 && !S_ISREG(status.st_mode)) {
    reason = "not a regular file, which a memory map needs";
  } else if (error_number == 0 && status.st_size > 0) {
    size_ = static_cast<size_t>(status.st_size);
    void *address = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (address == MAP_FAILED) {
      error_number = errno;
    } else {
      data_ = static_cast<const char *>(address);
    }
  }
  close(fd);
  if (error_number != 0) throw SystemError("cannot read", path, error_number);
  if (reason != nullptr) throw Error("cannot read " + path + ": " + reason);
  device_ = status.st_dev;
  inode_ = status.st_ino;
  if (data_ == nullptr) return;                                // an empty file cannot be mapped
  madvise(const_cast<char *>(data_), size_, MADV_SEQUENTIAL);  // advice: that it is not taken does no harm
  mapping_name_.emplace(data_, size_,
                        "xent: cannot read " + path + ": it was cut short meanwhile, or the device failed");
}

MappedFile::~MappedFile() {
  mapping_name_.reset();
  if (data_ != nullptr) munmap(const_cast<char *>(data_), size_);
}

NpyHeader ParseNpyHeader(const std::string &path, std::string_view bytes) {
  if (bytes.substr(0, 4) == std::string_view("PK\x03\x04")) {
    throw Error(path + ": an .npz archive, expected one of the .npy files in it");
  }
  const std::string_view begin = bytes.substr(0, kMagic.size());
  if (begin != kMagic.substr(0, begin.size()) || bytes.empty()) {
    throw Error(path + ": not a .npy file" + (bytes.empty() ? " (it is empty)" : ""));
  }
  constexpr size_t kVersionEnd = kMagic.size() + 2;
  const auto byte = [bytes](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const auto truncated = [&path] { return Error(path + ": truncated inside the .npy header"); };
  if (bytes.size() < kVersionEnd) throw truncated();
  const int major = byte(kMagic.size()), minor = byte(kMagic.size() + 1);
  if (major < 1 || major > 3 || minor != 0) {
    throw Error(path + ": .npy format version " + std::to_string(major) + "." + std::to_string(minor) +
                ", expected 1.0, 2.0 or 3.0");
  }
  const size_t length_bytes = major == 1 ? 2 : 4;
  if (bytes.size() < kVersionEnd + length_bytes) throw truncated();
  size_t length = 0;
  for (size_t i = 0; i < length_bytes; ++i) length |= static_cast<size_t>(byte(kVersionEnd + i)) << (8 * i);
  NpyHeader header;
  header.data_offset = kVersionEnd + length_bytes + length;
  if (bytes.size() < header.data_offset) throw truncated();
  HeaderParser(path, bytes.substr(kVersionEnd + length_bytes, length)).Parse(header);
  return header;
}

// Checks the dtype, the shape, the order, the length and the alignment, in this order.
NpyArray::NpyArray(const std::string &path, const ArrayRule &rule) : file_(path) {
  NpyHeader header = ParseNpyHeader(path, file_.bytes());
  const NamedDtype *found = nullptr;
  for (const NamedDtype &dtype : kDtypes) {
    if (dtype.descr == header.descr && rule.*dtype.allowed) found = &dtype;
  }
  if (found == nullptr) {
    throw Error(path + ": the dtype " + DtypeText(header.descr) + ", expected " + std::string(rule.dtypes_text));
  }
  if (header.shape.size() < rule.min_dimensions || header.shape.size() > rule.max_dimensions) {
    throw Error(path + ": the shape is " + ShapeText(header.shape) + ", expected " + std::string(rule.shape_text));
  }
  if (header.fortran_order) {
    throw Error(path + ": the array is in Fortran order, expected C order (numpy.ascontiguousarray makes it)");
  }
  const std::optional<int64_t> needed = DataBytes(header.shape, found->size);
  const size_t available = file_.bytes().size() - header.data_offset;
  if (!needed || static_cast<size_t>(*needed) > available) {
    throw Error(path + ": truncated: shape " + ShapeText(header.shape) + " of '" + header.descr + "' needs " +
                (needed ? std::to_string(*needed) : "more than 2^63") + " bytes of data, found " +
                std::to_string(available));
  }
  if (header.data_offset % found->size != 0) {
    throw Error(path + ": the data begin at byte " + std::to_string(header.data_offset) + ", expected a multiple of " +
                std::to_string(found->size) + " (saving the array again with NumPy gives that)");
  }
  descr_ = std::move(header.descr);
  shape_ = std::move(header.shape);
  elements_ = *needed / static_cast<int64_t>(found->size);
  element_bytes_ = found->size;
  is_floating_ = found->allowed != &ArrayRule::indices;
  type_ = found->value;
  data_ = file_.bytes().data() + header.data_offset;
}

int64_t NpyArray::Index(int64_t element) const {
  return index_type() == XENT_I32 ? Load<int32_t>(data(element)) : Load<int64_t>(data(element));
}

size_t SizeOf(xent_dtype dtype) {
  switch (dtype) {
    case XENT_F64:
      return 8;
    case XENT_BF16:
    case XENT_F16:
      return 2;
    case XENT_F32:
      break;
  }
  return 4;
}

xent_dtype ArithmeticType(xent_dtype dtype) { return dtype == XENT_F64 ? XENT_F64 : XENT_F32; }

double NumberAt(const void *data, xent_dtype dtype, int64_t i) {
  const char *const from = static_cast<const char *>(data) + static_cast<size_t>(i) * SizeOf(dtype);
  switch (dtype) {
    case XENT_F64:
      return Load<double>(from);
    case XENT_BF16:
      return std::bit_cast<float>(static_cast<uint32_t>(Load<uint16_t>(from)) << 16);
    case XENT_F16:
      return NumberOfFloat16(Load<uint16_t>(from));
    case XENT_F32:
      break;
  }
  return Load<float>(from);
}

xent_matrix MatrixAt(void *data, int32_t dtype) {
  xent_matrix matrix = XENT_NO_MATRIX;
  matrix.data = data;
  matrix.dtype = dtype;
  return matrix;
}

const char *DescrOf(xent_dtype dtype) {
  return dtype == XENT_F64 ? "<f8" : dtype == XENT_F16 ? "<f2" : dtype == XENT_BF16 ? "<V2" : "<f4";
}

std::string FormatNpyHeader(const std::string &descr, const std::vector<int64_t> &shape) {
  std::string dictionary = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + ShapeText(shape) + ", }";
  constexpr size_t kPrefix = kMagic.size() + 4;
  const size_t unpadded = kPrefix + dictionary.size() + 1;
  dictionary.append((64 - unpadded % 64) % 64, ' ');
  dictionary += '\n';
  const size_t length = dictionary.size();
  std::string header(kMagic);
  header += {'\x01', '\x00', static_cast<char>(length & 0xff), static_cast<char>(length >> 8)};
  return header + dictionary;
}

}  // namespace xent_cli
