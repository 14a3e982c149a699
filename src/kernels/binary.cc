// Compiles binary-inl.h for every target.
#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/binary.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/binary-inl.h"
#include "kernels/binary.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {

const BinaryKernels *BinaryTable() {
  static constexpr BinaryKernels kTable = {{BinaryElements<float>, BinaryElements<double>}};
  return &kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xent::internal {
const BinaryKernels *BinaryKernelsOf(int64_t target) { XENT_TABLE_OF_TARGET(BinaryKernels, BinaryTable, target) }
}  // namespace xent::internal
#endif
