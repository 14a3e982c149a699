// Binary cross-entropy on every target: each element within the bounds of semantics.md of the long double oracle
// (tests/reference/binary.h), over ordinary inputs and over a grid of those that break formulas (sigmoids that
// underflow, softplus that cancels, subnormal targets, infinities); and the same bits on every target with fused
// multiply-add, of any number of threads, held by golden_hashes.txt.
#include "testing/binary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "testing/golden.h"
#include "testing/hash.h"
#include "testing/target.h"

namespace xent::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class BinaryKernel : public TargetTest {
 protected:
  // Everything once, judged; the worst error of each output is recorded with the test.
  void Check(Binary &call) {
    call.MustRun(Pass::kForwardBackward);
    call.ExpectAccurate();
    const WorstBinary worst = call.Judge();
    most_.loss = std::fmax(most_.loss, worst.loss);
    most_.grad = std::fmax(most_.grad, worst.grad);
    most_.target_grad = std::fmax(most_.target_grad, worst.target_grad);
    if (HasFailure()) printf("%s\n", worst.where.c_str());
  }
  void TearDown() override {
    if (!IsSkipped()) {
      std::printf("worst: loss %.3f grad %.3f target_grad %.3f ULP\n", most_.loss, most_.grad, most_.target_grad);
    }
    TargetTest::TearDown();
  }

 private:
  WorstBinary most_;
};
XENT_INSTANTIATE_TARGETS(BinaryKernel);

TEST_P(BinaryKernel, OrdinaryLogits) {
  for (const xent_dtype dtype : kDtypes) {
    for (const xent_dtype targets_dtype : kDtypes) {
      for (const double deviation : {1.0, 8.0, 64.0}) {
        Binary call(dtype, targets_dtype, 60, 67);
        call.FillNormal(static_cast<uint64_t>(SeedOf(dtype) * 10 + SeedOf(targets_dtype)), deviation);
        Check(call);
        call.FillWeights(7);
        Check(call);
      }
    }
  }
}

TEST_P(BinaryKernel, ManyOrdinaryLogitsOfFloat64) {
  // The type without a wider one under it.
  for (int seed = 0; seed < 6; ++seed) {
    Binary call(XENT_F64, XENT_F64, 100, 300);
    call.FillNormal(static_cast<uint64_t>(seed), seed < 3 ? 2.0 : 16.0);
    call.FillWeights(static_cast<uint64_t>(seed), seed % 2 == 1);
    Check(call);
  }
}

TEST_P(BinaryKernel, NegativeWeights) {
  for (const xent_dtype dtype : kDtypes) {
    Binary call(dtype, dtype, 40, 67);
    call.FillNormal(3, 4);
    call.FillWeights(11, true);
    Check(call);
  }
}

TEST_P(BinaryKernel, Probabilities) {
  for (const xent_dtype dtype : kDtypes) {
    for (const xent_dtype targets_dtype : kDtypes) {
      Binary call(dtype, targets_dtype, 40, 67);
      call.options.input = XENT_BINARY_PROBABILITIES;
      call.FillNormal(5, 1);
      // Near both ends, and at them.
      Random random(9);
      for (int64_t i = 0; i < 20; ++i) {
        for (int64_t c = 0; c < 67; ++c) {
          const int exponent = -static_cast<int>(random.Below(150)) - 1;
          const double tiny = std::ldexp(1.0 + random.Uniform(), exponent);
          call.Set(call.x, i, c, c % 2 == 0 ? tiny : 1 - tiny);
        }
        call.Set(call.x, i, 0, 0);
        call.Set(call.x, i, 1, 1);
      }
      Check(call);
      call.FillWeights(13);
      Check(call);
    }
  }
}

TEST_P(BinaryKernel, Focal) {
  for (const xent_dtype dtype : kDtypes) {
    for (const double gamma : {0.0, 0.25, 1.0, 2.0, 5.0, 33.5}) {
      for (const bool has_alpha : {false, true}) {
        Binary call(dtype, dtype, 30, 67);
        call.FillNormal(17, 4);
        call.options.focal_gamma = gamma;
        if (has_alpha) call.options.focal_alpha = 0.25;
        Check(call);
        call.FillWeights(19);
        Check(call);
      }
    }
  }
}

// Logits at which one of the parts leaves its range or loses its digits.
std::vector<double> HardLogits(xent_dtype dtype) {
  std::vector<double> z = {0.0,    1e-300, 1e-45,  1e-39,   1e-20, 1e-8,   1e-4,  0.3,   0.6931472, 1.0,
                           17.0,   27.0,   36.0,   37.5,    86.6,  87.4,   88.5,  89.0,  100.0,     103.9,
                           110.0,  349.0,  351.0,  700.0,   707.9, 708.1,  709.0, 744.4, 746.0,     800.0,
                           1061.0, 1063.0, 5000.0, 65504.0, 1e6,   0x1p41, 1e30,  3e38,  1e300,     kInfinity};
  const size_t n = z.size();
  for (size_t i = 0; i < n; ++i) {
    z[i] = reference::Decode(dtype, reference::Encode(dtype, z[i]));
    if (std::isinf(z[i]) && i + 1 < n) z[i] = reference::LargestFinite(dtype);
    z.push_back(-z[i]);
  }
  return z;
}

constexpr double kHardTargets[] = {0.0,    1.0,   0.5,         0.9,         0.1,     1e-45,
                                   1e-300, 1e-20, 1 - 0x1p-24, 1 - 0x1p-53, 0x1p-24, 0.3};

Binary HardCall(xent_dtype dtype, double weight, double upstream) {
  const std::vector<double> z = HardLogits(dtype);
  const int64_t cols = static_cast<int64_t>(z.size());
  const int64_t rows = static_cast<int64_t>(std::size(kHardTargets));
  Binary call(dtype, dtype, rows, cols);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t c = 0; c < cols; ++c) {
      call.x.Set(i, c, z[static_cast<size_t>(c)]);
      call.Set(call.y, i, c, kHardTargets[i]);
    }
  }
  call.options.reduction.kind = XENT_REDUCTION_SUM;
  if (weight != 1) call.row_weights = call.Vector(std::vector<double>(static_cast<size_t>(rows), weight));
  if (upstream != 1) {
    call.upstream_kind = XENT_UPSTREAM_SCALAR;
    call.upstream = call.Vector({upstream});
  }
  return call;
}

TEST_P(BinaryKernel, HardLogits) {
  for (const xent_dtype dtype : kDtypes) {
    for (const double scale : {1.0, 0x1p-100, 0x1p100}) {
      for (const double upstream : {1.0, 0x1p120, kInfinity}) {
        Binary call = HardCall(dtype, scale, upstream);
        // Past 2^510 it shows that float64 has sigmoids below 2^-1532 as 0.
        if (std::isinf(upstream) && dtype == XENT_F64) continue;
        for (int64_t i = 0; std::isinf(upstream) && i < call.rows; ++i) {
          // Of soft targets the two terms of the gradient may cancel, and no digits are promised of what is left.
          for (int64_t c = 0; c < call.cols; ++c) call.y.Set(i, c, static_cast<double>(i % 2));
        }
        Check(call);
        for (const double pos_weight : {0.0, 0x1p-20, -0.75}) {
          call.pos_weight = call.Vector(std::vector<double>(static_cast<size_t>(call.cols), pos_weight));
          Check(call);
        }
      }
    }
  }
}

TEST_P(BinaryKernel, HugeAndTinyFactorsOfFloat64) {
  // No product on the way leaves the range where the result does not.
  for (const double w : {1e-300, 1e300}) {
    Binary call(XENT_F64, XENT_F64, 30, 67);
    call.FillNormal(23, 16);
    call.FillWeights(29);
    call.row_weights = call.Vector(std::vector<double>(30, w));
    call.class_weights = call.Vector(std::vector<double>(67, w));
    call.upstream_kind = XENT_UPSTREAM_SCALAR;
    call.upstream = call.Vector({w > 1 ? 1e-308 : 1e308});
    call.options.reduction.divisor = w > 1 ? 1e292 : 1e-292;
    for (const double gamma : {0.0, 2.0}) {
      call.options.focal_gamma = gamma;
      Check(call);
    }
  }
}

TEST_P(BinaryKernel, HardFocal) {
  for (const xent_dtype dtype : kDtypes) {
    for (const double gamma : {0.001, 0.5, 1.0, 2.0, 40.0, 1e6, 1e11}) {
      Binary call = HardCall(dtype, 1, 1);
      call.options.focal_gamma = gamma;
      call.options.focal_alpha = 0.75;
      Check(call);
      call.pos_weight = call.Vector(std::vector<double>(static_cast<size_t>(call.cols), 3));
      Check(call);
    }
  }
}

TEST_P(BinaryKernel, TargetsOutsideZeroToOne) {
  for (const xent_dtype dtype : kDtypes) {
    for (const double y : {-0.5, 1.5, -3.0, 7.0}) {
      Binary call = HardCall(dtype, 1, 1);
      for (int64_t i = 0; i < call.rows; ++i) {
        for (int64_t c = 0; c < call.cols; ++c) call.y.Set(i, c, y);
      }
      Check(call);
    }
  }
}

// ---- the same bits ----

struct Named {
  std::string name;
  Binary call;
};

std::vector<Named> HashedCalls() {
  std::vector<Named> calls;
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t inner : {0, 3, 50}) {
      for (const char *kind : {"plain", "weights", "probabilities", "focal", "hard"}) {
        const xent_dtype targets_dtype = kDtypes[(SeedOf(dtype) + inner) % 4];
        Binary call(dtype, targets_dtype, 300, 167, inner);
        const std::string name = kind;
        if (name == "probabilities") call.options.input = XENT_BINARY_PROBABILITIES;
        call.FillNormal(static_cast<uint64_t>(SeedOf(dtype) * 100 + inner), 8);
        if (name == "weights" || name == "focal") call.FillWeights(31);
        if (name == "focal") {
          call.options.focal_gamma = 1.5;
          call.options.focal_alpha = 0.25;
        }
        if (name == "hard") call = HardCall(dtype, 0x1p-30, 0x1p40);
        calls.push_back({std::string(reference::NameOf(dtype)) + "/" + std::to_string(inner) + "/" + kind, call});
      }
    }
  }
  return calls;
}

std::string LineOf(Named &named, const xent_exec &exec) {
  named.call.exec = exec;
  named.call.MustRun(Pass::kForwardBackward);
  std::string line = named.name;
  for (const Matrix *m :
       {&named.call.element_losses, &named.call.reduced_loss, &named.call.grad, &named.call.target_grad}) {
    line += " " + Hash(*m).Text();
  }
  return line;
}

// ---- usual and unusual elements ----

// The calls whose elements the float32 lanes compute, each in its own way; an element can be spoilt in each.
std::vector<Named> LaneCalls(xent_dtype dtype, int64_t rows, int64_t cols) {
  std::vector<Named> calls;
  for (const char *kind : {"plain", "pos_weight", "weights", "focal", "power", "probabilities"}) {
    Binary call(dtype, dtype, rows, cols);
    const std::string name = kind;
    if (name == "probabilities") call.options.input = XENT_BINARY_PROBABILITIES;
    call.FillNormal(41, 4);
    if (name != "plain") call.FillWeights(43);
    if (name == "pos_weight") call.row_weights.reset(), call.class_weights.reset(), call.element_weights.reset();
    if (name == "focal") call.options.focal_gamma = 2, call.options.focal_alpha = 0.25;
    if (name == "power") call.options.focal_gamma = 0.75;
    calls.push_back({name, call});
  }
  return calls;
}

struct Unusual {
  const char *name;
  void (*spoil)(Binary &, int64_t row, int64_t col);
};
const Unusual kUnusual[] = {
    {"NaN", [](Binary &b, int64_t i, int64_t c) { b.Set(b.x, i, c, b.TakesProbabilities() ? 0.5 : NAN); }},
    {"infinite", [](Binary &b, int64_t i, int64_t c) { b.Set(b.x, i, c, b.TakesProbabilities() ? 1 : kInfinity); }},
    {"far", [](Binary &b, int64_t i, int64_t c) { b.Set(b.x, i, c, b.TakesProbabilities() ? 0 : -60000); }},
    {"target 2", [](Binary &b, int64_t i, int64_t c) { b.Set(b.y, i, c, 2); }},
    {"target -0", [](Binary &b, int64_t i, int64_t c) { b.Set(b.y, i, c, -0.0); }},
    {"target NaN", [](Binary &b, int64_t i, int64_t c) { b.Set(b.y, i, c, NAN); }},
    {"huge weight",
     [](Binary &b, int64_t i, int64_t c) {
       if (b.element_weights) b.Set(*b.element_weights, i, c, 0x1p60);
     }},
    {"tiny upstream",
     [](Binary &b, int64_t i, int64_t c) {
       if (b.upstream) b.Set(*b.upstream, i, c, 0x1p-90);
     }},
};

TEST_P(BinaryKernel, AnUnusualElementChangesNoOther) {
  // Blocks have 512, 256 or fewer elements, turns 64, the last block of 1,200 is short.
  for (const xent_dtype dtype : {XENT_F32, XENT_BF16}) {
    for (const auto &[rows, cols] : {std::pair<int64_t, int64_t>{1, 1200}, {1200, 1}, {24, 50}}) {
      for (Named &named : LaneCalls(dtype, rows, cols)) {
        Binary usual = named.call;
        usual.MustRun(Pass::kForwardBackward);
        for (const Unusual &unusual : kUnusual) {
          for (const int64_t place : {0, 17, 63, 64, 255, 256, 511, 640, 1199}) {
            Binary call = named.call;
            unusual.spoil(call, place / cols, place % cols);
            call.MustRun(Pass::kForwardBackward);
            for (int64_t k = 0; k < rows * cols; ++k) {
              if (k == place) continue;
              for (const auto member : {&Binary::element_losses, &Binary::grad, &Binary::target_grad}) {
                ASSERT_EQ(call.GetBits(call.*member, k / cols, k % cols),
                          usual.GetBits(usual.*member, k / cols, k % cols))
                    << named.name << ", " << unusual.name << " at " << place << " of " << rows << "x" << cols
                    << " changed " << k;
              }
            }
          }
        }
      }
    }
  }
}

TEST_P(BinaryKernel, AnElementHasTheSameBitsAnywhere) {
  // Elements 0 to 15 of a call, unusual ones among them, come again from any place on, and as a call of their own.
  constexpr int64_t kPeriod = 16;
  for (const int64_t cols : {16, 1024}) {
    for (Named &named : LaneCalls(XENT_F32, 1040 / cols + 1, cols)) {
      Binary &call = named.call;
      const int64_t count = call.rows * cols;
      for (int64_t k = 0; k < count; ++k) {
        const int64_t from = k % kPeriod;
        const auto copy = [&](Matrix &m) { call.Set(m, k / cols, k % cols, call.Get(m, from / cols, from % cols)); };
        if (k == 3) kUnusual[1].spoil(call, 0, 3);
        if (k == 7) kUnusual[3].spoil(call, 0, 7);
        copy(call.x);
        copy(call.y);
        if (call.element_weights) copy(*call.element_weights);
        if (call.upstream) copy(*call.upstream);
        if (call.pos_weight) call.pos_weight->Set(0, k % cols, call.pos_weight->Get(0, from));
        if (call.class_weights) call.class_weights->Set(0, k % cols, call.class_weights->Get(0, from));
        if (call.row_weights) call.row_weights->Set(0, k / cols, call.row_weights->Get(0, 0));
      }
      call.MustRun(Pass::kForwardBackward);
      for (int64_t k = 0; k < count; ++k) {
        const int64_t from = k % kPeriod;
        for (const auto member : {&Binary::element_losses, &Binary::grad, &Binary::target_grad}) {
          ASSERT_EQ(call.GetBits(call.*member, k / cols, k % cols),
                    call.GetBits(call.*member, from / cols, from % cols))
              << named.name << ", element " << k << " of " << count << " in rows of " << cols;
        }
      }
    }
  }
}

TEST_P(BinaryKernel, LossesDoNotDependOnTheUpstreamGradient) {
  for (Named &named : LaneCalls(XENT_F32, 7, 171)) {
    Binary forward = named.call;
    forward.MustRun(Pass::kForward);
    for (const double upstream : {0.0, 3.0, 0x1p-120, 0x1p120, kInfinity}) {
      Binary call = named.call;
      call.upstream_kind = XENT_UPSTREAM_SCALAR;
      call.upstream = call.Vector({upstream});
      call.MustRun(Pass::kForwardBackward);
      EXPECT_EQ(FirstDifference(forward.element_losses, call.element_losses), "") << named.name << ", " << upstream;
      EXPECT_EQ(FirstDifference(forward.reduced_loss, call.reduced_loss), "") << named.name << ", " << upstream;
    }
  }
}

TEST_P(BinaryKernel, FactorsAtTheBordersOfTheirRange) {
  // Weights from 2^-16 to 2^10 and what the gradients' factor may be: at the border, within and just past it.
  for (const double weight : {0x1p-17, 0x1p-16, -0x1p-16, 0x1.8p9, 0x1p10, -0x1p10, 0x1.000002p10}) {
    for (const double upstream : {0x1p-31, 0x1p-30, 0x1p-20, 0x1p6, 0x1.8p6, 0x1p26, 0x1p36, 0x1p41}) {
      for (const double gamma : {0.0, 2.0, 0.75}) {
        Binary call(XENT_F32, XENT_F32, 8, 67);
        call.FillNormal(47, 40);
        call.options.focal_gamma = gamma;
        call.options.reduction.kind = XENT_REDUCTION_SUM;
        call.row_weights = call.Vector(std::vector<double>(8, weight));
        call.upstream_kind = XENT_UPSTREAM_SCALAR;
        call.upstream = call.Vector({upstream});
        Check(call);
        call.pos_weight = call.Vector(std::vector<double>(67, std::fabs(weight)));
        call.class_weights = call.pos_weight;
        Check(call);
      }
    }
  }
}

class BinaryHashes : public TargetTest {};
XENT_INSTANTIATE_TARGETS(BinaryHashes);

TEST_P(BinaryHashes, AreReproducedByAnyNumberOfThreads) {
  std::vector<Named> calls = HashedCalls();
  ExpectGolden(GetParam(), "binary", "dtype/inner/kind losses loss grad target_grad", [&](const xent_exec &exec) {
    std::vector<std::string> lines;
    for (Named &named : calls) lines.push_back(LineOf(named, exec));
    return lines;
  });
}

}  // namespace
}  // namespace xent::test
