// The walk over the trees skips what they share (map/tree_reader.h); here are the regions that may
// differ, interval by interval.
#include "map/comparison.h"

#include <algorithm>

namespace tplstore {
namespace {

// The parts of a region's intervals with sources above `floor` that the successor does not map.
template <typename Visit>
void visit_lone_cells(const TreeReader::Removal& region, uint32_t floor, Visit visit) {
  auto other = region.successor.begin();
  for (const Interval& interval : region.version) {
    if (interval.source == kSourceZero || interval.source <= floor) continue;
    uint32_t at = interval.first;
    while (at < interval.end()) {
      while (other != region.successor.end() && other->end() <= at) ++other;
      // Up to where the successor's interval begins, or ends when we are in it.
      const bool is_inside = other != region.successor.end() && other->first <= at;
      const uint32_t next = other == region.successor.end() ? interval.end()
                            : is_inside                     ? other->end()
                                                            : uint32_t{other->first};
      const uint32_t end = std::min(interval.end(), next);
      if (!is_inside || other->source != interval.source) visit(interval.source, at, end - at);
      at = end;
    }
  }
}

void add_lone_cells(const TreeReader::Removal& region, uint32_t floor, LoneCells& cells) {
  const uint64_t base = uint64_t{region.region} * kRegionBlocks;
  visit_lone_cells(region, floor, [&](uint32_t source, uint32_t first, uint32_t count) {
    cells.counts[source] += count;
    const bool is_shared = std::any_of(region.successor.begin(), region.successor.end(),
                                       [&](const Interval& i) { return i.source == source; });
    // Where nothing of a file is needed in all of the region, one long hole costs the least.
    const FreeRange range =
        is_shared ? FreeRange{source, count, base + first} : FreeRange{source, kRegionBlocks, base};
    if (cells.ranges.empty() || cells.ranges.back() != range) cells.ranges.push_back(range);
  });
}

}  // namespace

LoneCells find_lone_cells(TreeReader& reader, const Removal& removal) {
  LoneCells cells;
  std::vector<FreeRange>& ranges = cells.ranges;
  cells.garbage_bytes = reader.walk_removal(
      removal.root, removal.successor, removal.ancestor, [&](const TreeReader::Removal& region) {
        add_lone_cells(region, removal.floor, cells);
        if (ranges.size() > 2 * kFreeRangesPerNode && (ranges.size() & (ranges.size() - 1)) == 0)
          join_free_ranges(ranges);
      });
  join_free_ranges(ranges);
  return cells;
}

uint64_t count_lone_cells(TreeReader& reader, const Removal& removal) {
  uint64_t cells = 0;
  reader.walk_removal(
      removal.root, removal.successor, removal.ancestor, [&](const TreeReader::Removal& region) {
        visit_lone_cells(region, removal.floor,
                         [&](uint32_t, uint32_t, uint32_t count) { cells += count; });
      });
  return cells;
}

}  // namespace tplstore
