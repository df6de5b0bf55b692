// Forks: volumes that begin as a version of another one.
//
// A fork's map begins as a copy of that version's tree, so a read is one lookup at any depth of
// forks. The numbers of its versions go on where the parent's version had got to, so a source says
// by itself whose file a block is in: up to the base, an ancestor's, which the source table names.
// The parent keeps the version pinned, hidden or not, until the fork is gone.
//
// Flattening copies the cells that the fork's versions have of its ancestors into files of the same
// numbers in its own folder. No map changes; at the end the source table is dropped. From the
// beginning on, cells of ancestors that nothing maps any more count as free: a cell is either
// copied and freed later, or not copied. Nothing is punched while cells are copied, and no file of
// a source at or below the base is removed before the end.
#include <algorithm>
#include <cerrno>

#include "base/units.h"
#include "map/volume_map.h"

namespace tplstore {
namespace {

// Copies a version's tree from one log into another.
class TreeCopy {
 public:
  TreeCopy(TreeReader& reader, MapLog& to) : reader_(reader), writer_(to) {}

  uint64_t copy(const NodeRef& root) {
    if (root.is_empty()) return 0;
    TreeWriter::PlannedPage* page = copy_page(root, kPageLevels, 0, {});
    writer_.finish();
    return NodeRef::of_address(page->address).disk_word();
  }
  uint64_t blocks() const { return blocks_; }  // that do not read as zeroes
  uint64_t written_bytes() const { return writer_.written_bytes(); }

 private:
  void count(std::span<const Interval> intervals) {
    for (const Interval& interval : intervals)
      if (interval.source != kSourceZero) blocks_ += interval.count;
  }

  TreeWriter::PlannedPage* copy_page(const NodeRef& slot, uint32_t level, uint32_t index,
                                     TreeWriter::Place place) {
    const NodeRef node = reader_.loaded(slot, level, index);
    TreeWriter::PlannedPage* planned = writer_.add_page(place, node.node()->version, nullptr);
    const PageSlots slots = reader_.slots_of(node.node());
    for (uint32_t i = 0; i < kPageSlots; ++i) {
      const uint32_t below = index * kPageSlots + i;
      if (slots[i].is_empty()) continue;
      if (level > 1) {
        copy_page(slots[i], level - 1, below, {planned, i});
      } else if (slots[i].is_interval()) {
        const Interval interval = slots[i].interval();
        count({&interval, 1});
        planned->words[i] = slots[i].disk_word();
      } else {
        const NodeRef leaf = reader_.loaded(slots[i], 0, below);
        const auto intervals = static_cast<const Leaf*>(leaf.node())->intervals();
        count(intervals);
        writer_.add_leaf({planned, i}, leaf.node()->version, intervals, {}, nullptr);
      }
    }
    return planned;
  }

  TreeReader& reader_;
  TreeWriter writer_;
  uint64_t blocks_ = 0;
};

}  // namespace

void VolumeMap::create_fork(uint32_t version, const std::string& folder, const Uuid& fork) {
  const std::lock_guard maintenance(maintenance_mutex_);
  Snapshot snapshot;
  NodeRef root;
  std::shared_ptr<MapLog> log;
  {
    const std::unique_lock guard(mutex_);
    const VersionRecord* base = table_.find(version);
    if (base == nullptr) fail(ENOENT, fmt::format("version {}", version), "is not there");
    root = base->root;
    log = log_;
    snapshot.current.size_bytes = base->size_bytes;
    for (const SourceRow& row : table_.sources)
      if (row.last < version) snapshot.sources.push_back(row);
  }
  snapshot.sources.push_back({version, 0, volume_});
  snapshot.current.number = version + 1;
  snapshot.current.parent = version;
  snapshot.current.created_ns = now_unix_ns();
  snapshot.current.set_own(0);

  const auto fresh = MapLog::create(backend_, folder, fork, 1);
  fresh->start_writing(MapLog::start());
  TreeReader reader(*log, mutex_);
  TreeCopy copy(reader, *fresh);
  const uint64_t word = copy.copy(root);
  snapshot.current.foreign_blocks = copy.blocks();
  const uint64_t offset =
      write_checkpoint_frame(*fresh, snapshot, word, fresh->position(), copy.written_bytes(), {});
  write_first_pointer(backend_, folder, fork, *fresh, offset);
}

// --- pins

void VolumeMap::pin(uint32_t version, const Uuid& fork) {
  LogReservation reserved(*this, kPinRecords);
  const std::unique_lock guard(mutex_);
  const VersionRecord* found = table_.find(version);
  if (found == nullptr || found->is_hidden())
    fail(ENOENT, fmt::format("version {}", version), "is not there");
  change(reserved, [&] { apply_pin(version, fork); });
  put_record(RecordHeader::make(RecordKind::kPin, version), bytes_of(fork), kPinRecords);
}

void VolumeMap::unpin(const Uuid& fork) {
  LogReservation reserved(*this, kPinRecords, Reserve::kDeletions);
  const std::unique_lock guard(mutex_);
  change(reserved, [&] { apply_unpin(fork); });
  put_record(RecordHeader::make(RecordKind::kUnpin, 0), bytes_of(fork), kPinRecords);
}

void VolumeMap::apply_pin(uint32_t version, const Uuid& fork) {
  const Pin pin{version, 0, fork};
  if (std::find(table_.pins.begin(), table_.pins.end(), pin) == table_.pins.end())
    table_.pins.push_back(pin);
}

void VolumeMap::apply_unpin(const Uuid& fork) {
  std::erase_if(table_.pins, [&fork](const Pin& pin) { return pin.fork == fork; });
}

std::vector<Pin> VolumeMap::pins() const {
  const std::shared_lock guard(mutex_);
  return table_.pins;
}

// --- flattening

void VolumeMap::begin_flatten() {
  LogReservation reserved(*this, 1);
  const std::unique_lock guard(mutex_);
  change(reserved, [&] { apply_flatten_begin(); });
  put_record(RecordHeader::make(RecordKind::kFlattenBegin, 0));
}

void VolumeMap::apply_flatten_begin() {
  table_.flattens = true;
  // The cells of ancestors are counted among what a version keeps alone from here on.
  const auto forget_own = [this](VersionRecord& version) {
    if (table_.find(version.parent) == nullptr) version.set_own(std::nullopt);
  };
  for (auto& [number, version] : table_.all()) {
    forget_own(version);
    if (!version.is_own_known()) dirty_groups_.insert(VersionTable::group_of(number));
  }
  forget_own(current_);
  refresh_floor();
}

void VolumeMap::end_flatten() {
  LogReservation reserved(*this, 1);
  const std::unique_lock guard(mutex_);
  change(reserved, [&] { apply_flatten_end(); });
  put_record(RecordHeader::make(RecordKind::kFlattenEnd, 0));
}

void VolumeMap::apply_flatten_end() {
  table_.sources.clear();
  table_.flattens = false;
  for (auto& [number, version] : table_.all()) {
    version.foreign_blocks = 0;
    dirty_groups_.insert(VersionTable::group_of(number));
  }
  current_.foreign_blocks = 0;
  refresh_floor();
}

void VolumeMap::visit_foreign_cells(uint64_t begin_region, uint64_t end_region,
                                    const std::function<void(const FreeRange&)>& visit) {
  const std::lock_guard maintenance(maintenance_mutex_);
  run_removals();
  std::vector<NodeRef> roots;
  std::shared_ptr<MapLog> log;
  uint32_t base = 0;
  {
    const std::unique_lock guard(mutex_);
    roots.push_back(root_);
    for (const auto& [number, version] : table_.all()) roots.push_back(version.root);
    log = log_;
    base = table_.base();
  }
  TreeReader reader(*log, mutex_);
  reader.walk_all(std::move(roots), begin_region, end_region,
                  [&](uint32_t region, const std::vector<NodeRef>& slots) {
                    std::vector<FreeRange> cells;
                    for (const NodeRef& slot : slots)
                      for (const Interval& interval : reader.intervals(slot, region))
                        if (interval.source != kSourceZero && interval.source <= base)
                          cells.push_back({interval.source, interval.count,
                                           uint64_t{region} * kRegionBlocks + interval.first});
                    join_free_ranges(cells);
                    for (const FreeRange& range : cells) visit(range);
                  });
}

}  // namespace tplstore
