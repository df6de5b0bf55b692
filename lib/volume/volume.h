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
//   trim, zero   reserve, quiesce, range locks exclusive, assign zero, punch what were current's
//                own cells
//   new version  reserve, make the next data file, quiesce, freeze the map, go on, commit
//
// What else belongs to it: its versions (volume/versions.h), its forks (volume/forks.h), and how it
// gives space back in the background (volume/space.h).
//
// Thread safety: all data calls and upkeep; open, and close, but for what that says, while nothing
// else runs.
// Errors: EIO for all that concerns current, once something has failed so that nobody can tell what
// is durable (a sync, say), until the volume is opened again; ENOSPC; EROFS; std::bad_alloc.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/chore.h"
#include "base/disk.h"
#include "volume/counters.h"
#include "volume/creation.h"
#include "volume/forks.h"
#include "volume/open_volume.h"
#include "volume/space.h"
#include "volume/versions.h"

namespace tplstore {

class Volume {
 public:
  // Takes the writer lock, recovers, and starts a new life of the map.
  static std::unique_ptr<Volume> open_for_writing(const VolumeEnvironment& environment,
                                                  const Uuid& volume, const std::string& name,
                                                  const Claim& claim);
  // Freezes a version of a volume that nobody has open, for one who wants to read it as it is now:
  // holds the lock for that long only, and claims nothing. Nothing when somebody has the volume.
  static std::optional<VersionForReader> freeze_unowned(const VolumeEnvironment& environment,
                                                        const Uuid& volume,
                                                        const std::string& name);
  static std::unique_ptr<Volume> open_for_reading(const VolumeEnvironment& environment,
                                                  const Uuid& volume, const std::string& name);
  // Who may write it; of a volume that is open for writing.
  WriterLock& writer_lock() { return *open_.lock; }
  // Whether it must be closed and opened again before it serves anything.
  bool has_failed() const { return open_.map().has_failed(); }
  // Commits, writes a checkpoint, has the header say that `last` has left, and frees the lock;
  // without one the header goes on saying who has the volume. What fails is logged and leaves the
  // volume as after a crash; whether nothing did. Reads and flushes may go on meanwhile.
  bool close(const std::optional<LockLeave>& last = LockLeave{}) noexcept;

  const std::string& name() const { return open_.name; }
  uint64_t size_bytes() const { return open_.size_bytes.load(std::memory_order_relaxed); }
  Versions& versions() { return versions_; }
  // Of a volume that is open for writing.
  Forks& forks() { return *forks_; }
  SpaceReclaimer& space() { return *space_; }

  // --- data; `version` 0 is current, offsets lie within that version's size
  // The follower is one of the writer's, who reads current.
  void read(uint32_t version, uint64_t offset, MutableBytes into, ReadFollower* follower = nullptr);
  // Calls `body` with the places of what current still has of these runs from their sources, in
  // their order. They are good until it returns.
  void with_cells(std::span<const CellRun> runs,
                  const std::function<void(std::span<const CellPlace>)>& body);
  void extents(uint32_t version, uint64_t offset, uint64_t length,
               const std::function<bool(const Extent&)>& add);
  // Calls `add` for the ranges within [offset, offset + length) that differ between two versions,
  // in rising order. `from` may be kBeforeFirstVersion.
  void changes(uint32_t from, uint32_t to, uint64_t offset, uint64_t length,
               const std::function<void(const ChangedRange&)>& add);
  void cache(uint32_t version, uint64_t offset, uint64_t length);
  // Whoever may lose the right to change something, or get it later, has a Right: it is looked at
  // when the change is counted in, so who takes it away and then waits for changes has seen the
  // last one. A change that must wait for the right is not counted in meanwhile.
  struct Right {
    enum class State { kHas, kWaits, kLost };
    std::atomic<State> state{State::kHas};
    std::function<void()> wait;  // until it is another one than kWaits

    void check_read() const {
      if (state.load() == State::kLost) [[unlikely]]
        fail_lost();
    }
    bool has() const { return state.load() == State::kHas; }
    void await() const;                    // returns when something may be changed
    [[noreturn]] static void fail_lost();  // ESHUTDOWN
  };
  static const Right kAlways;
  void write(uint64_t offset, Bytes from, bool durable, const Right& right = kAlways);
  void trim(uint64_t offset, uint64_t length, bool durable, const Right& right = kAlways);
  void zero(uint64_t offset, uint64_t length, bool durable, const Right& right = kAlways);
  void flush();
  // Returns when the writes, trims and zeroes that had begun before this call have ended; false
  // when one of them has not by then.
  bool wait_for_changes(std::chrono::steady_clock::time_point deadline);
  // Whether nothing has begun to change something since the last flush began.
  bool has_flushed() const { return writes_at_flush_.load() == writes(); }
  void resize(uint64_t size_bytes);  // grows
  // Of a fork: whose files have blocks of which versions, the nearest ancestor last.
  std::vector<SourceRow> ancestors();

  // --- upkeep, from the store's background thread
  void maintain(bool evicts) noexcept;
  // What maintain() does when it is time; at once.
  void checkpoint() { open_.map().checkpoint(); }
  void compact_log() { open_.map().compact(); }

  VolumeStats stats();
  // How many requests of all kinds there were since it was opened.
  uint64_t requests() const;
  uint64_t writes() const;  // of these, the ones that change something

 private:
  struct Edge;

  // Before what has failed to write is tried again: on a full disk it takes the last of it.
  static constexpr std::chrono::seconds kFirstPause{1};

  Volume(const VolumeEnvironment& environment, const Uuid& volume, const std::string& name)
      : open_(environment, volume, name) {}

  void recover(Reserve draws_on);
  void recover_last_life();

  template <RequestKind kind, typename Operation>
  void counted(uint64_t length, Operation operation);
  template <typename Operation>
  void change(bool durable, Operation operation);
  template <typename Pass, typename Gate>
  void enter(std::optional<Pass>& pass, Gate& gate, const Right& right);
  void read_range(uint32_t version, uint64_t offset, MutableBytes into,
                  ReadFollower* follower = nullptr);
  void read_runs(const RunList& runs, uint64_t offset, MutableBytes into,
                 ReadFollower* follower = nullptr);
  void write_range(uint64_t offset, Bytes from, const Right& right = kAlways);
  bool try_overwrite(uint64_t offset, Bytes from, RunList& runs);
  bool try_overwrite_split(uint64_t offset, Bytes from, Edge& head, Edge& tail);
  void first_write(uint64_t offset, Bytes from);
  bool try_first_write(uint64_t offset, Bytes from, Edge& head, Edge& tail,
                       LogReservation& reserved);
  void read_edge(Edge& edge, uint32_t source, uint32_t current);
  void discard(uint64_t offset, uint64_t length, const Right& right);
  void discard_blocks(uint64_t first, uint64_t count);
  void zero_part(uint64_t offset, uint64_t length);
  bool reads_as_hole(const Run& run) const;
  bool is_time_to_reclaim();

  OpenVolume open_;
  Versions versions_{open_};
  std::optional<SpaceReclaimer> space_;  // when it is open for writing
  std::optional<Forks> forks_;           // likewise
  // Of requests that change something and are longer than a pass, from beginning to end.
  GracePeriod changes_;
  Counters counters_;
  std::atomic<uint64_t> writes_at_flush_{0};
  // The upkeep's.
  std::chrono::steady_clock::time_point look_for_forks_at_{};
  std::chrono::steady_clock::time_point reclaim_at_{};  // though the guest writes
  std::chrono::steady_clock::time_point busy_until_{};
  uint64_t writes_seen_ = 0;
  Chore committing_;
  Chore checkpointing_{kFirstPause};
  Chore compacting_{kFirstPause};
  Chore preparing_;
  Chore reclaiming_;
};

}  // namespace tplstore
