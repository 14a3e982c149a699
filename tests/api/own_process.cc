#include "api/own_process.h"

#include <poll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <map>

namespace xent::test {
namespace {

constexpr int kNotStarted = 127;

std::map<std::string, int (*)()> &Parts() {
  static std::map<std::string, int (*)()> parts;
  return parts;
}

// Reads until the other end is closed. False: that takes longer than two minutes.
bool ReadAll(int end, std::string *text) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point deadline = Clock::now() + std::chrono::minutes(2);
  char buffer[256];
  while (Clock::now() < deadline) {
    pollfd wanted = {end, POLLIN, 0};
    if (poll(&wanted, 1, 1000) <= 0) continue;
    const ssize_t n = read(end, buffer, sizeof(buffer));
    if (n <= 0) return true;
    text->append(buffer, static_cast<size_t>(n));
  }
  return false;
}

}  // namespace

Part::Part(const char *name, int (*body)()) { Parts()[name] = body; }

bool RunPart(const std::string &name, int *status) {
  const auto part = Parts().find(name);
  if (part == Parts().end()) return false;
  *status = part->second();
  return true;
}

Outcome RunInOwnProcess(const char *name, const Variables &variables, unsigned long namespaces) {
  Outcome outcome;
  int ends[2];
  if (pipe(ends) != 0) return outcome;
  const pid_t child = static_cast<pid_t>(syscall(SYS_clone, namespaces | SIGCHLD, nullptr, nullptr, nullptr, nullptr));
  if (child == 0) {
    for (const auto &[variable, value] : variables) {
      value == nullptr ? unsetenv(variable) : setenv(variable, value, 1);
    }
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    execl("/proc/self/exe", "xent_api_tests", name, nullptr);
    _exit(kNotStarted);
  }
  close(ends[1]);
  if (child > 0) {
    if (!ReadAll(ends[0], &outcome.output)) kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status)) outcome.status = WEXITSTATUS(status);
    outcome.started = outcome.status != kNotStarted;
  }
  close(ends[0]);
  return outcome;
}

}  // namespace xent::test
