// Comparing the trees of versions: what differs between two, what only one that is removed maps,
// what any of them has of ancestors.
//
// Thread safety: none needed; what is compared does not change. Errors: Error(EIO) for damage.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "map/free_ranges.h"
#include "map/tree_reader.h"

namespace tplstore {

// The runs of blocks that come from elsewhere in tree `b` than in `a`, in rising order; in time
// proportional to them.
using VisitDifference = std::function<void(const Run& a, const Run& b)>;
void find_difference(TreeReader& reader, const NodeRef& a, const NodeRef& b,
                     const BlockRange& blocks, const VisitDifference& visit);

// What there is to compare when a version is removed, or would be. Successor and ancestor stand for
// what else needs the version's cells; of those with sources up to the floor it is known that
// others do. See map/map_state.h for when that makes cells free that nobody else maps.
struct Removal {
  uint32_t floor = 0;
  NodeRef root;
  NodeRef successor;
  NodeRef ancestor;
};

struct LoneCells {
  std::vector<FreeRange> ranges;        // that may be punched, joined
  std::map<uint32_t, uint64_t> counts;  // cells, by source
  uint64_t garbage_bytes = 0;           // of nodes in the log that only the version led to, as far
                                        // as that can be told without reading more
};
LoneCells find_lone_cells(TreeReader& reader, const Removal& removal);
uint64_t count_lone_cells(TreeReader& reader, const Removal& removal);

// The cells with sources up to `base` that trees have in regions [begin, end), joined.
std::vector<FreeRange> find_cells_up_to(uint32_t base, TreeReader& reader,
                                        std::vector<NodeRef> roots, uint64_t begin, uint64_t end);

// Visits the regions in which trees have cells, in rising order, with those cells, joined: each
// once, however many trees have it. What of the trees cannot be read is told of and left out.
using VisitCells = std::function<void(uint32_t region, const std::vector<FreeRange>& cells)>;
using VisitUnreadable = std::function<void(const BlockRange& blocks, const Error& error)>;
void visit_cells(TreeReader& reader, std::vector<NodeRef> roots, const VisitCells& visit,
                 const VisitUnreadable& unreadable);

}  // namespace tplstore
