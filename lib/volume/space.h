// How a volume that is open for writing gives space back: cells that a crash left in current's
// file, cells of removed versions, cells that current has replaced. volume/space.cpp has the order
// of it.
//
// Thread safety: all; one thread gives back at a time. Errors: EIO for a file that could not be
// punched, when all else is done, and it is tried again later; ENOSPC.
#pragma once

#include <chrono>
#include <exception>
#include <optional>
#include <span>
#include <vector>

#include "base/mutex.h"
#include "volume/open_volume.h"

namespace tplstore {

// With less than that left, space is given back though guests write.
inline constexpr uint64_t kRoomBytes = uint64_t{4} << 30;

class SpaceReclaimer {
 public:
  // Its map tells what a crash has left; it is not written yet.
  explicit SpaceReclaimer(OpenVolume& volume);

  // Gives back for about so long, unless another thread is at it; whether there is more to do.
  // Without a budget: all that can be given back now, after that other thread; what is left when
  // the environment's stop was requested is for later.
  bool run(std::optional<std::chrono::milliseconds> budget = {});
  // For writers, when they replace cells faster than these are given back.
  void help();
  // Cells of current's file that nothing maps could not be punched.
  void sweep_again() {
    volume_.is_unswept = true;
    sweep_again_ = map_.note_unswept();
  }
  // Nothing is given back as long as this is there.
  class SCOPED_CAPABILITY Stop {
   public:
    explicit Stop(SpaceReclaimer& space) ACQUIRE(space.mutex_) : lock_(space.mutex_) {}
    ~Stop() RELEASE() {}

   private:
    const Lock<Mutex> lock_;
  };

 private:
  using Clock = std::chrono::steady_clock;
  enum class Punched { kNothing, kNotYet, kSome };

  bool run_until(Clock::time_point deadline, std::exception_ptr& failed) REQUIRES(mutex_);
  bool sweep(Clock::time_point deadline) REQUIRES(mutex_);
  void sweep_region(uint32_t version, Object& file, uint64_t region);
  Punched punch_some(Clock::time_point deadline, std::exception_ptr& failed) REQUIRES(mutex_);
  void punch_file(uint32_t version, std::span<const FreeRange> ranges);

  OpenVolume& volume_;
  VolumeMap& map_;

  Mutex mutex_;  // one thread gives back space
  // Versions that are still to be swept, and how far the last one of these is.
  std::vector<uint32_t> unswept_ GUARDED_BY(mutex_);
  uint64_t swept_bytes_ GUARDED_BY(mutex_) = 0;
  std::atomic<uint32_t> sweep_again_{0};  // a version, or none
  // Files that could not be punched.
  Clock::time_point retry_punches_at_ GUARDED_BY(mutex_){};
};

}  // namespace tplstore
