// The map of one volume: where each block of each of its versions lives, and how that becomes
// durable.
//
// A VolumeMap joins what the map is (map/map_state.h), the records that are not durable yet
// (map/update_batch.h), who waits for that (map/commit_pipeline.h) and the log (map/map_log.h).
// What happens goes two ways at once: as a record to the state, and onto the pending list, in the
// same order. What is left here is locks, loading nodes and letting go of them, and lookups.
//
//   commit      cut the pending list; sync the data files; append the cut; sync the log. The cut
//               comes first: no update whose data was not written before the sync becomes durable.
//               Flushes that wait together share one commit.
//   checkpoint  write the nodes that changed, so that recovery has only later records to replay
//               (map/checkpoint.h, map/recovery.h).
//   compaction  write all trees anew into a log of the next generation (map/compaction.h).
//
// A version that is removed is hidden at once. Later it is *collected*: a record takes it out of
// the table, its tree is compared with its successor's, and what only it kept becomes free ranges
// (map/free_ranges.h). The comparison runs behind the record, on roots that were copied with it;
// recovery repeats it. What current stops mapping is decided while it does.
//
// A fork gets its own copy of what it has of its ancestors by *flattening*: their cells are copied
// into files of the same numbers in its own folder. No map changes; at the end the source table is
// dropped. From the beginning on, cells of ancestors that nothing maps any more count as free: a
// cell is either copied and freed later, or not copied. Nothing is punched while cells are copied,
// and no file of a source at or below the base is removed before the end.
//
// An acknowledged change outlives the process, committed or not: beside the pending list records
// are kept in a journal that the host keeps (map/update_journal.h). Opened after an unclean end:
// the log is replayed, what it lacks is applied from the journal, and the open frame of the new
// life names the new journal and has what was applied. So there is no moment in which it is
// neither in a journal that the log names nor in the log.
//
// Opened for writing, what is read is on the disk: objects are synced before they are read, since a
// process that was killed may have left them in the page cache only, and what is cached of them is
// dropped, since after a failed sync it may differ from what is on the disk, for good.
// Opened for reading, nothing is changed on disk, and versions are as of the last commit then.
//
// What is thrown leaves the map as it was, or stops it: from the cut of a commit to its sync, while
// a record is applied, and where a log or the object "map" could not be written, nobody can tell
// what of it counts, so nothing more is accepted until the volume is opened again. That goes for
// whatever is thrown, std::bad_alloc as well as an Error.
//
// Thread safety: all methods, except where said. Lock order: maintenance_mutex_, version_mutex_,
// the pipeline's, mutex_. mutex_ is never held during I/O, but for the last step of a compaction.
// Errors: Error(EIO) for damage and once it is stopped; ENOSPC before anything changes;
// std::bad_alloc.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/mutex.h"
#include "base/spinning_mutex.h"
#include "base/volume_types.h"
#include "map/commit_pipeline.h"
#include "map/compaction.h"
#include "map/map_state.h"
#include "map/recovery.h"
#include "map/update_batch.h"

namespace tplstore {

// What becomes of current when it is frozen, and of what its successor starts.
struct FreezeRequest {
  std::string name;
  std::string note;
  VersionIdentity origin;
  uint32_t parent = 0;  // whose root and size the next version starts with; 0: the frozen one's
  bool may_be_hidden = false;  // that one
  bool for_reader = false;     // hidden from the start; see map/version_table.h
  int64_t created_ns = 0;      // 0: now
};

class VersionChange;
class VolumeMap;

// Log space that is set aside for records before what they tell of is accepted, so that a full disk
// refuses it then. What was not used is released at the end.
class LogReservation {
 public:
  // ENOSPC; EIO once the map is stopped.
  LogReservation(VolumeMap& map, uint64_t records, Reserve draws_on = Reserve::kNone);
  ~LogReservation();
  LogReservation(const LogReservation&) = delete;
  // For an assignment of these blocks: a record for each region.
  static uint64_t records_for(uint64_t first, uint64_t count);

 private:
  friend class VersionChange;
  friend class VolumeMap;
  void use(uint64_t records);

  VolumeMap& map_;
  uint64_t unused_;
};

// What changes the list of versions: there is one at a time, and what follows from what it saw of
// the list holds as long as it is there. Changes are durable after the next commit. Errors: ENOSPC.
class VersionChange {
 public:
  // Freezes current, whose number it returns, and starts the next version. No write is in flight,
  // and kFreezeRecords are reserved.
  uint32_t freeze(const FreezeRequest& request, LogReservation& reserved);
  static constexpr uint64_t kFreezeRecords = 48;
  void resize(uint64_t size_bytes);
  // Hides versions, all or none. ENOENT when one is not there or removed already.
  void hide(const std::vector<uint32_t>& versions);

 private:
  friend class VolumeMap;
  explicit VersionChange(VolumeMap& map);

  VolumeMap& map_;
  const Lock<Mutex> hold_;
};

class VolumeMap {
 public:
  // Makes the map of a fork of this map's version: a copy of that version's tree. The version is
  // pinned before. Returns how many blocks it has of others.
  uint64_t create_fork(uint32_t version, const std::string& folder, const Uuid& fork);
  // Reads the map and replays the log. For writing, call start_writing() before changing anything.
  static std::unique_ptr<VolumeMap> open(Backend& backend, const std::string& folder,
                                         const Uuid& volume, Access access);

  // --- opening for writing
  const Recovery& recovery() const { return recovery_; }
  // What became of records that no commit had covered when the last life ended.
  enum class Kept {
    kAll,   // if there were any
    kLost,  // it is as after a power cut
  };
  // Applies them. The data files of the checkpoint's current and of later versions have been
  // settled before; `has_data` says whether cells occupy space. Errors: what keeps a journal from
  // being read, or, where this process may just not see it, that it is not there.
  Kept apply_kept(JournalPlace& place, const std::function<bool(const Run& cells)>& has_data);
  // They are not to be applied, whoever opens the map next: data may be gone that they lead to.
  void spoil_kept(JournalPlace& place) noexcept;
  // Starts a new life of the log. `sync_data` is what commits call to make the data files durable,
  // `sync_holes` what checkpoints call to make the holes durable that were punched. With a place
  // records are kept there from here on, if it is a server's.
  void start_writing(std::function<void()> sync_data, std::function<void()> sync_holes,
                     Reserve draws_on = Reserve::kDeletions, JournalPlace* place = nullptr);
  // Commits, writes a checkpoint, compacts a small map if it wants that, and marks the map as
  // closed. Nothing may be in flight.
  void close() EXCLUDES(maintenance_mutex_);

  // --- what is there
  // Asks the state something, under the lock: a function of it, or a member function and what it
  // is given. What is returned is a copy.
  template <typename Question, typename... Arguments>
  auto ask(const Question& question, const Arguments&... arguments) const EXCLUDES(mutex_) {
    const SharedLock guard(mutex_);
    return std::invoke(question, state_, arguments...);
  }
  uint32_t current() const {
    return ask([](const MapState& state) { return state.current().number; });
  }
  // The frozen ones, without roots.
  std::vector<VersionRecord> versions() const { return ask(&MapState::frozen_records); }
  std::vector<Pin> pins() const {
    return ask([](const MapState& state) { return state.table().pins; });
  }

  // Appends the runs of blocks of a version; 0 is current. Loads what it needs. ENOENT when there
  // is no such version.
  void find(uint32_t version, BlockRange blocks, RunList& runs);
  // The runs of blocks that come from elsewhere in version `to` than in `from` (0 is current, at
  // one point in time), in rising order; in time proportional to them.
  void find_difference(uint32_t from, uint32_t to, const BlockRange& blocks,
                       const VisitDifference& visit);
  // The cells that any version has; see map/comparison.h.
  void visit_cells(const VisitCells& visit, const VisitUnreadable& unreadable);
  // The runs of a version that come from elsewhere than in the one that it started from, which is
  // like an empty one where it is not there any more.
  void visit_changes(uint32_t version, const std::function<void(const Run& run)>& visit);
  // The cells that removing a version would free; of current, those that it alone has.
  uint64_t own_blocks(uint32_t version);
  void note_swept(uint32_t version) {
    const Lock guard(mutex_);
    state_.note_swept(version);
  }

  // Current; its number.
  uint32_t note_unswept() {
    const Lock guard(mutex_);
    state_.note_swept(0, false);
    return state_.current().number;
  }

  // --- changing current
  // Makes it so, after the data has been written. Uses up reserved records, one for each region.
  void assign(Run run, LogReservation& reserved);

  // --- changing the list of versions
  // Waits for those that began before.
  [[nodiscard]] VersionChange change_versions() { return VersionChange(*this); }
  // Takes out one hidden version that nothing needs; false when there is none.
  bool collect_one();
  // Has it known what cells the versions leave free that were taken out before.
  void decide_removals();
  // Changes how far free ranges have got, under the lock. The holes of those that are taken may be
  // made when all requests that began before have ended.
  template <typename Change>
  auto update_free_ranges(const Change& change) {
    const Lock guard(mutex_);
    struct Count {
      ~Count() {
        map.free_waiting_.store(map.state_.free_ranges().waiting(), std::memory_order_relaxed);
      }
      VolumeMap& map;
    } const count{*this};
    return change(state_.free_ranges());
  }
  size_t free_ranges_waiting() const { return free_waiting_.load(std::memory_order_relaxed); }

  // --- forks; durable after the next commit. ENOSPC
  // Pins a version for a fork (ENOENT when it is not there or hidden), or lets it go. Gives a fork
  // its own copy of what it has of its ancestors: FlattenBeginRecord, copy the foreign_cells() of
  // all regions into files of the same numbers, FlattenEndRecord.
  using ForkRecord = std::variant<PinRecord, UnpinRecord, FlattenBeginRecord, FlattenEndRecord>;
  void change_forks(const ForkRecord& record);
  std::vector<FreeRange> foreign_cells(uint64_t begin_region, uint64_t end_region);

  // Makes durable what was written and assigned before the call.
  void commit();

  // --- maintenance, from a background thread
  enum class Upkeep {
    kCommit,  // many updates are pending that nobody flushes
    kCheckpoint,
    kCompaction,
  };
  bool wants(Upkeep upkeep) const;
  // So many updates are pending that writers have to wait for a commit. Not analysed: what is asked
  // is atomic.
  bool must_commit() const NO_THREAD_SAFETY_ANALYSIS;
  void checkpoint();
  void compact();
  // Lets go of clean nodes, a slice of the tree at a time; false after a whole pass.
  bool evict_some();

  MapStats stats() const;
  VolumeUsage usage() const;
  // Throws when an earlier failure has made the volume unusable until it is opened again.
  void check_usable() const { commits_.check(); }
  // Syncs what data is in, after whose failure nobody can tell what is durable: what it throws
  // stops the map, and goes on to the caller.
  template <typename Sync>
  void sync_or_stop(const Sync& sync) {
    commits_.or_stop([&] {
      try {
        sync();
      } catch (...) {
        // The next life may not hear of it.
        const Lock guard(mutex_);
        pending_.journal().spoil();
        throw;
      }
    });
  }
  // The same, from the handler of what something has thrown.
  void stop() noexcept { commits_.stop(std::current_exception()); }
  bool has_failed() const { return commits_.is_stopped(); }

 private:
  friend class LogReservation;
  friend class VersionChange;

  VolumeMap(Backend& backend, std::string folder, const Uuid& volume, Access access);

  // The log is exchanged with both mutexes held: who has either sees one.
  std::shared_ptr<MapLog> log() const EXCLUDES(mutex_);
  // ENOENT; 0 is current.
  const VersionRecord& find_version(uint32_t version) const REQUIRES_SHARED(mutex_);
  void write_pointer(const MapLog& log, uint64_t checkpoint_offset, uint64_t clean_sequence,
                     uint64_t closed_incarnation) REQUIRES(maintenance_mutex_);
  void load(const MissingNode& missing, uint32_t version, const std::shared_ptr<MapLog>& log)
      EXCLUDES(mutex_);
  void assign_in_region(const UpdateRecord& update) EXCLUDES(mutex_);
  // Changes other than updates, all or none, which take all that is reserved.
  void change(std::vector<MapRecord> records, LogReservation& reserved) REQUIRES(mutex_);
  // `at_cut` is given the state, and the position in the journal.
  using AtCut = std::function<void(MapState&, uint64_t position)>;
  void perform_commit(const AtCut& at_cut) EXCLUDES(mutex_);
  // What throws stops the map.
  template <typename Work>
  void or_stop(const Work& work) {
    commits_.or_stop(work);
  }
  std::unique_ptr<JournalMemory> open_kept(JournalPlace& place);
  bool has_cells(const UpdateRecord& update, const std::function<bool(const Run&)>& has_data)
      EXCLUDES(mutex_);
  LogOpening opening() const;
  void run_removals() REQUIRES(maintenance_mutex_) EXCLUDES(mutex_);
  void sync_holes() REQUIRES(maintenance_mutex_) EXCLUDES(mutex_);
  void checkpoint_locked() REQUIRES(maintenance_mutex_) EXCLUDES(mutex_);
  void compact_locked() REQUIRES(maintenance_mutex_) EXCLUDES(mutex_, version_mutex_);
  void switch_over(Compaction& compaction, MapLog& old) REQUIRES(maintenance_mutex_, version_mutex_)
      EXCLUDES(mutex_);
  std::vector<Compaction::Version> versions_to_compact(const Compaction& compaction) const
      EXCLUDES(mutex_);
  uint64_t needed_bytes() const REQUIRES_SHARED(mutex_);

  Backend& backend_;
  const std::string folder_;
  const Uuid volume_;

  Mutex maintenance_mutex_;  // one checkpoint or compaction at a time
  Mutex version_mutex_;      // one change of the list of versions at a time
  CommitPipeline commits_;
  std::function<void()> sync_data_;
  std::function<void()> sync_holes_;
  Recovery recovery_;
  ByteVector kept_;  // what was applied of the last life's journal and is not in the log yet
  JournalPlace* place_ = nullptr;
  JournalName journal_;  // of this life
  MapPointerObject pointer_ GUARDED_BY(maintenance_mutex_);

  mutable SpinningSharedMutex mutex_;
  std::shared_ptr<MapLog> log_ GUARDED_BY(mutex_);
  MapState state_ GUARDED_BY(mutex_);
  UpdateBatch pending_ GUARDED_BY(mutex_);
  std::atomic<size_t> free_waiting_{0};
  uint64_t bytes_since_checkpoint_ GUARDED_BY(mutex_);
  // The log's, after the last compaction or at the opening.
  uint64_t compacted_bytes_ GUARDED_BY(mutex_);
  MapStats stats_ GUARDED_BY(mutex_);
};

}  // namespace tplstore
