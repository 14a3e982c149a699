// A vocabulary in slices: the chunk records of a slice, their merger, and the slice's gradients.
#pragma once

#include <algorithm>
#include <cstdint>

#include "rows/call.h"

namespace xent::internal {

// A chunk (or, where the vocabulary is not cut at a chunk's border, a part of one) of a row.
struct ChunkRecord {
  static constexpr uint32_t kTag = 0x68637878;  // "xxch"
  enum Flags : uint8_t { kIgnored = 1, kHasTarget = 2 };

  uint32_t tag;
  uint8_t dtype;  // Record::DtypeTag
  uint8_t flags;
  uint8_t special;  // Special
  uint8_t zero;
  int64_t first, cols;
  double target_logit;  // where the target's column is one of these
  struct IndexPart {
    double reference;
    StoredWide sum, spread;
    double pivot;
    int64_t reference_kind;  // Reference
  };
  struct GeneralPart {
    double max, value;
    int64_t argmax;
    StoredWide others, weight, weighted;
  };
  union {
    IndexPart index;
    GeneralPart general;
  };
  uint32_t options;  // Call::OptionsTag, which also says which of the two parts it is
  uint32_t zeros[5];

  void Set(const ChunkSum &s) {
    special = static_cast<uint8_t>(s.special);
    if (s.special != Special::kNone) return;
    index = {s.reference, StoredWide::Of(s.sum), StoredWide::Of(s.spread), s.pivot, static_cast<int64_t>(s.kind)};
  }
  void Get(ChunkSum *s) const {
    const Reference kind = static_cast<Reference>(index.reference_kind);
    *s = {index.reference, index.sum, index.spread, index.pivot, kind, static_cast<Special>(special)};
  }
  void Set(const GeneralSums &s) {
    special = static_cast<uint8_t>(s.special);
    if (s.special != Special::kNone) return;
    const auto others = StoredWide::Of(s.others), weight = StoredWide::Of(s.weight);
    general = {s.max, s.value, s.argmax, others, weight, StoredWide::Of(s.weighted)};
  }
  void Get(GeneralSums *s) const {
    const auto &[max, value, argmax, others, weight, weighted] = general;
    *s = {max, value, argmax, others, {}, weight, weighted, static_cast<Special>(special)};
  }
};
static_assert(sizeof(ChunkRecord) == XENT_CHUNK_RECORD_BYTES);

// The pieces of the row's chunks that lie in a slice.
struct Slice {
  int64_t first_col, end_col, chunk_cols, first_chunk, pieces;

  Slice(int64_t total_cols, int64_t first, int64_t cols)
      : first_col(first),
        end_col(std::min(first + cols, total_cols)),
        chunk_cols(ChunkCols(total_cols)),
        first_chunk(first / chunk_cols),
        pieces(end_col > first ? (end_col - 1) / chunk_cols - first_chunk + 1 : 0) {}
  // Columns that are valid; the others belong to no piece.
  int64_t Cols() const { return std::max<int64_t>(0, end_col - first_col); }
  Piece At(int64_t i) const {
    const int64_t chunk = first_chunk + i, first = std::max(first_col, chunk * chunk_cols);
    return {chunk, first, first - first_col, std::min(end_col, (chunk + 1) * chunk_cols) - first};
  }
};

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

// Each prepares the call and runs it; `call` is that of the slice, or for combine that of the whole vocabulary. False:
// the caller's parallel_for left a task out.
bool RunShardForward(Call *call, const Slice &slice, ChunkRecord *records);
void RunShardCombine(Call *call, const RecordsOfRow &records);
bool RunShardBackward(Call *call, const Slice &slice);

}  // namespace xent::internal
