// Every operation that is timed, and how it is called.
#ifndef XENT_BENCH_OPERATIONS_H_
#define XENT_BENCH_OPERATIONS_H_

#include <cstdint>
#include <string>

#include "bench/problem.h"
#include "xent/xent.h"

namespace xent_bench {

enum class Op {
  kForward,
  kForwardBackwardInplace,
  kForwardBackward,
  kForwardBackwardWorkspace,
  kBackward,
  kSoftmax,
  kLogSoftmax,
  kLogSumExp,
  kSoftmaxBackward,
  kLogSoftmaxBackward,
  kCheckLogits,
  kReduce,
  kExp,
  kLog,
  kLog1p,
  kExpSum,
  kBceForward,
  kBceForwardBackward,
  kKlForward,
  kKlForwardBackward,
  kJensenShannonForward,
  kJensenShannonForwardBackward,
  kReadSweep,
  kCopy,
  kInPlaceScale
};

// What an operation is computed by: xent, one of the baselines in baselines.h, or a peer in peers.h. The yardsticks are
// the same for every source.
enum class Source { kLibrary, kNaive, kScalar, kContrib, kSleef, kOneDnn };

// Returns whether the source has the operation: xent has all of them. oneDNN is compared at few shapes.
bool Does(Source source, Op op, Shape shape, Option option);

// Returns "forward", "naive_forward", "forward_backward_softcap", "contrib_exp_sum" and the like.
std::string Name(Op op, Source source, Option option);

// Returns the options that a cross-entropy call is made with.
xent_cross_entropy_options OptionsOf(const Problem &problem);

// A call of the cross-entropy. It refers to itself, so it must stay where it is.
struct CrossEntropyCall {
  CrossEntropyCall() = default;
  CrossEntropyCall(const CrossEntropyCall &) = delete;
  CrossEntropyCall &operator=(const CrossEntropyCall &) = delete;

  // Null where the operation needs defaults alone.
  const xent_cross_entropy_options *given_options() const { return has_options ? &options : nullptr; }

  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  bool has_options = false;
  xent_statistics statistics = XENT_STATISTICS_INIT;
};
// Fills a new call for an operation of the cross-entropy, which are those up to kBackward.
void FillCall(Op op, const Problem &problem, int threads, int64_t slot, CrossEntropyCall *call);

// Returns the bytes that the operation must move: each matrix that it reads or writes counts once. Targets, losses and
// records do not count.
int64_t BytesMoved(Op op, const Problem &problem);

// Returns whether one call computes loss and gradient.
bool IsForwardBackward(Op op);

// Returns whether the operation is a divergence, and the options that it is called with.
bool IsDivergence(Op op);
xent_divergence_options DivergenceOptionsOf(Op op);

// Fills inputs and weights of a binary cross-entropy call, and returns its options.
void FillBinary(const Problem &problem, xent_binary_cross_entropy *args);
xent_binary_cross_entropy_options BinaryOptionsOf(Option option);

// Returns whether the result overwrites the logits, so that they must be restored between calls.
bool IsInPlace(Op op);

// The pieces of which read_sweep takes the maximum. A piece is a row. Where rows are so short that reducing a vector to
// a number would cost more than reading them it is several rows, and where threads outnumber rows, a part of a row.
struct SweepSegments {
  SweepSegments(Shape shape, int threads);
  int64_t Begin(int64_t s) const { return s * length; }
  int64_t Length(int64_t s) const { return length < total - s * length ? length : total - s * length; }

  int64_t total, length, count;
};

// Fills the inputs that the operation needs beyond the logits.
void Prepare(Op op, Problem *problem);

// Makes one call. In-place operations work on slot `slot`, the others write their result to slot 0.
xent_status Run(Op op, Source source, Problem *problem, int threads, int64_t slot);

// Runs the operation once and compares rows of its result with the reference of the tests. Returns an empty string, or
// what is wrong.
std::string Check(Op op, Source source, Problem *problem, int threads);

}  // namespace xent_bench

#endif  // XENT_BENCH_OPERATIONS_H_
