// Log compaction: all trees are written anew into a log of the next generation, without what no
// version needs any more.
//
// A version is compared with what was copied before it (its parent), so that it costs what it
// changed (map/tree_copy.h).
//
// While the bulk is written, current goes on changing; each further pass writes only what changed
// since the pass before, by the same comparison. The last one, write_checkpoint(), is short and
// holds up commits; then "map" is pointed at the new log, and relocate() gives the trees in memory
// their words, by that comparison once more. The map does all this (VolumeMap::compact()).
//
// Thread safety: one thread; others change current between the passes. Errors: what the logs throw,
// upon which the new log is removed again unless it was kept.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "map/checkpoint.h"
#include "map/map_state.h"
#include "map/tree_copy.h"

namespace tplstore {

class Compaction {
 public:
  struct Version {
    uint32_t number = 0;
    uint32_t parent = 0;
    NodeRef root;
  };

  // `mutex` is the map's; `opening` what the new log's open frame says.
  Compaction(Backend& backend, const std::string& folder, const Uuid& volume,
             const std::shared_ptr<MapLog>& old, SpinningSharedMutex& mutex,
             const LogOpening& opening);

  bool has_written(uint32_t frozen) const { return versions_.contains(frozen); }
  // Writes frozen versions, parents before children, that were not written yet, and then what
  // current is now.
  void write(const std::vector<Version>& frozen, const Version& current);
  // Likewise, and the checkpoint of all, in which every row is written. Returns its offset.
  uint64_t write_checkpoint(const std::vector<Version>& frozen, MapSnapshot& snapshot);
  const std::shared_ptr<MapLog>& log() const { return fresh_; }
  // The new log counts from here on.
  void keep() { draft_.keep(); }
  // Gives the trees in memory, where current may have changed since, their words in the new log;
  // the map's lock is held. What throws has changed nothing.
  void relocate(MapState& state, MapSnapshot& snapshot);

 private:
  // The object of the new log, which is nobody's yet: removed at the end unless it is kept, and at
  // the beginning when it could not be removed at the end of an earlier attempt.
  class Draft {
   public:
    Draft(Backend& backend, std::string name);
    ~Draft();
    Draft(const Draft&) = delete;
    void keep() { is_kept_ = true; }

   private:
    Backend& backend_;
    const std::string name_;
    bool is_kept_ = false;
  };

  const CopiedTree& base_of(const Version& version) const;

  Draft draft_;
  std::shared_ptr<MapLog> fresh_;
  TreeCopier copier_;
  std::map<uint32_t, CopiedTree> versions_;  // that are written
  CopiedTree current_;                       // as of the last pass
  uint32_t current_number_ = 0;
  const CopiedTree none_;
};

}  // namespace tplstore
