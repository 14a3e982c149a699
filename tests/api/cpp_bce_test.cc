// xent.hpp, binary cross-entropy: that every member reaches the library, which shows in bits equal to those of the C
// call and different from those of a call without it; and that sizes which do not agree are refused with nothing
// written.
#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "api/cpp_call.h"

namespace xent::test {
namespace {

constexpr int64_t kRows = 6;
constexpr int64_t kCols = 40;

template <class T, class Y>
struct Tensors {
  using A = Arithmetic<T>;
  using Args = BinaryCrossEntropy<T, Y>;
  static constexpr xent_dtype kDtype = kDtypeOf<T>;
  static constexpr xent_dtype kArithmetic = kDtypeOf<A>;

  explicit Tensors(int64_t padding = 1)
      : input(Normal(kDtype, kRows, kCols, kCols + padding, 1)),
        probs(Uniform(kDtype, kRows, kCols, kCols + padding, 2)),
        targets(Uniform(kDtypeOf<Y>, kRows, kCols, kCols + 2 * padding, 3)),
        pos_weight(Uniform(kArithmetic, 1, kCols, 0, 4)),
        class_weights(Uniform(kArithmetic, 1, kCols, 0, 5)),
        row_weights(Uniform(kArithmetic, 1, kRows, 0, 6)),
        element_weights(Uniform(kArithmetic, kRows, kCols, kCols + 3 * padding, 7)),
        upstream(Uniform(kArithmetic, kRows, kCols, kCols + 4 * padding, 8)),
        element_losses(kArithmetic, kRows, kCols, kCols + 5 * padding),
        reduced_loss(kArithmetic, 1, 1),
        grad(kDtype, kRows, kCols, kCols + 6 * padding),
        target_grad(kDtypeOf<Y>, kRows, kCols, kCols + 7 * padding) {}

  xent_binary_cross_entropy C(Function function) {
    xent_binary_cross_entropy c = XENT_BINARY_CROSS_ENTROPY_INIT;
    c.rows = kRows;
    c.cols = kCols;
    c.input = View(input);
    c.targets = View(targets);
    if (function != Function::kBackward) {
      c.element_losses = View(element_losses);
      c.reduced_loss = reduced_loss.data();
    }
    if (function != Function::kForward) {
      c.grad = View(grad);
      c.target_grad = View(target_grad);
    }
    return c;
  }
  Args Cpp(Function function) {
    Args args = {.input = View<T>(input), .targets = View<Y>(targets)};
    if (function != Function::kBackward) {
      args.element_losses = View<A>(element_losses);
      args.reduced_loss = Scalar<A>(reduced_loss);
    }
    if (function != Function::kForward) {
      args.grad = View<T>(grad);
      args.target_grad = View<Y>(target_grad);
    }
    return args;
  }
  Snapshot Outputs() const {
    Snapshot out;
    out.Add("element_losses", element_losses);
    out.Add("reduced_loss", reduced_loss);
    out.Add("grad", grad);
    out.Add("target_grad", target_grad);
    out.Add("input", input);
    return out;
  }

  Matrix input, probs, targets, pos_weight, class_weights, row_weights, element_weights, upstream;
  Matrix element_losses, reduced_loss, grad, target_grad;
};

xent_status RunC(Function function, const xent_binary_cross_entropy &args,
                 const xent_binary_cross_entropy_options &options) {
  switch (function) {
    case Function::kForward:
      return xent_binary_cross_entropy_forward(&args, &options, nullptr, nullptr);
    case Function::kForwardBackward:
      return xent_binary_cross_entropy_forward_backward(&args, &options, nullptr, nullptr);
    default:
      return xent_binary_cross_entropy_backward(&args, &options, nullptr, nullptr);
  }
}

template <class Args>
Status RunCpp(Function function, const Args &args, const BinaryCrossEntropyOptions &options) {
  switch (function) {
    case Function::kForward:
      return BinaryCrossEntropyForward(args, options);
    case Function::kForwardBackward:
      return BinaryCrossEntropyForwardBackward(args, options);
    default:
      return BinaryCrossEntropyBackward(args, options);
  }
}

template <class P>
class CppBce : public ::testing::Test {
 protected:
  using T = typename P::T;
  using Y = typename P::Y;
  using A = Arithmetic<T>;
  using Tensors = test::Tensors<T, Y>;
  using Args = typename Tensors::Args;
  using Case = test::Case<Tensors, xent_binary_cross_entropy, xent_binary_cross_entropy_options, Args,
                          BinaryCrossEntropyOptions>;

  void CheckOne(const Case &what, Function function, int64_t padding = 1) {
    SCOPED_TRACE(std::string(what.name) + ", " + NameOf(function));
    Tensors c(padding), cpp(padding), plain(padding);
    xent_binary_cross_entropy_options c_options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
    ASSERT_EQ(RunC(function, plain.C(function), c_options), XENT_OK);
    xent_binary_cross_entropy c_args = c.C(function);
    what.c(c, c_args, c_options);
    ASSERT_EQ(RunC(function, c_args, c_options), XENT_OK);
    BinaryCrossEntropyOptions options;
    Args args = cpp.Cpp(function);
    what.cpp(cpp, args, options);
    const Status status = RunCpp(function, args, options);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(c.Outputs().Differences(cpp.Outputs()), "");
    EXPECT_NE(c.Outputs().Differences(plain.Outputs()), "");
  }
  void Check(const Case &what, int64_t padding = 1) {
    for (const Function function : kFunctions) CheckOne(what, function, padding);
  }
  void CheckGradients(const Case &what) {
    CheckOne(what, Function::kForwardBackward);
    CheckOne(what, Function::kBackward);
  }

  void CheckRefused(const char *word, const std::function<void(Args &)> &spoil) {
    Tensors tensors;
    const Snapshot before = tensors.Outputs();
    Args args = tensors.Cpp(Function::kForwardBackward);
    spoil(args);
    EXPECT_TRUE(Refused(BinaryCrossEntropyForwardBackward(args), word)) << word;
    EXPECT_EQ(tensors.Outputs().Differences(before), "") << word;
  }
};

template <class Input, class Targets>
struct Types {
  using T = Input;
  using Y = Targets;
};
using Elements = ::testing::Types<Types<float, float>, Types<double, double>, Types<float, ::xent::bfloat16>,
                                  Types<::xent::float16, float>>;
TYPED_TEST_SUITE(CppBce, Elements);

TYPED_TEST(CppBce, EveryOutputReachesTheLibrary) {
  const char *const written[] = {"element_losses reduced_loss ", "element_losses reduced_loss grad target_grad ",
                                 "grad target_grad "};
  for (int i = 0; i < 3; ++i) {
    typename TestFixture::Tensors tensors;
    const Snapshot before = tensors.Outputs();
    const Status status = RunCpp(kFunctions[i], tensors.Cpp(kFunctions[i]), {});
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(before.Differences(tensors.Outputs()), written[i]);
  }
}

TYPED_TEST(CppBce, Members) {
  using A = typename TestFixture::A;
  using T = typename TestFixture::T;
  this->Check({"input",
               [](auto &t, auto &args, auto &options) {
                 args.input = View(t.probs);
                 options.input = XENT_BINARY_PROBABILITIES;
               },
               [](auto &t, auto &args, auto &options) {
                 args.input = View<T>(t.probs);
                 options.input = BinaryInput::kProbabilities;
               }});
  this->Check({"pos_weight", [](auto &t, auto &args, auto &) { args.pos_weight = t.pos_weight.data(); },
               [](auto &t, auto &args, auto &) { args.pos_weight = Span<A>(t.pos_weight); }});
  this->Check({"class_weights", [](auto &t, auto &args, auto &) { args.class_weights = t.class_weights.data(); },
               [](auto &t, auto &args, auto &) { args.class_weights = Span<A>(t.class_weights); }});
  this->Check({"row_weights", [](auto &t, auto &args, auto &) { args.row_weights = t.row_weights.data(); },
               [](auto &t, auto &args, auto &) { args.row_weights = Span<A>(t.row_weights); }});
  this->Check({"element_weights", [](auto &t, auto &args, auto &) { args.element_weights = View(t.element_weights); },
               [](auto &t, auto &args, auto &) { args.element_weights = View<A>(t.element_weights); }});
}

TYPED_TEST(CppBce, Options) {
  this->Check({"focal_gamma", [](auto &, auto &, auto &options) { options.focal_gamma = 2; },
               [](auto &, auto &, auto &options) { options.focal_gamma = 2; }});
  this->Check({"focal_alpha", [](auto &, auto &, auto &options) { options.focal_alpha = 0.25; },
               [](auto &, auto &, auto &options) { options.focal_alpha = 0.25; }});
  this->Check({"focal_alpha 0", [](auto &, auto &, auto &options) { options.focal_alpha = 0; },
               [](auto &, auto &, auto &options) { options.focal_alpha = 0.0; }});
  this->Check(
      {"reduction",
       [](auto &, auto &, auto &options) {
         options.reduction.kind = XENT_REDUCTION_SUM;
         options.reduction.divisor = 3;
       },
       [](auto &, auto &, auto &options) { options.reduction = {.kind = ReductionKind::kSum, .divisor = 3.0}; }});
}

// C takes an alpha of -1 and a divisor of 0 for none, which is not what was said here.
TYPED_TEST(CppBce, RefusesWhatCTakesForNone) {
  typename TestFixture::Tensors tensors;
  const Snapshot before = tensors.Outputs();
  const typename TestFixture::Args args = tensors.Cpp(Function::kForward);
  EXPECT_TRUE(Refused(BinaryCrossEntropyForward(args, {.focal_alpha = -1.0}), "focal_alpha"));
  EXPECT_TRUE(Refused(BinaryCrossEntropyForward(args, {.focal_alpha = -2.0}), "focal_alpha"));
  EXPECT_TRUE(Refused(BinaryCrossEntropyForward(args, {.reduction = {.divisor = 0.0}}), "reduction.divisor"));
  EXPECT_EQ(tensors.Outputs().Differences(before), "");
}

// Row weights show which layout was meant; without strides, since those of rows are not those of blocks.
TYPED_TEST(CppBce, Inner) {
  using A = typename TestFixture::A;
  this->Check({"inner",
               [](auto &t, auto &args, auto &) {
                 args.inner = 2;
                 args.row_weights = t.row_weights.data();
                 args.element_weights = View(t.element_weights);
                 args.element_weights.stride = 0;
                 args.input.stride = args.targets.stride = args.element_losses.stride = 0;
                 args.grad.stride = args.target_grad.stride = 0;
               },
               [](auto &t, auto &args, auto &) {
                 args.inner = 2;
                 args.row_weights = Span<A>(t.row_weights);
                 args.element_weights = View<A>(t.element_weights);
                 args.element_weights.stride = 0;
                 args.input.stride = args.targets.stride = args.element_losses.stride = 0;
                 args.grad.stride = args.target_grad.stride = 0;
               }},
              0);
}

TYPED_TEST(CppBce, Upstream) {
  using A = typename TestFixture::A;
  using T = typename TestFixture::T;
  this->CheckGradients(
      {"one number",
       [](auto &t, auto &args, auto &) { args.upstream = {t.upstream.data(), 0, XENT_UPSTREAM_SCALAR, 0}; },
       [](auto &t, auto &args, auto &) { args.upstream = *Scalar<A>(t.upstream); }});
  this->CheckGradients(
      {"one a row", [](auto &t, auto &args, auto &) { args.upstream = {t.upstream.data(), 0, XENT_UPSTREAM_ROWS, 0}; },
       [](auto &t, auto &args, auto &) { args.upstream = Span<A>(t.upstream).first(kRows); }});
  this->CheckGradients({"one an element",
                        [](auto &t, auto &args, auto &) {
                          args.upstream = {t.upstream.data(), t.upstream.stride(), XENT_UPSTREAM_ELEMENTS, 0};
                        },
                        [](auto &t, auto &args, auto &) { args.upstream = View<A>(t.upstream); }});
  this->CheckGradients({"in place", [](auto &t, auto &args, auto &) { args.grad = View(t.input); },
                        [](auto &t, auto &args, auto &) { args.grad = View<T>(t.input); }});
}

TYPED_TEST(CppBce, SizesMustAgree) {
  using A = typename TestFixture::A;
  std::vector<A> five(5);
  this->CheckRefused("targets", [](auto &args) { args.targets.rows = 5; });
  this->CheckRefused("targets", [](auto &args) { args.targets = {}; });
  this->CheckRefused("pos_weight", [&](auto &args) { args.pos_weight = five; });
  this->CheckRefused("class_weights", [&](auto &args) { args.class_weights = five; });
  this->CheckRefused("row_weights", [&](auto &args) { args.row_weights = five; });
  this->CheckRefused("element_weights", [&](auto &args) { args.element_weights = {five.data(), 1, 5}; });
  this->CheckRefused("element_losses", [](auto &args) { args.element_losses.rows = 5; });
  this->CheckRefused("grad", [](auto &args) { args.grad.cols = 39; });
  this->CheckRefused("target_grad", [](auto &args) { args.target_grad.cols = 39; });
  this->CheckRefused("upstream", [&](auto &args) { args.upstream = five; });
  this->CheckRefused("upstream", [&](auto &args) { args.upstream = MatrixView<A>{five.data(), 1, 5}; });
  this->CheckRefused("upstream", [&](auto &args) { args.upstream = MatrixView<A>{nullptr, kRows, kCols}; });
}

TYPED_TEST(CppBce, DomainErrorComesThrough) {
  typename TestFixture::Tensors tensors;
  tensors.probs.Set(4, 7, 1.5);
  const Snapshot before = tensors.Outputs();
  typename TestFixture::Args args = tensors.Cpp(Function::kForward);
  args.input = View<typename TestFixture::T>(tensors.probs);
  const Status status = BinaryCrossEntropyForward(args, {.input = BinaryInput::kProbabilities});
  EXPECT_EQ(status.code(), Code::kDomainError);
  EXPECT_EQ(status.row(), 4);
  EXPECT_EQ(status.column(), 7);
  EXPECT_EQ(status.value(), 1.5);
  EXPECT_EQ(tensors.Outputs().Differences(before), "");
}

}  // namespace
}  // namespace xent::test
