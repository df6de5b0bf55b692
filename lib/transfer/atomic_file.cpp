// O_TMPFILE and a link at the end; a name of its own that is renamed where that is not known.
#include "transfer/atomic_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/bytes.h"
#include "base/error.h"
#include "base/files.h"
#include "transfer/byte_stream.h"

namespace tplstore {

void check_publish_target(const std::string& file, bool may_replace) {
  if (is_standard_stream(file)) {
    if (::isatty(STDOUT_FILENO) == 1)
      fail(EINVAL, "standard output", "is a terminal: pipe it to a command, or name a file");
    return;
  }
  struct stat status {};
  if (::lstat(file.c_str(), &status) != 0) {
    if (errno != ENOENT) fail_errno(errno, file, "looking for the file");
    return;
  }
  if (!S_ISREG(status.st_mode))
    fail(EEXIST, file, "it exists and is not a regular file: choose another name");
  if (!may_replace) fail(EEXIST, file, "the file exists: use --force to replace it");
}

AtomicFile::AtomicFile(std::string file) : file_(std::move(file)) {
  const std::filesystem::path target = std::filesystem::absolute(file_);
  folder_ = target.parent_path();
  target_ = target;
  descriptor_.reset(::open(folder_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666));
  if (descriptor_) return;
  // What kernels and file systems say that do not know the flag.
  if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)
    fail_errno(errno, file_, "making the file");
  hidden_ = choose_hidden_name();
  descriptor_.reset(::open(hidden_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!descriptor_) fail_errno(errno, file_, "making the file");
}

AtomicFile::~AtomicFile() {
  if (!hidden_.empty()) ::unlink(hidden_.c_str());
}

std::string AtomicFile::choose_hidden_name() const {
  return folder_ /
         fmt::format(".tplstore-export-{}-{:08x}.part", ::getpid(), random_u64() & UINT32_MAX);
}

bool AtomicFile::take_name(const std::string& path) {
  int result;
  if (hidden_.empty()) {
    const std::string from = fmt::format("/proc/self/fd/{}", descriptor_.get());
    result = ::linkat(AT_FDCWD, from.c_str(), AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW);
  } else {
    result = ::renameat2(AT_FDCWD, hidden_.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE);
    // Some file systems, NFS for one, know no such flag.
    if (result != 0 && (errno == EINVAL || errno == ENOSYS)) {
      result = ::link(hidden_.c_str(), path.c_str());
      if (result == 0) ::unlink(hidden_.c_str());
    }
    if (result == 0) hidden_.clear();
  }
  if (result == 0) return true;
  if (errno == EEXIST) return false;
  fail_errno(errno, file_, "giving the finished file its name");
}

void AtomicFile::publish(bool may_replace) {
  if (!take_name(target_)) {
    if (!may_replace) fail_errno(EEXIST, file_, "giving the finished file its name");
    // Only a name can take the place of another one.
    if (hidden_.empty()) {
      const std::string name = choose_hidden_name();
      if (!take_name(name)) fail_errno(EEXIST, file_, "giving the finished file its name");
      hidden_ = name;
    }
    if (::rename(hidden_.c_str(), target_.c_str()) != 0)
      fail_errno(errno, file_, "giving the finished file its name");
    hidden_.clear();
  }
  const FileDescriptor folder(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder || ::fsync(folder.get()) != 0) fail_errno(errno, file_, "syncing its folder");
}

OutputFile::OutputFile(const std::string& file, bool may_replace)
    : name_(is_standard_stream(file) ? "standard output" : file), may_replace_(may_replace) {
  check_publish_target(file, may_replace);
  if (!is_standard_stream(file)) file_.emplace(file);
}

int OutputFile::descriptor() const { return file_ ? file_->descriptor() : STDOUT_FILENO; }

void OutputFile::publish() {
  if (file_) file_->publish(may_replace_);
}

}  // namespace tplstore
