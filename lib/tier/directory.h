// A directory of the tier: one place with copies of segments, on a disk that may be missing, full,
// read-only, broken or hanging at any time, and is used as far as it can be.
//
// It is open by way of one Backend at a time, whose identity was checked, and which goes on leading
// to what was checked, whatever is mounted over its path; before each fill it is checked again.
// When it fails or is not at its path any more, it is let go, and opened and checked anew.
//
// Readers open copies and read them behind the gate (tier/gate.h), which never lets more than a few
// hang. All else is done by tend(), which its keeper calls: one thread at a time, that may hang.
//
// A copy is published whole, and so is there or not; it is removed when it is damaged, when no
// manifest and no journal names it any more, when it is out of place, and, where there is no room
// for another one, when it was not read for long. Nothing in a directory is missed but for speed.
//
// Thread safety: all methods. Copies keep the directory, and what they read of it, alive.
// Errors: none leave it but std::bad_alloc, unless a method says so; what went wrong is counted,
// logged once, and told by status().
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/volume_types.h"
#include "template/segment_copies.h"
#include "base/alarm.h"
#include "tier/fill_queue.h"
#include "tier/gate.h"
#include "tier/inventory.h"
#include "tier/tier_table.h"
#include "tier/tier_world.h"

namespace tplstore {

struct TierDirectoryStatus : TierCounters {
  enum class State { kOk, kAbsent, kFull, kReadOnly, kFailing, kLeaving };
  TierEntry entry;
  State state = State::kAbsent;
  double share = 0;
  std::vector<PositionRange> ranges;
  std::string last_error;
};

class TierDirectory : public std::enable_shared_from_this<TierDirectory> {
 public:
  static constexpr int64_t kRetryNs = 10'000'000'000;  // until what failed is tried again
  static constexpr int64_t kLookNs = 1'000'000'000;    // between two looks at its path
  // Other processes put copies here too: while it is filled it is looked so often what there is.
  static constexpr int64_t kStockNs = 10'000'000'000;

  // The table has an entry of this uuid, and so do those that replace it.
  TierDirectory(std::shared_ptr<TierWorld> world, const Uuid& uuid,
                std::shared_ptr<const TierTable> table);
  ~TierDirectory();

  void set_table(std::shared_ptr<const TierTable> table);
  std::shared_ptr<const TierTable> table() const;
  const TierEntry& entry(const TierTable& table) const { return *table.find(uuid_); }

  // --- for readers
  std::unique_ptr<SegmentCopy> open(const Hash128& name, uint32_t block_count);
  // A copy would be read if it were here.
  void want(const WantedSegment& wanted) noexcept;

  // --- for its keeper
  // Opens it, if it is not open and may be by now; whether it is open.
  bool try_to_open();
  // Does what is due: opens it, looks whether it is where it was, removes what is damaged, sweeps,
  // fills with one segment. How long until it is to be called again.
  int64_t tend();
  // What a tend() that hangs does not do. Does no I/O.
  void watch();
  // It is the table's no more: it is used for nothing from now on.
  void close();
  Alarm& alarm() { return alarm_; }
  // Objects are closed by tend(), so that whoever reads hangs in no close.
  void set_kept() { is_kept_ = true; }

  // --- for whoever moves copies
  bool is_usable() const { return mount() != nullptr; }
  enum class Fill { kFilled, kThere, kNoRoom, kReadOnly, kFailed };
  // `read` is called when there is room, and gives the segment, checked; what it throws is thrown.
  Fill fill(const WantedSegment& wanted, const std::function<ByteVector()>& read);
  // The copy, if there is one that is sound. One that is not is removed.
  std::optional<ByteVector> read_whole(const Hash128& name);
  // False when it could not be removed.
  bool remove(const Hash128& name);
  // All copies that are here; nothing when that cannot be told now.
  std::optional<std::vector<Hash128>> list();
  // Removes copies that nobody needs, or that are out of place; how many. Throws when it is not
  // known what is needed.
  uint64_t sweep();

  TierDirectoryStatus status() const;

 private:
  class Copy;
  struct Mount {
    std::shared_ptr<Backend> backend;
    TierGate gate;
    Mutex mutex;
    std::vector<std::unique_ptr<Object>> retired GUARDED_BY(mutex);
  };
  enum class Problem { kNone, kAbsent, kFailing };

  std::shared_ptr<Mount> mount() const;
  // Does `work` with the directory; EAGAIN when that does not answer.
  template <typename Work>
  auto perform(Mount& mount, Work work) {
    if (!mount.gate.begin(world_->now_ns()))
      fail(EAGAIN, mount.backend->describe(), "does not answer, or fails");
    struct Operation {
      ~Operation() {
        // What is in the background may be slow as long as others are answered meanwhile.
        const int64_t now_ns = world.now_ns();
        gate.end(now_ns, now_ns, has_failed);
      }
      TierWorld& world;
      TierGate& gate;
      bool has_failed;
    } operation{*world_, mount.gate, false};
    try {
      return work(*mount.backend);
    } catch (const Error& error) {
      operation.has_failed = is_fault(error.code());
      if (operation.has_failed) note_error(error.what());
      throw;
    }
  }
  void probe(Backend& backend);
  std::string why_not_ours(Backend& backend) const;
  void take_off(const std::shared_ptr<Mount>& mount, Problem problem, const std::string& why);
  void say(const std::string& problem);
  static bool is_fault(int code);
  void note_error(const std::string& error) noexcept;
  void end_read(Mount& mount, CopyInventory::Copy& copy, SegmentCopy::Outcome outcome,
                uint64_t bytes, const std::exception_ptr& error) noexcept;
  void mark_damaged(CopyInventory::Copy& copy, const char* what) noexcept;
  void retire(Mount& mount, std::unique_ptr<Object> object) noexcept;
  void let_go();
  bool belongs(const TierTable& table, const Hash128& name) const;
  bool holds(Mount& mount, const WantedSegment& wanted);
  bool make_room(Mount& mount, uint64_t bytes);
  Fill put(Mount& mount, const Hash128& name, Bytes content);
  void remove_copy(Mount& mount, const Hash128& name);
  std::vector<Hash128> take_stock(Mount& mount);
  bool has_news_of_templates();
  uint64_t sweep(Mount& mount);
  void try_to_sweep(Mount& mount);
  void remove_damaged(Mount& mount);
  int64_t fill_next(Mount& mount);

  const std::shared_ptr<TierWorld> world_;
  const Uuid uuid_;
  Alarm alarm_;
  std::atomic<bool> is_kept_{false};
  CopyInventory inventory_;
  FillQueue queue_;
  std::atomic<int64_t> no_fills_until_ns_{0};

  std::atomic<uint64_t> reads_{0}, read_bytes_{0}, fills_{0}, fill_bytes_{0}, errors_{0},
      damaged_{0};
  std::atomic<bool> has_damaged_{false}, is_full_{false}, is_read_only_{false};
  // False: look at what is here, for others may have changed it.
  std::atomic<bool> has_stock_{false};
  std::atomic<int64_t> stock_ns_{INT64_MIN};  // when that was last known

  mutable Mutex mutex_;
  std::shared_ptr<const TierTable> table_ GUARDED_BY(mutex_);
  std::shared_ptr<Mount> mount_ GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<Mount>> old_mounts_ GUARDED_BY(mutex_);  // let_go() ends them
  Problem problem_ GUARDED_BY(mutex_) = Problem::kNone;
  int64_t next_try_ns_ GUARDED_BY(mutex_) = INT64_MIN;
  std::optional<int64_t> opening_since_ns_ GUARDED_BY(mutex_);
  bool is_closed_ GUARDED_BY(mutex_) = false;
  std::string last_error_ GUARDED_BY(mutex_);
  std::string said_ GUARDED_BY(mutex_);

  // tend()'s
  int64_t next_look_ns_ = INT64_MIN;
  int64_t next_sweep_ns_ = INT64_MIN;
  int64_t next_news_ns_ = INT64_MIN;
  std::vector<std::string> templates_;  // as they were when that was last looked at
  std::string said_of_sweep_;
  std::string said_of_origin_;
  std::vector<WantedSegment> eager_;  // of kind local; the last one is the next
};

}  // namespace tplstore
