// How an array is a matrix of rows and classes: which of its dimensions the classes are.
#ifndef XENT_SRC_CLI_LAYOUT_H_
#define XENT_SRC_CLI_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "npy.h"

namespace xent_cli {

// An array [..., cols, ...] with the class dimension anywhere: a sequence of blocks [cols, inner], each of which is
// `inner` rows. With the classes last a block is a row. Work and files are cut between blocks only.
struct Layout {
  std::vector<int64_t> shape;
  std::vector<int64_t> row_shape;  // without the class dimension
  int64_t blocks = 0, cols = 0, inner = 1;

  int64_t rows() const { return blocks * inner; }
  int64_t block_elements() const { return cols * inner; }
};

// `axis` counts from the end where negative. Without it: dimension 1, or the only one.
Layout LayoutOf(const NpyArray &array, std::optional<int64_t> axis);
// A vector is a column of rows there: one class.
Layout LayoutOfElements(const NpyArray &array);

// Throws Error unless `array` has this shape; `reason` follows the expected one in the message.
void ExpectShape(const NpyArray &array, const std::vector<int64_t> &shape, const std::string &reason);

}  // namespace xent_cli

#endif  // XENT_SRC_CLI_LAYOUT_H_
