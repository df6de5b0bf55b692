// A file of the user's that appears under its name only when all of it is there.
//
// Until then it has no name, so that it is gone with us however we end. Where the file system knows
// no such files it has a hidden name beside its target, ".tplstore-export-*.part", which is removed
// again unless the file is published. An existing file is replaced only if that is asked for, and
// never anything but a regular file.
//
// Thread safety: one thread. Errors: Error about the file with the system's errno; EEXIST; EINVAL
// for a standard output that is a terminal.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "base/files.h"

namespace tplstore {

// Throws what publishing under this name would, as things are now: before the work is done.
void check_publish_target(const std::string& file, bool may_replace);

class AtomicFile {
 public:
  explicit AtomicFile(std::string file);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  // Where its content goes: open for reading and writing.
  int descriptor() const { return descriptor_.get(); }

  // Gives it its name, durably. Its content must be durable before.
  void publish(bool may_replace);

 private:
  std::string choose_hidden_name() const;
  // False when something has that name.
  bool take_name(const std::string& path);

  std::string file_;
  std::filesystem::path folder_;
  std::string target_;
  std::string hidden_;  // its name until it is published; empty while it has none
  FileDescriptor descriptor_;
};

// Such a file, or standard output for "-", where nothing can be taken back.
class OutputFile {
 public:
  OutputFile(const std::string& file, bool may_replace);

  int descriptor() const;
  bool is_stream() const { return !file_; }
  const std::string& name() const { return name_; }  // for messages
  void publish();

 private:
  std::string name_;
  bool may_replace_;
  std::optional<AtomicFile> file_;
};

}  // namespace tplstore
