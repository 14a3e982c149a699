#include "common.h"

namespace xent_python {
void DefineNumpy(nanobind::module_ &) {}
}  // namespace xent_python
