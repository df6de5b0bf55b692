// Windows by volume, their followers, and the three threads behind them.
#include "boot/boot.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <map>
#include <thread>

#include "base/alarm.h"
#include "base/io_priority.h"
#include "base/mutex.h"
#include "base/units.h"
#include "boot/learning.h"
#include "boot/prefetch.h"
#include "boot/stream_filter.h"
#include "template/store_identity.h"

namespace tplstore {
namespace {

constexpr int64_t kPauseMs = 10'000;  // between two windows of a volume
constexpr size_t kHeads = 16;         // runs of a profile that tell that a boot begins,
constexpr int64_t kHeadsMs = 2'000;   // when two of them are read within this time
constexpr size_t kReportsMax = 512;
constexpr size_t kShownWindows = 16;
constexpr int64_t kUpkeepNs = 100'000'000;  // while a window is open
constexpr int64_t kIdleNs = 3'600'000'000'000;
constexpr uint64_t kUnusedBlocksMax = 100;
constexpr int64_t kUnusedMs = 30'000;
constexpr int64_t kSlowMs = 500;  // reading a profile, where a pack helps
constexpr uint64_t kSlowRequests = 64;
constexpr uint32_t kSteadyBoots = 2;

uint64_t memory_of(const Profile& profile) {
  return profile.runs.size() * 2 * sizeof(ProfileRun) + profile.hashes.size() * sizeof(Hash128);
}

// Which of 64 bits stands for a block.
uint64_t head_bit(uint64_t block) { return uint64_t{1} << ((block * 0x9e3779b97f4a7c15) >> 58); }

}  // namespace

int64_t BootOptions::steady_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

const char* name_of(BootStatus::PackState state) {
  switch (state) {
    case BootStatus::PackState::kNone:
      return "none";
    case BootStatus::PackState::kReady:
      return "ready";
    case BootStatus::PackState::kDamaged:
      break;
  }
  return "damaged";
}

std::string BootWindow::line() const {
  const uint64_t touched = use.cells - std::min(use.cells, use.prefetched_unused);
  const uint64_t found = touched == 0 ? 0 : 100 * std::min(use.first_touch_hits, touched) / touched;
  return fmt::format("{}: boot ended ({}): {} blocks, {}, {} % found in memory, {}.{} s", volume,
                     reason ? name_of(*reason) : "open", blocks, format_size(bytes()), found,
                     duration_ms / 1000, duration_ms % 1000 / 100);
}

class Boot::Service {
 public:
  // A boot that is being followed, or has ended and is to be learnt from. The cells' window goes
  // when no request can use it.
  struct OpenWindow {
    OpenWindow(std::shared_ptr<BootDisk> booting, const WindowLimits& limits, int64_t now_ms,
               CellMemory& memory)
        : disk(std::move(booting)),
          record(disk->size_bytes(), limits, now_ms),
          cells(memory.open_window()) {}

    const std::shared_ptr<BootDisk> disk;
    Window record;
    const std::unique_ptr<CellMemory::Window> cells;
    const int64_t opened_ns = now_unix_ns();
    std::atomic<bool> is_over{false};
    // The upkeep's: what of the record is counted.
    std::vector<CellMemory::Beside> besides{};
    uint64_t counted_bytes = 0;
  };

  // A volume that has followers.
  struct Followed {
    std::atomic<OpenWindow*> open{nullptr};
    std::atomic<int64_t> ended_ms{INT64_MIN / 2};  // the last window
    // Where its profile begins: the bits of these blocks, and the blocks + 1.
    std::atomic<uint64_t> head_bits{0};
    std::array<std::atomic<uint64_t>, kHeads> heads{};
    std::atomic<uint64_t> last_head{0};  // that was read
    std::atomic<int64_t> last_head_ms{INT64_MIN / 2};
    // The service's, under its mutex:
    std::shared_ptr<BootDisk> disk;
    std::shared_ptr<OpenWindow> owned;
    size_t followers = 0;

    bool is_head(uint64_t block) const {
      return std::ranges::any_of(heads, [block](const auto& head) {
        return head.load(std::memory_order_relaxed) == block + 1;
      });
    }
  };

  // What goes when no request can use it any more.
  struct Ended {
    std::shared_ptr<OpenWindow> boot;
    bool is_learnt_from = false;
    std::unique_ptr<CellMemory::Window> cells;  // of who was no boot
  };

  class Follower;

  Service(BootOptions options, Backend& store, const HashSecret& secret)
      : options_(std::move(options)),
        store_(store),
        secret_(secret),
        limits_{options_.quiet.count(), options_.time.count(), options_.bytes},
        memory_(options_.cap_bytes, options_.huge_pages, [this] { upkeep_alarm_.ring(); }) {}
  ~Service() { stop(); }

  void start();
  void stop();
  void tend();

  std::unique_ptr<ReadFollower> follow(std::shared_ptr<BootDisk> disk);
  BootStatus show(BootDisk& disk);
  std::optional<BootWindow> done(const Uuid& volume);
  BootWarm warm(BootDisk& disk, const std::function<void(uint64_t done, uint64_t bytes)>& progress,
                const std::function<bool()>& interrupted);
  void forget(BootDisk& disk);
  BootStats stats();
  CellMemory& memory() { return memory_; }

 private:
  // A profile that is being read ahead for these windows, in the name of the first.
  struct Reading {
    std::shared_ptr<const Profile> profile;
    std::vector<CellMemory::Beside> besides;
    std::unique_ptr<Prefetch> prefetch;
    std::vector<std::shared_ptr<OpenWindow>> windows;
    bool is_of_template = false;
    int64_t begun_ms = 0;
    int64_t used_ms = 0;  // when somebody had found something in memory, the last time
    uint64_t hits = 0;
  };
  struct Took {
    int64_t ms = 0;
    uint64_t requests = 0;
  };

  void leave(const Uuid& volume) noexcept;
  bool open(Followed& followed, bool is_confirmed);
  void confirm(Followed& followed, OpenWindow& window);
  std::optional<BootWindow> end(Followed& followed, WindowEnd reason) REQUIRES(mutex_);
  void say(const std::optional<BootWindow>& report) const;
  static std::vector<CellFileKey> files_of_open(BootDisk& disk, const FoundProfile& found);
  static BootWindow report_of(const OpenWindow& window, int64_t now_ms);

  int64_t upkeep();
  void keep(OpenWindow& window);

  void learn_all();
  void learn(OpenWindow& window);

  bool read_ahead();
  void find_heads(Followed& followed);
  void begin_reading(const std::shared_ptr<OpenWindow>& window);
  bool step(const Uuid& owner, Reading& reading);

  template <typename Work>
  void run_thread(std::thread& thread, Alarm& alarm, Work work);
  // Does what is only there to make others faster.
  template <typename Work>
  void attempt(Work work) noexcept;

  const BootOptions options_;
  Backend& store_;
  const HashSecret secret_;
  const WindowLimits limits_;

  Alarm upkeep_alarm_, learn_alarm_, read_alarm_;
  CellMemory memory_;

  Mutex mutex_;
  std::map<Uuid, std::shared_ptr<Followed>> followed_ GUARDED_BY(mutex_);
  std::deque<BootWindow> reports_ GUARDED_BY(mutex_);
  std::deque<Ended> ended_ GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<OpenWindow>> confirmed_ GUARDED_BY(mutex_);  // to read ahead for
  std::vector<std::weak_ptr<Followed>> headless_ GUARDED_BY(mutex_);
  std::map<Uuid, Took> took_ GUARDED_BY(mutex_);  // reading a template's profile, the last time

  // Of the thread that reads ahead.
  std::map<Uuid, Reading> readings_;
  std::optional<PrefetchBuffer> buffer_;

  std::thread upkeep_thread_, learn_thread_, read_thread_;
};

// --- reading

class Boot::Service::Follower final : public ReadFollower {
 public:
  Follower(Service& service, std::shared_ptr<Followed> followed, const Uuid& volume)
      : service_(service), followed_(std::move(followed)), volume_(volume) {}
  ~Follower() override { service_.leave(volume_); }

  CellWindow* begin_read(uint64_t offset, uint64_t length, ReadPlan& plan) noexcept override {
    if (followed_->open.load(std::memory_order_relaxed) == nullptr) [[likely]] {
      const uint64_t head_bits = followed_->head_bits.load(std::memory_order_relaxed);
      const uint64_t block = offset / kBlockBytes;
      if (block != 0 && (head_bits & head_bit(block)) == 0) [[likely]]
        return nullptr;
      if (!begin_window(block)) return nullptr;
    }
    plan.enter(service_.memory_.requests());
    OpenWindow* window = followed_->open.load();
    if (window == nullptr) return nullptr;
    if (offset >= kBlockBytes && !window->record.is_confirmed()) begin_boot(*window);
    const bool is_streaming = note_in_stream(offset, length);
    window->record.note_read(length, is_streaming);
    return is_streaming ? nullptr : window->cells.get();
  }

  void touch(CellWindow& cells, uint32_t source, uint64_t first, uint64_t count) noexcept override {
    OpenWindow* window = followed_->open.load();
    if (window == nullptr || window->cells.get() != &cells) return;  // it has ended meanwhile
    window->record.touch(source, first, count, service_.options_.clock_ms());
  }

 private:
  // Without memory, or where it is too early, there is none.
  bool begin_window(uint64_t block) noexcept {
    const int64_t now_ms = service_.options_.clock_ms();
    if (now_ms - followed_->ended_ms.load(std::memory_order_relaxed) < kPauseMs) return false;
    if (block != 0) {
      // One of them alone may be anything.
      if (!followed_->is_head(block)) return false;
      const bool is_another = followed_->last_head.exchange(block) != block;
      const int64_t before_ms = followed_->last_head_ms.exchange(now_ms);
      if (!is_another || now_ms - before_ms > kHeadsMs) return false;
    }
    try {
      return service_.open(*followed_, block != 0);
    } catch (const std::exception&) {
      return false;
    }
  }
  void begin_boot(OpenWindow& window) noexcept {
    try {
      service_.confirm(*followed_, window);
    } catch (const std::exception&) {
      // Then nothing is read ahead.
    }
  }
  bool note_in_stream(uint64_t offset, uint64_t length) noexcept {
    // Requests of one connection only meet here; one that does not get in soon is not counted.
    for (int tries = 0; tries < 1000; ++tries) {
      if (is_filtering_.test_and_set(std::memory_order_acquire)) continue;
      const bool is_streaming = filter_.is_streaming(offset, length);
      is_filtering_.clear(std::memory_order_release);
      return is_streaming;
    }
    return false;
  }

  Service& service_;
  const std::shared_ptr<Followed> followed_;
  const Uuid volume_;
  std::atomic_flag is_filtering_;
  StreamFilter filter_;
};

std::unique_ptr<ReadFollower> Boot::Service::follow(std::shared_ptr<BootDisk> disk) {
  const Uuid volume = disk->volume();
  const Lock guard(mutex_);
  std::shared_ptr<Followed>& followed = followed_[volume];
  if (!followed) {
    followed = std::make_shared<Followed>();
    headless_.push_back(followed);
    read_alarm_.ring();
  }
  auto follower = std::make_unique<Follower>(*this, followed, volume);
  followed->disk = std::move(disk);
  ++followed->followers;
  return follower;
}

void Boot::Service::leave(const Uuid& volume) noexcept {
  std::optional<BootWindow> report;
  {
    const Lock guard(mutex_);
    const auto found = followed_.find(volume);
    if (found == followed_.end() || --found->second->followers > 0) return;
    try {
      report = end(*found->second, WindowEnd::kClosed);
    } catch (const std::exception&) {
      // Without memory nothing is learnt from it.
    }
    followed_.erase(found);
  }
  say(report);
}

bool Boot::Service::open(Followed& followed, bool is_confirmed) {
  const Lock guard(mutex_);
  if (followed.owned || !followed.disk) return followed.owned != nullptr;
  auto beside = memory_.hold_beside(sizeof(OpenWindow));
  if (!beside) return false;
  auto window = std::make_shared<OpenWindow>(followed.disk, limits_, options_.clock_ms(), memory_);
  window->besides.push_back(std::move(*beside));
  if (is_confirmed) {
    window->record.confirm();
    confirmed_.push_back(window);
    read_alarm_.ring();
  }
  followed.owned = window;
  followed.open.store(window.get());
  upkeep_alarm_.ring();
  return true;
}

void Boot::Service::confirm(Followed& followed, OpenWindow& window) {
  if (!window.record.confirm()) return;
  const Lock guard(mutex_);
  if (followed.owned.get() != &window) return;
  confirmed_.push_back(followed.owned);
  read_alarm_.ring();
}

BootWindow Boot::Service::report_of(const OpenWindow& window, int64_t now_ms) {
  BootWindow report;
  report.volume = window.disk->name();
  report.volume_uuid = window.disk->volume();
  report.template_uuid = window.disk->template_uuid();
  report.opened_ns = window.opened_ns;
  report.blocks = window.record.blocks();
  report.streamed_bytes = window.record.streamed_bytes();
  report.read_bytes = window.record.read_bytes();
  report.use = window.cells->use();
  report.duration_ms = now_ms - window.record.opened_ms();
  return report;
}

std::optional<BootWindow> Boot::Service::end(Followed& followed, WindowEnd reason) {
  const std::shared_ptr<OpenWindow> window = followed.owned;
  if (!window) return std::nullopt;
  const int64_t now_ms = options_.clock_ms();
  if (!window->record.is_confirmed()) reason = WindowEnd::kUnconfirmed;
  BootWindow report = report_of(*window, now_ms);
  report.reason = reason;
  report.ended_ns = now_unix_ns();
  ended_.push_back({window, reason != WindowEnd::kUnconfirmed, nullptr});
  followed.owned.reset();
  followed.open.store(nullptr);
  window->is_over.store(true);
  learn_alarm_.ring();
  if (reason == WindowEnd::kUnconfirmed) return std::nullopt;
  followed.ended_ms.store(now_ms);
  reports_.push_back(report);
  if (reports_.size() > kReportsMax) reports_.pop_front();
  return report;
}

void Boot::Service::say(const std::optional<BootWindow>& report) const {
  if (report && report->blocks > 0) options_.log(report->line());
}

std::optional<BootWindow> Boot::Service::done(const Uuid& volume) {
  std::optional<BootWindow> report;
  {
    const Lock guard(mutex_);
    const auto found = followed_.find(volume);
    if (found != followed_.end()) report = end(*found->second, WindowEnd::kDone);
  }
  say(report);
  return report;
}

// --- upkeep

int64_t Boot::Service::upkeep() {
  const int64_t now_ms = options_.clock_ms();
  std::vector<std::optional<BootWindow>> reports;
  bool has_open = false;
  {
    const Lock guard(mutex_);
    for (const auto& [volume, followed] : followed_) {
      if (!followed->owned) continue;
      keep(*followed->owned);
      if (const auto reason = followed->owned->record.find_end(now_ms)) {
        reports.push_back(end(*followed, *reason));
      } else {
        has_open = true;
      }
    }
  }
  for (const auto& report : reports) say(report);
  memory_.maintain();
  return has_open ? kUpkeepNs : kIdleNs;
}

// Counts what the record has grown by; and a window has half of the memory at most.
void Boot::Service::keep(OpenWindow& window) {
  const uint64_t bytes = window.record.memory_bytes();
  if (bytes > window.counted_bytes) {
    if (auto beside = memory_.hold_beside(bytes - window.counted_bytes)) {
      window.besides.push_back(std::move(*beside));
      window.counted_bytes = bytes;
    }
  }
  if (window.cells->is_filling() &&
      window.cells->use().cells * kBlockBytes >= options_.cap_bytes / 2)
    window.cells->stop_filling();
}

// --- learning

void Boot::Service::learn_all() {
  while (true) {
    Ended ended;
    {
      const Lock guard(mutex_);
      if (ended_.empty()) return;
      ended = std::move(ended_.front());
      ended_.pop_front();
    }
    // A request may hang where its storage does.
    while (!memory_.requests().wait_for_requests_until(std::chrono::steady_clock::now() +
                                                       std::chrono::seconds(1))) {
      if (!learn_alarm_.is_stopped()) continue;
      const Lock guard(mutex_);
      ended_.push_front(std::move(ended));
      return;
    }
    if (ended.boot && ended.is_learnt_from) attempt([&] { learn(*ended.boot); });
  }
}

void Boot::Service::learn(OpenWindow& window) {
  BootDisk& disk = *window.disk;
  const std::vector<ProfileRun> boot = runs_of_boot(window.record.record(), disk.size_bytes());
  // What is not in the memory stays in the caches of the storage.
  if (window.cells->is_filling() && window.cells->use().cells >= window.record.blocks())
    attempt([&] {
      std::vector<CellRun> runs;
      for (const ProfileRun& run : boot) runs.push_back({run.source, run.first, run.count});
      if (!runs.empty() && !disk.is_gone()) disk.drop_cached(runs);
    });
  if (2 * window.record.streamed_bytes() > window.record.read_bytes()) return;
  const auto learnt =
      learn_boot(store_, disk, boot, options_.bytes / kBlockBytes, memory_, secret_);
  if (!learnt) return;
  Took took;
  std::shared_ptr<BootDisk> living;  // that has the template's cells
  {
    const Lock guard(mutex_);
    const auto known = took_.find(learnt->owner);
    if (known != took_.end()) took = known->second;
    for (const auto& [volume, followed] : followed_) {
      if (volume == disk.volume()) headless_.push_back(followed);
      if (followed->disk && followed->disk->template_uuid() == disk.template_uuid() &&
          (!living || volume == disk.volume()))
        living = followed->disk;
    }
  }
  read_alarm_.ring();
  if (living && learnt->is_of_template && options_.packs &&
      learnt->stored.profile.steady_boots >= kSteadyBoots &&
      (took.ms > kSlowMs || took.requests > kSlowRequests))
    make_pack_of(store_, *living, learnt->stored.profile, secret_, memory_,
                 [this] { return learn_alarm_.is_stopped(); });
}

// --- reading ahead

// Whether there is more to do.
bool Boot::Service::read_ahead() {
  std::vector<std::shared_ptr<OpenWindow>> confirmed;
  std::vector<std::weak_ptr<Followed>> headless;
  {
    const Lock guard(mutex_);
    confirmed.swap(confirmed_);
    headless.swap(headless_);
  }
  if (options_.prefetch)
    for (const auto& window : confirmed) attempt([&] { begin_reading(window); });
  for (const auto& weak : headless)
    if (const auto followed = weak.lock()) attempt([&] { find_heads(*followed); });
  for (auto at = readings_.begin(); at != readings_.end();) {
    bool has_more = false;
    attempt([&] { has_more = step(at->first, at->second); });
    at = has_more ? std::next(at) : readings_.erase(at);
  }
  if (readings_.empty()) buffer_.reset();
  return !readings_.empty();
}

void Boot::Service::find_heads(Followed& followed) {
  std::shared_ptr<BootDisk> disk;
  {
    const Lock guard(mutex_);
    disk = followed.disk;
  }
  if (!disk) return;
  const std::vector<ProfileRun> runs = find_profile(store_, *disk).stored.profile.runs;
  uint64_t bits = 0;
  for (size_t i = 0; i < std::min(kHeads, runs.size()); ++i) {
    followed.heads[i].store(runs[i].first + 1, std::memory_order_relaxed);
    bits |= head_bit(runs[i].first);
  }
  followed.head_bits.store(bits);
}

void Boot::Service::begin_reading(const std::shared_ptr<OpenWindow>& window) {
  if (window->is_over.load()) return;
  FoundProfile found = find_profile(store_, *window->disk);
  Profile& profile = found.stored.profile;
  if (profile.runs.empty()) return;
  const auto known = readings_.find(found.owner);
  if (known != readings_.end()) {
    known->second.windows.push_back(window);
    return;
  }
  if (!buffer_) buffer_ = PrefetchBuffer::make(memory_);
  if (!buffer_) return;
  Reading reading;
  auto beside = memory_.hold_beside(memory_of(profile));
  if (!beside) return;
  reading.besides.push_back(std::move(*beside));
  reading.profile = std::make_shared<const Profile>(std::move(profile));
  std::shared_ptr<const Pack> pack;
  const auto template_uuid = window->disk->template_uuid();
  const auto& runs = reading.profile->runs;
  if (options_.packs && template_uuid && 2 * count_own_blocks(runs) < count_blocks(runs)) {
    pack = open_pack(store_, *template_uuid, secret_);
    auto held = pack ? memory_.hold_beside(pack->memory_bytes()) : std::nullopt;
    if (held) reading.besides.push_back(std::move(*held));
    if (!held) pack.reset();
  }
  reading.prefetch = std::make_unique<Prefetch>(memory_, reading.profile, std::move(pack), secret_);
  reading.windows.push_back(window);
  reading.is_of_template = found.is_of_template;
  reading.begun_ms = reading.used_ms = options_.clock_ms();
  readings_.emplace(found.owner, std::move(reading));
}

bool Boot::Service::step(const Uuid& owner, Reading& reading) {
  std::erase_if(reading.windows, [](const auto& window) {
    return window->is_over.load() || window->disk->is_gone();
  });
  if (reading.windows.empty()) return false;
  const int64_t now_ms = options_.clock_ms();
  uint64_t hits = 0, unused = 0;
  for (const auto& window : reading.windows) {
    const WindowUse use = window->cells->use();
    hits += use.hits;
    unused += use.prefetched_unused;
  }
  if (hits != reading.hits) {
    reading.hits = hits;
    reading.used_ms = now_ms;
  }
  if (unused >= kUnusedBlocksMax && now_ms - reading.used_ms >= kUnusedMs) return false;
  OpenWindow& window = *reading.windows.front();
  if (reading.prefetch->taken_bytes() >=
      options_.cap_bytes / std::max<uint64_t>(1, stats().windows_open))
    return false;
  try {
    if (reading.prefetch->step(*window.disk, *window.cells, buffer_->bytes())) return true;
  } catch (const Error&) {
    // The disk is gone, or its map cannot be read; another one's may do.
    std::erase(reading.windows, reading.windows.front());
    return !reading.windows.empty();
  }
  const Prefetch& done = *reading.prefetch;
  const Lock guard(mutex_);
  if (done.requests() > 0 && reading.is_of_template)
    took_[owner] = {now_ms - reading.begun_ms, done.requests()};
  return false;
}

BootWarm Boot::Service::warm(BootDisk& disk,
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
  std::shared_ptr<const Pack> pack;
  if (options_.packs && found.is_of_template) pack = open_pack(store_, found.owner, secret_);
  const uint64_t refused_before = memory_.stats().refused;
  const uint64_t wanted_bytes = count_blocks(profile->runs) * kBlockBytes;
  std::unique_ptr<CellMemory::Window> window = memory_.open_window();
  const auto let_go = [&] {
    const Lock guard(mutex_);
    ended_.push_back({nullptr, false, std::move(window)});
    learn_alarm_.ring();
  };
  try {
    Prefetch prefetch(memory_, profile, std::move(pack), secret_);
    while (prefetch.step(disk, *window, buffer->bytes())) {
      progress(std::max(prefetch.passed_bytes(), std::min(prefetch.taken_bytes(), wanted_bytes)),
               wanted_bytes);
      if (interrupted()) fail(EINTR, disk.name(), "interrupted; what is in memory stays there");
    }
  } catch (...) {
    let_go();
    throw;
  }
  let_go();
  BootWarm result{wanted_bytes, wanted_bytes};
  if (memory_.stats().refused != refused_before) {
    const CachedRuns counted = count_cached(disk, profile->runs, memory_);
    result = {counted.bytes, counted.cached_bytes};
  }
  return result;
}

// --- what is asked for

// The files that have what is in the profile; of a disk that is not open nobody can tell.
std::vector<CellFileKey> Boot::Service::files_of_open(BootDisk& disk, const FoundProfile& found) {
  if (disk.is_gone()) return {};
  try {
    const std::set<CellFileKey> files = files_of(disk, found.stored.profile.runs);
    return {files.begin(), files.end()};
  } catch (const Error& error) {
    if (error.code() != ESHUTDOWN && error.code() != ENOENT) throw;
    return {};
  }
}

BootStatus Boot::Service::show(BootDisk& disk) {
  BootStatus status = show_stored(store_, disk);
  const FoundProfile found = find_profile(store_, disk);
  const std::vector<CellFileKey> files = files_of_open(disk, found);
  status.cached_bytes = memory_.cached_bytes(files);
  const Lock guard(mutex_);
  const auto is_of_it = [&](const BootWindow& window) {
    return status.is_template ? window.template_uuid == disk.template_uuid()
                              : window.volume_uuid == disk.volume();
  };
  for (const BootWindow& report : reports_)
    if (is_of_it(report)) status.windows.push_back(report);
  for (const auto& [volume, followed] : followed_) {
    if (!followed->owned || !followed->owned->record.is_confirmed()) continue;
    const BootWindow report = report_of(*followed->owned, options_.clock_ms());
    if (is_of_it(report)) status.windows.push_back(report);
  }
  if (status.windows.size() > kShownWindows)
    status.windows.erase(status.windows.begin(), status.windows.end() - kShownWindows);
  return status;
}

void Boot::Service::forget(BootDisk& disk) {
  std::vector<CellFileKey> files = files_of_open(disk, find_profile(store_, disk));
  forget_stored(store_, disk);
  // Of a volume only what it does not share with its template's others.
  if (!disk.volume().is_nil())
    std::erase_if(files,
                  [](const CellFileKey& key) { return key.kind == CellFileKey::Kind::kSegment; });
  memory_.forget(files);
}

BootStats Boot::Service::stats() {
  BootStats stats{memory_.stats(), 0};
  const Lock guard(mutex_);
  for (const auto& [volume, followed] : followed_)
    if (followed->owned && followed->owned->record.is_confirmed()) ++stats.windows_open;
  return stats;
}

// --- threads

template <typename Work>
void Boot::Service::attempt(Work work) noexcept {
  try {
    work();
  } catch (const std::exception& error) {
    try {
      options_.log(fmt::format("boot cache: {}", error.what()));
    } catch (const std::exception&) {
      // Out of memory; nobody needs to know.
    }
  }
}

template <typename Work>
void Boot::Service::run_thread(std::thread& thread, Alarm& alarm, Work work) {
  thread = std::thread([this, &alarm, work] {
    int64_t wait_ns = 0;
    while (alarm.wait(wait_ns)) {
      wait_ns = kUpkeepNs;
      attempt([&] { wait_ns = work(); });
    }
  });
}

void Boot::Service::start() {
  run_thread(upkeep_thread_, upkeep_alarm_, [this] { return upkeep(); });
  run_thread(learn_thread_, learn_alarm_, [this] {
    make_thread_io_idle();
    learn_all();
    return kIdleNs;
  });
  run_thread(read_thread_, read_alarm_, [this] {
    make_thread_io_idle();
    return read_ahead() ? 0 : kIdleNs;
  });
}

void Boot::Service::stop() {
  for (Alarm* alarm : {&read_alarm_, &upkeep_alarm_, &learn_alarm_}) alarm->stop();
  for (std::thread* thread : {&read_thread_, &upkeep_thread_, &learn_thread_})
    if (thread->joinable()) thread->join();
  readings_.clear();
  buffer_.reset();
}

void Boot::Service::tend() {
  while (read_ahead()) {
  }
  upkeep();
  learn_all();
}

// --- Boot

Boot::Boot(BootOptions options, Backend& store, const HashSecret& secret)
    : service_(std::make_unique<Service>(std::move(options), store, secret)) {}
Boot::~Boot() = default;

void Boot::start() { service_->start(); }
void Boot::stop() { service_->stop(); }
void Boot::tend() { service_->tend(); }
CellMemory& Boot::memory() { return service_->memory(); }
std::unique_ptr<ReadFollower> Boot::follow(std::shared_ptr<BootDisk> disk) {
  return service_->follow(std::move(disk));
}
BootStatus Boot::show(BootDisk& disk) { return service_->show(disk); }
std::optional<BootWindow> Boot::done(const Uuid& volume) { return service_->done(volume); }
BootWarm Boot::warm(BootDisk& disk,
                    const std::function<void(uint64_t done, uint64_t bytes)>& progress,
                    const std::function<bool()>& interrupted) {
  return service_->warm(disk, progress, interrupted);
}
void Boot::forget(BootDisk& disk) { service_->forget(disk); }
BootStats Boot::stats() { return service_->stats(); }

// --- what is stored

BootStatus Boot::show_stored(Backend& store, BootDisk& disk) {
  BootStatus status;
  status.name = disk.name();
  status.is_template = disk.volume().is_nil();
  const FoundProfile found = find_profile(store, disk);
  const Profile& profile = found.stored.profile;
  if (found.is_of_template == status.is_template && !profile.runs.empty())
    status.profile = {found.stored.number, profile.boots,      count_blocks(profile.runs),
                      profile.created_ns,  profile.updated_ns, count_own_blocks(profile.runs)};
  if (!status.is_template) return status;
  bool is_damaged = false;
  if (const auto pack = open_pack(store, found.owner, load_identity(store).secret, &is_damaged)) {
    status.pack = BootStatus::PackState::kReady;
    status.pack_bytes = pack->object_bytes();
  } else if (is_damaged) {
    status.pack = BootStatus::PackState::kDamaged;
  }
  return status;
}

void Boot::forget_stored(Backend& store, BootDisk& disk) {
  if (disk.volume().is_nil()) return remove_of_template(store, disk.template_uuid().value());
  volume_profile(disk.volume()).remove_all(store);
}

void Boot::remove_of_template(Backend& store, const Uuid& template_uuid) {
  template_profile(template_uuid).remove_all(store);
  template_pack(template_uuid).remove_all(store);
}

uint64_t Boot::remove_orphans(Backend& store, const std::set<Uuid>& templates) {
  return remove_orphans_in(store, template_profile({}).folder, templates) +
         remove_orphans_in(store, template_pack({}).folder, templates);
}

void Boot::copy_for_fork(Backend& store, const Uuid& parent, const Uuid& child) {
  StoredProfile stored = load_profile(store, volume_profile(parent), parent);
  if (stored.profile.runs.empty()) return;
  stored.profile.owner = child;
  put_profile(store, volume_profile(child), 0, stored.profile);
}

}  // namespace tplstore
