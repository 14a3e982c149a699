// Destinations and the files that are put there.
#include "output.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <filesystem>

#include "error.h"

namespace xent_cli {
namespace {

constexpr int kMaxLinks = 40;  // as many symbolic links in a row as Linux itself follows

Error CannotWrite(const std::string &name, int error_number) { return SystemError("cannot write", name, error_number); }

// Returns the directory without symbolic links. Throws Error that names `given`.
std::string RealDirectory(const std::string &directory, const std::string &given) {
  const std::unique_ptr<char, decltype(&std::free)> real(realpath(directory.c_str(), nullptr), &std::free);
  if (real == nullptr) throw CannotWrite(given, errno);
  return real.get();
}

// Returns N where DIRECTORY/NAME is this process's own descriptor N, as /dev/stdout and /dev/fd/N are in the end; else
// -1.
int OwnDescriptor(const std::string &directory, const std::string &name) {
  const std::unique_ptr<char, decltype(&std::free)> own(realpath("/proc/self/fd", nullptr), &std::free);
  if (own == nullptr || directory != own.get()) return -1;
  int descriptor = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), descriptor);
  return error == std::errc() && end == name.data() + name.size() ? descriptor : -1;
}

std::string RandomName() {
  uint64_t bits = 0;
  if (getrandom(&bits, sizeof(bits), 0) != sizeof(bits)) throw SystemError("cannot get", "random bytes", errno);
  char digits[16];
  const auto end = std::to_chars(digits, digits + sizeof(digits), bits, 16).ptr;
  return ".xent-" + std::string(digits, static_cast<size_t>(end - digits)) + ".tmp";
}

std::string DescriptorPath(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

}  // namespace

Destination ResolveDestination(const std::string &path) {
  Destination destination;
  destination.given = path;
  struct stat status;
  if (stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) throw CannotWrite(path, EISDIR);
  std::string current = path;
  for (int links = 0; links <= kMaxLinks; ++links) {
    const size_t slash = current.rfind('/');
    const std::string parent = slash == std::string::npos ? "." : slash == 0 ? "/" : current.substr(0, slash);
    destination.name = current.substr(slash + 1);
    // An empty name comes from "" or "new/": stat would have reported a directory.
    if (destination.name.empty()) throw CannotWrite(path, path.empty() ? ENOENT : ENOTDIR);
    destination.directory = RealDirectory(parent, path);
    destination.descriptor = OwnDescriptor(destination.directory, destination.name);
    if (destination.descriptor >= 0) {
      if (fstat(destination.descriptor, &destination.status) != 0) throw CannotWrite(path, errno);
      destination.exists = true;
      destination.in_place = true;
      return destination;
    }
    if (stat(destination.directory.c_str(), &destination.directory_status) != 0) throw CannotWrite(path, errno);
    if (lstat(destination.path().c_str(), &destination.status) != 0) {
      if (errno != ENOENT) throw CannotWrite(path, errno);
      return destination;
    }
    if (!S_ISLNK(destination.status.st_mode)) {
      destination.exists = true;
      destination.in_place = !S_ISREG(destination.status.st_mode);
      // Replacing a file asks for rights on its directory alone; a file that is write-protected is meant to stay.
      if (faccessat(AT_FDCWD, destination.path().c_str(), W_OK, AT_EACCESS) != 0) throw CannotWrite(path, errno);
      return destination;
    }
    char target[PATH_MAX];
    const ssize_t length = readlink(destination.path().c_str(), target, sizeof(target));
    if (length < 0) throw CannotWrite(path, errno);
    current.assign(target, static_cast<size_t>(length));
    if (current.empty() || current.front() != '/') current = destination.directory + "/" + current;
  }
  throw CannotWrite(path, ELOOP);
}

bool IsSameFile(const Destination &a, dev_t device, ino_t inode) {
  return a.exists && a.status.st_dev == device && a.status.st_ino == inode;
}

bool IsSameFile(const Destination &a, const Destination &b) {
  if (a.exists || b.exists) return b.exists && IsSameFile(a, b.status.st_dev, b.status.st_ino);
  return a.name == b.name && a.directory_status.st_dev == b.directory_status.st_dev &&
         a.directory_status.st_ino == b.directory_status.st_ino;
}

void WriteAll(int fd, std::string_view bytes, const std::string &name) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EAGAIN) {  // a pipe that its other end made non-blocking
      struct pollfd ready = {fd, POLLOUT, 0};
      poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      throw CannotWrite(name, errno);
    }
  }
}

TemporaryFile::TemporaryFile(const std::string &directory, size_t size, const std::string &for_name)
    : directory_(directory), for_name_(for_name), size_(size) {
  try {
    Open();
    // Without reserved blocks a full disk would show as SIGBUS in the middle of the computation.
    int error_number = EINTR;
    while (error_number == EINTR) error_number = posix_fallocate(fd_, 0, static_cast<off_t>(size_));
    if (error_number != 0) throw CannotWrite(for_name_, error_number);
    void *address = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
    if (address == MAP_FAILED) throw CannotWrite(for_name_, errno);
    data_ = static_cast<char *>(address);
    mapping_name_.emplace(data_, size_, "xent: cannot write " + for_name_ + ": the disk is full, or the device failed");
  } catch (...) {
    Release();
    throw;
  }
}

TemporaryFile::~TemporaryFile() { Release(); }

void TemporaryFile::Release() {
  mapping_name_.reset();
  if (data_ != nullptr) munmap(data_, size_);
  if (fd_ >= 0) close(fd_);
  if (!path_.empty()) unlink(path_.c_str());
}

void TemporaryFile::Open() {
  fd_ = open(directory_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
  if (fd_ >= 0) {
    // A file without a name gets one through /proc only.
    if (access(DescriptorPath(fd_).c_str(), F_OK) == 0) return;
    close(fd_);
    fd_ = -1;
  } else if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL) {  // what file systems without O_TMPFILE say
    throw CannotWrite(for_name_, errno);
  }
  do {
    const std::string path = directory_ + "/" + RandomName();
    name_guard_.emplace(path);
    fd_ = open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);
    if (fd_ >= 0) path_ = path;
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ < 0) throw CannotWrite(for_name_, errno);
}

void TemporaryFile::Finish() {
  mapping_name_.reset();
  munmap(data_, size_);
  data_ = nullptr;
  if (fsync(fd_) != 0) throw CannotWrite(for_name_, errno);
}

void TemporaryFile::MoveTo(const Destination &destination) {
  if (destination.exists) {
    // Only root may give a file away; where that fails the new file stays the caller's, as after a removal.
    if (fchown(fd_, destination.status.st_uid, destination.status.st_gid) != 0) errno = 0;
    if (fchmod(fd_, destination.status.st_mode & 07777) != 0) throw CannotWrite(for_name_, errno);
  }
  while (path_.empty()) {
    const std::string path = directory_ + "/" + RandomName();
    name_guard_.emplace(path);
    if (linkat(AT_FDCWD, DescriptorPath(fd_).c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW) == 0) {
      path_ = path;
    } else if (errno != EEXIST) {
      throw CannotWrite(for_name_, errno);
    }
  }
  if (rename(path_.c_str(), destination.path().c_str()) != 0) throw CannotWrite(for_name_, errno);
  path_.clear();
  name_guard_.reset();
}

StreamedFile::StreamedFile(const Destination &destination) : name_(destination.given) {
  fd_ = destination.descriptor >= 0 ? fcntl(destination.descriptor, F_DUPFD_CLOEXEC, 0)
                                    : open(destination.path().c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY);
  if (fd_ < 0) throw CannotWrite(name_, errno);
}

StreamedFile::~StreamedFile() {
  if (fd_ >= 0) close(fd_);
}

void StreamedFile::Close() {
  const int fd = fd_;
  fd_ = -1;
  if (close(fd) != 0) throw CannotWrite(name_, errno);
}

Scratch::Scratch(size_t size) {
  constexpr size_t kAnonymousLimit = size_t{64} << 20;
  if (size <= kAnonymousLimit) {
    memory_ = std::make_unique_for_overwrite<char[]>(size);
    data_ = memory_.get();
  } else {
    std::error_code error;
    const std::string directory = std::filesystem::temp_directory_path(error).string();
    if (error) throw Error("no directory for a temporary file: TMPDIR is to name one that exists");
    file_.emplace(directory, size, "a temporary file in " + directory);
    data_ = file_->data();
  }
}

}  // namespace xent_cli
