// One volume: its versions' disks, read and written block by block.
//
// Reading goes through the map (map/volume_map.h): each run of blocks comes from the data file of
// the version that wrote it, from the template, or is zero. Writing: blocks that are current's
// already are overwritten where they are, with no metadata at all. Others are written to current's
// data file, whole (what the request leaves out of a block is read first), and then the map is
// changed.
//
//   overwrite    quiesce, range locks shared, find, write
//   first write  read the rest of split blocks, reserve log space, quiesce, range locks
//                exclusive, find again, write, assign
//   trim, zero   reserve, quiesce, range locks exclusive, punch current's own cells, assign zero
//   new version  reserve, make the next data file, quiesce, freeze the map, go on, commit
//
// Space comes back in the background (volume/space.cpp): cells that a crash left in current's file,
// cells of removed versions, cells that current has replaced.
//
// Opened for reading, only frozen versions are served, and no lock is taken but a shared one that
// keeps the volume from being removed.
//
// Thread safety: all data calls and create_version; open and close while nothing else runs.
// Errors: EIO for all that concerns current, once something has failed so that nobody can tell what
// is durable (a sync, say), until the volume is opened again; ENOSPC; EROFS; std::bad_alloc.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/chore.h"
#include "base/disk.h"
#include "base/grace_period.h"
#include "base/volume_types.h"
#include "lock/writer_lock.h"
#include "map/volume_map.h"
#include "template/template_image.h"
#include "volume/data_files.h"
#include "volume/range_locks.h"
#include "volume/space.h"

namespace tplstore {

// What a volume is given by the store that it belongs to.
struct VolumeEnvironment {
  Backend& backend;
  // Opens a template, or shares one that is open.
  std::function<std::shared_ptr<TemplateImage>(const std::string& name)> open_template;
  std::function<void(const std::string&)> log;
  // Called when there is something to maintain.
  std::function<void()> wake;
  // Ends what takes long.
  std::stop_token stop{};
};

// A version that was frozen for a reader, and what keeps it from being removed.
struct VersionForReader {
  uint32_t number = 0;
  std::unique_ptr<HeldLock> hold;
};

class Volume {
 public:
  static std::string folder_of(const Uuid& volume);
  // Makes the objects of a new volume, all durable; publishing its name is the caller's.
  static void create(Backend& backend, const Uuid& volume, uint64_t size_bytes,
                     const TemplateImage* base);
  // Likewise, of a fork of one of this volume's versions; the version is pinned for it.
  void create_fork(const std::string& version, const Uuid& fork);
  // Takes the writer lock for `peer`, recovers, and starts a new life of the map.
  static std::unique_ptr<Volume> open_for_writing(const VolumeEnvironment& environment,
                                                  const Uuid& volume, const std::string& name,
                                                  const Peer& peer);
  // Freezes a version of a volume that nobody has open, for one who wants to read it as it is now:
  // holds the lock for that long only, and claims nothing. Nothing when somebody has the volume.
  static std::optional<VersionForReader> freeze_unowned(const VolumeEnvironment& environment,
                                                        const Uuid& volume,
                                                        const std::string& name);
  static std::unique_ptr<Volume> open_for_reading(const VolumeEnvironment& environment,
                                                  const Uuid& volume, const std::string& name);
  ~Volume();
  // The volume is another peer's from here on: what was open for nobody, or for one that has left.
  void hand_to(const Peer& peer) { lock_->hand_to(peer); }
  // Whether it must be closed and opened again before it serves anything.
  bool has_failed() const { return map_->has_failed(); }
  // Commits, writes a checkpoint, frees the header and the lock. What fails is logged and leaves
  // the volume as after a crash.
  void close() noexcept;

  const std::string& name() const { return name_; }
  const std::string& template_name() const { return template_name_; }
  uint64_t size_bytes() const { return size_bytes_.load(std::memory_order_relaxed); }

  // --- data; `version` 0 is current, offsets lie within that version's size
  void read(uint32_t version, uint64_t offset, MutableBytes into);
  void extents(uint32_t version, uint64_t offset, uint64_t length,
               const std::function<bool(const Extent&)>& add);
  void cache(uint32_t version, uint64_t offset, uint64_t length);
  void write(uint64_t offset, Bytes from, bool durable);
  void trim(uint64_t offset, uint64_t length, bool durable);
  void zero(uint64_t offset, uint64_t length, bool durable);
  void flush();
  // Returns when the writes, trims and zeroes that had begun before this call have ended; false
  // when one of them has not by then.
  bool wait_for_changes(std::chrono::steady_clock::time_point deadline);

  // --- versions
  uint32_t current_version() { return map()->current(); }
  std::vector<VersionInfo> versions();
  std::vector<VersionRecord> records() { return map()->versions(); }  // the frozen ones
  // By number or name; frozen versions only. ENOENT.
  VersionInfo version(const std::string& number_or_name);
  // One that was frozen for a reader. ENOENT.
  VersionInfo version_for_reader(uint32_t number);
  VersionInfo create_version(const NewVersion& request);
  // Why create_version() would refuse it, if it were called now: EINVAL for a name or a note that
  // no version can have, EEXIST for a name that another one has.
  void check_new_version(const NewVersion& request);
  // Freezes current for one who wants to read it as it is now. EBUSY when there are too many of
  // those. The version is hidden, and removed some time after the hold was let go.
  VersionForReader freeze_for_reader();
  static constexpr size_t kReadersOfCurrentMax = 4;
  VersionInfo rollback(const std::string& number_or_name);
  // Removes frozen versions, all or none: ENOENT, EBUSY when one is being read. Their space comes
  // back in the background.
  std::vector<VersionInfo> remove_versions(const std::vector<std::string>& numbers_or_names);
  // Keeps a version from being removed as long as it is held. EBUSY while that is happening.
  std::unique_ptr<HeldLock> hold_version(uint32_t version);
  // Calls `add` for the ranges within [offset, offset + length) that differ between two versions
  // (0 is current), in rising order.
  void changes(uint32_t from, uint32_t to, uint64_t offset, uint64_t length,
               const std::function<void(const ChangedRange&)>& add);
  void resize(uint64_t size_bytes);

  // --- forks
  std::optional<VersionIdentity> parent() const;  // where it was forked from
  uint64_t shared_bytes();                        // that current has of ancestors
  // Copies what the volume's versions have of its ancestors into files of its own. EBUSY while it
  // has forks itself, or when readers that began before still need the ancestors; ESHUTDOWN when
  // the environment's stop was requested.
  void flatten(const std::function<void(uint64_t done_bytes)>& progress);
  // Whether the volume `fork` is there and needs `parent`.
  static bool is_fork_of(Backend& backend, const Uuid& fork, const Uuid& parent);
  // Forgets forks that are gone; whether some are left.
  bool drop_dead_pins();
  // Of a volume without a name, which only its forks need: removes all else.
  void keep_pinned_only();

  // --- upkeep, from the store's background thread
  void maintain(bool evicts) noexcept;
  // What maintain() does when it is time; at once.
  void checkpoint() { map_->checkpoint(); }
  void compact_log() { map_->compact(); }
  // See volume/space.h.
  bool reclaim(std::chrono::milliseconds budget) { return space_->run(budget); }
  void reclaim_all() { space_->run_all(environment_.stop); }

  VolumeStats stats();
  // How many requests of all kinds there were since it was opened.
  uint64_t requests() const;

 private:
  struct Counters;
  struct Edge;
  class NoForks;

  // Before what has failed to write is tried again: on a full disk it takes the last of it.
  static constexpr std::chrono::seconds kFirstPause{1};

  Volume(const VolumeEnvironment& environment, const Uuid& volume, std::string name);

  // volume/volume.cpp: life and versions
  void open_template(const VolumeHeader& header);
  void recover(Reserve draws_on);
  void use_current(DataFile& file) noexcept;
  void use_sources();
  template <typename Work>
  void attempt(const char* failure, Work work) noexcept;
  void check_is_free(const std::string& version_name);
  VersionInfo freeze(const FreezeRequest& request);
  VersionRecord freeze(VersionChange& change, const FreezeRequest& request);
  VersionInfo info_of(const VersionRecord& record, bool is_current);
  std::shared_ptr<VolumeMap> map();
  bool reload_map(const VolumeMap* old);

  // volume/fork.cpp
  void copy_foreign_cells(const std::function<void(uint64_t)>& progress);
  void forget_copies_or_log();

  // volume/requests.cpp: requests
  template <typename Operation>
  void counted(std::atomic<uint64_t>& requests, std::atomic<uint64_t>* bytes, uint64_t length,
               Operation operation);
  template <typename Operation>
  void change(bool durable, Operation operation);
  template <typename Body>
  void with_map(Body body);
  void read_range(uint32_t version, uint64_t offset, MutableBytes into);
  void read_runs(const RunList& runs, uint64_t offset, MutableBytes into);
  void write_range(uint64_t offset, Bytes from);
  bool try_overwrite(uint64_t offset, Bytes from, RunList& runs);
  bool try_overwrite_split(uint64_t offset, Bytes from, Edge& head, Edge& tail);
  void first_write(uint64_t offset, Bytes from);
  bool try_first_write(uint64_t offset, Bytes from, Edge& head, Edge& tail,
                       LogReservation& reserved);
  void read_edge(Edge& edge, uint32_t source, uint32_t current);
  void discard(uint64_t offset, uint64_t length);
  void discard_blocks(uint64_t first, uint64_t count);
  void zero_part(uint64_t offset, uint64_t length);
  bool reads_as_hole(const Run& run) const;

  const VolumeEnvironment environment_;
  Backend& backend_;
  const Uuid uuid_;
  const std::string folder_;
  const std::string name_;
  std::string template_name_;
  std::shared_ptr<TemplateImage> template_;
  uint64_t template_blocks_ = 0;

  std::unique_ptr<WriterLock> lock_;             // for writing
  std::unique_ptr<HeldLock> readers_;            // for reading
  std::shared_ptr<VolumeMap> map_;               // exchanged by a reader whose log went away
  std::atomic<VolumeMap*> map_in_use_{nullptr};  // that; who reads it is among cell_users_
  std::mutex map_exchange_mutex_;
  std::unique_ptr<DataFiles> files_;
  Quiesce quiesce_;
  RangeLocks range_locks_;
  GracePeriod cell_users_;  // of what has looked up cells, and may read them
  // Of requests that change something and are longer than a pass, from beginning to end.
  GracePeriod changes_;
  uint32_t write_alignment_ = 1;

  // Changed only while requests are quiesced.
  std::atomic<uint32_t> current_{0};
  std::atomic<DataFile*> current_file_{nullptr};
  std::atomic<uint64_t> size_bytes_{0};

  std::unique_ptr<SpaceReclaimer> space_;  // when it is open for writing
  std::mutex pin_mutex_;                   // one fork at a time begins or ends
  bool flattens_ = false;                  // guarded by it: no fork may begin
  // The upkeep's.
  std::chrono::steady_clock::time_point look_for_forks_at_{};
  Chore committing_;
  Chore checkpointing_{kFirstPause};
  Chore compacting_{kFirstPause};
  Chore preparing_;
  Chore reclaiming_;

  std::unique_ptr<Counters> counters_;
};

// Calls `body` with the map for reading, from the beginning if a reader has to read it anew
// meanwhile. What is found in it stays allocated until `body` returns.
template <typename Body>
void Volume::with_map(Body body) {
  for (int tries = 0;; ++tries) {
    VolumeMap* map = nullptr;
    try {
      const GracePeriod::Request request(cell_users_);
      map = map_in_use_.load();
      return body(*map);
    } catch (const Error& error) {
      if (error.code() != ENOENT || tries == 3 || !reload_map(map)) throw;
    }
  }
}

}  // namespace tplstore
