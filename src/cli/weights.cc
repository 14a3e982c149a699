// Checking and conversion of weights.
#include "weights.h"

#include <cmath>

#include "error.h"
#include "report.h"

namespace xent_cli {
namespace {

constexpr ArrayRule kWeights = {
    .floats = true,
    .integers = true,
    .dtypes_text = "weights of '<f4', '<f8', '<f2', bfloat16 as '<V2' or '|V2', an integer dtype or '|b1'"};

// Returns "3", or "(0, 3)" in an array of more dimensions, of the element that lies at place `i`.
std::string PositionText(int64_t i, const NpyArray &array) {
  const std::vector<int64_t> &shape = array.shape();
  if (shape.size() == 1) return std::to_string(i);
  std::vector<int64_t> position(shape.size());
  for (size_t k = 0; k < shape.size(); ++k) {
    const size_t fastest = array.fortran_order() ? k : shape.size() - 1 - k;
    position[fastest] = i % shape[fastest];
    i /= shape[fastest];
  }
  return ShapeText(position);
}

}  // namespace

NpyWeights::NpyWeights(const std::string &path, const std::string &name) : array_(path, kWeights), name_(name) {}

void NpyWeights::ExpectShape(const std::vector<int64_t> &shape, const std::string &reason) const {
  if (IsSameShape(array_.shape(), shape)) return;
  throw Error(array_.path() + ": the shape is " + ShapeText(array_.shape()) + ", expected " + ShapeText(shape) +
              reason);
}

void NpyWeights::ExpectClasses(const Layout &layout, const std::string &model) const {
  ExpectShape({layout.cols}, ": " + model + " has that many columns");
}

void NpyWeights::ExpectRows(const Layout &layout, const std::string &model) const {
  if (HasRows(array_, layout, model)) return;
  if (layout.fortran_order) ExpectShape(layout.row_shape, ", that of the rows of " + model);
  ExpectShape({layout.rows()}, ": " + model + " has that many rows");
}

const void *NpyWeights::As(xent_dtype type) {
  const void *&checked = type == XENT_F64 ? as_double_ : as_float_;
  if (checked == nullptr) checked = Convert(type);
  return checked;
}

const void *NpyWeights::Convert(xent_dtype type) {
  const int64_t count = array_.elements();
  const bool convert = type != array_.dtype() || array_.copied_bytes() > 0;
  if (convert) converted_.emplace(static_cast<size_t>(count) * SizeOf(type));
  for (int64_t i = 0; i < count; ++i) {
    const double value = array_.Number(i);
    const bool wide = type == XENT_F64;
    if (!std::isfinite(wide ? value : static_cast<float>(value))) {
      throw Error(array_.path() + ": " + name_ + " " + PositionText(i, array_) + " is " + NumberText(value) +
                  ", expected a number that is finite in " + (wide ? "float64" : "float32"));
    }
    if (!convert) continue;
    if (wide) {
      reinterpret_cast<double *>(converted_->data())[i] = value;
    } else {
      reinterpret_cast<float *>(converted_->data())[i] = static_cast<float>(value);
    }
  }
  return convert ? converted_->data() : array_.Matrix(0, count).data;
}

}  // namespace xent_cli
