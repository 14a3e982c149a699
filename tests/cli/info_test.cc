// `xent --version`, `xent info`, `xent check`, help, and how all commands fail on a standard output that takes nothing.
#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cmath>
#include <string>
#include <vector>

#include "program.h"

namespace xent_cli_test {
namespace {

class InfoTest : public DirectoryTest {};
class CheckTest : public DirectoryTest {
 protected:
  Result Check(const std::string &logits, const Words &options = {"--json"}) {
    return Xent(Joined({"check", Write("logits.npy", logits)}, options));
  }
};

TEST_F(InfoTest, Version) {
  const Result result = Xent({"--version"});
  ExpectSuccess(result);
  const std::string version = JsonText(Xent({"info", "--json"}).out, "version");  // in quotes
  ASSERT_GT(version.size(), 2u);
  EXPECT_EQ(result.out.size(), 5 + version.size() - 2 + 1);
  EXPECT_EQ(result.out.substr(0, 5), "xent ");
  EXPECT_EQ(result.out.substr(5, version.size() - 2), version.substr(1, version.size() - 2));
}

TEST_F(InfoTest, Json) {
  const Result result = Xent({"info", "--json"});
  ExpectSuccess(result);
  const std::string target = JsonText(result.out, "target");
  EXPECT_GT(target.size(), 2u);
  EXPECT_EQ(JsonText(result.out, "targets_available").substr(0, target.size() + 1), "[" + target);
  EXPECT_NE(JsonText(result.out, "targets_compiled").find(target), std::string::npos);
  EXPECT_EQ(JsonText(result.out, "unknown_max_target"), "null");
  EXPECT_GE(JsonNumber(result.out, "threads"), 1);
  EXPECT_EQ(JsonText(result.out, "dtypes"), R"(["float32", "float64", "bfloat16", "float16"])");
  for (const char *key : {"processor", "system", "l1d_bytes", "l2_bytes", "l3_bytes", "highway", "compiler"}) {
    EXPECT_NE(JsonText(result.out, key), "") << key;
  }
  struct utsname system;
  ASSERT_EQ(uname(&system), 0);
  EXPECT_EQ(JsonText(result.out, "system"),
            std::string("\"") + system.sysname + " " + system.release + " " + system.machine + "\"");
}

TEST_F(InfoTest, Text) {
  const Result result = Xent({"info"});
  ExpectSuccess(result);
  for (const char *label : {"xent  ", "\ntarget  ", "\navailable  ", "\ncompiled  ", "\ndtypes  ", "\nthreads  ",
                            "\nprocessor  ", "\nsystem  ", "\ncaches  ", "\nHighway  ", "\ncompiler  "}) {
    EXPECT_NE(result.out.find(label), std::string::npos) << label << " in " << result.out;
  }
}

// The worst target that this processor can run is a cap that every machine obeys.
TEST_F(InfoTest, KnownCapIsObeyed) {
  const std::string available = JsonText(Xent({"info", "--json"}).out, "targets_available");
  const size_t begin = available.rfind("\"", available.size() - 3);
  const std::string worst = available.substr(begin, available.size() - 1 - begin);
  const Result capped = Xent({"info", "--json"}, {{"XENT_MAX_TARGET=" + worst.substr(1, worst.size() - 2)}, {}});
  ExpectSuccess(capped);
  EXPECT_EQ(JsonText(capped.out, "target"), worst) << available;
  EXPECT_EQ(JsonText(capped.out, "unknown_max_target"), "null");
}

TEST_F(InfoTest, UnknownCapIsReportedAndHarmless) {
  const RunOptions unknown = {{"XENT_MAX_TARGET=AV\"X\\\n9"}, {}};
  const Result json = Xent({"info", "--json"}, unknown);
  ExpectSuccess(json);
  EXPECT_EQ(JsonText(json.out, "unknown_max_target"), "\"AV\\\"X\\\\\\u000a9\"");
  EXPECT_EQ(JsonText(json.out, "target"), JsonText(Xent({"info", "--json"}).out, "target"));
  const Result text = Xent({"info"}, unknown);
  ExpectSuccess(text);
  EXPECT_NE(text.out.find("\nignored     XENT_MAX_TARGET=AV\"X\\\\x0a9, which names no target\n"), std::string::npos)
      << text.out;
  WriteSmallInputs();
  ExpectSuccess(Xent({"loss", logits_, targets_}, unknown));
}

TEST_F(InfoTest, LossReportsTheActiveTarget) {
  WriteSmallInputs();
  EXPECT_EQ(JsonText(Xent({"loss", logits_, targets_, "--json"}).out, "target"),
            JsonText(Xent({"info", "--json"}).out, "target"));
}

TEST_F(InfoTest, Help) {
  for (const char *command : {"loss", "score", "divergence", "bce", "check", "info"}) {
    const Result all = Xent({"--help"});
    EXPECT_NE(all.out.find("\n  " + std::string(command) + " "), std::string::npos) << all.out;
  }
  const std::vector<std::pair<std::string, Words>> commands = {
      {"loss", {"--reduction",  "--ignore-index",  "--label-smoothing", "--smoothing",   "--divisor",
                "--empty-mean", "--class-weights", "--row-weights",     "--logit-scale", "--softcap",
                "--z-loss",     "--valid-cols",    "--class-axis",      "--per-row",     "--lse",
                "--grad",       "--threads",       "--manifest",        "--keep-going",  "--json",
                "LOGITS.npy",   "TARGETS.npy"}},
      {"score",
       {"--top-k", "--out", "--ignore-index", "--logit-scale", "--softcap", "--valid-cols", "--class-axis", "--threads",
        "--manifest", "--keep-going", "--json", "topk_logprobs"}},
      {"divergence",
       {"--kind forward-kl|reverse-kl|js|cross-entropy", "--beta", "--temperature", "--reduction", "--divisor",
        "--empty-mean", "--row-weights", "--valid-cols", "--class-axis", "--per-row", "--grad", "--threads",
        "--manifest", "--keep-going", "--json", "STUDENT.npy"}},
      {"bce",
       {"--from logits|probabilities", "-100", "1e-12", "--pos-weight", "--element-weights", "--row-weights",
        "--class-weights", "--focal-gamma", "--focal-alpha", "--reduction", "--divisor", "--empty-mean",
        "--per-element", "--grad", "--threads", "--manifest", "--keep-going", "--json", "INPUT.npy"}},
      {"check", {"--valid-cols", "--class-axis", "--manifest", "--keep-going", "--json"}},
      {"info", {"--json"}}};
  for (const auto &[command, words] : commands) {
    for (const char *flag : {"--help", "-h"}) {
      const Result result = Xent({command, flag});
      ExpectSuccess(result);
      EXPECT_NE(result.out.find("Usage: xent " + command), std::string::npos) << result.out;
      for (const std::string &word : words) EXPECT_NE(result.out.find(word), std::string::npos) << word;
    }
  }
}

TEST_F(InfoTest, WrongUsage) {
  ExpectFailure(Xent({}), 2, "a command is required");
  ExpectFailure(Xent({"train"}), 2, "train");
  ExpectFailure(Xent({"--json"}), 2, "");
  ExpectFailure(Xent({"info", "extra"}), 2, "extra");
  ExpectFailure(Xent({"info", "--yaml"}), 2, "--yaml");
  ExpectFailure(Xent({"info", "info"}), 2, "info");
  ExpectFailure(Xent({"check"}), 2, "LOGITS.npy");
  ExpectFailure(Xent({"check", "a.npy", "b.npy"}), 2, "b.npy");
  ExpectFailure(Xent({""}), 2, "");
}

TEST_F(InfoTest, StandardOutputThatTakesNothing) {
  WriteSmallInputs();
  const RunOptions full = {{}, [] { dup2(open("/dev/full", O_WRONLY), STDOUT_FILENO); }};
  const RunOptions closed = {{}, [] { close(STDOUT_FILENO); }};
  const RunOptions broken = {{}, [] {
                               int ends[2];
                               if (pipe(ends) != 0) _exit(125);
                               dup2(ends[1], STDOUT_FILENO);
                               close(ends[0]);
                               close(ends[1]);
                             }};
  for (const Words &arguments : std::vector<Words>{{"--version"},
                                                   {"--help"},
                                                   {"loss", "--help"},
                                                   {"info"},
                                                   {"info", "--json"},
                                                   {"check", logits_},
                                                   {"loss", logits_, targets_}}) {
    SCOPED_TRACE(::testing::PrintToString(arguments));
    ExpectFailure(Xent(arguments, full), 1, "cannot write standard output: No space left on device");
    ExpectFailure(Xent(arguments, closed), 1, "cannot write standard output: Bad file descriptor");
    ExpectFailure(Xent(arguments, broken), 1, "cannot write standard output: Broken pipe");
  }
}

TEST_F(CheckTest, Logits) {
  const Result result = Check(Npy("<f4", {2, 3}, Bytes<float>({1, -2, 3, 0.5, 0.2, 0.1})));
  ExpectSuccess(result);
  EXPECT_EQ(JsonText(result.out, "diagnosis"), "\"logits\"");
}

TEST_F(CheckTest, Probabilities) {
  const std::string logits = Npy("<f8", {2, 3}, Bytes<double>({0.7, 0.2, 0.1, 0, 0, 1}));
  const Result json = Check(logits);
  EXPECT_EQ(json.exit_code, 3);
  EXPECT_EQ(json.err, "");
  EXPECT_EQ(JsonText(json.out, "diagnosis"), "\"probabilities\"");
  const Result text = Check(logits, {});
  EXPECT_EQ(text.exit_code, 3);
  EXPECT_EQ(text.out.substr(0, 26), "diagnosis   probabilities\n");
  EXPECT_NE(text.out.find("pass the logits, or log p in their place"), std::string::npos) << text.out;
}

// Parts of 64 MB, of which the second has the row that is no distribution.
TEST_F(CheckTest, PartsThatDisagree) {
  constexpr int64_t kRows = 8'500'000;  // 68 MB
  std::vector<float> logits(2 * kRows, 0.5f);
  EXPECT_EQ(Check(Npy("<f4", {kRows, 2}, Bytes(logits))).exit_code, 3);
  logits.back() = 3;
  const Result result = Check(Npy("<f4", {kRows, 2}, Bytes(logits)));
  ExpectSuccess(result);
  EXPECT_EQ(JsonText(result.out, "diagnosis"), "\"logits\"");
}

TEST_F(CheckTest, LogProbabilities) {
  const float half = std::log(0.5f), quarter = std::log(0.25f);
  const Result result = Check(Npy("<f4", {2, 3}, Bytes<float>({half, quarter, quarter, quarter, half, quarter})));
  ExpectSuccess(result);
  EXPECT_EQ(JsonText(result.out, "diagnosis"), "\"log-probabilities\"");
}

TEST_F(CheckTest, Bfloat16Probabilities) {
  const Result result = Check(Npy("|V2", {1, 2}, Bytes<uint16_t>({0x3f40, 0x3e80})));  // 0.75 and 0.25
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(JsonText(result.out, "diagnosis"), "\"probabilities\"");
}

TEST_F(CheckTest, NothingToJudgeIsLogits) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::string &logits : {Npy("<f4", {0, 3}, ""), Npy("<f4", {2, 1}, Bytes<float>({1, 1})),
                                    Npy("<f4", {2, 2}, Bytes<float>({0.5, 0.5, nan, 0.5}))}) {
    const Result result = Check(logits);
    ExpectSuccess(result);
    EXPECT_EQ(JsonText(result.out, "diagnosis"), "\"logits\"");
  }
}

// Numbers that are probabilities along one axis alone.
TEST_F(CheckTest, AnyShape) {
  const std::string columns = Bytes<double>({0.75, 0.5, 0.125, 0.25, 0.5, 0.875});
  const auto expect = [&](const std::string &logits, const Words &flags, const char *diagnosis, const char *rows,
                          const char *cols) {
    SCOPED_TRACE(::testing::PrintToString(flags));
    const Result result = Check(logits, Joined({"--json"}, flags));
    EXPECT_EQ(result.err, "");
    EXPECT_EQ(JsonText(result.out, "diagnosis"), diagnosis);
    EXPECT_EQ(JsonText(result.out, "rows"), rows);
    EXPECT_EQ(JsonText(result.out, "columns"), cols);
  };
  expect(Npy("<f8", {2}, Bytes<double>({0.75, 0.25})), {}, "\"probabilities\"", "1", "2");
  expect(Npy("<f8", {2, 3}, columns), {}, "\"logits\"", "2", "3");
  expect(Npy("<f8", {2, 3}, columns), {"--class-axis", "0"}, "\"probabilities\"", "3", "2");
  expect(Npy("<f8", {3, 2}, columns, true), {}, "\"probabilities\"", "3", "2");
  expect(Npy("<f8", {1, 2, 3}, columns), {}, "\"probabilities\"", "3", "2");
  expect(Npy("<f8", {1, 2, 3}, columns), {"--class-axis=-1"}, "\"logits\"", "2", "3");
  expect(Npy("<f8", {2, 2, 3}, columns + columns), {"--class-axis", "1"}, "\"probabilities\"", "6", "2");
}

TEST_F(CheckTest, PaddingIsNotRead) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto expect = [&](const std::vector<int64_t> &shape, const std::vector<double> &numbers, const Words &flags) {
    SCOPED_TRACE(Tuple(shape));
    ExpectSuccess(Check(Npy("<f8", shape, Bytes(numbers)), flags));
    EXPECT_EQ(Check(Npy("<f8", shape, Bytes(numbers)), Joined({"--valid-cols", "2"}, flags)).exit_code, 3);
  };
  expect({3}, {0.75, 0.25, nan}, {});
  expect({2, 3}, {0.75, 0.25, nan, 0.5, 0.5, 7}, {});
  expect({3, 2}, {0.75, 0.5, 0.25, 0.5, nan, 7}, {"--class-axis", "0"});
  expect({2, 3, 1}, {0.75, 0.25, nan, 0.5, 0.5, 7}, {});
  ExpectFailure(Check(Npy("<f4", {1, 2}, Bytes<float>({1, 2})), {"--valid-cols", "3"}), 1,
                Path("logits.npy") + ": --valid-cols is 3, expected at most 2, the number of columns");
}

}  // namespace
}  // namespace xent_cli_test
