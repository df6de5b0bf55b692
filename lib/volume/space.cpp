// How a volume gives space back: one thread at a time, in slices.
//
//   sweeping    after a crash, current's file may have cells whose updates were never committed.
//               Region by region, what is allocated is compared with the map.
//   collecting  versions whose readers have gone are hidden, and hidden ones that nothing needs are
//               taken out of the map.
//   punching    free ranges whose decision is durable, when the requests that may have looked them
//               up have ended. Holes are synced before a checkpoint forgets them.
#include "volume/space.h"

#include <algorithm>
#include <cerrno>
#include <set>

#include "volume/versions.h"

namespace tplstore {
namespace {

constexpr size_t kRangesAtOnce = 256;
// How long a file that could not be punched is left alone.
constexpr std::chrono::seconds kPunchAgainInterval{10};
// Of one who has all time.
constexpr std::chrono::milliseconds kSlice{1000};
constexpr std::chrono::milliseconds kHelpMax{10};
// When writers replace cells faster than holes are punched, they help.
constexpr size_t kRangesWaitingMax = 1 << 20;

}  // namespace

SpaceReclaimer::SpaceReclaimer(OpenVolume& volume)
    : volume_(volume), map_(volume.map()), unswept_(map_.ask(&MapState::unswept_versions)) {}

bool SpaceReclaimer::run(std::optional<std::chrono::milliseconds> budget) {
  std::exception_ptr failed;
  bool has_more = true;
  do {
    // Flattening may take hours, and upkeep has other volumes to see to.
    if (!budget) {
      mutex_.lock();
    } else if (!mutex_.try_lock()) {
      return false;
    }
    const Lock guard(mutex_, std::adopt_lock);
    if (!budget && !failed) retry_punches_at_ = {};
    has_more = run_until(Clock::now() + budget.value_or(kSlice), failed);
  } while (!budget && has_more && !volume_.environment.stop.stop_requested());
  if (failed) std::rethrow_exception(failed);
  return has_more;
}

// `failed` is the first error of a file that could not be punched.
bool SpaceReclaimer::run_until(Clock::time_point deadline, std::exception_ptr& failed) {
  // Before a version may be taken out.
  if (!sweep(deadline)) return true;
  hide_left_versions(volume_);
  while (map_.ask(&MapState::wants_collection)) {
    map_.collect_one();
    if (Clock::now() >= deadline) return true;
  }
  if (map_.ask(&MapState::wants_to_free)) map_.commit();
  if (Clock::now() >= retry_punches_at_) {
    map_.update_free_ranges([](FreeRanges& free) { free.retry(); });
    retry_punches_at_ = Clock::now() + kPunchAgainInterval;
  }
  for (;;) {
    const Punched punched = punch_some(deadline, failed);
    if (punched == Punched::kNothing) return false;
    if (punched == Punched::kNotYet || Clock::now() >= deadline) return true;
  }
}

void SpaceReclaimer::help() {
  if (map_.free_ranges_waiting() < kRangesWaitingMax) return;
  if (!mutex_.try_lock()) return;
  const Lock guard(mutex_, std::adopt_lock);
  std::exception_ptr failed;  // which is no business of the guest's
  punch_some(Clock::now() + kHelpMax, failed);
}

// False when it has not come to the end.
bool SpaceReclaimer::sweep(Clock::time_point deadline) {
  if (const uint32_t version = sweep_again_.exchange(0); version != 0) {
    unswept_.push_back(version);
    swept_bytes_ = 0;
  }
  while (!unswept_.empty()) {
    const uint32_t version = unswept_.back();
    const auto file = volume_.files.open_for_punching(version);
    while (file) {
      const auto data = file->find_data(swept_bytes_);
      if (!data) break;
      const uint64_t region = data->offset / kRegionBytes;
      sweep_region(version, *file, region);
      swept_bytes_ = (region + 1) * kRegionBytes;
      if (Clock::now() >= deadline) return false;
    }
    // It may be current's: a failed sync is told once, and was a flush's to hear.
    if (file) map_.sync_or_stop([&] { file->sync(); });
    map_.note_swept(version);
    if (version == volume_.current) volume_.is_unswept = false;
    unswept_.pop_back();
    swept_bytes_ = 0;
  }
  return true;
}

void SpaceReclaimer::sweep_region(uint32_t version, Object& file, uint64_t region) {
  const uint64_t first = region * kRegionBlocks;
  // As a first write would: nothing is between its data and its update then. When the version has
  // been frozen meanwhile nothing of it changes anyway.
  const Quiesce::Pass pass(volume_.quiesce);
  const RangeLocks::Exclusive hold(volume_.range_locks, first, kRegionBlocks);
  RunList runs;
  map_.find(version, {first, kRegionBlocks}, runs);
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].source == version) continue;
    const uint64_t end = (runs[i].first + runs[i].count) * kBlockBytes;
    for (uint64_t offset = runs[i].first * kBlockBytes; offset < end;) {
      const auto data = file.find_data(offset);
      if (!data || data->offset >= end) break;
      const uint64_t begin = std::max(offset, round_down(data->offset, kBlockBytes));
      const uint64_t stop = std::min(end, round_up(data->offset + data->length, kBlockBytes));
      file.punch(begin, stop - begin);
      offset = stop;
    }
  }
}

// Waits until the deadline for requests that were there before: one that hangs holds up its own
// volume only. A file that cannot be punched keeps no other from it: what of it was to be punched
// is put aside.
SpaceReclaimer::Punched SpaceReclaimer::punch_some(Clock::time_point deadline,
                                                   std::exception_ptr& failed) {
  const std::vector<FreeRange> ranges =
      map_.update_free_ranges([](FreeRanges& free) { return free.take(kRangesAtOnce); });
  const auto give_back = [this] {
    map_.update_free_ranges([](FreeRanges& free) { free.give_back(); });
  };
  if (ranges.empty()) return Punched::kNothing;
  std::set<uint32_t> put_aside;
  try {
    if (!volume_.cell_users.wait_for_requests_until(deadline)) {
      give_back();
      return Punched::kNotYet;
    }
    for (size_t i = 0; i < ranges.size();) {
      const uint32_t version = ranges[i].source;
      const size_t begin = i;
      while (i < ranges.size() && ranges[i].source == version) ++i;
      try {
        punch_file(version, std::span(ranges).subspan(begin, i - begin));
      } catch (...) {
        if (!failed) failed = std::current_exception();
        put_aside.insert(version);
      }
      // Not earlier: a checkpoint may come in between, and sync the file as it is then.
      volume_.files.note_holes(version);
    }
  } catch (...) {
    give_back();
    throw;
  }
  map_.update_free_ranges([&](FreeRanges& free) { free.finish(put_aside); });
  return Punched::kSome;
}

void SpaceReclaimer::punch_file(uint32_t version, std::span<const FreeRange> ranges) {
  if (ranges[0].is_whole_file()) {
    volume_.files.remove(version);
    return;
  }
  // A file that occupies nothing may still have cells: of zeroes, that a copy has made holes of.
  const auto file = volume_.files.open_for_punching(version);
  if (!file) return;
  for (const FreeRange& range : ranges)
    file->punch(range.first * kBlockBytes, uint64_t{range.count} * kBlockBytes);
}

}  // namespace tplstore
