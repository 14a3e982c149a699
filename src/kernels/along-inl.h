// Rows with options in float32 lanes over their columns: what general-inl.h computes in double lanes, for float32 and
// half precision, within the same bounds in a fifth of the time. A chunk that float32 is not exact enough for goes to
// the double lanes; its own logits and labels decide, or for gradients the row's factors.
//
// Sums: a look finds the chunk's largest logit m and its column a. Then one loop over steps of 128 columns adds, as far
// as a call needs them,
//   S = sum over j != a of e^(s z_j) 2^(bias - r),   r = round(s m log2 e),   s = logit_scale,
//   sum e_j (m - z_j),   sum w_j q_j,   sum w_j q_j (m - z_j),   sum w_j,   sum w_j (m - z_j),
// each in trees of 8 (weights of labels: of 4), whose results go to double lanes once a block. Labels y = w (f q +
// share) are linear in these sums, which are combined in double. An exponential is within 1.0115 ULP, a tree of 8 adds
// at most 1.5; a difference 0.5, its product with a label 0.5 or 1; all terms have one sign.
//
// Gradient: the exponentials again, e A - y u with A = p_factor e^-m', rounded once. Subnormal numbers are kept, so
// that the terms may go below the normal range before their difference is looked at. The target's own column is left to
// the double lanes.
//
// A cap is a stage of its own, a block of values z' (and sech^2) in L1, on which the same loops run.
//
// Needs fused multiply-add: it alone reduces s z exactly.
#if defined(XENT_SRC_KERNELS_ALONG_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_ALONG_INL_H_
#undef XENT_SRC_KERNELS_ALONG_INL_H_
#else
#define XENT_SRC_KERNELS_ALONG_INL_H_
#endif

#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>

#include "hwy/highway.h"
#include "kernels/double_lanes-inl.h"
#include "kernels/general.h"
#include "kernels/lanes-inl.h"
#include "kernels/step-inl.h"
#include "numbers/exp-inl.h"
#include "numbers/softcap-inl.h"

#if HWY_NATIVE_FMA

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

using FloatTag = Tag<float>;
using Floats = hn::Vec<FloatTag>;

// Columns whose trees wait for the double lanes, and that are widened or capped at once: 1 KB of floats, as much as the
// stack has room for.
inline constexpr int64_t kAlongBlock = 256;
inline constexpr int64_t kAlongTrees = kAlongBlock / kStep * kLanes;

// What a loop sums or subtracts beside the exponentials. Entropy goes alone: what labels give must not depend on it.
enum AlongTerm : int {
  kEntropyTerm = 1,  // e (m - z)
  kProbsTerm = 2,    // labels have probs; class weights multiply these
  kWeightsTerm = 4,  // labels have class weights
  kShareTerm = 8,    // every label has a share, which class weights multiply
  kMaskedTerm = 16,  // a label of 0 over a logit of -inf counts as 0
};

// ---- the largest logit ----

struct Look {
  float max = -std::numeric_limits<float>::infinity();
  int64_t block = 0;  // the first column of the block that holds it first
};

// Returns the largest logit; NaN is passed over.
template <class In>
HWY_NOINLINE Look FindLargest(const In *logits, int64_t cols) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  // On x86 max returns its second operand where one is NaN.
  const auto larger = [](Floats v, Floats m) HWY_ATTR {
#if HWY_ARCH_X86
    return hn::Max(v, m);
#else
    return hn::IfThenElse(hn::Gt(v, m), v, m);
#endif
  };
  Look look;
  for (int64_t first = 0; first < cols; first += kBlock) {
    const int64_t count = HWY_MIN(kBlock, cols - first);
    const In *const block = logits + first;
    Floats m0 = hn::Set(d, look.max), m1 = m0, m2 = m0, m3 = m0;
    int64_t i = 0;
    for (; i + 4 * lanes <= count; i += 4 * lanes) {
      Floats v0, v1, v2, v3;
      LoadFour(d, block + i, lanes, v0, v1, v2, v3);
      m0 = larger(v0, m0);
      m1 = larger(v1, m1);
      m2 = larger(v2, m2);
      m3 = larger(v3, m3);
    }
    for (; i + lanes <= count; i += lanes) m0 = larger(LoadAs(d, block + i), m0);
    float max = hn::ReduceMax(d, larger(larger(m0, m1), larger(m2, m3)));
    for (; i < count; ++i) max = Widen(block[i]) > max ? Widen(block[i]) : max;
    if (max > look.max) look = {max, first};
  }
  return look;
}

// ---- columns as floats ----

// Returns `count` columns of any type but float64 from `first` on as floats: where they lie, or a copy in `buffer`.
HWY_INLINE const float *FloatColumns(Dtype dtype, const void *columns, int64_t first, int64_t count, float *buffer) {
  if (dtype == kF32) return static_cast<const float *>(columns) + first;
  const FloatTag d;
  const auto widen = [&](const auto *from) XENT_INLINE_LAMBDA {
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) hn::Store(LoadAs(d, from + i), d, buffer + i);
    for (; i < count; ++i) buffer[i] = Widen(from[i]);
  };
  dtype == kBf16 ? widen(static_cast<const Bf16 *>(columns) + first) : widen(static_cast<const F16 *>(columns) + first);
  return buffer;
}

// Asks for a step of the chunk after this one: the look that comes before the sums is too short to wait for memory.
inline constexpr int64_t kAlongAheadBytes = 8 * 1024;
HWY_INLINE void PrefetchAhead(Dtype dtype, const void *columns, int64_t col) {
  const int64_t size = dtype == kF32 ? 4 : 2;
  const uintptr_t address = reinterpret_cast<uintptr_t>(columns) + static_cast<uintptr_t>(col * size);
  for (int64_t byte = 0; byte < kStep * size; byte += 64) {
    __builtin_prefetch(reinterpret_cast<const void *>(address + kFarBytes + byte), 0, 2);
    __builtin_prefetch(reinterpret_cast<const void *>(address + kAlongAheadBytes + byte), 0, 3);
  }
}

// The columns of a step: in memory, or copies where the step is not whole or holds a column that is left out.
struct StepColumns {
  const float *exponents;  // logits, -inf in the column of the maximum
  const float *logits;
  const float *probs, *weights;
};

struct StepCopies {
  HWY_ALIGN float exponents[kStep], probs[kStep], weights[kStep];
};

// Returns a step's first `count` columns with `pad` past the end and at `col`, in `copy`, which may hold them already.
HWY_INLINE const float *PaddedStep(const float *columns, int64_t count, int64_t col, float pad, float *copy) {
  if (columns != copy) {
    CopyStep(columns, count, col, pad, copy);
    return copy;
  }
  for (int64_t i = count; i < kStep; ++i) copy[i] = pad;
  if (col >= 0 && col < kStep) copy[col] = pad;
  return copy;
}

// ---- one step of the sums ----

// A sum, and the results of its trees in a block, kLanes a step and tree, until the double lanes take them. Steps have
// one tree of 8, or two of 4; none: the sum is not wanted.
template <int kTrees>
struct TreeSum {
  HWY_ALIGN float trees[kTrees][kAlongTrees];
  LaneSums<float> sum;

  HWY_INLINE void Add(int64_t steps) { AddTrees<kTrees>(trees[0], kAlongTrees, steps, sum); }
  double Total() const { return sum.Total().hi; }
};
template <>
struct TreeSum<0> {
  HWY_INLINE void Add(int64_t /*steps*/) {}
  double Total() const { return 0.0; }
};

// Sums of a chunk.
template <int kTerms>
struct AlongSums {
  static constexpr bool kProbs = (kTerms & kProbsTerm) != 0, kWeights = (kTerms & kWeightsTerm) != 0,
                        kShare = (kTerms & kShareTerm) != 0, kEntropy = (kTerms & kEntropyTerm) != 0,
                        kMasked = (kTerms & kMaskedTerm) != 0;

  TreeSum<1> others;
  TreeSum<kEntropy ? 1 : 0> entropy;            // e (m - z)
  TreeSum<kProbs ? 2 : 0> probs;                // w q
  TreeSum<kProbs ? 1 : 0> probs_below;          // w q (m - z)
  TreeSum<kShare && kWeights ? 2 : 0> weights;  // w
  TreeSum<kShare ? 1 : 0> share_below;          // w (m - z)
  bool negative = false;                        // some label or weight is, or is -0
};

HWY_INLINE Floats SumFour(Floats v0, Floats v1, Floats v2, Floats v3) {
  return hn::Add(hn::Add(v0, v1), hn::Add(v2, v3));
}
HWY_INLINE Floats DotFour(Floats a0, Floats a1, Floats a2, Floats a3, Floats b0, Floats b1, Floats b2, Floats b3) {
  return hn::Add(hn::MulAdd(a1, b1, hn::Mul(a0, b0)), hn::MulAdd(a3, b3, hn::Mul(a2, b2)));
}

// Stores the tree of the lower half of a step, adds that of the upper half.
HWY_INLINE void PutTree(bool upper, Floats v, float *place) {
  const FloatTag d;
  if (upper) v = hn::Add(hn::Load(d, place), v);
  hn::Store(v, d, place);
}

// Sums half of a step: four vectors that begin at `at`, and lie kLanes apart.
template <int kTerms, bool kUpper>
HWY_INLINE void SumHalfStep(const ScaledRange &range, const StepColumns &step, float max, float lowest, int64_t at,
                            int64_t place, AlongSums<kTerms> &sums, Floats &signs) {
  using S = AlongSums<kTerms>;
  const FloatTag d;
  Floats e0, e1, e2, e3;
  LoadFour(d, step.exponents + at, kLanes, e0, e1, e2, e3);
  ExpFour(d, range, e0, e1, e2, e3);
  PutTree(kUpper, SumFour(e0, e1, e2, e3), sums.others.trees[0] + place);
  if constexpr (S::kEntropy || S::kProbs || S::kShare) {
    const Floats m = hn::Set(d, max);
    Floats x0, x1, x2, x3;
    LoadFour(d, step.logits + at, kLanes, x0, x1, x2, x3);
    if constexpr (S::kEntropy) {  // exponentials of what lies below are 0, and -inf would make that NaN
      const Floats low = hn::Set(d, lowest);
      x0 = hn::Max(x0, low);
      x1 = hn::Max(x1, low);
      x2 = hn::Max(x2, low);
      x3 = hn::Max(x3, low);
    }
    x0 = hn::Sub(m, x0);
    x1 = hn::Sub(m, x1);
    x2 = hn::Sub(m, x2);
    x3 = hn::Sub(m, x3);
    if constexpr (S::kEntropy) {
      PutTree(kUpper, DotFour(e0, e1, e2, e3, x0, x1, x2, x3), sums.entropy.trees[0] + place);
    }
    if constexpr (S::kShare && !S::kWeights)
      PutTree(kUpper, SumFour(x0, x1, x2, x3), sums.share_below.trees[0] + place);
    [[maybe_unused]] const auto dot = [&](Floats y0, Floats y1, Floats y2, Floats y3) HWY_ATTR {
      if constexpr (!S::kMasked) return DotFour(y0, y1, y2, y3, x0, x1, x2, x3);
      const Floats zero = hn::Zero(d);
      return DotFour(y0, y1, y2, y3, hn::IfThenElseZero(hn::Ne(y0, zero), x0), hn::IfThenElseZero(hn::Ne(y1, zero), x1),
                     hn::IfThenElseZero(hn::Ne(y2, zero), x2), hn::IfThenElseZero(hn::Ne(y3, zero), x3));
    };
    Floats w0, w1, w2, w3;
    if constexpr (S::kWeights) {
      LoadFour(d, step.weights + at, kLanes, w0, w1, w2, w3);
      if constexpr (S::kShare) {
        PutTree(false, SumFour(w0, w1, w2, w3), sums.weights.trees[kUpper] + place);
        PutTree(kUpper, dot(w0, w1, w2, w3), sums.share_below.trees[0] + place);
      }
    }
    if constexpr (S::kProbs) {
      Floats y0, y1, y2, y3;
      LoadFour(d, step.probs + at, kLanes, y0, y1, y2, y3);
      if constexpr (S::kWeights) {
        y0 = hn::Mul(y0, w0);
        y1 = hn::Mul(y1, w1);
        y2 = hn::Mul(y2, w2);
        y3 = hn::Mul(y3, w3);
      }
      PutTree(false, SumFour(y0, y1, y2, y3), sums.probs.trees[kUpper] + place);
      PutTree(kUpper, dot(y0, y1, y2, y3), sums.probs_below.trees[0] + place);
      signs = hn::Or(signs, hn::Or(hn::Or(y0, y1), hn::Or(y2, y3)));
    } else if constexpr (S::kWeights) {
      signs = hn::Or(signs, hn::Or(hn::Or(w0, w1), hn::Or(w2, w3)));
    }
  }
}

// Returns the value of a logit of a row in float lanes.
inline HWY_NOINLINE double ValueInFloatLanes(const Transform &transform, double logit) {
  if (!(transform.cap > 0.0)) return logit;
  const FloatTag d;
  const FloatSoftCap cap(transform.scale, transform.cap);
  return static_cast<double>(hn::GetLane(cap.Value(d, hn::Set(d, static_cast<float>(logit)))));
}

// What the loops over a chunk share.
struct AlongChunk {
  const GeneralTask &task;
  Dtype dtype;     // of the logits
  float max;       // value of the chunk's largest logit, which all values are relative to
  int64_t argmax;  // its column in the chunk
  int64_t target;  // likewise; outside of the chunk: not here, or its label is that of the other columns
  ScaledRange range;
  float lowest;             // exponentials of smaller logits are 0
  const FloatSoftCap *cap;  // null: none
};

// Copies the columns of a step that is not whole, or that holds the maximum or a target. `logits` is the place of the
// logits' copy, or where they are already.
template <int kTerms>
HWY_NOINLINE void CopyColumns(const AlongChunk &chunk, int64_t col, int64_t count, float *logits, StepColumns *step,
                              StepCopies *copies) {
  using S = AlongSums<kTerms>;
  const float lowest = -std::numeric_limits<float>::infinity();
  step->exponents = PaddedStep(step->exponents, count, chunk.argmax - col, lowest, copies->exponents);
  if constexpr (S::kEntropy || S::kProbs || S::kShare) {
    // Without weights the target's difference is left out, with weights its weight.
    const int64_t target = S::kShare && !S::kWeights && !S::kProbs ? chunk.target - col : -1;
    step->logits = PaddedStep(step->logits, count, target, chunk.max, logits);
  }
  if constexpr (S::kProbs) step->probs = PaddedStep(step->probs, count, -1, 0.0f, copies->probs);
  if constexpr (S::kWeights)
    step->weights = PaddedStep(step->weights, count, chunk.target - col, 0.0f, copies->weights);
}

template <int kTerms>
HWY_NOINLINE void SumAlongAs(const AlongChunk &chunk, AlongSums<kTerms> &sums) {
  using S = AlongSums<kTerms>;
  const GeneralTask &task = chunk.task;
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const ScaledRange range = chunk.range;  // a copy: stores to floats cannot change it
  const float max = chunk.max, lowest = chunk.lowest;
  HWY_ALIGN float logits_buffer[kAlongBlock];
  StepCopies copies;
  Floats signs = hn::Zero(d);
  for (int64_t first = 0; first < task.cols; first += kAlongBlock) {
    const int64_t cols = HWY_MIN(kAlongBlock, task.cols - first);
    const float *logits = FloatColumns(chunk.dtype, task.logits, first, cols, logits_buffer);
    if (chunk.cap != nullptr) {
      chunk.cap->Transform<false>(logits, cols, logits_buffer, logits_buffer);
      logits = logits_buffer;
    }
    const float *weights = nullptr;
    if constexpr (S::kWeights) weights = static_cast<const float *>(task.labels.class_weights) + first;
    for (int64_t col = 0; col < cols; col += kStep) {
      const int64_t count = HWY_MIN(kStep, cols - col);
      PrefetchAhead(chunk.dtype, task.logits, first + col);
      StepColumns step{logits + col, logits + col, nullptr, weights + col};
      if constexpr (S::kProbs) {
        PrefetchAhead(task.labels.probs_dtype, task.labels.probs, first + col);
        step.probs = FloatColumns(task.labels.probs_dtype, task.labels.probs, first + col, count, copies.probs);
      }
      const auto holds = [&](int64_t place) {
        return static_cast<uint64_t>(place - first - col) < static_cast<uint64_t>(kStep);
      };
      if (HWY_UNLIKELY(count < kStep || holds(chunk.argmax) || holds(chunk.target))) {
        float *const logits_copy = logits == logits_buffer ? logits_buffer + col : logits_buffer;
        CopyColumns<kTerms>(chunk, first + col, count, logits_copy, &step, &copies);
      }
      for (int64_t part = 0; part < kLanes; part += lanes) {
        const int64_t place = col / kStep * kLanes + part;
        SumHalfStep<kTerms, false>(range, step, max, lowest, part, place, sums, signs);
        SumHalfStep<kTerms, true>(range, step, max, lowest, part + 4 * kLanes, place, sums, signs);
      }
    }
    const int64_t steps = (cols - 1) / kStep + 1;
    sums.others.Add(steps);
    sums.entropy.Add(steps);
    sums.probs.Add(steps);
    sums.probs_below.Add(steps);
    sums.weights.Add(steps);
    sums.share_below.Add(steps);
  }
  const hn::RebindToSigned<FloatTag> di;
  sums.negative = !hn::AllFalse(di, hn::Lt(hn::BitCast(di, signs), hn::Zero(di)));
}

// Writes weight and weighted. False: the labels need the double lanes.
template <int kTerms>
HWY_INLINE bool FinishLabels(const AlongChunk &chunk, const AlongSums<kTerms> &sums, GeneralSums *out) {
  using S = AlongSums<kTerms>;
  const GeneralTask &task = chunk.task;
  const Labels &labels = task.labels;
  const bool has_target = chunk.target >= 0 && chunk.target < task.cols;
  if (sums.negative) return false;
  double weight = 0.0, weighted = 0.0;
  if constexpr (S::kProbs) {
    weight = labels.probs_factor.hi * sums.probs.Total();
    weighted = labels.probs_factor.hi * sums.probs_below.Total();
  }
  if constexpr (S::kShare) {
    const double columns = static_cast<double>(task.cols - has_target);
    weight += labels.share.hi * (S::kWeights ? sums.weights.Total() : columns);
    weighted += labels.share.hi * sums.share_below.Total();
  }
  if (has_target) {
    float copy;
    const float logit = *FloatColumns(chunk.dtype, task.logits, chunk.target, 1, &copy);
    const double value = ValueInFloatLanes(task.transform, static_cast<double>(logit));
    const double label = task.target_values[0].hi;
    if (label < 0.0) return false;
    weight += label;
    if (label != 0.0) weighted += label * (static_cast<double>(chunk.max) - value);
  }
  if (!IsFinite(weight) || !IsFinite(weighted)) return false;
  out->weight = {weight, 0.0};
  out->weighted = {weighted * task.transform.Factor(), 0.0};
  return true;
}

// e^z as the exponentials count it whose reference is RoundedLog2(z).
HWY_INLINE double ExponentialAt(double z) {
  const auto e = Exp(z - MultiplyLn2<double>(RoundedLog2(z)));
  return Scale(e.mantissa, e.exponent + ScaledRange::kBias);
}

// Sums with kTerms, and writes what they give.
template <int kTerms>
HWY_NOINLINE bool SumAlongWith(const AlongChunk &chunk, GeneralSums *out) {
  using S = AlongSums<kTerms>;
  AlongSums<kTerms> sums;
  SumAlongAs<kTerms>(chunk, sums);
  // The maximum's own exponential, relative to the reference that e^z counts from.
  const double scale = chunk.task.transform.Factor();
  const double total = ExponentialAt(static_cast<double>(chunk.max) * scale);
  const double others = sums.others.Total() / total;
  // So confident that exponentials below the range of float32 may count; or there are no others, or a NaN.
  if (!(others >= 0x1p-100)) return false;
  const double bias = PowerOfTwo(kOthersBias);
  out->others = {others * bias, 0.0};
  if constexpr (S::kEntropy) out->entropy = {sums.entropy.Total() / total * scale * bias, 0.0};
  if constexpr (S::kProbs || S::kShare) return FinishLabels<kTerms>(chunk, sums, out);
  return true;
}

// The terms that a task's labels have.
inline int LabelTerms(const GeneralTask &task) {
  const Labels &labels = task.labels;
  if (!task.weighted) return 0;
  return (labels.probs != nullptr ? kProbsTerm : 0) | (labels.class_weights != nullptr ? kWeightsTerm : 0) |
         (labels.share.hi != 0.0 ? kShareTerm : 0);
}

// Whether a task is one for float lanes over columns, as far as its call says.
HWY_INLINE bool TakesAlong(const GeneralTask &task) {
  const bool wide = task.labels.probs != nullptr && task.labels.probs_dtype == kF64;
  return task.count == 0 && task.transform.float_lanes && !wide && (task.labels.moderate || !task.weighted);
}

// Sums a chunk. False: it needs the double lanes.
template <class In>
HWY_NOINLINE bool SumAlong(const GeneralTask &task, GeneralSums *out) {
  if (!TakesAlong(task) || !task.sums) return false;
  const In *const logits = static_cast<const In *>(task.logits);
  const Look look = FindLargest(logits, task.cols);
  const double max = static_cast<double>(look.max);
  if (!IsFinite(max)) return false;
  const double factor = task.transform.Factor(), value = ValueInFloatLanes(task.transform, max);
  if (!(Magnitude(value * factor) <= Format<float>::kLimit)) return false;
  const bool capped = task.transform.cap > 0.0;
  std::optional<FloatSoftCap> cap;  // its quotients are not worth their time where there is none
  if (capped) cap.emplace(task.transform.scale, task.transform.cap);
  const AlongChunk chunk{
      .task = task,
      .dtype = kDtypeOf<In>,
      .max = static_cast<float>(value),
      .argmax = look.block + FindFirst(logits + look.block, HWY_MIN(kBlock, task.cols - look.block), look.max),
      .target = task.weighted && task.targets != nullptr && task.targets[0] >= 0 ? task.targets[0] - task.first : -1,
      .range = ScaledRange(RoundedLog2(value * factor), factor),
      .lowest = static_cast<float>(value - 150.0 / factor),
      .cap = capped ? &*cap : nullptr};
  *out = {};
  out->max = max;
  out->value = value;
  out->argmax = task.first + chunk.argmax;
  if (task.entropy && !SumAlongWith<kEntropyTerm>(chunk, out)) return false;
  switch (LabelTerms(task)) {
    case 0:
      return task.entropy || SumAlongWith<0>(chunk, out);
    case kShareTerm:
      return SumAlongWith<kShareTerm>(chunk, out);
    case kShareTerm | kWeightsTerm:
      return SumAlongWith<(kShareTerm | kWeightsTerm)>(chunk, out);
    // Masks seldom stand under labels. Where they do, labels of 0 among them, the first sum is NaN.
    case kProbsTerm:
      return SumAlongWith<kProbsTerm>(chunk, out) || SumAlongWith<(kProbsTerm | kMaskedTerm)>(chunk, out);
    case kProbsTerm | kWeightsTerm:
      return SumAlongWith<(kProbsTerm | kWeightsTerm)>(chunk, out) ||
             SumAlongWith<(kProbsTerm | kWeightsTerm | kMaskedTerm)>(chunk, out);
    case kProbsTerm | kShareTerm:
      return SumAlongWith<(kProbsTerm | kShareTerm)>(chunk, out);
    case kProbsTerm | kWeightsTerm | kShareTerm:
      return SumAlongWith<(kProbsTerm | kWeightsTerm | kShareTerm)>(chunk, out);
    default:
      return false;
  }
}

// ---- the gradient ----

// Writes the first `count` of `values` (aligned, readable to whole vectors) to columns of any type but float64, past
// the caches where `stream` asks for it and that can be.
HWY_INLINE void NarrowColumns(Dtype dtype, const float *values, int64_t first, int64_t count, void *columns,
                              bool stream = false) {
  const FloatTag d;
  const auto narrow = [&](auto *to) XENT_INLINE_LAMBDA {
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) StoreAs(d, hn::Load(d, values + i), to + i);
    if (i < count) {
      HWY_ALIGN std::remove_reference_t<decltype(*to)> last[kLanes];
      StoreAs(d, hn::Load(d, values + i), last);
      std::memcpy(static_cast<void *>(to + i), last, static_cast<size_t>(count - i) * sizeof(*to));
    }
  };
  if (dtype == kF32) {
    float *const to = static_cast<float *>(columns) + first;
    if (!stream || count % kLanes != 0 || !CanStream(to)) return narrow(to);
    for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) {
      StoreOrStream<true>(d, hn::Load(d, values + i), to + i);
    }
  } else {
    dtype == kBf16 ? narrow(static_cast<Bf16 *>(columns) + first) : narrow(static_cast<F16 *>(columns) + first);
  }
}

// What a chunk's gradient is made with.
struct AlongGradient {
  const GeneralTask &task;
  Dtype dtype;  // of logits and gradient
  ScaledRange range;
  float exponential;          // A
  float probs_factor, share;  // of y, times u
  // Of the labels' own gradient, w (label_slope (max - z) + label_base).
  float max, label_slope, label_base;
  const FloatSoftCap *cap;  // null: none; scale is in the factors
};

// y u of four vectors.
template <int kTerms>
HWY_INLINE Floats LabelTerm(const AlongGradient &gradient, Floats q, Floats w) {
  constexpr bool kProbs = (kTerms & kProbsTerm) != 0, kWeights = (kTerms & kWeightsTerm) != 0,
                 kShare = (kTerms & kShareTerm) != 0;
  const FloatTag d;
  const Floats factor = hn::Set(d, gradient.probs_factor), share = hn::Set(d, gradient.share);
  if constexpr (kProbs) {
    if constexpr (kWeights) q = hn::Mul(q, w);
    if constexpr (!kShare) return hn::Mul(q, factor);
    if constexpr (kWeights) return hn::MulAdd(q, factor, hn::Mul(w, share));
    return hn::MulAdd(q, factor, share);
  } else if constexpr (kWeights) {
    return hn::Mul(w, share);
  } else {
    return share;
  }
}

// Writes four vectors of the gradient to `out`.
template <int kTerms, bool kStream>
HWY_INLINE void GradientOfFour(const AlongGradient &gradient, const StepColumns &step, int64_t at, float *out) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  Floats e0, e1, e2, e3;
  LoadFour(d, step.logits + at, lanes, e0, e1, e2, e3);
  ExpFour(d, gradient.range, e0, e1, e2, e3);
  const Floats factor = hn::Set(d, gradient.exponential);
  if constexpr (kTerms == 0) {
    e0 = hn::Mul(e0, factor);
    e1 = hn::Mul(e1, factor);
    e2 = hn::Mul(e2, factor);
    e3 = hn::Mul(e3, factor);
  } else {
    Floats q0 = factor, q1 = factor, q2 = factor, q3 = factor, w0 = factor, w1 = factor, w2 = factor, w3 = factor;
    if constexpr ((kTerms & kProbsTerm) != 0) LoadFour(d, step.probs + at, lanes, q0, q1, q2, q3);
    if constexpr ((kTerms & kWeightsTerm) != 0) LoadFour(d, step.weights + at, lanes, w0, w1, w2, w3);
    e0 = hn::MulSub(e0, factor, LabelTerm<kTerms>(gradient, q0, w0));
    e1 = hn::MulSub(e1, factor, LabelTerm<kTerms>(gradient, q1, w1));
    e2 = hn::MulSub(e2, factor, LabelTerm<kTerms>(gradient, q2, w2));
    e3 = hn::MulSub(e3, factor, LabelTerm<kTerms>(gradient, q3, w3));
  }
  StoreFour<kStream>(d, ZeroBelowNormal<float>(d, e0), ZeroBelowNormal<float>(d, e1), ZeroBelowNormal<float>(d, e2),
                     ZeroBelowNormal<float>(d, e3), out + at, lanes);
}

template <int kTerms, bool kStream>
HWY_INLINE void GradientOfStep(const AlongGradient &gradient, const StepColumns &step, float *out) {
  const int64_t width = 4 * static_cast<int64_t>(hn::Lanes(FloatTag()));
  for (int64_t i = 0; i < kStep; i += width) GradientOfFour<kTerms, kStream>(gradient, step, i, out);
}

// Writes the gradient of a block, `cols` columns from `first` on, to `out`, with kStream past the caches.
template <int kTerms, bool kStream>
HWY_NOINLINE void GradientOfBlock(const AlongGradient &shared, const StepColumns &block, int64_t first, int64_t cols,
                                  float *out) {
  constexpr bool kProbs = (kTerms & kProbsTerm) != 0, kWeights = (kTerms & kWeightsTerm) != 0;
  const AlongGradient gradient = shared;  // a copy: stores to floats cannot change it
  const Labels &labels = gradient.task.labels;
  StepCopies copies;
  for (int64_t col = 0; col < cols; col += kStep) {
    const int64_t count = HWY_MIN(kStep, cols - col);
    StepColumns step{nullptr, block.logits + col, nullptr, kWeights ? block.weights + col : nullptr};
    if constexpr (kProbs) {
      step.probs = FloatColumns(labels.probs_dtype, labels.probs, first + col, count, copies.probs);
    }
    if (HWY_LIKELY(count == kStep)) {
      if constexpr (!kStream) PrefetchForWrite<kStep * sizeof(float)>(out + col);
      GradientOfStep<kTerms, kStream>(gradient, step, out + col);
      continue;
    }
    step.logits = PaddedStep(step.logits, count, -1, 0.0f, copies.exponents);
    if constexpr (kProbs) step.probs = PaddedStep(step.probs, count, -1, 0.0f, copies.probs);
    if constexpr (kWeights) step.weights = PaddedStep(step.weights, count, -1, 0.0f, copies.weights);
    GradientOfStep<kTerms, false>(gradient, step, copies.exponents);
    std::memcpy(out + col, copies.exponents, static_cast<size_t>(count) * sizeof(float));
  }
}

// Writes the labels' own gradient of a block to `out`, whole steps of which are writable: w (slope (max - z) + base), 0
// where w is.
inline HWY_NOINLINE void LabelGradientOfBlock(const AlongGradient &gradient, const float *logits, const float *weights,
                                              int64_t cols, float *out) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Floats m = hn::Set(d, gradient.max), slope = hn::Set(d, gradient.label_slope),
               base = hn::Set(d, gradient.label_base), zero = hn::Zero(d);
  for (int64_t i = 0; i < cols; i += lanes) {
    const size_t count = static_cast<size_t>(HWY_MIN(lanes, cols - i));
    const Floats z = hn::LoadN(d, logits + i, count);
    Floats v = hn::MulAdd(hn::Sub(m, z), slope, base);
    if (weights != nullptr) {
      const Floats w = hn::LoadN(d, weights + i, count);
      v = hn::IfThenElseZero(hn::Ne(w, zero), hn::Mul(v, w));
    }
    hn::Store(ZeroBelowNormal<float>(d, v), d, out + i);
  }
}

// Multiplies a block's gradient by the slopes of the cap.
inline HWY_NOINLINE void MultiplyBySlopes(const float *slopes, int64_t cols, float *gradient) {
  const FloatTag d;
  for (int64_t i = 0; i < cols; i += static_cast<int64_t>(hn::Lanes(d))) {
    const Floats v = hn::Mul(hn::Load(d, gradient + i), hn::Load(d, slopes + i));
    hn::Store(ZeroBelowNormal<float>(d, v), d, gradient + i);
  }
}

template <int kTerms>
HWY_NOINLINE void GradientAlongAs(const AlongGradient &gradient) {
  const GeneralTask &task = gradient.task;
  // What is not written where it stays takes the place of the logits. Labels' own gradients take that of the slopes.
  HWY_ALIGN float logits_buffer[kAlongBlock], slopes[kAlongBlock];
  for (int64_t first = 0; first < task.cols; first += kAlongBlock) {
    const int64_t cols = HWY_MIN(kAlongBlock, task.cols - first);
    StepColumns block{};
    block.logits = FloatColumns(gradient.dtype, task.logits, first, cols, logits_buffer);
    if (gradient.cap != nullptr) {
      gradient.cap->Transform<true>(block.logits, cols, logits_buffer, slopes);
      block.logits = logits_buffer;
    }
    if (task.labels.class_weights != nullptr) {
      block.weights = static_cast<const float *>(task.labels.class_weights) + first;
    }
    if (task.label_gradient != nullptr) {  // first: in place the logits end below
      LabelGradientOfBlock(gradient, block.logits, block.weights, cols, slopes);
      NarrowColumns(task.labels.probs_dtype, slopes, first, cols, task.label_gradient);
    }
    if (task.gradient == nullptr) continue;
    if (gradient.dtype == kF32 && gradient.cap == nullptr) {
      float *const columns = static_cast<float *>(task.gradient) + first;
      const auto write =
          task.stream && CanStream(columns) ? GradientOfBlock<kTerms, true> : GradientOfBlock<kTerms, false>;
      write(gradient, block, first, cols, columns);
    } else {
      GradientOfBlock<kTerms, false>(gradient, block, first, cols, logits_buffer);
      if (gradient.cap != nullptr) MultiplyBySlopes(slopes, cols, logits_buffer);
      NarrowColumns(gradient.dtype, logits_buffer, first, cols, task.gradient, task.stream);
    }
  }
}

// Writes a chunk's gradients but for the target's column, if that is here. False: they need the double lanes.
template <class In>
HWY_NOINLINE bool GradientAlong(const GeneralTask &task) {
  if (!TakesAlong(task)) return false;
  const GeneralGradient &row = *task.rows;
  const bool capped = task.transform.cap > 0.0;
  const double factor = task.transform.Factor(), logit = row.value * factor;
  // With a cap the mantissa of scale is part of dz, otherwise of the factors already.
  const double with_dz = capped ? task.transform.Slope().mantissa : 1.0;
  const double p_factor = row.p_factor.hi * with_dz, y_factor = row.y_factor.hi * with_dz;
  if (row.lift != 0 || !IsModerate(y_factor) || (!IsModerate(p_factor) && p_factor != 0.0) ||
      !(Magnitude(logit) <= Format<float>::kLimit)) {
    return false;
  }
  // Slopes below the normal range have lost digits, which no factor may bring back.
  if (capped && (Magnitude(row.mass) * with_dz > 16.0 || Magnitude(y_factor) > 16.0)) return false;
  const double slope = row.label_factor * factor, base = row.label_factor * row.log_total;
  if (task.label_gradient != nullptr &&
      (capped || !IsModerate(slope) || Magnitude(slope) > 1.0 || !(row.log_total >= 0x1p-60))) {
    return false;
  }
  std::optional<FloatSoftCap> cap;  // its quotients are not worth their time where there is none
  if (capped) cap.emplace(task.transform.scale, task.transform.cap);
  const AlongGradient gradient{.task = task,
                               .dtype = kDtypeOf<In>,
                               .range = ScaledRange(RoundedLog2(logit), factor),
                               .exponential = static_cast<float>(p_factor / ExponentialAt(logit)),
                               .probs_factor = static_cast<float>(task.labels.probs_factor.hi * y_factor),
                               .share = static_cast<float>(task.labels.share.hi * y_factor),
                               .max = static_cast<float>(row.value),
                               .label_slope = static_cast<float>(slope),
                               .label_base = static_cast<float>(base),
                               .cap = capped ? &*cap : nullptr};
  switch (LabelTerms(task)) {
    case 0:
      GradientAlongAs<0>(gradient);
      break;
    case kShareTerm:
      GradientAlongAs<kShareTerm>(gradient);
      break;
    case kShareTerm | kWeightsTerm:
      GradientAlongAs<kShareTerm | kWeightsTerm>(gradient);
      break;
    case kProbsTerm:
      GradientAlongAs<kProbsTerm>(gradient);
      break;
    case kProbsTerm | kWeightsTerm:
      GradientAlongAs<kProbsTerm | kWeightsTerm>(gradient);
      break;
    case kProbsTerm | kShareTerm:
      GradientAlongAs<kProbsTerm | kShareTerm>(gradient);
      break;
    case kProbsTerm | kWeightsTerm | kShareTerm:
      GradientAlongAs<kProbsTerm | kWeightsTerm | kShareTerm>(gradient);
      break;
    default:
      return false;
  }
  return true;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_NATIVE_FMA
#endif  // include guard
