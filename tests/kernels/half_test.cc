// Half precision at its border: every bit pattern is read right, and results are rounded to nearest even, once, on
// every target (some convert by instructions, some by bits).
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "testing/data.h"
#include "testing/exec.h"
#include "testing/loss_call.h"
#include "testing/target.h"

namespace xent::test {
namespace {

class Half : public TargetTest {};
XENT_INSTANTIATE_TARGETS(Half);

TEST_P(Half, EveryBitPatternIsReadRight) {
  // logsumexp of one column is that column.
  constexpr int64_t kPatterns = 65536;
  for (const xent_dtype dtype : {XENT_BF16, XENT_F16}) {
    Matrix x(dtype, kPatterns, 1);
    for (int64_t bits = 0; bits < kPatterns; ++bits) x.SetBits(bits, 0, static_cast<uint64_t>(bits));
    Matrix lse(XENT_F32, 1, kPatterns);
    ASSERT_EQ(xent_logsumexp(kPatterns, 1, 0, View(x), lse.data(), &kSerial, nullptr), XENT_OK);
    for (int64_t bits = 0; bits < kPatterns; ++bits) {
      const double want = x.Get(bits, 0);
      if (std::isnan(want)) {
        ASSERT_EQ(lse.GetBits(0, bits), reference::CanonicalNanBits(XENT_F32)) << std::hex << bits;
      } else {
        // Up to the smallest normal number of float32, results are stored as zero.
        const bool is_tiny = std::fabs(want) <= 0x1p-126;
        ASSERT_EQ(lse.Get(0, bits), is_tiny ? 0 : want)
            << reference::NameOf(dtype) << " 0x" << std::hex << bits << ", target " << GetParam();
      }
    }
  }
}

TEST_P(Half, ResultsAreRoundedToNearestEven) {
  // Two logits of 0: p = 1/2 without any rounding, so that the gradient is u/2 and -u/2 before its rounding. u/2 runs
  // through every number of the dtype, the middle to the next, and that middle's two neighbours in float32.
  for (const xent_dtype dtype : {XENT_BF16, XENT_F16}) {
    std::vector<float> halves;
    for (uint64_t bits = 0; bits + 1 < reference::InfinityBits(dtype); ++bits) {
      const double low = reference::Decode(dtype, bits);
      const double high = reference::Decode(dtype, bits + 1);
      const float middle = static_cast<float>(low / 2 + high / 2);
      for (const float value :
           {static_cast<float>(low), std::nextafter(middle, 0.0f), middle, std::nextafter(middle, INFINITY)}) {
        // What float32 cannot keep apart, or would not keep at all, is not asked.
        if (value > 0x1p-126f && value < 0x1p126f) halves.push_back(value);
      }
    }
    const int64_t rows = static_cast<int64_t>(halves.size());
    std::vector<float> upstream;
    for (const float half : halves) upstream.push_back(2 * half);
    Matrix logits(dtype, rows, 2);
    for (int64_t i = 0; i < rows; ++i) {
      logits.Set(i, 0, 0);
      logits.Set(i, 1, 0);
    }
    const std::vector<int64_t> targets(static_cast<size_t>(rows), 0);
    Matrix grad(dtype, rows, 2);
    const xent_cross_entropy_options options = WithReduction(XENT_REDUCTION_SUM);
    xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
    args.rows = rows;
    args.cols = 2;
    args.logits = View(logits);
    args.targets = {.data = targets.data(), .type = XENT_I64, .reserved = 0};
    args.grad = View(grad);
    args.upstream = {.data = upstream.data(), .stride = 0, .kind = XENT_UPSTREAM_ROWS, .reserved = 0};
    ASSERT_EQ(xent_cross_entropy_forward_backward(&args, &options, &kSerial, nullptr), XENT_OK);
    for (int64_t i = 0; i < rows; ++i) {
      const double half = halves[static_cast<size_t>(i)];
      ASSERT_EQ(grad.GetBits(i, 1), reference::Encode(dtype, half))
          << reference::NameOf(dtype) << " of " << half << " is " << grad.Get(i, 1) << ", target " << GetParam();
      // Half a unit or less becomes a zero of either sign.
      ASSERT_EQ(grad.Get(i, 0), reference::Decode(dtype, reference::Encode(dtype, -half)))
          << reference::NameOf(dtype) << " of " << -half << ", target " << GetParam();
    }
  }
}

}  // namespace
}  // namespace xent::test
