// Row statistics: what evaluation and reinforcement learning ask of a row beside its loss. They touch no bit of it.
#ifndef XENT_SRC_ROWS_STATISTICS_H_
#define XENT_SRC_ROWS_STATISTICS_H_

#include <algorithm>
#include <cstdint>

#include "numbers/fp_mode.h"
#include "rows/call.h"
#include "rows/general_row.h"

namespace xent::internal {

inline constexpr int32_t kMaxTopK = 64;

// Statistics that need the row's exponentials.
inline bool WantsExponentials(const xent_cross_entropy &args) {
  return args.entropy != nullptr || args.topk_logprobs != nullptr || args.gathered != nullptr;
}

// function(block, cols, first column) over the row in the order of its columns, which lie Inner() apart.
template <class In, class Function>
void ForEachBlock(const Call &call, int64_t row, const Function &function) {
  const In *const logits = call.Logits<In>(row);
  const int64_t step = call.Inner();
  if (step == 1) return function(logits, call.shape.cols, int64_t{0});
  constexpr int64_t kBlockCols = 256;
  In block[kBlockCols];
  for (int64_t first = 0; first < call.shape.cols; first += kBlockCols) {
    const int64_t cols = std::min(kBlockCols, call.shape.cols - first);
    for (int64_t i = 0; i < cols; ++i) block[i] = logits[(first + i) * step];
    function(static_cast<const In *>(block), cols, first);
  }
}

// The sums of a row that is not computed by them otherwise, chunk after chunk; its columns are adjacent.
template <class In>
XENT_NOINLINE GeneralRow<Arithmetic<In>> SumRow(const Call &call, int64_t row, bool with_lse = false) {
  using T = Arithmetic<In>;
  const FpMode mode(Subnormals::kKeep);
  const RowShape &shape = call.shape;
  GeneralRow<T> result;
  for (int64_t chunk = 0; chunk < shape.chunks; ++chunk) {
    const int64_t first = chunk * shape.chunk_cols;
    GeneralSums sums;
    call.kernels.general->sums[kDtypeOf<In>](
        {call.Logits<In>(row) + first, shape.ColsOf(chunk), first, call.transform, Labels{}, -1, Wide{},
         with_lse || WantsExponentials(call.args), call.args.entropy != nullptr, false},
        &sums);
    Merge<T>(sums, call.transform.Factor(), &result);
  }
  return result;
}

// `target` is -1 where there is none. The lowest index among equals is the larger one throughout.
template <class In>
XENT_NOINLINE void WriteStatistics(const Call &call, int64_t row, const GeneralRow<Arithmetic<In>> &sums,
                                   int64_t target) {
  using T = Arithmetic<In>;
  const FpMode mode(Subnormals::kKeep);  // subnormal logits differ too
  using N = Number<T>;
  const xent_cross_entropy &args = call.args;
  const GeneralKernels &kernels = *call.kernels.general;
  const double factor = call.transform.Factor();
  const bool nan = sums.IsNan();
  const auto log_probability = [&](double logit) -> T {
    if (nan) return static_cast<T>(kNan);
    kernels.values(call.transform, &logit, 1);
    const N gap = Gap(sums, factor, logit);
    return T{0} - RoundTo<T>(gap);
  };
  Call::Write(args.argmax, row, nan ? int64_t{-1} : sums.argmax);
  Call::Write(args.hits, row, static_cast<uint8_t>(!nan && target >= 0 && sums.argmax == target));
  if (args.entropy != nullptr) Call::Write(args.entropy, row, nan ? static_cast<T>(kNan) : RoundTo<T>(Entropy(sums)));
  if (args.rank != nullptr) {
    int64_t rank = -1;
    if (!nan && target >= 0) {
      rank = 0;
      const double logit = static_cast<double>(Widen(call.Logits<In>(row)[target * call.Inner()]));
      ForEachBlock<In>(call, row, [&](const In *block, int64_t cols, int64_t first) {
        rank += kernels.rank[kDtypeOf<In>](block, cols, logit, target - first);
      });
    }
    args.rank[row] = rank;
  }
  if (args.topk_logprobs != nullptr || args.topk_indices != nullptr) {
    const int64_t k = args.top_k;
    RankedLogit best[kMaxTopK];
    int64_t count = 0;
    if (!nan) {
      ForEachBlock<In>(call, row, [&](const In *block, int64_t cols, int64_t first) {
        kernels.top_k[kDtypeOf<In>](block, cols, first, k, best, &count);
      });
    }
    for (int64_t i = 0; i < k; ++i) {
      Call::Write(args.topk_indices, row * k + i, nan ? int64_t{-1} : best[i].column);
      if (args.topk_logprobs != nullptr) Call::Write(args.topk_logprobs, row * k + i, log_probability(best[i].logit));
    }
  }
  if (args.gathered == nullptr) return;
  for (int64_t i = row * args.gather_count; i < (row + 1) * args.gather_count; ++i) {
    const double logit = static_cast<double>(Widen(call.Logits<In>(row)[args.gather_cols[i] * call.Inner()]));
    Call::Write(args.gathered, i, log_probability(logit));
  }
}

// What forward gives of an ignored row: zeros, and -1 for indices.
template <class T>
XENT_NOINLINE void WriteIgnoredOutputs(const Call &call, int64_t row) {
  const xent_cross_entropy &args = call.args;
  Call::Write(args.losses, row, T{0});
  Call::Write(args.lse, row, T{0});
  Call::Write(args.logprobs, row, T{0});
  if (args.records != nullptr) *call.RecordOf(row) = Record::Make(args.dtype, Record::kIgnored);
  Call::Write(args.argmax, row, int64_t{-1});
  Call::Write(args.hits, row, uint8_t{0});
  Call::Write(args.entropy, row, T{0});
  Call::Write(args.rank, row, int64_t{-1});
  for (int64_t i = row * args.top_k; i < (row + 1) * args.top_k; ++i) {
    Call::Write(args.topk_logprobs, i, T{0});
    Call::Write(args.topk_indices, i, int64_t{-1});
  }
  for (int64_t i = row * args.gather_count; i < (row + 1) * args.gather_count; ++i) {
    Call::Write(args.gathered, i, T{0});
  }
}

// An ignored row, with the statistics that need no target where options say so: sum_row() gives what they need.
template <class In, class SumRowFunction>
XENT_NOINLINE void WriteIgnoredRow(const Call &call, int64_t row, const SumRowFunction &sum_row) {
  using T = Arithmetic<In>;
  if (call.mode != Mode::kBackward) {
    WriteIgnoredOutputs<T>(call, row);
    if (call.options.stats_of_ignored != 0 && (call.args.lse != nullptr || call.wants_statistics)) {
      const GeneralRow<T> sums = sum_row();
      const bool nan = sums.IsNan();
      if (call.args.lse != nullptr) {
        const T lse = nan ? static_cast<T>(kNan) : RoundTo<T>(LogSumExp(sums, call.transform.Factor()));
        Call::Write(call.args.lse, row, lse);
      }
      WriteStatistics<In>(call, row, sums, -1);
    }
  }
  if (call.WritesGradients())
    call.FillGradients<In>(row, 0, call.args.cols, 0.0);  // last: in place the logits end here
}

}  // namespace xent::internal
#endif  // XENT_SRC_ROWS_STATISTICS_H_
