// openat2 with RESOLVE_BENEATH for every path; trees are removed from their open folders downwards.
#include "base/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>

namespace tplstore {
namespace {

constexpr int kTreeDepthMax = 32;     // a store is a few folders deep
constexpr int kRemoveTriesMax = 100;  // against somebody who keeps making files in it

// Without openat2: every folder on the way is opened by itself and must not be a symbolic link.
FileDescriptor walk(int directory_fd, const std::string& path, int flags) {
  FileDescriptor folder;
  for (std::string_view rest = path;;) {
    const size_t slash = rest.find('/');
    const bool is_last = slash == std::string_view::npos;
    const std::string part(rest.substr(0, slash));
    const int at = folder ? folder.get() : directory_fd;
    FileDescriptor next(openat(at, part.c_str(),
                               (is_last ? flags : O_PATH | O_DIRECTORY) | O_NOFOLLOW | O_CLOEXEC));
    struct stat status;
    // What stands in the way of a link is an error; a folder that is none may mean absence.
    if (!next && errno == ENOTDIR && fstatat(at, part.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0)
      errno = S_ISLNK(status.st_mode) ? ELOOP : ENOTDIR;
    if (!next || is_last) return next;
    folder = std::move(next);
    rest.remove_prefix(slash + 1);
  }
}

bool is_dot(const char* name) {
  return std::strcmp(name, ".") == 0 || std::strcmp(name, "..") == 0;
}

struct DirCloser {
  void operator()(DIR* stream) const { closedir(stream); }
};

// Removes what is in a folder, in one pass.
int remove_content(int parent_fd, const char* name, int depth) {
  if (depth > kTreeDepthMax) {
    errno = ELOOP;
    return -1;
  }
  const FileDescriptor folder(
      openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!folder) return errno == ENOENT ? 0 : -1;
  std::vector<std::string> entries;
  if (read_folder(folder.get(), entries) != 0) return -1;
  for (const std::string& entry : entries) {
    if (unlinkat(folder.get(), entry.c_str(), 0) == 0 || errno == ENOENT) continue;
    if (errno != EISDIR && errno != EPERM) return -1;  // POSIX says EPERM for a directory
    const int refused_with = errno;
    if (remove_content(folder.get(), entry.c_str(), depth + 1) != 0) {
      if (errno == ENOTDIR) errno = refused_with;
      return -1;
    }
    if (unlinkat(folder.get(), entry.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT &&
        errno != ENOTEMPTY) {
      return -1;
    }
  }
  return 0;
}

}  // namespace

void FileDescriptor::reset(int fd) {
  if (fd_ >= 0) {
    const int kept = errno;
    close(fd_);
    errno = kept;
  }
  fd_ = fd;
}

FileDescriptor open_beneath(int directory_fd, const std::string& path, int flags) {
  static std::atomic<bool> has_openat2{true};
  const std::string& target = path.empty() ? "." : path;
  if (!has_openat2.load(std::memory_order_relaxed)) return walk(directory_fd, target, flags);

  open_how how{};
  how.flags = static_cast<uint64_t>(flags | O_CLOEXEC);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  for (;;) {
    const long fd = syscall(SYS_openat2, directory_fd, target.c_str(), &how, sizeof how);
    if (fd >= 0) return FileDescriptor(static_cast<int>(fd));
    if (errno == EINTR || errno == EAGAIN) continue;  // EAGAIN: a rename raced with the walk
    // Old kernels say ENOSYS; containers with an old filter of system calls say EPERM to any.
    if (errno != ENOSYS && errno != EPERM) return {};
    const int refused_with = errno;
    FileDescriptor walked = walk(directory_fd, target, flags);
    if (walked || errno != refused_with) has_openat2.store(false, std::memory_order_relaxed);
    return walked;
  }
}

int give_to_owner_of(int directory_fd, int made_fd) {
  if (geteuid() != 0) return 0;
  struct stat directory;
  struct stat made;
  if (fstat(directory_fd, &directory) != 0 || fstat(made_fd, &made) != 0) return -1;
  const bool is_ours_to_give = made.st_uid == geteuid();
  const bool is_theirs = made.st_uid == directory.st_uid && made.st_gid == directory.st_gid;
  if (!is_ours_to_give || is_theirs) return 0;
  return fchown(made_fd, directory.st_uid, directory.st_gid);
}

FileDescriptor open_or_make_folder(int directory_fd, const std::string& folder) {
  constexpr int kFlags = O_RDONLY | O_DIRECTORY;
  FileDescriptor fd = open_beneath(directory_fd, folder, kFlags);
  if (fd || errno != ENOENT) return fd;
  const size_t slash = folder.rfind('/');
  const bool is_top = slash == std::string::npos;
  FileDescriptor parent =
      open_or_make_folder(directory_fd, is_top ? std::string() : folder.substr(0, slash));
  if (!parent) return {};
  const std::string last = is_top ? folder : folder.substr(slash + 1);
  const bool is_made = mkdirat(parent.get(), last.c_str(), kFolderMode) == 0;
  if (!is_made && errno != EEXIST) return {};
  fd = open_beneath(parent.get(), last, kFlags);
  // Where owners cannot be changed the folder is as good as before.
  if (fd && is_made) (void)give_to_owner_of(directory_fd, fd.get());
  return fd;
}

int read_folder(int folder_fd, std::vector<std::string>& names) {
  FileDescriptor opened(openat(folder_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!opened) return -1;
  const std::unique_ptr<DIR, DirCloser> stream(fdopendir(opened.get()));
  if (!stream) return -1;
  opened.release();  // the stream's now
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(stream.get());
    if (entry == nullptr) return errno == 0 ? 0 : -1;
    if (!is_dot(entry->d_name)) names.emplace_back(entry->d_name);
  }
}

int remove_tree(int parent_fd, const std::string& name) {
  for (int tries = 0; tries < kRemoveTriesMax; ++tries) {
    if (remove_content(parent_fd, name.c_str(), 0) != 0) return -1;
    if (unlinkat(parent_fd, name.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT) return 0;
    if (errno != ENOTEMPTY && errno != EEXIST) return -1;
  }
  return -1;
}

}  // namespace tplstore
