// A checked cross-entropy call, and what its rows have in common, whichever path they take.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dispatch/dispatch.h"
#include "kernels/general.h"
#include "rows/plan.h"
#include "rows/record.h"
#include "rows/reduction.h"
#include "rows/workspace.h"
#include "xent/xent.h"

namespace xent::internal {

// What a call computes.
enum class Mode { kForward, kForwardBackward, kBackward };

struct RowShape {
  int64_t rows, cols, chunk_cols, chunks;

  // Rows whose lanes run over positions (inner > 1) are one chunk each.
  RowShape(int64_t row_count, int64_t col_count, int64_t inner = 1)
      : rows(row_count),
        cols(col_count),
        chunk_cols(inner > 1 ? col_count : ChunkCols(col_count)),
        chunks((col_count - 1) / chunk_cols + 1) {}
  int64_t ColsOf(int64_t chunk) const { return std::min(chunk_cols, cols - chunk * chunk_cols); }
};

// q' of an index target: at the target, and in every other column.
template <class N>
struct Shares {
  N target{1.0};
  N other{};

  Shares(const xent_cross_entropy_options &options, int64_t cols) {
    const double epsilon = options.label_smoothing;
    if (epsilon == 0.0 || cols == 1) return;  // one column: the same loss, which is 0
    target = Subtract(N{1.0}, N{epsilon});
    const bool exclusive = options.smoothing == XENT_SMOOTHING_EXCLUSIVE;
    other = Divide(N{epsilon}, N{static_cast<double>(exclusive ? cols - 1 : cols)});
    if (!exclusive) target = Add(target, other);
  }
};

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
// u of a row; not of XENT_UPSTREAM_ELEMENTS.
inline double UpstreamOf(const xent_upstream &upstream, bool wide, int64_t row) {
  if (upstream.data == nullptr) return 1.0;
  return NumberAt(upstream.data, wide, upstream.kind == XENT_UPSTREAM_ROWS ? row : 0);
}
// Returns what a row's gradient is by rule, or kCompute and in *g u r over the denominator.
inline Fill FillOf(Factor denominator, double u, double row_weight, bool nan_row, Factor *g) {
  if (denominator.mantissa == 0.0) return Fill::kZero;
  if (nan_row || u != u) return Fill::kNan;
  *g = Quotient(Decompose(u), denominator);
  if (row_weight != 1.0) *g = Product(*g, Decompose(row_weight));
  return g->mantissa == 0.0 ? Fill::kZero : Fill::kCompute;
}
// Fills columns [first, end) of a gradient, which lie `step` apart.
template <class Out>
void FillColumns(Out *row, int64_t step, int64_t first, int64_t end, double value) {
  for (int64_t col = first; col < end; ++col) row[col * step] = Narrow<Out>(static_cast<Arithmetic<Out>>(value));
}
// Row `row` of a matrix in a layout with `inner` positions: where it begins, its columns `inner` apart.
inline int64_t RowOffset(int64_t row, int64_t stride, int64_t inner) {
  return inner == 1 ? row * stride : row / inner * stride + row % inner;
}

struct Call {
  // Given, and checked: strides are resolved and inner is at least 1.
  xent_cross_entropy args;
  xent_cross_entropy_options options;
  xent_statistics statistics;
  xent_exec exec;
  Mode mode;
  int64_t valid_cols;  // of the whole vocabulary
  int64_t live_rows;
  Wide weight;  // sum of r w_t over the live rows: the mean's denominator

  // Follows from these: Prepare.
  const Kernels *kernels;
  RowShape shape{0, 1};  // of the valid columns
  Factor denominator;
  Shares<double> shares{{}, 1};
  Transform transform;
  Workspace workspace;
  Plan plan;

  // Computes the second half from the first. The floating-point mode is one that rounds to nearest.
  void Prepare();

  bool IsWide() const { return args.logits.dtype == XENT_F64; }
  bool HasIndexTargets() const { return args.targets.data != nullptr; }
  int64_t Target(int64_t row) const { return HasIndexTargets() ? TargetAt(args.targets, row) : -1; }
  bool IsIgnored(int64_t target) const { return HasIndexTargets() && target == options.ignore_index; }
  double RowWeight(int64_t row) const { return WeightAt(args.row_weights, IsWide(), row); }
  double TargetWeight(int64_t target) const {
    return target < 0 ? 1.0 : WeightAt(args.class_weights, IsWide(), target);
  }
  bool InPlace() const { return args.grad.data == args.logits.data; }
  bool WritesGradients() const { return mode != Mode::kForward; }
  int64_t Inner() const { return args.inner; }

  // Where a row of a matrix begins (its columns lie Inner() apart); null where the matrix is absent.
  template <class In>
  In *RowOf(const xent_matrix &matrix, int64_t row) const {
    if (matrix.data == nullptr) return nullptr;
    return static_cast<In *>(matrix.data) + RowOffset(row, matrix.stride, args.inner);
  }
  template <class In>
  const In *Logits(int64_t row) const {
    return RowOf<In>(args.logits, row);
  }
  template <class In>
  In *Grad(int64_t row) const {
    return RowOf<In>(args.grad, row);
  }
  // Column `col` of a row of target_probs or target_grad, whose type is no template's; null where it is absent.
  void *LabelsAt(const xent_matrix &matrix, int64_t row, int64_t col) const {
    if (matrix.data == nullptr) return nullptr;
    const int64_t element = RowOffset(row, matrix.stride, args.inner) + col * args.inner;
    return static_cast<char *>(matrix.data) + element * static_cast<int64_t>(ElementSize(args.target_probs.dtype));
  }
  Record *RecordOf(int64_t row) const {
    return args.records == nullptr ? nullptr : static_cast<Record *>(args.records) + row;
  }
  template <class T>
  static void Write(void *array, int64_t row, T value) {
    if (array != nullptr) static_cast<T *>(array)[row] = value;
  }

  // Writes what forward gives of every row, as far as it is wanted.
  template <class T>
  void WriteRow(int64_t row, T loss, T lse, T log_probability) const {
    Write(args.row_losses, row, loss);
    Write(statistics.lse, row, lse);
    Write(statistics.logprobs, row, log_probability);
  }

  // Returns what the row's gradient is by rule, or kCompute and in *g u r over the denominator.
  Fill FillOf(int64_t row, bool nan_row, Factor *g) const {
    return internal::FillOf(denominator, UpstreamOf(args.upstream, IsWide(), row), RowWeight(row), nan_row, g);
  }

  // Fills columns [first, end) of both gradients.
  template <class In>
  void FillGradients(int64_t row, int64_t first, int64_t end, double value) const {
    if (args.grad.data != nullptr) FillColumns(Grad<In>(row), args.inner, first, end, value);
    if (args.target_grad.data != nullptr) {
      DispatchDtype(args.target_probs.dtype, [&](auto storage) {
        FillColumns(static_cast<decltype(storage) *>(LabelsAt(args.target_grad, row, 0)), args.inner, first, end,
                    value);
      });
    }
  }
  // Fills the gradients of the columns past valid_cols with zeros.
  template <class In>
  void FillPadding(int64_t row) const {
    if (shape.cols < args.cols) FillGradients<In>(row, shape.cols, args.cols, 0.0);
  }

  // Writes the reduced outputs that are wanted.
  void WriteTotals(const Totals &totals) const;
};

// Prepares the call and runs it over whole rows. False: the caller's parallel_for left a task out.
bool RunCrossEntropy(Call *call);

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
