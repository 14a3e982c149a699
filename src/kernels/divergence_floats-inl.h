// Divergences in float32 lanes: what divergence-inl.h computes in double lanes, for float32 and half precision. Both
// layouts go through the same code: kLanes lanes are the next kLanes columns of a row, all of which know the same of
// it, or one column of as many rows. A row that this is not made for goes to the double lanes; its own logits decide.
//
// Per lane, with m the row's maxima and e exponentials relative to them (TileRange of tile-inl.h, 1/T folded into it):
//   S = sum of e_s, of e_u below the maximum, the columns at the maximum being counted,
//   X = sum of e_w ((m_o - z_o) - (m_w - z_w)), w the side that weighs, o the other; cross-entropy: e_u (m_s - s),
//   Jensen-Shannon: sums of e_s log(q/m), e_u log(p/m),
// in trees of 8 that are added in double. The gradient is factor_s e_s - factor_u e_u, or factor_s e_s times a
// difference of logarithms, lifted by 2^32 until it is rounded: no term falls below the normal range that counts.
//
// An exponential is within 1.0115 ULP, a tree of 8 adds 1.5 at most, a difference of differences 1.5 of the larger.
#if defined(XENT_SRC_KERNELS_DIVERGENCE_FLOATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_DIVERGENCE_FLOATS_INL_H_
#undef XENT_SRC_KERNELS_DIVERGENCE_FLOATS_INL_H_
#else
#define XENT_SRC_KERNELS_DIVERGENCE_FLOATS_INL_H_
#endif

#include <algorithm>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/along-inl.h"
#include "kernels/divergence.h"
#include "kernels/tile-inl.h"
#include "numbers/functions-inl.h"
#include "numbers/log-inl.h"

#if HWY_NATIVE_FMA

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// Four vectors of lanes, the least that is computed at once; what is left of a row's columns is padded.
inline constexpr int64_t kHalfStep = 4 * kLanes;
inline constexpr double kLift = 0x1p32;
// Factors between these keep to float32's range, lifted and with the bias of exponentials.
inline constexpr double kLeastFactor = 0x1p-110, kMostFactor = 0x1p30;

// What lanes know of their rows.
struct FloatRows {
  TileRanges ranges[2];
  HWY_ALIGN float pad[2][kLanes];    // a logit whose exponential is 0, and whose differences are numbers
  HWY_ALIGN float shift[2][kLanes];  // the student's maximum less the teacher's, in two parts
  // The gradient's: of exponentials, with what brings these to their biased form; and as in DivergenceRow.
  HWY_ALIGN double factor[2][kLanes], mean[kLanes];
  HWY_ALIGN float log_ratio[kLanes];
  bool has_logs = false;  // the gradient finds log(q/m) in place of the teacher's logits
  DivergenceKind kind;
  double wide_scale;  // 1/T
  float scale, lowest;
  float beta, alpha;  // and 1 - beta

  template <class Task>
  explicit FloatRows(const Task &task)
      : ranges{TileRanges(TileScale(task.Scale()), 0), TileRanges(TileScale(task.Scale()), 0)},
        kind(task.kind),
        wide_scale(task.Scale()),
        scale(static_cast<float>(task.Scale())),
        lowest(static_cast<float>(-0x1p100 / task.Scale())),
        beta(static_cast<float>(task.beta)),
        alpha(static_cast<float>(1.0 - task.beta)) {}
  void SetMaxima(int side, Floats max, int64_t lane) {
    const TileTag d;
    SetRange(max, lane, &ranges[side]);
    hn::Store(hn::Sub(max, hn::Set(d, static_cast<float>(256.0 / static_cast<double>(scale)))), d, pad[side] + lane);
  }
  void SetShift() {
    for (int64_t i = 0; i < kLanes; ++i) {
      const double difference =
          static_cast<double>(ranges[kStudent].max[i]) - static_cast<double>(ranges[kTeacher].max[i]);
      shift[0][i] = static_cast<float>(difference);
      shift[1][i] = static_cast<float>(difference - static_cast<double>(shift[0][i]));
    }
  }
  // The same in all lanes.
  void Set(const DivergenceRow &row) {
    const TileTag d;
    for (int64_t lane = 0; lane < kLanes; lane += TileLanes()) {
      for (int side = 0; side < 2; ++side) SetMaxima(side, hn::Set(d, static_cast<float>(row.max[side])), lane);
      hn::Store(hn::Set(d, static_cast<float>(row.log_ratio)), d, log_ratio + lane);
    }
    SetShift();
    std::fill(mean, mean + kLanes, row.mean.hi);
  }
  // (m_s - s) - (m_u - u) within an ULP, however far below the maxima: u - s with what its rounding loses, and the
  // shift.
  HWY_INLINE Floats Gap(int64_t lane, Floats s, Floats u) const {
    const TileTag d;
    const Floats r = hn::Sub(u, s), t = hn::Sub(r, u);
    const Floats lost = hn::Sub(hn::Sub(u, hn::Sub(r, t)), hn::Add(s, t));
    return hn::Add(hn::Add(r, hn::Load(d, shift[0] + lane)), hn::Add(lost, hn::Load(d, shift[1] + lane)));
  }
  HWY_INLINE Halves WideBelow(int side, int64_t lane, const float *z) const {
    return hn::Sub(LoadHalf(ranges[side].max + lane), LoadHalf(z));
  }
  HWY_INLINE Floats Below(int side, int64_t lane, Floats z) const {
    return hn::Sub(hn::Load(TileTag(), ranges[side].max + lane), z);
  }
};

struct FloatSums {
  TreeSum<1> sides[2], cross;
  HWY_ALIGN double count[2][kLanes] = {};  // of columns at the maximum
};

// Sums `count` floats a side, whole half steps. Without kApart no column is at a maximum. Sums of a reverse KL are
// double, for its gradient: there the mean is taken from logarithms that may be as small as the others' sum. Those of a
// forward KL are double but for pairs: the errors of p and q may oppose each other where the two are nearly equal, and
// with trees of eight a climb found 6.5 ULP of q - p.
template <bool kApart, bool kReverse>
HWY_NOINLINE void SumFloats(const FloatRows &rows, const float *const *z, int64_t count, FloatSums *sums) {
  constexpr int w = kReverse ? kStudent : kTeacher, o = 1 - w;
  const TileTag d;
  const HalfTag dd;
  const Floats own = hn::Set(d, rows.kind == DivergenceKind::kCrossEntropy ? 0.0f : 1.0f);
  const Floats one = hn::Set(d, 1.0f), infinity = hn::Set(d, -kNone);
  const bool pairs = !kReverse && rows.kind != DivergenceKind::kJensenShannon;
  for (int64_t first = 0; first < count; first += kAlongBlock) {
    const int64_t end = HWY_MIN(count - first, kAlongBlock);
    for (int64_t lane = 0; lane < kLanes; lane += TileLanes()) {
      Floats count_w = hn::Zero(d), count_o = count_w, e0, e1, e2, e3;
      for (int64_t at = 0; at < end; at += kHalfStep) {
        const bool upper = at % kStep != 0;
        const int64_t place = at / kStep * kLanes + lane;
        const float *const from_w = z[w] + first + at + lane, *const from_o = z[o] + first + at + lane;
        const auto sum = [&](const TileRanges &ranges, const float *from, TreeSum<1> &to,
                             Floats &counted) HWY_ATTR XENT_INLINE_LAMBDA {
          LoadFour(d, from, kLanes, e0, e1, e2, e3);
          const Floats max = hn::Load(d, ranges.max + lane);
          const auto at0 = hn::Eq(e0, max), at1 = hn::Eq(e1, max), at2 = hn::Eq(e2, max), at3 = hn::Eq(e3, max);
          ExpFour(d, TileRange{ranges, lane}, e0, e1, e2, e3);
          Floats b0 = e0, b1 = e1, b2 = e2, b3 = e3;
          if constexpr (kApart) {
            counted = hn::Add(counted, SumFour(hn::IfThenElseZero(at0, one), hn::IfThenElseZero(at1, one),
                                               hn::IfThenElseZero(at2, one), hn::IfThenElseZero(at3, one)));
            b0 = hn::IfThenZeroElse(at0, e0);
            b1 = hn::IfThenZeroElse(at1, e1);
            b2 = hn::IfThenZeroElse(at2, e2);
            b3 = hn::IfThenZeroElse(at3, e3);
          }
          if constexpr (kReverse) {
            AddFloats(b0, to.sum.lanes + lane);
            AddFloats(b1, to.sum.lanes + lane);
            AddFloats(b2, to.sum.lanes + lane);
            AddFloats(b3, to.sum.lanes + lane);
          } else if (pairs) {
            AddFloats(hn::Add(b0, b1), to.sum.lanes + lane);
            AddFloats(hn::Add(b2, b3), to.sum.lanes + lane);
          } else {
            PutTree(upper, SumFour(b0, b1, b2, b3), to.trees[0] + place);
          }
        };
        sum(rows.ranges[o], from_o, sums->sides[o], count_o);
        sum(rows.ranges[w], from_w, sums->sides[w], count_w);
        if (rows.kind == DivergenceKind::kJensenShannon) continue;
        // Masked where it weighs a column counts for nothing; masked on the other side alone, it makes X no number,
        // even where the exponential is 0.
        if constexpr (kReverse) {
          for (int64_t i = 0; i < TileLanes(); i += HalfLanes()) {
            const auto exact = [&](int64_t k, Floats e, Halves &cross) HWY_ATTR XENT_INLINE_LAMBDA {
              const Halves b = rows.WideBelow(w, lane + i, from_w + k * kLanes + i);
              const Halves a = rows.WideBelow(o, lane + i, from_o + k * kLanes + i);
              const Halves wide = i == 0 ? hn::PromoteLowerTo(dd, e) : hn::PromoteUpperTo(dd, e);
              const auto masked = hn::Eq(b, hn::Set(dd, kInfinity));
              cross = hn::MulAdd(wide, hn::IfThenZeroElse(masked, hn::Sub(a, b)), cross);
            };
            double *const to = sums->cross.sum.lanes + lane + i;
            Halves cross = hn::Load(dd, to);
            exact(0, e0, cross);
            exact(1, e1, cross);
            exact(2, e2, cross);
            exact(3, e3, cross);
            hn::Store(cross, dd, to);
          }
        } else {
          const auto gap = [&](int64_t k) HWY_ATTR XENT_INLINE_LAMBDA {
            const Floats below = rows.Below(w, lane, hn::LoadU(d, from_w + k * kLanes));
            const Floats other = rows.Below(o, lane, hn::LoadU(d, from_o + k * kLanes));
            return hn::IfThenElseZero(hn::Lt(below, infinity), hn::NegMulAdd(below, own, other));
          };
          PutTree(upper, DotFour(e0, e1, e2, e3, gap(0), gap(1), gap(2), gap(3)), sums->cross.trees[0] + place);
        }
      }
      if constexpr (kApart) {
        AddFloats(count_o, sums->count[o] + lane);
        AddFloats(count_w, sums->count[w] + lane);
      }
    }
    if (kReverse) continue;
    const int64_t steps = (end - 1) / kStep + 1;
    if (pairs) {
      sums->cross.Add(steps);
    } else {
      for (TreeSum<1> &side : sums->sides) side.Add(steps);
    }
  }
}

// log p - log q of a vector of both sides, a number in any case: one of a masked column is as good as 2^100.
HWY_INLINE Floats LogRatio(const FloatRows &rows, int64_t lane, const float *student, const float *teacher) {
  const TileTag d;
  const Floats lowest = hn::Set(d, rows.lowest);
  const Floats s = hn::Max(hn::LoadU(d, student), lowest), u = hn::Max(hn::LoadU(d, teacher), lowest);
  return hn::MulSub(rows.Gap(lane, s, u), hn::Set(d, rows.scale), hn::Load(d, rows.log_ratio + lane));
}

// Stores log(q/m) and log(p/m) of four vectors kLanes apart, m = beta p + (1 - beta) q. With x = log p - log q that of
// the larger of p and q is -log(1 - w), w = c (1 - e^-|x|), c being the other's share; that of the other is |x| less.
HWY_INLINE void LogsOverMixture(const FloatRows &rows, int64_t lane, const float *s, const float *u, float *of_q,
                                float *of_p) {
  const TileTag d;
  const Floats x0 = LogRatio(rows, lane, s, u), x1 = LogRatio(rows, lane, s + kLanes, u + kLanes);
  const Floats x2 = LogRatio(rows, lane, s + 2 * kLanes, u + 2 * kLanes);
  const Floats x3 = LogRatio(rows, lane, s + 3 * kLanes, u + 3 * kLanes);
  const Floats one = hn::Set(d, 1.0f), origin = hn::Set(d, static_cast<float>(ExpFormat<float>::kRound + 127.0));
  const auto reduce = [&](Floats x, Floats &m) HWY_ATTR XENT_INLINE_LAMBDA {
    const Floats z = hn::Max(hn::Or(x, hn::SignBit(d)), hn::Set(d, -87.0f)), log2e = hn::Set(d, kLog2E_F32_Hi);
    m = hn::MulAdd(z, log2e, origin);
    return hn::MulAdd(z, hn::Set(d, kLog2E_F32_Lo), hn::MulSub(z, log2e, hn::Sub(m, origin)));
  };
  Floats m0, m1, m2, m3;
  const Floats f0 = reduce(x0, m0), f1 = reduce(x1, m1), f2 = reduce(x2, m2), f3 = reduce(x3, m3);
  Floats a0, a1, a2, a3, p0, p1, p2, p3;
  PolynomialFour<kExp2F32, 1>(f0, f1, f2, f3, a0, a1, a2, a3);
  const auto share = [&](Floats x, float of_negative, float other) HWY_ATTR XENT_INLINE_LAMBDA {
    return hn::IfNegativeThenElse(x, hn::Set(d, of_negative), hn::Set(d, other));
  };
  const auto change = [&](Floats x, Floats f, Floats &m, Floats &a) HWY_ATTR XENT_INLINE_LAMBDA {
    m = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(TileInts(), m)));  // 2^n
    a = hn::Mul(a, f);                                                  // 2^f - 1
    return hn::Mul(share(x, rows.beta, rows.alpha), hn::NegMulAdd(m, a, hn::Sub(one, m)));
  };
  const Floats w0 = change(x0, f0, m0, a0), w1 = change(x1, f1, m1, a1), w2 = change(x2, f2, m2, a2),
               w3 = change(x3, f3, m3, a3);
  PolynomialFour<kMixtureF32>(w0, w1, w2, w3, p0, p1, p2, p3);
  const auto finish = [&](int64_t k, Floats x, Floats w, Floats p, Floats power, Floats a) HWY_ATTR XENT_INLINE_LAMBDA {
    Floats larger = hn::Mul(w, p);
    if (rows.beta != rows.alpha) {  // 1 - w may cancel: its terms are added
      const Floats exponential = hn::MulAdd(power, a, power);
      const Floats sum = hn::MulAdd(exponential, share(x, rows.beta, rows.alpha), share(x, rows.alpha, rows.beta));
      larger = hn::IfThenElse(hn::Gt(w, hn::Set(d, 0.5f)), hn::Neg(LogFunction::Ordinary(d, sum)), larger);
    }
    const Floats smaller = hn::Add(larger, hn::Or(x, hn::SignBit(d)));
    hn::StoreU(hn::IfNegativeThenElse(x, larger, smaller), d, of_q + k * kLanes);
    hn::StoreU(hn::IfNegativeThenElse(x, smaller, larger), d, of_p + k * kLanes);
  };
  finish(0, x0, w0, p0, m0, a0);
  finish(1, x1, w1, p1, m1, a1);
  finish(2, x2, w2, p2, m2, a2);
  finish(3, x3, w3, p3, m3, a3);
}

// Jensen-Shannon's second sums. log(q/m) is left in `logs`, which may be where the teacher's logits are.
HWY_NOINLINE void SumMixture(const FloatRows &rows, const float *const *z, int64_t count, float *logs,
                             FloatSums *sums) {
  const TileTag d;
  HWY_ALIGN float q[kHalfStep], p[kHalfStep];
  for (int64_t first = 0; first < count; first += kAlongBlock) {
    const int64_t end = HWY_MIN(count - first, kAlongBlock);
    for (int64_t lane = 0; lane < kLanes; lane += TileLanes()) {
      for (int64_t at = 0; at < end; at += kHalfStep) {
        const float *const s = z[kStudent] + first + at + lane, *const u = z[kTeacher] + first + at + lane;
        const int64_t place = at / kStep * kLanes + lane;
        LogsOverMixture(rows, lane, s, u, q, p);
        const auto sum = [&](int side, const float *from, const float *with) HWY_ATTR XENT_INLINE_LAMBDA {
          Floats e0, e1, e2, e3, l0, l1, l2, l3;
          LoadFour(d, from, kLanes, e0, e1, e2, e3);
          ExpFour(d, TileRange{rows.ranges[side], lane}, e0, e1, e2, e3);
          LoadFour(d, with, kLanes, l0, l1, l2, l3);
          PutTree(at % kStep != 0, DotFour(e0, e1, e2, e3, l0, l1, l2, l3), sums->sides[side].trees[0] + place);
        };
        sum(kTeacher, u, p);
        sum(kStudent, s, q);
        for (int64_t k = 0; k < kHalfStep; k += kLanes) hn::StoreU(hn::Load(d, q + k), d, logs + first + at + lane + k);
      }
    }
    for (TreeSum<1> &side : sums->sides) side.Add((end - 1) / kStep + 1);
  }
}

// The gradient of `count` floats, which may take the student's place. Jensen-Shannon's may have log(q/m) in place of
// the teacher's logits.
template <DivergenceKind kKind>
HWY_INLINE void GradientOfFloats(const FloatRows &rows, const float *const *z, int64_t count, float *out) {
  const TileTag d;
  const HalfTag dd;
  const Floats down = hn::Set(d, static_cast<float>(1.0 / kLift));
  [[maybe_unused]] HWY_ALIGN float q[kHalfStep], p[kHalfStep];
  for (int64_t lane = 0; lane < kLanes; lane += TileLanes()) {
    const Floats factor = LoadDoubles(d, rows.factor[kStudent] + lane);
    const Floats other = LoadDoubles(d, rows.factor[kTeacher] + lane);
    for (int64_t at = lane; at < count; at += kHalfStep) {
      const float *const s = z[kStudent] + at, *u = z[kTeacher] + at;
      if (kKind == DivergenceKind::kJensenShannon && !rows.has_logs) {
        LogsOverMixture(rows, lane, s, u, q, p);
        u = q;
      }
      Floats e0, e1, e2, e3, x0, x1, x2, x3;
      LoadFour(d, u, kLanes, x0, x1, x2, x3);
      if (kKind == DivergenceKind::kForwardKl) ExpFour(d, TileRange{rows.ranges[kTeacher], lane}, x0, x1, x2, x3);
      LoadFour(d, s, kLanes, e0, e1, e2, e3);
      ExpFour(d, TileRange{rows.ranges[kStudent], lane}, e0, e1, e2, e3);
      // In double: the logarithms may add up to twice the largest.
      const auto half = [&](int64_t k, int64_t i, Halves e, Halves x) HWY_ATTR XENT_INLINE_LAMBDA {
        if constexpr (kKind == DivergenceKind::kReverseKl) {
          const Halves a = rows.WideBelow(kTeacher, lane + i, u + k * kLanes + i);
          const Halves b = rows.WideBelow(kStudent, lane + i, s + k * kLanes + i);
          x = hn::Mul(hn::Sub(a, b), hn::Set(dd, rows.wide_scale));
        }
        x = hn::Sub(x, hn::Load(dd, rows.mean + lane + i));
        return hn::IfThenElseZero(hn::Gt(e, hn::Zero(dd)),
                                  hn::Mul(hn::Mul(e, hn::Load(dd, rows.factor[kStudent] + lane + i)), x));
      };
      const auto finish = [&](int64_t k, Floats e, Floats x) HWY_ATTR XENT_INLINE_LAMBDA {
        Floats v;
        if constexpr (kKind == DivergenceKind::kForwardKl) {  // not fused: 0 where the rows agree
          v = hn::Sub(hn::Mul(e, factor), hn::Mul(x, other));
        } else {
          v = RoundDoubles(d, half(k, 0, hn::PromoteLowerTo(dd, e), hn::PromoteLowerTo(dd, x)),
                           half(k, HalfLanes(), hn::PromoteUpperTo(dd, e), hn::PromoteUpperTo(dd, x)));
        }
        return ZeroBelowNormal<float>(d, hn::Mul(v, down));
      };
      e0 = finish(0, e0, x0);
      e1 = finish(1, e1, x1);
      e2 = finish(2, e2, x2);
      e3 = finish(3, e3, x3);
      StoreFour(d, e0, e1, e2, e3, out + at, kLanes);
    }
  }
}
HWY_NOINLINE void WriteGradient(const FloatRows &rows, const float *const *z, int64_t count, float *out) {
  if (rows.kind == DivergenceKind::kReverseKl) {
    GradientOfFloats<DivergenceKind::kReverseKl>(rows, z, count, out);
  } else if (rows.kind == DivergenceKind::kJensenShannon) {
    GradientOfFloats<DivergenceKind::kJensenShannon>(rows, z, count, out);
  } else {
    GradientOfFloats<DivergenceKind::kForwardKl>(rows, z, count, out);
  }
}

// 2^kBias e^(z - reference) at a row's maximum.
HWY_INLINE Halves ExponentialOfMaximum(const TileRanges &ranges, int64_t lane) {
  return hn::Mul(ranges.ExpOfMaximum(lane), hn::Set(HalfTag(), PowerOfTwo(Format<float>::kBias)));
}

// ---- lanes over the columns of a row ----

void LargestOf(Dtype dtype, const void *logits, int64_t cols, double *max, int64_t *block) {
  Look look;
  DispatchElements(dtype, [&](auto in) XENT_INLINE_LAMBDA {
    using In = decltype(in);
    if constexpr (!std::is_same_v<In, double>) look = FindLargest(static_cast<const In *>(logits), cols);
  });
  *max = static_cast<double>(look.max);
  *block = look.block;
}

// Calls piece(z, first, count, whole) for the next columns, which are padded to a whole number of half steps.
template <class Piece>
HWY_INLINE void ForEachPiece(const DivergenceTask &task, const FloatRows &rows, float (*buffers)[kAlongBlock],
                             const Piece &piece) {
  for (int64_t first = 0; first < task.cols; first += kAlongBlock) {
    const int64_t count = HWY_MIN(kAlongBlock, task.cols - first);
    for (int side = 0; side < 2 && task.ahead[side] != 0; ++side) {
      const int64_t size = task.dtypes[side] == kF32 ? 4 : 2;
      for (int64_t byte = 0; byte < count * size; byte += 64) {
        const uintptr_t address = reinterpret_cast<uintptr_t>(task.logits[side]);
        __builtin_prefetch(reinterpret_cast<const void *>(address + task.ahead[side] + first * size + byte), 0, 2);
      }
    }
    const int64_t whole = (count + kHalfStep - 1) / kHalfStep * kHalfStep;
    const float *z[2];
    for (int side = 0; side < 2; ++side) {
      z[side] = FloatColumns(task.dtypes[side], task.logits[side], first, count, buffers[side]);
      if (count == whole) continue;
      if (z[side] != buffers[side]) std::memcpy(buffers[side], z[side], static_cast<size_t>(count) * sizeof(float));
      for (int64_t i = count; i < whole; ++i) buffers[side][i] = rows.pad[side][0];
      z[side] = buffers[side];
    }
    piece(z, first, count, whole);
  }
}

template <bool kSecondLook>
void SumDivergenceFloats(const DivergenceTask &task, DivergenceSums *out) {
  HWY_ALIGN float buffers[2][kAlongBlock];
  [[maybe_unused]] HWY_ALIGN float logs[kAlongBlock];
  FloatRows rows(task);
  FloatSums sums;
  rows.Set(*task.rows);
  // Whether the block with the row's maximum has columns among these.
  const auto holds = [&](int side, int64_t first, int64_t cols) {
    const double place = task.rows->argmax[side] - static_cast<double>(task.first + first);
    return place > -static_cast<double>(kBlock) && place < static_cast<double>(cols);
  };
  ForEachPiece(task, rows, buffers, [&](const float *const *z, int64_t first, int64_t count, int64_t whole) HWY_ATTR {
    const bool apart = holds(kStudent, first, count) || holds(kTeacher, first, count);
    if constexpr (kSecondLook) {
      SumMixture(rows, z, whole, logs, &sums);
      if (task.keeps_logs) NarrowColumns(kF32, logs, first, count, task.gradient);
    } else {
      const bool reverse = task.kind == DivergenceKind::kReverseKl;
      (reverse ? SumFloats<true, true>
       : apart ? SumFloats<true, false>
               : SumFloats<false, false>)(rows, z, whole, &sums);
    }
  });
  double largest[2];
  for (int side = 0; side < 2; ++side) {
    largest[side] = hn::GetLane(ExponentialOfMaximum(rows.ranges[side], 0));
    LaneSums<float> counts;
    std::memcpy(counts.lanes, sums.count[side], sizeof(counts.lanes));
    const double count = counts.Total().hi - (!kSecondLook && holds(side, 0, task.cols) ? 1.0 : 0.0);
    out->sides[side] = Wide{sums.sides[side].Total() / largest[side] + count};
  }
  const double weighing = largest[task.kind == DivergenceKind::kReverseKl ? kStudent : kTeacher];
  out->cross = Wide{sums.cross.Total() / weighing * task.Scale()};
}

// False: the factors are beyond what float lanes take.
bool DivergenceGradientFloats(const DivergenceTask &given) {
  HWY_ALIGN float buffers[2][kAlongBlock];
  DivergenceTask task = given;
  FloatRows rows(task);
  rows.has_logs = task.keeps_logs;
  if (task.keeps_logs) {
    task.logits[kTeacher] = task.gradient;
    task.dtypes[kTeacher] = kF32;
  }
  rows.Set(*task.rows);
  for (int side = 0; side < 2; ++side) {
    const DivergenceRow &row = *task.rows;
    const double largest = hn::GetLane(ExponentialOfMaximum(rows.ranges[side], 0));
    const double factor = row.factor[side].hi * row.scale[0] * row.scale[1] / largest * kLift;
    if (factor != 0.0 && !(Magnitude(factor) >= kLeastFactor && Magnitude(factor) <= kMostFactor)) return false;
    std::fill(rows.factor[side], rows.factor[side] + kLanes, factor);
  }
  ForEachPiece(task, rows, buffers, [&](const float *const *z, int64_t first, int64_t count, int64_t whole) HWY_ATTR {
    WriteGradient(rows, z, whole, buffers[kStudent]);
    NarrowColumns(task.dtypes[kStudent], buffers[kStudent], first, count, task.gradient,
                  task.stream && !task.keeps_logs);
  });
  return true;
}

// ---- lanes over rows ----

// What a tile's rows are finished with, in double.
struct TileNumbers {
  HWY_ALIGN double share[2][kTile];  // what exponentials are multiplied by to give probabilities
  HWY_ALIGN double mean[kTile], loss[kTile];
};

// From the first sums to the loss; of Jensen-Shannon to what the second ones need. Returns the rows that these are good
// for.
HWY_NOINLINE uint32_t FinishSums(const DivergenceTile &task, const FloatSums &sums, FloatRows *rows, TileNumbers *out) {
  const HalfTag d;
  const bool reverse = task.kind == DivergenceKind::kReverseKl, mixture = task.kind == DivergenceKind::kJensenShannon;
  const Halves zero = hn::Zero(d), one = hn::Set(d, 1.0), scale = hn::Set(d, task.scale);
  uint32_t good = 0;
  for (int64_t i = 0; i < kTile; i += HalfLanes()) {
    Halves most = zero;
    auto ok = hn::Eq(zero, zero);
    const auto finish = [&](int side) HWY_ATTR {
      const Halves largest = ExponentialOfMaximum(rows->ranges[side], i);
      const Halves sum = hn::Load(d, sums.sides[side].sum.lanes + i);
      const Halves others = hn::Add(hn::Div(sum, largest), hn::Sub(hn::Load(d, sums.count[side] + i), one));
      const Halves max = hn::Mul(LoadHalf(rows->ranges[side].max + i), scale);
      ok = hn::And(
          ok, hn::And(hn::Le(hn::Abs(max), hn::Set(d, Format<float>::kLimit)), hn::Lt(others, hn::Set(d, 0x1p60))));
      most = hn::Max(most, others);
      hn::Store(hn::Div(one, hn::MulAdd(others, largest, largest)), d, out->share[side] + i);
      return Log1pForFloat(d, others);
    };
    const Halves s = finish(kStudent), u = finish(kTeacher);
    if (task.cols > 1) ok = hn::And(ok, hn::Ge(most, hn::Set(d, kLeastOthers)));
    const Halves ratio = hn::Sub(u, s);
    const Halves cross = hn::Load(d, sums.cross.sum.lanes + i);
    const Halves mean = hn::Mul(hn::Mul(cross, scale), hn::Load(d, out->share[reverse ? kStudent : kTeacher] + i));
    const Halves rest = reverse ? ratio : task.kind == DivergenceKind::kCrossEntropy ? s : hn::Neg(ratio);
    if (!mixture) ok = hn::And(ok, hn::Lt(hn::Abs(cross), hn::Set(d, Format<float>::kSumLimit)));
    hn::Store(mean, d, out->mean + i);
    hn::Store(hn::Add(mean, rest), d, out->loss + i);
    const hn::Rebind<float, HalfTag> df;
    hn::StoreU(hn::DemoteTo(df, ratio), df, rows->log_ratio + i);
    good |= BitsOf(d, ok) << i;
  }
  return good;
}

HWY_NOINLINE void FinishMixture(const DivergenceTile &task, const FloatSums &sums, TileNumbers *out) {
  const HalfTag d;
  for (int64_t i = 0; i < kTile; i += HalfLanes()) {
    const auto mean = [&](int side) HWY_ATTR {
      return hn::Mul(hn::Load(d, sums.sides[side].sum.lanes + i), hn::Load(d, out->share[side] + i));
    };
    const Halves of_q = mean(kStudent);
    hn::Store(of_q, d, out->mean + i);
    const Halves of_p = hn::Mul(mean(kTeacher), hn::Set(d, task.beta));
    hn::Store(hn::MulAdd(of_q, hn::Set(d, 1.0 - task.beta), of_p), d, out->loss + i);
  }
}

// Writes the losses, and prepares the gradient. Returns the rows whose factors float lanes take.
HWY_NOINLINE uint32_t FinishRows(const DivergenceTile &task, const TileNumbers &numbers, FloatRows *rows,
                                 DivergenceTileRows *out) {
  const HalfTag d;
  const Halves zero = hn::Zero(d);
  uint32_t good = 0;
  for (int64_t i = 0; i < kTile; i += HalfLanes()) {
    const Halves loss = hn::Max(hn::Load(d, numbers.loss + i), zero);  // below 0 by rounding alone
    StoreOutput(TimesUnlessZero(loss, hn::LoadU(d, task.weights + i)), out->loss + i);
    if (task.gradient.data == nullptr) continue;
    auto ok = hn::Eq(zero, zero);
    for (int side = 0; side < 2; ++side) {
      const Halves g = hn::Mul(hn::LoadU(d, task.g + i), hn::Set(d, kLift));
      const Halves factor = hn::Mul(g, hn::Load(d, numbers.share[side] + i));
      const Halves magnitude = hn::Abs(factor);
      const auto in_range =
          hn::And(hn::Ge(magnitude, hn::Set(d, kLeastFactor)), hn::Le(magnitude, hn::Set(d, kMostFactor)));
      ok = hn::And(ok, hn::Or(hn::Eq(factor, zero), in_range));
      hn::Store(factor, d, rows->factor[side] + i);
    }
    hn::Store(hn::Load(d, numbers.mean + i), d, rows->mean + i);
    good |= BitsOf(d, ok) << i;
  }
  return good;
}

// A tile's logits, some columns of both sides, as many as the stack has room for, and the walk over them.
struct TileBlocks {
  static constexpr int64_t kCols = kBlockCols / 2;
  HWY_ALIGN float z[2][kCols * kTile];

  // Calls block(floats, first, cols) for all columns, those past the last padded to whole half steps with what `rows`
  // has for it. Rows of one block are read once.
  template <class Block>
  HWY_INLINE void ForEach(const DivergenceTile &task, const FloatRows *rows, const Block &block) {
    for (int64_t first = 0; first < task.cols; first += kCols) {
      const int64_t cols = HWY_MIN(kCols, task.cols - first), whole = (cols + 3) / 4 * 4;
      for (int side = 0; side < 2; ++side) {
        if (rows == nullptr || task.cols > kCols) {
          StageAnyTile(task.dtypes[side], task.logits[side], task, first, cols, z[side]);
        }
        for (int64_t j = cols; rows != nullptr && j < whole; ++j) {
          std::memcpy(z[side] + j * kTile, rows->pad[side], sizeof(rows->pad[side]));
        }
      }
      block(whole * kTile, first, cols);
    }
  }
};

void RunDivergenceTile(const DivergenceTile &task, DivergenceTileRows *out) {
  const TileTag d;
  TileBlocks blocks;
  const float *const z[2] = {blocks.z[0], blocks.z[1]};
  FloatRows rows(task);
  blocks.ForEach(task, nullptr, [&](int64_t, int64_t first, int64_t cols) HWY_ATTR {
    for (int side = 0; side < 2; ++side) {
      for (int64_t i = 0; i < kTile; i += TileLanes()) {
        const Floats before = first == 0 ? hn::Set(d, kNone) : hn::Load(d, rows.ranges[side].max + i);
        hn::Store(MaxOfLanes(z[side] + i, cols, before), d, rows.ranges[side].max + i);
      }
    }
  });
  for (int64_t i = 0; i < kTile; i += TileLanes()) {
    for (int side = 0; side < 2; ++side) rows.SetMaxima(side, hn::Load(d, rows.ranges[side].max + i), i);
  }
  rows.SetShift();
  TileNumbers numbers;
  {
    FloatSums sums;
    const auto sum = task.kind == DivergenceKind::kReverseKl ? SumFloats<true, true> : SumFloats<true, false>;
    blocks.ForEach(task, &rows, [&](int64_t floats, int64_t, int64_t) HWY_ATTR { sum(rows, z, floats, &sums); });
    out->done = FinishSums(task, sums, &rows, &numbers) & task.live;
  }
  if (task.kind == DivergenceKind::kJensenShannon) {
    FloatSums sums;
    blocks.ForEach(task, &rows, [&](int64_t floats, int64_t, int64_t) HWY_ATTR {
      SumMixture(rows, z, floats, blocks.z[kTeacher], &sums);
    });
    rows.has_logs = task.cols <= TileBlocks::kCols;
    FinishMixture(task, sums, &numbers);
  }
  out->written = FinishRows(task, numbers, &rows, out) & out->done;
  if (task.gradient.data == nullptr) return;
  blocks.ForEach(task, &rows, [&](int64_t floats, int64_t first, int64_t cols) HWY_ATTR {
    WriteGradient(rows, z, floats, blocks.z[kStudent]);
    UnstageAnyTile(task.dtypes[kStudent], task.gradient, task, out->written, first, cols, blocks.z[kStudent]);
  });
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // HWY_NATIVE_FMA
#endif  // include guard
