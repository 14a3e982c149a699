// What forward leaves of a row for backward, in the caller's memory. xent.h promises the size for ever, and zeros in
// what is unused.
#pragma once

#include <cstdint>

#include "rows/row_sum.h"
#include "xent/xent.h"

namespace xent::internal {

// A Wide as it lies in records: a union takes types alone that need no construction.
struct StoredWide {
  double hi, lo;

  static StoredWide Of(Wide x) { return {x.hi, x.lo}; }
  operator Wide() const { return {hi, lo}; }
};

struct Record {
  static constexpr uint16_t kTag = 0x6578;  // "xe"
  enum State : uint8_t { kLive = 1, kIgnored = 2, kNanRow = 3 };
  // What computed a live row.
  enum Kind : uint8_t { kIndex = 0, kGeneral = 1, kAcross = 2 };

  uint16_t tag;
  uint8_t dtype;  // DtypeTag
  uint8_t state : 4, kind : 4;
  uint32_t options;  // Call::OptionsTag
  struct Index {
    uint16_t logit_chunks;  // bit i: chunk i was summed relative to its maximum
    uint8_t logit_sums;     // bit 0: of the others' sum, bit 1: of the target's term
    uint8_t zeros[5];
    struct {
      StoredWide sum;
      double reference;
    } sums[2];  // others, target
  };
  struct General {
    int64_t argmax;
    double value;
    StoredWide others, weight;
    double max;
  };
  struct Across {
    double value, others, weight, log_total;
    double zeros[3];
  };
  union {
    Index index;
    General general;
    Across across;
  };

  // An xent_dtype from 1 on, so that zeroed memory is no record of float32.
  static constexpr uint8_t DtypeTag(int32_t dtype) { return static_cast<uint8_t>(dtype + 1); }
  template <class T>
  void Set(int i, const RowSum<T> &s) {
    index.sums[i] = {StoredWide::Of(Wide{s.sum}), s.reference};
    if (s.logit) index.logit_sums = static_cast<uint8_t>(index.logit_sums | 1 << i);
  }
  template <class T>
  RowSum<T> Get(int i) const {
    return {ToNumber<T>(index.sums[i].sum), index.sums[i].reference, (index.logit_sums >> i & 1) != 0};
  }
};
static_assert(sizeof(Record) == XENT_RECORD_BYTES);

}  // namespace xent::internal
