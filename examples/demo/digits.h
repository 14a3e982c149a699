// Reads the two files of examples/data: just these two, every byte of their headers checked. Not a NumPy reader.
#ifndef XENT_EXAMPLES_DEMO_DIGITS_H_
#define XENT_EXAMPLES_DEMO_DIGITS_H_

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common.h"

namespace demo {

inline constexpr std::int64_t kImages = 1797;
inline constexpr std::int64_t kPixels = 64;
inline constexpr std::int64_t kClasses = 10;

struct Digits {
  std::vector<float> pixels;         // [images, 64], 0 to 1
  std::vector<std::int64_t> labels;  // [images], 0 to 9
  std::int64_t size() const { return static_cast<std::int64_t>(labels.size()); }
};

// What follows the header of a .npy file of format 1.0, which must be `header` and leave `bytes` bytes.
inline std::string ReadNpy(const std::string &path, std::string_view header, std::size_t bytes) {
  std::FILE *stream = std::fopen(path.c_str(), "rb");
  if (stream == nullptr) Fail("cannot read " + path + ": " + std::strerror(errno));
  std::string file(bytes + 1024, '\0');  // the header has 128 bytes; what is longer is refused below
  file.resize(std::fread(file.data(), 1, file.size(), stream));
  const bool failed = std::ferror(stream) != 0;
  const int reason = errno;
  std::fclose(stream);
  if (failed) Fail("cannot read " + path + ": " + std::strerror(reason));
  constexpr std::string_view kMagic("\x93NUMPY\x01\x00", 8);
  if (file.size() < 10 || !file.starts_with(kMagic)) Fail(path + " is not a .npy file of format 1.0");
  const std::size_t header_size = static_cast<unsigned char>(file[8]) + 256u * static_cast<unsigned char>(file[9]);
  if (!std::string_view(file).substr(10).starts_with(header)) {
    Fail(path + ": expected the header " + std::string(header));
  }
  if (file.size() != 10 + header_size + bytes) {
    Fail(path + " does not have the " + std::to_string(10 + header_size + bytes) + " bytes that its header promises");
  }
  return file.substr(10 + header_size);
}

inline Digits ReadDigits(const std::string &directory) {
  const std::string images =
      ReadNpy(directory + "/digits_images.npy", "{'descr': '|u1', 'fortran_order': False, 'shape': (1797, 64), }",
              static_cast<std::size_t>(kImages * kPixels));
  const std::string labels =
      ReadNpy(directory + "/digits_labels.npy", "{'descr': '<i8', 'fortran_order': False, 'shape': (1797,), }",
              static_cast<std::size_t>(kImages) * sizeof(std::int64_t));
  Digits digits;
  for (const char pixel : images) {
    const auto ink = static_cast<unsigned char>(pixel);
    if (ink > 16) Fail(directory + "/digits_images.npy holds a pixel of " + std::to_string(ink) + ", above 16");
    digits.pixels.push_back(static_cast<float>(ink) / 16.0f);
  }
  for (std::size_t i = 0; i < labels.size(); i += 8) {
    std::uint64_t label = 0;
    for (std::size_t byte = 8; byte-- > 0;) label = label << 8 | static_cast<unsigned char>(labels[i + byte]);
    if (label >= static_cast<std::uint64_t>(kClasses)) {
      Fail(directory + "/digits_labels.npy holds a label that is not a digit, at " + std::to_string(i / 8));
    }
    digits.labels.push_back(static_cast<std::int64_t>(label));
  }
  return digits;
}

struct Split {
  Digits train;
  Digits test;
};

// Shuffles with a fixed seed, then four fifths for training and the rest to test on.
inline Split ShuffledSplit(const Digits &digits) {
  std::vector<std::int64_t> order(digits.labels.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
  Random random(2024);
  for (std::size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1], order[static_cast<std::size_t>(random.Below(static_cast<std::int64_t>(i)))]);
  }
  Split split;
  const std::size_t train_size = order.size() * 4 / 5;
  for (std::size_t i = 0; i < order.size(); ++i) {
    Digits &part = i < train_size ? split.train : split.test;
    const auto image = digits.pixels.begin() + order[i] * kPixels;
    part.pixels.insert(part.pixels.end(), image, image + kPixels);
    part.labels.push_back(digits.labels[static_cast<std::size_t>(order[i])]);
  }
  return split;
}

}  // namespace demo

#endif  // XENT_EXAMPLES_DEMO_DIGITS_H_
