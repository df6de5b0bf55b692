// Who waits for which commit, and what becomes of a map in which one has failed.
//
// A commit takes what is pending (the cut) and makes it durable. One runs at a time; whoever asks
// meanwhile waits for the next one, whose cut is sure to come after the question, and those who
// wait together share it.
//
// From a cut on, what was taken is nowhere else: whatever is thrown then stops the map for good,
// std::bad_alloc as well as an Error. So does what is thrown in or_stop(): work after whose failure
// nobody can tell what is durable.
//
// Thread safety: all methods. Errors: Error(EIO) once it is stopped; what the steps throw.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>

#include "base/mutex.h"

namespace tplstore {

class CommitPipeline {
 public:
  using Step = std::function<void()>;

  // Returns when a commit has succeeded that began after this call: `run`, which is to call
  // perform(), or another's. What `run` throws is thrown to who has run it; those who waited for it
  // try for themselves.
  void commit(const Step& run) EXCLUDES(mutex_);
  // Runs `body`, which may call perform(), while no commit runs.
  void run_alone(const Step& body) EXCLUDES(mutex_);
  // The steps of a commit, of which none other runs. What `cut` throws has left all as it was; what
  // `write` throws stops the map.
  void perform(const Step& cut, const Step& write);

  // It takes nothing by value: a copy that fails would be a failure outside. Not analysed: `work`
  // may need mutexes that the caller has.
  template <typename Work>
  void or_stop(const Work& work) NO_THREAD_SAFETY_ANALYSIS {
    try {
      work();
    } catch (...) {
      stop(std::current_exception());
      throw;
    }
  }
  // The first failure counts.
  void stop(std::exception_ptr failure) noexcept EXCLUDES(failure_mutex_);
  bool is_stopped() const { return is_stopped_.load(std::memory_order_acquire); }
  // Throws, and says why, when it is.
  void check() const {
    if (is_stopped()) [[unlikely]]
      throw_stopped();
  }

 private:
  [[noreturn]] void throw_stopped() const EXCLUDES(failure_mutex_);

  Mutex mutex_;  // not held while a commit runs
  ConditionVariable ended_;
  bool is_running_ GUARDED_BY(mutex_) = false;
  uint64_t started_ GUARDED_BY(mutex_) = 0;
  uint64_t finished_ GUARDED_BY(mutex_) = 0;

  mutable Mutex failure_mutex_;
  std::exception_ptr failure_ GUARDED_BY(failure_mutex_);
  std::atomic<bool> is_stopped_{false};
};

}  // namespace tplstore
