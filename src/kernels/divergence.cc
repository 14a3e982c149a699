// Compiles divergence-inl.h for every target.
#include "kernels/divergence.h"

#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/divergence.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/divergence-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {

const DivergenceKernels *DivergenceTable() {
  static constexpr DivergenceKernels kTable = {
      {SumDivergence<float>, SumDivergence<double>},
      {SumJensenShannon<float>, SumJensenShannon<double>},
      {DivergenceGradient<float>, DivergenceGradient<double>},
  };
  return &kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xent::internal {
const DivergenceKernels *DivergenceKernelsOf(int64_t target) {
  XENT_TABLE_OF_TARGET(DivergenceKernels, DivergenceTable, target)
}
}  // namespace xent::internal
#endif
