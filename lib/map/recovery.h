// What a map was when its log ended: the checkpoint that counts, and the records that came after
// it, applied as they were when they happened.
//
// Errors: Error(EIO) for damage, Error(EINVAL) for a record of a kind that is not known.
#pragma once

#include <set>

#include "map/map_pointer.h"
#include "map/map_state.h"

namespace tplstore {

struct Recovery {
  LogPosition end{};  // where the log goes on
  bool was_closed_cleanly = false;
  // Frozen versions whose data files may not be durable, since their freezing was replayed.
  std::set<uint32_t> replayed_versions;
  uint64_t replayed_bytes = 0;  // of records
  uint64_t loads = 0;           // of nodes
};

// Reads a log, which nothing else does meanwhile, from what `pointer` says on.
MapState recover(MapLog& log, const MapPointer& pointer, Recovery& recovery);

}  // namespace tplstore
