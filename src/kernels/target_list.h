// Which SIMD targets a kernel unit is compiled for, and how its table for one of them is found. Included before
// Highway.
//
// AVX3_DL, AVX3_ZEN4 and AVX3_SPR would give the code of AVX3 again: the kernels use nothing that they add.
#ifndef XENT_SRC_KERNELS_TARGET_LIST_H_
#define XENT_SRC_KERNELS_TARGET_LIST_H_

#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR)
#endif

namespace xent::internal {
template <class Kernels>
const Kernels *CallIfAny(const Kernels *(*table)()) {
  return table == nullptr ? nullptr : table();
}
}  // namespace xent::internal

// Returns TABLE() of the target whose Highway bit is `target`, or null. For use after HWY_ONCE in the namespace that
// holds the per-target namespaces; hwy::DisableTargets and the process-wide choice are left alone.
#define XENT_TABLE_OF_TARGET(KERNELS, TABLE, target)                                 \
  switch (target) {                                                                  \
    case HWY_SSE2:                                                                   \
      return CallIfAny<KERNELS>(HWY_CHOOSE_SSE2(TABLE));                             \
    case HWY_SSSE3:                                                                  \
      return CallIfAny<KERNELS>(HWY_CHOOSE_SSSE3(TABLE));                            \
    case HWY_SSE4:                                                                   \
      return CallIfAny<KERNELS>(HWY_CHOOSE_SSE4(TABLE));                             \
    case HWY_AVX2:                                                                   \
      return CallIfAny<KERNELS>(HWY_CHOOSE_AVX2(TABLE));                             \
    case HWY_AVX3:                                                                   \
      return CallIfAny<KERNELS>(HWY_CHOOSE_AVX3(TABLE));                             \
    case HWY_NEON_WITHOUT_AES:                                                       \
      return CallIfAny<KERNELS>(HWY_CHOOSE_NEON_WITHOUT_AES(TABLE));                 \
    case HWY_NEON:                                                                   \
      return CallIfAny<KERNELS>(HWY_CHOOSE_NEON(TABLE));                             \
    case HWY_NEON_BF16:                                                              \
      return CallIfAny<KERNELS>(HWY_CHOOSE_NEON_BF16(TABLE));                        \
    case HWY_SVE:                                                                    \
      return CallIfAny<KERNELS>(HWY_CHOOSE_SVE(TABLE));                              \
    case HWY_SVE2:                                                                   \
      return CallIfAny<KERNELS>(HWY_CHOOSE_SVE2(TABLE));                             \
    case HWY_SVE_256:                                                                \
      return CallIfAny<KERNELS>(HWY_CHOOSE_SVE_256(TABLE));                          \
    case HWY_SVE2_128:                                                               \
      return CallIfAny<KERNELS>(HWY_CHOOSE_SVE2_128(TABLE));                         \
    default:                                                                         \
      return (HWY_TARGETS & (target)) != 0 ? HWY_STATIC_DISPATCH(TABLE)() : nullptr; \
  }

#endif  // XENT_SRC_KERNELS_TARGET_LIST_H_
