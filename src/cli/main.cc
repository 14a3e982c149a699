// The command line program `xent`: options in, one of the commands, an exit code out. Nothing here or below knows more
// of the library than its public header.
#include <fcntl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <exception>
#include <new>
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

// Standard output and error are open from here on, so that no file that is opened later becomes one of them. Where one
// was closed, writing to it still fails.
void KeepStandardDescriptors() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDONLY) < 0) _exit(kExitFailure);
  }
}

CLI::ValidationError WrongValue(const std::string& option, const std::string& expected, const std::string& text) {
  return CLI::ValidationError(option, std::string("expected ").append(expected) + ", not '" + text + "'");
}

// The whole of `text` as a number, in the C locale whatever the user's is. CLI11's own conversion would read 010 as 8.
template <typename T>
T ParseNumber(const std::string& option, const std::string& text, const char* expected) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) throw WrongValue(option, expected, text);
  return value;
}

template <typename T, typename Valid>
CLI::Option* AddNumber(CLI::App* command, const std::string& option, const std::string& help, const char* type_name,
                       const char* expected, Valid valid, T* value) {
  return command
      ->add_option_function<std::string>(
          option,
          [=](const std::string& text) {
            *value = ParseNumber<T>(option, text, expected);
            if (!valid(*value)) throw WrongValue(option, expected, text);
          },
          help)
      ->type_name(type_name);
}

// A choice among words, which stand in the order of the enumeration that `value` holds.
CLI::Option* AddChoice(CLI::App* command, const std::string& option, const std::string& help,
                       const std::vector<std::pair<std::string, int32_t>>& choices, int32_t* value) {
  std::string words;
  for (const auto& choice : choices) words += (words.empty() ? "" : "|") + choice.first;
  return command
      ->add_option_function<std::string>(
          option,
          [=](const std::string& text) {
            for (const auto& [word, number] : choices) {
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

void AddLossCommand(CLI::App& app, LossArguments& arguments) {
  CLI::App* loss = app.add_subcommand("loss", "Cross-entropy of logits [N, V] against target classes [N]");
  loss->add_option("LOGITS.npy", arguments.logits, "float32, float64, float16, or bfloat16 as two-byte void")
      ->type_name("")
      ->required();
  loss->add_option("TARGETS.npy", arguments.targets, "int32 or int64")->type_name("")->required();
  xent_options& options = arguments.options;
  AddChoice(loss, "--reduction", "How the rows' losses become one (mean)",
            {{"mean", XENT_REDUCTION_MEAN}, {"sum", XENT_REDUCTION_SUM}, {"none", XENT_REDUCTION_NONE}},
            &options.reduction);
  AddNumber(
      loss, "--ignore-index", "Rows with this target count for nothing (-100)", "I", "a 64-bit integer",
      [](int64_t) { return true; }, &options.ignore_index);
  AddNumber(
      loss, "--label-smoothing", "Share of the target that the other classes get, 0 to 1 (0)", "E",
      "a number from 0 to 1", [](double value) { return value >= 0 && value <= 1; }, &options.label_smoothing);
  AddChoice(loss, "--smoothing", "Whether the target's class has part of that share (uniform)",
            {{"uniform", XENT_SMOOTHING_UNIFORM}, {"exclusive", XENT_SMOOTHING_EXCLUSIVE}}, &options.smoothing);
  CLI::Option* divisor = AddNumber(
      loss, "--divisor", "Divide the sum of the losses by D; not with --reduction none", "D", "a finite number above 0",
      [](double value) { return std::isfinite(value) && value > 0; }, &options.divisor);
  AddChoice(loss, "--empty-mean", "The mean when every row is ignored (nan)",
            {{"nan", XENT_EMPTY_MEAN_NAN}, {"zero", XENT_EMPTY_MEAN_ZERO}}, &options.empty_mean);
  CLI::Option* per_row =
      loss->add_option("--per-row", arguments.per_row, "Write the losses, [N]")->type_name("OUT.npy");
  CLI::Option* lse =
      loss->add_option("--lse", arguments.lse, "Write the logsumexp of each row, [N]")->type_name("OUT.npy");
  CLI::Option* grad =
      loss->add_option("--grad", arguments.grad, "Write the gradient, [N, V] in the dtype of the logits")
          ->type_name("OUT.npy");
  AddNumber(
      loss, "--threads", "Threads, 0 for all; results do not depend on it (0)", "N", "an integer from 0 to 1024",
      [](int value) { return value >= 0 && value <= kMaxThreads; }, &arguments.threads);
  loss->add_flag("--json", arguments.json, "Print one JSON object on one line");
  loss->footer(
      "A regular output file is replaced in one step when everything is complete; a device or pipe is\n"
      "written in place, front to back, in the order of the options above. With an output on /dev/stdout\n"
      "the report goes to standard error.");
  loss->callback([divisor, per_row, lse, grad, &arguments] {
    arguments.options.has_divisor = divisor->count() > 0;
    arguments.has_per_row = per_row->count() > 0;
    arguments.has_lse = lse->count() > 0;
    arguments.has_grad = grad->count() > 0;
    if (arguments.options.has_divisor && arguments.options.reduction == XENT_REDUCTION_NONE) {
      throw CLI::ValidationError("--divisor", "not together with --reduction none");
    }
  });
}

int ParseAndRun(int argc, char** argv) {
  CLI::App app("Softmax cross-entropy on the CPU, of arrays in .npy files.", "xent");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("xent ") + xent_version(), "Print the version and exit");
  app.footer("Exit code: 0; 1 for a failure; 2 for wrong usage; 3 when `check` finds probabilities.");

  LossArguments loss;
  AddLossCommand(app, loss);
  std::string check_logits;
  bool check_json = false, info_json = false;
  CLI::App* check = app.add_subcommand("check", "Say whether logits [N, V] are probabilities by mistake");
  check->add_option("LOGITS.npy", check_logits, "float32, float64, float16, or bfloat16 as two-byte void")
      ->type_name("")
      ->required();
  check->add_flag("--json", check_json, "Print one JSON object on one line");
  check->footer("Exit code: 0; 3 for probabilities.");
  CLI::App* info = app.add_subcommand("info", "Targets, threads, caches and versions");
  info->add_flag("--json", info_json, "Print one JSON object on one line");

  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    Print(STDOUT_FILENO, app.help());
    return kExitOk;
  } catch (const CLI::CallForVersion& version) {
    Print(STDOUT_FILENO, std::string(version.what()) + "\n");
    return kExitOk;
  } catch (const CLI::RequiredError& error) {
    if (!app.get_subcommands().empty()) throw UsageError(error.what());
    const std::vector<std::string> rest = app.remaining();
    std::string message = "a command is required: loss, check or info";
    if (!rest.empty()) message.append(", not '").append(rest[0]).append("'");
    throw UsageError(message);
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
  if (info->parsed()) return RunInfo(info_json);
  if (check->parsed()) return RunCheck(check_logits, check_json);
  return RunLoss(loss);
}

// The one line on standard error, in one write where the system allows. When even that fails nobody is left to tell.
int Fail(int exit_code, const std::string& message) noexcept {
  try {
    Print(STDERR_FILENO, "xent: " + Printable(message) + "\n");
  } catch (...) {
    return exit_code;
  }
  return exit_code;
}

int Main(int argc, char** argv) noexcept {
  KeepStandardDescriptors();
  InstallSignalHandlers();
  try {
    return ParseAndRun(argc, argv);
  } catch (const UsageError& error) {
    return Fail(kExitUsage, std::string(error.what()) + " (xent --help)");
  } catch (const std::bad_alloc&) {
    return Fail(kExitFailure, "out of memory");
  } catch (const std::exception& error) {
    return Fail(kExitFailure, error.what());
  } catch (...) {
    return Fail(kExitFailure, "unknown failure");
  }
}

}  // namespace
}  // namespace xent_cli

int main(int argc, char** argv) { return xent_cli::Main(argc, argv); }
