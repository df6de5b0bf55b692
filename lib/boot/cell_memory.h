// The memory of the boot cache: cells, in slots of 4 KiB of one mapping, for all connections.
//
//   cell file ── array of 1024 entries for each 4 MiB of it ── slot ── 4 KiB of the mapping
//
// An entry of an array is 0 (absent), a slot that somebody is filling, or a slot to read. A slot is
//
//   free ── coming ── there ── evicted ── free      (boot/slot_state.h has what may follow what)
//
// and an evicted one is free again when all requests have ended that might read it: every plan that
// looks at an array has entered the grace period of the memory before.
//
// Everything that is kept is counted against the cap: slots in use, what is known of each, arrays,
// and what others of the boot cache say that they hold. Where the cap is reached, slots are evicted
// by CLOCK, but none that belongs to an open window; if there is no other, nothing enters.
//
// Thread safety: all methods; a claim and a window belong to who has them. Errors: none but
// std::bad_alloc; where there is no room, less is kept.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/grace_period.h"
#include "base/mutex.h"
#include "base/thread_line.h"
#include "boot/slot_state.h"
#include "template/cell_cache.h"

namespace tplstore {

struct CellMemoryStats {
  uint64_t cap = 0;  // in bytes, as are:
  uint64_t used = 0;
  uint64_t peak = 0;
  uint64_t slots = 0;  // with a cell
  uint64_t hits = 0;   // cells, as are:
  uint64_t misses = 0;
  uint64_t fills = 0;
  uint64_t fill_bytes = 0;
  uint64_t waits = 0;      // requests that waited for somebody else's read
  uint64_t evictions = 0;  // cells
  uint64_t refused = 0;    // cells that did not enter, for want of room
  uint64_t verify_failures = 0;
  uint64_t prefetch_bytes = 0;  // taken in ahead
  uint64_t prefetch_used = 0;   // bytes of that which somebody has read since
};

// What one window has had of the memory so far, in cells.
struct WindowUse {
  uint64_t hits = 0;
  uint64_t misses = 0;
  uint64_t cells = 0;              // that belong to it
  uint64_t first_touch_hits = 0;   // of these, the ones that were there when it first read them
  uint64_t prefetched = 0;         // of these, the ones that were taken in ahead of it
  uint64_t prefetched_unused = 0;  // of these, the ones that it has not read
};

class CellMemory final : public CellCache {
 public:
  class Window;
  class Claim;
  class Beside;

  // Maps `cap_bytes`, of which nothing is resident before it is used. `wake` is called when
  // maintain() has something to do that somebody waits for; from any thread, with locks held.
  explicit CellMemory(
      uint64_t cap_bytes, bool huge_pages = false, std::function<void()> wake = [] {});
  // Nobody has a file, window or claim of it.
  ~CellMemory() override;
  CellMemory(const CellMemory&) = delete;

  std::shared_ptr<CellFile> file(const CellFileKey& key) override;
  void forget_versions(const Uuid& volume, uint32_t from) override;
  bool reserve(uint64_t bytes) override;
  void release(uint64_t bytes) noexcept override;

  // What a plan enters before it looks at a window or at cells (ReadPlan::enter()).
  GracePeriod& requests() { return requests_; }

  // What is taken in or read in its name belongs to it until it is gone. It goes when no request
  // can use it any more.
  std::unique_ptr<Window> open_window();
  // Those of the cells [first, first + count) of a file that are absent, to be taken in ahead of
  // who will read them: fewer where there is no room. Who misses them meanwhile waits until they
  // are published or the claim is gone. It ends before its window, in a request that has entered
  // requests().
  Claim claim(CellFile& file, uint64_t first, uint64_t count, Window& window);
  // Drops the cells of these files that belong to no open window, soon.
  void forget(std::span<const CellFileKey> files);
  // How many of the cells [first, first + count) of a file are in memory.
  uint64_t count_there(CellFile& file, uint64_t first, uint64_t count);
  // How many bytes of these files' cells are in memory.
  uint64_t cached_bytes(std::span<const CellFileKey> files);
  // Counts memory that is held beside the cells as long as this is there. Nothing when it does not
  // fit.
  std::optional<Beside> hold_beside(uint64_t bytes);

  // From an upkeep thread, often: evicted slots become free when no request can read them, and
  // more are evicted where room was wanted. Waits for requests, at most 100 ms.
  void maintain();

  CellMemoryStats stats();

 private:
  class File;
  class Missed;
  struct Array;
  struct Slot {
    uint32_t word;   // a SlotState
    uint32_t block;  // of the file; of a free or evicted slot, the next one of its list
    File* file;
  };
  static_assert(sizeof(Slot) == 16);
  static constexpr uint64_t kSlotBytes = kBlockBytes + sizeof(Slot);
  struct alignas(64) Line {
    std::atomic<uint64_t> hits{0};
    std::atomic<uint64_t> misses{0};
  };

  std::byte* memory_of(uint32_t slot) const { return memory_ + uint64_t{slot} * kBlockBytes; }
  std::atomic_ref<uint32_t> word_of(uint32_t slot) const {
    return std::atomic_ref(slots_[slot].word);
  }
  // Changes a slot's state where `transition` allows it; what it was.
  template <typename Transition>
  std::optional<SlotState> change(uint32_t slot, Transition transition) const;
  void note_use(uint32_t slot);
  void claim(File& file, uint64_t first, uint64_t count, Window& window, bool is_ahead,
             Claim& into);
  Array* make_array(File& file, uint64_t block) REQUIRES(mutex_);
  void remove_array(File& file, uint64_t block) REQUIRES(mutex_);
  std::optional<uint32_t> take_slot() REQUIRES(mutex_);
  void put_free(uint32_t slot) REQUIRES(mutex_);
  void evict(uint32_t slot) REQUIRES(mutex_);
  void evict_for_room() REQUIRES(mutex_);
  void forget_file(File& file) REQUIRES(mutex_);
  void drop_unused_files() REQUIRES(mutex_);
  uint64_t room() const REQUIRES(mutex_);
  bool charge(uint64_t bytes) REQUIRES(mutex_);

  const uint64_t cap_;
  const uint32_t slot_max_;
  const uint32_t reserve_;  // so many slots should be free when something wants to enter
  const std::function<void()> wake_;
  std::byte* memory_;
  Slot* slots_;
  GracePeriod requests_;
  std::array<Line, kThreadLines> lines_;
  std::atomic<uint64_t> fills_{0};
  std::atomic<uint64_t> waits_{0};
  std::atomic<uint64_t> verify_failures_{0};
  std::atomic<uint64_t> ahead_{0};
  std::atomic<uint64_t> ahead_used_{0};

  Mutex mutex_;
  std::map<CellFileKey, std::shared_ptr<File>> files_ GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<File>> forgotten_ GUARDED_BY(mutex_);  // nobody will ask for them
  uint64_t used_ GUARDED_BY(mutex_) = 0;
  uint64_t peak_ GUARDED_BY(mutex_) = 0;
  uint64_t cells_ GUARDED_BY(mutex_) = 0;
  uint64_t evictions_ GUARDED_BY(mutex_) = 0;
  uint64_t refused_ GUARDED_BY(mutex_) = 0;
  uint32_t fresh_ GUARDED_BY(mutex_) = 0;  // slots from here on were never used
  uint32_t free_ GUARDED_BY(mutex_);       // heads of lists
  uint32_t evicted_ GUARDED_BY(mutex_);
  uint32_t free_count_ GUARDED_BY(mutex_) = 0;
  uint32_t hand_ GUARDED_BY(mutex_) = 0;
  bool is_room_wanted_ GUARDED_BY(mutex_) = false;
  std::vector<std::unique_ptr<Array>> emptied_ GUARDED_BY(mutex_);  // requests may still look
};

// What is taken in and read in one window's name.
class CellMemory::Window final : public CellWindow {
 public:
  ~Window();
  Window(const Window&) = delete;

  WindowUse use() const;  // goes through its cells
  uint64_t cells() const { return cells_.load(std::memory_order_relaxed); }
  // Nothing more is taken in in its name by who reads.
  void stop_filling() { is_filling_.store(false, std::memory_order_relaxed); }
  bool is_filling() const { return is_filling_.load(std::memory_order_relaxed); }

 private:
  friend class CellMemory;
  using Bits = std::unique_ptr<uint64_t[], decltype(&std::free)>;

  explicit Window(CellMemory& memory);

  static bool set(const Bits& bits, uint32_t slot);
  static void clear(const Bits& bits, uint32_t slot);
  void note_hit(uint32_t slot);
  void note_taken(uint32_t slot, bool is_ahead);
  void note_abandoned(uint32_t slot, bool is_ahead);

  CellMemory& memory_;
  std::atomic<bool> is_filling_{true};
  Bits belongs_;  // a bit for each slot
  Bits read_;
  std::atomic<uint64_t> hits_{0};
  std::atomic<uint64_t> misses_{0};
  std::atomic<uint64_t> cells_{0};
  std::atomic<uint64_t> first_touch_hits_{0};
  std::atomic<uint64_t> ahead_{0};
};

// Cells that somebody is about to fill.
class CellMemory::Claim {
 public:
  // Neighbouring cells of the file whose memory is one stretch.
  struct Part {
    uint64_t first;
    MutableBytes memory;
    size_t place;  // how many cells the parts before have
    uint64_t count() const { return memory.size() / kBlockBytes; }
  };

  Claim() = default;
  Claim(Claim&& other) noexcept { *this = std::move(other); }
  Claim& operator=(Claim&& other) noexcept;
  // What was not published is absent again, and who waited for it reads for itself.
  ~Claim() { abandon(); }

  // In rising order.
  std::span<const Part> parts() const { return parts_; }
  // The memory of these cells, all of one part, has the right bytes.
  void publish(uint64_t first, uint64_t count);

 private:
  friend class CellMemory;
  void abandon() noexcept;
  uint32_t slot_of(const Part& part, uint64_t block) const;

  CellMemory* memory_ = nullptr;
  File* file_ = nullptr;
  Window* window_ = nullptr;
  bool is_ahead_ = false;
  std::vector<Part> parts_;
  std::vector<bool> published_;  // by place
};

class CellMemory::Beside {
 public:
  Beside(Beside&& other) noexcept
      : memory_(other.memory_), bytes_(std::exchange(other.bytes_, 0)) {}
  Beside& operator=(Beside&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Beside() {
    if (bytes_ != 0) memory_->release(bytes_);
  }

 private:
  friend class CellMemory;
  Beside(CellMemory& memory, uint64_t bytes) : memory_(&memory), bytes_(bytes) {}

  CellMemory* memory_;
  uint64_t bytes_;
};

}  // namespace tplstore
