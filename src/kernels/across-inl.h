// The kernels of across.h.
#if defined(XENT_SRC_KERNELS_ACROSS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_ACROSS_INL_H_
#undef XENT_SRC_KERNELS_ACROSS_INL_H_
#else
#define XENT_SRC_KERNELS_ACROSS_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/across_plain-inl.h"
#include "kernels/across_steps-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

template <class In>
void RunAcross(const AcrossTask &task, AcrossRows *rows) {
  rows->written = 0;
  IsPlain(task) ? RunPlain<In>(task, rows) : RunInSteps<In>(task, rows);
}

// ---- through softmax and log-softmax, back ----

inline constexpr int64_t kHalfCols = kBlockCols / 2;
inline constexpr float kLargestLog = 30.0f;  // logarithms beyond it, which are none of a softmax, are left to doubles

// A block of both matrices, and the rows' sums of g y or g.
struct BackwardBlock {
  HWY_ALIGN float g[kHalfCols * kTile], y[kHalfCols * kTile];
  HWY_ALIGN double sum[kTile] = {};
};

template <bool kLog>
HWY_INLINE void AddToSums(int64_t count, int64_t cols, BackwardBlock *block) {
  const HalfTag d;
  for (int64_t i = 0; i < count; i += HalfLanes()) {
    Halves total = hn::Load(d, block->sum + i);
    for (int64_t j = 0; j < cols; ++j) {
      const Halves term = LoadHalf(block->g + j * kTile + i);
      total = kLog ? hn::Add(total, term) : hn::MulAdd(term, LoadHalf(block->y + j * kTile + i), total);
    }
    hn::Store(total, d, block->sum + i);
  }
}

// The output in place of g, rounded from doubles, in the lanes of `rows` and at logarithms beyond kLargestLog.
template <bool kLog>
HWY_NOINLINE void BackwardInDoubles(int64_t count, uint32_t rows, int64_t cols, BackwardBlock *block) {
  const HalfTag d;
  const hn::Rebind<float, HalfTag> df;
  for (int64_t i = 0; i < count; i += HalfLanes()) {
    const Halves total = hn::Load(d, block->sum + i);
    HWY_ALIGN float in_rows[kTile];
    for (int64_t k = 0; k < HalfLanes(); ++k) in_rows[k] = (rows >> (i + k) & 1) != 0 ? 1.0f : 0.0f;
    const auto of_rows = hn::Ne(hn::LoadU(df, in_rows), hn::Zero(df));
    for (int64_t j = 0; j < cols; ++j) {
      float *const at = block->g + j * kTile + i;
      const auto g = hn::LoadU(df, at), y = hn::LoadU(df, block->y + j * kTile + i);
      const Halves upstream = hn::PromoteTo(d, g), output = hn::PromoteTo(d, y);
      Halves v;
      if constexpr (kLog) {
        // Past where e^y leaves float32 it is infinite, as exp of arrays gives it; NaN stays.
        Halves e = ExpFor<float>(d, hn::Min(output, hn::Set(d, 100.0)), hn::Zero(d));
        e = hn::IfThenElse(hn::Gt(output, hn::Set(d, 89.0)), hn::Set(d, kInfinity), e);
        e = hn::IfThenElse(hn::IsNaN(output), output, e);
        v = hn::NegMulAdd(e, total, upstream);
      } else {
        v = hn::Mul(output, hn::Sub(upstream, total));
      }
      const auto wanted = kLog ? hn::Or(of_rows, hn::Gt(y, hn::Set(df, kLargestLog))) : of_rows;
      hn::StoreU(hn::IfThenElse(wanted, FinishWithNan(df, hn::DemoteTo(df, v)), g), df, at);
    }
  }
}

// The output in place of g. The sums are double, rounded to float32; the rest is float32: 3 units of 2^-24 of the sum
// of the terms' magnitudes, of log-softmax 4. Lanes whose sums leave it no room are doubles.
template <bool kLog>
HWY_INLINE void BackwardInFloats(int64_t count, int64_t cols, BackwardBlock *block) {
  uint32_t wide = 0;
#if HWY_NATIVE_FMA
  const TileTag d;
  const Floats zero = hn::Zero(d), largest = hn::Set(d, kLargestLog);
  const ExpRange<float> range(0.0);
  bool beyond = false;
  for (int64_t i = 0; i < EndOf(count); i += TileLanes()) {
    const Floats total = LoadDoubles(d, block->sum + i), size = hn::Abs(total);
    const HalfTag dd;
    const uint32_t zeros = ZerosOf(hn::Load(dd, block->sum + i), hn::Load(dd, block->sum + i + HalfLanes()));
    const auto in_range = hn::And(hn::Ge(size, hn::Set(d, 0x1p-40f)), hn::Le(size, hn::Set(d, 0x1p40f)));
    const uint32_t left = ~(BitsOf(d, in_range) | zeros) & AllOfVector();
    wide |= left << i;
    if (left == AllOfVector()) continue;
    const auto of_floats = hn::Or(in_range, hn::Eq(total, zero));
    const Floats biased = hn::Mul(total, hn::Set(d, static_cast<float>(PowerOfTwo(-Format<float>::kBias))));
    const auto store = [&](int64_t j, Floats g, Floats v) HWY_ATTR XENT_INLINE_LAMBDA {
      hn::Store(hn::IfThenElse(of_floats, FinishWithNan(d, v), g), d, block->g + j * kTile + i);
    };
    for (int64_t j = 0; !kLog && j < cols; ++j) {
      const Floats g = hn::Load(d, block->g + j * kTile + i);
      store(j, g, hn::Mul(hn::Load(d, block->y + j * kTile + i), hn::Sub(g, total)));
    }
    if constexpr (!kLog) continue;
    for (int64_t j = 0; j < cols; j += 4) {
      const auto load = [&](int64_t k)
                            HWY_ATTR { return hn::Load(d, block->y + HWY_MIN(j + k, cols - 1) * kTile + i); };
      Floats y0 = load(0), y1 = load(1), y2 = load(2), y3 = load(3);
      beyond = beyond || !hn::AllFalse(d, hn::Gt(hn::Max(hn::Max(y0, y1), hn::Max(y2, y3)), largest));
      const auto keep = [&](int64_t k, Floats y, Floats e) HWY_ATTR XENT_INLINE_LAMBDA {
        if (j + k >= cols) return;
        const Floats g = hn::Load(d, block->g + (j + k) * kTile + i);
        const Floats v = FinishWithNan(d, hn::IfThenElse(hn::IsNaN(y), y, hn::NegMulAdd(e, biased, g)));
        const auto wanted = hn::And(of_floats, hn::Not(hn::Gt(y, largest)));
        hn::Store(hn::IfThenElse(wanted, v, g), d, block->g + (j + k) * kTile + i);
      };
      const Floats l0 = y0, l1 = y1, l2 = y2, l3 = y3;
      ExpFour(d, range, y0, y1, y2, y3);
      keep(0, l0, y0);
      keep(1, l1, y1);
      keep(2, l2, y2);
      keep(3, l3, y3);
    }
  }
  if (HWY_LIKELY(wide == 0 && !beyond)) return;
#else
  wide = kAllRows;
#endif
  BackwardInDoubles<kLog>(count, wide, cols, block);
}

// Of more columns than half a block has both matrices are read twice.
template <class In, bool kLog>
HWY_INLINE void RunBackward(const AcrossBackwardTask &task) {
  BackwardBlock block;
  const bool once = task.cols <= kHalfCols;
  const auto stage = [&](int64_t first, int64_t cols, bool y) HWY_ATTR XENT_INLINE_LAMBDA {
    StageTile<In>(task.g, task, first, cols, block.g);
    if (y) StageTile<In>(task.y, task, first, cols, block.y);
  };
  for (int64_t first = 0; first < task.cols; first += kHalfCols) {
    const int64_t cols = HWY_MIN(kHalfCols, task.cols - first);
    stage(first, cols, !kLog || once);
    AddToSums<kLog>(task.count, cols, &block);
  }
  const uint32_t all = (uint32_t{1} << task.count) - 1;
  for (int64_t first = 0; first < task.cols; first += kHalfCols) {
    const int64_t cols = HWY_MIN(kHalfCols, task.cols - first);
    if (!once) stage(first, cols, true);
    BackwardInFloats<kLog>(task.count, cols, &block);
    UnstageTile<In>(task.out, task, all, first, cols, block.g);
  }
}
template <class In>
void BackwardAcross(const AcrossBackwardTask &task) {
  task.log ? RunBackward<In, true>(task) : RunBackward<In, false>(task);
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
