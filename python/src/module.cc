// The extension module xent._core, over the C API and nothing else of the library.
#include "common.h"

NB_MODULE(_core, m) {
  m.attr("__version__") = xent_version();
  xent_python::DefineThreads(m);
  xent_python::DefineRaw(m);
  xent_python::DefineNumpy(m);
}
