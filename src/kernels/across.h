// Up to kTile rows at once, one a lane, with every option: short rows, which come in through a transposition, and
// positions of a class-major layout, which lie side by side. Exponentials are float32, relative to an integer reference
// exponent that each lane takes from its largest logit; sums of more than four of them, and all that a row needs beside
// its columns, are double. float64 has no such kernel.
//
// All columns that hold the row's largest value m' are kept apart from the sum, so that every sum has terms of one
// sign:
//   loss = sum_c y_c (m' - z'_c) + W L,   W = sum_c y_c,   L = log1p(others),
//   others = sum over the columns below m' of e^(z'_j - m'), plus the number of columns at m', less one.
// A row that this is not made for (NaN, +inf, -inf throughout, logits beyond 2^20, sums beyond float32's range) is not
// done: the caller computes it in double lanes (general.h). That depends on the row alone.
#pragma once

#include <cstdint>

#include "kernels/general.h"
#include "kernels/row.h"
#include "numbers/coefficients.h"
#include "numbers/format.h"

namespace xent::internal {

// Of rows; positions may have any number. Past the first a plain row, whose exponentials the block cannot keep, is
// faster along its columns; past the second one with options that the index path knows; past the third any
// (docs/tuning.md).
inline constexpr int64_t kMaxAcrossCols = 64;
inline constexpr int64_t kMaxAcrossIndexCols = 128;
inline constexpr int64_t kMaxAcrossGeneralCols = 256;

// A matrix of tile rows: element (i, j) lies at data + i row + j col. Where lanes run over positions, row is 1.
struct TileMatrix {
  void *data = nullptr;  // null: absent
  int64_t row = 0, col = 1;
};

// z' = scale times what a kernel reads, and what follows from that.
struct TileScale {
  double log2e;  // scale log2 e, and in two parts
  float log2e_hi, log2e_lo;
  float ln2;    // over scale
  float limit;  // of the values that a kernel takes: 2^20 over scale

  explicit TileScale(double scale)
      : log2e(kLog2E_F64_Hi * scale),
        log2e_hi(static_cast<float>(log2e)),
        log2e_lo(static_cast<float>((log2e - static_cast<double>(log2e_hi)) + kLog2E_F64_Lo * scale)),
        ln2(static_cast<float>(1.0 / log2e)),
        limit(static_cast<float>(Format<float>::kLimit / scale)) {}
};

enum class TileOutput : uint8_t { kNone, kGradient, kSoftmax, kLogSoftmax };

struct TileShape {
  int64_t cols = 0;
  int64_t count = 0;       // rows, at most kTile
  uint32_t live = 0;       // bit i: row i counts; of the other rows no logit counts, and their gradients are 0
  bool positions = false;  // lanes run over positions
  bool stream = false;     // the output past the caches; it is aligned for that
};

struct AcrossTask : TileShape {
  uint32_t ready = 0;  // bit i: `rows` holds row i's sums already (backward)
  bool sums = true;    // compute the sums; without, of rows that are ready (short plain ones are summed all the same)
  TileMatrix logits;
  Transform transform;
  TileScale scale{1.0};  // of the transform's factor

  // Labels. With index targets y_c is w_c share, but at the target target_label; else w_c (probs_factor q_c + share).
  bool has_targets = false;
  bool weighted = false;  // share or q is not 0 everywhere
  int32_t targets[kTile];
  double target_label[kTile];  // y_t, class weight included
  const float *class_weights = nullptr;
  Wide class_weight_sum;  // or the number of columns
  TileMatrix probs;
  Dtype probs_dtype = kF32;
  double probs_factor = 0.0, share = 0.0;

  double z_loss = 0.0;
  const double *row_weights = nullptr;  // kTile; null: 1
  bool lse = false, argmax = false;
  bool nll = false;      // and the log-probability, which is its negative
  bool state = false;    // what a later call needs: value, others, weight and log_total
  bool entropy = false;  // with `state` alone, as is `state` with labels

  // The output.
  TileOutput output = TileOutput::kNone;
  TileMatrix out;             // of the logits' dtype, which it may be; null: not wanted
  TileMatrix label_gradient;  // of probs_dtype
  double g[kTile];            // upstream gradient times row weight over the denominator
  double label_factor = 0.0;  // 1 - epsilon

  bool HasLabels() const { return has_targets || weighted; }
  bool NeedsState() const { return state || output != TileOutput::kNone; }
  bool NeedsLog() const { return HasLabels() || lse || output == TileOutput::kLogSoftmax; }
};

// Kept of each row; the first four where the task asks for its state. `done` has the rows whose sums are here,
// `written` those whose output is complete.
struct AcrossRows {
  uint32_t done, written;
  bool adds_exactly;  // the losses are such that their sum, whatever its order, is exact (Groups::AddExactly)
  double loss_sum;
  alignas(64) double value[kTile], others[kTile], weight[kTile], log_total[kTile];  // m', others, W, L
  alignas(64) double nll[kTile];                                                    // lse - z'_t
  alignas(64) float loss[kTile], lse[kTile], log_probability[kTile], entropy[kTile];
  alignas(64) int32_t argmax[kTile];
};

// out = y (g - sum g y), or, of log-softmax, g - e^y sum g. `out` may be either.
struct AcrossBackwardTask : TileShape {
  TileMatrix g, y, out;
  bool log = false;
};

// Null for float64.
struct AcrossKernels {
  void (*run[kDtypes])(const AcrossTask &, AcrossRows *);
  void (*backward[kDtypes])(const AcrossBackwardTask &);
};
const AcrossKernels *AcrossKernelsOf(int64_t target);

}  // namespace xent::internal
