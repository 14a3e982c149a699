// A checked cross-entropy call: what its rows have in common, whichever way they are computed.
#ifndef XENT_SRC_ROWS_CALL_H_
#define XENT_SRC_ROWS_CALL_H_

#include <cstdint>
#include <limits>

#include "api/validate.h"
#include "dispatch/dispatch.h"
#include "kernels/general.h"
#include "numbers/elements.h"
#include "rows/reduction.h"
#include "rows/row_gradient.h"
#include "rows/row_sum.h"
#include "rows/run_rows.h"
#include "rows/workspace.h"
#include "xent/xent.h"

namespace xent::internal {

// q' of an index target: at the target, and in every other column.
template <class N>
struct Shares {
  N target{1.0};
  N other{};

  Shares(const xent_options &options, int64_t cols) {
    const double epsilon = options.label_smoothing;
    if (epsilon == 0.0 || cols == 1) return;  // one column: the same loss, which is 0
    target = Subtract(N{1.0}, N{epsilon});
    const bool exclusive = options.smoothing == XENT_SMOOTHING_EXCLUSIVE;
    other = Divide(N{epsilon}, N{static_cast<double>(exclusive ? cols - 1 : cols)});
    if (!exclusive) target = Add(target, other);
  }
};

// What forward leaves of a row for backward; xent.h promises the size for ever and zeros in what is unused.
struct Record {
  static constexpr uint32_t kTag = 0x746e6578;  // "xent"
  enum State : uint8_t { kLive = 1, kIgnored = 2, kNanRow = 3 };
  enum Kind : uint8_t { kIndex = 0, kGeneral = 1 };  // of a live row: which of the two ways it went

  uint32_t tag;
  uint8_t dtype;  // xent_dtype
  uint8_t state;
  uint8_t logit_sums;  // kIndex; bit 0: of the others' sum, bit 1: of the target's term
  uint8_t kind;
  struct Index {
    uint16_t logit_chunks;  // bit i: chunk i was summed relative to its maximum
    uint16_t zeros[3];
    double sums[2][3];  // others, target: sum, its low part, reference
  };
  struct General {
    int64_t argmax;
    double value, others[2], weight[2], max;
  };
  union {
    Index index;
    General general;
  };

  static Record Make(int32_t dtype, State state, Kind kind = kIndex) {
    Record record{};
    record.tag = kTag;
    record.dtype = static_cast<uint8_t>(dtype);
    record.state = state;
    record.kind = kind;
    return record;
  }
  template <class T>
  void Set(int i, const RowSum<T> &s) {
    const Wide sum{s.sum};
    index.sums[i][0] = sum.hi;
    index.sums[i][1] = sum.lo;
    index.sums[i][2] = s.reference;
    if (s.logit) logit_sums = static_cast<uint8_t>(logit_sums | 1 << i);
  }
  template <class T>
  RowSum<T> Get(int i) const {
    return {ToNumber<T>({index.sums[i][0], index.sums[i][1]}), index.sums[i][2], (logit_sums >> i & 1) != 0};
  }
};
static_assert(sizeof(Record) == XENT_RECORD_BYTES);

// What a row's gradient is by rule, or that it has to be computed.
enum class Fill : uint8_t { kCompute, kZero, kNan };

// The i-th number of an array of the arithmetic type.
inline double NumberAt(const void *values, bool wide, int64_t i) {
  return wide ? static_cast<const double *>(values)[i] : WidenSubnormal(static_cast<const float *>(values)[i]);
}
// The same, 1 where there are no weights.
inline double WeightAt(const void *weights, bool wide, int64_t i) {
  return weights == nullptr ? 1.0 : NumberAt(weights, wide, i);
}
// One number a call or a row.
inline double UpstreamOf(const void *upstream, int32_t kind, bool wide, int64_t row) {
  return kind == XENT_UPSTREAM_ONE ? 1.0 : NumberAt(upstream, wide, kind == XENT_UPSTREAM_ROWS ? row : 0);
}
// What a row's gradient is if it is given by rule; else kCompute, and u r over the denominator.
inline Fill FillOf(Factor denominator, double u, double row_weight, bool nan_row, Factor *g) {
  if (denominator.mantissa == 0.0) return Fill::kZero;
  if (nan_row || u != u) return Fill::kNan;
  *g = Quotient(Decompose(u), denominator);
  if (row_weight != 1.0) *g = Product(*g, Decompose(row_weight));
  return g->mantissa == 0.0 ? Fill::kZero : Fill::kCompute;
}
// Columns [first, end) of a gradient, which lie `step` apart.
template <class Out>
void FillColumns(Out *row, int64_t step, int64_t first, int64_t end, double value) {
  for (int64_t col = first; col < end; ++col) row[col * step] = Narrow<Out>(static_cast<Arithmetic<Out>>(value));
}

// The first that is wanted of the statistics that need a look at the row of their own, or null. Not inline: inlined
// into the checks it makes a call of one row of 10 a fifth slower (Zen 5, g++ 12; bench/compare).
const char *FirstStatistic(const xent_cross_entropy &args);

// What a row's targets and weights are.
struct CallInputs {
  const xent_cross_entropy &args;
  const xent_options &options;

  bool HasIndexTargets() const { return args.targets != nullptr; }
  int64_t Target(int64_t row) const { return HasIndexTargets() ? Targets{args.targets, args.targets_type}[row] : -1; }
  bool IsIgnored(int64_t target) const { return HasIndexTargets() && target == options.ignore_index; }

  double RowWeight(int64_t row) const { return WeightAt(args.row_weights, args.dtype == XENT_F64, row); }
  double TargetWeight(int64_t target) const {
    return target < 0 ? 1.0 : WeightAt(args.class_weights, args.dtype == XENT_F64, target);
  }
};

struct Call : CallInputs {
  const Kernels &kernels;
  const Mode mode;
  const RowShape shape;  // of the valid columns
  const int64_t logits_stride, grad_stride, probs_stride, target_grad_stride;
  const Factor denominator;
  const Shares<double> shares;
  const Transform transform;
  const bool wants_statistics;
  const bool streams;  // gradients go past the caches where they can
  const Workspace workspace;

  bool InPlace() const { return args.grad == args.logits; }
  bool WritesGradients() const { return mode != Mode::kForward; }
  int64_t Inner() const { return args.inner > 1 ? args.inner : 1; }

  // Where a row of the matrix begins (its columns lie Inner() apart).
  int64_t Offset(int64_t row, int64_t stride) const {
    if (args.inner <= 1) return row * stride;
    return row / args.inner * stride + row % args.inner;
  }
  template <class In>
  const In *Logits(int64_t row) const {
    return static_cast<const In *>(args.logits) + Offset(row, logits_stride);
  }
  template <class In>
  In *Grad(int64_t row) const {
    return args.grad == nullptr ? nullptr : static_cast<In *>(args.grad) + Offset(row, grad_stride);
  }
  const void *Probs(int64_t row) const {
    return static_cast<const char *>(args.target_probs) + Offset(row, probs_stride) * ProbsSize();
  }
  void *TargetGrad(int64_t row) const {
    if (args.target_grad == nullptr) return nullptr;
    return static_cast<char *>(args.target_grad) + Offset(row, target_grad_stride) * ProbsSize();
  }
  int64_t ProbsSize() const { return static_cast<int64_t>(ElementSize(args.target_probs_dtype)); }
  Record *RecordOf(int64_t row) const {
    return args.records == nullptr ? nullptr : static_cast<Record *>(args.records) + row;
  }
  template <class T>
  static void Write(void *array, int64_t row, T value) {
    if (array != nullptr) static_cast<T *>(array)[row] = value;
  }

  // What the row's gradient is if it is given by rule; else kCompute, and u r over the denominator.
  Fill FillOf(int64_t row, bool nan_row, Factor *g) const {
    const double u = UpstreamOf(args.upstream, args.upstream_kind, args.dtype == XENT_F64, row);
    return internal::FillOf(denominator, u, RowWeight(row), nan_row, g);
  }

  // Columns [first, end) of the gradients.
  template <class In>
  void FillGradients(int64_t row, int64_t first, int64_t end, double value) const {
    if (args.grad != nullptr) FillColumns(Grad<In>(row), Inner(), first, end, value);
    if (args.target_grad != nullptr) {
      DispatchDtype(args.target_probs_dtype, [&](auto storage) {
        FillColumns(static_cast<decltype(storage) *>(TargetGrad(row)), Inner(), first, end, value);
      });
    }
  }
  // The columns past valid_cols.
  template <class In>
  void FillPadding(int64_t row) const {
    if (shape.cols < args.cols) FillGradients<In>(row, shape.cols, args.cols, 0.0);
  }
};

// lambda lse^2.
template <class N>
N ZLoss(N lse, double lambda) {
  return MultiplyAny(MultiplyAny(lse, lse), N{lambda});
}
// a b, 0 where the coefficient b is exactly 0.
template <class N>
N Weighted(N a, double b) {
  return b == 1.0 ? a : b == 0.0 ? N{} : MultiplyAny(a, N{b});
}

}  // namespace xent::internal
#endif  // XENT_SRC_ROWS_CALL_H_
