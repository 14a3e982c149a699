// Compiles general-inl.h for every target.
#include "kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/general.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/general-inl.h"

HWY_BEFORE_NAMESPACE();
namespace xent::internal::HWY_NAMESPACE {

void ValuesOf(const Transform &transform, double *values, int64_t count) {
  transform.wide ? Values<double>(transform, values, count) : Values<float>(transform, values, count);
}

const GeneralKernels *GeneralTable() {
  static constexpr GeneralKernels kTable = {
      {Sums<float>, Sums<double>, Sums<Bf16>, Sums<F16>},
      {GeneralGradientOf<float>, GeneralGradientOf<double>, GeneralGradientOf<Bf16>, GeneralGradientOf<F16>},
      ValuesOf,
      {Rank<float>, Rank<double>, Rank<Bf16>, Rank<F16>},
      {TopK<float>, TopK<double>, TopK<Bf16>, TopK<F16>},
  };
  return &kTable;
}

}  // namespace xent::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
XENT_DEFINE_KERNELS_OF(GeneralKernels, GeneralTable)
#endif
