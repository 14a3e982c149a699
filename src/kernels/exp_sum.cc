// Compiles exp_sum-inl.h for every target.
#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/exp_sum.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "kernels/exp_sum-inl.h"
#include "kernels/row.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal {
namespace HWY_NAMESPACE {

template <class In>
Extreme MaximumOf(const void *logits, int64_t cols, int64_t target) {
  return Maximum(static_cast<const In *>(logits), cols, target);
}

const ExpSumKernels *ExpSumTable() {
  static constexpr ExpSumKernels kTable = {
      {ExpSum<float>, ExpSum<double>, ExpSum<Bf16>, ExpSum<F16>},
      {MaximumOf<float>, MaximumOf<double>, MaximumOf<Bf16>, MaximumOf<F16>},
  };
  return &kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace xent::internal
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xent::internal {
const ExpSumKernels *ExpSumKernelsOf(int64_t target) { XENT_TABLE_OF_TARGET(ExpSumKernels, ExpSumTable, target) }
}  // namespace xent::internal
#endif
