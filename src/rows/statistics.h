// Row statistics: what evaluation and reinforcement learning ask of a row beside its loss. They touch no bit of it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "rows/call.h"
#include "rows/general_row.h"

namespace xent::internal {

inline constexpr int64_t kMaxTopK = 64;

// Whether statistics need the row's columns once its sums are there.
inline bool NeedColumns(const xent_statistics &s) {
  return s.rank != nullptr || s.topk_logprobs != nullptr || s.topk_indices != nullptr || s.gathered != nullptr;
}
// Whether they need a look at the row of their own; lse, logprobs and the reduced ones come with the loss.
inline bool NeedLook(const xent_statistics &s) {
  return s.argmax != nullptr || s.hits != nullptr || s.entropy != nullptr || NeedColumns(s);
}
// Whether they need log-probabilities of columns.
inline bool NeedLogProbabilities(const xent_statistics &s) {
  return s.topk_logprobs != nullptr || s.gathered != nullptr;
}
// Whether they need the row's exponentials.
inline bool NeedExponentials(const xent_statistics &s) { return s.entropy != nullptr || NeedLogProbabilities(s); }

// Calls function(block, cols, first column) over the row in the order of its columns, which lie `inner` apart.
template <class In, class Function>
void ForEachBlock(const Call &call, int64_t row, const Function &function) {
  const In *const logits = call.Logits<In>(row);
  const int64_t step = call.shape.inner;
  if (step == 1) return function(logits, call.shape.cols, int64_t{0});
  constexpr int64_t kBlockCols = 8;  // with more of them a float64 row would need more than 16 KB of stack in all
  In block[kBlockCols];
  for (int64_t first = 0; first < call.shape.cols; first += kBlockCols) {
    const int64_t cols = std::min(kBlockCols, call.shape.cols - first);
    for (int64_t i = 0; i < cols; ++i) block[i] = logits[(first + i) * step];
    function(static_cast<const In *>(block), cols, first);
  }
}

// Returns the sums of a row whose path does not compute them, chunk after chunk where its columns are adjacent.
template <class In>
XENT_NOINLINE GeneralRow<Arithmetic<In>> SumRow(const Call &call, int64_t row, bool with_lse) {
  GeneralRow<Arithmetic<In>> result;
  const bool in_tiles = call.plan.path == Path::kPositions || call.plan.path == Path::kAcross;
  for (int64_t i = 0; i < call.shape.chunks; ++i) {
    GeneralTask task = call.TaskOf(call.args.logits, row, in_tiles ? 1 : 0, call.shape.Chunk(i));
    task.transform = call.transform;
    task.sums = with_lse || NeedExponentials(call.statistics);
    task.entropy = call.statistics.entropy != nullptr;
    GeneralSums sums;
    call.kernels->general->sums[kDtypeOf<In>](task, &sums);
    result.Merge(sums, call.transform.Factor());
  }
  return result;
}

// Writes what statistics are of a row that has none: `value`, and -1 for indices.
template <class T>
void WriteNoStatistics(const Call &call, int64_t row, T value) {
  const xent_statistics &out = call.statistics;
  Call::Write(out.argmax, row, int64_t{-1});
  Call::Write(out.hits, row, uint8_t{0});
  Call::Write(out.entropy, row, value);
  Call::Write(out.rank, row, int64_t{-1});
  for (int64_t i = row * out.top_k; i < (row + 1) * out.top_k; ++i) {
    Call::Write(out.topk_logprobs, i, value);
    Call::Write(out.topk_indices, i, int64_t{-1});
  }
  for (int64_t i = row * out.gather_count; i < (row + 1) * out.gather_count; ++i) {
    Call::Write(out.gathered, i, value);
  }
}

// Writes the statistics that the sums alone give.
template <class In, class Sums>
void WriteStatisticsOfSums(const Call &call, int64_t row, const Sums &sums, int64_t target) {
  const xent_statistics &out = call.statistics;
  Call::Write(out.argmax, row, sums.argmax);
  Call::Write(out.hits, row, static_cast<uint8_t>(target >= 0 && sums.argmax == target));
  if (out.entropy != nullptr) Call::Write(out.entropy, row, RoundTo<Arithmetic<In>>(sums.Entropy()));
}

// Writes the statistics that are wanted of a row, from a GeneralRow or what gives the same. `target` is -1 where there
// is none; `of_target` is its log-probability, which stands wherever that of an equal value does. The floating-point
// mode keeps subnormals: logits that differ by one do differ.
template <class In, class Sums>
XENT_NOINLINE void WriteStatistics(const Call &call, int64_t row, const Sums &sums, int64_t target,
                                   Arithmetic<In> of_target) {
  using T = Arithmetic<In>;
  if (sums.IsNan()) return WriteNoStatistics(call, row, static_cast<T>(kNan));
  const xent_statistics &out = call.statistics;
  const GeneralKernels &kernels = *call.kernels->general;
  double target_value = kNan;  // equal to none
  if (target >= 0 && NeedLogProbabilities(out)) {
    target_value = call.Logit<In>(row, target);
    kernels.values(call.transform, &target_value, 1);
  }
  const auto log_probability = [&](double logit) -> T {
    kernels.values(call.transform, &logit, 1);
    if (logit == target_value) return of_target;
    return T{0} - RoundTo<T>(ValueOf(sums.Gap(call.transform.Factor(), logit)));
  };
  WriteStatisticsOfSums<In>(call, row, sums, target);
  if (out.rank != nullptr) {
    int64_t rank = -1;
    if (target >= 0) {
      rank = 0;
      const double logit = call.Logit<In>(row, target);
      ForEachBlock<In>(call, row, [&](const In *block, int64_t cols, int64_t first) {
        rank += kernels.rank[kDtypeOf<In>](block, cols, logit, target - first);
      });
    }
    out.rank[row] = rank;
  }
  if (out.topk_logprobs != nullptr || out.topk_indices != nullptr) {
    RankedLogit best[kMaxTopK];
    int64_t count = 0;
    ForEachBlock<In>(call, row, [&](const In *block, int64_t cols, int64_t first) {
      kernels.top_k[kDtypeOf<In>](block, cols, first, out.top_k, best, &count);
    });
    for (int64_t i = 0, place = row * out.top_k; i < out.top_k; ++i, ++place) {
      Call::Write(out.topk_indices, place, best[i].column);
      if (out.topk_logprobs != nullptr) Call::Write(out.topk_logprobs, place, log_probability(best[i].logit));
    }
  }
  if (out.gathered == nullptr) return;
  for (int64_t i = row * out.gather_count; i < (row + 1) * out.gather_count; ++i) {
    Call::Write(out.gathered, i, log_probability(call.Logit<In>(row, out.gather_cols[i])));
  }
}

// Puts the target's log-probability where WriteStatistics has been given NaN for it.
template <class T>
void FillLogProbabilities(const Call &call, int64_t row, T of_target) {
  const auto fill = [&](void *array, int64_t count) {
    T *const values = static_cast<T *>(array) + row * count;
    for (int64_t i = 0; array != nullptr && i < count; ++i) {
      if (values[i] != values[i]) values[i] = of_target;
    }
  };
  fill(call.statistics.topk_logprobs, call.statistics.top_k);
  fill(call.statistics.gathered, call.statistics.gather_count);
}

// Writes what forward gives of an ignored row: zeros, and -1 for indices.
template <class T>
XENT_NOINLINE void WriteIgnoredOutputs(const Call &call, int64_t row) {
  call.WriteRow(row, T{0}, T{0}, T{0});
  if (Record *const record = call.RecordOf(row)) *record = call.NewRecord(Record::kIgnored, Record::kIndex);
  WriteNoStatistics(call, row, T{0});
}

// The same with the statistics that need no target, where the caller wants them.
template <class In>
XENT_NOINLINE void WriteIgnoredStatistics(const Call &call, int64_t row) {
  using T = Arithmetic<In>;
  WriteIgnoredOutputs<T>(call, row);
  const bool wants_lse = call.statistics.lse != nullptr;
  if (call.statistics.of_ignored == 0 || !(wants_lse || call.plan.statistics)) return;
  const GeneralRow<T> sums = SumRow<In>(call, row, wants_lse);
  const T lse = sums.IsNan() ? static_cast<T>(kNan) : RoundTo<T>(ValueOf(sums.LogSumExp(call.transform.Factor())));
  Call::Write(call.statistics.lse, row, lse);
  WriteStatistics<In>(call, row, sums, -1, T{});
}

// Writes all outputs of an ignored row.
template <class In>
XENT_NOINLINE void WriteIgnoredRow(const Call &call, int64_t row) {
  if (call.mode != Mode::kBackward) WriteIgnoredStatistics<In>(call, row);
  // Last: in place the logits end here.
  call.FillGradients(row, 0, call.args.cols, 0.0);
}

}  // namespace xent::internal
