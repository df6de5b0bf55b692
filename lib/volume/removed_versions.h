// Versions that were removed and are kept for a while: objects "removed/UUID.N", of volume UUID and
// its version N.
//
// To the map such a version is one like all others, so that its cells stay, and its name; but as
// long as the object is there nobody finds it. What ends that is one step either way: the object is
// removed, and the version is there again; or the version is removed from the map, durably, and the
// object after it. Versions' numbers are never used again, so an object that is left says nothing.
//
// Thread safety: functions; what changes something is called with the volume's VersionChange.
// Errors: of one that is damaged nobody can tell until when: the version is kept.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "backend/backend.h"
#include "base/bytes.h"

namespace tplstore {

struct RemovedVersion {
  int64_t removed_ns = 0;
  int64_t until_ns = std::numeric_limits<int64_t>::max();
  bool is_damaged = false;  // then both are unknown
};

// By their numbers.
std::map<uint32_t, RemovedVersion> find_removed_versions(Backend& backend, const Uuid& volume);
// The volumes that may have some.
std::set<Uuid> volumes_of_removed_versions(Backend& backend);
// Durable on return. False when it is there already.
bool put_removed_version(Backend& backend, const Uuid& volume, uint32_t number,
                         const RemovedVersion& removed);
void drop_removed_version(Backend& backend, const Uuid& volume, uint32_t number);
// What there is of a volume that is gone.
void drop_removed_versions(Backend& backend, const Uuid& volume);

// The volume and the version that an object in "removed" is of, if it is one of these.
std::optional<std::pair<Uuid, uint32_t>> parse_removed_version(const std::string& part);

}  // namespace tplstore
