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
        losses(kArithmetic, kRows, kCols, kCols + 5 * padding),
        loss(kArithmetic, 1, 1),
        grad(kDtype, kRows, kCols, kCols + 6 * padding),
        target_grad(kDtypeOf<Y>, kRows, kCols, kCols + 7 * padding) {}

  xent_binary_cross_entropy C(Function function) {
    xent_binary_cross_entropy c = XENT_BINARY_CROSS_ENTROPY_INIT;
    c.rows = kRows;
    c.cols = kCols;
    c.input = input.data();
    c.input_stride = input.stride();
    c.dtype = kDtype;
    c.targets = targets.data();
    c.targets_stride = targets.stride();
    c.targets_dtype = kDtypeOf<Y>;
    if (function != Function::kBackward) {
      c.losses = losses.data();
      c.losses_stride = losses.stride();
      c.loss = loss.data();
    }
    if (function != Function::kForward) {
      c.grad = grad.data();
      c.grad_stride = grad.stride();
      c.target_grad = target_grad.data();
      c.target_grad_stride = target_grad.stride();
    }
    return c;
  }
  Args Cpp(Function function) {
    Args args = {.input = View<T>(input), .targets = View<Y>(targets)};
    if (function != Function::kBackward) {
      args.losses = View<A>(losses);
      args.loss = Scalar<A>(loss);
    }
    if (function != Function::kForward) {
      args.grad = View<T>(grad);
      args.target_grad = View<Y>(target_grad);
    }
    return args;
  }
  Snapshot Outputs() const {
    Snapshot out;
    out.Add("losses", losses);
    out.Add("loss", loss);
    out.Add("grad", grad);
    out.Add("target_grad", target_grad);
    out.Add("input", input);
    return out;
  }

  Matrix input, probs, targets, pos_weight, class_weights, row_weights, element_weights, upstream;
  Matrix losses, loss, grad, target_grad;
};

xent_status RunC(Function function, const xent_binary_cross_entropy &args, const xent_options &options) {
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
Status RunCpp(Function function, const Args &args, const Options &options) {
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
  using Case = test::Case<Tensors, xent_binary_cross_entropy, Args>;

  void CheckOne(const Case &what, Function function, int64_t padding = 1) {
    SCOPED_TRACE(std::string(what.name) + ", " + NameOf(function));
    Tensors c(padding), cpp(padding), plain(padding);
    xent_options c_options = XENT_OPTIONS_INIT;
    ASSERT_EQ(RunC(function, plain.C(function), c_options), XENT_OK);
    xent_binary_cross_entropy c_args = c.C(function);
    what.c(c, c_args, c_options);
    ASSERT_EQ(RunC(function, c_args, c_options), XENT_OK);
    Options options;
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
  const char *const written[] = {"losses loss ", "losses loss grad target_grad ", "grad target_grad "};
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
  this->Check({"input_kind",
               [](auto &t, auto &args, auto &) {
                 args.input = t.probs.data();
                 args.input_kind = XENT_BCE_PROBABILITIES;
               },
               [](auto &t, auto &args, auto &) {
                 args.input = View<T>(t.probs);
                 args.input_kind = BceInput::kProbabilities;
               }});
  this->Check({"pos_weight", [](auto &t, auto &args, auto &) { args.pos_weight = t.pos_weight.data(); },
               [](auto &t, auto &args, auto &) { args.pos_weight = Span<A>(t.pos_weight); }});
  this->Check({"class_weights", [](auto &t, auto &args, auto &) { args.class_weights = t.class_weights.data(); },
               [](auto &t, auto &args, auto &) { args.class_weights = Span<A>(t.class_weights); }});
  this->Check({"row_weights", [](auto &t, auto &args, auto &) { args.row_weights = t.row_weights.data(); },
               [](auto &t, auto &args, auto &) { args.row_weights = Span<A>(t.row_weights); }});
  this->Check({"element_weights",
               [](auto &t, auto &args, auto &) {
                 args.element_weights = t.element_weights.data();
                 args.element_weights_stride = t.element_weights.stride();
               },
               [](auto &t, auto &args, auto &) { args.element_weights = View<A>(t.element_weights); }});
  this->Check({"focal_gamma", [](auto &, auto &args, auto &) { args.focal_gamma = 2; },
               [](auto &, auto &args, auto &) { args.focal_gamma = 2; }});
  this->Check({"focal_alpha",
               [](auto &, auto &args, auto &) {
                 args.focal_alpha = 0.25;
                 args.has_focal_alpha = 1;
               },
               [](auto &, auto &args, auto &) { args.focal_alpha = 0.25; }});
  this->Check({"focal_alpha 0", [](auto &, auto &args, auto &) { args.has_focal_alpha = 1; },
               [](auto &, auto &args, auto &) { args.focal_alpha = 0.0; }});
  this->Check({"reduction",
               [](auto &, auto &, auto &options) {
                 options.reduction = XENT_REDUCTION_SUM;
                 options.divisor = 3;
                 options.has_divisor = 1;
               },
               [](auto &, auto &, auto &options) {
                 options.reduction = ::xent::Reduction::kSum;
                 options.divisor = 3;
               }});
}

// Row weights show which layout was meant; without strides, since those of rows are not those of blocks.
TYPED_TEST(CppBce, Inner) {
  using A = typename TestFixture::A;
  this->Check({"inner",
               [](auto &t, auto &args, auto &) {
                 args.inner = 2;
                 args.row_weights = t.row_weights.data();
                 args.element_weights = t.element_weights.data();
                 args.input_stride = args.targets_stride = args.losses_stride = 0;
                 args.grad_stride = args.target_grad_stride = 0;
               },
               [](auto &t, auto &args, auto &) {
                 args.inner = 2;
                 args.row_weights = Span<A>(t.row_weights);
                 args.element_weights = View<A>(t.element_weights);
                 args.element_weights.stride = 0;
                 args.input.stride = args.targets.stride = args.losses.stride = 0;
                 args.grad.stride = args.target_grad.stride = 0;
               }},
              0);
}

TYPED_TEST(CppBce, Upstream) {
  using A = typename TestFixture::A;
  using T = typename TestFixture::T;
  this->CheckGradients({"upstream",
                        [](auto &t, auto &args, auto &) {
                          args.upstream = t.upstream.data();
                          args.upstream_kind = XENT_UPSTREAM_SCALAR;
                        },
                        [](auto &t, auto &args, auto &) { args.upstream = *Scalar<A>(t.upstream); }});
  this->CheckGradients({"upstream_rows",
                        [](auto &t, auto &args, auto &) {
                          args.upstream = t.upstream.data();
                          args.upstream_kind = XENT_UPSTREAM_ROWS;
                        },
                        [](auto &t, auto &args, auto &) { args.upstream_rows = Span<A>(t.upstream).first(kRows); }});
  this->CheckGradients({"upstream_elements",
                        [](auto &t, auto &args, auto &) {
                          args.upstream = t.upstream.data();
                          args.upstream_stride = t.upstream.stride();
                          args.upstream_kind = XENT_UPSTREAM_ELEMENTS;
                        },
                        [](auto &t, auto &args, auto &) { args.upstream_elements = View<A>(t.upstream); }});
  this->CheckGradients({"in_place",
                        [](auto &t, auto &args, auto &) {
                          args.grad = t.input.data();
                          args.grad_stride = t.input.stride();
                          args.in_place = 1;
                        },
                        [](auto &t, auto &args, auto &) {
                          args.grad = View<T>(t.input);
                          args.in_place = true;
                        }});
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
  this->CheckRefused("losses", [](auto &args) { args.losses.rows = 5; });
  this->CheckRefused("grad", [](auto &args) { args.grad.cols = 39; });
  this->CheckRefused("target_grad", [](auto &args) { args.target_grad.cols = 39; });
  this->CheckRefused("upstream_rows", [&](auto &args) { args.upstream_rows = five; });
  this->CheckRefused("upstream_elements", [&](auto &args) { args.upstream_elements = {five.data(), 1, 5}; });
  this->CheckRefused("upstream", [](auto &args) {
    args.upstream = A{1};
    args.upstream_elements = args.losses;
  });
}

TYPED_TEST(CppBce, DomainErrorComesThrough) {
  typename TestFixture::Tensors tensors;
  tensors.probs.Set(4, 7, 1.5);
  const Snapshot before = tensors.Outputs();
  typename TestFixture::Args args = tensors.Cpp(Function::kForward);
  args.input = View<typename TestFixture::T>(tensors.probs);
  args.input_kind = BceInput::kProbabilities;
  const Status status = BinaryCrossEntropyForward(args);
  EXPECT_EQ(status.code(), Code::kDomainError);
  EXPECT_EQ(status.row(), 4);
  EXPECT_EQ(status.value(), 7);
  EXPECT_EQ(tensors.Outputs().Differences(before), "");
}

}  // namespace
}  // namespace xent::test
