// Cross-entropy with index targets: forward, forward with backward, and backward from forward's records.
#include <cstdint>
#include <cstring>
#include <limits>

#include "api/reduction.h"
#include "api/row_gradient.h"
#include "api/run_rows.h"
#include "api/validate.h"
#include "kernels/dispatch.h"
#include "kernels/row_sum.h"
#include "math/fp_mode.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What forward leaves of a row for backward; xent.h promises the size for ever and zeros in what is unused.
struct Record {
  static constexpr uint32_t kTag = 0x746e6578;  // "xent"
  enum State : uint8_t { kLive = 1, kIgnored = 2, kNanRow = 3 };

  uint32_t tag;
  uint8_t dtype;  // xent_dtype
  uint8_t state;
  uint8_t logit_sums;  // bit 0: of the others' sum, bit 1: of the target's term
  uint8_t zero;
  uint16_t logit_chunks;  // bit i: chunk i was summed relative to its maximum
  uint16_t zeros[3];
  double sums[2][3];  // others, target: sum, its low part, reference

  static Record Make(int32_t dtype, State state) {
    Record record{};
    record.tag = kTag;
    record.dtype = static_cast<uint8_t>(dtype);
    record.state = state;
    return record;
  }
  template <class T>
  void Set(int i, const RowSum<T> &s) {
    const Wide sum{s.sum};
    sums[i][0] = sum.hi;
    sums[i][1] = sum.lo;
    sums[i][2] = s.reference;
    if (s.logit) logit_sums = static_cast<uint8_t>(logit_sums | 1 << i);
  }
  template <class T>
  RowSum<T> Get(int i) const {
    return {ToNumber<T>({sums[i][0], sums[i][1]}), sums[i][2], (logit_sums >> i & 1) != 0};
  }
};
static_assert(sizeof(Record) == XENT_RECORD_BYTES);

// The smoothed loss as nll_weight nll + others_weight sum_{c != t} (lse - z_c); y_t and y_j of the gradient follow.
struct Smoothing {
  double nll_weight = 1.0;
  double others_weight = 0.0;

  Smoothing(const xent_options &options, int64_t cols) {
    const double epsilon = options.label_smoothing;
    if (epsilon == 0.0 || cols == 1) return;  // one column: the same loss, which is 0
    if (options.smoothing == XENT_SMOOTHING_EXCLUSIVE) {
      others_weight = epsilon / static_cast<double>(cols - 1);
      nll_weight = 1.0 - epsilon;
    } else {
      others_weight = epsilon / static_cast<double>(cols);
      nll_weight = (1.0 - epsilon) + others_weight;
    }
  }
};

enum class Mode { kForward, kForwardBackward, kBackward };

template <class In>
struct CrossEntropyJob {
  using T = Arithmetic<In>;
  using N = Number<T>;
  static constexpr int kPasses = 2;
  using Sums = Totals;
  struct Row {
    int64_t target;
    double target_logit;
    bool nan;
    RowSum<T> others, target_term;
    T loss;
    double nll;  // unrounded, for the perplexity
    uint16_t logit_chunks;
    Factor g;
    RowGradient<T> gradient;
    T target_gradient;
  };

  const Kernels &kernels;
  const RowShape &shape;
  const xent_cross_entropy &args;
  const xent_options &options;
  const Smoothing smoothing;
  const Mode mode;
  const Factor denominator;
  const int64_t logits_stride, grad_stride;

  const In *Logits(int64_t row) const { return static_cast<const In *>(args.logits) + row * logits_stride; }
  In *Grad(int64_t row) const {
    return args.grad == nullptr ? nullptr : static_cast<In *>(args.grad) + row * grad_stride;
  }
  Record *RecordOf(int64_t row) const {
    return args.records == nullptr ? nullptr : static_cast<Record *>(args.records) + row;
  }
  static void Write(void *array, int64_t row, T value) {
    if (array != nullptr) static_cast<T *>(array)[row] = value;
  }

  bool Begin(int64_t row, Row &state) const {
    state.target = Targets{args.targets, args.targets_type}[row];
    if (state.target == options.ignore_index) {
      if (Grad(row) != nullptr) FillRow(Grad(row), shape.cols, 0.0);
      if (mode != Mode::kBackward) {
        Write(args.losses, row, T{0});
        Write(args.lse, row, T{0});
        if (args.records != nullptr) *RecordOf(row) = Record::Make(args.dtype, Record::kIgnored);
      }
      return false;
    }
    state.target_logit = static_cast<double>(Widen(Logits(row)[state.target]));
    if (mode == Mode::kBackward) {
      const Record &record = *RecordOf(row);
      state.nan = record.state == Record::kNanRow;
      state.others = record.template Get<T>(0);
      state.target_term = record.template Get<T>(1);
      state.logit_chunks = record.logit_chunks;
      PrepareGradient(row, state);
    } else {
      state.nan = !(state.target_logit < kInfinity);
    }
    return true;
  }

  // u over the denominator, times p - y.
  void PrepareGradient(int64_t row, Row &state) const {
    double u = 1.0;
    if (args.upstream_kind != XENT_UPSTREAM_ONE) {
      u = WidenSubnormal(static_cast<const T *>(args.upstream)[args.upstream_kind == XENT_UPSTREAM_ROWS ? row : 0]);
    }
    if (u != u) state.nan = true;
    if (state.nan) return;
    state.g = Quotient(Decompose(u), denominator);
    if (state.g.mantissa == 0.0) return;
    const RowSum<T> total = Merge<T>(state.others, state.target_term);
    state.gradient = MakeRowGradient<In>(total, state.g, smoothing.others_weight);
    // Without smoothing p_t - 1 is -(the others' sum) / total.
    state.target_gradient = smoothing.others_weight == 0.0
                                ? ScaledRatio<T>({-state.g.mantissa, state.g.exponent}, state.others, total, 0.0)
                                : ScaledRatio<T>(state.g, state.target_term, total, smoothing.nll_weight);
  }

  void Chunk(int pass, int64_t row, int64_t chunk, Row &state, ChunkSum &sum) const {
    const int64_t first = chunk * shape.chunk_cols;
    const int64_t cols = shape.ColsOf(chunk);
    const int64_t target = state.target - first;
    const In *const logits = Logits(row) + first;
    In *const grad = args.grad == nullptr ? nullptr : Grad(row) + first;
    if (pass == 0) {
      if (mode == Mode::kBackward || state.nan) return;
      const double z = state.target_logit;
      const bool usable = z >= -Format<T>::kLimit && z <= Format<T>::kLimit;
      kernels.sum->exp_sum[kDtypeOf<In>]({logits, cols, target, usable ? RoundedLog2(z) : kNan, z,
                                          kKeepsExponentials<In> ? grad : nullptr, smoothing.others_weight != 0.0},
                                         &sum);
      return;
    }
    if (grad == nullptr) return;
    if (state.nan) return FillRow(grad, cols, kNan);
    if (state.g.mantissa == 0.0) return FillRow(grad, cols, 0.0);
    if (mode == Mode::kBackward) {
      sum.kind = (state.logit_chunks >> chunk & 1) != 0 ? Reference::kLogit : Reference::kExponent;
      if (sum.kind == Reference::kLogit) {
        sum.reference = kernels.sum->maximum[kDtypeOf<In>](logits, cols, target).max;
      }
    }
    if (kKeepsExponentials<In> && mode == Mode::kForwardBackward) {
      if constexpr (kKeepsExponentials<In>) {
        GradientFromExponentials(*kernels.write, state.gradient, sum, grad, cols);
      }
    } else {
      GradientFromLogits(*kernels.write, state.gradient, sum.kind, sum.reference, logits, grad, cols);
    }
    if (target >= 0 && target < cols) grad[target] = Narrow<In>(state.target_gradient);
  }

  void Between(int pass, int64_t row, Row &state, const ChunkSum *sums) const {
    if (pass != 0 || mode == Mode::kBackward) return;
    state.logit_chunks = 0;
    for (int64_t i = 0; !state.nan && i < shape.chunks; ++i) {
      if (sums[i].special != Special::kNone) state.nan = true;
      if (sums[i].kind == Reference::kLogit) state.logit_chunks = static_cast<uint16_t>(state.logit_chunks | 1u << i);
    }
    if (!state.nan) {
      for (int64_t i = 0; i < shape.chunks; ++i) state.others = Merge<T>(state.others, SumOfChunk<T>(sums[i]));
      state.target_term = SumOfLogit<T>(state.target_logit);
      if (state.others.IsZero() && state.target_term.IsZero()) state.nan = true;  // a row of -inf
    }
    T lse = std::numeric_limits<T>::quiet_NaN();
    state.loss = lse;
    state.nll = kNan;
    if (!state.nan) {
      const N nll = state.target_term.IsZero() ? N{kInfinity} : NegativeLogLikelihood(state.others, state.target_term);
      state.nll = Value(nll);
      state.loss = RoundTo<T>(nll);
      if (args.lse != nullptr || smoothing.others_weight != 0.0) {
        const N wide_lse =
            state.others.IsZero() ? N{state.target_logit} : LogOfSum(Merge<T>(state.others, state.target_term));
        lse = RoundTo<T>(wide_lse);
        if (smoothing.others_weight != 0.0) state.loss = SmoothedLoss(nll, OthersLoss(state, sums));
      }
    }
    Write(args.losses, row, state.loss);
    Write(args.lse, row, lse);
    if (args.records != nullptr) {
      Record record = Record::Make(args.dtype, state.nan ? Record::kNanRow : Record::kLive);
      if (!state.nan) {
        record.logit_chunks = state.logit_chunks;
        record.Set(0, state.others);
        record.Set(1, state.target_term);
      }
      *RecordOf(row) = record;
    }
    if (mode == Mode::kForwardBackward) PrepareGradient(row, state);
  }

  // kSpreadScale times the sum over c != t of lse - z_c: per chunk the differences to its pivot, and the pivot's own.
  N OthersLoss(const Row &state, const ChunkSum *sums) const {
    const int64_t scale = ExponentOf(Format<T>::kSpreadScale);
    if (shape.cols == 2 && !state.others.IsZero()) {
      // The one other column may be the confident one, where lse - z cancels. (Where its exponential has vanished, be
      // it masked or far below, the difference to the pivot says which.)
      return internal::Scale(NegativeLogLikelihood(state.target_term, state.others), scale);
    }
    // lse as the part that a pivot is near to and the rest: beyond 2^20 nothing of log sum is left in lse itself.
    const RowSum<T> sum = Merge<T>(state.others, state.target_term);
    N near{state.target_logit}, rest{};
    if (!state.others.IsZero()) {
      near = sum.logit ? N{sum.reference} : LogOfSum(sum);
      if (sum.logit) rest = Log(sum.sum);
    }
    N total{};
    for (int64_t i = 0; i < shape.chunks; ++i) {
      const int64_t first = i * shape.chunk_cols;
      const int64_t cols = shape.ColsOf(i);
      const bool has_target = state.target >= first && state.target < first + cols;
      const double others = static_cast<double>(cols - has_target);
      const N below = internal::Scale(Add(Subtract(near, N{sums[i].pivot}), rest), scale);
      total = AddOrOverflow(total, AddOrOverflow(ToNumber<T>(sums[i].spread), Multiply(below, N{others})));
    }
    return total;
  }

  T SmoothedLoss(N nll, N others) const {
    const int64_t scale = ExponentOf(Format<T>::kSpreadScale);
    N loss{};
    if (smoothing.nll_weight != 0.0) loss = TimesFinite(internal::Scale(nll, scale), smoothing.nll_weight);
    loss = AddOrOverflow(loss, TimesFinite(others, smoothing.others_weight));
    return RoundTo<T>(internal::Scale(loss, -scale));
  }
  static N TimesFinite(N a, double b) {
    const double value = Value(a);
    return value - value == 0.0 ? Multiply(a, N{b}) : N{value * b};
  }

  void End(int64_t /*row*/, const Row &state, Totals &totals) const {
    if (mode == Mode::kBackward) return;
    totals.Add({{static_cast<double>(state.loss), 0.0}, state.nll});
  }
};

// Targets in range; counts the rows that are not ignored.
xent_status CheckTargetValues(const xent_cross_entropy &args, const xent_options &options, int64_t *live_rows,
                              xent_error *error) {
  const Targets targets{args.targets, args.targets_type};
  *live_rows = 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    const int64_t target = targets[row];
    if (target == options.ignore_index) continue;
    if (target < 0 || target >= args.cols) {
      return FailAt(error, XENT_TARGET_OUT_OF_RANGE, row, target,
                    "targets: row %lld is %lld, expected 0 <= target < %lld or ignore_index, which is %lld",
                    static_cast<long long>(row), static_cast<long long>(target), static_cast<long long>(args.cols),
                    static_cast<long long>(options.ignore_index));
    }
    ++*live_rows;
  }
  return XENT_OK;
}

xent_status CheckGradient(const xent_cross_entropy &args, const Matrix &logits, Matrix *grad, xent_error *error) {
  XENT_RETURN_IF_ERROR(CheckMatrix(args.rows, args.cols, args.dtype, grad, error));
  if (args.in_place != 0 && args.in_place != 1) {
    return Invalid(error, "in_place is %d, expected 0 or 1", args.in_place);
  }
  if (args.rows > 0 && args.grad == args.logits && args.in_place == 0) {
    return Invalid(error, "grad is logits, expected in_place to be 1 then");
  }
  XENT_RETURN_IF_ERROR(CheckSameStride(logits, *grad, args.rows, error));
  if (args.upstream_kind < XENT_UPSTREAM_ONE || args.upstream_kind > XENT_UPSTREAM_ROWS) {
    return Invalid(error, "upstream_kind is %d, expected XENT_UPSTREAM_ONE, XENT_UPSTREAM_SCALAR or XENT_UPSTREAM_ROWS",
                   args.upstream_kind);
  }
  if (args.upstream_kind == XENT_UPSTREAM_ONE) {
    if (args.upstream == nullptr) return XENT_OK;
    return Invalid(error, "upstream is set, expected XENT_UPSTREAM_SCALAR or XENT_UPSTREAM_ROWS as upstream_kind");
  }
  const int64_t count = args.upstream_kind == XENT_UPSTREAM_ROWS ? args.rows : args.rows > 0;
  return CheckArray(args.upstream, count, args.dtype == XENT_F64 ? 8 : 4, "upstream", error);
}

xent_status CheckRecords(const xent_cross_entropy &args, const xent_options &options, xent_error *error) {
  const Record *const records = static_cast<const Record *>(args.records);
  const Targets targets{args.targets, args.targets_type};
  for (int64_t row = 0; row < args.rows; ++row) {
    const Record &record = records[row];
    const bool known = record.tag == Record::kTag && record.dtype == args.dtype && record.state >= Record::kLive &&
                       record.state <= Record::kNanRow;
    const bool ignored = targets[row] == options.ignore_index;
    if (known && (ignored || record.state != Record::kIgnored)) continue;
    return FailAt(error, XENT_INVALID_ARGUMENT, row, record.state,
                  known ? "records: row %lld was ignored by forward, but its target is %lld now"
                        : "records: row %lld was not written by a forward call with logits of this dtype (target %lld)",
                  static_cast<long long>(row), static_cast<long long>(targets[row]));
  }
  return XENT_OK;
}

// Outputs and inputs that the mode has no use for must be unset: nothing is silently left undone.
xent_status CheckUnused(const xent_cross_entropy &args, const xent_options &options, Mode mode, xent_error *error) {
  const char *name = nullptr;
  if (mode == Mode::kForward) {
    if (args.grad != nullptr) name = "grad";
    if (args.grad_stride != 0) name = "grad_stride";
    if (args.upstream != nullptr) name = "upstream";
    if (args.upstream_kind != XENT_UPSTREAM_ONE) name = "upstream_kind";
    if (args.in_place != 0) name = "in_place";
    if (name != nullptr) {
      return Invalid(error, "%s is set, but forward writes no gradient", name);
    }
  } else if (mode == Mode::kBackward) {
    if (args.losses != nullptr) name = "losses";
    if (args.lse != nullptr) name = "lse";
    if (args.loss != nullptr) name = "loss";
    if (args.perplexity != nullptr) name = "perplexity";
    if (args.live_rows != nullptr) name = "live_rows";
    if (name != nullptr) {
      return Invalid(error, "%s is set, but backward writes the gradient alone", name);
    }
  }
  if (args.loss != nullptr && options.reduction == XENT_REDUCTION_NONE) {
    return Invalid(error, "loss is set, but reduction is none: expected NULL, or reduction sum or mean");
  }
  return XENT_OK;
}

template <class In>
XENT_NOINLINE xent_status RunCrossEntropy(const xent_cross_entropy &args, const xent_options &options, Mode mode,
                                          const xent_exec &exec, int64_t live_rows, int64_t logits_stride,
                                          int64_t grad_stride, xent_error *error) {
  using T = Arithmetic<In>;
  const RowShape shape(args.rows, args.cols);
  const CrossEntropyJob<In> job{
      ActiveKernels(), shape,      args, options, Smoothing(options, args.cols), mode, Denominator(options, live_rows),
      logits_stride,   grad_stride};
  Totals totals;
  if (!RunRows(job, shape, exec, &totals)) return FailIncomplete(error);
  if (args.loss != nullptr) *static_cast<T *>(args.loss) = Reduced<T>(totals.loss, options, live_rows);
  if (args.perplexity != nullptr) *args.perplexity = Perplexity(totals.nll, live_rows);
  if (args.live_rows != nullptr) *args.live_rows = live_rows;
  return XENT_OK;
}

xent_status CrossEntropy(const xent_cross_entropy *given, const xent_options *given_options,
                         const xent_exec *given_exec, Mode mode, xent_error *error) {
  XENT_RETURN_IF_ERROR(CheckError(error));
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  XENT_RETURN_IF_ERROR(ReadStruct(given, offsetof(xent_cross_entropy, inner), "args", &args, error));
  xent_options options;
  xent_exec exec;
  XENT_RETURN_IF_ERROR(CheckShape(args.rows, args.cols, args.dtype, error));
  XENT_RETURN_IF_ERROR(CheckOptions(given_options, args.cols, &options, error));
  XENT_RETURN_IF_ERROR(CheckExec(given_exec, &exec, error));
  Matrix logits{"logits", "logits_stride", args.logits, args.logits_stride};
  Matrix grad{"grad", "grad_stride", args.grad, args.grad_stride};
  XENT_RETURN_IF_ERROR(CheckMatrix(args.rows, args.cols, args.dtype, &logits, error));
  XENT_RETURN_IF_ERROR(CheckTargets(args.targets, args.targets_type, args.rows, error));
  XENT_RETURN_IF_ERROR(CheckUnused(args, options, mode, error));
  const size_t size = args.dtype == XENT_F64 ? 8 : 4;
  XENT_RETURN_IF_ERROR(CheckArray(args.losses, 0, size, "losses", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.lse, 0, size, "lse", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.loss, 0, size, "loss", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.perplexity, 0, alignof(double), "perplexity", error));
  XENT_RETURN_IF_ERROR(CheckArray(args.live_rows, 0, alignof(int64_t), "live_rows", error));
  XENT_RETURN_IF_ERROR(
      CheckArray(args.records, mode == Mode::kBackward ? args.rows : 0, alignof(Record), "records", error));
  if (mode != Mode::kForward) XENT_RETURN_IF_ERROR(CheckGradient(args, logits, &grad, error));
  int64_t live_rows;
  XENT_RETURN_IF_ERROR(CheckTargetValues(args, options, &live_rows, error));
  if (mode == Mode::kBackward) XENT_RETURN_IF_ERROR(CheckRecords(args, options, error));

  const FpMode fp_mode(Subnormals::kFlush);
  return DispatchDtype(KernelDtype(args.dtype), [&](auto storage) {
    return RunCrossEntropy<decltype(storage)>(args, options, mode, exec, live_rows, logits.stride, grad.stride, error);
  });
}

}  // namespace
}  // namespace xent::internal

extern "C" {

xent_status xent_cross_entropy_forward(const xent_cross_entropy *args, const xent_options *options,
                                       const xent_exec *exec, xent_error *error) noexcept {
  return xent::internal::CrossEntropy(args, options, exec, xent::internal::Mode::kForward, error);
}

xent_status xent_cross_entropy_forward_backward(const xent_cross_entropy *args, const xent_options *options,
                                                const xent_exec *exec, xent_error *error) noexcept {
  return xent::internal::CrossEntropy(args, options, exec, xent::internal::Mode::kForwardBackward, error);
}

xent_status xent_cross_entropy_backward(const xent_cross_entropy *args, const xent_options *options,
                                        const xent_exec *exec, xent_error *error) noexcept {
  return xent::internal::CrossEntropy(args, options, exec, xent::internal::Mode::kBackward, error);
}

}  // extern "C"
