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

#include "base/bytes.h"
#include "lock/writer_lock.h"

namespace tplstore {
namespace {

constexpr size_t kRangesAtOnce = 256;
// How long a file that could not be punched is left alone.
constexpr std::chrono::seconds kPunchAgainInterval{10};
constexpr std::chrono::seconds kSlice{1};
constexpr std::chrono::milliseconds kHelpMax{10};
// When writers replace cells faster than holes are punched, they help.
constexpr size_t kRangesWaitingMax = 1 << 20;

using Clock = std::chrono::steady_clock;

}  // namespace

void hide_left_versions(VolumeMap& map, Backend& backend, const std::string& folder) {
  VersionChange change = map.change_versions();
  for (const uint32_t number :
       map.ask([](const MapState& state) { return state.table().for_readers(); }))
    if (backend.try_lock(readers_name(folder), LockMode::kExclusive, number)) change.hide({number});
}

SpaceReclaimer::SpaceReclaimer(Backend& backend, std::string folder, std::shared_ptr<VolumeMap> map,
                               DataFiles& files, Guards guards)
    : backend_(backend),
      folder_(std::move(folder)),
      map_(std::move(map)),
      files_(&files),
      quiesce_(guards.quiesce),
      range_locks_(guards.range_locks),
      cell_users_(guards.cell_users),
      unswept_(map_->ask(&MapState::unswept_versions)) {}

bool SpaceReclaimer::run(std::chrono::milliseconds budget) {
  // Flattening may take hours, and upkeep has other volumes to see to.
  const std::unique_lock guard(mutex_, std::try_to_lock);
  if (!guard) return false;
  std::exception_ptr failed;
  const bool has_more = run_until(Clock::now() + budget, failed);
  if (failed) std::rethrow_exception(failed);
  return has_more;
}

void SpaceReclaimer::run_all(const std::stop_token& stop) {
  std::exception_ptr failed;
  bool has_more = true;
  while (has_more && !stop.stop_requested()) {
    const std::lock_guard guard(mutex_);
    if (!failed) retry_punches_at_ = {};
    has_more = run_until(Clock::now() + kSlice, failed);
  }
  if (failed) std::rethrow_exception(failed);
}

void SpaceReclaimer::sweep_all() {
  const std::lock_guard guard(mutex_);
  while (!sweep(Clock::time_point::max())) {
  }
}

// With mutex_ held. `failed` is the first error of a file that could not be punched.
bool SpaceReclaimer::run_until(Clock::time_point deadline, std::exception_ptr& failed) {
  // Before a version may be taken out.
  if (!sweep(deadline)) return true;
  hide_left_versions(*map_, backend_, folder_);
  while (map_->ask(&MapState::wants_collection)) {
    map_->collect_one();
    if (Clock::now() >= deadline) return true;
  }
  if (map_->ask(&MapState::wants_to_free)) map_->commit();
  if (Clock::now() >= retry_punches_at_) {
    map_->update_free_ranges([](FreeRanges& free) { free.retry(); });
    retry_punches_at_ = Clock::now() + kPunchAgainInterval;
  }
  for (;;) {
    const Punched punched = punch_some(deadline, failed);
    if (punched == Punched::kNothing) return false;
    if (punched == Punched::kNotYet || Clock::now() >= deadline) return true;
  }
}

void SpaceReclaimer::help() {
  if (map_->free_ranges_waiting() < kRangesWaitingMax) return;
  if (const std::unique_lock guard(mutex_, std::try_to_lock); guard) {
    std::exception_ptr failed;  // which is no business of the guest's
    punch_some(Clock::now() + kHelpMax, failed);
  }
}

// False when it has not come to the end.
bool SpaceReclaimer::sweep(Clock::time_point deadline) {
  while (!unswept_.empty()) {
    const uint32_t version = unswept_.back();
    const auto file = files_->open_for_punching(version);
    while (file) {
      const auto data = file->find_data(swept_bytes_);
      if (!data) break;
      const uint64_t region = data->offset / kRegionBytes;
      sweep_region(version, *file, region);
      swept_bytes_ = (region + 1) * kRegionBytes;
      if (Clock::now() >= deadline) return false;
    }
    // It may be current's: a failed sync is told once, and was a flush's to hear.
    if (file) map_->or_stop([&] { file->sync(); });
    map_->note_swept(version);
    unswept_.pop_back();
    swept_bytes_ = 0;
  }
  return true;
}

void SpaceReclaimer::sweep_region(uint32_t version, Object& file, uint64_t region) {
  const uint64_t first = region * kRegionBlocks;
  // As a first write would: nothing is between its data and its update then. When the version has
  // been frozen meanwhile nothing of it changes anyway.
  const Quiesce::Pass pass(quiesce_);
  const RangeLocks::Exclusive hold(range_locks_, first, kRegionBlocks);
  RunList runs;
  map_->find(version, first, kRegionBlocks, runs);
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
      map_->update_free_ranges([](FreeRanges& free) { return free.take(kRangesAtOnce); });
  const auto give_back = [this] {
    map_->update_free_ranges([](FreeRanges& free) { free.give_back(); });
  };
  if (ranges.empty()) return Punched::kNothing;
  std::set<uint32_t> put_aside;
  try {
    if (!cell_users_.wait_for_requests_until(deadline)) {
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
      const std::lock_guard guard(punched_mutex_);
      punched_.insert(version);
    }
  } catch (...) {
    give_back();
    throw;
  }
  map_->update_free_ranges([&](FreeRanges& free) { free.finish(put_aside); });
  return Punched::kSome;
}

void SpaceReclaimer::punch_file(uint32_t version, std::span<const FreeRange> ranges) {
  if (ranges[0].is_whole_file()) {
    files_->remove(version);
    return;
  }
  // A file that occupies nothing may still have cells: of zeroes, that a copy has made holes of.
  const auto file = files_->open_for_punching(version);
  if (!file) return;
  for (const FreeRange& range : ranges)
    file->punch(range.first * kBlockBytes, uint64_t{range.count} * kBlockBytes);
}

void SpaceReclaimer::sync_holes() {
  std::set<uint32_t> punched;
  {
    const std::lock_guard guard(punched_mutex_);
    punched.swap(punched_);
  }
  try {
    for (const uint32_t version : punched)
      if (const auto file = files_->open_for_punching(version))
        map_->or_stop([&] { file->sync(); });
    if (!punched.empty()) backend_.sync_folder(folder_);
  } catch (...) {
    const std::lock_guard guard(punched_mutex_);
    punched_.merge(punched);
    throw;
  }
}

}  // namespace tplstore
