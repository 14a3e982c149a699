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
        losses(kArithmetic, 1, kRows),
        loss(kArithmetic, 1, 1),
        grad(kDtype, kRows, kCols, kCols + 3 * padding) {}

  xent_divergence C(bool backward) {
    xent_divergence c = XENT_DIVERGENCE_INIT;
    c.rows = kRows;
    c.cols = kCols;
    c.student = student.data();
    c.student_stride = student.stride();
    c.student_dtype = kDtype;
    c.teacher = teacher.data();
    c.teacher_stride = teacher.stride();
    c.teacher_dtype = kDtypeOf<U>;
    c.losses = losses.data();
    c.loss = loss.data();
    if (backward) {
      c.grad = grad.data();
      c.grad_stride = grad.stride();
    }
    return c;
  }
  Args Cpp(bool backward) {
    Args args = {
        .student = View<T>(student), .teacher = View<U>(teacher), .losses = Span<A>(losses), .loss = Scalar<A>(loss)};
    if (backward) args.grad = View<T>(grad);
    return args;
  }
  Snapshot Outputs() const {
    Snapshot out;
    out.Add("losses", losses);
    out.Add("loss", loss);
    out.Add("grad", grad);
    out.Add("student", student);
    return out;
  }

  Matrix student, teacher, row_weights, upstream, losses, loss, grad;
};

template <class P>
class CppDivergence : public ::testing::Test {
 protected:
  using T = typename P::T;
  using U = typename P::U;
  using A = Arithmetic<T>;
  using Tensors = test::Tensors<T, U>;
  using Args = typename Tensors::Args;
  using Case = test::Case<Tensors, xent_divergence, Args>;

  void CheckOne(const Case &what, bool backward, int64_t padding = 1) {
    SCOPED_TRACE(std::string(what.name) + (backward ? ", forward_backward" : ", forward"));
    const auto function = backward ? xent_divergence_forward_backward : xent_divergence_forward;
    Tensors c(padding), cpp(padding), plain(padding);
    xent_options c_options = XENT_OPTIONS_INIT;
    const xent_divergence plain_args = plain.C(backward);
    ASSERT_EQ(function(&plain_args, &c_options, nullptr, nullptr), XENT_OK);
    xent_divergence c_args = c.C(backward);
    what.c(c, c_args, c_options);
    ASSERT_EQ(function(&c_args, &c_options, nullptr, nullptr), XENT_OK);
    Options options;
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
  EXPECT_EQ(before.Differences(forward.Outputs()), "losses loss ");
  ASSERT_TRUE(DivergenceForwardBackward(both.Cpp(true)).ok());
  EXPECT_EQ(before.Differences(both.Outputs()), "losses loss grad ");
}

TYPED_TEST(CppDivergence, Kinds) {
  this->Check({"reverse", [](auto &, auto &args, auto &) { args.kind = XENT_DIVERGENCE_REVERSE_KL; },
               [](auto &, auto &args, auto &) { args.kind = DivergenceKind::kReverseKl; }});
  this->Check({"Jensen-Shannon", [](auto &, auto &args, auto &) { args.kind = XENT_DIVERGENCE_JENSEN_SHANNON; },
               [](auto &, auto &args, auto &) { args.kind = DivergenceKind::kJensenShannon; }});
  this->Check({"cross-entropy", [](auto &, auto &args, auto &) { args.kind = XENT_DIVERGENCE_CROSS_ENTROPY; },
               [](auto &, auto &args, auto &) { args.kind = DivergenceKind::kCrossEntropy; }});
  this->Check({"beta",
               [](auto &, auto &args, auto &) {
                 args.kind = XENT_DIVERGENCE_JENSEN_SHANNON;
                 args.beta = 0.25;
               },
               [](auto &, auto &args, auto &) {
                 args.kind = DivergenceKind::kJensenShannon;
                 args.beta = 0.25;
               }});
  this->CheckRefused("beta", [](auto &args) { args.beta = 0.25; });
  EXPECT_EQ(Divergence<float>().kind, DivergenceKind::kForwardKl);
}

TYPED_TEST(CppDivergence, Members) {
  using A = typename TestFixture::A;
  this->Check({"temperature", [](auto &, auto &args, auto &) { args.temperature = 2; },
               [](auto &, auto &args, auto &) { args.temperature = 2; }});
  this->Check({"row_weights", [](auto &t, auto &args, auto &) { args.row_weights = t.row_weights.data(); },
               [](auto &t, auto &args, auto &) { args.row_weights = Span<A>(t.row_weights); }});
  this->Check({"inner",
               [](auto &, auto &args, auto &) {
                 args.inner = 2;
                 args.student_stride = args.teacher_stride = args.grad_stride = 0;
               },
               [](auto &, auto &args, auto &) {
                 args.inner = 2;
                 args.student.stride = args.teacher.stride = args.grad.stride = 0;
               }},
              0);
  this->Check({"valid_cols", [](auto &, auto &, auto &options) { options.valid_cols = 36; },
               [](auto &, auto &, auto &options) { options.valid_cols = 36; }});
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

TYPED_TEST(CppDivergence, Upstream) {
  using A = typename TestFixture::A;
  using T = typename TestFixture::T;
  this->CheckOne({"upstream",
                  [](auto &t, auto &args, auto &) {
                    args.upstream = t.upstream.data();
                    args.upstream_kind = XENT_UPSTREAM_SCALAR;
                  },
                  [](auto &t, auto &args, auto &) { args.upstream = *Scalar<A>(t.upstream); }},
                 true);
  this->CheckOne({"upstream_rows",
                  [](auto &t, auto &args, auto &) {
                    args.upstream = t.upstream.data();
                    args.upstream_kind = XENT_UPSTREAM_ROWS;
                  },
                  [](auto &t, auto &args, auto &) { args.upstream_rows = Span<A>(t.upstream); }},
                 true);
  this->CheckOne({"in_place",
                  [](auto &t, auto &args, auto &) {
                    args.grad = t.student.data();
                    args.grad_stride = t.student.stride();
                    args.in_place = 1;
                  },
                  [](auto &t, auto &args, auto &) {
                    args.grad = View<T>(t.student);
                    args.in_place = true;
                  }},
                 true);
}

TYPED_TEST(CppDivergence, SizesMustAgree) {
  std::vector<typename TestFixture::A> five(5);
  this->CheckRefused("teacher", [](auto &args) { args.teacher.rows = 5; });
  this->CheckRefused("teacher", [](auto &args) { args.teacher.cols = 39; });
  this->CheckRefused("teacher", [](auto &args) { args.teacher = {}; });
  this->CheckRefused("row_weights", [&](auto &args) { args.row_weights = five; });
  this->CheckRefused("losses", [&](auto &args) { args.losses = five; });
  this->CheckRefused("grad", [](auto &args) { args.grad.rows = 5; });
  this->CheckRefused("grad", [](auto &args) { args.grad.cols = 39; });
  this->CheckRefused("upstream_rows", [&](auto &args) { args.upstream_rows = five; });
  this->CheckRefused("upstream", [&](auto &args) {
    args.upstream_rows = args.losses;
    args.upstream = typename TestFixture::A{1};
  });
}

}  // namespace
}  // namespace xent::test
