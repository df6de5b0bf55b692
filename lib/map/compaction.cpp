// Log compaction: all trees are written anew into a log of the next generation, without what no
// version needs any more.
//
// A tree is compared with one that was written before it (its parent's): where a slot leads to the
// same as the other's, it takes the word that the other has in the new log. So what versions share
// stays shared, a version costs what it changed, and no table of all nodes is needed.
//
// While the bulk is written, current goes on changing; each further pass writes only what changed
// since the pass before, by the same comparison. The last pass is short and holds up commits; then
// "map" is pointed at the new log, and the tree in memory takes the new words, by that comparison
// once more.
#include <algorithm>

#include "map/volume_map.h"

namespace tplstore {
namespace {

constexpr int kPassesMax = 4;
constexpr uint64_t kFewLeaves = 64;

}  // namespace

class VolumeMap::Compaction {
 public:
  explicit Compaction(VolumeMap& map)
      : map_(map),
        old_(map.log_),
        draft_(map.backend_, MapLog::object_name(map.folder_, old_->generation() + 1)),
        fresh_(MapLog::create(map.backend_, map.folder_, map.volume_, old_->generation() + 1)),
        old_reader_(*old_, map.mutex_),
        fresh_reader_(*fresh_, map.mutex_) {}

  void run();

 private:
  // The object of the new log, which is nobody's yet: removed at the end unless it is kept, and at
  // the beginning when it could not be removed at the end of an earlier attempt.
  class Draft {
   public:
    Draft(Backend& backend, std::string name) : backend_(backend), name_(std::move(name)) {
      backend_.remove(name_);
    }
    ~Draft() {
      if (is_kept_) return;
      try {
        backend_.remove(name_);
      } catch (const std::exception&) {
        // Opening the volume removes it too.
      }
    }
    Draft(const Draft&) = delete;
    void keep() { is_kept_ = true; }

   private:
    Backend& backend_;
    const std::string name_;
    bool is_kept_ = false;
  };

  // A tree, in the old log and memory, and the word of its root in the new log.
  struct Tree {
    NodeRef root;
    uint64_t word = 0;
  };

  void add_versions();
  uint64_t write(const NodeRef& root, const Tree& base);
  uint64_t plan(TreeWriter& writer, const NodeRef& slot, const NodeRef& base, uint64_t base_word,
                uint32_t level, uint32_t index, TreeWriter::Place place,
                TreeWriter::PlannedPage** root);
  // What the tree in memory becomes in the new log.
  struct Relocation {
    std::vector<std::pair<NodeRef*, NodeRef>> slots;
    std::vector<std::pair<Node*, NodeAddress>> nodes;
  };
  void plan_relocation(Relocation& to, NodeRef& slot, const NodeRef& base, uint64_t base_word,
                       uint32_t level, uint32_t index);
  uint64_t write_checkpoint(Snapshot& snapshot, std::map<uint32_t, NodeAddress>& groups);
  void switch_over();

  VolumeMap& map_;
  std::shared_ptr<MapLog> old_;
  Draft draft_;
  std::shared_ptr<MapLog> fresh_;
  TreeReader old_reader_;
  TreeReader fresh_reader_;
  std::map<uint32_t, Tree> versions_;  // that are written
  Tree current_;                       // as of the last pass
  uint32_t current_number_ = 0;
  uint64_t live_bytes_ = 0;
};

namespace {

NodeRef slot_of_word(uint64_t word, uint32_t level) {
  NodeRef slot;
  ensure(NodeRef::from_disk(word, level, slot), "a word that was written can be read");
  return slot;
}

}  // namespace

// Plans what of a tree is not in `base`. Returns the word of the slot, or 0 when the writer fills
// it in (or, for a root, gives the planned page through `root`).
uint64_t VolumeMap::Compaction::plan(TreeWriter& writer, const NodeRef& slot, const NodeRef& base,
                                     uint64_t base_word, uint32_t level, uint32_t index,
                                     TreeWriter::Place place, TreeWriter::PlannedPage** root) {
  if (old_reader_.is_same(slot, base)) return base_word;
  if (!slot.is_node() && !slot.is_address()) return slot.disk_word();
  const NodeRef base_slot = slot_of_word(base_word, level);
  const NodeRef node = old_reader_.loaded(slot, level, index);
  if (level == 0) {
    const auto* leaf = static_cast<Leaf*>(node.node());
    const NodeAddress below = base_slot.is_address() ? base_slot.address() : NodeAddress{};
    writer.add_leaf(place, leaf->version, leaf->intervals(), below, nullptr);
    return 0;
  }
  TreeWriter::PlannedPage* planned = writer.add_page(place, node.node()->version, nullptr);
  if (root != nullptr) *root = planned;
  const PageSlots slots = old_reader_.slots_of(node.node());
  const PageSlots base_slots = old_reader_.slots_below(base, level, index);
  const PageSlots fresh_slots = fresh_reader_.slots_below(base_slot, level, index);
  for (uint32_t i = 0; i < kPageSlots; ++i) {
    const uint64_t word = plan(writer, slots[i], base_slots[i], fresh_slots[i].disk_word(),
                               level - 1, index * kPageSlots + i, {planned, i}, nullptr);
    if (word != 0) planned->words[i] = word;
  }
  return 0;
}

uint64_t VolumeMap::Compaction::write(const NodeRef& root, const Tree& base) {
  TreeWriter writer(*fresh_);
  TreeWriter::PlannedPage* planned = nullptr;
  const uint64_t word = plan(writer, root, base.root, base.word, kPageLevels, 0, {}, &planned);
  if (planned == nullptr) return word;
  writer.finish();
  live_bytes_ += writer.written_bytes();
  return NodeRef::of_address(planned->address).disk_word();
}

// Writes the versions that were not written yet, parents before children.
void VolumeMap::Compaction::add_versions() {
  std::vector<std::tuple<uint32_t, uint32_t, NodeRef>> fresh;
  {
    const std::shared_lock guard(map_.mutex_);
    for (const auto& [number, version] : map_.table_.all())
      if (!versions_.contains(number)) fresh.emplace_back(number, version.parent, version.root);
  }
  for (const auto& [number, parent, root] : fresh) {
    // A version that was current in an earlier pass is nearest to what that pass wrote.
    const auto base = versions_.find(parent);
    const bool was_current = number == current_number_;
    const Tree none;
    const uint64_t word = write(root, was_current               ? current_
                                      : base == versions_.end() ? none
                                                                : base->second);
    versions_[number] = {root, word};
  }
}

void VolumeMap::Compaction::run() {
  fresh_->start_writing(MapLog::start());
  for (int pass = 0; pass < kPassesMax; ++pass) {
    NodeRef root;
    uint32_t number = 0;
    uint32_t parent = 0;
    map_.run_exclusively([&] {
      map_.commit_cut([&] {
        root = map_.root_;
        number = map_.current_.number;
        parent = map_.current_.parent;
        map_.compaction_leaves_ = 0;
      });
    });
    add_versions();
    const bool goes_on = number == current_number_;
    const auto base = versions_.find(parent);
    const Tree none;
    const uint64_t word = write(root, goes_on                   ? current_
                                      : base == versions_.end() ? none
                                                                : base->second);
    current_ = {root, word};
    current_number_ = number;
    const std::shared_lock guard(map_.mutex_);
    if (map_.compaction_leaves_ < kFewLeaves) break;
  }
  const std::lock_guard versions(map_.version_mutex_);
  map_.run_exclusively([this] { switch_over(); });
}

// Writes what the passes before have not, and the checkpoint of all.
uint64_t VolumeMap::Compaction::write_checkpoint(Snapshot& snapshot,
                                                 std::map<uint32_t, NodeAddress>& groups) {
  const VersionRecord& current = snapshot.current;
  add_versions();
  const auto parent = versions_.find(current.parent);
  const Tree none;
  const Tree& base = current.number == current_number_ ? current_
                     : parent == versions_.end()       ? none
                                                       : parent->second;
  current_ = {current.root, write(current.root, base)};
  for (auto& [number, row] : snapshot.rows)
    row.root = slot_of_word(versions_.at(number).word, kPageLevels);
  for (const uint32_t group : snapshot.dirty_groups)
    live_bytes_ += write_group(*fresh_, group, current.number, snapshot.rows, groups);
  return write_checkpoint_frame(*fresh_, snapshot, current_.word, fresh_->position(), live_bytes_,
                                groups);
}

void VolumeMap::Compaction::switch_over() {
  Snapshot snapshot;
  map_.commit_cut([&] {
    for (const auto& [number, version] : map_.table_.all())
      map_.dirty_groups_.insert(VersionTable::group_of(number));
    snapshot = map_.take_snapshot();
  });
  std::map<uint32_t, NodeAddress> groups;
  uint64_t offset = 0;
  uint64_t reserved = 0;
  try {
    offset = write_checkpoint(snapshot, groups);
    reserved = old_->reserved_bytes() + (64 << 10);
    fresh_->reserve(reserved, Reserve::kNone);
    fresh_->sync();
    map_.backend_.sync_folder(map_.folder_);
  } catch (...) {
    map_.restore(snapshot, 0);
    throw;
  }
  // From here on the new log counts: what fails now stops the volume. Until nothing can fail any
  // more, the tree in memory goes with the old log.
  draft_.keep();
  map_.or_stop([&] {
    MapPointer pointer{};
    pointer.volume = map_.volume_;
    pointer.generation = fresh_->generation();
    pointer.checkpoint_offset = offset;
    map_.pointer_slots_.write(*map_.pointer_object_, pointer);
    const std::unique_lock guard(map_.mutex_);
    Relocation relocation;
    plan_relocation(relocation, map_.root_, current_.root, current_.word, kPageLevels, 0);

    for (auto& [slot, fresh] : relocation.slots) *slot = std::move(fresh);
    for (const auto& [node, address] : relocation.nodes) {
      node->address = address;
      node->replaces_own = false;
    }
    const uint64_t outstanding = old_->reserved_bytes();
    if (outstanding > reserved) fresh_->adopt_reserved(outstanding - reserved);
    if (outstanding < reserved) fresh_->unreserve(reserved - outstanding);
    for (auto& [number, version] : map_.table_.all())
      version.root = slot_of_word(versions_.at(number).word, kPageLevels);
    map_.table_.groups() = std::move(groups);
    map_.checkpoint_offset_ = offset;
    map_.live_bytes_ = live_bytes_;
    map_.bytes_since_checkpoint_ = 0;
    map_.compacted_bytes_ = fresh_->position().offset;
    map_.has_removed_ = false;
    map_.log_ = fresh_;
    ++map_.stats_.compactions;
  });
}

// Finds what gives a tree in memory, which has changed since `base` was written, its words in the
// new log. Holds the map's lock; what it reads was written or read just now.
void VolumeMap::Compaction::plan_relocation(Relocation& to, NodeRef& slot, const NodeRef& base,
                                            uint64_t base_word, uint32_t level, uint32_t index) {
  if (!slot.is_node() && !slot.is_address()) return;
  if (slot.is_same(base)) {
    to.slots.emplace_back(&slot, slot_of_word(base_word, level));
    return;
  }
  ensure(!slot.is_address(), "what changed since the last pass is in memory");
  Node* node = slot.node();
  ensure(node->is_dirty, "what changed since the last pass is dirty");
  const NodeRef base_slot = slot_of_word(base_word, level);
  to.nodes.emplace_back(node, base_slot.is_address() ? base_slot.address() : NodeAddress{});
  if (level == 0) return;
  PageSlots base_slots;
  if (base.is_node() || base.is_address())
    base_slots = static_cast<Page*>(old_reader_.loaded(base, level, index).node())->slots;
  PageSlots fresh_slots;
  if (base_slot.is_address())
    fresh_slots = static_cast<Page*>(fresh_reader_.loaded(base_slot, level, index).node())->slots;
  auto& slots = static_cast<Page*>(node)->slots;
  for (uint32_t i = 0; i < kPageSlots; ++i)
    plan_relocation(to, slots[i], base_slots[i], fresh_slots[i].disk_word(), level - 1,
                    index * kPageSlots + i);
}

void VolumeMap::compact() {
  const std::lock_guard maintenance(maintenance_mutex_);
  compact_locked();
}

void VolumeMap::compact_locked() {
  check_usable();
  run_removals();
  sync_holes();
  std::string old_name;
  {
    const std::shared_lock guard(mutex_);
    old_name = log_->name();
  }
  Compaction(*this).run();
  backend_.remove(old_name);
}

}  // namespace tplstore
