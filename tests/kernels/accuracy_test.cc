// Loss, lse, gradient, softmax and log_softmax of every target and dtype against the reference, within the bounds of
// semantics.md ("Accuracy"), on the inputs that show a failure where random rows hide it. Every problem also runs in
// all ways that must give the same bits (testing/check.h).
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "reference/rows.h"
#include "testing/bounds.h"
#include "testing/check.h"
#include "testing/data.h"
#include "testing/target.h"

namespace xent::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Shape {
  int64_t rows;
  int64_t cols;
};

class Accuracy : public TargetTest {};
XENT_INSTANTIATE_TARGETS(Accuracy);

// The forms of the loss that the options offer, so that each problem meets another one.
xent_cross_entropy_options Options(int64_t index) {
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  switch (index % 6) {
    case 1:
      options.reduction.kind = XENT_REDUCTION_SUM;
      options.label_smoothing = 0.1;
      break;
    case 2:
      options.label_smoothing = 0.1;
      options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
      break;
    case 3:
      options.reduction.kind = XENT_REDUCTION_SUM;
      break;
    case 4:
      options.reduction.divisor = 12.75;
      break;
    case 5:
      options.reduction.kind = XENT_REDUCTION_NONE;
      options.label_smoothing = 1;
      break;
    default:
      break;
  }
  return options;
}

// Runs the problem without smoothing, then with the options of `index`.
void Check(Problem problem, int64_t index = 0) {
  RunAndExpectAccurate(problem);
  if (index % 6 == 0) return;
  problem.options = Options(index);
  problem.name += " options " + std::to_string(index % 6);
  RunAndExpectAccurate(problem);
}

TEST_P(Accuracy, NineEqualLogitsAndOneLower) {
  for (const xent_dtype dtype : kDtypes) {
    for (int64_t odd = 0; odd < 10; ++odd) {
      Check(MakeProblem(
                "nine 0.15302414 and one -1.0866737 at " + std::to_string(odd), dtype, 10, 10,
                [&](int64_t, int64_t j) { return j == odd ? -1.0866737 : 0.15302414; }, [](int64_t i) { return i; }),
            odd);
    }
  }
}

TEST_P(Accuracy, AllEqualButTheTarget) {
  constexpr Shape kShapes[] = {{12, 32000}, {2, 300000}};
  for (const xent_dtype dtype : kDtypes) {
    for (const Shape &shape : kShapes) {
      const int64_t cols = shape.cols;
      const int64_t rows = dtype == XENT_F32 ? 2 * shape.rows : (shape.rows + 1) / 2;
      Random random(17 + static_cast<uint64_t>(cols));
      std::vector<double> level;
      std::vector<double> target_level;
      const double kAbove[] = {0, 1, -3, 5.5, 12, 20, 33, -0.125};
      for (int64_t i = 0; i < rows; ++i) {
        level.push_back((random.Uniform() - 0.5) * (i % 3 == 0 ? 2 : 40));
        target_level.push_back(level.back() + kAbove[i % 8]);
      }
      const auto target_of = [&](int64_t i) { return (i * 7919 + 3) % cols; };
      RunAndExpectAccurate(MakeProblem(
          "all equal but the target's, seed 17", dtype, rows, cols,
          [&](int64_t i, int64_t j) {
            return j == target_of(i) ? target_level[static_cast<size_t>(i)] : level[static_cast<size_t>(i)];
          },
          target_of));
    }
  }
}

TEST_P(Accuracy, AllEqualOverManyConstants) {
  // The same rows short, so that many constants fit: every phase of the argument reduction's fraction.
  for (const xent_dtype dtype : kDtypes) {
    const int64_t kRows = 400;
    const int64_t kCols = 257;
    Check(MakeProblem(
              "all equal, constants 37 i / 512 - 14", dtype, kRows, kCols,
              [&](int64_t i, int64_t j) { return static_cast<double>(37 * i) / 512 - 14 + (j == 200 ? 3 : 0); },
              [](int64_t) { return 200; }),
          1);
  }
}

TEST_P(Accuracy, ConfidentTargetAmongManyEqualOthers) {
  // A margin of 88 over 262143 others: the exact loss is 1.6e-33. float64 goes on to 700: 2.6e-299.
  const int64_t kCols = 262144;
  for (const xent_dtype dtype : kDtypes) {
    std::vector<double> margins = {88, 60};
    if (dtype == XENT_F64) margins = {88, 700};
    for (const double margin : margins) {
      const int64_t target = margin == 88 ? 131071 : kCols - 1;
      RunAndExpectAccurate(MakeProblem(
          "margin " + std::to_string(margin), dtype, 1, kCols,
          [&](int64_t, int64_t j) { return j == target ? margin - 40 : -40; }, [&](int64_t) { return target; }));
    }
  }
}

TEST_P(Accuracy, MarginsOverNormalRows) {
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t cols : {10, 1000, 50257}) {
      Random random(static_cast<uint64_t>(cols));
      const double kMargins[] = {20, 40, 80};
      const auto target_of = [&](int64_t i) { return (i * 31 + 5) % cols; };
      Check(MakeProblem(
                "normal rows, margins 20 40 80, seed " + std::to_string(cols), dtype, 3, cols,
                [&](int64_t i, int64_t j) { return random.Normal(1) + (j == target_of(i) ? kMargins[i % 3] : 0); },
                target_of),
            cols);
    }
  }
}

TEST_P(Accuracy, RowsAroundTenThousand) {
  for (const xent_dtype dtype : kDtypes) {
    for (const double center : {1e4, -1e4, 6e4, 1e6}) {
      Random random(4);
      Check(MakeProblem(
                "normal rows around " + std::to_string(center) + ", seed 4", dtype, 6, 1500,
                [&](int64_t, int64_t) { return center + random.Normal(4); }, [](int64_t i) { return i * 250; }),
            static_cast<int64_t>(std::fabs(center) / 1e4));
    }
  }
}

TEST_P(Accuracy, NormalRows) {
  constexpr Shape kShapes[] = {{40, 1},    {3000, 2}, {1000, 3}, {2000, 10}, {64, 100},
                               {20, 1000}, {8, 2048}, {4, 5000}, {2, 32000}, {1, 128256}};
  int64_t index = 0;
  for (const xent_dtype dtype : kDtypes) {
    for (const Shape &shape : kShapes) {
      const int64_t rows = shape.rows;
      const int64_t cols = shape.cols;
      for (const double deviation : {2.0, 16.0}) {
        if (cols > 5000 && deviation > 2) continue;
        Random random(static_cast<uint64_t>(cols) * 5 + 1);
        Random targets(6);
        Problem problem = MakeProblem(
            "normal rows of deviation " + std::to_string(deviation), dtype, rows, cols,
            [&](int64_t, int64_t) { return random.Normal(deviation); }, [&](int64_t) { return targets.Below(cols); });
        ++index;
        // Exclusive smoothing needs a second class.
        Check(problem, cols == 1 && index % 6 == 2 ? 1 : index);
      }
    }
  }
}

TEST_P(Accuracy, AscendingAndDescendingRows) {
  for (const xent_dtype dtype : kDtypes) {
    for (const double step : {0.01, -0.01, 0.5, -0.5}) {
      const int64_t cols = 5003;
      Check(MakeProblem(
                "logits " + std::to_string(step) + " apart", dtype, 3, cols,
                [&](int64_t i, int64_t j) { return step * static_cast<double>(j) + static_cast<double>(i) / 7; },
                [&](int64_t i) { return i * (cols - 1) / 2; }),
            step > 0 ? 1 : 2);
    }
  }
}

TEST_P(Accuracy, FarTails) {
  // Exponents down to the smallest normal number and below, where results end as zero.
  for (const xent_dtype dtype : kDtypes) {
    const double depth = dtype == XENT_F64 ? 720 : 95;
    const int64_t cols = 2000;
    Check(MakeProblem(
        "tail down to -" + std::to_string(depth), dtype, 2, cols,
        [&](int64_t i, int64_t j) {
          return j == 1000 * i ? 3 : 3 - depth * static_cast<double>(j + 1) / static_cast<double>(cols);
        },
        [](int64_t i) { return i * 1000; }));
  }
}

TEST_P(Accuracy, MaskedColumns) {
  for (const xent_dtype dtype : kDtypes) {
    for (const double mask : {-kInfinity, -1e9, -3.4e38}) {
      for (const int64_t cols : {7, 130, 3000, 20000}) {
        Random random(99);
        const auto target_of = [&](int64_t i) { return (i * 1009) % cols; };
        Check(MakeProblem(
                  "30 % of the columns " + std::to_string(mask) + ", seed 99", dtype, 3, cols,
                  [&](int64_t i, int64_t j) {
                    const double z = random.Normal(2);
                    return random.Below(10) < 3 && j != target_of(i) ? mask : z;
                  },
                  target_of),
              cols);
      }
    }
  }
}

TEST_P(Accuracy, WholeBlocksMasked) {
  // Blocks and chunks without any live column, in front, in the middle and at the end; the target among the last live
  // ones.
  for (const xent_dtype dtype : kDtypes) {
    for (const double mask : {-kInfinity, -1e9, -3.4e38}) {
      const int64_t cols = 20000;
      const struct {
        int64_t begin;
        int64_t end;
      } kLive[] = {{0, 100}, {9000, 11000}, {19990, 20000}, {12345, 12346}};
      Random random(7);
      RunAndExpectAccurate(MakeProblem(
          "live columns in one stretch, the rest " + std::to_string(mask), dtype, 4, cols,
          [&](int64_t i, int64_t j) { return j >= kLive[i].begin && j < kLive[i].end ? random.Normal(2) : mask; },
          [&](int64_t i) { return kLive[i].end - 1; }));
    }
  }
}

TEST_P(Accuracy, TargetItselfMasked) {
  for (const xent_dtype dtype : kDtypes) {
    for (const double mask : {-kInfinity, -1e9, -3.4e38}) {
      for (const int64_t cols : {2, 33, 3000}) {
        Random random(8);
        Check(MakeProblem(
                  "target's logit " + std::to_string(mask), dtype, 3, cols,
                  [&](int64_t i, int64_t j) { return j == i % cols ? mask : random.Normal(2); },
                  [&](int64_t i) { return i % cols; }),
              cols);
      }
    }
  }
}

TEST_P(Accuracy, BeyondTwoToTheTwentieth) {
  // Chunks of both kinds in one row: around +-2^20 some lie beyond and some do not, and all of them count.
  for (const xent_dtype dtype : {XENT_F32, XENT_F64, XENT_BF16}) {
    for (const double sign : {1.0, -1.0}) {
      for (const int64_t cols : {5, 200, 4096, 20000}) {
        Random random(20);
        const int64_t chunk = xent_chunk_cols(cols);
        Check(MakeProblem(
                  "around " + std::to_string(sign) + " * 2^20, seed 20", dtype, 4, cols,
                  [&](int64_t i, int64_t j) {
                    const bool beyond = (j / chunk + i) % 2 == 0;
                    return sign * (0x1p20 + (beyond ? 2 : -2)) + static_cast<double>(random.Below(17) - 8) / 8;
                  },
                  [&](int64_t i) { return (i * 5557) % cols; }),
              cols);
      }
    }
    for (const double size : {0x1p20, 0x1p21, 0x1p24, 1e9, 3e38}) {
      const int64_t cols = 20000;
      Random random(21);
      RunAndExpectAccurate(MakeProblem(
          "normal rows with one logit of +-" + std::to_string(size), dtype, 6, cols,
          [&](int64_t i, int64_t j) {
            const double z = random.Normal(2);
            if (j == 777 + 3000 * i) return i % 2 == 0 ? size : -size;
            return z;
          },
          [&](int64_t i) { return i < 3 ? 777 + 3000 * i : 5; }));
      // Smoothing sums lse - z, which is log V however large the logits are.
      for (const int64_t columns : {2, 3, 3000}) {
        for (const int64_t option : {1, 2, 5}) {
          Check(MakeProblem(
                    "every logit +-" + std::to_string(size), dtype, 4, columns,
                    [&](int64_t i, int64_t j) { return i < 2 ? (i == 0 ? size : -size) : (j % 2 == 0 ? size : -size); },
                    [&](int64_t i) { return (i + 1) % columns; }),
                option);
        }
      }
    }
  }
}

TEST_P(Accuracy, TargetBeyondTheLimitAloneInItsRow) {
  // All others masked: under smoothing their gradient is -y, and the loss is infinite; without, both are 0.
  for (const xent_dtype dtype : {XENT_F32, XENT_F64, XENT_BF16}) {
    for (const double size : {0x1p20, 0x1p40, 3e38}) {
      for (const double sign : {1.0, -1.0}) {
        for (const int64_t cols : {1, 2, 3, 130, 5000}) {
          const auto target_of = [&](int64_t i) { return (i * 77) % cols; };
          for (const int64_t option : {1, 2, 5}) {
            if (cols == 1 && option == 2) continue;
            Check(MakeProblem(
                      "target " + std::to_string(sign * size) + " and more, the others -inf", dtype, 2, cols,
                      [&](int64_t i, int64_t j) { return j == target_of(i) ? sign * size * 1.0078125 : -kInfinity; },
                      target_of),
                  option);
          }
        }
      }
    }
  }
}

TEST_P(Accuracy, JustAboveTheSmallestNormalNumber) {
  // Results within a few binades of it, from both sides; for float64 also such that the upstream gradient brings back.
  for (const xent_dtype dtype : {XENT_F32, XENT_F64}) {
    const double border = dtype == XENT_F64 ? 708.3964 : 87.3365;
    for (const int64_t cols : {2, 3, 40}) {
      for (const double upstream : {1.0, -1900.0, 1e-3}) {
        Problem problem = MakeProblem(
            "margins around -log of the smallest normal number", dtype, 120, cols,
            [&](int64_t i, int64_t j) {
              const double margin = border - 4 + static_cast<double>(i % 60) / 10 + (j > 1 ? 10 : 0);
              return j == i / 60 ? 2 : 2 - margin;
            },
            [](int64_t) { return 0; });
        problem.SetUpstream({upstream}, XENT_UPSTREAM_SCALAR);
        problem.options.reduction.kind = XENT_REDUCTION_NONE;
        RunAndExpectAccurate(problem);
      }
    }
  }
}

TEST_P(Accuracy, BeyondTheLimitInLaterBlocksOfAChunk) {
  // Where exact exponents end (2^20 for float32 arithmetic, 2^40 for float64) a chunk is summed in another way; here
  // the logit that demands it comes after blocks that were done in the ordinary one, so that in place those have been
  // overwritten.
  const int64_t cols = 2 * 16 * 1024 + 9;
  const int64_t chunk = xent_chunk_cols(cols);
  const int64_t block = chunk / 3;
  for (const xent_dtype dtype : {XENT_F32, XENT_F64, XENT_BF16}) {
    const double limit = dtype == XENT_F64 ? 0x1p40 : 0x1p20;
    const double past = limit + (dtype == XENT_F64 ? 400 : 45);
    const double fine = dtype == XENT_F64 ? 0x1p-12 : 0x1p-4;
    const int64_t rows = 12;
    for (const int64_t first_chunk : {0, 5}) {
      Random random(61);
      const auto logit_of = [&](int64_t i, int64_t j) {
        const double noise = static_cast<double>(random.Below(160) - 80) * fine;
        const double z = random.Normal(2);
        if (j / chunk != first_chunk) return i % 2 == 0 ? limit - 6 + noise : z;
        const int64_t place = j % chunk;
        const int64_t part = place / block;
        switch (i) {
          case 0:  // near the limit, then one logit past it
            return place == 2 * block + 77 ? past : limit - 8 + noise;
          case 1:  // ordinary, raised, past
            return part == 0 ? z : part == 1 ? limit - 4 + noise : past + noise;
          case 2:  // all ranges below the limit, past in the last column
            return place == chunk - 1 ? past : limit - static_cast<double>(place % 1500) * fine * 7;
          case 3:  // rising through the negative limit
            return -past + static_cast<double>(part) * (past - limit + 20) / 2 + noise;
          case 4:  // masked, then past
            return part == 0 ? -kInfinity : part == 1 ? limit - 3 + noise : past + noise;
          case 5:  // one logit of the largest
            return place == 2 * block ? 3e38 : limit - 2 + noise;
          case 6:  // the most negative first
            return part == 0 ? -3e38 : part == 1 ? limit - 1 + noise : past + noise;
          case 7:  // ordinary to the end, then past
            return place >= chunk - 3 ? past : z;
          case 8:  // past first, ordinary after
            return part == 0 ? limit + noise : z;
          case 9:  // past by a factor
            return part == 2 ? 3 * limit : part == 1 ? limit - noise * noise : z;
          case 10:  // falling from the negative limit
            return -limit + 60 - static_cast<double>(part) * (past - limit) + noise;
          default:
            return limit + noise;
        }
      };
      for (const int64_t target_place : first_chunk == 0 ? std::vector<int64_t>{5, 2 * block + 78}
                                                         : std::vector<int64_t>{2 * block + 77, chunk - 1}) {
        Problem problem =
            MakeProblem("past the limit in block after block, target at " + std::to_string(target_place) +
                            " of chunk " + std::to_string(first_chunk) + ", seed 61",
                        dtype, rows, cols, logit_of, [&](int64_t) { return first_chunk * chunk + target_place; });
        problem.options.label_smoothing = target_place % 2 == 1 ? 0.1 : 0;
        RunAndExpectAccurate(problem);
      }
    }
  }
}

TEST_P(Accuracy, LogitsFarAboveTheFirstReference) {
  // The first reference comes from the target (or the first logits); these rows make it useless at every place.
  for (const xent_dtype dtype : kDtypes) {
    for (const double above : {50.0, 77.0, 100.0, 130.0, 200.0, 300.0, 600.0, 5000.0}) {
      const int64_t cols = 5000;
      const int64_t kPlaces[] = {1, 15, 16, 127, 128, 1023, 1024, 2047, 2048, 3000, 4095, 4096, 4992, 4999};
      const int64_t rows = static_cast<int64_t>(std::size(kPlaces));
      Random random(33);
      Check(MakeProblem(
                "one logit " + std::to_string(above) + " above all, seed 33", dtype, rows, cols,
                [&](int64_t i, int64_t j) { return random.Normal(2) + (j == kPlaces[i] ? above : 0); },
                [](int64_t) { return 0; }),
            above == 100 ? 1 : 0);
    }
    // Many logits rise at once: sums leave the accepted range, not only single exponentials.
    const int64_t cols = 20000;
    RunAndExpectAccurate(MakeProblem(
        "second half 80 to 600 above the first", dtype, 5, cols,
        [&](int64_t i, int64_t j) {
          const double kAbove[] = {80, 100, 140, 300, 600};
          return (j < cols / 2 ? 0 : kAbove[i]) + static_cast<double>(j % 13) / 16;
        },
        [](int64_t i) { return i; }));
  }
}

TEST_P(Accuracy, TargetFarBelowOrAbove) {
  // Far enough that the others' exponentials, or the target's, vanish: under smoothing their logits count all the same.
  for (const xent_dtype dtype : kDtypes) {
    int64_t option = 1;
    for (const double offset : {-60.0, -90.0, -140.0, -300.0, -2000.0, 60.0, 90.0, 140.0, 300.0, 900.0, 2000.0}) {
      for (const int64_t cols : {2, 3, 700}) {
        const auto target_of = [&](int64_t i) { return (300 * i) % cols; };
        for (int64_t k = 0; k < 2; ++k) {
          Random random(44);
          Check(
              MakeProblem(
                  "target's logit off by " + std::to_string(offset) + ", seed 44", dtype, 3, cols,
                  [&](int64_t i, int64_t j) { return random.Normal(2) + (j == target_of(i) ? offset : 0); }, target_of),
              option);
          option = option == 1 ? 2 : option == 2 ? 5 : 1;
        }
      }
    }
  }
}

TEST_P(Accuracy, UpstreamGradients) {
  // Factors from tiny to huge; a row may have its own. At 1e30 a p of 2^-196 still gives a normal number, and must;
  // below 2^-198 it may be lost (docs/numerics.md, "Exact exponents").
  for (const xent_dtype dtype : kDtypes) {
    int64_t index = 0;
    for (const double u : {1.0, -1.0, 0.0, 1e30, -3.5, 1e-30, 0x1p-126}) {
      const int64_t cols = 1200;
      Random random(55);
      Problem problem = MakeProblem(
          "upstream " + std::to_string(u), dtype, 4, cols,
          [&](int64_t, int64_t j) { return j % 5 == 0 ? -static_cast<double>(j) * 129 / 1200 : random.Normal(1); },
          [](int64_t i) { return i * 111; });
      problem.SetUpstream({u}, XENT_UPSTREAM_SCALAR);
      problem.options = Options(index++);
      RunAndExpectAccurate(problem);
      problem.SetUpstream({u, 1, -u, 0.25}, XENT_UPSTREAM_ROWS);
      RunAndExpectAccurate(problem);
    }
    // Upstream and divisor each beyond what their quotient is.
    // The last upstream gradient is subnormal, the quotient is not.
    const double subnormal = dtype == XENT_F64 ? 1e-310 : 1e-40;
    const double kPairs[][2] = {{1e30, 1e30}, {1e-30, 1e-25}, {1e38, 1e-3}, {1e-37, 1e3}, {subnormal, 1e8 * subnormal}};
    for (const auto &[u, divisor] : kPairs) {
      Random random(56);
      Problem problem = MakeProblem(
          "upstream " + std::to_string(u) + " over " + std::to_string(divisor), dtype, 3, 40,
          [&](int64_t, int64_t) { return random.Normal(16); }, [](int64_t i) { return i; });
      problem.SetUpstream({u}, XENT_UPSTREAM_SCALAR);
      problem.options.reduction.divisor = divisor;
      RunAndExpectAccurate(problem);
    }
  }
}

TEST_P(Accuracy, BackwardOfSoftmaxAndLogSoftmax) {
  // 4 ULP of the sum of the terms' magnitudes, on the stored outputs as given.
  for (const xent_dtype dtype : kDtypes) {
    for (const int64_t cols : {1, 2, 10, 33, 129, 1000, 5000, 50257}) {
      const int64_t rows = cols < 1000 ? 20 : 2;
      Random random(static_cast<uint64_t>(cols) + 70);
      Matrix x(dtype, rows, cols);
      Matrix g(dtype, rows, cols);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < cols; ++j) {
          x.SetInRange(i, j, random.Normal(i % 2 == 0 ? 2 : 16));
          g.Set(i, j, random.Normal(1));
        }
      }
      Matrix y(dtype, rows, cols);
      Matrix dx(dtype, rows, cols);
      const auto judge = [&](auto forward, auto backward, auto reference_of, const char *name) {
        ASSERT_EQ(forward(rows, cols, 0, View(x), View(y), nullptr, nullptr), XENT_OK);
        ASSERT_EQ(backward(rows, cols, 0, View(g), View(y), View(dx), nullptr, nullptr), XENT_OK);
        const std::vector<double> upstream = reference::DecodeRows(dtype, g.data(), rows, cols, cols);
        const std::vector<double> output = reference::DecodeRows(dtype, y.data(), rows, cols, cols);
        double worst = -1;
        std::string where;
        for (int64_t i = 0; i < rows; ++i) {
          const auto row = [&](const std::vector<double> &m) {
            return std::span(m).subspan(static_cast<size_t>(i * cols), static_cast<size_t>(cols));
          };
          const std::vector<reference::Value> want = reference_of(row(upstream), row(output));
          for (int64_t j = 0; j < cols; ++j) {
            const double ulp = reference::ErrorInUlp(dtype, dx.row(i), j, want[static_cast<size_t>(j)]);
            if (ulp <= worst) continue;
            worst = ulp;
            where = "[" + std::to_string(i) + "," + std::to_string(j) + "] got " + std::to_string(dx.Get(i, j)) +
                    " want " + std::to_string(want[static_cast<size_t>(j)].exact);
          }
        }
        EXPECT_LE(worst, kBackwardUlp) << name << " " << where << ", " << reference::NameOf(dtype) << ", " << rows
                                       << "x" << cols << ", seed " << cols + 70 << ", target " << GetParam();
        // In place of either input, and by the library's threads: the same bits.
        for (const bool over_output : {false, true}) {
          Matrix buffer = over_output ? y : g;
          ASSERT_EQ(backward(rows, cols, 0, View(over_output ? g : buffer), View(over_output ? buffer : y),
                             View(buffer), nullptr, nullptr),
                    XENT_OK);
          EXPECT_EQ(FirstDifference(dx, buffer), "") << name << " over its " << (over_output ? "output" : "upstream");
        }
      };
      judge(xent_softmax, xent_softmax_backward, reference::SoftmaxBackward, "softmax_backward");
      judge(xent_log_softmax, xent_log_softmax_backward, reference::LogSoftmaxBackward, "log_softmax_backward");
    }
  }
}

}  // namespace
}  // namespace xent::test
