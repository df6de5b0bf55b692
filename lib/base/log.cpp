// The journal is known by the device and the inode of its stream, which systemd hands over.
#include "base/log.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

namespace tplstore {

LogLevel level_of(const Error& error) {
  switch (error.code()) {
    case EIO:
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
      return LogLevel::kError;
    default:
      return LogLevel::kWarning;
  }
}

bool is_journal_stderr() noexcept {
  static const bool is_journal = [] {
    const char* const stream = std::getenv("JOURNAL_STREAM");
    struct stat status {};
    unsigned long device = 0, inode = 0;
    char more = 0;
    return stream != nullptr && std::sscanf(stream, "%lu:%lu%c", &device, &inode, &more) == 2 &&
           ::fstat(STDERR_FILENO, &status) == 0 && status.st_dev == device &&
           status.st_ino == inode;
  }();
  return is_journal;
}

std::string with_level(LogLevel level, const std::string& text) {
  if (!is_journal_stderr()) return text;
  std::string leveled;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size() - 1) + 1;
    leveled += fmt::format("<{}>", static_cast<int>(level));
    leveled.append(text, at, end - at);
    at = end;
  }
  return leveled;
}

}  // namespace tplstore
