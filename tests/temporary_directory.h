// A directory of its own for one test, on a real file system, gone afterwards.
// Thread safety: none needed. Errors: a failed CHECK and an exception.
#pragma once

#include <stdlib.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>

namespace tplstore {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    // Not /tmp: that may be a tmpfs, which has no O_DIRECT before Linux 6.6.
    const char* base = std::getenv("TMPDIR");
    path_ = std::string(base != nullptr && *base != '\0' ? base : "/var/tmp") + "/tplstore-XXXXXX";
    if (mkdtemp(path_.data()) == nullptr) throw std::system_error(errno, std::generic_category());
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace tplstore
