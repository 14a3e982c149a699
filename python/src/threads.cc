#include <mutex>

#include "common.h"

namespace xent_python {
void DefineThreads(nanobind::module_ &) {}
}  // namespace xent_python
