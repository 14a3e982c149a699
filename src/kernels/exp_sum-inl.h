// Sum of a chunk's exponentials in one sweep, without its maximum. Any reference exponent near the chunk's gives the
// same bits, so a guess is carried from block to block. A block is redone, with its own maximum, only when a lane
// leaves the accepted range. Error: exp's (exp-inl.h) plus at most three roundings of a tree of eight; the lanes are
// double (float64: with their rounding errors carried along). See docs/numerics.md.
//
// While row i is summed, row i - 1 may be written: the exponentials that its own sweep has left in memory become its
// gradient or softmax (scale-inl.h). The loop of SumBlockAs takes the two in turn, a step of one, a step of the other,
// so that the one's arithmetic fills the other's waits for memory.
#if defined(XENT_SRC_KERNELS_EXP_SUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_EXP_SUM_INL_H_
#undef XENT_SRC_KERNELS_EXP_SUM_INL_H_
#else
#define XENT_SRC_KERNELS_EXP_SUM_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/lanes-inl.h"
#include "kernels/restore.h"
#include "kernels/row.h"
#include "kernels/scale-inl.h"
#include "kernels/step-inl.h"
#include "numbers/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// ---- one step, one block ----

// What becomes of the exponentials: nothing, kept apart from the logits, or kept where the logits stand, which are then
// saved.
enum class Keep { kNothing, kApart, kInPlace };

// Where the trees of a block's steps wait for the double lanes, so that these are loaded and stored once a block and
// not once a step (docs/tuning.md). Each lane sees the same additions. Those of float64 do not wait.
template <class T>
class StepTrees {
 public:
  explicit StepTrees(LaneSums<T> &sum) : sum_(sum) {}
  ~StepTrees() { Flush(); }
  StepTrees(const StepTrees &) = delete;
  StepTrees &operator=(const StepTrees &) = delete;

  // Begins a step; then each part of its lanes is put once.
  HWY_INLINE void Begin() {
    if constexpr (kWaits) {
      if (steps_ == kSteps) Flush();
      ++steps_;
    }
  }
  template <class D>
  HWY_INLINE void Put(D d, hn::Vec<D> tree, int64_t part) {
    if constexpr (kWaits) {
      hn::Store(tree, d, trees_ + (steps_ - 1) * kLanes + part);
    } else {
      AddToLanes(d, tree, part, sum_);
    }
  }

 private:
  static constexpr bool kWaits = sizeof(T) == sizeof(float);
  static constexpr int64_t kSteps = kWaits ? kBlock / kStep : 0;

  HWY_INLINE void Flush() {
    if constexpr (kWaits) AddTrees<1>(trees_, 0, steps_, sum_);
    steps_ = 0;
  }

  LaneSums<T> &sum_;
  int64_t steps_ = 0;
  HWY_ALIGN T trees_[kWaits ? kSteps * kLanes : 1];
};

// Makes the tree sums of a step's exponentials. With kShift they are those of z - origin.
template <bool kShift, Keep kKeep, class T, class Z>
HWY_INLINE void SumStep(const ExpRange<T> &range, T origin, const Z *z, T *kept, T *saved, StepTrees<T> &trees) {
  trees.Begin();
  const hn::CappedTag<T, kLanes> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t part = 0; part < kLanes; part += lanes) {
    hn::Vec<hn::CappedTag<T, kLanes>> e0, e1, e2, e3, e4, e5, e6, e7;
    LoadFour(d, z + part, kLanes, e0, e1, e2, e3);
    LoadFour(d, z + part + 4 * kLanes, kLanes, e4, e5, e6, e7);
    if constexpr (kKeep == Keep::kInPlace) {
      StoreFour(d, e0, e1, e2, e3, saved + part, kLanes);
      StoreFour(d, e4, e5, e6, e7, saved + part + 4 * kLanes, kLanes);
    }
    if constexpr (kShift) {
      SubtractFour(hn::Set(d, origin), e0, e1, e2, e3);
      SubtractFour(hn::Set(d, origin), e4, e5, e6, e7);
    }
    ExpFour(d, range, e0, e1, e2, e3);
    const auto lower = hn::Add(hn::Add(e0, e1), hn::Add(e2, e3));
    if constexpr (kKeep != Keep::kNothing) StoreFour(d, e0, e1, e2, e3, kept + part, kLanes);
    ExpFour(d, range, e4, e5, e6, e7);
    const auto upper = hn::Add(hn::Add(e4, e5), hn::Add(e6, e7));
    if constexpr (kKeep != Keep::kNothing) StoreFour(d, e4, e5, e6, e7, kept + part + 4 * kLanes, kLanes);
    trees.Put(d, hn::Add(lower, upper), part);
  }
}

// A block, or any number of columns, to be summed with one reference.
template <class In, class T = Arithmetic<In>>
struct BlockTask {
  const In *logits;
  int64_t cols;
  int64_t target;    // relative to the block; outside [0, cols): not here
  double reference;  // an integer
  bool shift = false;
  T origin = 0;                    // with `shift` the exponentials are those of z - origin
  T *kept = nullptr;               // where to keep the exponentials; null: nowhere
  T *saved = nullptr;              // where to save the logits, whole steps; null unless `kept` is the logits' memory
  Scaler<In> *previous = nullptr;  // the row before, to be written meanwhile; null: none
  int64_t first = 0;               // the block's first column in the chunk, for `previous`
};

template <bool kShift, Keep kKeep, class In, class T = Arithmetic<In>>
HWY_NOINLINE void SumBlockAs(const BlockTask<In> &block, LaneSums<T> &sum) {
  const ExpRange<T> range(block.reference);
  const T origin = block.origin;
  T *const kept = block.kept, *const saved = block.saved;
  Scaler<In> *const previous = block.previous;
  const int64_t first = block.first;
  StepTrees<T> trees(sum);
  // Each step: writes row i - 1 up to the step's last column, then sums row i's step. In this order, since row i - 1's
  // exponentials may stand where row i's are about to be kept.
  ForEachStep(block.logits, block.cols, block.target, static_cast<T>(-kInfinity),
              [&](const auto *z, int64_t col, int64_t count) XENT_INLINE_LAMBDA {
                if constexpr (kKeep != Keep::kNothing) {
                  if (kKeep == Keep::kApart) PrefetchForWrite<kStep * sizeof(T)>(kept + col);
                  if (previous != nullptr) previous->AdvanceTo(first + col + count);
                  if constexpr (sizeof(*z) == sizeof(T)) {
                    if (HWY_UNLIKELY(count < kStep)) {  // z is a copy; it takes all of the step's exponentials
                      T *const copy = const_cast<T *>(z);
                      SumStep<kShift, kKeep>(range, origin, z, copy, saved + col, trees);
                      std::memcpy(kept + col, copy, static_cast<size_t>(count) * sizeof(T));
                      return;
                    }
                  }
                }
                SumStep<kShift, kKeep>(range, origin, z, kept + col, saved + col, trees);
              });
}

template <class In, class T = Arithmetic<In>>
HWY_INLINE void SumBlock(const BlockTask<In> &block, LaneSums<T> &sum) {
  auto sum_block = block.shift ? SumBlockAs<true, Keep::kNothing, In> : SumBlockAs<false, Keep::kNothing, In>;
  if (block.kept != nullptr) {
    sum_block = block.shift ? SumBlockAs<true, Keep::kApart, In> : SumBlockAs<false, Keep::kApart, In>;
  }
  if constexpr (sizeof(In) == sizeof(T)) {
    if (block.saved != nullptr) sum_block = SumBlockAs<false, Keep::kInPlace, In>;
  }
  sum_block(block, sum);
}

// Adds (pivot - z) kSpreadScale to lanes [part, part + Lanes(d)). For float32 the differences are exact in double, for
// float64 what they lose is added too.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void AddDifference(D d, double pivot, hn::VFromD<D> z, int64_t part, LaneSums<T> &sum) {
  if constexpr (kKeepsLow<T>) {
    const auto scale = hn::Set(d, Format<T>::kSpreadScale);
    auto error = hn::Zero(d);
    AddToLanes(d, ExactDifference(d, hn::Mul(hn::Set(d, pivot), scale), hn::Mul(z, scale), &error), part, sum);
    double *const low = sum.lanes + kLanes + part;
    hn::Store(hn::Add(hn::Load(d, low), error), d, low);
  } else {
    const hn::RepartitionToWide<D> dd;
    const auto p = hn::Set(dd, pivot);
    AddHalves(dd, hn::Sub(p, hn::PromoteLowerTo(dd, z)), hn::Sub(p, hn::PromoteUpperTo(dd, z)), part, sum);
  }
}

// Adds the spread of columns other than the target.
template <class In, class T = Arithmetic<In>>
HWY_NOINLINE void SpreadBlock(const In *logits, int64_t cols, int64_t target, double pivot, LaneSums<T> &sum) {
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  ForEachStep(logits, cols, target, static_cast<T>(pivot), [&](const auto *z, int64_t, int64_t) XENT_INLINE_LAMBDA {
    for (int64_t part = 0; part < kLanes; part += lanes) {
      for (int64_t i = part; i < kStep; i += kLanes) AddDifference(d, pivot, LoadAs(d, z + i), part, sum);
    }
  });
}

// Whether every lane is in the accepted range; NaN is not.
template <class T>
HWY_INLINE bool InRange(const LaneSums<T> &sum) {
  const hn::CappedTag<double, kLanes> d;
  const auto limit = hn::Set(d, Format<T>::kSumLimit);
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto in_range = hn::Le(hn::Load(d, sum.lanes), limit);
  for (int64_t i = lanes; i < kLanes; i += lanes) {
    in_range = hn::And(in_range, hn::Le(hn::Load(d, sum.lanes + i), limit));
  }
  return hn::AllTrue(d, in_range);
}

// ---- one chunk ----

// Returns the maximum of a span's first and last kLanes logits, -infinity where it has fewer. NaN is passed over; the
// sum will show it.
template <class In>
HWY_INLINE double Peek(const In *logits, int64_t cols) {
  const Tag<In> d;
  if (cols < kLanes) return -kInfinity;
  auto max = hn::Set(d, static_cast<Arithmetic<In>>(-kInfinity));
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t part = 0; part < kLanes; part += lanes) {
    const auto first = LoadAs(d, logits + part);
    const auto last = LoadAs(d, logits + cols - kLanes + part);
    max = hn::IfThenElse(hn::Gt(first, max), first, max);
    max = hn::IfThenElse(hn::Gt(last, max), last, max);
  }
  return hn::ReduceMax(d, max);
}

inline bool IsSpecial(Extreme seen) { return seen.nan || seen.max == kInfinity; }

// Returns one of the chunk's own logits, so that the difference between it and lse is no larger than what is summed,
// and shards of a vocabulary take the same one.
template <class In>
HWY_NOINLINE double Pivot(const In *logits, int64_t cols, int64_t target) {
  const double peek = Peek(logits, cols);
  if (Magnitude(peek) <= Format<Arithmetic<In>>::kLimit) return peek;
  Extreme seen = Maximum<In>(logits, HWY_MIN(cols, kStep), target);
  if (!IsFinite(seen.max)) seen = Maximum<In>(logits, cols, target);
  return IsFinite(seen.max) ? seen.max : 0.0;
}

// Binades that a logit at a block's ends may lie above the reference before the reference is raised to it.
inline constexpr double kPeekBinades = 20.0;

// The sweep over one chunk.
template <class In>
class ChunkSweep {
  using T = Arithmetic<In>;
  using F = Format<T>;

 public:
  ChunkSweep(const ExpSumTask &task, Scaler<In> *previous)
      : task_(task),
        logits_(static_cast<const In *>(task.logits)),
        kept_(static_cast<T *>(task.exponentials)),
        in_place_(task.exponentials == task.logits),
        previous_(previous),
        reference_(task.first_reference) {}

  // Sums block after block. NaN and +infinity end the sweep where they are found: a special sum says no more.
  HWY_NOINLINE ChunkSum Run() {
    if (task_.spread) result_.pivot = Pivot(logits_, task_.cols, task_.target);
    if (reference_ != reference_) {
      const Extreme seen = ChooseFirstReference();
      if (IsSpecial(seen)) return SpecialSum(seen);
      if (seen.max == -kInfinity) return MaskedSum();
    }
    for (int64_t col = 0; col < task_.cols;) {
      const int64_t count = HWY_MIN(kBlockCols, task_.cols - col);
      const bool by_maximum = result_.kind == Reference::kLogit;
      // In place, logits that are summed relative to the maximum are not saved, so that their spread comes first.
      if (task_.spread && by_maximum) SpreadBlock(logits_ + col, count, task_.target - col, result_.pivot, spread_);
      if (!by_maximum) RaiseToEnds(col, count);
      const LaneSums<T> before = sum_;
      Sum(col, count, previous_);
      if (HWY_UNLIKELY(!InRange(sum_))) {
        sum_ = before;
        if (in_place_ && !by_maximum) std::memcpy(kept_ + col, saved_, static_cast<size_t>(count) * sizeof(T));
        Extreme seen = Maximum<In>(logits_ + col, count, task_.target - col);
        if (!seen.nan && seen.max <= F::kLimit) {
          Raise(col, RoundedLog2(seen.max));
          Sum(col, count, nullptr);
        } else {
          // A NaN further on in the chunk counts before an infinity, a larger logit before this block's largest.
          if (!seen.nan) seen = Maximum<In>(logits_ + col, task_.cols - col, task_.target - col);
          if (IsSpecial(seen)) return SpecialSum(seen);
          TurnToMaximum(col, seen.max);
          continue;  // with the same block
        }
      }
      if (task_.spread && !by_maximum) {
        const In *const source = in_place_ ? reinterpret_cast<const In *>(saved_) : logits_ + col;
        SpreadBlock(source, count, task_.target - col, result_.pivot, spread_);
      }
      col += count;
    }
    return Finished();
  }

 private:
  static constexpr int64_t kBlockCols = kBlock * sizeof(float) / sizeof(T);

  // Chooses the reference by the larger of the chunk's ends, where that is of use, else by the chunk's maximum. Returns
  // the logit that it has taken. If that is special or -infinity, there is nothing to sum.
  Extreme ChooseFirstReference() {
    Extreme seen{Peek(logits_, task_.cols), false};
    if (!(Magnitude(seen.max) <= F::kLimit)) seen = Maximum<In>(logits_, HWY_MIN(task_.cols, kStep), task_.target);
    if (seen.nan || !(Magnitude(seen.max) <= F::kLimit)) seen = Maximum<In>(logits_, task_.cols, task_.target);
    if (Magnitude(seen.max) <= F::kLimit) {
      reference_ = RoundedLog2(seen.max);
    } else if (!seen.nan && IsFinite(seen.max)) {
      TurnToMaximum(0, seen.max);
    }
    return seen;
  }

  // Raises the reference where the block's ends, and for the first block the chunk's, lie far above it. Ascending
  // logits then redo nothing, and kept exponentials are hardly ever scaled.
  void RaiseToEnds(int64_t col, int64_t count) {
    double peek = Peek(logits_ + col, count);
    if (col == 0) peek = HWY_MAX(peek, Peek(logits_, task_.cols));
    if (peek <= F::kLimit && peek * kLog2E_F64_Hi > reference_ + kPeekBinades) Raise(col, RoundedLog2(peek));
  }

  // Changes the reference of what was summed so far, columns [0, col).
  void Raise(int64_t col, double reference) {
    const int64_t by = static_cast<int64_t>(reference - reference_);
    sum_.Scale(-by);
    reference_ = reference;
    if (kept_ == nullptr || col == 0) return;
    const int64_t prescale = HWY_MAX(-by, int64_t{-2 * F::kMaxExponent});
    Scaler<T>({kept_, kept_, col, {1.0, 0.0, 0.0, 0}, static_cast<int>(prescale), false}).AdvanceTo(col);
  }

  // Adds columns to the sum. In place their logits are saved unless they are summed relative to the maximum.
  void Sum(int64_t col, int64_t count, Scaler<In> *previous) {
    const bool by_maximum = result_.kind == Reference::kLogit;
    const BlockTask<In> block{.logits = logits_ + col,
                              .cols = count,
                              .target = task_.target - col,
                              .reference = reference_,
                              .shift = by_maximum,
                              .origin = origin_,
                              .kept = kept_ == nullptr ? nullptr : kept_ + col,
                              .saved = in_place_ && !by_maximum ? saved_ : nullptr,
                              .previous = previous,
                              .first = col};
    SumBlock(block, sum_);
  }

  // Sums columns [0, col) again, relative to the chunk's maximum, which lies beyond the limit; what follows will be. In
  // place their logits are recovered from their exponentials, exactly where they can still matter.
  void TurnToMaximum(int64_t col, double max) {
    if (in_place_) RestoreLogits(kept_, col, reference_);
    if (task_.spread) {
      // The spread so far to the new pivot: each column's difference grows by that of the pivots.
      const double columns = static_cast<double>(col - (task_.target >= 0 && task_.target < col));
      const Wide by = Subtract({max * F::kSpreadScale, 0.0}, {result_.pivot * F::kSpreadScale, 0.0});
      earlier_spread_ = AddOrOverflow(spread_.Total(), Multiply(by, {columns, 0.0}));
      spread_ = {};
    }
    result_.kind = Reference::kLogit;
    result_.pivot = max;
    origin_ = static_cast<T>(max);
    reference_ = 0.0;
    sum_ = {};
    if (col > 0) Sum(0, col, nullptr);
  }

  ChunkSum Finished() {
    result_.reference = result_.kind == Reference::kLogit ? static_cast<double>(origin_) : reference_;
    result_.sum = sum_.Total();
    if (task_.spread) result_.spread = AddOrOverflow(earlier_spread_, spread_.Total());
    return result_;
  }
  ChunkSum SpecialSum(Extreme seen) {
    result_.special = seen.nan ? Special::kNan : Special::kInfinity;
    return result_;
  }
  // All columns but the target's are -infinity.
  ChunkSum MaskedSum() {
    if (previous_ != nullptr) previous_->AdvanceTo(task_.cols);
    if (kept_ != nullptr) std::memset(kept_, 0, static_cast<size_t>(task_.cols) * sizeof(T));
    const bool only_target = task_.cols == 1 && task_.target == 0;
    if (!only_target) result_.spread.hi = kInfinity;
    return result_;
  }

  const ExpSumTask &task_;
  const In *logits_;
  T *kept_;  // null: the exponentials are not kept
  bool in_place_;
  Scaler<In> *previous_;  // null: no row to write meanwhile
  double reference_;
  T origin_ = 0;
  LaneSums<T> sum_, spread_;
  Wide earlier_spread_;            // of the columns before the turn to the maximum
  HWY_ALIGN T saved_[kBlockCols];  // in place: the block's logits, should it be redone
  ChunkSum result_{
      .reference = 0.0, .sum = {}, .spread = {}, .pivot = 0.0, .kind = Reference::kExponent, .special = Special::kNone};
};

template <class In>
void ExpSum(const ExpSumTask &task, ChunkSum *out) {
  if (task.meanwhile == nullptr) {
    *out = ChunkSweep<In>(task, nullptr).Run();
    return;
  }
  Scaler<In> previous(*task.meanwhile);
  *out = ChunkSweep<In>(task, &previous).Run();
  previous.AdvanceTo(task.meanwhile->cols);  // a sweep that ended early has not written all
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
