// How the command line program fails: an exception inside it, one line on standard error and an exit code at its edge.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace xent_cli {

enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,        // a file, its contents or the system
  kExitUsage = 2,          // the command line itself
  kExitProbabilities = 3,  // `xent check` found probabilities
};

// Everything that ends a command early. The message is the line printed after "xent: ".
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string &message) : std::runtime_error(message) {}
};

// The command line is wrong, rather than what it names.
class UsageError : public Error {
 public:
  using Error::Error;
};

// Returns "ACTION NAME: REASON", with the system's words for `error_number`.
Error SystemError(std::string_view action, std::string_view name, int error_number);

// Returns `text` with control characters spelled as \xNN, so that a name with a line feed in it still makes one line.
std::string Printable(std::string_view text);

}  // namespace xent_cli
