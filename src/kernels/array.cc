// exp, log and log1p over arrays, for every target: unlike the row kernels over the whole range, subnormals included.
#include "kernels/array.h"

#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/array.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/step-inl.h"
#include "numbers/functions-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// Without fused multiply-add float32 goes through double: within 0.5001 ULP.
template <class Function, class D, class V = hn::Vec<D>>
HWY_INLINE V Full(D d, V x) {
  if constexpr (HWY_NATIVE_FMA || sizeof(hn::TFromD<D>) == sizeof(double)) {
    x = Function::Full(d, x);
  } else {
    const hn::RepartitionToWide<D> dd;
    x = RoundDoubles(d, Function::Full(dd, hn::PromoteLowerTo(dd, x)), Function::Full(dd, hn::PromoteUpperTo(dd, x)));
  }
  return hn::IfThenElse(hn::IsNaN(x), CanonicalNan(d), x);
}

template <class Function, class T>
void Map(const T *x, T *y, int64_t n) {
  const hn::CappedTag<T, 16> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  const size_t count = static_cast<size_t>(n);
  const auto map = [&](V v) HWY_ATTR {
    if constexpr (HWY_NATIVE_FMA) {
      if (HWY_LIKELY(hn::AllTrue(d, Function::IsOrdinary(d, v)))) return Function::Ordinary(d, v);
    }
    return Full<Function>(d, v);
  };
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    // 25 to 40 % of the time of float64 from memory.
    PrefetchForRead<64>(x + i);
    PrefetchForWrite<64>(y + i);
    hn::StoreU(map(hn::LoadU(d, x + i)), d, y + i);
  }
  if (i < count) hn::StoreN(map(hn::LoadN(d, x + i, count - i)), d, y + i, count - i);
}

const ArrayKernels *ArrayTable() {
  static constexpr ArrayKernels kTable = {Map<ExpFunction, float>,   Map<ExpFunction, double>,
                                          Map<LogFunction, float>,   Map<LogFunction, double>,
                                          Map<Log1pFunction, float>, Map<Log1pFunction, double>};
  return &kTable;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
XENT_DEFINE_KERNELS_OF(ArrayKernels, ArrayTable)
#endif
