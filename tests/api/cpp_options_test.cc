// xent.hpp, cross-entropy: that every option, weight, target and statistic reaches the library, which shows in bits
// equal to those of the C call and different from those of a call without it; and that sizes which do not agree are
// refused with nothing written.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "api/cpp_call.h"

namespace xent::test {
namespace {

template <class Logits, class Probs>
struct Types {
  using T = Logits;
  using Q = Probs;
};

constexpr int64_t kRows = 6;
constexpr int64_t kCols = 40;
constexpr int32_t kTopK = 3;
constexpr int64_t kGather = 2;

// Inputs and outputs of one call; the outputs poisoned.
template <class T, class Q>
struct Tensors {
  using A = Arithmetic<T>;
  static constexpr xent_dtype kDtype = kDtypeOf<T>;
  static constexpr xent_dtype kArithmetic = kDtypeOf<A>;
  using Args = CrossEntropy<T, int64_t, Q>;

  explicit Tensors(int64_t stride = kCols + 3)
      : logits(Normal(kDtype, kRows, kCols, stride, 1)),
        probs(Uniform(kDtypeOf<Q>, kRows, kCols, stride == kCols ? stride : stride + 1, 2)),
        class_weights(Uniform(kArithmetic, 1, kCols, 0, 3)),
        row_weights(Uniform(kArithmetic, 1, kRows, 0, 4)),
        upstream(Uniform(kArithmetic, 1, kRows, 0, 5)),
        grad(kDtype, kRows, kCols, stride == kCols ? stride : stride + 2),
        target_grad(kDtypeOf<Q>, kRows, kCols, stride == kCols ? stride : stride + 3) {}

  xent_cross_entropy C(Function function) {
    xent_cross_entropy c = XENT_CROSS_ENTROPY_INIT;
    c.rows = kRows;
    c.cols = kCols;
    c.logits = logits.data();
    c.logits_stride = logits.stride();
    c.dtype = kDtype;
    c.targets = targets.data();
    c.records = records.data();
    c.target_probs_dtype = kDtypeOf<Q>;
    if (function != Function::kBackward) {
      c.losses = losses.data();
      c.lse = lse.data();
      c.loss = loss.data();
      c.perplexity = &perplexity;
      c.live_rows = &live_rows;
      c.logprobs = logprobs.data();
      c.argmax = argmax.data();
      c.hits = hits.data();
      c.entropy = entropy.data();
      c.rank = rank.data();
      c.top_k = kTopK;
      c.topk_logprobs = topk_logprobs.data();
      c.topk_indices = topk_indices.data();
      c.gather_cols = gather_cols.data();
      c.gathered = gathered.data();
      c.gather_count = kGather;
    }
    if (function != Function::kForward) {
      c.grad = grad.data();
      c.grad_stride = grad.stride();
    }
    return c;
  }

  Args Cpp(Function function) {
    Args args = {.logits = View<T>(logits), .targets = targets, .records = records};
    if (function != Function::kBackward) {
      args.losses = Span<A>(losses);
      args.lse = Span<A>(lse);
      args.loss = Scalar<A>(loss);
      args.perplexity = &perplexity;
      args.live_rows = &live_rows;
      args.logprobs = Span<A>(logprobs);
      args.argmax = argmax;
      args.hits = hits;
      args.entropy = Span<A>(entropy);
      args.rank = rank;
      args.top_k = kTopK;
      args.topk_logprobs = Span<A>(topk_logprobs);
      args.topk_indices = topk_indices;
      args.gather_cols = gather_cols;
      args.gathered = Span<A>(gathered);
    }
    if (function != Function::kForward) args.grad = View<T>(grad);
    return args;
  }

  // Probability targets have no target column, so no statistics of it.
  void UseProbs(xent_cross_entropy &c) {
    c.targets = nullptr;
    c.target_probs = probs.data();
    c.target_probs_stride = probs.stride();
    c.logprobs = nullptr;
    c.hits = nullptr;
    c.rank = nullptr;
  }
  void UseProbs(Args &args) {
    args.targets = {};
    args.target_probs = View<Q>(probs);
    args.logprobs = {};
    args.hits = {};
    args.rank = {};
  }

  Snapshot Outputs() const {
    Snapshot out;
    out.Add("losses", losses);
    out.Add("lse", lse);
    out.Add("loss", loss);
    out.Add("logprobs", logprobs);
    out.Add("entropy", entropy);
    out.Add("topk_logprobs", topk_logprobs);
    out.Add("gathered", gathered);
    out.Add("grad", grad);
    out.Add("target_grad", target_grad);
    out.Add("perplexity", std::span(&perplexity, 1));
    out.Add("live_rows", std::span(&live_rows, 1));
    out.Add("argmax", std::span(argmax));
    out.Add("hits", std::span(hits));
    out.Add("rank", std::span(rank));
    out.Add("topk_indices", std::span(topk_indices));
    out.Add("records", std::span(records));
    return out;
  }

  Matrix logits, probs, class_weights, row_weights, upstream;
  std::vector<int64_t> targets = {7, 0, -100, 33, 12, 12};
  std::vector<int64_t> gather_cols = {0, 1, 2, 3, 35, 34, 33, 32, 31, 30, 29, 28};
  Matrix losses{kArithmetic, 1, kRows}, lse = losses, logprobs = losses, entropy = losses;
  Matrix loss{kArithmetic, 1, 1};
  Matrix topk_logprobs{kArithmetic, 1, kRows *kTopK}, gathered{kArithmetic, 1, kRows *kGather};
  Matrix grad, target_grad;
  double perplexity = -77;
  int64_t live_rows = -77;
  std::vector<int64_t> argmax = std::vector<int64_t>(kRows, -77), rank = argmax;
  std::vector<uint8_t> hits = std::vector<uint8_t>(kRows, 77);
  std::vector<int64_t> topk_indices = std::vector<int64_t>(kRows * kTopK, -77);
  std::vector<::xent::Record> records = std::vector<::xent::Record>(kRows);
};

xent_status RunC(Function function, const xent_cross_entropy &args, const xent_options &options) {
  switch (function) {
    case Function::kForward:
      return xent_cross_entropy_forward(&args, &options, nullptr, nullptr);
    case Function::kForwardBackward:
      return xent_cross_entropy_forward_backward(&args, &options, nullptr, nullptr);
    default:
      return xent_cross_entropy_backward(&args, &options, nullptr, nullptr);
  }
}

template <class Args>
Status RunCpp(Function function, const Args &args, const Options &options) {
  switch (function) {
    case Function::kForward:
      return CrossEntropyForward(args, options);
    case Function::kForwardBackward:
      return CrossEntropyForwardBackward(args, options);
    default:
      return CrossEntropyBackward(args, options);
  }
}

template <class P>
class CppOptions : public ::testing::Test {
 protected:
  using T = typename P::T;
  using Q = typename P::Q;
  using A = Arithmetic<T>;
  using Tensors = test::Tensors<T, Q>;
  using Args = typename Tensors::Args;
  using Case = test::Case<Tensors, xent_cross_entropy, Args>;

  // The case said in C, in C++ and not at all, each from fresh tensors; backward after a forward that was told the
  // same.
  void Check(const Case &what, int64_t stride = kCols + 3) {
    for (const Function function : kFunctions) {
      SCOPED_TRACE(std::string(what.name) + ", " + NameOf(function));
      Tensors c(stride), cpp(stride), plain(stride);
      if (function == Function::kBackward) RunAll(what, Function::kForward, c, cpp, plain);
      RunAll(what, function, c, cpp, plain);
      EXPECT_EQ(c.Outputs().Differences(cpp.Outputs()), "");
      EXPECT_NE(c.Outputs().Differences(plain.Outputs()), "");
    }
  }

  void RunAll(const Case &what, Function function, Tensors &c, Tensors &cpp, Tensors &plain) {
    xent_options c_options = XENT_OPTIONS_INIT;
    xent_cross_entropy c_args = c.C(function);
    what.c(c, c_args, c_options);
    Options options;
    Args args = cpp.Cpp(function);
    what.cpp(cpp, args, options);
    if (function == Function::kForward) {
      c_args.target_grad = nullptr;
      c_args.target_grad_stride = 0;
      args.target_grad = {};
    }
    ASSERT_EQ(RunC(function, c_args, c_options), XENT_OK);
    const Status status = RunCpp(function, args, options);
    ASSERT_TRUE(status.ok()) << status.message();
    c_options = XENT_OPTIONS_INIT;
    ASSERT_EQ(RunC(function, plain.C(function), c_options), XENT_OK);
  }

  // A call that is refused, with the word in its message, and writes nothing.
  void CheckRefused(const char *word, const std::function<void(Tensors &, Args &)> &spoil) {
    Tensors tensors;
    const Snapshot before = tensors.Outputs();
    Args args = tensors.Cpp(Function::kForwardBackward);
    spoil(tensors, args);
    EXPECT_TRUE(Refused(CrossEntropyForwardBackward(args), word)) << word;
    EXPECT_EQ(tensors.Outputs().Differences(before), "") << word;
  }
};

using Elements = ::testing::Types<Types<float, float>, Types<double, double>, Types<::xent::bfloat16, float>,
                                  Types<::xent::float16, ::xent::bfloat16>>;
struct ElementNames {
  template <class P>
  static std::string GetName(int) {
    return std::string(reference::NameOf(kDtypeOf<typename P::T>)) + "_" + reference::NameOf(kDtypeOf<typename P::Q>);
  }
};
TYPED_TEST_SUITE(CppOptions, Elements, ElementNames);

TYPED_TEST(CppOptions, EveryOutputReachesTheLibrary) {
  for (const Function function : {Function::kForward, Function::kForwardBackward}) {
    typename TestFixture::Tensors c, cpp;
    const xent_options defaults = XENT_OPTIONS_INIT;
    const Snapshot before = cpp.Outputs();
    ASSERT_EQ(RunC(function, c.C(function), defaults), XENT_OK);
    const Status status = RunCpp(function, cpp.Cpp(function), {});
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(c.Outputs().Differences(cpp.Outputs()), "");
    EXPECT_EQ(before.Differences(cpp.Outputs()),
              std::string("losses lse loss logprobs entropy topk_logprobs gathered ") +
                  (function == Function::kForward ? "" : "grad ") +
                  "perplexity live_rows argmax hits rank topk_indices records ");
  }
}

TYPED_TEST(CppOptions, LossOptions) {
  this->Check({"logit_scale", [](auto &, auto &, auto &options) { options.logit_scale = 0.75; },
               [](auto &, auto &, auto &options) { options.logit_scale = 0.75; }});
  this->Check({"softcap", [](auto &, auto &, auto &options) { options.softcap = 5; },
               [](auto &, auto &, auto &options) { options.softcap = 5; }});
  this->Check({"z_loss", [](auto &, auto &, auto &options) { options.z_loss = 0.125; },
               [](auto &, auto &, auto &options) { options.z_loss = 0.125; }});
  this->Check({"valid_cols", [](auto &, auto &, auto &options) { options.valid_cols = 36; },
               [](auto &, auto &, auto &options) { options.valid_cols = 36; }});
}

TYPED_TEST(CppOptions, StatsOfIgnored) {
  const auto run = [](bool wanted) {
    typename TestFixture::Tensors tensors;
    Options options;
    options.stats_of_ignored = wanted;
    EXPECT_TRUE(CrossEntropyForward(tensors.Cpp(Function::kForward), options).ok());
    return tensors.argmax[2];
  };
  EXPECT_EQ(run(false), -1);
  EXPECT_GE(run(true), 0);
}

TYPED_TEST(CppOptions, Weights) {
  using A = typename TestFixture::A;
  this->Check({"class_weights", [](auto &t, auto &args, auto &) { args.class_weights = t.class_weights.data(); },
               [](auto &t, auto &args, auto &) { args.class_weights = Span<A>(t.class_weights); }});
  this->Check({"row_weights", [](auto &t, auto &args, auto &) { args.row_weights = t.row_weights.data(); },
               [](auto &t, auto &args, auto &) { args.row_weights = Span<A>(t.row_weights); }});
}

TYPED_TEST(CppOptions, ProbabilityTargets) {
  using Q = typename TestFixture::Q;
  this->Check({"target_probs", [](auto &t, auto &args, auto &) { t.UseProbs(args); },
               [](auto &t, auto &args, auto &) { t.UseProbs(args); }});
  this->Check({"target_grad",
               [](auto &t, auto &args, auto &) {
                 t.UseProbs(args);
                 args.target_grad = t.target_grad.data();
                 args.target_grad_stride = t.target_grad.stride();
               },
               [](auto &t, auto &args, auto &) {
                 t.UseProbs(args);
                 args.target_grad = View<Q>(t.target_grad);
               }});
  typename TestFixture::Tensors tensors;
  typename TestFixture::Args args = tensors.Cpp(Function::kForwardBackward);
  tensors.UseProbs(args);
  args.target_grad = View<Q>(tensors.target_grad);
  ASSERT_TRUE(CrossEntropyForwardBackward(args).ok());
  EXPECT_FALSE(Untouched(tensors.target_grad));
  // Both kinds of target: the library's to refuse.
  args.targets = tensors.targets;
  EXPECT_TRUE(Refused(CrossEntropyForwardBackward(args), "target_probs"));
}

TYPED_TEST(CppOptions, Inner) {
  using Q = typename TestFixture::Q;
  // Stride 0, since the stride of the matrices is a row's and that of blocks another.
  this->Check({"inner",
               [](auto &, auto &args, auto &) {
                 args.inner = 2;
                 args.logits_stride = 0;
                 args.grad_stride = 0;
               },
               [](auto &, auto &args, auto &) {
                 args.inner = 2;
                 args.logits.stride = 0;
                 args.grad.stride = 0;
               }},
              kCols);
  this->Check({"inner with target_probs",
               [](auto &t, auto &args, auto &) {
                 t.UseProbs(args);
                 args.inner = 3;
                 args.logits_stride = 0;
                 args.grad_stride = 0;
                 args.target_probs_stride = 0;
                 args.target_grad = t.target_grad.data();
               },
               [](auto &t, auto &args, auto &) {
                 t.UseProbs(args);
                 args.inner = 3;
                 args.logits.stride = 0;
                 args.grad.stride = 0;
                 args.target_probs.stride = 0;
                 args.target_grad = View<Q>(t.target_grad);
                 args.target_grad.stride = 0;
               }},
              kCols);
}

TYPED_TEST(CppOptions, TopK) {
  using A = typename TestFixture::A;
  this->Check({"top_k 2",
               [](auto &, auto &args, auto &) {
                 if (args.topk_logprobs != nullptr) args.top_k = 2;
               },
               [](auto &, auto &args, auto &) {
                 if (args.top_k == 0) return;
                 args.top_k = 2;
                 args.topk_logprobs = args.topk_logprobs.first(2 * kRows);
                 args.topk_indices = args.topk_indices.first(2 * kRows);
               }});
  // One of the two alone.
  typename TestFixture::Tensors tensors;
  const CrossEntropy<typename TestFixture::T> args = {.logits = View<typename TestFixture::T>(tensors.logits),
                                                      .targets = tensors.targets,
                                                      .top_k = kTopK,
                                                      .topk_logprobs = Span<A>(tensors.topk_logprobs)};
  const Status status = CrossEntropyForward(args);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_FALSE(Untouched(tensors.topk_logprobs));
}

TYPED_TEST(CppOptions, SizesMustAgree) {
  using A = typename TestFixture::A;
  std::vector<A> five(5);
  std::vector<int64_t> five_indices(5);
  std::vector<uint8_t> five_bytes(5);
  this->CheckRefused("class_weights", [&](auto &t, auto &args) { args.class_weights = Span<A>(t.row_weights); });
  this->CheckRefused("row_weights", [&](auto &t, auto &args) { args.row_weights = Span<A>(t.class_weights); });
  this->CheckRefused("logprobs", [&](auto &, auto &args) { args.logprobs = five; });
  this->CheckRefused("argmax", [&](auto &, auto &args) { args.argmax = five_indices; });
  this->CheckRefused("hits", [&](auto &, auto &args) { args.hits = five_bytes; });
  this->CheckRefused("entropy", [&](auto &, auto &args) { args.entropy = five; });
  this->CheckRefused("rank", [&](auto &, auto &args) { args.rank = five_indices; });
  this->CheckRefused("topk_logprobs", [&](auto &, auto &args) { args.topk_logprobs = five; });
  this->CheckRefused("topk_indices", [&](auto &, auto &args) { args.topk_indices = five_indices; });
  this->CheckRefused("topk_logprobs", [&](auto &, auto &args) { args.top_k = 4; });
  this->CheckRefused("topk_logprobs", [&](auto &, auto &args) { args.top_k = 0; });
  this->CheckRefused("top_k", [&](auto &, auto &args) { args.top_k = -1; });
  this->CheckRefused("gathered", [&](auto &, auto &args) { args.gathered = five; });
  this->CheckRefused("gathered", [&](auto &, auto &args) { args.gather_cols = {}; });
  this->CheckRefused("gather_cols", [&](auto &, auto &args) {
    args.gather_cols = five_indices;
    args.gathered = five;
  });
  const auto probs = [&](const char *word, auto &&spoil) {
    this->CheckRefused(word, [&](auto &t, auto &args) {
      t.UseProbs(args);
      args.target_grad = View<typename TestFixture::Q>(t.target_grad);
      spoil(args);
    });
  };
  probs("target_probs", [](auto &args) { args.target_probs.rows = 5; });
  probs("target_probs", [](auto &args) { args.target_probs.cols = 39; });
  probs("target_grad", [](auto &args) { args.target_grad.rows = 5; });
  probs("target_grad", [](auto &args) { args.target_grad.cols = 39; });
}

TYPED_TEST(CppOptions, NoRows) {
  using A = typename TestFixture::A;
  A loss = -77;
  const CrossEntropy<typename TestFixture::T> args = {.logits = {nullptr, 0, 3}, .loss = &loss};
  ASSERT_TRUE(CrossEntropyForward(args, {.reduction = ::xent::Reduction::kSum}).ok());
  EXPECT_EQ(loss, 0);
  CrossEntropy<typename TestFixture::T> gathering = args;
  const std::array<int64_t, 2> columns = {0, 1};
  gathering.gather_cols = columns;
  EXPECT_TRUE(Refused(CrossEntropyForward(gathering), "gather_cols"));
}

TEST(CppReduceWeighted, ReachesTheLibrary) {
  const std::vector<double> losses = {1, 2, 0, 3};
  const std::vector<float> narrow = {1, 2, 0, 3};
  const std::vector<double> rows = {1, 0.5, 7, 3};
  const std::vector<float> narrow_rows = {1, 0.5, 7, 3};
  const std::vector<double> classes = {4, 2, 1};
  const std::vector<float> narrow_classes = {4, 2, 1};
  const std::vector<int64_t> targets = {0, 1, -100, 2};
  const std::vector<int32_t> narrow_targets = {0, 1, -100, 2};
  double loss = 0;
  float narrow_loss = 0;
  ASSERT_TRUE(Reduce(losses, targets, {.row_weights = rows, .class_weights = classes}, &loss).ok());
  EXPECT_EQ(loss, 6.0 / 8);
  ASSERT_TRUE(Reduce(losses, narrow_targets, {.row_weights = rows}, &loss).ok());
  EXPECT_EQ(loss, 6 / 4.5);
  ASSERT_TRUE(Reduce(losses, targets, {.class_weights = classes}, &loss).ok());
  EXPECT_EQ(loss, 6.0 / 7);
  ASSERT_TRUE(Reduce(losses, {.row_weights = rows}, &loss).ok());
  EXPECT_EQ(loss, 6 / 11.5);
  ASSERT_TRUE(Reduce(narrow, targets, {.class_weights = narrow_classes}, &narrow_loss).ok());
  EXPECT_EQ(narrow_loss, 6.0f / 7);
  ASSERT_TRUE(Reduce(narrow, narrow_targets, {.row_weights = narrow_rows}, &narrow_loss).ok());
  EXPECT_EQ(narrow_loss, 6 / 4.5f);
  ASSERT_TRUE(Reduce(narrow, {.row_weights = narrow_rows}, &narrow_loss).ok());
  EXPECT_EQ(narrow_loss, 6 / 11.5f);
  ASSERT_TRUE(Reduce(narrow, narrow_targets, {.row_weights = narrow_rows}, &narrow_loss, {.divisor = 12.0}).ok());
  EXPECT_EQ(narrow_loss, 0.5f);
}

TEST(CppReduceWeighted, Refuses) {
  const std::vector<double> losses = {1, 2, 0, 3};
  const std::vector<double> three = {1, 2, 3};
  const std::vector<int64_t> targets = {0, 1, -100, 2};
  double loss = -77;
  EXPECT_TRUE(Refused(Reduce(losses, targets, {.row_weights = three}, &loss), "row_weights"));
  EXPECT_TRUE(Refused(Reduce(losses, {.row_weights = three}, &loss), "row_weights"));
  EXPECT_TRUE(Refused(Reduce(losses, std::span(targets).first(3), {.row_weights = losses}, &loss), "targets"));
  EXPECT_TRUE(Refused(Reduce(losses, {.class_weights = three}, &loss), "targets"));
  const Status status = Reduce(losses, targets, {.class_weights = std::span(three).first(2)}, &loss);
  EXPECT_EQ(status.code(), Code::kTargetOutOfRange);
  EXPECT_EQ(status.row(), 3);
  EXPECT_EQ(status.value(), 2);
  EXPECT_EQ(loss, -77);
}

}  // namespace
}  // namespace xent::test
