// Signal handlers. They touch nothing but lock-free atomics and fixed arrays, and call only what POSIX lists as
// async-signal-safe.
#include "signals.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <climits>
#include <cstdint>
#include <cstring>

#include "error.h"

namespace xent_cli {

std::atomic<bool> progress_line_shown{false};

namespace {

static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<uintptr_t>::is_always_lock_free);

struct TemporarySlot {
  std::atomic<bool> used{false};
  char path[PATH_MAX] = {};
};

struct MappingSlot {
  std::atomic<uintptr_t> begin{0};
  std::atomic<uintptr_t> end{0};  // 0: the slot is free
  char line[512] = {};
};

// The most that a command has at once: `score` two inputs, seven outputs and five buffers, `bce` six inputs, two
// outputs and five buffers.
std::array<TemporarySlot, 16> temporaries;
std::array<MappingSlot, 16> mappings;

void Say(const char *text) {
  if (write(STDERR_FILENO, text, std::strlen(text)) < 0) return;  // nowhere left to say it
}

void RemoveTemporaries() {
  for (TemporarySlot &slot : temporaries) {
    if (slot.used.load(std::memory_order_acquire)) unlink(slot.path);
  }
  for (TemporarySlot &slot : temporaries) {
    if (slot.used.load(std::memory_order_acquire)) rmdir(slot.path);  // fails where results have arrived in it
  }
}

void WipeProgressLine() {
  if (progress_line_shown.load(std::memory_order_relaxed)) Say(kWipeLine);
}

void OnTermination(int number) {
  RemoveTemporaries();
  WipeProgressLine();
  signal(number, SIG_DFL);
  raise(number);
}

void OnBusError(int number, siginfo_t *info, void *) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (MappingSlot &slot : mappings) {
    const uintptr_t end = slot.end.load(std::memory_order_acquire);
    if (address < slot.begin.load(std::memory_order_relaxed) || address >= end) continue;
    static std::atomic_flag reported;
    if (reported.test_and_set()) {
      for (;;) pause();  // another thread met the same fault and is about to end the process
    }
    RemoveTemporaries();
    WipeProgressLine();
    Say(slot.line);
    _exit(kExitFailure);
  }
  OnTermination(number);
}

template <size_t size>
void CopyText(const std::string &text, char (&buffer)[size]) {
  const size_t length = text.copy(buffer, size - 1);
  buffer[length] = '\0';
}

}  // namespace

void InstallSignalHandlers() {
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
  struct sigaction action = {};
  sigemptyset(&action.sa_mask);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) {
    struct sigaction previous;
    if (sigaction(number, nullptr, &previous) == 0 && previous.sa_handler == SIG_IGN)
      continue;  // nohup, or a shell's &
    action.sa_handler = OnTermination;
    action.sa_flags = SA_RESTART;
    sigaction(number, &action, nullptr);
  }
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

ScopedTemporaryName::ScopedTemporaryName(const std::string &path) : slot_(0) {
  if (path.size() >= sizeof(TemporarySlot::path)) throw Error("cannot write " + path + ": the name is too long");
  while (temporaries.at(slot_).used.load(std::memory_order_relaxed)) ++slot_;
  CopyText(path, temporaries[slot_].path);
  temporaries[slot_].used.store(true, std::memory_order_release);
}

ScopedTemporaryName::~ScopedTemporaryName() { temporaries[slot_].used.store(false, std::memory_order_release); }

ScopedMappingName::ScopedMappingName(const void *begin, size_t size, const std::string &message) : slot_(0) {
  while (mappings.at(slot_).end.load(std::memory_order_relaxed) != 0) ++slot_;
  MappingSlot &slot = mappings[slot_];
  // Room is kept for the line feed of a line that has to be cut.
  CopyText(Printable(message).substr(0, sizeof(slot.line) - 2) + "\n", slot.line);
  const auto address = reinterpret_cast<uintptr_t>(begin);
  slot.begin.store(address, std::memory_order_relaxed);
  slot.end.store(address + size, std::memory_order_release);
}

ScopedMappingName::~ScopedMappingName() { mappings[slot_].end.store(0, std::memory_order_release); }

}  // namespace xent_cli
