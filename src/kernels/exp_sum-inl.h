// Sum of a chunk's exponentials in one sweep, without its maximum: any reference exponent near the chunk's gives the
// same bits, so a guess is carried along and a block is redone, with its own maximum, only when a lane leaves the
// accepted range. Error: exp's (exp-inl.h) plus at most three roundings of a tree of eight; the lanes are double
// (float64: with their rounding errors carried along). See docs/numerics.md.
#if defined(XENT_SRC_KERNELS_EXP_SUM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_EXP_SUM_INL_H_
#undef XENT_SRC_KERNELS_EXP_SUM_INL_H_
#else
#define XENT_SRC_KERNELS_EXP_SUM_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/lanes-inl.h"
#include "kernels/load-inl.h"
#include "kernels/maximum-inl.h"
#include "kernels/restore.h"
#include "kernels/row.h"
#include "kernels/scale-inl.h"
#include "numbers/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// What becomes of the exponentials: nothing, kept elsewhere, or kept where the logits stood, which are then saved.
enum class Keep { kNothing, kExponentials, kInPlace };

// One step: exponentials of kStep logits, kept in `out` where wanted, their tree sums added to the lanes.
template <bool kShift, Keep kKeep, class T, class Z>
HWY_INLINE void SumStep(const ExpRange<T> &range, T origin, const Z *z, T *out, T *saved, WideLanes<T> &sum) {
  const hn::CappedTag<T, kLanes> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t part = 0; part < kLanes; part += lanes) {
    auto e0 = LoadAs(d, z + part + 0 * kLanes);
    auto e1 = LoadAs(d, z + part + 1 * kLanes);
    auto e2 = LoadAs(d, z + part + 2 * kLanes);
    auto e3 = LoadAs(d, z + part + 3 * kLanes);
    auto e4 = LoadAs(d, z + part + 4 * kLanes);
    auto e5 = LoadAs(d, z + part + 5 * kLanes);
    auto e6 = LoadAs(d, z + part + 6 * kLanes);
    auto e7 = LoadAs(d, z + part + 7 * kLanes);
    if constexpr (kKeep == Keep::kInPlace) {
      hn::Store(e0, d, saved + part + 0 * kLanes);
      hn::Store(e1, d, saved + part + 1 * kLanes);
      hn::Store(e2, d, saved + part + 2 * kLanes);
      hn::Store(e3, d, saved + part + 3 * kLanes);
      hn::Store(e4, d, saved + part + 4 * kLanes);
      hn::Store(e5, d, saved + part + 5 * kLanes);
      hn::Store(e6, d, saved + part + 6 * kLanes);
      hn::Store(e7, d, saved + part + 7 * kLanes);
    }
    if constexpr (kShift) {
      const auto c = hn::Set(d, origin);
      e0 = hn::Sub(e0, c);
      e1 = hn::Sub(e1, c);
      e2 = hn::Sub(e2, c);
      e3 = hn::Sub(e3, c);
      e4 = hn::Sub(e4, c);
      e5 = hn::Sub(e5, c);
      e6 = hn::Sub(e6, c);
      e7 = hn::Sub(e7, c);
    }
    ExpFour(d, range, e0, e1, e2, e3);
    const auto lower = hn::Add(hn::Add(e0, e1), hn::Add(e2, e3));
    if constexpr (kKeep != Keep::kNothing) {
      hn::StoreU(e0, d, out + part + 0 * kLanes);
      hn::StoreU(e1, d, out + part + 1 * kLanes);
      hn::StoreU(e2, d, out + part + 2 * kLanes);
      hn::StoreU(e3, d, out + part + 3 * kLanes);
    }
    ExpFour(d, range, e4, e5, e6, e7);
    const auto upper = hn::Add(hn::Add(e4, e5), hn::Add(e6, e7));
    if constexpr (kKeep != Keep::kNothing) {
      hn::StoreU(e4, d, out + part + 4 * kLanes);
      hn::StoreU(e5, d, out + part + 5 * kLanes);
      hn::StoreU(e6, d, out + part + 6 * kLanes);
      hn::StoreU(e7, d, out + part + 7 * kLanes);
    }
    AddToLanes(d, hn::Add(lower, upper), part, sum);
  }
}

template <bool kShift, Keep kKeep, class In>
struct SumBlockStep {
  using T = Arithmetic<In>;
  ExpRange<T> range;
  T origin;
  T *out, *saved;
  WideLanes<T> *sum;
  Scaler<In> *meanwhile;  // null: nothing to do beside
  int64_t first;          // the block's first column in the chunk, for `meanwhile`

  template <class Z>
  HWY_INLINE void operator()(const Z *z, int64_t col, int64_t count) {
    if constexpr (kKeep != Keep::kNothing) {
      if (kKeep == Keep::kExponentials) PrefetchForWrite<kStep * sizeof(T)>(out + col);
      if (meanwhile != nullptr) meanwhile->AdvanceTo(first + col + count);
      if constexpr (sizeof(Z) == sizeof(T)) {
        if (HWY_UNLIKELY(count < kStep)) {  // only `count` columns exist; z is a copy, which takes all of them
          T *const copy = const_cast<T *>(z);
          SumStep<kShift, kKeep>(range, origin, z, copy, saved + col, *sum);
          std::memcpy(out + col, copy, static_cast<size_t>(count) * sizeof(T));
          return;
        }
      }
    }
    SumStep<kShift, kKeep>(range, origin, z, out + col, saved + col, *sum);
  }
};

template <class T>
struct Destination {
  T *out = nullptr;    // exponentials; null: nowhere
  T *saved = nullptr;  // a block's logits, kStep more than it has; null unless they stand in `out`
};

// Another row's work, done up to the columns that are summed, of which the block begins with `first`.
template <class In>
struct Beside {
  Scaler<In> *scaler = nullptr;
  int64_t first = 0;
};

template <bool kShift, Keep kKeep, class In, class T = Arithmetic<In>>
HWY_NOINLINE void SumBlockAs(const In *logits, int64_t cols, int64_t target, double reference, T origin,
                             Destination<T> to, Beside<In> beside, WideLanes<T> &sum) {
  SumBlockStep<kShift, kKeep, In> step{ExpRange<T>(reference), origin,      to.out, to.saved, &sum,
                                       beside.scaler,          beside.first};
  ForEachStep(logits, cols, target, -std::numeric_limits<T>::infinity(), step);
}

template <class In, class T = Arithmetic<In>>
HWY_INLINE void SumBlock(const In *logits, int64_t cols, int64_t target, double reference, bool shift, T origin,
                         Destination<T> to, WideLanes<T> &sum, Beside<In> beside = {}) {
  auto sum_block = shift ? SumBlockAs<true, Keep::kNothing, In> : SumBlockAs<false, Keep::kNothing, In>;
  if (to.out != nullptr) {
    sum_block = shift ? SumBlockAs<true, Keep::kExponentials, In> : SumBlockAs<false, Keep::kExponentials, In>;
  }
  if constexpr (sizeof(In) == sizeof(T)) {
    if (to.saved != nullptr) sum_block = SumBlockAs<false, Keep::kInPlace, In>;
  }
  sum_block(logits, cols, target, reference, origin, to, beside, sum);
}

// Sums (pivot - z) kSpreadScale: for float32 the differences are exact in double, for float64 what they lose is kept.
template <class In>
struct SpreadStep {
  using T = Arithmetic<In>;
  double pivot;
  WideLanes<T> *sum;

  template <class Z>
  HWY_INLINE void operator()(const Z *z, int64_t /*col*/, int64_t /*count*/) {
    const hn::CappedTag<T, kLanes> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t part = 0; part < kLanes; part += lanes) {
      for (int64_t group = 0; group < kStep; group += kLanes) Accumulate(d, LoadAs(d, z + group + part), part);
    }
  }

  template <class D>
  HWY_INLINE void Accumulate(D d, hn::VFromD<D> z, int64_t part) {
    if constexpr (sizeof(T) == 4) {
      const hn::RepartitionToWide<D> dd;
      const auto p = hn::Set(dd, pivot);
      double *lower = sum->lanes + part;
      double *upper = lower + hn::Lanes(dd);
      hn::Store(hn::Add(hn::Load(dd, lower), hn::Sub(p, hn::PromoteLowerTo(dd, z))), dd, lower);
      hn::Store(hn::Add(hn::Load(dd, upper), hn::Sub(p, hn::PromoteUpperTo(dd, z))), dd, upper);
    } else {
      const auto scale = hn::Set(d, Format<T>::kSpreadScale);
      const auto p = hn::Mul(hn::Set(d, pivot), scale);
      const auto y = hn::Mul(z, scale);
      const auto s = hn::Sub(p, y);
      const auto bb = hn::Sub(s, p);
      const auto error = hn::Sub(hn::Sub(p, hn::Sub(s, bb)), hn::Add(y, bb));
      AddToLanes(d, s, part, *sum);
      double *low = sum->lanes + kLanes + part;
      hn::Store(hn::Add(hn::Load(d, low), error), d, low);
    }
  }
};

template <class In, class T = Arithmetic<In>>
HWY_NOINLINE void SpreadBlock(const In *logits, int64_t cols, int64_t target, double pivot, WideLanes<T> &sum) {
  SpreadStep<In> step{pivot, &sum};
  ForEachStep(logits, cols, target, static_cast<T>(pivot), step);
}

template <class T>
HWY_INLINE bool InRange(const WideLanes<T> &sum) {
  const hn::CappedTag<double, kLanes> d;
  const auto limit = hn::Set(d, Format<T>::kSumLimit);
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto in_range = hn::Le(hn::Load(d, sum.lanes), limit);  // NaN is not
  for (int64_t i = lanes; i < kLanes; i += lanes) {
    in_range = hn::And(in_range, hn::Le(hn::Load(d, sum.lanes + i), limit));
  }
  return hn::AllTrue(d, in_range);
}

// Binades that a logit at a block's ends may lie above the reference before the reference is raised to it.
inline constexpr double kPeekBinades = 20.0;

// Maximum of the first and the last group of a block; NaN is passed over, the sum will show it.
template <class In>
HWY_INLINE double Peek(const In *logits, int64_t cols) {
  using T = Arithmetic<In>;
  const Tag<In> d;
  auto max = hn::Set(d, -std::numeric_limits<T>::infinity());
  if (cols < kLanes) return hn::GetLane(max);
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t part = 0; part < kLanes; part += lanes) {
    const auto first = LoadAs(d, logits + part);
    const auto last = LoadAs(d, logits + cols - kLanes + part);
    max = hn::IfThenElse(hn::Gt(first, max), first, max);
    max = hn::IfThenElse(hn::Gt(last, max), last, max);
  }
  return hn::ReduceMax(d, max);
}

// What differences are taken to before they are summed: one of the chunk's own logits, so that the difference between
// it and lse is no larger than what is summed, and shards of a vocabulary take the same one.
template <class In>
HWY_NOINLINE double Pivot(const In *logits, int64_t cols, int64_t target) {
  Extreme seen = Maximum(logits, HWY_MIN(cols, kStep), target);
  if (!(seen.max - seen.max == 0.0)) seen = Maximum(logits, cols, target);
  return seen.max - seen.max == 0.0 ? seen.max : 0.0;
}

template <class In>
HWY_NOINLINE void ExpSumBeside(const ExpSumTask &task, Scaler<In> *scaler, ChunkSum *out) {
  using T = Arithmetic<In>;
  using F = Format<T>;
  const In *const logits = static_cast<const In *>(task.logits);
  T *const kept = static_cast<T *>(task.exponentials);
  const int64_t cols = task.cols;
  const int64_t target = task.target;
  const bool in_place = task.exponentials == task.logits;

  ChunkSum result{0.0, {}, {}, 0.0, Reference::kExponent, Special::kNone};
  if (task.spread) {
    const double peek = Peek(logits, cols);
    result.pivot = peek >= -F::kLimit && peek <= F::kLimit ? peek : Pivot(logits, cols, target);
  }
  const auto find_special = [&](Extreme seen) {
    result.special = seen.nan ? Special::kNan : Special::kInfinity;
    *out = result;
  };

  double reference = task.first_reference;
  T origin = 0;
  if (!(reference == reference)) {
    // The larger of the chunk's ends, where it is of use, is near enough to its maximum.
    const double peek = Peek(logits, cols);
    if (peek >= -F::kLimit && peek <= F::kLimit) reference = RoundedLog2(peek);
  }
  if (!(reference == reference)) {
    Extreme seen = Maximum(logits, HWY_MIN(cols, kStep), target);
    if (seen.nan || !(seen.max >= -F::kLimit && seen.max <= F::kLimit)) seen = Maximum(logits, cols, target);
    if (seen.nan || seen.max == std::numeric_limits<double>::infinity()) return find_special(seen);
    if (seen.max == -std::numeric_limits<double>::infinity()) {
      // Nothing but masked columns.
      if (scaler != nullptr) scaler->AdvanceTo(cols);
      if (kept != nullptr) std::memset(kept, 0, static_cast<size_t>(cols) * sizeof(T));
      const bool only_target = cols == 1 && target == 0;
      if (!only_target) result.spread.hi = std::numeric_limits<double>::infinity();
      *out = result;
      return;
    }
    if (seen.max >= -F::kLimit && seen.max <= F::kLimit) {
      reference = RoundedLog2(seen.max);
    } else {
      result.kind = Reference::kLogit;
      result.pivot = seen.max;
      origin = static_cast<T>(seen.max);
      reference = 0.0;
    }
  }

  WideLanes<T> sum, before, spread;
  Wide earlier_spread;
  constexpr int64_t kBlockCols = kBlock * sizeof(float) / sizeof(T);
  HWY_ALIGN T saved[kBlockCols];  // in place only: the block's logits, should it be redone
  constexpr double peek_none = -std::numeric_limits<double>::infinity();
  const auto raise = [&](int64_t col, double new_reference) {
    const int64_t by = static_cast<int64_t>(new_reference - reference);
    sum.Scale(-by);
    if (kept != nullptr) ScaleByPower(kept, col, -by);
    reference = new_reference;
  };

  for (int64_t col = 0; col < cols;) {
    const int64_t count = HWY_MIN(kBlockCols, cols - col);
    const bool save = in_place && result.kind == Reference::kExponent;
    const Destination<T> to{kept == nullptr ? nullptr : kept + col, save ? saved : nullptr};
    if (result.kind == Reference::kExponent) {
      // A look at the block's ends, first at the whole chunk's: ascending logits then redo nothing, and where
      // exponentials are kept, hardly ever scale what is stored.
      const double peek = HWY_MAX(Peek(logits + col, count), col == 0 ? Peek(logits, cols) : peek_none);
      if (peek <= F::kLimit && peek * kLog2E_F64_Hi > reference + kPeekBinades) raise(col, RoundedLog2(peek));
    }
    if (task.spread && result.kind == Reference::kLogit) {
      SpreadBlock(logits + col, count, target - col, result.pivot, spread);  // nothing is redone now, nor saved
    }
    before = sum;
    SumBlock(logits + col, count, target - col, reference, result.kind == Reference::kLogit, origin, to, sum,
             Beside<In>{scaler, col});
    if (HWY_UNLIKELY(!InRange(sum))) {
      if (save) std::memcpy(kept + col, saved, static_cast<size_t>(count) * sizeof(T));
      sum = before;
      Extreme seen = Maximum(logits + col, count, target - col);
      if (seen.nan || seen.max == std::numeric_limits<double>::infinity()) {
        if (!seen.nan) seen = Maximum(logits + col, cols - col, target - col);
        return find_special(seen);
      }
      if (seen.max <= F::kLimit) {
        raise(col, RoundedLog2(seen.max));
        SumBlock(logits + col, count, target - col, reference, false, origin, to, sum);
      } else {
        // The chunk's maximum lies beyond the limit: the whole chunk is summed relative to it. In place the earlier
        // logits are recovered from their exponentials, exactly where they can still matter.
        seen = Maximum(logits + col, cols - col, target - col);
        if (seen.nan || seen.max == std::numeric_limits<double>::infinity()) return find_special(seen);
        if (in_place) RestoreLogits(kept, col, reference);
        origin = static_cast<T>(seen.max);
        reference = 0.0;
        result.kind = Reference::kLogit;
        if (task.spread) {
          const double columns = static_cast<double>(col - (target >= 0 && target < col));
          const Wide moved = Multiply(
              Subtract({seen.max * F::kSpreadScale, 0.0}, {result.pivot * F::kSpreadScale, 0.0}), {columns, 0.0});
          earlier_spread = AddOrOverflow(spread.Total(), moved);
          spread = {};
        }
        result.pivot = seen.max;
        sum = {};
        if (col > 0) SumBlock(logits, col, target, reference, true, origin, Destination<T>{kept, nullptr}, sum);
        continue;
      }
    }
    if (task.spread && result.kind == Reference::kExponent) {
      const In *const source = save ? reinterpret_cast<const In *>(saved) : logits + col;
      SpreadBlock(source, count, target - col, result.pivot, spread);
    }
    col += count;
  }
  result.reference = result.kind == Reference::kLogit ? static_cast<double>(origin) : reference;
  result.sum = sum.Total();
  if (task.spread) result.spread = AddOrOverflow(earlier_spread, spread.Total());
  *out = result;
}

template <class In>
void ExpSum(const ExpSumTask &task, ChunkSum *out) {
  if (task.meanwhile == nullptr) return ExpSumBeside<In>(task, nullptr, out);
  Scaler<In> scaler(*task.meanwhile);
  ExpSumBeside(task, &scaler, out);
  scaler.AdvanceTo(task.meanwhile->cols);
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
