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

// Computed in double as log is, so that float32 results are within 0.5001 ULP. The row kernels' float32 exponential is
// up to 1.02 ULP off (at x = 50.2870445, among all floats).
struct ExpOp {
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V x) const {
    const V round = hn::Set(d, ExpFormat<double>::kRound);
    // Past these the result is infinity and 0.
    const V z = hn::Max(hn::Min(x, hn::Set(d, 710.0)), hn::Set(d, -747.0));
    V m = hn::Zero(d);
    const V p = ReducedExp(d, ExpFormat<double>::kRound, z, &m);
    return hn::IfThenElse(hn::IsNaN(x), x, ScaledBy(d, p, hn::Sub(m, round)));
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

// A function of doubles on float32 lanes.
template <class Op>
struct InDouble {
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V operator()(D d, V x) const {
    const hn::RepartitionToWide<D> dd;
    const Op op;
    return RoundDoubles(d, op(dd, hn::PromoteLowerTo(dd, x)), op(dd, hn::PromoteUpperTo(dd, x)));
  }
};

template <class Op, class T>
void Map(const T *x, T *y, int64_t n) {
  const hn::CappedTag<T, 16> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  const size_t count = static_cast<size_t>(n);
  const auto map = [&](V v) HWY_ATTR {
    v = Op()(d, v);
    return hn::IfThenElse(hn::IsNaN(v), CanonicalNan(d), v);
  };
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(map(hn::LoadU(d, x + i)), d, y + i);
  if (i < count) hn::StoreN(map(hn::LoadN(d, x + i, count - i)), d, y + i, count - i);
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
