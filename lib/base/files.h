// Reaching files beneath one directory, and nowhere else.
//
// All paths are relative to an open directory and go through openat2 with RESOLVE_BENEATH and
// RESOLVE_NO_SYMLINKS, or, where the kernel has no openat2, through a walk of O_NOFOLLOW steps.
// Every descriptor has CLOEXEC. Names were checked with backend/object_name.h before they get here.
//
// Thread safety: pure functions. They return -1 and set errno, as the calls they stand for.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

namespace tplstore {

// Disks are nobody's business but their owner's and group's; the umask takes away the rest.
inline constexpr mode_t kFileMode = 0660;
inline constexpr mode_t kFolderMode = 0770;

// Owns a file descriptor, or none (-1).
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~FileDescriptor() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);  // keeps errno

 private:
  int fd_ = -1;
};

// Opens `path` beneath `directory_fd`; the empty path is that directory itself.
FileDescriptor open_beneath(int directory_fd, const std::string& path, int flags);

// What root has just made in a directory of somebody else's is given to that one, who could not use
// it otherwise. Nothing happens where it is theirs already, or where we are not root. 0 or -1.
int give_to_owner_of(int directory_fd, int made_fd);

// The same as open_beneath() for a folder and its missing parents, which are made, and given to the
// owner of the directory.
FileDescriptor open_or_make_folder(int directory_fd, const std::string& folder);

// The names in an open folder other than "." and "..", in no order. 0 or -1.
int read_folder(int folder_fd, std::vector<std::string>& names);

// Removes everything in the folder `name` of `parent_fd`, then the folder; symbolic links are
// removed, not followed. 0 or -1.
int remove_tree(int parent_fd, const std::string& name);

}  // namespace tplstore
