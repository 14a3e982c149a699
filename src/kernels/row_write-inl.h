// What writes a row: gradients and softmax from stored (scale-inl.h) or recomputed exponentials, log-softmax, and the
// gradients through both. Magnitudes up to the threshold (the smallest normal number) become +0 by a comparison, never
// by the floating-point mode, whose rules differ between processors; NaN becomes the canonical one.
#if defined(XENT_SRC_KERNELS_ROW_WRITE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_ROW_WRITE_INL_H_
#undef XENT_SRC_KERNELS_ROW_WRITE_INL_H_
#else
#define XENT_SRC_KERNELS_ROW_WRITE_INL_H_
#endif

#include <cstring>
#include <type_traits>

#include "hwy/highway.h"
#include "kernels/lanes-inl.h"
#include "kernels/row.h"
#include "kernels/scale-inl.h"
#include "kernels/step-inl.h"
#include "numbers/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

template <class Out>
void Scale(const ScaleTask &task) {
  Scaler<Out>(task).AdvanceTo(task.cols);
}

// Calls write(to, streams), which writes a step at `to`: the row's own memory, past the caches if `stream` says that
// this can be, or a copy, of which `count` elements reach it.
template <class Out, class WriteTo>
HWY_INLINE void WriteStep(Out *row, int64_t count, bool stream, WriteTo &&write) {
  if (stream && count == kStep) return write(row, std::true_type());
  HWY_ALIGN Out copy[kStep];
  write(count == kStep ? row : copy, std::false_type());
  if (count < kStep) std::memcpy(static_cast<void *>(row), copy, static_cast<size_t>(count) * sizeof(Out));
}

template <class In, class T = Arithmetic<In>>
struct GradientStep {
  ExpRange<T> range;
  bool subtract;
  T origin;
  Affine<T> finish;

  template <bool kStream, class Z>
  HWY_INLINE void Run(const Z *z, In *to) const {
    const Tag<In> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    const auto c = hn::Set(d, origin);
    for (int64_t i = 0; i < kStep; i += 4 * lanes) {
      hn::Vec<Tag<In>> e0, e1, e2, e3;
      LoadFour(d, z + i, lanes, e0, e1, e2, e3);
      if (subtract) SubtractFour(c, e0, e1, e2, e3);
      ExpFour(d, range, e0, e1, e2, e3);
      StoreOrStream<kStream>(d, finish(d, e0), to + i);
      StoreOrStream<kStream>(d, finish(d, e1), to + i + lanes);
      StoreOrStream<kStream>(d, finish(d, e2), to + i + 2 * lanes);
      StoreOrStream<kStream>(d, finish(d, e3), to + i + 3 * lanes);
    }
  }
};

template <class In, class T = Arithmetic<In>>
void Gradient(const GradientTask &task) {
  const GradientStep<In> gradient{.range = ExpRange<T>(task.reference),
                                  .subtract = task.kind == Reference::kLogit,
                                  .origin = static_cast<T>(task.origin),
                                  .finish = Affine<T>(task.map)};
  In *const out = static_cast<In *>(task.gradient);
  const bool stream = task.stream && CanStream(out);
  ForEachStep(static_cast<const In *>(task.logits), task.cols, int64_t{-1}, static_cast<T>(-kInfinity),
              [&](const auto *z, int64_t col, int64_t count) XENT_INLINE_LAMBDA {
                if (!stream && count == kStep) PrefetchForWrite<kStep * sizeof(In)>(out + col);
                WriteStep(out + col, count, stream,
                          [&](In *to, auto streams) XENT_INLINE_LAMBDA { gradient.template Run<streams>(z, to); });
              });
}

template <class In, class T = Arithmetic<In>>
void LogSoftmax(const LogSoftmaxTask &task) {
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const T m = static_cast<T>(task.max), shift = static_cast<T>(task.delta);
  In *const out = static_cast<In *>(task.out);
  const bool stream = task.stream && CanStream(out);
  ForEachStep(static_cast<const In *>(task.logits), task.cols, int64_t{-1}, m,
              [&](const auto *z, int64_t col, int64_t count) XENT_INLINE_LAMBDA {
                WriteStep(out + col, count, stream, [&](In *to, auto streams) XENT_INLINE_LAMBDA {
                  for (int64_t i = 0; i < kStep; i += lanes) {
                    const auto below = hn::Sub(LoadAs(d, z + i), hn::Set(d, m));
                    StoreOrStream<streams>(d, FinishWithNan(d, hn::Sub(below, hn::Set(d, shift))), to + i);
                  }
                });
              });
}

// Calls step(a, b, column, count) for each step of two rows; the shorter last step goes through zero-padded copies.
template <class In, class Step>
HWY_INLINE void ForEachPairOfSteps(const In *a, const In *b, int64_t cols, Step &&step) {
  using T = Arithmetic<In>;
  int64_t col = 0;
  for (; col + kStep <= cols; col += kStep) {
    PrefetchForRead<kStep * sizeof(In)>(a + col);
    PrefetchForRead<kStep * sizeof(In)>(b + col);
    step(a + col, b + col, col, kStep);
  }
  if (col < cols) {
    HWY_ALIGN T copy_a[kStep];
    HWY_ALIGN T copy_b[kStep];
    CopyStep(a + col, cols - col, int64_t{-1}, T{0}, copy_a);
    CopyStep(b + col, cols - col, int64_t{-1}, T{0}, copy_b);
    step(static_cast<const T *>(copy_a), static_cast<const T *>(copy_b), col, cols - col);
  }
}

// Adds x y, or x, to lanes [first, first + Lanes(d)). Products of float32 are exact in double.
template <bool kProduct, class D, class V = hn::Vec<D>, class T = hn::TFromD<D>>
HWY_INLINE void AddProduct(D d, V x, V y, int64_t first, LaneSums<T> &sum) {
  if constexpr (kProduct && !kKeepsLow<T>) {
    const hn::RepartitionToWide<D> dd;
    AddHalves(dd, hn::Mul(hn::PromoteLowerTo(dd, x), hn::PromoteLowerTo(dd, y)),
              hn::Mul(hn::PromoteUpperTo(dd, x), hn::PromoteUpperTo(dd, y)), first, sum);
  } else {
    AddToLanes(d, kProduct ? hn::Mul(x, y) : x, first, sum);
  }
}

template <bool kProduct, class In>
Wide SumOfProducts(const In *a, const In *b, int64_t cols) {
  const Tag<In> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  LaneSums<Arithmetic<In>> sum;
  ForEachPairOfSteps(a, b, cols, [&](const auto *x, const auto *y, int64_t, int64_t) XENT_INLINE_LAMBDA {
    for (int64_t i = 0; i < kStep; i += lanes) {
      AddProduct<kProduct>(d, LoadAs(d, x + i), LoadAs(d, y + i), i % kLanes, sum);
    }
  });
  return sum.Total();
}

template <class In>
Wide Dot(const void *a, const void *b, int64_t cols) {
  const In *const x = static_cast<const In *>(a), *const y = static_cast<const In *>(b);
  return y == nullptr ? SumOfProducts<false>(x, x, cols) : SumOfProducts<true>(x, y, cols);
}

// The gradients through softmax y, y (g - sum), and, with kLog, through log-softmax, g - e^y sum.
template <class In, bool kLog, class T = Arithmetic<In>>
void Backward(const BackwardTask &task) {
  const Tag<In> d;
  using V = hn::Vec<Tag<In>>;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const ExpRange<T> range(Format<T>::kBias);  // takes the bias back: e^y itself
  const T sum = static_cast<T>(task.sum);
  In *const out = static_cast<In *>(task.gradient);
  const bool stream = task.stream && CanStream(out);
  const auto gradient = [&](V y, V e, V g) XENT_INLINE_LAMBDA {
    const V s = hn::Set(d, sum);
    if constexpr (!kLog) return FinishWithNan(d, hn::Mul(y, hn::Sub(g, s)));
    return FinishWithNan(d, hn::IfThenElse(hn::IsNaN(y), y, hn::NegMulAdd(e, s, g)));
  };
  ForEachPairOfSteps(static_cast<const In *>(task.upstream), static_cast<const In *>(task.output), task.cols,
                     [&](const auto *g, const auto *y, int64_t col, int64_t count) XENT_INLINE_LAMBDA {
                       WriteStep(out + col, count, stream, [&](In *to, auto streams) XENT_INLINE_LAMBDA {
                         for (int64_t i = 0; i < kStep; i += 4 * lanes) {
                           V y0, y1, y2, y3, g0, g1, g2, g3;
                           LoadFour(d, y + i, lanes, y0, y1, y2, y3);
                           LoadFour(d, g + i, lanes, g0, g1, g2, g3);
                           V e0 = y0, e1 = y1, e2 = y2, e3 = y3;
                           if constexpr (kLog) ExpFour(d, range, e0, e1, e2, e3);
                           StoreFour<streams>(d, gradient(y0, e0, g0), gradient(y1, e1, g1), gradient(y2, e2, g2),
                                              gradient(y3, e3, g3), to + i, lanes);
                         }
                       });
                     });
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
