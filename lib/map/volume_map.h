// The map of one volume: where each block of each of its versions lives, and how that becomes
// durable.
//
// A VolumeMap joins the tree of current (map/tree.h), the frozen versions (map/version_table.h) and
// the log (map/map_log.h). What happens to it goes two ways at once: into the tree in memory, and
// as a record onto the pending list, in the same order.
//
//   commit      cut the pending list; sync the data files; append the cut; sync the log. The cut
//               comes first: no update whose data was not written before the sync becomes durable.
//               Flushes that wait together share one commit.
//   checkpoint  write the nodes that changed, so that recovery has only later records to replay.
//   compaction  write all trees anew into a log of the next generation, parents before children:
//               where a version's slot equals its parent's, it takes the parent's new word, so
//               what was shared stays shared without a table of everything.
//
// A version that is removed is hidden at once. Later it is *collected*: a record takes it out of
// the table, its tree is compared with its successor's, and what only it kept becomes free ranges
// (map/free_ranges.h). The comparison runs behind the record, on roots that were copied with it;
// recovery repeats it. What current stops mapping is decided while it does.
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
// commit_mutex_, mutex_, failure_mutex_. mutex_ is never held during I/O, but for the last step of
// a compaction.
// Errors: Error(EIO) for damage and once it is stopped; ENOSPC before anything changes;
// std::bad_alloc.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <shared_mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/superblock.h"
#include "base/spinning_mutex.h"
#include "map/free_ranges.h"
#include "map/interval.h"
#include "map/map_log.h"
#include "map/records.h"
#include "map/tree.h"
#include "map/tree_reader.h"
#include "map/tree_writer.h"
#include "map/version_table.h"

namespace tplstore {

struct MapStats {
  uint64_t commits = 0;
  uint64_t checkpoints = 0;
  uint64_t compactions = 0;
  uint64_t loads = 0;
  uint64_t evictions = 0;  // passes of the evictor
  uint64_t log_bytes = 0;
  uint64_t log_garbage_bytes = 0;
  uint64_t log_generation = 0;
  uint64_t memory_bytes = 0;  // of current's loaded nodes
};

// What becomes of current when it is frozen, and of what its successor starts.
struct FreezeRequest {
  std::string name;
  std::string note;
  VersionIdentity origin;
  uint32_t parent = 0;  // whose root and size the next version starts with; 0: the frozen one's
  bool may_be_hidden = false;  // that one
  bool for_reader = false;     // hidden from the start; see map/version_table.h
};

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
  friend class VolumeMap;
  void use(uint64_t records);

  VolumeMap& map_;
  uint64_t unused_;
};

// As long as it is there its holder alone changes the list of versions: freezes, hides, resizes.
class VersionChange {
 private:
  friend class VolumeMap;
  explicit VersionChange(std::mutex& mutex) : hold_(mutex) {}

  std::unique_lock<std::mutex> hold_;
};

class VolumeMap {
 public:
  // Makes the map of a new, empty volume: "map.1" and "map" in `folder`; durable on return, but
  // for the folder itself.
  static void create(Backend& backend, const std::string& folder, const Uuid& volume,
                     uint64_t size_bytes);
  // Makes the map of a fork of this map's version: a copy of that version's tree. The version is
  // pinned before.
  void create_fork(uint32_t version, const std::string& folder, const Uuid& fork);
  // Reads the map and replays the log. For writing, call start_writing() before changing anything.
  static std::unique_ptr<VolumeMap> open(Backend& backend, const std::string& folder,
                                         const Uuid& volume, Access access);

  // --- opening for writing
  // Frozen versions whose data files may not be durable, since their freezing was replayed.
  const std::vector<uint32_t>& replayed_versions() const { return replayed_versions_; }
  bool was_closed_cleanly() const { return was_closed_cleanly_; }
  // Starts a new life of the log. The data files of current and of replayed_versions() have been
  // settled before. `sync_data` is what commits call to make
  // the data files durable, `sync_holes` is what checkpoints call to make the holes durable that
  // were punched.
  void start_writing(std::function<void()> sync_data, std::function<void()> sync_holes,
                     Reserve draws_on = Reserve::kDeletions);
  // Commits, writes a checkpoint, compacts a small map if it wants that, and marks the map as
  // closed. Nothing may be in flight.
  void close();

  // Versions whose files may have cells that are not mapped, since a crash; until they are swept.
  std::vector<uint32_t> unswept_versions() const;
  void note_swept(uint32_t version);

  // --- what is there
  uint32_t current() const;
  uint64_t size_bytes() const;               // of current
  uint64_t size_of(uint32_t version) const;  // 0 when it is not there
  bool is_flattening() const;
  VersionRecord current_record() const;         // without root
  std::vector<VersionRecord> versions() const;  // the frozen ones, without roots
  std::optional<VersionRecord> version(uint32_t number) const;
  std::optional<VersionRecord> version(const std::string& number_or_name) const;

  // Appends the runs of blocks [first, first + count) of a version; 0 is current. Loads what it
  // needs. ENOENT when there is no such version.
  void find(uint32_t version, uint64_t first, uint64_t count, RunList& runs);
  // The runs of blocks [first, first + count) that come from elsewhere in version `to` than in
  // `from` (0 is current, at one point in time), in rising order; in time proportional to them.
  void find_difference(uint32_t from, uint32_t to, uint64_t first, uint64_t count,
                       const std::function<void(const Run& from, const Run& to)>& visit);
  // The cells that removing a version would free; of current, those that it alone has.
  uint64_t own_blocks(uint32_t version);
  // Which volumes' files the sources are in; empty unless the volume is a fork.
  std::vector<SourceRow> sources() const;
  // Cells in the files of removed versions. For tests.
  std::map<uint32_t, uint64_t> removed_files() const;

  // --- changing current
  // Gives the blocks to `source`, after their data has been written. Uses up reserved records, one
  // for each region.
  void assign(uint64_t first, uint64_t count, uint32_t source, LogReservation& reserved);
  // Whether cells become free when current stops mapping these runs.
  bool frees_cells(const RunList& runs) const;

  // --- changing the list of versions; durable after the next commit. ENOSPC
  // Waits for those that began before.
  [[nodiscard]] VersionChange change_versions() { return VersionChange(version_mutex_); }
  // Freezes current, whose number it returns, and starts the next version. No write is in flight,
  // and kFreezeRecords are reserved.
  uint32_t freeze(const VersionChange& change, const FreezeRequest& request,
                  LogReservation& reserved);
  static constexpr uint64_t kFreezeRecords = 48;
  void resize(const VersionChange& change, uint64_t size_bytes);
  // Hides versions, all or none. ENOENT when one is not there or removed already.
  void hide(const VersionChange& change, const std::vector<uint32_t>& versions);
  // Those that were frozen for readers, and are not removed yet.
  std::vector<uint32_t> versions_for_readers() const;
  // Takes out one hidden version that nothing needs; false when there is none.
  bool collect_one();
  bool wants_collection() const;
  // Free ranges whose holes may be punched, up to `max`, when all requests that began before this
  // call have ended. Then one of the other two; the ranges of files in `failed` are put aside.
  std::vector<FreeRange> take_free_ranges(size_t max);
  void finish_free_ranges(const std::set<uint32_t>& failed = {});
  void give_back_free_ranges();
  void retry_free_ranges();  // those that were put aside
  size_t free_ranges_waiting() const { return free_waiting_.load(std::memory_order_relaxed); }
  bool wants_to_free() const;  // something is free that no commit covers yet
  // Whether something is free and not punched, or could be collected, now or when its reader has
  // gone.
  bool has_outstanding() const;

  // --- forks; durable after the next commit. ENOSPC
  void pin(uint32_t version, const Uuid& fork);  // ENOENT when it is not there or hidden
  void unpin(const Uuid& fork);
  std::vector<Pin> pins() const;
  // A fork gets its own copy of what it has of its ancestors: begin, copy all that
  // visit_foreign_cells() tells of all regions into files of the same numbers, end.
  void begin_flatten();
  void visit_foreign_cells(uint64_t begin_region, uint64_t end_region,
                           const std::function<void(const FreeRange& cells)>& visit);
  void end_flatten();

  // Makes durable what was written and assigned before the call.
  void commit();

  // --- maintenance, from a background thread
  bool wants_commit() const;  // many updates pending that nobody flushes
  bool must_commit() const;   // so many that writers have to wait for one
  bool wants_checkpoint() const;
  bool wants_compaction() const;
  void checkpoint();
  void compact();
  // Lets go of clean nodes, a slice of the tree at a time; false after a whole pass.
  bool evict_some();

  MapStats stats() const;
  // Throws when an earlier failure has made the volume unusable until it is opened again.
  void check_usable() const;
  // Does something after whose failure nobody can tell what is durable: what it throws stops the
  // map, and goes on to the caller.
  template <typename Work>
  void or_stop(Work work) {
    try {
      work();
    } catch (...) {
      note_failure(std::current_exception());
      throw;
    }
  }

  // After an error that leaves open what is durable: everything throws until it is opened again.
  bool has_failed() const { return has_failed_.load(std::memory_order_acquire); }

 private:
  friend class LogReservation;
  static constexpr uint64_t kPinRecords = 2;  // of pin() and unpin()

  VolumeMap(Backend& backend, std::string folder, const Uuid& volume, Access access);

  // What a checkpoint holds, as of one cut.
  struct Snapshot {
    VersionRecord current;                        // with its root
    std::map<uint32_t, VersionRecord> unwritten;  // versions whose trees may be in memory only
    std::set<uint32_t> unwritten_numbers;         // of those
    std::set<uint32_t> dirty_groups;
    std::map<uint32_t, VersionRecord> rows;  // of those groups
    uint64_t dirty_leaves = 0;
    std::vector<SourceRow> sources;
    bool flattens = false;
    std::vector<Pin> pins;
    std::map<uint32_t, uint64_t> removed_files;
    std::vector<FreeRange> free_ranges;
    bool has_punched = false;
  };
  // A version that was taken out, to be compared with what came after it.
  struct Removal {
    uint32_t floor;
    NodeRef root;
    NodeRef successor;
    NodeRef ancestor;
  };

  // map/recovery.cpp
  void recover();
  uint64_t load_checkpoint(uint64_t offset, LogPosition& replay_from);
  static void write_first_pointer(Backend& backend, const std::string& folder, const Uuid& volume,
                                  MapLog& log, uint64_t checkpoint_offset);
  void replay(const LogFrame& frame);
  void replay_freeze(uint32_t next, uint32_t parent, Decoder& decoder);
  void write_pointer(uint64_t checkpoint_offset, uint64_t clean_sequence);

  // map/volume_map.cpp
  void load(const MissingNode& missing, uint32_t version, const std::shared_ptr<MapLog>& log);
  NodeRef* root_of(uint32_t version);
  VersionRecord* record_of(uint32_t version);  // current's too; nullptr when it is not there
  void assign_in_region(uint64_t region, uint32_t first, uint32_t count, uint32_t source,
                        bool is_replay);
  void put_pending_update(uint64_t first, uint32_t count, uint32_t source);
  void account(const RunList& before, uint32_t source, uint32_t count);
  void make_pending_room(uint64_t records);
  void put_record(const RecordHeader& record, Bytes body = {}, uint64_t reserved_records = 1);
  // A change of the list of versions: makes room for the records that are reserved, and applies
  // it; put_record() cannot fail then. With mutex_ held.
  template <typename Apply>
  void change(LogReservation& reserved, Apply apply) {
    make_pending_room(reserved.unused_);
    or_stop(apply);
    reserved.use(reserved.unused_);
  }
  void apply_freeze(uint32_t next, uint64_t size_bytes, int64_t now_ns,
                    const FreezeRequest& request);
  void refresh_floor();
  // Runs `body` while no commit runs.
  void run_exclusively(const std::function<void()>& body);
  void commit_cut(const std::function<void()>& at_cut);
  void note_failure(std::exception_ptr failure) noexcept;

  // map/removal.cpp
  void apply_hide(uint32_t version);
  void apply_collect(uint32_t version);
  void run_removals();
  void release(uint32_t source, uint64_t first, uint32_t count);
  bool release_cells(uint32_t source, uint64_t count);
  void sync_holes();
  Removal removal_of(const VersionRecord& version);
  static uint64_t count_cells(const TreeReader::Removal& region, uint32_t floor);

  // map/fork_map.cpp
  void apply_pin(uint32_t version, const Uuid& fork);
  void apply_unpin(const Uuid& fork);
  void apply_flatten_begin();
  void apply_flatten_end();

  // map/checkpoint.cpp
  void checkpoint_locked();
  Snapshot take_snapshot();
  void restore(Snapshot& snapshot, uint64_t bytes) noexcept;
  void plan_dirty(TreeWriter& writer, Node* node, TreeWriter::Place place);
  static uint64_t root_word(const TreeWriter& writer, const NodeRef& root);
  static uint64_t write_group(MapLog& log, uint32_t group, uint32_t current,
                              const std::map<uint32_t, VersionRecord>& versions,
                              std::map<uint32_t, NodeAddress>& groups);
  static uint64_t write_checkpoint_frame(MapLog& log, const Snapshot& snapshot,
                                         uint64_t current_root, const LogPosition& replay_from,
                                         uint64_t live_bytes,
                                         const std::map<uint32_t, NodeAddress>& groups);

  // map/compaction.cpp
  class Compaction;
  void compact_locked();
  uint64_t needed_bytes() const;
  bool is_small() const;  // so that a compaction is a matter of milliseconds

  Backend& backend_;
  const std::string folder_;
  const Uuid volume_;
  const Access access_;

  std::mutex maintenance_mutex_;  // one checkpoint or compaction at a time
  std::mutex version_mutex_;      // one change of the list of versions at a time

  mutable std::mutex commit_mutex_;
  std::condition_variable commit_ended_;
  bool commit_runs_ = false;
  uint64_t commits_started_ = 0;
  uint64_t commits_finished_ = 0;
  std::function<void()> sync_data_;
  std::function<void()> sync_holes_;

  mutable std::mutex failure_mutex_;
  std::exception_ptr failure_;  // why the volume cannot be used any more
  std::atomic<bool> has_failed_{false};

  mutable SpinningSharedMutex mutex_;  // guards all below
  std::shared_ptr<MapLog> log_;
  NodeRef root_;           // of current
  VersionRecord current_;  // its root member is not used
  VersionTable table_;
  // Of the cells that current stops mapping, those with sources above its floor are free. Those
  // above its parent's floor are the parent's alone then.
  uint32_t floor_ = 0;
  VersionRecord* parent_ = nullptr;  // current's, when it is retained
  uint32_t parent_group_ = 0;        // of versions; when the parent is taken out, still that
  uint32_t parent_floor_ = 0;
  std::vector<Removal> removals_;  // not compared yet
  FreeRanges free_;
  std::atomic<size_t> free_waiting_{0};  // may be read without the lock
  bool is_parent_dirty_ = false;         // its group is to be among the dirty ones
  bool has_punched_ = false;             // some of what the last checkpoint lists as free
  std::set<uint32_t> dirty_groups_;
  std::set<uint32_t> unwritten_versions_;   // frozen since the last checkpoint
  ByteVector pending_;                      // records that are not in the log yet
  uint64_t pending_reserved_ = 0;           // bytes reserved for them
  std::atomic<uint64_t> pending_bytes_{0};  // may be read without the lock
  bool last_pending_is_update_ = false;
  uint64_t live_bytes_ = 0;
  uint64_t dirty_leaves_ = 0;       // since the last checkpoint
  uint64_t compaction_leaves_ = 0;  // since the last pass of a compaction
  uint64_t compacted_bytes_ = 0;    // the log's, after the last compaction or at the opening
  bool has_removed_ = false;        // a version, since then
  uint64_t bytes_since_checkpoint_ = 0;
  uint64_t evict_cursor_ = 0;
  MapStats stats_;

  std::unique_ptr<Object> pointer_object_;  // "map"
  Superblock<MapPointer> pointer_slots_{kMapPointerMagic};
  uint64_t checkpoint_offset_ = 0;
  uint64_t clean_sequence_ = 0;  // that the pointer had when it was read
  std::vector<uint32_t> replayed_versions_;
  bool was_closed_cleanly_ = false;
  LogPosition recovered_to_{};
};

}  // namespace tplstore
