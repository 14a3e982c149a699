// xent.hpp: a C++20 header over xent.h. Typed views instead of void pointers, enum classes, a [[nodiscard]] Status.
//
// Formulas, error bounds, special values and what holds for every function (bits, threads, memory, aliasing) stand in
// xent.h. This layer adds one check, that the sizes of spans and views agree, made before the library is called: a
// call refused by it has changed nothing either. Everything here is noexcept and takes nothing from the heap.
//
// Element types: float, double, and xent::bfloat16 and xent::float16, which are storage (two bytes) without arithmetic.
// "Arithmetic<T>" is double for double and float for every other T: the type of losses, lse and upstream gradients.
#ifndef XENT_XENT_HPP_
#define XENT_XENT_HPP_

#include <xent/xent.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

namespace xent {

// ------------------------------------------------------------------ enumerations --------------------------------

enum class Code : std::int32_t {
  kOk = XENT_OK,
  kInvalidArgument = XENT_INVALID_ARGUMENT,
  kTargetOutOfRange = XENT_TARGET_OUT_OF_RANGE,
  kDomainError = XENT_DOMAIN_ERROR,
  kIncomplete = XENT_INCOMPLETE,
};

enum class Reduction : std::int32_t {
  kNone = XENT_REDUCTION_NONE,
  kSum = XENT_REDUCTION_SUM,
  kMean = XENT_REDUCTION_MEAN,
};

enum class Smoothing : std::int32_t {
  kUniform = XENT_SMOOTHING_UNIFORM,
  kExclusive = XENT_SMOOTHING_EXCLUSIVE,
};

enum class EmptyMean : std::int32_t {
  kNan = XENT_EMPTY_MEAN_NAN,
  kZero = XENT_EMPTY_MEAN_ZERO,
};

enum class Diagnosis : std::int32_t {
  kLogits = XENT_DIAGNOSIS_LOGITS,
  kProbabilities = XENT_DIAGNOSIS_PROBABILITIES,
  kLogProbabilities = XENT_DIAGNOSIS_LOG_PROBABILITIES,
};

// ------------------------------------------------------------------ element types -------------------------------

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

// What forward saves of one row for backward; opaque.
struct alignas(8) Record {
  std::byte bytes[XENT_RECORD_BYTES];
};
static_assert(sizeof(Record) == XENT_RECORD_BYTES);

// rows x cols elements, row i at data + i * stride; stride 0 means cols. The caller vouches for the memory: rows and
// cols are compared with what stands beside the view, the extent behind `data` cannot be.
template <class T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  constexpr operator MatrixView<const T>() const noexcept requires(!std::is_const_v<T>) {
    return {data, rows, cols, stride};
  }
};

// ------------------------------------------------------------------ status --------------------------------------

// How a call ended. row() and value() are -1 and 0 where no position is known; message() is empty when ok.
class [[nodiscard]] Status {
 public:
  Status() noexcept = default;
  Status(xent_status code, const xent_error& error) noexcept : error_(error) {
    error_.status = code;
    if (code != XENT_OK && error_.message[0] == '\0') {
      std::snprintf(error_.message, sizeof(error_.message), "%s", xent_status_string(code));
    }
  }

  bool ok() const noexcept { return error_.status == XENT_OK; }
  Code code() const noexcept { return static_cast<Code>(error_.status); }
  const char* message() const noexcept { return error_.message; }
  std::int64_t row() const noexcept { return error_.row; }
  std::int64_t value() const noexcept { return error_.value; }

 private:
  xent_error error_ = XENT_ERROR_INIT;
};

// ------------------------------------------------------------------ options, execution --------------------------

// xent_options; the defaults are PyTorch's.
struct Options {
  std::int64_t ignore_index = -100;
  double label_smoothing = 0.0;
  Smoothing smoothing = Smoothing::kUniform;
  Reduction reduction = Reduction::kMean;
  std::optional<double> divisor = std::nullopt;
  EmptyMean empty_mean = EmptyMean::kNan;
};

// One call's share of work, handed to the caller's parallel_for: task(i) runs piece i. Never throws.
class Task {
 public:
  Task(xent_task task, void* arg) noexcept : task_(task), arg_(arg) {}
  void operator()(std::int64_t i) const noexcept { task_(arg_, i); }

 private:
  xent_task task_;
  void* arg_;
};

// How a call is executed. The result never depends on it.
class Exec {
 public:
  // The library's own OpenMP team, as many threads as it has.
  Exec() noexcept = default;

  // The same with a number of threads; 0 means as many as the team has.
  static Exec OpenMp(std::int32_t threads = 0) noexcept {
    Exec exec;
    exec.exec_.threads = threads;
    return exec;
  }

  // The calling thread alone.
  static Exec Serial() noexcept {
    Exec exec;
    exec.exec_.mode = XENT_EXEC_SERIAL;
    return exec;
  }

  // The caller's pool: parallel_for(n, task) calls task(i) once for each i in [0, n), in any order, on any thread,
  // and returns when all are done. `threads` > 0 says how many the pool has. Held by reference: it must outlive
  // the call. It must not throw: an exception that leaves it ends the process (std::terminate).
  template <class F>
  requires(std::is_object_v<F>&& std::invocable<F&, std::int64_t, Task>) static Exec
      ParallelFor(F& parallel_for, std::int32_t threads = 0) noexcept {
    Exec exec;
    exec.exec_.mode = XENT_EXEC_CALLER;
    exec.exec_.threads = threads;
    exec.exec_.parallel_for = [](void* ctx, std::int64_t n, xent_task task, void* arg) noexcept {
      (*static_cast<F*>(ctx))(n, Task(task, arg));
    };
    exec.exec_.ctx = const_cast<void*>(static_cast<const void*>(std::addressof(parallel_for)));
    return exec;
  }
  template <class F>
  static Exec ParallelFor(const F&&, std::int32_t = 0) = delete;

  const xent_exec* c_exec() const noexcept { return &exec_; }

 private:
  xent_exec exec_ = XENT_EXEC_INIT;
};

// ------------------------------------------------------------------ details -------------------------------------

namespace detail {

template <class T>
constexpr xent_dtype Dtype() noexcept {
  using U = std::remove_const_t<T>;
  static_assert(Element<U>);
  if constexpr (std::same_as<U, float>) {
    return XENT_F32;
  } else if constexpr (std::same_as<U, double>) {
    return XENT_F64;
  } else if constexpr (std::same_as<U, bfloat16>) {
    return XENT_BF16;
  } else {
    return XENT_F16;
  }
}

template <Index I>
constexpr xent_index_type IndexType() noexcept {
  return std::same_as<I, std::int32_t> ? XENT_I32 : XENT_I64;
}

inline Status InvalidArgument(const char* message) noexcept {
  xent_error error = XENT_ERROR_INIT;
  std::snprintf(error.message, sizeof(error.message), "%s", message);
  return Status(XENT_INVALID_ARGUMENT, error);
}

// Sizes below zero are left to the library, which names the argument.
inline bool SizeDiffers(std::size_t size, std::int64_t want) noexcept {
  return want >= 0 && std::cmp_not_equal(size, want);
}

// An empty span stands for "not wanted", also where it points somewhere.
template <class T>
T* DataOrNull(std::span<T> span) noexcept {
  return span.empty() ? nullptr : span.data();
}

inline Status WrongSize(const char* name, std::size_t got, std::int64_t want, const char* of) noexcept {
  xent_error error = XENT_ERROR_INIT;
  std::snprintf(error.message, sizeof(error.message), "%s has %llu elements; expected %lld, as many as %s", name,
                static_cast<unsigned long long>(got), static_cast<long long>(want), of);
  return Status(XENT_INVALID_ARGUMENT, error);
}

template <class A, class B>
bool ShapeDiffers(const MatrixView<A>& a, const MatrixView<B>& b) noexcept {
  return a.rows != b.rows || a.cols != b.cols;
}

template <class A, class B>
Status WrongShape(const char* name, const MatrixView<A>& got, const char* of, const MatrixView<B>& want) noexcept {
  xent_error error = XENT_ERROR_INIT;
  std::snprintf(error.message, sizeof(error.message), "%s is %lld x %lld; expected %lld x %lld, the shape of %s", name,
                static_cast<long long>(got.rows), static_cast<long long>(got.cols), static_cast<long long>(want.rows),
                static_cast<long long>(want.cols), of);
  return Status(XENT_INVALID_ARGUMENT, error);
}

template <class F>
Status Call(F function) noexcept {
  xent_error error = XENT_ERROR_INIT;
  const xent_status code = function(&error);
  return Status(code, error);
}

inline xent_options COptions(const Options& options) noexcept {
  xent_options c = XENT_OPTIONS_INIT;
  c.ignore_index = options.ignore_index;
  c.label_smoothing = options.label_smoothing;
  c.smoothing = static_cast<std::int32_t>(options.smoothing);
  c.reduction = static_cast<std::int32_t>(options.reduction);
  c.divisor = options.divisor.value_or(0.0);
  c.has_divisor = options.divisor.has_value() ? 1 : 0;
  c.empty_mean = static_cast<std::int32_t>(options.empty_mean);
  return c;
}

template <class T>
Status Map(xent_status (*function)(const T*, T*, std::int64_t) noexcept, std::span<const T> x,
           std::span<T> y) noexcept {
  if (x.size() != y.size()) return WrongSize("y", y.size(), static_cast<std::int64_t>(x.size()), "x");
  return Call([&](xent_error*) { return function(x.data(), y.data(), static_cast<std::int64_t>(x.size())); });
}

template <class T, Index I>
Status Reduce(std::span<const T> losses, std::span<const I> targets, T* loss, const Options& options) noexcept {
  const auto rows = static_cast<std::int64_t>(losses.size());
  if (targets.size() != losses.size()) return WrongSize("targets", targets.size(), rows, "losses");
  const xent_options c = COptions(options);
  return Call([&](xent_error* error) {
    return xent_reduce(rows, losses.data(), Dtype<T>(), targets.data(), IndexType<I>(), &c, loss, error);
  });
}

template <class T>
Status ReduceAll(std::span<const T> losses, T* loss, const Options& options) noexcept {
  const xent_options c = COptions(options);
  return Call([&](xent_error* error) {
    return xent_reduce(static_cast<std::int64_t>(losses.size()), losses.data(), Dtype<T>(), nullptr, XENT_I64, &c, loss,
                       error);
  });
}

}  // namespace detail

// ------------------------------------------------------------------ library -------------------------------------

// "0.2.0"
inline const char* Version() noexcept { return xent_version(); }
// The SIMD target that calls run on, in Highway's words.
inline const char* ActiveTarget() noexcept { return xent_active_target(); }
// Threads that a call with the default policy would use now.
inline std::int32_t DefaultThreads() noexcept { return xent_default_threads(); }

// ------------------------------------------------------------------ array functions -----------------------------

// y[i] = exp(x[i]), log(x[i]), log(1 + x[i]). y may be x. Refused when the sizes differ.
inline Status Exp(std::span<const float> x, std::span<float> y) noexcept { return detail::Map(xent_exp_f32, x, y); }
inline Status Exp(std::span<const double> x, std::span<double> y) noexcept { return detail::Map(xent_exp_f64, x, y); }
inline Status Log(std::span<const float> x, std::span<float> y) noexcept { return detail::Map(xent_log_f32, x, y); }
inline Status Log(std::span<const double> x, std::span<double> y) noexcept { return detail::Map(xent_log_f64, x, y); }
inline Status Log1p(std::span<const float> x, std::span<float> y) noexcept { return detail::Map(xent_log1p_f32, x, y); }
inline Status Log1p(std::span<const double> x, std::span<double> y) noexcept {
  return detail::Map(xent_log1p_f64, x, y);
}

// ------------------------------------------------------------------ row functions -------------------------------

// lse[i] = log sum_j exp(x[i,j]). Shapes: x [rows, cols], lse [rows]. Nothing may overlap.
// Errors: invalid argument (size of lse, and as xent_logsumexp), incomplete.
template <class T>
requires Element<std::remove_const_t<T>> Status LogSumExp(MatrixView<T> x, std::span<Arithmetic<T>> lse,
                                                          const Exec& exec = {})
noexcept {
  if (detail::SizeDiffers(lse.size(), x.rows)) return detail::WrongSize("lse", lse.size(), x.rows, "x has rows");
  return detail::Call([&](xent_error* error) {
    return xent_logsumexp(x.rows, x.cols, x.data, detail::Dtype<T>(), x.stride, lse.data(), exec.c_exec(), error);
  });
}

// y = softmax of each row of x. Shapes: both [rows, cols]. y may be x where the strides are equal.
// Errors: invalid argument (shapes differ, and as xent_softmax), incomplete.
template <Element T>
Status Softmax(std::type_identity_t<MatrixView<const T>> x, MatrixView<T> y, const Exec& exec = {}) noexcept {
  if (detail::ShapeDiffers(y, x)) return detail::WrongShape("y", y, "x", x);
  return detail::Call([&](xent_error* error) {
    return xent_softmax(x.rows, x.cols, x.data, detail::Dtype<T>(), x.stride, y.data, y.stride, exec.c_exec(), error);
  });
}

// y = log softmax of each row of x. Otherwise as Softmax.
template <Element T>
Status LogSoftmax(std::type_identity_t<MatrixView<const T>> x, MatrixView<T> y, const Exec& exec = {}) noexcept {
  if (detail::ShapeDiffers(y, x)) return detail::WrongShape("y", y, "x", x);
  return detail::Call([&](xent_error* error) {
    return xent_log_softmax(x.rows, x.cols, x.data, detail::Dtype<T>(), x.stride, y.data, y.stride, exec.c_exec(),
                            error);
  });
}

// dx from the upstream gradient g and the saved output y of Softmax. Shapes: all [rows, cols]. dx may be g or y where
// the strides are equal. Errors: invalid argument (shapes differ, and as xent_softmax_backward), incomplete.
template <Element T>
Status SoftmaxBackward(std::type_identity_t<MatrixView<const T>> g, std::type_identity_t<MatrixView<const T>> y,
                       MatrixView<T> dx, const Exec& exec = {}) noexcept {
  if (detail::ShapeDiffers(y, g)) return detail::WrongShape("y", y, "g", g);
  if (detail::ShapeDiffers(dx, g)) return detail::WrongShape("dx", dx, "g", g);
  return detail::Call([&](xent_error* error) {
    return xent_softmax_backward(g.rows, g.cols, g.data, g.stride, y.data, y.stride, detail::Dtype<T>(), dx.data,
                                 dx.stride, exec.c_exec(), error);
  });
}

// The same for LogSoftmax.
template <Element T>
Status LogSoftmaxBackward(std::type_identity_t<MatrixView<const T>> g, std::type_identity_t<MatrixView<const T>> y,
                          MatrixView<T> dx, const Exec& exec = {}) noexcept {
  if (detail::ShapeDiffers(y, g)) return detail::WrongShape("y", y, "g", g);
  if (detail::ShapeDiffers(dx, g)) return detail::WrongShape("dx", dx, "g", g);
  return detail::Call([&](xent_error* error) {
    return xent_log_softmax_backward(g.rows, g.cols, g.data, g.stride, y.data, y.stride, detail::Dtype<T>(), dx.data,
                                     dx.stride, exec.c_exec(), error);
  });
}

// Whether x looks like logits, or like probabilities fed where logits belong. Reads x, writes *diagnosis when ok.
// Errors: as xent_check_logits.
template <class T>
requires Element<std::remove_const_t<T>> Status CheckLogits(MatrixView<T> x, Diagnosis* diagnosis,
                                                            const Exec& exec = {})
noexcept {
  if (diagnosis == nullptr) return detail::InvalidArgument("diagnosis is null");
  xent_diagnosis found = XENT_DIAGNOSIS_LOGITS;
  const Status status = detail::Call([&](xent_error* error) {
    return xent_check_logits(x.rows, x.cols, x.data, detail::Dtype<T>(), x.stride, &found, exec.c_exec(), error);
  });
  if (status.ok()) *diagnosis = static_cast<Diagnosis>(found);
  return status;
}

// ------------------------------------------------------------------ cross-entropy -------------------------------

// The tensors of a cross-entropy call; what is left empty or null is not computed. As
//   xent::CrossEntropy<float>{.logits = {z.data(), n, v}, .targets = targets, .loss = &loss, .grad = {g.data(), n, v}}
// Shapes: logits and grad [rows, cols]; targets, losses, lse, records and upstream_rows [rows].
// The upstream gradient is 1, or `upstream`, or one number a row in `upstream_rows`; not both.
// Aliasing: grad may be logits with in_place = true and equal strides; nothing else may overlap.
template <Element T, Index I = std::int64_t>
struct CrossEntropy {
  MatrixView<const T> logits = {};
  std::span<const I> targets = {};

  std::span<Arithmetic<T>> losses = {};
  std::span<Arithmetic<T>> lse = {};
  Arithmetic<T>* loss = nullptr;
  double* perplexity = nullptr;
  std::int64_t* live_rows = nullptr;
  std::span<Record> records = {};

  MatrixView<T> grad = {};
  std::optional<Arithmetic<T>> upstream = std::nullopt;
  std::span<const Arithmetic<T>> upstream_rows = {};
  bool in_place = false;
};

namespace detail {

template <Element T, Index I>
Status CallCrossEntropy(xent_status (*function)(const xent_cross_entropy*, const xent_options*, const xent_exec*,
                                                xent_error*) noexcept,
                        const CrossEntropy<T, I>& args, const Options& options, const Exec& exec) noexcept {
  const std::int64_t rows = args.logits.rows;
  if (SizeDiffers(args.targets.size(), rows)) {
    return WrongSize("targets", args.targets.size(), rows, "logits has rows");
  }
  const auto differs = [&](std::size_t size) { return size != 0 && SizeDiffers(size, rows); };
  if (differs(args.losses.size())) return WrongSize("losses", args.losses.size(), rows, "logits has rows");
  if (differs(args.lse.size())) return WrongSize("lse", args.lse.size(), rows, "logits has rows");
  if (differs(args.records.size())) return WrongSize("records", args.records.size(), rows, "logits has rows");
  if (differs(args.upstream_rows.size())) {
    return WrongSize("upstream_rows", args.upstream_rows.size(), rows, "logits has rows");
  }
  if (args.upstream.has_value() && !args.upstream_rows.empty()) {
    return InvalidArgument("upstream and upstream_rows are both given; expected one of them");
  }
  if (args.grad.data != nullptr && ShapeDiffers(args.grad, args.logits)) {
    return WrongShape("grad", args.grad, "logits", args.logits);
  }

  xent_cross_entropy c = XENT_CROSS_ENTROPY_INIT;
  c.rows = rows;
  c.cols = args.logits.cols;
  c.logits = args.logits.data;
  c.logits_stride = args.logits.stride;
  c.targets = args.targets.data();
  c.dtype = Dtype<T>();
  c.targets_type = IndexType<I>();
  c.losses = DataOrNull(args.losses);
  c.lse = DataOrNull(args.lse);
  c.loss = args.loss;
  c.perplexity = args.perplexity;
  c.live_rows = args.live_rows;
  c.records = DataOrNull(args.records);
  c.grad = args.grad.data;
  c.grad_stride = args.grad.stride;
  c.in_place = args.in_place ? 1 : 0;
  if (args.upstream.has_value()) {
    c.upstream = &*args.upstream;
    c.upstream_kind = XENT_UPSTREAM_SCALAR;
  } else if (!args.upstream_rows.empty()) {
    c.upstream = args.upstream_rows.data();
    c.upstream_kind = XENT_UPSTREAM_ROWS;
  }
  const xent_options c_options = COptions(options);
  return Call([&](xent_error* error) { return function(&c, &c_options, exec.c_exec(), error); });
}

}  // namespace detail

// Losses, lse, reduced loss, records. grad, upstream and in_place must be unset.
// Errors: invalid argument, target out of range (row() and value()), incomplete.
template <Element T, Index I>
Status CrossEntropyForward(const CrossEntropy<T, I>& args, const Options& options = {},
                           const Exec& exec = {}) noexcept {
  return detail::CallCrossEntropy(xent_cross_entropy_forward, args, options, exec);
}

// The same and grad, the gradient of the reduced loss (Reduction::kNone: of each row's), in one call.
template <Element T, Index I>
Status CrossEntropyForwardBackward(const CrossEntropy<T, I>& args, const Options& options = {},
                                   const Exec& exec = {}) noexcept {
  return detail::CallCrossEntropy(xent_cross_entropy_forward_backward, args, options, exec);
}

// grad alone, from the records that CrossEntropyForward saved; losses, lse, loss, perplexity and live_rows must be
// unset.
template <Element T, Index I>
Status CrossEntropyBackward(const CrossEntropy<T, I>& args, const Options& options = {},
                            const Exec& exec = {}) noexcept {
  return detail::CallCrossEntropy(xent_cross_entropy_backward, args, options, exec);
}

// Reduces row losses stored earlier, with the bits that one call gives; rows whose target is ignore_index do not
// count. Without targets every row counts. Errors: invalid argument (sizes differ, reduction none, null loss).
inline Status Reduce(std::span<const float> losses, float* loss, const Options& options = {}) noexcept {
  return detail::ReduceAll(losses, loss, options);
}
inline Status Reduce(std::span<const double> losses, double* loss, const Options& options = {}) noexcept {
  return detail::ReduceAll(losses, loss, options);
}
inline Status Reduce(std::span<const float> losses, std::span<const std::int32_t> targets, float* loss,
                     const Options& options = {}) noexcept {
  return detail::Reduce(losses, targets, loss, options);
}
inline Status Reduce(std::span<const float> losses, std::span<const std::int64_t> targets, float* loss,
                     const Options& options = {}) noexcept {
  return detail::Reduce(losses, targets, loss, options);
}
inline Status Reduce(std::span<const double> losses, std::span<const std::int32_t> targets, double* loss,
                     const Options& options = {}) noexcept {
  return detail::Reduce(losses, targets, loss, options);
}
inline Status Reduce(std::span<const double> losses, std::span<const std::int64_t> targets, double* loss,
                     const Options& options = {}) noexcept {
  return detail::Reduce(losses, targets, loss, options);
}

}  // namespace xent

#endif  // XENT_XENT_HPP_
