// Sizes, in every function: all counts, strides and sizes of all structs around 0, +-1 and the powers of two at which
// products of them, or of their bytes, leave an int64_t, beside ordinary ones. The oracle says from the numbers alone,
// in long double, whether xent.h demands a refusal ("Layout", "Checks", "Status"). A call whose numbers are all
// ordinary must else succeed, and any other may be refused or not. Every array has exactly the bytes that the call may
// touch (sizes.h), so that calls of a few rows are made too; those whose arrays would be too large are made only where
// they must be refused. No call may crash, divide by zero, reach beyond an array, or write and refuse.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "api/sizes.h"
#include "testing/assertions.h"
#include "testing/sanitized.h"
#include "xent/xent.h"
#include "xent/xent.hpp"

namespace xent::test {
namespace {

// A minute or so with a sanitizer, a few seconds without.
#if defined(XENT_TEST_SANITIZED)
constexpr int kCalls = 60000;
#else
constexpr int kCalls = 20000;
#endif

int64_t BytesOf(xent_dtype dtype) { return reference::FormatOf(dtype).bytes; }

struct Shape {
  int64_t rows, cols, inner;

  bool IsWrong() const { return rows < 0 || cols < 1 || inner < 0 || (inner > 1 && rows % inner != 0); }
  long double Block() const { return Product(cols, std::max<int64_t>(inner, 1)); }
  int64_t Blocks() const { return rows / std::max<int64_t>(inner, 1); }
  // Of a shape that is not wrong; elements of `bytes`.
  long double Stride(int64_t stride) const { return std::max(Block(), static_cast<long double>(stride)); }
  bool RefusesStride(int64_t stride, int64_t bytes) const {
    if (stride != 0 && static_cast<long double>(stride) < Block()) return true;
    return Exceeds(static_cast<long double>(Blocks()) * Stride(stride) * static_cast<long double>(bytes));
  }
  bool RefusesRows(int64_t bytes) const { return Exceeds(Product(rows, bytes)); }
  // Bytes of a matrix from its first element to its last.
  long double Bytes(int64_t stride, int64_t bytes) const {
    if (rows <= 0) return 0;
    return (static_cast<long double>(Blocks() - 1) * Stride(stride) + Block()) * static_cast<long double>(bytes);
  }
};

class SizesTest : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }
  int64_t Bytes() const { return BytesOf(dtype()); }
  int64_t FloatBytes() const { return dtype() == XENT_F64 ? 8 : 4; }
  xent_dtype Float() const { return reference::ArithmeticType(dtype()); }

  // Begins a call, and draws its shape: a few rows or none, more often than not.
  Shape Begin(bool may_have_inner = true) {
    sizes_.Begin();
    arrays_.Begin();
    wrong_ = false;
    const int64_t inner = may_have_inner && sizes_.Below(3) == 0 ? sizes_.Below(4) : sizes_.Below(2);
    const int64_t rows = sizes_.Below(3) * std::max<int64_t>(inner, 1);
    const int64_t usual = 1 + sizes_.Below(sizes_.Below(4) == 0 ? 3000 : 40);
    Shape shape = {sizes_.DrawOr("rows", rows, 5), sizes_.DrawOr("cols", usual, 2), 0};
    shape.inner = may_have_inner ? sizes_.DrawOr("inner", inner, 5) : inner;
    if (!may_have_inner) sizes_.Note("inner", inner);
    wrong_ = shape.IsWrong();
    has_rows_ = shape.rows > 0;
    return shape;
  }
  void WrongIf(bool wrong) { wrong_ = wrong_ || wrong; }

  xent_matrix Matrix(const Shape &shape, const char *name, xent_dtype type) {
    const int64_t bytes = BytesOf(type), stride = sizes_.DrawOr(name, 0);
    WrongIf(shape.RefusesStride(stride, bytes));
    return {arrays_.DrawOrNull(shape.Bytes(stride, bytes), bytes), stride, type, 0};
  }
  void *OfRows(const Shape &shape, int64_t bytes, int64_t count = 1) {
    WrongIf(shape.RefusesRows(bytes));
    return arrays_.DrawOrNull(Product(std::max<int64_t>(shape.rows, 0), bytes, count), std::min<int64_t>(bytes, 8));
  }
  // class_weights are read in every call.
  const void *OfCols(int64_t cols) {
    if (sizes_.Below(4) != 0) return nullptr;
    return arrays_.Draw(Product(std::max<int64_t>(cols, 0), FloatBytes()), FloatBytes());
  }
  xent_targets Targets(const Shape &shape) {
    const bool narrow = sizes_.Below(2) == 0;
    return {OfRows(shape, narrow ? 4 : 8), narrow ? XENT_I32 : XENT_I64, 0};
  }
  xent_upstream Upstream(const Shape &shape, bool elements) {
    const int64_t kind = sizes_.Below(elements ? 4 : 3);
    if (kind == 0) return XENT_NO_UPSTREAM;
    if (kind == 1) return {arrays_.Draw(FloatBytes(), FloatBytes()), 0, XENT_UPSTREAM_SCALAR, 0};
    if (kind == 2) return {OfRows(shape, FloatBytes()), 0, XENT_UPSTREAM_ROWS, 0};
    const xent_matrix matrix = Matrix(shape, "upstream.stride", Float());
    return {matrix.data, matrix.stride, XENT_UPSTREAM_ELEMENTS, 0};
  }
  int64_t ValidCols(int64_t cols) {
    const int64_t valid = sizes_.DrawOr("valid_cols", 0);
    WrongIf(valid < 0 || valid > cols);
    return valid;
  }
  // Null more often than not. What is here is small work, for which no threads are asked.
  const xent_exec *Exec() {
    if (sizes_.Below(4) != 0) return nullptr;
    const bool was_ordinary = sizes_.AreOrdinary();
    xent_exec exec = XENT_EXEC_INIT;
    exec.threads = static_cast<int32_t>(sizes_.Draw("threads"));
    if (was_ordinary) sizes_.Forgive();  // any number will do
    WrongIf(exec.threads < 0);
    return arrays_.Copy(exec, "exec.struct_size", &wrong_);
  }
  template <class S>
  const S *Copy(const S &original) {
    return arrays_.Copy(original, "struct_size", &wrong_);
  }

  // Makes the call unless it might read memory that is not there, and judges its status. `must_succeed`: whether it
  // must where nothing is wrong; what the oracle leaves out has it false.
  void Try(const std::function<xent_status(xent_error *)> &call, std::optional<bool> must_succeed = {}) {
    if (!wrong_ && !arrays_.AllThere()) return;
    bool error_is_wrong = false;
    const bool was_ordinary = sizes_.AreOrdinary();
    xent_error *const error = arrays_.Copy<xent_error>(XENT_ERROR_INIT, "error.struct_size", &error_is_wrong);
    const xent_status status = call(error);
    ++(status != XENT_OK ? refused_ : has_rows_ ? accepted_ : accepted_without_rows_);
    if (wrong_ || error_is_wrong) {
      ASSERT_EQ(status, XENT_INVALID_ARGUMENT) << sizes_.text();
    } else if (must_succeed.value_or(was_ordinary)) {
      ASSERT_EQ(status, XENT_OK) << sizes_.text() << error->message;
    } else {
      ASSERT_TRUE(status == XENT_OK || status == XENT_INVALID_ARGUMENT) << status << ": " << sizes_.text();
    }
    if (status != XENT_INVALID_ARGUMENT) return;
    // What is only a record that is none has a row.
    ASSERT_TRUE(error_is_wrong || !wrong_ || Tells(*error, XENT_INVALID_ARGUMENT, {}, {})) << sizes_.text();
    ASSERT_TRUE(arrays_.AreZero()) << "memory was written: " << sizes_.text();
  }
  void TearDown() override {
    if (HasFailure() || IsSkipped()) return;
    // The draws are of every kind.
    EXPECT_GT(accepted_, kCalls / 50);
    EXPECT_GT(accepted_without_rows_, kCalls / 100);
    EXPECT_GT(refused_, kCalls / 100);
  }

  Sizes sizes_{static_cast<uint64_t>(GetParam()) + 1};
  Arrays arrays_{&sizes_};
  bool wrong_ = false, has_rows_ = false;  // of the call that was begun last
  int accepted_ = 0, accepted_without_rows_ = 0, refused_ = 0;
};

TEST_P(SizesTest, OfRowFunctions) {
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    const Shape shape = Begin();
    const int64_t function = sizes_.Below(6);
    const int matrices = function < 2 ? 1 : function < 4 ? 2 : 3;
    xent_matrix matrix[3];
    for (int m = 0; m < matrices; ++m) matrix[m] = Matrix(shape, "stride", dtype());
    void *const lse = function == 0 ? OfRows(shape, FloatBytes()) : nullptr;
    const xent_exec *const exec = Exec();
    const auto [rows, cols, inner] = shape;
    Try([&, rows = rows, cols = cols, inner = inner](xent_error *error) {
      xent_diagnosis diagnosis = XENT_DIAGNOSIS_LOGITS;
      switch (function) {
        case 0:
          return xent_logsumexp(rows, cols, inner, matrix[0], lse, exec, error);
        case 1:
          return xent_check_logits(rows, cols, inner, matrix[0], &diagnosis, exec, error);
        case 2:
          return xent_softmax(rows, cols, inner, matrix[0], matrix[1], exec, error);
        case 3:
          return xent_log_softmax(rows, cols, inner, matrix[0], matrix[1], exec, error);
        case 4:
          return xent_softmax_backward(rows, cols, inner, matrix[0], matrix[1], matrix[2], exec, error);
        default:
          return xent_log_softmax_backward(rows, cols, inner, matrix[0], matrix[1], matrix[2], exec, error);
      }
    });
  }
}

TEST_P(SizesTest, OfCrossEntropy) {
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    const Shape shape = Begin();
    const int64_t step = sizes_.Below(3);  // forward, forward_backward, backward
    xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.inner = shape.inner;
    args.logits = Matrix(shape, "logits.stride", dtype());
    const bool probs = sizes_.Below(3) == 0;
    if (probs) {
      args.target_probs = Matrix(shape, "target_probs.stride", kDtypes[sizes_.Below(4)]);
      if (args.target_probs.data == nullptr) args.target_probs.data = arrays_.Draw(0, 8);
    } else {
      args.targets = Targets(shape);
    }
    xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    options.label_smoothing = sizes_.Below(3) == 0 ? 0.1 : 0.0;
    options.valid_cols = ValidCols(shape.cols);
    args.class_weights = OfCols(shape.cols);
    if (sizes_.Below(4) == 0) args.row_weights = OfRows(shape, FloatBytes());
    args.records = step == 2 || sizes_.Below(2) == 0 ? OfRows(shape, XENT_RECORD_BYTES) : nullptr;
    if (sizes_.Below(2) == 0) {
      const int64_t bytes = sizes_.DrawOr("workspace_bytes", sizes_.Below(40000), 2);
      args.workspace_bytes = static_cast<size_t>(bytes);
      args.workspace = arrays_.Draw(static_cast<long double>(args.workspace_bytes));
    }
    const xent_cross_entropy_options *const c_options = Copy(options);
    const xent_exec *const exec = Exec();
    if (step == 2 && !wrong_ && arrays_.AllThere()) {  // records that there are
      ASSERT_TRUE(xent_cross_entropy_forward(&args, c_options, exec, nullptr) == XENT_OK || !sizes_.AreOrdinary())
          << sizes_.text();
      arrays_.Forget();
    }
    if (step < 2) {
      xent_statistics statistics = XENT_STATISTICS_INIT;
      const int64_t valid = options.valid_cols == 0 ? shape.cols : options.valid_cols;
      args.row_losses = OfRows(shape, FloatBytes());
      args.reduced_loss = arrays_.Draw(FloatBytes(), FloatBytes());
      statistics.top_k = sizes_.DrawOr("top_k", sizes_.Below(2));
      WrongIf(statistics.top_k < 0 || statistics.top_k > 64 || statistics.top_k > valid);
      if (statistics.top_k != 0) {
        statistics.topk_indices = static_cast<int64_t *>(OfRows(shape, 8, std::max<int64_t>(statistics.top_k, 0)));
        if (statistics.top_k > 0) statistics.topk_logprobs = OfRows(shape, FloatBytes(), statistics.top_k);
      }
      statistics.gather_count = sizes_.DrawOr("gather_count", sizes_.Below(3));
      const int64_t count = std::max<int64_t>(statistics.gather_count, 0);
      WrongIf(statistics.gather_count < 0 || Exceeds(Product(shape.rows, count, 8)));
      statistics.gather_cols = static_cast<const int64_t *>(OfRows(shape, 8, count));
      statistics.gathered = OfRows(shape, FloatBytes(), count);
      statistics.lse = OfRows(shape, FloatBytes());
      statistics.argmax = static_cast<int64_t *>(OfRows(shape, 8));
      statistics.entropy = OfRows(shape, FloatBytes());
      statistics.of_ignored = sizes_.DrawOr("of_ignored", 0, 8);
      WrongIf(statistics.of_ignored != 0 && statistics.of_ignored != 1);
      args.statistics = Copy(statistics);
    }
    if (step > 0) {
      args.grad = Matrix(shape, "grad.stride", dtype());
      args.upstream = Upstream(shape, false);
      if (probs && sizes_.Below(2) == 0) {
        args.target_grad = Matrix(shape, "target_grad.stride", static_cast<xent_dtype>(args.target_probs.dtype));
      }
    }
    const auto run = step == 0   ? xent_cross_entropy_forward
                     : step == 1 ? xent_cross_entropy_forward_backward
                                 : xent_cross_entropy_backward;
    const xent_cross_entropy *const c_args = Copy(args);
    Try([&](xent_error *error) { return run(c_args, c_options, exec, error); });
  }
}

// The steps of a slice. Chunk records of the rest of a vocabulary are not at hand: backward is of a vocabulary that is
// one slice, or of rows that are ignored, whose records come of a call that reads no logit.
TEST_P(SizesTest, OfShards) {
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    const Shape shape = Begin(sizes_.Below(20) == 0);
    const bool shape_is_ordinary = sizes_.AreOrdinary();
    const bool backward = sizes_.Below(2) == 0, whole = sizes_.Below(3) == 0;
    // The whole vocabulary, or a slice in the middle of a larger one or at its end.
    xent_shard shard = XENT_SHARD_INIT;
    const int64_t cols = std::max<int64_t>(1, shape.cols), more = whole ? 0 : 1 + sizes_.Below(5000);
    shard.total_cols = sizes_.DrawOr("total_cols", cols > kMost - more ? kMost : cols + more, 2);
    const int64_t last = std::max<int64_t>(0, shard.total_cols - std::min(cols, shard.total_cols));
    shard.first_col = sizes_.DrawOr("first_col", sizes_.Below(2) == 0 ? last : 0);
    WrongIf(shard.total_cols < 1 || shard.first_col < 0 || shape.inner > 1 ||
            static_cast<long double>(shard.first_col) + static_cast<long double>(shape.cols) >
                static_cast<long double>(shard.total_cols));
    xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    options.valid_cols = ValidCols(shard.total_cols);
    // A slice may lie anywhere in a vocabulary whose columns count 8 bytes each.
    if (shape_is_ordinary && shard.total_cols <= kMost / 8) sizes_.Forgive();
    xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.inner = shape.inner;
    args.logits = Matrix(shape, "logits.stride", dtype());
    args.targets = Targets(shape);
    args.class_weights = OfCols(shard.total_cols);
    options.label_smoothing = sizes_.Below(3) == 0 ? 0.1 : 0.0;
    const bool is_whole = shape.cols == shard.total_cols;
    if (backward && !is_whole) options.ignore_index = 0;  // which all targets are
    const int64_t valid = options.valid_cols > 0 ? options.valid_cols : shard.total_cols;
    const int64_t chunks = xent_shard_chunks(valid, shard.first_col, shape.cols);
    void *const chunk_records =
        arrays_.DrawOrNull(Product(std::max<int64_t>(0, shape.rows), chunks, XENT_CHUNK_RECORD_BYTES), 8);
    const xent_cross_entropy_options *const c_options = Copy(options);
    const xent_shard *const c_shard = Copy(shard);
    const xent_exec *const exec = Exec();
    if (!backward) {
      const xent_cross_entropy *const c_args = Copy(args);
      Try([&](xent_error *error) {
        return xent_shard_forward(c_args, c_options, c_shard, chunk_records, exec, error);
      });
      continue;
    }
    void *const records = OfRows(shape, XENT_RECORD_BYTES);
    if (!wrong_ && arrays_.AllThere() && sizes_.AreOrdinary()) {
      xent_cross_entropy all = args;
      all.cols = shard.total_cols;
      all.records = records;
      xent_error error = XENT_ERROR_INIT;
      if (is_whole) {
        ASSERT_EQ(xent_shard_forward(&args, &options, &shard, chunk_records, exec, &error), XENT_OK) << error.message;
        all.logits.data = nullptr;
        all.logits.stride = 0;
        const void *const lists[] = {chunk_records};
        ASSERT_EQ(xent_shard_combine(&all, &options, lists, &chunks, 1, &error), XENT_OK)
            << sizes_.text() << error.message;
      } else {
        all.logits.stride = 0;
        if (Exceeds(Product(shape.rows, all.cols, Bytes()))) continue;
        ASSERT_EQ(xent_cross_entropy_forward(&all, &options, exec, &error), XENT_OK) << sizes_.text() << error.message;
      }
      arrays_.Forget();
    }
    args.records = records;
    args.grad = Matrix(shape, "grad.stride", dtype());
    args.upstream = Upstream(shape, false);
    const xent_cross_entropy *const c_args = Copy(args);
    Try([&](xent_error *error) { return xent_shard_backward(c_args, c_options, c_shard, exec, error); });
  }
}

TEST_P(SizesTest, OfShardsCombined) {
  int combined = 0;
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    const Shape shape = Begin(sizes_.Below(20) == 0);
    WrongIf(shape.inner > 1);
    xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.inner = shape.inner;
    args.logits.dtype = dtype();
    args.targets = Targets(shape);
    xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    options.valid_cols = ValidCols(shape.cols);
    const int64_t valid = options.valid_cols > 0 ? options.valid_cols : shape.cols;
    // The lists may be looked at after the targets.
    if (!wrong_ && !arrays_.AllThere()) continue;
    const bool good_call = !wrong_;
    // One slice or two, cut anywhere, in lists of so many records as xent_shard_chunks says, or of any other number.
    const int64_t slices = 1 + sizes_.Below(2), cut = slices == 1 ? 0 : sizes_.Below(std::max<int64_t>(1, shape.cols));
    const int64_t shards = sizes_.DrawOr("shards", slices, 8);
    WrongIf(shards < 1 || Exceeds(Product(shards, 8)));
    const long double list_bytes = Product(std::max<int64_t>(0, shards), 8);
    const void **const lists = static_cast<const void **>(arrays_.Draw(list_bytes, 8));
    int64_t *const list_chunks = static_cast<int64_t *>(arrays_.Draw(list_bytes, 8));
    bool as_they_are = good_call && shards == slices && shape.cols <= kMost / 8;
    for (int64_t s = 0; s < std::min(shards, slices); ++s) {
      if (!arrays_.AllThere()) break;
      xent_shard shard = XENT_SHARD_INIT;
      shard.total_cols = shape.cols;
      shard.first_col = s == 0 ? 0 : cut;
      const int64_t cols = s == slices - 1 ? shape.cols - shard.first_col : cut;
      const int64_t usual = good_call ? xent_shard_chunks(valid, shard.first_col, cols) : 1;
      list_chunks[s] = sizes_.DrawOr("list_chunks", usual, 8);
      WrongIf(list_chunks[s] < 0 || Exceeds(Product(std::max<int64_t>(0, shape.rows), list_chunks[s], 128)));
      const int64_t records = std::max<int64_t>(0, list_chunks[s]);
      void *const list = arrays_.DrawOrNull(Product(std::max<int64_t>(0, shape.rows), records, 128), 8);
      lists[s] = list;
      as_they_are = as_they_are && list_chunks[s] == usual && arrays_.AllThere();
      if (!as_they_are || cols == 0) continue;
      xent_cross_entropy slice = args;
      slice.cols = cols;
      slice.logits = {arrays_.Draw(Product(shape.rows, cols, Bytes()), 8), 0, dtype(), 0};
      as_they_are = arrays_.AllThere();
      if (!as_they_are) break;
      xent_error error = XENT_ERROR_INIT;
      ASSERT_EQ(xent_shard_forward(&slice, &options, &shard, list, nullptr, &error), XENT_OK)
          << sizes_.text() << error.message;
    }
    arrays_.Forget();
    args.row_losses = OfRows(shape, FloatBytes());
    args.reduced_loss = arrays_.Draw(FloatBytes(), FloatBytes());
    args.records = OfRows(shape, XENT_RECORD_BYTES);
    const xent_cross_entropy *const c_args = Copy(args);
    const xent_cross_entropy_options *const c_options = Copy(options);
    combined += as_they_are && !wrong_ && shape.rows > 0;
    Try([&](xent_error *error) { return xent_shard_combine(c_args, c_options, lists, list_chunks, shards, error); },
        as_they_are);
  }
  EXPECT_GT(combined, kCalls / 100);
}

TEST_P(SizesTest, OfReduce) {
  if (dtype() != XENT_F32 && dtype() != XENT_F64) GTEST_SKIP() << "losses are float32 or float64";
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    const Shape drawn = Begin(false);
    const bool weighted = sizes_.Below(2) == 0;
    wrong_ = drawn.rows < 0 || (weighted && drawn.cols < 1);  // cols is read with class weights only
    xent_stored_losses args = XENT_STORED_LOSSES_INIT;
    args.rows = drawn.rows;
    args.cols = drawn.cols;
    args.dtype = dtype();
    args.row_losses = OfRows(drawn, FloatBytes());
    if (weighted || sizes_.Below(2) == 0) args.targets = Targets(drawn);
    if (weighted) args.class_weights = arrays_.Draw(Product(std::max<int64_t>(0, drawn.cols), FloatBytes()), 8);
    if (sizes_.Below(2) == 0) args.row_weights = OfRows(drawn, FloatBytes());
    args.reduced_loss = arrays_.Draw(FloatBytes(), FloatBytes());
    xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    options.valid_cols = sizes_.DrawOr("valid_cols", 0, 8);
    WrongIf(options.valid_cols < 0);
    const xent_stored_losses *const c_args = Copy(args);
    const xent_cross_entropy_options *const c_options = Copy(options);
    Try([&](xent_error *error) { return xent_reduce(c_args, c_options, error); });
  }
}

TEST_P(SizesTest, OfDivergences) {
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    const Shape shape = Begin();
    const bool backward = sizes_.Below(2) == 0;
    xent_divergence args = XENT_DIVERGENCE_INIT;
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.inner = shape.inner;
    args.student = Matrix(shape, "student.stride", dtype());
    args.teacher = Matrix(shape, "teacher.stride", kDtypes[sizes_.Below(4)]);
    if (sizes_.Below(3) == 0) args.row_weights = OfRows(shape, FloatBytes());
    args.row_losses = OfRows(shape, FloatBytes());
    if (backward) {
      args.grad = Matrix(shape, "grad.stride", dtype());
      args.upstream = Upstream(shape, false);
    }
    xent_divergence_options options = XENT_DIVERGENCE_OPTIONS_INIT;
    options.kind = static_cast<int32_t>(sizes_.Below(4));
    options.valid_cols = ValidCols(shape.cols);
    const xent_divergence *const c_args = Copy(args);
    const xent_divergence_options *const c_options = Copy(options);
    const xent_exec *const exec = Exec();
    const auto run = backward ? xent_divergence_forward_backward : xent_divergence_forward;
    Try([&](xent_error *error) { return run(c_args, c_options, exec, error); });
  }
}

TEST_P(SizesTest, OfBinaryCrossEntropy) {
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    const Shape shape = Begin();
    const int64_t step = sizes_.Below(3);  // forward, forward_backward, backward
    const xent_dtype targets = kDtypes[sizes_.Below(4)];
    xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.inner = shape.inner;
    args.input = Matrix(shape, "input.stride", dtype());
    args.targets = Matrix(shape, "targets.stride", targets);
    args.pos_weight = OfCols(shape.cols);
    args.class_weights = OfCols(shape.cols);
    if (sizes_.Below(3) == 0) args.row_weights = OfRows(shape, FloatBytes());
    if (sizes_.Below(2) == 0) args.element_weights = Matrix(shape, "element_weights.stride", Float());
    if (step < 2) args.element_losses = Matrix(shape, "element_losses.stride", Float());
    if (step > 0) {
      args.grad = Matrix(shape, "grad.stride", dtype());
      if (sizes_.Below(2) == 0) args.target_grad = Matrix(shape, "target_grad.stride", targets);
      args.upstream = Upstream(shape, true);
    }
    const xent_binary_cross_entropy *const c_args = Copy(args);
    const xent_binary_cross_entropy_options *const c_options =
        Copy(xent_binary_cross_entropy_options(XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT));
    const xent_exec *const exec = Exec();
    const auto run = step == 0   ? xent_binary_cross_entropy_forward
                     : step == 1 ? xent_binary_cross_entropy_forward_backward
                                 : xent_binary_cross_entropy_backward;
    Try([&](xent_error *error) { return run(c_args, c_options, exec, error); });
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
  accepted_ = accepted_without_rows_ = refused_ = kCalls;
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

// ------------------------------------------------------------------ xent.hpp

// Spans have the sizes that the views and counts ask for, or others where those are out of reach.
class SizesOfViews : public ::testing::Test {
 protected:
  template <class T>
  std::span<T> Span(int64_t size) {
    if (size < 0 || size > 4096 || sizes_.Below(40) == 0) {
      size = sizes_.Below(4);
      sizes_.Note("another size of a span", size);
    }
    return {static_cast<T *>(arrays_.Draw(Product(size, sizeof(T)), alignof(T))), static_cast<size_t>(size)};
  }
  ::xent::MatrixView<float> View(const Shape &shape) {
    const int64_t stride = sizes_.DrawOr("stride", 0);
    void *const data = shape.IsWrong() ? arrays_.Draw(0, 4) : arrays_.Draw(shape.Bytes(stride, 4), 4);
    return {static_cast<float *>(data), shape.rows, shape.cols, stride};
  }
  Shape Begin() {
    sizes_.Begin();
    arrays_.Begin();
    const int64_t rows = sizes_.DrawOr("rows", sizes_.Below(4)), cols = sizes_.DrawOr("cols", 1 + sizes_.Below(40));
    return {rows, cols, sizes_.DrawOr("inner", 1, 6)};
  }
  void Expect(const ::xent::Status &status) {
    ++(status.ok() ? accepted_ : refused_);
    ASSERT_TRUE(status.ok() || status.code() == ::xent::Code::kInvalidArgument) << sizes_.text() << status.message();
  }
  void TearDown() override {
    EXPECT_GT(accepted_, kCalls / 20);
    EXPECT_GT(refused_, kCalls / 20);
  }

  Sizes sizes_{11};
  Arrays arrays_{&sizes_};
  int accepted_ = 0, refused_ = 0;
};

TEST_F(SizesOfViews, OfCrossEntropy) {
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    const Shape shape = Begin();
    ::xent::CrossEntropy<float> args = {.logits = View(shape), .inner = shape.inner, .grad = View(shape)};
    args.targets = Span<int64_t>(shape.rows);
    args.row_losses = Span<float>(shape.rows);
    args.records = Span<::xent::Record>(shape.rows);
    args.statistics.top_k = sizes_.DrawOr("top_k", sizes_.Below(2));
    const long double topk = Product(shape.rows, args.statistics.top_k);
    args.statistics.topk_indices = Span<int64_t>(topk >= 0 && topk < 5000 ? static_cast<int64_t>(topk) : 5000);
    const int64_t gathered = shape.rows > 4096 ? 3 : std::max<int64_t>(0, shape.rows) * sizes_.Below(3);
    args.statistics.gather_cols = Span<int64_t>(gathered);
    args.statistics.gathered = Span<float>(gathered);
    if (sizes_.Below(8) == 0) args.class_weights = Span<float>(shape.cols);
    args.workspace = Span<std::byte>(sizes_.Below(4096));
    // More rows than spans have are refused before the matrices are looked at.
    if (!arrays_.AllThere() && !shape.IsWrong() && shape.rows <= 4096) continue;
    Expect(::xent::CrossEntropyForwardBackward(args));
  }
}

TEST_F(SizesOfViews, OfShards) {
  for (int k = 0; k < kCalls && !HasFailure(); ++k) {
    Shape shape = Begin();
    shape.inner = 1;
    const ::xent::CrossEntropy<float> args = {.logits = View(shape), .targets = Span<int64_t>(shape.rows)};
    ::xent::Shard shard;
    shard.total_cols = sizes_.DrawOr("total_cols", std::min(shape.cols, kMost - 4000) + sizes_.Below(4000));
    const int64_t total_or_none = std::max<int64_t>(0, shard.total_cols);
    const int64_t last = total_or_none - std::clamp<int64_t>(shape.cols, 0, total_or_none);
    shard.first_col = sizes_.DrawOr("first_col", last);
    ::xent::CrossEntropyOptions options;
    options.valid_cols = sizes_.DrawOr("valid_cols", 0, 8);
    const int64_t total = options.valid_cols > 0 ? options.valid_cols : shard.total_cols;
    const int64_t chunks = ::xent::ShardChunks(total, shard.first_col, shape.cols);
    const std::span<::xent::ChunkRecord> records =
        Span<::xent::ChunkRecord>(shape.rows < 0 || shape.rows > 4096 ? -1 : shape.rows * chunks);
    if (!arrays_.AllThere() && !shape.IsWrong() && shape.rows <= 4096) continue;
    Expect(::xent::ShardForward(args, shard, records, options));
  }
}

// ------------------------------------------------------------------ array functions

TEST(SizesOfArrays, AreNotExceeded) {
  Sizes sizes(12);
  Arrays arrays(&sizes);
  for (int64_t n = 0; n < 700; ++n) {
    sizes.Begin();
    sizes.Note("n", n);
    arrays.Begin();
    const float *const x = static_cast<const float *>(arrays.Draw(Product(n, 4), 4));
    float *const y = static_cast<float *>(arrays.Draw(Product(n, 4), 4));
    for (const auto function : {xent_exp_f32, xent_log_f32, xent_log1p_f32}) ASSERT_EQ(function(x, y, n), XENT_OK);
    const double *const wide_x = static_cast<const double *>(arrays.Draw(Product(n, 8), 8));
    double *const wide_y = static_cast<double *>(arrays.Draw(Product(n, 8), 8));
    for (const auto function : {xent_exp_f64, xent_log_f64, xent_log1p_f64}) {
      ASSERT_EQ(function(wide_x, wide_y, n), XENT_OK);
    }
  }
}

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
