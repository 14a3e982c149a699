// Divergences between the softmaxes of two rows of logits, student and teacher, in double lanes (float64: with the
// rounding errors carried along).
//
// With b = (m_s - s_j)/T and a = (m_u - u_j)/T, the distances below the rows' maxima, and L = log1p(sum over the other
// columns of e^-b or e^-a):
//   log q_j = -(b + L_s),  log p_j = -(a + L_u),  log q_j - log p_j = (a - b) + (L_u - L_s).
// a - b is formed from the exact differences of logits, so that rows that agree give exactly 0. Maxima are looked for
// first (kernels/general.h); every sum counts from the row's own, so that chunks are simply added.
#pragma once

#include <cstdint>

#include "kernels/across.h"
#include "kernels/row.h"

namespace xent::internal {

enum class DivergenceKind : int32_t { kForwardKl, kReverseKl, kJensenShannon, kCrossEntropy };

// In arrays of two.
enum Side : int { kStudent = 0, kTeacher = 1 };

struct DivergenceRow {
  double max[2] = {};      // the largest logit as stored
  double argmax[2] = {};   // its column, kept out of the sums of exponentials
  double log_ratio = 0.0;  // L_u - L_s; Jensen-Shannon alone needs it
  // The gradient is v scale[0] scale[1], v being
  //   forward KL, cross-entropy  factor[kStudent] e^-b - factor[kTeacher] e^-a
  //   reverse KL                 factor[kStudent] e^-b ((a - b) - mean)
  //   Jensen-Shannon             factor[kStudent] e^-b (log(q/m) - mean).
  // The scales are powers of two, or infinite: then what is not 0 becomes so.
  // float32 takes the high parts.
  Wide factor[2];
  Wide mean;
  double scale[2] = {};
};

// The exponentials of double lanes are multiplied by 2^kDivergenceBias, lest they leave the normal range before what
// becomes of them does; those of gradients by what their scales leave room for.
inline constexpr int64_t kDivergenceBias = 64;
// b - a is multiplied by 2^-kDivergenceGap there, but for Jensen-Shannon: its products with biased exponentials are
// 2^-kDivergenceBias of themselves, so that sums of the largest differences do not overflow.
inline constexpr int64_t kDivergenceGap = 2 * kDivergenceBias;
// Binades that the exponentials of a gradient take from its scales at most.
inline constexpr int64_t kDivergenceReach = 510;

struct DivergenceSums {
  Wide sides[2];  // sum of e^-b, of e^-a, without the maximum's column; of a second look, in all
                  // columns, of e^-b log(q/m), of e^-a log(p/m); from double lanes biased
  Wide cross;     // sum of e^-a (b - a), of e^-a b, or of e^-b (a - b); from double lanes 2^-kDivergenceBias of it
};

// Logits are multiplied by it where double lanes load them, exactly: differences of the largest ones stay finite.
inline constexpr double kDivergenceShrink = 0.25;

// Lanes run over columns, or, where `count` > 0, over so many <= kLanes adjacent positions.
struct DivergenceTask {
  const void *logits[2];  // of the first column
  Dtype dtypes[2];
  int64_t stride;  // between columns; 1 where lanes run over these
  int64_t cols;
  int64_t first;  // the first column within its row
  int64_t count;
  const DivergenceRow *rows;  // one, or `count`,
  int64_t row_bytes;          // so many bytes apart
  DivergenceKind kind;
  double beta;
  Wide factor;     // 1/T over kDivergenceShrink
  void *gradient;  // of the student's dtype; may be the student's logits
  // Of float lanes.
  bool stream;       // past the caches where that can be: the caller fences
  int64_t ahead[2];  // bytes from here to what is asked for meanwhile; 0: nothing
  bool keeps_logs;   // Jensen-Shannon's log(q/m) waits for the gradient where that will be

  double Scale() const { return factor.hi * kDivergenceShrink; }
};

// Rows side by side in float32 lanes, finished there.
struct DivergenceTile : TileShape {
  TileMatrix logits[2], gradient;  // gradient: null, or of the student's dtype; it may be the student's logits
  Dtype dtypes[2];
  DivergenceKind kind;
  double beta, scale;  // scale: 1/T
  double weights[kTile];
  double g[kTile];  // upstream gradient times weight over denominator and T, of Jensen-Shannon times 1 - beta

  double Scale() const { return scale; }
};

struct DivergenceTileRows {
  uint32_t done, written;  // the rows whose losses are here, and those whose gradients are written
  alignas(64) float loss[kTile];
};

// What the exponentials beside the maximum of one side at least add up to, relative to it, in float lanes: below it
// those that count as 0 might be missed.
inline constexpr double kLeastOthers = 0x1p-100;

// By arithmetic type: float32, float64. One result, or `count`, so many bytes apart.
struct DivergenceKernels {
  void (*sums[2][2])(const DivergenceTask &, DivergenceSums *, int64_t bytes);  // first, second look
  void (*gradient[2])(const DivergenceTask &);

  // In float32 lanes; null without fused multiply-add.
  // The largest logit, and the first column of the block, of kBlock, that holds it; NaN is passed over.
  void (*largest)(Dtype dtype, const void *logits, int64_t cols, double *max, int64_t *block);
  void (*float_sums[2])(const DivergenceTask &, DivergenceSums *);  // of exponentials with those at the maximum
  bool (*float_gradient)(const DivergenceTask &);                   // false: it needs the double lanes
  void (*tile)(const DivergenceTile &, DivergenceTileRows *);
};

const DivergenceKernels *DivergenceKernelsOf(int64_t target);

}  // namespace xent::internal
