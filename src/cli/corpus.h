// Many files instead of one: what a manifest lists, one after the other.
#ifndef XENT_SRC_CLI_CORPUS_H_
#define XENT_SRC_CLI_CORPUS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "commands.h"
#include "progress.h"
#include "report.h"

namespace xent_cli {

// The files that a corpus consists of so far.
class Corpus {
 public:
  // Files whose sizes have been looked at agree in the number of columns with the first good one.
  void ExpectColumns(const std::string &path, int64_t cols);

  // Calls `visit` for each line of the manifest: two paths with a TAB between them, or one path. A line for which it
  // throws Error is a bad one: the end, or under --keep-going a message and on to the next. So what a visit adds to any
  // totals it must add last.
  void ForEachPair(const InputArguments &inputs, Progress &progress,
                   const std::function<void(const std::string &first, const std::string &second)> &visit);
  void ForEachFile(const InputArguments &inputs, Progress &progress,
                   const std::function<void(const std::string &path)> &visit);

  // Adds "files", "failed" and how it was computed, prints the report, and returns the exit code.
  int Finish(Report &report, int threads) const;

 private:
  void ForEachLine(const InputArguments &inputs, Progress &progress,
                   const std::function<void(std::string_view line)> &visit);

  int64_t files_ = 0, failed_ = 0;
  std::string model_;  // the first good file, which says how many columns there are
  int64_t cols_ = 0;
  std::string visited_;
  int64_t visited_cols_ = 0;
};

}  // namespace xent_cli

#endif  // XENT_SRC_CLI_CORPUS_H_
