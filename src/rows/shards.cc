#include "rows/shards.h"

#include "rows/general_job.h"
#include "rows/run_rows.h"

namespace xent::internal {
namespace {

// Calls work(row, piece) for all of them, pieces of rows over threads.
template <class Work>
bool ForEachPiece(const Call &call, const Slice &slice, const Work &work) {
  const int64_t items = call.args.rows * slice.pieces;
  if (items == 0) return true;
  const int64_t per_task = call.plan.threads == 1 ? items : (items - 1) / kMaxTasks + 1;
  return RunTasks(call.plan, call.exec, (items - 1) / per_task + 1, [&](int64_t task) {
    const int64_t end = std::min(items, (task + 1) * per_task);
    for (int64_t i = task * per_task; i < end; ++i) work(i / slice.pieces, i % slice.pieces);
  });
}

template <class In>
bool Forward(const Call &call, const Slice &slice, ChunkRecord *records) {
  const bool general = call.plan.path == Path::kGeneral;
  return ForEachPiece(call, slice, [&](int64_t row, int64_t piece) {
    ChunkRecord record{};
    record.tag = ChunkRecord::kTag;
    record.dtype = static_cast<uint8_t>(call.args.logits.dtype);
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
        GeneralRowState<Arithmetic<In>> state{};
        state.target = target;
        state.target_value = LabelOfTarget(call, target);
        SumGeneral<In>(call, TaskOf<In>(call, row, 0, record.first, record.cols, slice.first_col), &state, &sums);
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

template <class T>
XENT_NOINLINE void CombineRow(const Call &call, const RecordsOfRow &records, int64_t row, Totals &totals) {
  const int64_t target = call.Target(row);
  if (call.IsIgnored(target)) return WriteIgnoredOutputs<T>(call, row);
  double target_logit = 0.0;
  for (int64_t i = 0; i < records.count(); ++i) {
    const ChunkRecord &record = records.Get(row, i);
    if ((record.flags & ChunkRecord::kHasTarget) != 0) target_logit = record.target_logit;
  }
  if (call.plan.path == Path::kGeneral) {
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
        return {&sum, {record.first / call.shape.chunk_cols, record.first, record.cols}};
      },
      state);
  totals.Add({{static_cast<double>(state.loss), 0.0}, Wide{state.nll}});
}

template <class In>
bool Backward(const Call &call, const Slice &slice) {
  using T = Arithmetic<In>;
  const bool general = call.plan.path == Path::kGeneral;
  // Columns past valid_cols belong to no piece.
  for (int64_t row = 0; row < call.args.rows; ++row) {
    const int64_t valid = std::max<int64_t>(0, slice.end_col - slice.first_col);
    call.FillGradients<In>(row, valid, call.args.cols, 0.0);
  }
  return ForEachPiece(call, slice, [&](int64_t row, int64_t piece) {
    const int64_t first = slice.First(piece), cols = slice.Cols(piece), place = first - slice.first_col;
    const int64_t target = call.Target(row);
    if (call.IsIgnored(target)) return call.FillGradients<In>(row, place, place + cols, 0.0);
    const In *const logits = call.Logits<In>(row) + place;
    In *const grad = call.args.grad.data == nullptr ? nullptr : call.Grad<In>(row) + place;
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
      return WriteGeneral<In>(call, TaskOf<In>(call, row, 0, first, cols, slice.first_col), &state);
    }
    IndexRow<T> state{};
    state.target = target;
    state.target_logit = target_logit;
    RestoreIndexRow(call, row, state);
    PrepareIndexGradient(call, row, state);
    WriteIndexGradient(call, state, nullptr, {slice.Chunk(piece), first, cols}, logits, grad);
    WriteTargetGradient(state, first, cols, grad);
  });
}

// Prepares the call, and runs run(In{}) in the plan's floating-point mode.
template <class Run>
auto PrepareAndRun(Call *call, int64_t slice_cols, const Run &run) {
  const FpMode mode(Subnormals::kFlush);
  call->Prepare();
  call->plan = MakeShardPlan(*call, slice_cols);
  const FpMode planned(call->plan.subnormals);
  return DispatchDtype(call->args.logits.dtype, run);
}

}  // namespace

bool RunShardForward(Call *call, const Slice &slice, ChunkRecord *records) {
  return PrepareAndRun(call, slice.end_col - slice.first_col,
                       [&](auto storage) { return Forward<decltype(storage)>(*call, slice, records); });
}

void RunShardCombine(Call *call, const RecordsOfRow &records) {
  Totals totals;
  PrepareAndRun(call, call->args.cols, [&](auto storage) {
    Groups<Totals> groups(call->args.rows, &totals, nullptr);
    for (int64_t row = 0; row < call->args.rows; ++row) {
      CombineRow<Arithmetic<decltype(storage)>>(*call, records, row, groups.Of(row));
    }
  });
  const FpMode mode(Subnormals::kFlush);
  call->WriteTotals(totals);
}

bool RunShardBackward(Call *call, const Slice &slice) {
  return PrepareAndRun(call, slice.end_col - slice.first_col,
                       [&](auto storage) { return Backward<decltype(storage)>(*call, slice); });
}

}  // namespace xent::internal
