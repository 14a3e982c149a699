// Binary cross-entropy, its gradients and the focal loss, element by element: from memory to elements and back, and the
// pairs of doubles that compute float64, and of the other types what the lanes of binary_lanes-inl.h leave.
//
// With e = exp(-|z|), the larger side of z has softplus |z| + log1p(e) and sigmoid 1/(1+e), the smaller log1p(e) and
// e/(1+e): nothing cancels. Every rounding but those of exp (0.79 ULP) and log1p (0.78 ULP) is carried along in a
// second double, and the factors' exponents are kept apart. On the inputs of tests/kernels/binary_test.cc losses are
// within 2.2 ULP, gradients 1.6, target gradients 3.0 (z near 0 with a pos_weight near -1, where the errors of both
// softplus add up).
//
// Pairs take for 0: sigmoid and softplus below 2^-1532, and pos_weight times target below the normal range.
//
// Subnormal inputs count for what they are: the caller has set the floating-point mode that keeps them.
#if defined(XENT_SRC_KERNELS_BINARY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_BINARY_INL_H_
#undef XENT_SRC_KERNELS_BINARY_INL_H_
#else
#define XENT_SRC_KERNELS_BINARY_INL_H_
#endif

#include <algorithm>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "kernels/binary.h"
#include "kernels/binary_lanes-inl.h"
#include "kernels/double_lanes-inl.h"
#include "kernels/lanes-inl.h"
#include "numbers/exp-inl.h"
#include "numbers/log-inl.h"
#include "numbers/number.h"
#include "numbers/pairs-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// ---- pairs: a high part, and in a second number what its roundings lost ----
// A result that is not finite has the low part 0.

HWY_INLINE Doubles PairSum(Doubles a, Doubles a_lo, Doubles b, Doubles b_lo, Doubles *lo) {
  const DoubleTag d;
  Doubles lost = hn::Zero(d);
  const Doubles sum = ExactSum(d, a, b, &lost);
  *lo = hn::IfThenElseZero(hn::IsFinite(sum), hn::Add(lost, hn::Add(a_lo, b_lo)));
  return sum;
}

// Returns a b, 0 where a factor is 0, whatever the other.
HWY_INLINE Doubles PairProduct(Doubles a, Doubles a_lo, Doubles b, Doubles b_lo, Doubles *lo) {
  const DoubleTag d;
  const Doubles product = hn::Mul(a, b);
  const Doubles lost = hn::Add(ProductError(d, a, b, product), hn::Add(hn::Mul(a, b_lo), hn::Mul(a_lo, b)));
  *lo = hn::IfThenElseZero(hn::IsFinite(product), lost);
  return hn::IfThenZeroElse(hn::Or(hn::Eq(a, hn::Zero(d)), hn::Eq(b, hn::Zero(d))), product);
}

// Returns a x + b y. More than 8 parameters: vectors may be sizeless (SVE), and those cannot stand in a struct.
HWY_INLINE Doubles PairOfProducts(Doubles a, Doubles a_lo, Doubles x, Doubles x_lo, Doubles b, Doubles b_lo, Doubles y,
                                  Doubles y_lo, Doubles *lo) {
  Doubles ax_lo = hn::Zero(DoubleTag()), by_lo = ax_lo;
  const Doubles ax = PairProduct(a, a_lo, x, x_lo, &ax_lo), by = PairProduct(b, b_lo, y, y_lo, &by_lo);
  return PairSum(ax, ax_lo, by, by_lo, lo);
}

HWY_INLINE Doubles PairQuotient(Doubles a, Doubles a_lo, Doubles b, Doubles b_lo, Doubles *lo) {
  const DoubleTag d;
  const Doubles q = hn::Div(a, b), product = hn::Mul(q, b);
  const Doubles rest =
      hn::Sub(hn::Sub(hn::Sub(a, product), ProductError(d, q, b, product)), hn::Sub(hn::Mul(q, b_lo), a_lo));
  *lo = hn::IfThenElseZero(hn::IsFinite(q), hn::Div(rest, b));
  return q;
}

// Returns m of x = m 2^k with 1 <= |m| < 2; k = 0 for zero, infinity and NaN.
HWY_INLINE Doubles MantissaOf(Doubles x, Doubles *k) {
  const DoubleTag d;
  const hn::RebindToUnsigned<DoubleTag> du;
  const auto tiny = hn::Lt(hn::Abs(x), hn::Set(d, 0x1p-1022));
  const Doubles normal = hn::IfThenElse(tiny, hn::Mul(x, hn::Set(d, 0x1p54)), x);
  const auto splits = hn::AndNot(hn::Eq(x, hn::Zero(d)), hn::IsFinite(x));
  *k = hn::IfThenElseZero(splits, hn::Sub(ExponentsOf(d, normal), hn::IfThenElseZero(tiny, hn::Set(d, 54.0))));
  const auto fraction = hn::And(hn::BitCast(du, normal), hn::Set(du, ~(uint64_t{0x7ff} << 52)));
  const auto mantissa = hn::Or(fraction, hn::Set(du, uint64_t{1023} << 52));
  return hn::IfThenElse(splits, hn::BitCast(d, mantissa), x);
}

// Multiplies (hi + lo) 2^k by a factor.
HWY_INLINE void MultiplyBy(Doubles factor, Doubles factor_lo, Doubles *hi, Doubles *lo, Doubles *k) {
  const DoubleTag d;
  Doubles exponent = hn::Zero(d);
  factor = MantissaOf(factor, &exponent);
  factor_lo = ScaledBy(d, factor_lo, hn::Neg(exponent));
  *k = hn::Add(*k, exponent);
  *hi = PairProduct(*hi, *lo, factor, factor_lo, lo);
}

// Returns e^t 2^lift where that is a normal number.
HWY_INLINE Doubles LiftedExp(Doubles t, double lift) {
  const DoubleTag d;
  using F = ExpFormat<double>;
  Doubles m = hn::Zero(d);
  const Doubles p = ReducedExp(d, hn::Set(d, F::kRound + F::kExponentBias + lift), t, hn::Zero(d), &m);
  return ScaleByExponent(d, p, m);
}

// ---- from the parts of an element to its outputs ----

// Stores the loss s 2^k w, the gradient g 2^k w u / denominator and the target's gradient h 2^h_k w u / denominator,
// w being the product of the weights and u the upstream gradient.
// More than 8 parameters: see PairOfProducts.
HWY_INLINE void StoreElements(const BinaryTask &task, BinaryStep &step, int64_t i, Doubles s, Doubles s_lo, Doubles g,
                              Doubles g_lo, Doubles k, Doubles h, Doubles h_lo, Doubles h_k) {
  const DoubleTag d;
  const auto given = [&](int input) HWY_ATTR { return hn::Load(d, step.in[input] + i); };
  auto is_nan = hn::Or(hn::IsNaN(given(kInput)), hn::IsNaN(given(kTarget)));
  Doubles w = hn::Set(d, 1.0), w_lo = hn::Zero(d), w_k = hn::Zero(d);
  const auto store = [&](BinaryOutput output, Doubles value, Doubles value_lo, Doubles value_k) XENT_INLINE_LAMBDA {
    Doubles v = w, v_lo = w_lo, v_k = w_k;
    MultiplyBy(value, value_lo, &v, &v_lo, &v_k);
    v = ScaledBy(d, hn::Add(v, v_lo), hn::Add(v_k, value_k));
    hn::Store(hn::IfThenElse(is_nan, hn::Set(d, kNan), v), d, step.out[output] + i);
  };
  for (int weight = kElementWeight; weight <= kClassWeight; ++weight) {
    if (task.inputs[weight].data != nullptr) MultiplyBy(given(weight), hn::Zero(d), &w, &w_lo, &w_k);
  }
  if (task.Wants(kLoss) || task.sum) store(kLoss, s, s_lo, k);
  if (!task.Wants(kGrad) && !task.Wants(kTargetGrad)) return;
  if (task.Has(kUpstream)) {
    const Doubles u = given(kUpstream);
    is_nan = hn::Or(is_nan, hn::IsNaN(u));
    MultiplyBy(u, hn::Zero(d), &w, &w_lo, &w_k);
  }
  w = PairProduct(w, w_lo, hn::Set(d, task.inverse.hi), hn::Set(d, task.inverse.lo), &w_lo);
  w_k = hn::Sub(w_k, hn::Set(d, static_cast<double>(task.denominator.exponent)));
  if (task.Wants(kGrad)) store(kGrad, g, g_lo, k);
  if (task.Wants(kTargetGrad)) store(kTargetGrad, h, h_lo, h_k);
}

// Makes the results of a step whose inputs are logits.
inline void LogitsStep(const BinaryTask &task, BinaryStep &step) {
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Doubles zero = hn::Zero(d), one = hn::Set(d, 1.0);
  for (int64_t i = 0; i < step.count; i += lanes) {
    const Doubles z = hn::Load(d, step.in[kInput] + i);
    const Doubles y = hn::Load(d, step.in[kTarget] + i);
    const Doubles pos_weight = task.Has(kPosWeight) ? hn::Load(d, step.in[kPosWeight] + i) : one;
    const Doubles magnitude = hn::Abs(z);
    const auto positive = hn::Gt(z, zero);

    // e, 1 / (1 + e) (big), log(1 + e) and e 2^512 (lifted). Exponentials below the normal range, down to 2^-1532,
    // count where the larger side's coefficient is as small and a weight or an upstream gradient is huge. Past that
    // they are 0, but for float32 not: its infinite upstream gradients show that.
    constexpr double kLift = 512.0, kLowest = -1062.0, kAlone = 0x1p-256;
    const double farthest = task.inputs[kInput].dtype == kF64 ? -kLowest : std::numeric_limits<double>::max();
    const auto far = hn::And(hn::Gt(magnitude, hn::Set(d, 350.0)), hn::Le(magnitude, hn::Set(d, farthest)));
    Doubles big_lo = zero, small_lo = zero, total_lo = zero, long_lo = zero;
    const Doubles lifted = LiftedExp(hn::Max(hn::Neg(magnitude), hn::Set(d, kLowest)), kLift);
    const Doubles e = hn::IfThenElseZero(hn::Le(magnitude, hn::Set(d, 708.0)), hn::Mul(lifted, hn::Set(d, 0x1p-512)));
    const Doubles total = PairSum(one, zero, e, zero, &total_lo);
    const Doubles big = PairQuotient(one, zero, total, total_lo, &big_lo);
    const Doubles log1p = Log1pOfSum(d, e, total, hn::Mul(hn::Sub(e, hn::Sub(total, one)), big));
    // Of the smaller side the sigmoid, of the larger side the softplus.
    const Doubles small = PairProduct(e, zero, big, big_lo, &small_lo);
    const Doubles longer = PairSum(magnitude, zero, log1p, zero, &long_lo);

    // In the far tail softplus and sigmoid of the smaller side are e. Where the larger side's coefficient c is small
    // too, all is computed times 2^512. Returns where that is.
    const auto lift_tail = [&](Doubles &c, Doubles &c_lo, Doubles &k) XENT_INLINE_LAMBDA {
      const auto tail = hn::And(far, hn::Lt(hn::Abs(c), hn::Set(d, kAlone)));
      const Doubles lift = hn::IfThenElse(tail, hn::Set(d, 0x1p512), one);
      c = hn::Mul(c, lift);
      c_lo = hn::Mul(c_lo, lift);
      k = hn::IfThenElseZero(tail, hn::Set(d, -kLift));
      return tail;
    };

    // The coefficients of softplus(z) and softplus(-z), then of the larger and of the smaller side.
    Doubles a_lo = zero, b_lo = zero, s_k = zero;
    const Doubles a = PairSum(one, zero, hn::Neg(y), zero, &a_lo);
    const Doubles b = PairProduct(pos_weight, zero, y, zero, &b_lo);
    Doubles c = hn::IfThenElse(positive, a, b), c_lo = hn::IfThenElse(positive, a_lo, b_lo);
    Doubles c_small = hn::IfThenElse(positive, b, a), c_small_lo = hn::IfThenElse(positive, b_lo, a_lo);
    const auto tail = lift_tail(c, c_lo, s_k);
    const Doubles softplus_small = hn::IfThenElse(tail, lifted, log1p);
    const Doubles sigma_small = hn::IfThenElse(tail, lifted, small);
    small_lo = hn::IfThenZeroElse(tail, small_lo);
    // The sums of both sides: the loss, the gradient for positive z, the gradient for the target.
    Doubles s_lo = zero, g_lo = zero, h_lo = zero, h = zero, h_k = zero;
    const Doubles s = PairOfProducts(c, c_lo, longer, long_lo, c_small, c_small_lo, softplus_small, zero, &s_lo);
    const Doubles g =
        PairOfProducts(c, c_lo, big, big_lo, hn::Neg(c_small), hn::Neg(c_small_lo), sigma_small, small_lo, &g_lo);
    if (task.Wants(kTargetGrad)) {
      const Doubles minus_one = hn::Set(d, -1.0);
      c = hn::IfThenElse(positive, minus_one, pos_weight);
      c_small = hn::IfThenElse(positive, pos_weight, minus_one);
      c_lo = zero;
      const Doubles softplus = hn::IfThenElse(lift_tail(c, c_lo, h_k), lifted, log1p);
      h = PairOfProducts(c, zero, longer, long_lo, c_small, zero, softplus, zero, &h_lo);
      // Without a pos_weight softplus(-z) - softplus(z) is -z, however small.
      const auto equal = hn::Eq(pos_weight, one);
      h = hn::IfThenElse(equal, hn::Neg(z), h);
      h_lo = hn::IfThenZeroElse(equal, h_lo);
      h_k = hn::IfThenZeroElse(equal, h_k);
    }
    StoreElements(task, step, i, s, s_lo, hn::IfThenElse(positive, g, hn::Neg(g)),
                  hn::IfThenElse(positive, g_lo, hn::Neg(g_lo)), s_k, h, h_lo, h_k);
  }
}

// Makes the results of a step whose inputs are probabilities. Logarithms are at least -100, the gradient's p (1-p) at
// least 1e-12.
inline void ProbabilitiesStep(const BinaryTask &task, BinaryStep &step) {
  const DoubleTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Doubles zero = hn::Zero(d), one = hn::Set(d, 1.0);
  const Doubles lowest = hn::Set(d, -100.0), smallest = hn::Set(d, 1e-12);
  for (int64_t i = 0; i < step.count; i += lanes) {
    const Doubles p = hn::Load(d, step.in[kInput] + i);
    const Doubles y = hn::Load(d, step.in[kTarget] + i);
    const Doubles minus_p = hn::Neg(p), minus_y = hn::Neg(y);
    const Doubles log_p = hn::Max(LogDouble(d, p), lowest);
    const Doubles log_other = hn::Max(Log1pDouble(d, minus_p), lowest);
    Doubles a_lo = zero, s_lo = zero, g_lo = zero, h_lo = zero, other_lo = zero, product_lo = zero;
    const Doubles a = PairSum(one, zero, minus_y, zero, &a_lo);
    const Doubles s = PairOfProducts(minus_y, zero, log_p, zero, hn::Neg(a), hn::Neg(a_lo), log_other, zero, &s_lo);
    const Doubles h = PairSum(log_other, zero, hn::Neg(log_p), zero, &h_lo);
    const Doubles difference = PairSum(p, zero, minus_y, zero, &g_lo);
    const Doubles other = PairSum(one, zero, minus_p, zero, &other_lo);
    const Doubles product = PairProduct(p, zero, other, other_lo, &product_lo);
    const auto small = hn::Lt(product, smallest);
    const Doubles g = PairQuotient(difference, g_lo, hn::IfThenElse(small, smallest, product),
                                   hn::IfThenZeroElse(small, product_lo), &g_lo);
    StoreElements(task, step, i, s, s_lo, g, g_lo, zero, h, h_lo, zero);
  }
}

inline void RunStep(const BinaryTask &task, BinaryStep &step) {
  if (task.probabilities) return ProbabilitiesStep(task, step);
  task.focal ? WideFocalStep(task, step) : LogitsStep(task, step);
}

// ---- from memory and back ----

// Calls piece(at, count, offset) for the parts of elements [index, index + count) that an operand has side by side:
// `at` counts from the first of the elements, `offset` from the operand's.
template <class Piece>
HWY_INLINE void ForEachPiece(const BinaryLayout &layout, const BinaryOperand &operand, int64_t index, int64_t count,
                             Piece piece) {
  if (operand.IsEven(layout)) return piece(0, count, index * operand.position);
  int64_t block = index / layout.length / layout.lines;
  int64_t line = index / layout.length % layout.lines, position = index % layout.length;
  for (int64_t at = 0, n; at < count; at += n, position = 0) {
    n = HWY_MIN(count - at, layout.length - position);
    piece(at, n, block * operand.block + line * operand.line + position * operand.position);
    if (++line == layout.lines) {
      line = 0;
      ++block;
    }
  }
}

// Converts `count` adjacent numbers of a storage type. A double that is no float becomes NaN: it is left to the pairs.
template <class In, class T>
HWY_INLINE void Convert(const In *from, int64_t count, T *to) {
  if constexpr (sizeof(T) == sizeof(double)) {
    Stage(from, count, count, 0.0, to);
  } else if constexpr (sizeof(In) == sizeof(double)) {
    for (int64_t i = 0; i < count; ++i) {
      const float v = static_cast<float>(from[i]);
      to[i] = static_cast<double>(v) == from[i] ? v : static_cast<float>(kNan);
    }
  } else {
    const Tag<In> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) hn::StoreU(LoadAs(d, from + i), d, to + i);
    for (; i < count; ++i) to[i] = Widen(from[i]);
  }
}

// Reads elements [index, index + count) of an input.
template <class T>
void ReadOperand(const BinaryTask &task, int input, int64_t index, int64_t count, T *to) {
  const BinaryOperand &operand = task.inputs[input];
  DispatchElements(operand.dtype, [&](auto in) XENT_INLINE_LAMBDA {
    ForEachPiece(task.layout, operand, index, count, [&](int64_t at, int64_t n, int64_t offset) XENT_INLINE_LAMBDA {
      const auto *const from = static_cast<const decltype(in) *>(operand.data) + offset;
      if (operand.position == 1) return Convert(from, n, to + at);
      Convert(from, 1, to + at);
      std::fill_n(to + at, n, to[at]);
    });
  });
}

// Stores a vector of doubles as Out, rounded once.
template <class D, class Out, class V = hn::Vec<D>>
HWY_INLINE void StoreRounded(D d, V v, Out *to) {
  v = FinishWithNan(d, v);
  if constexpr (sizeof(Out) == sizeof(double)) {
    StoreDoubles(d, v, to);
  } else {
    if constexpr (sizeof(Out) == 2) {
      // Below float32's normal range, where it does not keep all digits that StickyFloat needs, v becomes a multiple of
      // 2^-133, as bfloat16's numbers are there; float16 has only 0.
      const auto tiny = hn::Lt(hn::Abs(v), hn::Set(d, 0x1p-126));
      const V round = hn::Set(d, 0x1.8p-81);
      v = hn::IfThenElse(tiny, hn::CopySign(hn::Sub(hn::Add(v, round), round), v), StickyFloat(d, v));
    }
    const hn::Rebind<float, D> df;
    StoreAs(df, hn::DemoteTo(df, v), to);
  }
}

// Writes results of elements [index, index + count); memory behind them up to a whole vector may be read.
template <class T>
void WriteOperand(const BinaryTask &task, int output, int64_t index, int64_t count, const T *results) {
  const BinaryOperand &operand = task.outputs[output];
  const LaneTag<T> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  DispatchElements(operand.dtype, [&](auto out) XENT_INLINE_LAMBDA {
    using Out = decltype(out);
    const auto store = [&](const T *from, Out *to) HWY_ATTR {
      const auto v = hn::LoadU(d, from);
      if constexpr (sizeof(T) == sizeof(double)) {
        StoreRounded(d, v, to);
      } else if constexpr (sizeof(Out) == sizeof(double)) {
        StoreDoubles(d, v, to);
      } else {
        StoreAs(d, v, to);
      }
    };
    ForEachPiece(task.layout, operand, index, count, [&](int64_t at, int64_t n, int64_t offset) XENT_INLINE_LAMBDA {
      Out *const to = static_cast<Out *>(operand.data) + offset;
      int64_t i = 0;
      for (; i + lanes <= n; i += lanes) store(results + at + i, to + i);
      if (i == n) return;
      Out last[kLanes];
      store(results + at + i, last);
      std::memcpy(static_cast<void *>(to + i), last, static_cast<size_t>(n - i) * sizeof(Out));
    });
  });
}

// ---- a task in lanes ----

// Room for exponentials, for losses that cannot be written at once, and for inputs: those that lie apart in memory or
// have another type than float32 are copied block by block. What repeats with every row, and the row is short, is
// copied once, as often as a block that begins anywhere in a row needs it. The more there is, the shorter are the
// blocks.
template <class T>
class BinaryBuffers {
 public:
  explicit BinaryBuffers(const BinaryTask &task) : task_(task) {
    int64_t numbers = 1 + sizeof(T) / sizeof(float), repeated = 0;  // of an element: its loss, its exponential
    for (int input = 0; input < kBinaryInputs; ++input) {
      if (task.inputs[input].data == nullptr || IsSameUpstream(input)) continue;
      ++numbers;
      periods_[input] = PeriodOf(input);
      repeated += periods_[input];
    }
    block_ = HWY_MIN(kBinaryBlock, (kRoom - repeated) / numbers / kBinaryTurn * kBinaryTurn);
    losses_ = reinterpret_cast<float *>(Exponentials() + block_);
    float *next = losses_ + block_;
    for (int input = 0; input < kBinaryInputs; ++input) {
      if (task.inputs[input].data == nullptr || IsSameUpstream(input)) continue;
      buffers_[input] = next;
      next += block_ + periods_[input];
      if (periods_[input] != 0) ReadOperand(task, input, 0, block_ + periods_[input], buffers_[input]);
    }
  }

  // Makes a block of `count` elements, with 0 or any weights behind them up to `padded`.
  BinaryBlock Read(int64_t index, int64_t count, int64_t padded) {
    BinaryBlock block;
    for (int input = 0; input < kBinaryInputs; ++input) {
      float *const buffer = buffers_[input];
      if (buffer == nullptr) continue;
      const BinaryOperand &operand = task_.inputs[input];
      block.in[input] = buffer;
      if (periods_[input] != 0) {
        block.in[input] += index % periods_[input];
        continue;
      }
      if (operand.position == 1 && operand.IsEven(task_.layout)) {
        block.is_half[input] = ElementSize(operand.dtype) == 2;
        block.ahead[input] = static_cast<const unsigned char *>(operand.data) + index * ElementSize(operand.dtype);
        if (operand.dtype == kF32 && count == padded) {
          block.in[input] = static_cast<const float *>(operand.data) + index;
          continue;
        }
      }
      ReadOperand(task_, input, index, count, buffer);
      std::fill(buffer + count, buffer + padded, 0.0f);
    }
    return block;
  }

  // The length of blocks; where nothing is copied and no result waits, and so all room is the exponentials', longer.
  int64_t Block() const { return block_; }
  int64_t LongBlock() const {
    const auto direct = [&](const BinaryOperand &o) {
      return o.data == nullptr || (o.dtype == kF32 && o.position == 1 && o.IsEven(task_.layout));
    };
    bool all = direct(task_.inputs[kUpstream]) || IsSameUpstream(kUpstream);
    for (int input = 0; input < kUpstream; ++input) all = all && direct(task_.inputs[input]);
    for (const BinaryOperand &output : task_.outputs) all = all && direct(output);
    return all ? HWY_MIN(kLongBinaryBlock, kRoom * int64_t{sizeof(float)} / int64_t{sizeof(T)}) : block_;
  }
  T *Exponentials() { return reinterpret_cast<T *>(room_); }
  // Where results wait that cannot be written at once. Gradients do so over inputs, which are read before.
  float *Results(int output) { return output == kLoss ? losses_ : buffers_[output == kGrad ? kInput : kTarget]; }

 private:
  static constexpr int64_t kRoom = 1024, kLongestPeriod = 128;  // floats

  bool IsSameUpstream(int input) const { return input == kUpstream && task_.inputs[input].IsSame(task_.layout); }
  // Returns after how many elements a weight repeats; 0: it does not, or too late.
  int64_t PeriodOf(int input) const {
    const BinaryOperand &operand = task_.inputs[input];
    if (operand.IsSame(task_.layout)) return 1;
    const bool of_columns = operand.position == 1 && operand.block == 0 && task_.layout.lines == 1;
    return of_columns && task_.layout.length <= kLongestPeriod ? task_.layout.length : 0;
  }

  const BinaryTask &task_;
  int64_t block_, periods_[kBinaryInputs] = {};
  float *buffers_[kBinaryInputs] = {}, *losses_;
  HWY_ALIGN unsigned char room_[kRoom * sizeof(float)];
};

// Which of an element's results the pairs compute.
enum class Unusual : uint8_t { kNone, kGradients, kAll };

// Computes the unusual elements of a block in pairs and writes their results over those of the lanes.
inline HWY_NOINLINE void WriteUnusual(const BinaryTask &task, const BinaryBlock &block, int64_t index, int64_t count,
                                      const Unusual *unusual) {
  BinaryStep step;
  uint8_t places[kBinaryStep];
  for (int64_t i = 0; i < count;) {
    step.count = 0;
    for (int64_t n; i < count && step.count < kBinaryStep; i += n) {
      for (n = 0; i + n < count && step.count + n < kBinaryStep && unusual[i + n] != Unusual::kNone; ++n) {
        places[step.count + n] = static_cast<uint8_t>(i + n);
      }
      for (int input = 0; n > 0 && input < kBinaryInputs; ++input) {
        if (task.inputs[input].data != nullptr) ReadOperand(task, input, index + i, n, step.in[input] + step.count);
      }
      step.count += n;
      if (n == 0) n = 1;
    }
    RunStep(task, step);
    for (int output = 0; output < kBinaryOutputs; ++output) {
      for (int64_t k = 0; block.out[output] != nullptr && k < step.count; ++k) {
        if (output == kLoss && unusual[places[k]] != Unusual::kAll) continue;
        block.out[output][places[k]] = RoundTo<float>(step.out[output][k]);
      }
    }
  }
}

// Computes elements in lanes, block by block.
template <BinaryKind kKind, class T>
class LaneRun {
 public:
  // Not inline: else the stack would have room for the buffers of every kind at once.
  static HWY_NOINLINE Wide Elements(const BinaryTask &task, int64_t begin, int64_t end) {
    return LaneRun(task).Run(begin, end);
  }

 private:
  explicit LaneRun(const BinaryTask &task)
      : task_(task), lanes_(task), buffers_(task), wants_gradients_(task.Wants(kGrad) || task.Wants(kTargetGrad)) {}

  Wide Run(int64_t begin, int64_t end) {
    const int64_t longest = buffers_.LongBlock();
    for (int64_t index = begin, whole = 0; index < end;) {
      // A long block that was refused is cut up.
      const bool is_long = end - index >= longest && index >= whole;
      const int64_t count = is_long ? longest : HWY_MIN(end - index, buffers_.Block());
      if (Block(index, count)) {
        index += count;
      } else {
        whole = index + count;
      }
    }
    return sum_.Total();
  }

  // Writes the results of a block. False where it is a long one and has unusual elements: nothing is written then.
  bool Block(int64_t index, int64_t count) {
    const int64_t padded = (count + kBinaryTurn - 1) / kBinaryTurn * kBinaryTurn;
    BinaryBlock block = buffers_.Read(index, count, padded);
    // An unusual element is found before any result is written, which may be in the place of an input.
    bool usual = kKind == BinaryKind::kProbabilities ? AllUsual(lanes_, block, padded)
                                                     : MakeExponentials(lanes_, block, padded, buffers_.Exponentials());
    if constexpr (kKind != BinaryKind::kPlain) {
      const auto in_range = [&](int input, const FactorRange &range) {
        return block.in[input] == nullptr || AllInRange(block, input, padded, range);
      };
      for (int input = kElementWeight; input <= kClassWeight; ++input) usual &= in_range(input, kWeightRange);
      usual &= in_range(kPosWeight, kPosWeightRange);
    }
    if (wants_gradients_) {
      usual &= lanes_.grads;
      if (block.in[kUpstream] != nullptr) usual &= AllInRange(block, kUpstream, padded, lanes_.upstream_range);
    }
    if (HWY_LIKELY(usual && count == padded)) {
      for (int output = 0; output < kBinaryOutputs; ++output) Direct(output, index, &block);
      block.sum = task_.sum ? &sum_ : nullptr;
      WriteBlock<kKind>(lanes_, block, buffers_.Exponentials(), count);
      for (int output = 0; output < kBinaryOutputs; ++output) WriteBuffer(output, index, count, block);
      return true;
    }
    if (count > buffers_.Block()) return false;
    Unusual unusual[kBinaryBlock];
    for (int64_t i = 0; !usual && i < count; ++i) {
      bool gradients = false;
      const bool loss = lanes_.IsUsual(block, i, &gradients);
      unusual[i] = !loss ? Unusual::kAll : gradients ? Unusual::kNone : Unusual::kGradients;
    }
    for (int output = 0; output < kBinaryOutputs; ++output) {
      if (task_.outputs[output].data != nullptr) block.out[output] = buffers_.Results(output);
    }
    if (task_.sum) block.out[kLoss] = buffers_.Results(kLoss);
    WriteBlock<kKind>(lanes_, block, buffers_.Exponentials(), padded);
    if (!usual) WriteUnusual(task_, block, index, count, unusual);
    if (task_.sum) {
      std::fill(block.out[kLoss] + count, block.out[kLoss] + padded, 0.0f);
      const LaneTag<float> d;
      for (int64_t i = 0; i < padded; i += static_cast<int64_t>(hn::Lanes(d))) {
        AddToLanes(d, hn::LoadU(d, block.out[kLoss] + i), i % kLanes, sum_);
      }
    }
    for (int output = 0; output < kBinaryOutputs; ++output) WriteBuffer(output, index, count, block);
    return true;
  }

  // Has a block's results written where they belong, or, if they are no adjacent floats there, to a buffer.
  void Direct(int output, int64_t index, BinaryBlock *block) {
    const BinaryOperand &operand = task_.outputs[output];
    if (operand.data == nullptr) return;
    block->out[output] = buffers_.Results(output);
    if (operand.dtype != kF32 || !operand.IsEven(task_.layout)) return;
    block->out[output] = static_cast<float *>(operand.data) + index;
    // Streaming stores need aligned vectors.
    block->streams[output] = task_.large && operand.data != task_.inputs[kInput].data &&
                             operand.data != task_.inputs[kTarget].data &&
                             reinterpret_cast<uintptr_t>(block->out[output]) % (kLanes * sizeof(float)) == 0;
  }

  void WriteBuffer(int output, int64_t index, int64_t count, const BinaryBlock &block) {
    if (task_.outputs[output].data == nullptr || block.out[output] != buffers_.Results(output)) return;
    WriteOperand(task_, output, index, count, block.out[output]);
  }

  const BinaryTask &task_;
  const BinaryLanes<T> lanes_;
  BinaryBuffers<T> buffers_;
  const bool wants_gradients_;
  LaneSums<float> sum_;
};

// ---- a task ----

// Computes elements whose input is float32 or half precision.
inline Wide BinaryFloats(const BinaryTask &task, int64_t begin, int64_t end) {
  using T = std::conditional_t<HWY_NATIVE_FMA, float, double>;
  if (task.probabilities) return LaneRun<BinaryKind::kProbabilities, T>::Elements(task, begin, end);
  if (task.focal) {
    const bool in_float = HWY_NATIVE_FMA && task.gamma <= kMostFloatGamma;
    return in_float ? LaneRun<BinaryKind::kFocal, T>::Elements(task, begin, end)
                    : LaneRun<BinaryKind::kFocal, double>::Elements(task, begin, end);
  }
  bool plain = true;
  for (int input = kPosWeight; input <= kClassWeight; ++input) plain = plain && task.inputs[input].data == nullptr;
  return plain ? LaneRun<BinaryKind::kPlain, T>::Elements(task, begin, end)
               : LaneRun<BinaryKind::kWeighted, T>::Elements(task, begin, end);
}

// Computes elements whose input is float64.
inline Wide BinaryDoubles(const BinaryTask &task, int64_t begin, int64_t end) {
  const LaneTag<double> d;
  LaneSums<double> sum;
  BinaryStep step;
  for (int64_t index = begin; index < end; index += kBinaryStep) {
    step.count = HWY_MIN(end - index, kBinaryStep);
    for (int i = 0; i < kBinaryInputs; ++i) {
      if (task.inputs[i].data != nullptr) ReadOperand(task, i, index, step.count, step.in[i]);
    }
    RunStep(task, step);
    if (task.sum) {
      double *const losses = step.out[kLoss];
      std::fill(losses + step.count, losses + kBinaryStep, 0.0);
      for (int64_t i = 0; i < step.count; i += static_cast<int64_t>(hn::Lanes(d))) {
        AddToLanes(d, FinishWithNan(d, hn::Load(d, losses + i)), i % kLanes, sum);
      }
    }
    for (int i = 0; i < kBinaryOutputs; ++i) {
      if (task.outputs[i].data != nullptr) WriteOperand(task, i, index, step.count, step.out[i]);
    }
  }
  return sum.Total();
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
