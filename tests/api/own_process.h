// Parts of tests that need a process of their own: this program is started anew and runs one of them in place of its
// tests. A forked child would not do, since the library tells that it is one.
#ifndef XENT_TESTS_API_OWN_PROCESS_H_
#define XENT_TESTS_API_OWN_PROCESS_H_

#include <string>
#include <utility>
#include <vector>

namespace xent::test {

// Gives a part its name. What `body` returns is the exit status of the process.
class Part {
 public:
  Part(const char *name, int (*body)());
};
// What main does with its one argument: runs the part of that name and returns true, or false where there is none.
bool RunPart(const std::string &name, int *status);

struct Outcome {
  bool started = false;  // a program cannot start itself under an emulator, nor in a namespace without the right to
  int status = -1;       // of the exit; -1: it was killed, or did not end within two minutes
  std::string output;    // standard output and error
};
using Variables = std::vector<std::pair<const char *, const char *>>;
// Runs a part with the variables of the environment set, or removed where the value is null. `namespaces`: flags of
// clone(2) for it.
Outcome RunInOwnProcess(const char *name, const Variables &variables = {}, unsigned long namespaces = 0);

}  // namespace xent::test

#endif  // XENT_TESTS_API_OWN_PROCESS_H_
