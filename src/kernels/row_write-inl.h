// What writes a row: gradients and softmax from stored (scale-inl.h) or recomputed exponentials, log-softmax, and the
// way back through both. Magnitudes up to the threshold (the smallest normal number) become +0 by a comparison, never
// by the floating-point mode, whose rules differ between processors; NaN becomes the canonical one.
#if defined(XENT_SRC_KERNELS_ROW_WRITE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_ROW_WRITE_INL_H_
#undef XENT_SRC_KERNELS_ROW_WRITE_INL_H_
#else
#define XENT_SRC_KERNELS_ROW_WRITE_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/lanes-inl.h"
#include "kernels/load-inl.h"
#include "kernels/row.h"
#include "kernels/scale-inl.h"
#include "numbers/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class Out>
void Scale(const ScaleTask &task) {
  Scaler<Out>(task).AdvanceTo(task.cols);
}

template <class In>
struct GradientStep {
  using T = Arithmetic<In>;
  ExpRange<T> range;
  bool subtract;
  T origin;
  Affine<T> finish;
  In *out;
  bool stream;

  template <class Z>
  HWY_INLINE void operator()(const Z *z, int64_t col, int64_t count) {
    if (count == kStep) {
      if (stream) return Run<true>(z, out + col);
      PrefetchForWrite<kStep * sizeof(In)>(out + col);
      return Run<false>(z, out + col);
    }
    HWY_ALIGN In kept[kStep];
    Run<false>(z, kept);
    std::memcpy(static_cast<void *>(out + col), kept, static_cast<size_t>(count) * sizeof(In));
  }

  template <bool kStream, class Z>
  HWY_INLINE void Run(const Z *z, In *to) {
    const hn::CappedTag<T, kLanes> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    const auto c = hn::Set(d, origin);
    for (int64_t i = 0; i < kStep; i += 4 * lanes) {
      auto e0 = LoadAs(d, z + i);
      auto e1 = LoadAs(d, z + i + lanes);
      auto e2 = LoadAs(d, z + i + 2 * lanes);
      auto e3 = LoadAs(d, z + i + 3 * lanes);
      if (subtract) {
        e0 = hn::Sub(e0, c);
        e1 = hn::Sub(e1, c);
        e2 = hn::Sub(e2, c);
        e3 = hn::Sub(e3, c);
      }
      ExpFour(d, range, e0, e1, e2, e3);
      Write<kStream>(d, finish(d, e0), to + i);
      Write<kStream>(d, finish(d, e1), to + i + lanes);
      Write<kStream>(d, finish(d, e2), to + i + 2 * lanes);
      Write<kStream>(d, finish(d, e3), to + i + 3 * lanes);
    }
  }
};

// Streaming stores need whole vectors of memory.
inline bool Streams(const GradientTask &task) {
  return task.stream && reinterpret_cast<uintptr_t>(task.gradient) % (kLanes * sizeof(float)) == 0;
}

template <class In>
void Gradient(const GradientTask &task) {
  using T = Arithmetic<In>;
  GradientStep<In> step{ExpRange<T>(task.reference), task.kind == Reference::kLogit,   static_cast<T>(task.origin),
                        Affine<T>(task.map),         static_cast<In *>(task.gradient), Streams(task)};
  ForEachStep(static_cast<const In *>(task.logits), task.cols, int64_t{-1}, -std::numeric_limits<T>::infinity(), step);
}

template <class In>
struct LogSoftmaxStep {
  using T = Arithmetic<In>;
  T max, delta;
  In *out;

  template <class Z>
  HWY_INLINE void operator()(const Z *z, int64_t col, int64_t count) {
    const hn::CappedTag<T, kLanes> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    HWY_ALIGN In kept[kStep];
    In *const to = count == kStep ? out + col : kept;
    for (int64_t i = 0; i < kStep; i += lanes) {
      const auto below = hn::Sub(LoadAs(d, z + i), hn::Set(d, max));
      StoreAs(d, FinishWithNan(d, hn::Sub(below, hn::Set(d, delta))), to + i);
    }
    if (count < kStep) std::memcpy(static_cast<void *>(out + col), kept, static_cast<size_t>(count) * sizeof(In));
  }
};

template <class In>
void LogSoftmax(const void *logits, void *out, int64_t cols, double max, double delta) {
  using T = Arithmetic<In>;
  LogSoftmaxStep<In> step{static_cast<T>(max), static_cast<T>(delta), static_cast<In *>(out)};
  ForEachStep(static_cast<const In *>(logits), cols, int64_t{-1}, static_cast<T>(max), step);
}

// Walks two rows in step; the shorter last step goes through zero-padded copies.
template <class In, class Step>
HWY_INLINE void ForEachPairOfSteps(const In *a, const In *b, int64_t cols, Step &step) {
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

// Sum of a b, or of a: products of float32 are exact in double; for float64 the lanes carry their rounding errors.
template <class In, bool kProduct>
struct DotStep {
  using T = Arithmetic<In>;
  WideLanes<T> sum;

  template <class Z>
  HWY_INLINE void operator()(const Z *a, const Z *b, int64_t /*col*/, int64_t /*count*/) {
    const hn::CappedTag<T, kLanes> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t i = 0; i < kStep; i += lanes) {
      const auto x = LoadAs(d, a + i);
      const auto y = LoadAs(d, b + i);
      const int64_t first = i % kLanes;
      if constexpr (sizeof(T) == 4) {
        const hn::RepartitionToWide<decltype(d)> dd;
        double *lower = sum.lanes + first;
        double *upper = lower + hn::Lanes(dd);
        auto x_lo = hn::PromoteLowerTo(dd, x), x_hi = hn::PromoteUpperTo(dd, x);
        if constexpr (kProduct) {
          x_lo = hn::Mul(x_lo, hn::PromoteLowerTo(dd, y));
          x_hi = hn::Mul(x_hi, hn::PromoteUpperTo(dd, y));
        }
        hn::Store(hn::Add(hn::Load(dd, lower), x_lo), dd, lower);
        hn::Store(hn::Add(hn::Load(dd, upper), x_hi), dd, upper);
      } else {
        AddToLanes(d, kProduct ? hn::Mul(x, y) : x, first, sum);
      }
    }
  }
};

template <class In>
Wide Dot(const void *a, const void *b, int64_t cols) {
  const In *const x = static_cast<const In *>(a);
  if (b == nullptr) {
    DotStep<In, false> step;
    ForEachPairOfSteps(x, x, cols, step);
    return step.sum.Total();
  }
  DotStep<In, true> step;
  ForEachPairOfSteps(x, static_cast<const In *>(b), cols, step);
  return step.sum.Total();
}

template <class In, bool kLog>
struct BackwardStep {
  using T = Arithmetic<In>;
  T sum;
  In *out;

  template <class Z>
  HWY_INLINE void operator()(const Z *g, const Z *y, int64_t col, int64_t count) {
    const hn::CappedTag<T, kLanes> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    const ExpRange<T> range(Format<T>::kBias);  // e^y itself: the bias taken back
    const auto s = hn::Set(d, sum);
    HWY_ALIGN In kept[kStep];
    In *const to = count == kStep ? out + col : kept;
    for (int64_t i = 0; i < kStep; i += 4 * lanes) {
      auto y0 = LoadAs(d, y + i);
      auto y1 = LoadAs(d, y + i + lanes);
      auto y2 = LoadAs(d, y + i + 2 * lanes);
      auto y3 = LoadAs(d, y + i + 3 * lanes);
      const auto g0 = LoadAs(d, g + i);
      const auto g1 = LoadAs(d, g + i + lanes);
      const auto g2 = LoadAs(d, g + i + 2 * lanes);
      const auto g3 = LoadAs(d, g + i + 3 * lanes);
      if constexpr (kLog) {
        const auto n0 = y0, n1 = y1, n2 = y2, n3 = y3;
        ExpFour(d, range, y0, y1, y2, y3);
        y0 = hn::IfThenElse(hn::IsNaN(n0), n0, hn::NegMulAdd(y0, s, g0));
        y1 = hn::IfThenElse(hn::IsNaN(n1), n1, hn::NegMulAdd(y1, s, g1));
        y2 = hn::IfThenElse(hn::IsNaN(n2), n2, hn::NegMulAdd(y2, s, g2));
        y3 = hn::IfThenElse(hn::IsNaN(n3), n3, hn::NegMulAdd(y3, s, g3));
      } else {
        y0 = hn::Mul(y0, hn::Sub(g0, s));
        y1 = hn::Mul(y1, hn::Sub(g1, s));
        y2 = hn::Mul(y2, hn::Sub(g2, s));
        y3 = hn::Mul(y3, hn::Sub(g3, s));
      }
      StoreAs(d, FinishWithNan(d, y0), to + i);
      StoreAs(d, FinishWithNan(d, y1), to + i + lanes);
      StoreAs(d, FinishWithNan(d, y2), to + i + 2 * lanes);
      StoreAs(d, FinishWithNan(d, y3), to + i + 3 * lanes);
    }
    if (count < kStep) std::memcpy(static_cast<void *>(out + col), kept, static_cast<size_t>(count) * sizeof(In));
  }
};

template <class In, bool kLog>
void Backward(const BackwardTask &task) {
  using T = Arithmetic<In>;
  BackwardStep<In, kLog> step{static_cast<T>(task.sum), static_cast<In *>(task.gradient)};
  ForEachPairOfSteps(static_cast<const In *>(task.upstream), static_cast<const In *>(task.output), task.cols, step);
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();
#endif  // include guard
