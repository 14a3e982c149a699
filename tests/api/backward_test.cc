// The gradient: from forward+backward and from the records that forward saved, out of place and over the logits, under
// every kind of upstream gradient. Oracle: the reference within the bounds of semantics.md, and bits where two ways
// must agree.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

class Backward : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  LossCall Make(int64_t rows = 7, int64_t cols = 120, int64_t padding = 0) {
    LossCall call(dtype(), rows, cols, 0, padding);
    call.FillNormal(static_cast<uint64_t>(rows * 1000 + cols), 4);
    call.targets[1] = call.options.ignore_index;
    return call;
  }
  void SetUpstream(LossCall &call, const std::vector<double> &values) {
    call.SetUpstream(values, values.size() == 1 ? XENT_UPSTREAM_SCALAR : XENT_UPSTREAM_ROWS);
  }
};

TEST_P(Backward, FromRecordsGivesTheBitsOfForwardBackward) {
  for (const int64_t cols : {1, 2, 15, 16, 17, 1000, 1025, 20001}) {
    for (const xent_reduction_kind reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
      for (const double epsilon : {0.0, 0.1}) {
        for (const xent_smoothing form : {XENT_SMOOTHING_UNIFORM, XENT_SMOOTHING_EXCLUSIVE}) {
          if (cols == 1 && epsilon > 0) continue;
          LossCall together = Make(4, cols, 5);
          together.logits.Set(2, cols / 2, -kInf);
          together.options.reduction.kind = reduction;
          together.options.label_smoothing = epsilon;
          together.options.smoothing = form;
          LossCall apart = together;
          together.MustRun(Function::kForwardBackward);
          apart.MustRunForwardThenBackward();
          ASSERT_EQ(together.Difference(apart, Function::kForwardBackward), "") << cols << " columns";
          ASSERT_EQ(apart.PaddingTrouble(), "");
          ASSERT_EQ(apart.Judge(), "") << cols << " columns";
        }
      }
    }
  }
}

TEST_P(Backward, FromRecordsTouchesNothingElse) {
  LossCall call = Make();
  call.MustRun(Function::kForward);
  const LossCall before = call;
  call.MustRun(Function::kBackward);
  EXPECT_EQ(FirstDifference(before.logits, call.logits), "");
  EXPECT_TRUE(before.records == call.records);
  EXPECT_EQ(before.Difference(call, Function::kForward), "");
}

TEST_P(Backward, InPlaceGivesTheSameBits) {
  for (const int64_t cols : {1, 3, 16, 1000, 1025, 20001, 70000}) {
    for (const double epsilon : {0.0, 0.2}) {
      LossCall apart = Make(3, cols, 2);
      apart.options.label_smoothing = epsilon;
      LossCall fused = apart;
      LossCall from_records = apart;
      fused.in_place = true;
      from_records.in_place = true;
      apart.MustRun(Function::kForwardBackward);
      fused.MustRun(Function::kForwardBackward);
      from_records.MustRunForwardThenBackward();
      EXPECT_EQ(FirstDifference(apart.grad, fused.grad), "") << cols;
      EXPECT_EQ(FirstDifference(apart.grad, from_records.grad), "") << cols;
      EXPECT_TRUE(apart.records == fused.records);
      EXPECT_EQ(fused.PaddingTrouble(), "");
      EXPECT_EQ(from_records.PaddingTrouble(), "");
    }
  }
}

TEST_P(Backward, InPlaceNeedsEqualStrides) {
  LossCall call(dtype(), 2, 10, 0, 4);
  call.FillNormal(3, 4);
  const Tensor before = call.logits;
  xent_cross_entropy args = call.Args(Function::kForwardBackward);
  args.grad.data = call.logits.data();
  for (const int64_t stride : {12, 0}) {  // 0: 10, not 14
    args.grad.stride = stride;
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(xent_cross_entropy_forward_backward(&args, nullptr, nullptr, &error), XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(
        Tells(error, XENT_INVALID_ARGUMENT, {}, {"grad", "logits", "strides", stride == 0 ? "10" : "12", "14"}));
  }
  EXPECT_EQ(FirstDifference(before, call.logits), "");
  EXPECT_TRUE(call.OutputsUntouched());
  // 0 and V are one stride.
  LossCall tight = Make();
  LossCall want = Make();
  want.MustRun(Function::kForwardBackward);
  args = tight.Args(Function::kForwardBackward);
  args.grad.data = tight.logits.data();
  args.grad.stride = 0;
  args.logits.stride = tight.cols;
  ASSERT_EQ(xent_cross_entropy_forward_backward(&args, nullptr, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(FirstDifference(want.grad, tight.logits), "");
}

TEST_P(Backward, UpstreamScalar) {
  for (const double u : {1.0, 0.5, -3.0, 1e-3, 65536.0}) {
    for (const double epsilon : {0.0, 0.1}) {
      LossCall call = Make();
      call.options.label_smoothing = epsilon;
      SetUpstream(call, {u});
      call.MustRun(Function::kForwardBackward);
      EXPECT_EQ(call.Judge(), "") << u;
      LossCall from_records = Make();
      from_records.options = call.options;
      SetUpstream(from_records, {u});
      from_records.MustRunForwardThenBackward();
      EXPECT_EQ(call.Difference(from_records, Function::kForwardBackward), "") << u;
    }
  }
}

TEST_P(Backward, UpstreamScalarOneIsNoUpstream) {
  LossCall none = Make();
  none.MustRun(Function::kForwardBackward);
  LossCall one = Make();
  SetUpstream(one, {1});
  one.MustRun(Function::kForwardBackward);
  EXPECT_EQ(none.Difference(one, Function::kForwardBackward), "");
}

TEST_P(Backward, UpstreamRows) {
  for (const xent_reduction_kind reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
    LossCall call = Make();
    call.options.reduction.kind = reduction;
    SetUpstream(call, {1, 2, -0.5, 0.125, 3, -1000, 1e-3});
    call.MustRun(Function::kForwardBackward);
    EXPECT_EQ(call.Judge(), "") << reduction;
    LossCall from_records = Make();
    from_records.options = call.options;
    from_records.upstream = call.upstream;
    from_records.upstream_kind = call.upstream_kind;
    from_records.MustRunForwardThenBackward();
    EXPECT_EQ(call.Difference(from_records, Function::kForwardBackward), "") << reduction;
    // Forward does not know of it.
    LossCall forward = Make();
    forward.options = call.options;
    forward.MustRun(Function::kForward);
    EXPECT_EQ(call.Difference(forward, Function::kForward), "");
  }
}

TEST_P(Backward, UpstreamZeroGivesZeros) {
  LossCall call = Make();
  SetUpstream(call, {0});
  call.MustRun(Function::kForwardBackward);
  for (int64_t i = 0; i < call.rows; ++i) {
    for (int64_t j = 0; j < call.cols; ++j) EXPECT_EQ(call.grad.Get(i, j), 0);
  }
}

TEST_P(Backward, UpstreamAndDivisorTogether) {
  LossCall call = Make();
  call.options.reduction.kind = XENT_REDUCTION_SUM;
  call.options.reduction.divisor = 48;
  SetUpstream(call, {65536});  // loss scaling
  call.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Backward, NanUpstreamLeavesIgnoredRowsZero) {
  for (const bool rows : {false, true}) {
    for (const bool records : {false, true}) {
      LossCall call = Make(3, 40);
      call.targets = {3, -100, 39};
      SetUpstream(call, rows ? std::vector<double>{1, kNan, kNan} : std::vector<double>{kNan});
      records ? call.MustRunForwardThenBackward() : call.MustRun(Function::kForwardBackward);
      EXPECT_TRUE(RowIs(call.grad, 1, 0));
      EXPECT_TRUE(RowIs(call.grad, 2, kNan));
      if (!rows) {
        EXPECT_TRUE(RowIs(call.grad, 0, kNan));
      }
      EXPECT_EQ(call.Judge(), "");
    }
  }
}

TEST_P(Backward, InfiniteUpstreamLeavesIgnoredRowsZero) {
  LossCall call = Make(3, 40);
  call.targets = {-100, -100, -100};
  call.options.reduction.kind = XENT_REDUCTION_SUM;
  SetUpstream(call, {kInf});
  call.MustRunForwardThenBackward();
  for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(RowIs(call.grad, i, 0));
}

TEST_P(Backward, InfiniteUpstreamGoesThroughTheFormula) {
  // u (p - y) is infinite wherever p - y is not 0: negative at the target, positive elsewhere.
  for (const double u : {kInf, -kInf}) {
    LossCall call(dtype(), {{1, 2, 0}, {0, 0, 0}}, {1, -100});
    call.options.reduction.kind = XENT_REDUCTION_SUM;
    SetUpstream(call, {u});
    call.MustRun(Function::kForwardBackward);
    EXPECT_TRUE(Is(call.grad, 0, 0, u));
    EXPECT_TRUE(Is(call.grad, 0, 1, -u));
    EXPECT_TRUE(Is(call.grad, 0, 2, u));
    EXPECT_TRUE(RowIs(call.grad, 1, 0));
    LossCall from_records = call;
    from_records.MustRunForwardThenBackward();
    EXPECT_EQ(call.Difference(from_records, Function::kForwardBackward), "");
  }
}

TEST_P(Backward, MeanWithoutLiveRowsIsZerosWhateverUpstream) {
  for (const double u : {1.0, kInf, kNan}) {
    for (const xent_empty_mean empty : {XENT_EMPTY_MEAN_NAN, XENT_EMPTY_MEAN_ZERO}) {
      LossCall call = Make(2, 20);
      call.targets = {-100, -100};
      call.options.reduction.empty_mean = empty;
      SetUpstream(call, {u});
      call.MustRun(Function::kForwardBackward);
      EXPECT_TRUE(RowIs(call.grad, 0, 0));
      EXPECT_TRUE(RowIs(call.grad, 1, 0));
      LossCall again = Make(2, 20);
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
    LossCall call(dtype(), {{0, 1, 2}, trouble, {2, 1, 0}}, {0, 1, 2});
    call.MustRunForwardThenBackward();
    EXPECT_TRUE(RowIs(call.grad, 1, kNan));
    EXPECT_EQ(call.Judge(), "");
  }
}

TEST_P(Backward, InfiniteLossHasAGradientFromRecords) {
  LossCall call(dtype(), {{-kInf, 1, 2}, {2, 1, 0}}, {0, 2});
  call.options = WithReduction(XENT_REDUCTION_SUM);
  call.MustRunForwardThenBackward();
  EXPECT_TRUE(Is(call.grad, 0, 0, -1));
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Backward, IgnoredRowsAreNeverReadFromRecords) {
  LossCall call(dtype(), 2, 10);
  call.targets = {-100, 3};
  for (int64_t j = 0; j < 10; ++j) call.logits.Set(1, j, 0.25 * static_cast<double>(j));
  call.MustRunForwardThenBackward();
  EXPECT_TRUE(RowIs(call.grad, 0, 0));
  EXPECT_EQ(call.Judge(), "");
}

TEST_P(Backward, RowsSumToZero) {
  // Q p - y with Q = 1. Each element is off by at most 6 ULP of itself (6 * 2^-23, or 2^-52, of it), then by half an
  // ULP of the logits' dtype (2^-9 of it for bfloat16, 2^-12 for float16; the float16 below 2^-14 by up to 2^-25).
  LossCall call = Make(5, 400);
  call.options.reduction.kind = XENT_REDUCTION_SUM;
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
      LossCall call = Make(3, 40);
      call.options = WithReduction(XENT_REDUCTION_SUM);
      call.options.label_smoothing = epsilon;
      SetUpstream(call, {u});
      call.MustRun(Function::kForwardBackward);
      EXPECT_EQ(call.Judge(), "") << u;
    }
  }
}

TEST_P(Backward, RecordsAreTheSameFromBothForwards) {
  LossCall forward = Make();
  forward.MustRun(Function::kForward);
  LossCall both = Make();
  both.MustRun(Function::kForwardBackward);
  EXPECT_TRUE(forward.records == both.records);
}

TEST_P(Backward, RecordsDoNotDependOnWhatElseIsAsked) {
  LossCall all = Make();
  all.MustRun(Function::kForward);
  LossCall only = Make();
  xent_cross_entropy args = only.Args(Function::kForward);
  args.row_losses = args.reduced_loss = nullptr;
  args.statistics = nullptr;
  ASSERT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, nullptr), XENT_OK);
  EXPECT_TRUE(all.records == only.records);
}

TEST_P(Backward, CorruptRecordIsRefused) {
  LossCall good = Make();
  good.MustRun(Function::kForward);
  for (const unsigned char byte : {0x00, 0xff, 0xa5, 0x7f}) {
    LossCall call = Make();
    call.records = good.records;
    std::memset(call.Record(4), byte, XENT_RECORD_BYTES);
    EXPECT_EQ(call.Run(Function::kBackward), XENT_INVALID_ARGUMENT) << int{byte};
    EXPECT_TRUE(Tells(call.error, XENT_INVALID_ARGUMENT, {.row = 4}, {"records"}));
    EXPECT_TRUE(Untouched(call.grad));
  }
}

TEST_P(Backward, RecordOfAnotherDtypeIsRefused) {
  for (const xent_dtype other : kDtypes) {
    if (other == dtype()) continue;
    LossCall source(other, {{0, 1, 2}, {1, 2, 3}}, {0, 1});
    source.MustRun(Function::kForward);
    LossCall call(dtype(), {{0, 1, 2}, {1, 2, 3}}, {0, 1});
    call.records = source.records;
    EXPECT_EQ(call.Run(Function::kBackward), XENT_INVALID_ARGUMENT) << reference::NameOf(other);
    EXPECT_TRUE(Tells(call.error, XENT_INVALID_ARGUMENT, {.row = 0}, {"records"}));
    EXPECT_TRUE(Untouched(call.grad));
  }
}

// On each path that a row of so many columns may take. Options that only the gradient reads count too.
TEST_P(Backward, RecordsOfOtherOptionsAreRefused) {
  const auto option = [](auto set) {
    xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    set(options);
    return options;
  };
  const xent_cross_entropy_options kinds[] = {
      option([](auto &) {}),
      option([](auto &o) { o.label_smoothing = 0.1; }),
      option([](auto &o) { o.label_smoothing = 0.2; }),
      option([](auto &o) { o.label_smoothing = 0.1, o.smoothing = XENT_SMOOTHING_EXCLUSIVE; }),
      option([](auto &o) { o.z_loss = 1e-4; }),
      option([](auto &o) { o.z_loss = 0x1p-1060; }),
      option([](auto &o) { o.softcap = 30; }),
      option([](auto &o) { o.softcap = 31; }),
      option([](auto &o) { o.logit_scale = 2; }),
      option([](auto &o) { o.valid_cols = 100; }),
  };
  for (const int64_t cols : {120, 300, 3000}) {
    LossCall call = Make(3, cols);
    call.targets = {5, call.options.ignore_index, 99};
    for (const xent_cross_entropy_options &written : kinds) {
      call.options = written;
      call.MustRun(Function::kForward);
      for (const xent_cross_entropy_options &read : kinds) {
        LossCall backward = call;
        backward.options = read;
        if (&read == &written) {  // another reduction is none of a row
          backward.options.reduction.kind = XENT_REDUCTION_SUM;
          EXPECT_EQ(backward.Run(Function::kBackward), XENT_OK)
              << cols << " columns, options " << &written - kinds << ": " << backward.error.message;
          continue;
        }
        ASSERT_EQ(backward.Run(Function::kBackward), XENT_INVALID_ARGUMENT)
            << cols << " columns, options " << &written - kinds << " read with " << &read - kinds;
        EXPECT_TRUE(Tells(backward.error, XENT_INVALID_ARGUMENT, {.row = 0}, {"records", "options"}));
        EXPECT_TRUE(backward.OutputsUntouched());
      }
    }
  }
}

TEST_P(Backward, RecordOfAnIgnoredRowIsRefusedWhereTheRowIsLive) {
  LossCall call = Make();  // its row 1 is ignored
  call.MustRun(Function::kForward);
  call.targets[1] = 5;
  EXPECT_EQ(call.Run(Function::kBackward), XENT_INVALID_ARGUMENT);
  EXPECT_TRUE(Tells(call.error, XENT_INVALID_ARGUMENT, {.row = 1}, {"records"}));
  EXPECT_TRUE(call.OutputsUntouched());
}

TEST_P(Backward, MisalignedRecordsAreRefused) {
  alignas(8) unsigned char storage[XENT_RECORD_BYTES * 2 + 8];
  std::memset(storage, 0xa5, sizeof(storage));
  for (const Function function : kFunctions) {
    for (const int shift : {1, 2, 4}) {
      LossCall call(dtype(), {{0, 1, 2}, {1, 2, 3}}, {0, 1});
      xent_cross_entropy args = call.Args(function);
      args.records = storage + shift;
      xent_error error = XENT_ERROR_INIT;
      EXPECT_EQ(EntryPoint(function)(&args, nullptr, nullptr, &error), XENT_INVALID_ARGUMENT) << shift;
      EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, {"records"}));
      EXPECT_TRUE(call.OutputsUntouched());
      for (const unsigned char byte : storage) ASSERT_EQ(byte, 0xa5);
    }
  }
}

TEST_P(Backward, RecordsAtEightByteAlignment) {
  LossCall call = Make(2, 20);
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
  EXPECT_EQ(call.Judge(), "");
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Backward, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

TEST(BackwardFloat16, SubnormalsAreKept) {
  // They are ordinary numbers of the arithmetic type.
  // p from 2^-14 down to below the smallest subnormal number 2^-24.
  LossCall call(XENT_F16, 1, 40);
  for (int64_t j = 0; j < 40; ++j) call.logits.Set(0, j, -9 - 0.25 * static_cast<double>(j));
  call.logits.Set(0, 0, 0);
  call.options = WithReduction(XENT_REDUCTION_SUM);
  call.MustRun(Function::kForwardBackward);
  EXPECT_EQ(call.Judge(), "");
  EXPECT_GT(call.grad.Get(0, 20), 0);
  EXPECT_LT(call.grad.Get(0, 20), 0x1p-14);
}

}  // namespace
}  // namespace xent::test
