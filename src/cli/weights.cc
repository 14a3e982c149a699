// Checking and conversion of weights.
#include "weights.h"

#include <cmath>

#include "error.h"
#include "report.h"

namespace xent_cli {
namespace {

constexpr ArrayRule kWeights = {.weights = true,
                                .dtypes_text = "weights of '<f4' or '<f8'",
                                .min_dimensions = 1,
                                .max_dimensions = 64,
                                .shape_text = "weights of at least one dimension"};

// Returns "3", or "(0, 3)" in an array of more dimensions.
std::string PositionText(int64_t element, const std::vector<int64_t> &shape) {
  if (shape.size() == 1) return std::to_string(element);
  std::vector<int64_t> position(shape.size());
  for (size_t i = shape.size(); i-- > 0; element /= shape[i]) position[i] = element % shape[i];
  return ShapeText(position);
}

}  // namespace

NpyWeights::NpyWeights(const std::string &path, const std::string &name) : array_(path, kWeights), name_(name) {}

void NpyWeights::ExpectClasses(const Layout &layout, const std::string &model) const {
  ExpectShape(array_, {layout.cols}, ": " + model + " has that many columns");
}

void NpyWeights::ExpectRows(const Layout &layout, const std::string &model) const {
  if (array_.shape() == layout.row_shape) return;
  ExpectShape(array_, {layout.rows()}, ": " + model + " has that many rows");
}

void NpyWeights::ExpectElements(const Layout &layout, const std::string &model) const {
  ExpectShape(array_, layout.shape, ", that of " + model);
}

const void *NpyWeights::As(xent_dtype type) {
  const void *&checked = type == XENT_F64 ? as_double_ : as_float_;
  if (checked == nullptr) checked = Convert(type);
  return checked;
}

const void *NpyWeights::Convert(xent_dtype type) {
  const int64_t count = array_.elements();
  const bool convert = type != array_.dtype();
  if (convert) converted_.emplace(static_cast<size_t>(count) * SizeOf(type));
  for (int64_t i = 0; i < count; ++i) {
    const double value = array_.Number(i);
    const bool wide = type == XENT_F64;
    if (!std::isfinite(wide ? value : static_cast<float>(value))) {
      throw Error(array_.path() + ": " + name_ + " " + PositionText(i, array_.shape()) + " is " + NumberText(value) +
                  ", expected a number that is finite in " + (wide ? "float64" : "float32"));
    }
    if (!convert) continue;
    if (wide) {
      reinterpret_cast<double *>(converted_->data())[i] = value;
    } else {
      reinterpret_cast<float *>(converted_->data())[i] = static_cast<float>(value);
    }
  }
  return convert ? converted_->data() : array_.data();
}

}  // namespace xent_cli
