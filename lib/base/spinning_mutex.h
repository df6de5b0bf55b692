// A shared mutex that tries for a moment before it sleeps: for critical sections that are shorter
// than putting a thread to sleep and waking it.
#pragma once

#include "base/mutex.h"

namespace tplstore {

class CAPABILITY("mutex") SpinningSharedMutex {
 public:
  void lock() ACQUIRE() {
    for (int i = 0; i < kTries; ++i) {
      if (mutex_.try_lock()) return;
      relax();
    }
    mutex_.lock();
  }
  void unlock() RELEASE() { mutex_.unlock(); }
  void lock_shared() ACQUIRE_SHARED() {
    for (int i = 0; i < kTries; ++i) {
      if (mutex_.try_lock_shared()) return;
      relax();
    }
    mutex_.lock_shared();
  }
  void unlock_shared() RELEASE_SHARED() { mutex_.unlock_shared(); }

 private:
  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }

  static constexpr int kTries = 100;
  std::shared_mutex mutex_;
};

}  // namespace tplstore
