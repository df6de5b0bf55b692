// What a map was when its log ended: the checkpoint that counts, and the records that came after
// it, applied as they were when they happened.
//
// Errors: Error(EIO) for damage, Error(EINVAL) for a record of a kind that is not known.
#pragma once

#include <vector>

#include "map/map_pointer.h"
#include "map/map_state.h"
#include "map/update_journal.h"

namespace tplstore {

struct Recovery {
  LogPosition end{};  // where the log goes on
  bool was_closed_cleanly = false;
  // Current at the checkpoint: its data file, and those of later versions, may not be durable.
  uint32_t first_current = 0;
  // What the last life kept beside the log, and how far the log has it.
  JournalName journal;
  uint64_t journal_position = 0;
  uint64_t replayed_bytes = 0;  // of records
  uint64_t loads = 0;           // of nodes
};

// Reads a log, which nothing else does meanwhile, from what `pointer` says on.
MapState recover(MapLog& log, const MapPointer& pointer, Recovery& recovery);

// Applies records of a journal, which end what was recovered. False when they cannot have followed
// on that: then the state is to be used no more.
bool apply_kept(MapState& state, MapLog& log, std::vector<MapRecord> records, Recovery& recovery);

}  // namespace tplstore
