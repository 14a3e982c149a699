// The kernel of small_rows.h: the sums of kTile rows, all that is known of the rows, their gradients. The
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

// ---- sums and gradients of kTile rows ----

// Per row: its reference exponent, and what its exponentials are multiplied by, two powers of two, which keep the third
// factor in range, and that factor.
struct RowScales {
  HWY_ALIGN double reference[kTile];
  HWY_ALIGN float first[kTile], second[kTile], scale[kTile];
  HWY_ALIGN float target[kTile];  // the gradient at the target
};

// A row with an exponential of this size and more relative to the target's is left to ExpSum, which might raise the
// reference there.
inline constexpr double kSmallSumLimit = 0x1p18;

// Fills `out` and, where a gradient is wanted, the factors in `scales`. `sums` are those of the columns but the target,
// relative to the references.
HWY_NOINLINE void FinishSmallRows(const SmallRowsTask &task, const double *target_logits, const double *sums,
                                  SmallRows *out, RowScales *scales) {
  using F = Format<float>;
  const hn::CappedTag<double, kTile> d;
  const hn::Rebind<float, decltype(d)> df;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto zero = hn::Zero(d);
  for (int64_t i = 0; i < task.count; i += lanes) {
    const auto z = hn::Load(d, target_logits + i);
    const auto reference = hn::Load(d, scales->reference + i);
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
    hn::StoreU(hn::DemoteTo(df, PowersOfTwo(d, half)), df, scales->first + i);
    hn::StoreU(hn::DemoteTo(df, PowersOfTwo(d, hn::Sub(prescale, half))), df, scales->second + i);
    hn::StoreU(hn::DemoteTo(df, hn::Mul(mantissa, PowersOfTwo(d, hn::Sub(exponent, prescale)))), df, scales->scale + i);
    // As ScaledRatio: p_t - 1 is -(the others' sum) / total.
    const auto share = hn::Mul(hn::Div(o, total), hn::Neg(g));
    const auto target = hn::Mul(share, PowersOfTwo(d, hn::Add(hn::Sub(o_ref, total_ref), g_exponent)));
    StoreRounded(d, hn::IfThenZeroElse(alone, target), scales->target + i);
  }
}

template <class In>
void RunSmallRows(const SmallRowsTask &task, SmallRows *out) {
  using F = Format<float>;
  const int64_t cols = task.cols;
  RowScales scales;
  HWY_ALIGN double target_logits[kTile];
  HWY_ALIGN double sums[kTile];
  HWY_ALIGN float saved[kBlock];  // a row's logits, in place
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
  uint32_t done = 0;
  for (int64_t i = 0; i < kTile; ++i) scales.reference[i] = RoundedLog2(target_logits[i]);
  for (int64_t i = 0; i < task.count; ++i) {
    sums[i] = 0.0;
    if ((usable >> i & 1) == 0) continue;
    const In *const z = logits + i * task.logits_stride;
    BlockTask<In> block{.logits = z, .cols = cols, .target = task.targets[i], .reference = scales.reference[i]};
    if constexpr (sizeof(In) == sizeof(float)) {
      if (task.gradient != nullptr) block.kept = static_cast<In *>(task.gradient) + i * task.gradient_stride;
      if (block.kept == z) block.saved = saved;
    }
    LaneSums<float> lanes;
    SumBlock(block, lanes);
    bool in_range = true;
    for (const double lane : lanes.lanes) in_range = in_range && lane <= kSmallSumLimit * PowerOfTwo(F::kBias);
    done |= static_cast<uint32_t>(in_range) << i;
    if (in_range) {
      sums[i] = lanes.Total().hi;
    } else if (block.saved != nullptr) {
      std::memcpy(block.kept, saved, static_cast<size_t>(cols) * sizeof(float));
      block.kept[task.targets[i]] = static_cast<float>(target_logits[i]);  // -infinity was saved there
    }
  }
  for (int64_t i = task.count; i < kTile; ++i) sums[i] = 0.0;
  done &= usable;
  out->done = done;
  FinishSmallRows(task, target_logits, sums, out, &scales);
  if (task.gradient == nullptr) return;
  for (int64_t i = 0; i < task.count; ++i) {
    if ((done >> i & 1) == 0) continue;
    if constexpr (sizeof(In) == sizeof(float)) {  // gradients of longer rows of half precision are never wanted
      In *const gradient = static_cast<In *>(task.gradient) + i * task.gradient_stride;
      const int64_t prescale = ExponentOf(scales.first[i]) + ExponentOf(scales.second[i]);
      const AffineMap map{scales.scale[i], 0.0, PowerOfTwo(F::kMinExponent), 0};
      Scaler<In>({gradient, gradient, cols, map, static_cast<int>(prescale), false}).AdvanceTo(cols);
      gradient[task.targets[i]] = scales.target[i];
    }
  }
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
