// The kernel of across.h for any option, step by step over the vectors of a tile: sums, what is one a row, outputs. A
// row of more columns than a block has is summed block after block: where a later one holds a larger logit, the sums so
// far are brought to it by exact powers of two.
#if defined(XENT_SRC_KERNELS_ACROSS_STEPS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_ACROSS_STEPS_INL_H_
#undef XENT_SRC_KERNELS_ACROSS_STEPS_INL_H_
#else
#define XENT_SRC_KERNELS_ACROSS_STEPS_INL_H_
#endif

#include <algorithm>
#include <limits>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/tile-inl.h"
#include "numbers/functions-inl.h"
#include "numbers/log-inl.h"
#include "numbers/pairs-inl.h"
#include "numbers/softcap-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// ---- sums ----

// A block of the tile, or, where no exponentials are kept, what a part of one needs beside its values.
union TileScratch {
  HWY_ALIGN float block[kBlockCols * kTile];
  struct {
    HWY_ALIGN float values[kPartCols * kTile];
    HWY_ALIGN float slopes[kPartCols * kTile];
    HWY_ALIGN float label_gradient[kPartCols * kTile];
  } part;
};

struct TileSums {
  explicit TileSums(TileRanges *of) : ranges(*of) {}

  TileRanges &ranges;
  HWY_ALIGN float sum[kTile], sum_low[kTile];  // times 2^kBias, in two parts
  HWY_ALIGN double entropy[kTile];             // likewise
  HWY_ALIGN int32_t count[kTile];              // of columns at the maximum
  HWY_ALIGN double q[kTile], q_spread[kTile];  // of w q, and of w q (m' - z')
  HWY_ALIGN double spread[kTile];              // of w (m' - z') over the columns but the target
  HWY_ALIGN int32_t order[kTile];              // of the largest logit, for argmax
  uint32_t bad = 0;                            // rows that something has ruled out

  // What the first block does not set.
  void Clear(const AcrossTask &task) {
    if (task.argmax) std::fill(order, order + kTile, std::numeric_limits<int32_t>::min());
    for (double *const sums : {q, q_spread, spread}) {
      if (task.weighted) std::fill(sums, sums + kTile, 0.0);
    }
  }
};

// What becomes of a block's exponentials beside being summed.
enum class Kept { kNo, kYes, kMarked };  // marked: negative in the columns of the maximum

// Sums the exponentials of a vector of rows, whose first column is at `block`, but those at the maximum, which are
// counted: four columns in float32, and these sums in two parts. Adds to two vectors for the entropy.
template <bool kEntropy, Kept kKept>
HWY_INLINE void SumColumns(float *block, int64_t cols, const TileRange &range, Floats max, Floats *out_sum,
                           Floats *out_low, Floats *out_count, [[maybe_unused]] Halves *entropy_lower,
                           [[maybe_unused]] Halves *entropy_upper) {
  const TileTag d;
  const Floats one = hn::Set(d, 1.0f), zero = hn::Zero(d);
  Floats count = zero;
  const auto sum_some = [&](float *z, auto columns) HWY_ATTR XENT_INLINE_LAMBDA {
    constexpr int kCols = columns;
    Floats z0 = hn::Load(d, z), z1 = kCols > 1 ? hn::Load(d, z + kTile) : z0;
    Floats z2 = kCols > 2 ? hn::Load(d, z + 2 * kTile) : z0, z3 = kCols > 3 ? hn::Load(d, z + 3 * kTile) : z1;
    const auto at0 = hn::Eq(z0, max), at1 = hn::Eq(z1, max), at2 = hn::Eq(z2, max), at3 = hn::Eq(z3, max);
    const auto add = [&](Floats a, Floats b, Floats c, Floats e) HWY_ATTR XENT_INLINE_LAMBDA {
      if constexpr (kCols == 1) return a;
      if constexpr (kCols == 2) return hn::Add(a, b);
      if constexpr (kCols == 3) return hn::Add(hn::Add(a, b), c);
      return hn::Add(hn::Add(a, b), hn::Add(c, e));
    };
    count = hn::Add(count, add(hn::IfThenElseZero(at0, one), hn::IfThenElseZero(at1, one), hn::IfThenElseZero(at2, one),
                               hn::IfThenElseZero(at3, one)));
    Floats d0 = z0, d1 = z1, d2 = z2, d3 = z3;
    ExpFour(d, range, z0, z1, z2, z3);
    const auto keep = [&](Floats e, auto at, float *to) HWY_ATTR XENT_INLINE_LAMBDA {
      if constexpr (kKept == Kept::kMarked) e = hn::IfThenElse(at, hn::Neg(e), e);
      if constexpr (kKept != Kept::kNo) hn::Store(e, d, to);
    };
    keep(z0, at0, z);
    if constexpr (kCols > 1) keep(z1, at1, z + kTile);
    if constexpr (kCols > 2) keep(z2, at2, z + 2 * kTile);
    if constexpr (kCols > 3) keep(z3, at3, z + 3 * kTile);
    z0 = hn::IfThenZeroElse(at0, z0);
    z1 = hn::IfThenZeroElse(at1, z1);
    z2 = hn::IfThenZeroElse(at2, z2);
    z3 = hn::IfThenZeroElse(at3, z3);
    if constexpr (kEntropy) {
      const auto term = [&](Floats x, Floats logit) HWY_ATTR XENT_INLINE_LAMBDA {
        return hn::IfThenElseZero(hn::Ne(x, zero), hn::Mul(x, hn::Sub(max, logit)));
      };
      const Floats terms = add(term(z0, d0), term(z1, d1), term(z2, d2), term(z3, d3));
      const HalfTag dd;
      *entropy_lower = hn::Add(*entropy_lower, hn::PromoteLowerTo(dd, terms));
      *entropy_upper = hn::Add(*entropy_upper, hn::PromoteUpperTo(dd, terms));
    }
    return add(z0, z1, z2, z3);
  };
  const auto sum_rest = [&](int64_t j) HWY_ATTR XENT_INLINE_LAMBDA {
    float *const rest = block + j * kTile;
    return cols - j == 1   ? sum_some(rest, std::integral_constant<int, 1>())
           : cols - j == 2 ? sum_some(rest, std::integral_constant<int, 2>())
                           : sum_some(rest, std::integral_constant<int, 3>());
  };
  Floats sum = zero, low = zero;
  const auto add_exactly = [&](Floats more) HWY_ATTR XENT_INLINE_LAMBDA {
    Floats lost = zero;
    sum = ExactSum(d, sum, more, &lost);
    low = hn::Add(low, lost);
  };
  int64_t j = 0;
  if (cols < 4) {
    sum = sum_rest(0);
  } else {
    sum = sum_some(block, std::integral_constant<int, 4>());
    for (j = 4; j + 4 <= cols; j += 4) add_exactly(sum_some(block + j * kTile, std::integral_constant<int, 4>()));
    if (j < cols) add_exactly(sum_rest(j));
  }
  *out_sum = sum;
  *out_low = low;
  *out_count = count;
}

// Sums lanes [i, i + lanes) of a block, and adds what the blocks before have come to.
template <bool kEntropy, Kept kKept>
HWY_INLINE void SumLanes(float *block, int64_t cols, bool first, int64_t i, TileSums *sums) {
  const TileTag d;
  const TileInts di;
  const HalfTag dd;
  const Floats max = hn::Load(d, sums->ranges.max + i);
  Floats sum = max, low = max, count = max;
  Halves entropy_lower = hn::Zero(dd), entropy_upper = entropy_lower;
  SumColumns<kEntropy, kKept>(block + i, cols, {sums->ranges, i}, max, &sum, &low, &count, &entropy_lower,
                              &entropy_upper);
  auto counts = hn::ConvertTo(di, count);
  if (!first) {
    Floats lost = max;
    low = hn::Add(low, hn::Load(d, sums->sum_low + i));
    sum = ExactSum(d, sum, hn::Load(d, sums->sum + i), &lost);
    low = hn::Add(low, lost);
    counts = hn::Add(counts, hn::Load(di, sums->count + i));
  }
  hn::Store(sum, d, sums->sum + i);
  hn::Store(low, d, sums->sum_low + i);
  hn::Store(counts, di, sums->count + i);
  if constexpr (kEntropy) {
    double *const entropy = sums->entropy + i;
    if (first) std::fill(entropy, entropy + TileLanes(), 0.0);
    hn::Store(hn::Add(hn::Load(dd, entropy), entropy_lower), dd, entropy);
    hn::Store(hn::Add(hn::Load(dd, entropy + HalfLanes()), entropy_upper), dd, entropy + HalfLanes());
  }
}

template <bool kEntropy, Kept kKept>
HWY_NOINLINE void SumTile(float *block, int64_t cols, bool first, TileSums *sums) {
  for (int64_t i = 0; i < EndOf(sums->ranges.count); i += TileLanes())
    SumLanes<kEntropy, kKept>(block, cols, first, i, sums);
}

// w_c as the lanes compute with it.
HWY_INLINE float ClassWeight(const AcrossTask &task, int64_t col) {
  return task.class_weights == nullptr ? 1.0f : task.class_weights[col];
}

// Brings the sums of lanes [i, i + lanes) to new maxima, `first` columns being summed. Lanes whose maximum so far was
// beyond 2^20, or -inf, are bad: their sums are not relative to it.
inline HWY_NOINLINE void RaiseMaxima(const AcrossTask &task, Floats max, int64_t first, int64_t i, TileSums *sums) {
  const TileTag d;
  const HalfTag dd;
  TileRanges &ranges = sums->ranges;
  const Floats limit = hn::Set(d, task.scale.limit);
  sums->bad |= BitsOf(d, hn::Not(hn::Le(hn::Abs(hn::Load(d, ranges.max + i)), limit))) << i;
  const TileMaxima before = ranges;
  SetRange(max, i, &ranges);
  double weight = static_cast<double>(first);
  if (task.weighted && task.class_weights != nullptr) {
    weight = 0.0;
    for (int64_t j = 0; j < first; ++j) weight += static_cast<double>(task.class_weights[j]);
  }
  const Halves bias = hn::Set(dd, PowerOfTwo(Format<float>::kBias));
  const auto raised = [&](int64_t at, Halves *raise) HWY_ATTR {
    *raise = hn::Sub(LoadHalf(ranges.max + at), LoadHalf(before.max + at));
    return hn::Gt(*raise, hn::Zero(dd));
  };
  const auto new_sum = [&](int64_t at) HWY_ATTR {
    const Halves sum = hn::Add(LoadHalf(sums->sum + at), LoadHalf(sums->sum_low + at));
    const Halves count = hn::PromoteTo(dd, hn::LoadU(hn::Rebind<int32_t, HalfTag>(), sums->count + at));
    const Halves down = hn::Sub(LoadHalf(before.reference + at), LoadHalf(ranges.reference + at));
    const Halves power = PowersOfTwo(dd, hn::Max(down, hn::Set(dd, -1000.0)));
    const Halves total = hn::MulAdd(count, hn::Mul(before.ExpOfMaximum(at), bias), sum);
    Halves raise = hn::Zero(dd);
    const auto is_raised = raised(at, &raise);
    if (task.entropy) {
      const Halves entropy = hn::Load(dd, sums->entropy + at);
      const Halves more = hn::Mul(hn::MulAdd(total, raise, entropy), power);
      hn::Store(hn::IfThenElse(is_raised, more, entropy), dd, sums->entropy + at);
    }
    return hn::IfThenElse(is_raised, hn::Mul(total, power), sum);
  };
  const Halves lower = new_sum(i), upper = new_sum(i + HalfLanes());
  Floats sum = max, sum_low = max;
  SplitDoubles(lower, upper, &sum, &sum_low);
  hn::Store(sum, d, sums->sum + i);
  hn::Store(sum_low, d, sums->sum_low + i);
  const TileInts di;
  const auto is_raised = hn::RebindMask(di, hn::Gt(max, hn::Load(d, before.max + i)));
  hn::Store(hn::IfThenZeroElse(is_raised, hn::Load(di, sums->count + i)), di, sums->count + i);
  for (int64_t k = 0; task.weighted && k < TileLanes(); k += HalfLanes()) {
    HWY_ALIGN double weights[kTile];
    for (int64_t l = 0; l < HalfLanes(); ++l) {
      const int64_t target = task.has_targets ? task.targets[i + k + l] : -1;
      const bool has = target >= 0 && target < first;
      weights[l] = has ? weight - static_cast<double>(ClassWeight(task, target)) : weight;
    }
    Halves raise = hn::Zero(dd);
    const auto rises = raised(i + k, &raise);
    const Halves step = hn::IfThenElseZero(rises, raise);
    double *const spread = sums->spread + i + k, *const q_spread = sums->q_spread + i + k;
    hn::Store(hn::MulAdd(hn::Load(dd, weights), step, hn::Load(dd, spread)), dd, spread);
    hn::Store(hn::MulAdd(hn::Load(dd, sums->q + i + k), step, hn::Load(dd, q_spread)), dd, q_spread);
  }
}

// Updates argmax by a block of logits. They are compared as integers, which tell subnormal ones apart.
inline HWY_NOINLINE void UpdateArgmax(const float *block, int64_t first, int64_t cols, TileSums *sums,
                                      int32_t *argmax) {
  const TileInts d;
  for (int64_t i = 0; i < EndOf(sums->ranges.count); i += TileLanes()) {
    auto best = hn::Load(d, sums->order + i), place = hn::Load(d, argmax + i);
    for (int64_t j = 0; j < cols; ++j) {
      const auto bits = hn::BitCast(d, hn::Load(TileTag(), block + j * kTile + i));
      const auto sign = hn::BroadcastSignBit(bits), magnitude = hn::And(bits, hn::Set(d, 0x7fffffff));
      const auto order = hn::Sub(hn::Xor(magnitude, sign), sign);
      const auto above = hn::Gt(order, best);
      best = hn::IfThenElse(above, order, best);
      place = hn::IfThenElse(above, hn::Set(d, static_cast<int32_t>(first + j)), place);
    }
    hn::Store(best, d, sums->order + i);
    hn::Store(place, d, argmax + i);
  }
}

// Softcap of a block in place, rounded to float32, and sech^2 where it is wanted. Returns the lanes that have NaN or
// +inf.
inline HWY_NOINLINE uint32_t CapTile(const Transform &transform, float *block, int64_t cols, float *slopes) {
  const TileTag d;
  uint32_t bad = 0;
  for (int64_t i = 0; i < kTile; i += TileLanes()) {
    auto good = hn::Eq(hn::Zero(d), hn::Zero(d));
    for (int64_t j = 0; j < cols; ++j)
      good = hn::And(good, hn::Lt(hn::Load(d, block + j * kTile + i), hn::Set(d, -kNone)));
    bad |= BitsOf(d, hn::Not(good)) << i;
  }
#if HWY_NATIVE_FMA
  const FloatSoftCap cap(transform.scale, transform.cap);
  slopes != nullptr ? cap.Transform<true>(block, cols * kTile, block, slopes)
                    : cap.Transform<false>(block, cols * kTile, block, block);
#else
  const HalfTag dd;
  const hn::Rebind<float, HalfTag> df;
  const SoftCap<float> cap(transform.scale, transform.cap, transform.scale);
  for (int64_t k = 0; k < cols * kTile; k += HalfLanes()) {
    Halves slope = hn::Zero(dd);
    const Halves z = LoadHalf(block + k);
    hn::StoreU(hn::DemoteTo(df, cap.Value(dd, z, slopes != nullptr ? &slope : nullptr)), df, block + k);
    if (slopes == nullptr) continue;
    hn::StoreU(hn::DemoteTo(df, hn::Div(slope, hn::Set(dd, transform.scale))), df, slopes + k);
  }
#endif
  return bad;
}

// Stages labels of columns [first, first + cols).
HWY_INLINE void StageLabels(const AcrossTask &task, int64_t first, int64_t cols, float *labels) {
  StageAnyTile(task.probs_dtype, task.probs, task, first, cols, labels);
}

// Adds the label sums of a block of values, floats a part, four, at a time. Lanes with a q of less than 2^-100, whose
// products might vanish, are bad, and under smoothing those with a negative one, whose sum and the others' might cancel
// where the labels themselves are positive.
inline HWY_NOINLINE void SumLabels(const AcrossTask &task, const float *block, int64_t first, int64_t cols,
                                   float *labels, TileSums *sums) {
  const TileTag d;
  const TileInts di;
  const hn::RebindToUnsigned<TileTag> du;
  const HalfTag dd;
  const Floats zero = hn::Zero(d);
  const bool spreads = task.share != 0.0, probs = task.probs.data != nullptr;
  for (int64_t part = 0; part < cols; part += kPartCols) {
    const int64_t end = HWY_MIN(cols, part + kPartCols);
    if (probs) StageLabels(task, first + part, end - part, labels);
    for (int64_t i = 0; i < EndOf(task.count); i += TileLanes()) {
      const Floats max = hn::Load(d, sums->ranges.max + i);
      const auto target = task.has_targets ? hn::LoadU(di, task.targets + i) : hn::Set(di, -1);
      double *const q_sum = sums->q + i;
      Halves q_lower = hn::Load(dd, q_sum), q_upper = hn::Load(dd, q_sum + HalfLanes());
      // Two sums each, which take turns, so that a product is rounded twice more, not three times: climbs found 4.1 ULP
      // of a loss otherwise.
      Floats spread = zero, spread_odd = zero, q_spread = zero, q_spread_odd = zero;
      auto tiny = hn::Lt(zero, zero);
      for (int64_t j = part; j < end; ++j) {
        const float w = ClassWeight(task, first + j);
        if (w == 0.0f && !probs) continue;
        const Floats weight = hn::Set(d, w);
        const Floats difference = hn::Sub(max, hn::Load(d, block + j * kTile + i));
        if (spreads && w != 0.0f) {
          const auto own = hn::RebindMask(d, hn::Eq(target, hn::Set(di, static_cast<int32_t>(first + j))));
          const Floats sum = hn::Add(spread_odd, hn::IfThenZeroElse(own, hn::Mul(weight, difference)));
          spread_odd = spread;
          spread = sum;
        }
        if (!probs) continue;
        const Floats q = hn::Load(d, labels + (j - part) * kTile + i);
        const auto magnitude = hn::Add(hn::BitCast(du, q), hn::BitCast(du, q));
        tiny = hn::Or(tiny, hn::RebindMask(d, hn::Lt(hn::Sub(magnitude, hn::Set(du, 1u)), hn::Set(du, 27u << 24))));
        if (spreads) tiny = hn::Or(tiny, hn::Lt(q, zero));
        const Halves wide = hn::Set(dd, static_cast<double>(w));
        q_lower = hn::MulAdd(hn::PromoteLowerTo(dd, q), wide, q_lower);
        q_upper = hn::MulAdd(hn::PromoteUpperTo(dd, q), wide, q_upper);
        const Floats term = hn::Mul(hn::Mul(q, weight), difference);
        if (w == 0.0f) continue;
        const Floats sum = hn::Add(q_spread_odd, hn::IfThenZeroElse(hn::Eq(q, zero), term));
        q_spread_odd = q_spread;
        q_spread = sum;
      }
      if (spreads) AddFloats(hn::Add(spread, spread_odd), sums->spread + i);
      if (!probs) continue;
      AddFloats(hn::Add(q_spread, q_spread_odd), sums->q_spread + i);
      hn::Store(q_lower, dd, q_sum);
      hn::Store(q_upper, dd, q_sum + HalfLanes());
      sums->bad |= BitsOf(d, tiny) << i;
    }
  }
}

// Returns the values z'_t of the targets of lanes [i, i + lanes) from a block that holds all columns. Where these are
// few they are compared with: a gather waits until what was stored a moment ago has left for the cache.
HWY_INLINE Floats TargetsOf(const AcrossTask &task, const float *block, int64_t i) {
  constexpr int64_t kFewCols = 6;
  const TileTag d;
  const TileInts di;
  const auto target = hn::LoadU(di, task.targets + i);
  if (task.cols > kFewCols) {
    const auto place = hn::Add(hn::ShiftLeft<4>(target), hn::Iota(di, static_cast<int32_t>(i)));
    return hn::GatherIndex(d, block, place);
  }
  Floats value = hn::Load(d, block + i);
  for (int64_t j = 1; j < task.cols; ++j) {
    const auto own = hn::RebindMask(d, hn::Eq(target, hn::Set(di, static_cast<int32_t>(j))));
    value = hn::IfThenElse(own, hn::Load(d, block + j * kTile + i), value);
  }
  return value;
}
static_assert(kTile == 16);

// Reads the values z'_t of the targets from memory.
template <class In>
HWY_INLINE void ReadTargetValues(const AcrossTask &task, float *values) {
  const In *const logits = static_cast<const In *>(task.logits.data);
  for (int64_t i = 0; i < kTile; ++i) {
    const bool live = (task.live >> i & 1) != 0;
    values[i] = live ? Widen(logits[i * task.logits.row + task.targets[i] * task.logits.col]) : 0.0f;
  }
  if (task.transform.cap > 0.0) CapTile(task.transform, values, 1, nullptr);
}

template <class In>
HWY_INLINE void StageLogits(const AcrossTask &task, int64_t first, int64_t cols, float *block) {
  StageTile<In>(task.logits, task, first, cols, block);
}

// The same where their sums are made, and asks for the lines of rows that an output will be stored to.
template <class In>
HWY_INLINE void StageForSums(const AcrossTask &task, int64_t first, int64_t cols, float *block) {
  StageLogits<In>(task, first, cols, block);
  if (task.out.data == nullptr || task.out.data == task.logits.data || task.positions) return;
  PrefetchRows<1>(static_cast<const In *>(task.out.data), task.out.row, cols, 0);
}

// Whether the exponentials of the sums wait in the block for the output.
HWY_INLINE bool KeepsExponentials(const AcrossTask &task) {
  const bool makes = task.output == TileOutput::kGradient || task.output == TileOutput::kSoftmax;
  return makes && task.sums && task.cols <= kBlockCols && task.transform.cap == 0.0 &&
         task.label_gradient.data == nullptr;
}

#if HWY_NATIVE_FMA

// ---- what a vector of rows comes to, in float32 and in two parts, the lower one what the higher has lost ----

// Returns others times 2^kBias of rows whose exponentials come to `sum`, those at the maximum to e each.
HWY_INLINE Floats OthersOf(Floats e, Floats e_low, Floats sum, Floats sum_low, Floats *low) {
  const Floats inverse = hn::Div(hn::Set(TileTag(), 1.0f), e);
  const Floats q = hn::Mul(sum, inverse);
  const Floats rest = hn::NegMulAdd(q, e_low, hn::NegMulAdd(q, e, sum));
  *low = hn::Mul(hn::Add(rest, sum_low), inverse);
  return q;
}
// Returns u = 1 + others, of `count` columns at the maximum.
HWY_INLINE Floats OnePlusOthers(Floats q, Floats q_low, Floats count, Floats *low) {
  const Floats small = hn::Set(TileTag(), static_cast<float>(PowerOfTwo(-Format<float>::kBias)));
  const Floats part = hn::Mul(q, small), u = hn::Add(count, part);
  const Floats lost = hn::Sub(hn::Min(count, part), hn::Sub(u, hn::Max(count, part)));
  *low = hn::MulAdd(q_low, small, lost);
  return u;
}
// Returns others as doubles.
HWY_INLINE void WidenOthers(Floats q, Floats q_low, Floats count, Halves &lower, Halves &upper) {
  const HalfTag dd;
  const Halves unbias = hn::Set(dd, PowerOfTwo(-Format<float>::kBias));
  const Floats more = hn::Sub(count, hn::Set(TileTag(), 1.0f));
  lower = hn::MulAdd(JoinLower(q, q_low), unbias, hn::PromoteLowerTo(dd, more));
  upper = hn::MulAdd(JoinUpper(q, q_low), unbias, hn::PromoteUpperTo(dd, more));
}
// Whether L is `others` itself, which is below 2^-60.
HWY_INLINE hn::Mask<TileTag> IsAlone(Floats q, Floats count) {
  const TileTag d;
  return hn::And(hn::Lt(q, hn::Set(d, static_cast<float>(PowerOfTwo(Format<float>::kBias - 60)))),
                 hn::Eq(count, hn::Set(d, 1.0f)));
}
// L as doubles.
HWY_INLINE void WidenLog(hn::Mask<TileTag> alone, Floats q, Floats q_low, Floats log, Floats log_low, Halves &lower,
                         Halves &upper) {
  const TileTag d;
  const Halves unbias = hn::Set(HalfTag(), PowerOfTwo(-Format<float>::kBias));
  const Floats bias = hn::Set(d, static_cast<float>(PowerOfTwo(Format<float>::kBias)));
  const Floats high = hn::IfThenElse(alone, q, hn::Mul(log, bias));
  const Floats low = hn::IfThenElse(alone, q_low, hn::Mul(log_low, bias));
  lower = hn::Mul(JoinLower(high, low), unbias);
  upper = hn::Mul(JoinUpper(high, low), unbias);
}
// Returns log u: u = 2^k (1 + f), k ln 2 + log(1 + f) as SumOfLogs has it.
HWY_INLINE Floats LogOfTotal(Floats u, Floats u_low, Floats *low) {
  const TileTag d;
  Floats k = hn::Zero(d);
  const Floats scale = InversePowerOfSplit(d, SplitAtThreeQuarters(d, u, &k));
  const Floats f_hi = hn::MulSub(u, scale, hn::Set(d, 1.0f)), f_lo = hn::Mul(u_low, scale), f = hn::Add(f_hi, f_lo);
  const Floats ln2 = hn::Set(d, kLn2_F32_Hi);
  const Floats head = hn::MulAdd(k, ln2, f_hi), lost = hn::Add(hn::MulSub(k, ln2, head), f_hi);
  // In pairs, and not by Horner's rule: the chain of a tile's finish takes longer than its work.
  const Floats f2 = hn::Mul(f, f), f4 = hn::Mul(f2, f2);
  const auto pair = [&](int j)
                        HWY_ATTR { return hn::MulAdd(hn::Set(d, kLogRestF32[j + 1]), f, hn::Set(d, kLogRestF32[j])); };
  const Floats upper = hn::MulAdd(hn::MulAdd(hn::Set(d, kLogRestF32[8]), f2, pair(6)), f2, pair(4));
  const Floats p = hn::MulAdd(upper, f4, hn::MulAdd(pair(2), f2, pair(0)));
  const Floats tail = hn::MulAdd(f2, p, hn::Add(lost, hn::MulAdd(k, hn::Set(d, kLn2_F32_Lo), f_lo)));
  const Floats log = hn::Add(head, tail);
  *low = hn::Add(hn::Sub(head, log), tail);
  return log;
}
#endif  // HWY_NATIVE_FMA

// Returns others and L of lanes [i, i + lanes), where they are wanted, from their sums.
HWY_INLINE void TotalsOf([[maybe_unused]] const AcrossTask &task, const TileSums &sums, int64_t i, Halves &others_lower,
                         Halves &others_upper, Halves &log_lower, Halves &log_upper) {
#if HWY_NATIVE_FMA
  const TileTag d;
  const Floats count = hn::ConvertTo(d, hn::Load(TileInts(), sums.count + i));
  Floats q_low = count, u_low = count, log_low = count;
  const Floats q = OthersOf(hn::Load(d, sums.ranges.exp_max + i), hn::Load(d, sums.ranges.exp_max_low + i),
                            hn::Load(d, sums.sum + i), hn::Load(d, sums.sum_low + i), &q_low);
  if (task.NeedsState()) WidenOthers(q, q_low, count, others_lower, others_upper);
  if (!task.NeedsLog()) return;
  const Floats u = OnePlusOthers(q, q_low, count, &u_low), log = LogOfTotal(u, u_low, &log_low);
  WidenLog(IsAlone(q, count), q, q_low, log, log_low, log_lower, log_upper);
#else
  const HalfTag dd;
  const Halves unbias = hn::Set(dd, PowerOfTwo(-Format<float>::kBias));
  const auto total = [&](int64_t k, Halves &others, Halves &log) HWY_ATTR {
    const Halves sum = hn::Add(LoadHalf(sums.sum + k), LoadHalf(sums.sum_low + k));
    const Halves count = hn::PromoteTo(dd, hn::LoadU(hn::Rebind<int32_t, HalfTag>(), sums.count + k));
    const Halves q = QuotientForFloat(dd, sum, sums.ranges.ExpOfMaximum(k));
    others = hn::MulAdd(q, unbias, hn::Sub(count, hn::Set(dd, 1.0)));
    log = Log1pForFloat(dd, others);
  };
  total(i, others_lower, log_lower);
  total(i + HalfLanes(), others_upper, log_upper);
#endif
}

// From the totals of the half vector of rows from row i on to what is one a row, in double. Returns the losses, and in
// *bad which rows the label sums are not good for. kPlain: there is no entropy, and y is 0 but at the target; then the
// sums are not needed.
template <bool kPlain>
HWY_INLINE Halves FinishHalf(const AcrossTask &task, [[maybe_unused]] const TileSums *sums, int64_t i, Halves max,
                             Halves target, [[maybe_unused]] Halves others, Halves log_total,
                             [[maybe_unused]] hn::Mask<HalfTag> *bad, AcrossRows *out) {
  const HalfTag d;
  const Halves zero = hn::Zero(d), one = hn::Set(d, 1.0);
  const Halves factor = hn::Set(d, task.transform.Factor());
  if (!kPlain && task.entropy) {
    const Halves e = sums->ranges.ExpOfMaximum(i);
    const Halves unbias = hn::Set(d, PowerOfTwo(-Format<float>::kBias));
    const Halves terms = hn::Mul(hn::Mul(hn::Load(d, sums->entropy + i), unbias), factor);
    StoreOutput(hn::Add(log_total, QuotientForFloat(d, terms, hn::MulAdd(others, e, e))), out->entropy + i);
  }
  Halves weight = one, loss = zero, distance = zero;
  if (task.has_targets) {
    distance = hn::Mul(hn::Sub(max, target), factor);
    loss = hn::Add(distance, log_total);
    if (task.nll) hn::Store(loss, d, out->nll + i);
    if (task.weighted || task.class_weights != nullptr) {
      weight = hn::LoadU(d, task.target_label + i);
      loss = TimesUnlessZero(loss, weight);
    }
  }
  if (!kPlain && task.weighted) {
    const Halves share = hn::Set(d, task.share);
    const auto check = [&](Halves x)
                           HWY_ATTR { *bad = hn::Or(*bad, hn::Not(hn::Lt(hn::Abs(x), hn::Set(d, 0x1p120)))); };
    loss = task.has_targets ? TimesUnlessZero(distance, weight) : zero;
    if (task.has_targets) {
      HWY_ALIGN double others_weight[kTile];
      for (int64_t k = 0; k < HalfLanes(); ++k) {
        const double own = static_cast<double>(ClassWeight(task, task.targets[i + k]));
        others_weight[k] = (task.class_weight_sum.hi - own) + task.class_weight_sum.lo;
      }
      weight = hn::MulAdd(hn::Load(d, others_weight), share, weight);
    } else {
      const Halves q_factor = hn::Set(d, task.probs_factor), q_spread = hn::Load(d, sums->q_spread + i);
      const Halves q_sum = hn::Load(d, sums->q + i);
      check(q_spread);
      check(q_sum);
      loss = TimesUnlessZero(hn::Mul(q_spread, factor), q_factor);
      weight = hn::MulAdd(q_sum, q_factor, hn::Mul(hn::Set(d, task.class_weight_sum.hi), share));
    }
    const Halves spread = hn::Load(d, sums->spread + i);
    check(spread);
    loss = hn::Add(loss, hn::Mul(hn::Mul(spread, factor), share));
    loss = hn::MulAdd(weight, log_total, loss);
  }
  if (task.NeedsState()) hn::Store(weight, d, out->weight + i);
  if (task.z_loss != 0.0) {
    const Halves lse = hn::MulAdd(max, factor, log_total);
    loss = hn::MulAdd(hn::Mul(lse, lse), hn::Set(d, task.z_loss), loss);
  }
  return task.row_weights == nullptr ? loss : TimesUnlessZero(loss, hn::LoadU(d, task.row_weights + i));
}

// From the totals of lanes [i, i + lanes) to losses, log p_t and lse. Returns the rows that the label sums are not good
// for, the first row of the vector being bit 0; *exact has those whose losses add exactly, *loss_sum is added to.
template <bool kPlain>
HWY_INLINE uint32_t FinishLanes(const AcrossTask &task, const TileSums *sums, int64_t i, Floats max, Floats target,
                                Halves others_lower, Halves others_upper, Halves log_lower, Halves log_upper,
                                uint32_t *exact, Halves *loss_sum, AcrossRows *out) {
  const TileTag d;
  const HalfTag dd;
  const Halves max_lower = hn::PromoteLowerTo(dd, max), max_upper = hn::PromoteUpperTo(dd, max);
  uint32_t bad = 0;
  if (task.HasLabels()) {
    auto bad_lower = hn::MaskFalse(dd), bad_upper = bad_lower;
    const Halves lower = FinishHalf<kPlain>(task, sums, i, max_lower, hn::PromoteLowerTo(dd, target), others_lower,
                                            log_lower, &bad_lower, out);
    const Halves upper = FinishHalf<kPlain>(task, sums, i + HalfLanes(), max_upper, hn::PromoteUpperTo(dd, target),
                                            others_upper, log_upper, &bad_upper, out);
    const Floats loss = FinishWithNan(d, RoundDoubles(d, lower, upper));
    hn::Store(loss, d, out->loss + i);
    *loss_sum = hn::Add(*loss_sum, hn::Add(hn::PromoteLowerTo(dd, loss), hn::PromoteUpperTo(dd, loss)));
    const auto between = hn::And(hn::Ge(loss, hn::Set(d, 0x1p-13f)), hn::Le(loss, hn::Set(d, 0x1p12f)));
    *exact |= BitsOf(d, hn::Or(between, hn::Eq(loss, hn::Zero(d)))) << i;
    if (!kPlain && task.weighted) bad = BitsOfHalves(bad_lower, bad_upper);
  }
  if (task.nll) hn::Store(FinishWithNan(d, hn::Neg(LoadDoubles(d, out->nll + i))), d, out->log_probability + i);
  if (task.lse) {
    const Halves factor = hn::Set(dd, task.transform.Factor());
    const Halves lower = hn::MulAdd(max_lower, factor, log_lower), upper = hn::MulAdd(max_upper, factor, log_upper);
    hn::Store(FinishWithNan(d, RoundDoubles(d, lower, upper)), d, out->lse + i);
  }
  return bad;
}

// Bit j: row i + j, by its largest value and the sum of its exponentials, is not made for this.
HWY_INLINE uint32_t BadRows(const AcrossTask &task, Floats max, Floats sum) {
  const TileTag d;
  const Floats limit = hn::Set(d, task.scale.limit);
  const Floats sum_limit = hn::Set(d, static_cast<float>(Format<float>::kSumLimit));
  return BitsOf(d, hn::Not(hn::And(hn::Le(hn::Abs(max), limit), hn::Le(hn::Abs(sum), sum_limit))));
}

// Keeps what a later step or call needs of lanes [i, i + lanes).
HWY_INLINE void KeepState(Floats max, int64_t i, Halves others_lower, Halves others_upper, Halves log_lower,
                          Halves log_upper, AcrossRows *out) {
  const HalfTag d;
  StoreDoubles(TileTag(), max, out->value + i);
  hn::Store(others_lower, d, out->others + i);
  hn::Store(others_upper, d, out->others + i + HalfLanes());
  hn::Store(log_lower, d, out->log_total + i);
  hn::Store(log_upper, d, out->log_total + i + HalfLanes());
}

// From the sums to what is one a row, and which rows the sums are good for.
inline HWY_NOINLINE void FinishTile(const AcrossTask &task, const TileSums &sums, AcrossRows *out) {
  const TileTag d;
  const HalfTag dd;
  uint32_t bad = sums.bad, exact = 0;
  Halves loss_sum = hn::Zero(dd);
  for (int64_t i = 0; i < EndOf(task.count); i += TileLanes()) {
    Halves others_lower = hn::Zero(dd), others_upper = others_lower, log_lower = others_lower, log_upper = others_lower;
    const Floats max = hn::Load(d, sums.ranges.max + i);
    bad |= BadRows(task, max, hn::Load(d, sums.sum + i)) << i;
    TotalsOf(task, sums, i, others_lower, others_upper, log_lower, log_upper);
    if (task.NeedsState()) KeepState(max, i, others_lower, others_upper, log_lower, log_upper, out);
    const Floats target = task.has_targets ? hn::Load(d, sums.ranges.target + i) : max;
    bad |= FinishLanes<false>(task, &sums, i, max, target, others_lower, others_upper, log_lower, log_upper, &exact,
                              &loss_sum, out)
           << i;
  }
  out->adds_exactly = exact == kAllRows;
  out->loss_sum = hn::ReduceSum(dd, loss_sum);
  out->done = task.live & ~bad;
}

// Sums the rows and finishes them. Not inline: the sums are gone when the output is written.
template <class In>
HWY_NOINLINE void SumRows(const AcrossTask &task, float *block, float *labels, TileRanges *ranges, AcrossRows *out) {
  TileSums tile_sums(ranges), *const sums = &tile_sums;
  const TileTag d;
  const bool keeps = KeepsExponentials(task);
  sums->Clear(task);
  for (int64_t first = 0; first < task.cols; first += kBlockCols) {
    const int64_t cols = HWY_MIN(kBlockCols, task.cols - first);
    StageForSums<In>(task, first, cols, block);
    if (task.argmax) UpdateArgmax(block, first, cols, sums, out->argmax);
    if (task.transform.cap > 0.0) sums->bad |= CapTile(task.transform, block, cols, nullptr);
    for (int64_t i = 0; i < EndOf(task.count); i += TileLanes()) {
      if (task.has_targets && cols == task.cols) hn::Store(TargetsOf(task, block, i), d, sums->ranges.target + i);
      const Floats before = first == 0 ? hn::Set(d, kNone) : hn::Load(d, sums->ranges.max + i);
      const Floats max = MaxOfLanes(block + i, cols, before);
      if (first == 0) {
        SetRange(max, i, &sums->ranges);
      } else if (!hn::AllFalse(d, hn::Gt(max, before))) {
        RaiseMaxima(task, max, first, i, sums);
      }
    }
    if (task.weighted) SumLabels(task, block, first, cols, labels, sums);
    const bool starts = first == 0;
    if (task.entropy) {
      keeps ? SumTile<true, Kept::kYes>(block, cols, starts, sums)
            : SumTile<true, Kept::kNo>(block, cols, starts, sums);
    } else if (keeps && task.output == TileOutput::kSoftmax) {
      SumTile<false, Kept::kMarked>(block, cols, starts, sums);
    } else {
      keeps ? SumTile<false, Kept::kYes>(block, cols, starts, sums)
            : SumTile<false, Kept::kNo>(block, cols, starts, sums);
    }
  }
  FinishTile(task, tile_sums, out);
}

// ---- outputs ----

// What exponentials become the output with.
struct TileFactors {
  HWY_ALIGN double p[kTile], y[kTile];  // of exponentials and of labels
  HWY_ALIGN double target[kTile];       // the gradient at the target
  HWY_ALIGN float one[kTile];           // softmax at the row's maximum
};

// Returns softmax's factor of the exponentials of half a vector's rows, and in *one its value at the maximum.
HWY_INLINE Halves SoftmaxFactor(Halves e, Halves others, Halves *one) {
  const HalfTag d;
  // Of everything, relative to the reference.
  const Halves inverse = QuotientForFloat(d, hn::Set(d, 1.0), hn::MulAdd(others, e, e));
  *one = hn::Mul(inverse, e);
  return hn::Mul(inverse, hn::Set(d, PowerOfTwo(-Format<float>::kBias)));
}

// Returns the gradient's factor of the exponentials of the half vector of rows from row i on, and the factor of the
// labels and, where y is 0 elsewhere, the gradient at the target, whose exponential is given. *good has the rows whose
// factors are in range.
HWY_INLINE Halves GradientFactors(const AcrossTask &task, int64_t i, Halves e, Halves max, Halves others,
                                  Halves log_total, Halves weight, Halves target, Halves target_exponential,
                                  Halves *labels, Halves *at_target, hn::Mask<HalfTag> *good) {
  const HalfTag d;
  const Halves zero = hn::Zero(d), one = hn::Set(d, 1.0);
  const Halves inverse = QuotientForFloat(d, one, hn::MulAdd(others, e, e));
  const Halves unbias = hn::Set(d, PowerOfTwo(-Format<float>::kBias));
  const Halves g = hn::Mul(hn::LoadU(d, task.g + i), hn::Set(d, task.transform.scale));  // dz, with a cap times sech^2
  Halves mass = weight;
  if (task.z_loss != 0.0) {
    const Halves lse = hn::MulAdd(max, hn::Set(d, task.transform.Factor()), log_total);
    mass = hn::MulAdd(lse, hn::Set(d, 2.0 * task.z_loss), mass);
  }
  const Halves p = hn::Mul(hn::Mul(g, mass), inverse), biased = hn::Mul(p, unbias);
  *labels = g;
  const auto in_range = [&](Halves x, double least, double most) HWY_ATTR XENT_INLINE_LAMBDA {
    const Halves magnitude = hn::Abs(x);
    const auto between = hn::And(hn::Ge(magnitude, hn::Set(d, least)), hn::Le(magnitude, hn::Set(d, most)));
    return hn::Or(hn::Eq(x, zero), between);
  };
  // sech^2 below the normal range is 0: no factor may bring it back.
  const double most = task.transform.cap > 0.0 ? 1.0 : 0x1p700;
  *good = hn::And(in_range(biased, 0x1p-120, 0x1p120), in_range(g, 0x1p-700, most));
  *good = hn::And(*good, hn::Le(hn::Abs(hn::Mul(g, mass)), hn::Set(d, most)));
  if (!task.has_targets || task.weighted) return biased;
  *at_target = hn::NegMulAdd(weight, g, hn::Mul(biased, target_exponential));
  if (task.z_loss == 0.0) {  // p_t - 1 is -(the others' sum) / total where the target is the largest
    const Halves share = hn::Mul(hn::Mul(others, e), inverse);
    *at_target = hn::IfThenElse(hn::Eq(target, max), hn::Neg(hn::Mul(hn::Mul(weight, g), share)), *at_target);
  }
  return biased;
}

// The exponentials of the targets of lanes [i, i + lanes).
HWY_INLINE Floats ExpOfTargets(const TileRange &range, Floats target) {
  Floats z0 = target, z1 = z0, z2 = z0, z3 = z0;
  ExpFour(TileTag(), range, z0, z1, z2, z3);
  return z0;
}

// Returns the rows whose factors are in range.
inline HWY_NOINLINE uint32_t SetFactors(const AcrossTask &task, const TileRanges &ranges, const AcrossRows &rows,
                                        TileFactors *out) {
  const HalfTag d;
  const TileTag df;
  const bool softmax = task.output == TileOutput::kSoftmax;
  uint32_t ok = 0;
  HWY_ALIGN float exponentials[kTile];  // of the targets
  for (int64_t i = 0; task.has_targets && i < EndOf(task.count); i += TileLanes()) {
    hn::Store(ExpOfTargets({ranges, i}, hn::Load(df, ranges.target + i)), df, exponentials + i);
  }
  for (int64_t i = 0; i < task.count; i += HalfLanes()) {
    const Halves others = hn::Load(d, rows.others + i), e = ranges.ExpOfMaximum(i);
    if (softmax) {
      Halves one = e;
      hn::Store(SoftmaxFactor(e, others, &one), d, out->p + i);
      StoreOutput(one, out->one + i);
      continue;
    }
    Halves target = e, exponential = e, labels = e;
    if (task.has_targets) {
      target = LoadHalf(ranges.target + i);
      exponential = LoadHalf(exponentials + i);
    }
    auto good = hn::MaskFalse(d);
    const Halves p = GradientFactors(task, i, e, LoadHalf(ranges.max + i), others, hn::Load(d, rows.log_total + i),
                                     hn::Load(d, rows.weight + i), target, exponential, &labels, &target, &good);
    hn::Store(p, d, out->p + i);
    hn::Store(labels, d, out->y + i);
    hn::Store(target, d, out->target + i);
    ok |= BitsOf(d, good) << i;
  }
  return softmax ? ~uint32_t{0} : ok;
}

// Columns [first, first + cols) of the exponentials of lanes [i, i + lanes) -> softmax, or the gradient with an index
// target and no labels elsewhere. `special` stands at the maximum, or at the target.
template <bool kSoftmax>
HWY_INLINE void ScaleLanes(const AcrossTask &task, Floats p, Floats special, int64_t first, int64_t cols, int64_t i,
                           float *block) {
  const TileTag d;
  const TileInts di;
  auto col = hn::Zero(di);  // of the target, from the current one on
  if constexpr (!kSoftmax) col = hn::Sub(hn::LoadU(di, task.targets + i), hn::Set(di, static_cast<int32_t>(first)));
  for (int64_t j = 0; j < cols; ++j) {
    float *const at = block + j * kTile + i;
    const Floats e = hn::Load(d, at);
    const Floats v = ZeroBelowNormal<float>(d, hn::Mul(e, p));
    if constexpr (kSoftmax) {
      hn::Store(hn::IfNegativeThenElse(e, special, v), d, at);
    } else {
      const auto own = hn::RebindMask(d, hn::Eq(col, hn::Zero(di)));
      hn::Store(hn::IfThenElse(own, special, v), d, at);
      col = hn::Sub(col, hn::Set(di, 1));
    }
  }
}
template <bool kSoftmax>
HWY_NOINLINE void ScaleTile(const AcrossTask &task, const TileFactors &factors, int64_t first, int64_t cols,
                            float *block) {
  const TileTag d;
  for (int64_t i = 0; i < EndOf(task.count); i += TileLanes()) {
    const Floats special =
        kSoftmax ? hn::Load(d, factors.one + i) : FinishWithNan(d, LoadDoubles(d, factors.target + i));
    ScaleLanes<kSoftmax>(task, LoadDoubles(d, factors.p + i), special, first, cols, i, block);
  }
}

// Returns -((m' - z') + L).
HWY_INLINE Floats LogSoftmaxOf(Floats max, Floats value, Floats log_total) {
  const TileTag d;
  const Floats gap = hn::Add(hn::Sub(max, value), log_total);
  return hn::Sub(hn::Zero(d), ZeroBelowNormal<float>(d, gap));
}
// The same of the values of lanes [i, i + lanes), in place.
HWY_INLINE void LogSoftmaxLanes(Floats max, Floats log_total, int64_t cols, int64_t i, float *block) {
  const TileTag d;
  for (int64_t j = 0; j < cols; ++j) {
    float *const at = block + j * kTile + i;
    hn::Store(LogSoftmaxOf(max, hn::Load(d, at), log_total), d, at);
  }
}
inline HWY_NOINLINE void LogSoftmaxTile(const TileRanges &ranges, const AcrossRows &rows, int64_t cols, float *block) {
  const TileTag d;
  for (int64_t i = 0; i < EndOf(ranges.count); i += TileLanes()) {
    LogSoftmaxLanes(hn::Load(d, ranges.max + i), LoadDoubles(d, rows.log_total + i), cols, i, block);
  }
}

// Exponentials -> gradient of any labels and slopes (may be null), in double, rounded once. At most kPartCols columns.
inline HWY_NOINLINE void CombineTile(const AcrossTask &task, const TileFactors &factors, int64_t first, int64_t cols,
                                     const float *labels, const float *slopes, float *block) {
  const HalfTag dd;
  const hn::Rebind<float, HalfTag> df;
  const hn::Rebind<int32_t, HalfTag> di;
  const bool probs = task.probs.data != nullptr;
  for (int64_t i = 0; i < task.count; i += HalfLanes()) {
    const Halves p = hn::Load(dd, factors.p + i), g = hn::Load(dd, factors.y + i);
    const auto target = hn::LoadU(di, task.targets + i);
    const Halves at_target = !task.has_targets ? g
                             : task.weighted   ? hn::LoadU(dd, task.target_label + i)
                                               : hn::Load(dd, factors.target + i);
    for (int64_t j = 0; j < cols; ++j) {
      float *const at = block + j * kTile + i;
      const Halves e = LoadHalf(at);
      const double w = static_cast<double>(ClassWeight(task, first + j));
      const auto own =
          hn::PromoteMaskTo(dd, df, hn::RebindMask(df, hn::Eq(target, hn::Set(di, static_cast<int32_t>(first + j)))));
      Halves v;
      if (task.weighted) {
        Halves y = hn::Set(dd, w * task.share);
        if (probs) y = hn::MulAdd(LoadHalf(labels + j * kTile + i), hn::Set(dd, w * task.probs_factor), y);
        if (task.has_targets) y = hn::IfThenElse(own, at_target, y);
        v = hn::NegMulAdd(y, g, hn::Mul(e, p));
      } else {
        v = hn::IfThenElse(own, at_target, hn::Mul(e, p));
      }
      if (slopes != nullptr) v = hn::Mul(v, LoadHalf(slopes + j * kTile + i));
      StoreOutput(v, at);
    }
  }
}

// The labels' own gradient, u r w_c (1 - epsilon) (lse - z'_c), from values; 0 where the coefficient is.
inline HWY_NOINLINE void LabelGradientTile(const AcrossTask &task, const TileRanges &ranges, const AcrossRows &rows,
                                           int64_t first, int64_t cols, const float *values, float *block) {
  const HalfTag d;
  for (int64_t i = 0; i < task.count; i += HalfLanes()) {
    const Halves max = LoadHalf(ranges.max + i), log_total = hn::Load(d, rows.log_total + i);
    const Halves g = hn::LoadU(d, task.g + i), factor = hn::Set(d, task.transform.Factor());
    for (int64_t j = 0; j < cols; ++j) {
      const double w = static_cast<double>(ClassWeight(task, first + j)) * task.label_factor;
      const Halves gap = hn::MulAdd(hn::Sub(max, LoadHalf(values + j * kTile + i)), factor, log_total);
      StoreOutput(TimesUnlessZero(gap, hn::Mul(g, hn::Set(d, w))), block + j * kTile + i);
    }
  }
}

// Exponentials in place of a block's values.
template <bool kMarked>
HWY_NOINLINE void ExpTile(float *block, int64_t cols, const TileRanges &ranges) {
  const TileTag d;
  for (int64_t i = 0; i < EndOf(ranges.count); i += TileLanes()) {
    const Floats max = hn::Load(d, ranges.max + i);
    const TileRange range{ranges, i};
    const auto exp_some = [&](float *z, auto columns) HWY_ATTR XENT_INLINE_LAMBDA {
      constexpr int kCols = columns;
      Floats z0 = hn::Load(d, z), z1 = kCols > 1 ? hn::Load(d, z + kTile) : z0;
      Floats z2 = kCols > 2 ? hn::Load(d, z + 2 * kTile) : z0, z3 = kCols > 3 ? hn::Load(d, z + 3 * kTile) : z1;
      const auto at0 = hn::Eq(z0, max), at1 = hn::Eq(z1, max), at2 = hn::Eq(z2, max), at3 = hn::Eq(z3, max);
      ExpFour(d, range, z0, z1, z2, z3);
      const auto keep = [&](Floats e, auto at, float *to) HWY_ATTR XENT_INLINE_LAMBDA {
        hn::Store(kMarked ? hn::IfThenElse(at, hn::Neg(e), e) : e, d, to);
      };
      keep(z0, at0, z);
      if constexpr (kCols > 1) keep(z1, at1, z + kTile);
      if constexpr (kCols > 2) keep(z2, at2, z + 2 * kTile);
      if constexpr (kCols > 3) keep(z3, at3, z + 3 * kTile);
    };
    int64_t j = 0;
    for (; j + 4 <= cols; j += 4) exp_some(block + j * kTile + i, std::integral_constant<int, 4>());
    for (; j < cols; ++j) exp_some(block + j * kTile + i, std::integral_constant<int, 1>());
  }
}

// Writes the output of the rows that are done, and of those that are not live.
template <class In>
HWY_NOINLINE void WriteTile(const AcrossTask &task, TileScratch &scratch, float *labels, const TileRanges &ranges,
                            AcrossRows *rows) {
  TileFactors factors;
  const bool softmax = task.output == TileOutput::kSoftmax, log = task.output == TileOutput::kLogSoftmax;
  uint32_t wanted = ~uint32_t{0};
  if (!log) wanted = SetFactors(task, ranges, *rows, &factors);
  const uint32_t all = (uint32_t{1} << task.count) - 1;
  wanted = (rows->done & wanted) | (all & ~task.live);
  rows->written = wanted & rows->done;
  const bool caps = task.transform.cap > 0.0, kept = KeepsExponentials(task);
  const bool combines = !softmax && !log && (task.weighted || caps || task.label_gradient.data != nullptr);
  const bool resident = kept || (log && task.sums && task.cols <= kBlockCols);
  const int64_t step = combines ? kPartCols : kBlockCols;
  for (int64_t first = 0; first < task.cols; first += step) {
    const int64_t cols = HWY_MIN(step, task.cols - first);
    float *const values = scratch.block + (resident ? first * kTile : 0);
    float *const slopes = caps ? scratch.part.slopes : nullptr;
    float *const label_gradient = scratch.part.label_gradient;
    if (!resident) {
      StageLogits<In>(task, first, cols, values);
      if (caps) CapTile(task.transform, values, cols, slopes);
      if (task.label_gradient.data != nullptr) {
        LabelGradientTile(task, ranges, *rows, first, cols, values, label_gradient);
        UnstageAnyTile(task.probs_dtype, task.label_gradient, task, wanted, first, cols, label_gradient);
      }
      if (task.out.data == nullptr) continue;
      if (!log) softmax ? ExpTile<true>(values, cols, ranges) : ExpTile<false>(values, cols, ranges);
    }
    if (log) {
      LogSoftmaxTile(ranges, *rows, cols, values);
    } else if (softmax) {
      ScaleTile<true>(task, factors, first, cols, values);
    } else if (combines) {
      if (task.probs.data != nullptr) StageLabels(task, first, cols, labels);
      CombineTile(task, factors, first, cols, labels, slopes, values);
    } else {
      ScaleTile<false>(task, factors, first, cols, values);
    }
    UnstageTile<In>(task.out, task, wanted, first, cols, values);
  }
}

template <class In>
HWY_NOINLINE void RunInSteps(const AcrossTask &task, AcrossRows *rows) {
  TileScratch scratch;
  HWY_ALIGN float labels[kPartCols * kTile];
  HWY_ALIGN float targets[kTile];
  TileRanges ranges(task.scale, task.count);
  ranges.target = targets;
  if (task.has_targets && !(task.sums && task.cols <= kBlockCols)) ReadTargetValues<In>(task, ranges.target);
  if (task.sums) {
    SumRows<In>(task, scratch.block, labels, &ranges, rows);
  } else {
    rows->done = task.ready;
    const TileTag d;
    for (int64_t i = 0; i < kTile; i += TileLanes()) SetRange(LoadDoubles(d, rows->value + i), i, &ranges);
  }
  if (task.output != TileOutput::kNone) WriteTile<In>(task, scratch, labels, ranges, rows);
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
