// The kernel of small_rows.h. The double functions here are those of numbers/wide.h and row_sum.cc, operation by
// operation, on vectors; tests/kernels/small_rows_test.cc compares the bits.
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
#include "kernels/load-inl.h"
#include "kernels/scale-inl.h"
#include "kernels/small_rows.h"
#include "numbers/elements.h"
#include "numbers/exp-inl.h"
#include "numbers/wide.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// ExponentOf as a double.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExponentOfEach(D d, V x) {
  const hn::RebindToUnsigned<D> du;
  const auto field = hn::And(hn::ShiftRight<52>(hn::BitCast(du, x)), hn::Set(du, uint64_t{0x7ff}));
  const auto biased = hn::BitCast(d, hn::Or(field, hn::BitCast(du, hn::Set(d, 0x1p52))));
  return hn::Sub(biased, hn::Set(d, 0x1p52 + 1023.0));
}
// PowerOfTwo of integers in [-1022, 1023].
template <class D, class V = hn::Vec<D>>
HWY_INLINE V PowerOfTwoOfEach(D d, V k) {
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(d, hn::ShiftLeft<52>(hn::BitCast(du, hn::Add(k, hn::Set(d, 0x1p52 + 1023.0)))));
}
// *x to [1, 2), *exponent larger by what that took; 0 stays 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void NormaliseEach(D d, V *x, V *exponent) {
  const V e = hn::IfThenZeroElse(hn::Eq(*x, hn::Zero(d)), ExponentOfEach(d, *x));
  *x = hn::Mul(*x, PowerOfTwoOfEach(d, hn::Neg(e)));
  *exponent = hn::Add(*exponent, e);
}
// Exp: the mantissa; its exponent in *k.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpOfEach(D d, V x, V *k) {
  const V round = hn::Set(d, 0x1.8p52);
  *k = hn::Sub(hn::Add(hn::Mul(x, hn::Set(d, kLog2E_F64_Hi)), round), round);
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
// Log1p of r >= 0; kIsLog: Log of r in [1, 2) instead.
template <bool kIsLog, class D, class V = hn::Vec<D>>
HWY_INLINE V LogOfEach(D d, V r) {
  const V one = hn::Set(d, 1.0);
  const V x = kIsLog ? r : hn::Add(one, r);
  const V floor = kIsLog ? hn::Zero(d) : ExponentOfEach(d, x);
  const V mantissa = kIsLog ? x : hn::Mul(x, PowerOfTwoOfEach(d, hn::Neg(floor)));
  const auto above = hn::Gt(mantissa, hn::Set(d, 0x1.6a09e667f3bcdp+0));
  const V k = hn::Add(floor, hn::IfThenElseZero(above, one));
  V rest = hn::Sub(hn::Mul(x, PowerOfTwoOfEach(d, hn::Neg(k))), one);
  auto plain = hn::Eq(k, hn::Zero(d));
  if constexpr (!kIsLog) {
    const auto near_one = hn::Le(r, hn::Set(d, 0.41421356237309503));
    rest = hn::IfThenElse(near_one, r, rest);
    plain = hn::Or(plain, near_one);
  }
  const V log_rest = LogNearOneOfEach(d, rest);
  const V log = hn::IfThenElse(plain, log_rest, hn::Add(hn::Mul(k, hn::Set(d, kLn2_F64_Hi)), log_rest));
  return kIsLog ? log : hn::IfThenElse(hn::Lt(r, hn::Set(d, 0x1p-64)), r, log);
}

// Doubles to float32 as RoundTo does; NaN does not come here.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreRounded(D d, V x, float *to) {
  const hn::Rebind<float, D> df;
  const auto small = hn::Le(hn::Abs(x), hn::Set(d, PowerOfTwo(Format<float>::kMinExponent)));
  hn::StoreU(hn::DemoteTo(df, hn::IfThenZeroElse(small, x)), df, to);
}

// A row's reference exponent and what goes with it, a lane a row.
struct LaneRanges {
  HWY_ALIGN double reference[kTile];
  // An ExpRange's, and when the sums are there what the exponentials are multiplied by: twice by powers of two that
  // keep the last factor in range.
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
  HWY_ALIGN float target[kTile];  // the gradient there
};
// As ExpRange has them, of RoundedLog2 of the targets' logits.
HWY_INLINE void FindRanges(const double *target_logits, LaneRanges *ranges) {
  using F = ExpFormat<float>;
  const hn::CappedTag<double, kTile> d;
  const hn::Rebind<float, decltype(d)> df;
  const auto round = hn::Set(d, 0x1.8p52);
  const auto ln2 = hn::Set(d, kLn2_F64_Hi);
  for (int64_t i = 0; i < kTile; i += static_cast<int64_t>(hn::Lanes(d))) {
    const auto z = hn::Load(d, target_logits + i);
    const auto reference = hn::Sub(hn::Add(hn::Mul(z, hn::Set(d, kLog2E_F64_Hi)), round), round);
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
// The lanes of one vector of them, in the place of an ExpRange.
struct LaneRange {
  using Scalar = ExpRange<float>;
  static constexpr bool kScalef = Scalar::kScalef;
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

// Exponentials as large as this relative to the target's row could have had their reference raised on the other way.
inline constexpr double kSmallSumLimit = 0x1p18;

// From others' sums (relative to the ranges' references) and the targets' logits to all that is known of the rows.
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

    const auto ratio = hn::Mul(hn::Div(o, t), PowerOfTwoOfEach(d, hn::Sub(o_ref, t_ref)));
    const auto nll = hn::IfThenZeroElse(alone, LogOfEach<false>(d, ratio));
    hn::StoreU(nll, d, out->nll + i);
    StoreRounded(d, nll, out->loss + i);
    if (task.gradient == nullptr && !task.wants_lse) continue;

    const auto t_above = hn::Gt(t_ref, o_ref);
    auto total_ref = hn::IfThenElse(t_above, t_ref, o_ref);
    const auto below = hn::Sub(hn::IfThenElse(t_above, o_ref, t_ref), total_ref);
    const auto low = hn::Mul(hn::IfThenElse(t_above, o, t), PowerOfTwoOfEach(d, below));
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
    // FactorOf and GradientFromExponentials.
    const auto product = hn::Mul(hn::Div(hn::Set(d, 1.0), total), g);
    const auto e = ExponentOfEach(d, product);
    const auto mantissa = hn::PromoteTo(d, hn::DemoteTo(df, hn::Mul(product, PowerOfTwoOfEach(d, hn::Neg(e)))));
    const auto exponent = hn::Sub(hn::Add(hn::Add(hn::Sub(reference, total_ref), e), g_exponent),
                                  hn::Set(d, static_cast<double>(F::kBias)));
    const auto prescale = hn::Min(zero, hn::Sub(exponent, hn::Set(d, static_cast<double>(F::kSafeExponent))));
    const auto half = hn::Trunc(hn::Mul(prescale, hn::Set(d, 0.5)));
    hn::StoreU(hn::DemoteTo(df, PowerOfTwoOfEach(d, half)), df, ranges->first + i);
    hn::StoreU(hn::DemoteTo(df, PowerOfTwoOfEach(d, hn::Sub(prescale, half))), df, ranges->second + i);
    hn::StoreU(hn::DemoteTo(df, hn::Mul(mantissa, PowerOfTwoOfEach(d, hn::Sub(exponent, prescale)))), df,
               ranges->scale + i);
    // ScaledRatio: p_t - 1 is -(the others' sum) / total.
    const auto share = hn::Mul(hn::Div(o, total), hn::Neg(g));
    const auto target = hn::Mul(share, PowerOfTwoOfEach(d, hn::Add(hn::Sub(o_ref, total_ref), g_exponent)));
    StoreRounded(d, hn::IfThenZeroElse(alone, target), ranges->target + i);
  }
}

// Exponentials of the tile's columns, column by column kTile rows, in place of the logits; the sums of the others.
// False in `good`: not in range, or NaN.
HWY_NOINLINE void SumColumns(float *tile, int64_t cols, const LaneRanges &ranges, double *sums, float *good) {
  const hn::CappedTag<float, kTile> d;
  const hn::RepartitionToWide<decltype(d)> dd;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t wide = static_cast<int64_t>(hn::Lanes(dd));
  const auto limit = hn::Set(d, static_cast<float>(kSmallSumLimit * PowerOfTwo(Format<float>::kBias)));
  // The lanes of the row kernel, in halves added to halves.
  HWY_ALIGN double halves[8 * kTile];
  for (int64_t part = 0; part < kTile; part += lanes) {
    const LaneRange range{ranges, part};
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
      // Lanes l and l + 8 of the row kernel: each one's group 0 and, past 16 columns, 1.
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
      hn::Store(upper, dd, halves + l * kTile + part + wide);
    }
    hn::Store(in_range, d, good + part);
    for (int64_t l = pairs; l < 8; ++l) {
      hn::Store(hn::Zero(dd), dd, halves + l * kTile + part);
      hn::Store(hn::Zero(dd), dd, halves + l * kTile + part + wide);
    }
  }
  for (int64_t i = 0; i < kTile; i += wide) {
    const auto s = [&](int64_t l) { return hn::Load(dd, halves + l * kTile + i); };
    const auto even = hn::Add(hn::Add(s(0), s(4)), hn::Add(s(2), s(6)));
    const auto odd = hn::Add(hn::Add(s(1), s(5)), hn::Add(s(3), s(7)));
    hn::Store(hn::Add(even, odd), dd, sums + i);
  }
}

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
  HWY_ALIGN float memory[kBlock];  // the tile of few columns, or a row's logits while it is summed in place
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
      Destination<float> to;
      if constexpr (sizeof(In) == sizeof(float)) {
        if (task.gradient != nullptr) to.out = static_cast<In *>(task.gradient) + i * task.gradient_stride;
        if (to.out == z) to.saved = memory;
      }
      WideLanes<float> lanes;
      SumBlock(z, cols, task.targets[i], ranges.reference[i], false, 0.0f, to, lanes);
      bool in_range = true;
      for (const double lane : lanes.lanes) in_range = in_range && lane <= kSmallSumLimit * PowerOfTwo(F::kBias);
      done |= static_cast<uint32_t>(in_range) << i;
      if (in_range) {
        sums[i] = lanes.Total().hi;
      } else if (to.saved != nullptr) {
        std::memcpy(to.out, memory, static_cast<size_t>(cols) * sizeof(float));
        to.out[task.targets[i]] = static_cast<float>(target_logits[i]);  // saved as what stood for it
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
    if constexpr (sizeof(In) == sizeof(float)) {  // longer rows of half precision are not asked for their gradients
      In *const gradient = static_cast<In *>(task.gradient) + i * task.gradient_stride;
      Scaler<In>(gradient, cols, ranges.first[i], ranges.second[i], ranges.scale[i]).AdvanceTo(cols);
      gradient[task.targets[i]] = ranges.target[i];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
