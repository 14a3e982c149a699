// How an array is a matrix of rows and classes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "array.h"
#include "xent/xent.h"

namespace xent_cli {

// An array [..., cols, ...] with the class dimension anywhere is a sequence of blocks [cols, inner], each of which is
// `inner` rows. With the classes last a block is a row. Work and files are cut between blocks only. An array in Fortran
// order lies in memory as that of the reversed shape in C order does: dimensions before the class dimension are `inner`
// there. All arrays of a call, results too, lie in the same order.
struct Layout {
  std::vector<int64_t> shape;
  std::vector<int64_t> row_shape;  // without the class dimension
  bool fortran_order = false;
  int64_t blocks = 0, cols = 0, inner = 1;

  int64_t rows() const { return blocks * inner; }
  int64_t block_elements() const { return cols * inner; }
};

// Returns the layout of an array whose classes are dimension `axis`, which counts from the end where it is negative;
// without it they are dimension 1, or the only one. Throws Error where there is no such dimension or no class.
Layout LayoutOf(const NpyArray &array, std::optional<int64_t> axis);

// Returns that of an array whose classes are dimension 1. A vector is a column of rows of one class.
Layout LayoutOfElements(const NpyArray &array);

// `model` is the file of the layout, for messages.

// Throws Error unless `array` has the layout's shape, in its order.
void ExpectElements(const NpyArray &array, const Layout &layout, const std::string &model);

// Returns whether `array` has one element for each row, as the rows lie. Dimensions of 1 do not count. Throws Error
// where it has in the other order.
bool HasRows(const NpyArray &array, const Layout &layout, const std::string &model);

// Returns whether the shapes are the same but for dimensions of 1.
bool IsSameShape(const std::vector<int64_t> &a, const std::vector<int64_t> &b);

// Throws Error where there are fewer columns than --valid-cols says.
void ExpectValidCols(const Layout &layout, int64_t valid_cols, const std::string &model);

// Two arrays of one shape.
struct ArrayPair {
  // Throws Error where an array is not what its rule says, or shapes or orders differ.
  ArrayPair(const std::string &first_path, const ArrayRule &first_rule, const std::string &second_path,
            const ArrayRule &second_rule, const std::function<Layout(const NpyArray &)> &layout_of);

  const NpyArray first;
  const Layout layout;  // of both
  const NpyArray second;

  xent_dtype arithmetic() const { return ArithmeticType(first.dtype()); }
  // Returns the bytes that Matrix copies of a block of both.
  size_t copied_bytes() const {
    return (first.copied_bytes() + second.copied_bytes()) * static_cast<size_t>(layout.block_elements());
  }
};

}  // namespace xent_cli
