// A vocabulary in slices: chunk records of a slice, their merger, and the slice's gradient.
#include <algorithm>
#include <cstring>

#include "api/check_call.h"
#include "api/validate.h"
#include "numbers/fp_mode.h"
#include "rows/general_job.h"
#include "rows/index_job.h"

namespace xent::internal {
namespace {

// A chunk (or, where the vocabulary is not cut at a chunk's border, a part of one) of a row.
struct ChunkRecord {
  static constexpr uint32_t kTag = 0x68637878;  // "xxch"
  enum Flags : uint8_t { kIgnored = 1, kHasTarget = 2 };

  uint32_t tag;
  uint8_t dtype;  // xent_dtype
  uint8_t kind;   // Record::Kind
  uint8_t flags;
  uint8_t special;  // Special
  int64_t first, cols;
  double target_logit;  // where the target's column is one of these
  struct IndexPart {
    double reference, sum[2], spread[2], pivot;
    int64_t reference_kind;  // Reference
  };
  struct GeneralPart {
    double max, value;
    int64_t argmax;
    double others[2], weight[2], weighted[2];
  };
  union {
    IndexPart index;
    GeneralPart general;
  };
  uint64_t zeros[3];

  void Set(const ChunkSum &s) {
    special = static_cast<uint8_t>(s.special);
    if (s.special != Special::kNone) return;
    index = {s.reference, {s.sum.hi, s.sum.lo}, {s.spread.hi, s.spread.lo}, s.pivot, static_cast<int64_t>(s.kind)};
  }
  ChunkSum Sum() const {
    return {index.reference,
            {index.sum[0], index.sum[1]},
            {index.spread[0], index.spread[1]},
            index.pivot,
            static_cast<Reference>(index.reference_kind),
            static_cast<Special>(special)};
  }
  void Set(const GeneralSums &s) {
    special = static_cast<uint8_t>(s.special);
    if (s.special != Special::kNone) return;
    general = {s.max,
               s.value,
               s.argmax,
               {s.others.hi, s.others.lo},
               {s.weight.hi, s.weight.lo},
               {s.weighted.hi, s.weighted.lo}};
  }
  GeneralSums General() const {
    GeneralSums s;
    s.max = general.max;
    s.value = general.value;
    s.argmax = general.argmax;
    s.others = {general.others[0], general.others[1]};
    s.weight = {general.weight[0], general.weight[1]};
    s.weighted = {general.weighted[0], general.weighted[1]};
    s.special = static_cast<Special>(special);
    return s;
  }
};
static_assert(sizeof(ChunkRecord) == XENT_CHUNK_RECORD_BYTES);

// As the whole call has it.
Subnormals ModeOf(bool general) { return general ? Subnormals::kKeep : Subnormals::kFlush; }

// The pieces of the row's chunks that lie in a slice.
struct Slice {
  int64_t first_col, end_col, chunk_cols, first_chunk, pieces;

  Slice(int64_t total_cols, int64_t first, int64_t cols)
      : first_col(first),
        end_col(std::min(first + cols, total_cols)),
        chunk_cols(ChunkCols(total_cols)),
        first_chunk(first / chunk_cols),
        pieces(end_col > first ? (end_col - 1) / chunk_cols - first_chunk + 1 : 0) {}
  int64_t Chunk(int64_t piece) const { return first_chunk + piece; }
  int64_t First(int64_t piece) const { return std::max(first_col, Chunk(piece) * chunk_cols); }
  int64_t Cols(int64_t piece) const { return std::min(end_col, (Chunk(piece) + 1) * chunk_cols) - First(piece); }
};

// work(row, piece) for all of them, pieces of rows over threads.
template <class Work>
bool ForEachPiece(int64_t rows, const Slice &slice, const xent_exec &exec, const Work &work) {
  struct Shared {
    const Work &work;
    int64_t items, per_task, pieces;
  };
  const int64_t items = rows * slice.pieces;
  if (items == 0) return true;
  const bool small = rows <= kTaskLogits / std::max<int64_t>(1, slice.end_col - slice.first_col);
  Shared shared{work, items, small ? items : (items - 1) / kMaxTasks + 1, slice.pieces};
  return ParallelFor(
      exec, small ? 1 : Concurrency(exec), (items - 1) / shared.per_task + 1,
      [](void *arg, int64_t task) {
        const Shared &s = *static_cast<const Shared *>(arg);
        const int64_t end = std::min(s.items, (task + 1) * s.per_task);
        for (int64_t i = task * s.per_task; i < end; ++i) s.work(i / s.pieces, i % s.pieces);
      },
      &shared);
}

template <class In>
bool Forward(const Call &call, const Slice &slice, const xent_exec &exec, ChunkRecord *records) {
  const bool general = IsGeneral(call.args, call.options);
  return ForEachPiece(call.args.rows, slice, exec, [&](int64_t row, int64_t piece) {
    const FpMode mode(ModeOf(general));
    ChunkRecord record{};
    record.tag = ChunkRecord::kTag;
    record.dtype = static_cast<uint8_t>(call.args.dtype);
    record.kind = general ? Record::kGeneral : Record::kIndex;
    record.first = slice.First(piece);
    record.cols = slice.Cols(piece);
    const int64_t target = call.Target(row);
    const In *const logits = call.Logits<In>(row) + (record.first - slice.first_col);
    const int64_t place = target - record.first;
    if (call.IsIgnored(target)) {
      record.flags = ChunkRecord::kIgnored;
    } else {
      const bool has_target = target >= 0 && place >= 0 && place < record.cols;
      if (has_target) {
        record.flags = ChunkRecord::kHasTarget;
        record.target_logit = static_cast<double>(Widen(logits[place]));
      }
      if (general) {
        GeneralSums sums;
        SumGeneralChunk(call, logits, record.first, record.cols, has_target ? target : record.first - 1,
                        LabelOfTarget(call, target), LabelsOf(call, row, record.first, slice.first_col), &sums);
        record.Set(sums);
      } else {
        ChunkSum sum;
        SumIndexChunk<In>(call, has_target ? record.target_logit : kNan, place, logits, record.cols, nullptr, &sum);
        record.Set(sum);
      }
    }
    records[row * slice.pieces + piece] = record;
  });
}

// A row's records in the order of their columns, from the slices' lists.
class RecordsOfRow {
 public:
  RecordsOfRow(const void *const *lists, const int64_t *list_chunks, int64_t shards)
      : lists_(lists), list_chunks_(list_chunks) {
    for (int64_t s = 0; s < shards; ++s) count_ += list_chunks[s];
  }
  int64_t count() const { return count_; }
  const ChunkRecord &Get(int64_t row, int64_t i) const {
    int64_t s = 0;
    for (; i >= list_chunks_[s]; ++s) i -= list_chunks_[s];
    return static_cast<const ChunkRecord *>(lists_[s])[row * list_chunks_[s] + i];
  }

 private:
  const void *const *lists_;
  const int64_t *list_chunks_;
  int64_t count_ = 0;
};

// That the records are of these rows and cover the columns, and the row's target where it has one.
xent_status CheckChunkRecords(const Call &call, const RecordsOfRow &records, xent_error *error) {
  const uint8_t kind = IsGeneral(call.args, call.options) ? Record::kGeneral : Record::kIndex;
  for (int64_t row = 0; row < call.args.rows; ++row) {
    const int64_t target = call.Target(row);
    const bool ignored = call.IsIgnored(target);
    int64_t next = 0;
    bool has_target = target < 0 || ignored;
    for (int64_t i = 0; i < records.count(); ++i) {
      const ChunkRecord &record = records.Get(row, i);
      const char *what = nullptr;
      if (record.tag != ChunkRecord::kTag || record.dtype != call.args.dtype) {
        what = "was not written by xent_shard_forward with logits of this dtype";
      } else if (record.kind != kind) {
        what = "was written with other options";
      } else if (record.first != next || record.cols < 1 || record.cols > call.shape.cols - next) {
        what = "does not begin where the one before it ends";
      } else if (((record.flags & ChunkRecord::kIgnored) != 0) != ignored) {
        what = "was written with another target or ignore_index";
      } else if ((record.flags & ChunkRecord::kHasTarget) != 0) {
        if (target < record.first || target >= record.first + record.cols) what = "was written with another target";
        has_target = true;
      }
      if (what != nullptr) {
        return FailAt(error, XENT_INVALID_ARGUMENT, row, i, "chunk records: row %lld, record %lld %s",
                      static_cast<long long>(row), static_cast<long long>(i), what);
      }
      next += record.cols;
    }
    if (next != call.shape.cols || !has_target) {
      return FailAt(error, XENT_INVALID_ARGUMENT, row, next,
                    next != call.shape.cols ? "chunk records: row %lld ends at column %lld, expected all of %lld"
                                            : "chunk records: row %lld was written with another target (%lld of %lld)",
                    static_cast<long long>(row), static_cast<long long>(next), static_cast<long long>(call.shape.cols));
    }
  }
  return XENT_OK;
}

template <class T>
XENT_NOINLINE void CombineRow(const Call &call, const RecordsOfRow &records, int64_t row, Totals &totals) {
  const int64_t target = call.Target(row);
  if (call.IsIgnored(target)) return WriteIgnoredOutputs<T>(call, row);
  double target_logit = 0.0;
  for (int64_t i = 0; i < records.count(); ++i) {
    const ChunkRecord &record = records.Get(row, i);
    if ((record.flags & ChunkRecord::kHasTarget) != 0) target_logit = record.target_logit;
  }
  if (IsGeneral(call.args, call.options)) {
    const FpMode mode(ModeOf(true));
    GeneralRowState<T> state{};
    state.target = target;
    state.target_logit = target_logit;
    for (int64_t i = 0; i < records.count(); ++i) {
      Merge<T>(records.Get(row, i).General(), call.transform.Factor(), &state.row);
    }
    FinishGeneralRow(call, row, state);
    return totals.Add({{static_cast<double>(state.loss), 0.0}, Wide{state.nll}});
  }
  IndexRow<T> state{};
  state.target = target;
  state.target_logit = target_logit;
  state.nan = !(target_logit < kInfinity);
  ChunkSum sum;
  FinishIndexRow(
      call, row, records.count(),
      [&](int64_t i) -> IndexPiece {
        const ChunkRecord &record = records.Get(row, i);
        sum = record.Sum();
        return {&sum, record.first / call.shape.chunk_cols, record.first, record.cols};
      },
      state);
  totals.Add({{static_cast<double>(state.loss), 0.0}, Wide{state.nll}});
}

template <class T>
void Combine(const Call &call, const RecordsOfRow &records, Totals *totals) {
  const int64_t group_rows = RowsPerGroup(call.args.rows);
  for (int64_t begin = 0; begin < call.args.rows; begin += group_rows) {
    Totals group;
    for (int64_t row = begin; row < std::min(call.args.rows, begin + group_rows); ++row) {
      CombineRow<T>(call, records, row, group);
    }
    AddGroup(group, totals);
  }
}

template <class In>
bool Backward(const Call &call, const Slice &slice, const xent_exec &exec) {
  using T = Arithmetic<In>;
  const bool general = IsGeneral(call.args, call.options);
  // Columns past valid_cols belong to no piece.
  for (int64_t row = 0; row < call.args.rows; ++row) {
    const int64_t valid = std::max<int64_t>(0, slice.end_col - slice.first_col);
    call.FillGradients<In>(row, valid, call.args.cols, 0.0);
  }
  return ForEachPiece(call.args.rows, slice, exec, [&](int64_t row, int64_t piece) {
    const FpMode mode(ModeOf(general));
    const int64_t first = slice.First(piece), cols = slice.Cols(piece), place = first - slice.first_col;
    const int64_t target = call.Target(row);
    if (call.IsIgnored(target)) return call.FillGradients<In>(row, place, place + cols, 0.0);
    const In *const logits = call.Logits<In>(row) + place;
    In *const grad = call.args.grad == nullptr ? nullptr : call.Grad<In>(row) + place;
    const bool has_target = target >= first && target < first + cols;
    const double target_logit = has_target ? static_cast<double>(Widen(logits[target - first])) : 0.0;
    if (general) {
      GeneralRowState<T> state{};
      state.target = target;
      state.target_logit = target_logit;
      state.target_value = LabelOfTarget(call, target);
      RestoreGeneralRow(call, row, state.row);
      PrepareGeneralGradient(call, row, state);
      if (state.fill != Fill::kCompute) {
        return call.FillGradients<In>(row, place, place + cols, state.fill == Fill::kNan ? kNan : 0.0);
      }
      void *const label_grad = call.args.target_grad == nullptr
                                   ? nullptr
                                   : static_cast<char *>(call.TargetGrad(row)) + place * call.ProbsSize();
      WriteGeneralGradient(call, state, first, cols, logits, LabelsOf(call, row, first, slice.first_col), grad,
                           label_grad);
      return;
    }
    IndexRow<T> state{};
    state.target = target;
    state.target_logit = target_logit;
    RestoreIndexRow(call, row, state);
    PrepareIndexGradient(call, row, state);
    WriteIndexGradient(call, state, nullptr, slice.Chunk(piece), first, cols, logits, grad);
    WriteTargetGradient(state, first, cols, grad);
    if (call.streams) hwy::FlushStream();
  });
}

xent_status CheckShardStruct(const xent_shard *given, xent_shard *shard, xent_error *error) {
  XENT_RETURN_IF_ERROR(CheckError(error));
  return ReadStruct(given, "shard", shard, error);
}

}  // namespace
}  // namespace xent::internal

extern "C" {

int64_t xent_shard_chunks(int64_t total_cols, int64_t first_col, int64_t cols) noexcept {
  if (total_cols < 1 || first_col < 0 || cols < 1 || first_col > total_cols - 1) return 0;
  return xent::internal::Slice(total_cols, first_col, std::min(cols, total_cols - first_col)).pieces;
}

xent_status xent_shard_forward(const xent_cross_entropy *args, const xent_options *options, const xent_shard *shard,
                               void *chunk_records, const xent_exec *exec, xent_error *error) noexcept {
  using namespace xent::internal;
  ShardCall sharding{ShardStep::kForward, XENT_SHARD_INIT};
  XENT_RETURN_IF_ERROR(CheckShardStruct(shard, &sharding.shard, error));
  CheckedCall checked;
  XENT_RETURN_IF_ERROR(CheckCall(args, options, exec, Mode::kForward, &sharding, &checked, error));
  const Slice slice(checked.total_cols, sharding.shard.first_col, checked.args.cols);
  XENT_RETURN_IF_ERROR(CheckArray(chunk_records, checked.args.rows * slice.pieces, 8, "chunk_records", error));
  const FpMode fp_mode(Subnormals::kFlush);
  const Call call = checked.MakeCall(Mode::kForward);
  const bool complete = DispatchDtype(checked.args.dtype, [&](auto storage) {
    return Forward<decltype(storage)>(call, slice, checked.exec, static_cast<ChunkRecord *>(chunk_records));
  });
  return complete ? XENT_OK : FailIncomplete(error);
}

xent_status xent_shard_combine(const xent_cross_entropy *args, const xent_options *options, const void *const *lists,
                               const int64_t *list_chunks, int64_t shards, xent_error *error) noexcept {
  using namespace xent::internal;
  const ShardCall sharding{ShardStep::kCombine, XENT_SHARD_INIT};
  CheckedCall checked;
  XENT_RETURN_IF_ERROR(CheckCall(args, options, nullptr, Mode::kForward, &sharding, &checked, error));
  if (shards < 1) return Invalid(error, "shards is %lld, expected 1 or more", static_cast<long long>(shards));
  XENT_RETURN_IF_ERROR(CheckArray(lists, shards, alignof(void *), "lists", error));
  XENT_RETURN_IF_ERROR(CheckArray(list_chunks, shards, 8, "list_chunks", error));
  for (int64_t s = 0; s < shards; ++s) {
    if (list_chunks[s] < 0 || list_chunks[s] > checked.total_cols) {
      return Invalid(error, "list_chunks[%lld] is %lld, expected what xent_shard_chunks gives",
                     static_cast<long long>(s), static_cast<long long>(list_chunks[s]));
    }
    if (checked.args.rows > 0 && list_chunks[s] > INT64_MAX / XENT_CHUNK_RECORD_BYTES / checked.args.rows) {
      return Invalid(error, "list_chunks[%lld] is %lld: so many records of %lld rows exceed 2^63 - 1 bytes",
                     static_cast<long long>(s), static_cast<long long>(list_chunks[s]),
                     static_cast<long long>(checked.args.rows));
    }
    XENT_RETURN_IF_ERROR(CheckArray(lists[s], checked.args.rows * list_chunks[s], 8, "an element of lists", error));
  }
  const RecordsOfRow records(lists, list_chunks, shards);
  const FpMode fp_mode(Subnormals::kFlush);
  const Call call = checked.MakeCall(Mode::kForward);
  XENT_RETURN_IF_ERROR(CheckChunkRecords(call, records, error));
  Totals totals;
  if (checked.args.dtype == XENT_F64) {
    Combine<double>(call, records, &totals);
  } else {
    Combine<float>(call, records, &totals);
  }
  checked.WriteTotals(totals);
  return XENT_OK;
}

xent_status xent_shard_backward(const xent_cross_entropy *args, const xent_options *options, const xent_shard *shard,
                                const xent_exec *exec, xent_error *error) noexcept {
  using namespace xent::internal;
  ShardCall sharding{ShardStep::kBackward, XENT_SHARD_INIT};
  XENT_RETURN_IF_ERROR(CheckShardStruct(shard, &sharding.shard, error));
  CheckedCall checked;
  XENT_RETURN_IF_ERROR(CheckCall(args, options, exec, Mode::kBackward, &sharding, &checked, error));
  const Slice slice(checked.total_cols, sharding.shard.first_col, checked.args.cols);
  const FpMode fp_mode(Subnormals::kFlush);
  const Call call = checked.MakeCall(Mode::kBackward);
  const bool complete = DispatchDtype(
      checked.args.dtype, [&](auto storage) { return Backward<decltype(storage)>(call, slice, checked.exec); });
  return complete ? XENT_OK : FailIncomplete(error);
}

}  // extern "C"
