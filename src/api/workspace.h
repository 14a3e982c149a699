// The caller's workspace: room for the exponentials of one row, for as many tasks at once as it holds. A task that finds
// none free does without, with the same bits.
#ifndef XENT_SRC_API_WORKSPACE_H_
#define XENT_SRC_API_WORKSPACE_H_

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace xent::internal {

class Workspace {
 public:
  static constexpr int64_t kAlignment = 64;
  static constexpr int64_t kMaxSlots = 256;  // at most as many tasks run at once

  // With which every task of as many threads finds a slot, wherever the memory begins.
  static size_t Bytes(int64_t row_bytes, int32_t threads) {
    return static_cast<size_t>(SlotBytes(row_bytes) * std::min<int64_t>(threads, kMaxSlots) + kAlignment - 1);
  }

  Workspace(void *memory, size_t bytes, int64_t row_bytes) : slot_bytes_(SlotBytes(row_bytes)) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
    const size_t skip = (~address + 1) % kAlignment;
    if (memory == nullptr || bytes < skip) return;
    base_ = static_cast<char *>(memory) + skip;
    int64_t slots = std::min<int64_t>(static_cast<int64_t>((bytes - skip) / static_cast<size_t>(slot_bytes_)), kMaxSlots);
    for (auto &word : free_) {
      const int64_t here = std::min(slots, kWordSlots);
      word.store(here == kWordSlots ? ~uint64_t{0} : (uint64_t{1} << here) - 1, std::memory_order_relaxed);
      slots -= here;
    }
  }

  // A row's memory, held for as long as the object lives; null: none was free.
  class Slot {
   public:
    explicit Slot(const Workspace &workspace) : workspace_(workspace) {
      for (int64_t i = 0; index_ < 0 && i < kMaxSlots / kWordSlots; ++i) {
        std::atomic<uint64_t> &word = workspace.free_[i];
        uint64_t free = word.load(std::memory_order_relaxed);
        while (free != 0 && !word.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire)) {
        }
        if (free != 0) index_ = i * kWordSlots + std::countr_zero(free);
      }
    }
    ~Slot() {
      if (index_ < 0) return;
      workspace_.free_[index_ / kWordSlots].fetch_or(uint64_t{1} << index_ % kWordSlots, std::memory_order_release);
    }
    Slot(const Slot &) = delete;
    Slot &operator=(const Slot &) = delete;

    void *data() const { return index_ < 0 ? nullptr : workspace_.base_ + index_ * workspace_.slot_bytes_; }

   private:
    const Workspace &workspace_;
    int64_t index_ = -1;
  };

 private:
  static constexpr int64_t kWordSlots = 64;
  static int64_t SlotBytes(int64_t row_bytes) { return (row_bytes + kAlignment - 1) / kAlignment * kAlignment; }

  int64_t slot_bytes_;
  char *base_ = nullptr;
  mutable std::atomic<uint64_t> free_[kMaxSlots / kWordSlots] = {};
};

}  // namespace xent::internal
#endif  // XENT_SRC_API_WORKSPACE_H_
