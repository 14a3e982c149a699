// The same bits from every way to ask: forward alone, forward+backward, in place or not, backward from the records,
// twice. No oracle: two computations are compared bit by bit. (Threads and pools: exec_test.cc. Targets, rows alone and
// in batches, addresses and floating-point modes: tests/kernels.)
#include <gtest/gtest.h>

#include "api/call.h"

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
    Call plain(dtype(), 2, cols);
    plain.FillNormal(static_cast<uint64_t>(cols), 6);
    plain.MustRun(Function::kForwardBackward);
    for (const int64_t misalign : {1, 5, 8}) {
      Call shifted(dtype(), 2, cols);
      shifted.FillNormal(static_cast<uint64_t>(cols), 6);
      shifted.grad = Matrix(dtype(), 2, cols, cols + misalign, misalign);
      shifted.MustRun(Function::kForwardBackward);
      ASSERT_TRUE(SameBits(plain, shifted, Function::kForwardBackward)) << cols << " shifted by " << misalign;
      ASSERT_TRUE(shifted.PaddingIntact());
    }
  }
}

TEST_P(Bits, ForwardAloneGivesTheBitsOfForwardBackward) {
  for (const int64_t cols : kLengths) {
    for (const double epsilon : {0.0, 0.125}) {
      Call forward(dtype(), 3, cols);
      forward.FillNormal(static_cast<uint64_t>(cols), 6);
      forward.options.label_smoothing = epsilon;
      Call both = forward;
      Call in_place = forward;
      in_place.in_place = true;
      forward.MustRun(Function::kForward);
      both.MustRun(Function::kForwardBackward);
      in_place.MustRun(Function::kForwardBackward);
      ASSERT_TRUE(SameBits(forward, both, Function::kForward)) << cols;
      ASSERT_TRUE(SameBits(forward, in_place, Function::kForward)) << cols;
    }
  }
}

TEST_P(Bits, LogitsThatRaiseTheReference) {
  // The largest logit so far comes late, in the middle of a block, of a chunk and of the last chunk: what was summed
  // and stored before it is redone or rescaled, also over the logits themselves.
  for (const int64_t at : {0, 500, 1024, 1500, 2047, 2048, 9000, 19999}) {
    for (const double height : {30.0, 100.0, 1000.0, 60000.0}) {
      Call apart(dtype(), 1, 20000);
      apart.FillNormal(3, 4);
      apart.logits.Set(0, at, height);
      if (at >= 1000) apart.logits.Set(0, at - 700, height / 2);
      apart.targets[0] = 77;
      apart.options = WithReduction(XENT_REDUCTION_SUM);
      Call in_place = apart;
      in_place.in_place = true;
      Call from_records = apart;
      apart.MustRun(Function::kForwardBackward);
      in_place.MustRun(Function::kForwardBackward);
      from_records.MustRunForwardThenBackward();
      ASSERT_EQ(FirstDifference(apart.grad, in_place.logits), "") << at << " " << height;
      ASSERT_TRUE(SameBits(apart, from_records, Function::kForwardBackward)) << at << " " << height;
      ASSERT_TRUE(apart.MatchesReference()) << at << " " << height;
      ASSERT_TRUE(apart.GradientMatchesReference()) << at << " " << height;
    }
  }
}

TEST_P(Bits, TwiceIsTheSame) {
  Call once(dtype(), 9, 3000);
  once.FillNormal(1, 4);
  once.MustRun(Function::kForwardBackward);
  Call twice = once;
  twice.MustRun(Function::kForwardBackward);
  EXPECT_TRUE(SameBits(once, twice, Function::kForwardBackward));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Bits, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

}  // namespace
}  // namespace xent::test
