// Compiles binary-inl.h for every target.
#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/binary.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/binary-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

const BinaryKernels *BinaryTable() {
  static constexpr BinaryKernels kTable = {{BinaryFloats, BinaryDoubles, BinaryFloats, BinaryFloats}};
  return &kTable;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
XENT_DEFINE_KERNELS_OF(BinaryKernels, BinaryTable)
#endif
