// How a volume that is open for writing gives space back: cells that a crash left in current's
// file, cells of removed versions, cells that current has replaced. volume/space.cpp has the order
// of it.
//
// Thread safety: all; one thread gives back at a time. Errors: EIO for a file that could not be
// punched, when all else is done, and it is tried again later; ENOSPC.
#pragma once

#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/grace_period.h"
#include "map/volume_map.h"
#include "volume/data_files.h"
#include "volume/range_locks.h"

namespace tplstore {

// Removes the versions whose readers have gone; where they are not this process' own the lock of
// their slot tells.
void hide_left_versions(VolumeMap& map, Backend& backend, const std::string& folder);

class SpaceReclaimer {
 public:
  // The volume's own, by which its requests are kept apart.
  struct Guards {
    Quiesce& quiesce;
    RangeLocks& range_locks;
    GracePeriod& cell_users;  // of what has looked up cells, and may read them
  };
  // The map tells what a crash has left; it is not written yet.
  SpaceReclaimer(Backend& backend, std::string folder, std::shared_ptr<VolumeMap> map,
                 DataFiles& files, Guards guards);

  // Gives back for about so long, unless another thread is at it or it is stopped; whether there is
  // more to do.
  bool run(std::chrono::milliseconds budget);
  // Gives back all that can be given back now; what is left when a stop was requested is for later.
  void run_all(const std::stop_token& stop);
  // Comes to the end of what a crash has left, however long that takes.
  void sweep_all();
  // For writers, when they replace cells faster than these are given back.
  void help();
  // Nothing is given back as long as this is held.
  [[nodiscard]] std::unique_lock<std::mutex> stop() { return std::unique_lock(mutex_); }
  // Makes the holes durable that were made before the call.
  void sync_holes();

 private:
  enum class Punched { kNothing, kNotYet, kSome };

  bool run_until(std::chrono::steady_clock::time_point deadline, std::exception_ptr& failed);
  bool sweep(std::chrono::steady_clock::time_point deadline);
  void sweep_region(uint32_t version, Object& file, uint64_t region);
  Punched punch_some(std::chrono::steady_clock::time_point deadline, std::exception_ptr& failed);
  void punch_file(uint32_t version, std::span<const FreeRange> ranges);

  Backend& backend_;
  const std::string folder_;
  const std::shared_ptr<VolumeMap> map_;
  DataFiles* const files_;
  Quiesce& quiesce_;
  RangeLocks& range_locks_;
  GracePeriod& cell_users_;

  std::mutex mutex_;               // one thread gives back space; guards the next three
  std::vector<uint32_t> unswept_;  // versions that are still to be swept
  uint64_t swept_bytes_ = 0;       // of the last one of these
  std::chrono::steady_clock::time_point retry_punches_at_{};  // of files that could not be punched
  std::mutex punched_mutex_;                                  // guards the next
  std::set<uint32_t> punched_;  // files with holes that are not synced
};

}  // namespace tplstore
