// The life of a volume: opening, recovering, upkeep, closing.
#include "volume/volume.h"

#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "volume/version_set.h"

namespace tplstore {

using Clock = std::chrono::steady_clock;

namespace {

// How long a volume's upkeep gives back space before other volumes have their turn.
constexpr std::chrono::milliseconds kReclaimBudget{100};
// Holes, and the commit that comes before them, are in the way of a guest that writes. As long as
// one does there is such a pause before the next turn; unless so much waits, or room is scarce.
constexpr std::chrono::seconds kReclaimPause{5};
constexpr std::chrono::milliseconds kGuestRests{250};
constexpr size_t kFreeRangesMax = 1 << 18;
constexpr std::chrono::milliseconds kCloseReclaimBudget{1000};
// A VM that wants the volume meanwhile waits for this.
constexpr std::chrono::milliseconds kUnownedReclaimBudget{100};
// How long a fork that was removed elsewhere may go unnoticed.
constexpr std::chrono::seconds kForksInterval{10};

}  // namespace

std::unique_ptr<Volume> Volume::open_for_writing(const VolumeEnvironment& environment,
                                                 const Uuid& uuid, const std::string& name,
                                                 const Claim& claim) {
  std::unique_ptr<Volume> volume(new Volume(environment, uuid, name));
  OpenVolume& open = volume->open_;
  open.lock = WriterLock::acquire(open.backend, open.folder, uuid, name, claim, environment.log);
  try {
    open.open_template(open.lock->header());
    volume->recover(Reserve::kDeletions);
    if (claim.is_connection && claim.peer.is_vm && volume->versions_.is_importing())
      fail(EIO, open.object,
           "an import into it was cut off, and cannot be undone now (see the log), so what it has "
           "is half of something: 'tplstore version rollback {} VERSION' puts it back",
           name);
    return volume;
  } catch (...) {
    open.attempt("cannot be opened", [] { throw; });
    open.attempt("its header says that it is in use, which the next opening corrects",
                 [&] { open.lock->put_back(); });
    throw;
  }
}

void Volume::recover(Reserve draws_on) {
  open_.open_map(Access::kWrite);
  VolumeMap& map = open_.map();
  DataFiles& files = open_.files;
  if (!map.recovery().was_closed_cleanly) recover_last_life();
  // Not before all is applied that may lead to them.
  const uint32_t current = map.current();
  files.remove_above(current);
  // What was frozen in an earlier life of this process and is not now.
  if (open_.environment.cells != nullptr)
    open_.environment.cells->forget_versions(open_.uuid, current);
  space_.emplace(open_);
  forks_.emplace(open_, versions_, *space_);
  open_.use_current(files.begin(current));
  map.start_writing(
      [&files] { files.sync_written(); },
      [&files, &map] {
        // A failed sync is told once, and may have been a flush's to hear.
        files.sync_holes([&](Object& file) { map.sync_or_stop([&] { file.sync(); }); });
      },
      draws_on, open_.environment.journals);
  open_.attempt("a version that was to be made with others' stays, unlisted", [this] {
    VersionChange change = open_.map().change_versions();
    settle_version_sets(open_, change);
  });
  open_.attempt("what an import has left that was cut off is not undone",
                [this] { versions_.undo_import(); });
  open_.record_size();
  open_.lock->when_failed([&map] { map.stop(); });
}

void Volume::recover_last_life() {
  VolumeMap& map = open_.map();
  DataFiles& files = open_.files;
  JournalPlace* const journals = open_.environment.journals;
  open_.environment.log(LogLevel::kNotice,
                        fmt::format("{}: was not closed, recovered it", open_.object));
  // What was written may be in the page cache only, and after a failed sync it stays there for
  // good: it must not go away again after it has been served.
  try {
    files.settle_from(map.recovery().first_current);
  } catch (...) {
    // Which is told once.
    if (journals != nullptr) map.spoil_kept(*journals);
    throw;
  }
  if (journals == nullptr) return;
  std::map<uint32_t, std::unique_ptr<Object>> opened;
  const auto have_data = [&](const Run& cells) {
    const auto [file, is_new] = opened.try_emplace(cells.source);
    if (is_new) file->second = files.open_for_punching(cells.source);
    return file->second &&
           has_data(*file->second, cells.first * kBlockBytes, cells.count * kBlockBytes);
  };
  if (map.apply_kept(*journals, have_data) == VolumeMap::Kept::kAll) return;
  open_.environment.log(
      fmt::format("{}: what was written to it and not flushed before its server ended is lost, as "
                  "after a power cut",
                  open_.object));
  open_.lock->lose_writes(open_.name);
}

std::optional<VersionForReader> Volume::freeze_unowned(const VolumeEnvironment& environment,
                                                       const Uuid& uuid, const std::string& name) {
  Volume volume(environment, uuid, name);
  OpenVolume& open = volume.open_;
  open.lock = WriterLock::borrow(open.backend, open.folder, uuid, name);
  if (!open.lock) return std::nullopt;
  open.open_template(open.lock->header());
  // On a full disk what is kept for opening is for those who can make room.
  volume.recover(Reserve::kNone);
  // Versions of readers before, or every one that comes while there is no owner would leave one.
  open.attempt("not all space could be given back",
               [&] { volume.space_->run(kUnownedReclaimBudget); });
  VersionForReader frozen = volume.versions_.freeze_for_reader();
  open.map().close();
  open.files.remove_prepared();
  return frozen;
}

std::unique_ptr<Volume> Volume::open_for_reading(const VolumeEnvironment& environment,
                                                 const Uuid& uuid, const std::string& name) {
  std::unique_ptr<Volume> volume(new Volume(environment, uuid, name));
  OpenVolume& open = volume->open_;
  open.readers = open.backend.try_lock(readers_name(open.folder), LockMode::kShared);
  if (!open.readers) fail(EBUSY, open.object, "is being removed");
  open.open_template(read_header(open.backend, open.folder, uuid));
  open.open_map(Access::kRead);
  open.size_bytes = open.map().ask(&MapState::current_record).size_bytes;
  return volume;
}

bool Volume::close(const std::optional<LockLeave>& last) noexcept {
  if (!open_.lock) return true;
  // What takes longer, or fails, goes on when the volume is opened again.
  open_.attempt("not all space could be given back", [this] { space_->run(kCloseReclaimBudget); });
  const bool is_closed =
      open_.attempt("could not be closed cleanly, the next opening recovers it", [this] {
        open_.map().close();
        open_.attempt("the next version's file could not be removed",
                      [this] { open_.files.remove_prepared(); });
      });
  const bool is_recorded =
      open_.attempt("its header says that it is in use, which the next opening corrects", [&] {
        open_.record_size();
        open_.lock->note_usage(open_.map().usage());
        if (last) open_.lock->apply(*last);
      });
  // The record that stays says it too; for those who only look.
  if (!last) open_.attempt("what it takes was not noted", [this] { open_.lock->record_usage(); });
  open_.lock.reset();
  return is_closed && is_recorded;
}

std::vector<SourceRow> Volume::ancestors() {
  return open_.with_map([](VolumeMap& map) {
    return map.ask([](const MapState& state) { return state.table().sources; });
  });
}

void Volume::resize(uint64_t size_bytes) {
  VersionChange change = open_.map().change_versions();
  if (size_bytes <= this->size_bytes())
    fail(EINVAL, open_.object, "has {} bytes, and can only grow; {} is not more",
         this->size_bytes(), size_bytes);
  open_.current_file.load()->grow(size_bytes);
  change.resize(size_bytes);
  open_.size_bytes = size_bytes;
  open_.map().commit();
  open_.lock->resize(size_bytes);
}

// --- upkeep

void Volume::maintain(bool evicts) noexcept {
  const auto say = [this](const char* why) {
    open_.environment.log(fmt::format("{}: upkeep failed: {}", open_.object, why));
  };
  if (open_.lock) {
    VolumeMap& map = open_.map();
    if (map.wants(VolumeMap::Upkeep::kCommit)) committing_.attempt(say, [&] { map.commit(); });
    if (map.wants(VolumeMap::Upkeep::kCheckpoint))
      checkpointing_.attempt(say, [&] { map.checkpoint(); });
    if (map.wants(VolumeMap::Upkeep::kCompaction)) compacting_.attempt(say, [&] { map.compact(); });
    preparing_.attempt(say, [&] {
      const VersionChange change = map.change_versions();
      open_.files.prepare(open_.current + 1, size_bytes());
    });
    reclaiming_.attempt(say, [this] {
      if (Clock::now() >= look_for_forks_at_) {
        look_for_forks_at_ = Clock::now() + kForksInterval;
        forks_->drop_dead();
      }
      if (!is_time_to_reclaim()) return;
      const bool has_more = space_->run(kReclaimBudget);
      reclaim_at_ = Clock::now() + kReclaimPause;
      if (has_more) open_.environment.wake();
    });
  }
  if (!evicts) return;
  while (open_.with_map([](VolumeMap& map) { return map.evict_some(); })) {
  }
}

bool Volume::is_time_to_reclaim() {
  const auto now = Clock::now();
  const uint64_t writes = this->writes();
  if (std::exchange(writes_seen_, writes) != writes) busy_until_ = now + kGuestRests;
  if (now >= std::min(reclaim_at_, busy_until_)) return true;
  if (open_.map().free_ranges_waiting() >= kFreeRangesMax) return true;
  const auto space = open_.backend.space();
  return !space || space->free_bytes < kRoomBytes;
}

uint64_t Volume::writes() const {
  return counters_.total(Counter::kWrites) + counters_.total(Counter::kTrims) +
         counters_.total(Counter::kZeroes);
}

uint64_t Volume::requests() const {
  uint64_t sum = 0;
  for (const Counter counter : {Counter::kReads, Counter::kWrites, Counter::kTrims,
                                Counter::kZeroes, Counter::kFlushes, Counter::kExtents})
    sum += counters_.total(counter);
  return sum;
}

VolumeStats Volume::stats() {
  VolumeStats stats;
  stats.name = open_.name;
  stats.usage = open_.map().usage();
  stats.size_bytes = size_bytes();
  for (size_t i = 0; i < kCounterCount; ++i)
    stats.counters[i] = counters_.total(static_cast<Counter>(i));
  stats.map = open_.map().stats();
  return stats;
}

}  // namespace tplstore
