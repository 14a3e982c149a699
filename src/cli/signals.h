// Signals. When the process is told to stop, named temporary files are removed. A fault inside a mapped file, which was
// cut short or whose device failed, becomes one line and exit code 1.
#pragma once

#include <atomic>
#include <cstddef>
#include <string>

namespace xent_cli {

// Installs the handlers. SIGINT, SIGTERM, SIGHUP and SIGQUIT remove the registered names and then end the process as
// they do by default. SIGBUS inside a registered mapping prints its line. SIGPIPE and SIGXFSZ are ignored: the write
// says what failed.
void InstallSignalHandlers();

// The name of a file, or of a directory made for such files, which is removed if a signal ends the process during the
// lifetime of this object.
class ScopedTemporaryName {
 public:
  explicit ScopedTemporaryName(const std::string &path);
  ~ScopedTemporaryName();
  ScopedTemporaryName(const ScopedTemporaryName &) = delete;
  ScopedTemporaryName &operator=(const ScopedTemporaryName &) = delete;

 private:
  int slot_;
};

// A range of addresses that a file backs, and the line ("xent: ...") to print when an access to it fails.
class ScopedMappingName {
 public:
  ScopedMappingName(const void *begin, size_t size, const std::string &message);
  ~ScopedMappingName();
  ScopedMappingName(const ScopedMappingName &) = delete;
  ScopedMappingName &operator=(const ScopedMappingName &) = delete;

 private:
  int slot_;
};

// True while a progress line stands on the terminal, to be wiped before an error is printed.
extern std::atomic<bool> progress_line_shown;
// Wipes that line: to the first column, then clear to the end of the line.
inline constexpr char kWipeLine[] = "\r\033[K";

}  // namespace xent_cli
