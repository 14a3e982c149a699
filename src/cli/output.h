// The destinations of results. A regular file is built beside its destination and takes its place in one step when
// everything is complete. A device, a pipe or an open descriptor is written in place.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "signals.h"

namespace xent_cli {

// The path of an output, followed through symbolic links. Nothing is opened.
struct Destination {
  std::string given;      // as the user wrote it, for messages
  std::string directory;  // where the file stands or will stand, without symbolic links
  std::string name;       // its name there
  bool in_place = false;  // neither a regular file nor a new one
  int descriptor = -1;    // N where the path means this process's own /dev/fd/N
  bool exists = false;
  struct stat status = {};            // of the file, where it exists
  struct stat directory_status = {};  // of the directory, where no descriptor is meant

  std::string path() const { return directory + "/" + name; }
};

// Returns the destination of a path. Throws Error where it cannot be written: a directory, a missing parent, a file
// without write permission.
Destination ResolveDestination(const std::string &path);

// Return whether both are one file, be it by another spelling, a symbolic link or a hard link.
bool IsSameFile(const Destination &a, const Destination &b);
bool IsSameFile(const Destination &a, dev_t device, ino_t inode);

// Writes all of `bytes`; throws Error that names `name`.
void WriteAll(int fd, std::string_view bytes, const std::string &name);

// Memory that a file without a name backs, or a file with a hidden name on file systems that know no others. The file
// disappears with this object unless MoveTo gives it a place. Its space on disk is reserved from the start.
class TemporaryFile {
 public:
  // Messages name the file `for_name`. Throws Error.
  TemporaryFile(const std::string &directory, size_t size, const std::string &for_name);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile &) = delete;
  TemporaryFile &operator=(const TemporaryFile &) = delete;

  char *data() const { return data_; }
  // Ends the mapping and waits until the disk has the data.
  void Finish();
  // Puts the file in the place of the destination, with the permissions and, if possible, the owner of an older file
  // there.
  void MoveTo(const Destination &destination);

 private:
  void Open();
  void Release();

  std::string directory_;
  std::string for_name_;
  size_t size_;
  int fd_ = -1;
  char *data_ = nullptr;
  std::string path_;  // empty while the file has no name
  std::optional<ScopedTemporaryName> name_guard_;
  std::optional<ScopedMappingName> mapping_name_;
};

// A destination written in place, front to back.
class StreamedFile {
 public:
  // Opening a FIFO waits for its reader.
  explicit StreamedFile(const Destination &destination);
  ~StreamedFile();
  StreamedFile(const StreamedFile &) = delete;
  StreamedFile &operator=(const StreamedFile &) = delete;

  void Write(std::string_view bytes) { WriteAll(fd_, bytes, name_); }
  void Close();

 private:
  std::string name_;
  int fd_;
};

// A buffer that takes a bounded part of anonymous memory. Past a limit a temporary file backs it, since one row of the
// gradient may have any length.
class Scratch {
 public:
  explicit Scratch(size_t size);
  char *data() const { return data_; }

 private:
  std::unique_ptr<char[]> memory_;
  std::optional<TemporaryFile> file_;
  char *data_;
};

}  // namespace xent_cli
