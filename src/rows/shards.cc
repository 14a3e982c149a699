#include "rows/shards.h"

#include "rows/general_job.h"
#include "rows/index_job.h"
#include "rows/run_rows.h"

namespace xent::internal {
namespace {

// Calls work(row, i) for each row and each piece of it, pieces of rows over threads.
template <class Work>
bool ForEachPiece(const Call &call, const Slice &slice, const Work &work) {
  const int64_t items = call.args.rows * slice.pieces;
  if (items == 0) return true;
  const int64_t per_task = call.plan.threads == 1 ? items : (items - 1) / kMaxTasks + 1;
  return RunTasks(call, (items - 1) / per_task + 1, [&](int64_t task) {
    const int64_t end = std::min(items, (task + 1) * per_task);
    for (int64_t i = task * per_task; i < end; ++i) work(i / slice.pieces, i % slice.pieces);
  });
}

// Reads a row's target, and its logit where the piece has it. False: the row is ignored.
template <class In, class State>
bool ReadTarget(const Call &call, int64_t row, const Piece &piece, State *state) {
  state->target = call.Target(row);
  if (call.IsIgnored(state->target)) return false;
  if (piece.Has(state->target)) state->target_logit = call.Logit<In>(row, piece.place + state->target - piece.first);
  return true;
}

template <class Job>
bool Forward(const Job &job, const Slice &slice, ChunkRecord *records) {
  const Call &call = job.call;
  const uint32_t options_tag = call.OptionsTag();
  return ForEachPiece(call, slice, [&](int64_t row, int64_t i) {
    const Piece piece = slice.At(i);
    typename Job::Row state{};
    typename Job::Part part;
    ChunkRecord record{};
    record.tag = ChunkRecord::kTag;
    record.dtype = Record::DtypeTag(call.args.logits.dtype);
    record.options = options_tag;
    record.first = piece.first;
    record.cols = piece.cols;
    if (!ReadTarget<typename Job::Element>(call, row, piece, &state)) {
      record.flags = ChunkRecord::kIgnored;
    } else {
      if (piece.Has(state.target)) record.flags = ChunkRecord::kHasTarget;
      record.target_logit = state.target_logit;
      job.Chunk(0, row, piece, state, part);
      record.Set(part);
    }
    records[row * slice.pieces + i] = record;
  });
}

// The parts of a row, record by record.
template <class Part>
struct RecordParts {
  const RecordsOfRow &records;
  int64_t row, chunk_cols;
  Part &part;  // of the record that was asked for last

  PartAt<Part> operator()(int64_t i) const {
    const ChunkRecord &record = records.Get(row, i);
    record.Get(&part);
    return {part, {record.first / chunk_cols, record.first, record.first, record.cols}};
  }
};

template <class Job>
XENT_NOINLINE void CombineRow(const Job &job, const RecordsOfRow &records, int64_t row, Totals &totals) {
  const Call &call = job.call;
  typename Job::Row state{};
  state.target = call.Target(row);
  if (call.IsIgnored(state.target)) return WriteIgnoredOutputs<Arithmetic<typename Job::Element>>(call, row);
  for (int64_t i = 0; i < records.count(); ++i) {
    const ChunkRecord &record = records.Get(row, i);
    if ((record.flags & ChunkRecord::kHasTarget) != 0) state.target_logit = record.target_logit;
  }
  typename Job::Part part;
  state.Finish(call, row, records.count(), RecordParts<typename Job::Part>{records, row, call.shape.chunk_cols, part});
  totals.AddRow(static_cast<double>(state.loss), Wide{state.nll});
}

template <class Job>
bool Backward(const Job &job, const Slice &slice) {
  const Call &call = job.call;
  for (int64_t row = 0; row < call.args.rows; ++row) {
    call.FillGradients(row, slice.Cols(), call.args.cols - slice.Cols(), 0.0);
  }
  return ForEachPiece(call, slice, [&](int64_t row, int64_t i) {
    const Piece piece = slice.At(i);
    typename Job::Row state{};
    if (!ReadTarget<typename Job::Element>(call, row, piece, &state)) {
      return call.FillGradients(row, piece.place, piece.cols, 0.0);
    }
    state.Restore(call, row);
    typename Job::Part unused;
    job.Chunk(1, row, piece, state, unused);
  });
}

// Prepares the call, and returns run(job) in the plan's floating-point mode.
template <class Run>
auto PrepareAndRun(Call *call, int64_t slice_cols, const Run &run) {
  const FpMode mode(Subnormals::kFlush);
  call->Prepare();
  call->plan = MakeShardPlan(*call, slice_cols);
  const FpMode planned(call->plan.subnormals);
  return DispatchDtype(call->args.logits.dtype, [&](auto storage) {
    using In = decltype(storage);
    return call->plan.path == Path::kIndex ? run(IndexJob<In>{*call}) : run(GeneralJob<In>{*call});
  });
}

}  // namespace

bool RunShardForward(Call *call, const Slice &slice, ChunkRecord *records) {
  return PrepareAndRun(call, slice.Cols(), [&](const auto &job) { return Forward(job, slice, records); });
}

void RunShardCombine(Call *call, const RecordsOfRow &records) {
  Totals totals;
  PrepareAndRun(call, call->args.cols, [&](const auto &job) {
    Groups groups(call->plan.group_rows, &totals, nullptr);
    for (int64_t row = 0; row < call->args.rows; ++row) {
      CombineRow(job, records, row, groups.Of(row));
    }
  });
  const FpMode mode(Subnormals::kFlush);
  call->WriteTotals(totals);
}

bool RunShardBackward(Call *call, const Slice &slice) {
  return PrepareAndRun(call, slice.Cols(), [&](const auto &job) { return Backward(job, slice); });
}

}  // namespace xent::internal
