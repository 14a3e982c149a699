#include "common.h"

namespace xent_python {
void DefineRaw(nanobind::module_ &) {}
}  // namespace xent_python
