// What the owner of a volume does about its forks, and about its being one.
//
// A fork is alive as long as its header is there and names this volume as its parent: so a fork
// that is removed or flattened needs to tell nobody. A volume that was removed while it has forks
// stays, without a name, until the last of them is gone.
//
// Thread safety: all. Errors: ENOENT for a version that is not there; ENOSPC.
#pragma once

#include <functional>
#include <string>

#include "base/mutex.h"
#include "volume/space.h"
#include "volume/versions.h"

namespace tplstore {

class Forks {
 public:
  Forks(OpenVolume& volume, Versions& versions, SpaceReclaimer& space)
      : volume_(volume), versions_(versions), space_(space) {}

  // Makes the objects of a fork of one of the versions, all durable; publishing its name is the
  // caller's. The version is pinned for it.
  void create(const std::string& version, const Uuid& fork);
  // A fork that is there, and whose version has lost its pin, gets that back; durably. ENOENT for a
  // version that is not there, or hidden.
  void pin_again(uint32_t version, const Uuid& fork);
  // Forgets forks that are gone; whether some are left.
  bool drop_dead();
  // Of a volume without a name, which only its forks need: removes all else.
  void keep_pinned_only();
  // Copies what the volume's versions have of its ancestors into files of its own. The volume that
  // it was a fork of, and needs no more. EBUSY while it has forks itself, or when readers that
  // began before still need the ancestors; ESHUTDOWN when the environment's stop was requested.
  Uuid flatten(const std::function<void(uint64_t done_bytes)>& progress);

 private:
  class None;

  void copy_foreign_cells(const std::function<void(uint64_t)>& progress);

  OpenVolume& volume_;
  Versions& versions_;
  SpaceReclaimer& space_;
  Mutex mutex_;                               // one fork at a time begins or ends
  bool flattens_ GUARDED_BY(mutex_) = false;  // no fork may begin
};

// Whether the volume `fork` is there and needs `parent`.
bool is_fork_of(Backend& backend, const Uuid& fork, const Uuid& parent);

}  // namespace tplstore
