// The files that a manifest lists, visited one after the other.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "commands.h"
#include "progress.h"
#include "report.h"

namespace xent_cli {

// Counts the files of a manifest and reports bad ones.
class Corpus {
 public:
  // Throws Error where the file at `path` has another number of columns than the first good file.
  void ExpectColumns(const std::string &path, int64_t cols);

  // Call `visit` for each line of the manifest, which is two paths with a TAB between them, or one path. Where `visit`
  // throws Error the line is bad. A bad line ends the command; under --keep-going it is reported and the next line
  // follows. A visit therefore adds to totals last.
  void ForEachPair(const InputArguments &inputs, Progress &progress,
                   const std::function<void(const std::string &first, const std::string &second)> &visit);
  void ForEachFile(const InputArguments &inputs, Progress &progress,
                   const std::function<void(const std::string &path)> &visit);

  // Adds "files", "failed", "target" and "threads" to the report, prints it, and returns the exit code.
  int Finish(Report &report, int threads) const;

 private:
  void ForEachLine(const InputArguments &inputs, Progress &progress,
                   const std::function<void(std::string_view line)> &visit);

  int64_t files_ = 0, failed_ = 0;
  std::string model_;  // the first good file; its number of columns is that of all
  int64_t cols_ = 0;
  std::string visited_;  // the file that ExpectColumns saw last, with its columns
  int64_t visited_cols_ = 0;
};

}  // namespace xent_cli
