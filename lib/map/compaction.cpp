// The comparison of trees that are in two logs at once: a slot in the old one and in memory, and
// the word that what it is compared with has in the new one.
#include "map/compaction.h"

namespace tplstore {

Compaction::Draft::Draft(Backend& backend, std::string name)
    : backend_(backend), name_(std::move(name)) {
  backend_.remove(name_);
}

Compaction::Draft::~Draft() {
  if (is_kept_) return;
  try {
    backend_.remove(name_);
  } catch (const std::exception&) {
    // Opening the volume removes it too.
  }
}

Compaction::Compaction(Backend& backend, const std::string& folder, const Uuid& volume,
                       std::shared_ptr<MapLog> old, SpinningSharedMutex& mutex)
    : old_(std::move(old)),
      draft_(backend, MapLog::object_name(folder, old_->generation() + 1)),
      fresh_(MapLog::create(backend, folder, volume, old_->generation() + 1)),
      old_reader_(*old_, mutex),
      fresh_reader_(*fresh_, mutex) {
  fresh_->start_writing(MapLog::start());
}

namespace {

NodeRef slot_of_word(uint64_t word, uint32_t level) {
  NodeRef slot;
  ensure(NodeRef::from_disk(word, level, slot), "a word that was written can be read");
  return slot;
}

}  // namespace

// Plans what of a tree is not in `base`. Returns the word of the slot, or 0 when the writer fills
// it in (or, for a root, gives the planned page through `root`).
uint64_t Compaction::plan(TreeWriter& writer, const NodeRef& slot, const NodeRef& base,
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

uint64_t Compaction::write(const NodeRef& root, const Tree& base) {
  TreeWriter writer(*fresh_);
  TreeWriter::PlannedPage* planned = nullptr;
  const uint64_t word = plan(writer, root, base.root, base.word, kPageLevels, 0, {}, &planned);
  if (planned == nullptr) return word;
  writer.finish();
  live_bytes_ += writer.written_bytes();
  return NodeRef::of_address(planned->address).disk_word();
}

// What is nearest to a version of what is written: itself, when it was current in an earlier pass,
// or its parent.
const Compaction::Tree& Compaction::base_of(const Version& version) const {
  if (version.number == current_number_) return current_;
  const auto parent = versions_.find(version.parent);
  return parent == versions_.end() ? none_ : parent->second;
}

void Compaction::write(const std::vector<Version>& frozen, const Version& current) {
  for (const Version& version : frozen)
    if (!has_written(version.number))
      versions_[version.number] = {version.root, write(version.root, base_of(version))};
  const uint64_t word = write(current.root, base_of(current));
  current_ = {current.root, word};
  current_number_ = current.number;
}

uint64_t Compaction::write_checkpoint(const std::vector<Version>& frozen,
                                      const MapSnapshot& snapshot) {
  const VersionRecord& current = snapshot.current;
  write(frozen, {current.number, current.parent, current.root});
  CheckpointWriter writer(*fresh_);
  const uint64_t offset = writer.write(
      snapshot,
      [&](const VersionRecord& version) {
        return version.number == current.number ? current_.word : versions_.at(version.number).word;
      },
      fresh_->position(), {}, live_bytes_);
  live_bytes_ = writer.live_bytes();
  groups_ = std::move(writer.groups());
  return offset;
}

void Compaction::relocate(MapState& state) {
  Relocation relocation;
  plan_relocation(relocation, state.current_root(), current_.root, current_.word, kPageLevels, 0);
  std::map<uint32_t, NodeRef> roots;
  for (const auto& [number, tree] : versions_) roots[number] = slot_of_word(tree.word, kPageLevels);

  for (auto& [slot, fresh] : relocation.slots) *slot = std::move(fresh);
  for (const auto& [node, address] : relocation.nodes) {
    node->address = address;
    node->replaces_own = false;
  }
  state.note_compacted(roots, std::move(groups_), live_bytes_);
}

// Finds what gives a tree in memory, which has changed since `base` was written, its words in the
// new log. Holds the map's lock; what it reads was written or read just now.
void Compaction::plan_relocation(Relocation& to, NodeRef& slot, const NodeRef& base,
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

}  // namespace tplstore
