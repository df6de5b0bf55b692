// How a VolumeMap comes into being: a new one, or one read back from its log.
#include <algorithm>
#include <cerrno>
#include <charconv>

#include "base/names.h"
#include "base/units.h"
#include "map/volume_map.h"

namespace tplstore {
namespace {

constexpr int kOpenTriesMax = 10;

std::string pointer_name(const std::string& folder) { return folder + "/map"; }

}  // namespace

void VolumeMap::create(Backend& backend, const std::string& folder, const Uuid& volume,
                       uint64_t size_bytes) {
  const auto log = MapLog::create(backend, folder, volume, 1);
  log->start_writing(MapLog::start());
  Snapshot snapshot;
  snapshot.current.number = 1;
  snapshot.current.created_ns = now_unix_ns();
  snapshot.current.size_bytes = size_bytes;
  snapshot.current.set_own(0);
  const uint64_t offset = write_checkpoint_frame(*log, snapshot, 0, log->position(), 0, {});
  write_first_pointer(backend, folder, volume, *log, offset);
}

// Makes a new map durable, but for its folder, and as if it had been closed.
void VolumeMap::write_first_pointer(Backend& backend, const std::string& folder, const Uuid& volume,
                                    MapLog& log, uint64_t checkpoint_offset) {
  log.sync();
  MapPointer pointer{};
  pointer.volume = volume;
  pointer.generation = log.generation();
  pointer.checkpoint_offset = checkpoint_offset;
  pointer.clean_sequence = log.position().sequence;
  const auto object = backend.create(pointer_name(folder), 0, Purpose::kMetadata);
  object->write(0, Superblock<MapPointer>(kMapPointerMagic).initial(pointer));
  object->sync();
}

std::unique_ptr<VolumeMap> VolumeMap::open(Backend& backend, const std::string& folder,
                                           const Uuid& volume, Access access) {
  // A reader may meet a log that its owner is exchanging or appending to right now: what looks
  // missing or damaged then is not so the next time.
  for (int tries = 1;; ++tries) {
    std::unique_ptr<VolumeMap> map(new VolumeMap(backend, folder, volume, access));
    try {
      map->recover();
      return map;
    } catch (const Error& error) {
      const bool may_pass = error.code() == ENOENT || error.code() == EIO;
      if (access == Access::kWrite || !may_pass || tries == kOpenTriesMax) {
        if (error.code() != ENOENT) throw;
        fail(EIO, error.object(), "damaged: it is missing");
      }
    }
  }
}

void VolumeMap::recover() {
  pointer_object_ = backend_.open(pointer_name(folder_), access_, Purpose::kMetadata);
  if (access_ == Access::kWrite) settle(*pointer_object_);
  const std::optional<MapPointer> pointer = pointer_slots_.read(*pointer_object_);
  if (!pointer)
    fail(EIO, pointer_name(folder_), "damaged: neither of its two slots passes its checksum");
  if (pointer->volume != volume_) fail_of_another(pointer_name(folder_), pointer->volume, volume_);
  log_ = MapLog::open(backend_, folder_, volume_, pointer->generation, access_);
  checkpoint_offset_ = pointer->checkpoint_offset;
  clean_sequence_ = pointer->clean_sequence;

  LogPosition replay_from;
  const uint64_t checkpoint_sequence = load_checkpoint(pointer->checkpoint_offset, replay_from);
  recovered_to_ = log_->scan(replay_from, std::max(pointer->clean_sequence, checkpoint_sequence),
                             [this](const LogFrame& frame) { replay(frame); });
  was_closed_cleanly_ = recovered_to_.sequence == pointer->clean_sequence;
  if (!was_closed_cleanly_) current_.flags |= kVersionUnswept;
  replayed_versions_.assign(unwritten_versions_.begin(), unwritten_versions_.end());
  compacted_bytes_ = live_bytes_;
}

// Returns the sequence number of the checkpoint's own frame.
uint64_t VolumeMap::load_checkpoint(uint64_t offset, LogPosition& replay_from) {
  LogPosition after;
  const ByteVector payload = log_->read_frame(offset, FrameKind::kCheckpoint, after);
  Decoder decoder(payload, log_->name());
  const auto record = decoder.take<CheckpointRecord>();
  const auto impossible = [this] {
    fail(EIO, log_->name(), "damaged: the checkpoint holds impossible values");
  };
  replay_from = record.replay_from;
  if (replay_from.offset < MapLog::kFirstFrameOffset || replay_from.offset > after.offset ||
      replay_from.offset % kSectorBytes != 0 || record.current == 0 ||
      record.current >= kSourceUnmapped || record.current_parent >= record.current ||
      record.current_size_bytes > kVolumeBytesMax)
    impossible();
  current_.number = record.current;
  current_.parent = record.current_parent;
  current_.created_ns = record.current_began_ns;
  current_.size_bytes = record.current_size_bytes;
  current_.own_blocks = record.current_own_blocks;
  current_.file_blocks = record.current_file_blocks;
  current_.foreign_blocks = record.current_foreign_blocks;
  current_.flags = record.current_flags;
  live_bytes_ = record.live_bytes;
  if (!NodeRef::from_disk(record.current_root, kPageLevels, root_)) impossible();
  for (uint32_t i = 0; i < record.group_count; ++i) {
    const auto group = decoder.take<CheckpointGroup>();
    const NodeAddress address{group.address};
    ByteVector bytes(address.length());
    log_->read(address.offset(), bytes);
    decode_group(bytes, log_->seed(), group.group, log_->name(), table_.all());
    table_.groups()[group.group] = address;
  }
  if (!table_.all().empty() && table_.all().rbegin()->first >= current_.number) impossible();
  for (uint32_t i = 0; i < record.source_count; ++i) {
    const auto row = decoder.take<SourceRow>();
    if (row.last <= table_.base() || row.last >= current_.number) impossible();
    table_.sources.push_back(row);
  }
  // What is removed as this volume's own must not be an ancestor's, whose file others read.
  const uint32_t base = table_.base();
  if (!table_.all().empty() && table_.all().begin()->first <= base) impossible();
  table_.flattens = record.flattens != 0;
  for (uint32_t i = 0; i < record.pin_count; ++i) {
    const auto pin = decoder.take<Pin>();
    if (table_.find(pin.version) == nullptr) impossible();
    table_.pins.push_back(pin);
  }
  for (uint32_t i = 0; i < record.removed_file_count; ++i) {
    const auto file = decoder.take<RemovedFile>();
    if (file.version <= base || file.version >= current_.number ||
        table_.find(file.version) != nullptr)
      impossible();
    table_.removed_files[file.version] = file.blocks;
  }
  std::vector<FreeRange> free_ranges;
  for (uint32_t i = 0; i < record.free_node_count; ++i) {
    const NodeAddress address{decoder.take<uint64_t>()};
    ByteVector bytes(address.length());
    log_->read(address.offset(), bytes);
    decode_free_ranges(bytes, log_->seed(), i, log_->name(), free_ranges);
  }
  for (const FreeRange& range : free_ranges)
    if (range.source >= current_.number || (range.is_whole_file() && range.source <= base))
      impossible();
  free_.add_durable(free_ranges);
  table_.link_all(current_);
  refresh_floor();
  return after.sequence;
}

void VolumeMap::replay(const LogFrame& frame) {
  if (frame.header.kind != static_cast<uint16_t>(FrameKind::kUpdates)) return;
  Decoder decoder(frame.payload, log_->name());
  const auto impossible = [this] {
    fail(EIO, log_->name(), "damaged: a record of the map log is impossible");
  };
  while (!decoder.empty()) {
    const auto record = decoder.take<RecordHeader>();
    const VersionRecord* version = table_.find(static_cast<uint32_t>(record.number()));
    switch (record.kind()) {
      case RecordKind::kUpdate: {
        uint64_t first = record.number();
        uint64_t count = record.count;
        const bool is_good = count > 0 && first + count <= blocks_of(current_.size_bytes) &&
                             (record.source == kSourceUnmapped || record.source <= current_.number);
        if (!is_good) impossible();
        while (count > 0) {
          const auto in_region = static_cast<uint32_t>(first % kRegionBlocks);
          const auto part =
              static_cast<uint32_t>(std::min<uint64_t>(count, kRegionBlocks - in_region));
          assign_in_region(first / kRegionBlocks, in_region, part, record.source, true);
          first += part;
          count -= part;
        }
        break;
      }
      case RecordKind::kFreeze:
        replay_freeze(record.count, record.source, decoder);
        break;
      case RecordKind::kResize:
        if (record.number() > kVolumeBytesMax || record.number() < current_.size_bytes)
          impossible();
        current_.size_bytes = record.number();
        break;
      case RecordKind::kHide:
        if (version == nullptr) impossible();
        apply_hide(version->number);
        break;
      case RecordKind::kCollect:
        if (version == nullptr || version->children.size() > 1) impossible();
        apply_collect(version->number);
        break;
      case RecordKind::kPin: {
        if (version == nullptr) impossible();
        apply_pin(version->number, decoder.take<Uuid>());
        break;
      }
      case RecordKind::kUnpin:
        apply_unpin(decoder.take<Uuid>());
        break;
      case RecordKind::kFlattenBegin:
        apply_flatten_begin();
        break;
      case RecordKind::kFlattenEnd:
        apply_flatten_end();
        break;
      default:
        fail(EINVAL, log_->name(),
             "holds a record of kind {} that this tplstore does not know; "
             "use the newer one that wrote it",
             static_cast<unsigned>(record.kind()));
    }
  }
  bytes_since_checkpoint_ += frame.payload.size();
}

void VolumeMap::replay_freeze(uint32_t next, uint32_t parent, Decoder& decoder) {
  const auto body = decoder.take<FreezeBody>();
  FreezeRequest request;
  request.parent = parent;
  request.name = decoder.take_text(body.name_bytes);
  request.note = decoder.take_text(body.note_bytes);
  uint64_t length = sizeof(FreezeBody) + body.name_bytes + body.note_bytes;
  if ((body.flags & kFreezeHasOrigin) != 0) {
    request.origin.volume = decoder.take<Uuid>();
    request.origin.number = decoder.take<uint32_t>();
    length += sizeof(Uuid) + sizeof(uint32_t);
  }
  decoder.take_bytes(round_up(length, kRecordBytes) - length);
  const bool is_good = next == current_.number + 1 &&
                       body.flags <= (kFreezeHasOrigin | kFreezeUnswept | kFreezeForReader) &&
                       body.size_bytes <= kVolumeBytesMax && request.note.size() <= kNoteBytesMax &&
                       (request.name.empty() || is_valid_name(request.name)) &&
                       (parent == current_.number || table_.find(parent) != nullptr);
  if (!is_good) fail(EIO, log_->name(), "damaged: a record of the map log is impossible");
  current_.flags &= ~kVersionUnswept;
  if ((body.flags & kFreezeUnswept) != 0) current_.flags |= kVersionUnswept;
  request.for_reader = (body.flags & kFreezeForReader) != 0;
  apply_freeze(next, body.size_bytes, body.created_ns, request);
}

void VolumeMap::start_writing(std::function<void()> sync_data, std::function<void()> sync_holes,
                              Reserve draws_on) {
  sync_data_ = std::move(sync_data);
  sync_holes_ = std::move(sync_holes);
  // What was decided in the replay is as durable as the records are in a moment.
  free_.cut();
  free_.commit();
  // It must not fall back to a log that is about to be removed, whatever became of it in an earlier
  // life: a slot that was not synced, or one whose sync failed.
  // Nor must it take the new life for one that has been closed.
  write_pointer(checkpoint_offset_,
                std::min(clean_sequence_, log_->start_of_life(recovered_to_).sequence));
  // Logs of other generations are what an interrupted compaction left.
  constexpr std::string_view kPrefix = "map.";
  for (const std::string& name : backend_.list(folder_)) {
    if (!name.starts_with(kPrefix)) continue;
    if (folder_ + "/" + name != log_->name()) backend_.remove(folder_ + "/" + name);
  }
  log_->start_writing(recovered_to_, draws_on);
}

void VolumeMap::write_pointer(uint64_t checkpoint_offset, uint64_t clean_sequence) {
  MapPointer pointer{};
  pointer.volume = volume_;
  pointer.generation = log_->generation();
  pointer.checkpoint_offset = checkpoint_offset;
  pointer.clean_sequence = clean_sequence;
  or_stop([&] { pointer_slots_.write(*pointer_object_, pointer); });
  checkpoint_offset_ = checkpoint_offset;
}

void VolumeMap::close() {
  const std::lock_guard maintenance(maintenance_mutex_);
  checkpoint_locked();
  if (is_small() && wants_compaction()) {
    try {
      compact_locked();
    } catch (const std::exception&) {
      check_usable();  // or it is as it was
    }
  }
  write_pointer(checkpoint_offset_, log_->position().sequence);
}

}  // namespace tplstore
