// exp, log and log1p over arrays, for every target: unlike the row kernels over the whole range, subnormals included.
#include "kernels/array.h"

#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/array.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "numbers/exp-inl.h"
#include "numbers/log-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

// All are computed in double, so that float32 results are within 0.5001 ULP. The row kernels' float32 exponential is up
// to 1.02 ULP off (at x = 50.2870445, among all floats).
enum class Function { kExp, kLog, kLog1p };

template <Function kFunction, class D, class V = hn::Vec<D>, HWY_IF_F64_D(D)>
HWY_INLINE V Apply(D d, V x) {
  if constexpr (kFunction == Function::kLog) return LogDouble(d, x);
  if constexpr (kFunction == Function::kLog1p) return Log1pDouble(d, x);
  using F = ExpFormat<double>;
  // Past these the result is infinity and 0.
  const V z = hn::Max(hn::Min(x, hn::Set(d, 710.0)), hn::Set(d, -747.0));
  V m = hn::Zero(d);
  const V p = ReducedExp(d, F::kRound, z, hn::Zero(d), &m);
  // p 2^n in two factors: the first product is exact, the second rounds once where the result is subnormal. Integers
  // here, where ScaledBy has doubles, save 7 % of the time.
  const hn::RebindToSigned<D> di;
  const auto n = hn::Sub(hn::BitCast(di, m), hn::BitCast(di, hn::Set(d, F::kRound)));
  const auto half = hn::ShiftRight<1>(n);
  const auto bias = hn::Set(di, int64_t{F::kExponentBias});
  const V first = hn::BitCast(d, hn::ShiftLeft<F::kMantissaBits>(hn::Add(half, bias)));
  const V second = hn::BitCast(d, hn::ShiftLeft<F::kMantissaBits>(hn::Add(hn::Sub(n, half), bias)));
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Mul(hn::Mul(p, first), second));
}
template <Function kFunction, class D, class V = hn::Vec<D>, HWY_IF_F32_D(D)>
HWY_INLINE V Apply(D d, V x) {
  const hn::RepartitionToWide<D> dd;
  return RoundDoubles(d, Apply<kFunction>(dd, hn::PromoteLowerTo(dd, x)),
                      Apply<kFunction>(dd, hn::PromoteUpperTo(dd, x)));
}

template <Function kFunction, class T>
void Map(const T *x, T *y, int64_t n) {
  const hn::CappedTag<T, 16> d;
  using V = hn::Vec<decltype(d)>;
  const size_t lanes = hn::Lanes(d);
  const size_t count = static_cast<size_t>(n);
  const auto map = [&](V v) HWY_ATTR {
    v = Apply<kFunction>(d, v);
    return hn::IfThenElse(hn::IsNaN(v), CanonicalNan(d), v);
  };
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(map(hn::LoadU(d, x + i)), d, y + i);
  if (i < count) hn::StoreN(map(hn::LoadN(d, x + i, count - i)), d, y + i, count - i);
}

const ArrayKernels *ArrayTable() {
  using enum Function;
  static constexpr ArrayKernels kTable = {Map<kExp, float>,  Map<kExp, double>,  Map<kLog, float>,
                                          Map<kLog, double>, Map<kLog1p, float>, Map<kLog1p, double>};
  return &kTable;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
XENT_DEFINE_KERNELS_OF(ArrayKernels, ArrayTable)
#endif
