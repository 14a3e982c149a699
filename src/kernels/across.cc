// Compiles across-inl.h for every target.
#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/across.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/across-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

const AcrossKernels *AcrossTable() {
  static constexpr AcrossKernels kTable = {
      {RunAcross<float>, nullptr, RunAcross<Bf16>, RunAcross<F16>},
      {BackwardAcross<float>, nullptr, BackwardAcross<Bf16>, BackwardAcross<F16>},
  };
  return &kTable;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
XENT_DEFINE_KERNELS_OF(AcrossKernels, AcrossTable)
#endif
