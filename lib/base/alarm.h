// Wakes a thread that waits for something to do, and tells it to end.
// Thread safety: all.
#pragma once

#include <chrono>
#include <cstdint>

#include "base/mutex.h"

namespace tplstore {

class Alarm {
 public:
  void ring() noexcept {
    const Lock guard(mutex_);
    is_rung_ = true;
    changed_.notify_all();
  }
  void stop() noexcept {
    const Lock guard(mutex_);
    is_stopped_ = true;
    changed_.notify_all();
  }
  bool is_stopped() const {
    const Lock guard(mutex_);
    return is_stopped_;
  }
  // Until it is rung, or so long; false once it is stopped.
  bool wait(int64_t duration_ns) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::nanoseconds(duration_ns);
    const Lock guard(mutex_);
    while (!is_rung_ && !is_stopped_)
      if (changed_.wait_until(mutex_, deadline) == std::cv_status::timeout) break;
    is_rung_ = false;
    return !is_stopped_;
  }

 private:
  mutable Mutex mutex_;
  ConditionVariable changed_;
  bool is_rung_ GUARDED_BY(mutex_) = false;
  bool is_stopped_ GUARDED_BY(mutex_) = false;
};

}  // namespace tplstore
