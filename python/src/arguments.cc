#include "arguments.h"

#include <string>

namespace xent_python {
namespace {

[[noreturn]] void ThrowType(PyObject *value, const char *name, const char *expected) {
  const nanobind::object type_name = nanobind::handle(value).type().attr("__name__");
  Throw(PyExc_TypeError, "%s is a %U, expected %s", name, type_name.ptr(), expected);
}

}  // namespace

void Parameters::Read(PyObject *const *args, Py_ssize_t nargs, PyObject *keywords, PyObject **values) const {
  if (static_cast<size_t>(nargs) > positional) {
    Throw(PyExc_TypeError, "%s() takes %zu positional arguments but %zd were given", function, positional, nargs);
  }
  for (size_t i = 0; i < count; ++i) values[i] = i < static_cast<size_t>(nargs) ? args[i] : nullptr;
  if (count > 0 && interned[0] == nullptr) {
    // From the last to the first: another thread that sees the first sees them all.
    for (size_t i = count; i-- > 0;) {
      interned[i] = PyUnicode_InternFromString(names[i]);
      if (interned[i] == nullptr) throw nanobind::python_error();
    }
  }
  const Py_ssize_t given = keywords == nullptr ? 0 : PyTuple_Size(keywords);
  for (Py_ssize_t k = 0; k < given; ++k) {
    PyObject *const keyword = PyTuple_GetItem(keywords, k);
    size_t i = 0;
    while (i < count && interned[i] != keyword) ++i;
    if (i == count) {  // a name that was made at run time is no interned string
      for (i = 0; i < count && PyUnicode_CompareWithASCIIString(keyword, names[i]) != 0;) ++i;
    }
    if (i == count) Throw(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", function, keyword);
    if (values[i] != nullptr) Throw(PyExc_TypeError, "%s() got multiple values for argument '%s'", function, names[i]);
    values[i] = args[nargs + k];
  }
  for (size_t i = 0; i < required; ++i) {
    if (values[i] == nullptr) Throw(PyExc_TypeError, "%s() missing required argument: '%s'", function, names[i]);
  }
}

double NumberOf(PyObject *value, const char *name, double if_absent) {
  if (!IsGiven(value)) return if_absent;
  const double number = PyFloat_AsDouble(value);
  if (number == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    ThrowType(value, name, "a number");
  }
  return number;
}

int64_t IntegerOf(PyObject *value, const char *name, int64_t if_absent) {
  if (!IsGiven(value)) return if_absent;
  const nanobind::object index = nanobind::steal(PyNumber_Index(value));
  if (!index.is_valid()) {
    PyErr_Clear();
    ThrowType(value, name, "an integer");
  }
  int overflow = 0;
  const int64_t number = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow != 0) Throw(PyExc_ValueError, "%s is %S, expected a number of 64 bits", name, value);
  return number;
}

bool FlagOf(PyObject *value, const char *name, bool if_absent) {
  if (!IsGiven(value)) return if_absent;
  if (value == Py_True) return true;
  if (value == Py_False) return false;
  ThrowType(value, name, "True or False");
}

int32_t ChoiceOf(PyObject *value, const char *name, const char *const *names, size_t count, int32_t if_absent) {
  if (!IsGiven(value)) return if_absent;
  if (PyUnicode_Check(value)) {
    for (size_t i = 0; i < count; ++i) {
      if (PyUnicode_CompareWithASCIIString(value, names[i]) == 0) return static_cast<int32_t>(i);
    }
  }
  std::string list;
  for (size_t i = 0; i < count; ++i) {
    list += (i == 0 ? "'" : i + 1 == count ? " or '" : ", '") + std::string(names[i]) + "'";
  }
  Throw(PyExc_ValueError, "%s is %R, expected %s", name, value, list.c_str());
}

}  // namespace xent_python
