// xent.hpp: a C++20 header over xent.h. Typed views instead of void pointers, enum classes, a [[nodiscard]] Status.
//
// Formulas, error bounds, special values and what holds for every function (bits, threads, memory, aliasing) stand in
// xent.h. This layer adds one check, that the sizes of spans and views agree, made before the library is called: a
// call refused by it has changed nothing either. Everything here is noexcept and takes nothing from the heap.
//
// Element types: float, double, and xent::bfloat16 and xent::float16, which are storage (two bytes) without arithmetic.
// "Arithmetic<T>" is double for double and float for every other T: the type of losses, weights, statistics and
// upstream gradients.
#ifndef XENT_XENT_HPP_
#define XENT_XENT_HPP_

#include <xent/xent.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
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

enum class DivergenceKind : std::int32_t {
  kForwardKl = XENT_DIVERGENCE_FORWARD_KL,
  kReverseKl = XENT_DIVERGENCE_REVERSE_KL,
  kJensenShannon = XENT_DIVERGENCE_JENSEN_SHANNON,
  kCrossEntropy = XENT_DIVERGENCE_CROSS_ENTROPY,
};

enum class BceInput : std::int32_t {
  kLogits = XENT_BCE_LOGITS,
  kProbabilities = XENT_BCE_PROBABILITIES,
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

// What ShardForward gives for one row and one chunk of columns; opaque, plain bytes that may be sent.
struct alignas(8) ChunkRecord {
  std::byte bytes[XENT_CHUNK_RECORD_BYTES];
};
static_assert(sizeof(ChunkRecord) == XENT_CHUNK_RECORD_BYTES);

// rows x cols elements, row i at data + i * stride; stride 0 means cols. A call with inner = d > 1 takes its matrices
// as [rows / d, cols, d] instead, blocks of d rows at data + b * stride; stride 0 then means cols * d. The caller
// vouches for the memory: rows and cols are compared with what stands beside the view, the extent behind `data` cannot
// be.
template <class T>
struct MatrixView {
  T *data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  constexpr operator MatrixView<const T>() const noexcept
    requires(!std::is_const_v<T>)
  {
    return {data, rows, cols, stride};
  }
};

// ------------------------------------------------------------------ status --------------------------------------

// How a call ended. row() and value() are -1 and 0 where no position is known; message() is empty when ok.
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
  const char *message() const noexcept { return error_.message; }
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
  double logit_scale = 1.0;
  double softcap = 0.0;
  double z_loss = 0.0;
  std::int64_t valid_cols = 0;
  bool stats_of_ignored = false;
};

// One call's share of work, handed to the caller's parallel_for: task(i) runs piece i. Never throws.
class Task {
 public:
  Task(xent_task task, void *arg) noexcept : task_(task), arg_(arg) {}
  void operator()(std::int64_t i) const noexcept { task_(arg_, i); }

 private:
  xent_task task_;
  void *arg_;
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
    requires(std::is_object_v<F> && std::invocable<F &, std::int64_t, Task>)
  static Exec ParallelFor(F &parallel_for, std::int32_t threads = 0) noexcept {
    Exec exec;
    exec.exec_.mode = XENT_EXEC_CALLER;
    exec.exec_.threads = threads;
    exec.exec_.parallel_for = [](void *ctx, std::int64_t n, xent_task task, void *arg) noexcept {
      (*static_cast<F *>(ctx))(n, Task(task, arg));
    };
    exec.exec_.ctx = const_cast<void *>(static_cast<const void *>(std::addressof(parallel_for)));
    return exec;
  }
  template <class F>
  static Exec ParallelFor(const F &&, std::int32_t = 0) = delete;

  const xent_exec *c_exec() const noexcept { return &exec_; }

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

inline Status InvalidArgument(const char *message) noexcept {
  xent_error error = XENT_ERROR_INIT;
  std::snprintf(error.message, sizeof(error.message), "%s", message);
  return Status(XENT_INVALID_ARGUMENT, error);
}

// Sizes below zero are left to the library, which names the argument.
inline bool SizeDiffers(std::size_t size, std::int64_t want) noexcept {
  return want >= 0 && std::cmp_not_equal(size, want);
}

// rows * count, -1 where one of them is negative, the largest number where it does not fit.
inline std::int64_t Times(std::int64_t rows, std::int64_t count) noexcept {
  if (rows < 0 || count < 0) return -1;
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  return count != 0 && rows > kMax / count ? kMax : rows * count;
}

// An empty span stands for "not given", also where it points somewhere.
template <class T>
T *DataOrNull(std::span<T> span) noexcept {
  return span.empty() ? nullptr : span.data();
}

inline Status WrongSize(const char *name, std::size_t got, std::int64_t want, const char *of) noexcept {
  xent_error error = XENT_ERROR_INIT;
  std::snprintf(error.message, sizeof(error.message), "%s has %llu elements; expected %lld, as many as %s", name,
                static_cast<unsigned long long>(got), static_cast<long long>(want), of);
  return Status(XENT_INVALID_ARGUMENT, error);
}

inline Status NotMultiple(const char *name, std::size_t got, std::int64_t rows) noexcept {
  xent_error error = XENT_ERROR_INIT;
  std::snprintf(error.message, sizeof(error.message), "%s has %llu elements; expected a multiple of the %lld rows",
                name, static_cast<unsigned long long>(got), static_cast<long long>(rows));
  return Status(XENT_INVALID_ARGUMENT, error);
}

// For an optional array: empty is fine. ok() where the size is right.
inline Status CheckOptional(const char *name, std::size_t got, std::int64_t want, const char *of) noexcept {
  if (got != 0 && SizeDiffers(got, want)) return WrongSize(name, got, want, of);
  return {};
}

template <class A, class B>
bool ShapeDiffers(const MatrixView<A> &a, const MatrixView<B> &b) noexcept {
  return a.rows != b.rows || a.cols != b.cols;
}

template <class A, class B>
Status WrongShape(const char *name, const MatrixView<A> &got, const char *of, const MatrixView<B> &want) noexcept {
  xent_error error = XENT_ERROR_INIT;
  std::snprintf(error.message, sizeof(error.message), "%s is %lld x %lld; expected %lld x %lld, the shape of %s", name,
                static_cast<long long>(got.rows), static_cast<long long>(got.cols), static_cast<long long>(want.rows),
                static_cast<long long>(want.cols), of);
  return Status(XENT_INVALID_ARGUMENT, error);
}

// For an optional matrix: without data it is fine. ok() where the shape is right.
template <class A, class B>
Status CheckOptional(const char *name, const MatrixView<A> &got, const char *of, const MatrixView<B> &want) noexcept {
  if (got.data != nullptr && ShapeDiffers(got, want)) return WrongShape(name, got, of, want);
  return {};
}

template <class F>
Status Call(F function) noexcept {
  xent_error error = XENT_ERROR_INIT;
  const xent_status code = function(&error);
  return Status(code, error);
}

inline xent_options COptions(const Options &options) noexcept {
  xent_options c = XENT_OPTIONS_INIT;
  c.ignore_index = options.ignore_index;
  c.label_smoothing = options.label_smoothing;
  c.smoothing = static_cast<std::int32_t>(options.smoothing);
  c.reduction = static_cast<std::int32_t>(options.reduction);
  c.divisor = options.divisor.value_or(0.0);
  c.has_divisor = options.divisor.has_value() ? 1 : 0;
  c.empty_mean = static_cast<std::int32_t>(options.empty_mean);
  c.logit_scale = options.logit_scale;
  c.softcap = options.softcap;
  c.z_loss = options.z_loss;
  c.valid_cols = options.valid_cols;
  c.stats_of_ignored = options.stats_of_ignored ? 1 : 0;
  return c;
}

// From `upstream` or `upstream_rows` of the arguments, which the C struct then points into.
template <class Args, class C>
void SetUpstream(const Args &args, C *c) noexcept {
  if (args.upstream.has_value()) {
    c->upstream = &*args.upstream;
    c->upstream_kind = XENT_UPSTREAM_SCALAR;
  } else if (!args.upstream_rows.empty()) {
    c->upstream = args.upstream_rows.data();
    c->upstream_kind = XENT_UPSTREAM_ROWS;
  }
}

template <class T>
Status Map(xent_status (*function)(const T *, T *, std::int64_t) noexcept, std::span<const T> x,
           std::span<T> y) noexcept {
  if (x.size() != y.size()) return WrongSize("y", y.size(), static_cast<std::int64_t>(x.size()), "x");
  return Call([&](xent_error *) { return function(x.data(), y.data(), static_cast<std::int64_t>(x.size())); });
}

template <class T, Index I>
Status Reduce(std::span<const T> losses, std::span<const I> targets, T *loss, const Options &options) noexcept {
  const auto rows = static_cast<std::int64_t>(losses.size());
  if (targets.size() != losses.size()) return WrongSize("targets", targets.size(), rows, "losses");
  const xent_options c = COptions(options);
  return Call([&](xent_error *error) {
    return xent_reduce(rows, losses.data(), Dtype<T>(), targets.data(), IndexType<I>(), &c, loss, error);
  });
}

template <class T>
Status ReduceAll(std::span<const T> losses, T *loss, const Options &options) noexcept {
  const xent_options c = COptions(options);
  return Call([&](xent_error *error) {
    return xent_reduce(static_cast<std::int64_t>(losses.size()), losses.data(), Dtype<T>(), nullptr, XENT_I64, &c, loss,
                       error);
  });
}

}  // namespace detail

// ------------------------------------------------------------------ library -------------------------------------

// "0.2.0"
inline const char *Version() noexcept { return xent_version(); }
// The SIMD target that calls run on, in Highway's words.
inline const char *ActiveTarget() noexcept { return xent_active_target(); }
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
  requires Element<std::remove_const_t<T>>
Status LogSumExp(MatrixView<T> x, std::span<Arithmetic<T>> lse, const Exec &exec = {}) noexcept {
  if (detail::SizeDiffers(lse.size(), x.rows)) return detail::WrongSize("lse", lse.size(), x.rows, "x has rows");
  return detail::Call([&](xent_error *error) {
    return xent_logsumexp(x.rows, x.cols, x.data, detail::Dtype<T>(), x.stride, lse.data(), exec.c_exec(), error);
  });
}

// y = softmax of each row of x. Shapes: both [rows, cols]. y may be x where the strides are equal.
// Errors: invalid argument (shapes differ, and as xent_softmax), incomplete.
template <Element T>
Status Softmax(std::type_identity_t<MatrixView<const T>> x, MatrixView<T> y, const Exec &exec = {}) noexcept {
  if (detail::ShapeDiffers(y, x)) return detail::WrongShape("y", y, "x", x);
  return detail::Call([&](xent_error *error) {
    return xent_softmax(x.rows, x.cols, x.data, detail::Dtype<T>(), x.stride, y.data, y.stride, exec.c_exec(), error);
  });
}

// y = log softmax of each row of x. Otherwise as Softmax.
template <Element T>
Status LogSoftmax(std::type_identity_t<MatrixView<const T>> x, MatrixView<T> y, const Exec &exec = {}) noexcept {
  if (detail::ShapeDiffers(y, x)) return detail::WrongShape("y", y, "x", x);
  return detail::Call([&](xent_error *error) {
    return xent_log_softmax(x.rows, x.cols, x.data, detail::Dtype<T>(), x.stride, y.data, y.stride, exec.c_exec(),
                            error);
  });
}

// dx from the upstream gradient g and the saved output y of Softmax. Shapes: all [rows, cols]. dx may be g or y where
// the strides are equal. Errors: invalid argument (shapes differ, and as xent_softmax_backward), incomplete.
template <Element T>
Status SoftmaxBackward(std::type_identity_t<MatrixView<const T>> g, std::type_identity_t<MatrixView<const T>> y,
                       MatrixView<T> dx, const Exec &exec = {}) noexcept {
  if (detail::ShapeDiffers(y, g)) return detail::WrongShape("y", y, "g", g);
  if (detail::ShapeDiffers(dx, g)) return detail::WrongShape("dx", dx, "g", g);
  return detail::Call([&](xent_error *error) {
    return xent_softmax_backward(g.rows, g.cols, g.data, g.stride, y.data, y.stride, detail::Dtype<T>(), dx.data,
                                 dx.stride, exec.c_exec(), error);
  });
}

// The same for LogSoftmax.
template <Element T>
Status LogSoftmaxBackward(std::type_identity_t<MatrixView<const T>> g, std::type_identity_t<MatrixView<const T>> y,
                          MatrixView<T> dx, const Exec &exec = {}) noexcept {
  if (detail::ShapeDiffers(y, g)) return detail::WrongShape("y", y, "g", g);
  if (detail::ShapeDiffers(dx, g)) return detail::WrongShape("dx", dx, "g", g);
  return detail::Call([&](xent_error *error) {
    return xent_log_softmax_backward(g.rows, g.cols, g.data, g.stride, y.data, y.stride, detail::Dtype<T>(), dx.data,
                                     dx.stride, exec.c_exec(), error);
  });
}

// Whether x looks like logits, or like probabilities fed where logits belong. Reads x, writes *diagnosis when ok.
// Errors: as xent_check_logits.
template <class T>
  requires Element<std::remove_const_t<T>>
Status CheckLogits(MatrixView<T> x, Diagnosis *diagnosis, const Exec &exec = {}) noexcept {
  if (diagnosis == nullptr) return detail::InvalidArgument("diagnosis is null");
  xent_diagnosis found = XENT_DIAGNOSIS_LOGITS;
  const Status status = detail::Call([&](xent_error *error) {
    return xent_check_logits(x.rows, x.cols, x.data, detail::Dtype<T>(), x.stride, &found, exec.c_exec(), error);
  });
  if (status.ok()) *diagnosis = static_cast<Diagnosis>(found);
  return status;
}

// ------------------------------------------------------------------ cross-entropy -------------------------------

// The tensors of a cross-entropy call; what is left empty or null is not computed. As
//   xent::CrossEntropy<float>{.logits = {z.data(), n, v}, .targets = targets, .loss = &loss, .grad = {g.data(), n, v}}
// Shapes: logits, target_probs, grad and target_grad [rows, cols]; class_weights [cols]; topk_logprobs and topk_indices
// [rows, top_k]; gather_cols and gathered [rows, any number]; every other span [rows].
// A workspace (WorkspaceBytes) makes CrossEntropyForwardBackward faster and changes no bit.
// The target is a class a row in `targets`, or a distribution a row in `target_probs`; not both.
// The upstream gradient is 1, or `upstream`, or one number a row in `upstream_rows`; not both.
// inner = d > 1: class-major matrices, [rows / d, cols, d] (MatrixView).
// Aliasing: grad may be logits with in_place = true and equal strides; nothing else may overlap.
template <Element T, Index I = std::int64_t, Element Q = T>
struct CrossEntropy {
  MatrixView<const T> logits = {};
  std::span<const I> targets = {};
  MatrixView<const Q> target_probs = {};
  std::span<const Arithmetic<T>> class_weights = {};
  std::span<const Arithmetic<T>> row_weights = {};
  std::int64_t inner = 0;

  std::span<Arithmetic<T>> losses = {};
  std::span<Arithmetic<T>> lse = {};
  Arithmetic<T> *loss = nullptr;
  double *perplexity = nullptr;
  std::int64_t *live_rows = nullptr;
  std::span<Record> records = {};

  // Statistics, of the forward functions.
  std::span<Arithmetic<T>> logprobs = {};
  std::span<std::int64_t> argmax = {};
  std::span<std::uint8_t> hits = {};
  std::span<Arithmetic<T>> entropy = {};
  std::span<std::int64_t> rank = {};
  std::int32_t top_k = 0;
  std::span<Arithmetic<T>> topk_logprobs = {};
  std::span<std::int64_t> topk_indices = {};
  std::span<const std::int64_t> gather_cols = {};
  std::span<Arithmetic<T>> gathered = {};

  MatrixView<T> grad = {};
  MatrixView<Q> target_grad = {};
  std::optional<Arithmetic<T>> upstream = std::nullopt;
  std::span<const Arithmetic<T>> upstream_rows = {};
  bool in_place = false;
  std::span<std::byte> workspace = {};  // speed alone: WorkspaceBytes
};

namespace detail {

// What differs between the unsharded functions and those of shards.
struct CrossEntropyRules {
  std::int64_t class_weights = 0;  // how many there are
  const char *of = "logits has columns";
  bool targets_required = true;
};

// Checks the sizes, then fills in the C struct, which points into args.
template <Element T, Index I, Element Q>
Status Fill(const CrossEntropy<T, I, Q> &args, const CrossEntropyRules &rules, xent_cross_entropy *out) noexcept {
  constexpr const char *kRows = "logits has rows";
  const std::int64_t rows = args.logits.rows;
  const bool needs_targets = rules.targets_required && args.target_probs.data == nullptr;
  if ((needs_targets || !args.targets.empty()) && SizeDiffers(args.targets.size(), rows)) {
    return WrongSize("targets", args.targets.size(), rows, kRows);
  }
  const std::int64_t topk = Times(rows, args.top_k);
  constexpr const char *kTopk = "rows * top_k";
  const struct {
    const char *name;
    std::size_t size;
    std::int64_t want;
    const char *of;
  } spans[] = {
      {"class_weights", args.class_weights.size(), rules.class_weights, rules.of},
      {"row_weights", args.row_weights.size(), rows, kRows},
      {"losses", args.losses.size(), rows, kRows},
      {"lse", args.lse.size(), rows, kRows},
      {"records", args.records.size(), rows, kRows},
      {"logprobs", args.logprobs.size(), rows, kRows},
      {"argmax", args.argmax.size(), rows, kRows},
      {"hits", args.hits.size(), rows, kRows},
      {"entropy", args.entropy.size(), rows, kRows},
      {"rank", args.rank.size(), rows, kRows},
      {"topk_logprobs", args.topk_logprobs.size(), topk, kTopk},
      {"topk_indices", args.topk_indices.size(), topk, kTopk},
      {"gathered", args.gathered.size(), static_cast<std::int64_t>(args.gather_cols.size()), "gather_cols"},
      {"upstream_rows", args.upstream_rows.size(), rows, kRows},
  };
  for (const auto &span : spans) {
    if (span.size != 0 && SizeDiffers(span.size, span.want)) {
      return WrongSize(span.name, span.size, span.want, span.of);
    }
  }
  std::int64_t gather_count = 0;
  if (!args.gather_cols.empty() && rows >= 0) {
    const auto size = static_cast<std::int64_t>(args.gather_cols.size());
    if (rows == 0 || size % rows != 0) return NotMultiple("gather_cols", args.gather_cols.size(), rows);
    gather_count = size / rows;
  }
  if (args.upstream.has_value() && !args.upstream_rows.empty()) {
    return InvalidArgument("upstream and upstream_rows are both given; expected one of them");
  }
  Status status = CheckOptional("target_probs", args.target_probs, "logits", args.logits);
  if (status.ok()) status = CheckOptional("grad", args.grad, "logits", args.logits);
  if (status.ok()) status = CheckOptional("target_grad", args.target_grad, "logits", args.logits);
  if (!status.ok()) return status;

  xent_cross_entropy &c = *out;
  c.rows = rows;
  c.cols = args.logits.cols;
  c.inner = args.inner;
  c.logits = args.logits.data;
  c.logits_stride = args.logits.stride;
  c.targets = DataOrNull(args.targets);
  c.dtype = Dtype<T>();
  c.targets_type = IndexType<I>();
  c.target_probs = args.target_probs.data;
  c.target_probs_stride = args.target_probs.stride;
  c.target_probs_dtype = Dtype<Q>();
  c.class_weights = DataOrNull(args.class_weights);
  c.row_weights = DataOrNull(args.row_weights);
  c.losses = DataOrNull(args.losses);
  c.lse = DataOrNull(args.lse);
  c.loss = args.loss;
  c.perplexity = args.perplexity;
  c.live_rows = args.live_rows;
  c.records = DataOrNull(args.records);
  c.logprobs = DataOrNull(args.logprobs);
  c.argmax = DataOrNull(args.argmax);
  c.hits = DataOrNull(args.hits);
  c.entropy = DataOrNull(args.entropy);
  c.rank = DataOrNull(args.rank);
  c.top_k = args.top_k;
  c.topk_logprobs = DataOrNull(args.topk_logprobs);
  c.topk_indices = DataOrNull(args.topk_indices);
  c.gather_cols = DataOrNull(args.gather_cols);
  c.gathered = DataOrNull(args.gathered);
  c.gather_count = gather_count;
  c.workspace = DataOrNull(args.workspace);
  c.workspace_bytes = args.workspace.size();
  c.grad = args.grad.data;
  c.grad_stride = args.grad.stride;
  c.target_grad = args.target_grad.data;
  c.target_grad_stride = args.target_grad.stride;
  c.in_place = args.in_place ? 1 : 0;
  SetUpstream(args, &c);
  return {};
}

template <Element T, Index I, Element Q>
Status CallCrossEntropy(xent_status (*function)(const xent_cross_entropy *, const xent_options *, const xent_exec *,
                                                xent_error *) noexcept,
                        const CrossEntropy<T, I, Q> &args, const Options &options, const Exec &exec) noexcept {
  xent_cross_entropy c = XENT_CROSS_ENTROPY_INIT;
  const Status status = Fill(args, {.class_weights = args.logits.cols}, &c);
  if (!status.ok()) return status;
  const xent_options c_options = COptions(options);
  return Call([&](xent_error *error) { return function(&c, &c_options, exec.c_exec(), error); });
}

}  // namespace detail

// Bytes of a workspace for `threads` threads (0: those of the default policy) and rows of `cols` columns; see
// xent_workspace_bytes.
template <Element T>
std::size_t WorkspaceBytes(std::int64_t cols, std::int32_t threads = 0) noexcept {
  return xent_workspace_bytes(cols, detail::Dtype<T>(), threads);
}

// Losses, lse, reduced loss, records, statistics. grad, target_grad, upstream and in_place must be unset.
// Errors: invalid argument, target out of range (row() and value()), incomplete.
template <Element T, Index I = std::int64_t, Element Q = T>
Status CrossEntropyForward(const CrossEntropy<T, I, Q> &args, const Options &options = {},
                           const Exec &exec = {}) noexcept {
  return detail::CallCrossEntropy(xent_cross_entropy_forward, args, options, exec);
}

// The same and grad, the gradient of the reduced loss (Reduction::kNone: of each row's), in one call.
template <Element T, Index I = std::int64_t, Element Q = T>
Status CrossEntropyForwardBackward(const CrossEntropy<T, I, Q> &args, const Options &options = {},
                                   const Exec &exec = {}) noexcept {
  return detail::CallCrossEntropy(xent_cross_entropy_forward_backward, args, options, exec);
}

// The gradients alone, from the records that CrossEntropyForward saved; losses, lse, loss, perplexity, live_rows and
// the statistics must be unset.
template <Element T, Index I = std::int64_t, Element Q = T>
Status CrossEntropyBackward(const CrossEntropy<T, I, Q> &args, const Options &options = {},
                            const Exec &exec = {}) noexcept {
  return detail::CallCrossEntropy(xent_cross_entropy_backward, args, options, exec);
}

// ------------------------------------------------------------------ reduction -----------------------------------

// Reduces row losses stored earlier, with the bits that one call gives; rows whose target is ignore_index do not
// count. Without targets every row counts. Errors: invalid argument (sizes differ, reduction none, null loss).
inline Status Reduce(std::span<const float> losses, float *loss, const Options &options = {}) noexcept {
  return detail::ReduceAll(losses, loss, options);
}
inline Status Reduce(std::span<const double> losses, double *loss, const Options &options = {}) noexcept {
  return detail::ReduceAll(losses, loss, options);
}
inline Status Reduce(std::span<const float> losses, std::span<const std::int32_t> targets, float *loss,
                     const Options &options = {}) noexcept {
  return detail::Reduce(losses, targets, loss, options);
}
inline Status Reduce(std::span<const float> losses, std::span<const std::int64_t> targets, float *loss,
                     const Options &options = {}) noexcept {
  return detail::Reduce(losses, targets, loss, options);
}
inline Status Reduce(std::span<const double> losses, std::span<const std::int32_t> targets, double *loss,
                     const Options &options = {}) noexcept {
  return detail::Reduce(losses, targets, loss, options);
}
inline Status Reduce(std::span<const double> losses, std::span<const std::int64_t> targets, double *loss,
                     const Options &options = {}) noexcept {
  return detail::Reduce(losses, targets, loss, options);
}

// The weights in the denominator of a mean; those left empty are 1. Shapes: row_weights [rows], class_weights [cols].
template <class A>
struct MeanWeights {
  std::span<const A> row_weights = {};
  std::span<const A> class_weights = {};
};

namespace detail {

template <class T, Index I>
Status ReduceWeighted(std::span<const T> losses, const std::span<const I> *targets, const MeanWeights<T> &weights,
                      T *loss, const Options &options) noexcept {
  const auto rows = static_cast<std::int64_t>(losses.size());
  if (targets != nullptr && targets->size() != losses.size()) {
    return WrongSize("targets", targets->size(), rows, "losses");
  }
  const Status status = CheckOptional("row_weights", weights.row_weights.size(), rows, "losses");
  if (!status.ok()) return status;
  const xent_options c = COptions(options);
  return Call([&](xent_error *error) {
    return xent_reduce_weighted(rows, losses.data(), Dtype<T>(), targets != nullptr ? targets->data() : nullptr,
                                IndexType<I>(), DataOrNull(weights.row_weights), DataOrNull(weights.class_weights),
                                static_cast<std::int64_t>(weights.class_weights.size()), &c, loss, error);
  });
}

}  // namespace detail

// The same with weights in the mean's denominator; the losses have theirs already. class_weights needs targets.
// Errors: as above, and target out of range with class_weights.
inline Status Reduce(std::span<const float> losses, const MeanWeights<float> &weights, float *loss,
                     const Options &options = {}) noexcept {
  return detail::ReduceWeighted<float, std::int64_t>(losses, nullptr, weights, loss, options);
}
inline Status Reduce(std::span<const double> losses, const MeanWeights<double> &weights, double *loss,
                     const Options &options = {}) noexcept {
  return detail::ReduceWeighted<double, std::int64_t>(losses, nullptr, weights, loss, options);
}
inline Status Reduce(std::span<const float> losses, std::span<const std::int32_t> targets,
                     const MeanWeights<float> &weights, float *loss, const Options &options = {}) noexcept {
  return detail::ReduceWeighted(losses, &targets, weights, loss, options);
}
inline Status Reduce(std::span<const float> losses, std::span<const std::int64_t> targets,
                     const MeanWeights<float> &weights, float *loss, const Options &options = {}) noexcept {
  return detail::ReduceWeighted(losses, &targets, weights, loss, options);
}
inline Status Reduce(std::span<const double> losses, std::span<const std::int32_t> targets,
                     const MeanWeights<double> &weights, double *loss, const Options &options = {}) noexcept {
  return detail::ReduceWeighted(losses, &targets, weights, loss, options);
}
inline Status Reduce(std::span<const double> losses, std::span<const std::int64_t> targets,
                     const MeanWeights<double> &weights, double *loss, const Options &options = {}) noexcept {
  return detail::ReduceWeighted(losses, &targets, weights, loss, options);
}

// ------------------------------------------------------------------ vocabulary shards ---------------------------

// Columns of one chunk: a vocabulary of `cols` columns cut at multiples of it gives the bits of the unsharded call.
inline std::int64_t ChunkCols(std::int64_t cols) noexcept { return xent_chunk_cols(cols); }

// Chunk records per row of a slice of `cols` columns from first_col on, of total_cols (Options: valid_cols or all).
// Columns past total_cols do not count; 0 where none is left.
inline std::int64_t ShardChunks(std::int64_t total_cols, std::int64_t first_col, std::int64_t cols) noexcept {
  return xent_shard_chunks(total_cols, first_col, cols);
}

// Where a slice of the columns stands in the whole vocabulary.
struct Shard {
  std::int64_t total_cols = 0;
  std::int64_t first_col = 0;
};

namespace detail {

inline xent_shard CShard(const Shard &shard) noexcept {
  xent_shard c = XENT_SHARD_INIT;
  c.total_cols = shard.total_cols;
  c.first_col = shard.first_col;
  return c;
}

inline CrossEntropyRules ShardRules(const Shard &shard) noexcept {
  return {.class_weights = shard.total_cols, .of = "shard.total_cols says"};
}

}  // namespace detail

// Chunk records of a slice. Of args: logits and target_probs (the slice), targets (columns of the whole vocabulary),
// class_weights [total_cols], inner; every output must be unset. Shape of chunk_records: [rows, ShardChunks(...)].
// Errors: as CrossEntropyForward.
template <Element T, Index I = std::int64_t, Element Q = T>
Status ShardForward(const CrossEntropy<T, I, Q> &args, const Shard &shard, std::span<ChunkRecord> chunk_records,
                    const Options &options = {}, const Exec &exec = {}) noexcept {
  xent_cross_entropy c = XENT_CROSS_ENTROPY_INIT;
  const Status status = detail::Fill(args, detail::ShardRules(shard), &c);
  if (!status.ok()) return status;
  const std::int64_t total = options.valid_cols > 0 ? options.valid_cols : shard.total_cols;
  const std::int64_t chunks = ShardChunks(total, shard.first_col, c.cols);
  const std::int64_t want = detail::Times(c.rows, chunks);
  // Without chunks nothing is written, or the library says what is wrong.
  if (chunks > 0 && detail::SizeDiffers(chunk_records.size(), want)) {
    return detail::WrongSize("chunk_records", chunk_records.size(), want, "rows * ShardChunks()");
  }
  const xent_shard c_shard = detail::CShard(shard);
  const xent_options c_options = detail::COptions(options);
  return detail::Call([&](xent_error *error) {
    return xent_shard_forward(&c, &c_options, &c_shard, chunk_records.data(), exec.c_exec(), error);
  });
}

// The most slices that one ShardCombine takes (xent_shard_combine takes any number).
inline constexpr std::size_t kMaxShards = 256;

// Losses, lse, loss, perplexity, live_rows, records and logprobs from the chunk records of all slices, one span for
// each, in the order of their columns. Of args: logits = {nullptr, rows, columns of the whole vocabulary}, targets
// (none: probability targets), weights and these outputs. Serial. Errors: invalid argument (a list is not [rows, any
// number], the lists leave a gap or overlap), target out of range.
template <Element T, Index I = std::int64_t, Element Q = T>
Status ShardCombine(const CrossEntropy<T, I, Q> &args, std::span<const std::span<const ChunkRecord>> lists,
                    const Options &options = {}) noexcept {
  xent_cross_entropy c = XENT_CROSS_ENTROPY_INIT;
  const Status status = detail::Fill(args, {.class_weights = args.logits.cols, .targets_required = false}, &c);
  if (!status.ok()) return status;
  if (lists.size() > kMaxShards) {
    return detail::InvalidArgument("lists has more than 256 elements; xent_shard_combine takes any number");
  }
  const void *data[kMaxShards] = {};
  std::int64_t chunks[kMaxShards] = {};
  for (std::size_t i = 0; i < lists.size(); ++i) {
    const auto size = static_cast<std::int64_t>(lists[i].size());
    if ((c.rows == 0 && size != 0) || (c.rows > 0 && size % c.rows != 0)) {
      char name[32];
      std::snprintf(name, sizeof(name), "lists[%u]", static_cast<unsigned>(i));
      return detail::NotMultiple(name, lists[i].size(), c.rows);
    }
    data[i] = lists[i].data();
    chunks[i] = c.rows > 0 ? size / c.rows : 0;
  }
  const xent_options c_options = detail::COptions(options);
  return detail::Call([&](xent_error *error) {
    return xent_shard_combine(&c, &c_options, data, chunks, static_cast<std::int64_t>(lists.size()), error);
  });
}

// The slice's gradients from the records of ShardCombine. Of args: as ShardForward, and row_weights, records, upstream,
// grad [rows, columns of the slice], target_grad. Errors: as CrossEntropyBackward.
template <Element T, Index I = std::int64_t, Element Q = T>
Status ShardBackward(const CrossEntropy<T, I, Q> &args, const Shard &shard, const Options &options = {},
                     const Exec &exec = {}) noexcept {
  xent_cross_entropy c = XENT_CROSS_ENTROPY_INIT;
  const Status status = detail::Fill(args, detail::ShardRules(shard), &c);
  if (!status.ok()) return status;
  const xent_shard c_shard = detail::CShard(shard);
  const xent_options c_options = detail::COptions(options);
  return detail::Call(
      [&](xent_error *error) { return xent_shard_backward(&c, &c_options, &c_shard, exec.c_exec(), error); });
}

// ------------------------------------------------------------------ divergences ---------------------------------

// The tensors of a divergence between a student's and a teacher's logits; what is left empty or null is not computed.
// Shapes: student, teacher and grad [rows, cols]; row_weights, losses and upstream_rows [rows].
// beta other than 0.5 is for DivergenceKind::kJensenShannon. upstream, inner and in_place as in CrossEntropy.
template <Element T, Element U = T>
struct Divergence {
  MatrixView<const T> student = {};
  MatrixView<const U> teacher = {};
  std::int64_t inner = 0;
  DivergenceKind kind = DivergenceKind::kForwardKl;
  double temperature = 1.0;
  double beta = 0.5;
  std::span<const Arithmetic<T>> row_weights = {};

  std::span<Arithmetic<T>> losses = {};
  Arithmetic<T> *loss = nullptr;

  MatrixView<T> grad = {};
  std::optional<Arithmetic<T>> upstream = std::nullopt;
  std::span<const Arithmetic<T>> upstream_rows = {};
  bool in_place = false;
};

namespace detail {

template <Element T, Element U>
Status CallDivergence(xent_status (*function)(const xent_divergence *, const xent_options *, const xent_exec *,
                                              xent_error *) noexcept,
                      const Divergence<T, U> &args, const Options &options, const Exec &exec) noexcept {
  constexpr const char *kRows = "student has rows";
  const std::int64_t rows = args.student.rows;
  if (ShapeDiffers(args.teacher, args.student)) return WrongShape("teacher", args.teacher, "student", args.student);
  Status status = CheckOptional("row_weights", args.row_weights.size(), rows, kRows);
  if (status.ok()) status = CheckOptional("losses", args.losses.size(), rows, kRows);
  if (status.ok()) status = CheckOptional("upstream_rows", args.upstream_rows.size(), rows, kRows);
  if (status.ok()) status = CheckOptional("grad", args.grad, "student", args.student);
  if (!status.ok()) return status;
  if (args.upstream.has_value() && !args.upstream_rows.empty()) {
    return InvalidArgument("upstream and upstream_rows are both given; expected one of them");
  }

  xent_divergence c = XENT_DIVERGENCE_INIT;
  c.rows = rows;
  c.cols = args.student.cols;
  c.inner = args.inner;
  c.student = args.student.data;
  c.student_stride = args.student.stride;
  c.teacher = args.teacher.data;
  c.teacher_stride = args.teacher.stride;
  c.student_dtype = Dtype<T>();
  c.teacher_dtype = Dtype<U>();
  c.kind = static_cast<std::int32_t>(args.kind);
  c.in_place = args.in_place ? 1 : 0;
  c.temperature = args.temperature;
  c.beta = args.beta;
  c.row_weights = DataOrNull(args.row_weights);
  c.losses = DataOrNull(args.losses);
  c.loss = args.loss;
  c.grad = args.grad.data;
  c.grad_stride = args.grad.stride;
  SetUpstream(args, &c);
  const xent_options c_options = COptions(options);
  return Call([&](xent_error *error) { return function(&c, &c_options, exec.c_exec(), error); });
}

}  // namespace detail

// Losses and their reduction. grad, upstream and in_place must be unset. Of the options reduction, divisor, empty_mean
// and valid_cols. Errors: invalid argument, incomplete.
template <Element T, Element U = T>
Status DivergenceForward(const Divergence<T, U> &args, const Options &options = {}, const Exec &exec = {}) noexcept {
  return detail::CallDivergence(xent_divergence_forward, args, options, exec);
}

// The same and grad, the gradient for the student's logits.
template <Element T, Element U = T>
Status DivergenceForwardBackward(const Divergence<T, U> &args, const Options &options = {},
                                 const Exec &exec = {}) noexcept {
  return detail::CallDivergence(xent_divergence_forward_backward, args, options, exec);
}

// ------------------------------------------------------------------ binary cross-entropy ------------------------

// The tensors of a binary cross-entropy call; what is left empty or null is not computed.
// Shapes: every matrix [rows, cols]; pos_weight and class_weights [cols]; row_weights and upstream_rows [rows].
// The upstream gradient is 1, or one of `upstream`, `upstream_rows` and `upstream_elements`.
// inner and in_place (grad may be input) as in CrossEntropy.
template <Element T, Element Y = T>
struct BinaryCrossEntropy {
  MatrixView<const T> input = {};
  MatrixView<const Y> targets = {};
  std::int64_t inner = 0;
  BceInput input_kind = BceInput::kLogits;
  std::span<const Arithmetic<T>> pos_weight = {};
  std::span<const Arithmetic<T>> class_weights = {};
  std::span<const Arithmetic<T>> row_weights = {};
  MatrixView<const Arithmetic<T>> element_weights = {};
  double focal_gamma = 0.0;
  std::optional<double> focal_alpha = std::nullopt;

  MatrixView<Arithmetic<T>> losses = {};
  Arithmetic<T> *loss = nullptr;

  MatrixView<T> grad = {};
  MatrixView<Y> target_grad = {};
  std::optional<Arithmetic<T>> upstream = std::nullopt;
  std::span<const Arithmetic<T>> upstream_rows = {};
  MatrixView<const Arithmetic<T>> upstream_elements = {};
  bool in_place = false;
};

namespace detail {

template <Element T, Element Y>
Status CallBinaryCrossEntropy(xent_status (*function)(const xent_binary_cross_entropy *, const xent_options *,
                                                      const xent_exec *, xent_error *) noexcept,
                              const BinaryCrossEntropy<T, Y> &args, const Options &options, const Exec &exec) noexcept {
  constexpr const char *kRows = "input has rows";
  constexpr const char *kCols = "input has columns";
  const std::int64_t rows = args.input.rows;
  const std::int64_t cols = args.input.cols;
  if (ShapeDiffers(args.targets, args.input)) return WrongShape("targets", args.targets, "input", args.input);
  Status status = CheckOptional("pos_weight", args.pos_weight.size(), cols, kCols);
  if (status.ok()) status = CheckOptional("class_weights", args.class_weights.size(), cols, kCols);
  if (status.ok()) status = CheckOptional("row_weights", args.row_weights.size(), rows, kRows);
  if (status.ok()) status = CheckOptional("element_weights", args.element_weights, "input", args.input);
  if (status.ok()) status = CheckOptional("losses", args.losses, "input", args.input);
  if (status.ok()) status = CheckOptional("grad", args.grad, "input", args.input);
  if (status.ok()) status = CheckOptional("target_grad", args.target_grad, "input", args.input);
  if (status.ok()) status = CheckOptional("upstream_rows", args.upstream_rows.size(), rows, kRows);
  if (status.ok()) status = CheckOptional("upstream_elements", args.upstream_elements, "input", args.input);
  if (!status.ok()) return status;
  const int upstreams = (args.upstream.has_value() ? 1 : 0) + (args.upstream_rows.empty() ? 0 : 1) +
                        (args.upstream_elements.data == nullptr ? 0 : 1);
  if (upstreams > 1) {
    return InvalidArgument("more than one of upstream, upstream_rows and upstream_elements is given; expected one");
  }

  xent_binary_cross_entropy c = XENT_BINARY_CROSS_ENTROPY_INIT;
  c.rows = rows;
  c.cols = cols;
  c.inner = args.inner;
  c.input = args.input.data;
  c.input_stride = args.input.stride;
  c.targets = args.targets.data;
  c.targets_stride = args.targets.stride;
  c.dtype = Dtype<T>();
  c.targets_dtype = Dtype<Y>();
  c.input_kind = static_cast<std::int32_t>(args.input_kind);
  c.in_place = args.in_place ? 1 : 0;
  c.pos_weight = DataOrNull(args.pos_weight);
  c.class_weights = DataOrNull(args.class_weights);
  c.row_weights = DataOrNull(args.row_weights);
  c.element_weights = args.element_weights.data;
  c.element_weights_stride = args.element_weights.stride;
  c.focal_gamma = args.focal_gamma;
  c.focal_alpha = args.focal_alpha.value_or(0.0);
  c.has_focal_alpha = args.focal_alpha.has_value() ? 1 : 0;
  c.losses = args.losses.data;
  c.losses_stride = args.losses.stride;
  c.loss = args.loss;
  c.grad = args.grad.data;
  c.grad_stride = args.grad.stride;
  c.target_grad = args.target_grad.data;
  c.target_grad_stride = args.target_grad.stride;
  SetUpstream(args, &c);
  if (args.upstream_elements.data != nullptr) {
    c.upstream = args.upstream_elements.data;
    c.upstream_stride = args.upstream_elements.stride;
    c.upstream_kind = XENT_UPSTREAM_ELEMENTS;
  }
  const xent_options c_options = COptions(options);
  return Call([&](xent_error *error) { return function(&c, &c_options, exec.c_exec(), error); });
}

}  // namespace detail

// Losses of the elements and their reduction. grad, target_grad, upstream and in_place must be unset. Of the options
// reduction, divisor and empty_mean. Errors: invalid argument, domain error (a probability outside [0, 1]; row(), and
// its column in value()), incomplete.
template <Element T, Element Y = T>
Status BinaryCrossEntropyForward(const BinaryCrossEntropy<T, Y> &args, const Options &options = {},
                                 const Exec &exec = {}) noexcept {
  return detail::CallBinaryCrossEntropy(xent_binary_cross_entropy_forward, args, options, exec);
}

// The same and the gradients of the reduced loss (Reduction::kNone: of each element's), in one call.
template <Element T, Element Y = T>
Status BinaryCrossEntropyForwardBackward(const BinaryCrossEntropy<T, Y> &args, const Options &options = {},
                                         const Exec &exec = {}) noexcept {
  return detail::CallBinaryCrossEntropy(xent_binary_cross_entropy_forward_backward, args, options, exec);
}

// The gradients alone; losses and loss must be unset.
template <Element T, Element Y = T>
Status BinaryCrossEntropyBackward(const BinaryCrossEntropy<T, Y> &args, const Options &options = {},
                                  const Exec &exec = {}) noexcept {
  return detail::CallBinaryCrossEntropy(xent_binary_cross_entropy_backward, args, options, exec);
}

}  // namespace xent

#endif  // XENT_XENT_HPP_
