// What the row kernels of every SIMD target have in common: constants that define the bits, the work they are given
// and what they return. No SIMD type appears here.
//
// A row is cut into chunks (ChunkCols), a chunk into blocks of kBlock logits, a block into steps of kStep: 8 logits for
// each of kLanes lanes, lane by lane the same operations on every target. See docs/numerics.md.
#pragma once

#include <cstdint>

#include "numbers/coefficients.h"
#include "numbers/elements.h"
#include "numbers/format.h"
#include "numbers/wide.h"

namespace xent::internal {

inline constexpr int64_t kLanes = 16;
inline constexpr int64_t kStep = 8 * kLanes;
inline constexpr int64_t kBlock = 1024;
inline constexpr int kMaxChunks = 16;
inline constexpr int64_t kTile = 16;  // positions at once, where lanes run over these

inline constexpr int64_t ChunkCols(int64_t cols) {
  if (cols <= 0) return 0;
  const int64_t sixteenth = cols / kMaxChunks + (cols % kMaxChunks != 0);
  return ((sixteenth - 1) / kBlock + 1) * kBlock;
}

enum class Reference : int32_t {
  kExponent,  // values count e^z 2^(kBias - reference), reference an integer
  kLogit,     // values count e^(z - reference) 2^kBias, reference the chunk's maximum
};
enum class Special : int32_t { kNone, kInfinity, kNan };

// Sum of a chunk's exponentials without the target's column.
struct alignas(64) ChunkSum {
  double reference;
  Wide sum;
  Wide spread;  // sum over the same columns of (pivot - z) kSpreadScale
  double pivot;
  Reference kind;
  Special special;  // kNan or kInfinity: the rest is unspecified
};
static_assert(sizeof(ChunkSum) == 64);

// round(z log2 e): the reference exponent that a logit of at most kLimit gives.
inline double RoundedLog2(double z) { return (z * kLog2E_F64_Hi + 0x1.8p52) - 0x1.8p52; }

// x -> (x scale - shift) 2^lift, where magnitudes <= threshold before the lift become 0.
struct AffineMap {
  double scale, shift, threshold;
  int lift;
};

// Stored exponentials -> gradient or softmax; no columns: nothing to do.
struct ScaleTask {
  const void *exponentials;
  void *out;  // may be the exponentials, else apart from them
  int64_t cols;
  AffineMap map;
  int prescale;  // multiply the exponentials by 2^prescale first; magnitude at most twice the largest exponent
  bool stream;   // past the caches: the caller fences
};

struct ExpSumTask {
  const void *logits = nullptr;   // the chunk's first
  int64_t cols = 0;               // of the chunk
  int64_t target = -1;            // relative to the chunk; outside [0, cols): not here
  double first_reference = kNan;  // an integer, or NaN: take it from the chunk
  void *exponentials = nullptr;   // where to keep e^z, in the arithmetic type; may be logits; null: nowhere
  bool spread = false;
  // Another row's chunk, of as many columns, to be scaled meanwhile, each part of it before this one's exponentials are
  // stored there; or null.
  const ScaleTask *meanwhile = nullptr;
};

// logits -> gradient, the exponentials computed again with the given reference.
struct GradientTask {
  const void *logits = nullptr;
  void *gradient = nullptr;  // may be logits
  int64_t cols = 0;
  Reference kind = Reference::kExponent;
  double reference = 0.0;  // integer that exponents count from, for either kind
  double origin = 0.0;     // kLogit: the chunk's maximum
  AffineMap map{};
  bool stream = false;  // past the caches where it can be: the caller fences
};

// The i-th of the objects that lie `bytes` apart: members of what a job keeps of each row.
template <class T>
T *EveryBytes(T *first, int64_t bytes, int64_t i) {
  return reinterpret_cast<T *>(reinterpret_cast<uintptr_t>(first) + static_cast<uintptr_t>(i * bytes));
}

struct Extreme {
  double max;
  bool nan;
};

// Row functions that map y and an upstream gradient back.
struct BackwardTask {
  const void *upstream, *output;
  void *gradient;  // may be either
  int64_t cols;
  double sum;           // of what the dot kernel gave
  bool stream = false;  // past the caches where that can be: the caller fences
};

struct LogSoftmaxTask {
  const void *logits;
  void *out;  // may be the logits
  int64_t cols;
  double max, delta;    // log1p of the others' sum relative to the maximum
  bool stream = false;  // as of BackwardTask
};

struct TargetScan {
  int64_t ignored;
  bool good;  // none is out of range
};

struct RowKernels {
  void (*exp_sum[kDtypes])(const ExpSumTask &, ChunkSum *);
  // Maximum of columns other than `target`, and whether one of them is NaN.
  Extreme (*maximum[kDtypes])(const void *logits, int64_t cols, int64_t target);
  void (*scale[kDtypes])(const ScaleTask &);
  void (*gradient[kDtypes])(const GradientTask &);
  void (*log_softmax[kDtypes])(const LogSoftmaxTask &);              // out = -((max - z) + delta)
  Wide (*dot[kDtypes])(const void *a, const void *b, int64_t cols);  // b null: sum of a
  void (*backward[2][kDtypes])(const BackwardTask &);                // through softmax, log-softmax
  // By the type of targets.
  TargetScan (*scan_targets[2])(const void *targets, int64_t count, int64_t ignore_index, int64_t cols);
  // Stores the first `count` <= kTile targets, 0 for those that are ignored. Returns the others: bit i for target i.
  uint32_t (*read_targets[2])(const void *targets, int64_t count, int64_t ignore_index, int32_t *out);
};

const RowKernels *RowKernelsOf(int64_t target);

}  // namespace xent::internal
