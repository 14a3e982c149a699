#include "common.h"

namespace xent_python {
namespace {

PyObject *TypeOf(xent_status status) {
  if (status == XENT_TARGET_OUT_OF_RANGE) return PyExc_IndexError;
  if (status == XENT_INCOMPLETE) return PyExc_RuntimeError;
  return PyExc_ValueError;
}

}  // namespace

void Raise(xent_status status, const xent_error &error) {
  const char *message = error.message[0] != '\0' ? error.message : xent_status_string(status);
  PyErr_SetString(TypeOf(status), message);
  throw nanobind::python_error();
}

}  // namespace xent_python
