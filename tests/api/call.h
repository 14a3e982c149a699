// A cross-entropy call with its tensors, for tests of the public API: inputs of any dtype with poisoned padding,
// outputs filled with a pattern, so that what was written and what was not can be told apart; and assertions on
// elements and whole results.
#ifndef XENT_TESTS_API_CALL_H_
#define XENT_TESTS_API_CALL_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "reference/rows.h"
#include "testing/data.h"
#include "xent/xent.h"

namespace xent::test {

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// The bounds of semantics.md, "Accuracy".
inline constexpr double kLossUlp = 4;
inline constexpr double kLseUlp = 4;
inline constexpr double kSoftmaxUlp = 6;
inline constexpr double kLogSoftmaxUlp = 4;
inline constexpr double kGradientUlp = 6;
inline constexpr double kBackwardUlp = 4;

enum class Function { kForward, kForwardBackward, kBackward };
inline constexpr Function kFunctions[] = {Function::kForward, Function::kForwardBackward, Function::kBackward};
const char *NameOf(Function function);

struct alignas(8) Record {
  unsigned char bytes[XENT_RECORD_BYTES];
  bool operator==(const Record &other) const = default;
};

class Call {
 public:
  using Rows = std::vector<std::vector<double>>;

  // Logits are poison until they are set; targets are 0.
  Call(xent_dtype dtype, int64_t rows, int64_t cols, int64_t stride = 0, int64_t misalign = 0);
  Call(xent_dtype dtype, const Rows &logits, std::vector<int64_t> targets, int64_t stride = 0);

  // Bell-shaped logits and uniform targets.
  void FillNormal(uint64_t seed, double deviation);

  // Every output that the function has, wired to the members below.
  xent_cross_entropy Args(Function function);
  xent_status Run(Function function);
  // Run, and a failure of the test if the status is not XENT_OK.
  void MustRun(Function function);
  // Forward for the records, then backward.
  void MustRunForwardThenBackward();

  // Whether no output has been written since construction, nor the padding of anything.
  ::testing::AssertionResult OutputsUntouched() const;
  ::testing::AssertionResult PaddingIntact() const;
  // All outputs against the reference within the bounds of semantics.md; the gradient only if the last function wrote
  // one.
  ::testing::AssertionResult MatchesReference() const;
  ::testing::AssertionResult GradientMatchesReference() const;

  double UpstreamOf(int64_t row) const;
  bool IsLive(int64_t row) const { return targets[static_cast<size_t>(row)] != options.ignore_index; }
  reference::CrossEntropy Expected() const;

  xent_dtype dtype;
  int64_t rows;
  int64_t cols;
  Matrix logits;
  std::vector<int64_t> targets;
  xent_index_type targets_type = XENT_I64;
  xent_options options = XENT_OPTIONS_INIT;
  bool pass_null_options = false;  // the defaults
  xent_exec exec = XENT_EXEC_INIT;
  Matrix upstream;
  xent_upstream upstream_kind = XENT_UPSTREAM_ONE;
  bool in_place = false;

  Matrix losses;
  Matrix lse;
  Matrix loss;
  double perplexity = kPattern;
  int64_t live_rows = static_cast<int64_t>(kPattern);
  std::vector<Record> records;
  Matrix grad;
  xent_error error = XENT_ERROR_INIT;

 private:
  static constexpr double kPattern = -77;

  std::vector<int32_t> narrow_targets_;
  std::vector<double> original_logits_;  // what an in-place gradient overwrites
};

// Options with a reduction.
xent_options WithReduction(xent_reduction reduction);

// Whether the element has exactly the bits of `value` in its dtype: sign of zero and canonical NaN included.
::testing::AssertionResult Is(const Matrix &matrix, int64_t row, int64_t col, double value);
// Whether every element of the row is so.
::testing::AssertionResult RowIs(const Matrix &matrix, int64_t row, double value);
// Whether the element is within `ulp` of the reference, counted as semantics.md does.
::testing::AssertionResult Within(const Matrix &matrix, int64_t row, int64_t col, reference::Value want, double ulp);
// Whether no element has been written since the matrix was made.
::testing::AssertionResult Untouched(const Matrix &matrix);

// A row of a matrix, decoded.
std::vector<double> DecodeRow(const Matrix &matrix, int64_t row);
Matrix MatrixOf(xent_dtype dtype, const Call::Rows &values, int64_t stride = 0);

// Whether two calls of the same shape gave the same bits in every output that the function has.
::testing::AssertionResult SameBits(const Call &a, const Call &b, Function function);

}  // namespace xent::test

#endif  // XENT_TESTS_API_CALL_H_
