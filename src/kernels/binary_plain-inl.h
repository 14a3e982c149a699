// Plain binary cross-entropy, that of logits without weights, in float32 lanes; and the parts of the loss with weights
// that float32 lanes compute.
//
// With e = e^-|z| and the coefficient c of the larger side, 1-y for positive z and y else, the loss is c |z| + log(1+e)
// and the gradient c - e/(1+e), its sign that of z. Nothing cancels: log(1+e) = e P(e) keeps its digits however small
// it is, and neither 1-e/(1+e) nor 1-c is formed. docs/numerics.md counts the errors.
#if defined(XENT_SRC_KERNELS_BINARY_PLAIN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_BINARY_PLAIN_INL_H_
#undef XENT_SRC_KERNELS_BINARY_PLAIN_INL_H_
#else
#define XENT_SRC_KERNELS_BINARY_PLAIN_INL_H_
#endif

#include <iterator>

#include "hwy/highway.h"
#include "kernels/binary.h"
#include "kernels/lanes-inl.h"
#include "kernels/step-inl.h"
#include "numbers/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

using FloatTag = Tag<float>;
using Floats = hn::Vec<FloatTag>;

// The gradients' factor, in two parts.
struct PlainScale {
  float hi = 0.0f, lo = 0.0f;
};

// Where the elements' results go.
template <class In>
struct PlainOutputs {
  PlainScale scale;
  float *losses = nullptr;  // null: nowhere, as for what follows
  In *grad = nullptr;
  LaneSums<float> *sum = nullptr;
  bool stream_losses = false, stream_grad = false;  // past the caches
};

// Below this argument exponentials count as 0: they are less than half of the smallest subnormal number.
inline constexpr float kLowestArgument = -104.0f;
// Exponentials are formed with this power of two, so that those below the normal range keep their digits to the end,
// where they count beside targets as small. How far down ExpFour itself goes differs between targets.
inline constexpr int kExponentialBias = 30;

HWY_INLINE Floats MinusMagnitude(Floats z) { return hn::Or(z, hn::SignBit(FloatTag())); }

// Returns NaN for the elements that are left to the double lanes: z or y is NaN, or y infinite.
HWY_INLINE Floats Unusual(Floats z, Floats y) { return hn::MulAdd(y, hn::Zero(FloatTag()), z); }

// Returns v, or 0 where it is below the normal range or NaN.
HWY_INLINE Floats Flushed(Floats v) {
  return hn::IfThenElseZero(hn::Gt(hn::Abs(v), hn::Set(FloatTag(), 0x1p-126f)), v);
}

// Makes log(1 + e) / e of 0 <= e <= 1, in lockstep.
HWY_INLINE void Log1pRatioFour(Floats e0, Floats e1, Floats e2, Floats e3, Floats &p0, Floats &p1, Floats &p2,
                               Floats &p3) {
  const FloatTag d;
  constexpr int kTerms = std::size(kLog1pF32);
  p0 = p1 = p2 = p3 = hn::Set(d, kLog1pF32[kTerms - 1]);
  HWY_UNROLL(16)
  for (int i = kTerms - 2; i >= 0; --i) {
    const Floats coefficient = hn::Set(d, kLog1pF32[i]);
    p0 = hn::MulAdd(p0, e0, coefficient);
    p1 = hn::MulAdd(p1, e1, coefficient);
    p2 = hn::MulAdd(p2, e2, coefficient);
    p3 = hn::MulAdd(p3, e3, coefficient);
  }
}

HWY_INLINE Floats LargerCoefficient(Floats z, Floats y) {
  return hn::IfNegativeThenElse(z, y, hn::Sub(hn::Set(FloatTag(), 1.0f), y));
}

// c |z| + log(1+e). 0 inf is NaN, which is flushed to 0: that is the loss then.
HWY_INLINE Floats PlainLoss(Floats c, Floats z, Floats log1p) { return Flushed(hn::MulAdd(c, hn::Abs(z), log1p)); }

HWY_INLINE Floats PlainGrad(PlainScale scale, Floats z, Floats c, Floats e) {
  // sigma is that of -|z|. What its two roundings lose is subtracted last: e - sigma is exact, for sigma <= e <= 2
  // sigma, and dividing the rest by 1+e is multiplying it by 1-sigma.
  const Floats sigma = hn::Div(e, hn::Add(e, hn::Set(FloatTag(), 1.0f)));
  const Floats rest = hn::NegMulAdd(sigma, e, hn::Sub(e, sigma));
  const Floats difference = hn::Sub(hn::Sub(c, sigma), hn::NegMulAdd(sigma, rest, rest));
  const Floats g = hn::Xor(difference, hn::And(z, hn::SignBit(FloatTag())));
  const Floats low = hn::Mul(g, hn::Set(FloatTag(), scale.lo));
  return Flushed(hn::MulAdd(g, hn::Set(FloatTag(), scale.hi), low));
}

// What the double lanes take over for elements with weights: e = e^-|z| with the bias of Format, 1/(1+e), log(1+e)/e.
struct LogisticParts {
  HWY_ALIGN float exponential[kBinaryStep], inverse[kBinaryStep], ratio[kBinaryStep];
};
// The magnitude of z beyond which biased exponentials leave the normal range.
inline constexpr float kFarthestPart = 138.0f;

// Makes the parts of `count` elements, rounded up to whole fours of vectors. False where some are farther, or NaN.
inline bool MakeParts(const double *x, int64_t count, LogisticParts &parts) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const ExpRange<float> range(0);
  const Floats one = hn::Set(d, 1.0f), unbias = hn::Set(d, static_cast<float>(PowerOfTwo(-Format<float>::kBias)));
  const Floats farthest = hn::Set(d, -kFarthestPart);
  bool near = true;
  for (int64_t i = 0; i < count; i += 4 * lanes) {
    const auto load = [&](int64_t at) HWY_ATTR { return MinusMagnitude(LoadDoubles(d, x + at)); };
    Floats e0 = load(i), e1 = load(i + lanes), e2 = load(i + 2 * lanes), e3 = load(i + 3 * lanes);
    near = near && hn::AllTrue(d, hn::And(hn::And(hn::Ge(e0, farthest), hn::Ge(e1, farthest)),
                                          hn::And(hn::Ge(e2, farthest), hn::Ge(e3, farthest))));
    ExpFour(d, range, e0, e1, e2, e3);
    StoreFour(d, e0, e1, e2, e3, parts.exponential + i, lanes);
    const auto inverse = [&](Floats e) HWY_ATTR { return hn::Div(one, hn::MulAdd(e, unbias, one)); };
    StoreFour(d, inverse(e0), inverse(e1), inverse(e2), inverse(e3), parts.inverse + i, lanes);
    Floats p0, p1, p2, p3;
    Log1pRatioFour(hn::Mul(e0, unbias), hn::Mul(e1, unbias), hn::Mul(e2, unbias), hn::Mul(e3, unbias), p0, p1, p2, p3);
    StoreFour(d, p0, p1, p2, p3, parts.ratio + i, lanes);
  }
  return near;
}

// Elements whose exponentials wait in the first-level cache. The loop that makes them and the loop that uses them are
// each short enough that the processor overlaps several turns. In one loop the chain of dependent operations would take
// longer than the work.
inline constexpr int64_t kPlainBlock = 8 * kBinaryStep;

// Asks for what four vectors will read, some blocks from now, into the second-level cache; see PrefetchForRead.
template <class In>
HWY_INLINE void PrefetchFour(const In *p) {
  const uintptr_t ahead = reinterpret_cast<uintptr_t>(p) + kFarBytes;
  const size_t bytes = 4 * hn::Lanes(Tag<In>()) * sizeof(In);
  for (size_t byte = 0; byte < bytes; byte += 64) {
    __builtin_prefetch(reinterpret_cast<const void *>(ahead + byte), 0, 2);
  }
}

// Makes the exponentials of four vectors. Where some elements are unusual it returns false and writes nothing.
template <class In, class Y>
HWY_INLINE bool PlainExp(const ExpRange<float> &range, const In *x, const Y *y, float *exponentials) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  PrefetchFour(x);
  Floats z0, z1, z2, z3, y0, y1, y2, y3;
  LoadFour(d, x, lanes, z0, z1, z2, z3);
  LoadFour(d, y, lanes, y0, y1, y2, y3);
  const auto unusual =
      hn::Or(hn::IsEitherNaN(Unusual(z0, y0), Unusual(z1, y1)), hn::IsEitherNaN(Unusual(z2, y2), Unusual(z3, y3)));
  if (HWY_UNLIKELY(!hn::AllFalse(d, unusual))) return false;
  z0 = MinusMagnitude(z0);
  z1 = MinusMagnitude(z1);
  z2 = MinusMagnitude(z2);
  z3 = MinusMagnitude(z3);
  Floats e0 = z0, e1 = z1, e2 = z2, e3 = z3;
  ExpFour(d, range, e0, e1, e2, e3);
  const auto cut = [&](Floats z, Floats e) HWY_ATTR {
    return hn::Mul(hn::IfThenElseZero(hn::Ge(z, hn::Set(d, kLowestArgument)), e), hn::Set(d, 0x1p-30f));
  };
  StoreFour(d, cut(z0, e0), cut(z1, e1), cut(z2, e2), cut(z3, e3), exponentials, lanes);
  return true;
}

// Stores four adjacent vectors, past the caches if `streams`.
template <class Out>
HWY_INLINE void StoreFour(FloatTag d, bool streams, Floats v0, Floats v1, Floats v2, Floats v3, Out *to) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  return streams ? StoreFour<true>(d, v0, v1, v2, v3, to, lanes) : StoreFour(d, v0, v1, v2, v3, to, lanes);
}

// Writes the outputs of four vectors from element i on, of which lane i % kLanes of the sum is the first.
template <class In, class Y>
HWY_INLINE void PlainFour(PlainOutputs<In> out, const In *x, const Y *y, const float *exponentials, int64_t i) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  PrefetchFour(y + i);
  Floats z0, z1, z2, z3, y0, y1, y2, y3, e0, e1, e2, e3;
  LoadFour(d, x + i, lanes, z0, z1, z2, z3);
  LoadFour(d, y + i, lanes, y0, y1, y2, y3);
  LoadFour(d, exponentials, lanes, e0, e1, e2, e3);
  const Floats c0 = LargerCoefficient(z0, y0), c1 = LargerCoefficient(z1, y1);
  const Floats c2 = LargerCoefficient(z2, y2), c3 = LargerCoefficient(z3, y3);
  if (out.losses != nullptr || out.sum != nullptr) {
    Floats p0, p1, p2, p3;
    Log1pRatioFour(e0, e1, e2, e3, p0, p1, p2, p3);
    p0 = PlainLoss(c0, z0, hn::Mul(p0, e0));
    p1 = PlainLoss(c1, z1, hn::Mul(p1, e1));
    p2 = PlainLoss(c2, z2, hn::Mul(p2, e2));
    p3 = PlainLoss(c3, z3, hn::Mul(p3, e3));
    if (out.sum != nullptr) {
      AddToLanes(d, p0, i % kLanes, *out.sum);
      AddToLanes(d, p1, (i + lanes) % kLanes, *out.sum);
      AddToLanes(d, p2, (i + 2 * lanes) % kLanes, *out.sum);
      AddToLanes(d, p3, (i + 3 * lanes) % kLanes, *out.sum);
    }
    if (out.losses != nullptr) StoreFour(d, out.stream_losses, p0, p1, p2, p3, out.losses + i);
  }
  if (out.grad != nullptr) {
    StoreFour(d, out.stream_grad, PlainGrad(out.scale, z0, c0, e0), PlainGrad(out.scale, z1, c1, e1),
              PlainGrad(out.scale, z2, c2, e2), PlainGrad(out.scale, z3, c3, e3), out.grad + i);
  }
}

// Writes elements [0, count) as far as they are usual and come in fours of vectors. Returns how many that were.
template <class In, class Y>
int64_t PlainElements(PlainOutputs<In> out, const In *x, const Y *y, int64_t count) {
  const ExpRange<float> range(Format<float>::kBias - kExponentialBias);
  const int64_t four = 4 * static_cast<int64_t>(hn::Lanes(Tag<In>()));
  HWY_ALIGN float exponentials[kPlainBlock];
  for (int64_t begin = 0, end = 0;; begin = end) {
    const int64_t limit = HWY_MIN(count - four, begin + kPlainBlock - four);
    while (end <= limit && PlainExp(range, x + end, y + end, exponentials + (end - begin))) end += four;
    for (int64_t i = begin; i < end; i += four) PlainFour(out, x, y, exponentials + (i - begin), i);
    if (end <= limit || end + four > count) return end;
  }
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
