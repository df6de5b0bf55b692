// Begins, continues and ends readings.
#include "boot/read_ahead.h"

#include <algorithm>

namespace tplstore {
namespace {

constexpr uint64_t kUnusedBlocksMax = 100;
constexpr int64_t kUnusedMs = 30'000;
constexpr int64_t kSlowMs = 500;
constexpr uint64_t kSlowRequests = 64;
constexpr int64_t kPacksFirstMs = 1000;

uint64_t memory_of(const Profile& profile) {
  return profile.runs.size() * 2 * sizeof(ProfileRun) + profile.hashes.size() * sizeof(Hash128);
}

bool is_over(const std::shared_ptr<FollowedBoot>& boot) {
  return boot->is_over.load() || boot->disk->is_gone();
}

}  // namespace

bool ReadAhead::step() {
  auto begun = windows_.take_begun();
  // What it holds may be the room that is waited for.
  std::erase_if(waiting_, is_over);
  if (!waiting_.empty() && !buffer_) buffer_ = PrefetchBuffer::make(memory_);
  if (buffer_) std::ranges::move(std::exchange(waiting_, {}), std::back_inserter(begun));
  if (options_.prefetch)
    for (const auto& boot : begun)
      options_.attempt([&] {
        if (!begin(boot)) waiting_.push_back(boot);
      });
  for (const auto& disk : windows_.take_headless())
    options_.attempt([&] {
      windows_.set_heads(disk->volume(), find_profile(store_, *disk).stored.profile.runs);
    });
  // A pack that is being read may have what others would look for in many places.
  const int64_t now_ms = options_.clock_ms();
  const auto goes_first = [&](const auto& owned) {
    const Reading& reading = owned.second;
    return reading.prefetch->has_pack() && now_ms - reading.begun_ms < kPacksFirstMs;
  };
  const bool are_packs_first = std::ranges::any_of(readings_, goes_first);
  for (auto at = readings_.begin(); at != readings_.end();) {
    if (are_packs_first && !goes_first(*at)) {
      ++at;
      continue;
    }
    bool has_more = false;
    options_.attempt([&] { has_more = step(at->first, at->second); });
    at = has_more ? std::next(at) : readings_.erase(at);
  }
  if (readings_.empty()) buffer_.reset();
  return !readings_.empty();
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

bool ReadAhead::begin(const std::shared_ptr<FollowedBoot>& boot) {
  if (boot->is_over.load()) return true;
  FoundProfile found = find_profile(store_, *boot->disk);
  Profile& profile = found.stored.profile;
  if (profile.runs.empty()) {
    boot->disk->take_tables();
    return true;
  }
  const auto known = readings_.find(found.owner);
  if (known != readings_.end()) {
    known->second.boots.push_back(boot);
    return true;
  }
  const Done begun = now(found.stored.number);
  if (const auto done = done_.find(found.owner); done != done_.end() && done->second == begun)
    return true;
  if (!buffer_) buffer_ = PrefetchBuffer::make(memory_);
  if (!buffer_) return false;
  Reading reading;
  auto beside = memory_.hold_beside(memory_of(profile));
  if (!beside) return true;
  reading.besides.push_back(std::move(*beside));
  reading.profile = std::make_shared<const Profile>(std::move(profile));
  auto packs = find_packs(*boot->disk, found, *reading.profile);
  std::erase_if(packs, [&](const auto& pack) {
    auto held = memory_.hold_beside(pack->memory_bytes());
    if (held) reading.besides.push_back(std::move(*held));
    return !held;
  });
  reading.prefetch =
      std::make_unique<Prefetch>(memory_, reading.profile, std::move(packs), secret_);
  reading.boots.push_back(boot);
  reading.begun = begun;
  reading.begun_ms = reading.used_ms = options_.clock_ms();
  // What the guest reads for itself would take the room of what it will not have to read.
  if (count_blocks(reading.profile->runs) * kBlockBytes > options_.cap_bytes)
    boot->cells->stop_filling();
  readings_.emplace(found.owner, std::move(reading));
  return true;
}

std::vector<std::unique_ptr<const Pack>> ReadAhead::find_packs(const BootDisk& disk,
                                                               const FoundProfile& found,
                                                               const Profile& profile) {
  std::vector<std::unique_ptr<const Pack>> packs;
  if (!options_.packs) return packs;
  const auto open = [&](const FoundProfile& of) {
    if (auto pack = open_pack(store_, of.pack(), of.owner, secret_))
      packs.push_back(std::move(pack));
  };
  if (!found.is_of_template) open(found);
  // A pack has its template's blocks one after the other, so a quarter of them is worth it.
  const auto& runs = profile.runs;
  if (disk.template_uuid() && 4 * count_own_blocks(runs) < 3 * count_blocks(runs))
    open({true, *disk.template_uuid()});
  return packs;
}

bool ReadAhead::step(const Uuid& owner, Reading& reading) {
  std::erase_if(reading.boots, is_over);
  if (reading.boots.empty()) return false;
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
    if (prefetch.step(*first.disk, *first.cells, buffer_->bytes())) return true;
  } catch (const Error&) {
    // The disk is gone, or its map cannot be read; another one's may do.
    std::erase(reading.boots, reading.boots.front());
    return !reading.boots.empty();
  }
  if (prefetch.placed_bytes() == prefetch.passed_bytes()) done_[owner] = reading.begun;
  const Lock guard(mutex_);
  if (prefetch.requests() > 0)
    was_slow_[owner] = now_ms - reading.begun_ms > kSlowMs || prefetch.requests() > kSlowRequests;
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
  auto packs = find_packs(disk, found, *profile);
  const uint64_t refused_before = memory_.stats().refused;
  const uint64_t wanted_bytes = count_blocks(profile->runs) * kBlockBytes;
  auto window = memory_.open_window();
  try {
    Prefetch prefetch(memory_, profile, std::move(packs), secret_);
    while (prefetch.step(disk, *window, buffer->bytes())) {
      progress(std::max(prefetch.passed_bytes(), std::min(prefetch.taken_bytes(), wanted_bytes)),
               wanted_bytes);
      if (interrupted()) fail(EINTR, disk.name(), "interrupted; what is in memory stays there");
    }
  } catch (...) {
    windows_.let_go(std::move(window));
    throw;
  }
  windows_.let_go(std::move(window));
  if (memory_.stats().refused == refused_before) return {wanted_bytes, wanted_bytes};
  const CachedRuns counted = count_cached(disk, profile->runs, memory_);
  return {counted.bytes, counted.cached_bytes};
}

}  // namespace tplstore
