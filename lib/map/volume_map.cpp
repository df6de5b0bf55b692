// The order of locks and of steps: what is done under the map's lock, what beside it.
#include "map/volume_map.h"

#include <algorithm>
#include <cerrno>

#include "base/names.h"
#include "base/units.h"
#include "map/creation.h"

namespace tplstore {
namespace {

// Updates that nobody flushes are committed when they are so many, to bound memory and recovery.
constexpr uint64_t kPendingBytesMax = 8 << 20;
constexpr uint64_t kCheckpointBytes = 16 << 20;
constexpr uint64_t kCheckpointLeaves = 4096;
constexpr uint64_t kCompactionBytesMin = 1 << 20;
constexpr uint64_t kSmallBytes = 4 << 20;
constexpr int kCompactionPassesMax = 4;
constexpr uint64_t kFewLeaves = 64;
constexpr uint64_t kForkRecords = 2;  // that the longest of them takes
constexpr int kOpenTriesMax = 10;
constexpr size_t kRecordsAtOnce = 1024;  // of a journal

[[noreturn]] void fail_not_there(uint32_t version) {
  fail(ENOENT, fmt::format("version {}", version), "is not there");
}

}  // namespace

// --- making and opening

uint64_t VolumeMap::create_fork(uint32_t version, const std::string& folder, const Uuid& fork) {
  const Lock maintenance(maintenance_mutex_);
  VersionRecord base;
  std::vector<SourceRow> sources;
  {
    const SharedLock guard(mutex_);
    base = find_version(version);
    sources = state_.table().sources;
  }
  return create_fork_map(backend_, folder, fork, volume_, base, sources, log(), mutex_);
}

std::unique_ptr<VolumeMap> VolumeMap::open(Backend& backend, const std::string& folder,
                                           const Uuid& volume, Access access) {
  // A reader may meet a log that its owner is exchanging or appending to right now: what looks
  // missing or damaged then is not so the next time.
  for (int tries = 1;; ++tries) {
    try {
      return std::unique_ptr<VolumeMap>(new VolumeMap(backend, folder, volume, access));
    } catch (const Error& error) {
      const bool may_pass = error.code() == ENOENT || error.code() == EIO;
      if (access == Access::kWrite || !may_pass || tries == kOpenTriesMax) {
        if (error.code() != ENOENT) throw;
        fail(EIO, error.object(), "damaged: it is missing");
      }
    }
  }
}

VolumeMap::VolumeMap(Backend& backend, std::string folder, const Uuid& volume, Access access)
    : backend_(backend),
      folder_(std::move(folder)),
      volume_(volume),
      pointer_(backend_, folder_, volume_, access),
      log_(MapLog::open(backend_, folder_, volume_, pointer_.value().generation, access)),
      state_(recover(*log_, pointer_.value(), recovery_)),
      bytes_since_checkpoint_(recovery_.replayed_bytes),
      compacted_bytes_(state_.usage().live_bytes) {
  stats_.loads = recovery_.loads;
}

std::unique_ptr<JournalMemory> VolumeMap::open_kept(JournalPlace& place) {
  const JournalName& name = recovery_.journal;
  const bool may_be_there =
      !recovery_.was_closed_cleanly && name.is_named() && name.boot == place.boot();
  return may_be_there && !name.path.empty() ? place.open(name.path) : nullptr;
}

void VolumeMap::spoil_kept(JournalPlace& place) noexcept {
  try {
    if (const auto memory = open_kept(place)) spoil_journal(*memory);
  } catch (const std::exception&) {
    // Who cannot get at it now cannot later, as long as it is not mended by hand.
  }
}

VolumeMap::Kept VolumeMap::apply_kept(JournalPlace& place,
                                      const std::function<bool(const Run&)>& has_data) {
  const JournalName name = recovery_.journal;
  if (recovery_.was_closed_cleanly || !name.is_named()) return Kept::kAll;
  const std::unique_ptr<JournalMemory> memory = open_kept(place);
  const auto apply = [&] {
    const std::optional<ByteVector> bytes =
        memory ? read_journal(*memory, volume_, name, recovery_.journal_position) : std::nullopt;
    if (!bytes) return false;
    const auto all_of = [&](const auto& is_good) {
      Decoder decoder(*bytes, name.path);
      while (!decoder.empty()) {
        std::vector<MapRecord> records;
        while (!decoder.empty() && records.size() < kRecordsAtOnce)
          records.push_back(decode_record(decoder));
        if (!is_good(records)) return false;
      }
      return true;
    };
    // All of it is looked at before any of it is applied.
    try {
      all_of([](const auto&) { return true; });
    } catch (const Error&) {
      return false;
    }
    const bool is_applied = all_of([&](const std::vector<MapRecord>& records) {
      const Lock guard(mutex_);
      return tplstore::apply_kept(state_, *log_, records, recovery_);
    });
    const auto has_all_cells = [&](const MapRecord& record) {
      const auto* update = std::get_if<UpdateRecord>(&record);
      return update == nullptr || has_cells(*update, has_data);
    };
    if (!is_applied || !all_of([&](const std::vector<MapRecord>& records) {
          return std::ranges::all_of(records, has_all_cells);
        }))
      return false;
    kept_ = *bytes;
    return true;
  };
  if (apply()) return Kept::kAll;
  if (memory) spoil_journal(*memory);
  if (!place.is_servers() && name.boot == place.boot())
    fail(EBUSY, name.path.empty() ? folder_ : name.path,
         "has what was written last to the volume, and cannot be used by this process: have a "
         "server open the volume, which can see it, or can tell that it is lost");
  // Some may have been applied.
  const Lock maintenance(maintenance_mutex_);
  const Lock guard(mutex_);
  state_ = recover(*log_, pointer_.value(), recovery_);
  return Kept::kLost;
}

// Whether the cells that an update of the last life leads to, as far as it still does, are there.
//
// The kernel tells once that a sync has failed. If nobody asked before, the next life's own sync is
// told, and spoils what was kept; but it may have told a process that was being killed in that very
// sync. What was never written is a hole then. A cell that had been current's before, and was
// overwritten in place, has its old content, and nothing tells that from what was written: it is as
// with a raw file then. That a sync was under way is no sign of it, for when a server is killed
// under load one nearly always is.
bool VolumeMap::has_cells(const UpdateRecord& update,
                          const std::function<bool(const Run&)>& has_data) {
  if (update.source == kSourceZero || update.source == kSourceUnmapped) return true;
  const bool is_there = ask([&](const MapState& state) { return state.find(update.source); });
  if (!is_there) return true;
  RunList runs;
  find(update.source, update, runs);
  for (size_t i = 0; i < runs.size(); ++i)
    if (runs[i].source == update.source && !has_data(runs[i])) return false;
  return true;
}

void VolumeMap::start_writing(std::function<void()> sync_data, std::function<void()> sync_holes,
                              Reserve draws_on, JournalPlace* place) {
  const Lock maintenance(maintenance_mutex_);
  sync_data_ = std::move(sync_data);
  sync_holes_ = std::move(sync_holes);
  const std::shared_ptr<MapLog> log = this->log();
  if (place != nullptr && place->is_servers()) {
    place_ = place;
    journal_.id = random_uuid();
    journal_.boot = place->boot();
    if (auto memory = place->create(volume_, journal_.id, journal_.path)) {
      const Lock guard(mutex_);
      pending_.journal().begin(std::move(memory), volume_, journal_);
    }
  }
  LogOpening opening = this->opening();
  opening.payload.insert(opening.payload.end(), kept_.begin(), kept_.end());
  // It must not fall back to a log that is about to be removed, whatever became of it in an earlier
  // life: a slot that was not synced, or one whose sync failed.
  // Nor must it take the new life for one that has been closed.
  const uint64_t start = log->start_of_life(recovery_.end, opening).sequence;
  write_pointer(*log, pointer_.value().checkpoint_offset,
                std::min(pointer_.value().clean_sequence, start),
                pointer_.value().closed_incarnation);
  // Logs of other generations are what an interrupted compaction left.
  constexpr std::string_view kPrefix = "map.";
  for (const std::string& name : backend_.list(folder_)) {
    if (!name.starts_with(kPrefix)) continue;
    if (folder_ + "/" + name != log->name()) backend_.remove(folder_ + "/" + name);
  }
  log->start_writing(recovery_.end, draws_on, opening);
  {
    // What was decided in the replay is durable now.
    const Lock guard(mutex_);
    state_.free_ranges().cut();
    state_.free_ranges().commit();
    bytes_since_checkpoint_ = recovery_.replayed_bytes + std::exchange(kept_, {}).size();
  }
  // Until now one life's end would have needed the last one's journal.
  if (place == nullptr) return;
  if (!recovery_.journal.path.empty() && recovery_.journal.boot == place->boot())
    place->remove(recovery_.journal.path);
  place->remove_others(volume_, journal_.path);
}

LogOpening VolumeMap::opening() const {
  LogOpening opening{encode_journal_name(journal_)};
  opening.name_bytes = static_cast<uint16_t>(opening.payload.size());
  return opening;
}

void VolumeMap::write_pointer(const MapLog& log, uint64_t checkpoint_offset,
                              uint64_t clean_sequence, uint64_t closed_incarnation) {
  or_stop([&]() REQUIRES(maintenance_mutex_) {
    pointer_.write(log, checkpoint_offset, clean_sequence, closed_incarnation);
  });
}

void VolumeMap::close() {
  const Lock maintenance(maintenance_mutex_);
  checkpoint_locked();
  // Of a small one it is a matter of milliseconds.
  if (ask(&MapState::usage).live_bytes <= kSmallBytes && wants(Upkeep::kCompaction)) {
    try {
      compact_locked();
    } catch (const std::exception&) {
      check_usable();  // or it is as it was
    }
  }
  const std::shared_ptr<MapLog> log = this->log();
  const LogPosition end = log->position();
  write_pointer(*log, pointer_.value().checkpoint_offset, end.sequence, end.incarnation);
  // Not before the log says that it is closed.
  if (!journal_.path.empty()) place_->remove(journal_.path);
}

// --- what is there

std::shared_ptr<MapLog> VolumeMap::log() const {
  const SharedLock guard(mutex_);
  return log_;
}

const VersionRecord& VolumeMap::find_version(uint32_t version) const {
  const VersionRecord* found = state_.find(version);
  if (found == nullptr) fail_not_there(version);
  return *found;
}

// --- looking up

void VolumeMap::load(const MissingNode& missing, uint32_t version,
                     const std::shared_ptr<MapLog>& log) {
  NodeRef node;
  try {
    node = read_node(*log, missing);
  } catch (const Error&) {
    // When the log was compacted away meanwhile, what is missing is found in the new one.
    const SharedLock guard(mutex_);
    if (log != log_) return;
    throw;
  }
  const Lock guard(mutex_);
  ++stats_.loads;
  // An address means something in its own log only.
  if (log == log_) state_.install(version, missing, std::move(node));
}

void VolumeMap::find(uint32_t version, BlockRange blocks, RunList& runs) {
  while (blocks.count > 0) {
    const BlockRange part = blocks.in_first_region();
    while (true) {
      std::optional<MissingNode> missing;
      std::shared_ptr<MapLog> log;
      {
        const SharedLock guard(mutex_);
        missing = tplstore::find(find_version(version).root, part, runs);
        if (missing) log = log_;
      }
      if (!missing) break;
      load(*missing, version, log);
    }
    blocks.remove_first(part.count);
  }
}

void VolumeMap::find_difference(uint32_t from, uint32_t to, const BlockRange& blocks,
                                const VisitDifference& visit) {
  if (blocks.count == 0) return;
  const Lock maintenance(maintenance_mutex_);
  TreeReader reader(log(), mutex_);
  NodeRef roots[2];
  {
    const SharedLock guard(mutex_);
    if (from != kBeforeFirstVersion) roots[0] = find_version(from).root;
    roots[1] = find_version(to).root;
  }
  tplstore::find_difference(reader, roots[0], roots[1], blocks, visit);
}

std::vector<FreeRange> VolumeMap::foreign_cells(uint64_t begin_region, uint64_t end_region) {
  const Lock maintenance(maintenance_mutex_);
  run_removals();
  TreeReader reader(log(), mutex_);
  std::vector<NodeRef> roots;
  uint32_t base = 0;
  {
    const SharedLock guard(mutex_);
    roots.push_back(state_.current().root);
    for (const auto& [number, version] : state_.table().all()) roots.push_back(version.root);
    base = state_.table().base();
  }
  return find_cells_up_to(base, reader, std::move(roots), begin_region, end_region);
}

void VolumeMap::visit_cells(const VisitCells& visit, const VisitUnreadable& unreadable) {
  const Lock maintenance(maintenance_mutex_);
  TreeReader reader(log(), mutex_);
  std::vector<NodeRef> roots;
  {
    const SharedLock guard(mutex_);
    roots.push_back(state_.current().root);
    for (const auto& [number, version] : state_.table().all()) roots.push_back(version.root);
  }
  tplstore::visit_cells(reader, std::move(roots), visit, unreadable);
}

void VolumeMap::visit_changes(uint32_t version, const std::function<void(const Run& run)>& visit) {
  const Lock maintenance(maintenance_mutex_);
  TreeReader reader(log(), mutex_);
  NodeRef parent;
  NodeRef root;
  {
    const SharedLock guard(mutex_);
    const VersionRecord& record = find_version(version);
    root = record.root;
    if (const VersionRecord* from = state_.table().find(record.parent)) parent = from->root;
  }
  tplstore::find_difference(reader, parent, root, {0, kRegionsMax * kRegionBlocks},
                            [&](const Run&, const Run& run) { visit(run); });
}

// --- changing current

uint64_t LogReservation::records_for(uint64_t first, uint64_t count) {
  return count == 0 ? 0 : (first + count - 1) / kRegionBlocks - first / kRegionBlocks + 1;
}

LogReservation::LogReservation(VolumeMap& map, uint64_t records, Reserve draws_on)
    : map_(map), unused_(records) {
  map.check_usable();
  // The lock keeps the log from being exchanged meanwhile.
  const SharedLock guard(map.mutex_);
  map.log_->reserve(records * kRecordBytes, draws_on);
}

LogReservation::~LogReservation() {
  if (unused_ == 0) return;
  const SharedLock guard(map_.mutex_);
  map_.log_->unreserve(unused_ * kRecordBytes);
}

void LogReservation::use(uint64_t records) {
  ensure(unused_ >= records, "a change has its records reserved");
  unused_ -= records;
}

void VolumeMap::assign(Run run, LogReservation& reserved) {
  while (run.count > 0) {
    const Run part{run.in_first_region(), run.source};
    ensure(reserved.unused_ > 0, "an assignment has its records reserved");
    assign_in_region(part);
    reserved.use(1);
    run.remove_first(part.count);
  }
}

void VolumeMap::assign_in_region(const UpdateRecord& update) {
  while (true) {
    std::optional<MissingNode> missing;
    std::shared_ptr<MapLog> log;
    {
      const Lock guard(mutex_);
      pending_.make_room(kRecordBytes);
      UpdateRecord record = update;
      const MapState::Applied applied = state_.apply(record);
      if (!applied.missing) {
        const bool is_new = applied.has_changed && pending_.add_update(update);
        if (!is_new) log_->unreserve(kRecordBytes);
        return;
      }
      missing = applied.missing;
      log = log_;
    }
    load(*missing, 0, log);
  }
}

// --- changing the list of versions

void VolumeMap::change(std::vector<MapRecord> records, LogReservation& reserved) {
  Encoder bytes;
  for (const MapRecord& record : records) encode_record(bytes, record);
  ensure(bytes.size() <= reserved.unused_ * kRecordBytes, "a change fits what was reserved for it");
  pending_.make_room(bytes.size());
  or_stop([&]() REQUIRES(mutex_) {
    for (MapRecord& record : records) state_.apply(record);
  });
  pending_.add(bytes.bytes(), reserved.unused_ * kRecordBytes);
  reserved.use(reserved.unused_);
}

VersionChange::VersionChange(VolumeMap& map) : map_(map), hold_(map.version_mutex_) {}

uint32_t VersionChange::freeze(const FreezeRequest& request, LogReservation& reserved) {
  ensure(reserved.unused_ == kFreezeRecords, "a freeze has its records reserved");
  const Lock guard(map_.mutex_);
  const VersionRecord& current = map_.state_.current();
  const uint32_t frozen = current.number;
  if (frozen >= UINT32_MAX - 1) fail(EOVERFLOW, "volume", "has used up its version numbers");
  FreezeRecord record;
  record.next = frozen + 1;
  record.parent = request.parent == 0 ? frozen : request.parent;
  const VersionRecord* base = std::as_const(map_.state_).find(record.parent);
  if (base == nullptr || (base->is_hidden() && !request.may_be_hidden))
    fail(ENOENT, fmt::format("version {}", record.parent), "is not there any more");
  record.created_ns = request.created_ns != 0 ? request.created_ns : now_unix_ns();
  record.size_bytes = base->size_bytes;
  record.is_unswept = (current.flags & kVersionUnswept) != 0;
  record.for_reader = request.for_reader;
  record.name = request.name;
  record.note = request.note;
  record.origin = request.origin;
  map_.change({std::move(record)}, reserved);
  return frozen;
}

void VersionChange::resize(uint64_t size_bytes) {
  LogReservation reserved(map_, 1);
  const Lock guard(map_.mutex_);
  map_.change({ResizeRecord{size_bytes}}, reserved);
}

void VersionChange::hide(const std::vector<uint32_t>& versions) {
  LogReservation reserved(map_, versions.size(), Reserve::kDeletions);
  const Lock guard(map_.mutex_);
  std::vector<MapRecord> records;
  for (const uint32_t version : versions) {
    const VersionRecord* found = map_.state_.table().find(version);
    if (found == nullptr || found->is_removed()) fail_not_there(version);
    records.push_back(HideRecord{version});
  }
  map_.change(std::move(records), reserved);
}

void VolumeMap::change_forks(const ForkRecord& record) {
  const bool gives_space = std::holds_alternative<UnpinRecord>(record);
  LogReservation reserved(*this, kForkRecords, gives_space ? Reserve::kDeletions : Reserve::kNone);
  const Lock guard(mutex_);
  if (const auto* pin = std::get_if<PinRecord>(&record)) {
    const VersionRecord* found = state_.table().find(pin->version);
    if (found == nullptr || found->is_hidden()) fail_not_there(pin->version);
  }
  change({std::visit([](const auto& any) -> MapRecord { return any; }, record)}, reserved);
}

// --- removed versions

bool VolumeMap::collect_one() {
  const Lock maintenance(maintenance_mutex_);
  run_removals();
  LogReservation reserved(*this, 1, Reserve::kDeletions);
  {
    const Lock guard(mutex_);
    const std::optional<uint32_t> version = state_.table().collectible();
    if (!version) return false;
    change({CollectRecord{*version}}, reserved);
  }
  run_removals();
  return true;
}

void VolumeMap::decide_removals() {
  const Lock maintenance(maintenance_mutex_);
  run_removals();
}

void VolumeMap::run_removals() {
  TreeReader reader(log(), mutex_);
  while (const std::optional<Removal> removal = ask(&MapState::next_removal)) {
    const LoneCells cells = find_lone_cells(reader, *removal);
    const Lock guard(mutex_);
    state_.finish_removal(cells);
  }
}

uint64_t VolumeMap::own_blocks(uint32_t version) {
  if (const auto known = ask(&MapState::own_blocks, version)) return *known;
  const Lock maintenance(maintenance_mutex_);
  const Lock versions(version_mutex_);
  TreeReader reader(log(), mutex_);
  Removal removal;
  {
    const Lock guard(mutex_);
    if (const auto known = state_.own_blocks(version)) return *known;
    removal = state_.begin_count(version);
  }
  std::optional<uint64_t> cells;
  try {
    cells = count_lone_cells(reader, removal);
  } catch (...) {
    const Lock guard(mutex_);
    state_.finish_count(version, std::nullopt);
    throw;
  }
  const Lock guard(mutex_);
  return state_.finish_count(version, cells);
}

void VolumeMap::sync_holes() {
  {
    const Lock guard(mutex_);
    if (!state_.free_ranges().begin_sync()) return;
  }
  sync_holes_();
  const Lock guard(mutex_);
  state_.free_ranges().end_sync();
}

// --- commit

void VolumeMap::commit() {
  commits_.commit([this] { perform_commit(nullptr); });
}

void VolumeMap::perform_commit(const AtCut& at_cut) {
  UpdateBatch::Cut cut;
  std::shared_ptr<MapLog> log;
  const auto take = [&] {
    const Lock guard(mutex_);
    // What may fail comes before anything is taken away.
    state_.free_ranges().cut();
    if (at_cut) at_cut(state_, pending_.journal().end());
    cut = pending_.cut();
    log = log_;
  };
  commits_.perform(take, [&] {
    sync_or_stop(sync_data_);
    if (!cut.records.empty()) {
      log->append(FrameKind::kUpdates, cut.records, cut.reserved_bytes);
      log->sync();
    }
    const Lock guard(mutex_);
    bytes_since_checkpoint_ += cut.records.size();
    pending_.journal().release(cut.position);
    state_.free_ranges().commit();
    free_waiting_.store(state_.free_ranges().waiting(), std::memory_order_relaxed);
    ++stats_.commits;
  });
}

// --- checkpoint

void VolumeMap::checkpoint() {
  const Lock maintenance(maintenance_mutex_);
  checkpoint_locked();
}

void VolumeMap::checkpoint_locked() {
  run_removals();
  sync_holes();
  // What may fail comes before the snapshot, or it would be lost.
  const std::shared_ptr<MapLog> log = this->log();
  CheckpointWriter writer(*log);
  MapSnapshot snapshot;
  LogPosition replay_from{};
  uint64_t bytes = 0;
  bool is_needed = false;
  commits_.run_alone([&] {
    perform_commit([&](MapState& state, uint64_t position) {
      snapshot = state.take_snapshot();
      snapshot.journal_position = position;
    });
    replay_from = log->position();
    const Lock guard(mutex_);
    bytes = std::exchange(bytes_since_checkpoint_, 0);
    is_needed = bytes > 0 || !snapshot.dirty_groups.empty() || snapshot.has_synced_holes;
  });
  if (!is_needed) return;

  try {
    TreeReader reader(log, mutex_);
    writer.write_nodes(snapshot, reader);
    snapshot.live_bytes = ask(&MapState::usage).live_bytes;
    const uint64_t offset = writer.write(snapshot, replay_from);
    log->sync();
    write_pointer(*log, offset, 0, 0);
  } catch (...) {
    {
      const Lock guard(mutex_);
      state_.restore(snapshot);
      bytes_since_checkpoint_ += bytes;
    }
    if (log->has_failed()) commits_.stop(std::current_exception());
    throw;
  }
  const Lock guard(mutex_);
  state_.note_written(snapshot, writer.nodes());
  ++stats_.checkpoints;
}

// --- compaction

void VolumeMap::compact() {
  const Lock maintenance(maintenance_mutex_);
  compact_locked();
}

void VolumeMap::compact_locked() {
  check_usable();
  run_removals();
  sync_holes();
  const std::shared_ptr<MapLog> old = log();
  {
    Compaction compaction(backend_, folder_, volume_, old, mutex_, opening());
    for (int pass = 0; pass < kCompactionPassesMax; ++pass) {
      Compaction::Version current;
      uint64_t leaves = 0;
      commits_.run_alone([&] {
        perform_commit([&](MapState& state, uint64_t) {
          current = {state.current().number, state.current().parent, state.current().root};
          leaves = state.usage().leaves_dirtied;
        });
      });
      compaction.write(versions_to_compact(compaction), current);
      const SharedLock guard(mutex_);
      if (state_.usage().leaves_dirtied - leaves < kFewLeaves) break;
    }
    const Lock versions(version_mutex_);
    commits_.run_alone(
        [&]() REQUIRES(maintenance_mutex_, version_mutex_) { switch_over(compaction, *old); });
  }
  backend_.remove(old->name());
}

std::vector<Compaction::Version> VolumeMap::versions_to_compact(
    const Compaction& compaction) const {
  std::vector<Compaction::Version> versions;
  const SharedLock guard(mutex_);
  for (const auto& [number, version] : state_.table().all())
    if (!compaction.has_written(number)) versions.push_back({number, version.parent, version.root});
  return versions;
}

// No commit runs, and the list of versions does not change.
void VolumeMap::switch_over(Compaction& compaction, MapLog& old) {
  MapSnapshot snapshot;
  perform_commit([&](MapState& state, uint64_t position) {
    snapshot = state.take_snapshot(true);
    snapshot.journal_position = position;
  });
  MapLog& fresh = *compaction.log();
  uint64_t offset = 0;
  uint64_t reserved = 0;
  try {
    offset = compaction.write_checkpoint(versions_to_compact(compaction), snapshot);
    reserved = old.reserved_bytes() + (64 << 10);
    fresh.reserve(reserved, Reserve::kNone);
    fresh.sync();
    backend_.sync_folder(folder_);
  } catch (...) {
    const Lock guard(mutex_);
    state_.restore(snapshot);
    throw;
  }
  // From here on the new log counts: what fails now stops the volume. Until nothing can fail any
  // more, the tree in memory goes with the old log.
  compaction.keep();
  or_stop([&]() REQUIRES(maintenance_mutex_) {
    write_pointer(fresh, offset, 0, 0);
    const Lock guard(mutex_);
    compaction.relocate(state_, snapshot);
    const uint64_t outstanding = old.reserved_bytes();
    if (outstanding > reserved) fresh.adopt_reserved(outstanding - reserved);
    if (outstanding < reserved) fresh.unreserve(reserved - outstanding);
    bytes_since_checkpoint_ = 0;
    compacted_bytes_ = fresh.position().offset;
    log_ = compaction.log();
    ++stats_.compactions;
  });
}

// --- maintenance

bool VolumeMap::wants(Upkeep upkeep) const {
  const SharedLock guard(mutex_);
  const uint64_t pending_bytes = pending_.size_bytes();
  if (upkeep == Upkeep::kCommit)
    return pending_bytes >= kPendingBytesMax || pending_.journal().is_filling(6);
  // Leaves count once their updates are committed; until then they cost no recovery.
  if (upkeep == Upkeep::kCheckpoint)
    return bytes_since_checkpoint_ >= kCheckpointBytes ||
           (state_.usage().dirty_leaves >= kCheckpointLeaves && bytes_since_checkpoint_ > 0 &&
            pending_bytes < kPendingBytesMax / 8);
  const uint64_t tail = log_->position().offset;
  // Whatever the estimates say, a compaction comes after some growth.
  if (tail <= compacted_bytes_ + kCompactionBytesMin) return false;
  if (tail > needed_bytes() + std::max(tail / 2, kCompactionBytesMin)) return true;
  // How much of the log removed versions leave behind is only estimated: when it has doubled, a
  // compaction finds out.
  return state_.usage().has_removed && tail > 2 * compacted_bytes_ + kCompactionBytesMin;
}

bool VolumeMap::must_commit() const {
  return pending_.size_bytes() >= 4 * kPendingBytesMax || pending_.journal().is_filling(7);
}

// Of the log's bytes. Once compacted, each version has frames of its own, one for each level, which
// take that much beyond the nodes in them at most.
uint64_t VolumeMap::needed_bytes() const {
  return state_.usage().live_bytes + bytes_since_checkpoint_ +
         state_.table().all().size() * (kPageLevels + 1) * kSectorBytes;
}

bool VolumeMap::evict_some() {
  const Lock guard(mutex_);
  ++stats_.evictions;
  return state_.evict_some();
}

MapStats VolumeMap::stats() const {
  const SharedLock guard(mutex_);
  MapStats stats = stats_;
  stats.log_bytes = log_->position().offset;
  stats.log_garbage_bytes = stats.log_bytes - std::min(stats.log_bytes, needed_bytes());
  stats.log_generation = log_->generation();
  stats.memory_bytes = loaded_bytes(state_.current().root);
  return stats;
}

VolumeUsage VolumeMap::usage() const {
  const SharedLock guard(mutex_);
  const VersionRecord& current = state_.current();
  uint64_t blocks = current.file_blocks;
  for (const auto& [number, version] : state_.table().all()) blocks += version.file_blocks;
  for (const auto& [number, count] : state_.table().removed_files) blocks += count;
  return {current.number, blocks * kBlockBytes, current.foreign_blocks * kBlockBytes,
          blocks * kBlockBytes + log_->written_bytes()};
}

}  // namespace tplstore
