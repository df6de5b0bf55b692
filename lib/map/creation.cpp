// A new map is a log with one checkpoint.
#include "map/creation.h"

#include "base/units.h"
#include "map/checkpoint.h"

namespace tplstore {
namespace {

// Copies a version's tree from one log into another.
class TreeCopy {
 public:
  TreeCopy(TreeReader& reader, MapLog& to) : reader_(reader), writer_(to) {}

  // The word of the copy's root.
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

std::unique_ptr<MapLog> create_log(Backend& backend, const std::string& folder,
                                   const Uuid& volume) {
  auto log = MapLog::create(backend, folder, volume, 1);
  log->start_writing(MapLog::start());
  return log;
}

MapSnapshot first_snapshot(uint32_t current, uint32_t parent, uint64_t size_bytes) {
  MapSnapshot snapshot;
  snapshot.current.number = current;
  snapshot.current.parent = parent;
  snapshot.current.created_ns = now_unix_ns();
  snapshot.current.size_bytes = size_bytes;
  snapshot.current.set_own(0);
  return snapshot;
}

// Writes the checkpoint, with the word of current's root, and then the object "map".
void finish(Backend& backend, const std::string& folder, const Uuid& volume, MapLog& log,
            const MapSnapshot& snapshot, uint64_t root_word, uint64_t live_bytes) {
  MapPointer pointer{};
  pointer.volume = volume;
  pointer.generation = log.generation();
  pointer.checkpoint_offset = CheckpointWriter(log).write(
      snapshot, [&](const VersionRecord&) { return root_word; }, log.position(), {}, live_bytes);
  log.sync();
  pointer.clean_sequence = log.position().sequence;
  const auto object = backend.create(map_pointer_name(folder), 0, Purpose::kMetadata);
  object->write(0, Superblock<MapPointer>(kMapPointerMagic).initial(pointer));
  object->sync();
}

}  // namespace

void create_map(Backend& backend, const std::string& folder, const Uuid& volume,
                uint64_t size_bytes) {
  const auto log = create_log(backend, folder, volume);
  finish(backend, folder, volume, *log, first_snapshot(1, 0, size_bytes), 0, 0);
}

void create_fork_map(Backend& backend, const std::string& folder, const Uuid& fork,
                     const Uuid& parent, const VersionRecord& base,
                     const std::vector<SourceRow>& sources, TreeReader& reader) {
  MapSnapshot snapshot = first_snapshot(base.number + 1, base.number, base.size_bytes);
  for (const SourceRow& row : sources)
    if (row.last < base.number) snapshot.sources.push_back(row);
  snapshot.sources.push_back({base.number, 0, parent});
  const auto log = create_log(backend, folder, fork);
  TreeCopy copy(reader, *log);
  const uint64_t root_word = copy.copy(base.root);
  snapshot.current.foreign_blocks = copy.blocks();
  finish(backend, folder, fork, *log, snapshot, root_word, copy.written_bytes());
}

}  // namespace tplstore
