// What the parts of the digits demo share: leaving on an error, a generator with a fixed seed, a progress bar.
#ifndef XENT_EXAMPLES_DEMO_COMMON_H_
#define XENT_EXAMPLES_DEMO_COMMON_H_

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numbers>
#include <string>

#include "xent/xent.hpp"

namespace demo {

[[noreturn]] inline void Fail(const std::string &message) {
  std::fflush(stdout);
  std::fprintf(stderr, "train_digits: %s\n", message.c_str());
  std::exit(1);
}

inline void Check(const xent::Status &status) {
  if (!status.ok()) Fail(std::string("the library refused a call: ") + status.message());
}

// SplitMix64 (Steele, Lea and Flood 2014): the same numbers on every machine and standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t Next() {
    state_ += 0x9E3779B97F4A7C15u;
    std::uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }

  // In [0, n), n < 2^32.
  std::int64_t Below(std::int64_t n) {
    return static_cast<std::int64_t>(((Next() >> 32) * static_cast<std::uint64_t>(n)) >> 32);
  }

  // Normal with deviation 1, by Box and Muller.
  float Normal() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2.0 * std::log(Uniform()));
    const double angle = 2.0 * std::numbers::pi * Uniform();
    spare_ = static_cast<float>(radius * std::sin(angle));
    has_spare_ = true;
    return static_cast<float>(radius * std::cos(angle));
  }

 private:
  // In (0, 1].
  double Uniform() { return static_cast<double>((Next() >> 11) + 1) * 0x1p-53; }

  std::uint64_t state_;
  float spare_ = 0.0f;
  bool has_spare_ = false;
};

// One line on stderr, drawn only where stderr is a terminal, and gone when it goes out of scope.
class Progress {
 public:
  Progress(const char *what, int steps) : what_(what), steps_(steps), visible_(isatty(STDERR_FILENO) != 0) { Draw(); }
  Progress(const Progress &) = delete;
  Progress &operator=(const Progress &) = delete;
  ~Progress() {
    if (visible_) std::fprintf(stderr, "\r\033[K");
  }

  void Step() {
    ++done_;
    Draw();
  }

 private:
  void Draw() const {
    if (!visible_) return;
    constexpr int kWidth = 40;
    const std::string bar(static_cast<std::size_t>(kWidth * done_ / steps_), '#');
    std::fprintf(stderr, "\r%s [%-*s] %3d %%", what_, kWidth, bar.c_str(), 100 * done_ / steps_);
    std::fflush(stderr);
  }

  const char *what_;
  int steps_;
  int done_ = 0;
  bool visible_;
};

}  // namespace demo

#endif  // XENT_EXAMPLES_DEMO_COMMON_H_
