// Short rows are done many at once where the call is plain (rows/plan.h). Row weights of 1 change nothing but that: the
// rows are then done one by one. Both must give the same bits, of everything that is written, whatever the rows hold
// and however they are grouped.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "reference/number.h"
#include "testing/data.h"
#include "testing/exec.h"
#include "testing/target.h"
#include "testing/tensor.h"
#include "xent/xent.h"

namespace xent::test {
namespace {

class SmallRows : public TargetTest {};
XENT_INSTANTIATE_TARGETS(SmallRows);

enum class Kind { kNormal, kSpecial, kWide };

struct Inputs {
  Matrix logits;
  std::vector<int32_t> targets;
};

Inputs MakeInputs(xent_dtype dtype, int64_t rows, int64_t cols, Kind kind) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  Random random(static_cast<uint64_t>(rows * 2000 + cols));
  Inputs in{Matrix(dtype, rows, cols, cols + 2, 1), std::vector<int32_t>(static_cast<size_t>(rows))};
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t what = kind == Kind::kSpecial ? random.Below(14) : 0;
    int32_t &target = in.targets[static_cast<size_t>(i)];
    target = static_cast<int32_t>(what == 1 ? -100 : random.Below(cols));
    // Margins to both sides of where losses vanish, references are raised, and sums leave their range.
    const double margin = kind == Kind::kWide ? (random.Uniform() - 0.5) * 400 : 0;
    for (int64_t j = 0; j < cols; ++j) {
      double z = random.Normal(2);
      if (j == target) z += margin;
      if (what == 2 && j == random.Below(cols)) z = std::numeric_limits<double>::quiet_NaN();
      if (what == 3 && random.Below(3) == 0) z = -kInfinity;
      if (what == 4 && j == cols - 1) z = 300;
      if (what == 5) z += 0x1p21;
      if (what == 6) z = -kInfinity;
      if (what == 7 && j == target) z = 0x1p20;
      if (what == 8 && j == cols / 2) z = kInfinity;
      if (what == 9) z = 0.5;
      if (what == 10 && j != target) z = -kInfinity;
      if (what == 11) z -= 1e6;
      if (what == 12 && j == target) z = -kInfinity;
      in.logits.SetInRange(i, j, z);
    }
  }
  return in;
}

struct Options {
  bool gradient, in_place, everything;
  xent_reduction_kind reduction;
  int32_t threads;
  int64_t padding;  // columns past valid_cols
};

// Every byte that a call writes.
std::string Outputs(const Inputs &in, const Options &o, bool weighted) {
  const int64_t rows = in.logits.rows();
  const xent_dtype dtype = in.logits.dtype();
  const auto count = static_cast<size_t>(rows);
  std::vector<double> losses(count), lse(count), logprobs(count);
  std::vector<uint64_t> records(count * XENT_RECORD_BYTES / 8);
  std::vector<float> ones_f32(count, 1.0f);
  std::vector<double> ones_f64(count, 1.0);
  double loss = 0, upstream = 0, perplexity = 0;
  Matrix grad = o.in_place ? in.logits : Matrix(dtype, rows, in.logits.cols(), in.logits.cols() + 3);

  xent_cross_entropy args = XENT_CROSS_ENTROPY_INIT;
  args.rows = rows;
  args.cols = in.logits.cols();
  args.logits = View(in.logits);
  args.targets = {.data = in.targets.data(), .type = XENT_I32, .reserved = 0};
  args.row_losses = losses.data();
  if (o.reduction != XENT_REDUCTION_NONE) args.reduced_loss = &loss;
  xent_statistics statistics = XENT_STATISTICS_INIT;
  if (o.everything) {
    statistics.lse = lse.data();
    statistics.logprobs = logprobs.data();
    statistics.perplexity = &perplexity;
    args.statistics = &statistics;
    args.records = records.data();
  }
  if (weighted) args.row_weights = dtype == XENT_F64 ? static_cast<const void *>(ones_f64.data()) : ones_f32.data();
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  options.reduction.kind = o.reduction;
  if (o.padding > 0) options.valid_cols = args.cols - o.padding;
  const xent_exec exec = TeamOf(o.threads);
  auto function = xent_cross_entropy_forward;
  if (o.gradient) {
    function = xent_cross_entropy_forward_backward;
    if (dtype == XENT_F64) {
      upstream = 0.3;
    } else {
      const float u = 0.3f;
      std::memcpy(&upstream, &u, sizeof(u));
    }
    args.upstream.data = &upstream;
    args.grad = View(grad);
    if (o.in_place) args.logits = args.grad;
  }
  xent_error error = XENT_ERROR_INIT;
  EXPECT_EQ(function(&args, &options, &exec, &error), XENT_OK) << error.message;
  EXPECT_TRUE(grad.PaddingIntact());

  std::string bytes;
  const auto append = [&](const void *data, size_t size) { bytes.append(static_cast<const char *>(data), size); };
  append(losses.data(), count * 8);
  append(lse.data(), count * 8);
  append(logprobs.data(), count * 8);
  append(records.data(), count * XENT_RECORD_BYTES);
  append(&loss, 8);
  append(&perplexity, 8);
  for (int64_t i = 0; o.gradient && i < rows; ++i) {
    append(grad.row(i), static_cast<size_t>(grad.cols() * grad.Bytes()));
  }
  return bytes;
}

void ExpectSame(const Inputs &in, const Options &o) {
  const std::string one = Outputs(in, o, true), many = Outputs(in, o, false);
  if (one == many) return;
  size_t at = 0;
  while (one[at] == many[at]) ++at;
  ADD_FAILURE() << reference::NameOf(in.logits.dtype()) << ", " << in.logits.rows() << "x" << in.logits.cols()
                << (o.gradient ? ", gradient" : "") << (o.in_place ? ", in place" : "") << ", reduction " << o.reduction
                << ", " << o.threads << " threads: byte " << at << " of losses, lse, logprobs (8 bytes a row each), "
                << "records (64 a row), loss, perplexity, gradient";
}

TEST_P(SmallRows, AreAsOneByOne) {
  for (const xent_dtype dtype : kDtypes) {
    std::vector<int64_t> widths;
    for (int64_t cols = 1; cols <= 36; ++cols) widths.push_back(cols);
    for (const int64_t cols : {64, 100, 127, 128, 129, 500, 1000, 1023, 1024, 1025}) widths.push_back(cols);
    for (const int64_t cols : widths) {
      for (const Kind kind : {Kind::kNormal, Kind::kSpecial, Kind::kWide}) {
        const int64_t rows = 1 + (cols * 7 + static_cast<int64_t>(kind)) % 40;
        const Inputs in = MakeInputs(dtype, rows, cols, kind);
        const bool odd = cols % 2 == 1;
        const int64_t padding = cols > 4 && cols % 3 == 0 && kind == Kind::kNormal ? 1 : 0;
        const auto reduction = odd ? XENT_REDUCTION_MEAN : XENT_REDUCTION_NONE;
        if (padding > 0) {  // the padding's columns are nobody's target
          Inputs padded = in;
          for (int32_t &t : padded.targets) t = t < 0 ? t : static_cast<int32_t>(t % (cols - padding));
          for (const bool in_place : {false, true}) ExpectSame(padded, {true, in_place, odd, reduction, 1, padding});
          continue;
        }
        ExpectSame(in, {false, false, odd, reduction, 1, 0});
        ExpectSame(in, {true, false, !odd, reduction, 1, 0});
        ExpectSame(in, {true, true, odd, reduction, 1, 0});
      }
    }
  }
}

// The sum of the losses, whose order is that of the rows in groups of 1/256 of them: tiles across groups, tiny and huge
// losses, ignored rows.
TEST_P(SmallRows, AddUpAsOneByOne) {
  for (const int64_t rows : {255, 256, 257, 4096, 4100, 30000}) {
    for (const Kind kind : {Kind::kNormal, Kind::kSpecial, Kind::kWide}) {
      const Inputs in = MakeInputs(XENT_F32, rows, 3, kind);
      for (const int32_t threads : {1, 3}) {
        ExpectSame(in, {false, false, false, XENT_REDUCTION_SUM, threads, 0});
        ExpectSame(in, {true, false, rows % 2 == 0, XENT_REDUCTION_MEAN, threads, 0});
      }
    }
  }
}

}  // namespace
}  // namespace xent::test
