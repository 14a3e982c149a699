#define XENT_PYTHON_IMPORTS_NUMPY
#include "arrays.h"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "arguments.h"

namespace xent_python {
namespace {

namespace nb = nanobind;

nb::object Steal(PyObject *object) {
  if (object == nullptr) throw nb::python_error();
  return nb::steal(object);
}

PyArray_Descr *DescrOf(int type) { return PyArray_DescrFromType(type); }

// ---------------------------------------------------------------- dtypes

// NumPy gives the dtype bfloat16 of ml_dtypes a number when that is imported; 0: not seen yet.
std::atomic<int> g_bfloat16{0};

int32_t DtypeOf(PyArrayObject *array) {
  PyArray_Descr *const descr = PyArray_DESCR(array);
  switch (descr->type_num) {
    case NPY_FLOAT:
      return XENT_F32;
    case NPY_DOUBLE:
      return XENT_F64;
    case NPY_HALF:
      return XENT_F16;
    default:
      break;
  }
  if (descr->type_num < NPY_USERDEF) return -1;
  if (descr->type_num == g_bfloat16.load(std::memory_order_relaxed)) return XENT_BF16;
  const nb::object name = Steal(PyObject_Str(reinterpret_cast<PyObject *>(descr)));
  if (PyUnicode_CompareWithASCIIString(name.ptr(), "bfloat16") != 0) return -1;
  g_bfloat16.store(descr->type_num, std::memory_order_relaxed);
  return XENT_BF16;
}

int TypeOf(nb::dlpack::dtype dtype) {
  static constexpr int kInts[] = {NPY_INT8, NPY_INT16, NPY_INT32, NPY_INT64};
  static constexpr int kUints[] = {NPY_UINT8, NPY_UINT16, NPY_UINT32, NPY_UINT64};
  const int size = dtype.bits == 8 ? 0 : dtype.bits == 16 ? 1 : dtype.bits == 32 ? 2 : dtype.bits == 64 ? 3 : -1;
  if (dtype.lanes != 1 || size < 0) return NPY_NOTYPE;
  switch (static_cast<nb::dlpack::dtype_code>(dtype.code)) {
    case nb::dlpack::dtype_code::Int:
      return kInts[size];
    case nb::dlpack::dtype_code::UInt:
      return kUints[size];
    case nb::dlpack::dtype_code::Bool:
      return size == 0 ? NPY_BOOL : NPY_NOTYPE;
    case nb::dlpack::dtype_code::Float:
      return size == 1 ? NPY_HALF : size == 2 ? NPY_FLOAT : size == 3 ? NPY_DOUBLE : NPY_NOTYPE;
    default:
      return NPY_NOTYPE;
  }
}

[[noreturn]] void ThrowNoArray(PyObject *value, const char *name) {
  const nb::object type = nb::handle(value).type().attr("__name__");
  Throw(PyExc_TypeError, "%s is a %U, expected an array on the CPU", name, type.ptr());
}

// ---------------------------------------------------------------- arrays of others

// An array over the memory of an object that offers DLPack or a buffer, which the array keeps alive.
nb::object Wrap(PyObject *value, const char *name) {
  using Writable = nb::ndarray<nb::device::cpu>;
  using ReadOnly = nb::ndarray<nb::ro, nb::device::cpu>;
  Writable array;
  bool writable = nb::try_cast<Writable>(nb::handle(value), array);
  if (!writable) {
    ReadOnly read_only;
    if (!nb::try_cast<ReadOnly>(nb::handle(value), read_only)) return {};
    array = Writable(read_only);
  }
  PyArray_Descr *descr;
  const nb::dlpack::dtype dtype = array.dtype();
  if (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && dtype.bits == 16) {
    const nb::object bfloat16 = nb::module_::import_("ml_dtypes").attr("bfloat16");
    if (PyArray_DescrConverter(bfloat16.ptr(), &descr) == 0) throw nb::python_error();
  } else {
    const int type = TypeOf(dtype);
    if (type == NPY_NOTYPE) Throw(PyExc_TypeError, "%s has a dtype that NumPy has not", name);
    descr = DescrOf(type);
  }
  const int ndim = static_cast<int>(array.ndim());
  if (ndim > kMaxDims) Throw(PyExc_ValueError, "%s has %d dimensions, expected at most %d", name, ndim, kMaxDims);
  npy_intp shape[kMaxDims], steps[kMaxDims];
  for (int i = 0; i < ndim; ++i) {
    shape[i] = static_cast<npy_intp>(array.shape(i));
    steps[i] = static_cast<npy_intp>(array.stride(i)) * (dtype.bits / 8);
  }
  nb::object result = Steal(PyArray_NewFromDescr(&PyArray_Type, descr, ndim, shape, steps, array.data(),
                                                 writable ? NPY_ARRAY_WRITEABLE : 0, nullptr));
  auto *const owner = new Writable(std::move(array));
  nb::object capsule = nb::capsule(owner, [](void *p) noexcept { delete static_cast<Writable *>(p); });
  auto *const wrapped = reinterpret_cast<PyArrayObject *>(result.ptr());
  PyArray_UpdateFlags(wrapped, NPY_ARRAY_UPDATE_ALL);
  if (PyArray_SetBaseObject(wrapped, capsule.release().ptr()) != 0) throw nb::python_error();
  return result;
}

// ---------------------------------------------------------------- memory of arrays

bool Swapped(const Array &array) { return !PyArray_ISNOTSWAPPED(array.get()); }

bool Aligned(const Array &array) {
  return reinterpret_cast<uintptr_t>(array.data()) % static_cast<uintptr_t>(array.element_size()) == 0;
}

// The bytes from the first to behind the last element.
struct Extent {
  const char *first, *last;
};

Extent ExtentOf(const Array &array) {
  const char *first = array.data(), *last = first + array.element_size();
  for (int i = 0; i < array.ndim(); ++i) {
    const npy_intp size = array.shape()[i], step = array.steps()[i];
    if (size == 0) return {first, first};
    (step > 0 ? last : first) += step * (size - 1);
  }
  return {first, last};
}

bool Overlap(const Array &a, const Array &b) {
  const Extent x = ExtentOf(a), y = ExtentOf(b);
  return x.first < y.last && y.first < x.last;
}

// Whether two arrays of one shape and dtype have their elements at the same addresses.
bool Same(const Array &a, const Array &b) {
  if (a.data() != b.data() || a.ndim() != b.ndim() || a.element_size() != b.element_size()) return false;
  for (int i = 0; i < a.ndim(); ++i) {
    if (a.shape()[i] != b.shape()[i] || (a.shape()[i] > 1 && a.steps()[i] != b.steps()[i])) return false;
  }
  return true;
}

// Dimensions seen as one: `count` elements, `step` bytes apart.
struct Span {
  int64_t count = 1, step = 0;
};

// Merges the dimensions [first, last) but `skipped`. False: no single step describes them.
bool Merge(const Array &array, int first, int last, int skipped, Span *span) {
  for (int i = last; i-- > first;) {
    const npy_intp size = array.shape()[i];
    if (i == skipped || size == 1) continue;
    if (span->count == 1) {
      span->step = array.steps()[i];
    } else if (array.steps()[i] != span->step * span->count) {
      return false;
    }
    span->count *= size;
  }
  return true;
}

// Whether the array's elements lie as a matrix of the C API with this `inner`; `stride` is then that matrix's.
bool Fits(const Array &array, const Layout &layout, int64_t inner, int64_t *stride) {
  *stride = 0;
  if (Swapped(array)) return false;
  if (layout.rows == 0) return true;
  if (!Aligned(array)) return false;
  if (layout.ndim == 0) return true;
  const int64_t size = array.element_size();
  if (layout.cols > 1 && array.steps()[layout.axis] != inner * size) return false;
  Span outer, positions;
  if (inner == 1) {
    if (!Merge(array, 0, layout.ndim, layout.axis, &outer)) return false;
  } else {
    if (!Merge(array, layout.axis + 1, layout.ndim, -1, &positions)) return false;
    if (positions.count != inner || positions.step != size) return false;
    if (!Merge(array, 0, layout.axis, -1, &outer)) return false;
  }
  if (outer.count == 1) return true;
  *stride = outer.step / size;
  return outer.step % size == 0 && *stride >= layout.cols * inner;
}

// Returns an array of the layout's shape whose elements lie as its matrices do. Takes the reference to descr.
nb::object NewArray(const Layout &layout, PyArray_Descr *descr) {
  const int last = layout.ndim - 1;
  if (layout.ndim == 0 || layout.inner != 1 || layout.axis == last) {
    auto *const shape = const_cast<npy_intp *>(layout.shape);
    return Steal(PyArray_NewFromDescr(&PyArray_Type, descr, layout.ndim, shape, nullptr, nullptr, 0, nullptr));
  }
  // Rows lie one behind the other, whose classes are not the last dimension.
  npy_intp shape[kMaxDims], order[kMaxDims];
  std::copy_n(layout.rows_shape, layout.rows_ndim, shape);
  shape[last] = layout.cols;
  for (int i = 0; i <= last; ++i) order[i] = i < layout.axis ? i : i == layout.axis ? last : i - 1;
  const nb::object rows =
      Steal(PyArray_NewFromDescr(&PyArray_Type, descr, layout.ndim, shape, nullptr, nullptr, 0, nullptr));
  PyArray_Dims permutation{order, layout.ndim};
  return Steal(PyArray_Transpose(reinterpret_cast<PyArrayObject *>(rows.ptr()), &permutation));
}

// The array's dtype in this machine's byte order.
PyArray_Descr *NativeDescr(const Array &array) {
  PyArray_Descr *const descr = PyArray_DESCR(array.get());
  if (Swapped(array)) {
    PyArray_Descr *const native = PyArray_DescrNewByteorder(descr, NPY_NATIVE);
    if (native == nullptr) throw nb::python_error();
    return native;
  }
  Py_INCREF(reinterpret_cast<PyObject *>(descr));
  return descr;
}

void CopyInto(const Array &to, const Array &from) {
  if (PyArray_CopyInto(to.get(), from.get()) != 0) throw nb::python_error();
}

// The shape as Python writes it.
std::string ShapeText(int ndim, const npy_intp *shape) {
  std::string text = "(";
  for (int i = 0; i < ndim; ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + (ndim == 1 ? ",)" : ")");
}

void CheckWritable(const Array &array) {
  if (!PyArray_ISWRITEABLE(array.get())) {
    Throw(PyExc_ValueError, "%s is read-only, expected an array to write to", array.name);
  }
}

}  // namespace

void ImportNumpy() {
  if (_import_array() < 0) throw nb::python_error();
}

Array ArrayOf(PyObject *value, const char *name) {
  Array array{{}, name};
  if (PyArray_Check(value)) {
    array.object = nb::borrow(value);
  } else {
    const bool plain = PyList_Check(value) || PyTuple_Check(value) || PyLong_Check(value) || PyFloat_Check(value) ||
                       PyArray_IsScalar(value, Generic);
    if (!plain) array.object = Wrap(value, name);
    if (!array) {
      if (!plain && !PyObject_HasAttrString(value, "__array__") &&
          !PyObject_HasAttrString(value, "__array_interface__")) {
        ThrowNoArray(value, name);
      }
      array.object = Steal(PyArray_FromAny(value, nullptr, 0, 0, 0, nullptr));
      if (plain) PyArray_CLEARFLAGS(array.get(), NPY_ARRAY_WRITEABLE);  // nobody would see what is written there
    }
  }
  if (array.ndim() > kMaxDims) {
    Throw(PyExc_ValueError, "%s has %d dimensions, expected at most %d", name, array.ndim(), kMaxDims);
  }
  array.dtype = DtypeOf(array.get());
  return array;
}

Array FloatsOf(PyObject *value, const char *name) {
  Array array = ArrayOf(value, name);
  if (array.dtype < 0) {
    Throw(PyExc_TypeError, "%s has dtype %S, expected float32, float64, float16 or bfloat16", name,
          reinterpret_cast<PyObject *>(PyArray_DESCR(array.get())));
  }
  return array;
}

Array Ordered(const Array &array, int type) {
  Array ordered = array;
  const bool same = PyArray_EquivTypenums(PyArray_TYPE(array.get()), type) != 0;
  if (same && PyArray_IS_C_CONTIGUOUS(array.get()) && Aligned(array) && !Swapped(array)) return ordered;
  const char kind = PyArray_DESCR(array.get())->kind;
  if (array.dtype < 0 && std::strchr("fiub", kind) == nullptr) {
    Throw(PyExc_TypeError, "%s has dtype %S, expected numbers", array.name,
          reinterpret_cast<PyObject *>(PyArray_DESCR(array.get())));
  }
  ordered.object = Steal(PyArray_FromArray(array.get(), DescrOf(type), NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST));
  ordered.dtype = DtypeOf(ordered.get());
  return ordered;
}

Array IntegersOf(Array array, bool keep_int32) {
  const char kind = PyArray_DESCR(array.get())->kind;
  if (kind != 'i' && kind != 'u' && kind != 'b') {
    Throw(PyExc_TypeError, "%s has dtype %S, expected integers", array.name,
          reinterpret_cast<PyObject *>(PyArray_DESCR(array.get())));
  }
  if (keep_int32 && kind == 'i' && array.element_size() == 4) return Ordered(array, NPY_INT32);
  if (kind != 'u' || array.element_size() != 8) return Ordered(array, NPY_INT64);
  const Array unsigned_array = Ordered(array, NPY_UINT64);
  const auto *const values = reinterpret_cast<const uint64_t *>(unsigned_array.data());
  const npy_intp count = PyArray_SIZE(unsigned_array.get());
  for (npy_intp i = 0; i < count; ++i) {
    if (values[i] > uint64_t{INT64_MAX}) {
      Throw(PyExc_IndexError, "%s: row %zd is %llu, expected at most 2^63 - 1", array.name, static_cast<Py_ssize_t>(i),
            static_cast<unsigned long long>(values[i]));
    }
  }
  return Ordered(unsigned_array, NPY_INT64);
}

void CheckShape(const Array &array, int ndim, const npy_intp *shape, const char *why) {
  if (array.ndim() == ndim && std::equal(shape, shape + ndim, array.shape())) return;
  Throw(PyExc_ValueError, "%s has shape %s, expected %s: %s", array.name,
        ShapeText(array.ndim(), array.shape()).c_str(), ShapeText(ndim, shape).c_str(), why);
}

Layout LayoutOf(Array *array, PyObject *axis, bool elements) {
  Layout layout;
  const int ndim = array->ndim();
  layout.ndim = ndim;
  if (ndim == 0) {
    if (!elements) Throw(PyExc_ValueError, "%s has no dimension, expected one of classes", array->name);
    layout.rows = layout.cols = 1;
  } else {
    const int64_t given = IntegerOf(axis, "axis", -1);
    if (given < -ndim || given >= ndim) {
      Throw(PyExc_ValueError, "axis is %lld, expected %d to %d for %s of shape %s", static_cast<long long>(given),
            -ndim, ndim - 1, array->name, ShapeText(ndim, array->shape()).c_str());
    }
    layout.axis = static_cast<int>(given < 0 ? given + ndim : given);
    layout.rows = 1;
    for (int i = 0; i < ndim; ++i) {
      const npy_intp size = layout.shape[i] = array->shape()[i];
      if (i == layout.axis) {
        layout.cols = size;
      } else {
        layout.rows_shape[layout.rows_ndim++] = size;
        layout.rows *= size;
      }
    }
    if (layout.cols == 0) {
      if (!elements) {
        Throw(PyExc_ValueError, "%s has shape %s, expected at least one class along axis %d", array->name,
              ShapeText(ndim, array->shape()).c_str(), layout.axis);
      }
      layout.rows = 0;
      layout.cols = 1;
    }
  }
  int64_t stride = 0;
  if (Fits(*array, layout, 1, &stride)) return layout;
  int64_t positions = 1;
  for (int i = layout.axis + 1; i < ndim; ++i) positions *= array->shape()[i];
  layout.inner = layout.rows == 0 ? 1 : positions;
  if (positions == 1 || !Fits(*array, layout, layout.inner, &stride)) MatrixOf(array, layout);
  return layout;
}

xent_matrix MatrixOf(Array *array, const Layout &layout) {
  int64_t stride = 0;
  if (!Fits(*array, layout, layout.inner, &stride)) {
    Array copy{NewArray(layout, NativeDescr(*array)), array->name, array->dtype};
    CopyInto(copy, *array);
    *array = copy;
    Fits(*array, layout, layout.inner, &stride);
  }
  return {array->data(), stride, array->dtype, 0};
}

Output Output::New(const Layout &layout, const Array &like) {
  Output output;
  output.new_ = true;
  output.written_ = {NewArray(layout, NativeDescr(like)), "", like.dtype};
  output.result_ = output.written_.object;
  output.matrix_ = MatrixOf(&output.written_, layout);
  return output;
}

Output Output::New(const Layout &layout, int type) {
  Output output;
  output.new_ = true;
  output.written_ = {NewArray(layout, DescrOf(type)), ""};
  output.written_.dtype = DtypeOf(output.written_.get());
  output.result_ = output.written_.object;
  output.matrix_ = MatrixOf(&output.written_, layout);
  return output;
}

Output Output::Given(PyObject *value, const char *name, const Layout &layout, const Array &like, const Array *in_place,
                     std::initializer_list<const Array *> others) {
  const Array array = ArrayOf(value, name);
  if (array.dtype != like.dtype) {
    Throw(PyExc_TypeError, "%s has dtype %S, expected %S as %s has it", name,
          reinterpret_cast<PyObject *>(PyArray_DESCR(array.get())),
          reinterpret_cast<PyObject *>(PyArray_DESCR(like.get())), like.name);
  }
  CheckShape(array, layout.ndim, layout.shape, like.name);
  CheckWritable(array);
  int64_t stride = 0;
  bool direct = Fits(array, layout, layout.inner, &stride);
  if (direct && in_place != nullptr) direct = Same(array, *in_place) || !Overlap(array, *in_place);
  for (const Array *other : others) direct = direct && (!*other || !Overlap(array, *other));
  Output output;
  if (direct) {
    output.written_ = array;
    output.matrix_ = {array.data(), stride, array.dtype, 0};
  } else {
    output = New(layout, like);
    output.target_ = array;
    output.new_ = false;
  }
  output.result_ = nb::borrow(value);
  return output;
}

Output Output::Of(PyObject *value, const char *name, const Layout &layout, const Array &like, const Array *in_place,
                  std::initializer_list<const Array *> others) {
  if (!IsGiven(value) || value == Py_False) return {};
  if (value == Py_True) return New(layout, like);
  return Given(value, name, layout, like, in_place, others);
}

Output Output::Plain(int ndim, const npy_intp *shape, int type) {
  Output output;
  output.new_ = true;
  output.result_ = Steal(PyArray_SimpleNew(ndim, const_cast<npy_intp *>(shape), type));
  output.written_.object = output.result_;
  output.matrix_.data = output.written_.data();
  return output;
}

Output Output::GivenPlain(PyObject *value, const char *name, int ndim, const npy_intp *shape, int type,
                          const Array &in) {
  const Array array = ArrayOf(value, name);
  if (PyArray_TYPE(array.get()) != type) {
    Throw(PyExc_TypeError, "%s has dtype %S, expected %s", name,
          reinterpret_cast<PyObject *>(PyArray_DESCR(array.get())), type == NPY_DOUBLE ? "float64" : "float32");
  }
  CheckShape(array, ndim, shape, in.name);
  CheckWritable(array);
  Output output;
  if (PyArray_IS_C_CONTIGUOUS(array.get()) && Aligned(array) && !Swapped(array) &&
      (!Overlap(array, in) || Same(array, in))) {
    output.written_ = array;
    output.matrix_.data = array.data();
  } else {
    output = Plain(ndim, shape, type);
    output.target_ = array;
    output.new_ = false;
  }
  output.result_ = nb::borrow(value);
  return output;
}

nb::object Output::Finish() {
  if (absent()) return nb::none();
  if (target_) {
    CopyInto(target_, written_);
  } else if (new_ && written_.ndim() == 0) {
    return Steal(PyArray_Return(reinterpret_cast<PyArrayObject *>(result_.release().ptr())));
  }
  return std::move(result_);
}

nb::object ScalarOf(const void *value, int type) {
  const nb::object descr = nb::steal(reinterpret_cast<PyObject *>(DescrOf(type)));
  return Steal(PyArray_Scalar(const_cast<void *>(value), reinterpret_cast<PyArray_Descr *>(descr.ptr()), nullptr));
}

}  // namespace xent_python
