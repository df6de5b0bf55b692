// Looks at all that a volume's map says, without changing anything: the object "map", the log, the
// tree of each version, what is free. Whether the data files agree is volume/volume_check.h's.
//
// What is checked beside checksums follows from map/map_state.h:
//   - what a version has from elsewhere than the one that it started from was written later than
//     that, and not later than the version, within its size;
//   - no cell that a version has is free;
//   - of each data file as many cells are mapped as the books say.
//
// Thread safety: one thread's. Errors of what is looked at become findings.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/findings.h"
#include "map/volume_map.h"

namespace tplstore {

class MapCheck {
 public:
  // Opens the map, for reading. `name` is the volume's, for what is lost.
  MapCheck(Backend& backend, const std::string& folder, const Uuid& volume, std::string name,
           Findings& findings);

  // Else nothing of the volume can be read, which was told.
  bool is_readable() const { return map_ != nullptr; }
  VolumeMap& map() { return *map_; }
  const VersionRecord& current() const { return current_; }
  const std::vector<VersionRecord>& versions() const { return versions_; }  // frozen
  // The log says that its last life was closed.
  bool was_closed() const { return map_->recovery().was_closed_cleanly; }
  bool is_known_source(uint32_t source) const;
  bool is_free_file(uint32_t source) const;  // that is about to be removed

  // Looks at all of it; `visit` is given all cells, as far as they can be read.
  void run(const VisitCells& visit);
  bool has_unreadable() const { return has_unreadable_; }

  // Tells what is lost when cells of a data file are, in all versions that somebody can see.
  void add_lost(Finding& fault, uint32_t source, const BlockRange& blocks);

 private:
  void open(const Uuid& volume);
  void check_versions();
  void check_cells(const std::vector<FreeRange>& cells);
  void check_books();
  void tell_unreadable();
  template <typename Visit>
  void for_each_disk(const Visit& visit);

  Backend& backend_;
  const std::string folder_;
  const std::string name_;
  Findings& findings_;
  std::unique_ptr<VolumeMap> map_;
  VersionRecord current_;
  std::vector<VersionRecord> versions_;
  uint32_t base_ = 0;  // where it began as a fork, though it may be none any more
  std::map<uint32_t, uint64_t> removed_files_;
  std::vector<FreeRange> free_;
  std::map<uint32_t, uint64_t> counts_;  // of cells that are mapped, by source
  bool has_unreadable_ = false;
  struct Unreadable {
    BlockRange blocks;
    std::string why;
  };
  std::vector<Unreadable> unreadable_;
  uint64_t freed_but_mapped_ = 0;  // cells
  std::vector<FreeRange> freed_;   // some of those
};

}  // namespace tplstore
