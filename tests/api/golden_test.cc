// The golden numbers of semantics.md, through the public functions. Each is compared to half a unit of its last printed
// digit.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

class Golden : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  LossCall Run(const std::vector<double> &logits, int64_t target, double epsilon = 0,
               xent_smoothing form = XENT_SMOOTHING_UNIFORM) {
    LossCall call(dtype(), {logits}, {target});
    call.options.label_smoothing = epsilon;
    call.options.smoothing = form;
    call.MustRun(Function::kForwardBackward);
    return call;
  }
  Matrix Softmax(const Matrix &x) {
    Matrix y(dtype(), x.rows(), x.cols());
    EXPECT_EQ(xent_softmax(x.rows(), x.cols(), 0, View(x), View(y), nullptr, nullptr), XENT_OK);
    return y;
  }
  template <typename Row>
  static double Norm(const Row &row) {
    double squares = 0;
    for (const double value : DecodeRow(row, 0)) squares += value * value;
    return std::sqrt(squares);
  }
};

const std::vector<double> kFirst = {2.0, 1.2, 0.3, -0.8, -2.0};
const std::vector<double> kSecond = {1.8, 0.9, 0.2, -0.5, -1.2};
const std::vector<double> kThird = {2.0, 1.0, 0.1};

TEST_P(Golden, FirstRow) {
  const Matrix p = Softmax(MatrixOf(dtype(), {kFirst}));
  const double want[] = {0.5844, 0.2626, 0.1068, 0.0355, 0.0107};
  for (int64_t j = 0; j < 5; ++j) EXPECT_NEAR(p.Get(0, j), want[j], 5e-5);
  EXPECT_NEAR(Run(kFirst, 0).reduced_loss.Get(0, 0), 0.5372, 5e-5);
}

TEST_P(Golden, SecondRow) {
  const Matrix p = Softmax(MatrixOf(dtype(), {kSecond}));
  const double percent[] = {56.9, 23.1, 11.5, 5.7, 2.8};
  for (int64_t j = 0; j < 5; ++j) EXPECT_NEAR(100 * p.Get(0, j), percent[j], 0.05);
  const LossCall call = Run(kSecond, 0);
  const double gradient[] = {-0.431, 0.231, 0.115, 0.057, 0.028};
  for (int64_t j = 0; j < 5; ++j) EXPECT_NEAR(call.grad.Get(0, j), gradient[j], 5e-4);
  EXPECT_NEAR(call.reduced_loss.Get(0, 0), 0.564, 5e-4);
  EXPECT_NEAR(Norm(call.grad), 0.507, 5e-4);
}

TEST_P(Golden, FiveEqualLogits) {
  for (int64_t target = 0; target < 5; ++target) {
    EXPECT_NEAR(Run({1, 1, 1, 1, 1}, target).reduced_loss.Get(0, 0), 1.6094, 5e-5);
  }
}

TEST_P(Golden, ThreeLogits) {
  const LossCall call = Run(kThird, 0);
  EXPECT_NEAR(call.reduced_loss.Get(0, 0), 0.41703, 5e-6);
  EXPECT_NEAR(Norm(call.grad), 0.42985, 5e-6);
}

TEST_P(Golden, SoftmaxedTwiceByMistake) {
  // The loss of the probabilities taken for logits, and its gradient carried back through the softmax that should not
  // be there.
  const Matrix z = MatrixOf(dtype(), {kThird});
  const Matrix p = Softmax(z);
  const LossCall call = Run(DecodeRow(p, 0), 0);
  EXPECT_NEAR(call.reduced_loss.Get(0, 0), 0.80212, 5e-6);
  Matrix dz(dtype(), 1, 3);
  ASSERT_EQ(xent_softmax_backward(1, 3, 0, View(call.grad), View(p), View(dz), nullptr, nullptr), XENT_OK);
  EXPECT_NEAR(Norm(dz), 0.23771, 5e-6);
  EXPECT_NEAR(100 * Norm(dz) / Norm(Run(kThird, 0).grad), 55.30, 5e-3);
  xent_diagnosis diagnosis;
  ASSERT_EQ(xent_check_logits(1, 3, 0, View(p), &diagnosis, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(diagnosis, XENT_DIAGNOSIS_PROBABILITIES);
  ASSERT_EQ(xent_check_logits(1, 3, 0, View(z), &diagnosis, nullptr, nullptr), XENT_OK);
  EXPECT_EQ(diagnosis, XENT_DIAGNOSIS_LOGITS);
}

TEST_P(Golden, SmoothedInBothForms) {
  EXPECT_NEAR(Run(kFirst, 0, 0.1, XENT_SMOOTHING_UNIFORM).reduced_loss.Get(0, 0), 0.72316, 5e-6);
  EXPECT_NEAR(Run(kFirst, 0, 0.1, XENT_SMOOTHING_EXCLUSIVE).reduced_loss.Get(0, 0), 0.76966, 5e-6);
}

TEST_P(Golden, BinaryAsTwoClasses) {
  // -log p, with log-probabilities as logits.
  const struct {
    double p, loss, half_unit, squared;
  } rows[] = {{0.7, 0.3567, 5e-5, 0.09}, {0.99, 0.01005, 5e-6, 0.0001}, {0.01, 4.6052, 5e-5, 0.9801}};
  for (const auto &row : rows) {
    const LossCall call = Run({std::log(row.p), std::log1p(-row.p)}, 0);
    EXPECT_NEAR(call.reduced_loss.Get(0, 0), row.loss, row.half_unit);
    // The gradient at the target is p - 1, whose square is the squared error.
    EXPECT_NEAR(call.grad.Get(0, 0) * call.grad.Get(0, 0), row.squared, 5e-5);
  }
}

// The half-precision types do not hold the inputs to the digits that are compared.
INSTANTIATE_TEST_SUITE_P(Dtypes, Golden, ::testing::Values(XENT_F32, XENT_F64),
                         [](const auto &info) { return reference::NameOf(info.param); });

}  // namespace
}  // namespace xent::test
