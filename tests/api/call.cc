// A cross-entropy call with its tensors; see call.h.
#include "api/call.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <utility>

namespace xent::test {

using reference::ArithmeticType;

const char *NameOf(Function function) {
  switch (function) {
    case Function::kForward:
      return "forward";
    case Function::kForwardBackward:
      return "forward_backward";
    default:
      return "backward";
  }
}

Call::Call(xent_dtype dtype_in, int64_t rows_in, int64_t cols_in, int64_t stride, int64_t misalign)
    : dtype(dtype_in),
      rows(rows_in),
      cols(cols_in),
      logits(dtype, rows, cols, stride, misalign),
      targets(static_cast<size_t>(rows), 0),
      losses(ArithmeticType(dtype), 1, rows, std::max<int64_t>(rows, 1)),
      lse(ArithmeticType(dtype), 1, rows, std::max<int64_t>(rows, 1)),
      loss(ArithmeticType(dtype), 1, 1),
      records(static_cast<size_t>(rows)),
      grad(dtype, rows, cols, stride, misalign) {
  for (Record &record : records) std::memset(record.bytes, 0xa5, sizeof(record.bytes));
}

Call::Call(xent_dtype dtype_in, const Rows &logits_in, std::vector<int64_t> targets_in, int64_t stride)
    : Call(dtype_in, static_cast<int64_t>(logits_in.size()), static_cast<int64_t>(logits_in.at(0).size()), stride) {
  targets = std::move(targets_in);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      logits.Set(i, j, logits_in[static_cast<size_t>(i)].at(static_cast<size_t>(j)));
    }
  }
}

void Call::FillNormal(uint64_t seed, double deviation) {
  Random random(seed);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) logits.SetInRange(i, j, random.Normal(deviation));
    targets[static_cast<size_t>(i)] = random.Below(cols);
  }
}

xent_cross_entropy Call::Args(Function function) {
  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = cols;
  args.logits = logits.data();
  args.logits_stride = logits.stride();
  args.dtype = dtype;
  args.targets_type = targets_type;
  if (targets_type == XENT_I32) {
    narrow_targets_.assign(targets.begin(), targets.end());
    args.targets = narrow_targets_.data();
  } else {
    args.targets = targets.data();
  }
  args.records = records.data();
  if (function != Function::kBackward) {
    args.losses = losses.data();
    args.lse = lse.data();
    args.loss = options.reduction == XENT_REDUCTION_NONE ? nullptr : loss.data();
    args.perplexity = &perplexity;
    args.live_rows = &live_rows;
  }
  if (function != Function::kForward) {
    args.grad = in_place ? logits.data() : grad.data();
    args.grad_stride = in_place ? logits.stride() : grad.stride();
    args.upstream_kind = upstream_kind;
    args.upstream = upstream_kind == XENT_UPSTREAM_ONE ? nullptr : upstream.data();
    args.in_place = in_place ? 1 : 0;
  }
  return args;
}

xent_status Call::Run(Function function) {
  original_logits_ = reference::DecodeRows(dtype, logits.data(), rows, cols, logits.stride());
  error = XENT_ERROR_INIT;
  const xent_cross_entropy args = Args(function);
  const xent_options *const options_or_null = pass_null_options ? nullptr : &options;
  switch (function) {
    case Function::kForward:
      return xent_cross_entropy_forward(&args, options_or_null, &exec, &error);
    case Function::kForwardBackward:
      return xent_cross_entropy_forward_backward(&args, options_or_null, &exec, &error);
    default:
      return xent_cross_entropy_backward(&args, options_or_null, &exec, &error);
  }
}

void Call::MustRun(Function function) {
  const xent_status status = Run(function);
  ASSERT_EQ(status, XENT_OK) << NameOf(function) << " " << reference::NameOf(dtype) << " " << rows << "x" << cols
                             << ": " << error.message;
}

void Call::MustRunForwardThenBackward() {
  MustRun(Function::kForward);
  MustRun(Function::kBackward);
}

::testing::AssertionResult Call::PaddingIntact() const {
  const std::pair<const char *, const Matrix *> all[] = {
      {"logits", &logits}, {"losses", &losses}, {"lse", &lse}, {"loss", &loss}, {"grad", &grad}};
  for (const auto &[name, matrix] : all) {
    if (!matrix->PaddingIntact()) return ::testing::AssertionFailure() << "memory around " << name << " was written";
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult Call::OutputsUntouched() const {
  const std::pair<const char *, const Matrix *> all[] = {
      {"losses", &losses}, {"lse", &lse}, {"loss", &loss}, {"grad", &grad}};
  for (const auto &[name, matrix] : all) {
    const auto result = Untouched(*matrix);
    if (!result) return ::testing::AssertionFailure() << name << " was written: " << result.message();
  }
  for (size_t i = 0; i < records.size(); ++i) {
    for (const unsigned char byte : records[i].bytes) {
      if (byte != 0xa5) return ::testing::AssertionFailure() << "record " << i << " was written";
    }
  }
  if (perplexity != kPattern) return ::testing::AssertionFailure() << "perplexity was written: " << perplexity;
  if (live_rows != static_cast<int64_t>(kPattern)) {
    return ::testing::AssertionFailure() << "live_rows was written: " << live_rows;
  }
  return PaddingIntact();
}

double Call::UpstreamOf(int64_t row) const {
  switch (upstream_kind) {
    case XENT_UPSTREAM_SCALAR:
      return upstream.Get(0, 0);
    case XENT_UPSTREAM_ROWS:
      return upstream.Get(0, row);
    default:
      return 1;
  }
}

reference::CrossEntropy Call::Expected() const {
  return reference::EvaluateCrossEntropy(dtype, original_logits_, cols, targets, options);
}

::testing::AssertionResult Call::MatchesReference() const {
  const reference::CrossEntropy want = Expected();
  for (int64_t i = 0; i < rows; ++i) {
    const auto loss_ok = Within(losses, 0, i, want.losses[static_cast<size_t>(i)], kLossUlp);
    if (!loss_ok) return ::testing::AssertionFailure() << "loss of row " << i << ": " << loss_ok.message();
    const auto lse_ok = Within(lse, 0, i, want.lse[static_cast<size_t>(i)], kLseUlp);
    if (!lse_ok) return ::testing::AssertionFailure() << "lse of row " << i << ": " << lse_ok.message();
  }
  if (options.reduction != XENT_REDUCTION_NONE) {
    const auto reduced_ok = Within(loss, 0, 0, want.loss, kLossUlp);
    if (!reduced_ok) return ::testing::AssertionFailure() << "reduced loss: " << reduced_ok.message();
  }
  if (live_rows != want.live_rows) {
    return ::testing::AssertionFailure() << "live_rows " << live_rows << ", want " << want.live_rows;
  }
  // A row's negative log-likelihood is known to 4 ULP, at most 4 * 2^-23 (2^-52) of itself, and so is their mean; exp
  // makes an absolute error a relative one. Sum, quotient and exp in double add less than 4 * 2^-52.
  const long double mean = std::log(want.perplexity);
  const long double relative =
      std::expm1(kLossUlp * reference::UlpAt(ArithmeticType(dtype), 1) * mean) + 4 * reference::UlpAt(XENT_F64, 1);
  bool perplexity_ok = std::fabs(perplexity - want.perplexity) <= relative * want.perplexity;
  if (std::isnan(want.perplexity)) perplexity_ok = std::isnan(perplexity);
  if (want.perplexity > std::numeric_limits<double>::max()) perplexity_ok = perplexity == kInf;
  if (!perplexity_ok) {
    return ::testing::AssertionFailure() << "perplexity " << perplexity << ", want "
                                         << static_cast<double>(want.perplexity);
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult Call::GradientMatchesReference() const {
  const reference::CrossEntropy want = Expected();
  const Matrix &got = in_place ? logits : grad;
  for (int64_t i = 0; i < rows; ++i) {
    if (!IsLive(i) || want.gradients_are_zero) {
      const auto zero = RowIs(got, i, 0);
      if (!zero) return ::testing::AssertionFailure() << "gradient of a dead row: " << zero.message();
      continue;
    }
    const std::span<const double> all(original_logits_);
    const reference::Row row(all.subspan(static_cast<size_t>(i * cols), static_cast<size_t>(cols)),
                             targets[static_cast<size_t>(i)]);
    const long double factor = UpstreamOf(i) / want.denominator;
    for (int64_t j = 0; j < cols; ++j) {
      const auto ok = Within(got, i, j, row.Gradient(j, options, factor), kGradientUlp);
      if (!ok) {
        return ::testing::AssertionFailure()
               << "gradient, target " << targets[static_cast<size_t>(i)] << ": " << ok.message();
      }
    }
  }
  return ::testing::AssertionSuccess();
}

xent_options WithReduction(xent_reduction reduction) {
  xent_options options = XENT_OPTIONS_INIT;
  options.reduction = reduction;
  return options;
}

::testing::AssertionResult Is(const Matrix &matrix, int64_t row, int64_t col, double value) {
  const uint64_t want = reference::Encode(matrix.dtype(), value);
  const uint64_t got = matrix.GetBits(row, col);
  if (got == want) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << reference::NameOf(matrix.dtype()) << " [" << row << "," << col << "] of "
                                       << matrix.rows() << "x" << matrix.cols() << ": got " << matrix.Get(row, col)
                                       << " (0x" << std::hex << got << "), want " << value << " (0x" << want << ")";
}

::testing::AssertionResult RowIs(const Matrix &matrix, int64_t row, double value) {
  for (int64_t j = 0; j < matrix.cols(); ++j) {
    const auto result = Is(matrix, row, j, value);
    if (!result) return result;
  }
  return ::testing::AssertionSuccess();
}

::testing::AssertionResult Within(const Matrix &matrix, int64_t row, int64_t col, reference::Value want, double ulp) {
  const double error = reference::ErrorInUlp(matrix.dtype(), matrix.row(row), col, want);
  if (error <= ulp) return ::testing::AssertionSuccess();
  char text[200];
  std::snprintf(text, sizeof(text), "got %.17g, want %.21Lg, error %.3f ULP at %.6Lg; at most %.0f",
                matrix.Get(row, col), want.exact, error, want.scale, ulp);
  return ::testing::AssertionFailure() << reference::NameOf(matrix.dtype()) << " [" << row << "," << col << "] of "
                                       << matrix.rows() << "x" << matrix.cols() << ": " << text;
}

::testing::AssertionResult Untouched(const Matrix &matrix) {
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    for (int64_t j = 0; j < matrix.cols(); ++j) {
      if (matrix.GetBits(i, j) != matrix.PoisonBits()) {
        return ::testing::AssertionFailure() << "[" << i << "," << j << "] became " << matrix.Get(i, j);
      }
    }
  }
  return ::testing::AssertionSuccess();
}

std::vector<double> DecodeRow(const Matrix &matrix, int64_t row) {
  return reference::DecodeRows(matrix.dtype(), matrix.row(row), 1, matrix.cols(), 0);
}

Matrix MatrixOf(xent_dtype dtype, const Call::Rows &values, int64_t stride) {
  const int64_t cols = values.empty() ? 0 : static_cast<int64_t>(values[0].size());
  Matrix matrix(dtype, static_cast<int64_t>(values.size()), cols, stride);
  for (int64_t i = 0; i < matrix.rows(); ++i) {
    for (int64_t j = 0; j < cols; ++j) matrix.Set(i, j, values[static_cast<size_t>(i)].at(static_cast<size_t>(j)));
  }
  return matrix;
}

::testing::AssertionResult SameBits(const Call &a, const Call &b, Function function) {
  const auto differ = [](const char *name, const Matrix &x, const Matrix &y) {
    const std::string difference = FirstDifference(x, y);
    return difference.empty() ? ::testing::AssertionSuccess() : ::testing::AssertionFailure() << name << difference;
  };
  if (function != Function::kBackward) {
    for (const auto &[name, x, y] :
         {std::tuple{"losses ", &a.losses, &b.losses}, {"lse ", &a.lse, &b.lse}, {"loss ", &a.loss, &b.loss}}) {
      const auto result = differ(name, *x, *y);
      if (!result) return result;
    }
    if (std::memcmp(&a.perplexity, &b.perplexity, sizeof(double)) != 0) {
      return ::testing::AssertionFailure() << "perplexity " << a.perplexity << " and " << b.perplexity;
    }
    if (a.live_rows != b.live_rows) {
      return ::testing::AssertionFailure() << "live_rows " << a.live_rows << " and " << b.live_rows;
    }
    for (size_t i = 0; i < a.records.size(); ++i) {
      if (!(a.records[i] == b.records[i])) return ::testing::AssertionFailure() << "record " << i << " differs";
    }
  }
  if (function != Function::kForward) {
    return differ("grad ", a.in_place ? a.logits : a.grad, b.in_place ? b.logits : b.grad);
  }
  return ::testing::AssertionSuccess();
}

}  // namespace xent::test
