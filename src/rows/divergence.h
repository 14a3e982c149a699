// Divergences between student and teacher logits.
#pragma once

#include "kernels/divergence.h"
#include "rows/call.h"

namespace xent::internal {

struct DivergenceCall {
  // Given, and checked: strides are resolved and inner is at least 1.
  xent_divergence args;
  xent_divergence_options options;
  xent_exec exec;
  Mode mode;

  // Follows from these: Prepare.
  RowShape shape{0, 1};  // of the valid columns
  const Kernels *kernels;
  Factor denominator;
  Wide factor;  // DivergenceTask's
  Plan plan;

  // Computes the second half from the first. The floating-point mode is one that rounds to nearest.
  void Prepare();

  DivergenceKind Kind() const { return static_cast<DivergenceKind>(options.kind); }
  bool HasSecondSums() const { return Kind() == DivergenceKind::kJensenShannon; }
  bool IsWide() const { return args.student.dtype == XENT_F64; }
  int64_t Inner() const { return args.inner; }
  const xent_matrix &MatrixOf(int side) const { return side == kStudent ? args.student : args.teacher; }

  // Element (row, col) of a matrix.
  void *At(const xent_matrix &matrix, int64_t row, int64_t col) const {
    const int64_t element = RowOffset(row, matrix.stride, args.inner) + col * args.inner;
    return static_cast<char *>(matrix.data) + element * static_cast<int64_t>(ElementSize(matrix.dtype));
  }
  const void *Logits(int side, int64_t row, int64_t col) const { return At(MatrixOf(side), row, col); }
  double RowWeight(int64_t row) const { return WeightAt(args.row_weights, IsWide(), row); }
  void FillGradient(int64_t row, int64_t first, int64_t end, double value) const {
    DispatchDtype(args.grad.dtype, [&](auto storage) {
      FillColumns(static_cast<decltype(storage) *>(At(args.grad, row, 0)), args.inner, first, end, value);
    });
  }

  // The task of `cols` columns from `first` on, of one row or of `count` adjacent positions.
  DivergenceTask Task(int64_t row, int64_t first, int64_t cols, int64_t count, const DivergenceRow *rows) const {
    return {.logits = {Logits(kStudent, row, first), Logits(kTeacher, row, first)},
            .dtypes = {static_cast<Dtype>(args.student.dtype), static_cast<Dtype>(args.teacher.dtype)},
            .strides = {args.inner, args.inner},
            .cols = cols,
            .first = first,
            .count = count,
            .rows = rows,
            .kind = Kind(),
            .beta = options.beta,
            .factor = factor,
            .gradient = mode == Mode::kForward ? nullptr : At(args.grad, row, first),
            .gradient_stride = args.inner};
  }
};

// Prepares the call and runs it. False: the caller's parallel_for left a task out.
bool RunDivergence(DivergenceCall *call);

}  // namespace xent::internal
