// The caller's workspace: room for the exponentials of one row, for as many tasks at once as it holds, and before it a
// bit for each that is free. A task that finds none does without, with the same bits.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>

#include "xent/xent.h"

namespace xent::internal {

class Workspace {
 public:
  // What a row's exponentials take.
  static int64_t RowBytes(int64_t cols, int32_t dtype) { return cols * (dtype == XENT_F64 ? 8 : 4); }
  // Returns the bytes with which every task of as many threads finds a slot, wherever the memory begins; 0 where they
  // exceed 2^63 - 1.
  static size_t Bytes(int64_t row_bytes, int32_t threads) {
    const int64_t slots = std::min<int64_t>(threads, kMaxSlots);
    if (row_bytes > (INT64_MAX - kHeader - kAlignment) / slots - kAlignment) return 0;
    return kHeader + SlotBytes(row_bytes) * static_cast<uint64_t>(slots) + kAlignment - 1;
  }

  Workspace() = default;
  Workspace(void *memory, size_t bytes, int64_t row_bytes) : slot_bytes_(SlotBytes(row_bytes)) {
    const size_t skip = (~reinterpret_cast<uintptr_t>(memory) + 1) % kAlignment;
    if (memory == nullptr || bytes < skip + kHeader + slot_bytes_) return;
    base_ = static_cast<char *>(memory) + skip;
    int64_t slots = static_cast<int64_t>((bytes - skip - kHeader) / slot_bytes_);
    for (int64_t i = 0; i < kWords; ++i) {
      const int64_t here = std::min(slots, kWordSlots);
      new (base_ + i * 8) std::atomic<uint64_t>(here == kWordSlots ? ~uint64_t{0} : (uint64_t{1} << here) - 1);
      slots -= here;
    }
  }

  bool HasRoom() const { return base_ != nullptr; }

  // A row's memory, held for as long as the object lives; null: none was wanted or free.
  class Slot {
   public:
    Slot(const Workspace &workspace, bool wanted) : workspace_(workspace) {
      for (int64_t i = 0; wanted && index_ < 0 && i < kWords; ++i) {
        std::atomic<uint64_t> &word = workspace.Word(i);
        uint64_t free = word.load(std::memory_order_relaxed);
        while (free != 0 && !word.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire)) {
        }
        if (free != 0) index_ = i * kWordSlots + std::countr_zero(free);
      }
    }
    ~Slot() {
      if (index_ < 0) return;
      workspace_.Word(index_ / kWordSlots).fetch_or(uint64_t{1} << index_ % kWordSlots, std::memory_order_release);
    }
    Slot(const Slot &) = delete;
    Slot &operator=(const Slot &) = delete;

    void *data() const {
      return index_ < 0 ? nullptr : workspace_.base_ + kHeader + static_cast<uint64_t>(index_) * workspace_.slot_bytes_;
    }

   private:
    const Workspace &workspace_;
    int64_t index_ = -1;
  };

 private:
  static constexpr int64_t kAlignment = 64;
  static constexpr int64_t kMaxSlots = 256;  // at most as many tasks run at once
  static constexpr int64_t kWordSlots = 64, kWords = kMaxSlots / kWordSlots;
  static constexpr int64_t kHeader = kAlignment;
  static_assert(sizeof(std::atomic<uint64_t>) == 8 && 8 * kWords <= kHeader);

  static uint64_t SlotBytes(int64_t row_bytes) {
    return (static_cast<uint64_t>(row_bytes) + kAlignment - 1) / kAlignment * kAlignment;
  }
  std::atomic<uint64_t> &Word(int64_t i) const {
    return *std::launder(reinterpret_cast<std::atomic<uint64_t> *>(base_ + i * 8));
  }

  uint64_t slot_bytes_ = 0;
  char *base_ = nullptr;
};

}  // namespace xent::internal
