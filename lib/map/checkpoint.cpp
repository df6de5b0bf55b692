// Checkpoints: the nodes that changed since the last one are written to the log, then a record that
// names all roots, then the object "map" is pointed at it.
//
// The cut of a checkpoint is the cut of a commit: under the map's lock the pending records are
// taken and the roots are copied. From then on the trees of the snapshot do not change, since a
// node that two references lead to is copied before it is changed. So the nodes are written
// without holding up anybody, and recovery replays just what was committed after the cut.
#include <algorithm>

#include "map/volume_map.h"

namespace tplstore {

VolumeMap::Snapshot VolumeMap::take_snapshot() {
  Snapshot snapshot;
  snapshot.current = current_;
  snapshot.current.root = root_;
  for (const uint32_t number : unwritten_versions_)
    snapshot.unwritten[number] = table_.all().at(number);
  if (is_parent_dirty_) dirty_groups_.insert(parent_group_);
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
  snapshot.unwritten_numbers.swap(unwritten_versions_);
  snapshot.dirty_leaves = std::exchange(dirty_leaves_, 0);
  snapshot.has_punched = std::exchange(has_punched_, false);
  return snapshot;
}

// Takes a snapshot back after its checkpoint has failed, so that the next one tries again.
void VolumeMap::restore(Snapshot& snapshot, uint64_t bytes) noexcept {
  const std::unique_lock guard(mutex_);
  dirty_groups_.merge(snapshot.dirty_groups);
  unwritten_versions_.merge(snapshot.unwritten_numbers);
  dirty_leaves_ += snapshot.dirty_leaves;
  has_punched_ = has_punched_ || snapshot.has_punched;
  bytes_since_checkpoint_ += bytes;
}

void VolumeMap::plan_dirty(TreeWriter& writer, Node* node, TreeWriter::Place place) {
  if (writer.link(node, place)) return;
  if (node->is_leaf()) {
    writer.add_leaf(place, node->version, static_cast<Leaf*>(node)->intervals(), node->address,
                    node);
    return;
  }
  TreeWriter::PlannedPage* planned = writer.add_page(place, node->version, node);
  const PageSlots slots = TreeReader(*log_, mutex_).slots_of(node);
  for (uint32_t i = 0; i < kPageSlots; ++i) {
    if (slots[i].is_node() && slots[i].node()->is_dirty) {
      plan_dirty(writer, slots[i].node(), {planned, i});
    } else {
      planned->words[i] = slots[i].disk_word();
    }
  }
}

// The word of a root that was planned, or needed no writing.
uint64_t VolumeMap::root_word(const TreeWriter& writer, const NodeRef& root) {
  if (!root.is_node() || !root.node()->is_dirty) return root.disk_word();
  return NodeRef::of_address(writer.planned(root.node())->address).disk_word();
}

// Writes a group's rows in place of those that were written before; the bytes by which the log's
// live ones grow.
uint64_t VolumeMap::write_group(MapLog& log, uint32_t group, uint32_t current,
                                const std::map<uint32_t, VersionRecord>& versions,
                                std::map<uint32_t, NodeAddress>& groups) {
  const uint64_t before = groups[group].length();
  const auto first = versions.lower_bound(group * kVersionsPerGroup);
  if (first == versions.end() || VersionTable::group_of(first->first) != group) {
    groups.erase(group);
    return -before;
  }
  Encoder bytes;
  const uint64_t length = encode_group(bytes, log.seed(), group, current, versions);
  groups[group] = NodeAddress::make(log.append(FrameKind::kNodes, bytes.bytes(), 0), length);
  return length - before;
}

uint64_t VolumeMap::write_checkpoint_frame(MapLog& log, const Snapshot& snapshot,
                                           uint64_t current_root, const LogPosition& replay_from,
                                           uint64_t live_bytes,
                                           const std::map<uint32_t, NodeAddress>& groups) {
  std::vector<NodeAddress> free_nodes;
  for (size_t at = 0; at < snapshot.free_ranges.size(); at += kFreeRangesPerNode) {
    const auto ranges = std::span(snapshot.free_ranges).subspan(at);
    Encoder bytes;
    const uint64_t length = encode_free_ranges(
        bytes, log.seed(), static_cast<uint32_t>(free_nodes.size()), snapshot.current.number,
        ranges.first(std::min(ranges.size(), kFreeRangesPerNode)));
    free_nodes.push_back(
        NodeAddress::make(log.append(FrameKind::kNodes, bytes.bytes(), 0), length));
  }
  const VersionRecord& current = snapshot.current;
  CheckpointRecord record{};
  record.replay_from = replay_from;
  record.live_bytes = live_bytes;
  record.current_size_bytes = current.size_bytes;
  record.current_began_ns = current.created_ns;
  record.current_own_blocks = current.own_blocks;
  record.current_root = current_root;
  record.current = current.number;
  record.current_parent = current.parent;
  record.group_count = static_cast<uint32_t>(groups.size());
  record.source_count = static_cast<uint32_t>(snapshot.sources.size());
  record.current_file_blocks = current.file_blocks;
  record.current_foreign_blocks = current.foreign_blocks;
  record.current_flags = current.flags;
  record.flattens = snapshot.flattens ? 1 : 0;
  record.pin_count = static_cast<uint32_t>(snapshot.pins.size());
  record.removed_file_count = static_cast<uint32_t>(snapshot.removed_files.size());
  record.free_node_count = static_cast<uint32_t>(free_nodes.size());
  Encoder payload;
  payload.put(record);
  for (const auto& [group, address] : groups) payload.put(CheckpointGroup{address.word, group, 0});
  for (const SourceRow& row : snapshot.sources) payload.put(row);
  for (const Pin& pin : snapshot.pins) payload.put(pin);
  for (const auto& [version, blocks] : snapshot.removed_files)
    payload.put(RemovedFile{blocks, version, 0});
  for (const NodeAddress& address : free_nodes) payload.put(address.word);
  return log.append(FrameKind::kCheckpoint, payload.bytes(), 0) - sizeof(FrameHeader);
}

void VolumeMap::checkpoint() {
  const std::lock_guard maintenance(maintenance_mutex_);
  checkpoint_locked();
}

void VolumeMap::checkpoint_locked() {
  run_removals();
  sync_holes();
  Snapshot snapshot;
  LogPosition replay_from{};
  uint64_t bytes = 0;
  bool is_needed = false;
  run_exclusively([&] {
    commit_cut([&] { snapshot = take_snapshot(); });
    replay_from = log_->position();
    const std::unique_lock guard(mutex_);
    bytes = std::exchange(bytes_since_checkpoint_, 0);
    is_needed = bytes > 0 || !snapshot.dirty_groups.empty() || snapshot.has_punched;
  });
  if (!is_needed) return;

  TreeWriter writer(*log_);
  std::map<uint32_t, NodeAddress> groups;
  uint64_t live_bytes = 0;
  try {
    const auto plan_root = [&](const NodeRef& root) {
      if (root.is_node() && root.node()->is_dirty) plan_dirty(writer, root.node(), {});
    };
    for (const auto& [number, version] : snapshot.unwritten) plan_root(version.root);
    plan_root(snapshot.current.root);
    writer.finish();

    {
      const std::shared_lock guard(mutex_);
      groups = table_.groups();
      live_bytes = live_bytes_;
    }
    live_bytes += writer.written_bytes();
    for (const TreeWriter::Written& written : writer.written())
      if (written.is_full && written.node->replaces_own && written.node->is_leaf())
        live_bytes -= std::min(live_bytes, written.node->address.length());
    std::map<uint32_t, VersionRecord> rows = snapshot.rows;
    for (auto& [number, row] : rows)
      NodeRef::from_disk(root_word(writer, row.root), kPageLevels, row.root);
    for (const uint32_t group : snapshot.dirty_groups)
      live_bytes += write_group(*log_, group, snapshot.current.number, rows, groups);
    const uint64_t offset = write_checkpoint_frame(
        *log_, snapshot, root_word(writer, snapshot.current.root), replay_from, live_bytes, groups);
    log_->sync();
    write_pointer(offset, 0);
  } catch (...) {
    restore(snapshot, bytes);
    if (log_->has_failed()) note_failure(std::current_exception());
    throw;
  }

  const std::unique_lock guard(mutex_);
  for (const TreeWriter::Written& written : writer.written()) {
    written.node->address = written.address;
    written.node->is_dirty = false;
    written.node->replaces_own = false;
  }
  // Frozen versions are read by few: only their addresses stay, and current has its nodes alone.
  for (const auto& [number, version] : snapshot.unwritten) {
    VersionRecord* record = table_.find(number);
    if (record == nullptr) continue;
    NodeRef& root = record->root;
    if (root.is_node() && !root.node()->is_dirty) root = NodeRef::of_address(root.node()->address);
  }
  table_.groups() = std::move(groups);
  live_bytes_ = live_bytes;
  ++stats_.checkpoints;
}

}  // namespace tplstore
