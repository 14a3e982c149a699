// Binary cross-entropy, its gradients and the focal loss of float32 and half precision, in lanes of type T: float32, or
// double where there is no fused multiply-add or the focal exponent asks for more digits.
//
// Of logits: with e = e^-|z|, the coefficients a = 1-y of softplus(z) and b = pos_weight y of softplus(-z), and c the
// one of the larger side, a for positive z and b else,
//   loss = c |z| + (a+b) log(1+e),   gradient = c - (a+b) e/(1+e), its sign that of z.
// Nothing cancels: log(1+e) = e P(e) keeps its digits however small it is, and 1-e/(1+e) is not formed. A number and
// another one with _lo behind its name are a sum of two, the second of which holds what the roundings of the first
// lost. docs/numerics.md counts the errors.
//
// An element is unusual where that is not exact enough or leaves the range: its numbers alone decide (IsUsual), and the
// pairs of binary-inl.h compute it.
#if defined(XENT_SRC_KERNELS_BINARY_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_BINARY_LANES_INL_H_
#undef XENT_SRC_KERNELS_BINARY_LANES_INL_H_
#else
#define XENT_SRC_KERNELS_BINARY_LANES_INL_H_
#endif

#include <cmath>
#include <iterator>

#include "hwy/highway.h"
#include "kernels/binary.h"
#include "kernels/double_lanes-inl.h"
#include "kernels/step-inl.h"
#include "numbers/exp-inl.h"
#include "numbers/functions-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

template <class T>
using LaneTag = hn::CappedTag<T, kLanes>;
template <class T>
using LanesOf = hn::Vec<LaneTag<T>>;

// What elements have beside z and y. The losses' bits depend on it, so an upstream gradient is no matter.
enum class BinaryKind { kPlain, kWeighted, kFocal, kProbabilities };

// Exponentials are formed with this power of two, and so is all that is linear in them: the tail of 2^-166 still counts
// beside targets as small, and under weights up to 2^36. How far down ExpFour itself goes differs between targets.
inline constexpr int kBinaryBias = 40;
inline constexpr double kBias = 0x1p40, kUnbias = 0x1p-40;
inline constexpr double kLowestArgument = -115.0;

// Elements that are computed at once. The loop that makes exponentials and the loop that uses them are each short
// enough that the processor overlaps several turns. In one loop the chain of dependent operations would take longer
// than the work.
inline constexpr int64_t kBinaryBlock = 256, kLongBinaryBlock = 512;  // the second where nothing is copied
inline constexpr int64_t kBinaryTurn = 4 * kLanes;  // a loop's turn, four vectors, divides it on every target

// The numbers that a factor may be, beside 0.
struct FactorRange {
  float least, most;
  bool negative;  // and their negatives

  bool Has(float v) const {
    const float magnitude = negative && v < 0.0f ? -v : v;
    return v == 0.0f || (magnitude >= least && magnitude <= most);
  }
  template <class D>
  HWY_INLINE hn::Mask<D> HasLanes(D d, hn::Vec<D> v) const {
    const auto magnitude = negative ? hn::Abs(v) : v;
    return hn::Or(hn::Eq(v, hn::Zero(d)),
                  hn::And(hn::Ge(magnitude, hn::Set(d, least)), hn::Le(magnitude, hn::Set(d, most))));
  }
};
inline constexpr int kLeastWeight = -16, kMostWeight = 10;  // exponents of 2
inline constexpr FactorRange kWeightRange = {0x1p-16f, 0x1p10f, true}, kPosWeightRange = {0x1p-16f, 0x1p10f, false};

// Past these gamma log q takes more digits than float32, and than a double, has.
inline constexpr double kMostFloatGamma = 3.0, kMostGamma = 0x1p20;

// Elements [index, index + count) of a call as floats.
struct BinaryBlock {
  const float *in[kBinaryInputs] = {};    // null: absent, or one number for all (the upstream gradient)
  const void *ahead[kBinaryInputs] = {};  // what to prefetch: the operand in memory, or null
  bool is_half[kBinaryInputs] = {};       // how long its elements are there
  float *out[kBinaryOutputs] = {};        // null: not wanted
  bool streams[kBinaryOutputs] = {};      // past the caches
  LaneSums<float> *sum = nullptr;         // null: the losses are not summed

  // Asks for what a turn will read, some blocks from now, into the second-level cache; see PrefetchForRead.
  HWY_INLINE void Prefetch(int input, int64_t i) const {
    if (ahead[input] == nullptr) return;
    const uintptr_t from =
        reinterpret_cast<uintptr_t>(ahead[input]) + static_cast<size_t>(is_half[input] ? 2 * i : 4 * i) + kFarBytes;
    for (int64_t byte = 0; byte < kBinaryTurn * 2; byte += 64) {
      __builtin_prefetch(reinterpret_cast<const void *>(from + byte), 0, 2);
    }
    if (is_half[input]) return;
    for (int64_t byte = kBinaryTurn * 2; byte < kBinaryTurn * 4; byte += 64) {
      __builtin_prefetch(reinterpret_cast<const void *>(from + byte), 0, 2);
    }
  }
};

template <class D>
HWY_INLINE hn::Vec<D> LoadLanes(D d, const float *p) {
  if constexpr (sizeof(hn::TFromD<D>) == sizeof(float)) {
    return hn::LoadU(d, p);
  } else {
    return hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, D>(), p));
  }
}

// Multiplies hi + lo by x.
template <class V>
HWY_INLINE void MultiplyPair(V x, V &hi, V &lo) {
  const V product = hn::Mul(hi, x);
  lo = hn::MulAdd(lo, x, hn::MulSub(hi, x, product));
  hi = product;
}

// Returns v, or 0 where it is below float32's normal range.
template <class T, class V = LanesOf<T>>
HWY_INLINE V Flushed(V v) {
  return hn::IfThenElseZero(hn::Gt(hn::Abs(v), hn::Set(LaneTag<T>(), static_cast<T>(0x1p-126))), v);
}

// What the elements of a call have in common, and which of them are usual.
template <class T>
struct BinaryLanes {
  using D = LaneTag<T>;
  using V = LanesOf<T>;
  using Bits = hn::Vec<hn::RebindToUnsigned<D>>;

  int weights[3], weight_count = 0;  // the inputs that are weights
  FactorRange upstream_range;
  bool any = true;                  // false: all elements are unusual
  double farthest = 0x1p60;         // logits beyond are unusual
  bool grads = true;                // false: all elements are unusual in their gradients
  T upstream = 1, scale, scale_lo;  // one upstream gradient for all; 1 / denominator
  T plain_scale, plain_scale_lo;    // the gradients' factor where nothing else is one
  T gamma, gamma_lo, alpha, other_alpha, alpha_slope;

  explicit BinaryLanes(const BinaryTask &task) {
    for (int input = kElementWeight; input <= kClassWeight; ++input) {
      if (task.Has(static_cast<BinaryInput>(input))) weights[weight_count++] = input;
    }
    const auto split = [](double x, T &lo) {
      const T hi = static_cast<T>(x);
      lo = static_cast<T>(x - static_cast<double>(hi));
      return hi;
    };
    // The product of a loss's weights, the upstream gradient and 1 / denominator is to lie between 2^-80 and 2^36.
    const double factor = Scale(task.inverse.hi, -task.denominator.exponent);
    const double least = HWY_MAX(0x1p-30, PowerOfTwo(-80 - kLeastWeight * weight_count) / factor);
    const double most = HWY_MIN(0x1p40, PowerOfTwo(36 - kMostWeight * weight_count) / factor);
    upstream_range = {static_cast<float>(least), static_cast<float>(most), true};
    grads = factor >= 0x1p-60 && factor <= 0x1p20;
    const BinaryOperand &u = task.inputs[kUpstream];
    if (u.data != nullptr && u.IsSame(task.layout)) {
      const float same = *static_cast<const float *>(u.data);
      upstream = static_cast<T>(same);
      grads = grads && upstream_range.Has(same);
    } else {
      grads = grads && upstream_range.Has(1.0f);
    }
    scale = split(factor, scale_lo);
    gamma = split(task.gamma, gamma_lo);
    alpha = static_cast<T>(task.alpha >= 0.0 ? task.alpha : 1.0);
    other_alpha = static_cast<T>(task.alpha >= 0.0 ? 1.0 - task.alpha : 1.0);
    alpha_slope = static_cast<T>(task.alpha >= 0.0 ? 2.0 * task.alpha - 1.0 : 0.0);
    any = task.gamma <= kMostGamma;
    if (task.focal) farthest = -kLowestArgument;
    const D d;
    V g = hn::Zero(d), g_lo = g;
    GradientFactor({}, 0, hn::Set(d, static_cast<T>(kUnbias)), g_lo, &g, &g_lo);
    plain_scale = hn::GetLane(g);
    plain_scale_lo = hn::GetLane(g_lo);
  }

  // Whether the lanes give the loss of element i, and its gradients.
  bool IsUsual(const BinaryBlock &block, int64_t i, bool *grads_too) const {
    const double z = static_cast<double>(block.in[kInput][i]);
    const float y = block.in[kTarget][i];
    bool usual = any && y >= 0.0f && !std::signbit(y) && y <= 1.0f && Magnitude(z) <= farthest;
    if (block.in[kPosWeight] != nullptr) usual = usual && kPosWeightRange.Has(block.in[kPosWeight][i]);
    for (int k = 0; k < weight_count; ++k) usual = usual && kWeightRange.Has(block.in[weights[k]][i]);
    *grads_too = usual && grads && (block.in[kUpstream] == nullptr || upstream_range.Has(block.in[kUpstream][i]));
    return usual;
  }
  // The same of vectors, from the largest bits of -|z| and of y: those of negative numbers and of NaN are larger than
  // all others. That takes two operations a vector, and none with masks.
  HWY_INLINE void Look(V minus_magnitude, V y, Bits *most_z, Bits *most_y) const {
    const hn::RebindToUnsigned<D> du;
    *most_z = hn::Max(*most_z, hn::BitCast(du, minus_magnitude));
    *most_y = hn::Max(*most_y, hn::BitCast(du, y));
  }
  HWY_INLINE bool AreUsual(Bits most_z, Bits most_y) const {
    const D d;
    const hn::RebindToUnsigned<D> du;
    const auto z = hn::Le(most_z, hn::BitCast(du, hn::Set(d, static_cast<T>(-farthest))));
    return any && hn::AllTrue(du, hn::And(z, hn::Le(most_y, hn::BitCast(du, hn::Set(d, T{1})))));
  }

  // Makes the product of a loss's weights and `unit`.
  HWY_INLINE void Weight(const BinaryBlock &block, int64_t i, double unit, V *f, V *f_lo) const {
    const D d;
    *f = hn::Set(d, static_cast<T>(unit));
    *f_lo = hn::Zero(d);
    for (int k = 0; k < weight_count; ++k) MultiplyPair(LoadLanes(d, block.in[weights[k]] + i), *f, *f_lo);
  }
  // Makes the gradients' factor from the loss's.
  HWY_INLINE void GradientFactor(const BinaryBlock &block, int64_t i, V f, V f_lo, V *g, V *g_lo) const {
    const D d;
    const float *const u = block.in[kUpstream];
    MultiplyPair(u == nullptr ? hn::Set(d, upstream) : LoadLanes(d, u + i), f, f_lo);
    *g = hn::Mul(f, hn::Set(d, scale));
    const V low = hn::MulAdd(f, hn::Set(d, scale_lo), hn::Mul(f_lo, hn::Set(d, scale)));
    *g_lo = hn::Add(hn::MulSub(f, hn::Set(d, scale), *g), low);
  }
};

// Returns whether all of the factors are in a range.
inline bool AllInRange(const BinaryBlock &block, int input, int64_t count, const FactorRange &range) {
  const LaneTag<float> d;
  const float *const factors = block.in[input];
  auto all = hn::Eq(hn::Zero(d), hn::Zero(d));
  for (int64_t i = 0; i < count; i += kBinaryTurn) {
    block.Prefetch(input, i);
    for (int64_t k = i; k < i + kBinaryTurn; k += static_cast<int64_t>(hn::Lanes(d))) {
      all = hn::And(all, range.HasLanes(d, hn::LoadU(d, factors + k)));
    }
  }
  return hn::AllTrue(d, all);
}

// Makes the biased exponentials of `count` elements. Returns whether all are usual as far as z and y go.
template <class T>
bool MakeExponentials(const BinaryLanes<T> &lanes, const BinaryBlock &block, int64_t count, T *exponentials) {
  using V = LanesOf<T>;
  const LaneTag<T> d;
  const hn::RebindToUnsigned<LaneTag<T>> du;
  const int64_t n = static_cast<int64_t>(hn::Lanes(d));
  const ExpRange<T> range(Format<T>::kBias - kBinaryBias);
  const V lowest = hn::Set(d, static_cast<T>(kLowestArgument)), sign = hn::SignBit(d);
  const BinaryBlock local = block;
  auto most_z = hn::Zero(du), most_y = most_z;
  for (int64_t i = 0; i < count; i += 4 * n) {
    if (i % kBinaryTurn == 0) local.Prefetch(kInput, i);
    const float *const x = local.in[kInput] + i, *const y = local.in[kTarget] + i;
    const V z0 = hn::Or(LoadLanes(d, x), sign), z1 = hn::Or(LoadLanes(d, x + n), sign),
            z2 = hn::Or(LoadLanes(d, x + 2 * n), sign), z3 = hn::Or(LoadLanes(d, x + 3 * n), sign);
    lanes.Look(z0, LoadLanes(d, y), &most_z, &most_y);
    lanes.Look(z1, LoadLanes(d, y + n), &most_z, &most_y);
    lanes.Look(z2, LoadLanes(d, y + 2 * n), &most_z, &most_y);
    lanes.Look(z3, LoadLanes(d, y + 3 * n), &most_z, &most_y);
    V e0 = z0, e1 = z1, e2 = z2, e3 = z3;
    ExpFour(d, range, e0, e1, e2, e3);
    const auto cut = [&](V z, V e) HWY_ATTR { return hn::IfThenElseZero(hn::Ge(z, lowest), e); };
    StoreFour(d, cut(z0, e0), cut(z1, e1), cut(z2, e2), cut(z3, e3), exponentials + i, n);
  }
  return lanes.AreUsual(most_z, most_y);
}

// Returns whether all of `count` elements are usual as far as input and y go.
template <class T>
bool AllUsual(const BinaryLanes<T> &lanes, const BinaryBlock &block, int64_t count) {
  const LaneTag<T> d;
  auto most_x = hn::Zero(hn::RebindToUnsigned<LaneTag<T>>()), most_y = most_x;
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) {
    if (i % kBinaryTurn == 0) block.Prefetch(kInput, i);
    const auto x = hn::Or(LoadLanes(d, block.in[kInput] + i), hn::SignBit(d));
    lanes.Look(x, LoadLanes(d, block.in[kTarget] + i), &most_x, &most_y);
  }
  return lanes.AreUsual(most_x, most_y);
}

// Makes two factors whose product is (q + q_lo)^gamma, for q with the bias: the second is a power of two, so that the
// first is a normal number where the product counts, with factors up to 2^60.
template <class T, class V = LanesOf<T>>
HWY_INLINE void FocalPower(const BinaryLanes<T> &lanes, V q, V q_lo, V *first, V *second) {
  const LaneTag<T> d;
  const V one = hn::Set(d, T{1});
  if (lanes.gamma == T{2}) {
    const V lift = hn::Set(d, static_cast<T>(0x1p-10)), lifted = hn::Mul(q, lift);  // q 2^30
    const V square = hn::Mul(lifted, lifted), twice_lo = hn::Mul(q_lo, hn::Add(lift, lift));
    *first = hn::Add(square, hn::MulAdd(lifted, twice_lo, hn::MulSub(lifted, lifted, square)));
    *second = hn::Set(d, static_cast<T>(0x1p-60));
    return;
  }
  *second = one;
  if constexpr (sizeof(T) == sizeof(double)) {
    V k = q;
    const V r = SplitExponent(d, hn::Add(q, q_lo), &k);
    const V log = LogOfParts(d, hn::Sub(k, hn::Set(d, double{kBinaryBias})), r, hn::Zero(d));
    *first = ExpFor<float>(d, hn::Mul(hn::Set(d, lanes.gamma), log), hn::Zero(d));
  } else {
#if HWY_NATIVE_FMA
    const hn::RebindToUnsigned<LaneTag<T>> du;
    // q = 2^k (1 + r), and to log q comes 2^-k q_lo / (1 + r), where three terms of the quotient's series will do.
    V k = q, log_lo = q;
    const auto bits = SplitAtThreeQuarters(d, q, &k);
    const auto fraction = hn::And(bits, hn::Set(du, kMantissaMask<T>));
    const V r = hn::Sub(hn::BitCast(d, hn::Add(fraction, hn::Set(du, BitsOf(0.75f)))), one);
    const V inverse_power = InversePowerOfSplit(d, bits);
    k = hn::Sub(k, hn::Set(d, T{kBinaryBias}));
    const V log = SumOfLogs(d, k, r, &log_lo);
    log_lo = hn::MulAdd(k, hn::Set(d, kLn2_F32_Lo), log_lo);
    log_lo = hn::MulAdd(hn::Mul(q_lo, inverse_power), hn::MulAdd(r, hn::Sub(r, one), one), log_lo);
    const V sum = hn::Add(log, log_lo), sum_lo = hn::Add(hn::Sub(log, sum), log_lo);
    // t = gamma log q; e^t = 2^n 2^f.
    const V gamma = hn::Set(d, lanes.gamma), round = hn::Set(d, 0x1.8p23f), log2e = hn::Set(d, kLog2E_F32_Hi);
    V t = hn::Mul(gamma, sum);
    const V t_lo = hn::MulAdd(gamma, sum_lo, hn::MulAdd(hn::Set(d, lanes.gamma_lo), sum, hn::MulSub(gamma, sum, t)));
    t = hn::Max(t, hn::Set(d, -200.0f));
    const V n = hn::Sub(hn::MulAdd(t, log2e, round), round);
    V f = hn::MulSub(t, log2e, n);
    f = hn::MulAdd(t_lo, log2e, hn::MulAdd(t, hn::Set(d, kLog2E_F32_Lo), f));
    const V high = hn::Max(n, hn::Set(d, -100.0f)), low = hn::Max(hn::Sub(n, high), hn::Set(d, -100.0f));
    const auto power = [&](V exponent) HWY_ATTR {
      return hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, hn::Add(exponent, hn::Set(d, 0x1p23f + 127.0f)))));
    };
    *first = hn::Mul(Polynomial(d, kExp2F32, f), power(high));
    *second = power(low);
#endif
  }
}

// ---- the numbers of a vector of elements given as logits, from e and P(e) ----

// Returns c with the bias that e has, and makes k = a + b without it. Without weights only the gradient has a bias.
template <BinaryKind kKind, class T, class V = LanesOf<T>>
HWY_INLINE V Coefficients(const BinaryBlock &block, int64_t i, V z, V y, V *c_lo, V *k, V *k_lo) {
  const LaneTag<T> d;
  const V zero = hn::Zero(d), one = hn::Set(d, T{1});
  if constexpr (kKind == BinaryKind::kPlain) return hn::IfNegativeThenElse(z, y, hn::Sub(one, y));
  const V bias = hn::Set(d, static_cast<T>(kBias)), unbias = hn::Set(d, static_cast<T>(kUnbias));
  V b = hn::Mul(y, bias), b_lo = zero;
  const V a = hn::Sub(bias, b), a_lo = hn::Sub(hn::Sub(bias, a), b);
  *k = one;
  *k_lo = zero;
  if (block.in[kPosWeight] != nullptr) {
    MultiplyPair(LoadLanes(d, block.in[kPosWeight] + i), b, b_lo);
    *k = hn::Mul(ExactSum(d, a, b, k_lo), unbias);
    *k_lo = hn::Mul(hn::Add(*k_lo, hn::Add(a_lo, b_lo)), unbias);
  }
  *c_lo = hn::IfNegativeThenElse(z, b_lo, a_lo);
  return hn::IfNegativeThenElse(z, b, a);
}

// Multiplies hi + lo by k, which is 1 without a pos_weight.
template <BinaryKind kKind, class V>
HWY_INLINE void MultiplyByK(const BinaryBlock &block, V k, V k_lo, V &hi, V &lo) {
  if (kKind == BinaryKind::kPlain || block.in[kPosWeight] == nullptr) return;
  const V whole = hi;
  MultiplyPair(k, hi, lo);
  lo = hn::MulAdd(k_lo, whole, lo);
}

// Returns c |z| + k log(1 + e), with the bias of e.
template <BinaryKind kKind, class T, class V = LanesOf<T>>
HWY_INLINE V Bce(const BinaryBlock &block, int64_t i, V z, V y, V e, V p, V *lo) {
  V c_lo, k, k_lo;
  const V c = Coefficients<kKind, T>(block, i, z, y, &c_lo, &k, &k_lo);
  V product = hn::Mul(e, p);
  if constexpr (kKind != BinaryKind::kPlain) {
    V product_lo = hn::MulSub(e, p, product);
    MultiplyByK<kKind>(block, k, k_lo, product, product_lo);
    *lo = hn::MulAdd(c_lo, hn::Abs(z), product_lo);
  }
  return hn::MulAdd(c, hn::Abs(z), product);
}

// Returns the derivative of Bce but for its sign, c - k e / (1 + e), biased, from the two parts of e / (1 + e). *lo is
// to be subtracted.
template <BinaryKind kKind, class T, class V = LanesOf<T>>
HWY_INLINE V Slope(const BinaryBlock &block, int64_t i, V z, V y, V sigma, V sigma_lo, V *lo) {
  V c_lo, k, k_lo;
  V c = Coefficients<kKind, T>(block, i, z, y, &c_lo, &k, &k_lo);
  if constexpr (kKind == BinaryKind::kPlain) {
    c = hn::Mul(c, hn::Set(LaneTag<T>(), static_cast<T>(kBias)));
    *lo = sigma_lo;
  } else {
    MultiplyByK<kKind>(block, k, k_lo, sigma, sigma_lo);
    *lo = hn::Sub(sigma_lo, c_lo);
  }
  return hn::Sub(c, sigma);
}

// Returns pos_weight softplus(-z) - softplus(z), biased; without a pos_weight that is -z, however small.
template <BinaryKind kKind, class T, class V = LanesOf<T>>
HWY_INLINE V TargetSlope(const BinaryBlock &block, int64_t i, V z, V e, V p, V *lo) {
  const LaneTag<T> d;
  const V bias = hn::Set(d, static_cast<T>(kBias)), minus_one = hn::Set(d, T{-1});
  const V minus_z = hn::Neg(hn::Mul(z, bias));
  *lo = hn::Zero(d);
  if (kKind == BinaryKind::kPlain || block.in[kPosWeight] == nullptr) return minus_z;
  const V pos_weight = LoadLanes(d, block.in[kPosWeight] + i), log1p = hn::Mul(e, p);
  V less_lo, product = log1p, product_lo = hn::MulSub(e, p, log1p);
  const V less = ExactSum(d, pos_weight, minus_one, &less_lo);
  MultiplyPair(less, product, product_lo);
  const V c = hn::Mul(hn::IfNegativeThenElse(z, pos_weight, minus_one), bias);
  const auto equal = hn::Eq(pos_weight, hn::Set(d, T{1}));
  *lo = hn::IfThenZeroElse(equal, hn::MulAdd(less_lo, log1p, product_lo));
  return hn::IfThenElse(equal, minus_z, hn::MulAdd(c, hn::Abs(z), product));
}

// ---- their results ----

template <class T, class V = LanesOf<T>>
HWY_INLINE V PairTimes(V hi, V lo, V factor, V factor_lo) {
  return Flushed<T>(hn::MulAdd(hi, factor, hn::MulAdd(hi, factor_lo, hn::Mul(lo, factor))));
}

// Stores four adjacent vectors of results, past the caches if they stream.
template <class T, class V = LanesOf<T>>
HWY_INLINE void StoreResults(const BinaryBlock &block, BinaryOutput output, int64_t i, V v0, V v1, V v2, V v3) {
  const LaneTag<T> d;
  const int64_t n = static_cast<int64_t>(hn::Lanes(d));
  float *const to = block.out[output] + i;
  if constexpr (sizeof(T) == sizeof(double)) {
    const hn::Rebind<float, LaneTag<T>> df;
    StoreFour(df, hn::DemoteTo(df, v0), hn::DemoteTo(df, v1), hn::DemoteTo(df, v2), hn::DemoteTo(df, v3), to, n);
  } else {
    block.streams[output] ? StoreFour<true>(d, v0, v1, v2, v3, to, n) : StoreFour(d, v0, v1, v2, v3, to, n);
  }
}
// Adds losses to the lanes of their sum and stores them, as far as these are wanted.
template <class T, class V = LanesOf<T>>
HWY_INLINE void StoreLosses(const BinaryBlock &block, int64_t i, V v0, V v1, V v2, V v3) {
  const LaneTag<T> d;
  const int64_t n = static_cast<int64_t>(hn::Lanes(d));
  const auto add = [&](V v, int64_t lane) HWY_ATTR {
    if constexpr (sizeof(T) == sizeof(double)) {
      AddDoubles(hn::PromoteTo(d, hn::DemoteTo(hn::Rebind<float, LaneTag<T>>(), v)), lane % kLanes, *block.sum);
    } else {
      AddToLanes(d, v, lane % kLanes, *block.sum);
    }
  };
  if (block.sum != nullptr) {
    add(v0, i);
    add(v1, i + n);
    add(v2, i + 2 * n);
    add(v3, i + 3 * n);
  }
  if (block.out[kLoss] != nullptr) StoreResults<T>(block, kLoss, i, v0, v1, v2, v3);
}

// Makes the results of a vector of the focal loss, as far as they are wanted.
template <class T, class V = LanesOf<T>>
HWY_INLINE void Focal(const BinaryLanes<T> &lanes, const BinaryBlock &block, int64_t i, V e, V p, V *loss, V *grad,
                      V *target_grad) {
  const LaneTag<T> d;
  constexpr BinaryKind kKind = BinaryKind::kFocal;
  const V zero = hn::Zero(d), one = hn::Set(d, T{1}), unbias = hn::Set(d, static_cast<T>(kUnbias));
  const V bias = hn::Set(d, static_cast<T>(kBias));
  const V z = LoadLanes(d, block.in[kInput] + i), y = LoadLanes(d, block.in[kTarget] + i);
  const V plain_e = hn::Mul(e, unbias);
  V lo, first, second, f, f_lo;
  V bce = Bce<kKind, T>(block, i, z, y, e, p, &lo);
  bce = hn::Add(bce, lo);
  // 1 / (1 + e): 1 minus it is exact.
  const V inverse = hn::Div(one, hn::Add(one, plain_e));
  const V inverse_lo = hn::Mul(hn::NegMulAdd(inverse, plain_e, hn::Sub(one, inverse)), inverse);

  // q = 1 - p_y = y sigma(-z) + (1-y) sigma(z) is n / (1 + e), n = c + (1-c) e with the c of no pos_weight.
  const V other = hn::Sub(one, y), other_lo = hn::Sub(hn::Sub(one, other), y);
  const V larger = hn::Mul(hn::IfNegativeThenElse(z, y, other), bias);
  const V larger_lo = hn::Mul(hn::IfNegativeThenElse(z, zero, other_lo), bias);
  const V smaller = hn::IfNegativeThenElse(z, other, y);
  const V n = hn::MulAdd(smaller, e, larger);
  V q = n, q_lo = hn::Add(hn::MulAdd(smaller, e, hn::Sub(larger, n)), larger_lo);
  MultiplyPair(inverse, q, q_lo);
  FocalPower(lanes, q, hn::MulAdd(n, inverse_lo, q_lo), &first, &second);

  const V alpha = hn::MulAdd(y, hn::Set(d, lanes.alpha), hn::Mul(other, hn::Set(d, lanes.other_alpha)));
  lanes.Weight(block, i, kUnbias, &f, &f_lo);
  const auto finish = [&](V v, V factor)
                          HWY_ATTR { return Flushed<T>(hn::Mul(hn::Mul(hn::Mul(v, factor), first), second)); };
  *loss = finish(hn::Mul(bce, alpha), hn::Add(f, f_lo));
  if (block.out[kGrad] == nullptr && block.out[kTargetGrad] == nullptr) return;
  V g, g_lo;
  lanes.GradientFactor(block, i, f, f_lo, &g, &g_lo);
  g = hn::Add(g, g_lo);
  const V gamma = hn::Set(d, lanes.gamma);
  if (block.out[kGrad] != nullptr) {
    // The derivative of q^gamma is gamma q^gamma (1-2y) times sigma(z) sigma(-z) / q, which is e / (1+e) / n.
    const V sigma = hn::Mul(e, inverse), sigma_lo = hn::MulAdd(e, inverse_lo, hn::MulSub(e, inverse, sigma));
    const V ratio = hn::Mul(hn::Mul(gamma, hn::Sub(other, y)), hn::Div(sigma, n));
    V slope = Slope<kKind, T>(block, i, z, y, sigma, sigma_lo, &lo);
    slope = hn::MulAdd(ratio, bce, hn::Xor(hn::Sub(slope, lo), hn::And(z, hn::SignBit(d))));
    *grad = finish(hn::Mul(slope, alpha), g);
  }
  if (block.out[kTargetGrad] != nullptr) {
    // q changes by sigma(-z) - sigma(z), and so does q^gamma bce by gamma bce / q times that.
    const V change = hn::Xor(hn::Mul(hn::Sub(plain_e, one), inverse), hn::And(z, hn::SignBit(d)));
    const V quotient = hn::Mul(hn::Div(hn::Mul(bce, bias), n), hn::Add(one, plain_e));
    V h = TargetSlope<kKind, T>(block, i, z, e, p, &lo);
    h = hn::MulAdd(hn::Mul(change, gamma), quotient, hn::Add(h, lo));
    h = hn::MulAdd(h, alpha, hn::Mul(hn::Set(d, lanes.alpha_slope), bce));
    *target_grad = finish(h, g);
  }
}

// Makes the results of a vector of elements that are given as probabilities, as far as they are wanted. Logarithms are
// at least -100, the gradient's p (1-p) at least 1e-12.
template <class T, class V = LanesOf<T>>
HWY_INLINE void OfProbabilities(const BinaryLanes<T> &lanes, const BinaryBlock &block, int64_t i, V *loss, V *grad,
                                V *target_grad) {
  const LaneTag<T> d;
  const V one = hn::Set(d, T{1}), lowest = hn::Set(d, T{-100}), smallest = hn::Set(d, static_cast<T>(1e-12));
  const V x = LoadLanes(d, block.in[kInput] + i), y = LoadLanes(d, block.in[kTarget] + i);
  const V log = hn::Neg(hn::Max(LogFunction::Full(d, x), lowest));
  const V log_other = hn::Neg(hn::Max(Log1pFunction::Full(d, hn::Neg(x)), lowest));
  const V a = hn::Sub(one, y), a_lo = hn::Sub(hn::Sub(one, a), y);
  V f, f_lo;
  lanes.Weight(block, i, 1.0, &f, &f_lo);
  if (block.out[kLoss] != nullptr || block.sum != nullptr) {
    V product = log_other, product_lo = hn::Zero(d);
    MultiplyPair(a, product, product_lo);
    const V bce = hn::MulAdd(y, log, product), bce_lo = hn::MulAdd(a_lo, log_other, product_lo);
    *loss = PairTimes<T>(bce, bce_lo, f, f_lo);
  }
  V g, g_lo;
  if (block.out[kGrad] != nullptr || block.out[kTargetGrad] != nullptr) {
    lanes.GradientFactor(block, i, f, f_lo, &g, &g_lo);
  }
  if (block.out[kGrad] != nullptr) {
    const V other = hn::Sub(one, x), other_lo = hn::Sub(hn::Sub(one, other), x);
    V divisor = other, divisor_lo = other_lo;
    MultiplyPair(x, divisor, divisor_lo);
    const auto small = hn::Lt(divisor, smallest);
    divisor = hn::IfThenElse(small, smallest, divisor);
    divisor_lo = hn::IfThenZeroElse(small, divisor_lo);
    const V inverse = hn::Div(one, divisor), difference = hn::Sub(x, y);
    const V q = hn::Mul(difference, inverse);
    const V rest = hn::NegMulAdd(q, divisor_lo, hn::NegMulAdd(q, divisor, difference));
    *grad = PairTimes<T>(q, hn::Mul(rest, inverse), g, g_lo);
  }
  if (block.out[kTargetGrad] != nullptr) *target_grad = PairTimes<T>(hn::Sub(log, log_other), hn::Zero(d), g, g_lo);
}

// Writes the results of the first `count` elements of a block, whole turns: four vectors in lockstep, or, where that
// takes too many registers, one after the other.
template <BinaryKind kKind, class T>
void WriteBlock(const BinaryLanes<T> &given_lanes, const BinaryBlock &given, const T *exponentials, int64_t count) {
  using V = LanesOf<T>;
  // Copies that no store can change: the compiler need not read them again.
  const BinaryLanes<T> lanes = given_lanes;
  const BinaryBlock block = given;
  const LaneTag<T> d;
  const int64_t n = static_cast<int64_t>(hn::Lanes(d));
  const bool wants_loss = block.out[kLoss] != nullptr || block.sum != nullptr;
  const bool wants_grad = block.out[kGrad] != nullptr, wants_target_grad = block.out[kTargetGrad] != nullptr;
  const V unbias = hn::Set(d, static_cast<T>(kUnbias));
  for (int64_t i = 0; i < count; i += 4 * n) {
    if (i % kBinaryTurn == 0) block.Prefetch(kTarget, i);
    V v0, v1, v2, v3, e0, e1, e2, e3, p0, p1, p2, p3;
    if constexpr (kKind != BinaryKind::kProbabilities) LoadFour(d, exponentials + i, n, e0, e1, e2, e3);
    // log(1 + e) / e, where they are used: else the compiler makes one polynomial after the other.
    const auto make_ratios = [&]() XENT_INLINE_LAMBDA {
      PolynomialFour<kLog1pF32>(hn::Mul(e0, unbias), hn::Mul(e1, unbias), hn::Mul(e2, unbias), hn::Mul(e3, unbias), p0,
                                p1, p2, p3);
    };
    if constexpr (kKind == BinaryKind::kFocal || kKind == BinaryKind::kProbabilities) {
      // Of a value at first, since g++ does not see on SVE that what is not made is not stored.
      V g0 = unbias, g1 = g0, g2 = g0, g3 = g0, h0 = g0, h1 = g0, h2 = g0, h3 = g0;
      if constexpr (kKind == BinaryKind::kFocal) {
        make_ratios();
        Focal<T>(lanes, block, i, e0, p0, &v0, &g0, &h0);
        Focal<T>(lanes, block, i + n, e1, p1, &v1, &g1, &h1);
        Focal<T>(lanes, block, i + 2 * n, e2, p2, &v2, &g2, &h2);
        Focal<T>(lanes, block, i + 3 * n, e3, p3, &v3, &g3, &h3);
      } else {
        OfProbabilities<T>(lanes, block, i, &v0, &g0, &h0);
        OfProbabilities<T>(lanes, block, i + n, &v1, &g1, &h1);
        OfProbabilities<T>(lanes, block, i + 2 * n, &v2, &g2, &h2);
        OfProbabilities<T>(lanes, block, i + 3 * n, &v3, &g3, &h3);
      }
      if (wants_loss) StoreLosses<T>(block, i, v0, v1, v2, v3);
      if (wants_grad) StoreResults<T>(block, kGrad, i, g0, g1, g2, g3);
      if (wants_target_grad) StoreResults<T>(block, kTargetGrad, i, h0, h1, h2, h3);
    } else {
      const V z0 = LoadLanes(d, block.in[kInput] + i), z1 = LoadLanes(d, block.in[kInput] + i + n),
              z2 = LoadLanes(d, block.in[kInput] + i + 2 * n), z3 = LoadLanes(d, block.in[kInput] + i + 3 * n);
      const V y0 = LoadLanes(d, block.in[kTarget] + i), y1 = LoadLanes(d, block.in[kTarget] + i + n),
              y2 = LoadLanes(d, block.in[kTarget] + i + 2 * n), y3 = LoadLanes(d, block.in[kTarget] + i + 3 * n);
      if (wants_loss) {
        make_ratios();
        const auto loss = [&](int64_t at, V z, V y, V e, V p) XENT_INLINE_LAMBDA {
          V lo, f, f_lo;
          if constexpr (kKind == BinaryKind::kPlain) {
            return Flushed<T>(Bce<kKind, T>(block, at, z, y, hn::Mul(e, unbias), p, &lo));
          }
          const V bce = Bce<kKind, T>(block, at, z, y, e, p, &lo);
          lanes.Weight(block, at, kUnbias, &f, &f_lo);
          return PairTimes<T>(bce, lo, f, f_lo);
        };
        v0 = loss(i, z0, y0, e0, p0);
        v1 = loss(i + n, z1, y1, e1, p1);
        v2 = loss(i + 2 * n, z2, y2, e2, p2);
        v3 = loss(i + 3 * n, z3, y3, e3, p3);
        StoreLosses<T>(block, i, v0, v1, v2, v3);
      }
      const auto factor = [&](int64_t at, V *g, V *g_lo) XENT_INLINE_LAMBDA {
        *g = hn::Set(d, lanes.plain_scale);
        *g_lo = hn::Set(d, lanes.plain_scale_lo);
        if (kKind == BinaryKind::kPlain && block.in[kUpstream] == nullptr) return;
        V f = unbias, f_lo = hn::Zero(d);
        if constexpr (kKind != BinaryKind::kPlain) lanes.Weight(block, at, kUnbias, &f, &f_lo);
        lanes.GradientFactor(block, at, f, f_lo, g, g_lo);
      };
      if (wants_grad) {
        const auto gradient = [&](int64_t at, V z, V y, V e) XENT_INLINE_LAMBDA {
          V g, g_lo, lo;
          // sigma = e / (1+e). e - sigma is exact, for sigma <= e <= 2 sigma, and dividing the rest by 1+e is
          // multiplying it by 1-sigma.
          const V plain_e = hn::Mul(e, unbias), sigma = hn::Div(e, hn::Add(plain_e, hn::Set(d, T{1})));
          const V rest = hn::NegMulAdd(sigma, plain_e, hn::Sub(e, sigma));
          const V sigma_lo = hn::NegMulAdd(hn::Mul(sigma, unbias), rest, rest);
          const V slope = Slope<kKind, T>(block, at, z, y, sigma, sigma_lo, &lo);
          factor(at, &g, &g_lo);
          const V v = hn::MulAdd(slope, g, hn::NegMulAdd(lo, g, hn::Mul(slope, g_lo)));
          return Flushed<T>(hn::Xor(v, hn::And(z, hn::SignBit(d))));
        };
        v0 = gradient(i, z0, y0, e0);
        v1 = gradient(i + n, z1, y1, e1);
        v2 = gradient(i + 2 * n, z2, y2, e2);
        v3 = gradient(i + 3 * n, z3, y3, e3);
        StoreResults<T>(block, kGrad, i, v0, v1, v2, v3);
      }
      if (wants_target_grad) {
        make_ratios();
        const auto gradient = [&](int64_t at, V z, V e, V p) XENT_INLINE_LAMBDA {
          V g, g_lo, lo;
          const V slope = TargetSlope<kKind, T>(block, at, z, e, p, &lo);
          factor(at, &g, &g_lo);
          return PairTimes<T>(slope, lo, g, g_lo);
        };
        v0 = gradient(i, z0, e0, p0);
        v1 = gradient(i + n, z1, e1, p1);
        v2 = gradient(i + 2 * n, z2, e2, p2);
        v3 = gradient(i + 3 * n, z3, e3, p3);
        StoreResults<T>(block, kTargetGrad, i, v0, v1, v2, v3);
      }
    }
  }
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
