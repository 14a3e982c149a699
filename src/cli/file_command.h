// What all commands over files have in common.
#pragma once

#include "commands.h"
#include "error.h"
#include "pool.h"
#include "progress.h"
#include "report.h"
#include "results.h"

namespace xent_cli {

class FileCommand {
 public:
  virtual ~FileCommand() = default;
  FileCommand(const FileCommand &) = delete;
  FileCommand &operator=(const FileCommand &) = delete;

  // Runs the command over its file, its pair of files or its manifest, and returns the exit code. Throws Error.
  int Run() { return inputs_.manifest ? RunManifest() : RunFile(); }

 protected:
  explicit FileCommand(const InputArguments &inputs) : inputs_(inputs), pool_(inputs.threads, progress_) {}

  // Adds how the report was computed to it, gives results and report to their destinations, and returns the exit code.
  int Finish(Results &results, const Results::Fill &fill, Report &report) {
    AddExecution(report, pool_.threads());
    results.Complete(fill, progress_, report.Text());
    return kExitOk;
  }

  const InputArguments &inputs_;
  Progress progress_;
  ThreadPool pool_;

 private:
  virtual int RunFile() = 0;
  virtual int RunManifest() = 0;
};

}  // namespace xent_cli
