// Compiles small_rows-inl.h for every target.
#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/small_rows.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/small_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

const SmallRowsKernels *SmallRowsTable() {
  static constexpr SmallRowsKernels kTable = {{RunSmallRows<float>, nullptr, RunSmallRows<Bf16>, RunSmallRows<F16>}};
  return &kTable;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
XENT_DEFINE_KERNELS_OF(SmallRowsKernels, SmallRowsTable)
#endif
