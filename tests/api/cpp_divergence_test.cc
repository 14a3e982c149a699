// xent.hpp, divergences: that every member reaches the library, which shows in bits equal to those of the C call and
// different from those of a call without it; and that sizes which do not agree are refused with nothing written.
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

template <class T, class U>
struct Tensors {
  using A = Arithmetic<T>;
  using Args = Divergence<T, U>;
  static constexpr xent_dtype kDtype = kDtypeOf<T>;
  static constexpr xent_dtype kArithmetic = kDtypeOf<A>;

  explicit Tensors(int64_t padding = 1)
      : student(Normal(kDtype, kRows, kCols, kCols + padding, 1)),
        teacher(Normal(kDtypeOf<U>, kRows, kCols, kCols + 2 * padding, 2)),
        row_weights(Uniform(kArithmetic, 1, kRows, 0, 3)),
        upstream(Uniform(kArithmetic, 1, kRows, 0, 4)),
        row_losses(kArithmetic, 1, kRows),
        reduced_loss(kArithmetic, 1, 1),
        grad(kDtype, kRows, kCols, kCols + 3 * padding) {}

  xent_divergence C(bool backward) {
    xent_divergence c = XENT_DIVERGENCE_INIT;
    c.rows = kRows;
    c.cols = kCols;
    c.student = View(student);
    c.teacher = View(teacher);
    c.row_losses = row_losses.data();
    c.reduced_loss = reduced_loss.data();
    if (backward) c.grad = View(grad);
    return c;
  }
  Args Cpp(bool backward) {
    Args args = {.student = View<T>(student),
                 .teacher = View<U>(teacher),
                 .row_losses = Span<A>(row_losses),
                 .reduced_loss = Scalar<A>(reduced_loss)};
    if (backward) args.grad = View<T>(grad);
    return args;
  }
  Snapshot Outputs() const {
    Snapshot out;
    out.Add("row_losses", row_losses);
    out.Add("reduced_loss", reduced_loss);
    out.Add("grad", grad);
    out.Add("student", student);
    return out;
  }

  Matrix student, teacher, row_weights, upstream, row_losses, reduced_loss, grad;
};

template <class P>
class CppDivergence : public ::testing::Test {
 protected:
  using T = typename P::T;
  using U = typename P::U;
  using A = Arithmetic<T>;
  using Tensors = test::Tensors<T, U>;
  using Args = typename Tensors::Args;
  using Case = test::Case<Tensors, xent_divergence, xent_divergence_options, Args, DivergenceOptions>;

  void CheckOne(const Case &what, bool backward, int64_t padding = 1) {
    SCOPED_TRACE(std::string(what.name) + (backward ? ", forward_backward" : ", forward"));
    const auto function = backward ? xent_divergence_forward_backward : xent_divergence_forward;
    Tensors c(padding), cpp(padding), plain(padding);
    xent_divergence_options c_options = XENT_DIVERGENCE_OPTIONS_INIT;
    const xent_divergence plain_args = plain.C(backward);
    ASSERT_EQ(function(&plain_args, &c_options, nullptr, nullptr), XENT_OK);
    xent_divergence c_args = c.C(backward);
    what.c(c, c_args, c_options);
    ASSERT_EQ(function(&c_args, &c_options, nullptr, nullptr), XENT_OK);
    DivergenceOptions options;
    Args args = cpp.Cpp(backward);
    what.cpp(cpp, args, options);
    const Status status = backward ? DivergenceForwardBackward(args, options) : DivergenceForward(args, options);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(c.Outputs().Differences(cpp.Outputs()), "");
    EXPECT_NE(c.Outputs().Differences(plain.Outputs()), "");
  }
  void Check(const Case &what, int64_t padding = 1) {
    CheckOne(what, false, padding);
    CheckOne(what, true, padding);
  }

  void CheckRefused(const char *word, const std::function<void(Args &)> &spoil) {
    Tensors tensors;
    const Snapshot before = tensors.Outputs();
    Args args = tensors.Cpp(true);
    spoil(args);
    EXPECT_TRUE(Refused(DivergenceForwardBackward(args), word)) << word;
    EXPECT_EQ(tensors.Outputs().Differences(before), "") << word;
  }
};

template <class Student, class Teacher>
struct Types {
  using T = Student;
  using U = Teacher;
};
using Elements = ::testing::Types<Types<float, float>, Types<double, double>, Types<float, ::xent::bfloat16>,
                                  Types<::xent::float16, double>>;
TYPED_TEST_SUITE(CppDivergence, Elements);

TYPED_TEST(CppDivergence, EveryOutputReachesTheLibrary) {
  typename TestFixture::Tensors forward, both;
  const Snapshot before = both.Outputs();
  const Status status = DivergenceForward(forward.Cpp(false));
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(before.Differences(forward.Outputs()), "row_losses reduced_loss ");
  ASSERT_TRUE(DivergenceForwardBackward(both.Cpp(true)).ok());
  EXPECT_EQ(before.Differences(both.Outputs()), "row_losses reduced_loss grad ");
}

TYPED_TEST(CppDivergence, Kinds) {
  this->Check({"reverse", [](auto &, auto &, auto &options) { options.kind = XENT_DIVERGENCE_REVERSE_KL; },
               [](auto &, auto &, auto &options) { options.kind = DivergenceKind::kReverseKl; }});
  this->Check({"Jensen-Shannon", [](auto &, auto &, auto &options) { options.kind = XENT_DIVERGENCE_JENSEN_SHANNON; },
               [](auto &, auto &, auto &options) { options.kind = DivergenceKind::kJensenShannon; }});
  this->Check({"cross-entropy", [](auto &, auto &, auto &options) { options.kind = XENT_DIVERGENCE_CROSS_ENTROPY; },
               [](auto &, auto &, auto &options) { options.kind = DivergenceKind::kCrossEntropy; }});
  this->Check({"beta",
               [](auto &, auto &, auto &options) {
                 options.kind = XENT_DIVERGENCE_JENSEN_SHANNON;
                 options.beta = 0.25;
               },
               [](auto &, auto &, auto &options) {
                 options.kind = DivergenceKind::kJensenShannon;
                 options.beta = 0.25;
               }});
  typename TestFixture::Tensors tensors;
  const Snapshot before = tensors.Outputs();
  EXPECT_TRUE(Refused(DivergenceForward(tensors.Cpp(false), {.beta = 0.25}), "beta"));
  EXPECT_TRUE(Refused(DivergenceForward(tensors.Cpp(false), {.reduction = {.divisor = 0.0}}), "reduction.divisor"));
  EXPECT_EQ(tensors.Outputs().Differences(before), "");
  EXPECT_EQ(DivergenceOptions().kind, DivergenceKind::kForwardKl);
}

TYPED_TEST(CppDivergence, Members) {
  using A = typename TestFixture::A;
  this->Check({"temperature", [](auto &, auto &, auto &options) { options.temperature = 2; },
               [](auto &, auto &, auto &options) { options.temperature = 2; }});
  this->Check({"row_weights", [](auto &t, auto &args, auto &) { args.row_weights = t.row_weights.data(); },
               [](auto &t, auto &args, auto &) { args.row_weights = Span<A>(t.row_weights); }});
  this->Check({"inner",
               [](auto &, auto &args, auto &) {
                 args.inner = 2;
                 args.student.stride = args.teacher.stride = args.grad.stride = 0;
               },
               [](auto &, auto &args, auto &) {
                 args.inner = 2;
                 args.student.stride = args.teacher.stride = args.grad.stride = 0;
               }},
              0);
  this->Check({"valid_cols", [](auto &, auto &, auto &options) { options.valid_cols = 36; },
               [](auto &, auto &, auto &options) { options.valid_cols = 36; }});
  this->Check(
      {"reduction",
       [](auto &, auto &, auto &options) {
         options.reduction.kind = XENT_REDUCTION_SUM;
         options.reduction.divisor = 3;
       },
       [](auto &, auto &, auto &options) { options.reduction = {.kind = ReductionKind::kSum, .divisor = 3.0}; }});
}

TYPED_TEST(CppDivergence, Upstream) {
  using A = typename TestFixture::A;
  using T = typename TestFixture::T;
  this->CheckOne({"one number",
                  [](auto &t, auto &args, auto &) { args.upstream = {t.upstream.data(), 0, XENT_UPSTREAM_SCALAR, 0}; },
                  [](auto &t, auto &args, auto &) { args.upstream = *Scalar<A>(t.upstream); }},
                 true);
  this->CheckOne(
      {"one a row", [](auto &t, auto &args, auto &) { args.upstream = {t.upstream.data(), 0, XENT_UPSTREAM_ROWS, 0}; },
       [](auto &t, auto &args, auto &) { args.upstream = Span<A>(t.upstream); }},
      true);
  this->CheckOne({"in place", [](auto &t, auto &args, auto &) { args.grad = View(t.student); },
                  [](auto &t, auto &args, auto &) { args.grad = View<T>(t.student); }},
                 true);
}

TYPED_TEST(CppDivergence, SizesMustAgree) {
  std::vector<typename TestFixture::A> five(5);
  this->CheckRefused("teacher", [](auto &args) { args.teacher.rows = 5; });
  this->CheckRefused("teacher", [](auto &args) { args.teacher.cols = 39; });
  this->CheckRefused("teacher", [](auto &args) { args.teacher = {}; });
  this->CheckRefused("row_weights", [&](auto &args) { args.row_weights = five; });
  this->CheckRefused("row_losses", [&](auto &args) { args.row_losses = five; });
  this->CheckRefused("grad", [](auto &args) { args.grad.rows = 5; });
  this->CheckRefused("grad", [](auto &args) { args.grad.cols = 39; });
  this->CheckRefused("upstream", [&](auto &args) { args.upstream = five; });
  this->CheckRefused("upstream", [](auto &args) { args.upstream = std::span<const typename TestFixture::A>(); });
  // One number an element is for binary cross-entropy.
  std::vector<typename TestFixture::A> elements(kRows * kCols);
  this->CheckRefused("upstream", [&](auto &args) {
    args.upstream = MatrixView<typename TestFixture::A>{elements.data(), kRows, kCols};
  });
}

}  // namespace
}  // namespace xent::test
