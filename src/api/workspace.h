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
  static constexpr int64_t kMaxSlots = 64;

  static int64_t SlotBytes(int64_t row_bytes) { return (row_bytes + kAlignment - 1) / kAlignment * kAlignment; }

  Workspace(void *memory, size_t bytes, int64_t row_bytes) : slot_bytes_(SlotBytes(row_bytes)) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory);
    const size_t skip = (~address + 1) % kAlignment;
    if (memory == nullptr || bytes < skip) return;
    base_ = static_cast<char *>(memory) + skip;
    const int64_t slots = std::min<int64_t>(static_cast<int64_t>((bytes - skip) / slot_bytes_), kMaxSlots);
    free_ = slots == kMaxSlots ? ~uint64_t{0} : (uint64_t{1} << slots) - 1;
  }

  // A row's memory, held for as long as the object lives; null: none was free.
  class Slot {
   public:
    explicit Slot(const Workspace &workspace) : workspace_(workspace) {
      uint64_t free = workspace.free_.load(std::memory_order_relaxed);
      while (free != 0 && !workspace.free_.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire)) {
      }
      mask_ = free & (~free + 1);
    }
    ~Slot() {
      if (mask_ != 0) workspace_.free_.fetch_or(mask_, std::memory_order_release);
    }
    Slot(const Slot &) = delete;
    Slot &operator=(const Slot &) = delete;

    void *data() const {
      return mask_ == 0 ? nullptr : workspace_.base_ + std::countr_zero(mask_) * workspace_.slot_bytes_;
    }

   private:
    const Workspace &workspace_;
    uint64_t mask_;
  };

 private:
  int64_t slot_bytes_;
  char *base_ = nullptr;
  mutable std::atomic<uint64_t> free_{0};
};

}  // namespace xent::internal
#endif  // XENT_SRC_API_WORKSPACE_H_
