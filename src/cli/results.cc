// Files and streams of array results.
#include "results.h"

#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>

#include "error.h"
#include "report.h"

namespace xent_cli {

Results::Results(const std::vector<ArrayResult> &arrays, int64_t blocks, const std::vector<const MappedFile *> &inputs,
                 size_t copied_bytes)
    : blocks_(blocks), copied_bytes_(copied_bytes), report_fd_(STDOUT_FILENO) {
  for (const ArrayResult &array : arrays) {
    if (!array.path) continue;
    Output &output = outputs_.emplace_back();
    output.result = array;
    output.destination = ResolveDestination(*array.path);
    output.header = FormatNpyHeader(array.descr, array.shape, array.fortran_order);
  }
  RefuseSharedDestinations(inputs);
  for (Output &output : outputs_) {
    if (output.destination.in_place) continue;
    output.file.emplace(output.destination.directory,
                        output.header.size() + output.result.block_bytes * static_cast<size_t>(blocks_),
                        output.destination.given);
    output.header.copy(output.file->data(), output.header.size());
  }
}

void Results::RefuseSharedDestinations(const std::vector<const MappedFile *> &inputs) {
  struct stat standard_output;
  const bool has_standard_output = fstat(STDOUT_FILENO, &standard_output) == 0;
  for (size_t i = 0; i < outputs_.size(); ++i) {
    const Destination &destination = outputs_[i].destination;
    const std::string subject = outputs_[i].result.option + " " + destination.given;
    for (size_t j = 0; j < i; ++j) {
      const Destination &other = outputs_[j].destination;
      if (IsSameFile(destination, other)) {
        throw Error(subject + " is the same file as " + outputs_[j].result.option + " " + other.given);
      }
    }
    for (const MappedFile *input : inputs) {
      if (IsSameFile(destination, input->device(), input->inode())) {
        throw Error(subject + " is the same file as the input " + input->path());
      }
    }
    if (!has_standard_output || !IsSameFile(destination, standard_output.st_dev, standard_output.st_ino)) continue;
    const bool is_null = S_ISCHR(standard_output.st_mode) && standard_output.st_rdev == makedev(1, 3);
    if (destination.descriptor >= 0) {
      report_fd_ = STDERR_FILENO;
    } else if (!is_null) {
      throw Error(subject +
                  " is the same file as standard output, where the report goes (/dev/stdout moves the report)");
    }
  }
}

void *Results::data(int id, int64_t first) const {
  for (const Output &output : outputs_) {
    if (output.result.id != id || !output.file) continue;
    return output.file->data() + output.header.size() + output.result.block_bytes * static_cast<size_t>(first);
  }
  return nullptr;
}

void Results::Complete(const Fill &fill, Progress &progress, const std::string &report) {
  for (Output &output : outputs_) {
    if (output.file) output.file->Finish();
  }
  for (const Output &output : outputs_) {
    if (output.destination.in_place) Stream(output, fill, progress);
  }
  progress.Wipe();
  Print(report_fd_, report);
  for (Output &output : outputs_) {
    if (output.file) output.file->MoveTo(output.destination);
  }
}

Batches Results::BatchesOf(const ArrayResult &result) const {
  const size_t block_bytes = std::max(result.block_bytes, copied_bytes_);
  return result.in_one_batch ? Batches(blocks_, block_bytes, block_bytes * static_cast<size_t>(blocks_))
                             : Batches(blocks_, block_bytes);
}

void Results::Compute(const Fill &fill, Progress &progress) const {
  for (const Output &output : outputs_) {
    if (!output.file) continue;
    const int id = output.result.id;
    progress.Begin(output.result.label);
    BatchesOf(output.result).ForEach(progress, [&](int64_t first, int64_t count) {
      fill(id, first, count, static_cast<char *>(data(id, first)));
      return true;
    });
  }
}

void Results::Stream(const Output &output, const Fill &fill, Progress &progress) const {
  const size_t block_bytes = output.result.block_bytes;
  const Batches batches = BatchesOf(output.result);
  const Scratch scratch(static_cast<size_t>(batches.size()) * block_bytes);
  progress.Begin(output.result.label);
  StreamedFile file(output.destination);
  file.Write(output.header);
  batches.ForEach(progress, [&](int64_t first, int64_t count) {
    fill(output.result.id, first, count, scratch.data());
    file.Write({scratch.data(), static_cast<size_t>(count) * block_bytes});
    return true;
  });
  file.Close();
}

}  // namespace xent_cli
