// Making the objects of a map that is new: "map.1" and "map" in a folder, durable on return but for
// the folder itself, and as if the map had been closed.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "map/map_state.h"

namespace tplstore {

// Of an empty volume.
void create_map(Backend& backend, const std::string& folder, const Uuid& volume,
                uint64_t size_bytes);

// Of a fork of `base`, a version of volume `parent` with these sources, log and lock: a copy of
// that version's tree, so that a read is one lookup at any depth of forks. The numbers of its
// versions go on where the parent's version had got to, so a source says by itself whose file a
// block is in: up to the base, an ancestor's, which the source table names.
// Returns how many blocks it has of others.
uint64_t create_fork_map(Backend& backend, const std::string& folder, const Uuid& fork,
                         const Uuid& parent, const VersionRecord& base,
                         const std::vector<SourceRow>& sources, const std::shared_ptr<MapLog>& from,
                         SpinningSharedMutex& mutex);

}  // namespace tplstore
