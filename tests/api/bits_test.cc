// The same bits from every way to ask: forward alone, forward+backward, in place or not, backward from the records,
// twice. No oracle: two computations are compared bit by bit. (Threads and pools: exec_test.cc. Targets, rows alone and
// in batches, addresses and floating-point modes: tests/kernels.)
#include <gtest/gtest.h>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

class Bits : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }
};

// Around the vector (up to 64 numbers), the block of 1024, several chunks.
constexpr int64_t kLengths[] = {1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 1000, 1023, 1024, 1025, 2049, 20001};

TEST_P(Bits, GradientAtAnotherAddressThanTheLogits) {
  // Streaming stores want alignment; what they do not get must not show. Rows longer than any cache level's share too.
  for (const int64_t cols : {33, 1025, 20001, 70001}) {
    LossCall plain(dtype(), 2, cols);
    plain.FillNormal(static_cast<uint64_t>(cols), 6);
    plain.MustRun(Function::kForwardBackward);
    for (const int64_t misalign : {1, 5, 8}) {
      LossCall shifted(dtype(), 2, cols);
      shifted.FillNormal(static_cast<uint64_t>(cols), 6);
      shifted.grad_padding = misalign;
      shifted.grad_misalign = misalign;
      shifted.MustRun(Function::kForwardBackward);
      ASSERT_EQ(plain.Difference(shifted, Function::kForwardBackward), "") << cols << " shifted by " << misalign;
      ASSERT_EQ(shifted.PaddingTrouble(), "");
    }
  }
}

TEST_P(Bits, ForwardAloneGivesTheBitsOfForwardBackward) {
  for (const int64_t cols : kLengths) {
    for (const double epsilon : {0.0, 0.125}) {
      LossCall forward(dtype(), 3, cols);
      forward.FillNormal(static_cast<uint64_t>(cols), 6);
      forward.options.label_smoothing = epsilon;
      LossCall both = forward;
      LossCall in_place = forward;
      in_place.in_place = true;
      forward.MustRun(Function::kForward);
      both.MustRun(Function::kForwardBackward);
      in_place.MustRun(Function::kForwardBackward);
      ASSERT_EQ(forward.Difference(both, Function::kForward), "") << cols;
      ASSERT_EQ(forward.Difference(in_place, Function::kForward), "") << cols;
    }
  }
}

TEST_P(Bits, LogitsThatRaiseTheReference) {
  // The largest logit so far comes late, in the middle of a block, of a chunk and of the last chunk: what was summed
  // and stored before it is redone or rescaled, also over the logits themselves.
  for (const int64_t at : {0, 500, 1024, 1500, 2047, 2048, 9000, 19999}) {
    for (const double height : {30.0, 100.0, 1000.0, 60000.0}) {
      LossCall apart(dtype(), 1, 20000);
      apart.FillNormal(3, 4);
      apart.logits.Set(0, at, height);
      if (at >= 1000) apart.logits.Set(0, at - 700, height / 2);
      apart.targets[0] = 77;
      apart.options.reduction.kind = XENT_REDUCTION_SUM;
      LossCall in_place = apart;
      in_place.in_place = true;
      LossCall from_records = apart;
      apart.MustRun(Function::kForwardBackward);
      in_place.MustRun(Function::kForwardBackward);
      from_records.MustRunForwardThenBackward();
      ASSERT_EQ(FirstDifference(apart.grad, in_place.grad), "") << at << " " << height;
      ASSERT_EQ(apart.Difference(from_records, Function::kForwardBackward), "") << at << " " << height;
      ASSERT_EQ(apart.Judge(), "") << at << " " << height;
    }
  }
}

TEST_P(Bits, TwiceIsTheSame) {
  LossCall once(dtype(), 9, 3000);
  once.FillNormal(1, 4);
  once.MustRun(Function::kForwardBackward);
  LossCall twice = once;
  twice.MustRun(Function::kForwardBackward);
  EXPECT_EQ(once.Difference(twice, Function::kForwardBackward), "");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Bits, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

}  // namespace
}  // namespace xent::test
