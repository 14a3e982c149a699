// The gradient: from forward+backward and from the records that forward saved, out of place and over the logits, under
// every kind of upstream gradient. Oracle: the reference within the bounds of semantics.md, and bits where two ways
// must agree.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

#include "api/call.h"

namespace xent::test {
namespace {

using reference::ArithmeticType;

class Backward : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  Call Make(int64_t rows = 7, int64_t cols = 120, int64_t stride = 0) {
    Call call(dtype(), rows, cols, stride);
    call.FillNormal(static_cast<uint64_t>(rows * 1000 + cols), 4);
    call.targets[1] = call.options.ignore_index;
    return call;
  }
  void SetUpstream(Call &call, const std::vector<double> &values) {
    call.upstream = MatrixOf(ArithmeticType(dtype()), {values});
    call.upstream_kind = values.size() == 1 ? XENT_UPSTREAM_SCALAR : XENT_UPSTREAM_ROWS;
  }
};

TEST_P(Backward, FromRecordsGivesTheBitsOfForwardBackward) {
  for (const int64_t cols : {1, 2, 15, 16, 17, 1000, 1025, 20001}) {
    for (const xent_reduction reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
      for (const double epsilon : {0.0, 0.1}) {
        for (const xent_smoothing form : {XENT_SMOOTHING_UNIFORM, XENT_SMOOTHING_EXCLUSIVE}) {
          if (cols == 1 && epsilon > 0) continue;
          Call together = Make(4, cols, cols + 5);
          together.logits.Set(2, cols / 2, -kInf);
          together.options = WithReduction(reduction);
          together.options.label_smoothing = epsilon;
          together.options.smoothing = form;
          Call apart = together;
          together.MustRun(Function::kForwardBackward);
          apart.MustRunForwardThenBackward();
          ASSERT_TRUE(SameBits(together, apart, Function::kForwardBackward)) << cols << " columns";
          ASSERT_TRUE(apart.PaddingIntact());
          ASSERT_TRUE(apart.GradientMatchesReference()) << cols << " columns";
        }
      }
    }
  }
}

TEST_P(Backward, FromRecordsTouchesNothingElse) {
  Call call = Make();
  call.MustRun(Function::kForward);
  const Call before = call;
  call.MustRun(Function::kBackward);
  EXPECT_EQ(FirstDifference(before.logits, call.logits), "");
  EXPECT_TRUE(before.records == call.records);
  EXPECT_TRUE(SameBits(before, call, Function::kForward));
}

TEST_P(Backward, InPlaceGivesTheSameBits) {
  for (const int64_t cols : {1, 3, 16, 1000, 1025, 20001, 70000}) {
    for (const double epsilon : {0.0, 0.2}) {
      Call apart = Make(3, cols, cols + 2);
      apart.options.label_smoothing = epsilon;
      Call fused = apart;
      Call from_records = apart;
      fused.in_place = true;
      from_records.in_place = true;
      apart.MustRun(Function::kForwardBackward);
      fused.MustRun(Function::kForwardBackward);
      from_records.MustRunForwardThenBackward();
      EXPECT_EQ(FirstDifference(apart.grad, fused.logits), "") << cols;
      EXPECT_EQ(FirstDifference(apart.grad, from_records.logits), "") << cols;
      EXPECT_TRUE(apart.records == fused.records);
      EXPECT_TRUE(fused.PaddingIntact());
      EXPECT_TRUE(from_records.PaddingIntact());
    }
  }
}

TEST_P(Backward, InPlaceFlagIsRequired) {
  Call call = Make();
  call.MustRun(Function::kForward);
  for (const Function function : {Function::kForwardBackward, Function::kBackward}) {
    Call fresh = Make();
    fresh.records = call.records;
    const Matrix before = fresh.logits;
    xent_cross_entropy args = fresh.Args(function);
    args.grad = fresh.logits.data();
    xent_error error = XENT_ERROR_INIT;
    const auto run =
        function == Function::kBackward ? xent_cross_entropy_backward : xent_cross_entropy_forward_backward;
    EXPECT_EQ(run(&args, nullptr, nullptr, &error), XENT_INVALID_ARGUMENT);
    EXPECT_NE(std::string(error.message).find("in_place"), std::string::npos) << error.message;
    EXPECT_EQ(FirstDifference(before, fresh.logits), "");
    EXPECT_TRUE(Untouched(fresh.losses));
  }
}

TEST_P(Backward, InPlaceFlagAllowsAnotherBuffer) {
  Call call = Make();
  Call flagged = Make();
  call.MustRun(Function::kForwardBackward);
  xent_cross_entropy args = flagged.Args(Function::kForwardBackward);
  args.in_place = 1;
  ASSERT_EQ(xent_cross_entropy_forward_backward(&args, nullptr, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(FirstDifference(call.grad, flagged.grad), "");
}

TEST_P(Backward, InPlaceNeedsEqualStrides) {
  Call call(dtype(), 2, 10, 14);
  call.FillNormal(3, 4);
  const Matrix before = call.logits;
  xent_cross_entropy args = call.Args(Function::kForwardBackward);
  args.grad = call.logits.data();
  args.in_place = 1;
  args.grad_stride = 12;
  EXPECT_EQ(xent_cross_entropy_forward_backward(&args, nullptr, nullptr, nullptr), XENT_INVALID_ARGUMENT);
  args.grad_stride = 0;  // 10, not 14
  EXPECT_EQ(xent_cross_entropy_forward_backward(&args, nullptr, nullptr, nullptr), XENT_INVALID_ARGUMENT);
  EXPECT_EQ(FirstDifference(before, call.logits), "");
  EXPECT_TRUE(call.OutputsUntouched());
  // 0 and V are one stride.
  Call tight = Make();
  Call want = Make();
  want.MustRun(Function::kForwardBackward);
  args = tight.Args(Function::kForwardBackward);
  args.grad = tight.logits.data();
  args.in_place = 1;
  args.grad_stride = 0;
  args.logits_stride = tight.cols;
  ASSERT_EQ(xent_cross_entropy_forward_backward(&args, nullptr, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(FirstDifference(want.grad, tight.logits), "");
}

TEST_P(Backward, UpstreamScalar) {
  for (const double u : {1.0, 0.5, -3.0, 1e-3, 65536.0}) {
    for (const double epsilon : {0.0, 0.1}) {
      Call call = Make();
      call.options.label_smoothing = epsilon;
      SetUpstream(call, {u});
      call.MustRun(Function::kForwardBackward);
      EXPECT_TRUE(call.GradientMatchesReference()) << u;
      Call from_records = Make();
      from_records.options = call.options;
      SetUpstream(from_records, {u});
      from_records.MustRunForwardThenBackward();
      EXPECT_TRUE(SameBits(call, from_records, Function::kForwardBackward)) << u;
    }
  }
}

TEST_P(Backward, UpstreamScalarOneIsNoUpstream) {
  Call none = Make();
  none.MustRun(Function::kForwardBackward);
  Call one = Make();
  SetUpstream(one, {1});
  one.MustRun(Function::kForwardBackward);
  EXPECT_TRUE(SameBits(none, one, Function::kForwardBackward));
}

TEST_P(Backward, UpstreamRows) {
  for (const xent_reduction reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
    Call call = Make();
    call.options = WithReduction(reduction);
    SetUpstream(call, {1, 2, -0.5, 0.125, 3, -1000, 1e-3});
    call.MustRun(Function::kForwardBackward);
    EXPECT_TRUE(call.GradientMatchesReference()) << reduction;
    Call from_records = Make();
    from_records.options = call.options;
    from_records.upstream = call.upstream;
    from_records.upstream_kind = call.upstream_kind;
    from_records.MustRunForwardThenBackward();
    EXPECT_TRUE(SameBits(call, from_records, Function::kForwardBackward)) << reduction;
    // Forward does not know of it.
    Call forward = Make();
    forward.options = call.options;
    forward.MustRun(Function::kForward);
    EXPECT_TRUE(SameBits(call, forward, Function::kForward));
  }
}

TEST_P(Backward, UpstreamZeroGivesZeros) {
  Call call = Make();
  SetUpstream(call, {0});
  call.MustRun(Function::kForwardBackward);
  for (int64_t i = 0; i < call.rows; ++i) {
    for (int64_t j = 0; j < call.cols; ++j) EXPECT_EQ(call.grad.Get(i, j), 0);
  }
}

TEST_P(Backward, UpstreamAndDivisorTogether) {
  Call call = Make();
  call.options.reduction = XENT_REDUCTION_SUM;
  call.options.has_divisor = 1;
  call.options.divisor = 48;
  SetUpstream(call, {65536});  // loss scaling
  call.MustRun(Function::kForwardBackward);
  EXPECT_TRUE(call.GradientMatchesReference());
}

TEST_P(Backward, NanUpstreamLeavesIgnoredRowsZero) {
  for (const bool rows : {false, true}) {
    for (const bool records : {false, true}) {
      Call call = Make(3, 40);
      call.targets = {3, -100, 39};
      SetUpstream(call, rows ? std::vector<double>{1, kNan, kNan} : std::vector<double>{kNan});
      records ? call.MustRunForwardThenBackward() : call.MustRun(Function::kForwardBackward);
      EXPECT_TRUE(RowIs(call.grad, 1, 0));
      EXPECT_TRUE(RowIs(call.grad, 2, kNan));
      if (!rows) {
        EXPECT_TRUE(RowIs(call.grad, 0, kNan));
      }
      EXPECT_TRUE(call.GradientMatchesReference());
    }
  }
}

TEST_P(Backward, InfiniteUpstreamLeavesIgnoredRowsZero) {
  Call call = Make(3, 40);
  call.targets = {-100, -100, -100};
  call.options.reduction = XENT_REDUCTION_SUM;
  SetUpstream(call, {kInf});
  call.MustRunForwardThenBackward();
  for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(RowIs(call.grad, i, 0));
}

TEST_P(Backward, InfiniteUpstreamGoesThroughTheFormula) {
  // u (p - y) is infinite wherever p - y is not 0: negative at the target, positive elsewhere.
  for (const double u : {kInf, -kInf}) {
    Call call(dtype(), {{1, 2, 0}, {0, 0, 0}}, {1, -100});
    call.options.reduction = XENT_REDUCTION_SUM;
    SetUpstream(call, {u});
    call.MustRun(Function::kForwardBackward);
    EXPECT_TRUE(Is(call.grad, 0, 0, u));
    EXPECT_TRUE(Is(call.grad, 0, 1, -u));
    EXPECT_TRUE(Is(call.grad, 0, 2, u));
    EXPECT_TRUE(RowIs(call.grad, 1, 0));
    Call from_records = call;
    from_records.MustRunForwardThenBackward();
    EXPECT_TRUE(SameBits(call, from_records, Function::kForwardBackward));
  }
}

TEST_P(Backward, MeanWithoutLiveRowsIsZerosWhateverUpstream) {
  for (const double u : {1.0, kInf, kNan}) {
    for (const xent_empty_mean empty : {XENT_EMPTY_MEAN_NAN, XENT_EMPTY_MEAN_ZERO}) {
      Call call = Make(2, 20);
      call.targets = {-100, -100};
      call.options.empty_mean = empty;
      SetUpstream(call, {u});
      call.MustRun(Function::kForwardBackward);
      EXPECT_TRUE(RowIs(call.grad, 0, 0));
      EXPECT_TRUE(RowIs(call.grad, 1, 0));
      Call again = Make(2, 20);
      again.targets = call.targets;
      again.options = call.options;
      SetUpstream(again, {u});
      again.MustRunForwardThenBackward();
      EXPECT_TRUE(RowIs(again.grad, 0, 0));
      EXPECT_TRUE(RowIs(again.grad, 1, 0));
    }
  }
}

TEST_P(Backward, RowsOfNanStayNanFromRecords) {
  const std::vector<double> troubles[] = {{kNan, 1, 0}, {1, kInf, 0}, {-kInf, -kInf, -kInf}};
  for (const auto &trouble : troubles) {
    Call call(dtype(), {{0, 1, 2}, trouble, {2, 1, 0}}, {0, 1, 2});
    call.MustRunForwardThenBackward();
    EXPECT_TRUE(RowIs(call.grad, 1, kNan));
    EXPECT_TRUE(call.GradientMatchesReference());
  }
}

TEST_P(Backward, InfiniteLossHasAGradientFromRecords) {
  Call call(dtype(), {{-kInf, 1, 2}, {2, 1, 0}}, {0, 2});
  call.options = WithReduction(XENT_REDUCTION_SUM);
  call.MustRunForwardThenBackward();
  EXPECT_TRUE(Is(call.grad, 0, 0, -1));
  EXPECT_TRUE(call.GradientMatchesReference());
}

TEST_P(Backward, IgnoredRowsAreNeverReadFromRecords) {
  Call call(dtype(), 2, 10);
  call.targets = {-100, 3};
  for (int64_t j = 0; j < 10; ++j) call.logits.Set(1, j, 0.25 * static_cast<double>(j));
  call.MustRunForwardThenBackward();
  EXPECT_TRUE(RowIs(call.grad, 0, 0));
  EXPECT_TRUE(call.GradientMatchesReference());
}

TEST_P(Backward, RowsSumToZero) {
  // Q p - y with Q = 1. Each element is off by at most 6 ULP of itself (6 * 2^-23, or 2^-52, of it), then by half an
  // ULP of the logits' dtype (2^-9 of it for bfloat16, 2^-12 for float16; the float16 below 2^-14 by up to 2^-25).
  Call call = Make(5, 400);
  call.options.reduction = XENT_REDUCTION_SUM;
  call.MustRun(Function::kForwardBackward);
  const int precision = reference::FormatOf(dtype()).precision;
  const double relative = 6 * (dtype() == XENT_F64 ? 0x1p-52 : 0x1p-23) + std::ldexp(1.0, -precision);
  for (int64_t i = 0; i < 5; ++i) {
    long double sum = 0;
    long double magnitudes = 0;
    for (int64_t j = 0; j < 400; ++j) {
      sum += call.grad.Get(i, j);
      magnitudes += std::fabs(call.grad.Get(i, j));
    }
    EXPECT_LE(std::fabs(sum), relative * magnitudes + (dtype() == XENT_F16 ? 400 * 0x1p-25 : 0)) << i;
  }
}

TEST_P(Backward, TinyGradientsAreZeroOrRight) {
  // Gradients around the smallest normal number of the arithmetic type, pushed there by the upstream gradient.
  const double tiny = dtype() == XENT_F64 ? 0x1p-1020 : 0x1p-124;
  for (const double u : {tiny, tiny / 4, tiny * 16, -tiny}) {
    for (const double epsilon : {0.0, 0.1}) {
      Call call = Make(3, 40);
      call.options = WithReduction(XENT_REDUCTION_SUM);
      call.options.label_smoothing = epsilon;
      SetUpstream(call, {u});
      call.MustRun(Function::kForwardBackward);
      EXPECT_TRUE(call.GradientMatchesReference()) << u;
    }
  }
}

TEST_P(Backward, RecordsAreTheSameFromBothForwards) {
  Call forward = Make();
  forward.MustRun(Function::kForward);
  Call both = Make();
  both.MustRun(Function::kForwardBackward);
  EXPECT_TRUE(forward.records == both.records);
}

TEST_P(Backward, RecordsDoNotDependOnWhatElseIsAsked) {
  Call all = Make();
  all.MustRun(Function::kForward);
  Call only = Make();
  xent_cross_entropy args = only.Args(Function::kForward);
  args.losses = args.lse = args.loss = nullptr;
  args.perplexity = nullptr;
  args.live_rows = nullptr;
  ASSERT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, nullptr), XENT_OK);
  EXPECT_TRUE(all.records == only.records);
}

TEST_P(Backward, CorruptRecordIsRefused) {
  Call good = Make();
  good.MustRun(Function::kForward);
  for (const unsigned char byte : {0x00, 0xff, 0xa5, 0x7f}) {
    Call call = Make();
    call.records = good.records;
    std::memset(call.records[4].bytes, byte, sizeof(Record));
    EXPECT_EQ(call.Run(Function::kBackward), XENT_INVALID_ARGUMENT) << int{byte};
    EXPECT_EQ(call.error.row, 4) << call.error.message;
    EXPECT_NE(std::string(call.error.message).find("record"), std::string::npos) << call.error.message;
    EXPECT_TRUE(Untouched(call.grad));
  }
}

TEST_P(Backward, RecordOfAnotherDtypeIsRefused) {
  for (const xent_dtype other : kDtypes) {
    if (other == dtype()) continue;
    Call source(other, {{0, 1, 2}, {1, 2, 3}}, {0, 1});
    source.MustRun(Function::kForward);
    Call call(dtype(), {{0, 1, 2}, {1, 2, 3}}, {0, 1});
    call.records = source.records;
    EXPECT_EQ(call.Run(Function::kBackward), XENT_INVALID_ARGUMENT) << reference::NameOf(other);
    EXPECT_TRUE(Untouched(call.grad));
  }
}

TEST_P(Backward, RecordOfAnIgnoredRowIsRefusedWhereTheRowIsLive) {
  Call call = Make();  // its row 1 is ignored
  call.MustRun(Function::kForward);
  call.targets[1] = 5;
  EXPECT_EQ(call.Run(Function::kBackward), XENT_INVALID_ARGUMENT);
  EXPECT_EQ(call.error.row, 1) << call.error.message;
  EXPECT_TRUE(Untouched(call.grad));
}

TEST_P(Backward, MisalignedRecordsAreRefused) {
  alignas(8) unsigned char storage[XENT_RECORD_BYTES * 2 + 8];
  std::memset(storage, 0xa5, sizeof(storage));
  for (const Function function : kFunctions) {
    for (const int shift : {1, 2, 4}) {
      Call call(dtype(), {{0, 1, 2}, {1, 2, 3}}, {0, 1});
      xent_cross_entropy args = call.Args(function);
      args.records = storage + shift;
      xent_error error = XENT_ERROR_INIT;
      const auto run = function == Function::kForward           ? xent_cross_entropy_forward
                       : function == Function::kForwardBackward ? xent_cross_entropy_forward_backward
                                                                : xent_cross_entropy_backward;
      EXPECT_EQ(run(&args, nullptr, nullptr, &error), XENT_INVALID_ARGUMENT) << shift;
      EXPECT_NE(std::string(error.message).find("records"), std::string::npos) << error.message;
      EXPECT_TRUE(call.OutputsUntouched());
      for (const unsigned char byte : storage) ASSERT_EQ(byte, 0xa5);
    }
  }
}

TEST_P(Backward, RecordsAtEightByteAlignment) {
  Call call = Make(2, 20);
  call.targets = {3, 4};
  call.MustRun(Function::kForward);
  alignas(64) unsigned char storage[XENT_RECORD_BYTES * 2 + 8];
  xent_cross_entropy args = call.Args(Function::kForward);
  args.records = storage + 8;
  ASSERT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(std::memcmp(storage + 8, call.records.data(), 2 * XENT_RECORD_BYTES), 0);
  args = call.Args(Function::kBackward);
  args.records = storage + 8;
  ASSERT_EQ(xent_cross_entropy_backward(&args, nullptr, nullptr, nullptr), XENT_OK);
  EXPECT_TRUE(call.GradientMatchesReference());
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Backward, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

TEST(BackwardFloat16, SubnormalsAreKept) {
  // They are ordinary numbers of the arithmetic type.
  // p from 2^-14 down to below the smallest subnormal number 2^-24.
  Call call(XENT_F16, 1, 40);
  for (int64_t j = 0; j < 40; ++j) call.logits.Set(0, j, -9 - 0.25 * static_cast<double>(j));
  call.logits.Set(0, 0, 0);
  call.options = WithReduction(XENT_REDUCTION_SUM);
  call.MustRun(Function::kForwardBackward);
  EXPECT_TRUE(call.GradientMatchesReference());
  EXPECT_GT(call.grad.Get(0, 20), 0);
  EXPECT_LT(call.grad.Get(0, 20), 0x1p-14);
}

}  // namespace
}  // namespace xent::test
