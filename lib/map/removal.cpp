// Removing versions, and which cells are free then.
//
// A cell is allocated exactly while a retained version of its volume maps to it; hidden versions
// are retained until they are collected. A version's *floor* is its nearest retained ancestor:
// cells with sources above the floor are mapped by the version and those that descend from it
// only, since whatever it has from further down its ancestor has too. Hence:
//
//   - When current stops mapping a cell with a source above its floor, the cell is free.
//   - When a hidden version with at most one child is collected, those of its cells above its floor
//     that the child does not map are free, and the child's floor becomes the version's.
//
// Both happen under the map's lock, so every cell is decided once: what the child's root at that
// moment maps is left to the first rule, with the new floor.
//
// The same comparison tells what a removal would free. A version's count starts at 0, when it is
// frozen and all that it has current has too, and grows as current replaces things; after a change
// to its relatives it is counted anew when somebody asks.
#include <algorithm>
#include <cerrno>

#include "map/volume_map.h"

namespace tplstore {

// --- hiding

void VolumeMap::hide(const VersionChange&, const std::vector<uint32_t>& versions) {
  LogReservation reserved(*this, versions.size(), Reserve::kDeletions);
  const std::unique_lock guard(mutex_);
  for (const uint32_t version : versions) {
    const VersionRecord* found = table_.find(version);
    if (found == nullptr || found->is_removed())
      fail(ENOENT, fmt::format("version {}", version), "is not there");
  }
  change(reserved, [&] {
    for (const uint32_t version : versions) apply_hide(version);
  });
  for (const uint32_t version : versions)
    put_record(RecordHeader::make(RecordKind::kHide, version));
}

std::vector<uint32_t> VolumeMap::versions_for_readers() const {
  const std::shared_lock guard(mutex_);
  return {table_.for_readers().begin(), table_.for_readers().end()};
}

void VolumeMap::apply_hide(uint32_t version) {
  table_.hide(*table_.find(version));
  dirty_groups_.insert(VersionTable::group_of(version));
}

// --- collecting

// What there is to compare when a version goes. Its successor and its ancestor stand for what
// else needs its cells.
VolumeMap::Removal VolumeMap::removal_of(const VersionRecord& version) {
  Removal removal;
  removal.floor = table_.floor_of(version);
  removal.root = version.number == current_.number ? root_ : version.root;
  if (!version.children.empty()) removal.successor = *root_of(version.children.front());
  if (const VersionRecord* parent = table_.find(version.parent)) removal.ancestor = parent->root;
  return removal;
}

bool VolumeMap::wants_collection() const {
  const std::shared_lock guard(mutex_);
  return !removals_.empty() || table_.collectible().has_value();
}

bool VolumeMap::has_outstanding() const {
  const std::shared_lock guard(mutex_);
  return !removals_.empty() || !free_.is_empty() || table_.collectible().has_value() ||
         !table_.for_readers().empty();
}

bool VolumeMap::collect_one() {
  const std::lock_guard maintenance(maintenance_mutex_);
  run_removals();
  LogReservation reserved(*this, 1, Reserve::kDeletions);
  {
    const std::unique_lock guard(mutex_);
    const std::optional<uint32_t> version = table_.collectible();
    if (!version) return false;
    change(reserved, [&] { apply_collect(*version); });
    put_record(RecordHeader::make(RecordKind::kCollect, *version));
  }
  run_removals();
  return true;
}

void VolumeMap::apply_collect(uint32_t version) {
  removals_.push_back(removal_of(*table_.find(version)));
  const VersionRecord gone = table_.take_out(version, current_);
  unwritten_versions_.erase(version);
  dirty_groups_.insert(VersionTable::group_of(version));
  if (table_.find(gone.parent) != nullptr)
    dirty_groups_.insert(VersionTable::group_of(gone.parent));
  for (const uint32_t child : gone.children)
    if (child != current_.number) dirty_groups_.insert(VersionTable::group_of(child));
  refresh_floor();
  has_removed_ = true;
}

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

// Adds what a region frees: to `ranges` what may be punched, to `counts` the cells of each file.
void free_lone_cells(const TreeReader::Removal& region, uint32_t floor,
                     std::vector<FreeRange>& ranges, std::map<uint32_t, uint64_t>& counts) {
  const uint64_t base = uint64_t{region.region} * kRegionBlocks;
  visit_lone_cells(region, floor, [&](uint32_t source, uint32_t first, uint32_t count) {
    counts[source] += count;
    const bool is_shared = std::any_of(region.successor.begin(), region.successor.end(),
                                       [&](const Interval& i) { return i.source == source; });
    // Where nothing of a file is needed in all of the region, one long hole costs the least.
    const FreeRange range =
        is_shared ? FreeRange{source, count, base + first} : FreeRange{source, kRegionBlocks, base};
    if (ranges.empty() || ranges.back() != range) ranges.push_back(range);
  });
}

}  // namespace

// Compares what was taken out with what came after it. maintenance_mutex_ is held: no checkpoint
// may come between a removal and the free ranges that follow from it.
void VolumeMap::run_removals() {
  while (true) {
    Removal removal;
    std::shared_ptr<MapLog> log;
    {
      const std::shared_lock guard(mutex_);
      if (removals_.empty()) return;
      removal = removals_.front();
      log = log_;
    }
    std::vector<FreeRange> ranges;
    std::map<uint32_t, uint64_t> counts;
    TreeReader reader(*log, mutex_);
    const uint64_t garbage_bytes = reader.walk_removal(
        removal.root, removal.successor, removal.ancestor, [&](const TreeReader::Removal& region) {
          free_lone_cells(region, removal.floor, ranges, counts);
          if (ranges.size() > 2 * kFreeRangesPerNode && (ranges.size() & (ranges.size() - 1)) == 0)
            join_free_ranges(ranges);
        });
    join_free_ranges(ranges);

    // Each cell must be counted off once: from here on nothing fails.
    const std::unique_lock guard(mutex_);
    free_.make_room(ranges.size() + counts.size());
    for (const auto& [source, count] : counts)
      if (release_cells(source, count)) free_.add({source, 0, 0});
    for (const FreeRange& range : ranges) free_.add(range);
    live_bytes_ -= std::min(live_bytes_, garbage_bytes);
    removals_.erase(removals_.begin());
  }
}

// Current has stopped mapping cells that nothing else maps. There is room for the free range.
void VolumeMap::release(uint32_t source, uint64_t first, uint32_t count) {
  const bool is_last = release_cells(source, count);
  free_.add(is_last ? FreeRange{source, 0, 0} : FreeRange{source, count, first});
}

// Takes cells off a removed version's file; whether it has none left.
bool VolumeMap::release_cells(uint32_t source, uint64_t count) {
  const auto file = table_.removed_files.find(source);
  if (file == table_.removed_files.end()) return false;
  file->second -= std::min(file->second, count);
  if (file->second > 0) return false;
  table_.removed_files.erase(file);
  return true;
}

// --- free ranges

std::vector<FreeRange> VolumeMap::take_free_ranges(size_t max) {
  const std::unique_lock guard(mutex_);
  std::vector<FreeRange> ranges = free_.take(max);
  free_waiting_.store(free_.waiting(), std::memory_order_relaxed);
  return ranges;
}

void VolumeMap::finish_free_ranges(const std::set<uint32_t>& failed) {
  const std::unique_lock guard(mutex_);
  free_.finish(failed);
}

void VolumeMap::retry_free_ranges() {
  const std::unique_lock guard(mutex_);
  free_.retry();
}

void VolumeMap::give_back_free_ranges() {
  const std::unique_lock guard(mutex_);
  free_.give_back();
}

void VolumeMap::sync_holes() {
  {
    const std::unique_lock guard(mutex_);
    if (!free_.begin_sync()) return;
  }
  sync_holes_();
  const std::unique_lock guard(mutex_);
  free_.end_sync();
  has_punched_ = true;
}

bool VolumeMap::wants_to_free() const {
  const std::shared_lock guard(mutex_);
  return free_.wants_commit();
}

// --- what a removal would free

uint64_t VolumeMap::count_cells(const TreeReader::Removal& region, uint32_t floor) {
  uint64_t cells = 0;
  visit_lone_cells(region, floor, [&](uint32_t, uint32_t, uint32_t count) { cells += count; });
  return cells;
}

uint64_t VolumeMap::own_blocks(uint32_t version) {
  {
    const std::shared_lock guard(mutex_);
    const VersionRecord* record = record_of(version);
    if (record == nullptr || record->children.size() > 1 || table_.is_pinned(version)) return 0;
    if (record->is_own_known()) return record->own_blocks;
  }
  const std::lock_guard maintenance(maintenance_mutex_);
  const std::lock_guard versions(version_mutex_);
  Removal removal;
  std::shared_ptr<MapLog> log;
  {
    const std::unique_lock guard(mutex_);
    VersionRecord* record = record_of(version);
    if (record == nullptr || record->children.size() > 1) return 0;
    if (record->is_own_known()) return record->own_blocks;
    removal = removal_of(*record);
    // What current changes from here on is added and taken off as it happens.
    record->set_own(0);
    log = log_;
  }
  uint64_t cells = 0;
  TreeReader reader(*log, mutex_);
  try {
    reader.walk_removal(
        removal.root, removal.successor, removal.ancestor,
        [&](const TreeReader::Removal& region) { cells += count_cells(region, removal.floor); });
  } catch (...) {
    const std::unique_lock guard(mutex_);
    record_of(version)->set_own(std::nullopt);
    throw;
  }
  const std::unique_lock guard(mutex_);
  VersionRecord* record = record_of(version);
  record->own_blocks += cells;
  if (version != current_.number) dirty_groups_.insert(VersionTable::group_of(version));
  return record->own_blocks;
}

}  // namespace tplstore
