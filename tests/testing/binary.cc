// A binary cross-entropy call with its tensors; see binary.h.
#include "testing/binary.h"

#include <cmath>
#include <utility>

#include "reference/rows.h"

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
      losses(Make(ArithmeticType(dtype), pad == 0 ? 0 : pad + 2)),
      loss(ArithmeticType(dtype), 1, 1),
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
      Set(x, i, c, probabilities ? random.Uniform() : random.Normal(deviation));
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
  if (!probabilities) pos_weight = Vector(values(cols));
  class_weights = Vector(values(cols));
  row_weights = Vector(values(rows));
  element_weights = Make(Float(), 5);
  upstream = Make(Float(), 4);
  upstream_kind = XENT_UPSTREAM_ELEMENTS;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) {
      Set(*element_weights, i, c, values(1)[0]);
      Set(upstream, i, c, random.Normal(2));
    }
  }
}

xent_binary_cross_entropy Binary::Args(Pass pass) {
  xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.inner = inner;
  args.input = x.data();
  args.input_stride = x.stride();
  args.targets = y.data();
  args.targets_stride = y.stride();
  args.dtype = dtype;
  args.targets_dtype = targets_dtype;
  args.input_kind = probabilities ? XENT_BCE_PROBABILITIES : XENT_BCE_LOGITS;
  if (pos_weight) args.pos_weight = pos_weight->data();
  if (class_weights) args.class_weights = class_weights->data();
  if (row_weights) args.row_weights = row_weights->data();
  if (element_weights) {
    args.element_weights = element_weights->data();
    args.element_weights_stride = element_weights->stride();
  }
  args.focal_gamma = gamma;
  args.focal_alpha = alpha;
  args.has_focal_alpha = has_alpha ? 1 : 0;
  if (pass != Pass::kBackward) {
    if (want_losses) {
      args.losses = losses.data();
      args.losses_stride = losses.stride();
    }
    if (want_loss && options.reduction != XENT_REDUCTION_NONE) args.loss = loss.data();
  }
  if (pass != Pass::kForward) {
    if (want_grad) {
      args.grad = in_place ? x.data() : grad.data();
      args.grad_stride = in_place ? x.stride() : grad.stride();
      args.in_place = in_place ? 1 : 0;
    }
    if (want_target_grad) {
      args.target_grad = target_grad.data();
      args.target_grad_stride = target_grad.stride();
    }
    args.upstream_kind = upstream_kind;
    if (upstream_kind != XENT_UPSTREAM_ONE) args.upstream = upstream.data();
    if (upstream_kind == XENT_UPSTREAM_ELEMENTS) args.upstream_stride = upstream.stride();
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
  if (options.has_divisor != 0) return options.divisor;
  return options.reduction == XENT_REDUCTION_MEAN ? static_cast<long double>(rows * cols) : 1;
}

reference::BinaryElement Binary::Element(int64_t row, int64_t col) const {
  reference::BinaryElement element;
  element.x = original_x_[static_cast<size_t>(row * cols + col)];
  element.y = Get(y, row, col);
  element.probabilities = probabilities;
  if (pos_weight) element.pos_weight = pos_weight->Get(0, col);
  if (class_weights) element.weight *= class_weights->Get(0, col);
  if (row_weights) element.weight *= row_weights->Get(0, row);
  if (element_weights) element.weight *= Get(*element_weights, row, col);
  if (upstream_kind == XENT_UPSTREAM_SCALAR) element.upstream = upstream.Get(0, 0);
  if (upstream_kind == XENT_UPSTREAM_ROWS) element.upstream = upstream.Get(0, row);
  if (upstream_kind == XENT_UPSTREAM_ELEMENTS) element.upstream = Get(upstream, row, col);
  element.upstream /= Denominator();
  element.gamma = gamma;
  element.has_alpha = has_alpha;
  element.alpha = alpha;
  return element;
}

WorstBinary Binary::Judge() const {
  WorstBinary worst;
  const double bound = gamma != 0 || has_alpha ? kFocalUlp : kBinaryUlp;
  double worst_of_all = -1;
  const auto judge = [&](const char *name, int64_t i, int64_t c, const Matrix &matrix, reference::Value want,
                         double *most) {
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
      error_ulp = static_cast<double>(std::fmax(0.0L, std::fabs(got - want.exact) - half) /
                                      reference::UlpAt(XENT_F64, want.scale));
    }
    *most = std::fmax(*most, error_ulp);
    if (error_ulp > worst_of_all) {
      worst_of_all = error_ulp;
      const reference::BinaryElement e = Element(i, c);
      char text[400];
      std::snprintf(text, sizeof(text),
                    "%s[%lld,%lld] of x %.17g (%s) y %.17g (%s) pos_weight %.9g weight %.9Lg upstream %.9Lg gamma %g "
                    "alpha %g: %g ULP, bound %g; got %.17g, want %.20Lg",
                    name, static_cast<long long>(i), static_cast<long long>(c), e.x, reference::NameOf(dtype), e.y,
                    reference::NameOf(targets_dtype), e.pos_weight, e.weight, e.upstream, gamma, alpha, error_ulp,
                    bound, Get(matrix, i, c), want.exact);
      worst.where = text;
    }
  };
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) {
      const reference::BinaryResult want = EvaluateBinary(Element(i, c));
      if (last_ != Pass::kBackward && want_losses) judge("loss", i, c, losses, want.loss, &worst.loss);
      if (last_ != Pass::kForward && want_grad) judge("grad", i, c, Grad(), want.grad, &worst.grad);
      if (last_ != Pass::kForward && want_target_grad) {
        judge("target_grad", i, c, target_grad, want.target_grad, &worst.target_grad);
      }
    }
  }
  return worst;
}

void Binary::ExpectAccurate() const {
  const WorstBinary worst = Judge();
  const double bound = gamma != 0 || has_alpha ? kFocalUlp : kBinaryUlp;
  EXPECT_LE(std::fmax(worst.loss, std::fmax(worst.grad, worst.target_grad)), bound) << worst.where;
  if (last_ != Pass::kBackward && want_losses && want_loss && options.reduction != XENT_REDUCTION_NONE) {
    reference::Sum sum;
    long double magnitudes = 0;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < cols; ++c) {
        sum.Add(Get(losses, i, c));
        magnitudes += std::fabs(static_cast<long double>(Get(losses, i, c)));
      }
    }
    const long double divisor = Denominator();
    if (divisor != 0) {
      EXPECT_LE(reference::ErrorInUlp(Float(), loss.data(), 0, {sum.Total() / divisor, magnitudes / divisor}), 4);
    }
  }
}

::testing::AssertionResult Binary::PaddingIntact() const {
  const std::pair<const char *, const Matrix *> all[] = {
      {"x", &x}, {"y", &y}, {"losses", &losses}, {"loss", &loss}, {"grad", &grad}, {"target_grad", &target_grad}};
  for (const auto &[name, matrix] : all) {
    if (!matrix->PaddingIntact()) return ::testing::AssertionFailure() << "memory around " << name << " was written";
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult Binary::OutputsUntouched() const {
  const std::pair<const char *, const Matrix *> all[] = {
      {"losses", &losses}, {"loss", &loss}, {"grad", &grad}, {"target_grad", &target_grad}};
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
  const std::pair<const char *, const Matrix Binary::*> all[] = {{"losses ", &Binary::losses},
                                                                 {"loss ", &Binary::loss},
                                                                 {"grad ", &Binary::grad},
                                                                 {"target_grad ", &Binary::target_grad}};
  for (const auto &[name, member] : all) {
    const std::string difference = FirstDifference(a.*member, b.*member);
    if (!difference.empty()) return name + difference;
  }
  return "";
}

}  // namespace xent::test
