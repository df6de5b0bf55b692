// Which segments a directory of the tier is to get a copy of, and how fast.
//
// Thread safety: all methods.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <set>

#include "base/bytes.h"
#include "base/mutex.h"

namespace tplstore {

struct WantedSegment {
  Hash128 name;
  uint32_t block_count = 0;  // 0: as many as it has
};

// Each segment once, those asked for first come first.
class FillQueue {
 public:
  static constexpr size_t kMax = 4096;

  // Does not wait: with somebody else in here, or when it is full, nothing happens, for what is
  // needed is asked for again. Whether there is one more now.
  bool add(const WantedSegment& wanted) noexcept {
    if (!mutex_.try_lock()) return false;
    const Lock guard(mutex_, std::adopt_lock);
    try {
      if (queue_.size() >= kMax || !names_.insert(wanted.name).second) return false;
    } catch (const std::bad_alloc&) {
      return false;
    }
    try {
      queue_.push_back(wanted);
      return true;
    } catch (const std::bad_alloc&) {
      names_.erase(wanted.name);
      return false;
    }
  }
  // The first, which stays in here until done().
  std::optional<WantedSegment> first() const {
    const Lock guard(mutex_);
    if (queue_.empty()) return {};
    return queue_.front();
  }
  void done() {
    const Lock guard(mutex_);
    names_.erase(queue_.front().name);
    queue_.pop_front();
  }
  void clear() {
    const Lock guard(mutex_);
    queue_.clear();
    names_.clear();
  }
  size_t size() const {
    const Lock guard(mutex_);
    return queue_.size();
  }

 private:
  mutable Mutex mutex_;
  std::deque<WantedSegment> queue_ GUARDED_BY(mutex_);
  std::set<Hash128> names_ GUARDED_BY(mutex_);
};

// So many bytes a second, for all directories together; 0: none.
class FillRate {
 public:
  explicit FillRate(uint64_t bytes_per_second) : bytes_per_second_(bytes_per_second) {}

  // How long it is until something may be moved; 0: now.
  int64_t wait_ns(int64_t now_ns) const {
    if (bytes_per_second_ == 0) return INT64_MAX;
    const Lock guard(mutex_);
    return std::max<int64_t>(free_at_ns_ - now_ns, 0);
  }
  // So many bytes are being moved.
  void charge(uint64_t bytes, int64_t now_ns) {
    if (bytes_per_second_ == 0) return;
    const double duration_ns =
        static_cast<double>(bytes) * 1e9 / static_cast<double>(bytes_per_second_);
    const Lock guard(mutex_);
    free_at_ns_ = std::max(free_at_ns_, now_ns) + static_cast<int64_t>(std::min(duration_ns, 1e14));
  }

 private:
  const uint64_t bytes_per_second_;
  mutable Mutex mutex_;
  int64_t free_at_ns_ GUARDED_BY(mutex_) = 0;
};

}  // namespace tplstore
