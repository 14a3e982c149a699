// Which SIMD targets a kernel unit is compiled for, and how its table for one of them is found. Included before
// Highway.
//
// AVX3_DL, AVX3_ZEN4 and AVX3_SPR would give the code of AVX3 again: the kernels use nothing that they add.
#pragma once

#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR)
#endif

// Returns TABLE() of the target whose Highway bit is `bit`, or null. For use after HWY_ONCE in the namespace that holds
// the per-target namespaces; hwy::DisableTargets and the process-wide choice are left alone.
#define XENT_TABLE_OF_TARGET(KERNELS, TABLE, bit)                            \
  static constexpr struct {                                                  \
    int64_t target;                                                          \
    const KERNELS *(*table)();                                               \
  } kTables[] = {{HWY_SSE2, HWY_CHOOSE_SSE2(TABLE)},                         \
                 {HWY_SSSE3, HWY_CHOOSE_SSSE3(TABLE)},                       \
                 {HWY_SSE4, HWY_CHOOSE_SSE4(TABLE)},                         \
                 {HWY_AVX2, HWY_CHOOSE_AVX2(TABLE)},                         \
                 {HWY_AVX3, HWY_CHOOSE_AVX3(TABLE)},                         \
                 {HWY_NEON, HWY_CHOOSE_NEON(TABLE)},                         \
                 {HWY_NEON_WITHOUT_AES, HWY_CHOOSE_NEON_WITHOUT_AES(TABLE)}, \
                 {HWY_NEON_BF16, HWY_CHOOSE_NEON_BF16(TABLE)},               \
                 {HWY_SVE, HWY_CHOOSE_SVE(TABLE)},                           \
                 {HWY_SVE2, HWY_CHOOSE_SVE2(TABLE)},                         \
                 {HWY_SVE_256, HWY_CHOOSE_SVE_256(TABLE)},                   \
                 {HWY_SVE2_128, HWY_CHOOSE_SVE2_128(TABLE)},                 \
                 {HWY_STATIC_TARGET, &HWY_STATIC_DISPATCH(TABLE)}};          \
  for (const auto &t : kTables) {                                            \
    if (t.target == (bit) && t.table != nullptr) return t.table();           \
  }                                                                          \
  return nullptr;

// Defines KERNELS##Of(target) by it: the kernels of one of Highway's bits, null when this build lacks it.
#define XENT_DEFINE_KERNELS_OF(KERNELS, TABLE)                                                \
  namespace xent::internal {                                                                  \
  const KERNELS *KERNELS##Of(int64_t target) { XENT_TABLE_OF_TARGET(KERNELS, TABLE, target) } \
  }  // namespace xent::internal
