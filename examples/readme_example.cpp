// Loss and gradient of two rows of logits, in one sweep.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>
#include <xent/xent.hpp>

int main() {
  const std::vector<float> logits = {2.0f, 1.0f, 0.1f,   // row 0
                                     0.5f, 2.5f, 0.3f};  // row 1
  const std::vector<std::int64_t> targets = {0, 1};
  std::vector<float> grad(logits.size());
  float loss = 0.0f;

  const xent::Status status = xent::CrossEntropyForwardBackward(
      xent::CrossEntropy<float>{
          .logits = {logits.data(), 2, 3}, .targets = targets, .reduced_loss = &loss, .grad = {grad.data(), 2, 3}},
      {.label_smoothing = 0.0, .reduction = {.kind = xent::ReductionKind::kMean}});
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message());
    return 1;
  }

  std::printf("loss %.5f\n", loss);      // 0.31854
  for (std::size_t i = 0; i < 2; ++i) {  // (softmax - onehot) / 2
    std::printf("grad %8.5f %8.5f %8.5f\n", grad[3 * i], grad[3 * i + 1], grad[3 * i + 2]);
  }
  return std::abs(loss - 0.31854f) < 1e-5f && std::abs(grad[0] + 0.17050f) < 1e-5f ? 0 : 1;
}
