// A vocabulary in slices.
#include "rows/shards.h"

#include <algorithm>

#include "api/check.h"
#include "api/check_call.h"
#include "xent/xent.h"

namespace xent::internal {
namespace {

// The records are of these rows and cover the columns, and the row's target where it has one.
xent_status CheckChunkRecords(const Call &call, const RecordsOfRow &records, xent_error *error) {
  const uint32_t options_tag = call.OptionsTag();
  for (int64_t row = 0; row < call.args.rows; ++row) {
    const int64_t target = call.Target(row);
    const bool ignored = call.IsIgnored(target);
    int64_t next = 0;
    bool has_target = target < 0 || ignored;
    for (int64_t i = 0; i < records.count(); ++i) {
      const ChunkRecord &record = records.Get(row, i);
      const char *what = nullptr;
      if (record.tag != ChunkRecord::kTag || record.dtype != Record::DtypeTag(call.args.logits.dtype)) {
        what = "was not written by xent_shard_forward with logits of this dtype";
      } else if (record.options != options_tag) {
        what = "was written with other options";
      } else if (record.first != next || record.cols < 1 || record.cols > call.valid_cols - next) {
        what = "does not begin where the one before it ends";
      } else if (((record.flags & ChunkRecord::kIgnored) != 0) != ignored) {
        what = "was written with another target or ignore_index";
      } else if ((record.flags & ChunkRecord::kHasTarget) != 0) {
        if (target < record.first || target >= record.first + record.cols) what = "was written with another target";
        has_target = true;
      }
      if (what != nullptr) {
        return FailAt(error, XENT_INVALID_ARGUMENT, {.row = row}, "chunk records: row %lld, record %lld %s", Long(row),
                      Long(i), what);
      }
      next += record.cols;
    }
    if (next != call.valid_cols || !has_target) {
      return FailAt(error, XENT_INVALID_ARGUMENT, {.row = row},
                    next != call.valid_cols ? "chunk records: row %lld ends at column %lld, expected all of %lld"
                                            : "chunk records: row %lld was written with another target (%lld of %lld)",
                    Long(row), Long(next), Long(call.valid_cols));
    }
  }
  return XENT_OK;
}

// The lists of chunk records, each [rows, list_chunks[s]].
xent_status CheckLists(int64_t rows, int64_t cols, const void *const *lists, const int64_t *list_chunks, int64_t shards,
                       xent_error *error) {
  constexpr int64_t kMaxShards = INT64_MAX / static_cast<int64_t>(sizeof(void *));
  if (shards < 1 || shards > kMaxShards) {
    return Invalid(error, "shards is %lld, expected 1 to %lld", Long(shards), Long(kMaxShards));
  }
  XENT_TRY(CheckArray("lists", lists, shards, alignof(void *), error));
  XENT_TRY(CheckArray("list_chunks", list_chunks, shards, 8, error));
  int64_t left = cols;  // of a record for each
  for (int64_t s = 0; s < shards; ++s) {
    const int64_t chunks = list_chunks[s];
    if (chunks < 0 || chunks > left) {
      return Invalid(error, "list_chunks[%lld] is %lld, expected what xent_shard_chunks gives", Long(s), Long(chunks));
    }
    left -= chunks;
    if (chunks > INT64_MAX / XENT_CHUNK_RECORD_BYTES / std::max<int64_t>(rows, 1)) {
      return Invalid(error, "list_chunks[%lld] is %lld: so many records of %lld rows exceed 2^63 - 1 bytes", Long(s),
                     Long(chunks), Long(rows));
    }
    XENT_TRY(CheckArray("an element of lists", lists[s], rows * chunks, 8, error));
  }
  return XENT_OK;
}

}  // namespace
}  // namespace xent::internal

extern "C" {

int64_t xent_shard_chunks(int64_t total_cols, int64_t first_col, int64_t cols) noexcept {
  if (total_cols < 1 || total_cols > xent::internal::kMaxCols || first_col < 0 || cols < 1 || first_col >= total_cols) {
    return 0;
  }
  return xent::internal::Slice(total_cols, first_col, std::min(cols, total_cols - first_col)).pieces;
}

xent_status xent_shard_forward(const xent_cross_entropy *args, const xent_cross_entropy_options *options,
                               const xent_shard *shard, void *chunk_records, const xent_exec *exec,
                               xent_error *error) noexcept {
  using namespace xent::internal;
  Call call;
  xent_shard place;
  XENT_TRY(CheckCall({args, options, exec, shard}, Step::kShardForward, Mode::kForward, &call, &place, error));
  const Slice slice(call.valid_cols, place.first_col, call.args.cols);
  if (slice.pieces > 0 && call.args.rows > INT64_MAX / XENT_CHUNK_RECORD_BYTES / slice.pieces) {
    return Invalid(error, "chunk_records: %lld records of %lld rows exceed 2^63 - 1 bytes", Long(slice.pieces),
                   Long(call.args.rows));
  }
  XENT_TRY(CheckArray("chunk_records", chunk_records, call.args.rows * slice.pieces, 8, error));
  return Ended(RunShardForward(&call, slice, static_cast<ChunkRecord *>(chunk_records)), error);
}

xent_status xent_shard_combine(const xent_cross_entropy *args, const xent_cross_entropy_options *options,
                               const void *const *lists, const int64_t *list_chunks, int64_t shards,
                               xent_error *error) noexcept {
  using namespace xent::internal;
  Call call;
  XENT_TRY(CheckCall({args, options, nullptr}, Step::kShardCombine, Mode::kForward, &call, nullptr, error));
  XENT_TRY(CheckLists(call.args.rows, call.valid_cols, lists, list_chunks, shards, error));
  const RecordsOfRow records(lists, list_chunks, shards);
  XENT_TRY(CheckChunkRecords(call, records, error));
  RunShardCombine(&call, records);
  return XENT_OK;
}

xent_status xent_shard_backward(const xent_cross_entropy *args, const xent_cross_entropy_options *options,
                                const xent_shard *shard, const xent_exec *exec, xent_error *error) noexcept {
  using namespace xent::internal;
  Call call;
  xent_shard place;
  XENT_TRY(CheckCall({args, options, exec, shard}, Step::kShardBackward, Mode::kBackward, &call, &place, error));
  return Ended(RunShardBackward(&call, Slice(call.valid_cols, place.first_col, call.args.cols)), error);
}

}  // extern "C"
