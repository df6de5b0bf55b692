// A file of the user's that appears under its name only when all of it is there.
//
// It is written under a hidden name beside its target, ".tplstore-export-*.part", which is removed
// again unless the file is published. An existing file is replaced only if that is asked for, and
// never anything but a regular file.
//
// Thread safety: one thread. Errors: Error about the file with the system's errno; EEXIST.
#pragma once

#include <filesystem>
#include <string>

namespace tplstore {

// Throws EEXIST when publishing under this name would, as things are now: before the work is done.
void check_publish_target(const std::string& file, bool may_replace);

class PublishedFile {
 public:
  // Makes nothing yet.
  explicit PublishedFile(std::string file);
  ~PublishedFile();
  PublishedFile(const PublishedFile&) = delete;
  PublishedFile& operator=(const PublishedFile&) = delete;

  // Where its content goes; absolute.
  const std::string& path() const { return path_; }

  // Gives it its name, durably. Its content must be durable before.
  void publish(bool may_replace);

 private:
  std::string file_;
  std::filesystem::path folder_;
  std::string path_;
  std::string target_;
  bool is_published_ = false;
};

}  // namespace tplstore
