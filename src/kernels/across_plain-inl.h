// The kernel of across.h for short rows without options, all steps at once: a vector of rows, or a row alone along its
// columns. What is one a row is made by the steps' functions, so that the losses have their bits.
#if defined(XENT_SRC_KERNELS_ACROSS_PLAIN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_ACROSS_PLAIN_INL_H_
#undef XENT_SRC_KERNELS_ACROSS_PLAIN_INL_H_
#else
#define XENT_SRC_KERNELS_ACROSS_PLAIN_INL_H_
#endif

#include <type_traits>

#include "hwy/highway.h"
#include "kernels/across_steps-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// g++ 12.2 breaks down over log-softmax in one function on SVE. In steps it has the same bits.
inline constexpr bool kSpareCompiler = HWY_HAVE_SCALABLE != 0;

// Whether PlainTile takes a task: whether a block holds all of a row, and float32 has room for what is made of it.
HWY_INLINE bool IsPlain(const AcrossTask &task) {
  const bool gradient = task.output == TileOutput::kGradient;
  if (kSpareCompiler && task.output == TileOutput::kLogSoftmax) return false;
  // Losses alone, which have the same bits in steps: two vectors side by side take less time there than one after the
  // other.
  if (task.output == TileOutput::kNone && task.has_targets && TileLanes() != kTile && task.count > 1) return false;
  return HWY_NATIVE_FMA && task.cols <= kBlockCols && task.transform.cap == 0.0 && !task.entropy && !task.argmax &&
         task.label_gradient.data == nullptr && !task.weighted &&
         !(gradient && (task.class_weights != nullptr || task.z_loss != 0.0));
}

#if HWY_NATIVE_FMA

// Returns 1 / (e u) of pairs.
HWY_INLINE Floats InverseOfTotal(Floats e, Floats e_low, Floats u, Floats u_low, Floats *low) {
  const Floats total = hn::Mul(e, u);
  const Floats total_low = hn::MulAdd(e_low, u, hn::MulAdd(e, u_low, hn::MulSub(e, u, total)));
  const Floats one = hn::Set(TileTag(), 1.0f), inverse = hn::Div(one, total);
  *low = hn::Mul(hn::NegMulAdd(total_low, inverse, hn::NegMulAdd(total, inverse, one)), inverse);
  return inverse;
}

// Returns the product of two pairs, rounded.
HWY_INLINE Floats ProductOfPairs(Floats a, Floats a_low, Floats b, Floats b_low) {
  const Floats product = hn::Mul(a, b);
  return hn::Add(product, hn::MulAdd(a_low, b, hn::MulAdd(a, b_low, hn::MulSub(a, b, product))));
}

// Rows by what became of them, bit i row i.
struct PlainRows {
  uint32_t bad = 0;    // the sums are not good
  uint32_t exact = 0;  // the losses add exactly
  uint32_t ok = 0;     // the output is good
};

// From the sums of lanes [i, i + lanes) to all that is one a row. Returns what the output is made with: the factor of
// exponentials, of log-softmax L, and in *special what stands at the maximum, or at the target.
template <TileOutput kOutput>
HWY_INLINE Floats FinishPlain(const AcrossTask &task, int64_t i, const TileRange &range, Floats max, Floats target,
                              Floats sum, Floats sum_low, Floats count, PlainRows *seen, Halves *loss_sum,
                              Floats *special, AcrossRows *rows) {
  const TileTag d;
  const HalfTag dd;
  const Floats one = hn::Set(d, 1.0f), small = hn::Set(d, static_cast<float>(PowerOfTwo(-Format<float>::kBias)));
  const Floats e = hn::Load(d, range.ranges.exp_max), e_low = hn::Load(d, range.ranges.exp_max_low);
  Floats q_low = max, u_low = max, log_low = max, factor = max;
  seen->bad |= BadRows(task, max, sum) << i;
  const Floats q = OthersOf(e, e_low, sum, sum_low, &q_low), u = OnePlusOthers(q, q_low, count, &u_low);
  const auto alone = IsAlone(q, count);
  Halves others_lower = hn::Zero(dd), others_upper = others_lower, log_lower = others_lower, log_upper = others_lower;
  if (kOutput == TileOutput::kLogSoftmax || task.NeedsLog()) {
    const Floats log = LogOfTotal(u, u_low, &log_low);
    if (kOutput == TileOutput::kLogSoftmax) {
      factor = hn::IfThenElse(alone, hn::Mul(hn::Add(q, q_low), small), log);
    } else {
      WidenLog(alone, q, q_low, log, log_low, log_lower, log_upper);
      FinishLanes<true>(task, nullptr, i, max, target, others_lower, others_upper, log_lower, log_upper, &seen->exact,
                        loss_sum, rows);
    }
  }
  bool keeps = task.state;
  if constexpr (kOutput == TileOutput::kSoftmax) {
    Floats low = max;
    const Floats inverse = InverseOfTotal(e, e_low, u, u_low, &low);
    *special = FinishWithNan(d, ProductOfPairs(e, e_low, inverse, low));
    factor = hn::Mul(hn::Add(inverse, low), small);
  }
  if constexpr (kOutput == TileOutput::kGradient) {
    const Halves dz = hn::Set(dd, task.transform.scale);
    const Halves g_lower = hn::Mul(hn::LoadU(dd, task.g + i), dz);
    const Halves g_upper = hn::Mul(hn::LoadU(dd, task.g + i + HalfLanes()), dz);
    Floats g = max, g_low = max, low = max;
    SplitDoubles(g_lower, g_upper, &g, &g_low);
    const Floats inverse = InverseOfTotal(e, e_low, u, u_low, &low);
    factor = hn::Mul(ProductOfPairs(g, g_low, inverse, low), small);
    const Floats size = hn::Abs(factor);
    const auto in_range = hn::And(hn::Ge(size, hn::Set(d, 0x1p-120f)), hn::Le(size, hn::Set(d, 0x1p120f)));
    const uint32_t good = BitsOf(d, in_range) | ZerosOf(g_lower, g_upper);
    seen->ok |= good << i;
    // A row whose gradient is not good here goes on with its state.
    keeps = keeps || (~good & AllOfVector()) != 0;
    // p_t - 1 is -(the others' sum) / total where the target is the largest.
    const Floats others = hn::Add(hn::Sub(u, one), u_low),
                 others_low = hn::Sub(u_low, hn::Sub(others, hn::Sub(u, one)));
    const Floats inverse_of_u = ProductOfPairs(e, e_low, inverse, low), share = hn::Mul(others, inverse_of_u);
    const Floats share_low = hn::MulAdd(others_low, inverse_of_u, hn::MulSub(others, inverse_of_u, share));
    const Floats vanishing = hn::Mul(hn::Mul(g, small), hn::Add(q, q_low));
    const Floats at_largest = hn::IfThenElse(alone, vanishing, ProductOfPairs(g, g_low, share, share_low));
    const Floats elsewhere = hn::Sub(hn::MulSub(ExpOfTargets(range, target), factor, g), g_low);
    *special = FinishWithNan(d, hn::IfThenElse(hn::Eq(target, max), hn::Neg(at_largest), elsewhere));
  }
  if (!keeps) return factor;
  WidenOthers(q, q_low, count, others_lower, others_upper);
  KeepState(max, i, others_lower, others_upper, log_lower, log_upper, rows);
  return factor;
}

// Sums, finish and output of a tile whose logits a block holds, vector after vector: nothing waits in memory but the
// exponentials. That everything is float32 and each vector's work is one chain are what a row of two columns gains by
// (docs/tuning.md).
template <TileOutput kOutput>
HWY_NOINLINE PlainRows PlainTile(const AcrossTask &task, float *block, AcrossRows *rows) {
  const TileTag d;
  constexpr bool kGradient = kOutput == TileOutput::kGradient, kSoftmax = kOutput == TileOutput::kSoftmax;
  constexpr Kept kKept = kGradient ? Kept::kYes : kSoftmax ? Kept::kMarked : Kept::kNo;
  PlainRows seen;
  Halves loss_sum = hn::Zero(HalfTag());
  for (int64_t i = 0; i < (kGradient ? task.count : EndOf(task.count)); i += TileLanes()) {
    TileRanges ranges(task.scale, TileLanes());
    const Floats max = MaxOfLanes(block + i, task.cols, hn::Set(d, kNone));
    SetRange(max, 0, &ranges);
    const Floats target = task.has_targets ? TargetsOf(task, block, i) : max;
    Floats sum = max, low = max, count = max, special = max;
    SumColumns<false, kKept>(block + i, task.cols, {ranges, 0}, max, &sum, &low, &count, nullptr, nullptr);
    const Floats factor =
        FinishPlain<kOutput>(task, i, {ranges, 0}, max, target, sum, low, count, &seen, &loss_sum, &special, rows);
    if constexpr (kGradient || kSoftmax) ScaleLanes<kSoftmax>(task, factor, special, 0, task.cols, i, block);
    if constexpr (kOutput == TileOutput::kLogSoftmax) LogSoftmaxLanes(max, factor, task.cols, i, block);
  }
  rows->adds_exactly = seen.exact == kAllRows;
  rows->loss_sum = hn::ReduceSum(HalfTag(), loss_sum);
  return seen;
}

// The same of a row alone, lanes over its columns, with the bits that it has among others: the exponentials are added
// in the order of SumColumns. `block` has two halves, the row's logits, and what is added of their exponentials.
template <TileOutput kOutput, class In>
HWY_NOINLINE PlainRows PlainRow(const AcrossTask &task, float *block, AcrossRows *rows) {
  const TileTag d;
  const int64_t cols = task.cols, lanes = TileLanes();
  const In *const logits = static_cast<const In *>(task.logits.data);
  float *const z = block, *const added = block + kBlockCols;
  const int64_t end = (cols + 4 * lanes - 1) / (4 * lanes) * 4 * lanes;  // at most 64
  const bool live = (task.live & 1) != 0;
  for (int64_t j = 0; j < end; ++j) z[j] = live && j < cols ? Widen(logits[j]) : kNone;
  Floats max = hn::Load(d, z);
  for (int64_t j = lanes; j < end; j += lanes) max = hn::Max(max, hn::Load(d, z + j));
  max = hn::MaxOfLanes(d, max);
  TileRanges ranges(task.scale, 1);
  SetRange(max, 0, &ranges);
  const Floats target = task.has_targets ? hn::Set(d, z[task.targets[0]]) : max;
  size_t count = 0;
  for (int64_t j = 0; j < end; j += 4 * lanes) {
    Floats z0 = hn::Load(d, z + j), z1 = hn::Load(d, z + j + lanes);
    Floats z2 = hn::Load(d, z + j + 2 * lanes), z3 = hn::Load(d, z + j + 3 * lanes);
    const auto at0 = hn::Eq(z0, max), at1 = hn::Eq(z1, max), at2 = hn::Eq(z2, max), at3 = hn::Eq(z3, max);
    ExpFour(d, TileRange{ranges, 0}, z0, z1, z2, z3);
    const auto keep = [&](Floats e, auto at, int64_t k) HWY_ATTR XENT_INLINE_LAMBDA {
      count += hn::CountTrue(d, at);
      hn::Store(hn::IfThenZeroElse(at, e), d, added + k);
      if constexpr (kOutput == TileOutput::kSoftmax) e = hn::IfThenElse(at, hn::Neg(e), e);
      if constexpr (kOutput == TileOutput::kSoftmax || kOutput == TileOutput::kGradient) hn::Store(e, d, z + k);
    };
    keep(z0, at0, j);
    keep(z1, at1, j + lanes);
    keep(z2, at2, j + 2 * lanes);
    keep(z3, at3, j + 3 * lanes);
  }
  // Past the last column there are zeros, whose addition changes nothing.
  const hn::CappedTag<float, 1> d1;
  const auto four = [&](int64_t j) HWY_ATTR {
    const auto at = [&](int64_t k) HWY_ATTR { return hn::LoadU(d1, added + k); };
    return hn::Add(hn::Add(at(j), at(j + 1)), hn::Add(at(j + 2), at(j + 3)));
  };
  auto sum = four(0), low = hn::Zero(d1), lost = low;
  for (int64_t j = 4; j < cols; j += 4) {
    sum = ExactSum(d1, sum, four(j), &lost);
    low = hn::Add(low, lost);
  }
  PlainRows seen;
  Floats special = max;
  Halves loss_sum = hn::Zero(HalfTag());
  // Of lane 0, which alone has the row's upstream gradient.
  const Floats factor =
      hn::Set(d, hn::GetLane(FinishPlain<kOutput>(task, 0, {ranges, 0}, max, target, hn::Set(d, hn::GetLane(sum)),
                                                  hn::Set(d, hn::GetLane(low)), hn::Set(d, static_cast<float>(count)),
                                                  &seen, &loss_sum, &special, rows)));
  for (int64_t j = 0; kOutput != TileOutput::kNone && j < end; j += lanes) {
    const Floats e = hn::Load(d, z + j);
    Floats v = ZeroBelowNormal<float>(d, hn::Mul(e, factor));
    if constexpr (kOutput == TileOutput::kSoftmax) v = hn::IfNegativeThenElse(e, special, v);
    if constexpr (kOutput == TileOutput::kLogSoftmax) v = LogSoftmaxOf(max, e, factor);
    hn::Store(v, d, z + j);
  }
  if constexpr (kOutput == TileOutput::kGradient) z[task.targets[0]] = hn::GetLane(special);
  return seen;
}

// Calls function(output) with a task's output as a constant.
template <class Function>
HWY_INLINE PlainRows WithOutput(TileOutput output, const Function &function) {
  using enum TileOutput;
  switch (output) {
    case kNone:
      return function(std::integral_constant<TileOutput, kNone>());
    case kGradient:
      return function(std::integral_constant<TileOutput, kGradient>());
    case kSoftmax:
      return function(std::integral_constant<TileOutput, kSoftmax>());
    default:
      return function(std::integral_constant<TileOutput, kSpareCompiler ? kNone : kLogSoftmax>());
  }
}

template <class In>
HWY_NOINLINE void RunPlain(const AcrossTask &task, AcrossRows *rows) {
  HWY_ALIGN float block[kBlockCols * kTile];
  const bool alone = task.count == 1 && !task.positions;
  PlainRows seen;
  if (alone) {
    seen = WithOutput(task.output, [&](auto output) { return PlainRow<output, In>(task, block, rows); });
  } else {
    StageForSums<In>(task, 0, task.cols, block);
    seen = WithOutput(task.output, [&](auto output) { return PlainTile<output>(task, block, rows); });
  }
  rows->done = (task.sums ? task.live : task.ready) & ~seen.bad;
  if (task.output == TileOutput::kNone) return;
  const uint32_t all = (uint32_t{1} << task.count) - 1;
  const uint32_t good = task.output == TileOutput::kGradient ? seen.ok : all;
  const uint32_t wanted = (rows->done & good) | (all & ~task.live);
  rows->written = wanted & rows->done;
  if (task.out.data == nullptr) return;
  if (!alone) return UnstageTile<In>(task.out, task, wanted, 0, task.cols, block);
  In *const out = static_cast<In *>(task.out.data);
  const bool live = (task.live & 1) != 0;
  for (int64_t j = 0; wanted != 0 && j < task.cols; ++j) out[j] = live ? Narrow<In>(block[j]) : In{};
}

#else

template <class In>
void RunPlain(const AcrossTask & /*task*/, AcrossRows * /*rows*/) {}

#endif  // HWY_NATIVE_FMA

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
