// Moves the segments of a store to another directory, or back into the store.
//
//   claim the directory → copy every segment, and read it back → gc.lock, alone: copy what has come
//   since, remove what has gone → name the new place → remove the segments of the old one, and last
//   its name
//
// Until the new place is named all is as it was; from then on all is read there. So it can be
// interrupted anywhere and begun again, and what is left of an interrupted one goes with the next,
// or with gc. Readers go on meanwhile, servers too (template/origin.h); imports and removals have
// to wait while the last segments are copied only.
//
// Thread safety: all; a second one is EBUSY.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "template/origin.h"

namespace tplstore {

struct OriginMove {
  uint64_t segments = 0;      // that the origin has
  uint64_t copied_bytes = 0;  // the others were there already
  std::string left;           // where segments are left, since it cannot be reached
};
struct OriginMoveOptions {
  OpenLocation open_location;
  std::function<void(uint64_t done_segments, uint64_t segments)> progress = {};
  std::function<bool()> interrupted = {};  // Error(EINTR) soon after it says true
};

// Moves the segments to `location`; empty: into the store. EINVAL when they are there already;
// EEXIST when another store has it; EIO for a segment that is damaged, which is to be repaired
// first.
OriginMove move_origin(Backend& store, const std::string& location,
                       const OriginMoveOptions& options);

// Removes the segments of places where they are no more, unless they are just being moved. The
// location of one that cannot be reached now, or nothing.
std::string leave_former_origins(Backend& store, const OpenLocation& open_location);

}  // namespace tplstore
