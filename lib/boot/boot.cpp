// The three threads, and what is learnt when.
#include "boot/boot.h"

#include <set>

#include "base/io_priority.h"
#include "boot/learning.h"

namespace tplstore {
namespace {

constexpr int64_t kUpkeepNs = 100'000'000;  // while a window is open
constexpr int64_t kIdleNs = 3'600'000'000'000;
constexpr uint32_t kSteadyBoots = 2;

// The files that have what is in the profile; of a disk that is not open nobody can tell.
std::vector<CellFileKey> files_of_open(BootDisk& disk, const FoundProfile& found) {
  if (disk.is_gone()) return {};
  try {
    const std::set<CellFileKey> files = files_of(disk, found.stored.profile.runs);
    return {files.begin(), files.end()};
  } catch (const Error& error) {
    if (error.code() != ESHUTDOWN && error.code() != ENOENT) throw;
    return {};
  }
}

}  // namespace

Boot::Boot(BootOptions options, Backend& store, const HashSecret& secret)
    : options_(std::move(options)),
      store_(store),
      secret_(secret),
      memory_(options_.cap_bytes, options_.huge_pages, [this] { alarms_.upkeep.ring(); }),
      windows_(options_, memory_, alarms_),
      read_ahead_(options_, store_, secret_, memory_, windows_) {}

// --- what is asked for

BootStatus Boot::show(BootDisk& disk) {
  BootStatus status = show_stored_boots(store_, disk);
  status.cached_bytes = memory_.cached_bytes(files_of_open(disk, find_profile(store_, disk)));
  status.windows = windows_.reports_of(disk);
  return status;
}

void Boot::forget(BootDisk& disk) {
  std::vector<CellFileKey> files = files_of_open(disk, find_profile(store_, disk));
  forget_stored_boots(store_, disk);
  // Of a volume only what it does not share with its template's others.
  if (!disk.volume().is_nil())
    std::erase_if(files,
                  [](const CellFileKey& key) { return key.kind == CellFileKey::Kind::kSegment; });
  memory_.forget(files);
}

// --- learning

void Boot::learn_all() {
  while (auto ended = windows_.take_ended()) {
    // A request may hang where its storage does.
    while (!memory_.requests().wait_for_requests_until(std::chrono::steady_clock::now() +
                                                       std::chrono::seconds(1)))
      if (alarms_.learn.is_stopped()) return windows_.put_back(std::move(*ended));
    if (ended->is_learnt_from) options_.attempt([&] { learn(*ended->boot); });
  }
}

// What is in memory need not be in the storage's caches too. What is not stays there.
void Boot::drop_cached(BootDisk* disk, std::span<const ProfileRun> boot) {
  if (disk == nullptr || boot.empty()) return;
  const CachedRuns counted = count_cached(*disk, boot, memory_);
  if (counted.cached_bytes < counted.bytes - counted.bytes / 16) return;
  std::vector<CellRun> runs;
  runs.reserve(boot.size());
  for (const ProfileRun& run : boot) runs.push_back({run.source, run.first, run.count});
  disk->drop_cached(runs);
}

void Boot::learn(FollowedBoot& boot) {
  BootDisk& disk = *boot.disk;
  const std::vector<ProfileRun> runs = runs_of_boot(boot.record.record(), disk.size_bytes());
  // The volume may be closed by now; what came from the template is there still.
  const std::shared_ptr<BootDisk> origin = disk.open_template();
  options_.attempt([&] { drop_cached(disk.is_gone() ? origin.get() : &disk, runs); });
  if (2 * boot.record.streamed_bytes() > boot.record.read_bytes()) return;
  const auto learnt =
      learn_boot(store_, disk, origin.get(), runs, options_.bytes / kBlockBytes, memory_, secret_);
  if (!learnt) return;
  windows_.has_new_profile(disk.volume());
  if (!options_.packs || learnt->stored.profile.steady_boots < kSteadyBoots ||
      !read_ahead_.was_slow(learnt->owner))
    return;
  BootDisk* const packed = learnt->is_of_template ? origin.get() : &disk;
  if (packed != nullptr && !packed->is_gone())
    make_pack_of(store_, *packed, *learnt, secret_, memory_,
                 [this] { return alarms_.learn.is_stopped(); });
}

// --- threads

bool Boot::upkeep() {
  const bool has_open = windows_.tend();
  memory_.maintain();
  return has_open;
}

template <typename Work>
void Boot::run_thread(std::thread& thread, Alarm& alarm, Work work) {
  thread = std::thread([this, &alarm, work] {
    int64_t wait_ns = 0;
    while (alarm.wait(wait_ns)) {
      wait_ns = kUpkeepNs;
      options_.attempt([&] { wait_ns = work(); });
    }
  });
}

void Boot::start() {
  run_thread(upkeep_thread_, alarms_.upkeep, [this] { return upkeep() ? kUpkeepNs : kIdleNs; });
  run_thread(learn_thread_, alarms_.learn, [this] {
    make_thread_io_idle();
    learn_all();
    return kIdleNs;
  });
  run_thread(read_thread_, alarms_.read, [this] {
    make_thread_io_idle();
    if (read_ahead_.step()) return int64_t{0};
    return read_ahead_.has_waiting() ? kUpkeepNs : kIdleNs;
  });
}

void Boot::stop() {
  for (Alarm* alarm : {&alarms_.read, &alarms_.upkeep, &alarms_.learn}) alarm->stop();
  for (std::thread* thread : {&read_thread_, &upkeep_thread_, &learn_thread_})
    if (thread->joinable()) thread->join();
  read_ahead_.stop();
}

void Boot::tend() {
  while (read_ahead_.step()) {
  }
  upkeep();
  learn_all();
}

}  // namespace tplstore
