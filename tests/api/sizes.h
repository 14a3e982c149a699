// What the tests of sizes draw: numbers around the powers of two at which products of sizes, or of their bytes, leave
// an int64_t; and arrays of exactly the bytes that a call of such sizes may touch, before or behind a page that nobody
// may touch. A call that reaches beyond an array ends the test, with the call's numbers on standard error.
#ifndef XENT_TESTS_API_SIZES_H_
#define XENT_TESTS_API_SIZES_H_

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "testing/data.h"

namespace xent::test {

inline constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
inline constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();

// Products of integers in long double: exact up to 2^64, and beyond it the comparison does not need to be.
inline long double Product(int64_t a, int64_t b, int64_t c = 1) {
  return static_cast<long double>(a) * static_cast<long double>(b) * static_cast<long double>(c);
}
inline bool Exceeds(long double product) { return product > static_cast<long double>(kMost); }

// A number to try, and the line that tells of all of a call.
class Sizes {
 public:
  explicit Sizes(uint64_t seed) : random_(seed) {}

  void Begin() {
    text_.clear();
    largest_ = 0;
  }
  int64_t Draw(const char *name) {
    constexpr int64_t kNamed[] = {0,
                                  1,
                                  int64_t{1} << 31,
                                  int64_t{1} << 32,
                                  int64_t{1} << 53,
                                  int64_t{1} << 57,
                                  int64_t{1} << 58,
                                  int64_t{1} << 59,
                                  int64_t{1} << 60,
                                  int64_t{1} << 61,
                                  int64_t{1} << 62,
                                  kMost};
    int64_t value = 0;
    switch (random_.Below(8)) {
      case 0:
      case 1:
      case 2:  // ordinary
        value = random_.Below(9);
        break;
      case 3:  // any
        value = static_cast<int64_t>(random_.Next() >> random_.Below(64));
        break;
      default:
        value = kNamed[random_.Below(std::size(kNamed))];
        if (const int64_t off = random_.Below(5) - 2; off < 0 || value <= kMost - off) value += off;
        break;
    }
    if (random_.Below(12) == 0) value = value == kMost && random_.Below(2) == 0 ? kLeast : -value;
    return Note(name, value);
  }
  // `usual` more often than not.
  int64_t DrawOr(const char *name, int64_t usual, int64_t one_in = 3) {
    return random_.Below(one_in) == 0 ? Draw(name) : Note(name, usual);
  }
  int64_t Below(int64_t n) { return random_.Below(n); }
  int64_t Note(const char *name, int64_t value) {
    text_ += std::string(name) + " " + std::to_string(value) + ", ";
    largest_ = std::max(largest_, std::fabs(static_cast<double>(value)));
    return value;
  }

  // What has been drawn so far is as good as ordinary.
  void Forgive() { largest_ = 0; }
  // Of so small numbers no product overflows.
  bool AreOrdinary() const { return largest_ < 0x1p28; }
  const std::string &text() const { return text_; }

 private:
  Random random_;
  std::string text_;
  double largest_ = 0;
};

class Arrays {
 public:
  explicit Arrays(Sizes *sizes) : sizes_(*sizes) {
    for (char *&arena : arenas_) {
      arena = static_cast<char *>(
          mmap(nullptr, kRoom + 2 * kFence, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      if (arena == MAP_FAILED || mprotect(arena + kFence, kRoom, PROT_READ | PROT_WRITE) != 0) std::abort();
    }
    told_ = &sizes_;
    for (const int signal : kSignals) {
      struct sigaction tell = {};
      tell.sa_handler = Tell;
      sigaction(signal, &tell, &before_[static_cast<size_t>(signal)]);
    }
  }
  ~Arrays() {
    for (const int signal : kSignals) sigaction(signal, &before_[static_cast<size_t>(signal)], nullptr);
    for (char *arena : arenas_) munmap(arena, kRoom + 2 * kFence);
  }
  Arrays(const Arrays &) = delete;

  void Begin() {
    used_ = 0;
    all_there_ = true;
  }
  // Returns an array of zeros. One of more than kRoom bytes has no byte that may be touched.
  void *Draw(long double bytes, int64_t alignment = 1) {
    char *const arena = arenas_.at(used_) + kFence;
    Used &use = uses_[used_++];
    use = {arena, 0};
    if (!(bytes <= static_cast<long double>(kRoom))) {
      all_there_ = false;
      return use.begin = arena + kRoom;
    }
    use.bytes = bytes > 0 ? static_cast<int64_t>(bytes) : 0;
    if (sizes_.Below(4) != 0) use.begin = arena + (kRoom - use.bytes) / alignment * alignment;
    std::memset(use.begin, 0, static_cast<size_t>(use.bytes));
    return use.begin;
  }
  // The same, or null where it is empty.
  void *DrawOrNull(long double bytes, int64_t alignment = 1) {
    void *const data = Draw(bytes, alignment);
    return bytes <= 0 && sizes_.Below(2) == 0 ? nullptr : data;
  }
  // Returns a copy of a struct with a size of its own, behind whose bytes nobody may touch one. *refused: no library
  // that knows this struct alone may take the size.
  template <class S>
  S *Copy(const S &original, const char *name, bool *refused) {
    const int64_t usual = static_cast<int64_t>(sizeof(S)), drawn = sizes_.DrawOr(name, usual, 40);
    *refused = *refused || drawn < usual || drawn > (1 << 16);
    const int64_t room = drawn<usual ? usual : drawn>(1 << 16) ? usual : drawn;
    S *const copy = static_cast<S *>(Draw(static_cast<long double>(room), 8));
    *copy = original;
    copy->struct_size = static_cast<size_t>(drawn);
    uses_[used_ - 1].bytes = 0;  // not one to stay zero
    return copy;
  }
  // What has been drawn so far is not to stay zero.
  void Forget() {
    for (Used &use : uses_) use.bytes = 0;
  }

  bool AllThere() const { return all_there_; }
  bool AreZero() const {
    for (size_t i = 0; i < used_; ++i) {
      for (int64_t k = 0; k < uses_[i].bytes; ++k) {
        if (uses_[i].begin[k] != 0) return false;
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kRoom = 1 << 17, kFence = 1 << 16;
  static constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};

  struct Used {
    char *begin;
    int64_t bytes;
  };

  // Says which call it was, and leaves the rest to whoever handled the signal before.
  static void Tell(int signal) {
    const std::string &text = told_->text();
    (void)!write(STDERR_FILENO, text.data(), text.size());
    (void)!write(STDERR_FILENO, "\n", 1);
    sigaction(signal, &before_[static_cast<size_t>(signal)], nullptr);
  }
  static inline const Sizes *told_ = nullptr;
  static inline std::array<struct sigaction, 32> before_ = {};

  Sizes &sizes_;
  std::array<char *, 32> arenas_;
  std::array<Used, 32> uses_ = {};
  size_t used_ = 0;
  bool all_there_ = true;
};

}  // namespace xent::test

#endif  // XENT_TESTS_API_SIZES_H_
