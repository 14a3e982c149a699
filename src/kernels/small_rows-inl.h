// The kernel of small_rows.h: ranges for kTile rows, their sums, all that is known of the rows, their gradients. The
// double functions are those of numbers/wide.h and row_sum.cc, operation by operation, on vectors;
// tests/kernels/small_rows_test.cc compares the bits.
#if defined(XENT_SRC_KERNELS_SMALL_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_SMALL_ROWS_INL_H_
#undef XENT_SRC_KERNELS_SMALL_ROWS_INL_H_
#else
#define XENT_SRC_KERNELS_SMALL_ROWS_INL_H_
#endif

#include <cstring>
#include <iterator>
#include <limits>

#include "hwy/highway.h"
#include "kernels/exp_sum-inl.h"
#include "kernels/scale-inl.h"
#include "kernels/small_rows.h"
#include "kernels/step-inl.h"
#include "numbers/exp-inl.h"
#include "numbers/pairs-inl.h"
#include "numbers/wide.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// ---- wide.h and row_sum.cc on vectors ----

// Brings *x to [1, 2) and adds to *exponent what that took; 0 stays 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void NormaliseEach(D d, V *x, V *exponent) {
  const V e = hn::IfThenZeroElse(hn::Eq(*x, hn::Zero(d)), ExponentsOf(d, *x));
  *x = hn::Mul(*x, PowersOfTwo(d, hn::Neg(e)));
  *exponent = hn::Add(*exponent, e);
}
// Returns Exp's mantissa, its exponent in *k.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpOfEach(D d, V x, V *k) {
  *k = RoundToInteger(d, hn::Mul(x, hn::Set(d, kLog2E_F64_Hi)));
  const V r = hn::Sub(x, hn::Mul(*k, hn::Set(d, kLn2_F64_Hi)));
  V p = hn::Set(d, kInverseFactorial[kExpTerms<double> - 1]);
  HWY_UNROLL(16)
  for (int i = kExpTerms<double> - 2; i >= 3; --i) p = hn::Add(hn::Mul(p, r), hn::Set(d, kInverseFactorial[i]));
  const V square = hn::Mul(r, r);
  const V head = hn::Add(hn::Add(hn::Set(d, 1.0), r), hn::Mul(square, hn::Set(d, 0.5)));
  return hn::Add(head, hn::Mul(hn::Mul(r, square), p));
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V LogNearOneOfEach(D d, V r) {
  const V s = hn::Div(r, hn::Add(hn::Set(d, 2.0), r));
  const V w = hn::Mul(s, s);
  constexpr int kTerms = std::size(kLogF64);
  V p = hn::Set(d, kLogF64[kTerms - 1]);
  HWY_UNROLL(16)
  for (int i = kTerms - 2; i >= 0; --i) p = hn::Add(hn::Mul(p, w), hn::Set(d, kLogF64[i]));
  return hn::Add(hn::Mul(s, hn::Set(d, 2.0)), hn::Mul(hn::Mul(s, w), p));
}
// Returns Log1p of r >= 0, with kIsLog Log of r in [1, 2) instead.
template <bool kIsLog, class D, class V = hn::Vec<D>>
HWY_INLINE V LogOfEach(D d, V r) {
  const V one = hn::Set(d, 1.0);
  const V x = kIsLog ? r : hn::Add(one, r);
  const V floor = kIsLog ? hn::Zero(d) : ExponentsOf(d, x);
  const V mantissa = kIsLog ? x : hn::Mul(x, PowersOfTwo(d, hn::Neg(floor)));
  const auto above = hn::Gt(mantissa, hn::Set(d, 0x1.6a09e667f3bcdp+0));
  const V k = hn::Add(floor, hn::IfThenElseZero(above, one));
  V rest = hn::Sub(hn::Mul(x, PowersOfTwo(d, hn::Neg(k))), one);
  auto alone = hn::Eq(k, hn::Zero(d));  // k ln 2 is not added
  if constexpr (!kIsLog) {
    const auto near_one = hn::Le(r, hn::Set(d, 0.41421356237309503));
    rest = hn::IfThenElse(near_one, r, rest);
    alone = hn::Or(alone, near_one);
  }
  const V log_rest = LogNearOneOfEach(d, rest);
  const V log = hn::IfThenElse(alone, log_rest, hn::Add(hn::Mul(k, hn::Set(d, kLn2_F64_Hi)), log_rest));
  return kIsLog ? log : hn::IfThenElse(hn::Lt(r, hn::Set(d, 0x1p-64)), r, log);
}

// Stores doubles as float32, rounded as RoundTo rounds; there is no NaN among them.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreRounded(D d, V x, float *to) {
  const hn::Rebind<float, D> df;
  hn::StoreU(hn::DemoteTo(df, ZeroBelowNormal<float>(d, x)), df, to);
}

// ---- ranges, sums and gradients of kTile rows ----

// Per lane, that is per row: the reference exponent, and lo, hi and origin of its ExpRange. Once the exponentials are
// summed, these three make room for the factors that the exponentials are multiplied by: two powers of two, which keep
// the third factor in range, and that factor.
struct LaneRanges {
  HWY_ALIGN double reference[kTile];
  union {
    HWY_ALIGN float lo[kTile];
    float first[kTile];
  };
  union {
    HWY_ALIGN float hi[kTile];
    float second[kTile];
  };
  union {
    HWY_ALIGN float origin[kTile];
    float scale[kTile];
  };
  HWY_ALIGN float target[kTile];  // the gradient at the target
};

// Makes each row's range, its reference being RoundedLog2 of the target's logit.
HWY_INLINE void FindRanges(const double *target_logits, LaneRanges *ranges) {
  using F = ExpFormat<float>;
  const hn::CappedTag<double, kTile> d;
  const hn::Rebind<float, decltype(d)> df;
  const auto ln2 = hn::Set(d, kLn2_F64_Hi);
  for (int64_t i = 0; i < kTile; i += static_cast<int64_t>(hn::Lanes(d))) {
    const auto z = hn::Load(d, target_logits + i);
    const auto reference = RoundToInteger(d, hn::Mul(z, hn::Set(d, kLog2E_F64_Hi)));
    const auto field = hn::Sub(reference, hn::Set(d, static_cast<double>(Format<float>::kBias + F::kExponentBias)));
    const auto top = hn::Add(field, hn::Set(d, 2.0 * F::kExponentBias + 1.0));
    const auto none = hn::Sub(reference, hn::Set(d, static_cast<double>(Format<float>::kBias)));
    const auto lo = ExpRange<float>::kScalef ? hn::Set(d, -0x1p21) : hn::Mul(field, ln2);
    const auto origin = hn::Sub(hn::Set(d, F::kRound), ExpRange<float>::kScalef ? none : field);
    hn::Store(reference, d, ranges->reference + i);
    hn::StoreU(hn::DemoteTo(df, lo), df, ranges->lo + i);
    hn::StoreU(hn::DemoteTo(df, hn::Mul(top, ln2)), df, ranges->hi + i);
    hn::StoreU(hn::DemoteTo(df, origin), df, ranges->origin + i);
  }
}

// Lanes [first, first + Lanes(d)) of the ranges, for use as an ExpRange.
struct LaneRange : NaturalScale<float> {
  LaneRange(const LaneRanges &given, int64_t first_lane) : ranges(given), first(first_lane) {}

  static constexpr bool kScalef = ExpRange<float>::kScalef;
  const LaneRanges &ranges;
  int64_t first;

  template <class D>
  HWY_INLINE hn::Vec<D> Lo(D d) const {
    return hn::Load(d, ranges.lo + first);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Hi(D d) const {
    return hn::Load(d, ranges.hi + first);
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Origin(D d) const {
    return hn::Load(d, ranges.origin + first);
  }
};

// A row with an exponential of this size and more relative to the target's is left to ExpSum, which might raise the
// reference there.
inline constexpr double kSmallSumLimit = 0x1p18;

// Fills `out` and, where a gradient is wanted, the factors in `ranges`. `sums` are those of the columns but the target,
// relative to the ranges' references.
HWY_NOINLINE void FinishSmallRows(const SmallRowsTask &task, const double *target_logits, const double *sums,
                                  SmallRows *out, LaneRanges *ranges) {
  using F = Format<float>;
  const hn::CappedTag<double, kTile> d;
  const hn::Rebind<float, decltype(d)> df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto zero = hn::Zero(d);
  for (int64_t i = 0; i < task.count; i += lanes) {
    const auto z = hn::Load(d, target_logits + i);
    const auto reference = hn::Load(d, ranges->reference + i);
    auto t_ref = zero;
    auto t = ExpOfEach(d, z, &t_ref);
    NormaliseEach(d, &t, &t_ref);
    auto o = hn::Load(d, sums + i);
    auto o_ref = hn::Sub(reference, hn::Set(d, static_cast<double>(F::kBias)));
    NormaliseEach(d, &o, &o_ref);
    const auto alone = hn::Eq(o, zero);
    hn::StoreU(o, d, out->others + i);
    hn::StoreU(o_ref, d, out->others_reference + i);
    hn::StoreU(t, d, out->target + i);
    hn::StoreU(t_ref, d, out->target_reference + i);

    const auto ratio = hn::Mul(hn::Div(o, t), PowersOfTwo(d, hn::Sub(o_ref, t_ref)));
    const auto nll = hn::IfThenZeroElse(alone, LogOfEach<false>(d, ratio));
    hn::StoreU(nll, d, out->nll + i);
    StoreRounded(d, nll, out->loss + i);
    if (task.gradient == nullptr && !task.wants_lse) continue;

    const auto t_above = hn::Gt(t_ref, o_ref);
    auto total_ref = hn::IfThenElse(t_above, t_ref, o_ref);
    const auto below = hn::Sub(hn::IfThenElse(t_above, o_ref, t_ref), total_ref);
    const auto low = hn::Mul(hn::IfThenElse(t_above, o, t), PowersOfTwo(d, below));
    auto total = hn::Add(hn::IfThenElse(t_above, t, o), low);
    NormaliseEach(d, &total, &total_ref);
    total = hn::IfThenElse(alone, t, total);
    total_ref = hn::IfThenElse(alone, t_ref, total_ref);
    if (task.wants_lse) {
      const auto lse = hn::Add(hn::Mul(total_ref, hn::Set(d, kLn2_F64_Hi)), LogOfEach<true>(d, total));
      StoreRounded(d, hn::IfThenElse(alone, z, lse), out->lse + i);
    }
    if (task.gradient == nullptr) continue;
    const auto g = hn::Set(d, task.g.mantissa);
    const auto g_exponent = hn::Set(d, static_cast<double>(task.g.exponent));
    // As FactorOf and GradientFromExponentials of row_sum.cc.
    const auto product = hn::Mul(hn::Div(hn::Set(d, 1.0), total), g);
    const auto e = ExponentsOf(d, product);
    const auto mantissa = hn::PromoteTo(d, hn::DemoteTo(df, hn::Mul(product, PowersOfTwo(d, hn::Neg(e)))));
    const auto exponent = hn::Sub(hn::Add(hn::Add(hn::Sub(reference, total_ref), e), g_exponent),
                                  hn::Set(d, static_cast<double>(F::kBias)));
    const auto prescale = hn::Min(zero, hn::Sub(exponent, hn::Set(d, static_cast<double>(F::kSafeExponent))));
    const auto half = hn::Trunc(hn::Mul(prescale, hn::Set(d, 0.5)));
    hn::StoreU(hn::DemoteTo(df, PowersOfTwo(d, half)), df, ranges->first + i);
    hn::StoreU(hn::DemoteTo(df, PowersOfTwo(d, hn::Sub(prescale, half))), df, ranges->second + i);
    hn::StoreU(hn::DemoteTo(df, hn::Mul(mantissa, PowersOfTwo(d, hn::Sub(exponent, prescale)))), df, ranges->scale + i);
    // As ScaledRatio: p_t - 1 is -(the others' sum) / total.
    const auto share = hn::Mul(hn::Div(o, total), hn::Neg(g));
    const auto target = hn::Mul(share, PowersOfTwo(d, hn::Add(hn::Sub(o_ref, total_ref), g_exponent)));
    StoreRounded(d, hn::IfThenZeroElse(alone, target), ranges->target + i);
  }
}

// Replaces the logits of a tile, column by column kTile rows, by their exponentials and sums these without the target's
// column, where the tile has -infinity. A row of which a lane leaves the range, or is NaN, gets 0 in `good`, others 1.
HWY_NOINLINE void SumColumns(float *tile, int64_t cols, const LaneRanges &ranges, double *sums, float *good) {
  const hn::CappedTag<float, kTile> d;
  const hn::RepartitionToWide<decltype(d)> dd;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t doubles = static_cast<int64_t>(hn::Lanes(dd));
  const auto limit = hn::Set(d, static_cast<float>(kSmallSumLimit * PowerOfTwo(Format<float>::kBias)));
  // Each row's lanes as ExpSum adds them, the upper half already added to the lower.
  HWY_ALIGN double halves[8 * kTile];
  for (int64_t part = 0; part < kTile; part += lanes) {
    const LaneRange range(ranges, part);
    for (int64_t j = 0; j < cols; j += 4) {
      float *const z = tile + j * kTile + part;
      auto e0 = hn::Load(d, z), e1 = hn::Load(d, z + kTile);
      auto e2 = hn::Load(d, z + 2 * kTile), e3 = hn::Load(d, z + 3 * kTile);
      ExpFour(d, range, e0, e1, e2, e3);
      hn::Store(e0, d, z);
      hn::Store(e1, d, z + kTile);
      hn::Store(e2, d, z + 2 * kTile);
      hn::Store(e3, d, z + 3 * kTile);
    }
    auto in_range = hn::Set(d, 1.0f);
    const int64_t pairs = HWY_MIN(cols, int64_t{8});
    for (int64_t l = 0; l < pairs; ++l) {
      // Lanes l and l + 8 of ExpSum: columns l and l + 8, past 16 columns also l + 16 and l + 24.
      const float *const e = tile + l * kTile + part;
      auto v = hn::Load(d, e);
      if (l + 16 < cols) v = hn::Add(v, hn::Load(d, e + 16 * kTile));
      in_range = hn::IfThenElseZero(hn::Le(v, limit), in_range);
      auto lower = hn::PromoteLowerTo(dd, v), upper = hn::PromoteUpperTo(dd, v);
      if (l + 8 < cols) {
        auto w = hn::Load(d, e + 8 * kTile);
        if (l + 24 < cols) w = hn::Add(w, hn::Load(d, e + 24 * kTile));
        in_range = hn::IfThenElseZero(hn::Le(w, limit), in_range);
        lower = hn::Add(lower, hn::PromoteLowerTo(dd, w));
        upper = hn::Add(upper, hn::PromoteUpperTo(dd, w));
      }
      hn::Store(lower, dd, halves + l * kTile + part);
      hn::Store(upper, dd, halves + l * kTile + part + doubles);
    }
    hn::Store(in_range, d, good + part);
    for (int64_t l = pairs; l < 8; ++l) {
      hn::Store(hn::Zero(dd), dd, halves + l * kTile + part);
      hn::Store(hn::Zero(dd), dd, halves + l * kTile + part + doubles);
    }
  }
  for (int64_t i = 0; i < kTile; i += doubles) {
    const auto s = [&](int64_t l) { return hn::Load(dd, halves + l * kTile + i); };
    const auto even = hn::Add(hn::Add(s(0), s(4)), hn::Add(s(2), s(6)));
    const auto odd = hn::Add(hn::Add(s(1), s(5)), hn::Add(s(3), s(7)));
    hn::Store(hn::Add(even, odd), dd, sums + i);
  }
}

// Scales a tile's exponentials and writes the gradients of the rows that are done.
template <class In>
HWY_NOINLINE void ScaleColumns(const SmallRowsTask &task, const LaneRanges &scales, uint32_t done, float *tile) {
  const hn::CappedTag<float, kTile> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto threshold = hn::Set(d, static_cast<float>(PowerOfTwo(Format<float>::kMinExponent)));
  for (int64_t part = 0; part < kTile; part += lanes) {
    const auto first = hn::Load(d, scales.first + part);
    const auto second = hn::Load(d, scales.second + part);
    const auto scale = hn::Load(d, scales.scale + part);
    for (int64_t j = 0; j < task.cols; ++j) {
      float *const e = tile + j * kTile + part;
      const auto v = hn::Mul(hn::Mul(hn::Mul(hn::Load(d, e), first), second), scale);
      hn::Store(hn::IfThenElseZero(hn::Gt(hn::Abs(v), threshold), v), d, e);
    }
  }
  for (int64_t i = 0; i < task.count; ++i) {
    if ((done >> i & 1) == 0) continue;
    In *const gradient = static_cast<In *>(task.gradient) + i * task.gradient_stride;
    for (int64_t j = 0; j < task.cols; ++j) gradient[j] = Narrow<In>(tile[j * kTile + i]);
    gradient[task.targets[i]] = Narrow<In>(scales.target[i]);
  }
}

template <class In>
void RunSmallRows(const SmallRowsTask &task, SmallRows *out) {
  using F = Format<float>;
  const int64_t cols = task.cols;
  LaneRanges ranges;
  HWY_ALIGN double target_logits[kTile];
  HWY_ALIGN double sums[kTile];
  HWY_ALIGN float good[kTile];
  HWY_ALIGN float memory[kBlock];  // up to kMaxTransposedCols columns the tile, else a row's logits, saved in place
  const In *const logits = static_cast<const In *>(task.logits);
  uint32_t usable = 0;
  for (int64_t i = 0; i < task.count; ++i) {
    double z = 0.0;
    if (HWY_LIKELY(task.live >> i & 1)) {
      z = static_cast<double>(Widen(logits[i * task.logits_stride + task.targets[i]]));
      const bool in_range = hwy::ScalarAbs(z) <= F::kLimit;
      usable |= static_cast<uint32_t>(in_range) << i;
      z = in_range ? z : 0.0;
    }
    target_logits[i] = z;
  }
  for (int64_t i = task.count; i < kTile; ++i) target_logits[i] = 0.0;
  FindRanges(target_logits, &ranges);
  uint32_t done = 0;
  if (cols <= kMaxTransposedCols) {
    const int64_t padded = (cols + 3) / 4 * 4;
    const hn::CappedTag<float, kTile> d;
    const auto absent = hn::Set(d, -std::numeric_limits<float>::infinity());
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t k = task.count < kTile ? 0 : cols * kTile; k < padded * kTile; k += lanes) {
      hn::Store(absent, d, memory + k);
    }
    for (int64_t i = 0; i < task.count; ++i) {
      const In *const z = logits + i * task.logits_stride;
      if (HWY_LIKELY(task.live >> i & 1)) {
        for (int64_t j = 0; j < cols; ++j) memory[j * kTile + i] = Widen(z[j]);
      } else {
        for (int64_t j = 0; j < cols; ++j) memory[j * kTile + i] = 0.0f;
      }
      memory[task.targets[i] * kTile + i] = -std::numeric_limits<float>::infinity();
    }
    SumColumns(memory, cols, ranges, sums, good);
    for (int64_t i = 0; i < task.count; ++i) done |= static_cast<uint32_t>(good[i] != 0.0f) << i;
  } else {
    for (int64_t i = 0; i < task.count; ++i) {
      sums[i] = 0.0;
      if ((usable >> i & 1) == 0) continue;
      const In *const z = logits + i * task.logits_stride;
      BlockTask<In> block{.logits = z, .cols = cols, .target = task.targets[i], .reference = ranges.reference[i]};
      if constexpr (sizeof(In) == sizeof(float)) {
        if (task.gradient != nullptr) block.kept = static_cast<In *>(task.gradient) + i * task.gradient_stride;
        if (block.kept == z) block.saved = memory;
      }
      LaneSums<float> lanes;
      SumBlock(block, lanes);
      bool in_range = true;
      for (const double lane : lanes.lanes) in_range = in_range && lane <= kSmallSumLimit * PowerOfTwo(F::kBias);
      done |= static_cast<uint32_t>(in_range) << i;
      if (in_range) {
        sums[i] = lanes.Total().hi;
      } else if (block.saved != nullptr) {
        std::memcpy(block.kept, memory, static_cast<size_t>(cols) * sizeof(float));
        block.kept[task.targets[i]] = static_cast<float>(target_logits[i]);  // -infinity was saved there
      }
    }
    for (int64_t i = task.count; i < kTile; ++i) sums[i] = 0.0;
  }
  done &= usable;
  out->done = done;
  FinishSmallRows(task, target_logits, sums, out, &ranges);
  if (task.gradient == nullptr) return;
  if (cols <= kMaxTransposedCols) return ScaleColumns<In>(task, ranges, done, memory);
  for (int64_t i = 0; i < task.count; ++i) {
    if ((done >> i & 1) == 0) continue;
    if constexpr (sizeof(In) == sizeof(float)) {  // gradients of longer rows of half precision are never wanted
      In *const gradient = static_cast<In *>(task.gradient) + i * task.gradient_stride;
      const int64_t prescale = ExponentOf(ranges.first[i]) + ExponentOf(ranges.second[i]);
      const AffineMap map{ranges.scale[i], 0.0, PowerOfTwo(F::kMinExponent), 0};
      Scaler<In>({gradient, gradient, cols, map, static_cast<int>(prescale), false}).AdvanceTo(cols);
      gradient[task.targets[i]] = ranges.target[i];
    }
  }
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
