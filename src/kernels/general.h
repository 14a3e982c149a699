// Rows with any options, in double lanes (float64: with the rounding errors carried along): class weights under
// smoothing, probability targets, softcap, logit_scale, statistics, and classes that are not adjacent.
//
// Everything counts from the chunk's own maximum, whose column is kept apart, so that every sum has terms of one sign:
//   loss = sum_c y_c ((m' - z'_c) + L),   L = lse - m' = log1p(sum over the other columns of e^(z'_j - m')).
// A first look finds the maximum among the logits as stored, the second sums; both find the chunk in cache.
#pragma once

#include <cstdint>

#include "kernels/row.h"
#include "numbers/number.h"

namespace xent::internal {

// z' = factor * value: without a cap a logit's value is the logit and the factor is logit_scale; with one the value is
// z' itself, rounded, and the factor 1.
struct Transform {
  double scale = 1.0;
  double cap = 0.0;
  bool wide = false;         // of float64 logits
  bool float_lanes = false;  // float32 lanes take the row, and define the values of its logits

  double Factor() const { return cap > 0.0 ? 1.0 : scale; }
  // scale as gradients take it: dz holds its mantissa alone, the exponent goes with that of the upstream gradient.
  internal::Factor Slope() const { return Decompose(scale); }
};

// Magnitudes between which float32 holds factors and their products with room to spare.
inline bool IsModerate(double x) { return Magnitude(x) >= 0x1p-40 && Magnitude(x) <= 0x1p40; }

// Whether rows of float32 or half precision are computed in float32 lanes.
inline bool TakesFloatLanes(const Transform &transform) {
  const bool capped = transform.cap > 0.0;
  return !transform.wide && IsModerate(transform.scale) &&
         (!capped || (IsModerate(transform.cap) && IsModerate(transform.scale / transform.cap)));
}

// y_c = class_weights[c] (probs_factor probs[c] + share), or target_value at the target. float64 takes the low parts
// too: where labels of both signs cancel, their sum has to be more exact than each of them.
struct Labels {
  const void *class_weights = nullptr;  // of the arithmetic type; null: 1
  const void *probs = nullptr;          // null: 0
  int64_t probs_stride = 1;             // between columns, as GeneralTask::stride
  Dtype probs_dtype = kF32;
  Wide probs_factor;
  Wide share;
  bool moderate = true;  // class weights are 0 or between 2^-20 and 2^20: products with them keep to float32's range
};

// Exponentials relative to a row's maximum, and what is summed of them, are multiplied by 2^kOthersBias, so that those
// far below the normal range count where a factor brings them back: down to 2^-(1022 + kOthersBias). Factors of the
// gradient move as many binades at most.
inline constexpr int64_t kOthersBias = 510;

// Sums over a chunk (or a whole row), relative to its maximum.
struct GeneralSums {
  double max = 0.0;                  // the largest logit as stored
  double value = 0.0;                // and its value (Transform)
  int64_t argmax = -1;               // its lowest column; -1 where all are masked
  Wide others;                       // sum over j != argmax of e^(z'_j - m'), biased
  Wide entropy;                      // sum of e^(z'_j - m') (m' - z'_j), biased
  Wide weight;                       // sum of y_c
  Wide weighted;                     // sum of y_c (m' - z'_c) kSpreadScale
  Special special = Special::kNone;  // kNan or kInfinity: the rest is unspecified
};

// What turns a row into gradients: (e^(z'_j - m') p_factor - y_j y_factor) 2^lift, with a cap times dz over the power
// of two in logit_scale; without one the factors hold all of dz. float32 takes the high parts.
struct GeneralGradient {
  double value = 0.0;         // m' (Transform)
  Wide p_factor;              // u r (Q + 2 lambda lse) / (1 + others)
  Wide y_factor;              // u r
  double mass = 0.0;          // the larger of u r Q and u r (Q + 2 lambda lse): what labels and p give at most
  double log_total = 0.0;     // L
  double label_factor = 0.0;  // u r (1 - epsilon), of the targets' own gradient
  int64_t lift = 0;           // 0 unless factors would leave the range; past it where u is infinite
};

// Lanes run over the columns of one row, or, where `count` > 0, over so many <= kTile adjacent positions, each a row.
// What is said to be one a row is one, or `count`.
struct GeneralTask {
  const void *logits = nullptr;  // of the first column
  int64_t cols = 0;
  int64_t first = 0;  // the first column within its row
  int64_t count = 0;
  int64_t stride = 1;  // between columns; 1 where lanes run over these
  Transform transform;
  Labels labels;                        // pointers at the first column
  const int64_t *targets = nullptr;     // one a row: a column within the row, or none; null: none
  const Wide *target_values = nullptr;  // one a row: y_t
  bool sums = true;                     // others, entropy and what they need; without: only the maximum
  bool entropy = false;
  bool weighted = false;  // y_c is read from labels everywhere; otherwise it is 0 but at the target
  // Of the gradients.
  const GeneralGradient *rows = nullptr;  // one a row,
  int64_t row_bytes = 0;                  // so many bytes apart
  void *gradient = nullptr;               // in the layout of the logits, which it may be; null: not wanted
  void *label_gradient = nullptr;         // likewise, of the dtype of probs
  bool stream = false;                    // past the caches where that can be: the caller fences
};

struct RankedLogit {
  double logit;
  int64_t column;
};

struct GeneralKernels {
  void (*sums[kDtypes])(const GeneralTask &, GeneralSums *);  // one a row
  void (*gradient[kDtypes])(const GeneralTask &);
  // values = Transform's values of `count` logits, in place.
  void (*values)(const Transform &, double *values, int64_t count);
  // Columns of the block greater than `logit`, and those equal to it before column `before`.
  int64_t (*rank[kDtypes])(const void *logits, int64_t cols, double logit, int64_t before);
  // Merges a block that starts at column `first` into the *count <= k largest logits so far, best first, the lower
  // column first among equals. Blocks come in the order of their columns.
  void (*top_k[kDtypes])(const void *logits, int64_t cols, int64_t first, int64_t k, RankedLogit *best, int64_t *count);
};

const GeneralKernels *GeneralKernelsOf(int64_t target);

}  // namespace xent::internal
