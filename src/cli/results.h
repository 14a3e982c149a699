// The array results of a command: checked against each other and the inputs, computed into files that appear when
// everything is complete, or written in place front to back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "batches.h"
#include "npy.h"
#include "output.h"
#include "progress.h"

namespace xent_cli {

// One array that a command can compute. A command numbers its results as it likes.
struct ArrayResult {
  int id = 0;
  std::string option;               // "--grad", for messages
  std::string label;                // "grad", for the progress bar
  std::optional<std::string> path;  // nothing: not wanted
  std::string descr;
  std::vector<int64_t> shape;
  bool fortran_order = false;
  size_t block_bytes = 0;     // of one of the blocks that make it up
  bool in_one_batch = false;  // its parts cannot be computed apart
};

class Results {
 public:
  // Computes `count` blocks of a result from block `first` on into `data`.
  using Fill = std::function<void(int id, int64_t first, int64_t count, char *data)>;

  // Checks the destinations of those that are wanted and reserves space on disk. Results are streamed in the order of
  // `arrays`. `copied_bytes` is what a call copies of the inputs of a block. Throws Error.
  Results(const std::vector<ArrayResult> &arrays, int64_t blocks, const std::vector<const MappedFile *> &inputs,
          size_t copied_bytes);

  // Returns the place of block `first` of a result, null where the result is not wanted, or is streamed later.
  void *data(int id, int64_t first = 0) const;

  // Computes what has a place in data(), batch by batch.
  void Compute(const Fill &fill, Progress &progress) const;

  // Streams what has no place in data(), once all else is computed, then prints the report, then moves the files to
  // their destinations. Whatever fails before that leaves older files there as they are.
  void Complete(const Fill &fill, Progress &progress, const std::string &report);

 private:
  struct Output {
    ArrayResult result;
    Destination destination;
    std::string header;
    std::optional<TemporaryFile> file;  // unless written in place
  };

  // Throws Error where one file would be two of: an output, an input, standard output with the report on it.
  void RefuseSharedDestinations(const std::vector<const MappedFile *> &inputs);
  Batches BatchesOf(const ArrayResult &result) const;
  void Stream(const Output &output, const Fill &fill, Progress &progress) const;

  int64_t blocks_;
  size_t copied_bytes_;
  std::deque<Output> outputs_;  // not a vector: an Output does not move
  int report_fd_;
};

}  // namespace xent_cli
