// exp, log and log1p over arrays, for every target: unlike the row kernels over the whole range, subnormals included.
#include "kernels/array.h"

#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/array.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "numbers/exp-inl.h"
#include "numbers/log-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D, class V = hn::Vec<D>>
HWY_INLINE V CanonicalNan(D d, V v) {
  const hn::RebindToUnsigned<D> du;
  return hn::IfThenElse(hn::IsNaN(v), hn::BitCast(d, hn::Set(du, Format<hn::TFromD<D>>::kNan)), v);
}

// Of doubles, as log's are: float32 goes through them and is then within 0.5001 ULP. The row kernels' float32
// exponential is up to 1.02 ULP off (at x = 50.2870445, among all floats).
struct ExpOp {
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V x) const {
    using F = ExpFormat<double>;
    // Past these the result is infinity and 0.
    const V z = hn::Max(hn::Min(x, hn::Set(d, 710.0)), hn::Set(d, -747.0));
    V m = hn::Zero(d);
    const V p = ReducedExp(d, F::kRound, z, &m);
    // p 2^n in two factors: the first product is exact, the second rounds once where the result is subnormal.
    const hn::RebindToSigned<D> di;
    const auto n = hn::Sub(hn::BitCast(di, m), hn::BitCast(di, hn::Set(d, F::kRound)));
    const auto half = hn::ShiftRight<1>(n);
    const auto bias = hn::Set(di, int64_t{F::kExponentBias});
    const V first = hn::BitCast(d, hn::ShiftLeft<F::kMantissaBits>(hn::Add(half, bias)));
    const V second = hn::BitCast(d, hn::ShiftLeft<F::kMantissaBits>(hn::Add(hn::Sub(n, half), bias)));
    return hn::IfThenElse(hn::IsNaN(x), x, hn::Mul(hn::Mul(p, first), second));
  }
};

struct LogOp {
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V x) const {
    return LogDouble(d, x);
  }
};

struct Log1pOp {
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V x) const {
    return Log1pDouble(d, x);
  }
};

// A double function on float32 lanes.
template <class Op>
struct InDouble {
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V x) const {
    const hn::RepartitionToWide<D> dd;
    const hn::Half<D> dh;
    const Op op;
    const auto lower = hn::DemoteTo(dh, op(dd, hn::PromoteLowerTo(dd, x)));
    const auto upper = hn::DemoteTo(dh, op(dd, hn::PromoteUpperTo(dd, x)));
    return hn::Combine(d, upper, lower);
  }
};

template <class Op, class T>
void Map(const T *x, T *y, int64_t n) {
  const hn::CappedTag<T, 16> d;
  const size_t lanes = hn::Lanes(d);
  const size_t count = static_cast<size_t>(n);
  const Op op;
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(CanonicalNan(d, op(d, hn::LoadU(d, x + i))), d, y + i);
  if (i < count) hn::StoreN(CanonicalNan(d, op(d, hn::LoadN(d, x + i, count - i))), d, y + i, count - i);
}

const ArrayKernels *ArrayTable() {
  static constexpr ArrayKernels kTable = {Map<InDouble<ExpOp>, float>,   Map<ExpOp, double>,
                                          Map<InDouble<LogOp>, float>,   Map<LogOp, double>,
                                          Map<InDouble<Log1pOp>, float>, Map<Log1pOp, double>};
  return &kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xent::internal {
const ArrayKernels *ArrayKernelsOf(int64_t target) { XENT_TABLE_OF_TARGET(ArrayKernels, ArrayTable, target) }
}  // namespace xent::internal
#endif
