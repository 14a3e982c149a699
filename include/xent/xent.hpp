// xent.hpp: a C++20 layer over xent.h. Typed views instead of void pointers, enum classes, a [[nodiscard]] Status.
//
// A function or struct here stands for the one of its name in xent.h (CrossEntropyForward: xent_cross_entropy_forward).
// Formulas, special values, error bounds, statuses and what holds for every function (layout, checks, bits, memory,
// threads) are there; comments here have what differs, part by part in the same order. This layer adds one check: it
// compares the sizes of a call's spans and views with one another. What it refuses is kInvalidArgument, and nothing has
// been changed. Everything here is noexcept and takes nothing from the heap.
//
// Element types: float, double, and xent::bfloat16 and xent::float16, which are storage (two bytes) without arithmetic.
// Arithmetic<T> is double for double and float for every other T: the type of losses, weights, statistics and upstream
// gradients. An empty span, a null pointer and a view without data are absent.
#ifndef XENT_XENT_HPP_
#define XENT_XENT_HPP_

#include <xent/xent.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <variant>

namespace xent {

// ------------------------------------------------------------------ enumerations --------------------------------

enum class Code : std::int32_t {
  kOk = XENT_OK,
  kInvalidArgument = XENT_INVALID_ARGUMENT,
  kTargetOutOfRange = XENT_TARGET_OUT_OF_RANGE,
  kDomainError = XENT_DOMAIN_ERROR,
  kIncomplete = XENT_INCOMPLETE,
};

enum class ReductionKind : std::int32_t {
  kMean = XENT_REDUCTION_MEAN,
  kSum = XENT_REDUCTION_SUM,
  kNone = XENT_REDUCTION_NONE,
};

enum class EmptyMean : std::int32_t { kNan = XENT_EMPTY_MEAN_NAN, kZero = XENT_EMPTY_MEAN_ZERO };
enum class Smoothing : std::int32_t { kUniform = XENT_SMOOTHING_UNIFORM, kExclusive = XENT_SMOOTHING_EXCLUSIVE };
enum class BinaryInput : std::int32_t { kLogits = XENT_BINARY_LOGITS, kProbabilities = XENT_BINARY_PROBABILITIES };

enum class DivergenceKind : std::int32_t {
  kForwardKl = XENT_DIVERGENCE_FORWARD_KL,
  kReverseKl = XENT_DIVERGENCE_REVERSE_KL,
  kJensenShannon = XENT_DIVERGENCE_JENSEN_SHANNON,
  kCrossEntropy = XENT_DIVERGENCE_CROSS_ENTROPY,
};

enum class Diagnosis : std::int32_t {
  kLogits = XENT_DIAGNOSIS_LOGITS,
  kProbabilities = XENT_DIAGNOSIS_PROBABILITIES,
  kLogProbabilities = XENT_DIAGNOSIS_LOG_PROBABILITIES,
};

// ------------------------------------------------------------------ element types, views ------------------------

// The bits of a bfloat16 or IEEE binary16 number. An array of std::uint16_t holding such bits may be passed by
// reinterpret_cast of its pointer: this layer never dereferences it.
struct bfloat16 {
  std::uint16_t bits;
};
struct float16 {
  std::uint16_t bits;
};

template <class T>
concept Element =
    std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bfloat16> || std::same_as<T, float16>;

template <class T>
concept Index = std::same_as<T, std::int32_t> || std::same_as<T, std::int64_t>;

template <class T>
using Arithmetic = std::conditional_t<std::same_as<std::remove_const_t<T>, double>, double, float>;

// rows x cols elements in the layout of the call. With inner = 1 row i is at data + i * stride; stride 0 means cols.
// With inner = d > 1 the matrix is [rows / d, cols, d], group b at data + b * stride; stride 0 means cols * d. rows and
// cols are checked, but what `data` points to cannot be: the caller vouches for it.
template <class T>
struct MatrixView {
  T *data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  constexpr operator MatrixView<const T>() const noexcept { return {data, rows, cols, stride}; }
};

// The gradient of whatever follows the reduced loss: 1 where nothing is given, one number, one number a row, or one
// number an element (binary cross-entropy only). As .upstream = 0.5f or .upstream = numbers_of_rows.
template <class A>
using Upstream = std::variant<std::monostate, A, std::span<const A>, MatrixView<const A>>;

// What a forward call saves of one row for backward; opaque.
struct alignas(8) Record {
  std::byte bytes[XENT_RECORD_BYTES];
};
static_assert(sizeof(Record) == XENT_RECORD_BYTES);

// What ShardForward gives for one row and one chunk of columns; opaque, plain bytes that may be sent.
struct alignas(8) ChunkRecord {
  std::byte bytes[XENT_CHUNK_RECORD_BYTES];
};
static_assert(sizeof(ChunkRecord) == XENT_CHUNK_RECORD_BYTES);

// ------------------------------------------------------------------ status, execution, reduction ----------------

// How a call ended.
class [[nodiscard]] Status {
 public:
  Status() noexcept = default;
  Status(xent_status code, const xent_error &error) noexcept : error_(error) {
    error_.status = code;
    if (code != XENT_OK && error_.message[0] == '\0') {
      std::snprintf(error_.message, sizeof(error_.message), "%s", xent_status_string(code));
    }
  }

  bool ok() const noexcept { return error_.status == XENT_OK; }
  Code code() const noexcept { return static_cast<Code>(error_.status); }
  // Returns the argument, the position, the value and what was expected; "" when ok().
  const char *message() const noexcept { return error_.message; }
  // Returns the position of the offending element, from 0; -1: none is known.
  std::int64_t row() const noexcept { return error_.row; }
  std::int64_t column() const noexcept { return error_.column; }
  // Returns the offending number, exact up to 2^53; 0: none is known.
  double value() const noexcept { return error_.value; }

 private:
  xent_error error_ = XENT_ERROR_INIT;
};

// One call's share of work, handed to the caller's parallel_for: task(i) runs piece i and never throws.
class Task {
 public:
  Task(xent_task task, void *arg) noexcept : task_(task), arg_(arg) {}
  void operator()(std::int64_t i) const noexcept { task_(arg_, i); }

 private:
  xent_task task_;
  void *arg_;
};

namespace detail {
class ExecOfCall;
}

// How a call is spread over threads. The result never depends on it.
class Exec {
 public:
  Exec() noexcept = default;  // the library's own OpenMP team, as many threads as it has

  // Returns the library's own OpenMP team with a number of threads; 0: as many as it has.
  static Exec OpenMp(std::int32_t threads = 0) noexcept {
    Exec exec;
    exec.threads_ = threads;
    return exec;
  }

  // Returns the calling thread alone.
  static Exec Serial() noexcept { return OpenMp(1); }

  // Returns the caller's pool: parallel_for(n, task) calls task(i) once for each i in [0, n), in any order, on any
  // thread, and returns when all are done. threads: how many the pool has; 0: unknown. The pool is held by reference
  // and must outlive the call. It may throw, like a return only when no task runs or will run: the call is then
  // kIncomplete, whatever tasks have run, and its message has what() of a std::exception.
  template <class F>
    requires(std::is_object_v<F> && std::invocable<F &, std::int64_t, Task>)
  static Exec ParallelFor(F &parallel_for, std::int32_t threads = 0) noexcept {
    Exec exec = OpenMp(threads);
    exec.pool_ = const_cast<void *>(static_cast<const void *>(std::addressof(parallel_for)));
    exec.run_ = [](void *pool, std::int64_t n, Task task) { (*static_cast<F *>(pool))(n, task); };
    return exec;
  }
  template <class F>
  static Exec ParallelFor(const F &&, std::int32_t = 0) = delete;

 private:
  friend class detail::ExecOfCall;

  void *pool_ = nullptr;
  void (*run_)(void *pool, std::int64_t n, Task task) = nullptr;
  std::int32_t threads_ = 0;
};

// How losses become one number.
struct Reduction {
  ReductionKind kind = ReductionKind::kMean;
  EmptyMean empty_mean = EmptyMean::kNan;        // the mean over no (or no weighted) row
  std::optional<double> divisor = std::nullopt;  // D, finite, > 0: sum and mean are sum / D
};

// ------------------------------------------------------------------ details -------------------------------------

namespace detail {

template <Element T>
inline constexpr xent_dtype kDtype = std::same_as<T, float>      ? XENT_F32
                                     : std::same_as<T, double>   ? XENT_F64
                                     : std::same_as<T, bfloat16> ? XENT_BF16
                                                                 : XENT_F16;

template <class T>
xent_matrix CMatrix(const MatrixView<T> &view) noexcept {
  return {const_cast<std::remove_const_t<T> *>(view.data), view.stride, kDtype<std::remove_const_t<T>>, 0};
}

template <Index I>
xent_targets CTargets(const I *data) noexcept {
  return {data, std::same_as<I, std::int32_t> ? XENT_I32 : XENT_I64, 0};
}

// Returns rows * count, -1 where one of them is negative, the largest number where it does not fit.
inline std::int64_t Times(std::int64_t rows, std::int64_t count) noexcept {
  if (rows < 0 || count < 0) return -1;
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  return count != 0 && rows > kMax / count ? kMax : rows * count;
}

// An Exec as C takes it, for one call: no exception of the caller's pool goes through the library.
class ExecOfCall {
 public:
  explicit ExecOfCall(const Exec &exec) noexcept : exec_(exec) {
    c_exec_.threads = exec.threads_;
    if (exec.run_ == nullptr) return;
    c_exec_.parallel_for = Run;
    c_exec_.ctx = this;
  }
  ExecOfCall(const ExecOfCall &) = delete;

  const xent_exec *c_exec() const noexcept { return &c_exec_; }

  // Returns the status of the call, which had this one; fills *error where the pool has thrown.
  xent_status Ended(xent_status status, xent_error *error) const noexcept {
    if (!threw_) return status;
    std::snprintf(error->message, sizeof(error->message), "parallel_for threw %s; the outputs are unspecified", what_);
    return XENT_INCOMPLETE;
  }

 private:
  static void Run(void *self, std::int64_t n, xent_task task, void *arg) noexcept {
    ExecOfCall &call = *static_cast<ExecOfCall *>(self);
#if defined(__cpp_exceptions)
    try {
      call.exec_.run_(call.exec_.pool_, n, Task(task, arg));
    } catch (const std::exception &exception) {
      call.Keep(exception.what());
    } catch (...) {
      call.Keep("what is no std::exception");
    }
#else
    call.exec_.run_(call.exec_.pool_, n, Task(task, arg));
#endif
  }
  void Keep(const char *what) noexcept {
    threw_ = true;
    std::snprintf(what_, sizeof(what_), "%s", what);
  }

  const Exec &exec_;
  xent_exec c_exec_ = XENT_EXEC_INIT;
  bool threw_ = false;
  char what_[128] = {};
};

// Turns the members of a call of rows x cols elements into those of its C struct, and keeps the first that it refuses.
// It leaves sizes below zero to the library, which names the argument.
class Border {
 public:
  // of: the name of the matrix that has these rows and columns.
  Border(const char *of, std::int64_t rows, std::int64_t cols) noexcept : of_(of), rows_(rows), cols_(cols) {}

  // Returns the data of a span that must have `want` elements, as many as `whose` and `of` say.
  template <class T>
  T *Array(const char *name, std::span<T> span, std::int64_t want, const char *whose, const char *of = "") noexcept {
    if (want >= 0 && std::cmp_not_equal(span.size(), want) && ok()) {
      std::snprintf(Refusal(), sizeof(error_.message), "%s has %llu elements; expected %lld, %s%s", name,
                    static_cast<unsigned long long>(span.size()), static_cast<long long>(want), whose, of);
    }
    return span.data();
  }

  // Returns the same, or null for an empty span. Rows and Cols expect as many elements as the call has of these.
  template <class T>
  T *Optional(const char *name, std::span<T> span, std::int64_t want, const char *whose, const char *of = "") noexcept {
    return span.empty() ? nullptr : Array(name, span, want, whose, of);
  }
  template <class T>
  T *Rows(const char *name, std::span<T> s) noexcept {
    return Optional(name, s, rows_, "the rows of ", of_);
  }
  template <class T>
  T *Cols(const char *name, std::span<T> s) noexcept {
    return Optional(name, s, cols_, "the columns of ", of_);
  }

  // Returns the C matrix of a view that has rows x cols elements or no data.
  template <class T>
  xent_matrix CMatrix(const char *name, const MatrixView<T> &view) noexcept {
    if (view.data != nullptr && (view.rows != rows_ || view.cols != cols_) && ok()) {
      std::snprintf(Refusal(), sizeof(error_.message), "%s is %lld x %lld; expected %lld x %lld, the shape of %s", name,
                    static_cast<long long>(view.rows), static_cast<long long>(view.cols), static_cast<long long>(rows_),
                    static_cast<long long>(cols_), of_);
    }
    return detail::CMatrix(view);
  }

  // Returns size / rows, which must be whole.
  std::int64_t PerRow(const char *name, std::size_t size) noexcept {
    if (rows_ > 0 && size % static_cast<std::uint64_t>(rows_) == 0) return static_cast<std::int64_t>(size) / rows_;
    if (rows_ >= 0 && size != 0 && ok()) {
      std::snprintf(Refusal(), sizeof(error_.message), "%s has %llu elements; expected a multiple of the %lld rows",
                    name, static_cast<unsigned long long>(size), static_cast<long long>(rows_));
    }
    return 0;
  }

  // Returns the C struct, which points into `upstream`.
  template <class A>
  xent_upstream CUpstream(const Upstream<A> &upstream) noexcept {
    xent_upstream c = XENT_NO_UPSTREAM;
    if (const auto *number = std::get_if<A>(&upstream)) {
      c.data = number;
    } else if (const auto *rows = std::get_if<std::span<const A>>(&upstream)) {
      c.data = Array("upstream", *rows, rows_, "the rows of ", of_);
      c.kind = XENT_UPSTREAM_ROWS;
    } else if (const auto *elements = std::get_if<MatrixView<const A>>(&upstream)) {
      c.data = CMatrix("upstream", *elements).data;
      c.stride = elements->stride;
      c.kind = XENT_UPSTREAM_ELEMENTS;
    }
    return c;
  }

  xent_reduction CReduction(const Reduction &reduction) noexcept {
    Require(reduction.divisor != 0.0, "reduction.divisor is 0; expected a number above 0, or none");
    return {static_cast<std::int32_t>(reduction.kind), static_cast<std::int32_t>(reduction.empty_mean),
            reduction.divisor.value_or(0.0)};
  }

  void Require(bool holds, const char *message) noexcept {
    if (!holds && ok()) std::snprintf(Refusal(), sizeof(error_.message), "%s", message);
  }

  // Calls function(error), or function(c_exec, error), unless something has been refused. CallRows calls a row function
  // of C, whose arguments between x and exec are `rest`.
  template <class F>
  Status Call(F function) noexcept {
    if (!ok()) return Status(XENT_INVALID_ARGUMENT, error_);
    const xent_status code = function(&error_);
    return Status(code, error_);
  }
  template <class F>
  Status Call(const Exec &exec, F function) noexcept {
    return Call([&](xent_error *error) {
      ExecOfCall of_call(exec);
      return of_call.Ended(function(of_call.c_exec(), error), error);
    });
  }
  template <class F, class T, class... Rest>
  Status CallRows(F function, const MatrixView<T> &x, std::int64_t inner, const Exec &exec, Rest... rest) noexcept {
    return Call(exec, [&](const xent_exec *c_exec, xent_error *error) {
      return function(rows_, cols_, inner, detail::CMatrix(x), rest..., c_exec, error);
    });
  }

 private:
  bool ok() const noexcept { return error_.status == XENT_OK; }
  char *Refusal() noexcept {
    error_.status = XENT_INVALID_ARGUMENT;
    return error_.message;
  }

  const char *of_;
  std::int64_t rows_;
  std::int64_t cols_;
  xent_error error_ = XENT_ERROR_INIT;
};

template <class T>
Status Map(xent_status (*function)(const T *, T *, std::int64_t) noexcept, std::span<const T> x,
           std::span<T> y) noexcept {
  const auto size = static_cast<std::int64_t>(x.size());
  Border border("x", 1, size);
  T *data = border.Array("y", y, size, "the size of x");
  return border.Call([&](xent_error *) { return function(x.data(), data, size); });
}

}  // namespace detail

// ------------------------------------------------------------------ library -------------------------------------

inline const char *Version() noexcept { return xent_version(); }  // "0.2.0"
// Returns the SIMD target that calls run on, in Highway's words.
inline const char *ActiveTarget() noexcept { return xent_active_target(); }
// Returns the threads that a call with the default policy would use now.
inline std::int32_t DefaultThreads() noexcept { return xent_default_threads(); }
// Returns the columns of one chunk of a row of `cols` logits.
inline std::int64_t ChunkCols(std::int64_t cols) noexcept { return xent_chunk_cols(cols); }
// Returns the bytes of a workspace for `threads` threads (0: those of the default policy) and rows of `cols` columns.
template <Element T>
std::size_t WorkspaceBytes(std::int64_t cols, std::int32_t threads = 0) noexcept {
  return xent_workspace_bytes(cols, detail::kDtype<T>, threads);
}

// ------------------------------------------------------------------ array functions -----------------------------

// Formula   y[i] = exp(x[i]), log(x[i]), log(1 + x[i]).
// Shapes    x, y: one size.
// Aliasing  y may be x.
inline Status Exp(std::span<const float> x, std::span<float> y) noexcept { return detail::Map(xent_exp_f32, x, y); }
inline Status Exp(std::span<const double> x, std::span<double> y) noexcept { return detail::Map(xent_exp_f64, x, y); }
inline Status Log(std::span<const float> x, std::span<float> y) noexcept { return detail::Map(xent_log_f32, x, y); }
inline Status Log(std::span<const double> x, std::span<double> y) noexcept { return detail::Map(xent_log_f64, x, y); }
inline Status Log1p(std::span<const float> x, std::span<float> y) noexcept { return detail::Map(xent_log1p_f32, x, y); }
inline Status Log1p(std::span<const double> x, std::span<double> y) noexcept {
  return detail::Map(xent_log1p_f64, x, y);
}

// ------------------------------------------------------------------ row functions -------------------------------

// Formula   lse[i] = log sum_j exp(x[i,j]).
// Shapes    x [rows, cols]; lse [rows].
template <class T>
  requires Element<std::remove_const_t<T>>
Status LogSumExp(MatrixView<T> x, std::span<Arithmetic<T>> lse, std::int64_t inner = 1,
                 const Exec &exec = {}) noexcept {
  detail::Border border("x", x.rows, x.cols);
  return border.CallRows(xent_logsumexp, x, inner, exec, border.Array("lse", lse, x.rows, "the rows of x"));
}

// Formula   y = softmax of each row of x.
// Shapes    x, y [rows, cols].
// Aliasing  y may be x where the strides are equal.
template <Element T>
Status Softmax(std::type_identity_t<MatrixView<const T>> x, MatrixView<T> y, std::int64_t inner = 1,
               const Exec &exec = {}) noexcept {
  detail::Border border("x", x.rows, x.cols);
  return border.CallRows(xent_softmax, x, inner, exec, border.CMatrix("y", y));
}

// Formula   y = log softmax of each row of x. All else as Softmax.
template <Element T>
Status LogSoftmax(std::type_identity_t<MatrixView<const T>> x, MatrixView<T> y, std::int64_t inner = 1,
                  const Exec &exec = {}) noexcept {
  detail::Border border("x", x.rows, x.cols);
  return border.CallRows(xent_log_softmax, x, inner, exec, border.CMatrix("y", y));
}

// Formula   dx from g, the upstream gradient, and y, the saved output of Softmax.
// Shapes    g, y, dx [rows, cols].
// Aliasing  dx may be g or y where the strides are equal.
template <Element T>
Status SoftmaxBackward(std::type_identity_t<MatrixView<const T>> g, std::type_identity_t<MatrixView<const T>> y,
                       MatrixView<T> dx, std::int64_t inner = 1, const Exec &exec = {}) noexcept {
  detail::Border border("g", g.rows, g.cols);
  return border.CallRows(xent_softmax_backward, g, inner, exec, border.CMatrix("y", y), border.CMatrix("dx", dx));
}

// Formula   dx from g, the upstream gradient, and y, the saved output of LogSoftmax. All else as SoftmaxBackward.
template <Element T>
Status LogSoftmaxBackward(std::type_identity_t<MatrixView<const T>> g, std::type_identity_t<MatrixView<const T>> y,
                          MatrixView<T> dx, std::int64_t inner = 1, const Exec &exec = {}) noexcept {
  detail::Border border("g", g.rows, g.cols);
  return border.CallRows(xent_log_softmax_backward, g, inner, exec, border.CMatrix("y", y), border.CMatrix("dx", dx));
}

// Formula   *diagnosis: whether x looks like logits, or like probabilities fed where logits belong.
// Shapes    x [rows, cols].
// Status    *diagnosis is written where ok().
template <class T>
  requires Element<std::remove_const_t<T>>
Status CheckLogits(MatrixView<T> x, Diagnosis *diagnosis, std::int64_t inner = 1, const Exec &exec = {}) noexcept {
  detail::Border border("x", x.rows, x.cols);
  border.Require(diagnosis != nullptr, "diagnosis is null");
  xent_diagnosis found = XENT_DIAGNOSIS_LOGITS;
  const Status status = border.CallRows(xent_check_logits, x, inner, exec, &found);
  if (status.ok()) *diagnosis = static_cast<Diagnosis>(found);
  return status;
}

// ------------------------------------------------------------------ cross-entropy -------------------------------

// The defaults are PyTorch's.
struct CrossEntropyOptions {
  std::int64_t ignore_index = -100;
  std::int64_t valid_cols = 0;
  double logit_scale = 1.0;
  double softcap = 0.0;
  double label_smoothing = 0.0;
  double z_loss = 0.0;
  Smoothing smoothing = Smoothing::kUniform;
  Reduction reduction = {};
};

// What may be asked of the rows beside the loss, out of the forward functions.
// Shapes    topk_logprobs, topk_indices [rows, top_k]; gather_cols, gathered [rows, any number]; every other span
//           [rows].
template <Element T>
struct Statistics {
  std::span<Arithmetic<T>> lse = {};
  std::span<Arithmetic<T>> logprobs = {};
  std::span<std::int64_t> argmax = {};
  std::span<std::uint8_t> hits = {};
  std::span<std::int64_t> rank = {};
  std::span<Arithmetic<T>> entropy = {};
  std::int64_t top_k = 0;
  std::span<Arithmetic<T>> topk_logprobs = {};
  std::span<std::int64_t> topk_indices = {};
  std::span<const std::int64_t> gather_cols = {};
  std::span<Arithmetic<T>> gathered = {};
  double *perplexity = nullptr;
  std::int64_t *live_rows = nullptr;
  bool of_ignored = false;
};

// The tensors of a call. As
//   xent::CrossEntropy<float>{
//       .logits = {z.data(), n, v}, .targets = targets, .reduced_loss = &loss, .grad = {g.data(), n, v}}
// The target is a class a row in `targets`, or a distribution a row in `target_probs`; not both.
// Shapes    logits, target_probs, grad, target_grad [rows, cols]; class_weights [cols]; every other span [rows].
// Aliasing  grad may be logits where the strides are equal.
template <Element T, Index I = std::int64_t, Element Q = T>
struct CrossEntropy {
  MatrixView<const T> logits = {};
  std::int64_t inner = 1;
  std::span<const I> targets = {};
  MatrixView<const Q> target_probs = {};
  std::span<const Arithmetic<T>> class_weights = {};
  std::span<const Arithmetic<T>> row_weights = {};

  std::span<Arithmetic<T>> row_losses = {};
  Arithmetic<T> *reduced_loss = nullptr;
  Statistics<T> statistics = {};
  std::span<Record> records = {};  // out of forward, in of backward
  Upstream<Arithmetic<T>> upstream = {};
  MatrixView<T> grad = {};
  MatrixView<Q> target_grad = {};
  std::span<std::byte> workspace = {};  // speed alone: WorkspaceBytes
};

namespace detail {

inline xent_cross_entropy_options COptions(const CrossEntropyOptions &options, Border &border) noexcept {
  xent_cross_entropy_options c = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  c.ignore_index = options.ignore_index;
  c.valid_cols = options.valid_cols;
  c.logit_scale = options.logit_scale;
  c.softcap = options.softcap;
  c.label_smoothing = options.label_smoothing;
  c.z_loss = options.z_loss;
  c.smoothing = static_cast<std::int32_t>(options.smoothing);
  c.reduction = border.CReduction(options.reduction);
  return c;
}

// A call as C takes it. It points into `args`.
template <Element T, Index I, Element Q>
struct CrossEntropyCall {
  // vocabulary: how many class_weights there must be, as many as `whose` says.
  CrossEntropyCall(const CrossEntropy<T, I, Q> &args, const CrossEntropyOptions &call_options, std::int64_t vocabulary,
                   const char *whose, bool targets_required = true) noexcept
      : border("logits", args.logits.rows, args.logits.cols), options(COptions(call_options, border)) {
    const bool has_targets = !args.targets.empty() || (targets_required && args.target_probs.data == nullptr);
    c.rows = args.logits.rows;
    c.cols = args.logits.cols;
    c.inner = args.inner;
    c.logits = CMatrix(args.logits);
    c.targets = CTargets(has_targets ? border.Array("targets", args.targets, c.rows, "the rows of logits") : nullptr);
    c.target_probs = border.CMatrix("target_probs", args.target_probs);
    c.class_weights = border.Optional("class_weights", args.class_weights, vocabulary, whose);
    c.row_weights = border.Rows("row_weights", args.row_weights);
    c.row_losses = border.Rows("row_losses", args.row_losses);
    c.reduced_loss = args.reduced_loss;
    c.statistics = Fill(args.statistics) ? &statistics : nullptr;
    c.records = border.Rows("records", args.records);
    c.upstream = border.CUpstream<Arithmetic<T>>(args.upstream);
    c.grad = border.CMatrix("grad", args.grad);
    c.target_grad = border.CMatrix("target_grad", args.target_grad);
    c.workspace = args.workspace.empty() ? nullptr : args.workspace.data();
    c.workspace_bytes = args.workspace.size();
  }
  CrossEntropyCall(const CrossEntropyCall &) = delete;

  // Returns whether anything of `s` is set.
  bool Fill(const Statistics<T> &s) noexcept {
    const std::int64_t topk = Times(c.rows, s.top_k);
    const auto gathered = static_cast<std::int64_t>(s.gather_cols.size());
    statistics.lse = border.Rows("statistics.lse", s.lse);
    statistics.logprobs = border.Rows("statistics.logprobs", s.logprobs);
    statistics.argmax = border.Rows("statistics.argmax", s.argmax);
    statistics.hits = border.Rows("statistics.hits", s.hits);
    statistics.rank = border.Rows("statistics.rank", s.rank);
    statistics.entropy = border.Rows("statistics.entropy", s.entropy);
    statistics.top_k = s.top_k;
    statistics.topk_logprobs = border.Optional("statistics.topk_logprobs", s.topk_logprobs, topk, "rows * top_k");
    statistics.topk_indices = border.Optional("statistics.topk_indices", s.topk_indices, topk, "rows * top_k");
    statistics.gather_count = border.PerRow("statistics.gather_cols", s.gather_cols.size());
    statistics.gather_cols = s.gather_cols.empty() ? nullptr : s.gather_cols.data();
    statistics.gathered = border.Optional("statistics.gathered", s.gathered, gathered, "the size of gather_cols");
    statistics.perplexity = s.perplexity;
    statistics.live_rows = s.live_rows;
    statistics.of_ignored = s.of_ignored ? 1 : 0;
    return !s.lse.empty() || !s.logprobs.empty() || !s.argmax.empty() || !s.hits.empty() || !s.rank.empty() ||
           !s.entropy.empty() || s.top_k != 0 || !s.topk_logprobs.empty() || !s.topk_indices.empty() || gathered != 0 ||
           !s.gathered.empty() || s.perplexity != nullptr || s.live_rows != nullptr || s.of_ignored;
  }

  Border border;
  xent_cross_entropy_options options;
  xent_cross_entropy c = XENT_CROSS_ENTROPY_INIT;
  xent_statistics statistics = XENT_STATISTICS_INIT;
};

template <class F, Element T, Index I, Element Q>
Status CallCrossEntropy(F function, const CrossEntropy<T, I, Q> &args, const CrossEntropyOptions &options,
                        const Exec &exec) noexcept {
  CrossEntropyCall call(args, options, args.logits.cols, "the columns of logits");
  return call.border.Call(exec, [&](const xent_exec *c_exec, xent_error *error) {
    return function(&call.c, &call.options, c_exec, error);
  });
}

}  // namespace detail

// Writes row losses, the reduced loss, statistics and records. upstream, grad and target_grad must be unset.
template <Element T, Index I = std::int64_t, Element Q = T>
Status CrossEntropyForward(const CrossEntropy<T, I, Q> &args, const CrossEntropyOptions &options = {},
                           const Exec &exec = {}) noexcept {
  return detail::CallCrossEntropy(xent_cross_entropy_forward, args, options, exec);
}

// Writes what CrossEntropyForward writes, and the gradients of the reduced loss (kNone: of each row loss).
template <Element T, Index I = std::int64_t, Element Q = T>
Status CrossEntropyForwardBackward(const CrossEntropy<T, I, Q> &args, const CrossEntropyOptions &options = {},
                                   const Exec &exec = {}) noexcept {
  return detail::CallCrossEntropy(xent_cross_entropy_forward_backward, args, options, exec);
}

// Writes the gradients alone, from the records that CrossEntropyForward saved. row_losses, reduced_loss and statistics
// must be unset.
template <Element T, Index I = std::int64_t, Element Q = T>
Status CrossEntropyBackward(const CrossEntropy<T, I, Q> &args, const CrossEntropyOptions &options = {},
                            const Exec &exec = {}) noexcept {
  return detail::CallCrossEntropy(xent_cross_entropy_backward, args, options, exec);
}

// Row losses that were stored earlier.
// Shapes    row_losses, targets, row_weights [rows]; class_weights [cols].
template <std::floating_point T, Index I = std::int64_t>
struct StoredLosses {
  std::span<const T> row_losses = {};
  std::span<const I> targets = {};        // which rows are ignored, and their class weights; absent: none is ignored
  std::span<const T> class_weights = {};  // only with targets
  std::span<const T> row_weights = {};
  T *reduced_loss = nullptr;
};

// Writes the reduced loss that one call over these rows gives, with its bits.
template <std::floating_point T, Index I = std::int64_t>
Status Reduce(const StoredLosses<T, I> &args, const CrossEntropyOptions &options = {}) noexcept {
  xent_stored_losses c = XENT_STORED_LOSSES_INIT;
  c.rows = static_cast<std::int64_t>(args.row_losses.size());
  c.cols = static_cast<std::int64_t>(args.class_weights.size());
  detail::Border border("row_losses", c.rows, c.cols);
  const xent_cross_entropy_options c_options = detail::COptions(options, border);
  c.row_losses = args.row_losses.data();
  c.targets = detail::CTargets(border.Optional("targets", args.targets, c.rows, "the size of row_losses"));
  c.class_weights = border.Cols("class_weights", args.class_weights);
  c.row_weights = border.Optional("row_weights", args.row_weights, c.rows, "the size of row_losses");
  c.reduced_loss = args.reduced_loss;
  c.dtype = detail::kDtype<T>;
  return border.Call([&](xent_error *error) { return xent_reduce(&c, &c_options, error); });
}

// ------------------------------------------------------------------ vocabulary shards ---------------------------

// Returns the chunk records per row of a slice of `cols` columns from first_col on, of total_cols (valid_cols if set).
inline std::int64_t ShardChunks(std::int64_t total_cols, std::int64_t first_col, std::int64_t cols) noexcept {
  return xent_shard_chunks(total_cols, first_col, cols);
}

// Where a slice of the columns stands in the whole vocabulary.
struct Shard {
  std::int64_t total_cols = 0;
  std::int64_t first_col = 0;
};

// The most slices that one ShardCombine takes (xent_shard_combine takes any number).
inline constexpr std::size_t kMaxShards = 256;

// Writes the chunk records of a slice. Of args: logits and target_probs (the slice), targets (columns of the whole
// vocabulary), class_weights; every output must be unset.
// Shapes    class_weights [total_cols]; chunk_records [rows, ShardChunks(...)].
template <Element T, Index I = std::int64_t, Element Q = T>
Status ShardForward(const CrossEntropy<T, I, Q> &args, const Shard &shard, std::span<ChunkRecord> chunk_records,
                    const CrossEntropyOptions &options = {}, const Exec &exec = {}) noexcept {
  detail::CrossEntropyCall call(args, options, shard.total_cols, "shard.total_cols");
  const std::int64_t total = options.valid_cols > 0 ? options.valid_cols : shard.total_cols;
  const std::int64_t chunks = ShardChunks(total, shard.first_col, args.logits.cols);
  if (chunks > 0) {  // without chunks nothing is written, or the library says what is wrong
    const std::int64_t want = detail::Times(args.logits.rows, chunks);
    (void)call.border.Array("chunk_records", chunk_records, want, "rows * ShardChunks()");
  }
  const xent_shard c_shard = {sizeof(xent_shard), shard.total_cols, shard.first_col};
  return call.border.Call(exec, [&](const xent_exec *c_exec, xent_error *error) {
    return xent_shard_forward(&call.c, &call.options, &c_shard, chunk_records.data(), c_exec, error);
  });
}

// Writes row losses, the reduced loss, records and the statistics lse, logprobs, perplexity and live_rows from the
// chunk records of all slices, a span each, in the order of their columns. Of args: logits = {nullptr, rows, columns of
// the whole vocabulary}, targets (absent: the targets are probabilities), weights and these outputs.
// Shapes    lists[s]: [rows, any number].
template <Element T, Index I = std::int64_t, Element Q = T>
Status ShardCombine(const CrossEntropy<T, I, Q> &args, std::span<const std::span<const ChunkRecord>> lists,
                    const CrossEntropyOptions &options = {}) noexcept {
  detail::CrossEntropyCall call(args, options, args.logits.cols, "the columns of logits", false);
  call.border.Require(lists.size() <= kMaxShards, "lists has more than 256 elements; xent_shard_combine takes them");
  const void *data[kMaxShards] = {};
  std::int64_t chunks[kMaxShards] = {};
  for (std::size_t i = 0; i < lists.size() && i < kMaxShards; ++i) {
    char name[32];
    std::snprintf(name, sizeof(name), "lists[%u]", static_cast<unsigned>(i));
    data[i] = lists[i].data();
    chunks[i] = call.border.PerRow(name, lists[i].size());
  }
  return call.border.Call([&](xent_error *error) {
    return xent_shard_combine(&call.c, &call.options, data, chunks, static_cast<std::int64_t>(lists.size()), error);
  });
}

// Writes the slice's gradients from the records of ShardCombine. Of args: as ShardForward, and row_weights, records,
// upstream, grad and target_grad (of the slice).
template <Element T, Index I = std::int64_t, Element Q = T>
Status ShardBackward(const CrossEntropy<T, I, Q> &args, const Shard &shard, const CrossEntropyOptions &options = {},
                     const Exec &exec = {}) noexcept {
  detail::CrossEntropyCall call(args, options, shard.total_cols, "shard.total_cols");
  const xent_shard c_shard = {sizeof(xent_shard), shard.total_cols, shard.first_col};
  return call.border.Call(exec, [&](const xent_exec *c_exec, xent_error *error) {
    return xent_shard_backward(&call.c, &call.options, &c_shard, c_exec, error);
  });
}

// ------------------------------------------------------------------ divergences ---------------------------------

struct DivergenceOptions {
  DivergenceKind kind = DivergenceKind::kForwardKl;
  double temperature = 1.0;
  double beta = 0.5;  // another value only with kJensenShannon
  std::int64_t valid_cols = 0;
  Reduction reduction = {};
};

// The tensors of a divergence between a student's and a teacher's logits.
// Shapes    student, teacher, grad [rows, cols]; row_weights, row_losses [rows].
// Aliasing  grad may be student where the strides are equal.
template <Element T, Element U = T>
struct Divergence {
  MatrixView<const T> student = {};
  MatrixView<const U> teacher = {};
  std::int64_t inner = 1;
  std::span<const Arithmetic<T>> row_weights = {};

  std::span<Arithmetic<T>> row_losses = {};
  Arithmetic<T> *reduced_loss = nullptr;
  Upstream<Arithmetic<T>> upstream = {};
  MatrixView<T> grad = {};
};

namespace detail {

template <class F, Element T, Element U>
Status CallDivergence(F function, const Divergence<T, U> &args, const DivergenceOptions &options,
                      const Exec &exec) noexcept {
  Border border("student", args.student.rows, args.student.cols);
  xent_divergence_options c_options = XENT_DIVERGENCE_OPTIONS_INIT;
  c_options.kind = static_cast<std::int32_t>(options.kind);
  c_options.temperature = options.temperature;
  c_options.beta = options.beta;
  c_options.valid_cols = options.valid_cols;
  c_options.reduction = border.CReduction(options.reduction);

  xent_divergence c = XENT_DIVERGENCE_INIT;
  c.rows = args.student.rows;
  c.cols = args.student.cols;
  c.inner = args.inner;
  c.student = CMatrix(args.student);
  c.teacher = border.CMatrix("teacher", args.teacher);
  c.row_weights = border.Rows("row_weights", args.row_weights);
  c.row_losses = border.Rows("row_losses", args.row_losses);
  c.reduced_loss = args.reduced_loss;
  c.upstream = border.CUpstream<Arithmetic<T>>(args.upstream);
  c.grad = border.CMatrix("grad", args.grad);
  return border.Call(
      exec, [&](const xent_exec *c_exec, xent_error *error) { return function(&c, &c_options, c_exec, error); });
}

}  // namespace detail

// Writes row losses and the reduced loss. upstream and grad must be unset.
template <Element T, Element U = T>
Status DivergenceForward(const Divergence<T, U> &args, const DivergenceOptions &options = {},
                         const Exec &exec = {}) noexcept {
  return detail::CallDivergence(xent_divergence_forward, args, options, exec);
}

// Writes what DivergenceForward writes, and the gradient for the student's logits.
template <Element T, Element U = T>
Status DivergenceForwardBackward(const Divergence<T, U> &args, const DivergenceOptions &options = {},
                                 const Exec &exec = {}) noexcept {
  return detail::CallDivergence(xent_divergence_forward_backward, args, options, exec);
}

// ------------------------------------------------------------------ binary cross-entropy ------------------------

struct BinaryCrossEntropyOptions {
  BinaryInput input = BinaryInput::kLogits;
  double focal_gamma = 0.0;                          // logits only
  std::optional<double> focal_alpha = std::nullopt;  // in [0, 1]; logits only
  Reduction reduction = {};
};

// The tensors of a call.
// Shapes    every matrix [rows, cols]; pos_weight, class_weights [cols]; row_weights [rows].
// Aliasing  grad may be input where the strides are equal.
template <Element T, Element Y = T>
struct BinaryCrossEntropy {
  MatrixView<const T> input = {};
  MatrixView<const Y> targets = {};
  std::int64_t inner = 1;
  std::span<const Arithmetic<T>> pos_weight = {};
  std::span<const Arithmetic<T>> class_weights = {};
  std::span<const Arithmetic<T>> row_weights = {};
  MatrixView<const Arithmetic<T>> element_weights = {};

  MatrixView<Arithmetic<T>> element_losses = {};
  Arithmetic<T> *reduced_loss = nullptr;
  Upstream<Arithmetic<T>> upstream = {};
  MatrixView<T> grad = {};
  MatrixView<Y> target_grad = {};
};

namespace detail {

template <class F, Element T, Element Y>
Status CallBinaryCrossEntropy(F function, const BinaryCrossEntropy<T, Y> &args,
                              const BinaryCrossEntropyOptions &options, const Exec &exec) noexcept {
  Border border("input", args.input.rows, args.input.cols);
  border.Require(options.focal_alpha != -1.0, "focal_alpha is -1; expected a number in [0, 1], or none");
  xent_binary_cross_entropy_options c_options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
  c_options.input = static_cast<std::int32_t>(options.input);
  c_options.focal_gamma = options.focal_gamma;
  c_options.focal_alpha = options.focal_alpha.value_or(-1.0);
  c_options.reduction = border.CReduction(options.reduction);

  xent_binary_cross_entropy c = XENT_BINARY_CROSS_ENTROPY_INIT;
  c.rows = args.input.rows;
  c.cols = args.input.cols;
  c.inner = args.inner;
  c.input = CMatrix(args.input);
  c.targets = border.CMatrix("targets", args.targets);
  c.pos_weight = border.Cols("pos_weight", args.pos_weight);
  c.class_weights = border.Cols("class_weights", args.class_weights);
  c.row_weights = border.Rows("row_weights", args.row_weights);
  c.element_weights = border.CMatrix("element_weights", args.element_weights);
  c.element_losses = border.CMatrix("element_losses", args.element_losses);
  c.reduced_loss = args.reduced_loss;
  c.upstream = border.CUpstream<Arithmetic<T>>(args.upstream);
  c.grad = border.CMatrix("grad", args.grad);
  c.target_grad = border.CMatrix("target_grad", args.target_grad);
  return border.Call(
      exec, [&](const xent_exec *c_exec, xent_error *error) { return function(&c, &c_options, c_exec, error); });
}

}  // namespace detail

// Writes the losses of the elements and the reduced loss. upstream, grad and target_grad must be unset.
template <Element T, Element Y = T>
Status BinaryCrossEntropyForward(const BinaryCrossEntropy<T, Y> &args, const BinaryCrossEntropyOptions &options = {},
                                 const Exec &exec = {}) noexcept {
  return detail::CallBinaryCrossEntropy(xent_binary_cross_entropy_forward, args, options, exec);
}

// Writes what BinaryCrossEntropyForward writes, and the gradients of the reduced loss (kNone: of each loss).
template <Element T, Element Y = T>
Status BinaryCrossEntropyForwardBackward(const BinaryCrossEntropy<T, Y> &args,
                                         const BinaryCrossEntropyOptions &options = {},
                                         const Exec &exec = {}) noexcept {
  return detail::CallBinaryCrossEntropy(xent_binary_cross_entropy_forward_backward, args, options, exec);
}

// Writes the gradients alone. element_losses and reduced_loss must be unset.
template <Element T, Element Y = T>
Status BinaryCrossEntropyBackward(const BinaryCrossEntropy<T, Y> &args, const BinaryCrossEntropyOptions &options = {},
                                  const Exec &exec = {}) noexcept {
  return detail::CallBinaryCrossEntropy(xent_binary_cross_entropy_backward, args, options, exec);
}

}  // namespace xent

#endif  // XENT_XENT_HPP_
