// The shapes that the benchmarks run at, all in one place: logits of real models, tall matrices of few classes, single
// rows, and matrices that stay in one level of cache.
#ifndef XENT_BENCH_SHAPES_H_
#define XENT_BENCH_SHAPES_H_

#include <cstdint>

namespace xent_bench {

// With inner > 1 the classes are in the middle: [rows / inner, cols, inner], rows counting all positions.
struct Shape {
  int64_t rows, cols, inner = 1;
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
    {65536, 3},    // entailment
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

// Class-major: images, classes and positions.
constexpr Shape ClassMajor(int64_t images, int64_t classes, int64_t positions) {
  return {images * positions, classes, positions};
}
inline constexpr Shape kClassMajorShapes[] = {
    ClassMajor(8, 2, 65536),    // foreground or background, 256x256
    ClassMajor(8, 19, 65536),   // Cityscapes
    ClassMajor(8, 21, 4096),    // PASCAL VOC, 64x64
    ClassMajor(2, 150, 16384),  // ADE20K, 128x128
    ClassMajor(64, 1000, 49),   // ImageNet, 7x7
    ClassMajor(32, 81, 8732),   // COCO, the boxes of SSD
};

// Sums of exponentials: in L1, and as many rows as L2 holds, so that a call's overhead does not count.
inline constexpr Shape kExpSumShapes[] = {kL1Shape, {64, 4096}};

// The array functions: out of L2, and in L1.
inline constexpr Shape kArrayShapes[] = {{1, 1048576}, kL1Shape};

// Where every option is timed: long rows, rows of few classes, and class-major.
inline constexpr Shape kOptionShapes[] = {kVocabularyShape, {65536, 10}, ClassMajor(8, 19, 65536)};

// Independent labels.
inline constexpr Shape kBinaryShape = {1000000, 1};

// Losses to reduce: of one batch of tokens, and of many.
inline constexpr Shape kReduceShapes[] = {{2048, 1}, {1048576, 1}};

}  // namespace xent_bench

#endif  // XENT_BENCH_SHAPES_H_
