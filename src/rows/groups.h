// Sums over the rows of a call: added in row order within groups, and the groups in order, so that they depend neither
// on tasks nor on threads.
#pragma once

#include <cstdint>

#include "numbers/compiler.h"
#include "numbers/wide.h"
#include "parallel/parallel.h"

namespace xent::internal {

// Of row losses and of negative log-likelihoods. A slot is what is kept of a group's.
struct Totals {
  Wide loss;
  Wide nll;

  [[gnu::always_inline]] void Add(const Totals &other) {
    loss = AddOrOverflow(loss, other.loss);
    if (other.nll.hi != 0.0) nll = AddOrOverflow(nll, other.nll);
  }
  void AddRow(double row_loss, Wide row_nll = {}) { Add({{row_loss, 0.0}, row_nll}); }
  struct Slot {
    double loss, loss_low, nll;

    Totals Get() const { return {{loss, loss_low}, {nll, 0.0}}; }
  };
  // Not inline: inlined, it makes backward of 1x10, which has no slots, 4 % slower (Zen 5, g++ 12).
  XENT_NOINLINE void AddSlots(const Slot *slots, int64_t count) {
    for (int64_t i = 0; i < count; ++i) Add(slots[i].Get());
  }
};

// At most kMaxTasks groups, their size a function of the number of rows alone.
inline int64_t RowsPerGroup(int64_t rows) { return rows / kMaxTasks + (rows % kMaxTasks != 0); }

// Hands rows, which come in order, to the groups that they belong to.
class Groups {
 public:
  // Groups are added to `totals`, or, where that is null, kept in their slots.
  Groups(int64_t group_rows, Totals *totals, Totals::Slot *slots)
      : group_rows_(group_rows), totals_(totals), slots_(slots) {}
  ~Groups() { Flush(); }
  Groups(const Groups &) = delete;
  Groups &operator=(const Groups &) = delete;

  // Returns the sums that `row` is added to.
  Totals &Of(int64_t row) {
    Begin(row);
    exact_ = false;
    return current_;
  }

  // Adds the sums of one row.
  void AddRow(int64_t row, const Totals &sums) {
    if (group_rows_ > 1) {
      Begin(row);
      exact_ = exact_ && IsExact(sums);
      current_.Add(sums);
      return;
    }
    // A group of one row need not go through memory: the sums, stored as two numbers, would be loaded as one vector.
    Flush();
    group_ = -1;
    end_row_ = row + 1;
    Keep(row, sums);
  }

  // Adds the sum of rows [first, last] at once. Returns false, and adds nothing, where that might differ from adding
  // them one by one. `sum` is a multiple of 2^-36 below 2^16. Whatever was added before of these is exact, and so is
  // this.
  bool AddExactly(int64_t first, int64_t last, double sum) {
    Begin(first);
    if (!exact_ || last >= end_row_) return false;
    current_.loss = Add(current_.loss, {sum, 0.0});
    return true;
  }

 private:
  // Whether a sum of such losses is exact, whatever their order: multiples of 2^-73 below 2^32 fill 105 bits of the two
  // doubles, and what the higher one loses on the way less than 53.
  bool IsExact(const Totals &sums) const {
    const double loss = sums.loss.hi;
    return (loss == 0.0 || (loss >= 0x1p-50 && loss <= 0x1p12)) && sums.nll.hi == 0.0 &&
           group_rows_ <= int64_t{1} << 20;
  }
  void Begin(int64_t row) {
    if (row < end_row_) return;
    Flush();
    group_ = row / group_rows_;
    end_row_ = (group_ + 1) * group_rows_;
    exact_ = true;
  }
  void Flush() {
    if (group_ >= 0) FlushGroup();
  }
  XENT_NOINLINE void FlushGroup() {
    Keep(group_, current_);
    current_ = {};
  }
  // A group's sums are rounded to what a slot holds, wherever they are added.
  void Keep(int64_t group, const Totals &sums) {
    const Totals::Slot slot{sums.loss.hi, sums.loss.lo, sums.nll.hi};
    if (totals_ != nullptr) {
      totals_->Add(slot.Get());
    } else if (slots_ != nullptr) {
      slots_[group] = slot;
    }
  }

  int64_t group_rows_;
  Totals *totals_;
  Totals::Slot *slots_;
  Totals current_;
  int64_t group_ = -1, end_row_ = 0;
  bool exact_ = true;  // `current_` has no rounding error so far
};

}  // namespace xent::internal
