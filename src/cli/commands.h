// The commands of the program. Each returns its exit code and throws Error when it fails.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "xent/xent.h"

namespace xent_cli {

// What a command works on: one file, one pair of files, or a manifest that lists such.
struct InputArguments {
  std::string first, second;
  std::optional<std::string> manifest;
  bool keep_going = false;
  int threads = 0;  // 0: as many as the library would use
  bool json = false;
};

struct LossArguments {
  InputArguments inputs;
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  std::optional<int64_t> class_axis;
  std::optional<std::string> class_weights, row_weights;
  std::optional<std::string> per_row, lse, grad;
};

struct ScoreArguments {
  InputArguments inputs;
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  std::optional<int64_t> class_axis;
  int32_t top_k = 0;  // 0: not wanted
  std::optional<std::string> out;
};

struct DivergenceArguments {
  InputArguments inputs;
  xent_divergence_options options = XENT_DIVERGENCE_OPTIONS_INIT;
  std::optional<int64_t> class_axis;
  std::optional<std::string> row_weights;
  std::optional<std::string> per_row, grad;
};

struct BceArguments {
  InputArguments inputs;
  xent_binary_cross_entropy_options options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
  std::optional<std::string> pos_weight, element_weights, row_weights, class_weights;
  std::optional<std::string> per_element, grad;
};

struct CheckArguments {
  InputArguments inputs;
  std::optional<int64_t> class_axis;
  int64_t valid_cols = 0;  // 0: all
};

int RunLoss(const LossArguments &arguments);
int RunScore(const ScoreArguments &arguments);
int RunDivergence(const DivergenceArguments &arguments);
int RunBce(const BceArguments &arguments);
int RunCheck(const CheckArguments &arguments);
int RunInfo(bool json);

}  // namespace xent_cli
