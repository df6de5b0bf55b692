// Followers, and when windows open and end.
#include "boot/boot_windows.h"

#include <algorithm>
#include <array>
#include <utility>

#include "boot/stream_filter.h"

namespace tplstore {
namespace {

constexpr int64_t kPauseMsMax = 10'000;  // between two windows of a volume
constexpr uint64_t kJoinedBytesMax = uint64_t{8} << 20;
constexpr size_t kReportsMax = 512;
constexpr size_t kShownWindows = 16;

BootWindow report_of(const FollowedBoot& boot, int64_t now_ms) {
  BootWindow report;
  report.volume = boot.disk->name();
  report.volume_uuid = boot.disk->volume();
  report.template_uuid = boot.disk->template_uuid();
  report.opened_ns = boot.opened_ns;
  report.blocks = boot.record.blocks();
  report.streamed_bytes = boot.record.streamed_bytes();
  report.read_bytes = boot.record.read_bytes();
  report.use = boot.cells->use();
  report.duration_ms = now_ms - boot.record.opened_ms();
  return report;
}

}  // namespace

// Where a profile begins. One of these blocks alone may be read for any reason; three of them in
// their order, each soon after the one before, tell that a boot begins.
class ProfileHeads {
 public:
  void set(std::span<const ProfileRun> runs) {
    uint64_t bits = 0;
    for (size_t i = 0; i < std::min(kHeads, runs.size()); ++i) {
      heads_.at(i).store(runs[i].first + 1, std::memory_order_relaxed);
      bits |= bit_of(runs[i].first);
    }
    bits_.store(bits);
  }
  // False where it is none.
  bool may_be(uint64_t block) const {
    return (bits_.load(std::memory_order_relaxed) & bit_of(block)) != 0;
  }
  // Notes a read; whether it is the third one.
  bool note(uint64_t block, int64_t now_ms) {
    const auto found = std::ranges::find_if(heads_, [block](const auto& head) {
      return head.load(std::memory_order_relaxed) == block + 1;
    });
    if (found == heads_.end()) return false;
    const auto index = static_cast<size_t>(found - heads_.begin());
    const bool is_next =
        next_.exchange(index + 1) == index && now_ms - last_ms_.load() <= kTogetherMs;
    last_ms_.store(now_ms);
    in_order_.store(is_next ? in_order_.load() + 1 : 1);
    return in_order_.load() >= kInOrder;
  }

 private:
  static constexpr size_t kHeads = BootWindows::kHeads;
  static constexpr int64_t kTogetherMs = 2'000;
  static constexpr uint32_t kInOrder = 3;

  // Which of 64 bits stands for a block.
  static uint64_t bit_of(uint64_t block) {
    return uint64_t{1} << ((block * 0x9e3779b97f4a7c15) >> 58);
  }

  std::atomic<uint64_t> bits_{0};
  std::array<std::atomic<uint64_t>, kHeads> heads_{};  // the blocks + 1
  // Of what was read. Requests that meet here may lose count.
  std::atomic<size_t> next_{0};
  std::atomic<int64_t> last_ms_{0};
  std::atomic<uint32_t> in_order_{0};
};

std::string BootWindow::line() const {
  const uint64_t touched = use.cells - std::min(use.cells, use.prefetched_unused);
  const uint64_t found = touched == 0 ? 0 : 100 * std::min(use.first_touch_hits, touched) / touched;
  return fmt::format("{}: boot ended ({}): {} blocks, {}, {} % found in memory, {}.{} s", volume,
                     reason ? name_of(*reason) : "open", blocks, format_size(bytes()), found,
                     duration_ms / 1000, duration_ms % 1000 / 100);
}

// A volume that has followers.
struct BootWindows::Followed {
  std::atomic<FollowedBoot*> open{nullptr};
  std::atomic<int64_t> ended_ms{INT64_MIN / 2};  // the last window
  ProfileHeads heads;
  // Under the mutex of the windows:
  std::shared_ptr<BootDisk> disk;
  std::shared_ptr<FollowedBoot> owned;
  size_t followers = 0;
};

// --- reading

class BootWindows::Follower final : public ReadFollower {
 public:
  Follower(BootWindows& windows, std::shared_ptr<Followed> followed, const Uuid& volume)
      : windows_(windows), followed_(std::move(followed)), volume_(volume) {}
  ~Follower() override { windows_.leave(volume_, *this); }

  CellWindow* begin_read(uint64_t offset, uint64_t length, ReadPlan& plan) noexcept override {
    if (followed_->open.load(std::memory_order_relaxed) == nullptr) [[likely]] {
      const uint64_t block = offset / kBlockBytes;
      if (block != 0 && !followed_->heads.may_be(block)) [[likely]]
        return nullptr;
      if (!begin_window(block)) return nullptr;
    }
    plan.enter(windows_.memory_.requests());
    FollowedBoot* boot = followed_->open.load();
    if (boot == nullptr) return nullptr;
    if (!boot->record.is_confirmed()) {
      if (offset >= kBlockBytes)
        begin_boot(*boot);
      else
        boot->record.reopen(windows_.options_.clock_ms());
    }
    const bool is_streaming = note_in_stream(offset, length);
    if (is_guest_of(*boot))
      boot->record.note_read(length, is_streaming);
    else if (!is_streaming && !may_join(*boot, length))
      return nullptr;
    return is_streaming ? nullptr : boot->cells.get();
  }

  void touch(CellWindow& cells, uint32_t source, uint64_t first, uint64_t count) noexcept override {
    FollowedBoot* boot = followed_->open.load();
    if (boot == nullptr || boot->cells.get() != &cells) return;  // it has ended meanwhile
    boot->record.touch(source, first, count, windows_.options_.clock_ms());
  }

 private:
  // Without memory, or where it is too early, there is none.
  bool begin_window(uint64_t block) noexcept {
    const int64_t now_ms = windows_.options_.clock_ms();
    if (now_ms - followed_->ended_ms.load(std::memory_order_relaxed) <
        std::min(kPauseMsMax, windows_.limits_.quiet_ms))
      return false;
    if (block != 0 && !followed_->heads.note(block, now_ms)) return false;
    try {
      return windows_.open(*followed_, block != 0);
    } catch (const std::exception&) {
      return false;
    }
  }
  void begin_boot(FollowedBoot& boot) noexcept {
    try {
      windows_.confirm(*followed_, boot);
    } catch (const std::exception&) {
      // Then nothing is read ahead.
    }
  }
  bool is_guest_of(FollowedBoot& boot) const noexcept {
    const ReadFollower* guest = boot.guest.load(std::memory_order_relaxed);
    return guest == this || (guest == nullptr && boot.guest.compare_exchange_strong(guest, this));
  }
  bool may_join(const FollowedBoot& boot, uint64_t length) noexcept {
    if (joined_ms_.exchange(boot.record.opened_ms()) != boot.record.opened_ms()) joined_bytes_ = 0;
    return joined_bytes_.fetch_add(length) < kJoinedBytesMax;
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

  BootWindows& windows_;
  const std::shared_ptr<Followed> followed_;
  const Uuid volume_;
  std::atomic_flag is_filtering_;
  StreamFilter filter_;
  // In a window that is another connection's: when that was opened, and what was read in it.
  std::atomic<int64_t> joined_ms_{0};
  std::atomic<uint64_t> joined_bytes_{0};
};

std::unique_ptr<ReadFollower> BootWindows::follow(std::shared_ptr<BootDisk> disk) {
  const Uuid volume = disk->volume();
  const Lock guard(mutex_);
  std::shared_ptr<Followed>& followed = followed_[volume];
  if (!followed) {
    followed = std::make_shared<Followed>();
    headless_.push_back(volume);
    alarms_.read.ring();
  }
  auto follower = std::make_unique<Follower>(*this, followed, volume);
  followed->disk = std::move(disk);
  ++followed->followers;
  return follower;
}

void BootWindows::leave(const Uuid& volume, const ReadFollower& follower) noexcept {
  std::optional<BootWindow> report;
  {
    const Lock guard(mutex_);
    const auto found = followed_.find(volume);
    if (found == followed_.end()) return;
    if (const auto& boot = found->second->owned; boot && boot->guest.load() == &follower)
      boot->guest.store(nullptr);
    if (--found->second->followers > 0) return;
    try {
      report = end(*found->second, WindowEnd::kClosed);
    } catch (const std::exception&) {
      // Without memory nothing is learnt from it.
    }
    followed_.erase(found);
  }
  say(report);
}

// --- windows

bool BootWindows::open(Followed& followed, bool is_confirmed) {
  const Lock guard(mutex_);
  if (followed.owned || !followed.disk) return followed.owned != nullptr;
  auto beside = memory_.hold_beside(sizeof(FollowedBoot));
  if (!beside) return false;
  auto boot = std::make_shared<FollowedBoot>(followed.disk, limits_, options_.clock_ms(), memory_);
  boot->besides.push_back(std::move(*beside));
  if (is_confirmed) {
    boot->record.confirm();
    begun_.push_back(boot);
    alarms_.read.ring();
  }
  followed.owned = boot;
  followed.open.store(boot.get());
  alarms_.upkeep.ring();
  return true;
}

void BootWindows::confirm(Followed& followed, FollowedBoot& boot) {
  if (!boot.record.confirm()) return;
  const Lock guard(mutex_);
  if (followed.owned.get() != &boot) return;
  begun_.push_back(followed.owned);
  alarms_.read.ring();
}

std::optional<BootWindow> BootWindows::end(Followed& followed, WindowEnd reason) {
  const std::shared_ptr<FollowedBoot> boot = followed.owned;
  if (!boot) return std::nullopt;
  const int64_t now_ms = options_.clock_ms();
  if (!boot->record.is_confirmed()) reason = WindowEnd::kUnconfirmed;
  BootWindow report = report_of(*boot, now_ms);
  report.reason = reason;
  report.ended_ns = now_unix_ns();
  ended_.push_back({boot, reason != WindowEnd::kUnconfirmed, nullptr});
  followed.owned.reset();
  followed.open.store(nullptr);
  boot->is_over.store(true);
  alarms_.learn.ring();
  if (reason == WindowEnd::kUnconfirmed) return std::nullopt;
  followed.ended_ms.store(now_ms);
  reports_.push_back(report);
  if (reports_.size() > kReportsMax) reports_.pop_front();
  return report;
}

void BootWindows::say(const std::optional<BootWindow>& report) const {
  if (report && report->blocks > 0) options_.log(LogLevel::kInfo, report->line());
}

std::optional<BootWindow> BootWindows::done(const Uuid& volume) {
  std::optional<BootWindow> report;
  {
    const Lock guard(mutex_);
    const auto found = followed_.find(volume);
    if (found != followed_.end()) report = end(*found->second, WindowEnd::kDone);
  }
  say(report);
  return report;
}

bool BootWindows::tend() {
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
  return has_open;
}

// Counts what the record has grown by; and a window has half of the memory at most.
void BootWindows::keep(FollowedBoot& boot) {
  const uint64_t bytes = boot.record.memory_bytes();
  if (bytes > boot.counted_bytes) {
    if (auto beside = memory_.hold_beside(bytes - boot.counted_bytes)) {
      boot.besides.push_back(std::move(*beside));
      boot.counted_bytes = bytes;
    }
  }
  if (boot.cells->is_filling() && boot.cells->cells() * kBlockBytes >= options_.cap_bytes / 2)
    boot.cells->stop_filling();
}

// --- what is asked of them

uint64_t BootWindows::count_open() {
  const Lock guard(mutex_);
  return static_cast<uint64_t>(std::ranges::count_if(followed_, [](const auto& entry) {
    return entry.second->owned && entry.second->owned->record.is_confirmed();
  }));
}

std::vector<BootWindow> BootWindows::reports_of(const BootDisk& disk) {
  const bool is_template = disk.volume().is_nil();
  std::vector<BootWindow> found;
  const auto add = [&](const BootWindow& report) {
    if (is_template ? report.template_uuid == disk.template_uuid()
                    : report.volume_uuid == disk.volume())
      found.push_back(report);
  };
  const Lock guard(mutex_);
  for (const BootWindow& report : reports_) add(report);
  for (const auto& [volume, followed] : followed_)
    if (followed->owned && followed->owned->record.is_confirmed())
      add(report_of(*followed->owned, options_.clock_ms()));
  if (found.size() > kShownWindows) found.erase(found.begin(), found.end() - kShownWindows);
  return found;
}

std::vector<std::shared_ptr<FollowedBoot>> BootWindows::take_begun() {
  const Lock guard(mutex_);
  return std::exchange(begun_, {});
}

std::vector<std::shared_ptr<BootDisk>> BootWindows::take_headless() {
  std::vector<std::shared_ptr<BootDisk>> disks;
  const Lock guard(mutex_);
  for (const Uuid& volume : std::exchange(headless_, {}))
    if (const auto found = followed_.find(volume); found != followed_.end())
      disks.push_back(found->second->disk);
  return disks;
}

void BootWindows::set_heads(const Uuid& volume, std::span<const ProfileRun> runs) {
  const Lock guard(mutex_);
  if (const auto found = followed_.find(volume); found != followed_.end())
    found->second->heads.set(runs);
}

void BootWindows::has_new_profile(const Uuid& volume) {
  const Lock guard(mutex_);
  headless_.push_back(volume);
  alarms_.read.ring();
}

std::optional<BootWindows::Ended> BootWindows::take_ended() {
  const Lock guard(mutex_);
  if (ended_.empty()) return std::nullopt;
  Ended ended = std::move(ended_.front());
  ended_.pop_front();
  return ended;
}

void BootWindows::let_go(std::unique_ptr<CellMemory::Window> cells) {
  const Lock guard(mutex_);
  ended_.push_back({nullptr, false, std::move(cells)});
  alarms_.learn.ring();
}

void BootWindows::put_back(Ended ended) {
  const Lock guard(mutex_);
  ended_.push_front(std::move(ended));
}

}  // namespace tplstore
