// Subprocesses, directories and .npy files for the tests of the program.
#include "program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace xent_cli_test {

Words Joined(Words words, const Words &more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

Process::Process(const Words &arguments, const RunOptions &options) {
  int out[2], err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) {
    ADD_FAILURE() << "pipe: " << strerror(errno);
    return;
  }
  Words words = Joined({XENT_CLI_PATH}, arguments);
  std::vector<char *> argv;
  for (std::string &word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ == 0) {
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    for (const std::string &variable : options.environment) putenv(const_cast<char *>(variable.c_str()));
    if (options.in_child) options.in_child();
    execv(argv[0], argv.data());
    _exit(126);
  }
  close(out[1]);
  close(err[1]);
  out_ = out[0];
  err_ = err[0];
}

Process::~Process() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    Wait();
  }
}

Result Process::Wait() {
  Result result;
  struct pollfd ends[2] = {{out_, POLLIN, 0}, {err_, POLLIN, 0}};
  std::string *texts[2] = {&result.out, &result.err};
  while (ends[0].fd >= 0 || ends[1].fd >= 0) {
    if (poll(ends, 2, -1) < 0) break;
    for (int i = 0; i < 2; ++i) {
      if (ends[i].fd < 0 || ends[i].revents == 0) continue;
      char buffer[65536];
      const ssize_t length = read(ends[i].fd, buffer, sizeof(buffer));
      if (length > 0) {
        texts[i]->append(buffer, static_cast<size_t>(length));
      } else {
        ends[i].fd = -1;
      }
    }
  }
  close(out_);
  close(err_);
  int status = 0;
  if (waitpid(pid_, &status, 0) == pid_) {
    if (WIFEXITED(status)) result.exit_code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  }
  pid_ = -1;
  return result;
}

Result Xent(const Words &arguments, const RunOptions &options) { return Process(arguments, options).Wait(); }

void ExpectFailure(const Result &result, int exit_code, const std::string &part) {
  EXPECT_EQ(result.exit_code, exit_code) << "signal " << result.signal << "\n" << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(result.err.substr(0, 6), "xent: ");
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_TRUE(!result.err.empty() && result.err.back() == '\n') << result.err;
  EXPECT_NE(result.err.find(part), std::string::npos) << "'" << part << "' is not in: " << result.err;
}

void ExpectSuccess(const Result &result) {
  EXPECT_EQ(result.exit_code, 0) << "signal " << result.signal << "\n" << result.err;
  EXPECT_EQ(result.err, "");
}

std::string JsonText(const std::string &json, const std::string &key) {
  EXPECT_EQ(std::count(json.begin(), json.end(), '\n'), 1) << json;
  EXPECT_EQ(json.substr(0, 1), "{");
  EXPECT_EQ(json.substr(json.size() < 2 ? 0 : json.size() - 2), "}\n");
  const std::string label = "\"" + key + "\": ";
  const size_t position = json.find(label);
  if (position == std::string::npos) return "";
  const size_t begin = position + label.size();
  size_t end = begin;
  int depth = 0;
  bool quoted = false;
  for (; end < json.size(); ++end) {
    const char c = json[end];
    if (quoted && c == '\\') {
      ++end;
    } else if (c == '"') {
      quoted = !quoted;
    } else if (!quoted && c == '[') {
      ++depth;
    } else if (!quoted && c == ']') {
      --depth;
    } else if (!quoted && depth == 0 && (c == ',' || c == '}')) {
      break;
    }
  }
  return json.substr(begin, end - begin);
}

double JsonNumber(const std::string &json, const std::string &key) {
  const std::string text = JsonText(json, key);
  char *end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  // strtod would read nan and inf as well, which JSON does not have.
  const bool is_number = !text.empty() && *end == '\0' && text.find_first_not_of("+-.0123456789e") == std::string::npos;
  EXPECT_TRUE(is_number) << key << " in " << json;
  return value;
}

std::string ReadFile(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return bytes.str();
}

void WriteFile(const std::string &path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  EXPECT_TRUE(file.good()) << path;
}

void DirectoryTest::SetUp() {
  std::string name = ::testing::TempDir() + "/xent-cli-XXXXXX";
  ASSERT_NE(mkdtemp(name.data()), nullptr) << name << ": " << strerror(errno);
  directory_ = std::filesystem::canonical(name).string();
}

void DirectoryTest::TearDown() { std::filesystem::remove_all(directory_); }

std::string DirectoryTest::Names() const {
  std::vector<std::string> names;
  for (const auto &entry : std::filesystem::directory_iterator(directory_)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  std::string text;
  for (const std::string &name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

void DirectoryTest::WriteSmallInputs() {
  Random random(1);
  std::vector<float> logits(35);
  for (float &logit : logits) logit = static_cast<float>(random.Uniform(-5, 5));
  logits_ = Write("logits.npy", Npy("<f4", {7, 5}, Bytes(logits)));
  targets_ = Write("targets.npy", Npy("<i8", {7}, Bytes<int64_t>({0, 4, -100, 3, 2, 1, 0})));
}

void DirectoryTest::WriteZeros(int64_t rows, int64_t cols) {
  const auto write = [](const std::string &path, const std::string &header, int64_t elements) {
    WriteFile(path, header);
    std::filesystem::resize_file(path, header.size() + static_cast<size_t>(elements) * 4);
  };
  logits_ = Path("logits.npy");
  targets_ = Path("targets.npy");
  write(logits_, Npy("<f4", {rows, cols}, ""), rows * cols);
  write(targets_, Npy("<i4", {rows}, ""), rows);
}

std::string NpyOfHeader(const std::string &dictionary, std::string_view data, int major_version) {
  std::string bytes = "\x93NUMPY";
  bytes += static_cast<char>(major_version);
  bytes += '\0';
  const size_t length_bytes = major_version == 1 ? 2 : 4;
  const size_t unpadded = bytes.size() + length_bytes + dictionary.size() + 1;
  const size_t length = dictionary.size() + 1 + (64 - unpadded % 64) % 64;
  for (size_t i = 0; i < length_bytes; ++i) bytes += static_cast<char>(length >> (8 * i) & 0xff);
  bytes += dictionary;
  bytes.append(length - dictionary.size() - 1, ' ');
  return bytes + '\n' + std::string(data);
}

std::string Npy(const std::string &descr, const std::vector<int64_t> &shape, std::string_view data,
                bool fortran_order) {
  std::string dictionary = "{'descr': '" + descr + "', 'fortran_order': " + (fortran_order ? "True" : "False");
  dictionary += ", 'shape': (";
  for (const int64_t extent : shape) dictionary += std::to_string(extent) + ", ";
  return NpyOfHeader(dictionary + "), }", data);
}

std::string Tuple(const std::vector<int64_t> &numbers) {
  std::string text;
  for (const int64_t number : numbers) text += (text.empty() ? "" : ", ") + std::to_string(number);
  return "(" + text + (numbers.size() == 1 ? ",)" : ")");
}

ReadNpy SplitNpy(const std::string &bytes) {
  ReadNpy npy;
  EXPECT_EQ(bytes.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  if (bytes.size() < 10) return npy;
  const size_t length = static_cast<unsigned char>(bytes[8]) + 256u * static_cast<unsigned char>(bytes[9]);
  EXPECT_EQ((10 + length) % 64, 0u);
  const std::string header = bytes.substr(10, length);
  EXPECT_EQ(header.back(), '\n');
  const auto between = [&header](const std::string &before, const std::string &after) {
    const size_t position = header.find(before);
    if (position == std::string::npos) return std::string();
    const size_t begin = position + before.size();
    return header.substr(begin, header.find(after, begin) - begin);
  };
  const std::string order = between("'fortran_order': ", ",");
  EXPECT_TRUE(order == "True" || order == "False") << order;
  npy.fortran_order = order == "True";
  npy.descr = between("'descr': '", "'");
  npy.shape = between("'shape': ", ", }");
  npy.data = bytes.substr(10 + length);
  return npy;
}

uint64_t Random::Next() {
  // SplitMix64 (Steele, Lea & Flood 2014).
  uint64_t z = (state_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

double Random::Uniform(double low, double high) {
  return low + (high - low) * static_cast<double>(Next() >> 11) * 0x1p-53;
}

}  // namespace xent_cli_test
