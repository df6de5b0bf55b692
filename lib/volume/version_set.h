// Versions of several volumes that are of one moment: all of them are there, or none is.
//
// What is to be made is written down before the first volume is frozen: the object "sets/ID" names
// the volumes, and the number that the version will have in each. It is removed when all are
// durable, and that is the moment in which they come to be: as long as it is there, none of them
// is listed, found or read. So nothing has to be completed after a crash: whoever opens one of the
// volumes for writing next removes the version there, if there is one, and notes that in
// "sets/ID.UUID", from which moment on the set has nothing to say about this volume. The last one
// removes the set. A set that cannot be read, or is damaged, is passed over.
//
// Thread safety: all functions; what changes something is called with the volume's VersionChange.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "volume/open_volume.h"

namespace tplstore {

struct VersionSet {
  struct Member {
    Uuid volume;
    uint32_t number = 0;
  };
  std::string id;
  std::vector<Member> members;
  std::set<Uuid> settled;  // those about which it has nothing to say any more

  bool is_damaged() const { return members.empty(); }
};
inline constexpr size_t kVersionSetMax = 1000;  // volumes

std::vector<VersionSet> find_version_sets(Backend& backend);
// The versions of a volume that are not there yet, or never will be.
std::set<uint32_t> pending_versions(Backend& backend, const Uuid& volume);

void put_version_set(Backend& backend, const VersionSet& set);
// Durable when it returns.
void remove_version_set(Backend& backend, const VersionSet& set);
// Removes what sets that are gone have left.
void remove_settled_marks(Backend& backend);
// Removes what sets that came to nothing have left in a volume.
void settle_version_sets(OpenVolume& volume, VersionChange& change);

}  // namespace tplstore
