// xent.hpp: that each wrapper gives the bits of the C function it wraps, and that it refuses what only it can see:
// spans and views whose sizes do not agree. What the C functions themselves refuse must come through with its code,
// message and position.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "api/call.h"
#include "api/cpp_call.h"
#include "xent/xent.hpp"

namespace xent::test {
namespace {

template <class T>
class CppLayer : public ::testing::Test {
 protected:
  using A = Arithmetic<T>;
  static constexpr int64_t kRows = 6;
  static constexpr int64_t kCols = 40;

  CppLayer() : call(kDtypeOf<T>, kRows, kCols, kCols + 3) {
    call.FillNormal(1, 4);
    call.targets[2] = -100;
  }

  MatrixView<T> Logits() { return {static_cast<T *>(call.logits.data()), kRows, kCols, call.logits.stride()}; }
  MatrixView<T> Grad() { return {static_cast<T *>(call.grad.data()), kRows, kCols, call.grad.stride()}; }
  std::span<A> Losses() { return {static_cast<A *>(call.losses.data()), static_cast<size_t>(kRows)}; }
  std::span<A> Lse() { return {static_cast<A *>(call.lse.data()), static_cast<size_t>(kRows)}; }
  std::span<::xent::Record> Records() {
    return {reinterpret_cast<::xent::Record *>(call.records.data()), call.records.size()};
  }
  CrossEntropy<T> Forward() {
    return {.logits = Logits(),
            .targets = call.targets,
            .losses = Losses(),
            .lse = Lse(),
            .loss = static_cast<A *>(call.loss.data()),
            .perplexity = &call.perplexity,
            .live_rows = &call.live_rows,
            .records = Records()};
  }
  CrossEntropy<T> ForwardBackward() {
    CrossEntropy<T> args = Forward();
    args.grad = Grad();
    return args;
  }

  Call call;
};

struct ElementNames {
  template <class T>
  static std::string GetName(int) {
    return reference::NameOf(kDtypeOf<T>);
  }
};
using Elements = ::testing::Types<float, double, ::xent::bfloat16, ::xent::float16>;
TYPED_TEST_SUITE(CppLayer, Elements, ElementNames);

TYPED_TEST(CppLayer, CrossEntropyGivesTheBitsOfTheCApi) {
  Call want = this->call;
  want.options.label_smoothing = 0.1;
  want.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
  want.options.reduction = XENT_REDUCTION_SUM;
  want.options.has_divisor = 1;
  want.options.divisor = 3;
  want.MustRun(Function::kForwardBackward);
  const Options options = {.label_smoothing = 0.1,
                           .smoothing = ::xent::Smoothing::kExclusive,
                           .reduction = ::xent::Reduction::kSum,
                           .divisor = 3.0};
  ASSERT_TRUE(CrossEntropyForwardBackward(this->ForwardBackward(), options).ok());
  EXPECT_TRUE(SameBits(want, this->call, Function::kForwardBackward));
  Call again = this->call;
  this->call = Call(want.dtype, this->kRows, this->kCols, this->kCols + 3);
  this->call.FillNormal(1, 4);
  this->call.targets[2] = -100;
  ASSERT_TRUE(CrossEntropyForward(this->Forward(), options).ok());
  EXPECT_TRUE(SameBits(want, this->call, Function::kForward));
  const CrossEntropy<TypeParam> backward = {
      .logits = this->Logits(), .targets = this->call.targets, .records = this->Records(), .grad = this->Grad()};
  const Status status = CrossEntropyBackward(backward, options);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_TRUE(SameBits(want, this->call, Function::kForwardBackward));
}

TYPED_TEST(CppLayer, DefaultsAreTheCApis) {
  Call want = this->call;
  want.MustRun(Function::kForward);
  ASSERT_TRUE(CrossEntropyForward(this->Forward()).ok());
  EXPECT_TRUE(SameBits(want, this->call, Function::kForward));
  const Options options;
  EXPECT_EQ(options.ignore_index, -100);
  EXPECT_EQ(options.reduction, ::xent::Reduction::kMean);
  EXPECT_EQ(options.label_smoothing, 0);
  EXPECT_FALSE(options.divisor.has_value());
}

TYPED_TEST(CppLayer, EveryOptionReachesTheLibrary) {
  for (auto &target : this->call.targets) target = 7;
  ASSERT_TRUE(CrossEntropyForward(this->Forward(), {.ignore_index = 7, .empty_mean = EmptyMean::kZero}).ok());
  EXPECT_EQ(this->call.live_rows, 0);
  EXPECT_TRUE(Is(this->call.loss, 0, 0, 0));
  ASSERT_TRUE(CrossEntropyForward(this->Forward(), {.ignore_index = 7}).ok());
  EXPECT_TRUE(Is(this->call.loss, 0, 0, kNan));
  CrossEntropy<TypeParam> args = this->Forward();
  args.loss = nullptr;
  EXPECT_TRUE(CrossEntropyForward(args, {.reduction = ::xent::Reduction::kNone}).ok());
  EXPECT_TRUE(Refused(CrossEntropyForward(args, {.reduction = ::xent::Reduction::kNone, .divisor = 2.0}), "divisor"));
  EXPECT_TRUE(Refused(CrossEntropyForward(args, {.divisor = 0.0}), "divisor"));
  EXPECT_TRUE(Refused(CrossEntropyForward(args, {.label_smoothing = 1.5}), "label_smoothing"));
}

TYPED_TEST(CppLayer, Int32Targets) {
  Call want = this->call;
  want.MustRun(Function::kForward);
  const std::vector<int32_t> targets(want.targets.begin(), want.targets.end());
  const CrossEntropy<TypeParam, int32_t> args = {
      .logits = this->Logits(), .targets = targets, .losses = this->Losses()};
  ASSERT_TRUE(CrossEntropyForward(args).ok());
  EXPECT_EQ(FirstDifference(want.losses, this->call.losses), "");
}

TYPED_TEST(CppLayer, Upstream) {
  using A = Arithmetic<TypeParam>;
  Call want = this->call;
  want.upstream = MatrixOf(reference::ArithmeticType(want.dtype), {{0.5}});
  want.upstream_kind = XENT_UPSTREAM_SCALAR;
  want.MustRun(Function::kForwardBackward);
  CrossEntropy<TypeParam> args = this->ForwardBackward();
  args.upstream = A{0.5};
  ASSERT_TRUE(CrossEntropyForwardBackward(args).ok());
  EXPECT_EQ(FirstDifference(want.grad, this->call.grad), "");

  want.upstream = MatrixOf(reference::ArithmeticType(want.dtype), {{1, 2, 3, 4, 5, 6}});
  want.upstream_kind = XENT_UPSTREAM_ROWS;
  want.MustRun(Function::kForwardBackward);
  const std::vector<A> rows = {1, 2, 3, 4, 5, 6};
  args.upstream.reset();
  args.upstream_rows = rows;
  ASSERT_TRUE(CrossEntropyForwardBackward(args).ok());
  EXPECT_EQ(FirstDifference(want.grad, this->call.grad), "");

  args.upstream = A{0.5};
  EXPECT_TRUE(Refused(CrossEntropyForwardBackward(args), "upstream"));
}

TYPED_TEST(CppLayer, InPlace) {
  Call want = this->call;
  want.MustRun(Function::kForwardBackward);
  CrossEntropy<TypeParam> args = this->ForwardBackward();
  args.grad = this->Logits();
  EXPECT_TRUE(Refused(CrossEntropyForwardBackward(args), "in_place"));
  EXPECT_TRUE(Untouched(this->call.losses));
  args.in_place = true;
  ASSERT_TRUE(CrossEntropyForwardBackward(args).ok());
  EXPECT_EQ(FirstDifference(want.grad, this->call.logits), "");
}

TYPED_TEST(CppLayer, SizesMustAgree) {
  using A = Arithmetic<TypeParam>;
  const std::vector<int64_t> few(5);
  std::vector<A> values(7);
  std::vector<::xent::Record> records(5);
  const auto refused = [&](const char *word, auto &&spoil) {
    CrossEntropy<TypeParam> args = this->ForwardBackward();
    spoil(args);
    EXPECT_TRUE(Refused(CrossEntropyForwardBackward(args), word)) << word;
    EXPECT_TRUE(this->call.OutputsUntouched()) << word;
  };
  refused("targets", [&](auto &args) { args.targets = few; });
  refused("targets", [&](auto &args) { args.targets = {}; });
  refused("losses", [&](auto &args) { args.losses = values; });
  refused("lse", [&](auto &args) { args.lse = values; });
  refused("records", [&](auto &args) { args.records = records; });
  refused("upstream_rows", [&](auto &args) { args.upstream_rows = values; });
  refused("grad", [&](auto &args) { args.grad.rows = 5; });
  refused("grad", [&](auto &args) { args.grad.cols = 39; });
}

TYPED_TEST(CppLayer, MessagesNameBothSizes) {
  CrossEntropy<TypeParam> args = this->Forward();
  const std::vector<int64_t> few(5);
  args.targets = few;
  const Status status = CrossEntropyForward(args);
  EXPECT_NE(std::string(status.message()).find('5'), std::string::npos) << status.message();
  EXPECT_NE(std::string(status.message()).find('6'), std::string::npos) << status.message();
}

TYPED_TEST(CppLayer, StatusOfTheLibraryComesThrough) {
  Status status = CrossEntropyForward(this->Forward());
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), Code::kOk);
  EXPECT_STREQ(status.message(), "");
  EXPECT_EQ(status.row(), -1);
  this->call.targets[4] = 40;
  status = CrossEntropyForward(this->Forward());
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), Code::kTargetOutOfRange);
  EXPECT_EQ(status.row(), 4);
  EXPECT_EQ(status.value(), 40);
  EXPECT_NE(std::string(status.message()).find("40"), std::string::npos) << status.message();
  CrossEntropy<TypeParam> args = this->Forward();
  args.logits.stride = 39;
  EXPECT_TRUE(Refused(CrossEntropyForward(args), "logits_stride"));
  // Negative sizes are the library's to refuse.
  args = this->Forward();
  args.logits.rows = -1;
  EXPECT_TRUE(Refused(CrossEntropyForward(args), "rows"));
  EXPECT_TRUE(Status().ok());
}

TYPED_TEST(CppLayer, ExecutionPolicies) {
  Call want(kDtypeOf<TypeParam>, 40, 5000);
  want.FillNormal(3, 4);
  want.MustRun(Function::kForwardBackward);
  int64_t asked = 0;
  auto pool = [&](int64_t n, ::xent::Task task) {
    asked = std::max(asked, n);
    for (int64_t i = n - 1; i >= 0; --i) task(i);
  };
  for (const ::xent::Exec &exec : {::xent::Exec(), ::xent::Exec::OpenMp(3), ::xent::Exec::Serial(),
                                   ::xent::Exec::ParallelFor(pool), ::xent::Exec::ParallelFor(pool, 7)}) {
    Call got(kDtypeOf<TypeParam>, 40, 5000);
    got.FillNormal(3, 4);
    using A = Arithmetic<TypeParam>;
    const CrossEntropy<TypeParam> args = {.logits = {static_cast<TypeParam *>(got.logits.data()), 40, 5000},
                                          .targets = got.targets,
                                          .loss = static_cast<A *>(got.loss.data()),
                                          .grad = {static_cast<TypeParam *>(got.grad.data()), 40, 5000}};
    ASSERT_TRUE(CrossEntropyForwardBackward(args, {}, exec).ok());
    EXPECT_EQ(FirstDifference(want.grad, got.grad), "");
    EXPECT_EQ(FirstDifference(want.loss, got.loss), "");
  }
  EXPECT_GT(asked, 1);
  auto idle = [](int64_t, ::xent::Task) {};
  Call got = want;
  using A = Arithmetic<TypeParam>;
  const CrossEntropy<TypeParam> args = {.logits = {static_cast<TypeParam *>(got.logits.data()), 40, 5000},
                                        .targets = got.targets,
                                        .loss = static_cast<A *>(got.loss.data())};
  EXPECT_EQ(CrossEntropyForward(args, {}, ::xent::Exec::ParallelFor(idle, 4)).code(), Code::kIncomplete);
}

TYPED_TEST(CppLayer, NoRows) {
  using A = Arithmetic<TypeParam>;
  A loss = -77;
  const CrossEntropy<TypeParam> args = {.logits = {nullptr, 0, 3}, .loss = &loss};
  const Status status = CrossEntropyForward(args, {.reduction = ::xent::Reduction::kSum});
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(loss, 0);
}

TYPED_TEST(CppLayer, RowFunctions) {
  using A = Arithmetic<TypeParam>;
  const xent_dtype dtype = this->call.dtype;
  const int64_t rows = this->kRows, cols = this->kCols, stride = cols + 3;
  Matrix lse(reference::ArithmeticType(dtype), 1, rows);
  ASSERT_EQ(xent_logsumexp(rows, cols, this->call.logits.data(), dtype, stride, lse.data(), nullptr, nullptr), XENT_OK);
  ASSERT_TRUE(LogSumExp(this->Logits(), this->Lse()).ok());
  EXPECT_EQ(FirstDifference(lse, this->call.lse), "");
  std::vector<A> five(5);
  EXPECT_TRUE(Refused(LogSumExp(this->Logits(), std::span<A>(five)), "lse"));

  Matrix want(dtype, rows, cols);
  ASSERT_EQ(xent_softmax(rows, cols, this->call.logits.data(), dtype, stride, want.data(), 0, nullptr, nullptr),
            XENT_OK);
  ASSERT_TRUE(Softmax(this->Logits(), this->Grad()).ok());
  EXPECT_EQ(FirstDifference(want, this->call.grad), "");
  Diagnosis diagnosis = Diagnosis::kLogits;
  ASSERT_TRUE(CheckLogits(this->Grad(), &diagnosis).ok());
  EXPECT_EQ(diagnosis, Diagnosis::kProbabilities);
  ASSERT_TRUE(CheckLogits(this->Logits(), &diagnosis).ok());
  EXPECT_EQ(diagnosis, Diagnosis::kLogits);
  EXPECT_TRUE(Refused(CheckLogits(this->Logits(), nullptr), "diagnosis"));

  Matrix dx(dtype, rows, cols, stride);
  Matrix want_dx(dtype, rows, cols, stride);
  const MatrixView<TypeParam> dx_view = {static_cast<TypeParam *>(dx.data()), rows, cols, stride};
  ASSERT_EQ(xent_softmax_backward(rows, cols, this->call.logits.data(), stride, this->call.grad.data(), stride, dtype,
                                  want_dx.data(), stride, nullptr, nullptr),
            XENT_OK);
  ASSERT_TRUE(SoftmaxBackward(this->Logits(), this->Grad(), dx_view).ok());
  EXPECT_EQ(FirstDifference(want_dx, dx), "");

  ASSERT_EQ(xent_log_softmax(rows, cols, this->call.logits.data(), dtype, stride, want.data(), 0, nullptr, nullptr),
            XENT_OK);
  ASSERT_TRUE(LogSoftmax(this->Logits(), this->Grad()).ok());
  EXPECT_EQ(FirstDifference(want, this->call.grad), "");
  ASSERT_EQ(xent_log_softmax_backward(rows, cols, this->call.logits.data(), stride, this->call.grad.data(), stride,
                                      dtype, want_dx.data(), stride, nullptr, nullptr),
            XENT_OK);
  ASSERT_TRUE(LogSoftmaxBackward(this->Logits(), this->Grad(), dx_view).ok());
  EXPECT_EQ(FirstDifference(want_dx, dx), "");

  MatrixView<TypeParam> narrow = dx_view;
  narrow.cols = 39;
  EXPECT_TRUE(Refused(Softmax(this->Logits(), narrow), "y"));
  EXPECT_TRUE(Refused(LogSoftmax(this->Logits(), narrow), "y"));
  EXPECT_TRUE(Refused(SoftmaxBackward(this->Logits(), this->Grad(), narrow), "dx"));
  EXPECT_TRUE(Refused(SoftmaxBackward(this->Logits(), narrow, dx_view), "y"));
  EXPECT_TRUE(Refused(LogSoftmaxBackward(this->Logits(), this->Grad(), narrow), "dx"));
}

TEST(CppLayerFunctions, Reduce) {
  const std::vector<double> losses = {1, 2, 0, 3};
  const std::vector<float> narrow = {1, 2, 0, 3};
  const std::vector<int64_t> targets = {0, 1, -100, 2};
  const std::vector<int32_t> narrow_targets = {0, 1, -100, 2};
  double loss = 0;
  float narrow_loss = 0;
  ASSERT_TRUE(Reduce(losses, targets, &loss).ok());
  EXPECT_EQ(loss, 2);
  ASSERT_TRUE(Reduce(losses, narrow_targets, &loss, {.reduction = ::xent::Reduction::kSum}).ok());
  EXPECT_EQ(loss, 6);
  ASSERT_TRUE(Reduce(losses, &loss).ok());
  EXPECT_EQ(loss, 1.5);
  ASSERT_TRUE(Reduce(narrow, targets, &narrow_loss).ok());
  EXPECT_EQ(narrow_loss, 2);
  ASSERT_TRUE(Reduce(narrow, narrow_targets, &narrow_loss).ok());
  EXPECT_EQ(narrow_loss, 2);
  ASSERT_TRUE(Reduce(narrow, &narrow_loss, {.divisor = 12.0}).ok());
  EXPECT_EQ(narrow_loss, 0.5);
  EXPECT_TRUE(Refused(Reduce(losses, std::span<const int64_t>(targets).first(3), &loss), "targets"));
  EXPECT_TRUE(Refused(Reduce(losses, &loss, {.reduction = ::xent::Reduction::kNone}), "reduction"));
  EXPECT_EQ(loss, 1.5);
}

TEST(CppLayerFunctions, Arrays) {
  const std::array<float, 3> x = {0.5f, 1, 2};
  std::array<float, 3> y = {}, want = {};
  xent_exp_f32(x.data(), want.data(), 3);
  ASSERT_TRUE(Exp(x, y).ok());
  EXPECT_EQ(y, want);
  xent_log_f32(x.data(), want.data(), 3);
  ASSERT_TRUE(Log(x, y).ok());
  EXPECT_EQ(y, want);
  xent_log1p_f32(x.data(), want.data(), 3);
  ASSERT_TRUE(Log1p(x, y).ok());
  EXPECT_EQ(y, want);
  const std::array<double, 3> dx = {0.5, 1, 2};
  std::array<double, 3> dy = {}, dwant = {};
  xent_exp_f64(dx.data(), dwant.data(), 3);
  ASSERT_TRUE(Exp(dx, dy).ok());
  EXPECT_EQ(dy, dwant);
  xent_log_f64(dx.data(), dwant.data(), 3);
  ASSERT_TRUE(Log(dx, dy).ok());
  EXPECT_EQ(dy, dwant);
  xent_log1p_f64(dx.data(), dwant.data(), 3);
  ASSERT_TRUE(Log1p(dx, dy).ok());
  EXPECT_EQ(dy, dwant);
  EXPECT_TRUE(Refused(Exp(x, std::span<float>(y).first(2)), "y"));
}

TEST(CppLayerFunctions, Library) {
  EXPECT_STREQ(Version(), xent_version());
  EXPECT_STREQ(ActiveTarget(), xent_active_target());
  EXPECT_EQ(DefaultThreads(), xent_default_threads());
}

}  // namespace
}  // namespace xent::test
