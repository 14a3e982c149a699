// Reading and writing of .npy files.
#include "npy.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <utility>

#include "error.h"

namespace xent_cli {
namespace {

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
      if (error != std::errc() || size < 0) Fail("has a 'shape' that is not a tuple of sizes from 0 to 2^63 - 1");
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

}  // namespace

bool HasTwoOrders(const std::vector<int64_t> &shape) {
  return std::find(shape.begin(), shape.end(), 0) == shape.end() &&
         std::count(shape.begin(), shape.end(), 1) + 1 < static_cast<ptrdiff_t>(shape.size());
}

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
  if (bytes.substr(0, 4) == "PK\x03\x04" || bytes.substr(0, 4) == "PK\x05\x06") {
    throw Error(path + ": an .npz archive, expected one of the .npy files in it (an .npz is a zip file: unzip it)");
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

std::string FormatNpyHeader(const std::string &descr, const std::vector<int64_t> &shape, bool fortran_order) {
  std::string dictionary = "{'descr': '" + descr + "', 'fortran_order': ";
  dictionary += fortran_order && HasTwoOrders(shape) ? "True" : "False";
  dictionary += ", 'shape': " + ShapeText(shape) + ", }";
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
