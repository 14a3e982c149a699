// Compiles divergence-inl.h for every target.
#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/divergence.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/divergence-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

const DivergenceKernels *DivergenceTable() {
  static constexpr DivergenceKernels kTable = {
      {{SumDivergence<float, false>, SumDivergence<double, false>},
       {SumDivergence<float, true>, SumDivergence<double, true>}},
      {DivergenceGradient<float>, DivergenceGradient<double>},
  };
  return &kTable;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
XENT_DEFINE_KERNELS_OF(DivergenceKernels, DivergenceTable)
#endif
