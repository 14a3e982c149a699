// A vocabulary cut into three slices, each of which could be a process of its own: the slices give chunk records, these
// are brought together and combined, and each slice gets its gradient from the result. The cuts lie at multiples of
// ChunkCols(), so loss and gradient have the bits of the unsharded call. Prints OK, or what differs with exit code 1.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>
#include <xent/xent.hpp>

namespace {

constexpr std::int64_t kRows = 7;
constexpr std::int64_t kCols = 10000;
constexpr int kSlices = 3;

const std::int64_t chunk_cols = xent::ChunkCols(kCols);
const std::int64_t first[kSlices + 1] = {0, 3 * chunk_cols, 7 * chunk_cols, kCols};  // where the slices begin

std::vector<float> logits(static_cast<std::size_t>(kRows *kCols));
const std::vector<std::int64_t> targets = {0, 3071, 3072, -100, 7167, 7168, 9999};

struct Result {
  float loss = 0.0f;
  std::vector<float> grad = std::vector<float>(static_cast<std::size_t>(kRows * kCols));
};

void Check(const xent::Status &status) {
  if (status.ok()) return;
  std::fprintf(stderr, "shards: %s\n", status.message());
  std::exit(1);
}

// [README]
void Sharded(Result &result) {
  const auto slice = [](int s) {
    return xent::CrossEntropy<float>{
        .logits = {.data = logits.data() + first[s], .rows = kRows, .cols = first[s + 1] - first[s], .stride = kCols},
        .targets = targets};
  };
  std::vector<xent::ChunkRecord> chunks[kSlices];
  for (int s = 0; s < kSlices; ++s) {  // on each process: its slice
    const std::int64_t count = kRows * xent::ShardChunks(kCols, first[s], first[s + 1] - first[s]);
    chunks[s].resize(static_cast<std::size_t>(count));
    Check(xent::ShardForward(slice(s), {.total_cols = kCols, .first_col = first[s]}, chunks[s]));
  }

  const std::span<const xent::ChunkRecord> lists[kSlices] = {chunks[0], chunks[1], chunks[2]};  // after an all-gather
  std::vector<xent::Record> records(kRows);
  Check(xent::ShardCombine(
      xent::CrossEntropy<float>{
          .logits = {nullptr, kRows, kCols}, .targets = targets, .reduced_loss = &result.loss, .records = records},
      lists));

  for (int s = 0; s < kSlices; ++s) {  // on each process again
    xent::CrossEntropy<float> args = slice(s);
    args.records = records;
    args.grad = {
        .data = result.grad.data() + first[s], .rows = kRows, .cols = args.logits.cols, .stride = args.logits.stride};
    Check(xent::ShardBackward(args, {.total_cols = kCols, .first_col = first[s]}));
  }
}
// [README]

}  // namespace

int main() {
  std::uint32_t state = 1;  // a linear congruential generator will do here
  for (float &z : logits) {
    state = 1664525u * state + 1013904223u;
    z = std::ldexp(static_cast<float>(state >> 8), -20) - 8.0f;  // [-8, 8)
  }

  Result whole, sharded;
  Check(xent::CrossEntropyForwardBackward(xent::CrossEntropy<float>{.logits = {logits.data(), kRows, kCols},
                                                                    .targets = targets,
                                                                    .reduced_loss = &whole.loss,
                                                                    .grad = {whole.grad.data(), kRows, kCols}}));
  Sharded(sharded);
  if (!(std::isfinite(whole.loss) && whole.loss > 0.0f)) {
    std::fprintf(stderr, "shards: the loss is %g\n", static_cast<double>(whole.loss));
    return 1;
  }
  const bool same_loss = std::memcmp(&whole.loss, &sharded.loss, sizeof(float)) == 0;
  if (!same_loss || std::memcmp(whole.grad.data(), sharded.grad.data(), whole.grad.size() * sizeof(float)) != 0) {
    std::fprintf(stderr, "shards: the slices gave another %s than the unsharded call\n",
                 same_loss ? "gradient" : "loss");
    return 1;
  }
  std::printf("OK: loss %.6f, the same bits from one call and from %d slices\n", static_cast<double>(whole.loss),
              kSlices);
  return 0;
}
