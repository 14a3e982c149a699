// The program, run as a user runs it: its exit code, its output, the files that it leaves.
#ifndef XENT_TESTS_CLI_PROGRAM_H_
#define XENT_TESTS_CLI_PROGRAM_H_

#include <gtest/gtest.h>
#include <sys/types.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace xent_cli_test {

// True where the tests run under AddressSanitizer.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kAddressSanitizer = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
inline constexpr bool kAddressSanitizer = true;
#else
inline constexpr bool kAddressSanitizer = false;
#endif
#else
inline constexpr bool kAddressSanitizer = false;
#endif

// Words of a command line.
using Words = std::vector<std::string>;

// Returns the words of both.
Words Joined(Words words, const Words &more);

struct Result {
  int exit_code = -1;  // -1 when a signal ended it
  int signal = 0;
  std::string out, err;
};

struct RunOptions {
  Words environment;               // added, "NAME=value"
  std::function<void()> in_child;  // runs between fork and exec; standard output and error are in place
};

// The program while it runs.
class Process {
 public:
  explicit Process(const Words &arguments, const RunOptions &options = {});
  ~Process();
  Process(const Process &) = delete;
  Process &operator=(const Process &) = delete;

  pid_t pid() const { return pid_; }
  Result Wait();

 private:
  pid_t pid_ = -1;
  int out_ = -1, err_ = -1;
};

// Runs the program to its end.
Result Xent(const Words &arguments, const RunOptions &options = {});

// Expects a failure with this exit code, nothing on standard output, and one line "xent: ..." with `part` in it.
void ExpectFailure(const Result &result, int exit_code, const std::string &part);
void ExpectSuccess(const Result &result);

// Returns the value of a key in a flat JSON object as its text ("0.5", "\"nan\"", "null"), empty where the key is
// missing.
std::string JsonText(const std::string &json, const std::string &key);
double JsonNumber(const std::string &json, const std::string &key);

std::string ReadFile(const std::string &path);
void WriteFile(const std::string &path, std::string_view bytes);

// A fresh directory for each test, removed with its contents.
class DirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  std::string Path(const std::string &name) const { return directory_ + "/" + name; }
  // Returns the names in the directory, hidden ones too, sorted and joined by blanks.
  std::string Names() const;
  std::string Write(const std::string &name, std::string_view bytes) const {
    WriteFile(Path(name), bytes);
    return Path(name);
  }
  // Writes logits.npy [7, 5] of float32 and targets.npy [7] of int64, row 2 ignored.
  void WriteSmallInputs();
  // Writes the same two files with float32 logits [rows, cols] and int32 targets, all 0 and all holes.
  void WriteZeros(int64_t rows, int64_t cols);

  std::string directory_, logits_, targets_;
};

// Returns a .npy file whose header is `dictionary`, padded so that the data begin at a multiple of 64.
std::string NpyOfHeader(const std::string &dictionary, std::string_view data, int major_version = 1);
std::string Npy(const std::string &descr, const std::vector<int64_t> &shape, std::string_view data,
                bool fortran_order = false);

template <typename T>
std::string Bytes(const std::vector<T> &values) {
  return {reinterpret_cast<const char *>(values.data()), values.size() * sizeof(T)};
}

// Returns "(2, 3)", as Python writes a tuple.
std::string Tuple(const std::vector<int64_t> &numbers);

// A written file, taken apart.
struct ReadNpy {
  std::string descr, shape;  // as they stand in the header: "<f4", "(7,)"
  bool fortran_order = false;
  std::string data;
};
ReadNpy SplitNpy(const std::string &bytes);

template <typename T>
std::vector<T> Values(const std::string &data) {
  std::vector<T> values(data.size() / sizeof(T));
  std::memcpy(values.data(), data.data(), values.size() * sizeof(T));
  return values;
}

// The generator of all random inputs: the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next();
  double Uniform(double low, double high);

 private:
  uint64_t state_;
};

}  // namespace xent_cli_test

#endif  // XENT_TESTS_CLI_PROGRAM_H_
