// The command line program `xent`: options in, one of the commands, an exit code out. Nothing here or below knows more
// of the library than its public header.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <exception>
#include <functional>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "commands.h"
#include "error.h"
#include "pool.h"
#include "report.h"
#include "signals.h"

namespace xent_cli {
namespace {

// Opens /dev/null in place of each closed standard descriptor, so that no file that is opened later becomes one of
// them. Writing to it fails, as it did before.
void KeepStandardDescriptors() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDONLY) < 0) _exit(kExitFailure);
  }
}

CLI::ValidationError WrongValue(const std::string &option, const std::string &expected, const std::string &text) {
  return CLI::ValidationError(option, std::string("expected ").append(expected) + ", not '" + text + "'");
}

// Returns the whole of `text` as a number, in the C locale whatever the user's is. CLI11's own conversion would read
// 010 as 8.
template <typename T>
T ParseNumber(const std::string &option, const std::string &text, const char *expected) {
  T value{};
  const char *const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) throw WrongValue(option, expected, text);
  return value;
}

template <typename T>
struct NumberOf {
  using type = T;
};
template <typename T>
struct NumberOf<std::optional<T>> {
  using type = T;
};

// Adds an option that takes a number. `value` is a number, or an optional one that stays empty without the option.
template <typename T, typename Valid>
CLI::Option *AddNumber(CLI::App *command, const std::string &option, const std::string &help, const char *type_name,
                       const char *expected, Valid valid, T *value) {
  return command
      ->add_option_function<std::string>(
          option,
          [=](const std::string &text) {
            const auto number = ParseNumber<typename NumberOf<T>::type>(option, text, expected);
            if (!valid(number)) throw WrongValue(option, expected, text);
            *value = number;
          },
          help)
      ->type_name(type_name);
}

// Adds an option that takes one of several words; `value` becomes the number of the word.
CLI::Option *AddChoice(CLI::App *command, const std::string &option, const std::string &help,
                       const std::vector<std::pair<std::string, int32_t>> &choices, int32_t *value) {
  std::string words;
  for (const auto &choice : choices) words += (words.empty() ? "" : "|") + choice.first;
  return command
      ->add_option_function<std::string>(
          option,
          [=](const std::string &text) {
            for (const auto &[word, number] : choices) {
              if (text == word) {
                *value = number;
                return;
              }
            }
            throw WrongValue(option, words, text);
          },
          help)
      ->type_name(words);
}

// Adds an option whose argument is taken as it is, empty too.
CLI::Option *AddText(CLI::App *command, const std::string &option, const std::string &help, const char *type_name,
                     std::optional<std::string> *value) {
  return command->add_option_function<std::string>(
                    option, [value](const std::string &text) { *value = text; }, help)
      ->type_name(type_name);
}

bool IsPositive(double value) { return std::isfinite(value) && value > 0; }
bool IsNotNegative(double value) { return std::isfinite(value) && value >= 0; }
bool IsShare(double value) { return value >= 0 && value <= 1; }
constexpr char kPositive[] = "a finite number above 0";
constexpr char kNotNegative[] = "a finite number from 0 on";
constexpr char kShare[] = "a number from 0 to 1";

// An input file's name on the command line.
struct Path {
  std::string name, help;
  std::string *value;
};

// Adds the input files or a manifest of such, and --json. `check` runs after the command line has been read.
void AddInputs(CLI::App *command, InputArguments &inputs, const std::vector<Path> &paths,
               const std::vector<std::string> &not_with_manifest, const std::function<void()> &check = {}) {
  std::vector<CLI::Option *> positionals;
  for (const Path &path : paths) {
    positionals.push_back(command
                              ->add_option_function<std::string>(
                                  path.name, [path](const std::string &text) { *path.value = text; }, path.help)
                              ->type_name(""));
  }
  AddText(command, "--manifest",
          paths.size() == 1
              ? "Take the files from a list: one path a line, relative to the list; # begins a comment line"
              : "Take the files from a list: two paths a line with a TAB between them, relative to the list; "
                "# begins a comment line",
          "FILE", &inputs.manifest);
  command->add_flag("--keep-going", inputs.keep_going, "Name a bad file of the manifest and do the rest");
  command->add_flag("--json", inputs.json, "Print one JSON object on one line");
  command->callback([=, &inputs] {
    for (const CLI::Option *positional : positionals) {
      const bool given = positional->count() > 0;
      if (!inputs.manifest && !given) throw CLI::RequiredError(positional->get_name());
      if (inputs.manifest && given) {
        throw CLI::ValidationError("--manifest", "not together with " + positional->get_name());
      }
    }
    for (const std::string &option : not_with_manifest) {
      if (inputs.manifest && command->get_option(option)->count() > 0) {
        throw CLI::ValidationError(option, "not together with --manifest");
      }
    }
    if (inputs.keep_going && !inputs.manifest) throw CLI::ValidationError("--keep-going", "only with --manifest");
    if (check) check();
  });
}

void AddThreads(CLI::App *command, InputArguments &inputs) {
  AddNumber(
      command, "--threads", "Threads, 0 for all; results do not depend on it (0)", "N", "an integer from 0 to 1024",
      [](int value) { return value >= 0 && value <= kMaxThreads; }, &inputs.threads);
}

// Adds the options that say how losses become one. `empty` says when the mean is one over nothing.
void AddReduction(CLI::App *command, xent_reduction &reduction, const std::string &empty) {
  AddChoice(command, "--reduction", "How the losses become one (mean)",
            {{"mean", XENT_REDUCTION_MEAN}, {"sum", XENT_REDUCTION_SUM}, {"none", XENT_REDUCTION_NONE}},
            &reduction.kind);
  AddNumber(command, "--divisor", "Divide the sum of the losses by D; not with --reduction none", "D", kPositive,
            IsPositive, &reduction.divisor);
  AddChoice(command, "--empty-mean", "The mean when " + empty + " (nan)",
            {{"nan", XENT_EMPTY_MEAN_NAN}, {"zero", XENT_EMPTY_MEAN_ZERO}}, &reduction.empty_mean);
}

void CheckReduction(const xent_reduction &reduction) {
  if (reduction.divisor != 0 && reduction.kind == XENT_REDUCTION_NONE) {
    throw CLI::ValidationError("--divisor", "not together with --reduction none");
  }
}

// Adds the options that say which of the numbers in a file are a row's logits.
void AddLayout(CLI::App *command, int64_t &valid_cols, std::optional<int64_t> &class_axis) {
  AddNumber(
      command, "--valid-cols", "Columns from V on are padding", "V", "an integer above 0",
      [](int64_t value) { return value > 0; }, &valid_cols);
  AddNumber(
      command, "--class-axis", "Dimension of the classes, from the end where negative (1, or 0 for a vector)", "A",
      "a 64-bit integer", [](int64_t) { return true; }, &class_axis);
}

// Adds the options of the transformed logits, of their layout, and of the rows that count.
void AddLogitsOptions(CLI::App *command, xent_cross_entropy_options &options, std::optional<int64_t> &class_axis) {
  AddNumber(
      command, "--ignore-index", "Rows with this target count for nothing (-100)", "I", "a 64-bit integer",
      [](int64_t) { return true; }, &options.ignore_index);
  AddNumber(command, "--logit-scale", "Multiply the logits by S; a temperature T is the scale 1/T (1)", "S", kPositive,
            IsPositive, &options.logit_scale);
  AddNumber(command, "--softcap", "Then cap them softly: C tanh(z/C); 0 is off (0)", "C", kNotNegative, IsNotNegative,
            &options.softcap);
  AddLayout(command, options.valid_cols, class_axis);
}

constexpr char kLogitsHelp[] = "float32, float64, float16, or bfloat16 as two-byte void";
constexpr char kOutputFooter[] =
    "A regular output file is replaced in one step when everything is complete; a device or pipe is\n"
    "written in place, front to back, in the order of the options above. With an output on /dev/stdout\n"
    "the report goes to standard error. A manifest's totals are those of one matrix of all its rows; array\n"
    "outputs and weights of rows or elements belong to one file and do not go with it.";

CLI::App *AddLossCommand(CLI::App &app, LossArguments &arguments) {
  CLI::App *loss =
      app.add_subcommand("loss", "Cross-entropy of logits [N, V] against target classes [N] or probabilities [N, V]");
  xent_cross_entropy_options &options = arguments.options;
  AddReduction(loss, options.reduction, "every row is ignored");
  AddLogitsOptions(loss, options, arguments.class_axis);
  AddNumber(loss, "--label-smoothing", "Share of the target that the other classes get, 0 to 1 (0)", "E", kShare,
            IsShare, &options.label_smoothing);
  AddChoice(loss, "--smoothing", "Whether the target's class has part of that share (uniform)",
            {{"uniform", XENT_SMOOTHING_UNIFORM}, {"exclusive", XENT_SMOOTHING_EXCLUSIVE}}, &options.smoothing);
  AddNumber(loss, "--z-loss", "Add L logsumexp^2 to the loss of a row (0)", "L", kNotNegative, IsNotNegative,
            &options.z_loss);
  AddText(loss, "--class-weights", "A weight for each class, [V]", "W.npy", &arguments.class_weights);
  AddText(loss, "--row-weights", "A weight for each row, [N]", "R.npy", &arguments.row_weights);
  AddText(loss, "--per-row", "Write the losses, [N]", "OUT.npy", &arguments.per_row);
  AddText(loss, "--lse", "Write the logsumexp of each row, [N]", "OUT.npy", &arguments.lse);
  AddText(loss, "--grad", "Write the gradient, [N, V] in the dtype of the logits", "OUT.npy", &arguments.grad);
  AddThreads(loss, arguments.inputs);
  AddInputs(loss, arguments.inputs,
            {{"LOGITS.npy", kLogitsHelp, &arguments.inputs.first},
             {"TARGETS.npy", "Integers or bool; of a floating type and the logits' shape: probabilities",
              &arguments.inputs.second}},
            {"--row-weights", "--per-row", "--lse", "--grad"}, [&options] { CheckReduction(options.reduction); });
  loss->footer(kOutputFooter);
  return loss;
}

CLI::App *AddScoreCommand(CLI::App &app, ScoreArguments &arguments) {
  CLI::App *score =
      app.add_subcommand("score", "Accuracy, perplexity, entropy and rank of logits [N, V] over targets [N]");
  AddLogitsOptions(score, arguments.options, arguments.class_axis);
  AddNumber(
      score, "--top-k", "How often the target is among the K best, and which these are", "K", "an integer from 1 to 64",
      [](int32_t value) { return value >= 1 && value <= 64; }, &arguments.top_k);
  AddText(score, "--out", "Write the numbers of each row into this directory, a file for each kind", "DIR",
          &arguments.out);
  AddThreads(score, arguments.inputs);
  AddInputs(score, arguments.inputs,
            {{"LOGITS.npy", kLogitsHelp, &arguments.inputs.first},
             {"TARGETS.npy", "Integers or bool", &arguments.inputs.second}},
            {"--out"});
  score->footer(
      std::string("Files in DIR, each NAME.npy: lse, logprob, argmax, entropy, rank; with --top-k topk_indices and\n"
                  "topk_logprobs. DIR is made if need be.\n") +
      kOutputFooter);
  return score;
}

CLI::App *AddDivergenceCommand(CLI::App &app, DivergenceArguments &arguments) {
  CLI::App *divergence =
      app.add_subcommand("divergence", "Divergence between the softmax of a student's logits [N, V] and a teacher's");
  xent_divergence_options &options = arguments.options;
  AddChoice(divergence, "--kind", "Which one (forward-kl)",
            {{"forward-kl", XENT_DIVERGENCE_FORWARD_KL},
             {"reverse-kl", XENT_DIVERGENCE_REVERSE_KL},
             {"js", XENT_DIVERGENCE_JENSEN_SHANNON},
             {"cross-entropy", XENT_DIVERGENCE_CROSS_ENTROPY}},
            &options.kind);
  const CLI::Option *beta = AddNumber(
      divergence, "--beta", "Share of the teacher in the mixture of js, between 0 and 1 (0.5)", "B",
      "a number between 0 and 1", [](double value) { return value > 0 && value < 1; }, &options.beta);
  AddNumber(divergence, "--temperature", "Divide all logits by T (1)", "T", kPositive, IsPositive,
            &options.temperature);
  AddReduction(divergence, options.reduction, "there are no rows");
  AddLayout(divergence, options.valid_cols, arguments.class_axis);
  AddText(divergence, "--row-weights", "A weight for each row, [N]", "R.npy", &arguments.row_weights);
  AddText(divergence, "--per-row", "Write the losses, [N]", "OUT.npy", &arguments.per_row);
  AddText(divergence, "--grad", "Write the gradient for the student's logits, [N, V] in their dtype", "OUT.npy",
          &arguments.grad);
  AddThreads(divergence, arguments.inputs);
  AddInputs(
      divergence, arguments.inputs,
      {{"STUDENT.npy", kLogitsHelp, &arguments.inputs.first}, {"TEACHER.npy", kLogitsHelp, &arguments.inputs.second}},
      {"--row-weights", "--per-row", "--grad"}, [beta, &options] {
        if (beta->count() > 0 && options.kind != XENT_DIVERGENCE_JENSEN_SHANNON) {
          throw CLI::ValidationError("--beta", "only with --kind js");
        }
        CheckReduction(options.reduction);
      });
  divergence->footer(kOutputFooter);
  return divergence;
}

CLI::App *AddBceCommand(CLI::App &app, BceArguments &arguments) {
  CLI::App *bce =
      app.add_subcommand("bce", "Binary cross-entropy, or focal loss, of elements [N, C] against targets [N, C]");
  xent_binary_cross_entropy_options &options = arguments.options;
  AddChoice(bce, "--from",
            "What the input is (logits); of probabilities each log counts as at least -100, and p(1-p) in the "
            "gradient's denominator as at least 1e-12, as in PyTorch",
            {{"logits", XENT_BINARY_LOGITS}, {"probabilities", XENT_BINARY_PROBABILITIES}}, &options.input);
  AddText(bce, "--pos-weight", "A weight for the positive part of each class, [C]", "P.npy", &arguments.pos_weight);
  AddText(bce, "--element-weights", "A weight for each element, [N, C]", "W.npy", &arguments.element_weights);
  AddText(bce, "--row-weights", "A weight for each row, [N]", "R.npy", &arguments.row_weights);
  AddText(bce, "--class-weights", "A weight for each class, [C]", "C.npy", &arguments.class_weights);
  AddNumber(bce, "--focal-gamma", "Exponent of the focal loss (0)", "G", kNotNegative, IsNotNegative,
            &options.focal_gamma);
  AddNumber(bce, "--focal-alpha", "Weight of the positive class in it, the negative one's is 1 - A", "A", kShare,
            IsShare, &options.focal_alpha);
  AddReduction(bce, options.reduction, "there are no rows");
  AddText(bce, "--per-element", "Write the losses, [N, C]", "OUT.npy", &arguments.per_element);
  AddText(bce, "--grad", "Write the gradient, [N, C] in the dtype of the input", "OUT.npy", &arguments.grad);
  AddThreads(bce, arguments.inputs);
  AddInputs(bce, arguments.inputs,
            {{"INPUT.npy", std::string(kLogitsHelp) + "; the classes are dimension 1", &arguments.inputs.first},
             {"TARGETS.npy", "As the input, of its shape; integers or bool too", &arguments.inputs.second}},
            {"--element-weights", "--row-weights", "--per-element", "--grad"}, [bce, &options] {
              for (const char *option : {"--pos-weight", "--focal-gamma", "--focal-alpha"}) {
                if (options.input != XENT_BINARY_LOGITS && bce->get_option(option)->count() > 0) {
                  throw CLI::ValidationError(option, "not together with --from probabilities");
                }
              }
              CheckReduction(options.reduction);
            });
  bce->footer(kOutputFooter);
  return bce;
}

CLI::App *AddCheckCommand(CLI::App &app, CheckArguments &arguments) {
  CLI::App *check = app.add_subcommand("check", "Say whether logits [N, V] are probabilities by mistake");
  AddLayout(check, arguments.valid_cols, arguments.class_axis);
  AddInputs(check, arguments.inputs, {{"LOGITS.npy", kLogitsHelp, &arguments.inputs.first}}, {});
  check->footer("Exit code: 0; 3 for probabilities.");
  return check;
}

int ParseAndRun(int argc, char **argv) {
  CLI::App app("Softmax cross-entropy on the CPU, of arrays in .npy files.", "xent");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("xent ") + xent_version(), "Print the version and exit");
  app.footer("Exit code: 0; 1 for a failure; 2 for wrong usage; 3 when `check` finds probabilities.");

  LossArguments loss_arguments;
  ScoreArguments score_arguments;
  DivergenceArguments divergence_arguments;
  BceArguments bce_arguments;
  CheckArguments check_arguments;
  bool info_json = false;
  const CLI::App *const loss = AddLossCommand(app, loss_arguments);
  const CLI::App *const score = AddScoreCommand(app, score_arguments);
  const CLI::App *const divergence = AddDivergenceCommand(app, divergence_arguments);
  const CLI::App *const bce = AddBceCommand(app, bce_arguments);
  const CLI::App *const check = AddCheckCommand(app, check_arguments);
  CLI::App *const info = app.add_subcommand("info", "Targets, threads, caches and versions");
  info->add_flag("--json", info_json, "Print one JSON object on one line");

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp &) {
    Print(STDOUT_FILENO, app.help());
    return kExitOk;
  } catch (const CLI::CallForVersion &version) {
    Print(STDOUT_FILENO, std::string(version.what()) + "\n");
    return kExitOk;
  } catch (const CLI::RequiredError &error) {
    if (!app.get_subcommands().empty()) throw UsageError(error.what());
    const std::vector<std::string> rest = app.remaining();
    std::string message = "a command is required: loss, score, divergence, bce, check or info";
    if (!rest.empty()) message.append(", not '").append(rest[0]).append("'");
    throw UsageError(message);
  } catch (const CLI::ParseError &error) {
    throw UsageError(error.what());
  }
  if (loss->parsed()) return RunLoss(loss_arguments);
  if (score->parsed()) return RunScore(score_arguments);
  if (divergence->parsed()) return RunDivergence(divergence_arguments);
  if (bce->parsed()) return RunBce(bce_arguments);
  if (check->parsed()) return RunCheck(check_arguments);
  return RunInfo(info_json);
}

// Prints one line on standard error, in one write where the system allows, and returns `exit_code`. A failure to print
// it cannot be reported.
int Fail(int exit_code, const std::string &message) noexcept {
  try {
    Print(STDERR_FILENO, "xent: " + Printable(message) + "\n");
  } catch (...) {
    return exit_code;
  }
  return exit_code;
}

int Main(int argc, char **argv) noexcept {
  KeepStandardDescriptors();
  InstallSignalHandlers();
  try {
    return ParseAndRun(argc, argv);
  } catch (const UsageError &error) {
    return Fail(kExitUsage, std::string(error.what()) + " (xent --help)");
  } catch (const std::bad_alloc &) {
    return Fail(kExitFailure, "out of memory");
  } catch (const std::exception &error) {
    return Fail(kExitFailure, error.what());
  } catch (...) {
    return Fail(kExitFailure, "unknown failure");
  }
}

}  // namespace
}  // namespace xent_cli

int main(int argc, char **argv) { return xent_cli::Main(argc, argv); }
