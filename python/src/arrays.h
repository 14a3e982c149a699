// NumPy arrays as the C API's matrices. An array is used where it lies whenever the C API can describe it, else it is
// copied once; an output that cannot be written where it lies is written elsewhere and copied back.
#pragma once

#include <nanobind/nanobind.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL xent_python_numpy
#ifndef XENT_PYTHON_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include <cstdint>
#include <initializer_list>

#include "xent/xent.h"

namespace xent_python {

// NumPy 1's limit.
inline constexpr int kMaxDims = 32;

void ImportNumpy();

// An argument as an array of NumPy. Absent where object is null.
struct Array {
  nanobind::object object;
  const char *name = "";
  int32_t dtype = -1;  // xent_dtype; -1: none of them

  PyArrayObject *get() const { return reinterpret_cast<PyArrayObject *>(object.ptr()); }
  explicit operator bool() const { return object.is_valid(); }
  int ndim() const { return PyArray_NDIM(get()); }
  const npy_intp *shape() const { return PyArray_DIMS(get()); }
  const npy_intp *steps() const { return PyArray_STRIDES(get()); }  // in bytes
  char *data() const { return PyArray_BYTES(get()); }
  int64_t element_size() const { return PyArray_ITEMSIZE(get()); }
  int64_t bytes() const { return PyArray_NBYTES(get()); }
};

// Returns an argument as an array, without a copy of what NumPy, the buffer protocol or DLPack holds. Lists and numbers
// become arrays.
Array ArrayOf(PyObject *value, const char *name);

// Returns an argument as an array of one of the four dtypes in this machine's byte order. A TypeError names others.
Array FloatsOf(PyObject *value, const char *name);

// NumPy's number of the arithmetic type of a dtype.
inline int ArithmeticType(int32_t dtype) { return dtype == XENT_F64 ? NPY_DOUBLE : NPY_FLOAT; }

// Returns the array with its elements in order, aligned and of NumPy's type `type`; itself where it is that already.
Array Ordered(const Array &array, int type);

// Returns integers (or bools) of any type as int64, or int32 where `keep_int32`. An IndexError names a row past int64.
Array IntegersOf(Array array, bool keep_int32);

// Throws a ValueError unless the array has this shape.
void CheckShape(const Array &array, int ndim, const npy_intp *shape, const char *why);

// How a call's matrices lie in arrays of one shape: their classes along `axis`, rows along all others in C's order.
struct Layout {
  int axis = 0;
  int64_t rows = 0, cols = 0, inner = 1;
  int ndim = 0;
  npy_intp shape[kMaxDims];       // of the matrices
  npy_intp rows_shape[kMaxDims];  // the same without the axis
  int rows_ndim = 0;
};

// Returns the layout of the call's first matrix, which is replaced by a copy where the C API cannot describe it.
// `elements` allows what a function of elements takes: no dimension, no elements.
Layout LayoutOf(Array *array, PyObject *axis, bool elements = false);

// Returns an input in the call's layout. It is replaced by a copy where it does not fit.
xent_matrix MatrixOf(Array *array, const Layout &layout);

// An array that the call writes to.
class Output {
 public:
  // A new array of the layout's shape and of another array's dtype.
  static Output New(const Layout &layout, const Array &like);
  static Output New(const Layout &layout, int type);
  // An array of the caller's, of the layout's shape and another array's dtype. It may be `in_place`, an input of the
  // same layout. Where it overlaps an array of `others`, or does not fit, it is written once the call is over.
  static Output Given(PyObject *value, const char *name, const Layout &layout, const Array &like, const Array *in_place,
                      std::initializer_list<const Array *> others);
  // What `value` asks for: false or None nothing, true a new array, else the caller's array.
  static Output Of(PyObject *value, const char *name, const Layout &layout, const Array &like, const Array *in_place,
                   std::initializer_list<const Array *> others);
  // A new array of any shape, written in C's order.
  static Output Plain(int ndim, const npy_intp *shape, int type);
  // An array of the caller's, written in C's order.
  static Output GivenPlain(PyObject *value, const char *name, int ndim, const npy_intp *shape, int type,
                           const Array &in);

  bool absent() const { return !result_.is_valid(); }
  xent_matrix matrix() const { return matrix_; }
  void *data() const { return matrix_.data; }
  template <typename T>
  T *as() const {
    return static_cast<T *>(matrix_.data);
  }
  const Array &written() const { return written_; }

  // Returns the array as Python sees it, after the call: without dimensions a scalar; None where absent.
  nanobind::object Finish();

 private:
  nanobind::object result_;  // what the caller gets
  Array target_;             // the caller's array, where it is written once the call is over
  Array written_;            // what the library writes
  bool new_ = false;         // made here: without dimensions it becomes a scalar
  xent_matrix matrix_ = XENT_NO_MATRIX;
};

// Returns a NumPy scalar.
nanobind::object ScalarOf(const void *value, int type);

}  // namespace xent_python
