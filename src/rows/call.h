// A checked cross-entropy call, and what its rows have in common, whichever path they take.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dispatch/dispatch.h"
#include "kernels/general.h"
#include "numbers/compiler.h"
#include "rows/plan.h"
#include "rows/record.h"
#include "rows/reduction.h"
#include "rows/row_gradient.h"
#include "rows/workspace.h"
#include "xent/xent.h"

namespace xent::internal {

// What a call computes.
enum class Mode { kForward, kForwardBackward, kBackward };

// Columns of a row that are worked on at once: a chunk or, in a slice of a vocabulary, a part of one.
struct Piece {
  int64_t chunk;
  int64_t first;  // column in the vocabulary
  int64_t place;  // the same column in memory: in a slice less than `first`
  int64_t cols;

  bool Has(int64_t col) const { return col >= first && col < first + cols; }
};

// What the first pass leaves of a piece.
template <class Part>
struct PartAt {
  const Part &part;
  Piece piece;
};

struct RowShape {
  int64_t rows, cols, inner, chunk_cols, chunks;

  // Rows whose lanes run over positions (inner > 1) are one chunk each.
  RowShape(int64_t row_count, int64_t col_count, int64_t inner_count = 1)
      : rows(row_count),
        cols(col_count),
        inner(inner_count),
        chunk_cols(inner > 1 ? col_count : ChunkCols(col_count)),
        chunks((col_count - 1) / chunk_cols + 1) {}
  Piece Chunk(int64_t i) const {
    const int64_t first = i * chunk_cols;
    return {i, first, first, std::min(chunk_cols, cols - first)};
  }
};

// The parts of a whole row, chunk by chunk.
template <class Part>
struct ChunkParts {
  const RowShape &shape;
  const Part *parts;

  PartAt<Part> operator()(int64_t i) const { return {parts[i], shape.Chunk(i)}; }
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
// The number that a gradient by rule is filled with.
inline double NumberOf(Fill fill) { return fill == Fill::kNan ? kNan : 0.0; }

// The i-th number of an array of the arithmetic type.
inline double NumberAt(const void *values, bool wide, int64_t i) {
  return wide ? static_cast<const double *>(values)[i] : WidenSubnormal(static_cast<const float *>(values)[i]);
}
// The same, 1 where there are no weights.
inline double WeightAt(const void *weights, bool wide, int64_t i) {
  return weights == nullptr ? 1.0 : NumberAt(weights, wide, i);
}

// What the calls of all functions over rows have in common.
struct RowCall {
  xent_exec exec;        // given, and checked
  RowShape shape{0, 1};  // of the valid columns
  const Kernels *kernels;
  Workspace workspace;
  Plan plan;

  // Returns where column `col` of a row lies in a matrix, null where that is absent. A row's columns are `inner` apart.
  template <class In>
  In *At(const xent_matrix &matrix, int64_t row, int64_t col = 0) const {
    return matrix.data == nullptr ? nullptr : static_cast<In *>(matrix.data) + Offset(matrix.stride, row, col);
  }
  // The same of a matrix whose type is no template's.
  void *BytesAt(const xent_matrix &matrix, int64_t row, int64_t col) const {
    if (matrix.data == nullptr) return nullptr;
    const int64_t size = static_cast<int64_t>(ElementSize(matrix.dtype));
    return static_cast<char *>(matrix.data) + Offset(matrix.stride, row, col) * size;
  }
  int64_t Offset(int64_t stride, int64_t row, int64_t col) const {
    const int64_t inner = shape.inner;
    return (inner == 1 ? row * stride : row / inner * stride + row % inner) + col * inner;
  }

  // Returns a task over a piece of a matrix, of one row (count 0) or of `count` adjacent positions.
  GeneralTask TaskOf(const xent_matrix &matrix, int64_t row, int64_t count, const Piece &piece) const {
    GeneralTask task;
    task.logits = BytesAt(matrix, row, piece.place);
    task.cols = piece.cols;
    task.first = piece.first;
    task.count = count;
    task.stride = shape.inner;
    return task;
  }

  // Fills `cols` columns from `first` on of a row of a gradient, if that is wanted.
  XENT_NOINLINE void FillGradient(const xent_matrix &gradient, int64_t row, int64_t first, int64_t cols,
                                  double value) const {
    if (gradient.data == nullptr) return;
    DispatchDtype(gradient.dtype, [&](auto storage) {
      FillColumns(At<decltype(storage)>(gradient, row, first), cols, value, shape.inner);
    });
  }
};

// The matrix whose dtype says in which type a call computes, and whose place a gradient may take.
inline const xent_matrix &InputOf(const xent_cross_entropy &args) { return args.logits; }
inline const xent_matrix &InputOf(const xent_divergence &args) { return args.student; }
inline const xent_matrix &InputOf(const xent_binary_cross_entropy &args) { return args.input; }

// What the calls of losses have in common.
template <class Args, class Options>
struct LossCall : RowCall {
  // Given, and checked: strides are resolved and inner is at least 1.
  Args args;
  Options options;
  Mode mode;

  Factor denominator;  // of the reduced loss and of gradients; follows from what is given

  bool IsWide() const { return InputOf(args).dtype == XENT_F64; }
  bool WritesGradients() const { return mode != Mode::kForward; }
  double RowWeight(int64_t row) const { return WeightAt(args.row_weights, IsWide(), row); }
  // u of a row; not of XENT_UPSTREAM_ELEMENTS.
  double Upstream(int64_t row) const {
    return WeightAt(args.upstream.data, IsWide(), args.upstream.kind == XENT_UPSTREAM_ROWS ? row : 0);
  }
  // Returns what the row's gradient is by rule, or kCompute and in *g u r over the denominator.
  Fill FillOf(int64_t row, bool nan_row, Factor *g) const {
    if (denominator.mantissa == 0.0) return Fill::kZero;
    const double u = Upstream(row), weight = RowWeight(row);
    if (nan_row || u != u) return Fill::kNan;
    *g = Quotient(Decompose(u), denominator);
    if (weight != 1.0) *g = Product(*g, Decompose(weight));
    return g->mantissa == 0.0 ? Fill::kZero : Fill::kCompute;
  }
  // Writes the reduced loss, if that is wanted.
  void WriteReducedLoss(Wide sum) const {
    if (args.reduced_loss != nullptr) {
      WriteReduced(args.reduced_loss, IsWide(), sum, options.reduction, denominator);
    }
  }
};

struct Call : LossCall<xent_cross_entropy, xent_cross_entropy_options> {
  // Given, and checked.
  xent_statistics statistics;
  int64_t valid_cols;  // of the whole vocabulary
  int64_t live_rows;
  Wide weight;  // sum of r w_t over the live rows: the mean's denominator

  // Follows from what is given: Prepare.
  Shares<double> shares{{}, 1};
  // Not of the index path.
  Wide target_share{1.0};  // shares.target with its low part
  Labels labels;           // of every row, but for the pointers
  Transform transform;
  uint32_t options_tag;  // of the records that are written

  // Computes what follows from what is given. The floating-point mode is one that rounds to nearest.
  void Prepare();
  // Of that, what the general path needs of labels.
  XENT_NOINLINE void PrepareLabels();

  // Tells calls apart whose records do not suit each other. All options count but the reduction, which is not of a row,
  // and ignore_index, which says itself in each row's record.
  uint32_t OptionsTag() const;
  Record NewRecord(Record::State state, Record::Kind kind) const {
    Record record{};
    record.tag = Record::kTag;
    record.dtype = Record::DtypeTag(args.logits.dtype);
    record.state = state;
    record.kind = kind;
    record.options = options_tag;
    return record;
  }
  bool HasIndexTargets() const { return args.targets.data != nullptr; }
  int64_t Target(int64_t row) const { return HasIndexTargets() ? TargetAt(args.targets, row) : -1; }
  bool IsIgnored(int64_t target) const { return HasIndexTargets() && target == options.ignore_index; }
  double TargetWeight(int64_t target) const {
    return target < 0 ? 1.0 : WeightAt(args.class_weights, IsWide(), target);
  }
  bool InPlace() const { return args.grad.data == args.logits.data; }

  template <class In>
  const In *Logits(int64_t row, int64_t col = 0) const {
    return At<const In>(args.logits, row, col);
  }
  template <class In>
  double Logit(int64_t row, int64_t col) const {
    return static_cast<double>(Widen(*Logits<In>(row, col)));
  }
  template <class In>
  In *Grad(int64_t row, int64_t col = 0) const {
    return At<In>(args.grad, row, col);
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

  // Fills `cols` columns from `first` on of both gradients.
  void FillGradients(int64_t row, int64_t first, int64_t cols, double value) const {
    FillGradient(args.grad, row, first, cols, value);
    FillGradient(args.target_grad, row, first, cols, value);
  }
  // Fills the gradients of the columns past valid_cols with zeros.
  void FillPadding(int64_t row) const {
    if (shape.cols < args.cols) FillGradients(row, shape.cols, args.cols - shape.cols, 0.0);
  }

  // Writes the reduced outputs that are wanted.
  void WriteTotals(const Totals &totals) const;
};

// Prepares the call and runs it over whole rows. False: the caller's parallel_for left a task out.
bool RunCrossEntropy(Call *call);

// loss + lambda lse^2.
template <class N>
Unbounded<N> WithZLoss(Unbounded<N> loss, Unbounded<N> lse, double lambda) {
  const int64_t exponent = ExponentOf(Value(lse.mantissa));
  const N mantissa = Scale(lse.mantissa, -exponent);
  return Sum(loss, Times<N>({MultiplyAny(mantissa, mantissa), 2 * (exponent + lse.exponent)}, lambda));
}
// mass + 2 lambda lse.
template <class N>
Unbounded<N> MassWithZLoss(N mass, Unbounded<N> lse, double lambda) {
  return Sum<N>({mass}, Times<N>({lse.mantissa, lse.exponent + 1}, lambda));
}

}  // namespace xent::internal
