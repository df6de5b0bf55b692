// Walks over trees skip what they share (map/tree_reader.h); here are the regions that may differ,
// interval by interval.
#include "map/comparison.h"

#include <algorithm>

namespace tplstore {
namespace {

struct RemovedRegion {
  uint64_t first_block;
  std::vector<Interval> version;
  std::vector<Interval> successor;
};

// Visits the regions where the version may have cells that neither successor nor ancestor has.
// Returns the bytes of nodes in the log that only the version leads to.
template <typename Visit>
uint64_t visit_removed(TreeReader& reader, const Removal& removal, Visit visit) {
  uint64_t garbage_bytes = 0;
  const auto leads_on = [&](std::vector<NodeRef>& slots, uint32_t level) {
    const NodeRef& version = slots[0];
    const NodeRef& successor = slots[1];
    if (version.is_empty() || reader.is_same(version, successor) ||
        reader.is_same(version, slots[2]))
      return false;
    // The successor's leaf may be a delta over this one, which is needed then.
    const bool is_base = level == 0 && successor.leads_on();
    if (version.leads_on() && !version.is_dirty_node() && !is_base)
      garbage_bytes += version.on_disk().address().length();
    return true;
  };
  reader.walk(
      {removal.root, removal.successor, removal.ancestor}, 0, kRegionsMax, leads_on,
      [&](uint32_t region, const std::vector<NodeRef>& slots) {
        visit(RemovedRegion{uint64_t{region} * kRegionBlocks, reader.intervals(slots[0], region),
                            reader.intervals(slots[1], region)});
      });
  return garbage_bytes;
}

// The parts of a region's intervals with sources above `floor` that the successor does not map.
template <typename Visit>
void visit_lone_cells(const RemovedRegion& region, uint32_t floor, Visit visit) {
  for_each_stretch(region.version, region.successor,
                   [&](uint32_t first, uint32_t count, uint32_t source, uint32_t successors) {
                     if (source == kSourceZero || source == kSourceUnmapped) return;
                     if (source > floor && source != successors) visit(source, first, count);
                   });
}

void add_lone_cells(const RemovedRegion& region, uint32_t floor, LoneCells& cells) {
  visit_lone_cells(region, floor, [&](uint32_t source, uint32_t first, uint32_t count) {
    cells.counts[source] += count;
    const bool is_shared = std::any_of(region.successor.begin(), region.successor.end(),
                                       [&](const Interval& i) { return i.source == source; });
    // Where nothing of a file is needed in all of the region, one long hole costs the least.
    const FreeRange range = is_shared ? FreeRange{source, count, region.first_block + first}
                                      : FreeRange{source, kRegionBlocks, region.first_block};
    if (cells.ranges.empty() || cells.ranges.back() != range) cells.ranges.push_back(range);
  });
}

class CellVisit {
 public:
  CellVisit(TreeReader& reader, const VisitCells& visit, const VisitUnreadable& unreadable)
      : reader_(reader), visit_(visit), unreadable_(unreadable) {}

  void walk(std::vector<NodeRef> slots, uint32_t level, uint32_t index) {
    reader_.remove_duplicates(slots);
    if (slots.empty()) return;
    if (level == 0) return visit_region(slots, index);
    std::vector<PageSlots> pages;
    for (const NodeRef& slot : slots)
      attempt(level, index, [&] { pages.push_back(reader_.slots_below(slot, level, index)); });
    for (uint32_t i = 0; i < kPageSlots; ++i) {
      std::vector<NodeRef> below;
      below.reserve(pages.size());
      for (const PageSlots& page : pages) below.push_back(page[i]);
      walk(std::move(below), level - 1, index * kPageSlots + i);
    }
  }

 private:
  template <typename Read>
  void attempt(uint32_t level, uint32_t index, const Read& read) {
    try {
      read();
    } catch (const Error& error) {
      const uint64_t blocks = uint64_t{kRegionBlocks} << (6 * level);
      unreadable_({index * blocks, blocks}, error);
    }
  }
  void visit_region(const std::vector<NodeRef>& slots, uint32_t region) {
    std::vector<FreeRange> cells;
    for (const NodeRef& slot : slots)
      attempt(0, region, [&] {
        for (const Interval& interval : reader_.intervals(slot, region))
          if (interval.source != kSourceZero)
            cells.push_back({interval.source, interval.count,
                             uint64_t{region} * kRegionBlocks + interval.first});
      });
    if (cells.empty()) return;
    join_free_ranges(cells);
    visit_(region, cells);
  }

  TreeReader& reader_;
  const VisitCells& visit_;
  const VisitUnreadable& unreadable_;
};

}  // namespace

void visit_cells(TreeReader& reader, std::vector<NodeRef> roots, const VisitCells& visit,
                 const VisitUnreadable& unreadable) {
  CellVisit(reader, visit, unreadable).walk(std::move(roots), kPageLevels, 0);
}

void find_difference(TreeReader& reader, const NodeRef& a, const NodeRef& b,
                     const BlockRange& blocks, const VisitDifference& visit) {
  const uint64_t end = blocks.first + blocks.count;
  reader.walk(
      {a, b}, blocks.region(), (end - 1) / kRegionBlocks + 1,
      [&](const std::vector<NodeRef>& slots, uint32_t) {
        return !reader.is_same(slots[0], slots[1]);
      },
      [&](uint32_t region, const std::vector<NodeRef>& slots) {
        for_each_stretch(
            reader.intervals(slots[0], region), reader.intervals(slots[1], region),
            [&](uint32_t at, uint32_t count, uint32_t source_a, uint32_t source_b) {
              const uint64_t begin = std::max(blocks.first, uint64_t{region} * kRegionBlocks + at);
              const uint64_t stop = std::min(end, uint64_t{region} * kRegionBlocks + at + count);
              if (source_a == source_b || begin >= stop) return;
              visit({{begin, stop - begin}, source_a}, {{begin, stop - begin}, source_b});
            });
      });
}

LoneCells find_lone_cells(TreeReader& reader, const Removal& removal) {
  LoneCells cells;
  std::vector<FreeRange>& ranges = cells.ranges;
  cells.garbage_bytes = visit_removed(reader, removal, [&](const RemovedRegion& region) {
    add_lone_cells(region, removal.floor, cells);
    if (ranges.size() > 2 * kFreeRangesPerNode && (ranges.size() & (ranges.size() - 1)) == 0)
      join_free_ranges(ranges);
  });
  join_free_ranges(ranges);
  return cells;
}

uint64_t count_lone_cells(TreeReader& reader, const Removal& removal) {
  uint64_t cells = 0;
  visit_removed(reader, removal, [&](const RemovedRegion& region) {
    visit_lone_cells(region, removal.floor,
                     [&](uint32_t, uint32_t, uint32_t count) { cells += count; });
  });
  return cells;
}

std::vector<FreeRange> find_cells_up_to(uint32_t base, TreeReader& reader,
                                        std::vector<NodeRef> roots, uint64_t begin, uint64_t end) {
  std::vector<FreeRange> all;
  const auto leads_on = [&](std::vector<NodeRef>& slots, uint32_t) {
    reader.remove_duplicates(slots);
    return !slots.empty();
  };
  const auto visit = [&](uint32_t region, const std::vector<NodeRef>& slots) {
    std::vector<FreeRange> cells;
    for (const NodeRef& slot : slots)
      for (const Interval& interval : reader.intervals(slot, region))
        if (interval.source != kSourceZero && interval.source <= base)
          cells.push_back(
              {interval.source, interval.count, uint64_t{region} * kRegionBlocks + interval.first});
    join_free_ranges(cells);
    all.insert(all.end(), cells.begin(), cells.end());
  };
  reader.walk(std::move(roots), begin, end, leads_on, visit);
  join_free_ranges(all);
  return all;
}

}  // namespace tplstore
