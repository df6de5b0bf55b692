// Comparing a version that is removed, or would be, with what came after it: which of its cells
// nobody else maps. See map/map_state.h for when that makes them free.
//
// Thread safety: none needed; what is compared does not change. Errors: Error(EIO) for damage.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "map/free_ranges.h"
#include "map/tree_reader.h"

namespace tplstore {

// What there is to compare. Successor and ancestor stand for what else needs the version's cells;
// of those with sources up to the floor it is known that others do.
struct Removal {
  uint32_t floor = 0;
  NodeRef root;
  NodeRef successor;
  NodeRef ancestor;
};

struct LoneCells {
  std::vector<FreeRange> ranges;        // that may be punched, joined
  std::map<uint32_t, uint64_t> counts;  // cells, by source
  uint64_t garbage_bytes = 0;           // of nodes in the log that only the version led to
};

LoneCells find_lone_cells(TreeReader& reader, const Removal& removal);
uint64_t count_lone_cells(TreeReader& reader, const Removal& removal);

}  // namespace tplstore
