// Mends segments at the origin from copies of them.
//
// Thread safety: all functions. Who calls it sees to it that the segment is not removed meanwhile.
#pragma once

#include "backend/backend.h"
#include "template/segment_copies.h"

namespace tplstore {

// True when a copy had all of it: the origin's has the same bytes now, durably. What was right at
// the origin is not written.
bool repair_segment(Backend& origin, const Hash128& name, uint32_t block_count,
                    const HashSecret& secret, SegmentCopies& copies);

}  // namespace tplstore
