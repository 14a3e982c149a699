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
  layout.fortran_order = array.fortran_order();
  layout.cols = layout.shape[axis];
  if (layout.cols < 1) {
    throw Error(array.path() + ": the shape is " + ShapeText(layout.shape) + ", expected at least one column");
  }
  // Without rows the product of the other dimensions need not fit any integer.
  if (std::find(layout.row_shape.begin(), layout.row_shape.end(), 0) != layout.row_shape.end()) return layout;
  layout.blocks = 1;
  for (size_t i = 0; i < layout.shape.size(); ++i) {
    if (i != axis) ((i < axis) != layout.fortran_order ? layout.blocks : layout.inner) *= layout.shape[i];
  }
  return layout;
}

const char *OrderText(bool fortran_order) { return fortran_order ? "Fortran order" : "C order"; }

// Throws Error unless `array` is in the order of the layout, where its shape has two.
void ExpectOrder(const NpyArray &array, const Layout &layout, const std::string &model) {
  if (!HasTwoOrders(array.shape()) || array.fortran_order() == layout.fortran_order) return;
  throw Error(array.path() + ": the array is in " + OrderText(array.fortran_order()) + ", expected " +
              OrderText(layout.fortran_order) + ", that of " + model + " (numpy.ascontiguousarray gives both C order)");
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

Layout LayoutOfElements(const NpyArray &array) {
  if (array.shape().size() > 1) return LayoutAt(array, 1);
  Layout layout;
  layout.shape = layout.row_shape = array.shape();
  layout.blocks = array.shape()[0];
  layout.cols = 1;
  return layout;
}

void ExpectElements(const NpyArray &array, const Layout &layout, const std::string &model) {
  if (array.shape() != layout.shape) {
    throw Error(array.path() + ": the shape is " + ShapeText(array.shape()) + ", expected " + ShapeText(layout.shape) +
                ", that of " + model);
  }
  ExpectOrder(array, layout, model);
}

bool HasRows(const NpyArray &array, const Layout &layout, const std::string &model) {
  if (!IsSameShape(array.shape(), layout.row_shape)) return false;
  ExpectOrder(array, layout, model);
  return true;
}

bool IsSameShape(const std::vector<int64_t> &a, const std::vector<int64_t> &b) {
  const auto without_ones = [](std::vector<int64_t> shape) {
    std::erase(shape, 1);
    return shape;
  };
  return without_ones(a) == without_ones(b);
}

void ExpectValidCols(const Layout &layout, int64_t valid_cols, const std::string &model) {
  if (valid_cols <= layout.cols) return;
  throw Error(model + ": --valid-cols is " + std::to_string(valid_cols) + ", expected at most " +
              std::to_string(layout.cols) + ", the number of columns");
}

ArrayPair::ArrayPair(const std::string &first_path, const ArrayRule &first_rule, const std::string &second_path,
                     const ArrayRule &second_rule, const std::function<Layout(const NpyArray &)> &layout_of)
    : first(first_path, first_rule), layout(layout_of(first)), second(second_path, second_rule) {
  ExpectElements(second, layout, first_path);
}

}  // namespace xent_cli
