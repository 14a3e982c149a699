// xent.hpp: that each wrapper gives the bits of the C function it wraps, and that it refuses what only it can see:
// spans and views whose sizes do not agree. What the C functions themselves refuse must come through with its code,
// message, position and value.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "api/cpp_call.h"
#include "api/cpp_cross_entropy.h"
#include "xent/xent.hpp"

namespace xent::test {
namespace {

template <class T>
class CppLayer : public ::testing::Test {
 protected:
  using Tensors = CrossEntropyTensors<T, T>;
  using Args = typename Tensors::Args;
  using A = Arithmetic<T>;
  static constexpr int64_t kRows = Tensors::kRows;
  static constexpr int64_t kCols = Tensors::kCols;

  // The call in C and in C++, from fresh tensors.
  Args Forward() { return cpp.Cpp(Function::kForward); }
  Args ForwardBackward() { return cpp.Cpp(Function::kForwardBackward); }
  void ForwardInC(const xent_cross_entropy_options &options = XENT_CROSS_ENTROPY_OPTIONS_INIT) {
    ASSERT_EQ(RunC(Function::kForward, c.C(Function::kForward), options), XENT_OK);
  }
  std::string Differences() const { return c.Outputs().Differences(cpp.Outputs()); }

  Tensors c, cpp;
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
  xent_cross_entropy_options c_options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  c_options.label_smoothing = 0.1;
  c_options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
  c_options.reduction.kind = XENT_REDUCTION_SUM;
  c_options.reduction.divisor = 3;
  const CrossEntropyOptions options = {.label_smoothing = 0.1,
                                       .smoothing = ::xent::Smoothing::kExclusive,
                                       .reduction = {.kind = ReductionKind::kSum, .divisor = 3.0}};
  for (const Function function : {Function::kForwardBackward, Function::kForward, Function::kBackward}) {
    SCOPED_TRACE(NameOf(function));
    typename TestFixture::Tensors c, cpp;
    if (function == Function::kBackward) {  // from the records of forward
      ASSERT_EQ(RunC(Function::kForward, c.C(Function::kForward), c_options), XENT_OK);
      ASSERT_TRUE(RunCpp(Function::kForward, cpp.Cpp(Function::kForward), options).ok());
    }
    ASSERT_EQ(RunC(function, c.C(function), c_options), XENT_OK);
    const Snapshot before = cpp.Outputs();
    const Status status = RunCpp(function, cpp.Cpp(function), options);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(c.Outputs().Differences(cpp.Outputs()), "");
    EXPECT_NE(before.Differences(cpp.Outputs()), "");
  }
}

TYPED_TEST(CppLayer, DefaultsAreTheCApis) {
  this->ForwardInC();
  ASSERT_TRUE(CrossEntropyForward(this->Forward()).ok());
  EXPECT_EQ(this->Differences(), "");
  typename TestFixture::Tensors null;
  const xent_cross_entropy args = null.C(Function::kForward);
  ASSERT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(null.Outputs().Differences(this->cpp.Outputs()), "");
}

TEST(CppLayerDefaults, OfOptions) {
  const xent_cross_entropy_options c = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  const CrossEntropyOptions options;
  EXPECT_EQ(options.ignore_index, -100);
  EXPECT_EQ(options.ignore_index, c.ignore_index);
  EXPECT_EQ(options.valid_cols, c.valid_cols);
  EXPECT_EQ(options.logit_scale, c.logit_scale);
  EXPECT_EQ(options.softcap, c.softcap);
  EXPECT_EQ(options.label_smoothing, 0);
  EXPECT_EQ(options.label_smoothing, c.label_smoothing);
  EXPECT_EQ(options.z_loss, c.z_loss);
  EXPECT_EQ(static_cast<int32_t>(options.smoothing), c.smoothing);
  EXPECT_EQ(options.reduction.kind, ReductionKind::kMean);
  EXPECT_EQ(static_cast<int32_t>(options.reduction.kind), c.reduction.kind);
  EXPECT_EQ(static_cast<int32_t>(options.reduction.empty_mean), c.reduction.empty_mean);
  EXPECT_FALSE(options.reduction.divisor.has_value());
  EXPECT_EQ(c.reduction.divisor, 0);
  const xent_divergence_options c_divergence = XENT_DIVERGENCE_OPTIONS_INIT;
  const DivergenceOptions divergence;
  EXPECT_EQ(static_cast<int32_t>(divergence.kind), c_divergence.kind);
  EXPECT_EQ(divergence.temperature, c_divergence.temperature);
  EXPECT_EQ(divergence.beta, c_divergence.beta);
  EXPECT_EQ(divergence.valid_cols, c_divergence.valid_cols);
  const xent_binary_cross_entropy_options c_binary = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
  const BinaryCrossEntropyOptions binary;
  EXPECT_EQ(static_cast<int32_t>(binary.input), c_binary.input);
  EXPECT_EQ(binary.focal_gamma, c_binary.focal_gamma);
  EXPECT_EQ(binary.focal_alpha.value_or(-1.0), c_binary.focal_alpha);
}

TYPED_TEST(CppLayer, EveryOptionReachesTheLibrary) {
  for (auto &target : this->cpp.targets) target = 7;
  const Reduction zero = {.empty_mean = EmptyMean::kZero};
  ASSERT_TRUE(CrossEntropyForward(this->Forward(), {.ignore_index = 7, .reduction = zero}).ok());
  EXPECT_EQ(this->cpp.live_rows, 0);
  EXPECT_TRUE(Is(this->cpp.reduced_loss, 0, 0, 0));
  ASSERT_TRUE(CrossEntropyForward(this->Forward(), {.ignore_index = 7}).ok());
  EXPECT_TRUE(Is(this->cpp.reduced_loss, 0, 0, kNan));
  typename TestFixture::Args args = this->Forward();
  args.reduced_loss = nullptr;
  Reduction none = {.kind = ReductionKind::kNone};
  EXPECT_TRUE(CrossEntropyForward(args, {.reduction = none}).ok());
  none.divisor = 2.0;
  EXPECT_TRUE(Refused(CrossEntropyForward(args, {.reduction = none}), "divisor"));
  // C takes a divisor of 0 for none, which is not what was said here.
  EXPECT_TRUE(Refused(CrossEntropyForward(args, {.reduction = {.divisor = 0.0}}), "reduction.divisor"));
  EXPECT_TRUE(Refused(CrossEntropyForward(args, {.reduction = {.divisor = -1.0}}), "reduction.divisor"));
  EXPECT_TRUE(Refused(CrossEntropyForward(args, {.label_smoothing = 1.5}), "label_smoothing"));
}

TYPED_TEST(CppLayer, Int32Targets) {
  using A = Arithmetic<TypeParam>;
  this->ForwardInC();
  const std::vector<int32_t> targets(this->c.targets.begin(), this->c.targets.end());
  const CrossEntropy<TypeParam, int32_t> args = {
      .logits = View<TypeParam>(this->cpp.logits), .targets = targets, .row_losses = Span<A>(this->cpp.row_losses)};
  ASSERT_TRUE(CrossEntropyForward(args).ok());
  EXPECT_EQ(FirstDifference(this->c.row_losses, this->cpp.row_losses), "");
}

TYPED_TEST(CppLayer, Upstream) {
  using A = Arithmetic<TypeParam>;
  const auto matches = [&](int32_t kind, ::xent::Upstream<A> upstream) {
    const xent_cross_entropy_options defaults = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    xent_cross_entropy c_args = this->c.C(Function::kForwardBackward);
    c_args.upstream = {this->c.upstream.data(), 0, kind, 0};
    ASSERT_EQ(RunC(Function::kForwardBackward, c_args, defaults), XENT_OK);
    typename TestFixture::Args args = this->ForwardBackward();
    const Snapshot before = this->cpp.Outputs();
    args.upstream = upstream;
    ASSERT_TRUE(CrossEntropyForwardBackward(args).ok());
    EXPECT_EQ(this->Differences(), "");
    EXPECT_NE(before.Differences(this->cpp.Outputs()), "");
  };
  ASSERT_TRUE(CrossEntropyForwardBackward(this->ForwardBackward()).ok());  // 1, which the others must change
  matches(XENT_UPSTREAM_SCALAR, *Scalar<A>(this->c.upstream));
  matches(XENT_UPSTREAM_ROWS, Span<A>(this->c.upstream));

  const Snapshot before = this->cpp.Outputs();
  const auto refused = [&](::xent::Upstream<A> upstream) {
    typename TestFixture::Args args = this->ForwardBackward();
    args.upstream = upstream;
    EXPECT_TRUE(Refused(CrossEntropyForwardBackward(args), "upstream"));
    EXPECT_EQ(before.Differences(this->cpp.Outputs()), "");
  };
  refused(Span<A>(this->c.upstream).first(5));
  refused(std::span<const A>());
  // One number an element is for binary cross-entropy.
  Matrix elements = Uniform(kDtypeOf<A>, this->kRows, this->kCols, this->kCols, 6);
  refused(View<A>(elements));
}

TYPED_TEST(CppLayer, InPlace) {
  const xent_cross_entropy_options defaults = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  ASSERT_EQ(RunC(Function::kForwardBackward, this->c.C(Function::kForwardBackward), defaults), XENT_OK);
  typename TestFixture::Args args = this->ForwardBackward();
  args.grad = View<TypeParam>(this->cpp.logits);
  args.grad.stride += 1;
  const Snapshot before = this->cpp.Outputs();
  EXPECT_TRUE(Refused(CrossEntropyForwardBackward(args), "grad"));
  EXPECT_EQ(before.Differences(this->cpp.Outputs()), "");
  args.grad.stride -= 1;
  ASSERT_TRUE(CrossEntropyForwardBackward(args).ok());
  EXPECT_EQ(FirstDifference(this->c.grad, this->cpp.logits), "");
  EXPECT_EQ(FirstDifference(this->c.row_losses, this->cpp.row_losses), "");
}

TYPED_TEST(CppLayer, SizesMustAgree) {
  using A = Arithmetic<TypeParam>;
  const std::vector<int64_t> few(5);
  std::vector<A> values(7);
  std::vector<::xent::Record> records(5);
  const Snapshot before = this->cpp.Outputs();
  const auto refused = [&](const char *word, auto &&spoil) {
    typename TestFixture::Args args = this->ForwardBackward();
    spoil(args);
    EXPECT_TRUE(Refused(CrossEntropyForwardBackward(args), word)) << word;
    EXPECT_EQ(before.Differences(this->cpp.Outputs()), "") << word;
  };
  refused("targets", [&](auto &args) { args.targets = few; });
  refused("targets", [&](auto &args) { args.targets = {}; });
  refused("row_losses", [&](auto &args) { args.row_losses = values; });
  refused("statistics.lse", [&](auto &args) { args.statistics.lse = values; });
  refused("records", [&](auto &args) { args.records = records; });
  refused("upstream", [&](auto &args) { args.upstream = values; });
  refused("grad", [&](auto &args) { args.grad.rows = 5; });
  refused("grad", [&](auto &args) { args.grad.cols = 39; });
}

TYPED_TEST(CppLayer, MessagesNameBothSizes) {
  typename TestFixture::Args args = this->Forward();
  const std::vector<int64_t> few(5);
  args.targets = few;
  EXPECT_STREQ(CrossEntropyForward(args).message(), "targets has 5 elements; expected 6, the rows of logits");
  args = this->ForwardBackward();
  args.grad.cols = 39;
  EXPECT_STREQ(CrossEntropyForwardBackward(args).message(), "grad is 6 x 39; expected 6 x 40, the shape of logits");
  args = this->Forward();
  args.statistics.gather_cols = few;
  EXPECT_STREQ(CrossEntropyForward(args).message(),
               "statistics.gather_cols has 5 elements; expected a multiple of the 6 rows");
}

TYPED_TEST(CppLayer, StatusOfTheLibraryComesThrough) {
  Status status = CrossEntropyForward(this->Forward());
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(status.code(), Code::kOk);
  EXPECT_STREQ(status.message(), "");
  EXPECT_EQ(status.row(), -1);
  EXPECT_EQ(status.column(), -1);
  EXPECT_EQ(status.value(), 0);
  this->cpp.targets[4] = 40;
  status = CrossEntropyForward(this->Forward());
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), Code::kTargetOutOfRange);
  EXPECT_EQ(status.row(), 4);
  EXPECT_EQ(status.column(), -1);
  EXPECT_EQ(status.value(), 40);
  EXPECT_NE(std::string(status.message()).find("40"), std::string::npos) << status.message();
  typename TestFixture::Args args = this->Forward();
  args.logits.stride = 39;
  EXPECT_TRUE(Refused(CrossEntropyForward(args), "logits.stride"));
  // Negative sizes are the library's to refuse.
  args = this->Forward();
  args.logits.rows = -1;
  EXPECT_TRUE(Refused(CrossEntropyForward(args), "rows"));
  EXPECT_TRUE(Status().ok());
}

// The position of what is wrong: a class weight has a column, a row weight a row, a gathered column both and a value.
TYPED_TEST(CppLayer, PositionsComeThrough) {
  using A = Arithmetic<TypeParam>;
  this->cpp.class_weights.Set(0, 3, kNan);
  typename TestFixture::Args args = this->Forward();
  args.class_weights = Span<A>(this->cpp.class_weights);
  Status status = CrossEntropyForward(args);
  EXPECT_TRUE(Refused(status, "class_weights"));
  EXPECT_EQ(status.row(), -1);
  EXPECT_EQ(status.column(), 3);

  this->cpp.row_weights.Set(0, 2, kInf);
  args = this->Forward();
  args.row_weights = Span<A>(this->cpp.row_weights);
  status = CrossEntropyForward(args);
  EXPECT_TRUE(Refused(status, "row_weights"));
  EXPECT_EQ(status.row(), 2);
  EXPECT_EQ(status.column(), -1);
  EXPECT_EQ(status.value(), kInf);

  this->cpp.gather_cols[2 * 5 + 1] = 41;
  status = CrossEntropyForward(this->Forward());
  EXPECT_TRUE(Refused(status, "gather_cols"));
  EXPECT_EQ(status.row(), 5);
  EXPECT_EQ(status.column(), 1);
  EXPECT_EQ(status.value(), 41);

  // This layer's own refusals have none.
  args = this->Forward();
  args.records = args.records.first(5);
  status = CrossEntropyForward(args);
  EXPECT_TRUE(Refused(status, "records"));
  EXPECT_EQ(status.row(), -1);
  EXPECT_EQ(status.column(), -1);
  EXPECT_EQ(status.value(), 0);
}

TYPED_TEST(CppLayer, ExecutionPolicies) {
  using A = Arithmetic<TypeParam>;
  constexpr int64_t kManyRows = 40;
  constexpr int64_t kManyCols = 5000;
  Matrix logits = Normal(kDtypeOf<TypeParam>, kManyRows, kManyCols, 0, 3);
  std::vector<int64_t> targets;
  for (int64_t i = 0; i < kManyRows; ++i) targets.push_back(i * 997 % kManyCols);
  Matrix want_grad(kDtypeOf<TypeParam>, kManyRows, kManyCols);
  Matrix want_loss(kDtypeOf<A>, 1, 1);
  xent_cross_entropy want = XENT_CROSS_ENTROPY_INIT;
  want.rows = kManyRows;
  want.cols = kManyCols;
  want.logits = View(logits);
  want.targets.data = targets.data();
  want.reduced_loss = want_loss.data();
  want.grad = View(want_grad);
  ASSERT_EQ(xent_cross_entropy_forward_backward(&want, nullptr, nullptr, nullptr), XENT_OK);

  int64_t asked = 0;
  auto pool = [&](int64_t n, ::xent::Task task) {  // its call operator is not noexcept
    asked = std::max(asked, n);
    for (int64_t i = n - 1; i >= 0; --i) task(i);
  };
  for (const ::xent::Exec &exec : {::xent::Exec(), ::xent::Exec::OpenMp(3), ::xent::Exec::Serial(),
                                   ::xent::Exec::ParallelFor(pool), ::xent::Exec::ParallelFor(pool, 7)}) {
    Matrix grad(kDtypeOf<TypeParam>, kManyRows, kManyCols);
    Matrix loss(kDtypeOf<A>, 1, 1);
    const CrossEntropy<TypeParam> args = {.logits = View<TypeParam>(logits),
                                          .targets = targets,
                                          .reduced_loss = Scalar<A>(loss),
                                          .grad = View<TypeParam>(grad)};
    ASSERT_TRUE(CrossEntropyForwardBackward(args, {}, exec).ok());
    EXPECT_EQ(FirstDifference(want_grad, grad), "");
    EXPECT_EQ(FirstDifference(want_loss, loss), "");
  }
  EXPECT_GT(asked, 1);
  auto idle = [](int64_t, ::xent::Task) {};
  const CrossEntropy<TypeParam> args = {
      .logits = View<TypeParam>(logits), .targets = targets, .reduced_loss = Scalar<A>(want_loss)};
  EXPECT_EQ(CrossEntropyForward(args, {}, ::xent::Exec::ParallelFor(idle, 4)).code(), Code::kIncomplete);
}

// Before its tasks, between them and after all of them; what it throws is told, and the next call is as ever.
TYPED_TEST(CppLayer, PoolsThatThrow) {
  using A = Arithmetic<TypeParam>;
  constexpr int64_t kManyRows = 40;
  constexpr int64_t kManyCols = 5000;
  Matrix logits = Normal(kDtypeOf<TypeParam>, kManyRows, kManyCols, 0, 3);
  Matrix grad(kDtypeOf<TypeParam>, kManyRows, kManyCols);
  Matrix losses(kDtypeOf<A>, 1, kManyRows);
  const std::vector<int64_t> targets(kManyRows, 7);
  const std::span<A> losses_span(static_cast<A *>(losses.data()), kManyRows);
  enum { kBefore, kBetween, kAfter, kNever } when = kNever;
  bool a_number = false;
  auto pool = [&](int64_t n, ::xent::Task task) {
    const auto reach = [&](auto place) {
      if (when != place) return;
      if (a_number) throw 4711;
      throw std::runtime_error("no worker is left");
    };
    reach(kBefore);
    for (int64_t i = 0; i < n; ++i) {
      if (i == n / 2) reach(kBetween);
      task(i);
    }
    reach(kAfter);
  };
  const ::xent::Exec exec = ::xent::Exec::ParallelFor(pool, 4);
  const CrossEntropy<TypeParam> args = {
      .logits = View<TypeParam>(logits), .targets = targets, .row_losses = losses_span, .grad = View<TypeParam>(grad)};
  std::vector<::xent::ChunkRecord> chunks(kManyRows * 5);
  const CrossEntropy<TypeParam> slice = {.logits = View<TypeParam>(logits), .targets = targets};
  const std::pair<const char *, std::function<Status()>> calls[] = {
      {"cross-entropy", [&] { return CrossEntropyForwardBackward(args, {}, exec); }},
      {"logsumexp", [&] { return LogSumExp(View<TypeParam>(logits), losses_span, 1, exec); }},
      {"shards", [&] { return ShardForward(slice, {.total_cols = kManyCols}, std::span(chunks), {}, exec); }},
      {"divergence",
       [&] {
         return DivergenceForward<TypeParam, TypeParam>(
             {.student = View<TypeParam>(logits), .teacher = View<TypeParam>(logits), .row_losses = losses_span}, {},
             exec);
       }},
  };
  for (const auto &[name, call] : calls) {
    for (const auto place : {kBefore, kBetween, kAfter}) {
      for (const bool number : {false, true}) {
        when = place;
        a_number = number;
        const Status status = call();
        EXPECT_EQ(status.code(), Code::kIncomplete) << name << ", " << place;
        const std::string message = status.message();
        EXPECT_NE(message.find("parallel_for threw"), std::string::npos) << message;
        EXPECT_EQ(message.find("no worker is left") != std::string::npos, !number) << message;
      }
    }
    when = kNever;
    const Status status = call();
    EXPECT_TRUE(status.ok()) << name << ": " << status.message();
    EXPECT_STREQ(status.message(), "");
  }
}

TYPED_TEST(CppLayer, NoRows) {
  using A = Arithmetic<TypeParam>;
  A loss = -77;
  const CrossEntropy<TypeParam> args = {.logits = {nullptr, 0, 3}, .reduced_loss = &loss};
  const Status status = CrossEntropyForward(args, {.reduction = {.kind = ReductionKind::kSum}});
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(loss, 0);
}

// Inputs and outputs of the row functions, in either layout: inner = 2 has [3, 40, 2] behind each matrix.
template <class T>
struct RowTensors {
  static constexpr int64_t kRows = 6;
  static constexpr int64_t kCols = 40;

  explicit RowTensors(int64_t inner)
      : x(Normal(kDtypeOf<T>, kRows / inner, kCols * inner, kCols * inner + 3, 1)),
        g(Normal(kDtypeOf<T>, kRows / inner, kCols * inner, kCols * inner + 4, 2, 1)),
        y(kDtypeOf<T>, kRows / inner, kCols * inner, kCols * inner + 1),
        dx(kDtypeOf<T>, kRows / inner, kCols * inner, kCols * inner + 2),
        lse(kDtypeOf<Arithmetic<T>>, 1, kRows) {}

  // A matrix as the calls take it.
  static MatrixView<T> Rows(Matrix &matrix) { return {static_cast<T *>(matrix.data()), kRows, kCols, matrix.stride()}; }

  Matrix x, g, y, dx, lse;
};

TYPED_TEST(CppLayer, RowFunctions) {
  using T = TypeParam;
  using A = Arithmetic<T>;
  constexpr int64_t kRows = RowTensors<T>::kRows;
  constexpr int64_t kCols = RowTensors<T>::kCols;
  for (const int64_t inner : {1, 2}) {
    SCOPED_TRACE("inner " + std::to_string(inner));
    RowTensors<T> c(inner), cpp(inner);
    const MatrixView<T> x = cpp.Rows(cpp.x), g = cpp.Rows(cpp.g), y = cpp.Rows(cpp.y), dx = cpp.Rows(cpp.dx);
    const auto same = [&](const char *what, const Matrix &want, const Matrix &got) {
      EXPECT_EQ(FirstDifference(want, got), "") << what;
      EXPECT_FALSE(Untouched(got)) << what;
      EXPECT_TRUE(got.PaddingIntact()) << what;
    };
    ASSERT_EQ(xent_logsumexp(kRows, kCols, inner, View(c.x), c.lse.data(), nullptr, nullptr), XENT_OK);
    ASSERT_TRUE(LogSumExp(x, Span<A>(cpp.lse), inner).ok());
    same("LogSumExp", c.lse, cpp.lse);

    ASSERT_EQ(xent_softmax(kRows, kCols, inner, View(c.x), View(c.y), nullptr, nullptr), XENT_OK);
    ASSERT_TRUE(Softmax(x, y, inner).ok());
    same("Softmax", c.y, cpp.y);
    ASSERT_EQ(xent_softmax_backward(kRows, kCols, inner, View(c.g), View(c.y), View(c.dx), nullptr, nullptr), XENT_OK);
    ASSERT_TRUE(SoftmaxBackward(g, y, dx, inner).ok());
    same("SoftmaxBackward", c.dx, cpp.dx);

    Diagnosis diagnosis = Diagnosis::kLogits;
    ASSERT_TRUE(CheckLogits(y, &diagnosis, inner).ok());
    EXPECT_EQ(diagnosis, Diagnosis::kProbabilities);
    ASSERT_EQ(xent_log_softmax(kRows, kCols, inner, View(c.x), View(c.y), nullptr, nullptr), XENT_OK);
    ASSERT_TRUE(LogSoftmax(x, y, inner, ::xent::Exec::Serial()).ok());
    same("LogSoftmax", c.y, cpp.y);
    ASSERT_TRUE(CheckLogits(y, &diagnosis, inner).ok());
    EXPECT_EQ(diagnosis, Diagnosis::kLogProbabilities);
    ASSERT_EQ(xent_log_softmax_backward(kRows, kCols, inner, View(c.g), View(c.y), View(c.dx), nullptr, nullptr),
              XENT_OK);
    ASSERT_TRUE(LogSoftmaxBackward(g, y, dx, inner).ok());
    same("LogSoftmaxBackward", c.dx, cpp.dx);
    ASSERT_TRUE(CheckLogits(x, &diagnosis, inner).ok());
    EXPECT_EQ(diagnosis, Diagnosis::kLogits);
  }
}

// The default is inner = 1; 6 rows are no multiple of 4.
TYPED_TEST(CppLayer, InnerOfRowFunctions) {
  using T = TypeParam;
  using A = Arithmetic<T>;
  RowTensors<T> plain(1), one(1);
  ASSERT_TRUE(LogSumExp(plain.Rows(plain.x), Span<A>(plain.lse)).ok());
  ASSERT_TRUE(LogSumExp(one.Rows(one.x), Span<A>(one.lse), 1).ok());
  EXPECT_EQ(FirstDifference(plain.lse, one.lse), "");
  RowTensors<T> t(1);
  Diagnosis diagnosis = Diagnosis::kLogits;
  const MatrixView<T> x = t.Rows(t.x), g = t.Rows(t.g), y = t.Rows(t.y), dx = t.Rows(t.dx);
  EXPECT_TRUE(Refused(LogSumExp(x, Span<A>(t.lse), 4), "inner"));
  EXPECT_TRUE(Refused(Softmax(x, y, 4), "inner"));
  EXPECT_TRUE(Refused(LogSoftmax(x, y, 4), "inner"));
  EXPECT_TRUE(Refused(SoftmaxBackward(g, x, dx, 4), "inner"));
  EXPECT_TRUE(Refused(LogSoftmaxBackward(g, x, dx, 4), "inner"));
  EXPECT_TRUE(Refused(CheckLogits(x, &diagnosis, 4), "inner"));
  EXPECT_TRUE(Untouched(t.y));
  EXPECT_TRUE(Untouched(t.dx));
  EXPECT_TRUE(Untouched(t.lse));
}

TYPED_TEST(CppLayer, SizesOfRowFunctions) {
  using T = TypeParam;
  using A = Arithmetic<T>;
  RowTensors<T> t(1);
  const MatrixView<T> x = t.Rows(t.x), g = t.Rows(t.g), y = t.Rows(t.y), dx = t.Rows(t.dx);
  std::vector<A> five(5);
  EXPECT_TRUE(Refused(LogSumExp(x, std::span<A>(five)), "lse"));
  EXPECT_TRUE(Refused(CheckLogits(x, nullptr), "diagnosis"));
  MatrixView<T> narrow = dx;
  narrow.cols = 39;
  EXPECT_TRUE(Refused(Softmax(x, narrow), "y"));
  EXPECT_TRUE(Refused(LogSoftmax(x, narrow), "y"));
  EXPECT_TRUE(Refused(SoftmaxBackward(g, y, narrow), "dx"));
  EXPECT_TRUE(Refused(SoftmaxBackward(g, narrow, dx), "y"));
  EXPECT_TRUE(Refused(LogSoftmaxBackward(g, y, narrow), "dx"));
  EXPECT_TRUE(Untouched(t.y));
  EXPECT_TRUE(Untouched(t.dx));
}

TEST(CppLayerFunctions, Reduce) {
  const std::vector<double> losses = {1, 2, 0, 3};
  const std::vector<float> narrow = {1, 2, 0, 3};
  const std::vector<int64_t> targets = {0, 1, -100, 2};
  const std::vector<int32_t> narrow_targets = {0, 1, -100, 2};
  double loss = 0;
  float narrow_loss = 0;
  const StoredLosses<double> wide = {.row_losses = losses, .targets = targets, .reduced_loss = &loss};
  ASSERT_TRUE(Reduce(wide).ok());
  EXPECT_EQ(loss, 2);
  const StoredLosses<double, int32_t> small = {.row_losses = losses, .targets = narrow_targets, .reduced_loss = &loss};
  ASSERT_TRUE(Reduce(small, {.reduction = {.kind = ReductionKind::kSum}}).ok());
  EXPECT_EQ(loss, 6);
  ASSERT_TRUE(Reduce<double>({.row_losses = losses, .reduced_loss = &loss}).ok());
  EXPECT_EQ(loss, 1.5);
  ASSERT_TRUE(Reduce<float>({.row_losses = narrow, .targets = targets, .reduced_loss = &narrow_loss}).ok());
  EXPECT_EQ(narrow_loss, 2);
  narrow_loss = 0;
  const StoredLosses<float, int32_t> smallest = {
      .row_losses = narrow, .targets = narrow_targets, .reduced_loss = &narrow_loss};
  ASSERT_TRUE(Reduce(smallest).ok());
  EXPECT_EQ(narrow_loss, 2);
  ASSERT_TRUE(
      Reduce<float>({.row_losses = narrow, .reduced_loss = &narrow_loss}, {.reduction = {.divisor = 12.0}}).ok());
  EXPECT_EQ(narrow_loss, 0.5);
  ASSERT_TRUE(Reduce(wide, {.ignore_index = 0}).ok());
  EXPECT_EQ(loss, 5.0 / 3);
  StoredLosses<double> args = wide;
  args.targets = args.targets.first(3);
  EXPECT_TRUE(Refused(Reduce(args), "targets"));
  EXPECT_TRUE(Refused(Reduce(wide, {.reduction = {.kind = ReductionKind::kNone}}), "reduction"));
  EXPECT_TRUE(Refused(Reduce(wide, {.reduction = {.divisor = 0.0}}), "reduction.divisor"));
  EXPECT_EQ(loss, 5.0 / 3);
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
  EXPECT_TRUE(Refused(Exp(std::span<const float>(x).first(2), y), "y"));
}

TEST(CppLayerFunctions, Library) {
  EXPECT_STREQ(Version(), xent_version());
  EXPECT_STREQ(ActiveTarget(), xent_active_target());
  EXPECT_EQ(DefaultThreads(), xent_default_threads());
  EXPECT_EQ(WorkspaceBytes<double>(1000, 3), xent_workspace_bytes(1000, XENT_F64, 3));
  EXPECT_EQ(WorkspaceBytes<::xent::bfloat16>(1000), xent_workspace_bytes(1000, XENT_BF16, 0));
}

}  // namespace
}  // namespace xent::test
