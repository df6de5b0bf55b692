// The rules by which records change the state. In each of them what may fail comes first where a
// failure is to leave all as it was.
#include "map/map_state.h"

#include <algorithm>
#include <type_traits>

#include "base/names.h"
#include "base/units.h"

namespace tplstore {
namespace {

constexpr uint32_t kEvictPages = 64;

}  // namespace

MapState::MapState(VersionRecord current, VersionTable table,
                   const std::vector<FreeRange>& free_ranges, uint64_t live_bytes)
    : current_(std::move(current)), table_(std::move(table)) {
  usage_.live_bytes = live_bytes;
  free_.add_durable(free_ranges);
  table_.link_all(current_);
  refresh_floor();
}

// --- records

bool MapState::allows(const MapRecord& record) const {
  const auto is_there = [this](uint32_t version) { return table_.find(version) != nullptr; };
  if (const auto* update = std::get_if<UpdateRecord>(&record))
    return update->count > 0 && update->first + update->count <= blocks_of(current_.size_bytes) &&
           (update->source == kSourceUnmapped || update->source <= current_.number);
  if (const auto* freeze = std::get_if<FreezeRecord>(&record))
    return freeze->next == current_.number + 1 &&
           (freeze->parent == current_.number || is_there(freeze->parent));
  if (const auto* resize = std::get_if<ResizeRecord>(&record))
    return resize->size_bytes <= kVolumeBytesMax && resize->size_bytes >= current_.size_bytes;
  if (const auto* hide = std::get_if<HideRecord>(&record)) return is_there(hide->version);
  if (const auto* collect = std::get_if<CollectRecord>(&record))
    return is_there(collect->version) && table_.find(collect->version)->children.size() <= 1;
  if (const auto* pin = std::get_if<PinRecord>(&record)) return is_there(pin->version);
  return true;
}

MapState::Applied MapState::apply(MapRecord& record) {
  if (auto* update = std::get_if<UpdateRecord>(&record)) return apply(*update);
  std::visit(
      [this](const auto& other) {
        if constexpr (!std::is_same_v<decltype(other), const UpdateRecord&>) change(other);
      },
      record);
  return {std::nullopt, true};
}

MapState::Applied MapState::apply(UpdateRecord& record) {
  Applied applied;
  while (record.count > 0) {
    const Run part{record.in_first_region(), record.source};
    // A leaf must be looked into even if all of it is replaced: what becomes of the cells it leads
    // to depends on it.
    RunList before;
    applied.missing = tplstore::find(current_.root, part, before);
    if (applied.missing) return applied;
    if (before.size() != 1 || before[0].source != record.source) {
      // What may fail comes first, so that nothing is half done.
      free_.make_room(before.size());
      AssignEffect effect;
      tplstore::assign(current_.root, part, current_.number, effect);
      account(before, part);
      usage_.dirty_leaves += effect.leaves_dirtied;
      usage_.leaves_dirtied += effect.leaves_dirtied;
      usage_.live_bytes -= std::min(usage_.live_bytes, effect.superseded_bytes);
      applied.has_changed = true;
    }
    record.remove_first(part.count);
  }
  return applied;
}

// Keeps the books of cells: what the blocks came from before, current does not map any more. There
// is room for as many free ranges.
void MapState::account(const RunList& before, const Run& now) {
  for (size_t i = 0; i < before.size(); ++i) {
    const Run& run = before[i];
    if (run.source == kSourceZero || run.source == kSourceUnmapped) continue;
    if (run.source == current_.number) {
      current_.file_blocks -= run.count;
      current_.own_blocks -= run.count;
      continue;
    }
    if (run.source <= table_.base()) current_.foreign_blocks -= run.count;
    if (run.source > floor_) {
      current_.own_blocks -= run.count;
      const bool is_last = release_cells(run.source, run.count);
      free_.add(is_last ? FreeRange{run.source, 0, 0}
                        : FreeRange{run.source, static_cast<uint32_t>(run.count), run.first});
    } else if (parent_ != nullptr && run.source > parent_floor_) {
      parent_->own_blocks += run.count;
      is_parent_dirty_ = true;
    }
  }
  if (now.source != current_.number) return;
  current_.file_blocks += now.count;
  current_.own_blocks += now.count;
}

// Takes cells off a removed version's file; whether it has none left.
bool MapState::release_cells(uint32_t source, uint64_t count) {
  const auto file = table_.removed_files.find(source);
  if (file == table_.removed_files.end()) return false;
  file->second -= std::min(file->second, count);
  if (file->second > 0) return false;
  table_.removed_files.erase(file);
  return true;
}

void MapState::refresh_floor() {
  if (is_parent_dirty_) dirty_groups_.insert(parent_group_);
  floor_ = table_.floor_of(current_);
  parent_ = table_.find(current_.parent);
  parent_group_ = VersionTable::group_of(current_.parent);
  parent_floor_ = parent_ == nullptr ? 0 : table_.floor_of(*parent_);
  is_parent_dirty_ = false;
}

void MapState::change(const FreezeRecord& record) {
  VersionRecord frozen = current_;
  frozen.created_ns = record.created_ns;
  frozen.name = record.name;
  frozen.note = record.note;
  frozen.origin = record.origin;
  frozen.flags &= ~kVersionUnswept;
  if (record.is_unswept) frozen.flags |= kVersionUnswept;
  if (record.for_reader) frozen.flags |= kVersionForReader;
  const uint32_t number = frozen.number;
  if (frozen.file_blocks == 0) free_.add({number, 0, 0});
  mark_row(number);
  table_.add(std::move(frozen));

  VersionRecord& parent = table_.all().at(record.parent);
  parent.children.push_back(record.next);
  // What it shares with its only child it does not keep alone, and that is everything so far.
  parent.set_own(parent.children.size() == 1 ? std::optional<uint64_t>(0) : std::nullopt);
  mark_row(parent.number);

  current_ = VersionRecord{};
  current_.number = record.next;
  current_.parent = parent.number;
  current_.created_ns = record.created_ns;
  current_.size_bytes = record.size_bytes;
  current_.foreign_blocks = parent.foreign_blocks;
  current_.set_own(0);
  current_.root = parent.root;
  refresh_floor();
}

void MapState::change(const ResizeRecord& record) { current_.size_bytes = record.size_bytes; }

void MapState::change(const HideRecord& record) {
  table_.hide(*table_.find(record.version));
  mark_row(record.version);
}

void MapState::change(const CollectRecord& record) {
  removals_.push_back(removal_of(*table_.find(record.version)));
  const VersionRecord gone = table_.take_out(record.version, current_);
  mark_row(record.version);
  if (table_.find(gone.parent) != nullptr) mark_row(gone.parent);
  for (const uint32_t child : gone.children)
    if (child != current_.number) mark_row(child);
  refresh_floor();
  usage_.has_removed = true;
}

void MapState::change(const PinRecord& record) {
  const Pin pin{record.version, 0, record.fork};
  if (std::find(table_.pins.begin(), table_.pins.end(), pin) == table_.pins.end())
    table_.pins.push_back(pin);
}

void MapState::change(const UnpinRecord& record) {
  std::erase_if(table_.pins, [&](const Pin& pin) { return pin.fork == record.fork; });
}

void MapState::change(const FlattenBeginRecord&) {
  table_.flattens = true;
  // The cells of ancestors are counted among what a version keeps alone from here on.
  const auto forget_own = [this](VersionRecord& version) {
    if (table_.find(version.parent) == nullptr) version.set_own(std::nullopt);
  };
  for (auto& [number, version] : table_.all()) {
    forget_own(version);
    if (!version.is_own_known()) mark_row(number);
  }
  forget_own(current_);
  refresh_floor();
}

void MapState::change(const FlattenEndRecord&) {
  table_.sources.clear();
  table_.flattens = false;
  for (auto& [number, version] : table_.all()) {
    version.foreign_blocks = 0;
    mark_row(number);
  }
  current_.foreign_blocks = 0;
  refresh_floor();
}

// --- what is there

VersionRecord* MapState::find(uint32_t version) {
  return const_cast<VersionRecord*>(std::as_const(*this).find(version));
}

std::vector<VersionRecord> MapState::frozen_records() const {
  std::vector<VersionRecord> list;
  for (const auto& [number, version] : table_.all()) list.push_back(without_root(version));
  return list;
}

std::optional<VersionRecord> MapState::record_of(const std::string& number_or_name) const {
  const auto number = parse_version_number(number_or_name);
  const VersionRecord* found = number ? table_.find(*number) : table_.find_name(number_or_name);
  if (found == nullptr) return std::nullopt;
  return without_root(*found);
}

bool MapState::frees_cells(const RunList& runs) const {
  for (size_t i = 0; i < runs.size(); ++i)
    if (runs[i].source != kSourceUnmapped && runs[i].source > floor_) return true;
  return false;
}

bool MapState::wants_collection() const {
  return !removals_.empty() || table_.collectible().has_value();
}

bool MapState::has_outstanding() const {
  return wants_collection() || !free_.is_empty() || !table_.for_readers().empty() ||
         !unswept_versions().empty();
}

// --- what no record depends on

void MapState::install(uint32_t version, const MissingNode& missing, NodeRef node) {
  VersionRecord* record = find(version);
  if (record != nullptr) tplstore::install(record->root, missing, std::move(node));
}

bool MapState::evict_some() {
  evict(current_.root, evict_cursor_, kEvictPages);
  if (evict_cursor_ != 0) return true;
  // Frozen versions are read by few; they are dropped from the top.
  for (auto& [number, version] : table_.all())
    if (!version.root.is_dirty_node()) version.root = version.root.on_disk();
  return false;
}

std::vector<uint32_t> MapState::unswept_versions() const {
  std::vector<uint32_t> numbers;
  for (const auto& [number, version] : table_.all())
    if ((version.flags & kVersionUnswept) != 0) numbers.push_back(number);
  if ((current_.flags & kVersionUnswept) != 0) numbers.push_back(current_.number);
  return numbers;
}

void MapState::note_swept(uint32_t version, bool is_swept) {
  VersionRecord* record = find(version);
  if (record == nullptr) return;
  record->flags &= ~kVersionUnswept;
  if (!is_swept) record->flags |= kVersionUnswept;
  if (record != &current_) mark_row(version);
}

// What there is to compare when a version goes.
Removal MapState::removal_of(const VersionRecord& version) const {
  Removal removal;
  removal.floor = table_.floor_of(version);
  removal.root = version.root;
  if (!version.children.empty()) removal.successor = find(version.children.front())->root;
  if (const VersionRecord* parent = table_.find(version.parent)) removal.ancestor = parent->root;
  return removal;
}

// Each cell must be counted off once: when there is room, nothing fails.
void MapState::finish_removal(const LoneCells& cells) {
  free_.make_room(cells.ranges.size() + cells.counts.size());
  for (const auto& [source, count] : cells.counts)
    if (release_cells(source, count)) free_.add({source, 0, 0});
  for (const FreeRange& range : cells.ranges) free_.add(range);
  usage_.live_bytes -= std::min(usage_.live_bytes, cells.garbage_bytes);
  removals_.erase(removals_.begin());
}

std::optional<uint64_t> MapState::own_blocks(uint32_t version) const {
  const VersionRecord* record = find(version);
  if (record == nullptr || record->children.size() > 1 || table_.is_pinned(version)) return 0;
  if (record->is_own_known()) return record->own_blocks;
  return std::nullopt;
}

Removal MapState::begin_count(uint32_t version) {
  VersionRecord* record = find(version);
  record->set_own(0);
  return removal_of(*record);
}

uint64_t MapState::finish_count(uint32_t version, std::optional<uint64_t> cells) {
  VersionRecord* record = find(version);
  if (!cells) {
    record->set_own(std::nullopt);
    return 0;
  }
  record->own_blocks += *cells;
  if (record != &current_) mark_row(version);
  return record->own_blocks;
}

// --- what the log has of it

MapSnapshot MapState::take_snapshot(bool for_another_log) {
  MapSnapshot snapshot;
  snapshot.current = current_;
  if (is_parent_dirty_) dirty_groups_.insert(parent_group_);
  if (!for_another_log) {
    snapshot.groups = table_.groups();
  } else {
    for (const auto& [number, version] : table_.all()) mark_row(number);
  }
  // Copied here and not later: what is counted from the cut on is replayed.
  for (const uint32_t group : dirty_groups_) {
    const auto end = table_.all().lower_bound((group + 1) * kVersionsPerGroup);
    for (auto it = table_.all().lower_bound(group * kVersionsPerGroup); it != end; ++it)
      snapshot.rows.insert(*it);
  }
  snapshot.sources = table_.sources;
  snapshot.flattens = table_.flattens;
  snapshot.pins = table_.pins;
  snapshot.removed_files = table_.removed_files;
  snapshot.free_ranges = free_.outstanding();
  // All of it is there: nothing fails from here on, where it is taken off the books.
  snapshot.dirty_groups.swap(dirty_groups_);
  is_parent_dirty_ = false;
  snapshot.dirty_leaves = std::exchange(usage_.dirty_leaves, 0);
  snapshot.has_synced_holes = free_.take_synced();
  return snapshot;
}

void MapState::restore(MapSnapshot& snapshot) noexcept {
  dirty_groups_.merge(snapshot.dirty_groups);
  usage_.dirty_leaves += snapshot.dirty_leaves;
  if (snapshot.has_synced_holes) free_.note_synced();
}

void MapState::note_written(MapSnapshot& snapshot,
                            const std::vector<TreeWriter::Written>& nodes) noexcept {
  // Frozen versions are read by few: only their addresses stay, and current has its nodes alone.
  for (const auto& [number, version] : snapshot.rows)
    if (VersionRecord* record = table_.find(number); record && version.root.is_dirty_node())
      record->root = snapshot.roots.at(number);
  for (const TreeWriter::Written& written : nodes) {
    written.node->address = written.address;
    written.node->is_dirty = false;
    written.node->replaces_own = false;
  }
  table_.groups() = std::move(snapshot.groups);
  usage_.live_bytes = snapshot.live_bytes;
}

void MapState::note_compacted(MapSnapshot& snapshot) noexcept {
  for (auto& [number, version] : table_.all()) version.root = snapshot.roots.at(number);
  table_.groups() = std::move(snapshot.groups);
  usage_.live_bytes = snapshot.live_bytes;
  usage_.has_removed = false;
}

}  // namespace tplstore
