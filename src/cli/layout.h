// How an array is a matrix of rows and classes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "npy.h"
#include "xent/xent.h"

namespace xent_cli {

// An array [..., cols, ...] with the class dimension anywhere is a sequence of blocks [cols, inner], each of which is
// `inner` rows. With the classes last a block is a row. Work and files are cut between blocks only.
struct Layout {
  std::vector<int64_t> shape;
  std::vector<int64_t> row_shape;  // without the class dimension
  int64_t blocks = 0, cols = 0, inner = 1;

  int64_t rows() const { return blocks * inner; }
  int64_t block_elements() const { return cols * inner; }
};

// Returns the layout of an array whose classes are dimension `axis`, which counts from the end where it is negative;
// without it they are dimension 1, or the only one. Throws Error where there is no such dimension or no class.
Layout LayoutOf(const NpyArray &array, std::optional<int64_t> axis);

// Throws Error unless `array` has this shape; `reason` follows the expected one in the message.
void ExpectShape(const NpyArray &array, const std::vector<int64_t> &shape, const std::string &reason);

// Two floating arrays of one shape, whose classes are dimension 1. A vector is a column of rows of one class.
struct ArrayPair {
  // Throws Error where an array is not what `rule` says or the shapes differ.
  ArrayPair(const std::string &first_path, const std::string &second_path, const ArrayRule &rule);

  const NpyArray first;
  const Layout layout;  // of both
  const NpyArray second;

  xent_dtype arithmetic() const { return ArithmeticType(first.dtype()); }
};

}  // namespace xent_cli
