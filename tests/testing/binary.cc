// A binary cross-entropy call with its tensors; see binary.h.
#include "testing/binary.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "reference/losses.h"
#include "testing/tensor.h"

namespace xent::test {

using reference::ArithmeticType;

Binary::Binary(xent_dtype dtype_in, xent_dtype targets_dtype_in, int64_t rows_in, int64_t cols_in, int64_t inner_in,
               int64_t pad, int64_t misalign)
    : dtype(dtype_in),
      targets_dtype(targets_dtype_in),
      rows(rows_in),
      cols(cols_in),
      inner(inner_in),
      x(dtype, rows / d(), cols * d(), cols * d() + pad, misalign),
      y(Make(targets_dtype, pad == 0 ? 0 : pad + 1)),
      element_losses(Make(ArithmeticType(dtype), pad == 0 ? 0 : pad + 2)),
      reduced_loss(ArithmeticType(dtype), 1, 1),
      grad(dtype, rows / d(), cols * d(), cols * d() + pad, misalign),
      target_grad(Make(targets_dtype, pad == 0 ? 0 : pad + 3)) {}

double Binary::Get(const Matrix &matrix, int64_t row, int64_t col) const {
  return matrix.Get(row / d(), col * d() + row % d());
}
void Binary::Set(Matrix &matrix, int64_t row, int64_t col, double value) const {
  matrix.SetInRange(row / d(), col * d() + row % d(), value);
}
uint64_t Binary::GetBits(const Matrix &matrix, int64_t row, int64_t col) const {
  return matrix.GetBits(row / d(), col * d() + row % d());
}
Matrix Binary::Make(xent_dtype type, int64_t pad) const {
  return Matrix(type, rows / d(), cols * d(), cols * d() + pad);
}
Matrix Binary::Vector(const std::vector<double> &values) const {
  Matrix vector(Float(), 1, static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i) vector.Set(0, static_cast<int64_t>(i), values[i]);
  return vector;
}

void Binary::FillNormal(uint64_t seed, double deviation) {
  Random random(seed);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) {
      Set(x, i, c, TakesProbabilities() ? random.Uniform() : random.Normal(deviation));
      const int64_t kind = random.Below(6);
      Set(y, i, c, kind < 2 ? static_cast<double>(kind) : random.Uniform());
    }
  }
}

void Binary::FillWeights(uint64_t seed, bool negative) {
  Random random(seed);
  const auto values = [&](int64_t n) {
    std::vector<double> v;
    for (int64_t i = 0; i < n; ++i) {
      const double w = random.Below(11) == 0 ? 0.0 : 0.25 + 2.0 * random.Uniform();
      v.push_back(negative && random.Below(3) == 0 ? -w : w);
    }
    return v;
  };
  if (!TakesProbabilities()) pos_weight = Vector(values(cols));
  class_weights = Vector(values(cols));
  row_weights = Vector(values(rows));
  element_weights = Make(Float(), 5);
  upstream = Make(Float(), 4);
  upstream_kind = XENT_UPSTREAM_ELEMENTS;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) {
      Set(*element_weights, i, c, values(1)[0]);
      Set(*upstream, i, c, random.Normal(2));
    }
  }
}

xent_binary_cross_entropy Binary::Args(Pass pass) {
  xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.inner = inner;
  args.input = View(x);
  args.targets = View(y);
  if (pos_weight) args.pos_weight = pos_weight->data();
  if (class_weights) args.class_weights = class_weights->data();
  if (row_weights) args.row_weights = row_weights->data();
  if (element_weights) args.element_weights = View(*element_weights);
  if (pass != Pass::kBackward) {
    if (want_element_losses) args.element_losses = View(element_losses);
    if (want_reduced_loss && options.reduction.kind != XENT_REDUCTION_NONE) args.reduced_loss = reduced_loss.data();
  }
  if (pass != Pass::kForward) {
    if (want_grad) args.grad = in_place ? View(x) : View(grad);
    if (want_target_grad) args.target_grad = View(target_grad);
    if (upstream) {
      const int64_t stride = upstream_kind == XENT_UPSTREAM_ELEMENTS ? upstream->stride() : 0;
      args.upstream = {.data = upstream->data(), .stride = stride, .kind = upstream_kind, .reserved = 0};
    }
  }
  return args;
}

xent_status Binary::Run(Pass pass) {
  last_ = pass;
  original_x_.clear();
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) original_x_.push_back(Get(x, i, c));
  }
  error = XENT_ERROR_INIT;
  const xent_binary_cross_entropy args = Args(pass);
  switch (pass) {
    case Pass::kForward:
      return xent_binary_cross_entropy_forward(&args, &options, &exec, &error);
    case Pass::kForwardBackward:
      return xent_binary_cross_entropy_forward_backward(&args, &options, &exec, &error);
    default:
      return xent_binary_cross_entropy_backward(&args, &options, &exec, &error);
  }
}

void Binary::MustRun(Pass pass) { ASSERT_EQ(Run(pass), XENT_OK) << error.message; }

long double Binary::Denominator() const {
  return reference::Reduce({0, 0}, static_cast<long double>(rows * cols), options.reduction).denominator;
}

reference::BinaryElement Binary::Element(int64_t row, int64_t col) const {
  reference::BinaryElement element;
  element.x = original_x_[static_cast<size_t>(row * cols + col)];
  element.y = Get(y, row, col);
  element.probabilities = TakesProbabilities();
  if (pos_weight) element.pos_weight = pos_weight->Get(0, col);
  if (class_weights) element.weight *= class_weights->Get(0, col);
  if (row_weights) element.weight *= row_weights->Get(0, row);
  if (element_weights) element.weight *= Get(*element_weights, row, col);
  if (upstream) {
    element.upstream = upstream_kind == XENT_UPSTREAM_ELEMENTS
                           ? Get(*upstream, row, col)
                           : upstream->Get(0, upstream_kind == XENT_UPSTREAM_ROWS ? row : 0);
  }
  element.upstream /= Denominator();
  element.gamma = options.focal_gamma;
  element.alpha = options.focal_alpha;
  return element;
}

WorstBinary Binary::Judge() const {
  WorstBinary worst;
  const double loss_bound = IsFocal() ? kFocalUlp : kBinaryUlp;
  const double grad_bound = IsFocal() ? kFocalUlp : kBinaryGradientUlp;
  double worst_of_all = -1;  // in bounds
  const auto judge = [&](const char *name, int64_t i, int64_t c, const Matrix &matrix, reference::Value want,
                         double bound, double *most) {
    const int64_t block = i / d(), index = c * d() + i % d();
    double error_ulp;
    const bool mixed = ArithmeticType(matrix.dtype()) != Float();
    if (!mixed || std::isnan(want.exact) || std::isinf(want.exact)) {
      error_ulp = reference::ErrorInUlp(matrix.dtype(), matrix.row(block), index, want);
    } else if (matrix.dtype() == XENT_F64) {
      // A float in a double.
      Matrix narrow(XENT_F32, 1, 1);
      narrow.Set(0, 0, Get(matrix, i, c));
      error_ulp = narrow.Get(0, 0) == Get(matrix, i, c) ? reference::ErrorInUlp(XENT_F32, narrow.row(0), 0, want)
                                                        : std::numeric_limits<double>::infinity();
    } else {
      // A double rounded once more.
      const long double got = Get(matrix, i, c);
      const long double half = reference::UlpAt(matrix.dtype(), std::fmax(std::fabs(got), std::fabs(want.exact))) / 2;
      error_ulp = std::isnan(got) ? std::numeric_limits<double>::infinity()
                                  : static_cast<double>(std::fmax(0.0L, std::fabs(got - want.exact) - half) /
                                                        reference::UlpAt(XENT_F64, want.scale));
    }
    *most = std::fmax(*most, error_ulp);
    if (error_ulp / bound > worst_of_all) {
      worst_of_all = error_ulp / bound;
      const reference::BinaryElement e = Element(i, c);
      char text[400];
      std::snprintf(text, sizeof(text),
                    "%s[%lld,%lld] of x %.17g (%s) y %.17g (%s) pos_weight %.9g weight %.9Lg upstream %.9Lg gamma %g "
                    "alpha %g: %g ULP, bound %g; got %.17g, want %.20Lg",
                    name, static_cast<long long>(i), static_cast<long long>(c), e.x, reference::NameOf(dtype), e.y,
                    reference::NameOf(targets_dtype), e.pos_weight, e.weight, e.upstream, e.gamma, e.alpha, error_ulp,
                    bound, Get(matrix, i, c), want.exact);
      worst.where = text;
    }
  };
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) {
      const reference::BinaryResult want = EvaluateBinary(Element(i, c));
      if (last_ != Pass::kBackward && want_element_losses) {
        judge("element_losses", i, c, element_losses, want.loss, loss_bound, &worst.loss);
      }
      if (last_ != Pass::kForward && want_grad) judge("grad", i, c, Grad(), want.grad, grad_bound, &worst.grad);
      if (last_ != Pass::kForward && want_target_grad) {
        judge("target_grad", i, c, target_grad, want.target_grad, grad_bound, &worst.target_grad);
      }
    }
  }
  return worst;
}

void Binary::ExpectAccurate() const {
  const WorstBinary worst = Judge();
  EXPECT_LE(worst.loss, IsFocal() ? kFocalUlp : kBinaryUlp) << worst.where;
  EXPECT_LE(std::fmax(worst.grad, worst.target_grad), IsFocal() ? kFocalUlp : kBinaryGradientUlp) << worst.where;
  const bool has_sum = want_element_losses && want_reduced_loss && options.reduction.kind != XENT_REDUCTION_NONE;
  if (last_ != Pass::kBackward && has_sum && Denominator() != 0) {
    std::vector<double> stored;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < cols; ++c) stored.push_back(Get(element_losses, i, c));
    }
    const reference::Value want = reference::Reduce(stored, {}, options.reduction);
    EXPECT_LE(reference::ErrorInUlp(Float(), reduced_loss.data(), 0, want), kReducedLossUlp);
  }
}

::testing::AssertionResult Binary::PaddingIntact() const {
  const std::pair<const char *, const Matrix *> all[] = {{"x", &x},
                                                         {"y", &y},
                                                         {"element_losses", &element_losses},
                                                         {"reduced_loss", &reduced_loss},
                                                         {"grad", &grad},
                                                         {"target_grad", &target_grad}};
  for (const auto &[name, matrix] : all) {
    if (!matrix->PaddingIntact()) return ::testing::AssertionFailure() << "memory around " << name << " was written";
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult Binary::OutputsUntouched() const {
  const std::pair<const char *, const Matrix *> all[] = {{"element_losses", &element_losses},
                                                         {"reduced_loss", &reduced_loss},
                                                         {"grad", &grad},
                                                         {"target_grad", &target_grad}};
  for (const auto &[name, matrix] : all) {
    for (int64_t i = 0; i < matrix->rows(); ++i) {
      for (int64_t k = 0; k < matrix->cols(); ++k) {
        if (matrix->GetBits(i, k) != matrix->PoisonBits()) {
          return ::testing::AssertionFailure() << name << "[" << i << "," << k << "] was written";
        }
      }
    }
  }
  return PaddingIntact();
}

std::string FirstDifference(const Binary &a, const Binary &b) {
  const std::pair<const char *, const Matrix Binary::*> all[] = {{"element_losses ", &Binary::element_losses},
                                                                 {"reduced_loss ", &Binary::reduced_loss},
                                                                 {"grad ", &Binary::grad},
                                                                 {"target_grad ", &Binary::target_grad}};
  for (const auto &[name, member] : all) {
    const std::string difference = FirstDifference(a.*member, b.*member);
    if (!difference.empty()) return name + difference;
  }
  return "";
}

}  // namespace xent::test
