// Every location is a directory so far.
#include "backend/open_backend.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <filesystem>

#include "backend/dir/dir_backend.h"
#include "backend/dir/file_system_kind.h"
#include "base/error.h"
#include "base/files.h"

namespace tplstore {

std::string absolute_location(const std::string& location) {
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(location, error);
  if (error || location.empty()) fail(EINVAL, location, "is not a usable path");
  return path.string();
}

std::unique_ptr<Backend> open_backend(const std::string& location, const BackendOptions& options) {
  struct stat status {};
  if (stat(location.c_str(), &status) != 0) fail_errno(errno, location, "cannot open the store");
  if (!S_ISDIR(status.st_mode)) fail(ENOTDIR, location, "is not a directory, hence not a store");
  DirOptions dir_options;
  if (options.is_private) dir_options.file_mode = 0600;
  return std::make_unique<DirBackend>(location, options.direct, options.log, dir_options);
}

std::unique_ptr<Backend> make_backend(const std::string& location) {
  if (mkdir(location.c_str(), 0700) != 0 && errno != EEXIST)
    fail_errno(errno, location, "cannot make the directory of the store");
  return std::make_unique<DirBackend>(location, false, [](const std::string&) {});
}

StorageKind kind_of_location(const std::string& location) {
  std::filesystem::path path = absolute_location(location);
  if (!path.has_filename()) path = path.parent_path();
  FileDescriptor fd(open(path.c_str(), O_PATH | O_CLOEXEC));
  if (!fd) fd = FileDescriptor(open(path.parent_path().c_str(), O_PATH | O_CLOEXEC));
  // Where neither is there, who makes or opens it says what is wrong.
  return kind_of_file_system(fd.get());
}

void check_shared(const std::string& location, const StorageKind& kind, bool is_said,
                  const std::string& how) {
  if (kind.reach != StorageKind::Reach::kHosts || is_said) return;
  fail(EINVAL, location,
       "is on {}, which several hosts may have at the same time, and whose file locks may not meet "
       "between them; see 'Several hosts' in nbdkit-tplstore-plugin(1), and say {}",
       kind.name, how);
}

}  // namespace tplstore
