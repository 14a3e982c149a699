#include "testing/divergence_call.h"

#include <algorithm>
#include <cmath>

#include "reference/losses.h"

namespace xent::test {

using reference::Value;

DivergenceCall::DivergenceCall(xent_dtype student_dtype, xent_dtype teacher_dtype, int64_t rows, int64_t cols,
                               int64_t inner, int64_t padding_in, int64_t misalign_in)
    : student(student_dtype, rows, cols, inner, padding_in, misalign_in),
      teacher(teacher_dtype, rows, cols, inner, 2 * padding_in, misalign_in),
      padding(padding_in),
      misalign(misalign_in) {}

DivergenceCall::DivergenceCall(xent_dtype dtype, const Rows &student_rows, const Rows &teacher_rows, int64_t inner)
    : DivergenceCall(dtype, dtype, static_cast<int64_t>(student_rows.size()),
                     static_cast<int64_t>(student_rows.at(0).size()), inner) {
  for (int64_t i = 0; i < student.rows(); ++i) {
    for (int64_t j = 0; j < student.cols(); ++j) {
      student.Set(i, j, student_rows[static_cast<size_t>(i)].at(static_cast<size_t>(j)));
      teacher.Set(i, j, teacher_rows.at(static_cast<size_t>(i)).at(static_cast<size_t>(j)));
    }
  }
}

void DivergenceCall::FillNormal(uint64_t seed, double deviation) {
  Random random(seed);
  for (int64_t i = 0; i < student.rows(); ++i) {
    for (int64_t j = 0; j < student.cols(); ++j) {
      student.Set(i, j, random.Normal(deviation));
      teacher.Set(i, j, random.Normal(deviation));
    }
  }
}

Matrix DivergenceCall::Vector(const std::vector<double> &values) const {
  const int64_t count = static_cast<int64_t>(values.size());
  Matrix vector(Float(), 1, count, std::max<int64_t>(count, 1));
  for (int64_t i = 0; i < count; ++i) vector.Set(0, i, values[static_cast<size_t>(i)]);
  return vector;
}

xent_divergence DivergenceCall::Args(bool backward) {
  backward_ = backward;
  original_student_ = student;
  const int64_t rows = student.rows();
  row_losses = Matrix(Float(), 1, rows, std::max<int64_t>(rows, 1));
  reduced_loss = Matrix(Float(), 1, 1);
  grad = Tensor(student.dtype(), rows, student.cols(), student.inner(), 3 * padding, misalign);
  error = XENT_ERROR_INIT;
  xent_divergence args = XENT_DIVERGENCE_INIT;
  args.rows = rows;
  args.cols = student.cols();
  args.inner = student.inner() == 1 ? 0 : student.inner();
  args.student = View(student);
  args.teacher = View(teacher);
  args.row_weights = row_weights ? row_weights->data() : nullptr;
  args.row_losses = row_losses.data();
  args.reduced_loss = options.reduction.kind == XENT_REDUCTION_NONE ? nullptr : reduced_loss.data();
  if (backward) {
    args.grad = in_place ? View(student) : View(grad);
    if (upstream) args.upstream = {.data = upstream->data(), .stride = 0, .kind = upstream_kind, .reserved = 0};
  }
  return args;
}

xent_status DivergenceCall::Run(bool backward) {
  const xent_divergence args = Args(backward);
  return backward ? xent_divergence_forward_backward(&args, &options, &exec, &error)
                  : xent_divergence_forward(&args, &options, &exec, &error);
}

void DivergenceCall::MustRun(bool backward) {
  ASSERT_EQ(Run(backward), XENT_OK) << error.message;
  EXPECT_TRUE(student.matrix().PaddingIntact() && teacher.matrix().PaddingIntact() && row_losses.PaddingIntact() &&
              reduced_loss.PaddingIntact() && grad.matrix().PaddingIntact())
      << "memory around a tensor was written";
}

std::vector<double> DivergenceCall::RowOf(const Tensor &tensor, int64_t row) const {
  std::vector<double> values;
  const int64_t cols = options.valid_cols != 0 ? options.valid_cols : tensor.cols();
  for (int64_t j = 0; j < cols; ++j) values.push_back(tensor.Get(row, j));
  return values;
}

reference::Divergence DivergenceCall::Expected(int64_t row) const {
  return reference::EvaluateDivergence(RowOf(*original_student_, row), RowOf(teacher, row),
                                       static_cast<xent_divergence_kind>(options.kind), options.temperature,
                                       options.beta);
}

WorstByOutput DivergenceCall::Judge() const {
  WorstByOutput worst;
  const auto note = [&](const std::string &output, double ulp, int64_t row, int64_t col, double got, Value want) {
    WorstError &w = worst[output];
    if (ulp <= w.ulp) return;
    char text[240];
    std::snprintf(text, sizeof(text),
                  "%s T %g beta %g %s/%s %lldx%lld/%lld [%lld,%lld] got %.17g want %.20Lg scale %.3Lg",
                  kDivergenceNames[options.kind], options.temperature, options.beta, reference::NameOf(student.dtype()),
                  reference::NameOf(teacher.dtype()), static_cast<long long>(student.rows()),
                  static_cast<long long>(student.cols()), static_cast<long long>(student.inner()),
                  static_cast<long long>(row), static_cast<long long>(col), got, want.exact, want.scale);
    w = {ulp, text};
  };
  const int64_t rows = student.rows();
  const long double denominator =
      reference::Reduce({0, 0}, static_cast<long double>(rows), options.reduction).denominator;
  std::vector<double> stored;
  for (int64_t i = 0; i < rows; ++i) {
    const reference::Divergence want = Expected(i);
    const long double r = row_weights ? row_weights->Get(0, i) : 1;
    Value loss_want{want.loss.exact * r, want.loss.scale * std::fabs(r)};
    if (r == 0 && !std::isnan(want.loss.exact)) loss_want = {0, 0};
    note("row_losses", reference::ErrorInUlp(Float(), row_losses.row(0), i, loss_want), i, -1, row_losses.Get(0, i),
         loss_want);
    stored.push_back(row_losses.Get(0, i));
    if (!backward_) continue;
    long double u = 1;
    if (upstream) u = upstream->Get(0, upstream_kind == XENT_UPSTREAM_ROWS ? i : 0);
    const long double factor = u * r / denominator;
    for (int64_t j = 0; j < student.cols(); ++j) {
      Value w{0, 0};
      if (j < static_cast<int64_t>(want.gradient.size())) {
        w = want.gradient[static_cast<size_t>(j)];
        w = {w.exact * factor, w.scale * std::fabs(factor)};
        if (r == 0 && !std::isnan(want.loss.exact)) w = {0, 0};
      }
      note("grad", Grad().ErrorInUlp(Float(), i, j, w), i, j, Grad().Get(i, j), w);
    }
  }
  if (options.reduction.kind != XENT_REDUCTION_NONE) {
    const Value want = reference::Reduce(stored, {}, options.reduction);
    note("reduced_loss", reference::ErrorInUlp(Float(), reduced_loss.row(0), 0, want), -1, -1, reduced_loss.Get(0, 0),
         want);
  }
  return worst;
}

double DivergenceCall::BoundOf(const std::string &output) {
  return output == "row_losses" ? kDivergenceUlp : output == "grad" ? kDivergenceGradientUlp : kReducedLossUlp;
}

void DivergenceCall::ExpectAccurate() const {
  for (const auto &[output, worst] : Judge()) {
    EXPECT_LE(worst.ulp, BoundOf(output)) << output << ": " << worst.where;
  }
}

::testing::AssertionResult DivergenceCall::OutputsUntouched() const {
  const auto untouched = [](const Matrix &m) {
    for (int64_t i = 0; i < m.rows(); ++i) {
      for (int64_t j = 0; j < m.cols(); ++j) {
        if (m.GetBits(i, j) != m.PoisonBits()) return false;
      }
    }
    return m.PaddingIntact();
  };
  if (!untouched(row_losses)) return ::testing::AssertionFailure() << "row_losses was written";
  if (!untouched(reduced_loss)) return ::testing::AssertionFailure() << "reduced_loss was written";
  if (!untouched(grad.matrix())) return ::testing::AssertionFailure() << "grad was written";
  if (FirstDifference(original_student_->matrix(), student.matrix()) != "") {
    return ::testing::AssertionFailure() << "student was written";
  }
  return ::testing::AssertionSuccess();
}

std::string FirstDifference(const DivergenceCall &a, const DivergenceCall &b, bool backward) {
  if (const std::string text = FirstDifference(a.row_losses, b.row_losses); !text.empty()) return "row_losses " + text;
  if (const std::string text = FirstDifference(a.reduced_loss, b.reduced_loss); !text.empty())
    return "reduced_loss " + text;
  for (int64_t i = 0; backward && i < a.student.rows(); ++i) {
    for (int64_t j = 0; j < a.student.cols(); ++j) {
      if (a.Grad().GetBits(i, j) == b.Grad().GetBits(i, j)) continue;
      char text[120];
      std::snprintf(text, sizeof(text), "grad [%lld,%lld] %.17g and %.17g", static_cast<long long>(i),
                    static_cast<long long>(j), a.Grad().Get(i, j), b.Grad().Get(i, j));
      return text;
    }
  }
  return "";
}

}  // namespace xent::test
