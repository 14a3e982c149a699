// Divergences between student and teacher logits.
#pragma once

#include "kernels/divergence.h"
#include "rows/call.h"

namespace xent::internal {

struct DivergenceCall : LossCall<xent_divergence, xent_divergence_options> {
  // Follow from what is given: Prepare.
  Wide factor;       // DivergenceTask's
  bool float_lanes;  // rows are computed in float32 lanes, as far as these are made for them

  // Computes what follows from what is given. The floating-point mode is one that rounds to nearest.
  void Prepare();

  const xent_matrix &MatrixOf(int side) const { return side == kStudent ? args.student : args.teacher; }
  DivergenceKind Kind() const { return static_cast<DivergenceKind>(options.kind); }
  double Scale() const { return factor.hi * kDivergenceShrink; }  // 1/T
  // A row of weight 0 is not read: its loss and its gradient are zeros.
  bool IsWeightless(int64_t row) const { return args.row_weights != nullptr && RowWeight(row) == 0.0; }
  void WriteZeros(int64_t row) const;
  bool HasSecondSums() const { return Kind() == DivergenceKind::kJensenShannon; }
};

// Prepares the call and runs it. False: the caller's parallel_for left a task out.
bool RunDivergence(DivergenceCall *call);

}  // namespace xent::internal
