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
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>

namespace tplstore {

class CommitPipeline {
 public:
  using Step = std::function<void()>;

  // Returns when a commit has succeeded that began after this call: `run`, which is to call
  // perform(), or another's. What `run` throws is thrown to who has run it; those who waited for it
  // try for themselves.
  void commit(const Step& run);
  // Runs `body`, which may call perform(), while no commit runs.
  void run_alone(const Step& body);
  // The steps of a commit, of which none other runs. What `cut` throws has left all as it was; what
  // `write` throws stops the map.
  void perform(const Step& cut, const Step& write);

  // It takes nothing by value: a copy that fails would be a failure outside.
  template <typename Work>
  void or_stop(const Work& work) {
    try {
      work();
    } catch (...) {
      stop(std::current_exception());
      throw;
    }
  }
  // The first failure counts.
  void stop(std::exception_ptr failure) noexcept;
  bool is_stopped() const { return is_stopped_.load(std::memory_order_acquire); }
  // Throws, and says why, when it is.
  void check() const {
    if (is_stopped()) [[unlikely]]
      throw_stopped();
  }

 private:
  [[noreturn]] void throw_stopped() const;

  std::mutex mutex_;  // guards the next four
  std::condition_variable ended_;
  bool is_running_ = false;
  uint64_t started_ = 0;
  uint64_t finished_ = 0;

  mutable std::mutex failure_mutex_;  // guards the next
  std::exception_ptr failure_;
  std::atomic<bool> is_stopped_{false};
};

}  // namespace tplstore
