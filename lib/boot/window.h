// One boot of a VM: which blocks its reads touch for the first time, in order; and when it is over.
//
// It is over at the first of: somebody says so; nothing was touched for the first time for a while;
// it takes too long; it has touched too much; the volume is closed. One in which nothing followed
// the read that opened it was none.
//
// Thread safety: touch(), note_read() and confirm() from any threads; they take no lock and
// allocate nothing but where a region of the disk is touched for the first time. The record is read
// when all who might touch have ended.
// Errors: none; what there is no memory for is not recorded.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/mutex.h"
#include "boot/profile.h"

namespace tplstore {

// kUnconfirmed: nothing followed.
enum class WindowEnd : uint8_t { kDone, kQuiet, kTime, kBytes, kClosed, kUnconfirmed };
const char* name_of(WindowEnd end);  // "done", "quiet", "time", "bytes", "closed", "unconfirmed"

struct WindowLimits {
  int64_t quiet_ms = 15'000;
  int64_t time_ms = 300'000;
  uint64_t bytes = uint64_t{2} << 30;
};

class Window {
 public:
  Window(uint64_t disk_bytes, const WindowLimits& limits, int64_t opened_ms);
  ~Window();

  // --- reading
  void note_read(uint64_t bytes, bool is_streaming) noexcept {
    read_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    if (is_streaming) streamed_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  }
  void touch(uint32_t source, uint64_t first, uint64_t count, int64_t now_ms) noexcept;
  // Another read has followed the first one; false when one had before.
  bool confirm() noexcept {
    return !is_confirmed() && !is_confirmed_.exchange(true, std::memory_order_relaxed);
  }
  // The first one has come again, which puts off the end, if nothing follows, but not for ever.
  void reopen(int64_t now_ms) noexcept {
    opened_ms_.store(now_ms, std::memory_order_relaxed);
    touched_ms_.store(now_ms, std::memory_order_relaxed);
  }
  bool is_confirmed() const noexcept { return is_confirmed_.load(std::memory_order_relaxed); }

  // --- upkeep
  // Why it is over by now, if it is.
  std::optional<WindowEnd> find_end(int64_t now_ms) const;
  int64_t opened_ms() const { return opened_ms_.load(std::memory_order_relaxed); }
  uint64_t blocks() const { return blocks_.load(std::memory_order_relaxed); }
  uint64_t read_bytes() const { return read_bytes_.load(std::memory_order_relaxed); }
  uint64_t streamed_bytes() const { return streamed_bytes_.load(std::memory_order_relaxed); }
  uint64_t memory_bytes() const { return memory_bytes_.load(std::memory_order_relaxed); }

  // When nobody touches any more.
  std::vector<ProfileRun> record() const;

 private:
  static constexpr uint64_t kFolderRegions = 512;
  static constexpr uint32_t kChunkTouches = 512;
  using Word = std::atomic<uint64_t>;
  using Bits = std::array<Word, kRegionBlocks / 64>;  // of a region
  using Folder = std::array<std::atomic<Bits*>, kFolderRegions>;
  using Chunk = std::array<ProfileRun, kChunkTouches>;

  template <typename T>
  T* get_or_make(std::atomic<T*>& place) noexcept EXCLUDES(growing_);
  Bits* bits_of(uint64_t region) noexcept;
  void append(const ProfileRun& run) noexcept;
  // As good as: there is room for what requests that are in flight have yet to append.
  bool is_full() const {
    return touches_.load(std::memory_order_relaxed) >= kProfileRunsMax - 8192;
  }

  const uint64_t block_count_;
  const WindowLimits limits_;
  const int64_t first_opened_ms_;

  std::atomic<int64_t> opened_ms_;
  std::atomic<bool> is_confirmed_{false};
  std::atomic<int64_t> touched_ms_;  // the last time
  std::atomic<uint64_t> blocks_{0}, read_bytes_{0}, streamed_bytes_{0}, memory_bytes_{0};
  std::atomic<uint32_t> touches_{0};

  Mutex growing_;
  std::vector<std::atomic<Folder*>> folders_;
  std::array<std::atomic<Chunk*>, kProfileRunsMax / kChunkTouches> chunks_{};
};

}  // namespace tplstore
