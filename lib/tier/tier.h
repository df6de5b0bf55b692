// The tier of one store on this host: copies of segments in directories on its SSDs.
//
// The table (tier/tier_table.h) says which directories there are and which has which part of the
// space of names. Reading a segment asks here for the copy in its place; what was read at the
// origin is put on the queue of that place's directory. Each directory has a thread of its own, its
// keeper, so one that hangs holds up no other; what guests ask for waits for none of them.
//
// Without start() there are no threads: the tool's Tier does in its own what it was called for.
//
// Thread safety: all methods, but start() and stop(), which come once each. Nothing that it does
// for reading throws. It must outlive no backend that it was given; copies may outlive it.
#pragma once

#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/volume_types.h"
#include "tier/directory.h"

namespace tplstore {

struct TierStatus {
  bool has_table = false;
  uint64_t generation = 0;  // of the table
  bool is_moving = false;   // copies may be where they belonged before
  std::vector<TierDirectoryStatus> directories;
  uint64_t origin_reads = 0;  // at which no copy could be read
  uint64_t origin_read_bytes = 0;
};

class Tier final : public SegmentCopies {
 public:
  // `state_folder` has the table; empty: set_table() is the only way to one.
  explicit Tier(TierOptions options, std::filesystem::path state_folder = {});
  ~Tier() override;

  void start();
  // Waits for what is in a directory, but not for long: who hangs there is left behind.
  void stop();

  // Takes the table over if its file is another one than before. One that cannot be used is logged
  // once, and all is read at the origin.
  void look_at_table();
  void set_table(std::optional<TierTable> table);
  // Without threads: opens the directories that can be, which all that follows does by itself too;
  // and does all that is due in them.
  void open_directories();
  void tend();

  std::unique_ptr<SegmentCopy> open(const Hash128& name, uint32_t block_count) noexcept override;
  void was_read_at_origin(const Hash128& name, uint32_t block_count,
                          uint64_t bytes) noexcept override;

  bool has_table() const { return layout()->table != nullptr; }
  TierStatus status() const;
  TierStats stats() const;
  // The same as status() with all that is in the directories, for who has no threads to know it.
  TierStatus look();

  // Of bytes; it may throw to end what it is told of.
  using Progress = std::function<void(uint64_t done_bytes, uint64_t total_bytes)>;

  // Fills the places of these segments, as fast as it can be done.
  struct WarmResult {
    uint64_t filled_segments = 0;
    uint64_t filled_bytes = 0;
    struct Missing {
      Hash128 segment;
      std::string why;
    };
    std::vector<Missing> missing;  // what is not in all of its places now
  };
  WarmResult warm(const std::vector<WantedSegment>& segments, const Progress& progress);

  // Moves each copy to where it belongs; the old one serves until the new one is there. What has no
  // room there goes. What was moved stays moved, whenever this ends.
  struct MoveResult {
    uint64_t segments = 0;  // that were out of place
    uint64_t bytes = 0;
    uint64_t moved_segments = 0;
    uint64_t dropped_segments = 0;
    std::vector<std::string> problems;  // why others are where they were
  };
  MoveResult move_copies(bool only_counts, const Progress& progress);
  // The same with the table on disk, and when all have moved it forgets the places of before. EBUSY
  // when another process is doing it.
  MoveResult rebalance(bool only_counts, const Progress& progress);

  // Removes the copies that nobody needs; how many. Throws when it is not known what is needed.
  uint64_t sweep();

  // Reads all copies that can be read and removes those that are damaged.
  struct CheckResult {
    uint64_t segments = 0;
    uint64_t damaged = 0;
  };
  CheckResult check(const Progress& progress);
  // A copy of a segment, checked, from wherever there is a sound one.
  std::optional<ByteVector> sound_copy(const Hash128& name);

 private:
  using Directories = std::map<Uuid, std::shared_ptr<TierDirectory>>;
  struct Layout {
    std::shared_ptr<const TierTable> table;  // or none
    Directories directories;
  };
  struct Keeper {
    std::shared_ptr<TierDirectory> directory;
    std::thread thread;
    std::future<void> ended;
  };

  std::shared_ptr<const Layout> layout() const;
  std::shared_ptr<const Layout> prepare();
  void keep(const std::shared_ptr<TierDirectory>& directory) REQUIRES(keepers_mutex_);
  void watch();
  // Where copies of a segment are to be.
  static std::vector<TierDirectory*> targets_of(const Layout& layout, const Hash128& name);

  const std::shared_ptr<TierWorld> world_;
  const std::filesystem::path state_folder_;
  std::atomic<uint64_t> origin_reads_{0}, origin_read_bytes_{0};

  mutable Mutex mutex_;
  std::shared_ptr<const Layout> layout_ GUARDED_BY(mutex_);

  Mutex keepers_mutex_;  // of set_table(), start() and stop() too, which come one after the other
  std::atomic<bool> has_threads_{false};
  std::vector<Keeper> keepers_ GUARDED_BY(keepers_mutex_);

  Mutex file_mutex_;
  std::string file_seen_ GUARDED_BY(file_mutex_);
  std::string said_of_file_ GUARDED_BY(file_mutex_);

  Alarm alarm_;
  std::thread watcher_;
};

}  // namespace tplstore
