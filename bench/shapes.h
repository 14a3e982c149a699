// The shapes that the benchmarks run at, all in one place: logits of real models, tall matrices of few classes, single
// rows, and matrices that stay in one level of cache.
#ifndef XENT_BENCH_SHAPES_H_
#define XENT_BENCH_SHAPES_H_

#include <cstdint>

namespace xent_bench {

struct Shape {
  int64_t rows, cols;
  bool operator==(const Shape &) const = default;
};

// Far larger than a core's L2, mostly about 256 MB in float32: what leaves a training step of a language model.
inline constexpr Shape kVocabularyShape = {2048, 32000};      // Llama 2
inline constexpr Shape kHalfVocabularyShape = {4096, 32000};  // as many bytes in half precision
inline constexpr Shape kVocabularyShapes[] = {
    kVocabularyShape, {2048, 30522},  // BERT
    {1024, 50257},                    // GPT-2
    {512, 128256},                    // Llama 3
    {512, 151936},                    // Qwen 2.5
    {256, 262144},                    // Gemma 3
};

// Many rows of few classes, and ImageNet.
inline constexpr Shape kClassifierShapes[] = {
    {65536, 2},    // yes or no
    {65536, 4},    // bases of DNA
    {65536, 10},   // MNIST's digits
    {65536, 16},   // one vector of AVX-512
    {65536, 64},   // codons
    {65536, 100},  // CIFAR-100
    {8192, 1000},  // ImageNet
};

// What leaves one step of generation (Llama 3 and Gemma 3), which only threads inside the row can share, and the
// smallest call worth its overhead.
inline constexpr Shape kSingleRowShapes[] = {{1, 128256}, {1, 262144}, {1, 10}};

// A generation step of eight sequences: fewer rows than threads.
inline constexpr Shape kFewRowsShape = {8, 128256};

// Threads that kFewRowsShape runs on too, more than many machines have: rows must be cut to feed them.
inline constexpr int kManyThreads = 16;

// In L1 and in L2: what the arithmetic costs when memory does not.
inline constexpr Shape kL1Shape = {1, 4096};
inline constexpr Shape kL2Shape = {1, 32000};

// Where softmax has peers: in memory, in L2, and short rows.
inline constexpr Shape kPeerShapes[] = {kVocabularyShape, kL2Shape, {65536, 100}};

// Class-major: 8 images of 19 classes (Cityscapes) and 65536 positions.
inline constexpr int64_t kImages = 8;
inline constexpr Shape kClassMajorShape = {kImages * 65536, 19};

// Sums of exponentials: in L1, and as many rows as L2 holds, so that a call's overhead does not count.
inline constexpr Shape kExpSumShapes[] = {kL1Shape, {64, 4096}};

// The array functions: out of L2, and in L1.
inline constexpr Shape kArrayShapes[] = {{1, 1048576}, kL1Shape};

// Losses to reduce: of one batch of tokens, and of many.
inline constexpr Shape kReduceShapes[] = {{2048, 1}, {1048576, 1}};

}  // namespace xent_bench

#endif  // XENT_BENCH_SHAPES_H_
