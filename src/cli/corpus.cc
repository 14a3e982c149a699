// Reading of manifests.
#include "corpus.h"

#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <utility>

#include "error.h"

namespace xent_cli {
namespace {

// The lines of a text file, one in memory at a time.
class LineReader {
 public:
  explicit LineReader(const std::string &path) : path_(path), file_(std::fopen(path.c_str(), "re"), &std::fclose) {
    if (file_ == nullptr) throw SystemError("cannot read", path_, errno);
  }
  ~LineReader() { std::free(line_); }
  LineReader(const LineReader &) = delete;
  LineReader &operator=(const LineReader &) = delete;

  // Sets `line` to the next line without its end. Returns false after the last.
  bool Next(std::string_view &line) {
    const ssize_t length = getline(&line_, &capacity_, file_.get());
    if (length < 0) {
      if (std::feof(file_.get()) == 0) throw SystemError("cannot read", path_, errno);
      return false;
    }
    line = {line_, static_cast<size_t>(length)};
    constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
    if (std::exchange(is_first_, false) && line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
    if (!line.empty() && line.back() == '\n') line.remove_suffix(1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    return true;
  }

 private:
  const std::string &path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE *)> file_;
  char *line_ = nullptr;
  size_t capacity_ = 0;
  bool is_first_ = true;
};

// Returns a path of the manifest, which is relative to the directory of the manifest.
std::string FromManifest(const InputArguments &inputs, std::string_view path) {
  const std::string &manifest = *inputs.manifest;
  return (path.front() == '/' ? "" : manifest.substr(0, manifest.rfind('/') + 1)) + std::string(path);
}

}  // namespace

void Corpus::ExpectColumns(const std::string &path, int64_t cols) {
  if (!model_.empty() && cols != cols_) {
    throw Error(path + ": the number of columns is " + std::to_string(cols) + ", expected " + std::to_string(cols_) +
                ", that of " + model_);
  }
  visited_ = path;
  visited_cols_ = cols;
}

void Corpus::ForEachPair(const InputArguments &inputs, Progress &progress,
                         const std::function<void(const std::string &, const std::string &)> &visit) {
  ForEachLine(inputs, progress, [&](std::string_view line) {
    const size_t tab = line.find('\t');
    if (tab == 0 || tab >= line.size() - 1 || line.find('\t', tab + 1) != std::string_view::npos) {
      throw Error("expected two paths with one TAB between them");
    }
    visit(FromManifest(inputs, line.substr(0, tab)), FromManifest(inputs, line.substr(tab + 1)));
  });
}

void Corpus::ForEachFile(const InputArguments &inputs, Progress &progress,
                         const std::function<void(const std::string &)> &visit) {
  ForEachLine(inputs, progress, [&](std::string_view line) {
    if (line.find('\t') != std::string_view::npos) throw Error("expected one path, found a TAB");
    visit(FromManifest(inputs, line));
  });
}

void Corpus::ForEachLine(const InputArguments &inputs, Progress &progress,
                         const std::function<void(std::string_view)> &visit) {
  const std::string &manifest = *inputs.manifest;
  LineReader lines(manifest);
  std::string_view line;
  for (int64_t number = 1; lines.Next(line); ++number) {
    if (line.find_first_not_of(" \t") == std::string_view::npos || line.front() == '#') continue;
    try {
      if (line.find('\0') != std::string_view::npos) throw Error("a path has a NUL in it");
      visit(line);
      ++files_;
      if (model_.empty()) {
        model_ = visited_;
        cols_ = visited_cols_;
      }
    } catch (const Error &error) {
      const std::string message = manifest + ":" + std::to_string(number) + ": " + error.what();
      if (!inputs.keep_going) throw Error(message);
      ++failed_;
      progress.Wipe();
      Print(STDERR_FILENO, "xent: " + Printable(message) + "\n");
    }
  }
  progress.Wipe();
  if (files_ + failed_ == 0) throw Error(manifest + ": names no file");
}

int Corpus::Finish(Report &report, int threads) const {
  report.Add("files", files_);
  report.Add("failed", failed_);
  AddExecution(report, threads);
  Print(STDOUT_FILENO, report.Text());
  return failed_ > 0 ? kExitFailure : kExitOk;
}

}  // namespace xent_cli
