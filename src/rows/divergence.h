// Divergences between student and teacher logits.
#pragma once

#include "kernels/divergence.h"
#include "rows/call.h"

namespace xent::internal {

struct DivergenceCall : LossCall<xent_divergence, xent_divergence_options> {
  Wide factor;  // DivergenceTask's; follows from what is given: Prepare

  // Computes what follows from what is given. The floating-point mode is one that rounds to nearest.
  void Prepare();

  DivergenceKind Kind() const { return static_cast<DivergenceKind>(options.kind); }
  bool HasSecondSums() const { return Kind() == DivergenceKind::kJensenShannon; }
};

// Prepares the call and runs it. False: the caller's parallel_for left a task out.
bool RunDivergence(DivergenceCall *call);

}  // namespace xent::internal
