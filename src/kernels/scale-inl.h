// Stored exponentials -> gradient or softmax.
#if defined(XENT_SRC_KERNELS_SCALE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef XENT_SRC_KERNELS_SCALE_INL_H_
#undef XENT_SRC_KERNELS_SCALE_INL_H_
#else
#define XENT_SRC_KERNELS_SCALE_INL_H_
#endif

#include <cstring>

#include "hwy/highway.h"
#include "kernels/row.h"
#include "kernels/step-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// AffineMap on vectors. The lift is for upstream gradients so small or large that shift or product would leave the
// range of normal numbers though the result does not.
template <class T>
struct Affine {
  T scale, shift, threshold, lift, lift_more;
  bool lifted;

  explicit Affine(const AffineMap &map)
      : scale(static_cast<T>(map.scale)),
        shift(static_cast<T>(map.shift)),
        threshold(static_cast<T>(map.threshold)),
        lift(static_cast<T>(PowerOfTwo(map.lift / 2))),
        lift_more(static_cast<T>(PowerOfTwo(map.lift - map.lift / 2))),
        lifted(map.lift != 0) {}

  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V e) const {
    V v = hn::MulSub(e, hn::Set(d, scale), hn::Set(d, shift));
    v = hn::IfThenElseZero(hn::Gt(hn::Abs(v), hn::Set(d, threshold)), v);
    if (lifted) v = hn::Mul(hn::Mul(v, hn::Set(d, lift)), hn::Set(d, lift_more));
    return v;
  }
};

// Does a ScaleTask a piece at a time, so that it can run beside other work: while row i's exponentials are summed,
// which is arithmetic, those of row i - 1 are scaled, which is memory.
template <class Out>
class Scaler {
  using T = Arithmetic<Out>;

 public:
  explicit Scaler(const ScaleTask &task)
      : source_(static_cast<const T *>(task.exponentials)),
        out_(static_cast<Out *>(task.out)),
        cols_(task.cols),
        stream_(task.stream),
        prescaled_(task.prescale != 0),
        prescale_(static_cast<T>(PowerOfTwo(task.prescale / 2))),
        prescale_more_(static_cast<T>(PowerOfTwo(task.prescale - task.prescale / 2))),
        finish_(task.map) {}

  // Writes the columns up to `end` that are not written yet, and with streaming stores those of the cache line begun.
  HWY_INLINE void AdvanceTo(int64_t end) {
    const hn::CappedTag<T, kLanes> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    if (kCanStream && stream_) end += ToLine(end);
    end = HWY_MIN(end, cols_);
    int64_t i = done_;
    if (i >= end) return;
    if (kCanStream && stream_) {
      const int64_t line = HWY_MIN(i + ToLine(i), end);
      if (i < line) {  // before the first whole line
        Partial(i, line);
        i = line;
      }
      for (; i + 4 * lanes <= end; i += 4 * lanes) Four<true>(i);
      for (; i + lanes <= end; i += lanes) StoreOrStream<true>(d, Finish(d, hn::LoadU(d, source_ + i)), out_ + i);
    } else {
      for (; i + 4 * lanes <= end; i += 4 * lanes) Four<false>(i);
    }
    Partial(i, end);
    done_ = end;
  }

 private:
  // Returns the number of columns from `col` to the next cache line of the output.
  HWY_INLINE int64_t ToLine(int64_t col) const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(out_ + col);
    return static_cast<int64_t>((~address + 1) % kLineBytes / sizeof(Out));
  }
  template <class D>
  HWY_INLINE hn::Vec<D> Finish(D d, hn::Vec<D> e) const {
    if (prescaled_) e = hn::Mul(hn::Mul(e, hn::Set(d, prescale_)), hn::Set(d, prescale_more_));
    return finish_(d, e);
  }
  template <bool kStream>
  HWY_INLINE void Four(int64_t i) {
    const hn::CappedTag<T, kLanes> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    // Each is finished as it is loaded: with all four loaded first, calls whose results go past the caches take 9 %
    // longer (Zen 5).
    const auto v0 = Finish(d, hn::LoadU(d, source_ + i));
    const auto v1 = Finish(d, hn::LoadU(d, source_ + i + lanes));
    const auto v2 = Finish(d, hn::LoadU(d, source_ + i + 2 * lanes));
    const auto v3 = Finish(d, hn::LoadU(d, source_ + i + 3 * lanes));
    StoreFour<kStream>(d, v0, v1, v2, v3, out_ + i, lanes);
  }
  HWY_INLINE void Partial(int64_t i, int64_t end) {
    const hn::CappedTag<T, kLanes> d;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    for (; i < end; i += lanes) {
      const int64_t rest = HWY_MIN(lanes, end - i);
      const auto v = Finish(d, hn::LoadN(d, source_ + i, static_cast<size_t>(rest)));
      if constexpr (kCanStream) {
        hn::StoreN(v, d, out_ + i, static_cast<size_t>(rest));
      } else {
        HWY_ALIGN Out last[kLanes];
        StoreAs(d, v, last);
        std::memcpy(static_cast<void *>(out_ + i), last, static_cast<size_t>(rest) * sizeof(Out));
      }
    }
  }

  static constexpr size_t kLineBytes = 64;
  static constexpr bool kCanStream = sizeof(Out) == sizeof(T);  // whole lines of half precision are two vectors

  const T *source_;
  Out *out_;
  int64_t cols_, done_ = 0;
  bool stream_, prescaled_;
  T prescale_, prescale_more_;
  Affine<T> finish_;
};

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // include guard
