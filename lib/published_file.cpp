#include "published_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "bytes.h"
#include "dir_path.h"
#include "error.h"

namespace tplstore {

void check_publish_target(const std::string& file, bool may_replace) {
  struct stat status {};
  if (::lstat(file.c_str(), &status) != 0) {
    if (errno != ENOENT) fail_errno(errno, file, "looking for the file");
    return;
  }
  if (!S_ISREG(status.st_mode))
    fail(EEXIST, file, "it exists and is not a regular file: choose another name");
  if (!may_replace) fail(EEXIST, file, "the file exists: use --force to replace it");
}

PublishedFile::PublishedFile(std::string file) : file_(std::move(file)) {
  const std::filesystem::path target = std::filesystem::absolute(file_);
  folder_ = target.parent_path();
  path_ = folder_ /
          fmt::format(".tplstore-export-{}-{:08x}.part", ::getpid(), random_u64() & UINT32_MAX);
  target_ = target;
}

PublishedFile::~PublishedFile() {
  if (!is_published_) ::unlink(path_.c_str());
}

void PublishedFile::publish(bool may_replace) {
  int result = ::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(),
                           may_replace ? 0 : RENAME_NOREPLACE);
  // Some file systems, NFS for one, know no such flag.
  if (result != 0 && (errno == EINVAL || errno == ENOSYS) && !may_replace) {
    result = ::link(path_.c_str(), target_.c_str());
    if (result == 0) ::unlink(path_.c_str());
  }
  if (result != 0) fail_errno(errno, file_, "giving the finished file its name");
  is_published_ = true;
  const FileDescriptor folder(::open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder || ::fsync(folder.get()) != 0) fail_errno(errno, file_, "syncing its folder");
}

}  // namespace tplstore
