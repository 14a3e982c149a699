// Every error bound that docs/semantics.md ("Accuracy") and include/xent/xent.h promise, in ULP of the arithmetic type.
// The comment of each says at which value its ULP is counted. bounds_test.cc compares these numbers with both
// documents. Includes nothing, so that tests and benchmarks of any kind may include it.
#ifndef XENT_TESTS_TESTING_BOUNDS_H_
#define XENT_TESTS_TESTING_BOUNDS_H_

namespace xent::test {

// The array functions: the exact value.
inline constexpr double kArrayUlp = 1.0;

// Row functions.
inline constexpr double kLseUlp = 4;         // the larger of |m| and log V
inline constexpr double kSoftmaxUlp = 6;     // the exact value
inline constexpr double kLogSoftmaxUlp = 4;  // the exact value
inline constexpr double kBackwardUlp = 4;    // the sum of the terms' magnitudes

// Cross-entropy.
inline constexpr double kLossUlp = 4;            // the exact loss; negative weights: the sum of the terms' magnitudes
inline constexpr double kReducedLossUlp = 4;     // sum |loss| over the denominator; of every family
inline constexpr double kLogProbabilityUlp = 4;  // the exact value
inline constexpr double kEntropyUlp = 8;         // the exact value
// The larger of the terms; with an index target, no smoothing and no z_loss the exact value.
inline constexpr double kGradientUlp = 6;
// In the gradient p below 2 to these powers counts as 0: in float32 lanes, in those of float64; of a softcap's
// derivative sech^2 below the third.
inline constexpr int kKeptExponentFloat32 = -198;
inline constexpr int kKeptExponentFloat64 = -1532;
inline constexpr int kKeptSlopeExponent = -1022;
// Under softcap all of these hold for some transformed logits that are each within this much of their ULP,
inline constexpr double kSoftcapUlp = 2;
// and for a derivative dz within kSoftcapSlopeUlp + kSoftcapSlopeUlpPerArgument |scale z / cap| of its ULP.
inline constexpr double kSoftcapSlopeUlp = 4;
inline constexpr double kSoftcapSlopeUlpPerArgument = 4;

// Shards that are cut anywhere, against the unsharded call: the value itself, of gradients the larger term. The last
// one holds where logits lie beyond 2^20 or hundreds apart.
inline constexpr double kShardUlp = 2;
inline constexpr double kShardGradientUlp = 2;
inline constexpr double kShardFarGradientUlp = 4;

// Divergences.
inline constexpr double kDivergenceUlp = 8;          // the sum of the terms' magnitudes
inline constexpr double kDivergenceGradientUlp = 6;  // the larger of the terms

// Binary cross-entropy.
inline constexpr double kBinaryUlp = 4;          // the sum of the terms' magnitudes
inline constexpr double kBinaryGradientUlp = 4;  // the larger term
inline constexpr double kFocalUlp = 16;          // loss and gradient, counted as without focal factor

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_BOUNDS_H_
