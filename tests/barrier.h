// Threads that are held up where they are, and let go. Thread safety: all.
#pragma once

#include <condition_variable>
#include <mutex>

namespace tplstore::testing {

class Barrier {
 public:
  void hold() {
    std::unique_lock guard(mutex_);
    ++inside_;
    changed_.notify_all();
    changed_.wait(guard, [&] { return is_open_; });
  }
  void await(int count) {
    std::unique_lock guard(mutex_);
    changed_.wait(guard, [&] { return inside_ >= count; });
  }
  void open() {
    const std::lock_guard guard(mutex_);
    is_open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int inside_ = 0;
  bool is_open_ = false;
};

}  // namespace tplstore::testing
