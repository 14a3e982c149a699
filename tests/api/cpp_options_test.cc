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
#include "api/cpp_cross_entropy.h"

namespace xent::test {
namespace {

template <class Logits, class Probs>
struct Types {
  using T = Logits;
  using Q = Probs;
};

template <class P>
class CppOptions : public ::testing::Test {
 protected:
  using T = typename P::T;
  using Q = typename P::Q;
  using A = Arithmetic<T>;
  using Tensors = CrossEntropyTensors<T, Q>;
  using Args = typename Tensors::Args;
  using Case = test::Case<Tensors, xent_cross_entropy, xent_cross_entropy_options, Args, CrossEntropyOptions>;
  static constexpr int64_t kRows = Tensors::kRows;
  static constexpr int64_t kCols = Tensors::kCols;

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
    xent_cross_entropy_options c_options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    xent_cross_entropy c_args = c.C(function);
    what.c(c, c_args, c_options);
    CrossEntropyOptions options;
    Args args = cpp.Cpp(function);
    what.cpp(cpp, args, options);
    if (function == Function::kForward) {
      c_args.target_grad = {};
      args.target_grad = {};
    }
    ASSERT_EQ(RunC(function, c_args, c_options), XENT_OK);
    const Status status = RunCpp(function, args, options);
    ASSERT_TRUE(status.ok()) << status.message();
    c_options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
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
    const xent_cross_entropy_options defaults = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    const Snapshot before = cpp.Outputs();
    ASSERT_EQ(RunC(function, c.C(function), defaults), XENT_OK);
    const Status status = RunCpp(function, cpp.Cpp(function), {});
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(c.Outputs().Differences(cpp.Outputs()), "");
    EXPECT_EQ(before.Differences(cpp.Outputs()),
              std::string("row_losses reduced_loss lse logprobs entropy topk_logprobs gathered ") +
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

TYPED_TEST(CppOptions, StatisticsOfIgnored) {
  const auto run = [](bool wanted) {
    typename TestFixture::Tensors tensors;
    typename TestFixture::Args args = tensors.Cpp(Function::kForward);
    args.statistics.of_ignored = wanted;
    EXPECT_TRUE(CrossEntropyForward(args).ok());
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
                 args.target_grad = View(t.target_grad);
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
                 args.logits.stride = 0;
                 args.grad.stride = 0;
               },
               [](auto &, auto &args, auto &) {
                 args.inner = 2;
                 args.logits.stride = 0;
                 args.grad.stride = 0;
               }},
              TestFixture::kCols);
  this->Check({"inner with target_probs",
               [](auto &t, auto &args, auto &) {
                 t.UseProbs(args);
                 args.inner = 3;
                 args.logits.stride = 0;
                 args.grad.stride = 0;
                 args.target_probs.stride = 0;
                 args.target_grad = View(t.target_grad);
                 args.target_grad.stride = 0;
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
              TestFixture::kCols);
}

TYPED_TEST(CppOptions, TopK) {
  using A = typename TestFixture::A;
  using T = typename TestFixture::T;
  this->Check({"top_k 2",
               [](auto &t, auto &args, auto &) {
                 if (args.statistics != nullptr) t.statistics.top_k = 2;
               },
               [](auto &, auto &args, auto &) {
                 if (args.statistics.top_k == 0) return;
                 args.statistics.top_k = 2;
                 args.statistics.topk_logprobs = args.statistics.topk_logprobs.first(2 * TestFixture::kRows);
                 args.statistics.topk_indices = args.statistics.topk_indices.first(2 * TestFixture::kRows);
               }});
  // One of the two alone.
  typename TestFixture::Tensors tensors;
  const CrossEntropy<T> args = {
      .logits = View<T>(tensors.logits),
      .targets = tensors.targets,
      .statistics = {.top_k = tensors.kTopK, .topk_logprobs = Span<A>(tensors.topk_logprobs)}};
  const Status status = CrossEntropyForward(args);
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_FALSE(Untouched(tensors.topk_logprobs));
}

// A statistic alone makes the struct of statistics reach the library, of each kind.
TYPED_TEST(CppOptions, OneStatistic) {
  using Tensors = typename TestFixture::Tensors;
  using Statistics = ::xent::Statistics<typename TestFixture::T>;
  const auto only = [](const char *written, Statistics (*pick)(const Statistics &)) {
    Tensors tensors;
    const Snapshot before = tensors.Outputs();
    typename TestFixture::Args args = tensors.Cpp(Function::kForward);
    args.row_losses = {};
    args.reduced_loss = nullptr;
    args.records = {};
    args.statistics = pick(args.statistics);
    const Status status = CrossEntropyForward(args);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(before.Differences(tensors.Outputs()), written);
  };
  only("lse ", [](const Statistics &all) { return Statistics{.lse = all.lse}; });
  only("logprobs ", [](const Statistics &all) { return Statistics{.logprobs = all.logprobs}; });
  only("argmax ", [](const Statistics &all) { return Statistics{.argmax = all.argmax}; });
  only("hits ", [](const Statistics &all) { return Statistics{.hits = all.hits}; });
  only("rank ", [](const Statistics &all) { return Statistics{.rank = all.rank}; });
  only("entropy ", [](const Statistics &all) { return Statistics{.entropy = all.entropy}; });
  only("topk_indices ",
       [](const Statistics &all) { return Statistics{.top_k = all.top_k, .topk_indices = all.topk_indices}; });
  only("gathered ",
       [](const Statistics &all) { return Statistics{.gather_cols = all.gather_cols, .gathered = all.gathered}; });
  only("perplexity ", [](const Statistics &all) { return Statistics{.perplexity = all.perplexity}; });
  only("live_rows ", [](const Statistics &all) { return Statistics{.live_rows = all.live_rows}; });
}

// A statistic reaches backward too, whose place it is to refuse it.
TYPED_TEST(CppOptions, BackwardRefusesStatistics) {
  using A = typename TestFixture::A;
  typename TestFixture::Tensors tensors;
  EXPECT_TRUE(CrossEntropyForward(tensors.Cpp(Function::kForward)).ok());
  const Snapshot before = tensors.Outputs();
  typename TestFixture::Args args = tensors.Cpp(Function::kBackward);
  args.statistics.live_rows = &tensors.live_rows;
  EXPECT_TRUE(Refused(CrossEntropyBackward(args), "statistics.live_rows"));
  args.statistics = {.lse = Span<A>(tensors.lse)};
  EXPECT_TRUE(Refused(CrossEntropyBackward(args), "statistics.lse"));
  EXPECT_EQ(before.Differences(tensors.Outputs()), "");
}

TYPED_TEST(CppOptions, SizesMustAgree) {
  using A = typename TestFixture::A;
  std::vector<A> five(5);
  std::vector<int64_t> five_indices(5);
  std::vector<uint8_t> five_bytes(5);
  this->CheckRefused("class_weights", [&](auto &t, auto &args) { args.class_weights = Span<A>(t.row_weights); });
  this->CheckRefused("row_weights", [&](auto &t, auto &args) { args.row_weights = Span<A>(t.class_weights); });
  this->CheckRefused("row_losses", [&](auto &, auto &args) { args.row_losses = five; });
  this->CheckRefused("statistics.lse", [&](auto &, auto &args) { args.statistics.lse = five; });
  this->CheckRefused("statistics.logprobs", [&](auto &, auto &args) { args.statistics.logprobs = five; });
  this->CheckRefused("statistics.argmax", [&](auto &, auto &args) { args.statistics.argmax = five_indices; });
  this->CheckRefused("statistics.hits", [&](auto &, auto &args) { args.statistics.hits = five_bytes; });
  this->CheckRefused("statistics.entropy", [&](auto &, auto &args) { args.statistics.entropy = five; });
  this->CheckRefused("statistics.rank", [&](auto &, auto &args) { args.statistics.rank = five_indices; });
  this->CheckRefused("statistics.topk_logprobs", [&](auto &, auto &args) { args.statistics.topk_logprobs = five; });
  this->CheckRefused("statistics.topk_indices",
                     [&](auto &, auto &args) { args.statistics.topk_indices = five_indices; });
  this->CheckRefused("statistics.topk_logprobs", [&](auto &, auto &args) { args.statistics.top_k = 4; });
  this->CheckRefused("statistics.topk_logprobs", [&](auto &, auto &args) { args.statistics.top_k = 0; });
  this->CheckRefused("statistics.top_k", [&](auto &, auto &args) { args.statistics.top_k = -1; });
  this->CheckRefused("statistics.gathered", [&](auto &, auto &args) { args.statistics.gathered = five; });
  this->CheckRefused("statistics.gathered", [&](auto &, auto &args) { args.statistics.gather_cols = {}; });
  this->CheckRefused("statistics.gather_cols", [&](auto &, auto &args) {
    args.statistics.gather_cols = five_indices;
    args.statistics.gathered = five;
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
  const CrossEntropy<typename TestFixture::T> args = {.logits = {nullptr, 0, 3}, .reduced_loss = &loss};
  ASSERT_TRUE(CrossEntropyForward(args, {.reduction = {.kind = ReductionKind::kSum}}).ok());
  EXPECT_EQ(loss, 0);
  CrossEntropy<typename TestFixture::T> gathering = args;
  const std::array<int64_t, 2> columns = {0, 1};
  gathering.statistics.gather_cols = columns;
  EXPECT_TRUE(Refused(CrossEntropyForward(gathering), "gather_cols"));
}

using ArithmeticTypes = ::testing::Types<float, double>;
struct ArithmeticNames {
  template <class T>
  static std::string GetName(int) {
    return reference::NameOf(kDtypeOf<T>);
  }
};
template <class T>
class CppReduceWeighted : public ::testing::Test {};
TYPED_TEST_SUITE(CppReduceWeighted, ArithmeticTypes, ArithmeticNames);

TYPED_TEST(CppReduceWeighted, ReachesTheLibrary) {
  using T = TypeParam;
  const std::vector<T> losses = {1, 2, 0, 3};
  const std::vector<T> rows = {1, 0.5, 7, 3};
  const std::vector<T> classes = {4, 2, 1};
  const std::vector<int64_t> targets = {0, 1, -100, 2};
  const std::vector<int32_t> narrow = {0, 1, -100, 2};
  T loss = 0;
  StoredLosses<T> wide = {
      .row_losses = losses, .targets = targets, .class_weights = classes, .row_weights = rows, .reduced_loss = &loss};
  ASSERT_TRUE(Reduce(wide).ok());
  EXPECT_EQ(loss, T{6} / 8);
  wide.row_weights = {};
  ASSERT_TRUE(Reduce(wide).ok());
  EXPECT_EQ(loss, T{6} / 7);
  const StoredLosses<T, int32_t> small = {
      .row_losses = losses, .targets = narrow, .row_weights = rows, .reduced_loss = &loss};
  ASSERT_TRUE(Reduce(small).ok());
  EXPECT_EQ(loss, 6 / T{4.5});
  ASSERT_TRUE(Reduce(small, {.reduction = {.divisor = 12.0}}).ok());
  EXPECT_EQ(loss, T{0.5});
  ASSERT_TRUE(Reduce<T>({.row_losses = losses, .row_weights = rows, .reduced_loss = &loss}).ok());
  EXPECT_EQ(loss, 6 / T{11.5});
}

TYPED_TEST(CppReduceWeighted, Refuses) {
  using T = TypeParam;
  const std::vector<T> losses = {1, 2, 0, 3};
  const std::vector<T> three = {1, 2, 3};
  const std::vector<int64_t> targets = {0, 1, -100, 2};
  T loss = -77;
  const auto refused = [&](const char *word, auto &&spoil) {
    StoredLosses<T> args = {.row_losses = losses, .targets = targets, .reduced_loss = &loss};
    spoil(args);
    EXPECT_TRUE(Refused(Reduce(args), word)) << word;
  };
  refused("row_weights", [&](auto &args) { args.row_weights = three; });
  refused("row_weights", [&](auto &args) {
    args.targets = {};
    args.row_weights = three;
  });
  refused("targets", [&](auto &args) {
    args.targets = args.targets.first(3);
    args.row_weights = losses;
  });
  refused("targets", [&](auto &args) {
    args.targets = {};
    args.class_weights = three;
  });
  const Status status = Reduce<T>(
      {.row_losses = losses, .targets = targets, .class_weights = std::span(three).first(2), .reduced_loss = &loss});
  EXPECT_EQ(status.code(), Code::kTargetOutOfRange);
  EXPECT_EQ(status.row(), 3);
  EXPECT_EQ(status.column(), -1);
  EXPECT_EQ(status.value(), 2);
  EXPECT_EQ(loss, -77);
}

}  // namespace
}  // namespace xent::test
