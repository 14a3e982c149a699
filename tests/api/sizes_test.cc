// Sizes that overflow, in every function: rows, columns, inner, strides and counts around the powers of two at which
// products of them, or of their bytes, leave an int64_t. Only calls that may not read memory are made: those of no
// rows, and those that must be refused. The oracle says from the numbers alone, in long double, whether xent.h demands
// a refusal ("Layout", "Checks", "Status"); a call of no rows whose numbers are all ordinary must succeed, and any
// other may be refused or not. No call may crash, divide by zero, or write.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "testing/assertions.h"
#include "xent/xent.h"

namespace xent::test {
namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();

// Of integers: exact up to 2^64, and beyond it the comparison does not need to be.
bool Exceeds(long double product) { return product > static_cast<long double>(kMost); }

// A number to try, and the line that tells of all of a call.
class Sizes {
 public:
  explicit Sizes(uint64_t seed) : random_(seed) {}

  void Begin() {
    text_.clear();
    largest_ = 0;
  }
  int64_t Draw(const char *name) {
    constexpr int64_t kNamed[] = {0,
                                  1,
                                  int64_t{1} << 31,
                                  int64_t{1} << 32,
                                  int64_t{1} << 53,
                                  int64_t{1} << 57,
                                  int64_t{1} << 58,
                                  int64_t{1} << 59,
                                  int64_t{1} << 60,
                                  int64_t{1} << 61,
                                  int64_t{1} << 62,
                                  kMost};
    int64_t value = 0;
    switch (random_.Below(8)) {
      case 0:
      case 1:
      case 2:  // ordinary
        value = random_.Below(9);
        break;
      case 3:  // any
        value = static_cast<int64_t>(random_.Next() >> random_.Below(64));
        break;
      default:
        value = kNamed[random_.Below(std::size(kNamed))];
        if (const int64_t off = random_.Below(5) - 2; off < 0 || value <= kMost - off) value += off;
        break;
    }
    if (random_.Below(12) == 0) value = value == kMost && random_.Below(2) == 0 ? kLeast : -value;
    return Note(name, value);
  }
  // Ordinary more often than not.
  int64_t DrawOr(const char *name, int64_t usual) { return random_.Below(3) == 0 ? Draw(name) : Note(name, usual); }
  int64_t Below(int64_t n) { return random_.Below(n); }

  // Of so small numbers no product overflows.
  bool AreOrdinary() const { return largest_ < 0x1p28; }
  const std::string &text() const { return text_; }

 private:
  int64_t Note(const char *name, int64_t value) {
    text_ += std::string(name) + " " + std::to_string(value) + ", ";
    largest_ = std::max(largest_, std::fabs(static_cast<double>(value)));
    return value;
  }

  Random random_;
  std::string text_;
  double largest_ = 0;
};

struct Shape {
  int64_t rows, cols, inner;

  bool IsWrong() const { return rows < 0 || cols < 1 || inner < 0 || (inner > 1 && rows % inner != 0); }
  long double Block() const {
    return static_cast<long double>(cols) * static_cast<long double>(std::max<int64_t>(inner, 1));
  }
  // Of a shape that is not wrong; elements of `bytes`.
  bool RefusesStride(int64_t stride, int64_t bytes) const {
    const long double block = Block();
    if (stride != 0 && static_cast<long double>(stride) < block) return true;
    const long double blocks = static_cast<long double>(rows / std::max<int64_t>(inner, 1));
    return Exceeds(blocks * std::max(block, static_cast<long double>(stride)) * static_cast<long double>(bytes));
  }
  bool RefusesRows(int64_t bytes) const {
    return Exceeds(static_cast<long double>(rows) * static_cast<long double>(bytes));
  }
};

Shape DrawShape(Sizes &sizes) {
  Shape shape = {sizes.DrawOr("rows", 0), sizes.Draw("cols"), sizes.DrawOr("inner", sizes.Below(2))};
  return shape;
}

// Memory for what a call may not touch, poison throughout, aligned for everything.
class Untouchable {
 public:
  Untouchable() : words_(64, kPoison) {}
  void *data() { return words_.data(); }
  bool IsUntouched() const {
    return std::all_of(words_.begin(), words_.end(), [](uint64_t w) { return w == kPoison; });
  }

 private:
  static constexpr uint64_t kPoison = 0x5a5a5a5a5a5a5a5au;
  std::vector<uint64_t> words_;
};

class SizesTest : public ::testing::TestWithParam<xent_dtype> {
 protected:
  static constexpr int kCalls = 30000;

  xent_dtype dtype() const { return GetParam(); }
  int64_t Bytes() const { return reference::FormatOf(dtype()).bytes; }
  int64_t FloatBytes() const { return dtype() == XENT_F64 ? 8 : 4; }

  // Memory, or none where there are no rows.
  void *Data(Sizes &sizes, int64_t rows) { return rows == 0 && sizes.Below(2) == 0 ? nullptr : memory_.data(); }
  xent_matrix Draw(Sizes &sizes, const Shape &shape, const char *name, xent_dtype type) {
    return {Data(sizes, shape.rows), sizes.DrawOr(name, 0), type, 0};
  }

  // Makes the call unless it might read memory, and judges its status.
  void Try(const Sizes &sizes, int64_t rows, bool must_be_refused,
           const std::function<xent_status(xent_error *)> &call) {
    if (rows > 0 && !must_be_refused) return;
    xent_error error = XENT_ERROR_INIT;
    const xent_status status = call(&error);
    ++(status == XENT_OK ? accepted_ : refused_);
    if (must_be_refused) {
      ASSERT_EQ(status, XENT_INVALID_ARGUMENT) << sizes.text();
    } else if (sizes.AreOrdinary()) {
      ASSERT_EQ(status, XENT_OK) << sizes.text() << error.message;
    } else {
      ASSERT_TRUE(status == XENT_OK || status == XENT_INVALID_ARGUMENT) << status << ": " << sizes.text();
    }
    if (status == XENT_INVALID_ARGUMENT) {
      ASSERT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, {})) << sizes.text();
    }
    ASSERT_TRUE(memory_.IsUntouched()) << "memory was written: " << sizes.text();
  }
  void TearDown() override {
    if (HasFailure() || IsSkipped()) return;
    // The draws are of both kinds.
    EXPECT_GT(accepted_, kCalls / 500);
    EXPECT_GT(refused_, kCalls / 500);
  }

  Untouchable memory_;
  int accepted_ = 0, refused_ = 0;
};

TEST_P(SizesTest, OfRowFunctions) {
  Sizes sizes(1);
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    sizes.Begin();
    const Shape shape = DrawShape(sizes);
    xent_matrix matrix[3];
    bool wrong = shape.IsWrong();
    const int64_t function = sizes.Below(6);
    const int matrices = function < 2 ? 1 : function < 4 ? 2 : 3;
    for (int m = 0; m < matrices; ++m) {
      matrix[m] = Draw(sizes, shape, "stride", dtype());
      wrong = wrong || shape.RefusesStride(matrix[m].stride, Bytes());
    }
    if (function == 0) wrong = wrong || shape.RefusesRows(FloatBytes());
    const auto [rows, cols, inner] = shape;
    Try(sizes, rows, wrong, [&, rows = rows, cols = cols, inner = inner](xent_error *error) {
      xent_diagnosis diagnosis = XENT_DIAGNOSIS_LOGITS;
      switch (function) {
        case 0:
          return xent_logsumexp(rows, cols, inner, matrix[0], memory_.data(), nullptr, error);
        case 1:
          return xent_check_logits(rows, cols, inner, matrix[0], &diagnosis, nullptr, error);
        case 2:
          return xent_softmax(rows, cols, inner, matrix[0], matrix[1], nullptr, error);
        case 3:
          return xent_log_softmax(rows, cols, inner, matrix[0], matrix[1], nullptr, error);
        case 4:
          return xent_softmax_backward(rows, cols, inner, matrix[0], matrix[1], matrix[2], nullptr, error);
        default:
          return xent_log_softmax_backward(rows, cols, inner, matrix[0], matrix[1], matrix[2], nullptr, error);
      }
    });
  }
}

TEST_P(SizesTest, OfCrossEntropy) {
  Sizes sizes(2);
  Untouchable workspace;  // whose contents are unspecified after any call
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    sizes.Begin();
    const Shape shape = DrawShape(sizes);
    const int64_t step = sizes.Below(3);  // forward, forward_backward, backward
    xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.inner = shape.inner;
    args.logits = Draw(sizes, shape, "logits.stride", dtype());
    bool wrong = shape.IsWrong() || shape.RefusesStride(args.logits.stride, Bytes());
    if (sizes.Below(3) == 0) {
      const xent_dtype type = kDtypes[sizes.Below(4)];
      args.target_probs = Draw(sizes, shape, "target_probs.stride", type);
      args.target_probs.data = memory_.data();
      wrong = wrong || shape.RefusesStride(args.target_probs.stride, reference::FormatOf(type).bytes);
      if (step > 0 && sizes.Below(2) == 0) {
        args.target_grad = Draw(sizes, shape, "target_grad.stride", type);
        args.target_grad.data = reinterpret_cast<char *>(memory_.data()) + 128;
        wrong = wrong || shape.RefusesStride(args.target_grad.stride, reference::FormatOf(type).bytes);
      }
    } else {
      args.targets.data = Data(sizes, shape.rows);
      wrong = wrong || shape.RefusesRows(8);
    }
    xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    options.valid_cols = sizes.DrawOr("valid_cols", 0);
    wrong = wrong || options.valid_cols < 0 || options.valid_cols > shape.cols;
    xent_statistics statistics = XENT_STATISTICS_INIT;
    if (step < 2) {
      const int64_t valid = options.valid_cols == 0 ? shape.cols : options.valid_cols;
      args.row_losses = Data(sizes, shape.rows);
      statistics.top_k = sizes.DrawOr("top_k", 0);
      wrong = wrong || statistics.top_k < 0 || statistics.top_k > 64 || statistics.top_k > valid;
      if (statistics.top_k != 0) statistics.topk_indices = static_cast<int64_t *>(memory_.data());
      statistics.gather_count = sizes.DrawOr("gather_count", 0);
      statistics.gather_cols = static_cast<const int64_t *>(memory_.data());
      statistics.gathered = memory_.data();
      wrong = wrong || statistics.gather_count < 0 ||
              Exceeds(static_cast<long double>(shape.rows) * static_cast<long double>(statistics.gather_count) * 8);
      args.statistics = &statistics;
    }
    if (step > 0) {
      args.grad = Draw(sizes, shape, "grad.stride", dtype());
      if (args.grad.data != nullptr) args.grad.data = reinterpret_cast<char *>(memory_.data()) + 256;
      wrong = wrong || shape.RefusesStride(args.grad.stride, Bytes());
    }
    args.records = Data(sizes, shape.rows);
    wrong = wrong || (args.records != nullptr && shape.RefusesRows(XENT_RECORD_BYTES));
    if (sizes.Below(2) == 0) {
      args.workspace = workspace.data();
      args.workspace_bytes = static_cast<size_t>(sizes.Draw("workspace_bytes"));
    }
    const auto run = step == 0   ? xent_cross_entropy_forward
                     : step == 1 ? xent_cross_entropy_forward_backward
                                 : xent_cross_entropy_backward;
    Try(sizes, shape.rows, wrong, [&](xent_error *error) { return run(&args, &options, nullptr, error); });
  }
}

TEST_P(SizesTest, OfShards) {
  Sizes sizes(3);
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    sizes.Begin();
    const Shape shape = {sizes.DrawOr("rows", 0), sizes.Draw("cols"), sizes.Below(20) == 0 ? sizes.Draw("inner") : 0};
    const bool backward = sizes.Below(2) == 0;
    xent_shard shard = XENT_SHARD_INIT;
    shard.total_cols = sizes.Draw("total_cols");
    shard.first_col = sizes.DrawOr("first_col", 0);
    // Sums that overflow show in long double.
    bool wrong = shape.IsWrong() || shape.inner > 1 || shard.total_cols < 1 || shard.first_col < 0 ||
                 static_cast<long double>(shard.first_col) + static_cast<long double>(shape.cols) >
                     static_cast<long double>(shard.total_cols);
    xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.inner = shape.inner;
    args.logits = Draw(sizes, shape, "logits.stride", dtype());
    args.targets.data = Data(sizes, shape.rows);
    wrong = wrong || shape.RefusesStride(args.logits.stride, Bytes()) || shape.RefusesRows(8);
    xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    options.valid_cols = sizes.DrawOr("valid_cols", 0);
    wrong = wrong || options.valid_cols < 0 || options.valid_cols > shard.total_cols;
    if (backward) {
      args.grad = Draw(sizes, shape, "grad.stride", dtype());
      if (args.grad.data != nullptr) args.grad.data = reinterpret_cast<char *>(memory_.data()) + 256;
      args.records = memory_.data();
      wrong = wrong || shape.RefusesStride(args.grad.stride, Bytes()) || shape.RefusesRows(XENT_RECORD_BYTES);
    }
    Try(sizes, shape.rows, wrong, [&](xent_error *error) {
      return backward ? xent_shard_backward(&args, &options, &shard, nullptr, error)
                      : xent_shard_forward(&args, &options, &shard, memory_.data(), nullptr, error);
    });
  }
}

TEST_P(SizesTest, OfShardsCombined) {
  Sizes sizes(4);
  float loss = 0;
  double wide_loss = 0;
  constexpr int64_t kTargets = 16;
  const int64_t targets[kTargets] = {};
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    sizes.Begin();
    const Shape shape = {sizes.DrawOr("rows", 0), sizes.Draw("cols"), sizes.Below(20) == 0 ? sizes.Draw("inner") : 0};
    const void *lists[2] = {memory_.data(), memory_.data()};
    const int64_t list_chunks[2] = {sizes.Draw("list_chunks[0]"), sizes.DrawOr("list_chunks[1]", 1)};
    int64_t shards = 1 + sizes.Below(2);
    if (sizes.Below(8) == 0) shards = -std::abs(sizes.Draw("shards") / 2);
    xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    options.valid_cols = sizes.DrawOr("valid_cols", 0);
    bool wrong = shape.IsWrong() || shape.inner > 1 || shape.RefusesRows(8) || options.valid_cols < 0 ||
                 options.valid_cols > shape.cols;
    // The lists may be looked at after the targets, of which there are a few.
    if (!wrong && shape.rows > kTargets) continue;
    wrong = wrong || shards < 1;
    for (int64_t s = 0; s < shards; ++s) {
      wrong = wrong || list_chunks[s] < 0 ||
              Exceeds(static_cast<long double>(shape.rows) * static_cast<long double>(list_chunks[s]) *
                      XENT_CHUNK_RECORD_BYTES);
    }
    xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.inner = shape.inner;
    args.logits.dtype = dtype();
    args.targets.data = targets;
    args.reduced_loss = dtype() == XENT_F64 ? static_cast<void *>(&wide_loss) : &loss;
    if (shape.rows == 0 && !wrong) {
      // Which numbers of records a slice has is for xent_shard_chunks to say: the others may be refused or not.
      xent_error error = XENT_ERROR_INIT;
      const xent_status status = xent_shard_combine(&args, &options, lists, list_chunks, shards, &error);
      ++(status == XENT_OK ? accepted_ : refused_);
      ASSERT_TRUE(status == XENT_OK || status == XENT_INVALID_ARGUMENT) << sizes.text();
      continue;
    }
    Try(sizes, shape.rows, wrong,
        [&](xent_error *error) { return xent_shard_combine(&args, &options, lists, list_chunks, shards, error); });
  }
}

TEST_P(SizesTest, OfReduce) {
  if (dtype() != XENT_F32 && dtype() != XENT_F64) GTEST_SKIP() << "losses are float32 or float64";
  Sizes sizes(5);
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    sizes.Begin();
    const Shape shape = {sizes.DrawOr("rows", 0), sizes.Draw("cols"), 0};
    double loss[1] = {};
    xent_stored_losses args = XENT_STORED_LOSSES_INIT;
    args.rows = shape.rows;
    args.cols = shape.cols;  // read with class weights only
    args.dtype = dtype();
    args.row_losses = Data(sizes, shape.rows);
    args.targets.data = Data(sizes, shape.rows);
    args.row_weights = Data(sizes, shape.rows);
    args.reduced_loss = loss;
    const bool wrong = shape.rows < 0 || shape.RefusesRows(args.targets.data != nullptr ? 8 : FloatBytes());
    Try(sizes, shape.rows, wrong, [&](xent_error *error) { return xent_reduce(&args, nullptr, error); });
  }
}

TEST_P(SizesTest, OfDivergences) {
  Sizes sizes(6);
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    sizes.Begin();
    const Shape shape = DrawShape(sizes);
    const bool backward = sizes.Below(2) == 0;
    const xent_dtype teacher = kDtypes[sizes.Below(4)];
    xent_divergence args = XENT_DIVERGENCE_INIT;
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.inner = shape.inner;
    args.student = Draw(sizes, shape, "student.stride", dtype());
    args.teacher = Draw(sizes, shape, "teacher.stride", teacher);
    args.row_losses = Data(sizes, shape.rows);
    bool wrong = shape.IsWrong() || shape.RefusesStride(args.student.stride, Bytes()) ||
                 shape.RefusesStride(args.teacher.stride, reference::FormatOf(teacher).bytes) ||
                 shape.RefusesRows(FloatBytes());
    if (backward) {
      args.grad = Draw(sizes, shape, "grad.stride", dtype());
      if (args.grad.data != nullptr) args.grad.data = reinterpret_cast<char *>(memory_.data()) + 256;
      wrong = wrong || shape.RefusesStride(args.grad.stride, Bytes());
    }
    xent_divergence_options options = XENT_DIVERGENCE_OPTIONS_INIT;
    options.kind = static_cast<int32_t>(sizes.Below(4));
    options.valid_cols = sizes.DrawOr("valid_cols", 0);
    wrong = wrong || options.valid_cols < 0 || options.valid_cols > shape.cols;
    const auto run = backward ? xent_divergence_forward_backward : xent_divergence_forward;
    Try(sizes, shape.rows, wrong, [&](xent_error *error) { return run(&args, &options, nullptr, error); });
  }
}

TEST_P(SizesTest, OfBinaryCrossEntropy) {
  Sizes sizes(7);
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    sizes.Begin();
    const Shape shape = DrawShape(sizes);
    const int64_t step = sizes.Below(3);  // forward, forward_backward, backward
    const xent_dtype targets = kDtypes[sizes.Below(4)];
    const xent_dtype arithmetic = reference::ArithmeticType(dtype());
    xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.inner = shape.inner;
    args.input = Draw(sizes, shape, "input.stride", dtype());
    args.targets = Draw(sizes, shape, "targets.stride", targets);
    bool wrong = shape.IsWrong() || shape.RefusesStride(args.input.stride, Bytes()) ||
                 shape.RefusesStride(args.targets.stride, reference::FormatOf(targets).bytes);
    const auto also = [&](xent_matrix &matrix, const char *name, xent_dtype type, int64_t at) {
      matrix = Draw(sizes, shape, name, type);
      matrix.data = reinterpret_cast<char *>(memory_.data()) + at;
      wrong = wrong || shape.RefusesStride(matrix.stride, reference::FormatOf(type).bytes);
    };
    if (sizes.Below(2) == 0) also(args.element_weights, "element_weights.stride", arithmetic, 0);
    if (step < 2) also(args.element_losses, "element_losses.stride", arithmetic, 128);
    if (step > 0) {
      also(args.grad, "grad.stride", dtype(), 256);
      if (sizes.Below(2) == 0) also(args.target_grad, "target_grad.stride", targets, 384);
      if (sizes.Below(2) == 0) {
        args.upstream = {memory_.data(), sizes.DrawOr("upstream.stride", 0), XENT_UPSTREAM_ELEMENTS, 0};
        wrong = wrong || shape.RefusesStride(args.upstream.stride, FloatBytes());
      }
    }
    const auto run = step == 0   ? xent_binary_cross_entropy_forward
                     : step == 1 ? xent_binary_cross_entropy_forward_backward
                                 : xent_binary_cross_entropy_backward;
    Try(sizes, shape.rows, wrong, [&](xent_error *error) { return run(&args, nullptr, nullptr, error); });
  }
}

TEST_P(SizesTest, NothingIsGivenAndThereAreNoRows) {
  // Every pointer NULL, with any stride that a row fits in.
  for (const int64_t stride : {int64_t{0}, int64_t{5}, int64_t{9}, int64_t{1} << 40}) {
    const xent_matrix none = {nullptr, stride, dtype(), 0};
    xent_error error = XENT_ERROR_INIT;
    xent_diagnosis diagnosis;
    EXPECT_EQ(xent_logsumexp(0, 5, 0, none, nullptr, nullptr, &error), XENT_OK) << error.message;
    EXPECT_EQ(xent_softmax(0, 5, 0, none, none, nullptr, &error), XENT_OK) << error.message;
    EXPECT_EQ(xent_log_softmax(0, 5, 0, none, none, nullptr, &error), XENT_OK) << error.message;
    EXPECT_EQ(xent_softmax_backward(0, 5, 0, none, none, none, nullptr, &error), XENT_OK) << error.message;
    EXPECT_EQ(xent_log_softmax_backward(0, 5, 0, none, none, none, nullptr, &error), XENT_OK) << error.message;
    EXPECT_EQ(xent_check_logits(0, 5, 0, none, &diagnosis, nullptr, &error), XENT_OK) << error.message;
    xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
    args.cols = 5;
    args.logits = none;
    EXPECT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, &error), XENT_OK) << error.message;
    xent_cross_entropy with_grad = args;
    with_grad.grad = none;
    EXPECT_EQ(xent_cross_entropy_forward_backward(&with_grad, nullptr, nullptr, &error), XENT_OK) << error.message;
    EXPECT_EQ(xent_cross_entropy_backward(&with_grad, nullptr, nullptr, &error), XENT_OK) << error.message;
    xent_shard shard = XENT_SHARD_INIT;
    shard.total_cols = 5;
    EXPECT_EQ(xent_shard_forward(&args, nullptr, &shard, nullptr, nullptr, &error), XENT_OK) << error.message;
    EXPECT_EQ(xent_shard_backward(&with_grad, nullptr, &shard, nullptr, &error), XENT_OK) << error.message;
    xent_divergence divergence = XENT_DIVERGENCE_INIT;
    divergence.cols = 5;
    divergence.student = divergence.teacher = none;
    EXPECT_EQ(xent_divergence_forward(&divergence, nullptr, nullptr, &error), XENT_OK) << error.message;
    divergence.grad = none;
    EXPECT_EQ(xent_divergence_forward_backward(&divergence, nullptr, nullptr, &error), XENT_OK) << error.message;
    xent_binary_cross_entropy binary = XENT_BINARY_CROSS_ENTROPY_INIT;
    binary.cols = 5;
    binary.input = binary.targets = none;
    EXPECT_EQ(xent_binary_cross_entropy_forward(&binary, nullptr, nullptr, &error), XENT_OK) << error.message;
    binary.grad = none;
    EXPECT_EQ(xent_binary_cross_entropy_forward_backward(&binary, nullptr, nullptr, &error), XENT_OK) << error.message;
    EXPECT_EQ(xent_binary_cross_entropy_backward(&binary, nullptr, nullptr, &error), XENT_OK) << error.message;
  }
  accepted_ = refused_ = kCalls;
}

INSTANTIATE_TEST_SUITE_P(Dtypes, SizesTest, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

// ------------------------------------------------------------------ functions that return a size

TEST(SizesOfWorkspaces, AreRowsTimesThreadsOrZero) {
  // One row for each thread, at least, and for less than 4 KB more; of threads beyond any number that runs at once, and
  // of columns that no call takes, xent.h demands no number but for the zeros.
  Sizes sizes(8);
  for (int k = 0; k < 200000; ++k) {
    sizes.Begin();
    const int64_t cols = sizes.Draw("cols");
    const int32_t threads = static_cast<int32_t>(sizes.DrawOr("threads", sizes.Below(9)));
    const xent_dtype dtype = kDtypes[sizes.Below(4)];
    const size_t got = xent_workspace_bytes(cols, dtype, threads);
    const long double used = threads == 0 ? xent_default_threads() : threads;
    const long double want = used * static_cast<long double>(cols) * (dtype == XENT_F64 ? 8 : 4);
    const std::string text = sizes.text() + "threads " + std::to_string(threads) + ", dtype " + std::to_string(dtype);
    if (cols < 1 || threads < 0) {
      ASSERT_EQ(got, 0u) << text;
    } else if (threads <= 64 && want < 0x1p60L) {
      ASSERT_GE(static_cast<long double>(got), want) << text;
      ASSERT_LT(static_cast<long double>(got), want + 4096 + 64 * used) << text;
    } else if (threads <= 64 && Exceeds(want)) {
      ASSERT_EQ(got, 0u) << text;
    }
    ASSERT_LE(got, static_cast<size_t>(kMost)) << text;
  }
}

TEST(SizesOfChunks, AreASixteenthInWholeBlocks) {
  Sizes sizes(9);
  for (int k = 0; k < 200000; ++k) {
    sizes.Begin();
    const int64_t cols = sizes.Draw("cols");
    // In unsigned arithmetic, which has room for it.
    const uint64_t sixteenth = (static_cast<uint64_t>(cols) + 15) / 16;
    const uint64_t want = (sixteenth + 1023) / 1024 * 1024;
    ASSERT_EQ(xent_chunk_cols(cols), cols <= 0 ? 0 : static_cast<int64_t>(want)) << sizes.text();
  }
}

TEST(SizesOfShards, AreTheChunksThatTheSliceMeets) {
  Sizes sizes(10);
  int met = 0;
  for (int k = 0; k < 200000; ++k) {
    sizes.Begin();
    const int64_t total = sizes.Draw("total_cols");
    const int64_t first = sizes.DrawOr("first_col", sizes.Below(3000));
    const int64_t cols = sizes.Draw("cols");
    const int64_t got = xent_shard_chunks(total, first, cols);
    ASSERT_GE(got, 0) << sizes.text();
    ASSERT_LE(got, 16) << sizes.text();
    if (total < 1 || first < 0 || cols < 1 || first >= total) {
      ASSERT_EQ(got, 0) << sizes.text();
    } else if (total <= kMost / 8) {
      const int64_t chunk = xent_chunk_cols(total);
      const int64_t last = cols > total - first ? total - 1 : first + cols - 1;
      ASSERT_EQ(got, last / chunk - first / chunk + 1) << sizes.text();
      ++met;
    }
  }
  EXPECT_GT(met, 10000);
}

// ------------------------------------------------------------------ array functions

// Whether `body` says so in a child of this process, which it may end.
bool HoldsInChild(const std::function<bool()> &body) {
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = 0;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

template <typename T>
void ExpectArrayRefused(xent_status (*function)(const T *, T *, int64_t)) {
  alignas(8) T x[4] = {1, 1, 1, 1};
  alignas(8) T y[4] = {-77, -77, -77, -77};
  for (const int64_t n : {int64_t{-1}, kLeast, kMost, kMost / static_cast<int64_t>(sizeof(T)) + 1, int64_t{1} << 62}) {
    EXPECT_TRUE(HoldsInChild([&] { return function(x, y, n) == XENT_INVALID_ARGUMENT && y[0] == -77; })) << n;
  }
  // Misaligned by a byte.
  const T *const bent = reinterpret_cast<const T *>(reinterpret_cast<uintptr_t>(x) + 1);
  T *const bent_out = reinterpret_cast<T *>(reinterpret_cast<uintptr_t>(y) + 1);
  EXPECT_TRUE(HoldsInChild([&] { return function(bent, y, 2) == XENT_INVALID_ARGUMENT && y[0] == -77; }));
  EXPECT_TRUE(HoldsInChild([&] { return function(x, bent_out, 2) == XENT_INVALID_ARGUMENT && y[0] == -77; }));
}

TEST(SizesOfArrays, PastTheirBytes) {
  for (const auto function : {xent_exp_f32, xent_log_f32, xent_log1p_f32}) ExpectArrayRefused<float>(function);
  for (const auto function : {xent_exp_f64, xent_log_f64, xent_log1p_f64}) ExpectArrayRefused<double>(function);
}

}  // namespace
}  // namespace xent::test
