// The order statistics agree with a stable sort. The oracle is std::stable_sort of the columns by descending logit as
// stored, which keeps the lower index first among equals: top k is its beginning, argmax its first column, rank the
// target's place. Indices must be equal; there is nothing to tolerate. Numbers that belong to a column (gathered, top-k
// and target log-probabilities) must have equal bits wherever they are reported, and follow the logits' order.
// Rows are drawn from few values, so that ties abound, with -inf and NaN among them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

size_t Size(int64_t n) { return static_cast<size_t>(n); }

struct Layout {
  int64_t inner, padding, misalign;
};
constexpr Layout kLayouts[] = {{0, 0, 0}, {0, 5, 3}, {3, 0, 1}, {33, 2, 0}};

enum RowKind { kFewValues, kMasked, kFewFinite, kAllMasked, kNanRow, kInfiniteRow, kDistinct, kAllEqual, kRowKinds };

// -0 and +0 are equal, and so are tied.
double ValueOf(RowKind kind, int64_t c, int64_t cols, int64_t special, Random &random) {
  constexpr double kValues[] = {-2, -0.0, 0.0, 1.5, 3};
  const double z = kValues[random.Below(5)];
  switch (kind) {
    case kMasked:
      return random.Below(2) == 0 ? -kInf : z;
    case kFewFinite:  // fewer than k, mostly
      return c == special || c == (special * 7 + 3) % cols ? z : -kInf;
    case kAllMasked:
      return -kInf;
    case kNanRow:
      return c == special ? kNan : z;
    case kInfiniteRow:
      return c == special ? kInf : z;
    case kDistinct:
      return random.Normal(16);
    case kAllEqual:
      return 1.5;
    default:
      return z;
  }
}

LossCall MakeCall(xent_dtype dtype, int64_t rows, int64_t cols, const Layout &layout, Random &random) {
  if (layout.inner > 1) rows = (rows + layout.inner - 1) / layout.inner * layout.inner;
  LossCall call(dtype, rows, cols, layout.inner, layout.padding, layout.misalign);
  const int64_t valid = random.Below(3) == 0 ? 1 + random.Below(cols) : cols;
  if (valid != cols) call.options.valid_cols = valid;
  for (int64_t i = 0; i < rows; ++i) {
    const RowKind kind = static_cast<RowKind>(random.Below(3) == 0 ? random.Below(kRowKinds) : random.Below(3));
    const int64_t special = random.Below(valid);
    // What lies past the valid columns would win, or spoil the row.
    for (int64_t c = 0; c < cols; ++c) {
      call.logits.Set(i, c, c < valid ? ValueOf(kind, c, valid, special, random) : c % 2 == 0 ? 100 : kNan);
    }
    call.targets[Size(i)] = random.Below(8) == 0 ? -100 : random.Below(valid);
  }
  call.of_ignored = random.Below(2) == 0 ? 1 : 0;
  call.options.reduction.kind = XENT_REDUCTION_SUM;
  switch (random.Below(4)) {
    case 0:
      call.options.softcap = 30;
      break;
    case 1:
      call.options.logit_scale = 0.7;
      break;
    case 2:  // a cap that makes many transformed logits equal
      call.options.logit_scale = 3;
      call.options.softcap = 0.25;
      break;
    default:
      break;
  }
  call.wants_argmax = call.wants_rank = call.wants_logprobs = call.wants_entropy = true;
  call.top_k = random.Below(3) == 0 ? std::min<int64_t>(valid, 64) : 1 + random.Below(std::min<int64_t>(valid, 64));
  // Some columns twice, masked ones among them.
  call.gather_count = 5;
  call.gather_cols.clear();
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t c = random.Below(valid);
    call.gather_cols.insert(call.gather_cols.end(),
                            {c, random.Below(valid), c, valid - 1, std::max<int64_t>(0, call.targets[Size(i)])});
  }
  return call;
}

// What the row's statistics should be.
struct Sorted {
  Sorted(const LossCall &call, int64_t row) {
    const int64_t valid = call.options.valid_cols == 0 ? call.cols : call.options.valid_cols;
    for (int64_t c = 0; c < valid; ++c) logits.push_back(call.logits.Get(row, c));
    is_ignored = call.targets[Size(row)] == call.options.ignore_index;
    is_read = !is_ignored || call.of_ignored != 0;
    bool has_finite = false;
    for (const double z : logits) {
      is_nan = is_nan || std::isnan(z) || z == kInf;
      has_finite = has_finite || z > -kInf;
    }
    is_nan = is_nan || !has_finite;
    if (is_nan || !is_read) return;
    order.resize(logits.size());
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return logits[Size(a)] > logits[Size(b)]; });
  }
  int64_t At(int64_t place) const { return order.empty() ? -1 : order[Size(place)]; }
  int64_t PlaceOf(int64_t column) const {
    if (order.empty()) return -1;
    return std::find(order.begin(), order.end(), column) - order.begin();
  }

  std::vector<double> logits;
  std::vector<int64_t> order;  // empty where there are no statistics
  bool is_nan = false, is_ignored, is_read;
};

class Statistics : public ::testing::TestWithParam<xent_dtype> {
 protected:
  // Bits of column `c`'s log-probability, wherever it was reported before in this row.
  struct Reported {
    int64_t column;
    uint64_t bits;
  };

  static void ExpectLogProbability(const Matrix &matrix, int64_t index, int64_t column, const Sorted &sorted,
                                   std::vector<Reported> &seen, const std::string &where) {
    const uint64_t bits = matrix.GetBits(0, index);
    const double got = matrix.Get(0, index);
    if (!sorted.is_read) {
      EXPECT_EQ(bits, 0u) << where << " of an ignored row";
    } else if (sorted.is_nan) {
      EXPECT_EQ(bits, reference::CanonicalNanBits(matrix.dtype())) << where << " of a row of NaN";
    } else if (sorted.logits[Size(column)] == -kInf) {
      EXPECT_EQ(got, -kInf) << where << " of a masked column";
    } else {
      EXPECT_TRUE(got <= 0 && got > -kInf) << where << ": " << got;
    }
    for (const Reported &other : seen) {
      if (other.column != column) continue;
      EXPECT_EQ(bits, other.bits) << where << ": column " << column << " reported twice";
    }
    seen.push_back({column, bits});
  }

  // The statistics that `call` holds; the logits are those of `inputs`, whatever became of the call's own.
  static void ExpectSorted(const LossCall &inputs, const LossCall &call, const std::string &name) {
    for (int64_t i = 0; i < call.rows && !HasFailure(); ++i) {
      const Sorted sorted(inputs, i);
      const std::string where = name + ", row " + std::to_string(i);
      const int64_t target = call.targets[Size(i)];
      EXPECT_EQ(call.argmax[Size(i)], sorted.At(0)) << where;
      EXPECT_EQ(call.hits[Size(i)], !sorted.is_ignored && !sorted.order.empty() && sorted.At(0) == target) << where;
      EXPECT_EQ(call.rank[Size(i)], sorted.is_ignored ? -1 : sorted.PlaceOf(target)) << where;
      std::vector<Reported> seen;
      for (int64_t k = 0; k < call.top_k; ++k) {
        const int64_t at = i * call.top_k + k;
        EXPECT_EQ(call.topk_indices[Size(at)], sorted.At(k)) << where << ", place " << k << " of " << call.top_k;
        ExpectLogProbability(call.topk_logprobs, at, sorted.order.empty() ? -1 : sorted.At(k), sorted, seen,
                             where + ", top " + std::to_string(k));
        if (k > 0 && !sorted.order.empty()) {
          EXPECT_LE(call.topk_logprobs.Get(0, at), call.topk_logprobs.Get(0, at - 1)) << where << ", place " << k;
        }
      }
      for (int64_t k = 0; k < call.gather_count; ++k) {
        const int64_t at = i * call.gather_count + k;
        ExpectLogProbability(call.gathered, at, call.gather_cols[Size(at)], sorted, seen,
                             where + ", gathered " + std::to_string(k));
      }
      if (!sorted.is_ignored && !sorted.order.empty()) {
        // The target's own comes from the loss, by another way: what it is worth is Judge's to say.
        const double logprob = call.logprobs.Get(0, i);
        EXPECT_EQ(logprob == -kInf, sorted.logits[Size(target)] == -kInf) << where;
      }
      const uint64_t entropy = call.entropy.GetBits(0, i);
      if (!sorted.is_read) {
        EXPECT_EQ(entropy, 0u) << where << ": entropy of an ignored row";
      } else if (sorted.is_nan) {
        EXPECT_EQ(entropy, reference::CanonicalNanBits(call.entropy.dtype())) << where << ": entropy of a row of NaN";
      } else {
        EXPECT_GE(call.entropy.Get(0, i), 0) << where;
      }
    }
  }

  // Runs the call in every way that has statistics.
  static void Check(LossCall &call, const std::string &name) {
    LossCall without = call;
    without.WantNoStatistic();
    ASSERT_EQ(without.ForwardBackward(), XENT_OK) << without.error.message;
    LossCall forward = call;
    ASSERT_EQ(forward.Forward(), XENT_OK) << forward.error.message;
    ExpectSorted(call, forward, name + ", forward");

    LossCall both = call;
    ASSERT_EQ(both.ForwardBackward(), XENT_OK) << both.error.message;
    EXPECT_EQ(both.StatisticsDifference(forward), "") << name << ", forward_backward";
    EXPECT_EQ(both.PaddingTrouble(), "") << name;
    LossCall in_place = call;
    in_place.in_place = true;
    in_place.exec = TeamOf(3);
    ASSERT_EQ(in_place.ForwardBackward(), XENT_OK) << in_place.error.message;
    EXPECT_EQ(in_place.StatisticsDifference(forward), "") << name << ", in place by three threads";

    // They change no bit of the rest. Only of_ignored gives ignored rows an lse, with or without statistics.
    for (const LossCall *with : {&both, &in_place}) {
      EXPECT_EQ(with->ForwardDifference(without), "") << name;
      EXPECT_EQ(with->GradientDifference(without), "") << name;
      EXPECT_TRUE(with->records == without.records) << name << ": records";
    }
    EXPECT_EQ(forward.ForwardDifference(without), "") << name << ", forward";
    EXPECT_TRUE(forward.records == without.records) << name << ": records of forward";
    LossCall bare = call;
    xent_cross_entropy args = bare.Args(Function::kForwardBackward);
    args.statistics = nullptr;
    ASSERT_EQ(xent_cross_entropy_forward_backward(&args, &bare.options, &bare.exec, &bare.error), XENT_OK)
        << bare.error.message;
    EXPECT_EQ(FirstDifference(bare.row_losses, without.row_losses), "") << name << ", no statistics at all";
    EXPECT_EQ(FirstDifference(bare.reduced_loss, without.reduced_loss), "") << name << ", no statistics at all";
    EXPECT_EQ(bare.GradientDifference(without), "") << name << ", no statistics at all";
    EXPECT_TRUE(bare.records == without.records) << name << ": records without statistics at all";
  }

  static std::string NameOfCall(const LossCall &call) {
    return std::string(reference::NameOf(call.dtype)) + " " + std::to_string(call.rows) + "x" +
           std::to_string(call.cols) + ", inner " + std::to_string(call.inner) + ", valid_cols " +
           std::to_string(call.options.valid_cols) + ", cap " + std::to_string(call.options.softcap) + ", scale " +
           std::to_string(call.options.logit_scale);
  }
};

TEST_P(Statistics, OfShortRowsAgreeWithAStableSort) {
  for (int64_t cols = 1; cols <= 70; ++cols) {
    for (const Layout &layout : kLayouts) {
      Random random(static_cast<uint64_t>(cols * 100 + layout.inner * 10 + layout.padding + GetParam() * 7919));
      for (int repeat = 0; repeat < 4; ++repeat) {
        LossCall call = MakeCall(GetParam(), 30, cols, layout, random);
        Check(call, NameOfCall(call));
        if (HasFailure()) return;
      }
    }
  }
}

// Across the borders of vectors, blocks and chunks.
TEST_P(Statistics, OfLongRowsAgreeWithAStableSort) {
  for (const int64_t cols : {127, 128, 129, 255, 256, 257, 1023, 1025, 2049, 16385, 20000}) {
    for (const Layout &layout : kLayouts) {
      Random random(static_cast<uint64_t>(cols * 100 + layout.inner * 10 + layout.padding + GetParam() * 7919));
      LossCall call = MakeCall(GetParam(), cols > 3000 ? 9 : 20, cols, layout, random);
      Check(call, NameOfCall(call));
      if (HasFailure()) return;
    }
  }
}

// A value at every place in turn: the maximum, and its equal before or after it.
TEST_P(Statistics, FindTheFirstOfTwoEqualMaximaAnywhere) {
  for (const int64_t cols : {2, 17, 70, 2049}) {
    const int64_t step = cols > 100 ? 61 : 1;
    for (const int64_t inner : {0, 3}) {
      std::vector<std::pair<int64_t, int64_t>> places;
      for (int64_t a = 0; a < cols; a += step) {
        for (const int64_t b : {a + 1, a + 16, a + 1024, cols - 1}) {
          if (b > a && b < cols) places.emplace_back(a, b);
        }
      }
      while (inner > 1 && places.size() % 3 != 0) places.push_back(places.back());
      LossCall call(GetParam(), static_cast<int64_t>(places.size()), cols, inner);
      for (int64_t i = 0; i < call.rows; ++i) {
        for (int64_t c = 0; c < cols; ++c) call.logits.Set(i, c, -static_cast<double>(c % 3));
        call.logits.Set(i, places[Size(i)].first, 2);
        call.logits.Set(i, places[Size(i)].second, 2);
        call.targets[Size(i)] = i % 2 == 0 ? places[Size(i)].first : places[Size(i)].second;
      }
      call.WantEveryStatistic();
      ASSERT_EQ(call.Forward(), XENT_OK) << call.error.message;
      for (int64_t i = 0; i < call.rows; ++i) {
        const std::string where = std::to_string(cols) + " columns, row " + std::to_string(i);
        EXPECT_EQ(call.argmax[Size(i)], places[Size(i)].first) << where;
        EXPECT_EQ(call.hits[Size(i)], i % 2 == 0) << where;
        EXPECT_EQ(call.rank[Size(i)], i % 2) << where;
        EXPECT_EQ(call.topk_indices[Size(i * call.top_k)], places[Size(i)].first) << where;
        EXPECT_EQ(call.topk_indices[Size(i * call.top_k + 1)], places[Size(i)].second) << where;
      }
    }
  }
}

// The log-probability of a column, and of its equals, has one set of bits wherever it stands.
TEST_P(Statistics, OfOneColumnAreTheSameEverywhere) {
  for (const int64_t cols : {2, 3, 10, 65, 300, 1025, 5000}) {
    for (const int options : {0, 1, 2, 3}) {
      for (const int64_t inner : {0, 4}) {
        LossCall call(GetParam(), cols > 500 ? 16 : 200, cols, inner);
        call.FillNormal(static_cast<uint64_t>(cols + options), 2);
        if (options == 1) call.options.logit_scale = 1.25;
        if (options == 2) call.options.softcap = 3;
        if (options == 3) call.options.z_loss = 0.5;
        call.wants_logprobs = true;
        call.top_k = std::min<int64_t>(cols, 7);
        call.gather_count = call.top_k + 2;
        call.gather_cols.clear();
        for (int64_t i = 0; i < call.rows; ++i) {
          if (i % 3 == 0)
            call.logits.Set(i, (call.targets[Size(i)] + 1) % cols, call.logits.Get(i, call.targets[Size(i)]));
          std::vector<int64_t> order(Size(cols));
          std::iota(order.begin(), order.end(), 0);
          std::stable_sort(order.begin(), order.end(),
                           [&](int64_t a, int64_t b) { return call.logits.Get(i, a) > call.logits.Get(i, b); });
          call.gather_cols.insert(call.gather_cols.end(), order.begin(), order.begin() + call.top_k);
          call.gather_cols.push_back(call.targets[Size(i)]);
          call.gather_cols.push_back((call.targets[Size(i)] + 1) % cols);
        }
        for (const bool in_place : {false, true}) {
          call.in_place = in_place;
          call.MustRun(Function::kForwardBackward);
          const std::string where = NameOfCall(call) + ", in place " + std::to_string(in_place);
          for (int64_t i = 0; i < call.rows; ++i) {
            for (int64_t k = 0; k < call.top_k; ++k) {
              const uint64_t bits = call.topk_logprobs.GetBits(0, i * call.top_k + k);
              ASSERT_EQ(call.gathered.GetBits(0, i * call.gather_count + k), bits)
                  << where << ", row " << i << ", place " << k;
              if (call.topk_indices[Size(i * call.top_k + k)] == call.targets[Size(i)]) {
                ASSERT_EQ(call.logprobs.GetBits(0, i), bits) << where << ", row " << i << ", place " << k;
              }
            }
            ASSERT_EQ(call.gathered.GetBits(0, i * call.gather_count + call.top_k), call.logprobs.GetBits(0, i))
                << where << ", row " << i;
            if (i % 3 == 0) {
              ASSERT_EQ(call.gathered.GetBits(0, i * call.gather_count + call.top_k + 1), call.logprobs.GetBits(0, i))
                  << where << ", row " << i;
            }
          }
          EXPECT_EQ(call.Judge(), "") << where;
        }
      }
    }
  }
}

// Neighbours in the stored type that the transformation makes equal are told apart all the same.
TEST_P(Statistics, OrderTheLogitsAsStored) {
  const double top = GetParam() == XENT_F64 ? 1 + 0x1p-52 : GetParam() == XENT_F32 ? 1 + 0x1p-23 : 1 + 0x1p-7;
  LossCall call(GetParam(), {{1, top, 1, top, -5}, {top, 1, 1, 1, 1}}, {2, 4});
  call.options.softcap = 1e-3;  // tanh of 1000 and of its neighbour are both 1
  call.WantEveryStatistic();
  ASSERT_EQ(call.Forward(), XENT_OK) << call.error.message;
  EXPECT_EQ(call.topk_indices, (std::vector<int64_t>{1, 3, 0, 0, 1, 2}));
  EXPECT_EQ(call.rank, (std::vector<int64_t>{3, 4}));
  EXPECT_EQ(call.topk_logprobs.GetBits(0, 0), call.topk_logprobs.GetBits(0, 2));
}

// The numbers, against the reference in long double.
TEST_P(Statistics, OfTiedRowsAreAccurate) {
  for (const Layout &layout : kLayouts) {
    Random random(static_cast<uint64_t>(layout.inner + 5 * GetParam()));
    LossCall call = MakeCall(GetParam(), 20, 50, layout, random);
    ASSERT_EQ(call.ForwardBackward(), XENT_OK) << call.error.message;
    EXPECT_EQ(call.Judge(), "") << NameOfCall(call);
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Statistics, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

}  // namespace
}  // namespace xent::test
