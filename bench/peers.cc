// Sums of other libraries' exponentials, once for every SIMD target that xent is built for.
#include "bench/peers.h"

#include <cstddef>
#include <string_view>

#include "src/kernels/target_list.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/peers.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.h.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace xent_bench {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Declared here, for SLEEF's header shows them only to a compiler whose default target has their vectors.
#if defined(XENT_BENCH_SLEEF) && HWY_TARGET == HWY_AVX3
extern "C" __m512 Sleef_expf16_u10avx512f(__m512);
#define XENT_BENCH_SLEEF_EXP Sleef_expf16_u10avx512f
#elif defined(XENT_BENCH_SLEEF) && HWY_TARGET == HWY_AVX2
extern "C" __m256 Sleef_expf8_u10avx2(__m256);
#define XENT_BENCH_SLEEF_EXP Sleef_expf8_u10avx2
#endif

struct ContribExp {
  template <class D, class V>
  HWY_INLINE V operator()(D d, V x) const {
    return hn::Exp(d, x);
  }
};

template <class Exp>
HWY_INLINE float SumOfExponentials(const Exp &exp, const float *HWY_RESTRICT x, int64_t n, float max) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const V m = hn::Set(d, max);
  V s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t i = 0; i < n; i += 4 * lanes) {
    s0 = hn::Add(s0, exp(d, hn::Sub(hn::LoadU(d, x + i), m)));
    s1 = hn::Add(s1, exp(d, hn::Sub(hn::LoadU(d, x + i + lanes), m)));
    s2 = hn::Add(s2, exp(d, hn::Sub(hn::LoadU(d, x + i + 2 * lanes), m)));
    s3 = hn::Add(s3, exp(d, hn::Sub(hn::LoadU(d, x + i + 3 * lanes), m)));
  }
  return hn::ReduceSum(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
}

float ContribExpSum(const float *x, int64_t n, float max) { return SumOfExponentials(ContribExp(), x, n, max); }

#ifdef XENT_BENCH_SLEEF_EXP
struct SleefExp {
  template <class D, class V>
  HWY_INLINE V operator()(D, V x) const {
    return V{XENT_BENCH_SLEEF_EXP(x.raw)};
  }
};
float SleefExpSum(const float *x, int64_t n, float max) { return SumOfExponentials(SleefExp(), x, n, max); }
#undef XENT_BENCH_SLEEF_EXP
constexpr ExpSum kSleefExpSum = SleefExpSum;
#else
constexpr ExpSum kSleefExpSum = nullptr;
#endif

const ExpSums *Table() {
  static constexpr ExpSums kTable = {ContribExpSum, kSleefExpSum};
  return &kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace xent_bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace xent_bench {
namespace {

const ExpSums *TableOf(int64_t target){XENT_TABLE_OF_TARGET(ExpSums, Table, target)}

// The bit of the target that xent runs on: Highway's own choice knows nothing of XENT_MAX_TARGET.
int64_t ActiveTarget() {
  for (int64_t bits = HWY_TARGETS; bits != 0; bits &= bits - 1) {
    const int64_t target = bits & -bits;
    if (hwy::TargetName(target) == std::string_view(xent_active_target())) return target;
  }
  return 0;
}

}  // namespace

ExpSum PeerExpSum(Source source) {
  static const ExpSums *const table = TableOf(ActiveTarget());
  if (table == nullptr) return nullptr;
  return source == Source::kContrib ? table->contrib : source == Source::kSleef ? table->sleef : nullptr;
}

}  // namespace xent_bench
#endif  // HWY_ONCE
