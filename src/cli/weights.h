// Weights from .npy files, converted to the arithmetic type of a call.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "array.h"
#include "layout.h"
#include "output.h"
#include "xent/xent.h"

namespace xent_cli {

class NpyWeights {
 public:
  // Messages call one of the weights `name`: "class weight". Throws Error.
  NpyWeights(const std::string &path, const std::string &name);

  const MappedFile &file() const { return array_.file(); }
  // Throw Error unless there is one weight for each class, row (in a vector, or as the rows lie) or element. `model` is
  // the file that has them. Dimensions of 1 do not count, but for elements.
  void ExpectClasses(const Layout &layout, const std::string &model) const;
  void ExpectRows(const Layout &layout, const std::string &model) const;
  void ExpectElements(const Layout &layout, const std::string &model) const {
    xent_cli::ExpectElements(array_, layout, model);
  }
  // Returns the weights in `type`, float32 or float64. Throws Error with the position of one that is not finite there.
  const void *As(xent_dtype type);
  // Returns weight `i`, rounded to `type`.
  double At(int64_t i, xent_dtype type) { return NumberAt(As(type), type, i); }
  // Returns those from weight `first` on.
  const void *From(int64_t first, xent_dtype type) {
    return static_cast<const char *>(As(type)) + static_cast<size_t>(first) * SizeOf(type);
  }

 private:
  void ExpectShape(const std::vector<int64_t> &shape, const std::string &reason) const;
  const void *Convert(xent_dtype type);

  NpyArray array_;
  std::string name_;
  std::optional<Scratch> converted_;
  const void *as_float_ = nullptr;  // once checked
  const void *as_double_ = nullptr;
};

}  // namespace xent_cli
