// What a benchmark works on: the logits of one shape and dtype with their targets, and the buffers for results.
#ifndef XENT_BENCH_PROBLEM_H_
#define XENT_BENCH_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "bench/shapes.h"
#include "xent/xent.h"

namespace xent_bench {

// The logits' values. Each makes another part of the kernels work.
enum class Data {
  kNormal,     // normal, deviation 2
  kMargin,     // the same, but in every other row the target is 20 above the largest other logit
  kAscending,  // from -500 to 500 along the row: every block outgrows the reference exponent of the one before
  kMasked      // normal, 30 % of the columns -inf, no target among them
};
// Returns "normal", "margin", "ascending" or "masked".
const char *Name(Data data);
// Finds the data of that name. Returns false where there is none.
bool ParseData(std::string_view name, Data *data);

// Returns "f32", "f64", "bf16" or "f16".
const char *Name(xent_dtype dtype);
int64_t ElementBytes(xent_dtype dtype);
// Returns the dtype of losses and lse: float64 for float64, else float32.
xent_dtype ArithmeticType(xent_dtype dtype);
// Read and write element i of an array of dtype. A store rounds to nearest even.
double Load(xent_dtype dtype, const void *x, int64_t i);
void Store(xent_dtype dtype, void *x, int64_t i, double value);

// Bytes aligned to 128, which no constructor has touched: pages belong to the thread that writes them first.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes);
  void *data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(void *p) const;
  };
  std::unique_ptr<void, Free> data_;
  int64_t bytes_ = 0;
};

// What the buffer `aux` holds.
enum class Aux {
  kNothing,
  kSoftmax,        // of the logits
  kLogSoftmax,     // of the logits
  kPositive,       // positive numbers of many binades
  kAboveMinusOne,  // the same minus 1
  kUnit            // uniform in (0, 1)
};

// What a call asks for beside the defaults. The last three are of binary cross-entropy.
enum class Option {
  kNone,
  kSmoothing,       // 0.1
  kExclusive,       // the same, all of it on the other classes
  kWeights,         // of the classes, with smoothing
  kRowWeights,      //
  kProbs,           // probability targets, the logits' softmax
  kSoftcap,         // 30
  kLogitScale,      // 1/2
  kZLoss,           // 1e-4
  kSmoothingZLoss,  // both
  kValidCols,       // columns past the largest target are padding
  kArgmax,          //
  kEntropy,         // with argmax and the target's log-probability
  kRank,            //
  kTopK,            // 8
  kPosWeight,       // 3
  kFocal,           // gamma 2, alpha 1/4
  kProbabilities    // as the input
};
inline constexpr int64_t kTop = 8;

struct Problem {
  Problem(xent_dtype dtype, Shape shape, Data data);

  int64_t elements() const { return shape.rows * shape.cols; }
  int64_t matrix_bytes() const { return elements() * ElementBytes(dtype); }
  // Returns the place of row i and column j in a matrix of the layout.
  int64_t Offset(int64_t i, int64_t j) const {
    const int64_t d = shape.inner;
    return i / d * d * shape.cols + j * d + i % d;
  }
  void *slot(int64_t i) const { return static_cast<char *>(out.data()) + i * slot_bytes; }
  // The matrix of this shape and dtype at `data`, without gaps.
  xent_matrix matrix(void *data) const { return {.data = data, .stride = 0, .dtype = dtype, .reserved = 0}; }
  // Copies the logits to slot i, whose values a call in place has overwritten.
  void RestoreSlot(int64_t i) const;
  // Makes `aux` hold what an operation needs as input, of the same size as the logits.
  void FillAux(Aux what);
  // Makes `upstream` hold normal values, finite whatever `data` is.
  void FillUpstream();
  // Makes `records` and `lse` hold what forward saves.
  void FillRecords();
  // Makes `class_weights` and `row_weights` hold weights from 1/2 to 2, of the arithmetic type.
  void FillWeights();
  // Makes `row_maxima` hold each row's largest logit, of float32.
  void FillRowMaxima();

  const xent_dtype dtype;
  const Shape shape;
  const Data data;
  Option option = Option::kNone;  // of the calls that are made
  // Calls that are timed together. One for large matrices; for small ones as many as have results of their own in half
  // of L2, so that reading the clock and restoring logits do not count.
  int64_t slots;
  int64_t slot_bytes;
  Buffer logits;
  Buffer out;  // `slots` matrices
  Buffer aux;
  Buffer upstream;
  Buffer records;
  Buffer workspace;  // of xent_workspace_bytes for kManyThreads, or for all if those are more
  Buffer class_weights, row_weights;
  std::vector<int64_t> targets;
  Buffer losses, lse, loss;    // arithmetic type
  Buffer entropy, logprobs;    // arithmetic type
  Buffer argmax, rank, top;    // int64; `top` has kTop a row
  std::vector<double> maxima;  // of read_sweep
  std::vector<float> row_maxima;
  xent_diagnosis diagnosis = XENT_DIAGNOSIS_LOGITS;
  Aux aux_holds = Aux::kNothing;
};

}  // namespace xent_bench

#endif  // XENT_BENCH_PROBLEM_H_
