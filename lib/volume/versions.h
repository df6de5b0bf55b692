// The versions of an open volume: which there are, making and removing them, keeping them.
//
// Versions are named by their number or their name. Of a volume that is open for reading those are
// there that were when its map was last read, and nothing can be changed.
//
// Thread safety: all. Errors: ENOENT for a version that is not there or hidden; what a map throws.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "volume/open_volume.h"

namespace tplstore {

// A version that was frozen for a reader, and what keeps it from being removed.
struct VersionForReader {
  uint32_t number = 0;
  std::unique_ptr<HeldLock> hold;
};

class Versions {
 public:
  explicit Versions(OpenVolume& volume) : volume_(volume) {}

  std::vector<VersionInfo> list();       // current is the last one
  std::vector<VersionRecord> records();  // the frozen ones
  VersionRecord current();
  VersionInfo find(const std::string& number_or_name);  // of the frozen ones
  // One that was frozen for a reader.
  VersionInfo find_for_reader(uint32_t number);
  // Keeps a version from being removed as long as it is held. EBUSY while that is happening.
  std::unique_ptr<HeldLock> hold(uint32_t version);

  VersionInfo create(const NewVersion& request);
  // The same for several volumes, at one moment, and all or none (volume/version_set.h): between
  // the first write that is not in its version and the last one that is there is no other write to
  // any of them. Of different volumes, in an order that all who call this keep.
  static std::vector<VersionInfo> create_together(std::span<Versions* const> volumes,
                                                  const NewVersion& request);
  // Why create() would refuse it, if it were called now: EINVAL for a name or a note that no
  // version can have, EEXIST for a name that another one has.
  void check_new(const NewVersion& request);
  VersionInfo rollback(const std::string& number_or_name);
  // Current, which is what the frozen version `base` is, is about to become a version that comes
  // from elsewhere. From here on, and until end_import(), it is nothing that anybody wants: after a
  // crash the next opening undoes it.
  void begin_import(uint32_t base);
  void end_import();
  // Puts current back to what it was, if that has begun and no version has come of it.
  void undo_import();
  // Whether current is half an import.
  bool is_importing();
  // Freezes current: what create() and rollback() come to.
  VersionInfo freeze(const FreezeRequest& request);
  // Freezes current for one who wants to read it as it is now. EBUSY when there are too many of
  // those. The version is hidden, and removed some time after the hold was let go.
  VersionForReader freeze_for_reader();
  static constexpr size_t kReadersOfCurrentMax = 4;
  // Removes frozen versions, all or none. EBUSY when one is being read. Their space comes back in
  // the background.
  std::vector<VersionInfo> remove(const std::vector<std::string>& numbers_or_names);
  // The same, but they are kept until then, and can be restored (volume/removed_versions.h). A name
  // that one of them has no other version gets.
  std::vector<VersionInfo> put_aside(const std::vector<std::string>& numbers_or_names,
                                     int64_t until_ns);
  VersionInfo restore(const std::string& number_or_name);
  // Removes those for good whose time has come, but for what is being read; how many.
  uint64_t remove_expired(int64_t now_ns);

 private:
  // Those that remove() removes, all of them: with the locks of their readers' slots.
  struct Removal;
  Removal begin_removal(const std::vector<std::string>& numbers_or_names);
  void check_is_free(const std::string& version_name);
  class Freezing;  // of a volume among others
  void freeze(VersionChange& change, const FreezeRequest& request);
  VersionInfo info_of(const VersionRecord& record) const;

  OpenVolume& volume_;
};

// Removes the versions whose readers have gone; where they are not this process' own the lock of
// their slot tells.
void hide_left_versions(OpenVolume& volume);

}  // namespace tplstore
