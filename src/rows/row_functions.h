// logsumexp, softmax, log_softmax, the gradients through the last two, and what a batch of logits looks like.
#pragma once

#include <cstdint>

#include "xent/xent.h"

namespace xent::internal {

// Checked arguments: matrices of one dtype with resolved strides, inner at least 1.
struct RowFunctionArgs {
  int64_t rows = 0, cols = 0, inner = 1;
  xent_matrix in{};     // x, or the saved output y of the backward functions
  xent_matrix out{};    // y, or dx
  xent_matrix g{};      // of the backward functions
  void *lse = nullptr;  // of logsumexp
  xent_exec exec{};
};

// Each returns false where the caller's parallel_for left a task out.
bool RunLogSumExp(const RowFunctionArgs &args);
bool RunSoftmax(const RowFunctionArgs &args);
bool RunLogSoftmax(const RowFunctionArgs &args);
bool RunSoftmaxBackward(const RowFunctionArgs &args);
bool RunLogSoftmaxBackward(const RowFunctionArgs &args);
bool Diagnose(const RowFunctionArgs &args, xent_diagnosis *diagnosis);

}  // namespace xent::internal
