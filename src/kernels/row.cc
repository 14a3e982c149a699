// Compiles exp_sum-inl.h, row_write-inl.h and targets-inl.h for every target.
#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/row.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/exp_sum-inl.h"
#include "kernels/row_write-inl.h"
#include "kernels/targets-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

const RowKernels *RowTable() {
  static constexpr RowKernels kTable = {
      {ExpSum<float>, ExpSum<double>, ExpSum<Bf16>, ExpSum<F16>},
      {Maximum<float>, Maximum<double>, Maximum<Bf16>, Maximum<F16>},
      {Scale<float>, Scale<double>, Scale<Bf16>, Scale<F16>},
      {Gradient<float>, Gradient<double>, Gradient<Bf16>, Gradient<F16>},
      {LogSoftmax<float>, LogSoftmax<double>, LogSoftmax<Bf16>, LogSoftmax<F16>},
      {Dot<float>, Dot<double>, Dot<Bf16>, Dot<F16>},
      {{Backward<float, false>, Backward<double, false>, Backward<Bf16, false>, Backward<F16, false>},
       {Backward<float, true>, Backward<double, true>, Backward<Bf16, true>, Backward<F16, true>}},
      {ScanTargets<int64_t>, ScanTargets<int32_t>},
      {ReadTargets<int64_t>, ReadTargets<int32_t>},
  };
  return &kTable;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
XENT_DEFINE_KERNELS_OF(RowKernels, RowTable)
#endif
