// Arguments of Python calls. The functions on arrays read their own: a keyword is found by the address of its name, and
// what is left out costs nothing, which with two dozen options makes a small call twice as fast as nanobind's dispatch.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <new>

namespace xent_python {

// Sets a Python error with a message in printf's words (PyErr_Format's), and throws it.
template <typename... Args>
[[noreturn]] void Throw(PyObject *type, const char *format, Args... args) {
  PyErr_Format(type, format, args...);
  throw nanobind::python_error();
}

// Names of a function's parameters: the first `positional` may be given by position, the first `required` must be
// given.
struct Parameters {
  const char *function;
  size_t positional;
  size_t required;
  const char *const *names;
  size_t count;
  PyObject **interned;  // the names as Python strings, made on first use

  // Writes the argument of each parameter to `values`, null where there is none.
  void Read(PyObject *const *args, Py_ssize_t nargs, PyObject *keywords, PyObject **values) const;
};

// Numbers of arguments; TypeErrors name the parameter. Null (or None, where it has a default) gives the default.
double NumberOf(PyObject *value, const char *name, double if_absent);
int64_t IntegerOf(PyObject *value, const char *name, int64_t if_absent);
bool FlagOf(PyObject *value, const char *name, bool if_absent);

// The position of a string among `names`; ValueErrors list them.
int32_t ChoiceOf(PyObject *value, const char *name, const char *const *names, size_t count, int32_t if_absent);

inline bool IsGiven(PyObject *value) { return value != nullptr && value != Py_None; }

// A function for PyMethodDef, of one that throws: PyObject *(PyObject *const *args, Py_ssize_t nargs, PyObject *names).
template <nanobind::object (*kFunction)(PyObject *const *, Py_ssize_t, PyObject *)>
PyObject *Guarded(PyObject *, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) noexcept {
  try {
    return kFunction(args, nargs, keywords).release().ptr();
  } catch (nanobind::python_error &error) {
    error.restore();
  } catch (const std::bad_alloc &) {
    PyErr_NoMemory();
  } catch (const std::exception &error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace xent_python
