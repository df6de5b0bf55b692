// Which boots are going on: windows (boot/window.h) by volume, as the reads of its writer's
// connections show them.
//
// A window opens at a read of the disk's first block, if another read follows it within boot-quiet;
// or when three of the first reads of the volume's profile come in their order. None opens while
// one is open, for kernels and tools read the first block as well as firmware does: a guest that
// resets itself in the middle of its boot goes on in the same window. Nor does one within 10 s of
// the last one's end, or within boot-quiet where that is shorter.
//
// What is part of it: what the connection reads that it began with (when that goes, the next one
// that reads takes its place), and 8 MiB of what each other connection reads; but no stream
// (boot/stream_filter.h).
//
// Thread safety: all methods. Reads of guests take no lock but where a window opens. Followers are
// gone before this. Errors: std::bad_alloc.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/units.h"
#include "boot/boot_disk.h"
#include "boot/boot_options.h"
#include "boot/cell_memory.h"

namespace tplstore {

// What became of a window, or how it stands.
struct BootWindow {
  std::string volume;
  Uuid volume_uuid;
  std::optional<Uuid> template_uuid;
  int64_t opened_ns = 0;            // since 1970
  std::optional<WindowEnd> reason;  // nothing: it is open
  int64_t ended_ns = 0;
  uint64_t blocks = 0;  // that were touched, of immutable data
  uint64_t streamed_bytes = 0;
  uint64_t read_bytes = 0;  // with those
  WindowUse use;
  int64_t duration_ms = 0;

  uint64_t bytes() const { return blocks * kBlockBytes; }
  // "vm1: boot ended (quiet): 10188 blocks, 39.8 MiB, 97 % found in memory, 31.4 s"
  std::string line() const;
};

// A boot that is being followed, or has ended and is to be learnt from.
struct FollowedBoot {
  FollowedBoot(std::shared_ptr<BootDisk> booting, const WindowLimits& limits, int64_t now_ms,
               CellMemory& memory)
      : disk(std::move(booting)),
        record(disk->size_bytes(), limits, now_ms),
        cells(memory.open_window()) {}

  const std::shared_ptr<BootDisk> disk;
  Window record;
  const std::unique_ptr<CellMemory::Window> cells;
  const int64_t opened_ns = now_unix_ns();
  std::atomic<bool> is_over{false};
  std::atomic<const ReadFollower*> guest{nullptr};  // whose boot it is
  // Under the mutex of the windows: what of the record is counted.
  std::vector<CellMemory::Beside> besides{};
  uint64_t counted_bytes = 0;
};

class BootWindows {
 public:
  BootWindows(const BootOptions& options, CellMemory& memory, BootAlarms& alarms)
      : options_(options), limits_(options.limits()), memory_(memory), alarms_(alarms) {}

  // For each connection of the writer of a volume. The last one that goes ends the window; what it
  // has of the disk is let go of soon after.
  std::unique_ptr<ReadFollower> follow(std::shared_ptr<BootDisk> disk);
  // Ends the window of a volume; nothing when none is open.
  std::optional<BootWindow> done(const Uuid& volume);
  // Ends those that are over, and looks how the others grow; whether any is open.
  bool tend();
  uint64_t count_open();
  // The last ones of a volume, or of a template's volumes; those that are open come last.
  std::vector<BootWindow> reports_of(const BootDisk& disk);

  // --- reading ahead
  // Boots that have begun since.
  std::vector<std::shared_ptr<FollowedBoot>> take_begun();
  static constexpr size_t kHeads = 16;  // runs that are a profile's beginning
  // Volumes whose profile's beginning is not known yet, or has changed, until it is told.
  std::vector<std::shared_ptr<BootDisk>> take_headless();
  void set_heads(const Uuid& volume, std::span<const ProfileRun> runs);
  void has_new_profile(const Uuid& volume);

  // --- learning
  // What goes when no request can use it any more.
  struct Ended {
    std::shared_ptr<FollowedBoot> boot;
    bool is_learnt_from = false;
    std::unique_ptr<CellMemory::Window> cells;  // of who was no boot
  };
  // The one that has been there longest, if any is.
  std::optional<Ended> take_ended();
  void put_back(Ended ended);
  // The name in which somebody else has read ahead.
  void let_go(std::unique_ptr<CellMemory::Window> cells);

 private:
  class Follower;
  struct Followed;

  void leave(const Uuid& volume, const ReadFollower& follower) noexcept;
  bool open(Followed& followed, bool is_confirmed);
  void confirm(Followed& followed, FollowedBoot& boot);
  std::optional<BootWindow> end(Followed& followed, WindowEnd reason) REQUIRES(mutex_);
  void keep(FollowedBoot& boot);
  void say(const std::optional<BootWindow>& report) const;

  const BootOptions& options_;
  const WindowLimits limits_;
  CellMemory& memory_;
  BootAlarms& alarms_;

  Mutex mutex_;
  std::map<Uuid, std::shared_ptr<Followed>> followed_ GUARDED_BY(mutex_);
  std::deque<BootWindow> reports_ GUARDED_BY(mutex_);
  std::deque<Ended> ended_ GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<FollowedBoot>> begun_ GUARDED_BY(mutex_);
  std::vector<Uuid> headless_ GUARDED_BY(mutex_);
};

}  // namespace tplstore
