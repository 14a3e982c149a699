// Binary cross-entropy of every float32 logit that decides anything (2^-31 to 128 in magnitude; below, the loss is that
// of 0, above, exponentials are 0), on every target: hard targets, soft ones of all sizes and ones at which the two
// terms of the gradient cancel. Prints the worst errors.
//
// The oracle is double arithmetic: its functions are within 2^-50 of the truth, 2^-27 ULP of a float32, and all terms
// of loss and gradient have one sign in what the bound is of.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "reference/number.h"
#include "testing/bounds.h"
#include "testing/data.h"
#include "testing/target.h"

namespace xent::test {
namespace {

constexpr uint32_t kFirst = 0x30000000u, kLast = 0x43000000u;  // 2^-31 and 128
constexpr int64_t kBatch = 1 << 16;

double UlpOf(double scale) { return std::ldexp(1.0, std::max(std::ilogb(scale), -126) - 23); }

// 0 where both are or may be: below the smallest normal number.
double ErrorInUlp(float got, double want, double scale) {
  if (got == 0 && std::fabs(want) <= 0x1p-126) return 0;
  const double error = std::fabs(static_cast<double>(got) - want) / UlpOf(std::fmax(scale, 0x1p-126));
  return std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
}

class EveryLogit : public TargetTest {
 protected:
  // target_of(z) for every `stride`th logit of both signs.
  template <class TargetOf>
  void Sweep(const std::string &name, uint32_t stride, double divisor, TargetOf target_of) {
    std::vector<float> x, y, losses(kBatch), grad(kBatch);
    double worst_loss = 0, worst_grad = 0;
    float at_loss = 0, at_grad = 0;
    const auto run = [&] {
      xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
      args.rows = 1;
      args.cols = static_cast<int64_t>(x.size());
      args.input.data = x.data();
      args.targets.data = y.data();
      args.element_losses.data = losses.data();
      args.grad.data = grad.data();
      xent_binary_cross_entropy_options options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
      options.reduction.kind = XENT_REDUCTION_SUM;
      options.reduction.divisor = divisor;
      float loss;
      args.reduced_loss = &loss;
      ASSERT_EQ(xent_binary_cross_entropy_forward_backward(&args, &options, nullptr, nullptr), XENT_OK);
      for (size_t i = 0; i < x.size(); ++i) {
        const double z = x[i], t = y[i];
        const double e = std::exp(-std::fabs(z)), log1p = std::log1p(e);
        const double larger = z > 0 ? 1 - t : t, smaller = 1 - larger;
        const double want = larger * (std::fabs(z) + log1p) + smaller * log1p;
        const double plus = larger / (1 + e) / divisor, minus = smaller * e / (1 + e) / divisor;
        const double slope = z > 0 ? plus - minus : minus - plus;
        const double loss_error = ErrorInUlp(losses[i], want, want);
        const double grad_error = ErrorInUlp(grad[i], slope, std::fmax(plus, minus));
        if (!(loss_error <= worst_loss)) worst_loss = loss_error, at_loss = x[i];
        if (!(grad_error <= worst_grad)) worst_grad = grad_error, at_grad = x[i];
      }
      x.clear();
      y.clear();
    };
    for (uint32_t bits = kFirst; bits <= kLast; bits += stride) {
      for (const float z : {std::bit_cast<float>(bits), -std::bit_cast<float>(bits)}) {
        x.push_back(z);
        y.push_back(target_of(z));
      }
      if (x.size() == kBatch) run();
    }
    if (!x.empty()) run();
    std::printf("worst of %s: loss %.3f at %.9g, grad %.3f at %.9g\n", name.c_str(), worst_loss,
                static_cast<double>(at_loss), worst_grad, static_cast<double>(at_grad));
    EXPECT_LE(worst_loss, kBinaryUlp) << name << ", target " << GetParam();
    EXPECT_LE(worst_grad, kBinaryGradientUlp) << name << ", target " << GetParam();
  }
};
XENT_INSTANTIATE_TARGETS(EveryLogit);

TEST_P(EveryLogit, HardTargets) {
  Sweep("target 0", 1, 1, [](float) { return 0.0f; });
  Sweep("target 1", 5, 1, [](float) { return 1.0f; });
}

TEST_P(EveryLogit, SoftTargets) {
  for (const double divisor : {1.0, 1.05, 1.12, 1.3, 3.0, 0x1p23 - 1}) {
    Random random(3);
    Sweep("soft targets over " + std::to_string(divisor), 7, divisor, [&](float z) {
      const float tiny = std::ldexp(static_cast<float>(random.Uniform()), -static_cast<int>(random.Below(149)));
      const float sigmoid = 1.0f / (1.0f + std::exp(-z));
      switch (random.Below(6)) {
        case 0:
          return tiny;
        case 1:
          return 1.0f - tiny;
        case 2:
          return sigmoid;
        case 3:
          return 1.0f - sigmoid;
        default:
          return static_cast<float>(random.Uniform());
      }
    });
  }
}

}  // namespace
}  // namespace xent::test
