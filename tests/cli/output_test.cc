// Output files: replaced when complete and never before, written in place where they are no files, refused where two
// results would meet, and nothing left behind whatever happens.
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "program.h"

namespace xent_cli_test {
namespace {

namespace fs = std::filesystem;

// In the child: from now on open() says of O_TMPFILE what a file system that does not know it says.
void ForbidUnnamedFiles() {
  constexpr uint32_t kUnnamed = O_TMPFILE & ~O_DIRECTORY;
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, kUnnamed, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EOPNOTSUPP),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    _exit(125);
}

void LimitFileSize(rlim_t bytes) {
  const rlimit limit = {bytes, bytes};
  if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(125);
}

// The parameter: whether the file system knows files without a name (O_TMPFILE).
class OutputTest : public DirectoryTest, public ::testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    DirectoryTest::SetUp();
    WriteSmallInputs();
    const int fd = open(directory_.c_str(), O_TMPFILE | O_RDWR, 0600);
    if (GetParam() && fd < 0) GTEST_SKIP() << "no O_TMPFILE in " << directory_;
    if (fd >= 0) close(fd);
  }

  Result Loss(const Words &options, std::function<void()> in_child = {}) {
    return Xent(Arguments(options), Options(std::move(in_child)));
  }

  Words Arguments(const Words &options) { return Joined({"loss", logits_, targets_}, options); }

  RunOptions Options(std::function<void()> in_child = {}) {
    const bool unnamed = GetParam();
    return {{}, [unnamed, in_child] {
              if (!unnamed) ForbidUnnamedFiles();
              if (in_child) in_child();
            }};
  }
};

// Opens a FIFO for reading and waits until the program has begun to write to it, which it does when everything has been
// computed; with more to write than a pipe holds it stays there until somebody reads. -1 when that never happens.
int OpenWhenWrittenTo(const std::string &fifo) {
  const int reader = open(fifo.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  struct pollfd ready = {reader, POLLIN, 0};
  if (poll(&ready, 1, 60000) == 1 && (ready.revents & POLLIN) != 0) return reader;
  ADD_FAILURE() << "nothing was written to " << fifo;
  close(reader);
  return -1;
}

// Reads a FIFO to its end on a thread of its own, at first only after `delay`. Nothing here waits for a writer that
// never comes.
class FifoReader {
 public:
  explicit FifoReader(const std::string &fifo, std::chrono::milliseconds delay = {})
      : fd_(open(fifo.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)), thread_([this, delay] { Read(delay); }) {
    EXPECT_GE(fd_, 0) << fifo;
  }
  // To be called when the program has ended.
  std::string Finish() {
    ended_ = true;
    thread_.join();
    close(fd_);
    return bytes_;
  }

 private:
  void Read(std::chrono::milliseconds delay) {
    std::vector<char> buffer(1 << 20);
    bool begun = false;
    for (;;) {
      const bool ended = ended_;
      struct pollfd ready = {fd_, POLLIN, 0};
      poll(&ready, 1, 50);
      if (!begun && (ready.revents & POLLIN) != 0) {
        std::this_thread::sleep_for(delay);
        begun = true;
      }
      const ssize_t length = read(fd_, buffer.data(), buffer.size());
      if (length > 0) {
        bytes_.append(buffer.data(), static_cast<size_t>(length));
      } else if (ended) {
        return;
      }
    }
  }

  const int fd_;
  std::atomic<bool> ended_{false};
  std::string bytes_;
  std::thread thread_;
};

TEST_P(OutputTest, NewFiles) {
  const Result result = Loss({"--per-row", Path("losses.npy"), "--lse", Path("lse.npy"), "--grad", Path("grad.npy")});
  ExpectSuccess(result);
  EXPECT_EQ(Names(), "grad.npy logits.npy losses.npy lse.npy targets.npy");
  EXPECT_EQ(SplitNpy(ReadFile(Path("losses.npy"))).data.size(), 7 * sizeof(float));
  EXPECT_EQ(SplitNpy(ReadFile(Path("lse.npy"))).data.size(), 7 * sizeof(float));
  EXPECT_EQ(SplitNpy(ReadFile(Path("grad.npy"))).data.size(), 35 * sizeof(float));
}

TEST_P(OutputTest, NewFileObeysUmask) {
  ExpectSuccess(Loss({"--grad", Path("grad.npy")}, [] { umask(027); }));
  struct stat status;
  ASSERT_EQ(stat(Path("grad.npy").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0640u);
}

TEST_P(OutputTest, OlderFileIsReplacedAndItsModeKept) {
  const std::string path = Write("grad.npy", "old");
  ASSERT_EQ(chmod(path.c_str(), 0604), 0);
  ExpectSuccess(Loss({"--grad", path}));
  EXPECT_EQ(SplitNpy(ReadFile(path)).shape, "(7, 5)");
  struct stat status;
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0604u);
  EXPECT_EQ(Names(), "grad.npy logits.npy targets.npy");
}

TEST_P(OutputTest, SymbolicLinkIsFollowed) {
  Write("grad.npy", "old");
  fs::create_symlink("grad.npy", Path("link"));
  fs::create_symlink(Path("new.npy"), Path("dangling"));
  ExpectSuccess(Loss({"--grad", Path("link"), "--lse", Path("dangling")}));
  EXPECT_TRUE(fs::is_symlink(Path("link")));
  EXPECT_TRUE(fs::is_symlink(Path("dangling")));
  EXPECT_EQ(SplitNpy(ReadFile(Path("grad.npy"))).shape, "(7, 5)");
  EXPECT_EQ(SplitNpy(ReadFile(Path("new.npy"))).shape, "(7,)");
}

TEST_P(OutputTest, RelativePath) {
  ExpectSuccess(
      Loss({"--grad", "grad.npy", "--lse", "../" + directory_.substr(directory_.rfind('/') + 1) + "/lse.npy"}, [this] {
        if (chdir(directory_.c_str()) != 0) _exit(125);
      }));
  EXPECT_EQ(Names(), "grad.npy logits.npy lse.npy targets.npy");
}

// Whatever fails after the outputs were begun leaves the older file and nothing else.
TEST_P(OutputTest, OlderFileSurvivesFailure) {
  const std::string path = Write("grad.npy", "old");
  const std::string bad = Write("bad.npy", Npy("<i8", {7}, Bytes<int64_t>({0, 4, 9, 3, 2, 1, 0})));
  const std::string names = Names();
  const auto expect_unchanged = [&] {
    EXPECT_EQ(ReadFile(path), "old");
    EXPECT_EQ(Names(), names);
  };
  ExpectFailure(Xent({"loss", logits_, bad, "--grad", path, "--lse", Path("lse.npy")}, Options()), 1, "row 2 is 9");
  expect_unchanged();
  ExpectFailure(Loss({"--grad", path, "--lse", Path("no/lse.npy")}), 1, "cannot write " + Path("no/lse.npy"));
  expect_unchanged();
  ExpectFailure(Loss({"--grad", path, "--lse", "/dev/full"}), 1, "cannot write /dev/full: No space left on device");
  expect_unchanged();
  ExpectFailure(Loss({"--grad", path}, [] { dup2(open("/dev/full", O_WRONLY), STDOUT_FILENO); }), 1,
                "cannot write standard output: No space left on device");
  expect_unchanged();
  ExpectFailure(Loss({"--lse", Path("lse.npy"), "--grad", path}, [] { LimitFileSize(200); }), 1,
                "cannot write " + path + ": File too large");
  expect_unchanged();
}

TEST_P(OutputTest, FullDisk) {
  // A file system of 64 KiB in a mount namespace of the child's own, whose end is looked at from inside.
  WriteZeros(400, 100);  // a gradient of 160 KB
  fs::create_directory(Path("disk"));
  constexpr int kNoMount = 77;
  const Result result = Loss({"--lse", Path("disk/lse.npy"), "--grad", Path("disk/grad.npy")}, [this] {
    if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) _exit(kNoMount);
    mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
    if (mount("xent", Path("disk").c_str(), "tmpfs", 0, "size=64k") != 0) _exit(kNoMount);
    WriteFile(Path("disk/grad.npy"), "old");
    const pid_t pid = fork();
    if (pid == 0) return;  // becomes the program
    int status = 0;
    waitpid(pid, &status, 0);
    if (Path("disk").empty() || ReadFile(Path("disk/grad.npy")) != "old") _exit(78);
    if (std::distance(fs::directory_iterator(Path("disk")), fs::directory_iterator()) != 1) _exit(79);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 80);
  });
  if (result.exit_code == kNoMount) GTEST_SKIP() << "this user may not mount anything";
  ExpectFailure(result, 1, "cannot write " + Path("disk/grad.npy") + ": No space left on device");
}

TEST_P(OutputTest, EndedBySignal) {
  WriteZeros(1000, 100);
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
  const std::string path = Write("lse.npy", "old");
  const std::string names = Names();
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGQUIT}) {
    SCOPED_TRACE(number);
    Process process(Arguments({"--lse", path, "--per-row", Path("new.npy"), "--grad", Path("fifo")}), Options([] {
                      const rlimit none = {0, 0};
                      setrlimit(RLIMIT_CORE, &none);
                    }));
    const int reader = OpenWhenWrittenTo(Path("fifo"));
    ASSERT_GE(reader, 0);
    if (GetParam()) {
      EXPECT_EQ(Names(), names) << "before the signal";
    } else {
      EXPECT_NE(Names(), names) << "before the signal: the test would not see a file that is left";
    }
    kill(process.pid(), number);
    const Result result = process.Wait();
    close(reader);
    EXPECT_EQ(result.signal, number) << result.exit_code << result.err;
    EXPECT_EQ(Names(), names);
    EXPECT_EQ(ReadFile(path), "old");
  }
}

// A directory made for the results goes too.
TEST_P(OutputTest, DirectoryEndedBySignal) {
  const std::string names = Names();
  Process process({"score", logits_, targets_, "--out", Path("new")}, Options([] {
                    // Standard output is a full pipe, on which the report waits for ever.
                    int ends[2];
                    if (pipe2(ends, O_NONBLOCK) != 0) _exit(125);
                    while (write(ends[1], "x", 1) == 1) continue;
                    dup2(ends[1], STDOUT_FILENO);
                  }));
  const auto has_begun = [this] { return fs::exists(Path("new")) && (GetParam() || !fs::is_empty(Path("new"))); };
  for (int i = 0; i < 6000 && !has_begun(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(has_begun());
  kill(process.pid(), SIGTERM);
  EXPECT_EQ(process.Wait().signal, SIGTERM);
  EXPECT_EQ(Names(), names);
}

TEST_P(OutputTest, InputCutShortMeanwhile) {
  WriteZeros(700, 10000);  // four batches, of which one may have been read when the file is cut
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
  const std::string names = Names();
  Process process(Arguments({"--lse", Path("new.npy"), "--grad", Path("fifo")}), Options());
  const int reader = OpenWhenWrittenTo(Path("fifo"));
  ASSERT_GE(reader, 0);
  fs::resize_file(logits_, 128);
  FifoReader rest(Path("fifo"));
  close(reader);
  ExpectFailure(process.Wait(), 1, "cannot read " + logits_ + ": it was cut short meanwhile");
  rest.Finish();
  EXPECT_EQ(Names(), names);
}

INSTANTIATE_TEST_SUITE_P(Files, OutputTest, ::testing::Bool(),
                         [](const ::testing::TestParamInfo<bool> &files) { return files.param ? "Unnamed" : "Named"; });

class DestinationTest : public DirectoryTest {
 protected:
  void SetUp() override {
    DirectoryTest::SetUp();
    WriteSmallInputs();
  }

  Result Loss(const Words &options, std::function<void()> in_child = {}) {
    return Xent(Joined({"loss", logits_, targets_}, options), {{}, std::move(in_child)});
  }
};

// No row takes no space, however wide it would be.
TEST_F(DestinationTest, NoRowsOfATrillionColumns) {
  const std::string wide = Write("wide.npy", Npy("<f4", {0, int64_t{1} << 40}, {}));
  const std::string none = Write("none.npy", Npy("<i8", {0}, {}));
  const std::string manifest = Write("list.tsv", "wide.npy\twide.npy\n");
  for (const Words &arguments : std::vector<Words>{{"loss", wide, none, "--grad", "/dev/stdout"},
                                                   {"divergence", wide, wide, "--grad", "/dev/stdout"},
                                                   {"bce", wide, wide, "--per-element", "/dev/stdout"}}) {
    SCOPED_TRACE(arguments[0]);
    const Result result = Xent(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(SplitNpy(result.out).shape, "(0, 1099511627776)");
    ExpectSuccess(Xent({arguments[0], "--manifest", manifest}));
  }
}

TEST_F(DestinationTest, OnePathForTwoOutputs) {
  fs::create_directory(Path("sub"));
  fs::create_directory_symlink(Path("sub"), Path("alias"));
  Write("old.npy", "old");
  fs::create_hard_link(Path("old.npy"), Path("hard.npy"));
  fs::create_symlink("old.npy", Path("soft.npy"));
  fs::create_symlink("new.npy", Path("dangling.npy"));
  const std::string names = Names();
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"new.npy", "new.npy"},      {"new.npy", "./new.npy"},         {"new.npy", "sub/../new.npy"},
      {"new.npy", "dangling.npy"}, {"sub/new.npy", "alias/new.npy"}, {"sub/new.npy", "alias//./new.npy"},
      {"old.npy", "old.npy"},      {"old.npy", "hard.npy"},          {"old.npy", "soft.npy"},
      {"hard.npy", "soft.npy"},
  };
  const std::vector<std::pair<std::string, std::string>> options = {
      {"--per-row", "--lse"}, {"--per-row", "--grad"}, {"--lse", "--grad"}};
  for (const auto &[a, b] : cases) {
    for (const auto &[first, second] : options) {
      SCOPED_TRACE(a + " and " + b + " for " + first + " and " + second);
      ExpectFailure(Loss({first, Path(a), second, Path(b)}), 1, "is the same file as " + first);
      EXPECT_EQ(Names(), names);
      EXPECT_EQ(ReadFile(Path("old.npy")), "old");
    }
  }
  EXPECT_TRUE(fs::is_empty(Path("sub")));
  // Alike, but not the same.
  ExpectSuccess(Loss({"--per-row", Path("sub/new.npy"), "--lse", Path("new.npy")}));
}

TEST_F(DestinationTest, OutputThatIsAnInput) {
  const std::string logits = ReadFile(logits_), targets = ReadFile(targets_);
  fs::create_symlink("logits.npy", Path("soft.npy"));
  fs::create_hard_link(targets_, Path("hard.npy"));
  for (const char *name : {"logits.npy", "./logits.npy", "soft.npy", "targets.npy", "hard.npy"}) {
    SCOPED_TRACE(name);
    ExpectFailure(Loss({"--grad", Path(name)}), 1, "is the same file as the input ");
  }
  EXPECT_TRUE(ReadFile(logits_) == logits);
  EXPECT_TRUE(ReadFile(targets_) == targets);
}

TEST_F(DestinationTest, PlacesWhereNothingCanBeWritten) {
  const std::string names = Names();
  ExpectFailure(Loss({"--grad", directory_}), 1, "cannot write " + directory_ + ": Is a directory");
  ExpectFailure(Loss({"--grad", directory_ + "/"}), 1, "Is a directory");
  ExpectFailure(Loss({"--grad", Path("no/grad.npy")}), 1, "cannot write " + Path("no/grad.npy") + ": No such file");
  ExpectFailure(Loss({"--grad", Path("new/")}), 1, "cannot write " + Path("new/"));
  ExpectFailure(Loss({"--grad", logits_ + "/grad.npy"}), 1, "Not a directory");
  ExpectFailure(Loss({"--grad", ""}), 1, "cannot write : No such file");
  ExpectFailure(Loss({"--grad", Path(std::string(300, 'x'))}), 1, "File name too long");
  // Even root creates no files there.
  ExpectFailure(Loss({"--grad", "/proc/grad.npy"}), 1, "cannot write /proc/grad.npy: ");
  fs::create_symlink("loop", Path("loop"));
  ExpectFailure(Loss({"--grad", Path("loop")}), 1, "Too many levels of symbolic links");
  fs::remove(Path("loop"));
  EXPECT_EQ(Names(), names);
}

TEST_F(DestinationTest, MissingPermissions) {
  // Root obeys permissions once the program cannot get the capability to pass them over.
  const auto as_anybody = [] {
    if (geteuid() == 0 && prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) != 0) _exit(77);
  };
  const std::string protected_file = Write("old.npy", "old");
  ASSERT_EQ(chmod(protected_file.c_str(), 0444), 0);
  fs::create_directory(Path("sub"));
  ASSERT_EQ(chmod(Path("sub").c_str(), 0555), 0);
  const Result file = Loss({"--grad", protected_file}, as_anybody);
  if (file.exit_code == 77) GTEST_SKIP() << "root cannot be kept from passing permissions over";
  ExpectFailure(file, 1, "cannot write " + protected_file + ": Permission denied");
  EXPECT_EQ(ReadFile(protected_file), "old");
  ExpectFailure(Loss({"--grad", Path("sub/new.npy")}, as_anybody), 1,
                "cannot write " + Path("sub/new.npy") + ": Permission denied");
  EXPECT_TRUE(fs::is_empty(Path("sub")));
}

TEST_F(DestinationTest, Devices) {
  ExpectSuccess(Loss({"--grad", "/dev/null"}));
  ExpectSuccess(Loss({"--grad", "/dev/null"}, [] { dup2(open("/dev/null", O_WRONLY), STDOUT_FILENO); }));
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  for (const char *option : {"--per-row", "--lse", "--grad"}) {
    ExpectFailure(Loss({option, "/dev/full"}), 1, "cannot write /dev/full: No space left on device");
  }
  ExpectFailure(Loss({"--grad", "/dev/null", "--lse", "/dev/null"}), 1, "is the same file as --lse");
}

// What is written in place, in batches, has the bytes of the file that one call fills.
TEST_F(DestinationTest, InPlaceGivesTheSameBytes) {
  constexpr int64_t kRows = 1000, kCols = 5000;  // 20 MB, several batches
  Random random(5);
  std::vector<float> logits(kRows * kCols);
  for (float &logit : logits) logit = static_cast<float>(random.Uniform(-6, 6));
  std::vector<int32_t> targets(kRows);
  for (int32_t &target : targets) target = static_cast<int32_t>(random.Next() % kCols);
  for (size_t i = 0; i < kRows; i += 7) targets[i] = -100;
  logits_ = Write("logits.npy", Npy("<f4", {kRows, kCols}, Bytes(logits)));
  targets_ = Write("targets.npy", Npy("<i4", {kRows}, Bytes(targets)));
  const std::string all_ignored = Write("ignored.npy", Npy("<i4", {kRows}, Bytes(std::vector<int32_t>(kRows, -100))));
  const auto compare = [&](const Words &options) {
    for (const char *output : {"--per-row", "--lse", "--grad"}) {
      SCOPED_TRACE(output + ::testing::PrintToString(options));
      const Words arguments = Joined(options, {"--json", output});
      const Result to_file = Loss(Joined(arguments, {Path("file.npy")}));
      ExpectSuccess(to_file);
      const Result to_stdout = Loss(Joined(arguments, {"/dev/stdout"}));
      EXPECT_EQ(to_stdout.exit_code, 0);
      EXPECT_TRUE(to_stdout.out == ReadFile(Path("file.npy")));
      EXPECT_EQ(to_stdout.err, to_file.out);  // the report has moved
    }
  };
  compare({});
  compare({"--reduction", "sum"});
  compare({"--reduction", "none"});
  compare({"--divisor", "3.7"});
  compare({"--label-smoothing", "0.1", "--threads", "3"});
  targets_ = all_ignored;
  compare({});
}

// One row longer than the limit up to which a batch may lie in memory.
TEST_F(DestinationTest, InPlaceRowOfAnyLength) {
  constexpr int64_t kCols = 17'000'000;  // 68 MB
  WriteZeros(1, kCols);
  ExpectSuccess(Loss({"--grad", Path("file.npy")}));
  const Result in_place = Loss({"--grad", "/dev/stdout"});
  EXPECT_EQ(in_place.exit_code, 0) << in_place.err;
  EXPECT_TRUE(in_place.out == ReadFile(Path("file.npy")));
}

TEST_F(DestinationTest, Fifo) {
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
  FifoReader reader(Path("fifo"));
  ExpectSuccess(Loss({"--grad", Path("fifo"), "--lse", Path("lse.npy")}));
  const std::string read = reader.Finish();
  ExpectSuccess(Loss({"--grad", Path("grad.npy")}));
  EXPECT_TRUE(read == ReadFile(Path("grad.npy")));
  EXPECT_TRUE(fs::is_fifo(Path("fifo")));
}

TEST_F(DestinationTest, ReaderOfPipeGoesAway) {
  WriteZeros(100, 5000);
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
  const std::string names = Names();
  Process process({"loss", logits_, targets_, "--grad", Path("fifo"), "--lse", Path("lse.npy")});
  const int reader = OpenWhenWrittenTo(Path("fifo"));
  ASSERT_GE(reader, 0);
  close(reader);
  ExpectFailure(process.Wait(), 1, "cannot write " + Path("fifo") + ": Broken pipe");
  EXPECT_EQ(Names(), names);
}

TEST_F(DestinationTest, StandardOutputRedirectedToFile) {
  const auto to_file = [this] { dup2(open(Path("out").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600), STDOUT_FILENO); };
  ExpectSuccess(Loss({"--grad", Path("grad.npy")}));
  Write("out", "before ");
  for (const char *name : {"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}) {
    Write("out", "before ");
    const Result result = Loss({"--json", "--grad", name}, to_file);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_TRUE(ReadFile(Path("out")) == "before " + ReadFile(Path("grad.npy"))) << name;
    EXPECT_EQ(JsonText(result.err, "rows"), "7");
  }
  // By its own name it is one path for two outputs, the report being the other one.
  Write("out", "before ");
  ExpectFailure(Loss({"--grad", Path("out")}, to_file), 1, "is the same file as standard output");
  EXPECT_EQ(ReadFile(Path("out")), "before ");
}

TEST_F(DestinationTest, InheritedDescriptor) {
  ExpectSuccess(Loss({"--grad", Path("grad.npy")}));
  const Result result =
      Loss({"--grad", "/dev/fd/9"}, [this] { dup2(open(Path("out").c_str(), O_WRONLY | O_CREAT, 0600), 9); });
  ExpectSuccess(result);
  EXPECT_TRUE(ReadFile(Path("out")) == ReadFile(Path("grad.npy")));
  ExpectFailure(Loss({"--grad", "/dev/fd/9"}), 1, "cannot write /dev/fd/9: ");
}

TEST_F(DestinationTest, ClosedStandardDescriptorsAreNotMistakenForFiles) {
  const Result result = Loss({"--grad", Path("grad.npy")}, [] {
    close(STDIN_FILENO);
    close(STDOUT_FILENO);
    close(STDERR_FILENO);
  });
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(Names(), "logits.npy targets.npy");
}

// Anonymous memory does not grow with the files: 128 MB of logits and as much gradient, or 4 million rows with 48 MB of
// inputs and 16 MB of losses, under a limit of 20 MB for everything that is not a file's.
TEST_F(DestinationTest, MemoryIsBounded) {
  if (kAddressSanitizer) GTEST_SKIP() << "the sanitizer's own memory is beyond the limit";
  const auto limited = [] {
    const rlimit stack = {8 << 20, 8 << 20};  // of the second thread, which counts
    const rlimit data = {20 << 20, 20 << 20};
    if (setrlimit(RLIMIT_STACK, &stack) != 0 || setrlimit(RLIMIT_DATA, &data) != 0) _exit(125);
  };
  WriteZeros(1024, 32768);
  const Result wide = Loss({"--json", "--threads", "2", "--grad", Path("grad.npy")}, limited);
  ExpectSuccess(wide);
  // log V is 15 log 2; the mean of equal losses is that loss, within the 4 ULP of one.
  EXPECT_NEAR(JsonNumber(wide.out, "loss"), 10.397207708399179, 4 * 0x1p-20);
  WriteZeros(4'000'000, 2);
  const Result narrow = Loss({"--json", "--threads", "2", "--per-row", Path("losses.npy")}, limited);
  ExpectSuccess(narrow);
  EXPECT_NEAR(JsonNumber(narrow.out, "loss"), 0.69314718055994529, 4 * 0x1p-24);
}

// A terminal as standard error, and a reader that lets the program wait for over a second between two batches.
TEST_F(DestinationTest, ProgressBar) {
  WriteZeros(1000, 5000);
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
  const auto slow_run = [&](const std::function<void()> &in_child) {
    FifoReader reader(Path("fifo"), std::chrono::milliseconds(1200));
    const Result result = Loss({"--grad", Path("fifo"), "--threads", "2"}, in_child);
    EXPECT_GT(reader.Finish().size(), 20'000'000u);
    EXPECT_EQ(result.exit_code, 0);
    return result;
  };
  const int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) GTEST_SKIP() << "no terminal to be had";
  char name[128];
  ASSERT_EQ(ptsname_r(master, name, sizeof(name)), 0);
  const int terminal = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
  ASSERT_GE(terminal, 0);
  const Result result = slow_run([&] { dup2(terminal, STDERR_FILENO); });
  std::string shown;
  char text[4096];
  // The kernel hands a terminal's output over in its own time.
  pollfd readable{master, POLLIN, 0};
  while (poll(&readable, 1, 500) == 1) {
    const ssize_t length = read(master, text, sizeof(text));
    if (length <= 0) break;
    shown.append(text, static_cast<size_t>(length));
  }
  close(terminal);
  close(master);
  ASSERT_GT(shown.size(), 4u);
  EXPECT_NE(shown.find("grad"), std::string::npos) << shown;
  EXPECT_NE(shown.find("#"), std::string::npos) << shown;
  EXPECT_EQ(shown.substr(shown.size() - 4), "\r\033[K") << "the line is wiped at the end: " << shown;
  EXPECT_EQ(result.out.substr(0, 4), "loss");
  EXPECT_EQ(slow_run({}).err, "") << "no bar where standard error is no terminal";
}

}  // namespace
}  // namespace xent_cli_test
