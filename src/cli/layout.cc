// From shapes to rows and classes.
#include "layout.h"

#include <algorithm>

#include "error.h"

namespace xent_cli {
namespace {

Layout LayoutAt(const NpyArray &array, size_t axis) {
  Layout layout;
  layout.shape = array.shape();
  layout.row_shape = layout.shape;
  layout.row_shape.erase(layout.row_shape.begin() + static_cast<ptrdiff_t>(axis));
  layout.cols = layout.shape[axis];
  if (layout.cols < 1) {
    throw Error(array.path() + ": the shape is " + ShapeText(layout.shape) + ", expected at least one column");
  }
  // Without rows the product of the other dimensions need not fit any integer.
  if (std::find(layout.row_shape.begin(), layout.row_shape.end(), 0) != layout.row_shape.end()) return layout;
  layout.blocks = 1;
  for (size_t i = 0; i < layout.shape.size(); ++i) {
    if (i != axis) (i < axis ? layout.blocks : layout.inner) *= layout.shape[i];
  }
  return layout;
}

Layout LayoutOfElements(const NpyArray &array) {
  if (array.shape().size() > 1) return LayoutAt(array, 1);
  Layout layout;
  layout.shape = layout.row_shape = array.shape();
  layout.blocks = array.shape()[0];
  layout.cols = 1;
  return layout;
}

}  // namespace

Layout LayoutOf(const NpyArray &array, std::optional<int64_t> axis) {
  const auto dimensions = static_cast<int64_t>(array.shape().size());
  const int64_t wanted = axis.value_or(dimensions == 1 ? 0 : 1);
  if (wanted < -dimensions || wanted >= dimensions) {
    throw Error(array.path() + ": the shape is " + ShapeText(array.shape()) + ", which has no dimension " +
                std::to_string(wanted) + ": expected --class-axis from " + std::to_string(-dimensions) + " to " +
                std::to_string(dimensions - 1));
  }
  return LayoutAt(array, static_cast<size_t>(wanted < 0 ? wanted + dimensions : wanted));
}

void ExpectShape(const NpyArray &array, const std::vector<int64_t> &shape, const std::string &reason) {
  if (array.shape() == shape) return;
  throw Error(array.path() + ": the shape is " + ShapeText(array.shape()) + ", expected " + ShapeText(shape) + reason);
}

ArrayPair::ArrayPair(const std::string &first_path, const std::string &second_path, const ArrayRule &rule)
    : first(first_path, rule), layout(LayoutOfElements(first)), second(second_path, rule) {
  ExpectShape(second, first.shape(), ", that of " + first_path);
}

}  // namespace xent_cli
