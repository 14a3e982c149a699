// Rows side by side (kernels/across.h): every option on rows of every kind, judged by the reference within the bounds
// of semantics.md, and the bits of a row wherever it stands: alone, anywhere in a tile, beside rows that the kernel
// leaves to the double lanes, row-major or class-major. Prints the worst error of each output.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "testing/data.h"
#include "testing/loss_call.h"
#include "testing/target.h"

namespace xent::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr xent_dtype kHere[] = {XENT_F32, XENT_BF16, XENT_F16};

enum Set { kPlain, kUniform, kExclusiveWeights, kProbs, kProbsOfAll, kScaled, kCapped, kCappedProbs, kZ, kSets };

// Options that are on together.
void TurnOn(Set set, LossCall &call) {
  Random random(static_cast<uint64_t>(set * 100 + call.cols));
  const auto weights = [&] {
    std::vector<double> values;
    for (int64_t c = 0; c < call.cols; ++c) values.push_back(c % 7 == 5 ? 0 : 0.25 + random.Uniform());
    call.SetClassWeights(values);
  };
  const auto probs = [&] {
    LossCall::Rows values;
    for (int64_t i = 0; i < call.rows; ++i) {
      values.emplace_back();
      for (int64_t c = 0; c < call.cols; ++c) {
        const double q = random.Below(4) == 0 ? 0 : random.Uniform();
        values.back().push_back(std::isinf(call.logits.Get(i, c)) ? 0 : q);
      }
    }
    call.SetProbs(call.dtype, values);
    call.wants_target_grad = true;
  };
  switch (set) {
    case kUniform:
      call.options.label_smoothing = 0.1;
      break;
    case kExclusiveWeights:
      if (call.cols == 1) break;
      call.options.label_smoothing = 1;
      call.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
      weights();
      break;
    case kProbs:
      probs();
      break;
    case kProbsOfAll:
      probs();
      weights();
      call.options.label_smoothing = 0.2;
      call.options.logit_scale = 1.7;
      break;
    case kScaled:
      call.options.logit_scale = 0.37;
      break;
    case kCapped:
      call.options.softcap = 20;
      break;
    case kCappedProbs:
      probs();
      call.options.softcap = 5;
      call.options.logit_scale = 1.3;
      break;
    case kZ:
      call.options.z_loss = 0.01;
      weights();
      break;
    default:
      break;
  }
}

// Logits of a row: its kind is its number's.
double LogitOf(int64_t i, int64_t c, bool is_target, bool finite, Random &random) {
  const double z = random.Normal(2);
  const double margins[] = {20, 40, 80};
  switch (i % 12) {
    case 1:
      return is_target ? z + margins[i / 12 % 3] : z;  // confident
    case 2:
      return is_target ? z - margins[i / 12 % 3] : z;
    case 3:
      return z + 1e4;
    case 4:
      return static_cast<double>(c % 3);  // ties
    case 5:
      return finite || is_target || random.Below(10) >= 3 ? z : -kInfinity;
    case 6:
      return is_target ? -1.0866737 : 0.15302414;
    case 7:
      return z * 30;
    case 8:
      return finite ? z - 1e5 : 0x1p21 + 16 * z;  // beyond what lanes take
    case 9:
      return c % 5 == 0 && !is_target ? -1e9 : z;
    case 10:
      return z * 1e-3;
    default:
      return z;
  }
}

// `finite`: no masks, and nothing that overflows float16.
LossCall MakeCall(xent_dtype dtype, Set set, int64_t rows, int64_t cols, int64_t inner) {
  LossCall call(dtype, rows, cols, inner, inner > 1 ? 3 : 2, 1);
  const bool finite = set == kUniform || set == kExclusiveWeights || set == kProbsOfAll || dtype == XENT_F16;
  for (int64_t i = 0; i < rows; ++i) {
    Random random(static_cast<uint64_t>(i * 131 + cols));
    const int64_t target = random.Below(cols);
    call.targets[static_cast<size_t>(i)] = target;
    for (int64_t c = 0; c < cols; ++c) call.logits.Set(i, c, LogitOf(i, c, c == target, finite, random));
  }
  TurnOn(set, call);
  call.options.reduction.kind = XENT_REDUCTION_SUM;
  call.WantEveryStatistic();
  if (call.target_probs) call.wants_logprobs = call.wants_rank = false;
  return call;
}

class Across : public TargetTest {};
XENT_INSTANTIATE_TARGETS(Across);

TEST_P(Across, EveryOptionIsWithinTheBounds) {
  WorstByOutput worst;
  for (const xent_dtype dtype : kHere) {
    for (int set = 0; set < kSets; ++set) {
      for (const int64_t cols : {1, 2, 3, 5, 10, 33, 64}) {
        LossCall call = MakeCall(dtype, static_cast<Set>(set), 75, cols, 0);
        call.MustRun(Function::kForwardBackward);
        const reference::LossInputs inputs = call.Inputs();
        EXPECT_EQ(call.Judge(inputs, reference::EvaluateLosses(inputs), true, &worst), "")
            << reference::NameOf(dtype) << ", set " << set << ", columns " << cols;
      }
      for (const int64_t cols : {65, 150, 1000}) {
        LossCall call = MakeCall(dtype, static_cast<Set>(set), 2 * 37, cols, 37);
        call.MustRun(Function::kForwardBackward);
        const reference::LossInputs inputs = call.Inputs();
        EXPECT_EQ(call.Judge(inputs, reference::EvaluateLosses(inputs), true, &worst), "")
            << reference::NameOf(dtype) << ", set " << set << ", class-major, columns " << cols;
      }
    }
  }
  for (const auto &[output, error] : worst) {
    std::printf("worst side by side %s: %.3f ULP, %s, target %s\n", output.c_str(), error.ulp, error.where.c_str(),
                GetParam().c_str());
  }
}

// Rows [first, first + count) of a call, in another layout.
LossCall PartOf(const LossCall &whole, int64_t first, int64_t count, int64_t inner) {
  LossCall part(whole.dtype, count, whole.cols, inner, 0, 0);
  part.options = whole.options;
  part.class_weights = whole.class_weights;
  LossCall::Rows probs;
  for (int64_t i = 0; i < count; ++i) {
    part.targets[static_cast<size_t>(i)] = whole.targets.empty() ? 0 : whole.targets[static_cast<size_t>(first + i)];
    probs.emplace_back();
    for (int64_t c = 0; c < whole.cols; ++c) {
      part.logits.SetBits(i, c, whole.logits.GetBits(first + i, c));
      if (whole.target_probs) probs.back().push_back(whole.target_probs->Get(first + i, c));
    }
  }
  if (whole.target_probs) part.SetProbs(whole.target_probs->dtype(), probs);
  part.wants_target_grad = whole.wants_target_grad;
  return part;
}

// Losses, lse and gradients of `part` are those of the rows from `first` on.
void ExpectSame(const LossCall &whole, const LossCall &part, int64_t first, const std::string &where) {
  for (int64_t i = 0; i < part.rows; ++i) {
    ASSERT_EQ(part.row_losses.GetBits(0, i), whole.row_losses.GetBits(0, first + i)) << where << ", row " << i;
    ASSERT_EQ(part.lse.GetBits(0, i), whole.lse.GetBits(0, first + i)) << where << ", row " << i;
    for (int64_t c = 0; c < whole.cols; ++c) {
      ASSERT_EQ(part.grad.GetBits(i, c), whole.grad.GetBits(first + i, c)) << where << ", row " << i << ", " << c;
      if (!part.wants_target_grad) continue;
      ASSERT_EQ(part.target_grad.GetBits(i, c), whole.target_grad.GetBits(first + i, c))
          << where << ", row " << i << ", " << c;
    }
  }
}

TEST_P(Across, ARowHasTheSameBitsWhereverItStands) {
  for (const xent_dtype dtype : kHere) {
    for (int set = 0; set < kSets; ++set) {
      for (const int64_t cols : {1, 2, 7, 10, 64, 150}) {
        constexpr int64_t kRows = 38;
        // Longer rows are side by side in class-major layouts alone.
        const int64_t whole_inner = cols > 64 ? kRows : 0;
        LossCall whole = MakeCall(dtype, static_cast<Set>(set), kRows, cols, whole_inner);
        whole.MustRun(Function::kForwardBackward);
        const std::string where = std::string(reference::NameOf(dtype)) + ", set " + std::to_string(set) +
                                  ", columns " + std::to_string(cols);
        for (const int64_t inner : {0, 2, 19, 38}) {
          if (cols > 64 && inner < 2) continue;
          LossCall other = PartOf(whole, 0, kRows, inner);
          other.MustRun(Function::kForwardBackward);
          ExpectSame(whole, other, 0, where + ", inner " + std::to_string(inner));
          LossCall backward = PartOf(whole, 0, kRows, inner);
          backward.MustRunForwardThenBackward();
          ExpectSame(whole, backward, 0, where + ", backward, inner " + std::to_string(inner));
        }
        for (const int64_t first : {0, 8, 21}) {
          for (const int64_t count : {1, 5, 17}) {
            if (cols > 64 && count == 1) continue;
            LossCall part = PartOf(whole, first, count, cols > 64 ? count : 0);
            part.MustRun(Function::kForwardBackward);
            ExpectSame(whole, part, first, where + ", rows from " + std::to_string(first));
          }
        }
        if (HasFatalFailure()) return;
      }
    }
  }
}

// NaN, infinities and logits beyond 2^20 in some rows of a tile change no bit of the others.
TEST_P(Across, RowsThatAreLeftToOthersTouchNoneBesideThem) {
  for (int set = 0; set < kSets; ++set) {
    for (const int64_t cols : {2, 4, 10, 70}) {
      constexpr int64_t kRows = 16;
      const int64_t inner = cols > 64 ? kRows : 0;
      LossCall clean = MakeCall(XENT_F32, static_cast<Set>(set), kRows, cols, inner);
      for (int64_t i = 0; i < kRows; ++i) {
        for (int64_t c = 0; c < cols; ++c)
          clean.logits.Set(i, c, i == 3 && c == 0 ? 30 : 0.25 * static_cast<double>((i + c) % 4));
      }
      clean.MustRun(Function::kForwardBackward);
      const std::string where = "set " + std::to_string(set) + ", columns " + std::to_string(cols) + ", row ";
      // One at a time: another one might hide what a NaN does. Row 11 is eight rows from row 3, whose cap saturates:
      // one vector of AVX2 beside another.
      for (const double poison : {std::numeric_limits<double>::quiet_NaN(), kInfinity, 0x1p22, -kInfinity}) {
        LossCall poisoned = MakeCall(XENT_F32, static_cast<Set>(set), kRows, cols, inner);
        poisoned.logits = clean.logits;
        poisoned.logits.Set(11, 0, poison);
        poisoned.MustRun(Function::kForwardBackward);
        for (int64_t i = 0; i < kRows; ++i) {
          if (i == 11) continue;
          ASSERT_EQ(poisoned.row_losses.GetBits(0, i), clean.row_losses.GetBits(0, i)) << where << i;
          ASSERT_EQ(poisoned.lse.GetBits(0, i), clean.lse.GetBits(0, i)) << where << i;
          for (int64_t c = 0; c < cols; ++c) {
            ASSERT_EQ(poisoned.grad.GetBits(i, c), clean.grad.GetBits(i, c)) << where << i << ", " << c;
          }
        }
      }
    }
  }
}

// A row of several blocks whose maximum rises late, from far below, past 2^20 and from masks; ties across blocks.
TEST_P(Across, MaximaMayRiseInALaterBlock) {
  constexpr int64_t kCols = 200, kRows = 16;
  for (int set = 0; set < kSets; ++set) {
    LossCall call = MakeCall(XENT_F32, static_cast<Set>(set), kRows, kCols, kRows);
    const double lows[] = {-50, -300, -1e5, -4e6, -1e9, -kInfinity, -1e15, 3};
    for (int64_t i = 0; i < kRows; ++i) {
      Random random(static_cast<uint64_t>(i));
      const double low = lows[i % 8];
      const bool masked = std::isinf(low) && call.target_probs;
      for (int64_t c = 0; c < kCols; ++c) {
        const double z =
            c < 64 ? (masked ? -1e30 : low) - static_cast<double>(3 * c) : random.Normal(2) + (c > 130 ? 2 : 0);
        call.logits.Set(i, c, low == 3 ? static_cast<double>(c % 4) : z);
      }
      if (!call.targets.empty()) call.targets[static_cast<size_t>(i)] = 100 + i;
    }
    if (set == kUniform || set == kExclusiveWeights) {  // a mask would make these losses infinite
      for (int64_t i = 5; i < kRows; i += 8) {
        for (int64_t c = 0; c < 64; ++c) call.logits.Set(i, c, -1e7);
      }
    }
    call.MustRun(Function::kForwardBackward);
    EXPECT_EQ(call.Judge(), "") << "set " << set;
  }
}

// A gradient whose factors leave the lanes' range, and upstream gradients of all sizes beside each other.
TEST_P(Across, GradientsOfHugeAndTinyFactorsAreRight) {
  for (const double size : {1e-38, 1e-30, 0x1.6p-45, 0x1.3p-36, 0x1.9p-28, 1e30, 3e38}) {
    for (const int set : {kPlain, kProbs, kCapped}) {
      LossCall call = MakeCall(XENT_F32, static_cast<Set>(set), 240, size < 1 ? 64 : 6, 0);
      std::vector<double> upstream;
      for (int64_t i = 0; i < call.rows; ++i) upstream.push_back(i % 3 == 0 ? size : i % 3 == 1 ? 0.75 : 0);
      call.SetUpstream(upstream, XENT_UPSTREAM_ROWS);
      call.WantNoStatistic();
      call.MustRun(Function::kForwardBackward);
      EXPECT_EQ(call.Judge(), "") << size << ", set " << set;
      LossCall again = call;
      again.MustRunForwardThenBackward();
      EXPECT_EQ(again.GradientDifference(call), "") << size << ", set " << set;
    }
  }
}

// A loss beyond float32 that its row's weight brings back, and the target's gradient where it is the row's largest: a
// chain of products, rounded once (this row: 6.33 ULP where each was).
TEST_P(Across, ExtremeLossesAndChainsOfProductsAreRight) {
  LossCall huge(XENT_F32, 16, 2);
  std::vector<double> weights;
  for (int64_t i = 0; i < huge.rows; ++i) {
    huge.logits.Set(i, 0, 0);
    huge.logits.Set(i, 1, i % 2 == 0 ? -0x1p127 : -0x1p120);
    huge.targets[static_cast<size_t>(i)] = 1;
    weights.push_back(i % 2 == 0 ? 0x1p-10 : 1.0);
  }
  huge.SetRowWeights(weights);
  huge.options.logit_scale = 2;
  huge.MustRun(Function::kForward);
  EXPECT_EQ(huge.Judge(), "");

  LossCall largest(XENT_F32, 16, 5);
  const double logits[] = {-0x1.677e8ap4, -0x1.b771fp2, -0x1.2ba624p4, -0x1.1cf254p4, -0x1.b58af6p1};
  for (int64_t i = 0; i < largest.rows; ++i) {
    for (int64_t c = 0; c < largest.cols; ++c) largest.logits.Set(i, c, logits[c]);
    largest.targets[static_cast<size_t>(i)] = 4;
  }
  largest.options.reduction.kind = XENT_REDUCTION_SUM;
  largest.MustRun(Function::kForwardBackward);
  EXPECT_EQ(largest.Judge(), "");
}

// Labels that smoothing makes positive: where a probability is negative, the two sums they are made of cancel.
TEST_P(Across, NegativeProbabilitiesUnderSmoothingDoNotCancel) {
  LossCall call(XENT_F32, 16, 5);
  const LossCall::Rows probs(16, {-0.0736, 0.0542, -0.0677, 0, -0.0736});
  call.SetProbs(XENT_F32, probs);
  for (int64_t i = 0; i < call.rows; ++i) {
    for (int64_t c = 0; c < call.cols; ++c) call.logits.Set(i, c, 3 - static_cast<double>((c * 7 + i) % 5) * 1.37);
  }
  call.options.label_smoothing = 0.27088903450312501;
  call.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.Judge(), "");
}

}  // namespace
}  // namespace xent::test
