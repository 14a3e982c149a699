// The progress bar: one line on standard error, drawn only where that is a terminal and the work takes over a second.
#pragma once

#include <chrono>
#include <mutex>
#include <string>

namespace xent_cli {

class Progress {
 public:
  Progress();
  ~Progress() { Wipe(); }
  Progress(const Progress &) = delete;
  Progress &operator=(const Progress &) = delete;

  // Begins a stretch of work, with its own bar.
  void Begin(const std::string &label);
  // Makes later calls of Update report fractions of the part [from, to] of that work.
  void SetPart(double from, double to);
  // Reports that `fraction` of the part is done. Any thread may call this at any rate. It draws at most ten times a
  // second.
  void Update(double fraction);
  // Removes the line, so that other text can follow.
  void Wipe();

 private:
  using Clock = std::chrono::steady_clock;

  const bool terminal_;
  std::mutex mutex_;
  std::string label_;
  double from_ = 0, to_ = 1;
  Clock::time_point start_, next_;
};

}  // namespace xent_cli
