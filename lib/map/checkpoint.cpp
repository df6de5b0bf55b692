// The bytes of a checkpoint, written and read: see FORMAT.md, "The map log".
#include "map/checkpoint.h"

#include <algorithm>

#include "base/units.h"

namespace tplstore {

void CheckpointWriter::write_nodes(MapSnapshot& snapshot, TreeReader& reader) {
  for (const auto& [number, version] : snapshot.rows)
    tree_.add_changed(reader, version.root, {&snapshot.roots[number]});
  const VersionRecord& current = snapshot.current;
  tree_.add_changed(reader, current.root, {&snapshot.roots[current.number]});
  tree_.finish();
  for (const TreeWriter::Written& written : tree_.written())
    if (written.is_full && written.node->replaces_own && written.node->is_leaf())
      replaced_bytes_ += written.node->address.length();
}

// Writes a group's rows in place of those that were written before.
void CheckpointWriter::write_group(uint32_t group, MapSnapshot& snapshot) {
  snapshot.live_bytes -= snapshot.groups[group].length();
  const auto first = snapshot.rows.lower_bound(group * kVersionsPerGroup);
  if (first == snapshot.rows.end() || VersionTable::group_of(first->first) != group) {
    snapshot.groups.erase(group);
    return;
  }
  Encoder bytes;
  const uint64_t length = encode_group(bytes, log_.seed(), group, snapshot.current.number,
                                       snapshot.rows, snapshot.roots);
  snapshot.groups[group] =
      NodeAddress::make(log_.append(FrameKind::kNodes, bytes.bytes(), 0), length);
  snapshot.live_bytes += length;
}

uint64_t CheckpointWriter::write(MapSnapshot& snapshot, const LogPosition& replay_from) {
  snapshot.live_bytes += tree_.written_bytes();
  snapshot.live_bytes -= std::min(snapshot.live_bytes, replaced_bytes_);
  const VersionRecord& current = snapshot.current;
  for (const uint32_t group : snapshot.dirty_groups) write_group(group, snapshot);

  std::vector<NodeAddress> free_nodes;
  for (size_t at = 0; at < snapshot.free_ranges.size(); at += kFreeRangesPerNode) {
    const auto ranges = std::span(snapshot.free_ranges).subspan(at);
    Encoder bytes;
    const uint64_t length = encode_free_ranges(
        bytes, log_.seed(), static_cast<uint32_t>(free_nodes.size()), current.number,
        ranges.first(std::min(ranges.size(), kFreeRangesPerNode)));
    free_nodes.push_back(
        NodeAddress::make(log_.append(FrameKind::kNodes, bytes.bytes(), 0), length));
  }
  CheckpointRecord record{};
  record.replay_from = replay_from;
  record.live_bytes = snapshot.live_bytes;
  record.current_size_bytes = current.size_bytes;
  record.current_began_ns = current.created_ns;
  record.current_own_blocks = current.own_blocks;
  record.current_root = snapshot.roots.at(current.number).disk_word();
  record.current = current.number;
  record.current_parent = current.parent;
  record.group_count = static_cast<uint32_t>(snapshot.groups.size());
  record.source_count = static_cast<uint32_t>(snapshot.sources.size());
  record.current_file_blocks = current.file_blocks;
  record.current_foreign_blocks = current.foreign_blocks;
  record.current_flags = current.flags;
  record.flattens = snapshot.flattens ? 1 : 0;
  record.pin_count = static_cast<uint32_t>(snapshot.pins.size());
  record.removed_file_count = static_cast<uint32_t>(snapshot.removed_files.size());
  record.free_node_count = static_cast<uint32_t>(free_nodes.size());
  record.open_frame_offset = log_.named_open_offset();
  record.journal_position = snapshot.journal_position;
  Encoder payload;
  payload.put(record);
  for (const auto& [group, address] : snapshot.groups)
    payload.put(CheckpointGroup{address.word, group, 0});
  for (const SourceRow& row : snapshot.sources) payload.put(row);
  for (const Pin& pin : snapshot.pins) payload.put(pin);
  for (const auto& [version, blocks] : snapshot.removed_files)
    payload.put(RemovedFile{blocks, version, 0});
  for (const NodeAddress& address : free_nodes) payload.put(address.word);
  return log_.append(FrameKind::kCheckpoint, payload.bytes(), 0) - sizeof(FrameHeader);
}

Checkpoint read_checkpoint(MapLog& log, uint64_t offset) {
  LogPosition after;
  const ByteVector payload = log.read_frame(offset, FrameKind::kCheckpoint, after);
  Decoder decoder(payload, log.name());
  const auto record = decoder.take<CheckpointRecord>();
  const auto check = [&log](bool is_good) {
    if (!is_good) fail(EIO, log.name(), "damaged: the checkpoint holds impossible values");
  };
  const auto read_node_at = [&log](NodeAddress address) {
    ByteVector bytes(address.length());
    log.read(address.offset(), bytes);
    return bytes;
  };
  check(record.replay_from.offset >= MapLog::kFirstFrameOffset &&
        record.replay_from.offset <= after.offset &&
        record.replay_from.offset % kSectorBytes == 0 && record.current != 0 &&
        record.current < kSourceUnmapped && record.current_parent < record.current &&
        record.current_size_bytes <= kVolumeBytesMax);
  VersionRecord current;
  current.number = record.current;
  current.parent = record.current_parent;
  current.created_ns = record.current_began_ns;
  current.size_bytes = record.current_size_bytes;
  current.own_blocks = record.current_own_blocks;
  current.file_blocks = record.current_file_blocks;
  current.foreign_blocks = record.current_foreign_blocks;
  current.flags = record.current_flags;
  check(NodeRef::from_disk(record.current_root, kPageLevels, current.root));

  VersionTable table;
  for (uint32_t i = 0; i < record.group_count; ++i) {
    const auto group = decoder.take<CheckpointGroup>();
    const NodeAddress address{group.address};
    decode_group(read_node_at(address), log.seed(), group.group, log.name(), table.all());
    table.groups()[group.group] = address;
  }
  check(table.all().empty() || table.all().rbegin()->first < current.number);
  for (uint32_t i = 0; i < record.source_count; ++i) {
    const auto row = decoder.take<SourceRow>();
    check(row.last > table.base() && row.last < current.number);
    table.sources.push_back(row);
  }
  // What is removed as this volume's own must not be an ancestor's, whose file others read.
  const uint32_t base = table.base();
  check(table.all().empty() || table.all().begin()->first > base);
  table.flattens = record.flattens != 0;
  for (uint32_t i = 0; i < record.pin_count; ++i) {
    const auto pin = decoder.take<Pin>();
    check(table.find(pin.version) != nullptr);
    table.pins.push_back(pin);
  }
  for (uint32_t i = 0; i < record.removed_file_count; ++i) {
    const auto file = decoder.take<RemovedFile>();
    check(file.version > base && file.version < current.number &&
          table.find(file.version) == nullptr);
    table.removed_files[file.version] = file.blocks;
  }
  std::vector<FreeRange> free_ranges;
  for (uint32_t i = 0; i < record.free_node_count; ++i)
    decode_free_ranges(read_node_at(NodeAddress{decoder.take<uint64_t>()}), log.seed(), i,
                       log.name(), free_ranges);
  for (const FreeRange& range : free_ranges)
    check(range.source < current.number && (!range.is_whole_file() || range.source > base));
  Checkpoint checkpoint{
      MapState(std::move(current), std::move(table), free_ranges, record.live_bytes),
      record.replay_from,
      after.sequence,
      {},
      record.journal_position};
  if (record.open_frame_offset != 0) {
    LogPosition after_open;
    const ByteVector open = log.read_frame(record.open_frame_offset, FrameKind::kOpen, after_open);
    check(after_open.incarnation == after.incarnation);
    Decoder name(open, log.name());
    checkpoint.journal = decode_journal_name(name);
  }
  return checkpoint;
}

}  // namespace tplstore
