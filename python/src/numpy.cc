// The functions on arrays. Each reads its arguments, describes them to the C API, calls it, and gives Python what was
// written; what the C API checks is not checked again. Docstrings: docs.h.
#include <algorithm>
#include <iterator>
#include <memory>
#include <new>

#include "arguments.h"
#include "arrays.h"
#include "common.h"
#include "docs.h"

namespace xent_python {
namespace {

namespace nb = nanobind;

constexpr const char *kSmoothings[] = {"uniform", "exclusive"};
constexpr const char *kReductions[] = {"mean", "sum", "none"};
constexpr const char *kEmptyMeans[] = {"nan", "zero"};

// Calls on fewer bytes keep the interpreter's lock and the calling thread: what another thread does with the lock in
// the meantime takes longer than such a call.
constexpr int64_t kTinyBytes = int64_t{1} << 14;

// Runs call(exec, error) on the threads that its size deserves, and throws what its status means.
template <typename Call>
void Run(int64_t bytes, PyObject *threads, const Call &call) {
  const int64_t wanted = IntegerOf(threads, "threads", 0);
  xent_error error = XENT_ERROR_INIT;
  xent_status status;
  if (bytes < kTinyBytes && wanted <= 1 && wanted >= 0) {
    xent_exec exec = XENT_EXEC_INIT;
    exec.threads = 1;
    status = call(&exec, &error);
  } else {
    const xent_exec exec = ExecOf(Pool::kOwn, wanted, bytes);
    const nb::gil_scoped_release release;
    status = call(&exec, &error);
  }
  RaiseIf(status, error);
}

// Arguments by their positions in a table of names, which each function has.
template <size_t kCount>
struct Given {
  PyObject *values[kCount];
  PyObject *operator[](size_t i) const { return values[i]; }
};

template <size_t kCount>
Given<kCount> Read(const char *function, const char *const (&names)[kCount], PyObject *(&interned)[kCount],
                   size_t required, size_t positional, PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
  Given<kCount> given;
  const Parameters parameters{function, positional, required, names, kCount, interned};
  parameters.Read(args, nargs, keywords, given.values);
  return given;
}

// ---------------------------------------------------------------- options that several functions have

xent_reduction ReductionOf(PyObject *kind, PyObject *divisor, PyObject *empty_mean) {
  xent_reduction reduction = XENT_MEAN;
  reduction.kind = ChoiceOf(kind, "reduction", kReductions, std::size(kReductions), XENT_REDUCTION_MEAN);
  reduction.empty_mean = ChoiceOf(empty_mean, "empty_mean", kEmptyMeans, std::size(kEmptyMeans), XENT_EMPTY_MEAN_NAN);
  if (IsGiven(divisor)) {
    reduction.divisor = NumberOf(divisor, "divisor", 0.0);
    if (reduction.kind == XENT_REDUCTION_NONE) {
      Throw(PyExc_ValueError, "divisor and reduction 'none' do not go together");
    }
    if (!(reduction.divisor > 0.0)) Throw(PyExc_ValueError, "divisor is %S, expected a finite number > 0", divisor);
  }
  return reduction;
}

int64_t ValidColsOf(PyObject *value) {
  const int64_t cols = IntegerOf(value, "valid_cols", 0);
  if (IsGiven(value) && cols < 1) {
    Throw(PyExc_ValueError, "valid_cols is %lld, expected 1 or more", static_cast<long long>(cols));
  }
  return cols;
}

// An array of numbers of one shape, as the arithmetic type of `like`. Absent where no value is given.
Array NumbersOf(PyObject *value, const char *name, const Array &like, int ndim, const npy_intp *shape,
                const char *why) {
  if (!IsGiven(value)) return {};
  const Array array = ArrayOf(value, name);
  CheckShape(array, ndim, shape, why);
  return Ordered(array, ArithmeticType(like.dtype));
}

Array RowNumbersOf(PyObject *value, const char *name, const Array &like, const Layout &layout) {
  return NumbersOf(value, name, like, layout.rows_ndim, layout.rows_shape, "one for each row");
}

Array ClassNumbersOf(PyObject *value, const char *name, const Array &like, const Layout &layout) {
  const npy_intp cols = static_cast<npy_intp>(layout.cols);
  return NumbersOf(value, name, like, 1, &cols, "one for each class");
}

const void *DataOf(const Array &array) { return array ? array.data() : nullptr; }

// The upstream gradient: a number, one for each row, or, where `elements`, one for each element.
xent_upstream UpstreamOf(PyObject *value, const Array &like, const Layout &layout, bool elements, Array *array) {
  xent_upstream upstream = XENT_NO_UPSTREAM;
  if (!IsGiven(value)) return upstream;
  *array = ArrayOf(value, "upstream");
  if (array->ndim() == 0) {
    upstream.kind = XENT_UPSTREAM_SCALAR;
  } else if (elements && array->ndim() == layout.ndim) {
    CheckShape(*array, layout.ndim, layout.shape, "a number, one for each row or one for each element");
    Array native = *array;
    if (PyArray_TYPE(array->get()) != ArithmeticType(like.dtype)) {
      native = Ordered(*array, ArithmeticType(like.dtype));
    }
    const xent_matrix matrix = MatrixOf(&native, layout);
    *array = native;
    return {matrix.data, matrix.stride, XENT_UPSTREAM_ELEMENTS, 0};
  } else {
    CheckShape(*array, layout.rows_ndim, layout.rows_shape, "a number, or one for each row");
    upstream.kind = XENT_UPSTREAM_ROWS;
  }
  *array = Ordered(*array, ArithmeticType(like.dtype));
  upstream.data = array->data();
  return upstream;
}

// The loss as Python gets it: a scalar of the arithmetic type, or an array where nothing is reduced.
struct Loss {
  double wide = 0.0;
  float narrow = 0.0F;
  bool is_wide = false;
  Output losses;

  void *reduced() {
    if (!losses.absent()) return nullptr;
    return is_wide ? static_cast<void *>(&wide) : &narrow;
  }
  nb::object Finish() {
    if (!losses.absent()) return losses.Finish();
    return is_wide ? ScalarOf(&wide, NPY_DOUBLE) : ScalarOf(&narrow, NPY_FLOAT);
  }
};

nb::object Tuple(nb::object a, nb::object b) {
  nb::object tuple = nb::steal(PyTuple_New(2));
  if (!tuple.is_valid()) throw nb::python_error();
  PyTuple_SetItem(tuple.ptr(), 0, a.release().ptr());
  PyTuple_SetItem(tuple.ptr(), 1, b.release().ptr());
  return tuple;
}

nb::object ResultType(const char *name) { return nb::module_::import_("xent._results").attr(name); }

// ---------------------------------------------------------------- cross-entropy

// What a thread keeps as the workspace of its calls, at most this much: pages that are touched for the first time cost
// more than they help.
constexpr size_t kMaxWorkspaceBytes = size_t{4} << 20;

void SetWorkspace(PyObject *threads, xent_cross_entropy *args) {
  thread_local std::unique_ptr<char[]> memory;
  thread_local size_t size = 0;
  if (args->grad.data == nullptr || args->inner > 1) return;
  const xent_exec exec = ExecOf(Pool::kOwn, IntegerOf(threads, "threads", 0));
  const size_t bytes = xent_workspace_bytes(args->cols, static_cast<xent_dtype>(args->logits.dtype), exec.threads);
  if (bytes == 0 || bytes > kMaxWorkspaceBytes) return;
  if (bytes > size) {
    memory.reset(new (std::nothrow) char[bytes]);
    size = memory == nullptr ? 0 : bytes;
  }
  args->workspace = memory.get();
  args->workspace_bytes = std::min(bytes, size);
}

// The statistics by name, in the order of CrossEntropyResult's fields after loss, grad and target_grad.
enum Statistic { kRowLosses, kLse, kLogprobs, kArgmax, kHits, kRank, kEntropy, kPerplexity, kLiveRows };
constexpr const char *kStatistics[] = {"row_losses", "lse",     "logprobs",   "argmax",   "hits",
                                       "rank",       "entropy", "perplexity", "live_rows"};

uint32_t StatisticsOf(PyObject *value) {
  if (!IsGiven(value)) return 0;
  const auto bit = [](PyObject *name) {
    return uint32_t{1} << ChoiceOf(name, "statistics", kStatistics, std::size(kStatistics), 0);
  };
  if (PyUnicode_Check(value)) return bit(value);
  const nb::object names = nb::steal(PySequence_Tuple(value));
  if (!names.is_valid()) {
    PyErr_Clear();
    Throw(PyExc_TypeError, "statistics is %R, expected names", value);
  }
  uint32_t wanted = 0;
  for (Py_ssize_t i = 0; i < PyTuple_Size(names.ptr()); ++i) wanted |= bit(PyTuple_GetItem(names.ptr(), i));
  return wanted;
}

// The statistics of a call and where they are written.
class Statistics {
 public:
  Statistics(uint32_t wanted, PyObject *top_k, PyObject *gather, bool of_ignored, const Array &logits,
             const Layout &layout)
      : wanted_(wanted) {
    const int type = ArithmeticType(logits.dtype);
    const auto rows = [&](Statistic statistic, int as) {
      if (!Wants(statistic)) return static_cast<void *>(nullptr);
      outputs_[statistic] = Output::Plain(layout.rows_ndim, layout.rows_shape, as);
      return outputs_[statistic].data();
    };
    row_losses_ = rows(kRowLosses, type);
    value_.lse = rows(kLse, type);
    value_.logprobs = rows(kLogprobs, type);
    value_.argmax = static_cast<int64_t *>(rows(kArgmax, NPY_INT64));
    value_.hits = static_cast<uint8_t *>(rows(kHits, NPY_BOOL));
    value_.rank = static_cast<int64_t *>(rows(kRank, NPY_INT64));
    value_.entropy = rows(kEntropy, type);
    if (Wants(kPerplexity)) value_.perplexity = &perplexity_;
    if (Wants(kLiveRows)) value_.live_rows = &live_rows_;
    npy_intp shape[kMaxDims];
    std::copy_n(layout.rows_shape, layout.rows_ndim, shape);
    npy_intp &last = shape[layout.rows_ndim];
    if (IsGiven(top_k)) {
      value_.top_k = IntegerOf(top_k, "top_k", 0);
      if (value_.top_k < 1 || value_.top_k > 64) {
        Throw(PyExc_ValueError, "top_k is %lld, expected 1 to 64", static_cast<long long>(value_.top_k));
      }
      last = static_cast<npy_intp>(value_.top_k);
      topk_logprobs_ = Output::Plain(layout.rows_ndim + 1, shape, type);
      topk_indices_ = Output::Plain(layout.rows_ndim + 1, shape, NPY_INT64);
      value_.topk_logprobs = topk_logprobs_.data();
      value_.topk_indices = topk_indices_.as<int64_t>();
    }
    if (IsGiven(gather)) {
      gather_ = ArrayOf(gather, "gather");
      last = gather_.ndim() == 0 ? 1 : gather_.shape()[gather_.ndim() - 1];
      CheckShape(gather_, layout.rows_ndim + 1, shape, "columns for each row");
      gather_ = IntegersOf(gather_, false);
      gathered_ = Output::Plain(layout.rows_ndim + 1, shape, type);
      value_.gather_count = last;
      value_.gather_cols = reinterpret_cast<const int64_t *>(gather_.data());
      value_.gathered = gathered_.data();
    }
    value_.of_ignored = of_ignored ? 1 : 0;
  }

  const xent_statistics *value() const { return &value_; }
  void *row_losses() const { return row_losses_; }

  // What was asked for, in the order of CrossEntropyResult.
  void Finish(nb::list *fields) {
    for (const Statistic s : {kRowLosses, kLse, kLogprobs, kArgmax, kHits, kRank, kEntropy}) {
      fields->append(outputs_[s].Finish());
    }
    fields->append(topk_logprobs_.Finish());
    fields->append(topk_indices_.Finish());
    fields->append(gathered_.Finish());
    fields->append(Wants(kPerplexity) ? ScalarOf(&perplexity_, NPY_DOUBLE) : nb::none());
    fields->append(Wants(kLiveRows) ? nb::object(nb::int_(live_rows_)) : nb::none());
  }

 private:
  bool Wants(Statistic statistic) const { return (wanted_ >> statistic & 1) != 0; }

  uint32_t wanted_;
  xent_statistics value_ = XENT_STATISTICS_INIT;
  void *row_losses_ = nullptr;
  Output outputs_[kEntropy + 1];
  Output topk_logprobs_, topk_indices_, gathered_;
  Array gather_;
  double perplexity_ = 0.0;
  int64_t live_rows_ = 0;
};

// Class indices, or probabilities where their dtype is a float's.
void SetTargets(PyObject *value, const Layout &layout, Array *targets, xent_cross_entropy *args) {
  *targets = ArrayOf(value, "targets");
  if (targets->dtype >= 0) {
    CheckShape(*targets, layout.ndim, layout.shape,
               "targets of a float dtype are probabilities, and have the shape of logits");
    args->target_probs = MatrixOf(targets, layout);
    return;
  }
  CheckShape(*targets, layout.rows_ndim, layout.rows_shape, "class indices, one for each row");
  *targets = IntegersOf(*targets, true);
  args->targets = {targets->data(), targets->element_size() == 4 ? XENT_I32 : XENT_I64, 0};
}

nb::object CrossEntropy(PyObject *const *positional, Py_ssize_t nargs, PyObject *keywords) {
  enum {
    kLogits,
    kTargets,
    kAxis,
    kClassWeights,
    kRowWeights,
    kIgnoreIndex,
    kLabelSmoothing,
    kSmoothing,
    kZLoss,
    kSoftcap,
    kLogitScale,
    kValidCols,
    kReduction,
    kDivisor,
    kEmptyMean,
    kGrad,
    kTargetGrad,
    kUpstream,
    kStatisticsNames,
    kTopK,
    kGather,
    kStatsOfIgnored,
    kThreads,
    kCount
  };
  static constexpr const char *kNames[kCount] = {
      "logits",           "targets", "axis",        "class_weights", "row_weights", "ignore_index", "label_smoothing",
      "smoothing",        "z_loss",  "softcap",     "logit_scale",   "valid_cols",  "reduction",    "divisor",
      "empty_mean",       "grad",    "target_grad", "upstream",      "statistics",  "top_k",        "gather",
      "stats_of_ignored", "threads"};
  static PyObject *interned[kCount];
  const Given<kCount> given = Read("cross_entropy", kNames, interned, 2, 2, positional, nargs, keywords);

  Array logits = FloatsOf(given[kLogits], "logits");
  const Layout layout = LayoutOf(&logits, given[kAxis]);
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = layout.rows;
  args.cols = layout.cols;
  args.inner = layout.inner;
  args.logits = MatrixOf(&logits, layout);
  Array targets;
  SetTargets(given[kTargets], layout, &targets, &args);
  const Array class_weights = ClassNumbersOf(given[kClassWeights], "class_weights", logits, layout);
  const Array row_weights = RowNumbersOf(given[kRowWeights], "row_weights", logits, layout);
  args.class_weights = DataOf(class_weights);
  args.row_weights = DataOf(row_weights);

  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  options.ignore_index = IntegerOf(given[kIgnoreIndex], "ignore_index", -100);
  options.valid_cols = ValidColsOf(given[kValidCols]);
  options.logit_scale = NumberOf(given[kLogitScale], "logit_scale", 1.0);
  options.softcap = NumberOf(given[kSoftcap], "softcap", 0.0);
  options.label_smoothing = NumberOf(given[kLabelSmoothing], "label_smoothing", 0.0);
  options.z_loss = NumberOf(given[kZLoss], "z_loss", 0.0);
  options.smoothing = ChoiceOf(given[kSmoothing], "smoothing", kSmoothings, std::size(kSmoothings), 0);
  options.reduction = ReductionOf(given[kReduction], given[kDivisor], given[kEmptyMean]);

  Array upstream;
  args.upstream = UpstreamOf(given[kUpstream], logits, layout, false, &upstream);
  const std::initializer_list<const Array *> inputs = {&targets, &class_weights, &row_weights, &upstream};
  Output grad = Output::Of(given[kGrad], "grad", layout, logits, &logits, inputs);
  Output target_grad;
  if (IsGiven(given[kTargetGrad]) && given[kTargetGrad] != Py_False) {
    if (targets.dtype < 0) Throw(PyExc_ValueError, "target_grad and class indices do not go together");
    target_grad = Output::Of(given[kTargetGrad], "target_grad", layout, targets, nullptr,
                             {&logits, &targets, &class_weights, &row_weights, &upstream, &grad.written()});
  }
  args.grad = grad.matrix();
  args.target_grad = target_grad.matrix();

  uint32_t wanted = StatisticsOf(given[kStatisticsNames]);
  const bool named = wanted != 0 || IsGiven(given[kTopK]) || IsGiven(given[kGather]);
  // With reduction none the loss is the losses of the rows: by either name the same array.
  const bool none = options.reduction.kind == XENT_REDUCTION_NONE;
  const bool twice = none && (wanted >> kRowLosses & 1) != 0;
  if (twice) wanted &= ~(1U << kRowLosses);
  const bool of_ignored = FlagOf(given[kStatsOfIgnored], "stats_of_ignored", false);
  std::unique_ptr<Statistics> statistics;
  if (named) {
    statistics = std::make_unique<Statistics>(wanted, given[kTopK], given[kGather], of_ignored, logits, layout);
    args.statistics = statistics->value();
    args.row_losses = statistics->row_losses();
  }
  Loss loss;
  loss.is_wide = logits.dtype == XENT_F64;
  if (none) {
    loss.losses = Output::Plain(layout.rows_ndim, layout.rows_shape, ArithmeticType(logits.dtype));
    args.row_losses = loss.losses.data();
  }
  args.reduced_loss = loss.reduced();

  const bool gradients = !grad.absent() || !target_grad.absent();
  const int64_t bytes = logits.bytes();
  if (gradients && bytes >= kTinyBytes) SetWorkspace(given[kThreads], &args);
  Run(bytes, given[kThreads], [&](const xent_exec *exec, xent_error *error) {
    return gradients ? xent_cross_entropy_forward_backward(&args, &options, exec, error)
                     : xent_cross_entropy_forward(&args, &options, exec, error);
  });
  if (statistics == nullptr && target_grad.absent()) {
    nb::object value = loss.Finish();
    return grad.absent() ? std::move(value) : Tuple(std::move(value), grad.Finish());
  }
  nb::list fields;
  fields.append(loss.Finish());
  fields.append(grad.Finish());
  fields.append(target_grad.Finish());
  if (statistics != nullptr) statistics->Finish(&fields);
  if (twice) fields[3] = fields[0];
  return ResultType("CrossEntropyResult")(*fields);
}

nb::object Score(PyObject *const *positional, Py_ssize_t nargs, PyObject *keywords) {
  enum { kLogits, kTargets, kAxis, kIgnoreIndex, kLogitScale, kSoftcap, kValidCols, kThreads, kCount };
  static constexpr const char *kNames[kCount] = {"logits",      "targets", "axis",       "ignore_index",
                                                 "logit_scale", "softcap", "valid_cols", "threads"};
  static PyObject *interned[kCount];
  const Given<kCount> given = Read("score", kNames, interned, 2, 2, positional, nargs, keywords);

  Array logits = FloatsOf(given[kLogits], "logits");
  const Layout layout = LayoutOf(&logits, given[kAxis]);
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = layout.rows;
  args.cols = layout.cols;
  args.inner = layout.inner;
  args.logits = MatrixOf(&logits, layout);
  Array targets = ArrayOf(given[kTargets], "targets");
  CheckShape(targets, layout.rows_ndim, layout.rows_shape, "class indices, one for each row");
  targets = IntegersOf(targets, true);
  args.targets = {targets.data(), targets.element_size() == 4 ? XENT_I32 : XENT_I64, 0};
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  options.ignore_index = IntegerOf(given[kIgnoreIndex], "ignore_index", -100);
  options.valid_cols = ValidColsOf(given[kValidCols]);
  options.logit_scale = NumberOf(given[kLogitScale], "logit_scale", 1.0);
  options.softcap = NumberOf(given[kSoftcap], "softcap", 0.0);

  const int type = ArithmeticType(logits.dtype);
  const auto rows = [&](int as) { return Output::Plain(layout.rows_ndim, layout.rows_shape, as); };
  Output logprobs = rows(type), entropy = rows(type), rank = rows(NPY_INT64), argmax = rows(NPY_INT64);
  double perplexity = 0.0;
  int64_t live_rows = 0;
  xent_statistics statistics = XENT_STATISTICS_INIT;
  statistics.logprobs = logprobs.data();
  statistics.entropy = entropy.data();
  statistics.rank = rank.as<int64_t>();
  statistics.argmax = argmax.as<int64_t>();
  statistics.perplexity = &perplexity;
  statistics.live_rows = &live_rows;
  args.statistics = &statistics;
  Run(logits.bytes(), given[kThreads], [&](const xent_exec *exec, xent_error *error) {
    return xent_cross_entropy_forward(&args, &options, exec, error);
  });
  return ResultType("Scores")(logprobs.Finish(), entropy.Finish(), rank.Finish(), argmax.Finish(),
                              ScalarOf(&perplexity, NPY_DOUBLE), nb::int_(live_rows));
}

// ---------------------------------------------------------------- functions of rows

using RowFunction = decltype(&xent_softmax);

template <RowFunction kFunction>
nb::object Rows(const char *name, PyObject *const *positional, Py_ssize_t nargs, PyObject *keywords) {
  enum { kX, kAxis, kOut, kThreads, kCount };
  static constexpr const char *kNames[kCount] = {"x", "axis", "out", "threads"};
  static PyObject *interned[kCount];
  const Given<kCount> given = Read(name, kNames, interned, 1, 2, positional, nargs, keywords);
  Array x = FloatsOf(given[kX], "x");
  const Layout layout = LayoutOf(&x, given[kAxis]);
  const xent_matrix matrix = MatrixOf(&x, layout);
  Output out = IsGiven(given[kOut]) ? Output::Given(given[kOut], "out", layout, x, &x, {}) : Output::New(layout, x);
  Run(x.bytes(), given[kThreads], [&](const xent_exec *exec, xent_error *error) {
    return kFunction(layout.rows, layout.cols, layout.inner, matrix, out.matrix(), exec, error);
  });
  return out.Finish();
}

nb::object Softmax(PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
  return Rows<&xent_softmax>("softmax", args, nargs, keywords);
}

nb::object LogSoftmax(PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
  return Rows<&xent_log_softmax>("log_softmax", args, nargs, keywords);
}

nb::object LogSumExp(PyObject *const *positional, Py_ssize_t nargs, PyObject *keywords) {
  enum { kX, kAxis, kKeepdims, kOut, kThreads, kCount };
  static constexpr const char *kNames[kCount] = {"x", "axis", "keepdims", "out", "threads"};
  static PyObject *interned[kCount];
  const Given<kCount> given = Read("logsumexp", kNames, interned, 1, 2, positional, nargs, keywords);
  Array x = FloatsOf(given[kX], "x");
  const Layout layout = LayoutOf(&x, given[kAxis]);
  const xent_matrix matrix = MatrixOf(&x, layout);
  npy_intp shape[kMaxDims];
  int ndim = layout.rows_ndim;
  std::copy_n(layout.rows_shape, ndim, shape);
  if (FlagOf(given[kKeepdims], "keepdims", false)) {
    ndim = layout.ndim;
    std::copy_n(layout.shape, ndim, shape);
    shape[layout.axis] = 1;
  }
  const int type = ArithmeticType(x.dtype);
  Output out = IsGiven(given[kOut]) ? Output::GivenPlain(given[kOut], "out", ndim, shape, type, x)
                                    : Output::Plain(ndim, shape, type);
  Run(x.bytes(), given[kThreads], [&](const xent_exec *exec, xent_error *error) {
    return xent_logsumexp(layout.rows, layout.cols, layout.inner, matrix, out.data(), exec, error);
  });
  return out.Finish();
}

nb::object CheckLogits(PyObject *const *positional, Py_ssize_t nargs, PyObject *keywords) {
  enum { kLogits, kAxis, kThreads, kCount };
  static constexpr const char *kNames[kCount] = {"logits", "axis", "threads"};
  static PyObject *interned[kCount];
  static constexpr const char *kDiagnoses[] = {"logits", "probabilities", "log_probabilities"};
  const Given<kCount> given = Read("check_logits", kNames, interned, 1, 2, positional, nargs, keywords);
  Array x = FloatsOf(given[kLogits], "logits");
  const Layout layout = LayoutOf(&x, given[kAxis]);
  const xent_matrix matrix = MatrixOf(&x, layout);
  xent_diagnosis diagnosis = XENT_DIAGNOSIS_LOGITS;
  Run(x.bytes(), given[kThreads], [&](const xent_exec *exec, xent_error *error) {
    return xent_check_logits(layout.rows, layout.cols, layout.inner, matrix, &diagnosis, exec, error);
  });
  return nb::str(kDiagnoses[diagnosis]);
}

// ---------------------------------------------------------------- functions of elements

template <auto kFloat, auto kDouble>
nb::object Elements(const char *name, PyObject *const *positional, Py_ssize_t nargs, PyObject *keywords) {
  enum { kX, kOut, kCount };
  static constexpr const char *kNames[kCount] = {"x", "out"};
  static PyObject *interned[kCount];
  const Given<kCount> given = Read(name, kNames, interned, 1, 1, positional, nargs, keywords);
  Array x = ArrayOf(given[kX], "x");
  if (x.dtype != XENT_F32 && x.dtype != XENT_F64) {
    Throw(PyExc_TypeError, "x has dtype %S, expected float32 or float64",
          reinterpret_cast<PyObject *>(PyArray_DESCR(x.get())));
  }
  const int type = ArithmeticType(x.dtype);
  x = Ordered(x, type);
  Output out = IsGiven(given[kOut]) ? Output::GivenPlain(given[kOut], "out", x.ndim(), x.shape(), type, x)
                                    : Output::Plain(x.ndim(), x.shape(), type);
  const int64_t count = PyArray_SIZE(x.get());
  PyObject *const one = nullptr;
  Run(x.bytes(), one, [&](const xent_exec *, xent_error *) {
    if (type == NPY_DOUBLE) return kDouble(reinterpret_cast<const double *>(x.data()), out.as<double>(), count);
    return kFloat(reinterpret_cast<const float *>(x.data()), out.as<float>(), count);
  });
  return out.Finish();
}

nb::object Exp(PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
  return Elements<&xent_exp_f32, &xent_exp_f64>("exp", args, nargs, keywords);
}

nb::object Log(PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
  return Elements<&xent_log_f32, &xent_log_f64>("log", args, nargs, keywords);
}

nb::object Log1p(PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
  return Elements<&xent_log1p_f32, &xent_log1p_f64>("log1p", args, nargs, keywords);
}

// ---------------------------------------------------------------- binary cross-entropy

// What the three functions of the family share; null where a function has no such argument.
struct Binary {
  PyObject *input, *targets, *axis, *pos_weight, *class_weights, *row_weights, *element_weights, *reduction, *divisor,
      *empty_mean, *grad, *target_grad, *upstream, *threads;
};

nb::object RunBinary(const Binary &given, const char *input_name, xent_binary_cross_entropy_options options) {
  Array input = FloatsOf(given.input, input_name);
  const Layout layout = LayoutOf(&input, given.axis, true);
  const int type = ArithmeticType(input.dtype);
  xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
  args.rows = layout.rows;
  args.cols = layout.cols;
  args.inner = layout.inner;
  args.input = MatrixOf(&input, layout);
  Array targets = ArrayOf(given.targets, "targets");
  CheckShape(targets, layout.ndim, layout.shape, input_name);
  if (targets.dtype < 0) targets = Ordered(targets, type);
  args.targets = MatrixOf(&targets, layout);
  const Array pos_weight = ClassNumbersOf(given.pos_weight, "pos_weight", input, layout);
  const Array class_weights = ClassNumbersOf(given.class_weights, "class_weights", input, layout);
  const Array row_weights = RowNumbersOf(given.row_weights, "row_weights", input, layout);
  args.pos_weight = DataOf(pos_weight);
  args.class_weights = DataOf(class_weights);
  args.row_weights = DataOf(row_weights);
  Array element_weights;
  if (IsGiven(given.element_weights)) {
    element_weights = ArrayOf(given.element_weights, "element_weights");
    CheckShape(element_weights, layout.ndim, layout.shape, input_name);
    if (PyArray_TYPE(element_weights.get()) != type) element_weights = Ordered(element_weights, type);
    args.element_weights = MatrixOf(&element_weights, layout);
  }
  options.reduction = ReductionOf(given.reduction, given.divisor, given.empty_mean);

  Array upstream;
  args.upstream = UpstreamOf(given.upstream, input, layout, true, &upstream);
  const std::initializer_list<const Array *> others = {&targets,     &pos_weight,      &class_weights,
                                                       &row_weights, &element_weights, &upstream};
  Output grad = Output::Of(given.grad, "grad", layout, input, &input, others);
  Output target_grad = Output::Of(
      given.target_grad, "target_grad", layout, targets, nullptr,
      {&input, &targets, &pos_weight, &class_weights, &row_weights, &element_weights, &upstream, &grad.written()});
  args.grad = grad.matrix();
  args.target_grad = target_grad.matrix();
  Loss loss;
  loss.is_wide = input.dtype == XENT_F64;
  if (options.reduction.kind == XENT_REDUCTION_NONE) {
    loss.losses = Output::New(layout, type);
    args.element_losses = loss.losses.matrix();
  }
  args.reduced_loss = loss.reduced();
  const bool gradients = !grad.absent() || !target_grad.absent();
  Run(input.bytes(), given.threads, [&](const xent_exec *exec, xent_error *error) {
    return gradients ? xent_binary_cross_entropy_forward_backward(&args, &options, exec, error)
                     : xent_binary_cross_entropy_forward(&args, &options, exec, error);
  });
  if (!target_grad.absent()) {
    return ResultType("BinaryCrossEntropyResult")(loss.Finish(), grad.Finish(), target_grad.Finish());
  }
  nb::object value = loss.Finish();
  return grad.absent() ? std::move(value) : Tuple(std::move(value), grad.Finish());
}

nb::object BinaryCrossEntropyWithLogits(PyObject *const *positional, Py_ssize_t nargs, PyObject *keywords) {
  static constexpr const char *kNames[] = {"logits",      "targets",         "axis",      "pos_weight", "class_weights",
                                           "row_weights", "element_weights", "reduction", "divisor",    "empty_mean",
                                           "grad",        "target_grad",     "upstream",  "threads"};
  static PyObject *interned[std::size(kNames)];
  const auto given = Read("binary_cross_entropy_with_logits", kNames, interned, 2, 2, positional, nargs, keywords);
  return RunBinary({given[0], given[1], given[2], given[3], given[4], given[5], given[6], given[7], given[8], given[9],
                    given[10], given[11], given[12], given[13]},
                   "logits", XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT);
}

nb::object BinaryCrossEntropy(PyObject *const *positional, Py_ssize_t nargs, PyObject *keywords) {
  static constexpr const char *kNames[] = {"probabilities",   "targets",   "axis",    "class_weights", "row_weights",
                                           "element_weights", "reduction", "divisor", "empty_mean",    "grad",
                                           "target_grad",     "upstream",  "threads"};
  static PyObject *interned[std::size(kNames)];
  const auto given = Read("binary_cross_entropy", kNames, interned, 2, 2, positional, nargs, keywords);
  xent_binary_cross_entropy_options options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
  options.input = XENT_BINARY_PROBABILITIES;
  return RunBinary({given[0], given[1], given[2], nullptr, given[3], given[4], given[5], given[6], given[7], given[8],
                    given[9], given[10], given[11], given[12]},
                   "probabilities", options);
}

nb::object SigmoidFocalLoss(PyObject *const *positional, Py_ssize_t nargs, PyObject *keywords) {
  static constexpr const char *kNames[] = {
      "logits",          "targets",   "gamma",   "alpha",      "axis", "pos_weight",  "class_weights", "row_weights",
      "element_weights", "reduction", "divisor", "empty_mean", "grad", "target_grad", "upstream",      "threads"};
  static PyObject *interned[std::size(kNames)];
  const auto given = Read("sigmoid_focal_loss", kNames, interned, 2, 2, positional, nargs, keywords);
  xent_binary_cross_entropy_options options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
  options.focal_gamma = NumberOf(given[2], "gamma", 2.0);
  // None is no factor, which is not the default.
  if (given[3] != Py_None) {
    options.focal_alpha = NumberOf(given[3], "alpha", 0.25);
    if (!(options.focal_alpha >= 0.0)) Throw(PyExc_ValueError, "alpha is %S, expected 0 to 1 or None", given[3]);
  }
  return RunBinary({given[0], given[1], given[4], given[5], given[6], given[7], given[8], given[9], given[10],
                    given[11], given[12], given[13], given[14], given[15]},
                   "logits", options);
}

// ---------------------------------------------------------------- divergences

struct Divergence {
  PyObject *student, *teacher, *axis, *row_weights, *valid_cols, *reduction, *divisor, *empty_mean, *grad, *upstream,
      *threads;
};

nb::object RunDivergence(const Divergence &given, xent_divergence_options options) {
  Array student = FloatsOf(given.student, "student");
  const Layout layout = LayoutOf(&student, given.axis);
  Array teacher = FloatsOf(given.teacher, "teacher");
  CheckShape(teacher, layout.ndim, layout.shape, "the shape of student");
  xent_divergence args = XENT_DIVERGENCE_INIT;
  args.rows = layout.rows;
  args.cols = layout.cols;
  args.inner = layout.inner;
  args.student = MatrixOf(&student, layout);
  args.teacher = MatrixOf(&teacher, layout);
  const Array row_weights = RowNumbersOf(given.row_weights, "row_weights", student, layout);
  args.row_weights = DataOf(row_weights);
  options.valid_cols = ValidColsOf(given.valid_cols);
  options.reduction = ReductionOf(given.reduction, given.divisor, given.empty_mean);
  Array upstream;
  args.upstream = UpstreamOf(given.upstream, student, layout, false, &upstream);
  Output grad = Output::Of(given.grad, "grad", layout, student, &student, {&teacher, &row_weights, &upstream});
  args.grad = grad.matrix();
  Loss loss;
  loss.is_wide = student.dtype == XENT_F64;
  if (options.reduction.kind == XENT_REDUCTION_NONE) {
    loss.losses = Output::Plain(layout.rows_ndim, layout.rows_shape, ArithmeticType(student.dtype));
    args.row_losses = loss.losses.data();
  }
  args.reduced_loss = loss.reduced();
  Run(student.bytes(), given.threads, [&](const xent_exec *exec, xent_error *error) {
    return grad.absent() ? xent_divergence_forward(&args, &options, exec, error)
                         : xent_divergence_forward_backward(&args, &options, exec, error);
  });
  nb::object value = loss.Finish();
  return grad.absent() ? std::move(value) : Tuple(std::move(value), grad.Finish());
}

nb::object KlDiv(PyObject *const *positional, Py_ssize_t nargs, PyObject *keywords) {
  static constexpr const char *kNames[] = {"student",     "teacher",    "kind",      "temperature", "axis",
                                           "row_weights", "valid_cols", "reduction", "divisor",     "empty_mean",
                                           "grad",        "upstream",   "threads"};
  static constexpr const char *kKinds[] = {"forward", "reverse", "cross_entropy"};
  static constexpr int32_t kKindNumbers[] = {XENT_DIVERGENCE_FORWARD_KL, XENT_DIVERGENCE_REVERSE_KL,
                                             XENT_DIVERGENCE_CROSS_ENTROPY};
  static PyObject *interned[std::size(kNames)];
  const auto given = Read("kl_div", kNames, interned, 2, 2, positional, nargs, keywords);
  xent_divergence_options options = XENT_DIVERGENCE_OPTIONS_INIT;
  options.kind = kKindNumbers[ChoiceOf(given[2], "kind", kKinds, std::size(kKinds), 0)];
  options.temperature = NumberOf(given[3], "temperature", 1.0);
  return RunDivergence(
      {given[0], given[1], given[4], given[5], given[6], given[7], given[8], given[9], given[10], given[11], given[12]},
      options);
}

nb::object JsDiv(PyObject *const *positional, Py_ssize_t nargs, PyObject *keywords) {
  static constexpr const char *kNames[] = {"student",     "teacher",    "beta",      "temperature", "axis",
                                           "row_weights", "valid_cols", "reduction", "divisor",     "empty_mean",
                                           "grad",        "upstream",   "threads"};
  static PyObject *interned[std::size(kNames)];
  const auto given = Read("js_div", kNames, interned, 2, 2, positional, nargs, keywords);
  xent_divergence_options options = XENT_DIVERGENCE_OPTIONS_INIT;
  options.kind = XENT_DIVERGENCE_JENSEN_SHANNON;
  options.beta = NumberOf(given[2], "beta", 0.5);
  options.temperature = NumberOf(given[3], "temperature", 1.0);
  return RunDivergence(
      {given[0], given[1], given[4], given[5], given[6], given[7], given[8], given[9], given[10], given[11], given[12]},
      options);
}

// ---------------------------------------------------------------- the library

nb::object Info(PyObject *const *args, Py_ssize_t nargs, PyObject *keywords) {
  Parameters{"info", 0, 0, nullptr, 0, nullptr}.Read(args, nargs, keywords, nullptr);
  const auto list = [](const char *(*name_of)(int32_t) noexcept) {
    nb::list names;
    for (int32_t i = 0; name_of(i) != nullptr; ++i) names.append(nb::str(name_of(i)));
    return names;
  };
  nb::dict info;
  info["version"] = nb::str(xent_version());
  info["target"] = nb::str(xent_active_target());
  info["available_targets"] = list(&xent_available_target);
  info["compiled_targets"] = list(&xent_compiled_target);
  const char *const unknown = xent_unknown_max_target();
  info["unknown_max_target"] = unknown == nullptr ? nb::none() : nb::object(nb::str(unknown));
  info["threads"] = nb::int_(NumThreads());
  info["openmp"] = nb::bool_(XENT_PYTHON_OPENMP);
  info["highway"] = nb::str(xent_highway_version());
  return info;
}

template <nb::object (*kFunction)(PyObject *const *, Py_ssize_t, PyObject *)>
PyMethodDef Method(const char *name, const char *doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Guarded<kFunction>)),
          METH_FASTCALL | METH_KEYWORDS, doc};
}

}  // namespace

void DefineNumpy(nb::module_ &m) {
  ImportNumpy();
  static PyMethodDef methods[] = {
      Method<&CrossEntropy>("cross_entropy", docs::kCrossEntropy),
      Method<&Score>("score", docs::kScore),
      Method<&Softmax>("softmax", docs::kSoftmax),
      Method<&LogSoftmax>("log_softmax", docs::kLogSoftmax),
      Method<&LogSumExp>("logsumexp", docs::kLogSumExp),
      Method<&CheckLogits>("check_logits", docs::kCheckLogits),
      Method<&Exp>("exp", docs::kExp),
      Method<&Log>("log", docs::kLog),
      Method<&Log1p>("log1p", docs::kLog1p),
      Method<&BinaryCrossEntropyWithLogits>("binary_cross_entropy_with_logits", docs::kBinaryCrossEntropyWithLogits),
      Method<&BinaryCrossEntropy>("binary_cross_entropy", docs::kBinaryCrossEntropy),
      Method<&SigmoidFocalLoss>("sigmoid_focal_loss", docs::kSigmoidFocalLoss),
      Method<&KlDiv>("kl_div", docs::kKlDiv),
      Method<&JsDiv>("js_div", docs::kJsDiv),
      Method<&Info>("info", docs::kInfo),
      {nullptr, nullptr, 0, nullptr},
  };
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw nb::python_error();
}

}  // namespace xent_python
