// Begins, continues and ends readings.
#include "boot/read_ahead.h"

#include <algorithm>
#include <utility>

namespace tplstore {
namespace {

constexpr uint64_t kUnusedBlocksMax = 100;
constexpr int64_t kUnusedMs = 30'000;
constexpr uint64_t kSlowMs = 500;
constexpr uint64_t kSlowRequests = 64;
constexpr int64_t kPacksFirstMs = 1000;
constexpr uint64_t kMissingPart = 16;  // of a profile, and less, is read without its packs

uint64_t memory_of(const Profile& profile) {
  return profile.runs.size() * 2 * sizeof(ProfileRun) + profile.hashes.size() * sizeof(Hash128);
}

bool is_over(const std::shared_ptr<FollowedBoot>& boot) {
  return boot->is_over.load() || boot->disk->is_gone();
}

}  // namespace

bool ReadAhead::step() {
  // Those whose turn has not come hold what their boots hold.
  for (auto& [owner, reading] : readings_) std::erase_if(reading.boots, is_over);
  std::erase_if(readings_, [](const auto& entry) { return entry.second.boots.empty(); });
  begin_waiting();
  const Reading* const packs_of = first_with_packs();
  const bool goes_first = packs_of != nullptr && is_first(*packs_of);
  if (!goes_first) set_heads();
  for (auto at = readings_.begin(); at != readings_.end();) {
    if (&at->second != packs_of) {
      if (!goes_first) look_for_packs(at->second);
      if (goes_first || at->second.has_packs()) {
        ++at;
        continue;
      }
    }
    bool has_more = false;
    options_.attempt([&] { has_more = step(at->first, at->second); });
    at = has_more ? std::next(at) : readings_.erase(at);
  }
  if (readings_.empty()) buffer_.reset();
  // What waited for the first one's packs is due, though that may have ended meanwhile.
  return !readings_.empty() || goes_first;
}

// A pack that is being read may have what others would look for in many places, and their profiles
// can wait for it too.
void ReadAhead::begin_waiting() {
  std::ranges::move(windows_.take_begun(), std::back_inserter(waiting_));
  // What it holds may be the room that is waited for.
  std::erase_if(waiting_, is_over);
  if (!options_.prefetch) waiting_.clear();
  while (!waiting_.empty()) {
    const Reading* const packs_of = first_with_packs();
    if (packs_of != nullptr && is_first(*packs_of)) return;
    bool has_room = true;
    options_.attempt([&] { has_room = begin(waiting_.front()); });
    if (!has_room) return;
    waiting_.pop_front();
  }
}

void ReadAhead::set_heads() {
  for (const auto& disk : windows_.take_headless())
    options_.attempt([&] {
      FoundProfile found = find_profile(store_, *disk, [&](const Uuid& owner, uint64_t number) {
        return beginnings_[owner].number == number;
      });
      Beginning read{found.stored.number, std::move(found.stored.profile.runs)};
      if (!found.is_of_template) return windows_.set_heads(disk->volume(), read.runs);
      Beginning& beginning = beginnings_[found.owner];
      if (beginning.number != read.number) {
        read.runs.resize(std::min(read.runs.size(), BootWindows::kHeads));
        read.runs.shrink_to_fit();
        beginning = std::move(read);
      }
      windows_.set_heads(disk->volume(), beginning.runs);
    });
}

void ReadAhead::stop() {
  readings_.clear();
  waiting_.clear();
  buffer_.reset();
}

ReadAhead::Done ReadAhead::now(uint64_t number) {
  const CellMemoryStats stats = memory_.stats();
  return {number, stats.evictions, stats.refused};
}

bool ReadAhead::is_done(const Uuid& owner, uint64_t number) {
  const auto done = done_.find(owner);
  return done != done_.end() && done->second == now(number);
}

bool ReadAhead::begin(const std::shared_ptr<FollowedBoot>& boot) {
  if (boot->is_over.load()) return true;
  bool is_read = false;  // though something may be evicted from now on
  FoundProfile found = find_profile(store_, *boot->disk, [&](const Uuid& owner, uint64_t number) {
    is_read = is_done(owner, number);
    return is_read || readings_.contains(owner);
  });
  const auto known = readings_.find(found.owner);
  if (known != readings_.end()) {
    known->second.boots.push_back(boot);
    return true;
  }
  if (is_read || is_done(found.owner, found.stored.number)) return true;
  Profile& profile = found.stored.profile;
  if (profile.runs.empty()) {
    boot->disk->take_tables();
    return true;
  }
  const Done begun = now(found.stored.number);
  if (!buffer_) buffer_ = PrefetchBuffer::make(memory_);
  if (!buffer_) return false;
  Reading reading;
  reading.beside = memory_.hold_beside(memory_of(profile));
  if (!reading.beside) return true;
  reading.profile = std::make_shared<const Profile>(std::move(profile));
  reading.packs = places_of_packs(*boot->disk, found, *reading.profile);
  reading.prefetch = std::make_unique<Prefetch>(memory_, reading.profile, secret_);
  reading.boots.push_back(boot);
  reading.begun = begun;
  reading.filled_before = memory_.stats().fill_bytes;
  reading.order = ++readings_begun_;
  reading.begun_ms = reading.used_ms = options_.clock_ms();
  // What the guest reads for itself would take the room of what it will not have to read.
  if (count_blocks(reading.profile->runs) * kBlockBytes > options_.cap_bytes)
    boot->cells->stop_filling();
  readings_.emplace(found.owner, std::move(reading));
  return true;
}

std::vector<ReadAhead::PackPlace> ReadAhead::places_of_packs(const BootDisk& disk,
                                                             const FoundProfile& found,
                                                             const Profile& profile) const {
  std::vector<PackPlace> places;
  if (!options_.packs) return places;
  if (!found.is_of_template) places.push_back({found.pack(), found.owner});
  // A pack has its template's blocks one after the other, so a quarter of them is worth it.
  const auto& runs = profile.runs;
  if (disk.template_uuid() && 4 * count_own_blocks(runs) < 3 * count_blocks(runs))
    places.push_back({template_pack(*disk.template_uuid()), *disk.template_uuid()});
  return places;
}

bool ReadAhead::take_next_pack(std::vector<PackPlace>& places, BootDisk& disk,
                               const Profile& profile, Prefetch& prefetch) {
  if (places.empty()) return false;
  const CachedRuns there = count_cached(disk, profile.runs, memory_);
  if ((there.bytes - there.cached_bytes) * kMissingPart <= there.bytes) places.clear();
  while (!places.empty()) {
    const PackPlace place = std::move(places.back());
    places.pop_back();
    std::unique_ptr<const Pack> pack;
    options_.attempt([&] { pack = open_pack(store_, place.object, place.owner, secret_); });
    auto beside = pack ? memory_.hold_beside(pack->memory_bytes()) : std::nullopt;
    if (!beside) continue;
    prefetch.take_pack(std::move(pack), std::move(*beside));
    return true;
  }
  return false;
}

bool ReadAhead::is_first(const Reading& reading) const {
  return reading.has_packs() && options_.clock_ms() - reading.begun_ms < kPacksFirstMs;
}

const ReadAhead::Reading* ReadAhead::first_with_packs() const {
  const Reading* first = nullptr;
  for (const auto& [owner, reading] : readings_)
    if (reading.has_packs() && (first == nullptr || reading.order < first->order)) first = &reading;
  return first;
}

// Who has no packs need not wait for its turn to read them.
void ReadAhead::look_for_packs(Reading& reading) {
  if (std::exchange(reading.has_looked, true)) return;
  std::erase_if(reading.packs, [&](const PackPlace& place) {
    bool is_empty = true;
    options_.attempt([&] { is_empty = place.object.numbers(store_).empty(); });
    return is_empty;
  });
}

bool ReadAhead::step(const Uuid& owner, Reading& reading) {
  const int64_t now_ms = options_.clock_ms();
  uint64_t hits = 0, unused = 0;
  for (const auto& boot : reading.boots) {
    const WindowUse use = boot->cells->use();
    hits += use.hits;
    unused += use.prefetched_unused;
  }
  if (hits != reading.hits) {
    reading.hits = hits;
    reading.used_ms = now_ms;
  }
  if (unused >= kUnusedBlocksMax && now_ms - reading.used_ms >= kUnusedMs) return false;
  Prefetch& prefetch = *reading.prefetch;
  // Of the memory it may have the part that its windows are of all.
  const uint64_t windows_open = std::max<uint64_t>(1, windows_.count_open());
  if (prefetch.taken_bytes() >= options_.cap_bytes * reading.boots.size() / windows_open)
    return false;
  FollowedBoot& first = *reading.boots.front();
  try {
    // Without one it is the turn of who has some.
    if (!prefetch.has_pack() && !reading.packs.empty() &&
        !take_next_pack(reading.packs, *first.disk, *reading.profile, prefetch))
      return true;
    const bool has_more = prefetch.step(*first.disk, *first.cells, buffer_->bytes());
    reading.spent_ms += options_.clock_ms() - now_ms;
    if (has_more) return true;
  } catch (const Error&) {
    // The disk is gone, or its map cannot be read; another one's may do.
    std::erase(reading.boots, reading.boots.front());
    return !reading.boots.empty();
  }
  if (prefetch.placed_bytes() == prefetch.passed_bytes()) done_[owner] = reading.begun;
  if (const uint64_t taken = prefetch.taken_bytes(); taken > 0) {
    // What guests have read of it for themselves meanwhile would have taken as long.
    const uint64_t filled = memory_.stats().fill_bytes - reading.filled_before;
    const uint64_t bytes = std::max(taken, std::min(filled, prefetch.placed_bytes()));
    const auto spent_ms = static_cast<uint64_t>(reading.spent_ms);
    const Lock guard(mutex_);
    was_slow_[owner] =
        spent_ms * bytes > kSlowMs * taken || prefetch.requests() * bytes > kSlowRequests * taken;
  }
  return false;
}

bool ReadAhead::was_slow(const Uuid& owner) {
  const Lock guard(mutex_);
  const auto found = was_slow_.find(owner);
  return found != was_slow_.end() && found->second;
}

BootWarm ReadAhead::warm(BootDisk& disk,
                         const std::function<void(uint64_t done, uint64_t bytes)>& progress,
                         const std::function<bool()>& interrupted) {
  FoundProfile found = find_profile(store_, disk);
  if (found.stored.profile.runs.empty())
    fail(ENOENT, disk.name(),
         "has no boot profile: one is made when a VM that boots from it is served");
  const auto buffer = PrefetchBuffer::make(memory_);
  const auto beside = memory_.hold_beside(memory_of(found.stored.profile));
  if (!buffer || !beside)
    fail(ENOMEM, disk.name(), "there is no room in the boot cache: open windows have it");
  const auto profile = std::make_shared<const Profile>(std::move(found.stored.profile));
  auto packs = places_of_packs(disk, found, *profile);
  const uint64_t refused_before = memory_.stats().refused;
  const uint64_t wanted_bytes = count_blocks(profile->runs) * kBlockBytes;
  uint64_t missed_bytes = 0;
  auto window = memory_.open_window();
  try {
    Prefetch prefetch(memory_, profile, secret_);
    for (;;) {
      if (!prefetch.has_pack()) take_next_pack(packs, disk, *profile, prefetch);
      if (!prefetch.step(disk, *window, buffer->bytes())) break;
      progress(std::max(prefetch.passed_bytes(), std::min(prefetch.taken_bytes(), wanted_bytes)),
               wanted_bytes);
      if (interrupted()) fail(EINTR, disk.name(), "interrupted; what is in memory stays there");
    }
    missed_bytes = prefetch.missed_bytes();
  } catch (...) {
    windows_.let_go(std::move(window));
    throw;
  }
  windows_.let_go(std::move(window));
  if (memory_.stats().refused == refused_before && missed_bytes == 0)
    return {wanted_bytes, wanted_bytes};
  const CachedRuns counted = count_cached(disk, profile->runs, memory_);
  return {counted.bytes, counted.cached_bytes};
}

}  // namespace tplstore
