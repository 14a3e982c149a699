// xent.hpp, vocabulary shards: the bits of the C functions called in the same order, which are those of the unsharded
// call since the cuts lie at chunks; and that sizes which do not agree are refused with nothing written.
#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "api/cpp_call.h"

namespace xent::test {
namespace {

constexpr int64_t kRows = 5;
constexpr int64_t kCols = 3000;
constexpr int64_t kFirst[] = {0, 1024, 2048, 3000};  // chunks of 1024 columns

template <class P>
class CppShards : public ::testing::Test {
 protected:
  using T = typename P::T;
  using Q = typename P::Q;
  using A = Arithmetic<T>;
  static constexpr xent_dtype kDtype = kDtypeOf<T>;
  static constexpr xent_dtype kArithmetic = kDtypeOf<A>;

  struct Result {
    Matrix row_losses{kArithmetic, 1, kRows}, lse = row_losses, logprobs = row_losses;
    Matrix reduced_loss{kArithmetic, 1, 1};
    Matrix grad{kDtype, kRows, kCols, kCols + 2};
    Matrix target_grad{kDtypeOf<Q>, kRows, kCols, kCols + 3};
    double perplexity = -77;
    int64_t live_rows = -77;
    std::vector<::xent::Record> records = std::vector<::xent::Record>(kRows);
    std::vector<::xent::ChunkRecord> lists[3];
    xent_statistics statistics = XENT_STATISTICS_INIT;  // as C passes it

    Snapshot Outputs(bool chunks) const {
      Snapshot out;
      out.Add("row_losses", row_losses);
      out.Add("lse", lse);
      out.Add("logprobs", logprobs);
      out.Add("reduced_loss", reduced_loss);
      out.Add("grad", grad);
      out.Add("target_grad", target_grad);
      out.Add("perplexity", std::span(&perplexity, 1));
      out.Add("live_rows", std::span(&live_rows, 1));
      for (const auto &list : lists) {
        if (chunks) out.Add("chunk records", std::span(list));
      }
      return out;
    }
  };

  // A slice of a matrix of the whole vocabulary.
  template <class E>
  static MatrixView<E> Slice(Matrix &matrix, int slice) {
    MatrixView<E> view = View<E>(matrix);
    view.data += kFirst[slice];
    view.cols = kFirst[slice + 1] - kFirst[slice];
    return view;
  }

  CrossEntropy<T, int64_t, Q> Args(int slice) {
    CrossEntropy<T, int64_t, Q> args = {.logits = Slice<T>(logits, slice), .class_weights = Span<A>(class_weights)};
    if (probabilities) {
      args.target_probs = Slice<Q>(probs, slice);
    } else {
      args.targets = targets;
    }
    return args;
  }
  static Shard ShardOf(int slice) { return {.total_cols = kCols, .first_col = kFirst[slice]}; }

  CrossEntropy<T, int64_t, Q> CombineArgs(Result &r) {
    return {.logits = {nullptr, kRows, kCols},
            .targets = probabilities ? std::span<const int64_t>() : std::span<const int64_t>(targets),
            .class_weights = Span<A>(class_weights),
            .row_weights = Span<A>(row_weights),
            .row_losses = Span<A>(r.row_losses),
            .reduced_loss = Scalar<A>(r.reduced_loss),
            .statistics = {.lse = Span<A>(r.lse),
                           .logprobs = probabilities ? std::span<A>() : Span<A>(r.logprobs),
                           .perplexity = &r.perplexity,
                           .live_rows = &r.live_rows},
            .records = r.records};
  }
  CrossEntropy<T, int64_t, Q> BackwardArgs(Result &r, int slice) {
    CrossEntropy<T, int64_t, Q> args = Args(slice);
    args.row_weights = Span<A>(row_weights);
    args.records = r.records;
    args.grad = Slice<T>(r.grad, slice);
    if (probabilities) args.target_grad = Slice<Q>(r.target_grad, slice);
    args.upstream = Span<A>(upstream);
    return args;
  }

  void RunCpp(Result &r) {
    std::vector<std::span<const ChunkRecord>> lists;
    for (int s = 0; s < 3; ++s) {
      const int64_t chunks = ShardChunks(CountedCols(), kFirst[s], kFirst[s + 1] - kFirst[s]);
      r.lists[s].resize(static_cast<size_t>(kRows * chunks));
      const Status status = ShardForward(Args(s), ShardOf(s), r.lists[s], options);
      ASSERT_TRUE(status.ok()) << status.message();
      lists.push_back(r.lists[s]);
    }
    Status status = ShardCombine(CombineArgs(r), lists, options);
    ASSERT_TRUE(status.ok()) << status.message();
    for (int s = 0; s < 3; ++s) {
      status = ShardBackward(BackwardArgs(r, s), ShardOf(s), options);
      ASSERT_TRUE(status.ok()) << status.message();
    }
  }

  int64_t CountedCols() const { return options.valid_cols > 0 ? options.valid_cols : kCols; }
  xent_cross_entropy_options COptions() const {
    xent_cross_entropy_options c = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    c.label_smoothing = options.label_smoothing;
    c.z_loss = options.z_loss;
    c.valid_cols = options.valid_cols;
    return c;
  }
  xent_cross_entropy CSlice(int slice) {
    xent_cross_entropy c = XENT_CROSS_ENTROPY_INIT;
    c.rows = kRows;
    c.cols = kFirst[slice + 1] - kFirst[slice];
    c.logits = View(logits);
    c.logits.data = Slice<T>(logits, slice).data;
    c.class_weights = class_weights.data();
    if (probabilities) {
      c.target_probs = View(probs);
      c.target_probs.data = Slice<Q>(probs, slice).data;
    } else {
      c.targets.data = targets.data();
    }
    return c;
  }
  void SetOutputs(Result &r, xent_cross_entropy &c) {
    c.row_weights = row_weights.data();
    c.row_losses = r.row_losses.data();
    c.reduced_loss = r.reduced_loss.data();
    c.records = r.records.data();
    r.statistics.lse = r.lse.data();
    r.statistics.perplexity = &r.perplexity;
    r.statistics.live_rows = &r.live_rows;
    if (!probabilities) r.statistics.logprobs = r.logprobs.data();
    c.statistics = &r.statistics;
  }
  void SetGradients(Result &r, int slice, xent_cross_entropy &c) {
    c.row_weights = row_weights.data();
    c.records = r.records.data();
    c.grad = View(r.grad);
    c.grad.data = Slice<T>(r.grad, slice).data;
    c.upstream = {upstream.data(), 0, XENT_UPSTREAM_ROWS, 0};
    if (!probabilities) return;
    c.target_grad = View(r.target_grad);
    c.target_grad.data = Slice<Q>(r.target_grad, slice).data;
  }

  void RunC(Result &r) {
    const xent_cross_entropy_options c_options = COptions();
    const void *lists[3];
    int64_t chunks[3];
    xent_shard shard = XENT_SHARD_INIT;
    shard.total_cols = kCols;
    for (int s = 0; s < 3; ++s) {
      const xent_cross_entropy c = CSlice(s);
      shard.first_col = kFirst[s];
      chunks[s] = xent_shard_chunks(CountedCols(), kFirst[s], c.cols);
      r.lists[s].resize(static_cast<size_t>(kRows * chunks[s]));
      lists[s] = r.lists[s].data();
      ASSERT_EQ(xent_shard_forward(&c, &c_options, &shard, r.lists[s].data(), nullptr, nullptr), XENT_OK);
    }
    xent_cross_entropy c = CSlice(0);
    c.cols = kCols;
    c.logits = {nullptr, 0, kDtype, 0};
    c.target_probs = {};
    SetOutputs(r, c);
    ASSERT_EQ(xent_shard_combine(&c, &c_options, lists, chunks, 3, nullptr), XENT_OK);
    for (int s = 0; s < 3; ++s) {
      c = CSlice(s);
      shard.first_col = kFirst[s];
      SetGradients(r, s, c);
      ASSERT_EQ(xent_shard_backward(&c, &c_options, &shard, nullptr, nullptr), XENT_OK);
    }
  }

  void RunUnsharded(Result &r) {
    const xent_cross_entropy_options c_options = COptions();
    xent_cross_entropy c = CSlice(0);
    c.cols = kCols;
    SetOutputs(r, c);
    SetGradients(r, 0, c);
    ASSERT_EQ(xent_cross_entropy_forward_backward(&c, &c_options, nullptr, nullptr), XENT_OK);
  }

  void Check() {
    Result c, cpp, whole;
    RunC(c);
    RunCpp(cpp);
    RunUnsharded(whole);
    EXPECT_EQ(c.Outputs(true).Differences(cpp.Outputs(true)), "");
    EXPECT_EQ(whole.Outputs(false).Differences(cpp.Outputs(false)), "");
    EXPECT_EQ(std::isfinite(cpp.reduced_loss.Get(0, 0)), true);
    EXPECT_FALSE(Untouched(cpp.grad));
  }

  Matrix logits = Normal(kDtype, kRows, kCols, kCols + 1, 1);
  Matrix probs = Uniform(kDtypeOf<Q>, kRows, kCols, kCols + 4, 2);
  Matrix class_weights = Uniform(kArithmetic, 1, kCols, 0, 3);
  Matrix row_weights = Uniform(kArithmetic, 1, kRows, 0, 4);
  Matrix upstream = Uniform(kArithmetic, 1, kRows, 0, 5);
  std::vector<int64_t> targets = {0, 1023, -100, 1024, 2999};
  bool probabilities = false;
  CrossEntropyOptions options;
};

template <class Logits, class Probs>
struct Types {
  using T = Logits;
  using Q = Probs;
};
using Elements = ::testing::Types<Types<float, float>, Types<double, double>, Types<::xent::bfloat16, float>>;
TYPED_TEST_SUITE(CppShards, Elements);

TYPED_TEST(CppShards, IndexTargets) { this->Check(); }

TYPED_TEST(CppShards, Options) {
  this->options = {.label_smoothing = 0.125, .z_loss = 0.25};
  this->Check();
}

// The second slice reaches past valid_cols, the third lies past it.
TYPED_TEST(CppShards, ValidColumns) {
  this->options = {.valid_cols = 1500};
  this->targets[4] = 1499;
  this->Check();
}

TYPED_TEST(CppShards, ProbabilityTargets) {
  this->probabilities = true;
  this->Check();
}

TYPED_TEST(CppShards, SizesMustAgree) {
  typename TestFixture::Result r;
  for (int s = 0; s < 3; ++s) r.lists[s].resize(kRows);
  const auto before = r.Outputs(true);
  const Shard shard = this->ShardOf(0);
  EXPECT_TRUE(Refused(ShardForward(this->Args(0), shard, std::span(r.lists[0]).first(4)), "chunk_records"));
  auto args = this->Args(0);
  args.class_weights = args.class_weights.first(1024);
  EXPECT_TRUE(Refused(ShardForward(args, shard, r.lists[0]), "class_weights"));
  args = this->Args(0);
  args.targets = args.targets.first(4);
  EXPECT_TRUE(Refused(ShardForward(args, shard, r.lists[0]), "targets"));
  // What does not lie inside is the library's to refuse.
  EXPECT_TRUE(Refused(ShardForward(this->Args(0), {.total_cols = kCols, .first_col = 2048}, r.lists[0]), "col"));

  std::vector<std::span<const ChunkRecord>> lists(r.lists, r.lists + 3);
  const auto combine = [&](const char *word, auto &&spoil) {
    auto spoiled = this->CombineArgs(r);
    auto spoiled_lists = lists;
    spoil(spoiled, spoiled_lists);
    EXPECT_TRUE(Refused(ShardCombine(spoiled, spoiled_lists), word)) << word;
  };
  combine("lists[1]", [](auto &, auto &all) { all[1] = all[1].first(4); });
  combine("lists", [](auto &, auto &all) { all.resize(kMaxShards + 1); });
  combine("class_weights", [](auto &spoiled, auto &) { spoiled.class_weights = spoiled.class_weights.first(1024); });
  combine("row_weights", [](auto &spoiled, auto &) { spoiled.row_weights = spoiled.row_weights.first(4); });
  combine("targets", [](auto &spoiled, auto &) { spoiled.targets = spoiled.targets.first(4); });
  combine("row_losses", [](auto &spoiled, auto &) { spoiled.row_losses = spoiled.row_losses.first(4); });
  combine("statistics.lse", [](auto &spoiled, auto &) { spoiled.statistics.lse = spoiled.statistics.lse.first(4); });

  args = this->BackwardArgs(r, 0);
  args.grad.cols = kCols;
  EXPECT_TRUE(Refused(ShardBackward(args, shard), "grad"));
  args = this->BackwardArgs(r, 0);
  args.records = args.records.first(4);
  EXPECT_TRUE(Refused(ShardBackward(args, shard), "records"));
  EXPECT_EQ(r.Outputs(true).Differences(before), "");
}

TEST(CppShardFunctions, Chunks) {
  EXPECT_EQ(ChunkCols(kCols), xent_chunk_cols(kCols));
  EXPECT_EQ(ShardChunks(kCols, 0, kCols), 3);
  EXPECT_EQ(ShardChunks(kCols, 1024, 1976), xent_shard_chunks(kCols, 1024, 1976));
  EXPECT_EQ(ShardChunks(kCols, 1024, 1977), 2);  // past the end
  EXPECT_EQ(ShardChunks(kCols, kCols, 1), 0);
}

}  // namespace
}  // namespace xent::test
