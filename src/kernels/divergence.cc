// Compiles divergence-inl.h for every target.
#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/divergence.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/divergence-inl.h"
#include "kernels/divergence_floats-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

const DivergenceKernels *DivergenceTable() {
  static constexpr DivergenceKernels kTable = {
      {{SumDivergence<float, false>, SumDivergence<double, false>},
       {SumDivergence<float, true>, SumDivergence<double, true>}},
      {DivergenceGradient<float>, DivergenceGradient<double>},
#if HWY_NATIVE_FMA
      LargestOf,
      {SumDivergenceFloats<false>, SumDivergenceFloats<true>},
      DivergenceGradientFloats,
      RunDivergenceTile,
#else
      nullptr,
      {},
      nullptr,
      nullptr,
#endif
  };
  return &kTable;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
XENT_DEFINE_KERNELS_OF(DivergenceKernels, DivergenceTable)
#endif
