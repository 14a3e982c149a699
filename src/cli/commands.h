// The commands of the program. Each returns its exit code and throws Error when it fails.
#ifndef XENT_SRC_CLI_COMMANDS_H_
#define XENT_SRC_CLI_COMMANDS_H_

#include <xent/xent.h>

#include <cstdint>
#include <optional>
#include <string>

namespace xent_cli {

// What a command works on: one file or pair of files, or a manifest that lists such.
struct InputArguments {
  std::string first, second;
  std::optional<std::string> manifest;
  bool keep_going = false;
  int threads = 0;
  bool json = false;
};

struct LossArguments {
  InputArguments inputs;
  xent_options options = XENT_OPTIONS_INIT;
  std::optional<int64_t> class_axis;
  std::optional<std::string> class_weights, row_weights;
  std::optional<std::string> per_row, lse, grad;
};

struct ScoreArguments {
  InputArguments inputs;
  xent_options options = XENT_OPTIONS_INIT;
  std::optional<int64_t> class_axis;
  int32_t top_k = 0;
  std::optional<std::string> out;
};

struct DivergenceArguments {
  InputArguments inputs;
  xent_options options = XENT_OPTIONS_INIT;
  int32_t kind = XENT_DIVERGENCE_FORWARD_KL;
  double beta = 0.5, temperature = 1;
  std::optional<std::string> per_row, grad;
};

struct BceArguments {
  InputArguments inputs;
  xent_options options = XENT_OPTIONS_INIT;
  int32_t input_kind = XENT_BCE_LOGITS;
  std::optional<std::string> pos_weight, element_weights, row_weights, class_weights;
  double focal_gamma = 0;
  std::optional<double> focal_alpha;
  std::optional<std::string> per_element, grad;
};

int RunLoss(const LossArguments &arguments);
int RunScore(const ScoreArguments &arguments);
int RunDivergence(const DivergenceArguments &arguments);
int RunBce(const BceArguments &arguments);
int RunCheck(const InputArguments &inputs);
int RunInfo(bool json);

}  // namespace xent_cli

#endif  // XENT_SRC_CLI_COMMANDS_H_
