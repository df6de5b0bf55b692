// Every location is a directory so far.
#include "backend/open_backend.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
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

namespace {

// Without links, as far as it is there.
std::filesystem::path real_path(const std::string& location) {
  std::error_code error;
  const auto path = std::filesystem::weakly_canonical(absolute_location(location), error);
  if (error) fail(EINVAL, location, "is not a usable path");
  return path.has_filename() ? path : path.parent_path();
}

}  // namespace

bool is_same_location(const std::string& a, const std::string& b) {
  return real_path(a) == real_path(b);
}

void check_apart(const std::string& one, const std::string& other) {
  const auto is_within = [](const std::filesystem::path& inner,
                            const std::filesystem::path& outer) {
    return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first ==
           outer.end();
  };
  const auto a = real_path(one), b = real_path(other);
  if (is_within(a, b) || is_within(b, a))
    fail(EINVAL, one, "and {}: one of them is within the other; choose another directory", other);
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
  if (mkdir(location.c_str(), 0700) == 0) {
    const FileDescriptor parent(
        ::open(real_path(location).parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!parent || (fsync(parent.get()) != 0 && errno != EINVAL))
      fail_errno(errno, location, "syncing the folder that it was made in");
  } else if (errno != EEXIST) {
    fail_errno(errno, location, "cannot make the directory of the store");
  }
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
