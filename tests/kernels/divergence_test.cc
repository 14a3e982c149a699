// Divergences on every target: within the bounds of semantics.md of the oracle, counted at the sum of the terms'
// magnitudes (loss) and the larger of a column's terms (gradient); and the bits that golden_hashes.txt holds on
// every target with fused multiply-add, by any number of threads, whatever strides and neighbours the rows have.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "testing/divergence_call.h"
#include "testing/golden.h"
#include "testing/hash.h"
#include "testing/target.h"

namespace xent::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Worst errors over the whole run, printed with the rest of a verbose run.
void Print(const std::string &what, const WorstByOutput &worst) {
  if (std::getenv("XENT_VERBOSE") == nullptr) return;
  for (const auto &[output, w] : worst)
    std::printf("  %s: %s %.3f ULP: %s\n", what.c_str(), output.c_str(), w.ulp, w.where.c_str());
}

void Collect(const WorstByOutput &from, WorstByOutput *into) {
  for (const auto &[output, w] : from) {
    if (w.ulp > (*into)[output].ulp) (*into)[output] = w;
  }
}

class DivergenceAccuracy : public TargetTest {
 protected:
  void Check(DivergenceCall &call) {
    call.MustRun(true);
    Collect(call.Judge(), &worst_);
    const DivergenceCall forward_backward = call;
    call.MustRun(false);
    EXPECT_EQ(FirstDifference(forward_backward, call, false), "") << "forward and forward_backward";
  }
  // Each kind, Jensen-Shannon with several betas.
  void CheckKinds(DivergenceCall &call) {
    for (const xent_divergence_kind kind : kDivergenceKinds) {
      call.options.kind = kind;
      if (kind != XENT_DIVERGENCE_JENSEN_SHANNON) {
        call.options.beta = 0.5;
        Check(call);
        continue;
      }
      for (const double beta : {0.5, 0.1, 0.9, 1e-6}) {
        call.options.beta = beta;
        Check(call);
      }
      call.options.beta = 0.5;
    }
  }
  void TearDown() override {
    for (const auto &[output, worst] : worst_) {
      EXPECT_LE(worst.ulp, DivergenceCall::BoundOf(output)) << output << ": " << worst.where;
    }
    Print(GetParam(), worst_);
    TargetTest::TearDown();
  }

 private:
  WorstByOutput worst_;
};
XENT_INSTANTIATE_TARGETS(DivergenceAccuracy);

TEST_P(DivergenceAccuracy, NormalRowsOfAllTypes) {
  for (const xent_dtype student : kDtypes) {
    for (const xent_dtype teacher : kDtypes) {
      for (const int64_t inner : {0, 3, 40}) {
        DivergenceCall call(student, teacher, inner == 0 ? 5 : 2 * inner, inner == 0 ? 201 : 17, inner, 2);
        call.FillNormal(static_cast<uint64_t>(SeedOf(student) * 10 + SeedOf(teacher)), 4);
        CheckKinds(call);
        call.options.temperature = 3;
        CheckKinds(call);
      }
    }
  }
}

TEST_P(DivergenceAccuracy, EveryShortLengthAndThoseAroundBorders) {
  std::vector<int64_t> lengths = {63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 2049, 16385, 33000};
  for (int64_t cols = 1; cols <= 36; ++cols) lengths.push_back(cols);
  for (const xent_dtype dtype : {XENT_F32, XENT_F64, XENT_BF16}) {
    for (const int64_t cols : lengths) {
      DivergenceCall call(dtype, dtype, cols > 1000 ? 2 : 5, cols);
      call.FillNormal(static_cast<uint64_t>(cols), 3);
      // The maximum, and the teacher's elsewhere, go through all places.
      call.student.Set(0, cols - 1, 20);
      call.teacher.Set(0, cols / 2, 18);
      CheckKinds(call);
    }
  }
}

TEST_P(DivergenceAccuracy, Temperatures) {
  for (const xent_dtype dtype : kDtypes) {
    for (const double temperature : {1e-3, 0.3, 0.7, 1.0 / 3, 10.0, 1e3, 1e30, 1e300}) {
      DivergenceCall call(dtype, dtype, 4, 133);
      call.FillNormal(7, 5);
      call.options.temperature = temperature;
      CheckKinds(call);
    }
  }
}

TEST_P(DivergenceAccuracy, ConfidentRows) {
  // p and q are 1 but for 1e-9 to 1e-35: in the same column, in different ones, of one or of both.
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t inner : {0, 5}) {
      DivergenceCall call(dtype, dtype, 60, 50, inner);
      call.FillNormal(3, 1);
      for (int64_t i = 0; i < 60; ++i) {
        const double margin = 20 + 5.0 * static_cast<double>(i / 4);
        if (i % 4 != 1) call.student.Set(i, i % 50, margin);
        if (i % 4 != 2) call.teacher.Set(i, i % 4 == 3 ? (i + 7) % 50 : i % 50, margin + static_cast<double>(i % 3));
      }
      CheckKinds(call);
    }
  }
}

TEST_P(DivergenceAccuracy, RowsThatNearlyAgree) {
  for (const xent_dtype dtype : kDtypes) {
    for (const double difference : {0x1p-4, 0x1p-9, 0x1p-20, 0x1p-40}) {
      DivergenceCall call(dtype, dtype, 3, 700);
      Random random(5);
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t j = 0; j < 700; ++j) {
          const double z = random.Normal(4);
          call.student.Set(i, j, z + difference * random.Normal(1));
          call.teacher.Set(i, j, z);
        }
      }
      CheckKinds(call);
      for (int64_t i = 0; i < 3; ++i) EXPECT_GE(call.row_losses.Get(0, i), 0);
    }
  }
}

TEST_P(DivergenceAccuracy, LargeLogitsTiesMasksAndFarTails) {
  for (const xent_dtype dtype : {XENT_F32, XENT_F64}) {
    for (const int64_t inner : {0, 4}) {
      DivergenceCall call(dtype, dtype, 12, 140, inner);
      Random random(11);
      for (int64_t i = 0; i < 12; ++i) {
        for (int64_t j = 0; j < 140; ++j) {
          double s = random.Normal(4), u = random.Normal(4);
          if (i == 1) s += 1e4, u -= 1e4;
          if (i == 2) s = random.Normal(1e38), u = random.Normal(3);
          if (i == 3) s = random.Normal(3), u = random.Normal(1e38);
          if (i == 4) s = u = 2;
          if (i == 5) s = static_cast<double>(j % 2), u = static_cast<double>(j % 3);
          if (i == 6 && j % 3 == 0) s = u = -kInfinity;
          if (i == 7) u = j % 3 == 0 ? -kInfinity : u;
          if (i == 8) s = j % 3 == 0 ? -kInfinity : s;
          if (i == 9) s *= 200, u *= 200;
          if (i == 10) s *= 60, u *= 60;
          if (i == 11) s *= 3000;
          call.student.Set(i, j, s);
          call.teacher.Set(i, j, u);
        }
      }
      CheckKinds(call);
    }
  }
}

// Rows that are computed over their columns, several chunks of them, and rows side by side of more columns than a block
// has. Each kind of row is hard in its own way.
TEST_P(DivergenceAccuracy, HardRowsOfAllLengths) {
  for (const xent_dtype dtype : {XENT_F32, XENT_F16}) {
    for (const int64_t cols : {7, 70, 300, 3000}) {
      for (const int64_t inner : {0, 9}) {
        if (inner != 0 && cols > 300) continue;
        DivergenceCall call(dtype, dtype, 9, cols, inner);
        Random random(static_cast<uint64_t>(cols));
        for (int64_t i = 0; i < 9; ++i) {
          for (int64_t j = 0; j < cols; ++j) {
            const double along = static_cast<double>(j) / static_cast<double>(cols);
            double s = random.Normal(2), u = random.Normal(2);
            if (i == 1) s += 30 * along, u -= 30 * along;  // the maxima rise in later chunks, and fall
            if (i == 2 && j == cols - 1) s = u = 40;
            if (i == 3) s += j == 0 ? 60 : 0, u += j == cols - 1 ? 60 : 0;
            if (i == 4) s += 1e4, u -= 3e4;
            if (i == 5) s = u = static_cast<double>(j % 2);  // ties
            if (i == 6 && j % 3 == 1) s = u = -kInfinity;
            if (i == 7 && j % 4 == 1) u = -kInfinity, s = j % 8 == 1 ? -60000 : s;
            if (i == 8) s = j == cols / 2 ? 120 : 0, u = j == cols / 2 ? 130 : 0;
            call.student.Set(i, j, s);
            call.teacher.Set(i, j, u);
          }
        }
        for (const double temperature : {1.0, 0.25, 7.0}) {
          call.options.temperature = temperature;
          CheckKinds(call);
        }
      }
    }
  }
}

TEST_P(DivergenceAccuracy, RowsThatAgreeGiveExactlyZero) {
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t cols : {1, 10, 65, 300, 2500}) {
      for (const int64_t inner : {0, 4}) {
        DivergenceCall call(dtype, dtype, 4, cols, inner);
        Random random(9);
        for (int64_t i = 0; i < 4; ++i) {
          for (int64_t j = 0; j < cols; ++j) {
            const double z = i == 3 && j > 0 && random.Below(3) == 0 ? -kInfinity : random.Normal(i == 2 ? 40 : 3);
            call.student.Set(i, j, z);
            call.teacher.Set(i, j, z);
          }
        }
        for (const xent_divergence_kind kind : kDivergenceKinds) {
          if (kind == XENT_DIVERGENCE_CROSS_ENTROPY) continue;
          call.options.kind = kind;
          call.options.temperature = 1.7;
          call.MustRun(true);
          for (int64_t i = 0; i < 4; ++i) {
            EXPECT_EQ(call.row_losses.GetBits(0, i), 0u) << kDivergenceNames[kind] << " " << cols << " row " << i;
            for (int64_t j = 0; j < cols; ++j) {
              ASSERT_EQ(call.grad.GetBits(i, j), 0u) << kDivergenceNames[kind] << " " << cols << " row " << i;
            }
          }
        }
      }
    }
  }
}

TEST_P(DivergenceAccuracy, WeightsAndUpstreamGradients) {
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t inner : {0, 2}) {
      DivergenceCall call(dtype, dtype, 6, 33, inner);
      call.FillNormal(2, 3);
      call.row_weights = call.Vector({1, 0.3, -2, 0, 7, 1e-3});
      call.upstream = call.Vector({0.1, -3, 0.7, 5, 1e3, 1});
      call.upstream_kind = XENT_UPSTREAM_ROWS;
      for (const xent_reduction_kind reduction : {XENT_REDUCTION_NONE, XENT_REDUCTION_SUM, XENT_REDUCTION_MEAN}) {
        call.options.reduction.kind = reduction;
        CheckKinds(call);
      }
      call.options.reduction.divisor = 17.5;
      CheckKinds(call);
    }
  }
}

// ---- the same bits ----

class DivergenceBits : public TargetTest {};
XENT_INSTANTIATE_TARGETS(DivergenceBits);

DivergenceCall MixedCall(xent_dtype student, xent_dtype teacher, int64_t rows, int64_t cols, int64_t inner,
                         xent_divergence_kind kind, int64_t padding = 0, int64_t misalign = 0) {
  DivergenceCall call(student, teacher, rows, cols, inner, padding, misalign);
  Random random(static_cast<uint64_t>(rows * 1009 + cols));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      double s = random.Normal(4), u = random.Normal(4);
      const bool masked = random.Below(10) < 2;
      if (i % 7 == 1 && masked) s = u = -kInfinity;
      if (i % 7 == 2) s = u;
      if (i % 7 == 3 && j == cols / 2) s += 200;
      if (i % 7 == 4 && j == cols / 3) u = std::numeric_limits<double>::quiet_NaN();
      if (i % 7 == 5) s *= 100;
      if (i % 7 == 6 && masked) s = -kInfinity;
      call.student.Set(i, j, s);
      call.teacher.Set(i, j, u);
    }
  }
  call.options.kind = kind;
  if (kind == XENT_DIVERGENCE_JENSEN_SHANNON) call.options.beta = 0.3;
  call.options.temperature = 1.7;
  return call;
}

TEST_P(DivergenceBits, StridesMisalignmentNeighboursAndThreadsChangeNone) {
  for (const xent_dtype dtype : {XENT_F32, XENT_F64, XENT_F16}) {
    for (const xent_divergence_kind kind : kDivergenceKinds) {
      for (const int64_t inner : {0, 3, 50}) {
        DivergenceCall plain = MixedCall(dtype, kDtypes[kind], 150, 45, inner, kind);
        plain.MustRun(true);
        DivergenceCall strided = MixedCall(dtype, kDtypes[kind], 150, 45, inner, kind, 5, 3);
        strided.MustRun(true);
        EXPECT_EQ(FirstDifference(plain, strided, true), "");
        DivergenceCall in_place = plain;
        in_place.in_place = true;
        in_place.MustRun(true);
        EXPECT_EQ(FirstDifference(plain, in_place, true), "") << "in place";
        for (const int32_t threads : {2, 3, 8}) {
          strided.exec = TeamOf(threads);
          strided.MustRun(true);
          EXPECT_EQ(FirstDifference(plain, strided, true), "") << threads << " threads";
        }
      }
      // A row alone.
      DivergenceCall batch = MixedCall(dtype, dtype, 7, 300, 0, kind);
      batch.options.reduction.kind = XENT_REDUCTION_NONE;
      batch.MustRun(true);
      for (int64_t i = 0; i < 7; ++i) {
        DivergenceCall alone(dtype, dtype, 1, 300);
        for (int64_t j = 0; j < 300; ++j) {
          alone.student.Set(0, j, batch.student.Get(i, j));
          alone.teacher.Set(0, j, batch.teacher.Get(i, j));
        }
        alone.options = batch.options;
        alone.MustRun(true);
        EXPECT_EQ(alone.row_losses.GetBits(0, 0), batch.row_losses.GetBits(0, i));
        for (int64_t j = 0; j < 300; ++j) EXPECT_EQ(alone.grad.GetBits(0, j), batch.grad.GetBits(i, j));
      }
      // Fewer rows than threads: chunks inside rows.
      DivergenceCall few = MixedCall(dtype, dtype, 6, 40000, 0, kind);
      few.MustRun(true);
      DivergenceCall split = few;
      for (const int32_t threads : {7, 16}) {
        split.exec = TeamOf(threads);
        split.MustRun(true);
        EXPECT_EQ(FirstDifference(few, split, true), "") << threads << " threads, rows split";
      }
    }
  }
}

// Whatever stands beside it, and wherever in a tile it does, a row has the bits that it has alone; NaN, +inf and what
// goes to the double lanes are among the neighbours.
TEST_P(DivergenceBits, NoRowTouchesAnother) {
  constexpr int64_t kRows = 35;
  for (const xent_dtype dtype : {XENT_F32, XENT_BF16}) {
    for (const int64_t cols : {2, 9, 64, 77, 200}) {
      for (const xent_divergence_kind kind : kDivergenceKinds) {
        DivergenceCall call(dtype, XENT_F32, kRows, cols);
        Random random(static_cast<uint64_t>(cols));
        for (int64_t i = 0; i < kRows; ++i) {
          const int64_t bad = random.Below(cols);
          for (int64_t j = 0; j < cols; ++j) {
            double s = random.Normal(3), u = random.Normal(3);
            if (i % 11 == 2 && j == bad) s = std::numeric_limits<double>::quiet_NaN();
            if (i % 11 == 4 && j == bad) u = kInfinity;
            if (i % 11 == 5) s = -kInfinity;
            if (i % 11 == 7) u *= 1e7;
            if (i % 11 == 8 && j == bad) s = -kInfinity;
            if (i % 11 == 9) s = j == bad ? 3e38 : -3e38;
            call.student.Set(i, j, s);
            call.teacher.Set(i, j, u);
          }
        }
        call.options.kind = kind;
        call.options.reduction.kind = XENT_REDUCTION_NONE;
        std::vector<double> upstream(kRows, 1.0), weights(kRows, 1.0);
        upstream[3] = 1e38, weights[6] = -2.0, weights[10] = 0.0, upstream[11] = kInfinity;
        call.upstream = call.Vector(upstream);
        call.row_weights = call.Vector(weights);
        call.upstream_kind = XENT_UPSTREAM_ROWS;
        call.MustRun(true);
        for (int64_t i = 0; i < kRows; ++i) {
          DivergenceCall alone(dtype, XENT_F32, 1, cols, 0, 3, 1);
          for (int64_t j = 0; j < cols; ++j) {
            alone.student.Set(0, j, call.student.Get(i, j));
            alone.teacher.Set(0, j, call.teacher.Get(i, j));
          }
          const auto at = static_cast<size_t>(i);
          alone.options = call.options;
          alone.upstream = call.Vector({upstream[at]});
          alone.row_weights = call.Vector({weights[at]});
          alone.upstream_kind = XENT_UPSTREAM_ROWS;
          alone.MustRun(true);
          const std::string what = std::string(kDivergenceNames[kind]) + " row " + std::to_string(i);
          EXPECT_EQ(alone.row_losses.GetBits(0, 0), call.row_losses.GetBits(0, i)) << what;
          for (int64_t j = 0; j < cols; ++j) {
            ASSERT_EQ(alone.grad.GetBits(0, j), call.grad.GetBits(i, j)) << what << " column " << j;
          }
        }
      }
    }
  }
}

struct Named {
  std::string name;
  DivergenceCall call;
};

std::vector<Named> HashedCalls() {
  std::vector<Named> calls;
  for (const xent_dtype student : kDtypes) {
    for (const int64_t inner : {0, 3, 40}) {
      for (const xent_divergence_kind kind : kDivergenceKinds) {
        const xent_dtype teacher = kDtypes[(SeedOf(student) + inner + kind) % 4];
        calls.push_back(
            {std::string(reference::NameOf(student)) + "/" + std::to_string(inner) + "/" + kDivergenceNames[kind],
             MixedCall(student, teacher, 120, 131, inner, kind)});
        if (inner == 0) {
          calls.push_back({std::string(reference::NameOf(student)) + "/long/" + kDivergenceNames[kind],
                           MixedCall(student, teacher, 3, 17000, inner, kind)});
        }
      }
    }
  }
  return calls;
}

std::string LineOf(Named &named, const xent_exec &exec) {
  named.call.exec = exec;
  named.call.MustRun(true);
  return named.name + " " + Hash(named.call.row_losses).Text() + " " + Hash(named.call.grad.matrix()).Text();
}

class DivergenceHashes : public TargetTest {};
XENT_INSTANTIATE_TARGETS(DivergenceHashes);

TEST_P(DivergenceHashes, AreReproducedByAnyNumberOfThreads) {
  std::vector<Named> calls = HashedCalls();
  ExpectGolden(GetParam(), "divergence", "student_dtype/inner/kind losses grad", [&](const xent_exec &exec) {
    std::vector<std::string> lines;
    for (Named &named : calls) lines.push_back(LineOf(named, exec));
    return lines;
  });
}

}  // namespace
}  // namespace xent::test
