// Compiles exp_sum-inl.h for every target.
#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/exp_sum.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/exp_sum-inl.h"
#include "kernels/row.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

const ExpSumKernels *ExpSumTable() {
  static constexpr ExpSumKernels kTable = {
      {ExpSum<float>, ExpSum<double>, ExpSum<Bf16>, ExpSum<F16>},
      {Maximum<float>, Maximum<double>, Maximum<Bf16>, Maximum<F16>},
  };
  return &kTable;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
XENT_DEFINE_KERNELS_OF(ExpSumKernels, ExpSumTable)
#endif
