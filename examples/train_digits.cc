// The demo: golden numbers, a classifier trained on real handwritten digits, and the speed of the fused kernels.
// Usage: train_digits [DATA_DIR]. Exit code 1, with the reason, when anything comes out wrong.
#include <chrono>
#include <cstdio>

#include "demo/common.h"
#include "demo/golden.h"
#include "demo/speed.h"
#include "demo/training.h"
#include "xent/xent.hpp"

#if !defined(XENT_EXAMPLE_DATA)
#define XENT_EXAMPLE_DATA "examples/data"
#endif

int main(int argc, char **argv) {
  if (argc > 2 || (argc == 2 && argv[1][0] == '-')) {
    std::fprintf(stderr, "usage: train_digits [DATA_DIR]\n");
    return 2;
  }
  const auto begin = std::chrono::steady_clock::now();
  std::printf("xent %s on %s, %d thread%s\n\n", xent::Version(), xent::ActiveTarget(), xent::DefaultThreads(),
              xent::DefaultThreads() == 1 ? "" : "s");
  demo::GoldenNumbers();
  demo::TrainDigits(argc == 2 ? argv[1] : XENT_EXAMPLE_DATA);
  demo::SpeedTable();
  std::printf("Everything checked came out right; %.1f s.\n",
              std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  return 0;
}
