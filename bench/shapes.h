// The shapes that the benchmarks run at, all in one place: logits of real models, tall matrices of few classes, single
// rows, and matrices that stay in one level of cache.
#ifndef XENT_BENCH_SHAPES_H_
#define XENT_BENCH_SHAPES_H_

#include <cstdint>

namespace xent_bench {

struct Shape {
  int64_t rows, cols;
};

// Far larger than a core's L2, about 256 MB in float32: what leaves a training step of a language model with the
// vocabulary of Llama 2, GPT-2 and Llama 3.
inline constexpr Shape kVocabularyShape = {2048, 32000};
inline constexpr Shape kVocabularyShapes[] = {kVocabularyShape, {1024, 50257}, {512, 128256}};

// Two classes, ten digits, a hundred and a thousand kinds of images.
inline constexpr Shape kClassifierShapes[] = {{65536, 2}, {65536, 10}, {65536, 100}, {8192, 1000}};

// One long row, which only threads inside the row can share, and the smallest call worth its overhead.
inline constexpr Shape kSingleRowShapes[] = {{1, 262144}, {1, 10}};

// In L1 and in L2: what the arithmetic costs when memory does not.
inline constexpr Shape kL1Shape = {1, 4096};
inline constexpr Shape kL2Shape = {1, 32000};

// The array functions: out of L2, and in L1.
inline constexpr Shape kArrayShapes[] = {{1, 1048576}, kL1Shape};

// Losses to reduce: of one batch of tokens, and of many.
inline constexpr Shape kReduceShapes[] = {{2048, 1}, {1048576, 1}};

}  // namespace xent_bench

#endif  // XENT_BENCH_SHAPES_H_
