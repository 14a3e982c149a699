// Drawing of the progress bar. Debian packages no C++ library for one.
#include "progress.h"

#include <unistd.h>

#include <cstdio>

#include "signals.h"

namespace xent_cli {
namespace {

constexpr int kCells = 30;
constexpr std::chrono::milliseconds kPatience(1000);
constexpr std::chrono::milliseconds kInterval(100);

}  // namespace

Progress::Progress() : terminal_(isatty(STDERR_FILENO) == 1) {}

void Progress::Begin(const std::string &label) {
  Wipe();
  const std::lock_guard<std::mutex> lock(mutex_);
  label_ = label;
  from_ = 0;
  to_ = 1;
  start_ = Clock::now();
  next_ = start_ + kPatience;
}

void Progress::SetPart(double from, double to) {
  const std::lock_guard<std::mutex> lock(mutex_);
  from_ = from;
  to_ = to;
}

void Progress::Update(double fraction) {
  if (!terminal_) return;
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock) return;  // another thread is drawing, which is as good
  const Clock::time_point now = Clock::now();
  if (now < next_) return;
  next_ = now + kInterval;
  const double done = from_ + (to_ - from_) * fraction;
  char bar[kCells + 1];
  const int full = static_cast<int>(done * kCells);
  for (int i = 0; i < kCells; ++i) bar[i] = i < full ? '#' : '-';
  bar[kCells] = '\0';
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  char line[160];
  const int length = std::snprintf(line, sizeof(line), "%s%-8.16s [%s] %3.0f %%, %.0f s left", kWipeLine,
                                   label_.c_str(), bar, 100 * done, done > 0 ? elapsed * (1 - done) / done : 0.0);
  progress_line_shown.store(true, std::memory_order_relaxed);
  if (write(STDERR_FILENO, line, static_cast<size_t>(length)) < 0) return;  // a bar that cannot be drawn is no failure
}

void Progress::Wipe() {
  if (!progress_line_shown.exchange(false)) return;
  if (write(STDERR_FILENO, kWipeLine, sizeof(kWipeLine) - 1) < 0) return;
}

}  // namespace xent_cli
