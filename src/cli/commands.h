// The commands of the program. Each returns its exit code and throws Error when it fails.
#ifndef XENT_CLI_COMMANDS_H_
#define XENT_CLI_COMMANDS_H_

#include <xent/xent.h>

#include <string>

namespace xent_cli {

struct LossArguments {
  std::string logits, targets;
  xent_options options = XENT_OPTIONS_INIT;
  bool has_per_row = false, has_lse = false, has_grad = false;
  std::string per_row, lse, grad;
  int threads = 0;
  bool json = false;
};

int RunLoss(const LossArguments& arguments);
int RunCheck(const std::string& logits_path, bool json);
int RunInfo(bool json);

}  // namespace xent_cli

#endif  // XENT_CLI_COMMANDS_H_
